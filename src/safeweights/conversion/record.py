"""What a conversion did: the report it returns and the provenance record it leaves.

The record lies beside the output as JSON, so that anybody who finds the file later can tell what it
was made from, with which tool, and what of the source it does not hold. It has no time stamp: the
same conversion gives the same record.
"""

from __future__ import annotations

import base64
import json
import math
import os
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

from ..errors import FormatError
from ..storage.windows import read_bytes
from .pickles.flatten import Other, summary
from .pickles.nodes import Blob, DictNode, Value

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Conversion", "ConvertedFile", "DroppedItem", "json_value", "others_as_json"]

RECORD_TYPE: Final = "safeweights/provenance/v1"
_TEXT_MAX: Final = 1 << 20


@dataclass(frozen=True)
class ConvertedFile:
    """One file that was read or written; `sha256` is None where digests were not asked for."""

    path: str
    size: int
    format: str
    tensors: int
    sha256: str | None = None


@dataclass(frozen=True)
class DroppedItem:
    """Something of the source that the output does not hold."""

    source: str
    name: str
    what: str
    reason: str = ""


@dataclass
class Conversion:
    """What a conversion read, wrote and left out.

    Attributes:
        sources: The files read.
        outputs: The files written, or that would be written.
        tensors: How many tensors the outputs hold, and `nbytes` how large they are.
        ties: Name -> the name whose bytes it shares, for names that are not written twice.
        renamed: Old name -> new name.
        skipped: Tensors left out on request.
        dropped: What is not a tensor, the first entries of `dropped_count`.
        calls: What the sources' own loader would have called, each once, with how often.
        options: The options that changed values.
        dry_run: Whether nothing was written.
    """

    sources: list[ConvertedFile] = field(default_factory=list)
    outputs: list[ConvertedFile] = field(default_factory=list)
    tensors: int = 0
    nbytes: int = 0
    ties: dict[str, str] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    dropped: list[DroppedItem] = field(default_factory=list)
    dropped_count: int = 0
    calls: dict[str, int] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    dry_run: bool = False

    def to_json(self, version: str) -> dict[str, Any]:
        """The provenance record as plain data for `json.dumps`."""
        fields = asdict(self)
        for entry in (*fields["sources"], *fields["outputs"]):
            entry["path"] = os.path.basename(entry["path"])  # folders are nobody else's business
        for entry in fields["dropped"]:
            entry["source"] = os.path.basename(entry["source"])
        tool = {"name": "safeweights", "version": version}
        return {"type": RECORD_TYPE, "tool": tool, **fields}


def dropped_records(path: str, others: Iterable[Other], limit: int) -> list[DroppedItem]:
    """The first `limit` things of a source that are no tensors, in words."""
    records: list[DroppedItem] = []
    for other in others:
        if len(records) == limit:
            break
        records.append(DroppedItem(path, other.name, summary(other.value), other.reason))
    return records


def others_as_json(others: Iterable[Other]) -> str:
    """What is no tensor as one JSON object, flattened name -> value.

    Bytes become ``{"base64": ...}``; numbers that JSON lacks become text; what is an object rather
    than data becomes its description.

    Raises:
        FormatError: A text is longer than 1 MiB.
    """
    values = {other.name: json_value(other.value) for other in others}
    # ASCII, so that lone surrogates, which pickles can hold and UTF-8 cannot, stay escapes.
    return json.dumps(values, separators=(",", ":"), sort_keys=True)


def json_value(value: Value) -> Any:
    """A leaf of a flattened tree as plain JSON data."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode("ascii")}
    if isinstance(value, Blob):
        return _blob_text(value)
    if isinstance(value, DictNode):
        return {str(key)[:4096]: _shallow(item) for key, item in value.pairs}
    if isinstance(value, (list, tuple)):
        return [_shallow(item) for item in value]
    return summary(value)


def _shallow(value: Value) -> Any:
    return summary(value) if isinstance(value, (DictNode, list, tuple)) else json_value(value)


def _blob_text(blob: Blob) -> Any:
    if blob.length > _TEXT_MAX:
        raise FormatError(
            f"{blob.length} bytes that are no tensor are too long for metadata",
            rule="metadata",
            path=blob.source.name,
            offset=blob.offset,
        )
    data = read_bytes(blob.source, blob.offset, blob.length)
    if blob.encoding is None or blob.latin1:
        return json_value(b"".join(blob.pieces()))
    return data.decode("utf-8", "replace")
