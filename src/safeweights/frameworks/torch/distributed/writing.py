"""`StorageWriter`: every rank writes its part of the final files.

How a save goes (torch.distributed.checkpoint calls the methods in this order):

1. `prepare_global_plan`, on the coordinator, proves that the plans cover every tensor, and lays out the
   files. Nothing exists on the disk yet.
2. `write_data`, on all ranks. Each says what only it can see: values that are no tensors, and which names
   share memory. The coordinator refuses the save, for all, or makes the files in a hidden folder and says
   where each tensor goes. Each rank writes its runs, and says so.
3. `finish`, on the coordinator: all ranks wrote all that they had to; the files take the place of an
   earlier save, the index last.

If anything fails up to then, on any rank, the hidden folder is deleted, and the folder has what it had.
"""

from __future__ import annotations

import dataclasses
import os
import pickle
from collections import defaultdict
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.distributed.checkpoint.metadata import StorageMeta
from torch.distributed.checkpoint.planner import WriteItemType
from torch.distributed.checkpoint.storage import StorageWriter as TorchStorageWriter
from torch.distributed.tensor import DTensor
from torch.futures import Future

from ....checkpoint.sharding import check_stem, parse_size
from ....errors import LayoutError, SafetensorError, UnsupportedError, quote
from ....storage import Store, place_of
from ....storage.shared_file import staggered
from ..adapter import CODES, PLAIN, host_bytes
from ..models import is_plain
from ..parts import blocks, box_runs
from .coordinating import Options, Report, Save
from .layout import Share
from .meeting import Meeting, Task
from .values import encoded_value

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch.distributed.checkpoint.metadata import Metadata
    from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
    from torch.distributed.checkpoint.storage import WriteResult

    from ....storage.shared_file import SharedFile

__all__ = ["StorageWriter"]

_PIECE: Final = 1 << 23
"""Most bytes that are copied at a time, from a device or into C order."""

FORMAT: Final = {"format": "pt"}
"""What loaders of models expect in the metadata."""

_CHECK: Final = "check its tensors"
_BEGIN: Final = "begin the files"
_WRITE: Final = "write its data"
_END: Final = "end the save"


class StorageWriter(TorchStorageWriter):
    """Writes a distributed checkpoint as Hugging Face files, for ``torch.distributed.checkpoint.save``.

    The files are those that `safeweights.torch.save_file` writes of the whole state dict: any program that
    reads safetensors reads them. Every rank writes its own bytes to their final place, so nothing is
    gathered, consolidated or stored twice. All files appear at once, the index last; until then the folder
    has the earlier checkpoint. A failure on any rank is an error on all of them, and leaves nothing.

    Tensors that share all their memory (tied weights) are written once; the metadata note the other names.
    Values that are no tensors go into ``model.values.json``; those that JSON cannot hold exactly are
    refused before a byte is written.

    Cost: each rank writes its bytes once. Memory for contiguous tensors of the CPU: none; else 8 MiB.

    Args:
        path: The folder, on a filesystem that all ranks share; `checkpoint_id` of ``save`` replaces it.
        max_shard_size: Most bytes of tensors in one file, which a single larger tensor exceeds: a
            number, or a text such as ``"5GB"``.
        metadata: Strings to strings, for every file.
        durable: Return only when all of it would survive a loss of power.
        timeout: Seconds that one rank may be later than the others before the save fails; the error names
            it. (While plans are made, the timeout of the process group counts.)
        stem: Beginning of the names of the files.

    Raises:
        UnsupportedError: `path` is in a store that takes each file from one process only; or an argument is
            no size or no name.

    >>> import torch, tempfile, torch.distributed.checkpoint as dcp
    >>> import warnings; warnings.simplefilter("ignore")  # torch's, that there is one process only
    >>> from safeweights.distributed import StorageWriter
    >>> state = {"weight": torch.ones(2, 3), "step": 5}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = dcp.save(state, storage_writer=StorageWriter(folder), no_dist=True)
    ...     sorted(os.listdir(folder))
    ['model.safetensors', 'model.values.json']
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        max_shard_size: int | str = "5GB",
        metadata: Mapping[str, str] | None = FORMAT,
        durable: bool = False,
        timeout: float = 600,
        stem: str = "model",
    ) -> None:
        super().__init__()
        parse_size(max_shard_size)
        check_stem(stem)
        self._options = Options(stem, max_shard_size, metadata, durable)
        self._timeout = timeout
        self._order: list[str] = []
        self._save: Save | None = None
        self._store: Store | None = None
        self.reset(path)

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        self._give_up()
        if checkpoint_id is not None:
            self._store = place_of(checkpoint_id).folder()

    @property
    def _path(self) -> str:
        return "" if self._store is None else self._store.location

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self._give_up()
        if self._store is None:
            raise UnsupportedError("no folder was given: StorageWriter(path), or checkpoint_id=")
        if kwargs.get("use_collectives") is False:
            raise UnsupportedError(
                "use_collectives=False saves each rank by itself; these files are written by all ranks",
                path=self._path,
            )

    def storage_meta(self) -> StorageMeta:
        return StorageMeta(checkpoint_id=self._path or None)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        self._order = [item.index.fqn for item in plan.items if item.tensor_data is not None]
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        if not all(plan.usable for plan in plans):
            raise UnsupportedError(
                "a planner with enable_plan_caching=True does not say what is to be written: make it "
                "without", path=self._path,
            )  # fmt: skip
        assert self._store is not None
        self._save = Save(self._store, self._options, plans, self._order)
        tasks = Task.for_each(len(plans))
        return [
            dataclasses.replace(plan, storage_data=task)
            for plan, task in zip(plans, tasks, strict=True)
        ]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        meeting = Meeting(plan.storage_data, timeout=self._timeout, path=self._path)
        try:
            share = self._begin(plan, planner, meeting)
            self._write(plan, planner, share, meeting)
        except BaseException as error:
            self._give_up(error)
            raise
        done: Future[list[WriteResult]] = Future()
        done.set_result([])
        return done

    def _begin(self, plan: SavePlan, planner: SavePlanner, meeting: Meeting) -> Share:
        """Agree with the other ranks that the save can be done, and where this rank's tensors go."""
        with meeting.reporting(_CHECK, _BEGIN):
            report = Report(_values(plan, planner), _tied(planner))
        meeting.post(_CHECK, report)
        if self._save is not None:
            with meeting.deciding(_BEGIN):
                reports = [Report(*each) for each in meeting.collect(_CHECK)]
                shares = self._save.begin(reports)
            meeting.tell(_BEGIN, shares)
        return Share(*meeting.hear(_BEGIN))

    def _write(self, plan: SavePlan, planner: SavePlanner, share: Share, meeting: Meeting) -> None:
        assert self._store is not None
        with meeting.reporting(_WRITE, _END):
            written = _write_all(plan, planner, share, self._store, durable=self._options.durable)
        meeting.post(_WRITE, written)
        if self._save is not None:
            with meeting.deciding(_END):
                self._save.require_all(meeting.collect(_WRITE))
            meeting.tell(_END, [None] * meeting.ranks)
        meeting.hear(_END)

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:  # noqa: ARG002
        save, self._save = self._save, None
        assert save is not None
        save.publish()

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        try:
            place_of(checkpoint_id)
        except SafetensorError:
            return False
        return True

    def _give_up(self, error: BaseException | None = None) -> None:
        save, self._save = getattr(self, "_save", None), None
        if save is not None:
            save.discard(error or SafetensorError("the save was given up"))

    def __del__(self) -> None:
        self._give_up()


def _values(plan: SavePlan, planner: SavePlanner) -> dict[str, Any]:
    """What this rank saves that is no tensor, in the form of JSON."""
    found = {}
    for item in plan.items:
        if item.type != WriteItemType.BYTE_IO:
            continue
        name = item.index.fqn
        data: Any = planner.resolve_data(item)
        data.seek(0)
        try:
            # What the planner has just pickled; it may be of any type, so that is looked at with care too.
            value = torch.load(data, weights_only=True)
        except pickle.UnpicklingError as error:
            raise UnsupportedError(
                f"{quote(name)} is of a type that JSON cannot hold exactly: leave it out, or convert it to "
                f"numbers, texts, lists and dicts ({str(error).splitlines()[0]})", tensor=name,
            ) from error  # fmt: skip
        found[name] = encoded_value(name, value)
    return found


def _tied(planner: SavePlanner) -> list[list[str]]:
    """Groups of names of tensors that are the same memory, divided in the same way."""
    groups: dict[Any, list[str]] = {}
    state: Mapping[str, Any] = getattr(
        planner, "state_dict", {}
    )  # planners of one's own may have none
    for name, tensor in state.items():
        if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
            continue
        local, placements = tensor, None
        if isinstance(tensor, DTensor):
            local, placements = tensor.to_local(), tensor.placements
        if local.is_meta or not local.numel() or type(local) not in PLAIN:
            continue
        memory = local.data_ptr(), local.shape, local.stride(), local.dtype, local.device
        groups.setdefault((memory, tensor.shape, placements), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def _write_all(
    plan: SavePlan, planner: SavePlanner, share: Share, store: Store, *, durable: bool
) -> dict[str, int]:
    """Write what this rank has to; returns tensor -> number of bytes."""
    by_file: dict[int, list[tuple[int, WriteItem]]] = {}
    for item in plan.items:
        if (place := share.places.get(item.index.fqn)) is not None:
            number, begin = place
            by_file.setdefault(number, []).append((begin, item))
    written: dict[str, int] = defaultdict(int)
    task: Task = plan.storage_data
    for number, items in sorted(by_file.items()):
        items.sort(key=itemgetter(0))
        with _opened(store, share.files[number]) as file:
            for begin, item in staggered(items, task.rank, task.ranks):
                written[item.index.fqn] += _write_item(file, begin, item, planner)
            file.close(durable=durable)
    return written


def _opened(store: Store, staged: str) -> SharedFile:
    try:
        return store.fill(staged)
    except FileNotFoundError as error:
        error.strerror = (
            "the file that rank 0 made is not there: all ranks must save to one shared filesystem, at the "
            "same path"
        )
        raise


def _write_item(file: SharedFile, begin: int, item: WriteItem, planner: SavePlanner) -> int:
    """Write one part of a tensor, which begins at `begin` of the file; returns the number of bytes."""
    name, data = item.index.fqn, item.tensor_data
    tensor: Any = planner.resolve_data(item)
    assert data is not None
    if tensor.dtype != data.properties.dtype or tensor.shape != data.chunk.sizes:
        raise LayoutError(
            f"the part of tensor {quote(name)} to be saved is {tensor.dtype} of shape "
            f"{list(tensor.shape)}, but {data.properties.dtype} of shape {list(data.chunk.sizes)} was "
            "planned",
            tensor=name,
        )
    code, count, tensor = CODES[tensor.dtype], 0, tensor.detach()
    # Memory of the host is written as it lies; anything else is copied, a block at a time.
    most = tensor.nbytes if is_plain(tensor) else _PIECE
    for starts, block in blocks(tensor, most):
        at = [a + b for a, b in zip(data.chunk.offsets, starts, strict=True)]
        where = box_runs(code, data.size, at, block.shape)
        file.write_runs(begin, where, host_bytes(name, block.contiguous().cpu()))
        count += where.nbytes
    return count
