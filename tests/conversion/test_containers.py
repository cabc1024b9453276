"""Every container beside PyTorch's: what its own library wrote is what is read."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import struct
import sys
from typing import TYPE_CHECKING

import joblib
import ml_dtypes
import numpy as np
import pytest
from builders import archive
from hypothesis import given, settings
from hypothesis import strategies as st

from safeweights.conversion import Limits, open
from safeweights.conversion.readers.flax_msgpack import read_msgpack
from safeweights.conversion.readers.tensorflow_v2 import crc32c
from safeweights.errors import (
    FormatError,
    MissingDependencyError,
    SafetensorError,
    UnsupportedError,
)
from safeweights.storage import BytesSource

if TYPE_CHECKING:
    from pathlib import Path

ARRAYS = {
    "c": np.arange(12, dtype="f4").reshape(3, 4),
    "fortran": np.asfortranarray(np.arange(12, dtype="f8").reshape(3, 4)),
    "big": np.arange(5, dtype=">i4"),
    "complex": np.array([1 + 2j], ">c8"),
    "half": np.zeros((0, 3), "f2"),
    "bool": np.array([True, False]),
    "axes": np.arange(24, dtype="u2").reshape(2, 3, 4).transpose(1, 0, 2),
    "scalar": np.float32(3),
    "zero_d": np.array(7, "i8"),
    "long": np.arange(2000, dtype="f8"),
}


def little(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes()


def check(found, names=ARRAYS) -> None:
    assert set(found) >= set(names)
    for name in names:
        assert bytes(found[name].view()) == little(ARRAYS[name]), name
        assert found[name].shape == ARRAYS[name].shape


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(save) -> None:
    file = io.BytesIO()
    save(file, **ARRAYS)
    found = open(file.getvalue())
    assert found.format == "npz"
    check(found)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_npy(version) -> None:
    for array in ARRAYS.values():
        file = io.BytesIO()
        np.lib.format.write_array(file, np.asarray(array), version)
        found = open(file.getvalue())
        assert bytes(found["tensor"].view()) == little(array)


def test_npy_headers_of_other_writers() -> None:
    def npy(header: str) -> bytes:
        text = header.encode() + b"\n"
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(8)

    for header in (
        "{'shape': (2,), 'fortran_order': False, 'descr': '<f4'}",
        '{"descr": "<f4", "fortran_order": False, "shape": (2, ), }',
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2L,), }",
    ):
        assert open(npy(header))["tensor"].shape == (2,)
    for header in (
        "{'descr': '<f4', 'fortran_order': False}",
        "{'descr': '<f4', 'descr': '<f8', 'fortran_order': False, 'shape': (2,)}",
        "{'descr': '<f4', 'fortran_order': 0, 'shape': (2,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2**9,)}",
        "[]",
    ):
        with pytest.raises(FormatError, match=r"\.npy header"):
            open(npy(header))


def test_arrays_that_are_not_numbers_are_listed_and_structured_ones_refused() -> None:
    file = io.BytesIO()
    np.savez(
        file,
        text=np.array(["a", "bc"]),
        times=np.array(["2020-01-01"], "M8[D]"),
        objects=np.array([1, "x", np.ones(2, "f4")], dtype=object),
        structured=np.zeros(2, [("a", "f4")]),
        bfloat=np.ones(2, ml_dtypes.bfloat16),
    )
    found = open(file.getvalue())
    assert list(found) == ["objects.2", "structured", "bfloat"]
    assert set(found.refused) == {"structured", "bfloat"}
    assert (found["bfloat"].dtype, found["bfloat"].shape) == ("V2", (2,))
    assert {other.name for other in found.others} >= {"text", "times", "objects.0", "objects.1"}


@pytest.mark.parametrize(
    "compress", [0, ("zlib", 3), ("gzip", 3), ("bz2", 3), ("xz", 3), ("lzma", 3)]
)
def test_joblib(compress, tmp_path) -> None:
    tree = {
        **ARRAYS,
        "objects": np.array([ARRAYS["c"], None], dtype=object),
        "labels": np.array(["a", "b"]),
    }
    joblib.dump(tree, tmp_path / "model.joblib", compress=compress)
    found = open(tmp_path / "model.joblib")
    assert found.format == "joblib"
    check(found)
    assert bytes(found["objects.0"].view()) == little(ARRAYS["c"])
    assert "labels" in {other.name for other in found.others}


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_arrays(protocol) -> None:
    check(open(pickle.dumps(ARRAYS, protocol)))


def test_ml_dtypes_in_pickles() -> None:
    arrays = {
        name: np.arange(4).astype(getattr(ml_dtypes, name))
        for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu")
    }
    found = open(pickle.dumps(arrays))
    codes = {name: found[name].dtype for name in arrays}
    assert codes == {
        "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
        "float8_e8m0fnu": "F8_E8M0",
    }  # fmt: skip
    for name, array in arrays.items():
        assert bytes(found[name].view()) == array.tobytes()


def test_an_array_whose_data_is_too_short_is_refused() -> None:
    data = pickle.dumps({"a": np.arange(4, dtype="f4")}, 4)
    with pytest.raises(FormatError, match="needs 32 bytes"):
        open(data.replace(b"f4", b"f8"))


def test_paddle(tmp_path) -> None:
    tree = {
        "w": ("linear_0.w_0", ARRAYS["c"]),
        "b": ARRAYS["scalar"],
        "bf16": np.arange(4, dtype="u2"),
        "StructuredToParameterName@@": {"w": "linear_0.w_0"},
    }
    (tmp_path / "model.pdparams").write_bytes(pickle.dumps(tree, 2))
    found = open(tmp_path / "model.pdparams")
    assert {name: tensor.dtype for name, tensor in found.items()} == {
        "w": "F32",
        "b": "F32",
        "bf16": "BF16",
    }
    assert bytes(found["bf16"].view()) == tree["bf16"].tobytes()
    split = {"UnpackBigParamInfor@@": {"w": {}}}
    (tmp_path / "model.pdparams").write_bytes(pickle.dumps(split, 2))
    with pytest.raises(FormatError, match="split"):
        open(tmp_path / "model.pdparams")


# -- Flax: its writer needs JAX, so its few rules are written down here again ---------------------


def pack(value: object) -> bytes:
    """Values as flax.serialization.msgpack_serialize packs them."""
    if isinstance(value, dict):
        body = b"".join(pack(key) + pack(item) for key, item in value.items())
        return (
            b"\xdf" + struct.pack(">I", len(value)) + body
            if len(value) > 15
            else bytes([0x80 | len(value)]) + body
        )
    if isinstance(value, (list, tuple)):
        return b"\xdc" + struct.pack(">H", len(value)) + b"".join(map(pack, value))
    if isinstance(value, bool) or value is None:
        return {None: b"\xc0", False: b"\xc2", True: b"\xc3"}[value]
    if isinstance(value, int):
        return b"\xd3" + struct.pack(">q", value) if not 0 <= value < 128 else bytes([value])
    if isinstance(value, float):
        return b"\xcb" + struct.pack(">d", value)
    if isinstance(value, str):
        data = value.encode()
        return (
            b"\xda" + struct.pack(">H", len(data)) + data
            if len(data) > 31
            else bytes([0xA0 | len(data)]) + data
        )
    if isinstance(value, bytes):
        return b"\xc6" + struct.pack(">I", len(value)) + value
    if isinstance(value, complex):
        return ext(2, pack([value.real, value.imag]))
    assert isinstance(value, (np.ndarray, np.generic))
    body = pack([list(value.shape), value.dtype.name, value.tobytes()])
    return ext(3 if isinstance(value, np.generic) else 1, body)


def ext(tag: int, body: bytes) -> bytes:
    return b"\xc9" + struct.pack(">IB", len(body), tag) + body


def test_flax() -> None:
    kernel = np.arange(6, dtype="f4").reshape(2, 3)
    tree = {
        "params": {"Dense_0": {"kernel": kernel, "bias": np.ones(3, ml_dtypes.bfloat16)}},
        "step": np.int32(7),
        "z": 1 + 2j,
        "note": "text",
        "big": {
            "__msgpack_chunked_array__": True,
            "shape": {"0": 2, "1": 3},
            "chunks": {"0": kernel.reshape(-1)[:4], "1": kernel.reshape(-1)[4:]},
        },
    }
    found = open(pack(tree))
    assert found.format == "flax-msgpack"
    assert bytes(found["params.Dense_0.kernel"].view()) == kernel.tobytes()
    assert found["params.Dense_0.bias"].dtype == "BF16"
    assert found["step"].shape == ()
    assert bytes(found["big"].view()) == kernel.tobytes()
    assert found["big"].shape == (2, 3)
    assert {o.name: o.value for o in found.others} == {"z": 1 + 2j, "note": "text"}


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=40),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=20)
    ),
    max_leaves=20,
)


@given(PLAIN)
def test_msgpack_round_trip(value: object) -> None:
    def plain(node: object) -> object:
        if hasattr(node, "pairs"):
            return {key: plain(item) for key, item in node.pairs}
        return [plain(item) for item in node] if isinstance(node, list) else node

    assert plain(read_msgpack(BytesSource(pack(value)), Limits())) == value


# -- TensorFlow: the writer's rules, again without the framework -----------------------------------


def varint(value: int) -> bytes:
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def message(**fields: object) -> bytes:
    out = b""
    for key, value in fields.items():
        number = int(key.strip("_"))
        if isinstance(value, bytes):
            out += varint(number << 3 | 2) + varint(len(value)) + value
        else:
            out += varint(number << 3) + varint(value)
    return out


def block(entries: list[tuple[bytes, bytes]]) -> bytes:
    out, last = b"", b""
    for key, value in entries:
        shared = 0
        while shared < min(len(key), len(last)) and key[shared] == last[shared]:
            shared += 1
        out += (
            varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        )
        last = key
    body = out + struct.pack("<2I", 0, 1) + b"\0"
    crc = crc32c(body)
    return body + struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def bundle(variables: dict[bytes, tuple[int, np.ndarray]], endian: int = 0) -> tuple[bytes, bytes]:
    """The .index and the one shard of a checkpoint; variables are (DataType, array)."""
    data = b""
    entries = [(b"", message(_1=1, _2=endian))]
    for key, (kind, array) in sorted(variables.items()):
        shape = b"".join(message(_2=message(_1=count)) for count in array.shape)
        raw = array.tobytes()
        entries.append((key, message(_1=kind, _2=shape, _4=len(data), _5=len(raw))))
        data += raw
    first = block(entries)
    index = block([(b"zzz", varint(0) + varint(len(first) - 5))])
    meta = block([])
    footer = varint(len(first) + len(index)) + varint(len(meta) - 5)
    footer += varint(len(first)) + varint(len(index) - 5)
    table = first + index + meta + footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)
    return table, data


def write_bundle(folder: Path, *args) -> Path:
    table, data = bundle(*args)
    (folder / "model.index").write_bytes(table)
    (folder / "model.data-00000-of-00001").write_bytes(data)
    return folder / "model.index"


VARIABLES = {
    b"dense/kernel": (1, np.arange(6, dtype="f4").reshape(2, 3)),
    b"dense/bias": (14, np.ones(3, ml_dtypes.bfloat16)),
    b"step": (9, np.array(5, "i8")),
}


def test_tensorflow(tmp_path) -> None:
    found = open(write_bundle(tmp_path, VARIABLES))
    assert found.format == "tensorflow-v2"
    for key, (_, array) in VARIABLES.items():
        assert bytes(found[key.decode()].view()) == array.tobytes()
        assert found[key.decode()].shape == array.shape


def test_tensorflow_of_other_types_and_byte_orders(tmp_path) -> None:
    variables = {
        b"text": (7, np.zeros(4, "u1")),
        b"handle": (20, np.zeros(1, "u1")),
        b"w": (1, np.ones(2, ">f4")),
    }
    found = open(write_bundle(tmp_path, variables, 1))
    assert set(found) == {"handle", "w"}
    assert bytes(found["w"].view()) == np.ones(2, "<f4").tobytes()
    assert set(found.refused) == {"handle"}
    assert (found["handle"].dtype, found["handle"].nbytes) == ("DT_20", 1)


def test_a_tensorflow_index_that_lies_is_refused(tmp_path) -> None:
    path = write_bundle(tmp_path, VARIABLES)
    (tmp_path / "model.data-00000-of-00001").write_bytes(b"short")
    with pytest.raises(FormatError, match="ends at byte 5"):
        open(path)
    (tmp_path / "model.data-00000-of-00001").unlink()
    with pytest.raises(FileNotFoundError):
        open(path)


@given(st.data())
@settings(max_examples=150)
def test_damage_to_a_tensorflow_index_is_found(tmp_path_factory, data: st.DataObject) -> None:
    table, shard = bundle(VARIABLES)
    damaged = bytearray(table)
    position = data.draw(st.integers(0, len(table) - 1))
    damaged[position] ^= data.draw(st.integers(1, 255))
    folder = tmp_path_factory.mktemp("tf")
    (folder / "model.data-00000-of-00001").write_bytes(shard)
    (folder / "model.index").write_bytes(damaged)
    try:
        found = open(folder / "model.index", format="tensorflow-v2")
    except SafetensorError:
        return
    assert len(found) == len(VARIABLES)  # the footer's padding and the empty block are not read


# -- GGUF ------------------------------------------------------------------------------------------


def gguf(
    tensors: list[tuple[str, tuple[int, ...], int, bytes]],
    order: str = "<",
    *,
    alignment: int | None = None,
    shift: int = 0,
) -> bytes:
    """A GGUF file; `alignment` is declared in its header, `shift` is added to every tensor's offset."""

    def words(text: str) -> bytes:
        return struct.pack(f"{order}Q", len(text)) + text.encode()

    keys = words("general.name") + struct.pack(f"{order}I", 8) + words("tiny")
    keys += words("list") + struct.pack(f"{order}IIQ3i", 9, 5, 3, 1, 2, 3)
    if alignment is not None:
        keys += words("general.alignment") + struct.pack(f"{order}II", 4, alignment)
    step = alignment or 32
    infos, data = b"", b""
    for name, shape, kind, raw in tensors:
        data += bytes(-len(data) % step)
        dims = shape[::-1]
        infos += words(name) + struct.pack(
            f"{order}I{len(dims)}QIQ", len(dims), *dims, kind, len(data) + shift
        )
        data += raw
    count = 2 + (alignment is not None)
    head = b"GGUF" + struct.pack(f"{order}IQQ", 3, len(tensors), count) + keys + infos
    return head + bytes(-len(head) % step) + data


@pytest.mark.parametrize("order", ["<", ">"])
def test_gguf(order) -> None:
    kernel = np.arange(6, dtype="f4").reshape(2, 3)
    tensors = [
        ("w", (2, 3), 0, kernel.astype(f"{order}f4").tobytes()),
        ("b", (3,), 30, np.ones(3, ml_dtypes.bfloat16).view("u2").astype(f"{order}u2").tobytes()),
        ("q", (32,), 2, bytes(18)),
    ]
    found = open(gguf(tensors, order))
    assert bytes(found["w"].view()) == kernel.tobytes()
    assert found["w"].shape == (2, 3)
    assert bytes(found["b"].view()) == np.ones(3, ml_dtypes.bfloat16).tobytes()
    advice = "; dequantize (--dequantize) gives numbers" if order == "<" else ", big-endian"
    assert found.refused == {"q": f"it is quantised as Q4_0{advice}"}
    assert (found["q"].dtype, found["q"].shape, found["q"].nbytes) == ("Q4_0", (32,), 18)
    assert found.metadata == {"gguf.general.name": "tiny"}
    with pytest.raises(UnsupportedError, match="tensor `q` cannot be given: it is quantised") as no:
        found["q"].view()
    assert (no.value.tensor, no.value.path) == ("q", "<bytes>")


@pytest.mark.parametrize(
    ("name", "shape", "kind", "data", "words"),
    [
        ("short", (64,), 8, bytes(67), "tensor `short` ends at byte"),
        ("short", (3,), 0, bytes(11), "tensor `short` ends at byte"),
        ("row", (2, 48), 8, bytes(102), "a row of tensor `row` is not made of blocks of Q8_0"),
        ("scalar", (), 2, bytes(18), "a row of tensor `scalar` is not made of blocks"),
    ],
)
def test_a_gguf_tensor_whose_data_cannot_be_there(name, shape, kind, data, words) -> None:
    with pytest.raises(FormatError, match=words) as caught:
        open(gguf([(name, shape, kind, data)]))
    assert caught.value.rule == "gguf"


def test_gguf_types_that_nobody_has_described_yet() -> None:
    found = open(gguf([("w", (4,), 77, bytes(4))]))
    assert "GGML's type 77" in found.refused["w"]
    assert (found["w"].dtype, found["w"].shape, found["w"].nbytes) == ("?", (), 0)


@pytest.mark.parametrize("alignment", [None, 8, 16, 64, 4096])
def test_gguf_tensors_begin_at_multiples_of_the_alignment(alignment: int | None) -> None:
    """The first begins after the header, padded to the alignment; offsets count from there."""
    values = [np.full(3, number, "f4") for number in range(3)]
    tensors = [(f"t{at}", (3,), 0, array.tobytes()) for at, array in enumerate(values)]
    found = open(gguf(tensors, alignment=alignment))
    for at, array in enumerate(values):
        assert bytes(found[f"t{at}"].view()) == array.tobytes()
    for shift in (4, (alignment or 32) // 2):
        with pytest.raises(FormatError, match=f"multiple of the alignment, {alignment or 32}"):
            open(gguf(tensors, alignment=alignment, shift=shift) + bytes(shift))


@pytest.mark.parametrize("alignment", [0, 1, 4, 7, 24, 33])
def test_a_gguf_alignment_is_a_power_of_two(alignment: int) -> None:
    content = gguf([("w", (2,), 0, bytes(8))], alignment=alignment)
    with pytest.raises(FormatError, match=f"general.alignment is `{alignment}`, .*power of two"):
        open(content + bytes(64))


@given(st.data())
@settings(max_examples=200)
def test_damaged_headers_give_a_result_or_our_error(data: st.DataObject) -> None:
    good = data.draw(
        st.sampled_from(
            [gguf([("w", (2,), 0, bytes(8))]), pack({"a": np.ones(2, "f4"), "b": [1, "x"]})]
        )
    )
    damaged = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    try:
        open(bytes(damaged))
    except SafetensorError:
        return


# -- HDF5 and Keras --------------------------------------------------------------------------------


def test_hdf5_needs_its_extra(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pyfive", None)
    with pytest.raises(MissingDependencyError, match=r"safeweights\[hdf5\]"):
        open(b"\x89HDF\r\n\x1a\n" + bytes(100))


@given(st.binary(max_size=300))
@settings(max_examples=60)
def test_hdf5_garbage_is_our_error(tail: bytes) -> None:
    pytest.importorskip("pyfive", reason="the hdf5 extra is not installed")
    try:
        open(b"\x89HDF\r\n\x1a\n" + tail)
    except SafetensorError:
        return


# -- what is none of them --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs"),
        (b"<!DOCTYPE html>", "HTML"),
        (archive({"a.txt": b""}), "zip"),
        (json.dumps({"a": 1}).encode(), "JSON"),
        (gzip.compress(b"hello world", mtime=0), "gzip-compressed: decompress it first"),
    ],
)
def test_other_files_are_named(data, words) -> None:
    with pytest.raises(FormatError, match=words):
        open(data)


def test_a_fifo_or_a_folder_is_an_os_error(tmp_path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="Not a regular file"):
        open(tmp_path / "fifo")
    (tmp_path / "w.bin").mkdir()
    with pytest.raises(IsADirectoryError):
        open(tmp_path)  # taken for a folder of weights
