"""The symbolic pickle machine beside CPython's own Python code, CPU time of an opcode, best of twelve.

`pickletools.genops` only reads opcodes and their arguments; `pickle._loads` executes them, in Python too.
The machine does what the second does, and keeps what it would import and call.
"""

from __future__ import annotations

import collections
import pickle
import pickletools
import random
import time
from typing import TYPE_CHECKING

from safeweights.conversion.pickles.machine import PickleMachine
from safeweights.storage import BytesSource
from safeweights.storage.limits import Limits

if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS = 12
OPCODES = 60_000
UNBOUNDED = Limits(opcodes=1 << 40, objects=1 << 40, memo=1 << 30)


def streams() -> dict[str, bytes]:
    """Pickles of about as many opcodes each."""
    chosen = random.Random(1)
    return {
        "None and POP": b"\x80\x02" + b"N0" * (OPCODES // 2) + b"N.",
        "a list of integers": pickle.dumps([chosen.randrange(100_000) for _ in range(OPCODES)], 2),
        "a dictionary of text": pickle.dumps(
            {f"layer.{i}.weight": i for i in range(OPCODES // 6)}, 4
        ),
        "pairs": pickle.dumps([(i, i + 1) for i in range(OPCODES // 6)], 2),
        "lists and dictionaries": pickle.dumps([[i, {"a": i}] for i in range(OPCODES // 10)], 4),
    }


def best(action: Callable[[], object]) -> float:
    """Least CPU seconds of several rounds."""
    found = []
    for _ in range(ROUNDS):
        began = time.process_time()
        action()
        found.append(time.process_time() - began)
    return min(found)


def main() -> None:
    """Print one row a stream, microseconds an opcode."""
    print(
        "| pickle | safeweights | pickletools.genops | pickle._loads | of genops |\n|---|---|---|---|---|"
    )
    for title, data in streams().items():
        count = sum(1 for _ in pickletools.genops(data))
        ours = best(lambda: PickleMachine(BytesSource(data), limits=UNBOUNDED).run())  # noqa: B023
        read = best(lambda: collections.deque(pickletools.genops(data), 0))  # noqa: B023
        loads = best(lambda: pickle._loads(data))  # noqa: B023
        row = " | ".join(f"{seconds / count * 1e6:.2f} us" for seconds in (ours, read, loads))
        print(f"| {title} | {row} | {ours / read:.2f} |")


if __name__ == "__main__":
    main()
