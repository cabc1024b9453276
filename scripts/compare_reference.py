"""Compare this package with the safetensors package that is installed: names, signatures, errors.

    scripts/compare_reference.py [--all]

Prints what differs, and fails if a difference has no reason in `EXPLAINED`, or a reason no difference. With
``--all`` the explained differences are printed too. docs/frameworks.md lists the same, in words.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import tempfile
import types
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MODULES = ("", ".numpy", ".torch")
"""Modules whose frameworks are installed where this runs; the others have no other functions."""

IMPORTED = {"Any", "Dict", "List", "Optional", "Set", "Tuple", "Union", "defaultdict"}
"""Names that modules of the reference have because they import them from the standard library."""

EXPLAINED = {
    # names
    "name safetensors.torch._float4_e2m1_x2": "torch's types are asked for by name, in a table",
    "name safetensors.torch._float8_e4m3fn": "the same",
    "name safetensors.torch._float8_e4m3fnuz": "the same",
    "name safetensors.torch._float8_e5m2": "the same",
    "name safetensors.torch._float8_e5m2fnuz": "the same",
    "name safetensors.torch._float8_e8m0": "the same",
    "name safetensors.torch._evaluate_tensors_for_save": "saving checks more, in another place",
    # signatures
    "signature safetensors.numpy.load_file": "backend: by default memory of its own (None)",
    "signature safetensors.safe_open": "backend: by default what the framework's tensors do (None)",
    "signature safetensors._safe_open_handle": "backend: the same",
    "signature safetensors.numpy.safe_open": "backend: the same",
    "signature safetensors.torch.safe_open": "backend: the same",
    # what the reference refuses
    "call load: bytearray": "any bytes-like object may be loaded",
    "call slice: torch, step -1": "descending steps, as in NumPy",
    "call slice: numpy, step -1": "descending steps, as in NumPy",
    "call open: bytes that name a file": "bytes hold a file, as everywhere here; paths are str or PathLike",
    "call save: numpy, list": "a TypeError says what is expected",
    "call save: numpy, int": "a TypeError says what is expected",
    "call save_model: extra state": "a ValueError says what can be saved",
    "call device: xpu": "a RuntimeError, as for every device that is missing, instead of AssertionError",
    "call device: privateuseone": "an ImportError and RuntimeError that names the package",
    "call open: folder": "a folder is a checkpoint; an empty one is a SafetensorError",
    "call spec: equality": "two specs with the same fields are equal",
}
"""Difference -> why it is wanted."""


def names(module: types.ModuleType) -> Iterator[str]:
    for name, value in vars(module).items():
        if not (name.startswith("__") or isinstance(value, types.ModuleType) or name in IMPORTED):
            yield name


def differing_names() -> Iterator[str]:
    for module in MODULES:
        theirs = importlib.import_module(f"safetensors{module}")
        ours = importlib.import_module(f"safeweights{module}")
        root = importlib.import_module("safeweights")
        for name in names(theirs):
            # safeweights.compat gives the core's names to each module.
            if not hasattr(ours, name) and not hasattr(root, name):
                yield f"name {theirs.__name__}.{name}"


def parameters(function: Any) -> list[tuple[str, object, object]] | None:
    try:
        found = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    return [(each.name, each.kind, each.default) for each in found if each.name != "self"]


def differing_signatures() -> Iterator[str]:
    for module in MODULES:
        theirs = importlib.import_module(f"safetensors{module}")
        ours = importlib.import_module(f"safeweights{module}")
        root = importlib.import_module("safeweights")
        for name in names(theirs):
            function = getattr(theirs, name)
            if not hasattr(ours, name) and not hasattr(root, name):
                continue
            if not callable(function) or getattr(function, "__module__", "") == "numpy":
                continue
            expected = parameters(function)
            if expected is None:
                continue
            found = parameters(getattr(ours, name, None) or getattr(root, name, None)) or []
            same_order = [each for each in found if each[1] is not inspect.Parameter.KEYWORD_ONLY]
            keywords = {each[0]: each for each in found}
            for at, (argument, kind, default) in enumerate(expected):
                if kind is inspect.Parameter.KEYWORD_ONLY:
                    fits = argument in keywords and keywords[argument][2] == default
                else:
                    fits = at < len(same_order) and same_order[at][2] == default
                    fits = fits and (same_order[at][0] == argument or name.startswith("_"))
                if not fits:
                    yield f"signature {theirs.__name__}.{name}"
                    break


def calls(package: str, folder: Path) -> dict[str, Callable[[], object]]:
    """What both packages are asked, by a name that says what it is."""
    import numpy as np
    import torch

    core = importlib.import_module(package)
    st = importlib.import_module(f"{package}.torch")
    sn = importlib.import_module(f"{package}.numpy")
    path, missing = folder / "x.safetensors", folder / "no" / "x"
    ones = torch.ones(2)

    def raw(contents: bytes) -> Path:
        target = folder / "raw"
        target.write_bytes(contents)
        return target

    def opened(**options: Any) -> Any:
        return core.safe_open(path, **{"framework": "pt", **options})

    def device(name: object) -> Callable[[], object]:
        return lambda: opened(device=name).get_tensor("a")

    def spec(**changed: Any) -> Any:
        usual = {"dtype": "float32", "shape": [1], "data_ptr": 64, "data_len": 4}
        return core.TensorSpec(**{**usual, **changed})

    def closed_keys() -> object:
        handle = opened()
        handle.__exit__(None, None, None)
        return handle.keys()

    class WithExtraState(torch.nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"version": 1}

    f6 = b'{"a":{"dtype":"F6_E2M3","shape":[4],"data_offsets":[0,3]}}'
    f6 = len(f6).to_bytes(8, "little") + f6 + b"123"
    error = core.SafetensorError
    return {
        "open: missing": lambda: core.safe_open(missing, "pt"),
        "open: folder": lambda: core.safe_open(folder / "empty", "pt"),
        "open: int": lambda: core.safe_open(1, "pt"),
        "open: None": lambda: core.safe_open(None, "pt"),
        "open: bytes that name a file": lambda: core.safe_open(os.fsencode(path), "pt"),
        "open: no framework": lambda: core.safe_open(path),
        "open: unknown framework": lambda: core.safe_open(path, "xx"),
        "open: framework is an int": lambda: core.safe_open(path, 1),
        "open: unknown backend": lambda: opened(backend="x"),
        "open: backend is an int": lambda: opened(backend=1),
        "open: empty file": lambda: core.safe_open(raw(b""), "pt"),
        "open: header too large": lambda: core.safe_open(raw(b"\xff" * 20), "pt"),
        "open: no JSON": lambda: core.safe_open(raw(b"\x04" + bytes(7) + b"{{{{"), "pt"),
        "open: without TensorFlow": lambda: opened(framework="tf").keys(),
        "get_tensor: without TensorFlow": lambda: opened(framework="tf").get_tensor("a"),
        **{f"device: {name}": device(name) for name in ("xx", "cuda", "hpu", "npu", "mps", "xpu", 1.5)},
        "device: privateuseone": device("privateuseone"),
        "device: numpy on cuda": lambda: opened(framework="np", device="cuda").get_tensor("a"),
        "get_tensor: missing": lambda: opened().get_tensor("b"),
        "get_tensor: int": lambda: opened().get_tensor(1),
        "get_slice: missing": lambda: opened().get_slice("b"),
        "get_slice: int": lambda: opened().get_slice(1),
        **{
            f"slice: {framework}, {what}": lambda framework=framework, index=index: opened(
                framework=framework
            ).get_slice("a")[index]
            for framework in ("torch", "numpy")
            for what, index in {
                "step 0": slice(None, None, 0), "step -1": slice(None, None, -1), "beyond": 5,
                "too many": (0, 0, 0), "two ellipses": (..., ...), "a text": "x",
            }.items()
        },
        "slice: numpy, a list": lambda: opened(framework="np").get_slice("a")[[0]],
        "slice: numpy, stop beyond": lambda: opened(framework="np").get_slice("a")[0:7],
        "closed": closed_keys,
        "load: str": lambda: st.load("x"),
        "load: bytearray": lambda: st.load(bytearray(path.read_bytes())),
        "load: not a file": lambda: st.load(b"abc"),
        "load: unknown type": lambda: st.load(f6),
        "load: unknown type, numpy": lambda: sn.load(f6),
        "get_tensor: unknown type": lambda: core.safe_open(raw(f6), "pt").get_tensor("a"),
        "load_file: missing": lambda: st.load_file(missing),
        "save: list": lambda: st.save([1]),
        "save: int": lambda: st.save({"a": 1}),
        "save: name is an int": lambda: st.save({1: ones}),
        "save: numpy, list": lambda: sn.save([1]),
        "save: numpy, int": lambda: sn.save({"a": 1}),
        "save: numpy, name is an int": lambda: sn.save({1: np.ones(1)}),
        "save: numpy, objects": lambda: sn.save({"a": np.array([None])}),
        "save: complex128": lambda: st.save({"a": ones.to(torch.complex128)}),
        "save: sparse": lambda: st.save({"a": ones.to_sparse()}),
        "save: not contiguous": lambda: st.save({"a": torch.ones(2, 3).T}),
        "save: shared": lambda: st.save({"a": ones, "b": ones}),
        "save: meta": lambda: st.save({"a": torch.ones(2, device="meta")}),
        "save: metadata of ints": lambda: st.save({"a": ones}, {"a": 1}),
        "save: metadata is a list": lambda: st.save({"a": ones}, [1]),
        "save_file: no folder": lambda: st.save_file({"a": ones}, missing),
        "save_file: a folder": lambda: st.save_file({"a": ones}, folder),
        "save_file: None": lambda: st.save_file({"a": ones}, None),
        "save_file: numpy, no folder": lambda: sn.save_file({"a": np.ones(1)}, missing),
        "serialize_file: no folder": lambda: core.serialize_file({}, missing),
        "save_model: no module": lambda: st.save_model({}, folder / "m"),
        "save_model: extra state": lambda: st.save_model(WithExtraState(1, 1), folder / "m"),
        "load_model: other names": lambda: st.load_model(torch.nn.Linear(1, 1), path),
        "load_model: missing": lambda: st.load_model(torch.nn.Linear(1, 1), missing),
        "deserialize: str": lambda: core.deserialize("x"),
        "deserialize: not a file": lambda: core.deserialize(b"x"),
        "serialize: list": lambda: core.serialize([1]),
        "serialize: int": lambda: core.serialize({"a": 1}),
        "spec: by position": lambda: core.TensorSpec("float32", [1], 64, 4),
        "spec: unknown type": lambda: spec(dtype="x"),
        "spec: hash": lambda: type(hash(spec())),
        "spec: equality": lambda: spec() == spec(),
        "spec: type": lambda: spec().dtype,
        "error: values": lambda: [(error(*each).args, str(error(*each))) for each in ((), ("x", 2), ({},))],
        "handle of a file object: a class": lambda: isinstance(core._safe_open_handle, type),
    }  # fmt: skip


def outcome(call: Callable[[], object]) -> tuple[str, Any]:
    """What a call gives: an error, or a value as text."""
    try:
        return "value", str(call())
    except Exception as error:
        return "error", error


def differing_calls(folder: Path) -> Iterator[str]:
    import safetensors.torch
    import torch

    safetensors.torch.save_file({"a": torch.arange(10.0).reshape(2, 5)}, folder / "x.safetensors")
    (folder / "empty").mkdir()
    theirs, ours = calls("safetensors", folder), calls("safeweights", folder)
    for what, call in theirs.items():
        (kind, expected), (other, found) = outcome(call), outcome(ours[what])
        if kind != other:
            yield f"call {what}"
        elif kind == "value":
            if expected != found:
                yield f"call {what}"
        elif not _catches_the_same(expected, found):
            yield f"call {what}"


def _catches_the_same(expected: Exception, found: Exception) -> bool:
    """Whether ``except`` of the reference's class, or of its builtins, catches ours too."""
    import safetensors

    import safeweights

    if isinstance(expected, safetensors.SafetensorError):
        same = isinstance(found, safeweights.SafetensorError)
        same = same and type(found).__name__ == "SafetensorError"
    elif isinstance(expected, ImportError):
        same = isinstance(found, ImportError)
    else:
        same = isinstance(found, type(expected))
    return same and len(found.args) == 1 and found.args[0] == str(found)


def main() -> int:
    import safetensors

    warnings.simplefilter("ignore")  # of torch, about some of the indexes
    with tempfile.TemporaryDirectory() as folder:
        found = {*differing_names(), *differing_signatures(), *differing_calls(Path(folder))}
    for difference in sorted(found - EXPLAINED.keys()):
        print(f"NOT EXPLAINED  {difference}")
    for difference in sorted(EXPLAINED.keys() - found):
        print(f"NO DIFFERENCE  {difference}")
    if "--all" in sys.argv:
        for difference in sorted(found & EXPLAINED.keys()):
            print(f"{difference}: {EXPLAINED[difference]}")
    print(f"safetensors {safetensors.__version__}: {len(found)} differences")
    return int(found != EXPLAINED.keys())


if __name__ == "__main__":
    sys.exit(main())
