"""Documents of `pull` and `push`."""

from __future__ import annotations

from typing import Annotated, Literal, TypedDict

from .trust import DecisionRecord

__all__ = [
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


DOCUMENTS = (
    PullDocument,
    PushDocument,
)
