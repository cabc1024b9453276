"""Coverage-guided fuzzing of what recognises files and reads settings, templates, graphs and TorchScript.

    python tests/fuzz/fuzz_kinds.py -max_total_time=60 corpus/

The first byte chooses the name. No exception may come out: what is wrong with a file is a concern.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["safeweights"]):
    from safeweights.conversion import Limits
    from safeweights.conversion.kinds import examine
    from safeweights.conversion.kinds.graphs import onnx_concerns, saved_model_concerns
    from safeweights.conversion.torchscript import torchscript_findings
    from safeweights.errors import SafetensorError
    from safeweights.storage import BytesSource

LIMITS = Limits(members=1000, inflation_floor_bytes=1 << 20, inflated_bytes=1 << 22, opcodes=20_000)
NAMES = (
    "file", "model.safetensors", "config.json", "model_index.json", "lines.jsonl", "model_config.yaml",
    "MLmodel", "chat_template.jinja", "model.onnx", "saved_model.pb", "weights.bin", "model.nemo",
)  # fmt: skip
VERDICTS = {"data", "acts", "unread", "unknown"}


def one_input(data: bytes) -> None:
    """Fail on any exception, and on a verdict that does not exist."""
    if not data:
        return
    source = BytesSource(data[1:], "fuzz")
    assert examine(source, NAMES[data[0] % len(NAMES)], limits=LIMITS).verdict in VERDICTS
    for read in (onnx_concerns, saved_model_concerns):
        try:
            list(read(source))
        except SafetensorError:
            continue
    assert all(reason for _, reason in torchscript_findings(data[1:]))


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
