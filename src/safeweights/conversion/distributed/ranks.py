"""Files of `torch.save`, one a rank, that hold DTensors or ShardedTensors: joined to one checkpoint.

Each file was read by itself; a `PartTensor` says which boxes of a whole tensor it has. Rules: the files
must agree on shape, type and layout of each tensor and on counters such as `step`, no two of them be of the
same rank, and their boxes cover each tensor. Where several ranks have the same box, the first file gives
it. A plain tensor that is in several files must have the same bytes in each, or it is refused by name.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NoReturn

from ...checkpoint.tensor import UnreadableTensor
from ...errors import FormatError, quote
from ..pickles.flatten import summary
from ..pickles.materialize import PartTensor
from .assembling import Assembly

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ...checkpoint import Checkpoint, Tensor
    from ...derived.boxes import Box
    from ...derived.pieces import Piece
    from ..foreign import ForeignCheckpoint, OpenOptions

__all__ = ["has_parts", "join_ranks"]

_COUNTER = re.compile(r"(?:.*\.)?(?:global_?)?(?:step|epoch|iteration|iter)s?").fullmatch
"""Names of counters, which all ranks of a save have in common."""


def has_parts(checkpoint: Checkpoint) -> bool:
    """Whether a file has a part of a distributed tensor."""
    return not checkpoint.files and any(
        isinstance(tensor, PartTensor) for tensor in checkpoint.values()
    )


def join_ranks(
    parts: Sequence[ForeignCheckpoint], name: str, options: OpenOptions
) -> ForeignCheckpoint:
    """The checkpoint that files of several ranks make up.

    Cost: plain tensors that are in several files are read once in each, to compare them.

    Args:
        parts: The files.
        name: What to call the whole.
        options: How they were opened.

    Raises:
        FormatError: The files are not all of one save; a rank is missing.
    """
    found = Assembly(name, options)
    aliases: dict[str, str] = {}
    for part in parts:
        aliases.update(part.aliases)
    for tensor_name in dict.fromkeys(each for part in parts for each in part):
        holders = [(part, part[tensor_name]) for part in parts if tensor_name in part]
        if any(isinstance(tensor, PartTensor) for _, tensor in holders):
            _join(found, tensor_name, holders, parts)
        else:
            found.put([(tensor_name, _same(tensor_name, holders, name))])
    found.alias(aliases)
    _add_others(found, parts)
    found.add_listed_calls(call for part in parts for call in part.calls)
    sources = [source for part in parts for source in part.sources]
    return found.checkpoint("torch-ranks", sources)


def _join(
    found: Assembly,
    name: str,
    holders: list[tuple[ForeignCheckpoint, Tensor]],
    parts: Sequence[ForeignCheckpoint],
) -> None:
    """Add the distributed tensor called `name`."""
    first = holders[0][1]
    ranks: dict[int, str] = {}
    pieces: dict[Box, Piece] = {}
    for part, tensor in holders:
        if not isinstance(tensor, PartTensor) or not isinstance(first, PartTensor):
            _refuse(name, part.name, "is whole in one file and a part in another")
        node, expected = tensor.node, first.node
        for what, ours, theirs in (
            ("type", node.dtype, expected.dtype),
            ("shape", list(node.shape), list(expected.shape)),
            ("layout", node.layout, expected.layout),
        ):
            if ours != theirs:
                shown = "" if what == "layout" else f": {ours} and {theirs}"
                _refuse(
                    name, part.name,
                    f"has another {what} here than in {quote(holders[0][0].name)}{shown}; the files are "
                    "not of one save",
                )  # fmt: skip
        if node.rank is not None and node.rank in ranks:
            _refuse(
                name, part.name, f"is of rank {node.rank} here and in {quote(ranks[node.rank])}"
            )
        if node.rank is not None:
            ranks[node.rank] = part.name
        for piece in tensor.pieces:
            pieces.setdefault(piece.box, piece)  # ranks may have the same
    assert isinstance(first, PartTensor)
    if first.node.problem:
        found.refuse(name, first.dtype, first.shape, 0, first.node.problem)
        return
    try:
        found.add(name, first.dtype, first.shape, list(pieces.values()))
    except FormatError as error:
        if error.rule == "pieces-gap":
            _explain(error, first, list(pieces.values()), len(parts))
        raise


def _refuse(name: str, path: str, what: str) -> NoReturn:
    raise FormatError(f"tensor {quote(name)} {what}", rule="rank-files", path=path, tensor=name)


def _explain(error: FormatError, part: PartTensor, pieces: list[Piece], files: int) -> None:
    """Say in an error about a gap which rank has what is missing."""
    from ...derived.boxes import first_gap

    gap = first_gap(part.shape, [piece.box for piece in pieces])
    if gap is not None:
        owner = part.node.layout.owner_of(gap, part.shape)
        error.message += (
            f": {owner} has it, whose file is not among the {files}; give the files of all ranks"
        )
        error.rule = "missing-shard"


def _same(name: str, holders: list[tuple[ForeignCheckpoint, Tensor]], path: str) -> Tensor:
    """A plain tensor that is the same in all files that have it."""
    part, first = holders[0]
    for other_part, other in holders[1:]:
        if not _equal(first, other):
            reason = (
                f"it differs between {quote(part.name)} and {quote(other_part.name)}; convert the file "
                "that has the right one alone, or leave it out (--skip)"
            )
            return UnreadableTensor(
                name, first.dtype, first.shape, first.nbytes, reason=reason, path=path
            )
    return first


def _equal(one: Tensor, other: Tensor) -> bool:
    if (one.dtype, one.shape, one.nbytes) != (other.dtype, other.shape, other.nbytes):
        return False
    if one.unreadable is not None or other.unreadable is not None:
        return one.unreadable == other.unreadable
    size = 1 << 22
    for begin in range(0, one.nbytes, size):
        count = min(size, one.nbytes - begin)
        buffers = bytearray(count), bytearray(count)
        one.read_into(buffers[0], begin)
        other.read_into(buffers[1], begin)
        if buffers[0] != buffers[1]:
            return False
    return True


def _add_others(found: Assembly, parts: Iterable[ForeignCheckpoint]) -> None:
    """List what is no tensor: once, if it is the same in all files."""
    seen: dict[str, dict[str, str]] = {}
    for part in parts:
        for other in part.others:
            if other.name in part and isinstance(part[other.name], PartTensor):
                continue  # a part is listed as unreadable, and is none any more
            values = seen.setdefault(other.name, {})
            shown = summary(other.value)
            if values and shown not in values and _COUNTER(other.name):
                first, path = next(iter(values.items()))
                raise FormatError(
                    f"{quote(other.name)} is {first} in {quote(path)} and {shown} here; the files are not "
                    "of one save",
                    rule="rank-files", path=part.name,
                )  # fmt: skip
            if shown not in values:
                values[shown] = part.name
                found.add_other(other.name, other.value, other.reason)
