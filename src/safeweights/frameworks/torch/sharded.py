"""Filling tensors that exist: of a module, or of the part of one that this rank has.

A module that FSDP, tensor parallelism or a pipeline divides says which elements this rank has
(`placements`); those, and no others, are read. All reads of a checkpoint, of however many files, are one
plan in the order of the files. Each goes straight into the memory of its tensor where that has the same
type, and otherwise through memory that is bounded. No rank talks to another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch

from ...checkpoint import Checkpoint, FileTensor
from ...errors import LayoutError, NoDataError, StateDictError, UnsupportedError, quote
from ...format import indexing
from ...format.dtypes import DTYPES
from ...storage import Source, allocate, gather
from ...storage.gathering import lie_apart
from ...storage.parallel import CHUNK
from ..loading import LoadJob, Pipeline, Progress, landing_of, reader_count
from ..plans import Batch, Scattered, batches
from ..targets import opened
from .adapter import ADAPTER, CODES, PLAIN, has_memory, host_bytes, packed_shape
from .models import Fillable, is_plain, note_change, require_same
from .placements import Region, local_of, mesh_of, regions_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ...checkpoint import Tensor
    from ...derived.rearranging import Plan
    from ..handle import Target
    from ..plans import Landing, Transfer

__all__ = ["LoadReport", "load_into", "load_sharded"]

_ARENA: Final = 1 << 22
"""Bytes of neighbours that are read together, and then copied to their places."""

_WASTE: Final = 20
_SHORT: Final = 512
"""See `_Columns`."""

_AHEAD: Final = 1 << 28
"""Bytes that may be read, or be on their way, before they are in their places."""


class LoadReport(NamedTuple):
    """What `load_sharded` did not fill, or did not use; as `torch.nn.Module.load_state_dict` reports it.

    Attributes:
        missing_keys: Names that only the module has.
        unexpected_keys: Names that only the checkpoint has.
    """

    missing_keys: list[str]
    unexpected_keys: list[str]


def load_into(
    target: Fillable,
    filename: Target,
    *,
    strict: bool = True,
    backend: str = "pread",
    trust: object = None,
    identity: Any = None,
) -> tuple[set[str], list[str]]:
    """See `safeweights.torch.load_into`."""
    stored = opened(filename, backend, trust, identity)
    missing, unexpected = _load(target, stored, _Wishes(strict))
    return set(missing), unexpected


def load_sharded(
    module: torch.nn.Module,
    filename: Target,
    *,
    strict: bool = True,
    subset: bool = False,
    dtype: torch.dtype | None = None,
    device: Any = None,
    plan: Plan | None = None,
    backend: str = "pread",
    trust: object = None,
    identity: Any = None,
    progress: Progress | None = None,
) -> LoadReport:
    """See `safeweights.torch.load_sharded`."""
    stored = opened(filename, backend, trust, identity)
    if plan is not None:
        stored = stored.rearrange(plan)
    return _load(module, stored, _Wishes(strict, subset, dtype, device), progress)


class _Wishes(NamedTuple):
    """Arguments of `load_sharded`."""

    strict: bool = True
    subset: bool = False
    dtype: torch.dtype | None = None
    device: Any = None


def _load(
    target: Fillable, stored: Checkpoint, wishes: _Wishes, progress: Progress | None = None
) -> LoadReport:
    existing = _existing(target)
    sources = _sources(existing, stored)
    used = set(sources.values())
    report = LoadReport(
        [name for name in existing if name not in sources],
        [name for name in stored if name not in used],
    )
    if wishes.strict:
        require_same(target, report.missing_keys, [] if wishes.subset else report.unexpected_keys)
    _require_fitting(existing, sources, stored)
    fillings = _fillings(existing, sources, stored, wishes)
    if not isinstance(target, torch.nn.Module):
        _require_memory(fillings.values())
    reads = [read for filling in fillings.values() for read in filling.reads()]
    with torch.no_grad():
        _read_all(reads, progress)
        for filling in fillings.values():
            filling.finish()
        if isinstance(target, torch.nn.Module):
            _assign(target, existing, sources, fillings)
    return report


def _existing(target: Fillable) -> dict[str, torch.Tensor]:
    """Name -> tensor to be filled: of a module the parameters themselves, so that tied ones are one."""
    if isinstance(target, torch.nn.Module):
        return dict(target.state_dict(keep_vars=True))
    return dict(target)


def _sources(existing: Mapping[str, torch.Tensor], stored: Checkpoint) -> dict[str, str]:
    """Tensor to fill -> tensor stored: its own, or the one it is noted as tied to, or shares with."""
    noted = stored.metadata or {}
    sources = {}
    for name in existing:
        found = name if name in stored else noted.get(name)
        if found is not None and found in stored:
            sources[name] = found
    for first, *others in _tied(existing):
        known = next((sources[name] for name in (first, *others) if name in sources), None)
        if known is not None:
            sources.update({name: known for name in (first, *others) if name not in stored})
    return sources


def _tied(existing: Mapping[str, torch.Tensor]) -> Iterable[list[str]]:
    """Names of one and the same tensor."""
    groups: dict[Any, list[str]] = {}
    for name, tensor in existing.items():
        if not _is_strided(tensor):
            continue
        meta = tensor.device.type == "meta" or not local_of(tensor).numel()
        local = local_of(tensor)
        memory = id(tensor) if meta else (local.data_ptr(), local.shape, local.stride())
        groups.setdefault((tensor.device, tensor.dtype, memory), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def _require_fitting(
    existing: Mapping[str, torch.Tensor], sources: Mapping[str, str], stored: Checkpoint
) -> None:
    """Before anything is changed: each of them can be filled, and every shape fits."""
    wrong = []
    for name, source in sources.items():
        tensor, target = stored[source], existing[name]
        found = packed_shape(tensor.dtype, tensor.shape)
        if not _is_strided(target):
            layout = getattr(target, "layout", "no tensor")
            raise UnsupportedError(
                f"{quote(name)} to be filled is a {type(target).__name__} ({layout}), not a dense tensor"
            )
        if any(
            step == 0 < size - 1 for size, step in zip(target.shape, target.stride(), strict=True)
        ):
            raise LayoutError(
                f"{quote(name)} to be filled has one element in several places (`expand`): clone it",
                tensor=name,
            )
        if not has_memory(target):
            raise NoDataError(f"the memory of {quote(name)} to be filled was freed", tensor=name)
        if tuple(target.shape) != found:
            wrong.append(f"{quote(name)} is {list(target.shape)}, the file has {list(found)}")
    if wrong:
        more = f" and {len(wrong) - 10} more" if len(wrong) > 10 else ""
        raise StateDictError(f"size mismatch: {'; '.join(wrong[:10])}{more}", path=stored.name)


def _require_memory(fillings: Iterable[_Filling]) -> None:
    for filling in fillings:
        if filling.is_new:
            raise NoDataError(
                f"{quote(filling.name)} is on the meta device and cannot be filled",
                tensor=filling.name,
            )


def _device(device: Any, existing: Mapping[str, torch.Tensor]) -> torch.device:
    """Where tensors without memory are made: where the caller says, or their mesh is, or the host."""
    if device is not None:
        found = ADAPTER.check_device(device) or torch.device("cpu")
    else:
        meshes = {mesh.device_type for mesh in map(mesh_of, existing.values()) if mesh is not None}
        found = torch.device(meshes.pop() if len(meshes) == 1 else "cpu")
    return torch.empty(0, device=found).device  # with its number


def _fillings(
    existing: Mapping[str, torch.Tensor],
    sources: Mapping[str, str],
    stored: Checkpoint,
    wishes: _Wishes,
) -> dict[int, _Filling]:
    """Identity of a tensor -> what fills it; one that has several names is filled once."""
    found: dict[int, _Filling] = {}
    device = _device(wishes.device, existing)
    places = {name: place for place, name in enumerate(stored)}
    for name, source in sources.items():
        tensor = existing[name]
        if id(tensor) not in found:
            found[id(tensor)] = _Filling(name, tensor, stored[source], wishes.dtype, device)
            found[id(tensor)].place = places[source]
    return found


class _Read(NamedTuple):
    """One box of a stored tensor, and where it goes.

    Attributes:
        filling: The tensor that it is a part of.
        region: The box.
        tensor: The stored tensor.
        expression: Which part of it; None for all.
    """

    filling: _Filling
    region: Region
    tensor: Tensor
    expression: tuple[slice, ...] | None


class _Filling:
    """A tensor of the module that gets the values of a stored one, as far as this rank has them.

    Args:
        name: Its name.
        tensor: A tensor of the module.
        source: The stored tensor.
        dtype: Type of a floating-point tensor that has no memory yet; None for its own.
        device: Where memory is made for it.

    Attributes:
        name: Its name.
        place: Of the stored tensor, in the order of the files.
        is_new: Whether the tensor has no memory yet.
        device: Where its memory is, or will be.
    """

    def __init__(
        self,
        name: str,
        tensor: torch.Tensor,
        source: Tensor,
        dtype: torch.dtype | None,
        device: torch.device,
    ) -> None:
        self.place = 0
        self.name = name
        self._tensor = tensor
        self._source = source
        self._regions = regions_of(name, tensor)
        here = local_of(tensor)
        self.is_new = here.device.type == "meta"
        self.device = device if self.is_new else here.device
        self._shape = here.shape
        self._dtype = here.dtype
        if dtype is not None and self.is_new and here.dtype.is_floating_point:
            self._dtype = dtype
        self._local: torch.Tensor | None = None if self.is_new else here
        if self.is_new and len(self._regions) != 1:
            self._local = self._empty()  # now: its parts arrive in several threads

    def reads(self) -> Iterable[_Read]:
        packed = DTYPES[self._source.dtype].packed
        for region in self._regions:
            whole = region.lengths == tuple(self._tensor.shape)
            yield _Read(self, region, self._source, None if whole else _expression(region, packed))

    def memory(self, region: Region) -> memoryview | None:
        """The bytes of a box, where values can be read into them as they are; else None."""
        local = self._local
        if (
            local is None
            or type(local) not in PLAIN
            or CODES.get(self._dtype) != self._source.dtype
        ):
            return None
        view = _box_of(local, region).detach()
        if not is_plain(view):
            return None
        return host_bytes(self.name, view)

    def put(self, region: Region, values: torch.Tensor, *, owned: bool) -> None:
        """Take values that have arrived; `owned`: nothing else shares their memory."""
        if self._local is None:
            if owned and values.dtype == self._dtype and region.lengths == tuple(self._shape):
                self._local = values
                return
            self._local = self._empty()
        _box_of(self._local, region).copy_(values)

    def _empty(self) -> torch.Tensor:
        return torch.empty(self._shape, dtype=self._dtype, device=self.device)

    def finish(self) -> None:
        """All values are in their places."""
        if not self.is_new and self._local is not None:
            note_change(self._local)

    def made(self) -> torch.Tensor:
        """What takes the place of a tensor without memory."""
        assert self._local is not None
        values = self._local
        if mesh_of(self._tensor) is not None:
            from torch.distributed.tensor import DTensor

            old: Any = self._tensor
            values = DTensor.from_local(
                values, old.device_mesh, old.placements, run_check=False,
                shape=old.shape, stride=old.stride(),
            )  # fmt: skip
        if isinstance(self._tensor, torch.nn.Parameter):
            values = torch.nn.Parameter(values, requires_grad=self._tensor.requires_grad)
        return values


def _is_strided(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.layout == torch.strided


def _box_of(tensor: torch.Tensor, region: Region) -> torch.Tensor:
    for axis, (place, length) in enumerate(zip(region.places, region.lengths, strict=True)):
        if length != tensor.shape[axis]:
            tensor = tensor.narrow(axis, place, length)
    return tensor


def _expression(region: Region, packed: int) -> tuple[slice, ...]:
    """The index expression of a box; `packed` stored elements along the last axis are one of torch."""
    *outer, (begin, length) = zip(region.starts, region.lengths, strict=True)
    return (
        *(slice(start, start + count) for start, count in outer),
        slice(begin * packed, (begin + length) * packed),
    )


def _assign(
    module: torch.nn.Module,
    existing: Mapping[str, torch.Tensor],
    sources: Mapping[str, str],
    fillings: Mapping[int, _Filling],
) -> None:
    """Put what was made into the module, in one go, and with what stays: hooks may look at several."""
    if not any(filling.is_new for filling in fillings.values()):
        return
    made = {key: filling.made() for key, filling in fillings.items() if filling.is_new}
    state = {name: made.get(id(existing[name]), existing[name]) for name in sources}
    module.load_state_dict(state, strict=False, assign=True)


# ---- reading


def _read_all(reads: Sequence[_Read], progress: Progress | None) -> None:
    """Read everything, device by device, each in the order of the files."""
    done = 0
    for device in dict.fromkeys(read.filling.device for read in reads):
        here = [read for read in reads if read.filling.device == device]
        here.sort(key=lambda read: read.filling.place)
        told = None if progress is None else _shifted(progress, done)
        done += _read_onto(device, here, told)


def _shifted(progress: Progress, before: int) -> Progress:
    return lambda done: progress(before + done)


def _read_onto(device: torch.device, reads: Sequence[_Read], progress: Progress | None) -> int:
    """Read what goes onto one device; how many bytes that is."""
    numbered = {str(number): read for number, read in enumerate(reads)}
    parts = Checkpoint({key: read.tensor for key, read in numbered.items()})
    onto = ADAPTER.check_device(device)
    landing = _Landing(landing_of(ADAPTER, onto), numbered, onto)
    plan = {key: read.expression for key, read in numbered.items()}
    found = batches(parts, plan, landing.arena)
    ADAPTER.require(item for batch in found for item in batch.tensors)
    jobs = [LoadJob(batch) for batch in found]

    def finished(job: LoadJob) -> None:
        assert job.transfer is not None
        # Of a mapped file, each is a view of the mapping; else neighbours share memory.
        batch = job.batch
        owned = len(batch.tensors) == 1 or (isinstance(batch, Batch) and batch.source.in_memory)
        for key, values in job.transfer.tensors().items():
            read = numbered[key]
            read.filling.put(read.region, values, owned=owned)
        job.transfer = None

    Pipeline(jobs, landing.begin, ahead=_AHEAD).run(
        reader_count(jobs, landing), progress, finished=finished
    )
    return sum(batch.nbytes for batch in found)


class _Landing:
    """Where batches go: into the tensors themselves, where that is possible, or to `landing`."""

    def __init__(
        self, landing: Landing, reads: Mapping[str, _Read], device: torch.device | None
    ) -> None:
        self._landing = landing
        self._device = device
        self._reads = reads
        self.arena = min(landing.arena, _ARENA)
        self.threads = landing.threads
        self.in_place = False

    def begin(self, batch: Batch | Scattered) -> Transfer:
        if isinstance(batch, Batch) and len(batch.tensors) == 1 and not batch.source.in_memory:
            read = self._reads[batch.tensors[0][0]]
            memory = read.filling.memory(read.region)
            if memory is not None:
                return _Straight(batch, memory)
        if isinstance(batch, Scattered) and isinstance(batch.tensor, FileTensor):
            read = self._reads[batch.tensors[0][0]]
            if not batch.tensor.in_memory:
                return _Columns(batch, batch.tensor, read.filling.memory(read.region), self._device)
        return self._landing.begin(batch)


class _Columns:
    """A part that is many runs of a file on its way, into the memory of its tensor if that is given.

    Of what is read, a twentieth at most was not asked for; but runs of less than 512 bytes are read with
    what lies between them, and sources that read in blocks say themselves how far apart pieces may be.
    """

    extent = step = 1

    def __init__(
        self,
        part: Scattered,
        tensor: FileTensor,
        memory: memoryview | None,
        device: torch.device | None,
    ) -> None:
        self._part, self._tensor, self._device = part, tensor, device
        self._memory = memory
        self._data = memory

    def fill(self, begin: int, end: int) -> None:
        del begin, end  # all of it
        tensor, source = self._tensor, self._tensor.source
        selection = indexing.select(self._part.expression, tensor.shape)
        runs = indexing.runs(selection, tensor.shape, tensor.dtype)
        if self._data is None:
            self._data = allocate(runs.nbytes)
        exact = source.gap <= Source.gap and runs.length >= _SHORT
        if exact and not lie_apart(runs, source.gap):
            gather(runs, tensor.read_into, self._data, gap=runs.length // _WASTE)
        else:
            start = tensor.data_start + tensor.info.begin
            source.read_runs(runs._replace(offset=start + runs.offset), self._data)

    def tensors(self) -> dict[str, Any]:
        if self._memory is not None:
            return {}  # they are where they belong
        assert self._data is not None
        return ADAPTER.decode_all(self._data, 0, self._part.tensors, self._device)


class _Straight:
    """A batch on its way into the memory of its only tensor."""

    def __init__(self, batch: Batch, memory: memoryview) -> None:
        self._source, self._offset = batch.source, batch.data_start + batch.begin
        self._memory = memory
        self.extent, self.step = batch.nbytes, CHUNK

    def fill(self, begin: int, end: int) -> None:
        self._source.read_into(self._offset + begin, self._memory[begin:end])

    def tensors(self) -> dict[str, Any]:
        return {}  # they are where they belong
