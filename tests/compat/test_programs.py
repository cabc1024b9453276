"""Programs and their children run as `python` would run them."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest

import safeweights

SOURCE = str(Path(safeweights.__file__).parent.parent)
OURS = "safetensors.safe_open.__module__.startswith('safeweights')"


def run(
    *words: str, folder: Path | None = None, expect: int = 0, **environment: str
) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([SOURCE, *filter(None, [environment.pop("PYTHONPATH", "")])])
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, check=False, timeout=120,
        cwd=folder, env={**os.environ, "PYTHONPATH": path, **environment},
    )  # fmt: skip
    assert done.returncode == expect, done.stderr
    return done


def script(folder: Path, program: str, name: str = "program.py") -> str:
    (folder / name).write_text(textwrap.dedent(program))
    return str(folder / name)


def test_main_stays_until_the_process_ends(tmp_path: Path) -> None:
    program = """
        import atexit, pickle, sys, threading
        class Mine: pass
        def again():
            assert type(pickle.loads(pickle.dumps(Mine()))) is Mine
            print(sys.modules["__main__"].__file__ == __file__)
        atexit.register(again)
        started = threading.Event()
        threading.Thread(target=lambda: (started.wait(), again())).start()
        started.set()
    """
    script(tmp_path, program)
    for words in (["program.py"], ["-m", "program"]):
        done = run("-m", "safeweights.compat", *words, folder=tmp_path)
        assert done.stdout.split() == ["True", "True"], done.stderr
        assert not done.stderr


@pytest.mark.parametrize("words", [["program.py", "a", "-b"], ["-m", "program", "a", "-b"]])
def test_the_attributes_of_main_are_those_that_python_gives(
    tmp_path: Path, words: list[str]
) -> None:
    program = """
        import sys
        print(__name__, __file__, __package__, __spec__ and __spec__.name, __cached__, sys.argv)
        print(type(__loader__).__name__, sys.path[0], __builtins__.__name__, __doc__)
        print([name for name in globals() if name != "sys"])
    """
    script(tmp_path, program)
    expected = run(*words, folder=tmp_path).stdout.splitlines()
    found = run("-m", "safeweights.compat", *words, folder=tmp_path).stdout.splitlines()
    assert found[:2] == expected[:2]
    assert set(eval(found[2])) >= set(eval(expected[2])) - {"__annotations__"}


def test_folders_archives_and_mistakes(tmp_path: Path) -> None:
    program = f"import sys, safetensors, helper\nprint({OURS}, helper.answer, len(sys.argv))\n"
    folder = tmp_path / "app"
    folder.mkdir()
    (folder / "__main__.py").write_text(program)
    (folder / "helper.py").write_text("answer = 42\n")
    with zipfile.ZipFile(tmp_path / "app.zip", "w") as archive:
        for name in ("__main__.py", "helper.py"):
            archive.write(folder / name, name)
    for target in ("app", "app.zip"):
        done = run("-m", "safeweights.compat", target, "x", folder=tmp_path)
        assert done.stdout.strip() == "True 42 2"
    for name in ("nothing", "nothing.at.all"):
        done = run("-m", "safeweights.compat", "-m", name, expect=1)
        assert "No module named" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
@pytest.mark.parametrize("way", ["compat", "install"])
def test_children_of_multiprocessing_stand_in(tmp_path: Path, method: str, way: str) -> None:
    if sys.platform == "win32" and method != "spawn":
        pytest.skip("Windows only spawns")
    program = f"""
        import multiprocessing
        def work(_):
            import safetensors, safetensors.torch
            from safetensors.numpy import load_file
            return {OURS} and load_file.__module__ == "safeweights.numpy"
        if __name__ == "__main__":
            {"import safeweights.compat; safeweights.compat.install()" if way == "install" else ""}
            with multiprocessing.get_context("{method}").Pool(1) as pool:
                print(pool.map(work, [0, 1]))
    """
    path = script(tmp_path, program)
    words = ["-m", "safeweights.compat", path] if way == "compat" else [path]
    assert run(*words).stdout.strip() == "[True, True]"


def test_other_children_stand_in_and_keep_their_own_customisation(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os\nos.environ['CUSTOM'] = 'yes'\n")
    child = f"import os, sys, safetensors; print({OURS}, os.environ['CUSTOM'], sys.argv[1:])"
    program = f"""
        import subprocess, sys, safeweights.compat
        safeweights.compat.install()
        def child():
            subprocess.run([sys.executable, "-c", {child!r}, "x"], check=True)
        child()
        subprocess.run([sys.executable, "-c", "import subprocess, sys; subprocess.run(sys.argv[1:])",
                        sys.executable, "-c", {child!r}, "y"], check=True)
    """
    path = script(tmp_path, program)
    done = run(path, PYTHONPATH=str(tmp_path))
    assert done.stdout.splitlines() == ["True yes ['x']", "True yes ['y']"]


def test_nothing_is_imported_by_children_that_load_no_model(tmp_path: Path) -> None:
    child = "import sys; print('numpy' in sys.modules, 'safetensors' in sys.modules)"
    program = f"""
        import subprocess, sys, safeweights.compat
        safeweights.compat.install()
        subprocess.run([sys.executable, "-c", {child!r}], check=True)
    """
    assert run(script(tmp_path, program)).stdout.strip() == "False False"


def test_the_environment_is_restored() -> None:
    program = (
        "import os, safeweights.compat as compat\n"
        "before = dict(os.environ)\n"
        "compat.install(); compat.install()\n"
        "assert os.environ['SAFEWEIGHTS_COMPAT'] == '1' and dict(os.environ) != before\n"
        "compat.uninstall()\n"
        "print(dict(os.environ) == before)\n"
    )
    assert run("-c", program).stdout.strip() == "True"


def test_a_child_whose_policy_cannot_be_read_does_not_start(tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text("nonsense")
    hook = str(Path(safeweights.__file__).parent / "_children")
    done = run(
        "-c", "print('started')", expect=3, PYTHONPATH=hook,
        SAFEWEIGHTS_COMPAT="1", SAFEWEIGHTS_POLICY=str(policy),
    )  # fmt: skip
    assert "started" not in done.stdout
    assert "safeweights.compat: error" in done.stderr


def test_names_without_the_distribution(tmp_path: Path) -> None:
    """In an environment that has no `safetensors`, which clients may import all the same."""
    program = """
        import importlib.machinery, sys
        class Hidden:
            def find_spec(self, name, path=None, target=None):
                return None
        found = importlib.machinery.PathFinder.find_spec
        importlib.machinery.PathFinder.find_spec = classmethod(
            lambda cls, name, *rest: None if name.startswith("safetensors") else found(name, *rest)
        )
        import safeweights.compat
        safeweights.compat.install()
        import safetensors
        from safetensors._safetensors_rust import (
            SafetensorError, TensorSpec, _safe_open_handle, deserialize, safe_open, serialize,
            serialize_file,
        )
        from safetensors.numpy import _TYPES, _flatten, _getdtype, _is_little_endian, _view2np
        from safetensors.numpy import load, save
        import numpy as np
        assert isinstance(_safe_open_handle, type)
        keep = []
        arrays = {"a": np.arange(3.0)}
        data = serialize(_flatten(arrays, keep))
        assert data == save(arrays)
        assert _view2np(deserialize(data))["a"].tolist() == [0, 1, 2]
        assert _getdtype("F32") == np.float32 and _TYPES["F64"] is np.float64
        assert _is_little_endian(arrays["a"]) and not _is_little_endian(arrays["a"].astype(">f8"))
        print(safetensors.__version__)
    """
    assert run(script(tmp_path, program)).stdout.strip() == safeweights.compat.API_VERSION
