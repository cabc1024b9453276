"""Which torch tensors share memory, and which of them to keep when only one can be written.

Nothing here reads or writes files.
"""

from __future__ import annotations

from itertools import islice, pairwise
from operator import add, gt
from typing import TYPE_CHECKING

import torch

from ...errors import SharedMemoryError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

__all__ = [
    "are_disjoint",
    "choose_kept",
    "duplicates",
    "find_shared_tensors",
    "is_complete",
    "overlapping_tensors",
]


def span(tensor: torch.Tensor) -> tuple[int, int]:
    """First and one past the last byte of memory that a strided tensor may touch."""
    start = tensor.data_ptr()
    if tensor.is_contiguous():
        return start, start + tensor.nbytes
    if tensor.numel() == 0:
        return start, start
    last = sum(
        (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
    return start, start + (last + 1) * tensor.element_size()


def are_disjoint(begins: Sequence[int], sizes: Iterable[int]) -> bool:
    """Whether no two areas of memory overlap; none of them is empty.

    Cost: two sorts of integers. With as many areas begun as ended at each end that comes before the next
    begin, never two are open at once, whichever end belongs to which begin.

    >>> are_disjoint([8, 0], [4, 8]), are_disjoint([8, 0], [4, 9])
    (True, False)
    """
    ends = sorted(map(add, begins, sizes))
    return not any(map(gt, ends, islice(sorted(begins), 1, None)))


def find_shared_tensors(tensors: Mapping[str, torch.Tensor]) -> list[set[str]]:
    """Group tensors whose memory overlaps; a tensor that shares with no other is a group of its own.

    Every overlap is found: between views of one storage, and between storages that were made over the
    same memory. Meta and empty tensors, which have no memory, are left out.
    """
    return [group for areas in _areas(tensors) for group in _groups(areas)]


def overlapping_tensors(tensors: Mapping[str, torch.Tensor]) -> list[set[str]]:
    """The groups of `find_shared_tensors` that have more than one member; cheap where there is none."""
    return [
        group
        for areas in _areas(tensors)
        if any(later[0] < earlier[1] for earlier, later in pairwise(areas))
        for group in _groups(areas)
        if len(group) > 1
    ]


def _areas(tensors: Mapping[str, torch.Tensor]) -> list[list[tuple[int, int, str]]]:
    """For each device (first byte, one past the last, name) of the tensors there, sorted."""
    areas: dict[torch.device, list[tuple[int, int, str]]] = {}
    host: list[tuple[int, int, str]] = []
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):  # a module's extra state, which cannot be saved
            continue
        if tensor.is_meta or not tensor.numel() or not tensor.data_ptr():
            continue
        found = host if tensor.is_cpu else areas.setdefault(tensor.device, [])
        found.append((*span(tensor), name))
    return [sorted(found) for found in (host, *areas.values())]


def _groups(areas: Iterable[tuple[int, int, str]]) -> list[set[str]]:
    groups: list[set[str]] = []
    stop = -1
    for begin, end, name in areas:
        if begin < stop:
            groups[-1].add(name)
        else:
            groups.append({name})
        stop = max(stop, end)
    return groups


def is_complete(tensor: torch.Tensor) -> bool:
    """Whether a tensor is all of its storage."""
    storage = tensor.untyped_storage()
    size = tensor.numel() * tensor.element_size()
    return tensor.data_ptr() == storage.data_ptr() and size == storage.nbytes()


def choose_kept(
    names: Collection[str],
    state: Mapping[str, torch.Tensor],
    preferred: Collection[str] = (),
    discarded: Collection[str] = (),
) -> str:
    """Of tensors that share memory, the one that holds all of it; the first by name of several.

    Args:
        names: Who shares.
        state: The tensors.
        preferred: Names to keep if possible, such as those a file has.
        discarded: Names to keep only if there is no other.

    Raises:
        SharedMemoryError: None of them is a whole storage.
    """
    complete = {name for name in names if is_complete(state[name])}
    if not complete:
        raise SharedMemoryError(
            "Error while trying to find names to remove to save state dict, but found no suitable name "
            f"to keep for saving amongst: {set(names)}. None is covering the entire storage.Refusing to "
            "save/load the model since you could be storing much more memory than needed. Save the "
            "tensor that these are views of, or clone them."
        )
    return min(complete & set(preferred) or complete - set(discarded) or complete)


def duplicates(
    state: Mapping[str, torch.Tensor], preferred: Iterable[str] = ()
) -> dict[str, list[str]]:
    """Which names to leave out so that no two tensors share memory: kept -> left out.

    Raises:
        SharedMemoryError: Tensors overlap, and none of them holds all that they share.
    """
    wanted = set(preferred)
    left_out: dict[str, list[str]] = {}
    for names in find_shared_tensors(state):
        if len(names) > 1:
            kept = choose_kept(names, state, wanted)
            left_out[kept] = sorted(names - {kept})
    return left_out
