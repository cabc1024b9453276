"""The table of element types, compared with the reference's and the frameworks' types."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import safetensors

from safeweights.format import dtypes
from safeweights.format.dtypes import BITS, CODES, DTYPES, ORDER


def test_all_22_in_the_order_of_the_format() -> None:
    assert CODES == (
        "BOOL", "F4", "F6_E2M3", "F6_E3M2", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ",
        "F8_E5M2FNUZ", "I16", "U16", "F16", "BF16", "I32", "U32", "F32", "C64", "F64", "I64", "U64",
    )  # fmt: skip
    assert list(ORDER.values()) == list(range(22))
    assert {code: row.bits for code, row in DTYPES.items()} == BITS


@pytest.mark.parametrize("code", CODES)
def test_the_reference_takes_each_of_that_width(code: str) -> None:
    size = dtypes.byte_count(code, 8)
    text = f'{{"a":{{"dtype":"{code}","shape":[8],"data_offsets":[0,{size}]}}}}'.encode()
    ((name, tensor),) = safetensors.deserialize(
        len(text).to_bytes(8, "little") + text + bytes(size)
    )
    assert (name, tensor["dtype"]) == ("a", code)


@pytest.mark.parametrize("row", DTYPES.values(), ids=CODES)
def test_names_in_numpy_exist_and_have_that_width(row: dtypes.DType) -> None:
    module = ml_dtypes if row.ml_dtypes else np
    kind = np.dtype(getattr(module, "bool_" if row.numpy == "bool" else row.numpy))
    # Sub-byte elements take a byte each in memory.
    assert kind.itemsize * 8 == max(8, row.bits)


def test_byte_count() -> None:
    assert [dtypes.byte_count(code, 8) * 8 for code in CODES] == [BITS[code] * 8 for code in CODES]
    with pytest.raises(ValueError, match="byte boundary"):
        dtypes.byte_count("F4", 3)
