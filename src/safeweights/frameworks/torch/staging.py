"""Loading onto an accelerator: files -> a few pinned slabs -> large pieces of device memory.

Each reader thread has one pinned slab: it reads a piece of the file into it and has it copied to the
device on a side stream. While one waits for its copy others read, so that reading, copying and the
computation on the caller's stream overlap; pinned memory stays at a slab a thread however large the
file is: pinning is slow (1 to 2 GB/s), and what is pinned is lost to the page cache.

Device memory comes in arenas that hold what is contiguous in the file, so that copies are large. The
accelerator stands behind `Accelerator`, the seam at which tests put a device of their own.
"""

from __future__ import annotations

from contextlib import contextmanager
from threading import local
from typing import TYPE_CHECKING, Any, Final, Protocol

import torch

from ...storage.memory import PAGE
from ..loading import Gathering
from ..plans import Batch, Scattered, Transfer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ...format.header import TensorInfo
    from ..adapter import Adapter

    Cut = Callable[[torch.Tensor, int, TensorInfo], torch.Tensor]

__all__ = ["SLAB", "Accelerator", "DeviceLanding", "TorchAccelerator"]

SLAB: Final = 1 << 23
"""Bytes of a slab, a power of two, since that is what torch pins.

Measured on an H200 with 16 cores, 3.7 GiB, GiB/s of the first load in a process and of the next: 4 MiB 19
and 20 (the threads wait for the interpreter's lock), 8 MiB 25 and 34, 16 MiB 22 and 36 (pinning takes
longer than it saves).
"""

READERS: Final = 8
"""Reader threads, and slabs."""


class Accelerator(Protocol):
    """What staging needs of a device."""

    def arena(self, nbytes: int) -> torch.Tensor:
        """Device memory of `nbytes`, as a flat tensor of bytes."""

    def slab(self, nbytes: int) -> torch.Tensor:
        """Pinned host memory, likewise."""

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> Any:
        """Start copying `source` to `target`; the result's ``synchronize()`` waits until it is done.

        One of the two is a slab.
        """


class TorchAccelerator:
    """A device of torch, through its device-independent interface (`torch.accelerator`).

    Args:
        device: Which.
        callers: The stream on which memory is to be used.
        stream: The one to copy on.
    """

    def __init__(self, device: torch.device, callers: torch.Stream, stream: torch.Stream) -> None:
        self._device = device
        self._callers = callers
        self._stream = stream

    @classmethod
    def of(cls, device: torch.device) -> TorchAccelerator | None:
        """For use on this thread's current stream; None where there is no other to copy on."""
        accelerator = getattr(torch, "accelerator", None)
        if not hasattr(accelerator, "device_index") or not torch.accelerator.is_available():
            return None
        current = torch.accelerator.current_accelerator()
        if current is None or current.type != device.type:
            return None
        try:
            callers = torch.accelerator.current_stream(device)
            # The first of a pool may be the caller's own.
            streams = (torch.Stream(device) for _ in range(2))
            stream = next((each for each in streams if each != callers), None)
        except RuntimeError:  # no such device, or one that makes no streams
            return None
        # Metal has one stream only, and its memory is the host's anyway.
        return None if stream is None else cls(device, callers, stream)

    def arena(self, nbytes: int) -> torch.Tensor:
        with _current(self._callers):
            memory = torch.empty(nbytes, dtype=torch.uint8, device=self._device)
        # It may be memory that work still queued on the caller's stream uses.
        self._stream.wait_stream(self._callers)
        return memory

    def slab(self, nbytes: int) -> torch.Tensor:
        # The default device may be another one (`torch.set_default_device`).
        return torch.empty(nbytes, dtype=torch.uint8, device="cpu", pin_memory=True)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> Any:
        done = torch.Event(self._device)
        with _current(self._stream):
            target.copy_(source, non_blocking=True)
            done.record(self._stream)
        return done


@contextmanager
def _current(stream: torch.Stream) -> Iterator[None]:
    """Within the block `stream` is the current one of this thread, and its device too.

    Not ``with stream``: that keeps what it replaced in the stream, which many threads use at once. Nor is
    the device before set again by its index: a new thread's is the first, where that may make a context.
    """
    with torch.accelerator.device_index(stream.device_index):
        replaced = torch.accelerator.current_stream(stream.device)
        try:
            torch.accelerator.set_stream(stream)
            yield
        finally:
            torch.accelerator.set_stream(replaced)


class DeviceLanding:
    """Arenas of a device, filled through slabs.

    Args:
        accelerator: The device.
        adapter: Makes the tensors that are not in one piece in their file.
        device: What the adapter knows the device by.
        cut: Makes a tensor of an arena that holds a file's data from an offset on.
    """

    arena = 1 << 28
    threads = READERS
    in_place = False

    def __init__(self, accelerator: Accelerator, adapter: Adapter, device: Any, cut: Cut) -> None:
        self._accelerator = accelerator
        self._adapter = adapter
        self._device = device
        self._cut = cut
        self._slabs = local()

    def begin(self, batch: Batch | Scattered) -> Transfer:
        if isinstance(batch, Scattered):
            return Gathering(batch, self._adapter, self._device)
        return _Staged(batch, self._accelerator, self._slabs, self._cut)


class _Staged:
    """A batch on its way through slabs to an arena."""

    def __init__(self, batch: Batch, accelerator: Accelerator, slabs: local, cut: Cut) -> None:
        self.extent, self.step = batch.nbytes, SLAB - 2 * PAGE
        self.least = self.step
        self._batch, self._accelerator, self._slabs = batch, accelerator, slabs
        self._cut = cut
        self._arena = accelerator.arena(batch.nbytes)

    def fill(self, begin: int, end: int) -> None:
        slab = self._slab()
        offset = self._batch.data_start + self._batch.begin + begin
        at = self._batch.source.fill(offset, end - begin, slab.numpy().data)
        done = self._accelerator.copy(self._arena[begin:end], slab[at : at + end - begin])
        done.synchronize()  # the slab may be used again, and the tensors on any stream

    def _slab(self) -> torch.Tensor:
        """This thread's; pinned when first needed, and no larger than needed."""
        nbytes = min(self.step, self.extent) + 2 * PAGE
        kept: torch.Tensor | None = getattr(self._slabs, "slab", None)
        if kept is None or len(kept) < nbytes:
            kept = self._slabs.slab = self._accelerator.slab(nbytes)
        return kept

    def tensors(self) -> dict[str, torch.Tensor]:
        base = self._batch.begin
        return {name: self._cut(self._arena, base, info) for name, info in self._batch.tensors}
