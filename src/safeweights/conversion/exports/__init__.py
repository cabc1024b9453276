"""Checkpoints in other formats, for programs that do not read safetensors: .npz, .bin, .gguf.

The name of the destination decides. Files are written without the libraries that read them, in one pass:
each format's writer gives the size and the buffers of the file, as `saving.serialized` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ...checkpoint.saving import serialized
from ...errors import UnsupportedError, quote
from . import gguf_file, numpy_file, torch_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from ...checkpoint import Tensor
    from ...storage import Buffer, Computed

    FileWriter = Callable[
        [Mapping[str, Tensor], Mapping[str, str]], tuple[int, Iterator[Buffer | Computed]]
    ]

__all__ = ["EXPORTS", "contents_of", "format_of"]

_WRITERS: Final[dict[str, tuple[str, FileWriter]]] = {
    ".npz": ("npz", numpy_file.npz),
    ".bin": ("torch-zip", torch_file.torch_zip),
    ".pt": ("torch-zip", torch_file.torch_zip),
    ".pth": ("torch-zip", torch_file.torch_zip),
    ".gguf": ("gguf", gguf_file.gguf),
}

EXPORTS: Final = tuple(_WRITERS)
"""How the names of files end that are not written as safetensors."""


def format_of(name: str) -> str:
    """The format in which a file of this name is written.

    >>> format_of("model.npz"), format_of("model.safetensors")
    ('npz', 'safetensors')
    """
    found = next((kind for suffix, (kind, _) in _WRITERS.items() if name.endswith(suffix)), None)
    return found or "safetensors"


def contents_of(
    name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> tuple[int, Iterator[Buffer | Computed]]:
    """Size and contents of a file called `name`.

    Raises:
        FormatError: The format cannot hold a name or a shape.
        UnsupportedError: It has no such element type.
    """
    for suffix, (_, write) in _WRITERS.items():
        if name.endswith(suffix):
            for tensor in tensors.values():
                tensor.check_readable()
            return write(tensors, metadata)
    return serialized(tensors, metadata or None)


def no_type(name: str, tensor: Tensor, what: str, known: str) -> UnsupportedError:
    """The error of an element type that a format lacks."""
    return UnsupportedError(
        f"tensor {quote(name)} is {tensor.dtype}, which {what} cannot hold; convert it to another type "
        f"(dtype, --dtype), such as {known}, or leave it out (skip, --skip)",
        tensor=name,
    )
