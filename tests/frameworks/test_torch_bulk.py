"""What is usual is done in bulk: with the same outcome as one by one, whatever the tensors are."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import safeweights.torch as ours
from safeweights.errors import SafetensorError
from safeweights.frameworks.torch import adapter
from safeweights.frameworks.torch.adapter import ADAPTER, HostTensor
from safeweights.frameworks.torch.sharing import are_disjoint, overlapping_tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

BASE = torch.arange(64, dtype=torch.float32)


class Sub(torch.Tensor):
    """A subclass may keep its values anywhere."""


USUAL: dict[str, Callable[[], Any]] = {
    "float": lambda: torch.rand(3, 4),
    "bfloat16": lambda: torch.rand(5).bfloat16(),
    "bool": lambda: torch.rand(7) > 0.5,
    "int8, large": lambda: torch.arange(5000, dtype=torch.int8),
    "float8": lambda: torch.rand(3).to(torch.float8_e4m3fn),
    "scalar": lambda: torch.tensor(3.5),
    "parameter": lambda: torch.nn.Parameter(torch.rand(2, 1, 3)),
    "empty": lambda: torch.rand(0, 3),
    "empty view": lambda: BASE[5:5],
    "strange strides": lambda: torch.rand(4).as_strided((1, 4), (99, 1)),
    "view": lambda: BASE[10:14],
    "view beside it": lambda: BASE[14:20],
    "inference": lambda: torch.inference_mode()(lambda: torch.rand(3))(),
}
UNUSUAL: dict[str, Callable[[], Any]] = {
    "view over it": lambda: BASE[13:15],
    "same memory": lambda: BASE,
    "another type": lambda: BASE.view(torch.int16)[21:23],
    "complex": lambda: torch.rand(3, dtype=torch.complex64),
    "conjugated": lambda: torch.rand(3, dtype=torch.complex64).conj(),
    "negated": lambda: torch.rand(1, dtype=torch.complex64).conj().imag,
    "negated view": lambda: torch._neg_view(torch.rand(3)),
    "F4": lambda: torch.arange(4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
    "transposed": lambda: torch.rand(2, 3).T,
    "expanded": lambda: torch.rand(1).expand(3),
    "subclass": lambda: torch.rand(3).as_subclass(Sub),
    "meta": lambda: torch.rand(3, device="meta"),
    "meta, empty": lambda: torch.rand(0, device="meta"),
    "sparse": lambda: torch.sparse_coo_tensor([[0]], [1.0], (2,), check_invariants=True),
    "quantised": lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
    "complex128": lambda: torch.rand(2, dtype=torch.complex128),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "no tensor": lambda: [1.0],
}
KINDS = USUAL | UNUSUAL
QUIET = pytest.mark.filterwarnings("ignore:.*(nested tensors|torch.ao.quantization|quantize_per_)")


def outcome(encode: Callable[[], Mapping[str, Any]]) -> object:
    """Everything that can be told of a result, or the error."""
    try:
        return [
            (name, tensor.name, tensor.dtype, tensor.shape, tensor.nbytes, bytes(tensor.view()))
            for name, tensor in encode().items()
        ]
    except SafetensorError as error:
        return type(error), str(error)


def one_by_one(tensors: Mapping[str, Any]) -> dict[str, Any]:
    adapter._check_savable(tensors)
    return {name: adapter._encode(name, tensor) for name, tensor in tensors.items()}


@QUIET
@given(st.lists(st.sampled_from(list(KINDS)), unique=True, max_size=6))
def test_encoding_in_bulk(names: list[str]) -> None:
    tensors = {name: KINDS[name]() for name in names}
    assert outcome(lambda: ADAPTER.encode(tensors)) == outcome(lambda: one_by_one(tensors))


@QUIET
@pytest.mark.parametrize("name", KINDS)
def test_what_is_usual(name: str) -> None:
    tensors = {"view": BASE[10:14], "0": KINDS[name]()} if name != "view" else {"0": BASE[:3]}
    found = adapter._encode_usual(tensors)
    assert (found is not None) == (name in USUAL)
    if found is not None:
        assert all(type(tensor) is HostTensor for tensor in found.values())


def test_within_a_transformation_memory_is_not_looked_at() -> None:
    def inner(x: torch.Tensor) -> torch.Tensor:
        assert type(x) is torch.Tensor
        assert adapter._encode_usual({"x": x}) is None
        with pytest.raises(SafetensorError, match="cannot be reached"):
            ours.save({"x": x})
        return x

    torch.func.vmap(inner)(torch.rand(2, 3))


def test_each_tensor_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No look at what was looked at: of usual tensors nothing is checked one by one."""
    calls: list[str] = []
    for name in ("_check_savable", "_encode"):
        monkeypatch.setattr(adapter, name, lambda *_, name=name: calls.append(name))
    ours.save({str(i): torch.rand(3) for i in range(10)})
    assert calls == []


@pytest.mark.parametrize("size", [0, 1, 4096, 4097, 100_000])
def test_memory_is_read_when_it_is_written(size: int) -> None:
    """Small tensors are copied, large ones seen; zeros within are no end."""
    tensor = torch.zeros(size, dtype=torch.uint8)
    (held,) = ADAPTER.encode({"x": tensor}).values()
    if size:
        tensor[size // 2] = 5
    expected = bytes(tensor.tolist())
    (chunk,) = held.chunks()
    (copied,) = type(held).chunks_of([held])
    assert bytes(chunk) == bytes(copied) == bytes(held.view()) == expected
    assert isinstance(copied, bytes) == (size <= 4096)
    buffer = bytearray(size - size // 2)
    held.read_into(buffer, size // 2)
    assert buffer == expected[size // 2 :]


# ---- sharing


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 8)), max_size=8))
def test_disjoint(areas: list[tuple[int, int]]) -> None:
    apart = all(a + n <= b or b + m <= a for (a, n), (b, m) in combinations(areas, 2))
    assert are_disjoint([begin for begin, _ in areas], [size for _, size in areas]) == apart


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 4)), max_size=8))
def test_sharing_in_bulk(cuts: list[tuple[int, int]]) -> None:
    tensors = {str(i): BASE[begin : begin + size] for i, (begin, size) in enumerate(cuts)}
    assert (adapter._encode_usual(tensors) is None) == bool(overlapping_tensors(tensors))


# ---- decoding


LAYOUT = st.lists(
    st.tuples(
        st.sampled_from(["U8", "BF16", "F32", "F64", "BOOL", "C64", "F8_E4M3", "F4", "U16"]),
        st.sampled_from([(), (2,), (0, 2), (3, 2)]),
    ),
    max_size=8,
)


def file_of(layout: list[tuple[str, tuple[int, ...]]], shift: int) -> bytes:
    """A file of any writer: types in any order, the data at any address."""
    bits = {"U8": 8, "BF16": 16, "F32": 32, "F64": 64, "BOOL": 8, "C64": 64, "F8_E4M3": 8,
            "F4": 4, "U16": 16}  # fmt: skip
    header: dict[str, Any] = {}
    end = 0
    for number, (code, shape) in enumerate(layout):
        begin = end
        end += torch.Size(shape).numel() * bits[code] // 8
        header[str(number)] = {"dtype": code, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8 + shift)
    return len(text).to_bytes(8, "little") + text + bytes(i % 2 for i in range(end))


@pytest.mark.parametrize("backend", ["mmap", "pread"])
@given(layout=LAYOUT, shift=st.integers(0, 7))
def test_decoding_in_bulk(
    backend: str,
    layout: list[tuple[str, tuple[int, ...]]],
    shift: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    layout = [item for item in layout if item != ("F4", ())]  # half a byte
    path = Path(tmp_path_factory.getbasetemp()) / f"bulk-{backend}.safetensors"
    path.write_bytes(file_of(layout, shift))
    loaded = ours.load_file(path, backend=backend)
    with ours.safe_open(path, "pt", backend=backend) as file:
        assert list(loaded) == file.keys()
        for name, tensor in loaded.items():
            single = file.get_tensor(name)
            assert (tensor.dtype, tensor.shape) == (single.dtype, single.shape)
            assert tensor.untyped_storage().nbytes() == tensor.nbytes
            assert tensor.data_ptr() % (tensor.itemsize >> tensor.is_complex()) == 0
            assert bytes(tensor.untyped_storage().tolist()) == bytes(
                single.untyped_storage().tolist()
            )
