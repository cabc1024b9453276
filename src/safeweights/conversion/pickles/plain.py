"""Well-known objects as the plain values that they stand for: paths, dates, enumerations, OmegaConf.

A path is its text, a date its ISO 8601 form, a configuration of OmegaConf a dictionary or a list, a member
of an enumeration its value. Classes are told by their names alone; none is imported or called. What is not
certain stays as it is.

Source of the arguments: `__reduce__` in CPython's pathlib.py, datetime.py, enum.py, uuid.py, fractions.py
and decimal.py; omegaconf's basecontainer.py and nodes.py.
"""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Final

from .nodes import Blob, Call, DictNode, Global, SetNode, Value, modern
from .object_nodes import as_bytes, is_int

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["key_name", "key_text", "plain"]

_ATOMS: Final = (str, bool, int, float)
_WRAPPED_MAX: Final = 8
"""Objects around one value, such as a node of OmegaConf around a member of an enumeration."""
_KEY_DEPTH: Final = 4


def plain(value: Value) -> Value:
    """The plain value that an object stands for, of which containers still hold objects; or itself.

    >>> plain(Call(Global("pathlib", "PosixPath", 0), ("/", "data", "x.pt"), "REDUCE", 0))
    '/data/x.pt'
    """
    for _ in range(_WRAPPED_MAX):
        if not isinstance(value, Call):
            break
        found = _known(value)
        if found is NotImplemented:
            found = _member(value)
        if found is NotImplemented:
            break
        value = found
    return value


def key_text(key: Value) -> str | None:
    """A dictionary key as part of a name; None for a key that has no text.

    >>> key_text("weight"), key_text(3), key_text(("a", 1))
    ('weight', '3', 'a,1')
    """
    if isinstance(key, tuple) and len(key) <= 64:
        parts = [None if isinstance(part, tuple) else key_text(part) for part in key]
        return None if None in parts else ",".join(part for part in parts if part is not None)
    if isinstance(key, bytes):
        return key.decode("latin-1")
    if key is None or isinstance(key, (str, bool, int, float)):
        return str(key)
    return None


def key_name(key: Value) -> str:
    """A dictionary key as part of a name, whatever it is: its text, its qualified name, or its repr.

    >>> key_name(Global("torch", "float16", 0))
    'torch.float16'
    >>> key_name(Call(Global("app", "Color", 0), (1,), "REDUCE", 0))
    'app.Color(1)'
    """
    return _key_name(key, 0)


def _key_name(key: Value, depth: int) -> str:
    if (text := key_text(key)) is not None:
        return text
    if isinstance(key, Global):
        return key.path
    if isinstance(key, Call) and isinstance(known := _known(key), str):
        return known
    if isinstance(key, (tuple, SetNode)) and depth < _KEY_DEPTH:
        items = key if isinstance(key, tuple) else key.items
        if len(items) <= 64:
            return ",".join(_key_name(item, depth + 1) for item in items)
    if isinstance(key, Call):
        simple = key.keywords is None and len(key.arguments) <= 8 and not key.state
        if simple and all(isinstance(part, _ATOMS) for part in key.arguments):
            return f"{key.path}({', '.join(map(repr, key.arguments))})"
        return f"{key.path}@{key.offset}"
    if isinstance(key, Blob):
        return f"text@{key.offset}"
    offset = getattr(key, "offset", None)
    return repr(key) if offset is None else f"{type(key).__name__}@{offset}"


def _known(call: Call) -> Value:
    if not isinstance(call.function, Global) or call.keywords is not None:
        return NotImplemented
    module, name = modern(call.function)
    if module.partition(".")[0] == "omegaconf" and len(call.state) == 1:
        return _omegaconf(call.state[0])
    if (module, name) == ("uuid", "UUID") and len(call.state) == 1:
        return _uuid(call.state[0])
    if call.state or call.items or call.pairs:
        return NotImplemented
    if module in {"pathlib", "pathlib._local"}:
        return _path(name, call.arguments)
    build = _BUILDERS.get((module, name))
    if build is not None:
        try:
            return build(call.arguments)
        except (ValueError, OverflowError):  # no such date
            return NotImplemented
    return NotImplemented


def _path(name: str, parts: tuple[Value, ...]) -> Value:
    if not name.endswith("Path") or not all(isinstance(part, str) for part in parts):
        return NotImplemented
    separator = "\\" if name in {"WindowsPath", "PureWindowsPath"} else "/"
    first, *rest = parts or (".",)
    return separator.join([first.rstrip(separator), *rest]) if rest else first


def _omegaconf(state: Value) -> Value:
    """A DictConfig, a ListConfig or a node: what it holds, under the names of OmegaConf 1 and 2."""
    if not isinstance(state, DictNode):
        return NotImplemented
    held = {key: value for key, value in state.pairs if isinstance(key, str)}
    for key in ("_content", "content", "_val", "val"):
        if key in held:
            return held[key]
    return NotImplemented


def _uuid(state: Value) -> Value:
    number = state.get("int") if isinstance(state, DictNode) else None
    if not isinstance(number, int) or not 0 <= number < 1 << 128:
        return NotImplemented
    digits = f"{number:032x}"  # importing `uuid` takes as long as reading a hundred tensors
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def _member(call: Call) -> Value:
    """A member of an enumeration: a class, by its name, that is called with nothing but a value."""
    attached = call.keywords is not None or call.state or call.items or call.pairs
    if attached or (isinstance(call.function, Global) and call.function.module in _MODULES):
        return NotImplemented
    match call.function, call.arguments:
        case Global(module="builtins" | "__builtin__", name="getattr"), (Global(), str() as member):
            return member  # a flag, since Python 3.11
        case Global(name=str() as name), (str() | bool() | int() | float() as value,) if (
            call.opcode == "REDUCE" and name.rpartition(".")[2][:1].isupper()
        ):
            return value
    return NotImplemented


# -- dates


def _date(arguments: tuple[Value, ...]) -> Value:
    data = _state(arguments, 4)
    return data if data is NotImplemented else dt.date(_year(data), data[2], data[3]).isoformat()


def _datetime(arguments: tuple[Value, ...]) -> Value:
    data = _state(arguments, 10)
    if data is NotImplemented:
        return data
    _, _, month, day, hour, minute, second, *_ = data
    month &= 0x7F  # the highest bit says which of two equal times it is
    fraction = int.from_bytes(data[7:], "big")
    moment = dt.datetime(_year(data), month, day, hour, minute, second, fraction)  # noqa: DTZ001
    return moment.isoformat() + _zone(arguments[1:])


def _time(arguments: tuple[Value, ...]) -> Value:
    data = _state(arguments, 6)
    if data is NotImplemented:
        return data
    hour = data[0] & 0x7F
    moment = dt.time(hour, data[1], data[2], int.from_bytes(data[3:6], "big"))
    return moment.isoformat() + _zone(arguments[1:])


def _year(data: bytes) -> int:
    return int.from_bytes(data[:2], "big")


def _state(arguments: tuple[Value, ...], size: int) -> Value:
    data = as_bytes(arguments[0]) if arguments else None
    return data if isinstance(data, bytes) and len(data) == size else NotImplemented


def _zone(rest: tuple[Value, ...]) -> str:
    """The offset of a time zone, or its name in brackets as in RFC 9557."""
    match rest:
        case (
            Call(
                function=Global(module="datetime", name="timezone"), arguments=(Call() as shift, *_)
            ),
        ):
            if (delta := _shift(shift.arguments)) is not None:
                return dt.datetime.min.replace(tzinfo=dt.timezone(delta)).isoformat()[19:]
        case (Call(arguments=(str() as name, *_)),):
            return f"[{name}]"
    return ""


def _delta(arguments: tuple[Value, ...]) -> Value:
    delta = _shift(arguments)
    return NotImplemented if delta is None else str(delta)


def _shift(arguments: tuple[Value, ...]) -> dt.timedelta | None:
    if len(arguments) > 3 or not all(map(is_int, arguments)):
        return None
    return dt.timedelta(*arguments)


def _text(arguments: tuple[Value, ...]) -> Value:
    match arguments:
        case (str() as text,):
            return text
    return NotImplemented


def _fraction(arguments: tuple[Value, ...]) -> Value:
    if len(arguments) == 2 and all(map(is_int, arguments)):
        return f"{arguments[0]}/{arguments[1]}"
    return _text(arguments)


_BUILDERS: Final[dict[tuple[str, str], Callable[[tuple[Value, ...]], Value]]] = {
    ("datetime", "date"): _date,
    ("datetime", "datetime"): _datetime,
    ("datetime", "time"): _time,
    ("datetime", "timedelta"): _delta,
    ("decimal", "Decimal"): _text,
    ("fractions", "Fraction"): _fraction,
}
_MODULES: Final = {"pathlib", "pathlib._local", "uuid", *(module for module, _ in _BUILDERS)}
"""Modules whose classes are no enumerations."""
