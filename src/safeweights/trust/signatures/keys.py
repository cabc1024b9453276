"""Elliptic curve keys: read, made, and used through a callable or a command where they stay elsewhere.

The curves are those of OMS (P-256, P-384, P-521), each with the hash of its size. A private key's
bytes, and its password, never appear in an error, a repr or a log.
"""

from __future__ import annotations

import base64
import binascii
import errno
import hashlib
import os
import subprocess
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Protocol

from ...errors import MissingDependencyError, quote
from ..errors import DocumentError, VerificationError
from ..files import create_document, read_document

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cryptography.hazmat.primitives.asymmetric.ec import (
        EllipticCurvePrivateKey,
        EllipticCurvePublicKey,
    )
    from cryptography.hazmat.primitives.hashes import HashAlgorithm

__all__ = [
    "CURVES", "CallableSigner", "FileSigner", "PublicKey", "Signer", "command_signer", "generate_key",
    "load_private_key", "load_public_key", "need_cryptography",
]  # fmt: skip

CURVES: Final = {"p256": "SECP256R1", "p384": "SECP384R1", "p521": "SECP521R1"}
_HASHES: Final = {"secp256r1": "SHA256", "secp384r1": "SHA384", "secp521r1": "SHA512"}
MAX_KEY_FILE: Final = 1 << 20


def need_cryptography(module: str) -> Any:
    """Import a module of `cryptography`; the error names the extra."""
    try:
        return import_module(f"cryptography.{module}")
    except ImportError as error:
        raise MissingDependencyError(
            "signatures need the `cryptography` package: pip install 'safeweights[trust]'"
        ) from error


@dataclass(frozen=True)
class PublicKey:
    """A public key.

    Attributes:
        pem: Its canonical PEM (SubjectPublicKeyInfo).
        hint: SHA-256 of `pem` in hexadecimal: how bundles name the key.
    """

    pem: bytes
    _key: EllipticCurvePublicKey = field(repr=False, compare=False)

    @property
    def hint(self) -> str:
        """SHA-256 of the PEM text, hexadecimal."""
        return hashlib.sha256(self.pem).hexdigest()

    def verify(self, signature: bytes, message: bytes, *, path: str | None = None) -> None:
        """Verify that `signature` (DER) is this key's over `message`.

        Raises:
            VerificationError: ``bad-signature``.
        """
        ec = need_cryptography("hazmat.primitives.asymmetric.ec")
        invalid = need_cryptography("exceptions").InvalidSignature
        try:
            self._key.verify(signature, message, ec.ECDSA(_hash_of(self._key)))
        except invalid:
            raise VerificationError(
                "the signature does not match the content and the key", reason="bad-signature",
                path=path,
            ) from None  # fmt: skip


class Signer(Protocol):
    """A key that signs: in a file, in a hardware module, or in a cloud service."""

    @property
    def public_key(self) -> PublicKey:
        """The key that verifies the signatures."""

    def sign(self, message: bytes) -> bytes:
        """The DER signature of `message`."""


@dataclass(frozen=True)
class FileSigner:
    """A private key held in this process."""

    public_key: PublicKey
    _key: EllipticCurvePrivateKey = field(repr=False, compare=False)

    def sign(self, message: bytes) -> bytes:
        """The DER signature of `message`."""
        ec = need_cryptography("hazmat.primitives.asymmetric.ec")
        return self._key.sign(message, ec.ECDSA(_hash_of(self._key)))


@dataclass(frozen=True)
class CallableSigner:
    """A private key that is held elsewhere: a hardware module (PKCS#11) or a key management service.

    Attributes:
        public_key: The public key.
        call: Returns the DER signature of its argument.
        prehashed: Pass the digest (SHA-256, 384 or 512, by curve) instead of the message; key
            management services usually sign digests.
    """

    public_key: PublicKey
    call: Callable[[bytes], bytes] = field(repr=False)
    prehashed: bool = False

    def sign(self, message: bytes) -> bytes:
        """The DER signature of `message`, checked before it is returned.

        Raises:
            VerificationError: ``bad-signature``: the callable signed with another key.
        """
        name = _hash_of(self.public_key._key).name  # noqa: SLF001 - same module
        given = hashlib.new(name, message).digest() if self.prehashed else message
        signature = self.call(given)
        self.public_key.verify(signature, message)
        return signature


def command_signer(
    command: Sequence[str], public_key: PublicKey, *, prehashed: bool = True
) -> CallableSigner:
    """A private key that a program uses: PKCS#11 tools, the command line of a cloud, an agent.

    The program is run once for each signature, without a shell. It gets the digest of the message
    (SHA-256, 384 or 512, by curve) on its standard input, in binary, and prints the signature: in DER,
    as both numbers one after the other (as PKCS#11 has it), or one of these in base64. What it prints
    on standard error is shown.

    Args:
        command: The program and its arguments.
        public_key: The public key; the signature must be verified by it.
        prehashed: Give the program the digest; if not, the message itself.
    """

    def call(data: bytes) -> bytes:
        done = subprocess.run(  # noqa: S603 - the caller's own command
            list(command), input=data, stdout=subprocess.PIPE, check=False
        )
        if done.returncode:
            raise ChildProcessError(
                errno.EIO, f"the key command ended with status {done.returncode}", command[0]
            )
        return _der_signature(done.stdout, public_key)

    return CallableSigner(public_key, call, prehashed)


def _der_signature(text: bytes, key: PublicKey) -> bytes:
    """The signature that a key command printed, in DER; the verification of it decides."""
    utils = need_cryptography("hazmat.primitives.asymmetric.utils")
    width = (key._key.key_size + 7) // 8  # noqa: SLF001 - same module
    found = [text]
    with suppress(binascii.Error, ValueError):
        found.append(base64.b64decode(b"".join(text.split()), validate=True))
    for data in found:
        if len(data) == 2 * width:
            numbers = (int.from_bytes(half, "big") for half in (data[:width], data[width:]))
            encoded: bytes = utils.encode_dss_signature(*numbers)
            return encoded
        with suppress(ValueError):
            utils.decode_dss_signature(data)
            return data
    raise VerificationError("the key command printed no signature", reason="bad-signature")


def _hash_of(key: EllipticCurvePublicKey | EllipticCurvePrivateKey) -> HashAlgorithm:
    hashes = need_cryptography("hazmat.primitives.hashes")
    algorithm: HashAlgorithm = getattr(hashes, _HASHES[key.curve.name])()
    return algorithm


def wrap_public_key(key: Any, *, path: str | None = None) -> PublicKey:
    """Make a `PublicKey` of a key object of `cryptography`; the curve must be one of OMS.

    Raises:
        DocumentError: ``unsupported-key``.
    """
    ec = need_cryptography("hazmat.primitives.asymmetric.ec")
    coding = need_cryptography("hazmat.primitives.serialization")
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _HASHES:
        kind = key.curve.name if hasattr(key, "curve") else type(key).__name__.strip("_")
        raise DocumentError(
            f"a key of kind {quote(kind)} cannot be used; model signing takes EC keys on P-256, "
            "P-384 or P-521", reason="unsupported-key", path=path,
        )  # fmt: skip
    pem = key.public_bytes(coding.Encoding.PEM, coding.PublicFormat.SubjectPublicKeyInfo)
    return PublicKey(pem, key)


def load_public_key(
    source: str | os.PathLike[str] | bytes, *, path: str | None = None
) -> PublicKey:
    """Read a public key from a PEM file (str: its path) or from PEM or DER bytes.

    Raises:
        DocumentError: Not a public key, or of a kind that OMS does not take.
    """
    coding = need_cryptography("hazmat.primitives.serialization")
    if not isinstance(source, bytes):
        path = os.fspath(source)
        source = read_document(path, limit=MAX_KEY_FILE)
    if b"PRIVATE KEY" in source:
        raise DocumentError(
            "this is a private key; give the public one", reason="private-key", path=path
        )
    load = coding.load_pem_public_key if b"-----" in source else coding.load_der_public_key
    try:
        key = load(source)
    except Exception:  # noqa: BLE001 - what it raises is not documented, and may quote the input
        raise DocumentError("not a public key in PEM or DER", path=path) from None
    return wrap_public_key(key, path=path)


def load_private_key(
    source: str | os.PathLike[str] | bytes,
    password: bytes | str | None = None,
    *,
    path: str | None = None,
) -> FileSigner:
    """Read a private key from a PEM file (str: its path) or from PEM bytes.

    Raises:
        DocumentError: Not a private key, a kind that OMS does not take, or the password is missing,
            not needed, or wrong.
    """
    coding = need_cryptography("hazmat.primitives.serialization")
    if not isinstance(source, bytes):
        path = os.fspath(source)
        source = read_document(path, limit=MAX_KEY_FILE)
    secret = password.encode() if isinstance(password, str) else password
    try:
        key = coding.load_pem_private_key(source, secret)
    except TypeError:
        problem = "is encrypted and needs a password" if secret is None else "is not encrypted"
        raise DocumentError(f"the private key {problem}", reason="password", path=path) from None
    except Exception:  # noqa: BLE001 - the message must not carry anything of the key
        problem = "not a private key in PEM" + (", or the password is wrong" if secret else "")
        raise DocumentError(problem, path=path) from None
    return FileSigner(wrap_public_key(key.public_key(), path=path), key)


def generate_key(
    path: str | os.PathLike[str], *, curve: str = "p384", password: bytes | str | None = None
) -> PublicKey:
    """Make a key pair: `path` (mode 0600, encrypted where a password is given) and `path`.pub.

    Raises:
        FileExistsError: One of the files exists; no key is ever overwritten.
        ValueError: An unknown curve or an empty password.
    """
    ec = need_cryptography("hazmat.primitives.asymmetric.ec")
    coding = need_cryptography("hazmat.primitives.serialization")
    path = os.fspath(path)
    if curve not in CURVES:
        msg = f"unknown curve {quote(curve)}; known are {', '.join(CURVES)}"
        raise ValueError(msg)
    if password is not None and not password:
        raise ValueError("an empty password does not encrypt; leave it out to store the key plain")
    if os.path.lexists(f"{path}.pub"):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), f"{path}.pub")
    secret = password.encode() if isinstance(password, str) else password
    key = ec.generate_private_key(getattr(ec, CURVES[curve])())
    protection = coding.BestAvailableEncryption(secret) if secret else coding.NoEncryption()
    pem = key.private_bytes(coding.Encoding.PEM, coding.PrivateFormat.PKCS8, protection)
    public = wrap_public_key(key.public_key())
    create_document(path, pem, mode=0o600)
    create_document(f"{path}.pub", public.pem)
    return public
