"""MLX arrays <-> safetensors; the names of `safetensors.mlx`."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Any

from .frameworks import functions
from .frameworks.handle import safe_open

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping

    import mlx.core as mx

__all__ = ["load", "load_file", "safe_open", "save", "save_file"]


def save(tensors: Mapping[str, mx.array], metadata: Mapping[str, str] | None = None) -> bytes:
    """The contents of a file that holds `tensors`, which are left as they are.

    Args:
        tensors: Names to tensors. MLX arrays of any layout, NumPy arrays too.
        metadata: Strings to strings, kept with the tensors.

    Raises:
        SafetensorError: What the format cannot hold; the message says what to do.
    """
    return functions.save("mlx", tensors, metadata)


def save_file(
    tensors: Mapping[str, mx.array],
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
        SafetensorError: As for `save`; nothing is written then.
        OSError: Writing failed; the old file is untouched.
    """
    functions.save_file("mlx", tensors, filename, metadata, durable=durable, progress=progress)


def load(data: Any) -> dict[str, mx.array]:
    """The tensors of a file whose contents are `data`, any bytes-like object.

    64-bit values stay 64 bits wide. MLX has no F8 and F4 types: those are an error
    (`safe_open.get_bytes` gives the raw bytes).

    Raises:
        FormatError: The bytes break a rule of the format.
        UnsupportedError: The framework has no such element type.
    """
    return functions.load("mlx", data)


def load_file(
    filename: str | os.PathLike[str] | IO[bytes],
    *,
    backend: str | None = None,
    trust: object = None,
    progress: Callable[[int], object] | None = None,
) -> dict[str, mx.array]:
    """The tensors of a file, in the order of the data.

    64-bit values stay 64 bits wide. MLX has no F8 and F4 types: those are an error
    (`safe_open.get_bytes` gives the raw bytes).

    Args:
        filename: Path or readable file object.
        backend: How bytes are read, as for `safe_open`; they are copied in any case.
        trust: What the file must fulfil before a byte of it is used; see `safe_open`.
        progress: Called with the number of bytes that were read so far; once, if the file is mapped.

    Raises:
        FormatError: The file breaks a rule of the format, or is of another format.
        UnsupportedError: The framework has no such element type.
        TrustError: The file is not what `trust` asks for.
        OSError: It cannot be opened or read.
    """
    return functions.load_file("mlx", filename, backend=backend, trust=trust, progress=progress)
