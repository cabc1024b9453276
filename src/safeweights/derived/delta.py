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
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import numpy as np

from ..checkpoint import MemoryTensor
from ..errors import FormatError, MissingDependencyError, UnsupportedError, quote
from ..storage import allocate
from ..storage.background import Background
from .strided import WholeTensor

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from typing_extensions import Self

    from ..checkpoint import Tensor
    from ..storage.background import Job

__all__ = [
    "CHECKSUMS", "ENCODINGS", "applied", "checked", "checksum", "compressor", "encode",
]  # fmt: skip

ENCODINGS: Final = ("xor", "overwrite")
CHECKSUMS: Final = ("adler32", "xxh3-128", "blake3")
"""The checksums of the convention. The second and third need a package: xxhash, blake3."""

BLOCK: Final = 1 << 20
"""Bytes that are compared and hashed at a time."""

_TILE: Final = 1 << 20
"""Bytes that are combined and hashed at a time. With fewer, threads wait for the interpreter's lock."""

_FRAME_AT_ONCE: Final = 1 << 21
"""Size of a frame above which it is read in pieces, for which zstd needs a window."""

_FRAME_HEADER: Final = 18
"""Bytes of the longest header of a zstd frame (RFC 8878, section 3.1.1.1)."""

_FRAMES_AT_ONCE: Final = 16
"""Deltas of a chain that are decompressed side by side, at most: each takes a MiB of memory, or more. The
tensors of longer chains are computed as a whole, one delta after another."""

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
    return _Updated(base, _Link(delta, encoding, algorithm, expected, sha256))


def checked(base: Tensor, sha256: str) -> Tensor:
    """A tensor that did not change: its bytes, if they have the digest that they have to have."""
    return _Updated(base, _Link(None, "xor", "adler32", None, sha256))


class _Link(NamedTuple):
    """What one delta of a chain says of a tensor.

    Attributes:
        delta: The zstd frame; None if the tensor did not change.
        encoding: Of the frame.
        algorithm: The name of the checksum.
        expected: The checksum of the bytes after it, if it is known.
        sha256: Their SHA-256, if it is known.
    """

    delta: Tensor | None
    encoding: str
    algorithm: str
    expected: str | None
    sha256: str | None


class _Updated(WholeTensor):
    """The bytes of another tensor after the deltas of a chain, if they have the right digest.

    Args:
        before: The other tensor, or one of this class, which the next link of the chain follows.
        link: What the newest delta says.

    Attributes:
        before: The same.
        link: The same.
        frames: Deltas of the chain that change the tensor.
    """

    computed = True

    def __init__(self, before: Tensor, link: _Link) -> None:
        super().__init__(before.name, before.dtype, before.shape, before.nbytes)
        self.before = before
        self.link = link
        earlier = before.frames if isinstance(before, _Updated) else 0
        self.frames: int = earlier + (link.delta is not None)
        self.streams = before.streams and link.encoding == "xor" and self.frames <= _FRAMES_AT_ONCE

    def _chain(self) -> tuple[Tensor, list[_Link]]:
        """The tensor under the chain, and the links that have to be applied or checked, oldest first.

        Where a SHA-256 is known, digests before it are superfluous: it decides alone.
        """
        links: list[_Link] = []
        decided = False
        tensor: Tensor = self
        while isinstance(tensor, _Updated):  # no recursion: chains may have thousands of links
            link = tensor.link
            if not decided:
                links.append(link)
            elif link.delta is not None:
                links.append(link._replace(expected=None, sha256=None))
            decided = decided or link.sha256 is not None
            tensor = tensor.before
        return tensor, links[::-1]

    def _make(self, target: memoryview) -> None:
        self._apply_to(target, beside=len(target) >= _BESIDE)

    def _apply_to(self, target: memoryview, *, beside: bool) -> None:
        base, links = self._chain()
        old: _Old | None = _Old(base)
        for link in links:  # one after another: a long chain takes no more memory than one delta
            with _Step(link, self.name, beside=beside) as step:
                step.apply(target, old)
                step.finish()
            old = None

    def in_blocks(self, memory: memoryview) -> Iterator[memoryview]:
        if self.nbytes <= len(memory):
            self._apply_to(memory[: self.nbytes], beside=False)
            if self.nbytes:
                yield memory[: self.nbytes]
        elif self.streams:
            yield from self._stream(memory)
        else:
            yield from super().in_blocks(memory)

    def _stream(self, memory: memoryview) -> Iterator[memoryview]:
        """Blocks, of which each is hashed in another thread while the next one is made."""
        base, links = self._chain()
        old = _Old(base)
        memories = memory, allocate(len(memory))
        hashing: deque[Job[object] | None] = deque()
        with ExitStack() as opened:
            steps = [
                # What the next link changes is hashed before that, in this thread.
                opened.enter_context(_Step(link, self.name, beside=link is links[-1]))
                for link in links
            ]
            for number, begin in enumerate(range(0, self.nbytes, len(memory))):
                if number >= 2 and (job := hashing.popleft()) is not None:
                    job.result()
                block = memories[number % 2][: self.nbytes - begin]
                old.read_into(block)
                for step in steps:
                    step.apply(block)
                hashing.append(steps[-1].digests.last)
                yield block
            for step in steps:
                step.finish()


class _Old:
    """The bytes of the tensor under a chain, in order."""

    def __init__(self, base: Tensor) -> None:
        if not base.streams:  # it would be computed again for every part
            base = MemoryTensor(base.name, "U8", (base.nbytes,), base.view())
        self._base = base
        self._position = 0

    def read_into(self, part: memoryview) -> None:
        """Fill `part` with the next bytes."""
        self._base.read_into(part, self._position)
        self._position += len(part)


class _Step:
    """A link of a chain while it is applied to a tensor, from the first byte to the last.

    Args:
        link: The link.
        name: Of the tensor, for messages.
        beside: See `_Digests`.

    Attributes:
        digests: What checks the bytes.
    """

    def __init__(self, link: _Link, name: str, *, beside: bool) -> None:
        self.digests = _Digests(link.algorithm, link.expected, link.sha256, beside=beside)
        self._frame = None if link.delta is None else _Frame(link.delta, name)
        self._name = name
        self._overwrites = link.encoding == "overwrite"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        self.digests.close()
        if self._frame is not None:
            self._frame.close(reuse=error is None)

    def apply(self, target: memoryview, old: _Old | None = None) -> None:
        """Make the next bytes; with ``overwrite``, that must be all.

        Args:
            target: These bytes as they are before the link.
            old: For the first link: what gives these bytes, which are not in `target` yet.
        """
        frame, update = self._frame, self.digests.update
        if frame is None:
            for tile in _tiles(target):
                if old is not None:
                    old.read_into(tile)
                update(tile)
        elif self._overwrites:
            if old is not None:
                old.read_into(target)
            frame.overwrite(target)
            update(target)
        else:
            other: _Old | _Frame = frame
            if old is not None and not self.digests.beside:
                # zstd comes first: where all of a frame fits, it decompresses it into its place, without
                # a window: tensors of 4 MiB take three quarters of the time. (If another thread hashes,
                # that begins at once instead, and takes longer.)
                frame.read_into(target)
                other, old = old, None
            for tile in _tiles(target):
                if old is not None:
                    old.read_into(tile)
                apart = frame.memory[: len(tile)]
                other.read_into(apart)
                values = np.frombuffer(tile, np.uint8)
                values ^= np.frombuffer(apart, np.uint8)
                update(tile)

    def finish(self) -> None:
        """Check that the frame ends here, and the digest of the bytes.

        Raises:
            FormatError: The frame has more bytes, or these are not those that the link is for.
        """
        if self._frame is not None:
            self._frame.require_end()
        self.digests.check(self._name)


def _tiles(target: memoryview) -> Iterable[memoryview]:
    if len(target) <= _TILE:
        return (target,)
    return (target[begin : begin + _TILE] for begin in range(0, len(target), _TILE))


class _Digests:
    """The digest that a new tensor has to have.

    That is its SHA-256 where it is known. The checksum of the convention would tell nothing more about the
    bytes then, and takes half as long again.

    Args:
        algorithm: The name of the checksum.
        expected: Its value, if it is known.
        sha256: The SHA-256, if it is known.
        beside: Compute in another thread: bytes that were given to `update` must stay as they are until
            `check`, or until the job that was the `last` one then has ended.

    Attributes:
        beside: The same.
        last: The last job of the other thread, if there was any.
    """

    def __init__(
        self, algorithm: str, expected: str | None, sha256: str | None, *, beside: bool
    ) -> None:
        self._wanted: tuple[Hasher, str] | None = None
        if sha256 is not None:
            self._wanted = hashlib.sha256(), sha256
        elif expected is not None:
            self._wanted = checksum(algorithm), expected
        self.beside = beside
        self._thread = Background(name="safeweights-hash") if beside else None
        self.last: Job[object] | None = None

    def update(self, data: memoryview) -> None:
        if self._wanted is None:
            return
        if self._thread is None:
            self._wanted[0].update(data)
        else:  # one thread: the calls run in order, so that the last one's end is that of all
            self.last = self._thread.submit(self._wanted[0].update, data)

    def check(self, name: str) -> None:
        if self.last is not None:
            self.last.result()
        if self._wanted is not None and self._wanted[0].hexdigest() != self._wanted[1]:
            raise _fault(
                name, "gives other bytes: the base is another one, or something is damaged"
            )

    def close(self) -> None:
        if self._thread is not None:
            self._thread.close()


def _fault(name: str, what: str) -> FormatError:
    return FormatError(f"the delta of tensor {quote(name)} {what}", rule="delta", tensor=name)


class _Bench(NamedTuple):
    """What a thread needs to decompress; making it anew for each of many small tensors takes as long."""

    decompressor: Any
    memory: memoryview


_BENCHES: Final[deque[_Bench]] = deque(maxlen=16)
"""Those that no thread uses; a deque, whose operations are atomic."""


class _Compressed:
    """The bytes of a frame, read when zstandard asks for them."""

    def __init__(self, delta: Tensor) -> None:
        self._delta = delta
        self._position = 0

    def __getitem__(self, part: slice) -> memoryview:
        begin, end, _ = part.indices(self._delta.nbytes)
        memory = memoryview(bytearray(end - begin))
        self._delta.read_into(memory, begin)
        return memory

    def read(self, size: int) -> memoryview:
        """At most `size` bytes; none at the end."""
        begin, self._position = self._position, self._position + size
        return self[begin : self._position]


class _Frame:
    """The bytes in a zstd frame, in order, never more than are asked for.

    Args:
        delta: The frame.
        name: Of the tensor, for messages.

    Attributes:
        memory: Memory for a tile.

    Raises:
        FormatError: That is no frame.
    """

    def __init__(self, delta: Tensor, name: str) -> None:
        zstandard = compressor()
        data = _Compressed(delta) if delta.nbytes > _FRAME_AT_ONCE else delta.view()
        self._name = name
        self._delta = delta
        self._damage = zstandard.ZstdError
        try:
            zstandard.get_frame_parameters(bytes(data[:_FRAME_HEADER]))
        except self._damage as error:
            raise _fault(name, f"is no zstd frame: {error}") from error
        try:
            self._bench = _BENCHES.pop()
        except IndexError:
            self._bench = _Bench(zstandard.ZstdDecompressor(), memoryview(bytearray(_TILE)))
        self.memory = self._bench.memory
        self._reader = self._bench.decompressor.stream_reader(data, read_size=_TILE)

    def close(self, *, reuse: bool) -> None:
        """Give back what other threads may use, unless something went wrong with it."""
        self._reader.close()
        if reuse:
            _BENCHES.append(self._bench)

    def read_into(self, target: memoryview) -> None:
        """Fill `target` with the next bytes."""
        filled = 0
        try:
            while filled < len(target):
                got = self._reader.readinto(target[filled:])
                if not got:
                    raise _fault(self._name, "ends too early")
                filled += got
        except self._damage as error:
            raise _fault(self._name, f"is damaged: {error}") from error

    def require_end(self) -> None:
        """Refuse a frame that has more bytes."""
        try:
            more = self._reader.read(1)
        except self._damage as error:
            raise _fault(self._name, f"is damaged: {error}") from error
        if more:
            raise _fault(self._name, "has more bytes than the tensor")

    def overwrite(self, target: memoryview) -> None:
        """Replace the bytes of `target` that change: the frame has their number, places and values.

        Memory: a tile of each. All values follow all places, of which a frame of a few bytes may have four
        times the tensor's size: more than a tile of them is decompressed twice, to stand at both.
        """
        self.read_into(self.memory[:4])
        count = int.from_bytes(self.memory[:4], "little")
        if count > len(target):
            raise _fault(self._name, f"changes {count} bytes of {len(target)}")
        values = np.frombuffer(target, np.uint8)
        at_once = len(self.memory) // 5
        if count <= at_once:
            self._replace(values, self, count)
            return
        places = _Frame(self._delta, self._name)
        ended = False
        try:
            places.skip(4)
            self.skip(4 * count)
            for begin in range(0, count, at_once):
                self._replace(values, places, min(at_once, count - begin))
            ended = True
        finally:
            places.close(reuse=ended)

    def _replace(self, values: Any, places: _Frame, count: int) -> None:
        """Replace `count` of `values`: their places are next in one frame, the new ones in this one."""
        memory = self.memory[: 5 * count]
        places.read_into(memory[: 4 * count])
        self.read_into(memory[4 * count :])
        where = np.frombuffer(memory[: 4 * count], "<u4")
        if count and int(where.max()) >= len(values):
            raise _fault(self._name, "changes bytes beyond the end of the tensor")
        values[where] = np.frombuffer(memory[4 * count :], np.uint8)

    def skip(self, count: int) -> None:
        """Pass over the next bytes."""
        while count:
            part = self.memory[:count]
            self.read_into(part)
            count -= len(part)
