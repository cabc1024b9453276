"""Loading into a module, or into the part of one that this rank has.

A module that FSDP, tensor parallelism or a pipeline divides says which elements this rank has
(`placements`); those, and no others, are read (`filling`). No rank talks to another.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ...errors import NoDataError, StateDictError, UnsupportedError, quote
from ..targets import opened
from .adapter import ADAPTER, CODES, has_memory, packed_shape
from .filling import Part, fill
from .models import Fillable, require_same, require_writable
from .placements import Region, local_of, mesh_of, regions_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ...checkpoint import Checkpoint, Tensor
    from ...derived.rearranging import Plan
    from ..handle import Target
    from ..loading import Progress

__all__ = ["LoadReport", "load_into", "load_sharded"]


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
    exclusive = _is_opened_here(filename)
    missing, unexpected = _load(target, stored, _Wishes(strict), exclusive=exclusive)
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
    wishes = _Wishes(strict, subset, dtype, device)
    return _load(module, stored, wishes, progress, exclusive=_is_opened_here(filename))


def _is_opened_here(filename: Target) -> bool:
    """Whether nothing else uses the memory of the checkpoint: it is not bytes, nor opened by the caller."""
    return isinstance(filename, (str, os.PathLike))


class _Wishes(NamedTuple):
    """Arguments of `load_sharded`."""

    strict: bool = True
    subset: bool = False
    dtype: torch.dtype | None = None
    device: Any = None


def _load(
    target: Fillable,
    stored: Checkpoint,
    wishes: _Wishes,
    progress: Progress | None = None,
    *,
    exclusive: bool,
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
    _fill(fillings.values(), progress, exclusive=exclusive)
    if isinstance(target, torch.nn.Module):
        with torch.no_grad():
            _assign(target, existing, sources, fillings)
    return report


def _fill(fillings: Iterable[_Filling], progress: Progress | None, *, exclusive: bool) -> None:
    parts = [(part, filling) for filling in fillings for part in filling.parts()]
    made = {id(part): filling for part, filling in parts if part.target.is_meta}

    def done(part: Part, values: torch.Tensor) -> None:
        if part.target.is_meta:
            made[id(part)].take(values)

    fill([part for part, _ in parts], done, progress, exclusive=exclusive)


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
        require_writable(name, target)
        require_writable(name, local_of(target))
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
    """Identity of a tensor -> what fills it, in the order of the files; each tensor is filled once."""
    found: dict[int, _Filling] = {}
    device = _device(wishes.device, existing)
    places = {name: place for place, name in enumerate(stored)}
    for name, source in sorted(sources.items(), key=lambda item: places[item[1]]):
        tensor = existing[name]
        if id(tensor) not in found:
            found[id(tensor)] = _Filling(name, tensor, stored[source], wishes.dtype, device)
    return found


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
        is_new: Whether the tensor has no memory yet.
    """

    def __init__(
        self,
        name: str,
        tensor: torch.Tensor,
        source: Tensor,
        dtype: torch.dtype | None,
        device: torch.device,
    ) -> None:
        self.name = name
        self._tensor = tensor
        self._source = source
        self._regions = regions_of(name, tensor)
        here = local_of(tensor)
        self.is_new = here.is_meta
        self._device = device
        self._local = here
        if not self.is_new:
            return
        kind = here.dtype if dtype is None or not here.dtype.is_floating_point else dtype
        # What was read can be the tensor, if it is one piece and of the right type.
        piece = len(self._regions) == 1 and self._regions[0].lengths == tuple(here.shape)
        if not piece or CODES.get(kind) != source.dtype:
            self._local = torch.empty(here.shape, dtype=kind, device=device)

    def parts(self) -> Iterable[Part]:
        for region in self._regions:
            yield Part(self._source, region.starts, _box_of(self._local, region), self._device)

    def take(self, values: torch.Tensor) -> None:
        """Take what was read to be the tensor."""
        self._local = values

    def made(self) -> torch.Tensor:
        """What takes the place of a tensor without memory."""
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
