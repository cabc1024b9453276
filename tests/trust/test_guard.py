"""The guard, each time in a process of its own: an audit hook cannot be taken back."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from safeweights import guard

SOURCE = str(Path(guard.__file__).parents[1])

needs_torch = pytest.mark.skipif(not find_spec("torch"), reason="is about PyTorch's loader")

EVIL = """
import os, pathlib, pickle, sys
class Evil:
    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path("executed"),)
"""


@pytest.fixture
def run(tmp_path: Path) -> object:
    def run(code: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        script = tmp_path / "script.py"
        script.write_text(EVIL + textwrap.dedent(code))
        done = subprocess.run(
            [sys.executable, "-m", "safeweights.guard", *arguments, str(script), "argument"],
            cwd=tmp_path, capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHONPATH": SOURCE},
        )  # fmt: skip
        assert not (tmp_path / "executed").exists(), "a pickle ran code"
        if check:
            assert done.returncode == 0, done.stderr
        return done

    return run


@pytest.mark.parametrize(
    "load",
    [
        "pickle.loads(data)",
        "pickle.load(io.BytesIO(data))",
        "pickle.Unpickler(io.BytesIO(data)).load()",
        "pickle._loads(data)",
        "pickle._Unpickler(io.BytesIO(data)).load()",
        "type('U', (pickle.Unpickler,), {})(io.BytesIO(data)).load()",
        "shelve.Shelf({b'x': data})['x']",
        "numpy.load(io.BytesIO(array), allow_pickle=True)",
        "numpy.lib.format.read_array(io.BytesIO(array), allow_pickle=True)",
    ],
)
def test_no_pickle_runs_code(run: object, load: str) -> None:
    run(f"""
    import io, shelve, numpy
    data = pickle.dumps(Evil())
    buffer = io.BytesIO()
    numpy.save(buffer, numpy.array([Evil()], dtype=object), allow_pickle=True)
    array = buffer.getvalue()
    from safeweights.guard import PickleRefusedError, installed
    assert installed() == "refuse"
    assert sys.argv[1:] == ["argument"]
    try:
        {load}
    except PickleRefusedError as error:
        assert isinstance(error, PermissionError)
        print("refused", error.wanted)
    else:
        raise SystemExit("loaded")
    """)


@needs_torch
def test_torch_and_joblib(run: object) -> None:
    done = run("""
    import io
    from safeweights.guard import PickleRefusedError
    import joblib, torch
    torch.save({"w": torch.ones(2), "e": Evil()}, "model.pt")
    torch.save({"w": torch.ones(2)}, "plain.pt")
    joblib.dump(Evil(), "evil.joblib")
    calls = [
        lambda: torch.load("model.pt", weights_only=False),
        lambda: torch.load("plain.pt", weights_only=True),
        lambda: torch.serialization.load("model.pt", weights_only=False),
        lambda: joblib.load("evil.joblib"),
        lambda: joblib.numpy_pickle.load("evil.joblib"),
    ]
    for number, call in enumerate(calls):
        try:
            call()
        except PickleRefusedError as error:
            print("refused", number)
    """)
    assert done.stdout.split("\n")[:-1] == [f"refused {n}" for n in range(5)]


def test_plain_data_and_plain_arrays_are_not_touched(run: object, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(3))
    run("""
    import numpy
    assert pickle.loads(pickle.dumps({"a": [1, 2.5, "x", None]})) == {"a": [1, 2.5, "x", None]}
    assert numpy.load("a.npy").tolist() == [0, 1, 2]
    """)


def test_processes_still_talk_to_each_other(run: object) -> None:
    done = run("""
    import fractions
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    if __name__ == "__main__":
        with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
            print(pool.submit(fractions.Fraction, 1, 3).result())
    """)
    assert done.stdout == "1/3\n"


OWN = """
class Own({base}):
    def find_class(self, module, name):
        return getattr(__import__(module), name)
"""


LOADS = {
    "threads": [
        "ThreadPool(1).map(pickle.loads, [data])",
        "ThreadPool(1).apply(pickle.loads, (data,))",
        "multiprocessing.dummy.Pool(1).map(pickle.loads, [data])",
    ],
    "processes": [
        "pool.map(pickle.loads, [data])",
        "pool.apply(pickle.loads, (data,))",
        "next(pool.imap(pickle.loads, [data]))",
        "list(executor.map(pickle.loads, [data]))",
        "executor.submit(pickle.loads, data).result()",
    ],
    "classes": [
        "Early(io.BytesIO(data)).load()",
        "EarlyInPython(io.BytesIO(data)).load()",
        "Late(io.BytesIO(data)).load()",
        "LateInPython(io.BytesIO(data)).load()",
        "Lower(io.BytesIO(data)).load()",
        "pickle.loads(extension)",
    ],
}


@pytest.mark.parametrize("loads", LOADS.values(), ids=LOADS)
def test_no_way_around_the_event(tmp_path: Path, loads: list[str]) -> None:
    """Functions that messages of other processes pass through, unpicklers of one's own, caches."""
    classes = {"Early": "pickle.Unpickler", "EarlyInPython": "pickle._Unpickler"}
    before = "".join(OWN.format(base=base).replace("Own", new) for new, base in classes.items())
    setup = r"""
    import copyreg, io, multiprocessing.dummy
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing.pool import ThreadPool
    copyreg.add_extension("pathlib", "Path", 7)
    extension = b"\x80\x02\x82\x07."
    pickle.loads(extension)  # which is cached now
    from safeweights import guard
    guard.install()
    fork = multiprocessing.get_context("fork")
    data = pickle.dumps(Evil(), 2)
    class Lower(Early): pass
    """
    tries = """
    def attempt(load):
        try:
            return load()
        except guard.PickleRefusedError:
            return "refused"
    """
    tries += f"""
    with fork.Pool(1) as pool, ProcessPoolExecutor(1, mp_context=fork) as executor:
        for load in [{", ".join(f"lambda: {load}" for load in loads)}]:
            print(attempt(load))
    """
    script = tmp_path / "script.py"
    late = before.replace("Early", "Late")
    script.write_text(EVIL + before + textwrap.dedent(setup) + late + textwrap.dedent(tries))
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": SOURCE},
    )  # fmt: skip
    assert not (tmp_path / "executed").exists(), "a pickle ran code"
    assert done.stdout == "refused\n" * len(loads), done.stderr


@needs_torch
def test_packages_of_torch_are_refused(run: object) -> None:
    run("""
    import torch.package
    from safeweights.guard import PickleRefusedError
    with torch.package.PackageExporter("model.pt") as out:
        out.extern("**")
        out.save_pickle("package", "evil.pkl", Evil())
    try:
        torch.package.PackageImporter("model.pt").load_pickle("package", "evil.pkl")
    except PickleRefusedError:
        print("refused")
    else:
        raise SystemExit("loaded")
    """)


def test_messages_still_pass_queues_and_connections(run: object) -> None:
    done = run("""
    import fractions, multiprocessing
    def work(queue, simple, connection):
        queue.put(fractions.Fraction(1, 3))
        simple.put(fractions.Fraction(1, 5))
        connection.send(fractions.Fraction(1, 7))

    if __name__ == "__main__":
        fork = multiprocessing.get_context("fork")
        queue, simple, (here, there) = fork.Queue(), fork.SimpleQueue(), fork.Pipe()
        process = fork.Process(target=work, args=(queue, simple, there))
        process.start()
        print(queue.get(), simple.get(), here.recv())
        process.join()
        with fork.Pool(1) as pool:
            print(pool.map(fractions.Fraction, [2]))
    """)
    assert done.stdout == "1/3 1/5 1/7\n[Fraction(2, 1)]\n"


def test_a_module_that_is_only_called_like_that_is_not_trusted(run: object) -> None:
    done = run("""
    scope = {"__name__": "multiprocessing.connection", "pickle": pickle, "data": pickle.dumps(Evil())}
    exec("pickle.loads(data)", scope)
    """, check=False)  # fmt: skip
    assert done.returncode == 1
    assert "PickleRefusedError" in done.stderr


def test_what_is_allowed_by_name(run: object) -> None:
    run("""
    import collections, fractions
    from safeweights.guard import PickleRefusedError, install
    value = collections.OrderedDict(a=1)
    assert pickle.loads(pickle.dumps(value)) == value
    try:
        pickle.loads(pickle.dumps(fractions.Fraction(1, 3)))
    except PickleRefusedError as error:
        assert error.wanted == "fractions.Fraction"
    else:
        raise SystemExit("loaded")
    install(allow=["fractions.Fraction"])  # never loosens what is there
    try:
        pickle.loads(pickle.dumps(fractions.Fraction(1, 3)))
    except PickleRefusedError:
        pass
    else:
        raise SystemExit("loaded")
    """, "--allow", "collections.OrderedDict")  # fmt: skip


@needs_torch
def test_convert(run: object) -> None:
    done = run("""
    import io, warnings
    warnings.simplefilter("error")
    import torch, joblib, numpy
    torch.save({"w": torch.arange(4.0), "half": torch.ones(2, dtype=torch.bfloat16)}, "model.pt")
    for options in ({}, {"weights_only": False}, {"map_location": "cpu"}):
        loaded = torch.load("model.pt", **options)
        assert loaded["w"].tolist() == [0, 1, 2, 3], loaded
        assert loaded["half"].dtype is torch.bfloat16
    torch.save({"w": torch.ones(2), "e": Evil()}, "mixed.pt")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert list(torch.load("mixed.pt")) == ["w"]
    assert "omitted" in str(caught[0].message), caught
    joblib.dump({"a": numpy.arange(3)}, "a.joblib")
    assert joblib.load("a.joblib")["a"].tolist() == [0, 1, 2]
    try:
        pickle.loads(pickle.dumps(Evil()))
    except PermissionError:
        print("refused")
    """, "--mode", "convert")  # fmt: skip
    assert done.stdout == "refused\n"


@needs_torch
def test_converted_files_keep_their_structure(run: object) -> None:
    """Without a warning, since nothing is missing; tied weights and attributes that torch needs too."""
    run("""
    import collections, warnings
    warnings.simplefilter("error")
    import numpy, torch, joblib
    model = torch.nn.Linear(2, 1)
    w = torch.arange(3.0)
    saved = {
        "x": {"y": w, 7: [w, (w.clone(), None, 2.5, 1j, True, "text" * 2000, b"raw" * 2000)]},
        ("a", 1): {1, "b"}, "f": frozenset("c"), "model": model.state_dict(), "n": numpy.arange(3),
        "shared": [], "empty": {}, "x.y": 1,
        "tied": w.view(3),
    }
    saved["again"] = saved["shared"]
    torch.save(saved, "model.pt")
    loaded = torch.load("model.pt")
    assert list(loaded) == list(saved)
    assert torch.equal(loaded["x"]["y"], w)
    assert loaded["tied"].data_ptr() == loaded["x"]["y"].data_ptr()
    first, inner = loaded["x"][7]
    assert first is loaded["x"]["y"]
    assert torch.equal(inner[0], w)
    assert inner[1:] == saved["x"][7][1][1:]
    assert (loaded["a", 1], loaded["f"]) == ({1, "b"}, frozenset("c"))
    assert type(loaded["model"]) is collections.OrderedDict
    assert loaded["model"]._metadata == saved["model"]._metadata
    model.load_state_dict(loaded["model"])
    assert type(loaded["n"]) is numpy.ndarray and loaded["n"].tolist() == [0, 1, 2]
    assert loaded["again"] is loaded["shared"] == []
    assert (loaded["empty"], loaded["x.y"]) == ({}, 1)
    torch.save(w, "w.pt")
    assert torch.equal(torch.load("w.pt"), w)
    joblib.dump([numpy.ones(2), {"k": 1}], "a.joblib", compress=3)
    ones, rest = joblib.load("a.joblib")
    assert (ones.tolist(), rest) == ([1, 1], {"k": 1})
    numpy.save("o.npy", {"k": numpy.ones(2)}, allow_pickle=True)
    assert numpy.load("o.npy", allow_pickle=True).item()["k"].tolist() == [1, 1]
    grid = numpy.array([[1, "a", None], [2.5, (1,), "b"]], dtype=object)
    pairs = numpy.empty(2, object)
    pairs[0], pairs[1] = [1, 2], [3, 4]
    for given in (grid, numpy.asfortranarray(grid), pairs):
        numpy.save("o.npy", given, allow_pickle=True)
        assert numpy.load("o.npy", allow_pickle=True).tolist() == given.tolist()
    """, "--mode", "convert")  # fmt: skip


@needs_torch
def test_objects_are_not_made_and_what_stands_for_them_is_said(run: object) -> None:
    run("""
    import fractions, warnings
    import torch
    def load(value):
        torch.save(value, "model.pt")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = torch.load("model.pt")
        (warning,) = caught
        assert "creates no objects" in str(warning.message)
        assert warning.filename == __file__
        return found, str(warning.message)

    evil, half, one = Evil(), fractions.Fraction(1, 2), torch.ones(1)
    found, said = load({"e": evil, "list": [1, Evil(), 2], "t": (half,), "model.extra": one})
    assert found == {"list": [1, None, 2], "t": (None,), "model.extra": one}
    assert "(`e`, `list.1`, `t.0`)" in said, said
    found, said = load({"model": torch.nn.Linear(2, 1), "model.extra": torch.ones(1), "k": 1})
    assert (set(found["model"]), found["k"]) == ({"weight", "bias"}, 1)
    assert "(`model`)" in said
    found, said = load(torch.nn.Sequential(torch.nn.Linear(2, 1)))
    assert set(found) == {"0.weight", "0.bias"}
    found, said = load([{"s": torch.eye(2).to_sparse(), "k": 1}, {half: 1, "k": 2}])
    assert found == [{"k": 1}, {"k": 2}]
    circle = [1]
    circle.append(circle)
    assert load({"c": circle})[0] == {"c": [1, None]}
    deep = one
    for _ in range(150):
        deep = [deep]
    found, said = load(deep)
    for _ in range(101):
        (found,) = found
    assert list(found) == [".".join("0" * 49)]
    assert load([evil] * 3 + [Evil() for _ in range(9)])[1].endswith(" and 5 more)")
    """, "--mode", "convert")  # fmt: skip


@needs_torch
def test_a_loader_imported_before(run: object) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent("""
        import torch, pytest
        from safeweights import guard
        assert guard.installed() is None
        seen = []
        guard.install(on_refusal=seen.append)
        with pytest.raises(guard.PickleRefusedError):
            torch.load("nothing")
        import pickle, fractions
        with pytest.raises(guard.PickleRefusedError):
            pickle.loads(pickle.dumps(fractions.Fraction(1, 3)))
        assert seen == ["fractions.Fraction"]
        with pytest.raises(ValueError, match="mode"):
            guard.install("maybe")
        """)],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": SOURCE},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_modules_and_usage(run: object, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("import sys; print(__name__, sys.argv[1:])")
    done = subprocess.run(
        [sys.executable, "-m", "safeweights.guard", "-m", "program", "--mode", "x"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": SOURCE},
    )  # fmt: skip
    assert done.stdout == "__main__ ['--mode', 'x']\n", done.stderr
    done = subprocess.run(
        [sys.executable, "-m", "safeweights.guard", "--mode", "maybe", "x.py"],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": SOURCE},
    )  # fmt: skip
    assert done.returncode == 2


UNSEEN = {
    "a class derived later from an unpickler imported before": """
        class Late(Early):
            def find_class(self, module, name):
                return getattr(__import__(module), name)
        Late(io.BytesIO(data)).load()
    """,
    "a subinterpreter": """
        try:
            import _interpreters as interpreters
        except ImportError:
            import _xxsubinterpreters as interpreters
        code = f"import pickle; pickle.loads({data!r})"
        run = getattr(interpreters, "exec", None) or interpreters.run_string
        run(interpreters.create(), code)
    """,
    "a process started as a program": """
        subprocess.run([sys.executable, "-c", f"import pickle; pickle.loads({data!r})"], check=True)
    """,
}


@pytest.mark.parametrize("way", list(UNSEEN))
def test_what_the_guard_does_not_see_is_what_the_threat_model_says(way: str) -> None:
    """A test that fails here is good news: the table in docs/threat-model.md has to say so."""
    head = """
        import io, pickle, subprocess, sys
        from _pickle import Unpickler as Early
        from safeweights import guard
        class Evil:
            def __reduce__(self):
                return print, ("executed",)
        data = pickle.dumps(Evil())
        guard.install()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(UNSEEN[way])],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": SOURCE},
    )  # fmt: skip
    assert done.stdout == "executed\n", done.stderr
    table = (Path(__file__).parents[2] / "docs" / "threat-model.md").read_text()
    assert table.count("| not seen") == len(UNSEEN)
