"""One target everywhere: files, folders, indexes and mappings of any kind give values."""

from __future__ import annotations

import importlib
import io
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from kits import Kit, file_of, parts_of, sample

import safeweights
import safeweights.numpy
from safeweights.checkpoint import Checkpoint, MemoryTensor, UnreadableTensor
from safeweights.derived.casting import CastTensor
from safeweights.errors import FormatError, SafetensorError, TensorNotFoundError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SHAPES = {"a": (4, 3), "b": (5,), "c": (2, 2), "d": ()}
DATA = {name: sample("F32", shape, seed) for seed, (name, shape) in enumerate(SHAPES.items())}


def face(kit: Kit) -> Any:
    return importlib.import_module(f"safeweights.{kit.face}")


def part(*names: str) -> bytes:
    return file_of({name: ("F32", SHAPES[name], DATA[name]) for name in names})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards and their index."""
    shards = {"model-00001-of-00002.safetensors": "ab", "model-00002-of-00002.safetensors": "cd"}
    for shard, names in shards.items():
        (tmp_path / shard).write_bytes(part(*names))
    weight_map = {name: shard for shard, names in shards.items() for name in names}
    index = {"metadata": {"total_size": 88}, "weight_map": weight_map}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    return tmp_path


def targets(folder: Path) -> Iterator[tuple[str, Any]]:
    """The same four tensors, in every form that they may have."""
    yield "folder", folder
    yield "folder, as text", str(folder)
    yield "index", folder / "model.safetensors.index.json"
    (folder.parent / "whole.safetensors").write_bytes(part(*DATA))
    yield "file", folder.parent / "whole.safetensors"
    yield "file object", io.BytesIO(part(*DATA))
    for backend in ("mmap", "pread"):
        opened = safeweights.open(folder, backend=backend)
        yield f"checkpoint, {backend}", opened
        yield "filtered", opened.filter(skip="nothing")
        yield "renamed", opened.rename(lambda name: name.upper()).rename(lambda name: name.lower())
        yield "dict", dict(opened)
    memory = {name: MemoryTensor(name, "F32", SHAPES[name], data) for name, data in DATA.items()}
    yield "memory", Checkpoint(memory)
    yield "mixed", {**opened, "b": memory["b"]}


def expected(names: str = "abcd") -> dict[str, Any]:
    return {name: ("F32", SHAPES[name], DATA[name]) for name in names}


def test_every_target_gives_the_same_values(kit: Kit, folder: Path) -> None:
    spelling = kit.spellings[0]
    for kind, target in targets(folder):
        loaded = face(kit).load_file(target)
        assert {name: kit.look(each) for name, each in loaded.items()} == expected(), kind
        with safeweights.safe_open(target, spelling) as file:
            assert file.keys() == sorted(DATA), kind
            assert sorted(file.offset_keys()) == sorted(DATA), kind
            assert len(file) == 4, kind
            found = {name: kit.look(file.get_tensor(name)) for name in file}
            assert found == expected(), kind
            assert kit.look(file.get_slice("a")[1:3])[2] == DATA["a"][12:36], kind
            assert list(file.get_tensor_meta("b").shape) == [5], kind
            assert "z" not in file
            with pytest.raises(TensorNotFoundError):
                file.get_tensor("z")
            with file.prefetch({"a": slice(1, 3), "d": None, "c": (slice(None), 1)}) as loader:
                got = {name: kit.look(each) for name, each in loader}
        assert got["a"][2] == DATA["a"][12:36], kind
        assert got["c"][2] == DATA["c"][4:8] + DATA["c"][12:16], kind
        assert got["d"] == expected()["d"], kind
        with safeweights.stream(target, spelling) as loader:
            streamed = {name: kit.look(each) for name, each in loader}
        assert streamed == expected(), kind


def test_an_order_of_names_is_kept(kit: Kit, folder: Path) -> None:
    opened = safeweights.open(folder)
    reordered = {name: opened[name] for name in "dbca"}
    assert list(face(kit).load_file(reordered)) == list("dbca")


def test_cast_values(kit: Kit, folder: Path) -> None:
    opened = safeweights.open(folder)
    cast = Checkpoint({name: CastTensor(tensor, "F16") for name, tensor in opened.items()})
    values = np.frombuffer(DATA["a"], "<f4").astype("<f2").tobytes()
    for found in (
        face(kit).load_file(cast)["a"],
        safeweights.stream(cast, kit.spellings[0]).take("a"),
        safeweights.safe_open(cast, kit.spellings[0]).get_slice("a")[...],
    ):
        assert kit.look(found) == ("F16", (4, 3), values)


def test_saving_unread_tensors(kit: Kit, folder: Path, tmp_path: Path) -> None:
    for kind, target in targets(folder):
        if isinstance(target, Checkpoint | dict):
            path = tmp_path / "out.safetensors"
            face(kit).save_file(target, path)
            assert parts_of(path.read_bytes()) == expected(), kind
            assert parts_of(face(kit).save(target)) == expected(), kind
    first, last = (kit.make("F32", (2,), bytes(8)) for _ in range(2))
    mixed = {"z": last, "a": safeweights.open(folder)["a"], "y": first}
    assert parts_of(face(kit).save(mixed)) == {
        **expected("a"), "y": ("F32", (2,), bytes(8)), "z": ("F32", (2,), bytes(8)),
    }  # fmt: skip


def test_metadata_of_a_checkpoint_is_kept(kit: Kit, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(file_of(expected(), {"format": "pt"}))
    opened = safeweights.open(path)
    assert safeweights.safe_open(opened, kit.spellings[0]).metadata() == {"format": "pt"}
    assert safeweights.open(face(kit).save(opened)).metadata == {"format": "pt"}


def test_saving_in_shards(kit: Kit, tmp_path: Path) -> None:
    tensors = {name: kit.make("F32", SHAPES[name], DATA[name]) for name in DATA}
    face(kit).save_file(tensors, tmp_path / "new", {"format": "x"}, max_shard_size=60)
    names = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert names == [
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]  # fmt: skip
    loaded = face(kit).load_file(tmp_path / "new")
    assert {name: kit.look(each) for name, each in loaded.items()} == expected()
    face(kit).save_file(tensors, tmp_path / "new", max_shard_size="5GB")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model.safetensors"]
    with pytest.raises(UnsupportedError, match="a folder"):
        face(kit).save_file(tensors, io.BytesIO(), max_shard_size="5GB")


def test_folders_that_are_no_checkpoint(kit: Kit, folder: Path) -> None:
    (folder / "empty").mkdir()
    for target in (folder / "empty", str(folder / "empty")):
        with pytest.raises(FormatError, match=r"no \.safetensors file"):
            face(kit).load_file(target)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FormatError, match="missing"):
        face(kit).load_file(folder)


def test_mappings_of_something_else(kit: Kit, folder: Path) -> None:
    opened = safeweights.open(folder)
    with pytest.raises(UnsupportedError, match="expected unread tensors, found `a`: int"):
        face(kit).load_file({"a": 1})
    with pytest.raises(UnsupportedError, match=r"give it to `safeweights\.open`"):
        face(kit).load_file(opened, trust="policy.toml")
    lost = {**opened, "e": UnreadableTensor("e", "F32", (2,), 8, reason="it is encrypted")}
    with pytest.raises(UnsupportedError, match="it is encrypted"):
        face(kit).load_file(lost)
    with pytest.raises(UnsupportedError, match="it is encrypted"):
        safeweights.safe_open(lost, kit.spellings[0]).get_tensor("e")
    foreign = {"e": MemoryTensor("e", "C128", (1,), bytes(16))}
    for call in (
        lambda: face(kit).load_file(foreign),
        lambda: safeweights.stream(foreign, kit.spellings[0]),
        lambda: safeweights.safe_open(foreign, kit.spellings[0]).get_slice("e"),
        lambda: safeweights.stream(foreign, kit.spellings[0], plan={"e": slice(0, 1)}),
    ):
        with pytest.raises(SafetensorError, match="C128"):
            call()


def test_values_of_a_mapping_are_the_caller_s_own(kit: Kit, folder: Path) -> None:
    """Where the reference copies, values do not change with the memory they are read from."""
    if kit.package == "torch":
        pytest.skip("tensors share the memory of a mapping, as in the reference")
    memory = bytearray(DATA["a"])
    mapping = Checkpoint({"a": MemoryTensor("a", "F32", SHAPES["a"], memory)})
    found = [
        face(kit).load_file(mapping)["a"],
        safeweights.stream(mapping, kit.spellings[0]).take("a"),
        safeweights.safe_open(mapping, kit.spellings[0]).get_tensor("a"),
        safeweights.safe_open(mapping, kit.spellings[0]).get_slice("a")[:],
    ]
    opened = safeweights.open(folder)
    mapped = [
        face(kit).load_file(opened)["a"], safeweights.stream(opened, kit.spellings[0]).take("a"),
    ]  # fmt: skip
    memory[:] = bytes(len(memory))
    shard = folder / "model-00001-of-00002.safetensors"
    with shard.open("r+b") as file:
        file.write(bytes(shard.stat().st_size))
    for tensor in found + mapped:
        assert kit.look(tensor) == expected()["a"]
