"""NumPy's .npz: a zip archive with a .npy file for each tensor (numpy.lib.format, version 1.0 or 2.0)."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from ...format.dtypes import DTYPES
from .zips import Member, archive

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from ...checkpoint import Tensor
    from ...storage import Buffer

__all__ = ["npz"]


def npz(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[int, Iterator[Buffer]]:
    """Size and contents of a .npz file. A tied name is written with bytes of its own."""
    tied = {alias: tensors[kept] for alias, kept in metadata.items() if kept in tensors}
    return archive([_member(name, tensor) for name, tensor in {**tied, **tensors}.items()])


def _member(name: str, tensor: Tensor) -> Member:
    head = _head(name, tensor)

    def chunks() -> Iterable[Buffer]:
        yield head
        yield from tensor.chunks()

    return Member(f"{name}.npy", len(head) + tensor.nbytes, chunks)


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
