"""Documents of `pull`, `push` and `batch`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypedDict

from .trust import DecisionRecord

__all__ = [
    "BatchDocument",
    "BatchUnitRecord",
    "PullDocument",
    "PushDocument",
    "TransferredRecord",
]


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


class BatchUnitRecord(TypedDict):
    """One file or folder of a batch."""

    source: Annotated[str, "Path or URL, without credentials."]
    target: Annotated[str | None, "Path or URL of the result."]
    status: Literal["ok", "bad", "usage", "unreadable"]
    exit_code: Annotated[int, "Exit status of the command for this unit."]
    message: Annotated[str | None, "Why it is not ok."]
    document: Annotated[
        dict[str, Any] | None,
        "What the command prints with `--json`, or `safeweights.error/1`.",
    ]


class BatchDocument(TypedDict):
    """`safeweights batch`: what came of every unit, in the order of the sources."""

    schema: Literal["safeweights.batch/1"]
    ok: Annotated[bool, "Every unit is ok."]
    command: Annotated[str, "The command: convert, check, hash, sign, verify, admit or pull."]
    counts: Annotated[dict[str, int], "Status -> number of units."]
    units: list[BatchUnitRecord]


DOCUMENTS = (
    PullDocument,
    PushDocument,
    BatchDocument,
)
