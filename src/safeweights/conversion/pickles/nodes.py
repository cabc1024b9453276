"""The nodes of the tree that a pickle describes.

The machine in `machine` turns a pickle into a tree of Python atoms (None, bool, int, float, str,
small bytes), lists, tuples and the nodes below. A node only describes. Nodes are compared and hashed
by identity, and their repr shows nothing of what they hold, so that cycles and 200,000 levels of
nesting are harmless.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from ...errors import FormatError, quote
from ...storage.windows import read_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ...storage import Source

__all__ = [
    "Blob",
    "Call",
    "DictNode",
    "Effect",
    "Global",
    "PersistentId",
    "SetNode",
    "Value",
    "modern",
]

Value = Any
"""A node or an atom: what a pickle can hold is not a closed union in Python's type system."""


@dataclass(frozen=True, eq=False, slots=True)
class Global:
    """A name that an unpickler would import.

    Attributes:
        module: The module, or None if the pickle computes it.
        name: The attribute, perhaps dotted, or None if the pickle computes it.
        offset: Where the opcode is.
        opcode: GLOBAL, STACK_GLOBAL, INST or EXT (the copyreg extension registry).
    """

    module: str | None
    name: str | None
    offset: int
    opcode: str = "GLOBAL"

    @property
    def path(self) -> str:
        """The dotted name; ``?`` for a part that the pickle computes."""
        module, name = ("?" if part is None else part for part in (self.module, self.name))
        return f"{module}.{name}"


@dataclass(eq=False, slots=True, repr=False)
class Call:
    """A call that an unpickler would make.

    Attributes:
        function: What is called: a `Global`, or whatever the pickle put there.
        arguments: Positional arguments.
        keywords: The keyword arguments' node, or None.
        opcode: REDUCE, NEWOBJ, NEWOBJ_EX, OBJ or INST.
        offset: Where the opcode is.
        state: What BUILD later gave to the object, in order.
        items: What APPEND and APPENDS later added.
        pairs: What SETITEM and SETITEMS later added.
        result: The node that a constructor made of the call, which is then known to build that and
            do nothing else; NotImplemented where no constructor knows the call.
    """

    function: Value
    arguments: tuple[Value, ...]
    opcode: str
    offset: int
    keywords: Value = None
    state: list[Value] = field(default_factory=list)
    items: list[Value] = field(default_factory=list)
    pairs: list[tuple[Value, Value]] = field(default_factory=list)
    result: Value = NotImplemented

    @property
    def path(self) -> str:
        """The dotted name of what is called; ``?`` where it is computed."""
        return self.function.path if isinstance(self.function, Global) else "?"

    def __repr__(self) -> str:
        return f"<call of {quote(self.path)} at byte {self.offset}>"


@dataclass(frozen=True, eq=False, slots=True, repr=False)
class Effect:
    """An opcode that would run code on an object that is not plain data.

    Attributes:
        opcode: BUILD, APPEND, APPENDS, SETITEM, SETITEMS or ADDITEMS.
        target: The object: a `Global`, `Call` or other node.
        value: What it is given.
        offset: Where the opcode is.
    """

    opcode: str
    target: Value
    value: Value
    offset: int


@dataclass(frozen=True, eq=False, slots=True, repr=False)
class PersistentId:
    """A reference to something outside the pickle that could not be resolved."""

    value: Value
    offset: int


@dataclass(eq=False, slots=True, repr=False)
class DictNode:
    """A dictionary: its pairs in order, keys not compared; the last of two equal keys wins.

    Attributes:
        pairs: Keys and values as the pickle adds them.
        type_name: ``"dict"`` or the dotted name of the mapping type.
        state: Attributes that BUILD put on it, e.g. a state dict's ``_metadata``.
    """

    pairs: list[tuple[Value, Value]] = field(default_factory=list)
    type_name: str = "dict"
    state: list[Value] = field(default_factory=list)

    def get(self, key: str) -> Value:
        """The value of the text key `key`, or None."""
        for name, value in reversed(self.pairs):
            if isinstance(name, str) and name == key:
                return value
        return None


@dataclass(eq=False, slots=True, repr=False)
class SetNode:
    """A set or frozenset: its items in order, not compared."""

    items: list[Value] = field(default_factory=list)
    type_name: str = "set"


@dataclass(frozen=True, eq=False, slots=True)
class Blob:
    """A long byte string (or its text) that stays in the file.

    Attributes:
        source: Where the pickle is.
        offset: Its first byte in the source.
        length: Bytes in the source.
        encoding: None for bytes, else the encoding of the text there.
        latin1: The text's characters stand for bytes (protocol 2 writes bytes so).
    """

    source: Source
    offset: int
    length: int
    encoding: str | None = None
    latin1: bool = False

    def pieces(self, block: int = 1 << 20) -> Iterator[bytes]:
        """The bytes meant, block by block; latin-1 text is turned back into bytes.

        Raises:
            FormatError: The text is not what its encoding promises.
        """
        tail = b""
        for start in range(0, self.length, block):
            count = min(block, self.length - start)
            data = tail + read_bytes(self.source, self.offset + start, count)
            if not self.latin1:
                yield data
                continue
            whole = start + count == self.length
            # UTF-8 for U+0080..U+00FF takes two bytes; one may be cut off at the block's end.
            keep = 1 if not whole and data[-1] >= 0xC0 else 0
            tail = data[len(data) - keep :]
            yield self._as_bytes(data[: len(data) - keep])

    def _as_bytes(self, text: bytes) -> bytes:
        try:
            return text.decode("utf-8").encode("latin-1")
        except UnicodeError as error:
            raise FormatError(
                "a byte string stored as text holds characters that are no bytes",
                rule="pickle-text",
                path=self.source.name,
                offset=self.offset,
            ) from error


_MODERN: Final = {"__builtin__": "builtins", "copy_reg": "copyreg"}
_MODERN_BUILTINS: Final = {"long": "int", "unicode": "str", "xrange": "range"}


def modern(node: Global) -> tuple[str, str]:
    """Module and name of `node`, in Python 3's spelling of Python 2's standard modules."""
    module, name = node.module or "", node.name or ""
    if module == "__builtin__":
        name = _MODERN_BUILTINS.get(name, name)
    return _MODERN.get(module, module), name
