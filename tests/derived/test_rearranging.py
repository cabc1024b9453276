"""Plans: tensors put together from others, with the values that NumPy gives, and only their bytes read."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import safeweights.numpy
from safeweights import Checkpoint, Concat, Narrow, Stack, Transpose
from safeweights.checkpoint import MemoryTensor
from safeweights.derived import rearranging
from safeweights.errors import (
    FormatError,
    SafetensorError,
    TensorNotFoundError,
    UnsupportedError,
)
from safeweights.storage import DescriptorSource

if TYPE_CHECKING:
    from pathlib import Path

Arrays = dict[str, "np.ndarray[Any, Any]"]


def arrays(layers: int = 2, experts: int = 3) -> Arrays:
    random = np.random.default_rng(1)
    found: Arrays = {"first": np.arange(4.0), "embedding": random.random((10, 6))}
    for layer in range(layers):
        for name, rows in (("q", 4), ("k", 2), ("v", 2)):
            found[f"layers.{layer}.{name}.weight"] = random.random((rows, 6))
        for expert, half in product(range(experts), ("gate", "up")):
            found[f"layers.{layer}.experts.{expert}.{half}"] = random.random((8, 6))
    return found


@pytest.fixture
def stored(tmp_path: Path) -> Checkpoint:
    safeweights.numpy.save_file(arrays(), tmp_path / "x.safetensors")
    return safeweights.open(tmp_path / "x.safetensors", backend="pread")


QKV = Concat([f"layers.{{i}}.{each}.weight" for each in "qkv"])
EXPERTS = Stack(Concat(["layers.{i}.experts.{e}.gate", "layers.{i}.experts.{e}.up"]), over="e")


def qkv(layer: int) -> np.ndarray[Any, Any]:
    return np.concatenate([arrays()[f"layers.{layer}.{each}.weight"] for each in "qkv"])


def experts(layer: int) -> np.ndarray[Any, Any]:
    found = arrays()
    halves = [
        [found[f"layers.{layer}.experts.{e}.{half}"] for half in ("gate", "up")] for e in range(3)
    ]
    return np.stack([np.concatenate(each) for each in halves])


def test_fused_projections_and_stacked_experts(stored: Checkpoint) -> None:
    view = stored.rearrange({"layers.{i}.qkv": QKV, "layers.{i}.experts": EXPERTS})
    assert sorted(view) == sorted(
        ["first", "embedding", *(f"layers.{i}.{n}" for i in range(2) for n in ("qkv", "experts"))]
    )
    for layer in range(2):
        np.testing.assert_array_equal(view[f"layers.{layer}.qkv"].numpy(), qkv(layer))
        np.testing.assert_array_equal(view[f"layers.{layer}.experts"].numpy(), experts(layer))


def test_new_tensors_are_where_their_first_part_was(stored: Checkpoint) -> None:
    view = stored.rearrange({"layers.{i}.qkv": QKV, "layers.{i}.experts": EXPERTS, "zero": "first"})
    places = {name: place for place, name in enumerate(stored)}
    firsts = {"zero": "first", "embedding": "embedding"}
    for i in range(2):
        firsts |= {f"layers.{i}.qkv": f"layers.{i}.q.weight"}
        firsts |= {f"layers.{i}.experts": f"layers.{i}.experts.0.gate"}
    assert list(view) == sorted(view, key=lambda name: places[firsts[name]])


def test_a_rename_is_the_stored_tensor_itself(stored: Checkpoint) -> None:
    view = stored.rearrange({"model.{i}.q": "layers.{i}.q.weight"})
    assert view["model.1.q"].info == stored["layers.1.q.weight"].info
    assert type(view["model.1.q"]) is type(stored["layers.1.q.weight"])


def test_layers_may_be_stacked_too(stored: Checkpoint) -> None:
    every = Stack(Stack("layers.{layer}.experts.{e}.up", over="e"), over="layer", dim=-1)
    view = stored.rearrange({"all": every})
    found = arrays()
    expected = np.stack(
        [np.stack([found[f"layers.{i}.experts.{e}.up"] for e in range(3)]) for i in range(2)], -1
    )
    np.testing.assert_array_equal(view["all"].numpy(), expected)


parts = st.sampled_from(["a", "b"])


def _numpy(part: Any, values: Arrays) -> np.ndarray[Any, Any]:
    """What a plan without placeholders means."""
    if isinstance(part, str):
        return values[part]
    if isinstance(part, Concat):
        return np.concatenate([_numpy(each, values) for each in part.parts], part.dim)
    inner = _numpy(part.part, values)
    if isinstance(part, Transpose):
        return np.swapaxes(inner, -1, -2)
    return np.take(inner, range(part.start, part.stop), part.dim)


@st.composite
def plans(draw: st.DrawFn) -> Any:
    part: Any = draw(parts)
    for _ in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from([Concat, Transpose, Narrow]))
        dim = draw(st.integers(-2, 1))
        if kind is Transpose:
            part = Transpose(part)
        elif kind is Concat:
            part = Concat([part] * draw(st.integers(1, 3)), dim)
        else:
            shape = {"a": np.zeros((3, 4)), "b": np.zeros((3, 4))}
            size = _numpy(part, shape).shape[dim]
            start = draw(st.integers(0, size))
            part = Narrow(part, start, draw(st.integers(start, size)), dim)
    return part


@given(part=plans(), data=st.data())
def test_any_plan_is_what_numpy_makes_of_it(part: Any, data: st.DataObject) -> None:
    values = {"a": np.arange(12, dtype="<i2").reshape(3, 4), "b": -np.ones((3, 4), "<i2")}
    stored = Checkpoint(
        {
            name: MemoryTensor(name, "I16", array.shape, array.tobytes())
            for name, array in values.items()
        }
    )
    expected = _numpy(part, values)
    made = stored.rearrange({"new": part})["new"]
    assert made.shape == expected.shape
    np.testing.assert_array_equal(made.numpy(), expected)
    index = tuple(
        slice(first, data.draw(st.integers(first, size)), data.draw(st.integers(1, 2)))
        for size in expected.shape
        for first in [data.draw(st.integers(0, size))]
    )
    np.testing.assert_array_equal(made[index], expected[index])


@pytest.mark.parametrize("dim", [1, 2])
def test_of_a_transposed_matrix_the_asked_bytes_are_read(
    stored: Checkpoint, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dim: int
) -> None:
    """Rows of the result are columns of the file, which are read one by one where they lie far apart."""
    wide = {f"{e}": np.arange(4.0 * 4096).reshape(4, 4096) + e for e in range(2)}
    safeweights.numpy.save_file(wide, tmp_path / "wide")
    view = safeweights.open(tmp_path / "wide", backend="pread").rearrange(
        {"w": Stack(Transpose("{e}"), over="e")}
    )
    reads: list[int] = []
    original = DescriptorSource.read_into
    monkeypatch.setattr(
        DescriptorSource,
        "read_into",
        lambda self, at, into: (reads.append(len(into)), original(self, at, into)),
    )
    index = (slice(1, 2), *((slice(0, 1024), ...) if dim == 1 else (slice(None), slice(1, 2))))
    expected = np.stack([wide["0"].T, wide["1"].T])[index]
    np.testing.assert_array_equal(view["w"][index], expected)
    assert sum(reads) == expected.nbytes


def test_packed_types_can_be_joined_but_not_divided() -> None:
    data = [bytes([1, 2, 3, 4]), bytes([5, 6, 7, 8])]
    stored = Checkpoint(
        {f"{e}": MemoryTensor(f"{e}", "F4", (2, 4), each) for e, each in enumerate(data)}
    )
    joined = stored.rearrange({"w": Concat(["0", "1"], dim=1)})["w"]
    assert (joined.shape, bytes(joined.view())) == ((2, 8), bytes([1, 2, 5, 6, 3, 4, 7, 8]))
    stacked = stored.rearrange({"w": Stack("{e}", over="e")})["w"]
    assert (stacked.shape, bytes(stacked.view())) == ((2, 2, 4), data[0] + data[1])
    for part in (Narrow("0", 0, 1), Transpose("0")):
        with pytest.raises(UnsupportedError, match="share bytes"):
            stored.rearrange({"w": part})


def test_tensors_that_are_computed_can_be_parts(stored: Checkpoint) -> None:
    from safeweights.derived.casting import cast

    halved = stored.replaced(
        {name: cast(tensor, {"F64": "F32"}) for name, tensor in stored.items()}, None
    )
    view = halved.rearrange({"layers.{i}.qkv": QKV})
    np.testing.assert_array_equal(view["layers.0.qkv"][2:5], qkv(0)[2:5].astype("f4"))


@pytest.mark.parametrize(
    ("plan", "error", "words"),
    [
        ({"new": "absent"}, UnsupportedError, "none called `absent`"),
        ({"new.{i}": "absent.{i}"}, UnsupportedError, "none called `absent.{i}`"),
        ({"new.{x}": "layers.{i}.q.weight"}, UnsupportedError, "placeholder that no stored name"),
        ({"new": 3}, UnsupportedError, "neither a name nor"),
        ({"new": Concat([])}, UnsupportedError, "neither a name nor"),
        ({"new": Concat("first")}, UnsupportedError, "neither a name nor"),
        ({"new": Concat(["first", None])}, UnsupportedError, "neither a name nor"),
        ({"new": Concat(["first", "absent"])}, TensorNotFoundError, "needs `absent`"),
        ({"new": Concat(["first", "embedding"])}, FormatError, "cannot be joined along axis 0"),
        ({"new": Concat(["first", "first"], 1)}, FormatError, "has no axis 1"),
        ({"new": Stack("layers.{i}.q.weight", "i", 3)}, FormatError, "has no axis 3"),
        ({"new": Stack("first", "i")}, UnsupportedError, "which is in none of its names"),
        ({"new": Narrow("first", 2, 5)}, FormatError, "reaches outside of axis 0"),
        ({"new": Narrow("first", 3, 2)}, FormatError, "reaches outside of axis 0"),
        ({"new": Transpose("first")}, FormatError, "no rows and columns"),
        ({"embedding": "first"}, FormatError, "a second tensor the name `embedding`"),
        (
            {"a": "first", "a{i}": "layers.{i}.q.weight", "a0": "first"},
            FormatError,
            "second tensor",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    stored: Checkpoint, plan: Any, error: type[SafetensorError], words: str
) -> None:
    with pytest.raises(error, match=words.replace("{", r"\{").replace("[", r"\[")):
        stored.rearrange(plan)


def test_a_stack_needs_every_number_and_equal_shapes() -> None:
    def of(**shapes: tuple[int, ...]) -> Checkpoint:
        return Checkpoint(
            {
                name.replace("_", "."): MemoryTensor(name, "U8", shape, bytes(int(np.prod(shape))))
                for name, shape in shapes.items()
            }
        )

    with pytest.raises(TensorNotFoundError, match=r"`e\.1` is missing"):
        of(e_0=(2,), e_2=(2,)).rearrange({"w": Stack("e.{e}", "e")})
    with pytest.raises(TensorNotFoundError, match=r"`e\.0` is missing"):
        of(e_x=(2,)).rearrange({"w": Stack("e.{e}", "e")})
    with pytest.raises(FormatError, match="as layers of a stack"):
        of(e_0=(2,), e_1=(3,)).rearrange({"w": Stack("e.{e}", "e")})


def test_one_placeholder_twice_is_one_value() -> None:
    stored = Checkpoint({n: MemoryTensor(n, "U8", (1,), b"a") for n in ("1.1", "1.2", "2.2")})
    assert list(stored.rearrange({"x{i}": "{i}.{i}"})) == ["x1", "1.2", "x2"]


def test_a_large_plan_looks_at_each_name_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = Checkpoint(
        {
            f"layers.{i}.experts.{e}.up": MemoryTensor("x", "U8", (1,), b"a")
            for i in range(50)
            for e in range(100)
        }
    )
    calls = 0
    original = rearranging._Names._matching

    def counting(self: Any, pattern: str) -> Any:
        nonlocal calls
        calls += 1
        return original(self, pattern)

    monkeypatch.setattr(rearranging._Names, "_matching", counting)
    view = stored.rearrange({"layers.{i}.up": Stack("layers.{i}.experts.{e}.up", over="e")})
    assert len(view) == 50
    assert calls == 2  # once for the layers, once for the experts
