"""Trees of sharded arrays: each process reads what its devices hold, and writes what they hold first.

Loading: for every leaf the sharding says which parts the devices of this process need. Each part is read
once, whatever number of devices gets it, and all parts of a checkpoint are one plan in the order of the
files. No process talks to another.

Saving: one process writes as `checkpoint.sharding.save_sharded`. Several fill the same final files: all lay
them out alike, process 0 makes them in a hidden folder, each writes the shards whose replica is number 0,
and process 0 lets them take the place of an earlier save. A failure in one is an error in all of them.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from ...checkpoint import Checkpoint
from ...checkpoint.layout import Layout, PlannedTensor, laid_out
from ...checkpoint.sharding import ShardedCommit, check_stem, parse_size
from ...checkpoint.sharding import save_sharded as save_files
from ...errors import (
    DTypeError,
    FormatError,
    RankError,
    StateDictError,
    UnsupportedError,
    quote,
)
from ...format import indexing
from ...format.dtypes import byte_count
from ...storage import Store, place_of
from ...storage.shared_file import staggered
from ..numpy import ADAPTER as NUMPY
from ..numpy import code_of, encode_array, numpy_dtype
from ..prefetch import PrefetchLoader
from ..targets import dequantized, opened
from ..wording import saving
from .adapter import UnderWay, check_width, encoded

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence

    from ...checkpoint import Tensor
    from ...derived.rearranging import Plan
    from ..handle import Target
    from ..loading import Progress

__all__ = ["load_sharded", "save_sharded"]

T = TypeVar("T")

_FEW: Final = 10
"""Names that a message lists."""


# ---- trees


def named_leaves(tree: Any, names: Callable[[str], str] | None) -> dict[str, Any]:
    """Name -> leaf, in the order of `jax.tree_util.tree_leaves`.

    A name is the keys, numbers and attributes on the way to the leaf, joined by dots; that of a Flax
    variable does not have the name of its value.

    Args:
        tree: Any pytree.
        names: Name in the tree -> name in the file.

    Raises:
        FormatError: Two leaves have the same name (rule ``name-collision``).
    """
    found: dict[str, Any] = {}
    for path, node in jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_variable)[0]:
        inner = (
            jax.tree_util.tree_flatten_with_path(node)[0] if _is_variable(node) else [((), node)]
        )
        for rest, leaf in inner:
            keys = (*path, *rest) if len(inner) > 1 else path
            name = ".".join(map(_key, keys))
            name = name if names is None else names(name)
            if name in found:
                raise FormatError(
                    f"two leaves of the tree are called {quote(name)}",
                    rule="name-collision",
                    tensor=name,
                )
            found[name] = leaf
    return found


def _is_variable(node: object) -> bool:
    """Whether a node is a variable of Flax NNX, which this package does not import."""
    return any(
        kind.__name__ in {"Variable", "VariableState"} and kind.__module__.startswith("flax.nnx")
        for kind in type(node).__mro__
    )


def _key(key: Any) -> str:
    for attribute in ("key", "idx", "name"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


# ---- loading


class _Wanted(NamedTuple):
    """A leaf that is to be loaded."""

    sharding: jax.sharding.Sharding
    shape: tuple[int, ...] | None
    dtype: np.dtype[Any] | None


def load_sharded(
    filename: Target,
    target: Any,
    *,
    names: Callable[[str], str] | None = None,
    strict: bool = True,
    plan: Plan | None = None,
    dequantize: bool | str = False,
    backend: str = "pread",
    trust: object = None,
    identity: Any = None,
    progress: Progress | None = None,
) -> Any:
    """See `safeweights.jax.load_sharded`."""
    stored = dequantized(opened(filename, backend, trust, identity), dequantize)
    if plan is not None:
        stored = stored.rearrange(plan)
    leaves = named_leaves(target, names)
    wanted = {name: _wanted(name, leaf) for name, leaf in leaves.items()}
    _require_same(stored, wanted, strict=strict)
    arrays = {name: _Array(name, stored[name], each) for name, each in wanted.items()}
    _read(stored, arrays, progress)
    made = [arrays[name].made for name in leaves]
    jax.block_until_ready(made)  # what is still being copied is freed after this
    return jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(target), made)


def _wanted(name: str, leaf: Any) -> _Wanted:
    if isinstance(leaf, jax.sharding.Sharding):
        return _Wanted(leaf, None, None)
    if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
        raise UnsupportedError(
            f"{quote(name)} is a {type(leaf).__name__}, but has to be a sharding, a jax.ShapeDtypeStruct "
            "or an array",
            tensor=name,
        )
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    try:
        return _Wanted(sharding, tuple(leaf.shape), np.dtype(leaf.dtype))
    except TypeError as error:  # random keys
        raise UnsupportedError(f"{quote(name)} cannot be loaded: {error}", tensor=name) from error


def _require_same(stored: Checkpoint, wanted: Mapping[str, _Wanted], *, strict: bool) -> None:
    lines = []
    missing = [name for name in wanted if name not in stored]
    unexpected = [name for name in stored if name not in wanted] if strict else []
    for what, names in (("the file has no", missing), ("the tree has no", unexpected)):
        if names:
            more = f" and {len(names) - _FEW} more" if len(names) > _FEW else ""
            lines.append(f"{what} {', '.join(map(quote, names[:_FEW]))}{more}")
    for name, each in wanted.items():
        if name in stored and each.shape not in (None, stored[name].shape):
            lines.append(
                f"{quote(name)} is {list(each.shape or ())}, the file has {list(stored[name].shape)}"
            )
    if lines:
        raise StateDictError(
            "the file and the tree do not fit: " + "; ".join(lines[:_FEW]), path=stored.name or None
        )


class _Array:
    """An array on its way: its parts, until all that this process needs have come.

    Attributes:
        parts: Which part -> the index expression for it.
        made: The array.
        nbytes: Of its parts that have come.
    """

    def __init__(self, name: str, tensor: Tensor, wanted: _Wanted) -> None:
        self.tensor = tensor
        self._sharding = wanted.sharding
        self._come: dict[tuple[Any, ...], Any] = {}
        self.made: Any = None
        self.nbytes = 0
        tensor.check_readable()
        self._dtype = wanted.dtype or numpy_dtype(tensor.dtype)
        if (code := code_of(self._dtype)) is not None:
            check_width(code)
        try:
            placed = wanted.sharding.addressable_devices_indices_map(tensor.shape)
        except ValueError as error:
            raise UnsupportedError(
                f"{quote(name)} of shape {list(tensor.shape)} cannot be divided so: {error}",
                tensor=name,
            ) from error
        self.parts = {self._key(index): index for index in placed.values()}
        if not self.parts:  # no device of this process has any of it
            self._finish()

    def _key(self, index: Any) -> tuple[Any, ...]:
        pairs = zip(index, self.tensor.shape, strict=True)
        return tuple(each.indices(size)[:2] for each, size in pairs)

    def come(self, part: tuple[Any, ...], values: Any) -> None:
        """Take a part; the last makes the array."""
        self._come[part] = values.astype(self._dtype, copy=False)
        self.nbytes += values.nbytes
        if len(self._come) == len(self.parts):
            self._finish()

    def _finish(self) -> None:
        self.made = jax.make_array_from_callback(
            self.tensor.shape,
            self._sharding,
            lambda index: self._come[self._key(index)],
            dtype=self._dtype,
        )
        self._come.clear()


def _read(stored: Checkpoint, arrays: Mapping[str, _Array], progress: Progress | None) -> None:
    """Read all parts, in the order of the files."""
    tensors: dict[str, Tensor] = {}
    expressions: dict[str, Any] = {}
    owners: dict[str, tuple[_Array, tuple[Any, ...]]] = {}
    for name in (name for name in stored if name in arrays):
        array = arrays[name]
        for part, index in array.parts.items():
            key = str(len(owners))
            whole = part == tuple((0, size) for size in array.tensor.shape)
            tensors[key], owners[key] = array.tensor, (array, part)
            expressions[key] = None if whole else index
    under_way = UnderWay()
    with PrefetchLoader[Any](
        Checkpoint(tensors), NUMPY, None, plan=expressions, progress=progress
    ) as loader:
        for key, values in loader:
            array, part = owners[key]
            array.come(part, values)
            if array.made is not None:
                under_way.add(array.made, array.nbytes)


# ---- saving


def save_sharded(
    tree: Any,
    folder: str | os.PathLike[str] | Store,
    *,
    names: Callable[[str], str] | None = None,
    max_shard_size: int | str = "5GB",
    metadata: Mapping[str, str] | None = None,
    stem: str = "model",
    durable: bool = False,
) -> None:
    """See `safeweights.jax.save_sharded`."""
    arrays = named_leaves(tree, names)
    if jax.process_count() == 1:
        tensors = {name: encoded(name, array) for name, array in arrays.items()}
        with saving():
            save_files(
                tensors, folder, max_shard_size=max_shard_size, metadata=metadata, stem=stem,
                durable=durable,
            )  # fmt: skip
        return
    store = folder if isinstance(folder, Store) else place_of(folder).folder()
    _Save(store, arrays, durable=durable).run(stem, max_shard_size, metadata)


class _Save:
    """One save by several processes."""

    def __init__(self, store: Store, arrays: Mapping[str, Any], *, durable: bool) -> None:
        self._store = store
        self._arrays = arrays
        self._durable = durable
        self._first = jax.process_index() == 0
        self._commit: ShardedCommit | None = None

    def run(self, stem: str, max_shard_size: int | str, metadata: Mapping[str, str] | None) -> None:
        layouts: list[Layout] = []

        def plan() -> str:
            check_stem(stem)
            parse_size(max_shard_size)
            layouts.append(laid_out(_planned(self._arrays), stem, max_shard_size, metadata))
            heads = (f"{shard.name}\n".encode() + shard.head for shard in layouts[0].shards)
            return hashlib.sha256(b"".join(heads)).hexdigest()

        try:
            plans = self._together("lay out the files", plan)
            self._require_same(plans)
            (layout,) = layouts
            files = self._together("make the files", lambda: self._begin(stem, layout))[0]
            written = self._together("write its shards", lambda: self._write(layout, files))
            self._together("publish the files", lambda: self._publish(layout, sum(written)))
        except BaseException as error:  # an interrupt between two steps
            self._discard(error)
            raise

    def _discard(self, error: BaseException) -> None:
        """In process 0: delete what was made."""
        commit, self._commit = self._commit, None
        if commit is not None:
            commit.commit.__exit__(type(error), error, None)

    def _together(self, what: str, work: Callable[[], T]) -> list[T]:
        """Do `work` in every process, and learn what all did.

        Raises:
            RankError: It failed in another process.
            Exception: It failed here.
        """
        value, failure = None, None
        try:
            value = work()
        except BaseException as error:  # noqa: BLE001 - raised when the others know
            failure = error
        text = None if failure is None else f"{type(failure).__name__}: {failure}"
        answers = _gathered(json.dumps({"value": value, "error": text}).encode())
        failed = {rank: each["error"] for rank, each in enumerate(answers) if each["error"]}
        if failed:
            rank, first = next(iter(failed.items()))
            reason = failure or RankError(
                f"process {rank} could not {what}: {first}",
                path=self._store.location, ranks=tuple(failed),
            )  # fmt: skip
            self._discard(reason)
            _gathered(b"0")  # so that nothing is left when any process goes on
            raise reason
        return [each["value"] for each in answers]

    def _require_same(self, plans: Sequence[str]) -> None:
        usual, _ = Counter(plans).most_common(1)[0]
        others = tuple(rank for rank, plan in enumerate(plans) if plan != usual)
        if others:  # found by all, and nothing was made yet
            raise RankError(
                "processes save trees of other names, shapes or types, or with other arguments: process "
                f"{', '.join(map(str, others))} and the others",
                path=self._store.location, ranks=others,
            )  # fmt: skip

    def _begin(self, stem: str, layout: Layout) -> list[str]:
        """In process 0: make the files, with their headers."""
        if not self._first:
            return []
        names = [shard.name for shard in layout.shards]
        self._commit = ShardedCommit(self._store, stem, names, durable=self._durable)
        commit = self._commit.commit
        files = [commit.reserve(shard.name, shard.size) for shard in layout.shards]
        for staged, shard in zip(files, layout.shards, strict=True):
            with self._store.fill(staged) as file:
                file.write(0, shard.head)
        return files

    def _write(self, layout: Layout, files: Sequence[str]) -> int:
        """Write the shards of this process; returns the number of bytes."""
        by_file: dict[int, list[str]] = defaultdict(list)
        for name in self._arrays:
            by_file[layout.places[name][0]].append(name)
        done = 0
        for number, names in by_file.items():
            with self._store.fill(files[number]) as file:
                names.sort(key=lambda name: layout.places[name][1])
                for name in staggered(names, jax.process_index(), jax.process_count()):
                    for index, data in self._shards(name):
                        part = encode_array(name, np.asarray(data))
                        shape = tuple(self._arrays[name].shape)
                        runs = indexing.runs(indexing.select(index, shape), shape, part.dtype)
                        if runs.nbytes:
                            file.write_runs(layout.places[name][1], runs, part.view())
                        done += part.nbytes
                file.close(durable=self._durable)
        return done

    def _shards(self, name: str) -> list[tuple[Any, Any]]:
        """The parts of an array that this process writes, each with its place."""
        array = self._arrays[name]
        if not isinstance(array, jax.Array) or array.is_fully_addressable:
            return [(..., array)] if self._first else []  # every process has it
        return [
            (shard.index, shard.data) for shard in array.addressable_shards if shard.replica_id == 0
        ]

    def _publish(self, layout: Layout, written: int) -> None:
        if not self._first:
            return
        if written != layout.total_size:
            raise RankError(
                f"the processes wrote {written} bytes of {layout.total_size}",
                path=self._store.location,
            )
        save, self._commit = self._commit, None
        assert save is not None
        with save.commit:
            save.add_index(layout.weight_map(), layout.total_size)


def _planned(arrays: Mapping[str, Any]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, array in arrays.items():
        if not isinstance(array, jax.Array | np.ndarray | np.generic):
            encoded(name, array)  # raises
        code = (
            None
            if jax.dtypes.issubdtype(array.dtype, jax.dtypes.extended)
            else code_of(np.dtype(array.dtype))
        )
        if code is None:
            raise DTypeError(
                f"{array.dtype} of {quote(name)} is no type of the format: convert it first",
                tensor=name,
            )
        shape = tuple(array.shape)
        found[name] = PlannedTensor(
            name, code, shape, byte_count(code, int(np.prod(shape, dtype=object)))
        )
    return found


def _gathered(message: bytes) -> list[Any]:
    """The message of every process, decoded from JSON, in the order of the processes."""
    lengths = multihost_utils.process_allgather(np.array([len(message)], np.int32)).reshape(-1)
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: len(message)] = np.frombuffer(message, np.uint8)
    table = multihost_utils.process_allgather(padded).reshape(len(lengths), -1)
    return [json.loads(row[:length].tobytes()) for row, length in zip(table, lengths, strict=True)]
