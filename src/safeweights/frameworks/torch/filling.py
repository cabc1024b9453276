"""Filling tensors with boxes of stored ones: what every load into existing tensors, and of parts, does.

Rules:
- All reads are one plan, in the order of the files; a few threads share them (`loading`).
- Bytes go straight into a target that is contiguous memory of the host and of the stored type. For other
  targets at most 8 MiB are read at a time, and converted.
- Neighbours in a file are read together, up to 4 MiB.
- Of what is fetched from a disk for many runs, such as those of columns, at most a twentieth was not asked
  for; but runs of less than 512 bytes are read with what lies between them, and sources that read in
  blocks, remote and verified ones, say themselves how far apart two pieces may be (`Source.gap`).
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeGuard

import torch

from ...checkpoint import Checkpoint, FileTensor
from ...format.dtypes import DTYPES
from ...storage import Source, allocate
from ...storage.leases import LEASED
from ...storage.parallel import CHUNK, thread_count
from ..loading import LoadJob, Pipeline, Progress, landing_of, reader_count
from ..plans import Batch, Scattered, batches
from .adapter import ADAPTER, CODES, TYPES, host_bytes, packed_shape
from .models import is_plain, note_change
from .parts import blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from ...checkpoint import Tensor
    from ..plans import Landing, Transfer

__all__ = ["Filling", "Part", "fill"]

_PIECE: Final = 1 << 23
"""Most bytes that are read at a time for targets that are no contiguous memory of the host."""

_ARENA: Final = 1 << 22
"""Bytes of neighbours that are read together, and then copied to their places."""

_WASTE: Final = 20
_SHORT: Final = 512
"""See the rules above."""

_AHEAD: Final = 1 << 28
"""Bytes that may be read, or be on their way, before they are in their places."""


class Part(NamedTuple):
    """A target, and what it is filled with.

    Attributes:
        tensor: The stored tensor.
        starts: Where the box begins in it, in torch's elements; it is as long as the target.
        target: A strided tensor, on any device. In place of one on the meta device a tensor is made.
        device: Where that is made.
    """

    tensor: Tensor
    starts: tuple[int, ...]
    target: torch.Tensor
    device: torch.device = torch.device("cpu")

    @property
    def place(self) -> torch.device:
        """Where the values will be."""
        return self.device if self.target.is_meta else self.target.device


def fill(
    parts: Iterable[Part],
    done: Callable[[Part, torch.Tensor], object] | None = None,
    progress: Progress | None = None,
    *,
    exclusive: bool = False,
) -> None:
    """Plan and fill targets; see `Filling`."""
    Filling(parts, exclusive=exclusive).run(done, progress)


class Filling:
    """Targets that are planned to be filled; none is touched before `run`.

    Args:
        parts: Targets whose shapes fit. Values of another type are converted as torch does. One on the meta
            device has the stored type.
        exclusive: The sources are used by nothing else, now or later: what is made may be a part of a
            mapped file. Otherwise it is copied.

    Raises:
        UnsupportedError: A tensor cannot be read, or a target has no memory that could be reached.
    """

    def __init__(self, parts: Iterable[Part], *, exclusive: bool = False) -> None:
        self._empty: list[Part] = []
        reads: dict[torch.device, list[_Read]] = {}
        with torch.no_grad():
            for part in parts:
                found = list(_reads(part))
                if not found:
                    self._empty.append(part)
                reads.setdefault(part.place, []).extend(found)
            self._devices = [_Onto(device, here, exclusive) for device, here in reads.items()]

    def run(
        self,
        done: Callable[[Part, torch.Tensor], object] | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Fill the targets, once.

        Args:
            done: Called in this thread with each part when it is filled, and its target or the tensor that
                was made, which shares no memory with others.
            progress: Called with the number of bytes that have arrived.

        Cost: each byte is read once. Memory beside the targets: none for contiguous ones of the host and
            the stored type; for others at most 256 MiB, or the largest of them that is not in a file as it
            is.

        Raises:
            SafetensorError: The bytes are not there, or not what was signed; some targets were filled.
            OSError: Reading failed; likewise.
        """
        with torch.no_grad():
            if done is not None:
                for part in self._empty:
                    done(part, _without_elements(part))
            before = 0
            for here in self._devices:
                here.run(done, _counted_from(before, progress))
                before += here.nbytes


def _without_elements(part: Part) -> torch.Tensor:
    target = part.target
    if not target.is_meta:
        return target
    return torch.empty(target.shape, dtype=TYPES[part.tensor.dtype], device=part.device)


def _counted_from(before: int, progress: Progress | None) -> Progress | None:
    return None if progress is None else lambda arrived: progress(before + arrived)


class _Read(NamedTuple):
    """A box that is read in one go.

    Attributes:
        part: What it belongs to.
        target: The part's target, or a piece of it.
        expression: The box in the stored tensor; None for all of it.
        others: How many pieces of the same part have not arrived, in a list that they share.
    """

    part: Part
    target: torch.Tensor
    expression: tuple[slice, ...] | None
    others: list[int]

    def memory(self) -> memoryview | None:
        """The bytes of the target, where they can be read into it as they are; else None."""
        direct = _is_direct(self.part)
        return host_bytes(self.part.tensor.name, self.target.detach()) if direct else None

    def take(self, values: torch.Tensor | None, *, owned: bool) -> torch.Tensor:
        """Note what has arrived, if it is not in its place already; the part's tensor.

        Args:
            values: The values; None if they were read into the target.
            owned: Nothing else shares their memory.
        """
        if values is not None and self.target.is_meta:
            return values if owned else values.clone()
        if values is not None:
            self.target.copy_(values)
        return self.part.target


def _reads(part: Part) -> Iterator[_Read]:
    """A part as boxes that are small enough to be read at once."""
    tensor, target = part.tensor, part.target
    if not target.numel():
        return
    whole = target.is_meta or _is_direct(part) or not isinstance(tensor, FileTensor)
    pieces = list(blocks(target, sys.maxsize if whole else _PIECE))
    others = [len(pieces)]
    shape = packed_shape(tensor.dtype, tensor.shape)
    for starts, piece in pieces:
        expression = None
        if (lengths := tuple(piece.shape)) != shape:
            begin = tuple(a + b for a, b in zip(part.starts, starts, strict=True))
            expression = _expression(begin, lengths, DTYPES[tensor.dtype].packed)
        yield _Read(part, piece, expression, others)


def _is_direct(part: Part) -> bool:
    return is_plain(part.target) and CODES.get(part.target.dtype) == part.tensor.dtype


@lru_cache(256)
def _expression(
    starts: tuple[int, ...], lengths: tuple[int, ...], packed: int
) -> tuple[slice, ...]:
    """The index expression of a box; `packed` stored elements along the last axis are one of torch.

    Layers of a model share one: `batches` follows it once.
    """
    *outer, (begin, length) = zip(starts, lengths, strict=True)
    return (
        *(slice(start, start + count) for start, count in outer),
        slice(begin * packed, (begin + length) * packed),
    )


# ---- reading


class _Onto:
    """What is read onto one device, as a plan."""

    def __init__(self, device: torch.device, reads: Sequence[_Read], exclusive: bool) -> None:
        self._exclusive = exclusive
        self._reads = {str(number): read for number, read in enumerate(reads)}
        stored = Checkpoint({key: read.part.tensor for key, read in self._reads.items()})
        onto = ADAPTER.check_device(device)
        self._landing = _Landing(landing_of(ADAPTER, onto), self._reads, onto)
        plan = {key: read.expression for key, read in self._reads.items()}
        found = batches(stored, plan, self._landing.arena)
        ADAPTER.require(item for batch in found for item in batch.tensors)
        self._jobs = [LoadJob(batch) for batch in found]
        self.nbytes = sum(batch.nbytes for batch in found)
        self._threads = reader_count(self._jobs, self._landing)
        self._landing.prepare(found)

    def run(
        self, done: Callable[[Part, torch.Tensor], object] | None, progress: Progress | None
    ) -> None:
        in_place: list[LoadJob] = []
        taken = _Taken()

        def finished(job: LoadJob) -> None:
            # Between two reads everything takes longer: what holds no memory can wait.
            if self._landing.is_in_place(job.batch):
                in_place.append(job)
            else:
                self._finish(job, taken, done)

        self._landing.note_changes()
        Pipeline(self._jobs, self._landing, ahead=_AHEAD).run(
            self._threads, progress, finished=finished
        )
        for job in in_place:
            self._finish(job, taken, done)

    def _finish(
        self, job: LoadJob, taken: _Taken, done: Callable[[Part, torch.Tensor], object] | None
    ) -> None:
        batch = job.batch
        owned = _is_private(batch) or (self._exclusive and _is_view(batch))
        arrived = job.take()
        job.tensors = None
        for key, _ in batch.tensors:
            read, here = self._reads[key], arrived.get(key)
            kept = here is not None and read.target.is_meta and owned and taken.add(here)
            values = read.take(here, owned=kept)
            read.others[0] -= 1
            if done is not None and not read.others[0]:
                done(read.part, values)


def _is_private(batch: Batch | Scattered) -> bool:
    """Whether what was read is memory of one tensor, to which nothing else refers."""
    if isinstance(batch, Batch):  # neighbours share memory
        return len(batch.tensors) == 1 and not batch.source.in_memory
    return isinstance(batch.tensor, FileTensor) and not batch.tensor.in_memory


def _is_view(batch: Batch | Scattered) -> bool:
    """Whether each tensor is a view of memory from which it was not read, such as a mapped file."""
    return not isinstance(batch, Batch) or batch.source.in_memory


class _Taken:
    """Memory that tensors have: a part of a mapped file is that of one; for others it is copied."""

    def __init__(self) -> None:
        self._begins: list[int] = []
        self._ends: list[int] = []

    def add(self, values: torch.Tensor) -> bool:
        """Note a tensor's memory; False if an earlier one has some of it."""
        begin = values.data_ptr()
        end = begin + values.nbytes
        place = bisect_right(self._ends, begin)
        if place < len(self._begins) and self._begins[place] < end:
            return False
        self._begins.insert(place, begin)
        self._ends.insert(place, end)
        return True


class _Landing:
    """Where batches go: into the targets themselves, where that is possible, or to `landing`."""

    def __init__(
        self, landing: Landing, reads: Mapping[str, _Read], device: torch.device | None
    ) -> None:
        self._landing = landing
        self._device = device
        self._reads = reads
        self._prepared: dict[int, Transfer] = {}
        self._changing: list[torch.Tensor] = []
        self._alone = thread_count() == 1
        self.arena = min(landing.arena, _ARENA)
        self.threads, self.ahead = landing.threads, landing.ahead
        self.filling = landing.filling
        self.in_place = False

    def prepare(self, batches: Iterable[Batch | Scattered]) -> None:
        """Begin what takes no memory, before anything is read.

        Between two reads, with caches that these have filled, the same takes four times as long.

        Args:
            batches: They are kept by the caller.
        """
        for batch in batches:
            if (transfer := self._into_targets(batch)) is not None:
                self._prepared[id(batch)] = transfer
                self._changing += [self._reads[key].target for key, _ in batch.tensors]

    def note_changes(self) -> None:
        """Tell autograd of the targets into which is read: one after another, when the caches are warm."""
        for target in self._changing:
            note_change(target)

    def is_in_place(self, batch: Batch | Scattered) -> bool:
        """Whether a batch is read into its targets."""
        return id(batch) in self._prepared

    def begin(self, batch: Batch | Scattered) -> Transfer:
        if (transfer := self._prepared.get(id(batch))) is not None:
            return transfer
        if _is_columns(batch):
            return self._columns(batch, None)
        return self._landing.begin(batch)

    def _into_targets(self, batch: Batch | Scattered) -> Transfer | None:
        if not _is_read(batch) and not _is_columns(batch):
            return None
        found = [self._reads[key].memory() for key, _ in batch.tensors]
        memories = [memory for memory in found if memory is not None]
        if len(memories) < len(found):
            return None
        if not isinstance(batch, Batch):
            return self._columns(batch, memories[0])
        if len(memories) > 1:
            return _Neighbours(batch, memories)
        return _Straight(batch, memories[0], self._chunk_of(batch.source))

    def _columns(self, part: Scattered, memory: memoryview | None) -> Transfer:
        assert isinstance(part.tensor, FileTensor)
        return _Columns(part, part.tensor, memory, self._device, self._chunk_of(part.tensor.source))

    def _chunk_of(self, source: Source) -> int:
        """Bytes of a piece: one thread alone has none to share them with, and takes larger ones."""
        return LEASED if self._alone and not source.threads else CHUNK


def _is_read(batch: Batch | Scattered) -> TypeGuard[Batch]:
    """Whether it is one piece of a file, which is read from there."""
    return isinstance(batch, Batch) and not batch.source.in_memory


def _is_columns(batch: Batch | Scattered) -> TypeGuard[Scattered]:
    """Whether it is many runs of a file, which are read from there."""
    return (
        isinstance(batch, Scattered)
        and isinstance(batch.tensor, FileTensor)
        and not batch.tensor.in_memory
    )


class _Columns:
    """A part that is many runs of a file on its way, into the memory of its target if that is given.

    Threads share the repetitions of the outermost loop.
    """

    def __init__(
        self,
        part: Scattered,
        tensor: FileTensor,
        memory: memoryview | None,
        device: torch.device | None,
        chunk: int,
    ) -> None:
        runs = part.runs
        assert runs is not None
        self._part, self._device = part, device
        self._source = source = tensor.source
        self._in_place = memory is not None
        begin = tensor.data_start + tensor.info.begin
        self._runs = runs._replace(offset=begin + runs.offset)
        exact = source.gap <= Source.gap and runs.length >= _SHORT
        self._gap = runs.length // _WASTE if exact else None
        self._data = allocate(runs.nbytes) if memory is None else memory
        self.extent = runs.loops[0][0]
        self._each = runs.nbytes // self.extent
        self.step = self.least = max(1, chunk // self._each)

    def fill(self, begin: int, end: int) -> None:
        (_, distance), *inner = self._runs.loops
        runs = self._runs._replace(
            offset=self._runs.offset + begin * distance, loops=((end - begin, distance), *inner)
        )
        out = self._data[begin * self._each : end * self._each]
        self._source.read_runs(runs, out, gap=self._gap)

    def tensors(self) -> dict[str, Any]:
        if self._in_place:
            return {}  # they are where they belong
        return ADAPTER.decode_all(self._data, 0, self._part.tensors, self._device)


class _Straight:
    """A batch on its way into the memory of its only target."""

    def __init__(self, batch: Batch, memory: memoryview, chunk: int) -> None:
        self._source, self._offset = batch.source, batch.data_start + batch.begin
        self._memory = memory
        self.extent, self.step, self.least = batch.nbytes, chunk, chunk

    def fill(self, begin: int, end: int) -> None:
        self._source.read_into(self._offset + begin, self._memory[begin:end])

    def tensors(self) -> dict[str, Any]:
        return {}  # they are where they belong


class _Neighbours:
    """A batch on its way into the memory of its targets, which are small: it is read in one go."""

    extent = step = least = 1

    def __init__(self, batch: Batch, memories: list[memoryview]) -> None:
        self._batch, self._memories = batch, memories

    def fill(self, begin: int, end: int) -> None:
        del begin, end  # all of it
        batch, first = self._batch, self._batch.begin
        data = allocate(batch.nbytes)
        batch.source.read_into(batch.data_start + first, data)
        for (_, info), memory in zip(batch.tensors, self._memories, strict=True):
            memory[:] = data[info.begin - first : info.end - first]

    def tensors(self) -> dict[str, Any]:
        return {}  # they are where they belong
