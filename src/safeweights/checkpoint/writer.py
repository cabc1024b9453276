"""Writing a safetensors file tensor by tensor, larger than memory.

Two ways, because the header comes first and must say everything:

- The layout is declared: the header is written at once, and tensors follow in the declared order, in one
  pass.
- It is not: data goes to a file without a name beside the target (a spool), and when the last tensor has
  arrived the header is written, and the system moves the data behind it. The order of the data is the
  reference writer's then.

Nothing is at the target before all is complete, and an error leaves what was there, unless the target is a
stream.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import index
from threading import Lock
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from ..errors import ClosedError, FormatError, SafetensorError, UnsupportedError, quote
from ..format.writer import layout as lay_out
from ..storage import (
    Buffer,
    Computed,
    DescriptorSource,
    LocalStore,
    Run,
    Store,
    flat,
    place_of,
    write_stream,
)
from ..storage.background import Background, News
from ..text import plural
from .file import SafetensorsFile
from .saving import decided, wrong_size
from .tensor import FileTensor, Tensor

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from ..format.header import Header, TensorInfo

__all__ = ["Layout", "Writer"]

Layout: TypeAlias = "Mapping[str, tuple[str, Sequence[int]]]"
"""Name -> element type and shape, in the order of the data."""

_PIECE: Final = 1 << 24
"""Bytes that are handed over at a time."""

_DEPTH: Final = 2
"""Chunks that wait for the thread that writes."""

_SHARED: Final = 4096
"""Where the data of a file begins to which tensors were appended: at a block, so that filesystems that
share blocks need not copy it the next time."""


class Writer:
    """Writes a safetensors file tensor by tensor; use it as a context manager.

    At the end of the block the file is complete, and takes the place of an older one at once. If the block
    fails, what was there stays. Memory: three chunks of at most 16 MiB.

    Args:
        target: A path or URL; a writable file object, such as a pipe; or a store and a name in it. A
            symbolic link is replaced, not followed.
        metadata: Strings to strings. With `append`, entries that are added to those of the file.
        layout: All tensors, in the order in which they will be added. Without it, data is written twice:
            first to a file without a name in the same folder (for other targets, in the folder for
            temporary files).
        append: Keep the tensors of the file that is there, if there is one, and write new ones behind
            them. The data of the old file is not read: the system moves it, or shares it.
        durable: Return only when the file would survive a loss of power.

    Raises:
        FormatError: The format cannot hold the metadata or the layout; or the file to append to is none.
        UnsupportedError: `target` is none of these, or the arguments exclude each other.
        OSError: The target cannot be written.

    >>> import io
    >>> file = io.BytesIO()
    >>> with Writer(file, {"format": "pt"}) as writer:
    ...     writer.add("b", "U8", (2, 2), [b"ab", b"cd"])
    ...     writer.add("a", "U8", (1,), b"e")
    >>> file.getvalue()[-5:]
    b'eabcd'
    """

    def __init__(
        self,
        target: Any,
        metadata: Mapping[str, str] | None = None,
        *,
        layout: Layout | None = None,
        append: bool = False,
        durable: bool = False,
    ) -> None:
        lay_out([], metadata)  # refuses what no header can hold
        self._metadata = metadata
        self._open = True
        self._output = _output(target, durable=durable)
        self._old: SafetensorsFile | None = None
        if append:
            if layout is not None or not isinstance(self._output, _Stored):
                raise UnsupportedError("append needs a file in a store, and no layout")
            self._old = self._output.existing()
        entries = [_entry(name, dtype, shape) for name, (dtype, shape) in (layout or {}).items()]
        header, head = lay_out(entries, metadata, in_order=True)
        names = self._old.header.tensors if self._old is not None else ()
        self._parts: _InOrder | _Spool
        if layout is None:
            self._parts = _Spool(self._output.folder(), names)
        else:
            size = len(head) + header.data_size
            self._parts = _InOrder(header, self._output.begin(head, size))

    def add(
        self, name: str, dtype: str, shape: Sequence[int], chunks: Buffer | Iterable[Buffer]
    ) -> None:
        """Write one tensor.

        Args:
            name: Its name.
            dtype: Code of the element type, e.g. ``"BF16"``.
            shape: Elements along each axis.
            chunks: Its bytes in the order of the format: one buffer, or several, which are taken one
                after another. They may be reused when the next one is asked for.

        Raises:
            FormatError: The name is there already, or not the next one of the layout; the format cannot
                hold it; or there are more or fewer bytes than type and shape need.
            UnsupportedError: A chunk is no contiguous buffer; the name or the type is no string; the shape
                is no sequence of whole numbers.
            ClosedError: The writer is closed.
            OSError: Writing failed.
        """
        if not self._open:
            raise ClosedError("the writer is closed")
        header, _ = lay_out([_entry(name, dtype, shape)])
        info = header.tensors[name]
        with self._parts.tensor(name, info) as write:
            size = 0
            for chunk in _chunks(chunks):
                size += len(chunk)
                if size > info.nbytes:
                    break
                write(chunk)
            if size != info.nbytes:
                raise wrong_size(name, info, size)

    def close(self) -> None:
        """Complete the file; does nothing if the writer is closed already.

        Raises:
            FormatError: Tensors of the layout are missing, or one was not written to its end.
            ChangedError: The file to append to was replaced meanwhile.
            OSError: Writing failed; what was there stays.
        """
        if not self._open:
            return
        try:
            self._parts.finish()
            if isinstance(self._parts, _Spool):
                self._write_spooled(self._parts)
        except BaseException as error:
            self._end(error)
            raise
        self._open = False
        self._parts.close()

    def discard(self) -> None:
        """Give up: nothing is written, and what was there stays."""
        self._end(SafetensorError("the writer was given up"))

    def _end(self, error: BaseException) -> None:
        if self._open:
            self._open = False
            self._parts.fail(error)
            self._parts.close()

    def _write_spooled(self, spool: _Spool) -> None:
        tensors = spool.tensors()
        metadata = self._metadata
        if self._old is not None:
            old = self._old
            tensors = {**old.tensors(), **tensors}
            if old.header.metadata is not None:
                metadata = {**old.header.metadata, **(metadata or {})}
        appended = self._old is not None
        align = _SHARED if appended else 8
        file = decided(tensors, metadata, in_order=appended, align=align)
        self._output.write(file.pieces(), self._old)

    def __del__(self) -> None:
        if getattr(self, "_parts", None) is not None:  # else it could not be made
            self.discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            self._end(error)


def _chunks(given: Any) -> Iterator[memoryview]:
    """The buffers of `given`, in pieces of 16 MiB."""
    try:
        memoryview(given).release()
        buffers = [given]
    except TypeError:
        if not isinstance(given, Iterable):
            flat(given)  # raises
        buffers = given
    for buffer in buffers:
        view = flat(buffer)
        for begin in range(0, len(view), _PIECE):
            yield view[begin : begin + _PIECE]


# ---- where the file goes


class _Begun(NamedTuple):
    """A file of which the header is written, and that takes the data piece by piece."""

    put: Callable[[memoryview], object]
    finish: Callable[[], object]
    fail: Callable[[BaseException], object]


def _temporary_folder() -> str:
    import tempfile  # here, since it imports two compression libraries

    return tempfile.gettempdir()


def _temporary_file(folder: str) -> IO[bytes]:
    """A file without a name, which is gone when it is closed."""
    import tempfile

    return tempfile.TemporaryFile(dir=folder)


class _Stream:
    """A file object."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def folder(self) -> str:
        return _temporary_folder()

    def write(self, pieces: Iterable[Buffer | Run | Computed], old: SafetensorsFile | None) -> None:  # noqa: ARG002
        write_stream(self._file, pieces)

    def begin(self, head: bytes, size: int) -> _Begun:  # noqa: ARG002
        write_stream(self._file, [head])

        def put(chunk: memoryview) -> None:
            write_stream(self._file, [chunk])

        return _Begun(put, lambda: None, lambda _: None)  # what was given cannot be taken back


class _Stored:
    """A name in a store."""

    def __init__(self, store: Store, name: str, *, durable: bool) -> None:
        store.locate(name)  # raises if it is no name
        self._store = store
        self._name = name
        self._durable = durable

    def folder(self) -> str:
        """For the spool: an existing folder, in the filesystem of the file if there is one."""
        if not isinstance(self._store, LocalStore):
            return _temporary_folder()
        folder = os.path.dirname(os.path.abspath(self._store.locate(self._name)))
        while not os.path.isdir(folder):
            folder = os.path.dirname(folder)
        return folder

    def existing(self) -> SafetensorsFile | None:
        """The file that is there."""
        if self._store.kind(self._name) is None:
            return None
        return SafetensorsFile(self._store.open(self._name, backend="pread"))

    def write(self, pieces: Iterable[Buffer | Run | Computed], old: SafetensorsFile | None) -> None:
        with self._store.commit(durable=self._durable) as commit:
            commit.write(self._name, pieces)  # no space is reserved: the data may be shared
            if old is not None:
                self._store.check_version(self._name, old.source.version)

    def begin(self, head: bytes, size: int) -> _Begun:
        beside = Background(name="safeweights-writer")
        return self._pushed(head, size, beside) if beside.start() else self._spooled(head)

    def _spooled(self, head: bytes) -> _Begun:
        """Where the system has no more threads."""
        file = _temporary_file(self.folder())
        file.write(head)

        def finish() -> None:
            with file:
                file.flush()
                source = DescriptorSource(os.dup(file.fileno()), "<spool>", mapped=False)
                self.write([Run(source, 0, source.size)], None)

        return _Begun(file.write, finish, lambda _: file.close())

    def _pushed(self, head: bytes, size: int, beside: Background) -> _Begun:
        """The commit asks for buffers in a thread of its own."""
        channel = _Channel()
        commit = self._store.commit(durable=self._durable)

        def write() -> None:
            try:
                commit.write(self._name, channel.buffers(), size=size)
            finally:
                channel.close()

        job = beside.submit(write)

        def put(chunk: memoryview | bytes) -> None:
            if not channel.put(chunk):
                job.result()  # raises why the commit takes no more

        def finish() -> None:
            channel.end()
            with beside, commit:
                job.result()

        def fail(error: BaseException) -> None:
            channel.close()
            beside.close()
            commit.__exit__(type(error), error, None)

        put(head)
        return _Begun(put, finish, fail)


def _output(target: Any, *, durable: bool) -> _Stream | _Stored:
    if isinstance(target, tuple) and len(target) == 2 and isinstance(target[0], Store):
        return _Stored(*target, durable=durable)
    if isinstance(target, str | os.PathLike):
        place = place_of(target)
        return _Stored(place.store, place.name, durable=durable)
    if hasattr(target, "write"):
        return _Stream(target)
    kind = type(target).__name__
    raise UnsupportedError(
        f"expected a path, a writable file object or (store, name), found {kind}"
    )


class _Channel:
    """Hands buffers from one thread to another, which takes them when it can."""

    def __init__(self) -> None:
        self._lock = Lock()  # not a Condition: an interrupt could leave it locked
        self._news = News()
        self._waiting: deque[bytes] = deque()
        self._ended = False  # no buffer will follow
        self._closed = False  # one of the two has given up

    def put(self, buffer: memoryview | bytes) -> bool:
        """Hand over a copy, since the caller may use the memory again; False if it is not taken."""
        copy = bytes(buffer)
        while True:
            with self._lock:
                full = len(self._waiting) >= _DEPTH and not self._closed
                if full:
                    wait = self._news.expect()
                elif not self._closed:
                    self._waiting.append(copy)
            if not full:
                self._news.tell()
                return not self._closed
            wait()

    def end(self) -> None:
        """Nothing will follow."""
        with self._lock:
            self._ended = True
        self._news.tell()

    def close(self) -> None:
        """Give up, or say that all was taken."""
        with self._lock:
            self._closed = True
        self._news.tell()

    def buffers(self) -> Iterator[Buffer]:
        """What was handed over, in the other thread.

        Raises:
            ClosedError: The rest will not come.
        """
        while True:
            with self._lock:
                if self._closed:
                    raise ClosedError("the writer was given up")
                buffer = self._waiting.popleft() if self._waiting else None
                wait = self._news.expect() if buffer is None and not self._ended else None
            if buffer is not None:
                self._news.tell()
                yield buffer
            elif wait is None:
                return
            else:
                wait()


# ---- the two ways


def _entry(name: str, dtype: str, shape: Sequence[int]) -> tuple[str, str, tuple[int, ...]]:
    """A tensor as the format's writer takes it."""
    for what, given in (("name", name), ("element type", dtype)):
        if not isinstance(given, str):
            kind = type(given).__name__
            raise UnsupportedError(
                f"the {what} of a tensor is a string, not {kind}", tensor=str(name)
            )
    try:
        return name, dtype, tuple(map(index, shape))
    except TypeError:
        message = f"the shape of a tensor is a sequence of whole numbers, not {quote(repr(shape))}"
        raise UnsupportedError(message, tensor=name) from None


class _InOrder:
    """Tensors follow their header, in its order."""

    def __init__(self, header: Header, begun: _Begun) -> None:
        self._waiting = dict(header.tensors)
        self._begun = begun
        self._broken: str | None = None

    @contextmanager
    def tensor(self, name: str, info: TensorInfo) -> Iterator[Callable[[memoryview], object]]:
        self._require_whole()
        following = next(iter(self._waiting.items()), None)
        if following is None or following[0] != name or following[1][:2] != info[:2]:
            what = (
                "no other tensor"
                if following is None
                else (
                    f"{quote(following[0])}, {following[1].dtype} of shape {list(following[1].shape)},"
                )
            )
            raise FormatError(
                f"{quote(name)}, {info.dtype} of shape {list(info.shape)}, is added, but the layout has "
                f"{what} next",
                rule="layout", tensor=name,
            )  # fmt: skip
        self._broken = name
        yield self._begun.put
        self._broken = None
        del self._waiting[name]

    def _require_whole(self) -> None:
        if self._broken is not None:
            raise FormatError(
                f"tensor {quote(self._broken)} was not written to its end",
                rule="size",
                tensor=self._broken,
            )

    def finish(self) -> None:
        self._require_whole()
        if self._waiting:
            raise _missing(self._waiting)
        self._begun.finish()

    def fail(self, error: BaseException) -> None:
        self._begun.fail(error)

    def close(self) -> None:
        """Nothing is left to close."""


class _Spool:
    """Tensors in a file without a name, one after another."""

    def __init__(self, folder: str, taken: Collection[str]) -> None:
        self._file = _temporary_file(folder)
        self._taken = taken
        self._infos: dict[str, TensorInfo] = {}

    @contextmanager
    def tensor(self, name: str, info: TensorInfo) -> Iterator[Callable[[memoryview], object]]:
        if name in self._infos or name in self._taken:
            raise FormatError(
                f"there is a tensor {quote(name)} already", rule="duplicate-key", tensor=name
            )
        begin = self._file.tell()
        try:
            yield self._file.write
        except BaseException:
            self._file.seek(begin)
            self._file.truncate()
            raise
        self._infos[name] = info._replace(begin=begin, end=begin + info.nbytes)

    def tensors(self) -> dict[str, Tensor]:
        """Name -> tensor, in the order in which they came."""
        source = DescriptorSource(os.dup(self._file.fileno()), "<spool>", mapped=False)
        return {name: FileTensor(name, info, source, 0) for name, info in self._infos.items()}

    def finish(self) -> None:
        self._file.flush()

    def fail(self, error: BaseException) -> None:
        """The file has no name: closing it removes it."""

    def close(self) -> None:
        self._file.close()


def _missing(names: Collection[str]) -> FormatError:
    first = next(iter(names))
    return FormatError(
        f"{plural(len(names), 'tensor')} of the layout were not added, the first is {quote(first)}",
        rule="layout", tensor=first,
    )  # fmt: skip
