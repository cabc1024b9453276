"""Folders and indexes: what belongs together is opened together, what disagrees says how."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from safeweights.checkpoint import open, shardindex
from safeweights.checkpoint.shardindex import index_text, is_safe_shard, read_index, shard_name
from safeweights.errors import FormatError
from safeweights.storage import LocalStore, open_source, place_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from safeweights.storage import Source

INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.mark.parametrize("backend", ["mmap", "pread"])
@pytest.mark.parametrize("target", ["", INDEX])
def test_shards_by_their_index(sharded: Path, target: str, backend: str) -> None:
    opened = open(sharded / target, backend=backend)
    assert {name: bytes(tensor.view()) for name, tensor in opened.items()} == {
        "a": b"aaa", "b": b"bb", "c": b"cccc",
    }  # fmt: skip
    assert opened.name == str(sharded / target)
    assert [os.path.basename(file.name) for file in opened.files] == [FIRST, SECOND]
    assert opened.metadata == {"format": "pt"}  # what the shards agree on
    assert opened.info("c").begin == 0


def test_shards_without_an_index(sharded: Path) -> None:
    (sharded / INDEX).unlink()
    assert sorted(open(sharded)) == ["a", "b", "c"]


def test_one_file_in_a_folder(tmp_path: Path, file_of: Callable[..., bytes]) -> None:
    (tmp_path / "model.safetensors").write_bytes(file_of(None, a=b"x"))
    (tmp_path / "config.json").write_text("{}")
    assert open(tmp_path).metadata is None
    assert open(str(tmp_path))["a"].view() == b"x"


def test_hidden_files_are_not_shards(sharded: Path) -> None:
    (sharded / INDEX).unlink()
    (sharded / "._model.safetensors").write_bytes(b"Mac OS X")
    (sharded / ".safeweights-0.tmp").mkdir()
    assert len(open(sharded)) == 3


def test_what_an_index_does_not_name_is_left_alone(sharded: Path) -> None:
    (sharded / "consolidated.safetensors").write_bytes(b"not even one")
    assert len(open(sharded)) == 3


def test_a_file_and_an_index_of_the_same_name(
    sharded: Path, file_of: Callable[..., bytes], write_index: Callable[..., Path]
) -> None:
    """Shards that a later save of one file left behind, or the other way round: which is current?"""
    whole = sharded / "model.safetensors"
    whole.write_bytes(file_of(None, a=b"new"))
    with pytest.raises(FormatError, match=f"`model.safetensors` and also `{INDEX}`") as caught:
        open(sharded)
    assert (caught.value.rule, caught.value.path) == ("index-twin", str(sharded))
    assert open(whole)["a"].view() == b"new"
    assert open(sharded / INDEX)["a"].view() == b"aaa"
    for shard in (sharded / FIRST, sharded / SECOND):
        shard.unlink()
    write_index(sharded, {"a": "model.safetensors"})
    assert open(sharded)["a"].view() == b"new"


def test_an_index_in_other_folders(
    tmp_path: Path, file_of: Callable[..., bytes], write_index: Callable[..., Path]
) -> None:
    (tmp_path / "sub" / "deep").mkdir(parents=True)
    (tmp_path / "sub" / "deep" / "w.safetensors").write_bytes(file_of(None, a=b"x"))
    write_index(tmp_path, {"a": "sub/deep/w.safetensors"}, "any.json")
    assert open(tmp_path / "any.json")["a"].view() == b"x"


def test_an_empty_index(tmp_path: Path, write_index: Callable[..., Path]) -> None:
    assert dict(open(write_index(tmp_path, {}))) == {}


def test_folders_without_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FormatError, match=r"no \.safetensors file and no index") as caught:
        open(tmp_path)
    assert caught.value.path == str(tmp_path)
    with pytest.raises(FileNotFoundError):
        open(tmp_path / "missing")


def test_several_indexes(sharded: Path, write_index: Callable[..., Path]) -> None:
    write_index(sharded, {}, "other.safetensors.index.json")
    with pytest.raises(FormatError, match=f"`{INDEX}`, `other.safetensors.index.json`"):
        open(sharded)
    assert len(open(sharded / INDEX)) == 3


# ---- what is missing or there twice


def test_missing_shards(sharded: Path) -> None:
    (sharded / FIRST).unlink()
    with pytest.raises(FormatError, match=f"1 of 2 shards that the index names.*`{FIRST}`"):
        open(sharded)
    (sharded / INDEX).unlink()
    with pytest.raises(FormatError, match=f"1 of 2 shards are missing, the first is `{FIRST}`"):
        open(sharded)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["m-00002-of-00003", "m-00003-of-00003"], "1 of 3 .*`m-00001-of-00003.safetensors`"),
        (["m-00001-of-00002", "n-00002-of-00002"], "1 of 2 .*`m-00002-of-00002.safetensors`"),
        (["m.safetensors-00001-of-00002"], "1 of 2 .*`m.safetensors-00002-of-00002.safetensors`"),
        (["m-00001-of-99999"], "99998 of 99999 .*`m-00002-of-99999.safetensors`"),
        (["m-00001-of-999999999"], "999999998 of 999999999"),
        (["m-00000-of-00003", "m-00002-of-00003"], "1 of 3 .*`m-00001-of-00003.safetensors`"),
        (["m-00001-of-00002", "m-00003-of-00002"], "1 of 2 .*`m-00002-of-00002.safetensors`"),
        (["m-00001-of-00002.fp16", "m-00002-of-00002"], "`m-00002-of-00002.fp16.safetensors`"),
    ],
)
def test_missing_by_name(
    tmp_path: Path, file_of: Callable[..., bytes], names: list[str], message: str
) -> None:
    for number, name in enumerate(names):
        (tmp_path / f"{name}.safetensors").write_bytes(file_of(None, **{f"t{number}": b"x"}))
    with pytest.raises(FormatError, match=message):
        open(tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        ["m-00000-of-00002", "m-00001-of-00002"],  # some count from 0
        ["m-00001-of-00001", "n-00001-of-00001", "other"],
        ["m-1-of-3", "m-٠٠٠٠١-of-٠٠٠٠٣"],  # neither is the convention
        ["m-00001-of-00000"],
    ],
)
def test_complete_by_name(tmp_path: Path, file_of: Callable[..., bytes], names: list[str]) -> None:
    for number, name in enumerate(names):
        (tmp_path / f"{name}.safetensors").write_bytes(file_of(None, **{f"t{number}": b"x"}))
    assert len(open(tmp_path)) == len(names)


def test_tensors_that_are_there_twice(tmp_path: Path, file_of: Callable[..., bytes]) -> None:
    (tmp_path / "one.safetensors").write_bytes(file_of(None, a=b"1", b=b"1"))
    (tmp_path / "two.safetensors").write_bytes(file_of(None, b=b"2", c=b"2"))
    with pytest.raises(FormatError, match=r"`b` is in two files.*one\.safe.*two\.safe") as caught:
        open(tmp_path)
    assert (caught.value.tensor, caught.value.rule) == ("b", "duplicate-key")


def test_a_damaged_shard_is_named(sharded: Path) -> None:
    (sharded / SECOND).write_bytes(b"x")
    with pytest.raises(FormatError) as caught:
        open(sharded)
    assert caught.value.path == str(sharded / SECOND)


# ---- disagreement


@pytest.mark.parametrize(
    ("weight_map", "message", "tensor"),
    [
        ({"a": 0, "b": 0, "c": 1, "d": 1}, rf"`d` in `{SECOND}`, which does not have it", "d"),
        ({"a": 0, "b": 1, "c": 1}, rf"`b` in `{SECOND}`, which does not have it", "b"),
        ({"a": 0, "c": 1}, rf"`{FIRST}` has tensor `b`, which the index does not place there", "b"),
    ],
)
def test_an_index_that_disagrees_with_its_shards(
    sharded: Path,
    write_index: Callable[..., Path],
    weight_map: dict[str, int],
    message: str,
    tensor: str,
) -> None:
    write_index(sharded, {name: (FIRST, SECOND)[shard] for name, shard in weight_map.items()})
    with pytest.raises(FormatError, match=message) as caught:
        open(sharded)
    assert caught.value.tensor == tensor
    assert caught.value.path == str(sharded / INDEX)
    assert caught.value.rule in {"index-tensor-missing", "index-tensor-unlisted"}


def test_a_tensor_in_two_shards_of_an_index(sharded: Path, file_of: Callable[..., bytes]) -> None:
    (sharded / SECOND).write_bytes(file_of(None, a=b"a", c=b"cccc"))
    with pytest.raises(FormatError, match=f"`{SECOND}` has tensor `a`"):
        open(sharded)


# ---- hostile indexes

UNSAFE = [
    "../x.safetensors", "a/../../x.safetensors", "/etc/x.safetensors", "./x.safetensors", "",
    "C:\\x.safetensors", "C:x.safetensors", "\\\\server\\x.safetensors", "a\\..\\x.safetensors",
    "x.bin", "x.safetensors.index.json", "x.SAFETENSORS", "x.safetensors/", "a//x.safetensors",
    "x\0.safetensors", "x\n.safetensors", "\u202ex.safetensors", "x.safetensors:stream",
    "file:///x.safetensors", ".safetensors/..", "..",
]  # fmt: skip


@pytest.mark.parametrize("shard", UNSAFE)
def test_shards_outside_the_folder_are_never_opened(
    tmp_path: Path,
    write_index: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    shard: str,
) -> None:
    assert not is_safe_shard(shard)
    index = write_index(tmp_path, {"a": shard})
    opened: list[Any] = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda *args: opened.append(args[0]) or real(*args))
    with pytest.raises(FormatError, match=r"not the name of a \.safetensors file below") as caught:
        open(index)
    assert caught.value.offset == index.read_text().rindex('"a"')
    assert str(caught.value).isprintable()
    assert opened == [str(index)]


@pytest.mark.parametrize(
    "shard", ["m.safetensors", "sub/m.safetensors", "..x/..y.safetensors", "é.safetensors"]
)
def test_safe_shards(shard: str) -> None:
    assert is_safe_shard(shard)


@given(st.text(alphabet="./\\:ax\0\n", max_size=12))
@example("a/..")
def test_safe_shards_stay_below_their_folder(stem: str) -> None:
    name = f"{stem}.safetensors"
    if is_safe_shard(name):
        assert os.path.normpath(os.path.join("/folder", name)).startswith("/folder/")
        assert "\0" not in name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected an object, found the end"),
        ("[]", "expected an object, found an array"),
        ("{}", "no `weight_map`"),
        ('{"weight_map": null}', "expected an object as `weight_map`, found null"),
        ('{"weight_map": []}', "expected an object as `weight_map`"),
        ('{"weight_map": {"a": 1}}', "expected a file name, found a number"),
        ('{"weight_map": {"a": {}}}', "expected a file name, found an object"),
        ('{"weight_map": {}, "weight_map": {}}', "duplicate key `weight_map`"),
        ('{"metadata": {}, "weight_map": {}, "metadata": {}}', "duplicate key `metadata`"),
        ('{"x": 1, "weight_map": {}, "x": 1}', "duplicate key `x`"),
        ('{"weight_map": {}} x', "trailing characters"),
        ('{"weight_map": {"a": "x.safetensors", "a": "x.safetensors"}}', "duplicate key `a`"),
        ('{"weight_map": {"a": "x.safetensors", "\\u0061": "x.safetensors"}}', "duplicate key `a`"),
        ('{"weight_map": {"\\ud800": "x.safetensors"}}', "lone surrogate"),
        ('{"metadata": ' + "[" * 1000 + "]" * 1000 + ', "weight_map": {}}', "recursion limit"),
        ('{"metadata": {"a": 1, "a": 2}, "weight_map": {}}', "duplicate key `a`"),
        ('{"metadata": NaN, "weight_map": {}}', "expected a value"),
        ('\ufeff{"weight_map": {}}', "expected an object"),
    ],
)
def test_malformed_indexes(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "i.json").write_text(text, encoding="utf-8")
    with pytest.raises(FormatError, match=message) as caught:
        open(tmp_path / "i.json")
    assert caught.value.path == str(tmp_path / "i.json")
    assert caught.value.rule == "index"


@pytest.mark.parametrize("last", ["", "\\u0061"], ids=["plain", "with an escape"])
@pytest.mark.parametrize(
    ("pairs", "message", "of"),
    [
        (['"t7": "x.safetensors"', '"t8": "../x.safetensors"'], "duplicate key `t7`", 0),
        (['"b": "../x.safetensors"', '"t7": "x.safetensors"'], "`../x.safetensors` is not", 0),
        (['"b": "x.safetensors"', '"b": "x.safetensors"'], "duplicate key `b`", 1),
        (['"t9": "x.safetensors"', '"b": 1'], "duplicate key `t9`", 0),
        (['"b": "x.safetensors"', '"c": 1'], "expected a file name, found a number", None),
    ],
)
def test_a_long_index_says_which_tensor_is_wrong(
    tmp_path: Path, pairs: list[str], message: str, of: int | None, last: str
) -> None:
    members = [f'"t{number}": "x.safetensors"' for number in range(10_000)]
    text = ",\n".join([*members, *pairs, f'"z{last}": "x.safetensors"'])
    (tmp_path / "i.json").write_text(f'{{"weight_map": {{{text}}}}}')
    with pytest.raises(FormatError, match=re.escape(message)) as caught:
        read_index(str(tmp_path / "i.json"))
    at = text.rindex(pairs[-1] if of is None else pairs[of]) + len('{"weight_map": {')
    assert caught.value.offset == (at + 5 if of is None else at)


@given(
    st.one_of(
        st.binary(max_size=200),
        st.text(alphabet='{}[]":,weight_map\\ ', max_size=60).map(str.encode),
    )
)
def test_any_bytes_as_an_index(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("i") / "i.json"
    path.write_bytes(data)
    with contextlib.suppress(FormatError):
        assert read_index(str(path)) is not None


@pytest.mark.parametrize(
    ("metadata", "announced", "problem"),
    [
        ('{"x": [{}], "total_size": 7}', 7, None),
        ('{"x": 1}', None, None),
        ('{"total_size": "7"}', None, "expected an integer, found a string"),
        ("null", None, "expected an object, found null"),
    ],
)
def test_the_size_that_an_index_announces(
    tmp_path: Path, metadata: str, announced: int | None, problem: str | None
) -> None:
    """A wrong one does not stop anything from being read; `check` reports it."""
    (tmp_path / "i.json").write_text(f'{{"metadata": {metadata}, "weight_map": {{}}, "x": 1}}')
    found = read_index(str(tmp_path / "i.json"))
    assert found.total_size == announced
    assert (found.total_size_error and str(found.total_size_error)) == problem


def test_shards_of_other_formats_are_named_only_to_readers_of_them(
    tmp_path: Path, write_index: Callable[..., Path]
) -> None:
    path = str(write_index(tmp_path, {"a": "sub/x.bin"}))
    with pytest.raises(FormatError, match=r"not the name of a \.safetensors file below the index"):
        read_index(path)
    assert read_index(path, suffix="").shards == ["sub/x.bin"]
    write_index(tmp_path, {"a": "../x.bin"})
    with pytest.raises(
        FormatError, match=r"`\.\./x\.bin` is not the name of a file below the index"
    ):
        read_index(path, suffix="")


def test_an_index_that_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(OSError, match="Not a regular file"):
        open(tmp_path / "pipe.json")


def test_huge_indexes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large one is read within its size; one beyond the limit is not read at all."""
    path = tmp_path / "i.json"
    path.write_text('{"metadata": "' + "x" * (16 << 20) + '", "weight_map": {}}')
    tracemalloc.start()
    try:
        assert read_index(str(path)).weight_map == {}
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 70 << 20
    with path.open("wb") as file:
        file.truncate(shardindex._INDEX_MAX + 1)
    monkeypatch.setattr(os, "preadv", None)
    with pytest.raises(FormatError, match="at most 268435456 are read"):
        open(path)


@pytest.mark.slow
def test_an_index_of_100_mb(tmp_path: Path) -> None:
    count = 1_000_000
    shards = [f"model-{number:05}-of-00100.safetensors" for number in range(1, 101)]
    path = tmp_path / "i.json"
    names = {f"{'layer' * 10}.{number}.weight": shards[number % 100] for number in range(count)}
    path.write_text(json.dumps({"weight_map": names}))
    assert path.stat().st_size > 90 << 20
    assert read_index(str(path)).weight_map == names


def test_each_file_of_a_folder_is_opened_once_and_its_index_twice(
    sharded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda *args: opened.append(str(args[0])) or real(*args))
    for tensor in open(sharded, backend="pread").values():
        tensor.view()
    # At the end the index has to be the same file as at the beginning.
    assert opened == [str(sharded / name) for name in (INDEX, FIRST, SECOND, INDEX)]


def test_places_are_targets(sharded: Path) -> None:
    index = place_of(sharded / INDEX)
    assert sorted(open(index)) == ["a", "b", "c"]
    assert sorted(open(place_of(sharded))) == ["a", "b", "c"]
    seen: list[str] = []

    def verify(source: Source, path: str) -> Source:
        seen.append(path)
        return source

    assert sorted(open(place_of(sharded / FIRST), verify=verify)) == ["a", "b"]
    assert sorted(open(place_of(sharded / FIRST))) == ["a", "b"]
    assert seen == [str(sharded / FIRST)]


def test_an_open_source_is_a_target(sharded: Path) -> None:
    source = open_source(sharded / FIRST)
    assert sorted(open(source)) == ["a", "b"]


@pytest.mark.parametrize(
    "name", ["model.safetensors.age", "model.safetensors.index.json.age", "model.key.age"]
)
def test_an_encrypted_folder_says_so(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"age-encryption.org/v1\n")
    with pytest.raises(FormatError, match=r"the folder is encrypted .* identity=") as caught:
        open(tmp_path)
    assert caught.value.rule == "encrypted"


@pytest.mark.parametrize(
    "head", [b"age-encryption.org/v1\n-> X", b"-----BEGIN AGE ENCRYPTED FILE-----\n"]
)
def test_an_encrypted_file_says_so(tmp_path: Path, head: bytes) -> None:
    (tmp_path / "a.safetensors").write_bytes(head + bytes(100))
    with pytest.raises(FormatError, match=r"this is an encrypted file .* identity=") as caught:
        open(tmp_path / "a.safetensors")
    assert caught.value.rule == "encrypted"


# ---- writing an index


def test_names_and_text() -> None:
    assert shard_name("m", 12, 345) == "m-00012-of-00345.safetensors"
    assert shard_name("m", 1, 123456) == "m-00001-of-123456.safetensors"
    text = index_text({"b": "x.safetensors", "a": "ü.safetensors"}, 7)
    assert json.loads(text) == {
        "metadata": {"total_size": 7},
        "weight_map": {"a": "ü.safetensors", "b": "x.safetensors"},
    }
    assert text.startswith(
        '{\n  "metadata": {\n    "total_size": 7\n  },\n  "weight_map": {\n    "a"'
    )


def test_a_folder_of_models_names_the_folders_that_have_weights(
    tmp_path: Path, file_of: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tokenizer", "unet", "vae", "text_encoder", "transformer"):
        (tmp_path / name).mkdir()
        if name != "tokenizer":
            (tmp_path / name / "model.safetensors").write_bytes(file_of(None, a=b"x"))
    expected = (
        r"; there are weights in its folders `text_encoder`, `transformer`, `unet` ...: name one"
    )
    with pytest.raises(FormatError, match=expected) as caught:
        open(tmp_path)
    assert caught.value.rule == "folder"
    for name in ("unet", "vae"):
        (tmp_path / name / "model.safetensors").unlink()
    real = LocalStore.list

    def broken(self: LocalStore, folder: str = "", *, recursive: bool = True) -> Any:
        if folder == "transformer":
            raise PermissionError(folder)
        return real(self, folder, recursive=recursive)

    monkeypatch.setattr(LocalStore, "list", broken)
    with pytest.raises(FormatError, match="in its folders `text_encoder`: name one of them"):
        open(tmp_path)
