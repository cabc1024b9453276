"""Results as tables: for a terminal, for a pipe, and for Markdown."""

from __future__ import annotations

import sys
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from .results import NOISY, RowResult, Sampled
from .rows import OURS, PEERS

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "figure", "machine_line", "markdown", "memory_line", "noise_warning", "print_tables", "remarks",
    "results_of", "state_line",
]  # fmt: skip

_WIDTH: Final = 100
_HEAD: Final = ("row", "ours", "against", "ratio", "reach <=", "limit", "/limit", "")
_PEER_HEAD: Final = ("time of the others / ours", *PEERS)

LEGEND: Final = """\
Medians, ± the median absolute deviation. against: safetensors 0.8.0, or the best peer where the row
is about owned or cold loads; ratio: ours by that; reach <=: what the ratio, or ours where it has a
unit, shall not exceed (85%: of the limit's rate at least); limit: what the machine itself needs;
as a verdict: the limit misses the mark too, and ours is within a fifth of it;
noisy: samples differ too much, and undisturbed ones give another verdict than the medians."""

Cells = tuple[str, ...]


def results_of(document: dict[str, Any]) -> list[RowResult]:
    """The rows of a result file."""
    return [RowResult.from_json(row) for row in document["rows"]]


def machine_line(document: dict[str, Any]) -> str:
    """One line: what the figures were measured on."""
    found, versions = document["machine"], document["versions"]
    return (
        f"{found['cpu']}, {found['cores']} cores, {found['memory_gib']:g} GiB, Linux {found['kernel']}, "
        f"{found['filesystem']}, Python {found['python']}, "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
    )


def state_line(document: dict[str, Any]) -> str:
    """One line: the state that the machine was in; see `bench.machine`. Empty for older results."""
    found = document["machine"]
    if "sha256_gib_s" not in found:
        return ""
    disk = (
        f", direct writes to new blocks {found['new_blocks_gib_s']:g} GiB/s, to the same again "
        f"{found['same_blocks_gib_s']:g}"
        if "new_blocks_gib_s" in found
        else ""
    )
    return (
        f"load {found['load_at_start']:.1f}, steal {found.get('steal', 0):.1%}, idle "
        f"{found.get('idle', 0):.0%} of the time; SHA-256 {found['sha256_gib_s']:g} GiB/s "
        f"({'with' if found['sha_instructions'] else 'without'} instructions for it), fresh memory "
        f"{found['fresh_memory_gib_s']:g} GiB/s, {found['mapped_kib_per_fault']:,} KiB of a cached file "
        f"per fault, huge pages: {found['huge_pages']}{disk}"
    )


def memory_line(results: Sequence[RowResult]) -> str:
    """One line: how fast free memory was to be had, before the samples; empty if no row needed much.

    A host that is short of memory takes a virtual machine's free memory away, and needs seconds to give it
    back: saves of the same code then take twice as long.
    """
    rates = {found.name: found.memory_rate for found in results if found.memory_rate}
    if not rates:
        return ""
    slowest, fastest = min(rates, key=rates.__getitem__), max(rates, key=rates.__getitem__)
    return (
        f"free memory was touched before samples at {rates[slowest] / (1 << 30):.1f} ({slowest}) to "
        f"{rates[fastest] / (1 << 30):.1f} GiB/s ({fastest})"
    )


def noise_warning(results: Sequence[RowResult]) -> str:
    """Which rows are too noisy to publish; empty if none is."""
    noisy = [f"{found.name} (±{found.noise:.0%})" for found in results if found.noise > NOISY]
    if not noisy:
        return ""
    return f"too noisy to publish, above ±{NOISY:.0%}: {', '.join(noisy)}"


def remarks(document: dict[str, Any]) -> list[str]:
    """Below the figures: the state of the machine, how fast memory was to be had, what was measured again,
    and what is too noisy."""
    results = results_of(document)
    again = [found.name for found in results if found.sittings > 1]
    lines = (
        state_line(document),
        memory_line(results),
        f"measured again after everything else: {', '.join(again)}" if again else "",
        noise_warning(results),
    )
    return [line for line in lines if line]


def figure(value: float | None, unit: str) -> str:
    """A value with three digits and its unit.

    >>> figure(0.01234, "s"), figure(None, "s"), figure(1.0, "x")
    ('12.3 ms', '-', '1.00x')
    """
    if value is None:
        return "-"
    if unit == "x":
        return f"{value:.2f}x"
    if unit == "B":
        return f"{value / (1 << 20):.1f} MiB"
    for scale, name in ((1.0, "s"), (1e-3, "ms")):
        if abs(value) >= scale:
            return f"{_digits(value / scale)} {name}"
    return f"{_digits(value / 1e-6)} us"


def _with_spread(found: Sampled, unit: str) -> str:
    """The median, and how far half of the samples are from it at most, in percent."""
    middle = found.median
    if unit != "s" or not middle:
        return figure(middle, unit)
    return f"{figure(middle, unit)} ±{found.spread / abs(middle):.0%}"


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _quotient(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _row(result: RowResult) -> Cells:
    against = result.contenders.get(result.compared or "", Sampled())
    limit = next(iter(result.limits.values()), Sampled())
    return (
        result.title,
        _with_spread(result.contenders[OURS], result.unit),
        _with_spread(against, result.unit),
        _quotient(result.ratio),
        result.reach,
        figure(limit.median, result.unit),
        _quotient(result.limit_ratio),
        result.verdict,
    )


def _peer_row(result: RowResult) -> Cells:
    ours = result.contenders[OURS].median

    def cell(column: str) -> str:
        theirs = result.contenders.get(column, Sampled()).median
        return "-" if not ours or theirs is None else _quotient(theirs / ours)

    return (result.title, *(cell(column) for column in PEERS))


def _peer_rows(results: Sequence[RowResult]) -> list[Cells]:
    return [_peer_row(result) for result in results if result.unit == "s"]


def print_tables(document: dict[str, Any]) -> None:
    """Print everything: with colours on a terminal, plain and without trailing blanks in a pipe."""
    results = results_of(document)
    rows = [_row(result) for result in results]
    if sys.stdout.isatty():
        _print_rich(_HEAD, rows)
        _print_rich(_PEER_HEAD, _peer_rows(results))
    else:
        print("\n".join(plain(_HEAD, rows)))
        print()
        print("\n".join(plain(_PEER_HEAD, _peer_rows(results))))
    print(f"\n{LEGEND}\n")
    for line in _notes(results):
        print(line)
    print(machine_line(document))
    for line in remarks(document):
        print(line)


def _notes(results: Sequence[RowResult]) -> list[str]:
    lines = []
    for result in results:
        texts = [*result.notes, *(result.failures or ()), *_used(result), *_limited(result)]
        lines += [f"{result.title}: {text}" for text in texts]
    return lines


def _used(result: RowResult) -> list[str]:
    """What ours needs of processors where the row misses its mark."""
    used = result.contenders[OURS].processor_seconds
    return (
        [f"ours uses {figure(median(used), 's')} of processors"] if result.failures and used else []
    )


def _limited(result: RowResult) -> list[str]:
    """The limit that stands in the way, in words."""
    if result.verdict != "limit":
        return []
    name = result.bound or next(iter(result.limits))
    return [f"{name} alone takes {figure(result.limits[name].median, result.unit)}"]


def plain(head: Cells, rows: Sequence[Cells]) -> list[str]:
    """Columns padded with blanks, at most 100 wide: the first gives way."""
    widths = [max(len(row[place]) for row in (head, *rows)) for place in range(len(head))]
    widths[0] = min(widths[0], _WIDTH - sum(widths[1:]) - 2 * (len(head) - 1))
    lines = []
    for row in (head, *rows):
        first = row[0] if len(row[0]) <= widths[0] else row[0][: widths[0] - 3] + "..."
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return lines


def _print_rich(head: Cells, rows: Sequence[Cells]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=(0, 1), collapse_padding=True)
    for place, name in enumerate(head):
        table.add_column(name, justify="right" if place else "left", overflow="fold")
    colours = {"pass": "green", "FAIL": "bold red", "noisy": "yellow", "limit": "yellow"}
    for row in rows:
        table.add_row(
            *row[:-1], f"[{colours[row[-1]]}]{row[-1]}" if row[-1] in colours else row[-1]
        )
    console = Console()
    console.print(table, width=min(_WIDTH, console.width))


def markdown(document: dict[str, Any]) -> str:
    """Both tables, and what they were measured on."""
    results = results_of(document)
    parts = [
        _markdown_table(_HEAD, [_row(result) for result in results]),
        "How many times as long the others take (-: cannot do it; why is in the JSON):",
        _markdown_table(_PEER_HEAD, _peer_rows(results)),
        f"Medians of {document['started'][:10]}; {machine_line(document)}.",
        *remarks(document),
    ]
    return "\n\n".join(parts) + "\n"


def _markdown_table(head: Cells, rows: Sequence[Cells]) -> str:
    ruler = ("---", *("--:" for _ in head[1:]))
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ruler, *rows))
