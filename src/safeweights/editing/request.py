"""What to change in a checkpoint, as data."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..errors import UnsupportedError, quote

__all__ = ["Edits"]


@dataclass(frozen=True)
class Edits:
    r"""What to change. The steps apply in the order of the attributes, each to what the others left.

    Attributes:
        untie: Shell patterns of tied names that become tensors of their own.
        keep: Shell patterns of the tensors to keep; all, if there are none.
        drop: Shell patterns of the tensors to leave out.
        map: The name of a renaming that is known, such as ``"lora-sdxl:kohya-to-diffusers"``; see
            `safeweights.editing.keymaps`.
        rename: Old name -> new name.
        rename_re: Regular expression -> replacement, in order; ``\1`` stands for a group.
        strip_prefix: Prefixes to remove from the names that have them.
        add_prefix: What to put before every name.
        add: Checkpoints whose tensors are added under their own names: paths, or pairs of a path and a
            shell pattern of the names wanted.
        dtype: ``"BF16"`` converts all real floating-point tensors, ``"F64=F32,C128=C64"`` those types.
            Floats are rounded; any other value that the new type cannot hold is an error.
        tie: Name -> the name of a tensor with the same bytes, under which they are written once.
        metadata: Entries to set.
        unset: Keys of entries to remove.
        sort: Order tensors by name, numbers in it by value, instead of by type and name.
        split: Write files of at most this many bytes (``"5GB"``), and an index.
        merge: Write one file.
        align: The data of each file begins at a multiple of so many bytes: a power of two, at least 8,
            which is also the default for files that are written.
    """

    untie: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    map: str | None = None
    rename: Mapping[str, str] = field(default_factory=dict)
    rename_re: Mapping[str, str] = field(default_factory=dict)
    strip_prefix: tuple[str, ...] = ()
    add_prefix: str = ""
    add: tuple[str | tuple[str, str], ...] = ()
    dtype: str | None = None
    tie: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    unset: tuple[str, ...] = ()
    sort: bool = False
    split: int | str | None = None
    merge: bool = False
    align: int | None = None

    def __post_init__(self) -> None:
        for name in ("untie", "keep", "drop", "strip_prefix", "add", "unset"):
            given = getattr(self, name)
            if isinstance(given, str | os.PathLike):
                given = (os.fspath(given),)
            object.__setattr__(self, name, tuple(given))
        if self.split is not None and self.merge:
            raise UnsupportedError("split and merge exclude each other")
        align = self.align or 8
        if align < 8 or align & (align - 1) or align > 1 << 20:
            raise UnsupportedError(
                f"align is {self.align}: a power of two from 8 to {1 << 20:,} is needed"
            )
        for key in self.metadata.keys() & set(self.unset):
            raise UnsupportedError(f"metadata {quote(key)} cannot be both set and removed")
