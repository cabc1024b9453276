"""What loading a file with its own library would execute, found without executing it.

Every pickle in the file, however it is wrapped, is run on the symbolic machine, and each call,
import and effect is graded. Rules: a file is clean only if every byte of it was accounted for, every
pickle was read to its end, and everything in them is known to build tensors; whatever could not be
read is reported as such, with what was found up to there.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from ..errors import SafetensorError
from ..storage import BytesSource, Source, open_source
from ..storage.limits import DEFAULT_LIMITS, Limits
from ..storage.windows import read_bytes
from . import formats
from .archives.tar_reader import TarArchive, looks_like_tar
from .archives.zip_reader import ZipArchive, looks_like_zip
from .foreign import OpenOptions
from .grading import NESTED_LOADERS, Grade, grade_call, grade_effect, grade_global
from .pickles.flatten import summary
from .pickles.machine import Pickle, PickleMachine
from .pickles.nodes import Call, Global, Value
from .pickles.numpy_nodes import NUMPY_CONSTRUCTORS, blob_source
from .pickles.object_nodes import OBJECT_CONSTRUCTORS, as_bytes
from .readers import hdf5, numpy_files, torch_files, torch_tar

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Finding", "Report", "Unread", "scan", "scan_folder"]

_ARGUMENTS_MAX: Final = 160
_PLAIN_MEMBERS: Final = frozenset(
    {"byteorder", "version", ".format_version", ".storage_alignment", ".data/serialization_id"}
)
_PICKLE_SUFFIXES: Final = (
    ".pkl",
    ".pickle",
    ".pt",
    ".pth",
    ".bin",
    ".joblib",
    ".ckpt",
    ".pdparams",
)


@dataclass(frozen=True)
class Finding:
    """One thing that loading the file would execute.

    Attributes:
        path: The file, with ``!member`` for each nesting.
        offset: Byte offset in that member.
        opcode: The pickle opcode, or ``"CODE"`` for code that is no pickle.
        module: Module of the name; None where the pickle computes it.
        name: Attribute; None where the pickle computes it.
        arguments: What it is called with, in a few words.
        grade: How dangerous it is.
        reason: Why.
    """

    path: str
    offset: int
    opcode: str
    module: str | None
    name: str | None
    arguments: str
    grade: Grade
    reason: str = ""

    @property
    def target(self) -> str:
        """The dotted name."""
        return f"{self.module or '?'}.{self.name or '?'}"


@dataclass(frozen=True)
class Unread:
    """Something that could not be read to its end, so nothing can be said of the rest."""

    path: str
    offset: int | None
    reason: str


@dataclass
class Report:
    """What a scan found.

    Attributes:
        path: The file.
        findings: Everything that would be executed, in the order of the file.
        unread: What could not be read to its end.
        pickles: Pickles that were read to their end.
        format: What the file is, where that is known.
    """

    path: str
    findings: list[Finding] = field(default_factory=list)
    unread: list[Unread] = field(default_factory=list)
    pickles: int = 0
    format: str | None = None

    @property
    def grade(self) -> Grade:
        """The worst grade of all findings."""
        return max((finding.grade for finding in self.findings), default=Grade.TENSORS)

    @property
    def complete(self) -> bool:
        """Whether everything was read to its end."""
        return not self.unread

    @property
    def clean(self) -> bool:
        """Whether the file was read completely and builds nothing but tensors."""
        return self.complete and self.grade == Grade.TENSORS

    @property
    def verdict(self) -> str:
        """One word: ``clean``, ``unknown``, ``dangerous`` or ``incomplete``."""
        if self.grade == Grade.DANGEROUS:
            return "dangerous"
        if not self.complete:
            return "incomplete"
        return "clean" if self.clean else "unknown"

    def counts(self) -> Counter[Grade]:
        """How many findings there are of each grade."""
        return Counter(finding.grade for finding in self.findings)


class _Scanner:
    """The state of one scan."""

    def __init__(self, path: str, limits: Limits) -> None:
        self.report = Report(path)
        self._limits = limits
        self._options = OpenOptions(limits=limits)

    def file(self, source: Source, depth: int = 0) -> str | None:
        """Scan a whole file or member; returns what it is."""
        if depth > self._limits.nesting:
            self._unread(source, None, "archives are nested too deeply")
            return None
        try:
            return self._file(source, depth)
        except SafetensorError as error:
            self._unread(source, error.offset, error.message, error.path)
            return None

    def _unread(
        self, source: Source, offset: int | None, reason: str, path: str | None = None
    ) -> None:
        self.report.unread.append(Unread(path or source.name, offset, reason))

    def _file(self, source: Source, depth: int) -> str | None:
        head = read_bytes(source, 0, min(formats.HEAD, source.size))
        if looks_like_zip(head):
            return self._zip(source, depth)
        self._check_polyglot(source)
        if looks_like_tar(head):
            return self._tar(source, depth)
        packed = numpy_files.compressed_kind(source)
        if packed is not None and not numpy_files.holds_pickle(source):
            self._unread(source, 0, packed)  # no library loads it as it is
        inner = numpy_files.inflated(source, self._limits)
        if inner is not source:
            self.file(inner, depth + 1)
            return "compressed"
        if torch_files.is_legacy(head):
            return self._legacy(source)
        if head.startswith(numpy_files.NPY_MAGIC):
            return self._npy(source)
        if head.startswith(hdf5.HDF5_MAGIC):
            return self._hdf5(source)
        return self._plain(source)

    def _check_polyglot(self, source: Source) -> None:
        """A file that is also a zip archive to whoever looks at its end."""
        size = min(source.size, 66_000)
        if b"PK\x05\x06" in read_bytes(source, source.size - size, size):
            self._unread(
                source, source.size - size, "another reader may take its end for a zip archive"
            )

    def _plain(self, source: Source) -> str | None:
        """What is no archive: a format without code, or a stream of pickles."""
        kind = formats.identify_format(source, self._limits)
        if kind in ("gguf", "tensorflow-v2", "flax-msgpack", "safetensors"):
            formats.FORMATS[kind](source, self._options)  # its reader accounts for all of it
            return kind
        if kind in ("pickle", "paddle"):
            self._pickles(source)
            return kind
        self._unread(source, 0, "the format is not known")
        return None

    # -- archives

    def _zip(self, source: Source, depth: int) -> str | None:
        archive = ZipArchive(source, self._limits)
        root = torch_files.torch_root(archive)
        kind = formats.identify_format(source, self._limits)
        for name, member in archive.members.items():
            if member.is_folder:
                continue
            inner = name.removeprefix(f"{root}/") if root is not None else None
            if inner is not None and self._torch_member(archive, name, inner):
                continue
            if name == hdf5.KERAS_WEIGHTS or not self._code_member(archive, name, kind):
                self.file(archive.open(name), depth + 1)
        return kind

    def _torch_member(self, archive: ZipArchive, name: str, inner: str) -> bool:
        """Deal with a member that PyTorch's writer puts there; False for any other."""
        if inner in _PLAIN_MEMBERS or inner.startswith(("data/", "constants/")):
            return True  # raw bytes that are never interpreted
        if inner.endswith(".pkl") or inner.startswith("traced_inputs/"):
            if inner.endswith(".pkl"):
                archive.verify(name)
                self._pickles(archive.open(name))
            return True
        if inner.startswith("code/") and inner.endswith((".py", ".debug_pkl")):
            if inner.endswith(".py"):
                self._code(
                    archive.open(name), "TorchScript", "TorchScript code, run when it is called"
                )
            return True
        return False

    def _code_member(self, archive: ZipArchive, name: str, kind: str | None) -> bool:
        """Deal with members that hold code or text; False for any other."""
        source = archive.open(name)
        if kind == "keras" and name in ("config.json", "metadata.json"):
            if name == "config.json":
                self._keras_config(source)
            return True
        if name.endswith((".py", ".pyc", ".so", ".dll", ".pyd")):
            self._code(source, "file", "code in the archive")
            return True
        return False

    def _tar(self, source: Source, depth: int) -> str | None:
        archive = TarArchive(source, self._limits)
        if not torch_tar.is_torch_tar(archive):
            for name in archive.members:
                self.file(archive.open(name), depth + 1)
            return "tar"
        for name in archive.members:
            if name in ("storages", "tensors"):
                # Their pickles stand between raw bytes, which only the reader can tell apart.
                self._first_pickle(archive.open(name))
            else:
                self._pickles(archive.open(name))
        for pickle in torch_tar.stream_pickles(archive, self._options):
            self._findings(pickle, archive.source.name)
        torch_tar.read_tar(source, self._options)
        return "torch-tar"

    def _first_pickle(self, source: Source) -> None:
        self._pickle(source, 0)

    def _legacy(self, source: Source) -> str:
        offset: int | None = 0
        for _ in range(5):
            offset = self._pickle(source, offset)
            if offset is None:
                return "torch-legacy"
        torch_files.read_legacy(source, self._options)  # accounts for the rest
        return "torch-legacy"

    def _npy(self, source: Source) -> str:
        start = numpy_files.object_start(source)
        if start is not None:
            self._pickles(source, start)
        else:
            numpy_files.read_npy(source, self._options)
        return "npy"

    # -- code that is no pickle

    def _code(self, source: Source, module: str, reason: str) -> None:
        name = source.name.rsplit("!", 1)[-1]
        self.report.findings.append(
            Finding(source.name, 0, "CODE", module, name, "", Grade.UNKNOWN, reason)
        )

    def _keras_config(self, source: Source) -> None:
        self._code(source, "keras", "a model configuration; building it can run code")
        if _contains(source, b'"Lambda"'):
            self.report.findings.append(
                Finding(source.name, 0, "CODE", "keras", "Lambda", "", Grade.DANGEROUS,
                        "a Lambda layer holds compiled Python code")
            )  # fmt: skip

    def _hdf5(self, source: Source) -> str:
        if _contains(source, b"model_config"):
            self._keras_config(source)
        hdf5.read_hdf5(source, self._options)
        return "hdf5"

    # -- pickles

    def _pickles(self, source: Source, offset: int = 0) -> None:
        """All pickles of a stream, which must fill it."""
        at: int | None = offset
        while at is not None and at < source.size:
            at = self._pickle(source, at)

    def _pickle(self, source: Source, offset: int | None) -> int | None:
        """Scan one pickle; the offset behind it, or None if it could not be read to its end."""
        arrays = numpy_files.JoblibArrays(self._limits)
        machine = PickleMachine(
            source,
            offset=offset or 0,
            constructors={**OBJECT_CONSTRUCTORS, **NUMPY_CONSTRUCTORS},
            on_build=arrays,
            limits=self._limits,
        )
        try:
            found = machine.run()
        except SafetensorError as error:
            self._findings(machine.result, source.name)
            self._unread(source, error.offset, error.message)
            return None
        finally:
            for inner in arrays.inner:
                self._findings(inner, source.name)
        self.report.pickles += 1
        self._findings(found, source.name)
        return found.end

    def _findings(self, pickle: Pickle, path: str) -> None:
        called = {id(call.function) for call in pickle.calls}
        found = [_import_finding(node, path) for node in pickle.globals if id(node) not in called]
        for call in pickle.calls:
            grade, reason = grade_call(call)
            found.append(_finding(path, call, grade, reason))
            if _names(call.function) in NESTED_LOADERS:
                self._nested(call, path)
        for effect in pickle.effects:
            grade, reason = grade_effect(effect)
            if isinstance(effect.target, Call):
                continue  # the call's own finding stands for it
            module, name = _names(effect.target)
            found.append(
                Finding(path, effect.offset, effect.opcode, module, name, "", grade, reason)
            )
        self.report.findings += sorted(found, key=lambda finding: finding.offset)

    def _nested(self, call: Call, path: str) -> None:
        """Byte strings that the call would load are files of their own."""
        for argument in call.arguments:
            data = as_bytes(argument)
            if data is None or (isinstance(data, bytes) and len(data) < 2):
                continue
            name = f"{path}!bytes@{call.offset}"
            inner = BytesSource(data, name) if isinstance(data, bytes) else blob_source(data, name)
            depth = path.count("!bytes@") + 1
            self.file(inner, depth)


def _names(node: Value) -> tuple[str | None, str | None]:
    return (node.module, node.name) if isinstance(node, Global) else (None, None)


def _finding(path: str, call: Call, grade: Grade, reason: str) -> Finding:
    module, name = _names(call.function)
    text = summary(call.arguments, _ARGUMENTS_MAX)
    return Finding(path, call.offset, call.opcode, module, name, text, grade, reason)


def _import_finding(node: Global, path: str) -> Finding:
    grade, reason = grade_global(node)
    return Finding(path, node.offset, node.opcode, node.module, node.name, "", grade, reason)


def _contains(source: Source, needle: bytes) -> bool:
    block = 1 << 20
    for offset in range(0, source.size, block):
        if needle in read_bytes(source, offset, min(block + len(needle), source.size - offset)):
            return True
    return False


def scan(
    target: str | os.PathLike[str] | bytes | Source, *, limits: Limits | None = None
) -> Report:
    """Report every call that loading a file with its own library would make.

    Looks into zip and tar archives, compressed streams, arrays of objects, several pickles in one
    stream, and byte strings that are handed to a loader. Nothing is imported or called.

    Args:
        target: Path, bytes, or an opened source.
        limits: What the file may cost; see `Limits`.

    Raises:
        OSError: The file cannot be opened or read. What is wrong with its contents is in the report.

    >>> import pickle
    >>> scan(pickle.dumps(print)).verdict
    'dangerous'
    """
    chosen = limits or DEFAULT_LIMITS
    if isinstance(target, Source):
        source = target
    elif isinstance(target, bytes):
        source = BytesSource(target, "<bytes>")
    else:
        source = open_source(target, backend="pread")
    scanner = _Scanner(source.name, chosen)
    scanner.report.format = scanner.file(source)
    return scanner.report


def scan_folder(path: str | os.PathLike[str], *, limits: Limits | None = None) -> Iterator[Report]:
    """Scan the files below a folder that may hold pickles, by their suffix or first bytes.

    Symbolic links are not followed out of the folder. Files of other kinds are passed over.
    """
    for folder, folders, names in os.walk(path):
        folders.sort()
        for name in sorted(names):
            full = os.path.join(folder, name)
            if os.path.isfile(full) and _may_hold_pickles(full):
                yield scan(full, limits=limits)


def _may_hold_pickles(path: str) -> bool:
    if path.endswith(_PICKLE_SUFFIXES):
        return True
    try:
        with open(path, "rb") as file:
            head = file.read(512)
    except OSError:
        return True  # `scan` will say what is wrong with it
    known = looks_like_zip(head) or torch_files.is_legacy(head) or looks_like_tar(head)
    binary = head[:1] == b"\x80" or head.startswith((numpy_files.NPY_MAGIC, hdf5.HDF5_MAGIC))
    packed = any(head.startswith(magic) for magic, _ in numpy_files.COMPRESSED)
    return known or binary or packed
