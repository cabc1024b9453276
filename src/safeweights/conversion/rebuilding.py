"""What a file's own loader would return, as far as that is plain data around tensors.

Dictionaries, lists, tuples, sets, arrays of objects, text and numbers come back as they are, each
once, however often it is referred to. An object of any other class is never made: the dictionary of
its tensors, by name, stands in its place, and nothing where it has none.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ..storage.limits import DEFAULT_LIMITS
from .foreign import ForeignCheckpoint
from .pickles.flatten import flatten
from .pickles.nodes import Blob, DictNode, SetNode, Value
from .pickles.numpy_nodes import ArrayNode
from .pickles.plain import key_text
from .pickles.torch_nodes import StatefulNode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ..checkpoint import Checkpoint, Tensor

__all__ = ["Rebuilt", "rebuild"]

_DEPTH_MAX: Final = 100
_ATOMS: Final = (type(None), bool, int, float, complex, str, bytes)
_NOTHING: Final = object()


@dataclass(frozen=True)
class Rebuilt:
    """What was made of a file.

    Attributes:
        value: The whole of it.
        changed: The names of what is not what the file's own loader would have returned.
    """

    value: Any
    changed: list[str]


def rebuild(checkpoint: Checkpoint, decode: Callable[[Tensor, bool], Any]) -> Rebuilt:
    """The dictionaries, lists and so on of `checkpoint`, with tensors at their places.

    Of safetensors, of several files, and of a format that holds tensors only: a dictionary of them.

    Args:
        checkpoint: What `safeweights.open` gives.
        decode: Makes a framework's tensor; told whether it was a NumPy array. Called once for tied
            weights, which stay tied.

    Raises:
        SafetensorError, OSError: A tensor cannot be read.
    """
    if not isinstance(checkpoint, ForeignCheckpoint) or checkpoint.tree is None:
        return Rebuilt({name: decode(tensor, False) for name, tensor in checkpoint.items()}, [])
    made = _Rebuilder(checkpoint, decode)
    return Rebuilt(made.value(checkpoint.tree, "", 0, {}), made.changed)


class _Rebuilder:
    def __init__(
        self, checkpoint: ForeignCheckpoint, decode: Callable[[Tensor, bool], Any]
    ) -> None:
        self.changed: list[str] = []
        self._checkpoint = checkpoint
        self._decode = decode
        self._names = {id(node): name for name, node in checkpoint.nodes.items()}
        self._tensors: dict[str, Any] = {}
        self._done: dict[int, Any] = {}
        self._open: set[int] = set()
        self._visits = DEFAULT_LIMITS.visits

    def value(self, node: Value, name: str, depth: int, nothing: Any = None) -> Any:
        """What `node` stands for; `nothing` where that cannot be said."""
        if isinstance(node, _ATOMS):
            return node
        if id(node) not in self._done:
            self._done[id(node)] = self._make(node, name, depth)
        found = self._done[id(node)]
        return nothing if found is _NOTHING else found

    def _make(self, node: Value, name: str, depth: int) -> Any:
        if id(node) in self._names:
            return self._tensor(self._names[id(node)])
        if isinstance(node, StatefulNode):
            self.changed.append(name)  # of which the attributes are left out
            return self.value(node.value, name, depth, _NOTHING)
        if isinstance(node, Blob):
            return self._text(node, name)
        if id(node) in self._open or depth > _DEPTH_MAX:
            return self._instead(node, name)
        self._open.add(id(node))
        try:
            if isinstance(node, DictNode):
                return self._mapping(node, name, depth)
            if isinstance(node, SetNode):
                return self._set(node, name, depth)
            if isinstance(node, (list, tuple)):
                return type(node)(self._items(node, name, depth))
            if isinstance(node, ArrayNode) and isinstance(node.data, list):
                return self._array(node, node.data, name, depth)
        finally:
            self._open.discard(id(node))
        return self._instead(node, name)

    def _items(self, items: Iterable[Value], name: str, depth: int) -> list[Any]:
        return [
            self.value(item, _join(name, str(position), depth), depth + 1)
            for position, item in enumerate(items)
        ]

    def _mapping(self, node: DictNode, name: str, depth: int) -> dict[Any, Any]:
        ordered = node.type_name == "collections.OrderedDict"
        result: dict[Any, Any] = OrderedDict() if ordered else {}
        pairs = [(key, item, key_text(key)) for key, item in node.pairs]
        if any(text is None for _, _, text in pairs):
            self.changed.append(_join(name, "?", depth))
        last = {key: (item, text) for key, item, text in pairs if text is not None}
        for key, (item, text) in last.items():
            value = self.value(item, _join(name, text, depth), depth + 1, _NOTHING)
            if value is not _NOTHING:
                result[key] = value
        for state in node.state:
            metadata = state.get("_metadata") if isinstance(state, DictNode) else None
            if ordered and metadata is not None:  # which `load_state_dict` looks for
                place = _join(name, "_metadata", depth)
                vars(result)["_metadata"] = self.value(metadata, place, depth + 1)
        return result

    def _set(self, node: SetNode, name: str, depth: int) -> Any:
        items = self._items(node.items, name, depth)
        try:
            return frozenset(items) if node.type_name == "frozenset" else set(items)
        except TypeError:  # what stands for an object cannot stand in a set
            return self._instead(node, name)

    def _array(self, node: ArrayNode, items: list[Value], name: str, depth: int) -> Any:
        if math.prod(node.shape) != len(items):
            return self._instead(node, name)
        array = np.empty(len(items), object)
        if node.shape:
            for position, item in enumerate(self._items(items, name, depth)):
                array[position] = item  # all at once, lists would become rows
        else:
            array[0] = self.value(items[0], name, depth)
        try:
            return array.reshape(node.shape)  # NumPy lists objects in C order, however they lie
        except (ValueError, OverflowError):  # too many dimensions; or none of 2^70
            return self._instead(node, name)

    def _text(self, blob: Blob, name: str) -> Any:
        data = b"".join(blob.pieces())
        if blob.encoding is None or blob.latin1:
            return data
        try:
            return data.decode(blob.encoding, "surrogatepass")
        except UnicodeError:
            self.changed.append(name)
            return _NOTHING

    def _tensor(self, name: str) -> Any:
        if self._checkpoint[name].unreadable is not None:
            self.changed.append(name)
            return _NOTHING
        kept = self._checkpoint.aliases.get(name, name)
        if kept not in self._tensors:
            array = isinstance(self._checkpoint.nodes[kept], ArrayNode)
            self._tensors[kept] = self._decode(self._checkpoint[kept], array)
        return self._tensors[kept]

    def _instead(self, node: Value, name: str) -> Any:
        """The tensors of an object that is not made, by name."""
        self.changed.append(name or "(root)")
        flat = flatten(node, self._checkpoint.name, replace(DEFAULT_LIMITS, visits=self._visits))
        # Many objects may share what they hold.
        self._visits = max(self._visits - len(flat.tensors) - flat.others_count, 1)
        names = {inner: self._names.get(id(each), "") for inner, each in flat.tensors.items()}
        found = {
            inner: self._tensor(full) for inner, full in names.items() if full in self._checkpoint
        }
        return found or _NOTHING


def _join(name: str, key: str, depth: int) -> str:
    return f"{name}.{key}" if depth else key
