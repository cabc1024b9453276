"""Tensors put together from others by a plan: fused projections, stacked experts, parts, renames.

A model that serves keeps in one tensor what a checkpoint has in several (``qkv``, ``gate_up``, all experts
of a layer), or the other way round. A plan says which: name of a new tensor -> a name, or a `Concat`,
`Stack`, `Narrow` or `Transpose` of names. The result is a mapping of unread tensors, of which a slice reads
only the bytes of the stored tensors that it consists of.

Names in a plan may have placeholders, ``{layer}``, each of which stands for one part of a name between two
dots. Knows nothing of files or frameworks.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias, TypeVar

from ..errors import FormatError, TensorNotFoundError, UnsupportedError, quote
from ..format.dtypes import BITS
from .boxes import Box
from .layout import Strided, format_shape
from .pieces import Piece, PiecewiseTensor, as_strided

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ..checkpoint import Checkpoint, Tensor

__all__ = ["Concat", "Narrow", "Part", "Plan", "Stack", "Transpose", "rearranged"]

T = TypeVar("T")


@dataclass(frozen=True)
class Concat:
    """Tensors, or parts of a plan, joined along an axis that exists.

    Attributes:
        parts: What is joined, in order.
        dim: The axis; a negative one counts from the last.
    """

    parts: Sequence[Part]
    dim: int = 0


@dataclass(frozen=True)
class Stack:
    """Tensors joined along a new axis: one for each number that a placeholder of their name stands for.

    Attributes:
        part: A name with the placeholder, or a part of a plan with such names.
        over: The placeholder, without braces. Every number from 0 to the largest has to be there.
        dim: Where the new axis is in the result.

    >>> Stack("layers.{layer}.experts.{expert}.up.weight", over="expert")
    Stack(part='layers.{layer}.experts.{expert}.up.weight', over='expert', dim=0)
    """

    part: Part
    over: str
    dim: int = 0


@dataclass(frozen=True)
class Narrow:
    """Some rows of a tensor, or of a part of a plan; along another axis with `dim`.

    Attributes:
        part: Of what.
        start: The first of them.
        stop: The first that is left out.
        dim: The axis; a negative one counts from the last.
    """

    part: Part
    start: int
    stop: int
    dim: int = 0


@dataclass(frozen=True)
class Transpose:
    """A matrix with rows and columns exchanged; of more axes, the last two.

    Attributes:
        part: What is transposed.
    """

    part: Part


Part: TypeAlias = "str | Concat | Stack | Narrow | Transpose"
"""A name, or tensors put together."""

Plan: TypeAlias = "Mapping[str, Part]"
"""Name of a new tensor -> what it consists of."""

_PLACEHOLDER: Final = re.compile(r"\{(\w+)\}")


def rearranged(stored: Checkpoint, plan: Plan) -> Checkpoint:
    """A view of a checkpoint with the tensors of a plan, in the place of those that they consist of.

    Args:
        stored: The checkpoint.
        plan: New name -> a stored name, or tensors put together. Placeholders of the new name are those of
            the stored names; the plan holds for each of their values.

    Cost: looks at names and shapes only. Reading a part of a new tensor reads that part of the stored ones.

    Raises:
        UnsupportedError: An entry is no part of a plan, fits no tensor, or has a placeholder that cannot be
            found; or a packed type is to be divided.
        TensorNotFoundError: A tensor that an entry needs is missing.
        FormatError: Types or shapes do not fit (rule ``plan``), or a new name is taken (rule
            ``name-collision``).
    """
    names = _Names(stored)
    made: dict[str, Tensor] = {}
    used: dict[str, list[str]] = {}  # stored name -> new ones of which it is the first
    for target, part in plan.items():
        _check_part(part, target)
        bindings = names.bindings(target, list(_leaves(part)))
        if not bindings:
            wanted = next(_leaves(part), target)
            raise UnsupportedError(
                f"the plan for {quote(target)} fits no tensor: there is none called {quote(wanted)}"
            )
        for binding in bindings:
            name = _filled_in(target, binding)
            if name in made:
                raise _collision(name, stored)
            leaves: dict[str, None] = {}
            made[name] = _Making(stored, names, name, leaves).tensor(part, binding)
            used.setdefault(next(iter(leaves)), []).append(name)
            used.update((leaf, used.get(leaf, [])) for leaf in leaves)
    return stored.replaced(_in_order(stored, made, used), stored.metadata)


def _in_order(
    stored: Checkpoint, made: Mapping[str, Tensor], used: Mapping[str, Sequence[str]]
) -> dict[str, Tensor]:
    """All tensors of the view; a new one is where the first that it consists of was."""
    found: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        if name not in used:
            if name in made:
                raise _collision(name, stored)
            found[name] = tensor
        for new in used.get(name, ()):
            found[new] = made[new]
    return found


def _collision(name: str, stored: Checkpoint) -> FormatError:
    return FormatError(
        f"the plan gives a second tensor the name {quote(name)}",
        rule="name-collision", path=stored.name or None, tensor=name,
    )  # fmt: skip


def _check_part(part: object, target: str) -> None:
    if isinstance(part, Concat) and not isinstance(part.parts, str) and part.parts:
        for each in part.parts:
            _check_part(each, target)
    elif isinstance(part, Stack | Narrow | Transpose):
        _check_part(part.part, target)
    elif not isinstance(part, str):
        raise UnsupportedError(
            f"the plan for {quote(target)} has {part!r}, which is neither a name nor a Concat, Stack, "
            "Narrow or Transpose of names"
        )


def _leaves(part: Part) -> Iterator[str]:
    """The names in a part of a plan, placeholders and all."""
    if isinstance(part, str):
        yield part
    elif isinstance(part, Concat):
        for each in part.parts:
            yield from _leaves(each)
    else:
        yield from _leaves(part.part)


def _filled_in(pattern: str, binding: Mapping[str, str]) -> str:
    return _PLACEHOLDER.sub(lambda found: binding.get(found[1], found[0]), pattern)


class _Names:
    """The names of a checkpoint, and what placeholders stand for in them."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = tuple(names)
        self._found: dict[str, list[dict[str, str]]] = {}
        self._numbers: dict[tuple[str, str, tuple[str, ...]], dict[tuple[str, ...], set[str]]] = {}

    def bindings(self, target: str, leaves: Sequence[str]) -> list[dict[str, str]]:
        """What the placeholders of `target` may stand for, in the order of the stored names."""
        wanted = dict.fromkeys(_PLACEHOLDER.findall(target))
        if not wanted:
            known = any(self._matching(leaf) for leaf in leaves)
            return [{}] if known else []
        complete = [leaf for leaf in leaves if {*_PLACEHOLDER.findall(leaf)} >= wanted.keys()]
        if not complete:
            raise UnsupportedError(
                f"the plan for {quote(target)} has a placeholder that no stored name of it has"
            )
        found: dict[tuple[str, ...], None] = {}
        for leaf in complete:
            for each in self._matching(leaf):
                found[tuple(each[name] for name in wanted)] = None
        return [dict(zip(wanted, values, strict=True)) for values in found]

    def values(self, leaf: str, over: str, binding: Mapping[str, str]) -> set[str]:
        """What a placeholder stands for where others stand for what `binding` says."""
        fixed = tuple(name for name in binding if f"{{{name}}}" in leaf)
        key = leaf, over, fixed
        if key not in self._numbers:
            table = self._numbers[key] = defaultdict(set)
            for each in self._matching(leaf):
                table[tuple(each[name] for name in fixed)].add(each[over])
        return self._numbers[key].get(tuple(binding[name] for name in fixed), set())

    def _matching(self, pattern: str) -> list[dict[str, str]]:
        if pattern not in self._found:
            match = re.compile(_expression(pattern)).fullmatch
            self._found[pattern] = [
                found.groupdict() for name in self._names if (found := match(name)) is not None
            ]
        return self._found[pattern]


def _expression(pattern: str) -> str:
    """The regular expression of a name with placeholders; one that occurs again has to be the same."""
    text, end = [], 0
    seen: set[str] = set()
    for found in _PLACEHOLDER.finditer(pattern):
        text.append(re.escape(pattern[end : found.start()]))
        text.append(f"(?P={found[1]})" if found[1] in seen else rf"(?P<{found[1]}>[^.]+)")
        seen.add(found[1])
        end = found.end()
    return "".join([*text, re.escape(pattern[end:])])


class _Grid(NamedTuple):
    """Part of a tensor that is being put together.

    Attributes:
        dtype: Code of the element type.
        shape: Elements along each axis; bytes for a packed type.
        pieces: Where each array begins in it, the array, and the stored tensor's name.
    """

    dtype: str
    shape: tuple[int, ...]
    pieces: list[tuple[tuple[int, ...], Strided, str]]

    def mapped(
        self,
        shape: tuple[int, ...],
        offsets: Callable[[tuple[int, ...]], tuple[int, ...]],
        array: Callable[[Strided], Strided] = lambda array: array,
    ) -> _Grid:
        """The same pieces with other offsets, and with changed arrays."""
        pieces = [(offsets(at), array(found), label) for at, found, label in self.pieces]
        return _Grid(self.dtype, shape, pieces)


class _Making:
    """One tensor of a plan.

    Args:
        stored: The checkpoint.
        names: Its names.
        target: The name of the new tensor.
        used: Gets the names of the stored tensors that it consists of, in order.
    """

    def __init__(
        self, stored: Checkpoint, names: _Names, target: str, used: dict[str, None]
    ) -> None:
        self._stored = stored
        self._names = names
        self._target = target
        self._used = used

    def tensor(self, part: Part, binding: Mapping[str, str]) -> Tensor:
        if isinstance(part, str):  # a rename: the tensor itself
            return self._leaf(_filled_in(part, binding))
        grid = self._grid(part, binding)
        pieces = [
            Piece(Box(at, array.shape), _known(array), quote(label))
            for at, array, label in grid.pieces
        ]
        return PiecewiseTensor(self._target, grid.dtype, grid.shape, pieces)

    def _leaf(self, name: str) -> Tensor:
        found = self._stored.get(name)
        if found is None:
            raise TensorNotFoundError(
                f"the plan for {quote(self._target)} needs {quote(name)}, which is not there",
                path=self._stored.name or None, tensor=name,
            )  # fmt: skip
        self._used[name] = None
        tensor: Tensor = found
        return tensor

    def _grid(self, part: Part, binding: Mapping[str, str]) -> _Grid:
        if isinstance(part, str):
            name = _filled_in(part, binding)
            array = as_strided(self._leaf(name))
            return _Grid(array.dtype, array.shape, [((0,) * len(array.shape), array, name)])
        if isinstance(part, Concat):
            return self._concat([self._grid(each, binding) for each in part.parts], part.dim)
        if isinstance(part, Stack):
            return self._stack(part, binding)
        if isinstance(part, Narrow):
            return self._narrow(self._grid(part.part, binding), part)
        return self._transpose(self._grid(part.part, binding))

    def _concat(self, grids: list[_Grid], dim: int) -> _Grid:
        first = grids[0]
        axis = self._axis(dim, first.shape)
        end = 0
        pieces = []
        for grid in grids:
            same = grid.dtype == first.dtype and len(grid.shape) == len(first.shape)
            if not same or _without(grid.shape, axis) != _without(first.shape, axis):
                raise self._unlike(first, grid, f"along axis {axis}")
            moved = grid.mapped(grid.shape, _shifted(axis, end))
            pieces += moved.pieces
            end += grid.shape[axis]
        shape = (*first.shape[:axis], end, *first.shape[axis + 1 :])
        return _Grid(first.dtype, shape, pieces)

    def _stack(self, part: Stack, binding: Mapping[str, str]) -> _Grid:
        grids = [
            self._grid(part.part, {**binding, part.over: str(number)})
            for number in range(self._count(part, binding))
        ]
        first = grids[0]
        axis = self._axis(part.dim, (*first.shape, 1))
        pieces = []
        for number, grid in enumerate(grids):
            if grid[:2] != first[:2]:
                raise self._unlike(first, grid, "as layers of a stack")
            shape = _with(grid.shape, axis, 1)
            pieces += grid.mapped(shape, _at(axis, number), _layer(axis)).pieces
        return _Grid(first.dtype, _with(first.shape, axis, len(grids)), pieces)

    def _count(self, part: Stack, binding: Mapping[str, str]) -> int:
        leaf = next((leaf for leaf in _leaves(part.part) if f"{{{part.over}}}" in leaf), None)
        if leaf is None:
            raise UnsupportedError(
                f"the plan for {quote(self._target)} stacks over {quote(part.over)}, which is in none of "
                "its names"
            )
        found = self._names.values(leaf, part.over, binding)
        numbers = {int(text) for text in found if text.isdecimal() and str(int(text)) == text}
        count = max(numbers, default=-1) + 1
        missing = next((number for number in range(count) if number not in numbers), None)
        if missing is None and count:
            return count
        name = _filled_in(leaf, {**binding, part.over: str(missing or 0)})
        raise TensorNotFoundError(
            f"the plan for {quote(self._target)} stacks tensors, of which {quote(name)} is missing",
            path=self._stored.name or None, tensor=name,
        )  # fmt: skip

    def _narrow(self, grid: _Grid, part: Narrow) -> _Grid:
        self._require_elements(grid)
        axis = self._axis(part.dim, grid.shape)
        if not 0 <= part.start <= part.stop <= grid.shape[axis]:
            raise self._fault(
                f"[{part.start}:{part.stop}] reaches outside of axis {axis} of shape {list(grid.shape)}"
            )
        pieces = []
        for at, array, label in grid.pieces:
            first = max(part.start, at[axis])
            last = min(part.stop, at[axis] + array.shape[axis])
            if first < last:
                starts = _with(_without((0,) * len(at), axis), axis, first - at[axis])
                counts = (*array.shape[:axis], last - first, *array.shape[axis + 1 :])
                where = (*at[:axis], first - part.start, *at[axis + 1 :])
                pieces.append((where, array.part(starts, counts, (1,) * len(at)), label))
        shape = (*grid.shape[:axis], part.stop - part.start, *grid.shape[axis + 1 :])
        return _Grid(grid.dtype, shape, pieces)

    def _transpose(self, grid: _Grid) -> _Grid:
        self._require_elements(grid)
        if len(grid.shape) < 2:
            raise self._fault(f"shape {list(grid.shape)} has no rows and columns to exchange")
        order = (*range(len(grid.shape) - 2), len(grid.shape) - 1, len(grid.shape) - 2)
        return grid.mapped(
            _chosen(grid.shape, order),
            lambda at: _chosen(at, order),
            lambda array: array.transposed(order),
        )

    def _axis(self, dim: int, shape: tuple[int, ...]) -> int:
        if not -len(shape) <= dim < len(shape):
            raise self._fault(f"shape {list(shape)} has no axis {dim}")
        return dim % len(shape)

    def _require_elements(self, grid: _Grid) -> None:
        if BITS.get(grid.dtype, 8) < 8:
            raise UnsupportedError(
                f"the plan for {quote(self._target)} divides a tensor of type {grid.dtype}, whose elements "
                "share bytes"
            )

    def _unlike(self, one: _Grid, other: _Grid, how: str) -> FormatError:
        shapes = [f"{grid.dtype} of shape {list(format_shape(*grid[:2]))}" for grid in (one, other)]
        names = [quote(grid.pieces[0][2]) if grid.pieces else "nothing" for grid in (one, other)]
        return self._fault(
            f"{names[0]}, {shapes[0]}, and {names[1]}, {shapes[1]}, cannot be joined {how}"
        )

    def _fault(self, message: str) -> FormatError:
        return FormatError(
            f"the plan for {quote(self._target)}: {message}",
            rule="plan", path=self._stored.name or None, tensor=self._target,
        )  # fmt: skip


def _known(array: Strided) -> Callable[[], Strided]:
    return lambda: array


def _without(shape: tuple[T, ...], axis: int) -> tuple[T, ...]:
    return (*shape[:axis], *shape[axis + 1 :])


def _with(shape: tuple[T, ...], axis: int, value: T) -> tuple[T, ...]:
    """A tuple with one more item."""
    return (*shape[:axis], value, *shape[axis:])


def _chosen(values: tuple[T, ...], order: Sequence[int]) -> tuple[T, ...]:
    return tuple(values[axis] for axis in order)


def _shifted(axis: int, by: int) -> Callable[[tuple[int, ...]], tuple[int, ...]]:
    return lambda at: (*at[:axis], at[axis] + by, *at[axis + 1 :])


def _at(axis: int, number: int) -> Callable[[tuple[int, ...]], tuple[int, ...]]:
    return lambda at: _with(at, axis, number)


def _layer(axis: int) -> Callable[[Strided], Strided]:
    return lambda array: array.with_axis(axis)
