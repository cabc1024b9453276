"""What a conversion replaces: the whole checkpoint of that name, or nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import safeweights
from safeweights.checkpoint import MemoryTensor
from safeweights.checkpoint.sharding import save_sharded
from safeweights.conversion import convert
from safeweights.errors import ChangedError, FormatError, SafetensorError, UnsupportedError
from safeweights.storage import LocalStore, sink

if TYPE_CHECKING:
    from safeweights.checkpoint import Tensor

INDEX = "model.safetensors.index.json"
RECORD = "model.safetensors.provenance.json"


def weights(folder: Path, name: str, value: float, count: int = 5) -> Path:
    path = folder / name
    np.savez(path, **{f"w{number}": np.full(10, value, "f4") for number in range(count)})
    return path


def values(target: Path) -> set[float]:
    opened = safeweights.checkpoint.open(target)
    return {float(value) for each in opened.values() for value in np.frombuffer(each.view(), "f4")}


def shards(count: int, stem: str = "model") -> list[str]:
    return [f"{stem}-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]


def listing(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder with a checkpoint of five shards, whose values are 1."""
    old = weights(tmp_path, "old.npz", 1)
    convert(old, tmp_path / "out" / "model.safetensors", max_shard_size=40)
    assert listing(tmp_path / "out") == [*shards(5), INDEX, RECORD]
    return tmp_path / "out"


@pytest.mark.parametrize(
    ("size", "expected"), [(None, ["model.safetensors"]), (40, [*shards(3), INDEX])]
)
def test_a_checkpoint_is_replaced_as_a_whole(
    tmp_path: Path, out: Path, size: int | None, expected: list[str]
) -> None:
    new = weights(tmp_path, "new.npz", 2, count=3)
    with pytest.raises(FileExistsError, match="--force"):
        convert(new, out / "model.safetensors", max_shard_size=size, record=False)
    assert values(out) == {1}
    report = convert(new, out / "model.safetensors", max_shard_size=size, force=True)
    assert values(out) == {2}
    assert listing(out) == sorted([*expected, RECORD])
    assert [Path(each.path).name for each in report.outputs] == expected


def test_what_is_left_of_an_earlier_checkpoint_is_refused_without_force(
    tmp_path: Path, out: Path
) -> None:
    new = weights(tmp_path, "new.npz", 2)
    for name in (RECORD, *shards(5)):  # only the index is left
        (out / name).unlink()
    for dry_run in (True, False):
        with pytest.raises(FileExistsError, match="belongs to an earlier checkpoint") as caught:
            convert(new, out / "model.safetensors", dry_run=dry_run)
        assert caught.value.filename == str(out / INDEX)
    assert listing(out) == [INDEX]


def test_a_conversion_that_fails_in_its_fourth_shard_changes_nothing(
    tmp_path: Path, out: Path
) -> None:
    arrays = {f"w{number}": np.full(10, 2, "f4") for number in range(5)}
    arrays["w3"][7] = 70000  # too large for F16
    np.savez(tmp_path / "new.npz", **arrays)
    before = {name: (out / name).read_bytes() for name in listing(out)}
    with pytest.raises(UnsupportedError, match="would be lost"):
        convert(
            tmp_path / "new.npz",
            out / "model.safetensors",
            max_shard_size=20,
            dtype="F16",
            force=True,
        )
    assert {name: (out / name).read_bytes() for name in listing(out)} == before


def test_a_full_disk_changes_nothing(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = weights(tmp_path, "new.npz", 2)
    before = {name: (out / name).read_bytes() for name in listing(out)}
    real = os.writev
    for allowed in range(7):  # five shards, the record, the index
        writes = iter(range(allowed))

        def writev(descriptor: int, batch: list[memoryview]) -> int:
            if next(writes, None) is None:
                raise OSError(28, "No space left on device")
            return real(descriptor, batch)

        with monkeypatch.context() as patch:
            patch.setattr(sink.os, "writev", writev)
            with pytest.raises(OSError, match="No space"):
                convert(new, out / "model.safetensors", max_shard_size=40, force=True)
        assert {name: (out / name).read_bytes() for name in listing(out)} == before


def test_a_reader_never_finds_half_of_two_conversions(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = weights(tmp_path, "new.npz", 2)
    seen: list[object] = []
    real = os.replace

    def replace(source: str, target: str) -> None:
        real(source, target)
        try:
            seen.append(values(out))
        except SafetensorError:
            seen.append("error")

    monkeypatch.setattr(os, "replace", replace)
    convert(new, out / "model.safetensors", max_shard_size=40, force=True)
    assert [each for each in seen if each not in ({1}, {2}, "error")] == []
    assert "error" in seen
    assert seen[-1] == {2}


def test_the_record_of_what_is_replaced_leaves_too(tmp_path: Path, out: Path) -> None:
    new = weights(tmp_path, "new.npz", 2)
    convert(new, out / "model.safetensors", record=False, force=True)
    assert listing(out) == ["model.safetensors"]


def test_other_checkpoints_and_files_stay(tmp_path: Path, out: Path) -> None:
    others = ["config.json", "model2-00001-of-00002.safetensors", "model.bin", "xmodel.safetensors"]
    for name in others:
        (out / name).write_bytes(b"")
    convert(weights(tmp_path, "new.npz", 2), out / "model.safetensors", force=True)
    assert listing(out) == sorted([*others, "model.safetensors", RECORD])


def test_one_shard_can_be_replaced_by_its_name(tmp_path: Path, out: Path) -> None:
    np.savez(tmp_path / "new.npz", w1=np.full(10, 2, "f4"))
    convert(tmp_path / "new.npz", out / shards(5)[1], force=True, record=False)
    assert listing(out) == [*shards(5), INDEX, RECORD]
    assert values(out) == {1, 2}


def test_missing_parents_are_made(tmp_path: Path) -> None:
    source = weights(tmp_path, "new.npz", 2)
    convert(source, tmp_path / "a" / "b" / "model.safetensors")
    convert(source, tmp_path / "c" / "d" / "model.safetensors", max_shard_size=40)
    convert([source, weights(tmp_path, "more.npz", 2)], tmp_path / "e" / "f")
    assert values(tmp_path / "a" / "b") == values(tmp_path / "c" / "d") == {2}
    assert listing(tmp_path / "e" / "f") == [
        "conversion.provenance.json", "more.safetensors", "new.safetensors",
    ]  # fmt: skip


def test_parents_made_for_a_conversion_that_fails_are_removed(tmp_path: Path) -> None:
    np.savez(tmp_path / "new.npz", w=np.full(10, 1e6, "f4"))
    with pytest.raises(UnsupportedError, match="would be lost"):
        convert(tmp_path / "new.npz", tmp_path / "a" / "b" / "model.safetensors", dtype="F16")
    assert listing(tmp_path) == ["new.npz"]


def test_a_file_among_the_parents_is_named(tmp_path: Path) -> None:
    source = weights(tmp_path, "new.npz", 2)
    with pytest.raises(NotADirectoryError) as caught:
        convert(source, source / "x" / "model.safetensors", max_shard_size=40)
    assert caught.value.filename == str(source)


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("linked", [True, False])
def test_a_conversion_replaces_no_single_shard_of_its_source(
    tmp_path: Path, indexed: bool, linked: bool
) -> None:
    model = tmp_path / "model"
    tensors = {name: MemoryTensor(name, "U8", (9,), bytes(9)) for name in "ab"}
    save_sharded(tensors, model, max_shard_size=9)
    if not indexed:
        (model / "model.safetensors.index.json").unlink()
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    target = model / "model-00001-of-00002.safetensors"
    if linked:
        (tmp_path / "link").symlink_to(model)
        target = tmp_path / "link" / target.name
    for dry_run in (True, False):
        with pytest.raises(UnsupportedError, match=r"other files? of it would stay"):
            convert(model, target, force=True, dry_run=dry_run)
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before
    convert(model, model / "model.safetensors", force=True)  # all of them go
    assert listing(model) == ["model.safetensors", RECORD]


def test_a_link_is_replaced_and_its_target_stays(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"old")
    (tmp_path / "model.safetensors").symlink_to("blob")
    source = weights(tmp_path, "new.npz", 2)
    with pytest.raises(FileExistsError):
        convert(source, tmp_path / "model.safetensors")
    convert(source, tmp_path / "model.safetensors", force=True)
    assert (tmp_path / "blob").read_bytes() == b"old"
    assert values(tmp_path / "model.safetensors") == {2}


def test_a_file_that_appears_meanwhile_is_not_replaced_without_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = weights(tmp_path, "new.npz", 2)
    target = tmp_path / "out" / shards(5)[2]
    real = LocalStore.kind

    def kind(store: LocalStore, name: str) -> object:
        if name == INDEX:
            target.write_bytes(b"theirs")
        return real(store, name)

    (tmp_path / "out").mkdir()
    monkeypatch.setattr(LocalStore, "kind", kind)
    with pytest.raises(FileExistsError) as caught:
        convert(source, tmp_path / "out" / "model.safetensors", max_shard_size=40)
    assert caught.value.filename == str(target)
    assert target.read_bytes() == b"theirs"
    assert listing(tmp_path / "out") == [target.name]


# ---- several sources


def test_the_index_lists_the_outputs_of_all_sources(tmp_path: Path) -> None:
    """Also of a source that was too small to be split."""
    np.savez(tmp_path / "small.npz", s=np.full(2, 2, "f4"))
    sources = [weights(tmp_path, "large.npz", 2), tmp_path / "small.npz"]
    convert(sources, tmp_path / "out", max_shard_size=40, record=False)
    assert listing(tmp_path / "out") == [*shards(5, "large"), INDEX, "small.safetensors"]
    assert safeweights.checkpoint.open(tmp_path / "out").keys() == {
        "s",
        *(f"w{n}" for n in range(5)),
    }
    np.savez(tmp_path / "small.npz", w0=np.full(2, 2, "f4"))
    with pytest.raises(FormatError, match="in two sources") as caught:
        convert(sources, tmp_path / "again", max_shard_size=40)
    assert caught.value.path == str(tmp_path / "small.npz")
    assert not (tmp_path / "again").exists()


def test_the_index_of_an_earlier_conversion_of_several_sources_leaves(tmp_path: Path) -> None:
    sources = [weights(tmp_path, "a.npz", 1), tmp_path / "b.npz"]
    np.savez(sources[1], b=np.full(2, 1, "f4"))
    convert(sources, tmp_path / "out", max_shard_size=40)
    weights(tmp_path, "a.npz", 2)
    np.savez(sources[1], b=np.full(2, 2, "f4"))
    with pytest.raises(FileExistsError):
        convert(sources, tmp_path / "out", record=False)
    convert(sources, tmp_path / "out", force=True)
    assert values(tmp_path / "out") == {2}
    assert listing(tmp_path / "out") == [
        "a.safetensors", "b.safetensors", "conversion.provenance.json",
    ]  # fmt: skip


def test_another_model_in_the_folder_stays(tmp_path: Path, out: Path) -> None:
    sources = [weights(tmp_path, "vae.npz", 3), weights(tmp_path, "text.npz", 3)]
    before = listing(out)
    convert(sources, out, record=False)
    assert listing(out) == sorted([*before, "text.safetensors", "vae.safetensors"])
    assert values(out) == {1}


# ---- a folder with an index


def indexed(folder: Path, count: int, value: float, metadata: dict[str, str] | None = None) -> Path:
    """A folder of shards with two tensors each."""
    tensors: dict[str, Tensor] = {
        f"w{number}": MemoryTensor(f"w{number}", "F32", (10,), np.full(10, value, "f4").tobytes())
        for number in range(2 * count)
    }
    save_sharded(tensors, folder, max_shard_size=80, metadata=metadata)
    return folder / INDEX


@pytest.mark.parametrize(
    ("size", "names"),
    [(40, shards(6)), (120, shards(2)), ("1GB", ["model.safetensors"]), (None, shards(3))],
)
def test_shards_are_split_anew(tmp_path: Path, size: int | str | None, names: list[str]) -> None:
    index = indexed(tmp_path / "old", 3, 1, {"format": "pt"})
    convert(index, tmp_path / "new", max_shard_size=size, record=False)
    assert listing(tmp_path / "new") == sorted([*names, *([INDEX] if len(names) > 1 else [])])
    opened = safeweights.checkpoint.open(tmp_path / "new")
    assert [*opened] == [f"w{number}" for number in range(6)]
    assert opened.metadata == {"format": "pt"}


def test_shards_are_split_anew_in_place(tmp_path: Path) -> None:
    index = indexed(tmp_path / "model", 3, 1)
    convert(index, tmp_path / "model", max_shard_size=120, force=True, record=False)
    assert listing(tmp_path / "model") == [*shards(2), INDEX]
    assert len(safeweights.checkpoint.open(tmp_path / "model")) == 6


def test_metadata_that_differs_between_shards_needs_a_choice(tmp_path: Path) -> None:
    index = indexed(tmp_path / "old", 2, 1)
    for number, name in enumerate(shards(2)):
        opened = safeweights.checkpoint.open(tmp_path / "old" / name, backend="pread")
        safeweights.checkpoint.save(opened, tmp_path / "old" / name, {"part": str(number)})
    convert(index, tmp_path / "same")  # as many shards: each keeps its own
    with pytest.raises(FormatError, match="`part` differs between shards") as caught:
        convert(index, tmp_path / "new", max_shard_size=40)
    assert caught.value.path == str(tmp_path / "old" / shards(2)[1])
    convert(index, tmp_path / "new", max_shard_size=40, metadata={"part": "all"})
    assert safeweights.checkpoint.open(tmp_path / "new").metadata == {"part": "all"}


def test_tensors_that_get_one_name_in_two_shards_are_refused(tmp_path: Path) -> None:
    index = indexed(tmp_path / "old", 2, 1)
    for size in (None, 40):
        with pytest.raises(FormatError, match="in two sources"):
            convert(
                index, tmp_path / "new", rename=["w[13]=x"], only=["w1", "w3"], max_shard_size=size
            )
    assert not (tmp_path / "new").exists()


def test_a_folder_that_is_replaced_while_it_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = indexed(tmp_path / "old", 3, 1)
    real = LocalStore.open
    opened: list[str] = []

    def opens(store: LocalStore, name: str, **how: Any) -> Any:
        opened.append(name)
        if opened == [INDEX, *shards(3)[:2]]:
            indexed(tmp_path / "old", 3, 2)
        return real(store, name, **how)

    monkeypatch.setattr(LocalStore, "open", opens)
    with pytest.raises(ChangedError, match="replaced while it was being opened"):
        convert(index, tmp_path / "new")
    assert not (tmp_path / "new").exists()
