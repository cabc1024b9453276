"""Filling tensors that exist with boxes of stored ones, in the order of the files.

Rules:
- Bytes go straight into a target that is contiguous memory of the host and of the stored type. For other
  targets at most 8 MiB are read at a time.
- Neighbours in a file are read together.
- Runs of less than 64 KiB, such as those of columns, are copied out of a mapping where there is one. (A
  system call for each 4 KiB takes five times as long.) Its pages are fetched first, so that a file that was
  cut off is an error instead of the end of the process.
- Of what is read otherwise, at most a twentieth was not asked for; but runs of less than 512 bytes are read
  with what lies between them, and sources that read in blocks, remote and verified ones, say themselves how
  far apart two pieces may be (`Source.gap`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from ...storage import Source, allocate, gather, gather_mapped
from ...storage.parallel import in_parallel, in_threads
from .adapter import ADAPTER, CODES, host_bytes, logical_shape, packed_shape
from .models import is_plain, note_change
from .parts import blocks, box_runs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import torch

    from ...checkpoint.tensor import FileTensor
    from ...format.indexing import Runs

__all__ = ["Part", "fill"]

_PIECE: Final = 1 << 23
"""Most bytes that are read at a time for targets that are no contiguous memory of the host."""

_SMALL: Final = 1 << 18
"""Bytes up to which a part is read together with its neighbours."""

_WASTE: Final = 20
_SHORT: Final = 512
_MAPPED: Final = 1 << 16
"""See the rules above."""

_REQUESTS: Final = 16
"""Reads of a remote source at a time."""


class Part(NamedTuple):
    """A target, and what it is filled with.

    Attributes:
        tensor: The stored tensor.
        offsets: Where the box begins in it, in torch's elements; it is as long as the target.
        target: A strided tensor, on any device.
    """

    tensor: FileTensor
    offsets: tuple[int, ...]
    target: torch.Tensor


class _Located(NamedTuple):
    """A part, and where its bytes are."""

    part: Part
    runs: Runs
    begin: int

    @property
    def single(self) -> bool:
        """Whether it is one run, small enough to be read with others."""
        return self.runs.run_count == 1 and self.runs.nbytes <= _SMALL


def fill(parts: Iterable[Part], done: Callable[[Part], object] | None = None) -> None:
    """Fill targets, in the order of the files.

    Args:
        parts: Targets whose shapes fit. Values of another type are converted as torch does.
        done: Called with each part, in this thread, when its target is filled.

    Raises:
        SafetensorError: The bytes are not there, or not what was signed; some targets were filled.
        OSError: Reading failed; likewise.
    """
    located = [_locate(part) for part in parts]
    located.sort(key=lambda each: (id(each.part.tensor.source), each.begin))
    batches = list(_batches(located))
    if any(each.part.tensor.source.gap > Source.gap for each in located):
        in_threads(lambda batch, _: _fill_batch(batch), batches, workers=_REQUESTS)
        batches_done: Iterable[list[_Located]] = batches
    else:
        batches_done = map(_fill_batch, batches)
    for batch in batches_done:
        for each in batch:
            if done is not None:
                done(each.part)


def _locate(part: Part) -> _Located:
    tensor = part.tensor
    shape = packed_shape(tensor.dtype, tensor.shape)
    runs = box_runs(tensor.dtype, shape, part.offsets, part.target.shape)
    return _Located(part, runs, tensor.data_start + tensor.info.begin + runs.offset)


def _batches(located: Sequence[_Located]) -> Iterator[list[_Located]]:
    """Neighbours that are read together."""
    batch: list[_Located] = []
    begin = end = useful = 0
    for each in located:
        if batch and _joins(batch[-1], each, end - begin, useful, end):
            end = max(end, each.begin + each.runs.nbytes)
            useful += each.runs.nbytes
        else:
            if batch:
                yield batch
            batch, begin, useful = [], each.begin, each.runs.nbytes
            end = begin + useful
        batch.append(each)
    if batch:
        yield batch


def _joins(last: _Located, each: _Located, length: int, useful: int, end: int) -> bool:
    source = each.part.tensor.source
    if not (last.single and each.single) or source is not last.part.tensor.source:
        return False
    between = each.begin - end
    nbytes = length + between + each.runs.nbytes
    few = nbytes - useful - each.runs.nbytes <= nbytes // _WASTE
    return nbytes <= _PIECE and (few or (source.gap > Source.gap and between <= source.gap))


def _fill_batch(batch: list[_Located]) -> list[_Located]:
    if len(batch) == 1:
        _fill_one(batch[0])
        return batch
    begin = batch[0].begin
    end = max(each.begin + each.runs.nbytes for each in batch)
    data = batch[0].part.tensor.source.view(begin, end - begin)
    for each in batch:
        first = each.begin - begin
        _put(each.part.tensor, data[first : first + each.runs.nbytes], each.part.target)
    return batch


def _fill_one(located: _Located) -> None:
    tensor, target = located.part.tensor, located.part.target
    if _is_direct(tensor, target):
        out = host_bytes(tensor.name, target)
        if located.runs.run_count == 1:
            tensor.read_into(out, located.runs.offset)
        else:
            _gather(tensor, located.runs, out)
        note_change(target)
        return
    shape = packed_shape(tensor.dtype, tensor.shape)
    for starts, piece in blocks(target, _PIECE):
        at = [a + b for a, b in zip(located.part.offsets, starts, strict=True)]
        runs = box_runs(tensor.dtype, shape, at, piece.shape)
        data = allocate(runs.nbytes)
        _gather(tensor, runs, data)
        _put(tensor, data, piece)


def _gather(tensor: FileTensor, runs: Runs, out: memoryview) -> None:
    """Read runs of a tensor."""
    source = tensor.source
    if not runs.nbytes:
        return
    if source.in_memory and runs.length < _MAPPED:
        span = source.reading(tensor.data_start + tensor.info.begin + runs.offset, runs.span)
        in_parallel(span.fill, span.extent, chunk=span.step, threads=source.threads)
        gather_mapped(runs._replace(offset=0), span.data, out)
        return
    exact = source.gap <= Source.gap and runs.length >= _SHORT
    gather(runs, tensor.read_into, out, gap=runs.length // _WASTE if exact else source.gap)


def _is_direct(tensor: FileTensor, target: torch.Tensor) -> bool:
    return is_plain(target) and CODES.get(target.dtype) == tensor.dtype


def _put(tensor: FileTensor, data: memoryview, target: torch.Tensor) -> None:
    """Copy bytes into a target."""
    if not len(data):
        return
    if _is_direct(tensor, target):
        host_bytes(tensor.name, target)[:] = data
        note_change(target)
    else:
        shape = logical_shape(tensor.dtype, target.shape) if target.dim() else ()
        values = ADAPTER.decode(data, tensor.dtype, shape, None, name=tensor.name)
        target.copy_(values)
