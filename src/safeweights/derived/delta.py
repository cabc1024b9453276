"""Tensors that are a base and what changed: old XOR new, or the bytes that differ, compressed (zstd).

The encodings are those of slime, miles and sglang (slime/utils/disk_delta.py, sglang/srt/weight_sync):

- ``xor``: one zstd frame of the old bytes XOR the new ones.
- ``overwrite``: one zstd frame of the number of bytes that change (4 bytes, little-endian), their positions
  (4 bytes each), and the new bytes.

Nothing is handed out before it has the digests that it has to have: a wrong base is an error.
"""

from __future__ import annotations

import hashlib
import importlib
import zlib
from collections import deque
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import numpy as np

from ..errors import FormatError, MissingDependencyError, UnsupportedError, quote
from ..storage import allocate
from ..storage.parallel import Background
from .strided import ComputedTensor, WholeTensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from typing_extensions import Self

    from ..checkpoint import Tensor
    from ..storage.parallel import Job

__all__ = [
    "CHECKSUMS", "ENCODINGS", "applied", "checked", "checksum", "compressor", "encode",
]  # fmt: skip

ENCODINGS: Final = ("xor", "overwrite")
CHECKSUMS: Final = ("adler32", "xxh3-128", "blake3")
"""The checksums of the convention. The second and third need a package: xxhash, blake3."""

BLOCK: Final = 1 << 20
"""Bytes decompressed, combined and hashed at a time: they stay in a core's cache."""

_ROOM: Final = BLOCK

_BESIDE: Final = 4 * BLOCK
"""Size of a tensor from which it pays to hash in a second thread what the first one has decompressed."""

_OVERWRITE_MAX: Final = 1 << 32


class Hasher(Protocol):
    """What computes a checksum."""

    def update(self, data: Any, /) -> object:
        """Take in more bytes."""

    def hexdigest(self) -> str:
        """The checksum of all of them."""


class _Adler32:
    def __init__(self) -> None:
        self._value = 1

    def update(self, data: Any, /) -> None:
        self._value = zlib.adler32(data, self._value)

    def hexdigest(self) -> str:
        return f"{self._value:08x}"


def checksum(name: str) -> Hasher:
    """A new computation of the checksum called `name`.

    Raises:
        UnsupportedError: It is not known.
        MissingDependencyError: It needs a package that is not installed.

    >>> state = checksum("adler32")
    >>> _ = state.update(b"abc")
    >>> state.hexdigest()
    '024d0127'
    """
    if name == "adler32":
        return _Adler32()
    if name not in CHECKSUMS:
        raise UnsupportedError(
            f"the checksum {quote(name)} is not known; {', '.join(CHECKSUMS)} are"
        )
    package = "blake3" if name == "blake3" else "xxhash"
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        raise MissingDependencyError(
            f"the checksum {name} needs a package: pip install 'safeweights[{package}]'"
        ) from error
    found: Hasher = module.blake3() if name == "blake3" else module.xxh3_128()
    return found


def compressor() -> Any:
    """The module that compresses.

    Raises:
        MissingDependencyError: It is not installed.
    """
    try:
        import zstandard
    except ImportError as error:
        raise MissingDependencyError(
            "deltas need the package zstandard: pip install 'safeweights[delta]'"
        ) from error
    return zstandard


def encode(base: Tensor, new: Tensor, encoding: str, *, level: int = 1) -> bytes | None:
    """What turns the bytes of `base` into those of `new`, as one zstd frame; None if they are equal.

    Cost: reads both; memory for the frame, with ``overwrite`` also for both tensors.

    Raises:
        UnsupportedError: The encoding is not known, or the tensor too large for it.
    """
    zstandard = compressor()
    if encoding == "overwrite":
        return _overwrite(base, new, zstandard, level)
    if encoding != "xor":
        raise UnsupportedError(f"the encoding {quote(encoding)} is not known; {ENCODINGS} are")
    packing = zstandard.ZstdCompressor(level=level).compressobj(size=new.nbytes)
    pieces: list[bytes] = []
    differs = False
    for old, now in zip(*(each.in_blocks(allocate(BLOCK)) for each in (base, new)), strict=True):
        apart = np.frombuffer(old, np.uint8) ^ np.frombuffer(now, np.uint8)
        differs = differs or bool(apart.any())
        pieces.append(packing.compress(apart.data))
    pieces.append(packing.flush())
    return b"".join(pieces) if differs else None


def _overwrite(base: Tensor, new: Tensor, zstandard: Any, level: int) -> bytes | None:
    if new.nbytes >= _OVERWRITE_MAX:
        raise UnsupportedError(
            f"tensor {quote(new.name)} has 4 GiB or more, which the encoding overwrite cannot address"
        )
    old, now = (np.frombuffer(each.view(), np.uint8) for each in (base, new))
    places = np.flatnonzero(old != now).astype("<u4")
    if not len(places):
        return None
    parts = [np.array([len(places)], "<u4").view(np.uint8), places.view(np.uint8), now[places]]
    packed: bytes = zstandard.ZstdCompressor(level=level).compress(np.concatenate(parts).data)
    return packed


def applied(
    base: Tensor,
    delta: Tensor,
    encoding: str,
    *,
    expected: str | None,
    algorithm: str,
    sha256: str | None = None,
) -> Tensor:
    """The new tensor, computed when it is read.

    Args:
        base: The old one.
        delta: The zstd frame, as bytes.
        encoding: ``"xor"`` or ``"overwrite"``.
        expected: The checksum that the new bytes must have.
        algorithm: Its name.
        sha256: Their SHA-256, if it is known.

    Raises:
        FormatError: When it is read: the delta is damaged, or was made for another base (rule
            ``delta``).
        UnsupportedError: The encoding or the checksum is not known.
    """
    if encoding not in ENCODINGS:
        raise UnsupportedError(f"the encoding {quote(encoding)} is not known; {ENCODINGS} are")
    checksum(algorithm)  # refused now, if it is not known
    digests = partial(_Digests, algorithm, expected, sha256)
    if encoding == "xor":
        return _Checked(base, digests, delta)

    def compute(target: memoryview) -> None:
        base.read_into(target)
        with _frame(delta, base.name) as (reader, _), digests(beside=False) as hashes:
            _apply_overwrite(reader, target, base.name)
            hashes.update(target)
            hashes.check(base.name)

    return ComputedTensor(base.name, base.dtype, base.shape, compute)


def checked(base: Tensor, sha256: str) -> Tensor:
    """A tensor that did not change: its bytes, if they have the digest that they have to have."""
    return _Checked(base, partial(_Digests, "adler32", None, sha256), None)


class _Checked(WholeTensor):
    """The bytes of another tensor, changed by a delta or not, if they have the right digest.

    Args:
        base: The other tensor.
        digests: Makes what computes and checks the digest.
        delta: The zstd frame to be combined with it (XOR); None if nothing changed.
    """

    computed = True

    def __init__(
        self, base: Tensor, digests: Callable[..., _Digests], delta: Tensor | None
    ) -> None:
        super().__init__(base.name, base.dtype, base.shape, base.nbytes)
        self._base = base
        self._digests = digests
        self._delta = delta
        self.streams = base.streams

    def _make(self, target: memoryview) -> None:
        deque(self._changed(_filled(self._base, target), beside=len(target) >= _BESIDE), maxlen=0)

    def in_blocks(self, memory: memoryview) -> Iterator[memoryview]:
        return self._changed(self._base.in_blocks(memory), beside=False)

    def _changed(self, blocks: Iterable[memoryview], *, beside: bool) -> Iterator[memoryview]:
        """Blocks of the base, each changed in place when it is asked for; then the digest is checked."""
        with self._digests(beside=beside) as hashes:
            if self._delta is None:
                for block in blocks:
                    hashes.update(block)
                    yield block
            else:
                with _frame(self._delta, self.name) as (reader, memory):
                    for block in blocks:
                        _combine(block, reader, memory, self.name)
                        hashes.update(block)
                        yield block
                    _require_end(reader, self.name)
            hashes.check(self.name)


def _filled(tensor: Tensor, target: memoryview) -> Iterator[memoryview]:
    """Blocks of `target`, each filled with the bytes of the tensor when it is asked for."""
    whole = isinstance(tensor, WholeTensor)  # parts of which are not to be had one at a time
    if whole:
        tensor.read_into(target)
    for begin in range(0, len(target), BLOCK):
        block = target[begin : begin + BLOCK]
        if not whole:
            tensor.read_into(block, begin)
        yield block


class _Digests:
    """The digest that a new tensor has to have.

    That is its SHA-256 where it is known. The checksum of the convention would tell nothing more about the
    bytes then, and takes half as long again.

    Args:
        algorithm: The name of the checksum.
        expected: Its value, if it is known.
        sha256: The SHA-256, if it is known.
        beside: Compute in another thread: bytes that were given to `update` must stay as they are until
            `check`.
    """

    def __init__(
        self, algorithm: str, expected: str | None, sha256: str | None, *, beside: bool
    ) -> None:
        self._wanted: tuple[Hasher, str] | None = None
        if sha256 is not None:
            self._wanted = hashlib.sha256(), sha256
        elif expected is not None:
            self._wanted = checksum(algorithm), expected
        self._beside = Background(name="safeweights-hash") if beside else None
        self._last: Job[object] | None = None

    def update(self, data: memoryview) -> None:
        if self._wanted is None:
            return
        if self._beside is None:
            self._wanted[0].update(data)
        else:  # one thread: the calls run in order, so that the last one's end is that of all
            self._last = self._beside.submit(self._wanted[0].update, data)

    def check(self, name: str) -> None:
        if self._last is not None:
            self._last.result()
        if self._wanted is not None and self._wanted[0].hexdigest() != self._wanted[1]:
            raise _fault(
                name, "gives other bytes: the base is another one, or something is damaged"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._beside is not None:
            self._beside.close()


def _fault(name: str, what: str) -> FormatError:
    return FormatError(f"the delta of tensor {quote(name)} {what}", rule="delta", tensor=name)


class _Bench(NamedTuple):
    """What a thread needs to decompress; making it anew for each of many small tensors takes as long."""

    decompressor: Any
    memory: memoryview


_BENCHES: Final[deque[_Bench]] = deque(maxlen=16)
"""Those that no thread uses; a deque, whose operations are atomic."""


@contextmanager
def _frame(delta: Tensor, name: str) -> Iterator[tuple[Any, memoryview]]:
    """A reader of the frame, which never gives more than is asked for, and memory for a block."""
    zstandard = compressor()
    data = delta.view()
    try:
        zstandard.get_frame_parameters(bytes(data[:18]))
    except zstandard.ZstdError as error:
        raise _fault(name, f"is no zstd frame: {error}") from error
    try:
        bench = _BENCHES.pop()
    except IndexError:
        bench = _Bench(zstandard.ZstdDecompressor(), memoryview(bytearray(_ROOM)))
    with bench.decompressor.stream_reader(data) as reader:
        yield reader, bench.memory
    _BENCHES.append(bench)


def _read(reader: Any, count: int, name: str) -> memoryview:
    """Exactly so many bytes of the frame."""
    memory = allocate(count)
    _read_into(reader, memory, name)
    return memory


def _read_into(reader: Any, memory: memoryview, name: str) -> None:
    """Fill `memory` with bytes of the frame."""
    filled = 0
    try:
        while filled < len(memory):
            got = reader.readinto(memory[filled:])
            if not got:
                raise _fault(name, "ends too early")
            filled += got
    except compressor().ZstdError as error:
        raise _fault(name, f"is damaged: {error}") from error


def _require_end(reader: Any, name: str) -> None:
    try:
        more = reader.read(1)
    except compressor().ZstdError as error:
        raise _fault(name, f"is damaged: {error}") from error
    if more:
        raise _fault(name, "has more bytes than the tensor")


def _combine(block: memoryview, reader: Any, memory: memoryview, name: str) -> None:
    """Combine a block of the base with the next bytes of the frame."""
    for begin in range(0, len(block), len(memory)):
        part = block[begin : begin + len(memory)]
        apart = memory[: len(part)]
        _read_into(reader, apart, name)
        values = np.frombuffer(part, np.uint8)
        values ^= np.frombuffer(apart, np.uint8)


def _apply_overwrite(reader: Any, target: memoryview, name: str) -> None:
    count = int.from_bytes(_read(reader, 4, name), "little")
    if count > len(target):
        raise _fault(name, f"changes {count} bytes of {len(target)}")
    places = np.frombuffer(_read(reader, 4 * count, name), "<u4")
    values = np.frombuffer(_read(reader, count, name), np.uint8)
    _require_end(reader, name)
    if count and int(places.max()) >= len(target):
        raise _fault(name, "changes bytes beyond the end of the tensor")
    np.frombuffer(target, np.uint8)[places] = values
