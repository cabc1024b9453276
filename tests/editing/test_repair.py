"""Repairs: what can be mended without a guess, and what has to be downloaded."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import safeweights
import safeweights.numpy
from safeweights.editing.repairing import Download, repair, zero_tail

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

INDEX = "model.safetensors.index.json"


def second(shards: Path) -> Path:
    return shards / "model-00002-of-00003.safetensors"


def what(done: Any) -> list[str]:
    return [each.what for each in done.mended]


def test_nothing_to_mend(model: Path, shards: Path) -> None:
    before = {path: path.read_bytes() for path in shards.iterdir()}
    for path in (model, shards):
        done = repair(path)
        assert done.whole
        assert not done.mended
    assert before == {path: path.read_bytes() for path in shards.iterdir()}


@pytest.mark.parametrize("tail", [b"x", b"\0" * 5000, b"<html>"])
def test_bytes_after_the_end_are_cut_off(model: Path, tail: bytes) -> None:
    before = model.read_bytes()
    model.write_bytes(before + tail)
    assert not safeweights.check(model)["ok"]
    assert repair(model, dry_run=True).mended
    assert model.read_bytes() == before + tail
    done = repair(model)
    assert done.whole
    assert "after the end of the data" in what(done)[0]
    assert model.read_bytes() == before


def test_nul_padding(model: Path) -> None:
    before = model.read_bytes()
    length = int.from_bytes(before[:8], "little")
    padded = (length + 16).to_bytes(8, "little") + before[8 : 8 + length] + bytes(16)
    model.write_bytes(padded + before[8 + length :] + b"z")
    done = repair(model)
    assert what(done) == [
        "cut off 1 byte after the end of the data; replaced NUL bytes after the header by spaces"
    ]
    assert safeweights.check(model, strict=True)["ok"]
    assert model.read_bytes() == padded.replace(bytes(16), b" " * 16, 1) + before[8 + length :]


def test_files_that_are_too_short(model: Path) -> None:
    whole = model.read_bytes()
    for size in (len(whole) - 1, len(whole) - 40):
        model.write_bytes(whole[:size])
        done = repair(model)
        assert not done.whole
        assert [(each.first, each.last) for each in done.downloads] == [(size, len(whole) - 1)]
        assert model.read_bytes() == whole[:size]
        model.write_bytes(model.read_bytes() + whole[size:])  # what it says is enough
        assert repair(model).whole
    model.write_bytes(whole[:50])
    (download,) = repair(model).downloads
    assert (download.first, download.last) == (50, None)


@pytest.mark.parametrize(
    "data", [b"", b"\x05", b"<!DOCTYPE html><html>", b"\x08" + bytes(7) + b"{!!!!!!}"]
)
def test_what_cannot_be_mended(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    done = repair(path)
    assert done.left or done.downloads
    assert not done.whole
    assert path.read_bytes() == data


def zeroed(path: Path, count: int) -> bytes:
    data = np.random.default_rng(1).integers(1, 255, 300_000, dtype="u1")
    safeweights.numpy.save_file({"a": data, "b": np.ones(10, "u1")}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - count] + bytes(count))
    return whole


@pytest.mark.parametrize("count", [5000, 65_536, 200_000])
def test_a_tail_of_zeros_is_downloaded_again(tmp_path: Path, count: int) -> None:
    path = tmp_path / "a.safetensors"
    whole = zeroed(path, count)
    done = repair(path)
    assert done.downloads == [
        Download(str(path), len(whole) - count, len(whole) - 1, done.downloads[0].why)
    ]
    found = safeweights.check(path)["results"][0]["findings"]
    assert [(each["rule"], each["offset"]) for each in found] == [("zero-tail", len(whole) - count)]
    assert safeweights.check(path)["ok"], "a warning"
    assert not safeweights.check(path, strict=True)["ok"]


def test_tensors_of_zeros_are_no_tail(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for arrays in (
        {"a": np.ones(5000, "u1"), "b": np.zeros(50_000, "u1")},
        {"a": np.zeros(500_000, "f4")},
        {"a": np.float32([1, 2, 0])},
        {"a": np.zeros(0)},
        {},
    ):
        safeweights.numpy.save_file(arrays, path)
        assert repair(path).whole, arrays
        (file,) = safeweights.open(path).files
        assert zero_tail(file.source, file.header) is None


def test_format(model: Path, tmp_path: Path, shards: Path) -> None:
    plain = tmp_path / "plain.safetensors"
    safeweights.numpy.save_file({"a": np.ones(3)}, plain)
    assert repair(plain).whole
    assert not repair(plain).mended
    assert what(repair(plain, format="pt", dry_run=True)) == ["added format=pt to the metadata"]
    assert safeweights.open(plain).metadata is None
    repair(plain, format="pt")
    assert safeweights.open(plain).metadata == {"format": "pt"}
    assert not repair(model, format="np").mended
    safeweights.edit(second(shards), in_place=True, unset="format")
    assert what(repair(shards)) == ["added format=pt to the metadata"]
    assert safeweights.open(second(shards)).metadata["format"] == "pt"  # type: ignore[index]


@pytest.mark.parametrize("kind", ["missing", "unreadable", "total", "places"])
@pytest.mark.parametrize("below", ["", "unet/"])
def test_an_index_is_written_from_its_shards(
    shards: Path, tmp_path: Path, kind: str, below: str
) -> None:
    if below:
        (tmp_path / "pipeline").mkdir()
        shutil.move(shards, tmp_path / "pipeline" / "unet")
        shards = tmp_path / "pipeline" / "unet"
    index = shards / INDEX
    text = index.read_text()
    found = json.loads(text)
    if kind == "missing":
        index.unlink()
    elif kind == "unreadable":
        index.write_text(text[:50])
    elif kind == "total":
        found["metadata"]["total_size"] += 1
        index.write_text(json.dumps(found))
    else:
        name = next(iter(found["weight_map"]))
        found["weight_map"]["gone"] = found["weight_map"].pop(name)
        index.write_text(json.dumps(found))
    top = shards.parent if below else shards
    assert len(repair(top, dry_run=True).mended) == 1
    done = repair(top)
    assert done.whole
    assert "index" in what(done)[0]
    assert index.read_text() == text
    assert not repair(top).mended
    assert safeweights.check(top)["ok"]


def test_missing_and_stale_shards(shards: Path, model: Path) -> None:
    second(shards).rename(shards / "x")
    (download,) = repair(shards).downloads
    assert download.file == str(second(shards))
    assert download.first is None
    (shards / "x").rename(second(shards))
    for number in (1, 2):
        shutil.copy(model, shards / f"model-0000{number}-of-00002.safetensors")
    done = repair(shards)
    assert len(done.left) == 2
    assert all("older save" in reason for reason in done.left.values())
    (shards / INDEX).unlink()
    for number in (1, 2, 3):
        (shards / f"model-0000{number}-of-00003.safetensors").unlink()
    done = repair(shards)  # two shards with the same tensors
    assert "is in two shards" in next(iter(done.left.values()))
    assert not (shards / INDEX).exists()


def test_every_file_of_a_folder_is_mended(shards: Path) -> None:
    before = second(shards).read_bytes()
    second(shards).write_bytes(before + b"zzz")
    (shards / "model-00003-of-00003.safetensors").write_bytes(b"junk")
    (shards / ".hidden.safetensors").write_bytes(b"junk")
    done = repair(shards)
    assert len(done.mended) == 1
    assert list(done.left) == [str(shards / "model-00003-of-00003.safetensors")]
    assert second(shards).read_bytes() == before


def test_sources_that_are_no_local_files(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safeweights.editing import repairing
    from safeweights.storage import MemoryStore

    store = MemoryStore()
    data = second(shards).read_bytes()
    store.write("a.safetensors", [data + b"junk"])
    done = repairing.Repair("memory:")
    repairing._Job(store, done, None, durable=False).mend_files(["a.safetensors"])
    assert what(done) == ["cut off 4 bytes after the end of the data"]
    source = store.open("a.safetensors")
    assert source.read(0, source.size) == data


def test_variants_are_checkpoints_of_their_own(
    tmp_path: Path, model: Path, shards: Path, contents: Callable[[Any], Any]
) -> None:
    folder = tmp_path / "variants"
    folder.mkdir()
    shutil.copy(model, folder / "model.safetensors")
    safeweights.edit(model, folder / "model.fp16.safetensors", dtype="F32=F16")
    found = safeweights.check(folder)["results"][0]
    assert found["status"] == "ok", found
    assert "variants" in {each["rule"] for each in found["findings"]}
    for number, name in enumerate(sorted(os.listdir(shards))[:3], 1):
        assert name.startswith(f"model-0000{number}")
        shutil.copy(shards / name, folder / name.replace("model-", "model.bf16-"))
    assert safeweights.check(folder)["ok"]
    (folder / "model.bf16-00002-of-00003.safetensors").unlink()
    found = safeweights.check(folder)["results"][0]
    assert found["status"] == "bad"
    assert "missing-shard" in [each["rule"] for each in found["findings"]]
