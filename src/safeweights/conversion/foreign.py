"""The mapping that every foreign container becomes, and how a pickle's tree gets there.

A `ForeignCheckpoint` is what the rest of the package calls a checkpoint, a mapping from names to
tensors not read yet, with what else the file held beside it: what is no tensor, what could not be
given, and the calls that loading the file with its own library would have made.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from ..checkpoint import Checkpoint
from ..storage.limits import DEFAULT_LIMITS, Limits
from .pickles.flatten import Flat, Other, flatten
from .pickles.materialize import Materialized, Storages, materialize
from .pickles.numpy_nodes import NUMPY_CONSTRUCTORS
from .pickles.object_nodes import OBJECT_CONSTRUCTORS
from .pickles.torch_nodes import TORCH_CONSTRUCTORS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ..storage import Verifier
    from .pickles.machine import Pickle
    from .pickles.nodes import Call, Value

__all__ = ["ALL_CONSTRUCTORS", "ForeignCheckpoint", "OpenOptions", "from_tree"]

ALL_CONSTRUCTORS = {**OBJECT_CONSTRUCTORS, **NUMPY_CONSTRUCTORS, **TORCH_CONSTRUCTORS}
"""Every call that the package can describe."""


@dataclass(frozen=True)
class OpenOptions:
    """How to open a foreign file.

    Attributes:
        limits: What the file may cost.
        densify: Make sparse and quantised tensors dense instead of refusing them.
        casts: Element type -> the type that its tensors are converted to.
        paddle: Read arrays of 16-bit unsigned integers as BF16, which is what Paddle means by them.
        verify: Given the source of a further file and its path, the source to read from instead.
    """

    limits: Limits = DEFAULT_LIMITS
    densify: bool = False
    casts: Mapping[str, str] = field(default_factory=dict)
    paddle: bool = False
    verify: Verifier | None = None


class ForeignCheckpoint(Checkpoint):
    """A checkpoint of another format: name -> tensor, in the file's order, nothing read yet.

    Attributes:
        format: What it is, e.g. ``"torch-zip"``.
        aliases: Name -> the first name that shows the same bytes (tied weights).
        others: What is not a tensor, the first 100,000 of `others_count`.
        calls: The calls that the format's own loader would have made, in order.
        tree: What the file holds, as `rebuilding` takes it; None for a format that holds only tensors.
        nodes: Name -> the node of `tree` that describes what is called so.
    """

    tree: Value = None
    nodes: Mapping[str, Value] = MappingProxyType({})

    def __init__(
        self,
        name: str,
        format_name: str,
        found: Materialized,
        *,
        metadata: Mapping[str, str] | None = None,
        others: Iterable[Other] = (),
        others_count: int = 0,
        calls: Iterable[Call] = (),
    ) -> None:
        super().__init__(found.tensors, metadata, name=name)
        self.format = format_name
        self.aliases = found.aliases
        self.others = list(others)
        self.others_count = others_count
        self.calls = list(calls)


def from_tree(
    format_name: str,
    path: str,
    tree: Value,
    options: OpenOptions,
    *,
    pickles: tuple[Pickle, ...] = (),
    storages: Storages | None = None,
    metadata: Mapping[str, str] | None = None,
) -> ForeignCheckpoint:
    """The checkpoint that a tree of nodes describes.

    Raises:
        FormatError: Names collide, a tensor contradicts its storage, or a limit is exceeded.
    """
    flat: Flat = flatten(tree, path, options.limits)
    found: Materialized = materialize(
        flat, path, storages, options.limits, densify=options.densify, casts=options.casts
    )
    for name, tensor in found.tensors.items():
        if tensor.unreadable is not None:
            flat.add_other(name, flat.tensors.get(name), tensor.unreadable)
    checkpoint = ForeignCheckpoint(
        path,
        format_name,
        found,
        metadata=metadata,
        others=(replace(other, name=other.name or "(root)") for other in flat.others),
        others_count=flat.others_count,
        calls=(call for pickle in pickles for call in pickle.calls),
    )
    checkpoint.tree, checkpoint.nodes = tree, flat.tensors
    return checkpoint
