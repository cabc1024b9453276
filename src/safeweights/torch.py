"""PyTorch tensors <-> safetensors, with the interface of `safetensors.torch`."""

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
from .frameworks.torch import sharded
from .frameworks.torch.sharded import LoadReport

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping

    import torch

    from .checkpoint import Tensor as Unread
    from .derived.rearranging import Plan
    from .frameworks.handle import Target

__all__ = [
    "LoadReport",
    "load",
    "load_file",
    "load_into",
    "load_model",
    "load_sharded",
    "safe_open",
    "save",
    "save_file",
    "save_model",
]


def save(
    tensors: Mapping[str, torch.Tensor | Unread], metadata: Mapping[str, str] | None = None
) -> bytes:
    r"""Serialize tensors to the bytes of a safetensors file.

    Args:
        tensors: Name -> dense, contiguous tensor on any device. Tensors must not share memory.
            Unread tensors and a
            `safeweights.Checkpoint` are also accepted.
        metadata: Strings to strings, stored in the header.

    Raises:
        LayoutError: A value is sparse, not contiguous, or not a tensor.
        SharedMemoryError: Tensors share memory; `save_model` can save them.
        UnsupportedError: A tensor has an element type that the format lacks.
        FormatError: The format cannot hold a name, a shape or the metadata.

    >>> import torch
    >>> import torch
    >>> save({"a": torch.tensor([1, 2], dtype=torch.uint8)})[8:]
    b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}   \x01\x02'
    """
    return functions.save("pt", tensors, metadata)


def save_file(
    tensors: Mapping[str, torch.Tensor | Unread],
    filename: str | os.PathLike[str] | IO[bytes],
    metadata: Mapping[str, str] | None = None,
    *,
    max_shard_size: int | str | None = None,
    durable: bool = False,
    progress: Callable[[int], object] | None = None,
) -> None:
    """Write `tensors` to a file. An existing file is replaced atomically.

    Args:
        tensors: As for `save`. They must not change during the call.
        filename: Path or writable file object; a folder if `max_shard_size` is given.
        metadata: As for `save`.
        max_shard_size: Write shards and an index into the folder `filename`, each shard with at most
            this many bytes of tensors: a number, or a string such as ``"5GB"``. Replaces an earlier save
            in that folder.
        durable: Also sync the file and its directory (fsync), so that it survives a power failure.
        progress: Called with the number of bytes written so far.

    Raises:
        LayoutError, SharedMemoryError, UnsupportedError, FormatError: As for `save`; no file is written.
        OSError: Writing failed; an existing file is unchanged.
    """
    functions.save_file(
        "pt", tensors, filename, metadata,
        max_shard_size=max_shard_size, durable=durable, progress=progress,
    )  # fmt: skip


def load(data: Any, device: str | int | torch.device = "cpu") -> dict[str, torch.Tensor]:
    """Load all tensors from the bytes of a file. Cost: one copy of `data`, any bytes-like object.

    Raises:
        FormatError: The bytes break a rule of the format.

    >>> import torch
    >>> import torch
    >>> load(save({"a": torch.zeros(2, 2)}))["a"].shape
    torch.Size([2, 2])
    """
    return functions.load("pt", data, device)


def load_file(
    filename: Target,
    device: str | int | torch.device = "cpu",
    *,
    backend: str = "mmap",
    trust: object = None,
    identity: Any = None,
    dequantize: bool | str = False,
    progress: Callable[[int], object] | None = None,
) -> dict[str, torch.Tensor]:
    """Load all tensors of a file or checkpoint, in the order of its data.

    With ``backend="mmap"``, tensors on the CPU share a private (copy-on-write) mapping, as in the
    reference: pages are read when they are used, and writing to a tensor does not change the file. The file
    must not change while a tensor exists, and truncating it kills the process. Replacing it by renaming, as
    `save_file` does, is safe. The other backends read the whole file.

    Args:
        filename: File, index.json, folder, readable file object, or any `safeweights.Checkpoint`.
        device: Any argument of `torch.device`; ``"meta"`` loads shapes and types without values.
        backend: How to read: ``"mmap"``, ``"pread"``, ``"direct"``, ``"read"`` or ``"auto"``; see
            `safe_open`.
        trust: Policy, public key or warrant that the file must satisfy before any byte of it is used;
            see `safe_open`.
        identity: Who opens an encrypted file; see `safe_open`.
        dequantize: Quantised weights become numbers: True for F32, or a type such as ``"BF16"``; see
            `safeweights.Checkpoint.dequantize`.
        progress: Called with the number of bytes read so far; only once if the file is mapped.

    Raises:
        FormatError: The file breaks a rule of the format, or is of another format.
        UnsupportedError: The installed torch lacks an element type of the file.
        TrustError: The file does not satisfy `trust`.
        OSError: The file cannot be opened or read.
    """
    return functions.load_file(
        "pt",
        filename,
        device,
        backend=backend,
        trust=trust,
        identity=identity,
        dequantize=dequantize,
        progress=progress,
    )


def save_model(
    model: torch.nn.Module,
    filename: str | os.PathLike[str] | IO[bytes],
    metadata: Mapping[str, str] | None = None,
    force_contiguous: bool = True,
) -> None:
    """Write a module's state dict. Of tensors that share memory (tied weights), only one is written.

    For each other name the metadata gets an entry ``left out -> kept``, which `load_into` uses.

    Args:
        model: The module.
        filename: Path or writable file object.
        metadata: Strings to strings. It is not changed: entries for tied weights are added to a copy.
        force_contiguous: Write non-contiguous tensors in C order instead of raising an error.

    Raises:
        SharedMemoryError: Tensors overlap, and none of them contains all of the shared memory.
        LayoutError: A tensor is not contiguous and `force_contiguous` is False.
    """
    torch_models.save_model(model, filename, metadata, force_contiguous=force_contiguous)


def load_model(
    model: torch.nn.Module,
    filename: Target,
    strict: bool = True,
    device: str | int | torch.device = "cpu",
    *,
    backend: str = "mmap",
    trust: object = None,
    identity: Any = None,
) -> tuple[set[str], list[str]]:
    """Load a file into a module whose weights may be tied.

    Args:
        model: The module.
        filename: File, index.json, folder, readable file object, or any `safeweights.Checkpoint`.
        strict: Raise an error if a name exists only in the module or only in the file.
        device: Device on which the file's tensors are loaded before they are copied into the module.
        backend: How to read: ``"mmap"``, ``"pread"``, ``"direct"``, ``"read"`` or ``"auto"``; see
            `safe_open`.
        trust: Policy, public key or warrant that the file must satisfy before any byte of it is used;
            see `safe_open`.
        identity: Who opens an encrypted file; see `safe_open`.

    Returns:
        Names that only the module has (missing), and names that only the file has (unexpected).

    Raises:
        StateDictError: Such names exist and `strict` is True. It is a RuntimeError, as torch raises.
        TrustError: The file does not satisfy `trust`.
    """
    return torch_models.load_model(
        model,
        filename,
        strict=strict,
        device=device,
        backend=backend,
        trust=trust,
        identity=identity,
    )


def load_into(
    target: torch.nn.Module | Mapping[str, torch.Tensor],
    filename: Target,
    *,
    strict: bool = True,
    backend: str = "pread",
    trust: object = None,
    identity: Any = None,
) -> tuple[set[str], list[str]]:
    """Fill existing tensors with the values of a checkpoint, without a second copy of it in memory.

    Contiguous CPU tensors with the file's element type are read into directly. Other tensors are read,
    converted and moved to their device as they arrive, 256 MiB ahead at most. Meta tensors of a module
    are replaced by tensors with values; a parameter with several names stays one parameter. Names that
    `save_model` left out as tied weights get the values of the name that it kept. Of DTensors the part
    of this process is filled; see `load_sharded`.

    Args:
        target: A module, or name -> tensor.
        filename: File, index.json, folder, readable file object, or any `safeweights.Checkpoint`.
        strict: Raise an error if a name exists only in the module or only in the file.
        backend: How to read: ``"mmap"``, ``"pread"``, ``"direct"``, ``"read"`` or ``"auto"``; see
            `safe_open`.
        trust: Policy, public key or warrant that the file must satisfy before any byte of it is used;
            see `safe_open`.
        identity: Who opens an encrypted file; see `safe_open`.

    Returns:
        Names of `target` that were not filled (missing), and names of the file that were not used
        (unexpected).

    Raises:
        StateDictError: Names or shapes differ; no tensor was changed.
        UnsupportedError: A target is an inference tensor outside of inference mode; no tensor was changed.
        NoDataError: A meta tensor that is not part of a module.
        FormatError: The file breaks a rule of the format.
        TrustError: The file does not satisfy `trust`; some tensors may have been filled.
        OSError: The file cannot be opened or read; some tensors may have been filled.
    """
    return sharded.load_into(
        target, filename, strict=strict, backend=backend, trust=trust, identity=identity
    )


def load_sharded(
    module: torch.nn.Module,
    filename: Target,
    *,
    strict: bool = True,
    subset: bool = False,
    dtype: torch.dtype | None = None,
    device: str | int | torch.device | None = None,
    plan: Plan | None = None,
    backend: str = "pread",
    trust: object = None,
    identity: Any = None,
    progress: Callable[[int], object] | None = None,
) -> LoadReport:
    """Load a checkpoint into a module of which this process has a part; it reads only that part.

    What the process has, the module itself says: its parameters and buffers are DTensors after
    ``fully_shard`` (FSDP2), ``parallelize_module`` or ``distribute_tensor``, over a mesh of any number
    of dimensions, evenly or not, strided too; plain tensors are read whole. Each process calls this by
    itself: no collective is used. A module that nothing divides works, too.

    Parameters on the meta device get memory and values at once (the usual way: build the module under
    ``torch.device("meta")``, divide it, load). Others are filled in place, in their own type. A
    parameter with several names stays one parameter. Buffers that are not in the module's state dict
    stay as they are.

    Args:
        module: The module.
        filename: File, index.json, folder, URL, or any `safeweights.Checkpoint`.
        strict: Raise an error if a name exists only in the module or only in the file.
        subset: The module is a part of the model, such as a pipeline stage: names that only the file
            has are no error.
        dtype: Element type of floating-point parameters and buffers on the meta device; by default
            that which they have there. Values are converted as ``Tensor.copy_`` does.
        device: Where memory is made for those on the meta device; by default the device of their
            mesh, or the CPU.
        plan: New name -> a stored name, or a `safeweights.Concat`, `Stack`, `Narrow` or `Transpose` of
            stored names, for modules that have in one tensor what the file has in several; see
            `safeweights.Checkpoint.rearrange`.
        backend: How to read: ``"pread"``, ``"mmap"``, ``"direct"``, ``"read"`` or ``"auto"``; see
            `safe_open`. With ``"mmap"`` and a path, parameters that were on the meta device share a
            private mapping of the file where their part is contiguous in it and of their type. What is
            loaded from bytes or from an opened checkpoint is copied: it shares no memory with them.
        trust: Policy, public key or warrant that the files must satisfy; of a file signed with a block
            tree, the blocks that are read are checked. See `safe_open`.
        identity: Who opens encrypted files; see `safe_open`.
        progress: Called with the number of bytes that this process has read so far.

    Returns:
        Names that were not filled (missing), and names of the file that were not used (unexpected).

    Cost: each byte of the part is read once, in the order of the files, straight into the parameter if
    that is on the CPU and of the file's type; beside that, 256 MiB and the largest tensor at most.

    Raises:
        StateDictError: Names or shapes differ; no parameter was changed.
        UnsupportedError: A placement does not say which elements a rank has (``Partial``), the plan
            does not fit, or a parameter is an inference tensor; no parameter was changed.
        FormatError: The file breaks a rule of the format; no parameter was changed.
        TrustError, OSError: Reading failed. Parameters on the meta device are still there; some of
            the others may have been filled.
    """
    return sharded.load_sharded(
        module, filename, strict=strict, subset=subset, dtype=dtype, device=device, plan=plan,
        backend=backend, trust=trust, identity=identity, progress=progress,
    )  # fmt: skip
