"""What is particular to a framework. Each class runs where its framework is installed."""

from __future__ import annotations

import importlib.util
import pickle
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from kits import file_of, sample

from safeweights.checkpoint.saving import serialized
from safeweights.errors import SafetensorError
from safeweights.frameworks.numpy import ADAPTER
from safeweights.storage import write_file

if TYPE_CHECKING:
    from pathlib import Path


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        importlib.util.find_spec(package) is None, reason=f"{package}: `make test-frameworks`"
    )


WIDE = {code: file_of({"x": (code, (3,), sample(code, (3,)))}) for code in ("F64", "I64", "U64")}


@needs("jax")
class TestJax:
    @pytest.mark.parametrize("code", WIDE)
    def test_wide_values_are_never_narrowed(self, code: str) -> None:
        import safeweights.flax

        with pytest.raises(safeweights.SafetensorError, match=r"narrowed.*jax_enable_x64.*True"):
            safeweights.flax.load(WIDE[code])

    def test_devices_and_shardings(self, tmp_path: Path) -> None:
        import jax

        import safeweights.flax

        safeweights.flax.save_file({"a": jax.numpy.ones((4, 2))}, tmp_path / "x")
        first, second, *_ = jax.devices("cpu")
        mesh = jax.sharding.Mesh(np.array([first, second]), ("data",))
        split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
        for device, places in {
            "cpu": {first}, "cpu:1": {second}, first: {first}, second: {second}, None: {first},
            split: {first, second},
        }.items():  # fmt: skip
            loaded = safeweights.flax.load_file(tmp_path / "x", device=device)["a"]
            assert loaded.devices() == places
        assert {shard.data.shape for shard in loaded.addressable_shards} == {(2, 2)}
        for device in ("tpu:7", "cpu:99", 3, "CPU"):
            with pytest.raises(safeweights.SafetensorError, match=r"Device .* is not supported"):
                safeweights.flax.load_file(tmp_path / "x", device=device)

    def test_errors_of_jax_pass_unchanged(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import jax

        import safeweights.flax

        path = tmp_path / "x"
        path.write_bytes(file_of({"a": ("F32", (2,), bytes(8))}))
        failure = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

        def full(*_: object, **__: object) -> None:
            raise failure

        device = jax.devices("cpu")[1]
        handle = safeweights.safe_open(path, "jax", device=device)
        monkeypatch.setattr(jax, "device_put", full)
        for call in (
            lambda: handle.get_tensor("a"),
            lambda: handle.get_slice("a")[:],
            lambda: dict(safeweights.stream(path, "jax", device=device)),
            lambda: safeweights.flax.load_file(path, device=device, backend="mmap"),
        ):
            with pytest.raises(jax.errors.JaxRuntimeError) as caught:
                call()
            assert caught.value is failure

    def test_a_sharding_that_does_not_fit_is_jax_s_error(self, tmp_path: Path) -> None:
        import jax

        import safeweights.flax

        safeweights.flax.save_file({"a": jax.numpy.ones((3, 2))}, tmp_path / "x")
        mesh = jax.sharding.Mesh(np.array(jax.devices("cpu")), ("data",))
        split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
        with pytest.raises(ValueError, match=r"divi(de|sible)"):
            safeweights.flax.load_file(tmp_path / "x", device=split)

    def test_what_has_no_values_is_refused(self) -> None:
        import jax

        import safeweights.flax

        for bad in (
            jax.random.key(0),
            jax.ShapeDtypeStruct((2,), "float32"),
            jax.numpy.ones(2, "int4"),
        ):
            with pytest.raises(safeweights.SafetensorError):
                safeweights.flax.save({"x": bad})

        @jax.jit
        def traced(x: Any) -> Any:
            with pytest.raises(safeweights.SafetensorError, match="cannot be reached"):
                safeweights.flax.save({"x": x})
            return x

        traced(jax.numpy.ones(2))

    def test_numpy_arrays_are_saved_too(self) -> None:
        import safeweights.flax

        tensors = {"x": np.ones((2, 3), "f4").T}
        assert (safeweights.flax.load(safeweights.flax.save(tensors))["x"] == 1).all()

    def test_pytrees_of_jit_results(self, tmp_path: Path) -> None:
        import jax

        import safeweights.flax

        weights = jax.jit(lambda x: {"a": x @ x.T, "b": x.T})(jax.numpy.ones((3, 4)))
        safeweights.flax.save_file(weights, tmp_path / "x")
        loaded = safeweights.flax.load_file(tmp_path / "x")
        assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), weights, loaded))


@needs("tensorflow")
class TestTensorFlow:
    def test_variables_are_saved(self) -> None:
        import tensorflow as tf

        import safeweights.tensorflow

        tensors = {"v": tf.Variable([[1.0, 2.0]]), "c": tf.constant(3)}
        loaded = safeweights.tensorflow.load(safeweights.tensorflow.save(tensors))
        assert loaded["v"].numpy().tolist() == [[1.0, 2.0]]
        assert isinstance(tensors["v"], tf.Variable)

    def test_what_is_not_dense_is_refused(self) -> None:
        import tensorflow as tf

        import safeweights.tensorflow

        graph_tensors = []
        tf.function(lambda: graph_tensors.append(tf.constant(1) + 1))()
        for bad in (
            tf.constant("text"),
            tf.constant(1, tf.complex128), tf.constant([1], tf.qint8), *graph_tensors,
        ):  # fmt: skip
            with pytest.raises(safeweights.SafetensorError):
                safeweights.tensorflow.save({"x": bad})

    def test_sparse_and_ragged_tensors_are_to_be_made_dense(self) -> None:
        import tensorflow as tf

        import safeweights.tensorflow

        for bad in (tf.sparse.from_dense([[1, 0]]), tf.ragged.constant([[1], [1, 2]])):
            with pytest.raises(safeweights.SafetensorError, match="make it dense"):
                safeweights.tensorflow.save({"x": bad})

    def test_devices(self, tmp_path: Path) -> None:
        import tensorflow as tf

        import safeweights.tensorflow

        safeweights.tensorflow.save_file({"a": tf.ones(3)}, tmp_path / "x")
        for device in ("CPU:0", "/device:CPU:0", "cpu"):
            loaded = safeweights.tensorflow.load_file(tmp_path / "x", device=device)
            assert "CPU:0" in loaded["a"].device
        for device in ("GPU:5", "cuda:5", 7, "TPU:0"):
            with pytest.raises(safeweights.SafetensorError):
                safeweights.tensorflow.load_file(tmp_path / "x", device=device)


@needs("mlx")
class TestMLX:
    def test_views_are_saved_as_values(self) -> None:
        import mlx.core as mx

        import safeweights.mlx

        whole = mx.arange(24).reshape(4, 6)
        tensors = {
            "t": whole.T, "s": whole[::2, 1::2], "b": mx.broadcast_to(whole[0], (3, 6)),
            "bf": whole.astype(mx.bfloat16).T, "n": np.ones(2, "f4"),
        }  # fmt: skip
        loaded = safeweights.mlx.load(safeweights.mlx.save(tensors))
        for name, array in tensors.items():
            assert mx.array_equal(loaded[name], mx.array(array)), name
            assert loaded[name].dtype == mx.array(array).dtype

    @pytest.mark.parametrize("code", WIDE)
    def test_wide_values_are_never_narrowed(self, code: str) -> None:
        import mlx.core as mx

        import safeweights.mlx

        loaded = safeweights.mlx.load(WIDE[code])["x"]
        assert loaded.dtype == {"F64": mx.float64, "I64": mx.int64, "U64": mx.uint64}[code]
        assert np.array(loaded).tobytes() == sample(code, (3,))

    def test_files_of_mlx_itself(self, tmp_path: Path) -> None:
        import mlx.core as mx

        import safeweights.mlx

        arrays = {"a": mx.ones((2, 3), mx.bfloat16), "b": mx.arange(3)}
        mx.save_safetensors(str(tmp_path / "x.safetensors"), arrays)
        loaded = safeweights.mlx.load_file(tmp_path / "x.safetensors")
        assert all(mx.array_equal(loaded[name], arrays[name]) for name in arrays)
        safeweights.mlx.save_file(arrays, tmp_path / "y.safetensors")
        again = mx.load(str(tmp_path / "y.safetensors"))
        assert all(mx.array_equal(again[name], arrays[name]) for name in arrays)


@needs("paddle")
class TestPaddle:
    def test_u16_is_never_bfloat16(self) -> None:
        import safeweights.paddle

        file = file_of({"x": ("U16", (2,), b"\x80\x3f\x10\x40")})
        with pytest.raises(safeweights.SafetensorError, match="no type for U16"):
            safeweights.paddle.load(file)

    def test_non_contiguous_tensors_are_refused_as_by_the_reference(self) -> None:
        import paddle
        import safetensors.paddle

        import safeweights.paddle

        tensors = {"x": paddle.arange(6).reshape([2, 3]).T}
        for module in (safetensors.paddle, safeweights.paddle):
            with pytest.raises(
                ValueError, match="You are trying to save a non contiguous tensor: `x`"
            ):
                module.save(tensors)

    def test_what_is_no_tensor_is_refused_as_by_the_reference(self) -> None:
        import paddle
        import safetensors.paddle

        import safeweights.paddle

        for bad in ({"x": np.ones(2)}, [1]):
            texts = []
            for module in (safetensors.paddle, safeweights.paddle):
                with pytest.raises(ValueError) as caught:
                    module.save(bad)
                texts.append(str(caught.value))
            assert texts[1].startswith(texts[0])  # and then says what to do
        sparse = paddle.sparse.sparse_coo_tensor([[0], [1]], [1.0], [2, 2])
        for tensor in (sparse, paddle.ones([2], "complex128")):
            with pytest.raises(safeweights.SafetensorError):
                safeweights.paddle.save({"x": tensor})

    def test_parameters_of_layers(self, tmp_path: Path) -> None:
        import paddle

        import safeweights.paddle

        layer = paddle.nn.Linear(2, 3)
        safeweights.paddle.save_file(layer.state_dict(), tmp_path / "x")
        other = paddle.nn.Linear(2, 3)
        other.set_state_dict(safeweights.paddle.load_file(tmp_path / "x", device="cpu"))
        assert bool((other.weight == layer.weight).all())

    def test_devices(self, tmp_path: Path) -> None:
        import paddle

        import safeweights.paddle

        file = safeweights.paddle.save({"a": paddle.ones([2])})
        assert safeweights.paddle.load(file, "cpu")["a"].place.is_cpu_place()
        for device in ("gpu:0", "cuda", 0, "xpu:3", "bogus"):
            with pytest.raises(safeweights.SafetensorError):
                safeweights.paddle.load(file, device)


@needs("numpy")
class TestNumPy:
    @pytest.mark.parametrize(
        "bad",
        [
            np.array([object()]), np.array(["a"]), np.zeros(2, "c16"), np.zeros(2, "M8[s]"),
            np.zeros(2, [("a", "f4")]), np.ma.masked_array([1.0], [True]), np.zeros(2, "V4"),
            np.zeros(2, np.longdouble),
        ],
        ids=lambda bad: str(bad.dtype),
    )  # fmt: skip
    def test_types_that_the_format_lacks_are_refused(self, bad: Any) -> None:
        import safeweights.numpy

        with pytest.raises(safeweights.SafetensorError):
            safeweights.numpy.save({"x": bad})

    def test_unknown_types_have_the_references_words(self) -> None:
        import safetensors
        import safetensors.numpy

        import safeweights.numpy

        with pytest.raises(safetensors.SafetensorError, match=r'^Unknown dtype "complex128"'):
            safetensors.numpy.save({"x": np.zeros(2, "c16")})
        with pytest.raises(safeweights.SafetensorError, match=r'^Unknown dtype "complex128"'):
            safeweights.numpy.save({"x": np.zeros(2, "c16")})

    @pytest.mark.filterwarnings("ignore:the matrix subclass")
    def test_scalars_matrices_and_subclasses(self) -> None:
        import safeweights.numpy

        tensors = {"s": np.float32(2), "m": np.asmatrix(np.eye(2))}
        loaded = safeweights.numpy.load(safeweights.numpy.save(tensors))
        assert loaded["s"].shape == ()
        assert loaded["m"].tolist() == [[1, 0], [0, 1]]

    def test_odd_f4(self) -> None:
        ml_dtypes = pytest.importorskip("ml_dtypes", reason="F4 is a type of ml_dtypes")
        import safeweights.numpy

        with pytest.raises(safeweights.SafetensorError, match="byte boundary"):
            safeweights.numpy.save({"x": np.zeros(3, ml_dtypes.float4_e2m1fn)})

    def test_without_ml_dtypes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import sys

        import safeweights.numpy
        from safeweights.frameworks.numpy import numpy_dtype

        numpy_dtype.cache_clear()
        monkeypatch.setitem(sys.modules, "ml_dtypes", None)
        file = file_of({"x": ("BF16", (2,), b"abcd")})
        with pytest.raises(ImportError, match=r"pip install 'safeweights\[ml-dtypes\]'"):
            safeweights.numpy.load(file)
        assert bytes(safeweights.open(file)["x"].view()) == b"abcd"
        numpy_dtype.cache_clear()


def _imported(program: str) -> set[str]:
    code = f"import sys, numpy; before = set(sys.modules); {program}; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("shape", [(), (0,), (2, 0), (4096,), (4097,), (3, 50_000)])
def test_memory_of_an_array_is_read_when_it_is_written(shape: tuple[int, ...]) -> None:
    """Small arrays are copied, large ones seen."""
    array = np.zeros(shape, np.uint8)
    (held,) = ADAPTER.encode({"x": array}).values()
    array[...] = 5
    expected = array.tobytes()
    (chunk,) = held.chunks()
    (written,) = type(held).chunks_of([held])
    assert bytes(chunk) == bytes(written) == bytes(held.view()) == expected
    assert isinstance(written, bytes) == (len(expected) <= 4096)
    buffer = bytearray(len(expected) // 2)
    held.read_into(buffer, len(expected) - len(buffer))
    assert buffer == expected[len(expected) - len(buffer) :]
    again = pickle.loads(pickle.dumps(held))
    assert (again.name, again.dtype, again.shape, bytes(again.view())) == (
        "x",
        "U8",
        shape,
        expected,
    )


def test_an_array_that_grows_before_it_is_written_is_an_error(tmp_path: Path) -> None:
    array = np.zeros(8, np.uint8)
    size, pieces = serialized(ADAPTER.encode({"x": array}))
    array.resize(9, refcheck=False)
    path = tmp_path / "x.safetensors"
    with pytest.raises(SafetensorError, match="takes 8 bytes, but has 9"):
        write_file(path, pieces, size=size)
    assert not path.exists()


def test_a_face_imports_nothing_until_it_is_used() -> None:
    needed = {"safeweights", "safeweights.errors", "safeweights.lazy", "safeweights.numpy"}
    assert {
        name for name in _imported("import safeweights.numpy") if "safeweights" in name
    } == needed


def test_a_face_imports_little_beyond_numpy() -> None:
    """Sixty modules are ten milliseconds. What few programs need is imported by those that do."""
    found = _imported("from safeweights.numpy import load, safe_open, save; save({})")
    assert "safeweights.frameworks.numpy" in found
    unwanted = {
        "bz2",
        "lzma",
        "shutil",
        "tempfile",
        "random",
        "urllib.parse",
        "ipaddress",
        "http.client",
    }
    assert not found & unwanted
    assert not {name for name in found if name.startswith("safeweights.format.bulk")}
    assert len(found) <= 80
