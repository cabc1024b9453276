"""`safeweights hash`: SHA-256 of files and of tensors, and whether they are still what they were."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from ..shardindex import SUFFIX
from .app import FILE, json_option
from .failures import COULD_NOT_LOOK, NO, YES
from .output import Output, escape
from .watching import watched_files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ..trust.digests import CheckResult, FileDigest, TensorDigest
    from .records import HashDocument

__all__ = ["command"]


@click.command("hash")
@click.argument("paths", metavar="[PATH]...", nargs=-1, type=FILE)
@click.option("--tensors", is_flag=True, help="One digest for each tensor instead of each file.")
@click.option("--check", "against", metavar="FILE", type=FILE, help="Check the digests in FILE.")
@click.option(
    "-o", "--output", metavar="FILE", type=FILE, help="Write a file for --check and sha256sum -c."
)
@json_option
@click.pass_obj
def command(
    out: Output, paths: tuple[str, ...], tensors: bool, against: str | None, output: str | None
) -> int:
    """Print or check the SHA-256 of files and tensors.

    Of a folder, all files in it are hashed, several at a time. Lines are those of sha256sum; only that
    a name with characters that a terminal might act on is escaped as in Python, and its line begins
    with a backslash. -o writes names as they are.

    With --tensors, each line is SHA-256, FILE, TENSOR, DTYPE and SHAPE, separated by tabs. The digest
    is that of type, shape and bytes: equal tensors have equal ones in all files.

    With --check, names are relative to the current folder, each line is ok, mismatch, missing or
    unreadable and the name. The exit status is 1 if a file is not what it was, and 3 if none is known
    to be that but one could not be read.

    \b
    Examples:
      safeweights hash model/ -o SHA256SUMS
      safeweights hash --check SHA256SUMS
      safeweights hash --tensors old.safetensors new.safetensors
    """
    if (against is None) != bool(paths):
        raise click.UsageError("give either PATHs or --check FILE")
    if against is not None:
        if tensors or output is not None:
            raise click.UsageError("--check goes with neither --tensors nor -o")
        return _check(out, against)
    if tensors and output is not None:
        raise click.UsageError("-o writes digests of files, not of --tensors")
    if _hash_tensors(out, paths) if tensors else _hash(out, paths, output):
        return YES
    what = "tensor" if tensors else "file"
    out.message(f"there is no {what} in {' '.join(map(escape, paths))}")
    return NO


def _hash(out: Output, paths: Sequence[str], output: str | None) -> int:
    """Hash files; how many there were."""
    from ..trust.digests import format_check_file, hash_paths
    from ..trust.files import check_writable

    if output is not None:
        check_writable(output)
    with watched_files("hashing", paths) as progress:
        found = hash_paths(paths, progress=progress)
    if output is not None:
        from ..storage import write_file

        write_file(output, [os.fsencode(format_check_file(found))])
    if out.json:
        files = [{"path": f.name, "bytes": f.size, "sha256": f.sha256} for f in found]
        out.document({**_EMPTY, "files": files})
    elif output is None:
        out.lines(_lines(found))
    return len(found)


_EMPTY: HashDocument = {
    "schema": "safeweights.hash/1",
    "ok": True,
    "files": None,
    "tensors": None,
    "checked": None,
}


def _lines(found: Sequence[FileDigest]) -> Iterator[tuple[str]]:
    for file in found:
        name = escape(file.name)
        yield (f"{'' if name == file.name else chr(92)}{file.sha256}  {name}",)


def _hash_tensors(out: Output, paths: Sequence[str]) -> int:
    """Hash tensors; how many there were."""
    from ..trust.digests import hash_tensors

    files = [file for path in paths for file in _weights(path)]
    found: list[TensorDigest] = []
    before = 0
    with watched_files("hashing", files) as progress:
        for file in files:
            found += hash_tensors(file, progress=_after(before, progress))
            before += os.stat(file).st_size
    if out.json:
        tensors = [
            {
                "file": digest.file,
                "name": digest.name,
                "dtype": digest.dtype,
                "shape": list(digest.shape),
                "sha256": digest.sha256,
            }
            for digest in found
        ]
        out.document({**_EMPTY, "tensors": tensors})
    else:
        out.lines(
            (
                digest.sha256,
                escape(digest.file),
                escape(digest.name),
                digest.dtype,
                str(list(digest.shape)).replace(" ", ""),
            )
            for digest in found
        )
    return len(found)


def _after(before: int, progress: Callable[[int], object]) -> Callable[[int], object]:
    return lambda done: progress(before + done)


def _weights(path: str) -> list[str]:
    """The file, or the safetensors files of a folder."""
    if not os.path.isdir(path):
        return [path]
    from ..trust.files import list_folder

    return [os.path.join(path, e.name) for e in list_folder(path) if e.name.endswith(SUFFIX)]


def _check(out: Output, against: str) -> int:
    from ..trust.digests import check_lines, parse_check_file
    from ..trust.files import read_document

    lines = parse_check_file(read_document(against), path=against)
    with watched_files("hashing", [name for name, _ in lines]) as progress:
        found: list[CheckResult] = check_lines(lines, progress=progress)
    statuses = {each.status for each in found}
    ok = statuses == {"ok"}
    if out.json:
        checked = [{"path": each.name, "status": each.status} for each in found]
        out.document({**_EMPTY, "ok": ok, "checked": checked})
    else:
        out.lines((each.status, escape(each.name)) for each in found)
    return YES if ok else COULD_NOT_LOOK if statuses <= {"ok", "unreadable"} else NO
