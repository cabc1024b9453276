"""Signing a model: list, hash, describe, sign, write.

One pass over every file gives both its digest and its block tree; the trees are written to sidecars,
which are listed like every other file of a folder, with the root in the annotations of the file they
belong to. The signature file is written last.
"""

from __future__ import annotations

import errno
import hashlib
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from ...display import Displayed
from ...errors import quote
from ...storage import open_source
from ...storage.hashing import sha256
from ...storage.parallel import in_threads
from ...storage.places import (
    absolute,
    basename,
    continued,
    exists,
    folder_of,
    is_folder,
    is_url,
    join,
    parent,
    place_of,
    shown,
)
from ...storage.sink import write_file
from ...text import human_bytes, plural
from ..access.keyring import HEAD, is_encrypted
from ..access.stores import EncryptedStore, plain_name
from ..content.blocktree import TREE_MAGIC, TreeBuilder
from ..content.digests import FileDigest, hash_files
from ..content.resources import Part, Resource, TreeReference
from ..content.sidecars import SIDECAR
from ..errors import DocumentError, VerificationError
from ..files import KEY_FILE, check_name, check_writable, list_folder, open_regular, read_document
from .bundle import (
    DEFAULT_IGNORED,
    MAX_BUNDLE,
    MAX_ID,
    SINGLE_FILE,
    Method,
    build_bundle,
    build_statement,
    covers,
    pae,
    parse_bundle,
    root_digest,
)
from .keyless import KeylessSigner
from .keys import need_cryptography, wrap_public_key
from .linked import is_blob_link
from .timestamps import in_der

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from .keys import Signer

__all__ = ["Described", "Signed", "digest", "sign", "signature_path"]

WEIGHTS: Final = (".safetensors", ".safetensors.age")
"""How the names of files end that get a block tree: they are read in part."""

_LARGE: Final = 1 << 22
"""Size from which an encrypted file of any other name gets one, too; else one thread hashes all of it."""


SIGNATURE: Final = "model.sig"
"""The name of a folder's signature, unless another is given."""


@dataclass(frozen=True, repr=False)
class Described(Displayed):
    """What a signature over a model lists.

    Attributes:
        subject: The model's name: the last part of its path.
        root: The digest over all digests (OMS section 6.5.1), which identifies the contents.
        files: Every listed file.
    """

    subject: str
    root: str
    files: tuple[FileDigest, ...]

    def _summary(self) -> str:
        return f"{quote(self.subject, 300)}, {plural(len(self.files), 'file')}, root {self.root}"

    def _table(self) -> tuple[Sequence[str], Iterable[Sequence[str]]]:
        rows = ((each.name, human_bytes(each.size), each.sha256) for each in self.files)
        return ("file", "size", "sha256"), rows


@dataclass(frozen=True, repr=False)
class Signed(Described):
    """What was signed and written.

    Attributes:
        signature: The signature file.
        sidecars: The block trees written.
        method: ``"key"``, ``"certificate"`` or ``"keyless"``.
        key_hint: SHA-256 of the public key's PEM; None for keyless.
        key_signatures: Names of the signatures of the key files in an encrypted folder.
    """

    signature: str
    sidecars: tuple[str, ...]
    method: Method
    key_hint: str | None
    key_signatures: tuple[str, ...] = ()

    def _summary(self) -> str:
        return f"{super()._summary()}, written to {quote(self.signature, 300)}"


@dataclass(frozen=True)
class _Manifest:
    """A hashed model, ready to be signed."""

    files: list[FileDigest]
    resources: list[Resource]
    sidecars: dict[str, bytes]
    linked: bool

    @property
    def root(self) -> str:
        ordered = sorted(self.resources, key=lambda resource: resource.name)
        return root_digest(resource.parts[0].digest for resource in ordered)


def signature_path(path: str) -> str:
    """The default place of a signature: ``model.sig`` in a folder, or FILE.sig."""
    return join(path, SIGNATURE) if is_folder(path) else continued(path, ".sig")


def digest(
    path: str | os.PathLike[str],
    *,
    signature: str | os.PathLike[str] | None = None,
    ignore: Iterable[str] = (),
    trees: bool = True,
    allow_symlinks: bool = False,
    identity: Any = None,
    workers: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> Described:
    """The root digest of a model: what `sign` with the same arguments would record.

    Nothing is written. The arguments are those of `sign`; every file is read. With an `identity` that
    opens an encrypted model (see `safeweights.open`), the digest is that of the plaintext: what `sign`
    would have recorded before it was encrypted.

    Raises:
        VerificationError, DocumentError, OSError: As `sign` does.
        AccessError, FormatError: The identity does not open it, or a file was changed.
    """
    path, signature, ignored = _places(path, signature, ignore)
    if identity is not None:
        return _digest_inside(path, ignored, identity, trees=trees, progress=progress)
    found, linked = _list(path, ignored, trees=trees, allow_symlinks=allow_symlinks)
    treed = {name for name, file in found if trees and _gets_tree(name, file)}
    made = _hash(path, found, treed=treed, linked=linked, workers=workers, progress=progress)
    return Described(basename(path), made.root, tuple(made.files))


def _digest_inside(
    path: str,
    ignored: list[str],
    identity: Any,
    *,
    trees: bool,
    progress: Callable[[int], object] | None,
) -> Described:
    alone = not is_folder(path)
    name = basename(path) if alone else ""
    store = EncryptedStore(folder_of(parent(path) if alone else path), identity, named=name)
    if alone:
        names = [plain_name(name) or name]
    else:
        listed = [entry.name for entry in store.list()]
        kept = [name for name in listed if not covers((*DEFAULT_IGNORED, *ignored), name)]
        sidecars = {name + SIDECAR for name in kept if trees and name.endswith(WEIGHTS)}
        names = [name for name in kept if name not in sidecars]

    def one(name: str, tell: Callable[[int], object]) -> FileDigest:
        source = store.open(name)
        builder = TreeBuilder() if trees and name.endswith(WEIGHTS) else None
        found = sha256(source, also=builder.update if builder else None, progress=tell)
        return FileDigest(name, source.size, found, builder.finish() if builder else None)

    files = in_threads(one, names, progress=progress)
    made = _manifest(files, alone=alone)
    return Described(names[0] if alone else basename(path), made.root, tuple(made.files))


def sign(
    path: str | os.PathLike[str],
    signer: Signer | KeylessSigner,
    *,
    signature: str | os.PathLike[str] | None = None,
    certificates: Sequence[bytes] = (),
    ignore: Iterable[str] = (),
    trees: bool = True,
    release: int | None = None,
    model_id: str | None = None,
    allow_symlinks: bool = False,
    timestamp: Callable[[bytes], bytes] | None = None,
    force: bool = False,
    workers: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> Signed:
    """Sign a file or a folder: an OMS v1.0 bundle that ``model_signing verify`` accepts.

    Args:
        path: A file, or a folder, of which every file is listed. At a URL, the store must be one that can
            be written (a bucket or a registry), unless `signature` is on this machine and `trees` is false.
        signer: The key, or a `KeylessSigner`.
        signature: The file to write; by default, `signature_path`.
        certificates: The chain in DER, leaf first, for the ``certificate`` method; the leaf must be
            that of `signer`. Without one, the method is ``key``.
        ignore: Paths in the folder that are left out, and recorded as such.
        trees: Write a block tree beside every ``.safetensors`` file and every encrypted file of 4 MiB or
            more, for verified partial reads and for hashing by several threads.
        release: A number that grows with every release; a policy with a lock file refuses an
            older one.
        model_id: The model's id, such as ``org/name``; a policy can require it, so that another model
            of the same signer does not pass.
        allow_symlinks: Follow links to files, and record that. Links of the Hub's cache into its blobs
            are followed in any case.
        timestamp: Given the signature, returns an RFC 3161 response in DER; see
            `timestamps.request_timestamp`. A keyless signature is timestamped by its instance.
        force: Replace any regular file at the place of the signature or a sidecar. By default, only
            an empty file, a signature and a block tree are replaced. A symbolic link never is.
        workers: Files hashed at a time; by default, the number of cores.
        progress: Called with the bytes read so far, from the calling thread.

    Raises:
        VerificationError: A link or special file in the folder, or a file that changes meanwhile.
        DocumentError: A certificate that is not the signer's; a path that cannot be left out; an id
            that is empty or too long.
        FileExistsError: A file that is not replaced is in the way; nothing was written.
        OSError: A file cannot be read or written.
    """
    chain = _chain(certificates, signer)
    if timestamp is not None and isinstance(signer, KeylessSigner):
        raise DocumentError("a keyless signature is timestamped by its instance", field="timestamp")
    if model_id is not None and not 1 <= len(model_id) <= MAX_ID:
        raise DocumentError(f"must have 1 to {MAX_ID} characters", field="model_id")
    path, signature, ignored = _places(path, signature, ignore)
    found, linked = _list(path, ignored, trees=trees, allow_symlinks=allow_symlinks)
    base = path if is_folder(path) else parent(path)
    _check_replaceable(signature, "a signature", _is_signature, force=force)
    treed = {name for name, file in found if trees and _gets_tree(name, file)}
    for name in treed:
        _check_replaceable(join(base, f"{name}{SIDECAR}"), "a block tree", _is_sidecar, force=force)
    made = _hash(path, found, treed=treed, linked=linked, workers=workers, progress=progress)
    resources = [replace(each, release=release, model_id=model_id) for each in made.resources]
    subject = basename(path)
    payload = build_statement(subject, resources, ignored, allow_symlinks=made.linked)
    bundle, method, hint = _signed(payload, signer, chain, timestamp)
    for name, data in made.sidecars.items():
        _write(join(base, name), data)
    _write(signature, bundle)
    keys = key_files(path) if is_folder(path) else []
    for name in keys:
        key_file = join(path, name)
        digests = hash_files(
            [(os.path.basename(name), key_file)], tree=lambda _: False, follow=False
        )
        resource = _resource(digests[0], SINGLE_FILE, bound=digests[0].name)
        resource = replace(resource, release=release, model_id=model_id)
        statement = build_statement(digests[0].name, [resource], [], allow_symlinks=False)
        signed, _, _ = _signed(statement, signer, chain, timestamp)
        _write(continued(key_file, ".sig"), signed)
    return Signed(
        subject, made.root, tuple(made.files), signature, tuple(made.sidecars), method, hint,
        tuple(f"{name}.sig" for name in keys),
    )  # fmt: skip


def _signed(
    payload: bytes,
    signer: Signer | KeylessSigner,
    chain: list[bytes],
    timestamp: Callable[[bytes], bytes] | None,
) -> tuple[bytes, Method, str | None]:
    """(the signature file, the method, the key's hint)."""
    if isinstance(signer, KeylessSigner):
        bundle = signer.sign_bundle(payload)
        if parse_bundle(bundle).payload != payload:
            raise VerificationError("Sigstore signed another statement", reason="keyless")
        return bundle, "keyless", None
    hint = signer.public_key.hint
    signature = signer.sign(pae(payload))
    bundle = build_bundle(
        payload, signature, hint=None if chain else hint, certificates=chain,
        timestamps=[in_der(timestamp(signature))] if timestamp else (),
    )  # fmt: skip
    return bundle, "certificate" if chain else "key", hint


def _places(
    path: str | os.PathLike[str],
    signature: str | os.PathLike[str] | None,
    ignore: Iterable[str],
) -> tuple[str, str, list[str]]:
    """(the model, its signature, the paths left out)."""
    path = absolute(os.fspath(path))
    signature = absolute(os.fspath(signature or signature_path(path)))
    return path, signature, _ignored(path, signature, ignore) if is_folder(path) else []


def _write(path: str, data: bytes) -> None:
    if is_url(path):
        place = place_of(path)
        place.store.write(place.name, [data], size=len(data), durable=True)
    else:
        write_file(path, [data], durable=True, links="refuse")


def _hash(
    path: str,
    found: list[tuple[str, str]],
    *,
    treed: set[str],
    linked: bool,
    workers: int | None,
    progress: Callable[[int], object] | None,
) -> _Manifest:
    alone = not is_folder(path)
    files = hash_files(
        found, tree=treed.__contains__, follow=alone or linked, workers=workers, progress=progress
    )
    return _manifest(files, alone=alone, linked=linked)


def _manifest(files: list[FileDigest], *, alone: bool, linked: bool = False) -> _Manifest:
    sidecars = {f"{file.name}{SIDECAR}": file.tree.encode() for file in files if file.tree}
    if alone:
        resources = [_resource(files[0], SINGLE_FILE, bound=files[0].name)]
    else:
        files += [_digest(name, data) for name, data in sidecars.items()]
        resources = [_resource(file, file.name) for file in files]
    return _Manifest(files, resources, sidecars, linked)


def _check_replaceable(path: str, what: str, own: Callable[[str], bool], *, force: bool) -> None:
    """Find out before any file is hashed that writing to `path` loses nothing.

    Raises:
        FileExistsError: There is a symbolic link, or a file that is not `own`.
        OSError: No file can be written there.
    """
    if is_url(path):
        place_of(path).store.check_writable()
        if not force and exists(path) and not own(path):
            message = f"exists and is not {what}; move it away or use force"
            raise FileExistsError(errno.EEXIST, message, shown(path))
        return
    if os.path.islink(path):
        message = "is a symbolic link, through which no signature is written; remove it first"
        raise FileExistsError(errno.EEXIST, message, path)
    check_writable(path)
    if not force and os.path.exists(path) and os.path.getsize(path) and not own(path):
        message = f"exists and is not {what}; move it away or use force"
        raise FileExistsError(errno.EEXIST, message, path)


def _is_signature(path: str) -> bool:
    try:
        parse_bundle(read_document(path, limit=MAX_BUNDLE, elsewhere=True))
    except DocumentError:
        return False
    return True


def _is_sidecar(path: str) -> bool:
    if is_url(path):
        source = open_source(path)
        return source.read(0, min(len(TREE_MAGIC), source.size)) == TREE_MAGIC
    with open_regular(path) as (descriptor, _):
        return os.read(descriptor, len(TREE_MAGIC)) == TREE_MAGIC


def _chain(certificates: Sequence[bytes], signer: Signer | KeylessSigner) -> list[bytes]:
    """The certificates, once the first is known to be that of the signer's key."""
    if isinstance(signer, KeylessSigner):
        if certificates:
            raise DocumentError("a keyless signature gets its own", field="certificates")
        return []
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
    """The paths left out of a folder: those that the caller names, and the signature."""
    ignored = [name.rstrip("/") for name in ignore]
    for name in ignored:
        if problem := check_name(name):
            raise DocumentError(f"{quote(name)} {problem}", field="ignore", reason="ignore-paths")
    keys = key_files(root)
    ignored += [*keys, *(f"{name}.sig" for name in keys)]
    if is_url(root) or is_url(signature):
        below = shown(signature).startswith(f"{shown(root)}/")
        return [*ignored, shown(signature)[len(shown(root)) + 1 :]] if below else ignored
    inside = os.path.relpath(os.path.realpath(signature), os.path.realpath(root))
    inside = inside.replace(os.sep, "/")
    return ignored if inside.startswith("../") else [*ignored, inside]


def key_files(root: str) -> list[str]:
    """The names of the key files in a folder."""
    return [entry.name for entry in list_folder(root) if entry.name.endswith(KEY_FILE)]


def _list(
    path: str, ignored: list[str], *, trees: bool, allow_symlinks: bool
) -> tuple[list[tuple[str, str]], bool]:
    """(every file to hash as (name, path), whether one is a link).

    The sidecars that are about to be written are left out.
    """
    if not is_folder(path):
        return [(basename(path), path)], False
    entries = [e for e in list_folder(path) if not covers((*DEFAULT_IGNORED, *ignored), e.name)]
    names = {entry.name for entry in entries}
    treed = {name for name in names if trees and f"{name}{SIDECAR}" in names}
    sidecars = {f"{name}{SIDECAR}" for name in treed if _gets_tree(name, join(path, name))}
    found, linked = [], False
    for entry in entries:
        file = join(path, entry.name)
        if entry.kind == "link":
            linked = _check_link(entry.name, file, allow_symlinks=allow_symlinks) or linked
        elif entry.kind != "file":
            raise VerificationError(
                f"{quote(entry.name)} is a special file; a signature covers regular files only: "
                "replace it or leave it out", reason="not-a-file", path=path,
            )  # fmt: skip
        if entry.name not in sidecars:
            found.append((entry.name, file))
    if not found:
        raise VerificationError("there is no file to sign", reason="empty-resources", path=path)
    return found, linked


def _gets_tree(name: str, path: str) -> bool:
    """Whether a file gets a block tree: weights, or a large encrypted file."""
    if name.endswith(WEIGHTS):
        return True
    if is_url(path):
        source = open_source(path)
        return source.size >= _LARGE and is_encrypted(source.read(0, HEAD))
    with open_regular(path) as (descriptor, size):
        return size >= _LARGE and is_encrypted(os.read(descriptor, HEAD))


def _check_link(name: str, path: str, *, allow_symlinks: bool) -> bool:
    """True for a link that may be followed.

    Raises:
        VerificationError: ``symlink``.
    """
    if is_blob_link(path) or (allow_symlinks and os.path.isfile(path)):
        return True
    problem = "does not lead to a file" if allow_symlinks else "is not followed by default"
    raise VerificationError(
        f"{quote(name)} is a symbolic link, which {problem}; replace it, leave it out, or allow "
        "symbolic links to files", reason="symlink", path=path,
    )  # fmt: skip


def _digest(name: str, data: bytes) -> FileDigest:
    return FileDigest(name, len(data), hashlib.sha256(data).hexdigest())


def _resource(file: FileDigest, name: str, *, bound: str | None = None) -> Resource:
    tree = TreeReference(file.tree.root, f"{file.name}{SIDECAR}") if file.tree else None
    part = Part(0, None, bytes.fromhex(file.sha256))
    return Resource(name, "sha256", (part,), tree, bound)
