"""No index, name, device or tensor raises anything but our error, whatever it is."""

from __future__ import annotations

import contextlib
import importlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from kits import Kit, file_of, sample

import safeweights

SETTINGS = settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
INTEGERS = st.integers(-8, 8) | st.integers() | st.integers(-8, 8).map(np.int64)
ODD = (
    st.none() | st.booleans() | st.floats() | st.text(max_size=3) | st.binary(max_size=3)
    | st.sampled_from([..., object(), {}, {"a": 1}, set(), int, len, 1j, np.array([0, 1]), np.array(1),
                       np.array([True, False]), np.array([], int), range(2), Path("x"), NotImplemented])
)  # fmt: skip
BOUNDS = INTEGERS | st.none() | ODD
ITEMS = (
    INTEGERS | ODD | st.builds(slice, BOUNDS, BOUNDS, BOUNDS) | st.lists(INTEGERS | ODD, max_size=3)
)
INDEXES = (
    ITEMS
    | st.lists(ITEMS, max_size=5).map(tuple)
    | st.tuples(st.lists(ITEMS, max_size=2).map(tuple))
)
ANYTHING = (
    ODD
    | INTEGERS
    | st.lists(ODD, max_size=2)
    | st.dictionaries(st.text(max_size=2), ODD, max_size=2)
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    target = tmp_path / "x.safetensors"
    shape = (3, 4, 5)
    target.write_bytes(file_of({"x": ("F32", shape, sample("F32", shape)), "": ("U8", (), b"a")}))
    return target


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backend", ["mmap", "pread"])
def test_indexes(kit: Kit, backend: str, path: Path) -> None:
    with safeweights.safe_open(path, kit.spellings[0], backend=backend) as file:
        parts = [file.get_slice(name) for name in file]

        @SETTINGS
        @given(INDEXES)
        def check(index: Any) -> None:
            for part in parts:
                with contextlib.suppress(safeweights.SafetensorError):
                    part[index]

        check()


@pytest.mark.filterwarnings("ignore")
def test_names_plans_and_arguments(kit: Kit, path: Path) -> None:
    @SETTINGS
    @given(ANYTHING, ANYTHING)
    @example(np.array([0, 1]), None)  # has no truth value
    def check(one: Any, other: Any) -> None:
        with safeweights.safe_open(path, kit.spellings[0]) as file:
            for call in (
                file.get_tensor,
                file.get_slice,
                file.info,
                file.get_tensor_meta,
                file.get_bytes,
            ):
                with contextlib.suppress(safeweights.SafetensorError):
                    call(one)
            with contextlib.suppress(safeweights.SafetensorError):
                list(file.prefetch(one))
            assert (one in file) in (True, False)
        for arguments in [(path, one), (path, kit.spellings[0], one)]:
            with contextlib.suppress(safeweights.SafetensorError):
                safeweights.safe_open(*arguments)
        with contextlib.suppress(safeweights.SafetensorError):
            safeweights.safe_open(path, kit.spellings[0], backend=one)

    check()


@pytest.mark.filterwarnings("ignore")
def test_what_is_saved_and_loaded(kit: Kit) -> None:
    face = importlib.import_module(f"safeweights.{kit.face}")
    tensor = kit.make("F32", (2,), sample("F32", (2,)))

    @SETTINGS
    @given(ANYTHING, ANYTHING)
    def check(one: Any, other: Any) -> None:
        calls = [
            lambda: face.save(one, other), lambda: face.save({"x": one}),
            lambda: face.save({"x": tensor}, one),
            lambda: face.load(one), lambda: face.save_file(one, io.BytesIO()),
            lambda: safeweights.serialize(one, other), lambda: safeweights.serialize({"x": one}),
            lambda: safeweights.deserialize(one),
        ]  # fmt: skip
        with contextlib.suppress(TypeError):  # what cannot be a key
            named = {one: tensor}
            calls.append(lambda: face.save(named))
        for call in calls:
            with contextlib.suppress(safeweights.SafetensorError):
                call()

    check()
