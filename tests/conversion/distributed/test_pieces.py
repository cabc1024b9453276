"""Tensors made up of pieces: any boxes, any layout of each, any part of the whole."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
from cutting import split
from hypothesis import given
from hypothesis import strategies as st

from safeweights.derived.boxes import Box, boxes_of_range, first_gap, first_overlap
from safeweights.derived.layout import Strided
from safeweights.derived.pieces import Piece, PiecewiseTensor, check_cover
from safeweights.errors import FormatError
from safeweights.format.indexing import select
from safeweights.storage import BytesSource, Source


class FileLike(Source):
    """A source that must be read, and notes what was."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self.name = "pieces"
        self.size = len(data)
        self.was_read = 0

    def read_into(self, offset: int, buffer: memoryview) -> None:
        assert 0 <= offset <= offset + len(buffer) <= self.size
        self.was_read += len(buffer)
        buffer[:] = self._data[offset : offset + len(buffer)]


def stored(values: np.ndarray[Any, Any], rng: random.Random, make: Any) -> Strided:
    """An array in a source of its own: contiguous, transposed, with gaps, or big-endian."""
    kind = rng.choice(["plain", "transposed", "gaps", "swapped"])
    order = list(range(values.ndim))
    swapped = kind == "swapped"
    if kind == "transposed":
        rng.shuffle(order)
    lead = rng.randrange(3)
    padded = [count + (2 if kind == "gaps" else 0) for count in values.shape]
    buffer = np.full([padded[axis] for axis in order], 251, values.dtype)
    inner = buffer[(*(slice(0, values.shape[axis]) for axis in order), ...)]
    inner[...] = values.transpose(order)
    memory = buffer.astype(values.dtype.newbyteorder(">")) if swapped else buffer
    strides = [0] * values.ndim
    for place, axis in enumerate(order):
        strides[axis] = buffer.strides[place] // buffer.itemsize
    source = make(bytes(lead) + memory.tobytes())
    return Strided(source, lead, "I32", values.shape, tuple(strides), swapped)


def matrix(source: Source, rows: int, columns: int) -> Strided:
    return Strided(source, 0, "U8", (rows, columns), (columns, 1))


@st.composite
def wholes(draw: st.DrawFn) -> tuple[np.ndarray[Any, Any], PiecewiseTensor, list[Piece]]:
    rng = random.Random(draw(st.integers(0, 1 << 30)))
    shape = tuple(draw(st.lists(st.integers(1, 7), max_size=4)))
    values = np.arange(1, math.prod(shape) + 1, dtype="<i4").reshape(shape)
    boxes = split(Box((0,) * len(shape), shape), rng, draw(st.integers(0, 6)))
    rng.shuffle(boxes)
    make = FileLike if draw(st.booleans()) else BytesSource
    pieces = []
    for number, box in enumerate(boxes):
        part = values[(*map(slice, box.offsets, box.ends), ...)]
        array = stored(part, rng, make)
        pieces.append(Piece(box, lambda array=array: array, f"piece {number}"))
    return values, PiecewiseTensor("w", "I32", shape, pieces), pieces


@given(wholes(), st.data())
def test_every_part_is_the_values(
    whole: tuple[np.ndarray[Any, Any], PiecewiseTensor, list[Piece]], data: st.DataObject
) -> None:
    values, tensor, pieces = whole
    check_cover("w", values.shape, pieces, "path")
    plain = values.tobytes()
    assert bytes(tensor.view()) == plain
    size = data.draw(st.integers(1, 40))
    assert b"".join(bytes(chunk) for chunk in tensor.chunks(size)) == plain
    begin = data.draw(st.integers(0, len(plain)))
    buffer = bytearray(data.draw(st.integers(0, len(plain) - begin)))
    tensor.read_into(buffer, begin)
    assert bytes(buffer) == plain[begin : begin + len(buffer)]
    expression = tuple(
        data.draw(st.builds(slice, st.integers(0, count), st.integers(0, count), st.integers(1, 3)))
        for count in values.shape
    )
    found = tensor.read_selection(select(expression, values.shape))
    assert bytes(found) == values[expression].tobytes()


@given(wholes(), st.integers(0, 1 << 30))
def test_a_missing_a_repeated_or_a_longer_piece_is_an_error(
    whole: tuple[np.ndarray[Any, Any], PiecewiseTensor, list[Piece]], seed: int
) -> None:
    values, _, pieces = whole
    rng = random.Random(seed)
    chosen = rng.randrange(len(pieces))
    missing = pieces[:chosen] + pieces[chosen + 1 :]
    with pytest.raises(FormatError, match="incomplete") as gap:
        check_cover("w", values.shape, missing, "path")
    assert gap.value.rule == "pieces-gap"
    first = first_gap(values.shape, [piece.box for piece in missing])
    assert first == pieces[chosen].box.offsets  # the boxes are cut so that the corner is the first
    with pytest.raises(FormatError, match="overlap"):
        check_cover("w", values.shape, [*pieces, pieces[chosen]], "path")
    if values.ndim:
        box = pieces[chosen].box
        longer = Box(box.offsets, (*box.lengths[:-1], values.shape[-1] - box.offsets[-1] + 1))
        with pytest.raises(FormatError, match="outside"):
            check_cover("w", values.shape, [Piece(longer, pieces[0]._find, "x"), *missing], "path")


@pytest.mark.parametrize(
    ("grid", "box"),
    [((4,), ((-1,), (5,))), ((4,), ((0,), (-4,))), ((1 << 64,), ((0,), (1 << 64,))), ((2, 2), ((0,), (4,))),
     ((1 << 40, 1 << 40), ((0, 0), (1 << 40, 1 << 40))), ((1,) * 33, ((0,) * 33, (1,) * 33))],
)  # fmt: skip
def test_impossible_numbers(grid: tuple[int, ...], box: Any) -> None:
    with pytest.raises(FormatError) as error:
        check_cover("w", grid, [Piece(Box(*box), lambda: pytest.fail("opened"), "x")], "path")
    assert error.value.rule == "pieces-bounds"


@given(st.lists(st.integers(1, 5), max_size=4), st.data())
def test_a_range_is_boxes_in_order(grid: list[int], data: st.DataObject) -> None:
    count = math.prod(grid)
    begin = data.draw(st.integers(0, count))
    end = data.draw(st.integers(0, count))
    values = np.arange(count).reshape(grid)
    boxes = list(boxes_of_range(grid, begin, end))
    parts = [values[(*map(slice, box.offsets, box.ends), ...)].reshape(-1) for box in boxes]
    assert np.concatenate([np.arange(0), *parts]).tolist() == list(range(begin, end))
    assert len(boxes) <= max(2 * len(grid) - 1, 1)


@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(0, 3), st.integers(0, 3)))
)
def test_overlaps_are_found(numbers: list[tuple[int, int, int, int]]) -> None:
    boxes = [Box((a, b), (c, d)) for a, b, c, d in numbers]
    cells = [
        {
            (a, b)
            for a in range(box.offsets[0], box.ends[0])
            for b in range(box.offsets[1], box.ends[1])
        }
        for box in boxes
    ]
    found = first_overlap(boxes)
    if found is None:
        assert sum(map(len, cells)) == len(set().union(*cells))
    else:
        assert found[0] < found[1]
        assert cells[found[0]] & cells[found[1]]


def test_a_slice_reads_only_the_pieces_that_hold_it() -> None:
    sources = [FileLike(bytes(1 << 20)) for _ in range(64)]
    pieces = [
        Piece(Box((n * 1024, 0), (1024, 1024)), lambda s=s: matrix(s, 1024, 1024), "x")
        for n, s in enumerate(sources)
    ]
    tensor = PiecewiseTensor("w", "U8", (65536, 1024), pieces)
    assert len(tensor.read_selection(select((slice(1000, 1100),), tensor.shape))) == 100 * 1024
    assert [source.was_read for source in sources[:3]] == [24 * 1024, 76 * 1024, 0]
    assert sum(source.was_read for source in sources) == 100 * 1024
    assert [piece._array is not None for piece in tensor.pieces[:3]] == [True, True, False]


def test_a_large_read_of_narrow_pieces_takes_little_memory() -> None:
    import tracemalloc

    rows, width = 4096, 4096
    halves = [FileLike(bytes([n]) * (rows * width)) for n in (1, 2)]
    pieces = [
        Piece(Box((0, n * width), (rows, width)), lambda s=s: matrix(s, rows, width), "x")
        for n, s in enumerate(halves)
    ]
    tensor = PiecewiseTensor("w", "U8", (rows, 2 * width), pieces)
    buffer = bytearray(tensor.nbytes)
    tracemalloc.start()
    tensor.read_into(buffer)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 10 << 20  # of 32 MiB
    assert buffer == (b"\1" * width + b"\2" * width) * rows
    assert sum(source.was_read for source in halves) == tensor.nbytes


def test_a_packed_type_counts_bytes() -> None:
    source = BytesSource(bytes(range(12)))
    pieces = [
        Piece(Box((n, 0), (1, 6)), lambda n=n: Strided(source, n * 6, "F4", (1, 6), (6, 1)), "x")
        for n in range(2)
    ]
    tensor = PiecewiseTensor("w", "F4", (2, 6), pieces)
    assert (tensor.shape, tensor.nbytes) == ((2, 12), 12)
    assert bytes(tensor.view()) == bytes(range(12))
    assert bytes(tensor.read_selection(select((1, slice(2, 6)), tensor.shape))) == bytes([7, 8])


def test_an_empty_tensor_needs_no_piece() -> None:
    check_cover("w", (0, 3), [], "path")
    tensor = PiecewiseTensor("w", "F32", (0, 3), [])
    assert bytes(tensor.view()) == b""
    assert bytes(tensor.read_selection(select((), (0, 3)))) == b""
