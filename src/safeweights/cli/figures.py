"""Figures as people read them: significant digits, histograms of one line, a line of a file's bytes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..reports.documents import FileMapRecord

__all__ = ["ByteStrip", "bars", "byte_strip", "digits"]

_LEVELS: Final = " ▁▂▃▄▅▆▇█"
_BARS: Final = 12
"""Characters of a histogram."""


def digits(value: float | list[float] | None, number: int) -> str:
    """A value with at most `number` significant digits; integers exactly, complex ones as NumPy's.

    >>> digits(0.012345678, 4), digits(12, 4), digits(2**60, 4), digits(None, 4)
    ('0.01235', '12', '1152921504606846976', '-')
    """
    if value is None:
        return "-"
    if isinstance(value, list):
        return f"{value[0]:.{number}g}{value[1]:+.{number}g}j"
    return str(value) if isinstance(value, int) else f"{value:.{number}g}"


def bars(bins: list[int]) -> str:
    """A histogram as a line of bars; those that are not empty can be seen.

    >>> bars([0, 0, 1, 0, 4, 4, 8, 8])
    '  ▁ ▄▄██'
    """
    step = max(1, len(bins) // _BARS)
    sums = [sum(bins[at : at + step]) for at in range(0, len(bins), step)]
    most = max(sums, default=0) or 1
    return "".join(_LEVELS[-(-8 * each // most)] for each in sums)


class ByteStrip(NamedTuple):
    """The bytes of a model as a line of cells.

    Attributes:
        cells: For each cell the kind of module that most of its bytes belong to.
        kinds: Kind of module -> its bytes, in the order of the data.
    """

    cells: list[str]
    kinds: dict[str, int]


_numbers = re.compile(r"(?<![^.])[0-9]+(?![^.])").sub
"""Replaces the parts of a name that are numbers."""


def byte_strip(files: Sequence[FileMapRecord], width: int, most: int) -> ByteStrip:
    """The bytes of all files, one file after another, as `width` cells.

    Modules whose names differ only in numbers are of one kind, ``layers.[N]``. Names are cut so that there
    are at most `most` kinds; the rest is called ``other``.

    >>> piece = {"module": "layers.0.q", "begin": 0, "end": 30, "tensors": 1}
    >>> rest = {"module": "norm", "begin": 30, "end": 40, "tensors": 1}
    >>> strip = byte_strip([{"file": "m", "bytes": 40, "pieces": [piece, rest]}], 4, 5)
    >>> strip.cells, strip.kinds
    (['layers.[N].q', 'layers.[N].q', 'layers.[N].q', 'norm'], {'layers.[N].q': 30, 'norm': 10})
    """
    pieces = [
        (_numbers("[N]", piece["module"]), piece["end"] - piece["begin"])
        for file in files
        for piece in file["pieces"]
    ]
    for depth in (6, 5, 4, 3, 2, 1):
        pieces = [(".".join(name.split(".", depth)[:depth]), size) for name, size in pieces]
        if len({name for name, _ in pieces}) <= most:
            break
    kinds: dict[str, int] = {}
    for name, size in pieces:
        kinds[name] = kinds.get(name, 0) + size
    kept = sorted(kinds, key=lambda name: -kinds[name])[: most - 1 if len(kinds) > most else most]
    shown: dict[str, int] = {}
    for name, size in kinds.items():
        label = name if name in kept else "other"
        shown[label] = shown.get(label, 0) + size
    named = [(name if name in kept else "other", size) for name, size in pieces]
    return ByteStrip(_cells(named, sum(kinds.values()), width), shown)


def _cells(pieces: list[tuple[str, int]], whole: int, width: int) -> list[str]:
    """The kind that has most of the bytes of each cell."""
    shares: list[dict[str, float]] = [{} for _ in range(width)]
    done = 0
    for name, size in pieces:
        begin, end = done * width / (whole or 1), (done + size) * width / (whole or 1)
        done += size
        for cell in range(int(begin), min(width, -(-int(end * 1e6) // 10**6))):
            share = min(end, cell + 1) - max(begin, cell)
            shares[cell][name] = shares[cell].get(name, 0.0) + share
    return [max(share, key=share.__getitem__) for share in shares if share]
