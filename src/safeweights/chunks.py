"""Chunks of a header's text -> columns of names, types, shapes and offsets, fast.

A header is written by a program, so what stands between the values of one entry stands between those
of all the others: `_Template` learns it from one entry, and takes chunks apart by a regular expression
of literals, a quarter of a microsecond an entry. A chunk that does not fit is read by another, which
knows every spelling of the three fields that JSON allows except escapes; that costs some microseconds
an entry. What neither understands is left to `entries`, which reads exactly and finds the words for
what is wrong. Nothing is accepted here that would not be accepted there, and nothing reported.
"""

from __future__ import annotations

import json
import re
from itertools import accumulate, pairwise
from operator import itemgetter
from typing import TYPE_CHECKING, Final, NamedTuple

from .dtypes import DTYPES
from .rules import MAX_RANK, byte_count
from .strictjson import MAX_UINT, has_surrogates

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

__all__ = ["CHUNK", "Batch", "Chunks", "Kind"]

CHUNK: Final = 1 << 17
"""Bytes of text taken at once; larger chunks fall out of the processor's cache."""

_MAX_KINDS: Final = 10_000
"""Most kinds remembered: real headers have a few dozen, one built to hurt has a new one an entry."""

_W = r"[ \t\n\r]*"
_NUM = r"(?:0|[1-9][0-9]{0,19})"
_DIMS = rf"\[{_W}(?:{_NUM}{_W}(?:,{_W}{_NUM}{_W}){{0,{MAX_RANK - 1}}})?\]"
_ENTRY = re.compile(
    (
        rf'{_W},{_W}"(?P<name>[^"\\\x00-\x1f]*(?:\\.[^"\\\x00-\x1f]*)*)"{_W}:{_W}\{{(?:{_W}"(?:'
        rf'dtype"{_W}:{_W}"(?P<code>[A-Z0-9_]+)"|'
        rf'shape"{_W}:{_W}(?P<dims>{_DIMS})|'
        rf'data_offsets"{_W}:{_W}\[{_W}(?P<begin>{_NUM}){_W},{_W}(?P<end>{_NUM}){_W}\])'
        rf"{_W}(?:,(?!{_W}\}})|(?=\}}))){{3}}\}}"
    ).encode()
).match
"""A comma and the entry after it, its three fields in any order; a field may be twice, another missing."""

_KIND = re.compile(rf'([A-Z0-9_]+)"{_W},{_W}"shape"{_W}:{_W}({_DIMS})').fullmatch
_COMMA = re.compile(rf'{_W},{_W}"'.encode()).match
_CONTROL = re.compile(r"[\x00-\x1f]").search


class Kind(NamedTuple):
    """What tensors of one dtype and shape have in common; nbytes None where it has no value."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int | None

    @classmethod
    def of(cls, code: str, dims: str) -> Kind | None:
        """From the text of a dtype and of a shape in brackets; None if they break a rule."""
        inner = dims[1:-1].strip()
        shape = tuple(map(int, inner.split(","))) if inner else ()
        # 2^64 has 20 digits.
        if code not in DTYPES or (len(inner) >= 20 and max(shape) > MAX_UINT):
            return None
        dtype = DTYPES[code].code  # one string for all tensors
        return cls(dtype, shape, byte_count(dtype, shape))


class Batch(NamedTuple):
    """Entries that follow one another in the text, in columns.

    Attributes:
        placed: Each begins where the one before it ends, the first where it was expected, and spans what
            its kind needs.
    """

    names: Sequence[str]
    kinds: Sequence[Kind]
    begins: Sequence[int]
    ends: Sequence[int]
    placed: bool


class Chunks:
    """Takes entries from a text, many at a time.

    Attributes:
        first: Where the first name stands that `take` took last.
        position: Behind the last entry taken.
    """

    def __init__(self, text: bytes) -> None:
        self._text = text
        self._template: _Template | None = None
        self._kinds: dict[object, Kind] = {}
        self._scan_until = 0
        self._exact_until = 0
        self.first = 0
        self.position = 0

    def take(self, position: int, expected: int) -> Batch | None:
        """The entries that begin with the comma at `position`; None if that has to be read exactly.

        Args:
            position: Behind an entry, at a comma.
            expected: Where the next tensor's data begin in a file that is in order.
        """
        if position < self._exact_until:
            return None
        if len(self._kinds) > _MAX_KINDS:
            self._kinds.clear()
        batch = None
        if position >= self._scan_until:
            batch = self._split(position, expected)
        return batch or self._scan(position)

    def reject(self) -> None:
        """Have the last batch read exactly after all."""
        self._exact_until = self.position

    def _split(self, position: int, expected: int) -> Batch | None:
        """By the template; if that fails, what follows is scanned, and then a new one learnt."""
        text = self._text
        template = self._template or _Template.learn(text, position)
        opening = _COMMA(text, position)
        if template is not None and opening is not None:
            begin, tail = opening.end(), template.tail.encode()
            self.first = begin - 1
            last = text.rfind(tail, begin, begin + CHUNK)
            batch = None
            if last >= 0:
                batch = template.split(text[begin - 1 : last + len(tail)], self._kinds, expected)
            if batch is not None:
                self._template = template
                self.position = last + template.comma
                return batch
        self._template = None
        self._scan_until = position + CHUNK
        return None

    def _scan(self, position: int) -> Batch | None:
        """By the regular expression, up to an entry that it does not know."""
        text, limit = self._text, position + CHUNK
        self.first = text.find(b'"', position)
        rows = []
        while match := _ENTRY(text, position, limit):
            rows.append(match.groups())
            position = match.end()
        if not rows:
            return None
        self.position = position
        batch = self._from_rows(rows)
        if batch is None:
            self.reject()
        return batch

    def _from_rows(self, rows: Sequence[tuple[bytes | None, ...]]) -> Batch | None:
        """The columns of matches of `_ENTRY`; None if a field is missing or has no value."""
        raw, codes, dims, begins, ends = zip(*rows)  # noqa: B905
        if any(None in column for column in (codes, dims, begins, ends)):
            return None
        try:
            names = _unescape([name.decode() for name in raw])
        except UnicodeDecodeError:
            return None
        texts = list(zip(codes, dims))  # noqa: B905
        known = self._kinds
        for text in set(texts).difference(known):
            kind = Kind.of(text[0].decode(), text[1].decode())
            if kind is None:
                return None
            known[text] = kind
        return _batch(names, [known[text] for text in texts], map(int, begins), map(int, ends))


class _Template(NamedTuple):
    """What stands between the values of a header's entries.

    An entry and the quote of the next one read ``name SEP left MID right TAIL``; left and right are
    dtype-and-shape (the kind) and the two offsets, in either order.

    Attributes:
        entries: Finds name, left and right of every entry in a chunk. It may skip text: that shows in
            the lengths.
        fixed: Length of what stands between the values, per entry.
        point: What stands between the two offsets.
        tail: What ends an entry, up to and with the quote of the next one.
        comma: Where in the tail the comma is.
        kind_first: Whether left is the kind.
    """

    entries: Callable[[str], list[tuple[str, str, str]]]
    fixed: int
    point: str
    tail: str
    comma: int
    kind_first: bool

    @classmethod
    def learn(cls, text: bytes, position: int) -> _Template | None:
        """From the entry at `position`; None if its type and shape are not side by side."""
        entry = _ENTRY(text, position, position + CHUNK)
        if entry is None or None in entry.groups():
            return None
        following = _COMMA(text, entry.end())
        code, dims_end = entry.start("code"), entry.end("dims")
        begin, end = entry.start("begin"), entry.end("end")
        if following is None or not _KIND(text[code:dims_end].decode()):
            return None
        kind_first = code < begin
        left, left_end = (code, dims_end) if kind_first else (begin, end)
        right, right_end = (begin, end) if kind_first else (code, dims_end)
        spans = (
            (entry.end("name"), left),
            (left_end, right),
            (entry.end("begin"), entry.start("end")),
            (right_end, following.end()),
        )
        sep, mid, point, tail = (text[a:b].decode() for a, b in spans)
        # No part runs past a quote or a brace, so that text built to fail costs no more than its length.
        kind, offsets = r"([^\]{}]*\])", r'([^\]{}"]*)'
        values = (kind, offsets, "") if kind_first else (offsets, kind, "")
        between = map(re.escape, (sep, mid, tail))
        pattern = r'(?<=")([^"]*)' + "".join(a + b for a, b in zip(between, values, strict=True))
        fixed = len(sep) + len(mid) + len(tail)
        return cls(re.compile(pattern).findall, fixed, point, tail, tail.index(","), kind_first)

    def split(self, chunk: bytes, known: dict[object, Kind], expected: int) -> Batch | None:
        """Entries from a name's opening quote to another's, both included; None if unusual."""
        try:
            text = chunk.decode()
        except UnicodeDecodeError:
            return None
        rows = self.entries(text)
        if not rows:
            return None
        names: Sequence[str] | None
        names, lefts, rights = zip(*rows)  # noqa: B905
        kinds, offsets = (lefts, rights) if self.kind_first else (rights, lefts)
        joined = "".join(names)
        found = (
            1 + len(joined) + len("".join(lefts)) + len("".join(rights)) + self.fixed * len(rows)
        )
        if found != len(text) or not self._learn_kinds(set(kinds).difference(known), known):
            return None
        if "\\" in joined or not joined.isprintable():
            names = _unescape(names)
        if names is None:
            return None
        return self._with_offsets(names, [known[kind] for kind in kinds], offsets, expected)

    def _learn_kinds(self, texts: set[str], known: dict[object, Kind]) -> bool:
        for text in texts:
            match = _KIND(text)
            kind = match and Kind.of(*match.groups())
            if not kind:
                return False
            known[text] = kind
        return True

    def _with_offsets(
        self, names: Sequence[str], kinds: list[Kind], offsets: Sequence[str], expected: int
    ) -> Batch | None:
        point = self.point
        sizes = list(map(itemgetter(2), kinds))
        if None not in sizes:
            # What a writer writes who places tensors in the order of the text.
            bounds = list(accumulate(sizes, initial=expected))
            digits = list(map(str, bounds))
            if offsets == tuple([f"{a}{point}{b}" for a, b in pairwise(digits)]):
                return Batch(names, kinds, bounds[:-1], bounds[1:], placed=True)
        match = re.compile(f"({_NUM}){re.escape(point)}({_NUM})").fullmatch
        pairs = [found.groups() for text in offsets if (found := match(text))]
        if len(pairs) < len(offsets):
            return None
        begins, ends = zip(*pairs)  # noqa: B905
        return _batch(names, kinds, map(int, begins), map(int, ends))


def _unescape(raw: Sequence[str]) -> Sequence[str] | None:
    """The names whose JSON strings have these contents; None if one is no JSON string."""
    joined = '","'.join(raw)
    if _CONTROL(joined):
        return None
    if "\\" not in joined:
        return raw
    try:
        names: list[str] = json.loads(f'["{joined}"]')
    except ValueError:
        return None
    # Fewer names: one ended with a backslash, and took the quote for its own.
    return None if len(names) < len(raw) or has_surrogates("".join(names)) else names


def _batch(
    names: Sequence[str] | None, kinds: Sequence[Kind], begins: Iterable[int], ends: Iterable[int]
) -> Batch | None:
    """The batch, unless an offset is above 2^64 - 1."""
    begins, ends = list(begins), list(ends)
    if names is None or max(*begins, *ends) > MAX_UINT:
        return None
    if begins[1:] == ends[:-1]:
        begins[1:] = ends[:-1]  # one object for two equal numbers
    return Batch(names, kinds, begins, ends, placed=False)
