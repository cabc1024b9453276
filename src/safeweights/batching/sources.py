"""Which units there are: from files, folders, patterns, URLs and lists of them.

Rules:
- A folder is searched for models. A model is the topmost folder that has weights, their index, a
  signature or ``model_index.json`` directly in it, and all that is below it. With ``each="file"`` every
  file of weights is a unit instead. Links to folders are not followed. A folder without any model is a
  unit itself: the command says what is wrong with it.
- A repository of the Hub, a model in a registry and an address of a web server are one unit each.
- A source may be a pattern, if there is no file of that name; ``**`` matches folders at any depth.
- ``@FILE`` and ``-`` are lists, one source a line; what follows a tab is the name of the result.
- A result is called like its source: below the folder that was searched, below the part of a pattern that
  has no wildcard, or else like the last part of the path.
- The order is that of the sources, and by name within one. A unit that is found twice counts once.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import re
import sys
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

from ..checkpoint.shardindex import ANY_INDEX, SUFFIX
from ..conversion.opening import WEIGHT_SUFFIXES
from ..errors import SafetensorError, UnsupportedError, quote
from ..storage import check_name
from ..storage.places import absolute, folder_of, is_folder, is_url, join, shown
from .units import Unit

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from ..storage import Store

__all__ = ["Each", "Shard", "find_units"]

Each: TypeAlias = Literal["model", "file"]

_WEIGHTS: Final = (SUFFIX, ".gguf", ".age", *WEIGHT_SUFFIXES)
_MARKS: Final = frozenset({"model.sig", "model_index.json", ".metadata"})
"""Files that make a folder a model though its weights are in folders below it."""

_WHOLE: Final = ("hf://", "oci://")
"""URLs of which each is one model."""

_MAGIC: Final = re.compile(r"[*?\[]")
_MOST_LINES: Final = 1 << 30


class Shard(NamedTuple):
    """One of several equal parts of a batch, for jobs that know nothing of each other.

    Attributes:
        number: From 1.
        of: How many there are.
    """

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """``"3/8"``.

        Raises:
            UnsupportedError: It is not a number from 1 up to another.

        >>> Shard.parse("3/8")
        Shard(number=3, of=8)
        """
        match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise UnsupportedError(f"a shard is I/N, with I from 1 to N, not {quote(text)}")
        return cls(int(match[1]), int(match[2]))

    def has(self, key: str) -> bool:
        """Whether a unit belongs to this part: by the SHA-256 of its key, whatever else there is."""
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        return int.from_bytes(digest[:8], "big") % self.of == self.number - 1


class _Found(NamedTuple):
    """A source, what its result is called, and what reading it costs."""

    source: str
    name: str
    cost: int


def find_units(
    sources: Iterable[str],
    *,
    each: Each = "model",
    to: str | None = None,
    target: Callable[[str, str, str], str],
    shard: Shard | None = None,
) -> list[Unit]:
    """The units of a batch.

    Args:
        sources: Paths, URLs, patterns and lists; see above.
        each: What a unit is.
        to: The folder or URL of the results.
        target: The path of a result: from `to`, its name and its source.
        shard: Only the units of this part.

    Raises:
        UnsupportedError: Two results would have one name, or one has a name that is not valid.
        FileNotFoundError: A pattern matches nothing.
        OSError: A list or a store cannot be read.
    """
    units: dict[str, Unit] = {}
    places: dict[str, str] = {}
    for found in _expand(sources, each):
        unit = Unit(found.source, cost=found.cost)
        key = unit.key
        if key in units:
            continue
        if to is not None:
            place = target(to, _valid(found), found.source)
            other = places.setdefault(absolute(place), found.source)
            if other != found.source:
                raise _same_result(other, found.source, place)
            unit = replace(unit, target=place)
        units[key] = unit
    return [unit for key, unit in units.items() if shard is None or shard.has(key)]


def _valid(found: _Found) -> str:
    if problem := check_name(found.name):
        raise UnsupportedError(
            f"the result of {quote(shown(found.source), 400)} would be called {quote(found.name)}, "
            f"which {problem}; name it in a list (docs/batch.md)"
        )
    return found.name


def _same_result(first: str, second: str, place: str) -> UnsupportedError:
    one, other = (quote(shown(source), 400) for source in (first, second))
    return UnsupportedError(
        f"the results of {one} and {other} would both be {quote(shown(place), 400)}; give a folder or a "
        "pattern, below which names differ, or name them in a list (docs/batch.md)"
    )


def _expand(sources: Iterable[str], each: Each) -> Iterator[_Found]:
    for source in sources:
        if source == "-":
            yield from _of_list(sys.stdin.buffer.read(_MOST_LINES), each)
        elif source.startswith("@"):
            with open(source[1:], "rb") as file:
                yield from _of_list(file.read(_MOST_LINES), each)
        else:
            yield from _one(source, each)


def _of_list(data: bytes, each: Each) -> Iterator[_Found]:
    for line in data.splitlines():
        source, _, name = os.fsdecode(line).partition("\t")
        if not source.strip():
            continue
        if name:
            yield _Found(source, name, _cost(source))
        else:
            yield from _one(source, each)


def _one(source: str, each: Each) -> Iterator[_Found]:
    if is_url(source):
        magic = not source.startswith(("http://", "https://")) and _MAGIC.search(source)
        yield from _matching_urls(source, each) if magic else _place(source, _last(source), each)
    elif _MAGIC.search(source) and not os.path.lexists(source):
        yield from _matching(source, each)
    else:
        yield from _place(source, _last(source), each)


def _last(source: str) -> str:
    """What the result of a source is called that was named itself."""
    path = shown(source).rstrip("/")
    if path.startswith(_WHOLE):
        repository = path.partition("://")[2].partition("@")[0]
        host, _, name = repository.partition("/")
        if path.startswith("oci://"):
            return re.sub(r":[^:/]*$", "", name)
        return f"{host}/{name}".rstrip("/")
    return os.path.basename(path if is_url(path) else os.path.abspath(path))


def _matching(pattern: str, each: Each) -> Iterator[_Found]:
    found = sorted(glob.glob(pattern, recursive=True))
    if not found:
        raise FileNotFoundError(errno.ENOENT, "no file matches this pattern", pattern)
    fixed = pattern[: _MAGIC.search(pattern).start()]  # type: ignore[union-attr]
    folder = os.path.dirname(fixed)
    for path in found:
        name = os.path.relpath(path, folder or os.curdir).replace(os.sep, "/")
        yield from _place(path, name, each)


def _matching_urls(pattern: str, each: Each) -> Iterator[_Found]:
    """Files of a store, and folders of files, that match; a model that a match is in is the unit."""
    fixed = pattern[: _MAGIC.search(pattern).start()]  # type: ignore[union-attr]
    folder = fixed.rpartition("/")[0] + "/"
    wanted = pattern[len(folder) :].rstrip("/").split("/")
    store = folder_of(folder)
    names = [entry.name for entry in store.list() if entry.kind == "file"]
    tops = {_matching_top(name, wanted) for name in names} - {None}
    if not tops:
        raise FileNotFoundError(errno.ENOENT, "nothing matches this pattern", shown(pattern))
    files = set(names)
    for top in sorted(tops):  # type: ignore[type-var]
        url = join(folder, str(top))
        yield from _place(url if top in files else f"{url}/", str(top), each)


def _matching_top(name: str, wanted: Sequence[str]) -> str | None:
    """The shortest beginning of a name, up to a slash, that matches."""
    parts = name.split("/")
    ends = range(1, len(parts) + 1)
    return next(("/".join(parts[:end]) for end in ends if _matches(parts[:end], wanted)), None)


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path matches a pattern, part by part; ``**`` stands for any number of parts.

    >>> _matches(["a", "b", "x.pt"], ["**", "*.pt"]), _matches(["a", "x.pt"], ["*.pt"])
    (True, False)
    """
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[start:], pattern[1:]) for start in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _place(source: str, name: str, each: Each) -> Iterator[_Found]:
    """The unit, or those in a folder."""
    if source.startswith(_WHOLE) or not _is_searched(source):
        yield _Found(source, name, _cost(source))
        return
    store = folder_of(source)
    try:
        names = sorted(_files_in(store))
    except (SafetensorError, OSError):  # the command says what is wrong; the other sources are done
        yield _Found(source, name, 0)
        return
    sizes: dict[str, int] = {}
    tops = [found for found in names if found.endswith(_WEIGHTS)]
    if each == "model":
        tops = sorted(_models(names))
        _add_costs(store, names, tops, sizes)
    if not tops or tops == [""]:
        yield _Found(source, name, sizes.get("", 0))
        return
    if not is_url(source):
        for top in tops:
            path = os.path.join(source, top)
            yield _Found(path, top, sizes.get(top, 0) if each == "model" else _size(path))
        return
    for top in tops:
        path = join(source.rstrip("/"), top)
        yield _Found(f"{path}/" if each == "model" else path, top, _UNKNOWN)


def _is_searched(source: str) -> bool:
    if not is_url(source):
        return os.path.isdir(source)
    try:
        return is_folder(source) and folder_of(source).can_list
    except (SafetensorError, OSError):  # the command says what is wrong
        return False


def _files_in(store: Store) -> Iterator[str]:
    for name, kind in store.list():
        if kind == "file" or (kind == "link" and os.path.isfile(store.locate(name))):
            yield name


def _models(names: Iterable[str]) -> set[str]:
    """The topmost folders that are models, relative to the store; ``""`` for the store itself.

    >>> sorted(_models(["a/model.safetensors", "a/b/extra.bin", "c/d/x.pt", "README.md"]))
    ['a', 'c/d']
    """
    marked = set()
    for name in names:
        folder, _, last = name.rpartition("/")
        if last in _MARKS or last.endswith((*_WEIGHTS, ANY_INDEX)):
            marked.add(folder)
    return {folder for folder in marked if not _is_below(folder, marked)}


def _is_below(folder: str, others: Collection[str]) -> bool:
    if not folder:
        return False
    parts = folder.split("/")
    return "" in others or any("/".join(parts[:end]) in others for end in range(1, len(parts)))


def _add_costs(store: Store, names: list[str], tops: list[str], sizes: dict[str, int]) -> None:
    """The bytes of each model; those of a remote one are not known without a request for each file."""
    wanted = set(tops)
    for name in names:
        folder = name
        while folder:
            folder = folder.rpartition("/")[0]
            if folder in wanted:
                sizes[folder] = sizes.get(folder, 0) + _cost(store.locate(name))
                break


_UNKNOWN: Final = 1 << 40
"""The cost of what is reached over a network: such a unit is a task of its own."""


def _cost(path: str) -> int:
    return _UNKNOWN if is_url(path) else _size(path)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:  # the command says what is wrong
        return 0
