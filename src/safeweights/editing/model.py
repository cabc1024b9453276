"""A checkpoint as edits see it: its tensors, which of them are tied, its metadata and its files."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..conversion.foreign import ForeignCheckpoint
from ..errors import UnsupportedError, quote
from ..text import plural
from ..trust.verifier import identity_in_use

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ..checkpoint import Checkpoint, SafetensorsFile, Tensor

__all__ = ["Model", "below", "model_of", "refuse_unreadable"]


@dataclass
class Model:
    """Tensors on their way from one checkpoint to another.

    Attributes:
        name: What to call it in messages.
        tensors: Name -> tensor; tied names are not among them.
        ties: Name -> the name in `tensors` that has its bytes.
        homes: Name -> the name of its file, where there are several.
        metadata: Name of a file -> its metadata, without the ties; of a single file under ``""``.
    """

    name: str
    tensors: dict[str, Tensor]
    ties: dict[str, str] = field(default_factory=dict)
    homes: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, dict[str, str] | None] = field(default_factory=dict)


def model_of(checkpoint: Checkpoint, root: str = "", *, several: bool = False) -> Model:
    """The model that a checkpoint is.

    A metadata entry whose key is no tensor and whose value is the name of one records a tie, as
    `safetensors.torch.save_model` writes it.

    Args:
        checkpoint: The checkpoint.
        root: The folder that its files are named relative to.
        several: Whether it counts as one of several files also with one, because it has an index.
    """
    tensors = dict(checkpoint.items())
    ties: dict[str, str] = {}
    if isinstance(checkpoint, ForeignCheckpoint):
        for name, first in checkpoint.aliases.items():
            if name != first and name in tensors and first in tensors:
                ties[name] = first
                del tensors[name]
    several = several or len(checkpoint.files) > 1
    files: Iterable[SafetensorsFile] = checkpoint.files if several else ()
    found: dict[str, Mapping[str, str] | None] = {"": checkpoint.metadata}
    homes: dict[str, str] = {}
    for file in files:
        name = below(file.name, root)
        if identity_in_use() is not None:
            from ..trust.access.stores import plain_name

            name = plain_name(name) or name
        homes.update(dict.fromkeys(file.header.tensors, name))
        found[name] = file.header.metadata
    if homes:
        del found[""]
    metadata: dict[str, dict[str, str] | None] = {}
    for name, entries in found.items():
        tied = {
            key: value
            for key, value in (entries or {}).items()
            if value in tensors and key not in tensors and key not in ties
        }
        ties |= tied
        metadata[name] = (
            None
            if entries is None
            else {key: value for key, value in entries.items() if key not in tied}
        )
    return Model(checkpoint.name, tensors, ties, homes, metadata)


def below(path: str, root: str) -> str:
    """The name of a file in the folder `root`."""
    return path.removeprefix(root.rstrip("/") + "/") if root else path


def refuse_unreadable(checkpoint: Any, names: Iterable[str]) -> None:
    """Refuse tensors that their file describes without giving their values.

    Raises:
        UnsupportedError: One of `names` is such a tensor.
    """
    refused = checkpoint.refused
    wanted = [name for name in names if name in refused]
    if wanted:
        raise UnsupportedError(
            f"{plural(len(wanted), 'tensor')} cannot be written, the first is {quote(wanted[0])}: "
            f"{refused[wanted[0]]}; leave out those that are not needed (drop, --drop)",
            path=checkpoint.name, tensor=wanted[0],
        )  # fmt: skip
