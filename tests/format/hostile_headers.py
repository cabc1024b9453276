"""Hostile headers of any size, shared by the tests and the benchmark of limits.

Each is a function of the wanted size of the header in bytes, which it comes close to, and gives the
text and the size of the data behind it.
"""

# ruff: noqa: E501 - tables of headers, one to a line

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

Header = tuple[bytes, int]

FIELDS: Final = '"dtype":"U8","shape":[1],"data_offsets":[0,1]'


def entries(size: int, entry: Callable[[int], str], last: str = "") -> Header:
    """Contiguous entries of one byte each."""
    parts: list[str] = []
    length = 2 + len(last)
    for number in count():
        part = entry(number)
        length += len(part.encode()) + 1
        if length > size:
            break
        parts.append(part)
    return ("{" + ",".join(parts) + last + "}").encode(), len(parts)


def plain(number: int, name: str = "{:x}") -> str:
    shown = name.format(number)
    return f'"{shown}":{{"dtype":"U8","shape":[1],"data_offsets":[{number},{number + 1}]}}'


def realistic(number: int) -> str:
    """An entry as in a large model."""
    name = f"model.layers.{number // 9}.self_attn.q_proj.weight_{number % 9}"
    begin = number * 8192
    return f'"{name}":{{"dtype":"BF16","shape":[64,64],"data_offsets":[{begin},{begin + 8192}]}}'


def legitimate(size: int) -> Header:
    text, tensors = entries(size, realistic)
    return text, tensors * 8192


def one(size: int, inside: Callable[[int], str]) -> Header:
    """One tensor with a large entry or large text beside it; `inside` gets the remaining number of bytes."""
    return ("{" + inside(size - 100) + "}").encode(), 1


def field(value: str) -> str:
    return f'"a":{{{FIELDS},"x":{value}}}'


def shape(dims: str) -> str:
    return f'"a":{{"dtype":"U8","shape":[{dims}],"data_offsets":[0,1]}}'


def metadata(pairs: str) -> str:
    return f'"__metadata__":{{{pairs}}},"a":{{{FIELDS}}}'


REFUSED: Final[dict[str, tuple[str, Callable[[int], Header]]]] = {
    "49 million dimensions": ("rank", lambda n: one(n, lambda room: shape("1," * (room // 2) + "1"))),
    "33 million empty arrays": ("extra-limit", lambda n: one(n, lambda room: field("[" + "[]," * (room // 3) + "[]]"))),
    "deep arrays": ("extra-limit", lambda n: one(n, lambda room: field("[" * (room // 2) + "]" * (room // 2)))),
    "deep objects": ("extra-limit", lambda n: one(n, lambda room: field('{"":' * (room // 5) + "1" + "}" * (room // 5)))),
    "open arrays": ("extra-limit", lambda n: one(n, lambda room: field("[" * room))),
    "millions of metadata keys": ("metadata-limit", lambda n: one(n, lambda room: metadata(
        ",".join(f'"{i:07x}":""' for i in range(room // 13))))),
    "millions of nested keys": ("extra-limit", lambda n: one(n, lambda room: field(
        "{" + ",".join(f'"{i:07x}":0' for i in range(room // 12)) + "}"))),
    "one unknown string": ("extra-limit", lambda n: one(n, lambda room: field('"' + "x" * room + '"'))),
    "one unknown string of escapes": ("extra-limit", lambda n: one(n, lambda room: field('"' + "\\n" * (room // 2) + '"'))),
    "white space in an unknown field": ("extra-limit", lambda n: one(n, lambda room: field("[" + " " * room + "]"))),
    "one dimension of many digits": ("integer", lambda n: one(n, lambda room: shape("1" * room))),
    "one unknown number": ("extra-limit", lambda n: one(n, lambda room: field("1" * room))),
    "the same name": ("duplicate-key", lambda n: entries(n, lambda _: f'"a":{{{FIELDS}}}')),
    "a field many times": ("duplicate-key", lambda n: one(n, lambda room: '"a":{' + '"dtype":"U8",' * (room // 13) + FIELDS + "}")),
    "unknown fields everywhere": ("extra-limit", lambda n: entries(n, lambda i: plain(i)[:-1] + ',"":0}')),
    "escaped fields everywhere": ("extra-limit", lambda n: entries(n, lambda i: plain(i).replace("dtype", "d\\u0074ype"))),
    "arrays for entries": ("entry", lambda n: entries(n, lambda i: f'"{i:x}":[]')),
    "empty entries": ("entry", lambda n: entries(n, lambda i: f'"{i:x}":{{}}')),
    "open objects": ("json", lambda n: (b"{" * n, 0)),
    "quotes": ("json", lambda n: (b'"' * n, 0)),
    "backslashes": ("json", lambda n: (b'{"' + b"\\" * (n // 2 * 2), 0)),
}  # fmt: skip
"""Name -> (the rule that rejects it early, a function that makes it)."""

READ: Final[dict[str, Callable[[int], Header]]] = {
    "white space": lambda n: (b"{" + b" " * (n - 2) + b"}", 0),
    "white space in an entry": lambda n: one(n, lambda room: f'"a":{{{" " * room}{FIELDS}}}'),
    "one name": lambda n: one(n, lambda room: f'"{"x" * room}":{{{FIELDS}}}'),
    "one name of escapes": lambda n: one(n, lambda room: f'"{chr(92) + "n"}{(chr(92) + "n") * (room // 2 - 1)}":{{{FIELDS}}}'),
    "one metadata value of escapes": lambda n: one(n, lambda room: metadata('"k":"' + "\\n" * (room // 2) + '"')),
    "names with escapes": lambda n: entries(n, lambda i: plain(i, "layers.of.some.model.\\n{:x}")),
    "names with escaped quotes": lambda n: entries(n, lambda i: plain(i, 'layers.of.some.model.\\"{:x}')),
    "spaces that differ": lambda n: entries(n, lambda i: plain(i, "layers.of.some.model.{:x}").replace(",", "," + " " * (i % 3))),
    "fields in an unusual order": lambda n: entries(n, lambda i: plain(i, "layers.of.some.model.{:x}").replace('"dtype":"U8","shape":[1]', '"shape":[1],"dtype":"U8"')),
    "a new shape each": lambda n: (entries(n, lambda i: f'"layers.of.some.model.{i:x}":{{"dtype":"U8","shape":[{i},0],"data_offsets":[0,0]}}')[0], 0),
    "legitimate": legitimate,
}  # fmt: skip
"""Valid headers, which must be read with work proportional to their size."""
