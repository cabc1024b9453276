"""What every reader of distributed checkpoints shares: opening files, collecting parts, proving them.

Rules: a file is opened by a name inside its folder, and once, unless there are too many to stay open; a
tensor is in the mapping only if its parts cover it exactly; what is not a tensor is listed.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

from ...checkpoint.tensor import UnreadableTensor
from ...derived.casting import cast
from ...derived.element_types import FOREIGN
from ...derived.pieces import Piece, PiecewiseTensor, check_cover
from ...errors import FormatError, quote
from ...storage import Handles, too_many
from ...storage.limits import exceeded
from ...storage.store import check_inside
from ..foreign import ForeignCheckpoint
from ..pickles.flatten import ROOT_NAME, Other, flatten
from ..pickles.materialize import materialize
from ..pickles.storages import Materialized, Storages

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ...checkpoint import Tensor
    from ...storage import Source, Store
    from ..foreign import OpenOptions
    from ..pickles.machine import Pickle
    from ..pickles.nodes import Call, Value

__all__ = ["Assembly", "Folder"]


class Folder:
    """The files of a distributed checkpoint: each is opened once, when it is first asked for.

    Args:
        store: Where they are.
        options: How to open them.
        inner: The folder in the store; the whole store by default.

    Attributes:
        name: What to call the folder in messages.
        names: The names of the files directly in it.
        sources: Those that were opened.
    """

    def __init__(self, store: Store, options: OpenOptions, inner: str = "") -> None:
        self.store = store
        self.name = store.locate(inner) if inner else store.location
        self._prefix = f"{inner}/" if inner else ""
        listed = store.list(inner, recursive=False)
        self.names = [entry.name.removeprefix(self._prefix) for entry in listed]
        self.sources: dict[str, Source] = {}
        self._options = options
        self._handles = Handles() if too_many(len(self.names)) else None

    def has(self, name: str) -> bool:
        """Whether `name` is a file of the folder, or of a folder in it."""
        return check_inside(name) is None and self.store.kind(self._prefix + name) in (
            "file",
            "link",
        )

    def open(self, name: str) -> Source:
        """The file called `name`.

        Raises:
            OSError: It cannot be opened.
        """
        source = self.sources.get(name)
        if source is None:
            open_it = partial(self.store.open, self._prefix + name, backend=self._options.backend)
            if self._handles is None:
                source = open_it()
            else:
                source = self._handles.source(partial(open_it, backend="pread"))
            if self._options.verify is not None:
                source = self._options.verify(source, source.name)
            self.sources[name] = source
        return source


class Assembly:
    """Collects the tensors of one checkpoint.

    Args:
        path: What to call it in messages.
        options: How to open it.
    """

    def __init__(self, path: str, options: OpenOptions) -> None:
        self.path = path
        self.options = options
        self._found = Materialized()
        self._others: list[Other] = []
        self._others_count = 0
        self._calls: list[Call] = []

    def add(
        self,
        name: str,
        dtype: str,
        shape: tuple[int, ...],
        pieces: Sequence[Piece],
        grid: tuple[int, ...] | None = None,
    ) -> None:
        """Add a tensor.

        Args:
            name: Its name.
            dtype: Code of its type, also of one that the format lacks.
            shape: Elements along each axis; bytes for a packed type.
            pieces: What it is made of.
            grid: See `PiecewiseTensor`.

        Raises:
            FormatError: The pieces do not make up a tensor of that shape; there is one of that name.
        """
        check_cover(name, shape if grid is None else grid, pieces, self.path)
        if len(shape) > self.options.limits.tensor_rank:
            raise exceeded("tensor_rank", self.options.limits.tensor_rank, self.path)
        if dtype == "F4" and not shape:
            reason = "it is one byte of F4, two values without a dimension"
            self.refuse(name, dtype, shape, 1, reason)
            return
        whole = PiecewiseTensor(name, dtype, shape, pieces, grid)
        tensor = cast(whole, self.options.casts, self.path)
        if tensor.dtype in FOREIGN:
            reason = f"its type is {FOREIGN[tensor.dtype][1]}, which the format lacks"
            if tensor.dtype == "C128":
                reason += "; dtype (--dtype) C128=C64 converts it"
            self.refuse(name, dtype, shape, whole.nbytes, reason)
        else:
            self._put(name, tensor)

    def refuse(
        self, name: str, dtype: str, shape: tuple[int, ...], nbytes: int, reason: str
    ) -> None:
        """Add a tensor whose values cannot be given."""
        self._put(name, UnreadableTensor(name, dtype, shape, nbytes, reason=reason, path=self.path))

    def put(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Add whole tensors, under these names.

        Raises:
            FormatError: There is one of that name.
        """
        for name, tensor in tensors:
            self._put(name, tensor)

    def alias(self, aliases: Mapping[str, str]) -> None:
        """Note which names show the same bytes as another, of those that were added."""
        known = self._found.tensors
        self._found.aliases.update(
            (name, first) for name, first in aliases.items() if name in known and first in known
        )

    def _put(self, name: str, tensor: Tensor) -> None:
        if name in self._found.tensors:
            raise FormatError(
                f"tensor {quote(name)} is there twice",
                rule="duplicate-key", path=self.path, tensor=name,
            )  # fmt: skip
        if len(self._found.tensors) >= self.options.limits.tensors:
            raise exceeded("tensors", self.options.limits.tensors, self.path)
        self._found.tensors[name] = tensor

    def __getitem__(self, name: str) -> Tensor:
        return self._found.tensors[name]

    def __contains__(self, name: str) -> bool:
        return name in self._found.tensors

    def __len__(self) -> int:
        return len(self._found.tensors)

    def add_other(self, name: str, value: Value, reason: str = "") -> None:
        """List something that is not a tensor."""
        self._others.append(Other(name, value, reason))
        self._others_count += 1

    def add_calls(self, pickles: Iterable[Pickle]) -> None:
        """Note the calls that loading with the format's own library would make."""
        self.add_listed_calls(call for pickle in pickles for call in pickle.calls)

    def add_listed_calls(self, calls: Iterable[Call]) -> None:
        """Note such calls, one by one."""
        self._calls += calls

    def add_tree(self, prefix: str, tree: Value, storages: Storages | None, label: str) -> None:
        """Add the tensors of a tree of nodes, and list what else it holds, below the name `prefix`.

        Raises:
            FormatError: A tensor contradicts its storage, or a limit is exceeded.
        """
        limits = self.options.limits
        flat = flatten(tree, label, limits)
        found = materialize(
            flat, label, storages, limits, densify=self.options.densify, casts=self.options.casts,
            dtype_of=self.options.dtype_of,
        )  # fmt: skip

        def full(name: str) -> str:
            return prefix if name in ("", ROOT_NAME) else f"{prefix}.{name}"

        self.put((full(name), tensor) for name, tensor in found.tensors.items())
        for name, first in found.aliases.items():
            self._found.aliases[full(name)] = full(first)
        self._others += [Other(full(each.name), each.value, each.reason) for each in flat.others]
        self._others_count += flat.others_count

    def checkpoint(self, format_name: str, sources: Iterable[Source]) -> ForeignCheckpoint:
        """What was collected, as a mapping.

        Args:
            format_name: The name of the format.
            sources: The files that it was read from.
        """
        result = ForeignCheckpoint(
            self.path,
            format_name,
            self._found,
            others=self._others,
            others_count=self._others_count,
            calls=self._calls,
        )
        result.sources = tuple(sources)
        return result


def whole_numbers(value: Value, limit: int = 64) -> tuple[int, ...] | None:
    """`value` as a tuple of at most `limit` integers of 0 to 2**62, or None if it is none."""
    if not isinstance(value, (list, tuple)) or len(value) > limit:
        return None
    numbers = tuple(value)
    fine = all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 1 << 62 for n in numbers)
    return numbers if fine and math.prod(numbers) < 1 << 62 else None
