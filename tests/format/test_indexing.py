"""Index expressions, compared with NumPy's element by element."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import basic_indices

from safeweights.checkpoint import MemoryTensor
from safeweights.errors import SelectionError
from safeweights.format import indexing
from safeweights.format.dtypes import BITS
from safeweights.format.indexing import Runs, Selection, runs, select


def gathered(array: np.ndarray, expression: Any, **options: Any) -> np.ndarray:
    """The elements at the runs of an expression."""
    selection = select(expression, array.shape, **options)
    found = runs(selection, array.shape, "I16")
    data = array.tobytes()
    pieces = b"".join(data[offset : offset + found.length] for offset in found.offsets())
    assert found.nbytes == len(pieces)
    result = np.frombuffer(pieces, "i2").reshape(selection.counts)
    return np.flip(result, selection.reversed).reshape(selection.shape)


def assert_like_numpy(array: np.ndarray, expression: Any, **options: Any) -> None:
    try:
        wanted = array[expression]
    except IndexError:
        with pytest.raises(SelectionError):
            select(expression, array.shape, **options)
        return
    got = gathered(array, expression, **options)
    assert got.shape == wanted.shape
    assert np.array_equal(got, wanted)


def numbered(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape, dtype=int), dtype="i2").reshape(shape)


ITEMS = (
    slice(None), 0, -1, 1, 5, -9, slice(1, None), slice(None, None, 2), slice(None, None, -1),
    slice(2, 0, -1), slice(1, 1), Ellipsis, None, slice(-2, None), slice(None, -1, 3),
)  # fmt: skip


@pytest.mark.parametrize("shape", [(), (3,), (3, 4), (2, 3, 2)])
def test_every_combination_of_items(shape: tuple[int, ...]) -> None:
    array = numbered(*shape)
    for count in range(4):
        for expression in itertools.product(ITEMS, repeat=count):
            if sum(item is Ellipsis for item in expression) < 2:
                assert_like_numpy(array, expression)


@settings(max_examples=400, deadline=None)
@given(st.data(), st.lists(st.integers(0, 5), max_size=5).map(tuple))
def test_any_expression(data: st.DataObject, shape: tuple[int, ...]) -> None:
    expression = data.draw(basic_indices(shape, allow_newaxis=True, max_dims=12))
    assert_like_numpy(numbered(*shape), expression, clamp=True)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple),
    st.lists(
        st.tuples(*[st.none() | st.integers(-8, 8)] * 2, st.integers(-3, 3).filter(bool)),
        max_size=4,
    ),
)
def test_clamped_slices(shape: tuple[int, ...], bounds: list[tuple[Any, Any, int]]) -> None:
    expression = tuple(slice(*bound) for bound in bounds[: len(shape)])
    assert_like_numpy(numbered(*shape), expression, clamp=True)


@pytest.mark.parametrize(
    "expression",
    [
        np.int8(1),
        np.array(1),
        slice(np.int64(0), np.array(2)),
        (np.uint64(1), None),
    ],
)
def test_whole_numbers_of_other_libraries(expression: Any) -> None:
    index = expression if isinstance(expression, tuple) else (expression,)
    plain = tuple(
        slice(0, 2) if isinstance(item, slice) else item if item is None else int(item)
        for item in index
    )
    assert select(expression, (3, 2)) == select(plain, (3, 2))


@pytest.mark.parametrize(
    "expression",
    [
        True, np.True_, np.array(True), np.array([1]), np.array(1.0),
        1.0, "a", b"a", {}, (0, [1]), object(), np.float32(1), (0, (1,)),
    ],
    ids=lambda item: type(item).__name__,
)  # fmt: skip
def test_what_is_no_basic_index(expression: Any) -> None:
    with pytest.raises(SelectionError, match="Unsupported slice index"):
        select(expression, (3, 2))


def test_tensors_of_torch_as_indices() -> None:
    torch = pytest.importorskip("torch")  # the core is tested without it on other Pythons
    assert select((torch.tensor(1), slice(0, torch.tensor(2))), (3, 2)) == select(
        (1, slice(0, 2)), (3, 2)
    )
    for expression in (
        torch.tensor(True),
        torch.tensor(1.5),
        torch.tensor([1]),
        torch.tensor([True]),
    ):
        with pytest.raises(SelectionError, match="Unsupported slice index"):
            select(expression, (3, 2))


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ([1], "Non empty lists are not implemented"),
        ((..., ...), r"Only one ellipsis \(...\) is allowed"),
        (
            (0, 0, 0),
            r"Error during slicing \[0, 0, 0\] with shape \[3, 2\]: more slicing indexes than",
        ),
        (3, r"\[3\] with shape \[3, 2\]: index 3 out of bounds for tensor dimension #0 of size 3"),
        ((..., -3), "Invalid index -3 for dimension 1 of size 2"),
        (slice(0, 4), r"\[0:4\] .*: index 3 out of bounds for tensor dimension #0 of size 3"),
        (slice(4, None), r"\[4:\] .*: index 4 out of bounds"),
        ((slice(None, None, 0), ...), r"\[::0, ...\] .*: slice step cannot be zero"),
        (slice("a", None), "slice bounds must be integers or None"),
        (slice(0, 1.5), "slice bounds must be integers or None"),
    ],
)
def test_errors_in_the_reference_s_words(expression: Any, message: str) -> None:
    with pytest.raises(SelectionError, match=message):
        select(expression, (3, 2))


def test_a_result_has_at_most_64_dimensions() -> None:
    """New axes and those of the tensor count together; an axis indexed by an integer does not."""
    shape = (3, 2)
    assert len(select((None,) * 62, shape).shape) == 64
    assert len(select((0,) + (None,) * 63, shape).shape) == 64
    for expression in ((None,) * 63, (0,) + (None,) * 64):
        with pytest.raises(SelectionError, match="would have 65 dimensions, at most 64"):
            select(expression, shape)


def test_an_empty_list_selects_nothing() -> None:
    assert select([], (3, 2)).shape == (0, 2)


def test_backwards_and_empty_slices_are_empty() -> None:
    """The reference panics at s[5:2]."""
    selection = select(slice(2, 1), (3, 2))
    assert selection == Selection((0, 0), (0, 2), (1, 1), (), (0, 2))
    assert runs(selection, (3, 2), "F32") == Runs(0, 0, ())
    assert runs(selection, (3, 2), "F32").span == 0


def test_dimensions_beyond_63_bits() -> None:
    """If another dimension is 0, a dimension may be up to 2^64-1, but len() of a range may not."""
    shape = (2**64 - 1, 0)
    assert select(..., shape).shape == shape
    assert select(slice(None, None, -2), shape).shape == (2**63, 0)
    assert select((-1, slice(0, 0)), shape).starts == (2**64 - 2, 0)


@pytest.mark.parametrize(
    ("shape", "expression", "wanted"),
    [
        ((4, 3), ..., Runs(0, 48, ())),
        ((4, 3), 1, Runs(12, 12, ())),
        ((4, 3), slice(1, 3), Runs(12, 24, ())),
        ((4, 3), (slice(None), 1), Runs(4, 4, ((4, 12),))),
        ((4, 3), (slice(None), slice(0, 2)), Runs(0, 8, ((4, 12),))),
        ((2, 4, 3), (slice(None), slice(None), 1), Runs(4, 4, ((8, 12),))),
        ((2, 4, 3), (slice(None), slice(1, 3), 1), Runs(16, 4, ((2, 48), (2, 12)))),
        ((8,), slice(None, None, 2), Runs(0, 4, ((4, 8),))),
        ((1, 8, 1), (..., slice(None, None, 3), 0), Runs(0, 4, ((3, 12),))),
    ],
)
def test_adjacent_runs_are_joined(shape: tuple[int, ...], expression: Any, wanted: Runs) -> None:
    found = runs(select(expression, shape), shape, "F32")
    assert found == wanted
    last = list(found.offsets())[-1]
    assert found.span == last + found.length - found.offset
    assert found.run_count == len(list(found.offsets()))


def test_offsets_are_never_listed() -> None:
    """Selecting a column of a billion rows takes no memory."""
    found = runs(select((slice(None), slice(None, None, 2), 0), (10**9, 5, 7)), (10**9, 5, 7), "U8")
    assert found.run_count == 3 * 10**9
    assert list(itertools.islice(found.offsets(), 4)) == [0, 14, 28, 35]


@pytest.mark.parametrize(
    ("shape", "expression", "fits"),
    [
        ((4,), slice(2, None), True), ((4,), slice(1, None), False), ((4,), 0, False),
        ((2, 4), 1, True), ((2, 3), 1, False), ((4, 3), slice(None, None, 2), False),
        ((2, 4), (slice(None), slice(0, 2)), True), ((2, 3), slice(0, 0), True), ((2, 3), ..., True),
    ],
)  # fmt: skip
def test_sub_byte_types_need_whole_bytes(
    shape: tuple[int, ...], expression: Any, fits: bool
) -> None:
    selection = select(expression, shape)
    if fits:
        assert runs(selection, shape, "F4").nbytes == np.prod(selection.shape) * BITS["F4"] // 8
    else:
        with pytest.raises(SelectionError, match="does not end up at a byte boundary"):
            runs(selection, shape, "F4")


def test_a_tensor_reads_what_the_runs_say() -> None:
    array = numbered(5, 6, 7)
    tensor = MemoryTensor("a", "I16", array.shape, array.tobytes())
    selection = select((slice(None, None, 2), slice(1, 4), slice(2, 6)), array.shape)
    assert bytes(tensor.read_selection(selection)) == array[::2, 1:4, 2:6].tobytes()


def test_public_names_exist() -> None:
    assert all(hasattr(indexing, name) for name in indexing.__all__)
