"""What was accepted before: trust on first use, and no way back.

A lock file remembers, per subject, who signed the model, its release and the digests of its files.
It is JSON that people can read, review and keep under version control. To accept a change, delete
the entry: no option ignores it.

A decision that changes the file is made while this process alone holds it, so that of two first
uses the second is compared with the first, and an older release never replaces a newer one.
"""

from __future__ import annotations

import json
import os
import posixpath
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from ...storage.sink import write_file
from ..documents import Field, parse_json
from ..errors import DocumentError
from ..files import MAX_DOCUMENT, locked, read_document
from .deciding import decide, expected_names
from .policy import LEVELS, LockEntry, Policy, Related
from .subjects import folders_above

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from .policy import Decision, Evidence

__all__ = ["LockFile", "lock_of", "settle"]

_SCHEMA: Final = "safeweights-lock/1"


class LockFile:
    """The lock file at `path`; one that does not exist is empty.

    Every call reads the file again. A file ``PATH.lock`` beside it keeps other processes out while
    it is changed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)

    def __repr__(self) -> str:
        return f"LockFile({self.path!r})"

    def get(self, subject: str) -> LockEntry | None:
        """What is remembered of `subject`.

        Raises:
            DocumentError: The file is malformed; names the field.
        """
        return self.entries().get(subject)

    def entries(self) -> dict[str, LockEntry]:
        """Everything that is remembered, by subject.

        Raises:
            DocumentError: The file is malformed; names the field.
        """
        try:
            data = read_document(self.path)
        except FileNotFoundError:
            return {}
        return dict(_parsed(data, self.path))

    def remember(self, subject: str, entry: LockEntry) -> None:
        """Remember `entry`, durably.

        Raises:
            DocumentError: The file is malformed, or would be too long; it is left as it is.
        """
        with self.changing() as entries:
            entries[subject] = entry

    @contextmanager
    def changing(self) -> Iterator[dict[str, LockEntry]]:
        """All entries, to be changed; they are written, durably, when the block ends without error.

        Other processes and threads wait meanwhile.

        Raises:
            DocumentError: The file is malformed, or would be too long; it is left as it is.
        """
        with locked(f"{self.path}.lock"):
            entries = self.entries()
            before = dict(entries)
            yield entries
            if entries != before:
                self._write(entries)

    def _write(self, entries: Mapping[str, LockEntry]) -> None:
        models = {name: _to_json(found) for name, found in sorted(entries.items())}
        # Names that are not valid UTF-8 would make the file unreadable, for every model.
        data = json.dumps({"schema": _SCHEMA, "models": models}, indent=2, ensure_ascii=False)
        try:
            encoded = data.encode() + b"\n"
        except UnicodeEncodeError:
            raise DocumentError(
                "the name of a model or file is not valid UTF-8 and cannot be remembered",
                reason="name", path=self.path,
            ) from None  # fmt: skip
        if len(encoded) > MAX_DOCUMENT:
            raise DocumentError(
                f"the lock file would be longer than {MAX_DOCUMENT} bytes; this model cannot be "
                "remembered", reason="too-many-files", path=self.path,
            )  # fmt: skip
        write_file(self.path, [encoded], durable=True)


@lru_cache(maxsize=2)
def _parsed(data: bytes, path: str) -> dict[str, LockEntry]:
    """The entries in `data`; kept, because every shard of a model asks for them."""
    document = parse_json(data, path=path).only("schema", "models")
    document.member("schema").equals(_SCHEMA)
    return {name: _from_json(entry) for name, entry in document.member("models").members()}


def settle(
    policy: Policy,
    evidence: Evidence,
    lock: LockFile | None,
    *,
    signed: Iterable[str] = (),
    present: Callable[[str], bool],
    record: Callable[[Decision], object] = lambda _: None,
    remembers: bool = True,
) -> Decision:
    """Decide with what is remembered, record the decision, and remember what it accepted.

    Nothing is remembered that could not be recorded.

    Args:
        policy: The rules.
        evidence: What is known.
        lock: What was accepted before.
        signed: Names of the files that the signed statement lists below the subject.
        present: Whether a file of the model exists, by its name.
        record: Called with the decision before anything is remembered.
        remembers: Whether the lock file may be changed.

    Raises:
        DocumentError: The lock file is malformed; it is left as it is.
        OSError: It cannot be read or written.
    """

    def decided(entries: Mapping[str, LockEntry]) -> Decision:
        own = entries.get(evidence.subject)
        rule = None if evidence.problem else policy.rule_for(evidence.path or evidence.subject)
        names = expected_names(rule, signed, own) if rule is not None else ()
        missing = tuple(sorted(name for name in names if not present(name)))
        related = list(_related(evidence.subject, entries))
        for alias in evidence.aliases:
            related += [Related(entries[alias], alias=True)] if alias in entries else []
            related += _related(alias, entries)
        return decide(policy, replace(evidence, missing=missing), own, related)

    # What changes nothing needs no write access, and no other process has to wait for it.
    before = lock.entries() if lock else {}
    decision = decided(before)
    if lock is None or not remembers or not _changes(decision, evidence, before):
        record(decision)
        return decision
    with lock.changing() as entries:
        decision = decided(entries)
        record(decision)
        entries.update(_changes(decision, evidence, entries))
    return decision


def _changes(
    decision: Decision, evidence: Evidence, entries: Mapping[str, LockEntry]
) -> dict[str, LockEntry]:
    """What to remember: the same under the subject and the names of links to it."""
    entry = decision.lock or entries.get(evidence.subject)
    if entry is None or decision.verdict != "allow":
        return {}
    names = (evidence.subject, *evidence.aliases)
    return {name: entry for name in names if entries.get(name) != entry}


def _related(subject: str, entries: Mapping[str, LockEntry]) -> Iterator[Related]:
    """What is remembered of subjects above and below `subject`, with names relative to it."""
    for above in list(folders_above(subject))[1:]:
        if (entry := entries.get(above)) is not None and entry.scope != "file":
            inside = f"{posixpath.relpath(subject, above)}/"
            files = {
                name.removeprefix(inside): digest
                for name, digest in entry.files.items()
                if name.startswith(inside)
            }
            alone = inside.removesuffix("/")
            if alone in entry.files:  # the subject is one of its files
                files[posixpath.basename(alone)] = entry.files[alone]
            yield Related(replace(entry, files=files))
    start = "" if subject == "." else f"{subject.rstrip('/')}/"
    for name, entry in entries.items():
        if not name.startswith(start) or name in {subject, "."}:
            continue
        inside = name[len(start) :]
        if entry.scope == "file":
            files = dict.fromkeys([inside], next(iter(entry.files.values()), ""))
            yield Related(replace(entry, files=files), inside)
        else:
            files = {f"{inside}/{file}": digest for file, digest in entry.files.items()}
            yield Related(replace(entry, files=files), f"{inside}/")


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
            "`first_use` needs a lock file: without one, every use is the first", field="lock",
            path=policy.path,
        )  # fmt: skip
    return given


def _to_json(entry: LockEntry) -> dict[str, Any]:
    return {
        "level": entry.level,
        "signer": entry.signer,
        "release": entry.release,
        "scope": entry.scope,
        "files": entry.files,
    }


def _from_json(entry: Field) -> LockEntry:
    entry.only("level", "signer", "release", "scope", "files")
    scope = found.choice("whole", "part", "file") if (found := entry.get("scope")) else "part"
    return LockEntry(
        entry.member("level").choice(*LEVELS),
        found.text() if (found := entry.get("signer")) else None,
        found.integer() if (found := entry.get("release")) else None,
        {name: digest.hex(32).hex() for name, digest in entry.member("files").members()},
        scope,  # type: ignore[arg-type]
    )
