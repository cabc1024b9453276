from __future__ import annotations

import io
import os
import stat

import click
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import safeweights.numpy
from safeweights import checkpoint
from safeweights.checkpoint import MemoryTensor
from safeweights.cli.selectors import parse_slice, split
from safeweights.format.dtypes import DTYPES
from safeweights.format.indexing import select
from safeweights.reports import values
from safeweights.reports.statistics import describe

CODES = [code for code, row in DTYPES.items() if row.bits != 6]


def random_array(code, shape=(6, 8), seed=0):
    size = int(np.prod(shape)) * DTYPES[code].bits // 8
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 2 if code == "BOOL" else 256, size, np.uint8).tobytes()
    tensor = MemoryTensor("t", code, shape, data)
    whole = values.read(tensor, select(..., shape))
    return tensor, whole


@pytest.fixture(scope="module")
def typed(tmp_path_factory):
    """One tensor of every type that NumPy and ml_dtypes have."""
    path = str(tmp_path_factory.mktemp("types") / "types.safetensors")
    checkpoint.save({code: random_array(code)[0] for code in CODES}, path)
    return path


# --- TENSOR[SLICE]


@pytest.mark.parametrize(
    "text",
    ["0", "-1", ":", "::", "1:", ":-2", "::2", "::-1", "5:1:-2", "...", "..., 0", "0, ...", "None",
     "0, :, 1", "None, 1:2", "+1", "0,", " 1 : 3 ", "newaxis, 0"],
)  # fmt: skip
def test_slices_mean_what_they_mean_in_numpy(text):
    array = np.arange(6 * 5 * 4).reshape(6, 5, 4)
    expected = eval(f"array[{text.replace('newaxis', 'None')}]")
    tensor = MemoryTensor("t", "I64", array.shape, array.tobytes())
    found = values.read(tensor, select(parse_slice(text), array.shape, clamp=True))
    assert found.shape == expected.shape
    assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    "text",
    ["", "a", "1.5", "[0]", "1:2:3:4", "1e3", "True", "0x10", "__import__('os')", "1;2", ",", "..",
     "1,,2", "9" * 21, "१", "1_000"],
)  # fmt: skip
def test_everything_else_is_wrong_usage(text):
    with pytest.raises(click.UsageError):
        parse_slice(text)


def test_names_with_brackets():
    names = {"a[0]", "a", "b[", "]"}
    assert split("a[0]", names) == ("a[0]", None, ...)
    assert split("a[0,]", names) == ("a", "[0,]", (0,))
    assert split("a[0][1:]", names) == ("a[0]", "[1:]", (slice(1, None),))
    assert split("b[", names).name == "b["
    assert split("]", names).name == "]"
    assert split("c[0]", names).name == "c"


# --- reading in blocks

AXIS = st.one_of(
    st.integers(-4, 3),
    st.builds(
        slice,
        st.none() | st.integers(-5, 5),
        st.none() | st.integers(-5, 5),
        st.sampled_from([None, 1, 2, 3, -1, -2]),
    ),
)


@given(st.tuples(AXIS, AXIS, AXIS), st.integers(1, 40), st.sampled_from(["U8", "F32", "F4"]))
def test_blocks_are_the_selection_cut_in_pieces(expression, size, code):
    tensor, whole = random_array(code, (4, 4, 4))
    selection = select(expression, tensor.shape, clamp=True)
    expected = whole[expression].reshape(-1)
    found = list(values.blocks(tensor, selection, size))
    assert all(0 < len(block) <= size for block in found)
    joined = np.concatenate(found) if found else expected[:0]
    assert joined.tobytes() == expected.tobytes()


@pytest.mark.parametrize("expression", [..., slice(None, None, 2), (slice(1, 3), slice(2, None))])
def test_blocks_of_packed_types_are_read_without_the_whole(monkeypatch, expression):
    monkeypatch.setattr(values, "_WHOLE_MAX", 0)
    tensor, _ = random_array("F4", (6, 64))
    selection = select(expression, tensor.shape)
    found = list(values.blocks(tensor, selection, 13))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(values, "_WHOLE_MAX", 1 << 20)
        assert np.concatenate(found).tobytes() == values.read(tensor, selection).tobytes()


@given(
    st.lists(st.integers(0, 12), max_size=7).map(tuple),
    st.sampled_from(["F32", "U8", "BF16"]),
    st.booleans(),
)
def test_corners_print_like_the_whole(shape, code, reverse):
    if np.prod(shape) > 20_000:
        shape = shape[:3]
    tensor, whole = random_array(code, shape)
    if code == "F32":
        whole = whole.view("<u4")  # random floats differ in width, and so would the columns
        tensor.dtype = "U32"
    selection = select(slice(None, None, -1) if reverse and shape else ..., shape)
    expected = whole[::-1] if reverse and shape else whole
    shown = values.render(tensor, selection, limit=50, width=80)
    long_axes = sum(size > 1 for size in shape)
    if code == "BF16" or (whole.size > 50 and long_axes > 6):
        assert len(shown) < 20_000
        return
    edges = values._EDGES[long_axes] if whole.size > 50 else 3
    threshold = 0 if whole.size > 50 else 50
    wide = np.array2string(expected, max_line_width=80, edgeitems=edges, threshold=threshold)
    assert shown.split() == wide.split()


# --- statistics


@pytest.mark.parametrize("code", CODES)
def test_statistics_of_every_type(run, typed, code):
    found = run("get", typed, code, "--stats", "--json").document["statistics"]
    _, whole = random_array(code)
    wide = values.widen(whole, np.complex128 if code == "C64" else np.float64)
    good = wide[np.isfinite(wide)]
    assert found["nan"] == np.isnan(wide).sum()
    assert found["inf"] == np.isinf(wide).sum()
    assert found["zeros"] == (wide == 0).sum()
    if code == "C64":
        assert found["min"] is found["max"] is None
        with np.errstate(over="ignore", invalid="ignore"):
            assert np.allclose(found["mean"], [good.mean().real, good.mean().imag])
        return
    assert (found["min"], found["max"]) == (good.min(), good.max())
    with np.errstate(over="ignore", invalid="ignore"):
        mean, std = good.mean(), good.std()
    assert found["mean"] is None or np.isclose(found["mean"], mean)
    assert found["std"] is None or np.isclose(found["std"], std)
    assert (found["std"] is None) == (not np.isfinite(std))


def test_statistics_are_exact_where_it_matters():
    huge = np.array([2**64 - 1, 1], np.uint64)
    assert (describe([huge])["max"], describe([huge])["min"]) == (2**64 - 1, 1)
    offset = np.arange(1000, dtype=np.float64) + 1e9
    found = describe(offset.reshape(10, 100))
    assert np.isclose(found["std"], np.arange(1000).std(), rtol=1e-9)
    assert describe([np.array([1e308, 1e308, 1e308])])["mean"] is None
    far = np.array([1e200, 1e200])
    assert (describe([far])["std"], describe([far, far])["std"]) == (0, 0)
    assert describe([far, -far])["std"] is None, "its square is no number"
    nothing = describe([np.array([np.nan, np.inf])])
    assert (nothing["min"], nothing["mean"], nothing["nan"], nothing["inf"]) == (None, None, 1, 1)
    assert describe([])["zeros"] == 0
    assert describe([np.array([0, 2, 1], np.uint8).view(bool)])["zeros"] == 1


@given(st.lists(st.lists(st.floats(-1e3, 1e3, width=32), max_size=5), max_size=8))
def test_blocks_combine_to_the_statistics_of_all(parts):
    flat = np.array([value for part in parts for value in part], "f4")
    found = describe([np.array(part, "f4") for part in parts])
    if not flat.size:
        assert found["mean"] is None
        return
    wide = flat.astype("f8")
    assert np.isclose(found["mean"], wide.mean(), atol=1e-9)
    assert np.isclose(found["std"], wide.std(), atol=1e-9)
    assert (found["min"], found["max"]) == (flat.min(), flat.max())


def test_statistics_take_bounded_memory(tmp_path):
    import tracemalloc

    path = tmp_path / "big"
    safeweights.numpy.save_file({"a": np.zeros((1 << 14, 1 << 10), "f4")}, path)  # 64 MiB
    tensor = checkpoint.open(path, backend="pread")["a"]
    tracemalloc.start()
    describe(values.blocks(tensor, select(..., tensor.shape)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 << 20


# --- the command


def test_values_piped_are_rows_of_the_last_axis(run, tmp_path):
    array = np.arange(6, dtype="f4").reshape(2, 3)
    path = str(tmp_path / "x")
    safeweights.numpy.save_file({"a": array, "s": np.float32(1.5)}, path)
    assert run("get", path, "a").rows == [["0.0", "1.0", "2.0"], ["3.0", "4.0", "5.0"]]
    assert run("get", path, "a[:, ::-2]").rows == [["2.0", "0.0"], ["5.0", "3.0"]]
    assert run("get", path, "s").rows == [["1.5"]]
    bounded = run("get", path, "a", "--limit", "4")
    assert bounded.rows == [["0.0", "1.0", "2.0"], ["3.0"]]
    assert "printed 4 values of 6;" in bounded.stderr
    assert len(run("get", path, "a", "--limit", "0").rows) == 2


@pytest.mark.parametrize("code", CODES)
def test_json_has_the_values_of_every_type(run, typed, code):
    document = run("get", typed, f"{code}[1]", "--json").document
    _, whole = random_array(code)
    assert (document["dtype"], document["shape"], document["selection"]) == (code, [8], "[1]")

    def back(value):
        return complex(*map(float, value)) if isinstance(value, list) else float(value)

    found = np.array([back(value) for value in document["values"]])
    expected = values.widen(whole[1], np.complex128 if code == "C64" else np.float64)
    assert np.array_equal(found, expected, equal_nan=True)


def test_json_says_when_there_is_more(run, typed):
    document = run("get", typed, "F32", "--json", "--limit", "5").document
    assert (len(document["values"]), document["truncated"]) == (5, True)
    assert run("get", typed, "F32", "--json").document["truncated"] is False


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("part", ["", "[::-2, 1:]"])
def test_npy_files_hold_the_values(run, typed, tmp_path, code, part):
    target = str(tmp_path / "x.npy")
    result = run("get", typed, f"{code}{part}", "-o", target, "--json")
    assert (result.exit_code, result.document["output"]) == (0, target)
    found = np.load(target)
    _, whole = random_array(code)
    expected = whole[::-2, 1:] if part else whole
    if DTYPES[code].ml_dtypes:
        expected = values.widen(expected, "f4")
        assert found.dtype == np.float32
    assert found.dtype == expected.dtype
    assert np.array_equal(found, expected, equal_nan=code != "BOOL")


def test_npy_to_standard_output(typed, process):
    child = process("get", typed, "BF16[0]", "-o", "-")
    out, _ = child.communicate(timeout=60)
    assert np.load(io.BytesIO(out)).shape == (8,)


def test_npy_files_replace_atomically_and_never_the_model(run, typed, tmp_path):
    target = tmp_path / "x.npy"
    target.write_bytes(b"old")
    target.chmod(0o640)
    before = os.stat(typed)
    bare = str(tmp_path / "model")
    os.link(typed, bare)
    assert run("get", typed, "F32", "-o", bare, "--force").exit_code == 2
    os.unlink(bare)
    assert os.stat(typed).st_mtime_ns == before.st_mtime_ns
    refused = run("get", typed, "F32", "-o", str(target))
    assert (refused.exit_code, target.read_bytes()) == (3, b"old")
    assert "exists; --force replaces it" in refused.stderr
    assert run("get", typed, "F32", "-o", str(target), "--force").exit_code == 0
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert os.listdir(tmp_path) == ["x.npy"]
    assert run("get", typed, "F32", "-o", str(tmp_path)).exit_code == 3
    assert run("get", typed, "F32", "-o", str(tmp_path) + "/", "--force").exit_code == 3
    assert run("get", typed, "F32", "-o", str(tmp_path / "new" / "er" / "x.npy")).exit_code == 0
    assert np.load(tmp_path / "new" / "er" / "x.npy").dtype == np.float32


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors", "a.NPZ", "dir.npy/a.bin"])
def test_npy_is_not_written_into_a_file_of_another_kind(run, typed, tmp_path, name):
    result = run("get", typed, "F32", "-o", str(tmp_path / name), "--force")
    assert result.exit_code == 2
    assert "-o writes NumPy's format" in result.stderr
    assert os.listdir(tmp_path) == []


def test_the_file_that_is_read_is_never_written(run, tmp_path):
    np.save(tmp_path / "a.npy", np.arange(3.0))
    before = (tmp_path / "a.npy").read_bytes()
    for place in ("a.npy", "../" + tmp_path.name + "/a.npy"):
        assert (
            run(
                "get", str(tmp_path / "a.npy"), "tensor", "-o", str(tmp_path / place), "--force"
            ).exit_code
            == 2
        )
    assert (tmp_path / "a.npy").read_bytes() == before


def test_what_is_not_there(run, typed):
    result = run("get", typed, "F33", "--json")
    assert result.exit_code == 1
    assert result.document["error"]["kind"] == "not-found"
    assert "similar names: `F32`" in result.stderr
    assert "8_E5M2`" in run("get", typed, "M2").stderr, "a part of a name"
    assert run("get", typed, "F32[9]", "--json").document["error"]["kind"] == "selection"
    assert run("get", typed, "F32[9]").exit_code == 1
    assert run("get", typed, "F32[x]").exit_code == 2
    assert run("get", typed, "F32[0,0,0]").exit_code == 1
    assert run("get", typed, "F32[:99]").exit_code == 0  # as in NumPy


def test_options_that_exclude_each_other(run, typed):
    assert run("get", typed, "F32", "--stats", "-o", "x").exit_code == 2
    assert run("get", typed, "F32", "--json", "-o", "-").exit_code == 2


def test_a_type_that_numpy_cannot_have(run, tmp_path, write):
    write(tmp_path / "x", [("a", "F6_E2M3", (4,))])
    result = run("get", str(tmp_path / "x"), "a", "--json")
    assert (result.exit_code, result.document["error"]["kind"]) == (1, "unsupported")


def test_a_part_of_a_packed_type_that_is_no_whole_byte(run, typed):
    _, whole = random_array("F4")
    found = run("get", typed, "F4[2, 3]", "--json").document["values"]
    assert found == [float(whole[2, 3])]
    assert whole.dtype == ml_dtypes.float4_e2m1fn


def test_empty_tensors(run, tmp_path):
    path = str(tmp_path / "x")
    safeweights.numpy.save_file({"a": np.zeros((0, 4), "f4")}, path)
    assert run("get", path, "a").stdout == ""
    assert run("get", path, "a", "--json").document["values"] == []
    assert run("get", path, "a", "--stats").exit_code == 0
    assert run("get", path, "a", "-o", path + ".npy").exit_code == 0
    assert np.load(path + ".npy").shape == (0, 4)


def test_on_a_terminal_at_80_columns(terminal, plain, tmp_path):
    path = str(tmp_path / "x")
    safeweights.numpy.save_file({"a": np.random.default_rng(0).normal(size=(200, 300, 50))}, path)
    shown, status = terminal("get", path, "a")
    lines = plain(shown).splitlines()
    assert status == 0
    assert max(map(len, lines)) <= 80
    assert "..." in shown
    assert len(lines) < 100
    shown, _ = terminal("get", path, "a", "--stats")
    assert max(map(len, plain(shown).splitlines())) <= 80


def test_names_are_completed(monkeypatch, model):
    from click.testing import CliRunner

    from safeweights.cli.app import cli

    monkeypatch.setenv("COMP_WORDS", f"safeweights get {model} emb")
    monkeypatch.setenv("COMP_CWORD", "3")
    result = CliRunner().invoke(
        cli, [], prog_name="safeweights", env={"_SAFEWEIGHTS_COMPLETE": "bash_complete"}
    )
    assert result.stdout == "plain,embed.weight\n"


# --- piped values are the values


@pytest.mark.parametrize("code", [code for code in CODES if DTYPES[code].bits in (4, 8, 16)])
def test_piped_values_of_narrow_types_are_exact(code):
    """The reader may have a wider type: awk has 64 bits."""
    if np.dtype(values.numpy_dtype(code)).kind in "biu":
        return
    bits = min(DTYPES[code].bits, 16)
    data = np.arange(1 << bits, dtype=np.uint8 if bits <= 8 else np.uint16)
    found = data.view(values.numpy_dtype(code))
    with np.errstate(invalid="ignore"):
        expected = found.astype(np.float32)
    again = np.array([np.float32(text) for text in values.spelt(found)])
    assert np.array_equal(again, expected, equal_nan=True)


def test_piped_values_look_like_those_of_json(run, tmp_path):
    tensors = {
        "bf16": np.array([1236992, 0.5], ml_dtypes.bfloat16),
        "f16": np.array([65504, 1.5], np.float16),
        "f8": np.array([0.05859375, 448], ml_dtypes.float8_e4m3fn),
    }
    path = str(tmp_path / "x.safetensors")
    safeweights.numpy.save_file(tensors, path)
    for name in tensors:
        piped = [float(text) for text in run("get", path, name).stdout.split()]
        assert piped == run("get", path, name, "--json").document["values"]
