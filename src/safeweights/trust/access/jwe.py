"""Files that KServe's tools encrypted: JSON Web Encryption (RFC 7516), compact, with A256GCM. Only read.

The content key is given directly (``dir``), wrapped with another key (``A256KW``, which KServe's own tools
use) or with an RSA key (``RSA-OAEP``, ``RSA-OAEP-256``). A JWE has one tag for all of it: no part is
authentic before the end was read. So the file is decrypted as a whole, into private memory, and handed out
only then.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ...errors import FormatError, quote
from ...storage import BytesSource
from ...storage.encrypted import need_cryptography
from ...storage.memory import allocate_secret
from ..documents import Field, parse_json
from ..errors import DocumentError
from .header import Stanza, encode64
from .hiding import Secret

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ...storage import Source

__all__ = ["JweIdentity", "describe", "is_jwe", "unwrap"]

SUFFIX: Final = ".jwe"
"""How the names of such files end, where they are not those of the plaintext."""

_MAX_HEADER: Final = 1 << 16
_TAIL: Final = 64
_PIECE: Final = 1 << 20  # a multiple of 4
_KEY: Final = 32
_NONCE: Final = 12
_TAG: Final = 16
_URL_SAFE: Final = bytes.maketrans(b"-_+/", b"+/**")
_ALGORITHMS: Final = ("dir", "A256KW", "RSA-OAEP", "RSA-OAEP-256")


class _Compact(NamedTuple):
    """A compact JWE without its ciphertext.

    Attributes:
        protected: The header as it is written, which the tag covers.
        algorithm: How the content key is wrapped.
        key_id: Which key wraps it; may be empty.
        wrapped: The wrapped content key.
        nonce: Of AES-GCM.
        begin: Offset of the ciphertext.
        end: Where it ends.
        tag: Of AES-GCM.
    """

    protected: bytes
    algorithm: str
    key_id: str
    wrapped: bytes
    nonce: bytes
    begin: int
    end: int
    tag: bytes


class JweIdentity:
    """A key that opens JWE files: 32 bytes for ``dir`` and ``A256KW``, or an RSA private key.

    Args:
        key: The bytes, or a private key object of `cryptography`.
    """

    label = "jwe"

    def __init__(self, key: Any) -> None:
        self._key = Secret(key) if isinstance(key, bytes) else key

    def __repr__(self) -> str:
        return "JweIdentity(...)"

    @classmethod
    def parse(cls, data: bytes, *, path: str | None = None) -> JweIdentity | None:
        """The identity in a file: a symmetric JSON Web Key (RFC 7517), its ``k`` alone, or 32 raw bytes.

        Returns:
            None if the file is nothing of this kind.

        Raises:
            DocumentError: A JSON Web Key of another kind. Nothing of it is quoted.
        """
        text = data.strip()
        if text.startswith(b"{"):
            try:
                found = json.loads(text)
                encoded = found["k"] if found["kty"] == "oct" else None
            except (ValueError, KeyError, TypeError, RecursionError):
                encoded = None
            key = _decode(encoded.encode()) if isinstance(encoded, str) else None
            if key is None or len(key) != _KEY:
                raise DocumentError(
                    f"a JSON Web Key must be symmetric (kty oct) and have {_KEY} bytes", path=path
                )
            return cls(key)
        key = _decode(text)
        if key is None or len(key) != _KEY:
            key = data if len(data) == _KEY else None
        return None if key is None else cls(key)

    def unwrap(self, stanzas: Any, path: str) -> None:  # noqa: ARG002
        """No age file is for such a key."""
        return

    def content_key(self, algorithm: str, wrapped: bytes) -> bytes | None:
        """The content key; None if this key does not unwrap it."""
        if isinstance(self._key, bytes):
            if algorithm == "dir":
                return None if wrapped else self._key
            return _unwrap_aes(self._key, wrapped) if algorithm == "A256KW" else None
        return unwrap_rsa(self._key, algorithm, wrapped)


def is_jwe(head: bytes) -> bool:
    """Whether a file that begins with `head` is a compact JWE: base64url of a JSON object, then a dot.

    >>> is_jwe(b"eyJhbGciOiJkaXIifQ..")
    True
    """
    return head.startswith(b"eyJ") and not set(head.split(b".")[0]) - _URL_LETTERS


_URL_LETTERS: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


def describe(source: Source) -> str:
    """What kind of key opens a file, for messages.

    Raises:
        FormatError: It is malformed.
    """
    return f"JWE {_parse(source).algorithm}"


def unwrap(source: Source, identities: Iterable[Any]) -> tuple[Source, str] | None:
    """The plaintext of a JWE file in private memory, and who opened it; None if no identity does.

    Cost: the whole file is read and decrypted. Memory: the size of the plaintext.

    Raises:
        FormatError: It is malformed or was changed.
    """
    compact = _parse(source)
    for identity in identities:
        found = _content_key(identity, compact)
        if found is not None:
            return _decrypt(source, compact, found[0]), found[1]
    return None


def _content_key(identity: Any, compact: _Compact) -> tuple[bytes, str] | None:
    if hasattr(identity, "content_key"):
        key = identity.content_key(compact.algorithm, compact.wrapped)
        return None if key is None else (key, f"jwe {compact.algorithm}")
    if hasattr(identity, "call"):
        stanza = Stanza("jwe", (compact.algorithm, compact.key_id), compact.wrapped)
        key = identity.call(stanza)
        if key is not None and len(key) == _KEY:
            return key, f"jwe {compact.algorithm} {compact.key_id}".strip()
    return None


def _parse(source: Source) -> _Compact:
    head = source.read(0, min(_MAX_HEADER, source.size))
    parts = head.split(b".", 3)
    tail = source.read(max(0, source.size - _TAIL), min(_TAIL, source.size)).rstrip(b"\r\n \t")
    dot = tail.rfind(b".")
    if len(parts) < 4 or dot < 0:
        raise _malformed("it does not have five parts", source)
    begin = sum(len(part) + 1 for part in parts[:3])
    end = max(0, source.size - _TAIL) + dot
    header = _decode(parts[0])
    wrapped, nonce, tag = (_decode(part) for part in (parts[1], parts[2], tail[dot + 1 :]))
    if header is None or wrapped is None or nonce is None or tag is None or end < begin:
        raise _malformed("a part of it is not base64url", source)
    if len(nonce) != _NONCE or len(tag) != _TAG:
        raise _malformed(f"the nonce must have {_NONCE} bytes, the tag {_TAG}", source)
    try:
        fields = parse_json(header, path=source.name)
        algorithm, key_id = _algorithm(fields)
    except DocumentError as error:
        raise _malformed(f"its header: {error.message}", source) from None
    return _Compact(parts[0], algorithm, key_id, wrapped, nonce, begin, end, tag)


def _algorithm(header: Field) -> tuple[str, str]:
    for name in ("zip", "crit"):
        if header.get(name) is not None:
            raise header.error(f"{quote(name)} is not supported")
    if (encryption := header.member("enc").text()) != "A256GCM":
        raise header.error(f"the cipher must be A256GCM, not {quote(encryption, 40)}")
    algorithm = header.member("alg").text()
    if algorithm not in _ALGORITHMS:
        known = ", ".join(_ALGORITHMS)
        raise header.error(
            f"keys wrapped with {quote(algorithm, 40)} are not supported; {known} are"
        )
    key_id = header.get("kid")
    return algorithm, key_id.text(limit=200) if key_id else ""


def _decrypt(source: Source, compact: _Compact, key: bytes) -> Source:
    ciphers = need_cryptography("hazmat.primitives.ciphers")
    cipher = ciphers.Cipher(
        ciphers.algorithms.AES(key), ciphers.modes.GCM(compact.nonce, compact.tag)
    ).decryptor()
    cipher.authenticate_additional_data(compact.protected)
    length = compact.end - compact.begin
    if length % 4 == 1:
        raise _malformed("its ciphertext is not base64url", source)
    memory = allocate_secret(length * 3 // 4)
    done = 0
    try:
        for at in range(0, length, _PIECE):
            text = source.read(compact.begin + at, min(_PIECE, length - at))
            sealed = _decode(text)
            if sealed is None:
                raise _malformed("its ciphertext is not base64url", source)
            memory[done : done + len(sealed)] = cipher.update(sealed)
            done += len(sealed)
        cipher.finalize()
    except need_cryptography("exceptions").InvalidTag:
        memory[:] = bytes(len(memory))
        raise FormatError(
            "the encrypted file (JWE) was changed or cut off: its tag does not match",
            rule="jwe", path=source.name,
        ) from None  # fmt: skip
    found = BytesSource(memory, source.name)
    found.version = source.version
    return found


def _decode(text: bytes) -> bytes | None:
    """The data in base64url without padding; None unless it is the canonical encoding of that data."""
    plain = text.translate(_URL_SAFE)
    try:
        data = base64.b64decode(plain + b"=" * (-len(plain) % 4), validate=True)
    except binascii.Error:
        return None
    # Only the last letter can have bits that are not part of the data.
    tail = data[len(data) // 3 * 3 :]
    canonical = plain[len(data) // 3 * 4 :] == encode64(tail).encode()
    return data if canonical else None


def _unwrap_aes(key: bytes, wrapped: bytes) -> bytes | None:
    module = need_cryptography("hazmat.primitives.keywrap")
    try:
        found = Secret(module.aes_key_unwrap(key, wrapped))
    except (module.InvalidUnwrap, ValueError):
        return None
    return found if len(found) == _KEY else None


def unwrap_rsa(key: Any, algorithm: str, wrapped: bytes) -> bytes | None:
    """A content key that was wrapped for an RSA key with OAEP; None if it was not."""
    hashes = need_cryptography("hazmat.primitives.hashes")
    padding = need_cryptography("hazmat.primitives.asymmetric.padding")
    kinds = {"RSA-OAEP": hashes.SHA1, "RSA-OAEP-256": hashes.SHA256}  # RFC 7518, section 4.3
    if algorithm not in kinds:
        return None
    digest = kinds[algorithm]()
    try:
        found = Secret(key.decrypt(wrapped, padding.OAEP(padding.MGF1(digest), digest, None)))
    except ValueError:
        return None
    return found if len(found) == _KEY else None


def _malformed(problem: str, source: Source) -> FormatError:
    return FormatError(
        f"the encrypted file (JWE) is malformed: {problem}", rule="jwe", path=source.name
    )
