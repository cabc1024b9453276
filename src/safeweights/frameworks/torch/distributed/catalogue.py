"""The tensors of a checkpoint: the coordinator reads the headers once and tells the other ranks.

A checkpoint is one file, or a folder with or without an index, local or remote, by any writer.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

from ....checkpoint.file import SafetensorsFile
from ....checkpoint.mapping import Checkpoint
from ....checkpoint.opening import Files, find_files
from ....checkpoint.shardindex import ANY_INDEX, VALUES_SUFFIX
from ....checkpoint.sharding import stem_of
from ....checkpoint.tensor import FileTensor
from ....errors import ChangedError, FormatError, UnsupportedError
from ....format.gcpause import gc_paused
from ....format.header import TensorInfo
from ....storage import Store, place_of
from ....storage.places import Place
from ....trust.verifier import resolve
from .values import VALUES_MAX, decoded_value, decoded_values, encoded_value

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ....storage import Source

__all__ = ["Catalogue", "Location"]


class Location:
    """Where a checkpoint is, as one rank reaches it.

    Args:
        target: A path, URL or store.
        trust: See `safeweights.open`.
        identity: See `safeweights.open`.

    Attributes:
        name: What to call it in messages.
    """

    def __init__(self, target: Any, trust: object, identity: Any) -> None:
        found, self._verify = resolve(target, trust, identity)
        if isinstance(found, Store):
            self.name = found.location
        elif isinstance(found, str | os.PathLike):
            found = place_of(found)
            self.name = found.path
        elif isinstance(found, Place):
            self.name = found.path
        else:
            kind = type(target).__name__
            raise UnsupportedError(f"expected a path, a URL or a store, found {kind}")
        self._target: Store | Place = found
        self._folder: Store | None = found if isinstance(found, Store) else None
        if isinstance(found, Place) and found.kind() == "folder":
            self._folder = found.folder()

    def read(self) -> Catalogue:
        """Read the headers of all files.

        Raises:
            FormatError, TrustError, ChangedError, OSError: See `safeweights.open`.
        """
        files = self._files()
        opened, versions = {}, {}
        for name, source in files.open("pread", self._verify):
            opened[name] = SafetensorsFile(source)
            versions[name] = source.version
        files.check({name: file.header.tensors for name, file in opened.items()})
        whole = Checkpoint.from_files(opened.values(), files.name)  # refuses a name in two files
        rows = [
            FileRow(name, file.source.size, versions[name], file.header.data_start)
            for name, file in opened.items()
        ]
        tensors = {
            name: (info.dtype, info.shape, info.begin, info.end, number)
            for number, file in enumerate(opened.values())
            for name, info in file.header.tensors.items()
        }
        values = self._read_values(files)
        return Catalogue(self._folder is not None, rows, tensors, whole.metadata or {}, values)

    def _files(self) -> Files:
        if self._folder is not None:
            self._folder.recover()  # a save that was killed while it published its files
        found = find_files(self._target, verify=self._verify)
        if found is not None:
            return found
        assert isinstance(self._target, Place)
        return Files(self._target.path, self._target.store, [self._target.name])

    def _read_values(self, files: Files) -> dict[str, Any]:
        """Values that are no tensors, which lie beside the weights."""
        name = files.index_name or files.names[0]
        folder, slash, last = name.rpartition("/")
        stem = (
            last.removesuffix(ANY_INDEX) if files.index_name else last
        )  # of both ends .safetensors
        beside = f"{folder}{slash}{stem_of(stem)}{VALUES_SUFFIX}"
        if files.store.kind(beside) is None:
            return {}
        source = files.store.open(beside, backend="pread")
        if self._verify is not None:
            source = self._verify(source, source.name)
        if source.size > VALUES_MAX:
            raise FormatError(
                f"it has {source.size:,} bytes; at most {VALUES_MAX:,} are read",
                rule="values", path=source.name,
            )  # fmt: skip
        return decoded_values(source.read(0, source.size), source.name)

    def open(self, folder: bool, row: FileRow) -> Source:
        """Open one of the files on this rank: the same bytes that the coordinator saw.

        Args:
            folder: Whether the names of files count from the folder that the path names.
            row: The file.

        Raises:
            ChangedError: It is another file by now, or another size.
            TrustError: It may not be read.
            OSError: It cannot be opened.
        """
        target = self._target
        store = target if isinstance(target, Store) else target.folder() if folder else target.store
        source = store.open(row.name, backend="pread", version=row.version)
        if source.size != row.size:
            raise ChangedError(
                f"the file has {source.size} bytes here, and {row.size} for the coordinator",
                path=source.name,
            )
        return source if self._verify is None else self._verify(source, source.name)


class FileRow(NamedTuple):
    """A file of a checkpoint.

    Attributes:
        name: Its name in its store.
        size: Number of bytes.
        version: See `Source.version`.
        data_start: Where its data begins.
    """

    name: str
    size: int
    version: str | None
    data_start: int


class Catalogue(NamedTuple):
    """Everything there is to know about a checkpoint but its data.

    Attributes:
        folder: See `Location.open`.
        files: Its files.
        tensors: Name -> type, shape, first byte, end, number of the file.
        metadata: As `safeweights.Checkpoint.metadata`.
        values: Name -> value that is no tensor.
    """

    folder: bool
    files: list[FileRow]
    tensors: dict[str, tuple[str, tuple[int, ...], int, int, int]]
    metadata: dict[str, str]
    values: dict[str, Any]

    def message(self) -> Any:
        """The same, as JSON holds it."""
        values = {name: encoded_value(name, value) for name, value in self.values.items()}
        return [self.folder, self.files, self.tensors, self.metadata, values]

    @classmethod
    def of_message(cls, message: Any) -> Catalogue:
        """What `message` gave, on another rank."""
        folder, files, tensors, metadata, values = message
        with gc_paused():
            return cls(
                folder,
                [FileRow(*row) for row in files],
                {n: (d, tuple(s), b, e, f) for n, (d, s, b, e, f) in tensors.items()},
                metadata,
                {name: decoded_value(value) for name, value in values.items()},
            )

    def aliases(self) -> dict[str, str]:
        """Name that the metadata note as tied -> tensor that has its values."""
        return {
            name: kept
            for name, kept in self.metadata.items()
            if kept in self.tensors and name not in self.tensors
        }

    def tensor(self, name: str, sources: Mapping[int, Source]) -> FileTensor:
        """A tensor of a file that is open."""
        dtype, shape, begin, end, number = self.tensors[name]
        info = TensorInfo(dtype, shape, begin, end)
        return FileTensor(name, info, sources[number], self.files[number].data_start)
