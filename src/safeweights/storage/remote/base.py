"""What stores that are reached over a network have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..store import Store, check_name, invalid
from ..urls import encoded
from .errors import read_only

if TYPE_CHECKING:
    from ..store import Commit

__all__ = ["RemoteStore"]


class RemoteStore(Store):
    """A store whose files are only read.

    Args:
        location: Its URL, without credentials, and without a slash at the end.
    """

    is_remote = True
    _why_read_only = "this kind of store is only read"

    def __init__(self, location: str) -> None:
        self.location = location
        self._scheme = location.partition(":")[0]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.location!r})"

    def locate(self, name: str) -> str:
        if problem := check_name(name):
            raise invalid(name, problem)
        return f"{self.location}/{encoded(name, self._scheme)}"

    def check_writable(self) -> None:
        raise read_only(self.location, self._why_read_only)

    def delete(self, name: str) -> None:
        raise read_only(self.locate(name), self._why_read_only)

    def commit(self, *, durable: bool = False) -> Commit:  # noqa: ARG002
        raise read_only(self.location, self._why_read_only)
