"""Reading a part of a tensor: NumPy's values, from any backend, and few other bytes read."""

from __future__ import annotations

import math
import os
import threading
import tracemalloc
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from new_threads import threads_since_now
from safeweights.checkpoint import Checkpoint, MemoryTensor, Tensor, open, save, to_bytes
from safeweights.errors import SelectionError
from safeweights.format.dtypes import BITS
from safeweights.format.indexing import runs, select
from safeweights.format.writer import layout
from safeweights.storage import Source, files, gathering
from safeweights.storage.syscalls import read_vectors

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BACKENDS = ("mmap", "pread", "direct", "auto")
DTYPES = {1: "U8", 2: "F16", 4: "I32", 8: "F64"}


def chosen(tensor: Tensor, expression: Any) -> np.ndarray[Any, Any]:
    """What a framework makes of a selection: the bytes, shaped, and reversed where asked."""
    selection = select(expression, tensor.shape, clamp=True)
    data = np.frombuffer(tensor.read_selection(selection), np.uint8)
    width = BITS[tensor.dtype] // 8
    array = data.reshape(*selection.counts, width)
    for axis in selection.reversed:
        array = np.flip(array, axis)
    return np.ascontiguousarray(array).reshape(*selection.shape, width)


@st.composite
def selections(draw: st.DrawFn) -> tuple[np.ndarray[Any, Any], Any]:
    width = draw(st.sampled_from(sorted(DTYPES)))
    shape = draw(npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9))
    array = np.arange(math.prod(shape), dtype=f"u{width}").reshape(shape)
    expression = draw(npst.basic_indices(shape, allow_newaxis=True)) if shape else ()
    return array, expression


@settings(max_examples=250)
@given(selections(), st.sampled_from([1 << 23, 64]), st.sampled_from([4096, 8]))
def test_selections_are_numpys_on_every_engine(
    tmp_path_factory: pytest.TempPathFactory,
    case: tuple[np.ndarray[Any, Any], Any],
    slab: int,
    gap: int,
) -> None:
    array, expression = case
    path = tmp_path_factory.getbasetemp() / "selections.safetensors"
    tensor = MemoryTensor("t", DTYPES[array.itemsize], array.shape, array)
    save({"t": tensor, "other": MemoryTensor("other", "U8", (3,), b"abc")}, path)
    expected = np.asarray(array[expression])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gathering, "_SLAB", slab)
        patch.setattr(Source, "gap", gap)
        for source in (tensor, *(open(path, backend=name)["t"] for name in BACKENDS)):
            found = chosen(source, expression)
            assert found.tobytes() == np.ascontiguousarray(expected).tobytes()
            assert found.shape[:-1] == expected.shape


def test_elements_that_share_bytes() -> None:
    tensor = open(to_bytes({"t": MemoryTensor("t", "F4", (4, 6), bytes(range(12)))}))["t"]
    assert bytes(tensor.read_selection(select((slice(None), slice(2, 4)), (4, 6)))) == b"\1\4\7\n"
    with pytest.raises(SelectionError, match="byte"):
        tensor.read_selection(select((slice(None), slice(1, 3)), (4, 6)))


# ---- what is read


@pytest.fixture
def matrix(tmp_path: Path) -> Path:
    """A tensor of 1,000 rows of 4 KiB."""
    data = np.arange(1000 * 1024, dtype="i4")
    save({"m": MemoryTensor("m", "I32", (1000, 1024), data)}, tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes asked of the system by each read, where it gives no lease: with one, nothing is read."""
    counts: list[int] = []
    real = os.preadv

    def counted(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        counts.append(len(buffers[0]))
        return real(descriptor, buffers, offset)

    def counted_vectors(descriptor: int, vectors: int, count: int, offset: int) -> int:
        counts.append(read_vectors(descriptor, vectors, count, offset))
        return counts[-1]

    monkeypatch.setattr(os, "preadv", counted)
    monkeypatch.setattr(gathering, "read_vectors", counted_vectors)
    monkeypatch.setattr(files, "leased", lambda _: nullcontext())
    return counts


ROW = 4096


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        (7, [ROW]),
        (slice(10, 20), [10 * ROW]),
        ((5, slice(3, 9)), [24]),
        (slice(0, 0), []),
        ((slice(None), slice(100, 200)), [999 * ROW + 400]),  # gaps of under 4 KiB: together
        (slice(None, None, 2), [998 * ROW + ROW]),  # gaps of exactly 4 KiB
        (slice(None, None, 8), [ROW] * 125),  # gaps of 28 KiB: one by one
        ((slice(None, None, 100), slice(0, 2)), [8] * 10),
    ],
)
def test_no_more_is_read_than_needed(
    matrix: Path, reads: list[int], expression: Any, expected: list[int]
) -> None:
    opened = open(matrix, backend="pread")
    reads.clear()
    tensor = opened["m"]
    assert reads == []  # asking for a tensor reads nothing
    selection = select(expression, tensor.shape)
    found = np.frombuffer(tensor.read_selection(selection), "i4").reshape(selection.shape)
    whole = np.arange(1000 * 1024, dtype="i4").reshape(1000, 1024)
    np.testing.assert_array_equal(found, whole[expression])
    # Runs in the page cache are read some hundred at a time, without what lies between two calls.
    assert len(reads) <= 2 * len(expected)
    left_out = ROW * max(len(reads) - len(expected), 0)
    assert sum(expected) - left_out <= sum(reads) <= sum(expected)
    wanted = runs(selection, tensor.shape, "I32")
    assert sum(reads) <= wanted.nbytes + 4096 * wanted.run_count


@pytest.mark.parametrize("expression", [7, slice(None, None, 8), (slice(None), slice(100, 200))])
def test_mapped_tensors_read_nothing(matrix: Path, reads: list[int], expression: Any) -> None:
    opened = open(matrix)
    reads.clear()
    opened["m"].read_selection(select(expression, (1000, 1024)))
    assert reads == []


def test_contiguous_parts_of_mapped_tensors_are_not_copied(matrix: Path) -> None:
    tensor = open(matrix)["m"]
    part, whole = tensor.read_selection(select(slice(2, 4), (1000, 1024))), tensor.view()
    part[:4] = b"mine"
    assert whole[2 * ROW : 2 * ROW + 4] == b"mine"


@pytest.mark.parametrize(
    ("shape", "expression"),
    [
        ((40, 1 << 20), (slice(None), slice(0, 1 << 19))),  # far runs
        ((40, 1 << 20), (slice(None), slice(0, (1 << 20) - 8))),  # close runs of 1 MiB
        ((2, 20 << 20), (slice(None), slice(0, (20 << 20) - 8))),  # close runs larger than a slab
        ((2, 5000, 4096), (slice(None), slice(None), slice(0, 2048))),  # nested
    ],
)
def test_memory_is_that_of_the_result_and_a_slab(
    tmp_path: Path, shape: tuple[int, ...], expression: Any
) -> None:
    path = tmp_path / "sparse"
    header, head = layout([("t", "U8", shape)])
    path.write_bytes(head)
    os.truncate(path, len(head) + header.data_size)
    tensor = open(path, backend="pread")["t"]
    selection = select(expression, shape)
    result = math.prod(selection.shape)
    tracemalloc.start()
    try:
        assert len(tensor.read_selection(selection)) == result
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= result + (8 << 20) + (1 << 20)


# ---- many at once


def test_sixteen_threads_slice_and_save(
    tmp_path: Path, matrix: Path, descriptors: Callable[[], int]
) -> None:
    whole = np.arange(1000 * 1024, dtype="i4").reshape(1000, 1024)
    shared = {backend: open(matrix, backend=backend) for backend in BACKENDS}
    failures: list[BaseException] = []
    started = threads_since_now()
    before = descriptors()

    def check(opened: Checkpoint, row: int) -> None:
        expression = (slice(row, None, 7), slice(row, row + 50))
        np.testing.assert_array_equal(
            chosen(opened["m"], expression).reshape(-1).view("i4"), whole[expression].reshape(-1)
        )

    def work(number: int) -> None:
        try:
            for turn in range(6):
                backend = BACKENDS[(number + turn) % len(BACKENDS)]
                check(shared[backend], number * 10 + turn)
                target = tmp_path / f"copy-{number % 4}"  # several threads save the same file
                save(shared[backend].filter(), target)
                check(open(target, backend=backend), number + turn)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert not started()
    assert descriptors() == before
    assert sorted(os.listdir(tmp_path)) == [*(f"copy-{n}" for n in range(4)), matrix.name]
    assert {(tmp_path / f"copy-{n}").read_bytes() == matrix.read_bytes() for n in range(4)} == {
        True
    }


def test_a_file_that_is_replaced_while_it_is_read(
    tmp_path: Path, file_of: Callable[..., bytes]
) -> None:
    """Whoever has it open goes on with the old bytes, whoever opens it gets the old or the new."""
    path = tmp_path / "a.safetensors"
    versions = [file_of(None, w=bytes([value]) * 100_000) for value in (1, 2)]
    path.write_bytes(versions[0])
    done = threading.Event()

    def replace() -> None:
        for turn in range(60):
            save(open(versions[turn % 2]), path)
        done.set()

    thread = threading.Thread(target=replace)
    thread.start()
    seen = set()
    while not done.is_set() or len(seen) == 0:
        for backend in BACKENDS:
            data = bytes(open(path, backend=backend)["w"].view())
            assert data in {bytes([1]) * 100_000, bytes([2]) * 100_000}
            seen.add(data[0])
    thread.join()
