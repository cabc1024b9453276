"""The quick look misses nothing that the full scan finds."""

from __future__ import annotations

import struct
from itertools import chain
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from safeweights.conversion.disguises import may_be_another_format
from safeweights.conversion.scanning import scan_other_readers
from safeweights.numpy import save
from safeweights.storage import BytesSource

if TYPE_CHECKING:
    from safeweights.conversion.scan_report import ScanReport


def padded(length: int, data: bytes = b"") -> bytes:
    """A valid file whose header has `length` bytes and whose one tensor is `data`."""
    text = b'{"a":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}' % (len(data), len(data))
    return struct.pack("<Q", length) + text.ljust(length) + data


def both(data: bytes) -> tuple[bool, ScanReport]:
    source = BytesSource(data, "file")
    return may_be_another_format(source, data[:1024]), scan_other_readers(source)


def test_an_ordinary_file_passes_without_a_scan() -> None:
    import numpy as np

    data = save({f"layer.{i}": np.zeros((4, 4), "f4") for i in range(30)}, {"format": "pt"})
    looked, report = both(data)
    assert not looked
    assert report.clean


@given(st.integers(64, 20_000), st.binary(max_size=64))
def test_what_the_scan_reports_is_always_looked_at(length: int, data: bytes) -> None:
    looked, report = both(padded(length, data))
    assert looked or report.clean


def test_every_length_of_a_header_up_to_64_kib() -> None:
    """Each gives another prefix; a pickle needs one that takes the zeros of the length."""
    tail = b"cos\ngetpid\n(tR."
    for length in chain(range(64, 4096), range(4096, 1 << 16, 8)):  # writers pad to eight bytes
        source = BytesSource(struct.pack("<Q", length) + b"{" + tail, "file")
        if not may_be_another_format(source, source.read(0, source.size)):
            report = scan_other_readers(source)
            assert report.clean, length


def test_archives_tables_and_hdf5_are_looked_at() -> None:
    for ending in (b"PK\x05\x06" + bytes(18), b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"):
        assert both(padded(64, ending))[0]
    inside = bytearray(padded(64, bytes(2000)))
    inside[1024:1032] = b"\x89HDF\r\n\x1a\n"
    assert both(bytes(inside))[0]
