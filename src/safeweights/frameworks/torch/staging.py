"""Loading onto an accelerator: files -> a few pinned slabs -> large pieces of device memory.

Each reader thread has one pinned slab and one stream: it reads a piece of the file into the slab, and
copies it to the device. While one waits for its copy others read, so that reading, copying and the
computation on the caller's stream overlap; pinned memory stays at a slab a thread however large the
file is: pinning is slow (1 to 2 GB/s), and what is pinned is lost to the page cache.

What limits the rate is Python between two pieces, for which all threads share the interpreter's lock:
so a thread sets its stream once, and a copy is one call, which also waits.

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
    from contextlib import AbstractContextManager

    from ...format.header import TensorInfo
    from ..adapter import Adapter

    Cut = Callable[[torch.Tensor, int, TensorInfo], torch.Tensor]

__all__ = ["SLAB", "Accelerator", "DeviceLanding", "TorchAccelerator"]

SLAB: Final = 1 << 23
"""Bytes of a slab, a power of two, since that is what torch pins.

Measured on an H200 with 16 cores, 3.7 GiB, GiB/s of the first load in a process and of the next, with 12
threads: 4 MiB 25 and 32 (the threads wait for the interpreter's lock), 8 MiB 26 and 42. With 16 MiB and 8
threads 17 and 32 instead of 22 and 33: pinning takes longer than it saves.
"""

READERS: Final = 12
"""Reader threads, and slabs. Measured likewise: 8 threads 22 and 33, 12 threads 26 and 42, 16 24 and 41."""


class Accelerator(Protocol):
    """What staging needs of a device."""

    def arena(self, nbytes: int) -> torch.Tensor:
        """Device memory of `nbytes`, as a flat tensor of bytes."""

    def slab(self, nbytes: int) -> torch.Tensor:
        """Pinned host memory, likewise."""

    def copying(self) -> AbstractContextManager[object]:
        """What a thread is within while it calls `copy`."""

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Copy `source` to `target`, of which one is a slab; when this returns, that is done."""


class TorchAccelerator:
    """A device of torch, through its device-independent interface (`torch.accelerator`).

    Args:
        callers: The stream on which memory is to be used, and so the device.
    """

    def __init__(self, callers: torch.Stream) -> None:
        self._callers = callers
        self._allocated: torch.Event | None = None
        self._threads = local()

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
            # Metal has one stream only, and its memory is the host's anyway.
            found = None if _another(callers) is None else cls(callers)
        except RuntimeError:  # no such device, or one that makes no streams
            return None
        return found

    def arena(self, nbytes: int) -> torch.Tensor:
        with _current(self._callers):
            memory = torch.empty(nbytes, dtype=torch.uint8, device=self._callers.device)
            # It may be memory that work still queued on the caller's stream uses.
            self._allocated = self._callers.record_event()
        return memory

    def slab(self, nbytes: int) -> torch.Tensor:
        # The default device may be another one (`torch.set_default_device`).
        return torch.empty(nbytes, dtype=torch.uint8, device="cpu", pin_memory=True)

    def copying(self) -> AbstractContextManager[object]:
        stream: torch.Stream | None = getattr(self._threads, "stream", None)
        if stream is None:
            stream = _another(self._callers)
            assert stream is not None  # there was one when this was made
            self._threads.stream, self._threads.waited = stream, None
        return _current(stream)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        # The event of an earlier arena is an earlier one on the same stream.
        if (allocated := self._allocated) is not self._threads.waited:
            self._threads.stream.wait_event(allocated)
            self._threads.waited = allocated
        target.copy_(source)  # on the current stream, and waits for it


def _another(stream: torch.Stream) -> torch.Stream | None:
    """A stream of the same device other than `stream`, which may be the first that the pool gives."""
    streams = (torch.Stream(stream.device) for _ in range(2))
    return next((each for each in streams if each != stream), None)


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
    ahead: int | None = None

    def __init__(self, accelerator: Accelerator, adapter: Adapter, device: Any, cut: Cut) -> None:
        self._accelerator = accelerator
        self._adapter = adapter
        self._device = device
        self._cut = cut
        self._slabs = local()

    def filling(self) -> AbstractContextManager[object]:
        return self._accelerator.copying()

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
        slab, memory = self._slab()
        offset = self._batch.data_start + self._batch.begin + begin
        at = self._batch.source.fill(offset, end - begin, memory)
        self._accelerator.copy(self._arena[begin:end], slab[at : at + end - begin])

    def _slab(self) -> tuple[torch.Tensor, memoryview]:
        """This thread's, and its memory; pinned when first needed, and no larger than needed."""
        nbytes = min(self.step, self.extent) + 2 * PAGE
        kept: tuple[torch.Tensor, memoryview] | None = getattr(self._slabs, "slab", None)
        if kept is None or len(kept[0]) < nbytes:
            slab = self._accelerator.slab(nbytes)
            kept = self._slabs.slab = slab, slab.numpy().data
        return kept

    def tensors(self) -> dict[str, torch.Tensor]:
        base = self._batch.begin
        return {name: self._cut(self._arena, base, info) for name, info in self._batch.tensors}
