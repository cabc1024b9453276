"""Which files a model in a store consists of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..errors import FormatError, UnsupportedError, quote
from ..storage import check_name, place_of
from ..storage.places import shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ..storage import Store

__all__ = ["MOST_FILES", "files_at"]

MOST_FILES: Final = 100_000
_SIGNATURES: Final = ("model.sig", "model.oms.sig")
_COMPANIONS: Final = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "tokenizer.model", "vocab.json", "merges.txt",
)  # fmt: skip
"""Files that may be beside weights, and are asked for where neither a listing nor a signature tells."""


def files_at(url: str, names: Sequence[str] = ()) -> tuple[Store, list[str]]:
    """A store, and the names in it of the files of the model at a URL.

    Of a folder these are all its files. Where folders cannot be listed (web servers), it is what the
    signature lists, and the signature; without one, the weights and what usually is beside them.

    Args:
        url: A folder or a file.
        names: Only these files of the folder.

    Raises:
        UnsupportedError: A name is not valid on every system, or there are too many.
        FormatError: There is nothing that could be a model.
        OSError: The store does not tell.
    """
    place = place_of(url)
    if place.kind() != "folder":
        if names:
            raise UnsupportedError(
                f"{quote(shown(url), 400)} is a file, of which no files can be named"
            )
        return place.store, [place.name]
    store = place.folder()
    found = list(names) or (_listed(store) if store.can_list else _told(store))
    for name in found:
        if problem := check_name(name):
            raise UnsupportedError(f"the file name {quote(name)} {problem}", path=store.location)
    if not found:
        raise FormatError("there are no files here", rule="folder", path=store.location)
    return store, found


def _listed(store: Store) -> list[str]:
    found: list[str] = []
    for entry in store.list():
        if len(found) == MOST_FILES:
            raise UnsupportedError(
                f"more than {MOST_FILES} files; name a folder in it", path=store.location
            )
        if entry.kind != "file":
            raise UnsupportedError(f"{quote(entry.name)} is a {entry.kind}", path=store.location)
        found.append(entry.name)
    return found


def _told(store: Store) -> list[str]:
    for name in _SIGNATURES:
        if store.kind(name) is not None:
            return [*_signed(store, name), name]
    from ..checkpoint.opening import find_files

    files = find_files(store)
    assert files is not None
    index = [files.index_name] if files.index_name else []
    beside = [name for name in _COMPANIONS if store.kind(name) is not None]
    return _distinct([*files.names, *beside, *index])


def _signed(store: Store, name: str) -> Iterable[str]:
    """What a signature says it lists; it is verified later, with the files."""
    from ..trust.signatures.bundle import MAX_BUNDLE, parse_bundle, parse_statement

    source = store.open(name)
    if source.size > MAX_BUNDLE:
        raise UnsupportedError(f"the signature has {source.size} bytes", path=source.name)
    bundle = parse_bundle(source.read(0, source.size), path=source.name)
    listed = parse_statement(bundle.payload, path=source.name).resources
    return [each for each in listed if each != name]


def _distinct(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
