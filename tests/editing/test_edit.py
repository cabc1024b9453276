"""Edits: what comes out, and what is refused before anything is written."""

from __future__ import annotations

import hashlib
import json
import os
import tracemalloc
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import safeweights
import safeweights.numpy
from safeweights.checkpoint import Checkpoint
from safeweights.editing import Edits, edit
from safeweights.errors import (
    ChangedError,
    FormatError,
    SafetensorError,
    TensorNotFoundError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

EMBED, HEAD = "module.embed.weight", "module.head.weight"


def names(path: Any) -> set[str]:
    return set(safeweights.open(path))


def metadata(path: Any) -> dict[str, str] | None:
    return safeweights.open(path).metadata


def listing(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


# ---- names


def test_nothing_to_do_gives_the_same_bytes(model: Path, tmp_path: Path) -> None:
    plan = edit(model, tmp_path / "out.safetensors")
    assert (tmp_path / "out.safetensors").read_bytes() == model.read_bytes()
    (output,) = plan.outputs
    assert output.moved == plan.nbytes, "data was read that could be moved"


def test_names_are_changed_in_one_order(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    plan = edit(
        model,
        out,
        drop="module.step",
        map="data-parallel",
        rename={"embed.weight": "tok.weight"},
        rename_re={r"^layers\.(\d+)\.": r"h.\1."},
        strip_prefix="h.",
        add_prefix="net.",
    )
    assert names(out) == {
        "net.tok.weight", "net.0.weight", "net.2.weight", "net.10.weight", "net.empty",
    }  # fmt: skip
    assert metadata(out) == {"format": "pt", "net.head.weight": "net.tok.weight"}
    assert plan.dropped == ["module.step"]
    assert plan.renamed[EMBED] == "net.tok.weight"
    assert plan.renamed[HEAD] == "net.head.weight"
    assert plan.ties == {"net.head.weight": "net.tok.weight"}


def test_keep(model: Path, tmp_path: Path, contents: Callable[[Any], Any]) -> None:
    edit(model, tmp_path / "out.safetensors", keep=["*.layers.*"])
    expected = {name: each for name, each in contents(model).items() if ".layers." in name}
    assert contents(tmp_path / "out.safetensors") == expected
    assert metadata(tmp_path / "out.safetensors") == {"format": "pt"}


def test_the_file_is_the_reference_writers(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    edit(model, out, strip_prefix="module.", drop=HEAD, unset="format", metadata={"a": "b"})
    arrays = {
        name.removeprefix("module."): value
        for name, value in safeweights.numpy.load_file(model).items()
    }
    assert out.read_bytes() == safeweights.numpy.save(arrays, {"a": "b"})


@pytest.mark.parametrize(
    ("edits", "kind", "message"),
    [
        ({"rename": {"module.stop": "x"}}, TensorNotFoundError, "`module.step`"),
        ({"drop": "module.layrs.*"}, UnsupportedError, "similar names: `module.layers"),
        ({"keep": "embed"}, UnsupportedError, "keep: `embed` matches no tensor; similar"),
        ({"untie": EMBED}, UnsupportedError, "untie"),
        ({"strip_prefix": "modul."}, UnsupportedError, "strip-prefix: `modul.`"),
        ({"rename_re": {"^x": ""}}, UnsupportedError, "rename-re: `^x` matches no tensor"),
        ({"rename_re": {"(": ""}}, UnsupportedError, "regular expression"),
        ({"rename_re": {"a": r"\1"}}, UnsupportedError, "regular expression"),
        ({"map": "torch-compile"}, UnsupportedError, "map: `torch-compile`"),
        ({"map": "torch_compile"}, UnsupportedError, "there is `torch-compile`"),
        ({"unset": "fromat"}, UnsupportedError, "similar keys: `format`"),
        ({"rename": {EMBED: "module.step"}}, FormatError, "would both be called"),
        ({"rename": {EMBED: HEAD}}, FormatError, "would both be called"),
        ({"rename_re": {r"layers\.\d+": "layer"}}, FormatError, "would both be called"),
        ({"rename": {"module.step": ""}}, FormatError, "nothing would be left of the name"),
        ({"rename_re": {r"^module\.step$": ""}}, FormatError, "left of the name `module.step`"),
        ({"strip_prefix": ("module.", "step")}, FormatError, "left of the name `module.step`"),
        ({"drop": EMBED}, FormatError, "is tied to `module.embed.weight`"),
        ({"drop": "*"}, FormatError, "no tensor would be left"),
        ({"metadata": {HEAD: "x"}}, FormatError, "key of the metadata"),
        ({"metadata": {str(n): "" for n in range(1_000_001)}}, FormatError, "at most"),
        ({"metadata": {"a": "x" * 100_000_001}}, FormatError, "header too large"),
        ({"metadata": {"a": "\ud800"}}, FormatError, "surrogate"),
        ({"rename": {"module.step": "__metadata__"}}, FormatError, "__metadata__"),
        ({"metadata": {"a": "b"}, "unset": "a"}, UnsupportedError, "both set and removed"),
        ({"split": "5GB", "merge": True}, UnsupportedError, "exclude"),
        ({"split": "x"}, UnsupportedError, "no size"),
        ({"align": 24}, UnsupportedError, "power of two"),
        ({"dtype": "I8"}, UnsupportedError, "lose"),
        ({"dtype": "F8_E4M3"}, UnsupportedError, "would be lost"),
        ({"tie": {"module.layers.0.weight": "module.layers.2.weight"}}, UnsupportedError, "tie"),
        ({"tie": {"module.layers.0.weight": EMBED}}, UnsupportedError, "not the same"),
        ({"tie": {EMBED: EMBED}}, UnsupportedError, "not the same"),
        ({"add": "missing.safetensors"}, FileNotFoundError, "missing"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("in_place", [False, True])
def test_refused_before_a_byte_is_written(
    model: Path, in_place: bool, edits: dict[str, Any], kind: type[Exception], message: str
) -> None:
    before = model.read_bytes()
    target = None if in_place else model.parent / "out.safetensors"
    for dry_run in (True, False):
        if dry_run and edits.get("dtype") == "F8_E4M3":
            continue  # only the values tell
        with pytest.raises(kind, match=r"(?s).*") as caught:
            edit(model, target, in_place=in_place, dry_run=dry_run, **edits)
        assert message in str(caught.value)
    assert listing(model.parent) == ["model.safetensors"]
    assert model.read_bytes() == before


def test_a_target_or_in_place(model: Path) -> None:
    for target, in_place in ((None, False), (model, True)):
        with pytest.raises(UnsupportedError, match="not both"):
            edit(model, target, in_place=in_place)


def test_dry_run_writes_nothing(model: Path, tmp_path: Path) -> None:
    before = model.read_bytes()
    plan = edit(model, tmp_path / "new" / "out.safetensors", dry_run=True, drop="module.step")
    assert plan.dry_run
    assert plan.outputs[0].nbytes < len(before)
    assert edit(model, in_place=True, dry_run=True, drop="module.step").in_place
    assert listing(tmp_path) == ["model.safetensors"]
    assert model.read_bytes() == before


def test_the_plan_says_the_size_that_the_file_gets(model: Path, tmp_path: Path) -> None:
    plan = edit(model, tmp_path / "o.safetensors", dtype="F64", add_prefix="abc.", align=512)
    assert plan.outputs[0].nbytes == os.path.getsize(tmp_path / "o.safetensors")


# ---- ties


def test_untie(model: Path, tmp_path: Path, contents: Callable[[Any], Any]) -> None:
    out = tmp_path / "out.safetensors"
    plan = edit(model, out, untie="*head*", drop=EMBED)
    assert contents(out)[HEAD] == contents(model)[EMBED]
    assert metadata(out) == {"format": "pt"}
    assert plan.untied == [HEAD]


def test_tie_again_gives_the_same_file(model: Path, tmp_path: Path) -> None:
    edit(model, tmp_path / "two.safetensors", untie=HEAD)
    edit(tmp_path / "two.safetensors", tmp_path / "one.safetensors", tie={HEAD: EMBED})
    assert (tmp_path / "one.safetensors").read_bytes() == model.read_bytes()


def test_a_tie_to_what_is_tied_moves_on(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    ones = np.ones(3, "f4")
    safeweights.numpy.save_file({"a": ones, "b": ones}, path, {"c": "a"})
    edit(path, in_place=True, tie={"a": "b"})
    assert metadata(path) == {"c": "b", "a": "b"}
    assert names(path) == {"b"}


def test_ties_of_a_pickle_become_ties(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    weight = torch.arange(6.0)
    torch.save({"head": weight, "embed": weight, "x": torch.ones(2)}, tmp_path / "a.bin")
    plan = edit(tmp_path / "a.bin", tmp_path / "a.safetensors", add_prefix="m.")
    assert plan.ties == {"m.embed": "m.head"}
    assert metadata(tmp_path / "a.safetensors") == {"m.embed": "m.head"}
    assert names(tmp_path / "a.safetensors") == {"m.head", "m.x"}


# ---- adding


def test_add(model: Path, tmp_path: Path, contents: Callable[[Any], Any]) -> None:
    other, out = tmp_path / "other.npz", tmp_path / "out.safetensors"
    np.savez(other, x=np.ones(3, "f4"), y=np.zeros(2, "f4"))
    plan = edit(model, out, add=[f"{other}:x"], strip_prefix="module.")
    assert plan.added == {"x": str(other)}
    assert contents(out)["x"] == ("F32", (3,), np.ones(3, "f4").tobytes())
    assert "y" not in contents(out)
    edit(model, out, add=[(str(other), "*")], force=True)
    assert {"x", "y", EMBED} <= names(out)


def test_added_ties_come_along(model: Path, tmp_path: Path) -> None:
    other, out = tmp_path / "other.safetensors", tmp_path / "out.safetensors"
    safeweights.numpy.save_file({"x": np.ones(3, "f4")}, other, {"y": "x", "z": "x"})
    edit(model, out, add=other)
    assert metadata(out) == {"format": "pt", HEAD: EMBED, "y": "x", "z": "x"}
    edit(model, out, add=[(str(other), "[xy]")], force=True)
    assert metadata(out) == {"format": "pt", HEAD: EMBED, "y": "x"}


@pytest.mark.parametrize("pattern", ["q*", "ex"])
def test_adding_what_is_not_there(model: Path, tmp_path: Path, pattern: str) -> None:
    other = tmp_path / "other.npz"
    np.savez(other, x=np.ones(3, "f4"))
    with pytest.raises(UnsupportedError, match=r"add: .* matches no tensor"):
        edit(model, tmp_path / "out.safetensors", add=f"{other}:{pattern}")


@pytest.mark.parametrize("name", [EMBED, HEAD])
def test_adding_a_name_that_is_there(model: Path, tmp_path: Path, name: str) -> None:
    other = tmp_path / "other.npz"
    np.savez(other, **{name: np.ones(3, "f4")})
    with pytest.raises(FormatError, match="already"):
        edit(model, tmp_path / "out.safetensors", add=other)


# ---- types


def test_cast(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    plan = edit(model, out, dtype="F32=F64,I64=I8")
    loaded = safeweights.numpy.load_file(out)
    assert loaded[EMBED].dtype == np.float64
    assert loaded["module.step"].dtype == np.int8
    assert plan.cast[EMBED] == ("F32", "F64")
    assert "module.layers.0.weight" not in plan.cast
    assert np.array_equal(loaded[EMBED], safeweights.numpy.load_file(model)[EMBED])


def test_types_that_only_a_cast_makes_readable(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", z=np.array([1 + 2j]), w=np.ones(2, "f8"))
    with pytest.raises(UnsupportedError, match=r"`z`.*--drop"):
        edit(tmp_path / "a.npz", tmp_path / "a.safetensors")
    edit(tmp_path / "a.npz", tmp_path / "a.safetensors", dtype="C128=C64")
    assert safeweights.open(tmp_path / "a.safetensors")["z"].dtype == "C64"
    edit(tmp_path / "a.npz", tmp_path / "b.safetensors", drop="z")
    assert names(tmp_path / "b.safetensors") == {"w"}


# ---- files


def test_split_and_merge_back(
    model: Path, shards: Path, tmp_path: Path, contents: Callable[[Any], Any]
) -> None:
    assert len(listing(shards)) == 4
    assert contents(shards) == contents(model)
    index = json.loads((shards / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(
        map(len, (c[2] for c in contents(model).values()))
    )
    assert metadata(shards) == {"format": "pt", HEAD: EMBED}
    for target in ("back.safetensors", "folder/x.safetensors"):
        edit(shards, tmp_path / target)
        assert (tmp_path / target).read_bytes() == model.read_bytes()
    edit(shards / "model.safetensors.index.json", tmp_path / "one/", merge=True)
    assert (tmp_path / "one" / "model.safetensors").read_bytes() == model.read_bytes()


def test_several_files_go_into_a_folder_that_is_made(
    model: Path, shards: Path, tmp_path: Path
) -> None:
    size = sum(path.stat().st_size for path in shards.glob("*.safetensors")) // 4
    edit(model, tmp_path / "folder", split=size)
    edit(model, tmp_path / "with/slash/", split=size)
    assert listing(tmp_path / "folder") == listing(tmp_path / "with/slash")
    assert len(listing(tmp_path / "folder")) > 2
    edit(model, tmp_path / "named.safetensors", split=size)
    assert {each.name.split("-")[0] for each in tmp_path.glob("named-*")} == {"named"}


def test_shards_stay_shards(shards: Path, tmp_path: Path, contents: Callable[[Any], Any]) -> None:
    edit(shards, tmp_path / "same")
    assert {path.name: path.read_bytes() for path in shards.iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "same").iterdir()
    }
    edit(shards, tmp_path / "renamed", strip_prefix="module.", dtype="F16=F32")
    assert listing(tmp_path / "renamed") == listing(shards)
    assert {name: len(each[2]) for name, each in contents(tmp_path / "renamed").items()} == {
        name.removeprefix("module."): len(each[2]) * (2 if each[0] == "F16" else 1)
        for name, each in contents(shards).items()
    }


def test_shards_that_become_empty_leave_no_gap(
    shards: Path, tmp_path: Path, contents: Callable[[Any], Any]
) -> None:
    first = {*safeweights.open(shards / "model-00002-of-00003.safetensors"), HEAD}
    expected = {name: each for name, each in contents(shards).items() if name not in first}
    for target, in_place in ((tmp_path / "out", False), (None, True)):
        edit(shards, target, in_place=in_place, drop=first)
        folder = target or shards
        assert contents(folder) == expected
        assert listing(folder) == [
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
        ]


def test_metadata_of_each_shard_stays_with_it(tmp_path: Path) -> None:
    for number in (1, 2):
        name = f"m-0000{number}-of-00002.safetensors"
        arrays = {f"t{number}": np.ones(number, "f4")}
        safeweights.numpy.save_file(arrays, tmp_path / name, {"part": str(number), "all": "x"})
    edit(tmp_path, in_place=True, metadata={"all": "y"})
    found = [metadata(tmp_path / f"m-0000{n}-of-00002.safetensors") for n in (1, 2)]
    assert found == [{"part": "1", "all": "y"}, {"part": "2", "all": "y"}]
    with pytest.raises(FormatError, match="`part` differs between the files"):
        edit(tmp_path, tmp_path / "one.safetensors")
    edit(tmp_path, tmp_path / "one.safetensors", unset="part")
    assert metadata(tmp_path / "one.safetensors") == {"all": "y"}


def test_an_index_of_one_shard_follows_its_names(tmp_path: Path, model: Path) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    model.rename(folder / "only-00001-of-00001.safetensors")
    weight_map = dict.fromkeys(names(folder), "only-00001-of-00001.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "only.safetensors.index.json").write_text(json.dumps(index))
    edit(folder, in_place=True, strip_prefix="module.")
    assert "step" in names(folder)
    edit(folder, in_place=True, strip_prefix="s", rename={"embed.weight": "e.weight"})
    assert "tep" in names(folder)


def test_sort_by_number(model: Path, tmp_path: Path, contents: Callable[[Any], Any]) -> None:
    edit(model, tmp_path / "sorted.safetensors", sort=True)
    order = list(safeweights.open(tmp_path / "sorted.safetensors"))
    assert order == [
        EMBED, "module.empty", "module.layers.0.weight", "module.layers.2.weight",
        "module.layers.10.weight", "module.step",
    ]  # fmt: skip
    assert contents(tmp_path / "sorted.safetensors") == contents(model)


@pytest.mark.parametrize("align", [64, 4096])
def test_align(model: Path, tmp_path: Path, align: int, contents: Callable[[Any], Any]) -> None:
    edit(model, tmp_path / "a.safetensors", align=align)
    (file,) = safeweights.open(tmp_path / "a.safetensors").files
    assert file.header.data_start % align == 0
    assert contents(tmp_path / "a.safetensors") == contents(model)


def test_existing_files_are_replaced_only_if_asked(model: Path, shards: Path) -> None:
    with pytest.raises(FileExistsError):
        edit(model, shards / "model-00001-of-00003.safetensors")
    with pytest.raises(FileExistsError):
        edit(model, f"{shards}/")
    with pytest.raises(FileExistsError):
        edit(model, f"{shards}/", split=1000)
    plan = edit(model, f"{shards}/", split=100_000, force=True)
    assert listing(shards) == ["model.safetensors"]
    assert len(plan.removed) == 4
    assert (shards / "model.safetensors").read_bytes() == model.read_bytes()
    (shards / "file").write_bytes(b"")
    with pytest.raises(NotADirectoryError):
        edit(model, f"{shards}/file/")


def test_a_single_source_goes_to_any_name(model: Path, tmp_path: Path) -> None:
    edit(model, tmp_path / "weights.bin")
    assert (tmp_path / "weights.bin").read_bytes() == model.read_bytes()
    (tmp_path / "folder").mkdir()
    edit(model, tmp_path / "folder")
    assert listing(tmp_path / "folder") == ["model.safetensors"]


def test_folders_of_other_formats(tmp_path: Path) -> None:
    folder = tmp_path / "npz"
    folder.mkdir()
    for name in "ab":
        np.savez(folder / f"{name}.npz", **{name: np.ones(3, "f4")})
    edit(folder, tmp_path / "out.safetensors")
    assert names(tmp_path / "out.safetensors") == {"a", "b"}
    with pytest.raises(UnsupportedError, match="only safetensors"):
        edit(folder, in_place=True)


# ---- digests of the data


def hashes(path: Path) -> str:
    data = path.read_bytes()
    return hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()


@pytest.fixture
def hashed(model: Path) -> Path:
    keys = {"modelspec.hash_sha256": f"0x{hashes(model)}", "sshs_model_hash": hashes(model)}
    edit(model, in_place=True, metadata={**keys, "sshs_legacy_hash": "1234abcd"})
    return model


@pytest.mark.parametrize("in_place", [False, True])
def test_a_digest_of_the_data_stays_true(hashed: Path, tmp_path: Path, in_place: bool) -> None:
    before = metadata(hashed)
    edit(hashed, in_place=True, rename={"module.step": "module.stop"})
    assert (metadata(hashed) or {})["sshs_legacy_hash"] == "1234abcd", "the data did not change"
    target = None if in_place else tmp_path / "out.safetensors"
    plan = edit(hashed, target, in_place=in_place, drop="module.stop")
    found = metadata(target or hashed) or {}
    digest = hashes(target or hashed)
    assert (
        found["modelspec.hash_sha256"]
        == f"0x{digest}"
        == plan.metadata_set["modelspec.hash_sha256"]
    )
    assert found["sshs_model_hash"] == digest
    assert "sshs_legacy_hash" not in found
    assert "sshs_legacy_hash" in plan.metadata_removed
    assert before is not None
    assert before["sshs_model_hash"] != digest


def test_a_digest_of_one_file_is_left_out_of_several(hashed: Path, tmp_path: Path) -> None:
    plan = edit(hashed, f"{tmp_path}/split/", split=200)
    assert metadata(tmp_path / "split") == {"format": "pt", HEAD: EMBED}
    assert len(plan.metadata_removed) == 3
    edit(hashed, tmp_path / "mine.safetensors", drop="*.step", metadata={"sshs_model_hash": "mine"})
    assert (metadata(tmp_path / "mine.safetensors") or {})["sshs_model_hash"] == "mine"


# ---- and


def test_progress(model: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    edit(model, tmp_path / "o", split=200, progress=lambda *each: seen.append(each))
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "big.safetensors"
    size = 50_000_000
    with path.open("wb") as file:
        head = safeweights.numpy.save({"a": np.zeros(0, "u1")})
        text = head[8:].replace(b"[0]", b"[%d]" % size).replace(b"[0,0]", b"[0,%d]" % size).rstrip()
        text += b" " * (-len(text) % 8)
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + size)
    tracemalloc.start()
    edit(path, tmp_path / "out.safetensors", add_prefix="x.")
    edit(path, f"{tmp_path}/s/", split="10MB", add_prefix="x.")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4_000_000


def test_edits_are_data() -> None:
    assert Edits(drop="a", keep=["b", "c"]).drop == ("a",)
    assert Edits(drop="a") == Edits(drop=("a",))


def test_a_source_that_is_replaced_meanwhile(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safeweights.editing import outputs

    before = model.read_bytes()
    real = outputs.decided

    def decided(*given: Any, **more: Any) -> Any:
        model.unlink(missing_ok=True)
        model.write_bytes(before)
        return real(*given, **more)

    monkeypatch.setattr(outputs, "decided", decided)
    with pytest.raises(ChangedError):
        edit(model, in_place=True, drop="module.step")
    with pytest.raises(ChangedError):
        edit(model, in_place=True, rename={"module.step": "module.s"})
    assert model.read_bytes() == before
    monkeypatch.setattr(outputs, "decided", lambda *a, **m: (model.unlink(), real(*a, **m))[1])
    with pytest.raises((SafetensorError, OSError)):
        edit(model, in_place=True, drop="module.step")
    assert listing(model.parent) == []


def test_checkpoints_are_refused_by_name() -> None:
    with pytest.raises(TypeError):
        edit(Checkpoint({}), "x")  # type: ignore[arg-type]


def test_what_changes_of_the_metadata_is_told(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plan = edit(model, out, metadata={"author": "me"})
    assert plan.metadata_set == {"author": "me"}
    again = edit(out, tmp_path / "again", metadata={"author": "me"}, unset="format")
    assert (again.metadata_set, again.metadata_removed) == ({}, {"format": "as asked"})


@pytest.mark.parametrize("linked", [False, True])
def test_a_merge_replaces_no_single_shard_of_its_source(
    shards: Path, linked: bool, contents: Callable[[Any], Any]
) -> None:
    before = contents(shards)
    shard = min(shards.glob("*.safetensors"))
    target = shard
    if linked:
        (shards.parent / "link").symlink_to(shards)
        target = shards.parent / "link" / shard.name
    with pytest.raises(UnsupportedError, match=r"2 other files of it would stay"):
        safeweights.edit(shards, target, force=True)
    assert contents(shards) == before
    safeweights.edit(shards, shards / "model.safetensors", force=True)  # all of them go
    assert contents(shards / "model.safetensors") == before
    safeweights.edit(shards / "model.safetensors", shards / "model.safetensors", force=True)
    assert contents(shards / "model.safetensors") == before
