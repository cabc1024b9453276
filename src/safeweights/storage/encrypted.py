"""The payload of encrypted files: bytes in chunks of 64 KiB, each encrypted and authenticated by itself.

The format is the payload of age v1 (c2sp.org/age, "Payload"): a nonce of 16 bytes, then ChaCha20-Poly1305
chunks, each with its number and whether it is the last in its nonce (STREAM). So any chunk can be read
alone, and chunks that are swapped, dropped or added are detected.

Rules:
- The last chunk is decrypted when a file is opened: only then the end of the file, and so its size, is
  known to be the writer's.
- Ciphertext is copied out of its file before it is decrypted, because a cipher reads it twice: once to
  authenticate and once to decrypt. A file that changes meanwhile cannot come between.
- Plaintext goes straight into the memory that the caller gets. That memory is not swapped to a disk and not
  part of a core dump, where the system allows it. Nothing here writes plaintext to a file.
- No key is part of an error or a repr.

Knows nothing of recipients and identities: a file key comes from `safeweights.trust.access`. Needs the
package `cryptography`; no cipher is implemented here.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ..errors import FormatError, MissingDependencyError
from .blocks import BlockSource
from .memory import allocate, allocate_secret
from .parallel import Background, in_parallel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .source import Source

__all__ = [
    "CHUNK_SIZE", "FILE_KEY", "NONCE", "DecryptingSource", "derive_key", "encrypted_size", "encrypting",
    "need_cryptography",
]  # fmt: skip

CHUNK_SIZE: Final = 1 << 16
"""Plaintext bytes of a chunk; the last one may be shorter."""

NONCE: Final = 16
"""Bytes between the header of a file and its first chunk."""

FILE_KEY: Final = 16
"""Bytes of a file key."""

_TAG: Final = 16
_SEALED: Final = CHUNK_SIZE + _TAG
_RUN: Final = 4 * CHUNK_SIZE
"""Plaintext that a thread handles between two reads: its ciphertext stays in the processor's cache."""

_SHARE: Final = 1 << 20
"""Plaintext that a thread encrypts at a time."""

_PIECE: Final = 1 << 24
"""Plaintext that is encrypted together and written at once; three pieces are in memory at a time."""


def need_cryptography(module: str) -> Any:
    """Import a module of `cryptography`; the error names the extra."""
    try:
        return import_module(f"cryptography.{module}")
    except ImportError as error:
        raise MissingDependencyError(
            "encryption needs the `cryptography` package: pip install 'safeweights[encryption]'"
        ) from error


def derive_key(secret: bytes, salt: bytes, info: bytes) -> bytes:
    """HKDF-SHA-256 (RFC 5869) with 32 bytes of output, as the specification of age uses it everywhere."""
    hashes = need_cryptography("hazmat.primitives.hashes")
    kdf = need_cryptography("hazmat.primitives.kdf.hkdf")
    key: bytes = kdf.HKDF(hashes.SHA256(), 32, salt, info).derive(secret)
    return key


class DecryptingSource(BlockSource):
    """The plaintext of a payload, decrypted chunk by chunk as it is read.

    Cost of a read: the chunks that it touches, each read and decrypted once, in several threads where there
    are many. Memory: 260 KiB for each thread, a few chunks, and what is handed out.

    Args:
        source: The encrypted file.
        begin: Offset of the payload: the size of the header.
        file_key: What the header wraps; 16 bytes.

    Attributes:
        opened_by: The recipient whose identity gave the file key, for logs; set by who unwrapped it.

    Raises:
        FormatError: ``age-payload``: the payload is cut off, or its last chunk is not authentic; the same
            from a read, for any other chunk.
        MissingDependencyError: `cryptography` is not installed.

    >>> from safeweights.storage import BytesSource
    >>> key = bytes(16)
    >>> sealed = b"".join(encrypting(BytesSource(b"weights"), key))
    >>> DecryptingSource(BytesSource(sealed), 0, key).read(0, 7)
    b'weights'
    """

    opened_by: str | None = None

    def __init__(self, source: Source, begin: int, file_key: bytes) -> None:
        chunks = _count_chunks(source, begin)
        nonce = source.read(begin, NONCE)
        key = derive_key(file_key, nonce, b"payload")
        first = begin + NONCE
        size = source.size - first - _TAG * chunks

        end = memoryview(bytearray(size - (chunks - 1) * CHUNK_SIZE))

        def fetch(block: int, target: memoryview) -> None:
            if block == chunks - 1:  # decrypted already, below
                target[:] = end
            else:
                decrypt(block, target)

        def decrypt(block: int, target: memoryview) -> None:
            cipher = _Cipher.of(key)
            scratch = memoryview(bytearray(min(_RUN // CHUNK_SIZE * _SEALED, _sealed(len(target)))))
            for low in range(0, len(target), _RUN):
                part = target[low : low + _RUN]
                number = block + low // CHUNK_SIZE
                sealed = scratch[: _sealed(len(part))]
                source.read_into(first + number * _SEALED, sealed)
                for index, at in enumerate(range(0, len(sealed), _SEALED), number):
                    plain = part[(index - number) * CHUNK_SIZE :][:CHUNK_SIZE]
                    last = index == chunks - 1
                    if not cipher.open(index, last=last, sealed=sealed[at:][:_SEALED], into=plain):
                        raise _not_authentic(source, first + index * _SEALED, index, last=last)

        super().__init__(source.name, size, CHUNK_SIZE, fetch)
        self.version, self.threads = source.version, source.threads
        if end:
            decrypt(chunks - 1, end)
        else:
            sealed = source.read(first, _TAG)
            if not _Cipher.of(key).open(0, last=True, sealed=memoryview(sealed), into=end):
                raise _not_authentic(source, first, 0, last=True)

    def _allocate(self, nbytes: int) -> memoryview:
        return allocate_secret(nbytes)


def _count_chunks(source: Source, begin: int) -> int:
    """How many chunks the payload has.

    Raises:
        FormatError: No payload has this size.
    """
    length = source.size - begin - NONCE
    chunks, rest = divmod(length, _SEALED)
    chunks += rest > 0
    if length < _TAG or 0 < rest < _TAG:
        problem = "the encrypted file is cut off: it ends within a chunk"
    elif rest == _TAG and chunks > 1:
        problem = "the last chunk is empty, which only that of an empty file may be"
    else:
        return chunks
    raise FormatError(problem, rule="age-payload", path=source.name, offset=source.size)


def _not_authentic(source: Source, offset: int, index: int, *, last: bool) -> FormatError:
    why = (
        "the file was cut off or changed"
        if last
        else "it was changed, moved, or the disk is faulty"
    )
    return FormatError(
        f"chunk {index} of the encrypted file is not authentic{' as its last' if last else ''}: {why}",
        rule="age-payload", path=source.name, offset=offset,
    )  # fmt: skip


def _sealed(nbytes: int) -> int:
    """Ciphertext bytes of `nbytes` in whole chunks, and of a shorter one at the end."""
    return nbytes + _TAG * -(-nbytes // CHUNK_SIZE)


class _Cipher(NamedTuple):
    """ChaCha20-Poly1305 under one key, from memory to memory."""

    aead: Any
    failed: type[Exception]

    @classmethod
    def of(cls, key: bytes) -> _Cipher:
        aead = need_cryptography("hazmat.primitives.ciphers.aead")
        return cls(aead.ChaCha20Poly1305(key), need_cryptography("exceptions").InvalidTag)

    def open(self, index: int, *, last: bool, sealed: memoryview, into: memoryview) -> bool:
        """Decrypt a chunk; whether it is authentic. If it is not, `into` holds bytes to be cleared."""
        nonce = _nonce(index, last=last)
        try:
            if hasattr(self.aead, "decrypt_into"):  # cryptography 47
                self.aead.decrypt_into(nonce, sealed, None, into)
            else:
                into[:] = self.aead.decrypt(nonce, sealed, None)
        except self.failed:
            return False
        return True

    def seal(self, index: int, *, last: bool, plain: memoryview, into: memoryview) -> None:
        """Encrypt a chunk."""
        nonce = _nonce(index, last=last)
        if hasattr(self.aead, "encrypt_into"):
            self.aead.encrypt_into(nonce, plain, None, into)
        else:
            into[:] = self.aead.encrypt(nonce, plain, None)


def _nonce(index: int, *, last: bool) -> bytes:
    return index.to_bytes(11, "big") + (b"\1" if last else b"\0")


def encrypted_size(nbytes: int) -> int:
    """Bytes of the payload of a file that has `nbytes`.

    >>> encrypted_size(0), encrypted_size(65536), encrypted_size(65537)
    (32, 65568, 65585)
    """
    return NONCE + (_sealed(nbytes) or _TAG)


def encrypting(
    source: Source, file_key: bytes, progress: Callable[[int], object] | None = None
) -> Iterator[memoryview | bytes]:
    """The payload of an encrypted file, piece by piece, for a sink that writes what an iterator gives.

    A piece is read and encrypted, by several threads, while the one before is written. Memory: at most
    48 MiB, whatever the size of the file.

    Args:
        source: The plaintext. It is read once.
        file_key: 16 random bytes that encrypt this file only.
        progress: Called with the number of plaintext bytes encrypted so far.

    Raises:
        TruncatedError: The source is shorter than when it was opened.
    """
    nonce = os.urandom(NONCE)
    key = derive_key(file_key, nonce, b"payload")
    yield nonce
    if not source.size:
        empty = memoryview(bytearray(_TAG))
        _Cipher.of(key).seal(0, last=True, plain=memoryview(b""), into=empty)
        yield empty
        return
    with Background(name="safeweights-encrypt") as beside:
        job = beside.submit(_encrypt_piece, source, key, 0)
        for begin in range(0, source.size, _PIECE):
            piece = job.result()
            end = min(begin + _PIECE, source.size)
            if end < source.size:
                job = beside.submit(_encrypt_piece, source, key, end)
            yield piece
            del piece
            if progress is not None:
                progress(end)


def _encrypt_piece(source: Source, key: bytes, begin: int) -> memoryview:
    """The ciphertext of the piece of `source` that begins at `begin`."""
    length = min(_PIECE, source.size - begin)
    target = allocate(_sealed(length))

    def work(low: int, high: int) -> None:
        cipher = _Cipher.of(key)
        scratch = memoryview(bytearray(min(_RUN, high - low)))
        for run in range(low, high, _RUN):
            plain = scratch[: min(_RUN, high - run)]
            source.read_into(begin + run, plain)
            for at in range(run, run + len(plain), CHUNK_SIZE):
                index = (begin + at) // CHUNK_SIZE
                chunk = plain[at - run :][:CHUNK_SIZE]
                into = target[at // CHUNK_SIZE * _SEALED :][: len(chunk) + _TAG]
                last = begin + at + len(chunk) == source.size
                cipher.seal(index, last=last, plain=chunk, into=into)

    in_parallel(work, length, chunk=_SHARE)
    return target
