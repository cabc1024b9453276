"""PyTorch's .bin: the archive that `torch.save` writes of a dict of tensors, made without torch.

`torch.load(weights_only=True)` reads it: the pickle (protocol 2) names `torch._utils._rebuild_tensor_v2`,
or `_rebuild_tensor_v3` for types that have no storage class, and storages by number (see PyTorch's
torch/serialization.py and torch/_utils.py). Tied names share a storage, so that they are tied when they
are loaded.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from .zips import Member, archive

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ...checkpoint import Tensor
    from ...storage import Buffer

__all__ = ["torch_zip"]

_STORAGES: Final = {
    "F64": "DoubleStorage", "F32": "FloatStorage", "F16": "HalfStorage", "BF16": "BFloat16Storage",
    "I64": "LongStorage", "I32": "IntStorage", "I16": "ShortStorage", "I8": "CharStorage",
    "U8": "ByteStorage", "BOOL": "BoolStorage", "C64": "ComplexFloatStorage",
}  # fmt: skip
_UNTYPED: Final = {
    "U16": "uint16", "U32": "uint32", "U64": "uint64", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}  # fmt: skip


def torch_zip(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> tuple[int, Iterator[Buffer]]:
    """Size and contents of a .bin file."""
    numbers = {name: number for number, name in enumerate(tensors)}
    entries = [_entry(name, tensors[name], numbers[name]) for name in tensors]
    for alias, kept in metadata.items():
        if kept in tensors and alias not in tensors:
            entries.append(_entry(alias, tensors[kept], numbers[kept]))
    pickle = b"\x80\x02}(" + b"".join(entries) + b"u."
    members = [_text("data.pkl", pickle), _text("byteorder", b"little")]
    members += [
        Member(f"archive/data/{number}", tensors[name].nbytes, tensors[name].chunks)
        for name, number in numbers.items()
    ]
    return archive([*members, _text("version", b"3\n")])


def _text(name: str, data: bytes) -> Member:
    return Member(f"archive/{name}", len(data), lambda: [data])


# ---- the pickle (pickletools.py has the opcodes)


def _entry(name: str, tensor: Tensor, number: int) -> bytes:
    """A key of the dict and its tensor."""
    from . import no_type

    strides = [1] * len(tensor.shape)
    for axis in reversed(range(len(strides) - 1)):
        strides[axis] = strides[axis + 1] * max(1, tensor.shape[axis + 1])
    elements = 1
    for size in tensor.shape:
        elements *= size
    if tensor.dtype in _STORAGES:
        rebuild, storage, count, last = (
            "_rebuild_tensor_v2", _STORAGES[tensor.dtype], elements, b"",
        )  # fmt: skip
    elif tensor.dtype in _UNTYPED:
        last = _global("torch", _UNTYPED[tensor.dtype])
        rebuild, storage, count = "_rebuild_tensor_v3", "UntypedStorage", tensor.nbytes
    else:
        raise no_type(name, tensor, "a PyTorch file", "BF16")
    module = "torch" if storage != "UntypedStorage" else "torch.storage"
    key = (
        b"(" + _text_of("storage") + _global(module, storage) + _text_of(str(number))
        + _text_of("cpu") + _integer(count) + b"tQ"
    )  # fmt: skip
    hooks = _global("collections", "OrderedDict") + b")R"
    shape, steps = (b"(" + b"".join(map(_integer, each)) + b"t" for each in (tensor.shape, strides))
    arguments = b"(" + key + _integer(0) + shape + steps + b"\x89" + hooks + last + b"t"
    return _text_of(name) + _global("torch._utils", rebuild) + arguments + b"R"


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _text_of(text: str) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def _integer(number: int) -> bytes:
    if number < 1 << 31:
        return b"J" + struct.pack("<i", number)
    return b"\x8a\x09" + number.to_bytes(9, "little")
