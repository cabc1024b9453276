"""PyTorch's containers: the zip file, TorchScript, the legacy stream.

What they share is a pickle that names storages by key. They differ in where the storages are:
members of the archive, or raw bytes after the pickles. The oldest container, a tar file, is in
`torch_tar`. Source of the layouts: torch/serialization.py, caffe2/serialize/inline_container.cc,
torch/csrc/jit/serialization/export_module.cpp.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from ...derived.element_types import item_size
from ...errors import FormatError, quote
from ...storage import BytesSource, Source
from ...storage.limits import Limits  # noqa: TC001 - get_type_hints must work
from ...storage.windows import Window, read_bytes, truncated
from ..archives.zip_reader import ZipArchive, looks_like_zip
from ..foreign import ALL_CONSTRUCTORS, ForeignCheckpoint, OpenOptions, from_tree
from ..pickles.machine import Pickle, read_pickle
from ..pickles.nodes import Call, DictNode, Value
from ..pickles.numpy_nodes import blob_source
from ..pickles.object_nodes import as_bytes, is_int
from ..pickles.storages import Storages, StoredBytes
from ..pickles.torch_nodes import StorageNode, storage_type

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "LEGACY_MAGIC",
    "NestedStorages",
    "References",
    "Shapes",
    "TorchContents",
    "ZipStorages",
    "is_legacy",
    "legacy_pickles",
    "place_storages",
    "read_contents",
    "read_legacy",
    "read_zip",
    "reference",
    "torch_root",
]

LEGACY_MAGIC: Final = 0x1950A86A20F9469CFC6C
"""The first pickle of a legacy file."""

_PROTOCOL: Final = 1001
_MAGIC_WITHIN: Final = 32  # protocol 4 and 5 put a frame in front


def reference(value: Value, prefix: str = "") -> Value:
    """The node that a persistent id of a zip or legacy file stands for.

    ``("storage", class, key, location, elements[, (view key, first, elements)])``, or
    ``("module", class, file, source)``, which stands for the class.

    Raises:
        FormatError: It is neither.
    """
    if isinstance(value, tuple) and len(value) == 4 and value[0] == "module":
        return value[1]
    if not isinstance(value, tuple) or len(value) not in (5, 6) or value[0] != "storage":
        raise FormatError("a persistent id is none that PyTorch writes", rule="torch-storage")
    kind, key, elements = storage_type(value[1]), value[2], value[4]
    view = value[5] if len(value) == 6 else None
    if kind is None or not isinstance(key, str) or not is_int(elements) or elements < 0:
        raise FormatError("a storage reference is malformed", rule="torch-storage")
    if view is None:
        return StorageNode(prefix + key, kind[0], elements)
    if not isinstance(view, tuple) or len(view) != 3 or not all(map(is_int, view[1:])):
        raise FormatError("a view of a storage is malformed", rule="torch-storage")
    _, first, count = view
    if first < 0 or count < 0 or first + count > elements:
        raise FormatError("a view reaches outside its storage", rule="torch-storage")
    return StorageNode(prefix + key, kind[0], count, first)


class References:
    """The storages that the persistent ids of one file refer to, each described in one way.

    Args:
        prefix: The folder of the storages, with a slash, in an archive.
    """

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix
        self.storages: dict[str, StorageNode] = {}
        self._described: dict[str, tuple[str | None, int]] = {}

    def __call__(self, value: Value) -> Value:
        """The node that the persistent id `value` stands for.

        Raises:
            FormatError: See `reference`; or its storage was described with another type or size, of
                which PyTorch believes the first.
        """
        node = reference(value, self._prefix)
        if isinstance(node, StorageNode):
            described = node.dtype, value[4]
            if self._described.setdefault(node.key, described) != described:
                raise FormatError(
                    f"storage {quote(node.key)} is described with two types or sizes",
                    rule="torch-storage",
                )
            self.storages.setdefault(node.key, node)
        return node


@dataclass(frozen=True)
class TorchContents:
    """What a file of `torch.save` holds: a tree, the pickles it came from, and the storages."""

    tree: Value
    pickles: tuple[Pickle, ...]
    storages: Storages


def _checkpoint(
    kind: str, source: Source, contents: TorchContents, options: OpenOptions
) -> ForeignCheckpoint:
    return from_tree(
        kind,
        source.name,
        contents.tree,
        options,
        pickles=contents.pickles,
        storages=contents.storages,
    )


def read_contents(source: Source, limits: Limits) -> TorchContents:
    """What a zip or legacy file of `torch.save` holds.

    Raises:
        FormatError: It is none, or breaks a rule.
    """
    if looks_like_zip(read_bytes(source, 0, min(4, source.size))):
        return _zip_contents(source, limits)[1]
    return _legacy_contents(source, limits)


class NestedStorages:
    """Storages that a plain pickle carries as whole files of `torch.save` in byte strings.

    That is how tensors pickle outside of `torch.save`: as a call of ``_load_from_bytes``.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._places: dict[str, tuple[Storages, StorageNode]] = {}
        self.pickles: list[Pickle] = []

    def load(self, call: Call) -> Value:
        """Describe ``torch.storage._load_from_bytes(bytes)``: the storage in them."""
        data = as_bytes(call.arguments[0]) if len(call.arguments) == 1 else None
        if data is None:
            return NotImplemented
        source = blob_source(data, f"bytes@{call.offset}")
        contents = read_contents(source, self._limits)
        self.pickles += contents.pickles
        node = contents.tree
        if not isinstance(node, StorageNode):
            return NotImplemented
        key = f"{call.offset}/{node.key}"
        self._places[key] = contents.storages, node
        return replace(node, key=key)

    def find(self, storage: StorageNode) -> StoredBytes:
        """The bytes of a storage that `load` described."""
        found = self._places.get(storage.key)
        if found is None:
            raise FormatError("a storage is in none of the byte strings", rule="torch-storage")
        storages, node = found
        return storages.find(replace(storage, key=node.key))


# -- zip


def torch_root(archive: ZipArchive) -> str | None:
    """The folder that all members of a PyTorch archive are in, or None."""
    roots = {name.split("/", 1)[0] for name in archive.members}
    root = next(iter(roots)) if len(roots) == 1 else None
    return root if root is not None and f"{root}/data.pkl" in archive.members else None


class ZipStorages:
    """Storages that are members of an archive; keys carry their folder, ``data/0``."""

    def __init__(self, archive: ZipArchive, root: str) -> None:
        self._archive = archive
        self._root = root
        self._found: dict[str, Source] = {}
        self._swapped = self._byte_order() == "big"

    def _byte_order(self) -> str:
        name = f"{self._root}/byteorder"
        member = self._archive.members.get(name)
        if member is None:
            return "little"
        source = self._archive.open(name)
        order = read_bytes(source, 0, min(source.size, 16)).decode("latin-1")
        if order not in ("little", "big"):
            raise FormatError(
                f"the byte order {quote(order)} is neither `little` nor `big`",
                rule="torch-byteorder",
                path=source.name,
            )
        return order

    def find(self, storage: StorageNode) -> StoredBytes:
        """The member of the storage's key, whose size must be what the pickle says."""
        source = self._found.get(storage.key)
        if source is None:
            source = self._found[storage.key] = self._open(storage.key)
        width = item_size(storage.dtype or "U8")
        need = (storage.first + storage.elements) * width
        if need > source.size or (not storage.first and source.size - need >= max(width, 1)):
            raise FormatError(
                f"the pickle says this storage has {need} bytes, but the member has {source.size}",
                rule="torch-storage",
                path=source.name,
            )
        return StoredBytes(source, self._swapped)

    def is_empty(self, key: str) -> bool:
        """Whether the member of a storage is there and has no bytes."""
        member = self._archive.members.get(f"{self._root}/{key}")
        return member is not None and member.size == 0

    def _open(self, key: str) -> Source:
        name = f"{self._root}/{key}"
        if name not in self._archive.members:
            raise FormatError(
                f"the pickle refers to storage {quote(key)}, which the archive does not hold",
                rule="torch-storage",
                path=self._archive.source.name,
            )
        return self._archive.open(name)


class Shapes:
    """The storages of example inputs, of which TorchScript may keep shapes without values.

    A member that is empty stands for as many bytes as the pickle says; all others are as in `ZipStorages`.
    """

    def __init__(self, storages: ZipStorages) -> None:
        self._storages = storages

    def find(self, storage: StorageNode) -> StoredBytes:
        """See `ZipStorages.find`."""
        if self._storages.is_empty(storage.key):
            size = (storage.first + storage.elements) * item_size(storage.dtype or "U8")
            return StoredBytes(_Nothing(storage.key, size))
        return self._storages.find(storage)


class _Nothing(Source):
    """A source that has a size and cannot be read."""

    def __init__(self, name: str, size: int) -> None:
        self.name, self.size = name, size

    def read_into(self, offset: int, buffer: memoryview) -> None:
        raise truncated(BytesSource(b"", self.name), offset, len(buffer))


def read_zip(source: Source, options: OpenOptions) -> ForeignCheckpoint:
    """A file of `torch.save` since 1.6, or of `torch.jit.save`.

    Raises:
        FormatError: The archive or its pickle breaks a rule.
    """
    kind, contents = _zip_contents(source, options.limits)
    return _checkpoint(kind, source, contents, options)


def _zip_contents(source: Source, limits: Limits) -> tuple[str, TorchContents]:
    archive = ZipArchive(source, limits)
    root = torch_root(archive)
    if root is None:
        raise FormatError(
            "this zip archive is not one of PyTorch's: it has no data.pkl in its one folder",
            rule="torch-zip",
            path=source.name,
        )
    pickles = [_member_pickle(archive, f"{root}/data.pkl", "data/", limits)]
    tree = pickles[0].value
    kind = "torch-zip"
    if f"{root}/constants.pkl" in archive.members:
        kind = "torchscript"
        constants = _member_pickle(archive, f"{root}/constants.pkl", "constants/", limits)
        pickles.append(constants)
        tree = _with_constants(tree, constants.value)
    return kind, TorchContents(tree, tuple(pickles), ZipStorages(archive, root))


def _with_constants(tree: Value, constants: Value) -> Value:
    """The module's tree with the constants of its code beside its attributes."""
    if not constants:
        return tree
    beside = DictNode([("constants", constants)])
    state = getattr(tree, "state", None)
    if state is None:
        return DictNode([("data", tree), *beside.pairs])
    state.append(beside)
    return tree


def _member_pickle(archive: ZipArchive, name: str, prefix: str, limits: Limits) -> Pickle:
    archive.verify(name)
    source = archive.open(name)
    pickle = read_pickle(
        source,
        constructors=ALL_CONSTRUCTORS,
        persistent=References(prefix),
        limits=limits,
    )
    # PyTorch 1.6 to 2.x write nothing after STOP; anything there is a second pickle or worse.
    if pickle.end != source.size:
        raise FormatError(
            f"{source.size - pickle.end} bytes follow the pickle",
            rule="pickle-trailing",
            path=source.name,
            offset=pickle.end,
        )
    return pickle


# -- legacy


def is_legacy(head: bytes) -> bool:
    """Whether a file that starts with `head` starts with the legacy magic number's pickle."""
    return LEGACY_MAGIC.to_bytes(10, "little") in head[:_MAGIC_WITHIN]


class LegacyStorages:
    """Storages at known places in one source."""

    def __init__(self) -> None:
        self._places: dict[str, Source] = {}

    def add(self, key: str, source: Source, start: int, size: int) -> None:
        """Note that storage `key` is the `size` bytes at `start`."""
        self._places[key] = Window(source, start, size, f"{source.name}!storage {key}")

    def find(self, storage: StorageNode) -> StoredBytes:
        """The bytes noted for the storage's key."""
        place = self._places.get(storage.key)
        if place is None:
            raise FormatError(
                f"the pickle refers to storage {quote(storage.key)}, which the file does not hold",
                rule="torch-storage",
            )
        return StoredBytes(place)


def read_legacy(source: Source, options: OpenOptions) -> ForeignCheckpoint:
    """A file of `torch.save` before 1.6: five pickles, then the storages.

    Raises:
        FormatError: The stream breaks a rule.
    """
    return _checkpoint("torch-legacy", source, _legacy_contents(source, options.limits), options)


def legacy_pickles(source: Source, limits: Limits) -> Iterator[tuple[Pickle, References]]:
    """The five pickles of a legacy file, and the storages that the fourth refers to.

    Raises:
        FormatError: One is malformed, or is not what PyTorch writes there.
    """
    offset = 0
    for what, expected in (("magic number", LEGACY_MAGIC), ("protocol version", _PROTOCOL)):
        pickle = read_pickle(source, offset=offset, limits=limits)
        yield pickle, References()
        if pickle.value != expected or not is_int(pickle.value):
            raise FormatError(
                f"the {what} of a legacy PyTorch file is wrong",
                rule="torch-legacy",
                path=source.name,
                offset=offset,
            )
        offset = pickle.end
    pickle = read_pickle(source, offset=offset, limits=limits)  # system information
    yield pickle, References()
    references = References()
    pickle = read_pickle(
        source,
        offset=pickle.end,
        constructors=ALL_CONSTRUCTORS,
        persistent=references,
        limits=limits,
    )
    yield pickle, references
    yield read_pickle(source, offset=pickle.end, limits=limits), references


def _legacy_contents(source: Source, limits: Limits) -> TorchContents:
    pickles = list(legacy_pickles(source, limits))
    body, references = pickles[3]
    places = place_storages(source, pickles[4][0], references)
    return TorchContents(body.value, (body,), places)


def place_storages(source: Source, keys: Pickle, references: References) -> LegacyStorages:
    """Where each storage is: after the key list, each with its number of elements in front.

    Raises:
        FormatError: The list and the references disagree, or the storages do not fill the file.
    """
    storages = dict(references.storages)
    if not isinstance(keys.value, list):
        raise FormatError(
            "the list of storages is malformed",
            rule="torch-legacy",
            path=source.name,
            offset=keys.start,
        )
    places = LegacyStorages()
    offset = keys.end
    for key in keys.value:
        node = storages.get(key) if isinstance(key, str) else None
        if node is None:
            raise FormatError(
                "the list of storages names one that no tensor refers to",
                rule="torch-legacy",
                path=source.name,
                offset=keys.start,
            )
        del storages[key]  # a key that is listed twice is not found again
        offset = place_storage(places, source, offset, node)
    if offset != source.size:
        raise FormatError(
            f"{source.size - offset} bytes follow the last storage",
            rule="torch-legacy",
            path=source.name,
            offset=offset,
        )
    if storages:
        raise FormatError(
            f"the list of storages lacks {quote(min(storages))}",
            rule="torch-legacy",
            path=source.name,
            offset=keys.start,
        )
    return places


def place_storage(places: LegacyStorages, source: Source, offset: int, node: StorageNode) -> int:
    """Note the storage whose element count is at `offset`; the offset after its bytes."""
    elements: int = struct.unpack("<q", read_bytes(source, offset, 8))[0]
    if elements < 0 or elements < node.first + node.elements:
        raise FormatError(
            f"storage {quote(node.key)} has {elements} elements, "
            f"but the pickle says {node.first + node.elements}",
            rule="torch-storage",
            path=source.name,
            offset=offset,
        )
    size = elements * item_size(node.dtype or "U8")
    places.add(node.key, source, offset + 8, size)
    return offset + 8 + size
