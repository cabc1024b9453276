"""Findings, and what is wrong with one file; `checking` puts them together for a path.

Of a safetensors file the header is read, through the pread backend; of files of other formats what tells
what loading them would run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from .. import checkpoint
from ..checkpoint import SafetensorsFile
from ..checkpoint.shardindex import (
    SUFFIX,
)
from ..conversion.disguises import may_be_another_format
from ..conversion.opening import FORMAT_HEAD, SAFETENSORS, identify
from ..errors import FormatError, SafetensorError, UnsupportedError, quote
from ..format import header
from ..format.dtypes import BITS
from ..storage.places import shown
from ..text import plural, printable, wrapper_prefix, wrapper_sentence
from ..trust.verifier import plain_source
from .inventory import rows, total, unreadable
from .problems import explain

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ..conversion import ScanFinding as Call
    from ..conversion import ScanReport
    from ..storage import Source
    from ..storage.limits import Limits
    from .documents import CheckResult, FindingRecord, Level, Status, TotalRecord
    from .inventory import Row

__all__ = [
    "LONG_NAME",
    "MAX_FINDINGS",
    "Findings",
    "Full",
    "check_file",
    "check_limits",
    "check_source",
    "report_scan",
]

MAX_FINDINGS: Final = 1000
"""Most findings listed for one path."""

LONG_NAME: Final = 512
"""Names longer than this many characters are reported; the longest in use have under 200."""


_UNREAD_RULES: Final = ("os", "unread", "encrypted")
"""Rules of findings that say that something could not be read, not that it is bad."""

_NOTED_VISITS: Final = 100_000
"""Nodes of a pickle's tree that are visited, in two seconds, to say what `convert` would make of it."""

_LIMITS: Final = ("limit-opcodes", "limit-objects", "limit-visits")

_OTHER_SUFFIXES: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
"""Names by which programs take a file for a pickle."""

_BIDI = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]").search
_DRIVE = re.compile(r"[A-Za-z]:[\\/]").match


class Full(Exception):
    """Enough was found."""


@dataclass
class Findings:
    """Collects what is found at one path."""

    path: str
    strict: bool
    found: list[FindingRecord] = field(default_factory=list)
    files: list[SafetensorsFile] = field(default_factory=list)
    formats: set[str] = field(default_factory=set)
    unreadable: bool = False
    full: bool = False

    def add(
        self,
        level: Level,
        rule: str,
        message: str,
        file: str,
        *,
        tensor: str | None = None,
        offset: int | None = None,
    ) -> None:
        """Take down one finding.

        Raises:
            Full: There are too many.
        """
        if len(self.found) >= MAX_FINDINGS:
            self.full = True
            raise Full
        self.found.append(
            {
                "level": level,
                "rule": rule,
                "message": message,
                "file": shown(file),
                "tensor": tensor,
                "offset": offset,
            }
        )

    def add_error(self, error: Exception, file: str) -> None:
        """Take down what an exception says of `file`."""
        if isinstance(error, OSError) and not isinstance(error, SafetensorError):
            self.unreadable = True
        _, record = explain(error)
        self.unreadable = self.unreadable or record["rule"] == "encrypted"
        # The path stands beside the message; the sentence alone is enough.
        message = error.message if isinstance(error, SafetensorError) else record["message"]
        rule = record["rule"] or record["kind"]
        level: Level = "warning" if rule.startswith("strict-") else "error"
        self.add(level, rule, message, file, tensor=record["tensor"], offset=record["offset"])

    @property
    def bad(self) -> bool:
        return any(
            finding["level"] == "error" or (self.strict and finding["level"] == "warning")
            for finding in self.found
        )

    def result(self) -> CheckResult:
        sums: TotalRecord | None = None
        if self.files:
            sums = total(row for file in self.files for row in rows_of(file))
        # What is known to be bad stays bad, even if something else could not be read.
        certain = any(f["level"] == "error" and f["rule"] not in _UNREAD_RULES for f in self.found)
        status: Status = (
            "unreadable" if self.unreadable and not certain else "bad" if self.bad else "ok"
        )
        return {
            "path": self.path,
            "status": status,
            "formats": sorted(self.formats),
            "total": sums,
            "findings": self.found,
            "truncated": self.full,
        }


def check_file(out: Findings, path: str) -> SafetensorsFile | None:
    """Check the file at a path; None if it is not safetensors, or cannot be read."""
    try:
        return check_source(out, plain_source(path))
    except (SafetensorError, OSError) as error:
        out.add_error(error, path)
        return None


def check_source(out: Findings, source: Source) -> SafetensorsFile | None:
    """Check one file; None if it is none."""
    head = source.read(0, min(FORMAT_HEAD, source.size))
    if _is_part(source, head):
        report_scan(out, source)
        return None
    kind = identify(source, head)
    if kind not in {None, SAFETENSORS} or _is_compressed(source, head):
        _check_foreign(out, source, kind or "compressed")
        return None
    refused: FormatError | None = None
    file: SafetensorsFile | None = None
    try:
        file = SafetensorsFile(source, head)
    except FormatError as error:
        refused = error
    if refused is not None or out.strict:
        for problem in _problems(source, refused, strict=out.strict):
            out.add_error(problem, source.name)
    if file is not None:
        out.formats.add(SAFETENSORS)
        out.files.append(file)
        if source.name.endswith(_OTHER_SUFFIXES):
            message = f"this is a safetensors file; loaders that go by the name look for {SUFFIX}"
            out.add("note", "other-suffix", message, source.name)
        for row in rows_of(file):
            _check_tensor(out, row)
        _check_metadata(out, file)
        _check_tail(out, file)
        _check_names(out, file.header.tensors, source.name)
        if may_be_another_format(source, head):
            _check_other_readers(out, source)
    return file


def _check_names(out: Findings, names: Iterable[str], path: str) -> None:
    """Note, once for a checkpoint, that all names begin with what a module around the model adds."""
    if (prefix := wrapper_prefix(names)) and all(each["rule"] != "wrapped" for each in out.found):
        advice = f"`safeweights convert --strip-prefix {prefix}` removes it"
        out.add("note", "wrapped", f"{wrapper_sentence(prefix)}; {advice}", path)


def _check_other_readers(out: Findings, source: Source) -> None:
    """Report what loaders of other formats would do with a valid safetensors file."""
    from ..conversion.scanning import scan_other_readers

    report = scan_other_readers(source)
    if not report.clean:
        _report_calls(out, report, None)


def _is_part(source: Source, head: bytes) -> bool:
    """Whether it is a file of a distributed checkpoint that makes no sense without the others."""
    if head[header.PREFIX : header.PREFIX + 1] == b"{":
        return False
    from ..conversion.distributed.finding import part_of

    return part_of(source.name) is not None


def _is_compressed(source: Source, head: bytes) -> bool:
    """Whether it is a compressed file; not asked of what has a header's first character."""
    if head[header.PREFIX : header.PREFIX + 1] == b"{":
        return False
    from ..conversion.readers.numpy_files import compressed_kind

    return compressed_kind(source) is not None


def _check_foreign(out: Findings, source: Source, name: str) -> None:
    """Report what loading a file of another format would execute; nothing of it is executed here."""
    if source.name.endswith(SUFFIX):
        message = f"this file is called {SUFFIX}, and is in the format {name}"
        out.add("error", "wrong-name", message, source.name)
    report_scan(out, source, name)


def check_limits() -> Limits:
    """What the check of one file may cost in all: five seconds."""
    from ..storage.limits import DEFAULT_LIMITS

    return replace(DEFAULT_LIMITS, visits=_NOTED_VISITS).counted()


def report_scan(
    out: Findings, source: Source, name: str | None = None, *, limits: Limits | None = None
) -> None:
    """Report what loading a file of another format would run, and what `convert` would make of it.

    Args:
        out: Where findings go.
        source: The file.
        name: Its format; by default what the scan finds.
        limits: The budget, of which some may be used up; by default a new one.
    """
    from ..conversion import scan

    limits = limits or check_limits()
    report = scan(source, limits=limits)
    name = name or report.format
    _report_calls(out, report, name)
    if report.clean and name is not None:
        _report_conversion(out, source, name, limits)


def _report_conversion(out: Findings, source: Source, name: str, limits: Limits) -> None:
    """Say of a harmless file of another format what `convert` would make of it."""
    from ..conversion.foreign import OpenOptions
    from ..conversion.opening import read_foreign

    try:
        found = list(rows(read_foreign(source, OpenOptions(limits=limits))))
    except FormatError as error:
        if error.rule == "part":  # of a checkpoint that is checked as a folder
            message = f"{name}, which builds data only; {error.message}"
            out.add("note", "foreign-format", message, source.name)
            return
        if error.rule in _LIMITS:
            message = (
                f"{name}, which builds data only; it is too large to say here what it converts to"
            )
            out.add("note", "foreign-format", message, source.name)
            return
        if error.rule != "unknown-format":
            out.add_error(error, source.name)  # it would fail with the same
            return
        found = []
    groups = unreadable(found)
    what = f"{name}, which builds data only"
    if not found:
        message = f"{what}; there is no tensor in it that `safeweights convert` could write"
    elif groups:
        refused = sum(group["tensors"] for group in groups)
        message = (
            f"{what}; `safeweights convert` cannot write {refused:,} of {len(found):,} tensors"
        )
    else:
        message = f"{what}; `safeweights convert` makes it safetensors"
    out.add("note", "foreign-format", message, source.name)
    _check_names(out, (row.name for row in found), source.name)
    for group in groups:
        message = f"{plural(group['tensors'], 'tensor')} cannot be converted: {group['reason']}"
        out.add("note", "unreadable-tensor", printable(message), source.name, tensor=group["first"])


def _report_calls(out: Findings, report: ScanReport, name: str | None) -> None:
    from ..conversion.grading import Grade

    if name is not None:
        out.formats.add(name)
    for call in report.findings:
        if call.grade > Grade.DATA:
            rule = "dangerous-call" if call.grade == Grade.DANGEROUS else "unknown-call"
            reason = f": {call.reason}" if call.reason else ""
            message = (
                f"loading it calls {quote(call.target)} {printable(call.arguments)} "
                f"({call.grade.label}{printable(reason)})"
            )
            out.add("error", rule, message, call.path, offset=call.offset)
    for target, calls in _harmless(report).items():
        times = f"{plural(len(calls), 'time')}" if len(calls) > 1 else "once"
        message = f"loading it uses {quote(target)} {times} ({Grade.DATA.label})"
        out.add("note", "tensor-call", message, calls[0].path, offset=calls[0].offset)
    for part in report.unread:
        out.unreadable = True
        message = f"not read to the end, so nothing can be said of the rest: {part.reason}"
        out.add("error", "unread", printable(message), part.path, offset=part.offset)


def _harmless(report: ScanReport) -> dict[str, list[Call]]:
    """The calls that only build data, by name: a checkpoint makes the same one for every tensor."""
    found: dict[str, list[Call]] = {}
    for call in report.findings:
        if not call.grade:
            found.setdefault(call.target, []).append(call)
    return found


def _problems(
    source: Source, refused: FormatError | None, *, strict: bool
) -> Iterator[FormatError]:
    """Everything wrong with a header; `refused` is the first of it, which says more."""
    length = int.from_bytes(source.read(0, min(header.PREFIX, source.size)), "little")
    absent = not 0 < length <= source.size - header.PREFIX
    if refused is not None and (absent or refused.rule.startswith("header-")):
        yield refused  # no header to look into
        return
    text = source.read(header.PREFIX, length)
    found = header.problems(
        text, source.size - header.PREFIX - length, path=source.name, strict=strict
    )
    for problem in found:
        if refused is not None and problem.rule == refused.rule:
            yield refused
            refused = None
        else:
            yield problem


def rows_of(file: SafetensorsFile) -> Iterator[Row]:
    return rows(checkpoint.Checkpoint({}, files=[file]))


def _check_tensor(out: Findings, row: Row) -> None:
    assert row.file is not None
    for rule, what in _suspicions(row.name):
        message = f"the name of tensor {quote(row.name)} {what}"
        out.add("warning", rule, message, row.file, tensor=row.name, offset=row.offset)
    width = BITS[row.dtype] // 8
    if out.strict and width > 1 and row.nbytes and row.offset is not None and row.offset % width:
        message = (
            f"the data of tensor {quote(row.name)} begins at byte {row.offset}, which is no multiple "
            f"of the {width} bytes of {row.dtype}: readers have to copy it"
        )
        out.add("note", "misaligned", message, row.file, tensor=row.name, offset=row.offset)


def _suspicions(name: str) -> Iterator[tuple[str, str]]:
    """(rule, what is odd) for a name that the format allows and no model needs."""
    if not name:
        yield "name-empty", "is empty"
    if len(name) > LONG_NAME:
        yield "name-long", f"has {len(name):,} characters"
    if not name.isprintable():
        if _BIDI(name):
            yield "name-bidi", "has characters that reverse the direction of text"
        if any(c < " " or "\x7f" <= c <= "\x9f" for c in name):
            yield "name-control", "has control characters"
        elif not _BIDI(name):
            yield "name-invisible", "has characters that cannot be seen"
    if (
        name.startswith(("/", "\\", "~/"))
        or _DRIVE(name)
        or ".." in name.replace("\\", "/").split("/")
    ):
        yield "name-path", "looks like a path that leads out of a folder"


def _check_tail(out: Findings, file: SafetensorsFile) -> None:
    from ..editing.tails import zero_tail

    try:
        zeros = zero_tail(file.source, file.header)
    except UnsupportedError:
        return  # of a pipe only the header was kept
    if zeros is not None:
        size = file.source.size - zeros
        message = (
            f"the last {plural(size, 'byte')} are zeros, from the middle of a tensor on: a download that "
            "stopped looks like this"
        )
        out.add("warning", "zero-tail", message, file.name, offset=zeros)


def _check_metadata(out: Findings, file: SafetensorsFile) -> None:
    for key, value in (file.header.metadata or {}).items():
        # Line breaks and tabs are common in descriptions; nothing else below a space is.
        text = f"{key}{value}".translate({9: None, 10: None, 13: None})
        if text.isprintable():
            continue
        if _BIDI(text) or any(c < " " or "\x7f" <= c <= "\x9f" for c in text):
            message = f"metadata {quote(key)} has control or direction characters"
            out.add("warning", "metadata-control", message, file.name)
