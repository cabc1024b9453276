"""Coverage-guided fuzzing of the values beside a distributed checkpoint.

    python tests/fuzz/fuzz_values.py -max_total_time=60 [a folder to keep findings in]

Only our errors may come out. What is accepted is plain, and reads the same after it was written again.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["safeweights"]):
    from safeweights.errors import FormatError, UnsupportedError
    from safeweights.frameworks.torch.distributed.values import (
        decoded_values,
        encoded_value,
        values_text,
    )

SEED = values_text(
    {
        "step": 5,
        "betas": encoded_value("", (0.9, float("inf"))),
        "rates": encoded_value("", {1: [None, True, "a"], "$x": {"b": -0.0}}),
    }
)
PLAIN = (type(None), bool, int, float, str, list, tuple, dict)


def check(data: bytes) -> None:
    try:
        values = decoded_values(data, "model.values.json")
    except FormatError:
        return
    for name, value in values.items():
        assert type(value) in PLAIN
        try:
            text = values_text({name: encoded_value(name, value)})
        except (UnsupportedError, UnicodeEncodeError):  # lone surrogates, which JSON can escape
            continue
        assert repr(decoded_values(text, "again")[name]) == repr(value)


def main() -> None:
    check(SEED)
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
