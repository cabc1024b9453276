"""Coverage-guided fuzzing of the format's reader: any bytes give a mapping or a SafetensorError.

    python tests/fuzz/fuzz_header.py -max_total_time=20 [a folder to keep findings in]

Begins with the conformance vectors. For every file the fast and the exact way of reading its header
have to agree as well, and so have `parse` and `problems`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["safeweights"]):
    from safeweights import checkpoint
    from safeweights.errors import FormatError, SafetensorError
    from safeweights.format import bulk as chunks
    from safeweights.format import entries, header, rules

VECTORS = Path(__file__).parents[2] / "conformance"
LARGEST = 20_000  # vectors above this slow the fuzzer down and teach it nothing

# With few bytes taken at once, the small files of a fuzzer reach what lies across boundaries.
chunks.BULK_SIZE = entries.BULK_SIZE = header.BULK_SIZE = 200  # type: ignore[misc]


def check(data: bytes) -> None:
    try:
        found = checkpoint.open(data)
    except SafetensorError as error:
        str(error)
    else:
        for tensor in found.values():
            assert len(tensor.view()) == tensor.nbytes
        assert len(found) == len(list(found))
    text, size = data[8:], 0
    length = int.from_bytes(data[:8], "little")
    if length < len(text):
        text, size = text[:length], len(text) - length
    problems = header.problems(text, size, strict=True)
    first = next((error for error in problems if not error.rule.startswith("strict-")), None)
    raised = None
    try:
        header.parse(text, size)
    except FormatError as error:
        raised = error
    assert shown(raised) == shown(first)
    assert outcome(text, bulk=True) == outcome(text, bulk=False)


def shown(error: FormatError | None) -> tuple[str, str] | None:
    return None if error is None else (error.rule, str(error))


def outcome(text: bytes, *, bulk: bool) -> object:
    try:
        found = entries.Entries(text, rules.Problems(None), bulk=bulk)
    except FormatError as error:
        return shown(error)
    return list(found.tensors.items()), found.metadata, found.sized, found.in_order, found.end


def main() -> None:
    files = sorted(VECTORS.glob("*/*.safetensors"))
    seeds = [file for file in files if file.stat().st_size <= LARGEST]
    for seed in seeds:
        check(seed.read_bytes())
    beginning = ",".join(map(str, seeds))
    program, *options = sys.argv
    atheris.Setup([program, f"-max_len={LARGEST}", f"-seed_inputs={beginning}", *options], check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
