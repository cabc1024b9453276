"""Torch modules and files: tied weights, strictness."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import IO, TYPE_CHECKING, Any

import torch

from ...errors import LayoutError, StateDictError, UnsupportedError, quote
from ...text import wrapper_prefix, wrapper_sentence
from .. import functions
from .adapter import PLAIN
from .sharing import duplicates

if TYPE_CHECKING:
    import os

    from ..handle import Target as Named

__all__ = [
    "Fillable",
    "is_plain",
    "load_model",
    "note_change",
    "require_same",
    "require_writable",
    "save_model",
]

Fillable = torch.nn.Module | Mapping[str, torch.Tensor]
"""A module, or name -> tensor."""


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
        require_same(model, missing, unexpected)
    return missing, unexpected


def require_same(target: Fillable, missing: Iterable[str], unexpected: Iterable[str]) -> None:
    """Raise a StateDictError in the words of torch if there are such names."""
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


def require_writable(name: str, target: torch.Tensor) -> None:
    """Check that torch lets the elements of a tensor be filled one by one.

    Raises:
        LayoutError: One element is in several places.
        UnsupportedError: It is an inference tensor, which torch changes only in inference mode.
    """
    if any(step == 0 < size - 1 for size, step in zip(target.shape, target.stride(), strict=True)):
        raise LayoutError(
            f"{quote(name)} to be filled has one element in several places (`expand`): clone it",
            tensor=name,
        )
    made = target.is_meta  # another tensor takes its place
    if target.is_inference() and not made and not torch.is_inference_mode_enabled():
        raise UnsupportedError(
            f"{quote(name)} to be filled is an inference tensor, which torch does not change outside of "
            "`torch.inference_mode()`: load it there, or make it outside",
            tensor=name,
        )


def note_change(tensor: torch.Tensor) -> None:
    """Tell autograd, which refuses to go back through values that changed; torch's own writes do."""
    if not tensor.is_inference() and hasattr(torch.autograd.graph, "increment_version"):
        torch.autograd.graph.increment_version(tensor)


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
