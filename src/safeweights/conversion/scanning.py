"""What loading a file would execute, found without executing it.

Every pickle in the file, however it is wrapped, is run on the symbolic machine, and each call,
import and effect is graded. Rules: a file is clean only if every byte of it was accounted for, every
pickle was read to its end, and everything in them is known to build data. What could not be read is
reported as such, with what was found up to there.

A name says nothing about which loader a user chooses. So each file is also read as an unpickler
would read it from its first byte, and a file that two readers accept is not clean.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from ..errors import FormatError, SafetensorError, quote
from ..format.header import PREFIX
from ..storage import BytesSource, Source, open_source
from ..storage.limits import DEFAULT_LIMITS, Limits
from ..storage.windows import Buffered, Window, read_bytes
from ..trust.verifier import resolve
from . import formats
from .archives.tar_reader import TarArchive, looks_like_tar
from .archives.zip_reader import ZipArchive, ends_in_zip, looks_like_zip
from .disguises import hdf5_start
from .distributed.finding import ITEM_SUFFIX
from .foreign import ALL_CONSTRUCTORS, ForeignCheckpoint, OpenOptions
from .grading import (
    NESTED_LOADERS,
    Grade,
    grade_call,
    grade_effect,
    grade_global,
    is_nested_file,
)
from .json_text import DuplicateKeyError
from .keras_settings import MAX_CONFIG, keras_findings
from .opening import FORMAT_HEAD, identify
from .pickles.flatten import summary, unfolded_size
from .pickles.machine import Pickle, PickleMachine
from .pickles.nodes import Call, DictNode, Global, Value
from .pickles.numpy_nodes import RefusedNode, blob_source
from .pickles.object_nodes import as_bytes
from .pickles.storages import Storages, located
from .pickles.torch_nodes import QuantisedNode, TensorNode
from .probes import PICKLE_STARTS, is_safetensors, is_text, occurrences
from .readers import numpy_files, signatures, torch_files
from .scan_report import ScanFinding, ScanReport, Unread
from .torchscript import MAX_CODE, torchscript_findings

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["scan", "scan_other_readers"]

Persistent = Callable[[Value], Value]
GradeReason = tuple[Grade, str]

_ARGUMENTS_MAX: Final = 160
_KEPT_FINDINGS: Final = 50_000
_KEPT_UNREAD: Final = 1000
_LOADS_MAX: Final = 100_000
_STEPS_PER_FILE: Final = 200
_STEPS_PER_PICKLE: Final = 200
_PICKLE_KINDS: Final = ("pickle", "paddle", "torch-legacy")
_SAID: Final = (Grade.DATA, "")
_DATA: Final = (Grade.DATA, "")
_SCRIPT_CLASSES: Final = "__torch__."
_CUSTOM_CLASSES: Final = "__torch__.torch.classes."
"""Classes in C++ that have a namespace of their own in TorchScript."""
_CERTAIN: Final = ("pickle", "truncated")
"""Rules of errors at which CPython's unpickler stops as well."""
_PLAIN_MEMBERS: Final = frozenset(
    {
        "byteorder",
        "version",
        ".data/version",
        ".format_version",
        ".storage_alignment",
        ".data/serialization_id",
    }
)
_PLAIN_MAX: Final = 65
_PLAIN_TEXT: Final = re.compile(rb"[0-9a-z]{1,64}\n?").fullmatch
"""What such a member holds: a number or a word, which no reader takes for anything else."""


class _Scanner:
    """The state of one scan: one budget for everything in the file, however it is nested."""

    def __init__(self, path: str, limits: Limits) -> None:
        self.report = ScanReport(path)
        self._limits = limits if limits.used is not None else limits.counted()
        self._options = OpenOptions(limits=self._limits)
        self._depth = -1
        self._nested: dict[object, tuple[object, int]] = {}
        self._loads = 0
        self._constructors = {
            **ALL_CONSTRUCTORS,
            ("torch.storage", "_load_from_bytes"): self._load_from_bytes,
        }
        self._storages = torch_files.NestedStorages(self._limits)  # of the pickle that is read
        self._place = path
        self._script = False  # whether the archive that is read is TorchScript
        self._kept: Counter[Grade] = Counter()

    def file(self, source: Source) -> str | None:
        """Scan a whole file or member; returns its format."""
        if self._depth >= self._limits.nesting:
            self._unread(source, None, "archives are nested too deeply")
            return None
        self._depth += 1
        script, self._script = self._script, False
        try:
            self._limits.spend("opcodes", _STEPS_PER_FILE, source.name)
            return self._file(source)
        except SafetensorError as error:
            self._fault(source, error)
            return None
        finally:
            self._depth -= 1
            self._script = script

    def _unread(
        self, source: Source, offset: int | None, reason: str, path: str | None = None,
        *, pickled: bool = False,
    ) -> None:  # fmt: skip
        if len(self.report.unread) < _KEPT_UNREAD:
            self.report.unread.append(Unread(path or source.name, offset, reason, pickled))

    def _fault(self, source: Source, error: SafetensorError) -> None:
        self._unread(source, error.offset, error.message, error.path)

    def _file(self, source: Source) -> str | None:
        head = read_bytes(source, 0, min(FORMAT_HEAD, source.size))
        shape, read = self._reader(source, head)
        kind = None
        try:
            kind = read(source)
        except SafetensorError as error:
            self._fault(source, error)
        self._other_readers(source, head, kind or shape)
        return kind

    def _reader(self, source: Source, head: bytes) -> tuple[str, Callable[[Source], str | None]]:
        """The method that reads a file which begins with `head`, and what it is for."""
        if source.name.endswith(ITEM_SUFFIX):
            return "torch-dcp", self._items
        if looks_like_zip(head):
            return "zip", self._zip
        if looks_like_tar(head):
            return "tar", self._tar
        if numpy_files.compressed_kind(source) is not None:
            return "compressed", self._compressed
        if torch_files.is_legacy(head):
            return "torch-legacy", self._legacy
        if head.startswith(signatures.NPY_MAGIC):
            return "npy", self._npy
        if head.startswith(signatures.HDF5_MAGIC):
            return "hdf5", self._hdf5
        return "plain", self._plain

    def beside_safetensors(self, source: Source) -> None:
        """Scan a file that is known to be valid safetensors."""
        self._depth = 0
        self.report.format = "safetensors"
        head = read_bytes(source, 0, min(FORMAT_HEAD, source.size))
        try:
            self._other_readers(source, head, "safetensors")
        except SafetensorError as error:
            self._fault(source, error)

    def _other_readers(self, source: Source, head: bytes, kind: str | None) -> None:
        """Report what readers of other formats than `kind` would make of the same bytes."""
        if kind not in _PICKLE_KINDS and head.startswith(PICKLE_STARTS):
            self._as_pickle(source)
        zipped = looks_like_zip(head)
        others = {
            "zip": not zipped and self._depth == 0 and ends_in_zip(source),
            "tar": kind not in ("tar", "torch-tar") and looks_like_tar(head),
            "hdf5": kind != "hdf5" and hdf5_start(source) is not None,
            "tensorflow-v2": kind != "tensorflow-v2" and signatures.is_table(source),
            "safetensors": kind != "safetensors" and not zipped and is_safetensors(source),
        }
        for other in (name for name, found in others.items() if found):
            self._unread(source, None, f"another reader takes the same bytes for a {other} file")

    def _plain(self, source: Source) -> str | None:
        """A format without archives: one without code, or a stream of pickles."""
        head = read_bytes(source, 0, min(FORMAT_HEAD, source.size))
        kind = identify(source, head, self._limits, damaged=False)
        if kind in ("gguf", "tensorflow-v2", "flax-msgpack", "safetensors"):
            formats.FORMATS[kind](source, self._options)  # its reader accounts for all of it
            return kind
        if kind in ("pickle", "paddle"):
            self._pickles(source)
            return kind
        if self._depth > 0 and is_text(source):
            return "text"  # a README in an archive; what it could be as a pickle is reported beside
        self._unread(source, 0, "the format is not known")
        return None

    def _items(self, source: Source) -> str | None:
        """The items of a file of a distributed checkpoint, which its tables list."""
        from .distributed.dcp import spans_in

        try:
            spans = spans_in(*os.path.split(source.name), self._limits)
        except (OSError, SafetensorError) as error:
            self._unread(source, 0, f"the tables that say what is in it cannot be read: {error}")
            return None
        end = 0
        for offset, length in [*spans, (source.size, 0)]:
            if offset != end or offset + length > source.size:
                self._unread(source, end, "the tables do not say what these bytes are")
                return None
            end = offset + length
            if length:
                self.file(Window(source, offset, length, f"{source.name}!{offset}"))
        return "torch-dcp"

    def _compressed(self, source: Source) -> str:
        if not numpy_files.holds_pickle(source):
            known = numpy_files.compressed_kind(source)
            self._unread(source, 0, known or "compressed")  # no library loads it as it is
        self.file(numpy_files.inflated(source, self._limits))
        return "compressed"

    # -- archives

    def _zip(self, source: Source) -> str | None:
        archive = ZipArchive(source, self._limits)
        kind = formats.identify_zip(archive)
        read: set[str] = set()
        if kind == "torch-zip":
            read = self._torch_zip(archive, torch_files.torch_root(archive) or "")
        for name, member in archive.members.items():
            if member.is_folder or name in read:
                continue
            if name == signatures.KERAS_WEIGHTS or not self._code_member(archive, name, kind):
                self.file(archive.open(name))
        return kind

    def _torch_zip(self, archive: ZipArchive, root: str) -> set[str]:
        """Scan the members that PyTorch reads; their names."""
        self._script = f"{root}/constants.pkl" in archive.members  # until the end of `file`
        storages = torch_files.ZipStorages(archive, root)
        read = {
            name
            for name in (f"{root}/{inner}" for inner in _PLAIN_MEMBERS)
            if name in archive.members
            and archive.members[name].size <= _PLAIN_MAX
            and _PLAIN_TEXT(read_bytes(archive.open(name), 0, archive.members[name].size))
        }
        for name in archive.members:
            inner = name.removeprefix(f"{root}/")
            if inner.endswith(".pkl") and "/" not in inner:
                read.add(name)
                archive.verify(name)
                references = torch_files.References(f"{inner.removesuffix('.pkl')}/")
                examples = inner == "traced_inputs.pkl"  # what a module was traced with
                stored = torch_files.Shapes(storages) if examples else storages
                self._torch_pickles(archive.open(name), references, stored)
                read |= {f"{root}/{key}" for key in references.storages}
        return read

    def _torch_pickles(
        self, source: Source, references: torch_files.References, storages: Storages
    ) -> None:
        at: int | None = 0
        while at is not None and at < source.size:
            found = self._pickle(source, at, references, storages)
            at = None if found is None else found.end
        try:
            for storage in references.storages.values():
                storages.find(storage)
        except SafetensorError as error:
            self._fault(source, error)

    def _check_tensors(self, pickle: Pickle, storages: Storages, source: Source) -> None:
        """Report views that contradict the storages of the file."""
        try:
            for call in pickle.calls:
                node = call.result
                node = node.tensor if isinstance(node, QuantisedNode) else node
                if isinstance(node, TensorNode):
                    label = f"at byte {call.offset}"
                    located(node, storages, label).check(label, self._limits)
        except SafetensorError as error:
            self._fault(source, error)

    def _code_member(self, archive: ZipArchive, name: str, kind: str | None) -> bool:
        """Deal with members that hold code or text; False for any other."""
        if kind == "keras" and name in ("config.json", "metadata.json"):
            if name == "config.json":
                self._keras_config(archive.open(name))
            return True
        if kind == "torch-zip" and "/code/" in name and name.endswith(".py"):
            source = archive.open(name)
            code = read_bytes(source, 0, min(source.size, MAX_CODE + 1))
            self._limits.spend("opcodes", len(code), source.name)  # a token takes about a step
            for _, reason in torchscript_findings(code):
                self._code(source, "TorchScript", reason)
            return True
        if name.endswith((".py", ".pyc", ".so", ".dll", ".pyd")):
            self._code(archive.open(name), "file", "code in the archive")
            return True
        return False

    def _tar(self, source: Source) -> str | None:
        archive = TarArchive(source, self._limits)
        if not signatures.is_torch_tar(archive):
            for name in archive.members:
                self.file(archive.open(name))
            return "tar"
        from .readers import torch_tar

        found = torch_tar.tar_pickles(archive, self._options)
        for pickle, member in found.pickles:
            self.report.pickles += 1
            self._findings(pickle, member)
            self._check_size(pickle, source)
        if found.error is not None:
            # As far as each stream goes, and why they go no further.
            for name in torch_tar.STREAMS:
                self._pickle(archive.open(name), 0, lambda _: NotImplemented)
            self._unread(source, found.error.offset, found.error.message, found.error.path)
        for name in archive.members.keys() - set(torch_tar.STREAMS):
            self._pickles(archive.open(name))
        return "torch-tar"

    def _legacy(self, source: Source) -> str:
        at: int | None = 0
        try:
            pickles = list(torch_files.legacy_pickles(source, self._limits))
            references = pickles[3][1]
            storages = torch_files.place_storages(source, pickles[4][0], references)
        except SafetensorError as error:
            # As far as it goes, and why it goes no further.
            for _ in range(5):
                found = (
                    self._pickle(source, at, torch_files.References()) if at is not None else None
                )
                at = found.end if found is not None else None
            self._fault(source, error)
            return "torch-legacy"
        self.report.pickles += len(pickles)
        for pickle, _ in pickles:
            self._findings(pickle, source.name)
            self._check_size(pickle, source)
        self._check_tensors(pickles[3][0], storages, source)
        return "torch-legacy"

    def _npy(self, source: Source) -> str:
        header = numpy_files.npy_header(source, self._limits)
        if header.dtype.is_object:
            self._pickles(source, header.start)
        else:
            numpy_files.npy_numbers(source, header)
        return "npy"

    # -- code that is not a pickle

    def _code(self, source: Source, module: str, reason: str) -> None:
        name = source.name.rsplit("!", 1)[-1]
        self._add(ScanFinding(source.name, 0, "CODE", module, name, "", Grade.UNKNOWN, reason))

    def _keras_config(self, source: Source) -> None:
        """Report the classes of a model configuration that are not known to hold values only."""
        if source.size > MAX_CONFIG:
            self._unread(
                source, 0, f"its {source.size:,} bytes of configuration are too many to read"
            )
            return
        name = source.name.rsplit("!", 1)[-1]
        try:
            found = list(keras_findings(read_bytes(source, 0, source.size)))
        except (ValueError, RecursionError) as error:
            reason = str(error) if isinstance(error, DuplicateKeyError) else type(error).__name__
            self._unread(source, 0, f"the configuration is not JSON: {reason}")
            return
        for grade, reason in found:
            self._add(ScanFinding(source.name, 0, "CODE", "keras", name, "", grade, reason))

    def _hdf5(self, source: Source) -> str:
        from .readers import hdf5

        found = hdf5.read_hdf5(source, self._options)
        for name, reason in _unread_datasets(found):
            self._unread(source, None, f"dataset {quote(name)} was not read: {reason}")
        configs: Counter[str] = Counter()
        for name, data in hdf5.byte_strings(source, self._limits):
            inner = BytesSource(data, f"{source.name}!{name}")
            if name in hdf5.KERAS_CONFIGS:
                configs[name] += 1
                self._keras_config(inner)
            # PyTables and pandas unpickle such strings; what is not a pickle stays text for them.
            self._limits.spend("opcodes", _STEPS_PER_PICKLE, source.name)
            self._as_pickle(inner, second=False)
        for name in hdf5.KERAS_CONFIGS:
            if occurrences(source, name[1:].encode()) > configs[name]:
                reason = "a model configuration in a place or of a type that is not read"
                self._code(source, "keras", reason)
        return "hdf5"

    # -- pickles

    def _pickles(self, source: Source, offset: int = 0) -> None:
        """All pickles of a stream, which must fill it."""
        at: int | None = offset
        while at is not None and at < source.size:
            found = self._pickle(source, at)
            at = None if found is None else found.end

    def _pickle(
        self,
        source: Source,
        offset: int,
        persistent: Persistent | None = None,
        storages: Storages | None = None,
    ) -> Pickle | None:
        """Scan one pickle; None if it could not be read to its end."""
        arrays = numpy_files.JoblibArrays(self._limits)
        machine = self._machine(source, offset, persistent, arrays)
        nested = self._storages
        try:
            self._limits.spend("opcodes", _STEPS_PER_PICKLE, source.name, offset)
            found = machine.run()
        except SafetensorError as error:
            self._findings(machine.result, source.name)
            pickled = not (_stops_too(error) or _is_by_chance(source, machine, error))
            self._unread(source, error.offset, error.message, pickled=pickled)
            found = None
        for inner in arrays.inner:
            self._findings(inner, source.name)
        if arrays.count:
            # Loaders other than joblib's take the bytes of its arrays for opcodes.
            self._as_pickle(source, offset)
        if found is None:
            return None
        self.report.pickles += 1
        self._findings(found, source.name)
        self._check_size(found, source)
        self._check_tensors(found, storages or nested, source)
        return found

    def _machine(
        self,
        source: Source,
        offset: int,
        persistent: Persistent | None,
        arrays: numpy_files.JoblibArrays | None = None,
    ) -> PickleMachine:
        self._storages, self._place = torch_files.NestedStorages(self._limits), source.name
        return PickleMachine(
            source,
            offset=offset,
            constructors=self._constructors,
            persistent=persistent,
            on_build=arrays,
            limits=self._limits,
        )

    def _load_from_bytes(self, call: Call) -> Value:
        """Scan a file in a byte string, and describe the storage in it."""
        if not is_nested_file(call):
            return NotImplemented
        storages, place = self._storages, self._place
        self._scan_nested(call, place)
        self._storages, self._place = storages, place
        return storages.load(call)

    def _as_pickle(self, source: Source, offset: int = 0, *, second: bool = True) -> None:
        """Report what an unpickler that starts at `offset` would do until it fails.

        Args:
            source: The bytes.
            offset: Where it starts.
            second: The bytes were also read as something else.
        """
        machine = self._machine(source, offset, _torch_only)
        machine.arguments.probing = True
        if self.report.unread and self._limits.left("opcodes") < _STEPS_PER_PICKLE:
            return  # which was said
        try:
            found = machine.run()
        except SafetensorError as error:
            found = machine.result
            stops_too = _stops_too(error)
            if stops_too and not found.calls and all(n.opcode == "EXT" for n in found.globals):
                return  # a name that the process registered itself, unused: one header length in 85
            seen = found.globals or found.persistent
            if not stops_too and (seen or not _is_by_chance(source, machine, error)):
                reason = f"read as a pickle: {error.message}"
                self._unread(source, error.offset, reason, pickled=True)
        else:
            if found.globals and second:
                self._unread(source, offset, "another reader takes the same bytes for a pickle")
        if not found.globals:
            return
        known = {(f.path, f.offset, f.opcode) for f in self.report.findings if f.grade}
        for finding in self._graded(found, source.name):
            if finding.grade and (finding.path, finding.offset, finding.opcode) not in known:
                self._add(finding)

    def _check_size(self, pickle: Pickle, source: Source) -> None:
        bound = self._limits.expansion
        if unfolded_size(pickle.value, bound) >= bound:
            reason = (
                f"its objects refer to each other so often that they unfold to {bound:,} or more"
            )
            self._unread(source, pickle.start, reason)
        if pickle.persistent:
            reason = "it refers to objects outside of it, which nothing here can resolve"
            self._unread(source, pickle.persistent[0].offset, reason)

    def _findings(self, pickle: Pickle, path: str) -> None:
        for finding in self._graded(pickle, path):
            self._add(finding)
        for call in pickle.calls:
            if _names(call.function) in NESTED_LOADERS:
                self._scan_nested(call, path)

    def _graded(self, pickle: Pickle, path: str) -> list[ScanFinding]:
        """What the pickle would do, in its order; no more than a report keeps."""
        room = {grade: _KEPT_FINDINGS - self._kept[grade] for grade in Grade}
        found: list[ScanFinding] = []

        def add(offset: int, opcode: str, node: Value, arguments: Value, why: GradeReason) -> None:
            grade, reason = why
            room[grade] -= 1
            if room[grade] >= 0:
                module, name = _names(node)
                shown = grade and arguments is not None
                text = summary(arguments, _ARGUMENTS_MAX) if shown else ""
                found.append(ScanFinding(path, offset, opcode, module, name, text, grade, reason))

        called = {id(call.function) for call in pickle.calls}
        graded: dict[object, GradeReason] = {}  # millions of opcodes may say the same
        for node in pickle.globals:
            if id(node) not in called:
                key: object = (node.module, node.name, node.opcode)
                if (why := graded.get(key)) is None:
                    why = graded[key] = _DATA if self._in_script(node) else grade_global(node)
                add(node.offset, node.opcode, node, None, why)
        for call in pickle.calls:
            why = _DATA if self._is_script_object(call) else grade_call(call)
            add(call.offset, call.opcode, call.function, call.arguments, why)
        for effect in pickle.effects:
            target = effect.target
            key = (id(target), effect.opcode)
            if (why := graded.get(key)) is None:
                built = effect.opcode == "BUILD" and self._is_script_object(target)
                why = graded[key] = _SAID if built else grade_effect(effect)
                if isinstance(target, Call) and why[0] <= grade_call(target)[0]:
                    why = graded[key] = _SAID  # the call's own finding stands for it
            if why is not _SAID:
                node = target.function if isinstance(target, Call) else target
                add(effect.offset, effect.opcode, node, None, why)
        return sorted(found, key=lambda finding: finding.offset)

    def _in_script(self, node: Value) -> bool:
        """Whether a name is that of a class that the archive defines itself, in code that is read, too."""
        module = node.module if isinstance(node, Global) else None
        return (
            self._script
            and isinstance(module, str)
            and f"{module}.".startswith(_SCRIPT_CLASSES)
            and not f"{module}.".startswith(_CUSTOM_CLASSES)
        )

    def _is_script_object(self, call: Value) -> bool:
        """Whether a call makes an object of such a class, which has attributes and nothing else."""
        return (
            isinstance(call, Call)
            and self._in_script(call.function)
            and call.opcode == "NEWOBJ"
            and not (call.arguments or call.items or call.pairs)
            and all(isinstance(state, DictNode) for state in call.state)
            and len(call.state) < 2
        )

    def _add(self, finding: ScanFinding) -> None:
        self._kept[finding.grade] += 1
        self.report.findings.append(finding)

    def _scan_nested(self, call: Call, path: str) -> None:
        """Scan the byte strings that the call would load as files, each once; count the loads."""
        for argument in call.arguments:
            data = as_bytes(argument)
            if data is None or (isinstance(data, bytes) and len(data) < 2):
                continue
            key = data if isinstance(data, bytes) else (id(data.source), data.offset, data.length)
            if key not in self._nested:
                # `data` is kept: its source must live, or another may get its id.
                self._nested[key] = data, 1
                before = self._loads
                self.file(blob_source(data, f"{path}!bytes@{call.offset}"))
                self._nested[key] = data, 1 + self._loads - before
            loads = self._nested[key][1]
            if self._loads <= _LOADS_MAX < self._loads + loads:
                reason = f"files in byte strings load each other {_LOADS_MAX:,} times or more"
                self._unread(BytesSource(b"", path), call.offset, reason)
            self._loads += loads


def _stops_too(error: SafetensorError) -> bool:
    """Whether an unpickler stops where the machine did."""
    return isinstance(error, FormatError) and error.rule in _CERTAIN


def _is_by_chance(source: Source, machine: PickleMachine, error: SafetensorError) -> bool:
    """Whether only the unpickler written in Python goes on, which imports one name more at most.

    Headers of some lengths begin with FRAME, which announces more bytes than there are; the last line of a
    text may begin with c or i, and have no line break.
    """
    at = error.offset
    if not isinstance(error, FormatError) or error.rule != "pickle-strict" or at is None:
        return False
    code = read_bytes(source, at, 1)
    if code == b"\x95":
        return at < PREFIX
    return code == b"c" or (code == b"i" and not machine.marks)


def _torch_only(value: Value) -> Value:
    """What unpicklers do with a persistent id: PyTorch's takes tuples, all others stop."""
    if not isinstance(value, (tuple, Call)):
        raise FormatError("nothing resolves this persistent id", rule="pickle")
    return NotImplemented


def _unread_datasets(found: ForeignCheckpoint) -> Iterator[tuple[str, str]]:
    """Name and reason of each dataset of numbers whose values are elsewhere or cannot be read."""
    for name, node in found.nodes.items():
        if isinstance(node, RefusedNode) and not node.dtype:
            yield name, node.reason


def _names(node: Value) -> tuple[str | None, str | None]:
    return (node.module, node.name) if isinstance(node, Global) else (None, None)


def scan(
    target: str | os.PathLike[str] | bytes | Source,
    *,
    identity: Any = None,
    limits: Limits | None = None,
) -> ScanReport:
    """Report every call that loading a file with its own library would make.

    Looks into zip and tar archives, compressed streams, arrays of objects, several pickles in one
    stream, and byte strings that are handed to a loader. Nothing is imported or called.

    Args:
        target: Path, bytes, or an opened source.
        identity: Who opens an encrypted file; see `safeweights.open`.
        limits: What the file may cost; see `Limits`. What `Limits.counted` gave goes on counting.

    Raises:
        OSError: The file cannot be opened or read. What is wrong with its contents is in the report.
        AccessError: The identity does not open it.

    >>> import pickle
    >>> scan(pickle.dumps(print)).verdict
    'dangerous'
    """
    chosen = limits or DEFAULT_LIMITS
    if identity is not None:
        opened, verify = resolve(target, None, identity)
        source = open_source(opened, backend="pread", verify=verify)
    elif isinstance(target, Source):
        source = target
    elif isinstance(target, bytes):
        source = BytesSource(target, "<bytes>")
    else:
        source = open_source(target, backend="pread")
    scanner = _Scanner(source.name, chosen)
    scanner.report.format = scanner.file(Buffered(source))
    return scanner.report


def scan_other_readers(source: Source, *, limits: Limits | None = None) -> ScanReport:
    """Report what readers of other formats would make of a valid safetensors file.

    Such a file can be a pickle too, whose first opcode is the first byte of the header's length, or
    end in a zip archive that ``python FILE`` runs. The report of an ordinary file is clean. Cost: a
    few reads of the beginning and the end; a file that is a pickle is read as one.

    Raises:
        OSError: The file cannot be read.
    """
    scanner = _Scanner(source.name, limits or DEFAULT_LIMITS)
    scanner.beside_safetensors(Buffered(source))
    return scanner.report
