"""Many models, one command: units of work in processes or on a Ray cluster, continued after a kill.

`sources` finds the units, `running` has them done by an engine (`processes`, or `clusters` for Ray),
`manifest` remembers which are done, `reporting` says what came of them. What is done with a unit is a
function that is named by its module, so that every worker can import it; the command line's is
`safeweights.cli.performing`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .manifest import Manifest, ManifestError
    from .reporting import BatchReport, record_of
    from .running import ENGINES, run_units
    from .sources import Shard, find_units
    from .units import Outcome, Unit, Work

__all__ = [
    "ENGINES", "BatchReport", "Manifest", "ManifestError", "Outcome", "Shard", "Unit", "Work",
    "find_units", "record_of", "run_units",
]  # fmt: skip

# A worker imports `units` and `worker` only.
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "ENGINES": "running", "run_units": "running",
        "BatchReport": "reporting", "record_of": "reporting",
        "Manifest": "manifest", "ManifestError": "manifest",
        "Outcome": "units", "Unit": "units", "Work": "units",
        "Shard": "sources", "find_units": "sources",
    },
)  # fmt: skip
