"""What was accepted before: trust on first use, and no way back.

A lock file remembers, per model, who signed it, which release it was and the digests of its files.
It is JSON that people may read, review and keep under version control. Changing it is deleting the
entry: there is no switch that ignores it.
"""

from __future__ import annotations

import json
import os
from typing import Any, Final

from ...storage.sink import write_file
from ..documents import Field, parse_json
from ..errors import DocumentError
from ..files import locked, read_document
from .policy import LEVELS, LockEntry, Policy

__all__ = ["LockFile", "lock_of"]

_SCHEMA: Final = "safeweights-lock/1"


class LockFile:
    """The lock file at `path`; one that is not there yet is empty.

    Every call reads the file anew; `remember` holds off other processes meanwhile.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)

    def __repr__(self) -> str:
        return f"LockFile({self.path!r})"

    def get(self, key: str) -> LockEntry | None:
        """What is remembered of the model called `key`.

        Raises:
            DocumentError: The file is malformed; names the field.
        """
        return self._read().get(key)

    def remember(self, key: str, entry: LockEntry) -> None:
        """Remember `entry`, durably.

        Raises:
            DocumentError: The file is malformed; it is left as it is.
        """
        with locked(f"{self.path}.lock"):
            entries = self._read()
            entries[key] = entry
            models = {name: _to_json(found) for name, found in sorted(entries.items())}
            text = json.dumps({"schema": _SCHEMA, "models": models}, indent=2)
            write_file(self.path, [text.encode() + b"\n"], durable=True)

    def _read(self) -> dict[str, LockEntry]:
        try:
            data = read_document(self.path)
        except FileNotFoundError:
            return {}
        document = parse_json(data, path=self.path).only("schema", "models")
        document.member("schema").equals(_SCHEMA)
        return {name: _from_json(entry) for name, entry in document.member("models").members()}


def lock_of(policy: Policy, given: LockFile | None) -> LockFile | None:
    """The lock file to decide with: the caller's, or the policy's own.

    Raises:
        DocumentError: There is neither, and a rule trusts on first use: every use would be the
            first.
    """
    if given is None and policy.lock is not None:
        return LockFile(policy.lock)
    if given is None and policy.mode != "off" and any(rule.first_use for rule in policy.rules):
        raise DocumentError(
            "`first_use` needs a lock file: what is not remembered is not known", field="lock",
            path=policy.path,
        )  # fmt: skip
    return given


def _to_json(entry: LockEntry) -> dict[str, Any]:
    return {
        "level": entry.level,
        "signer": entry.signer,
        "release": entry.release,
        "files": entry.files,
    }


def _from_json(entry: Field) -> LockEntry:
    entry.only("level", "signer", "release", "files")
    return LockEntry(
        entry.member("level").choice(*LEVELS),
        found.text() if (found := entry.get("signer")) else None,
        found.integer() if (found := entry.get("release")) else None,
        {name: digest.hex(32).hex() for name, digest in entry.member("files").members()},
    )
