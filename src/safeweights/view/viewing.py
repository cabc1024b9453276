"""What the page shows, as data: the model, its tensors, values, findings, the verdict of a policy.

No HTTP and no HTML. Every answer is bounded, however large the model: lists come in pages, pictures in
cells. Names are escaped for display; the page asks for a tensor by its number, never by its name.
"""

from __future__ import annotations

import base64
import math
import os
import shutil
import tempfile
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from ..conversion.opening import open as open_any
from ..errors import UnsupportedError
from ..format.indexing import select
from ..reports.bytemap import byte_map
from ..reports.checking import check
from ..reports.difference import compare
from ..reports.inventory import natural
from ..reports.models import document_of, open_model
from ..reports.statistics import statistics_of
from ..reports.values import read
from ..storage.places import is_url
from ..text import escape

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..checkpoint import Tensor
    from ..reports.inventory import Row

__all__ = ["ORDERS", "Region", "Viewed"]

ORDERS: Final = ("file", "name", "size", "parameters", "dtype")
"""Orders in which tensors are listed."""

_PAGE_MAX: Final = 500
"""Maximum number of tensors in one answer."""

_CELLS_MAX: Final = 1024
"""Maximum number of cells of a picture along each axis."""

_EXACT_MAX: Final = 1 << 24
"""Values up to which a picture is made of all of them; of more, of evenly chosen ones."""

_SHOWN_MAX: Final = 4000
"""Maximum number of values given as numbers."""

_PIECES_MAX: Final = 5000
"""Maximum number of pieces in the map of all files."""


class Region(NamedTuple):
    """A two-dimensional part of a tensor of any rank.

    Attributes:
        outer: Positions along all axes but the last two.
        rows: First row, and number of rows; a tensor of one axis is one row.
        columns: First column, and number of columns.
    """

    outer: tuple[int, ...]
    rows: tuple[int, int]
    columns: tuple[int, int]


class Viewed:
    """A model that is looked at. Safe to use from several threads.

    Args:
        path: A path or URL, as for `safeweights.describe`.
        policy: A policy by whose rules it is judged, or the path of one; nothing is remembered.
        key: The public key of the required signer, or the path of one.
        other: The path or URL of another model, which is compared with this one.

    Raises:
        FormatError, OSError: See `safeweights.describe`.
        DocumentError: `key` is no public key.
    """

    def __init__(
        self, path: str, *, policy: Any = None, key: Any = None, other: str | None = None
    ) -> None:
        self.path = path
        self._policy = policy
        self._key = _public_key(key)
        self._other = None if other is None else open_any(other, backend="pread")
        self._opened = open_model(path)
        self.document = document_of(path, self._opened)
        self.rows: list[Row] = self._opened.found
        self._orders: dict[str, list[int]] = {"file": list(range(len(self.rows)))}
        files = [each["path"] for each in self.document["files"]]
        self._states = {path: _state(path) for path in files if not is_url(path)}
        self._heavy = Lock()  # one picture or statistic at a time: memory is that of one

    # ---- lists

    def tensors(
        self, query: str = "", order: str = "file", start: int = 0, count: int = 100
    ) -> Any:
        """A page of the list of tensors whose names contain `query`, case not counting."""
        found = self._sorted(order if order in ORDERS else "file")
        if query:
            wanted = query.casefold()
            found = [number for number in found if wanted in self.rows[number].name.casefold()]
        start, count = max(0, start), max(0, min(count, _PAGE_MAX))
        page = found[start : start + count]
        return {"total": len(found), "start": start, "tensors": [self._record(n) for n in page]}

    def _sorted(self, order: str) -> list[int]:
        if order not in self._orders:
            rows = self.rows
            keys: dict[str, Any] = {
                "name": lambda number: natural(rows[number].name),
                "size": lambda number: -rows[number].nbytes,
                "parameters": lambda number: -rows[number].parameters,
                "dtype": lambda number: rows[number].dtype,
            }
            self._orders[order] = sorted(self._orders["file"], key=keys[order])
        return self._orders[order]

    def _record(self, number: int) -> dict[str, Any]:
        row = self.rows[number]
        return {
            "number": number,
            "name": escape(row.name[:_SHOWN_MAX]),
            "dtype": row.dtype,
            "shape": list(row.shape),
            "parameters": row.parameters,
            "bytes": row.nbytes,
            "file": None if row.file is None else escape(os.path.basename(row.file)),
            "offset": row.offset,
            "unreadable": row.unreadable,
        }

    def map(self) -> list[dict[str, Any]]:
        """Where the bytes of each safetensors file are, with names to be shown."""
        return [
            {
                "file": escape(os.path.basename(each["file"])),
                "bytes": each["bytes"],
                "pieces": [{**piece, "name": escape(piece["module"])} for piece in each["pieces"]],
            }
            for each in byte_map(self.document["files"], self.rows, _PIECES_MAX)
        ]

    # ---- one tensor

    def tensor(self, number: int) -> Tensor:
        """The tensor of this number, whose values can be read.

        Raises:
            UnsupportedError: There is none, or its values cannot be read.
        """
        if not 0 <= number < len(self.rows):
            raise UnsupportedError(f"there is no tensor number {number}")
        tensor = self._opened.tensor(self.rows[number].name)
        tensor.check_readable()
        return tensor

    def statistics(self, number: int) -> dict[str, Any]:
        """What is known of a tensor, with statistics of all its values.

        Raises:
            UnsupportedError: Its values cannot be read.
        """
        tensor = self.tensor(number)
        with self._heavy:
            (found,) = statistics_of([(tensor, select(..., tensor.shape))])
        return {**self._record(number), "statistics": _finite(found)}

    def picture(self, number: int, region: Region, cells: tuple[int, int]) -> dict[str, Any]:
        """A region as cells of 0 to 254, each the mean of its values; 255 stands for NaN or infinity.

        Args:
            number: The tensor.
            region: What of it; cut to what there is.
            cells: Maximum number of cells along rows and columns.

        Raises:
            UnsupportedError: Its values cannot be read.
        """
        tensor = self.tensor(number)
        region = _within(region, tensor.shape)
        with self._heavy:
            values, sampled = _values(tensor, region)
        height, width = (max(1, min(most, _CELLS_MAX)) for most in cells)
        means = _means(values, height, width)
        good = means[np.isfinite(means)]
        low, high = (float(good.min()), float(good.max())) if good.size else (0.0, 0.0)
        bound = max(abs(low), abs(high))
        # Symmetric around 0: half of the colours are for each sign.
        scaled = np.full(means.shape, 255, np.uint8)
        place = (
            (means[np.isfinite(means)] / bound + 1) * 127 if bound else np.full(good.size, 127.0)
        )
        scaled[np.isfinite(means)] = np.rint(place).astype(np.uint8)
        return {
            "region": _plain(region),
            "shape": list(tensor.shape),
            "cells": list(means.shape),
            "low": low,
            "high": high,
            "bound": bound,
            "sampled": sampled,
            "data": base64.b64encode(scaled.tobytes()).decode(),
        }

    def values(self, number: int, region: Region) -> dict[str, Any]:
        """A region as text of numbers, at most 4,000 of them.

        Raises:
            UnsupportedError: Its values cannot be read.
        """
        tensor = self.tensor(number)
        region = _within(region, tensor.shape)
        columns = min(region.columns[1], _SHOWN_MAX)
        rows = min(region.rows[1], max(1, _SHOWN_MAX // max(1, columns)))
        part = region._replace(rows=(region.rows[0], rows), columns=(region.columns[0], columns))
        with self._heavy:
            found = _read(tensor, part, 1, 1)
        return {
            "region": _plain(part),
            "rows": [[f"{value:.4g}" for value in row] for row in found.tolist()],
        }

    # ---- verdicts

    @cached_property
    def findings(self) -> Any:
        """What `safeweights.check` finds."""
        if is_url(self.path):
            return {"unavailable": "check a copy on this machine: `safeweights pull`, then `check`"}
        return check(self.path)

    @cached_property
    def verdict(self) -> Any:
        """What the policy says; None without one. Nothing is remembered and nothing recorded."""
        if self._policy is None:
            return None
        from ..reports.admission import admit
        from ..trust.policies.lockfile import LockFile
        from ..trust.policies.policy import Policy
        from ..trust.policies.policy_file import load_policy

        given = self._policy
        policy = given if isinstance(given, Policy) else load_policy(given)
        with tempfile.TemporaryDirectory() as folder:
            lock = os.path.join(folder, "lock")
            if policy.lock and os.path.exists(policy.lock):
                shutil.copyfile(policy.lock, lock)
            admission = admit(self.path, policy, lock=LockFile(lock))
        return admission.decision.to_dict()

    @cached_property
    def signature(self) -> dict[str, Any]:
        """Whether the signature is by the required key, and covers every file as it is now."""
        found: dict[str, Any] = {
            "file": self.document["model"]["signature"],
            "verified": None,
            "by": None,
            "problem": None,
            "files": 0,
            "unsigned": [],
        }
        if self._key is None:
            return found
        from ..trust import TrustError, verify

        try:
            done = verify(self.path, self._key)
        except (TrustError, OSError) as error:
            return found | {"verified": False, "problem": str(error)}
        return found | {
            "file": done.signature,
            "verified": True,
            "by": done.signed_by.fingerprint(),
            "files": len(done.files),
            "unsigned": [escape(name) for name in done.unsigned[:_PAGE_MAX]],
        }

    @cached_property
    def difference(self) -> Any:
        """What differs from this model in the other one, values included; None without another.

        Cost: reads both models once. At most 500 records of each kind.
        """
        if self._other is None:
            return None
        if self._opened.root is None:
            return {"unavailable": "this model consists of parts: compare one part with another"}
        with self._heavy:
            found: dict[str, Any] = dict(compare(self._opened.root, self._other, values=True))
        counts = {}
        for kind in ("added", "removed", "renamed", "retyped", "changed"):
            counts[kind] = len(found[kind])
            found[kind] = found[kind][:_PAGE_MAX]
        return {**_finite(found), "counts": counts}

    def changed(self) -> bool:
        """Whether a file on this machine was replaced or changed since it was opened."""
        return any(_state(path) != state for path, state in self._states.items())


def _public_key(key: Any) -> Any:
    if not isinstance(key, str | os.PathLike):
        return key
    from ..trust import load_public_key

    return load_public_key(key)


def _state(path: str) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


# ---- regions


def _within(region: Region, shape: Sequence[int]) -> Region:
    """The region cut to what a tensor of this shape has.

    Raises:
        UnsupportedError: It has no such position, or no values.
    """
    *outer, height, width = (1, 1, *shape)[-max(2, len(shape)) :]
    index = (region.outer + (0,) * len(outer))[: len(outer)]
    if not all(0 <= at < size for at, size in zip(index, outer, strict=True)):
        raise UnsupportedError(f"the shape {list(shape)} has no position {list(index)}")
    if not (height and width):
        raise UnsupportedError("the tensor has no values")
    return Region(index, _cut(region.rows, height), _cut(region.columns, width))


def _cut(run: tuple[int, int], size: int) -> tuple[int, int]:
    first = max(0, min(run[0], size - 1))
    return first, max(1, min(run[1], size - first))


def _values(tensor: Tensor, region: Region) -> tuple[Any, bool]:
    """The values of a region, and whether only some were read."""
    rows, columns = region.rows[1], region.columns[1]
    step = across = 1
    while (rows // step) * (columns // across) > _EXACT_MAX:
        if rows // step >= columns // across:
            step += 1
        else:
            across += 1
    return _read(tensor, region, step, across), step > 1 or across > 1


def _read(tensor: Tensor, region: Region, step: int, across: int) -> Any:
    (top, height), (left, width) = region.rows, region.columns
    rows, columns = slice(top, top + height, step), slice(left, left + width, across)
    expression: tuple[Any, ...] = (*region.outer, rows, columns)[-len(tensor.shape) :]
    found = read(tensor, select(expression if tensor.shape else ..., tensor.shape))
    with np.errstate(all="ignore"):
        wide = np.abs(found) if found.dtype.kind == "c" else found.astype(np.float64)
    return wide.reshape(1, -1) if wide.ndim < 2 else wide


def _means(values: Any, height: int, width: int) -> Any:
    """Means over at most `height` x `width` blocks of about the same size."""
    with np.errstate(all="ignore"):
        for axis, most in ((0, height), (1, width)):
            size = values.shape[axis]
            if size > most:
                edges = np.linspace(0, size, most + 1).astype(int)[:-1]
                counts = np.diff([*edges, size])
                values = np.add.reduceat(values, edges, axis=axis)
                values = values / (counts[:, None] if axis == 0 else counts)
    return values


def _plain(region: Region) -> dict[str, Any]:
    return {
        "outer": list(region.outer),
        "rows": list(region.rows),
        "columns": list(region.columns),
    }


def _finite(record: Any) -> Any:
    """A record without numbers that JSON has no word for."""
    if isinstance(record, dict):
        return {key: _finite(value) for key, value in record.items()}
    if isinstance(record, list):
        return [_finite(value) for value in record]
    return None if isinstance(record, float) and not math.isfinite(record) else record
