"""What is read, and what is not: slices read runs, opening reads the header."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import safeweights
import safeweights.numpy
from safeweights.storage import DescriptorSource

if TYPE_CHECKING:
    from pathlib import Path

ROWS, COLUMNS = 5000, 5000  # 100 MB of F32, all zeros but a few: the file is sparse


class Reads:
    """Counts the bytes that a source reads or maps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bytes = self.calls = 0
        original = DescriptorSource.read_into

        def counting(source: DescriptorSource, offset: int, buffer: memoryview) -> None:
            self.bytes += len(buffer)
            self.calls += 1
            original(source, offset, buffer)

        monkeypatch.setattr(DescriptorSource, "read_into", counting)

    def taken(self) -> int:
        taken, self.bytes, self.calls = self.bytes, 0, 0
        return taken


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "x.safetensors"
    header = safeweights.numpy.save({"x": np.zeros((0, COLUMNS), "f4")})
    text = header[8:].replace(b"[0,5000]", f"[{ROWS},{COLUMNS}]".encode())
    text = text.rstrip(b" ").replace(
        b'"data_offsets":[0,0]', b'"data_offsets":[0,%d]' % (ROWS * COLUMNS * 4)
    )
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + ROWS * COLUMNS * 4)
        for row in (0, 17, ROWS - 1):
            file.seek(8 + len(text) + row * COLUMNS * 4)
            file.write(np.arange(COLUMNS, dtype="<f4").tobytes())
    return path


@pytest.mark.parametrize(
    ("index", "at_most"),
    [
        (17, COLUMNS * 4),
        (slice(17, 19), 2 * COLUMNS * 4),
        ((17, slice(10, 20)), 40),
        ((slice(0, ROWS), slice(10, 20)), ROWS * (40 + 4096)),  # or one call a run
        ((slice(0, 100), 3), 100 * (4 + 4096)),
        (slice(5, 5), 0),
        ((slice(0, 4000, 1000),), 4 * COLUMNS * 4),
    ],
    ids=str,
)
@pytest.mark.parametrize("framework", ["np", "pt"])
def test_slices_read_what_they_select(
    large: Path, framework: str, index: Any, at_most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if framework == "pt":
        pytest.importorskip("torch", reason="torch is tested where it is installed")
    expected = np.zeros((ROWS, COLUMNS), "f4")[index]
    values = np.arange(COLUMNS, dtype="f4")
    reads = Reads(monkeypatch)
    with safeweights.safe_open(large, framework, backend="pread") as file:
        assert reads.taken() < 1000
        part = file.get_slice("x")
        assert part.get_shape() == [ROWS, COLUMNS]
        assert reads.taken() == 0
        found = np.asarray(part[index])
    assert found.shape == expected.shape
    assert reads.taken() <= at_most
    if index in (17, (17, slice(10, 20))):
        np.testing.assert_array_equal(
            found, values[index[1]] if isinstance(index, tuple) else values
        )


def test_mapped_tensors_are_not_read(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = Reads(monkeypatch)
    with safeweights.safe_open(large, "np", backend="mmap") as file:
        tensor = file.get_tensor("x")
        assert file.get_slice("x")[17, 9] == 9
    assert reads.taken() < 1000
    assert tensor[ROWS - 1, -1] == COLUMNS - 1


def test_writing_to_a_mapped_tensor_leaves_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "x"
    safeweights.numpy.save_file({"x": np.zeros(4)}, path)
    before = path.read_bytes()
    loaded = safeweights.numpy.load_file(path, backend="mmap")["x"]
    loaded += 1
    assert path.read_bytes() == before
    assert not safeweights.numpy.load_file(path)["x"].any()


@pytest.mark.parametrize("backend", ["mmap", "pread"])
def test_steps_may_be_numpy_integers(backend: str, tmp_path: Path) -> None:
    """torch has no negative steps, so these must be recognised, whatever integer they are."""
    torch = pytest.importorskip("torch", reason="the framework without negative steps")
    numbers = np.arange(6, dtype="f4")
    safeweights.numpy.save_file({"a": numbers}, tmp_path / "a")
    with safeweights.safe_open(tmp_path / "a", "pt", backend=backend) as file:
        part = file.get_slice("a")[:: np.int64(-2)]
        assert file.get_slice("a")[1 :: 2**70].tolist() == [1.0]
        with pytest.raises(safeweights.SafetensorError, match="slice of tensor `a`"):
            np.asarray(file.get_slice("a"))
        for wrong in (int, 1.5, "1", [1]):
            with pytest.raises(safeweights.SafetensorError):
                file.get_slice("a")[::wrong]  # type: ignore[misc]
    assert torch.equal(part, torch.tensor([5.0, 3.0, 1.0]))


@pytest.mark.parametrize("bounds", [slice(9, None, -1), slice(9, 1, -2), slice(-9, 9, 1)], ids=str)
def test_bounds_beyond_the_axis_with_a_negative_step(bounds: slice, tmp_path: Path) -> None:
    """A mapped torch tensor clamps them, as torch and NumPy do; others refuse them, as the reference."""
    pytest.importorskip("torch", reason="the framework that indexes mapped tensors itself")
    numbers = np.arange(6, dtype="f4")
    safeweights.numpy.save_file({"a": numbers}, tmp_path / "a")
    with safeweights.safe_open(tmp_path / "a", "pt", backend="mmap") as file:
        assert file.get_slice("a")[bounds].tolist() == numbers[bounds].tolist()
    for framework, backend in (("pt", "pread"), ("np", "mmap"), ("np", "pread")):
        with (
            safeweights.safe_open(tmp_path / "a", framework, backend=backend) as file,
            pytest.raises(safeweights.SafetensorError, match="out of bounds"),
        ):
            file.get_slice("a")[bounds]
