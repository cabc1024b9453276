"""One way to open anything: what a file is, its contents decide, and a folder is its files together."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import evil

import safeweights
from safeweights import conversion
from safeweights.checkpoint import Checkpoint, MemoryTensor, to_bytes
from safeweights.conversion.opening import FORMAT_HEAD, identify, read_source
from safeweights.errors import FormatError, UnsupportedError
from safeweights.reports.calls import loading_calls
from safeweights.storage import BytesSource, MemoryStore, Source

BACKENDS = ["mmap", "pread", "direct", "auto"]


def ours(**contents: bytes) -> bytes:
    return to_bytes({n: MemoryTensor(n, "U8", (len(d),), d) for n, d in contents.items()})


def npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def contents(opened: Checkpoint) -> dict[str, bytes]:
    return {name: bytes(tensor.view()) for name, tensor in opened.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards of different formats, and their index."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.npz").write_bytes(npz(a=np.arange(3.0)))
    torch.save({"b": torch.ones(2)}, folder / "b.bin")
    weight_map = {"a": "a.npz", "b": "b.bin"}
    (folder / "m.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


EXPECTED = {"a": np.arange(3.0).tobytes(), "b": np.ones(2, "f4").tobytes()}


def test_there_is_one_function() -> None:
    assert safeweights.open is conversion.open


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("target", ["", "m.bin.index.json"])
def test_shards_of_other_formats(folder: Path, target: str, backend: str) -> None:
    opened = safeweights.open(folder / target, backend=backend)
    assert contents(opened) == EXPECTED
    assert (opened.format, opened.name) == ("npz, torch-zip", str(folder / target))
    assert opened.files == ()
    (folder / "m.bin.index.json").unlink()
    assert contents(safeweights.open(str(folder), backend=backend)) == EXPECTED


def test_an_index_may_list_files_of_any_format(folder: Path) -> None:
    (folder / "c.safetensors").write_bytes(ours(c=b"xyz"))
    weight_map = {"a": "a.npz", "b": "b.bin", "c": "c.safetensors"}
    (folder / "all.json").write_text(json.dumps({"weight_map": weight_map}))
    opened = safeweights.open(folder / "all.json")
    assert contents(opened) == {**EXPECTED, "c": b"xyz"}
    assert opened.format == "npz, safetensors, torch-zip"
    assert contents(safeweights.open(folder)) == {"c": b"xyz"}  # safetensors come first


def test_a_folder_without_weights_says_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "optimizer.pt").write_bytes(b"not weights")
    with pytest.raises(FormatError, match="no index and no file of another format") as caught:
        safeweights.open(tmp_path)
    assert caught.value.rule == "folder"


def test_a_tensor_in_two_files_of_a_folder(folder: Path) -> None:
    (folder / "m.bin.index.json").unlink()
    (folder / "c.npz").write_bytes(npz(a=np.zeros(1)))
    with pytest.raises(FormatError, match="`a` is in two files") as caught:
        safeweights.open(folder)
    assert (caught.value.rule, caught.value.tensor) == ("duplicate-key", "a")


def test_a_missing_shard_of_another_format(folder: Path) -> None:
    (folder / "b.bin").unlink()
    with pytest.raises(FormatError, match=r"1 of 2 shards .* missing, the first is `b.bin`") as no:
        safeweights.open(folder)
    assert no.value.rule == "missing-shard"


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_a_store_is_opened_like_a_folder(suffix: str) -> None:
    store = MemoryStore("memory:/")
    weight_map = {"a": f"part/1{suffix}", "b": f"2{suffix}"}
    store.write(f"part/1{suffix}", [ours(a=b"1")])
    store.write(f"2{suffix}", [ours(b=b"2")])
    store.write(f"m{suffix}.index.json", [json.dumps({"weight_map": weight_map}).encode()])
    opened = safeweights.open(store)
    assert contents(opened) == {"a": b"1", "b": b"2"}
    assert [file.name for file in opened.files] == [f"memory:/2{suffix}", f"memory:/part/1{suffix}"]


def test_every_file_of_any_format_is_read_through_what_is_trusted(folder: Path) -> None:
    """The index too; and what a verifier gives is read, not what it was given."""
    other = npz(a=np.zeros(3))
    seen: list[str] = []

    def verify(source: Source, path: str) -> Source:
        seen.append(Path(path).name)
        return BytesSource(other, path) if path.endswith("a.npz") else source

    opened = safeweights.open(folder, trust=verify)
    assert seen == ["m.bin.index.json", "a.npz", "b.bin"]
    assert contents(opened)["a"] == bytes(24)
    for unnamed in (other, io.BytesIO(other), BytesSource(other, "a.npz")):
        with pytest.raises(UnsupportedError, match="opened by its path can be verified"):
            safeweights.open(unnamed, trust=verify)


# ---- what a file is


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (ours(a=b"x"), "safetensors"),
        (ours(a=b"x")[:-1], "safetensors"),  # damaged, and still what it was meant to be
        (ours(a=b"x")[:30], "safetensors"),
        ((40).to_bytes(8, "little") + b"x" * 41, "safetensors"),  # 40 is a MARK of old pickles
        (npz(a=np.ones(1)), "npz"),
        (pickle.dumps({"a": 1}), "pickle"),
        (gzip.compress(pickle.dumps([1]), mtime=0), "pickle"),  # begins like a length of 559,903
        (gzip.compress(b"hello", mtime=1 << 30), None),
        (b"\xff" * 100, None),
        (b"", None),
    ],
)
def test_what_a_file_is(data: bytes, expected: str | None) -> None:
    assert identify(BytesSource(data), data[:FORMAT_HEAD]) == expected


def test_conversion_takes_for_safetensors_only_what_can_be_one() -> None:
    for data in (ours(a=b"x")[:30], (40).to_bytes(8, "little") + b"x" * 41):
        assert identify(BytesSource(data), data, damaged=False) != "safetensors"
    assert identify(BytesSource(ours(a=b"x")), ours(a=b"x"), damaged=False) == "safetensors"


@pytest.mark.parametrize(
    ("data", "rule", "words"),
    [
        (b"\xff" * 100, "unknown-format", "no checkpoint of a known format"),
        (b"%PDF-1.7 " * 10, "unknown-format", "it looks like a PDF document"),
        (b"short", "header-too-small", "a text file|has 5 bytes"),
        (b"\xff" * 8 + b"{}", "header-too-large", "header too large"),
        (ours(a=b"x")[:-1], "coverage", "missing"),
        ((1000).to_bytes(8, "little") + b"{}", "header-length", "the file ends at byte 10"),
    ],
)
def test_errors_describe_what_a_file_was_meant_to_be(data: bytes, rule: str, words: str) -> None:
    with pytest.raises(FormatError, match=words) as caught:
        safeweights.open(data)
    assert caught.value.rule == rule


@pytest.mark.parametrize(
    "text",
    ["Invalid username or password.", "Not Found", "Internal Error - We are working on it\n",
     "Forbidden", "(401)\n" * 9, "Sorry, try later\n", "Language models\n" * 5000],
)  # fmt: skip
def test_a_text_is_not_a_pickle_for_its_first_letter(text: str) -> None:
    with pytest.raises(FormatError, match="a text file") as caught:
        safeweights.open(text.encode())
    assert caught.value.rule == "unknown-format"


@pytest.mark.parametrize(
    "text",
    [b"I1\n0cos\nsystem\n(S'id'\ntR no pickle any more", b"Verror message\n0cos\nsystem\n)R.",
     b"Not Found"[:1] + b"0cnot\nfound\n!", pickle.dumps(["text"] * 9, 0), pickle.dumps([1.5] * 30_000, 0)],
)  # fmt: skip
def test_a_pickle_made_of_letters_is_one(text: bytes) -> None:
    head = text[:FORMAT_HEAD]
    assert identify(BytesSource(text, "x"), head) == "pickle"


def test_a_format_that_is_named() -> None:
    with pytest.raises(UnsupportedError, match="no such format: `onnx`; there are safetensors, t"):
        safeweights.open(b"", format="onnx")
    with pytest.raises(FormatError, match="zip"):
        safeweights.open(ours(a=b"x"), format="npz")
    assert contents(safeweights.open(ours(a=b"x"), format="safetensors")) == {"a": b"x"}


def test_options_of_other_formats(folder: Path) -> None:
    opened = safeweights.open(folder, casts={"F64": "F32", "U8": "U16"})
    assert {name: tensor.dtype for name, tensor in opened.items()} == {"a": "F32", "b": "F32"}
    assert safeweights.open(ours(a=b"x"), casts={"U8": "U16"})["a"].dtype == "U16"
    with pytest.raises(FormatError, match="members"):
        safeweights.open(npz(a=1, b=2), limits=conversion.Limits(members=1))


# ---- what it costs


class Counted(BytesSource):
    """Counts what is read."""

    reads = 0

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self.reads += 1
        super().read_into(offset, buffer)


def test_the_beginning_of_a_file_is_read_once() -> None:
    small, large = Counted(ours(a=b"x")), Counted(ours(**{"n" * 2000: b"x"}))
    assert len(read_source(small)) == len(read_source(large)) == 1
    assert (small.reads, large.reads) == (1, 2)


def test_safetensors_import_no_reader_of_another_format(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(ours(a=b"x"))
    for target in (tmp_path / "a.safetensors", tmp_path):
        code = (
            f"import sys, safeweights; safeweights.open({str(target)!r})['a']; print(*sys.modules)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        imported = set(done.stdout.split())
        assert "safeweights.conversion.opening" in imported
        assert not imported & {"numpy", "dataclasses", "hashlib"}
        assert [name for name in imported if name.startswith("safeweights.conversion.")] == [
            "safeweights.conversion.opening"
        ]


# ---- what loading would run


def test_the_calls_of_several_files_are_found_together(folder: Path) -> None:
    assert loading_calls(safeweights.open(folder)) == []
    assert loading_calls(safeweights.open(ours(a=b"x"))) == []
    (folder / "m.bin.index.json").unlink()
    (folder / "z.bin").write_bytes(evil())
    assert loading_calls(safeweights.open(folder)) != []


def test_a_folder_of_models_of_any_format_names_its_folders(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    torch.save({"a": torch.ones(1)}, tmp_path / "unet" / "pytorch_model.bin")
    for function in (safeweights.open, lambda path: safeweights.convert(path, tmp_path / "new")):
        with pytest.raises(FormatError, match="there are weights in its folders `unet`: name one"):
            function(tmp_path)
