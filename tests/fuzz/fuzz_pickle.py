"""Coverage-guided fuzzing of everything that reads pickles: only our errors may come out.

    python tests/fuzz/fuzz_pickle.py -max_total_time=60 corpus/

Each input is read by the symbolic machine, opened as a checkpoint, rebuilt, described in plain values, and
scanned.
"""

from __future__ import annotations

import contextlib
import sys

import atheris

with atheris.instrument_imports(include=["safeweights"]):
    from safeweights.conversion import Limits, open, scan
    from safeweights.conversion.foreign import ALL_CONSTRUCTORS, ForeignCheckpoint
    from safeweights.conversion.pickles.machine import read_pickle
    from safeweights.conversion.rebuilding import rebuild
    from safeweights.conversion.record import dropped_records, others_as_json
    from safeweights.errors import SafetensorError
    from safeweights.storage import BytesSource

LIMITS = Limits(
    opcodes=50_000,
    objects=20_000,
    memo=20_000,
    marks=1000,
    visits=20_000,
    tensors=10_000,
    view_bytes=1 << 24,
    inflated_bytes=1 << 24,
)


def one_input(data: bytes) -> None:
    """Fail on any exception that is not of our family."""
    with contextlib.suppress(SafetensorError):
        read_pickle(BytesSource(data, "fuzz"), constructors=ALL_CONSTRUCTORS, limits=LIMITS)
    with contextlib.suppress(SafetensorError):
        found = open(data, limits=LIMITS, densify=True)
        for tensor in found.values():
            tensor.view()
        rebuild(found, lambda *_: None)
        if isinstance(found, ForeignCheckpoint):
            others_as_json(found.others)
            dropped_records("fuzz", found.others, 100)
    report = scan(data, limits=LIMITS)
    assert report.verdict in {"clean", "unknown", "dangerous", "incomplete"}


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
