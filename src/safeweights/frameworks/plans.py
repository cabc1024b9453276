"""Plans: what is wanted of files, as batches to be read, and what it takes to read one.

A plan names tensors, each with an index expression, or None for the whole tensor. Neighbours in a file
make a batch: they are read together into one piece of memory. So one large file, many shards, and rows
of some tensors are the same work to who reads them (`loading`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ..checkpoint import FileTensor, not_found
from ..errors import DTypeError, quote
from ..format import indexing
from ..format.dtypes import BITS
from ..format.header import TensorInfo

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from ..checkpoint import Checkpoint, SafetensorsFile, Tensor
    from ..format.indexing import Runs, Selection
    from ..storage import Source

__all__ = ["Batch", "Landing", "Scattered", "Transfer", "batches"]


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
    def threads(self) -> int:
        """How many the source is best read with."""
        return self.source.threads

    @property
    def begin(self) -> int:
        """Offset in the file's data."""
        return self.tensors[0][1].begin

    @property
    def nbytes(self) -> int:
        """Bytes from the first to the last."""
        return self.tensors[-1][1].end - self.begin


class Scattered(NamedTuple):
    """A tensor, or a part of it, that is not one piece of a file: columns, every other row, cast values.

    Attributes:
        tensor: Of which it is a part.
        expression: Which part; None for all of it.
        tensors: Name -> type and shape of the part, as `Batch` has it.
        runs: Where the bytes of the part are in the tensor, in C order; None for all of it.
    """

    tensor: Tensor
    expression: Any
    tensors: list[tuple[str, TensorInfo]]
    runs: Runs | None = None

    @property
    def threads(self) -> int:
        """How many it is best read with; 0 for as many as there are processors."""
        return 0

    @property
    def nbytes(self) -> int:
        """Bytes of the part."""
        return self.tensors[0][1].nbytes


class Transfer(Protocol):
    """A batch on its way; `fill` is called for pieces that cover 0 to `extent`.

    Attributes:
        extent: Where the last piece ends.
        step: Length of a piece.
        least: Length to which pieces may be cut at the end of all batches, if `extent` is in bytes; else
            `step`.
    """

    extent: int
    step: int
    least: int

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
        ahead: Where making the tensors of a batch begins to copy them to a device: how many bytes may be
            read before that. Else None: tensors of a whole checkpoint are made when all was read.
    """

    arena: int
    threads: int
    in_place: bool
    ahead: int | None

    def filling(self) -> AbstractContextManager[object]:
        """What a thread is within while it calls `Transfer.fill`."""

    def begin(self, batch: Batch | Scattered) -> Transfer:
        """Set memory aside for a batch."""


def batches(
    checkpoint: Checkpoint, plan: Mapping[str, Any] | None, arena: int
) -> list[Batch | Scattered]:
    """What `plan` wants of a checkpoint (None: everything), in the order of the files and of their data.

    Args:
        checkpoint: Files, or any mapping of names to tensors: filtered, renamed, cast, converted.
        plan: Name -> index expression, None for the whole tensor.
        arena: Neighbours are joined up to this number of bytes.

    Raises:
        TensorNotFoundError: The checkpoint has no tensor of a name.
        SelectionError: An expression does not fit its tensor.
        UnsupportedError: It reverses elements that share bytes; or a tensor cannot be read.
    """
    if plan is not None:
        for name in plan:
            if not isinstance(name, str) or name not in checkpoint:
                raise not_found(name, checkpoint.name or None, checkpoint)
    found: list[Batch | Scattered] = []
    places = _Places()
    if checkpoint.files:
        for file in checkpoint.files:
            source = file.source.for_all()
            wanted = _wanted(file, source, plan, places)
            found += _joined(wanted, source, file.header.data_start, arena)
        return found
    groups: dict[tuple[Source, int], list[tuple[str, FileTensor]]] = {}
    for name in checkpoint if plan is None else plan:
        tensor = checkpoint[name]
        tensor.check_readable()
        if isinstance(tensor, FileTensor):
            place = tensor.source, tensor.data_start
            groups.setdefault(place, []).append((name, tensor))
        else:
            found.append(_scattered(name, tensor, None if plan is None else plan[name]))
    for (opened, start), tensors in groups.items():
        source = opened.for_all()
        # By the end too: an empty tensor begins where the next one does, and comes before it.
        tensors.sort(key=lambda item: (item[1].info.begin, item[1].info.end))
        parts = (
            _part(source, start, (name, tensor.info), None if plan is None else plan[name], places)
            for name, tensor in tensors
        )
        found += _joined(parts, source, start, arena)
    return found


def _joined(
    wanted: Iterable[tuple[str, TensorInfo] | Scattered], source: Source, start: int, arena: int
) -> Iterator[Batch | Scattered]:
    """Batches of neighbours; `wanted` is in the order of the data."""
    run: list[tuple[str, TensorInfo]] = []
    for item in wanted:
        if run and (
            isinstance(item, Scattered)
            or item[1].end - run[0][1].begin > arena
            or not 0 <= item[1].begin - run[-1][1].end <= source.gap
        ):
            yield Batch(source, start, run)
            run = []
        if isinstance(item, Scattered):
            yield item
        else:
            run.append(item)
    if run:
        yield Batch(source, start, run)


class _Places:
    """Where index expressions lead; each is followed once for all tensors of one shape that share it."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, tuple[int, ...], str], tuple[Any, Selection, Runs]] = {}

    def of(self, expression: Any, info: TensorInfo) -> tuple[Selection, Runs]:
        """What an expression selects of a tensor, and where that is."""
        key = id(expression), info.shape, info.dtype
        if (found := self._known.get(key)) is None:
            selection = indexing.select(expression, info.shape)
            runs = indexing.runs(selection, info.shape, info.dtype)
            # With the expression itself, so that no other one has its identity.
            self._known[key] = found = expression, selection, runs
        return found[1:]


def _wanted(
    file: SafetensorsFile, source: Source, plan: Mapping[str, Any] | None, places: _Places
) -> Iterable[tuple[str, TensorInfo] | Scattered]:
    """What is wanted of one file, in the order of its data."""
    tensors = file.header.tensors
    if plan is None:
        return tensors.items()
    present = plan.keys() & tensors.keys()
    names: Iterable[str]
    if len(present) * 8 < len(tensors):  # a few of many: sorting them is cheaper than visiting all
        names = sorted(present, key=lambda name: (tensors[name].begin, tensors[name].end))
    else:
        names = (name for name in tensors if name in present)
    start = file.header.data_start
    return (_part(source, start, (name, tensors[name]), plan[name], places) for name in names)


def _part(
    source: Source, start: int, item: tuple[str, TensorInfo], expression: Any, places: _Places
) -> tuple[str, TensorInfo] | Scattered:
    name, info = item
    if expression is None:
        return item
    selection, runs = places.of(expression, info)
    if runs.run_count > 1 or selection.reversed:
        indexing.require_reversible(selection, info.dtype)
        return _selected(name, FileTensor(name, info, source, start), expression, selection, runs)
    begin = info.begin + (runs.offset if runs.nbytes else 0)
    return name, TensorInfo(info.dtype, selection.shape, begin, begin + runs.nbytes)


def _scattered(name: str, tensor: Tensor, expression: Any) -> Scattered:
    if expression is None:
        return Scattered(
            tensor, None, [(name, TensorInfo(tensor.dtype, tensor.shape, 0, tensor.nbytes))]
        )
    if tensor.dtype not in BITS:
        raise DTypeError(f"tensor {quote(name)} is of type {tensor.dtype}, which cannot be indexed")
    selection = indexing.select(expression, tensor.shape)
    indexing.require_reversible(selection, tensor.dtype)
    runs = indexing.runs(selection, tensor.shape, tensor.dtype)
    return _selected(name, tensor, expression, selection, runs)


def _selected(
    name: str, tensor: Tensor, expression: Any, selection: Selection, runs: Runs
) -> Scattered:
    part = TensorInfo(tensor.dtype, selection.shape, 0, runs.nbytes)
    return Scattered(tensor, expression, [(name, part)], runs)
