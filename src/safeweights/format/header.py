"""The header of a safetensors file: bytes <-> `Header`.

A file is the length N of the header (8 bytes, little-endian), N bytes of JSON, and the data. The
header maps each tensor's name to its type, shape and place in the data, which the tensors cover
completely and without overlap. The rules stand in `rules`, the reading of the JSON in `entries`;
here entries are checked against each other and against the size of the file, and headers written.

No input or output happens here.
"""

from __future__ import annotations

import codecs
import math
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from ..errors import FormatError, quote
from .bulk import CHUNK
from .dtypes import BITS
from .entries import Entries
from .gcpause import gc_paused
from .rules import (
    MAX_HEADER,
    MAX_PROBLEMS,
    METADATA_KEY,
    PREFIX,
    RULES,
    Report,
    Stop,
    TensorInfo,
    byte_count,
    overflows,
)
from .strictjson import MAX_UINT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = [
    "MAX_HEADER",
    "METADATA_KEY",
    "PREFIX",
    "RULES",
    "Header",
    "TensorInfo",
    "header_length",
    "parse",
    "problems",
]


class Header(NamedTuple):
    """A valid header.

    Attributes:
        tensors: Name -> `TensorInfo`, in the order of the data.
        metadata: The `__metadata__` of the file, or None where it has none.
        size: Bytes of the JSON text, padding included; the N of the first 8 bytes.
    """

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str] | None
    size: int

    @property
    def data_start(self) -> int:
        """Position of the data in the file."""
        return PREFIX + self.size

    @property
    def data_size(self) -> int:
        """Bytes of data."""
        return next(reversed(self.tensors.values())).end if self.tensors else 0


def header_length(prefix: bytes, file_size: int, *, path: str | None = None) -> int:
    """The length of the header, from the first 8 bytes of a file of `file_size` bytes.

    Raises:
        FormatError: Rules header-too-small, header-too-large, header-length.
    """
    if len(prefix) < PREFIX or file_size < PREFIX:
        raise FormatError(
            f"header too small: a safetensors file has at least {PREFIX} bytes, this one {file_size}",
            rule="header-too-small", path=path,
        )  # fmt: skip
    length = int.from_bytes(prefix[:PREFIX], "little")
    if length > MAX_HEADER:
        raise FormatError(
            f"header too large: {length} bytes announced, at most {MAX_HEADER} allowed",
            rule="header-too-large", path=path, offset=0,
        )  # fmt: skip
    if PREFIX + length > file_size:
        raise FormatError(
            f"invalid header length: the header should end at byte {PREFIX + length}, "
            f"the file ends at byte {file_size}",
            rule="header-length", path=path, offset=0,
        )  # fmt: skip
    return length


def parse(text: bytes, data_size: int, *, path: str | None = None) -> Header:
    """The header whose JSON is `text`, of a file with `data_size` bytes of data.

    Cost: about one microsecond a tensor, and no memory but the result's and a chunk's (128 KiB of
    text); refused text is refused within that too.

    Raises:
        FormatError: The first of `problems(text, data_size)`.

    >>> parse(b'{"a":{"dtype":"I32","shape":[2],"data_offsets":[0,8]}}', 8).tensors
    {'a': TensorInfo(dtype='I32', shape=(2,), begin=0, end=8)}
    """
    report = Report(path)
    with gc_paused():
        try:
            entries = Entries(text, report)
        except FormatError:
            # The exact reader meets bad UTF-8 where it stands; the rule comes before all of JSON.
            _check_utf8(text, report)
            raise
        tensors = entries.tensors
        if not (entries.sized and entries.in_order and entries.end == data_size):
            tensors = _sorted(tensors)
            if not (entries.sized and _end_of(tensors.values()) == data_size):
                _check_layout(entries, tensors, data_size, report)
    return Header(tensors, entries.metadata, len(text))


def problems(
    text: bytes, data_size: int, *, path: str | None = None, strict: bool = False
) -> list[FormatError]:
    """Everything that is wrong with a header, in the order in which it is checked.

    Text that is not JSON ends the search at that place; after 1,000 problems it ends too.

    Args:
        text: The JSON text.
        data_size: Bytes of data that follow it in the file.
        path: Name of the file, for the messages.
        strict: Also report what is allowed but no good writer writes (rules ``strict-...``).
    """
    report = Report(path, collect=True, strict=strict)
    try:
        _check_utf8(text, report)
        entries = Entries(text, report)
        _check_layout(entries, _sorted(entries.tensors), data_size, report)
    except Stop:
        pass
    return report.found


def _check_utf8(text: bytes, report: Report) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")()
    for begin in range(0, len(text), CHUNK):
        pending = len(decoder.getstate()[0])
        try:
            decoder.decode(text[begin : begin + CHUNK], final=begin + CHUNK >= len(text))
        except UnicodeDecodeError as error:
            at = begin - pending + error.start
            report("utf-8", f"invalid UTF-8 in header: {error.reason}", at=at)
            raise Stop from None


def _sorted(tensors: dict[str, TensorInfo]) -> dict[str, TensorInfo]:
    """In the order of the data: by begin, then by end."""
    # Two stable sorts by a number each take half the time of one by pairs.
    items = sorted(tensors.items(), key=lambda item: item[1].end)
    items.sort(key=lambda item: item[1].begin)
    return dict(items)


def _end_of(infos: Iterable[TensorInfo]) -> int | None:
    """Where tensors that follow one another from 0 end; None where they do not."""
    position = 0
    for _, _, begin, end in infos:
        if begin != position:
            return None
        position = end
    return position


def _check_layout(
    entries: Entries, tensors: Mapping[str, TensorInfo], data_size: int, report: Report
) -> None:
    """Report every rule of layout that `tensors`, the entries sorted by offset, break."""
    found = _layout_faults(tensors)
    if not entries.whole:  # where a tensor is unknown, holes mean nothing
        found = (fault for fault in found if fault[0] != "offsets")
    faults = list(islice(found, MAX_PROBLEMS if report.collect else 1))
    positions = entries.positions({name for _, name, _ in faults})
    for rule, name, message in faults:
        report(rule, message, tensor=name, at=positions[name])
    end = max((info.end for info in tensors.values()), default=0)
    if end != data_size and entries.whole:
        missing = end - data_size
        what = f"{missing} bytes are missing" if missing > 0 else f"{-missing} bytes are left over"
        begins = PREFIX + len(entries.text)
        message = (
            "incomplete metadata, file not fully covered: the tensors end at byte "
            f"{begins + end}, the file at byte {begins + data_size} ({what})"
        )
        report("coverage", message)


def _layout_faults(tensors: Mapping[str, TensorInfo]) -> Iterator[tuple[str, str, str]]:
    """(rule, name, message) for all that is wrong with the place or size of a tensor."""
    position = 0
    for name, info in tensors.items():
        if info.begin != position or info.end < info.begin:
            message = (
                f"invalid offset for tensor {quote(name)}: it spans {info.begin} to {info.end}, and "
                f"should begin at {position}, where the one before it ends"
            )
            yield "offsets", name, message
        position = info.end
        if byte_count(info.dtype, info.shape) != info.nbytes:
            yield _size_fault(name, info)


def _size_fault(name: str, info: TensorInfo) -> tuple[str, str, str]:
    what = f"{info.dtype} of shape {list(info.shape)}"
    size = byte_count(info.dtype, info.shape)
    if size is not None:
        message = (
            f"invalid shape, data type, or offset for tensor {quote(name)}: {what} takes {size} "
            f"bytes, data_offsets span {info.nbytes}"
        )
        return "size", name, message
    bits = math.prod(info.shape) * BITS[info.dtype]
    if bits > MAX_UINT or overflows(info.shape):
        message = (
            "overflow computing buffer size from shape and/or element type of tensor "
            f"{quote(name)}: {what}"
        )
        return "overflow", name, message
    message = f"tensor {quote(name)} does not end up at a byte boundary: {what} takes {bits} bits"
    return "byte-boundary", name, message
