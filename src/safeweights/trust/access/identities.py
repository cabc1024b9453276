"""Identities as people keep them: in files as age-keygen writes them, as SSH keys, or made here.

A file has one identity a line (``AGE-SECRET-KEY-1...``, ``AGE-SECRET-KEY-PQ-1...``); empty lines and those
that begin with ``#`` are skipped. Or it is an SSH private key, or an age file that a passphrase opens and
that holds such lines; or a key of JWE files. Nothing of a key is quoted in an error.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Final

from ...errors import quote
from ...storage import BytesSource
from ...storage.encrypted import FILE_KEY, DecryptingSource
from ..errors import AccessError, DocumentError
from ..files import create_document, read_document
from . import bech32, hybrid, x25519
from .armor import dearmored, is_armored
from .header import MAGIC, parse_header
from .hiding import Secret, without_frames
from .hybrid import HybridIdentity
from .jwe import JweIdentity
from .passwords import Passphrase
from .ssh import load_ssh_identity
from .wrapping import malformed
from .x25519 import X25519Identity

if TYPE_CHECKING:
    from .header import Stanza
    from .wrapping import Identity

__all__ = [
    "CallableIdentity", "NativeIdentity", "as_identities", "generate_identity", "parse_identities",
    "read_identities", "write_identity",
]  # fmt: skip

NativeIdentity = X25519Identity | HybridIdentity
_MAX_FILE: Final = 1 << 20
_NATIVE: Final[dict[str, Callable[[bytes], Identity]]] = {
    x25519.IDENTITY_PREFIX: X25519Identity,
    hybrid.IDENTITY_PREFIX: HybridIdentity,
}
_NATIVE_BEGIN: Final = "AGE-SECRET-KEY-"
_PLUGIN_BEGIN: Final = "AGE-PLUGIN-"


class CallableIdentity:
    """An identity whose file keys another program unwraps: a key service, an HSM, a key broker.

    Args:
        unwrap: Given a `Stanza`, returns the file key of 16 bytes, or None if the stanza is not for it.
            Of a JWE file it gets ``Stanza("jwe", (algorithm, key id), wrapped key)``, and returns 32 bytes.
    """

    def __init__(self, unwrap: Callable[[Stanza], bytes | None]) -> None:
        self._unwrap = unwrap

    def call(self, stanza: Stanza) -> bytes | None:
        """What the function returns.

        Raises:
            TypeError: It is neither bytes nor None.
        """
        key = self._unwrap(stanza)
        if key is None or isinstance(key, bytes | bytearray | memoryview):
            return key if key is None else Secret(key)
        raise TypeError(
            f"{self!r} must return the bytes of a file key, or None, not {type(key).__name__}"
        )

    def __repr__(self) -> str:
        return f"CallableIdentity({getattr(self._unwrap, '__qualname__', type(self._unwrap).__name__)})"

    def unwrap(self, stanzas: Sequence[Stanza], path: str) -> tuple[bytes, str] | None:
        """See `wrapping.Identity`. What the function raises passes unchanged."""
        for stanza in stanzas:
            key = self.call(stanza)
            if key is None:
                continue
            if len(key) != FILE_KEY:
                raise malformed(stanza, f"its file key does not have {FILE_KEY} bytes", path)
            return key, " ".join((stanza.type, *stanza.arguments[:1]))[:200]
        return None


def generate_identity(*, post_quantum: bool = False) -> NativeIdentity:
    """A new identity, of 32 random bytes."""
    return (HybridIdentity if post_quantum else X25519Identity)(os.urandom(32))


def write_identity(
    path: str | os.PathLike[str], identity: NativeIdentity, *, recipient: bool = False
) -> None:
    """Write an identity to a new file, with mode 0600, as ``age-keygen`` does.

    Args:
        path: The file.
        identity: What to write.
        recipient: Also write the recipient, a line that ``encrypt -R`` and ``age -R`` read, to `path`.pub.

    Raises:
        FileExistsError: There is something at one of the paths; no key is ever overwritten.
        OSError: It cannot be written.
    """
    path, label = os.fspath(path), identity.recipient.label
    if recipient and os.path.lexists(f"{path}.pub"):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), f"{path}.pub")
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    lines = [f"# created: {now}", f"# public key: {label}", identity.text(), ""]
    create_document(path, "\n".join(lines).encode(), mode=0o600)
    if recipient:
        create_document(f"{path}.pub", f"{label}\n".encode())


@without_frames
def parse_identities(data: bytes, *, path: str | None = None) -> list[Identity]:
    """The identities in text, one a line.

    Raises:
        DocumentError: A line is none, or there is none. The message names the line and does not quote it.
    """
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise DocumentError("not a file of identities", path=path) from None
    found: list[Identity] = []
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if text and not text.startswith("#"):
            found.append(_parse_line(text, {"path": path, "field": f"line {number}"}))
    if not found:
        raise DocumentError("there is no identity in it", path=path)
    return found


def _parse_line(text: str, where: dict[str, Any]) -> Identity:
    upper = text.upper()
    if text.startswith(("age1", "ssh-")):
        raise DocumentError(
            "this is a recipient, which can only encrypt; an identity is its private half "
            "(AGE-SECRET-KEY-1..., or the SSH key without .pub)", reason="public-key", **where,
        )  # fmt: skip
    if upper.startswith(_PLUGIN_BEGIN):
        plugin = upper.removeprefix(_PLUGIN_BEGIN).rpartition("-1")[0].lower()
        name = f"age-plugin-{quote(plugin, 40)[1:-1]}" if plugin else "of age"
        raise DocumentError(
            f"this identity is one of the plugin {name}, and plugins are not run here: open the model's "
            "key file with `age -d -i THIS model.key.age > key` and give that file; in Python a function "
            "from a stanza to a file key can ask the hardware", reason="plugin", **where,
        )  # fmt: skip
    kind: Callable[[bytes], Identity] | None = None
    secret = b""
    if upper.startswith(_NATIVE_BEGIN) and (found := bech32.decode(text)) is not None:
        secret = found[1]
        kind = _NATIVE.get(found[0]) if len(secret) == 32 else None
    if kind is None:
        damaged = upper.startswith(_NATIVE_BEGIN)
        problem = "a damaged identity: letters are missing or changed" if damaged else "no identity"
        raise DocumentError(f"this is {problem}", **where)
    return kind(secret)


@without_frames
def read_identities(
    path: str | os.PathLike[str], passphrase: Callable[[], str] | None = None
) -> list[Identity]:
    """The identities in a file; see this module.

    Args:
        path: The file.
        passphrase: Called if the file, or the SSH key in it, is encrypted.

    Raises:
        DocumentError: It holds none.
        AccessError: It is encrypted, and the passphrase is missing or wrong.
        OSError: It cannot be read.
    """
    path = os.fspath(path)
    data = _read(path)
    if is_armored(data):
        data = dearmored(data, path)
    if data.startswith(MAGIC):
        data = _decrypt(data, passphrase, path)
    if data.lstrip().startswith(b"-----BEGIN "):
        return [load_ssh_identity(data, passphrase, path=path)]
    if (key := JweIdentity.parse(data, path=path)) is not None:
        return [key]
    return parse_identities(data, path=path)


def _read(path: str) -> bytes:
    """A file, or what a program writes to a pipe: ``<(pass show key)``."""
    if not (os.path.exists(path) and stat.S_ISFIFO(os.stat(path).st_mode)):
        return read_document(path, limit=_MAX_FILE)
    with open(path, "rb") as pipe:
        data = pipe.read(_MAX_FILE + 1)
    if len(data) > _MAX_FILE:
        raise DocumentError(f"longer than {_MAX_FILE} bytes", path=path)
    return data


def _decrypt(data: bytes, passphrase: Callable[[], str] | None, path: str) -> bytes:
    """The contents of a file of identities that is itself encrypted with a passphrase."""
    if passphrase is None:
        raise AccessError(
            "the file of identities is encrypted and needs a passphrase",
            reason="passphrase",
            path=path,
        )
    header = parse_header(data, path)
    found = Passphrase(passphrase).unwrap(header.stanzas, path)
    if found is None:
        raise AccessError(
            "the passphrase of the file of identities is wrong", reason="passphrase", path=path
        )
    header.check(found[0])
    plain = DecryptingSource(BytesSource(data, path), header.size, found[0])
    return plain.read(0, plain.size)


def as_identities(given: Any, passphrase: Callable[[], str] | None = None) -> list[Identity]:
    """Identities from what a caller gives as ``identity=``.

    Args:
        given: The path of a file, as text or as a path object (``~`` is the home folder); the text of an
            identity; an object with ``unwrap``, such as a `Passphrase`; a function from a `Stanza` to a
            file key; an iterable of these.
        passphrase: See `read_identities`.

    Raises:
        TypeError: Something else.
        DocumentError, AccessError, OSError: See `read_identities`.
    """
    if isinstance(given, str) and given.strip().upper().startswith(_NATIVE_BEGIN):
        return parse_identities(given.encode())  # never taken for a path, which errors quote
    if isinstance(given, str | os.PathLike):
        return read_identities(os.path.expanduser(given), passphrase)
    if hasattr(given, "unwrap"):
        return [given]
    if callable(given):
        return [CallableIdentity(given)]
    if isinstance(given, Iterable) and not isinstance(given, bytes | bytearray | memoryview):
        return [identity for each in given for identity in as_identities(each, passphrase)]
    raise TypeError(
        "identity= takes the path of a file of identities or of an SSH key, a Passphrase, a function from "
        f"a stanza to a file key, or several of these, not {type(given).__name__}"
    )
