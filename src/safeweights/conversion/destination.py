"""Where the files of a conversion go, what they are called, and what they replace."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from ..checkpoint import SUFFIX, Tensor
from ..checkpoint.shardindex import ANY_INDEX, INDEX_SUFFIX
from ..checkpoint.sharding import EarlierSave, files_in_index, split_into_shards, stem_of
from ..errors import UnsupportedError
from ..storage import LocalStore, is_url, place_of
from ..text import plural
from .exports import EXPORTS
from .folders import output_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ..storage import Store

__all__ = ["FOLDER_NAME", "Destination", "OutputFile", "require_whole", "split_output"]

FOLDER_NAME: Final = "model"
"""What a checkpoint that is a folder is called, without its suffix."""

RECORD_SUFFIX: Final = ".provenance.json"
_FOLDER_INDEX: Final = f"{FOLDER_NAME}{INDEX_SUFFIX}"
"""The index of a conversion of several sources that have none."""


@dataclass(frozen=True)
class OutputFile:
    """One file to be written, and the source that it is made from."""

    name: str
    source: str
    tensors: Mapping[str, Tensor]
    metadata: dict[str, str]

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors, without its header."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def split_output(output: OutputFile, max_shard_size: int | str | None) -> list[OutputFile]:
    """The shards of `output`; itself if it needs no splitting."""
    if max_shard_size is None:
        return [output]
    stem = output.name.removesuffix(SUFFIX)
    shards = split_into_shards(output.tensors, stem, max_shard_size)
    if len(shards) == 1:
        return [output]  # whose name need not end in .safetensors
    return [replace(output, name=name, tensors=part) for name, part in shards.items()]


def require_whole(own: Iterable[str], outputs: Iterable[str], removed: Iterable[str]) -> None:
    """Refuse to replace some files of a source and leave others: together they are no checkpoint.

    Args:
        own: The paths of the files of the source.
        outputs: The paths that are written.
        removed: The paths that are removed.

    Raises:
        UnsupportedError: Some of the source's files would be replaced, and others would stay.
    """
    files = {_real(path): path for path in own}
    new = {_real(path) for path in outputs}
    left = files.keys() - new - {_real(path) for path in removed}
    replaced = sorted(files[path] for path in files.keys() & new)
    if replaced and left:
        raise UnsupportedError(
            f"this is one of the files of the source; {plural(len(left), 'other file')} of it would "
            "stay, and would not fit what is written: choose another target",
            path=replaced[0],
        )


def _real(path: str) -> str:
    return path if is_url(path) else os.path.realpath(path)


@dataclass(frozen=True)
class Destination:
    """A folder, and for a conversion of one file the name of its output.

    Attributes:
        store: The folder.
        name: The name of the output if there is one source; None if files are named like their sources.
    """

    store: Store
    name: str | None

    @classmethod
    def of(cls, path: str, sources: list[str], into_folder: bool) -> Destination:
        """As `cp` does it: one file goes to a file, or into a folder that exists or ends in a slash.

        Args:
            path: What the user gave.
            sources: The files to convert.
            into_folder: Whether there are, or could be, several: `path` is a folder, unless its name
                says that it is one safetensors file.

        Raises:
            NotADirectoryError: A folder is needed, and a file is in its place.
        """
        if is_url(path):
            return cls._of_url(path, sources, into_folder=into_folder)
        folder, name = os.path.split(path)
        one_file = not into_folder or name.endswith((SUFFIX, *EXPORTS))
        if one_file and name and not os.path.isdir(path):
            return cls(LocalStore(folder), name)
        folder = os.path.dirname(os.path.join(path, ""))
        if os.path.lexists(folder) and not os.path.isdir(folder):
            message = "is a file, where a folder is needed to write into"
            raise NotADirectoryError(errno.ENOTDIR, message, folder)
        name = output_name(os.path.basename(sources[0]))
        return cls(LocalStore(folder), None if into_folder else name)

    @classmethod
    def _of_url(cls, url: str, sources: list[str], *, into_folder: bool) -> Destination:
        """The same; a URL that does not end in a slash names a file, unless there are several."""
        place = place_of(url)
        one_file = not into_folder or place.name.endswith((SUFFIX, *EXPORTS))
        if place.name and one_file and place.kind() != "folder":
            return cls(place.store, place.name)
        name = output_name(os.path.basename(sources[0]))
        return cls(place.folder(), None if into_folder else name)

    @property
    def record_name(self) -> str:
        """The name of the provenance record."""
        return f"{self.name or 'conversion'}{RECORD_SUFFIX}"

    def index_name(self, source_index: str | None) -> str:
        """The name of the index: like the sources' index, if they have one."""
        if source_index is not None:
            name = os.path.basename(source_index).removesuffix(ANY_INDEX)
            return output_name(name) + ANY_INDEX
        return _FOLDER_INDEX if self.name is None else self._stem(self.name) + INDEX_SUFFIX

    def name_of(self, source: str) -> str:
        """The name of what the source at a path becomes, before it is split."""
        return self.name or output_name(os.path.basename(source))

    def earlier_save(self, outputs: list[OutputFile], index: str | None) -> EarlierSave:
        """The files that must not stay beside `outputs` and their index."""
        names = [output.name for output in outputs]
        stems = [self._stem(self.name or name) for name in names]
        if index is not None:
            stems.append(index.removesuffix(INDEX_SUFFIX))
        earlier = EarlierSave(self.store, stems, names)
        if self.name is None and _FOLDER_INDEX not in earlier.indexes:
            # An earlier conversion into this folder may have listed files in it that are now replaced.
            listed = files_in_index(self.store, _FOLDER_INDEX)
            if not {*names, *earlier.files()}.isdisjoint(listed):
                earlier.indexes.append(_FOLDER_INDEX)
        return earlier

    def check(self, names: Iterable[str], earlier: EarlierSave, *, force: bool) -> None:
        """Check that files can be written.

        Args:
            names: Their names.
            earlier: What else would be replaced.
            force: Whether files are replaced.

        Raises:
            FileExistsError: Without `force`, if one of them exists.
            IsADirectoryError: There is a folder of that name.
        """
        for name in names:
            kind = self.store.kind(name)
            if kind == "folder":
                message = "is a folder where a file is to be written, which nothing replaces"
                raise IsADirectoryError(errno.EISDIR, message, self.store.locate(name))
            if kind is not None and not force:
                message = "exists; --force (force=True) replaces it"
                raise FileExistsError(errno.EEXIST, message, self.store.locate(name))
        for name in () if force else earlier.files():
            message = (
                "belongs to an earlier checkpoint of the same name; --force (force=True) replaces "
                "that as a whole"
            )
            raise FileExistsError(errno.EEXIST, message, self.store.locate(name))

    def _stem(self, name: str) -> str:
        # A single output that is named like a shard replaces that shard, not the series.
        return stem_of(name) if self.name is None else name.removesuffix(SUFFIX)
