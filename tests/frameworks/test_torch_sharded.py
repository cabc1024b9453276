"""`load_sharded` in one process, and the arithmetic of placements; tests/ranks has real ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributed.tensor import Shard
from torch.distributed.tensor.placement_types import _StridedShard

import safeweights
import safeweights.torch as ours
from safeweights import Concat, Narrow, SafetensorError
from safeweights.errors import StateDictError, UnsupportedError
from safeweights.frameworks.torch import filling, placements
from safeweights.frameworks.torch.placements import _regions, _Share

if TYPE_CHECKING:
    from pathlib import Path


@st.composite
def divisions(draw: st.DrawFn) -> tuple[tuple[int, ...], list[tuple[Any, int, int]]]:
    """A shape, and (placement, ranks, rank) for each dimension of a mesh."""
    shape = tuple(draw(st.lists(st.integers(0, 13), min_size=1, max_size=2)))
    dims = st.integers(0, len(shape) - 1)
    shards = st.builds(Shard, dims) | st.builds(
        lambda dim, split: _StridedShard(dim, split_factor=split), dims, st.integers(1, 4)
    )
    steps = []
    for _ in range(draw(st.integers(0, 3))):
        ranks = draw(st.integers(1, 4))
        steps.append((draw(shards), ranks, draw(st.integers(0, ranks - 1))))
    return shape, steps


@given(case=divisions())
def test_regions_are_what_torch_splits(case: Any) -> None:
    shape, steps = case
    whole = torch.arange(torch.Size(shape).numel()).reshape(shape)
    expected = whole
    for placement, ranks, rank in steps:
        expected = placement._split_tensor(expected, ranks, with_padding=False)[0][rank]
    shares = tuple(
        _Share(placement.dim, getattr(placement, "split_factor", 1), ranks, rank)
        for placement, ranks, rank in steps
    )
    found = torch.full(expected.shape, -1)
    for starts, lengths, places in _regions(shape, shares):
        source = tuple(slice(at, at + length) for at, length in zip(starts, lengths, strict=True))
        target = tuple(slice(at, at + length) for at, length in zip(places, lengths, strict=True))
        assert (found[target] == -1).all()
        found[target] = whole[source]
    assert torch.equal(found, expected)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 6, bias=False)
        self.head.weight = nn.Parameter(self.first.weight.t().contiguous())
        self.tied = nn.Linear(6, 8)
        self.tied.weight = self.first.weight


def net(device: str) -> Net:
    torch.manual_seed(1)
    with torch.device(device):
        return Net()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    module = net("cpu")
    module.norm.num_batches_tracked += 7
    ours.save_model(module, tmp_path / "x.safetensors")
    return tmp_path / "x.safetensors"


@pytest.mark.parametrize("backend", ["pread", "mmap", "direct", "auto"])
@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_a_module_that_nothing_divides(path: Path, device: str, backend: str) -> None:
    module = net(device)
    for parameter in module.parameters():
        parameter.data.zero_()
    progress: list[int] = []
    report = ours.load_sharded(module, path, backend=backend, progress=progress.append)
    assert report == ([], [])
    assert report.missing_keys == report.unexpected_keys == []
    expected = net("cpu").state_dict() | {"norm.num_batches_tracked": torch.tensor(7)}
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    assert module.tied.weight is module.first.weight
    assert isinstance(module.head.weight, nn.Parameter)
    assert module.head.weight.requires_grad
    assert progress[-1] == sum(t.nbytes for t in safeweights.open(path).values())


@pytest.mark.parametrize("backend", ["pread", "mmap"])
def test_a_cast_is_for_floating_point_tensors_without_memory(path: Path, backend: str) -> None:
    module = net("meta")
    ours.load_sharded(module, path, dtype=torch.bfloat16, backend=backend)
    expected = net("cpu").state_dict()
    assert torch.equal(module.first.weight, expected["first.weight"].bfloat16())
    assert module.norm.running_mean.dtype == torch.bfloat16
    assert module.norm.num_batches_tracked.dtype == torch.int64
    module = net("cpu").double()
    ours.load_sharded(module, path, dtype=torch.bfloat16)
    assert torch.equal(module.first.weight, expected["first.weight"].double())


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_a_tensor_without_elements_has_the_type_that_is_wanted(
    tmp_path: Path, stored: torch.dtype
) -> None:
    ours.save_file({"empty": torch.empty(0, 3, dtype=stored)}, tmp_path / "x")
    with torch.device("meta"):
        module = nn.Module()
        module.register_parameter("empty", nn.Parameter(torch.empty(0, 3)))
    ours.load_sharded(module, tmp_path / "x", dtype=torch.bfloat16)
    assert (module.empty.dtype, module.empty.device.type) == (torch.bfloat16, "cpu")


def test_memory_is_where_it_is_wanted(path: Path) -> None:
    module = net("meta")
    ours.load_sharded(module, path, device="cpu")
    assert module.first.weight.device.type == "cpu"
    ours.load_sharded(module, path, device="meta")
    assert module.first.weight.device.type == "cpu", "it had memory"


def test_values_share_the_mapping_of_a_file_or_own_their_memory(path: Path) -> None:
    for backend, shares in (("mmap", True), ("pread", False)):
        module = net("meta")
        ours.load_sharded(module, path, backend=backend)
        weights = [module.first.weight, module.head.weight, module.norm.weight]
        places = [each.untyped_storage().data_ptr() for each in weights]
        assert all(_is_mapped(place, path) is shares for place in places)
        with torch.no_grad():
            module.first.weight.zero_()
    assert torch.equal(ours.load_file(path)["first.weight"], net("cpu").first.weight)


@pytest.mark.parametrize("backend", ["mmap", "auto", "pread"])
def test_parameters_of_the_same_stored_values_are_changed_one_by_one(
    path: Path, backend: str
) -> None:
    with torch.device("meta"):
        module = nn.Module()
        module.register_parameter("whole", nn.Parameter(torch.empty(8, 6)))
        module.register_parameter("twin", nn.Parameter(torch.empty(8, 6)))
        module.register_parameter("rows", nn.Parameter(torch.empty(3, 6)))
    weight = net("cpu").first.weight
    plan = {"whole": "first.weight", "twin": "first.weight", "rows": Narrow("first.weight", 2, 5)}
    ours.load_sharded(module, path, plan=plan, subset=True, backend=backend)
    with torch.no_grad():
        module.whole.zero_()
    assert torch.equal(module.twin, weight)
    assert torch.equal(module.rows, weight[2:5])


@pytest.mark.parametrize("kind", ["opened", "opened, by a plan", "bytes", "memory"])
def test_modules_share_no_memory_with_what_the_caller_has(path: Path, kind: str) -> None:
    """Nor with each other: a training step of one must not change another."""
    data = bytearray(path.read_bytes())
    before = bytes(data)
    opened = safeweights.open(path, backend="mmap")
    plan = {"whole": "first.weight", "rows": Narrow("first.weight", 2, 5)}
    if kind != "opened, by a plan":
        plan = {"whole": "first.weight", "rows": "head.weight"}
    target = {"bytes": data, "memory": memoryview(data)}.get(kind, opened)
    modules = []
    for _ in range(2):
        with torch.device("meta"):
            module = nn.Module()
            module.register_parameter("whole", nn.Parameter(torch.empty(8, 6)))
            rows = (3, 6) if "plan" in kind else (6, 8)
            module.register_parameter("rows", nn.Parameter(torch.empty(rows)))
        ours.load_sharded(module, target, plan=plan, subset=True)
        modules.append(module)
    first, second = modules
    expected = {name: tensor.clone() for name, tensor in second.state_dict().items()}
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in second.state_dict().items())
    assert data == before
    assert torch.equal(opened["first.weight"].torch(), net("cpu").first.weight)
    data[:] = bytes(len(data))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in second.state_dict().items())


def test_load_into_a_module_without_memory_shares_none_with_an_opened_checkpoint(
    path: Path,
) -> None:
    opened = safeweights.open(path, backend="mmap")
    first, second = net("meta"), net("meta")
    for module in (first, second):
        ours.load_into(module, opened)
    with torch.no_grad():
        first.first.weight.zero_()
    assert torch.equal(second.first.weight, net("cpu").first.weight)


def _is_mapped(address: int, path: Path) -> bool:
    with open("/proc/self/maps") as maps:
        for line in maps:
            begin, _, end = line.partition(" ")[0].partition("-")
            if int(begin, 16) <= address < int(end, 16):
                return line.rstrip().endswith(path.name)
    return False


def test_large_tensors_are_read_straight_into_their_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filling, "_ARENA", 1)
    values = {"a": torch.arange(20.0), "b": torch.arange(20.0).bfloat16(), "c": torch.arange(4)}
    ours.save_file(values, tmp_path / "x")
    targets = {name: torch.zeros_like(tensor) for name, tensor in values.items()}
    targets["b"] = torch.zeros(20)
    straight: list[str] = []
    original = filling._Straight.__init__

    def noting(self: Any, batch: Any, *arguments: Any) -> None:
        straight.append(batch.tensors[0][0])
        original(self, batch, *arguments)

    monkeypatch.setattr(filling._Straight, "__init__", noting)
    assert ours.load_into(targets, tmp_path / "x") == (set(), [])
    assert len(straight) == 2
    assert all(torch.equal(targets[n], values[n].to(targets[n].dtype)) for n in values)


def test_all_is_prepared_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filling, "_ARENA", 1)
    stored = {"a": torch.arange(600.0).reshape(300, 2), "b": torch.arange(4.0), "c": torch.ones(3)}
    ours.save_file(stored, tmp_path / "x")
    steps: list[str] = []

    def note(owner: type, name: str, step: str) -> None:
        original = getattr(owner, name)

        def noting(*arguments: Any, **options: Any) -> Any:
            steps.append(step)
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, noting)

    with safeweights.open(tmp_path / "x", backend="pread") as checkpoint:
        note(filling._Straight, "__init__", "prepare")
        note(filling._Columns, "__init__", "prepare")
        note(filling._Straight, "fill", "read")
        note(filling._Columns, "fill", "read")
        targets = {"a": torch.zeros(300, 1), "b": torch.zeros(4), "c": torch.zeros(3)}
        filling.fill(
            filling.Part(checkpoint[name], (0,) * target.dim(), target)
            for name, target in targets.items()
        )
    assert steps == ["prepare"] * 3 + ["read"] * 3
    assert torch.equal(targets["a"], stored["a"][:, :1])
    assert torch.equal(targets["b"], stored["b"])
    assert torch.equal(targets["c"], stored["c"])


def test_a_plan(path: Path) -> None:
    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.both = nn.Parameter(torch.empty(10, 6))
            self.bias = nn.Parameter(torch.empty(8))

    with torch.device("meta"):
        module = Fused()
    plan = {
        "both": Concat(["first.weight", Narrow("head.weight", 0, 2, dim=1)]),
        "bias": "first.bias",
    }
    with pytest.raises(SafetensorError, match="cannot be joined"):
        ours.load_sharded(module, path, plan=plan)
    plan["both"] = Concat(["first.weight", Narrow("first.weight", 2, 4)])
    report = ours.load_sharded(module, path, plan=plan, subset=True)
    assert "head.weight" in report.unexpected_keys
    weight = net("cpu").first.weight
    assert torch.equal(module.both, torch.cat([weight, weight[2:4]]))


@pytest.mark.parametrize("threads", [1, 2])
def test_an_error_of_the_caller_is_raised_as_it_is(
    path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    monkeypatch.setattr(filling, "reader_count", lambda *_: threads)
    stored = safeweights.open(path, backend="pread")["first.weight"]
    parts = [filling.Part(stored, (row, 0), torch.empty(1, 6)) for row in range(3)]
    calls: list[Any] = []

    def done(part: filling.Part, values: torch.Tensor) -> None:
        calls.append((part, values))
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        filling.fill(parts, done)
    assert len(calls) == 1


def test_an_error_leaves_the_module_as_it_was(path: Path) -> None:
    module = net("meta")
    module.more = nn.Linear(2, 2, device="meta")
    with pytest.raises(StateDictError, match="Missing key"):
        ours.load_sharded(module, path)
    report = ours.load_sharded(module, path, strict=False)
    assert report.missing_keys == ["more.weight", "more.bias"]
    assert module.more.weight.is_meta
    module = net("meta")
    module.first.bias = nn.Parameter(torch.empty(9, device="meta"))
    with pytest.raises(StateDictError, match="size mismatch"):
        ours.load_sharded(module, path)
    assert all(each.is_meta for each in module.parameters())


def test_bytes_that_are_gone_leave_tensors_on_meta(path: Path) -> None:
    """The file is cut after it was opened, so that only reading tells."""
    checkpoint = safeweights.open(path, backend="pread")
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size - 8)
    module = net("meta")
    with pytest.raises(SafetensorError, match="truncated"):
        ours.load_sharded(module, checkpoint)
    assert all(each.is_meta for each in module.parameters())


class Mesh:
    """Stands for a mesh of one dimension."""

    device_type = "cpu"

    def __init__(self, rank: int | None, ranks: int) -> None:
        self._rank, self._ranks = rank, ranks

    def get_coordinate(self) -> list[int] | None:
        return None if self._rank is None else [self._rank]

    def size(self, _: int) -> int:
        return self._ranks


class Divided:
    """Stands for a DTensor."""

    def __init__(self, mesh: Mesh, placement: Any, local: tuple[int, ...]) -> None:
        self.shape = (6, 2)
        self.device_mesh = mesh
        self.placements = (placement,)
        self._local_tensor = torch.empty(local)


def test_what_a_rank_has_must_be_known() -> None:
    def regions(placement: Any, local: tuple[int, ...], rank: int | None = 1) -> Any:
        return placements.regions_of("w", Divided(Mesh(rank, 4), placement, local))  # type: ignore[arg-type]

    assert regions(Shard(0), (2, 2)) == [((2, 0), (2, 2), (0, 0))]
    assert regions(Shard(-2), (2, 2)) == [((2, 0), (2, 2), (0, 0))]
    assert regions(Shard(0), (0, 2), 3) == regions(Shard(0), (0,), 3) == []
    assert regions(Shard(0), (0,), None) == []
    with pytest.raises(UnsupportedError, match="its placements give this rank"):
        regions(Shard(0), (3, 2))
    with pytest.raises(UnsupportedError, match="its placements give this rank"):
        regions(Shard(1), (2, 2))


def test_a_plain_tensor_has_no_mesh_and_is_its_own_part() -> None:
    assert placements.mesh_of(torch.zeros(1)) is None
    assert placements.local_of(parameter := nn.Parameter(torch.zeros(1))) is parameter
