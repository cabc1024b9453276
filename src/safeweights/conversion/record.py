"""What a conversion did: the report that it returns and the provenance record that it writes.

The record is a JSON file beside the output. It says what the output was made from, with which tool, and
what of the source it does not contain. It has no time stamp: the same conversion gives the same record.
"""

from __future__ import annotations

import base64
import json
import math
import os
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

from ..display import Displayed
from ..errors import FormatError
from ..storage.windows import read_bytes
from ..text import human_bytes, plural
from .pickles.flatten import Other, summary
from .pickles.nodes import Blob, DictNode, Global, SetNode, Value
from .pickles.plain import key_name, plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["PART", "Conversion", "ConvertedFile", "DroppedItem", "json_value", "others_as_json"]

PART: Final = "part"
"""The format of a file of a distributed checkpoint, of which the first one stands for all."""

RECORD_TYPE: Final = "safeweights/provenance/v1"
_TEXT_MAX: Final = 1 << 20
_DEPTH_MAX: Final = 16


@dataclass(frozen=True)
class ConvertedFile:
    """One file that was read or written; `sha256` is None if no digests were computed."""

    path: str
    size: int
    format: str
    tensors: int
    sha256: str | None = None


@dataclass(frozen=True)
class DroppedItem:
    """Something in the source that the output does not contain, or `count` of a kind."""

    source: str
    name: str
    what: str
    reason: str = ""
    count: int = 1


@dataclass(repr=False)
class Conversion(Displayed):
    """What a conversion read, wrote and left out.

    Attributes:
        sources: The files that were read.
        outputs: The files that were written; those of a dry run would be.
        tensors: Number of tensors in the outputs.
        nbytes: Bytes of these tensors.
        ties: Name -> the name of the tensor whose bytes it shares; those bytes are written once.
        renamed: Old name -> new name.
        skipped: Tensors left out on request.
        dropped: Values other than tensors that were left out: the first ones.
        dropped_count: How many there are in all.
        left_out: Files of a folder that were not converted, because they are not part of its model.
        hints: What to do about names that loaders of the model will not find.
        calls: Name of a function that the format's own loader would have called -> how often.
        dequantized: Scheme -> number of weights that were dequantised.
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
    left_out: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)
    calls: dict[str, int] = field(default_factory=dict)
    dequantized: dict[str, int] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    dry_run: bool = False

    def _summary(self) -> str:
        read = plural(len(self.sources), "file")
        written = "would be written" if self.dry_run else "written"
        files = f"{plural(len(self.outputs), 'file')} {written} from {read}"
        return f"{files}, {plural(self.tensors, 'tensor')}, {human_bytes(self.nbytes)}"

    def _table(self) -> tuple[Sequence[str], Iterable[Sequence[str]]]:
        def row(side: str, file: ConvertedFile) -> tuple[str, ...]:
            return side, file.path, file.format, str(file.tensors), human_bytes(file.size)

        rows = [row("read", file) for file in self.sources]
        rows += [row("written", file) for file in self.outputs]
        return ("", "file", "format", "tensors", "size"), rows

    def to_json(self, version: str) -> dict[str, Any]:
        """The provenance record as plain data for `json.dumps`."""
        fields = asdict(self)
        for entry in (*fields["sources"], *fields["outputs"]):
            entry["path"] = os.path.basename(entry["path"])  # folders may be private
        for entry in fields["dropped"]:
            entry["source"] = os.path.basename(entry["source"])
        fields["left_out"] = [os.path.basename(path) for path in fields["left_out"]]
        del fields["hints"]
        tool = {"name": "safeweights", "version": version}
        return {"type": RECORD_TYPE, "tool": tool, **fields}


_GROUP: Final = 8
"""Values of one kind that are listed one by one."""


def dropped_records(path: str, others: Iterable[Other], limit: int) -> list[DroppedItem]:
    """The first `limit` values of a source that are not tensors, described.

    Many of a kind whose names begin and end alike, such as ``_metadata.*.version``, are one record.
    """
    groups: dict[tuple[str, str, str, str], list[Other]] = {}
    for other in others:
        first, dot, rest = other.name.partition(".")
        last = rest.rpartition(".")[2]
        kind = type(other.value).__name__
        groups.setdefault((first + dot, last, kind, other.reason), []).append(other)
    records: list[DroppedItem] = []
    for (first, last, _, reason), alike in groups.items():
        if len(alike) > _GROUP:
            shown = summary(alike[0].value)
            name = f"{first}*.{last}" if first.endswith(".") else f"{first}*"
            what = f"{len(alike):,} values, the first is {shown}"
            records.append(DroppedItem(path, name, what, reason, len(alike)))
        else:
            records += [DroppedItem(path, each.name, summary(each.value), reason) for each in alike]
    return records[:limit]


def others_as_json(others: Iterable[Other]) -> str:
    """Values other than tensors as one JSON object: flattened name -> value.

    Bytes become ``{"base64": ...}``, paths, dates, members of enumerations and types their text or value,
    numbers that JSON lacks text. An object that is not plain data becomes a description.

    Raises:
        FormatError: A text is longer than 1 MiB.
    """
    plainly = _Plain()
    values = {other.name: plainly.value(other.value) for other in others}
    # ASCII, so that lone surrogates, which pickles can hold and UTF-8 cannot, stay escapes.
    return json.dumps(values, separators=(",", ":"), sort_keys=True)


def json_value(value: Value) -> Any:
    """A node or atom as plain JSON data; see `others_as_json`."""
    return _Plain().value(value)


class _Plain:
    """Makes plain data of nodes: of at most a million, 16 levels deep; of the others descriptions."""

    def __init__(self) -> None:
        self._left = 1_000_000

    def value(self, value: Value, depth: int = 0) -> Any:
        """See `json_value`."""
        value = plain(value)
        self._left -= 1
        if value is None or isinstance(value, (bool, int, str)):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else repr(value)
        if isinstance(value, bytes):
            return {"base64": base64.b64encode(value).decode("ascii")}
        if isinstance(value, Blob):
            return _blob_text(value)
        if isinstance(value, Global):
            return value.path
        if depth < _DEPTH_MAX and self._left > 0:
            if isinstance(value, DictNode):
                pairs = value.pairs
                return {key_name(key)[:4096]: self.value(item, depth + 1) for key, item in pairs}
            if isinstance(value, (list, tuple)):
                return [self.value(item, depth + 1) for item in value]
            if isinstance(value, SetNode):
                return [self.value(item, depth + 1) for item in value.items]
        return summary(value)


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
