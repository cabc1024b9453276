"""What the tests need of each framework: making tensors and looking into them, without this package.

A kit builds the framework's tensor from an element type, a shape and raw bytes, and takes one apart
again, by the framework's own means. So the tests compare with the framework, never with ourselves.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

ML_DTYPES = {
    "BF16": "bfloat16", "F8_E5M2": "float8_e5m2", "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu", "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F4": "float4_e2m1fn",
}  # fmt: skip
PLAIN = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "I16": "<i2", "U16": "<u2", "F16": "<f2", "I32": "<i4",
    "U32": "<u4", "F32": "<f4", "C64": "<c8", "F64": "<f8", "I64": "<i8", "U64": "<u8",
}  # fmt: skip
BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8,
    "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip
CODES = tuple(BITS)


def numpy_type(code: str) -> np.dtype[Any]:
    if code in PLAIN:
        return np.dtype(PLAIN[code])
    import ml_dtypes

    return np.dtype(getattr(ml_dtypes, ML_DTYPES[code]))


def sample(code: str, shape: tuple[int, ...], seed: int = 0) -> bytes:
    """Raw bytes of values that a framework may be asked to keep: full range, no NaN."""
    random = np.random.default_rng(seed)
    count = int(np.prod(shape))
    if code == "BOOL":
        return random.integers(0, 2, count, np.uint8).tobytes()
    if BITS[code] < 8:
        return random.integers(0, 256, count * BITS[code] // 8, np.uint8).tobytes()
    if code == "F8_E8M0":
        return random.integers(100, 150, count, np.uint8).tobytes()
    if code[0] in "UI":
        kind = np.dtype(PLAIN[code])
        low, high = np.iinfo(kind).min, np.iinfo(kind).max
        return random.integers(low, high, count, kind, endpoint=True).tobytes()
    values = random.standard_normal(count * 2 if code == "C64" else count)
    # Values that 32 bits cannot hold, so that narrowing shows.
    return values.astype("<f4" if code == "C64" else numpy_type(code)).tobytes()


def file_of(tensors: dict[str, tuple[str, tuple[int, ...], bytes]], metadata: Any = None) -> bytes:
    """A safetensors file, written by hand."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    position = 0
    for name, (code, shape, data) in tensors.items():
        header[name] = {
            "dtype": code, "shape": list(shape), "data_offsets": [position, position + len(data)],
        }  # fmt: skip
        position += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return (
        len(text).to_bytes(8, "little") + text + b"".join(data for _, _, data in tensors.values())
    )


def parts_of(file: bytes) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """The inverse of `file_of`."""
    size = int.from_bytes(file[:8], "little")
    header = json.loads(file[8 : 8 + size])
    header.pop("__metadata__", None)
    return {
        name: (
            entry["dtype"],
            tuple(entry["shape"]),
            file[8 + size + entry["data_offsets"][0] : 8 + size + entry["data_offsets"][1]],
        )
        for name, entry in header.items()
    }


def array_of(code: str, shape: tuple[int, ...], data: bytes) -> Any:
    if code == "F4":
        packed = np.frombuffer(data, np.uint8)
        values = np.stack([packed & 15, packed >> 4], 1).reshape(-1)
        return values.view(numpy_type(code)).reshape(shape)
    return np.frombuffer(data, numpy_type(code)).reshape(shape).copy()


def bytes_of(array: Any) -> tuple[str, tuple[int, ...], bytes]:
    name = array.dtype.name
    code = {numpy_type(code).name: code for code in (*PLAIN, *ML_DTYPES)}[name]
    flat = np.ascontiguousarray(array).reshape(-1)
    if code == "F4":
        values = flat.view(np.uint8)
        return code, array.shape, (values[::2] | values[1::2] << 4).tobytes()
    return code, array.shape, flat.tobytes()


class Kit:
    """NumPy; the base of the others.

    Attributes:
        name: Of the framework, and of its package.
        face: Module of this package and of the reference.
        spellings: What `safe_open` takes for it.
        missing: Element types that it does not have.
    """

    name = "numpy"
    package = "numpy"
    face = "numpy"
    spellings: tuple[str, ...] = ("np", "numpy")
    missing: frozenset[str] = frozenset({"F6_E2M3", "F6_E3M2"})

    def has(self, code: str) -> bool:
        return code not in self.missing

    def make(self, code: str, shape: tuple[int, ...], data: bytes) -> Any:
        return array_of(code, shape, data)

    def look(self, tensor: Any) -> tuple[str, tuple[int, ...], bytes]:
        """Code, logical shape and raw bytes of a tensor."""
        assert isinstance(tensor, np.ndarray), type(tensor)
        return bytes_of(tensor)

    @contextlib.contextmanager
    def settings(self) -> Iterator[None]:
        yield


class TorchKit(Kit):
    name = package = face = "torch"
    spellings = ("pt", "torch", "pytorch")

    def type(self, code: str) -> Any:
        import torch

        name = {"F4": "float4_e2m1fn_x2"}.get(code) or numpy_type(code).name
        return getattr(torch, name)

    def make(self, code: str, shape: tuple[int, ...], data: bytes) -> Any:
        import torch

        if code == "F4":
            shape = (*shape[:-1], shape[-1] // 2)
        if not data:
            return torch.empty(shape, dtype=self.type(code))
        return (
            torch.frombuffer(bytearray(data), dtype=torch.uint8)
            .view(self.type(code))
            .reshape(shape)
        )

    def look(self, tensor: Any) -> tuple[str, tuple[int, ...], bytes]:
        import torch

        code = next(code for code in CODES if self.has(code) and self.type(code) == tensor.dtype)
        data = bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist())
        shape = tuple(tensor.shape)
        return code, (*shape[:-1], shape[-1] * 2) if code == "F4" else shape, data


class JaxKit(Kit):
    """JAX as it is by default, without 64-bit types."""

    name = "jax"
    package = "jax"
    face = "flax"
    spellings = ("jax", "flax")
    missing = frozenset({"F6_E2M3", "F6_E3M2", "F64", "I64", "U64"})
    x64 = False

    def make(self, code: str, shape: tuple[int, ...], data: bytes) -> Any:
        import jax.numpy as jnp

        array = array_of(code, shape, data)
        made = jnp.array(array)
        if made.dtype != array.dtype:
            raise TypeError(f"JAX has no {array.dtype} now")
        return made

    def look(self, tensor: Any) -> tuple[str, tuple[int, ...], bytes]:
        import jax

        assert isinstance(tensor, jax.Array), type(tensor)
        return bytes_of(np.array(tensor))

    @contextlib.contextmanager
    def settings(self) -> Iterator[None]:
        import jax

        jax.config.update("jax_enable_x64", self.x64)
        try:
            yield
        finally:
            jax.config.update("jax_enable_x64", False)


class JaxWideKit(JaxKit):
    """JAX with 64-bit types enabled."""

    name = "jax, x64 enabled"
    missing = Kit.missing
    x64 = True


class TensorFlowKit(Kit):
    name = package = face = "tensorflow"
    spellings = ("tf", "tensorflow")
    missing = frozenset({"F6_E2M3", "F6_E3M2", "F8_E8M0"})

    def make(self, code: str, shape: tuple[int, ...], data: bytes) -> Any:
        import tensorflow as tf

        return tf.constant(array_of(code, shape, data))

    def look(self, tensor: Any) -> tuple[str, tuple[int, ...], bytes]:
        import tensorflow as tf

        assert isinstance(tensor, tf.Tensor), type(tensor)
        return bytes_of(tensor.numpy())


class MLXKit(Kit):
    name = package = face = "mlx"
    spellings = ("mlx",)
    missing = frozenset({"F6_E2M3", "F6_E3M2", *(code for code in ML_DTYPES if code != "BF16")})

    def make(self, code: str, shape: tuple[int, ...], data: bytes) -> Any:
        import mlx.core as mx

        if code == "BF16":
            return mx.array(np.frombuffer(data, np.uint16).reshape(shape)).view(mx.bfloat16)
        array = array_of(code, shape, data)
        return mx.array(array, dtype=mx.float64) if code == "F64" else mx.array(array)

    def look(self, tensor: Any) -> tuple[str, tuple[int, ...], bytes]:
        import mlx.core as mx

        assert isinstance(tensor, mx.array), type(tensor)
        if tensor.dtype == mx.bfloat16:
            return "BF16", tensor.shape, np.array(tensor.view(mx.uint16)).tobytes()
        return bytes_of(np.array(tensor))


class PaddleKit(Kit):
    name = package = face = "paddle"
    spellings = ("paddle",)
    missing = frozenset(
        {"F6_E2M3", "F6_E3M2", "F4", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "U16", "U32", "U64"}
    )

    def make(self, code: str, shape: tuple[int, ...], data: bytes) -> Any:
        import paddle

        if code in ML_DTYPES:
            carrier = np.int16 if code == "BF16" else np.uint8
            plain = paddle.to_tensor(np.frombuffer(data, carrier).reshape(shape))
            return plain.view(getattr(paddle, ML_DTYPES[code]))
        return paddle.to_tensor(array_of(code, shape, data))

    def look(self, tensor: Any) -> tuple[str, tuple[int, ...], bytes]:
        import paddle

        assert isinstance(tensor, paddle.Tensor), type(tensor)
        for code in ML_DTYPES:
            if tensor.dtype == getattr(paddle, ML_DTYPES[code], None):
                plain = tensor.view("int16" if code == "BF16" else "uint8").numpy()
                return code, tuple(tensor.shape), plain.tobytes()
        return bytes_of(tensor.numpy())


KITS = {kit.name: kit for kit in (
    Kit(), TorchKit(), JaxKit(), JaxWideKit(), TensorFlowKit(), MLXKit(), PaddleKit(),
)}  # fmt: skip


def installed(kit: Kit) -> bool:
    """Whether the framework is here; it is imported, which some do not do without warnings."""
    if importlib.util.find_spec(kit.package) is None:
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module(kit.package)
    return True
