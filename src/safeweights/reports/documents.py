"""The documents that ``--json`` prints, as types; the JSON schemas are generated from them.

``python -m safeweights.reports.schema docs/schema`` writes the schemas; tests validate the output of all
commands with them. Every key is always present; its value is null if it does not apply. Within a version,
keys may be added, but never removed or changed in meaning.

Types only: no commands, no I/O.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypedDict

__all__ = [
    "DOCUMENTS",
    "AdmitDocument",
    "CheckDocument",
    "CheckResult",
    "CheckedFileRecord",
    "ConvertDocument",
    "ConvertedFileRecord",
    "DTypeRecord",
    "DecisionRecord",
    "DigestDocument",
    "DistributionRecord",
    "DroppedRecord",
    "ErrorDocument",
    "ErrorRecord",
    "FileRecord",
    "FindingRecord",
    "GetDocument",
    "GroupRecord",
    "HashDocument",
    "HashedFileRecord",
    "HashedTensorRecord",
    "KeygenDocument",
    "Level",
    "LsDocument",
    "PolicyCheckDocument",
    "PolicyExplainDocument",
    "PolicyNewDocument",
    "PullDocument",
    "PushDocument",
    "ReasonRecord",
    "RememberedRecord",
    "RuleRecord",
    "ShowDocument",
    "SignDocument",
    "SignerRecord",
    "StatisticsRecord",
    "StatsDocument",
    "Status",
    "TensorRecord",
    "TensorStatisticsRecord",
    "TotalRecord",
    "TransferredRecord",
    "UnreadableRecord",
    "VerifyDocument",
    "ViewDocument",
]

Level = Literal["error", "warning", "note"]
Status = Literal["ok", "bad", "unreadable"]
SignatureMethod = Literal["key", "certificate", "keyless"]
Number = int | float | None


class ErrorRecord(TypedDict):
    """The error that ended a command."""

    kind: Annotated[str, "Stable identifier of the kind of error, e.g. `format`, `os`, `usage`."]
    rule: Annotated[str | None, "The broken rule of the format, or another stable identifier."]
    message: Annotated[str, "A sentence for people."]
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
    parameters: Annotated[int, "Total number of elements."]
    bytes: Annotated[int, "Bytes of their data."]


class DTypeRecord(TypedDict):
    """Sums over the tensors of one element type."""

    dtype: Annotated[str, "Code of the element type, e.g. `BF16`."]
    tensors: Annotated[int, "Number of tensors."]
    parameters: Annotated[int, "Total number of elements."]
    bytes: Annotated[int, "Bytes of their data."]


class FileRecord(TypedDict):
    """One safetensors file of a checkpoint."""

    path: str
    bytes: Annotated[int, "Size of the file."]
    header_bytes: Annotated[int, "Size of its header, without the 8 bytes of the length."]
    tensors: Annotated[int, "Number of tensors in it."]


class UnreadableRecord(TypedDict):
    """Tensors whose values cannot be read, all for the same reason."""

    reason: Annotated[str, "Why, and what would help."]
    first: Annotated[str, "The name of the first of them."]
    tensors: Annotated[int, "Number of tensors."]
    parameters: Annotated[int, "Total number of elements, as far as known."]
    bytes: Annotated[int, "Bytes of their data, as far as known."]


class CacheRecord(TypedDict):
    """Memory for the keys and values of attention, which grows with every token."""

    bytes_per_token: Annotated[int, "Bytes for one token of one sequence."]
    dtype: Annotated[str, "Element type that is reckoned with."]
    how: Annotated[str, "The product that this is."]


class AdapterRecord(TypedDict):
    """What an adapter adapts."""

    type: Annotated[str | None, "Kind of adapter, e.g. `LORA`."]
    base: Annotated[str | None, "Name or path of the model it was made for."]
    rank: int | None
    alpha: int | None
    targets: Annotated[list[str], "Modules, or a pattern of modules, that it changes."]


class PartRecord(TypedDict):
    """A part of a pipeline, with weights of its own or without."""

    name: Annotated[str, "Its folder."]
    class_name: Annotated[str | None, "The class that it is loaded as."]
    total: Annotated[TotalRecord | None, "Sums over its tensors; null if it has no weights."]
    problem: Annotated[str | None, "Why its weights cannot be opened."]


class ModuleRecord(TypedDict):
    """A module of the model, or several of the same structure."""

    path: Annotated[str, "The common beginning of its tensors' names; `[0-31]` stands for numbers."]
    depth: Annotated[int, "Number of modules around it."]
    copies: Annotated[int, "Number of modules that the record stands for."]
    tensors: int
    parameters: int
    bytes: int


class MemoryRecord(TypedDict):
    """Memory that the weights take if all are of one element type."""

    dtype: str
    bytes: int


class CodeRecord(TypedDict):
    """Whether loading the model can run code, as far as was looked."""

    verdict: Annotated[Literal["no", "yes", "unknown"], "Unknown: something was not looked at."]
    reasons: Annotated[list[str], "What runs code, or was not looked at; at most 20."]


class QuantisedRecord(TypedDict):
    """The weights of one scheme of quantisation, see docs/quantised.md."""

    scheme: Annotated[str, "Its name, such as `gptq`."]
    weights: Annotated[int, "Number of weights that can be dequantised."]
    parameters: Annotated[int, "Elements of these weights, dequantised."]
    bytes: Annotated[int, "Bytes of all their stored parts."]
    bits_per_weight: Annotated[float | None, "Bits of stored data for each element."]


class ModelRecord(TypedDict):
    """What the model is, from headers and from the configuration files beside them."""

    summary: Annotated[str, "One line that says the most important."]
    source: Annotated[str | None, "The file that says what the model is."]
    architecture: Annotated[str | None, "Its class or family."]
    layers: Annotated[int | None, "Number of layers."]
    context: Annotated[int | None, "Number of tokens that it can attend to."]
    vocabulary: Annotated[int | None, "Number of tokens that it knows."]
    tied: Annotated[list[str], "Tensors that are another one's weights and are not stored."]
    quantisation: Annotated[str | None, "What the settings say the weights are quantised as."]
    quantised: Annotated[list[QuantisedRecord], "The schemes that names and types show."]
    bits_per_parameter: Annotated[float | None, "Bits of stored data for each element, on average."]
    memory: Annotated[
        list[MemoryRecord], "Memory for the weights alone: elements x bytes of the type."
    ]
    cache: Annotated[
        CacheRecord | None, "Memory for keys and values; null if that cannot be reckoned."
    ]
    adapter: Annotated[AdapterRecord | None, "What it adapts; null if it is no adapter."]
    parts: Annotated[list[PartRecord], "Parts of a pipeline, in its order; else empty."]
    modules: Annotated[list[ModuleRecord], "The tree of modules, as deep as 200 records allow."]
    signature: Annotated[str | None, "A signature file that covers it; it was not verified."]
    code: CodeRecord
    problems: Annotated[list[str], "What could not be read; names that loaders will not find."]


class ShowDocument(TypedDict):
    """`safeweights show`: summary of a model."""

    schema: Literal["safeweights.show/1"]
    path: str
    kind: Annotated[Literal["file", "index", "folder", "stdin"], "Kind of the path."]
    format: Annotated[str, "`safetensors`, or the format that was read as tensors."]
    model: ModelRecord
    total: TotalRecord
    dtypes: Annotated[list[DTypeRecord], "By element type, in descending order of parameters."]
    files: Annotated[list[FileRecord], "The safetensors files read; empty for other formats."]
    metadata: Annotated[dict[str, str] | None, "The `__metadata__`; null if there is none."]
    unreadable: Annotated[
        list[UnreadableRecord], "Tensors of the total whose values cannot be given, by the reason."
    ]
    calls: Annotated[
        list[str], "Functions that loading it calls, except those that build tensors; see `check`."
    ]


class TensorRecord(TypedDict):
    """One tensor."""

    name: str
    dtype: Annotated[
        str, "Code of the element type, e.g. `BF16`; `?` if the file does not tell it."
    ]
    shape: Annotated[list[int], "Elements along each axis; empty for a scalar, and with `?`."]
    parameters: Annotated[int, "Number of elements; 0 if unknown."]
    bytes: Annotated[int, "Bytes of its data."]
    file: Annotated[str | None, "The safetensors file that has it; null for other formats."]
    offset: Annotated[int | None, "Position of its first byte in that file."]
    unreadable: Annotated[str | None, "Why its values cannot be read; null if they can."]


class GroupRecord(TypedDict):
    """Tensors whose names have the same beginning, up to a dot."""

    path: Annotated[str, "The beginning of the names, including the final dot."]
    depth: Annotated[int, "Number of enclosing groups."]
    tensors: Annotated[int, "Number of tensors."]
    parameters: Annotated[int, "Total number of elements."]
    bytes: Annotated[int, "Bytes of their data."]


class LsDocument(TypedDict):
    """`safeweights ls`: the tensors of a checkpoint."""

    schema: Literal["safeweights.ls/1"]
    path: str
    total: Annotated[TotalRecord, "Sums over the listed tensors."]
    tensors: list[TensorRecord]
    groups: Annotated[
        list[GroupRecord] | None, "With `--tree`, outer groups first; otherwise null."
    ]
    calls: Annotated[
        list[str], "Functions that loading it calls, except those that build tensors; see `check`."
    ]


class FindingRecord(TypedDict):
    """A finding of `safeweights check`."""

    level: Annotated[Level, "An error breaks the format; a warning fails with `--strict`."]
    rule: Annotated[str, "Stable identifier of the rule."]
    message: Annotated[str, "A sentence for people."]
    file: Annotated[str, "The file."]
    tensor: Annotated[str | None, "The tensor's name."]
    offset: Annotated[int | None, "Byte offset in the file."]


class CheckResult(TypedDict):
    """The findings of `safeweights check` at one path."""

    path: str
    status: Annotated[Status, "`unreadable`: it could not be read, so it is neither ok nor bad."]
    formats: Annotated[list[str], "Formats of the files found there, e.g. `safetensors`."]
    total: Annotated[TotalRecord | None, "Sums over the safetensors files; null if none is valid."]
    findings: list[FindingRecord]
    truncated: Annotated[bool, "More findings exist than are listed."]


class CheckDocument(TypedDict):
    """`safeweights check`: every problem."""

    schema: Literal["safeweights.check/1"]
    ok: Annotated[bool, "Every path has the status `ok`."]
    strict: bool
    results: list[CheckResult]
    notes: Annotated[list[str], "Advice for all valid files."]


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


class ViewDocument(TypedDict):
    """`safeweights view`: where the page is."""

    schema: Literal["safeweights.view/1"]
    path: str
    address: Annotated[str | None, "The address, with its token, until the command ends."]
    output: Annotated[str | None, "With `--export`, the file; otherwise null."]


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


class ConvertedFileRecord(TypedDict):
    """One file that was read or written."""

    path: str
    format: Annotated[
        str, "The format in which it was read; `safetensors`, or `index` for an index of shards."
    ]
    tensors: Annotated[int, "Number of tensors in it."]
    bytes: Annotated[int, "Size of the file; with `--dry-run`, of an output's tensors."]
    sha256: Annotated[str | None, "Null for an output of `--dry-run`, and with `--no-digests`."]


class DroppedRecord(TypedDict):
    """A value that is not a tensor and was left out."""

    source: Annotated[str, "The file that has it."]
    name: Annotated[str, "Its place in the file."]
    what: Annotated[str, "Its kind, in a few words."]
    reason: Annotated[str, "Why it was left out; empty if the reason is that it is not a tensor."]
    count: Annotated[int, "Values that this record stands for: 1, or many whose names are alike."]


class ConvertDocument(TypedDict):
    """`safeweights convert`: the files and tensors read, written and left out."""

    schema: Literal["safeweights.convert/1"]
    dry_run: Annotated[bool, "Nothing was written."]
    sources: list[ConvertedFileRecord]
    outputs: list[ConvertedFileRecord]
    tensors: Annotated[int, "Number of tensors in the outputs."]
    bytes: Annotated[int, "Bytes of their data."]
    ties: Annotated[dict[str, str], "Name -> the name under which the tensor was written."]
    renamed: Annotated[dict[str, str], "Old name -> new name."]
    skipped: Annotated[list[str], "Tensors left out on request."]
    dropped: Annotated[
        list[DroppedRecord], "Values that are not tensors; at most 1,000 of `dropped_count`."
    ]
    dropped_count: Annotated[int, "How many values in all."]
    left_out: Annotated[list[str], "Files of the source folder that are not part of the model."]
    hints: Annotated[list[str], "What to do about names that loaders will not find."]
    calls: Annotated[
        dict[str, int], "Function that the source's own loader would call -> number of calls."
    ]
    dequantized: Annotated[dict[str, int], "Scheme -> number of weights that were dequantised."]


class EditedFileRecord(TypedDict):
    """A file that an edit reads, or that is there afterwards."""

    path: str
    format: Annotated[
        str, "The format in which it is read; `safetensors`, or `index` for an index of shards."
    ]
    tensors: Annotated[int, "Number of tensors in it."]
    bytes: Annotated[int, "Size of the file; of a source of another format, of its tensors."]
    how: Annotated[
        Literal["written", "header", "patched", "kept"],
        "What happens to an output: it is written anew; it gets a new header before the same data; a "
        "few bytes of its header are overwritten; nothing. `kept` for a source.",
    ]
    moved: Annotated[
        int, "Bytes of an output that are not read: the system copies them, or they stay."
    ]


class EditDocument(TypedDict):
    """`safeweights edit`: what changes, or with `--plan` would change."""

    schema: Literal["safeweights.edit/1"]
    dry_run: Annotated[bool, "Nothing was written."]
    in_place: Annotated[bool, "The source itself is changed."]
    sources: list[EditedFileRecord]
    outputs: list[EditedFileRecord]
    removed: Annotated[list[str], "Files of the checkpoint before that are not there afterwards."]
    tensors: Annotated[int, "Number of tensors in the outputs."]
    bytes: Annotated[int, "Bytes of their data."]
    renamed: Annotated[dict[str, str], "Old name -> new name."]
    dropped: Annotated[list[str], "Names left out."]
    added: Annotated[dict[str, str], "Name -> the checkpoint that it comes from."]
    cast: Annotated[dict[str, list[str]], "Name -> old type and new type."]
    ties: Annotated[dict[str, str], "Name -> the name under which its bytes are written."]
    untied: Annotated[list[str], "Names that were ties, and are tensors now."]
    metadata_set: Annotated[
        dict[str, str],
        "Entries that are set. The value of a digest of the data is empty until it is computed.",
    ]
    metadata_removed: Annotated[dict[str, str], "Key -> why the entry is left out."]
    notes: Annotated[list[str], "Sentences for people."]


class DeltaDocument(TypedDict):
    """`safeweights delta`: what was written."""

    schema: Literal["safeweights.delta/1"]
    path: Annotated[str, "The folder or file written."]
    version: Annotated[str, "The version that a delta gives; empty for a whole model."]
    changed: Annotated[int, "Number of tensors in a delta; of all tensors in a whole model."]
    tensors: Annotated[int, "Number of tensors in the model."]
    bytes: Annotated[int, "Size of the delta's tensors; of all tensors in a whole model."]
    whole_bytes: Annotated[int, "Bytes of all tensors in the model."]


class MendedRecord(TypedDict):
    """A file that was mended."""

    file: str
    what: Annotated[str, "A sentence for people."]


class DownloadRecord(TypedDict):
    """Bytes that have to be downloaded again."""

    file: str
    first: Annotated[int | None, "The first byte; null for the whole file."]
    last: Annotated[int | None, "The last byte; null for the end of the file."]
    why: Annotated[str, "A sentence for people."]


class RepairDocument(TypedDict):
    """`safeweights repair`: what was mended, and what is left."""

    schema: Literal["safeweights.repair/1"]
    path: str
    dry_run: Annotated[bool, "Nothing was written."]
    whole: Annotated[bool, "Nothing is left to do."]
    mended: list[MendedRecord]
    downloads: list[DownloadRecord]
    left: Annotated[dict[str, str], "File -> what is wrong with it and was not mended."]


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


class HashedFileRecord(TypedDict):
    """A file and its digest."""

    path: str
    bytes: Annotated[int, "Size of the file."]
    sha256: str


class HashedTensorRecord(TypedDict):
    """A tensor and the digest of its type, shape and bytes, independent of name and position."""

    file: str
    name: str
    dtype: Annotated[str, "Code of the element type, e.g. `BF16`."]
    shape: Annotated[list[int], "Elements along each axis; empty for a scalar."]
    sha256: Annotated[str, "Of dtype, NUL, the shape with commas, NUL, and the bytes."]


class CheckedFileRecord(TypedDict):
    """A line of a file of digests."""

    path: str
    status: Literal["ok", "mismatch", "missing", "unreadable"]


class FailedFileRecord(TypedDict):
    """A file or tensor that could not be hashed."""

    path: str
    message: Annotated[str, "A sentence for people."]


class HashDocument(TypedDict):
    """`safeweights hash`: digests of files or tensors, or the result of `--check`."""

    schema: Literal["safeweights.hash/1"]
    ok: Annotated[bool, "Whether everything was hashed; with `--check`, every status is `ok`."]
    data_only: Annotated[bool, "The digests are those of the data without headers: not for trust."]
    files: Annotated[list[HashedFileRecord] | None, "Null with `--tensors` and `--check`."]
    tensors: Annotated[list[HashedTensorRecord] | None, "With `--tensors`, otherwise null."]
    checked: Annotated[list[CheckedFileRecord] | None, "With `--check`, otherwise null."]
    failed: Annotated[list[FailedFileRecord] | None, "Null with `--check`."]


class KeygenDocument(TypedDict):
    """`safeweights keygen`: a key pair."""

    schema: Literal["safeweights.keygen/1"]
    private_key: Annotated[str, "The file to keep secret."]
    public_key: Annotated[str, "The file to publish."]
    curve: str
    encrypted: Annotated[bool, "The private key needs a passphrase."]
    key_hint: Annotated[str, "SHA-256 of the public key's PEM: how signatures name the key."]


class KeygenAgeDocument(TypedDict):
    """`safeweights keygen --age`: an identity that reads encrypted models."""

    schema: Literal["safeweights.keygen-age/1"]
    identity: Annotated[str, "The file to keep secret."]
    recipient: Annotated[str, "What others encrypt for."]
    post_quantum: Annotated[bool, "Secure against quantum computers."]


class EncryptDocument(TypedDict):
    """`safeweights encrypt`: an encrypted model."""

    schema: Literal["safeweights.encrypt/1"]
    path: str
    output: Annotated[str, "The file or folder with the result."]
    files: Annotated[list[str], "Names of the encrypted files."]
    bytes: Annotated[int, "Size of what was written."]
    key_file: Annotated[str | None, "Name of the key file; null for a single file."]
    recipients: Annotated[list[str], "Who can read it."]
    removed: Annotated[list[str], "Names of the plaintext files that were removed."]


class DecryptDocument(TypedDict):
    """`safeweights decrypt`: a model in plaintext."""

    schema: Literal["safeweights.decrypt/1"]
    path: str
    output: Annotated[str, "The file or folder with the result."]
    files: Annotated[list[str], "Names of the files."]
    bytes: int


class RekeyDocument(TypedDict):
    """`safeweights rekey`: who can read an encrypted model now."""

    schema: Literal["safeweights.rekey/1"]
    path: str
    key_file: Annotated[str, "The file that was written."]
    recipients: list[str]
    added: list[str]
    removed: Annotated[list[str], "With an old key file they can still read the files."]


class RecipientsRecord(TypedDict):
    """An encrypted file, and for whom it is encrypted, as far as that can be known without a key."""

    path: str
    types: Annotated[list[str], "The type of each recipient."]


class ShowEncryptedDocument(TypedDict):
    """`safeweights show` of an encrypted model without a key."""

    schema: Literal["safeweights.show-encrypted/1"]
    path: str
    kind: str
    encrypted: list[RecipientsRecord]


class SignDocument(TypedDict):
    """`safeweights sign`: the files signed and written."""

    schema: Literal["safeweights.sign/1"]
    path: str
    subject: Annotated[str, "The model's name in the signed statement."]
    root: Annotated[str, "SHA-256 over all digests, which identifies the contents."]
    signature: Annotated[str, "The signature file."]
    method: SignatureMethod
    key_hint: Annotated[str | None, "SHA-256 of the public key's PEM; null for keyless."]
    files: Annotated[
        list[HashedFileRecord], "The files that the signature covers, relative to the path."
    ]
    sidecars: Annotated[list[str], "The block trees written, for verified partial reads."]


class DigestDocument(TypedDict):
    """`safeweights digest`: the digest of the contents that a signature would have."""

    schema: Literal["safeweights.digest/1"]
    path: str
    subject: Annotated[str, "The model's name."]
    root: Annotated[str, "SHA-256 over all digests, which identifies the contents."]
    files: Annotated[
        list[HashedFileRecord], "The files that a signature would cover, relative to the path."
    ]


class SignerRecord(TypedDict):
    """The signer."""

    method: SignatureMethod
    key_hint: Annotated[str | None, "SHA-256 of the public key's PEM; null for keyless."]
    subject: Annotated[str | None, "From the certificate."]
    issuer: Annotated[str | None, "From the certificate."]
    certificate_sha256: Annotated[str | None, "The certificate's fingerprint."]
    identity: Annotated[str | None, "The keyless identity."]
    oidc_issuer: Annotated[str | None, "The issuer of the identity."]
    timestamp: Annotated[str | None, "The earliest trusted timestamp over the signature."]
    recorded: Annotated[str | None, "When the transparency log recorded it (RFC 3339)."]


class ReasonRecord(TypedDict):
    """A reason for or against a model."""

    code: Annotated[str, "Stable identifier."]
    text: Annotated[str, "A sentence for people."]
    against: Annotated[bool, "Whether it is a reason to refuse the model."]
    file: Annotated[str | None, "The file concerned, or null."]


class DecisionRecord(TypedDict):
    """A policy's decision about a model, and its reasons."""

    verdict: Annotated[
        Literal["allow", "warn", "refuse"],
        "`warn`: the rules refuse the model, but the policy's mode allows it.",
    ]
    subject: Annotated[str, "The model's name in the rules."]
    level: Annotated[str, "The level of trust reached."]
    rule: Annotated[str | None, "The pattern of the rule that decided; null if none matched."]
    signer: Annotated[str | None, "The signer's name in the policy."]
    reasons: Annotated[list[ReasonRecord], "Reasons against the model come first."]
    files: Annotated[dict[str, str], "File -> SHA-256: the contents that the verdict applies to."]


class VerifyDocument(TypedDict):
    """`safeweights verify`: a model that matches its signature. Otherwise an error is printed."""

    schema: Literal["safeweights.verify/1"]
    ok: Annotated[bool, "False only if a policy refuses the model."]
    path: str
    signature: Annotated[str, "The signature file."]
    signed_by: Annotated[SignerRecord | None, "Null if a policy requires no signature."]
    files: Annotated[list[HashedFileRecord], "The files compared, relative to the path."]
    unsigned: Annotated[list[str], "Existing files that the signature does not cover."]
    decision: Annotated[DecisionRecord | None, "With `--policy`, otherwise null."]


class VerifyLogDocument(TypedDict):
    """`safeweights verify --log`: an unchanged audit log. Otherwise an error is printed."""

    schema: Literal["safeweights.verify-log/1"]
    ok: Annotated[bool, "False only if the log has no line."]
    path: str
    lines: int
    head: Annotated[str, "The hash of the last line; store it elsewhere, for `--head`."]


class AdmitDocument(TypedDict):
    """`safeweights admit`: one verdict for a whole model."""

    schema: Literal["safeweights.admit/1"]
    path: str
    decision: DecisionRecord
    warrant: Annotated[str | None, "Identifier of the warrant; null if the model is refused."]
    warrant_file: Annotated[str | None, "With `--warrant`, the file written."]
    log_head: Annotated[str | None, "With `--log`, the log's last hash."]


class TransferredRecord(TypedDict):
    """A file that was pulled or pushed."""

    path: Annotated[str, "Its name in the folder."]
    bytes: int


class PullDocument(TypedDict):
    """`safeweights pull`: a model that was fetched."""

    schema: Literal["safeweights.pull/1"]
    url: Annotated[str, "Without credentials."]
    folder: str
    admitted: Annotated[bool | None, "Whether the folder has the model now; null without a policy."]
    files: list[TransferredRecord]
    fetched: Annotated[int, "Bytes that came from the store."]
    reused: Annotated[int, "Bytes that were there already."]
    decision: DecisionRecord | None


class PushDocument(TypedDict):
    """`safeweights push`: a model that was written into a store."""

    schema: Literal["safeweights.push/1"]
    url: Annotated[str, "Without credentials."]
    files: list[TransferredRecord]
    manifest: Annotated[str | None, "Of a registry: the digest of the model's manifest."]
    signature: Annotated[str | None, "Of a registry: the digest of the signature's manifest."]


class RuleRecord(TypedDict):
    """A rule of a policy."""

    number: Annotated[int, "From 1, in the order of the policy."]
    pattern: str
    level: Annotated[str, "none, known, pinned, signed or logged."]
    signers: list[str]
    first_use: bool


class RememberedRecord(TypedDict):
    """The entry of a model in a lock file."""

    level: str
    signer: str | None
    release: int | None
    files: Annotated[dict[str, str], "File name -> SHA-256."]


class PolicyNewDocument(TypedDict):
    """`safeweights policy new`: the policy that was written."""

    schema: Literal["safeweights.policy-new/1"]
    path: str
    kind: str


class PolicyCheckDocument(TypedDict):
    """`safeweights policy check`: a policy without errors."""

    schema: Literal["safeweights.policy-check/1"]
    path: str
    mode: Annotated[str, "enforce, warn or off."]
    root: Annotated[str, "The folder that models are named relative to."]
    rules: list[RuleRecord]
    unreachable: Annotated[list[int], "Numbers of rules that never apply."]


class PolicyExplainDocument(TypedDict):
    """`safeweights policy explain`: which rule applies to a model, and why."""

    schema: Literal["safeweights.policy-explain/1"]
    path: Annotated[str, "Below the root, in the one spelling that rules see."]
    subject: Annotated[str, "The model that the path belongs to."]
    root: str | None
    problem: Annotated[str | None, "Why no rule can apply."]
    rules: list[RuleRecord]
    matches: Annotated[list[str | None], "For each rule, the path or the folder that it matches."]
    applies: Annotated[int | None, "Number of the rule that decides."]
    signature: Annotated[str, "The expected signature file."]
    has_signature: bool
    other_rules: Annotated[list[str], "Files of a folder to which an earlier rule applies."]
    remembered: RememberedRecord | None


DOCUMENTS = (
    ShowDocument,
    LsDocument,
    CheckDocument,
    GetDocument,
    StatsDocument,
    ViewDocument,
    ConvertDocument,
    EditDocument,
    DiffDocument,
    RepairDocument,
    DeltaDocument,
    HashDocument,
    KeygenDocument,
    KeygenAgeDocument,
    EncryptDocument,
    DecryptDocument,
    RekeyDocument,
    ShowEncryptedDocument,
    SignDocument,
    DigestDocument,
    VerifyDocument,
    VerifyLogDocument,
    AdmitDocument,
    PullDocument,
    PushDocument,
    ErrorDocument,
    PolicyNewDocument,
    PolicyCheckDocument,
    PolicyExplainDocument,
)
"""The documents that have a schema file."""
