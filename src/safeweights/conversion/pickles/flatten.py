"""A tree of plain data as named tensors, and a list of all that is not one.

Names are the keys on the way to a tensor joined by dots, list positions included, so what is
written can be found again. Rules: two tensors that would get one name are an error; a tensor that
some unresolved call would have transformed is refused, never guessed; everything else that is not a
tensor is listed. Pickled `torch.nn.Module` objects give the names of their `state_dict()`; tensors that are
attributes of a tensor, as bitsandbytes has them, are called like it and the attribute. A key that is an
object is named by its qualified name or its repr, and what an object plainly stands for is listed as that.

No recursion: cycles, memo graphs that double at each level and deep nesting end at a limit.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from ...errors import FormatError, quote
from ...format.header import MAX_HEADER
from ...storage.limits import DEFAULT_LIMITS, Limits, exceeded
from .nodes import Blob, Call, DictNode, Global, SetNode, Value
from .numpy_nodes import ArrayNode, BlocksNode, RefusedNode
from .plain import key_name, plain
from .torch_nodes import (
    CastNode,
    MetaNode,
    QuantisedNode,
    ShardNode,
    SparseNode,
    StatefulNode,
    StorageNode,
    TensorNode,
)  # fmt: skip

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

__all__ = ["ROOT_NAME", "Flat", "Other", "flatten", "summary", "unfolded_size"]

ROOT_NAME: Final = "tensor"
"""The name of a tensor that is the whole file and so has no key."""

TENSOR_NODES: Final = (
    TensorNode, ArrayNode, SparseNode, QuantisedNode, MetaNode, CastNode, StorageNode,
    RefusedNode, StatefulNode, BlocksNode, ShardNode,
)  # fmt: skip
_KEPT_OTHERS: Final = 100_000
_LONG: Final = 1000
"""Entries of a table, such as a vocabulary."""
_RUN: Final = 64
"""Numbers of a run, such as a history of losses or the state of a random number generator."""
_MODULE_DETAILS: Final = frozenset(
    {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training",
     "_is_full_backward_hook", "_backend", "T_destination", "call_super_init", "dump_patches"}
)  # fmt: skip


@dataclass(frozen=True)
class Other:
    """Something that is not a tensor.

    Attributes:
        name: Its flattened name.
        value: The node or atom.
        reason: Why it is not carried over, where that is not obvious.
    """

    name: str
    value: Value
    reason: str = ""


@dataclass
class Flat:
    """What a tree holds.

    Attributes:
        tensors: Name -> the node that describes the tensor, in the tree's order.
        refused: Name -> why what is there may be a tensor but cannot be given.
        others: What is not a tensor, the first 100,000.
        others_count: How many there are.
    """

    tensors: dict[str, Value] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    others: list[Other] = field(default_factory=list)
    others_count: int = 0

    def add_other(self, name: str, value: Value, reason: str = "") -> None:
        """List something that is not carried over."""
        self.others_count += 1
        if len(self.others) < _KEPT_OTHERS:
            self.others.append(Other(name, value, reason))


class _Walk:
    """The state of one depth-first traversal."""

    def __init__(self, path: str | None, limits: Limits) -> None:
        self.flat = Flat()
        self._path = path
        self._limits = limits
        self._open: set[int] = set()
        self._seen: dict[int, str] = {}
        self._plain: dict[int, Value] = {}
        self._runs: dict[int, bool] = {}
        self._visits = 0
        self._name_bytes = 0

    def run(self, root: Value) -> Flat:
        if self._least_visits(root) > self._limits.visits:
            raise exceeded("visits", self._limits.visits, self._path)
        # A frame is (node, name, depth), or (node, None, 0) to leave a node.
        stack: list[tuple[Value, str | None, int]] = [(root, "", 0)]
        while stack:
            node, name, depth = stack.pop()
            if name is None:
                self._open.discard(id(node))
                continue
            self._visits += 1
            if self._visits > self._limits.visits:
                raise exceeded("visits", self._limits.visits, self._path)
            children = self._enter(node, name)
            if not children:
                continue
            if depth >= self._limits.depth:
                raise exceeded("depth", self._limits.depth, self._path)
            self._open.add(id(node))
            stack.append((node, None, 0))
            for key, child in reversed(children):
                stack.append((child, f"{name}.{key}" if depth else key, depth + 1))
        return self.flat

    def _least_visits(self, root: Value) -> int:
        """How many visits the containers under `root` will surely need.

        Lists that double at each level are small in memory, and seconds long to walk. Cost: one visit to
        each container. 0: one of them is part of itself, or they are nested too deeply.
        """
        most = self._limits.visits + 1
        depth = 0
        visits: dict[int, int] = {}  # 0: it was entered, and not left
        stack: list[tuple[Value, list[Value] | None]] = [(root, None)]
        while stack:
            node, inner = stack.pop()
            if inner is not None:
                visits[id(node)] = min(most, 1 + sum(visits[id(part)] for part in inner))
                depth -= 1
            elif (known := visits.get(id(node))) is None:
                visits[id(node)] = 0
                inner = [part for part in self._sure_parts(node) if isinstance(part, _PLAIN)]
                stack.append((node, inner))
                stack += [(part, None) for part in inner]
                depth += 1
                if depth > self._limits.depth:
                    return 0
            elif not known:
                return 0
        return visits[id(root)]

    def _sure_parts(self, node: Value) -> Collection[Value]:
        """What is in a plain container, and will be visited each time that this is."""
        if not isinstance(node, _PLAIN) or self._is_one(node):
            return ()
        if isinstance(node, DictNode):  # the last of equal keys counts
            return {key: value for key, value in node.pairs if type(key) is str}.values()
        return _items(node)

    def _enter(self, node: Value, name: str) -> list[tuple[str, Value]]:
        """Take note of `node`; its children, if it is to be descended into."""
        if id(node) in self._open:
            self.flat.add_other(name, node, "refers back to an object it is part of")
            return []
        if isinstance(node, ArrayNode) and node.dtype.is_data:
            if not isinstance(node.data, list):
                self.flat.add_other(name, node, "an array of text, times or objects")
                return []
            # An object saved with numpy.save is an array of no dimensions around it.
            node = node.data[0] if not node.shape and len(node.data) == 1 else node.data
        if isinstance(node, TENSOR_NODES):
            return self._enter_tensor(node, name)
        if isinstance(node, Call):
            if id(node) not in self._plain:
                self._plain[id(node)] = plain(node)
            node = self._plain[id(node)]
            if isinstance(node, TENSOR_NODES):
                return self._enter_tensor(node, name)
        if id(node) in self._open:
            self.flat.add_other(name, node, "refers back to an object it is part of")
            return []
        if isinstance(node, Call):
            return self._enter_call(node, name)
        self._visits += _table_length(node) // 8  # a large list may be in many places
        children = [] if self._is_one(node) else list(self._children(node))
        if not children:
            self.flat.add_other(name, node)
        return children

    def _is_one(self, node: Value) -> bool:
        """Whether `node` is listed as one value, though it has many. Cost: its length, the first time."""
        if not isinstance(node, (list, tuple)):
            return _is_table(node)
        if id(node) not in self._runs:
            self._runs[id(node)] = _is_run(node) or _is_table(node)
        return self._runs[id(node)]

    def _enter_tensor(self, node: Value, name: str) -> list[tuple[str, Value]]:
        """Take note of a tensor; its attributes, if it has some."""
        attributes: list[tuple[str, Value]] = []
        while isinstance(node, StatefulNode):
            attributes += self._attributes(node.state)
            node = node.value
        self._add(name, node)
        return attributes

    def _children(self, node: Value) -> Iterator[tuple[str, Value]]:
        if isinstance(node, DictNode):
            yield from self._entries(node)
            for state in node.state:
                yield from self._attributes(state)
        elif isinstance(node, SetNode):
            yield from self._positions(node.items)
        elif isinstance(node, (list, tuple)):
            yield from self._positions(node)

    def _positions(self, items: list[Value] | tuple[Value, ...]) -> Iterator[tuple[str, Value]]:
        self._charge(len(items))
        return ((str(position), item) for position, item in enumerate(items))

    def _charge(self, count: int) -> None:
        """Bound the frames that one node puts on the stack, before it does."""
        if self._visits + count > self._limits.visits:
            raise exceeded("visits", self._limits.visits, self._path)

    def _entries(self, node: DictNode) -> Iterator[tuple[str, Value]]:
        """Keys and values, the last of equal keys winning as it does in a dict."""
        self._charge(len(node.pairs))
        entries: dict[Value, tuple[str, Value]] = {}
        for key, value in node.pairs:
            text = key_name(key)
            plain_key = key is None or isinstance(key, (str, bytes, bool, int, float))
            entries[key if plain_key else ("object", text)] = text, value
        yield from entries.values()

    def _enter_call(self, call: Call, name: str) -> list[tuple[str, Value]]:
        module = self._module_state(call)
        if module is not None:
            return list(self._module_children(module, name))
        if id(call) in self._seen:
            first = self._seen[id(call)]
            self.flat.add_other(name, call, f"the same object as {quote(first)}")
            return []
        self._seen[id(call)] = name
        kind = _built_type(call)
        state = call.state if kind.rpartition(".")[2] in _DISTRIBUTED else None
        if self._has_tensor((call.arguments, call.keywords, state)):
            self.flat.refused[name] = _refusal(call, kind)
            return []
        self.flat.add_other(name, call, "the object itself is not rebuilt")
        children = [pair for state in call.state for pair in self._attributes(state)]
        children += list(self._positions(call.items))
        return children + list(self._entries(DictNode(call.pairs)))

    def _attributes(self, state: Value) -> Iterator[tuple[str, Value]]:
        """What BUILD sets: a dictionary, or (dictionary, dictionary of slots), or anything."""
        parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)
        for part in parts:
            if isinstance(part, DictNode):
                yield from self._entries(part)
            elif part is not None:
                yield "state", part

    def _module_state(self, call: Call) -> DictNode | None:
        state = call.state[-1] if call.state else None
        if not isinstance(state, DictNode) or len(call.state) != 1:
            return None
        parts = (state.get("_parameters"), state.get("_modules"))
        return state if all(isinstance(part, DictNode) for part in parts) else None

    def _module_children(self, state: DictNode, name: str) -> Iterator[tuple[str, Value]]:
        transient = state.get("_non_persistent_buffers_set")
        hidden = {n for n in _items(transient) if isinstance(n, str)}
        for part in ("_parameters", "_buffers", "_modules"):
            node = state.get(part)
            if not isinstance(node, DictNode):
                continue
            for key, value in self._entries(node):
                if part == "_buffers" and key in hidden:
                    self.flat.add_other(f"{name}.{key}", value, "a buffer that is not persistent")
                elif value is not None:
                    yield key, value
        for key, value in self._entries(state):
            if key not in _MODULE_DETAILS and not _is_empty(value):
                self.flat.add_other(f"{name}.{key}" if name else key, value, "a module's attribute")

    def _has_tensor(self, root: Value) -> bool:
        stack = [root]
        seen: set[int] = set()
        while stack:
            node = stack.pop()
            if isinstance(node, TENSOR_NODES):
                return True
            if isinstance(node, (str, bytes, int, float)) or node is None or id(node) in seen:
                continue
            seen.add(id(node))
            self._visits += 1
            self._charge(0)
            stack.extend(_parts(node))
        return False

    def _add(self, name: str, node: Value) -> None:
        name = name or ROOT_NAME
        if name in self.flat.tensors:
            raise FormatError(
                f"two tensors would both be called {quote(name)}; rename one before converting",
                rule="name-collision",
                path=self._path,
                tensor=name,
            )
        self._name_bytes += len(name)
        if self._name_bytes > MAX_HEADER:
            raise FormatError(
                "the tensors' names do not fit into a header", rule="names", path=self._path
            )
        self.flat.tensors[name] = node
        if len(self.flat.tensors) > self._limits.tensors:
            raise exceeded("tensors", self._limits.tensors, self._path)


_PLAIN: Final = (list, tuple, SetNode, DictNode)

_DISTRIBUTED: Final = frozenset({"DTensor", "ShardedTensor"})


def _built_type(call: Call) -> str:
    """The qualified name of what a call makes: of PyTorch's rebuilding of subclasses, the class."""
    if call.path.startswith("torch._tensor._rebuild_from_type") and len(call.arguments) > 1:
        kind = call.arguments[1]
        return kind.path if isinstance(kind, Global) else "?"
    return call.path


def _refusal(call: Call, kind: str) -> str:
    """Why what a call makes of a tensor is not given."""
    if kind.rpartition(".")[2] in _DISTRIBUTED:
        return (
            f"it is a {quote(kind)}, one process's part of a tensor: convert the folder with the files "
            "of all processes"
        )
    if kind != call.path:
        return (
            f"it is a {quote(kind)}, whose values nothing here can know without executing its code"
        )
    return (
        f"it is the result of {call.opcode} of {quote(kind)} at byte {call.offset}, "
        "which nothing here can know without executing it"
    )


def _table_length(node: Value) -> int:
    """Entries of a container that is long enough to be a table, else 0."""
    length = len(node.pairs if isinstance(node, DictNode) else _items(node))
    return length if length > _LONG else 0


def _is_table(node: Value) -> bool:
    """Whether `node` is a long run of plain values, such as a vocabulary: one thing, not many."""
    if not _table_length(node):
        return False
    entries = node.pairs if isinstance(node, DictNode) else _items(node)
    values = (entry[1] for entry in entries) if isinstance(node, DictNode) else iter(entries)
    return all(isinstance(value, (str, bytes, int, float, Blob, type(None))) for value in values)


def _is_run(node: list[Value] | tuple[Value, ...]) -> bool:
    """Whether `node` is a long run of numbers, or has few items: plain values, and such runs."""
    if len(node) > 8:
        return _is_numbers(node)
    runs = [item for item in node if isinstance(item, (list, tuple))]
    rest = (item for item in node if not isinstance(item, (list, tuple)))
    plainly = all(value is None or isinstance(value, (str, bytes, int, float)) for value in rest)
    return plainly and bool(runs) and all(map(_is_numbers, runs))


def _is_numbers(items: list[Value] | tuple[Value, ...]) -> bool:
    return len(items) >= _RUN and all(isinstance(item, (int, float)) for item in items)


def _items(node: Value) -> list[Value] | tuple[Value, ...]:
    if isinstance(node, SetNode):
        return node.items
    return node if isinstance(node, (list, tuple)) else ()


def _parts(node: Value) -> list[Value]:
    """The nodes directly inside `node`."""
    if isinstance(node, (list, tuple)):
        return list(node)
    if isinstance(node, SetNode):
        return node.items
    if isinstance(node, DictNode):
        return [part for pair in node.pairs for part in pair] + node.state
    if isinstance(node, Call):
        pairs = [part for pair in node.pairs for part in pair]
        return [*node.arguments, node.keywords, *node.state, *node.items, *pairs]
    if isinstance(node, ArrayNode) and isinstance(node.data, list):
        return node.data
    return [node.value, node.state] if isinstance(node, StatefulNode) else []


def _is_empty(value: Value) -> bool:
    """Whether an attribute is the empty hook table or None that every module carries."""
    if isinstance(value, DictNode):
        return not value.pairs
    return value is None or (isinstance(value, (list, tuple)) and not value)


def flatten(root: Value, path: str | None = None, limits: Limits = DEFAULT_LIMITS) -> Flat:
    """The tensors of the tree `root` by name, and everything else it holds.

    Cost: one visit to each node for each way that leads to it, at most `Limits.visits`.

    Raises:
        FormatError: Two tensors share a name, or a limit is exceeded.

    >>> flatten(DictNode([("a", [1, 2])])).others
    [Other(name='a.0', value=1, reason=''), Other(name='a.1', value=2, reason='')]
    """
    return _Walk(path, limits).run(root)


def unfolded_size(root: Value, limit: int) -> int:
    """Nodes of the tree `root`, shared ones counted at each occurrence; counts up to `limit`.

    A memo graph that doubles at each level is small in memory and not for those who walk it. Cost:
    one visit to each node and one to each reference; a reference back to an open node counts as one.
    """
    sizes: dict[int, int] = {}
    stack: list[tuple[Value, list[Value] | None, int]] = [(root, None, 0)]
    while stack:
        node, inner, atoms = stack.pop()
        if inner is not None:
            sizes[id(node)] = min(1 + atoms + sum(sizes.get(id(part), 1) for part in inner), limit)
        elif id(node) not in sizes and isinstance(node, _CONTAINERS):
            sizes[id(node)] = 1
            parts = _parts(node)
            inner = [part for part in parts if isinstance(part, _CONTAINERS)]
            stack.append((node, inner, len(parts) - len(inner)))
            stack += [(part, None, 0) for part in inner]
    return sizes.get(id(root), 1)


_CONTAINERS: Final = (list, tuple, SetNode, DictNode, Call, ArrayNode, StatefulNode)


def summary(value: Value, limit: int = 80) -> str:
    """A few words on what a node or atom is; at most two levels deep."""
    return _summary(value, 2)[:limit]


def _summary(value: Value, depth: int) -> str:
    if isinstance(value, str):
        return repr(value[:60])
    if isinstance(value, (bool, int, float, complex)) or value is None:
        return repr(value)
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, Blob):
        return f"{value.length} bytes of {'text' if value.encoding else 'data'}"
    if isinstance(value, Global):
        return f"<{value.path}>"
    if isinstance(value, Call):
        return f"<{value.path}(...)>"
    if isinstance(value, DictNode):
        return f"{value.type_name} of {len(value.pairs)}"
    if isinstance(value, SetNode):
        return f"{value.type_name} of {len(value.items)}"
    if isinstance(value, (list, tuple)):
        if not depth or len(value) > 8:
            return f"{type(value).__name__} of {len(value)}"
        inner = ", ".join(_summary(item, depth - 1) for item in value)
        return f"[{inner}]" if isinstance(value, list) else f"({inner})"
    return f"<{type(value).__name__.removesuffix('Node').lower()}>"
