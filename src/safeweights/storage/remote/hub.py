"""``hf://org/repository@revision/path``: files of a repository on the Hugging Face Hub (extra ``remote``).

`huggingface_hub` knows endpoint, token and metadata (``HF_ENDPOINT``, ``HF_TOKEN``, ``HF_HUB_OFFLINE``);
the bytes come by our own ranges. A store is pinned to the commit that its revision means when it is
first used. A revision with slashes is written with ``%2F``. A token goes to the endpoint only, never to
the servers that the Hub redirects to.

Large files are in LFS, whose objects other servers have at signed addresses. The addresses of all files
of one kind are asked for together (Git LFS batch API), so that a model of 60 shards is opened with 63
requests; where that fails, the Hub redirects each request for a file.
"""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import quote as percent_encoded

from ...errors import MissingDependencyError, SafetensorError, UnsupportedError, quote
from ..store import Entry, entries_below, kind_among
from .base import RemoteStore
from .errors import absent, broken, changed_meanwhile, denied, is_folder
from .ranges import NO_SECRETS, PATIENCE, WebFile, repeated

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ..source import Source
    from ..store import EntryKind
    from ..urls import Url
    from .ranges import Secrets
    from .responses import Headers

__all__ = ["HubStore", "store_of"]

_DIGEST: Final = 64
"""Letters of a SHA-256, by which a tag that is a digest is told from the hash of a small file."""

_LFS_TYPE: Final = "application/vnd.git-lfs+json"
_LFS_OBJECTS: Final = 100
"""Objects of one request for addresses; Git's own client asks for no more."""

_LFS_MAX: Final = 4 << 20
"""Bytes of the answer to one."""


def store_of(url: Url) -> tuple[HubStore, str]:
    """The store of a repository's URL, and the name in it."""
    first, _, path = url.path.partition("/")
    repository, _, revision = first.partition("@")
    if not repository:
        raise UnsupportedError(f"{quote(str(url), 400)} names no repository: hf://org/repository")
    location = f"hf://{url.host}/{first}"
    folder, _, name = ("", "", "") if not path else path.rpartition("/")
    if url.is_folder:
        folder, name = path, ""
    prefix = f"{folder}/" if folder else ""
    return HubStore(location, f"{url.host}/{repository}", revision or "main", prefix), name


class _Known(NamedTuple):
    """What the Hub says about a file."""

    size: int | None
    sha256: str | None


class HubStore(RemoteStore):
    """The files of one commit of a repository, below a prefix.

    Args:
        location: URL of the repository.
        repository: Its name, with its owner's.
        revision: Branch, tag or commit.
        prefix: What names begin with, with a slash at the end.
    """

    _why_read_only = "repositories on the Hub are only read; use the Hub's own tools to upload"

    def __init__(self, location: str, repository: str, revision: str, prefix: str) -> None:
        super().__init__(location + f"/{prefix}".rstrip("/"))
        self._repository = repository
        self._revision = revision.replace("%2F", "/").replace("%2f", "/")
        self._prefix = prefix
        self._lock = threading.Lock()
        self._commit: str | None = None
        self._files: dict[str, _Known] | None = None
        self._asking = threading.Lock()
        self._addresses: dict[str, str | None] = {}  # of objects, as far as they are known

    def list(self, folder: str = "", *, recursive: bool = True) -> Iterator[Entry]:
        if folder:
            self.locate(folder)
        names = sorted(self._listed())
        return entries_below(names, folder, recursive=recursive)

    def kind(self, name: str) -> EntryKind | None:
        self.locate(name)
        return kind_among(self._listed(), name)

    def open(self, name: str, *, backend: str = "mmap", version: str | None = None) -> Source:  # noqa: ARG002
        where = self.locate(name)
        if self._files is None and self._commit is None:
            file, known = self._first(name)
        else:
            if (kind := self.kind(name)) != "file":
                raise absent(where) if kind is None else is_folder(where)
            known = self._listed()[name]
            file = self._file(name, self._commit, self._lfs_address(name, known))
        self.check_version(name, version)
        source = file.open(sha256=known.sha256)
        if known.size not in (None, source.size):
            raise changed_meanwhile(where, f"it has {source.size} bytes, not {known.size}")
        source.version = self._commit
        return source

    def check_version(self, name: str, version: str | None) -> None:
        if version not in (None, self._commit):
            raise changed_meanwhile(self.locate(name), "the repository is at another commit")

    def _first(self, name: str) -> tuple[WebFile, _Known]:
        """A file of a store that is not pinned yet: its metadata also tell the commit."""
        hub = _hub()
        where = self.locate(name)
        with _mapped(where):
            found = hub.get_hf_file_metadata(
                self._address(name, self._revision), token=hub.get_token()
            )
        if not found.commit_hash:
            raise broken(where, "the Hub does not say which commit this is")
        self._pin(where, found.commit_hash)
        digest = (found.etag or "").strip('"')
        known = _Known(found.size, digest if len(digest) == _DIGEST else None)
        return self._file(name, found.commit_hash, found.location), known

    def _pin(self, where: str, commit: str) -> None:
        with self._lock:
            if self._commit not in (None, commit):
                raise changed_meanwhile(where, "the repository is at another commit")
            self._commit = commit

    def _listed(self) -> dict[str, _Known]:
        """Name -> what is known of the file, of all files of the commit: one request."""
        if self._files is not None:
            return self._files
        hub = _hub()
        with _mapped(self.location):
            found = hub.HfApi().repo_info(
                self._repository, revision=self._commit or self._revision, files_metadata=True,
                token=hub.get_token(),
            )  # fmt: skip
        if not found.sha:
            raise broken(self.location, "the Hub does not say which commit this is")
        self._pin(self.location, found.sha)
        files = {}
        for each in found.siblings or ():
            if each.rfilename.startswith(self._prefix):
                digest = each.lfs and each.lfs.sha256
                files[each.rfilename[len(self._prefix) :]] = _Known(each.size, digest or None)
        self._files = files
        return files

    def _lfs_address(self, name: str, known: _Known) -> str | None:
        """Where the object of a large file is; None if the Hub has to be asked for the file itself."""
        if known.sha256 is None:
            return None
        with self._asking:  # the other threads, which open other files, need the same answer
            if known.sha256 not in self._addresses:
                self._ask_addresses(name, known.sha256)
            return self._addresses[known.sha256]

    def _ask_addresses(self, name: str, digest: str) -> None:
        """Ask where the object of a file is, and those of its neighbours of the same kind."""
        files = self._listed()
        kind = name.rpartition(".")[2]
        alike = [files[each] for each in sorted(files) if each.rpartition(".")[2] == kind]
        sizes = {each.sha256: each.size for each in alike if each.sha256 is not None}
        first = [*sizes].index(digest) // _LFS_OBJECTS * _LFS_OBJECTS
        wanted = [*sizes][first : first + _LFS_OBJECTS]
        hub = _hub()
        url = f"{hub.constants.ENDPOINT}/{self._repository}.git/info/lfs/objects/batch"
        question = {
            "operation": "download", "transfers": ["basic"], "hash_algo": "sha256",
            "objects": [{"oid": each, "size": sizes[each]} for each in wanted],
        }  # fmt: skip
        self._addresses |= dict.fromkeys(wanted)
        try:
            _, _, answer = repeated(
                self.location, "POST", url, {"Accept": _LFS_TYPE, "Content-Type": _LFS_TYPE},
                secrets=_secrets(), patience=PATIENCE._replace(attempts=1), limit=_LFS_MAX,
                body=json.dumps(question).encode(),
            )  # fmt: skip
        except (OSError, SafetensorError):  # asking for a file itself tells what is wrong
            return
        found = _lfs_addresses(answer)
        self._addresses |= {each: found[each] for each in wanted if each in found}

    def _address(self, name: str, revision: str) -> str:
        return str(_hub().hf_hub_url(self._repository, self._prefix + name, revision=revision))

    def _file(self, name: str, commit: str | None, direct: str | None = None) -> WebFile:
        address = self._address(name, commit or self._revision)
        direct = None if direct == address else direct
        return WebFile(self.locate(name), address, secrets=_secrets(), direct=direct)


def _lfs_addresses(answer: bytes) -> dict[str, str]:
    """Digest -> address, of an answer of the Git LFS batch API.

    Left out are objects that the server refuses, and those that need other fields than ours.
    """
    try:
        objects = json.loads(answer)["objects"]
        downloads = [(each["oid"], each.get("actions", {}).get("download", {})) for each in objects]
        return {
            digest: download["href"]
            for digest, download in downloads
            if isinstance(download.get("href"), str) and not download.get("header")
        }
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}


class _Token:
    """A token of the Hub."""

    def __init__(self, token: str) -> None:
        self._fields = {"Authorization": f"Bearer {percent_encoded(token, safe='-._~+/=')}"}

    def fields(self) -> Mapping[str, str]:
        return self._fields

    def renew(self, headers: Headers) -> bool:  # noqa: ARG002
        return False


def _secrets() -> Secrets:
    token = _hub().get_token()
    return _Token(token) if token else NO_SECRETS


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise MissingDependencyError(
            "hf:// needs the package huggingface_hub: pip install 'safeweights[remote]'"
        ) from error
    return huggingface_hub


@contextmanager
def _mapped(where: str) -> Iterator[None]:
    """Raise errors of `huggingface_hub` as ours; their texts have addresses that may be signed."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        raise denied(where, "the repository asks for its conditions to be accepted first") from None
    except (
        errors.RepositoryNotFoundError,
        errors.RevisionNotFoundError,
        errors.EntryNotFoundError,
    ):
        raise absent(where) from None
    except errors.OfflineModeIsEnabled:
        raise broken(where, "the Hub may not be asked (HF_HUB_OFFLINE)") from None
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", "unknown")
        if status in {401, 403}:
            raise denied(where, f"the Hub refuses access (status {status})") from None
        raise broken(where, f"the Hub answered with status {status}") from None
    except (errors.HFValidationError, OSError) as error:
        raise broken(where, f"the Hub, or the way to it, failed ({type(error).__name__})") from None
    except Exception as error:
        if type(error).__module__.partition(".")[0] in {"httpx", "httpx2", "httpcore", "requests"}:
            text = f"the Hub, or the way to it, failed ({type(error).__name__})"
            raise broken(where, text) from None
        raise
