"""Types that NumPy lacks: decoded exactly, and read, shown and cast without ml_dtypes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import pytest
from click.testing import CliRunner

import safeweights
from safeweights.checkpoint import Checkpoint, MemoryTensor
from safeweights.cli.app import cli
from safeweights.derived.casting import CastTensor
from safeweights.derived.small_floats import CODES, NARROWED, limits, narrowed, widened
from safeweights.errors import MissingDependencyError
from safeweights.format.dtypes import BITS, DTYPES
from safeweights.frameworks.numpy import numpy_dtype

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def every_value(code: str) -> bytes:
    if code == "BF16":
        return np.arange(1 << 16, dtype="<u2").tobytes()
    return bytes(range(256))


def as_ml_dtypes(code: str, data: bytes) -> np.ndarray:
    values = np.frombuffer(data, np.uint8)
    if code == "F4":
        values = np.stack([values & 15, values >> 4], axis=1).reshape(-1)
    return values.view(np.dtype(getattr(ml_dtypes, DTYPES[code].numpy)))


@pytest.mark.parametrize("code", sorted(CODES))
def test_every_value_is_decoded_exactly(code: str) -> None:
    found = widened(code, every_value(code))
    expected = as_ml_dtypes(code, every_value(code)).astype("f4")
    assert found.dtype == np.float32
    nan = np.isnan(expected)
    assert np.array_equal(np.isnan(found), nan)
    assert np.array_equal(np.signbit(found), np.signbit(expected))
    assert np.array_equal(found[~nan].view("u4"), expected[~nan].view("u4"))
    finfo = ml_dtypes.finfo(getattr(ml_dtypes, DTYPES[code].numpy))
    assert limits(code) == (float(finfo.min), float(finfo.max), finfo.nmant)


HALVES = np.arange(1 << 16, dtype="<u4") << 16
RANDOM = np.random.default_rng(0)
FLOATS = {
    **{
        f"halves and {low:#x}": (HALVES | low).view("<f4")
        for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)
    },
    "any bits": RANDOM.integers(0, 1 << 32, 300_000, "u4").view("<f4"),
    "doubles": RANDOM.standard_normal(300_000) * np.exp2(RANDOM.integers(-20, 20, 300_000)),
    # In F32 this is a tie, as doubles it is not: both packages round twice.
    "rounded twice": 1 + np.exp2([-4.0, -3.0, -8.0, -9.0]) + 2.0**-40,
    "half": np.arange(1 << 16, dtype="<u2").view("<f2"),
    "none": np.zeros(0, "f4"),
}


@pytest.mark.parametrize("values", FLOATS.values(), ids=FLOATS.keys())
@pytest.mark.parametrize("code", sorted(NARROWED))
def test_values_are_encoded_as_ml_dtypes_does(code: str, values: np.ndarray) -> None:
    before = values.tobytes()
    found = narrowed(code, values)
    assert values.tobytes() == before
    with np.errstate(all="ignore"):
        expected = values.astype(np.dtype(getattr(ml_dtypes, DTYPES[code].numpy)))
    assert np.array_equal(found, expected.view(found.dtype))


@pytest.mark.parametrize("code", sorted(NARROWED))
def test_every_value_is_encoded_as_itself(code: str) -> None:
    patterns = np.frombuffer(every_value(code), "<u2" if code == "BF16" else "u1")
    values = widened(code, every_value(code))
    kept = np.isfinite(values)
    assert np.array_equal(narrowed(code, values)[kept], patterns[kept])


@pytest.mark.parametrize("code", sorted(NARROWED))
def test_values_are_encoded_as_torch_does(code: str) -> None:
    torch = pytest.importorskip("torch")
    values = FLOATS["any bits"]
    kind = getattr(torch, DTYPES[code].torch)
    expected = (
        torch.from_numpy(values.copy()).to(kind).view(getattr(torch, f"uint{BITS[code]}")).numpy()
    )
    # NaN, what is too large, and what has no sign are each package's own; a conversion refuses the latter.
    low, high, _ = limits(code)
    same = (values >= low) & (values <= high)
    assert np.array_equal(narrowed(code, values)[same], expected[same])


@pytest.fixture
def without_ml_dtypes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As after `pip install safeweights`, without extras."""
    numpy_dtype.cache_clear()
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    yield
    numpy_dtype.cache_clear()


def tensor(code: str) -> MemoryTensor:
    data = bytes(range(24))
    return MemoryTensor("a", code, (2, 96 // BITS[code]), data)


@pytest.mark.parametrize("code", sorted(CODES))
@pytest.mark.usefixtures("without_ml_dtypes")
def test_values_on_a_default_install(code: str) -> None:
    unread = tensor(code)
    expected = widened(code, bytes(range(24))).reshape(unread.shape)
    for found in (unread.numpy(), unread[...], np.asarray(unread)):
        assert found.dtype == np.float32
        assert np.array_equal(found, expected, equal_nan=True)
    assert np.array_equal(unread[1, 2:4], expected[1, 2:4], equal_nan=True)
    if BITS[code] >= 8:
        for target in {"F32", "F64", "BF16"} - {code}:
            cast = CastTensor(unread, target).numpy()
            assert np.array_equal(cast, expected.astype(cast.dtype), equal_nan=True)


@pytest.mark.usefixtures("without_ml_dtypes")
def test_loading_says_how_to_read() -> None:
    data = safeweights.serialize({"a": {"dtype": "bfloat16", "shape": [2], "data": bytes(4)}})
    with pytest.raises(MissingDependencyError, match=r"open\(path\)\[name\]\.numpy\(\)"):
        safeweights.numpy.load(data)
    assert safeweights.open(data)["a"].numpy().tolist() == [0, 0]


@pytest.mark.parametrize("code", sorted(CODES - {"F4"}))
@pytest.mark.usefixtures("without_ml_dtypes")
def test_commands_on_a_default_install(code: str, tmp_path: Path) -> None:
    path, out = tmp_path / "x.safetensors", tmp_path / "y.safetensors"
    safeweights.save(Checkpoint({"a": tensor(code)}), path)
    expected = widened(code, bytes(range(24)))
    runs = {
        "get": ["get", str(path), "a"],
        "stats": ["get", str(path), "a", "--stats"],
        "convert": ["convert", str(path), str(out), "--dtype", "F32"],
        "back": ["convert", str(out), str(path), "--dtype", code, "--force"],
    }
    for words in runs.values():
        done = CliRunner().invoke(cli, words)
        assert done.exit_code == 0, done.output
        assert "ml_dtypes" not in done.output
    back = safeweights.open(path)["a"].numpy().reshape(-1)
    assert np.array_equal(back, expected, equal_nan=True)
    found = safeweights.open(out)["a"]
    assert found.dtype == "F32"
    assert np.array_equal(found.numpy().reshape(-1), expected, equal_nan=True)
