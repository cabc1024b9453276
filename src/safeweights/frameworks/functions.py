"""load, save, load_file and save_file, for every framework."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING, Any

from .. import checkpoint
from ..checkpoint import Checkpoint, Tensor
from ..checkpoint.sharding import save_sharded
from ..errors import UnsupportedError
from ..format.gcpause import gc_paused
from ..storage.memory import copied
from ..storage.source import flat
from .adapter import adapter_for
from .handle import safe_open
from .targets import dequantized, opened
from .wording import saving, warn_of_wrappers

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["load", "load_file", "save", "save_file"]


def load(framework: str, data: Any, device: Any = "cpu") -> dict[str, Any]:
    """All tensors of a file that is in memory; they own their memory (one copy)."""
    if isinstance(data, str):
        raise UnsupportedError(
            "argument 'data': 'str' object is not bytes; for a path use load_file"
        )
    # The copy belongs to the tensors: what the caller does with `data` afterwards is the caller's.
    with (
        safe_open[Any].of(copied(flat(data)), framework, device) as file,
        gc_paused(),
    ):
        return file.get_tensors()


def load_file(
    framework: str,
    filename: Any,
    device: Any = "cpu",
    *,
    backend: str | None = None,
    trust: object = None,
    identity: Any = None,
    dequantize: bool | str = False,
    progress: Callable[[int], object] | None = None,
) -> dict[str, Any]:
    """All tensors of the file at `filename`."""
    if dequantize:
        how = backend or ("mmap" if adapter_for(framework).maps else "pread")
        filename = dequantized(opened(filename, how, trust, identity), dequantize)
        trust = identity = None
    with (
        safe_open(
            filename, framework, device, backend=backend, trust=trust, identity=identity
        ) as file,
        gc_paused(),
    ):
        return file.get_tensors(progress=progress)


def save(
    framework: str, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> bytes:
    """The contents of a file that holds `tensors`."""
    encoded = _encode(framework, tensors)
    with saving():
        return checkpoint.to_bytes(encoded, metadata)


def save_file(
    framework: str,
    tensors: Mapping[str, Any],
    filename: str | os.PathLike[str] | IO[bytes],
    metadata: Mapping[str, str] | None = None,
    *,
    max_shard_size: int | str | None = None,
    durable: bool = False,
    progress: Callable[[int], object] | None = None,
) -> None:
    """Write `tensors` to the file at `filename`; with `max_shard_size`, as shards into that folder."""
    encoded = _encode(framework, tensors)
    if framework == "pt":
        warn_of_wrappers(encoded)
    with saving():
        if max_shard_size is None:
            checkpoint.save(encoded, filename, metadata, durable=durable, progress=progress)
        elif isinstance(filename, str | os.PathLike):
            save_sharded(
                encoded, filename, max_shard_size=max_shard_size, metadata=metadata,
                durable=durable, progress=progress,
            )  # fmt: skip
        else:
            kind = type(filename).__name__
            raise UnsupportedError(
                f"shards are written into a folder: expected its path, found {kind}"
            )


def _encode(framework: str, tensors: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """The tensors as the format has them; those that are unread (`safeweights.Tensor`) stay as they are."""
    if isinstance(tensors, Checkpoint):
        return tensors
    unread: dict[str, Tensor] = {}
    if isinstance(tensors, Mapping) and any(
        issubclass(kind, Tensor) for kind in set(map(type, tensors.values()))
    ):
        unread = {name: each for name, each in tensors.items() if isinstance(each, Tensor)}
        order = list(tensors)
        tensors = {name: each for name, each in tensors.items() if name not in unread}
    with gc_paused():
        encoded = adapter_for(framework).encode(tensors)
    if unread:
        encoded = {name: unread[name] if name in unread else encoded[name] for name in order}
    for kind in set(map(type, encoded)):
        if not issubclass(kind, str):
            raise UnsupportedError(
                f"argument 'tensor_dict': '{kind.__name__}' object is not an instance of 'str'"
            )
    return encoded
