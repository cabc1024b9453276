"""A pickle machine that only describes.

It executes every opcode of protocols 0 to 5 on symbols: a name stays a `Global`, a call stays a
`Call`, and neither is ever imported, looked up or called. What a caller can describe better (a
tensor, a NumPy array, an OrderedDict) it hands in as `Constructors`, functions of this package that
turn a `Call` into a node; the machine itself knows no framework.

Rules: one loop, no recursion; every length is checked against the bytes that are there before
anything is allocated; long strings stay in the file; what CPython's unpickler would refuse is an
error with a byte offset, so that no two readers of one file see different things.

Source of the opcodes: CPython's Lib/pickletools.py and PEPs 307, 3154 and 574.
"""

from __future__ import annotations

import codecs
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from safeweights.convert.limits import DEFAULT_LIMITS, Limits, exceeded
from safeweights.convert.pickle_nodes import (
    Blob,
    Call,
    DictNode,
    Effect,
    Global,
    PersistentId,
    SetNode,
    Value,
)
from safeweights.convert.source import ByteReader, Source, truncated
from safeweights.errors import FormatError, quote

__all__ = ["Constructors", "Pickle", "PickleMachine", "read_pickle"]

Constructors = Mapping[tuple[str, str], Callable[[Call], Value]]
"""(module, name) -> a function that describes the result of calling it.

It returns NotImplemented to leave the call unresolved, and raises FormatError where the arguments
cannot be what the name promises."""

_MISSING: Final = object()
_INTEGER_MAX: Final = 1700
"""Bytes of an integer, whatever the limit says: CPython shows none of more than 4,300 digits."""
_HIGHEST_PROTOCOL: Final = 5


@dataclass
class Pickle:
    """One pickle, read to its STOP.

    Attributes:
        value: The tree.
        start, end: Its bytes in the source; `end` is the byte behind STOP.
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
        self.result = Pickle(start=offset)
        self._constructors = constructors or {}
        self._persistent = persistent
        self._on_build = on_build
        self._stack: list[Value] = []
        self._marks: list[list[Value]] = []
        self._memo: dict[int, Value] = {}
        self._at = offset
        self._objects = 0
        self._inline = 0
        self._stopped = False

    def run(self) -> Pickle:
        """Execute until STOP.

        Cost: about half a microsecond an opcode; memory bounded by `Limits`.

        Raises:
            FormatError: The bytes are no pickle, end early, or exceed a limit.
        """
        handlers = [getattr(self, name) if name else None for name in _HANDLERS]
        reader = self.reader
        for _ in range(self.limits.opcodes):
            self._at = reader.offset
            handler = handlers[reader.take(1)[0]]
            if handler is None:
                raise self._fault("no pickle opcode has this value")
            handler()
            if self._stopped:
                self.result.end = reader.offset
                return self.result
        raise exceeded("opcodes", self.limits.opcodes, self.source.name, self._at)

    # -- errors and accounting

    def _fault(self, message: str) -> FormatError:
        return FormatError(
            f"the pickle is malformed: {message}",
            rule="pickle",
            path=self.source.name,
            offset=self._at,
        )

    def _exceeded(self, name: str) -> FormatError:
        return exceeded(name, getattr(self.limits, name), self.source.name, self._at)

    def _count(self, objects: int = 1) -> None:
        self._objects += objects
        if self._objects > self.limits.objects:
            raise self._exceeded("objects")

    def _hold(self, count: int) -> None:
        self._inline += count
        if self._inline > self.limits.inline_bytes:
            raise self._exceeded("inline_bytes")

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
        self._count()
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

    def _op_stop(self) -> None:
        self.result.value = self._pop()
        self._stopped = True

    # -- framing

    def _op_proto(self) -> None:
        version = self.reader.take(1)[0]
        if version > _HIGHEST_PROTOCOL:
            raise self._fault(f"protocol {version} does not exist")
        self.result.protocol = max(self.result.protocol, version)

    def _op_frame(self) -> None:
        (length,) = struct.unpack("<Q", self.reader.take(8))
        if length > self.reader.left:
            raise truncated(self.source, self.reader.offset, length)

    # -- atoms

    def _op_none(self) -> None:
        self._stack.append(None)

    def _op_true(self) -> None:
        self._stack.append(True)

    def _op_false(self) -> None:
        self._stack.append(False)

    def _op_binint(self) -> None:
        self._stack.append(struct.unpack("<i", self.reader.take(4))[0])

    def _op_binint1(self) -> None:
        self._stack.append(self.reader.take(1)[0])

    def _op_binint2(self) -> None:
        self._stack.append(struct.unpack("<H", self.reader.take(2))[0])

    def _op_int(self) -> None:
        line = self._short_line()
        if line in (b"00", b"01"):  # protocol 0 writes booleans so
            self._stack.append(line == b"01")
        else:
            self._stack.append(self._integer(line))

    def _op_long(self) -> None:
        line = self._short_line()
        self._stack.append(self._integer(line[:-1] if line.endswith(b"L") else line))

    def _integer(self, line: bytes) -> int:
        if len(line) > 2 * min(self.limits.integer_bytes, _INTEGER_MAX):
            raise self._exceeded("integer_bytes")
        try:
            return int(line, 0)
        except ValueError as error:
            raise self._fault("this is no integer") from error

    def _op_long1(self) -> None:
        self._long(self.reader.take(1)[0])

    def _op_long4(self) -> None:
        (length,) = struct.unpack("<i", self.reader.take(4))
        if length < 0:
            raise self._fault("an integer has a negative length")
        self._long(length)

    def _long(self, length: int) -> None:
        if length > min(self.limits.integer_bytes, _INTEGER_MAX):
            raise self._exceeded("integer_bytes")
        self._stack.append(int.from_bytes(self.reader.take(length), "little", signed=True))

    def _op_float(self) -> None:
        try:
            self._stack.append(float(self._short_line()))
        except ValueError as error:
            raise self._fault("this is no number") from error

    def _op_binfloat(self) -> None:
        self._stack.append(struct.unpack(">d", self.reader.take(8))[0])

    # -- text and bytes

    def _short_line(self) -> bytes:
        return self.reader.line(max(4096, self.limits.name_bytes))

    def _op_string(self) -> None:
        line = self.reader.line(self.limits.inline_bytes).strip(b" \t\r")
        if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
            raise self._fault("the string is not quoted")
        try:
            data = codecs.escape_decode(line[1:-1])[0]
        except ValueError as error:
            raise self._fault("the string has an invalid escape") from error
        self._push_old_string(data)

    def _push_old_string(self, data: bytes) -> None:
        """Python 2's str: text if it is ASCII, else bytes (which is what arrays stored so are)."""
        self._hold(len(data))
        self._stack.append(data.decode("ascii") if data.isascii() else data)

    def _op_binstring(self) -> None:
        (length,) = struct.unpack("<i", self.reader.take(4))
        if length < 0:
            raise self._fault("a string has a negative length")
        self._old_string(length)

    def _op_short_binstring(self) -> None:
        self._old_string(self.reader.take(1)[0])

    def _old_string(self, length: int) -> None:
        if length > self.limits.inline_value_bytes:
            self._blob(length, "ascii")
        else:
            self._push_old_string(self.reader.take(length))

    def _op_unicode(self) -> None:
        line = self.reader.line(self.limits.inline_bytes)
        self._hold(len(line))
        try:
            self._stack.append(codecs.raw_unicode_escape_decode(line)[0])
        except UnicodeDecodeError as error:
            raise self._fault("the text has an invalid escape") from error

    def _op_binunicode(self) -> None:
        self._text(struct.unpack("<I", self.reader.take(4))[0])

    def _op_short_binunicode(self) -> None:
        self._text(self.reader.take(1)[0])

    def _op_binunicode8(self) -> None:
        self._text(struct.unpack("<Q", self.reader.take(8))[0])

    def _text(self, length: int) -> None:
        if length > self.limits.inline_value_bytes:
            self._blob(length, "utf-8")
            return
        self._hold(length)
        try:
            self._stack.append(self.reader.take(length).decode("utf-8", "surrogatepass"))
        except UnicodeDecodeError as error:
            raise self._fault("the text is not UTF-8") from error

    def _op_binbytes(self) -> None:
        self._bytes(struct.unpack("<I", self.reader.take(4))[0])

    def _op_short_binbytes(self) -> None:
        self._bytes(self.reader.take(1)[0])

    def _op_binbytes8(self) -> None:
        self._bytes(struct.unpack("<Q", self.reader.take(8))[0])

    def _bytes(self, length: int) -> None:
        if length > self.limits.inline_value_bytes:
            self._blob(length, None)
        else:
            self._hold(length)
            self._stack.append(self.reader.take(length))

    def _blob(self, length: int, encoding: str | None) -> None:
        start = self.reader.skip(length)
        self._push_object(Blob(self.source, start, length, encoding))

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
        self._push_object(SetNode(items, "frozenset"))

    def _pairs(self, items: list[Value]) -> list[tuple[Value, Value]]:
        if len(items) % 2:
            raise self._fault("a key has no value")
        return list(zip(items[::2], items[1::2], strict=True))

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
        target = self._top()
        if isinstance(target, SetNode):
            target.items.extend(items)
        elif isinstance(target, Call):
            target.items.extend(items)
            self._effect("ADDITEMS", target, items)
        else:
            self._foreign_effect("ADDITEMS", target, items)

    def _op_setitem(self) -> None:
        value, key = self._pop(), self._pop()
        self._set_items("SETITEM", [(key, value)])

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
        self.result.effects.append(Effect(opcode, target, value, self._at))

    def _foreign_effect(self, opcode: str, target: Value, value: Value) -> None:
        """An effect on something that is no container: real only on what code could have made."""
        if isinstance(target, (Global, PersistentId)):
            self._effect(opcode, target, value)
            return
        raise self._fault(f"{opcode} does not apply to {describe(target)}")

    # -- memo

    def _remember(self, key: int) -> None:
        self._memo[key] = self._top()
        if len(self._memo) > self.limits.memo:
            raise self._exceeded("memo")

    def _recall(self, key: int) -> None:
        value = self._memo.get(key, _MISSING)
        if value is _MISSING:
            raise self._fault(f"memo entry {key} was never stored")
        self._stack.append(value)

    def _op_put(self) -> None:
        key = self._integer(self._short_line())
        if key < 0:
            raise self._fault("a memo key is negative")
        self._remember(key)

    def _op_binput(self) -> None:
        self._remember(self.reader.take(1)[0])

    def _op_long_binput(self) -> None:
        self._remember(struct.unpack("<I", self.reader.take(4))[0])

    def _op_memoize(self) -> None:
        self._remember(len(self._memo))

    def _op_get(self) -> None:
        self._recall(self._integer(self._short_line()))

    def _op_binget(self) -> None:
        self._recall(self.reader.take(1)[0])

    def _op_long_binget(self) -> None:
        self._recall(struct.unpack("<I", self.reader.take(4))[0])

    # -- names, calls and what they would do

    def _name_line(self) -> str:
        line = self._short_line()
        if len(line) > self.limits.name_bytes:
            raise self._exceeded("name_bytes")
        try:
            return line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._fault("a name is not UTF-8") from error

    def _global(self, module: str | None, name: str | None, opcode: str) -> Global:
        self._count()
        node = Global(module, name, self._at, opcode)
        self.result.globals.append(node)
        return node

    def _op_global(self) -> None:
        module = self._name_line()
        self._stack.append(self._global(module, self._name_line(), "GLOBAL"))

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

    def _op_ext1(self) -> None:
        self._extension(self.reader.take(1)[0])

    def _op_ext2(self) -> None:
        self._extension(struct.unpack("<H", self.reader.take(2))[0])

    def _op_ext4(self) -> None:
        self._extension(struct.unpack("<i", self.reader.take(4))[0])

    def _extension(self, code: int) -> None:
        if code <= 0:
            raise self._fault("an extension code must be positive")
        # The registry is the importing process's own (copyreg.add_extension): unknowable from here.
        self._stack.append(self._global(None, f"extension {code}", "EXT"))

    def _op_persid(self) -> None:
        self._reference(self._name_line())

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
        node = PersistentId(value, self._at)
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

    def _op_inst(self) -> None:
        module = self._name_line()
        function = self._global(module, self._name_line(), "INST")
        self._call(function, tuple(self._pop_mark()), "INST")

    def _call(self, function: Value, arguments: Value, opcode: str, keywords: Value = None) -> None:
        if not isinstance(arguments, tuple):
            # The argument tuple itself may be computed: keep it as the one thing known of it.
            arguments = (arguments,)
        self._count()
        call = Call(function, arguments, opcode, self._at, keywords)
        self.result.calls.append(call)
        self._stack.append(self._described(call))

    def _described(self, call: Call) -> Value:
        function = call.function
        if call.keywords is not None or not isinstance(function, Global):
            return call
        constructor = self._constructors.get((function.module or "", function.name or ""))
        if constructor is None:
            return call
        try:
            value = constructor(call)
        except FormatError as error:
            if error.path is None:
                error.path, error.offset = self.source.name, call.offset
            raise
        return call if value is NotImplemented else value

    def _op_build(self) -> None:
        state = self._pop()
        target = self._top()
        self._build(target, state)
        if self._on_build is not None:
            self._stack[-1] = self._on_build(self, target)

    def _build(self, target: Value, state: Value) -> None:
        if isinstance(target, (Call, DictNode)):
            target.state.append(state)
            if isinstance(target, Call):
                self._effect("BUILD", target, state)
            return
        set_state = getattr(type(target), "set_state", None)  # a node of some constructor
        if set_state is None:
            self._foreign_effect("BUILD", target, state)
            return
        try:
            set_state(target, state)
        except FormatError as error:
            if error.path is None:
                error.path, error.offset = self.source.name, self._at
            raise


def describe(value: Value) -> str:
    """A word or two for what `value` is, for messages."""
    if isinstance(value, (Global, Call)):
        return quote(value.path)
    if isinstance(value, DictNode):
        return quote(value.type_name)
    if value is None or isinstance(value, (bool, int, float, str, bytes, list, tuple)):
        return quote(type(value).__name__)
    return quote(type(value).__name__.removesuffix("Node").lower())


_OPCODES: Final = {
    "(": "mark", ".": "stop", "0": "pop", "1": "pop_mark", "2": "dup", "F": "float", "I": "int",
    "J": "binint", "K": "binint1", "L": "long", "M": "binint2", "N": "none", "P": "persid",
    "Q": "binpersid", "R": "reduce", "S": "string", "T": "binstring", "U": "short_binstring",
    "V": "unicode", "X": "binunicode", "a": "append", "b": "build", "c": "global", "d": "dict",
    "}": "empty_dict", "e": "appends", "g": "get", "h": "binget", "i": "inst", "j": "long_binget",
    "l": "list", "]": "empty_list", "o": "obj", "p": "put", "q": "binput", "r": "long_binput",
    "s": "setitem", "t": "tuple", ")": "empty_tuple", "u": "setitems", "G": "binfloat",
    "\x80": "proto", "\x81": "newobj", "\x82": "ext1", "\x83": "ext2", "\x84": "ext4",
    "\x85": "tuple1", "\x86": "tuple2", "\x87": "tuple3", "\x88": "true", "\x89": "false",
    "\x8a": "long1", "\x8b": "long4", "B": "binbytes", "C": "short_binbytes",
    "\x8c": "short_binunicode", "\x8d": "binunicode8", "\x8e": "binbytes8", "\x8f": "empty_set",
    "\x90": "additems", "\x91": "frozenset", "\x92": "newobj_ex", "\x93": "stack_global",
    "\x94": "memoize", "\x95": "frame", "\x96": "binbytes8", "\x97": "next_buffer",
    "\x98": "readonly_buffer",
}  # fmt: skip

_HANDLERS: Final = [
    {"mark": "_mark", "pop_mark": "_pop_mark"}.get(name, f"_op_{name}") if name else None
    for name in (_OPCODES.get(chr(code)) for code in range(256))
]


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
    >>> from safeweights.convert.source import BytesSource
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
