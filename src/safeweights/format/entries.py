"""The JSON text of a header -> its entries. `header` then checks the entries against each other.

There are two readers. `bulk` reads many entries at a time, if they are written as programs write them
(0.5 us per entry). This module reads the others value by value through `strictjson` (13 us per entry):
it accepts everything that the rules allow and reports everything else with its position. Both give the
same result for every input (tests/format/test_entries.py compares them), and need memory for one chunk
besides the result. Because the second reader is slow, the text that needs it is limited: rules
metadata-limit and extra-limit.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from itertools import repeat
from operator import sub
from typing import TYPE_CHECKING

from ..errors import quote
from .bulk import BULK_SIZE, BulkReader
from .dtypes import DTYPES
from .rules import (
    MAX_EXTRA,
    MAX_EXTRA_FIELDS,
    MAX_METADATA,
    MAX_RANK,
    METADATA_KEY,
    Problems,
    Stop,
    TensorInfo,
    byte_count,
)
from .strictjson import JSONError, Reader

if TYPE_CHECKING:
    from collections.abc import Collection

    from .bulk import Columns

__all__ = ["Entries"]


class Entries:
    """The entries of a header's text.

    Attributes:
        tensors: Name -> `TensorInfo` in the order of the text.
        metadata: The value of `__metadata__`, or None.
        sized: The data_offsets of every tensor span exactly the bytes that its dtype and shape need.
        in_order: The first tensor in the text begins at 0, each other one at the end of the previous one.
        end: End of the last tensor in the text.
        whole: Every entry could be read; False if `tensors` lacks some.
        text: The text.

    Args:
        text: The JSON text of the header.
        report: Receives the problems.
        bulk: False reads every value through `strictjson`.

    Raises:
        FormatError: The first problem, unless `report` collects them.
        Stop: The rest of the text cannot be read, and `report` collects problems.
    """

    def __init__(self, text: bytes, report: Problems, *, bulk: bool = True) -> None:
        self.tensors: dict[str, TensorInfo] = {}
        self.metadata: dict[str, str] | None = None
        self.sized = True
        self.in_order = True
        self.end = 0
        self.whole = True
        self.text = text
        self._report = report
        self._reader = Reader(text)
        self._bulk = BulkReader(text) if bulk else None
        self._extra = 0
        self._extra_fields = 0
        self._seen_metadata = False
        self._refused: set[str] = set()  # names of entries that could not be read
        # One entry per chunk of text: (number of tensors before it, its position). With these, `positions`
        # finds an entry without keeping a position for each of a million tensors.
        self._marks: list[tuple[int, int]] = []
        self._next_mark = 0
        try:
            self._read()
        except JSONError as error:
            rule = {"syntax": "json", "limit": "extra-limit"}.get(error.kind, error.kind)
            report(rule, f"invalid JSON in header: {error}", at=error.position)
            raise Stop from error

    def positions(self, names: Collection[str]) -> dict[str, int]:
        """Name -> position of the tensor's entry in the text, for error messages.

        Cost: one pass over all names, and reading the chunks with these entries value by value.
        """
        ordinals = [number for number, name in enumerate(self.tensors) if name in names]
        size = len(self.text)
        marks = [*self._marks, (0, size)]
        found: dict[str, int] = {}
        for index in sorted({bisect_right(self._marks, (n, size)) for n in ordinals}):
            reader = Reader(self.text, marks[index - 1][1], unique=False)  # checked before
            for name, at in reader.more_members():
                if at >= marks[index][1]:
                    break
                if name in names:
                    found.setdefault(name, at)
                reader.skip(1)
        return found

    def _read(self) -> None:
        reader, report = self._reader, self._report
        if report.strict and not self.text.startswith(b"{"):
            report("strict-space", "white space precedes the `{` of the header", at=0)
        for name, at in reader.members("an object of tensors"):
            if name == METADATA_KEY:
                self._read_metadata(at)
                self._next_mark = at
            else:
                self._mark(at)
                self._read_tensor(name, at)
            if self._bulk is not None:
                self._read_bulk(self._bulk)
        begin = reader.position
        reader.end()
        if report.strict and self.text[begin:].strip(b" "):
            report("strict-space", "the header is not padded with spaces only", at=begin)

    def _mark(self, position: int) -> None:
        if position >= self._next_mark:
            self._marks.append((len(self.tensors), position))
            self._next_mark = position + BULK_SIZE

    def _read_bulk(self, bulk: BulkReader) -> None:
        """After an entry, read as many of the next ones as possible in bulk."""
        reader = self._reader
        while reader.peek() == b"," and (columns := bulk.take(reader.position, self.end)):
            self._mark(bulk.first)
            if not self._add(columns):
                bulk.reject()
                return
            reader.position = bulk.position

    def _add(self, columns: Columns) -> bool:
        """Add entries; False, without effect, if a name is a duplicate or `__metadata__`."""
        names, (dtypes, shapes, sizes), begins, ends, placed = columns
        tensors, before = self.tensors, len(self.tensors)
        # tuple.__new__ and setdefault through map() take a third of the time of TensorInfo(...) in a loop.
        # setdefault keeps an existing entry: a length that is too small shows a duplicate.
        fields = zip(dtypes, shapes, begins, ends)  # noqa: B905
        infos = map(tuple.__new__, repeat(TensorInfo), fields)
        deque(map(tensors.setdefault, names, infos), maxlen=0)
        known = len(tensors) < before + len(names) or not self._refused.isdisjoint(names)
        if known or METADATA_KEY in tensors:
            while len(tensors) > before:
                tensors.popitem()
            return False
        if not placed:
            self.sized = self.sized and list(sizes) == list(map(sub, ends, begins))
            self.in_order = self.in_order and begins == [self.end, *ends[:-1]]
        self.end = ends[-1]
        return True

    def _read_tensor(self, name: str, at: int) -> None:
        reader, report = self._reader, self._report
        duplicate = name in self.tensors or name in self._refused
        if duplicate:
            report("duplicate-key", f"duplicate key {quote(name)} in header", tensor=name, at=at)
        if reader.peek() != b"{":
            message = (
                f"the entry of tensor {quote(name)} must be an object with dtype, shape and "
                f"data_offsets, found {reader.kind()}"
            )
            self._refuse("entry", message, name, 1)
            self.whole = False
            self._refused.add(name)
            return
        begin = reader.position
        info = self._read_info(name)
        if self.text.find(b"\\", begin, reader.position) >= 0:
            self._charge(begin)
        if info is None:
            self.whole = False
            self._refused.add(name)
        elif not duplicate:
            self.tensors[name] = info
            self.in_order = self.in_order and info.begin == self.end
            self.end = info.end
            self.sized = self.sized and byte_count(info.dtype, info.shape) == info.nbytes

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
            self._wrong_type(name, "dtype", "a string")
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
        """The array of `field`: at most `most` integers for shape, exactly as many for data_offsets."""
        reader = self._reader
        if reader.peek() != b"[":
            self._wrong_type(name, field, "an array")
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
        reader.position = begin
        self._refuse(rule, f"{field} of tensor {quote(name)}: {problem}", name, 2, at)
        return None

    def _wrong_type(self, name: str, field: str, expected: str) -> None:
        message = f"{field} of tensor {quote(name)} must be {expected}, found {self._reader.kind()}"
        self._refuse("entry", message, name, 2)

    def _refuse(
        self, rule: str, message: str, tensor: str | None, depth: int, at: int | None = None
    ) -> None:
        """Skip the next value and report it under `rule`; if it is not JSON, report that instead."""
        reader = self._reader
        reader.peek()
        at = reader.position if at is None else at
        message = f"invalid JSON in header: {message}"
        try:
            self._skip_extra(depth)
        except JSONError as error:
            if error.kind == "limit":
                self._report(rule, message, tensor=tensor, at=at)
            raise
        self._report(rule, message, tensor=tensor, at=at)

    def _read_extra(self, name: str, key: str, at: int) -> None:
        if self._report.strict:
            message = f"unknown field {quote(key)} of tensor {quote(name)}"
            self._report("strict-extra", message, tensor=name, at=at)
        self._extra_fields += 1
        if self._extra_fields > MAX_EXTRA_FIELDS:
            raise JSONError(f"more than {MAX_EXTRA_FIELDS} unknown fields", at, kind="limit")
        self._charge(at)
        self._skip_extra(2)

    def _skip_extra(self, depth: int) -> None:
        """Check and skip a value that no rule needs; all such values together are limited."""
        reader = self._reader
        reader.peek()
        begin = reader.position
        reader.skip(depth, MAX_EXTRA - self._extra)
        self._charge(begin)

    def _charge(self, begin: int) -> None:
        """Add the text since `begin` to the total that MAX_EXTRA limits."""
        self._extra += self._reader.position - begin
        if self._extra > MAX_EXTRA:
            message = f"unknown fields, and fields with escapes, exceed {MAX_EXTRA} bytes"
            raise JSONError(message, begin, kind="limit")

    def _read_metadata(self, at: int) -> None:
        reader, report = self._reader, self._report
        if self._seen_metadata:
            report(
                "duplicate-key", f"invalid JSON in header: duplicate field `{METADATA_KEY}`", at=at
            )
        self._seen_metadata = True
        if reader.peek() != b"{":
            if (kind := reader.kind()) == "null":
                self._skip_extra(1)
            else:
                message = f"`{METADATA_KEY}` must be an object of strings, found {kind}"
                self._refuse("metadata", message, None, 1)
            return
        metadata: dict[str, str] = {}
        for key, key_at in reader.members():
            if key in metadata:
                report(
                    "duplicate-key", f"duplicate key {quote(key)} in `{METADATA_KEY}`", at=key_at
                )
            if len(metadata) >= MAX_METADATA:
                report(
                    "metadata-limit",
                    f"`{METADATA_KEY}` has more than {MAX_METADATA} keys",
                    at=key_at,
                )
                raise Stop
            if reader.peek() == b'"':
                metadata[key] = reader.string()
                continue
            message = (
                f"`{METADATA_KEY}` must map strings to strings, found {reader.kind()} for "
                f"{quote(key)}"
            )
            self._refuse("metadata", message, None, 2)
        self.metadata = metadata
