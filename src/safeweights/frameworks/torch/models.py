"""Torch modules and files: tied weights, strictness, filling tensors that exist already."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import IO, TYPE_CHECKING, Any

import torch

from ...errors import LayoutError, NoDataError, StateDictError, UnsupportedError, quote
from ...text import wrapper_prefix, wrapper_sentence
from .. import functions
from ..targets import opened
from .adapter import ADAPTER, CODES, PLAIN, has_memory, host_bytes, packed_shape
from .sharing import duplicates

if TYPE_CHECKING:
    import os

    from ...checkpoint import Checkpoint, Tensor
    from ..handle import Target as Named

__all__ = ["is_plain", "load_into", "load_model", "note_change", "save_model"]

Target = torch.nn.Module | Mapping[str, torch.Tensor]


def save_model(
    model: torch.nn.Module,
    filename: str | os.PathLike[str] | IO[bytes],
    metadata: Mapping[str, str] | None = None,
    *,
    force_contiguous: bool = True,
) -> None:
    """See `safeweights.torch.save_model`."""
    state = dict(model.state_dict())
    noted = None if metadata is None else dict(metadata)
    for kept, left_out in duplicates(state).items():
        noted = {} if noted is None else noted
        for name in left_out:
            noted.setdefault(name, kept)
            del state[name]
    if force_contiguous:
        state = {
            name: tensor.contiguous() if isinstance(tensor, torch.Tensor) else tensor
            for name, tensor in state.items()
        }
    try:
        functions.save_file("pt", state, filename, noted)
    except LayoutError as error:
        if error.tensor in state and isinstance(state[error.tensor], torch.Tensor):
            error.message += (
                " Or use save_model(..., force_contiguous=True), read the docs for potential "
                "caveats."
            )
        elif error.tensor is not None and error.tensor.endswith("_extra_state"):
            words, _, _ = error.message.rpartition(": ")
            error.message = (
                f"{words}: what a module's `get_extra_state` returns can be saved if it is a tensor; "
                "encode it as one, or save `model.state_dict()` without it"
            )
        raise


def load_model(
    model: torch.nn.Module,
    filename: Named,
    *,
    strict: bool = True,
    device: Any = "cpu",
    backend: str = "mmap",
    trust: object = None,
    identity: Any = None,
) -> tuple[set[str], list[str]]:
    """See `safeweights.torch.load_model`."""
    state = functions.load_file(
        "pt", filename, device, backend=backend, trust=trust, identity=identity
    )
    left_out = duplicates(model.state_dict(), preferred=state)
    result = model.load_state_dict(state, strict=False)
    missing, unexpected = set(result.missing_keys), list(result.unexpected_keys)
    for name in (name for names in left_out.values() for name in names):
        if name in missing:
            missing.remove(name)
        else:
            unexpected.append(name)
    if strict:
        _require_same(model, missing, unexpected)
    return missing, unexpected


def _require_same(target: Target, missing: Iterable[str], unexpected: Iterable[str]) -> None:
    lines = [f"Error(s) in loading state_dict for {type(target).__name__}:"]
    for what, names in (("Missing", sorted(missing)), ("Unexpected", sorted(unexpected))):
        if names:
            listed = ", ".join(f'"{name}"' for name in names)
            lines.append(f"    {what} key(s) in state_dict: {listed}")
    prefix = wrapper_prefix(unexpected)
    if prefix and {name.removeprefix(prefix) for name in unexpected} == set(missing):
        lines.append(
            f"    In the file {wrapper_sentence(prefix)}: load safeweights.open(path).rename(lambda name: "
            f"name.removeprefix({prefix!r}))"
        )
    if len(lines) > 1:
        raise StateDictError("\n".join(lines))


def load_into(
    target: Target,
    filename: Named,
    *,
    strict: bool = True,
    backend: str = "pread",
    trust: object = None,
    identity: Any = None,
) -> tuple[set[str], list[str]]:
    """See `safeweights.torch.load_into`."""
    stored = opened(filename, backend, trust, identity)
    module = target if isinstance(target, torch.nn.Module) else None
    # keep_vars: the parameters themselves, so that tied ones are recognised as one.
    existing = dict(module.state_dict(keep_vars=True) if module is not None else target)  # type: ignore[arg-type]
    sources = _sources(existing, stored)
    missing = existing.keys() - sources.keys()
    used = set(sources.values())
    unexpected = [name for name in stored if name not in used]
    if strict:
        _require_same(target, missing, unexpected)
    _require_fitting(existing, sources, stored)
    with torch.no_grad():
        created: dict[int, Any] = {}
        state = {
            name: _filled(module, name, existing[name], stored[source], created)
            for name, source in sources.items()
        }
        if module is not None and created:
            # In one go, and with those that stay: a module's hooks may look at several.
            module.load_state_dict(state, strict=False, assign=True)
    return missing, unexpected


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
        meta = tensor.device.type == "meta" or not tensor.numel()
        memory = id(tensor) if meta else (tensor.data_ptr(), tensor.shape, tensor.stride())
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


def _filled(
    module: torch.nn.Module | None,
    name: str,
    tensor: torch.Tensor,
    source: Tensor,
    created: dict[int, Any],
) -> Any:
    """`tensor` with the values of `source`; for a meta tensor of a module one that takes its place."""
    if tensor.device.type == "meta":
        if module is None:
            raise NoDataError(
                f"{quote(name)} is on the meta device and cannot be filled", tensor=name
            )
        if id(tensor) not in created:
            created[id(tensor)] = _materialised(tensor, _decode(source))
        return created[id(tensor)]
    if is_plain(tensor) and CODES.get(tensor.dtype) == source.dtype:
        source.read_into(host_bytes(name, tensor))
        note_change(tensor)
    else:
        tensor.copy_(_decode(source))
    return tensor


def note_change(tensor: torch.Tensor) -> None:
    """Tell autograd, which refuses to go back through values that changed; torch's own writes do."""
    if not tensor.is_inference() and hasattr(torch.autograd.graph, "increment_version"):
        torch.autograd.graph.increment_version(tensor)


def _is_strided(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.layout == torch.strided


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether the bytes of a tensor in memory are its values in order; of no subclass is that known."""
    return (
        type(tensor) in PLAIN
        and tensor.device.type == "cpu"
        and tensor.layout == torch.strided
        and tensor.is_contiguous()
        and not tensor.is_conj()
        and not tensor.is_neg()
    )


def _decode(source: Tensor) -> torch.Tensor:
    decoded: torch.Tensor = ADAPTER.decode(
        source.view(), source.dtype, source.shape, None, name=source.name
    )
    return decoded


def _materialised(tensor: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    if isinstance(tensor, torch.nn.Parameter):
        return torch.nn.Parameter(values.to(tensor.dtype), requires_grad=tensor.requires_grad)
    return values.to(tensor.dtype)
