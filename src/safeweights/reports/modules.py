"""The tree of a model's modules, in which repeated modules are one line.

``model.layers.0`` to ``model.layers.31`` with the same tensors inside become ``model.layers.[0-31]``.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Final, NamedTuple

from .inventory import MAX_BRANCH_DEPTH, natural

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .documents import ModuleRecord
    from .inventory import Row

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


class _Node:
    """A module while the tree is built.

    Attributes:
        children: Part of a name -> the module of that name in this one.
        leaves: Part of a name, type and shape of each tensor directly in this module.
        structure: A number that only modules with the same tensors inside have.
    """

    __slots__ = ("children", "leaves", "nbytes", "parameters", "structure", "tensors")

    def __init__(self) -> None:
        # Most modules have no module inside: 100,000 empty dictionaries would cost 30 ms.
        self.children: dict[str, _Node] | None = None
        self.leaves: list[tuple[str, str, tuple[int, ...]]] = []
        self.structure = self.tensors = self.parameters = self.nbytes = 0


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
    nodes = {"": _Node()}
    for row in found:
        within, _, part = row.name.rpartition(".")
        if within.count(".") >= MAX_BRANCH_DEPTH:
            parts = row.name.split(".", MAX_BRANCH_DEPTH)
            within, part = ".".join(parts[:-1]), parts[-1]
        node = nodes.get(within) or _module(nodes, within)
        node.leaves.append((part, row.dtype, row.shape))
        node.tensors += 1
        node.parameters += row.parameters
        node.nbytes += row.nbytes
    root = nodes[""]
    _compare(root, {})
    return list(_listed(root, "", 0, 1))


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


def _module(nodes: dict[str, _Node], path: str) -> _Node:
    """The node of a module that is new, and of those around it."""
    node = nodes[path] = _Node()
    inner = node
    while path:
        path, _, part = path.rpartition(".")
        outer = nodes.get(path)
        known = outer is not None
        outer = nodes.setdefault(path, outer or _Node())
        if outer.children is None:
            outer.children = {}
        outer.children[part] = inner
        if known:
            break
        inner = outer
    return node


def _compare(node: _Node, numbers: dict[object, int]) -> None:
    """Sum up modules, and give those of the same structure the same number.

    Recursive: modules are nested at most `MAX_BRANCH_DEPTH` deep.
    """
    inside = []
    for part, child in (node.children or {}).items():
        if child.children:
            _compare(child, numbers)
        else:
            child.structure = _number(numbers, child.leaves)
        node.tensors += child.tensors
        node.parameters += child.parameters
        node.nbytes += child.nbytes
        inside.append((part, child.structure))
    node.structure = numbers.setdefault((frozenset(node.leaves), frozenset(inside)), len(numbers))


def _number(numbers: dict[object, int], leaves: list[tuple[str, str, tuple[int, ...]]]) -> int:
    """The structure of a module without modules inside."""
    key = leaves[0] if len(leaves) == 1 else frozenset(leaves)  # most have one tensor
    return numbers.setdefault(key, len(numbers))


def _listed(node: _Node, path: str, depth: int, copies: int) -> Iterator[Module]:
    for label, members in _folded(node):
        inner, around = f"{path}{label}", copies * len(members)
        sums = [0, 0, 0]
        for each in members:
            sums[0] += each.tensors
            sums[1] += each.parameters
            sums[2] += each.nbytes
        tensors, parameters, size = (copies * number for number in sums)
        first = members[0]
        while not first.leaves and len(only := list(_folded(first))) == 1:
            part, same = only[0]  # a module that is nothing but another: one line for both
            inner, around = f"{inner}.{part}", around * len(same)
            first = same[0]
        yield Module(inner, depth, around, tensors, parameters, size)
        yield from _listed(first, f"{inner}.", depth + 1, around)


def _folded(node: _Node) -> Iterator[tuple[str, list[_Node]]]:
    """The modules directly in `node`, with those that have numbers and the same structure as one."""
    groups: dict[object, list[tuple[str, _Node]]] = {}
    children = node.children or {}
    for part in sorted(children, key=natural):
        child = children[part]
        numbered = part.isascii() and part.isdigit() and len(part) <= _DIGITS_MAX
        groups.setdefault(child.structure if numbered else part, []).append((part, child))
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
