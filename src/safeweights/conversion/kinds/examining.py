"""One file, judged: what kind it is, and everything in it that is not known to be data.

Rules:
- The bytes decide, then the name: a program may go by either, so what either says is held against the file.
- A file is data only if its kind is known, a reader for the kind read all that could act, and no other
  reader would take it for something else. What was not read is a concern, never silence.
- Pickles, wherever they hide, are judged by `scanning`.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from ...errors import SafetensorError, quote
from ...format.kinds import KIND_HEAD, KINDS, Kind, by_name, recognize
from ...lazy import deferred
from ...storage.limits import DEFAULT_LIMITS, Limits
from ...storage.windows import read_bytes
from ...text import printable
from ..archives.tar_reader import TarArchive
from ..archives.zip_reader import ZipArchive, ends_in_zip
from ..disguises import hdf5_start
from ..foreign import OpenOptions
from ..grading import Grade
from ..opening import identify
from ..scanning import scan
from .concerns import Concern, Power, Template
from .graphs import (
    is_fingerprint,
    is_onnx,
    is_saved_model,
    is_sentencepiece,
    onnx_concerns,
    saved_model_concerns,
)
from .settings import MAX_TEXT, json_concerns, yaml_concerns
from .templates import template_concerns

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from ...storage import Source

__all__ = [
    "SCANNED",
    "Concern",
    "Examination",
    "beside_scan",
    "examine",
    "kind_of",
    "name_concerns",
]

# Imports NumPy, which takes as long as everything else that a config.json needs.
_read_gguf = deferred("safeweights.conversion.readers.gguf", "read_gguf")

_GGUF_TEMPLATES: Final = "tokenizer.chat_template"  # and tokenizer.chat_template.NAME

_CONCERNS_MAX: Final = 100
SCANNED: Final = frozenset(
    {"safetensors", "gguf", "npy", "hdf5", "pickle", "torch-zip", "torchscript", "keras", "zip", "tar",
     "gzip", "bzip2", "xz", "zlib", "tensorflow-v2", "flax-msgpack", "paddle"}
)  # fmt: skip
"""Kinds whose every byte `scan` accounts for."""


@dataclass(frozen=True)
class Examination:
    """What is known of one file.

    Attributes:
        name: What the file is called.
        kind: Its kind; None where it is not known.
        concerns: What is not known to be data, worst first; at most 100.
        templates: The chat templates in it.
    """

    name: str
    kind: Kind | None
    concerns: tuple[Concern, ...] = field(default=())
    templates: tuple[Template, ...] = field(default=())

    @property
    def verdict(self) -> str:
        """``data``, ``acts``, ``unread`` or ``unknown``: the worst that is certain."""
        powers = {concern.power for concern in self.concerns}
        return next((each for each in ("acts", "unread", "unknown") if each in powers), "data")


def examine(source: Source, name: str, *, limits: Limits = DEFAULT_LIMITS) -> Examination:
    """What kind of file `source` is, and what loading it could do.

    Cost: the first and last 64 KiB of any file; all of a configuration, a template, a pickle; of other
    formats what can act.

    Args:
        source: The file.
        name: What it is called, relative to the model's folder.
        limits: What the file may cost.

    Raises:
        OSError: Reading failed. What is wrong with its contents is a concern.

    >>> from safeweights.storage import BytesSource
    >>> examine(BytesSource(b"# A model"), "README.md").verdict
    'data'
    """
    kind = kind_of(source, name, limits=limits)
    found: dict[Power, list[Concern]] = {"acts": [], "unread": [], "unknown": []}
    templates: list[Template] = []
    for each in _concerns(source, name, kind, limits):
        if isinstance(each, Template):
            templates.append(each)
        elif len(kept := found[each.power]) < _CONCERNS_MAX:  # a file can have millions
            kept.append(each)
    concerns = [each for kept in found.values() for each in kept]
    return Examination(name, kind, tuple(concerns[:_CONCERNS_MAX]), tuple(templates))


def kind_of(source: Source, name: str, *, limits: Limits = DEFAULT_LIMITS) -> Kind | None:
    """The kind of a file: from its first bytes, the directory of an archive, the fields of a message.

    Args:
        source: The file.
        name: What it is called; it only tells kinds of text apart.
        limits: What the file may cost.

    Raises:
        OSError: Reading failed.
    """
    kind = recognize(read_bytes(source, 0, min(KIND_HEAD, source.size)), source.size, name)
    if kind is not None and kind.id == "zip":
        return KINDS[_zip_kind(source, limits)]
    if kind is not None and kind.id == "tar":
        return KINDS["nemo" if _holds(source, limits, "model_config.yaml") else "tar"]
    if kind is None or kind.id in {"onnx", "saved-model", "coreml"}:
        # Protocol Buffers have no signature: all fields have to be those of the kind.
        if is_fingerprint(source):
            return KINDS["tensorflow-fingerprint"]
        if is_onnx(source):
            return KINDS["onnx"]
        if is_saved_model(source):
            return KINDS["saved-model"]
        if is_sentencepiece(source):
            return KINDS["sentencepiece"]
    if kind is None and (found := _foreign(source, limits)) is not None:
        return KINDS[found]
    return kind


def _foreign(source: Source, limits: Limits) -> str | None:
    """A format that `conversion` reads and that has no signature of its own."""
    try:
        found = identify(source, read_bytes(source, 0, min(KIND_HEAD, source.size)), limits)
    except SafetensorError:
        return None
    return found if found in {"tensorflow-v2", "flax-msgpack", "paddle"} else None


def _holds(source: Source, limits: Limits, member: str) -> bool:
    try:
        names: Collection[str] = TarArchive(source, limits).members
    except SafetensorError:
        return False
    return any(name.rpartition("/")[2] == member for name in names)


def _zip_kind(source: Source, limits: Limits) -> str:
    """The kind of a zip archive, by the names in its directory."""
    try:
        names = set(ZipArchive(source, limits).members)
    except SafetensorError:
        return "zip"
    inner = {name.partition("/")[2] for name in names}
    if "MAR-INF/MANIFEST.json" in names:
        return "mar"
    if "META-INF/MANIFEST.MF" in names:
        return "java"
    if ".data/extern_modules" in inner | names:
        return "torch-package"
    if "archive_format" in inner | names or "serialized_exported_program.json" in names:
        return "torch-export"
    if "model.weights.h5" in names:
        return "keras"
    if "schema.json" in names:
        return "skops"
    if "data.pkl" in inner:
        return "torchscript" if "constants.pkl" in inner else "torch-zip"
    return "zip"


def _concerns(
    source: Source, name: str, kind: Kind | None, limits: Limits
) -> Iterator[Concern | Template]:
    if kind is None:
        yield Concern("unread", "unknown-kind", "the kind of this file is not known")
    elif kind.power == "acts":
        yield Concern("acts", f"kind-{kind.id}", f"this is {kind.name}: it can {kind.can}")
    elif kind.power == "unknown" and kind.id not in SCANNED:
        advice = f"; {kind.advice}" if kind.advice else ""
        message = f"this is {kind.name}: it can {kind.can}; it is not read here{advice}"
        yield Concern("unread", f"kind-{kind.id}", message)
    else:
        yield from _of_kind(source, name, kind, limits)
    yield from name_concerns(source, name, kind)
    archive = source.size >= 4 and read_bytes(source, 0, 4) == b"PK\x03\x04"
    scanned = kind is not None and kind.id in SCANNED - {"safetensors"}
    if not archive and not scanned and ends_in_zip(source):
        yield Concern("acts", "polyglot", "it ends in a zip archive, which Python would run")
    if kind is not None and not scanned and (start := hdf5_start(source)):
        message = f"readers of HDF5, such as Keras, find a file of theirs at byte {start}"
        yield Concern("unread", "polyglot", message, start)


def name_concerns(source: Source, name: str, kind: Kind | None) -> Iterator[Concern | Template]:
    """What a file's name makes programs do with it, whatever its first bytes say it is.

    A configuration or a template can begin like an image; its loader goes by the name.
    """
    named = by_name(name)
    if named is None:
        return
    if named.power == "acts":
        if kind is None or kind.power != "acts":
            yield Concern("acts", f"name-{named.id}", f"it goes by the name of {named.name}")
        return
    if named.power == "data" or kind is None or kind.id in {named.id, "empty"}:
        return
    head = read_bytes(source, 0, min(KIND_HEAD, source.size))
    if _POINTER(head) or (named.id == "json" and head.lstrip()[:1] not in b"{["):
        return  # a pointer of git-lfs; an error page, for example, which is no JSON
    try:
        if named.id in _TEXTS:
            yield from _text(source, name, named)
        elif named.id in _READERS:
            yield from _READERS[named.id](source)
        else:
            yield Concern("unread", f"name-{named.id}", f"it goes by the name of {named.name}")
    except SafetensorError as error:
        yield Concern("unread", f"name-{named.id}", error.message, error.offset)


def _of_kind(source: Source, name: str, kind: Kind, limits: Limits) -> Iterator[Concern | Template]:
    if kind.id in SCANNED:
        yield from _scanned(source, limits)
        yield from beside_scan(source, name, kind, limits)
        return
    reader = _READERS.get(kind.id)
    try:
        if reader is not None:
            yield from reader(source)
        elif kind.id in _TEXTS:
            yield from _text(source, name, kind)
        yield from _hidden_pickle(source, limits)
    except SafetensorError as error:
        yield Concern("unread", f"kind-{kind.id}", error.message, error.offset)


def beside_scan(
    source: Source, name: str, kind: Kind, limits: Limits
) -> Iterator[Concern | Template]:
    """What can act in a file of a kind that `scan` reads, and is no pickle: the templates of GGUF."""
    if kind.id == "gguf":
        for key, text in _gguf_templates(source, limits):
            yield from _template(text.encode("utf-8", "surrogatepass"), f"{name}#{key}")


def _template(data: bytes, place: str) -> Iterator[Concern | Template]:
    yield Template(place, data)
    yield from template_concerns(data.decode("utf-8", "replace"), place)


def _text(source: Source, name: str, kind: Kind) -> Iterable[Concern | Template]:
    if source.size > MAX_TEXT:
        message = f"{source.size:,} bytes of text are more than the {MAX_TEXT:,} that are read"
        return [Concern("unread", "text-size", message)]
    data = read_bytes(source, 0, source.size)
    if kind.id == "jinja":
        return _template(data, name)
    return json_concerns(data, name) if kind.id == "json" else yaml_concerns(data, name)


_TEXTS: Final = frozenset({"json", "yaml", "jinja", "mlflow"})
_PICKLED_TYPE: Final = b"arrow.py_extension_type"
_POINTER: Final = re.compile(
    rb"version https://git-lfs\.github\.com/spec/v1\noid sha256:[0-9a-f]{64}\nsize \d+\n?"
).fullmatch
_BLOCK: Final = 1 << 20
_MENTIONS: Final = frozenset({"GLOBAL", "STACK_GLOBAL"})
"""Opcodes that import a name and call nothing."""


def _arrow(source: Source) -> Iterator[Concern]:
    """A type of a column that PyArrow before 14.0.1 unpickles; Parquet keeps the schema in base64."""
    needles = [_PICKLED_TYPE]
    for skipped in range(3):  # wherever in a group of three bytes the name begins
        coded = base64.b64encode(bytes(skipped) + _PICKLED_TYPE)
        needles.append(coded[4 if skipped else 0 : -4])
    if any(_contains(source, needle) for needle in needles):
        yield Concern(
            "acts", "arrow-pickle", "a column has a type that PyArrow before 14.0.1 unpickles"
        )


def _xml(source: Source) -> Iterator[Concern]:
    """Entities, which reach files and the network or grow without end; models that begin late."""
    if _contains(source, b"<!ENTITY"):
        yield Concern("acts", "xml-entities", "XML that defines entities")
    if any(_contains(source, needle) for needle in (b"<PMML", b"<net ")):
        yield Concern("unread", "kind-xml", "XML that may be a model of PMML or OpenVINO")


def _contains(source: Source, needle: bytes) -> bool:
    for offset in range(0, source.size, _BLOCK):
        count = min(_BLOCK + len(needle) - 1, source.size - offset)
        if needle in read_bytes(source, offset, count):
            return True
    return False


_READERS: Final[dict[str, Callable[[Source], Iterator[Concern]]]] = {
    "arrow": _arrow,
    "parquet": _arrow,
    "xml": _xml,
    "onnx": onnx_concerns,
    "saved-model": saved_model_concerns,
}


def _scanned(source: Source, limits: Limits) -> Iterator[Concern]:
    """What `scan` says, as concerns."""
    report = scan(source, limits=limits)
    for call in report.findings:
        if call.grade > Grade.DATA:
            power: Power = "acts" if call.grade == Grade.DANGEROUS else "unknown"
            reason = f": {call.reason}" if call.reason else ""
            message = f"loading it calls {quote(call.target)}{printable(reason)}"
            yield Concern(power, f"{power}-call", message, call.offset)
    for part in report.unread:
        yield Concern("unread", "unread", printable(part.reason), part.offset)


def _gguf_templates(source: Source, limits: Limits) -> Iterator[tuple[str, str]]:
    """Key and text of each chat template in a GGUF file; none if it is damaged, which `scan` says."""
    try:
        metadata = _read_gguf(source, OpenOptions(limits=limits)).metadata or {}
    except SafetensorError:
        return
    for key, text in metadata.items():
        if _GGUF_TEMPLATES in key:
            yield key.removeprefix("gguf."), text


def _hidden_pickle(source: Source, limits: Limits) -> Iterator[Concern]:
    """What a pickle that reads like another format would call: protocol 0 has no signature.

    A line that begins with c names a module; prose is no attack because its first words are read as one.
    But a file of that name may exist, so what is called afterwards counts.
    """
    prose = False
    report = scan(source, limits=limits)
    for call in report.findings:
        if call.module is not None and not all(map(str.isidentifier, call.module.split("."))):
            prose = True
        elif call.grade > Grade.DATA and not (prose and call.opcode in _MENTIONS):
            message = f"`pickle.load` of it calls {quote(call.target)}"
            yield Concern("acts", "text-pickle", message, call.offset)
    for part in report.unread:
        if part.pickled:
            yield Concern("unread", "text-pickle", printable(part.reason), part.offset)
