"""No silently wrong value: arrays of every layout are saved as the values that they show."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from kits import ML_DTYPES, PLAIN, numpy_type

import safeweights
import safeweights.numpy

TYPES = [numpy_type(code) for code in (*PLAIN, *ML_DTYPES) if code != "F4"]
SETTINGS = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def changed(draw: st.DrawFn, array: np.ndarray) -> np.ndarray:
    """A view or copy of another layout; the values that it shows are the truth."""
    how = draw(st.sampled_from([
        "transpose", "swap", "step", "reverse", "offset", "broadcast", "fortran", "big", "read-only",
        "window", "reshape", "misaligned", "field",
    ]))  # fmt: skip
    if how == "transpose":
        return array.T
    if how == "swap" and array.ndim > 1:
        return array.swapaxes(0, -1)
    if how == "step" and array.ndim:
        return array[..., :: draw(st.integers(1, 3))]
    if how == "reverse" and array.ndim:
        return np.flip(array, draw(st.integers(0, array.ndim - 1)))
    if how == "offset" and array.ndim:
        return array[draw(st.integers(0, 2)) :]
    if how == "broadcast" and array.size < 500:
        return np.broadcast_to(array, (draw(st.integers(0, 3)), *array.shape))
    if how == "fortran":
        return np.asfortranarray(array)
    if how == "big" and array.dtype.kind in "iufc" and array.dtype.isbuiltin == 1:
        return array.astype(array.dtype.newbyteorder(">"))
    if how == "window" and array.dtype.isbuiltin == 1 and array.ndim and array.shape[-1] > 2:
        return np.lib.stride_tricks.sliding_window_view(array, 2, axis=-1)
    if how == "misaligned" and array.ndim:
        raw = bytearray(array.nbytes + 1)
        other = np.ndarray(array.shape, array.dtype, raw, 1)
        other[...] = array
        return other
    if how == "field" and array.dtype.isbuiltin == 1:
        record = np.zeros(array.shape, [("pad", "u1"), ("x", array.dtype)])
        record["x"] = array
        return record["x"]
    if how == "read-only":
        array = array.copy()
        array.flags.writeable = False
    return array


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    shape = tuple(draw(st.lists(st.integers(0, 5), max_size=4)))
    dtype = draw(st.sampled_from(TYPES))
    seed = draw(st.integers(0, 2**32 - 1))
    raw = np.random.default_rng(seed).integers(0, 2, int(np.prod(shape)) * dtype.itemsize, np.uint8)
    array = np.frombuffer(raw.tobytes(), dtype).reshape(shape).copy()
    for _ in range(draw(st.integers(0, 3))):
        array = changed(draw, array)
    return array


def values(array: np.ndarray) -> bytes:
    """The values in C order, little-endian, element by element."""
    plain = array if array.dtype.isbuiltin != 1 else array.astype(array.dtype.newbyteorder("<"))
    return b"".join(plain[index].tobytes() for index in np.ndindex(plain.shape))


@SETTINGS
@given(st.lists(arrays(), min_size=1, max_size=3))
def test_numpy_arrays(found: list[np.ndarray]) -> None:
    tensors = {str(i): array for i, array in enumerate(found)}
    loaded = safeweights.numpy.load(safeweights.numpy.save(tensors))
    for name, array in tensors.items():
        assert loaded[name].shape == array.shape
        assert loaded[name].dtype == array.dtype.newbyteorder("<")
        assert loaded[name].tobytes() == values(array)


@SETTINGS
@given(data=st.data())
def test_numpy_slices(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    array = data.draw(arrays())
    path = tmp_path_factory.getbasetemp() / "slices.safetensors"
    safeweights.numpy.save_file({"x": array}, path)
    index = tuple(
        data.draw(
            st.integers(-size, size - 1) if size and data.draw(st.booleans())
            else st.slices(size)
        )
        for size in array.shape[: data.draw(st.integers(0, array.ndim))]
    )  # fmt: skip
    expected = np.asarray(array[index])
    for backend in ("mmap", "pread"):
        with safeweights.safe_open(path, "np", backend=backend) as file:
            part = np.asarray(file.get_slice("x")[index])
        assert part.shape == expected.shape
        assert part.tobytes() == values(expected)


torch = pytest.importorskip("torch", reason="torch is tested where it is installed")
import safeweights.torch  # noqa: E402

TORCH_TYPES = [
    torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool,
    torch.complex64, torch.float8_e4m3fn, torch.uint16, torch.int8,
]  # fmt: skip


@st.composite
def torch_tensors(draw: st.DrawFn) -> torch.Tensor:
    shape = tuple(draw(st.lists(st.integers(0, 5), max_size=4)))
    tensor = (torch.randn(shape) * 4).to(draw(st.sampled_from(TORCH_TYPES)))
    for _ in range(draw(st.integers(0, 3))):
        how = draw(st.sampled_from(
            ["transpose", "narrow", "step", "expand", "conj", "neg", "real", "select", "view", "clone"]
        ))  # fmt: skip
        if how == "transpose" and tensor.ndim > 1:
            tensor = tensor.transpose(0, draw(st.integers(0, tensor.ndim - 1)))
        elif how == "narrow" and tensor.ndim:
            tensor = tensor[draw(st.integers(0, 2)) :]
        elif how == "step" and tensor.ndim:
            tensor = tensor[..., :: draw(st.integers(1, 3))]
        elif how == "expand":
            tensor = tensor.expand(draw(st.integers(1, 3)), *tensor.shape)
        elif how == "conj":
            tensor = tensor.conj()
        elif how == "neg" and (tensor.is_complex() or tensor.dtype == torch.float32):
            tensor = torch._neg_view(tensor)
        elif how == "real" and tensor.is_complex():
            tensor = tensor.imag
        elif how == "select" and tensor.ndim and tensor.shape[0]:
            tensor = tensor[0]
        elif (
            how == "view"
            and tensor.is_contiguous()
            and not tensor.is_conj()
            and not tensor.is_neg()
        ):
            tensor = tensor.reshape(-1)
        elif how == "clone":
            tensor = tensor.clone()
    return tensor


def shown(tensor: torch.Tensor) -> bytes:
    """The values that a tensor shows, by an arithmetic copy of them."""
    copy = torch.empty(tensor.shape, dtype=tensor.dtype)
    copy.copy_(tensor)
    return bytes(copy.reshape(-1).view(torch.uint8).tolist())


@SETTINGS
@given(torch_tensors())
@example(torch.ones(1, 1).expand(1, 1)[:, 0])
@example(torch.as_strided(torch.ones(4), (1,), (0,)))
def test_torch_tensors(tensor: torch.Tensor) -> None:
    if not tensor.is_contiguous():
        with pytest.raises(ValueError, match="non contiguous"):
            safeweights.torch.save({"x": tensor})
        tensor = tensor.contiguous()
    loaded = safeweights.torch.load(safeweights.torch.save({"x": tensor}))["x"]
    assert (loaded.dtype, loaded.shape) == (tensor.dtype, tensor.shape)
    assert shown(loaded) == shown(tensor)


@SETTINGS
@given(st.lists(torch_tensors(), min_size=1, max_size=4))
def test_models_of_torch_tensors(found: list[torch.Tensor]) -> None:
    import io

    model = torch.nn.Module()
    for i, tensor in enumerate(found):
        model.register_buffer(f"t{i}", tensor)
    buffer = io.BytesIO()
    safeweights.torch.save_model(model, buffer)
    loaded = safeweights.torch.load(buffer.getvalue())
    for name, tensor in model.state_dict().items():
        assert shown(loaded[name]) == shown(tensor)
