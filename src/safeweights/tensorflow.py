"""TensorFlow tensors <-> safetensors; the names of `safetensors.tensorflow`."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Any

from .frameworks import functions
from .frameworks.handle import safe_open

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping

    import tensorflow as tf

__all__ = ["load", "load_file", "safe_open", "save", "save_file"]


def save(tensors: Mapping[str, tf.Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """The contents of a file that holds `tensors`, which are left as they are.

    Args:
        tensors: Names to tensors. Eager tensors and variables, dense.
        metadata: Strings to strings, kept with the tensors.

    Raises:
        SafetensorError: What the format cannot hold; the message says what to do.
    """
    return functions.save("tf", tensors, metadata)


def save_file(
    tensors: Mapping[str, tf.Tensor],
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
    functions.save_file("tf", tensors, filename, metadata, durable=durable, progress=progress)


def load(data: Any, *, device: str = "cpu") -> dict[str, tf.Tensor]:
    """The tensors of a file whose contents are `data`, any bytes-like object.

    Types that this TensorFlow does not have are an error (`safe_open.get_bytes` gives the raw bytes).

    Args:
        data: Any bytes-like object.
        device: A name such as ``"GPU:0"``; by default TensorFlow's default device.

    Raises:
        FormatError: The bytes break a rule of the format.
        UnsupportedError: The framework has no such element type.
    """
    return functions.load("tf", data, device)


def load_file(
    filename: str | os.PathLike[str] | IO[bytes],
    *,
    backend: str | None = None,
    device: str = "cpu",
    trust: object = None,
    progress: Callable[[int], object] | None = None,
) -> dict[str, tf.Tensor]:
    """The tensors of a file, in the order of the data.

    Types that this TensorFlow does not have are an error (`safe_open.get_bytes` gives the raw bytes).

    Args:
        filename: Path or readable file object.
        backend: How bytes are read, as for `safe_open`: by default into memory of their own. With
            ``"mmap"`` tensors may share a private mapping, so the file must not change.
        device: A name such as ``"GPU:0"``; by default TensorFlow's default device.
        trust: What the file must fulfil before a byte of it is used; see `safe_open`.
        progress: Called with the number of bytes that were read so far; once, if the file is mapped.

    Raises:
        FormatError: The file breaks a rule of the format, or is of another format.
        UnsupportedError: The framework has no such element type.
        TrustError: The file is not what `trust` asks for.
        OSError: It cannot be opened or read.
    """
    return functions.load_file(
        "tf", filename, device, backend=backend, trust=trust, progress=progress
    )
