"""Untrusted documents (JSON, TOML), read field by field.

Every getter names the type it expects and raises one `DocumentError` for anything else, with the file
and the field (``predicate.resources[2].digest``). Messages show values escaped and shortened. JSON
must be strict: no duplicate keys, no NaN, bounded depth (`safeweights.format.strictjson`).

This module knows nothing of what the documents mean.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import json
import math
import re
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..errors import MissingDependencyError, quote
from ..format.strictjson import MAX_DEPTH, MAX_NUMBER, JSONError, Reader
from .errors import DocumentError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

__all__ = ["Field", "canonical_json", "parse_json", "parse_toml"]

_HEX = re.compile(r"[0-9a-f]+")
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
_STANDARD_ALPHABET = str.maketrans("-_", "+/")


class Field:
    """One value of a document and its place in it.

    >>> parse_json(b'{"a": [1, {"b": "x"}]}').member("a").items()[1].member("b").text()
    'x'
    """

    __slots__ = ("_outer", "_step", "path", "value")

    def __init__(
        self, value: Any, path: str | None, place: str = "", outer: Field | None = None
    ) -> None:
        self.value = value
        self.path = path
        self._step: str | int = place
        self._outer = outer

    @property
    def place(self) -> str:
        """Where in the document, made when asked for: only errors need it."""
        if self._outer is None:
            return str(self._step)
        before = self._outer.place
        if isinstance(self._step, int):
            return f"{before}[{self._step}]"
        step = _step(self._step)
        return f"{before}.{step}" if before else step

    def __repr__(self) -> str:
        return f"<Field {self.place or 'document'}>"

    def error(self, message: str, *, reason: str = "malformed") -> DocumentError:
        """The error for this field."""
        return DocumentError(message, field=self.place, reason=reason, path=self.path)

    def _inside(self, value: Any, step: str | int) -> Field:
        inner = Field(value, self.path, "", self)
        inner._step = step
        return inner

    def table(self) -> dict[str, Any]:
        """The value as a mapping."""
        if not isinstance(self.value, dict):
            raise self.error(f"expected an object, found {_kind(self.value)}")
        return self.value

    def get(self, name: str) -> Field | None:
        """The member `name`, or None where it is absent or null."""
        value = self.table().get(name)
        return None if value is None else self._inside(value, name)

    def member(self, name: str) -> Field:
        """The member `name`, which must be there."""
        found = self.get(name)
        if found is None:
            raise self._inside(None, name).error("this field is missing")
        return found

    def members(self) -> Iterator[tuple[str, Field]]:
        """All members in the order of the document."""
        for name, value in self.table().items():
            yield name, self._inside(value, name)

    def only(self, *known: str) -> Field:
        """Refuse members that are not `known`: a misspelt setting must not be ignored."""
        for name, member in self.members():
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                meant = f"did you mean `{near[0]}`? Known are" if near else "known are"
                raise member.error(f"unknown field; {meant}: {', '.join(known)}")
        return self

    def items(self) -> list[Field]:
        """The elements of an array."""
        if not isinstance(self.value, list):
            raise self.error(f"expected an array, found {_kind(self.value)}")
        return [self._inside(value, index) for index, value in enumerate(self.value)]

    def text(self, *, limit: int = 65536) -> str:
        """The value as a string of at most `limit` characters, without NUL."""
        if not isinstance(self.value, str):
            raise self.error(f"expected a string, found {_kind(self.value)}")
        if len(self.value) > limit:
            raise self.error(f"longer than {limit} characters")
        if "\0" in self.value:
            raise self.error("contains a NUL character")
        return self.value

    def equals(self, expected: str, *, reason: str = "malformed") -> None:
        """The value must be the string `expected`."""
        if (found := self.text()) != expected:
            raise self.error(f"expected {quote(expected)}, found {quote(found)}", reason=reason)

    def choice(self, *allowed: str) -> str:
        """The value must be one of `allowed`."""
        if (found := self.text()) not in allowed:
            raise self.error(f"expected one of {', '.join(allowed)}; found {quote(found)}")
        return found

    def integer(self, least: int = 0, most: int = 2**63 - 1) -> int:
        """An integer in a range; a float of integral value counts (protobuf writes 5 as 5.0)."""
        value = self.value
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.error(f"expected an integer, found {_kind(self.value)}")
        if not least <= value <= most:
            raise self.error(f"expected an integer of {least} to {most}")
        return value

    def boolean(self) -> bool:
        """A boolean."""
        if not isinstance(self.value, bool):
            raise self.error(f"expected true or false, found {_kind(self.value)}")
        return self.value

    def strings(self) -> tuple[str, ...]:
        """An array of strings."""
        return tuple(item.text() for item in self.items())

    def hex(self, length: int) -> bytes:
        """`length` bytes in lower-case hexadecimal."""
        found = self.text()
        if len(found) != 2 * length or not _HEX.fullmatch(found):
            raise self.error(f"expected {2 * length} lower-case hexadecimal digits")
        return bytes.fromhex(found)

    def base64(self, *, limit: int = 64 << 20) -> bytes:
        """Bytes in base64 (RFC 4648 section 4) or base64url (section 5), nothing else in between.

        Padding may be left out, as the JSON form of protobuf allows.
        """
        text = self.text(limit=limit)
        if "-" in text or "_" in text:
            if "+" in text or "/" in text:
                raise self.error("mixes the alphabets of base64 and base64url")
            text = text.translate(_STANDARD_ALPHABET)
        if "=" not in text:
            text += "=" * (-len(text) % 4)
        try:
            return base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise self.error("not valid base64") from error


def parse_json(data: bytes, *, path: str | None = None) -> Field:
    """A strict JSON document (RFC 8259).

    Cost: linear in the length of `data`; about 50 MB/s, and 2 MB/s for what is refused.

    Raises:
        DocumentError: Not JSON, a key given twice, NaN, or nested too deeply.
    """
    # The C parser of the standard library is 25 times as fast as `Reader`, which is needed only to
    # say where a document that is refused goes wrong.
    try:
        return Field(_load_strictly(data.decode()), path)
    except (ValueError, RecursionError):
        pass
    reader = Reader(data)
    try:
        reader.skip()
        reader.end()
        return Field(json.loads(data.decode()), path)
    except JSONError as error:
        raise DocumentError(
            f"not a strict JSON document: {error}", path=path, offset=error.position
        ) from None
    except (ValueError, RecursionError) as error:
        raise DocumentError(f"not a JSON document: {type(error).__name__}", path=path) from None


def _load_strictly(text: str) -> Any:
    """`json.loads` without its leniency; a `ValueError` where `Reader` has to decide."""
    if _SURROGATE_ESCAPE.search(text):
        raise ValueError("may express a lone surrogate")
    value = json.loads(
        text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite,
        parse_int=_bounded,
    )  # fmt: skip
    outer, depth = [value], 0
    while outer := [each for each in outer if isinstance(each, dict | list)]:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError("nested too deeply")
        outer = [
            inner for each in outer for inner in (each.values() if isinstance(each, dict) else each)
        ]
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is given twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _bounded(text: str) -> int:
    # Python before 3.10.7 takes quadratic time for any number of digits.
    if len(text) > MAX_NUMBER:
        raise ValueError("the number is too long")
    return int(text)


def _finite(text: str) -> float:
    if math.isinf(value := float(text)):
        raise ValueError("the number is too large")
    return value


def parse_toml(data: bytes, *, path: str | None = None) -> Field:
    """A TOML 1.0 document.

    Raises:
        DocumentError: Not TOML (a key given twice included).
        MissingDependencyError: Python 3.10 without the extra ``trust``.
    """
    tomllib = _toml_parser()
    try:
        return Field(tomllib.loads(data.decode()), path)
    except UnicodeDecodeError as error:
        raise DocumentError("not UTF-8", path=path, offset=error.start) from None
    except (ValueError, RecursionError) as error:
        # The parser's message names line and column, and may quote the text.
        raise DocumentError(f"not valid TOML: {quote(str(error), 200)}", path=path) from None


def _toml_parser() -> ModuleType:
    # Python 3.10 has no tomllib; tomli is the same code under its former name.
    name = "tomllib" if sys.version_info >= (3, 11) else "tomli"
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingDependencyError(
            "reading TOML on Python 3.10 needs `tomli`: pip install 'safeweights[trust]'"
        ) from error


def canonical_json(value: Any) -> bytes:
    """`value` as JSON with sorted keys and no white space: one value, one byte string."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def _step(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]{1,60}", name) else quote(name, 60)


def _kind(value: Any) -> str:
    names = {
        dict: "an object",
        list: "an array",
        str: "a string",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        type(None): "null",
    }
    return names.get(type(value), "a value of another kind")
