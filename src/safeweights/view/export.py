"""The page and what it shows in one file: to attach to a review, or to keep.

The file loads nothing and sends nothing; its Content Security Policy allows only the two scripts and the
two styles in it, by their hashes. Data stands in a block that browsers do not execute.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

from ..format.indexing import select
from ..reports.statistics import statistics_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from .viewing import Viewed

__all__ = ["TENSORS_MAX", "report"]

TENSORS_MAX: Final = 20_000
"""Maximum number of tensors in a report."""

_LINK = re.compile(r'<link rel="stylesheet" href="/(?P<name>[^"]+)">')
_SCRIPT = re.compile(r'<script src="/(?P<name>[^"]+)" defer></script>\n')
_NAMES: Final = {"uPlot.css": "uPlot.min.css", "uPlot.js": "uPlot.iife.min.js"}


def report(
    viewed: Viewed, *, statistics: bool, progress: Callable[[int], object] | None = None
) -> str:
    """The HTML of a report.

    Args:
        viewed: What it is about.
        statistics: With statistics of all tensors in it, for which all values are read.
        progress: Called with the number of values read.
    """
    data = {
        "model": {"document": viewed.document, "tensors": min(len(viewed.rows), TENSORS_MAX)},
        "tensors": _tensors(viewed),
        "map": viewed.map(),
        "findings": viewed.findings,
        "signature": viewed.signature,
        "verdict": viewed.verdict,
        "difference": viewed.difference,
        "statistics": _statistics(viewed, progress) if statistics else {},
    }
    return _page(data)


def _tensors(viewed: Viewed) -> list[Any]:
    found: list[Any] = []
    while len(found) < min(len(viewed.rows), TENSORS_MAX):
        found += viewed.tensors(start=len(found), count=500)["tensors"]
    return found[:TENSORS_MAX]


def _statistics(viewed: Viewed, progress: Callable[[int], object] | None) -> dict[str, Any]:
    numbers = [n for n, row in enumerate(viewed.rows[:TENSORS_MAX]) if row.unreadable is None]
    tensors = (viewed.tensor(number) for number in numbers)
    found = statistics_of(((each, select(..., each.shape)) for each in tensors), progress)
    return {str(number): each for number, each in zip(numbers, found, strict=True)}


def _page(data: dict[str, Any]) -> str:
    hashes: dict[str, list[str]] = {"script": [], "style": []}

    def inlined(kind: str, name: str) -> str:
        text = files(__package__).joinpath("page", _NAMES.get(name, name)).read_text("utf-8")
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        hashes[kind].append(f"'sha256-{digest}'")
        return f"<{kind}>{text}</{kind}>"

    html = files(__package__).joinpath("page", "index.html").read_text("utf-8")
    html = _LINK.sub(lambda found: inlined("style", found["name"]), html)
    scripts = "\n".join(inlined("script", found["name"]) for found in _SCRIPT.finditer(html))
    # A `<` would let text of the model end the block.
    text = json.dumps(data, allow_nan=False).replace("<", "\\u003c")
    block = f'<script type="application/json" id="exported-data">{text}</script>'
    policy = (
        f"default-src 'none'; script-src {' '.join(hashes['script'])}; "
        f"style-src {' '.join(hashes['style'])}; img-src data:; base-uri 'none'; form-action 'none'"
    )
    meta = f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    html = _SCRIPT.sub("", html).replace("<title>", f"{meta}\n<title>", 1)
    return html.replace("</body>", f"{block}\n{scripts}\n</body>", 1)
