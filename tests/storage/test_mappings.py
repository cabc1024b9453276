"""The check that no mapped file is truncated: what it sees, and that it is not there by default."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

import safeweights.storage
from safeweights.storage import mappings, open_source

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no file is truncated while mapped")


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What would be the audit hook, which a test could not remove."""
    hooks: list[Any] = []
    monkeypatch.setenv(mappings.VARIABLE, "1")
    monkeypatch.setattr(mappings, "_hooked", [])
    monkeypatch.setattr(mappings, "_mapped", {})
    monkeypatch.setattr(sys, "addaudithook", hooks.append)
    return hooks


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "data"
    path.write_bytes(bytes(100))
    return path


@pytest.mark.parametrize(
    ("event", "arguments"),
    [
        ("open", lambda path: (str(path), "wb", os.O_WRONLY | os.O_TRUNC)),
        ("open", lambda path: (os.fsencode(path.parent / "link"), None, os.O_RDWR | os.O_TRUNC)),
        ("open", lambda path: (path, "w", os.O_WRONLY | os.O_TRUNC)),
        ("os.truncate", lambda path: (str(path), 5)),
    ],
)
def test_a_mapped_file_is_not_truncated_without_a_warning(
    hook: list[Any], path: Path, event: str, arguments: Any
) -> None:
    (path.parent / "link").symlink_to(path)
    view = open_source(path).view(1, 10)
    (check,) = hook
    with pytest.warns(RuntimeWarning, match=r"is mapped by tensors .* load with backend=\"read\""):
        check(event, arguments(path))
    assert len(view) == 10
    another = open_source(path)
    assert hook == [check]
    del view
    with pytest.warns(RuntimeWarning):
        check(event, arguments(path))
    del another
    check(event, arguments(path))


def test_a_descriptor_is_truncated_too(hook: list[Any], path: Path) -> None:
    source = open_source(path)
    with path.open("r+b") as file, pytest.warns(RuntimeWarning):
        hook[0]("os.truncate", (file.fileno(), 5))
    assert source.in_memory


@pytest.mark.parametrize(
    ("event", "arguments"),
    [
        ("open", ("data", "rb", os.O_RDONLY)),
        ("open", ("data", "r+b", os.O_RDWR)),
        ("open", ("data", "wb", None)),
        ("open", ("missing", "wb", os.O_TRUNC)),
        ("open", ("other", "wb", os.O_TRUNC)),
        ("open", ("nu\0ll", "wb", os.O_TRUNC)),
        ("open", (3, "wb", os.O_TRUNC)),
        ("open", (None, "wb", os.O_TRUNC)),
        ("os.rename", ("data", "new", -1, -1)),
        ("id", ()),
    ],
)  # fmt: skip
def test_nothing_else_is_warned_of(
    hook: list[Any], path: Path, event: str, arguments: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    (path.parent / "other").write_bytes(b"x")
    source = open_source(path)
    hook[0](event, arguments)
    assert source.in_memory


def test_what_is_read_into_memory_is_not_noted(hook: list[Any], path: Path) -> None:
    assert open_source(path, backend="pread").view(0, 5) == bytes(5)
    assert hook == []


def test_there_is_no_hook_by_default(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hooks: list[Any] = []
    monkeypatch.delenv(mappings.VARIABLE, raising=False)
    monkeypatch.setattr(sys, "addaudithook", hooks.append)
    assert open_source(path).in_memory
    assert hooks == []


@pytest.mark.parametrize("how", [["-X", "dev"], []])
@pytest.mark.parametrize("write", ["open(path, 'wb')", "shutil.copyfile(path + '2', path)"])
def test_the_file_is_whole_where_warnings_are_errors(
    path: Path, how: list[str], write: str
) -> None:
    shutil.copy(path, f"{path}2")
    code = f"""if True:
        import shutil, sys
        from safeweights.storage import open_source
        path = sys.argv[1]
        view = open_source(path).view(0, 100)
        try:
            {write}
        except RuntimeWarning as warning:
            print(warning.args[0].partition(";")[0])
        print(len(bytes(view)))
    """
    environment = {"PYTHONPATH": os.path.dirname(os.path.dirname(safeweights.__file__))}
    environment |= {} if how else {mappings.VARIABLE: "1"}
    done = subprocess.run(
        [sys.executable, *how, "-W", "error::RuntimeWarning", "-c", code, str(path)],
        env=environment, capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        f"{str(path)!r} is mapped by tensors that were loaded from it", "100",
    ]  # fmt: skip
