"""``hf://org/repository@revision/path``: files of a repository on the Hugging Face Hub (extra ``remote``).

`huggingface_hub` knows endpoint, token and metadata (``HF_ENDPOINT``, ``HF_TOKEN``, ``HF_HUB_OFFLINE``);
the bytes come by our own ranges. A store is pinned to the commit that its revision means when it is
first used. A revision with slashes is written with ``%2F``. A token goes to the endpoint only, never to
the servers that the Hub redirects to.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import quote as percent_encoded

from ...errors import MissingDependencyError, UnsupportedError, quote
from ..store import Entry, entries_below, kind_among
from .base import RemoteStore
from .errors import absent, broken, changed_meanwhile, denied, is_folder
from .ranges import NO_SECRETS, WebFile

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
            file, known = self._file(name, self._commit), self._listed()[name]
        if version not in (None, self._commit):
            raise changed_meanwhile(where, "the repository is at another commit")
        source = file.open(sha256=known.sha256)
        if known.size not in (None, source.size):
            raise changed_meanwhile(where, f"it has {source.size} bytes, not {known.size}")
        source.version = self._commit
        return source

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

    def _address(self, name: str, revision: str) -> str:
        return str(_hub().hf_hub_url(self._repository, self._prefix + name, revision=revision))

    def _file(self, name: str, commit: str | None, direct: str | None = None) -> WebFile:
        token = _hub().get_token()
        secrets: Secrets = _Token(token) if token else NO_SECRETS
        address = self._address(name, commit or self._revision)
        direct = None if direct == address else direct
        return WebFile(self.locate(name), address, secrets=secrets, direct=direct)


class _Token:
    """A token of the Hub."""

    def __init__(self, token: str) -> None:
        self._fields = {"Authorization": f"Bearer {percent_encoded(token, safe='-._~+/=')}"}

    def fields(self) -> Mapping[str, str]:
        return self._fields

    def renew(self, headers: Headers) -> bool:  # noqa: ARG002
        return False


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
