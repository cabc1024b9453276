"""Folders of torch.distributed.checkpoint: equal to what PyTorch reads, refused where they lie."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from cutting import split
from folders import DCP, assert_equal, by_torch, cut, rows, saved
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.distributed._shard.sharded_tensor.metadata import TensorProperties as OldProperties
from torch.distributed.checkpoint.filesystem import (
    FileSystemWriter,
    SerializationFormat,
    _StorageInfo,
)
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

import safeweights
import safeweights.torch
from safeweights.checkpoint import Checkpoint
from safeweights.conversion import convert
from safeweights.derived.boxes import Box
from safeweights.derived.element_types import FOREIGN, TORCH_DTYPES
from safeweights.errors import FormatError, SafetensorError, UnsupportedError
from safeweights.storage import LocalStore, MemoryStore, Source
from safeweights.storage.files import DescriptorSource

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:FutureWarning")

A = torch.arange(35.0).reshape(7, 5)
B = torch.arange(24).reshape(4, 6)


def two_ranks() -> DCP:
    """A small checkpoint of two ranks: sharded by rows and by columns, whole, and values."""
    return (
        DCP()
        .add("model.a", A, rows(A, 2))
        .add("model.b", B, rows(B, 2, axis=1))
        .add("optimizer.state.0.exp_avg", A * 2, rows(A, 2))
        .value("step", 5)
    )


EXPECTED = {"model.a": A, "model.b": B, "optimizer.state.0.exp_avg": A * 2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return two_ranks().write(tmp_path / "ckpt")


# ---- what is read


@pytest.mark.parametrize("backend", ["mmap", "pread"])
def test_two_ranks(folder: Path, backend: str) -> None:
    ours = safeweights.open(folder, backend=backend)
    assert (ours.format, ours.name) == ("torch-dcp", str(folder))
    assert_equal(ours, by_torch(folder))
    assert_equal(ours, EXPECTED)
    assert [(other.name, other.value) for other in ours.others] == [("step", 5)]


def test_nothing_is_imported_or_executed(folder: Path, tmp_path: Path, guard: Any) -> None:
    safeweights.open(folder)["model.a"].numpy()
    convert(folder, tmp_path / "warm.safetensors")  # imports what conversion itself needs
    evil = two_ranks().value("extra", Evil()).write(tmp_path / "evil")
    with guard.armed() as seen:
        opened = safeweights.open(evil)
        opened["model.a"].numpy()
        convert(evil, tmp_path / "out.safetensors")
    assert set(seen) <= {"shutil.rmtree", "os.remove"}  # of the files that a commit stages
    assert [call.path for call in opened.calls if call.path.endswith(".system")] == [
        f"{SYSTEM}.system"
    ]
    assert_equal(safeweights.open(tmp_path / "out.safetensors"), EXPECTED)


SYSTEM = "nt" if sys.platform == "win32" else "posix"


class Evil:
    def __reduce__(self) -> Any:
        import os

        return os.system, ("echo executed",)


def test_every_type_and_shape(tmp_path: Path) -> None:
    made = DCP()
    codes = {TORCH_DTYPES[name]: name for name in TORCH_DTYPES if hasattr(torch, name)}
    for code, name in codes.items():
        if code.startswith("Q"):
            continue
        dtype = getattr(torch, name)
        raw = torch.arange(64 * dtype.itemsize, dtype=torch.uint8) % 2
        values = raw.view(dtype).reshape(8, 8) if dtype != torch.bool else (raw == 1).reshape(8, 8)
        made.add(name, values, rows(values, 3, axis=1))
        made.add(f"{name}-scalar", values[0, 0].clone())
        made.add(f"{name}-empty", values[:0].clone())
        made.add(f"{name}-empty_parts", values[:0].clone(), [((0, 0), (0, 8)), ((0, 0), (0, 4))])
    folder = made.write(tmp_path / "ckpt")
    ours, theirs = safeweights.open(folder, casts={"C128": "C64"}), by_torch(folder)
    refused = {name for name, tensor in ours.items() if tensor.unreadable}
    refused.remove("float4_e2m1fn_x2-scalar")
    assert "without a dimension" in str(ours["float4_e2m1fn_x2-scalar"].unreadable)
    assert {name.split("-")[0] for name in refused} == {"chalf"}
    assert all(FOREIGN["C32"][1] in str(ours[name].unreadable) for name in refused)
    for name, expected in theirs.items():
        if ours[name].unreadable:
            continue
        found = ours[name]
        wanted = expected.to(torch.complex64) if expected.dtype == torch.complex128 else expected
        plain = wanted.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        assert bytes(found.view()) == plain, name
        if found.dtype != "F4":
            assert found.shape == tuple(wanted.shape)


@given(st.integers(0, 1 << 30))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
def test_any_boxes_any_strides(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    made, expected = DCP(), {}
    for number in range(3):
        shape = tuple(rng.randrange(1, 6) for _ in range(rng.randrange(4)))
        values = torch.randint(0, 1000, shape)
        if rng.random() < 0.5 and values.ndim > 1:
            values = (
                values.transpose(0, 1).contiguous().transpose(0, 1)
            )  # items have strides of their own
        boxes = split(Box((0,) * len(shape), shape), rng, rng.randrange(4))
        made.add(f"t{number}", values, [(box.offsets, box.lengths) for box in boxes])
        expected[f"t{number}"] = values
    folder = made.write(tmp_path / str(seed))
    assert_equal(safeweights.open(folder), expected)
    assert_equal(safeweights.open(folder), by_torch(folder))


def test_values_are_listed_and_tensors_in_them_kept(tmp_path: Path) -> None:
    value = {"rng": [torch.arange(3), "text"], "lr": 0.5}
    ours = safeweights.open(two_ranks().value("extra", value).write(tmp_path / "c"))
    assert ours["extra.rng.0"].numpy().tolist() == [0, 1, 2]
    listed = {other.name: other.value for other in ours.others}
    assert listed == {"step": 5, "extra.rng.1": "text", "extra.lr": 0.5}


def test_pytorchs_own_writer_and_its_options(tmp_path: Path) -> None:
    state = {
        "model": {"a": A, "b": B.t(), "s": torch.tensor(2.5)},
        "step": 3,
        "list": [torch.ones(2), 4],
    }
    for options in ({"single_file_per_rank": False}, {"thread_count": 3}, {}):
        folder = tmp_path / f"c{len(str(options))}"
        dcp.save(state, storage_writer=FileSystemWriter(folder, **options), no_dist=True)
        ours = safeweights.open(folder)
        assert_equal(ours, by_torch(folder))
        assert {other.name: other.value for other in ours.others} == {"step": 3, "list.1": 4}


def test_files_of_safetensors(tmp_path: Path) -> None:
    state = {"model": {"a": A, "b": B, "s": torch.tensor(2.5)}, "step": 3}
    writer = FileSystemWriter(tmp_path / "c", serialization_format=SerializationFormat.SAFETENSORS)
    dcp.save(state, storage_writer=writer, no_dist=True)
    ours = safeweights.open(tmp_path / "c")
    assert_equal(ours, {"model.a": A, "model.b": B, "model.s": torch.tensor(2.5)})
    assert [(other.name, other.value) for other in ours.others] == [("step", 3)]
    file = tmp_path / "c/__0_0.distcp"
    file.write_bytes(
        file.read_bytes().replace(
            rb"\"model.a\": {\"saved_offsets\": [0,", rb"\"model.a\": {\"saved_offsets\": [1,"
        )
    )
    with pytest.raises(FormatError, match=r"does not hold the chunk of `model.a` at \[0, 0\]"):
        safeweights.open(tmp_path / "c")["model.a"].numpy()


def test_ranks_without_collectives(tmp_path: Path) -> None:
    """Each rank writes tables of its own, and saves what all of them have."""
    folder = tmp_path / "c"
    folder.mkdir()
    for rank in range(2):
        made = DCP()
        for _ in range(rank):
            made.item(b"", rank)
        box = rows(A, 2)[rank]
        made.metadata.state_dict_metadata["a"] = TensorStorageMetadata(
            TensorProperties(A.dtype), A.shape, [ChunkStorageMetadata(*map(torch.Size, box))]
        )
        made.metadata.storage_data[MetadataIndex("a", box[0])] = made.item(saved(cut(A, box)), rank)
        made.metadata.state_dict_metadata["b"] = TensorStorageMetadata(
            TensorProperties(B.dtype), B.shape, [ChunkStorageMetadata(torch.Size([0, 0]), B.shape)]
        )
        made.metadata.storage_data[MetadataIndex("b", [0, 0])] = made.item(saved(B), rank)
        for name, data in made.files.items():
            (folder / name).write_bytes(data)
        (folder / f"__{rank}.metadata").write_bytes(pickle.dumps(made.metadata))
    assert_equal(safeweights.open(folder), {"a": A, "b": B})
    (folder / "__1.metadata").unlink()
    with pytest.raises(FormatError, match=r"`a` is incomplete: 20 of its 35 elements") as error:
        safeweights.open(folder)
    assert error.value.rule == "pieces-gap"


def test_the_classes_of_torch_2_1(tmp_path: Path) -> None:
    def older(tables: bytes) -> bytes:
        tree = pickle.dumps(pickle.loads(tables), 2)
        now, then = (
            b"torch.distributed.checkpoint.metadata\n",
            b"torch.distributed._shard.sharded_tensor.metadata\n",
        )
        for name in (b"TensorProperties\n", b"MEM_FORMAT_ENCODING\n"):
            assert now + name in tree or now + b"_" + name in tree
            tree = tree.replace(now + name, then + name).replace(now + b"_" + name, then + name)
        return tree

    assert_equal(safeweights.open(two_ranks().write(tmp_path / "c", older)), EXPECTED)


def test_megatron(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables with attributes and classes of Megatron-core, and what all ranks share beside them."""
    module = types.ModuleType("megatron.core.dist_checkpointing.strategies.torch")
    for part in (
        "megatron",
        "megatron.core",
        "megatron.core.dist_checkpointing",
        "megatron.core.dist_checkpointing.strategies",
    ):
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    kind = type("MCoreMetadata", (), {"__module__": module.__name__})
    module.MCoreMetadata = kind  # type: ignore[attr-defined]
    made = two_ranks()
    made.metadata.mcore_data = {"a": {"nd_reformulated_orig_global_shape": (7, 5), "x": kind()}}
    folder = made.write(tmp_path / "c")
    torch.save({"iteration": 7, "args": {"tensor_model_parallel_size": 2}}, folder / "common.pt")
    (folder / "metadata.json").write_text(json.dumps({"sharded_backend": "torch_dist"}))
    ours = safeweights.open(folder)
    assert_equal(ours, EXPECTED)
    assert [other.name for other in ours.others] == ["step", "common"]


# ---- where it is, and how it is opened


def test_any_store(folder: Path) -> None:
    store = MemoryStore()
    for file in folder.iterdir():
        store.write(file.name, [file.read_bytes()])
    assert_equal(safeweights.open(store), EXPECTED)
    assert_equal(safeweights.open(LocalStore(str(folder))), EXPECTED)


def test_every_file_is_verified(folder: Path) -> None:
    from safeweights.conversion.distributed.finding import find_distributed
    from safeweights.conversion.foreign import OpenOptions

    seen = []

    def verify(source: Source, path: str) -> Source:
        seen.append(Path(path).name)
        return source

    read = find_distributed(folder)
    assert read is not None
    read(OpenOptions(verify=verify))
    assert seen == [".metadata", "__0_0.distcp", "__1_0.distcp"]


def test_opening_reads_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    big = torch.zeros(1 << 20)
    folder = DCP().add("big", big, rows(big, 4)).write(tmp_path / "c")
    read = []
    real = DescriptorSource.read_into

    def note(self: Any, offset: int, buffer: memoryview) -> None:
        read.append(len(buffer))
        real(self, offset, buffer)

    monkeypatch.setattr(DescriptorSource, "read_into", note)
    ours = safeweights.open(folder, backend="pread")
    assert sum(read) < 10_000
    read.clear()
    assert ours["big"][(1 << 18) : (1 << 18) + 100].tolist() == [0] * 100
    assert sum(read) < 100_000  # one item's directory and pickle, and 400 bytes


# ---- conversion


def test_one_model(folder: Path, tmp_path: Path) -> None:
    done = convert(
        folder,
        f"{tmp_path}/out/",
        only=("model.*",),
        strip_prefix=("model.",),
        dtype="BF16",
        max_shard_size=100,
    )
    assert done.tensors == 2
    assert [source.format for source in done.sources] == ["torch-dcp", "part", "part"]
    assert all(source.sha256 for source in done.sources)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
        "model.safetensors.index.json", "model.safetensors.provenance.json",
    ]  # fmt: skip
    assert_equal(safeweights.open(tmp_path / "out"), {"a": A.to(torch.bfloat16), "b": B})


def test_a_file_by_name(folder: Path, tmp_path: Path) -> None:
    convert(folder, tmp_path / "mine.safetensors", keep_others=True)
    ours = safeweights.open(tmp_path / "mine.safetensors")
    assert_equal(ours, EXPECTED)
    assert json.loads((ours.metadata or {})["safeweights.others"]) == {"step": 5}


def test_a_bad_item_is_found_before_anything_is_written(tmp_path: Path) -> None:
    made = two_ranks()
    other = io.BytesIO()
    np.savez(other, a=np.zeros(4))
    index = next(
        key
        for key in made.metadata.storage_data
        if key.fqn == "optimizer.state.0.exp_avg" and key.offset[0]
    )
    info = made.metadata.storage_data[index]
    made.files[info.relative_path] = (
        made.files[info.relative_path][: info.offset] + other.getvalue()
    )
    made.metadata.storage_data[index] = _StorageInfo(
        info.relative_path, info.offset, len(other.getvalue())
    )
    folder = made.write(tmp_path / "c")
    with pytest.raises(FormatError, match="not one of PyTorch's"):
        convert(folder, f"{tmp_path}/out/")
    assert not (tmp_path / "out").exists()
    convert(
        folder, f"{tmp_path}/out/", skip=("optimizer.*",)
    )  # what is not asked for is not opened
    assert_equal(safeweights.open(tmp_path / "out"), {"model.a": A, "model.b": B})


# ---- what is refused


def _drop_chunk(made: DCP) -> None:
    made.metadata.state_dict_metadata["model.a"].chunks.pop()
    del made.metadata.storage_data[MetadataIndex("model.a", [4, 0])]


def _repeat_chunk(made: DCP) -> None:
    chunks = made.metadata.state_dict_metadata["model.a"].chunks
    chunks.append(ChunkStorageMetadata(torch.Size([3, 0]), torch.Size([1, 5])))
    made.metadata.storage_data[MetadataIndex("model.a", [3, 0])] = made.item(
        saved(A[3:4].clone()), 1
    )


def _larger_tensor(made: DCP) -> None:
    made.metadata.state_dict_metadata["model.a"].size = torch.Size([8, 5])


def _outside(made: DCP) -> None:
    made.metadata.state_dict_metadata["model.a"].size = torch.Size([6, 5])


def _move(offset: int, length: int, file: str | None = None) -> Any:
    def edit(made: DCP) -> None:
        index = MetadataIndex("model.a", [4, 0])
        info = made.metadata.storage_data[index]
        made.metadata.storage_data[index] = _StorageInfo(
            file or info.relative_path, info.offset + offset, info.length + length
        )

    return edit


def _lost_item(made: DCP) -> None:
    del made.metadata.storage_data[MetadataIndex("model.a", [4, 0])]


def _item_of_nothing(made: DCP) -> None:
    made.metadata.storage_data[MetadataIndex("other", [0])] = made.item(saved(A), 0)


def _lost_value(made: DCP) -> None:
    del made.metadata.storage_data[MetadataIndex("step")]


def _version(made: DCP) -> None:
    made.metadata.version = "2.0.0"


def _lost_file(made: DCP) -> None:
    del made.files["__1_0.distcp"]


def _cut_file(made: DCP) -> None:
    made.files["__1_0.distcp"] = made.files["__1_0.distcp"][:-1]


def _no_number(made: DCP) -> None:
    made.metadata.state_dict_metadata["model.a"].chunks[0].offsets = ("x", 0)


def _evil(made: DCP) -> None:
    made.metadata.planner_data["x"] = Evil()


def _other_type(made: DCP) -> None:
    made.metadata.planner_data["x"] = types.SimpleNamespace(a=1)


LIES = [
    (_drop_chunk, "pieces-gap", r"model.a` is incomplete: 20 of its 35 .* first missing one is \[4, 0\]"),
    (_larger_tensor, "pieces-gap", r"35 of its 40 .* \[7, 0\]"),
    (_repeat_chunk, "pieces-overlap", "two pieces of tensor `model.a` overlap: the item at byte"),
    (_outside, "pieces-bounds", "reaches outside"),
    (_move(0, 1), "dcp-overlap", "two items overlap"),
    (_move(-40000, 0), "dcp-metadata", "the place of an item of `model.a` is malformed"),
    (_move(1 << 62, 0), "dcp-metadata", "malformed"),
    (_move(0, 1 << 20), "dcp-item", "inside of an item"),
    (_move(0, 0, "../ckpt/__1_0.distcp"), "missing-shard", "`../ckpt/__1_0.distcp` is missing"),
    (_move(0, 0, "/etc/passwd"), "missing-shard", "is missing"),
    (_move(0, 0, "."), "missing-shard", "is missing"),
    (_lost_item, "dcp-item", r"no item for the chunk of tensor `model.a` at \[4, 0\]"),
    (_lost_value, "dcp-metadata", "no item for the value `step`"),
    (_item_of_nothing, "dcp-metadata", "an item of `other` is of no tensor"),
    (_version, "dcp-version", "2.0.0"),
    (_lost_file, "missing-shard", "`__1_0.distcp` of rank 1 is missing; .* holds 3 items"),
    (_cut_file, "dcp-item", "inside of an item"),
    (_no_number, "dcp-metadata", "a shape or offset of tensor `model.a` is none"),
    (_evil, "dcp-global", "system`, which no table"),
    (_other_type, "dcp-global", "types.SimpleNamespace"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("edit", "rule", "message"), LIES, ids=lambda each: getattr(each, "__name__", None)
)
def test_lies_are_refused(tmp_path: Path, guard: Any, edit: Any, rule: str, message: str) -> None:
    made = two_ranks()
    edit(made)
    folder = made.write(tmp_path / "c")
    _refused(two_ranks().write(tmp_path / "warm", lambda tables: tables + b"x"))
    with guard.armed() as seen:
        error = _refused(folder)
    assert seen == []
    assert error.rule == rule
    assert re.search(message, str(error))


def _refused(folder: Path) -> FormatError:
    """The error of opening a folder."""
    try:
        safeweights.open(folder)
    except FormatError as error:
        return error
    pytest.fail("it was opened")


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (
            saved(A[4:].double()),
            r"type F64 and shape \[3, 5\], but `.metadata` says F32 and \[3, 5\]",
        ),
        (saved(A[3:]), r"shape \[4, 5\]"),
        (saved({"a": A[4:]}), "is not one tensor"),
        (saved(5), "is not one tensor"),
        (b"PK\x03\x04" + bytes(100), "no end record"),
        (b"\x08\0\0\0\0\0\0\0{}      ", "does not hold the chunk"),
        (b"", ""),
        (bytes(50), ""),
        (saved(A[4:]) + saved(A[4:]), ""),
    ],
    ids=range(9),
)
def test_items_that_are_something_else(tmp_path: Path, item: bytes, message: str) -> None:
    made = two_ranks()
    made.metadata.storage_data[MetadataIndex("model.a", [4, 0])] = made.item(item, 3)
    ours = safeweights.open(made.write(tmp_path / "c"))
    with pytest.raises(SafetensorError, match=message) as error:
        ours["model.a"].prepare()
    assert isinstance(error.value, FormatError)
    assert "__3_0.distcp" in str(error.value)
    with pytest.raises(FormatError):
        ours["model.a"].numpy()
    assert ours["model.b"].numpy().tolist() == B.tolist()


def test_transformed_items_are_refused(tmp_path: Path) -> None:
    made = two_ranks()
    made.metadata.storage_data[MetadataIndex("model.a", [4, 0])].transform_descriptors = ["zstd"]
    with pytest.raises(FormatError, match="written through `zstd`"):
        safeweights.open(made.write(tmp_path / "c"))["model.a"].numpy()


@pytest.mark.parametrize(
    "tables",
    [b"", b"\x80\x04N.", b"\x80\x04}.", pickle.dumps([1]), b"garbage", pickle.dumps({}) + b"x"],
)
def test_tables_that_are_none(tmp_path: Path, tables: bytes) -> None:
    folder = two_ranks().write(tmp_path / "c", lambda _: tables)
    with pytest.raises(FormatError):
        safeweights.open(folder)


def test_a_foreign_type_is_refused_by_name(tmp_path: Path) -> None:
    wide = torch.zeros(2, dtype=torch.complex128)
    folder = two_ranks().add("wide", wide).write(tmp_path / "c")
    with pytest.raises(UnsupportedError, match="C128=C64 converts it"):
        convert(folder, f"{tmp_path}/out/")
    convert(folder, f"{tmp_path}/out/", dtype="C128=C64")
    assert safeweights.open(tmp_path / "out")["wide"].dtype == "C64"


def test_safetensors_beside_the_tables_come_first(folder: Path) -> None:
    import safeweights.torch

    safeweights.torch.save_file({"x": A}, folder / "model.safetensors")
    opened = safeweights.open(folder)
    assert isinstance(opened, Checkpoint)
    assert list(opened) == ["x"]


_MANY = """
import resource, sys
from safeweights.conversion.converting import convert
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
convert(sys.argv[1], sys.argv[2])
"""


def test_more_ranks_than_files_may_be_open(tmp_path: Path) -> None:
    pytest.importorskip("resource", reason="limits of open files are POSIX's")
    whole = torch.arange(1200.0).reshape(300, 4)
    made = DCP().add("w", whole, rows(whole, 300))
    made.write(tmp_path / "ckpt")
    assert len(list((tmp_path / "ckpt").iterdir())) == 301
    done = subprocess.run(
        [sys.executable, "-c", _MANY, tmp_path / "ckpt", tmp_path / "out.safetensors"],
        capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(safeweights.__file__).parents[1])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert safeweights.torch.load_file(tmp_path / "out.safetensors")["w"].equal(whole)


def test_tables_of_older_versions(tmp_path: Path) -> None:
    """PyTorch 2.1 took the properties of a ShardedTensor, and wrote no version and no place of storage."""
    made = DCP().add("a", A, rows(A, 2)).add("s", torch.tensor(2.5)).value("step", 3)
    for table in made.metadata.state_dict_metadata.values():
        if isinstance(table, TensorStorageMetadata):
            table.properties = OldProperties(table.properties.dtype)
    for field in ("version", "storage_meta"):
        del made.metadata.__dict__[field]
    folder = made.write(tmp_path / "ckpt")
    tables = (folder / ".metadata").read_bytes()
    assert b"torch.distributed._shard.sharded_tensor.metadata" in tables
    assert b"version" not in tables
    assert_equal(safeweights.open(folder), {"a": A, "s": torch.tensor(2.5)})
    assert_equal(safeweights.open(folder), by_torch(folder))
