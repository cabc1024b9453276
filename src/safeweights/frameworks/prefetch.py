"""Tensors read ahead, in the background, in the order in which they stand in the file."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar

from ..errors import ClosedError, SafetensorError, quote
from .slices import Part, read_part

if TYPE_CHECKING:
    from typing_extensions import Self

    from ..checkpoint import FileTensor
    from .adapter import Adapter

__all__ = ["Plan", "PrefetchLoader", "TensorMeta"]

T = TypeVar("T")
Plan = Iterable[str] | Mapping[str, Any]
"""Names, or names to index expressions (None for the whole tensor)."""

_WORKERS: Final = 4


class TensorMeta(NamedTuple):
    """What a header says of a tensor.

    Attributes:
        dtype: Code of the element type.
        shape: Elements along each axis.
        data_offsets: Where its bytes begin and end, from the beginning of the file's data.
    """

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]

    @property
    def nbytes(self) -> int:
        """Bytes it takes."""
        return self.data_offsets[1] - self.data_offsets[0]


class PrefetchLoader(Generic[T]):
    """The tensors of a plan, each handed out once; see `safe_open.prefetch`.

    Iterating gives (name, tensor) in file order; `get_tensor` takes one out of order. `len` is what has
    not been handed out yet. At most `max_inflight` tensors are read and not yet handed out, so memory
    is bounded by the largest of them. Tensors own their memory.

    Args:
        jobs: Name to tensor and index expression, in file order.
        adapter: The framework.
        device: What the adapter's `check_device` returned.
        max_inflight: How many tensors are read ahead.
    """

    def __init__(
        self,
        jobs: Mapping[str, tuple[FileTensor, Any]],
        adapter: Adapter,
        device: Any,
        max_inflight: int,
    ) -> None:
        if max_inflight < 1:
            raise SafetensorError(f"max_inflight is {max_inflight}, at least 1 is needed")
        self._jobs = dict(jobs)
        self._adapter = adapter
        self._device = device
        self._inflight = max_inflight
        self._waiting = deque(self._jobs)
        self._reads: dict[str, Future[Part]] = {}
        workers = min(_WORKERS, max_inflight, len(self._jobs) or 1)
        self._pool: ThreadPoolExecutor | None = ThreadPoolExecutor(workers, "safeweights-prefetch")
        self._finalizer = weakref.finalize(
            self, self._pool.shutdown, wait=False, cancel_futures=True
        )
        self._read_ahead()

    def _read_ahead(self) -> None:
        assert self._pool is not None
        while self._waiting and len(self._reads) < self._inflight:
            name = self._waiting.popleft()
            if name in self._jobs and name not in self._reads:
                self._reads[name] = self._submit(name)

    def _submit(self, name: str) -> Future[Part]:
        assert self._pool is not None
        tensor, expression = self._jobs[name]
        return self._pool.submit(_read, tensor, expression, clamp=self._adapter.native_indexing)

    def get_tensor(self, name: str) -> T:
        """The tensor called `name`, whichever is next; waits until it is read.

        Raises:
            SafetensorError: It is not in the plan, or was handed out before.
            ClosedError: The loader was closed.
        """
        if self._pool is None:
            raise ClosedError
        if name not in self._jobs:
            raise SafetensorError(
                f"tensor {quote(name)} is not in the plan, or was handed out before", tensor=name
            )
        read = self._reads.pop(name, None) or self._submit(name)
        tensor, _ = self._jobs.pop(name)
        self._read_ahead()
        data, shape = read.result()
        decoded: T = self._adapter.decode(data, tensor.dtype, shape, self._device)
        return decoded

    @property
    def names(self) -> list[str]:
        """What was not handed out yet, in file order."""
        return list(self._jobs)

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[tuple[str, T]]:
        return self

    def __next__(self) -> tuple[str, T]:
        name = next(iter(self._jobs), None)
        if name is None or self._pool is None:
            self.close()
            raise StopIteration
        return name, self.get_tensor(name)

    def close(self) -> None:
        """Stop reading; closing twice is allowed."""
        self._pool = None
        self._jobs.clear()
        self._reads.clear()
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _read(tensor: FileTensor, expression: Any, *, clamp: bool) -> Part:
    return read_part(tensor, ... if expression is None else expression, clamp=clamp, owned=True)
