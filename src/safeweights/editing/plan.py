"""What an edit will do, or did, as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

__all__ = ["EditPlan", "EditedFile", "How"]

How: TypeAlias = Literal["written", "header", "patched", "kept"]
"""What happens to a file: it is written anew; it gets a new header before data that does not change; a
few bytes of its header are overwritten in place; or nothing."""


@dataclass(frozen=True)
class EditedFile:
    """One file that is read or written.

    Attributes:
        path: Where it is.
        format: In which format it is read; ``"safetensors"``, or ``"index"`` for an index of shards.
        tensors: How many are in it.
        nbytes: Its size.
        how: For an output, what happens to it.
        moved: For an output, bytes that are not read: the system moves them, or they stay where they are.
    """

    path: str
    format: str
    tensors: int
    nbytes: int
    how: How = "kept"
    moved: int = 0


@dataclass
class EditPlan:
    """What an edit does.

    Attributes:
        sources: The files read.
        outputs: The files that are there afterwards, in order; the index is last.
        removed: Files of the checkpoint before that are not there afterwards.
        tensors: How many tensors the outputs have.
        nbytes: Bytes of these tensors.
        renamed: Old name -> new name.
        dropped: Names left out.
        added: Name -> the file that it comes from.
        cast: Name -> old type and new type.
        ties: Name -> the name under which its bytes are written.
        untied: Names that were ties before, and are tensors now.
        metadata_set: Metadata entries that are set, also those computed anew from the data.
        metadata_removed: Key -> why it is left out.
        notes: What else is worth knowing, in sentences.
        in_place: Whether the source itself is changed.
        dry_run: Whether nothing was written.
    """

    sources: list[EditedFile] = field(default_factory=list)
    outputs: list[EditedFile] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    tensors: int = 0
    nbytes: int = 0
    renamed: dict[str, str] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    added: dict[str, str] = field(default_factory=dict)
    cast: dict[str, tuple[str, str]] = field(default_factory=dict)
    ties: dict[str, str] = field(default_factory=dict)
    untied: list[str] = field(default_factory=list)
    metadata_set: dict[str, str] = field(default_factory=dict)
    metadata_removed: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    in_place: bool = False
    dry_run: bool = False
