"""Boxes of tensors: in memory as contiguous blocks, in a file as runs of bytes.

Offsets and lengths count torch's elements: of F4, pairs along the last axis.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...format.dtypes import DTYPES
from ...format.indexing import Runs, Selection, runs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch

__all__ = ["blocks", "box_runs"]


def box_runs(
    code: str, shape: Sequence[int], offsets: Sequence[int], lengths: Sequence[int]
) -> Runs:
    """Where a box of a tensor is, in bytes from the beginning of the tensor.

    Args:
        code: Code of the element type.
        shape: Elements along each axis of the tensor, as torch counts them.
        offsets: Where the box begins along each axis.
        lengths: How long it is along each axis.
    """
    packed = DTYPES[code].packed
    if packed > 1 and shape:
        shape = (*shape[:-1], shape[-1] * packed)
        offsets = (*offsets[:-1], offsets[-1] * packed)
        lengths = (*lengths[:-1], lengths[-1] * packed)
    starts, counts = tuple(offsets), tuple(lengths)
    return runs(Selection(starts, counts, (1,) * len(starts), (), counts), shape, code)


def blocks(
    tensor: torch.Tensor, most: int, *, starts: tuple[int, ...] | None = None, axis: int = 0
) -> Iterator[tuple[tuple[int, ...], torch.Tensor]]:
    """A tensor as views of at most `most` bytes: where each begins in it, and the view.

    Args:
        tensor: Any strided tensor.
        most: Bytes of a view; a single element may have more.
        starts: Where `tensor` itself begins.
        axis: The first axis that may be divided.
    """
    starts = (0,) * tensor.dim() if starts is None else starts
    nbytes = tensor.numel() * tensor.element_size()
    if nbytes <= most or axis == tensor.dim():
        if nbytes:
            yield starts, tensor
        return
    size = tensor.shape[axis]
    rows = max(1, most * size // nbytes)
    for first in range(0, size, rows):
        part = tensor.narrow(axis, first, min(rows, size - first))
        at = (*starts[:axis], starts[axis] + first, *starts[axis + 1 :])
        yield from blocks(part, most, starts=at, axis=axis + 1)
