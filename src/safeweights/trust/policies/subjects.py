"""What a policy calls a model: its place below the policy's root, in one spelling.

A subject is the real path of a model relative to the root, with ``/`` between its parts: all
spellings of one place (``./m``, ``a/../m``, an absolute path, a path through links) give the same
subject. The folder of a file is resolved, the last part of a file's path is not: in a cache whose
names are links to blobs, the name is what was asked for and signed.

Which rule applies is a function of that path alone, never of what is stored there. Some file systems
take `Vendor` and `vendor`, or two encodings of `é`, for one name; a rule does not. There, a path is
refused that is not spelled as its folders list it.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ...errors import quote
from ...storage.places import is_folder, is_url, shown
from ...storage.urls import Url
from ..errors import VerificationError
from ..files import check_name

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Place", "canonical", "folders_above", "place_of", "relative", "repository"]

_SNAPSHOT: Final = re.compile(
    r"((?:.*/)?(?:models|datasets|spaces)--[^/]+)/snapshots/[^/]+", re.DOTALL
)

_REVISION: Final = re.compile(r"^(hf://[^/]+/[^/@]+)@[^/]*")


_MAX_LINKS: Final = 40
"""Links on a path; as many as Linux follows."""


@dataclass(frozen=True)
class Place:
    """A file or folder.

    Attributes:
        path: Absolute; links in it are resolved, but for the last part of a file's path.
        name: Relative to the root (``.`` is the root itself); without a root, `path`.
        folder: Whether it is a folder.
        links: Names below the root of the links that the path goes through, each followed by the rest
            of the path: other names by which what is there was asked for.
        problem: Code and sentence, where no rule can apply: the path is outside the root, not spelled
            as its folders list it, or not valid UTF-8.
    """

    path: str
    name: str
    folder: bool
    problem: tuple[str, str] | None = None
    links: tuple[str, ...] = ()


def place_of(path: str | os.PathLike[str], root: str | None) -> Place:
    """Where `path` is below `root`.

    Cost: about three system calls for each part of the path; the folder of a part is listed where its
    file system ignores case, and where the part is not ASCII or has no letter.

    Raises:
        OSError: The folder of `path` does not exist, or a folder cannot be listed.
    """
    if is_url(path):
        # No link leads there, and a policy's root is a folder: the URL itself is the name.
        url, spelled = shown(path).rstrip("/"), Url.parse(path).spelling()
        problem = None
        if url != spelled:
            text = f"the URL is not in the one spelling that rules match, {quote(spelled, 300)}"
            problem = ("spelling", text)
        return Place(url, _without_revision(url), is_folder(path), problem)
    # Not os.path.abspath: it removes `link/..`, which the operating system resolves otherwise.
    path = os.path.join(os.getcwd(), os.fspath(path))
    folder = os.path.isdir(path)
    above, base = (path, "") if folder else os.path.split(path)
    real, links = _resolve(above)
    if base:
        real, links = os.path.join(real, base), [os.path.join(link, base) for link in links]
    top = None if root is None else os.path.realpath(root)
    name = real.replace(os.sep, "/") if top is None else relative(real, top)
    problem = None
    if name is None:
        name = real.replace(os.sep, "/")
        problem = ("outside-root", f"the path is outside the policy's root {root}")
    elif not _is_utf8(name):
        problem = ("name", "the path is not valid UTF-8")
    elif (stored := _other_spelling(name, real)) is not None:
        problem = (
            "spelling",
            f"the path is not spelled as its folders list it ({quote(stored, 300)}), and this file system "
            "takes both for one",
        )
    # A name that is not valid UTF-8 must not reach a lock file or a log.
    name = name.encode("utf-8", "backslashreplace").decode()
    inside = [link if top is None else relative(link, top) for link in links]
    return Place(real, name, folder, problem, tuple(each for each in inside if each is not None))


def _resolve(path: str) -> tuple[str, list[str]]:
    """The real path of an absolute one, and each link on the way followed by the rest of the path.

    Both from one look at each part, so that a link that comes and goes is either followed or not there.

    Raises:
        OSError: There is nothing at the path, or the links lead in a circle.
    """
    if os.name == "nt":  # where making a link takes a privilege
        return os.path.realpath(path, strict=True), []
    real = "/"
    links: list[str] = []
    pending = path.split("/")[::-1]
    while pending:
        part = pending.pop()
        if part in {"", ".", ".."}:
            real = os.path.dirname(real) if part == ".." else real
            continue
        here = os.path.join(real, part)
        if not stat.S_ISLNK(os.lstat(here).st_mode):
            real = here
            continue
        if len(links) == _MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        rest = [each for each in reversed(pending) if each not in {"", "."}]
        # What is behind `link/..` is not below the link.
        links.append("/".join([here, *rest]) if ".." not in rest else here)
        target = os.readlink(here)
        real = "/" if target.startswith("/") else real
        pending += target.split("/")[::-1]
    return real, links


def _without_revision(url: str) -> str:
    """The subject of a repository on the Hub, without ``@revision``: an older one is no other model.

    >>> _without_revision("hf://org/m@0a1b/x.safetensors")
    'hf://org/m/x.safetensors'
    """
    return _REVISION.sub(r"\1", url)


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _other_spelling(name: str, path: str) -> str | None:
    """`name`, the end of the real path `path`, as its folders list it; None where they list it so."""
    parts = [] if name == "." else name.strip("/").split("/")
    changed = False
    for index in range(len(parts) - 1, -1, -1):
        path, part = os.path.split(path)
        stored = _listed_as(path, part)
        changed = changed or stored != part
        parts[index] = stored
    return "/".join(parts) if changed else None


def _listed_as(folder: str, name: str) -> str:
    """The name under which `folder` lists what it opens as `name`."""
    path = os.path.join(folder, name)
    # Nearly every file system distinguishes `a` from `A`: one question tells, and no listing is needed.
    if name.isascii() and not _same(path, os.path.join(folder, name.swapcase())):
        return name
    names = os.listdir(folder)
    if name in names:
        return name
    return next((other for other in names if _same(path, os.path.join(folder, other))), name)


def _same(path: str, other: str) -> bool:
    """Whether both are names of one file, folder or link."""
    try:
        return os.path.samestat(os.lstat(other), os.lstat(path))
    except FileNotFoundError:
        return False


def relative(path: str, folder: str) -> str | None:
    """The name of `path` below `folder`, both absolute and real; None where it is not below."""
    if path == folder:
        return "."
    prefix = folder if folder.endswith(os.sep) else folder + os.sep
    return path[len(prefix) :].replace(os.sep, "/") if path.startswith(prefix) else None


def repository(name: str) -> str:
    """The subject of a model whose folder is called `name`: in the Hub's cache, its repository.

    There every revision has a folder of its own, and an older one must not pass as a new model.

    >>> repository("hub/models--org--m/snapshots/0a1b")
    'hub/models--org--m'
    """
    match = _SNAPSHOT.fullmatch(name)
    return match[1] if match else name


def canonical(name: str) -> str:
    """`name`, given by a caller in place of a path.

    Raises:
        VerificationError: It is not the name of a subject, as ``a//b`` or ``../a``.
    """
    if name != "." and (problem := check_name(name)):
        raise VerificationError(f"the model's name {problem}", reason="name")
    return name


def folders_above(name: str) -> Iterator[str]:
    """The subject itself, then every folder it is in; the root, ``.``, comes last.

    >>> list(folders_above("a/b/c")), list(folders_above("/a"))
    (['a/b/c', 'a/b', 'a', '.'], ['/a', '/'])
    """
    root = "/" if name.startswith("/") else "."
    yield name
    while "/" in name.strip("/"):
        name = name.rpartition("/")[0]
        yield name
    if name != root:
        yield root
