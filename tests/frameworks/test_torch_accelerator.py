"""Loading onto and saving from a real accelerator. Skipped where there is none.

`test_torch_staging` covers the same code with a stand-in whose copies are late; here is what a
stand-in cannot show: streams, device memory, and the framework's own errors.
"""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

import safeweights
import safeweights.torch
from safeweights.frameworks.torch.adapter import TYPES
from safeweights.frameworks.torch.staging import SLAB

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
