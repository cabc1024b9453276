"""Chunks of a header's text -> columns of names, types, shapes and offsets, fast.

A header is written by a program, so what stands between the values of one entry stands between those
of all the others. An entry has five strings: split at its quotes, a chunk falls into columns of names,
dtypes, shapes and offsets (`_Template`). They are read column by column, in C; where every tensor
begins where the one before it ends, the offsets need no reading at all. Then the text is written again
from what was read and what was learnt, and has to be the text that was there: that is the proof. It
takes half a microsecond an entry. Where white space differs from entry to entry, it is taken out first.
What does not come out the same is read by a regular expression that knows every spelling of the three
fields that JSON allows except escapes; that takes some microseconds an entry. What neither understands
is left to `entries`, which reads exactly and finds the words for what is wrong. Nothing is accepted here
that would not be accepted there, and nothing reported.
"""

from __future__ import annotations

import json
import re
from functools import cache
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from .dtypes import DTYPES
from .rules import MAX_RANK, byte_count
from .strictjson import MAX_UINT, has_surrogates

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["CHUNK", "Batch", "Chunks"]

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

_COMMA = re.compile(rf'{_W},{_W}"'.encode()).match
_CONTROLS: Final = tuple(map(chr, range(32)))
_IN_ARRAYS: Final = b"0123456789,[] \t\n\r"
_CODES: Final = {code: code for code in DTYPES}  # one string for all tensors
_PIECES: Final = 10  # an entry has five strings
_BACKSLASH, _QUOTE = "\0", "\1"  # stand for escaped ones

_SPACES: Final = b" \t\n\r"
_DIGITS: Final = bytes(ord("0" if chr(byte) in "0123456789" else " ") for byte in range(256))

Span: TypeAlias = "tuple[int, int]"


class Kinds(NamedTuple):
    """What entries are, in columns.

    Attributes:
        sizes: The bytes that dtype and shape need; None where that is no number of bytes.
    """

    dtypes: Sequence[str]
    shapes: Sequence[tuple[int, ...]]
    sizes: Sequence[int | None]


class Batch(NamedTuple):
    """Entries that follow one another in the text, in columns.

    Attributes:
        placed: Each begins where the one before it ends, the first where it was expected, and spans what
            it needs.
    """

    names: list[str]
    kinds: Kinds
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
        self._template = _usual_template()
        self._kinds = self._template.kind_reader()
        self._scanned_kinds = _KindReader("[", "]")
        self._ragged = False  # white space differed from entry to entry in the last chunk
        self._learn_from = 0
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
        batch = None
        if position >= self._scan_until:
            batch = self._split(position, expected)
        return batch or self._scan(position)

    def reject(self) -> None:
        """Have the last batch read exactly after all."""
        self._exact_until = self.position

    def _split(self, position: int, expected: int) -> Batch | None:
        """By the template, or one learnt here; if that fails, what follows is scanned first."""
        batch = None
        if not self._ragged:
            batch = self._split_by_template(position, expected)
            if batch is None and position >= self._learn_from and self._learn(self._text, position):
                # Once a chunk: looking at a chunk for every entry would be looking for ever.
                self._learn_from = position + CHUNK
                batch = self._split_by_template(position, expected)
        if batch is None:
            batch = self._split_ragged(position, expected)
            self._ragged = batch is not None
        if batch is None:
            self._scan_until = position + CHUNK
        return batch

    def _learn(self, text: bytes, position: int) -> bool:
        """Whether the entry behind the comma at `position` has another template, taken from now on."""
        learnt = _Template.learn(text, position)
        if learnt is None or learnt.style == self._template.style:
            return False
        self._template, self._kinds = learnt, learnt.kind_reader()
        return True

    def _split_by_template(self, position: int, expected: int) -> Batch | None:
        text, template = self._text, self._template
        opening = _COMMA(text, position)
        if opening is None:
            return None
        begin, tail = opening.end(), template.tail
        self.first = begin - 1
        last = text.rfind(tail, begin, begin + CHUNK)
        if last < 0:
            return None
        if begin + CHUNK >= len(text):
            # The last entry too, which no comma follows; an entry, to judge by the number of quotes.
            rest = text[begin:].rstrip(_SPACES)
            if rest.endswith(b"}}") and rest.count(b'"', last - begin) == _PIECES:
                self.position = begin + len(rest) - 1
                return template.split(rest[:-1] + tail[1:], self._kinds, expected)
        self.position = last + template.comma
        return template.split(text[begin : last + len(tail)], self._kinds, expected)

    def _split_ragged(self, position: int, expected: int) -> Batch | None:
        """By the template, with no white space between the tokens."""
        region = self._text[position : position + CHUNK]
        region = region[: region.rfind(b'"') + 1]
        if b"\\" in region:
            return None
        try:
            pieces = region.decode().split('"')
        except UnicodeDecodeError:
            return None
        # Five strings an entry, and the text around them; the last piece is behind the region's last quote.
        inside = (len(pieces) - 2) // _PIECES * _PIECES
        if inside <= 0:
            return None
        last, rest = pieces[inside], pieces[inside + 1 :]
        del pieces[inside + 1 :]
        ragged = "\0".join(pieces[::2]).encode()
        dense = ragged.translate(None, _SPACES)
        if dense == ragged:
            return None
        between = dense.decode().split("\0")
        if len(between) != inside // 2 + 1 or between[0] != "," or between[-1][-1:] != ",":
            return None
        pieces[::2] = between
        self._learn('"'.join(pieces[: 2 * _PIECES]).encode(), 0)
        pieces = [*pieces[1:], ""]
        batch = self._template.columns('"'.join(pieces), pieces, self._kinds, expected)
        # `1 2` is not 12: there have to be as many numbers as before.
        if batch is None or _numbers_of(batch) != _numbers_in(ragged):
            return None
        following = '"'.join((last[last.rindex(",") :], *rest))
        self.first = position + region.index(b'"')
        self.position = position + len(region) - len(following.encode())
        return batch

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
        columns = list(zip(*rows))  # noqa: B905
        if any(None in column for column in columns):
            return None
        try:  # no value has a line feed, not even behind a backslash
            raw, codes, dims, _, _ = (b"\n".join(column).decode().split("\n") for column in columns)
        except UnicodeDecodeError:
            return None
        joined = '","'.join(raw)
        names = _unescape(joined) if "\\" in joined else raw
        kinds = self._scanned_kinds.columns(codes, dims)
        if names is None or kinds is None:
            return None
        begins, ends = (list(map(int, column)) for column in columns[3:])
        return _anywhere(names, kinds, begins, ends)


class _KindReader:
    """Dtypes, shapes and sizes, from the texts of dtypes and of shapes.

    Args:
        before: What every text of a shape begins with, up to its first dimension.
        after: What it ends with.
    """

    def __init__(self, before: str, after: str) -> None:
        self._before = before
        self._after = after
        self._known: dict[tuple[str, str], tuple[Any, ...]] = {}

    def columns(self, codes: Sequence[str], dims: Sequence[str]) -> Kinds | None:
        """Dtypes, shapes and sizes; None if one breaks a rule."""
        known = self._known
        try:
            kinds = list(map(known.__getitem__, zip(codes, dims)))  # noqa: B905
        except KeyError:
            if 2 * len(set(dims)) > len(dims):  # hardly two are alike: nothing to remember
                return self._read(codes, dims)
            if len(known) > _MAX_KINDS:
                known.clear()
            new = list(set(zip(codes, dims)).difference(known))  # noqa: B905
            columns = self._read(*zip(*new))  # noqa: B905
            if columns is None:
                return None
            known.update(zip(new, zip(*columns)))  # noqa: B905
            kinds = list(map(known.__getitem__, zip(codes, dims)))  # noqa: B905
        return Kinds._make(zip(*kinds))  # noqa: B905

    def _read(self, codes: Sequence[str], dims: Sequence[str]) -> Kinds | None:
        arrays = _arrays(dims, self._before, self._after)
        if arrays is None or not _CODES.keys() >= set(codes):
            return None
        dtypes = list(map(_CODES.__getitem__, codes))
        shapes: list[tuple[int, ...]] = list(map(tuple, arrays))
        return Kinds(dtypes, shapes, list(map(byte_count, dtypes, shapes)))


class _Template:
    """What stands between the values of a header's entries.

    Attributes:
        style: All that stands between values; what tells two templates apart.
        tail: What ends an entry, up to and with the quote that opens the next name.
        comma: Where in the tail the comma is.

    Args:
        between: The text from behind one name to the next.
        code: Where in it the dtype is.
        dims: Where the shape is, brackets included.
        begin: Where the first offset is.
        end: Where the second is.
    """

    def __init__(self, between: str, code: Span, dims: Span, begin: Span, end: Span) -> None:
        tail = between[between.rindex("}") :]
        self.tail = tail.encode()
        self.comma = tail.index(",")
        shape, offsets = _piece(between, *dims), _piece(between, begin[0], end[1])
        self._around_dims = between[shape[0] : dims[0] + 1], between[dims[1] - 1 : shape[1]]
        self._around_offsets = between[offsets[0] : begin[0]], between[end[1] : offsets[1]]
        # A text split at its quotes has names at every tenth piece, and other values at these.
        self._pieces = [between.count('"', 0, at) for at, _ in (code, shape, offsets)]
        values = code, shape, begin, end
        ordered = sorted(values)
        edges = [0, *chain.from_iterable(ordered), len(between)]
        self._row = [""]
        for first, last in zip(edges[::2], edges[1::2], strict=True):
            self._row += [between[first:last], ""]
        self._row.pop()
        self.style = self._around_dims, self._row
        self._places = [2 * ordered.index(value) + 2 for value in values]

    @classmethod
    def learn(cls, text: bytes, position: int) -> _Template | None:
        """From the entry behind the comma at `position`; None if it is not understood."""
        entry = _ENTRY(text, position, position + CHUNK)
        following = entry and _COMMA(text, entry.end())
        if entry is None or following is None or None in entry.groups():
            return None
        origin = entry.end("name")
        spans = [entry.span(field) for field in ("code", "dims", "begin", "end")]
        between = text[origin : following.end()].decode()
        return cls(between, *[(begin - origin, end - origin) for begin, end in spans])

    def kind_reader(self) -> _KindReader:
        """For the pieces with dtypes and shapes."""
        return _KindReader(*self._around_dims)

    def split(self, chunk: bytes, reader: _KindReader, expected: int) -> Batch | None:
        """Entries from behind the quote that opens a name to behind another such; None if unusual."""
        try:
            text = chunk.decode()
        except UnicodeDecodeError:
            return None
        escaped = "\\" in text
        if escaped:
            if _BACKSLASH in text or _QUOTE in text:
                return None
            # Now every quote begins or ends a string.
            text = text.replace("\\\\", _BACKSLASH).replace('\\"', _QUOTE)
        return self.columns(text, text.split('"'), reader, expected, escaped=escaped)

    def columns(
        self,
        text: str,
        pieces: list[str],
        reader: _KindReader,
        expected: int,
        *,
        escaped: bool = False,
    ) -> Batch | None:
        """What `split` gives for a text split at its quotes."""
        if len(pieces) % _PIECES != 1:
            return None
        raw = pieces[:-1:_PIECES]
        kinds = reader.columns(*(pieces[at::_PIECES] for at in self._pieces[:2]))
        joined = '","'.join(raw)
        if escaped:
            names = _unescape(joined.replace(_QUOTE, '\\"').replace(_BACKSLASH, "\\\\"))
        else:
            names = None if any(map(joined.__contains__, _CONTROLS)) else raw
        if kinds is None or names is None:
            return None
        return self._place(text, pieces, names, kinds, expected)

    def _place(
        self, text: str, pieces: list[str], names: list[str], kinds: Kinds, expected: int
    ) -> Batch | None:
        """The batch, if the text is what would be written for it."""
        raw = pieces[:-1:_PIECES]
        codes, dims, offsets = (pieces[at::_PIECES] for at in self._pieces)
        sizes = kinds.sizes
        if None not in sizes:
            # What a writer writes who places tensors in the order of the text.
            bounds: list[int] = list(accumulate(sizes, initial=expected))  # type: ignore[arg-type]
            digits = list(map(str, bounds))
            written = self._write(raw, codes, dims, digits[:-1], digits[1:])
            if written == text and bounds[-1] <= MAX_UINT:
                return Batch(names, kinds, bounds[:-1], bounds[1:], placed=True)
        pairs = _arrays(offsets, *self._around_offsets)
        if pairs is None or set(map(len, pairs)) != {2}:
            return None
        begins, ends = map(list, zip(*pairs))  # noqa: B905
        written = self._write(raw, codes, dims, map(str, begins), map(str, ends))
        return _anywhere(names, kinds, begins, ends) if written == text else None

    def _write(self, names: Sequence[str], *values: Iterable[str]) -> str:
        """The text of entries."""
        row = self._row * len(names)
        row[::_PIECES] = names
        for place, column in zip(self._places, values, strict=True):
            row[place::_PIECES] = column
        return "".join(row)


@cache
def _usual_template() -> _Template:
    """As the reference and most others write."""
    learnt = _Template.learn(b',"":{"dtype":"U8","shape":[],"data_offsets":[0,0]},"', 0)
    assert learnt is not None
    return learnt


def _piece(text: str, begin: int, end: int) -> Span:
    """What is around a place, from a quote to a quote."""
    return text.rindex('"', 0, begin) + 1, text.index('"', end)


def _arrays(texts: Sequence[str], before: str, after: str) -> list[list[int]] | None:
    """Arrays of at most 64 integers up to 2^64 - 1, the text of each between `before` and `after`.

    None if one is not. `before` ends with the opening bracket, `after` begins with the closing one,
    spaces aside.
    """
    joined = "\0".join(texts)
    if not joined.startswith(before) or not joined.endswith(after):
        return None
    inner = joined[len(before) : len(joined) - len(after)].replace(f"{after}\0{before}", "],[")
    # As many brackets as were just written: each text is one array, with no other in it.
    if inner.count("[") >= len(texts) or inner.encode().translate(None, _IN_ARRAYS):
        return None
    try:
        arrays: list[list[int]] = json.loads(f"[[{inner}]]")
    except ValueError:
        return None
    if max(map(len, texts)) < 20:  # the digits of 2^64
        return arrays
    most, rank = max(chain.from_iterable(arrays), default=0), max(map(len, arrays))
    return arrays if most <= MAX_UINT and rank <= MAX_RANK else None


def _numbers_in(text: bytes) -> int:
    """How many runs of digits there are that something follows."""
    return text.translate(_DIGITS).count(b"0 ")


def _numbers_of(batch: Batch) -> int:
    """How many numbers its entries have."""
    return sum(map(len, batch.kinds.shapes)) + 2 * len(batch.names)


def _unescape(joined: str) -> list[str] | None:
    """The names whose JSON strings have these contents, joined by `","`; None if one is no JSON string."""
    try:
        names: list[str] = json.loads(f'["{joined}"]')
    except ValueError:
        return None
    return None if "\\u" in joined and has_surrogates("".join(names)) else names


def _anywhere(names: list[str], kinds: Kinds, begins: list[int], ends: list[int]) -> Batch | None:
    """The batch, unless an offset is above 2^64 - 1."""
    if max(*begins, *ends) > MAX_UINT:
        return None
    if begins[1:] == ends[:-1]:
        begins[1:] = ends[:-1]  # one object for two equal numbers
    return Batch(names, kinds, begins, ends, placed=False)
