"""The mapping that every file of another format becomes, and how it is made of a pickle's tree.

A `ForeignCheckpoint` is what the rest of the package calls a checkpoint, a mapping from names to
tensors not read yet, with what else the file held beside it: what is no tensor, what could not be
given, and the calls that loading the file with its own library would have made.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import chain
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..checkpoint import Checkpoint
from ..errors import FormatError, quote
from ..storage.limits import DEFAULT_LIMITS, Limits
from .pickles.distributed_nodes import DISTRIBUTED_CONSTRUCTORS
from .pickles.flatten import Flat, Other, flatten
from .pickles.numpy_nodes import NUMPY_CONSTRUCTORS
from .pickles.object_nodes import OBJECT_CONSTRUCTORS
from .pickles.storages import Materialized, Storages
from .pickles.torch_nodes import TORCH_CONSTRUCTORS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ..checkpoint import Tensor
    from ..storage import Source, Verifier
    from .pickles.machine import Pickle
    from .pickles.nodes import Call, Value

__all__ = ["ALL_CONSTRUCTORS", "ForeignCheckpoint", "OpenOptions", "from_tree"]

ALL_CONSTRUCTORS = {
    **OBJECT_CONSTRUCTORS, **NUMPY_CONSTRUCTORS, **TORCH_CONSTRUCTORS, **DISTRIBUTED_CONSTRUCTORS,
}  # fmt: skip
"""Every call that the package can describe."""


@dataclass(frozen=True)
class OpenOptions:
    """How to open a foreign file.

    Attributes:
        limits: Bounds on memory and work; see `Limits`.
        densify: Make sparse and quantised tensors dense instead of refusing them.
        casts: Element type -> the type that its tensors are converted to.
        dtype_of: NumPy's kind of an array that does not tell what it holds (``V2``) -> its element type.
        paddle: Read arrays of 16-bit unsigned integers as BF16, which is what Paddle means by them.
        optimizer: Give the state of the optimizer too, where a format keeps it apart from the weights.
        verify: Given the source of a further file and its path, the source to read from instead.
        backend: How a further file is read; see `safeweights.storage.open_source`.
    """

    limits: Limits = DEFAULT_LIMITS
    densify: bool = False
    casts: Mapping[str, str] = field(default_factory=dict)
    dtype_of: Mapping[str, str] = field(default_factory=dict)
    paddle: bool = False
    optimizer: bool = False
    verify: Verifier | None = None
    backend: str = "pread"

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> OpenOptions:
        """The options of a call, of which those that are None are left at their defaults."""
        return cls(**{name: value for name, value in given.items() if value is not None})


class ForeignCheckpoint(Checkpoint):
    """A checkpoint of another format: name -> tensor, in the file's order, nothing read yet.

    Attributes:
        format: What it is, e.g. ``"torch-zip"``.
        aliases: Name -> the first name that shows the same bytes (tied weights).
        others: What is not a tensor, the first 100,000 of `others_count`.
        calls: The calls that the format's own loader would have made, in order.
        sources: The files that were opened.
        tree: What the file holds, as `rebuilding` takes it; None for a format that holds only tensors.
        nodes: Name -> the node of `tree` that describes what is called so.
    """

    sources: tuple[Source, ...] = ()
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
        super().__init__(found.tensors, metadata, name=name, format=format_name)
        self.aliases = found.aliases
        self.others = list(others)
        self.others_count = others_count
        self.calls = list(calls)

    def with_tensors(
        self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None
    ) -> ForeignCheckpoint:
        """A view with other tensors and metadata.

        Tensors that can be read now are no longer among `others`; names that are gone are no aliases.
        """
        kept = [
            other
            for other in self.others
            if (tensor := tensors.get(other.name)) is None or tensor.unreadable is not None
        ]
        aliases = {
            name: first for name, first in self.aliases.items() if {name, first} <= tensors.keys()
        }
        view = ForeignCheckpoint(
            self.name,
            self.format,
            Materialized(dict(tensors), aliases),
            metadata=metadata,
            others=kept,
            others_count=self.others_count - (len(self.others) - len(kept)),
            calls=self.calls,
        )
        view.sources, view.tree, view.nodes = self.sources, self.tree, self.nodes
        view.beside = self.beside
        return view

    @classmethod
    def union(cls, parts: Iterable[Checkpoint], name: str) -> ForeignCheckpoint:
        """Several files as one checkpoint, not all of them safetensors.

        A single file keeps its metadata; several have none together.

        Raises:
            FormatError: Two of them have a tensor of the same name.
        """
        parts = list(parts)
        foreign = [part for part in parts if isinstance(part, ForeignCheckpoint)]
        found = Materialized()
        for part in parts:
            for twice in found.tensors.keys() & part:
                raise FormatError(
                    f"tensor {quote(twice)} is in two files, one of them {quote(part.name)}; if they "
                    "are two models, open one of them by its name",
                    rule="duplicate-key", path=name, tensor=twice,
                )  # fmt: skip
            found.tensors.update(part)
        for each in foreign:
            found.aliases.update(each.aliases)
        union = cls(
            name,
            ", ".join(sorted({part.format for part in parts})),
            found,
            metadata=parts[0].metadata if len(parts) == 1 else None,
            others=chain.from_iterable(each.others for each in foreign),
            others_count=sum(each.others_count for each in foreign),
            calls=chain.from_iterable(each.calls for each in foreign),
        )
        union.sources = tuple(source for each in foreign for source in each.sources)
        return union


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
    from .pickles.materialize import materialize  # needs NumPy, which a scan does not

    flat: Flat = flatten(tree, path, options.limits)
    found: Materialized = materialize(
        flat,
        path,
        storages,
        options.limits,
        densify=options.densify,
        casts=options.casts,
        dtype_of=options.dtype_of,
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
