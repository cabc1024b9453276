"""The JSON text of a header -> its entries, not yet checked against each other.

Entries in their usual form are read many at a time by `chunks`. Every other one is read here, value by
value through `strictjson`: all that the rules allow is accepted, and words are found for what they do
not. Both ways give the same result for every input (tests/core/test_entries.py compares them), and
hold no more than a chunk beside it. How much may need the exact way is bounded, because that way is
slow: the rules metadata-limit and extra-limit.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from itertools import repeat
from operator import sub
from typing import TYPE_CHECKING

from ..errors import quote
from .bulk import CHUNK, Chunks
from .dtypes import DTYPES
from .rules import (
    MAX_EXTRA,
    MAX_EXTRA_FIELDS,
    MAX_METADATA,
    MAX_RANK,
    METADATA_KEY,
    Report,
    Stop,
    TensorInfo,
    byte_count,
)
from .strictjson import JSONError, Reader

if TYPE_CHECKING:
    from collections.abc import Collection

    from .bulk import Batch

__all__ = ["Entries"]


class Entries:
    """The entries of a header's text.

    Attributes:
        tensors: Name -> `TensorInfo` in the order of the text.
        metadata: The metadata, or None.
        sized: The data_offsets of every tensor span exactly what its dtype and shape need.
        in_order: Each tensor begins where the one before it in the text ends, the first at 0.
        end: Where the last one in the text ends.
        whole: No tensor had to be left out because its entry could not be understood.
        text: The text.

    Args:
        text: The JSON text of the header.
        report: Receives what is wrong.
        bulk: False reads every value through `strictjson`.
    """

    def __init__(self, text: bytes, report: Report, *, bulk: bool = True) -> None:
        self.tensors: dict[str, TensorInfo] = {}
        self.metadata: dict[str, str] | None = None
        self.sized = True
        self.in_order = True
        self.end = 0
        self.whole = True
        self.text = text
        self._report = report
        self._reader = Reader(text)
        self._chunks = Chunks(text) if bulk else None
        self._extra = 0
        self._extra_fields = 0
        self._seen_metadata = False
        self._refused: set[str] = set()  # names of entries that could not be understood
        # (number of tensors before it, position) of an entry in each chunk of text.
        self._marks: list[tuple[int, int]] = []
        self._next_mark = 0
        try:
            self._read()
        except JSONError as error:
            rule = {"syntax": "json", "limit": "extra-limit"}.get(error.kind, error.kind)
            report(rule, f"invalid JSON in header: {error}", at=error.position)
            raise Stop from error

    def positions(self, names: Collection[str]) -> dict[str, int]:
        """Where in the text the entries of some tensors begin.

        Cost: a pass over all names, and exact reading of the chunks that the entries are in.
        """
        ordinals = [number for number, name in enumerate(self.tensors) if name in names]
        size = len(self.text)
        marks = [*self._marks, (0, size)]
        found: dict[str, int] = {}
        for index in sorted({bisect_right(self._marks, (n, size)) for n in ordinals}):
            reader = Reader(self.text, marks[index - 1][1], unique=False)  # that was reported
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
            report("strict-space", "the header does not begin with `{`", at=0)
        for name, at in reader.members("an object of tensors"):
            if name == METADATA_KEY:
                self._read_metadata(at)
                self._next_mark = at
            else:
                self._mark(at)
                self._read_tensor(name, at)
            if self._chunks is not None:
                self._read_chunks(self._chunks)
        begin = reader.position
        reader.end()
        if report.strict and self.text[begin:].strip(b" "):
            report("strict-space", "the header is padded with other than spaces", at=begin)

    def _mark(self, position: int) -> None:
        if position >= self._next_mark:
            self._marks.append((len(self.tensors), position))
            self._next_mark = position + CHUNK

    def _read_chunks(self, chunks: Chunks) -> None:
        """Behind an entry, read what can be read many at a time."""
        reader = self._reader
        while reader.peek() == b"," and (batch := chunks.take(reader.position, self.end)):
            self._mark(chunks.first)
            if not self._add(batch):
                chunks.reject()
                return
            reader.position = chunks.position

    def _add(self, batch: Batch) -> bool:
        """Add entries, unless there is a name among them that must not be there."""
        names, (dtypes, shapes, sizes), begins, ends, placed = batch
        tensors, before = self.tensors, len(self.tensors)
        # TensorInfo(...) in a loop costs three times this. What is there already stays as it is.
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
                f"tensor {quote(name)} should be an object of dtype, shape and data_offsets, found "
                f"{reader.kind()}"
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
        reader.position = begin
        self._refuse(rule, f"{field} of tensor {quote(name)}: {problem}", name, 2, at)
        return None

    def _wrong_type(self, name: str, expected: str) -> None:
        message = f"of tensor {quote(name)}, {expected}, found {self._reader.kind()}"
        self._refuse("entry", message, name, 2)

    def _refuse(
        self, rule: str, message: str, tensor: str | None, depth: int, at: int | None = None
    ) -> None:
        """Drop the value that comes next, and report it; if it is not JSON, that outranks the rule."""
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
        """Check and drop a value nobody asked for, within the bound on all of them together."""
        reader = self._reader
        reader.peek()
        begin = reader.position
        reader.skip(depth, MAX_EXTRA - self._extra)
        self._charge(begin)

    def _charge(self, begin: int) -> None:
        """Count the text from `begin` on among what no program would write."""
        self._extra += self._reader.position - begin
        if self._extra > MAX_EXTRA:
            message = f"unknown and escaped fields take more than {MAX_EXTRA} bytes"
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
                message = f"`{METADATA_KEY}` should be an object of strings, found {kind}"
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
                    "metadata-limit", f"`{METADATA_KEY}` has over {MAX_METADATA} keys", at=key_at
                )
                raise Stop
            if reader.peek() == b'"':
                metadata[key] = reader.string()
                continue
            message = (
                f"`{METADATA_KEY}` maps strings to strings, found {reader.kind()} for {quote(key)}"
            )
            self._refuse("metadata", message, None, 2)
        self.metadata = metadata
