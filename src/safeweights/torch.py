"""PyTorch tensors <-> safetensors; the names of `safetensors.torch`."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Any

from ._torch_private import (  # noqa: F401 - clients import them from here
    _SIZE,
    _TYPES,
    _end_ptr,
    _filter_shared_not_shared,
    _find_shared_tensors,
    _flatten,
    _flatten_as_ptr,
    _getdtype,
    _is_complete,
    _remove_duplicate_names,
    _to_ndarray,
    _tobytes,
    _view2torch,
    storage_ptr,
    storage_size,
)
from .frameworks import functions
from .frameworks.handle import safe_open
from .frameworks.torch import models as torch_models

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping

    import torch

__all__ = [
    "load",
    "load_file",
    "load_into",
    "load_model",
    "safe_open",
    "save",
    "save_file",
    "save_model",
]


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
    b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}   \x01\x02'
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
    trust: object = None,
    progress: Callable[[int], object] | None = None,
) -> dict[str, torch.Tensor]:
    """The tensors of a file, in the order of the data.

    With ``backend="mmap"`` tensors on the CPU share a private mapping, as in the reference: nothing is
    read until it is used, and writing to a tensor changes the tensor alone. But the file must not change as
    long as a tensor lives, and truncating it ends the process; `save_file` is safe, since it replaces a
    file by renaming. ``"pread"`` reads everything now.

    Args:
        filename: Path or readable file object.
        device: Anything `torch.device` takes; ``"meta"`` gives shapes and types without values.
        backend: How bytes are read.
        trust: What the file must fulfil before a byte of it is used; see `safe_open`.
        progress: Called with the number of bytes that were read so far; once, if the file is mapped.

    Raises:
        FormatError: The file breaks a rule of the format, or is of another format.
        UnsupportedError: This torch has no such element type.
        TrustError: The file is not what `trust` asks for.
        OSError: The file cannot be opened or read.
    """
    return functions.load_file(
        "pt", filename, device, backend=backend, trust=trust, progress=progress
    )


def save_model(
    model: torch.nn.Module,
    filename: str | os.PathLike[str] | IO[bytes],
    metadata: Mapping[str, str] | None = None,
    force_contiguous: bool = True,
) -> None:
    """Write a module's state; of tensors that share memory (tied weights) one, noting the others.

    For each name left out, the metadata gets an entry ``left out -> kept``, by which `load_into` finds
    their values again.

    Args:
        model: The module.
        filename: Where.
        metadata: Kept as it is, entries for tied weights are added to a copy.
        force_contiguous: Write the values of non-contiguous tensors instead of refusing them.

    Raises:
        SharedMemoryError: Tensors overlap and none of them holds all that they share.
        LayoutError: A non-contiguous tensor, with ``force_contiguous=False``.
    """
    torch_models.save_model(model, filename, metadata, force_contiguous=force_contiguous)


def load_model(
    model: torch.nn.Module,
    filename: str | os.PathLike[str] | IO[bytes],
    strict: bool = True,
    device: str | int | torch.device = "cpu",
    *,
    backend: str = "mmap",
    trust: object = None,
) -> tuple[set[str], list[str]]:
    """Load a file into a module whose weights may be tied.

    Args:
        model: The module.
        filename: Path or readable file object.
        strict: Names that only one side has are an error.
        device: Where the file's tensors go on their way.
        backend: How bytes are read.
        trust: What the file must fulfil before a byte of it is used; see `safe_open`.

    Returns:
        Names of the module that the file did not provide, and names of the file that the module
        does not have.

    Raises:
        StateDictError: There are such names and `strict` is set; a RuntimeError.
        TrustError: The file is not what `trust` asks for.
    """
    return torch_models.load_model(
        model, filename, strict=strict, device=device, backend=backend, trust=trust
    )


def load_into(
    target: torch.nn.Module | Mapping[str, torch.Tensor],
    filename: str | os.PathLike[str] | IO[bytes],
    *,
    strict: bool = True,
    backend: str = "pread",
    trust: object = None,
) -> tuple[set[str], list[str]]:
    """Fill tensors that exist already with the values of a checkpoint, without a second copy in memory.

    Contiguous tensors on the CPU of the file's type are read into directly; others are converted to
    their own type and moved to their own device one at a time. Tensors of a module that are on the meta
    device are replaced by ones with values; parameters that were one stay one. A name that a file
    notes as tied to another (`save_model`) gets the other's values.

    Args:
        target: A module, or names to tensors.
        filename: A file, an ``index.json``, a folder, or a readable file object.
        strict: Names that only one side has are an error.
        backend: How bytes are read.
        trust: What the file must fulfil before a byte of it is used; see `safe_open`.

    Returns:
        Names of `target` that were not filled, and names of the file that were not used.

    Raises:
        StateDictError: Names or shapes differ; nothing was changed then.
        NoDataError: A meta tensor that is not part of a module.
        FormatError: The file breaks a rule of the format.
        TrustError: The file is not what `trust` asks for; some tensors may have been filled.
        OSError: It cannot be opened or read; some tensors may have been filled.
    """
    return torch_models.load_into(target, filename, strict=strict, backend=backend, trust=trust)
