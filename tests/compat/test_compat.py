"""Standing in for the `safetensors` package. Each case is a program of its own, in a fresh interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import safeweights

SRC = Path(safeweights.__file__).parent.parent


def run(program: str, *arguments: str, folder: Path | None = None, blocked: bool = False) -> str:
    """What a program prints; `blocked` runs it where the reference is not installed."""
    text = textwrap.dedent(program)
    if blocked:
        text = textwrap.dedent(BLOCK) + text
    return run_words("-c", text, *arguments, folder=folder)


def run_words(*words: str, folder: Path | None = None, expect: int = 0) -> str:
    environment = os.environ | {"PYTHONPATH": str(SRC), "PYTHONWARNINGS": "error::UserWarning"}
    done = subprocess.run(
        [sys.executable, *words],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == expect, done.stderr
    return done.stdout.strip() if expect == 0 else done.stderr


BLOCK = """
    import importlib.abc, sys
    class Block(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path, target=None):
            return None
    from importlib.machinery import PathFinder
    original = PathFinder.find_spec
    PathFinder.find_spec = classmethod(
        lambda cls, name, path=None, target=None:
            None if name.partition(".")[0] == "safetensors" else original(name, path, target)
    )
"""


def test_names_imported_before_and_after() -> None:
    run("""
        import safetensors, safetensors.numpy as sn
        from safetensors import safe_open, SafetensorError, TensorSpec
        from safetensors.numpy import save_file as before
        reference = safetensors.safe_open, safetensors.numpy.save_file
        import safeweights, safeweights.compat, safeweights.numpy

        safeweights.compat.install()
        from safetensors.numpy import save_file as after
        assert before is after is sn.save_file is safeweights.numpy.save_file
        assert safe_open is safetensors.safe_open is sn.safe_open is safeweights.safe_open
        assert SafetensorError is safeweights.SafetensorError
        assert TensorSpec is sn.TensorSpec is safeweights.TensorSpec
        assert safetensors._safetensors_rust.serialize is safeweights.serialize
        assert safetensors.PrefetchLoader is safeweights.PrefetchLoader

        safeweights.compat.uninstall()
        assert (safe_open, before) == reference
        assert after is before is sn.save_file
        assert SafetensorError is safetensors.SafetensorError is not safeweights.SafetensorError
        assert not hasattr(safetensors, "PrefetchLoader")
        assert safeweights.numpy.save_file is not before
    """)


def test_nothing_of_the_reference_was_imported_before() -> None:
    run("""
        import safeweights.compat
        safeweights.compat.install()
        import sys
        assert "torch" not in sys.modules, "installing imports no framework"
        import safetensors, safetensors.numpy
        from safetensors import safe_open, serialize
        from safetensors.numpy import load_file
        assert safe_open is safeweights.safe_open
        assert load_file is safeweights.numpy.load_file
        assert safetensors.numpy.__name__ == "safetensors.numpy"
        assert "site-packages" in safetensors.numpy.__file__

        safeweights.compat.uninstall()
        assert safe_open is safetensors.safe_open is not safeweights.safe_open
        assert serialize is safetensors.serialize is safetensors.numpy.serialize
        assert load_file is safetensors.numpy.load_file
        assert load_file.__module__ == "safetensors.numpy"
        safetensors.numpy.save({"a": __import__("numpy").zeros(2)})
    """)


def test_clients_in_modules_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "early.py").write_text(
        "from safetensors import safe_open as opener\nimport safetensors\n"
    )
    (tmp_path / "late.py").write_text(
        "from safetensors.numpy import save\nfrom safetensors import SafetensorError\n"
    )
    (tmp_path / "direct.py").write_text(
        "from safeweights.numpy import save\nfrom safeweights import safe_open\n"
    )
    run(
        """
        import sys; sys.path.insert(0, "")
        import early, direct
        reference = early.opener
        import safeweights, safeweights.compat, safeweights.numpy
        safeweights.compat.install()
        import late
        assert early.opener is safeweights.safe_open is early.safetensors.safe_open
        assert late.save is safeweights.numpy.save
        try:
            early.opener(__file__ if "__file__" in globals() else "early.py", "np")
        except late.SafetensorError as error:
            print(type(error).__name__)
        safeweights.compat.uninstall()
        import safetensors.numpy
        assert early.opener is reference
        assert late.save is safetensors.numpy.save
        assert late.SafetensorError is safetensors.SafetensorError
        assert direct.save is safeweights.numpy.save, "who chose us keeps us"
        assert direct.safe_open is safeweights.safe_open
        """,
        folder=tmp_path,
    )


def test_installing_twice_and_again() -> None:
    run("""
        import safetensors
        reference = [safetensors.safe_open]  # a global would be bound anew
        import safeweights.compat as compat
        for _ in range(3):
            compat.install(); compat.install()
            assert compat.installed() and safetensors.safe_open is not reference[0]
            compat.uninstall(); compat.uninstall()
            assert not compat.installed() and safetensors.safe_open is reference[0]
        import sys
        assert not any(type(finder).__module__ == "safeweights.compat" for finder in sys.meta_path)
    """)


def test_versions_are_what_clients_need() -> None:
    found = run("""
        import safeweights.compat
        safeweights.compat.install()
        import importlib.metadata, importlib.util, safetensors
        assert importlib.util.find_spec("safetensors") is not None
        print(safetensors.__version__, importlib.metadata.version("safetensors"))
    """)
    assert found.split()[0] == found.split()[1] >= "0.8.0"


def test_without_the_reference() -> None:
    found = run(
        """
        import safeweights.compat
        safeweights.compat.install()
        import safetensors, numpy
        from safetensors.numpy import save, load
        from safetensors import safe_open
        import safetensors.numpy as sn
        assert save is safeweights.numpy.save is sn.save
        assert load(save({"a": numpy.arange(2)}))["a"].tolist() == [0, 1]
        print(safetensors.__version__)
        safeweights.compat.uninstall()
        try:
            import safetensors
        except ModuleNotFoundError:
            print("gone")
        """,
        blocked=True,
    )
    assert found.split() == ["0.8.0", "gone"]


def test_torch_and_its_private_names() -> None:
    pytest.importorskip("torch", reason="torch is tested where it is installed")
    run("""
        import safetensors.torch as st
        from safetensors.torch import _find_shared_tensors, storage_ptr, _TYPES, load_model
        import safeweights.compat, safeweights.torch
        theirs = _find_shared_tensors
        safeweights.compat.install()
        assert _find_shared_tensors is st._find_shared_tensors is safeweights.torch._find_shared_tensors
        assert _TYPES is safeweights.torch._TYPES and storage_ptr is safeweights.torch.storage_ptr
        assert load_model is safeweights.torch.load_model
        assert st._view2torch is safeweights.torch._view2torch
        safeweights.compat.uninstall()
        assert _find_shared_tensors is theirs is st._find_shared_tensors
        assert _TYPES is st._TYPES is not safeweights.torch._TYPES
    """)


PROGRAM = """
import sys
import safetensors, safeweights
from helper import answer
print(__name__, sys.argv, safetensors.safe_open is safeweights.safe_open, answer)
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    folder = tmp_path / "app"
    folder.mkdir()
    (folder / "helper.py").write_text("answer = 42\n")
    (folder / "main.py").write_text(PROGRAM)
    (folder / "package").mkdir()
    (folder / "package" / "__init__.py").write_text("")
    (folder / "package" / "__main__.py").write_text(PROGRAM)
    (folder / "fails.py").write_text("import sys\nsys.exit(7)\n")
    return folder


@pytest.mark.skipif(sys.version_info < (3, 11), reason="-P is new in Python 3.11")
def test_a_script_is_run_without_its_folder_where_python_is_told_so(program: Path) -> None:
    found = run_words("-P", "-m", "safeweights.compat", str(program / "main.py"), expect=1)
    assert "No module named 'helper'" in found


def test_running_a_script(program: Path, tmp_path: Path) -> None:
    script = str(program / "main.py")
    found = run_words("-m", "safeweights.compat", script, "-x", "--flag", folder=tmp_path)
    assert found == f"__main__ {[script, '-x', '--flag']} True 42"


def test_running_a_module(program: Path) -> None:
    found = run_words("-m", "safeweights.compat", "-m", "package", "a", folder=program)
    assert found == f"__main__ {[str(program / 'package' / '__main__.py'), 'a']} True 42"


def test_exit_codes_and_mistakes(program: Path) -> None:
    run_words("-m", "safeweights.compat", str(program / "fails.py"), expect=7)
    assert "usage:" in run_words("-m", "safeweights.compat", expect=2)
    assert "usage:" in run_words("-m", "safeweights.compat", "-m", expect=2)
    assert run_words("-m", "safeweights.compat", "--help").startswith("usage:")
    assert "nothing.py" in run_words("-m", "safeweights.compat", "nothing.py", expect=2)


def test_installing_while_another_thread_imports_the_reference() -> None:
    """It holds Python's lock of the module when it comes to bind it, and `install` wants to import that."""
    run("""
        import faulthandler, importlib, threading
        faulthandler.dump_traceback_later(60, exit=True)
        import safeweights.compat as compat
        executing, imported = threading.Event(), threading.Event()
        execute, import_module = compat._Loader.exec_module, importlib.import_module
        def exec_module(self, module):
            executing.set()
            assert imported.wait(30)
            return execute(self, module)
        def begin_import(name, *rest):
            if name == "safetensors":
                threading.Thread(target=__import__, args=(name,)).start()
                assert executing.wait(30)
                imported.set()
            return import_module(name, *rest)
        compat._Loader.exec_module, importlib.import_module = exec_module, begin_import
        compat.install()
        import safetensors
        assert safetensors.safe_open.__module__.startswith("safeweights"), safetensors.safe_open
    """)


def test_installing_from_threads() -> None:
    run("""
        import threading, safeweights.compat as compat
        def work():
            for _ in range(5):
                compat.install()
                import safetensors.numpy
                compat.uninstall()
        threads = [threading.Thread(target=work) for _ in range(4)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        import safetensors
        assert not compat.installed()
        assert safetensors.safe_open.__module__ == "builtins", safetensors.safe_open
    """)


@pytest.mark.parametrize("blocked", [False, True])
def test_torch_load_of_a_safetensors_file(tmp_path: Path, blocked: bool) -> None:
    """torch 2.13 has the `safetensors` package read files of this name; `torch.save` writes none."""
    program = """
        import sys
        import torch
        import safeweights.compat
        import safeweights.torch
        from safeweights import SafetensorError

        if not hasattr(torch.serialization, "_is_path") or torch.__version__ < "2.13":
            print("old"); sys.exit()
        safeweights.compat.install()
        path = sys.argv[1] + "/x.safetensors"
        state = {"a": torch.arange(3.0), "b": torch.ones(2, dtype=torch.bfloat16)}
        safeweights.torch.save_file(state, path)
        found = torch.load(path)
        assert all(torch.equal(found[name], state[name]) for name in state)
        assert torch.load(path, map_location=torch.device("meta"))["a"].is_meta
        with open(path, "ab") as file:
            file.write(b"more")
        try:
            torch.load(path)
        except SafetensorError as error:
            assert error.rule == "coverage", error.rule
        safeweights.torch.save_file(state, path)
        safeweights.compat.uninstall()
        safeweights.compat.install(trust=lambda source, path: (_ for _ in ()).throw(PermissionError(path)))
        try:
            torch.load(path)
        except PermissionError:
            print("refused")
    """
    assert run(program, str(tmp_path), blocked=blocked) in {"refused", "old"}
