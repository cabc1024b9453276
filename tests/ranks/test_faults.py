"""Faults of distributed saves and loads: an error on every rank, and never half of two checkpoints."""

from __future__ import annotations

import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import faults
from launching import run_fine, run_ranks

import safeweights
from safeweights.storage import LocalStore
from small_disks import small_disk

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:FutureWarning")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose values are all 1."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    run_fine(faults.save, 2, 2, str(folder), 1)
    return folder


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def value_of(folder: Path) -> int:
    """The value that all elements of all tensors have."""
    LocalStore(folder).recover()
    stored = safeweights.open(folder)
    assert len(stored) == 7
    (value,) = {int(x) for tensor in stored.values() for x in tensor.numpy().reshape(-1)}
    text = (folder / "model.values.json").read_text()
    assert f'"step": {value}' in text
    return value


def hidden(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.startswith(".")]


def assert_nothing_saved(folder: Path, errors: list[Any], *texts: str) -> None:
    """Every rank had an error with these texts, and the earlier checkpoint is whole and alone."""
    for error in errors:
        assert error is not None
        for text in texts:
            assert text in error, error
    assert value_of(folder) == 1
    assert hidden(folder) == []


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_is_killed_at_any_step(saved: Path, tmp_path: Path, victim: int) -> None:
    """The other rank has an error, soon; the old checkpoint is there, or the new one, never a mixture.

    A step is a system call that changes a file, or a message to other ranks.
    """
    finished = run_fine(faults.save_and_die, 2, 2, str(tmp_path / "count"), 2, victim, 0)
    assert [error for error, _ in finished] == [None, None]
    steps = finished[victim][1]
    assert steps > 30

    def attempt(at: int) -> int:
        folder = tmp_path / str(at) / "model"
        shutil.copytree(saved, folder)
        results = run_ranks(faults.save_and_die, 2, 2, str(folder), 2, victim, at, timeout=10)
        assert results[victim].error == "no answer"
        error, _ = results[1 - victim].value
        assert error is not None
        value = value_of(folder)
        run_fine(faults.save, 1, 1, str(folder), 3)  # which finds nothing in its way
        assert value_of(folder) == 3
        left = [path for name in hidden(folder) for path in (folder / name).rglob("*")]
        assert sum(path.stat().st_size for path in left if path.is_file()) == 0, left
        return value

    with ThreadPoolExecutor(10) as pool:
        found = list(pool.map(attempt, range(1, steps + 1)))
    assert set(found) == ({1, 2} if victim == 0 else {1})


@pytest.mark.parametrize("late", [0, 1])
def test_a_rank_that_is_late_is_named(model: Path, late: int) -> None:
    results = run_ranks(faults.save_slowly, 2, 2, str(model), late, 3.5)
    errors = [result.value or "" for result in results]
    if late == 0:
        assert "1 rank of 2 did not end the save within 2 s: 0" in errors[1]
    else:
        for error in errors:
            assert "1 rank of 2 did not write its data within 1 s: 1" in error
        assert value_of(model) == 1
        assert hidden(model) == []


@pytest.mark.parametrize("full", [0, 1])
@pytest.mark.parametrize("reserved", [False, True])
def test_a_full_disk(model: Path, full: int, reserved: bool) -> None:
    errors = run_fine(faults.save_with_full_disk, 2, 2, str(model), full, reserved)
    if reserved and full == 1:  # only the coordinator reserves
        assert value_of(model) == 2
        return
    assert_nothing_saved(model, errors, "No space left on device", f"rank {full}", ".safetensors")


def test_a_full_disk_in_the_background(model: Path) -> None:
    errors = run_fine(faults.save_in_background_with_full_disk, 2, 2, str(model), 1)
    assert_nothing_saved(model, errors, "No space left on device", "rank 1")


def test_a_save_in_the_background_has_the_values_of_its_beginning(model: Path) -> None:
    run_fine(faults.save_in_background, 2, 2, str(model))
    assert value_of(model) == 5


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mount needs root")
def test_a_small_filesystem(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    with small_disk(folder, "300k"):
        run_fine(faults.save, 2, 2, str(folder), 1)
        errors = run_fine(faults.save_to_tmpfs, 2, 2, str(folder), 512)
        assert_nothing_saved(folder, errors, "No space left on device", "model.safetensors")


@pytest.mark.parametrize("kind", ["plan", "data"])
def test_a_rank_whose_planner_fails(model: Path, kind: str) -> None:
    errors = run_fine(faults.save_with_planner, 2, 2, str(model), 1, kind)
    assert_nothing_saved(model, errors, f"no {kind} today", "rank 1" if kind == "data" else "")


def test_what_json_cannot_hold_is_refused_on_all_ranks(model: Path) -> None:
    for errors in run_fine(faults.save_what_json_cannot_hold, 2, 2, str(model)):
        for error, name in zip(errors, ("`set`", "`path`", "`generator.type`"), strict=True):
            assert error is not None
            assert name in error
            assert "JSON cannot hold" in error
    assert value_of(model) == 1
    assert hidden(model) == []


def test_two_jobs_that_save_to_one_folder(model: Path) -> None:
    """One of the two is there at the end, whole."""
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(run_fine, faults.save_often, 2, 2, str(model), v, 4) for v in (2, 3)]
    for job in jobs:
        job.result()
    assert value_of(model) in (2, 3)
    assert hidden(model) == []


# ---- loading


@pytest.mark.parametrize("kind", ["deleted", "cut off", "empty", "not safetensors", "no index"])
def test_a_checkpoint_that_is_damaged(model: Path, kind: str) -> None:
    shard = sorted(model.glob("*.safetensors"))[1]
    if kind == "deleted":
        shard.unlink()
    elif kind == "cut off":
        os.truncate(shard, shard.stat().st_size - 4)
    elif kind == "empty":
        shard.write_bytes(b"")
    elif kind == "not safetensors":
        shard.write_bytes(bytes(range(256)))
    else:
        (model / "model.safetensors.index.json").unlink()
        shard.unlink()
    for error, values in run_fine(faults.load, 2, 2, str(model), {}):
        assert error is not None
        assert shard.name in error, error
        assert values == {-1}, "a target was changed"


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_is_killed_at_any_step_of_a_load(saved: Path, victim: int) -> None:
    """The other rank has an error, soon, and none of its targets is changed, or all are.

    A step is a read or a request to the store.
    """
    finished = run_fine(faults.load_and_die, 2, 2, str(saved), victim, 0)
    assert [(error, values) for error, values, _ in finished] == [(None, {1})] * 2
    steps = finished[victim][2]
    assert steps > 8

    def attempt(at: int) -> int:
        results = run_ranks(faults.load_and_die, 2, 2, str(saved), victim, at, timeout=10)
        if at == steps and results[victim].error is None:
            return 1  # the rank that leaves last has one step more
        assert results[victim].error == "no answer"
        error, values, _ = results[1 - victim].value
        assert error is not None
        (value,) = values
        return value

    with ThreadPoolExecutor(10) as pool:
        found = list(pool.map(attempt, range(1, steps + 1)))
    assert set(found) == {-1, 1}


@pytest.mark.parametrize("kind", ["exchanged", "cut off", "deleted"])
def test_a_shard_that_changes_between_the_headers_and_the_data(model: Path, kind: str) -> None:
    for error, values in run_fine(faults.load_exchanged, 2, 2, str(model), kind):
        assert error is not None
        assert "model-0000" in error
        assert values == {-1}, "a target was changed"


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("type", "`value` is torch.float32, and I64 is stored"), ("shape", "Size mismatch"),
        ("name", "Missing key in checkpoint state_dict: other"), ("sparse", "`value`"),
        ("plan", "no plan today"),
    ],
)  # fmt: skip
def test_targets_that_differ_on_one_rank(saved: Path, kind: str, text: str) -> None:
    for error, values in run_fine(faults.load_wrong, 2, 2, str(saved), kind):
        assert error is not None
        assert text in error
        assert values == [-1], "a target was changed"


def test_a_load_leaves_no_keys_in_the_store(saved: Path) -> None:
    before, after, after_failure = run_fine(faults.load_twice, 2, 2, str(saved))[0]
    assert before == after == after_failure


def test_values_that_cannot_be_read(model: Path) -> None:
    (model / "model.values.json").write_text('{"format": "safeweights values 1", "values": {"$": 1')
    for error, values in run_fine(faults.load, 2, 2, str(model), {}):
        assert error is not None
        assert "model.values.json" in error
        assert values == {-1}
