"""NumPy's .npz: a zip archive with a .npy file for each tensor (numpy.lib.format, version 1.0 or 2.0)."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Final

from ...errors import FormatError, quote
from ...format.dtypes import DTYPES
from .zips import Member, archive

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from ...checkpoint import Tensor
    from ...storage import Buffer

__all__ = ["npz"]

_SUFFIX: Final = ".npy"
_NAME_MAX: Final = 0xFFFF  # of a member of a zip archive
_RANK_MAX: Final = 32


def npz(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[int, Iterator[Buffer]]:
    """Size and contents of a .npz file. A tied name is written with bytes of its own.

    Raises:
        FormatError: NumPy would find a name or a shape not at all, or another array by a name.
        UnsupportedError: NumPy has no such element type.
    """
    tied = {alias: tensors[kept] for alias, kept in metadata.items() if kept in tensors}
    arrays = {**tied, **tensors}
    for name, tensor in arrays.items():
        _check(name, tensor, arrays)
    return archive([_member(name, tensor) for name, tensor in arrays.items()])


def _check(name: str, tensor: Tensor, arrays: Mapping[str, Tensor]) -> None:
    """Refuse what `numpy.load` would not give back."""
    other = name.removesuffix(_SUFFIX)
    if other != name and other in arrays:
        problem = f"NumPy gives {quote(other)} for it, since its file has the name {quote(name)}"
    elif "\0" in name:
        problem = "the name would end at its null character"
    elif len((name + _SUFFIX).encode()) > _NAME_MAX:
        problem = f"names have at most {_NAME_MAX - len(_SUFFIX)} bytes"
    elif len(tensor.shape) > _RANK_MAX:
        problem = f"NumPy before 2.0 has at most {_RANK_MAX} dimensions, it has {len(tensor.shape)}"
    else:
        return
    raise FormatError(f"tensor {quote(name)} does not fit .npz: {problem}", rule="npy", tensor=name)


def _member(name: str, tensor: Tensor) -> Member:
    head = _head(name, tensor)

    def chunks() -> Iterable[Buffer]:
        yield head
        yield from tensor.chunks()

    return Member(name + _SUFFIX, len(head) + tensor.nbytes, chunks)


def _head(name: str, tensor: Tensor) -> bytes:
    import numpy as np

    from . import no_type

    row = DTYPES.get(tensor.dtype)
    if row is None or row.ml_dtypes or row.bits < 8:
        raise no_type(name, tensor, "NumPy", "F32")
    head = io.BytesIO()
    kind = np.dtype(row.numpy).newbyteorder("<")
    fields = {
        "descr": np.lib.format.dtype_to_descr(kind),
        "fortran_order": False,
        "shape": tensor.shape,
    }
    np.lib.format.write_array_header_1_0(head, fields)
    return head.getvalue()
