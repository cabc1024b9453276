"""The names of the reference's next version, read from its own stub, and what they do."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import inspect
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

import safeweights
import safeweights.torch

if TYPE_CHECKING:
    from collections.abc import Iterator

VERSION = importlib.metadata.version("safetensors")
if not VERSION.startswith("0.9"):
    pytest.skip(f"safetensors is {VERSION}: `make test-clients`", allow_module_level=True)

INHERITED = {"add_note", "with_traceback"}  # listed of SafetensorError, which is an exception


def stub() -> ast.Module:
    found = importlib.util.find_spec("safetensors")
    assert found is not None
    assert found.origin is not None
    return ast.parse(Path(found.origin).with_suffix(".pyi").read_text())


def functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    """Dotted name and definition of every function and method."""
    for node in stub().body:
        if isinstance(node, ast.FunctionDef):
            yield node.name, node
        elif isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef) and inner.name not in INHERITED:
                    yield f"{node.name}.{inner.name}", inner


def test_every_name_is_there() -> None:
    names = {node.name for node in stub().body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    names |= {
        target.id
        for node in stub().body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    assert len(names) >= 9
    assert not [name for name in names if not hasattr(safeweights, name)]


@pytest.mark.parametrize("name", [name for name, _ in functions()])
def test_every_function_takes_the_same_arguments(name: str) -> None:
    node = dict(functions())[name]
    ours: Any = safeweights
    for part in name.split("."):
        ours = inspect.getattr_static(ours, part) if part == "__init__" else getattr(ours, part)
    if not callable(ours):
        assert node.decorator_list  # a property
        return
    parameters = inspect.signature(ours).parameters
    theirs = [each.arg for each in node.args.args]
    if name == "deserialize" or (
        name.rpartition(".")[2].startswith("__") and name[-8:] != "__init__"
    ):
        assert len(parameters) >= min(1, len(theirs))  # given by position, always
        return
    assert list(parameters)[: len(theirs)] == theirs
    for each in node.args.kwonlyargs:
        assert parameters[each.arg].kind is inspect.Parameter.KEYWORD_ONLY
    needed = [each for each in parameters.values() if each.default is each.empty]
    assert len(needed) <= len(theirs) - len(node.args.defaults) + len(node.args.kwonlyargs)


def test_attributes_of_meta(tmp_path: Path) -> None:
    import safetensors

    path = tmp_path / "x.safetensors"
    safeweights.torch.save_file({"a": torch.ones(2, 3), "b": torch.zeros(5)}, path)
    for name in "ab":
        theirs = safetensors.safe_open(path, "pt").get_tensor_meta(name)
        ours = safeweights.safe_open(path, "pt").get_tensor_meta(name)
        for attribute in ("dtype", "shape", "data_offsets"):
            assert getattr(ours, attribute) == getattr(theirs, attribute)
            assert type(getattr(ours, attribute)) is type(getattr(theirs, attribute))


def test_a_client_of_prefetch(tmp_path: Path) -> None:
    """As a client of the next version would be written, but on the CPU."""
    program = """
        import sys
        from safetensors import safe_open, PrefetchLoader, PySafeSlice, TensorMeta
        from safetensors.torch import save_file
        import torch
        import safeweights, safeweights.compat
        safeweights.compat.install()
        from safetensors import safe_open

        tensors = {"a": torch.randn(8, 3), "b": torch.randn(5), "c": torch.arange(4)}
        save_file(tensors, sys.argv[1])
        with safe_open(sys.argv[1], framework="pt", device="cpu") as f:
            assert isinstance(f.get_slice("a"), safeweights.PySafeSlice)
            plan = {"a": slice(2, 6), "b": None}
            with f.prefetch(plan, device="cpu", threads=4) as loader:
                assert isinstance(loader, safeweights.PrefetchLoader)
                assert loader.names() == sorted(plan, key=f.offset_keys().index)
                assert len(loader) == 2
                assert torch.equal(loader.take("a"), tensors["a"][2:6])
                try:
                    loader.take("a")
                except safeweights.SafetensorError as error:
                    assert "already delivered" in str(error)
                else:
                    raise AssertionError
                assert torch.equal(dict(loader)["b"], tensors["b"])
            assert torch.equal(dict(f.prefetch())["c"], tensors["c"])
            assert torch.equal(f.get_tensor("a"), tensors["a"])
        print("done")
    """
    words = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "x.safetensors")]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.strip() == "done", done.stderr


def test_the_same_bytes(tmp_path: Path) -> None:
    import safetensors.torch

    tensors = {"b": torch.randn(3, 2), "a": torch.arange(5, dtype=torch.int16)}
    ours = safeweights.torch.save(tensors, {"format": "pt"})
    assert ours == safetensors.torch.save(tensors, {"format": "pt"})
    for name, tensor in safetensors.torch.load(ours).items():
        assert torch.equal(tensor, tensors[name])


def test_no_difference_is_unexplained() -> None:
    script = Path(__file__).parents[2] / "scripts" / "compare_reference.py"
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"safetensors {reference_version()}" in done.stdout


def reference_version() -> str:
    import safetensors

    return str(safetensors.__version__)
