"""GGUF version 3 with tensors that are not quantised (github.com/ggml-org/ggml, docs/gguf.md).

Metadata is what the caller gives: strings, or ``TYPE:VALUE`` with one of GGUF's types, such as ``u32:32``.
Programs need ``general.architecture`` and the keys of that architecture, and names of their own: this
writes the container, and guesses nothing.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from ...errors import FormatError, quote

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ...checkpoint import Tensor
    from ...storage import Buffer

__all__ = ["gguf"]

_ALIGN: Final = 32
_NAME_MAX: Final = 64
_RANK_MAX: Final = 4
_TYPES: Final = {
    "F32": 0, "F16": 1, "I8": 24, "I16": 25, "I32": 26, "I64": 27, "F64": 28, "BF16": 30,
}  # fmt: skip
_VALUES: Final = {
    "u8": (0, "<B"), "i8": (1, "<b"), "u16": (2, "<H"), "i16": (3, "<h"), "u32": (4, "<I"),
    "i32": (5, "<i"), "f32": (6, "<f"), "bool": (7, "<?"),
    "u64": (10, "<Q"), "i64": (11, "<q"), "f64": (12, "<d"),
}  # fmt: skip
_STRING: Final = 8


def gguf(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> tuple[int, Iterator[Buffer]]:
    """Size and contents of a .gguf file."""
    pairs = [_text(key) + _value(key, value) for key, value in metadata.items()]
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(pairs)) + b"".join(pairs)
    offset = 0
    for name, tensor in tensors.items():
        head += _text(name) + _about(name, tensor) + struct.pack("<Q", offset)
        offset += tensor.nbytes + -tensor.nbytes % _ALIGN
    head += bytes(-len(head) % _ALIGN)
    return len(head) + offset, _contents(head, tensors)


def _contents(head: bytes, tensors: Mapping[str, Tensor]) -> Iterator[Buffer]:
    yield head
    for tensor in tensors.values():
        yield from tensor.chunks()
        yield bytes(-tensor.nbytes % _ALIGN)


def _about(name: str, tensor: Tensor) -> bytes:
    from . import no_type

    if tensor.dtype not in _TYPES:
        raise no_type(name, tensor, "GGUF", "F16")
    fits = len(name.encode()) <= _NAME_MAX and len(tensor.shape) <= _RANK_MAX
    if not fits or "\0" in name:  # programs in C end a name there
        raise FormatError(
            f"tensor {quote(name)} of shape {list(tensor.shape)} does not fit GGUF: names have at most "
            f"{_NAME_MAX} bytes and no null character, shapes at most {_RANK_MAX} dimensions",
            rule="gguf", tensor=name,
        )  # fmt: skip
    shape = tensor.shape[::-1] or (1,)  # the axis that varies fastest comes first
    return struct.pack(f"<I{len(shape)}QI", len(shape), *shape, _TYPES[tensor.dtype])


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(key: str, value: str) -> bytes:
    kind, _, text = value.partition(":")
    if kind not in _VALUES:
        return struct.pack("<I", _STRING) + _text(value)
    number, layout = _VALUES[kind]
    try:
        if kind == "bool":
            parsed: object = {"true": True, "false": False}[text]
        else:
            parsed = float(text) if kind.startswith("f") else int(text)
        return struct.pack("<I", number) + struct.pack(layout, parsed)
    except (ValueError, KeyError, OverflowError, struct.error) as error:
        raise FormatError(
            f"metadata {quote(key)}: {quote(text)} is no value of type {kind}", rule="gguf"
        ) from error
