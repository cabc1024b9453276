"""`safe_open`: a file or a whole checkpoint, opened for one framework."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING, Any, Generic, Literal, TypeVar, overload

from ..checkpoint import Checkpoint, SafetensorsFile, Tensor
from ..errors import ClosedError, MissingDependencyError, UnsupportedError
from ..trust.verifier import check_unnamed
from .adapter import Adapter, MissingAdapter, adapter_for
from .loading import Progress, load_all, load_one
from .prefetch import THREADS, PrefetchLoader, PrefetchPlan, TensorMeta
from .slices import Slice
from .targets import opened
from .wording import prefixed, reading, worded

if TYPE_CHECKING:
    from collections.abc import Iterator

    import jax
    import mlx.core
    import numpy as np
    import paddle
    import tensorflow as tf
    import torch
    from typing_extensions import Self

    from ..format.header import TensorInfo

__all__ = ["PySafeSlice", "_safe_open_handle", "safe_open"]

T = TypeVar("T")
Target = str | os.PathLike[str] | IO[bytes] | Mapping[str, Tensor]
PySafeSlice = Slice


class safe_open(Generic[T]):  # noqa: N801 - the reference's name
    """Open a checkpoint and hand out its tensors one at a time.

    Opening reads and checks the headers; nothing else is read until it is asked for. Tensors and
    slices stay valid after the file is closed, and closing is optional.

    Args:
        filename: A file, an ``index.json``, a folder, a readable file object, or a `Checkpoint` of any
            kind: filtered, renamed, cast, converted.
        framework: ``"pt"``, ``"np"``, ``"jax"`` ... (`safeweights.frameworks.adapter.FRAMEWORKS`).
        device: Where tensors go; what the framework understands.
        backend: ``"mmap"``: tensors share a private mapping of the file; values are read when they are
            first used, so the file must not change as long as a tensor lives, and truncating it ends the
            process. ``"pread"``: every tensor is read into memory of its own; ``"direct"``: the same, past
            the page cache; ``"read"`` chooses between these two, ``"auto"`` among all. None: what the
            reference's tensors of this framework do: ``"mmap"`` for torch, ``"read"`` for NumPy, JAX and
            TensorFlow. (MLX and Paddle copy in any case: ``"mmap"``.)
        trust: A policy, a public key, a warrant, or the path of one (`safeweights.trust.as_verifier`).
            Every byte is then checked before it is handed out, from memory that no other process can
            change; of a file signed with a block tree only the blocks that are read.
        identity: Who opens an encrypted model (age v1): the path of a file of identities or of an SSH
            key, a `safeweights.trust.Passphrase`, a function from a stanza to a file key, or several of
            these. What is read is decrypted into private memory, and never written to a disk.

    Raises:
        FormatError: The file breaks a rule of the format, or is of another format.
        OSError: It cannot be opened.
        SafetensorError: No such framework, device or backend.
        TrustError: The file is not what `trust` asks for, here or when it is read.

    Example:
        >>> import numpy, safeweights.numpy, tempfile, os
        >>> path = os.path.join(tempfile.mkdtemp(), "x.safetensors")
        >>> safeweights.numpy.save_file({"a": numpy.arange(6.0).reshape(2, 3)}, path)
        >>> with safe_open(path, "np") as f:
        ...     f.keys(), f.get_slice("a")[1, ::2]
        (['a'], array([3., 5.]))
    """

    @overload
    def __init__(
        self: safe_open[torch.Tensor],
        filename: Target,
        framework: Literal["pt", "torch", "pytorch"],
        device: str | int | torch.device | None = ...,
        *,
        backend: str | None = ...,
        trust: object = ...,
        identity: Any = ...,
    ) -> None: ...
    @overload
    def __init__(
        self: safe_open[np.ndarray[Any, np.dtype[Any]]],
        filename: Target,
        framework: Literal["np", "numpy"],
        device: str | None = ...,
        *,
        backend: str | None = ...,
        trust: object = ...,
        identity: Any = ...,
    ) -> None: ...
    @overload
    def __init__(
        self: safe_open[jax.Array],
        filename: Target,
        framework: Literal["jax", "flax"],
        device: str | jax.Device | jax.sharding.Sharding | None = ...,
        *,
        backend: str | None = ...,
        trust: object = ...,
        identity: Any = ...,
    ) -> None: ...
    @overload
    def __init__(
        self: safe_open[tf.Tensor],
        filename: Target,
        framework: Literal["tf", "tensorflow"],
        device: str | None = ...,
        *,
        backend: str | None = ...,
        trust: object = ...,
        identity: Any = ...,
    ) -> None: ...
    @overload
    def __init__(
        self: safe_open[mlx.core.array],
        filename: Target,
        framework: Literal["mlx"],
        device: str | None = ...,
        *,
        backend: str | None = ...,
        trust: object = ...,
        identity: Any = ...,
    ) -> None: ...
    @overload
    def __init__(
        self: safe_open[paddle.Tensor],
        filename: Target,
        framework: Literal["paddle"],
        device: str | int | None = ...,
        *,
        backend: str | None = ...,
        trust: object = ...,
        identity: Any = ...,
    ) -> None: ...
    @overload
    def __init__(
        self: safe_open[Any],
        filename: Target,
        framework: str,
        device: Any = ...,
        *,
        backend: str | None = ...,
        trust: object = ...,
        identity: Any = ...,
    ) -> None: ...

    def __init__(
        self,
        filename: Target,
        framework: str,
        device: Any = "cpu",
        *,
        backend: str | None = None,
        trust: object = None,
        identity: Any = None,
    ) -> None:
        # As in the reference, names and metadata can be had without the framework.
        self._adapter: Adapter = _adapter_or_missing(framework)
        adapter = self._adapter
        self._device = adapter.check_device(device)
        if backend is None:
            backend = "mmap" if adapter.maps else "read"
        # First of all, because `opened` also checks the type of `backend`.
        self._checkpoint: Checkpoint | None = opened(filename, backend, trust, identity)
        # What is mapped or read for this handle alone may be shared among all that is loaded in one go.
        self._copies = not adapter.maps and backend != "mmap"
        self._copies_all = self._copies and isinstance(filename, Mapping)

    @classmethod
    def of(cls, data: Any, framework: str, device: Any = "cpu") -> Self:
        """A handle on bytes in memory that hold a whole file."""
        check_unnamed()
        self = cls.__new__(cls)
        self._adapter = adapter_for(framework)
        self._device = self._adapter.check_device(device)
        self._copies = self._copies_all = False
        with prefixed("Error while deserializing: "):
            file = SafetensorsFile.open(data)
        self._checkpoint = Checkpoint.from_files([file], file.name)
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled for worker processes, such as those of a `DataLoader`: see `Checkpoint`."""
        state = {
            "_device": self._device,
            "_checkpoint": self._checkpoint,
            "_copies": self._copies,
            "_copies_all": self._copies_all,
        }
        return _handle_again, (type(self), self._adapter.name, state)

    def _opened(self) -> Checkpoint:
        if self._checkpoint is None:
            raise ClosedError
        return self._checkpoint

    def keys(self) -> list[str]:
        """Names of the tensors, sorted."""
        return sorted(self._opened())

    def offset_keys(self) -> list[str]:
        """Names of the tensors, in the order of the files and of their data."""
        return list(self._opened())

    def metadata(self) -> dict[str, str] | None:
        """The file's metadata, of several what they agree on; None where there is none."""
        return self._opened().metadata

    def info(self, name: str) -> TensorInfo:
        """Type, shape and place of a tensor, without reading it."""
        return self._opened()[name].info

    def get_tensor_meta(self, name: str) -> TensorMeta:
        """Type, shape and offsets of a tensor, without reading it.

        Raises:
            TensorNotFoundError: There is none of that name.
        """
        dtype, shape, begin, end = self.info(name)
        return TensorMeta(dtype, list(shape), (begin, end))

    def get_tensor(self, name: str) -> T:
        """A tensor.

        Cost on the CPU: of a mapped file no read and no copy; otherwise one read.

        Raises:
            TensorNotFoundError: There is none of that name.
            UnsupportedError: The framework has no such element type.
        """
        tensor = self._opened()[name]
        try:
            # Copied: the caller's bytes, or verified ones.
            found: T = load_one(tensor, self._adapter, self._device, copies=self._copies)
        except OSError as error:
            raise worded(error) from error
        return found

    def get_bytes(self, name: str) -> memoryview:
        """A tensor's bytes as they stand in the file, for types that no framework has."""
        return self._opened()[name].view()

    def get_tensors(self, *, progress: Progress | None = None) -> dict[str, T]:
        """All tensors, in the order of the data.

        Args:
            progress: Called with the number of bytes that were read so far, in this thread. Of a
                mapped file nothing is read here: it is called once, with all.
        """
        with reading():
            return load_all(
                self._opened(), self._adapter, self._device, progress, copies=self._copies_all
            )

    def get_slice(self, name: str) -> Slice[T]:
        """A tensor to take parts of, by indexing; only what is selected is read."""
        tensor = self._opened()[name]
        on_host = self._adapter.shares_memory(self._device)
        return Slice(
            tensor,
            self._adapter,
            self._device,
            mapped=tensor.in_memory and on_host,
            copies=self._copies or not on_host,
        )

    def prefetch(
        self,
        plan: PrefetchPlan | None = None,
        *,
        device: Any = None,
        threads: int = THREADS,
        progress: Progress | None = None,
    ) -> PrefetchLoader[T]:
        """Begin to read tensors in the background, to be handed out as they are needed.

        The handle stays what it is, and several loaders can be at work, one a device for example.

        Args:
            plan: Names to index expressions: None for the whole tensor, a slice for its rows, or any
                other basic index. Or names alone. None for all tensors.
            device: Where they go; the handle's device if None.
            threads: How many read, at most.
            progress: Called with the number of bytes that have arrived, in the thread that waits for
                a tensor.

        Returns:
            An iterable of (name, tensor) in the order in which they arrive, with `take` for any other.
            A mapped file is read ahead, without a copy; otherwise tensors own their memory.

        Raises:
            TensorNotFoundError: The plan names a tensor that the file does not have.
            SelectionError: An index does not fit its tensor.
            UnsupportedError: The framework has no such element type.

        >>> import numpy, safeweights.numpy, tempfile, os
        >>> path = os.path.join(tempfile.mkdtemp(), "x.safetensors")
        >>> safeweights.numpy.save_file({"a": numpy.arange(6.0).reshape(2, 3)}, path)
        >>> with safe_open(path, "np") as f, f.prefetch({"a": slice(1, 2)}) as loader:
        ...     loader.take("a")
        array([[3., 4., 5.]])
        """
        return PrefetchLoader(
            self._opened(),
            self._adapter,
            self._device if device is None else self._adapter.check_device(device),
            plan=plan, threads=threads, progress=progress, copies=self._copies_all,
        )  # fmt: skip

    def __getitem__(self, name: str) -> T:
        return self.get_tensor(name)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._opened()

    def __iter__(self) -> Iterator[str]:
        return iter(self.offset_keys())

    def __len__(self) -> int:
        return len(self._opened())

    def items(self) -> Iterator[tuple[str, T]]:
        """(name, tensor), in the order of the data, one at a time."""
        for name in self.offset_keys():
            yield name, self.get_tensor(name)

    def close(self) -> None:
        """Close the files; closing twice is allowed."""
        self._checkpoint = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        checkpoint = getattr(self, "_checkpoint", None)  # none where opening failed, in a debugger
        state = "closed" if checkpoint is None else repr(checkpoint.name)
        return f"<safe_open {state} for {self._adapter.name}>"


def _adapter_or_missing(framework: str) -> Adapter:
    """The adapter; where the framework is not installed, one with which everything but values works."""
    try:
        return adapter_for(framework)
    except MissingDependencyError as error:
        return MissingAdapter(framework, error)


def _handle_again(
    kind: type[safe_open[Any]], framework: str, state: dict[str, Any]
) -> safe_open[Any]:
    """A handle that was pickled, in the process that reads the pickle."""
    handle = kind.__new__(kind)
    vars(handle).update(state, _adapter=_adapter_or_missing(framework))
    return handle


class _safe_open_handle(safe_open[T]):  # noqa: N801 - the reference's name
    """`safe_open` of a file object; one opened as text is read through its buffer."""

    def __init__(
        self, f: Any, framework: str, device: Any = "cpu", *, backend: str | None = None
    ) -> None:
        target = getattr(f, "buffer", f)
        if not hasattr(target, "read"):
            kind = type(f).__name__
            raise UnsupportedError(f"expected a readable file object, found {kind}")
        super().__init__(target, framework, device, backend=backend)
