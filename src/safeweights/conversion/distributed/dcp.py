"""Folders of torch.distributed.checkpoint: `.metadata`, and items in `__RANK_NUMBER.distcp` files.

``.metadata`` is a pickle of tables. Per tensor it says type, shape and chunks (offsets and sizes); per
chunk the file, the offset and the length of its item. An item is a complete file of `torch.save`, several
of which follow each other in a file. With SerializationFormat.SAFETENSORS, a file ends in one safetensors
file instead, to whose beginning all items point. A writer without collectives leaves one
``__RANK.metadata`` a rank. Megatron-core writes the same with attributes of its own, and ``common.pt``.

Rules: tables name known types only; no two items share bytes; each item lies inside its file; the chunks of
a tensor cover it. All of this is checked before an item is read. An item is opened when its values
are first needed, and must then hold one tensor of the type and shape that the tables say.

Source of the layout: torch/distributed/checkpoint/{metadata,filesystem,default_planner}.py of torch 2.1 to
2.13; megatron/core/dist_checkpointing/strategies/torch.py.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Final, NamedTuple

from ...checkpoint import SafetensorsFile
from ...derived.boxes import Box
from ...derived.element_types import TORCH_DTYPES
from ...derived.pieces import Piece, as_strided
from ...errors import FormatError, SafetensorError, quote
from ...format.header import MAX_HEADER, PREFIX
from ...storage import LocalStore
from ...storage.windows import Window, read_bytes
from ..foreign import ALL_CONSTRUCTORS, OpenOptions
from ..pickles.machine import read_pickle
from ..pickles.nodes import Call, DictNode, Global, Value, modern
from ..pickles.storages import located
from ..pickles.torch_nodes import TensorNode
from ..readers.torch_files import read_contents
from .assembling import Assembly, Folder, whole_numbers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ...derived.layout import Strided
    from ...storage import Source
    from ...storage.limits import Limits
    from ..foreign import ForeignCheckpoint

__all__ = ["METADATA", "is_metadata_name", "read_dcp", "saved_offsets", "spans_in"]

METADATA: Final = ".metadata"
COMMON: Final = "common.pt"

_RANK_METADATA = re.compile(r"__\d+\.metadata").fullmatch
_ITEM_FILE = re.compile(r"__(\d+)_\d+\.distcp").fullmatch

_CHUNKS_PER_LIMIT: Final = 4
"""How often `.metadata` may exceed the limits of one pickle: a chunk takes 51 objects and 83 opcodes."""
_ITEM_OPCODES: Final = 20_000
"""Opcodes of the pickle of one tensor, of which torch writes some fifty."""

_KNOWN_MODULES: Final = (
    "torch.distributed.checkpoint.", "torch.distributed._shard.", "megatron.core.dist_checkpointing.",
)  # fmt: skip
_KNOWN_NAMES: Final = frozenset(
    {("torch", "Size"), ("torch.serialization", "_get_layout"), ("collections", "OrderedDict"),
     ("collections", "defaultdict"), ("builtins", "dict"), ("builtins", "list"), ("builtins", "set"),
     ("builtins", "tuple"), ("builtins", "int"), ("builtins", "str")}
)  # fmt: skip
_PATHS = re.compile(r"(?:Pure)?(?:Posix|Windows)?Path").fullmatch


def is_metadata_name(name: str) -> bool:
    """Whether a folder with a file called `name` is such a checkpoint."""
    return name == METADATA or _RANK_METADATA(name) is not None


class Item(NamedTuple):
    """Where one item is.

    Attributes:
        file: Its file.
        offset, length: Its bytes there.
        transforms: What its bytes went through when they were written, if anything.
    """

    file: str
    offset: int
    length: int
    transforms: tuple[Value, ...] = ()


@dataclass
class _Entry:
    """What the tables say of one name; a value other than a tensor has no type, but an item.

    Attributes:
        dtype: Code of the element type.
        shape: Elements along each axis.
        chunks: Boxes that have elements, and their items.
        item: The item of a value.
        empty: Items of chunks without elements.
    """

    dtype: str | None = None
    shape: tuple[int, ...] = ()
    chunks: list[tuple[Box, Item]] | None = None
    item: Item | None = None
    empty: list[Item] = field(default_factory=list)


def read_dcp(folder: Folder, options: OpenOptions) -> ForeignCheckpoint:
    """The checkpoint in `folder`.

    Cost: reads the tables, and each value that is not a tensor.

    Raises:
        FormatError: The tables name something unknown or contradict themselves; files or chunks are
            missing; two items overlap.
        OSError: Something cannot be opened or read.
    """
    found = Assembly(folder.name, options)
    tables = [name for name in folder.names if is_metadata_name(name)]
    tables = [METADATA] if METADATA in tables else sorted(tables)
    entries: dict[str, _Entry] = {}
    for name in tables:
        _Tables(folder.open(name), options.limits, found).read_into(entries)
    files = _Files(folder, options.limits)
    files.check([item for entry in entries.values() for item in _items(entry)], entries)
    counted = options.limits.counted()
    for name, entry in entries.items():
        if entry.dtype is not None and entry.chunks is not None:
            pieces = [files.piece(name, entry.dtype, box, item) for box, item in entry.chunks]
            found.add(name, entry.dtype, entry.shape, pieces)
        elif entry.item is not None:
            files.add_value(found, name, entry.item, counted)
    if COMMON in folder.names:
        contents = read_contents(folder.open(COMMON), options.limits)
        found.add_calls(contents.pickles)
        found.add_other("common", contents.tree, f"what all ranks share, in {COMMON}")
    return found.checkpoint("torch-dcp", folder.sources.values())


def spans_in(folder: str, name: str, limits: Limits) -> list[tuple[int, int]]:
    """Offset and length of each item in a file of a local folder, in order.

    Raises:
        FormatError: The tables are not what they should be.
        OSError: They cannot be read.
    """
    store = LocalStore(folder)
    tables = [entry.name for entry in store.list(recursive=False) if is_metadata_name(entry.name)]
    versions = tuple((each, os.stat(store.locate(each)).st_mtime_ns) for each in sorted(tables))
    return _spans(folder, versions, limits).get(name, [])


@lru_cache(maxsize=1)  # the files of a folder are looked at one after another
def _spans(
    path: str, tables: tuple[tuple[str, int], ...], limits: Limits
) -> dict[str, list[tuple[int, int]]]:
    options = OpenOptions(limits=limits)
    folder = Folder(LocalStore(path), options)
    entries: dict[str, _Entry] = {}
    for name, _ in tables:
        _Tables(folder.open(name), limits, Assembly(path, options)).read_into(entries)
    found: dict[str, set[tuple[int, int]]] = {}
    files = _Files(folder, limits)
    for entry in entries.values():
        for item in _items(entry):
            length = item.length
            if folder.has(item.file) and files.is_safetensors(item):  # to the end of the file
                length = folder.open(item.file).size - item.offset
            found.setdefault(item.file, set()).add((item.offset, length))
    return {name: sorted(spans) for name, spans in found.items()}


def _items(entry: _Entry) -> Iterator[Item]:
    if entry.item is not None:
        yield entry.item
    for _, item in entry.chunks or ():
        yield item
    yield from entry.empty


# -- the tables


class _Tables:
    """Reads one pickle of tables."""

    def __init__(self, source: Source, limits: Limits, found: Assembly) -> None:
        self._source = source
        more = replace(
            limits,
            opcodes=limits.opcodes * _CHUNKS_PER_LIMIT,
            objects=limits.objects * _CHUNKS_PER_LIMIT,
        )
        pickle = read_pickle(source, constructors=ALL_CONSTRUCTORS, limits=more)
        found.add_calls([pickle])
        for each in pickle.globals:
            if not _is_known(each):
                raise self._fault(
                    f"it names {quote(each.path)}, which no table of a distributed checkpoint has",
                    "dcp-global", each.offset,
                )  # fmt: skip
        if pickle.end != source.size:
            raise self._fault("bytes follow the pickle", "pickle-trailing", pickle.end)
        self._root = pickle.value

    def read_into(self, entries: dict[str, _Entry]) -> None:
        """Add what the tables say to `entries`; those of another rank may be there already."""
        root = self._record(self._root, "Metadata")
        version = root.get("version")
        if version is not None and not str(version).startswith("1."):
            raise self._fault(f"its version is {quote(str(version))}, not 1", "dcp-version")
        items = self._items(root.get("storage_data"))
        named = self._mapping(root.get("state_dict_metadata"), "state_dict_metadata")
        for name, value in named:
            if not isinstance(name, str):
                raise self._fault("a name is no text")
            self._add(entries, name, value, items)
        if items:
            name, _ = next(iter(items))
            raise self._fault(
                f"an item of {quote(name)} is of no tensor in the tables", tensor=name
            )

    def _add(
        self, entries: dict[str, _Entry], name: str, value: Value, items: dict[_Key, Item]
    ) -> None:
        if isinstance(value, Call) and _class_name(value) == "BytesStorageMetadata":
            entry = entries.setdefault(name, _Entry())
            entry.item = items.pop((name, None), None) or entry.item
            if entry.item is None or entry.dtype is not None:
                raise self._fault(f"there is no item for the value {quote(name)}", tensor=name)
            return
        record = self._record(value, "TensorStorageMetadata")
        dtype = self._dtype(record.get("properties"), name)
        shape = self._numbers(record.get("size"), name)
        entry = entries.setdefault(name, _Entry(dtype, shape, []))
        if (entry.dtype, entry.shape) != (dtype, shape) or entry.chunks is None:
            raise self._fault(
                f"two ranks say different things of tensor {quote(name)}", tensor=name
            )
        chunks = record.get("chunks")
        if not isinstance(chunks, list):
            raise self._fault(f"the chunks of tensor {quote(name)} are no list", tensor=name)
        known = {box for box, _ in entry.chunks}
        for chunk in chunks:
            fields = self._record(chunk, "ChunkStorageMetadata")
            offsets = self._numbers(fields.get("offsets"), name)
            box = Box(offsets, self._numbers(fields.get("sizes"), name))
            item = items.pop((name, offsets), None)
            if not box.volume:  # of several empty chunks at one place, one has an item
                entry.empty += [] if item is None else [item]
                continue
            if item is None and len(chunks) == 1:
                item = items.pop((name, None), None)
            if item is None:
                raise self._fault(
                    f"there is no item for the chunk of tensor {quote(name)} at {list(offsets)}",
                    "dcp-item", tensor=name,
                )  # fmt: skip
            if box not in known:  # ranks without collectives save a tensor that they share each
                entry.chunks.append((box, item))

    def _items(self, value: Value) -> dict[_Key, Item]:
        items: dict[_Key, Item] = {}
        for key, info in self._mapping(value, "storage_data"):
            index = self._record(key, "MetadataIndex")
            name, offset = index.get("fqn"), index.get("offset")
            if not isinstance(name, str):
                raise self._fault("an item has no name")
            place = None if offset is None else self._numbers(offset, name)
            if (name, place) in items:
                raise self._fault(
                    f"two items are of the same chunk of tensor {quote(name)}", tensor=name
                )
            items[name, place] = self._item(info, name)
        return items

    def _item(self, value: Value, name: str) -> Item:
        fields = self._record(value, "_StorageInfo")
        file, offset, length = (fields.get(key) for key in ("relative_path", "offset", "length"))
        plain = isinstance(file, str) and whole_numbers([offset]) and whole_numbers([length])
        if not plain:
            raise self._fault(f"the place of an item of {quote(name)} is malformed", tensor=name)
        transforms = fields.get("transform_descriptors")
        if transforms is not None and not isinstance(transforms, (list, tuple)):
            raise self._fault(f"the place of an item of {quote(name)} is malformed", tensor=name)
        return Item(file, offset, length, tuple(transforms or ()))

    def _dtype(self, value: Value, name: str) -> str:
        state = value.state[0] if isinstance(value, Call) and len(value.state) == 1 else None
        if isinstance(value, Call) and _class_name(value) == "TensorProperties":
            kind = state[0] if isinstance(state, tuple) and state else None
            if isinstance(state, DictNode):
                kind = state.get("dtype")
            if isinstance(kind, Global) and kind.module == "torch" and kind.name in TORCH_DTYPES:
                return TORCH_DTYPES[kind.name]
            if isinstance(kind, Global):
                raise self._fault(
                    f"tensor {quote(name)} is of type {quote(kind.path)}, which is not known",
                    "torch-dtype", tensor=name,
                )  # fmt: skip
        raise self._fault(f"the type of tensor {quote(name)} is malformed", tensor=name)

    def _numbers(self, value: Value, name: str) -> tuple[int, ...]:
        found = whole_numbers(value)
        if found is None:
            raise self._fault(f"a shape or offset of tensor {quote(name)} is none", tensor=name)
        return found

    def _mapping(self, value: Value, what: str) -> list[tuple[Value, Value]]:
        if not isinstance(value, DictNode):
            raise self._fault(f"it has no table `{what}`")
        return value.pairs

    def _record(self, value: Value, name: str) -> DictNode:
        """The fields of an object of the class called `name`."""
        if isinstance(value, Call) and _class_name(value) == name and len(value.state) == 1:
            (state,) = value.state
            if isinstance(state, DictNode) and not value.arguments:
                return state
        raise self._fault(f"there is no {name} where one is expected")

    def _fault(
        self,
        message: str,
        rule: str = "dcp-metadata",
        offset: int | None = None,
        *,
        tensor: str | None = None,
    ) -> FormatError:
        return FormatError(message, rule=rule, path=self._source.name, offset=offset, tensor=tensor)


_Key = tuple[str, tuple[int, ...] | None]
"""Name of a tensor, and where a chunk of it begins."""


def _class_name(call: Call) -> str:
    """The name of the class that `call` makes an instance of, of a known module."""
    function = call.function
    if not isinstance(function, Global) or not (function.module or "").startswith(_KNOWN_MODULES):
        return ""
    return function.name or ""


def _is_known(node: Global) -> bool:
    module, name = modern(node)
    if node.opcode == "EXT" or not module or not name:
        return False
    if module in ("pathlib", "pathlib._local"):
        return _PATHS(name) is not None
    if (module, name) in _KNOWN_NAMES or (module == "torch" and name in TORCH_DTYPES):
        return True
    return module.startswith(_KNOWN_MODULES) and "." not in name


# -- the items


class _Files:
    """The files that items are in."""

    def __init__(self, folder: Folder, limits: Limits) -> None:
        self._folder = folder
        self._limits = limits
        few = min(limits.opcodes, _ITEM_OPCODES)
        self._item_limits = replace(limits, opcodes=few, objects=min(limits.objects, few))
        self._safetensors: dict[tuple[str, int], tuple[SafetensorsFile, DictLike]] = {}

    def check(self, items: list[Item], entries: dict[str, _Entry]) -> None:
        """Check that files are there, that items lie in them, and that no two share bytes.

        Raises:
            FormatError: One of these is not so.
        """
        by_file: dict[str, list[Item]] = {}
        for item in items:
            by_file.setdefault(item.file, []).append(item)
        missing = [name for name in by_file if not self._folder.has(name)]
        if missing:
            raise self._missing(missing, entries)
        for name, some in by_file.items():
            source = self._folder.open(name)
            end = 0
            for item in sorted(some, key=lambda each: (each.offset, each.length)):
                if item.offset + item.length > source.size and not self.is_safetensors(item):
                    raise self._fault(item, f"it ends at byte {source.size}, inside of an item")
                if item.length and item.offset < end and not self.is_safetensors(item):
                    raise self._fault(item, "two items overlap", "dcp-overlap")
                end = max(end, item.offset + item.length)

    def _missing(self, names: list[str], entries: dict[str, _Entry]) -> FormatError:
        lost = [
            name
            for name, entry in entries.items()
            for item in _items(entry)
            if item.file == names[0]
        ]
        match = _ITEM_FILE(names[0])
        rank = f" of rank {match[1]}" if match else ""
        more = f", and {len(names) - 1} more files" if len(names) > 1 else ""
        return FormatError(
            f"the file {quote(names[0])}{rank} is missing{more}; {quote(METADATA)} says that it holds "
            f"{len(lost)} items, the first of {quote(lost[0])}",
            rule="missing-shard", path=self._folder.name, tensor=lost[0],
        )  # fmt: skip

    def _fault(self, item: Item, message: str, rule: str = "dcp-item") -> FormatError:
        return FormatError(
            message, rule=rule, path=self._folder.open(item.file).name, offset=item.offset
        )

    def is_safetensors(self, item: Item) -> bool:
        """Whether a safetensors file begins where `item` does."""
        source = self._folder.open(item.file)
        if (item.file, item.offset) in self._safetensors:
            return True
        if item.offset + PREFIX >= source.size:
            return False
        head = read_bytes(source, item.offset, PREFIX + 1)
        return head[PREFIX:] == b"{" and int.from_bytes(head[:PREFIX], "little") <= MAX_HEADER

    def piece(self, name: str, dtype: str, box: Box, item: Item) -> Piece:
        """A chunk of a tensor; its item is opened when it is first needed."""
        label = f"the item at byte {item.offset} of {quote(item.file)}"
        return Piece(box, partial(self._find, name, dtype, box, item), label)

    def _window(self, item: Item, name: str) -> Source:
        if item.transforms:
            shown = ", ".join(quote(str(each)) for each in item.transforms)
            raise self._fault(
                item,
                f"an item of {quote(name)} was written through {shown}, which is not known here",
            )
        source = self._folder.open(item.file)
        return Window(source, item.offset, item.length, f"{source.name}!{name}")

    def _find(self, name: str, dtype: str, box: Box, item: Item) -> Strided:
        if self.is_safetensors(item):
            array = self._find_safetensors(name, box, item)
        else:
            window = self._window(item, name)
            contents = read_contents(window, self._item_limits)
            node = contents.tree
            if not isinstance(node, TensorNode):
                raise self._fault(item, f"the item of {quote(name)} is not one tensor")
            array = located(node, contents.storages, name)
            array.check(name, self._limits)
        if array.dtype != dtype or array.shape != box.lengths:
            raise FormatError(
                f"the item has type {array.dtype} and shape {list(array.shape)}, but {quote(METADATA)} "
                f"says {dtype} and {list(box.lengths)}",
                rule="dcp-item", path=array.source.name, offset=item.offset, tensor=name,
            )  # fmt: skip
        return array

    def _find_safetensors(self, name: str, box: Box, item: Item) -> Strided:
        key = item.file, item.offset
        if key not in self._safetensors:
            source = self._folder.open(item.file)
            label = f"{source.name}!{item.offset}"
            file = SafetensorsFile(Window(source, item.offset, source.size - item.offset, label))
            self._safetensors[key] = file, saved_offsets(file)
        file, offsets = self._safetensors[key]
        if offsets.get(name) != box.offsets:
            raise self._fault(
                item, f"the file does not hold the chunk of {quote(name)} at {list(box.offsets)}"
            )
        return as_strided(file.tensor(name))

    def add_value(self, found: Assembly, name: str, item: Item, limits: Limits) -> None:
        """Read a value that is not a tensor."""
        window = self._window(item, name)
        try:
            contents = read_contents(window, limits)
        except SafetensorError as error:
            error.tensor = error.tensor or name
            raise
        found.add_calls(contents.pickles)
        found.add_tree(name, contents.tree, contents.storages, window.name)


DictLike = dict[str, tuple[int, ...]]

SHARDING_KEY: Final = "DCP_SHARDING_INFO"
"""The metadata in which torch's safetensors files say where their tensors belong."""


def saved_offsets(file: SafetensorsFile) -> dict[str, tuple[int, ...]]:
    """Where each tensor of `file` begins in the whole tensor, as torch's writers note it.

    Raises:
        FormatError: The note is malformed.
    """
    text = (file.header.metadata or {}).get(SHARDING_KEY)
    if text is None:
        return {}
    try:
        table = json.loads(text)
        noted = {name: whole_numbers(entry["saved_offsets"]) for name, entry in table.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        noted = {"": None}
    if None in noted.values() or not noted.keys() >= file.header.tensors.keys():
        raise FormatError(
            f"the metadata {SHARDING_KEY} do not say where each tensor belongs",
            rule="dcp-sharding", path=file.name,
        )  # fmt: skip
    return {name: offsets for name, offsets in noted.items() if offsets is not None}
