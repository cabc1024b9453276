"""Bulk parsing: a chunk of a header's JSON text -> columns of names, dtypes, shapes and offsets.

Why it exists: reading 100,000 entries value by value takes 1.3 s, this module takes 60 to 70 ms
(docs/adr/001). It tries three methods; each returns None for text that it does not understand.

1. Split and compare, 0.5 us per entry. A program writes a header, so the text between the values is the
   same in every entry. `_Template` learns that text from one entry. An entry has five strings, that is ten
   quotes: in a chunk split at its quotes, the names are at every tenth place, and so are dtypes, shapes and
   offsets. Each column is parsed by one call into C. Where each tensor begins at the end of the previous
   one, the offsets are computed from the sizes instead. Then the entries are written again, from the
   values and the template, and compared with the input. Equality proves the structure of the chunk.
2. The same after removing white space, for headers in which it differs between entries.
3. A regular expression, a few us per entry. It accepts the three fields in any order and with any white
   space, but no escapes in them.

`entries` reads everything else value by value and reports errors. This module accepts only text that
`entries` accepts too, with the same result, and it reports nothing.
"""

from __future__ import annotations

import json
from functools import cache
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from ..lazy import matcher
from .dtypes import DTYPES
from .rules import MAX_RANK, MAX_UINT, byte_count
from .strictjson import has_surrogates

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["BULK_SIZE", "BulkReader", "Columns"]

BULK_SIZE: Final = 1 << 17
"""Bytes of text parsed at a time: small enough for the processor's cache."""

_MAX_KINDS: Final = 1_000
"""Limit of the cache of kinds: a real header has a few dozen, a hostile one has a new kind per entry."""

_FEW: Final = 64
"""New kinds in a chunk up to which they are cached even if few of its entries share one."""

_W = r"[ \t\n\r]*"
_NUM = r"(?:0|[1-9][0-9]{0,19})"
_DIMS = rf"\[{_W}(?:{_NUM}{_W}(?:,{_W}{_NUM}{_W}){{0,{MAX_RANK - 1}}})?\]"
_ENTRY = matcher(
    (
        rf'{_W},{_W}"(?P<name>[^"\\\x00-\x1f]*(?:\\.[^"\\\x00-\x1f]*)*)"{_W}:{_W}\{{(?:{_W}"(?:'
        rf'dtype"{_W}:{_W}"(?P<code>[A-Z0-9_]+)"|'
        rf'shape"{_W}:{_W}(?P<dims>{_DIMS})|'
        rf'data_offsets"{_W}:{_W}\[{_W}(?P<begin>{_NUM}){_W},{_W}(?P<end>{_NUM}){_W}\])'
        rf"{_W}(?:,(?!{_W}\}})|(?=\}}))){{3}}\}}"
    ).encode()
)
"""A comma and an entry: three fields in any order. It also matches if one is repeated and one missing."""

_COMMA = matcher(rf'{_W},{_W}"'.encode())
_CONTROLS: Final = tuple(map(chr, range(32)))
_IN_ARRAYS: Final = b"0123456789,[] \t\n\r"
_CODES: Final = {code: code for code in DTYPES}  # one string for all tensors
_PIECES: Final = 10  # pieces per entry, if a text is split at its quotes: an entry has five strings
_BACKSLASH, _QUOTE = "\0", "\1"  # placeholders for an escaped backslash and an escaped quote

_SPACES: Final = b" \t\n\r"
_DIGITS: Final = bytes(ord("0" if chr(byte) in "0123456789" else " ") for byte in range(256))

Span: TypeAlias = "tuple[int, int]"


class Kinds(NamedTuple):
    """Dtypes and shapes of entries, as columns. A *kind* is a pair of dtype and shape.

    Attributes:
        dtypes: Codes.
        shapes: Elements along each axis.
        sizes: Bytes that dtype and shape need; None if they overflow or are not a whole number of bytes.
    """

    dtypes: Sequence[str]
    shapes: Sequence[tuple[int, ...]]
    sizes: Sequence[int | None]


class Columns(NamedTuple):
    """Consecutive entries of the text, as columns.

    Attributes:
        names: The tensors' names.
        kinds: Their dtypes, shapes and sizes.
        begins: First byte of each tensor's data.
        ends: One past its last byte.
        placed: Every tensor has the size that its kind needs and begins at the end of the previous one;
            the first begins at the expected offset.
    """

    names: list[str]
    kinds: Kinds
    begins: Sequence[int]
    ends: Sequence[int]
    placed: bool


class BulkReader:
    """Reads many consecutive entries of a text at a time.

    Attributes:
        first: Position of the first name that the last `take` returned.
        position: End of the last entry that it returned.
    """

    def __init__(self, text: bytes) -> None:
        self._text = text
        self._template = _usual_template()
        self._scanned_kinds = _KindReader("[", "]")
        self._ragged = False  # white space differed from entry to entry in the last chunk
        self._learn_from = 0
        self._scan_until = 0
        self._exact_until = 0
        self.first = 0
        self.position = 0

    def take(self, position: int, expected: int) -> Columns | None:
        """The entries after the comma at `position`; None if the next one must be read value by value.

        Args:
            position: End of the previous entry, where a comma is.
            expected: Where the next tensor's data should begin: the end of the previous tensor.
        """
        if position < self._exact_until:
            return None
        batch = None
        if position >= self._scan_until:
            batch = self._split(position, expected)
        return batch or self._scan(position)

    def reject(self) -> None:
        """Return None for the entries of the last `take`, so that they are read value by value."""
        self._exact_until = self.position

    def _split(self, position: int, expected: int) -> Columns | None:
        """Methods 1 and 2. If both fail, the next chunk of text goes to method 3 at once."""
        batch = None
        if not self._ragged:
            batch = self._split_by_template(position, expected)
            if batch is None and position >= self._learn_from and self._learn(self._text, position):
                # Learn once per chunk at most: each attempt may look at a whole chunk.
                self._learn_from = position + BULK_SIZE
                batch = self._split_by_template(position, expected)
        if batch is None:
            batch = self._split_ragged(position, expected)
            self._ragged = batch is not None
        if batch is None:
            self._scan_until = position + BULK_SIZE
        return batch

    def _learn(self, text: bytes, position: int) -> bool:
        """Switch to the template of the entry after the comma at `position`; False if it is the same."""
        learnt = _Template.learn(text, position)
        if learnt is None or learnt.style == self._template.style:
            return False
        self._template = learnt
        return True

    def _split_by_template(self, position: int, expected: int) -> Columns | None:
        text, template = self._text, self._template
        opening = _COMMA(text, position)
        if opening is None:
            return None
        begin, tail = opening.end(), template.tail
        self.first = begin - 1
        last = text.rfind(tail, begin, begin + BULK_SIZE)
        if last < 0:
            return None
        if begin + BULK_SIZE >= len(text):
            # No comma follows the last entry of the header. The number of quotes tells that it is an
            # entry; the comparison proves it.
            rest = text[begin:].rstrip(_SPACES)
            if rest.endswith(b"}}") and rest.count(b'"', last - begin) == _PIECES:
                self.position = begin + len(rest) - 1
                return template.split(rest[:-1] + tail[1:], expected)
        self.position = last + template.comma
        return template.split(text[begin : last + len(tail)], expected)

    def _split_ragged(self, position: int, expected: int) -> Columns | None:
        """Method 2: remove the white space outside strings, then split and compare."""
        region = self._text[position : position + BULK_SIZE]
        region = region[: region.rfind(b'"') + 1]
        if b"\\" in region:
            return None
        try:
            pieces = region.decode().split('"')
        except UnicodeDecodeError:
            return None
        # Ten pieces per entry. The last piece of all, after the region's last quote, belongs to none.
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
        batch = self._template.columns('"'.join(pieces), pieces, expected)
        # Removing white space must not join numbers (`1 2` is not 12): their count must be unchanged.
        if batch is None or _numbers_of(batch) != _numbers_in(ragged):
            return None
        following = '"'.join((last[last.rindex(",") :], *rest))
        self.first = position + region.index(b'"')
        self.position = position + len(region) - len(following.encode())
        return batch

    def _scan(self, position: int) -> Columns | None:
        """Method 3: match entries by the regular expression, up to the first that does not match."""
        text, limit = self._text, position + BULK_SIZE
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

    def _from_rows(self, rows: Sequence[tuple[bytes | None, ...]]) -> Columns | None:
        """The columns of matches of `_ENTRY`; None if a field is missing or a value is out of range."""
        columns = list(zip(*rows))  # noqa: B905
        if any(None in column for column in columns):
            return None
        try:  # `_ENTRY` matches no line feed within a value, so it can separate values
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
    """Parses columns of dtypes and shapes, with a cache: a real header repeats a few dozen kinds.

    Any thread may use it. What the text of a kind means depends on nothing else, so that the cache of the
    usual template serves all headers of a process: thousands of adapters have the same shapes.

    Args:
        before: Text that precedes the first dimension in every piece with a shape.
        after: Text that follows the last dimension.
    """

    def __init__(self, before: str, after: str) -> None:
        self._before = before
        self._after = after
        # Most chunks have one dtype: then shapes are looked up without making and hashing pairs.
        self._known: dict[str | None, dict[Any, tuple[Any, ...]]] = {}
        self._count = 0

    def columns(self, codes: Sequence[str], dims: Sequence[str]) -> Kinds | None:
        """Parsed dtypes, shapes and sizes; None if a dtype is unknown or a shape is invalid."""
        keys: Sequence[Any] = dims
        only: str | None = codes[0]
        if codes.count(only) < len(codes):
            keys, only = list(zip(codes, dims)), None  # noqa: B905
        known = self._known.get(only, {})
        try:
            kinds = list(map(known.__getitem__, keys))
        except KeyError:
            new = list(set(keys).difference(known))
            if 2 * len(new) > len(keys) and len(new) > _FEW:  # caching would not pay
                return self._read(codes, dims)
            self._count += len(new)
            if self._count > _MAX_KINDS:  # another thread may go on with the old ones
                known, new = {}, list(set(keys))
                self._known, self._count = {}, len(new)
            pairs = zip(*new) if only is None else ([only] * len(new), new)  # noqa: B905
            columns = self._read(*pairs)
            if columns is None:
                return None
            read = dict(zip(new, zip(*columns)))  # noqa: B905
            self._known.setdefault(only, known).update(read)
            kinds = list(map({**known, **read}.__getitem__, keys))
        return Kinds._make(zip(*kinds))  # noqa: B905

    def _read(self, codes: Sequence[str], dims: Sequence[str]) -> Kinds | None:
        arrays = _arrays(dims, self._before, self._after)
        if arrays is None or not _CODES.keys() >= set(codes):
            return None
        dtypes = list(map(_CODES.__getitem__, codes))
        shapes: list[tuple[int, ...]] = list(map(tuple, arrays))
        return Kinds(dtypes, shapes, list(map(byte_count, dtypes, shapes)))


class _Template:
    """The text between the values of a header's entries, the same in all of them.

    Attributes:
        style: All text between values; two templates are equal if their styles are.
        tail: Text from the closing brace of an entry to the quote that opens the next name, inclusive.
        comma: Position of the comma in the tail.

    Args:
        between: An entry's text from the end of its name to the beginning of the next name.
        code: Span of the dtype in `between`.
        dims: Span of the shape, brackets included.
        begin: Span of the first offset.
        end: Span of the second offset.
    """

    def __init__(self, between: str, code: Span, dims: Span, begin: Span, end: Span) -> None:
        tail = between[between.rindex("}") :]
        self.tail = tail.encode()
        self.comma = tail.index(",")
        shape, offsets = _piece(between, *dims), _piece(between, begin[0], end[1])
        self._around_dims = between[shape[0] : dims[0] + 1], between[dims[1] - 1 : shape[1]]
        self._kinds = _KindReader(*self._around_dims)
        self._around_offsets = between[offsets[0] : begin[0]], between[end[1] : offsets[1]]
        # Which of an entry's ten pieces hold dtype, shape and offsets; piece 0 is the name.
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
        """The template of the entry after the comma at `position`; None if `_ENTRY` does not match it."""
        entry = _ENTRY(text, position, position + BULK_SIZE)
        following = entry and _COMMA(text, entry.end())
        if entry is None or following is None or None in entry.groups():
            return None
        origin = entry.end("name")
        spans = [entry.span(field) for field in ("code", "dims", "begin", "end")]
        between = text[origin : following.end()].decode()
        return cls(between, *[(begin - origin, end - origin) for begin, end in spans])

    def split(self, chunk: bytes, expected: int) -> Columns | None:
        """The entries of `chunk`; None if they do not follow this template.

        Args:
            chunk: Text from one entry's name to another's; the opening quote of the first name is not
                part of it, that of the second is.
            expected: Where the first tensor's data should begin.
        """
        try:
            text = chunk.decode()
        except UnicodeDecodeError:
            return None
        escaped = "\\" in text
        if escaped:
            if _BACKSLASH in text or _QUOTE in text:
                return None
            # After this every quote opens or closes a string.
            text = text.replace("\\\\", _BACKSLASH).replace('\\"', _QUOTE)
        return self.columns(text, text.split('"'), expected, escaped=escaped)

    def columns(
        self,
        text: str,
        pieces: list[str],
        expected: int,
        *,
        escaped: bool = False,
    ) -> Columns | None:
        """`split` for a text that is decoded and split at its quotes already."""
        if len(pieces) % _PIECES != 1:
            return None
        raw = pieces[:-1:_PIECES]
        kinds = self._kinds.columns(*(pieces[at::_PIECES] for at in self._pieces[:2]))
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
    ) -> Columns | None:
        """Find the offsets, write the entries again and compare; None if the text differs."""
        raw = pieces[:-1:_PIECES]
        codes, dims, offsets = (pieces[at::_PIECES] for at in self._pieces)
        if (bounds := _bounds(kinds.sizes, expected)) is not None:
            # Most writers place tensors in the order of the header: sizes then determine the offsets.
            digits = list(map(str, bounds))
            written = self._write(raw, codes, dims, digits[:-1], digits[1:])
            if written == text:
                return Columns(names, kinds, bounds[:-1], bounds[1:], placed=True)
        pairs = _arrays(offsets, *self._around_offsets)
        if pairs is None or set(map(len, pairs)) != {2}:
            return None
        begins, ends = map(list, zip(*pairs))  # noqa: B905
        written = self._write(raw, codes, dims, map(str, begins), map(str, ends))
        return _anywhere(names, kinds, begins, ends) if written == text else None

    def _write(self, names: Sequence[str], *values: Iterable[str]) -> str:
        """The text of entries with these names and values (dtypes, shapes, begins, ends)."""
        row = self._row * len(names)
        row[::_PIECES] = names
        for place, column in zip(self._places, values, strict=True):
            row[place::_PIECES] = column
        return "".join(row)


@cache
def _usual_template() -> _Template:
    """The template of the reference's writer and of most others."""
    between = '":{"dtype":"U8","shape":[],"data_offsets":[1,2]},"'
    begins = [(value, between.index(value)) for value in ("U8", "[]", "1", "2")]
    return _Template(between, *[(begin, begin + len(value)) for value, begin in begins])


def _bounds(sizes: Sequence[int | None], expected: int) -> list[int] | None:
    """Begins of tensors that follow each other, and the last end; None if that is not possible."""
    try:
        bounds: list[int] = list(accumulate(sizes, initial=expected))  # type: ignore[arg-type]
    except TypeError:  # a size is None; to look for it before takes as long as the sum
        return None
    return bounds if bounds[-1] <= MAX_UINT else None


def _piece(text: str, begin: int, end: int) -> Span:
    """The span between the two quotes that enclose a span."""
    return text.rindex('"', 0, begin) + 1, text.index('"', end)


def _arrays(texts: Sequence[str], before: str, after: str) -> list[list[int]] | None:
    """Parse one array of integers per text; None if a text is not `before`, an array, `after`.

    Each array has at most `MAX_RANK` integers of at most 2^64-1. `before` ends with the opening bracket
    and `after` begins with the closing one, white space aside. All arrays are parsed by one `json.loads`.
    """
    joined = "\0".join(texts)
    if not joined.startswith(before) or not joined.endswith(after):
        return None
    inner = joined[len(before) : len(joined) - len(after)].replace(f"{after}\0{before}", "],[")
    # Only the brackets just inserted may remain: then each text is one array, without a nested one.
    if inner.count("[") >= len(texts) or inner.encode().translate(None, _IN_ARRAYS):
        return None
    try:
        arrays: list[list[int]] = json.loads(f"[[{inner}]]")
    except ValueError:
        return None
    if max(map(len, texts)) < 20:  # too short for 2^64 (20 digits), and for more than 64 dimensions
        return arrays
    most, rank = max(chain.from_iterable(arrays), default=0), max(map(len, arrays))
    return arrays if most <= MAX_UINT and rank <= MAX_RANK else None


def _numbers_in(text: bytes) -> int:
    """Number of runs of digits in `text`, which does not end with a digit."""
    return text.translate(_DIGITS).count(b"0 ")


def _numbers_of(batch: Columns) -> int:
    """Number of dimensions and offsets of all entries."""
    return sum(map(len, batch.kinds.shapes)) + 2 * len(batch.names)


def _unescape(joined: str) -> list[str] | None:
    """Decode the contents of JSON strings joined by `","`; None if one of them is not a JSON string."""
    try:
        names: list[str] = json.loads(f'["{joined}"]')
    except ValueError:
        return None
    return None if "\\u" in joined and has_surrogates("".join(names)) else names


def _anywhere(names: list[str], kinds: Kinds, begins: list[int], ends: list[int]) -> Columns | None:
    """Columns with offsets as they are in the text; None if one exceeds 2^64-1."""
    if max(*begins, *ends) > MAX_UINT:
        return None
    if begins[1:] == ends[:-1]:
        begins[1:] = ends[:-1]  # share the int objects: saves memory
    return Columns(names, kinds, begins, ends, placed=False)
