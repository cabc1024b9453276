"""What a model is: one line, then sizes, parts, modules, memory, and whether loading it runs code.

`describe` reads headers and the configuration files beside them, no tensor, and executes nothing. What it
says of class, context and cache is what the settings claim; parameters, types and sizes are counted.
"""

from __future__ import annotations

import os
from functools import cached_property
from itertools import chain, groupby, islice
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from ..checkpoint.shardindex import INDEX_SUFFIX
from ..conversion.opening import open as open_any
from ..conversion.opening import open_checkpoint
from ..errors import FormatError, SafetensorError, TensorNotFoundError, quote
from ..format.dtypes import BITS
from ..storage import LocalStore
from ..storage.pipes import STDIN
from ..storage.places import is_url, join, place_of, shown
from ..text import human_bytes, human_count, plural, printable, wrapper_prefix, wrapper_sentence
from ..trust.errors import TrustError
from ..trust.verifier import identified, plain_source, plain_store, verifier
from .bytemap import byte_map
from .calls import loading_calls
from .inventory import rows, total, unreadable
from .modules import module_tree, most_repeated, outline
from .report import as_show
from .settings import Facts, Part, Settings, gguf_facts, model_facts, model_parts, read_settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ..checkpoint import Checkpoint, SafetensorsFile, Tensor
    from ..storage import Store, Verifier
    from ..storage.places import Place
    from .documents import (
        CodeRecord,
        DTypeRecord,
        FileRecord,
        MemoryRecord,
        ModelRecord,
        PartRecord,
        QuantisedRecord,
        ShowDocument,
        TotalRecord,
    )
    from .inventory import Row

__all__ = ["OpenedModel", "describe", "document_of", "open_model", "show_document"]

PathKind: TypeAlias = Literal["file", "index", "folder", "stdin"]

_MODULES_MAX: Final = 200
_PIECES_MAX: Final = 200
_REASONS_MAX: Final = 20
_TIED_MAX: Final = 20
_EXAMINED_MAX: Final = 1000
"""Maximum number of files beside the weights that are examined."""

_TEXT_MAX: Final = 8 << 20
"""Bytes of the largest configuration that is examined for code: `check` examines all."""

_TEXT_SUFFIXES: Final = (".json", ".jsonl", ".yaml", ".yml", ".txt", ".model")
_TOKENIZERS: Final = frozenset({"tokenizer.json", "vocab.json", "vocab.txt", "merges.txt"})
"""Files of the tokenizers library, which takes nothing but data from them."""

_TEXTS: Final = frozenset({"json", "text"})

_MEMORY: Final = ("F32", "BF16", "F8_E4M3", "F4")
"""Element types for which `memory` is given, beside what is stored."""

_PLAIN: Final = frozenset({"F64", "F32", "F16", "BF16", "I64", "BOOL"})
"""Element types of which no quantised weight is made."""

_HEADS: Final = ("lm_head.weight", "lm_head", "output.weight")
"""Names of output layers that share the embedding's weights."""


def describe(
    path: str | os.PathLike[str], *, trust: object = None, identity: Any = None
) -> ShowDocument:
    """What a model is: what ``show --json`` prints.

    Reads headers and configuration files; of other formats what opening them takes.

    Args:
        path: Path or URL of a file of any format, an index.json, or a folder; of a diffusers pipeline
            the parts are opened too.
        trust: As for `safeweights.open`: of all files, the configuration too, only bytes that were
            checked are then read.
        identity: Who opens an encrypted model; see `safeweights.open`.

    Raises:
        FormatError: A file breaks its format, or the folder has no weights.
        TrustError: A file is not what `trust` asks for.
        OSError: Something cannot be read.

    >>> import tempfile, numpy, safeweights.numpy
    >>> path = os.path.join(tempfile.mkdtemp(), "model.safetensors")
    >>> safeweights.numpy.save_file({"a.weight": numpy.zeros((2, 3), "f4")}, path)
    >>> describe(path)["model"]["summary"]
    '6 parameters · F32 · 24 B · unsigned · runs code: no'
    """
    name = os.fsdecode(path)
    # A file called "-" is no standard input here.
    name = os.path.join(os.curdir, name) if name == STDIN else name
    with identified(identity):
        return as_show(show_document(name, trust=trust))


def show_document(path: str, *, trust: object = None) -> ShowDocument:
    """Like `describe`, for a PATH of the command line: ``-`` is standard input."""
    verify = verifier(trust)
    return document_of(path, open_model(path, verify), verify)


def document_of(path: str, opened: OpenedModel, verify: Verifier | None = None) -> ShowDocument:
    """Like `show_document`, for a model that is open."""
    found = opened.found
    files = [_file(file) for each in opened.checkpoints for file in each.files]
    kinds = _by_dtype(found)
    sums = _sums(kinds)
    return {
        "schema": "safeweights.show/1",
        "path": shown(path),
        "kind": opened.kind,
        "format": opened.format,
        "model": _model(path, opened, kinds, verify),
        "total": sums,
        "dtypes": kinds,
        "files": files,
        "map": byte_map(files, found, _PIECES_MAX),
        "metadata": None if opened.root is None else opened.root.metadata,
        "unreadable": unreadable(found),
        "calls": list(dict.fromkeys(chain.from_iterable(map(loading_calls, opened.checkpoints)))),
    }


def open_model(path: str, verify: Verifier | None = None) -> OpenedModel:
    """Open what a path or URL leads to, with the parts of a pipeline, and read the settings beside it.

    Raises:
        FormatError, TrustError, OSError: See `describe`.
    """
    if path == STDIN:
        return OpenedModel("stdin", open_checkpoint(path, headers_only=True), Settings({}))
    place = place_of(path)
    kind = place.kind()
    store, folder = _folder_of(place, kind)
    store, unverified = plain_store(store, verify, folder=folder)
    settings = read_settings(store, folder, unverified)
    parts = model_parts(settings) if kind == "folder" else []
    root: Checkpoint | None = None
    try:
        root = open_any(path, backend="pread", trust=verify)
    except FormatError as error:
        if error.rule != "folder" or not parts:
            raise
    opened = OpenedModel(kind, root, settings)
    opened.open_parts(path, parts, verify)
    return opened


def _folder_of(place: Place, kind: str) -> tuple[Store, str]:
    """The folder in which the settings of a model are: a store, and the folder's name in it."""
    if kind == "folder":
        return place.folder(), ""
    return place.store, place.name.rpartition("/")[0]


class OpenedModel:
    """The checkpoints that a path consists of, and the settings beside them.

    Attributes:
        kind: What the path is: ``file``, ``index``, ``folder`` or ``stdin``.
        root: The checkpoint at the path itself; None for a pipeline, all of whose weights are in its
            parts.
        settings: The configuration files.
        parts: Part of a pipeline -> its checkpoint, why it cannot be opened, or None without weights.
    """

    def __init__(self, kind: PathKind, root: Checkpoint | None, settings: Settings) -> None:
        self.kind: PathKind = kind
        self.root = root
        self.settings = settings
        self.parts: dict[Part, Checkpoint | str | None] = {}

    def open_parts(self, path: str, parts: Iterable[Part], verify: Verifier | None) -> None:
        """Open the parts of the pipeline at `path`."""
        for part in parts:
            self.parts[part] = self._part(join(path, part.name), verify)

    @staticmethod
    def _part(path: str, verify: Verifier | None) -> Checkpoint | str | None:
        try:
            return open_any(path, backend="pread", trust=verify)
        except FileNotFoundError:
            return None
        except FormatError as error:
            return None if error.rule == "folder" else str(error)
        except TrustError:
            raise
        except (SafetensorError, OSError) as error:
            return str(error)

    @property
    def checkpoints(self) -> list[Checkpoint]:
        """All that were opened."""
        parts = [
            each for each in self.parts.values() if not (each is None or isinstance(each, str))
        ]
        return parts if self.root is None else [self.root, *parts]

    @property
    def format(self) -> str:
        """The formats of all."""
        return ", ".join(sorted({each.format for each in self.checkpoints}))

    def named(self) -> Iterator[tuple[str, Checkpoint]]:
        """What the names of tensors begin with, and whose they are."""
        if self.root is not None:
            yield "", self.root
        for part, each in self.parts.items():
            if each is not None and not isinstance(each, str):
                yield f"{part.name}.", each

    def rows(self) -> Iterator[Row]:
        """The tensors of all; the names of a part's begin with the name of the part."""
        for prefix, each in self.named():
            found = rows(each)
            yield from (row._replace(name=prefix + row.name) for row in found) if prefix else found

    @cached_property
    def found(self) -> list[Row]:
        """`rows`, as a list that is made once."""
        return list(self.rows())

    def tensor(self, name: str) -> Tensor:
        """The tensor that has this name in `rows`.

        Raises:
            TensorNotFoundError: There is none.
        """
        for prefix, each in self.named():
            if name.startswith(prefix) and name[len(prefix) :] in each:
                return each[name[len(prefix) :]]
        raise TensorNotFoundError(f"no tensor is called {quote(name)}", tensor=name)

    def records(self) -> list[PartRecord]:
        """The parts as JSON records."""
        return [
            {
                "name": part.name,
                "class_name": part.class_name,
                "total": None if each is None or isinstance(each, str) else total(rows(each)),
                "problem": each if isinstance(each, str) else None,
            }
            for part, each in self.parts.items()
        ]


def _model(
    path: str, opened: OpenedModel, kinds: list[DTypeRecord], verify: Verifier | None
) -> ModelRecord:
    settings = opened.settings
    modules = module_tree(opened.found)
    facts = model_facts(settings, next((k["dtype"] for k in kinds if k["dtype"] in BITS), ""))
    if facts.architecture is None and (keys := _gguf_keys(opened.root)):
        facts = gguf_facts(keys)
    repeated = None if opened.parts else most_repeated(modules)
    sums = _sums(kinds)
    quantised, problems = _quantised(opened, kinds)
    record: ModelRecord = {
        "summary": "",
        "source": facts.source,
        "architecture": facts.architecture,
        "layers": facts.layers or (repeated.copies if repeated else None),
        "context": facts.context,
        "vocabulary": facts.vocabulary,
        "tied": _tied(opened.root, facts),
        "quantisation": facts.quantisation,
        "quantised": quantised,
        "bits_per_parameter": _bits(kinds),
        "memory": _memory(sums["parameters"]),
        "cache": facts.cache,
        "adapter": facts.adapter,
        "parts": opened.records(),
        "modules": outline((each.record() for each in modules), _MODULES_MAX),
        "signature": _signature(path) if opened.kind != "stdin" and not is_url(path) else None,
        "code": _code(path, opened, verify),
        "problems": [*settings.problems, *problems],
    }
    if opened.root is not None and (prefix := wrapper_prefix(opened.root)):
        record["problems"].append(wrapper_sentence(prefix))
    files = sum(len(each.files) for each in opened.checkpoints)
    record["summary"] = _summary(record, sums, kinds, files)
    return record


def _quantised(
    opened: OpenedModel, kinds: list[DTypeRecord]
) -> tuple[list[QuantisedRecord], list[str]]:
    """The schemes of quantised weights. Plain floats are not looked at: that would import NumPy."""
    if _PLAIN.issuperset(kind["dtype"] for kind in kinds):
        return [], []
    from .quantisation import quantised_records

    return quantised_records(opened.checkpoints)


def _summary(record: ModelRecord, sums: TotalRecord, kinds: list[DTypeRecord], files: int) -> str:
    """The most important of all, in one line."""
    adapter, tied, layers = record["adapter"], record["tied"], record["layers"]
    dtype = kinds[0]["dtype"] if kinds else None
    facts = (
        record["architecture"],
        f"rank {adapter['rank']}" if adapter and adapter["rank"] else None,
        f"for {adapter['base']}" if adapter and adapter["base"] else None,
        f"{human_count(sums['parameters'])} parameters",
        dtype and (f"{dtype} and {plural(len(kinds) - 1, 'type')} more" if kinds[1:] else dtype),
        record["quantisation"] or _schemes(record),
        plural(layers, "layer") if layers else None,
        plural(len(record["parts"]), "part") if record["parts"] else None,
        plural(files, "file") if files > 1 else None,
        human_bytes(sums["bytes"]),
        f"tied: {', '.join(tied[:2])}{' ...' if tied[2:] else ''}" if tied else None,
        "signed (not verified)" if record["signature"] else "unsigned",
        f"runs code: {record['code']['verdict']}",
    )
    return " · ".join(printable(fact) for fact in facts if fact)


def _schemes(record: ModelRecord) -> str | None:
    found = record["quantised"]
    if not found:
        return None
    more = f" and {plural(len(found) - 1, 'scheme')} more" if found[1:] else ""
    return f"{found[0]['scheme']}{more}"


def _sums(kinds: list[DTypeRecord]) -> TotalRecord:
    return {
        "tensors": sum(kind["tensors"] for kind in kinds),
        "parameters": sum(kind["parameters"] for kind in kinds),
        "bytes": sum(kind["bytes"] for kind in kinds),
    }


def _by_dtype(found: Iterable[Row]) -> list[DTypeRecord]:
    found = sorted(found, key=attrgetter("dtype"))
    records: list[DTypeRecord] = [
        {"dtype": dtype, **total(some)} for dtype, some in groupby(found, attrgetter("dtype"))
    ]
    return sorted(records, key=lambda record: (-record["parameters"], record["dtype"]))


def _file(file: SafetensorsFile) -> FileRecord:
    return {
        "path": file.name,
        "bytes": file.source.size,
        "header_bytes": file.header.size,
        "tensors": len(file.header.tensors),
    }


def _bits(kinds: list[DTypeRecord]) -> float | None:
    """Bits of data for each element of floating-point and quantised tensors."""
    sums = _sums([each for each in kinds if not each["dtype"].startswith(("I", "U", "BOOL", "?"))])
    return round(8 * sums["bytes"] / sums["parameters"], 3) if sums["parameters"] else None


def _memory(parameters: int) -> list[MemoryRecord]:
    return [{"dtype": dtype, "bytes": -(-parameters * BITS[dtype] // 8)} for dtype in _MEMORY]


def _gguf_keys(checkpoint: Checkpoint | None) -> dict[str, Any]:
    """Keys and values of the header of a GGUF file."""
    if checkpoint is None or checkpoint.format != "gguf":
        return {}
    from ..conversion.foreign import ForeignCheckpoint
    from ..conversion.pickles.nodes import DictNode

    if not isinstance(checkpoint, ForeignCheckpoint) or not isinstance(checkpoint.tree, DictNode):
        return {}
    keys = checkpoint.tree.get("gguf")
    pairs = keys.pairs if isinstance(keys, DictNode) else []
    return {key: value for key, value in pairs if isinstance(key, str)}


def _tied(checkpoint: Checkpoint | None, facts: Facts) -> list[str]:
    """Names that show another tensor's weights: of one file, or by the settings."""
    if checkpoint is None:
        return []
    if not checkpoint.files:
        return list(islice(getattr(checkpoint, "aliases", ()), _TIED_MAX))
    metadata = checkpoint.metadata or {}  # `save_model` notes which name stands for which
    noted = [
        key for key, value in metadata.items() if value in checkpoint and key not in checkpoint
    ]
    if noted or not facts.ties or any(name in checkpoint for name in _HEADS):
        return noted[:_TIED_MAX]
    return ["lm_head"]


def _signature(path: str) -> str | None:
    from ..trust.signatures.discovery import find_signature

    found = find_signature(path)
    return found if os.path.lexists(found) else None


def _code(path: str, opened: OpenedModel, verify: Verifier | None) -> CodeRecord:
    """Whether loading runs code: by the pickles that were opened, and by the files beside them."""
    acts: list[str] = []
    unknown: list[str] = []
    for each in opened.checkpoints:
        acts += [f"{printable(each.name)} calls {printable(call)}" for call in loading_calls(each)]
    if opened.kind == "folder" and is_url(path):
        unknown.append("files beside the weights are not looked at over a network")
    elif os.path.isdir(path) and path != STDIN:
        for name, verdict, message in _beside(path, opened, verify):
            (acts if verdict == "acts" else unknown).append(f"{quote(name)}: {printable(message)}")
    return {
        "verdict": "yes" if acts else "unknown" if unknown else "no",
        "reasons": (acts + unknown)[:_REASONS_MAX],
    }


def _beside(
    path: str, opened: OpenedModel, verify: Verifier | None
) -> Iterator[tuple[str, str, str]]:
    """Name, verdict and reason of each file in a folder that is not known to be data."""
    from ..trust.files import is_bookkeeping

    read = {os.path.realpath(file.name) for each in opened.checkpoints for file in each.files}
    folders = set(map(os.path.dirname, read))
    read.add(os.path.realpath(_signature(path) or path))
    examined = 0
    store, _ = plain_store(LocalStore(path), verify)
    for entry in store.list():
        full = store.locate(entry.name)
        base = entry.name.rpartition("/")[2]
        real = os.path.realpath(full)
        if is_bookkeeping(entry.name) or real in read:
            continue
        if base.endswith(INDEX_SUFFIX) and os.path.dirname(real) in folders:
            continue  # opening the folder read it: there is one index at most
        from ..conversion.kinds import examine  # imports the readers of pickles
        from ..conversion.kinds import kind_of as kind_of_file

        examined += 1
        if examined > _EXAMINED_MAX:
            yield entry.name, "unread", f"only {_EXAMINED_MAX:,} files were looked at"
            return
        try:
            source = plain_source(full, verify)
            if base in _TOKENIZERS and (kind := kind_of_file(source, base)) and kind.id in _TEXTS:
                continue
            if source.size > _TEXT_MAX and base.endswith(_TEXT_SUFFIXES):
                yield entry.name, "unread", "it is large and was not looked at"
                continue
            for concern in examine(source, entry.name).concerns[:1]:
                yield entry.name, concern.power, concern.message
        except (SafetensorError, OSError) as error:
            yield entry.name, "unread", str(error)
