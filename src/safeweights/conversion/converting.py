"""Checkpoints of other formats to safetensors files: the operation that users ask for.

Reads through `formats.open`, decides with `plan`, writes with `checkpoint.save`, one output at a
time and each atomically. Memory: at most 64 MiB of chunks on their way to the disk, and the largest
tensor that must be gathered or computed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import metadata
from typing import TYPE_CHECKING, Final

from ..checkpoint import Tensor, save
from ..checkpoint.shardindex import ANY_INDEX, disagreements, read_index
from ..checkpoint.sharding import parse_size, split
from ..derived.casting import CastTensor, parse_casts
from ..errors import FormatError, UnsupportedError, quote
from ..storage import Source, Verifier, open_source, write_file
from ..storage.hashing import sha256
from ..storage.limits import DEFAULT_LIMITS, Limits
from ..storage.parallel import Background, Job
from ..trust.verifier import verifier
from . import formats
from .folders import find_checkpoints, output_name
from .foreign import ForeignCheckpoint, OpenOptions
from .plan import Plan, Selection, make_plan, parse_renames
from .record import Conversion, FileRecord, dropped_records, others_as_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["Options", "convert"]

RECORD_SUFFIX: Final = ".provenance.json"
OTHERS_KEY: Final = "safeweights.others"
_DROPPED_MAX: Final = 1000
_FRAMEWORKS: Final = {
    "torch": "pt", "npz": "np", "npy": "np", "flax": "flax",
    "tensorflow": "tf", "hdf5": "tf", "keras": "tf",
}  # fmt: skip
"""First word of a format -> the ``format`` that loaders look for in the metadata."""


@dataclass(frozen=True)
class Options:
    """How to convert.

    Attributes:
        dtype: ``"BF16"`` converts all real floating-point tensors, ``"F64=F32,C128=C64"`` those
            types. A float is rounded to a narrower one; any other value that the new type cannot
            hold is an error.
        only: Shell patterns of the source's names; all, if there are none.
        skip: Shell patterns of what is left out.
        rename: ``OLD=NEW`` rules, regular expressions, applied in order.
        shard_size: Split into shards of at most this many bytes (``"5GB"``), with an index.
        force: Replace files that exist.
        dry_run: Do everything but write.
        densify: Write sparse and quantised tensors dense instead of refusing them.
        keep_ties: Write tied weights once for each of their names.
        keep_others: Put what is no tensor into the metadata, as JSON under ``safeweights.others``.
        metadata: Texts to put into the metadata.
        digests: Record SHA-256 digests of sources and outputs.
        record: Leave a provenance record beside the output.
        durable: Return only when the outputs would survive a loss of power.
        format: The sources' format, where their contents do not tell.
        limits: What a source may cost.
        trust: What every source must fulfil before a byte of it is used; see `safeweights.open`.
    """

    dtype: str | None = None
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    rename: tuple[str, ...] = ()
    shard_size: str | int | None = None
    force: bool = False
    dry_run: bool = False
    densify: bool = False
    keep_ties: bool = False
    keep_others: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict)
    digests: bool = True
    record: bool = True
    durable: bool = False
    format: str | None = None
    limits: Limits = DEFAULT_LIMITS
    trust: object = None

    @property
    def selection(self) -> Selection:
        """The options that choose and name tensors."""
        renames = tuple(parse_renames(self.rename))
        return Selection(tuple(self.only), tuple(self.skip), renames, self.keep_ties)

    def changes(self) -> dict[str, object]:
        """The options that change what is written, for the record."""
        names = ("dtype", "only", "skip", "rename", "shard_size", "densify", "keep_ties")
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value}


def convert(
    sources: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    target: str | os.PathLike[str],
    *,
    options: Options | None = None,
    progress: Callable[[int, int], object] | None = None,
    **changes: object,
) -> Conversion:
    """Turn checkpoints of other formats into safetensors without executing anything in them.

    Args:
        sources: A file, a folder with checkpoints and perhaps their index, or several files.
        target: The file to write; a folder where the source is one or there are several. What is a
            folder, or ends in a slash, gets files called like the sources.
        options: See `Options`; single ones can also be given as keyword arguments.
        progress: Called with the bytes done so far and in all. Those of a tensor count when it is
            written, and where digests are recorded once more when the file is read back.
        changes: Fields of `Options`.

    Returns:
        What was read, written and left out.

    Raises:
        FormatError: A source is damaged, hostile or of no known format.
        UnsupportedError: A tensor cannot be written; the message names the option that would help.
        TrustError: A source is not what ``trust`` asks for.
        FileExistsError: An output exists and `force` was not given.
        NotADirectoryError: A folder is needed, and `target` is a file.
        OSError: Reading or writing failed; outputs are written whole or not at all.

    >>> import tempfile, numpy
    >>> folder = tempfile.mkdtemp()
    >>> numpy.savez(f"{folder}/a.npz", w=numpy.zeros(3, "f4"))
    >>> convert(f"{folder}/a.npz", f"{folder}/a.safetensors").tensors
    1
    """
    chosen = replace(options or Options(), **changes)  # type: ignore[arg-type]
    verify = _verifier(chosen.trust)
    paths, index, into_folder = _resolve(sources, verify)
    job = _Job(chosen, _Target.of(os.fspath(target), paths, into_folder), progress)
    with ExitStack() as stack:
        files = [open_source(path, backend="pread", verify=verify) for path in paths]
        hashing = _Hashing() if chosen.digests else None
        if hashing is not None:
            stack.callback(hashing.close)
        opened = [stack.enter_context(_open(file, chosen, verify)) for file in files]
        inputs = [
            _Input(path, file.size, checkpoint, hashing.begin(file) if hashing else None)
            for path, file, checkpoint in zip(paths, files, opened, strict=True)
        ]
        if index is not None:
            found = read_index(index, suffix="", verify=verify)
            shards = {
                shard: each.checkpoint.keys()
                for shard, each in zip(found.shards, inputs, strict=True)
            }
            for error in disagreements(found.weight_map, shards, index):
                raise error
        return job.run(inputs, index)


def _verifier(trust: object) -> Verifier | None:
    """What gives one verified source a path, however often that is opened: one check, one digest."""
    gate = verifier(trust)
    if gate is None:
        return None
    admitted: dict[str, Source] = {}

    def verify(source: Source, path: str) -> Source:
        if path not in admitted:
            admitted[path] = gate(source, path)
        return admitted[path]

    return verify


def _resolve(
    sources: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], verify: Verifier | None
) -> tuple[list[str], str | None, bool]:
    """The files to read, the index that lists them, and whether a folder is to be written."""
    several = [sources] if isinstance(sources, (str, os.PathLike)) else list(sources)
    paths = [os.fspath(source) for source in several]
    if not paths:
        raise UnsupportedError("there is nothing to convert")
    if len(paths) > 1:
        _refuse_twice(paths)
        return paths, None, True
    (path,) = paths
    if os.path.isdir(path):
        names, found = find_checkpoints(path, verify)
        index = os.path.join(path, found) if found else None
    elif path.endswith(ANY_INDEX):
        index, path = path, os.path.dirname(path)
        names = read_index(index, suffix="", verify=verify).shards
    else:
        return paths, None, False
    return [os.path.join(path, name) for name in names], index, True


def _refuse_twice(paths: list[str]) -> None:
    seen: set[str] = set()
    for path in paths:
        if (place := os.path.abspath(path)) in seen:
            raise UnsupportedError(f"{quote(path, 400)} is given twice; give every source once")
        seen.add(place)


def _open(file: Source, options: Options, verify: Verifier | None) -> ForeignCheckpoint:
    casts = parse_casts(options.dtype) if options.dtype else {}
    given = OpenOptions(options.limits, options.densify, casts, verify=verify)
    return formats.read(file, given, options.format)


@dataclass(frozen=True)
class _Input:
    """One source: opened once, so that a file put in its place meanwhile changes nothing."""

    path: str
    size: int
    checkpoint: ForeignCheckpoint
    digest: Job[str] | None


@dataclass(frozen=True)
class _Target:
    """Where outputs go: into `folder`, or to the file `path`; `make` is a folder to be there first."""

    path: str
    folder: bool
    make: str | None = None

    @classmethod
    def of(cls, path: str, sources: list[str], into_folder: bool) -> _Target:
        """As `cp` does it: one file goes to a file, or into what is a folder or ends in a slash.

        Raises:
            NotADirectoryError: A folder is needed, and a file is in its place.
        """
        alone = not into_folder
        if alone and not os.path.isdir(path) and (os.path.basename(path) or not path):
            return cls(path, folder=False)
        folder = os.path.dirname(os.path.join(path, ""))
        if os.path.lexists(folder) and not os.path.isdir(folder):
            message = "is a file, where a folder is needed to write into"
            raise NotADirectoryError(errno.ENOTDIR, message, folder)
        if alone:
            name = output_name(os.path.basename(sources[0]))
            return cls(os.path.join(folder, name), folder=False, make=folder)
        return cls(folder, folder=True, make=folder)


class _Hashing:
    """Digests of sources, made in a thread beside the rest, and given up where the rest fails."""

    def __init__(self) -> None:
        self._wanted = True
        self._beside = Background(name="safeweights-digest")

    def begin(self, source: Source) -> Job[str]:
        """Begin to hash `source`."""
        return self._beside.submit(partial(sha256, source, progress=self._require_wanted))

    def _require_wanted(self, _: int) -> None:
        if not self._wanted:
            raise RuntimeError("given up")

    def close(self) -> None:
        """Give up the digests that are not finished, and wait until the thread has ended."""
        self._wanted = False
        self._beside.close()


@dataclass
class _Output:
    """One file to be written."""

    path: str
    tensors: dict[str, Tensor]
    metadata: dict[str, str]


class _Job:
    """One call of `convert`."""

    def __init__(
        self,
        options: Options,
        target: _Target,
        progress: Callable[[int, int], object] | None,
    ) -> None:
        self.options = options
        self.target = target
        self.progress = progress
        self.report = Conversion(options=options.changes(), dry_run=options.dry_run)
        self._calls: Counter[str] = Counter()

    def run(self, inputs: list[_Input], index: str | None) -> Conversion:
        outputs, weight_map = self._outputs(inputs, index)
        index_path = self._index_path(index) if weight_map else None
        record = self._record_path() if self.options.record else None
        self._refuse_existing([*(output.path for output in outputs), index_path, record])
        self._write(outputs)
        if index_path is not None:
            self._write_index(index_path, weight_map)
        for each in inputs:
            digest = each.digest.result() if each.digest is not None else None
            tensors, kind = len(each.checkpoint), each.checkpoint.format
            self.report.sources.append(FileRecord(each.path, each.size, kind, tensors, digest))
        self.report.calls = dict(sorted(self._calls.items()))
        if record is not None and not self.options.dry_run:
            content = _as_json(self.report.to_json(_version()))
            write_file(record, [content], durable=self.options.durable)
        return self.report

    # -- deciding

    def _outputs(
        self, inputs: list[_Input], index: str | None
    ) -> tuple[list[_Output], dict[str, str]]:
        """The files to write, and the weight map of the index, if there is to be one."""
        outputs: list[_Output] = []
        weight_map: dict[str, str] = {}
        seen: dict[str, str] = {}
        for path, checkpoint in ((each.path, each.checkpoint) for each in inputs):
            plan = self._plan(path, checkpoint)
            made = self._split(path, plan, self._metadata(checkpoint, plan))
            outputs += made
            for output in made:
                name = os.path.basename(output.path)
                if seen.setdefault(name, path) != path:
                    raise FormatError(
                        f"{quote(seen[name])} and {quote(path)} would both become {quote(name)}",
                        rule="output",
                        path=path,
                    )
                if index is not None or len(made) > 1:
                    _place(weight_map, output, path)
        if not self.report.tensors:
            raise FormatError("there is no tensor to write", rule="empty", path=inputs[0].path)
        return outputs, weight_map

    def _plan(self, path: str, checkpoint: ForeignCheckpoint) -> Plan:
        options, report = self.options, self.report
        plan = make_plan(checkpoint, checkpoint.aliases, options.selection, path)
        report.tensors += len(plan.tensors)
        report.nbytes += plan.nbytes
        report.ties.update(plan.ties)
        report.renamed.update(plan.renamed)
        report.skipped += plan.skipped
        if not options.keep_others:
            room = _DROPPED_MAX - len(report.dropped)
            report.dropped += dropped_records(path, checkpoint.others, room)
            report.dropped_count += checkpoint.others_count
        self._calls.update(call.path for call in checkpoint.calls)
        return plan

    def _metadata(self, checkpoint: ForeignCheckpoint, plan: Plan) -> dict[str, str]:
        metadata = checkpoint.metadata or {}
        framework = _FRAMEWORKS.get(checkpoint.format.split("-", 1)[0].removesuffix("script"))
        if framework is not None:
            metadata.setdefault("format", framework)
        metadata.update(plan.ties)
        if self.options.keep_others and checkpoint.others:
            metadata[OTHERS_KEY] = others_as_json(checkpoint.others)
        return {**metadata, **self.options.metadata}

    def _split(self, path: str, plan: Plan, metadata: dict[str, str]) -> list[_Output]:
        whole = self.target.path
        if self.target.folder:
            whole = os.path.join(whole, output_name(os.path.basename(path)))
        if self.options.shard_size is None or not plan.tensors:
            return [_Output(whole, plan.tensors, metadata)] if plan.tensors else []
        groups = split(plan.tensors, parse_size(self.options.shard_size))
        if len(groups) == 1:
            return [_Output(whole, plan.tensors, metadata)]
        stem = whole.removesuffix(".safetensors")
        return [
            _Output(
                f"{stem}-{number:05d}-of-{len(groups):05d}.safetensors",
                {name: plan.tensors[name] for name in group},
                metadata,
            )
            for number, group in enumerate(groups, 1)
        ]

    def _index_path(self, index: str | None) -> str:
        target = self.target.path
        if index is not None:
            name = os.path.basename(index).removesuffix(ANY_INDEX)
            return os.path.join(target, output_name(name) + ANY_INDEX)
        if self.target.folder:
            return os.path.join(target, "model.safetensors" + ANY_INDEX)
        return target.removesuffix(".safetensors") + ".safetensors" + ANY_INDEX

    def _record_path(self) -> str:
        if self.target.folder:
            return os.path.join(self.target.path, "conversion" + RECORD_SUFFIX)
        return self.target.path + RECORD_SUFFIX

    def _refuse_existing(self, paths: Iterable[str | None]) -> None:
        for path in paths:
            if path is None or not os.path.lexists(path):
                continue
            if os.path.isdir(path):
                message = "is a folder where a file is to be written, which nothing replaces"
                raise IsADirectoryError(errno.EISDIR, message, path)
            if not self.options.force:
                raise FileExistsError(
                    errno.EEXIST, "exists; --force (force=True) replaces it", path
                )

    # -- writing

    def _write(self, outputs: list[_Output]) -> None:
        if self.target.make is not None and not self.options.dry_run:
            os.makedirs(self.target.make, exist_ok=True)
        done = 0
        for output in outputs:
            size = sum(tensor.nbytes for tensor in output.tensors.values())
            written, digest = size, None
            if self.options.dry_run:
                _check_casts(output.tensors.values())
            else:
                save(
                    output.tensors,
                    output.path,
                    output.metadata or None,
                    durable=self.options.durable,
                    progress=self._advance(done, size),
                )
                done += size
                written = os.stat(output.path).st_size
                if self.options.digests:
                    back = open_source(output.path, backend="pread")
                    digest = sha256(back, progress=self._advance(done, size))
                    done += size
            record = FileRecord(output.path, written, "safetensors", len(output.tensors), digest)
            self.report.outputs.append(record)

    def _write_index(self, path: str, weight_map: dict[str, str]) -> None:
        total = {"total_size": self.report.nbytes}
        content = _as_json({"metadata": total, "weight_map": dict(sorted(weight_map.items()))})
        digest = None
        if not self.options.dry_run:
            write_file(path, [content], durable=self.options.durable)
            if self.options.digests:
                digest = hashlib.sha256(content).hexdigest()
        self.report.outputs.append(FileRecord(path, len(content), "index", 0, digest))

    def _advance(self, done: int, size: int) -> Callable[[int], None]:
        """Progress over one of the passes over a file with `size` bytes of tensors."""
        total = self.report.nbytes * (2 if self.options.digests else 1)

        def advance(count: int) -> None:
            if self.progress is not None:  # counts the header too, which no total includes
                self.progress(done + min(count, size), total)

        return advance


def _check_casts(tensors: Iterable[Tensor]) -> None:
    """Read what is to be converted to another type: only its values tell whether that can be done."""
    for tensor in tensors:
        if isinstance(tensor, CastTensor):
            for _ in tensor.chunks():
                pass


def _place(weight_map: dict[str, str], output: _Output, path: str) -> None:
    for tensor in output.tensors:
        if tensor in weight_map:
            raise FormatError(
                f"tensor {quote(tensor)} is in two sources", rule="index", path=path, tensor=tensor
            )
        weight_map[tensor] = os.path.basename(output.path)


def _version() -> str:
    try:
        return metadata.version("safeweights")
    except metadata.PackageNotFoundError:  # a source tree that is not installed
        return "unknown"


def _as_json(document: object) -> bytes:
    text = json.dumps(document, ensure_ascii=False, indent=2)
    return (text + "\n").encode("utf-8", "backslashreplace")
