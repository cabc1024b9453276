"""The payload of encrypted files: bytes in chunks of 64 KiB, each encrypted and authenticated by itself.

The format is the payload of age v1 (c2sp.org/age, "Payload"): a nonce of 16 bytes, then ChaCha20-Poly1305
chunks, each with its number and whether it is the last in its nonce (STREAM). So any chunk can be read
alone, and chunks that are swapped, dropped or added are detected.

Rules:
- The last chunk is decrypted when a file is opened: only then the end of the file, and so its size, is
  known to be the writer's.
- A cipher reads its input twice: once to authenticate and once to decrypt. So that no change of the file
  comes between, ciphertext is copied out of it first, or it is used in its place while the system keeps
  the file as it is (`leases`); if the system then says that it did not, it is decrypted again, from a copy.
- Plaintext goes straight into the memory that the caller gets. That memory is not swapped to a disk and not
  part of a core dump, where the system allows it. Nothing here writes plaintext to a file.
- No key is part of an error or a repr.

Knows nothing of recipients and identities: a file key comes from `safeweights.trust.access`. Needs the
package `cryptography`; no cipher is implemented here.
"""

from __future__ import annotations

import os
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from ..errors import FormatError, MissingDependencyError, SafetensorError
from .blocks import BlockSource
from .leases import LEASED
from .memory import allocate, allocate_secret
from .parallel import in_order, thread_count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .source import Held, Source

    _Decryption = tuple[Callable[..., object], type[Exception]]

__all__ = [
    "CHUNK_SIZE", "FILE_KEY", "NONCE", "DecryptingSource", "Secret", "derive_key", "encrypted_size",
    "encrypting", "need_cryptography", "new_file_key",
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
"""Bytes that a thread handles between two reads: they stay in the processor's cache."""

_GAPS: Final = 16
"""The same at least, as a multiple of what a read costs (`Source.gap`): each may be a request."""

_LONGEST_RUN: Final = 1 << 22
"""The same, at most, of a source whose reads cost more, or whose own blocks are larger."""

_WORTH_HOLDING: Final = 1 << 20
"""Bytes above which keeping a file as it is costs less than a copy of them."""

_HELD: Final = 36 << 20
"""Bytes that all threads together hold at most: mapped pages count as memory of the process."""

_SHARE: Final = 256 * CHUNK_SIZE
"""Plaintext that a thread decrypts at a time, if there is much. Each share costs 0.4 ms of processor time
beside the cipher: most of it for code that the cipher's data has displaced from the processor's cache."""

_SHARE_LEAST: Final = 32 * CHUNK_SIZE
"""The same at the end of a read, so that no thread waits long for the last one."""

_HELD_RUN: Final = 16 * CHUNK_SIZE
"""Plaintext that a thread decrypts between two checks of blocks. For less, each step costs more."""

_PIECE: Final = 1 << 22
"""Plaintext that a thread encrypts at a time."""

_WRITERS: Final = 4
"""Threads that encrypt, at most: the one that writes cannot keep pace with more."""


def need_cryptography(module: str) -> Any:
    """Import a module of `cryptography`; the error names the extra."""
    try:
        return import_module(f"cryptography.{module}")
    except ImportError as error:
        raise MissingDependencyError(
            "encryption needs the `cryptography` package: pip install 'safeweights[encryption]'"
        ) from error


class Secret(bytes):
    """Key material: bytes that reporters of errors do not show, since their repr does not.

    >>> Secret(b"key")
    Secret(...)
    """

    def __repr__(self) -> str:
        return "Secret(...)"

    __str__ = __repr__


def new_file_key() -> Secret:
    """The key of one file: 16 random bytes."""
    return Secret(os.urandom(FILE_KEY))


def derive_key(secret: bytes, salt: bytes, info: bytes) -> Secret:
    """HKDF-SHA-256 (RFC 5869) with 32 bytes of output, as the specification of age uses it everywhere."""
    hashes = need_cryptography("hazmat.primitives.hashes")
    kdf = need_cryptography("hazmat.primitives.kdf.hkdf")
    return Secret(kdf.HKDF(hashes.SHA256(), 32, salt, info).derive(secret))


class DecryptingSource(BlockSource):
    """The plaintext of a payload, decrypted chunk by chunk as it is read.

    Cost of a read: the chunks that it touches, each read and decrypted once, in several threads where there
    are many. Memory: 320 KiB for each thread (of a remote source, or one of larger blocks, up to 4 MiB),
    a few chunks, and what is handed out.

    Args:
        source: The encrypted file.
        begin: Offset of the payload: the size of the header.
        file_key: What the header wraps; 16 bytes.

    Attributes:
        opened_by: The recipient whose identity gave the file key, for logs; set by the caller that
            unwrapped it.

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
        chunks = _Chunks(source, begin, file_key)
        super().__init__(source.name, chunks.size, CHUNK_SIZE, chunks.decrypt)
        self.version, self.threads = source.version, source.threads

    def _allocate(self, nbytes: int) -> memoryview:
        return allocate_secret(nbytes)

    def _pieces(self, extent: int) -> tuple[int, int]:  # noqa: ARG002
        return _SHARE, _SHARE_LEAST


class _Chunks:
    """The chunks of a payload.

    Attributes:
        size: Plaintext bytes of all of them.
    """

    def __init__(self, source: Source, begin: int, file_key: bytes) -> None:
        self._last = _count_chunks(source, begin) - 1
        self._source = source
        self._block = min(source.block, _LONGEST_RUN)
        self._run = max(_run_of(source), self._block)
        self._first = begin + NONCE
        self._key = derive_key(file_key, source.read(begin, NONCE), b"payload")
        self.size = source.size - self._first - _TAG * (self._last + 1)
        self._end = memoryview(bytearray(self.size - self._last * CHUNK_SIZE))
        self._decrypt(self._last, self._end)

    def decrypt(self, index: int, target: memoryview) -> None:
        """Fill `target` with the chunks from number `index` on.

        Raises:
            FormatError: ``age-payload``.
        """
        if index == self._last:
            target[:] = self._end
        else:
            self._decrypt(index, target)

    def _decrypt(self, index: int, target: memoryview) -> None:
        """Decrypt without a copy of the ciphertext where the file can be kept as it is meanwhile."""
        cipher = _decryption(self._key)
        chunks = min(LEASED, _HELD // thread_count()) // CHUNK_SIZE
        while len(target) and self._decrypt_held(cipher, index, target[: chunks * CHUNK_SIZE]):
            index, target = index + chunks, target[chunks * CHUNK_SIZE :]
        if len(target) or self.size == 0:
            self._decrypt_copy(cipher, index, target)

    def _decrypt_held(self, cipher: _Decryption, index: int, target: memoryview) -> bool:
        """Decrypt ciphertext in its place; False if that is not possible, or the file may have changed.

        What is in `target` is not authentic then: the tag may be of other bytes than those decrypted.
        """
        length = _sealed(len(target))
        if length < _WORTH_HOLDING:
            return False
        with self._source.held(self._first + index * _SEALED, length) as held:
            return held is not None and self._decrypt_in_place(cipher, held, index, target)

    def _decrypt_in_place(
        self, cipher: _Decryption, held: Held, index: int, target: memoryview
    ) -> bool:
        """The same of ciphertext that is held."""
        try:
            for into in range(0, len(target), _HELD_RUN):
                plain = target[into : into + _HELD_RUN]
                sealed = held.view(self._first + index * _SEALED, _sealed(len(plain)))
                self._decrypt_chunks(cipher, index, sealed, plain)
                index += _HELD_RUN // CHUNK_SIZE
        except SafetensorError:
            if held.is_held():
                raise
            return False
        return held.is_held()

    def _decrypt_copy(self, cipher: _Decryption, index: int, target: memoryview) -> None:
        """Copy ciphertext out of the source, a few chunks at a time, and decrypt the copy."""
        position = self._first + index * _SEALED
        end = position + _sealed(len(target))
        scratch = memoryview(bytearray(min(self._run + _SEALED, end - position)))
        into = kept = 0
        while position < end:
            # Reads end at the blocks of the source, or each block of a verified file would be read twice,
            # and copied. A chunk that such a read cuts waits at the beginning of the memory for its rest.
            stop = min(end, position + self._run - position % self._block)
            size = kept + stop - position
            self._source.read_into(position, scratch[kept:size])
            position = stop
            sealed = scratch[: size if position == end else size - size % _SEALED]
            chunks = -(-len(sealed) // _SEALED)
            self._decrypt_chunks(cipher, index, sealed, target[into : into + chunks * CHUNK_SIZE])
            index += chunks
            into += chunks * CHUNK_SIZE
            kept = size - len(sealed)
            scratch[:kept] = scratch[len(sealed) : size]

    def _decrypt_chunks(
        self, cipher: _Decryption, index: int, sealed: memoryview, target: memoryview
    ) -> None:
        """Decrypt whole chunks, from number `index` on."""
        decrypt_into, failed = cipher
        # The arguments of all calls are made first. So a thread needs the interpreter's lock for 0.1 us
        # between two calls of the cipher, which takes 35 us a chunk without it, and not for 0.9 us.
        chunks = [
            (
                (number << 8 | (number == self._last)).to_bytes(12, "big"),
                sealed[at * _SEALED : at * _SEALED + _SEALED],
                target[at * CHUNK_SIZE : at * CHUNK_SIZE + CHUNK_SIZE],
            )
            for at, number in enumerate(range(index, index + -(-len(sealed) // _SEALED)))
        ]
        done = 0
        try:
            for nonce, text, plain in chunks:
                decrypt_into(nonce, text, None, plain)
                done += 1
        except failed:
            raise self._not_authentic(index + done) from None

    def _not_authentic(self, index: int) -> FormatError:
        last = index == self._last
        why = (
            "the file was cut off or changed"
            if last
            else "it was changed, moved, or the disk is faulty"
        )
        return FormatError(
            f"chunk {index} of the encrypted file is not authentic{' as its last' if last else ''}: {why}",
            rule="age-payload", path=self._source.name, offset=self._first + index * _SEALED,
        )  # fmt: skip


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


def _sealed(nbytes: int) -> int:
    """Ciphertext bytes of `nbytes`, which begin at a chunk. No bytes are one chunk, too."""
    return nbytes + _TAG * (-(-nbytes // CHUNK_SIZE) or 1)


def _decryption(key: bytes) -> _Decryption:
    """``decrypt_into(nonce, sealed, None, into)`` under a key, and the error for what is not authentic.

    For one thread.
    """
    cipher = _cipher(key)
    failed: type[Exception] = need_cryptography("exceptions").InvalidTag

    def decrypt_into(nonce: bytes, sealed: memoryview, more: None, into: memoryview) -> None:
        into[:] = cipher.decrypt(nonce, sealed, more)

    return getattr(cipher, "decrypt_into", decrypt_into), failed


def _encryption(key: bytes) -> Callable[..., object]:
    """``encrypt_into(nonce, plain, None, into)`` under a key."""
    cipher = _cipher(key)

    def encrypt_into(nonce: bytes, plain: memoryview, more: None, into: memoryview) -> None:
        into[:] = cipher.encrypt(nonce, plain, more)

    return getattr(cipher, "encrypt_into", encrypt_into)


def _cipher(key: bytes) -> Any:
    # `encrypt_into` and `decrypt_into` came with cryptography 47.
    return need_cryptography("hazmat.primitives.ciphers.aead").ChaCha20Poly1305(key)


def _run_of(source: Source) -> int:
    """Bytes that are read at a time, whole chunks."""
    return max(_RUN, min(_GAPS * source.gap, _LONGEST_RUN))


def encrypted_size(nbytes: int) -> int:
    """Bytes of the payload of a file that has `nbytes`.

    >>> encrypted_size(0), encrypted_size(65536), encrypted_size(65537)
    (32, 65568, 65585)
    """
    return NONCE + _sealed(nbytes)


def encrypting(
    source: Source, file_key: bytes, progress: Callable[[int], object] | None = None
) -> Iterator[memoryview | bytes]:
    """The payload of an encrypted file, piece by piece, for a sink that writes what an iterator gives.

    Pieces are read and encrypted by several threads while those before them are written. Memory: 4 MiB
    for each thread, of which there are at most 4, and 16 MiB; of a source elsewhere twice 4 MiB for each.

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
    begins = range(0, source.size or 1, _PIECE)
    encrypt = partial(_encrypt_piece, source, key)
    made = in_order(encrypt, begins, workers=min(_WRITERS, thread_count()))
    for number, piece in enumerate(made, 1):
        yield piece
        del piece
        if progress is not None:
            progress(min(number * _PIECE, source.size))


def _encrypt_piece(source: Source, key: bytes, begin: int) -> memoryview:
    """The ciphertext of the piece of `source` that begins at `begin`."""
    length = min(_PIECE, source.size - begin)
    target = allocate(_sealed(length))
    encrypt_into = _encryption(key)
    last = max(0, source.size - 1) // CHUNK_SIZE

    def encrypt(plain: memoryview, done: int) -> None:
        first = (begin + done) // CHUNK_SIZE
        sealed = target[_sealed(done) if done else 0 :]
        for at in range(-(-len(plain) // CHUNK_SIZE) or 1):
            nonce = (first + at << 8 | (first + at == last)).to_bytes(12, "big")
            chunk = plain[at * CHUNK_SIZE : at * CHUNK_SIZE + CHUNK_SIZE]
            encrypt_into(nonce, chunk, None, sealed[at * _SEALED :][: len(chunk) + _TAG])

    if length >= _WORTH_HOLDING:
        with source.held(begin, length) as held:
            if held is not None:
                encrypt(held.view(begin, length), 0)
                if held.is_held():
                    return target
    # If the file changed meanwhile, nothing has seen what is in `target`: this replaces it.
    run = _run_of(source)
    scratch = memoryview(bytearray(min(run, length)))
    for low in range(0, length or 1, run):
        plain = scratch[: min(run, length - low)]
        source.read_into(begin + low, plain)
        encrypt(plain, low)
    return target
