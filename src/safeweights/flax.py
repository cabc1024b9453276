"""JAX arrays (Flax) <-> safetensors, with the interface of `safetensors.flax`."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Any

from .frameworks import functions
from .frameworks.handle import safe_open

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping

    import jax

    from .checkpoint import Tensor as Unread
    from .frameworks.handle import Target

__all__ = ["load", "load_file", "safe_open", "save", "save_file"]


def save(
    tensors: Mapping[str, jax.Array | Unread], metadata: Mapping[str, str] | None = None
) -> bytes:
    """Serialize `tensors` to the bytes of a safetensors file. The tensors are not changed.

    Args:
        tensors: Name -> array: JAX arrays of any layout and device, or NumPy arrays. Unread tensors and a
            `safeweights.Checkpoint` are also accepted.
        metadata: Strings to strings, stored in the header.

    Raises:
        SafetensorError: The format cannot hold a tensor, a name or the metadata; the message says
            what to do.
    """
    return functions.save("jax", tensors, metadata)


def save_file(
    tensors: Mapping[str, jax.Array | Unread],
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
        SafetensorError: As for `save`; no file is written.
        OSError: Writing failed; an existing file is unchanged.
    """
    functions.save_file(
        "jax", tensors, filename, metadata,
        max_shard_size=max_shard_size, durable=durable, progress=progress,
    )  # fmt: skip


def load(
    data: Any, *, device: str | jax.Device | jax.sharding.Sharding = "cpu"
) -> dict[str, jax.Array]:
    """Load all tensors from the bytes of a file. Cost: one copy of `data`.

    BF16, F8 and F4 become JAX's types (F4 with one byte per element). 64-bit types need
    ``jax_enable_x64``; without it they are an error, because JAX would narrow the values.

    Args:
        data: Any bytes-like object.
        device: A ``jax.Device``, a sharding, or a name such as ``"gpu:0"``; by default JAX's default
            device.

    Raises:
        FormatError: The bytes break a rule of the format.
        UnsupportedError: The framework lacks an element type of the file.
    """
    return functions.load("jax", data, device)


def load_file(
    filename: Target,
    *,
    backend: str | None = None,
    device: str | jax.Device | jax.sharding.Sharding = "cpu",
    trust: object = None,
    identity: Any = None,
    dequantize: bool | str = False,
    progress: Callable[[int], object] | None = None,
) -> dict[str, jax.Array]:
    """Load all tensors of a file or checkpoint, in the order of its data.

    BF16, F8 and F4 become JAX's types (F4 with one byte per element). 64-bit types need
    ``jax_enable_x64``; without it they are an error, because JAX would narrow the values.

    Args:
        filename: File, index.json, folder, readable file object, or any `safeweights.Checkpoint`.
        backend: How to read; see `safe_open`. By default, tensors own their memory. With ``"mmap"``, they
            may share a private mapping: the file must not change while one exists.
        device: A ``jax.Device``, a sharding, or a name such as ``"gpu:0"``; by default JAX's default
            device.
        trust: Policy, public key or warrant that the file must satisfy before any byte of it is used;
            see `safe_open`.
        identity: Who opens an encrypted file; see `safe_open`.
        dequantize: Quantised weights become numbers: True for F32, or a type such as ``"BF16"``; see
            `safeweights.Checkpoint.dequantize`.
        progress: Called with the number of bytes read so far; only once if the file is mapped.

    Raises:
        FormatError: The file breaks a rule of the format, or is of another format.
        UnsupportedError: The framework lacks an element type of the file.
        TrustError: The file does not satisfy `trust`.
        OSError: The file cannot be opened or read.
    """
    return functions.load_file(
        "jax",
        filename,
        device,
        backend=backend,
        trust=trust,
        identity=identity,
        dequantize=dequantize,
        progress=progress,
    )
