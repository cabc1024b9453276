"""Dequantised values, compared bit for bit with the libraries that write quantised weights."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import safetensors.torch
import torch

import safeweights

if TYPE_CHECKING:
    from safeweights.checkpoint import Checkpoint

bitsandbytes = pytest.importorskip(
    "bitsandbytes", reason="make test-quantised installs the libraries"
)


class Model:
    """A folder with weights and, if there are any, the quantiser's settings."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def dense(
        self,
        tensors: dict[str, torch.Tensor],
        settings: dict[str, Any] | None = None,
        metadata: dict[str, str] | None = None,
    ) -> Checkpoint:
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        safetensors.torch.save_file(tensors, self.folder / "model.safetensors", metadata)
        document = {} if settings is None else {"quantization_config": settings}
        (self.folder / "config.json").write_text(json.dumps(document))
        return safeweights.open(self.folder).dequantize()


@pytest.fixture
def model(tmp_path: Path) -> Model:
    torch.manual_seed(0)
    return Model(tmp_path)


def same(found: safeweights.Tensor, expected: torch.Tensor) -> None:
    """All values are equal to float32 ones, and rounding them to BF16 gives torch's."""
    values = torch.from_numpy(found.numpy())
    assert found.shape == tuple(expected.shape)
    assert torch.equal(values, expected.float())
    assert torch.equal(found.astype("BF16").torch(), values.bfloat16())


# ---- bitsandbytes


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("shape", [(64, 128), (37, 10), (3, 5, 64), (1, 6)])
@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_bitsandbytes_4bit(
    model: Model, kind: str, size: int, shape: tuple[int, ...], nested: bool
) -> None:
    from bitsandbytes import functional

    packed, state = functional.quantize_4bit(
        torch.randn(shape), blocksize=size, quant_type=kind, compress_statistics=nested
    )
    tensors = {"l.weight": packed, "l.bias": torch.ones(3)}
    for name, value in state.as_dict(packed=True).items():
        tensors[f"l.weight.{name}"] = value
    found = model.dense(tensors, {"quant_method": "bitsandbytes", "load_in_4bit": True})
    assert sorted(found) == ["l.bias", "l.weight"]
    # Blocks run on from row to row. The library's AVX-512 kernel counts them anew in each row, which is
    # wrong where a row is no whole number of blocks. One row is read alike by every processor.
    state.shape = torch.Size([math.prod(shape)])
    same(found["l.weight"], functional.dequantize_4bit(packed, state).reshape(shape))


def test_bitsandbytes_int8(model: Model) -> None:
    from bitsandbytes import functional

    codes, scb, _ = functional.int8_vectorwise_quant(torch.randn(48, 64).half())
    tensors = {"l.weight": codes, "l.SCB": scb, "l.weight_format": torch.tensor(0).byte()}
    found = model.dense(tensors, {"quant_method": "bitsandbytes", "load_in_8bit": True})
    assert list(found) == ["l.weight"]
    same(found["l.weight"], functional.int8_vectorwise_dequant(codes, scb))


# ---- compressed-tensors


def compressed(
    kind: str, weights: dict[str, Any], shape: tuple[int, int]
) -> tuple[dict, dict, Any]:
    """A weight as compressed-tensors writes it, its settings, and what it decompresses to."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    args = QuantizationArgs(**weights)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    weight = torch.randn(shape, dtype=torch.float32)
    rows, columns = shape
    strategy = getattr(args.strategy, "value", args.strategy)
    grid = {
        "tensor": weight.reshape(1, -1), "channel": weight,
        "group": weight.reshape(rows, -1, args.group_size or columns),
        "tensor_group": weight.reshape(rows, -1, args.group_size or columns),
    }[strategy]  # fmt: skip
    low, high = grid.amin(-1), grid.amax(-1)
    scale_grid = {"tensor": (1,), "channel": (rows, 1)}.get(strategy, tuple(low.shape))
    options: dict[str, Any] = {}
    if strategy == "tensor_group":
        options["global_scale"] = (448 * 6 / weight.abs().max()).reshape(1).float()
    scale, zero = calculate_qparams(low, high, args, **options)
    state = {"weight": weight, "weight_scale": scale.reshape(scale_grid)}
    if not args.symmetric:
        state["weight_zero_point"] = zero.reshape(scale_grid).to(torch.int8)
    if options:
        state["weight_global_scale"] = options["global_scale"]
    compressor = BaseCompressor.get_value_from_registry(kind)
    stored = compressor.compress(state, scheme)
    dense = compressor.decompress(dict(stored), scheme)["weight"]
    group = {"targets": ["Linear"], "weights": json.loads(args.model_dump_json())}
    settings = {
        "quant_method": "compressed-tensors", "format": kind, "config_groups": {"group_0": group},
    }  # fmt: skip
    return stored, settings, dense


def integers(bits: int, strategy: str, **more: Any) -> dict[str, Any]:
    return {"type": "int", "num_bits": bits, "strategy": strategy, "symmetric": True} | more


def floats(bits: int, strategy: str, **more: Any) -> dict[str, Any]:
    return {"type": "float", "num_bits": bits, "strategy": strategy, "symmetric": True} | more


PACKED, INT8, EXPONENT = "pack-quantized", "int-quantized", {"scale_dtype": "torch.uint8"}
GROUPS = {"group_size": 32}
FORMATS = {
    **{f"pack {bits} bits": (PACKED, integers(bits, "group", **GROUPS)) for bits in range(2, 9)},
    "pack 4 bits, channels": (PACKED, integers(4, "channel")),
    "pack 4 bits, zeros": (PACKED, integers(4, "group", **GROUPS, symmetric=False)),
    "pack 3 bits, zeros": (PACKED, integers(3, "group", **GROUPS, symmetric=False)),
    "int8 channels": (INT8, integers(8, "channel")),
    "int8 zeros": (INT8, integers(8, "channel", symmetric=False)),
    "int8 tensor": (INT8, integers(8, "tensor")),
    "float8 channels": ("float-quantized", floats(8, "channel")),
    "float8 tensor": ("naive-quantized", floats(8, "tensor")),
    "mxfp8": ("mxfp8-quantized", floats(8, "group", **GROUPS, **EXPONENT)),
    "mxfp4": ("mxfp4-pack-quantized", floats(4, "group", **GROUPS, **EXPONENT)),
    "nvfp4": (
        "nvfp4-pack-quantized",
        floats(4, "tensor_group", group_size=16, scale_dtype="torch.float8_e4m3fn"),
    ),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_compressed_tensors(model: Model, kind: str) -> None:
    stored, settings, dense = compressed(*FORMATS[kind], (24, 96))
    found = model.dense({f"l.{name}": part for name, part in stored.items()}, settings)
    assert list(found) == ["l.weight"]
    values = torch.from_numpy(found["l.weight"].numpy())
    if dense.dtype == torch.float32:
        assert torch.equal(values, dense)
    else:  # computed in BF16 there: ours, rounded to it, is within one step
        steps = values.bfloat16().view(torch.int16).int() - dense.view(torch.int16).int()
        assert steps.abs().max() <= 1


# ---- torchao


def flattened(tensor: torch.Tensor) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

    return flatten_tensor_state_dict({"l.weight": tensor, "l.bias": torch.ones(3)})


def torchao_tensor(kind: str, weight: torch.Tensor) -> torch.Tensor:
    from torchao import quantization as q
    from torchao.prototype.mx_formats.mx_tensor import MXTensor
    from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, per_tensor_amax_to_scale

    if kind == "float8 rows":
        return q.Float8Tensor.from_hp(weight, granularity=q.PerRow())
    if kind == "float8 tensor":
        return q.Float8Tensor.from_hp(weight, granularity=q.PerTensor())
    if kind == "int8 rows":
        return q.Int8Tensor.from_hp(weight, q.PerRow())
    if kind == "intx groups":
        return q.IntxUnpackedToInt8Tensor.from_hp(weight, (1, 32), torch.int4)
    if kind == "mxfp8":
        return MXTensor.to_mx(weight, torch.float8_e4m3fn, 32)
    if kind == "mxfp4":
        return MXTensor.to_mx(weight, torch.float4_e2m1fn_x2, 32)
    scale = per_tensor_amax_to_scale(weight.abs().max()) if kind == "nvfp4, two scales" else None
    return NVFP4Tensor.to_nvfp4(weight, per_tensor_scale=scale)


@pytest.mark.parametrize(
    "kind",
    ["float8 rows", "float8 tensor", "int8 rows", "intx groups", "mxfp8", "mxfp4", "nvfp4",
     "nvfp4, two scales"],
)  # fmt: skip
def test_torchao(model: Model, kind: str) -> None:
    quantised = torchao_tensor(kind, torch.randn(32, 128))
    tensors, metadata = flattened(quantised)
    found = model.dense(tensors, {"quant_method": "torchao"}, metadata)
    assert sorted(found) == ["l.bias", "l.weight"]
    same(found["l.weight"], quantised.dequantize())


# ---- HQQ


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("bits", [8, 4, 3, 2, 1])
def test_hqq(model: Model, bits: int, axis: int) -> None:
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear, Quantizer

    config = BaseQuantizeConfig(nbits=bits, group_size=64, axis=axis)
    linear = torch.nn.Linear(128, 60, bias=True)
    layer = HQQLinear(linear, config, compute_dtype=torch.float32, device="cpu")
    state = {f"l.{name}": value for name, value in layer.state_dict().items()}
    found = model.dense(state, {"quant_method": "hqq"})
    assert sorted(found) == ["l.bias", "l.weight"]
    same(
        found["l.weight"],
        Quantizer.dequantize(layer.W_q, {**layer.meta, "compute_dtype": torch.float32}),
    )


# ---- GGUF


def test_gguf_files_of_every_type_that_gguf_quantises(tmp_path: Path) -> None:
    import gguf
    from gguf import quants

    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    values = np.random.default_rng(0).normal(size=(6, 512)).astype("f4")
    expected = {}
    for kind in gguf.GGMLQuantizationType:
        try:
            packed = quants.quantize(values, kind)
        except NotImplementedError:
            continue
        writer.add_tensor(kind.name, packed, raw_dtype=kind)
        expected[kind.name] = quants.dequantize(packed, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = safeweights.open(path).dequantize()
    assert len(expected) >= 9
    for name, dense in expected.items():
        assert np.array_equal(found[name].numpy().astype("f4"), dense), name
        assert math.prod(found[name].shape) == dense.size


# ---- GPTQ and AWQ


def module_of(package: str, path: str) -> Any:
    """One file of a package, without what the package itself imports."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        pytest.skip(f"{package} is not installed for this version of Python")
    file = Path(found.origin).parent / path
    spec = importlib.util.spec_from_file_location(f"{package}_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_layer_that_autogptq_packs(model: Model, bits: int) -> None:
    layers = module_of("auto_gptq", "nn_modules/qlinear/qlinear_cuda_old.py")
    layer = layers.QuantLinear(bits, 64, 256, 96, bias=False, weight_dtype=torch.float32)
    scales = (torch.rand(96, 4) + 0.5).half().float()
    zeros = torch.randint(1, 1 << bits, (96, 4)).float()
    integers = torch.randint(0, 1 << bits, (96, 256)).float()
    linear = torch.nn.Linear(256, 96, bias=False)
    linear.weight.data = (integers - zeros.repeat_interleave(64, 1)) * scales.repeat_interleave(
        64, 1
    )
    layer.pack(linear, scales.clone(), zeros.clone(), None)
    stored = {name: tensor for name, tensor in layer.state_dict().items() if name != "bias"}
    found = model.dense(
        {f"l.{name}": tensor for name, tensor in stored.items()},
        {"quant_method": "gptq", "bits": bits, "group_size": 64},
    )
    same(found["l.weight"], layer(torch.eye(256)).t())
    same(found["l.weight"], linear.weight.data)


@pytest.mark.parametrize("group", [32, 128])
def test_words_that_autoawq_unpacks(model: Model, group: int) -> None:
    dequantize = module_of("awq", "utils/packing_utils.py").dequantize_gemm
    words = torch.iinfo(torch.int32)
    qweight = torch.randint(words.min, words.max, (256, 12), dtype=torch.int32)
    qzeros = torch.randint(words.min, words.max, (256 // group, 12), dtype=torch.int32)
    scales = (torch.rand(256 // group, 96) + 0.5).half()
    found = model.dense(
        {"l.qweight": qweight, "l.qzeros": qzeros, "l.scales": scales},
        {
            "quant_method": "awq",
            "bits": 4,
            "group_size": group,
            "version": "gemm",
            "zero_point": True,
        },
    )
    same(found["l.weight"], dequantize(qweight, qzeros, scales.float(), 4, group).t())
