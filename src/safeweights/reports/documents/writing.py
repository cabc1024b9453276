"""Documents of the commands that write checkpoints: `convert`, `edit`, `delta`, `repair`."""

from __future__ import annotations

from typing import Annotated, Literal, TypedDict

__all__ = [
    "ConvertDocument",
    "ConvertedFileRecord",
    "DeltaDocument",
    "DownloadRecord",
    "DroppedRecord",
    "EditDocument",
    "EditedFileRecord",
    "MendedRecord",
    "RepairDocument",
]


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


DOCUMENTS = (
    ConvertDocument,
    EditDocument,
    DeltaDocument,
    RepairDocument,
)
