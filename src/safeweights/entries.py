"""The JSON text of a header -> its entries, not yet checked against each other.

Entries are read in two ways. A header is written by a program, so what stands between the values of
one entry stands between those of all the others: `Template` learns it from the first entry, and
with it takes chunks of text apart by `str.split`, a tenth of a microsecond a step. A chunk that does
not fit is read entry by entry through `strictjson`, which accepts all that the rules allow and finds
the words for what they do not. Both ways give the same result for every input
(tests/core/test_entries.py compares them), and hold no more than a chunk beside it.
"""

from __future__ import annotations

import re
from itertools import accumulate, pairwise, repeat
from operator import itemgetter, sub
from typing import TYPE_CHECKING, Final, NamedTuple

from .dtypes import DTYPES
from .errors import quote
from .rules import (
    MAX_EXTRA,
    MAX_METADATA,
    MAX_RANK,
    METADATA_KEY,
    Report,
    Stop,
    TensorInfo,
    byte_count,
)
from .strictjson import MAX_UINT, JSONError, Reader

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["CHUNK", "Entries"]

CHUNK: Final = 1 << 17
"""Bytes of text taken at once; larger chunks fall out of the processor's cache."""

# The value of an entry in its usual form: the three fields, any order and white space, no other.
_W = r"[ \t\n\r]*"
_NUM = r"(?:0|[1-9][0-9]{0,19})"
_DIMS = rf"\[{_W}(?:{_NUM}{_W}(?:,{_W}{_NUM}{_W}){{0,{MAX_RANK - 1}}})?\]"
_ENTRY = re.compile(
    (
        rf'\{{(?:{_W}"(?:'
        rf'dtype"{_W}:{_W}"(?P<code>[A-Z0-9_]+)"|'
        rf'shape"{_W}:{_W}(?P<dims>{_DIMS})|'
        rf'data_offsets"{_W}:{_W}\[{_W}(?P<begin>{_NUM}){_W},{_W}(?P<end>{_NUM}){_W}\])'
        rf"{_W}(?:,(?!{_W}\}})|(?=\}}))){{3}}\}}"
    ).encode()
).match
_KIND = re.compile(rf'([A-Z0-9_]+)"{_W},{_W}"shape"{_W}:{_W}({_DIMS})').fullmatch


def _shape(dims: str) -> tuple[int, ...]:
    inner = dims[1:-1].strip()
    return tuple(map(int, inner.split(","))) if inner else ()


class _Kind(NamedTuple):
    """What tensors of one dtype and shape have in common; nbytes None where it has no value."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int | None


class _Template(NamedTuple):
    """What stands between the values of a header's entries.

    An entry and the quote of the next one read ``name SEP left MID right TAIL "``; left and right
    are dtype-and-shape (the kind) and the two offsets, in either order.
    """

    sep: str
    mid: str
    comma: str
    tail: str
    kind_first: bool

    @classmethod
    def learn(cls, text: bytes, name_end: int, entry: re.Match[bytes]) -> _Template | None:
        """From an entry whose name's closing quote is at `name_end`, followed by another entry."""
        code, dims_end = entry.start("code"), entry.end("dims")
        begin, end = entry.start("begin"), entry.end("end")
        following = text.find(b'"', entry.end(), entry.end() + 1000)
        kind = text[code:dims_end].decode()
        if following < 0 or not _KIND(kind):
            return None
        kind_first = code < begin
        left, left_end = (code, dims_end) if kind_first else (begin, end)
        right, right_end = (begin, end) if kind_first else (code, dims_end)
        spans = (
            (name_end, left),
            (left_end, right),
            (entry.end("begin"), entry.start("end")),
            (right_end, following),
        )
        sep, mid, comma, tail = (text[a:b].decode() for a, b in spans)
        return cls(sep, mid, comma, tail, kind_first)


class _RepeatedNameError(Exception):
    """A chunk holds a name met before, or the metadata's: all has to be read exactly."""


class Entries:
    """The entries of a header's text.

    Attributes:
        tensors: Name -> `TensorInfo` in the order of the text.
        metadata: The metadata, or None.
        sized: The data_offsets of every tensor span exactly what its dtype and shape need.
        in_order: Each tensor begins where the one before it in the text ends, the first at 0.
        end: Where the last one in the text ends.

    Args:
        text: The JSON text of the header.
        report: Receives what is wrong.
        bulk: False reads every value through `strictjson`.
    """

    def __init__(self, text: bytes, report: Report, *, bulk: bool = True) -> None:
        self._text = text
        self._report = report
        self._bulk = bulk
        try:
            try:
                self._reset()
                self._read()
            except _RepeatedNameError:
                self._reset(chunks=False)
                self._read()
        except JSONError as error:
            rule = "extra-limit" if error.limit else "json"
            report(rule, f"invalid JSON in header: {error}", at=error.position)
            raise Stop from error

    def _reset(self, *, chunks: bool = True) -> None:
        self.tensors: dict[str, TensorInfo] = {}
        self.metadata: dict[str, str] | None = None
        self.sized = True
        self.in_order = True
        self.end = 0
        self._reader = Reader(self._text)
        self._template: _Template | None = None
        self._exact_until = 0 if chunks else len(self._text)
        self._kinds: dict[str, _Kind] = {}
        self._extra = 0
        self._seen_metadata = False

    def _read(self) -> None:
        reader, report = self._reader, self._report
        if report.strict and not reader.text.startswith(b"{"):
            report("strict-space", "the header does not begin with `{`", at=0)
        for name, at in reader.members("an object of tensors"):
            if name == METADATA_KEY:
                self._read_metadata(at)
            else:
                self._read_tensor(name, at)
            if self._template and reader.position >= self._exact_until and reader.peek() == b",":
                self._read_bulk(self._template)
        begin = reader.position
        reader.end()
        if report.strict and reader.text[begin:].strip(b" "):
            report("strict-space", "the header is padded with other than spaces", at=begin)

    def _read_bulk(self, template: _Template) -> None:
        """From the comma after an entry, read all the chunks that fit the template."""
        reader = self._reader
        text = reader.text
        boundary = f'{template.tail}"'.encode()
        comma = reader.position
        reader.position += 1
        begin = reader.position + 1 if reader.peek() == b'"' else len(text)
        while True:
            end = text.rfind(boundary, begin, begin + CHUNK) + len(boundary)
            if end < begin or not self._add_chunk(text[begin:end], template):
                break
            comma = end - len(boundary) + template.tail.index(",")
            begin = end
        reader.position = comma
        self._exact_until = end if end > begin else begin + CHUNK

    def _add_chunk(self, chunk: bytes, template: _Template) -> bool:
        """Read entries from within a name's opening quote to within another's; False if unusual."""
        try:
            first, *pieces = chunk.decode().split(template.sep)
        except UnicodeDecodeError:
            return False
        if not pieces:
            return False
        # Each piece is: left MID right TAIL " name-of-the-next.
        bodies, _, following = zip(*[piece.rpartition('"') for piece in pieces])  # noqa: B905
        lefts, _, rights = zip(*[body.partition(template.mid) for body in bodies])  # noqa: B905
        kinds, offsets = (lefts, rights) if template.kind_first else (rights, lefts)
        names = self._names(first, following)
        if names is None or not self._learn_kinds(set(kinds).difference(self._kinds), template):
            return False
        known = self._kinds
        return self._add(names, [known[kind] for kind in kinds], offsets, template)

    def _names(self, first: str, following: Sequence[str]) -> Sequence[str] | None:
        """The names of a chunk's entries; None where one is not a JSON string."""
        *rest, last = following
        names = [first, *rest]
        joined = "".join(names)
        if last or '"' in first or not joined.isprintable():
            return None
        if "\\" in joined:
            try:
                names = [Reader(f'"{name}"'.encode()).string() for name in names]
            except JSONError:
                return None
        return names

    def _learn_kinds(self, texts: set[str], template: _Template) -> bool:
        for text in texts:
            match = _KIND(text if template.kind_first else text.removesuffix(template.tail))
            if match is None or match[1] not in DTYPES:
                return False
            if not (template.kind_first or text.endswith(template.tail)):
                return False
            dtype, shape = DTYPES[match[1]].code, _shape(match[2])
            if any(dim > MAX_UINT for dim in shape):
                return False
            self._kinds[text] = _Kind(dtype, shape, byte_count(dtype, shape))
        return True

    def _add(
        self, names: Sequence[str], kinds: list[_Kind], offsets: Sequence[str], template: _Template
    ) -> bool:
        comma, tail = template.comma, template.tail if template.kind_first else ""
        if None in (sizes := list(map(itemgetter(2), kinds))):
            return False
        # What a writer writes who places tensors in the order of the text.
        bounds = list(accumulate(sizes, initial=self.end))
        digits = list(map(str, bounds))
        if offsets == tuple([f"{a}{comma}{b}{tail}" for a, b in pairwise(digits)]):
            begins, ends = bounds, bounds[1:]
        else:
            match = re.compile(f"({_NUM}){re.escape(comma)}({_NUM}){re.escape(tail)}").fullmatch
            pairs = [found.groups() for text in offsets if (found := match(text))]
            begins = [int(begin) for begin, _ in pairs]
            ends = [int(end) for _, end in pairs]
            if len(pairs) < len(names) or max(*begins, *ends) > MAX_UINT:
                return False
            self.sized = self.sized and sizes == list(map(sub, ends, begins))
            self.in_order = self.in_order and begins == [self.end, *ends[:-1]]
        self.end = ends[-1]
        # TensorInfo(...) in a loop costs three times this.
        fields = zip(map(itemgetter(0), kinds), map(itemgetter(1), kinds), begins, ends)  # noqa: B905
        infos = map(tuple.__new__, repeat(TensorInfo), fields)
        count = len(self.tensors) + len(names)
        self.tensors.update(zip(names, infos))  # noqa: B905
        if len(self.tensors) != count or METADATA_KEY in self.tensors:
            raise _RepeatedNameError
        return True

    def _read_tensor(self, name: str, at: int) -> None:
        reader, report = self._reader, self._report
        duplicate = name in self.tensors
        if duplicate:
            report("duplicate-key", f"duplicate key {quote(name)} in header", tensor=name, at=at)
        if reader.peek() != b"{":
            message = (
                f"invalid JSON in header: tensor {quote(name)} should be an object of dtype, shape "
                f"and data_offsets, found {reader.kind()}"
            )
            report("entry", message, tensor=name, at=reader.position)
            self._skip_extra(1)
            return
        info = (self._bulk and self._read_usual(at)) or self._read_info(name)
        if info is not None and not duplicate:
            self.tensors[name] = info
            self.in_order = self.in_order and info.begin == self.end
            self.end = info.end
            self.sized = self.sized and byte_count(info.dtype, info.shape) == info.nbytes

    def _read_usual(self, at: int) -> TensorInfo | None:
        """The value of an entry whose name is at `at`, if it has the usual form; else None."""
        reader = self._reader
        match = _ENTRY(reader.text, reader.position)
        if match is None or None in (found := match.group("code", "dims", "begin", "end")):
            return None
        code, dims, begin, end = (text.decode() for text in found)
        info = TensorInfo(code, _shape(dims), int(begin), int(end))
        if code not in DTYPES or max(*info.shape, info.begin, info.end) > MAX_UINT:
            return None
        if self._template is None:
            name_end = reader.text.rindex(b'"', at, reader.position)
            self._template = _Template.learn(reader.text, name_end, match)
        reader.position = match.end()
        return info

    def _read_info(self, name: str) -> TensorInfo | None:
        reader, report = self._reader, self._report
        begin = reader.position
        seen: set[str] = set()
        dtype: str | None = None
        shape: list[int] | None = None
        offsets: list[int] | None = None
        for key, at in reader.members():
            if key in seen:
                message = (
                    f"invalid JSON in header: duplicate field {quote(key)} of tensor {quote(name)}"
                )
                report("duplicate-key", message, tensor=name, at=at)
            seen.add(key)
            if key == "dtype":
                dtype = self._read_dtype(name)
            elif key == "shape":
                shape = self._read_integers(name, key, MAX_RANK, "rank")
            elif key == "data_offsets":
                offsets = self._read_integers(name, key, 2, "entry")
            else:
                self._read_extra(name, key, at)
        for field in ("dtype", "shape", "data_offsets"):
            if field not in seen:
                message = f"invalid JSON in header: missing field `{field}` of tensor {quote(name)}"
                report("entry", message, tensor=name, at=begin)
        if dtype is None or shape is None or offsets is None:
            return None
        return TensorInfo(dtype, tuple(shape), offsets[0], offsets[1])

    def _read_dtype(self, name: str) -> str | None:
        reader = self._reader
        if reader.peek() != b'"':
            self._wrong_type(name, "dtype should be a string")
            return None
        at = reader.position
        code = reader.string()
        if code in DTYPES:
            return DTYPES[code].code
        message = (
            f"invalid JSON in header: unknown variant {quote(code)} as dtype of tensor "
            f"{quote(name)}, expected one of {', '.join(DTYPES)}"
        )
        self._report("dtype", message, tensor=name, at=at)
        return None

    def _read_integers(self, name: str, field: str, most: int, rule: str) -> list[int] | None:
        """The array of `field`, of at most `most` integers; exactly two for data_offsets."""
        reader = self._reader
        if reader.peek() != b"[":
            self._wrong_type(name, f"{field} should be an array")
            return None
        begin = reader.position
        values: list[int] = []
        try:
            for value in reader.integers():
                values.append(value)
                if len(values) > most:
                    break
        except JSONError as error:
            rule, problem, at = "integer", str(error), error.position
        else:
            if len(values) <= most and (field == "shape" or len(values) == most):
                return values
            at = begin
            wanted = f"at most {most} dimensions" if field == "shape" else f"{most} integers"
            problem = f"expected {wanted}, found {'more' if len(values) > most else len(values)}"
        message = f"invalid JSON in header: {field} of tensor {quote(name)}: {problem}"
        try:
            reader.position = begin
            self._skip_extra(2)
        except JSONError as syntax:
            if syntax.limit:  # else the array is not JSON, which outranks what it holds
                self._report(rule, message, tensor=name, at=at)
            raise
        self._report(rule, message, tensor=name, at=at)
        return None

    def _wrong_type(self, name: str, expected: str) -> None:
        reader = self._reader
        message = (
            f"invalid JSON in header: of tensor {quote(name)}, {expected}, found {reader.kind()}"
        )
        self._report("entry", message, tensor=name, at=reader.position)
        self._skip_extra(2)

    def _read_extra(self, name: str, key: str, at: int) -> None:
        if self._report.strict:
            message = f"unknown field {quote(key)} of tensor {quote(name)}"
            self._report("strict-extra", message, tensor=name, at=at)
        self._extra += len(key)
        self._skip_extra(2)

    def _skip_extra(self, depth: int) -> None:
        """Check and drop a value nobody asked for, within the bound on all of them together."""
        reader = self._reader
        reader.peek()
        begin = reader.position
        reader.skip(depth, MAX_EXTRA - self._extra)
        self._extra += reader.position - begin

    def _read_metadata(self, at: int) -> None:
        reader, report = self._reader, self._report
        if self._seen_metadata:
            report(
                "duplicate-key", f"invalid JSON in header: duplicate field `{METADATA_KEY}`", at=at
            )
        self._seen_metadata = True
        if reader.kind() == "null":
            self._skip_extra(1)
            return
        metadata: dict[str, str] = {}
        for key, key_at in reader.members("an object of strings as `__metadata__`"):
            if key in metadata:
                report(
                    "duplicate-key", f"duplicate key {quote(key)} in `{METADATA_KEY}`", at=key_at
                )
            if len(metadata) >= MAX_METADATA:
                report(
                    "metadata-limit", f"`{METADATA_KEY}` has over {MAX_METADATA} keys", at=key_at
                )
                raise Stop
            if reader.peek() == b'"':
                metadata[key] = reader.string()
                continue
            message = (
                f"invalid JSON in header: `{METADATA_KEY}` maps strings to strings, "
                f"found {reader.kind()} for {quote(key)}"
            )
            report("metadata", message, at=reader.position)
            self._skip_extra(2)
        self.metadata = metadata
