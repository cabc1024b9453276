"""`safeweights hash`: print or check the SHA-256 of files and tensors."""

from __future__ import annotations

import hashlib
import os
import sys
from itertools import groupby
from typing import TYPE_CHECKING

import click

from ...checkpoint.shardindex import ANY_INDEX, SUFFIX
from ...conversion.opening import open_checkpoint
from ...errors import SafetensorError, quote
from ...reports.problems import NO, UNREADABLE, YES, explain
from ...storage.pipes import STDIN
from ...storage.places import folder_of, is_folder, is_url, parent, shown
from ...text import escape
from ..app import FILE, json_option
from ..identities import identity_option
from ..watching import watched_files
from ..writing import STDOUT, check_replaceable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ...reports.documents import FailedFileRecord, HashDocument
    from ...trust.content.digests import CheckedFile, FileDigest, TensorDigest
    from ..output import Output

__all__ = ["command"]


@click.command("hash")
@click.argument("paths", metavar="[PATH]...", nargs=-1, type=FILE)
@click.option(
    "--tensors", is_flag=True, help="Print a digest for each tensor instead of each file."
)
@click.option(
    "--data-only",
    is_flag=True,
    help="Print the digest of the data of safetensors files, without their headers.",
)
@click.option("--check", "against", metavar="FILE", type=FILE, help="Check the digests in FILE.")
@click.option(
    "-o", "--output", metavar="FILE", type=FILE,
    help="Write the digests to FILE, for --check and sha256sum -c; - for standard output.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Let -o replace a file that has no digests.")
@identity_option
@json_option
@click.pass_obj
def command(
    out: Output,
    /,
    paths: tuple[str, ...],
    *,
    tensors: bool,
    data_only: bool,
    against: str | None,
    output: str | None,
    force: bool,
) -> int:
    """Print or check the SHA-256 of files and tensors.

    If PATH is a folder, all files in it are hashed, several at a time; - is standard input. The output has
    the format of sha256sum, with one exception: a name with control characters is escaped as in Python, and
    its line begins with a backslash. -o writes names unescaped and does not hash FILE itself. If a file
    cannot be read, an error is printed to standard error, the other files are hashed, and the exit status
    is 3.

    With --tensors, each line is SHA-256, FILE, TENSOR, DTYPE and SHAPE, separated by tabs. The digest
    covers type, shape and bytes (with -i, the bytes of the plaintext). Equal tensors have equal digests
    in every file and in every format that `convert` reads. In a folder, only safetensors files are read.

    With --data-only, each line is SHA-256, the word data-only, and FILE, separated by tabs. Some hubs
    use this digest to identify a model. Do not use it for trust: it does not cover names, types and
    shapes.

    With --check, names are relative to the current folder. Each line is ok, mismatch, missing or
    unreadable, and the name. The exit status is 1 if a file has changed or is missing, and 3 if all others
    are ok but one could not be read.

    \b
    Examples:
      safeweights hash model/ -o SHA256SUMS
      safeweights hash --check SHA256SUMS
      safeweights hash --tensors old.pt new.safetensors
    """
    from ...trust.verifier import identity_in_use

    if (against is None) != bool(paths):
        raise click.UsageError("give either PATHs or --check FILE")
    if identity_in_use() is not None and not (tensors or data_only):
        raise click.UsageError(
            "-i goes with --tensors or --data-only: files are hashed as they are"
        )
    if against is not None:
        if tensors or output is not None:
            raise click.UsageError("--check excludes --tensors and -o")
        return _check(out, against)
    if data_only:
        if tensors or output is not None or against is not None:
            raise click.UsageError("--data-only excludes --tensors, --check and -o")
        return _hash_data(out, paths)
    if tensors and output is not None:
        raise click.UsageError("-o excludes --tensors: it writes digests of files")
    if output is not None and STDIN in paths:
        raise click.UsageError("-o needs files: standard input cannot be checked again")
    if output == STDOUT and out.json:
        raise click.UsageError("-o - needs standard output without --json")
    failed = _Failures(out)
    number = (
        _hash_tensors(out, paths, failed) if tensors else _hash(out, paths, output, failed, force)
    )
    if failed.records or number:
        return failed.status
    what = "tensor" if tensors else "file"
    out.message(f"there is no {what} in {' '.join(map(escape, paths))}")
    return NO


class _Failures:
    """Files and tensors that could not be hashed: prints each error and records it."""

    def __init__(self, out: Output) -> None:
        self.records: list[FailedFileRecord] = []
        self.status = YES
        self._out = out

    def add(self, path: str, error: Exception, status: int = UNREADABLE) -> None:
        message = explain(error)[1]["message"]
        self._out.message(f"error: {message}")
        self.records.append({"path": shown(path), "message": message})
        self.status = NO if NO in (status, self.status) else status


def _hash(
    out: Output, paths: Sequence[str], output: str | None, failed: _Failures, force: bool
) -> int:
    """Hash files and print the digests; return the number of files."""
    from ...trust.content.digests import format_check_file, hash_paths, parse_check_file

    file = None if output == STDOUT else output
    if file is not None:
        check_replaceable(file, parse_check_file, "a file of digests", force=force)
    found: list[FileDigest] = []
    with watched_files("hashing", [path for path in paths if path != STDIN]) as progress:
        for piped, group in groupby(paths, STDIN.__eq__):  # in the order given
            if piped:
                found += [_piped_digest() for _ in group]
            else:
                report = _after(sum(each.size for each in found if each.name != STDIN), progress)
                found += hash_paths(group, leave_out=file, failed=failed.add, progress=report)
    if found and output is not None and not (output == STDOUT and out.terminal):
        from ...storage import write_file, write_stream

        data = os.fsencode(format_check_file(found))
        if file is not None:
            write_file(file, [data])
            if out.terminal and not out.json:
                out.pretty().text(("wrote", "green"), "  ", (escape(file), "bold"))
        else:
            out.flush()
            write_stream(sys.stdout.buffer, [data])
    elif not out.json:
        out.lines(_lines(found))
    if out.json:
        files = [{"path": f.name, "bytes": f.size, "sha256": f.sha256} for f in found]
        document = {**_EMPTY, "files": files, "failed": failed.records}
        out.document({**document, "ok": bool(found) and not failed.records})
    return len(found)


def _piped_digest() -> FileDigest:
    from ...storage.pipes import stdin_blocks
    from ...trust.content.digests import FileDigest

    digest, size = hashlib.sha256(), 0
    for block in stdin_blocks():
        digest.update(block)
        size += len(block)
    return FileDigest(STDIN, size, digest.hexdigest())


_EMPTY: HashDocument = {
    "schema": "safeweights.hash/1",
    "ok": True,
    "data_only": False,
    "files": None,
    "tensors": None,
    "checked": None,
    "failed": None,
}


def _lines(found: Sequence[FileDigest]) -> Iterator[tuple[str]]:
    for file in found:
        name = escape(file.name)
        yield (f"{'' if name == file.name else chr(92)}{file.sha256}  {name}",)


def _hash_tensors(out: Output, paths: Sequence[str], failed: _Failures) -> int:
    """Hash tensors and print the digests; return the number of tensors."""
    found: list[TensorDigest] = []
    before = 0
    files = [file for path in paths for file in _weights(path, failed)]
    with watched_files("hashing", files) as progress:
        for file in files:
            try:
                found += _digests(file, failed, _after(before, progress))
                before += os.stat(file).st_size if file != STDIN and not is_url(file) else 0
            except (SafetensorError, OSError) as error:  # noqa: PERF203 - files are large
                failed.add(file, error, explain(error)[0])
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
        document = {**_EMPTY, "tensors": tensors, "failed": failed.records}
        out.document({**document, "ok": bool(found) and not failed.records})
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


def _hash_data(out: Output, paths: Sequence[str]) -> int:
    """Print the digest over the data of each safetensors file."""
    from ...checkpoint import SafetensorsFile
    from ...storage.hashing import sha256
    from ...storage.windows import Window
    from ...trust.verifier import plain_source

    failed = _Failures(out)
    found = []
    for path in (file for each in paths for file in _weights(each, failed)):
        try:
            file = SafetensorsFile(plain_source(path))
            start = file.header.data_start
            digest = sha256(Window(file.source, start, file.source.size - start))
            found.append((file.name, file.header.data_size, digest))
        except (SafetensorError, OSError) as error:  # noqa: PERF203 - files are large
            failed.add(path, error, explain(error)[0])
    if out.json:
        files = [{"path": name, "bytes": size, "sha256": digest} for name, size, digest in found]
        document = {**_EMPTY, "files": files, "data_only": True, "failed": failed.records}
        out.document({**document, "ok": bool(found) and not failed.records})
    else:
        out.lines((digest, "data-only", escape(name)) for name, _, digest in found)
    return failed.status


def _after(before: int, progress: Callable[[int], object]) -> Callable[[int], object]:
    return lambda done: progress(before + done)


def _digests(path: str, failed: _Failures, progress: Callable[[int], object]) -> list[TensorDigest]:
    """The digests of a file's tensors; tensors that cannot be converted are failures."""
    from ...trust.content.digests import hash_mapping

    checkpoint = open_checkpoint(path)
    # Tensors of other formats are read one at a time, as `convert` does.
    workers = None if checkpoint.files else 1
    refused = checkpoint.refused
    readable = {name: checkpoint[name] for name in checkpoint if name not in refused}
    found = hash_mapping(readable, shown(path), workers=workers, progress=progress)
    for name, reason in refused.items():
        message = f"tensor {quote(name)} cannot be read: {reason}"
        failed.add(path, SafetensorError(message, path=path))
    return found


def _weights(path: str, failed: _Failures) -> list[str]:
    """The file, the files of an index, or the safetensors files of a folder."""
    from ...checkpoint.shardindex import parse_index
    from ...trust.access.stores import EncryptedStore
    from ...trust.files import KEY_FILE, list_folder
    from ...trust.verifier import plain_source, plain_store

    try:
        if is_folder(path):
            store, _ = plain_store(folder_of(path))
            names = [entry.name for entry in list_folder(path)]  # which refuses some names
            sealed = any(name.endswith(KEY_FILE) for name in names)
            if sealed and not isinstance(store, EncryptedStore):
                open_checkpoint(path)  # says that the folder is encrypted
            names = [entry.name for entry in store.list()]
            return [store.locate(name) for name in names if name.endswith(SUFFIX)]
        if path.endswith(ANY_INDEX):
            shards = parse_index(plain_source(path), path, suffix="").shards
            store, _ = plain_store(folder_of(parent(path)))
            return [store.locate(shard) for shard in shards]
    except (SafetensorError, OSError) as error:
        failed.add(path, error, explain(error)[0])
        return []
    return [path]


def _check(out: Output, against: str) -> int:
    from ...trust.content.digests import check_lines, parse_check_file
    from ...trust.files import read_document

    lines = parse_check_file(read_document(against), path=against)
    with watched_files("hashing", [name for name, _ in lines]) as progress:
        found: list[CheckedFile] = check_lines(lines, progress=progress)
    statuses = {each.status for each in found}
    ok = statuses == {"ok"}
    if out.json:
        checked = [{"path": each.name, "status": each.status} for each in found]
        out.document({**_EMPTY, "ok": ok, "checked": checked})
    else:
        out.lines((each.status, escape(each.name)) for each in found)
    return YES if ok else UNREADABLE if statuses <= {"ok", "unreadable"} else NO
