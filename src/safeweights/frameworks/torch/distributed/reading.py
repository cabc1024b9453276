"""`StorageReader`: every rank reads its part of the files.

How a load goes (torch.distributed.checkpoint calls the methods in this order):

1. `read_metadata`: the coordinator reads all headers, and tells the other ranks.
2. `prepare_local_plan`, on all ranks: each opens the files that it needs. They must be the same that the
   coordinator saw, and as long.
3. `read_data`, on all ranks: each compares its targets with what is stored, plans its reads, and says so.
   When all have, and not before, targets are filled.

So what is missing, cut off or different is an error on all ranks, and no target was touched.
"""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType
from torch.distributed.checkpoint.storage import StorageReader as TorchStorageReader
from torch.futures import Future

from ....errors import LayoutError, SafetensorError, StateDictError, UnsupportedError, quote
from ....format.gcpause import gc_paused
from ....storage import Source, place_of
from ..adapter import CODES, TYPES, packed_shape
from ..filling import Filling, Part
from ..models import require_writable
from .catalogue import Catalogue, Location
from .compact import CompactPlan, compact
from .meeting import Meeting, Task, job_store, next_load

if TYPE_CHECKING:
    from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem

    from ....checkpoint.tensor import FileTensor

__all__ = ["StorageReader"]

_HEADERS: Final = "read the headers"
_READY: Final = "prepare to fill its tensors"


class StorageReader(TorchStorageReader):
    """Reads safetensors into a distributed state dict, for ``torch.distributed.checkpoint.load``.

    Checkpoints of any writer can be read: a file, a folder with or without an index,
    local or remote. The coordinator reads the headers and tells the other ranks; each rank reads the bytes
    of its own parts, straight into them where they are contiguous memory of the host. How many ranks saved
    it, and how they had divided it, does not matter.

    A name that is missing, a shape or type that differs, a file that is missing, cut off or was replaced
    meanwhile, is an error on all ranks before any target is changed. Only bytes that cannot be read, or are
    not what was signed, are found later.

    Args:
        path: A file, folder, index or URL; `checkpoint_id` of ``load`` replaces it.
        trust: Policy, public key or warrant that the files must satisfy. Each rank verifies the blocks that
            it reads; see `safeweights.safe_open`.
        identity: Who opens encrypted files; see `safeweights.safe_open`.
        cast: Convert values to the types of the targets; otherwise another type is an error.
        process_group: What ``load`` is given as `process_group`: the ranks that load together.
        alone: This rank loads by itself, although there are others (``no_dist=True``).
        timeout: Seconds that one rank may be later than the others.

    >>> import torch, tempfile, safeweights.torch, torch.distributed.checkpoint as dcp
    >>> import warnings; warnings.simplefilter("ignore")  # torch's, that there is one process only
    >>> from safeweights.distributed import StorageReader
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     safeweights.torch.save_file({"weight": torch.ones(2)}, f"{folder}/model.safetensors")
    ...     state = {"weight": torch.zeros(2)}
    ...     dcp.load(state, storage_reader=StorageReader(folder), no_dist=True)
    >>> state["weight"]
    tensor([1., 1.])
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        trust: object = None,
        identity: Any = None,
        cast: bool = False,
        process_group: Any = None,
        alone: bool = False,
        timeout: float = 600,
    ) -> None:
        super().__init__()
        self._trust = trust
        self._identity = identity
        self._cast = cast
        self._group = process_group
        self._alone = alone
        self._timeout = timeout
        self._location: Location | None = None
        self._catalogue: Catalogue | None = None
        self._sources: dict[int, Source] = {}
        self._sent: LoadPlan | None = None
        self._failed: BaseException | None = None
        self.reset(path)

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        self._catalogue, self._sources, self._sent, self._failed = None, {}, None, None
        if checkpoint_id is not None:
            self._location = Location(checkpoint_id, self._trust, self._identity)

    def read_metadata(self, *args: Any) -> Metadata:  # noqa: ARG002 - torch passes none
        # torch takes an error here for a checkpoint of another kind, and says something else.
        try:
            self._catalogue = self._read_catalogue()
        except (SafetensorError, OSError) as error:
            self._failed = error
            return Metadata({})
        return _metadata(self._catalogue)

    def _read_catalogue(self) -> Catalogue:
        location = self._require_location()
        if self._alone or job_store() is None:
            return location.read()
        task = next_load(self._group, location.name)
        meeting = Meeting(task, timeout=self._timeout, path=location.name)
        if task.rank != 0:
            return Catalogue.of_message(meeting.hear_all(_HEADERS))
        try:
            found = location.read()
        except BaseException as error:
            meeting.tell_all_failure(_HEADERS, error)
            raise
        meeting.tell_all(_HEADERS, found.message())
        return found

    def _require_location(self) -> Location:
        if self._location is None:
            raise UnsupportedError(
                "no checkpoint was given: StorageReader(path), or checkpoint_id="
            )
        return self._location

    def set_up_storage_reader(self, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002
        if self._failed is not None:
            raise self._failed

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        location, catalogue = self._require_location(), self._require_catalogue()
        aliases = catalogue.aliases()
        names = {
            aliases.get(item.storage_index.fqn, item.storage_index.fqn)
            for item in plan.items
            if item.type != LoadItemType.BYTE_IO
        }
        for number in sorted({catalogue.tensors[name][-1] for name in names}):
            self._sources[number] = location.open(catalogue.folder, catalogue.files[number])
        self._sent = compact(plan)
        return self._sent

    def _require_catalogue(self) -> Catalogue:
        assert self._catalogue is not None, "read_metadata comes first"
        return self._catalogue

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        for plan, task in zip(plans, Task.for_each(len(plans)), strict=True):
            plan.storage_data = task
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        task: Task = plan.storage_data
        meeting = Meeting(task, timeout=self._timeout, path=self._require_location().name)
        with meeting.agreeing(_READY):
            if isinstance(plan, CompactPlan) and isinstance(self._sent, CompactPlan):
                plan.take_items(self._sent)
            parts = self._parts(plan, planner)
            filling = Filling([part for _, part in parts])
        try:
            self._fill(plan, planner, parts, filling)
        finally:
            meeting.leave(_READY)
        self._sources, self._sent = {}, None
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _parts(self, plan: LoadPlan, planner: LoadPlanner) -> list[tuple[ReadItem, Part]]:
        """What is to be filled; every target fits."""
        catalogue = self._require_catalogue()
        aliases = catalogue.aliases()
        found = []
        for item in plan.items:
            if item.type == LoadItemType.BYTE_IO:
                continue
            name = item.storage_index.fqn
            stored = catalogue.tensor(aliases.get(name, name), self._sources)
            target: Any = planner.resolve_tensor(item)
            _require_fitting(item.dest_index.fqn, target, item, stored, cast=self._cast)
            found.append((item, Part(stored, tuple(item.storage_offsets), target.detach())))
        return found

    def _fill(
        self,
        plan: LoadPlan,
        planner: LoadPlanner,
        parts: list[tuple[ReadItem, Part]],
        filling: Filling,
    ) -> None:
        items = {id(part): item for item, part in parts}

        def done(part: Part, values: torch.Tensor) -> None:
            planner.commit_tensor(items[id(part)], values)

        filling.run(done)
        values = self._require_catalogue().values
        for item in plan.items:
            if item.type == LoadItemType.BYTE_IO:
                # The interface is a file of torch.save, which planners unpickle: these are our own bytes.
                data = io.BytesIO()
                torch.save(values[item.storage_index.fqn], data)
                data.seek(0)
                planner.load_bytes(item, data)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        try:
            place_of(checkpoint_id)
        except SafetensorError:
            return False
        return True


def _metadata(catalogue: Catalogue) -> Metadata:
    """A catalogue as torch describes checkpoints. Tensors of one type and shape share their description."""
    kinds: dict[Any, TensorStorageMetadata] = {}
    state: dict[str, Any] = {}
    with gc_paused():
        for name, (code, shape, *_) in catalogue.tensors.items():
            if (kind := kinds.get((code, shape))) is None:
                if code not in TYPES:  # this torch lacks it: there can be no target for it
                    continue
                size = torch.Size(packed_shape(code, shape))
                chunk = ChunkStorageMetadata(torch.Size([0] * len(size)), size)
                kind = TensorStorageMetadata(TensorProperties(TYPES[code]), size, [chunk])
                kinds[code, shape] = kind
            state[name] = kind
        state.update(
            {name: state[kept] for name, kept in catalogue.aliases().items() if kept in state}
        )
        state.update(dict.fromkeys(catalogue.values, BytesStorageMetadata()))
    return Metadata(state, storage_meta=StorageMeta())


def _require_fitting(
    name: str, target: Any, item: ReadItem, stored: FileTensor, *, cast: bool
) -> None:
    if not isinstance(target, torch.Tensor) or target.layout != torch.strided:
        raise LayoutError(
            f"the target {quote(name)} is a {type(target).__name__}, not a dense tensor",
            tensor=name,
        )
    if tuple(target.shape) != tuple(item.lengths):
        raise StateDictError(
            f"the target {quote(name)} has a part of shape {list(target.shape)}, and "
            f"{list(item.lengths)} is stored for it", tensor=name,
        )  # fmt: skip
    if not cast and CODES.get(target.dtype) != stored.dtype:
        raise StateDictError(
            f"the target {quote(name)} is {target.dtype}, and {stored.dtype} is stored: give "
            "StorageReader(..., cast=True) to convert", tensor=name, path=stored.source.name,
        )  # fmt: skip
    require_writable(name, target)
