"""Arrays whose NumPy type does not tell what it holds: BF16 and F8, saved where NumPy lacks them."""

from __future__ import annotations

import io
import pickle
from typing import TYPE_CHECKING, Any

import h5py
import ml_dtypes
import numpy as np
import pytest
from click.testing import CliRunner

import safeweights
from safeweights.cli.app import cli
from safeweights.conversion import convert
from safeweights.derived.element_types import parse_untold
from safeweights.errors import UnsupportedError

if TYPE_CHECKING:
    from pathlib import Path

VALUES = np.float32([[1, -2, 0.5], [448, 0, -0.0]])
BF16 = VALUES.astype(ml_dtypes.bfloat16)
E4M3 = VALUES.astype(ml_dtypes.float8_e4m3fn)
E5M2 = VALUES.astype(ml_dtypes.float8_e5m2)
TOLD = {"V2": "BF16", "V1": "F8_E4M3", "f1": "F8_E5M2"}


def write(path: Path) -> dict[str, np.ndarray]:
    """Write arrays as others do; what is in the file."""
    arrays = {"a": BF16, "b": E4M3, "c": E5M2, "known": VALUES}
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    elif path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            for name in ("a", "b", "known"):
                file[name] = arrays[name]
        del arrays["c"]
    else:
        path.write_bytes(
            pickle.dumps({"a": BF16.view("V2"), "b": E4M3.view("V1"), "known": VALUES})
        )
        del arrays["c"]
    return arrays


@pytest.mark.parametrize("suffix", [".npz", ".h5", ".pkl"])
def test_a_type_that_is_told(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"m{suffix}"
    expected = write(path)
    opened = safeweights.open(path)
    assert set(opened.refused) == expected.keys() - {"known"}
    with pytest.raises(UnsupportedError, match=r"NumPy type V2 .*--dtype-of. V2=TYPE"):
        opened["a"].numpy()
    found = safeweights.open(path, dtype_of=TOLD)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].numpy().dtype == values.dtype
        assert found[name].numpy().tobytes() == values.tobytes()


def test_convert(tmp_path: Path) -> None:
    write(tmp_path / "m.npz")
    with pytest.raises(UnsupportedError, match=r"3 tensors cannot be converted.*--dtype-of"):
        convert(tmp_path / "m.npz", tmp_path / "m.safetensors")
    words = ["convert", str(tmp_path / "m.npz"), str(tmp_path / "m.safetensors")]
    told = ["--dtype-of", "V2=bfloat16,V1=F8_E4M3,f1=F8_E5M2"]
    result = CliRunner().invoke(cli, [*words, *told, "--dtype", "F8_E5M2=F32"])
    assert result.exit_code == 0, result.output
    found = safeweights.open(tmp_path / "m.safetensors")
    assert {name: each.dtype for name, each in found.items()} == {
        "a": "BF16", "b": "F8_E4M3", "c": "F32", "known": "F32",
    }  # fmt: skip
    assert np.array_equal(found["c"].numpy(), E5M2.astype("f4"))


@pytest.mark.parametrize(
    "text", ["V2=F32", "V2=I8", "V2", "V3=F32", "f4=BF16", "V1=F4", "V2=V2", "", "V2=BF16,x"]
)
def test_hostile_requests(text: str, tmp_path: Path) -> None:
    with pytest.raises((UnsupportedError, safeweights.SafetensorError)):
        parse_untold(text)
    result = CliRunner().invoke(cli, ["convert", "a", "b", "--dtype-of", text or "=", "--json"])
    assert result.exit_code == 2


@pytest.mark.parametrize("kind", ["V2", "V1", "<f1"])
def test_an_array_of_the_wrong_length_is_refused(kind: str) -> None:
    file = io.BytesIO()
    np.save(file, BF16 if kind == "V2" else E4M3 if kind == "V1" else E5M2)
    assert safeweights.open(file.getvalue(), dtype_of=TOLD)
    with pytest.raises(safeweights.SafetensorError, match="bytes"):
        safeweights.open(file.getvalue()[:-1], dtype_of=TOLD)


def test_structures_are_no_numbers(tmp_path: Path) -> None:
    pair: Any = np.zeros(3, [("x", "u1"), ("y", "u1")])
    np.savez(tmp_path / "m.npz", a=pair)
    (tmp_path / "m.pkl").write_bytes(pickle.dumps({"a": pair}))
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file["a"] = pair
    for name in ("m.npz", "m.pkl", "m.h5"):
        found = safeweights.open(tmp_path / name, dtype_of=TOLD)
        assert list(found.refused) == ["a"]
