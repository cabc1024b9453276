"""What differs between two checkpoints, as data.

Both are read in pieces of 8 MiB by several threads, side by side, and never held. Bytes are compared
first; only what differs is computed with, and only if numbers were asked for. Tensors of which one side
has no name are looked for under other names by the digest of their bytes.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from ..errors import UnsupportedError
from ..format.dtypes import BITS
from ..frameworks.numpy import WIDENING
from ..storage.parallel import in_threads
from .report import as_diff

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from ..checkpoint import Checkpoint, Tensor
    from .documents import (
        ChangedRecord,
        DiffDocument,
        DifferenceRecord,
        DiffMetadataRecord,
        DiffTensorRecord,
        RenamedRecord,
    )

__all__ = ["Tolerance", "compare"]

Array = np.ndarray[Any, Any]

_PIECE: Final = 1 << 23
"""Bytes of each side that one thread compares at a time."""

_BLOCK: Final = 1 << 18
"""Bytes of each side that are read at a time: both fit in a core's cache."""

_LEAST: Final = -12
"""Differences below 10^-12 are counted together with those of 10^-12."""

_MOST: Final = 12


class Tolerance(NamedTuple):
    """Which differences do not count: up to ``atol + rtol * abs(before)``.

    Attributes:
        rtol: Relative to the value before.
        atol: Absolute.
    """

    rtol: float = 0.0
    atol: float = 0.0

    def check(self) -> None:
        """Refuse what is no tolerance.

        Raises:
            UnsupportedError: A number is negative, infinite or NaN.
        """
        for name, number in self._asdict().items():
            if not (math.isfinite(number) and number >= 0):
                raise UnsupportedError(
                    f"{name} is {number}: a finite number of at least 0 is needed"
                )

    @property
    def allows_something(self) -> bool:
        """Whether values have to be computed with."""
        return self.rtol > 0 or self.atol > 0


_EXACT: Final = Tolerance()


def compare(
    before: Checkpoint,
    after: Checkpoint,
    *,
    values: bool = False,
    tolerance: Tolerance = _EXACT,
    metadata: bool = True,
    progress: Callable[[int], object] | None = None,
) -> DiffDocument:
    """Compare two checkpoints.

    Cost: reads both once, and what is only in one of them again, if there are tensors of the same type
    and shape in the other. Memory: some MiB for each thread.

    Args:
        before: The first.
        after: The second.
        values: Compute how much values differ.
        tolerance: Differences that do not count; values are computed with if it allows any.
        metadata: Compare metadata too.
        progress: Called with the number of bytes of the first that are done.

    Raises:
        UnsupportedError: `tolerance` is none.
        SafetensorError, OSError: Reading failed.
    """
    tolerance.check()
    shared = [name for name in before if name in after]
    tolerant = tolerance.allows_something
    pairs = [_Pair(name, before[name], after[name], tolerant) for name in shared]
    _compare_all(pairs, tolerance, values=values or tolerant, progress=progress)
    gone = {name: tensor for name, tensor in before.items() if name not in after}
    new = {name: tensor for name, tensor in after.items() if name not in before}
    renamed = _renamed(gone, new)
    changed = [pair for pair in pairs if pair.same_kind and pair.differs]
    retyped = [pair for pair in pairs if not pair.same_kind]
    entries = _metadata(before.metadata or {}, after.metadata or {}) if metadata else None
    document: DiffDocument = {
        "schema": "safeweights.diff/1",
        "before": before.name,
        "after": after.name,
        "same": not (
            gone
            or new
            or retyped
            or any(not pair.close for pair in changed)
            or any((entries or {}).values())
        ),
        "rtol": tolerance.rtol,
        "atol": tolerance.atol,
        "unchanged": len(pairs) - len(changed) - len(retyped),
        "added": [
            _tensor(name, each) for name, each in new.items() if name not in renamed.values()
        ],
        "removed": [_tensor(name, each) for name, each in gone.items() if name not in renamed],
        "renamed": [_renamed_record(old, name, gone[old]) for old, name in renamed.items()],
        "retyped": [pair.record() for pair in retyped],
        "changed": [pair.record() for pair in changed],
        "metadata": entries,
        "unreadable": {pair.name: pair.unreadable for pair in pairs if pair.unreadable is not None},
    }
    return as_diff(document)


@dataclass
class _Pair:
    """A tensor with the same name in both."""

    name: str
    before: Tensor
    after: Tensor
    tolerant: bool
    differs: bool = False
    numbers: _Numbers | None = None

    @property
    def same_kind(self) -> bool:
        return (self.before.dtype, self.before.shape) == (self.after.dtype, self.after.shape)

    @property
    def unreadable(self) -> str | None:
        return self.before.unreadable or self.after.unreadable

    @property
    def close(self) -> bool:
        return self.tolerant and self.numbers is not None and not self.numbers.beyond

    def record(self) -> ChangedRecord:
        return {
            "name": self.name,
            "before": _tensor(self.name, self.before),
            "after": _tensor(self.name, self.after),
            "close": self.same_kind and self.close,
            "values": None if self.numbers is None else self.numbers.record(),
        }


@dataclass
class _Numbers:
    """How values differ; of pieces, which are added up."""

    elements: int = 0
    different: int = 0
    beyond: int = 0
    not_finite: int = 0
    largest: float = 0.0
    total: float = 0.0
    squares: float = 0.0
    norm: float = 0.0
    decades: Array = field(default_factory=lambda: np.zeros(_MOST - _LEAST + 2, np.int64))

    def add(self, other: _Numbers) -> None:
        self.elements += other.elements
        self.different += other.different
        self.beyond += other.beyond
        self.not_finite += other.not_finite
        self.largest = max(self.largest, other.largest)
        self.total += other.total
        self.squares += other.squares
        self.norm += other.norm
        self.decades += other.decades

    def record(self) -> DifferenceRecord:
        mean = self.total / self.elements if self.elements else 0.0
        relative = math.sqrt(self.squares / self.norm) if self.norm else math.inf
        counts = self.decades.tolist()
        return {
            "elements": self.elements,
            "different": self.different,
            "beyond": self.beyond,
            "max": _finite(self.largest),
            "mean": _finite(mean),
            "relative": _finite(relative) if self.squares else 0.0,
            "not_finite": self.not_finite,
            "histogram": [
                {"least": 10.0 ** (place + _LEAST - 1) if place else 0.0, "elements": count}
                for place, count in enumerate(counts)
                if count
            ],
        }


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


# ---- reading


class _Piece(NamedTuple):
    """Some elements of a pair. Whole bytes of both."""

    pair: _Pair
    first: int
    elements: int


def _compare_all(
    pairs: Iterable[_Pair],
    tolerance: Tolerance,
    *,
    values: bool,
    progress: Callable[[int], object] | None,
) -> None:
    """Find out which pairs differ, and by how much."""
    pieces = [piece for pair in pairs for piece in _pieces(pair, values=values)]

    def work(piece: _Piece, tell: Callable[[int], object]) -> _Numbers | None:
        found = _compare_piece(piece, tolerance, values=values)
        tell(_bytes(piece.pair.before, piece.elements))
        return found

    results = in_threads(
        work,
        pieces,
        cost=lambda piece: _bytes(piece.pair.before, piece.elements),
        progress=progress,
    )
    for piece, found in zip(pieces, results, strict=True):
        if found is not None:
            total = piece.pair.numbers = piece.pair.numbers or _Numbers()
            total.add(found)
    for pair in {id(piece.pair): piece.pair for piece in pieces}.values():
        if not pair.differs and pair.same_kind:
            pair.numbers = None


def _bytes(tensor: Tensor, count: int) -> int:
    return count * BITS.get(tensor.dtype, 128) // 8


def _pieces(pair: _Pair, *, values: bool) -> Iterator[_Piece]:
    """What has to be compared of a pair."""
    if pair.unreadable is not None:
        return
    if not pair.same_kind:
        comparable = values and pair.before.shape == pair.after.shape
        if not (comparable and _computable(pair.before) and _computable(pair.after)):
            return
    elements = math.prod(pair.before.shape)
    widest = max(BITS.get(each.dtype, 128) for each in (pair.before, pair.after))
    step = max(8, _PIECE * 8 // widest // 8 * 8)
    for first in range(0, elements, step):
        yield _Piece(pair, first, min(step, elements - first))


def _compare_piece(piece: _Piece, tolerance: Tolerance, *, values: bool) -> _Numbers | None:
    pair, first, count = piece
    if pair.differs and not values:
        return None  # one difference is enough
    computes = values and _computable(pair.before) and _computable(pair.after)
    found = _Numbers() if computes else None
    widest = max(BITS.get(each.dtype, 128) for each in (pair.before, pair.after))
    step = max(8, _BLOCK * 8 // widest // 8 * 8)
    memory = bytearray(_bytes(pair.before, step)), bytearray(_bytes(pair.after, step))
    for begin in range(first, first + count, step):
        size = min(step, first + count - begin)
        one, two = (
            _read(tensor, begin, size, buffer)
            for tensor, buffer in zip((pair.before, pair.after), memory, strict=True)
        )
        if pair.same_kind and one == two:  # memcmp(3), where two views would compare one by one
            if found is not None:
                _add_equal(found, pair.before, one, size)
            continue
        pair.differs = True
        if found is None:
            return None
        _add(found, _decoded(pair.before, one, size), _decoded(pair.after, two, size), tolerance)
    return found


def _read(tensor: Tensor, first: int, count: int, buffer: bytearray) -> bytearray:
    length = _bytes(tensor, count)
    if length != len(buffer):
        buffer = bytearray(length)
    tensor.read_into(memoryview(buffer), _bytes(tensor, first))
    return buffer


# ---- computing


def _computable(tensor: Tensor) -> bool:
    try:
        WIDENING.decode(memoryview(bytearray(0)), tensor.dtype, (0,), None)
    except (UnsupportedError, KeyError):
        return False
    return True


def _decoded(tensor: Tensor, data: bytearray, count: int) -> Array:
    found: Array = WIDENING.decode(memoryview(data), tensor.dtype, (count,), None)
    return found


def _add_equal(found: _Numbers, tensor: Tensor, data: bytearray, count: int) -> None:
    found.elements += count
    found.decades[0] += count
    with np.errstate(all="ignore"):
        sizes = _magnitude(_decoded(tensor, data, count))
        found.norm += float(np.vdot(sizes, sizes)) if np.isfinite(sizes).all() else _norm(sizes)


def _norm(sizes: Array) -> float:
    finite = sizes[np.isfinite(sizes)]
    return float(np.vdot(finite, finite))


def _magnitude(values: Array) -> Array:
    sizes: Array = np.abs(_wide(values))
    return sizes


def _wide(values: Array) -> Array:
    """The same values as F64 or C128."""
    wide: Array = values.astype(np.complex128 if values.dtype.kind == "c" else np.float64)
    return wide


def _add(found: _Numbers, before: Array, after: Array, tolerance: Tolerance) -> None:
    with np.errstate(all="ignore"):
        apart = _distance(before, after)
        sizes = _magnitude(before)
        finite = np.isfinite(apart)
        if not finite.all():
            one, two = _wide(before), _wide(after)
            apart[(np.isnan(one) & np.isnan(two)) | (one == two)] = 0.0
            finite = np.isfinite(apart)
        within = apart <= tolerance.atol + tolerance.rtol * sizes
        kept = apart[finite]
        found.elements += len(apart)
        found.different += int(np.count_nonzero(apart))
        found.beyond += int(np.count_nonzero((apart != 0) & ~(within & finite)))
        strange = int(len(apart) - len(kept))
        found.not_finite += strange
        found.largest = max(found.largest, float(kept.max()) if len(kept) else 0.0)
        if strange:
            found.largest = math.inf
        found.total += math.inf if strange else float(kept.sum())
        found.squares += math.inf if strange else float(np.vdot(kept, kept))
        found.norm += _norm(sizes)
        found.decades += _by_decade(kept)


def _distance(before: Array, after: Array) -> Array:
    """The absolute differences, as F64; of integers exactly, until they are rounded to it."""
    if before.dtype == after.dtype and before.dtype.kind in "iu":
        low, high = np.minimum(before, after), np.maximum(before, after)
        unsigned = np.dtype(f"u{before.dtype.itemsize}")
        # Modulo 2^n, so that no difference of two signed numbers overflows.
        exact: Array = high.view(unsigned) - low.view(unsigned)
        return _wide(exact)
    apart: Array = np.abs(_wide(after) - _wide(before))
    return apart


def _by_decade(apart: Array) -> Array:
    """How many differences are 0, and of each order of magnitude."""
    places = np.zeros(len(apart), np.int64)
    some = apart > 0
    orders = np.floor(np.log10(apart[some]))
    places[some] = np.clip(orders, _LEAST, _MOST).astype(np.int64) - _LEAST + 1
    counts: Array = np.bincount(places, minlength=_MOST - _LEAST + 2)
    return counts


# ---- names and metadata


def _renamed(gone: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> dict[str, str]:
    """Old name -> new name of tensors with the same type, shape and bytes.

    If several tensors have the same bytes, they count only if there are as many on both sides.
    """
    kinds = {(each.dtype, each.shape) for each in gone.values()}
    kinds &= {(each.dtype, each.shape) for each in new.values()}
    sides = []
    for side in (gone, new):
        names = [
            name
            for name, each in side.items()
            if (each.dtype, each.shape) in kinds and each.unreadable is None
        ]
        digests = in_threads(
            lambda name, _, side=side: _digest(side[name]),  # type: ignore[misc]
            names,
            cost=lambda name, side=side: side[name].nbytes,  # type: ignore[misc]
        )
        by_digest: dict[tuple[Any, ...], list[str]] = {}
        for name, digest in zip(names, digests, strict=True):
            by_digest.setdefault((side[name].dtype, side[name].shape, digest), []).append(name)
        sides.append(by_digest)
    before, after = sides
    return {
        old: name
        for key, names in before.items()
        if len(after.get(key, ())) == len(names)
        for old, name in zip(names, after[key], strict=True)
    }


def _digest(tensor: Tensor) -> bytes:
    state = hashlib.sha256()
    for chunk in tensor.chunks(1 << 22):
        state.update(chunk)
    return state.digest()


def _tensor(name: str, tensor: Tensor) -> DiffTensorRecord:
    return {
        "name": name,
        "dtype": tensor.dtype,
        "shape": list(tensor.shape),
        "bytes": tensor.nbytes,
    }


def _renamed_record(old: str, new: str, tensor: Tensor) -> RenamedRecord:
    return {
        "before": old,
        "after": new,
        "dtype": tensor.dtype,
        "shape": list(tensor.shape),
        "bytes": tensor.nbytes,
    }


def _metadata(before: Mapping[str, str], after: Mapping[str, str]) -> DiffMetadataRecord:
    return {
        "added": {key: value for key, value in after.items() if key not in before},
        "removed": {key: value for key, value in before.items() if key not in after},
        "changed": {
            key: [value, after[key]]
            for key, value in before.items()
            if key in after and after[key] != value
        },
    }
