"""Pushing a model: a local folder into any store that can be written, complete or not at all.

All files are one commit, in an order in which readers never see a part: weights, then what describes
them, the signature, and the index last. To a container registry the signature is attached as well, as a
referrer of the model's manifest, or under the tag that stands in for it where the registry has no
referrers (OCI distribution specification 1.1, "Referrers Tag Schema").
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from ..errors import UnsupportedError, quote
from ..storage import LocalStore, Run, open_source, place_of
from ..storage.places import is_url, shown
from ..storage.runs import is_copyable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..storage import Buffer, Source, Store

__all__ = ["Pushed", "push"]

_INDEX: Final = ".safetensors.index.json"
_OF_A_MODEL: Final = (".safetensors", _INDEX, ".swtree", ".sig")
_PIECE: Final = 8 << 20
_SIGNATURE: Final = "model.sig"


@dataclass
class Pushed:
    """What a push did.

    Attributes:
        location: Where the model is.
        files: Name -> bytes.
        manifest: Digest of the manifest, of a registry.
        signature: Digest of the manifest of the attached signature, of a registry.
    """

    location: str
    files: dict[str, int] = field(default_factory=dict)
    manifest: str | None = None
    signature: str | None = None


def push(
    path: str | os.PathLike[str],
    url: str,
    *,
    force: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> Pushed:
    """Write a local folder, or one file, into a store.

    Args:
        path: The folder or the file.
        url: A folder of a store; for one file, that ends in no slash, its name there.
        force: Replace files, and delete weights, indexes, block trees and signatures that are there and
            not in `path`.
        progress: Called with the bytes sent so far, and those of all files.

    Raises:
        FileExistsError: Without `force`: the store has such a file.
        UnsupportedError: The store is only read; a name is not valid there.
        OSError: Reading or writing failed; the store is as it was.
    """
    path = os.fspath(path)
    store, named = _target(path, url)
    store.check_writable()
    done = Pushed(store.location)
    names = sorted(named, key=_rank)
    sources = {name: open_source(named[name], backend="pread") for name in names}
    done.files = {name: source.size for name, source in sources.items()}
    total, before = sum(done.files.values()), 0
    others = _others(store, set(names)) if force else []
    if not force:
        _require_absent(store, names)
    with store.commit(durable=True) as commit:
        for name in others:
            commit.delete(name)
        for name in names:
            source, report = sources[name], _after(before, total, progress)
            commit.write(
                name, _pieces(source), size=source.size, create_only=not force, progress=report
            )
            before += source.size
    _attach(store, sources.get(_SIGNATURE), done)
    return done


def _target(path: str, url: str) -> tuple[Store, dict[str, str]]:
    """The store, and name -> local path of what goes there."""
    if is_url(path):
        raise UnsupportedError(f"{quote(shown(path), 400)} is no local folder; pull it first")
    place = place_of(url)
    if os.path.isdir(path):
        found: dict[str, str] = {}
        local = LocalStore(path)
        for name, kind in local.list():
            if kind == "special" or (kind == "link" and not os.path.isfile(local.locate(name))):
                raise UnsupportedError(f"{quote(name)} is not a regular file", path=path)
            found[name] = local.locate(name)
        if not found:
            raise FileNotFoundError(errno.ENOENT, "the folder has no files", path)
        return place.folder(), found
    if place.name and not url.endswith("/"):
        return place.store, {place.name: path}
    return place.folder(), {os.path.basename(path): path}


def _rank(name: str) -> tuple[int, str]:
    """What is read first arrives last."""
    for rank, suffix in ((3, _INDEX), (2, ".sig"), (1, ".json")):
        if name.endswith(suffix):
            return rank, name
    return 0, name


def _pieces(source: Source) -> Iterator[Buffer | Run]:
    if is_copyable(source):
        yield Run(source, 0, source.size)  # type: ignore[arg-type]
        return
    for begin in range(0, source.size, _PIECE):
        yield source.read(begin, min(_PIECE, source.size - begin))


def _after(
    before: int, total: int, progress: Callable[[int, int], object] | None
) -> Callable[[int], object] | None:
    return None if progress is None else lambda done: progress(before + done, total)


def _others(store: Store, names: set[str]) -> list[str]:
    found = [entry.name for entry in store.list() if entry.kind == "file"] if store.can_list else []
    return [name for name in found if name not in names and name.endswith(_OF_A_MODEL)]


def _require_absent(store: Store, names: list[str]) -> None:
    for name in names:
        if store.kind(name) is not None:
            message = "exists; --force (force=True) replaces it"
            raise FileExistsError(errno.EEXIST, message, store.locate(name))


def _attach(store: Store, signature: Source | None, done: Pushed) -> None:
    """Attach the signature to the manifest of a registry; other stores have it beside the files."""
    attach = getattr(store, "attach", None)
    if attach is None:
        return
    done.manifest = store.digest  # type: ignore[attr-defined]
    if signature is not None:
        done.signature = attach(signature.read(0, signature.size))
