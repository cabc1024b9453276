"""The zeros that a download leaves which stopped in the middle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..storage import DescriptorSource

if TYPE_CHECKING:
    from ..format.header import Header
    from ..storage import Source

__all__ = ["zero_tail"]

_BLOCK: Final = 1 << 22
_TAIL: Final = 1 << 16
_LEAST: Final = 4096
"""Zeros at the end of a tensor that are worth a word: what a download allocates is whole blocks."""


def zero_tail(source: Source, header: Header) -> int | None:
    """Where the zeros begin that a file ends with, if that looks like a download that stopped; else None.

    A program that downloads in parts allocates the whole file first: what never came reads as zeros. They
    begin anywhere, while the zeros of a tensor that is all zeros begin with it.

    Cost: the last 64 KiB, and of a file that ends in zeros as much as there are, but for what was never
    written (holes).
    """
    end = source.size
    begin = end
    size = _TAIL
    while begin > header.data_start:
        step = min(size, begin - header.data_start)
        if isinstance(source, DescriptorSource) and source.is_hole(begin - step, step):
            begin -= step
            size = 2 * step  # a file of 64 GiB that was never written is asked about 20 times
            continue
        if step > _BLOCK:
            size = _BLOCK
            continue
        data = source.read(begin - step, step)
        # Comparing takes 0.1 ms a MiB, stripping 2 ms: only one block has anything to strip.
        left = b"" if data == bytes(step) else data.rstrip(b"\0")
        if left:
            begin -= step - len(left)
            break
        begin -= step
        size = _BLOCK
    place = begin - header.data_start
    for info in header.tensors.values():
        if info.begin < place < info.end:
            # The last values before may be zeros too, so that they begin a little early, never late.
            return begin if info.end - place >= _LEAST else None
    return None
