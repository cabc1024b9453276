"""NumPy arrays <-> safetensors, with the interface of `safetensors.numpy`."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Any

import numpy as np

from .lazy import lazy_names

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping

    from ._numpy_private import (  # noqa: F401 - clients import them from here
        _TYPES,
        _flatten,
        _getdtype,
        _is_little_endian,
        _view2np,
    )
    from .checkpoint import Tensor as Unread
    from .frameworks.handle import Target, safe_open

__all__ = ["load", "load_file", "safe_open", "save", "save_file"]

Array = np.ndarray[Any, np.dtype[Any]]

# The functions import what they need when they are first called, 60 modules: a program that imports this
# module for one of its paths does not wait for them.
__getattr__, __dir__ = lazy_names(
    __name__,
    {"safe_open": ".frameworks.handle"}
    | dict.fromkeys(
        ("_TYPES", "_flatten", "_getdtype", "_is_little_endian", "_view2np"), "._numpy_private"
    ),
)


def save(
    tensor_dict: Mapping[str, Array | Unread], metadata: Mapping[str, str] | None = None
) -> bytes:
    r"""Serialize arrays to the bytes of a safetensors file.

    Arrays may have any memory layout: transposed, strided and big-endian arrays are written in C order,
    little-endian. BF16, F8 and F4 are the types of ml_dtypes.

    Args:
        tensor_dict: Name -> array. Unread tensors and a
            `safeweights.Checkpoint` are also accepted.
        metadata: Strings to strings, stored in the header.

    Raises:
        UnsupportedError: A value is not an array, or has an element type that the format lacks.
        FormatError: The format cannot hold a name, a shape or the metadata.

    >>> save({"a": np.arange(3, dtype="u1")})[8:]
    b'{"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}   \x00\x01\x02'
    """
    from .frameworks import functions

    return functions.save("np", tensor_dict, metadata)


def save_file(
    tensor_dict: Mapping[str, Array | Unread],
    filename: str | os.PathLike[str] | IO[bytes],
    metadata: Mapping[str, str] | None = None,
    *,
    max_shard_size: int | str | None = None,
    durable: bool = False,
    progress: Callable[[int], object] | None = None,
) -> None:
    """Write `tensor_dict` to a file. An existing file is replaced atomically.

    Args:
        tensor_dict: As for `save`. They must not change during the call.
        filename: Path or writable file object; a folder if `max_shard_size` is given.
        metadata: As for `save`.
        max_shard_size: Write shards and an index into the folder `filename`, each shard with at most
            this many bytes of tensors: a number, or a string such as ``"5GB"``. Replaces an earlier save
            in that folder.
        durable: Also sync the file and its directory (fsync), so that it survives a power failure.
        progress: Called with the number of bytes written so far.

    Raises:
        UnsupportedError, FormatError: As for `save`; no file is written.
        OSError: Writing failed; an existing file is unchanged.
    """
    from .frameworks import functions

    functions.save_file(
        "np", tensor_dict, filename, metadata,
        max_shard_size=max_shard_size, durable=durable, progress=progress,
    )  # fmt: skip


def load(data: Any) -> dict[str, Array]:
    """Load all arrays from the bytes of a file. Cost: one copy of `data`, any bytes-like object.

    Raises:
        FormatError: The bytes break a rule of the format.

    >>> load(save({"a": np.zeros((2, 2))}))["a"].shape
    (2, 2)
    """
    from .frameworks import functions

    return functions.load("np", data)


def load_file(
    filename: Target,
    *,
    backend: str | None = None,
    trust: object = None,
    identity: Any = None,
    dequantize: bool | str = False,
    progress: Callable[[int], object] | None = None,
) -> dict[str, Array]:
    """Load all arrays of a file or checkpoint, in the order of its data.

    Arrays are writable and own their memory, which several threads fill; neighbouring arrays share blocks
    of at most 64 MiB.

    Args:
        filename: File, index.json, folder, readable file object, or any `safeweights.Checkpoint`.
        backend: ``"pread"`` reads through the page cache, ``"direct"`` bypasses it, and ``"read"`` (also
            None) chooses by what the cache holds. With ``"mmap"``, arrays share a private mapping: pages
            are read when they are used, but the file must not change while an array exists, and
            truncating it kills the process.
        trust: Policy, public key or warrant that the file must satisfy before any byte of it is used;
            see `safe_open`.
        identity: Who opens an encrypted file; see `safe_open`.
        dequantize: Quantised weights become numbers: True for F32, or a type such as ``"BF16"``; see
            `safeweights.Checkpoint.dequantize`.
        progress: Called with the number of bytes read so far; only once if the file is mapped.

    Raises:
        FormatError: The file breaks a rule of the format, or is of another format.
        TrustError: The file does not satisfy `trust`.
        OSError: The file cannot be opened or read.
    """
    from .frameworks import functions

    return functions.load_file(
        "np",
        filename,
        backend=backend,
        trust=trust,
        identity=identity,
        dequantize=dequantize,
        progress=progress,
    )
