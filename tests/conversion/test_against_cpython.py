"""The symbolic machine and CPython's unpicklers do the same with any stream of opcodes.

What is compared: every name that is looked up, every call, every effect on an object, in their order;
the memo; the value. CPython may stop before the machine does, never after: an error of the machine
with the rule ``pickle`` or ``truncated`` promises that both of CPython's unpicklers stop there too.

``STREAMS=1000000 pytest tests/conversion/test_against_cpython.py`` is the long run.
"""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import random
import struct
from collections import Counter
from typing import Any

import pytest

from safeweights.conversion.pickles.machine import PickleMachine
from safeweights.conversion.pickles.nodes import Call, DictNode, Global, PersistentId, SetNode
from safeweights.conversion.pickles.opcodes import OPCODES
from safeweights.conversion.pickles.state import ABSENT
from safeweights.errors import FormatError
from safeweights.storage import BytesSource
from safeweights.storage.limits import Limits

STREAMS = int(os.environ.get("STREAMS", "20000"))
PARTS = 4
CERTAIN = {"pickle", "truncated"}
Event = tuple[object, ...]

LINES = (b"0", b"1", b"00", b"01", b"7", b"-3", b"010", b"0x1f", b"1_0", b" 4", b"5\0x", b"\0", b"+1",
         b"9" * 30, b"3L", b"x", b"", b"0b1", b"1 ")  # fmt: skip
TEXTS = (b"", b"a", b"b", b"\xc3\xa9", b"\xff", b"mod", b"name.sub")


def _line(chosen: random.Random, values: tuple[bytes, ...]) -> bytes:
    return chosen.choice(values) + b"\n"


def _counted(layout: str) -> Any:
    def make(chosen: random.Random) -> bytes:
        data = chosen.choice(TEXTS)
        return struct.pack(layout, len(data) + chosen.choice((0,) * 20 + (1, 100))) + data

    return make


ARGUMENTS: dict[str, Any] = {
    "uint1": lambda r: bytes([r.choice((0, 0, 0, 1, 1, 2, 2, 3, 255))]),
    "uint2": lambda r: struct.pack("<H", r.choice((0, 1, 300))),
    "int4": lambda r: struct.pack("<i", r.choice((0, 1, 2, -1, 70000))),
    "uint4": lambda r: struct.pack("<I", r.choice((0, 0, 1, 2, 3))),
    "uint8": lambda r: struct.pack("<Q", r.choice((0, 1, 2, 3, 4, 5, 8, 13, 21, 34))),
    "float8": lambda r: struct.pack(">d", r.choice((0.0, 1.5, -2.0))),
    "long1": lambda r: r.choice((b"\x00", b"\x01\x07", b"\x02\x00\xff", b"\x09" + bytes(9))),
    "long4": lambda r: r.choice((bytes(4), b"\x01\0\0\0\x07", b"\xff\xff\xff\xff")),
    "decimalnl_short": lambda r: _line(r, LINES),
    "decimalnl_long": lambda r: _line(r, LINES),
    "floatnl": lambda r: _line(r, (b"1.5", b"nan", b"1e5", b"x", b" 2", b"1_0", b"3\0y", b"")),
    "stringnl": lambda r: _line(r, (b"'a'", b'"b"', b"'\\n'", b"'", b"''", b"x", b"'\\xff'", b"'a' ")),
    "stringnl_noescape": lambda r: _line(r, (b"id", b"", b"\xff", b"0")),
    "stringnl_noescape_pair": lambda r: (
        _line(r, (b"mod", b"m", b"", b"a\0b", b"\xff")) + _line(r, (b"name", b"n.m", b"", b"\xff"))
    ),
    "unicodestringnl": lambda r: _line(r, (b"a", b"", b"\\u0041", b"\\u00", b"\xff")),
    "string1": _counted("<B"), "string4": _counted("<i"), "unicodestring1": _counted("<B"),
    "unicodestring4": _counted("<I"), "unicodestring8": _counted("<Q"), "bytes1": _counted("<B"),
    "bytes4": _counted("<I"), "bytes8": _counted("<Q"), "bytearray8": _counted("<Q"),
}  # fmt: skip

ATOMS = [
    op for op in pickletools.opcodes if op.stack_before == [] and op.name not in {"PROTO", "FRAME"}
]
BY_NAME = {op.name: op for op in pickletools.opcodes}
NAMES = ["SHORT_BINUNICODE", "GLOBAL", "EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT", "MEMOIZE", "BINGET",
         "MARK", "TUPLE", "REDUCE", "BUILD", "STACK_GLOBAL", "NEWOBJ"]  # fmt: skip


def stream(chosen: random.Random) -> bytes:
    """Opcodes that mostly fit the stack, each with an argument that mostly is one."""
    data = bytearray()
    if chosen.random() < 0.5:
        data += b"\x80" + bytes([chosen.choice((0, 1, 2, 3, 4, 5, 5, 6))])
    depths = [0]
    for _ in range(chosen.randint(1, 25)):
        kind = chosen.random()
        if kind < 0.35:
            op = chosen.choice(ATOMS)
        elif kind < 0.6:
            op = BY_NAME[chosen.choice(NAMES)]
        else:
            op = chosen.choice(pickletools.opcodes)
        if op.name in {"STOP", "POP"} and chosen.random() < 0.8:
            continue
        marked = pickletools.markobject in op.stack_before
        needs = len(op.stack_before) - (2 if pickletools.stackslice in op.stack_before else 0)
        if chosen.random() < 0.93 and (
            (marked and (len(depths) < 2 or depths[-2] < needs))
            or (not marked and depths[-1] < needs)
        ):
            continue
        if marked and len(depths) > 1:
            depths.pop()
        depths[-1] = max(depths[-1] - needs, 0)
        if op.name == "MARK":
            depths.append(0)
        elif not (marked and op.name == "POP_MARK"):
            depths[-1] += len(op.stack_after)
        data += op.code.encode("latin-1")
        if op.arg is not None:
            data += ARGUMENTS[op.arg.name](chosen)
    # What follows STOP is not read; with it, the loop of frequent opcodes gets as far as STOP.
    return bytes(data) + b"." + bytes(chosen.choice((0, 16)))


# -- CPython


class Recorder(type):
    """The class of every name that a stream looks up; its instances note what is done to them."""

    events: list[Event]
    path: str

    def __call__(cls, *arguments: object, **_: object) -> Any:
        return cls.__new__(cls, *arguments)


def _methods(events: list[Event]) -> dict[str, Any]:
    def new(cls: Any, *arguments: object, **keywords: object) -> Any:
        events.append(("call", cls.path, len(arguments)))
        return object.__new__(cls)

    def note(kind: str) -> Any:
        def method(self: Any, *given: object) -> None:
            if given:  # not where BUILD calls the function of a class with the state alone
                events.append((kind, type(self).path))

        return method

    return {
        "__new__": new, "__init__": lambda *_, **__: None, "__setstate__": note("state"),
        "extend": note("items"), "append": note("items"), "add": note("items"),
        "__setitem__": lambda *_: None,
    }  # fmt: skip


def in_cpython(base: Any, data: bytes) -> tuple[list[Event], Any, dict[int, Any] | None, bool]:
    """Events, value, memo, and whether the pickle was read to its end."""
    events: list[Event] = []
    methods = _methods(events)

    class Unpickler(base):
        def find_class(self, module: str, name: str) -> Any:
            if not module or "\0" in module:
                raise ImportError(module)  # which no finder of modules finds
            events.append(("global", module, name))
            return Recorder(name, (), {**methods, "path": f"{module}.{name}"})

        def persistent_load(self, value: object) -> Any:
            events.append(("persistent",))
            return Outside()

    unpickler = Unpickler(io.BytesIO(data), fix_imports=False)
    try:
        value = unpickler.load()
    except RecursionError:
        raise
    except Exception:  # whatever the classes of the stream cause
        return events, None, None, False
    return events, value, dict(unpickler.memo) if base is pickle._Unpickler else None, True


class Outside:
    """What a persistent id stands for."""


# -- the machine


def in_machine(data: bytes) -> tuple[list[Event], PickleMachine, FormatError | None]:
    machine = PickleMachine(BytesSource(data, "p"), limits=Limits(memo=1 << 16))
    error = None
    try:
        machine.run()
    except FormatError as found:
        error = found
    result = machine.result
    rows: list[tuple[int, int, Event]] = [
        (node.offset, 0, ("global", node.module, node.name)) for node in result.globals
    ]
    rows += [(node.offset, 1, ("persistent",)) for node in result.persistent]
    rows += [(call.offset, 2, ("call", call.path, len(call.arguments))) for call in result.calls]
    kinds = {"BUILD": "state", "APPEND": "items", "APPENDS": "items", "ADDITEMS": "items"}
    rows += [
        (effect.offset, 3, (kinds[effect.opcode], effect.target.path))
        for effect in result.effects
        if effect.opcode in kinds and isinstance(effect.target, Call)
    ]
    return [event for _, _, event in sorted(rows, key=lambda row: row[:2])], machine, error


def same(ours: Any, theirs: Any, depth: int = 0) -> bool:
    """Whether a node describes an object of CPython's."""
    if depth > 4:
        return True
    if isinstance(ours, DictNode):
        if not isinstance(theirs, dict):
            return False
        # Keys compare by identity in the tree, so 1 and True are two there.
        return len(theirs) <= len(ours.pairs) and all(
            any(same(value, other, depth + 1) for _, value in ours.pairs)
            for other in theirs.values()
        )
    if isinstance(ours, SetNode):
        return type(theirs).__name__ == ours.type_name and len(theirs) <= len(ours.items)
    if isinstance(ours, (list, tuple)):
        return (
            type(ours) is type(theirs)
            and len(ours) == len(theirs)
            and all(same(one, other, depth + 1) for one, other in zip(ours, theirs, strict=True))
        )
    if isinstance(ours, Global):
        return isinstance(theirs, Recorder) and theirs.path == ours.path
    if isinstance(ours, Call):
        return isinstance(type(theirs), Recorder) and type(theirs).path == ours.path
    if isinstance(ours, PersistentId):
        return isinstance(theirs, Outside)
    if isinstance(ours, float):
        return repr(ours) == repr(theirs)
    if isinstance(ours, bytes):
        return ours == bytes(theirs)
    return bool(ours == theirs) and isinstance(ours, type(None) | int | str)


def alike(ours: list[Event], theirs: list[Event]) -> bool:
    """Whether events are the same.

    In the machine, arguments that are not a tuple count as one, and a call of a call's result has no
    name.
    """
    return len(ours) == len(theirs) and all(
        one == other
        or (one[0] == other[0] and one[1] in ("?", other[1]) and (one[1] == "?" or one[2:] == (1,)))
        for one, other in zip(ours, theirs, strict=True)
    )


def compare(data: bytes, seen: Counter[str]) -> None:
    """Fail where the machine and CPython differ over `data`."""
    ours, machine, error = in_machine(data)
    seen.update(("stopped" if error else "read", error.rule if error else ""))
    if error is not None and error.rule not in CERTAIN:
        # CPython may go on, and allocate gigabytes for a memo key: only up to here.
        data = data[: error.offset]
    for base in (pickle.Unpickler, pickle._Unpickler):
        theirs, value, memo, done = in_cpython(base, data)
        if error is not None and error.rule not in CERTAIN:
            common = min(len(ours), len(theirs))
            assert alike(ours[:common], theirs[:common]), (data, error, ours, theirs)
            continue
        assert alike(ours[: len(theirs)], theirs), (data, error, ours, theirs)
        if error is not None:
            assert not done, (data, base, error)
        elif done:
            assert alike(ours, theirs), (data, ours, theirs)
            assert same(machine.result.value, value), (data, machine.result.value, value)
            if memo is not None:
                stored = {k: v for k, v in enumerate(machine.memo) if v is not ABSENT}
                assert memo.keys() == stored.keys(), data
                assert all(same(stored[key], memo[key]) for key in memo), data
            seen["agreed"] += 1


@pytest.mark.parametrize("part", range(PARTS))
def test_any_stream_is_read_alike(part: int) -> None:
    chosen = random.Random(part)
    seen: Counter[str] = Counter()
    used: set[str] = set()
    for _ in range(STREAMS // PARTS):
        data = stream(chosen)
        compare(data, seen)
        used.update(chr(byte) for byte in data if chr(byte) in OPCODES)
    assert used == OPCODES.keys()
    # The streams are not merely garbage, and not merely good.
    assert seen["agreed"] > STREAMS // PARTS // 20, seen
    assert seen["pickle"] > STREAMS // PARTS // 20, seen
