"""Checkpoints written as .npz, .bin and .gguf, and read by the libraries of those formats and by ours."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib

import numpy as np
import pytest

import safeweights
import safeweights.numpy
from safeweights.checkpoint import MemoryTensor, to_bytes
from safeweights.conversion.exports import contents_of, format_of, zips
from safeweights.errors import FormatError, UnsupportedError

torch = pytest.importorskip("torch")

ARRAYS = {
    "a.weight": np.arange(6, dtype="f4").reshape(2, 3), "b": np.ones(3, "f2"), "step": np.int64(7),
    "empty": np.zeros((0, 4), "i4"), "layers/0": np.arange(200, dtype="u1"), "flag": np.array([True]),
    "wide": np.arange(3, dtype="f8"), "small": np.arange(-3, 3, dtype="i1"),
    "short": np.arange(2, dtype="i2"),
}  # fmt: skip


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "model.safetensors"
    safeweights.numpy.save_file(ARRAYS, path, {"format": "pt", "tied": "a.weight"})
    return path


def contents(target):
    return {
        name: (tensor.dtype, tensor.shape, bytes(tensor.view()))
        for name, tensor in safeweights.open(target).items()
    }


def same(loaded, expected=ARRAYS):
    assert loaded.keys() == {*expected, "tied"}
    for name, value in loaded.items():
        wanted = expected["a.weight" if name == "tied" else name]
        assert np.asarray(value).dtype == np.asarray(wanted).dtype, name
        assert np.array_equal(np.asarray(value), wanted), name


def test_npz(source, tmp_path):
    done = safeweights.convert(source, tmp_path / "out.npz")
    assert done.outputs[0].format == "npz"
    assert done.outputs[0].size == (tmp_path / "out.npz").stat().st_size
    with np.load(tmp_path / "out.npz") as loaded:
        same(dict(loaded))
    safeweights.convert(tmp_path / "out.npz", tmp_path / "back.safetensors")
    assert contents(tmp_path / "back.safetensors") == {
        **contents(source), "tied": contents(source)["a.weight"],
    }  # fmt: skip


@pytest.mark.parametrize("suffix", ["bin", "pt", "pth"])
@pytest.mark.parametrize("mmap", [True, False])
def test_torch(source, tmp_path, suffix, mmap):
    path = tmp_path / f"out.{suffix}"
    done = safeweights.convert(source, path)
    assert done.outputs[0].format == "torch-zip"
    assert done.outputs[0].size == path.stat().st_size
    loaded = torch.load(path, weights_only=True, mmap=mmap)
    same({name: value.numpy() for name, value in loaded.items()})
    assert loaded["tied"].data_ptr() == loaded["a.weight"].data_ptr()
    assert all(value.is_contiguous() for value in loaded.values())
    safeweights.convert(path, tmp_path / "back.safetensors", rename=["^wide$=wide"])
    assert contents(tmp_path / "back.safetensors") == contents(source)
    assert safeweights.open(tmp_path / "back.safetensors").metadata["tied"] == "a.weight"
    assert safeweights.check(path)["ok"]


def test_every_type_that_torch_has(tmp_path):
    codes = {
        "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1, "F8_E8M0": 1, "U16": 2,
        "U32": 4, "U64": 8, "C64": 8,
    }  # fmt: skip
    tensors = {
        code: MemoryTensor(code, code, (2, 3), bytes(range(6 * width)))
        for code, width in codes.items()
    }
    (tmp_path / "a.safetensors").write_bytes(to_bytes(tensors))
    safeweights.convert(tmp_path / "a.safetensors", tmp_path / "a.bin")
    loaded = torch.load(tmp_path / "a.bin", weights_only=True)
    expected = safeweights.safe_open(tmp_path / "a.safetensors", "pt")
    for code, value in loaded.items():
        assert value.dtype == expected.get_tensor(code).dtype
        assert bytes(value.view(torch.uint8).numpy().reshape(-1)) == bytes(tensors[code].view())
    assert contents(tmp_path / "a.bin") == contents(tmp_path / "a.safetensors")


def test_gguf(tmp_path):
    arrays = {name: ARRAYS[name] for name in ("a.weight", "b", "wide", "small", "short", "step")}
    safeweights.numpy.save_file(arrays, tmp_path / "a.safetensors")
    metadata = {
        "general.architecture": "llama", "llama.block_count": "u32:2", "x.eps": "f32:0.5",
        "x.on": "bool:true", "x.text": "a:b",
    }  # fmt: skip
    done = safeweights.convert(tmp_path / "a.safetensors", tmp_path / "a.gguf", metadata=metadata)
    assert done.outputs[0].size == (tmp_path / "a.gguf").stat().st_size
    found = contents(tmp_path / "a.gguf")
    expected = contents(tmp_path / "a.safetensors")
    assert found.pop("step") == ("I64", (1,), expected.pop("step")[2])
    assert found == expected
    data = (tmp_path / "a.gguf").read_bytes()
    assert data[:4] == b"GGUF"
    assert struct.unpack("<IQQ", data[4:24]) == (3, 6, 5)
    assert b"llama.block_count" + struct.pack("<II", 4, 2) in data
    assert b"x.eps" + struct.pack("<If", 6, 0.5) in data
    assert b"x.on" + struct.pack("<I?", 7, True) in data
    assert b"x.text" + struct.pack("<IQ", 8, 3) + b"a:b" in data


@pytest.mark.parametrize(
    ("suffix", "code", "name"),
    [("npz", "BF16", "NumPy"), ("npz", "F4", "NumPy"), ("bin", "F4", "PyTorch"), ("gguf", "U8", "GGUF"),
     ("gguf", "BOOL", "GGUF")],
)  # fmt: skip
def test_types_that_a_format_lacks(tmp_path, suffix, code, name):
    tensors = {
        "x": MemoryTensor("x", code, (4,), bytes(8 if code == "BF16" else 2 if code == "F4" else 4))
    }
    (tmp_path / "a.safetensors").write_bytes(to_bytes(tensors))
    with pytest.raises(UnsupportedError, match=f"`x` is {code}.*{name}.*--dtype"):
        safeweights.convert(tmp_path / "a.safetensors", tmp_path / f"a.{suffix}")
    assert not (tmp_path / f"a.{suffix}").exists()


def test_casts_and_selections_apply(source, tmp_path):
    safeweights.convert(source, tmp_path / "a.npz", dtype="F32=F16", only=["a.*"])
    with np.load(tmp_path / "a.npz") as loaded:
        assert loaded["a.weight"].dtype == np.float16
        assert set(loaded) == {"a.weight", "tied"}


def test_folders_become_one_file(source, tmp_path):
    safeweights.edit(source, f"{tmp_path}/shards/", split=150)
    safeweights.convert(tmp_path / "shards", tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as loaded:
        same(dict(loaded))
    with pytest.raises(UnsupportedError, match="cannot be split"):
        safeweights.convert(source, tmp_path / "b.npz", max_shard_size="1GB")


@pytest.mark.parametrize(
    "metadata", [{"x": "u8:300"}, {"x": "u8:a"}, {"x": "bool:1"}, {"x": "f32:z"}]
)
def test_metadata_that_gguf_cannot_hold(tmp_path, metadata):
    with pytest.raises(FormatError, match="is no value of type"):
        contents_of("a.gguf", {}, metadata)


@pytest.mark.parametrize(
    ("name", "shape"), [("x" * 65, (1,)), ("x", (1, 1, 1, 1, 1)), ("a\0b", (1,))]
)
def test_names_and_shapes_that_gguf_cannot_hold(name, shape):
    with pytest.raises(FormatError, match="does not fit GGUF"):
        contents_of("a.gguf", {name: MemoryTensor(name, "F32", shape, bytes(4))}, {})


@pytest.mark.parametrize(
    ("names", "shape", "problem"),
    [(["a", "a.npy"], (1,), "gives `a` for it"), (["a\0b"], (1,), "null character"),
     (["x" * 65_532], (1,), "at most 65531 bytes"), (["x"], (1,) * 33, "33")],
)  # fmt: skip
def test_names_and_shapes_that_numpy_would_not_give_back(names, shape, problem):
    tensors = {name: MemoryTensor(name, "F32", shape, bytes(4)) for name in names}
    with pytest.raises(FormatError, match=rf"does not fit \.npz: .*{problem}"):
        contents_of("a.npz", tensors, {})


@pytest.mark.parametrize("name", ["a.npy", "", "../a", "x" * 65_531])
def test_other_names_are_given_back(tmp_path, name):
    tensors = {
        each: MemoryTensor(each, "U8", (1,), bytes([at])) for at, each in enumerate(["b", name])
    }
    _, buffers = contents_of("a.npz", tensors, {})
    with np.load(io.BytesIO(b"".join(buffers))) as loaded:
        assert {each: loaded[each].tobytes() for each in loaded} == {"b": b"\0", name: b"\1"}


def test_a_large_archive_has_wide_fields(monkeypatch):
    monkeypatch.setattr(zips, "_MAX32", 100)
    members = [
        zips.Member(f"m{n}", 90 + n * 20, lambda n=n: [bytes(90 + n * 20)]) for n in range(3)
    ]
    size, buffers = zips.archive(members)
    data = b"".join(buffers)
    assert len(data) == size
    assert b"PK\6\6" in data
    # Where numbers fit, other readers agree about every member.
    monkeypatch.undo()
    size, buffers = zips.archive(members)
    data = b"".join(buffers)
    assert len(data) == size
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        for info in archive.infolist():
            assert zlib.crc32(bytes(info.file_size)) == info.CRC
            start = (
                info.header_offset
                + 30
                + sum(struct.unpack("<2H", data[info.header_offset + 26 :][:4]))
            )
            assert start % 64 == 0


def test_formats_by_name():
    assert [format_of(f"a.{suffix}") for suffix in ("npz", "bin", "gguf", "safetensors", "x")] == [
        "npz", "torch-zip", "gguf", "safetensors", "safetensors",
    ]  # fmt: skip
