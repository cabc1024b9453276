"""Loading onto an accelerator: files -> a few pinned slabs -> large pieces of device memory.

Each reader thread owns one pinned slab: it reads a piece of the file into it, starts the copy to the
device on a side stream, and reads on into the slab when that copy has ended. Reading, copying and the
computation on the caller's stream overlap, and pinned memory stays at a few slabs however large the
file is: pinning is slow (1 to 2 GB/s), and what is pinned is lost to the page cache.

Device memory comes in arenas that hold what is contiguous in the file, so that copies are large. The
accelerator stands behind `Accelerator`, the seam at which tests put a device of their own.
"""

from __future__ import annotations

from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from threading import Event, Lock
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import torch

from ..storage.memory import PAGE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ..storage import Source

__all__ = ["SLAB", "Accelerator", "Piece", "TorchAccelerator", "stage"]

SLAB: Final = 1 << 24
"""Bytes of a slab: large enough for a copy at full speed, small enough to overlap with reading."""

READERS: Final = 4
"""Reader threads, and slabs."""


class Accelerator(Protocol):
    """What staging needs of a device."""

    def arena(self, nbytes: int) -> torch.Tensor:
        """Device memory of `nbytes`, as a flat tensor of bytes."""

    def slab(self, nbytes: int) -> torch.Tensor:
        """Pinned host memory, likewise."""

    def copy(self, target: torch.Tensor, slab: torch.Tensor) -> Any:
        """Start copying `slab` to `target`; the result's ``synchronize()`` waits until it is done."""

    def finish(self) -> None:
        """Return when all copies are done and the caller's stream may use them."""


class TorchAccelerator:
    """A device of torch, through its device-independent interface (`torch.Stream`, `torch.Event`)."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.Stream(device)
        # An arena may be memory that work still queued on the caller's stream uses.
        self._stream.wait_stream(torch.accelerator.current_stream(device))

    def arena(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, device=self._device)

    def slab(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def copy(self, target: torch.Tensor, slab: torch.Tensor) -> Any:
        with self._stream:
            target.copy_(slab, non_blocking=True)
        done = torch.Event(self._device)
        done.record(self._stream)
        return done

    def finish(self) -> None:
        self._stream.synchronize()


class Piece(NamedTuple):
    """Bytes of a source that go to one place on the device."""

    offset: int
    target: torch.Tensor


def stage(source: Source, pieces: Iterable[Piece], accelerator: Accelerator) -> None:
    """Fill every piece's target with the bytes of `source` from its offset on.

    Cost: reads each byte once; host memory of `READERS` slabs.

    Raises:
        TruncatedError, OSError: Reading failed; no thread is left and no copy under way.
    """
    work = _Queue(_cut(pieces))
    try:
        with ThreadPoolExecutor(READERS) as pool:
            readers = [pool.submit(_read, source, work, accelerator) for _ in range(READERS)]
            try:
                wait(readers, return_when=FIRST_EXCEPTION)
            finally:
                work.stop()  # after an error or an interrupt: what is under way ends, nothing begins
    finally:
        accelerator.finish()
    for reader in readers:
        reader.result()


class _Queue:
    """Pieces of at most a slab, in the order of the file, handed to whoever asks."""

    def __init__(self, pieces: Iterator[Piece]) -> None:
        self._pieces = pieces
        self._lock = Lock()
        self._stopped = Event()

    def take(self) -> Piece | None:
        with self._lock:
            return None if self._stopped.is_set() else next(self._pieces, None)

    def stop(self) -> None:
        self._stopped.set()


def _cut(pieces: Iterable[Piece]) -> Iterator[Piece]:
    for offset, target in pieces:
        for begin in range(0, target.numel(), SLAB):
            yield Piece(offset + begin, target[begin : begin + SLAB])


def _read(source: Source, work: _Queue, accelerator: Accelerator) -> None:
    piece = work.take()
    if piece is None:
        return
    try:
        slab = accelerator.slab(SLAB + 2 * PAGE)
        memory = slab.numpy().data
        while piece is not None:
            length = piece.target.numel()
            begin = source.fill(piece.offset, length, memory)
            done = accelerator.copy(piece.target, slab[begin : begin + length])
            piece = work.take()
            done.synchronize()
    except BaseException:
        work.stop()
        raise
