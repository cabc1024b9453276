"""Safetensors files with parts of tensors, and what single files and other folders are told."""

from __future__ import annotations

import gzip
import json
import lzma
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import tar
from folders import DCP, assert_equal, cut, rows, saved
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict_from_keys
from zero_folders import some_groups, write_zero

import safeweights
from safeweights import safe_open
from safeweights.checkpoint import Checkpoint
from safeweights.conversion import convert, scan
from safeweights.errors import FormatError
from safeweights.torch import save_file

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:FutureWarning")

A = torch.arange(35.0).reshape(7, 5)
B = torch.arange(24).reshape(4, 6)
WHOLE = {"a": A, "b": B, "only.one": torch.arange(3), "scalar": torch.tensor(2.5)}


def shards(folder: Path, ranks: int = 3) -> Path:
    """What HuggingFaceStorageWriter(save_distributed=True) leaves: a file a rank."""
    folder.mkdir()
    boxes = {"a": rows(A, ranks), "b": rows(B, ranks, axis=1)}
    for rank in range(ranks):
        here: dict[str, torch.Tensor] = {}
        noted = {}
        for name, divided in boxes.items():
            if rank < len(divided):
                here[name] = cut(WHOLE[name], divided[rank]).contiguous()
                noted[name] = {"saved_offsets": list(divided[rank][0])}
        if rank == 1:
            here |= {"only.one": WHOLE["only.one"], "scalar": WHOLE["scalar"]}
            noted |= {"only.one": {"saved_offsets": [0]}, "scalar": {"saved_offsets": []}}
        metadata = {"DCP_SHARDING_INFO": json.dumps(noted), "DCP_VERSION": "1.0", "format": "pt"}
        save_file(here, folder / f"shard-{rank + 1:05}-model-00001-of-00001.safetensors", metadata)
    return folder


def test_shards_of_safetensors(tmp_path: Path) -> None:
    folder = shards(tmp_path / "s")
    ours = safeweights.open(folder)
    assert ours.format == "torch-hf-shards"
    assert_equal(ours, WHOLE)
    (note,) = ours.others
    assert (note.name, note.value) == ("shards", 3)
    assert "a missing last one would not be noticed" in note.reason
    theirs = _load_state_dict_from_keys(storage_reader=HuggingFaceStorageReader(str(folder)))
    theirs["scalar"] = WHOLE["scalar"]  # of which torch 2.13 makes 0.0
    assert_equal(ours, theirs)
    convert(folder, f"{tmp_path}/new/", dtype="F32=BF16")
    assert_equal(
        safeweights.open(tmp_path / "new"),
        {n: t.bfloat16() if t.is_floating_point() else t for n, t in WHOLE.items()},
    )


def test_a_missing_middle_shard_is_named(tmp_path: Path) -> None:
    folder = shards(tmp_path / "s")
    (folder / "shard-00002-model-00001-of-00001.safetensors").unlink()
    with pytest.raises(FormatError, match=r"incomplete: .* there is no file of shard 2") as error:
        safeweights.open(folder)
    assert error.value.rule == "missing-shard"


@pytest.mark.parametrize(
    ("noted", "message"),
    [
        ('{"a": {"saved_offsets": [0, 0]}}', "overlap"),
        ('{"a": {"saved_offsets": [3]}}', "does not fit its shape"),
        ('{"a": {"saved_offsets": [-3, 0]}}', "do not say where"),
        ('{"a": {"saved_offsets": ["x", 0]}}', "do not say where"),
        ('{"a": [1]}', "do not say where"), ("[]", "do not say where"), ("{", "do not say where"),
        ('{"b": {"saved_offsets": [3, 0]}}', "do not say where"), ("[" * 100_000, "do not say where"),
    ],
)  # fmt: skip
def test_places_that_make_no_sense_are_refused(tmp_path: Path, noted: str, message: str) -> None:
    save_file({"a": A}, tmp_path / "shard-00001-model-00001-of-00001.safetensors")
    save_file(
        {"a": A},
        tmp_path / "shard-00002-model-00001-of-00001.safetensors",
        {"DCP_SHARDING_INFO": noted},
    )
    with pytest.raises(FormatError, match=message):
        safeweights.open(tmp_path)


def test_consolidated_files_come_first(tmp_path: Path) -> None:
    folder = shards(tmp_path / "s")
    save_file({"x": A}, folder / "model-00001-of-00001.safetensors")
    with pytest.raises(FormatError, match="is in two files"):  # two checkpoints in one folder
        safeweights.open(folder)


# ---- one file of many


def test_a_part_says_what_to_give_instead(tmp_path: Path) -> None:
    folder = DCP().add("a", A, rows(A, 2)).write(tmp_path / "c")
    for name, message in (
        ("__1_0.distcp", "this is what rank 1 wrote of a distributed checkpoint; give the folder"),
        (".metadata", "these are the tables of a distributed checkpoint; give the folder"),
    ):
        for read in (safeweights.open, lambda path: convert(path, tmp_path / "out.safetensors")):
            with pytest.raises(FormatError, match=message) as error:
                read(folder / name)
            assert error.value.rule == "part"
    zero = write_zero(tmp_path / "z", some_groups(), stage=3)
    for path in zero.iterdir():
        with pytest.raises(
            FormatError, match=r"rank \d wrote of a DeepSpeed ZeRO checkpoint; give the folder"
        ):
            safeweights.open(path)


def test_parts_without_their_tables_are_refused(tmp_path: Path) -> None:
    folder = DCP().add("a", A, rows(A, 2)).write(tmp_path / "c")
    (folder / ".metadata").unlink()
    with pytest.raises(FormatError, match=r"no `\.metadata`, which has their tables") as error:
        safeweights.open(folder)
    assert error.value.rule == "missing-shard"


def test_a_rank_of_megatron_is_read_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "iter_1" / "mp_rank_01"
    folder.mkdir(parents=True)
    torch.save({"model": {"w": A}, "iteration": 3}, folder / "model_optim_rng.pt")
    ours = safeweights.open(folder / "model_optim_rng.pt")
    assert_equal(ours, {"model.w": A})
    notes = [other.reason for other in ours.others if other.name == "(file)"]
    assert len(notes) == 1
    assert notes[0].startswith("the weights that Megatron gave to rank 1, as they are")
    done = convert(folder / "model_optim_rng.pt", tmp_path / "out.safetensors")
    assert [item.name for item in done.dropped] == ["iteration", "(file)"]


@pytest.mark.parametrize("name", ["manifest.ocdbt", "_CHECKPOINT_METADATA"])
def test_orbax_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(FormatError, match="a checkpoint of Orbax") as error:
        safeweights.open(tmp_path)
    assert error.value.rule == "orbax"


def test_a_nemo_archive_leads_to_what_is_in_it(tmp_path: Path, guard: Any) -> None:
    data = tar(
        [("./model_config.yaml", b"a: 1\n"), ("./model_weights.ckpt", saved({"w": A, "n": 1}))]
    )
    (tmp_path / "m.nemo").write_bytes(data)
    safeweights.open(tmp_path / "m.nemo")
    with guard.armed() as seen:
        ours = safeweights.open(tmp_path / "m.nemo")
    assert seen == []
    assert ours.format == "nemo"
    assert_equal(ours, {"w": A})
    for name, packed in (("z", gzip.compress(data)), ("x", lzma.compress(data))):
        path = tmp_path / f"{name}.nemo"
        path.write_bytes(packed)
        with guard.armed() as seen:
            ours = safeweights.open(path)
        assert seen == []
        assert ours.format == "nemo"
        assert_equal(ours, {"w": A})
        path.write_bytes(packed[:-9])
        with pytest.raises(FormatError):
            safeweights.open(path)
    (tmp_path / "z.tar").write_bytes(gzip.compress(data))  # no reader knows what is in it
    with pytest.raises(FormatError, match=r"a gzip stream.*: decompress it"):
        safeweights.open(tmp_path / "z.tar")
    new = tar([("model_config.yaml", b"a: 1\n"), ("model_weights/.metadata", b"x")])
    (tmp_path / "d.nemo").write_bytes(new)
    with pytest.raises(
        FormatError, match=r"but `model_config.yaml`, `model_weights/.metadata`; extract it"
    ):
        safeweights.open(tmp_path / "d.nemo")


# ---- check and scan


def test_check_and_scan_read_every_item(tmp_path: Path) -> None:
    folder = DCP().add("a", A, rows(A, 2)).value("step", 5).write(tmp_path / "c")
    assert safeweights.check(folder)["ok"]
    assert safeweights.check(folder / "__1_0.distcp")["ok"]
    assert scan(folder / "__0_0.distcp").format == "torch-dcp"


class Evil:
    def __reduce__(self) -> Any:
        return eval, ("1",)


def test_check_and_scan_find_what_an_item_would_run(tmp_path: Path) -> None:
    folder = DCP().add("a", A, rows(A, 2)).value("step", Evil()).write(tmp_path / "c")
    found = safeweights.check(folder)
    assert found["results"][0]["status"] == "bad"
    calls = [each for each in found["results"][0]["findings"] if each["rule"] == "dangerous-call"]
    assert ["eval" in call["message"] for call in calls] == [True]


def test_bytes_of_no_item_are_not_passed_over(tmp_path: Path) -> None:
    folder = DCP().add("a", A, rows(A, 2)).write(tmp_path / "c")
    path = folder / "__0_0.distcp"
    path.write_bytes(path.read_bytes() + saved({"x": Evil()}))
    assert_equal(safeweights.open(folder), {"a": A})  # nothing of it is read
    (unread,) = scan(path).unread
    assert unread.reason == "the tables do not say what these bytes are"
    (folder / ".metadata").unlink()
    assert scan(path).unread


def test_a_folder_of_safetensors_is_no_distributed_one(tmp_path: Path) -> None:
    save_file({"a": A}, tmp_path / "model.safetensors")
    shutil.copy(tmp_path / "model.safetensors", tmp_path / "copy")
    opened = safeweights.open(tmp_path)
    assert type(opened) is Checkpoint
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("a"), A)
