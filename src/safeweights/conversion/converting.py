"""Converting checkpoints of other formats to safetensors files.

Reads through `opening`, decides with `plan` and `destination`, and writes all files as one commit of a
store: if anything fails, the destination is as it was. Memory: at most 64 MiB of chunks on their way to
the disk, and the largest tensor that must be gathered or computed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import metadata
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Final

from ..checkpoint.mapping import matches
from ..checkpoint.shardindex import ANY_INDEX, index_text
from ..derived.casting import CastTensor, parse_casts
from ..derived.element_types import parse_untold
from ..derived.quantised.weight import DequantizedTensor
from ..errors import FormatError, UnsupportedError, quote
from ..storage import Commit, Source, Verifier, open_source
from ..storage.background import Background, Job
from ..storage.hashing import Hashing, sha256
from ..storage.limits import DEFAULT_LIMITS, Limits
from ..storage.places import Place, absolute, is_folder, join, parent, shown
from ..text import wrapper_prefix, wrapper_sentence
from ..trust.verifier import resolve, verifier
from .dequantizing import Sources
from .destination import FOLDER_NAME, Destination, OutputFile, require_whole, split_output
from .distributed.finding import find_distributed
from .distributed.ranks import has_parts, join_ranks
from .exports import contents_of, format_of
from .folders import find_checkpoints, left_out
from .foreign import ForeignCheckpoint, OpenOptions
from .opening import SAFETENSORS, read_foreign
from .plan import Plan, make_plan, parse_renames, prefix_renames
from .record import PART, Conversion, ConvertedFile, dropped_records, others_as_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from ..checkpoint import Tensor
    from ..checkpoint.opening import Files
    from ..storage import Store

__all__ = ["Options", "convert"]

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
        dtype_of: ``"V2=BF16"``: what arrays hold whose NumPy type (V1, V2, f1) does not tell it.
        only: Shell patterns of the source's names; all, if there are none.
        skip: Shell patterns of what is left out.
        strip_prefix: Prefixes to remove from the names that have them, before `rename`.
        rename: ``OLD=NEW`` rules, regular expressions, applied in order.
        max_shard_size: Split into shards of at most this many bytes (``"5GB"``), with an index.
        force: Replace files that exist, and an earlier checkpoint of the same name as a whole, whatever
            its number of shards.
        dry_run: Do everything but write.
        densify: Write sparse tensors, and those that PyTorch quantised, dense instead of refusing them.
        dequantize: Write quantised weights as numbers: F32, or what ``dtype`` makes of F32; see
            `Checkpoint.dequantize`.
        scheme: The scheme of quantised weights, where names, types and settings leave a choice.
        keep_ties: Write tied weights once for each of their names.
        keep: ``"optimizer"`` gives the state of the optimizer too, where a format (DeepSpeed ZeRO) keeps
            it apart from the weights.
        keep_others: Store values other than tensors in the metadata, as JSON under
            ``safeweights.others``.
        metadata: Texts to add to the metadata.
        digests: Record SHA-256 digests of sources and outputs.
        record: Leave a provenance record beside the output.
        durable: Return only when the outputs would survive a loss of power.
        format: The format of the sources, if their contents do not tell.
        limits: Bounds on what a source may cost.
        trust: Requirements that every source must meet before a byte of it is used; see
            `safeweights.open`.
        identity: Who opens encrypted sources; see `safeweights.open`. The outputs are plaintext.
    """

    dtype: str | None = None
    dtype_of: str | None = None
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    strip_prefix: tuple[str, ...] = ()
    rename: tuple[str, ...] = ()
    max_shard_size: str | int | None = None
    force: bool = False
    dry_run: bool = False
    densify: bool = False
    dequantize: bool = False
    scheme: str | None = None
    keep_ties: bool = False
    keep: tuple[str, ...] = ()
    keep_others: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict)
    digests: bool = True
    record: bool = True
    durable: bool = False
    format: str | None = None
    limits: Limits = DEFAULT_LIMITS
    trust: object = None
    identity: Any = None

    def changes(self) -> dict[str, object]:
        """The options that change what is written, for the record."""
        names = (
            "dtype", "dtype_of", "only", "skip", "strip_prefix", "rename", "max_shard_size", "densify",
            "dequantize", "scheme", "keep_ties",
        )  # fmt: skip
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
        target: The file to write; or a folder if the source is one or there are several, unless the name
            ends in ``.safetensors``, which is one file of all. In a folder, or a path that ends in a
            slash, files are named like the sources. Missing folders are made. A symbolic link to a file
            is replaced, not followed.
        options: See `Options`; single ones can also be given as keyword arguments.
        progress: Called with the bytes of tensors written so far and in total.
        changes: Fields of `Options`.

    Returns:
        What was read, written and left out.

    Raises:
        FormatError: A source is damaged, hostile or of no known format.
        ChangedError: The files of a folder were replaced while they were opened.
        UnsupportedError: A tensor cannot be written; the message names the option that would help. Or
            some files of a source would be replaced, and others would stay.
        TrustError: A source is not what ``trust`` asks for.
        FileExistsError: Without `force`: an output exists, or another file of an earlier checkpoint of
            the same name, such as its index.
        NotADirectoryError: A folder is needed, and `target` is a file.
        OSError: Reading or writing failed. All files are written, or none: what was there stays.

    >>> import tempfile, numpy
    >>> folder = tempfile.mkdtemp()
    >>> numpy.savez(f"{folder}/a.npz", w=numpy.zeros(3, "f4"))
    >>> convert(f"{folder}/a.npz", f"{folder}/a.safetensors").tensors
    1
    """
    chosen = replace(options or Options(), **changes)  # type: ignore[arg-type]
    several = [sources] if isinstance(sources, (str, os.PathLike)) else list(sources)
    paths = [os.fspath(source) for source in several]
    verify = _verifier(chosen.trust, separate=not isinstance(sources, (str, os.PathLike)))
    targets = [resolve(path, chosen.trust, chosen.identity)[0] for path in paths]
    if targets != paths:
        verify = None  # what is decrypted was verified before
    whole = find_distributed(targets[0]) if len(paths) == 1 else None
    names, found = ([FOLDER_NAME], None) if whole is not None else _resolve(paths, targets, verify)
    place = os.fspath(target)
    given = _given(chosen, verify)
    with ExitStack() as stack:
        hashing = _SourceDigests() if chosen.digests else None
        if hashing is not None:
            stack.callback(hashing.close)
        if whole is not None:
            opened = [stack.enter_context(whole(given))]
        else:
            opened = _open_files(targets, found, given, chosen.format, stack)
        if len(opened) > 1 and any(map(has_parts, opened)):
            paths = [paths[0] if len(paths) == 1 else os.path.dirname(paths[0])]
            opened, names, found = [join_ranks(opened, paths[0], given)], [FOLDER_NAME], None
        elif whole is None:
            paths = names
        where = Destination.of(place, names, found is not None or len(names) > 1)
        inputs = [
            _Input.of(path, checkpoint, hashing, name)
            for path, checkpoint, name in zip(paths, opened, names, strict=True)
        ]
        job = _Job(chosen, where, progress)
        if found is not None:
            job.report.left_out = left_out(found)
        inputs = job.prepared(inputs, None if found is None else found.store, verify)
        return job.run(inputs, found)


def _open_files(
    targets: list[Any],
    found: Files | None,
    given: OpenOptions,
    format_name: str | None,
    stack: ExitStack,
) -> list[ForeignCheckpoint]:
    """Every file, opened before any of them is read."""
    if found is not None:
        files = [file for _, file in found.open("pread", given.verify)]
    else:
        files = [open_source(each, backend="pread", verify=given.verify) for each in targets]
    opened = [stack.enter_context(read_foreign(file, given, format_name)) for file in files]
    if found is not None:
        found.check(dict(zip(found.names, opened, strict=True)))
    return opened


def _verifier(trust: object, *, separate: bool) -> Verifier | None:
    """A verifier that gives one source for a path, however often that is opened: one check, one digest.

    One signed statement must cover all files, unless they are `separate`: several sources.
    """
    gate = verifier(trust)
    if gate is None:
        return None
    admitted: dict[str, Source] = {}

    def verify(source: Source, path: str) -> Source:
        if path not in admitted:
            one = verifier(trust) if separate else gate
            assert one is not None
            admitted[path] = one(source, path)
        return admitted[path]

    return verify


def _resolve(
    paths: list[str], targets: list[Any], verify: Verifier | None
) -> tuple[list[str], Files | None]:
    """The paths to read; and, if a folder or an index was given, what they are of it.

    Args:
        paths: As they were given.
        targets: What is opened in their place: where they are encrypted, what decrypts them.
        verify: For the index.
    """
    if not paths:
        raise UnsupportedError("there is nothing to convert")
    if len(paths) > 1:
        _refuse_twice(paths)
        return list(map(_plain_path, paths, targets)), None
    (path,), (target,) = paths, targets
    plain = _plain_path(path, target)
    if not is_folder(path) and not plain.endswith(ANY_INDEX):
        return [plain], None
    found = find_checkpoints(target, verify)
    if target is path:
        return [found.store.locate(name) for name in found.names], found
    folder = path if is_folder(path) else parent(path)
    return [join(folder, name) for name in found.names], found


def _plain_path(path: str, target: Any) -> str:
    """The path that a file would have in plaintext: its output is named after it."""
    if not isinstance(target, Place):
        return path
    return join(parent(path), target.name.rpartition("/")[2])


def _refuse_twice(paths: list[str]) -> None:
    seen: set[str] = set()
    for path in paths:
        if (place := absolute(path)) in seen:
            raise UnsupportedError(f"{quote(path, 400)} is given twice; give every source once")
        seen.add(place)


def _given(options: Options, verify: Verifier | None) -> OpenOptions:
    # Of quantised weights the values are cast, not the parts: later, when they are dequantised.
    casts = parse_casts(options.dtype) if options.dtype and not options.dequantize else {}
    untold = parse_untold(options.dtype_of) if options.dtype_of else {}
    optimizer = "optimizer" in options.keep
    return OpenOptions(
        options.limits, options.densify, casts, untold, optimizer=optimizer, verify=verify
    )


@dataclass(frozen=True)
class _Input:
    """One source. It was opened once: a file that replaces it in the meantime changes nothing.

    Attributes:
        path: Where it is, for messages.
        named: The path that its output is named after.
        checkpoint: What is in it.
        digests: Those of its files, in order; empty if none are computed.
        tensors: Number of tensors in it, as they are stored.
    """

    path: str
    named: str
    checkpoint: ForeignCheckpoint
    digests: tuple[Job[str], ...]
    tensors: int

    @classmethod
    def of(
        cls,
        path: str,
        checkpoint: ForeignCheckpoint,
        hashing: _SourceDigests | None,
        named: str,
    ) -> _Input:
        """The source at `path`, of which digests are computed if there is a `hashing`."""
        digests = () if hashing is None else tuple(map(hashing.begin, checkpoint.sources))
        return cls(path, named, checkpoint, digests, len(checkpoint))

    def records(self) -> Iterator[ConvertedFile]:
        """Its files, for the report; the first one stands for all of a checkpoint of several."""
        kind, tensors = self.checkpoint.format, self.tensors
        for source, digest in zip_longest(self.checkpoint.sources, self.digests):
            done = None if digest is None else digest.result()
            path = self.path if len(self.checkpoint.sources) == 1 else source.name
            yield ConvertedFile(shown(path), source.size, kind, tensors, done)
            kind, tensors = PART, 0


class _SourceDigests:
    """Digests of sources, computed in another thread; abandoned if the conversion fails."""

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
        self._beside.close(stop=True)


class _Job:
    """One call of `convert`."""

    def __init__(
        self,
        options: Options,
        destination: Destination,
        progress: Callable[[int, int], object] | None,
    ) -> None:
        self.options = options
        self.destination = destination
        self.progress = progress
        self.report = Conversion(options=options.changes(), dry_run=options.dry_run)
        self._calls: Counter[str] = Counter()

    def prepared(
        self, inputs: list[_Input], store: Store | None, verify: Verifier | None
    ) -> list[_Input]:
        """The sources with quantised weights dequantised, if that was asked for.

        Raises:
            UnsupportedError: Without it, a part of a quantised weight would be cast alone.
        """
        options = self.options
        if not options.dequantize and not options.dtype:
            return inputs
        paths = [each.path for each in inputs]
        checkpoints = [each.checkpoint for each in inputs]
        sources = Sources(checkpoints, paths, store, verify, options.scheme)
        if not options.dequantize:
            sources.require_whole_casts(self._is_wanted)
            return inputs
        casts = parse_casts(options.dtype) if options.dtype else {}
        self.report.dequantized = dict(sources.dequantize(casts, self._is_wanted))
        return [
            replace(each, checkpoint=part) for each, part in zip(inputs, sources.parts, strict=True)
        ]

    def _is_wanted(self, name: str) -> bool:
        only, skip = self.options.only, self.options.skip
        return (not only or matches(name, only)) and not matches(name, skip)

    def run(self, inputs: list[_Input], found: Files | None) -> Conversion:
        index = None if found is None else found.index_name
        outputs, weight_map = self._outputs(inputs, index)
        for output in outputs:
            for tensor in output.tensors.values():
                tensor.prepare()
        name = self.destination.index_name(index) if weight_map else None
        earlier = self.destination.earlier_save(outputs, name)
        names = [*(output.name for output in outputs), self.destination.record_name]
        names += [] if name is None else [name]
        locate = self.destination.store.locate
        self.destination.check(names, earlier, force=self.options.force)
        for own in _checkpoints(inputs, found):
            require_whole(own, map(locate, names), map(locate, earlier.files()))
        if self.options.dry_run:
            self._rehearse(outputs)
            self._make_index(name, weight_map)
            self._add_sources(inputs)
            return self.report
        with self.destination.store.commit(durable=self.options.durable) as commit:
            earlier.begin(commit, force=self.options.force)
            self._write(commit, outputs)
            text = self._make_index(name, weight_map)
            self._add_sources(inputs)
            self._write_record(commit)
            earlier.finish(commit, name, text, force=self.options.force)
        return self.report

    # -- deciding

    def _outputs(
        self, inputs: list[_Input], index: str | None
    ) -> tuple[list[OutputFile], dict[str, str]]:
        """The files to write, and the weight map of the index, if there is to be one."""
        size = self.options.max_shard_size
        kind = format_of(self.destination.name or "")
        if size is not None and kind != SAFETENSORS:
            raise UnsupportedError(f"a file of the format {kind} cannot be split (max_shard_size)")
        whole = [self._whole(each) for each in inputs]
        one_file = self.destination.name is not None and len(inputs) > 1
        if one_file or (index is not None and size is not None):
            # Shards of one checkpoint are split anew, wherever a tensor was.
            name = self.destination.name or self.destination.index_name(index).removesuffix(
                ANY_INDEX
            )
            whole = [_merged(whole, name, self.options.metadata)]
            index = None
        _check_distinct(whole)
        split = [part for each in whole for part in split_output(each, size)]
        outputs = [output for output in split if output.tensors]
        if prefix := wrapper_prefix(name for output in outputs for name in output.tensors):
            advice = f"strip_prefix (--strip-prefix {prefix}) removes it"
            self.report.hints.append(f"{wrapper_sentence(prefix)}; {advice}")
        if not outputs:
            chosen = [*self.options.only, *self.options.skip]
            why = f": see only and skip ({', '.join(map(quote, chosen))})" if chosen else ""
            message = f"there is no tensor to write{why}"
            raise FormatError(message, rule="empty", path=inputs[0].path)
        indexed = index is not None or len(split) > len(whole)
        return outputs, _weight_map(outputs) if indexed else {}

    def _whole(self, source: _Input) -> OutputFile:
        """What one source becomes, before it is split."""
        plan = self._plan(source.path, source.checkpoint)
        metadata = self._metadata(source.checkpoint, plan)
        return OutputFile(
            self.destination.name_of(source.named), source.path, plan.tensors, metadata
        )

    def _plan(self, path: str, checkpoint: ForeignCheckpoint) -> Plan:
        options, report = self.options, self.report
        plan = make_plan(
            checkpoint,
            checkpoint.aliases,
            only=options.only,
            skip=options.skip,
            renames=[*prefix_renames(options.strip_prefix), *parse_renames(options.rename)],
            keep_ties=options.keep_ties,
        )
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

    # -- writing

    def _rehearse(self, outputs: list[OutputFile]) -> None:
        """Find what would fail: of values to be cast or computed, only they tell whether it can be done."""
        for output in outputs:
            for tensor in output.tensors.values():
                if isinstance(tensor, CastTensor | DequantizedTensor):
                    for _ in tensor.chunks():
                        pass
            size, _ = contents_of(output.name, output.tensors, output.metadata)
            self._add_output(output, size, None)

    def _write(self, commit: Commit, outputs: list[OutputFile]) -> None:
        done = 0
        for output in outputs:
            payload = output.nbytes
            size, buffers = contents_of(output.name, output.tensors, output.metadata)
            with ExitStack() as stack:
                hashing = stack.enter_context(Hashing()) if self.options.digests else None
                commit.write(
                    output.name,
                    buffers if hashing is None else hashing.passing(buffers),
                    size=size,
                    create_only=not self.options.force,
                    progress=self._advance(done, payload),
                )
                digest = None if hashing is None else hashing.hexdigest()
            done += payload
            self._add_output(output, size, digest)

    def _add_output(self, output: OutputFile, size: int, digest: str | None) -> None:
        path = self.destination.store.locate(output.name)
        tensors = len(output.tensors)
        kind = format_of(output.name)
        self.report.outputs.append(ConvertedFile(path, size, kind, tensors, digest))

    def _make_index(self, name: str | None, weight_map: dict[str, str]) -> bytes:
        if name is None:
            return b""
        text = index_text(weight_map, self.report.nbytes).encode()
        wanted = self.options.digests and not self.options.dry_run
        digest = hashlib.sha256(text).hexdigest() if wanted else None
        path = self.destination.store.locate(name)
        self.report.outputs.append(ConvertedFile(path, len(text), "index", 0, digest))
        return text

    def _add_sources(self, inputs: list[_Input]) -> None:
        for each in inputs:
            self.report.sources += each.records()
        self.report.calls = dict(sorted(self._calls.items()))

    def _write_record(self, commit: Commit) -> None:
        name = self.destination.record_name
        if self.options.record:
            content = _as_json(self.report.to_json(_version()))
            commit.write(name, [content], create_only=not self.options.force)
        elif self.options.force:
            commit.delete(name)  # it describes the files that are replaced

    def _advance(self, done: int, size: int) -> Callable[[int], None]:
        """Progress over a file with `size` bytes of tensors."""

        def advance(count: int) -> None:
            if self.progress is not None:  # counts the header too, which no total includes
                self.progress(done + min(count, size), self.report.nbytes)

        return advance


def _merged(outputs: list[OutputFile], name: str, given: Mapping[str, str]) -> OutputFile:
    """One output of all: tensors and metadata; `given` is metadata that replaces that of sources."""
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for output in outputs:
        for key, value in output.metadata.items():
            if metadata.setdefault(key, value) != value and key not in given:
                raise FormatError(
                    f"metadata {quote(key)} differs between shards: choose a value (--metadata)",
                    rule="metadata",
                    path=output.source,
                )
        for tensor in output.tensors.keys() & tensors:
            raise _twice(tensor, output.source)
        tensors |= output.tensors
    return OutputFile(name, outputs[0].source, tensors, metadata)


def _checkpoints(inputs: list[_Input], found: Files | None) -> list[list[str]]:
    """The paths of the files of each checkpoint that is read; those of a folder or an index are one."""
    own = [[source.name for source in each.checkpoint.sources] for each in inputs]
    if found is None:
        return own
    index = [] if found.index_name is None else [found.store.locate(found.index_name)]
    return [[*index, *(path for paths in own for path in paths)]]


def _check_distinct(outputs: list[OutputFile]) -> None:
    sources: dict[str, str] = {}
    for output in outputs:
        if output.tensors and sources.setdefault(output.name, output.source) != output.source:
            raise FormatError(
                f"{quote(sources[output.name])} and {quote(output.source)} would both become "
                f"{quote(output.name)}",
                rule="output",
                path=output.source,
            )


def _weight_map(outputs: list[OutputFile]) -> dict[str, str]:
    """Tensor -> file, for the index of all `outputs`."""
    weight_map: dict[str, str] = {}
    for output in outputs:
        for tensor in output.tensors:
            if tensor in weight_map:
                raise _twice(tensor, output.source)
            weight_map[tensor] = output.name
    return weight_map


def _twice(tensor: str, path: str) -> FormatError:
    return FormatError(
        f"tensor {quote(tensor)} is in two sources; convert them one at a time, or leave one out "
        "(--skip)",
        rule="index",
        path=path,
        tensor=tensor,
    )


def _version() -> str:
    try:
        return metadata.version("safeweights")
    except metadata.PackageNotFoundError:  # a source tree that is not installed
        return "unknown"


def _as_json(document: object) -> bytes:
    text = json.dumps(document, ensure_ascii=False, indent=2)
    return (text + "\n").encode("utf-8", "backslashreplace")
