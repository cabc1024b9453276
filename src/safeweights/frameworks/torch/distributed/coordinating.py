"""A distributed save as the coordinator sees it: what will be written, and whether all of it was.

The other ranks know only their own share.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from torch.distributed.checkpoint.planner import WriteItemType

from ....checkpoint.layout import Layout, laid_out
from ....checkpoint.shardindex import VALUES_SUFFIX
from ....checkpoint.sharding import ShardedCommit
from ....errors import FormatError, quote
from ....format.gcpause import gc_paused
from .layout import Share, planned
from .values import values_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch.distributed.checkpoint.planner import SavePlan

    from ....checkpoint import Tensor
    from ....storage import Store

__all__ = ["Options", "Report", "Save"]


class Options(NamedTuple):
    """How to save; the arguments of `StorageWriter`."""

    stem: str
    max_shard_size: int | str
    metadata: Mapping[str, str] | None
    durable: bool


class Report(NamedTuple):
    """What only a rank itself knows of what it saves.

    Attributes:
        values: Name -> value that is no tensor, as JSON holds it.
        tied: Groups of names of tensors that are the same memory.
    """

    values: dict[str, Any]
    tied: list[list[str]]


class Save:
    """One save.

    Args:
        store: Where it goes.
        options: How to save.
        plans: What each rank writes.
        order: The names of the coordinator's tensors, in the order of its state dict.

    Raises:
        SafetensorError: It cannot be done; nothing was made yet.
    """

    def __init__(
        self, store: Store, options: Options, plans: Sequence[SavePlan], order: Iterable[str]
    ) -> None:
        self._store = store
        self._options = options
        self._plans = plans
        self._aliases: dict[str, str] = {}
        with gc_paused():
            self._tensors = planned(plans, order)
            self._layout = self._lay_out()
        self._commit: ShardedCommit | None = None
        self._values: dict[str, Any] = {}

    def _lay_out(self) -> Layout:
        """The files. Tensors that have the values of others are left out, and noted in the metadata."""
        aliases, metadata = self._aliases, self._options.metadata
        tensors: Mapping[str, Tensor] = self._tensors
        if aliases:
            tensors = {name: each for name, each in tensors.items() if name not in aliases}
            metadata = {**aliases, **(metadata or {})}
        return laid_out(tensors, self._options.stem, self._options.max_shard_size, metadata)

    def begin(self, reports: Iterable[Report]) -> list[Share]:
        """Make the files, in a hidden folder, with their headers.

        Args:
            reports: What each rank said.

        Returns:
            Each rank's share.

        Raises:
            UnsupportedError: The store takes each file from one process only.
            OSError: There is no space, or no file can be made.
        """
        reports = list(reports)
        for report in reports:
            self._values.update(report.values)
        self._aliases = self._agreed([report.tied for report in reports])
        if self._aliases:
            self._layout = self._lay_out()
        shards = {shard.name: shard for shard in self._layout.shards}
        others = [self._values_name] if self._values else []
        self._commit = ShardedCommit(
            self._store, self._options.stem, shards, others=others, durable=self._options.durable
        )
        commit = self._commit.commit
        files = [commit.reserve(name, shard.size) for name, shard in shards.items()]
        for staged, shard in zip(files, self._layout.shards, strict=True):
            with self._store.fill(staged) as file:
                file.write(0, shard.head)
        with gc_paused():
            return [self._share(plan, files) for plan in self._plans]

    @property
    def _values_name(self) -> str:
        return f"{self._options.stem}{VALUES_SUFFIX}"

    def _agreed(self, tied: list[list[list[str]]]) -> dict[str, str]:
        """Tensor that need not be written -> the one with the same values.

        Names are the same tensor if every rank that writes a part of one of them says so. Ranks without
        elements of it have no memory that could be shared.
        """
        groups = {tuple(sorted(group)) for found in tied for group in found}
        if not groups:
            return {}
        writers: dict[str, set[int]] = {}
        for rank, plan in enumerate(self._plans):
            for item in plan.items:
                if item.tensor_data is not None and item.tensor_data.chunk.sizes.numel():
                    writers.setdefault(item.index.fqn, set()).add(rank)
        said = [{tuple(sorted(group)) for group in found} for found in tied]
        aliases: dict[str, str] = {}
        for group in sorted(groups):
            ranks = {rank for name in group for rank in writers.get(name, ())}
            same = all(name in self._tensors for name in group) and ranks
            if same and all(group in said[rank] for rank in ranks):
                aliases.update(dict.fromkeys(group[1:], group[0]))
        return aliases

    def _share(self, plan: SavePlan, files: list[str]) -> Share:
        no_tensor, places, aliases = WriteItemType.BYTE_IO, self._layout.places, self._aliases
        names = [item.index.fqn for item in plan.items if item.type is not no_tensor]
        return Share(
            files,
            {name: places[name] for name in names if name in places},
            {name: aliases[name] for name in names if name in aliases} if aliases else {},
        )

    def require_all(self, written: Iterable[Mapping[str, int]]) -> None:
        """Check that the ranks wrote every byte of every tensor.

        Args:
            written: Of each rank, tensor -> number of bytes.

        Raises:
            FormatError: They did not; the save must be given up.
        """
        totals = dict.fromkeys(self._layout.places, 0)
        for each in written:
            for name, count in each.items():
                totals[name] += count
        for name, count in totals.items():
            if count != self._tensors[name].nbytes:
                raise FormatError(
                    f"{count} bytes of tensor {quote(name)} were written, which has "
                    f"{self._tensors[name].nbytes}",
                    rule="ranks", path=self._store.location, tensor=name,
                )  # fmt: skip

    def publish(self) -> None:
        """Let the files take the place of those of an earlier save.

        Raises:
            OSError: They could not; the folder has what it had before.
        """
        save, self._commit = self._commit, None
        assert save is not None
        with save.commit as commit:
            if self._values:
                commit.write(self._values_name, [values_text(self._values)])
            save.add_index(self._layout.weight_map(), self._layout.total_size)

    def discard(self, error: BaseException) -> None:
        """Delete what was made."""
        save, self._commit = self._commit, None
        if save is not None:
            save.commit.__exit__(type(error), error, None)
