"""What holds for every framework: layouts, shapes, slices, devices, closed files, bad input."""

from __future__ import annotations

import contextlib
import importlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from kits import Kit, array_of, file_of, parts_of, sample

import safeweights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SHAPE = (4, 5, 6)
BACKENDS = ("mmap", "pread")


def face(kit: Kit) -> Any:
    return importlib.import_module(f"safeweights.{kit.face}")


def written(folder: Path, **tensors: tuple[str, tuple[int, ...]]) -> Path:
    path = folder / "x.safetensors"
    data = {name: (code, shape, sample(code, shape)) for name, (code, shape) in tensors.items()}
    path.write_bytes(file_of(data))
    return path


@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (1,), (1, 1, 1, 1, 1)])
@pytest.mark.parametrize("code", ["BOOL", "U8", "F16", "F32", "BF16"])
def test_every_rank_and_empty_tensors(kit: Kit, code: str, shape: tuple[int, ...]) -> None:
    data = sample(code, shape)
    file = file_of({"x": (code, shape, data)})
    loaded = face(kit).load(file)["x"]
    assert kit.look(loaded) == (code, shape, data)
    assert parts_of(face(kit).save({"x": loaded})) == {"x": (code, shape, data)}


def test_no_tensors_and_metadata(kit: Kit, tmp_path: Path) -> None:
    assert face(kit).load(face(kit).save({})) == {}
    path = tmp_path / "x.safetensors"
    face(kit).save_file({}, path, metadata={"format": "pt"})
    with safeweights.safe_open(path, kit.spellings[0]) as file:
        assert file.metadata() == {"format": "pt"}
        assert file.keys() == file.offset_keys() == []


def test_same_bytes_as_the_reference(kit: Kit, tmp_path: Path) -> None:
    reference = importlib.import_module(f"safetensors.{kit.face}")
    tensors = {
        name: kit.make(code, (3, 4), sample(code, (3, 4), seed))
        for seed, (name, code) in enumerate(
            [("z", "U8"), ("a", "F32"), ("é", "F16"), ("m", "BOOL"), ("", "I32")]
        )
    }
    expected = reference.save(dict(tensors), metadata={"format": "x"})
    assert face(kit).save(tensors, metadata={"format": "x"}) == expected
    face(kit).save_file(tensors, tmp_path / "a", metadata={"format": "x"})
    assert (tmp_path / "a").read_bytes() == expected


def test_names_come_in_their_orders(kit: Kit, tmp_path: Path) -> None:
    path = written(tmp_path, b=("F32", (2,)), a=("U8", (2,)), c=("F32", (1,)))
    with safeweights.safe_open(path, kit.spellings[0]) as file:
        assert file.keys() == ["a", "b", "c"]
        assert file.offset_keys() == list(file) == list(file.get_tensors()) == ["b", "a", "c"]
        assert [name for name, _ in file.items()] == ["b", "a", "c"]
        assert len(file) == 3
        assert "a" in file
        assert "d" not in file
        assert file.info("a") == ("U8", (2,), 8, 10)
        assert file.get_tensor_meta("a") == ("U8", [2], (8, 10))


INDEXES: list[Any] = [
    slice(None), (), ..., 0, -1, 3, slice(1, 3), slice(-3, -1), slice(0, 4, 2), slice(3, 1),
    (slice(None), 2), (..., 1), (1, 2, 3), (slice(None), slice(None), slice(2, 4)),
    (1, ..., slice(0, 6, 3)), (None, 2), (slice(2, 2), 1), (0, slice(-4, None), -6), [],
]  # fmt: skip


ARRAYS: list[Any] = [
    np.array([0, 2, 2]), (slice(None), [1, 0]), ([0, 1], [1, 2]), np.arange(4) > 1, True,
    (np.array([[0], [1]]), ..., slice(0, 2)), np.zeros(0, int),
]  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("at", range(len(ARRAYS)))
def test_arrays_and_masks_index_as_in_numpy(
    kit: Kit, at: int, backend: str, tmp_path: Path
) -> None:
    path = written(tmp_path, x=("I32", SHAPE))
    expected = array_of("I32", SHAPE, sample("I32", SHAPE))[ARRAYS[at]]
    with safeweights.safe_open(path, kit.spellings[0], backend=backend) as file:
        part = file.get_slice("x")
        found = kit.look(part[ARRAYS[at]])
        assert found == ("I32", expected.shape, np.ascontiguousarray(expected).tobytes())
        for wrong in (np.array([4]), ([0], [9]), np.ones(3, bool)):
            with pytest.raises(safeweights.SafetensorError):
                part[wrong]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("index", INDEXES, ids=str)
def test_slices_are_numpy_slices(kit: Kit, index: Any, backend: str, tmp_path: Path) -> None:
    code = "I32"
    path = written(tmp_path, x=(code, SHAPE))
    whole = array_of(code, SHAPE, sample(code, SHAPE))
    expected = whole[0:0] if isinstance(index, list) else whole[index]
    with safeweights.safe_open(path, kit.spellings[0], backend=backend) as file:
        part = file.get_slice("x")
        assert part.get_shape() == list(SHAPE)
        assert part.get_dtype() == code
        found = kit.look(part[index])
    assert found == (code, expected.shape, np.ascontiguousarray(expected).tobytes())


@pytest.mark.parametrize(
    ("index", "text"),
    [
        ((slice(2, None), -6), "Invalid index -6 for dimension 1 of size 5"),
        ((slice(2, None), 20), "Error during slicing [2:, 20] with shape [4, 5, 6]: index 20 out of "
                               "bounds for tensor dimension #1 of size 5"),
        (slice(None, 20), "Error during slicing [:20] with shape [4, 5, 6]: index 19 out of bounds for "
                          "tensor dimension #0 of size 4"),
        ([0, 1], "Non empty lists are not implemented"),
        ((..., ...), "Only one ellipsis (...) is allowed in slice index"),
        ((0, 0, 0, 0), "Error during slicing [0, 0, 0, 0] with shape [4, 5, 6]: more slicing indexes "
                       "than dimensions in tensor"),
        ("x", "Unsupported slice index at position 0: expected slice, int, or ellipsis, found str"),
        (1.5, "Unsupported slice index at position 0: expected slice, int, or ellipsis, found float"),
    ],
)  # fmt: skip
def test_bad_slices_have_the_references_words(
    kit: Kit, index: Any, text: str, tmp_path: Path
) -> None:
    path = written(tmp_path, x=("I32", SHAPE))
    part = safeweights.safe_open(path, kit.spellings[0], backend="pread").get_slice("x")
    with pytest.raises(safeweights.SafetensorError) as caught:
        part[index]
    assert str(caught.value) == text


@pytest.mark.parametrize("backend", BACKENDS)
def test_everything_handed_out_outlives_the_file(kit: Kit, backend: str, tmp_path: Path) -> None:
    path = written(tmp_path, x=("F32", SHAPE))
    file = safeweights.safe_open(path, kit.spellings[0], backend=backend)
    part, whole = file.get_slice("x"), file.get_tensor("x")
    file.__exit__(None, None, None)
    file.close()
    for call in (file.keys, file.metadata, file.get_tensors, lambda: file.get_tensor("x")):
        with pytest.raises(safeweights.SafetensorError, match=r"^File is closed$"):
            call()
    path.unlink()
    assert kit.look(whole)[2] == kit.look(part[:])[2] == sample("F32", SHAPE)


def test_slices_from_several_threads(kit: Kit, tmp_path: Path) -> None:
    path = written(tmp_path, x=("F32", (64, 8)))
    row = 8 * 4
    data = sample("F32", (64, 8))
    for backend in BACKENDS:
        with safeweights.safe_open(path, kit.spellings[0], backend=backend) as file:
            part = file.get_slice("x")
            with ThreadPoolExecutor(4) as pool:
                found = list(pool.map(lambda at: kit.look(part[at])[2], range(64)))
        assert found == [data[at * row : (at + 1) * row] for at in range(64)]


@pytest.mark.parametrize("backend", ["mmap", "pread"])
def test_prefetch(kit: Kit, tmp_path: Path, backend: str) -> None:
    path = written(tmp_path, a=("F32", (3, 4)), b=("U8", (5,)), c=("I32", (2, 2)))
    with safeweights.safe_open(path, kit.spellings[0], backend=backend) as file:
        loader = file.prefetch()
        assert isinstance(loader, safeweights.PrefetchLoader)
        assert loader.names() == file.offset_keys()
        assert len(loader) == 3
        assert kit.look(loader.take("c"))[2] == sample("I32", (2, 2))
        with pytest.raises(safeweights.SafetensorError, match="already delivered"):
            loader.take("c")
        assert {name: kit.look(tensor)[2] for name, tensor in loader} == {
            "a": sample("F32", (3, 4)), "b": sample("U8", (5,)),
        }  # fmt: skip
        assert list(loader) == []
        part = dict(file.prefetch({"a": (slice(0, 2), 1), "b": slice(1, 3)}, threads=1))
        assert kit.look(part["a"])[1] == (2,)
        assert kit.look(part["b"])[2] == sample("U8", (5,))[1:3]
        with pytest.raises(safeweights.SafetensorError, match="does not contain tensor zz"):
            file.prefetch(["zz"])


@pytest.mark.parametrize(
    "shape", [(2**62, 0), (0, 2**64 - 1), (2**31, 2**31, 0), (0,) * 64], ids=str
)
@pytest.mark.parametrize("code", ["F32", "U8", "BF16", "F4"])
def test_empty_tensors_of_any_shape_load_or_are_refused(
    kit: Kit, tmp_path: Path, code: str, shape: tuple[int, ...]
) -> None:
    """A 0 among its dimensions lets the others be anything: beyond what a framework can have, too."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(file_of({"a": (code, shape, b"")}))
    spelling = kit.spellings[0]

    def taken(backend: str) -> Iterator[Callable[[], Any]]:
        yield lambda: face(kit).load_file(path, backend=backend)["a"]
        yield lambda: safeweights.safe_open(path, spelling, backend=backend).get_tensor("a")
        yield lambda: safeweights.safe_open(path, spelling, backend=backend).get_slice("a")[...]
        yield lambda: safeweights.stream(path, spelling, backend=backend).take("a")

    for backend in BACKENDS:
        for take in taken(backend):
            try:
                tensor = take()
            except safeweights.SafetensorError as error:
                assert error.tensor == "a"  # noqa: PT017 - either is right
            else:
                assert not np.prod(np.shape(tensor), dtype=object)
        part = safeweights.safe_open(path, spelling, backend=backend).get_slice("a")
        with contextlib.suppress(safeweights.SafetensorError):  # torch has no limit to axes
            assert not np.prod(np.shape(part[(None,) * 65]), dtype=object)


def test_misaligned_files_load(kit: Kit, tmp_path: Path) -> None:
    data = {"a": ("U8", (3,), b"abc"), "b": ("F32", (2,), sample("F32", (2,)))}
    path = tmp_path / "x.safetensors"
    path.write_bytes(file_of(data))
    for backend in BACKENDS:
        loaded = face(kit).load_file(path, backend=backend)
        assert {name: kit.look(tensor) for name, tensor in loaded.items()} == data
        flags = getattr(loaded["b"], "flags", None)
        assert flags is None or flags.aligned


@pytest.mark.parametrize(
    "bad", [[1, 2], "text", None, 3, {"deep": 1}, object()], ids=lambda bad: type(bad).__name__
)
def test_what_is_no_tensor_is_refused(kit: Kit, bad: Any, tmp_path: Path) -> None:
    with pytest.raises(safeweights.SafetensorError, match=r"invalid|expected"):
        face(kit).save({"x": bad})
    with pytest.raises(safeweights.SafetensorError):
        face(kit).save_file([bad], tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_bad_names_and_metadata_are_refused(kit: Kit) -> None:
    tensor = kit.make("F32", (2,), sample("F32", (2,)))
    for tensors, metadata in [
        ({1: tensor}, None), ({"__metadata__": tensor}, None), ({"\ud800": tensor}, None),
        ({"a": tensor}, {"a": 1}), ({"a": tensor}, [("a", "b")]), ({"a": tensor}, {2: "x"}),
    ]:  # fmt: skip
        with pytest.raises(safeweights.SafetensorError):
            face(kit).save(tensors, metadata)


@pytest.mark.parametrize("bad", ["x", 3, None, b"", b"12345678", ..., [1]], ids=repr)
def test_what_is_no_file_is_refused(kit: Kit, bad: Any) -> None:
    with pytest.raises(safeweights.SafetensorError):
        face(kit).load(bad)


def test_bytes_like_objects_load(kit: Kit) -> None:
    data = sample("F32", (2, 2))
    file = file_of({"x": ("F32", (2, 2), data)})
    for form in (bytearray(file), memoryview(file), np.frombuffer(file, np.uint8)):
        assert kit.look(face(kit).load(form)["x"])[2] == data


def test_opening_what_cannot_be_opened(kit: Kit, tmp_path: Path) -> None:
    spelling = kit.spellings[0]
    with pytest.raises(FileNotFoundError, match=r"^No such file or directory: notafile$"):
        safeweights.safe_open("notafile", spelling)
    with pytest.raises(safeweights.SafetensorError, match="the folder has no"):
        safeweights.safe_open(tmp_path, spelling)
    path = written(tmp_path, x=("F32", (2,)))
    with pytest.raises(
        safeweights.SafetensorError, match=r'backend "x" is invalid .expected one of'
    ):
        safeweights.safe_open(path, spelling, backend="x")
    with pytest.raises(safeweights.SafetensorError, match="bogus"):
        safeweights.safe_open(path, spelling, device="bogus").get_tensor("x")
    with safeweights.safe_open(path, spelling, device=None) as file:
        for call in (file.get_tensor, file.get_slice, file.info, file.get_bytes):
            with pytest.raises(
                safeweights.SafetensorError, match="File does not contain tensor zz"
            ):
                call("zz")
        assert bytes(file.get_bytes("x")) == sample("F32", (2,))


def test_unknown_frameworks() -> None:
    with pytest.raises(safeweights.SafetensorError, match="framework foo is invalid"):
        safeweights.safe_open("x", "foo")
    with pytest.raises(TypeError, match="'int' object is not an instance of 'str'"):
        safeweights.safe_open("x", 3)  # type: ignore[call-overload]


def test_a_framework_that_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "mlx", None)
    monkeypatch.setitem(sys.modules, "mlx.core", None)
    monkeypatch.delitem(sys.modules, "safeweights.frameworks.mlx", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'safeweights\[mlx\]'") as caught:
        safeweights.safe_open(written(tmp_path, x=("F32", (2,))), "mlx").get_tensor("x")
    assert isinstance(caught.value, safeweights.SafetensorError)


# --- memory ---------------------------------------------------------------------------------------


def taken(kit: Kit, path: Path) -> dict[str, Any]:
    """Tensor `a` of a file, by each way that gives tensors."""
    spelling = kit.spellings[0]
    handle = safeweights.safe_open(path, spelling)
    return {
        "load_file": face(kit).load_file(path)["a"],
        "get_tensor": handle.get_tensor("a"),
        "get_tensors": handle.get_tensors()["a"],
        "get_slice": handle.get_slice("a")[:],
        "prefetch": handle.prefetch(["a"]).take("a"),
        "stream": safeweights.stream(path, spelling).take("a"),
    }


@pytest.mark.parametrize("shape", [(3, 5), (2048, 1024)])
def test_tensors_are_not_changed_with_the_file(
    kit: Kit, tmp_path: Path, shape: tuple[int, ...]
) -> None:
    """Not where the reference copies, too; torch maps, as it does there."""
    if kit.package == "torch":
        pytest.skip("tensors share a mapping, as in the reference")
    path, data = tmp_path / "x.safetensors", sample("F32", shape)
    path.write_bytes(file_of({"a": ("F32", shape, data)}))
    found = taken(kit, path)
    other = file_of({"a": ("F32", shape, bytes(len(data)))})
    with path.open("r+b") as file:  # as shutil.copyfile writes, but without truncating first
        file.write(other)
    for way, tensor in found.items():
        assert kit.look(tensor) == ("F32", shape, data), way
    assert kit.look(face(kit).load_file(path)["a"]) == ("F32", shape, bytes(len(data)))


def test_saving_onto_the_file_that_tensors_are_of(kit: Kit, tmp_path: Path) -> None:
    path, data = tmp_path / "x.safetensors", sample("F32", (3, 5))
    path.write_bytes(file_of({"a": ("F32", (3, 5), data)}))
    found = taken(kit, path) | {"mmap": face(kit).load_file(path, backend="mmap")["a"]}
    face(kit).save_file({"a": kit.make("F32", (2,), bytes(8))}, path)
    for way, tensor in found.items():
        assert kit.look(tensor) == ("F32", (3, 5), data), way
    face(kit).save_file({"a": found["load_file"], "b": found["mmap"]}, path)
    assert parts_of(path.read_bytes()) == {
        "a": ("F32", (3, 5), data), "b": ("F32", (3, 5), data)
    }  # fmt: skip


def test_tensors_of_memory_do_not_share_it(kit: Kit) -> None:
    if kit.package == "torch":
        pytest.skip("tensors share the memory of what they are read from, as in the reference")
    data = sample("F32", (3, 5))
    memory = bytearray(file_of({"a": ("F32", (3, 5), data)}))
    handle = safeweights.safe_open(memory, kit.spellings[0])
    found = [handle.get_tensor("a"), handle.get_slice("a")[:], handle.get_slice("a")[1:]]
    memory[-60:] = bytes(60)
    assert [kit.look(tensor)[2] for tensor in found] == [data, data, data[20:]]
