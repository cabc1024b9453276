"""`safeweights stats`: statistics of many tensors."""

from __future__ import annotations

import io
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import safeweights.numpy
from safeweights import checkpoint
from safeweights.checkpoint import MemoryTensor
from safeweights.cli import terminal as terminal_module
from safeweights.cli.figures import bars, digits
from safeweights.format.indexing import select
from safeweights.reports import statistics, surveys
from safeweights.reports.statistics import statistics_of
from safeweights.reports.values import single


@pytest.fixture
def save(tmp_path):
    def save(file="model", **tensors):
        path = str(tmp_path / f"{file}.safetensors")
        safeweights.numpy.save_file(tensors, path)
        return path

    return save


def computed(path):
    tensors = checkpoint.open(path, backend="pread")
    found = statistics_of((each, select(..., each.shape)) for each in tensors.values())
    return dict(zip(tensors, found, strict=True))


def test_all_tensors_or_those_named(run, save):
    path = save(a=np.array([1, 2, 3, 4], "f4"), b=np.zeros((2, 3), "i8"), c=np.ones(1, "f8"))
    assert [row[0] for row in run("stats", path).rows] == ["b", "c", "a"]
    rows = run("stats", path, "a", "[b]").rows
    assert rows == [
        ["b", "I64", "[2,3]", "0", "0", "0", "0", "6", "0", "0", "2", "0", "0", "0", "0", "0"],
        [
            "a",
            "F32",
            "[4]",
            "1",
            "4",
            "2.5",
            "1.11803",
            "0",
            "0",
            "0",
            "-",
            "1",
            "1",
            "2",
            "3",
            "4",
        ],
    ]
    wrong = run("stats", path, "x*")
    assert wrong.exit_code == 2
    assert "no tensor in" in wrong.stderr


def test_the_exit_status_says_whether_all_is_finite(run, save):
    good = save("good", a=np.ones(3, "f4"))
    assert run("stats", good, "--finite").exit_code == 0
    bad = save(a=np.array([1, np.nan], "f4"), b=np.array([np.inf, -np.inf], "f2"))
    assert run("stats", bad).exit_code == 0
    assert run("stats", bad).stderr == ""
    said = run("stats", bad, "--finite").stderr
    assert said == "safeweights: 2 tensors have NaNs or infinities: `a`, `b`\n"
    said = run("stats", good, "--compare", bad, "--finite", "a").stderr
    assert said == "safeweights: 1 tensor has NaNs or infinities: `a`\n"
    result = run("stats", bad, "--finite", "--json")
    assert result.exit_code == 1
    assert result.document["finite"] is False
    broken = {each["name"]: each["statistics"] for each in result.document["tensors"]}
    assert (broken["a"]["nan"], broken["b"]["inf"], broken["b"]["min"]) == (1, 2, None)
    assert broken["b"]["distribution"] is None


@pytest.mark.parametrize("code", ["f2", "f4", "f8", "i2", "u1", "i1"])
def test_parts_computed_by_threads_are_those_of_the_whole(save, monkeypatch, code):
    monkeypatch.setattr(statistics, "_PART", 1 << 15)
    monkeypatch.setattr(statistics, "_WAVE", 3)
    monkeypatch.setattr(statistics, "_EXACT", 1 << 10)
    monkeypatch.setattr(statistics, "_PIECE", 1 << 12)
    random = np.random.default_rng(0)
    whole = (random.standard_normal((300, 700)) * 30).astype(code)
    whole[7] = whole[299] = 0
    found = computed(save(a=whole, b=whole[:0]))
    ours, wide = found["a"], whole.astype("f8")
    assert (ours["min"], ours["max"]) == (whole.min(), whole.max())
    assert np.isclose(ours["mean"], wide.mean(), rtol=1e-5, atol=1e-6)
    assert np.isclose(ours["std"], wide.std(), rtol=1e-5)
    assert ours["zeros"] == (whole == 0).sum()
    assert ours["dead_rows"] == 2
    for share, value in ours["distribution"]["quantiles"].items():
        assert abs((wide <= value).mean() - float(share)) < (0.01 if code[0] == "f" else 0.05)
    assert sum(ours["distribution"]["bins"]) == ours["distribution"]["sampled"]
    assert (found["b"]["min"], found["b"]["zeros"], found["b"]["distribution"]) == (None, 0, None)


def test_each_tensor_has_its_own_record_whatever_its_neighbours(save, monkeypatch):
    """Some are one part, whose record a thread makes; others are several, in one wave or in two."""
    monkeypatch.setattr(statistics, "_PART", 1 << 10)
    monkeypatch.setattr(statistics, "_WAVE", 5)
    random = np.random.default_rng(1)
    sizes = [10, 3000, 0, 2000, 1, 1000, 9000, 1024, 1025, 5]
    tensors = {f"{number}": random.standard_normal(size) for number, size in enumerate(sizes)}
    together = computed(save("all", **tensors))
    assert list(together) == list(tensors)
    for name, values in tensors.items():
        assert together[name] == computed(save(name, **{name: values}))[name]
        if values.size:
            assert (together[name]["min"], together[name]["max"]) == (values.min(), values.max())


def test_sums_in_f32_are_used_only_where_they_keep_the_digits(save):
    size = 1 << 17
    alternating = np.tile(np.array([1, -1], "f4"), size // 2)
    found = computed(
        save(
            far=alternating * np.float32(0.01) + np.float32(1000),
            huge=alternating * np.float32(1e30),
            tiny=alternating * np.float32(1e-30),
            around=alternating,
        )
    )
    assert np.isclose(found["far"]["std"], 0.01, rtol=0.01)
    assert np.isclose(found["huge"]["std"], 1e30)
    assert np.isclose(found["tiny"]["std"], 1e-30)
    assert (found["around"]["mean"], found["around"]["std"]) == (0, 1)


def test_every_half_and_bfloat16_is_widened_exactly():
    bits = np.arange(1 << 16, dtype="u2")
    for kind in ("f2", ml_dtypes.bfloat16):
        halves = bits.view(kind)
        with np.errstate(all="ignore"):
            wide = halves.astype("f4")
        assert single(halves).tobytes() == wide.tobytes()
        finite = halves[np.isfinite(wide)]
        assert single(finite).tobytes() == wide[np.isfinite(wide)].tobytes()
        assert single(finite[:0]).dtype == np.float32


@pytest.mark.parametrize("row", [1, 7, 100, 5000])
@pytest.mark.parametrize("code", ["f2", "f4", "f8", "i8", "u1", "?"])
def test_rows_of_zeros_are_counted_whatever_their_length(save, monkeypatch, code, row):
    monkeypatch.setattr(statistics, "_PIECE", 1 << 10)
    monkeypatch.setattr(statistics, "_PART", 1 << 14)
    whole = np.ones((20_000 // row, row), code)
    whole[1::3] = 0
    whole[0, 1:] = 0
    found = computed(save(a=whole))["a"]
    assert found["dead_rows"] == (~whole.any(axis=1)).sum()
    assert found["zeros"] == (whole == 0).sum()


def test_a_part_of_a_tensor_is_read_like_the_whole(save, monkeypatch):
    monkeypatch.setattr(statistics, "_PIECE", 1 << 10)
    whole = np.random.default_rng(0).standard_normal((200, 300)).astype("f4")
    tensor = checkpoint.open(save(a=whole), backend="pread")["a"]
    for expression in (np.s_[10:150], np.s_[::-1], np.s_[:, 3:77], np.s_[5], np.s_[::7, ::3]):
        part, (found,) = (
            whole[expression],
            statistics_of([(tensor, select(expression, whole.shape))]),
        )
        assert (found["min"], found["max"]) == (part.min(), part.max())
        assert np.isclose(found["mean"], part.mean(dtype="f8"), atol=1e-7)
        assert found["distribution"]["sampled"] == part.size
        assert np.isclose(
            found["distribution"]["quantiles"]["0.5"], np.quantile(part, 0.5, method="inverted_cdf")
        )


@given(st.lists(st.integers(-20, 20), min_size=1, max_size=60))
def test_quantiles_and_bins_are_those_of_the_values(values):
    """Of values of one byte, which are counted, and of others, which are sorted."""
    counted, floats = (
        statistics_of([(MemoryTensor("a", code, (len(values),), np.array(values, kind)), every)])
        for every in [select(..., (len(values),))]
        for code, kind in (("I8", "i1"), ("F32", "f4"))
    )
    (one,), (other,) = counted, floats
    assert one["distribution"] == other["distribution"]
    for share, found in one["distribution"]["quantiles"].items():
        assert found == np.quantile(values, float(share), method="inverted_cdf")
    assert sum(one["distribution"]["bins"]) == len(values)


def test_every_column_is_sampled(save):
    """An even step that divides the row would see the same columns of each."""
    whole = np.zeros((4096, 64), "f4")
    whole[:, 1::2] = 1
    distribution = computed(save(a=whole))["a"]["distribution"]
    assert distribution["sampled"] < whole.size
    ones = sum(distribution["bins"][12:])
    assert abs(ones / distribution["sampled"] - 0.5) < 0.01


def test_many_values_take_bounded_memory(save):
    path = save(a=np.zeros((1 << 14, 1 << 10), "f4"))  # 64 MiB
    tracemalloc.start()
    computed(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 48 << 20


def test_tensors_without_values_are_listed(run, quantised):
    rows = {row[0]: row for row in run("stats", quantised).rows}
    assert rows["blk.0.weight"][3:] == ["-"] * 13
    assert rows["scale"][3] == "0"
    document = run("stats", quantised, "--json").document
    assert [each["statistics"] is None for each in document["tensors"]].count(True) == 3


def test_on_a_terminal_at_80_columns(terminal, plain, save):
    path = save(
        **{"model.layers.0.self_attn.q_proj.weight": np.array([[1, np.nan], [0, 0]], "f4")},
        **{"x\x1b[2J": np.arange(100, dtype="f4")},
    )
    shown, status = terminal("stats", path)
    lines = plain(shown).splitlines()
    assert status == 0
    assert max(map(len, lines)) <= 80
    assert "x\\x1b[2J" in plain(shown)
    assert "1 x NaN" in plain(shown)
    assert "1 row of zeros only" in plain(shown)
    assert "█" in shown


@pytest.fixture
def two(save):
    """Two checkpoints: a tensor that is the same, one that changed, one on each side alone."""
    same = np.ones(3, "f4")
    before = save("before", same=same, w=np.array([[1, 2], [0, 0]], "f4"), old=np.zeros(1, "i4"))
    after = save("after", same=same, w=np.array([[1, 5], [np.nan, 3]], "f4"), new=np.zeros(1, "u1"))
    return before, after


def test_two_checkpoints_side_by_side(run, two):
    rows = run("stats", two[0], "--compare", two[1]).rows
    found = {(row[0], row[1]): row[2:] for row in rows}
    assert set(found) == {
        ("before", "old"), ("before", "same"), ("after", "same"), ("change", "same"),
        ("before", "w"), ("after", "w"), ("change", "w"), ("after", "new"),
    }  # fmt: skip
    assert found["before", "w"][:6] == ["F32", "[2,2]", "0", "2", "0.75", "0.829156"]
    assert found["after", "w"][:5] == ["F32", "[2,2]", "1", "5", "3"]
    assert found["change", "w"][:6] == ["-", "-", "1", "3", "2.25", "0.803837"]
    assert found["change", "w"][6:10] == ["-2", "1", "0", "-1"]
    assert found["change", "same"][2:] == ["0"] * 7 + ["-"] + ["0"] * 5


def test_a_comparison_as_a_document(run, two):
    result = run("stats", two[0], "--compare", two[1], "--finite", "--json")
    assert result.exit_code == 1
    assert result.document["finite"] is False
    tensors = {each["name"]: each for each in result.document["tensors"]}
    assert tensors["new"]["before"] is tensors["new"]["change"] is None
    assert tensors["old"]["after"] is None
    assert tensors["w"]["change"]["quantiles"]["0.99"] == 3
    assert run("stats", two[0], "same", "--compare", two[1], "--finite").exit_code == 0


def test_what_has_no_difference_is_null(run, save):
    huge = np.finfo("f8").max
    one = save("one", c=np.ones(1, "c8"), h=np.array([-huge]), e=np.zeros(0, "f4"), r=np.ones(2))
    other = save("other", c=np.ones(1, "c8"), h=np.array([huge]), e=np.ones(1, "f4"), r=np.ones(1))
    document = run("stats", one, "--compare", other, "--json").document
    changes = {each["name"]: each["change"] for each in document["tensors"]}
    assert changes["c"]["mean"] is None
    assert (changes["h"]["max"], changes["h"]["quantiles"]) == (None, {})
    assert (changes["e"]["min"], changes["e"]["zeros"]) == (None, 0)
    assert changes["r"]["mean"] == 0  # of another shape, and compared all the same


def test_a_comparison_reads_both_in_turn(save, monkeypatch):
    """Parts of the first and of the second are read together: neither is held until the other came."""
    monkeypatch.setattr(statistics, "_WAVE", 2)
    paths = [save(name, **{f"t{n}": np.ones(4, "f4") for n in range(6)}) for name in "ab"]
    sides = [checkpoint.open(path, backend="pread") for path in paths]
    done = []
    records = surveys.compare(*sides, done.append)
    for number in range(1, 7):
        record = next(records)
        assert record["before"]["statistics"] == record["after"]["statistics"]
        assert max(done) == 8 * number
    assert next(records, None) is None


def test_a_comparison_on_a_terminal_shows_what_changed(terminal, plain, two):
    shown, status = terminal("stats", two[0], "--compare", two[1])
    text = plain(shown)
    assert status == 0
    assert max(map(len, text.splitlines())) <= 80
    assert [line.split()[1] for line in text.splitlines() if line.startswith("w  ")] == ["before"]
    assert "only before" in text
    assert "only after" in text
    assert "+2.25" in text
    assert "w (after): 1 x NaN" in text
    assert "1 tensor has the same statistics in both" in text


def test_a_table_begins_before_its_last_row_is_computed(monkeypatch):
    """Of a hundred thousand tensors the first are on the screen while the others are read."""
    stream = io.StringIO()
    drawn = terminal_module.Terminal(stream)
    lines = []

    def rows():
        for number in range(5000):
            if number == 1500:
                lines.extend(stream.getvalue().splitlines())
            yield (f"layers.{number}" + "x" * (number // 100), "F32")

    drawn.table((terminal_module.Column("name"), terminal_module.Column("type")), rows())
    assert len(lines) == 1001
    whole = stream.getvalue().splitlines()
    assert len(whole) == 5001
    assert all(line.endswith("F32 ") for line in whole[1:])


def test_digits_and_bars():
    assert [digits(value, 3) for value in (1.23456, 1e-9, 12345.6, [1.0, -2.5], None)] == [
        "1.23", "1e-09", "1.23e+04", "1-2.5j", "-",
    ]  # fmt: skip
    assert bars([]) == ""
    assert bars([0, 0]) == "  "
    assert len(bars([1] * 24)) == 12
    assert bars([1, 10**9]) == "▁█"
