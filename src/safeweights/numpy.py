"""NumPy arrays <-> safetensors; the names of `safetensors.numpy`."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Any

import numpy as np

from .frameworks import functions
from .frameworks.handle import safe_open

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping

__all__ = ["load", "load_file", "safe_open", "save", "save_file"]

Array = np.ndarray[Any, np.dtype[Any]]


def save(tensor_dict: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> bytes:
    r"""The contents of a file that holds `tensor_dict`.

    Values are written, whatever the layout of an array in memory: transposed, strided and big-endian
    arrays too. BF16, F8 and F4 are the types of ml_dtypes.

    Args:
        tensor_dict: Names to arrays.
        metadata: Strings to strings, kept with the tensors.

    Raises:
        UnsupportedError: Not an array, or of an element type that the format does not have.
        FormatError: A name or shape that the format cannot hold.

    >>> save({"a": np.arange(3, dtype="u1")})[8:]
    b'{"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}   \x00\x01\x02'
    """
    return functions.save("np", tensor_dict, metadata)


def save_file(
    tensor_dict: Mapping[str, Array],
    filename: str | os.PathLike[str] | IO[bytes],
    metadata: Mapping[str, str] | None = None,
    *,
    durable: bool = False,
    progress: Callable[[int], object] | None = None,
) -> None:
    """Write `tensor_dict` to a file, which is replaced as a whole or not at all.

    Args:
        tensor_dict: As for `save`. Arrays must not change meanwhile.
        filename: Path or writable file object.
        metadata: As for `save`.
        durable: Return only when the file would survive a loss of power.
        progress: Called with the number of bytes written so far.

    Raises:
        UnsupportedError, FormatError: As for `save`; nothing is written then.
        OSError: Writing failed; the old file is untouched.
    """
    functions.save_file("np", tensor_dict, filename, metadata, durable=durable, progress=progress)


def load(data: Any) -> dict[str, Array]:
    """The arrays of a file whose contents are `data`, any bytes-like object; one copy.

    Raises:
        FormatError: The bytes break a rule of the format.

    >>> load(save({"a": np.zeros((2, 2))}))["a"].shape
    (2, 2)
    """
    return functions.load("np", data)


def load_file(
    filename: str | os.PathLike[str] | IO[bytes],
    *,
    backend: str | None = None,
    trust: object = None,
    progress: Callable[[int], object] | None = None,
) -> dict[str, Array]:
    """The arrays of a file, in the order of the data.

    Arrays are writable and have memory of their own, which several threads read; neighbours share up to
    64 MiB of it.

    Args:
        filename: Path or readable file object.
        backend: None and ``"read"`` read through the page cache, or past it what it does not hold;
            ``"pread"`` and ``"direct"`` do only the one or the other. With ``"mmap"`` arrays share a
            private mapping: nothing is read until it is used, but the file must not change as long as
            an array lives, and truncating it ends the process.
        trust: What the file must fulfil before a byte of it is used; see `safe_open`.
        progress: Called with the number of bytes that were read so far; once, if the file is mapped.

    Raises:
        FormatError: The file breaks a rule of the format, or is of another format.
        TrustError: The file is not what `trust` asks for.
        OSError: It cannot be opened or read.
    """
    return functions.load_file("np", filename, backend=backend, trust=trust, progress=progress)
