"""A checkpoint is a mapping of tensors that are not read yet, with views of itself."""

from __future__ import annotations

import io
import mmap
import os
import pickle
from array import array
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from safeweights.checkpoint import (
    Checkpoint,
    MemoryTensor,
    SafetensorsFile,
    Tensor,
    UnreadableTensor,
    file,
    open,
    save,
    to_bytes,
)
from safeweights.errors import (
    ClosedError,
    FormatError,
    SafetensorError,
    TensorNotFoundError,
    UnsupportedError,
)
from safeweights.format.header import TensorInfo
from safeweights.format.indexing import select
from safeweights.storage import TruncatedError

CONTENTS = {"x.weight": b"wwww", "x.bias": b"bb", "y.weight": b"", "Z": b"zzz"}


@pytest.fixture
def path(tmp_path: Path, file_of: Callable[..., bytes]) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(file_of({"format": "pt", "k": "v"}, **CONTENTS))
    return path


@pytest.fixture(params=["mmap", "pread", "direct", "auto"])
def opened(request: pytest.FixtureRequest, path: Path) -> Checkpoint:
    return open(path, backend=request.param)


def contents(tensors: Mapping[str, Tensor]) -> dict[str, bytes]:
    return {name: bytes(tensor.view()) for name, tensor in tensors.items()}


def test_two_checkpoints_are_the_same_if_they_are_one(opened: Checkpoint, path: Path) -> None:
    assert opened == opened
    assert opened != open(path)
    assert {opened: 1}[opened] == 1
    opened.close()
    assert opened == opened


def test_it_is_a_mapping(opened: Checkpoint) -> None:
    assert isinstance(opened, Mapping)
    assert len(opened) == 4
    assert list(opened) == list(opened.keys()) == sorted(CONTENTS)  # the order of the data
    assert contents(opened) == CONTENTS
    assert "Z" in opened
    assert "z" not in opened
    assert 3 not in opened
    assert opened.get("z") is None
    assert {name: tensor.nbytes for name, tensor in opened.items()} == {
        name: len(data) for name, data in CONTENTS.items()
    }


def test_a_pass_over_all_tensors_looks_up_no_name(
    opened: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = opened.filter()
    expected = [(name, view[name]) for name in view]

    def refuse(*_: object) -> None:
        raise AssertionError("a name was looked up")

    monkeypatch.setattr(Checkpoint, "__getitem__", refuse)
    assert [*view.items()] == expected
    assert [*view.values()] == [tensor for _, tensor in expected]


def test_all_tensors_of_a_file(opened: Checkpoint) -> None:
    (file,) = opened.files
    found = file.tensors()
    assert {name: bytes(tensor.view()) for name, tensor in found.items()} == CONTENTS
    assert {name: tensor.info for name, tensor in found.items()} == file.header.tensors


def test_tensors_say_what_they_are(opened: Checkpoint) -> None:
    tensor = opened["x.weight"]
    assert (tensor.name, tensor.dtype, tensor.shape, tensor.nbytes) == ("x.weight", "U8", (4,), 4)
    assert repr(tensor) == "<FileTensor `x.weight` U8 [4]>"
    assert tensor.info == opened.info("x.weight") == TensorInfo("U8", (4,), 5, 9)


def test_hostile_names_are_escaped() -> None:
    assert repr(MemoryTensor("\x1b[2J", "U8", (1,), b"x")) == r"<MemoryTensor `\x1b[2J` U8 [1]>"


@pytest.mark.parametrize(
    ("name", "shown"), [("w\n", r"tensor w\n"), (7, "tensor 7"), (["a"], r"tensor \['a'\]")]
)
def test_names_that_are_not_there(opened: Checkpoint, path: Path, name: Any, shown: str) -> None:
    with pytest.raises(TensorNotFoundError, match="File does not contain") as caught:
        opened[name]
    assert isinstance(caught.value, KeyError)
    assert caught.value.path == str(path)
    with pytest.raises(TensorNotFoundError, match=shown.replace("\\n", r"\\n")):
        opened.info(name)
    with pytest.raises(TensorNotFoundError):
        opened.files[0].tensor("w")


class Refusing(Mapping[str, Tensor]):
    """A mapping that has a tensor, and cannot give it."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __getitem__(self, name: str) -> Tensor:
        raise self.error

    def __iter__(self) -> Any:
        return iter(["a"])

    def __len__(self) -> int:
        return 1


@pytest.mark.parametrize("kind", [UnsupportedError, FormatError, ClosedError])
def test_errors_of_the_mapping_below_stay_what_they_are(kind: type[SafetensorError]) -> None:
    error = kind("the reason")
    with pytest.raises(kind) as caught:
        Checkpoint(Refusing(error), name="path")["a"]
    assert caught.value is error
    for missing in (KeyError("a"), TypeError("unhashable"), TensorNotFoundError("below")):
        with pytest.raises(TensorNotFoundError, match="does not contain tensor a") as none:
            Checkpoint(Refusing(missing), name="path")["a"]
        assert none.value.path == "path"


def test_tensors_whose_values_cannot_be_given(file_of: Callable[..., bytes]) -> None:
    """They are listed like any other, and say why when they are read, in whatever way that is."""
    odd = UnreadableTensor("q", "Q4_0", (32,), 18, reason="it is quantised", path="m.gguf")
    mixed = Checkpoint({"q": odd, "a": MemoryTensor("a", "U8", (1,), b"x")}, name="m.gguf")
    assert (odd.dtype, odd.shape, odd.nbytes, odd.info.nbytes) == ("Q4_0", (32,), 18, 18)
    assert mixed.refused == mixed.rename(str).refused == {"q": "it is quantised"}
    assert mixed.filter(skip="q").refused == open(file_of(a=b"x")).refused == {}
    mixed["a"].check_readable()
    for read in (
        odd.check_readable,
        odd.view,
        odd.chunks,
        lambda: odd.read_into(bytearray(18)),
        lambda: odd.read_selection(select(..., (32,))),
        lambda: to_bytes(mixed),
        lambda: save(mixed, io.BytesIO()),
    ):
        with pytest.raises(UnsupportedError, match="`q` cannot be given: it is quantised") as no:
            read()
        assert (no.value.path, no.value.tensor) == ("m.gguf", "q")


def test_metadata_is_a_copy(opened: Checkpoint, file_of: Callable[..., bytes]) -> None:
    metadata = opened.metadata
    assert metadata == {"format": "pt", "k": "v"}
    metadata.clear()
    assert opened.metadata == {"format": "pt", "k": "v"}
    assert open(file_of(None, a=b"x")).metadata is None
    assert open(file_of({}, a=b"x")).metadata == {}


# ---- reading a tensor


def test_read_into_parts(opened: Checkpoint) -> None:
    for tensor in (opened["Z"], MemoryTensor("Z", "U8", (3,), b"zzz")):
        buffer = bytearray(b"......")
        tensor.read_into(memoryview(buffer)[1:3], 1)
        assert buffer == b".zz..."
        tensor.read_into(np.zeros((0, 5)), 3)
        whole = array("B", b"...")
        tensor.read_into(whole)
        assert whole.tobytes() == b"zzz"
        for offset, size in [(-1, 1), (0, 4), (3, 1), (2, 2), (1 << 70, 0)]:
            with pytest.raises(SafetensorError, match="asked of tensor `Z`, which has 3") as caught:
                tensor.read_into(bytearray(size), offset)
            assert caught.value.tensor == "Z"
        with pytest.raises(UnsupportedError):
            tensor.read_into(memoryview(buffer)[::2])


def test_chunks(opened: Checkpoint) -> None:
    tensor = opened["x.weight"]
    assert [bytes(chunk) for chunk in tensor.chunks(3)] == [b"www", b"w"]
    assert list(opened["y.weight"].chunks()) == []
    memory = MemoryTensor("m", "U8", (4,), b"abcd")
    assert [bytes(chunk) for chunk in memory.chunks(3)] == [b"abcd"]
    assert memory.info == TensorInfo("U8", (4,), 0, 4)


def test_memory_is_shared() -> None:
    data = array("f", [1, 2])
    tensor = MemoryTensor("m", "F32", [2], data)
    assert tensor.shape == (2,)
    tensor.view()[:4] = bytes(4)
    assert data.tolist() == [0, 2]
    with pytest.raises(UnsupportedError):
        MemoryTensor("m", "U8", (2,), memoryview(b"abcd")[::2])


class Computed(Tensor):
    """The least that a tensor of another format has to bring."""

    def read_into(self, buffer: Any, offset: int = 0) -> None:
        view = self._within(buffer, offset)
        view[:] = bytes(range(offset, offset + len(view)))


def test_tensors_of_other_formats_only_fill_buffers() -> None:
    from safeweights.format.indexing import select

    tensor = Computed("c", "U8", (10, 20), 200)
    assert bytes(tensor.view()) == bytes(range(200))
    assert b"".join(tensor.chunks(33)) == bytes(range(200))
    assert bytes(tensor.read_selection(select((3,), (10, 20)))) == bytes(range(60, 80))
    assert bytes(tensor.read_selection(select((slice(0, 2), 5), (10, 20)))) == b"\5\x19"
    assert not tensor.in_memory
    file = io.BytesIO()
    save({"c": tensor}, file)
    assert contents(open(file)) == {"c": bytes(range(200))}


# ---- views


def test_filter(opened: Checkpoint) -> None:
    assert list(opened.filter(only="x.*")) == ["x.bias", "x.weight"]
    assert list(opened.filter(only=["*.weight", "Z"], skip=["y*"])) == ["Z", "x.weight"]
    assert list(opened.filter(skip="*.weight")) == ["Z", "x.bias"]
    assert list(opened.filter(only="z")) == []
    assert list(opened.filter()) == list(opened)
    assert opened.filter(only="x.*").metadata == opened.metadata


def test_rename(opened: Checkpoint, path: Path) -> None:
    renamed = opened.rename(lambda name: f"model.{name}")
    assert list(renamed) == [f"model.{name}" for name in opened]
    assert renamed["model.Z"].name == "Z"
    assert renamed.info("model.x.weight") == opened.info("x.weight")  # still its place in the file
    assert renamed.metadata == opened.metadata
    with pytest.raises(SafetensorError, match="would both be called `same`") as caught:
        opened.rename(lambda _: "same")
    assert caught.value.path == str(path)


def test_rename_leaves_no_tensor_without_a_name(opened: Checkpoint) -> None:
    with pytest.raises(FormatError, match="nothing would be left of the name `Z`") as caught:
        opened.rename(lambda name: name.removeprefix("Z"))
    assert (caught.value.rule, caught.value.tensor) == ("name-empty", "Z")
    nameless = Checkpoint({"": MemoryTensor("", "U8", (0,), b"")})  # as the format allows
    assert list(nameless.rename(str.upper)) == [""]
    assert list(nameless.rename(lambda name: f"x{name}")) == ["x"]


def test_names_with_brackets_are_themselves() -> None:
    names = ["w[0]", "w0", "w[1]"]
    opened = Checkpoint({name: MemoryTensor(name, "U8", (0,), b"") for name in names})
    assert list(opened.filter(only="w[0]")) == ["w[0]", "w0"]  # as a name, and as a pattern
    assert list(opened.filter(skip=["w[1]"])) == ["w[0]", "w0"]


def test_renames_that_collide_name_both_as_they_are_called_here(opened: Checkpoint) -> None:
    view = opened.rename(lambda name: f"model.{name}").filter(skip="*.Z")
    with pytest.raises(
        FormatError, match=r"`model\.x\..*` and `model\.x\..*` would both"
    ) as caught:
        view.rename(lambda name: name[:7])
    assert caught.value.rule == "name-collision"

    # The function may answer differently when it is asked again.
    answers = iter(["a", "b", "a"])
    with pytest.raises(FormatError, match=r"`X` and `x\.weight` would both be called `a`"):
        Checkpoint(dict.fromkeys(["X", "x.bias", "x.weight"])).rename(lambda _: next(answers))  # type: ignore[arg-type]


def test_views_of_views(opened: Checkpoint) -> None:
    view = opened.filter(skip="y*").rename(str.upper).filter(only="X*")
    assert contents(view) == {"X.BIAS": b"bb", "X.WEIGHT": b"wwww"}
    assert view.files == ()
    assert repr(view).endswith("2 tensors>")


# ---- closing


def test_close(opened: Checkpoint, path: Path) -> None:
    view, tensor, data = opened.filter(), opened["Z"], opened["x.weight"].view()
    with opened as same:
        assert same is opened
    assert repr(opened) == f"<Checkpoint `{path}`: closed>"
    for use in (len, list, repr_items, lambda c: c["Z"], lambda c: "Z" in c, lambda c: c.info("Z")):
        with pytest.raises(ClosedError, match="File is closed"):
            use(opened)
    for use in (Checkpoint.filter, lambda c: c.rename(str), lambda c: save(c, path)):
        with pytest.raises(ClosedError):
            use(opened)
    opened.close()
    assert tensor.view() == b"zzz"
    assert data == b"wwww"
    assert contents(view) == CONTENTS


def repr_items(opened: Checkpoint) -> str:
    return repr(list(opened.items()))


# ---- what can be opened


@pytest.mark.parametrize(
    "wrap",
    [bytes, bytearray, memoryview, io.BytesIO, lambda data: array("B", data), None],
    ids=["bytes", "bytearray", "memoryview", "BytesIO", "array", "mmap"],
)
def test_memory_and_file_objects(
    file_of: Callable[..., bytes], wrap: Callable[[bytes], Any] | None
) -> None:
    data = file_of(None, **CONTENTS)
    if wrap is None:
        target: Any = mmap.mmap(-1, len(data))
        target[:] = data
    else:
        target = wrap(data)
    assert contents(open(target)) == CONTENTS


@pytest.mark.parametrize("wrap", [str, Path])
def test_paths(path: Path, wrap: Callable[[Path], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert open(wrap(path)).name == str(path)
    monkeypatch.chdir(path.parent)
    assert contents(open(path.name)) == CONTENTS
    with path.open("rb") as file:
        assert contents(open(file)) == CONTENTS


@pytest.mark.parametrize("target", [None, 5, object()])
def test_what_cannot_be_opened_or_saved_to(target: Any) -> None:
    with pytest.raises(UnsupportedError, match="expected"):
        open(target)
    with pytest.raises(UnsupportedError, match="expected a path or a writable file object"):
        save({}, target)


def test_no_such_backend(path: Path) -> None:
    with pytest.raises(UnsupportedError, match="no such backend"):
        open(path, backend="cuda")


def test_a_file_is_opened_once_and_closed_with_the_last_user(
    path: Path, monkeypatch: pytest.MonkeyPatch, descriptors: Callable[[], int]
) -> None:
    opens: list[Any] = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda *args: opens.append(args[0]) or real(*args))
    before = descriptors()
    opened = open(path, backend="pread")
    tensor, data = opened["Z"], opened["x.weight"].view()
    assert contents(opened) == CONTENTS
    assert opens == [str(path)]
    opened.close()
    assert descriptors() == before + 1  # the tensor's
    assert tensor.view() == b"zzz"
    del tensor, opened
    assert descriptors() == before
    assert data == b"wwww"


def test_errors_carry_the_path_and_say_what_the_file_is(tmp_path: Path) -> None:
    for content, expected in [
        (b"", "header too small.*an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git-lfs pointer"),
        (b"<!DOCTYPE html><html>" + b" " * 600, "an HTML page"),
        (b"PK\3\4" + bytes(100), "zip archive"),
        (bytes(4), "header too small.*zero bytes"),
        (b"\2" + bytes(7) + b"[]", "invalid JSON"),
    ]:
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(FormatError, match=expected) as caught:
            open(tmp_path / "x")
        assert caught.value.path == str(tmp_path / "x")
        assert str(tmp_path) in str(caught.value)
        assert pickle.loads(pickle.dumps(caught.value)).message == caught.value.message
        with pytest.raises(FormatError, match=expected) as unnamed:
            open(content)
        assert unnamed.value.path is None


def test_truncated_downloads_say_how_much_is_missing(path: Path) -> None:
    data = path.read_bytes()
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(FormatError):
            open(path)
    with pytest.raises(
        FormatError, match=rf"the file at byte {len(data) - 1} \(1 bytes are missing"
    ):
        open(path)


@pytest.mark.parametrize("backend", ["mmap", "pread", "direct", "auto"])
def test_truncated_while_its_header_is_read(
    path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    """Even mapped files are read there: an error, not a signal that kills the process."""
    real = file.header_length

    def truncating(*args: Any, **kwargs: Any) -> int:
        length = real(*args, **kwargs)
        os.truncate(path, 20)
        return length

    monkeypatch.setattr(file, "header_length", truncating)
    with pytest.raises(TruncatedError, match="ends at byte 20"):
        open(path, backend=backend)


def test_truncated_while_open(path: Path) -> None:
    opened = open(path, backend="pread")
    os.truncate(path, path.stat().st_size - 1)
    assert contents(opened.filter(skip=["y*", "x.weight"])) == {"Z": b"zzz", "x.bias": b"bb"}
    with pytest.raises(TruncatedError):
        opened["x.weight"].view()


def test_a_single_file_by_its_class(path: Path) -> None:
    file = SafetensorsFile.open(path)
    assert file.name == str(path)
    assert file.tensor("Z").view() == b"zzz"
    assert contents(Checkpoint.from_files([file], "n")) == CONTENTS
    assert to_bytes(Checkpoint.from_files([file], "n")) == path.read_bytes()


def test_tensors_are_made_when_asked_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    real = SafetensorsFile.tensor
    monkeypatch.setattr(
        SafetensorsFile, "tensor", lambda file, name: made.append(name) or real(file, name)
    )
    opened = open(path)
    assert (len(opened), "Z" in opened, list(opened)) == (4, True, sorted(CONTENTS))
    assert made == []
    assert opened["Z"].view() == b"zzz"
    assert made == ["Z"]


def named(*names: str) -> Checkpoint:
    return Checkpoint({name: MemoryTensor(name, "U8", (0,), b"") for name in names})


@pytest.mark.parametrize(
    ("asked", "hint"),
    [
        ("norm.weight", "`model.norm.weight`"),  # a prefix is missing
        ("base.model.norm.weight", "`model.norm.weight`"),  # or is too much
        ("model.norm.wieght", "`model.norm.weight`"),
        ("head", "`lm_head.bias`, `lm_head.weight`"),
    ],
)
def test_similar_names_are_said(asked: str, hint: str) -> None:
    found = named("model.norm.weight", "lm_head.bias", "lm_head.weight")
    with pytest.raises(TensorNotFoundError) as caught:
        found[asked]
    assert str(caught.value) == f"File does not contain tensor {asked}; similar names: {hint}"


def test_nothing_is_similar() -> None:
    for asked in ("zzzzzzzzz", "", "x" * 300):
        with pytest.raises(TensorNotFoundError) as caught:
            named("model.norm.weight")[asked]
        assert "similar" not in str(caught.value)
        assert str(caught.value).endswith("; it has `model.norm.weight`")
    with pytest.raises(TensorNotFoundError, match=r"tensor zz$"):
        named(*(f"a{i}" for i in range(6)))["zz"]
    many = named(*(f"model.{i}.weight" for i in range(2500)))
    with pytest.raises(TensorNotFoundError, match=r"similar names: `model\.7\.weight`"):
        many["7.weight"]
    with pytest.raises(TensorNotFoundError, match=r"tensor model\.7\.wieght$"):
        many["model.7.wieght"]  # too many to compare letter by letter
    assert many.get("model.7.wieght") is None
    assert many.get(7, 1) == 1  # type: ignore[call-overload]
    assert many.get("model.7.weight") is many["model.7.weight"]
    with pytest.raises(TensorNotFoundError) as caught:
        named(*map(str, range(20_001)))["2000x"]
    assert "similar" not in str(caught.value)


def test_notebooks_show_a_table() -> None:
    """Written by `safeweights.reports.notebook`, which the mapping names and does not import."""
    tensor = MemoryTensor("a", "U8", (3,), b"abc")
    shown = Checkpoint({"a": tensor}, name="m")
    assert "<td>a</td><td>U8</td>" in shown._repr_html_()
    assert "<td>97</td><td>99</td>" in tensor._repr_html_()
