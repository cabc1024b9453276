"""What differs between two checkpoints."""

from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import safeweights
import safeweights.numpy
from safeweights.checkpoint import Checkpoint, MemoryTensor, UnreadableTensor
from safeweights.errors import UnsupportedError
from safeweights.reports import difference
from safeweights.reports.difference import Tolerance, compare

if TYPE_CHECKING:
    from pathlib import Path


def checkpoint(values: dict[str, Any], metadata: dict[str, str] | None = None) -> Checkpoint:
    return safeweights.open(safeweights.numpy.save(values, metadata))


def one(before: Any, after: Any, **given: Any) -> Any:
    """The record of a tensor that is not the same."""
    found = compare(checkpoint({"a": before}), checkpoint({"a": after}), values=True, **given)
    (record,) = [*found["changed"], *found["retyped"]]
    return record


WEIGHTS = {"a": np.arange(6, dtype="f4"), "b": np.ones((2, 3), "f2"), "n": np.arange(4)}


def test_the_same() -> None:
    found = compare(checkpoint(WEIGHTS, {"k": "v"}), checkpoint(WEIGHTS, {"k": "v"}), values=True)
    assert found["same"]
    assert found["unchanged"] == 3
    assert found["metadata"] == {"added": {}, "removed": {}, "changed": {}}
    assert not found["changed"]


def test_names() -> None:
    after = {"a": WEIGHTS["a"], "c": WEIGHTS["b"], "new": np.zeros(2)}
    found = compare(checkpoint(WEIGHTS), checkpoint(after))
    assert not found["same"]
    assert [(each["before"], each["after"]) for each in found["renamed"]] == [("b", "c")]
    assert [each["name"] for each in found["removed"]] == ["n"]
    assert [each["name"] for each in found["added"]] == ["new"]
    assert found["unchanged"] == 1


def test_equal_bytes_are_paired_only_if_that_is_certain() -> None:
    zeros = np.zeros(3)
    before = checkpoint({"x": zeros, "y": zeros})
    found = compare(before, checkpoint({"p": zeros, "q": zeros}))
    assert [(each["before"], each["after"]) for each in found["renamed"]] == [
        ("x", "p"),
        ("y", "q"),
    ]
    found = compare(before, checkpoint({"p": zeros}))
    assert not found["renamed"]
    assert len(found["removed"]) == 2
    # Equal bytes of another shape are another tensor.
    assert not compare(before, checkpoint({"p": zeros.reshape(3, 1)}))["renamed"]


def test_metadata() -> None:
    before, after = (
        checkpoint(WEIGHTS, {"a": "1", "b": "2"}),
        checkpoint(WEIGHTS, {"b": "3", "c": ""}),
    )
    found = compare(before, after)
    assert not found["same"]
    assert found["metadata"] == {
        "added": {"c": ""}, "removed": {"a": "1"}, "changed": {"b": ["2", "3"]},
    }  # fmt: skip
    found = compare(before, after, metadata=False)
    assert found["same"]
    assert found["metadata"] is None


def test_figures() -> None:
    record = one(np.float32([1, 2, 2, 0]), np.float32([1, 2.5, 2, -1e-5]))
    values = record["values"]
    assert not record["close"]
    assert (values["elements"], values["different"], values["beyond"]) == (4, 2, 2)
    assert values["max"] == 0.5
    assert values["mean"] == pytest.approx(0.50001 / 4)
    assert values["relative"] == pytest.approx(0.5 / 3)
    assert values["histogram"] == [
        {"least": 0.0, "elements": 2},
        {"least": pytest.approx(1e-6), "elements": 1},
        {"least": pytest.approx(0.1), "elements": 1},
    ]


def test_tolerances() -> None:
    before, after = np.float32([100, 1, 0]), np.float32([101, 1, 0])
    assert one(before, after, tolerance=Tolerance(rtol=0.02))["close"]
    assert not one(before, after, tolerance=Tolerance(rtol=0.005))["close"]
    assert one(before, after, tolerance=Tolerance(atol=1))["close"]
    found = compare(
        checkpoint({"a": before}), checkpoint({"a": after}), tolerance=Tolerance(atol=1)
    )
    assert found["same"]
    for wrong in (Tolerance(rtol=-1), Tolerance(atol=float("nan")), Tolerance(atol=float("inf"))):
        with pytest.raises(UnsupportedError, match="at least 0"):
            compare(checkpoint({}), checkpoint({}), tolerance=wrong)


def test_values_that_are_not_finite() -> None:
    nan, inf = np.nan, np.inf
    before = np.float32([nan, inf, 1, nan, -inf])
    values = one(before, np.float32([nan, inf, nan, 1, inf]))["values"]
    assert (values["different"], values["not_finite"], values["beyond"]) == (3, 3, 3)
    assert values["max"] is None
    other = np.array([0x7FC00001], "<u4").view("<f4")
    record = one(before[:1], other, tolerance=Tolerance(rtol=1e-9))
    assert record["close"], "a NaN with another payload is a NaN"


def test_zeros_of_both_signs_differ_in_bytes_only() -> None:
    record = one(np.float32([0.0]), np.float32([-0.0]))
    assert record["values"]["different"] == 0
    assert not record["close"], "no tolerance was given"
    assert one(np.float32([0.0]), np.float32([-0.0]), tolerance=Tolerance(atol=1e-9))["close"]


@pytest.mark.parametrize(
    ("kind", "before", "after", "most"),
    [
        ("i1", -128, 127, 255),
        ("i8", -(2**63), 2**63 - 1, float(2**64 - 1)),
        ("i8", 2**53 + 1, 2**53, 1),
        ("u8", 0, 2**64 - 1, float(2**64 - 1)),
        ("?", False, True, 1),
        ("c8", 1 + 1j, 4 + 5j, 5),
        ("f8", 1e308, -1e308, None),
    ],
)
def test_types(kind: str, before: Any, after: Any, most: float | None) -> None:
    assert one(np.array([before], kind), np.array([after], kind))["values"]["max"] == most


def test_another_type_or_shape() -> None:
    record = one(np.float32([1, 2.1]), np.float16([1, 2.1]))
    assert (record["before"]["dtype"], record["after"]["dtype"]) == ("F32", "F16")
    assert record["values"]["max"] == pytest.approx(0.0, abs=1e-3)
    assert record["values"]["different"] == 1
    assert one(np.ones(2), np.ones((2, 1)))["values"] is None
    found = compare(checkpoint({"a": np.ones(2)}), checkpoint({"a": np.ones(2, "f4")}))
    assert found["retyped"][0]["values"] is None
    assert not found["same"]


@pytest.mark.parametrize(
    ("code", "data"), [("F4", b"\x21\x43"), ("F6_E2M3", b"abc"), ("BF16", b"abcd")]
)
def test_packed_types(code: str, data: bytes) -> None:
    count = {"F4": 4, "F6_E2M3": 4, "BF16": 2}[code]
    before, after = (
        Checkpoint({"a": MemoryTensor("a", code, (count,), each)}) for each in (data, data[::-1])
    )
    (record,) = compare(before, after, values=True)["changed"]
    assert (record["values"] is None) == code.startswith("F6")
    assert compare(before, before, values=True)["same"]


def test_tensors_that_cannot_be_read() -> None:
    tensor = UnreadableTensor("q", "Q4_K", (256,), 144, reason="it is quantised")
    found = compare(Checkpoint({"q": tensor}), Checkpoint({"q": tensor}))
    assert found["unreadable"] == {"q": "it is quantised"}
    assert found["same"]
    other = Checkpoint({"r": tensor})
    assert not compare(Checkpoint({"q": tensor}), other)["renamed"]


@given(
    arrays.arrays("<f4", 40, elements=st.floats(-10, 10, width=32)),
    arrays.arrays("<f4", 40, elements=st.floats(-10, 10, width=32)),
)
def test_figures_are_numpys(before: Any, after: Any) -> None:
    saved = difference._PIECE, difference._BLOCK
    difference._PIECE, difference._BLOCK = 64, 32  # several pieces of several blocks
    try:
        found = compare(checkpoint({"a": before}), checkpoint({"a": after}), values=True)
    finally:
        difference._PIECE, difference._BLOCK = saved
    if before.tobytes() == after.tobytes():
        assert found["same"]
        return
    values = found["changed"][0]["values"]
    assert values is not None
    apart = np.abs(after.astype("f8") - before.astype("f8"))
    assert values["different"] == np.count_nonzero(apart)
    assert values["max"] == apart.max()
    assert values["mean"] == pytest.approx(apart.mean())
    assert sum(each["elements"] for each in values["histogram"]) == values["elements"] == 40
    norm = np.linalg.norm(before.astype("f8"))
    if norm and apart.any():
        assert values["relative"] == pytest.approx(np.linalg.norm(apart) / norm)


def test_memory_and_reads_are_bounded(tmp_path: Path) -> None:
    big = {f"t{n}": np.full(3_000_000, n, "f4") for n in range(4)}
    for name in "ab":
        safeweights.numpy.save_file(big, tmp_path / name)
    sides = [safeweights.open(tmp_path / name, backend="pread") for name in "ab"]
    seen: list[int] = []
    tracemalloc.start()
    assert compare(*sides, progress=seen.append)["same"]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6_000_000
    assert seen[-1] == 48_000_000
