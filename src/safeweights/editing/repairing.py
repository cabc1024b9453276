"""`repair`: mend what can be mended without a guess, and say what to download again.

- Bytes after the end that the header announces are cut off.
- NUL bytes that pad a header become spaces.
- An index that is missing, unreadable, or disagrees with a complete series of shards is written from them.
- ``format`` is added to the metadata, if it is given or all other shards agree on it.

Bytes that are missing, or that a preallocated download never filled, can only be downloaded: their range is
reported. A file is replaced as a whole, like in every other save.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from ..checkpoint import SUFFIX, SafetensorsFile
from ..checkpoint.shardindex import INDEX_SUFFIX, index_text, parse_index
from ..errors import FormatError, SafetensorError, quote
from ..format.entries import Entries
from ..format.header import MAX_HEADER, PREFIX, parse
from ..format.rules import Problems, Stop
from ..storage import DescriptorSource, Run, Source, place_of
from ..text import plural
from .editor import edit
from .tails import zero_tail

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..format.header import Header
    from ..storage import Buffer, Store

__all__ = ["Download", "Mended", "Repair", "repair"]

_BLOCK: Final = 1 << 22

_SHARD: Final = re.compile(
    rf"(?P<stem>.*)-(?P<number>\d{{5,9}})-of-(?P<total>\d{{5,9}}){re.escape(SUFFIX)}", re.DOTALL
).fullmatch


@dataclass(frozen=True)
class Mended:
    """A file that was mended, and how."""

    file: str
    what: str


@dataclass(frozen=True)
class Download:
    """Bytes that have to be downloaded again: from `first` to `last`, both counted; all, if None."""

    file: str
    first: int | None
    last: int | None
    why: str


@dataclass
class Repair:
    """What a repair did.

    Attributes:
        path: What was repaired.
        mended: The files that were mended.
        downloads: What has to be downloaded again.
        left: File -> what is wrong with it and cannot be mended here.
        dry_run: Whether nothing was written.
    """

    path: str
    mended: list[Mended] = field(default_factory=list)
    downloads: list[Download] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    dry_run: bool = False

    @property
    def whole(self) -> bool:
        """Whether nothing is left to do."""
        return not (self.downloads or self.left)


def repair(
    path: str | os.PathLike[str],
    *,
    format: str | None = None,  # noqa: A002 - the key's name
    dry_run: bool = False,
    durable: bool = False,
) -> Repair:
    """Mend a safetensors file, or all files and indexes of a folder.

    Cost: headers, and of each file the last 64 KiB; more only of those that end in zeros. A file that is
    mended is copied by the system.

    Args:
        path: A file or a folder.
        format: The ``format`` to add to metadata that has none, such as ``"pt"``.
        dry_run: Find out, and write nothing.
        durable: Return only when all of it would survive a loss of power.

    Returns:
        What was done, and what is left.

    Raises:
        OSError: A file cannot be read or written.

    >>> import tempfile, numpy, safeweights.numpy
    >>> path = tempfile.mkdtemp() + "/a.safetensors"
    >>> with open(path, "wb") as file:
    ...     _ = file.write(safeweights.numpy.save({"a": numpy.ones(3)}) + b"junk")
    >>> repair(path).mended[0].what
    'cut off 4 bytes after the end of the data'
    """
    name = os.fsdecode(path)
    place = place_of(name)
    done = Repair(name, dry_run=dry_run)
    if place.kind() != "folder":
        job = _Job(place.store, done, format, durable=durable)
        job.mend_files([place.name])
        return done
    store = place.folder()
    names = [entry.name for entry in store.list() if entry.kind in {"file", "link"}]
    job = _Job(store, done, format, durable=durable)
    job.mend_files(
        each
        for each in names
        if each.endswith(SUFFIX) and not each.rpartition("/")[2].startswith(".")
    )
    job.mend_indexes(names)
    return done


class _Job:
    """One call of `repair`."""

    def __init__(self, store: Store, done: Repair, format: str | None, *, durable: bool) -> None:  # noqa: A002
        self._store = store
        self._done = done
        self._format = format
        self._durable = durable
        self._headers: dict[str, Header] = {}

    def mend_files(self, names: Iterable[str]) -> None:
        """Mend files, one after another; then add what they lack to their metadata."""
        for name in names:
            self._try_to_mend(name)
        self._add_formats()

    def _try_to_mend(self, name: str) -> None:
        try:
            self._mend_file(name)
        except SafetensorError as error:
            self._done.left[self._store.locate(name)] = error.message

    def _mend_file(self, name: str) -> None:
        source = self._store.open(name, backend="pread")
        path = self._store.locate(name)
        length = int.from_bytes(source.read(0, min(PREFIX, source.size)), "little")
        if source.size < PREFIX or not 0 < length <= MAX_HEADER:
            SafetensorsFile(source)  # says what is wrong
        if source.size < PREFIX + length:
            why = f"the file ends in its header, which has {plural(length, 'byte')}"
            self._done.downloads.append(Download(path, source.size, None, why))
            return
        old = source.read(PREFIX, length)
        text = old.rstrip(b"\0 ").ljust(length) if old.endswith(b"\0") else old
        end = _announced(text)
        header = parse(text, end, path=path)
        whole = PREFIX + length + end
        if source.size < whole:
            why = f"the file has {source.size:,} of {plural(whole, 'byte')}"
            self._done.downloads.append(Download(path, source.size, whole - 1, why))
            return
        what = []
        if source.size > whole:
            what.append(f"cut off {plural(source.size - whole, 'byte')} after the end of the data")
        if text != old:
            what.append("replaced NUL bytes after the header by spaces")
        if what:
            self._replace(name, source, length.to_bytes(PREFIX, "little") + text, whole)
            self._done.mended.append(Mended(path, "; ".join(what)))
        elif (zeros := zero_tail(source, header)) is not None:
            why = f"the last {plural(whole - zeros, 'byte')} are zeros: a download that stopped?"
            self._done.downloads.append(Download(path, zeros, whole - 1, why))
        self._headers[name] = header

    def _replace(self, name: str, source: Source, head: bytes, size: int) -> None:
        """Write a file with another header, and the data of the old one up to `size`."""
        if self._done.dry_run:
            return
        pieces: list[Buffer | Run] = [head]
        if isinstance(source, DescriptorSource):
            pieces.append(Run(source, len(head), size - len(head)))
        else:
            pieces += [
                source.read(begin, min(_BLOCK, size - begin))
                for begin in range(len(head), size, _BLOCK)
            ]
        with self._store.commit(durable=self._durable) as commit:
            commit.write(name, pieces)

    def _add_formats(self) -> None:
        """Add ``format`` to metadata without one, if it is known."""
        for name, header in self._headers.items():
            if "format" in (header.metadata or {}):
                continue
            wanted = self._format or self._format_of_others(name)
            if wanted is None:
                continue
            path = self._store.locate(name)
            if not self._done.dry_run:
                edit(path, in_place=True, metadata={"format": wanted}, durable=self._durable)
            self._done.mended.append(Mended(path, f"added format={wanted} to the metadata"))

    def _format_of_others(self, name: str) -> str | None:
        """The ``format`` that all other shards of a series have."""
        match = _SHARD(name)
        if match is None:
            return None
        found = {
            (header.metadata or {}).get("format")
            for other, header in self._headers.items()
            if other != name and (same := _SHARD(other)) and same["stem"] == match["stem"]
        } - {None}
        return found.pop() if len(found) == 1 else None

    def mend_indexes(self, names: Iterable[str]) -> None:
        """Write the indexes of complete series of shards that have no right one."""
        series: dict[tuple[str, int], dict[int, str]] = {}
        for name in names:
            if match := _SHARD(name):
                key = match["stem"], int(match["total"])
                series.setdefault(key, {})[int(match["number"])] = name
        current = {stem: self._listed(f"{stem}{INDEX_SUFFIX}") for stem, _ in series}
        for (stem, total), shards in series.items():
            listed = current[stem]
            if listed and listed.isdisjoint(shards.values()):
                message = (
                    f"a shard of {total} that the index does not list: it may be of an older save"
                )
                self._done.left |= dict.fromkeys(map(self._store.locate, shards.values()), message)
                continue
            first = 0 if 0 in shards else 1
            missing = [number for number in range(first, first + total) if number not in shards]
            for number in missing:
                path = self._store.locate(f"{stem}-{number:05}-of-{total:05}{SUFFIX}")
                self._done.downloads.append(Download(path, None, None, "the shard is missing"))
            if not missing and total > 1 and all(name in self._headers for name in shards.values()):
                self._mend_index(f"{stem}{INDEX_SUFFIX}", sorted(shards.values()))

    def _listed(self, index: str) -> set[str]:
        """The shards that an index lists, by their names in the store."""
        try:
            source = self._store.open(index, backend="pread")
            found = parse_index(source, source.name, suffix="").shards
        except (FormatError, FileNotFoundError):
            return set()
        folder = index.rpartition("/")[0]
        return {f"{folder}/{shard}" if folder else shard for shard in found}

    def _mend_index(self, index: str, shards: list[str]) -> None:
        weight_map: dict[str, str] = {}
        for shard in shards:
            for tensor in self._headers[shard].tensors:
                if tensor in weight_map:
                    message = (
                        f"tensor {quote(tensor)} is in two shards, so that no index can be written"
                    )
                    self._done.left[self._store.locate(index)] = message
                    return
                weight_map[tensor] = shard.rpartition("/")[2]
        total = sum(self._headers[shard].data_size for shard in shards)
        text = index_text(weight_map, total).encode()
        what = "wrote the index from its shards"
        try:
            source = self._store.open(index, backend="pread")
            found = parse_index(source, source.name)
        except FileNotFoundError:
            pass
        except FormatError:
            what = "wrote the unreadable index again, from its shards"
        else:
            if found.weight_map == weight_map and found.total_size in (None, total):
                return
            wrong = "the total size" if found.weight_map == weight_map else "which tensor is where"
            what = f"wrote the index again, from its shards: {wrong} was wrong"
        self._done.mended.append(Mended(self._store.locate(index), what))
        if not self._done.dry_run:
            self._store.write(index, [text], durable=self._durable)


def _announced(text: bytes) -> int:
    """Where the data ends, as the entries of a header say."""
    try:
        entries = Entries(text, Problems(None, collect=True))
    except Stop:
        return 0
    return max((info.end for info in entries.tensors.values()), default=0)
