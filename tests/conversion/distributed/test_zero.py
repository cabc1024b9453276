"""DeepSpeed ZeRO 1, 2 and 3: the F32 weights of all partitions; what is missing or mixed is named."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from folders import assert_equal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zero_folders import some_groups, write_zero

import safeweights
from safeweights.conversion import convert
from safeweights.errors import FormatError

GROUPS = some_groups()
TRAINED = {name: tensor for group in GROUPS for name, tensor in group.items()}
BUFFERS = {"buf": torch.arange(4), "scale": torch.tensor([1.5, 2.5], dtype=torch.bfloat16)}
FROZEN = {"frozen.weight": torch.arange(15.0).reshape(5, 3)}
SHARED = {"head.weight": "e.weight"}
EXPECTED = {
    **TRAINED, "buf": BUFFERS["buf"], "scale": BUFFERS["scale"].float(),
    "frozen.weight": FROZEN["frozen.weight"].bfloat16(), "head.weight": TRAINED["e.weight"],
}  # fmt: skip


def write(folder: Path, stage: int, **options: Any) -> Path:
    given = {"buffers": BUFFERS, "frozen": FROZEN, "shared": SHARED, **options}
    return write_zero(folder, GROUPS, stage=stage, **given)


@pytest.fixture(params=[1, 2, 3])
def stage(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_every_stage_and_size(tmp_path: Path, stage: int, world: int) -> None:
    ours = safeweights.open(write(tmp_path / "z", stage, world=world))
    assert ours.format == f"deepspeed-zero{stage}"
    assert_equal(ours, EXPECTED)
    assert ours.aliases == SHARED
    listed = {other.name: other.reason for other in ours.others}
    assert listed["optimizer"].startswith("the state of the optimizer")
    assert [name for name, reason in listed.items() if reason == "a placeholder"] == []


@given(st.integers(0, 1 << 30))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15)
def test_any_parameters(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    groups = [
        {f"g{group}.p{n}": torch.randn([rng.randrange(1, 6) for _ in range(rng.randrange(3))])
         for n in range(rng.randrange(1, 5))}
        for group in range(rng.randrange(1, 4))
    ]  # fmt: skip
    folder = write_zero(
        tmp_path / str(seed), groups, stage=rng.choice([1, 2, 3]), world=rng.randrange(1, 7)
    )
    assert_equal(safeweights.open(folder), {n: t for group in groups for n, t in group.items()})


def test_one_model(tmp_path: Path, stage: int, guard: Any) -> None:
    folder = write(tmp_path / "run" / "global_step10", stage)
    (tmp_path / "run" / "latest").write_text("global_step10\n")
    (tmp_path / "run" / "zero_to_fp32.py").write_text("raise SystemExit('executed')")
    convert(folder, tmp_path / "warm.safetensors")
    with guard.armed() as seen:
        done = convert(tmp_path / "run", f"{tmp_path}/new/", dtype="BF16", skip=("frozen.*",))
    assert set(seen) <= {"shutil.rmtree", "os.remove"}
    assert done.ties == SHARED
    ours = safeweights.open(tmp_path / "new")
    wanted = {n: t.bfloat16() if t.is_floating_point() else t for n, t in EXPECTED.items()}
    assert_equal(
        ours, {n: t for n, t in wanted.items() if n not in ("head.weight", "frozen.weight")}
    )
    assert (ours.metadata or {})["head.weight"] == "e.weight"


def test_the_optimizer(tmp_path: Path, stage: int) -> None:
    folder = write(tmp_path / "z", stage)
    convert(folder, tmp_path / "out.safetensors", keep=("optimizer",), only=("optimizer.*",))
    ours = safeweights.open(tmp_path / "out.safetensors")
    assert_equal(
        ours, {f"optimizer.exp_avg.{name}": tensor * 2 for name, tensor in TRAINED.items()}
    )


def test_a_placeholder_is_no_tensor(tmp_path: Path) -> None:
    folder = write(tmp_path / "z", 3)
    for path in folder.glob("*model_states.pt"):
        tree = torch.load(path, weights_only=False)
        tree["module"]["untrained"] = torch.zeros(0, dtype=torch.bfloat16)
        torch.save(tree, path)
    ours = safeweights.open(folder)
    assert_equal(ours, EXPECTED)
    assert [other.name for other in ours.others if other.reason == "a placeholder"] == ["untrained"]


def test_a_weight_that_no_optimizer_has_is_kept(tmp_path: Path) -> None:
    folder = write(tmp_path / "z", 2)
    (path,) = folder.glob("*model_states.pt")
    tree = torch.load(path, weights_only=False)
    tree["module"]["extra"] = torch.ones(3)
    torch.save(tree, path)
    assert_equal(safeweights.open(folder), {**EXPECTED, "extra": torch.ones(3)})


def test_parameters_with_padding_of_their_own(tmp_path: Path) -> None:
    folder = write_zero(tmp_path / "z", [{"a": torch.arange(3.0), "b": torch.arange(5.0)}], stage=2)
    vector = torch.tensor([0.0, 1, 2, 99, 0, 1, 2, 3, 4, 99, 99, 99])
    for rank, path in enumerate(sorted(folder.glob("*optim_states.pt"))):
        tree = torch.load(path, weights_only=False)
        tree["optimizer_state_dict"]["single_partition_of_fp32_groups"] = [
            vector.chunk(2)[rank].clone()
        ]
        tree["optimizer_state_dict"]["param_alignment_paddings"] = [[1, 3]]
        torch.save(tree, path)
    assert_equal(safeweights.open(folder), {"a": torch.arange(3.0), "b": torch.arange(5.0)})


# ---- what is refused


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_missing_rank_is_named(tmp_path: Path, stage: int, rank: int) -> None:
    folder = write(tmp_path / "z", stage, world=3)
    (folder / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").unlink()
    with pytest.raises(
        FormatError, match=f"optimizer states of rank {rank} are missing: 3 ranks"
    ) as error:
        safeweights.open(folder)
    assert error.value.rule == "missing-shard"


def test_missing_model_states_are_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "z", 3)
    (folder / "zero_pp_rank_1_mp_rank_00_model_states.pt").unlink()
    with pytest.raises(FormatError, match="model states of rank 1 are missing"):
        safeweights.open(folder)
    (folder / "zero_pp_rank_0_mp_rank_00_model_states.pt").unlink()
    with pytest.raises(FormatError, match=r"no file `.*_model_states"):
        safeweights.open(folder)


@pytest.mark.parametrize(
    ("options", "rule", "message"),
    [
        ({"stage": 2}, "zero-mixed", "its stage is 2, but that of .* is 1"),
        ({"stage": 1, "world": 3}, "zero-mixed", r"its number of partitions is \[3, 3\]"),
        ({"stage": 1, "groups": [GROUPS[1], GROUPS[0]]}, "zero-mixed", "its partitions have"),
    ],
)
def test_partitions_of_different_saves_are_refused(
    tmp_path: Path, options: Any, rule: str, message: str
) -> None:
    folder = write(tmp_path / "z", 1)
    groups = options.pop("groups", GROUPS)
    other = write_zero(tmp_path / "other", groups, **options)
    name = "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"
    shutil.copy(other / name, folder / name)
    with pytest.raises(FormatError, match=message) as error:
        safeweights.open(folder)
    assert error.value.rule == rule


def test_model_states_of_different_steps_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "z", 3)
    other = write(tmp_path / "other", 3, steps=11)
    name = "zero_pp_rank_1_mp_rank_00_model_states.pt"
    shutil.copy(other / name, folder / name)
    with pytest.raises(FormatError, match=r"its number of steps is 11, but that of .* is 10"):
        safeweights.open(folder)


def test_more_ranks_than_saved_are_refused(tmp_path: Path, stage: int) -> None:
    folder = write(tmp_path / "z", stage)
    name = "bf16_zero_pp_rank_{}_mp_rank_00_optim_states.pt"
    shutil.copy(folder / name.format(1), folder / name.format(2))
    with pytest.raises(FormatError, match="of 3 ranks, but 2 saved"):
        safeweights.open(folder)


def change(folder: Path, pattern: str, edit: Any) -> None:
    for path in folder.glob(pattern):
        tree = torch.load(path, weights_only=False)
        edit(tree)
        torch.save(tree, path)


def _larger(tree: Any) -> None:
    tree["param_shapes"][0]["a.weight"] = torch.Size([70, 5])


def _smaller(tree: Any) -> None:
    tree["param_shapes"][0]["a.weight"] = torch.Size([1, 5])


def _no_size(tree: Any) -> None:
    tree["param_shapes"][0]["a.weight"] = (-7, -5)


def _no_group(tree: Any) -> None:
    tree["param_shapes"].pop()


@pytest.mark.parametrize(
    ("edit", "message"),
    [(_larger, "ends at"), (_smaller, "account for"), (_no_size, "a name or shape of a parameter is none"),
     (lambda tree: tree.pop("param_shapes"), "no `param_shapes`")],
)  # fmt: skip
def test_shapes_that_do_not_fit_are_refused(
    tmp_path: Path, stage: int, edit: Any, message: str
) -> None:
    folder = write(tmp_path / "z", stage)
    change(folder, "*model_states.pt", edit)
    with pytest.raises(FormatError, match=message):
        safeweights.open(folder)


def test_groups_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "z", 2)
    change(folder, "*model_states.pt", _no_group)
    with pytest.raises(FormatError, match="2 partitions for 1 groups"):
        safeweights.open(folder)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"zero_stage": 7}, "the ZeRO stage 7 is none"),
        ({"partition_count": None}, "number of partitions is none"),
        ({"single_partition_of_fp32_groups": None}, "no partitions"),
        ({"single_partition_of_fp32_groups": [1, 2]}, "is no tensor"),
        ({"single_partition_of_fp32_groups": [torch.ones(2, 2)] * 2}, "not flat"),
    ],
)
def test_states_that_are_none_are_refused(tmp_path: Path, edit: Any, message: str) -> None:
    folder = write(tmp_path / "z", 1)
    change(folder, "*optim_states.pt", lambda tree: tree["optimizer_state_dict"].update(edit))
    with pytest.raises(FormatError, match=message):
        safeweights.open(folder)


def test_model_parallel_ranks_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "z", 1)
    shutil.copy(folder / "mp_rank_00_model_states.pt", folder / "mp_rank_01_model_states.pt")
    with pytest.raises(FormatError, match=r"ds_to_universal.py") as error:
        safeweights.open(folder)
    assert error.value.rule == "zero-parallel"


@pytest.mark.parametrize("tag", ["", "..", "/etc", "missing", "a/b", "\0", "x" * 1000])
def test_a_tag_that_names_no_folder_leads_nowhere(tmp_path: Path, tag: str) -> None:
    (tmp_path / "latest").write_text(tag)
    with pytest.raises(FormatError, match="the folder has no"):
        safeweights.open(tmp_path)


def test_deepspeed_reads_the_same(tmp_path: Path, stage: int) -> None:
    """DeepSpeed's own tool, where it is installed."""
    tool = pytest.importorskip("deepspeed.utils.zero_to_fp32", reason="deepspeed is not installed")
    write(tmp_path / "run" / "tag", stage, world=3)
    (tmp_path / "run" / "latest").write_text("tag")
    theirs = tool.get_fp32_state_dict_from_zero_checkpoint(str(tmp_path / "run"))
    assert_equal(safeweights.open(tmp_path / "run"), dict(theirs))
