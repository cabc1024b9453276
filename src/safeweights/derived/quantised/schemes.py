"""Which weights of a checkpoint are quantised, and how: decided by names, element types and settings.

Names and types find the weights, in one pass over the names. The settings of the quantiser
(``quantization_config`` of config.json, or quantize_config.json, hf_quant_config.json beside the weights)
say what names cannot: the format of GPTQ's zeros, sizes of blocks, numbers of bits. Where something is
still undecided, the weight is refused with the choices; nothing is guessed.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from ...checkpoint.tensor import UNKNOWN, UnreadableTensor
from ...errors import FormatError, UnsupportedError, quote
from ..casting import CastTensor
from . import awq, bitsandbytes, compressed_tensors, ggml, gptq, hqq, mxfp4, scaled, torchao
from .scaled import FLOATS8
from .stored import Found, Names
from .weight import DequantizedTensor, require_dtype

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from ...checkpoint import Checkpoint, Tensor

__all__ = [
    "CHOICES",
    "SETTINGS_FILES",
    "built",
    "dequantized",
    "described_metadata",
    "find_quantised",
    "names_of",
    "refuse_casts",
    "replaced",
    "settings_of",
]

SETTINGS_FILES: Final = ("config.json", "quantize_config.json", "hf_quant_config.json")
"""Files beside the weights that may have the quantiser's settings; the first that has them counts."""

_SETTINGS_MAX: Final = 16 << 20

_METHODS: Final = {
    "fp8": ("fp8", "mxfp8", "mxfp4"), "fbgemm_fp8": ("fp8",), "mxfp4": ("mxfp4",), "mxfp8": ("mxfp8",),
    "compressed-tensors": ("compressed-tensors", "fp8", "int8", "mxfp4", "mxfp8", "nvfp4"),
    "modelopt": ("nvfp4", "fp8", "mxfp8", "mxfp4"), "modelopt_fp4": ("nvfp4",),
    "gptq": ("gptq", "gptq_v2"), "gptqmodel": ("gptq", "gptq_v2"), "awq": ("awq",),
    "auto-round": ("gptq", "gptq_v2", "awq"), "intel/auto-round": ("gptq", "gptq_v2", "awq"),
    "bitsandbytes": ("bitsandbytes", "bitsandbytes-nf4", "bitsandbytes-fp4", "bitsandbytes-int8"),
    "hqq": ("hqq",), "torchao": ("torchao", *torchao.SCHEMES.values()), "gguf": (),
}  # fmt: skip
"""``quant_method`` of the settings -> the schemes that it may mean; none for what the file itself tells."""

CHOICES: Final = (
    "fp8", "comfyui-fp8", "mxfp8", "mxfp4", "nvfp4", "int8", "compressed-tensors", "gptq", "gptq_v2",
    "awq", "bitsandbytes", "torchao", "hqq",
)  # fmt: skip
"""What a caller may choose as the scheme."""


def find_quantised(names: Names) -> dict[str, Found]:
    """Dense name -> the quantised weight. Nothing is read; a few microseconds a name.

    Raises:
        FormatError: Two weights would get one dense name; the settings contradict the names.
        UnsupportedError: The settings name a method that is not read.
    """
    allowed = _allowed(names)
    result: dict[str, Found] = {}
    for each in _candidates(names):
        if allowed is not None and each.scheme not in allowed and not _tells_all(each):
            if names.chosen is not None:
                continue
            method = str(names.settings.get("quant_method"))[:80]
            raise names.fault(
                f"quant_method is {quote(method)}, but {quote(each.parts[0])} is {each.scheme}; choose "
                "a scheme, or give other settings"
            )
        if each.name in result or (each.name in names.tensors and each.name not in each.parts):
            raise FormatError(
                f"the dense form of {quote(each.parts[0])} would be called {quote(each.name)}, as "
                "another tensor is",
                rule="name-collision", path=names.path or None, tensor=each.name,
            )  # fmt: skip
        result[each.name] = each
    if names.chosen is None:
        _require_whole(names, {part for each in result.values() for part in each.parts})
    return result


_PACKED: Final = {
    "qweight": "qzeros and scales", "weight_packed": "weight_scale, and of integers weight_shape",
    "W_q": "scale and zero",
}  # fmt: skip
"""Names that only packed codes have -> what belongs to them."""


def _require_whole(names: Names, used: set[str]) -> None:
    """Refuse codes whose scales are missing: they would be taken for numbers.

    Raises:
        FormatError: There are such codes.
    """
    settled = isinstance(names.settings.get("quant_method"), str)
    for name, tensor in names.tensors.items():
        if name in used:
            continue
        needs = _PACKED.get(name[name.rfind(".") + 1 :])
        if settled and tensor.dtype in FLOATS8:
            needs = "a scale"
        if needs is not None:
            raise FormatError(
                f"{quote(name)} is quantised, but what belongs to it is missing or does not fit: {needs}",
                rule="quantised", path=names.path or None, tensor=name,
            )  # fmt: skip


def _candidates(names: Names) -> Iterator[Found]:
    for name, tensor in names.tensors.items():
        if isinstance(tensor, ggml.GgmlTensor):
            yield from ggml.find(names, name, tensor)
            continue
        last = name[name.rfind(".") + 1 :]
        if last == "weight_packed" and tensor.dtype == "I32":
            yield from compressed_tensors.find(names, name)
        elif last == "qweight":
            yield from gptq.find(names, name)
            yield from awq.find(names, name)
        elif last == "absmax":
            yield from bitsandbytes.find_4bit(names, name)
        elif last == "SCB":
            yield from bitsandbytes.find_int8(names, name)
        elif last == "W_q":
            yield from hqq.find(names, name)
        elif last.startswith("_") and last.endswith("_qdata"):
            yield from torchao.find(names, name)
        elif last == "blocks" or last.endswith("_blocks"):
            yield from mxfp4.find(names, name)
        elif last.endswith(("_scale", "_scale_inv")) or last in ("scale", "scale_weight"):
            yield from scaled.find(names, name)


def _allowed(names: Names) -> frozenset[str] | None:
    """The schemes that the caller's choice or the settings leave; None for any."""
    if names.chosen is not None:
        return frozenset(_METHODS.get(names.chosen, (names.chosen,)))
    method = names.settings.get("quant_method")
    if method is None:
        return None
    if not isinstance(method, str) or method.lower() not in _METHODS:
        raise UnsupportedError(
            f"the settings (quantization_config) name the method {quote(str(method)[:80])}, which is not "
            f"read; there are {', '.join(_METHODS)}",
            path=names.path or None,
        )
    return frozenset(_METHODS[method.lower()]) or None


def settings_of(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """The quantiser's settings that lie beside a checkpoint; empty if there are none.

    Raises:
        FormatError: A settings file is no JSON object, or too large.
        TrustError: The checkpoint was opened with ``trust=``, and the file is not what that asks for.
        OSError: It cannot be read.
    """
    if checkpoint.beside is None:
        return {}
    for name in SETTINGS_FILES:
        data = checkpoint.beside(name, _SETTINGS_MAX)
        if data is not None and (found := _settings_in(name, data, checkpoint.name)):
            return found
    return {}


def _settings_in(name: str, data: bytes, path: str) -> Mapping[str, Any]:
    def fault(message: str) -> FormatError:
        return FormatError(f"{name}: {message}", rule="quantization-config", path=path or None)

    try:
        document = json.loads(data, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise fault(f"it is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise fault("it is no JSON object")
    if name == "quantize_config.json":  # AutoGPTQ's file holds nothing else
        return {"quant_method": "gptq", **document}
    if name == "hf_quant_config.json":  # NVIDIA Model Optimizer's
        found = document.get("quantization")
        return {"quant_method": "modelopt", **found} if isinstance(found, dict) else {}
    found = document.get("quantization_config", document.get("compression_config"))
    if found is None and isinstance(document.get("text_config"), dict):
        found = document["text_config"].get("quantization_config")
    if found is not None and not isinstance(found, dict):
        raise fault("quantization_config is no object")
    return found or {}


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice in one object")
    return found


def names_of(
    checkpoint: Checkpoint,
    tensors: Mapping[str, Tensor] | None = None,
    *,
    scheme: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Names:
    """A checkpoint as schemes see it; without `settings`, those beside it are read if they may matter.

    Args:
        checkpoint: The checkpoint; its metadata and what lies beside it count.
        tensors: The tensors, if they are not those of the checkpoint.
        scheme: The scheme that the caller chose.
        settings: The quantiser's settings.

    Raises:
        UnsupportedError: There is no such scheme.
        FormatError, TrustError, OSError: See `settings_of`.
    """
    if scheme is not None and scheme not in CHOICES:
        raise UnsupportedError(f"no such scheme: {quote(scheme)}; there are {', '.join(CHOICES)}")
    tensors = checkpoint if tensors is None else tensors
    names = Names(tensors, settings or {}, checkpoint.metadata or {}, scheme, checkpoint.name)
    if settings is None and (
        any(not _tells_all(each) for each in _candidates(names))
        or any(map(_is_cast_float8, tensors.values()))
    ):
        names = names._replace(settings=settings_of(checkpoint))
    return names


def _is_cast_float8(tensor: Tensor) -> bool:
    return isinstance(tensor, CastTensor) and tensor.original.dtype.startswith("F8")


def _tells_all(found: Found) -> bool:
    return found.scheme.startswith("ggml-")


def dequantized(
    checkpoint: Checkpoint,
    dtype: str = "F32",
    *,
    scheme: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """A view of a checkpoint in which every quantised weight is a tensor of numbers.

    See `safeweights.Checkpoint.dequantize`, which calls this.
    """
    names = names_of(checkpoint, scheme=scheme, settings=settings)
    found = find_quantised(names)
    if not found:
        raise UnsupportedError(
            "there is no quantised weight in it whose scheme is known", path=checkpoint.name or None
        )
    dense = built(found, dtype)
    return checkpoint.replaced(
        replaced(checkpoint, dense), described_metadata(checkpoint.metadata, dense)
    )


def built(found: Mapping[str, Found], dtype: str = "F32") -> list[tuple[Found, Tensor]]:
    """The dense tensor of each quantised weight; parts are checked, and small ones read.

    One whose layout is not read is an `UnreadableTensor`, which says why.

    Raises:
        FormatError: A part breaks a rule of its scheme, or the scheme is ambiguous.
        UnsupportedError: `dtype` is no type that values are dequantised to.
    """
    require_dtype(dtype)
    return [(each, _dense(each, dtype)) for each in found.values()]


def _dense(found: Found, dtype: str) -> Tensor:
    try:
        return DequantizedTensor(found.build(), dtype)
    except UnsupportedError as error:
        return UnreadableTensor(found.name, UNKNOWN, (), 0, reason=error.message)


def described_metadata(
    metadata: Mapping[str, str] | None, dense: Iterable[tuple[Found, Tensor]]
) -> dict[str, str] | None:
    """Metadata without torchao's descriptions of tensors, which hold no longer."""
    described = {each.name for each, _ in dense if each.scheme.startswith("torchao")}
    if metadata is None or not described:
        return None if metadata is None else dict(metadata)
    names = described | {"tensor_names"}
    return {
        key: value
        for key, value in metadata.items()
        if key not in names and value != '{"_type": "Tensor"}'
    }


def replaced(
    tensors: Mapping[str, Tensor], dense: Iterable[tuple[Found, Tensor]]
) -> dict[str, Tensor]:
    """The tensors, with each dense one in the place of its first part, and without the other parts."""
    anchors: dict[str, tuple[str, Tensor]] = {}
    gone: set[str] = set(_MARKERS)
    for each, tensor in dense:
        anchors[each.parts[0]] = each.name, tensor
        gone.update(each.parts)
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name in anchors:
            target, made = anchors[name]
            result[target] = made
        elif name not in gone:
            result[name] = tensor
    return result


_MARKERS: Final = ("scaled_fp8",)
"""Tensors that only say that a file is quantised."""


def refuse_casts(names: Names, wanted: Iterable[str]) -> None:
    """Refuse to convert the values of a weight that has a scale, or of the scale, by themselves.

    Args:
        names: All tensors, some of which are cast.
        wanted: The names of those that will be used.

    Raises:
        UnsupportedError: One of them is a part of a quantised weight, and is cast.
    """
    cast = [name for name in wanted if isinstance(names.tensors[name], CastTensor)]
    if not cast:
        return
    stored = {
        name: tensor.original if isinstance(tensor, CastTensor) else tensor
        for name, tensor in names.tensors.items()
    }
    candidates = {
        part: each for each in _candidates(names._replace(tensors=stored)) for part in each.parts
    }
    for name in cast:
        dtype = stored[name].dtype
        if name in candidates:
            each = candidates[name]
            others = ", ".join(quote(part) for part in each.parts if part != name)
            why = f"it is part of a quantised weight ({each.scheme}, with {others})"
        elif names.settings.get("quant_method") and dtype.startswith("F8"):
            why = "the settings beside it say that the model is quantised; its scale is elsewhere"
        else:
            continue
        target = names.tensors[name].dtype
        raise UnsupportedError(
            f"tensor {quote(name)} cannot be converted from {dtype} to {target} alone: {why}, so that "
            "the numbers would be wrong. dequantize (--dequantize) gives the weight's values; "
            "FROM=TO as dtype (--dtype) converts other types only",
            path=names.path or None,
            tensor=name,
        )
