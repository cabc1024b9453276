"""`safeweights.distributed` in one process: values, tied weights, other targets, trust, places.

Several ranks are in tests/ranks.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, ReadItem

import safeweights
import safeweights.torch
from safeweights import trust
from safeweights.checkpoint.layout import laid_out
from safeweights.distributed import StorageReader, StorageWriter
from safeweights.errors import FormatError, UnsupportedError
from safeweights.format import indexing
from safeweights.frameworks.torch import filling
from safeweights.frameworks.torch.distributed import writing
from safeweights.frameworks.torch.distributed.compact import CompactPlan, compact
from safeweights.frameworks.torch.distributed.layout import Share, planned
from safeweights.frameworks.torch.distributed.meeting import Task
from safeweights.frameworks.torch.distributed.values import (
    decoded_value,
    decoded_values,
    encoded_value,
    values_text,
)
from safeweights.frameworks.torch.filling import Filling, Part, fill
from safeweights.storage import BytesSource, LocalStore, Source
from safeweights.storage.shared_file import SharedFile

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:FutureWarning")


def save(state: dict[str, Any], folder: Path, **options: Any) -> None:
    dcp.save(state, storage_writer=StorageWriter(folder, **options), no_dist=True)


def load(state: dict[str, Any], target: Any, **options: Any) -> dict[str, Any]:
    dcp.load(state, storage_reader=StorageReader(target, **options), no_dist=True)
    return state


def refused(call: Any, *arguments: Any, **options: Any) -> str:
    """The text of the error that torch makes of one on a rank."""
    with pytest.raises(dcp.CheckpointException) as caught:
        call(*arguments, **options)
    return str(caught.value)


# ---- what torch's own writer and reader of Hugging Face files get wrong (torch 2.13)

DEFECTS = {
    "a 0-d tensor becomes 0.0": {"a": torch.tensor(2.5), "b": torch.ones(3)},
    "int64 is a TypeError": {"a": torch.arange(5)},
    "bool is a TypeError": {"a": torch.tensor([True, False])},
    "F8_E8M0 is a KeyError": {"a": torch.ones(4).to(torch.float8_e8m0fnu)},
    "a number beside tensors corrupts a shard": {"a": torch.ones(3), "step": 5},
}


@pytest.mark.parametrize("defect", list(DEFECTS))
def test_what_torch_gets_wrong_is_right(tmp_path: Path, defect: str) -> None:
    state = DEFECTS[defect]
    save(state, tmp_path)
    blank = {
        name: torch.empty_like(value) if isinstance(value, torch.Tensor) else None
        for name, value in state.items()
    }
    for name, value in load(blank, tmp_path).items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == state[name].dtype
            assert value.shape == state[name].shape
            assert bytes(value.reshape(-1).view(torch.uint8)) == bytes(
                state[name].reshape(-1).view(torch.uint8)
            )
        else:
            assert value == state[name]


def test_files_have_metadata_and_aligned_data(tmp_path: Path) -> None:
    """Torch's consolidated files have neither."""
    save({"a": torch.ones(3)}, tmp_path)
    data = (tmp_path / "model.safetensors").read_bytes()
    assert safeweights.open(data).metadata == {"format": "pt"}
    assert int.from_bytes(data[:8], "little") % 8 == 0


@pytest.mark.parametrize(
    ("rank", "first", "second"), [(0, "abcd", "ef"), (1, "bcda", "ef"), (2, "cdab", "fe")]
)
def test_ranks_begin_at_different_places_of_each_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int, first: str, second: str
) -> None:
    state = {
        name: torch.full((4,), number, dtype=torch.uint8) for number, name in enumerate("abcdef")
    }
    planner = dcp.DefaultSavePlanner()
    planner.set_up_planner(dict(reversed(state.items())), is_coordinator=True)
    plan = dataclasses.replace(planner.create_local_plan(), storage_data=Task("save", rank, 3))
    places = {name: [number // 4, number % 4 * 4] for number, name in enumerate("abcdef")}
    written: list[tuple[str, int]] = []
    real = SharedFile.write_runs

    def write_runs(file: SharedFile, begin: int, runs: indexing.Runs, data: memoryview) -> None:
        written.append((os.path.basename(file._path), begin))
        real(file, begin, runs, data)

    monkeypatch.setattr(SharedFile, "write_runs", write_runs)
    (tmp_path / "0").write_bytes(bytes(16))
    (tmp_path / "1").write_bytes(bytes(8))
    share, store = Share(["0", "1"], places, {}), LocalStore(tmp_path)
    counts = writing._write_all(plan, planner, share, store, durable=False)
    assert counts == dict.fromkeys("abcdef", 4)
    expected = [("0", 4 * "abcd".index(name)) for name in first]
    assert written == expected + [("1", 4 * "ef".index(name)) for name in second]
    assert (tmp_path / "0").read_bytes() == b"".join(bytes([each] * 4) for each in range(4))
    assert (tmp_path / "1").read_bytes() == bytes([4] * 4 + [5] * 4)


def test_a_missing_shard_is_no_zeros_and_no_old_values(tmp_path: Path) -> None:
    save({f"t{i}": torch.ones(4) for i in range(3)}, tmp_path, max_shard_size=16)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    state = {f"t{i}": torch.full((4,), 7.0) for i in range(3)}
    assert "model-00002-of-00003" in refused(load, state, tmp_path)
    assert all(bool((tensor == 7).all()) for tensor in state.values())


# ---- values


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(
            st.text() | st.integers() | st.sampled_from(["$tuple", "$a"]), inner, max_size=4
        )
    ),
    max_leaves=20,
)


def alike(a: Any, b: Any) -> bool:
    """Equal, in type too; NaN equals NaN, and 0.0 is not -0.0."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        pairs = zip(a.items(), b.items(), strict=True)
        return len(a) == len(b) and all(alike(k, m) and alike(v, w) for (k, v), (m, w) in pairs)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(alike, a, b))
    return repr(a) == repr(b)


@given(PLAIN)
def test_values_come_back_exactly(value: Any) -> None:
    text = values_text({"a": encoded_value("a", value)})
    assert alike(decoded_values(text, "x")["a"], value)


class Number(int):
    """Not quite an int."""


@pytest.mark.parametrize(
    "value",
    [
        b"bytes", {1, 2}, Number(3), object(), torch.float32, 1j, {(1, 2): 3}, [[b""]], "\ud800",
        {"\ud800": 1}, 1 << 9000, Path("a"),
    ],
)  # fmt: skip
def test_what_json_cannot_hold_is_refused(value: Any) -> None:
    with pytest.raises(UnsupportedError, match="`name"):
        encoded_value("name", {"x": value} if isinstance(value, bytes) else value)


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def test_values_may_not_be_nested_without_end() -> None:
    encoded_value("a", nested(60))
    with pytest.raises(UnsupportedError, match="levels"):
        encoded_value("a", nested(70))
    with pytest.raises(ValueError, match="levels"):
        decoded_value(nested(70))


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{", "nul", '{"format": "other", "values": {}}', "[" * 100_000,
        '{"format": "safeweights values 1"}', '{"format": "safeweights values 1", "values": []}',
        *(
            f'{{"format": "safeweights values 1", "values": {{"a": {inner}}}}}'
            for inner in (
                "NaN", "Infinity", "1e999", '{"$x": 1}', '{"$tuple": 1}', '{"$tuple": [], "b": 1}',
                '{"a": 1, "a": 2}', '{"$float": "1"}', '{"$float": []}', '{"$dict": [1]}',
                '{"$dict": [[1, 2], [1, 3]]}', '{"$dict": [[[], 2]]}', '{"$dict": {}}', "1" * 5000,
            )
        ),
    ],
)  # fmt: skip
def test_files_of_values_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(FormatError, match=r"values\.json") as caught:
        decoded_values(text.encode(), "model.values.json")
    assert caught.value.rule == "values"


def test_values_of_an_earlier_save_leave(tmp_path: Path) -> None:
    save({"a": torch.ones(2), "step": 1}, tmp_path)
    save({"a": torch.ones(2)}, tmp_path)
    assert os.listdir(tmp_path) == ["model.safetensors"]


# ---- tied weights


def test_tied_weights_are_written_once(tmp_path: Path) -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    state = {"embed": weight, "head": weight, "part": weight[:1], "same": weight.clone()}
    save(state, tmp_path)
    stored = safeweights.open(tmp_path)
    assert sorted(stored) == ["embed", "part", "same"]
    assert stored.metadata == {"format": "pt", "head": "embed"}
    blank = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    for name, tensor in load(blank, tmp_path).items():
        assert torch.equal(tensor, state[name])


def test_tied_weights_are_loaded_into_a_module(tmp_path: Path) -> None:
    """As `safeweights.torch.save_model` notes them, and `load_model` reads them."""
    weight = torch.nn.Parameter(torch.ones(2, 2))
    save({"embed": weight, "head": weight}, tmp_path)
    target = {"embed": torch.zeros(2, 2), "head": torch.zeros(2, 2)}
    safeweights.torch.load_into(target, tmp_path)
    assert target["head"].tolist() == [[1, 1], [1, 1]]


# ---- what is refused before anything is written


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ({"a": torch.ones(2, dtype=torch.complex128)}, "complex128 of tensor `a`"),
        ({"a": torch.ones(2).to_sparse()}, "a"),
        ({"__metadata__": torch.ones(2)}, "__metadata__"),
        ({"a": torch.ones(2), "b": {3}}, "`b`"),
        ({"a": torch.ones(2, device="meta")}, "a"),
    ],
)  # fmt: skip
def test_what_the_format_cannot_hold(tmp_path: Path, state: dict[str, Any], text: str) -> None:
    save({"old": torch.ones(1)}, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert text in refused(save, state, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    "options", [{"max_shard_size": "much"}, {"stem": "../a"}, {"metadata": {"a": 1}}]
)
def test_bad_options(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises((UnsupportedError, dcp.CheckpointException)):
        save({"a": torch.ones(1)}, tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


def test_plans_that_are_cached_are_refused(tmp_path: Path) -> None:
    state = {"a": torch.ones(1)}
    for expected in (None, "enable_plan_caching"):
        planner = dcp.DefaultSavePlanner(enable_plan_caching=True)
        writer = StorageWriter(tmp_path)
        if expected is None:
            dcp.save(state, storage_writer=writer, planner=planner, no_dist=True)
        else:
            with pytest.raises(dcp.CheckpointException, match=expected):
                dcp.save(state, storage_writer=writer, planner=planner, no_dist=True)


def test_a_folder_has_to_be_named(tmp_path: Path) -> None:
    with pytest.raises(dcp.CheckpointException, match="no folder was given"):
        dcp.save({"a": torch.ones(1)}, storage_writer=StorageWriter(), no_dist=True)
    with pytest.raises(dcp.CheckpointException, match="no checkpoint was given"):
        dcp.load({"a": torch.ones(1)}, storage_reader=StorageReader(), no_dist=True)
    folder = tmp_path / "a"
    dcp.save(
        {"a": torch.ones(1)}, storage_writer=StorageWriter(), checkpoint_id=folder, no_dist=True
    )
    state = {"a": torch.zeros(1)}
    dcp.load(state, storage_reader=StorageReader(), checkpoint_id=folder, no_dist=True)
    assert state["a"] == 1


# ---- other targets


def test_targets_of_every_layout_are_filled(tmp_path: Path) -> None:
    stored = torch.arange(24.0).reshape(4, 6)
    save({"a": stored, "b": stored.to(torch.bfloat16)}, tmp_path)
    turned = torch.zeros(6, 4).T
    steps = torch.zeros(4, 12)[:, ::2]
    for target in (turned, steps, torch.zeros(4, 6, requires_grad=True)):
        assert torch.equal(load({"a": target}, tmp_path)["a"], stored)
    wide = load({"b": torch.zeros(4, 6, dtype=torch.float64)}, tmp_path, cast=True)["b"]
    assert torch.equal(wide, stored.double())
    with pytest.raises(dcp.CheckpointException, match="expand"):
        load({"a": torch.zeros(4, 1).expand(4, 6)}, tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inference_tensors_are_refused_before_anything_is_read(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    safeweights.torch.save_file(
        {"a": torch.ones(3), "b": torch.ones(3)}, tmp_path / "model.safetensors"
    )
    first = torch.zeros(3)
    with torch.inference_mode():
        second = torch.zeros(3, dtype=dtype)
    with pytest.raises(dcp.CheckpointException, match="inference tensor"):
        reader = StorageReader(tmp_path, cast=True)
        dcp.load({"a": first, "b": second}, storage_reader=reader, no_dist=True)
    assert not first.any()


def test_autograd_learns_that_values_changed(tmp_path: Path) -> None:
    save({"a": torch.ones(3)}, tmp_path)
    target = torch.zeros(3)
    before = target._version
    load({"a": target}, tmp_path)
    assert target._version > before


# ---- files of others, one file, an index; trust


def test_files_that_others_wrote(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.full((3, 2), float(i)) for i in range(4)}
    safeweights.torch.save_file(tensors, tmp_path / "one.safetensors")
    safeweights.torch.save_file(tensors, tmp_path / "many", max_shard_size=30)
    for target in ("one.safetensors", "many", "many/model.safetensors.index.json"):
        blank = {name: torch.zeros(3, 2) for name in tensors}
        for name, tensor in load(blank, tmp_path / target).items():
            assert torch.equal(tensor, tensors[name])


def test_each_rank_verifies_what_it_reads(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save({"a": torch.ones(1000), "b": torch.ones(10), "step": 3}, folder, max_shard_size=2000)
    trust.generate_key(str(tmp_path / "key"))
    trust.sign(str(folder), trust.load_private_key(str(tmp_path / "key")))
    key = str(tmp_path / "key.pub")
    state = {"a": torch.zeros(1000), "b": torch.zeros(10), "step": 0}
    assert load(state, folder, trust=key)["step"] == 3
    assert bool((state["a"] == 1).all())
    shard = next(path for path in folder.glob("*.safetensors") if path.stat().st_size > 4000)
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert "signed" in refused(load, {"a": torch.zeros(1000)}, folder, trust=key)
    data[-1] ^= 1
    shard.write_bytes(data)
    values = folder / "model.values.json"
    values.write_text(json.dumps({"format": "safeweights values 1", "values": {"step": 4}}))
    assert "model.values.json" in refused(load, {"step": 0}, folder, trust=key)


def test_encrypted_checkpoints_are_read(tmp_path: Path) -> None:
    save({"a": torch.arange(1000.0), "step": 3}, tmp_path / "model")
    identity = trust.generate_identity()
    safeweights.encrypt(tmp_path / "model", [identity.recipient], tmp_path / "sealed")
    state = load({"a": torch.zeros(1000), "step": 0}, tmp_path / "sealed", identity=identity)
    assert state["step"] == 3
    assert torch.equal(state["a"], torch.arange(1000.0))


def test_buckets_are_refused_before_a_byte_is_written(tmp_path: Path) -> None:
    from safeweights.storage import MemoryStore

    writer = StorageWriter(tmp_path / "a")
    writer._store = MemoryStore()
    with pytest.raises(dcp.CheckpointException, match="takes each file from one process"):
        dcp.save({"a": torch.ones(1)}, storage_writer=writer, no_dist=True)


# ---- reading boxes of tensors


class Counting(BytesSource):
    """Counts what is read, and is not in memory."""

    in_memory = False
    reads = 0
    nbytes = 0

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self.reads += 1
        self.nbytes += len(buffer)
        super().read_into(offset, buffer)


@pytest.mark.parametrize("axis", [0, 1])
def test_little_more_is_read_than_is_needed(axis: int) -> None:
    whole = torch.arange(1024 * 2048, dtype=torch.float32).reshape(1024, 2048)
    source = Counting(safeweights.torch.save({"a": whole}))
    stored = safeweights.checkpoint.SafetensorsFile(source)
    source.reads = source.nbytes = 0
    shape = [1024, 2048]
    shape[axis] //= 2
    target = torch.zeros(shape)
    fill([Part(stored.tensor("a"), (0, 1024) if axis else (512, 0), target)])
    assert torch.equal(target, whole[:, 1024:] if axis else whole[512:])
    assert source.nbytes <= 1.05 * target.nbytes


@pytest.mark.parametrize(
    ("processors", "threads", "reads"), [(1, 0, 3), (2, 0, 6), (1, 4, 6), (2, 4, 6)]
)
def test_one_thread_alone_reads_larger_pieces(
    monkeypatch: pytest.MonkeyPatch, processors: int, threads: int, reads: int
) -> None:
    monkeypatch.setattr(filling, "LEASED", 1 << 12)
    monkeypatch.setattr(filling, "CHUNK", 1 << 11)
    monkeypatch.setattr(filling, "_ARENA", 1)
    monkeypatch.setattr(filling, "thread_count", lambda: processors)
    whole = torch.arange(3 << 12).to(torch.uint8)
    source = Counting(safeweights.torch.save({"a": whole}))
    stored = safeweights.checkpoint.SafetensorsFile(source)
    source.reads, source.threads = 0, threads
    target = torch.zeros_like(whole)
    fill([Part(stored.tensor("a"), (0,), target)])
    assert torch.equal(target, whole)
    assert source.reads == reads


def test_neighbours_are_read_together() -> None:
    tensors = {f"t{i:03}": torch.full((7,), i, dtype=torch.int16) for i in range(300)}
    source = Counting(safeweights.torch.save(tensors))
    stored = safeweights.checkpoint.SafetensorsFile(source)
    source.reads = source.nbytes = 0
    targets = {name: torch.zeros(7, dtype=torch.int16) for name in tensors if name != "t100"}
    seen: list[torch.Tensor] = []
    parts = [Part(stored.tensor(name), (0,), each) for name, each in targets.items()]
    fill(parts, lambda _, values: seen.append(values))
    assert len(seen) == 299
    assert all(torch.equal(each, tensors[name]) for name, each in targets.items())
    assert source.reads <= 2
    assert source.gap == Source.gap


def test_nothing_is_touched_before_a_filling_runs() -> None:
    tensors = {
        "a": torch.ones(3, 4),
        "b": torch.ones(5),
        "c": torch.ones(1 << 20),
        "d": torch.ones(0),
    }
    stored = safeweights.checkpoint.SafetensorsFile(Counting(safeweights.torch.save(tensors)))
    targets = {name: torch.zeros_like(each) for name, each in tensors.items()}
    targets["turned"] = torch.zeros(4, 3).T
    names = dict.fromkeys(targets) | {"turned": "a"}
    before = [each._version for each in targets.values()]
    parts = [
        Part(stored.tensor(names[name] or name), (0,) * each.dim(), each)
        for name, each in targets.items()
    ]
    filling = Filling(parts)
    assert [each._version for each in targets.values()] == before
    assert not any(each.any() for each in targets.values())
    seen: list[torch.Tensor] = []
    filling.run(lambda part, values: seen.append(values))
    assert {id(each) for each in seen} == {id(each) for each in targets.values()}
    for (name, each), version in zip(targets.items(), before, strict=True):
        assert torch.equal(each, tensors[names[name] or name])
        assert each._version > version or not each.numel()


def test_layers_of_one_shape_are_planned_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One expression is followed once for each shape and type to which it is applied."""
    selected: list[tuple[int, ...]] = []

    def select(expression: Any, shape: tuple[int, ...]) -> indexing.Selection:
        selected.append(shape)
        return real(expression, shape)

    real = indexing.select
    monkeypatch.setattr(indexing, "select", select)
    whole = {
        f"{number}.{kind}": torch.arange(number, number + 24 * len(shape)).reshape(shape).to(dtype)
        for number in range(3)
        for kind, shape, dtype in (
            ("a", (24, 2), torch.int32), ("b", (8, 6), torch.int32), ("c", (24, 2), torch.int16),
        )
    }  # fmt: skip
    stored = safeweights.checkpoint.SafetensorsFile(Counting(safeweights.torch.save(whole)))
    targets = {name: torch.zeros(4, 2, dtype=each.dtype) for name, each in whole.items()}
    fill([Part(stored.tensor(name), (3, 0), each) for name, each in targets.items()])
    assert sorted(selected) == [(8, 6), (24, 2), (24, 2)]
    for name, each in targets.items():
        assert torch.equal(each, whole[name][3:7, :2])


class Ending(Counting):
    """Its last 400 bytes cannot be read."""

    def read_into(self, offset: int, buffer: memoryview) -> None:
        if offset + len(buffer) > self.size - 400:
            raise OSError(5, "Input/output error")
        super().read_into(offset, buffer)


@pytest.mark.parametrize("count", [1, 4])
def test_autograd_learns_of_targets_that_were_filled_before_an_error(
    monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(filling, "reader_count", lambda *_: count)
    monkeypatch.setattr(filling, "_ARENA", 1)
    source = Ending(safeweights.torch.save({"a": torch.ones(100), "b": torch.ones(100)}))
    stored = safeweights.checkpoint.SafetensorsFile(source)
    targets = {"a": torch.zeros(100), "b": torch.zeros(100)}
    before = targets["a"]._version
    with pytest.raises(OSError, match="Input/output error"):
        fill([Part(stored.tensor(name), (0,), each) for name, each in targets.items()])
    assert not targets["b"].any()
    assert targets["a"]._version > before


@pytest.mark.parametrize("count", [1, 4])
def test_progress_is_told_while_tensors_arrive(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(filling, "reader_count", lambda *_: count)
    monkeypatch.setattr(filling, "_ARENA", 1)
    source = Counting(safeweights.torch.save({f"t{i}": torch.ones(10) for i in range(5)}))
    stored = safeweights.checkpoint.SafetensorsFile(source)
    told: list[int] = []
    parts = [Part(stored.tensor(f"t{i}"), (0,), torch.zeros(10)) for i in range(5)]
    fill(parts, progress=told.append)
    assert told == sorted(told)
    assert told[-1] == 200
    assert count > 1 or told == [40, 80, 120, 160, 200]


# ---- plans on their way between ranks


def read_items(count: int = 3) -> list[ReadItem]:
    def item(number: int) -> ReadItem:
        size = torch.Size([number, 2])
        target = MetadataIndex(f"model.{number}", size, number or None)
        kind = LoadItemType.TENSOR if number else LoadItemType.BYTE_IO
        return ReadItem(kind, target, size, MetadataIndex(f"{number}"), size, torch.Size([3]))

    return [item(number) for number in range(count)]


def test_plans_come_back_as_they_were() -> None:
    plan = LoadPlan(read_items(), "stored", ["planned"])
    sent = compact(plan)
    assert compact(sent) is sent
    at_the_coordinator = pickle.loads(pickle.dumps(sent))
    assert isinstance(at_the_coordinator, CompactPlan)
    at_the_coordinator.storage_data = "changed"
    back = pickle.loads(pickle.dumps(at_the_coordinator))
    assert back == CompactPlan(plan.items, "changed", plan.planner_data)
    assert [type(size) for item in back.items for size in (item.lengths, item.dest_offsets)] == [
        torch.Size
    ] * 6
    assert len(pickle.dumps(sent)) < len(pickle.dumps(plan)) / 2


def test_items_that_a_planner_changes_at_the_coordinator_travel_on() -> None:
    sent = compact(LoadPlan(read_items()))
    plan = pickle.loads(pickle.dumps(sent))
    assert plan.items.pop().dest_index.fqn == "model.2"
    back = pickle.loads(pickle.dumps(plan))
    back.take_items(sent)
    assert back.items == read_items(2)
    replaced = dataclasses.replace(back, items=back.items[:1], planner_data=1)
    assert pickle.loads(pickle.dumps(replaced)) == CompactPlan(read_items(1), None, 1)


def test_items_that_come_back_unchanged_are_not_made_again() -> None:
    sent = compact(LoadPlan(read_items()))
    back = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(sent))))
    back.take_items(sent)
    assert all(a is b for a, b in zip(back.items, sent.items, strict=True))
    assert back.items is not sent.items
    other = pickle.loads(pickle.dumps(compact(LoadPlan(read_items(2)))))
    other.take_items(sent)
    assert other.items == read_items(2)


@dataclasses.dataclass(frozen=True)
class MarkedItem(ReadItem):
    """An item with more in it than torch's own."""

    mark: int = 0


@dataclasses.dataclass
class MarkedPlan(LoadPlan):
    """A plan of a planner's own."""

    mark: int = 0


def test_what_planners_add_is_kept() -> None:
    (item,) = read_items(1)
    marked = MarkedItem(**vars(item), mark=3)
    plan = pickle.loads(pickle.dumps(compact(LoadPlan([item, marked]))))
    assert plan.items == [item, marked]
    own = MarkedPlan([item], mark=3)
    assert compact(own) is own


# ---- plans that do not fit together


def plan_of(*parts: tuple[tuple[int, ...], tuple[int, ...]], size: tuple[int, ...] = (4, 4)) -> Any:
    from torch.distributed.checkpoint.metadata import (
        ChunkStorageMetadata,
        MetadataIndex,
        TensorProperties,
    )
    from torch.distributed.checkpoint.planner import (
        SavePlan,
        TensorWriteData,
        WriteItem,
        WriteItemType,
    )

    items = []
    for offsets, lengths in parts:
        chunk = ChunkStorageMetadata(torch.Size(offsets), torch.Size(lengths))
        data = TensorWriteData(chunk, TensorProperties(torch.float32), torch.Size(size))
        index = MetadataIndex("a", chunk.offsets)
        items.append(WriteItem(index, WriteItemType.SHARD, tensor_data=data))
    return SavePlan(items)


@pytest.mark.parametrize(
    ("plans", "text"),
    [
        ([plan_of(((0, 0), (2, 4))), plan_of(((3, 0), (1, 4)))], "no rank writes element [2, 0]"),
        ([plan_of(((0, 0), (3, 4))), plan_of(((2, 0), (2, 4)))], "two ranks write the same"),
        ([plan_of(((0, 0), (2, 4))), plan_of(((2, 0), (3, 4)))], "outside of it"),
        ([plan_of(((0, 0), (4, 4))), plan_of(((0, 0), (5, 4)), size=(5, 4))], "on another"),
    ],
)  # fmt: skip
def test_parts_that_do_not_make_up_a_tensor(plans: list[Any], text: str) -> None:
    with pytest.raises(FormatError) as caught:
        planned(plans, ["a"])
    assert text in str(caught.value)


def test_tensors_are_in_the_order_of_the_state_dict() -> None:
    tensors = planned([plan_of(((0, 0), (4, 4)))], ["b", "a"])
    layout = laid_out(tensors, "model", "5GB", None)
    assert [shard.name for shard in layout.shards] == ["model.safetensors"]
    assert layout.weight_map() == {"a": "model.safetensors"}
