"""PyTorch's containers: every value is the one that torch.load gives, bit for bit."""

from __future__ import annotations

import collections
import io
import pickle
import struct
import warnings

import numpy as np
import pytest
import torch
from builders import (
    archive,
    call,
    integer,
    ints,
    many,
    mapping,
    name,
    storage,
    tensor,
    text,
    torch_legacy,
    torch_tar,
    torch_zip,
    whole,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from safeweights.conversion import ForeignCheckpoint, open, scan
from safeweights.errors import FormatError, UnsupportedError

ZIP, LEGACY = True, False


def saved(value: object, new: bool = ZIP, **options: object) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(value, file, _use_new_zipfile_serialization=new, **options)
    return file.getvalue()


def raw(value: torch.Tensor) -> bytes:
    if value.layout is not torch.strided:
        value = value.to_dense()
    if value.is_quantized:
        value = value.dequantize()
    packed = torch.empty(value.numel(), dtype=value.dtype)
    packed.copy_(value.detach().resolve_conj().resolve_neg().reshape(-1))
    return packed.view(torch.uint8).numpy().tobytes() if value.numel() else b""


def same(found: ForeignCheckpoint, expected: dict[str, torch.Tensor]) -> None:
    assert set(found) == set(expected)
    for key, value in expected.items():
        assert bytes(found[key].view()) == raw(value), key
        assert found[key].shape == tuple(value.shape), key


def in_pieces(found: ForeignCheckpoint, key: str, size: int) -> bytes:
    tensor = found[key]
    out = bytearray(tensor.nbytes)
    for begin in range(0, tensor.nbytes, size):
        piece = memoryview(out)[begin : begin + size]
        tensor.read_into(piece, begin)
    return bytes(out)


BASE = torch.arange(120, dtype=torch.float32).reshape(2, 3, 4, 5)
VIEWS = {
    "whole": BASE,
    "transposed": BASE.permute(3, 1, 0, 2),
    "row": BASE[1],
    "column": BASE[..., 2],
    "steps": BASE[:, ::2, 1::2],
    "expanded": BASE[0, 0, 0].expand(7, 5),
    "diagonal": torch.arange(16.0).reshape(4, 4).diagonal(),
    "overlapping": torch.arange(10.0).as_strided((4, 4), (2, 1)),
    "scalar": torch.tensor(3.5),
    "empty": torch.zeros(0, 3),
    "one": torch.ones(1, 1, 1),
}
DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32,
    torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64,
]  # fmt: skip
NEW_DTYPES = [
    torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu,
]  # fmt: skip


@pytest.mark.parametrize("new", [ZIP, LEGACY])
def test_views_strides_and_offsets(new: bool) -> None:
    same(open(saved(VIEWS, new)), VIEWS)


@pytest.mark.parametrize("size", [1, 3, 4, 7, 64])
def test_any_piece_of_any_view_can_be_read(size: int) -> None:
    found = open(saved(VIEWS))
    for key, value in VIEWS.items():
        assert in_pieces(found, key, size) == raw(value), key


@pytest.mark.parametrize("new", [ZIP, LEGACY])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_element_types(dtype: torch.dtype, new: bool) -> None:
    value = {
        "w": torch.arange(-6, 6).reshape(3, 4).to(dtype),
        "t": torch.ones(2, 3, dtype=dtype).t(),
    }
    same(open(saved(value, new)), value)


@pytest.mark.parametrize("dtype", NEW_DTYPES, ids=str)
def test_element_types_that_only_the_zip_file_has(dtype: torch.dtype) -> None:
    value = {"w": torch.arange(8).float().to(dtype), "view": torch.arange(8).float().to(dtype)[2:6]}
    same(open(saved(value)), value)


def test_packed_four_bit_floats_count_elements_as_the_format_does() -> None:
    value = torch.arange(6, dtype=torch.uint8).reshape(2, 3).view(torch.float4_e2m1fn_x2)
    found = open(saved({"w": value}))["w"]
    assert (found.dtype, found.shape, bytes(found.view())) == ("F4", (2, 6), bytes(range(6)))


@pytest.mark.parametrize("new", [ZIP, LEGACY])
def test_conjugate_and_negative_bits_are_applied(new: bool) -> None:
    value = torch.tensor([1 + 2j, -3 - 0.0j, complex("nan")], dtype=torch.complex64)
    views = {
        "conj": value.clone().conj(),
        "neg": value.clone().conj().imag,
        "strided": torch.stack([value, value * 2]).t().conj(),
    }
    found = open(saved(views, new))
    same(found, views)
    for key, view in views.items():
        assert in_pieces(found, key, 5) == raw(view)


def test_complex128_is_refused_by_name_and_converted_on_request() -> None:
    data = saved({"w": torch.tensor([1 + 2j], dtype=torch.complex128)})
    refused = open(data)["w"]
    assert (refused.dtype, refused.shape, refused.nbytes) == ("C128", (1,), 16)
    with pytest.raises(UnsupportedError, match="C128=C64"):
        refused.view()
    found = open(data, casts={"C128": "C64"})["w"]
    assert bytes(found.view()) == struct.pack("<2f", 1, 2)


@pytest.mark.filterwarnings("ignore:Sparse .*:UserWarning")
def test_sparse_tensors_are_made_dense_on_request_only() -> None:
    coordinates = {
        "coo": torch.tensor([[0, 2.0], [3, 0]]).to_sparse(),
        "hybrid": torch.sparse_coo_tensor([[0, 2]], [[1.0, 2], [3, 4]], (4, 2)),
        "repeated": torch.sparse_coo_tensor([[1, 1, 0]], [1.0, 2, 4], (3,)),
        "empty": torch.sparse_coo_tensor(size=(3, 4)),
    }
    compressed = {
        "csr": torch.eye(4).to_sparse_csr(),
        "csc": torch.tensor([[0, 2.0], [3, 0]]).to_sparse_csc(),
        "bsr": torch.arange(24.0).reshape(4, 6).to_sparse_bsr((2, 3)),
        "bsc": torch.arange(24.0).reshape(4, 6).to_sparse_bsc((2, 2)),
    }
    data = saved({**coordinates, **compressed})
    assert set(open(data).refused) == {*coordinates, *compressed}
    for key, found in open(data).items():
        expected = {**coordinates, **compressed}[key]
        assert (found.dtype, found.shape) == ("F32", tuple(expected.shape))
    same(open(data, densify=True), {**coordinates, **compressed})


@pytest.mark.filterwarnings("ignore")
def test_quantised_tensors_are_made_dense_on_request_only() -> None:
    value = torch.linspace(-3, 3, 24).reshape(4, 6)
    kinds = {
        "int8": torch.quantize_per_tensor(value, 0.137, 3, torch.qint8),
        "uint8": torch.quantize_per_tensor(value, 0.0713, 41, torch.quint8),
        "int32": torch.quantize_per_tensor(value, 1e-4, 0, torch.qint32),
        "channels": torch.quantize_per_channel(
            value, torch.rand(6, dtype=torch.double) + 0.01, torch.arange(6), 1, torch.qint8
        ),
        "transposed": torch.quantize_per_tensor(value, 0.1, 1, torch.qint8).t(),
    }
    data = saved(kinds)
    assert set(open(data).refused) == set(kinds)
    assert {(t.dtype, t.shape) for t in open(data).values()} == {
        ("QI8", (4, 6)), ("QU8", (4, 6)), ("QI32", (4, 6)), ("QI8", (6, 4)),
    }  # fmt: skip
    same(open(data, densify=True), kinds)


def test_containers_are_flattened_with_dots() -> None:
    w = torch.arange(3.0)
    tree = {
        "epoch": 3,
        "nested": collections.OrderedDict(a=w, b=[w + 1, (w + 2, {"deep": w + 3})]),
        7: w + 4,
        ("x", 1): w + 5,
        "set": {1, 2},
    }
    found = open(saved(tree))
    assert list(found) == [
        "nested.a",
        "nested.b.0",
        "nested.b.1.0",
        "nested.b.1.1.deep",
        "7",
        "x,1",
    ]
    assert {other.name: other.value for other in found.others} == {
        "epoch": 3,
        "set.0": 1,
        "set.1": 2,
    }


def test_an_optimizer_state_keeps_its_numbers() -> None:
    model = torch.nn.Linear(2, 3)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    found = open(saved(state))
    expected = {
        f"state.{number}.{key}": value
        for number, entry in state["state"].items()
        for key, value in entry.items()
    }
    same(found, expected)
    assert any(other.name == "param_groups.0.lr" for other in found.others)


def test_a_whole_module_gives_its_state_dict() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    model.register_buffer("hidden", torch.ones(2), persistent=False)
    model[0].weight_twin = model[0].weight
    found = open(saved(model))
    same(found, dict(model.state_dict()))
    assert "hidden" in {other.name.strip(".") for other in found.others}
    assert found.aliases == {"0.weight_twin": "0.weight"}


def test_parameters_subclasses_and_attributes() -> None:
    parameter = torch.nn.Parameter(torch.arange(3.0))
    parameter.note = "kept by _rebuild_parameter_with_state"
    buffer = torch.nn.Buffer(torch.arange(2.0))
    same(open(saved({"p": parameter, "b": buffer})), {"p": parameter, "b": buffer})


def test_tied_weights_are_known_and_lookalikes_are_not() -> None:
    w = torch.arange(12.0).reshape(3, 4)
    value = {
        "a": w,
        "tied": w,
        "t": w.t(),
        "row": w[0],
        "twin": w.clone(),
        "e1": w[:0],
        "e2": w[:0],
    }
    assert open(saved(value)).aliases == {"tied": "a"}
    assert open(saved(value, LEGACY)).aliases == {"tied": "a"}


def test_meta_tensors_are_refused_by_name() -> None:
    found = open(saved({"m": torch.empty(2, device="meta"), "w": torch.ones(2)}))
    assert list(found) == ["m", "w"]
    assert "meta" in found.refused["m"]
    assert (found["m"].dtype, found["m"].shape, found["m"].nbytes) == ("F32", (2,), 0)


def test_a_call_that_would_transform_a_tensor_is_refused_not_guessed() -> None:
    body = mapping(w=call(name("my_package", "transform"), tensor()), v=tensor())
    found = open(torch_zip(body))
    assert list(found) == ["v", "w"]
    assert "my_package.transform" in found.refused["w"]
    assert (found["w"].dtype, found["w"].shape) == ("?", ())


def test_views_of_a_slice_larger_than_a_block_are_gathered_in_blocks(monkeypatch) -> None:
    from safeweights.derived import strided

    monkeypatch.setattr(strided, "_BLOCK", 256)
    same(open(saved(VIEWS)), VIEWS)
    big = torch.arange(4000.0).reshape(10, 20, 20)
    views = {"a": big.permute(2, 0, 1), "b": big.permute(1, 2, 0)[3:], "c": big[::3, ::7, ::2]}
    same(open(saved(views)), views)


def test_a_big_endian_archive_is_swapped() -> None:
    values = struct.pack(">4f", 1, 2, -3, 4)
    body = mapping(
        w=tensor(),
        t=tensor((2, 2), (1, 2)),
        c=tensor((2,), (1,), of=storage("1", "ComplexFloatStorage", 2)),
        b=tensor((4,), (1,), of=storage("2", "ByteStorage", 4)),
    )
    members = {"m/data.pkl": whole(body), "m/byteorder": b"big"}
    members |= {"m/data/0": values, "m/data/1": values, "m/data/2": bytes(range(4))}
    found = open(archive(members))
    native = np.array([1, 2, -3, 4], "<f4")
    assert bytes(found["w"].view()) == native.tobytes()
    assert bytes(found["t"].view()) == native.reshape(2, 2).T.tobytes()
    assert bytes(found["c"].view()) == native.tobytes()
    assert bytes(found["b"].view()) == bytes(range(4))
    assert in_pieces(found, "w", 3) == native.tobytes()


def test_layouts_that_no_torch_writes_any_more() -> None:
    """Version 0.1: `_rebuild_tensor`, typed storages of CUDA, six-part references with views."""
    old = call(
        name("torch._utils", "_rebuild_tensor"),
        storage(view=many(text("v"), integer(1), integer(2))),
        integer(0), ints(2), ints(1),
    )  # fmt: skip
    whole_storage = tensor(of=storage().replace(b"ctorch\n", b"ctorch.cuda\n"))
    found = open(
        torch_legacy(mapping(w=old, v=whole_storage), [("0", 4, struct.pack("<4f", 1, 2, 3, 4))])
    )
    assert bytes(found["w"].view()) == struct.pack("<2f", 2, 3)
    assert bytes(found["v"].view()) == struct.pack("<4f", 1, 2, 3, 4)


def test_the_tar_container() -> None:
    data = torch_tar()
    found = open(data)
    assert found.format == "torch-tar"
    assert found["w"].shape == (2, 2)
    assert bytes(found["w"].view()) == struct.pack("<4f", 1, 2, 3, 4)


def test_the_tar_container_as_torch_reads_it(tmp_path) -> None:
    path = tmp_path / "old.tar"
    path.write_bytes(torch_tar(values=struct.pack("<6f", *range(6)), shape=(3, 2)))
    expected = torch.load(path, weights_only=False)
    same(open(path), expected)


def test_torchscript(tmp_path) -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(2, 3)
            self.register_buffer("table", torch.arange(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x) + 1

    net = Net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(net, torch.ones(1, 2))
        torch.jit.save(traced, tmp_path / "net.pt")
    found = open(tmp_path / "net.pt")
    assert found.format == "torchscript"
    assert {key for key in found if not key.startswith("constants.")} == set(net.state_dict())
    for key, value in net.state_dict().items():
        assert bytes(found[key].view()) == raw(value)


@pytest.mark.filterwarnings("ignore:TypedStorage")
def test_tensors_in_plain_pickles() -> None:
    value = {
        "w": torch.arange(6.0).reshape(2, 3),
        "big": torch.arange(5000.0),
        "n": np.ones(2, "f4"),
    }
    for protocol in range(2, 6):
        data = pickle.dumps(value, protocol)
        found = open(data)
        assert bytes(found["w"].view()) == raw(value["w"])
        assert bytes(found["big"].view()) == raw(value["big"])
        assert scan(data).verdict == "clean"


@pytest.mark.filterwarnings("ignore:TypedStorage")
def test_storage_of_its_own_is_a_vector() -> None:
    found = open(
        saved({"s": torch.arange(3.0).untyped_storage(), "t": torch.arange(3.0).storage()})
    )
    assert found["s"].dtype == "U8"
    assert bytes(found["t"].view()) == raw(torch.arange(3.0))


# Protocol 0 has no persistent ids that are tuples; the legacy file has none below 2.
@pytest.mark.parametrize(
    ("new", "protocol"), [*((ZIP, p) for p in range(1, 6)), *((LEGACY, p) for p in range(2, 6))]
)
def test_every_pickle_protocol(new: bool, protocol: int) -> None:
    value = {"w": torch.arange(6.0).reshape(2, 3), "n": torch.nn.Parameter(torch.ones(2))}
    same(open(saved(value, new, pickle_protocol=protocol)), value)


def test_an_archive_that_was_packed_again_with_compression() -> None:
    import zipfile

    original = saved({"w": torch.arange(1000.0), "t": torch.arange(1000.0).reshape(10, 100).t()})
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(original)) as old, zipfile.ZipFile(file, "w") as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info), zipfile.ZIP_DEFLATED)
    found = open(file.getvalue())
    same(found, {"w": torch.arange(1000.0), "t": torch.arange(1000.0).reshape(10, 100).t()})
    assert in_pieces(found, "w", 7) == raw(torch.arange(1000.0))


def test_archives_without_checksums() -> None:
    torch.serialization.set_crc32_options(False)
    try:
        data = saved({"w": torch.ones(3)})
    finally:
        torch.serialization.set_crc32_options(True)
    same(open(data), {"w": torch.ones(3)})


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=4),
    st.data(),
    st.sampled_from([torch.float32, torch.int16, torch.uint8, torch.complex64]),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_any_strided_view(
    shape: list[int], data: st.DataObject, dtype: torch.dtype, new: bool
) -> None:
    strides = [data.draw(st.integers(0, 6)) for _ in shape]
    offset = data.draw(st.integers(0, 5))
    need = offset + 1 + sum(max(n - 1, 0) * s for n, s in zip(shape, strides, strict=True))
    base = torch.arange(need).to(dtype)
    view = base.as_strided(shape, strides, offset)
    found = open(saved({"v": view}, new))
    assert bytes(found["v"].view()) == raw(view)
    size = data.draw(st.integers(1, 50))
    assert in_pieces(found, "v", size) == raw(view)


def test_an_error_names_the_member_and_the_offset() -> None:
    with pytest.raises(FormatError) as caught:
        open(torch_zip(b"N\xff"))
    assert caught.value.path == "<bytes>!m/data.pkl"
    assert caught.value.offset == 3


def test_a_sparse_terabyte_is_refused_when_it_is_to_be_made_dense() -> None:
    sparse = call(
        name("torch._utils", "_rebuild_sparse_tensor"),
        call(name("torch.serialization", "_get_layout"), text("torch.sparse_coo")),
        many(
            tensor((1, 2), (2, 1), of=storage("1", "LongStorage", 2)),
            tensor((2,), (1,)),
            ints(1 << 40),
        ),
    )
    data = torch_zip(mapping(w=sparse), {"0": bytes(16), "1": bytes(16)})
    with pytest.raises(FormatError, match="view_bytes"):
        open(data, densify=True)


def test_sparse_indices_outside_the_shape_are_refused() -> None:
    sparse = call(
        name("torch._utils", "_rebuild_sparse_tensor"),
        text("torch.sparse_coo"),
        many(
            tensor((1, 2), (2, 1), of=storage("1", "LongStorage", 2)),
            tensor((2,), (1,)),
            ints(3),
        ),
    )
    data = torch_zip(mapping(w=sparse), {"0": bytes(16), "1": struct.pack("<2q", 0, 3)})
    with pytest.raises(FormatError, match="outside"):
        open(data, densify=True)["w"].view()
