"""What is measured: the rows of the table, each with its contenders, its limits and what to reach.

A row is data; `bench.session` carries it out. Sizes are those of a full run; `Scale` makes them smaller.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Final

from .data import MIB, Spec, entries
from .limits import index_of

__all__ = [
    "BASELINE",
    "BEST",
    "OURS",
    "PEERS",
    "ROWS",
    "Entry",
    "Reach",
    "Row",
    "Scale",
    "index_text",
    "selection_size",
]

BASELINE: Final = "0.8 mmap"
BEST: Final = "best peer"
OURS: Final = "safeweights"

PEERS: Final = ("0.8 mmap", "0.8 pread", "0.9 mmap", "0.9 pread", "fast", "runai", "torch")
"""Columns of the second table."""

_GIB: Final = 1024 * MIB


@dataclass(frozen=True)
class Entry:
    """One contender's way in one row.

    Attributes:
        column: How it is called in results: `OURS`, one of `PEERS`, or another peer's variant.
        process: Key of `bench.contenders.CONTENDERS`.
        arguments: Beside the row's.
        slow: Left out of quick runs of this row, unless ours is compared with it.
    """

    column: str
    process: str
    arguments: dict[str, Any] = field(default_factory=dict)
    slow: bool = False


@dataclass(frozen=True)
class Reach:
    """What a row is to reach; each of these that is set must hold.

    Attributes:
        ratio: At most this share of the time of `versus`.
        limit_share: At least this share of the rate of the machine's limit.
        most: At most this value, in the row's unit.
        slack: Bytes beyond `most` times the data's size, for the interpreter's own.
    """

    ratio: float | None = None
    limit_share: float | None = None
    most: float | None = None
    slack: int = 0


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: For `--row`.
        title: For people; `{size}` and `{count}` stand for the data's.
        kind: ``"time"`` (seconds), ``"bytes"`` (read), ``"memory"`` (extra, at the peak) or ``"import"``.
        verb: Of `bench.operations`.
        entries: Who takes part; the first is ours.
        data: The file read, or whose tensors are saved.
        arguments: Of the operation, for all.
        limits: Keys of `bench.limits.LIMITS`; the first is the one the table shows.
        bound: The one of them that no implementation can avoid; the first by default. Where it misses the
            mark too and ours is near it, the verdict is ``limit``.
        versus: Column to compare with, or `BEST`.
        reach: What is wanted; None: for information.
        cold: The file is dropped from the page cache before each sample.
        writes: Whether the operation writes a file.
        repeat: Operations a sample, for short ones.
        unit: Of the values: ``"s"``, ``"B"``, or ``"x"``, times the data's size or the bytes allowed.
    """

    name: str
    title: str
    verb: str
    entries: tuple[Entry, ...]
    data: Spec | None
    kind: str = "time"
    arguments: dict[str, Any] = field(default_factory=dict)
    limits: tuple[str, ...] = ()
    bound: str | None = None
    versus: str = BASELINE
    reach: Reach | None = None
    cold: bool = False
    writes: bool = False
    repeat: int = 1
    unit: str = "s"


@dataclass(frozen=True)
class Scale:
    """How large a run is.

    Attributes:
        quick: A quarter of the bytes, fewer samples, no slow entries.
        mib: At most this much data a file, for trying the program out.
        count: At most so many tensors a file, likewise.
        few: Only what a row is compared with takes part.
    """

    quick: bool = False
    mib: int | None = None
    count: int | None = None
    few: bool = False

    @property
    def complete(self) -> bool:
        """Whether the rows are what the published figures stand for."""
        return self == Scale()

    @property
    def rounds(self) -> tuple[int, int]:
        """Fewest and most samples of each contender."""
        return (3, 15) if self.quick else (5, 25)

    @property
    def seconds(self) -> float:
        """For the rounds of a row, after the fewest."""
        return 4.0 if self.quick else 15.0

    def apply(self, row: Row) -> Row:
        if self.few and row.versus != BEST:
            met = tuple(entry for entry in row.entries if entry.column in {OURS, row.versus})
            row = replace(row, entries=met)
        if row.data is None:
            return row
        spec = row.data
        nbytes, count = spec.nbytes, spec.count
        if self.quick and nbytes >= 512 * MIB:
            nbytes //= 4
        if self.mib is not None:
            nbytes = min(nbytes, self.mib * MIB)
        if self.count is not None:
            nbytes, count = nbytes * min(count, self.count) // count, min(count, self.count)
        elif row.name.startswith("save-64k"):
            count = nbytes // (64 << 10)
        return replace(row, data=replace(spec, nbytes=nbytes, count=count))


def index_text(selection: str, spec: Spec) -> str:
    """What is selected of a square file's matrix, for `bench.limits.index_of`."""
    ((_, _, (side, _), _, _),) = entries(spec)
    part = f"{side // 16}:{side // 16 + side // 64}"
    return {"rows": f"{part},:", "columns": f":,{part}", "every8": "::8,:"}[selection]


def selection_size(spec: Spec, index: str) -> tuple[int, int]:
    """Bytes that an index selects from a square file's matrix, and the runs in which they lie."""
    ((_, _, shape, _, end),) = entries(spec)
    item = end // math.prod(shape)
    rows, columns = (
        len(range(*axis.indices(length)))
        for axis, length in zip((*index_of(index), slice(None))[:2], shape, strict=True)
    )
    first = index_of(index)[0]
    whole_rows = columns == shape[1] and first.step in {None, 1}
    return rows * columns * item, 1 if whole_rows else rows


def _loads(ours: str, *, slow: bool = False) -> tuple[Entry, ...]:
    """Each contender's way of loading a file that is in the page cache, lazily where it can."""
    return (
        Entry(OURS, "safeweights", {"how": ours}),
        Entry("0.8 mmap", "safetensors-0.8", {"how": "default"}),
        Entry("0.8 pread", "safetensors-0.8", {"how": "pread"}, slow=slow),
        Entry("0.9 mmap", "safetensors-0.9", {"how": "default"}, slow=slow),
        Entry("0.9 pread", "safetensors-0.9", {"how": "pread"}, slow=slow),
        Entry("fast", "fastsafetensors", {"how": "buffered"}, slow=slow),
        Entry("runai", "runai", {"how": "default"}, slow=slow),
        Entry("torch", "torch", {"how": "mmap"}, slow=slow),
    )


_OWNED: Final = (
    Entry(OURS, "safeweights", {"how": "owned"}),
    Entry("0.8 mmap", "safetensors-0.8", {"how": "clone"}),
    Entry("0.8 pread", "safetensors-0.8", {"how": "pread"}),
    Entry("0.8 load(read())", "safetensors-0.8", {"how": "bytes"}, slow=True),
    Entry("0.9 mmap", "safetensors-0.9", {"how": "clone"}),
    Entry("0.9 pread", "safetensors-0.9", {"how": "pread"}),
    Entry("fast", "fastsafetensors", {"how": "buffered"}),
    Entry("runai", "runai", {"how": "default"}),
    Entry("torch", "torch", {"how": "clone"}),
    Entry("torch.load, no mmap", "torch", {"how": "read"}, slow=True),
)

_COLD: Final = tuple(
    replace(entry, arguments={"how": "direct"}) if entry.process == "fastsafetensors" else entry
    for entry in _loads("cold")
)

_NUMPY: Final = (
    *_loads("default")[:5],
    Entry("fast", "fastsafetensors", {"how": "buffered"}),
    Entry("runai", "runai", {"how": "default"}),
    Entry("torch", "torch", {"how": "mmap"}),
)

_ONE_WAY: Final = (
    Entry(OURS, "safeweights"),
    Entry("0.8 mmap", "safetensors-0.8"),
    Entry("0.9 mmap", "safetensors-0.9"),
    Entry("fast", "fastsafetensors"),
    Entry("runai", "runai"),
    Entry("torch", "torch"),
)
"""Where there is no choice of backend; the reference's stand under its default's name."""

_ONE_WAY_MANY: Final = tuple(
    replace(entry, slow=entry.column not in {OURS, "0.8 mmap"}) for entry in _ONE_WAY
)

_SLICES: Final = (
    Entry(OURS, "safeweights", {"how": "pread"}),
    Entry("0.8 mmap", "safetensors-0.8", {"how": "default", "clone": True}),
    Entry("0.8 pread", "safetensors-0.8", {"how": "pread"}),
    Entry("0.9 mmap", "safetensors-0.9", {"how": "default", "clone": True}),
    Entry("0.9 pread", "safetensors-0.9", {"how": "pread"}),
    Entry("fast", "fastsafetensors", {"how": "default"}),
    Entry("runai", "runai", {"how": "default"}),
    Entry("torch", "torch", {"how": "default", "clone": True}),
)

_PREADS: Final = tuple(
    entry for entry in _SLICES if entry.column in {OURS, "0.8 pread", "0.9 pread"}
)

_ENCRYPTED: Final = (Entry(OURS, "safeweights"), Entry("pyrage", "pyrage", slow=True))

_MODEL: Final = Spec("model", "BF16", 300, _GIB)
_MODEL_NUMPY: Final = Spec("model", "F16", 300, _GIB)
_LARGE: Final = Spec("model", "BF16", 300, 2 * _GIB)
_HALF: Final = Spec("model", "BF16", 300, 512 * MIB)
_SMALL: Final = Spec("equal", "BF16", _GIB // (64 << 10), _GIB)
_SMALL_NUMPY: Final = Spec("equal", "F16", _GIB // (64 << 10), _GIB)
_SQUARE: Final = Spec("square", "F32", 1, _GIB)
_FILES: Final = Spec("folder", "F16", 20_000, 20_000 * 4096)


def _tiny(count: int) -> Spec:
    return Spec("equal", "BF16", count, count * 128)


def _slice_rows() -> list[Row]:
    rows = []
    for selection, text, share in (
        ("rows", "1/64 of rows", None),
        ("columns", "1/64 of columns", 0.33),
        ("every8", "every 8th row", 0.77),
    ):
        timed = Row(
            name=f"slice-{selection}",
            title=f"pread {text}, {{size}}",
            verb="slice",
            entries=_SLICES,
            data=_SQUARE,
            arguments={"selection": selection},
            limits=("gather from mapped pages",),
            versus="0.8 pread",
            reach=Reach(ratio=0.2, limit_share=share),
        )
        counted = replace(
            timed,
            name=f"bytes-{selection}",
            title=f"bytes read, {text}",
            kind="bytes",
            unit="x",
            entries=_PREADS,
            limits=(),
            reach=Reach(most=1.0),
        )
        rows += [timed, counted]
    return rows


def _tiny_rows() -> list[Row]:
    loads, saves = [], []
    for count, text in ((10_000, "10k"), (100_000, "100k")):
        large = count > 50_000
        loads.append(
            Row(
                name=f"load-tiny-{text}",
                title="load_file torch, {count} tiny",
                verb="load",
                entries=_loads("default", slow=large),
                data=_tiny(count),
                limits=("json.loads and from_numpy",),
                reach=Reach(ratio=0.25),
            )
        )
        saves.append(
            Row(
                name=f"save-tiny-{text}",
                title="save_file torch, {count} tiny",
                verb="save file",
                entries=_ONE_WAY_MANY if large else _ONE_WAY,
                data=_tiny(count),
                limits=("tensors' attributes and one write",),
                reach=Reach(ratio=0.2),
                writes=True,
            )
        )
    return loads + saves


def _edit_rows() -> list[Row]:
    both = (Entry(OURS, "safeweights"), Entry("0.8 mmap", "safetensors-0.8"))
    merge = Row(
        name="edit-merge",
        title="merge 8 shards, {size}",
        verb="merge",
        entries=both,
        data=_LARGE,
        arguments={"shards": 8},
        limits=("page cache write",),
        reach=Reach(ratio=0.7),
        writes=True,
    )
    return [
        Row(
            name="edit-rename",
            title="rename in place, {size}",
            verb="rename",
            entries=both,
            data=_LARGE,
            limits=("page cache write",),
            reach=Reach(ratio=0.05),
            writes=True,
        ),
        merge,
        replace(
            merge,
            name="memory-edit-merge",
            title="extra memory, merge 8 shards",
            kind="memory",
            unit="B",
            limits=(),
            reach=Reach(most=64 * MIB),
        ),
        Row(
            name="diff",
            title="diff of two, {size} / loading",
            verb="compare",
            entries=both,
            data=_MODEL_NUMPY,
            limits=("page cache read",),
            reach=Reach(ratio=1.3),
        ),
        Row(
            name="delta-apply",
            title="apply delta to a file, {size}",
            verb="apply delta",
            entries=(Entry(OURS, "safeweights"),),
            data=_HALF,
            limits=(
                "memcpy, fresh memory",
                "memcpy",
                "SHA-256",
                "zstd, XOR, SHA-256 and page cache write",
            ),
            bound="zstd, XOR, SHA-256 and page cache write",
            versus=OURS,
            reach=Reach(limit_share=0.2),
            writes=True,
        ),
    ]


def _memory_row(name: str, title: str, verb: str, data: Spec, most: float, **more: Any) -> Row:
    return Row(
        name=f"memory-{name}",
        title=title,
        verb=verb,
        kind="memory",
        entries=tuple(
            replace(entry, slow=entry.column not in {OURS, "0.8 mmap"})
            for entry in more.pop("entries", _ONE_WAY)
        ),
        data=data,
        reach=Reach(most=most, slack=4 * MIB if most < MIB else 0),
        unit="x" if most < MIB else "B",
        **more,
    )


def _rows() -> list[Row]:
    tiny_10k, tiny_100k, save_10k, save_100k = _tiny_rows()
    return [
        Row(
            name="load-torch",
            title="load_file torch, {size}",
            verb="load",
            entries=_loads("default"),
            data=_MODEL,
            arguments={"touch": True},
            limits=("mmap and touch",),
            reach=Reach(ratio=1.0),
        ),
        Row(
            name="load-torch-lazy",
            title="load_file torch, {size}, lazy",
            verb="load",
            entries=tuple(
                replace(entry, slow=not entry.column.endswith((OURS, "mmap", "torch")))
                for entry in _loads("default")
            ),
            data=_MODEL,
            limits=("json.loads and from_numpy",),
        ),
        tiny_10k,
        tiny_100k,
        Row(
            name="load-numpy",
            title="load_file numpy, {size}",
            verb="load",
            entries=_NUMPY,
            data=_MODEL_NUMPY,
            arguments={"touch": True, "numpy": True},
            limits=("mmap and touch",),
            reach=Reach(ratio=0.3),
        ),
        Row(
            name="load-owned",
            title="owned load torch, {size}",
            verb="load",
            entries=_OWNED,
            data=_MODEL,
            limits=("page cache read", "page cache read, fresh memory", "memcpy, fresh memory"),
            versus=BEST,
            reach=Reach(ratio=0.7),
        ),
        Row(
            name="load-cold",
            title="load_file torch, {size}, cold",
            verb="load",
            entries=_COLD,
            data=_LARGE,
            arguments={"touch": True},
            limits=("direct read", "buffered read"),
            versus=BEST,
            reach=Reach(ratio=0.9, limit_share=0.85),
            cold=True,
        ),
        Row(
            name="header-100k",
            title="open {count} tensors' header",
            verb="open header",
            entries=_ONE_WAY,
            data=_tiny(100_000),
            limits=("json.loads",),
            reach=Reach(ratio=0.5),
        ),
        Row(
            name="first-tensor",
            title="open to first tensor of {count}",
            verb="first tensor",
            entries=_ONE_WAY,
            data=_MODEL,
            limits=("json.loads",),
            reach=Reach(ratio=0.5),
            repeat=50,
        ),
        Row(
            name="load-bytes",
            title="load(bytes) torch, {size}",
            verb="load bytes",
            entries=_ONE_WAY,
            data=_HALF,
            limits=("memcpy, fresh memory", "memcpy"),
            bound="memcpy",
            reach=Reach(ratio=0.5),
        ),
        Row(
            name="save-bytes",
            title="save() -> bytes torch, {size}",
            verb="save bytes",
            entries=_ONE_WAY,
            data=_HALF,
            limits=("memcpy, fresh memory", "memcpy"),
            bound="memcpy",
            reach=Reach(ratio=0.6),
        ),
        Row(
            name="save-torch",
            title="save_file torch, {size}",
            verb="save file",
            entries=_ONE_WAY,
            data=_MODEL,
            limits=("page cache write",),
            reach=Reach(ratio=0.9),
            writes=True,
        ),
        Row(
            name="save-64k",
            title="save_file, {size} of 64 KiB",
            verb="save file",
            entries=_ONE_WAY,
            data=_SMALL,
            limits=("page cache write",),
            reach=Reach(ratio=0.5),
            writes=True,
        ),
        Row(
            name="save-64k-numpy",
            title="save numpy, {size} of 64 KiB",
            verb="save file",
            entries=_ONE_WAY[:3],
            data=_SMALL_NUMPY,
            arguments={"numpy": True},
            limits=("page cache write",),
            reach=Reach(ratio=0.5),
            writes=True,
        ),
        save_10k,
        save_100k,
        Row(
            name="save-durable",
            title="save_file durable, {size}",
            verb="save file",
            entries=_ONE_WAY,
            data=_LARGE,
            arguments={"durable": True},
            limits=("direct write and fsync",),
            reach=Reach(ratio=0.6),
            writes=True,
        ),
        *_slice_rows(),
        Row(
            name="load-verified",
            title="signed load, {size} / hashing",
            verb="load verified",
            entries=(
                Entry(OURS, "safeweights", {"trees": True}),
                Entry("hashlib", "hashlib"),
                Entry("sha256sum", "coreutils", slow=True),
                Entry("without a block tree", "safeweights", {"trees": False}, slow=True),
            ),
            data=_MODEL,
            limits=("page cache read, fresh memory",),
            versus="hashlib",
            reach=Reach(ratio=1.3),
        ),
        Row(
            name="hash-small",
            title="hash {count} files / sha256sum",
            verb="hash folder",
            entries=(Entry(OURS, "safeweights"), Entry("sha256sum", "coreutils")),
            data=_FILES,
            limits=("open, read and hash",),
            versus="sha256sum",
            reach=Reach(ratio=2.0),
        ),
        *_encryption_rows(),
        *_edit_rows(),
        _import_row("import", "safeweights", before="pass"),
        _import_row("import-numpy", "safeweights.numpy", before="import numpy"),
        _memory_row(
            "load-numpy", "extra memory, load_file numpy", "load",
            _MODEL_NUMPY, 1.0, entries=_NUMPY, arguments={"touch": True, "numpy": True},
        ),
        _memory_row(
            "load-bytes", "extra memory, load(bytes)", "load bytes", _HALF, 1.0
        ),
        _memory_row(
            "save-bytes", "extra memory, save() -> bytes", "save bytes", _HALF, 1.0
        ),
        _memory_row(
            "save-file", "extra memory, save_file", "save file", _MODEL, 64 * MIB, writes=True
        ),
        Row(
            name="memory-load-encrypted", title="extra memory, encrypted load", kind="memory",
            verb="load encrypted", entries=_ENCRYPTED, data=_MODEL, versus="pyrage",
            reach=Reach(most=1.0, slack=64 * MIB), unit="x",
        ),
        Row(
            name="memory-encrypt", title="extra memory, encrypt", kind="memory",
            verb="encrypt file", entries=_ENCRYPTED, data=_MODEL, versus="pyrage",
            reach=Reach(most=64 * MIB), unit="B", writes=True,
        ),
    ]  # fmt: skip


def _encryption_rows() -> list[Row]:
    load = Row(
        name="load-encrypted",
        title="encrypted load, {size}",
        verb="load encrypted",
        entries=_ENCRYPTED,
        data=_MODEL,
        limits=("ChaCha20-Poly1305", "read(2) and ChaCha20-Poly1305"),
        bound="read(2) and ChaCha20-Poly1305",
        versus="pyrage",
        reach=Reach(ratio=0.25, limit_share=0.85),
    )
    verified = replace(
        load,
        name="load-encrypted-verified",
        title="signed encrypted load, {size}",
        entries=(
            Entry(OURS, "safeweights", {"signed": True}),
            Entry("without a signature", "safeweights"),
        ),
        limits=(
            "ChaCha20-Poly1305, then SHA-256",
            "read(2), SHA-256 and ChaCha20-Poly1305",
        ),
        bound="read(2), SHA-256 and ChaCha20-Poly1305",
        versus="without a signature",
        reach=Reach(limit_share=0.85),
    )
    encrypt = replace(
        load,
        name="encrypt",
        title="encrypt a file, {size}",
        verb="encrypt file",
        limits=("ChaCha20-Poly1305, then page cache write", "ChaCha20-Poly1305"),
        bound=None,
        writes=True,
    )
    return [load, verified, encrypt]


def _import_row(name: str, module: str, *, before: str) -> Row:
    theirs = {"module": module.replace("safeweights", "safetensors")}
    return Row(
        name=name,
        title=f"import {module}",
        kind="import",
        verb="import",
        entries=(
            Entry(OURS, "safeweights", {"module": module}),
            Entry("0.8 mmap", "safetensors-0.8", theirs),
            Entry("0.9 mmap", "safetensors-0.9", theirs, slow=True),
        ),
        data=None,
        arguments={"before": before},
        limits=("the interpreter without it",),
        reach=Reach(most=0.012),
    )


ROWS: Final[tuple[Row, ...]] = tuple(_rows())
