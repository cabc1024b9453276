"""The rows as one SVG: our time as a share of the reference's, the others' and what was to be reached.

The axis is logarithmic, so that bars begin at 1x, where both take the same time: to the left is
faster, to the right slower. Colours follow the reader's light or dark mode; nothing is told by colour
alone.
"""

from __future__ import annotations

import math
import textwrap
from html import escape
from typing import TYPE_CHECKING, Final

from .rows import OURS, PEERS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .results import RowResult

__all__ = ["STYLE", "draw"]

_WIDTH: Final = 860
_LEFT: Final = 330
_RIGHT: Final = 70
_STEP: Final = 26
_TOP: Final = 64
_LOWEST: Final = 0.005
_HIGHEST: Final = 4.0
_TICKS: Final = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)

STYLE: Final = """
  text { font: 13px system-ui, sans-serif; fill: #1f2328; }
  .faint { fill: #59636e; font-size: 11px; }
  .title { font-size: 15px; font-weight: 600; }
  .grid { stroke: #d1d9e0; }
  .one { stroke: #59636e; stroke-width: 1.5; }
  .bar { fill: #54aeff; }
  .peer { fill: none; stroke: #424a53; stroke-width: 1.3; }
  .limit { stroke: #1a7f37; stroke-width: 2; }
  .reach { fill: #bc4c00; }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc; }
    .faint { fill: #9198a1; }
    .grid { stroke: #3d444d; }
    .one { stroke: #9198a1; }
    .bar { fill: #1f6feb; }
    .peer { stroke: #d1d7e0; }
    .limit { stroke: #3fb950; }
    .reach { fill: #f0883e; }
  }
"""


def draw(results: Sequence[RowResult], caption: str) -> str:
    """The chart as SVG text, of the rows that measure time and have a contender to compare with."""
    rows = [
        result
        for result in results
        if result.unit == "s" and result.ratio and result.ratio > 0 and result.nbytes
    ]
    lines = textwrap.wrap(caption, 140)
    height = _TOP + _STEP * len(rows) + 30 + 15 * len(lines)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" '
        'aria-label="Time of safeweights as a share of the time of safetensors, by task">',
        f"<style>{STYLE}</style>",
        _text(
            16,
            24,
            "Time compared with safetensors, or with the best peer (left is faster)",
            "title",
        ),
        *_legend(),
        *_grid(_TOP + _STEP * len(rows)),
    ]
    for number, result in enumerate(rows):
        parts += _bar(result, _TOP + _STEP * number)
    bottom = height - 15 * len(lines) + 5
    parts += [_text(16, bottom + 15 * number, line, "faint") for number, line in enumerate(lines)]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _place(ratio: float) -> float:
    """Where on the logarithmic axis; what is beyond stands at its end."""
    share = math.log(min(max(ratio, _LOWEST), _HIGHEST) / _LOWEST) / math.log(_HIGHEST / _LOWEST)
    return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def _legend() -> Iterator[str]:
    items = (
        ('<rect class="bar" x="{x}" y="36" width="16" height="9"/>', "safeweights", 110),
        ('<circle class="peer" cx="{x}" cy="40.5" r="3.5"/>', "other loaders", 110),
        ('<path class="limit" d="M{x} 35v11"/>', "the machine's limit", 140),
        ('<path class="reach" d="M{x} 36l5 9h-10z"/>', "to reach at most", 120),
    )
    x = 20
    for shape, label, width in items:
        yield shape.format(x=x)
        yield _text(x + 22 if "rect" in shape else x + 10, 45, label, "faint")
        x += width + 24


def _grid(bottom: float) -> Iterator[str]:
    for tick in _TICKS:
        kind = "one" if tick == 1 else "grid"
        yield f'<path class="{kind}" d="M{_place(tick):.1f} {_TOP - 6}V{bottom}"/>'
        yield _text(_place(tick), bottom + 14, f"{tick:g}x", "faint", "middle")


def _bar(result: RowResult, top: float) -> Iterator[str]:
    assert result.ratio is not None
    middle = top + _STEP / 2 - 3
    left, right = sorted((_place(result.ratio), _place(1.0)))
    yield _text(_LEFT - 10, middle + 4, result.title, "", "end")
    yield (
        f'<rect class="bar" x="{left:.1f}" y="{middle - 6:.1f}" '
        f'width="{max(2.0, right - left):.1f}" height="12"/>'
    )
    yield from _others(result, middle)
    target = _target(result)
    if target is not None:
        x = _place(target)
        yield f'<path class="reach" d="M{x:.1f} {middle + 3:.1f}l5 9h-10z"/>'
    yield _text(_WIDTH - 8, middle + 4, f"{result.ratio:.2f}x", "", "end")


def _others(result: RowResult, middle: float) -> Iterator[str]:
    ours = result.contenders[OURS].median
    if not ours or result.ratio is None:
        return
    for column in PEERS:
        found = result.contenders.get(column)
        if found is not None and found.median and column != result.compared:
            x = _place(result.ratio * found.median / ours)
            title = f"<title>{escape(column)}</title>"
            yield f'<circle class="peer" cx="{x:.1f}" cy="{middle:.1f}" r="3.5">{title}</circle>'
    if result.limit_ratio:
        x = _place(result.ratio / result.limit_ratio)
        yield f'<path class="limit" d="M{x:.1f} {middle - 8:.1f}v16"/>'


def _target(result: RowResult) -> float | None:
    """The ratio to reach, as the row says it."""
    first = result.reach.split(",")[0]
    try:
        return float(first)
    except ValueError:
        return None
