"""What scans say of honest files, and how reports are shown."""

from __future__ import annotations

import _compat_pickle
import argparse
import collections
import datetime as dt
import decimal
import fractions
import io
import pathlib
import pickle
import subprocess
import sys
import types
import uuid

import joblib
import numpy as np
import pytest
import torch
from builders import (
    archive,
    call,
    evil,
    integer,
    ints,
    many,
    mapping,
    name,
    tar,
    tensor,
    text,
    torch_legacy,
    torch_tar,
    whole,
)
from hostile_uses import dtype, short
from hostile_uses import plain as plain_type

from safeweights.conversion import Limits, scan
from safeweights.conversion.grading import DATA_NAMES, Grade, grade_global
from safeweights.conversion.pickles.nodes import Global
from safeweights.conversion.scanning import scan_other_readers
from safeweights.storage import BytesSource, open_source


def saved(value: object, **options: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


STATE = {"w": torch.arange(4.0), "p": torch.nn.Parameter(torch.ones(2)), "lr": 0.1}


@pytest.mark.parametrize("new", [True, False])
def test_state_dicts_are_clean(new) -> None:
    report = scan(saved(STATE, _use_new_zipfile_serialization=new))
    assert report.clean
    assert report.verdict == "clean"
    assert report.pickles == (1 if new else 5)
    assert {finding.grade for finding in report.findings} == {Grade.DATA}


def test_arrays_are_clean(tmp_path) -> None:
    array = {"a": np.arange(3.0), "o": np.array([1, None], dtype=object)}
    joblib.dump(array, tmp_path / "plain.joblib")
    joblib.dump(array, tmp_path / "packed.joblib", compress=3)
    np.savez(tmp_path / "a.npz", **array)
    for path in tmp_path.iterdir():
        assert scan(str(path)).verdict == "clean", path.name
    assert scan(pickle.dumps(array)).verdict == "clean"
    assert scan(torch_tar()).verdict == "clean"


def test_modules_of_torch_are_data_and_others_are_unknown() -> None:
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 2, 3), torch.nn.LSTM(2, 3), torch.nn.BatchNorm1d(2)
    )
    assert scan(saved(model)).clean
    report = scan(saved(model).replace(b"torch.nn.modules.conv", b"torch.nn.modules.conx"))
    assert not report.clean
    unknown = scan(whole(name("torch.nn.modules.conx", "Conv2d") + b")\x81}b"))
    assert (unknown.verdict, unknown.findings[0].target) == (
        "unknown",
        "torch.nn.modules.conx.Conv2d",
    )


LINEAR = name("torch.nn.modules.linear", "Linear") + b")\x81"


@pytest.mark.parametrize(
    "body",
    [
        LINEAR + mapping(__setstate__=b"N") + b"b",
        LINEAR + mapping(append=b"N") + b"b" + b"Na",
        LINEAR + b"}b}b",
        LINEAR + b"}}\x86b",
        LINEAR + b"(Ne",
        LINEAR + b"NNs",
        LINEAR + call(name("my.own", "Thing")) + b"b",
        name("torch.nn.modules.linear", "Linear") + b"K\x01K\x02\x86R",
        LINEAR + mapping(forward=name("my.own", "function")) + b"b",
    ],
)
def test_objects_of_known_classes_are_data_only_as_libraries_write_them(body) -> None:
    assert scan(whole(LINEAR + mapping(training=b"\x88") + b"b")).clean
    assert scan(whole(body)).verdict in {"unknown", "incomplete"}


def test_legacy_modules_name_their_classes() -> None:
    """Their persistent ids are ("module", class, file, source)."""
    kind = (
        b"("
        + text("module")
        + name("my.module", "Net")
        + text("net.py")
        + text("class Net: ...")
        + b"tQ"
    )
    report = scan(torch_legacy(kind + b")\x81" + mapping(w=tensor()) + b"b"))
    assert report.verdict == "unknown"
    assert {finding.target for finding in report.findings if finding.grade} == {"my.module.Net"}


PLAIN = {
    "path": pathlib.Path("a/b"), "bytes": io.BytesIO(b"abc"), "none": type(None), "more": ...,
    "space": types.SimpleNamespace(a=1), "arguments": argparse.Namespace(lr=0.1),
    "time": dt.datetime(2020, 1, 1, tzinfo=dt.timezone.utc), "day": dt.date(2020, 1, 1),
    "number": decimal.Decimal("1.5"), "fraction": fractions.Fraction(1, 3), "id": uuid.UUID(int=7),
    "counts": collections.Counter("aab"), "queue": collections.deque([1, 2], 5), "range": range(3),
    "factory": collections.defaultdict(float, a=1.0), "slice": slice(1, 2), "array": bytearray(b"x"),
    "text": np.array(["a"]), "times": np.array(["2020"], "M8[D]"),
    "record": np.zeros(2, [("a", "f4"), ("b", "i2", (3,))]), "swapped": np.arange(3, dtype=">f8"),
}  # fmt: skip


@pytest.mark.parametrize("protocol", range(6))
def test_types_that_only_hold_data_are_clean(protocol: int) -> None:
    for title, value in PLAIN.items():
        if title == "bytes" and protocol < 2:
            continue  # Python cannot pickle it so
        report = scan(pickle.dumps(value, protocol))
        assert report.clean, (title, report.unread, [f for f in report.findings if f.grade])


def test_states_of_random_generators_are_clean() -> None:
    for kind in (np.random.MT19937, np.random.PCG64, np.random.Philox, np.random.SFC64):
        for protocol in (2, 4):
            assert scan(pickle.dumps(np.random.Generator(kind(1)), protocol)).clean
    assert scan(pickle.dumps(np.random.RandomState(1))).clean
    made = name("numpy.random._pickle", "__randomstate_ctor")
    hostile = call(made, text("MT19937"), name("os", "getpid"))
    assert scan(whole(hostile)).verdict == "dangerous"
    assert scan(whole(call(made, text("Evil")))).verdict == "unknown"


MASKED = name("numpy.ma.core", "_mareconstruct")
MASKED += (
    many(name("numpy.ma", "MaskedArray"), name("numpy", "ndarray"), b"K\x00\x85", text("b")) + b"R"
)


def test_masked_arrays_are_clean() -> None:
    values = [
        np.ma.masked_array([1, 2], [0, 1]),
        np.ma.masked_array([[0.5], [2.0]], True, fill_value=7.0),
        np.ma.masked_array(["a", "bc"], [1, 0]),
        np.ma.masked_array([True], fill_value=False),
    ]
    for value in values:
        for protocol in (2, 4, 5):
            report = scan(pickle.dumps(value, protocol))
            assert report.clean, (value, report.unread, report.findings)


@pytest.mark.parametrize(
    "change",
    [
        {"shape": ints(1 << 40)}, {"shape": ints(-1)}, {"data": short(bytes(9))}, {"mask": short(bytes(2))},
        {"kind": dtype("O8")}, {"fill": name("os", "getpid")}, {"version": integer(2)}, {"data": b"]"},
    ],
)  # fmt: skip
def test_masked_arrays_that_contradict_themselves_are_not(change: dict[str, bytes]) -> None:
    def masked(**changes: bytes) -> bytes:
        state = {
            "version": integer(1), "shape": ints(1), "kind": plain_type("f8"), "order": b"\x89",
            "data": short(bytes(8)), "mask": short(b"\0"), "fill": b"N", **changes,
        }  # fmt: skip
        return whole(MASKED + many(*state.values()) + b"b")

    assert scan(masked()).clean
    assert not scan(masked(**change)).clean
    assert not scan(masked()[:-1] + b"}b.").clean


def test_metadata_of_distributed_checkpoints_is_clean() -> None:
    from torch.distributed.checkpoint.metadata import Metadata, TensorProperties

    value = Metadata({"w": TensorProperties(torch.float32)})
    assert scan(pickle.dumps(value)).verdict == "clean"


def test_what_cannot_be_judged_is_not_called_dangerous() -> None:
    report = scan(pickle.dumps(np.random.SeedSequence(1)).replace(b"SeedSequence", b"SeedSequencf"))
    assert report.verdict == "unknown", report.findings
    assert scan(whole(call(name("my_package", "Colour"), integer(1)))).verdict == "unknown"
    assert [grade.label for grade in Grade] == [
        "builds data only", "unknown, cannot be judged", "can act",
    ]  # fmt: skip


def test_one_budget_counts_for_a_whole_file() -> None:
    body = whole(b"N0" * 600 + b"N")
    limits = Limits(opcodes=2000)
    assert scan(body, limits=limits).clean
    report = scan(archive({f"{number}.pkl": body for number in range(9)}), limits=limits)
    assert report.verdict == "incomplete"
    assert {part.reason.split(";")[0] for part in report.unread} == {
        "the file exceeds the limit opcodes=2000"
    }


def test_many_small_members_are_within_the_budget_and_read_together(tmp_path) -> None:
    """Counted for a fiftieth of an archive of 50,000 arrays."""
    file = io.BytesIO()
    np.save(file, np.zeros(9, "f4"))
    path = tmp_path / "many.npz"
    path.write_bytes(archive({f"a{number}.npy": file.getvalue() for number in range(1000)}))
    limits = Limits().counted()
    source = open_source(path, backend="pread")
    reads = []
    original = source.view
    source.view = lambda *place: reads.append(place) or original(*place)
    assert scan(source, limits=limits).clean
    assert 50 * (limits.used or {})["opcodes"] <= limits.opcodes
    assert len(reads) < 50


def test_a_scan_of_a_checkpoint_imports_no_numpy(tmp_path) -> None:
    for new in (True, False):
        path = tmp_path / f"{new}.pt"
        path.write_bytes(saved(STATE, _use_new_zipfile_serialization=new))
        code = (
            "import sys; from safeweights.conversion import scan; assert scan(sys.argv[1]).clean; "
            "sys.exit('numpy' in sys.modules)"
        )
        subprocess.run([sys.executable, "-c", code, path], check=True)


def test_ordinary_safetensors_are_clean_whatever_the_length_of_their_header() -> None:
    """The lowest byte of the length is what an unpickler would take for the first opcode."""
    data = np.random.default_rng(0).standard_normal(5000).astype("f4").tobytes()
    entry = '{"model.w":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}'
    header = (entry % (len(data), len(data))).encode()
    for length in (*range(72, 72 + 512), *range(10_000, 10_256)):
        file = length.to_bytes(8, "little") + header.ljust(length) + data
        report = scan_other_readers(BytesSource(file, "x"))
        assert report.clean, (length, report.findings, report.unread)


def test_safetensors_are_clean_and_damaged_ones_are_not() -> None:
    import safetensors.torch

    data = safetensors.torch.save({"w": torch.ones(2)})
    assert scan(data).verdict == "clean"
    assert scan(data[:-1]).verdict == "incomplete"
    polyglot = data + archive({"__main__.py": b"print('run')"})
    assert scan(polyglot).verdict == "incomplete"


def test_what_was_found_before_the_damage_is_reported() -> None:
    body = call(name("os", "system"), text("echo")) + b"0" + b"\xff"
    report = scan(whole(body))
    assert report.verdict == "dangerous"
    assert not report.complete
    assert report.unread[0].offset == len(whole(body)) - 2


def test_members_and_offsets_are_named() -> None:
    data = tar([("inner.zip", archive({"x/y.pkl": evil()}))])
    (finding,) = scan(data).findings
    assert finding.path == "<bytes>!inner.zip!x/y.pkl"
    assert evil()[finding.offset : finding.offset + 1] == b"R"
    assert finding.arguments == "('echo executed')"


def test_every_name_that_can_be_described_may_be_mentioned() -> None:
    for module, attribute in DATA_NAMES - {("builtins", "type")}:
        assert grade_global(Global(module, attribute, 0))[0] == Grade.DATA


def test_no_name_means_another_in_python_3() -> None:
    """Unpicklers translate names of Python 2; none of ours is translated to one with another grade."""
    for module, attribute in DATA_NAMES:
        new = _compat_pickle.NAME_MAPPING.get((module, attribute))
        if new is None:
            new = _compat_pickle.IMPORT_MAPPING.get(module, module), attribute
        assert new in DATA_NAMES, (module, attribute)


def test_limits_end_a_scan_as_incomplete() -> None:
    assert (
        scan(b"\x80\x02" + b"N0" * 100 + b"N.", limits=Limits(opcodes=50)).verdict == "incomplete"
    )
