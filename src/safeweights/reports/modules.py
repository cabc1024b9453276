"""The tree of a model's modules, in which repeated modules are one line.

``model.layers.0`` to ``model.layers.31`` with the same tensors inside become ``model.layers.[0-31]``.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from .inventory import MAX_BRANCH_DEPTH, natural

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from .documents import ModuleRecord
    from .inventory import Row

_Leaf: TypeAlias = "tuple[str, tuple[str, tuple[int, ...], int, int]]"
_Child: TypeAlias = "tuple[str, _Structure]"

__all__ = ["Module", "module_tree", "most_repeated", "outline"]

_DIGITS_MAX: Final = 9
"""Digits of a number that counts modules; a name may have millions."""

_LABEL_MAX: Final = 24
"""Characters of a list of numbers."""


class Module(NamedTuple):
    """A module, or several of the same structure beside each other.

    Attributes:
        path: The common beginning of its tensors' names, with ``[0-31]`` in place of a number if it
            stands for several.
        depth: Number of modules around it.
        copies: How many modules the line stands for, those around it counted: 8 experts in each of 32
            layers are 256.
        tensors: Number of tensors in all of them.
        parameters: Number of elements in all of them.
        nbytes: Bytes of their data.
    """

    path: str
    depth: int
    copies: int
    tensors: int
    parameters: int
    nbytes: int

    def record(self) -> ModuleRecord:
        """The module as a JSON record."""
        return {
            "path": self.path,
            "depth": self.depth,
            "copies": self.copies,
            "tensors": self.tensors,
            "parameters": self.parameters,
            "bytes": self.nbytes,
        }


class _Structure:
    """What a module has inside. Modules with the same tensors and modules inside share one.

    Attributes:
        children: Part of a name -> the structure of the module of that name, for each.
        has_tensors: Whether tensors are directly in it.
        sums: Number of tensors, of elements and of bytes.
    """

    __slots__ = ("children", "has_tensors", "sums")

    def __init__(self, leaves: Collection[_Leaf], children: Sequence[_Child]) -> None:
        self.children = children
        self.has_tensors = bool(leaves)
        inside: list[tuple[int, ...]] = [
            (1, elements, size) for _, (_, _, elements, size) in leaves
        ]
        inside += [child.sums for _, child in children]
        self.sums: tuple[int, ...] = tuple(map(sum, zip((0, 0, 0), *inside, strict=True)))


def module_tree(found: Iterable[Row]) -> list[Module]:
    """All modules of a model, each before those inside it; modules of the same structure are one.

    The root is not listed, nor are tensors; a module that has nothing but one other is one line with
    it. Linear in the number of tensors.

    Args:
        found: The tensors.

    >>> from .inventory import Row
    >>> names = [f"layers.{n}.{part}.weight" for n in range(12) for part in ("q", "k")]
    >>> rows = [Row(name, "F32", (2,), 2, 8, None, None) for name in names]
    >>> for module in module_tree(rows):
    ...     print(module.depth, module.path, module.copies, module.parameters)
    0 layers.[0-11] 12 48
    1 layers.[0-11].k 12 24
    1 layers.[0-11].q 12 24
    """
    return list(_listed(_structure(_leaves(found)), "", 0, 1))


def outline(modules: Iterable[ModuleRecord], most: int) -> list[ModuleRecord]:
    """The modules of as many levels of the tree as have no more than `most` modules.

    Args:
        modules: Records of what `module_tree` returned, or the first levels of them.
        most: Maximum number; of a top level that has more, the first.
    """
    modules = list(modules)
    levels = sorted(module["depth"] for module in modules)
    fitting = [depth for depth in set(levels) if bisect_right(levels, depth) <= most]
    deepest = max(fitting, default=0)
    return [module for module in modules if module["depth"] <= deepest][:most]


def most_repeated(modules: Iterable[Module]) -> Module | None:
    """The largest module that stands for several, outermost first: the layers of a transformer."""
    outermost = [module for module in modules if module.copies > 1]
    return max(outermost, key=lambda each: (each.parameters, -each.depth), default=None)


def _leaves(found: Iterable[Row]) -> dict[str, dict[str, list[_Leaf]]]:
    """Path of a module -> part of a name -> what is directly in the module of that name.

    Paths begin with two dots, that of the root is one dot, and the root is the only module in the path
    that is empty. So parts of names may be empty too.
    """
    modules: dict[str, dict[str, list[_Leaf]]] = {}
    known: dict[_Leaf, _Leaf] = {}  # many tensors are alike: 100,000 take 20 MiB less
    last: str | None = None
    inside: dict[str, list[_Leaf]] = {}
    for row in found:
        outer, module, part = f"..{row[0]}".rsplit(".", 2)
        if outer != last:
            last = outer
            if outer.count(".") > MAX_BRANCH_DEPTH:
                *parts, part = row.name.split(".", MAX_BRANCH_DEPTH)
                outer, _, module = f"..{'.'.join(parts)}".rpartition(".")
                last = None
            inside = modules.setdefault(outer, {})
        leaf = part, row[1:5]
        leaf = known.setdefault(leaf, leaf)
        leaves = inside.get(module)
        if leaves is None:
            inside[module] = [leaf]
        else:
            leaves.append(leaf)
    return modules


def _structure(modules: dict[str, dict[str, list[_Leaf]]]) -> _Structure:
    """The structure of the whole model, built from the innermost modules outwards."""
    levels: list[list[str]] = [[] for _ in range(MAX_BRANCH_DEPTH + 1)]
    for path in modules:
        levels[path.count(".")].append(path)
    known: dict[object, _Structure] = {}
    deeper: dict[str, list[_Child]] = {}
    for level in reversed(levels):
        below, deeper = deeper, {}
        for path in level:
            deeper[path] = children = []
            for part, leaves in modules[path].items():
                inside = below.get(f"{path}.{part}", ()) if below else ()
                if inside or len(leaves) != 1:
                    key: object = frozenset(leaves), frozenset(inside)
                else:
                    key = leaves[0]  # most modules have one tensor and nothing else
                found = known.get(key)
                if found is None:
                    found = known[key] = _Structure(leaves, inside)
                children.append((part, found))
            if path:
                around, _, part = path.rpartition(".")
                if around not in modules:  # no tensor is directly in a module of it
                    modules[around] = {}
                    levels[around.count(".")].append(around)
                modules[around].setdefault(part, [])
    return deeper[""][0][1] if deeper else _Structure([], [])


def _listed(outer: _Structure, path: str, depth: int, copies: int) -> Iterator[Module]:
    for label, members in _folded(outer):
        inner, around = f"{path}{label}", copies * len(members)
        sums = (
            copies * sum(numbers) for numbers in zip(*(each.sums for each in members), strict=True)
        )
        first = members[0]
        while not first.has_tensors and len(only := list(_folded(first))) == 1:
            part, same = only[0]  # a module that is nothing but another: one line for both
            inner, around = f"{inner}.{part}", around * len(same)
            first = same[0]
        yield Module(inner, depth, around, *sums)
        yield from _listed(first, f"{inner}.", depth + 1, around)


def _folded(outer: _Structure) -> Iterator[tuple[str, list[_Structure]]]:
    """The modules directly in `outer`, with those that have numbers and the same structure as one."""
    groups: dict[object, list[_Child]] = {}
    for part, child in sorted(outer.children, key=lambda item: natural(item[0])):
        numbered = part.isascii() and part.isdigit() and len(part) <= _DIGITS_MAX
        groups.setdefault(child if numbered else part, []).append((part, child))
    for members in groups.values():
        yield _label([part for part, _ in members]), [each for _, each in members]


def _label(parts: list[str]) -> str:
    """What to call modules with these numbers.

    >>> _label(["7"]), _label(["0", "1", "2"]), _label(["0", "1", "4"])
    ('7', '[0-2]', '[0-1,4]')
    """
    if len(parts) == 1:
        return parts[0]
    runs: list[list[int]] = []
    for number in map(int, parts):
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    text = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
    return f"[{text}]" if len(text) <= _LABEL_MAX else f"[{len(parts)} of {parts[0]}-{parts[-1]}]"
