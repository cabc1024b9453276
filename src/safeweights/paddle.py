"""Paddle tensors <-> safetensors; the names of `safetensors.paddle`."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Any

from .frameworks import functions
from .frameworks.handle import safe_open

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping

    import paddle

__all__ = ["load", "load_file", "safe_open", "save", "save_file"]


def save(tensors: Mapping[str, paddle.Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """The contents of a file that holds `tensors`, which are left as they are.

    Args:
        tensors: Names to tensors. Dense, contiguous tensors.
        metadata: Strings to strings, kept with the tensors.

    Raises:
        SafetensorError: What the format cannot hold; the message says what to do.
    """
    return functions.save("paddle", tensors, metadata)


def save_file(
    tensors: Mapping[str, paddle.Tensor],
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
    functions.save_file("paddle", tensors, filename, metadata, durable=durable, progress=progress)


def load(data: Any, device: str | int = "cpu") -> dict[str, paddle.Tensor]:
    """The tensors of a file whose contents are `data`, any bytes-like object.

    U16, U32 and U64, for which Paddle has no kernels, are an error (`safe_open.get_bytes` gives the raw
    bytes); U16 is never taken for BF16.

    Args:
        data: Any bytes-like object.
        device: ``"cpu"``, a number, or a name such as ``"gpu:0"``.

    Raises:
        FormatError: The bytes break a rule of the format.
        UnsupportedError: The framework has no such element type.
    """
    return functions.load("paddle", data, device)


def load_file(
    filename: str | os.PathLike[str] | IO[bytes],
    device: str | int = "cpu",
    *,
    backend: str | None = None,
    trust: object = None,
    progress: Callable[[int], object] | None = None,
) -> dict[str, paddle.Tensor]:
    """The tensors of a file, in the order of the data.

    U16, U32 and U64, for which Paddle has no kernels, are an error (`safe_open.get_bytes` gives the raw
    bytes); U16 is never taken for BF16.

    Args:
        filename: Path or readable file object.
        backend: How bytes are read, as for `safe_open`; they are copied in any case.
        device: ``"cpu"``, a number, or a name such as ``"gpu:0"``.
        trust: What the file must fulfil before a byte of it is used; see `safe_open`.
        progress: Called with the number of bytes that were read so far; once, if the file is mapped.

    Raises:
        FormatError: The file breaks a rule of the format, or is of another format.
        UnsupportedError: The framework has no such element type.
        TrustError: The file is not what `trust` asks for.
        OSError: It cannot be opened or read.
    """
    return functions.load_file(
        "paddle", filename, device, backend=backend, trust=trust, progress=progress
    )
