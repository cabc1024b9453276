"""Curves of cost against work: how steep they are, and a picture of them as SVG.

Both axes are logarithmic, so that a cost in proportion to the work is a line of slope 1.
"""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING, Final

from .chart import STYLE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["Points", "draw", "slope"]

Points = list[tuple[float, float]]
"""(work, seconds), ascending."""

_WIDTH: Final = 720
_HEIGHT: Final = 420
_LEFT: Final = 70
_RIGHT: Final = 150
_TOP: Final = 48
_BOTTOM: Final = 48
_COLOURS: Final = (
    "#0969da", "#1a7f37", "#bc4c00", "#8250df", "#cf222e", "#9a6700", "#1b7c83", "#6e7781",
)  # fmt: skip
_FLOOR: Final = 0.02


def slope(points: Sequence[tuple[float, float]]) -> float | None:
    """The exponent of the growth over the last decade of work: 1 is in proportion to it, 0 is constant.

    None where that takes less than 20 ms: what a call costs anyway would hide the growth.

    >>> slope([(10, 0.1), (100, 1.0), (1000, 10.0)])
    1.0
    """
    ends = last_decade(points)
    if ends is None or ends[1][1] < _FLOOR or ends[0][1] <= 0:
        return None
    (before, spent), (work, seconds) = ends
    return round(math.log(seconds / spent) / math.log(work / before), 2)


def last_decade(
    points: Sequence[tuple[float, float]],
) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """The last point, after the one before it with a tenth of the work at most; None if there is none."""
    earlier = [point for point in points if point[0] <= points[-1][0] / 9.99]
    return (earlier[-1], points[-1]) if earlier else None


def draw(title: str, axis: str, curves: Mapping[str, Points]) -> str:
    """The curves in one picture, each with its name at its end."""
    works = [work for points in curves.values() for work, _ in points]
    times = [max(seconds, 1e-5) for points in curves.values() for _, seconds in points]
    across = _Scale(min(works), max(works), _LEFT, _WIDTH - _RIGHT)
    upward = _Scale(min(times), max(times), _HEIGHT - _BOTTOM, _TOP)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">',
        f"<title>{escape(title)}</title><style>{STYLE}</style>",
        f'<text class="title" x="16" y="26">{escape(title)}</text>',
        f'<text class="faint" x="{_LEFT}" y="{_HEIGHT - 12}">{escape(axis)}</text>',
        *_grid(across, upward),
    ]
    ends: list[float] = []
    for number, (name, points) in enumerate(
        sorted(curves.items(), key=lambda item: item[1][-1][1])
    ):
        colour = _COLOURS[number % len(_COLOURS)]
        places = [(across(work), upward(max(seconds, 1e-5))) for work, seconds in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        lines.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        x, y = places[-1]
        y = min([y, *(end - 14 for end in ends)])  # below no other name
        ends.append(y)
        lines.append(
            f'<text x="{x + 6:.1f}" y="{y + 4:.1f}" style="fill:{colour}">{escape(name)}</text>'
        )
    return "\n".join([*lines, "</svg>", ""])


class _Scale:
    """Logarithmic, from `least` at `begin` to `most` at `end`."""

    def __init__(self, least: float, most: float, begin: float, end: float) -> None:
        self.least, self.most = math.floor(math.log10(least)), math.ceil(math.log10(most))
        self._begin, self._end = begin, end

    def __call__(self, value: float) -> float:
        share = (math.log10(value) - self.least) / max(1, self.most - self.least)
        return self._begin + share * (self._end - self._begin)

    def ticks(self) -> Iterator[float]:
        return (10.0**power for power in range(self.least, self.most + 1))


def _grid(across: _Scale, upward: _Scale) -> Iterator[str]:
    for value in across.ticks():
        x = across(value)
        yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>'
        yield f'<text class="faint" x="{x - 8:.1f}" y="{_HEIGHT - 30}">{value:,.0f}</text>'
    for value in upward.ticks():
        y = upward(value)
        yield f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        text = f"{value:g} s" if value >= 1 else f"{value * 1e3:g} ms"
        yield f'<text class="faint" x="12" y="{y + 4:.1f}">{text}</text>'
