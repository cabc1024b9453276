"""Coverage-guided fuzzing of quantised weights: shapes, small parts, settings and blocks are hostile.

    python tests/fuzz/fuzz_quantised.py -max_total_time=60 corpus/

The first byte chooses the scheme; shapes, types and contents come from the rest. Only errors of this
package may come out.
"""

from __future__ import annotations

import json
import math
import sys

import atheris

with atheris.instrument_imports(include=["safeweights.derived"]):
    from safeweights.checkpoint import Checkpoint, MemoryTensor
    from safeweights.derived.quantised.ggml import BLOCKS, GgmlTensor
    from safeweights.derived.quantised.schemes import CHOICES, SETTINGS_FILES
    from safeweights.errors import SafetensorError
    from safeweights.format.dtypes import BITS

PARTS = (
    ("l.weight", "l.weight_scale", "l.weight_zero_point", "l.weight_scale_2", "l.comfy_quant"),
    ("l.weight", "l.weight_scale_inv"),
    ("l.weight_packed", "l.weight_scale", "l.weight_shape", "l.weight_zero_point", "l.weight_g_idx"),
    ("l.weight_packed", "l.weight_scale", "l.weight_global_scale"),
    ("l.qweight", "l.qzeros", "l.scales", "l.g_idx"),
    ("up_blocks", "up_scales"),
    (
        "w", "w.absmax", "w.quant_map", "w.nested_absmax", "w.nested_quant_map",
        "w.quant_state.bitsandbytes__nf4",
    ),
    ("l.weight", "l.SCB", "l.weight_format"),
    ("l.W_q", "l.scale", "l.zero", "l.shape", "l.axis", "l.group_size", "l.packing"),
    ("l._weight_qdata", "l._weight_scale", "l._weight_zero_point", "l._weight_per_tensor_scale"),
)  # fmt: skip
TYPES = tuple(BITS)
KEYS = ("quant_method", "bits", "group_size", "checkpoint_format", "version", "weight_block_size")
METHODS = (
    "fp8",
    "gptq",
    "awq",
    "compressed-tensors",
    "bitsandbytes",
    "torchao",
    "hqq",
    "modelopt",
    "x",
)
SMALL = 1 << 14


def tensor(given: atheris.FuzzedDataProvider, name: str) -> MemoryTensor:
    """A tensor of a type, a shape and contents that the input chooses."""
    code = TYPES[given.ConsumeIntInRange(0, len(TYPES) - 1)]
    rank = given.ConsumeIntInRange(0, 4)
    shape = tuple(given.ConsumeIntInRange(0, 66) for _ in range(rank))
    if BITS[code] < 8:
        shape = (*shape[:-1], 8) if shape else (8,)
    size = min(math.prod(shape) * BITS[code] // 8, SMALL)
    data = given.ConsumeBytes(size)
    if size == SMALL:
        shape, code = (SMALL,), "U8"
    return MemoryTensor(name, code, shape, data + bytes(size - len(data)))


def settings(given: atheris.FuzzedDataProvider) -> dict[str, object]:
    """Settings with some keys, whose values are of any type."""
    chosen: dict[str, object] = {}
    for key in KEYS:
        kind = given.ConsumeIntInRange(0, 5)
        if kind == 1:
            chosen[key] = given.ConsumeIntInRange(-3, 200)
        elif kind == 2:
            chosen[key] = METHODS[given.ConsumeIntInRange(0, len(METHODS) - 1)]
        elif kind == 3:
            chosen[key] = [given.ConsumeIntInRange(-1, 200) for _ in range(2)]
        elif kind == 4:
            chosen[key] = {"weights": {"num_bits": given.ConsumeIntInRange(-1, 9)}}
    chosen["config_groups"] = {"g": chosen.pop("version", None)}
    return chosen


def one_input(data: bytes) -> None:
    """Fail on any exception but our own."""
    given = atheris.FuzzedDataProvider(data)
    choice = given.ConsumeIntInRange(0, len(PARTS) + 1)
    metadata = {"l.weight": given.ConsumeUnicodeNoSurrogates(60)}
    if choice == len(PARTS):
        kind = sorted(BLOCKS)[given.ConsumeIntInRange(0, len(BLOCKS) - 1)]
        values, nbytes = BLOCKS[kind]
        count = given.ConsumeIntInRange(1, 4)
        blocks = given.ConsumeBytes(count * nbytes).ljust(count * nbytes, b"\1")
        stored = MemoryTensor("w", "U8", (len(blocks),), blocks)
        tensors = {"w": GgmlTensor("w", kind, (count, values), stored, None)}
    else:
        names = PARTS[min(choice, len(PARTS) - 1)]
        tensors = {name: tensor(given, name) for name in names if given.ConsumeBool()}
    found = Checkpoint(tensors, metadata)
    scheme = given.PickValueInList([None, *CHOICES])
    if given.ConsumeBool():
        document = given.ConsumeUnicodeNoSurrogates(200)
        text = (
            document
            if given.ConsumeBool()
            else json.dumps({"quantization_config": settings(given)})
        )
        found.beside = lambda name, _: text.encode() if name == SETTINGS_FILES[0] else None
    chosen = None if found.beside else settings(given)
    try:
        dense = found.dequantize("BF16", scheme=scheme, settings=chosen)
    except SafetensorError:
        return
    for each in dense.values():
        try:
            each.view()
            if each.shape and min(each.shape):
                _ = each[..., -1:]
        except SafetensorError:
            continue


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
