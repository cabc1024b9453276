"""Random ways to divide a tensor."""

from __future__ import annotations

import random

from safeweights.derived.boxes import Box


def split(box: Box, rng: random.Random, depth: int) -> list[Box]:
    """Cut a box at random places."""
    axes = [axis for axis, length in enumerate(box.lengths) if length > 1]
    if not axes or not depth:
        return [box]
    axis = rng.choice(axes)
    at = rng.randrange(1, box.lengths[axis])
    halves = []
    for offset, length in ((0, at), (at, box.lengths[axis] - at)):
        offsets, lengths = list(box.offsets), list(box.lengths)
        offsets[axis] += offset
        lengths[axis] = length
        halves.append(Box(tuple(offsets), tuple(lengths)))
    return [part for half in halves for part in split(half, rng, depth - 1)]
