"""The table of rows: complete, consistent, and the same data everywhere."""

from __future__ import annotations

import math
import os
from dataclasses import replace

import numpy as np
import pytest
from bench.contenders import CONTENDERS
from bench.data import MIB, Spec, changed, ensure, entries, header_of, shards, tensor_views
from bench.limits import LIMITS, index_of
from bench.operations import _VERBS, _of_lines, fingerprint_of_file
from bench.rows import BEST, OURS, PEERS, ROWS, Scale, index_text, selection_size

from bench import data


def test_rows_name_what_there_is():
    assert len({row.name for row in ROWS}) == len(ROWS)
    for row in ROWS:
        columns = [entry.column for entry in row.entries]
        assert columns[0] == OURS
        assert len(set(columns)) == len(columns)
        assert row.versus in {BEST, *columns}
        assert {entry.process for entry in row.entries} <= CONTENDERS.keys()
        if row.kind != "import":
            assert set(row.limits) <= LIMITS.keys()
            assert row.bound in {None, *row.limits}
            assert row.verb in _VERBS


def test_what_is_to_be_reached_is_what_was_promised():
    wanted = {row.name: row.reach for row in ROWS if row.reach}
    ratios = {name: reach.ratio for name, reach in wanted.items() if reach.ratio is not None}
    assert ratios == {
        "load-torch": 1.0, "load-tiny-10k": 0.25, "load-tiny-100k": 0.25, "load-numpy": 0.3,
        "load-owned": 0.7, "load-cold": 0.9, "header-100k": 0.5, "first-tensor": 0.5,
        "load-bytes": 0.5, "save-bytes": 0.6, "save-torch": 0.9, "save-64k": 0.5, "save-64k-numpy": 0.5,
        "save-tiny-10k": 0.2, "save-tiny-100k": 0.2, "save-durable": 0.6,
        "slice-rows": 0.2, "slice-columns": 0.2, "slice-every8": 0.2, "hash-small": 2.0,
        "load-verified": 1.3, "load-encrypted": 0.25, "encrypt": 0.25,
        "edit-rename": 0.05, "edit-merge": 0.7, "diff": 1.3,
    }  # fmt: skip
    assert wanted["load-cold"].limit_share == 0.85
    assert wanted["slice-columns"].limit_share == 0.33  # three times the limit
    assert wanted["slice-every8"].limit_share == 0.77
    for name in ("load-encrypted", "load-encrypted-verified", "encrypt"):
        assert wanted[name].limit_share == 0.85
    assert wanted["memory-encrypt"].most == 64 * MIB
    assert wanted["memory-load-encrypted"].slack == 64 * MIB
    assert wanted["import"].most == wanted["import-numpy"].most == 0.012
    assert wanted["delta-apply"].limit_share == 0.2
    assert wanted["memory-edit-merge"].most == 64 * MIB
    assert wanted["memory-save-file"].most == 64 * MIB


def test_every_timed_row_has_a_limit_and_every_peer_a_column():
    assert all(row.limits for row in ROWS if row.kind == "time")
    used = {entry.column for row in ROWS for entry in row.entries}
    assert set(PEERS) <= used


def test_a_quick_run_is_not_published_and_smaller():
    quick = Scale(quick=True)
    assert not quick.complete
    assert Scale().complete
    assert not Scale(few=True).complete
    sizes = [(quick.apply(row).data, row.data) for row in ROWS if row.data]
    assert all(small.nbytes <= full.nbytes for small, full in sizes)
    assert max(small.nbytes for small, _ in sizes) <= 512 * MIB


def test_few_contenders_are_ours_and_what_it_is_compared_with():
    for row in ROWS:
        columns = {entry.column for entry in Scale(few=True).apply(row).entries}
        assert columns == {OURS, row.versus} or row.versus == BEST


@pytest.mark.parametrize("layout", ["model", "equal", "square"])
def test_files_are_the_same_each_time(tmp_path, layout):
    spec = Spec(layout, "F32", 1 if layout == "square" else 20, MIB)
    first = ensure(spec, tmp_path / "a").read_bytes()
    assert ensure(spec, tmp_path / "b").read_bytes() == first
    found, start = header_of(tmp_path / "a" / spec.filename)
    assert found == entries(spec)
    assert start + found[-1][4] == len(first)
    assert 0.4 * spec.nbytes < found[-1][4] <= spec.nbytes


def test_a_folder_of_files_is_hashed_alike_by_all_and_the_same_each_time(tmp_path):
    spec = Spec("folder", "F16", 1001, 1001 * 100)
    made = [ensure(spec, tmp_path / name) for name in "ab"]
    assert not list(tmp_path.glob("*/*.partial"))
    found = [CONTENDERS[name]().hash_folder(str(made[0])) for name in ("safeweights", "coreutils")]
    assert _of_lines(found[0]) == _of_lines(found[1])
    assert len(found[0].splitlines()) == 1001
    assert len({line[:64] for line in found[0].splitlines()}) == 1001
    assert found[0].replace(str(made[0]), str(made[1])) == CONTENDERS["safeweights"]().hash_folder(
        str(made[1])
    )
    assert {path.stat().st_size for path in made[0].rglob("*.bin")} == {100}
    LIMITS["open, read and hash"]({"path": str(made[0])})()


def test_a_folder_that_cannot_be_finished_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(data.os, "sync", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ensure(Spec("folder", "F16", 3, 300), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_files_are_what_the_package_reads(tmp_path):
    from safeweights.numpy import load_file

    path = ensure(Spec("model", "F32", 20, MIB), tmp_path)
    arrays = load_file(path)
    with tensor_views(path) as views:
        assert list(views) == list(arrays)
        assert all(arrays[name].tobytes() == view for name, view in views.items())


def test_a_file_that_cannot_be_finished_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(nbytes):
        yield memoryview(b"x")
        raise KeyboardInterrupt

    monkeypatch.setattr(data, "_noise", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ensure(Spec("equal", "F32", 2, 64), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("selection", ["rows", "columns", "every8"])
def test_bytes_and_runs_of_a_selection(selection):
    spec = Spec("square", "F32", 1, 4 * MIB)
    ((_, _, shape, _, end),) = entries(spec)
    index = index_text(selection, spec)
    chosen = np.arange(math.prod(shape), dtype="u4").reshape(shape)[index_of(index)]
    flat = chosen.reshape(-1).astype("i8")
    runs = 1 + np.count_nonzero(np.diff(flat) != 1)
    assert selection_size(spec, index) == (chosen.nbytes, runs)
    assert chosen.nbytes * 4 < end


def test_a_scale_may_lower_the_number_of_tensors():
    row = next(row for row in ROWS if row.name == "load-tiny-100k")
    scaled = Scale(count=100).apply(row)
    assert scaled.data == replace(row.data, count=100, nbytes=100 * 128)


def test_shards_and_changed_copies_are_what_they_are_called(tmp_path):
    path = str(ensure(Spec("model", "F16", 40, MIB), tmp_path))
    made = shards(path, f"{tmp_path}/shards", 8)
    assert made == shards(path, f"{tmp_path}/shards", 8)
    assert len(made) == 8
    with tensor_views(path) as views:
        for shard in made:
            with tensor_views(shard) as part:
                assert part
                assert all(views[name] == view for name, view in part.items())
        assert sum(len(header_of(shard)[0]) for shard in made) == len(views)
    for every, least in ((None, 1), (60, MIB // 2 // 90)):
        other = changed(path, f"{tmp_path}/{every}.safetensors", every=every)
        assert other == changed(path, other, every=every)
        one, two = (np.fromfile(each, "u1") for each in (path, other))
        assert least <= np.count_nonzero(one != two) <= least * 1.5


def test_edits_of_all_who_can_give_the_same(tmp_path):
    path = str(ensure(Spec("model", "BF16", 40, MIB), tmp_path))
    made = shards(path, f"{tmp_path}/shards", 4)
    (tmp_path / "beside").mkdir()
    renamed, merged = set(), set()
    for name in ("safeweights", "safetensors-0.8"):
        contender = CONTENDERS[name]()
        out = str(tmp_path / f"{name}.safetensors")
        first = header_of(path)[0][0][0]
        renamed.add(
            fingerprint_of_file(contender.renaming(path, first, out, f"{tmp_path}/beside")())
        )
        if name == "safeweights":
            os.unlink(f"{tmp_path}/beside/renamed.safetensors")
        merged.add(fingerprint_of_file(contender.merging(made, f"{out}.merged.safetensors")()))
    assert merged == {fingerprint_of_file(path)}
    assert len(renamed) == 1


def test_a_delta_gives_the_new_file(tmp_path):
    pytest.importorskip("zstandard", reason="deltas need the extra [delta]")
    path = str(ensure(Spec("model", "BF16", 40, MIB), tmp_path))
    new = changed(path, f"{tmp_path}/new.safetensors", every=60)
    out = f"{tmp_path}/out.safetensors"
    apply = CONTENDERS["safeweights"]().patching(path, new, str(tmp_path), out)
    with tensor_views(new) as expected, tensor_views(apply()) as found:
        assert found == expected
    out = f"{tmp_path}/limit"
    LIMITS["zstd, XOR, SHA-256 and page cache write"](
        {"path": path, "beside": str(tmp_path), "out": out}
    )()
    after, written = (np.fromfile(each, np.uint8) for each in (new, out))
    start = header_of(path)[1]
    assert not written[:start].any()  # no frame has the header
    assert np.array_equal(written[start:], after[start:])


@pytest.mark.parametrize("trees", [True, False])
def test_a_signed_load_gives_what_the_file_has_and_refuses_another_one(tmp_path, trees):
    pytest.importorskip("cryptography", reason="signatures need the extra [trust]")
    from safeweights.trust import VerificationError

    path = ensure(Spec("model", "BF16", 20, MIB), tmp_path)
    load = CONTENDERS["safeweights"]().verified(str(path), trees=trees)
    with tensor_views(path) as views:
        assert load().keys() == views.keys()
    with path.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x00" if path.read_bytes()[-1] else b"\x01")
    with pytest.raises(VerificationError, match="signed"):
        load()
    assert CONTENDERS["hashlib"]().verified(str(path), trees=False)() == {}
