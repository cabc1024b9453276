"""Documents about what a model is: `show`, `ls`, `view`."""

from __future__ import annotations

from typing import Annotated, Literal, TypedDict

from .common import TotalRecord

__all__ = [
    "AdapterRecord",
    "CacheRecord",
    "CodeRecord",
    "DTypeRecord",
    "FileMapRecord",
    "FileRecord",
    "GroupRecord",
    "LsDocument",
    "MemoryRecord",
    "ModelRecord",
    "ModuleRecord",
    "PartRecord",
    "PieceRecord",
    "QuantisedRecord",
    "RecipientsRecord",
    "ShowDocument",
    "ShowEncryptedDocument",
    "TensorRecord",
    "UnreadableRecord",
    "ViewDocument",
]


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


class PieceRecord(TypedDict):
    """Neighbouring bytes of a file that belong together."""

    module: Annotated[
        str, "`header`, or the common beginning of the names; `tensors` for all of a file."
    ]
    begin: Annotated[int, "Position of the first byte."]
    end: Annotated[int, "Position after the last byte."]
    tensors: Annotated[int, "Number of tensors; 0 for the header."]


class FileMapRecord(TypedDict):
    """Where the bytes of a file are."""

    file: str
    bytes: Annotated[int, "Size of the file."]
    pieces: Annotated[list[PieceRecord], "All bytes of the file, in order."]


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
    map: Annotated[
        list[FileMapRecord], "Where the bytes of these files are: some 200 pieces in all."
    ]
    metadata: Annotated[dict[str, str] | None, "The `__metadata__`; null if there is none."]
    unreadable: Annotated[
        list[UnreadableRecord], "Tensors of the total whose values cannot be given, by the reason."
    ]
    calls: Annotated[
        list[str], "Functions that loading it calls, except those that build tensors; see `check`."
    ]


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


class ViewDocument(TypedDict):
    """`safeweights view`: where the page is."""

    schema: Literal["safeweights.view/1"]
    path: str
    address: Annotated[str | None, "The address, with its token, until the command ends."]
    output: Annotated[str | None, "With `--export`, the file; otherwise null."]


DOCUMENTS = (
    ShowDocument,
    ShowEncryptedDocument,
    LsDocument,
    ViewDocument,
)
