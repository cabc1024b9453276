"""What the pickle machine knows while it runs: stack, marks, memo, result, and how it counts and reports.

Rules: what is created is counted against the limits. Everything that CPython's unpickler would do up to
its own end, the machine reports: where both stop, the error has the rule ``pickle``; where only the
machine stops, another (see `opcodes`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from ...errors import quote
from ...storage.windows import ByteReader
from .nodes import Blob, Call, DictNode, Effect, Global, PersistentId, SetNode, Value
from .opcodes import Arguments

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ...errors import FormatError
    from ...storage import Source
    from ...storage.limits import Limits

    Constructors = Mapping[tuple[str, str], Callable[[Call], Value]]

__all__ = ["ABSENT", "MachineState", "Pickle"]

ABSENT: Final = object()
"""Stands in the memo for a key that was not stored."""

_KEY_NODES: Final = 10_000
_MEMO_STEP: Final = 16
"""Entries of the memo that are skipped for each step that is counted."""


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


class MachineState:
    """The state of a machine.

    Attributes:
        source: Where the pickle is.
        limits: See `Limits`.
        reader: The bytes that are read next.
        arguments: Reads what follows an opcode, and knows the offset of the present one.
        result: What was found so far.
        stack: The values above the last MARK.
        marks: The stacks below each MARK, the outermost first.
        memo: Values by key; `ABSENT` for a key that was not stored.
        absent: How many keys of `memo` were not stored.
        steps: What the opcodes up to here cost.
        frame_end: Where the last frame ends.
        constructors, persistent, on_build: See `machine.PickleMachine`.
    """

    constructors: Constructors
    persistent: Callable[[Value], Value] | None
    on_build: Callable[..., Value] | None

    def __init__(self, source: Source, offset: int, end: int | None, limits: Limits) -> None:
        self.source = source
        self.limits = limits
        self.reader = ByteReader(source, offset, source.size if end is None else end)
        self.arguments = Arguments(source, self.reader, limits)
        self.result = Pickle(start=offset)
        self.stack: list[Value] = []
        self.marks: list[list[Value]] = []
        self.memo: list[Value] = []
        self.absent = 0
        self._far: set[int] = set()
        self.objects = 0
        self._objects_left = limits.left("objects")
        self.steps = self._settled = 0
        self.steps_max = limits.left("opcodes")
        self.frame_end = 0

    # -- errors and accounting

    def fault(self, message: str, *, strict: bool = False) -> FormatError:
        """See `Arguments.fault`."""
        return self.arguments.fault(message, strict=strict)

    def exceeded(self, name: str) -> FormatError:
        """See `Arguments.exceeded`."""
        return self.arguments.exceeded(name)

    def count(self, objects: int = 1) -> None:
        """Count objects that were created."""
        self.objects += objects
        if self.objects > self._objects_left:
            raise self.exceeded("objects")

    def settle(self) -> None:
        """Count the steps up to here against the limits, of which other readers take their share."""
        self.limits.count("opcodes", self.steps - self._settled)
        self._settled = self.steps

    @property
    def in_frame(self) -> bool:
        """Whether the next byte is inside of a frame that the pickle announced."""
        return self.reader.offset < self.frame_end

    def doubt(self, error: FormatError) -> None:
        """Note on an error of an argument that readers of frames read another argument."""
        past = self.reader.offset > self.frame_end or error.rule == "truncated"
        if self.arguments.at < self.frame_end and past:
            error.rule = "pickle-strict"

    def check_frame(self) -> None:
        """Leave a frame at its end; refuse an argument past it, which unpicklers read differently."""
        if self.reader.offset >= self.frame_end:
            if self.arguments.at < self.frame_end < self.reader.offset:
                raise self.fault("an argument reaches past the end of its frame", strict=True)
            self.frame_end = 0

    # -- stack

    def pop(self) -> Value:
        """Remove and return the topmost value."""
        if not self.stack:
            raise self.fault("the stack is empty")
        return self.stack.pop()

    def top(self) -> Value:
        """The topmost value."""
        if not self.stack:
            raise self.fault("the stack is empty")
        return self.stack[-1]

    def push(self, value: Value) -> None:
        """Put a value that is no object of its own onto the stack."""
        self.stack.append(value)

    def push_object(self, value: Value) -> None:
        """Put an object onto the stack, and count it."""
        self.count()
        self.stack.append(value)

    def push_string(self, value: Value) -> None:
        """Put text or bytes onto the stack."""
        if isinstance(value, Blob):
            self.count()
        self.stack.append(value)

    def mark(self) -> None:
        """Begin a new stack on top of this one."""
        if len(self.marks) >= self.limits.marks:
            raise self.exceeded("marks")
        self.marks.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Value]:
        """Remove and return the values above the last MARK."""
        if not self.marks:
            raise self.fault("there is no MARK")
        items = self.stack
        self.stack = self.marks.pop()
        return items

    # -- memo

    def remember(self, key: int) -> None:
        """Store the topmost value under `key`."""
        value = self.top()
        if key > self.limits.memo:  # CPython allocates all entries up to the largest key
            self._remember_far(key)
            return
        skipped = key - len(self.memo)
        if skipped >= 0:
            self.memo += [ABSENT] * skipped
            self.absent += skipped
            self.steps += skipped // _MEMO_STEP
            self.memo.append(value)
        else:
            self.absent -= self.memo[key] is ABSENT
            self.memo[key] = value

    def _remember_far(self, key: int) -> None:
        """Where the bytes may be no pickle, go on; MEMOIZE counts the entry, and it cannot be recalled."""
        if not self.arguments.probing:
            raise self.exceeded("memo")
        if key not in self._far:
            self._far.add(key)
            self.absent -= 1
            self.count()

    def recall(self, key: int) -> None:
        """Put the value of `key` onto the stack."""
        value = self.memo[key] if 0 <= key < len(self.memo) else ABSENT
        if key in self._far:
            raise self.exceeded("memo")
        if value is ABSENT:
            raise self.fault(f"memo entry {key} was never stored")
        self.stack.append(value)

    # -- keys

    def check_keys(self, keys: list[Value]) -> None:
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
                raise self.fault("a key is nested too deeply, or too large to hash", strict=True)
            inner = [item for item in items if isinstance(item, (tuple, SetNode))]
            pending += [(item, depth + 1) for item in inner]
        self.count(nodes // 8)

    # -- effects

    def effect(self, opcode: str, target: Value, value: Value) -> None:
        """Note an opcode that would run code on an object that is not plain data."""
        self.count()
        self.result.effects.append(Effect(opcode, target, value, self.arguments.at))

    def foreign_effect(self, opcode: str, target: Value, value: Value) -> None:
        """An effect on something that is not a container: real only on what code could have made."""
        if isinstance(target, (Global, PersistentId)):
            self.effect(opcode, target, value)
        elif value or not _has_no_attributes(target):  # CPython passes over an empty effect
            certain = _has_no_attributes(target) and not (
                isinstance(target, list) and opcode in ("SETITEM", "SETITEMS")
            )
            message = f"{opcode} does not apply to {describe(target)}"
            raise self.fault(message, strict=not certain)


def _has_no_attributes(value: Value) -> bool:
    """Whether `value` is of a type of which CPython is known to refuse every effect."""
    if isinstance(value, DictNode):
        return value.type_name == "dict"
    # A bytearray is `bytes` here and can be appended to.
    return value is None or isinstance(value, (bool, int, float, str, list, tuple, SetNode))


def describe(value: Value) -> str:
    """A word or two for what `value` is, for messages."""
    if isinstance(value, (Global, Call)):
        return quote(value.path)
    if isinstance(value, DictNode):
        return quote(value.type_name)
    if value is None or isinstance(value, (bool, int, float, str, bytes, list, tuple)):
        return quote(type(value).__name__)
    return quote(type(value).__name__.removesuffix("Node").lower())
