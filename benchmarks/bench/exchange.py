"""Results in the file format of pyperf, so that its stats, hist and compare_to work on them.

pyperf measures one benchmark after another and one command at a time; here contenders take turns and
caches are dropped between samples, so that only its statistics and files are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .report import results_of

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["write_pyperf"]


def write_pyperf(document: dict[str, Any], path: Path) -> None:
    """One benchmark a row and contender, called ``row/contender``; rows of seconds only."""
    import pyperf

    found = document["machine"]
    common = {
        "cpu_model_name": found["cpu"],
        "cpu_count": found["cores"],
        "platform": f"Linux {found['kernel']}",
        "python_version": found["python"],
    }
    benchmarks = []
    for result in results_of(document):
        for column, sampled in {**result.contenders, **result.limits}.items():
            values = [value for value in sampled.values if value > 0]
            if result.unit == "s" and values:
                metadata = {"name": f"{result.name}/{column}", "unit": "second", **common}
                run = pyperf.Run(values, metadata=metadata, collect_metadata=False)
                benchmarks.append(pyperf.Benchmark([run]))
    if benchmarks:
        pyperf.BenchmarkSuite(benchmarks).dump(str(path), replace=True)
