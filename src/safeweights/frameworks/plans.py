"""Plans: what is wanted of files, as batches to be read, and what it takes to read one.

A plan names tensors, each with an index expression, or None for the whole tensor. Neighbours in a file
make a batch: they are read together into one piece of memory. So one large file, many shards, and rows
of some tensors are the same work to who reads them (`loading`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from ..checkpoint import FileTensor, SafetensorsFile, not_found
from ..format import indexing
from ..format.header import TensorInfo

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ..storage import Source

__all__ = ["Batch", "Landing", "Scattered", "Transfer", "batches"]

GAP_MAX: Final = 4096
"""Bytes read for nothing, at most, to have two neighbours in one read."""


class Batch(NamedTuple):
    """Tensors, or rows of them, that lie together in a file and are read together.

    Attributes:
        source: Where they are.
        data_start: Where in it the data begins.
        tensors: Name -> type, shape and place of what is wanted, by place.
    """

    source: Source
    data_start: int
    tensors: list[tuple[str, TensorInfo]]

    @property
    def begin(self) -> int:
        """Offset in the file's data."""
        return self.tensors[0][1].begin

    @property
    def nbytes(self) -> int:
        """Bytes from the first to the last."""
        return self.tensors[-1][1].end - self.begin


class Scattered(NamedTuple):
    """A part of one tensor that is in many places: columns, every other row.

    Attributes:
        source: Where it is.
        tensor: Of which it is a part.
        expression: Which part.
        tensors: Name -> type and shape of the part, as `Batch` has it.
    """

    source: Source
    tensor: FileTensor
    expression: Any
    tensors: list[tuple[str, TensorInfo]]

    @property
    def nbytes(self) -> int:
        """Bytes of the part."""
        return self.tensors[0][1].nbytes


class Transfer(Protocol):
    """A batch on its way; `fill` is called for pieces that cover 0 to `extent`, each `step` long."""

    extent: int
    step: int

    def fill(self, begin: int, end: int) -> object:
        """Fetch a piece; from any thread, several at once."""

    def tensors(self) -> dict[str, Any]:
        """The tensors, when all pieces have arrived."""


class Landing(Protocol):
    """Where batches go.

    Attributes:
        arena: Bytes of memory that neighbours share, at most, if it is not one tensor.
        threads: How many read at once; 0 for what the sources are best read with.
        in_place: Whether tensors may share the memory of a mapped file.
    """

    arena: int
    threads: int
    in_place: bool

    def begin(self, batch: Batch | Scattered) -> Transfer:
        """Set memory aside for a batch."""


def batches(
    files: Sequence[SafetensorsFile], plan: Mapping[str, Any] | None, arena: int
) -> list[Batch | Scattered]:
    """What `plan` wants of `files` (None: everything), in the order of the files and of their data.

    Args:
        files: Without two tensors of one name.
        plan: Name -> index expression, None for the whole tensor.
        arena: Neighbours are joined up to this number of bytes.

    Raises:
        TensorNotFoundError: No file has a tensor of a name.
        SelectionError: An expression does not fit its tensor.
        UnsupportedError: It turns elements round that share bytes.
    """
    if plan is not None:
        _require_present(files, plan)
    found: list[Batch | Scattered] = []
    for file in files:
        source, start = file.source.for_all(), file.header.data_start
        run: list[tuple[str, TensorInfo]] = []
        for item in _wanted(file, source, plan):
            if run and (
                isinstance(item, Scattered)
                or item[1].end - run[0][1].begin > arena
                or item[1].begin - run[-1][1].end > GAP_MAX
            ):
                found.append(Batch(source, start, run))
                run = []
            if isinstance(item, Scattered):
                found.append(item)
            else:
                run.append(item)
        if run:
            found.append(Batch(source, start, run))
    return found


def _require_present(files: Sequence[SafetensorsFile], plan: Mapping[str, Any]) -> None:
    for name in plan:
        if not isinstance(name, str) or not any(name in file.header.tensors for file in files):
            raise not_found(name, files[0].name if len(files) == 1 else None)


def _wanted(
    file: SafetensorsFile, source: Source, plan: Mapping[str, Any] | None
) -> Iterable[tuple[str, TensorInfo] | Scattered]:
    """What is wanted of one file, in the order of its data."""
    tensors = file.header.tensors
    if plan is None:
        return tensors.items()
    present = plan.keys() & tensors.keys()
    names: Iterable[str]
    if len(present) * 8 < len(tensors):  # a few of many: better sort them than look at all
        # By the end too: an empty tensor begins where the next one does, and comes before it.
        names = sorted(present, key=lambda name: (tensors[name].begin, tensors[name].end))
    else:
        names = (name for name in tensors if name in present)
    return (
        (name, tensors[name]) if plan[name] is None else _part(file, source, name, plan[name])
        for name in names
    )


def _part(
    file: SafetensorsFile, source: Source, name: str, expression: Any
) -> tuple[str, TensorInfo] | Scattered:
    info = file.header.tensors[name]
    selection = indexing.select(expression, info.shape)
    runs = indexing.runs(selection, info.shape, info.dtype)
    if runs.run_count > 1 or selection.reversed:
        indexing.require_reversible(selection, info.dtype)
        tensor = FileTensor(name, info, source, file.header.data_start)
        part = TensorInfo(info.dtype, selection.shape, 0, runs.nbytes)
        return Scattered(source, tensor, expression, [(name, part)])
    begin = info.begin + (runs.offset if runs.nbytes else 0)
    return name, TensorInfo(info.dtype, selection.shape, begin, begin + runs.nbytes)
