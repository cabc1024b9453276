"""The same bytes as the reference's writer, for any tensors and at most one metadata key."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

from safeweights import checkpoint
from safeweights.checkpoint import MemoryTensor
from safeweights.errors import FormatError
from safeweights.format import writer
from safeweights.format.dtypes import BITS, CODES
from safeweights.format.header import parse as header_parse

# The reference writer's names of the types.
REFERENCE = {
    "BOOL": "bool", "F4": "float4_e2m1fn_x2", "U8": "uint8", "I8": "int8", "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn", "F8_E8M0": "float8_e8m0fnu", "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz", "I16": "int16", "U16": "uint16", "F16": "float16",
    "BF16": "bfloat16", "I32": "int32", "U32": "uint32", "F32": "float32", "C64": "complex64",
    "F64": "float64", "I64": "int64", "U64": "uint64",
}  # fmt: skip

Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]


def ours(tensors: Tensors, metadata: dict[str, str] | None) -> bytes:
    mapping = {name: MemoryTensor(name, *tensor) for name, tensor in tensors.items()}
    file = io.BytesIO()
    checkpoint.save(mapping, file, metadata)
    return file.getvalue()


def reference(tensors: Tensors, metadata: dict[str, str] | None) -> bytes:
    specs, alive = {}, []
    for name, (dtype, shape, data) in tensors.items():
        # It takes F4 in bytes along the last axis, with two elements per byte.
        dims = [*shape[:-1], shape[-1] // 2] if dtype == "F4" else list(shape)
        array = np.frombuffer(data, "u1")
        alive.append(array)
        specs[name] = safetensors.TensorSpec(
            dtype=REFERENCE[dtype], shape=dims, data_ptr=array.ctypes.data, data_len=len(data)
        )
    return bytes(safetensors.serialize(specs, metadata))


@st.composite
def tensors(draw: st.DrawFn) -> Tensors:
    found: Tensors = {}
    names = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(
        lambda n: n != "__metadata__"
    )
    for name in draw(st.lists(names, unique=True, max_size=12)):
        dtype = draw(st.sampled_from(sorted(REFERENCE)))
        shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
        if dtype == "F4":
            shape = (*shape, 2)
        size = BITS[dtype]
        for dim in shape:
            size *= dim
        found[name] = dtype, shape, random.Random(name).randbytes(size // 8)
    return found


@settings(max_examples=300, deadline=None)
@given(
    tensors(),
    st.none()
    | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.just("v"), max_size=1),
)
def test_the_same_bytes_as_the_reference(content: Tensors, metadata: dict[str, str] | None) -> None:
    if metadata == {} and not content:
        metadata = None  # the reference writes an unreadable file then
    written = ours(content, metadata)
    assert written == reference(content, metadata)
    assert written == ours(dict(reversed(content.items())), metadata)
    back = checkpoint.open(written)
    assert {n: (t.dtype, t.shape, bytes(t.view())) for n, t in back.items()} == content
    assert back.metadata == metadata


def test_every_control_character_is_escaped_alike() -> None:
    name = "".join(map(chr, range(0xA0))) + "\u2028\ufeff\uffff\U0010ffff"
    content: Tensors = {name: ("U8", (1,), b"x")}
    assert ours(content, {name: name}) == reference(content, {name: name})


@pytest.mark.parametrize("count", [0, 1, 7, 1000])
def test_order_over_all_types(count: int) -> None:
    rng = random.Random(count)
    content: Tensors = {}
    for number in range(count):
        dtype = rng.choice(sorted(REFERENCE))
        content[f"{rng.choice('aZé_')}{number}"] = dtype, (8,), rng.randbytes(BITS[dtype])
    assert ours(content, None) == reference(content, None)


def test_all_types_in_one_file_are_in_the_order_of_the_format() -> None:
    written, _ = writer.layout([(code.lower(), code, (8,)) for code in CODES])
    assert [info.dtype for info in written.tensors.values()] == list(reversed(CODES))


@pytest.mark.parametrize("shape", [(0, 2**64), (0, 0, 2**70), (5, 0, 2**64)])
def test_no_dimension_that_cannot_be_read_is_written(shape: tuple[int, ...]) -> None:
    with pytest.raises(FormatError) as caught:
        writer.layout([("a", "U8", shape)])
    assert (caught.value.rule, caught.value.tensor) == ("integer", "a")


def test_the_given_order() -> None:
    tensors = [("b", "U8", (3,)), ("a", "F32", (2,)), ("c", "U8", (1,))]
    header, head = writer.layout(tensors, in_order=True)
    assert [(name, info.begin) for name, info in header.tensors.items()] == [
        ("b", 0), ("a", 3), ("c", 11),
    ]  # fmt: skip
    assert header_parse(head[8:], 12).tensors == header.tensors


@pytest.mark.parametrize("align", [8, 64, 4096])
def test_where_the_data_begins(align: int) -> None:
    header, head = writer.layout([("a", "U8", (3,))], {"k": "v"}, align=align)
    assert len(head) % align == 0
    assert header.data_start == len(head)
    assert header_parse(head[8:], 3) == header
