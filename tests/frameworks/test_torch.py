"""PyTorch in detail: layouts, sharing, modules, devices, the names that clients take."""

from __future__ import annotations

import copy
import json
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import safetensors
import safetensors.torch as reference
import torch
from kits import file_of

import safeweights
import safeweights.torch as ours
from safeweights.errors import LayoutError, NoDataError, SafetensorError

if TYPE_CHECKING:
    from pathlib import Path


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(5, 3)
        self.head = torch.nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


class Untied(Tied):
    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(3, 5, bias=False)


def ones(*shape: int, **kind: Any) -> Any:
    return torch.arange(torch.Size(shape).numel(), **kind).reshape(shape)


# --- saving ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.conj(), lambda x: x.conj().imag.contiguous(), lambda x: torch._neg_view(x),
        lambda x: torch._neg_view(x.conj()), lambda x: x.resolve_conj(),
    ],
    ids=["conj", "imag", "neg", "neg of conj", "plain"],
)  # fmt: skip
def test_pending_conjugation_and_negation_are_applied(view: Any) -> None:
    tensor = view(torch.randn(3, 4, dtype=torch.complex64))
    assert torch.equal(
        ours.load(ours.save({"x": tensor}))["x"], tensor.resolve_conj().resolve_neg()
    )


def test_parameters_buffers_and_gradients_are_no_matter() -> None:
    parameter = torch.nn.Parameter(torch.randn(3))
    (parameter.sum() * 2).backward()
    loaded = ours.load(ours.save({"x": parameter, "y": parameter.grad}))
    assert torch.equal(loaded["x"], parameter)
    assert not loaded["x"].requires_grad
    with torch.inference_mode():
        assert torch.equal(ours.load(ours.save({"x": torch.ones(2)}))["x"], torch.ones(2))


NON_CONTIGUOUS = {
    "transposed": lambda: ones(3, 4).T,
    "strided": lambda: ones(8)[::2],
    "column": lambda: ones(3, 4)[:, 1],
    "expanded": lambda: ones(3, 1).expand(3, 4),
    "channels last": lambda: ones(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("name", NON_CONTIGUOUS)
def test_non_contiguous_tensors_are_refused_as_by_the_reference(name: str, tmp_path: Path) -> None:
    tensors = {"x": NON_CONTIGUOUS[name]()}
    for module in (reference, ours):
        with pytest.raises(ValueError, match="You are trying to save a non contiguous tensor: `x`"):
            module.save_file(tensors, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_what_has_no_bytes_is_refused_with_the_references_class(tmp_path: Path) -> None:
    sparse = torch.sparse_coo_tensor([[0]], [1.0], (2,), check_invariants=True)
    with pytest.raises(ValueError) as theirs:
        reference.save({"x": sparse})
    with pytest.raises(ValueError) as caught:
        ours.save({"x": sparse})
    assert str(caught.value) == str(theirs.value)

    meta = torch.ones(2, device="meta")
    for module in (reference, ours):
        with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
            module.save({"x": meta})


def refused() -> dict[str, Any]:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        fake = torch.ones(2)
    jagged = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
    return {
        "complex128": torch.ones(2, dtype=torch.complex128),
        "quantised": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        "fake": fake,
        "jagged": jagged,
        "mkldnn": torch.ones(2).to_mkldnn(),
        "csr": torch.ones(2, 2).to_sparse_csr(),
        "bits": torch.empty(2, dtype=torch.bits8),
        "uint4": torch.empty(2, dtype=torch.uint4),
    }


@pytest.mark.filterwarnings(
    "ignore:.*(nested tensors|torch.ao.quantization|quantize_per_tensor|Sparse CSR|pointer of FakeTensor)"
)
@pytest.mark.parametrize(
    "name", ["complex128", "quantised", "fake", "jagged", "mkldnn", "csr", "bits", "uint4"]
)
def test_what_the_format_cannot_hold_is_refused(name: str) -> None:
    with pytest.raises(safeweights.SafetensorError):
        ours.save({"x": refused()[name]})


@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_every_type_of_torch_is_kept_or_refused() -> None:
    for name, dtype in vars(torch).items():
        if isinstance(dtype, torch.dtype):
            tensor = torch.empty((2, 2), dtype=dtype)
            try:
                kept = ours.load(ours.save({"x": tensor}))["x"]
            except safeweights.SafetensorError:
                assert dtype not in ours._SIZE, name
            else:
                assert kept.dtype == dtype
                assert kept.shape == tensor.shape


# --- sharing --------------------------------------------------------------------------------------

BASE = torch.zeros(20)
SHARING = {
    "same": [BASE, BASE],
    "whole and part": [BASE, BASE[3:5]],
    "overlapping parts": [BASE[:10], BASE[9:]],
    "long then short": [BASE[0:20], BASE[1:2], BASE[15:16]],
    "two storages over one memory": [BASE, torch.from_numpy(BASE.numpy())[2:4]],
    "another type": [BASE[:2], BASE.view(torch.int32)[1:3]],
    "not the first byte": [BASE[4:6], torch.frombuffer(BASE.numpy(), dtype=torch.uint8)[20:22]],
}
APART = {
    "parts": [BASE[:10], BASE[10:]],
    "copies": [BASE, BASE.clone()],
    "empty": [BASE, BASE[5:5]],
    "three": [BASE[:3], BASE[10:], BASE[3:10]],
}


@pytest.mark.parametrize("name", SHARING)
def test_all_overlaps_are_found(name: str) -> None:
    tensors = {str(i): tensor for i, tensor in enumerate(SHARING[name])}
    with pytest.raises(
        RuntimeError, match="Some tensors share memory, this will lead to duplicate"
    ):
        ours.save(tensors)
    with pytest.raises(safeweights.SafetensorError, match="use `save_model`"):
        ours.save(dict(reversed(tensors.items())))


@pytest.mark.parametrize("name", APART)
def test_what_does_not_overlap_is_saved(name: str) -> None:
    tensors = {str(i): tensor for i, tensor in enumerate(APART[name])}
    loaded = ours.load(ours.save(tensors))
    assert all(torch.equal(loaded[key], tensors[key]) for key in tensors)


def test_loaded_tensors_do_not_share(tmp_path: Path) -> None:
    ours.save_file({"a": torch.ones(3), "b": torch.ones(4)}, tmp_path / "x")
    for backend in ("mmap", "pread"):
        loaded = ours.load_file(tmp_path / "x", backend=backend)
        for tensor in loaded.values():
            assert tensor.untyped_storage().nbytes() == tensor.numel() * 4
        ours.save_file(loaded, tmp_path / "y")
        loaded["a"].add_(1)
        assert torch.equal(loaded["b"], torch.ones(4))
    assert torch.equal(ours.load_file(tmp_path / "x")["a"], torch.ones(3))


# --- modules --------------------------------------------------------------------------------------


def test_save_model_writes_what_the_reference_writes(tmp_path: Path) -> None:
    for model in (Tied(), Untied(), torch.nn.BatchNorm1d(3), torch.nn.Linear(2, 2)):
        reference.save_model(model, str(tmp_path / "a"))
        ours.save_model(model, tmp_path / "b")
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_save_model_leaves_the_metadata_alone(tmp_path: Path) -> None:
    metadata = {"format": "pt"}
    ours.save_model(Tied(), tmp_path / "x", metadata)
    assert metadata == {"format": "pt"}
    with safeweights.safe_open(tmp_path / "x", "pt") as file:
        assert file.metadata() == {"format": "pt", "head.weight": "embed.weight"}
        assert file.keys() == ["embed.weight"]


def test_load_model_into_tied_weights(tmp_path: Path) -> None:
    model, other = Tied(), Tied()
    ours.save_model(model, tmp_path / "x")
    assert ours.load_model(other, tmp_path / "x") == (set(), [])
    assert torch.equal(other.head.weight, model.embed.weight)
    assert other.head.weight is other.embed.weight


def test_load_model_takes_either_name_of_tied_weights(tmp_path: Path) -> None:
    model, other = Tied(), Tied()
    ours.save_file({"head.weight": model.head.weight}, tmp_path / "x")
    assert ours.load_model(other, tmp_path / "x") == (set(), [])
    assert torch.equal(other.embed.weight, model.embed.weight)


def test_parts_of_a_saved_tensor_are_left_out(tmp_path: Path) -> None:
    model = torch.nn.Module()
    for name, tensor in {"whole": BASE, "b": BASE[1:2], "c": BASE[15:16]}.items():
        model.register_buffer(name, tensor)
    ours.save_model(model, tmp_path / "x")
    with safeweights.safe_open(tmp_path / "x", "pt") as file:
        assert file.keys() == ["whole"]
        assert file.metadata() == {"b": "whole", "c": "whole"}


def test_load_model_says_what_differs_as_the_reference_does(tmp_path: Path) -> None:
    ours.save_model(Tied(), tmp_path / "x")
    texts = []
    for module in (reference, ours):
        with pytest.raises(RuntimeError) as caught:
            module.load_model(Untied(), tmp_path / "x")
        texts.append(str(caught.value))
    assert texts[0] == texts[1]
    assert 'Missing key(s) in state_dict: "head.weight"' in texts[1]
    assert ours.load_model(Untied(), tmp_path / "x", strict=False) == ({"head.weight"}, [])


def test_save_model_without_force_contiguous(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 4)
    model.weight = torch.nn.Parameter(model.weight.T.contiguous().T)
    for module in (reference, ours):
        with pytest.raises(ValueError, match=r"use save_model\(..., force_contiguous=True\)"):
            module.save_model(model, str(tmp_path / "x"), force_contiguous=False)
    ours.save_model(model, tmp_path / "x")
    fresh = torch.nn.Linear(3, 4)
    ours.load_model(fresh, tmp_path / "x")
    assert torch.equal(fresh.weight, model.weight)


def test_nothing_to_keep_is_an_error(tmp_path: Path) -> None:
    model = Tied()
    model.embed.weight = model.head.weight = torch.nn.Parameter(torch.zeros(10, 3)[:5])
    for module in (reference, ours):
        with pytest.raises(RuntimeError, match=r"storage.Refusing to save/load the model since"):
            module.save_model(model, str(tmp_path / "x"))


# --- filling what exists --------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["mmap", "pread"])
def test_load_into_a_module(backend: str, tmp_path: Path) -> None:
    model, other = Tied(), Tied()
    ours.save_model(model, tmp_path / "x")
    places = {name: tensor.data_ptr() for name, tensor in other.state_dict().items()}
    assert ours.load_into(other, tmp_path / "x", backend=backend) == (set(), [])
    assert torch.equal(other.embed.weight, model.embed.weight)
    assert {name: tensor.data_ptr() for name, tensor in other.state_dict().items()} == places


def test_load_into_reads_the_note_of_tied_weights(tmp_path: Path) -> None:
    model, other = Tied(), Untied()
    ours.save_model(model, tmp_path / "x")
    assert ours.load_into(other, tmp_path / "x") == (set(), [])
    assert torch.equal(other.head.weight, model.embed.weight)


def test_load_into_a_module_on_the_meta_device(tmp_path: Path) -> None:
    model = Tied()
    ours.save_model(model, tmp_path / "x")
    with torch.device("meta"):
        other = Tied()
    other.head.weight = other.embed.weight
    assert ours.load_into(other, tmp_path / "x") == (set(), [])
    assert torch.equal(other.embed.weight, model.embed.weight)
    assert other.head.weight is other.embed.weight
    assert isinstance(other.head.weight, torch.nn.Parameter)


class Hooked(torch.nn.Module):
    """Looks at two of its tensors before they are loaded, as modules do that rename or join them."""

    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Parameter(torch.zeros(2))
        self.b = torch.nn.Parameter(torch.zeros(3))
        self.register_buffer("kept", torch.ones(1, device="cpu"))
        self.seen: list[list[str]] = []
        self.missing: list[list[str]] = []
        self._register_load_state_dict_pre_hook(lambda state, *_: self.seen.append(sorted(state)))
        self.register_load_state_dict_post_hook(
            lambda _, result: self.missing.append(list(result.missing_keys))
        )


def test_load_into_a_module_on_the_meta_device_runs_its_hooks_once(tmp_path: Path) -> None:
    ours.save_file(
        {"a": torch.ones(2), "b": torch.ones(3), "kept": torch.full((1,), 2.0)}, tmp_path / "x"
    )
    with torch.device("meta"):
        module = Hooked()
    kept = module.kept
    ours.load_into(module, tmp_path / "x")
    assert (module.seen, module.missing) == ([["a", "b", "kept"]], [[]])
    assert module.kept is kept
    assert [tensor.tolist() for tensor in module.state_dict().values()] == [[1] * 2, [1] * 3, [2]]


def test_load_into_fails_before_a_module_on_the_meta_device_is_touched(tmp_path: Path) -> None:
    ours.save_file({"a": torch.ones(2), "b": torch.ones(3), "kept": torch.ones(1)}, tmp_path / "x")
    os.truncate(tmp_path / "x", os.path.getsize(tmp_path / "x") - 1)
    with torch.device("meta"):
        module = Hooked()
    with pytest.raises(SafetensorError):
        ours.load_into(module, tmp_path / "x")
    assert (module.a.device.type, module.seen) == ("meta", [])


@pytest.mark.parametrize("by_index", [False, True])
def test_load_into_a_module_from_many_files(tmp_path: Path, by_index: bool) -> None:
    model, other = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
    parts = {"model-00001-of-00002": "weight", "model-00002-of-00002": "bias"}
    for shard, name in parts.items():
        ours.save_file({name: model.state_dict()[name]}, tmp_path / f"{shard}.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    if by_index:
        weight_map = {name: f"{shard}.safetensors" for shard, name in parts.items()}
        index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert ours.load_into(other, index if by_index else tmp_path) == (set(), [])
    assert torch.equal(other.weight, model.weight)
    assert torch.equal(other.bias, model.bias)
    with pytest.raises(FileNotFoundError, match="No such file or directory"):
        ours.load_into(other, tmp_path / "absent")


def test_load_into_tensors_of_any_layout_and_type(tmp_path: Path) -> None:
    values = {
        "a": ones(3, 4, dtype=torch.float32),
        "b": ones(5, dtype=torch.int64),
        "c": ones(3, dtype=torch.bfloat16),
    }
    ours.save_file(values, tmp_path / "x")
    target = {
        "a": torch.zeros(4, 3, dtype=torch.bfloat16).T,
        "b": torch.zeros(10, dtype=torch.int32)[::2],
        "c": torch.zeros(3, dtype=torch.float16),
    }
    assert ours.load_into(target, tmp_path / "x") == (set(), [])
    assert torch.equal(target["a"].float(), values["a"])
    assert torch.equal(target["b"].long(), values["b"])
    assert torch.equal(target["c"].bfloat16(), values["c"])


def test_load_into_changes_nothing_where_shapes_or_names_differ(tmp_path: Path) -> None:
    ours.save_file({"a": torch.ones(3), "b": torch.ones(4)}, tmp_path / "x")
    target = {"a": torch.zeros(3), "b": torch.zeros(5)}
    with pytest.raises(RuntimeError, match=r"size mismatch: `b` is \[5\], the file has \[4\]"):
        ours.load_into(target, tmp_path / "x")
    assert not target["a"].any()
    with pytest.raises(safeweights.SafetensorError, match=r'Unexpected key.*"b"'):
        ours.load_into({"a": torch.zeros(3)}, tmp_path / "x")
    found = ours.load_into({"a": target["a"], "c": torch.zeros(1)}, tmp_path / "x", strict=False)
    assert found == ({"c"}, ["b"])
    assert target["a"].all()
    with pytest.raises(NoDataError, match="meta device"):
        ours.load_into({"a": torch.ones(3, device="meta")}, tmp_path / "x", strict=False)


class Quantised(torch.Tensor):
    """Values that are computed from others, as quantisation libraries have them."""

    def __new__(cls, codes: torch.Tensor, scale: float) -> Any:
        made: Any = torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)
        made.codes, made.scale = codes, scale
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.copy_.default:
            args[0].codes.copy_((args[1] / args[0].scale).round().to(torch.int8))
            return args[0]
        plain = [a.codes * a.scale if isinstance(a, Quantised) else a for a in args]
        return func(*plain, **(kwargs or {}))


def test_load_into_asks_a_subclass_to_take_its_values(tmp_path: Path) -> None:
    ours.save_file({"w": torch.arange(4.0)}, tmp_path / "x")
    target = Quantised(torch.zeros(4, dtype=torch.int8), 0.5)
    ours.load_into({"w": target}, tmp_path / "x")
    assert (target.codes * target.scale).tolist() == [0, 1, 2, 3]


def test_load_into_is_seen_by_autograd(tmp_path: Path) -> None:
    """Who goes back through values that are gone gets an error, not wrong gradients."""
    ours.save_file({"w": torch.arange(6.0)}, tmp_path / "x")
    weights = torch.nn.Parameter(torch.ones(6))
    loss = (weights * weights).sum()
    ours.load_into({"w": weights}, tmp_path / "x")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    with torch.inference_mode():
        target = torch.zeros(6)
        ours.load_into({"w": target}, tmp_path / "x")
    assert target.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("target", "error"),
    [
        (np.zeros(3, "f4"), "is a ndarray"),
        (torch.zeros(3).to_sparse(), "torch.sparse_coo"),
        (torch.zeros(1).expand(3), "clone it"),
    ],
)
def test_load_into_what_cannot_be_filled(target: Any, error: str, tmp_path: Path) -> None:
    ours.save_file({"a": torch.ones(3), "b": torch.ones(3)}, tmp_path / "x")
    first = torch.zeros(3)
    with pytest.raises(safeweights.SafetensorError, match=error):
        ours.load_into({"a": first, "b": target}, tmp_path / "x")
    assert not first.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["mapping", "module", "sharded"])
def test_inference_tensors_are_refused_before_a_byte_is_written(
    dtype: torch.dtype, kind: str, tmp_path: Path
) -> None:
    """torch refuses to change them, whether their bytes or their values would be written."""
    ours.save_file({"a": torch.ones(3), "b": torch.ones(3)}, tmp_path / "x")
    first = torch.zeros(3)
    with torch.inference_mode():
        second = torch.zeros(3, dtype=dtype)
    module = torch.nn.Module()
    module.register_buffer("a", first)
    module.register_buffer("b", second)
    loads: dict[str, Any] = {
        "mapping": lambda: ours.load_into({"a": first, "b": second}, tmp_path / "x"),
        "module": lambda: ours.load_into(module, tmp_path / "x"),
        "sharded": lambda: ours.load_sharded(module, tmp_path / "x"),
    }
    with pytest.raises(safeweights.errors.UnsupportedError, match=r"`b`.* inference tensor"):
        loads[kind]()
    assert not first.any()
    assert not second.any()
    with torch.inference_mode():
        loads[kind]()
    assert first.tolist() == second.tolist() == [1, 1, 1]


def test_an_inference_tensor_without_memory_is_replaced(tmp_path: Path) -> None:
    ours.save_file({"weight": torch.ones(3, 3), "bias": torch.ones(3)}, tmp_path / "x")
    with torch.inference_mode(), torch.device("meta"):
        module = torch.nn.Linear(3, 3)
    ours.load_into(module, tmp_path / "x")
    assert module.weight.tolist() == [[1] * 3] * 3


@pytest.mark.parametrize("left", [0, 4, 396])
@pytest.mark.parametrize("count", [100, 1 << 18])
def test_freed_memory_is_neither_written_nor_read(count: int, left: int, tmp_path: Path) -> None:
    """FSDP frees the storage of what it has sharded; the tensor keeps its shape."""
    ours.save_file({"a": torch.ones(count)}, tmp_path / "x")
    freed = torch.ones(count)
    freed.untyped_storage().resize_(left)
    model = torch.nn.Module()
    model.register_buffer("a", freed)
    for act in (
        lambda: ours.save({"a": freed}),
        lambda: ours.save_file({"a": freed}, tmp_path / "y"),
        lambda: ours.save_model(model, tmp_path / "y"),
        lambda: ours.load_into({"a": freed}, tmp_path / "x"),
    ):
        with pytest.raises(NoDataError, match="freed"):
            act()
    assert not (tmp_path / "y").exists()


class WithExtraState(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)

    def get_extra_state(self) -> object:
        return {"step": 1}

    def set_extra_state(self, state: object) -> None:
        raise AssertionError(state)


def test_extra_state_is_named(tmp_path: Path) -> None:
    """What a module has beside tensors cannot be saved, and is missing in a file."""
    model = WithExtraState()
    with pytest.raises(LayoutError, match="_extra_state"):
        ours.save_model(model, tmp_path / "x")
    ours.save_file({f"layer.{n}": t for n, t in model.layer.state_dict().items()}, tmp_path / "x")
    for load in (ours.load_model, ours.load_into):
        with pytest.raises(RuntimeError, match=r'Missing.*"_extra_state"'):
            load(model, tmp_path / "x")
        assert load(model, tmp_path / "x", strict=False) == ({"_extra_state"}, [])


# --- devices --------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu"), None])
def test_the_cpu_by_any_name(device: Any, tmp_path: Path) -> None:
    ours.save_file({"a": torch.ones(3)}, tmp_path / "x")
    assert torch.equal(ours.load_file(tmp_path / "x", device)["a"], torch.ones(3))


@pytest.mark.parametrize("backend", ["mmap", "pread"])
def test_the_meta_device(backend: str, tmp_path: Path) -> None:
    tensors = {"a": torch.ones(3, 4, dtype=torch.bfloat16), "b": torch.ones((), dtype=torch.int8)}
    ours.save_file(tensors, tmp_path / "x")
    with safeweights.safe_open(tmp_path / "x", "pt", "meta", backend=backend) as file:
        part = file.get_slice("a")[:2, 1:]
        assert (part.shape, part.device.type) == ((2, 3), "meta")
        for name, tensor in file.get_tensors().items():
            assert tensor.device.type == "meta"
            assert (tensor.shape, tensor.dtype) == (tensors[name].shape, tensors[name].dtype)


@pytest.mark.parametrize("device", ["bogus", "cuda:x", 3.5, True, object(), "", "cpu:abc"])
def test_devices_that_are_none(device: Any, tmp_path: Path) -> None:
    ours.save_file({"a": torch.ones(3)}, tmp_path / "x")
    with pytest.raises(safeweights.SafetensorError, match=r"device .* is invalid"):
        safeweights.safe_open(tmp_path / "x", "pt", device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    ours.save_file({"a": torch.ones(3)}, tmp_path / "x")
    for device in ("cuda", 0, "cuda:3", torch.device("cuda", 1)):
        with pytest.raises(safeweights.SafetensorError):
            ours.load_file(tmp_path / "x", device)


def test_the_default_device_is_not_used(tmp_path: Path) -> None:
    ours.save_file({"a": torch.ones(3), "e": torch.ones(0)}, tmp_path / "x")
    with torch.device("meta"):
        for tensor in (
            *ours.load_file(tmp_path / "x").values(),
            *ours.load((tmp_path / "x").read_bytes()).values(),
        ):
            assert tensor.device.type == "cpu"


# --- slices ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["mmap", "pread"])
def test_masks_and_arrays_index_too(backend: str, tmp_path: Path) -> None:
    whole = ones(4, 5)
    ours.save_file({"a": whole}, tmp_path / "x")
    with safeweights.safe_open(tmp_path / "x", "pt", backend=backend) as file:
        part = file.get_slice("a")
        for index in (
            whole > 7,
            (torch.tensor([0, 2]), 1),
            ([0, 2], slice(None)),
            True,
            (None, 1),
            torch.tensor(2),
        ):
            assert torch.equal(part[index], whole[index])
        assert torch.equal(part[::-1, ::-2], whole.flip(0).flip(1)[:, ::2])
        with pytest.raises(IndexError):
            part[9]
        if backend == "mmap":
            assert torch.equal(part[:100], whole)  # as torch has it
        else:
            with pytest.raises(safeweights.SafetensorError, match="out of bounds"):
                part[:100]


@pytest.mark.parametrize("backend", ["mmap", "pread"])
def test_f4_slices_on_byte_boundaries(backend: str, tmp_path: Path) -> None:
    data = torch.arange(24, dtype=torch.uint8).reshape(4, 6)
    ours.save_file({"a": data.view(torch.float4_e2m1fn_x2)}, tmp_path / "x")
    with safeweights.safe_open(tmp_path / "x", "pt", backend=backend) as file:
        part = file.get_slice("a")
        assert part.get_shape() == [4, 12]
        for index, same in [
            ((slice(1, 3),), data[1:3]),
            ((..., slice(2, 8)), data[:, 1:4]),
            (2, data[2]),
        ]:
            assert torch.equal(part[index].view(torch.uint8), same)
        with pytest.raises(safeweights.SafetensorError, match="does not end up at a byte boundary"):
            part[:, 1:3]


# --- private names --------------------------------------------------------------------------------

PRIVATE = {
    "_TYPES", "_SIZE", "_getdtype", "_to_ndarray", "storage_ptr", "storage_size",
    "_find_shared_tensors", "_filter_shared_not_shared", "_remove_duplicate_names", "_is_complete",
    "_end_ptr", "_view2torch", "_flatten_as_ptr", "_tobytes", "_flatten",
}  # fmt: skip


def test_every_name_of_the_reference_is_here() -> None:
    for module, theirs in ((safeweights, safetensors), (ours, reference)):
        public = {name for name in vars(theirs) if not name.startswith("_")}
        public -= {"Any", "Dict", "List", "Optional", "Set", "Tuple", "Union", "defaultdict"}
        public -= {"torch", "numpy"} if module is safeweights else {"os", "sys", "torch"}
        public -= (
            {"TensorSpec", "deserialize", "serialize", "serialize_file"}
            if module is ours
            else set()
        )
        assert public <= set(dir(module)), public - set(dir(module))
    assert set(vars(ours)) >= PRIVATE
    for name in ("_safe_open_handle", "PrefetchLoader", "PySafeSlice", "TensorMeta", "__version__"):
        assert hasattr(safeweights, name)


def test_types_and_sizes() -> None:
    assert ours._TYPES.items() >= reference._TYPES.items()
    assert (
        ours._SIZE.items() >= {key: value for key, value in reference._SIZE.items() if key}.items()
    )
    assert all(ours._getdtype(code) == reference._getdtype(code) for code in reference._TYPES)


@pytest.mark.parametrize("name", [*SHARING, *APART])
def test_sharing_as_the_reference_sees_it(name: str) -> None:
    tensors = {str(i): tensor for i, tensor in enumerate((SHARING | APART)[name])}
    assert ours._find_shared_tensors(tensors) == reference._find_shared_tensors(tensors)
    for tensor in tensors.values():
        assert ours.storage_ptr(tensor) == reference.storage_ptr(tensor)
        assert ours.storage_size(tensor) == reference.storage_size(tensor)
        assert ours._is_complete(tensor) == reference._is_complete(tensor)
        assert ours._end_ptr(tensor) == reference._end_ptr(tensor)
    groups = [set(tensors)]
    assert ours._filter_shared_not_shared(groups, tensors) == reference._filter_shared_not_shared(
        groups, tensors
    )
    results = []
    for module in (ours, reference):
        try:
            results.append(module._remove_duplicate_names(tensors, discard_names=["0"]))
        except RuntimeError as error:
            results.append(str(error)[:80])
    assert results[0] == results[1]


def test_bytes_as_the_reference_sees_them() -> None:
    for tensor in (ones(3, 4), torch.ones(()), torch.zeros(0), torch.ones(2, dtype=torch.bfloat16)):
        array, _ = ours._to_ndarray(tensor)
        theirs, _ = reference._to_ndarray(tensor)
        assert array.tobytes() == theirs.tobytes() == bytes(ours._tobytes(tensor, "x"))
        flat, alive = ours._flatten_as_ptr({"x": tensor}, []), []
        assert ours._flatten({"x": tensor})["x"]["data"] == array.tobytes()
        spec = ours._flatten_as_ptr({"x": tensor}, alive)["x"]
        assert (spec.dtype, spec.shape, spec.data_len) == (
            flat["x"].dtype,
            list(tensor.shape),
            array.nbytes,
        )
        assert safeweights.serialize({"x": spec}) == ours.save({"x": tensor})
    file = ours.save({"a": torch.ones(2, 2), "b": torch.zeros(0, 3)})
    found = ours._view2torch(safeweights.deserialize(file))
    assert torch.equal(found["a"], torch.ones(2, 2))
    assert found["b"].shape == (0, 3)


def test_deep_copies_and_pickles_of_errors() -> None:
    import pickle

    for error in (
        safeweights.SafetensorError(),
        safeweights.SafetensorError("text"),
        NoDataError("x", tensor="t"),
    ):
        for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
            assert (type(again), again.args, str(again)) == (type(error), error.args, str(error))


@pytest.mark.parametrize("backend", ["mmap", "pread"])
@pytest.mark.parametrize(
    "kind", [torch.OutOfMemoryError, getattr(torch, "AcceleratorError", torch.OutOfMemoryError)]
)
def test_errors_of_an_accelerator_pass_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str, kind: type[RuntimeError]
) -> None:
    path = tmp_path / "x.safetensors"
    ours.save_file({"a": torch.ones(4, 4)}, path)
    failure = kind("out of memory")

    def full(*_: object, **__: object) -> torch.Tensor:
        raise failure

    monkeypatch.setattr(torch.Tensor, "to", full)
    handle = safeweights.safe_open(path, "pt", device="cuda", backend=backend)
    for call in (
        lambda: handle.get_tensor("a"),
        lambda: handle.get_slice("a")[:],
        lambda: handle.get_slice("a")[::-1, 1:2],
        lambda: handle.get_slice("a")[[0, 2],],
        lambda: ours.load_file(path, device="cuda", backend=backend),
        lambda: dict(safeweights.stream(path, "pt", device="cuda", backend=backend)),
        lambda: dict(handle.prefetch({"a": (slice(None), 1)})),
    ):
        with pytest.raises(kind) as caught:
            call()
        assert caught.value is failure


@pytest.mark.parametrize(
    ("device", "package"), [("hpu", "habana_frameworks"), ("privateuseone", "vendor")]
)
def test_the_package_that_provides_a_device_is_named(
    tmp_path: Path, device: str, package: str
) -> None:
    path = tmp_path / "x.safetensors"
    ours.save_file({"a": torch.ones(4, 4)}, path)
    for kind in (RuntimeError, ImportError, SafetensorError):
        with pytest.raises(kind, match=package):
            ours.load_file(path, device=device)
    with pytest.raises(RuntimeError, match="install and import torch_npu"):
        ours.load_file(path, device="npu:0")


def test_a_type_that_torch_or_the_format_lacks_is_a_key_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match=r"torch\.complex128"):
        ours.save({"a": torch.ones(1, dtype=torch.complex128)})
    data = file_of({"a": ("F6_E2M3", (4,), bytes(3))})
    with pytest.raises(KeyError, match="no type for F6_E2M3"):
        ours.load(data)


class DictAsExtraState(torch.nn.Linear):
    def get_extra_state(self) -> dict[str, int]:
        return {"version": 1}

    def set_extra_state(self, _: object) -> None: ...


@pytest.mark.parametrize("force_contiguous", [True, False])
def test_extra_state_that_is_no_tensor(tmp_path: Path, force_contiguous: bool) -> None:
    with pytest.raises(ValueError, match="get_extra_state") as caught:
        ours.save_model(DictAsExtraState(1, 1), tmp_path / "x", force_contiguous=force_contiguous)
    assert "force_contiguous" not in str(caught.value)


@pytest.mark.parametrize("prefix", ["module", "_orig_mod"])
def test_saving_the_module_around_a_model_is_warned_of(prefix: str, tmp_path: Path) -> None:
    wrapped = torch.nn.Module()
    wrapped.add_module(prefix, torch.nn.Linear(2, 2))
    words = rf"all names begin with `{prefix}\.`.*save `model\.{prefix}`, the module inside"
    path = tmp_path / "x.safetensors"
    for save in (
        lambda: ours.save_file(wrapped.state_dict(), path),
        lambda: ours.save_model(wrapped, str(path)),
    ):
        with pytest.warns(UserWarning, match=words) as caught:
            save()
        assert caught[0].filename == __file__
    with pytest.raises(RuntimeError) as error:
        ours.load_model(torch.nn.Linear(2, 2), path)
    assert f"name.removeprefix('{prefix}.')" in str(error.value)
    opened = safeweights.open(path).rename(lambda name: name.removeprefix(f"{prefix}."))
    assert ours.load_model(torch.nn.Linear(2, 2), opened) == (set(), [])
    ours.save_file({"module.a": torch.ones(1), "b": torch.ones(1)}, path)
    ours.save_file({}, path)
