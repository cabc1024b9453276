"""Delta checkpoints: folders that say how a model differs from the one before.

The folder is that of slime, miles and sglang (`weight_vNNNNNN/`): safetensors files in which each tensor
that changed is one zstd frame (bytes, U8), with the checksum of its new bytes in ``__metadata__``; and an
index whose ``metadata`` says version, base version, encoding, compression and checksum. A tensor that the
index does not list did not change. The index is written last: without it there is no delta.

Beside it, `safeweights.delta.json` has the SHA-256 of every tensor of the new model, and two roots, of the
base and of the new model: the SHA-256 over names, types, shapes and digests of all tensors. With it, also
what did not change is checked, and a chain whose links do not fit is refused when it is opened. Programs
that do not know the file ignore it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ..checkpoint import Checkpoint, MemoryTensor, SafetensorsFile, Tensor
from ..checkpoint.opening import find_files
from ..checkpoint.saving import serialized
from ..checkpoint.shardindex import INDEX_SUFFIX, SUFFIX, index_text, is_delta, parse_index
from ..checkpoint.sharding import shifted
from ..conversion.destination import (
    FOLDER_NAME,
    Destination,
    OutputFile,
    require_whole,
    split_output,
)
from ..conversion.foreign import ForeignCheckpoint
from ..conversion.opening import open as open_any
from ..derived.delta import BLOCK, ENCODINGS, applied, checked, checksum, compressor, encode
from ..errors import FormatError, UnsupportedError, quote
from ..format.strictjson import JSONError, Reader
from ..storage import Handles, place_of
from ..storage.parallel import in_threads
from ..storage.places import exists, join, parent
from ..trust.errors import AccessError
from ..trust.files import ENCRYPTED
from ..trust.verifier import resolve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from ..storage import Source, Store
    from ..storage.places import Place

__all__ = ["DeltaReport", "apply_delta", "compact_deltas", "make_delta", "open_delta"]

SIDECAR: Final = "safeweights.delta.json"
_SIDECAR_MAX: Final = 1 << 28
_FOLDER: Final = re.compile(r"weight_v([0-9]{6,18})").fullmatch
_VERSION: Final = re.compile(r"[0-9]{1,18}").fullmatch
_CHAIN_MAX: Final = 10_000


@dataclass(frozen=True)
class DeltaReport:
    """What was written.

    Attributes:
        path: The folder or file.
        version: The version that it gives; empty if there was no delta to apply.
        changed: How many tensors the delta, or the chain of them, changes.
        tensors: Of how many.
        nbytes: Bytes of the delta's file, or of the tensors of the model that was written.
        whole: Bytes of the new model.
    """

    path: str
    version: str
    changed: int
    tensors: int
    nbytes: int
    whole: int


# ---- reading


def open_delta(
    target: str | os.PathLike[str],
    base: Any = None,
    *,
    trust: object = None,
    identity: Any = None,
    backend: str = "mmap",
) -> Checkpoint:
    """The model that a delta, or a chain of deltas, gives over its base; nothing is read yet.

    Args:
        target: A folder with a delta; or one with folders ``weight_vNNNNNN``, of which the newest counts.
        base: What the oldest delta is based on: a path, or a `Checkpoint`. Folders beside `target` that
            have an earlier version are found by themselves.
        trust: Requirements for every folder of the chain, and for `base` if it is a path.
        identity: See `safeweights.open`.
        backend: See `safeweights.open`.

    Raises:
        FormatError: The chain does not fit together, or not to its base (rule ``delta``). That the bytes
            of the base are others is found when a tensor is read.
        UnsupportedError: The base is needed and not given; an encoding or checksum is not known.
        OSError: Something cannot be opened.
    """
    given: dict[str, Any] = {"trust": trust, "identity": identity, "backend": backend}
    return _open_over_base(target, base, given)[0]


def _open_over_base(
    target: str | os.PathLike[str], base: Any, given: Mapping[str, Any]
) -> tuple[Checkpoint, Checkpoint, list[_Delta]]:
    """See `open_delta`: the new model, the one under the chain, and the chain, newest first."""
    chain, whole = _chain(os.fsdecode(target), given)
    if whole is not None:
        model = open_any(whole, **given)
    elif isinstance(base, Checkpoint):
        model = base
    elif base is None:
        raise UnsupportedError(
            f"the delta is based on version {chain[-1].base_version}, which is not beside it: say where it "
            "is (base=, --base)",
            path=chain[-1].path,
        )
    else:
        model = open_any(base, **given)
    new = model
    for each in reversed(chain):
        new = each.over(new)
    return new, model, chain


def _chain(target: str, given: Mapping[str, Any]) -> tuple[list[_Delta], str | None]:
    """The deltas that lead to a version, newest first; and the whole model under them, if it is beside.

    Raises:
        FormatError: They do not fit together.
    """
    path = _newest(target)
    chain: list[_Delta] = []
    handles = Handles()  # a chain may have more files than this process may have open
    while (delta := _Delta.open(path, given, handles)) is not None:
        if len(chain) == _CHAIN_MAX or (chain and delta.version != chain[-1].base_version):
            raise FormatError("the chain of deltas does not end", rule="delta", path=path)
        if chain:
            chain[-1].check_after(delta)
        chain.append(delta)
        before = join(parent(path.rstrip("/")), f"weight_v{delta.base_version}")
        if delta.base_version == delta.version or not exists(before):
            return chain, None
        path = before
    return chain, path


def _newest(path: str) -> str:
    """The newest version in a folder of versions; `path` itself if it is none."""
    place = place_of(path)
    if place.kind() != "folder":
        return path
    names = [entry.name for entry in place.folder().list(recursive=False)]
    versions = [name for name in names if _FOLDER(name)]
    if not versions or any(name.endswith((SUFFIX, INDEX_SUFFIX)) for name in names):
        return path
    return join(path, max(versions, key=lambda name: int(name.removeprefix("weight_v"))))


class _Delta:
    """One folder of a chain, opened."""

    def __init__(
        self, path: str, metadata: Mapping[str, str], files: list[SafetensorsFile]
    ) -> None:
        self.path = path
        self._metadata = metadata
        self._files = files
        self.known: _Known | None = None
        self.version = self._number("version")
        self.base_version = self._number("base_version")
        self._encoding = self._field("delta_encoding")
        self._algorithm = self._field("checksum_format")
        if (packing := self._field("compression_format")) != "zstd":
            raise UnsupportedError(f"the compression {quote(packing)} is not known", path=path)

    @classmethod
    def open(cls, path: str, given: Mapping[str, Any], handles: Handles) -> _Delta | None:
        """The delta in a folder; None if it has a whole model."""
        target, verify = resolve(path, given["trust"], given["identity"])
        files = find_files(target, verify=verify)
        if files is None or not is_delta(files.index_metadata):
            return None
        opened = {
            name: SafetensorsFile(source)
            for name, source in files.open(given["backend"], verify, handles)
        }
        files.check({name: file.header.tensors for name, file in opened.items()})
        delta = cls(path, files.index_metadata, list(opened.values()))
        if files.store.kind(SIDECAR) is not None:
            source = files.store.open(SIDECAR, backend="pread")
            source = source if verify is None else verify(source, source.name)
            delta.known = _Known.read(source, source.name)
        return delta

    def _field(self, name: str) -> str:
        if name not in self._metadata:
            raise FormatError(
                f"the index of the delta has no {name} in its metadata",
                rule="delta",
                path=self.path,
            )
        return self._metadata[name]

    def _number(self, name: str) -> str:
        """A version, which becomes a part of a path: digits only."""
        text = self._field(name)
        if not _VERSION(text):
            raise FormatError(
                f"the index of the delta has {quote(text, 100)} as its {name}, which is no number",
                rule="delta",
                path=self.path,
            )
        return text

    def over(self, base: Checkpoint) -> Checkpoint:
        """The new model, over the old one.

        Raises:
            FormatError: They do not fit.
        """
        known = self.known
        if known is not None and known.sha256.keys() != base.keys():
            raise self._unfit("has other tensors")
        tensors: dict[str, Tensor] = dict(base.items())
        changed: set[str] = set()
        for file in self._files:
            sums = file.header.metadata or {}
            for name in file.header.tensors:
                if name not in tensors:
                    raise self._unfit(f"has no tensor {quote(name)}")
                if name not in sums:
                    raise FormatError(
                        f"tensor {quote(name)} has no checksum",
                        rule="delta",
                        path=file.name,
                        tensor=name,
                    )
                tensors[name] = applied(
                    tensors[name],
                    file.tensor(name),
                    self._encoding,
                    expected=sums[name],
                    algorithm=self._algorithm,
                    sha256=None if known is None else known.sha256[name],
                )
                changed.add(name)
        if known is not None:
            for name in tensors.keys() - changed:
                tensors[name] = checked(tensors[name], known.sha256[name])
        return Checkpoint(tensors, base.metadata, name=self.path)

    def changed(self) -> Iterator[str]:
        """The names of the tensors that it changes."""
        return (name for file in self._files for name in file.header.tensors)

    def check_after(self, older: _Delta) -> None:
        """Refuse an older delta that gives another model than this one was made for."""
        if self.known and older.known and self.known.base_root != older.known.root:
            raise self._unfit(f"is another one than {quote(older.path, 400)} gives")

    def _unfit(self, what: str) -> FormatError:
        return FormatError(f"the base of this delta {what}", rule="delta", path=self.path)


@dataclass(frozen=True)
class _Known:
    """What `safeweights.delta.json` says.

    Attributes:
        base_root: Of the base.
        root: Of the new model.
        sha256: Name -> the SHA-256 of the new bytes, of all tensors.
    """

    base_root: str
    root: str
    sha256: dict[str, str]

    @classmethod
    def read(cls, source: Source, path: str) -> _Known:
        """Read the file; it is untrusted.

        Raises:
            FormatError: It is not what it should be (rule ``delta``).
        """
        if source.size > _SIDECAR_MAX:
            raise FormatError(f"the file has {source.size} bytes", rule="delta", path=path)
        reader = Reader(source.read(0, source.size))
        texts: dict[str, str] = {}
        digests: dict[str, str] | None = None
        try:
            for key, _ in reader.members():
                if key in {"base_root", "root"}:
                    texts[key] = reader.string(limit=100)
                elif key == "sha256":
                    digests = {name: reader.string(limit=100) for name, _ in reader.members()}
                else:
                    reader.skip(1)
            reader.end()
        except JSONError as error:
            message = f"invalid {SIDECAR}: {error}"
            raise FormatError(message, rule="delta", path=path, offset=error.position) from error
        if digests is None or len(texts) != 2:
            raise FormatError(f"{SIDECAR} lacks a field", rule="delta", path=path)
        return cls(texts["base_root"], texts["root"], digests)


def _root(tensors: Mapping[str, Tensor], digests: Mapping[str, str]) -> str:
    """The SHA-256 over the names, types, shapes and digests of all tensors."""
    state = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        fields = [name, tensor.dtype, list(tensor.shape), digests[name]]
        state.update(json.dumps(fields).encode() + b"\n")
    return state.hexdigest()


# ---- writing


def make_delta(
    base: Any,
    new: Any,
    folder: str | os.PathLike[str],
    *,
    version: int = 1,
    base_version: int | None = None,
    encoding: str = "xor",
    checksum_format: str = "adler32",
    durable: bool = False,
    identity: Any = None,
    progress: Callable[[int], object] | None = None,
) -> DeltaReport:
    """Write a folder that says how `new` differs from `base`.

    Cost: reads both once. Memory: for each thread a tensor's frame; with ``overwrite`` also both tensors.

    Args:
        base: The old model: a path, or a `Checkpoint`.
        new: The new one, with the same tensors.
        folder: Where to write; ``weight_v000001`` is what programs expect.
        version: Of `new`: a number from 0 to 999,999,999,999,999,999.
        base_version: Of `base`; one less by default.
        encoding: ``"xor"``, or ``"overwrite"``, which is smaller if very few bytes change.
        checksum_format: Of the convention: ``"adler32"``, or with a package (extras ``xxhash``, ``blake3``)
            ``"xxh3-128"`` or ``"blake3"``. The SHA-256 of all tensors is written beside it.
        durable: Return only when all of it would survive a loss of power.
        identity: Who opens `base` and `new`, where they are paths; see `safeweights.open`. The delta is not
            encrypted.
        progress: Called with the number of bytes of `new` that are done.

    Raises:
        FormatError: The models do not have the same tensors (rule ``delta``).
        FileExistsError: There is a delta or a model in `folder`.
        UnsupportedError: The encoding or checksum is not known; a version is out of range.
        MissingDependencyError: zstandard is not installed.
        OSError: Reading or writing failed.
    """
    compressor()
    checksum(checksum_format)
    if encoding not in ENCODINGS:
        raise UnsupportedError(f"the encoding {quote(encoding)} is not known; {ENCODINGS} are")
    versions = _versions(version, version - 1 if base_version is None else base_version)
    old, now = (
        each if isinstance(each, Checkpoint) else open_any(each, identity=identity)
        for each in (base, new)
    )
    _require_alike(old, now)
    store = place_of(folder).folder()
    index = f"model{INDEX_SUFFIX}"
    if exists(os.fspath(folder)) and any(
        entry.name.endswith((SUFFIX, INDEX_SUFFIX)) for entry in store.list(recursive=False)
    ):
        message = "there are weights in the folder already"
        raise FileExistsError(errno.EEXIST, message, os.fspath(folder))

    def one(name: str, tell: Callable[[int], object]) -> tuple[bytes | None, str, str, str]:
        frame = encode(old[name], now[name], encoding)
        sums = [checksum(checksum_format), hashlib.sha256()]
        for chunk in now[name].chunks(BLOCK):
            for state in sums:
                state.update(chunk)
        digest = sums[1].hexdigest()
        before = digest if frame is None else _sha256(old[name])
        tell(now[name].nbytes)
        return frame, sums[0].hexdigest(), digest, before

    found = in_threads(one, list(now), cost=lambda name: now[name].nbytes, progress=progress)
    results = dict(zip(now, found, strict=True))
    changed = {name: frame for name, (frame, *_) in results.items() if frame is not None}
    shard = "model-00000-of-00001" + SUFFIX
    sidecar = {
        "base_root": _root(old, {name: result[3] for name, result in results.items()}),
        "root": _root(now, {name: result[2] for name, result in results.items()}),
        "sha256": {name: result[2] for name, result in results.items()},
    }
    metadata = {
        **versions,
        "delta_encoding": encoding,
        "compression_format": "zstd",
        "checksum_format": checksum_format,
    }
    text = json.dumps({"metadata": metadata, "weight_map": dict.fromkeys(changed, shard)}, indent=2)
    size = 0
    with store.commit(durable=durable) as commit:
        if changed:
            frames = {
                name: MemoryTensor(name, "U8", (len(frame),), frame)
                for name, frame in changed.items()
            }
            size, buffers = serialized(frames, {name: results[name][1] for name in changed})
            commit.write(shard, buffers, size=size, create_only=True)
        commit.write(SIDECAR, [json.dumps(sidecar).encode()], create_only=True)
        commit.write(index, [text.encode()], create_only=True)
    whole = sum(tensor.nbytes for tensor in now.values())
    return DeltaReport(os.fspath(folder), metadata["version"], len(changed), len(now), size, whole)


def _versions(version: int, base_version: int) -> dict[str, str]:
    """Two versions as an index has them.

    Raises:
        UnsupportedError: One is out of range.
    """
    found = {"version": f"{version:06}", "base_version": f"{base_version:06}"}
    for name, text in found.items():
        if not _VERSION(text):
            raise UnsupportedError(f"{name} is {quote(text, 100)}: it has to have 1 to 18 digits")
    return found


def _sha256(tensor: Tensor) -> str:
    state = hashlib.sha256()
    for chunk in tensor.chunks(BLOCK):
        state.update(chunk)
    return state.hexdigest()


def _require_alike(old: Checkpoint, new: Checkpoint) -> None:
    """Refuse models that do not have the same tensors.

    Raises:
        FormatError: Names, types or shapes differ.
    """
    for name in sorted(old.keys() ^ new.keys()):
        raise FormatError(
            f"tensor {quote(name)} is in one of the models only; a delta changes values, no names",
            rule="delta", path=new.name or None, tensor=name,
        )  # fmt: skip
    for name, tensor in new.items():
        before = old[name]
        if (tensor.dtype, tensor.shape) != (before.dtype, before.shape):
            raise FormatError(
                f"tensor {quote(name)} is {before.dtype} of shape {list(before.shape)} before, and "
                f"{tensor.dtype} of shape {list(tensor.shape)} after",
                rule="delta", path=new.name or None, tensor=name,
            )  # fmt: skip


def apply_delta(
    target: str | os.PathLike[str],
    output: str | os.PathLike[str],
    base: Any = None,
    *,
    trust: object = None,
    identity: Any = None,
    max_shard_size: int | str = "5GB",
    force: bool = False,
    durable: bool = False,
    progress: Callable[[int], object] | None = None,
) -> DeltaReport:
    """Write the whole model that a delta, or a chain of them, gives: all its files, or none.

    Args:
        target: See `open_delta`.
        output: A file that ends in ``.safetensors``, or a folder; not in the folder of a delta. A symbolic
            link to a file is replaced, not followed.
        base: See `open_delta`.
        trust: See `open_delta`.
        identity: See `open_delta`. The model that is written is not encrypted.
        max_shard_size: For a folder.
        force: Replace files that exist, and an earlier checkpoint of the same name as a whole.
        durable: Return only when all of it would survive a loss of power.
        progress: Called with the number of bytes written so far.

    Raises:
        FormatError: A delta is damaged, or made for another base: nothing is written then.
        FileExistsError: There is a delta in that folder. Or without `force`: an output exists, or another
            file of an earlier checkpoint of the same name, such as its index.
        UnsupportedError: Some files of the base would be replaced, and others would stay.
        OSError: Reading or writing failed.
    """
    given = {"trust": trust, "identity": identity, "backend": "mmap"}
    model, old, chain = _open_over_base(target, base, given)
    path = os.fspath(output)
    folder = (parent(path) or os.curdir) if path.endswith(SUFFIX) else path
    if _has_delta(place_of(folder), identity):
        raise FileExistsError(errno.EEXIST, "there is a delta in the folder", folder)
    place = place_of(path)
    if path.endswith(SUFFIX):
        where, limit = Destination(place.store, place.name), None
    else:
        where, limit = Destination(place.folder(), None), max_shard_size
    whole = OutputFile(where.name or FOLDER_NAME + SUFFIX, path, dict(model), {})
    outputs = split_output(whole, limit)
    index = where.index_name(None) if len(outputs) > 1 else None
    names = [each.name for each in outputs] + ([] if index is None else [index])
    earlier = where.earlier_save(outputs, index)
    where.check(names, earlier, force=force)
    locate = where.store.locate
    require_whole(_files_of(old), map(locate, names), map(locate, earlier.files()))
    done = 0
    with where.store.commit(durable=durable) as commit:
        earlier.begin(commit, force=force)
        for each in outputs:
            size, buffers = serialized(each.tensors, model.metadata)
            report = None if progress is None else shifted(progress, done)
            commit.write(each.name, buffers, size=size, create_only=not force, progress=report)
            done += size
        text = b""
        if index is not None:
            weight_map = {name: each.name for each in outputs for name in each.tensors}
            text = index_text(weight_map, whole.nbytes).encode()
        earlier.finish(commit, index, text, force=force)
    changed = {name for each in chain for name in each.changed()}
    version = chain[0].version if chain else ""
    return DeltaReport(path, version, len(changed), len(model), whole.nbytes, whole.nbytes)


def _files_of(checkpoint: Checkpoint) -> list[str]:
    """The paths of the files of a checkpoint in any format."""
    if isinstance(checkpoint, ForeignCheckpoint):
        return [source.name for source in checkpoint.sources]
    return [file.name for file in checkpoint.files]


def _has_delta(place: Place, identity: Any) -> bool:
    """Whether there is a delta in a folder, encrypted or not, which no model may replace or join."""
    if place.kind() != "folder":
        return False
    store = place.folder()
    if store.kind(SIDECAR + ENCRYPTED) is not None:  # says so without a key
        return True
    decrypted, _ = resolve(store, None, identity)
    return any(
        _is_of_delta(each, entry.name)
        for each in (store, *([] if decrypted is store else [decrypted]))
        for entry in each.list(recursive=False)
        if entry.name.endswith(INDEX_SUFFIX)
    )


def _is_of_delta(store: Store, name: str) -> bool:
    try:
        index = parse_index(store.open(name, backend="pread"), name)
    except (FormatError, AccessError):  # no delta has such an index; or it is encrypted for another
        return False
    return is_delta(index.metadata)


def compact_deltas(
    target: str | os.PathLike[str],
    output: str | os.PathLike[str],
    base: Any = None,
    *,
    identity: Any = None,
    **options: Any,
) -> DeltaReport:
    """Write one delta that does what a chain of them does.

    Args:
        target: The newest of the chain, or the folder that has all of it.
        output: The folder of the new delta.
        base: What the chain is based on; see `open_delta`.
        identity: See `open_delta`. The delta that is written is not encrypted.
        options: See `make_delta`. The versions are those of the chain's ends.

    Raises:
        FormatError, UnsupportedError, OSError: See `open_delta` and `make_delta`.
    """
    given = {"trust": None, "identity": identity, "backend": "mmap"}
    chain, whole = _chain(os.fsdecode(target), given)
    if not chain:
        raise UnsupportedError("there is no delta to compact", path=os.fsdecode(target))
    versions = {"version": int(chain[0].version), "base_version": int(chain[-1].base_version)}
    old = whole if whole is not None else base
    new = open_delta(target, base, identity=identity)
    return make_delta(old, new, output, identity=identity, **{**versions, **options})
