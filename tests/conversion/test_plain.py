"""What is not a tensor, in plain values; keys that are objects; tensors with attributes."""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import fractions
import json
import pathlib
import pickle
import random
import sys
import types
import uuid
import zoneinfo
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from builders import call, mapping, name, tensor, text, torch_zip

import safeweights
from safeweights.conversion import convert
from safeweights.conversion.pickles.nodes import Call, Global
from safeweights.conversion.pickles.plain import plain
from safeweights.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Iterator

PROTOCOLS = [0, 1, 2, 3, 4, 5]


class Color(enum.Enum):
    RED = 1
    NAMED = "bf16"


class Mode(enum.Flag):
    A = 1
    B = 2


class Callback:
    pass


@pytest.fixture(autouse=True)
def app(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A program's module, which is gone when files are read."""
    module = types.ModuleType("app")
    for kind in (Color, Mode, Callback):
        setattr(module, kind.__name__, kind)
        monkeypatch.setattr(kind, "__module__", "app")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "app", module)
        yield


def others(data: Any, path: Path, protocol: int = 2) -> dict[str, Any]:
    """What `convert --keep-others` keeps of `data`."""
    torch.save({"w": torch.ones(1), **data}, path / "x.pt", pickle_protocol=protocol)
    convert(path / "x.pt", path / "x.safetensors", keep_others=True, force=True)
    metadata = safeweights.open(path / "x.safetensors").metadata
    assert metadata is not None
    kept: dict[str, Any] = json.loads(metadata["safeweights.others"])
    return kept


VALUES = {
    "path": (pathlib.PurePosixPath("/data/x.pt"), "/data/x.pt"),
    "relative": (pathlib.PurePosixPath("a/b"), "a/b"),
    "here": (pathlib.PurePosixPath(), "."),
    "windows": (pathlib.PureWindowsPath("C:\\a\\b"), "C:\\a\\b"),
    "enum": (Color.RED, 1),
    "named": (Color.NAMED, "bf16"),
    "naive": (dt.datetime(2024, 1, 2, 3, 4, 5, 6), "2024-01-02T03:04:05.000006"),  # noqa: DTZ001
    "utc": (dt.datetime(2024, 1, 2, tzinfo=dt.timezone.utc), "2024-01-02T00:00:00+00:00"),
    "west": (
        dt.datetime(2024, 1, 2, tzinfo=dt.timezone(dt.timedelta(hours=-5))),
        "2024-01-02T00:00:00-05:00",
    ),
    "folded": (dt.datetime(2024, 1, 2, fold=1), "2024-01-02T00:00:00"),  # noqa: DTZ001
    "date": (dt.date(2020, 2, 3), "2020-02-03"),
    "time": (dt.time(1, 2), "01:02:00"),
    "span": (dt.timedelta(1, 2), "1 day, 0:00:02"),
    "decimal": (decimal.Decimal("1.50"), "1.50"),
    "fraction": (fractions.Fraction(1, 3), "1/3"),
    "uuid": (uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005"),
    "dtype": (torch.float16, "torch.float16"),
    "class": (Callback, "app.Callback"),
}


@pytest.mark.parametrize("protocol", PROTOCOLS[2:])
def test_objects_are_kept_as_what_they_stand_for(tmp_path: Path, protocol: int) -> None:
    kept = others({key: value for key, (value, _) in VALUES.items()}, tmp_path, protocol)
    assert kept == {key: expected for key, (_, expected) in VALUES.items()}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_objects_in_any_protocol(protocol: int) -> None:
    data = pickle.dumps({key: value for key, (value, _) in VALUES.items()}, protocol)
    found = {other.name: plain(other.value) for other in safeweights.open(data).others}
    for key, (_, expected) in VALUES.items():
        assert (
            found[key].path == expected
            if isinstance(found[key], Global)
            else found[key] == expected
        )


def test_flags_and_zones(tmp_path: Path) -> None:
    berlin = dt.datetime(2024, 1, 2, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin"))
    kept = others({"flag": Mode.A, "zone": berlin}, tmp_path)
    assert kept["flag"] in {1, "A"}  # depends on the version of Python that writes it
    assert kept["zone"] == "2024-01-02T00:00:00[Europe/Berlin]"


def test_configurations_of_omegaconf() -> None:
    """The file was written by omegaconf 2.3 from these values."""
    found = safeweights.open(Path(__file__).parent / "omegaconf-2.pkl").others
    assert {other.name: plain(other.value) for other in found} == {
        "cfg.a": 1, "cfg.b.c.0": 1, "cfg.b.c.1": 2, "cfg.b.c.2.d": "${a}", "cfg.n": None, "cfg.m": "???",
        "cfg.e": 1, "cfg.p": "x/y", "cfg.f": 1.5, "cfg.by": b"ab", "l.0": 1, "l.1.0": 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        ("pathlib.PosixPath", (1,)),
        ("pathlib.Path.home", ("x",)),
        ("datetime.date", (b"\0\0\0\0",)),
        ("datetime.date", (b"\7\xe8\1",)),
        ("datetime.date", (2024, 1, 2)),
        ("datetime.datetime", ()),
        ("datetime.datetime", (b"\7\xe8\1\2\3\4\5\0\0",)),
        ("datetime.time", (b"\xff\0\0\0\0\0",)),
        ("datetime.timedelta", (1 << 80,)),
        ("datetime.timedelta", ("1",)),
        ("fractions.Fraction", (1, 2, 3)),
        ("decimal.Decimal", (1.5,)),
        ("os.system", ("id",)),
        ("app.Color", (1, 2)),
        ("app.make", (1,)),
    ],
)
def test_what_is_not_certain_stays_a_call(function: str, arguments: tuple[Any, ...]) -> None:
    module, _, attribute = function.partition(".")
    made = Call(Global(module, attribute, 0), arguments, "REDUCE", 0)
    assert plain(made) is made


def test_the_state_of_random_generators_is_one_value(tmp_path: Path) -> None:
    state = {"python": random.Random(1).getstate(), "losses": [0.5] * 100, "few": [1, 2]}
    assert others(state, tmp_path) == {
        "python": [3, list(state["python"][1]), None], "losses": [0.5] * 100, "few.0": 1, "few.1": 2,
    }  # fmt: skip
    done = convert(tmp_path / "x.pt", tmp_path / "y.safetensors")
    assert [each.name for each in done.dropped] == ["python", "losses", "few.0", "few.1"]
    assert done.dropped[0].what == "(3, tuple of 625, None)"
    assert (tmp_path / "y.safetensors.provenance.json").stat().st_size < 4000


def test_many_values_alike_are_one_record(tmp_path: Path) -> None:
    state: Any = OrderedDict({f"l{i}.w": torch.ones(1) for i in range(3)})
    state._metadata = OrderedDict({f"l{i}": {"version": 1} for i in range(294)})
    torch.save({"model": state, "epoch": 1}, tmp_path / "x.pt")
    done = convert(tmp_path / "x.pt", tmp_path / "x.safetensors")
    assert [(each.name, each.what, each.count) for each in done.dropped] == [
        ("model.*.version", "294 values, the first is 1", 294), ("epoch", "1", 1),
    ]  # fmt: skip
    assert done.dropped_count == 295


def test_keys_that_are_objects_name_their_tensors(tmp_path: Path) -> None:
    keys = {
        Callback: "app.Callback",
        Color.RED: "app.Color(1)",
        pathlib.PurePosixPath("a/b"): "a/b",
        torch.float16: "torch.float16",
        dt.date(2020, 1, 2): "2020-01-02",
        (Callback, 1): "app.Callback,1",
        frozenset({7}): "7",
        1 + 2j: "(1+2j)",
    }
    torch.save({"k": {key: torch.full((2,), i) for i, key in enumerate(keys)}}, tmp_path / "x.pt")
    opened = safeweights.open(tmp_path / "x.pt")
    assert list(opened) == [f"k.{expected}" for expected in keys.values()]
    assert [tensor.numpy().tolist() for tensor in opened.values()] == [
        [i, i] for i in range(len(keys))
    ]


def test_keys_that_nothing_describes_are_named_by_their_place() -> None:
    made = call(name("app", "make"), tensor())
    opened = safeweights.open(torch_zip(b"}" + made + tensor() + b"s"))
    (found,) = opened
    assert found.startswith("app.make@")


def test_two_keys_of_one_name_are_an_error() -> None:
    path = call(name("pathlib", "PosixPath"), text("a"))
    with pytest.raises(FormatError, match="two tensors would both be called `a`"):
        safeweights.open(torch_zip(b"}" + path + tensor() + b"s" + text("a") + tensor() + b"s"))
    # Of two equal keys, the second replaces the first, as in Python.
    opened = safeweights.open(torch_zip(b"}" + path + tensor() + b"s" + path + tensor((2,)) + b"s"))
    assert opened["a"].shape == (2,)


def test_attributes_of_a_tensor_are_carried_beside_it(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(2, 2))
    weight.absmax, weight.blocksize = torch.arange(3.0), 64  # type: ignore[attr-defined]
    plain_tensor = torch.zeros(1)
    plain_tensor.scale = torch.ones(1)  # type: ignore[attr-defined]
    torch.save({"w": weight, "t": plain_tensor, "tied": weight}, tmp_path / "x.pt")
    opened = safeweights.open(tmp_path / "x.pt")
    assert list(opened) == ["w", "w.absmax", "t", "t.scale", "tied", "tied.absmax"]
    assert opened["w.absmax"].numpy().tolist() == [0, 1, 2]
    done = convert(tmp_path / "x.pt", tmp_path / "x.safetensors")
    assert [(each.name, each.what) for each in done.dropped] == [
        ("w.blocksize", "64"), ("tied.blocksize", "64"),
    ]  # fmt: skip
    assert done.ties == {"tied": "w", "tied.absmax": "w.absmax"}


def test_attributes_that_lead_back_to_their_tensor_end() -> None:
    memo, recall = b"q\1", b"h\1"
    made = call(
        name("torch._utils", "_rebuild_parameter_with_state"), tensor(), b"\x89",
        name("collections", "OrderedDict") + b")R", mapping(absmax=tensor()) + memo,
    )  # fmt: skip
    body = made + b"q\2" + recall + text("self") + b"h\2" + b"s0"
    opened = safeweights.open(torch_zip(body))
    assert list(opened) == ["tensor", "absmax"]
    assert "refers back" in next(o.reason for o in opened.others if o.name == "self")


def test_tensors_of_an_npu_are_views_of_their_storage() -> None:
    arguments = [b"\x89", name("collections", "OrderedDict") + b")R", b"K\2"]
    storage = tensor().split(b"Q")[0].split(b"_rebuild_tensor_v2\n(")[1] + b"Q"
    shape = b"K\0" + b"(K\2K\2t" + b"(K\2K\1t"
    body = name("torch_npu.utils.storage", "_rebuild_npu_tensor") + b"(" + storage + shape
    opened = safeweights.open(
        torch_zip(body + b"".join(arguments) + b"tR", {"0": bytes(range(16))})
    )
    assert bytes(opened["tensor"].view()) == bytes(range(16))


@pytest.mark.parametrize("kind", ["DTensor", "ShardedTensor", "Other"])
def test_refusals_name_the_class_of_the_tensor(kind: str) -> None:
    arguments = (name("app", "make"), name("app.parts", kind), b"(" + tensor() + b"t", b"}")
    opened = safeweights.open(
        torch_zip(call(name("torch._tensor", "_rebuild_from_type_v2"), *arguments))
    )
    (reason,) = opened.refused.values()
    assert f"it is a `app.parts.{kind}`" in reason
    assert ("one process's part of a tensor" in reason) == (kind != "Other")
    made = name("app.parts", kind) + b")\x81" + mapping(local=tensor()) + b"b"
    opened = safeweights.open(torch_zip(made))
    assert bool(opened.refused) == (kind != "Other")
