"""The header of a safetensors file: bytes <-> `Header`.

A file consists of the length N of the header (8 bytes, unsigned, little-endian), N bytes of JSON, and the
data. The header maps each tensor's name to its type, shape and position in the data. The tensors cover the
data completely, without overlap (README of safetensors, section "Format"). `rules` lists the rules,
`entries` reads the JSON; this module checks entries against each other and against the size of the file.

No I/O happens here.
"""

from __future__ import annotations

import codecs
import math
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

from ..errors import FormatError, quote
from .dtypes import BITS
from .gcpause import gc_paused
from .rules import (
    MAX_HEADER,
    MAX_PROBLEMS,
    MAX_UINT,
    METADATA_KEY,
    PREFIX,
    RULES,
    Problems,
    Stop,
    TensorInfo,
    byte_count,
    overflows,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from .entries import Entries

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
        metadata: The `__metadata__` of the file, or None.
        size: Bytes of the JSON text, padding included: the N in the first 8 bytes of the file.
    """

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str] | None
    size: int

    @property
    def data_start(self) -> int:
        """Byte offset of the data in the file."""
        return PREFIX + self.size

    @property
    def data_size(self) -> int:
        """Bytes of data."""
        return next(reversed(self.tensors.values())).end if self.tensors else 0


def header_length(prefix: bytes, file_size: int, *, path: str | None = None) -> int:
    """The length of the header in bytes, read from the first 8 bytes of a file.

    Args:
        prefix: The first 8 bytes; more are ignored.
        file_size: Size of the file in bytes.
        path: Name of the file, for the messages.

    Raises:
        FormatError: Rules header-too-small, header-too-large, header-length.
    """
    if len(prefix) < PREFIX or file_size < PREFIX:
        raise FormatError(
            f"header too small: the file has {file_size} bytes, a safetensors file at least {PREFIX} bytes",
            rule="header-too-small", path=path,
        )  # fmt: skip
    length = int.from_bytes(prefix[:PREFIX], "little")
    if length > MAX_HEADER:
        raise FormatError(
            f"header too large: its length is {length} bytes, at most {MAX_HEADER} are allowed",
            rule="header-too-large", path=path, offset=0,
        )  # fmt: skip
    if PREFIX + length > file_size:
        raise FormatError(
            f"invalid header length: the header ends at byte {PREFIX + length}, "
            f"but the file ends at byte {file_size}",
            rule="header-length", path=path, offset=0,
        )  # fmt: skip
    return length


def parse(text: bytes, data_size: int, *, path: str | None = None) -> Header:
    """Parse and check a header.

    Cost: about one microsecond per tensor; memory for the result and for one chunk of text (128 KiB). An
    invalid header costs no more.

    Args:
        text: The JSON text, N bytes.
        data_size: Bytes of data that follow it in the file.
        path: Name of the file, for the messages.

    Raises:
        FormatError: The first of `problems(text, data_size)`.

    >>> parse(b'{"a":{"dtype":"I32","shape":[2],"data_offsets":[0,8]}}', 8).tensors
    {'a': TensorInfo(dtype='I32', shape=(2,), begin=0, end=8)}
    """
    key = len(text), data_size
    known = _checked.get(key)
    if known is not None and known[0] == text:
        _, tensors, metadata = known
        return Header(dict(tensors), None if metadata is None else dict(metadata), len(text))
    header = _parsed(text, data_size, Problems(path))
    if len(text) <= _REMEMBERED and type(text) is bytes:
        _remember(key, text, header)
    return header


_REMEMBERED: Final = 1 << 17
"""Bytes of the longest header that is remembered."""

_REMEMBERED_ALL: Final = 1 << 19
"""Bytes of all headers that are remembered; with what was read in them they take about 2 MiB."""

_checked: Final[
    dict[tuple[int, int], tuple[bytes, dict[str, TensorInfo], dict[str, str] | None]]
] = {}
"""Headers that were found valid, by the length of their text and of the data.

Programs open the same file many times, or thousands of adapters of one model, which often have the same
header. Comparing its text takes 2 us, reading 300 tensors 230 us. Whether a header is valid, and what it
says, depends on nothing but text and size, so nothing can become stale."""


def _remember(key: tuple[int, int], text: bytes, header: Header) -> None:
    # Copies: the caller owns the dictionaries of its header, and may change them.
    metadata = None if header.metadata is None else dict(header.metadata)
    if len(text) + sum(length for length, _ in list(_checked)) > _REMEMBERED_ALL:
        _checked.clear()
    _checked[key] = text, dict(header.tensors), metadata


def _parsed(text: bytes, data_size: int, report: Problems) -> Header:
    # Imported by the first header: it compiles patterns for as long as half of the package is imported.
    from .entries import Entries

    with gc_paused():
        try:
            entries = Entries(text, report)
        except FormatError:
            # The reference checks UTF-8 first: an error there takes precedence over one in the JSON.
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
    """All problems of a header, in the order of the checks.

    The search ends at text that is not JSON, and after 1,000 problems.

    Args:
        text: The JSON text.
        data_size: Bytes of data that follow it in the file.
        path: Name of the file, for the messages.
        strict: Also report what the format allows but the reference's writer never writes (rules
            ``strict-...``).
    """
    from .entries import Entries

    report = Problems(path, collect=True, strict=strict)
    try:
        _check_utf8(text, report)
        entries = Entries(text, report)
        _check_layout(entries, _sorted(entries.tensors), data_size, report)
    except Stop:
        pass
    return report.found


def _check_utf8(text: bytes, report: Problems) -> None:
    from .bulk import BULK_SIZE

    decoder = codecs.getincrementaldecoder("utf-8")()
    for begin in range(0, len(text), BULK_SIZE):
        pending = len(decoder.getstate()[0])
        try:
            decoder.decode(text[begin : begin + BULK_SIZE], final=begin + BULK_SIZE >= len(text))
        except UnicodeDecodeError as error:
            at = begin - pending + error.start
            report("utf-8", f"invalid UTF-8 in header: {error.reason}", at=at)
            raise Stop from None


def _sorted(tensors: dict[str, TensorInfo]) -> dict[str, TensorInfo]:
    """`tensors` in the order of the data: by begin, then by end."""
    # Two stable sorts by one number take half the time of one sort by pairs.
    items = sorted(tensors.items(), key=lambda item: item[1].end)
    items.sort(key=lambda item: item[1].begin)
    return dict(items)


def _end_of(infos: Iterable[TensorInfo]) -> int | None:
    """End of the last tensor; None if the tensors, in this order, are not contiguous from 0."""
    position = 0
    for _, _, begin, end in infos:
        if begin != position:
            return None
        position = end
    return position


def _check_layout(
    entries: Entries, tensors: Mapping[str, TensorInfo], data_size: int, report: Problems
) -> None:
    """Report every wrong position and size. `tensors` are those of `entries`, sorted by offset."""
    found = _layout_faults(tensors)
    if not entries.whole:  # a hole may belong to a tensor whose entry could not be read
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
    """(rule, name, message) of each tensor's wrong position or size."""
    position = 0
    for name, info in tensors.items():
        if info.begin != position or info.end < info.begin:
            what = "the tensor must not end before it begins"
            if info.begin != position:
                what = f"the tensor must begin at {position}, the end of the previous one"
            offsets = f"data_offsets are [{info.begin}, {info.end}]"
            message = f"invalid offset for tensor {quote(name)}: {offsets}, but {what}"
            yield "offsets", name, message
        position = info.end
        if byte_count(info.dtype, info.shape) != info.nbytes:
            yield _size_fault(name, info)


def _size_fault(name: str, info: TensorInfo) -> tuple[str, str, str]:
    what = f"{info.dtype} of shape {list(info.shape)}"
    size = byte_count(info.dtype, info.shape)
    if size is not None:
        message = (
            f"invalid shape, data type, or offset for tensor {quote(name)}: {what} needs {size} "
            f"bytes, but data_offsets span {info.nbytes}"
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
