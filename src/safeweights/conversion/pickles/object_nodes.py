"""Plain Python objects as pickles build them: ordered dictionaries, sets, bytes, numbers.

Each function describes the result of one well-known call; nothing is called. A function returns
NotImplemented where the arguments are not the ones that Python's own `__reduce__` writes. The call
then stays unresolved, and a scan reports it: `bytearray(2**33)` is not `bytearray(b"x")`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from .nodes import Blob, Call, DictNode, Global, SetNode, Value, modern

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["OBJECT_CONSTRUCTORS", "as_bytes", "is_int"]


def is_int(value: Value) -> bool:
    """Whether `value` is an integer and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def as_bytes(value: Value) -> bytes | Blob | None:
    """`value` as bytes where it is a byte string (Python 2's str included), else None."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str) and value.isascii():
        return value.encode("ascii")
    if isinstance(value, Blob) and (value.encoding in (None, "ascii") or value.latin1):
        return value
    return None


def _mapping(type_name: str) -> Callable[[Call], Value]:
    def build(call: Call) -> Value:
        if not call.arguments:
            return DictNode(type_name=type_name)
        if len(call.arguments) > 1:
            return NotImplemented
        (given,) = call.arguments
        if isinstance(given, DictNode):
            return DictNode(list(given.pairs), type_name)
        if isinstance(given, list) and type_name != "collections.Counter":  # which counts the items
            pairs = [tuple(item) for item in given if isinstance(item, (list, tuple))]
            if len(pairs) == len(given) and all(len(pair) == 2 for pair in pairs):
                return DictNode(pairs, type_name)  # Python 2 writes OrderedDict so
        return NotImplemented

    return build


_FACTORIES: Final = frozenset(
    {*(("builtins", name) for name in ("bool", "bytes", "complex", "dict", "float", "frozenset", "int",
                                       "list", "set", "str", "tuple")),
     ("collections", "OrderedDict"), ("collections", "Counter"), ("collections", "deque")}
)  # fmt: skip
"""Types that a defaultdict may call without arguments."""


def _defaultdict(call: Call) -> Value:
    match call.arguments:
        case () | (None,):
            return DictNode(type_name="collections.defaultdict")
        case (Global() as factory,) if modern(factory) in _FACTORIES:
            return DictNode(type_name="collections.defaultdict")
    return NotImplemented


def _set(type_name: str) -> Callable[[Call], Value]:
    def build(call: Call) -> Value:
        if not call.arguments:
            return SetNode([], type_name)
        items = call.arguments[0]
        if len(call.arguments) == 1 and isinstance(items, (list, tuple)):
            return SetNode(list(items), type_name)
        return NotImplemented

    return build


def _sequence(kind: type[list[Value] | tuple[Value, ...]]) -> Callable[[Call], Value]:
    def build(call: Call) -> Value:
        if not call.arguments:
            return kind()
        items = call.arguments[0]
        if len(call.arguments) == 1 and isinstance(items, (list, tuple)):
            return kind(items)
        return NotImplemented

    return build


def _encode(call: Call) -> Value:
    """``_codecs.encode(text, "latin1")``, which protocol 2 writes for bytes."""
    if len(call.arguments) != 2 or call.arguments[1] not in ("latin1", "latin-1", "iso-8859-1"):
        return NotImplemented
    text = call.arguments[0]
    if isinstance(text, Blob) and text.encoding == "utf-8":
        return replace(text, latin1=True)
    if isinstance(text, str) and all(ord(character) < 256 for character in text):
        return text.encode("latin-1")
    return NotImplemented


def _bytes(call: Call) -> Value:
    if not call.arguments:
        return b""
    if len(call.arguments) == 2 and call.arguments[1] in ("latin-1", "latin1"):
        return _encode(call)
    given = as_bytes(call.arguments[0])
    plain = len(call.arguments) == 1 and not isinstance(call.arguments[0], str)
    return given if plain and given is not None else NotImplemented


def _complex(call: Call) -> Value:
    numbers = [n for n in call.arguments if isinstance(n, (int, float))]
    return complex(*numbers) if len(numbers) == len(call.arguments) == 2 else NotImplemented


def _reconstructor(call: Call) -> Value:
    """``copyreg._reconstructor(cls, object, None)``: an instance, made by `object.__new__`."""
    match call.arguments:
        case (Global() as kind, Global() as base, None) if modern(base) == ("builtins", "object"):
            return Call(kind, (), "NEWOBJ", call.offset)
    return NotImplemented


OBJECT_CONSTRUCTORS: Final[dict[tuple[str, str], Callable[[Call], Value]]] = {
    ("collections", "OrderedDict"): _mapping("collections.OrderedDict"),
    ("collections", "Counter"): _mapping("collections.Counter"),
    ("collections", "defaultdict"): _defaultdict,
    ("_codecs", "encode"): _encode,
    ("copyreg", "_reconstructor"): _reconstructor,
    ("builtins", "dict"): _mapping("dict"),
    ("builtins", "set"): _set("set"),
    ("builtins", "frozenset"): _set("frozenset"),
    ("builtins", "list"): _sequence(list),
    ("builtins", "tuple"): _sequence(tuple),
    ("builtins", "bytes"): _bytes,
    ("builtins", "bytearray"): _bytes,
    ("builtins", "complex"): _complex,
}
"""Calls of Python's own types whose result this module describes."""
