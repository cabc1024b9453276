"""serialize, serialize_file, deserialize, TensorSpec and _safe_open_handle, beside the reference's."""

from __future__ import annotations

import array
import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy

import safeweights
import safeweights.serialization
from safeweights import TensorSpec, deserialize, serialize, serialize_file

if TYPE_CHECKING:
    from pathlib import Path

DATA = np.arange(6, dtype="<f4")


def spec(package: Any = safeweights, **changes: Any) -> Any:
    return package.TensorSpec(
        **{
            "dtype": "float32",
            "shape": (2, 3),
            "data_ptr": DATA.ctypes.data,
            "data_len": 24,
            **changes,
        }
    )


def test_specs_serialize_as_by_the_reference(tmp_path: Path) -> None:
    expected = safetensors.serialize({"x": spec(safetensors)}, {"a": "b"})
    assert serialize({"x": spec()}, {"a": "b"}) == expected
    serialize_file({"x": spec()}, tmp_path / "x", {"a": "b"})
    assert (tmp_path / "x").read_bytes() == expected


@pytest.mark.parametrize(
    "form",
    [
        {"dtype": "float32", "shape": [2, 3], "data": DATA.tobytes()},
        {"dtype": "F32", "shape": (2, 3), "data": bytearray(DATA.tobytes())},
        {"dtype": "float32", "shape": [2, 3], "data": DATA},
        DATA.reshape(2, 3), DATA.reshape(3, 2).T.copy().T.T, np.asfortranarray(DATA.reshape(2, 3)),
        DATA.reshape(2, 3).astype(">f4"), memoryview(DATA.reshape(2, 3)),
    ],
    ids=lambda form: type(form).__name__,
)  # fmt: skip
def test_dictionaries_and_buffers_serialize(form: Any) -> None:
    entry = dict(deserialize(serialize({"x": form})))["x"]
    assert (entry["dtype"], entry["shape"]) == ("F32", [2, 3])
    expected = np.asarray(form, "<f4") if isinstance(form, np.ndarray | memoryview) else DATA
    assert bytes(entry["data"]) == expected.tobytes()


def test_arrays_of_the_standard_library() -> None:
    entries = dict(deserialize(serialize({"a": array.array("h", [1, 2]), "b": b"xy"})))
    assert entries["a"] == {"shape": [2], "dtype": "I16", "data": bytearray(b"\1\0\2\0")}
    assert entries["b"]["dtype"] == "U8"


@pytest.mark.parametrize("shape", [(), (0,), (2, 0), (3,), (2, 3)])
def test_deserialize_is_the_references_in_file_order(shape: tuple[int, ...]) -> None:
    file = safetensors.numpy.save({"b": np.ones(shape, "f4"), "a": np.ones(shape, "u1")})
    assert dict(deserialize(file)) == dict(safetensors.deserialize(file))
    assert [name for name, _ in deserialize(memoryview(file))] == ["b", "a"]


TYPES = sorted(set(safeweights.serialization._NAMES) - {"float4_e2m1fn"})


@pytest.mark.parametrize("dtype", TYPES)
def test_specs_of_every_type(dtype: str) -> None:
    found = [
        package.TensorSpec(dtype=dtype, shape=(2, 4), data_ptr=DATA.ctypes.data, data_len=8)
        for package in (safeweights, safetensors)
    ]
    assert found[0].dtype == found[1].dtype
    assert found[0].shape == found[1].shape
    assert (found[0].data_ptr, found[0].data_len) == (found[1].data_ptr, found[1].data_len)


def test_specs_compare_and_show() -> None:
    assert spec() == spec()
    assert spec() != spec(shape=(3, 2))
    assert repr(spec()).startswith("TensorSpec(dtype='F32', shape=[2, 3], data_ptr=")


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "nonsense"}, {"dtype": 3}, {"shape": [-1]}, {"shape": "ab"}, {"shape": 3},
        {"shape": [1.5]}, {"data_ptr": 0}, {"data_ptr": -1}, {"data_len": -1}, {"data_len": "x"},
        {"data_ptr": None}, {"shape": [2**70]},
    ],
    ids=repr,
)  # fmt: skip
def test_bad_specs_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(safeweights.SafetensorError):
        serialize({"x": spec(**changes)})


def test_positional_specs_are_refused() -> None:
    for package in (safeweights, safetensors):
        with pytest.raises(TypeError):
            package.TensorSpec("float32", [1], 0, 0)


@pytest.mark.parametrize(
    "bad",
    [
        {"x": {"dtype": "float32", "shape": [1], "data_ptr": 0, "data_len": 0}},
        {"x": {"dtype": "float32", "shape": [2], "data": b"abc"}},
        {"x": {"dtype": "nonsense", "shape": [2], "data": b"abc"}},
        {"x": 3}, {"x": None}, {"x": "text"}, {1: b"x"}, {"x": [1, 2]}, {"x": np.array([None])},
        [("x", b"")], "text", None, 3,
    ],
    ids=repr,
)  # fmt: skip
def test_bad_dictionaries_are_refused(bad: Any, tmp_path: Path) -> None:
    with pytest.raises(safeweights.SafetensorError):
        serialize(bad)
    with pytest.raises(safeweights.SafetensorError):
        serialize_file(bad, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_the_old_dictionaries_of_pointers_are_type_errors() -> None:
    with pytest.raises(TypeError):
        serialize({"x": {"dtype": "float32", "shape": [1], "data_ptr": 0, "data_len": 0}})


@pytest.mark.parametrize("bad", ["text", None, 3, [1], b"", b"x" * 20, ...], ids=repr)
def test_bad_bytes_are_refused(bad: Any) -> None:
    with pytest.raises(safeweights.SafetensorError):
        deserialize(bad)


def test_keywords_are_the_references(tmp_path: Path) -> None:
    file = serialize({"x": spec()})
    for package in (safeweights, safetensors):
        assert dict(package.deserialize(bytes=file))["x"]["shape"] == [2, 3]
        (tmp_path / "x").write_bytes(file)
        with (tmp_path / "x").open("rb") as opened:
            assert package._safe_open_handle(f=opened, framework="np").keys() == ["x"]


@pytest.mark.parametrize("change", [{"data_ptr": 1 << 63}, {"data_len": 1 << 63}, {"data_ptr": 0}])
def test_memory_that_cannot_be_is_refused(change: dict[str, int]) -> None:
    with pytest.raises(safeweights.SafetensorError, match="cannot be a tensor's memory"):
        spec(**change)


def test_file_objects_of_every_kind(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec", reason="fsspec is one kind of file object")
    path = tmp_path / "x"
    serialize_file({"x": spec()}, path)
    kinds = [
        lambda: path.open("rb"), lambda: path.open(), lambda: io.BytesIO(path.read_bytes()),
        lambda: fsspec.open(str(path), "rb").open(), lambda: path.open("rb", buffering=0),
    ]  # fmt: skip
    for backend in ("mmap", "pread"):
        for kind in kinds:
            with kind() as file:
                handle = safeweights._safe_open_handle(
                    file, framework="np", device="cpu", backend=backend
                )
                np.testing.assert_array_equal(handle.get_tensor("x"), DATA.reshape(2, 3))
                np.testing.assert_array_equal(handle.get_slice("x")[1], DATA[3:])
    for bad in (str(path), 3, None, object()):
        with pytest.raises(safeweights.SafetensorError):
            safeweights._safe_open_handle(bad, "np")


def test_names_of_the_spec() -> None:
    assert TensorSpec.__name__ == safetensors.TensorSpec.__name__
