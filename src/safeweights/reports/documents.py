"""What ``--json`` prints: the shape of every document, defined once.

The files in ``docs/schema`` are generated from these types (``python -m safeweights.reports.schema``)
and tested against what the commands print. Every key is always there; what does not apply is null.
Within a version keys may be added, never removed or changed in meaning.

Types only: no command, no reading.
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
    "ReasonRecord",
    "RememberedRecord",
    "RuleRecord",
    "ShowDocument",
    "SignDocument",
    "SignerRecord",
    "StatisticsRecord",
    "Status",
    "TensorRecord",
    "TotalRecord",
    "UnreadableRecord",
    "VerifyDocument",
]

Level = Literal["error", "warning", "note"]
Status = Literal["ok", "bad", "unreadable"]
Method = Literal["key", "certificate", "keyless"]
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


class UnreadableRecord(TypedDict):
    """Tensors whose values cannot be given, all for one reason."""

    reason: Annotated[str, "Why, and what would allow it."]
    first: Annotated[str, "The name of the first of them."]
    tensors: Annotated[int, "Number of tensors."]
    parameters: Annotated[int, "Number of elements of all of them, as far as known."]
    bytes: Annotated[int, "Bytes of their data, as far as known."]


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
    unreadable: Annotated[
        list[UnreadableRecord], "Tensors of the total whose values cannot be given, by the reason."
    ]
    calls: Annotated[list[str], "What loading it calls but to build tensors; see `check`."]


class TensorRecord(TypedDict):
    """One tensor."""

    name: str
    dtype: Annotated[
        str, "Code of the element type, e.g. `BF16`; `?` if the file does not tell it."
    ]
    shape: Annotated[list[int], "Elements along each axis; empty for a scalar, and with `?`."]
    parameters: Annotated[int, "Number of elements; 0 if unknown."]
    bytes: Annotated[int, "Bytes of its data."]
    file: Annotated[str | None, "The safetensors file it is in; null for other formats."]
    offset: Annotated[int | None, "Position of its first byte in that file."]
    unreadable: Annotated[str | None, "Why its values cannot be given; null if they can."]


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
    calls: Annotated[list[str], "What loading it calls but to build tensors; see `check`."]


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
    notes: Annotated[list[str], "What is true of all good files, and no finding of any."]


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


class ConvertedFileRecord(TypedDict):
    """One file that was read or written."""

    path: str
    format: Annotated[str, "The format it was read as; `safetensors`, or `index` of shards."]
    tensors: Annotated[int, "Number of tensors in it."]
    bytes: Annotated[int, "Size of the file; with `--dry-run`, of an output's tensors."]
    sha256: Annotated[str | None, "Null for an output of `--dry-run`, and with `--no-digests`."]


class DroppedRecord(TypedDict):
    """Something that is no tensor, which the output does not hold."""

    source: Annotated[str, "The file it is in."]
    name: Annotated[str, "Where in it."]
    what: Annotated[str, "What it is, in a few words."]
    reason: Annotated[str, "Why it was left out; empty where being no tensor is why."]


class ConvertDocument(TypedDict):
    """`safeweights convert`: what was read, written and left out."""

    schema: Literal["safeweights.convert/1"]
    dry_run: Annotated[bool, "Nothing was written."]
    sources: list[ConvertedFileRecord]
    outputs: list[ConvertedFileRecord]
    tensors: Annotated[int, "Number of tensors in the outputs."]
    bytes: Annotated[int, "Bytes of their data."]
    ties: Annotated[dict[str, str], "Name -> the name that is written for both."]
    renamed: Annotated[dict[str, str], "Old name -> new name."]
    skipped: Annotated[list[str], "Tensors left out on request."]
    dropped: Annotated[list[DroppedRecord], "What is no tensor; at most 1,000 of `dropped_count`."]
    dropped_count: int
    calls: Annotated[dict[str, int], "What the sources' own loader would have called -> how often."]


class HashedFileRecord(TypedDict):
    """One file by its contents."""

    path: str
    bytes: Annotated[int, "Size of the file."]
    sha256: str


class HashedTensorRecord(TypedDict):
    """One tensor by its type, shape and bytes; not by its name or place."""

    file: str
    name: str
    dtype: Annotated[str, "Code of the element type, e.g. `BF16`."]
    shape: Annotated[list[int], "Elements along each axis; empty for a scalar."]
    sha256: Annotated[str, "Of dtype, NUL, the shape with commas, NUL, and the bytes."]


class CheckedFileRecord(TypedDict):
    """One line of a check file."""

    path: str
    status: Literal["ok", "mismatch", "missing", "unreadable"]


class FailedFileRecord(TypedDict):
    """What could not be hashed."""

    path: str
    message: Annotated[str, "One sentence for a person."]


class HashDocument(TypedDict):
    """`safeweights hash`: digests of files or tensors, or whether a check file's are right."""

    schema: Literal["safeweights.hash/1"]
    ok: Annotated[bool, "Whether everything was hashed; with `--check`, every status is `ok`."]
    files: Annotated[list[HashedFileRecord] | None, "Null with `--tensors` and `--check`."]
    tensors: Annotated[list[HashedTensorRecord] | None, "With `--tensors`, else null."]
    checked: Annotated[list[CheckedFileRecord] | None, "With `--check`, else null."]
    failed: Annotated[list[FailedFileRecord] | None, "Null with `--check`."]


class KeygenDocument(TypedDict):
    """`safeweights keygen`: a key pair."""

    schema: Literal["safeweights.keygen/1"]
    private_key: Annotated[str, "The file to keep secret."]
    public_key: Annotated[str, "The file to publish."]
    curve: str
    encrypted: Annotated[bool, "Using the private key takes a passphrase."]
    key_hint: Annotated[str, "SHA-256 of the public key's PEM: how signatures name the key."]


class SignDocument(TypedDict):
    """`safeweights sign`: what was signed and written."""

    schema: Literal["safeweights.sign/1"]
    path: str
    subject: Annotated[str, "The model's name in the signed statement."]
    root: Annotated[str, "SHA-256 over all digests, which identifies the contents."]
    signature: Annotated[str, "The signature file."]
    method: Method
    key_hint: Annotated[str | None, "SHA-256 of the public key's PEM; null for keyless."]
    files: Annotated[list[HashedFileRecord], "What the signature covers, relative to the path."]
    sidecars: Annotated[list[str], "The block trees written, for verified partial reads."]


class DigestDocument(TypedDict):
    """`safeweights digest`: what a signature of the model would say about its contents."""

    schema: Literal["safeweights.digest/1"]
    path: str
    subject: Annotated[str, "The model's name."]
    root: Annotated[str, "SHA-256 over all digests, which identifies the contents."]
    files: Annotated[list[HashedFileRecord], "What a signature would cover, relative to the path."]


class SignerRecord(TypedDict):
    """Who signed."""

    method: Method
    key_hint: Annotated[str | None, "SHA-256 of the public key's PEM; null for keyless."]
    subject: Annotated[str | None, "Of the certificate."]
    issuer: Annotated[str | None, "Of the certificate."]
    certificate_sha256: Annotated[str | None, "The certificate's fingerprint."]
    identity: Annotated[str | None, "The keyless identity."]
    oidc_issuer: Annotated[str | None, "Who vouched for that identity."]
    timestamp: Annotated[str | None, "The earliest trusted timestamp over the signature."]
    recorded: Annotated[str | None, "When the transparency log recorded it (RFC 3339)."]


class ReasonRecord(TypedDict):
    """One thing that spoke for or against a model."""

    code: Annotated[str, "Stable identifier."]
    text: Annotated[str, "One sentence for a person."]
    against: Annotated[bool, "Whether it stands in the way."]
    file: Annotated[str | None, "The file it is about, if one."]


class DecisionRecord(TypedDict):
    """What a policy says of a model, and why."""

    verdict: Annotated[
        Literal["allow", "warn", "refuse"],
        "`warn`: it would be refused, but the policy's mode lets it pass.",
    ]
    subject: Annotated[str, "The model's name, for the rules."]
    level: Annotated[str, "The level of trust that was reached."]
    rule: Annotated[str | None, "The pattern of the rule that decided; null where none matched."]
    signer: Annotated[str | None, "The policy's name of who signed."]
    reasons: Annotated[list[ReasonRecord], "What stands in the way first."]
    files: Annotated[dict[str, str], "File -> SHA-256: what the verdict is about."]


class VerifyDocument(TypedDict):
    """`safeweights verify`: a model is what was signed. If not, there is an error instead."""

    schema: Literal["safeweights.verify/1"]
    ok: Annotated[bool, "False only where a policy refuses."]
    path: str
    signature: Annotated[str, "The signature file."]
    signed_by: Annotated[SignerRecord | None, "Null where a policy asks for no signature."]
    files: Annotated[list[HashedFileRecord], "What was compared, relative to the path."]
    unsigned: Annotated[list[str], "Files that are there and that the signature leaves out."]
    decision: Annotated[DecisionRecord | None, "With `--policy`, else null."]


class VerifyLogDocument(TypedDict):
    """`safeweights verify --log`: an audit log is as it was written. If not, there is an error instead."""

    schema: Literal["safeweights.verify-log/1"]
    ok: Annotated[bool, "False only where the log has no line."]
    path: str
    lines: int
    head: Annotated[str, "The hash of the last line; keep it elsewhere, for `--head`."]


class AdmitDocument(TypedDict):
    """`safeweights admit`: one verdict for a whole model."""

    schema: Literal["safeweights.admit/1"]
    path: str
    decision: DecisionRecord
    warrant: Annotated[str | None, "Identifier of what was admitted; null for a refusal."]
    warrant_file: Annotated[str | None, "With `--warrant`, the file written."]
    log_head: Annotated[str | None, "With `--log`, the log's last hash."]


class RuleRecord(TypedDict):
    """A rule of a policy."""

    number: Annotated[int, "From 1, in the order of the policy."]
    pattern: str
    level: Annotated[str, "none, known, pinned, signed or logged."]
    signers: list[str]
    first_use: bool


class RememberedRecord(TypedDict):
    """What a lock file remembers of a model."""

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
    signature: Annotated[str, "The signature file that is looked for."]
    has_signature: bool
    other_rules: Annotated[list[str], "Files of a folder to which an earlier rule applies."]
    remembered: RememberedRecord | None


DOCUMENTS = (
    ShowDocument,
    LsDocument,
    CheckDocument,
    GetDocument,
    ConvertDocument,
    HashDocument,
    KeygenDocument,
    SignDocument,
    DigestDocument,
    VerifyDocument,
    VerifyLogDocument,
    AdmitDocument,
    ErrorDocument,
    PolicyNewDocument,
    PolicyCheckDocument,
    PolicyExplainDocument,
)
"""The documents that have a schema file."""
