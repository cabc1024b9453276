"""The scales of LoRA modules, which conventions keep in different places.

A module adds ``alpha / rank * up @ down``. kohya and ComfyUI write alpha as a tensor (``MODULE.alpha``;
without one it is the rank). diffusers and PEFT write it into the metadata, as the ``LoraConfig`` of each
component under ``lora_adapter_metadata`` (diffusers src/diffusers/loaders/lora_base.py); without that it is
the rank, too. Moving it changes no weight, and moving it back gives the same bytes.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from ..checkpoint import MemoryTensor
from ..derived.casting import CastTensor
from ..derived.element_types import FLOATS
from ..errors import FormatError, UnsupportedError, quote
from ..text import plural

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ..checkpoint import Tensor
    from .keymaps.table import TableMap

__all__ = ["KEY", "move_scales"]

KEY: Final = "lora_adapter_metadata"
_DOWN: Final = ".lora_A.weight"
_SPECIAL: Final = re.compile(r"[\\^$*+?()\[\]{}|]")


def move_scales(
    tensors: dict[str, Tensor], metadata: dict[str, dict[str, str] | None], names: TableMap
) -> tuple[dict[str, Tensor], str]:
    """Move scales from tensors to the metadata or back, as the new convention wants them.

    Args:
        tensors: Tensors under their old names.
        metadata: Of each file; changed in place.
        names: The map of their names.

    Returns:
        The tensors; those that are new have the name that the map expects, ``scale:MODULE``. And a
        sentence about what was moved, empty if nothing was.

    Raises:
        FormatError: The metadata is not what diffusers writes; a scale is no number.
        UnsupportedError: The model has several files; the scale is one that alpha cannot say.
    """
    alphas = {name: module for name, module in names.to_scale.items() if name in tensors}
    recorded = any(KEY in (entries or ()) for entries in metadata.values())
    if not alphas and not (recorded and names.from_scale):
        return tensors, ""
    if len(metadata) != 1:
        raise UnsupportedError(
            "the scales (alpha) of a LoRA in several files are not moved; merge the files first"
        )
    (file,) = metadata
    entries = dict(metadata[file] or {})
    if alphas:
        found = {module: _number(tensors[name]) for name, module in alphas.items()}
        ranks = dict(_ranks(tensors, names.names))
        if KEY in entries:
            raise FormatError(
                f"there are tensors and metadata ({KEY}) with scales", rule="metadata"
            )
        entries[KEY] = json.dumps(_document(found, ranks), indent=2, sort_keys=True)
        metadata[file] = entries
        left = {name: tensor for name, tensor in tensors.items() if name not in alphas}
        moved = f"{plural(len(alphas), 'scale')} (alpha) moved into the metadata, {KEY}"
        return left, moved
    added = _tensors(entries.pop(KEY), tensors, names)
    metadata[file] = entries
    moved = f"{plural(len(added), 'scale')} (alpha) moved from the metadata ({KEY}) into tensors"
    return tensors | added, moved


def _ranks(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> Iterator[tuple[str, int]]:
    """Modules, as the metadata calls them, and their ranks."""
    for old, tensor in tensors.items():
        for name in (names.get(old, ""), old):
            if name.endswith(_DOWN) and tensor.shape:
                yield name.removesuffix(_DOWN), tensor.shape[0]
                break


def _document(alphas: Mapping[str, float], ranks: Mapping[str, int]) -> dict[str, Any]:
    """The configuration of each component, under keys such as ``unet.r``."""
    for module in alphas.keys() - ranks.keys():
        raise FormatError(f"module {quote(module)} has a scale and no lora_down", rule="metadata")
    components: dict[str, dict[str, int]] = {}
    for module, rank in ranks.items():
        component, _, below = module.partition(".")
        components.setdefault(component, {})[below] = rank
    document: dict[str, Any] = {}
    for component, of_module in components.items():
        scales = {
            below: _plain(alphas.get(f"{component}.{below}", rank))
            for below, rank in of_module.items()
        }
        r, alpha = (Counter(each.values()).most_common(1)[0][0] for each in (of_module, scales))
        fields = {
            "r": r,
            "lora_alpha": alpha,
            "rank_pattern": {below: rank for below, rank in of_module.items() if rank != r},
            "alpha_pattern": {below: each for below, each in scales.items() if each != alpha},
            "target_modules": sorted(of_module),
            "use_dora": False,
            "lora_bias": False,
        }
        document |= {f"{component}.{name}": value for name, value in fields.items()}
    return document


def _plain(value: float) -> float:
    return int(value) if float(value).is_integer() else value


def _number(tensor: Tensor) -> float:
    """The value of a tensor with one element."""
    if math.prod(tensor.shape) != 1 or tensor.dtype.startswith("C"):
        raise FormatError(
            "a scale (alpha) is no single number", rule="metadata", tensor=tensor.name
        )
    wide = tensor if tensor.dtype == "F64" else CastTensor(tensor, "F64")
    (value,) = struct.unpack("<d", wide.view())
    if not math.isfinite(value):
        raise FormatError(f"a scale (alpha) is {value}", rule="metadata", tensor=tensor.name)
    return float(value)


def _tensors(text: str, tensors: Mapping[str, Tensor], names: TableMap) -> dict[str, Tensor]:
    """Name -> the scale, of every module that the metadata speaks of."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"metadata {KEY} is no JSON: {error}", rule="metadata") from error
    if not isinstance(document, dict):
        raise FormatError(f"metadata {KEY} is no JSON object", rule="metadata")
    added: dict[str, Tensor] = {}
    for module, rank in _ranks(tensors, names.names):
        component, _, below = module.partition(".")
        if f"{component}.r" not in document:
            continue
        alpha = _alpha(document, component, below, rank)
        like = tensors[module + _DOWN].dtype
        added[f"scale:{module}"] = _scalar(f"scale:{module}", alpha, like)
    return added


def _alpha(document: Mapping[str, Any], component: str, below: str, rank: int) -> float:
    if document.get(f"{component}.use_rslora"):
        raise UnsupportedError(
            f"the LoRA of {quote(component)} is scaled by the square root of its rank (use_rslora), "
            "which alpha cannot say"
        )
    ranks = document.get(f"{component}.rank_pattern") or {}
    alphas = document.get(f"{component}.alpha_pattern") or {}
    if not (isinstance(ranks, dict) and isinstance(alphas, dict)):
        raise FormatError(f"metadata {KEY}: a pattern is no JSON object", rule="metadata")
    if (said := _by_pattern(ranks, below, document[f"{component}.r"])) != rank:
        raise FormatError(
            f"metadata {KEY}: the rank of {quote(below)} is said to be {said!r}, and is {rank}",
            rule="metadata",
        )
    alpha = _by_pattern(alphas, below, document.get(f"{component}.lora_alpha"))
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not abs(alpha) < 1 << 128:
        raise FormatError(
            f"metadata {KEY}: the alpha of {quote(below)} is no number", rule="metadata"
        )
    return alpha


def _by_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """What applies to a module: keys are names, or their ends (peft/utils/other.py, get_pattern_key).

    PEFT reads keys as regular expressions. diffusers puts ``^`` before whole names; a key that is more
    than that is refused, not evaluated.
    """
    for key, value in patterns.items():
        name = key.removeprefix("^")
        if _SPECIAL.search(name):
            raise UnsupportedError(
                f"metadata {KEY}: {quote(key)} is a pattern, not the name of a module"
            )
        if module == name or (name == key and module.endswith(f".{name}")):
            return value
    return default


def _scalar(name: str, value: float, dtype: str) -> Tensor:
    """A scalar of the type, or of F32 if the type cannot hold it; F64 if that cannot either."""
    wide = MemoryTensor(name, "F64", (), struct.pack("<d", value))
    for code in (dtype, "F32"):
        if code in FLOATS and code != "F64":
            narrow = CastTensor(wide, code)
            try:
                data = narrow.view()
            except UnsupportedError:  # it is beyond the type's range
                continue
            tensor = MemoryTensor(name, code, (), data)
            if _number(tensor) == value:
                return tensor
    return wide
