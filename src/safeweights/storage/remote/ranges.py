"""Ranges of one version of a file on a web server.

Rules:
- A file is pinned when it is opened: every later answer must have the same size and the same entity tag
  (weak ones count; without any, the same date). The server is asked to refuse another version (If-Match),
  and its answer is compared as well.
- An answer must have the bytes that were asked for: the range it names, the length it names, and the bytes
  it sends are compared. Nothing compressed is accepted, and a server that ignores ranges is refused,
  rather than to fetch a whole file for a few bytes of it.
- What may go better the next time (status 408, 429, 5xx, a broken connection, a server that stalls) is
  repeated after a while, from the byte at which it stopped.
"""

from __future__ import annotations

import threading
from random import random
from typing import TYPE_CHECKING, Final, NoReturn, Protocol

from ...errors import UnsupportedError
from ..background import Stoppable, pause
from .errors import broken, changed_meanwhile, of_status
from .exchange import Answer, Patience, TransientError, origin_of, redirected, send
from .responses import Version, content_length, parse_content_range, retry_after
from .source import HEAD_SIZE, LONG, RemoteSource

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..source import Buffer
    from .connections import Origin
    from .responses import Headers

__all__ = ["NO_SECRETS", "PATIENCE", "Secrets", "WebFile", "repeated"]

PATIENCE = Patience()
"""What is used by default."""

_PROGRESS: Final = 1 << 16
"""Bytes that an attempt must bring to count as one that went well."""

_RETRIED: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_EXPIRED: Final = frozenset({400, 401, 403, 404, 410})
"""Statuses with which servers refuse a signed address that has expired."""


class Secrets(Protocol):
    """What identifies us to a server."""

    def fields(self) -> Mapping[str, str]:
        """Fields of a request that no other origin gets."""

    def renew(self, headers: Headers) -> bool:
        """Get other fields, after an answer of status 401; whether there are any."""


class _NoSecrets:
    def fields(self) -> Mapping[str, str]:
        return {}

    def renew(self, headers: Headers) -> bool:  # noqa: ARG002
        return False


NO_SECRETS: Final[Secrets] = _NoSecrets()


class Attempts:
    """Counts what failed for the same bytes, and waits in between.

    Args:
        where: What to call the file in messages.
        patience: See `Patience`.
    """

    def __init__(self, where: str, patience: Patience) -> None:
        self._where = where
        self._patience = patience
        self._failed = 0

    def failed(self, problem: TransientError, offset: int | None, progress: int = 0) -> None:
        """An attempt failed after `progress` bytes. Returns when the next one may begin.

        Raises:
            OSError: There were enough.
        """
        self._failed = 1 if progress >= _PROGRESS else self._failed + 1
        patience = self._patience
        if self._failed >= patience.attempts:
            text = f"{problem.why}; gave up after {self._failed} attempts"
            raise broken(self._where, text, offset) from None
        if problem.wait is not None and problem.wait > patience.longest:
            text = f"{problem.why}, and asks to wait {problem.wait:.0f} s"
            raise broken(self._where, text, offset) from None
        longest = min(patience.backoff * 2 ** (self._failed - 1), patience.longest)
        # Jitter: many clients that failed together must not come back together.
        pause(problem.wait if problem.wait is not None else longest * (1 - random() / 2))  # noqa: S311


def require_unencoded(where: str, headers: Headers) -> None:
    """Refuse a body that is compressed."""
    encoding = (headers.get("Content-Encoding") or "identity").strip().lower()
    if encoding != "identity":
        raise broken(where, "the server sends compressed bytes, which were not asked for")


def raise_for(where: str, answer: Answer, offset: int | None = None) -> NoReturn:
    """Raise what the status of an unwelcome answer means, which is closed."""
    if answer.status in _RETRIED:
        why = f"the server answered with status {answer.status}"
        raise TransientError(why, retry_after(answer.headers))
    raise of_status(where, answer.status, offset)


def repeated(
    where: str,
    method: str,
    url: str,
    fields: Mapping[str, str],
    *,
    secrets: Secrets = NO_SECRETS,
    patience: Patience | None = None,
    limit: int,
    accept: frozenset[int] = frozenset({200}),
    body: Buffer | None = None,
) -> tuple[int, Headers, bytes]:
    """Status, fields and body of a short answer; repeated as often as `patience` has it.

    Raises:
        OSError, SafetensorError: The server refuses, fails, or sends more than `limit` bytes.
    """
    patience = patience or PATIENCE
    attempts = Attempts(where, patience)
    renewed = False
    while True:
        try:
            answer = send(
                where, method, url, fields, secrets.fields(), patience=patience, body=body
            )
            if answer.status not in accept:
                answer.dismiss()
                if answer.status == 401 and not renewed and secrets.renew(answer.headers):
                    renewed = True
                    continue
                raise_for(where, answer)
            require_unencoded(where, answer.headers)
            length = content_length(answer.headers)
            data = b"" if method == "HEAD" else answer.read(limit)
            if method != "HEAD" and length is not None and length != len(data):
                answer.close()
                raise TransientError("the answer is shorter than announced")
            answer.finish()
            return answer.status, answer.headers, data
        except TransientError as problem:
            attempts.failed(problem, None)
        except ValueError:
            answer.close()
            raise broken(where, f"the answer has more than {limit} bytes") from None


class WebFile:
    """A file on a web server: open it, then fetch ranges of the version that was opened.

    Args:
        where: What to call it in messages: its URL, without a query.
        url: Its address.
        secrets: What identifies us to that server.
        patience: See `Patience`.
        direct: Where `url` redirects to, if that is known. When it has expired, `url` is asked again.

    Raises:
        OSError: No redirect may lead to `direct`.
    """

    def __init__(
        self,
        where: str,
        url: str,
        *,
        secrets: Secrets = NO_SECRETS,
        patience: Patience | None = None,
        direct: str | None = None,
    ) -> None:
        self._where = where
        self._url = url
        self._secrets = secrets
        self._patience = patience or PATIENCE
        self._lock = threading.Lock()
        # Where a redirect led, so that it is followed once.
        self._direct = None if direct is None else redirected(where, url, direct)
        self._size = 0
        self._version = Version()

    def exists(self) -> bool:
        """Whether there is such a file.

        Raises:
            OSError: The server does not tell.
        """
        attempts = Attempts(self._where, self._patience)
        while True:
            try:
                # Not HEAD: an address that is signed for GET refuses it.
                answer = self._answered({"Range": "bytes=0-0"}, frozenset({200, 206, 416}))
            except FileNotFoundError:  # noqa: PERF203
                return False
            except TransientError as problem:
                attempts.failed(problem, None)
            else:
                answer.dismiss()
                return True

    def open(self, version: str | None = None, sha256: str | None = None) -> RemoteSource:
        """Open it: one request, for the size, the version and the first bytes.

        Args:
            version: Only that version will do.
            sha256: What the store says the digest is.

        Raises:
            ChangedError: It is another version.
            OSError: It cannot be opened.
        """
        attempts = Attempts(self._where, self._patience)
        while True:
            try:
                head = self._open_once(version)
                break
            except TransientError as problem:
                attempts.failed(problem, 0)
        return RemoteSource(
            self._where, self._size, self._version.text, self.fetch, head=head, sha256=sha256,
            longest=LONG,
        )  # fmt: skip

    def _open_once(self, version: str | None) -> bytes:
        fields = {"Range": f"bytes=0-{HEAD_SIZE - 1}"}
        if version is not None and version.startswith('"'):
            fields["If-Match"] = version
        answer = self._answered(fields, frozenset({200, 206, 416}))
        try:
            found = Version.of(answer.headers)
            if version not in (None, found.text):
                raise changed_meanwhile(self._where, "the server has another version")
            require_unencoded(self._where, answer.headers)
            size, first = self._extent(answer)
            head = bytearray(min(size, first))
            done = answer.read_into(memoryview(head))
            if done < len(head):
                raise TransientError("the answer is shorter than announced")
        except BaseException:
            answer.close()
            raise
        self._size, self._version = size, found
        if size == first or answer.status == 206:
            answer.finish()
        else:  # the server sends all of it, and would go on
            answer.close()
        return bytes(head)

    def _extent(self, answer: Answer) -> tuple[int, int]:
        """The size of the file, and how many of its first bytes come."""
        if answer.status == 200:
            size = content_length(answer.headers)
            if size is None:
                raise broken(self._where, "the server does not say how long the file is")
            return size, min(size, HEAD_SIZE)
        found = parse_content_range(answer.headers.get("Content-Range"))
        if answer.status == 416:
            if found is None or found.size != 0:
                raise broken(self._where, "the server refuses the first bytes of the file")
            answer.close()
            return 0, 0
        if found is None or found.begin != 0 or found.end != min(HEAD_SIZE, found.size):
            raise broken(self._where, "the server sends other bytes than those asked for", 0)
        return found.size, found.end

    def fetch(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with bytes of the version that was opened; from any thread.

        Raises:
            ChangedError: The file is another version now.
            OSError: The server failed, or refuses.
        """
        attempts = Attempts(self._where, self._patience)
        done = 0
        while done < len(buffer):
            count, problem = self._fetch_some(offset + done, buffer[done:])
            done += count
            if problem is not None:
                attempts.failed(problem, offset + done, count)

    def _fetch_some(self, begin: int, buffer: memoryview) -> tuple[int, TransientError | None]:
        """One request: how many bytes came, and why not all of them did."""
        fields = {"Range": f"bytes={begin}-{begin + len(buffer) - 1}", **self._version.condition}
        try:
            answer = self._answered(fields, frozenset({200, 206}), begin)
        except TransientError as problem:
            return 0, problem
        try:
            length = self._require_range(answer, begin, len(buffer))
            with Stoppable(answer.shut):
                count = answer.read_into(buffer[:length])
        except TransientError as problem:
            answer.close()
            return getattr(problem, "done", 0), problem
        except BaseException:
            answer.close()
            raise
        if count < length:
            answer.close()
            return count, TransientError("the answer is shorter than announced")
        answer.finish()
        return count, None

    def _require_range(self, answer: Answer, begin: int, wanted: int) -> int:
        """How many bytes of those wanted come; an error unless they are of the right version and place."""
        where, headers = self._where, answer.headers
        require_unencoded(where, headers)
        length = content_length(headers)
        if self._version.differs(Version.of(headers)):
            raise changed_meanwhile(where, "its entity tag or date is another", begin)
        if answer.status == 200:
            if (begin, wanted, length) != (0, self._size, self._size):
                raise UnsupportedError(
                    f"the server ignores ranges, so that all {self._size} bytes would have to be fetched "
                    f"for {wanted} of them; fetch the file first, with another program",
                    path=where, offset=begin,
                )  # fmt: skip
            return wanted
        found = parse_content_range(headers.get("Content-Range"))
        if found is not None and found.size != self._size:
            raise changed_meanwhile(where, "its size is another", begin)
        if found is None or found.begin != begin or not begin < (found.end or 0) <= begin + wanted:
            raise broken(where, "the server sends other bytes than those asked for", begin)
        assert found.end is not None
        if length not in (None, found.end - begin):
            raise broken(where, "the server sends a range of another length than it says", begin)
        return found.end - begin

    def _answered(
        self, fields: Mapping[str, str], accept: frozenset[int], offset: int | None = None
    ) -> Answer:
        """The answer to a GET, if its status is acceptable.

        Raises:
            TransientError: It may be, the next time.
        """
        renewed = moved = False
        while True:
            url = self._direct or self._url
            answer = send(
                self._where, "GET", url, fields, self._secrets.fields(),
                patience=self._patience, secrets_for=self._origin(), stoppable=True,
            )  # fmt: skip
            if answer.status in accept:
                if answer.url != url:
                    self._direct = answer.url
                return answer
            answer.dismiss()
            if answer.status in _EXPIRED and not moved and self._move(url):
                moved = True
            elif answer.status == 401 and not renewed and self._secrets.renew(answer.headers):
                renewed = True
            else:
                raise_for(self._where, answer, offset)

    def _move(self, refused: str) -> bool:
        """After an address was refused, whether there may be another one."""
        with self._lock:
            if refused != (self._direct or self._url):  # another thread was faster
                return True
            moved = self._direct is not None
            self._direct = None
            return moved

    def _origin(self) -> Origin:
        return origin_of(self._where, self._url)
