"""Where the signature of a model is: one order, for every command and loader.

1. The signature file that the caller or the policy names.
2. The signature of a folder: of the path itself where it is a folder, else of the nearest folder
   above it, at most four levels up. Of each folder ``model.sig`` and ``model.oms.sig`` in it are
   tried, then ``FOLDER.sig`` and ``FOLDER.oms.sig`` beside it.
3. The signature of the file alone: ``FILE.sig``, then ``FILE.oms.sig``.

A folder's signature outranks that of a file in it, so that a checkpoint is covered by one
statement. The order decides nothing about trust: whatever is found must still be signed by a
trusted signer and list the files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from ...storage.places import (
    absolute,
    continued,
    exists,
    is_folder,
    is_url,
    join,
    open_url,
    parent,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Located", "find_signature", "locate"]

_IN_FOLDER: Final = ("model.sig", "model.oms.sig")
_BESIDE: Final = (".sig", ".oms.sig")
FOLDER_LEVELS: Final = 4
"""Folders above a path in which the signature of a folder is looked for."""

_SMALL: Final = 1 << 16
"""Bytes of a signature that is kept when it is found: opening a remote file brings more than that."""


class Located(NamedTuple):
    """A signature file, and what it can cover.

    Attributes:
        signature: The file; where there is none, the path at which it would be by default.
        base: The folder that the names in the statement are relative to.
        alone: Whether it is the signature of one file, not of a folder.
        found: Whether there is such a file; None if that was not looked up.
        data: Its bytes, if they came with the answer that there is one: of most URLs.
    """

    signature: str
    base: str
    alone: bool = False
    found: bool | None = None
    data: bytes | None = None

    def exists(self) -> bool:
        """Whether there is such a file.

        Raises:
            OSError: A store does not tell.
        """
        return exists(self.signature) if self.found is None else self.found


def locate(path: str, *, top: str | None = None, above: int = FOLDER_LEVELS) -> Located:
    """The signature that covers the file or folder at `path`, an absolute path, by convention.

    Args:
        path: The file or folder.
        top: The highest folder to look in.
        above: How many folders above are looked in.
    """
    folder_given = is_folder(path)
    folder = path if folder_given else parent(path)
    if is_url(
        path
    ):  # each name is a request, and a store has no folders above it that are the model's
        above = 0 if folder_given else 1
    for each in _upwards(folder, above if folder_given else above - 1, top):
        for signature in _of_folder(each, top):
            if located := _look(signature, each):
                return located
    if folder_given:
        return Located(join(path, _IN_FOLDER[0]), path, found=False)
    own = [continued(path, suffix) for suffix in _BESIDE]
    tried = (_look(each, folder, alone=True) for each in own)
    missing = Located(own[0], folder, alone=True, found=False)
    return next(filter(None, tried), missing)


def _look(signature: str, base: str, *, alone: bool = False) -> Located | None:
    """The signature file of this name; None if there is none. Cost of a URL: one request."""
    data = None
    if is_url(signature):
        try:
            source = open_url(signature)
            data = source.read(0, source.size) if source.size <= _SMALL else None
        except FileNotFoundError:
            return None
        except IsADirectoryError:  # refused when it is read
            pass
    elif not exists(signature):
        return None
    return Located(signature, base, alone, found=True, data=data)


def find_signature(path: str) -> str:
    """The signature file that covers `path`; where there is none, the path it would have."""
    path = absolute(path)
    return locate(path, above=0 if is_folder(path) else FOLDER_LEVELS).signature


def _upwards(folder: str, levels: int, top: str | None) -> Iterator[str]:
    for _ in range(levels + 1):
        yield folder
        above = parent(folder)
        if folder in {top, above}:
            return
        folder = above


def _of_folder(folder: str, top: str | None) -> Iterator[str]:
    for name in _IN_FOLDER:
        yield join(folder, name)
    if folder not in {top, parent(folder)} and not is_url(folder):
        for suffix in _BESIDE:
            yield f"{folder}{suffix}"
