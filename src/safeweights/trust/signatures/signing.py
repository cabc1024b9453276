"""Signing a model: list, hash, describe, sign, write.

One pass over every file gives both its digest and its block tree; the trees go into sidecars, which
are listed like every other file of a folder, with the root in the annotations of the file they
belong to. The signature file is the last thing written.
"""

from __future__ import annotations

import errno
import hashlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ...errors import quote
from ...storage.sink import write_file
from ..content.blocktree import MAGIC
from ..content.digests import FileDigest, hash_files
from ..content.resources import Part, Resource, TreeReference
from ..content.sidecars import SIDECAR
from ..errors import DocumentError, VerificationError
from ..files import check_name, check_writable, list_folder, open_regular, read_document
from .bundle import (
    DEFAULT_IGNORED,
    SINGLE_FILE,
    build_bundle,
    build_statement,
    covers,
    pae,
    parse_bundle,
)
from .keys import need_cryptography, wrap_public_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from .keys import Signer

__all__ = ["Signed", "sign", "signature_path"]

WEIGHTS: Final = ".safetensors"


@dataclass(frozen=True)
class Signed:
    """What was signed and written.

    Attributes:
        signature: The signature file.
        subject: The model's name in the statement.
        files: Every listed file.
        sidecars: The block trees written.
        key_hint: SHA-256 of the public key's PEM.
    """

    signature: str
    subject: str
    files: tuple[FileDigest, ...]
    sidecars: tuple[str, ...]
    key_hint: str


def signature_path(path: str) -> str:
    """Where the signature of a folder or file is by default: ``model.sig`` in it, or FILE.sig."""
    return os.path.join(path, "model.sig") if os.path.isdir(path) else f"{path}.sig"


def sign(
    path: str | os.PathLike[str],
    signer: Signer,
    *,
    signature: str | None = None,
    certificates: Sequence[bytes] = (),
    ignore: Iterable[str] = (),
    trees: bool = True,
    release: int | None = None,
    force: bool = False,
    workers: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> Signed:
    """Sign a file or a folder: an OMS v1.0 bundle that ``model_signing verify`` accepts.

    Args:
        path: A file, or a folder, of which every file is listed.
        signer: The key.
        signature: The file to write; `signature_path` unless told.
        certificates: The chain in DER, leaf first, for the ``certificate`` method; the leaf must be
            that of `signer`. Without one, the ``key`` method.
        ignore: Paths in the folder that are left out, and recorded as such.
        trees: Write a block tree beside every ``.safetensors`` file, for verified partial reads.
        release: A number that grows with every release; a policy with a lock file refuses an
            older one.
        force: Replace any regular file at the place of the signature or a sidecar. By default, only
            an empty file, a signature and a block tree are replaced. A symbolic link never is.
        workers: Files hashed at a time; the number of cores unless told.
        progress: Called with the bytes read so far, from the calling thread.

    Raises:
        VerificationError: A link or special file in the folder, a file that changes meanwhile.
        DocumentError: A certificate that is not the signer's; a path that cannot be left out.
        FileExistsError: A file that is not replaced is in the way; nothing was written.
        OSError: As the operating system has it.
    """
    chain = _chain(certificates, signer)
    path = os.path.abspath(path)
    signature = os.path.abspath(signature or signature_path(path))
    alone = not os.path.isdir(path)
    ignored = [] if alone else _ignored(path, signature, ignore)
    found = [(os.path.basename(path), path)] if alone else _list(path, ignored, trees=trees)
    base = os.path.dirname(path) if alone else path
    _check_replaceable(signature, "a signature", _is_signature, force=force)
    planned = [f"{name}{SIDECAR}" for name, _ in found if trees and name.endswith(WEIGHTS)]
    for name in planned:
        _check_replaceable(os.path.join(base, name), "a block tree", _is_sidecar, force=force)
    files = hash_files(
        found, tree=lambda name: trees and name.endswith(WEIGHTS), follow=alone, workers=workers,
        progress=progress,
    )  # fmt: skip
    sidecars = {f"{file.name}{SIDECAR}": file.tree.encode() for file in files if file.tree}
    if alone:
        resources = [_resource(files[0], SINGLE_FILE, release, bound=files[0].name)]
    else:
        files += [_digest(name, data) for name, data in sidecars.items()]
        resources = [_resource(file, file.name, release) for file in files]
    payload = build_statement(os.path.basename(path), resources, ignored)
    hint = signer.public_key.hint
    bundle = build_bundle(
        payload, signer.sign(pae(payload)), hint=None if chain else hint, certificates=chain
    )
    for name, data in sidecars.items():
        write_file(os.path.join(base, name), [data], durable=True, links="refuse")
    write_file(signature, [bundle], durable=True, links="refuse")
    return Signed(signature, os.path.basename(path), tuple(files), tuple(sidecars), hint)


def _check_replaceable(path: str, what: str, own: Callable[[str], bool], *, force: bool) -> None:
    """Find out before any file is hashed that writing to `path` loses nothing.

    Raises:
        FileExistsError: There is a symbolic link, or a file that is not `own`.
        OSError: No file can be written there.
    """
    if os.path.islink(path):
        message = "is a symbolic link, through which no signature is written; remove it first"
        raise FileExistsError(errno.EEXIST, message, path)
    check_writable(path)
    if not force and os.path.exists(path) and os.path.getsize(path) and not own(path):
        message = f"exists and is not {what}; move it away or use force"
        raise FileExistsError(errno.EEXIST, message, path)


def _is_signature(path: str) -> bool:
    try:
        parse_bundle(read_document(path))
    except DocumentError:
        return False
    return True


def _is_sidecar(path: str) -> bool:
    with open_regular(path) as (descriptor, _):
        return os.read(descriptor, len(MAGIC)) == MAGIC


def _chain(certificates: Sequence[bytes], signer: Signer) -> list[bytes]:
    x509 = need_cryptography("x509")
    if certificates:
        try:
            leaf = x509.load_der_x509_certificate(certificates[0]).public_key()
        except ValueError:
            raise DocumentError("not a certificate in DER", field="certificates[0]") from None
        if wrap_public_key(leaf) != signer.public_key:
            raise DocumentError(
                "the certificate belongs to another key", field="certificates[0]",
                reason="wrong-key",
            )  # fmt: skip
    return list(certificates)


def _ignored(root: str, signature: str, ignore: Iterable[str]) -> list[str]:
    """What is left out of a folder: what the caller names, and the signature."""
    ignored = [name.rstrip("/") for name in ignore]
    for name in ignored:
        if problem := check_name(name):
            raise DocumentError(f"{quote(name)} {problem}", field="ignore", reason="ignore-paths")
    inside = os.path.relpath(os.path.realpath(signature), os.path.realpath(root))
    inside = inside.replace(os.sep, "/")
    return ignored if inside.startswith("../") else [*ignored, inside]


def _list(root: str, ignored: list[str], *, trees: bool) -> list[tuple[str, str]]:
    """Every file to hash, as (name, path); not the sidecars that are about to be written."""
    entries = [e for e in list_folder(root) if not covers((*DEFAULT_IGNORED, *ignored), e.name)]
    names = {entry.name for entry in entries}
    found = []
    for entry in entries:
        if entry.kind != "file":
            raise VerificationError(
                f"{quote(entry.name)} is a {'symbolic link' if entry.kind == 'link' else 'special file'}"
                "; a signature covers regular files only: replace or leave it out",
                reason="symlink" if entry.kind == "link" else "not-a-file", path=root,
            )  # fmt: skip
        weights = entry.name.removesuffix(SIDECAR)
        if not (trees and weights != entry.name and weights in names and weights.endswith(WEIGHTS)):
            found.append((entry.name, os.path.join(root, entry.name)))
    if not found:
        raise VerificationError("there is no file to sign", reason="empty-resources", path=root)
    return found


def _digest(name: str, data: bytes) -> FileDigest:
    return FileDigest(name, len(data), hashlib.sha256(data).hexdigest())


def _resource(
    file: FileDigest, name: str, release: int | None, *, bound: str | None = None
) -> Resource:
    tree = TreeReference(file.tree.root, f"{file.name}{SIDECAR}") if file.tree else None
    part = Part(0, None, bytes.fromhex(file.sha256))
    return Resource(name, "sha256", (part,), tree, bound, release)
