"""A pickle machine that only describes.

It executes every opcode of protocols 0 to 5 on symbols: a name stays a `Global`, a call stays a
`Call`, and neither is ever imported, looked up or called. What a caller can describe better (a
tensor, a NumPy array, an OrderedDict) it hands in as `Constructors`, functions of this package that
turn a `Call` into a node; the machine itself knows no framework.

This module reads opcodes and dispatches them; `containers` and `calls` are what they do to `state`.
``tests/conversion/test_against_cpython.py`` compares machine and CPython.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ...errors import FormatError
from ...format.gcpause import gc_paused
from ...storage.limits import DEFAULT_LIMITS, Limits
from . import calls, containers
from .frequent import LONGEST, run_frequent
from .nodes import Call, Value
from .opcodes import OPCODES, Arguments
from .state import MachineState, Pickle

if TYPE_CHECKING:
    from ...storage import Source

__all__ = ["Constructors", "Pickle", "PickleMachine", "read_pickle"]

Constructors = Mapping[tuple[str, str], Callable[[Call], Value]]
"""(module, name) -> a function that describes the result of calling it.

It returns NotImplemented to leave the call unresolved, and raises FormatError where the arguments
cannot be what the name promises."""

_HIGHEST_PROTOCOL: Final = 5


class PickleMachine(MachineState):
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
        on_build: Callable[[MachineState, Value], Value] | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        super().__init__(source, offset, end, limits)
        self.constructors = constructors or {}
        self.persistent = persistent
        self.on_build = on_build

    def run(self) -> Pickle:
        """Execute until STOP.

        Cost: a fifth of a microsecond for most opcodes; memory bounded by `Limits`.

        Raises:
            FormatError: The bytes are not a pickle, end early, or exceed a limit.
        """
        try:
            with gc_paused():  # it would visit the growing tree again and again: half of the time
                self._execute()
        finally:
            self.settle()
            self.limits.count("objects", self.objects)
        self.result.end = self.reader.offset
        return self.result

    def _execute(self) -> None:
        reader = self.reader
        try:
            while self.steps < self.steps_max:
                if len(reader.block) - reader.position < LONGEST:
                    reader.buffer(LONGEST)
                run_frequent(self)
                if self.steps < self.steps_max and self._step():
                    return
        except FormatError as error:
            self.doubt(error)
            raise
        raise self.exceeded("opcodes")

    def _step(self) -> bool:
        """Execute one opcode, whichever it is; whether it was STOP."""
        reader, arguments = self.reader, self.arguments
        arguments.at = reader.base + reader.position
        known = _TABLE[reader.take(1)[0]]
        if known is None:
            raise self.fault("no pickle opcode has this value")
        cost, read, act = known
        self.steps += cost
        if read is None:
            return act(self) is _END
        value = read(arguments)
        if self.frame_end:
            self.check_frame()
        act(self, value)
        return False


def _op_proto(machine: MachineState, version: int) -> None:
    if version > _HIGHEST_PROTOCOL:
        raise machine.fault(f"protocol {version} does not exist")
    machine.result.protocol = max(machine.result.protocol, version)


def _op_frame(machine: MachineState, length: int) -> None:
    if length > machine.reader.left:
        raise machine.fault("a frame reaches past the end of the data", strict=True)
    if machine.in_frame:
        raise machine.fault("a frame begins inside another", strict=True)
    machine.frame_end = machine.reader.offset + length


def _op_stop(machine: MachineState) -> object:
    machine.result.value = machine.pop()
    return _END


_SHARED: Final[tuple[tuple[Callable[..., Any], str], ...]] = (
    (_op_proto, "proto"),
    (_op_frame, "frame"),
    (_op_stop, "stop"),
    (MachineState.mark, "mark"),
    (MachineState.pop_mark, "pop_mark"),
    (
        MachineState.push,
        "int binint binint1 binint2 long long1 long4 float binfloat short_binunicode",
    ),
    (
        MachineState.push_string,
        "string binstring short_binstring unicode binunicode binunicode8 binbytes short_binbytes "
        "binbytes8 bytearray8",
    ),
    (MachineState.remember, "binput long_binput"),
    (MachineState.recall, "get binget long_binget"),
    (calls.op_extension, "ext1 ext2 ext4"),
    (calls.op_reference, "persid"),
)
_SAME: Final = {name: action for action, names in _SHARED for name in names.split()}
"""What an opcode does that has no function ``op_NAME`` of its own in `containers` or `calls`."""


_STEPS, _STEPS_OF_LINE = 5, 6
"""What an opcode counts that `frequent` does not execute, by its time: a step is about 0.2 us."""

_END: Final = object()


class _Known(NamedTuple):
    """What an opcode counts, how to read its argument, and what to do with it."""

    cost: int
    read: Callable[[Arguments], Any] | None
    act: Callable[..., Any]


def _known(code: str) -> _Known | None:
    if code not in OPCODES:
        return None
    name, argument = OPCODES[code]
    act = _SAME.get(name)
    if act is None:
        home = containers if hasattr(containers, f"op_{name}") else calls
        act = getattr(home, f"op_{name}")
    if not argument:
        return _Known(_STEPS, None, act)
    cost = _STEPS_OF_LINE if argument.endswith(("line", "names")) else _STEPS
    return _Known(cost, getattr(Arguments, argument), act)


_TABLE: Final = [_known(chr(code)) for code in range(256)]


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
