"""A pickle machine that only describes.

It executes every opcode of protocols 0 to 5 on symbols: a name stays a `Global`, a call stays a
`Call`, and neither is ever imported, looked up or called. What a caller can describe better (a
tensor, a NumPy array, an OrderedDict) it hands in as `Constructors`, functions of this package that
turn a `Call` into a node; the machine itself knows no framework.

Rules: one loop, no recursion; what is created is counted against the limits. Everything that
CPython's unpickler would do up to its own end, this machine reports: where both stop, the error has
the rule ``pickle``; where only this one stops, another (see `opcodes`).
``tests/conversion/test_against_cpython.py`` compares the two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from ...errors import FormatError, quote
from ...format.gcpause import gc_paused
from ...storage.limits import DEFAULT_LIMITS, Limits
from ...storage.windows import ByteReader
from .nodes import Blob, Call, DictNode, Effect, Global, PersistentId, SetNode, Value, modern
from .opcodes import OPCODES, Arguments

if TYPE_CHECKING:
    from ...storage import Source

__all__ = ["Constructors", "Pickle", "PickleMachine", "read_pickle"]

Constructors = Mapping[tuple[str, str], Callable[[Call], Value]]
"""(module, name) -> a function that describes the result of calling it.

It returns NotImplemented to leave the call unresolved, and raises FormatError where the arguments
cannot be what the name promises."""

_HIGHEST_PROTOCOL: Final = 5
_KEY_NODES: Final = 10_000
_CALL_OBJECTS: Final = 4  # a call takes the memory of about four tuples


@dataclass
class Pickle:
    """One pickle, read to its STOP.

    Attributes:
        value: The tree.
        start, end: Its bytes in the source; `end` is the offset after STOP.
        protocol: The highest PROTO seen, 0 without one.
        globals: Every name it would import, in order.
        calls: Every call it would make, in order.
        effects: Every opcode that would run code of an object that is not plain data.
        persistent: Every persistent id that nothing resolved.
    """

    start: int
    end: int = 0
    value: Value = None
    protocol: int = 0
    globals: list[Global] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)
    persistent: list[PersistentId] = field(default_factory=list)


class PickleMachine:
    """Reads one pickle.

    Args:
        source: Where the pickle is.
        offset: Its first byte.
        end: Where the data ends that it may use; by default the source's end.
        constructors: How to describe calls that the caller knows.
        persistent: Describes a persistent id; without it, or where it returns NotImplemented, a
            `PersistentId` node stands for it.
        on_build: Called after BUILD with the machine and the object; what it returns replaces the
            object on the stack. Formats that interleave raw arrays with opcodes need it.
        limits: See `Limits`.
    """

    def __init__(
        self,
        source: Source,
        *,
        offset: int = 0,
        end: int | None = None,
        constructors: Constructors | None = None,
        persistent: Callable[[Value], Value] | None = None,
        on_build: Callable[[PickleMachine, Value], Value] | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self.source = source
        self.limits = limits
        self.reader = ByteReader(source, offset, source.size if end is None else end)
        self._arguments = Arguments(source, self.reader, limits)
        self.result = Pickle(start=offset)
        self._constructors = constructors or {}
        self._persistent = persistent
        self._on_build = on_build
        self._stack: list[Value] = []
        self._marks: list[list[Value]] = []
        self.memo: dict[int, Value] = {}
        self._objects = 0
        self._objects_left = limits.left("objects")
        self._frame_end = 0
        self._steps = self._settled = self._limit = 0

    def run(self) -> Pickle:
        """Execute until STOP.

        Cost: a third of a microsecond for most opcodes; memory bounded by `Limits`.

        Raises:
            FormatError: The bytes are not a pickle, end early, or exceed a limit.
        """
        self._limit = self.limits.left("opcodes")
        try:
            with gc_paused():  # it would visit the growing tree again and again: half of the time
                self._execute()
        finally:
            self._settle()
            self.limits.count("objects", self._objects)
        self.result.end = self.reader.offset
        return self.result

    def _execute(self) -> None:
        # Opcodes, and arguments of one byte, are taken from the reader's block through local variables: two
        # calls less for each. What reads more finds the reader at its place, and may move it.
        arguments, reader, table, steps = self._arguments, self.reader, _TABLE, 0
        block, base, size, position = reader.block, reader.base, len(reader.block), reader.position
        try:
            while steps < self._limit:
                if position + 1 >= size:
                    reader.position = position
                    arguments.at = base + position
                    reader.buffer()
                    block, base, position = reader.block, reader.base, reader.position
                    size = len(block)
                arguments.at = base + position
                entry = table[block[position]]
                position += 1
                if entry is None:
                    raise self._fault("no pickle opcode has this value")
                kind, read, act = entry
                if kind == _ALONE:
                    steps += 1
                    act(self)
                elif kind == _BYTE and position < size and not self._frame_end:
                    steps += 2
                    act(self, block[position])
                    position += 1
                else:
                    steps += kind
                    self._steps, reader.position = steps, position
                    if read is not None:
                        value = read(arguments)
                        if self._frame_end:
                            self._check_frame()
                        act(self, value)
                    elif act(self) is _END:
                        return
                    if reader.block is not block:
                        block, base, size = reader.block, reader.base, len(reader.block)
                    position = reader.position
        except FormatError as error:
            self._doubt(error)
            raise
        finally:
            self._steps = steps
        raise self._exceeded("opcodes")

    def _settle(self) -> None:
        """Count the steps up to here against the limits, of which other readers take their share."""
        self.limits.count("opcodes", self._steps - self._settled)
        self._settled = self._steps

    @property
    def in_frame(self) -> bool:
        """Whether the next byte is inside of a frame that the pickle announced."""
        return self.reader.offset < self._frame_end

    def _doubt(self, error: FormatError) -> None:
        """Note on an error of an argument that readers of frames read another argument."""
        past = self.reader.offset > self._frame_end or error.rule == "truncated"
        if self._arguments.at < self._frame_end and past:
            error.rule = "pickle-strict"

    def _check_frame(self) -> None:
        """Refuse an argument that reaches past its frame: unpicklers read it differently."""
        if self.reader.offset > self._frame_end:
            if self._arguments.at < self._frame_end:
                raise self._fault("an argument reaches past the end of its frame", strict=True)
            self._frame_end = 0

    # -- errors and accounting

    def _fault(self, message: str, *, strict: bool = False) -> FormatError:
        return self._arguments.fault(message, strict=strict)

    def _exceeded(self, name: str) -> FormatError:
        return self._arguments.exceeded(name)

    def _count(self, objects: int = 1) -> None:
        self._objects += objects
        if self._objects > self._objects_left:
            raise self._exceeded("objects")

    # -- stack

    def _pop(self) -> Value:
        if not self._stack:
            raise self._fault("the stack is empty")
        return self._stack.pop()

    def _top(self) -> Value:
        if not self._stack:
            raise self._fault("the stack is empty")
        return self._stack[-1]

    def _push_object(self, value: Value) -> None:
        self._objects += 1  # `_count`, without its call
        if self._objects > self._objects_left:
            raise self._exceeded("objects")
        self._stack.append(value)

    def _pop_mark(self) -> list[Value]:
        if not self._marks:
            raise self._fault("there is no MARK")
        items = self._stack
        self._stack = self._marks.pop()
        return items

    def _mark(self) -> None:
        if len(self._marks) >= self.limits.marks:
            raise self._exceeded("marks")
        self._marks.append(self._stack)
        self._stack = []

    def _op_pop(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._pop_mark()

    def _op_dup(self) -> None:
        self._stack.append(self._top())

    def _op_stop(self) -> object:
        self.result.value = self._pop()
        return _END

    # -- framing

    def _op_proto(self, version: int) -> None:
        if version > _HIGHEST_PROTOCOL:
            raise self._fault(f"protocol {version} does not exist")
        self.result.protocol = max(self.result.protocol, version)

    def _op_frame(self, length: int) -> None:
        if length > self.reader.left:
            raise self._fault("a frame reaches past the end of the data", strict=True)
        if self.in_frame:
            raise self._fault("a frame begins inside another", strict=True)
        self._frame_end = self.reader.offset + length

    # -- atoms

    def _op_none(self) -> None:
        self._stack.append(None)

    def _op_newtrue(self) -> None:
        self._stack.append(True)

    def _op_newfalse(self) -> None:
        self._stack.append(False)

    def _push(self, value: Value) -> None:
        self._stack.append(value)

    def _push_string(self, value: Value) -> None:
        if isinstance(value, Blob):
            self._count()
        self._stack.append(value)

    def _op_next_buffer(self) -> None:
        self._unresolved_reference("out-of-band buffer")

    def _op_readonly_buffer(self) -> None:
        self._top()

    # -- containers

    def _op_empty_tuple(self) -> None:
        self._push_object(())

    def _op_tuple(self) -> None:
        items = self._pop_mark()
        self._push_object(tuple(items))

    def _op_tuple1(self) -> None:
        self._short_tuple(1)

    def _op_tuple2(self) -> None:
        self._short_tuple(2)

    def _op_tuple3(self) -> None:
        self._short_tuple(3)

    def _short_tuple(self, count: int) -> None:
        if len(self._stack) < count:
            raise self._fault("the stack is empty")
        self._count()
        self._stack[-count:] = [tuple(self._stack[-count:])]

    def _op_empty_list(self) -> None:
        self._push_object([])

    def _op_list(self) -> None:
        items = self._pop_mark()
        self._push_object(items)

    def _op_empty_dict(self) -> None:
        self._push_object(DictNode())

    def _op_dict(self) -> None:
        pairs = self._pairs(self._pop_mark())
        self._push_object(DictNode(pairs))

    def _op_empty_set(self) -> None:
        self._push_object(SetNode())

    def _op_frozenset(self) -> None:
        items = self._pop_mark()
        self._check_keys(items)
        self._push_object(SetNode(items, "frozenset"))

    def _pairs(self, items: list[Value]) -> list[tuple[Value, Value]]:
        if len(items) % 2:
            raise self._fault("a key has no value")
        self._check_keys(items[::2])
        return list(zip(items[::2], items[1::2], strict=True))

    def _check_keys(self, keys: list[Value]) -> None:
        """Refuse keys whose hash CPython computes by a deep recursion, or of a tree that doubles."""
        for key in keys:
            if isinstance(key, (tuple, SetNode)):
                self._check_key(key)

    def _check_key(self, key: Value) -> None:
        pending = [(key, 1)]
        nodes = 0
        while pending:
            node, depth = pending.pop()
            items = node.items if isinstance(node, SetNode) else node
            nodes += len(items)
            if depth > self.limits.depth or nodes > _KEY_NODES:
                raise self._fault("a key is nested too deeply, or too large to hash", strict=True)
            inner = [item for item in items if isinstance(item, (tuple, SetNode))]
            pending += [(item, depth + 1) for item in inner]
        self._count(nodes // 8)

    def _op_append(self) -> None:
        value = self._pop()
        self._extend("APPEND", [value])

    def _op_appends(self) -> None:
        self._extend("APPENDS", self._pop_mark())

    def _extend(self, opcode: str, items: list[Value]) -> None:
        target = self._top()
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, Call):
            target.items.extend(items)
            self._effect(opcode, target, items)
        else:
            self._foreign_effect(opcode, target, items)

    def _op_additems(self) -> None:
        items = self._pop_mark()
        self._check_keys(items)
        target = self._top()
        if isinstance(target, SetNode) and target.type_name == "set":
            target.items.extend(items)
        elif isinstance(target, Call):
            target.items.extend(items)
            self._effect("ADDITEMS", target, items)
        else:
            self._foreign_effect("ADDITEMS", target, items)

    def _op_setitem(self) -> None:
        value, key = self._pop(), self._pop()
        self._set_items("SETITEM", self._pairs([key, value]))

    def _op_setitems(self) -> None:
        self._set_items("SETITEMS", self._pairs(self._pop_mark()))

    def _set_items(self, opcode: str, pairs: list[tuple[Value, Value]]) -> None:
        target = self._top()
        if isinstance(target, DictNode):
            target.pairs.extend(pairs)
        elif isinstance(target, Call):
            target.pairs.extend(pairs)
            self._effect(opcode, target, pairs)
        else:
            self._foreign_effect(opcode, target, pairs)

    def _effect(self, opcode: str, target: Value, value: Value) -> None:
        self._count()
        self.result.effects.append(Effect(opcode, target, value, self._arguments.at))

    def _foreign_effect(self, opcode: str, target: Value, value: Value) -> None:
        """An effect on something that is not a container: real only on what code could have made."""
        if isinstance(target, (Global, PersistentId)):
            self._effect(opcode, target, value)
        elif value or not _has_no_attributes(target):  # CPython passes over an empty effect
            certain = _has_no_attributes(target) and not (
                isinstance(target, list) and opcode in ("SETITEM", "SETITEMS")
            )
            message = f"{opcode} does not apply to {describe(target)}"
            raise self._fault(message, strict=not certain)

    # -- memo

    def _remember(self, key: int) -> None:
        if not self._stack:
            raise self._fault("the stack is empty")
        self.memo[key] = self._stack[-1]
        if key > self.limits.memo:  # CPython allocates all entries up to the largest key
            raise self._exceeded("memo")

    def _recall(self, key: int) -> None:
        try:
            self._stack.append(self.memo[key])
        except KeyError:
            raise self._fault(f"memo entry {key} was never stored") from None

    def _op_put(self, key: int) -> None:
        if key < 0:
            raise self._fault("a memo key is negative")
        self._remember(key)

    def _op_memoize(self) -> None:
        memo = self.memo
        if not self._stack or len(memo) >= self.limits.memo:
            self._remember(len(memo))  # raises
        memo[len(memo)] = self._stack[-1]

    # -- names, calls and what they would do

    def _global(self, module: str | None, name: str | None, opcode: str) -> Global:
        self._count()
        node = Global(module, name, self._arguments.at, opcode)
        self.result.globals.append(node)
        return node

    def _op_global(self, names: tuple[str, str]) -> None:
        self._stack.append(self._global(*names, "GLOBAL"))

    def _op_stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        # Anything but text was computed by a call, or is longer than a name can be.
        self._stack.append(
            self._global(
                module if isinstance(module, str) else None,
                name if isinstance(name, str) else None,
                "STACK_GLOBAL",
            )
        )

    def _extension(self, code: int) -> None:
        if code <= 0:
            raise self._fault("an extension code must be positive")
        # The registry belongs to the process that unpickles (copyreg.add_extension).
        self._stack.append(self._global(None, f"extension {code}", "EXT"))

    def _op_binpersid(self) -> None:
        self._reference(self._pop())

    def _reference(self, value: Value) -> None:
        if self._persistent is not None:
            found = self._persistent(value)
            if found is not NotImplemented:
                self._push_object(found)
                return
        self._unresolved_reference(value)

    def _unresolved_reference(self, value: Value) -> None:
        node = PersistentId(value, self._arguments.at)
        self.result.persistent.append(node)
        self._push_object(node)

    def _op_reduce(self) -> None:
        arguments, function = self._pop(), self._pop()
        self._call(function, arguments, "REDUCE")

    def _op_newobj(self) -> None:
        arguments, function = self._pop(), self._pop()
        self._call(function, arguments, "NEWOBJ")

    def _op_newobj_ex(self) -> None:
        keywords, arguments, function = self._pop(), self._pop(), self._pop()
        self._call(function, arguments, "NEWOBJ_EX", keywords)

    def _op_obj(self) -> None:
        items = self._pop_mark()
        if not items:
            raise self._fault("OBJ has no class")
        self._call(items[0], tuple(items[1:]), "OBJ")

    def _op_inst(self, names: tuple[str, str]) -> None:
        function = self._global(*names, "INST")
        self._call(function, tuple(self._pop_mark()), "INST")

    def _call(self, function: Value, arguments: Value, opcode: str, keywords: Value = None) -> None:
        if not isinstance(arguments, tuple):
            # The argument tuple itself may be computed: keep it as the one thing known of it.
            arguments = (arguments,)
        self._count(_CALL_OBJECTS)
        call = Call(function, arguments, opcode, self._arguments.at, keywords)
        self.result.calls.append(call)
        self._stack.append(self._described(call))

    def _described(self, call: Call) -> Value:
        function = call.function
        if call.keywords is not None or not isinstance(function, Global):
            return call
        constructor = self._constructors.get(modern(function))
        if constructor is None:
            return call
        self._settle()
        left = self.limits.left("opcodes")
        try:
            call.result = constructor(call)  # may read another pickle
        except FormatError as error:
            if error.path is None:
                error.path, error.offset = self.source.name, call.offset
            raise
        self._limit -= left - self.limits.left("opcodes")
        if call.result is NotImplemented:
            return call
        self._charge(call.result)
        return call.result

    def _charge(self, value: Value) -> None:
        """Count what a constructor copied: a few opcodes can copy a large container many times."""
        if isinstance(value, (list, tuple)):
            self._count(len(value))
        elif isinstance(value, DictNode):
            self._count(len(value.pairs))
            self._check_keys([key for key, _ in value.pairs])
        elif isinstance(value, SetNode):
            self._count(len(value.items))
            self._check_keys(value.items)
        elif isinstance(value, bytes):
            self._arguments.hold(len(value))

    def _op_build(self) -> None:
        state = self._pop()
        target = self._top()
        self._build(target, state)
        if self._on_build is not None:
            self._stack[-1] = self._on_build(self, target)

    def _build(self, target: Value, state: Value) -> None:
        if isinstance(target, Call):
            target.state.append(state)
            self._effect("BUILD", target, state)
        elif isinstance(target, DictNode) and target.type_name != "dict":
            target.state.append(state)
            if len(target.state) > 1 or not _sets_plain_attributes(state):
                self._effect("BUILD", target, state)
        elif hasattr(target, "set_state"):  # a node of some constructor
            self._set_state(target, state)
        else:
            self._foreign_effect("BUILD", target, None if _is_no_state(state) else (state,))

    def _set_state(self, target: Value, state: Value) -> None:
        try:
            target.set_state(state)
        except FormatError as error:
            if error.path is None:
                error.path, error.offset = self.source.name, self._arguments.at
            raise


def _has_no_attributes(value: Value) -> bool:
    """Whether `value` is of a type of which CPython is known to refuse every effect."""
    if isinstance(value, DictNode):
        return value.type_name == "dict"
    # A bytearray is `bytes` here and can be appended to.
    return value is None or isinstance(value, (bool, int, float, str, list, tuple, SetNode))


def _is_no_state(state: Value) -> bool:
    """Whether BUILD with `state` changes nothing, and so is no error for an object without state."""
    parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)
    return all(_is_false(part) for part in parts)


def _is_false(value: Value) -> bool:
    """Whether what `value` describes is false in a condition."""
    if isinstance(value, DictNode):
        return not value.pairs
    if isinstance(value, SetNode):
        return not value.items
    return isinstance(value, (type(None), bool, int, float, str, bytes, list, tuple)) and not value


_CALLED_BY_PICKLE: Final = frozenset({"append", "extend", "add"})


def _sets_plain_attributes(state: Value) -> bool:
    """Whether BUILD with `state` only adds attributes that the unpickler does not call later."""
    return isinstance(state, DictNode) and all(
        isinstance(key, str) and not key.startswith("__") and key not in _CALLED_BY_PICKLE
        for key, _ in state.pairs
    )


def describe(value: Value) -> str:
    """A word or two for what `value` is, for messages."""
    if isinstance(value, (Global, Call)):
        return quote(value.path)
    if isinstance(value, DictNode):
        return quote(value.type_name)
    if value is None or isinstance(value, (bool, int, float, str, bytes, list, tuple)):
        return quote(type(value).__name__)
    return quote(type(value).__name__.removesuffix("Node").lower())


_SAME: Final = {
    name: method
    for method, names in {
        "_mark": "mark",
        "_pop_mark": "pop_mark",
        "_push": "int binint binint1 binint2 long long1 long4 float binfloat short_binunicode",
        "_push_string": "string binstring short_binstring unicode binunicode "
        "binunicode8 binbytes short_binbytes binbytes8 bytearray8",
        "_remember": "binput long_binput",
        "_recall": "get binget long_binget",
        "_extension": "ext1 ext2 ext4",
        "_reference": "persid",
    }.items()
    for name in names.split()
}
"""Name of an opcode -> the method of `PickleMachine` that it shares; the others have their own."""


_ALONE, _BYTE, _OTHER, _LINE = 1, 2, 4, 8
"""Steps that an opcode counts, about 0.25 us each, by what it takes: nothing, a byte, more, or a line."""

_SIMPLE: Final = frozenset(
    {"none", "newtrue", "newfalse", "pop", "dup", "memoize", "empty_tuple", "empty_list", "empty_dict",
     "empty_set"}
)  # fmt: skip
"""Opcodes without argument that count as one step; the others without one change or call something."""

_END: Final = object()


def _handler(code: str) -> tuple[int, Callable[..., Any] | None, Callable[..., Any]] | None:
    """What an opcode counts, how to read its argument, and what to do with it."""
    if code not in OPCODES:
        return None
    name, argument = OPCODES[code]
    act: Callable[..., Any] = getattr(PickleMachine, _SAME.get(name, f"_op_{name}"))
    if not argument:
        return _ALONE if name in _SIMPLE else _OTHER, None, act
    cost = {"uint1": _BYTE}.get(argument, _LINE if argument.endswith(("line", "names")) else _OTHER)
    return cost, getattr(Arguments, argument), act


_TABLE: Final = [_handler(chr(code)) for code in range(256)]


def read_pickle(
    source: Source,
    *,
    offset: int = 0,
    end: int | None = None,
    constructors: Constructors | None = None,
    persistent: Callable[[Value], Value] | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Pickle:
    """The pickle that starts at `offset`, described; see `PickleMachine` for the arguments.

    >>> import pickle
    >>> from safeweights.storage import BytesSource
    >>> found = read_pickle(BytesSource(pickle.dumps({"a": [1, 2]})))
    >>> found.value.pairs
    [('a', [1, 2])]
    """
    return PickleMachine(
        source,
        offset=offset,
        end=end,
        constructors=constructors,
        persistent=persistent,
        limits=limits,
    ).run()
