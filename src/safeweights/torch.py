"""PyTorch tensors <-> safetensors; the names of `safetensors.torch`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import IO, Any

import torch

from .errors import SafetensorError, SharedMemoryError
from .frameworks import functions
from .frameworks.handle import safe_open
from .frameworks.torch import find_shared_tensors as _find_shared_tensors

__all__ = ["load", "load_file", "load_model", "safe_open", "save", "save_file", "save_model"]


def save(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    r"""The contents of a file that holds `tensors`.

    Args:
        tensors: Names to dense, contiguous tensors on any device that share no memory.
        metadata: Strings to strings, kept with the tensors.

    Raises:
        LayoutError: A sparse or non-contiguous tensor, or something that is no tensor.
        SharedMemoryError: Two tensors share memory: see `save_model`.
        UnsupportedError: An element type that the format does not have.
        FormatError: A name or shape that the format cannot hold.

    >>> save({"a": torch.tensor([1, 2], dtype=torch.uint8)})[8:]
    b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}   \\x01\\x02'
    """
    return functions.save("pt", tensors, metadata)


def save_file(
    tensors: Mapping[str, torch.Tensor],
    filename: str | os.PathLike[str] | IO[bytes],
    metadata: Mapping[str, str] | None = None,
    *,
    durable: bool = False,
    progress: Callable[[int], object] | None = None,
) -> None:
    """Write `tensors` to a file, which is replaced as a whole or not at all.

    Args:
        tensors: As for `save`. They must not change meanwhile.
        filename: Path or writable file object.
        metadata: As for `save`.
        durable: Return only when the file would survive a loss of power.
        progress: Called with the number of bytes written so far.

    Raises:
        LayoutError, SharedMemoryError, UnsupportedError, FormatError: As for `save`; nothing is
            written then.
        OSError: Writing failed; the old file is untouched.
    """
    functions.save_file("pt", tensors, filename, metadata, durable=durable, progress=progress)


def load(data: Any, device: str | int | torch.device = "cpu") -> dict[str, torch.Tensor]:
    """The tensors of a file whose contents are `data`, any bytes-like object; one copy.

    Raises:
        FormatError: The bytes break a rule of the format.

    >>> load(save({"a": torch.zeros(2, 2)}))["a"].shape
    torch.Size([2, 2])
    """
    return functions.load("pt", data, device)


def load_file(
    filename: str | os.PathLike[str] | IO[bytes],
    device: str | int | torch.device = "cpu",
    *,
    backend: str = "mmap",
) -> dict[str, torch.Tensor]:
    """The tensors of a file, in the order of the data.

    With ``backend="mmap"`` tensors on the CPU share a private mapping: nothing is read until it is
    used, and writing to a tensor changes the tensor alone. ``"pread"`` reads everything now.

    Args:
        filename: Path or readable file object.
        device: Anything `torch.device` takes; ``"meta"`` gives shapes and types without values.
        backend: How bytes are read.

    Raises:
        FormatError: The file breaks a rule of the format, or is of another format.
        UnsupportedError: This torch has no such element type.
        OSError: The file cannot be opened or read.
    """
    return functions.load_file("pt", filename, device, backend=backend)


def save_model(
    model: torch.nn.Module,
    filename: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
    force_contiguous: bool = True,
) -> None:
    """Write a module's state; of tensors that share memory (tied weights) one, noting the others.

    For each name left out, the metadata gets an entry ``left out -> kept``, by which `load_model` and
    readers can tie them again.

    Args:
        model: The module.
        filename: Where.
        metadata: Kept as it is, entries for tied weights are added to a copy.
        force_contiguous: Write the values of non-contiguous tensors instead of refusing them.

    Raises:
        SharedMemoryError: Tensors overlap and none of them holds all that they share.
        LayoutError: A non-contiguous tensor, with ``force_contiguous=False``.
    """
    state = dict(model.state_dict())
    noted = None if metadata is None else dict(metadata)
    for kept, dropped in _remove_duplicate_names(state).items():
        for name in dropped:
            noted = {} if noted is None else noted
            noted.setdefault(name, kept)
            del state[name]
    if force_contiguous:
        state = {name: tensor.contiguous() for name, tensor in state.items()}
    try:
        save_file(state, filename, metadata=noted)
    except ValueError as error:
        if isinstance(error, SafetensorError):
            error.message += " Or use save_model(..., force_contiguous=True), read the docs for potential caveats."
        raise


def load_model(
    model: torch.nn.Module,
    filename: str | os.PathLike[str],
    strict: bool = True,
    device: str | int | torch.device = "cpu",
    *,
    backend: str = "mmap",
) -> tuple[set[str], list[str]]:
    """Load a file into a module whose weights may be tied.

    Returns:
        Names of the module that the file did not provide, and names of the file that the module
        does not have.

    Raises:
        RuntimeError: There are such names and `strict` is set.
    """
    state = load_file(filename, device=device, backend=backend)
    duplicates = _remove_duplicate_names(model.state_dict(), preferred_names=state)
    result = model.load_state_dict(state, strict=False)
    missing, unexpected = set(result.missing_keys), list(result.unexpected_keys)
    for name in (name for group in duplicates.values() for name in group):
        if name in missing:
            missing.remove(name)
        else:
            unexpected.append(name)
    if strict and (missing or unexpected):
        lines = [f"Error(s) in loading state_dict for {type(model).__name__}:"]
        for what, names in (("Missing", missing), ("Unexpected", unexpected)):
            if names:
                listed = ", ".join(f'"{name}"' for name in sorted(names))
                lines.append(f"    {what} key(s) in state_dict: {listed}")
        raise RuntimeError("\n".join(lines))
    return missing, unexpected


def _is_complete(tensor: torch.Tensor) -> bool:
    storage = tensor.untyped_storage()
    size = tensor.numel() * tensor.element_size()
    return tensor.data_ptr() == storage.data_ptr() and size == storage.nbytes()


def _remove_duplicate_names(
    state_dict: Mapping[str, torch.Tensor],
    *,
    preferred_names: Iterable[str] | None = None,
    discard_names: Iterable[str] | None = None,
) -> dict[str, list[str]]:
    """Which names to drop so that no two tensors share memory: kept -> dropped."""
    preferred, discarded = set(preferred_names or ()), set(discard_names or ())
    dropped: dict[str, list[str]] = {}
    for names in _find_shared_tensors(state_dict):
        if len(names) == 1:
            continue
        complete = {name for name in names if _is_complete(state_dict[name])}
        if not complete:
            raise SharedMemoryError(
                "Error while trying to find names to remove to save state dict, but found no suitable "
                f"name to keep for saving amongst: {names}. None is covering the entire storage. "
                "Refusing to save/load the model since you could be storing much more memory than "
                "needed: save the tensor that the others are views of, or clone them."
            )
        best = (complete & preferred) or (complete - discarded) or complete
        kept = min(best)
        dropped[kept] = sorted(names - {kept})
    return dropped
