"""Paths and URLs as places; checkpoints in stores that are asked over a network."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import pytest

import safeweights.numpy
from safeweights.checkpoint import open as open_checkpoint
from safeweights.errors import ChangedError, FormatError, UnsupportedError
from safeweights.storage import LocalStore, MemoryStore, is_url, place_of
from safeweights.storage.places import (
    absolute,
    exists,
    folder_of,
    is_folder,
    join,
    parent,
    shown,
)
from safeweights.storage.urls import Url

if TYPE_CHECKING:
    from pathlib import Path


class RemoteMemory(MemoryStore):
    """Files in memory that are asked for as if over a network."""

    is_remote = True


def shards(store: MemoryStore, *, index: bool) -> None:
    weight_map = {}
    for number in (1, 2, 3):
        name = f"model-{number:05}-of-00003.safetensors"
        store.write(name, [safeweights.numpy.save({f"t{number}": np.full(3, number, "f4")})])
        weight_map[f"t{number}"] = name
    if index:
        text = "{" + '"weight_map": ' + repr(weight_map).replace("'", '"') + "}"
        store.write("model.safetensors.index.json", [text.encode()])


@pytest.mark.parametrize("index", [True, False])
def test_shards_of_a_remote_store_are_opened_together(index: bool) -> None:
    store = RemoteMemory()
    shards(store, index=index)
    opened = open_checkpoint(store)
    assert [opened[f"t{i}"].numpy()[0] for i in (1, 2, 3)] == [1, 2, 3]


@pytest.mark.parametrize(("index", "kind"), [(True, FormatError), (False, FileNotFoundError)])
def test_a_shard_that_is_gone_when_it_is_opened(index: bool, kind: type[Exception]) -> None:
    class Leaving(RemoteMemory):
        def open(self, name: str, **given: object) -> object:  # type: ignore[override]
            if name.startswith("model-00002") and name in self._files:
                self.delete(name)
            return super().open(name, **given)  # type: ignore[arg-type]

    store = Leaving()
    shards(store, index=index)
    with pytest.raises(kind):
        open_checkpoint(store)


def test_a_file_of_a_remote_store_that_is_replaced_meanwhile() -> None:
    class Changing(RemoteMemory):
        def open(self, name: str, *, version: str | None = None, **given: object) -> object:  # type: ignore[override]
            found = super().open(name, version=version)
            if version is None and name.startswith("model-00001"):
                self.write(name, [safeweights.numpy.save({"t1": np.zeros(3, "f4")})])
            return found

    store = Changing()
    shards(store, index=False)
    with pytest.raises(ChangedError, match="while it was being opened"):
        open_checkpoint(store)


def test_paths_are_local(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    place = place_of(tmp_path / "a.json")
    assert isinstance(place.store, LocalStore)
    assert (place.name, place.kind()) == ("a.json", "index")
    assert place_of(tmp_path).kind() == "folder"
    assert place_of(str(tmp_path / "x")).kind() == "file"
    assert place_of(tmp_path).folder().location == str(tmp_path)
    assert folder_of(str(tmp_path)).kind("a.json") == "file"
    assert exists(str(tmp_path))
    assert not exists(str(tmp_path / "x"))
    assert is_folder(str(tmp_path))
    assert join("a", "b") == os.path.join("a", "b")
    assert parent("a/b") == "a"
    assert absolute("a") == os.path.abspath("a")


@pytest.mark.parametrize(
    "target", [b"s3://bucket/a", 3, None, "s3:/bucket", "C:\\model", "", "://x"]
)
def test_what_is_no_url(target: object) -> None:
    assert not is_url(target)


def test_names_of_urls() -> None:
    assert join("s3://b/m/", "a", "b") == "s3://b/m/a/b"
    assert parent("s3://b/m/a") == "s3://b/m"
    assert parent("s3://b/m/") == parent("s3://b/m") == parent("s3://b") == "s3://b"
    assert absolute("s3://b/m/") == "s3://b/m"
    assert absolute("https://h/m/?q=1") == "https://h/m/?q=1"  # else it would be a file
    assert absolute("HTTPS://h/m") == "HTTPS://h/m"
    assert shown("https://me:secret@h/a?b#c") == "https://h/a"
    assert repr(Url.parse("https://h/a?secret")) == "Url(https://h/a)"
    with pytest.raises(UnsupportedError, match="does not begin with a scheme"):
        Url.parse("model.safetensors")


@pytest.mark.parametrize(
    ("url", "spelling"),
    [
        ("HTTPS://H.org.:443/%61/", "https://h.org/a"),
        ("http://h:0443/a?secret", "http://h:443/a"),
        ("http://[::1]/a", "http://[::1]/a"),
        ("http://[::A]:80/a", "http://[::a]/a"),
        ("https://h", "https://h"),
        ("hf://Org/M@main/a", "hf://Org/M@main/a"),
    ],
)
def test_a_url_has_one_spelling(url: str, spelling: str) -> None:
    assert Url.parse(url).spelling() == spelling
