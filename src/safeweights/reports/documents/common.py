"""Records that several commands print, and the document of a command that failed."""

from __future__ import annotations

from typing import Annotated, Literal, TypedDict

__all__ = [
    "ErrorDocument",
    "ErrorRecord",
    "HashedFileRecord",
    "TotalRecord",
]


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


class HashedFileRecord(TypedDict):
    """A file and its digest."""

    path: str
    bytes: Annotated[int, "Size of the file."]
    sha256: str


DOCUMENTS = (ErrorDocument,)
