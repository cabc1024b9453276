"""Tensors read ahead, in the background, each handed out once: of one file, or of a whole checkpoint."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    Generic,
    Literal,
    NamedTuple,
    TypedDict,
    TypeVar,
    overload,
)

from ..checkpoint import not_found
from ..errors import ClosedError, SafetensorError, UnsupportedError, quote
from ..format.gcpause import gc_paused
from .adapter import adapter_for
from .loading import CLOSED, LoadJob, Pipeline, Progress, landing_of, reader_count
from .plans import batches
from .targets import dequantized, opened

if TYPE_CHECKING:
    import jax
    import mlx.core
    import numpy as np
    import paddle
    import tensorflow as tf
    import torch
    from typing_extensions import Self, Unpack

    from ..checkpoint import Checkpoint
    from .adapter import Adapter

__all__ = ["PrefetchLoader", "PrefetchPlan", "TensorMeta", "stream"]

T = TypeVar("T")
PrefetchPlan = Mapping[str, Any] | Iterable[str]
"""Names to index expressions, None for the whole tensor; or names alone."""

THREADS: Final = 8

_AHEAD: Final = 1 << 30
"""Bytes read, or being read, that were not handed out yet."""


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
    """The tensors of a plan, each handed out once; see `safe_open.prefetch` and `stream`.

    Iterating gives (name, tensor) as they arrive; `take` gives one by its name, whichever is next.
    Both may be mixed, in several threads too. A GiB is read ahead of what was handed out; what is
    asked for by name is read at once. Neighbours share memory, 64 MiB of it at most if they are not
    larger (256 MiB on an accelerator), which is free when all of them are gone. On an accelerator it
    belongs to the stream that was current when the loader was made: who uses tensors on another stream
    says so (``Tensor.record_stream``), as for any tensor.

    An error of reading is raised where a tensor is asked for that has not arrived. A forked process
    cannot use the loaders of its parent, but make its own.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        adapter: Adapter,
        device: Any,
        *,
        plan: PrefetchPlan | None = None,
        threads: int = THREADS,
        progress: Progress | None = None,
        copies: bool = False,
    ) -> None:
        if isinstance(threads, bool) or not hasattr(threads, "__index__") or threads < 1:
            raise UnsupportedError(f"threads is {threads!r}, a number from 1 on is needed")
        landing = landing_of(adapter, device, copies=copies)
        found = batches(checkpoint, None if plan is None else _wanted(plan), landing.arena)
        adapter.require(item for batch in found for item in batch.tensors)
        jobs = [LoadJob(batch) for batch in found]
        self._nbytes = sum(batch.nbytes for batch in found)
        self._owners = {name: job for job in jobs for name, _ in job.batch.tensors}
        self._progress = progress
        self._pipeline = Pipeline(jobs, landing, ahead=_AHEAD)
        self._finalizer = weakref.finalize(self, self._pipeline.stop)
        self._pipeline.start(reader_count(jobs, landing, threads))

    def names(self) -> list[str]:
        """The names it hands out, those that it has handed out too: by file, in the order of the data."""
        return list(self._owners)

    def __len__(self) -> int:
        return len(self._owners)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._owners

    @property
    def nbytes(self) -> int:
        """Bytes that are read in all: where `progress` ends."""
        return self._nbytes

    def take(self, name: str) -> T:
        """The tensor called `name`, or the part of it that the plan wants; waits until it is there.

        Raises:
            SafetensorError: It is not in the plan, or was handed out before.
            ClosedError: The loader was closed.
            OSError: Reading failed.
        """
        job = self._owners.get(name) if isinstance(name, str) else None
        if job is None:
            shown = quote(name) if isinstance(name, str) else repr(name)
            raise SafetensorError(f"tensor {shown} is not in the prefetch plan")
        self._pipeline.wait_for(job, self._progress)
        with job.lock:
            tensors = self._arrived(job)
            if name not in tensors:
                raise SafetensorError(
                    f"tensor {quote(name)} was already delivered: prefetch hands each out once",
                    tensor=name,
                )
            tensor = self._hand_out(job, tensors, name)
        return tensor  # noqa: RET504 - not within `with`: an interrupt may come between the two

    def __iter__(self) -> Iterator[tuple[str, T]]:
        while (job := self._pipeline.next_complete(self._progress)) is not None:
            while (item := self._any_of(job)) is not None:
                yield item

    def _any_of(self, job: LoadJob) -> tuple[str, T] | None:
        with job.lock:
            tensors = self._arrived(job)
            name = next(iter(tensors), None)
            if name is None:  # all are handed out, but an interrupt came before the release
                self._pipeline.release(job)
            else:
                tensor = self._hand_out(job, tensors, name)
        return None if name is None else (name, tensor)

    def _arrived(self, job: LoadJob) -> dict[str, T]:
        """What was not handed out of a complete job; decoded when first looked at."""
        if job.tensors is None:
            if job.transfer is None:
                raise ClosedError(CLOSED)
            with gc_paused():
                job.take()
        return job.take()

    def _hand_out(self, job: LoadJob, tensors: dict[str, T], name: str) -> T:
        tensor = tensors.pop(name)
        if not tensors:
            self._pipeline.release(job)
        return tensor

    def close(self) -> None:
        """Stop reading, and drop what was not handed out; closing twice is allowed.

        Returns when no thread is left.
        """
        self._pipeline.close()
        if self._pipeline.inherited:
            return  # the locks of jobs may be held for ever, too
        for job in self._owners.values():
            with job.lock:
                job.transfer = job.tensors = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _wanted(plan: PrefetchPlan) -> dict[str, Any]:
    """Name -> index expression, None where all of the tensor is wanted."""
    if isinstance(plan, Mapping):
        return dict(plan)
    try:
        if isinstance(plan, str):
            raise TypeError("a name is no plan")
        names = list(plan)
    except TypeError as error:
        kind = type(plan).__name__
        raise UnsupportedError(
            f"argument 'plan': '{kind}' object is neither names nor a mapping of them: {error}"
        ) from error
    for name in names:
        if not isinstance(name, str):
            raise not_found(name, None)
    return dict.fromkeys(names)


class _Reading(TypedDict, total=False):
    plan: PrefetchPlan | None
    backend: str | None
    threads: int
    progress: Progress | None
    trust: object
    identity: Any
    dequantize: bool | str


@overload
def stream(
    target: Any,
    framework: Literal["pt", "torch", "pytorch"],
    device: str | int | torch.device | None = ...,
    **reading: Unpack[_Reading],
) -> PrefetchLoader[torch.Tensor]: ...
@overload
def stream(
    target: Any,
    framework: Literal["np", "numpy"],
    device: str | None = ...,
    **reading: Unpack[_Reading],
) -> PrefetchLoader[np.ndarray[Any, np.dtype[Any]]]: ...
@overload
def stream(
    target: Any,
    framework: Literal["jax", "flax"],
    device: str | jax.Device | jax.sharding.Sharding | None = ...,
    **reading: Unpack[_Reading],
) -> PrefetchLoader[jax.Array]: ...
@overload
def stream(
    target: Any,
    framework: Literal["tf", "tensorflow"],
    device: str | None = ...,
    **reading: Unpack[_Reading],
) -> PrefetchLoader[tf.Tensor]: ...
@overload
def stream(
    target: Any,
    framework: Literal["mlx"],
    device: str | None = ...,
    **reading: Unpack[_Reading],
) -> PrefetchLoader[mlx.core.array]: ...
@overload
def stream(
    target: Any,
    framework: Literal["paddle"],
    device: str | int | None = ...,
    **reading: Unpack[_Reading],
) -> PrefetchLoader[paddle.Tensor]: ...
@overload
def stream(
    target: Any, framework: str, device: Any = ..., **reading: Unpack[_Reading]
) -> PrefetchLoader[Any]: ...


def stream(
    target: Any,
    framework: str,
    device: Any = "cpu",
    *,
    plan: PrefetchPlan | None = None,
    backend: str | None = None,
    threads: int = THREADS,
    progress: Progress | None = None,
    trust: object = None,
    identity: Any = None,
    dequantize: bool | str = False,
) -> PrefetchLoader[Any]:
    """The tensors of a checkpoint, of many files too, read in the background, each as it arrives.

    Args:
        target: A file, an ``index.json``, a folder, a file object, bytes, or a `Checkpoint` of any kind:
            filtered, renamed, cast, converted.
        framework: As for `safe_open`.
        device: Where tensors go; as for `safe_open`.
        plan: What is wanted: names to index expressions (None for the whole tensor, a slice for its
            rows ...), or names alone; None for everything. Nothing else is read.
        backend: As for `safe_open`. None: ``"auto"`` for torch, MLX and Paddle, ``"read"`` for the others.
        threads: How many read, at most.
        progress: Called with the number of bytes that have arrived, of the result's `nbytes`, in the
            thread that waits for a tensor.
        trust: What every file must fulfil before a byte of it is used; see `safe_open`.
        identity: Who opens encrypted files; see `safe_open`.
        dequantize: Quantised weights become numbers: True for F32, or a type such as ``"BF16"``; see
            `Checkpoint.dequantize`.

    Raises:
        FormatError: A file breaks the format, an index disagrees with its shards.
        TensorNotFoundError, SelectionError: The plan wants what is not there.
        UnsupportedError: The framework has no such element type.
        TrustError: A file is not what `trust` asks for.
        OSError: Something cannot be opened.

    >>> import numpy, safeweights.numpy, tempfile, os
    >>> path = os.path.join(tempfile.mkdtemp(), "x.safetensors")
    >>> safeweights.numpy.save_file({"a": numpy.arange(6.0).reshape(2, 3)}, path)
    >>> with stream(path, "np") as tensors:
    ...     for name, tensor in tensors:
    ...         print(name, tensor.shape)
    a (2, 3)
    """
    adapter = adapter_for(framework)
    found = adapter.check_device(device)
    if backend is None:
        backend = "auto" if adapter.maps else "read"
    return PrefetchLoader(
        dequantized(opened(target, backend, trust, identity), dequantize), adapter, found,
        plan=plan, threads=threads, progress=progress,
        copies=not adapter.maps and isinstance(target, Mapping),
    )  # fmt: skip
