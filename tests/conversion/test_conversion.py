"""What `convert` writes, names, leaves out, refuses and records."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import time
import tracemalloc
from fractions import Fraction
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from builders import evil, mapping, tensor, torch_zip

import safeweights
from new_threads import threads_since_now
from safeweights import conversion
from safeweights.checkpoint import Checkpoint, MemoryTensor
from safeweights.checkpoint.sharding import parse_size
from safeweights.conversion import Limits, Options, convert
from safeweights.conversion.plan import parse_renames
from safeweights.derived.casting import CastTensor, parse_casts
from safeweights.derived.element_types import FLOATS
from safeweights.errors import DTypeError, FormatError, SafetensorError, UnsupportedError
from safeweights.format.dtypes import BITS
from safeweights.frameworks.numpy import numpy_dtype
from safeweights.storage.hashing import sha256

STATE = {
    "embed.weight": torch.arange(12.0).reshape(3, 4),
    "head.weight": torch.arange(6, dtype=torch.float16),
    "ids": torch.arange(5),
}


@pytest.fixture
def source(tmp_path) -> Path:
    path = tmp_path / "model.pt"
    torch.save(STATE, path)
    return path


@pytest.fixture
def target(tmp_path) -> Path:
    return tmp_path / "model.safetensors"


def load(path: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(path)


def metadata(path: Path) -> dict[str, str]:
    with safetensors.safe_open(path, "pt") as file:
        return file.metadata()


def test_the_file_is_the_one_that_the_reference_writes(source, target, tmp_path) -> None:
    convert(source, target)
    safetensors.torch.save_file(STATE, tmp_path / "reference.safetensors", {"format": "pt"})
    assert target.read_bytes() == (tmp_path / "reference.safetensors").read_bytes()


def test_a_checkpoint_is_a_mapping_that_everything_else_takes(source) -> None:
    found = conversion.open(source)
    assert isinstance(found, Checkpoint)
    assert list(found.filter(only=["*.weight"])) == ["embed.weight", "head.weight"]
    with found:
        assert found["ids"].shape == (5,)
    with pytest.raises(SafetensorError):
        found["ids"]


def test_tied_weights_are_written_once_and_recorded(tmp_path, target) -> None:
    w = torch.arange(4.0)
    torch.save({"a": w, "b": w, "c": w.clone()}, tmp_path / "tied.pt")
    report = convert(tmp_path / "tied.pt", target)
    assert set(load(target)) == {"a", "c"}
    assert metadata(target) == {"format": "pt", "b": "a"}
    assert report.ties == {"b": "a"}
    convert(tmp_path / "tied.pt", target, skip=("a",), force=True)
    assert set(load(target)) == {"b", "c"}
    convert(tmp_path / "tied.pt", target, keep_ties=True, force=True)
    assert set(load(target)) == {"a", "b", "c"}


def test_only_skip_and_rename(source, target) -> None:
    report = convert(
        source, target, only=("*.weight",), skip=("head.*",), rename=(r"^embed\.=wte.",)
    )
    assert set(load(target)) == {"wte.weight"}
    assert report.renamed == {"embed.weight": "wte.weight"}
    assert set(report.skipped) == {"head.weight", "ids"}


def test_renames_that_collide_or_leave_nothing_are_refused(source, target) -> None:
    with pytest.raises(FormatError, match="would both be called `x`"):
        convert(source, target, rename=(r".*weight=x",))
    with pytest.raises(FormatError, match="nothing would be left of the name `ids`"):
        convert(source, target, rename=("ids=",))
    assert not target.exists()


def test_rename_rules() -> None:
    ((pattern, new),) = parse_renames([r"a\=b=c"])
    assert pattern.sub(new, "a=b") == "c"
    ((pattern, new),) = parse_renames([r"layer\.(\d+)=h.\1"])
    assert pattern.sub(new, "layer.7.w") == "h.7.w"
    for bad in ("(", "no separator", r"a=\1", r"a=\g<x>"):
        with pytest.raises(UnsupportedError):
            parse_renames([bad])


def test_sizes() -> None:
    assert [parse_size(text) for text in ("1", "1.5 kB", "5GB", "2GiB", 7)] == [
        1,
        1500,
        5 * 10**9,
        2 << 30,
        7,
    ]
    for bad in ("", "x", "0", "-1", "5 PB", "1e9"):
        with pytest.raises(UnsupportedError):
            parse_size(bad)


def test_element_types_are_converted_as_torch_does(tmp_path, target) -> None:
    values = torch.tensor([0.1, -65519.0, 1e-40, float("inf"), float("nan"), 3.0])
    torch.save({"f": values, "d": values.double(), "i": torch.arange(3)}, tmp_path / "f.pt")
    for code, dtype in (("BF16", torch.bfloat16), ("F16", torch.float16), ("F32", torch.float32)):
        convert(tmp_path / "f.pt", target, dtype=code, force=True)
        found = load(target)
        assert (
            torch.equal(found["f"].view(torch.uint8), values.to(dtype).view(torch.uint8))
            or code == "BF16"
        )
        torch.testing.assert_close(found["f"], values.to(dtype), equal_nan=True, rtol=0, atol=0)
        torch.testing.assert_close(
            found["d"], values.double().to(dtype), equal_nan=True, rtol=0, atol=0
        )
        assert found["i"].dtype == torch.int64
    convert(tmp_path / "f.pt", target, dtype="F64=F32", force=True)
    assert load(target)["d"].dtype == torch.float32


def test_a_large_tensor_is_converted_block_by_block(tmp_path, target) -> None:
    values = torch.arange(2_500_000, dtype=torch.float32)
    torch.save({"w": values}, tmp_path / "w.pt")
    convert(tmp_path / "w.pt", target, dtype="BF16")
    assert torch.equal(load(target)["w"], values.bfloat16())


EDGES = [
    0.0, -0.0, 0.5, 1.0, -1.5, 2.0, 7.0, 16.0, 17.0, 127.0, 128.0, -128.0, -129.0, 200.0, 240.0, 255.0,
    256.0, 257.0, 300.0, 448.0, 480.0, 2048.0, 2049.0, 57344.0, 61440.0, 65504.0, 65519.0, 65520.0,
    -70000.0, 2.0**24, 2.0**24 + 1, 2.0**31, -(2.0**31), 2.0**32, 2.0**40, 2.0**53, 2.0**62, 2.0**63,
    -(2.0**63), 2.0**64, 1e-40, 1e-320, 3.4e38, 3.4028235677973366e38, -1e39, 1e300, np.inf, -np.inf,
    np.nan,
]  # fmt: skip
WHOLE = [0, 1, 2, 3, 15, 17, 256, 257, 2049, 2**24 + 1, 2**53 + 1]
REAL = [code for code, bits in BITS.items() if bits >= 8 and code != "C64"]


def edges(code: str) -> np.ndarray:
    """Values of that type at which other types end."""
    kind = numpy_dtype(code)
    if kind.kind not in "iub":
        with np.errstate(all="ignore"):
            return np.array(EDGES).astype(kind)
    if code == "BOOL":
        return np.array([False, True])
    ends = range(8, 8 * kind.itemsize + 1)
    values = {n + d for n in (0, *(1 << end for end in ends)) for d in (-1, 0, 1)}.union(WHOLE)
    values |= {-value for value in values}
    low, high = np.iinfo(kind).min, np.iinfo(kind).max
    return np.array([value for value in sorted(values) if low <= value <= high], kind)


def exact(value: np.generic) -> Fraction | float:
    """What a value is, so that two types compare; infinities and NaN stay floats."""
    number = value.item() if value.dtype.kind in "iub" else float(value)
    return Fraction(number) if math.isfinite(number) else number


def is_kept(old: Fraction | float, new: Fraction | float, *, rounds: bool) -> bool:
    """Whether a cast to `new` says what `old` was."""
    if isinstance(old, Fraction) and rounds:
        return isinstance(new, Fraction)
    return old == new or (old != old and new != new)


@pytest.mark.parametrize(("source", "target"), [*permutations(REAL, 2)])
def test_no_value_is_lost_by_a_conversion(source, target) -> None:
    """Each alone, and the rest together; what is converted is what NumPy makes of it."""
    values = edges(source)
    with np.errstate(all="ignore"):
        short = "F8" in source and "F8" in target  # not each of these to each of them
        expected = values.astype("f4" if short else values.dtype).astype(numpy_dtype(target))
    kept = [
        is_kept(exact(old), exact(new), rounds=source in FLOATS and target in FLOATS)
        for old, new in zip(values, expected, strict=True)
    ]
    for value, wanted, good in zip(values, expected, kept, strict=True):
        one = MemoryTensor("w", source, (1,), np.array([value]).view("u1"))
        buffer = bytearray(b"x" * wanted.itemsize)
        if good:
            CastTensor(one, target).read_into(buffer)
            assert bytes(buffer) == wanted.tobytes()
        else:
            with pytest.raises(
                UnsupportedError, match=r"1 value would be lost, the first at \[0\]"
            ):
                CastTensor(one, target).read_into(buffer)
            assert set(buffer) == {ord("x")}
    good_ones = values[kept]
    together = MemoryTensor("w", source, (len(good_ones),), good_ones.view("u1"))
    assert bytes(CastTensor(together, target).view()) == expected[kept].tobytes()


def test_complex_values_are_not_lost_either() -> None:
    def cast(*values: complex) -> np.ndarray:
        data = np.array(values, "<c16").view("u1")
        return np.frombuffer(CastTensor(MemoryTensor("w", "C128", (2,), data), "C64").view(), "<c8")

    assert list(cast(1 + 2j, complex(np.inf, -1.5))) == [1 + 2j, complex(np.inf, -1.5)]
    with pytest.raises(UnsupportedError, match=r"1 value would be lost, the first at \[1\]"):
        cast(0, 1 + 1e39j)


def test_a_lost_value_is_named_and_nothing_is_replaced(tmp_path, target) -> None:
    values = np.zeros((1500, 1000), "f4")
    values[1200, 3], values[1300, 4] = 70000, -np.inf
    np.savez(tmp_path / "w.npz", **{"a.w": values})
    target.write_bytes(b"old")
    for dry_run in (False, True):
        with pytest.raises(UnsupportedError) as caught:
            convert(tmp_path / "w.npz", target, dtype="F16", force=True, dry_run=dry_run)
        assert caught.value.tensor == "a.w"
        assert caught.value.path == str(tmp_path / "w.npz")
        for words in (
            "from F32 to F16: at least 1 value would be lost, the first at [1200, 3]: 70000.0",
            "become inf. Choose a wider type for F32, or convert only other types, with FROM=TO",
        ):
            assert words in str(caught.value)
    assert target.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "w.npz"]


def test_casts_that_make_no_sense_are_refused() -> None:
    assert parse_casts("c128=c64") == {"C128": "C64"}
    assert parse_casts("F64=F32,F32=BF16") == {"F64": "F32", "F32": "BF16"}
    for bad in ("I8", "X9", "F32=F4", "C64=F32", "F32=C64", "=", "F99=F32", ""):
        with pytest.raises(UnsupportedError):
            parse_casts(bad)


def test_types_have_the_names_that_people_give_them() -> None:
    for name in ("float16", "fp16", "half", "F16", "torch.float16", "np.float16", " FP16 "):
        assert parse_casts(f"F32={name}") == {"F32": "F16"}
    names = {"double": "F64", "bf16": "BF16", "fp8_e4m3": "F8_E4M3", "float8_e5m2": "F8_E5M2"}
    for name, code in names.items():
        assert parse_casts(name) == dict.fromkeys(parse_casts(code), code)
    for wrong, hint in (
        ("fp8", "F8_E5M2 or F8_E4M3"),
        ("bloat16", "did you mean BF16?"),
        ("?", "there are"),
    ):
        with pytest.raises(DTypeError, match=re.escape(hint)):
            parse_casts(wrong)


def test_shards_and_their_index(source, target) -> None:
    report = convert(source, target, max_shard_size=60)
    *names, listed = [Path(output.path).name for output in report.outputs]
    assert names == [f"model-{i:05d}-of-00002.safetensors" for i in (1, 2)]
    assert listed == "model.safetensors.index.json"
    content = (target.parent / listed).read_bytes()
    assert report.outputs[-1].size == len(content)
    assert report.outputs[-1].sha256 == hashlib.sha256(content).hexdigest()
    index = json.loads(content)
    assert index["metadata"] == {"total_size": 48 + 12 + 40}
    merged = safeweights.checkpoint.open(target.parent / "model.safetensors.index.json")
    assert set(merged) == set(STATE)
    assert index["weight_map"]["ids"] == names[1]
    for key, value in STATE.items():
        assert bytes(merged[key].view()) == value.numpy().tobytes()


def make_folder(folder: Path) -> None:
    folder.mkdir()
    torch.save(
        {"a": torch.ones(2), "b": torch.zeros(3)}, folder / "pytorch_model-00001-of-00002.bin"
    )
    torch.save({"c": torch.arange(4)}, folder / "pytorch_model-00002-of-00002.bin")
    weight_map = {"a": 1, "b": 1, "c": 2}
    weight_map = {key: f"pytorch_model-{n:05d}-of-00002.bin" for key, n in weight_map.items()}
    (folder / "pytorch_model.bin.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )
    (folder / "config.json").write_text("{}")
    (folder / "training_args.bin").write_bytes(evil())


def test_a_sharded_folder_becomes_a_sharded_folder(tmp_path) -> None:
    make_folder(tmp_path / "old")
    report = convert(tmp_path / "old", tmp_path / "new")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "conversion.provenance.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    found = safeweights.checkpoint.open(tmp_path / "new")
    assert set(found) == {"a", "b", "c"}
    assert report.tensors == 3
    again = convert(tmp_path / "old" / "pytorch_model.bin.index.json", tmp_path / "new", force=True)
    assert again.outputs == report.outputs


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"d": "pytorch_model-00001-of-00002.bin"}, "does not have it"),
        ({"a": "pytorch_model-00002-of-00002.bin"}, "does not have it"),
        ({"a": None}, "does not place there"),
        ({"a": "../../etc/passwd"}, "not the name of a file"),
        ({"a": "/etc/passwd"}, "not the name of a file"),
    ],
)
def test_an_index_that_disagrees_is_refused(tmp_path, change, words) -> None:
    make_folder(tmp_path / "old")
    path = tmp_path / "old" / "pytorch_model.bin.index.json"
    document = json.loads(path.read_text())
    document["weight_map"].update(change)
    document["weight_map"] = {k: v for k, v in document["weight_map"].items() if v is not None}
    path.write_text(json.dumps(document))
    with pytest.raises(FormatError, match=words):
        convert(tmp_path / "old", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_shards_in_folders_below_their_index(tmp_path) -> None:
    old = tmp_path / "old"
    make_folder(old)
    (old / "sub").mkdir()
    os.rename(old / "pytorch_model-00001-of-00002.bin", old / "sub" / "first.bin")
    path = old / "pytorch_model.bin.index.json"
    path.write_text(path.read_text().replace("pytorch_model-00001-of-00002.bin", "sub/first.bin"))
    convert(path, tmp_path / "new")
    assert sorted(safeweights.open(tmp_path / "new")) == ["a", "b", "c"]
    path.write_text(path.read_text().replace('"b": "sub/first.bin"', '"d": "sub/first.bin"'))
    with pytest.raises(FormatError, match=r"tensor `d` in `sub/first.bin`, which does not have it"):
        convert(path, tmp_path / "other")


def test_a_folder_whose_index_leaves_out_the_file_of_its_name(tmp_path) -> None:
    old = tmp_path / "old"
    make_folder(old)
    torch.save({"a": torch.ones(1)}, old / "pytorch_model.bin")
    with pytest.raises(FormatError, match="two versions of one model") as caught:
        convert(old, tmp_path / "new")
    assert caught.value.rule == "index-twin"


def test_a_folder_without_an_index_and_without_a_shard(tmp_path) -> None:
    old = tmp_path / "old"
    make_folder(old)
    (old / "pytorch_model.bin.index.json").unlink()
    (old / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(FormatError, match="1 of 2 shards are missing") as caught:
        convert(old, tmp_path / "new")
    assert caught.value.rule == "missing-shard"


def test_a_folder_without_an_index(tmp_path) -> None:
    (tmp_path / "old").mkdir()
    torch.save({"a": torch.ones(2)}, tmp_path / "old" / "vae.pt")
    np.savez(tmp_path / "old" / "text.npz", b=np.ones(2, "f4"))
    convert(tmp_path / "old", tmp_path / "new", record=False)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "text.safetensors",
        "vae.safetensors",
    ]
    convert(tmp_path / "new", tmp_path / "again", record=False)
    assert len(list((tmp_path / "again").iterdir())) == 2
    (tmp_path / "empty").mkdir()
    with pytest.raises(FormatError, match="no checkpoint"):
        convert(tmp_path / "empty", tmp_path / "x")


def test_several_files_that_would_become_one_are_refused(tmp_path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "m.pt")
    torch.save({"a": torch.ones(2)}, tmp_path / "m.bin")
    with pytest.raises(FormatError, match="would both become"):
        convert([tmp_path / "m.pt", tmp_path / "m.bin"], tmp_path / "new")


def test_a_folder_of_one_checkpoint_becomes_a_folder_too(tmp_path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    torch.save({"a": torch.ones(2)}, tmp_path / "old" / "pytorch_model.bin")
    for sources in (tmp_path / "old", [tmp_path / "old"]):
        convert(sources, tmp_path / "new", force=True)
        assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
            "conversion.provenance.json",
            "model.safetensors",
        ]


@pytest.mark.parametrize(("exists", "slash"), [(True, ""), (True, "/"), (False, "/")])
def test_one_file_goes_into_a_folder_as_cp_does_it(source, tmp_path, exists, slash) -> None:
    folder = tmp_path / "new"
    if exists:
        folder.mkdir()
    report = convert(source, f"{folder}{slash}")
    assert report.outputs[0].path == str(folder / "model.safetensors")
    assert sorted(path.name for path in folder.iterdir()) == [
        "model.safetensors",
        "model.safetensors.provenance.json",
    ]
    with pytest.raises(FileExistsError):
        convert(source, f"{folder}{slash}")
    for dry_run in (True, False):
        convert(source, f"{folder}{slash}", max_shard_size=60, dry_run=dry_run, force=True)
    assert safeweights.checkpoint.open(folder).keys() == STATE.keys()
    assert not (folder / "model.safetensors").exists()


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_file_where_a_folder_is_needed_is_refused(source, tmp_path, slash) -> None:
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "other.pt").write_bytes(Path(source).read_bytes())
    sources = source if slash else [source, tmp_path / "other.pt"]
    with pytest.raises(NotADirectoryError, match="where a folder is needed"):
        convert(sources, f"{tmp_path / 'file'}{slash}", force=True)
    assert (tmp_path / "file").read_bytes() == b"old"


def test_a_folder_where_a_file_is_to_be_written_is_refused(source, tmp_path) -> None:
    (tmp_path / "new" / "model.safetensors").mkdir(parents=True)
    with pytest.raises(IsADirectoryError, match="which nothing replaces"):
        convert(source, tmp_path / "new", force=True)


def test_a_source_given_twice_is_refused(source, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnsupportedError, match=r"`./model.pt` is given twice"):
        convert([source, "./model.pt"], tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_record_of_a_conversion_in_place_is_of_what_was_read(tmp_path, monkeypatch) -> None:
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    before = []
    for path in paths:
        safetensors.torch.save_file({"w": torch.ones(100)}, path)
        before.append((path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()))
    # Digests of sources are made beside the rest, so perhaps when outputs are there already.
    monkeypatch.setattr(
        "safeweights.conversion.converting.sha256",
        lambda *given, **more: (time.sleep(0.1), sha256(*given, **more))[1],
    )
    report = convert(paths, tmp_path, dtype="F16", force=True)
    assert [(each.size, each.sha256) for each in report.sources] == before
    assert [each.sha256 for each in report.outputs] == [
        hashlib.sha256(path.read_bytes()).hexdigest() for path in paths
    ]


def test_what_exists_is_replaced_only_with_force(source, target) -> None:
    target.write_bytes(b"old")
    with pytest.raises(FileExistsError):
        convert(source, target)
    assert target.read_bytes() == b"old"
    convert(source, target, force=True)
    assert set(load(target)) == set(STATE)


def test_a_dry_run_writes_nothing_and_reports_all(source, target) -> None:
    report = convert(source, target, dry_run=True)
    assert sorted(path.name for path in target.parent.iterdir()) == ["model.pt"]
    assert (report.tensors, report.nbytes, report.dry_run) == (3, 100, True)
    assert report.outputs[0].path == str(target)


@pytest.mark.parametrize("digests", [False, True])
def test_progress_ends_at_the_total(source, target, digests) -> None:
    seen: list[tuple[int, int]] = []
    convert(
        source,
        target,
        progress=lambda done, total: seen.append((done, total)),
        max_shard_size=60,
        digests=digests,
    )
    assert seen[-1] == (100, 100)
    assert seen == sorted(seen)


def test_what_is_written_is_not_read_back_for_its_digest(source, target, monkeypatch) -> None:
    def refuse(*_):
        raise AssertionError

    monkeypatch.setattr("safeweights.storage.Commit.open", refuse)
    report = convert(source, target, max_shard_size=60)
    shards = [each for each in report.outputs if each.path.endswith(".safetensors")]
    assert len(shards) == 2
    for each in shards:
        assert each.sha256 == hashlib.sha256(Path(each.path).read_bytes()).hexdigest()


def test_a_conversion_that_fails_does_not_wait_for_digests(source, target, monkeypatch) -> None:
    finished = []

    def endless(_, progress):
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            progress(0)
            time.sleep(0.01)
        finished.append(True)

    monkeypatch.setattr("safeweights.conversion.converting.sha256", endless)
    started = threads_since_now()
    target.write_bytes(b"old")
    with pytest.raises(FileExistsError):
        convert(source, target)
    assert not started()
    assert not finished


def test_the_provenance_record(tmp_path, target) -> None:
    torch.save({"w": torch.ones(2), "lr": 0.1, "args": {"x": "y"}}, tmp_path / "m.pt")
    convert(tmp_path / "m.pt", target, dtype="F16")
    path = tmp_path / "model.safetensors.provenance.json"
    record = json.loads(path.read_text())
    assert record["tool"]["name"] == "safeweights"
    assert record["tool"]["version"]
    assert (
        record["sources"][0]["sha256"]
        == hashlib.sha256((tmp_path / "m.pt").read_bytes()).hexdigest()
    )
    assert record["outputs"][0]["sha256"] == hashlib.sha256(target.read_bytes()).hexdigest()
    assert record["sources"][0]["path"] == "m.pt"
    assert {entry["name"]: entry["what"] for entry in record["dropped"]} == {
        "lr": "0.1",
        "args.x": "'y'",
    }
    assert record["options"] == {"dtype": "F16"}
    assert record["calls"] == {"torch._utils._rebuild_tensor_v2": 1, "collections.OrderedDict": 1}
    first = path.read_bytes()
    convert(tmp_path / "m.pt", target, dtype="F16", force=True)
    assert path.read_bytes() == first


def test_what_is_no_tensor_goes_to_the_metadata_on_request(tmp_path, target) -> None:
    value = {
        "w": torch.ones(2), "lr": 0.1, "nan": float("nan"), "raw": b"\x00\xff", "text": "ü" * 5000,
        "vocabulary": {str(i): i for i in range(2000)}, "none": None, "big": 1 << 70,
    }  # fmt: skip
    torch.save(value, tmp_path / "m.pt")
    convert(tmp_path / "m.pt", target, keep_others=True, metadata={"note": "mine"})
    found = metadata(target)
    others = json.loads(found["safeweights.others"])
    assert found["note"] == "mine"
    assert others["vocabulary"]["1999"] == 1999
    assert others == {
        "lr": 0.1, "nan": "nan", "raw": {"base64": "AP8="}, "text": "ü" * 5000, "none": None,
        "big": 1 << 70, "vocabulary": value["vocabulary"],
    }  # fmt: skip


def test_refused_tensors_are_named_with_what_would_help(tmp_path, target) -> None:
    torch.save({"s": torch.eye(2).to_sparse(), "w": torch.ones(1)}, tmp_path / "m.pt")
    with pytest.raises(UnsupportedError, match=r"--densify.*skip"):
        convert(tmp_path / "m.pt", target)
    convert(tmp_path / "m.pt", target, skip=("s",))
    assert set(load(target)) == {"w"}
    convert(tmp_path / "m.pt", target, densify=True, force=True)
    assert torch.equal(load(target)["s"], torch.eye(2))


def test_a_file_without_tensors_is_refused(tmp_path, target) -> None:
    torch.save({"a": 1}, tmp_path / "m.pt")
    with pytest.raises(FormatError, match="no tensor"):
        convert(tmp_path / "m.pt", target)


def test_options_as_one_object_and_limits(source, target) -> None:
    with pytest.raises(FormatError, match="tensors=1"):
        convert(source, target, options=Options(limits=Limits(tensors=1)))
    with pytest.raises(TypeError):
        convert(source, target, no_such_option=1)


def test_a_safetensors_file_can_be_converted_too(source, target, tmp_path) -> None:
    convert(source, target)
    convert(target, tmp_path / "half.safetensors", dtype="F16", skip=("ids",))
    found = load(tmp_path / "half.safetensors")
    assert {key: value.dtype for key, value in found.items()} == dict.fromkeys(
        ["embed.weight", "head.weight"], torch.float16
    )


def test_names_that_utf8_cannot_hold_are_our_error(tmp_path, target) -> None:
    torch.save({"a\ud800": torch.ones(1)}, tmp_path / "m.pt")
    with pytest.raises(SafetensorError):
        convert(tmp_path / "m.pt", target)
    torch.save({"a": torch.ones(1), "note": "\ud800"}, tmp_path / "m.pt")
    convert(tmp_path / "m.pt", target, keep_others=True)
    assert json.loads(metadata(target)["safeweights.others"]) == {"note": "\ud800"}


def test_a_failure_while_writing_leaves_the_old_file(tmp_path, target) -> None:
    data = bytearray(torch_zip(mapping(w=tensor())))
    (tmp_path / "m.bin").write_bytes(data)
    convert(tmp_path / "m.bin", target)
    before = target.read_bytes()
    found = conversion.open(tmp_path / "m.bin")
    (tmp_path / "m.bin").write_bytes(data[:100])  # the file shrinks under the reader
    with pytest.raises(SafetensorError):
        safeweights.checkpoint.save(found, target)
    assert target.read_bytes() == before


def test_memory_stays_small_whatever_the_size(tmp_path, target) -> None:
    state = {f"layer.{i}": torch.ones(2 << 20) for i in range(32)}  # 256 MiB
    torch.save(state, tmp_path / "m.pt")
    del state
    tracemalloc.start()
    try:
        convert(tmp_path / "m.pt", target, digests=False)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # A batch of the sink's and a chunk of the reader's, a quarter of a checkpoint that could be any size.
    assert peak < 64 << 20


def test_reading_holds_one_chunk(tmp_path) -> None:
    torch.save({f"layer.{i}": torch.ones(2 << 20) for i in range(16)}, tmp_path / "m.pt")
    found = conversion.open(tmp_path / "m.pt")
    tracemalloc.start()
    try:
        for tensor_ in found.values():
            for _ in tensor_.chunks():
                pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 40 << 20
