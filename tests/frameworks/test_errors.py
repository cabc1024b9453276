"""Errors as programs written for the reference catch and read them."""

from __future__ import annotations

import errno
import importlib
import io
import os
from typing import TYPE_CHECKING, Any

import pytest
from kits import Kit, sample

import safeweights
from safeweights.errors import SafetensorError
from safeweights.frameworks.numpy import NumPyAdapter

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def face(kit: Kit) -> Any:
    return importlib.import_module(f"safeweights.{kit.face}")


def raised(call: Callable[[], object], *kinds: type[BaseException]) -> Any:
    """The error that a call raises, of all of these classes, with one string as its ``args``."""
    with pytest.raises(kinds[0]) as caught:
        call()
    for kind in kinds:
        assert isinstance(caught.value, kind)
    assert caught.value.args == (str(caught.value),)
    return caught.value


def test_errors_of_opening_have_a_text_first(kit: Kit, tmp_path: Path) -> None:
    def opened(path: Path) -> Callable[[], object]:
        return lambda: safeweights.safe_open(path, kit.spellings[0])

    for call in (opened(tmp_path / "no"), lambda: face(kit).load_file(tmp_path / "no")):
        missing = raised(call, FileNotFoundError)
        assert "HeaderTooLarge" not in missing.args[0]  # what ComfyUI's loader asks
        assert missing.args[0] == f"No such file or directory: {tmp_path / 'no'}"
        assert (missing.errno, missing.filename) == (errno.ENOENT, str(tmp_path / "no"))
        assert not isinstance(missing, SafetensorError)
    broken = tmp_path / "broken"
    broken.write_bytes(b"\xff" * 20)
    error = raised(opened(broken), SafetensorError, ValueError)
    assert "header too large" in error.args[0]
    assert type(error).__name__ == "SafetensorError"


@pytest.mark.skipif(os.geteuid() == 0 if hasattr(os, "geteuid") else True, reason="root may read")
def test_a_file_that_may_not_be_read(kit: Kit, tmp_path: Path) -> None:
    (tmp_path / "x").touch(0o000)
    raised(lambda: safeweights.safe_open(tmp_path / "x", kit.spellings[0]), PermissionError)


def test_failed_saves_are_of_both_families(kit: Kit, tmp_path: Path) -> None:
    tensors = {"a": kit.make("F32", (2,), sample("F32", (2,)))}
    for call in (
        lambda path: face(kit).save_file(tensors, path),
        lambda path: safeweights.serialize_file({}, path),
    ):
        missing = tmp_path / "no" / "x"
        error = raised(lambda call=call: call(missing), SafetensorError, FileNotFoundError)
        assert (error.errno, error.filename) == (errno.ENOENT, str(missing))
        assert error.args[0] == (
            "Error while serializing: I/O error: No such file or directory (os error 2) at path "
            f'"{missing}"'
        )
        raised(lambda call=call: call(tmp_path), SafetensorError, IsADirectoryError)


class Full(io.BytesIO):
    def write(self, _: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk(kit: Kit) -> None:
    tensors = {"a": kit.make("F32", (2,), sample("F32", (2,)))}
    error = raised(lambda: face(kit).save_file(tensors, Full()), SafetensorError, OSError)
    assert error.errno == errno.ENOSPC
    assert error.args[0].endswith("I/O error: No space left on device (os error 28)")


def test_a_file_object_that_cannot_be_written(kit: Kit) -> None:
    reader = io.BufferedReader(io.BytesIO())
    raised(
        lambda: face(kit).save_file({"a": kit.make("F32", (2,), sample("F32", (2,)))}, reader),
        SafetensorError, io.UnsupportedOperation,
    )  # fmt: skip


def test_names_and_steps(kit: Kit, tmp_path: Path) -> None:
    path = tmp_path / "x"
    face(kit).save_file({"a": kit.make("F32", (2, 3), sample("F32", (2, 3)))}, path)
    handle = safeweights.safe_open(path, kit.spellings[0])
    for call in (handle.get_tensor, handle.get_slice, handle.info):
        raised(lambda call=call: call(1), SafetensorError, TypeError, KeyError)
        raised(lambda call=call: call("b"), SafetensorError, KeyError)
    raised(lambda: handle.get_slice("a")[::0], SafetensorError, ValueError, IndexError)
    for backend in (1, None.__class__, b"mmap"):
        raised(
            lambda backend=backend: safeweights.safe_open(path, kit.spellings[0], backend=backend),
            SafetensorError, TypeError,
        )  # fmt: skip


def test_a_device_that_there_is_not(kit: Kit, tmp_path: Path) -> None:
    path = tmp_path / "x"
    face(kit).save_file({"a": kit.make("F32", (2, 3), sample("F32", (2, 3)))}, path)
    for device in ("nothing", "nothing:7"):
        raised(
            lambda device=device: safeweights.safe_open(path, kit.spellings[0], device=device),
            SafetensorError, RuntimeError,
        )  # fmt: skip


class DeviceFullError(RuntimeError):
    """As frameworks define them: torch.OutOfMemoryError, jax.errors.JaxRuntimeError."""


@pytest.mark.parametrize("failure", [DeviceFullError("full"), MemoryError(), RuntimeError("full")])
def test_errors_of_a_framework_pass_unchanged(failure: Exception) -> None:
    class Failing(NumPyAdapter):
        def make(self, data: memoryview, dtype: str, shape: tuple[int, ...], device: Any) -> Any:
            if len(data) > 8:
                raise failure
            return super().make(data, dtype, shape, device)

    adapter = Failing()
    with pytest.raises(type(failure)) as caught:
        adapter.decode(memoryview(bytearray(16)), "F32", (2, 2), None, name="a")
    assert caught.value is failure
    with pytest.raises(SafetensorError, match="cannot have F32"):
        adapter.decode(memoryview(bytearray(8)), "F32", (2, *[1] * 99), None, name="a")
    with pytest.raises(SafetensorError, match="cannot have F32"):
        adapter.decode(memoryview(bytearray()), "F32", (0, *[1 << 40] * 9), None, name="a")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"w": 1}, "save that dictionary by itself, or give one flat dictionary, with names such as `a.w`"),
        ({}, "with names such as `a.weight`"),
        ("text", "leave it out, or put it into the metadata, as text"),
        (None, "leave it out"),
        (3, "array of it with"),
        ([1.5], "array of it with"),
        (object(), "convert it with"),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_is_no_array_is_answered_with_a_way_that_works(
    kit: Kit, value: Any, words: str
) -> None:
    with pytest.raises(SafetensorError) as caught:
        face(kit).save({"a": value})
    assert words in str(caught.value)
