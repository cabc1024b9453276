"""Loading onto and saving from a real accelerator. Skipped where there is none.

`test_torch_staging` covers the same code with a stand-in whose copies are late; here is what a
stand-in cannot show: streams, device memory, and the framework's own errors.
"""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import safeweights
import safeweights.torch
from safeweights import Concat, Narrow, trust
from safeweights.distributed import StorageReader, StorageWriter
from safeweights.frameworks.torch.adapter import TYPES
from safeweights.frameworks.torch.staging import SLAB
from safeweights.trust.access.identities import generate_identity

if not (hasattr(torch, "accelerator") and torch.accelerator.is_available()):
    pytest.skip("needs an accelerator (a GPU) that PyTorch can use", allow_module_level=True)

DEVICE = torch.device(torch.accelerator.current_accelerator().type, 0)


def bytes_of(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()


def random_tensor(code: str, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    dtype = TYPES[code]
    count = int(np.prod(shape)) * dtype.itemsize
    data = np.random.default_rng(seed).integers(0, 2 if code == "BOOL" else 256, count, np.uint8)
    return torch.from_numpy(data).view(dtype).reshape(shape)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Every element type, sizes on both sides of a slab, empty and 0-d tensors: a path, and its tensors."""
    tensors = {f"type.{code}": random_tensor(code, (3, 8)) for code in TYPES if code != "F4"}
    tensors |= {
        "large": random_tensor("BF16", (3 * SLAB // 4 + 13,), 1),
        "larger": random_tensor("U8", (2 * SLAB + 1,), 2),
        "matrix": random_tensor("F32", (1000, 257), 3),
        "empty": torch.zeros(0, 5),
        "scalar": torch.tensor(2.5),
    }
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    safeweights.torch.save_file(tensors, path)
    return path, tensors


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].device == DEVICE, name
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        assert bytes_of(found[name]) == bytes_of(tensor), name


@pytest.mark.parametrize("backend", [None, "mmap", "pread"])
def test_load_file_brings_every_byte(model, backend):
    path, tensors = model
    same(safeweights.torch.load_file(path, device=DEVICE, backend=backend), tensors)


def test_load_of_bytes_brings_every_byte(model):
    path, tensors = model
    found = safeweights.torch.load(path.read_bytes(), device=DEVICE)
    same(found, tensors)


def test_stream_brings_every_byte_and_each_tensor_once(model):
    path, tensors = model
    with safeweights.stream(path, "pt", device=DEVICE) as arriving:
        pairs = list(arriving)
    assert len(pairs) == len(tensors)
    same(dict(pairs), tensors)


def test_tensors_and_slices_of_an_open_file(model):
    path, tensors = model
    with safeweights.safe_open(path, "pt", device=str(DEVICE)) as file:
        same({name: file.get_tensor(name) for name in file.keys()}, tensors)  # noqa: SIM118
        part = file.get_slice("matrix")
        for index in ((slice(10, 20), slice(None)), (slice(None), slice(0, 257, 3)), (7,)):
            found = part[index]
            assert found.device == DEVICE
            assert bytes_of(found) == bytes_of(tensors["matrix"][index])


def test_a_tensor_is_whole_on_whatever_stream_it_is_used(model):
    path, tensors = model
    stream = torch.Stream(DEVICE)
    expected = tensors["large"].view(torch.uint8).to(torch.int64).sum().item()
    for _ in range(5):
        with stream:
            found = safeweights.torch.load_file(path, device=DEVICE)
            total = found["large"].view(torch.uint8).to(torch.int64).sum()
        stream.synchronize()
        assert total.item() == expected


def test_memory_freed_by_queued_work_is_not_overwritten(model):
    """The caching allocator may hand out memory that work still queued on the caller's stream reads."""
    path, tensors = model
    size = tensors["larger"].numel()
    for _ in range(5):
        old = torch.full((size,), 7, dtype=torch.uint8, device=DEVICE)
        for _ in range(50):
            total = old.to(torch.int64).sum()
        del old
        found = safeweights.torch.load_file(path, device=DEVICE)
        assert total.item() == 7 * size
        assert bytes_of(found["larger"]) == bytes_of(tensors["larger"])


def test_many_threads_load_at_once(model):
    path, tensors = model
    failures = []

    def load() -> None:
        try:
            same(safeweights.torch.load_file(path, device=DEVICE), tensors)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=load) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_the_current_device_and_stream_are_left_as_they_were(model):
    before = torch.accelerator.current_device_index(), torch.accelerator.current_stream()
    safeweights.torch.load_file(model[0], device=DEVICE)
    assert (torch.accelerator.current_device_index(), torch.accelerator.current_stream()) == before


def test_a_file_saved_from_the_device_equals_one_saved_from_the_host(model, tmp_path):
    path, _ = model
    loaded = safeweights.torch.load_file(path, device=DEVICE)
    safeweights.torch.save_file(loaded, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    assert safeweights.torch.save(loaded) == path.read_bytes()


def test_queued_work_is_in_what_is_saved(tmp_path):
    tensor = torch.zeros(4 << 20, device=DEVICE)
    for _ in range(200):
        tensor += 1
    safeweights.torch.save_file({"counted": tensor}, tmp_path / "x.safetensors")
    found = safeweights.torch.load_file(tmp_path / "x.safetensors")["counted"]
    assert found.min() == found.max() == 200


def test_a_model_is_loaded_in_place(tmp_path):
    source = torch.nn.Linear(300, 200)
    safeweights.torch.save_model(source, tmp_path / "linear.safetensors")
    target = torch.nn.Linear(300, 200).to(DEVICE)
    address = target.weight.data_ptr()
    safeweights.torch.load_model(target, tmp_path / "linear.safetensors", device=str(DEVICE))
    assert target.weight.data_ptr() == address
    assert bytes_of(target.weight) == bytes_of(source.weight)


@pytest.mark.parametrize("backend", ["auto", "mmap", "pread", "direct"])
@pytest.mark.parametrize("start", ["meta", "device"])
def test_a_module_is_filled_on_the_device(model, start, backend):
    path, tensors = model
    module = nn.Module()
    for name in ("large", "larger", "matrix", "empty", "scalar"):
        target = torch.zeros_like(tensors[name], device="meta" if start == "meta" else DEVICE)
        module.register_buffer(name, target)
    module.register_buffer("part", torch.zeros(1000, 5, device=target.device))
    module.register_buffer("both", torch.zeros(1007, 257, device=target.device))
    plan = {
        **{name: name for name in ("large", "larger", "matrix", "empty", "scalar")},
        "part": Narrow("matrix", 7, 12, dim=1),
        "both": Concat(["matrix", Narrow("matrix", 0, 7)]),
    }
    before = dict(module.named_buffers())
    safeweights.torch.load_sharded(
        module, path, plan=plan, device=DEVICE, subset=True, backend=backend
    )
    matrix = tensors["matrix"]
    expected = {name: tensors[name] for name in before if name in tensors}
    expected |= {"part": matrix[:, 7:12], "both": torch.cat([matrix, matrix[:7]])}
    same(dict(module.named_buffers()), expected)
    if start == "device":
        for name, tensor in module.named_buffers():
            assert tensor.data_ptr() == before[name].data_ptr(), name


def test_values_are_cast_on_the_way_into_a_module(model):
    path, tensors = model
    with torch.device("meta"):
        module = nn.Module()
        module.register_buffer("matrix", torch.empty(1000, 257))
    safeweights.torch.load_sharded(module, path, dtype=torch.bfloat16, device=DEVICE, subset=True)
    same({"matrix": module.matrix}, {"matrix": tensors["matrix"].to(DEVICE).bfloat16()})


def test_what_is_verified_or_decrypted_comes_to_the_device(model, tmp_path):
    path, tensors = model
    signed = tmp_path / "signed.safetensors"
    signed.write_bytes(path.read_bytes())
    trust.generate_key(str(tmp_path / "key"))
    trust.sign(str(signed), trust.load_private_key(str(tmp_path / "key")))
    key = str(tmp_path / "key.pub")
    same(safeweights.torch.load_file(signed, device=DEVICE, trust=key), tensors)
    data = bytearray(signed.read_bytes())
    data[-1] ^= 1
    signed.write_bytes(data)
    with pytest.raises(safeweights.SafetensorError, match="signed"):
        safeweights.torch.load_file(signed, device=DEVICE, trust=key)

    identity = generate_identity()
    plain = tmp_path / "plain.safetensors"
    plain.write_bytes(path.read_bytes())
    hidden = safeweights.encrypt(plain, identity.recipient.label).path
    same(safeweights.torch.load_file(hidden, device=DEVICE, identity=identity), tensors)


def test_shards_and_single_values_come_to_the_device(model, tmp_path):
    _, tensors = model
    safeweights.torch.save_file(tensors, tmp_path / "model", max_shard_size=SLAB)
    same(safeweights.torch.load_file(tmp_path / "model", device=DEVICE), tensors)
    with safeweights.open(tmp_path / "model") as checkpoint:
        found = {name: tensor.torch(str(DEVICE)) for name, tensor in checkpoint.items()}
    same(found, tensors)


def test_tied_weights_are_saved_once_from_the_device(tmp_path):
    def module() -> nn.Module:
        torch.manual_seed(0)
        made = nn.ModuleDict({"first": nn.Linear(40, 50), "tied": nn.Linear(40, 50)})
        made["tied"].weight = made["first"].weight
        return made

    safeweights.torch.save_model(module(), tmp_path / "host.safetensors")
    safeweights.torch.save_model(module().to(DEVICE), tmp_path / "device.safetensors")
    host, device = (tmp_path / f"{name}.safetensors" for name in ("host", "device"))
    assert host.read_bytes() == device.read_bytes()


@pytest.fixture
def one_rank(tmp_path):
    """A process group of this process alone, with the device's own collectives."""
    backend = dist.get_default_backend_for_device(DEVICE)
    dist.init_process_group(
        f"cpu:gloo,{DEVICE.type}:{backend}", store=dist.HashStore(), rank=0, world_size=1
    )
    yield
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:FutureWarning")
def test_training_is_saved_and_resumed_on_the_device(one_rank, tmp_path):
    """FSDP 2 and AdamW: what is resumed trains on exactly as what was saved."""

    def start(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64)).to(DEVICE)
        for layer in module:
            fully_shard(layer)
        fully_shard(module)
        return module, torch.optim.AdamW(module.parameters(), lr=1e-2)

    def step(module: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
        data = torch.randn(8, 64, generator=torch.Generator().manual_seed(seed)).to(DEVICE)
        module(data).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    def state(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, object]:
        weights, moments = get_state_dict(module, optimizer)
        return {"model": weights, "optimizer": moments}

    first = start(1)
    for number in range(3):
        step(*first, number)
    dcp.save(state(*first), storage_writer=StorageWriter(tmp_path / "checkpoint"))
    second = start(2)
    saved = state(*second)
    dcp.load(saved, storage_reader=StorageReader(tmp_path / "checkpoint"))
    set_state_dict(*second, model_state_dict=saved["model"], optim_state_dict=saved["optimizer"])
    for number in range(3, 6):
        step(*first, number)
        step(*second, number)
    right = {name: tensor.full_tensor() for name, tensor in first[0].state_dict().items()}
    found = {name: tensor.full_tensor() for name, tensor in second[0].state_dict().items()}
    same(found, {name: tensor.cpu() for name, tensor in right.items()})


@pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:FutureWarning")
def test_divided_tensors_on_the_device(one_rank, model, tmp_path):
    path, tensors = model
    names = ("large", "larger", "matrix", "empty", "scalar", "type.BF16", "type.F8_E4M3")
    mesh = init_device_mesh(DEVICE.type, (1,))

    def divided(tensor: torch.Tensor) -> torch.Tensor:
        placed = [Replicate()] if not tensor.dim() else [Shard(tensor.dim() - 1)]
        return distribute_tensor(tensor.to(DEVICE), mesh, placed, src_data_rank=None)

    module = nn.Module()
    for name in names:
        blank = divided(torch.zeros_like(tensors[name]))
        module.register_buffer(name.replace(".", "_"), blank)
    plan = {name.replace(".", "_"): name for name in names}
    safeweights.torch.load_sharded(module, path, plan=plan, subset=True)
    found = {name: getattr(module, name.replace(".", "_")).to_local() for name in names}
    same(found, {name: tensors[name] for name in names})

    state = {name: divided(tensors[name]) for name in names}
    dcp.save(state, storage_writer=StorageWriter(tmp_path / "ours", max_shard_size=SLAB))
    safeweights.torch.save_file(
        {name: tensors[name] for name in names},
        tmp_path / "one", {"format": "pt"}, max_shard_size=SLAB,
    )  # fmt: skip
    shards = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(shards) > 2
    for name in shards:
        written = (tmp_path / "ours" / name).read_bytes()
        assert written == (tmp_path / "one" / name).read_bytes(), name


def test_too_little_device_memory_is_torchs_own_error(tmp_path):
    """What callers catch to free memory and to try again; afterwards the same file loads."""
    name = "large"
    path = tmp_path / "large.safetensors"
    safeweights.torch.save_file({name: torch.zeros(64 << 20, dtype=torch.uint8)}, path)
    taken = []
    try:
        for size in (1 << 30, 1 << 26, 1 << 24, 1 << 21):
            while True:
                try:
                    taken.append(torch.empty(size, dtype=torch.uint8, device=DEVICE))
                except torch.OutOfMemoryError:
                    break
        with pytest.raises(torch.OutOfMemoryError):
            safeweights.torch.load_file(path, device=DEVICE)
    finally:
        del taken
        getattr(torch, DEVICE.type).empty_cache()
    assert safeweights.torch.load_file(path, device=DEVICE)[name].device == DEVICE


def test_host_memory_stays_at_a_few_slabs(tmp_path):
    """However large the file: nothing of its size is pinned or copied on the host."""
    path = tmp_path / "gibibyte.safetensors"
    tensors = {f"{number:02}": torch.ones(16 << 20, dtype=torch.int32) for number in range(16)}
    safeweights.torch.save_file(tensors, path)
    del tensors
    safeweights.torch.load_file(path, device=DEVICE)  # pins the slabs
    stats = getattr(torch, DEVICE.type)
    if hasattr(stats, "host_memory_stats"):
        pinned = stats.host_memory_stats()["allocated_bytes.peak"]
        assert pinned < 1 << 29
    before = stats.memory_allocated(DEVICE)
    found = safeweights.torch.load_file(path, device=DEVICE)
    assert stats.memory_allocated(DEVICE) - before <= (1 << 30) + (4 << 20)
    assert all(int(tensor[0]) == 1 == int(tensor[-1]) for tensor in found.values())
