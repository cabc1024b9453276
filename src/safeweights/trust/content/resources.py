"""One signed file: what a statement says about its content."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from ...errors import MissingDependencyError
from ..errors import VerificationError

__all__ = ["Part", "PartHasher", "Resource", "TreeReference", "changed"]


@dataclass(frozen=True)
class TreeReference:
    """Where a file's block tree is, and the root it must have."""

    root: bytes
    sidecar: str


@dataclass(frozen=True)
class Part:
    """The digest of the bytes from `begin` to `end` (None: of the whole file)."""

    begin: int
    end: int | None
    digest: bytes


@dataclass(frozen=True)
class Resource:
    """What a statement says about one file.

    Attributes:
        name: Relative to the folder; ``"."`` for a single file that the reference tool signed.
        algorithm: ``"sha256"``, ``"blake2b"`` or ``"blake3"``.
        parts: One for the whole file, or its shards in order.
        tree: The block tree, where the signer made one.
        bound_name: The name of a single file, where the signer recorded one.
        release: The release number, where the signer recorded one.
        model_id: What the signer calls the model, where recorded.
    """

    name: str
    algorithm: str
    parts: tuple[Part, ...]
    tree: TreeReference | None = None
    bound_name: str | None = None
    release: int | None = None
    model_id: str | None = None

    @property
    def sha256(self) -> str | None:
        """The SHA-256 of the whole file; None where the statement has other digests."""
        whole = len(self.parts) == 1 and self.parts[0].end is None and self.algorithm == "sha256"
        return self.parts[0].digest.hex() if whole else None

    @property
    def size(self) -> int | None:
        """The size of the file; None where the statement does not say (shards do)."""
        return self.parts[-1].end


def changed(path: str, found: str, resource: Resource) -> VerificationError:
    """The error for a file whose digest is not the signed one."""
    return VerificationError(
        f"the content was changed: its SHA-256 is {found}, but {resource.sha256} was signed",
        reason="digest-mismatch",
        path=path,
    )


def _hasher(algorithm: str) -> Any:
    """A new hash object of one of the algorithms of OMS."""
    if algorithm != "blake3":
        return hashlib.new(algorithm)
    try:
        return import_module("blake3").blake3()
    except ImportError as error:
        raise MissingDependencyError(
            "BLAKE3 digests need the `blake3` package: pip install 'safeweights[blake3]'"
        ) from error


class PartHasher:
    """Compares bytes, in order, with the parts of a resource: shards, or one digest of another algorithm.

    Raises:
        VerificationError: In `finish`: ``digest-mismatch`` or ``size-mismatch``.
    """

    def __init__(self, resource: Resource) -> None:
        self._parts = resource.parts
        self._algorithm = resource.algorithm
        self._state = _hasher(resource.algorithm)
        self._index = self._position = 0
        self._bad: list[int] = []

    def update(self, data: memoryview) -> None:
        """Add the next bytes."""
        while len(data) and self._index < len(self._parts):
            end = self._parts[self._index].end
            take = data if end is None else data[: end - self._position]
            self._state.update(take)
            self._position += len(take)
            data = data[len(take) :]
            if self._position == end:
                self._close()
        self._position += len(data)

    def _close(self) -> None:
        part = self._parts[self._index]
        if self._state.digest() != part.digest:
            self._bad.append(part.begin)
        self._state = _hasher(self._algorithm)
        self._index += 1

    def finish(self, size: int, path: str) -> None:
        """Compare all of it, after the last byte; `size` is the size of the file."""
        expected = self._parts[-1].end
        if expected is not None and expected != size:
            raise VerificationError(
                f"file size is {size} bytes, but {expected} bytes were signed",
                reason="size-mismatch",
                path=path,
            )
        if expected is None:
            self._close()
        if self._bad:
            raise VerificationError(
                "the content was changed", reason="digest-mismatch", path=path,
                offset=self._bad[0],
            )  # fmt: skip
