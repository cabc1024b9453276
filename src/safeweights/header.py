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
from collections.abc import Mapping
from itertools import islice, pairwise
from json.encoder import encode_basestring as _json_string
from operator import index as as_index
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from .chunks import CHUNK
from .dtypes import BITS, DTYPES, ORDER
from .entries import Entries
from .errors import FormatError, UnsupportedError, quote
from .gcpause import gc_paused
from .rules import (
    MAX_HEADER,
    MAX_METADATA,
    MAX_PROBLEMS,
    MAX_RANK,
    METADATA_KEY,
    PREFIX,
    RULES,
    Report,
    Stop,
    TensorInfo,
    byte_count,
    overflows,
)
from .strictjson import MAX_UINT, has_surrogates

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = [
    "MAX_HEADER",
    "METADATA_KEY",
    "PREFIX",
    "RULES",
    "Header",
    "TensorInfo",
    "header_length",
    "layout",
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


def layout(
    tensors: Iterable[tuple[str, str, Sequence[int]]], metadata: Mapping[str, str] | None = None
) -> tuple[Header, bytes]:
    """Place tensors as the reference's writer does, and write the header.

    Tensors are sorted by type (the widest first, in the order of `dtypes.ORDER` from its end) and
    then by name, packed without gaps; the text is padded with spaces to a multiple of 8.

    Args:
        tensors: (name, dtype, shape) of each tensor.
        metadata: Strings to strings; written sorted by key, so that the same input gives the same
            bytes. None writes no `__metadata__`.

    Returns:
        The header, and the bytes with which the file begins (length field, text, padding).

    Raises:
        FormatError: A name, dtype, shape or metadata that the format cannot hold (same rules as
            for reading).

    >>> layout([("a", "U8", (3,))])[1][8:]
    b'{"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}   '
    """
    # Two stable sorts by one key each cost half of one sort by pairs.
    ordered = sorted(tensors, key=itemgetter(0))
    if len({dtype for _, dtype, _ in ordered}) > 1:
        ordered.sort(key=lambda tensor: -ORDER.get(tensor[1], 0))
    infos: dict[str, TensorInfo] = {}
    parts = [] if metadata is None else [_metadata_text(metadata)]
    kinds: dict[tuple[str, tuple[int, ...]], _Kind] = {}
    new, cls = tuple.__new__, TensorInfo  # TensorInfo(...) costs three times this
    begin, written = 0, "0"
    last: tuple[object, object] = None, None
    for name, dtype, dims in ordered:
        if dims is not last[0] or dtype is not last[1]:
            last = dims, dtype
            key = dtype, tuple(dims)
            kind = kinds.get(key)
            if kind is None:
                kind = kinds[key] = _kind(name, dtype, dims)
            shape, size, between = kind
        end = begin + size
        infos[name] = new(cls, (dtype, shape, begin, end))
        ending = str(end)  # once: it is the next one's begin
        parts.append(f"{_json_string(name)}{between}{written},{ending}]}}")
        begin, written = end, ending
    if begin > MAX_UINT:
        raise FormatError(f"the tensors take {begin} bytes, over 2^64", rule="overflow")
    if len(infos) != len(ordered):
        twice = next(a[0] for a, b in pairwise(sorted(ordered)) if a[0] == b[0])
        message = f"two tensors are called {quote(twice)}"
        raise FormatError(message, rule="duplicate-key", tensor=twice)
    text = _encode(parts, infos)
    header = Header(infos, None if metadata is None else dict(metadata), len(text))
    return header, len(text).to_bytes(PREFIX, "little") + text


_Kind: TypeAlias = tuple[tuple[int, ...], int, str]
"""Shape, bytes, and the text between name and offsets of tensors that are alike."""


def _kind(name: str, dtype: str, dims: Sequence[int]) -> _Kind:
    shape = tuple(map(as_index, dims))  # NumPy's integers print differently
    size = _checked_size(name, dtype, shape)
    listed = ",".join(map(str, shape))
    return shape, size, f':{{"dtype":"{dtype}","shape":[{listed}],"data_offsets":['


def _checked_size(name: str, dtype: str, shape: tuple[int, ...]) -> int:
    if dtype not in DTYPES:
        raise FormatError(
            f"unknown dtype {quote(dtype)} of tensor {quote(name)}", rule="dtype", tensor=name
        )
    if len(shape) > MAX_RANK:
        message = (
            f"tensor {quote(name)} has {len(shape)} dimensions, at most {MAX_RANK} can be written"
        )
        raise FormatError(message, rule="rank", tensor=name)
    if any(dim < 0 for dim in shape):
        message = f"tensor {quote(name)} has a negative dimension: {list(shape)}"
        raise FormatError(message, rule="integer", tensor=name)
    size = byte_count(dtype, shape)
    if size is None:
        boundary = math.prod(shape) * BITS[dtype] <= MAX_UINT and not overflows(shape)
        what = "does not end up at a byte boundary" if boundary else "overflows 64 bits"
        message = f"the size of tensor {quote(name)}, {dtype} of shape {list(shape)}, {what}"
        raise FormatError(message, rule="byte-boundary" if boundary else "overflow", tensor=name)
    if any(dim > MAX_UINT for dim in shape):  # behind a 0, which makes it no matter of size
        message = f"a dimension of tensor {quote(name)} exceeds 2^64-1"
        raise FormatError(message, rule="integer", tensor=name)
    return size


def _encode(parts: Iterable[str], tensors: Mapping[str, TensorInfo]) -> bytes:
    """The JSON text whose members are `parts`, padded."""
    if METADATA_KEY in tensors:
        message = f"a tensor cannot be called `{METADATA_KEY}`: rename it"
        raise FormatError(message, rule="metadata", tensor=METADATA_KEY)
    try:
        text = ("{" + ",".join(parts) + "}").encode()
    except UnicodeEncodeError as error:
        wrong = next((name for name in tensors if has_surrogates(name)), None)
        where = "the metadata" if wrong is None else f"the name {quote(wrong)}"
        message = f"{where} has a lone surrogate, which cannot be written as UTF-8: {error.reason}"
        raise FormatError(message, rule="utf-8", tensor=wrong) from error
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        message = (
            f"header too large: {len(text)} bytes for {len(tensors)} tensors, at most {MAX_HEADER}"
        )
        raise FormatError(message, rule="header-too-large")
    return text


def _metadata_text(metadata: Mapping[str, str]) -> str:
    keys = _sorted_keys(metadata)
    pairs = ",".join(f"{_json_string(key)}:{_json_string(metadata[key])}" for key in keys)
    return f'"{METADATA_KEY}":{{{pairs}}}'


def _sorted_keys(metadata: Mapping[str, str]) -> list[str]:
    if not isinstance(metadata, Mapping):
        kind = type(metadata).__name__
        raise UnsupportedError(f"argument 'metadata': '{kind}' object is not an instance of 'dict'")
    for pair in metadata.items():
        for item in pair:
            if not isinstance(item, str):
                kind = type(item).__name__
                raise UnsupportedError(
                    f"argument 'metadata': '{kind}' object is not an instance of 'str' "
                    f"(at key {quote(str(pair[0]))}): convert it"
                )
    if len(metadata) > MAX_METADATA:
        message = f"metadata of {len(metadata)} keys, at most {MAX_METADATA} can be written"
        raise FormatError(message, rule="metadata-limit")
    return sorted(metadata)
