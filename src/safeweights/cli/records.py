"""What ``--json`` prints: the shape of every document, defined once.

The files in ``docs/schema`` are generated from these types (``python -m safeweights.cli.schema``)
and tested against what the commands print. Every key is always there; what does not apply is null.
Within a version keys may be added, never removed or changed in meaning.

Types only: no command, no reading.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypedDict

__all__ = [
    "DOCUMENTS",
    "CheckDocument",
    "CheckResult",
    "DTypeRecord",
    "ErrorDocument",
    "ErrorRecord",
    "FileRecord",
    "FindingRecord",
    "GetDocument",
    "GroupRecord",
    "Level",
    "LsDocument",
    "ShowDocument",
    "StatisticsRecord",
    "Status",
    "TensorRecord",
    "TotalRecord",
]

Level = Literal["error", "warning", "note"]
Status = Literal["ok", "bad", "unreadable"]
Number = int | float | None


class ErrorRecord(TypedDict):
    """Why a command did not do what was asked."""

    kind: Annotated[str, "Stable identifier of the kind of error, e.g. `format`, `os`, `usage`."]
    rule: Annotated[str | None, "The broken rule of the format, or another stable identifier."]
    message: Annotated[str, "One sentence for a person."]
    path: Annotated[str | None, "The file."]
    tensor: Annotated[str | None, "The tensor's name."]
    offset: Annotated[int | None, "Byte offset in the file."]


class ErrorDocument(TypedDict):
    """Printed instead of a command's document when the command failed."""

    schema: Literal["safeweights.error/1"]
    exit_code: Annotated[int, "The exit status of the process."]
    error: ErrorRecord


class TotalRecord(TypedDict):
    """Sums over tensors."""

    tensors: Annotated[int, "Number of tensors."]
    parameters: Annotated[int, "Number of elements of all of them."]
    bytes: Annotated[int, "Bytes of their data."]


class DTypeRecord(TypedDict):
    """Sums over the tensors of one element type."""

    dtype: Annotated[str, "Code of the element type, e.g. `BF16`."]
    tensors: Annotated[int, "Number of tensors."]
    parameters: Annotated[int, "Number of elements of all of them."]
    bytes: Annotated[int, "Bytes of their data."]


class FileRecord(TypedDict):
    """One safetensors file of a checkpoint."""

    path: str
    bytes: Annotated[int, "Size of the file."]
    header_bytes: Annotated[int, "Size of its header, without the 8 bytes of the length."]
    tensors: Annotated[int, "Number of tensors in it."]


class ShowDocument(TypedDict):
    """`safeweights show`: what a model is."""

    schema: Literal["safeweights.show/1"]
    path: str
    kind: Annotated[Literal["file", "index", "folder", "stdin"], "What the path is."]
    format: Annotated[str, "`safetensors`, or the format that was read as tensors."]
    total: TotalRecord
    dtypes: Annotated[list[DTypeRecord], "By element type, the most parameters first."]
    files: Annotated[list[FileRecord], "The safetensors files read; empty for other formats."]
    metadata: Annotated[dict[str, str] | None, "The `__metadata__`; null where there is none."]


class TensorRecord(TypedDict):
    """One tensor."""

    name: str
    dtype: Annotated[str, "Code of the element type, e.g. `BF16`."]
    shape: Annotated[list[int], "Elements along each axis; empty for a scalar."]
    parameters: Annotated[int, "Number of elements."]
    bytes: Annotated[int, "Bytes of its data."]
    file: Annotated[str | None, "The safetensors file it is in; null for other formats."]
    offset: Annotated[int | None, "Position of its first byte in that file."]


class GroupRecord(TypedDict):
    """Tensors whose names begin alike, up to a dot."""

    path: Annotated[str, "What the names begin with, the final dot included."]
    depth: Annotated[int, "Groups around this one."]
    tensors: Annotated[int, "Number of tensors."]
    parameters: Annotated[int, "Number of elements of all of them."]
    bytes: Annotated[int, "Bytes of their data."]


class LsDocument(TypedDict):
    """`safeweights ls`: the tensors of a checkpoint."""

    schema: Literal["safeweights.ls/1"]
    path: str
    total: Annotated[TotalRecord, "Of the tensors listed."]
    tensors: list[TensorRecord]
    groups: Annotated[list[GroupRecord] | None, "With `--tree`, outer groups first; else null."]


class FindingRecord(TypedDict):
    """One thing that `safeweights check` found."""

    level: Annotated[Level, "An error breaks the format; a warning fails with `--strict`."]
    rule: Annotated[str, "Stable identifier of the rule."]
    message: Annotated[str, "One sentence for a person."]
    file: Annotated[str, "The file."]
    tensor: Annotated[str | None, "The tensor's name."]
    offset: Annotated[int | None, "Byte offset in the file."]


class CheckResult(TypedDict):
    """What `safeweights check` found at one path."""

    path: str
    status: Annotated[Status, "`unreadable`: it could not be looked at, so neither ok nor bad."]
    formats: Annotated[list[str], "Formats of the files found there, e.g. `safetensors`."]
    total: Annotated[TotalRecord | None, "Of the safetensors files; null where none is valid."]
    findings: list[FindingRecord]
    truncated: Annotated[bool, "There is more than was listed."]


class CheckDocument(TypedDict):
    """`safeweights check`: everything that is wrong."""

    schema: Literal["safeweights.check/1"]
    ok: Annotated[bool, "Every path has the status `ok`."]
    strict: bool
    results: list[CheckResult]


class StatisticsRecord(TypedDict):
    """Statistics of values; min, max, mean and std are those of the finite ones."""

    min: Annotated[Number, "Null where no value is finite, and for complex numbers."]
    max: Annotated[Number, "Null where no value is finite, and for complex numbers."]
    mean: Annotated[
        float | list[float] | None,
        "[real, imaginary] for complex numbers; null where no value is finite or it overflows.",
    ]
    std: Annotated[float | None, "Of the population; null where the mean is, or it overflows."]
    zeros: Annotated[int, "Values equal to 0."]
    nan: Annotated[int, "Values that are not a number."]
    inf: Annotated[int, "Infinite values."]


class GetDocument(TypedDict):
    """`safeweights get`: one tensor, or a part of one."""

    schema: Literal["safeweights.get/1"]
    path: str
    tensor: Annotated[str, "Its name."]
    dtype: Annotated[str, "Code of the element type, e.g. `BF16`."]
    tensor_shape: Annotated[list[int], "Shape of the whole tensor."]
    selection: Annotated[str | None, "What was selected, e.g. `[0, :]`; null for all of it."]
    shape: Annotated[list[int], "Shape of what was selected."]
    values: Annotated[
        list[bool | int | float | str | list[float | str]] | None,
        "The first values in C order, complex ones as [real, imaginary]; `NaN`, `Infinity` and "
        "`-Infinity` are strings. Null with `--stats` and `-o`.",
    ]
    truncated: Annotated[bool, "There are more values than `values` has."]
    statistics: Annotated[StatisticsRecord | None, "With `--stats`, else null."]
    output: Annotated[str | None, "The file written with `-o`, else null."]


DOCUMENTS = (ShowDocument, LsDocument, CheckDocument, GetDocument, ErrorDocument)
"""The documents that have a schema file."""
