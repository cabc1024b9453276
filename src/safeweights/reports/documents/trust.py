"""Documents about whose bytes these are: `hash`, keys, encryption, signatures, policies."""

from __future__ import annotations

from typing import Annotated, Literal, TypedDict

from .common import HashedFileRecord

__all__ = [
    "AdmitDocument",
    "CheckedFileRecord",
    "CheckedSignatureRecord",
    "DecisionRecord",
    "DecryptDocument",
    "DigestDocument",
    "EncryptDocument",
    "FailedFileRecord",
    "HashDocument",
    "HashedTensorRecord",
    "KeygenAgeDocument",
    "KeygenDocument",
    "PolicyCheckDocument",
    "PolicyExplainDocument",
    "PolicyNewDocument",
    "ReasonRecord",
    "RekeyDocument",
    "RememberedRecord",
    "RuleRecord",
    "SignCheckDocument",
    "SignDocument",
    "SignatureMethod",
    "SignerRecord",
    "VerifyDocument",
    "VerifyLogDocument",
]

SignatureMethod = Literal["key", "certificate", "keyless"]


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
    recipient_file: Annotated[str, "The file that has the recipient, to publish."]
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


class CheckedSignatureRecord(TypedDict):
    """A model, and whether its signature is valid."""

    path: Annotated[str, "The model: a folder with a signature, or a file."]
    signature: Annotated[str, "The signature file, or where it would be."]
    status: Annotated[
        Literal["ok", "missing", "invalid"],
        "`invalid`: files changed since, or the signature is not by this key.",
    ]
    message: Annotated[str | None, "What is wrong, for people; null if nothing is."]


class SignCheckDocument(TypedDict):
    """`safeweights sign --check`: whether models are signed as they are now."""

    schema: Literal["safeweights.sign-check/1"]
    ok: bool
    results: list[CheckedSignatureRecord]


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
    HashDocument,
    KeygenDocument,
    KeygenAgeDocument,
    EncryptDocument,
    DecryptDocument,
    RekeyDocument,
    SignDocument,
    SignCheckDocument,
    DigestDocument,
    VerifyDocument,
    VerifyLogDocument,
    AdmitDocument,
    PolicyNewDocument,
    PolicyCheckDocument,
    PolicyExplainDocument,
)
