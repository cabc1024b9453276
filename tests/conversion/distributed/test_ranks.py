"""Files of single ranks: DTensor and ShardedTensor joined, for every layout; what is missing is named."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import call, integer, ints, many, torch_zip
from folders import assert_equal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rank_files import as_rank, divided, save_ranks
from torch.distributed._shard.sharded_tensor import Shard as LocalShard
from torch.distributed._shard.sharded_tensor import (
    ShardedTensor,
    ShardedTensorMetadata,
    TensorProperties,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard

import safeweights
from safeweights.conversion import convert, scan
from safeweights.errors import FormatError, UnsupportedError

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:FutureWarning")

A = torch.arange(35.0).reshape(7, 5)
EXPECTED = {
    "rows": A, "columns": A.to(torch.bfloat16), "both": A, "strided": A, "copies": A, "hybrid": A,
    "plain": torch.arange(3), "scalar": torch.tensor(2.5), "empty": A[:0],
}  # fmt: skip


def state(mesh: DeviceMesh) -> dict[str, Any]:
    return {
        "rows": divided(A, mesh, Shard(0), Shard(0)),
        "columns": divided(EXPECTED["columns"], mesh, Replicate(), Shard(1)),
        "both": divided(A, mesh, Shard(1), Shard(0)),
        "strided": divided(A, mesh, _StridedShard(0, split_factor=2), Shard(0)),
        "copies": divided(A, mesh, Replicate(), Replicate()),
        "hybrid": divided(A, mesh, Replicate(), Shard(0)),
        "empty": divided(A[:0], mesh, Shard(0), Shard(1)),
        "scalar": divided(torch.tensor(2.5), mesh, Replicate(), Replicate()),
        "plain": torch.arange(3),
        "step": 7,
    }


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_ranks(tmp_path_factory.mktemp("ranks") / "all", (2, 2), state)


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "ranks"))


def test_four_ranks(folder: Path) -> None:
    ours = safeweights.open(folder)
    assert ours.format == "torch-ranks"
    assert_equal(ours, EXPECTED)
    assert [(other.name, other.value) for other in ours.others] == [("step", 7)]


@given(st.integers(0, 1 << 30))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
def test_every_layout(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    shape = tuple(rng.randrange(1, 9) for _ in range(rng.randrange(1, 4)))
    values = torch.randint(0, 1000, shape)
    mesh = tuple(rng.randrange(1, 4) for _ in range(rng.randrange(1, 3)))
    axes = [rng.choice([None, *range(len(shape))]) for _ in mesh]
    placements = [Replicate() if axis is None else Shard(axis) for axis in axes]
    if len(mesh) == 2 and axes[0] == axes[1] is not None and rng.random() < 0.7:
        placements[0] = _StridedShard(
            axes[0], split_factor=mesh[1]
        )  # as FSDP2 with tensor parallelism
    folder = save_ranks(
        tmp_path / str(seed), mesh, lambda made: {"w": divided(values, made, *placements)}
    )
    if sum(mesh) == len(mesh):  # one rank has all of it, and is a file like any other
        (folder / "rank_0.pt").rename(folder / "only.pt")
    assert_equal(safeweights.open(folder), {"w": values})


def sharded(folder: Path) -> Path:
    """ShardedTensors as FSDP 1 saves them: two shards by rows, one of each rank."""
    folder.mkdir()
    for rank in range(2):
        with as_rank(rank, 2):
            boxes = [([0, 0], [4, 5]), ([4, 0], [3, 5])]
            places = [f"rank:{each}/cpu" for each in range(2)]
            local = LocalShard.from_tensor_and_offsets(
                A[boxes[rank][0][0] :][: boxes[rank][1][0]].clone(), boxes[rank][0], rank
            )
            listed = [
                type(local.metadata)(*box, place) for box, place in zip(boxes, places, strict=True)
            ]
            metadata = ShardedTensorMetadata(listed, A.shape, TensorProperties(A.dtype))
            made = ShardedTensor._init_from_local_shards_and_global_metadata([local], metadata)
            torch.save({"w": made, "n": torch.ones(2)}, folder / f"rank_{rank}.bin")
    return folder


def test_sharded_tensors(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "s")
    assert_equal(safeweights.open(folder), {"w": A, "n": torch.ones(2)})
    (folder / "rank_1.bin").rename(tmp_path / "rank_1.bin")
    with pytest.raises(UnsupportedError, match="this file has what rank 0 has of it"):
        safeweights.open(folder / "rank_0.bin")["w"].numpy()
    with pytest.raises(FormatError, match="rank 1 has it"):
        safeweights.open(folder)
    convert([folder / "rank_0.bin", tmp_path / "rank_1.bin"], tmp_path / "out.safetensors")
    assert_equal(safeweights.open(tmp_path / "out.safetensors"), {"w": A, "n": torch.ones(2)})


def test_one_model(folder: Path, tmp_path: Path, guard: Any) -> None:
    convert(folder, tmp_path / "warm.safetensors")
    with guard.armed() as seen:
        done = convert(folder, f"{tmp_path}/new/", dtype="F32=BF16", only=("rows", "strided"))
    assert set(seen) <= {"shutil.rmtree", "os.remove"}
    assert [source.format for source in done.sources] == ["torch-ranks", "part", "part", "part"]
    assert_equal(
        safeweights.open(tmp_path / "new"), {"rows": A.bfloat16(), "strided": A.bfloat16()}
    )
    files = sorted(folder.iterdir())
    convert(files, tmp_path / "again.safetensors")
    again = (tmp_path / "again.safetensors").read_bytes()
    assert again == (tmp_path / "warm.safetensors").read_bytes()


def test_one_file_says_what_it_is_a_part_of(folder: Path, tmp_path: Path) -> None:
    alone = safeweights.open(folder / "rank_1.pt")
    assert set(alone.refused) == set(EXPECTED) - {"plain"}
    assert alone["rows"].shape == (7, 5)
    assert alone["plain"].numpy().tolist() == [0, 1, 2]
    with pytest.raises(
        UnsupportedError, match="what rank 1 has of it; give the folder with the files of all ranks"
    ):
        convert(folder / "rank_1.pt", tmp_path / "out.safetensors")


@pytest.mark.parametrize("rank", range(4))
def test_a_missing_rank_is_named(folder: Path, rank: int) -> None:
    (folder / f"rank_{rank}.pt").unlink()
    with pytest.raises(
        FormatError, match=f"`rows` is incomplete: .*: rank {rank} has it, whose file"
    ) as error:
        safeweights.open(folder)
    assert error.value.rule == "missing-shard"


def test_replicas_may_be_missing(tmp_path: Path) -> None:
    folder = save_ranks(
        tmp_path / "r", (2, 2), lambda mesh: {"w": divided(A, mesh, Replicate(), Shard(0))}
    )
    for rank in (0, 3):  # 1 and 2 have a replica of what they have
        (folder / f"rank_{rank}.pt").unlink()
    assert_equal(safeweights.open(folder), {"w": A})


def test_a_rank_twice_is_refused(folder: Path) -> None:
    shutil.copy(folder / "rank_0.pt", folder / "rank_9.pt")
    with pytest.raises(FormatError, match="is of rank 0 here and in"):
        safeweights.open(folder)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda m: {"w": divided(A.double(), m, Shard(0))}, "another type here .*: F64 and F32"),
        (lambda m: {"w": divided(A[:, :4].clone(), m, Shard(0))}, r"shape .*: \[7, 4\] and \[7, 5\]"),
        (lambda m: {"w": divided(A, m, Shard(1))}, "another layout here .*; the files are not of one save"),
        (lambda m: {"w": A}, "is whole in one file and a part in another"),
        (lambda m: {"w": divided(A, m, Shard(0)), "opt": {"step": 4}}, "`opt.step` is 3 in .* and 4 here"),
    ],
)  # fmt: skip
def test_files_of_different_saves_are_refused(tmp_path: Path, other: Any, message: str) -> None:
    folder = save_ranks(
        tmp_path / "a", (2,), lambda m: {"w": divided(A, m, Shard(0)), "opt": {"step": 3}}
    )
    mixed = save_ranks(tmp_path / "b", (2,), other)
    shutil.copy(mixed / "rank_1.pt", folder)
    with pytest.raises(FormatError, match=message) as error:
        safeweights.open(folder)
    assert error.value.rule == "rank-files"


def test_plain_tensors_that_differ_are_refused_by_name(tmp_path: Path) -> None:
    def differ(mesh: DeviceMesh) -> dict[str, Any]:
        rank = mesh.get_rank()
        return {
            "w": divided(A, mesh, Shard(0)),
            "mean": torch.full((3,), float(rank)),
            "rng": torch.tensor([rank]),
        }

    ours = safeweights.open(save_ranks(tmp_path / "a", (2,), differ))
    assert_equal({"w": ours["w"]}, {"w": A})
    assert set(ours.refused) == {"mean", "rng"}
    assert "differs between" in ours.refused["mean"]


def test_pending_sums_are_refused(tmp_path: Path) -> None:
    def pending(mesh: DeviceMesh) -> dict[str, Any]:
        return {
            "p": DTensor.from_local(torch.ones(2), mesh, [Partial()]),
            "w": divided(A, mesh, Shard(0)),
        }

    ours = safeweights.open(save_ranks(tmp_path / "a", (2,), pending))
    assert "Partial" in ours.refused["p"]
    assert_equal({"w": ours["w"]}, {"w": A})


# ---- pickles that other versions wrote, or nobody


def edited(folder: Path, *changes: tuple[bytes, bytes]) -> None:
    """Replace bytes in the pickle of every file."""
    import zipfile

    for path in folder.iterdir():
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        for name, data in members.items():
            if name.endswith("data.pkl"):
                for old, new in changes:
                    assert old in data, old
                    data = data.replace(old, new)
                members[name] = data
        from builders import archive as make

        path.write_bytes(make(members))


def test_the_modules_of_torch_2_2(folder: Path) -> None:
    now, then = b"torch.distributed.tensor", b"torch.distributed._tensor"
    edited(
        folder,
        (now + b"\nDTensor", then + b".api\nDTensor"),
        (now + b"._dtensor_spec\nDTensorSpec", then + b".placement_types\nDTensorSpec"),
        (now + b".placement_types\n", then + b".placement_types\n"),
    )
    assert_equal(safeweights.open(folder), EXPECTED)


def test_the_mesh_of_torch_2_2_is_a_tensor(folder: Path) -> None:
    edited(
        folder,
        (b"X\x07\x00\x00\x00_layout", b"X\x07\x00\x00\x00_LAYOUT"),
        (b"X\x09\x00\x00\x00_rank_map", b"X\x04\x00\x00\x00mesh"),
        (b"_flatten_rank_map", b"_flatten_unknown_"),
    )
    with pytest.raises(FormatError, match="the mesh of a DTensor is not as PyTorch writes it"):
        safeweights.open(folder)  # the tensor of ranks that stands there now has one dimension


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"X\x03\x00\x00\x00dim", b"X\x03\x00\x00\x00dUm", "a placement of a DTensor is not"),
        (b"placement_types\nShard", b"placement_types\nOther", "a placement of a DTensor is not"),
        (b"X\x05\x00\x00\x00shape", b"X\x05\x00\x00\x00shapE", "the mesh of a DTensor is not"),
        (b"_coordinate_on_dim", b"_coordinate_on_diM", "the mesh of a DTensor is not"),
        (b"split_factorq", b"split_Factorq", "a placement of a DTensor is not"),
    ],
)
def test_layouts_that_contradict_themselves(
    folder: Path, old: bytes, new: bytes, message: str | None
) -> None:
    edited(folder, (old, new))
    with pytest.raises(FormatError, match=message):
        safeweights.open(folder)


def test_other_classes_of_distributed_tensors_stay_unknown() -> None:
    kind = b"ctorch.foo\nBar\n"
    arguments = many(kind, b"ctorch\nfloat32\n", ints(2), ints(1), *[integer(0)] * 4)
    function = b"ctorch._utils\n_rebuild_wrapper_subclass\n"
    data = torch_zip(
        call(b"ctorch._tensor\n_rebuild_from_type_v2\n", function, kind, arguments, b"}")
    )
    ours = safeweights.open(data)
    assert list(ours) == []


# ---- what a scan says


def test_rank_files_are_known_to_hold_data_only(folder: Path, tmp_path: Path) -> None:
    for path in [*folder.iterdir(), *sharded(tmp_path / "s").iterdir()]:
        report = scan(path)
        assert [str(finding) for finding in report.findings if finding.grade] == []
        assert report.unread == []
