"""Everything that is wrong at a path: a file, an index, a folder, or standard input.

What `safeweights check` and `safeweights.check` say. An error breaks the format, makes `safeweights.open`
refuse the path, or says what loading a file would run; a warning is allowed but suspicious, and fails with
``--strict``; a note is worth knowing.

A folder is ok only if every file in it was read and judged, hidden ones and those of subfolders too. What
could not be read is a finding, and makes the folder unreadable rather than ok.
"""

from __future__ import annotations

import os
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from ..checkpoint.opening import kind_of
from ..checkpoint.shardindex import (
    ANY_INDEX,
    SUFFIX,
    check_complete,
    check_twin,
    disagreements,
    parse_index,
    variants_of,
)
from ..conversion.opening import (
    FORMAT_HEAD,
    SAFETENSORS,
    WEIGHT_SUFFIXES,
    identify,
    is_known,
    unknown_format,
)
from ..conversion.opening import open as open_any
from ..errors import FormatError, SafetensorError, quote
from ..storage.pipes import STDIN
from ..storage.places import folder_of, join, parent, shown
from ..text import plural
from ..trust.files import is_bookkeeping
from ..trust.verifier import identified, plain_source, plain_stdin, plain_store
from .findings import Findings, Full, check_file, check_limits, check_source, report_scan
from .report import as_check

if TYPE_CHECKING:
    from collections.abc import Collection

    from ..checkpoint import SafetensorsFile
    from ..checkpoint.shardindex import ShardIndex
    from ..conversion.kinds import Concern, Kind
    from ..storage import Source
    from ..storage.limits import Limits
    from .documents import CheckDocument, CheckResult

__all__ = ["check", "check_document", "check_path"]

_MAPPED_NOTE: Final = (
    "do not truncate a file while a program has it mapped: a program that reads the lost part is killed "
    "(SIGBUS); replace files by renaming, or read them with backend='pread'"
)
"""Applies to every valid file: printed once, on terminals and in JSON."""


def check(
    path: str | os.PathLike[str], *, strict: bool = False, identity: Any = None
) -> CheckDocument:
    """Find everything that is wrong with a file, an index or a folder; what ``check --json`` prints.

    Reads headers only; of files of other formats what tells what loading them would run, executing
    nothing. Errors of the content and of the system are in the result, not raised.

    Args:
        path: The file, index.json or folder.
        strict: Warnings fail; also look for what the format allows and no good writer writes.
        identity: Who opens encrypted files; see `safeweights.open`.

    >>> import os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "bad.safetensors")
    >>> with open(path, "wb") as file:
    ...     _ = file.write(bytes(4))
    >>> found = check(path)
    >>> found["ok"], found["results"][0]["findings"][0]["rule"]
    (False, 'header-too-small')
    """
    name = os.fsdecode(path)
    # A file called "-" is no standard input here.
    name = os.path.join(os.curdir, name) if name == STDIN else name
    with identified(identity):
        checked = check_path(name, strict=strict)
    return as_check(check_document([checked], strict=strict))


def check_document(results: list[CheckResult], *, strict: bool) -> CheckDocument:
    """The document for what was found at several paths."""
    return {
        "schema": "safeweights.check/1",
        "ok": all(result["status"] == "ok" for result in results),
        "strict": strict,
        "results": results,
        "notes": [_MAPPED_NOTE] if any(map(_may_be_mapped, results)) else [],
    }


def _may_be_mapped(result: CheckResult) -> bool:
    """Whether the path has valid safetensors files, which programs may map."""
    return result["status"] == "ok" and result["total"] is not None and result["path"] != STDIN


def check_path(path: str, *, strict: bool) -> CheckResult:
    """What is wrong with a file, an index.json, a folder, or standard input.

    Never raises an error of the content or of the system: those are findings.

    Args:
        path: The path as it was given; ``-`` is standard input.
        strict: Also look for what the format allows and no good writer writes; warnings count.
    """
    out = Findings(shown(path), strict)
    with suppress(Full):
        _check(out, path)
    return out.result()


def _check(out: Findings, path: str) -> None:
    try:
        if path == STDIN:
            check_source(out, plain_stdin(is_known))
        elif (kind := kind_of(path)) == "folder":
            _check_folder(out, path)
        elif kind == "index" and path.endswith(ANY_INDEX):
            _check_index(out, path)
        else:
            _check_one(out, path, os.path.basename(path), alone=True)
    except (SafetensorError, OSError) as error:
        out.add_error(error, path)


def _check_folder(out: Findings, path: str) -> None:
    done: set[str] = set()
    names = []
    passed = []
    for entry in plain_store(folder_of(path))[0].list():
        full = join(path, entry.name)
        if is_bookkeeping(entry.name):
            passed.append(entry.name)
        elif entry.kind == "special":
            _unread(out, full, "this is not a regular file")
        elif entry.kind == "link" and not os.path.isfile(full):
            what = "a folder, which is not followed" if os.path.isdir(full) else "nothing"
            _unread(out, full, f"this is a link to {what}")
        else:
            names.append(entry.name)
    for name in names:
        if name.endswith(ANY_INDEX):
            done |= {name, *_check_index_in(out, path, name, names)}
    for name in names:
        if name not in done:
            indexed = any(_folder(each) == _folder(name) for each in done)
            _check_one(out, join(path, name), name, indexed=indexed)
    _check_names(out, path, names)
    if passed:
        message = f"{plural(len(passed), 'file')} of other tools not read: {quote(passed[0])}"
        out.add("note", "bookkeeping", message, path)
    if not out.bad and not out.unreadable:
        top = [name for name in names if "/" not in name and not name.startswith(".")]
        if not any(name.endswith(ANY_INDEX) for name in top):
            # Missing shards, a tensor in two files or no weights at all: `open` says so.
            _check_together(out, path, top)


def _check_together(out: Findings, path: str, names: Collection[str]) -> None:
    variants = variants_of(names)
    if len(variants) > 1:  # each is a checkpoint of its own, of which one is loaded
        for group in variants.values():
            check_complete(group, path)
        listed = ", ".join(quote(f"{variant or 'no variant'}") for _, variant in variants)
        message = f"the folder has variants, of which a program loads one: {listed}"
        out.add("note", "variants", message, path)
        return
    try:
        open_any(path, backend="pread")
    except FormatError as error:
        if error.rule != "folder" or not out.formats:  # files other than weights are no model
            raise


def _folder(name: str) -> str:
    return name.rpartition("/")[0]


def _check_index_in(out: Findings, path: str, name: str, names: list[str]) -> set[str]:
    """Check an index somewhere in a folder; the names of its shards, relative to the folder."""
    shards = _check_index(out, join(path, name))
    if shards is None:
        return set()
    inside = _folder(name)
    beside = [each.rpartition("/")[2] for each in names if _folder(each) == inside]
    try:
        check_twin(name.rpartition("/")[2], shards, beside, os.path.join(path, inside))
    except FormatError as error:
        out.add_error(error, os.path.join(path, inside))
    return {f"{inside}/{shard}" if inside else shard for shard in shards}


def _check_one(
    out: Findings, path: str, name: str, *, indexed: bool = False, alone: bool = False
) -> None:
    """Check one file.

    Args:
        out: Where findings go.
        path: The file.
        name: What it is called in its folder.
        indexed: An index of its folder lists other files, and not this one.
        alone: The file is all that is checked, and so has to be a model or a part of one.
    """
    if name.endswith(SUFFIX) and not name.rpartition("/")[2].startswith("."):
        if indexed:
            message = "no index of the folder lists this file; it is not part of what is loaded"
            out.add("note", "unlisted-file", message, path)
        check_file(out, path)
        return
    try:
        _examine(out, path, name, alone=alone)
    except (SafetensorError, OSError) as error:
        out.add_error(error, path)


def _examine(out: Findings, path: str, name: str, *, alone: bool) -> None:
    """Report what a file is, and what loading it could do."""
    from ..conversion.kinds import DOCUMENTS, SCANNED, examine
    from ..conversion.kinds import kind_of as kind_of_file

    source = plain_source(path)
    limits = check_limits()
    kind = kind_of_file(source, name, limits=limits)
    if kind is None and alone and identify(source, source.read(0, min(FORMAT_HEAD, source.size))):
        check_source(out, source)  # a damaged file of a known format, which says what is wrong
    elif kind is not None and kind.id in SCANNED:
        if kind.id == SAFETENSORS:
            check_source(out, source)
        else:
            report_scan(out, source, limits=limits)
        _report_beside(out, source, name, kind, limits)
    else:
        if kind is not None and kind.id in DOCUMENTS and (alone or name.endswith(WEIGHT_SUFFIXES)):
            out.add_error(unknown_format(source), path)
        for concern in examine(source, name, limits=limits).concerns:
            _report_concern(out, concern, path)
        if kind is not None:
            out.formats.add(kind.id)
            message = f"this is {kind.name}; what is in it builds data only"
            if alone and not out.bad:
                out.add("note", "foreign-format", message, path)


def _report_beside(out: Findings, source: Source, name: str, kind: Kind, limits: Limits) -> None:
    """Report what can act in a file of weights besides pickles: its templates, and what its name does."""
    from ..conversion.kinds import Concern, beside_scan, name_concerns

    for concern in chain(
        beside_scan(source, name, kind, limits), name_concerns(source, name, kind)
    ):
        if isinstance(concern, Concern):
            _report_concern(out, concern, source.name)


def _report_beside_shard(out: Findings, path: str, name: str) -> None:
    """The same for a shard, of whose bytes everything was reported."""
    from ..conversion.kinds import kind_of as kind_of_file

    limits = check_limits()
    with suppress(SafetensorError, OSError):
        source = plain_source(path)
        if (kind := kind_of_file(source, name, limits=limits)) is not None:
            _report_beside(out, source, name, kind, limits)


def _report_concern(out: Findings, concern: Concern, path: str) -> None:
    if concern.power == "unread":
        _unread(out, path, concern.message, concern.offset)
    else:
        out.add("error", concern.rule, concern.message, path, offset=concern.offset)


def _unread(out: Findings, path: str, message: str, offset: int | None = None) -> None:
    out.unreadable = True
    out.add("error", "unread", message, path, offset=offset)


def _check_names(out: Findings, path: str, names: list[str]) -> None:
    """Warn of names that are one on file systems that ignore case, or whose twins would be."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(name.casefold(), name)
        if other != name:
            message = f"{quote(other)} and {quote(name)} are one file where case does not count"
            out.add("warning", "name-case", message, os.path.join(path, name))


def _check_index(out: Findings, path: str) -> list[str] | None:
    """Check an index and its shards; the names of the shards, or None if it cannot be read."""
    try:
        index = parse_index(plain_source(path), path, suffix="")
    except (SafetensorError, OSError) as error:
        out.add_error(error, path)
        return None
    folder = parent(path)
    store, _ = plain_store(folder_of(folder))
    opened: dict[str, SafetensorsFile] = {}
    for shard in index.shards:
        target = join(folder, shard)
        if store.kind(shard) is None:
            out.add("error", "missing-shard", f"the index needs {quote(shard)}", target)
            continue
        if (file := check_file(out, target)) is not None:
            opened[shard] = file
        if not shard.endswith(SUFFIX):
            _report_beside_shard(out, target, shard)
    tensors: dict[str, Collection[str]] = {
        shard: file.header.tensors for shard, file in opened.items()
    }
    for shard in set(index.shards) - opened.keys():
        with suppress(SafetensorError, OSError):  # what is wrong with it was found above
            tensors[shard] = open_any(join(folder, shard), backend="pread").keys()
    for problem in disagreements(index.weight_map, tensors, path):
        out.add_error(problem, path)
    if len(opened) == len(index.shards):
        _check_total_size(out, path, index, sum(f.header.data_size for f in opened.values()))
    return index.shards


def _check_total_size(out: Findings, path: str, index: ShardIndex, actual: int) -> None:
    """The index announces how many bytes its tensors take; programs plan memory by it."""
    announced, error = index.total_size, index.total_size_error
    if error is not None:
        message = f"`metadata` of the index has no usable total_size: {error}"
        out.add("warning", "index-total-size", message, path, offset=error.position)
    elif announced is not None and announced != actual:
        message = f"the index announces {plural(announced, 'byte')}, the tensors take {actual:,}"
        out.add("warning", "index-total-size", message, path)
