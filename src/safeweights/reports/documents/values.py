"""Documents about values: `stats`, `get`, `diff`."""

from __future__ import annotations

from typing import Annotated, Literal, TypedDict

__all__ = [
    "ChangedRecord",
    "ComparedStatisticsRecord",
    "DecadeRecord",
    "DiffDocument",
    "DiffMetadataRecord",
    "DiffTensorRecord",
    "DifferenceRecord",
    "DistributionRecord",
    "GetDocument",
    "Number",
    "RenamedRecord",
    "StatisticsChangeRecord",
    "StatisticsRecord",
    "StatsCompareDocument",
    "StatsDocument",
    "TensorStatisticsRecord",
]

Number = int | float | None


class DistributionRecord(TypedDict):
    """How finite values are distributed, from all of them or from an even sample."""

    sampled: Annotated[int, "Number of values it was taken from."]
    quantiles: Annotated[dict[str, float], "Share -> the value that this share does not exceed."]
    low: Annotated[float, "Lower end of the histogram: nearly no value is below."]
    high: Annotated[float, "Upper end of the histogram."]
    bins: Annotated[list[int], "Values in each of 24 equal bins; those outside count at the ends."]


class StatisticsRecord(TypedDict):
    """Statistics of values; min, max, mean and std are computed from the finite values."""

    min: Annotated[Number, "Null if no value is finite, and for complex numbers."]
    max: Annotated[Number, "Null if no value is finite, and for complex numbers."]
    mean: Annotated[
        float | list[float] | None,
        "[real, imaginary] for complex numbers; null if no value is finite, or on overflow.",
    ]
    std: Annotated[
        float | None,
        "Standard deviation of the population; null if the mean is null, or on overflow.",
    ]
    zeros: Annotated[int, "Values equal to 0."]
    nan: Annotated[int, "Values that are not a number."]
    inf: Annotated[int, "Infinite values."]
    dead_rows: Annotated[
        int | None, "Rows along the last axis that are all 0; null if there are no such rows."
    ]
    distribution: Annotated[
        DistributionRecord | None, "Null for complex numbers, and without values."
    ]


class TensorStatisticsRecord(TypedDict):
    """One tensor and its statistics."""

    name: str
    dtype: Annotated[str, "Code of the element type."]
    shape: list[int]
    statistics: Annotated[StatisticsRecord | None, "Null if its values cannot be read."]
    unreadable: Annotated[str | None, "Why its values cannot be read; null if they can."]


class StatsDocument(TypedDict):
    """`safeweights stats`: statistics of many tensors."""

    schema: Literal["safeweights.stats/1"]
    path: str
    finite: Annotated[bool, "Whether no value that was read is NaN or infinite."]
    tensors: list[TensorStatisticsRecord]


class StatisticsChangeRecord(TypedDict):
    """The statistics after, minus those before; null where one of them is null or complex."""

    min: Number
    max: Number
    mean: float | None
    std: float | None
    zeros: int
    nan: int
    inf: int
    dead_rows: int | None
    quantiles: Annotated[
        dict[str, float], "Share -> the change; empty if one side has no distribution."
    ]


class ComparedStatisticsRecord(TypedDict):
    """The statistics of the tensors with one name in two checkpoints."""

    name: str
    before: Annotated[TensorStatisticsRecord | None, "Null if only the second has the tensor."]
    after: Annotated[TensorStatisticsRecord | None, "Null if only the first has the tensor."]
    change: Annotated[
        StatisticsChangeRecord | None, "Null unless the values of both could be read."
    ]


class StatsCompareDocument(TypedDict):
    """`safeweights stats --compare`: statistics of two checkpoints, side by side."""

    schema: Literal["safeweights.stats-compare/1"]
    before: Annotated[str, "The first path."]
    after: Annotated[str, "The second path."]
    finite: Annotated[bool, "Whether no value that was read is NaN or infinite."]
    tensors: list[ComparedStatisticsRecord]


class GetDocument(TypedDict):
    """`safeweights get`: one tensor, or a part of one."""

    schema: Literal["safeweights.get/1"]
    path: str
    tensor: Annotated[str, "The tensor's name."]
    dtype: Annotated[str, "Code of the element type, e.g. `BF16`."]
    tensor_shape: Annotated[list[int], "Shape of the whole tensor."]
    selection: Annotated[str | None, "The selection, e.g. `[0, :]`; null for the whole tensor."]
    shape: Annotated[list[int], "Shape of the selection."]
    values: Annotated[
        list[bool | int | float | str | list[float | str]] | None,
        "The first values in C order, complex ones as [real, imaginary]; `NaN`, `Infinity` and "
        "`-Infinity` are strings. Null with `--stats` and `-o`.",
    ]
    truncated: Annotated[bool, "There are more values than `values` has."]
    statistics: Annotated[StatisticsRecord | None, "With `--stats`, otherwise null."]
    output: Annotated[str | None, "The file written with `-o`, otherwise null."]


class DiffTensorRecord(TypedDict):
    """A tensor that is in one of two checkpoints, or the same in both."""

    name: str
    dtype: Annotated[str, "Code of the element type, e.g. `BF16`."]
    shape: Annotated[list[int], "Elements along each axis; empty for a scalar."]
    bytes: Annotated[int, "Bytes of its data."]


class DecadeRecord(TypedDict):
    """Elements whose difference is of one order of magnitude."""

    least: Annotated[float, "The smallest difference counted here: a power of ten, or 0."]
    elements: Annotated[int, "How many differ by that, and by less than ten times that."]


class DifferenceRecord(TypedDict):
    """How the values of two tensors differ. A NaN equals a NaN."""

    elements: Annotated[int, "Number of elements compared."]
    different: Annotated[int, "Elements that are not equal."]
    beyond: Annotated[int, "Elements that differ by more than the tolerance."]
    max: Annotated[float | None, "Largest absolute difference; null if infinite or NaN."]
    mean: Annotated[float | None, "Mean absolute difference, over all elements."]
    relative: Annotated[
        float | None, "Norm of the difference, divided by the norm of the values before."
    ]
    not_finite: Annotated[
        int, "Elements of which one is NaN or infinite and the other is another value."
    ]
    histogram: Annotated[list[DecadeRecord], "The finite differences, smallest first."]


class RenamedRecord(TypedDict):
    """A tensor with the same type, shape and bytes under another name."""

    before: Annotated[str, "Its name in the first checkpoint."]
    after: Annotated[str, "Its name in the second."]
    dtype: str
    shape: list[int]
    bytes: int


class ChangedRecord(TypedDict):
    """A tensor that is not the same in two checkpoints."""

    name: str
    before: DiffTensorRecord
    after: DiffTensorRecord
    close: Annotated[bool, "All elements are equal within the tolerance."]
    values: Annotated[
        DifferenceRecord | None, "With `--values` or a tolerance, if the shape is the same."
    ]


class DiffMetadataRecord(TypedDict):
    """How metadata differs."""

    added: dict[str, str]
    removed: dict[str, str]
    changed: Annotated[dict[str, list[str]], "Key -> the value before, and the value after."]


class DiffDocument(TypedDict):
    """`safeweights diff`: what differs between two checkpoints."""

    schema: Literal["safeweights.diff/1"]
    before: Annotated[str, "The first path."]
    after: Annotated[str, "The second path."]
    same: Annotated[bool, "Nothing differs, but for values within the tolerance."]
    rtol: Annotated[float, "Tolerance, relative to the value before."]
    atol: Annotated[float, "Tolerance that is added to it."]
    unchanged: Annotated[int, "Tensors with the same name, type, shape and bytes."]
    added: list[DiffTensorRecord]
    removed: list[DiffTensorRecord]
    renamed: list[RenamedRecord]
    retyped: Annotated[list[ChangedRecord], "Tensors of another type or shape."]
    changed: Annotated[list[ChangedRecord], "Tensors with other bytes."]
    metadata: Annotated[DiffMetadataRecord | None, "Null with `--no-metadata`."]
    unreadable: Annotated[
        dict[str, str], "Tensors that were compared by type and shape only -> why."
    ]


DOCUMENTS = (
    StatsDocument,
    StatsCompareDocument,
    GetDocument,
    DiffDocument,
)
