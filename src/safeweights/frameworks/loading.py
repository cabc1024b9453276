"""Loading: batches of tensors, read by a few threads, complete one after another.

All threads take pieces from one queue, so that it does not matter whether a batch is large or small, or
in which file. A batch is complete when its last piece has arrived, while later ones are on their way.

Where a batch goes is a `Landing`: the memory of the host, here, or that of an accelerator (`staging`).

Ctrl-C may arrive between any two instructions of the thread that waits. So a lock is only ever held by
``with`` on the lock itself, waiting is the business of `News`, and what an interrupt leaves half-done
ends the pipeline.
"""

from __future__ import annotations

import math
import os
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from threading import Lock, RLock
from typing import TYPE_CHECKING, Any, Final

from ..checkpoint import Checkpoint
from ..errors import ClosedError, UnsupportedError
from ..storage import allocate
from ..storage.background import Background, News
from ..storage.parallel import CHUNK, cut, thread_count
from .plans import Batch, Landing, Scattered, Transfer, batches
from .slices import ReadPart, read_part
from .values import own_bytes
from .wording import worded

if TYPE_CHECKING:
    from ..checkpoint import SafetensorsFile, Tensor
    from ..storage import Source
    from .adapter import Adapter

__all__ = [
    "CLOSED",
    "Gathering",
    "HostLanding",
    "LoadJob",
    "Pipeline",
    "Progress",
    "landing_of",
    "load_all",
    "load_one",
    "reader_count",
]

CLOSED: Final = "prefetch loader closed"

Progress = Callable[[int], object]

_STAGED: Final = 1 << 20
"""Size above which pinned memory and threads pay off for one tensor."""


class HostLanding:
    """Memory of the host; what the framework makes of it there, or moves from there, tensor by tensor."""

    arena = 1 << 26
    threads = 0
    in_place = True
    ahead: int | None = None

    def __init__(self, adapter: Adapter, device: Any, *, copies: bool = False) -> None:
        self._adapter = adapter
        self._device = device
        self._copies = copies
        self.in_place = not copies

    def filling(self) -> AbstractContextManager[object]:
        return nullcontext()

    def begin(self, batch: Batch | Scattered) -> Transfer:
        made = _HostTransfer if isinstance(batch, Batch) else Gathering
        return made(batch, self._adapter, self._device, copies=self._copies)  # type: ignore[arg-type]


class _HostTransfer:
    def __init__(self, batch: Batch, adapter: Adapter, device: Any, *, copies: bool) -> None:
        self._batch, self._adapter, self._device = batch, adapter, device
        self._source, self._offset = batch.source, batch.data_start + batch.begin
        if copies and batch.source.in_memory:
            self._data = allocate(batch.nbytes)
            self.extent, self.step, self.least = batch.nbytes, CHUNK, CHUNK
            self.fill: Callable[[int, int], object] = self._copy
            return
        reading = batch.source.reading(self._offset, batch.nbytes, aligned=adapter.aligned)
        self.extent, self.step, self.fill = reading.extent, reading.step, reading.fill
        self.least = reading.least or reading.step
        self._data = reading.data

    def _copy(self, begin: int, end: int) -> None:
        # Reads a mapped file, too: where it was truncated, that is an error instead of SIGBUS.
        self._source.read_into(self._offset + begin, self._data[begin:end])

    def tensors(self) -> dict[str, Any]:
        batch = self._batch
        return self._adapter.decode_all(self._data, batch.begin, batch.tensors, self._device)


class Gathering:
    """A scattered part, gathered in one go by one thread."""

    extent = step = least = 1

    def __init__(
        self, part: Scattered, adapter: Adapter, device: Any, *, copies: bool = False
    ) -> None:
        self._wanted, self._adapter, self._device = part, adapter, device
        self._copies = copies
        self._part: ReadPart | None = None

    def fill(self, begin: int, end: int) -> None:
        del begin, end  # all of it
        tensor, expression = self._wanted.tensor, self._wanted.expression
        if expression is not None:
            self._part = read_part(tensor, expression)
        else:
            data = own_bytes(tensor) if self._copies else tensor.view()
            self._part = ReadPart(data, tensor.shape)

    def tensors(self) -> dict[str, Any]:
        assert self._part is not None
        return self._adapter.decode_all(self._part.data, 0, self._wanted.tensors, self._device)


def landing_of(adapter: Adapter, device: Any, *, copies: bool = False) -> Landing:
    """Where tensors for `device` (what the adapter's `check_device` returned) go.

    Args:
        adapter: Of the framework.
        device: The device.
        copies: Tensors on the host share no memory with what they are read from.
    """
    copies = copies or not adapter.shares_memory(device)
    return adapter.landing(device) or HostLanding(adapter, device, copies=copies)


class LoadJob:
    """A batch, and how far it is.

    Attributes:
        batch: What is to be read.
        tensors: What was not handed out yet, once it has arrived and was decoded.
        lock: Held while `tensors` changes.
    """

    __slots__ = ("_counted", "_left", "batch", "lock", "tensors", "transfer")

    def __init__(self, batch: Batch | Scattered) -> None:
        self.batch = batch
        self.transfer: Transfer | None = None
        self.tensors: dict[str, Any] | None = None
        self.lock = Lock()
        self._left: int | None = None  # pieces under way; None: not begun
        self._counted = 0

    @property
    def begun(self) -> bool:
        """Whether memory was set aside."""
        return self._left is not None

    @property
    def complete(self) -> bool:
        """Whether everything has arrived."""
        return self._left == 0

    def take(self) -> dict[str, Any]:
        """The tensors of a complete job; they are made when first asked for."""
        if self.tensors is None:
            assert self.transfer is not None
            self.tensors = self.transfer.tensors()
            self.transfer = None
        return self.tensors

    def begin(self, transfer: Transfer, after: int, threads: int) -> list[tuple[LoadJob, int, int]]:
        """The pieces to be fetched, by `threads` threads, which then have `after` more bytes to read."""
        self.transfer = transfer
        pieces = cut(
            transfer.extent, most=transfer.step, least=transfer.least, after=after, threads=threads
        )
        found = [(self, begin, end) for begin, end in pieces]
        self._left = len(found)
        return found

    def arrived(self, nbytes: int) -> int:
        """Note a piece; how many bytes nearer the goal that is, what was read beside it left out."""
        assert self._left is not None
        self._left -= bool(self._left)
        counted = (
            self.batch.nbytes if self.complete else min(self.batch.nbytes, self._counted + nbytes)
        )
        nearer, self._counted = counted - self._counted, counted
        return nearer


class Pipeline:
    """Jobs, worked off in their order by threads that share their pieces.

    Args:
        jobs: In the order in which they are to be read.
        landing: Sets memory aside for a batch, when its turn has come.
        ahead: Bytes that may be read, or be on their way, before some are `release`d.

    A caller that waits may give a `Progress`, which is called with the number of bytes that have
    arrived, in the thread that waits. It is not kept: the threads hold the pipeline, and it may hold
    anything.
    """

    def __init__(
        self,
        jobs: Sequence[LoadJob],
        landing: Landing,
        *,
        ahead: float = math.inf,
    ) -> None:
        self._landing = landing
        self._room = ahead
        self._lock = RLock()  # guards everything below; re-entrant, for `stop` in a finalizer
        self._news = News()
        self._waiting = OrderedDict.fromkeys(jobs)
        self._unbegun = sum(job.batch.nbytes for job in jobs)
        self._threads = 1
        self._watched = False  # whether a caller is told of each piece
        self._complete: OrderedDict[LoadJob, None] = OrderedDict()
        self._pieces: deque[tuple[LoadJob, int, int]] = deque()
        self._unreleased = len(jobs)
        self._bytes = 0
        self._failure: BaseException | None = None
        self._stopped = False
        self._readers: Background | None = None
        self._process = os.getpid()

    @property
    def inherited(self) -> bool:
        """Whether this is a forked child: without the threads, and with locks as they were then."""
        return os.getpid() != self._process

    def start(self, threads: int) -> None:
        """Have `threads` read from now on; they end when there is nothing left, or at `stop`.

        Where the system has no more threads, fewer read.

        Raises:
            RuntimeError: It has none.
        """
        try:
            if not self._start(threads):
                raise RuntimeError("can't start new thread")
        except BaseException:
            self.close()  # some may have been started before the interrupt
            raise

    def _start(self, threads: int) -> int:
        self._threads = threads
        self._readers = Background(threads, "safeweights-reader")
        count = self._readers.start()
        for _ in range(count):
            self._readers.submit(self.work)
        self._readers.finish()
        return count

    def work(self) -> None:
        """What each of the threads does: fetch pieces until there are none."""
        try:
            with self._landing.filling():
                while (piece := self._next_piece()) is not None:
                    job, begin, end = piece
                    assert job.transfer is not None
                    job.transfer.fill(begin, end)
                    self._note(job, end - begin)
        except BaseException as error:  # noqa: BLE001 - raised where the tensors are waited for
            self._fail(error)

    def _work_alone(
        self, progress: Progress | None, finished: Callable[[LoadJob], object] | None
    ) -> None:
        """Work everything off in this thread, which shares nothing, and so locks and wakes nothing.

        Between two copies, with caches that they have filled, even that counts: 50 us for each batch.
        """
        arrived = 0
        try:
            for job in self._waiting:
                nbytes = job.batch.nbytes
                job.transfer = transfer = self._landing.begin(job.batch)
                for begin, end in cut(
                    transfer.extent, most=transfer.step, least=transfer.least, threads=1
                ):
                    with self._landing.filling():
                        transfer.fill(begin, end)
                    if progress is not None:
                        progress(arrived + nbytes * end // transfer.extent)
                arrived += nbytes
                if finished is not None:
                    finished(job)
        except OSError as error:
            raise worded(error)  # noqa: B904 - which has its cause

    def _next_piece(self) -> tuple[LoadJob, int, int] | None:
        while True:
            with self._lock:
                if not self._pieces:
                    if self._stopped or not self._waiting:
                        return None
                    if self._room > 0:
                        self._set_out(next(iter(self._waiting)))
                if self._pieces:
                    return self._pieces.popleft()
                wait = self._news.expect()
            wait()

    def _set_out(self, job: LoadJob) -> None:
        try:
            del self._waiting[job]
            self._room -= job.batch.nbytes
            self._unbegun -= job.batch.nbytes
            after = min(self._unbegun, max(0, self._room))  # what threads need not wait for
            pieces = job.begin(self._landing.begin(job.batch), int(after), self._threads)
            if self._stopped:  # meanwhile, by a finalizer in this thread
                return
            # In front: one that is wanted out of turn is wanted now, else there are no others.
            self._pieces.extendleft(reversed(pieces))
            if job.complete:
                self._note(job, 0)
            self._news.tell()
        except BaseException as error:
            self._fail(error)
            raise

    def _note(self, job: LoadJob, nbytes: int) -> None:
        with self._lock:
            self._bytes += job.arrived(nbytes)
            if job.complete:
                self._complete[job] = None
            # A thread that is woken competes with the readers for the interpreter's lock.
            wanted = job.complete or self._watched
        if wanted:
            self._news.tell()

    def wait_for(self, job: LoadJob, progress: Progress | None = None) -> None:
        """Return when `job` is complete; it is begun now if its turn has not come.

        Raises:
            ClosedError: After `stop`.
            Exception: Reading failed.
        """

        def arrived() -> bool:
            if not job.begun and not self._stopped:
                self._set_out(job)
            return job.complete

        self._wait(arrived, progress)

    def next_complete(self, progress: Progress | None = None) -> LoadJob | None:
        """A job that is complete and not released; waits for one. None: there are no more."""
        found: LoadJob | None = None

        def any_complete() -> bool:
            # Taken here, under the lock: it may be released before this thread goes on.
            nonlocal found
            found = next(iter(self._complete), None)
            return found is not None or not self._unreleased

        self._wait(any_complete, progress)
        return found

    def _wait(self, ready: Callable[[], bool], progress: Progress | None) -> None:
        if self.inherited:
            raise UnsupportedError(
                "a prefetch loader reads in threads, which a forked process does not inherit: make the "
                "loader in the process that uses it"
            )
        told = -1
        self._watched = self._watched or progress is not None
        while True:
            with self._lock:
                arrived, done = self._bytes, ready()
                if not done and self._failure is not None:
                    raise self._failure
                if not done and self._stopped:
                    raise ClosedError(CLOSED)
                wait = self._news.expect()
            if progress is not None and arrived != told:
                told = arrived
                progress(arrived)
            if done:
                return
            wait()

    def release(self, job: LoadJob) -> None:
        """Note that everything of a complete job was handed out: there is room for another."""
        try:
            with self._lock:
                if self._complete.pop(job, job) is not None:
                    return
                self._unreleased -= 1
                self._room += job.batch.nbytes
            self._news.tell()
        except BaseException as error:
            self._fail(error)
            raise

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            self._failure = self._failure or worded(error)
            self._give_up()

    def _give_up(self) -> None:
        self._stopped = True
        self._waiting.clear()
        self._pieces.clear()
        self._news.tell()

    def stop(self) -> None:
        """Begin nothing any more. Called in any thread at any time, by the garbage collector too."""
        if self.inherited:
            return
        with self._lock:
            self._give_up()

    def close(self) -> None:
        """Stop, and wait until no thread touches the memory any more.

        A reader, in which a finalizer may run, does not wait: the others may be waiting for its lock. An
        interrupt meanwhile is raised when they have ended; a second one is raised at once.
        """
        try:
            self._end()
        except BaseException:
            self._end()
            raise

    def _end(self) -> None:
        unfinished = len(self._complete) < self._unreleased
        self.stop()
        if self._readers is not None and not self.inherited:
            self._readers.end(stop=unfinished)

    def run(
        self,
        threads: int,
        progress: Progress | None = None,
        *,
        finished: Callable[[LoadJob], object] | None = None,
    ) -> None:
        """Work everything off. No thread is left.

        Args:
            threads: How many read; up to 1, and where there are none to be had, the calling one does.
            progress: Called with the number of bytes that have arrived.
            finished: Called in this thread with each job that is complete, which is then released.
        """
        if threads <= 1:
            self._work_alone(progress, finished)
            return
        try:
            if not self._start(threads):
                self._work_alone(progress, finished)
                return
            while finished is not None and (job := self.next_complete(progress)) is not None:
                finished(job)
                self.release(job)
            self._wait(lambda: len(self._complete) == self._unreleased, progress)
        finally:
            # As `close`, but without a call before the `try`, at which an interrupt could get out.
            try:
                self._end()
            except BaseException:
                self._end()
                raise


def reader_count(jobs: Sequence[LoadJob], landing: Landing, at_most: int = 0) -> int:
    """How many threads to read with: what the sources are best read with, and not for two pieces."""
    pieces = sum(max(1, -(-job.batch.nbytes // CHUNK)) for job in jobs)
    if pieces <= 2:
        return 1
    threads = landing.threads
    if not threads:
        threads = max(job.batch.threads for job in jobs) or thread_count()
    return min(pieces, threads, at_most or threads)


def load_all(
    checkpoint: Checkpoint,
    adapter: Adapter,
    device: Any,
    progress: Progress | None = None,
    *,
    copies: bool = False,
) -> dict[str, Any]:
    """All tensors of a checkpoint, in the order of the files and of their data.

    Args:
        checkpoint: Any.
        adapter: Of the framework.
        device: What the adapter's `check_device` returned.
        progress: Called with the number of bytes read so far.
        copies: See `landing_of`.

    Cost: each byte is read once; of what is mapped or in memory nothing is, unless it is copied.
    """
    landing = landing_of(adapter, device, copies=copies)
    files = checkpoint.files
    if landing.in_place and files:
        sources = [file.source.for_all() for file in files]
        if all(source.in_memory for source in sources):
            return _decoded_in_place(files, sources, adapter, device, progress)
    jobs = [LoadJob(batch) for batch in batches(checkpoint, None, landing.arena)]
    adapter.require(item for job in jobs for item in job.batch.tensors)
    readers = reader_count(jobs, landing)
    if landing.ahead is None:
        Pipeline(jobs, landing).run(readers, progress)
    else:
        pipeline = Pipeline(jobs, landing, ahead=landing.ahead)
        pipeline.run(readers, progress, finished=LoadJob.take)
    result: dict[str, Any] = {}
    for job in jobs:
        result.update(job.take())
        job.tensors = None
    adapter.settle(result)
    return result if files else {name: result[name] for name in checkpoint}


def load_one(tensor: Tensor, adapter: Adapter, device: Any, *, copies: bool = False) -> Any:
    """One tensor, on the device.

    Args:
        tensor: Any.
        adapter: Of the framework.
        device: What the adapter's `check_device` returned.
        copies: On the host it shares no memory with what it is read from.

    Cost: on the host a read, or of what is mapped or in memory none. On an accelerator it is read into
    pinned memory and copied from there: tensors of 64 MiB, one after another, arrive at 12.7 GiB/s on
    an H200, where copies from a mapping reach 7.4.
    """
    on_host = adapter.shares_memory(device)
    if not on_host and tensor.nbytes >= _STAGED:
        (found,) = load_all(Checkpoint({tensor.name: tensor}), adapter, device).values()
        return found
    data = own_bytes(tensor) if copies or not on_host else tensor.view()
    return adapter.decode(data, tensor.dtype, tensor.shape, device, name=tensor.name)


def _decoded_in_place(
    files: Sequence[SafetensorsFile],
    sources: Sequence[Source],
    adapter: Adapter,
    device: Any,
    progress: Progress | None,
) -> dict[str, Any]:
    """The tensors of files that are mapped or in memory, over that memory."""
    result: dict[str, Any] = {}
    done = 0
    for file, source in zip(files, sources, strict=True):
        start, tensors = file.header.data_start, file.header.tensors.items()
        data = source.view(start, source.size - start)
        found = adapter.decode_all(data, 0, tensors, device)
        result = result | found if result else found
        done += len(data)
    if progress is not None:
        progress(done)
    return result
