"""Checkpoints and tensors as notebooks show them: small tables, a histogram.

HTML without scripts and styles of its own; every text from a file is escaped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..display import html_table, html_text
from ..errors import SafetensorError
from ..format.indexing import select
from ..text import human_bytes, human_count, plural
from .inventory import rows, total
from .statistics import statistics_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..checkpoint import Checkpoint, Tensor
    from .documents import DistributionRecord

__all__ = ["checkpoint_html", "tensor_html"]

_VALUES_MAX: Final = 1 << 24
"""Values up to which a tensor is read to be shown: a tenth of a second."""


def checkpoint_html(checkpoint: Checkpoint) -> str:
    """A table of the first tensors, and how many there are; no value is read."""
    found = list(rows(checkpoint))
    sums = total(found)
    about = (
        f"{plural(sums['tensors'], 'tensor')}, {human_count(sums['parameters'])} parameters, "
        f"{human_bytes(sums['bytes'])}"
    )
    cells = (
        (html_text(row.name), row.dtype, str(list(row.shape)), human_bytes(row.nbytes))
        for row in found
    )
    title = f"<p><b>{html_text(checkpoint.name)}</b> {about}</p>"
    return title + html_table(("tensor", "type", "shape", "size"), cells)


def tensor_html(tensor: Tensor) -> str:
    """Type and shape; of a tensor of at most 16,777,216 values also statistics and a histogram."""
    title = f"<p><b>{html_text(tensor.name)}</b> {tensor.dtype} {list(tensor.shape)}</p>"
    size = 1
    for each in tensor.shape:
        size *= each
    if tensor.unreadable is not None:
        return f"{title}<p>{html_text(tensor.unreadable)}</p>"
    if size > _VALUES_MAX:
        return f"{title}<p>{plural(size, 'value')}; [...] reads a part of them</p>"
    try:
        (found,) = statistics_of([(tensor, select(..., tensor.shape))])
    except (SafetensorError, OSError) as error:  # closed, truncated, of a type that NumPy lacks
        return f"{title}<p>{html_text(str(error))}</p>"
    names = ("min", "max", "mean", "std", "zeros", "nan", "inf")
    values = [(name, found[name]) for name in names]  # type: ignore[literal-required]
    cells = tuple("-" if value is None else _number(value) for _, value in values)
    drawn = _histogram(found["distribution"]) if found["distribution"] else ""
    return title + html_table(names, [cells]) + drawn


def _number(value: float | list[float]) -> str:
    return f"{value:.5g}" if isinstance(value, int | float) else f"{value[0]:.5g}{value[1]:+.5g}j"


def _histogram(found: DistributionRecord) -> str:
    """Bars as SVG, which notebooks show without scripts."""
    most = max(found["bins"]) or 1

    def bars() -> Iterator[str]:
        for place, number in enumerate(found["bins"]):
            high = 60 * number / most
            yield f'<rect x="{place * 10}" y="{60 - high:.1f}" width="9" height="{high:.1f}"/>'

    width = 10 * len(found["bins"])
    label = f"{found['low']:.4g} to {found['high']:.4g}"
    return (
        f'<svg width="{width}" height="80" role="img" aria-label="histogram, {label}" '
        f'fill="currentColor" opacity="0.6">{"".join(bars())}'
        f'<text x="0" y="76" font-size="12">{label}</text></svg>'
    )
