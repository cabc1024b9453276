"""Prevent pickles from running code in a process.

`install` adds an audit hook (PEP 578), which cannot be removed again. It refuses every global that a
pickle imports; without globals a pickle can build lists and numbers, but cannot call a function. This one
rule covers everything that uses Python's unpicklers, in C and in Python: `torch.load`, `joblib.load`,
`numpy.load` with objects, `pandas.read_pickle`, `shelve` ...

`install` also replaces `torch.load`, `joblib.load` and `numpy.load`: in mode ``refuse``, their error says
what to do instead; in mode ``convert``, they read the file through `safeweights.conversion`, which executes
no code.

    python -m safeweights.guard [--mode refuse|convert] [--allow MODULE.NAME]... SCRIPT [ARGS...]

Limits: this is not a sandbox. Code that already runs in the process is not restricted, and a child process
is guarded only if it installs the guard itself.
"""

from __future__ import annotations

import _pickle
import argparse
import copyreg
import functools
import importlib.abc
import importlib.util
import os
import pickle
import runpy
import sys
import warnings
from typing import TYPE_CHECKING, Any, Final, Literal

from .errors import SafetensorError, quote

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from importlib.machinery import ModuleSpec
    from types import FrameType, ModuleType

    from .checkpoint import Tensor

__all__ = ["PickleRefusedError", "install", "installed", "main"]

GuardMode = Literal["refuse", "convert"]

_LOADERS: Final = {"torch": "load", "joblib": "load", "numpy": "load"}
_MESSAGES: Final = {
    "multiprocessing.connection": ("_ConnectionBase.recv",),
    "multiprocessing.queues": ("Queue.get", "SimpleQueue.get"),
    "multiprocessing.spawn": ("_main",),
    "torch.multiprocessing.queue": ("ConnectionWrapper.recv",),
}
"""The functions that unpickle messages between processes, by module. No other function is exempt: in
``ThreadPool.map(pickle.loads, ...)`` it is a function of `multiprocessing.pool` that calls `loads`."""


class PickleRefusedError(SafetensorError, PermissionError):
    """A pickle needs a global, or a pickle-based loader was called, in a guarded process.

    Attributes:
        wanted: ``module.name`` of the global; empty if a loader was refused.
    """

    def __init__(self, message: str, *, wanted: str = "", **where: Any) -> None:
        super().__init__(message, **where)
        self.wanted = wanted


class _State:
    """The mode that `install` set. Changing it does not weaken the hook."""

    mode: GuardMode | None = None


def installed() -> GuardMode | None:
    """The mode of this process's guard; None if it is not guarded."""
    return _State.mode


def install(
    mode: GuardMode = "refuse",
    *,
    allow: Iterable[str] = (),
    on_refusal: Callable[[str], None] | None = None,
) -> None:
    """Guard this process until it ends.

    A second call can refuse more, but never less.

    Args:
        mode: ``"refuse"`` refuses pickle-based loaders. ``"convert"`` lets `torch.load`, `joblib.load` and
            `numpy.load` read their files through `safeweights.conversion`. The result consists of
            dictionaries, lists, tuples, sets, strings, numbers and tensors, nested as in the file. Any
            other object becomes the dictionary of its tensors. An object without tensors is omitted from
            a dictionary and becomes None in a list. A warning names these objects.
        allow: ``module.name`` of globals that pickles may use. A pickle can call each of them with any
            arguments.
        on_refusal: Called with the name of every refused global, before the error is raised.

    Messages between processes are not restricted where a queue or connection of `multiprocessing`
    unpickles them itself: a process that can write to these pipes can run code already.
    """
    if mode not in {"refuse", "convert"}:
        msg = f"mode must be refuse or convert, not {quote(str(mode))}"
        raise ValueError(msg)
    sys.addaudithook(_hook(frozenset(allow), on_refusal))
    copyreg.clear_extension_cache()  # what is in it is used without an event
    _watch_subclasses()
    if _State.mode is None:
        sys.meta_path.insert(0, _PatchOnImport())
    _State.mode = mode
    for name in _LOADERS:
        if name in sys.modules:
            _replace_loader(sys.modules[name])


def _hook(
    allowed: frozenset[str], on_refusal: Callable[[str], None] | None
) -> Callable[[str, tuple[Any, ...]], None]:
    """The audit hook. Its closure holds its configuration, so that no assignment can change it."""
    get_frame, is_message, error = sys._getframe, _is_message, _refusal  # noqa: SLF001 - the only way

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event != "pickle.find_class":
            return
        wanted = f"{arguments[0]}.{arguments[1]}"
        if wanted in allowed or is_message(get_frame(1)):
            return
        if on_refusal is not None:
            on_refusal(wanted)
        raise error(wanted)

    return hook


def _refusal(wanted: str) -> PickleRefusedError:
    return PickleRefusedError(
        f"a pickle needs {quote(wanted)}, but this process runs no code from pickles. Convert the file "
        "first: `safeweights convert` reads it without executing it",
        wanted=wanted,
    )


def _is_message(frame: FrameType | None) -> bool:
    """Whether the unpickler was called by a function that unpickles messages between processes."""
    while frame is not None and (
        frame.f_globals is vars(pickle) or frame.f_code is _find_class.__code__
    ):
        frame = frame.f_back
    if frame is None:
        return False
    name = frame.f_globals.get("__name__")
    module = sys.modules.get(name) if isinstance(name, str) else None
    if module is None or frame.f_globals is not vars(module):
        return False
    for path in _MESSAGES.get(module.__name__, ()):
        function: Any = module
        for part in path.split("."):
            function = getattr(function, part, None)
        if frame.f_code is getattr(function, "__code__", None):
            return True
    return False


# ---------------------------------------------------------------- unpicklers that find classes themselves


def _find_class(original: Any, unpickler: Any, module: str, name: str) -> Any:
    """`original`, a `find_class`, after the event that only the built-in ones raise."""
    sys.audit("pickle.find_class", module, name)
    return original(unpickler, module, name)


class _Unpickler(_pickle.Unpickler):
    """Python's unpickler in C. Its class cannot be changed, so this one takes its place."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        _watch(cls)


def _watch_subclasses() -> None:
    """Let every `find_class` of a subclass of the unpicklers raise the event, now and later.

    `torch.package` has one that imports without it. A subclass that is derived after `install` from
    an unpickler in C that was imported before is not seen.
    """
    in_python: Any = pickle._Unpickler  # noqa: SLF001 - pickle.Unpickler, where C is missing
    for base in (_pickle.Unpickler, in_python, _Unpickler):
        pending = list(base.__subclasses__())
        while pending:
            each = pending.pop()
            pending += each.__subclasses__()
            _watch(each)
    in_python.__init_subclass__ = classmethod(_watch)
    pickle.Unpickler = _pickle.Unpickler = _Unpickler  # type: ignore[misc]


def _watch(cls: Any) -> None:
    original = vars(cls).get("find_class")
    if original is None or hasattr(original, "__guarded__"):
        return

    @functools.wraps(original)
    def find_class(unpickler: Any, module: str, name: str) -> Any:
        return _find_class(original, unpickler, module, name)

    find_class.__guarded__ = True  # type: ignore[attr-defined]
    cls.find_class = find_class


# ---------------------------------------------------------------- the loaders people call


class _PatchOnImport(importlib.abc.MetaPathFinder):
    """Replaces loaders in modules that are imported after `install`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _LOADERS:
            return None
        for finder in sys.meta_path:
            if finder is self:
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None:
                _patch_after(spec.loader)
                return spec
        return None


def _patch_after(loader: Any) -> None:
    execute = loader.exec_module

    @functools.wraps(execute)
    def exec_module(module: ModuleType) -> None:
        execute(module)
        _replace_loader(module)

    loader.exec_module = exec_module


def _replace_loader(module: ModuleType) -> None:
    name = _LOADERS[module.__name__]
    original = getattr(module, name, None)
    if original is None or hasattr(original, "__guarded__"):
        return
    route = _REPLACEMENTS[module.__name__]

    @functools.wraps(original)
    def guarded(*args: Any, **options: Any) -> Any:
        return route(original, *args, **options)

    guarded.__guarded__ = True  # type: ignore[attr-defined]
    setattr(module, name, guarded)


def _torch_load(_: Any, f: Any, map_location: Any = None, *_args: Any, **_options: Any) -> Any:
    """Refuse or convert a call of `torch.load`, whatever ``weights_only`` is."""
    if callable(map_location) or isinstance(map_location, dict):
        raise PickleRefusedError(
            "a converted checkpoint is loaded on one device: `map_location` must be its name or None"
        )
    return _converted("torch.load", f, "pt", map_location)


def _joblib_load(_: Any, filename: Any, *_args: Any, **_options: Any) -> Any:
    """Refuse or convert a call of `joblib.load`."""
    return _converted("joblib.load", filename, "np")


def _numpy_load(original: Any, file: Any, *args: Any, **options: Any) -> Any:
    """Refuse or convert a call of `numpy.load` that allows pickles; other calls are unchanged."""
    if not (options.get("allow_pickle") or (len(args) > 1 and args[1])):
        return original(file, *args, **options)
    return _converted("numpy.load(allow_pickle=True)", file, "np")


_REPLACEMENTS: Final[dict[str, Callable[..., Any]]] = {
    "torch": _torch_load, "joblib": _joblib_load, "numpy": _numpy_load,
}  # fmt: skip


def _converted(call: str, file: Any, framework: str, device: Any = None) -> Any:
    """Read the file as the loader would, with tensors in plain data and without other objects."""
    if _State.mode != "convert":
        path = os.fspath(file) if isinstance(file, str | os.PathLike) else None
        raise PickleRefusedError(
            f"`{call}` reads pickles, and this process runs no code from pickles: `safeweights "
            "convert` turns the file into safetensors without executing it",
            path=str(path) if path else None,
        )
    from .conversion.opening import open as open_any
    from .conversion.rebuilding import rebuild
    from .frameworks.adapter import adapter_for

    adapter = adapter_for(framework)
    place = adapter.check_device(device)
    arrays = adapter_for("np")

    def decode(tensor: Tensor, is_array: bool) -> Any:
        chosen, where = (arrays, None) if is_array else (adapter, place)
        return chosen.decode(tensor.view(), tensor.dtype, tensor.shape, where)

    found = rebuild(open_any(file, backend="pread"), decode)
    if found.changed:
        shown = ", ".join(quote(name, 40) for name in found.changed[:5])
        more = f" and {len(found.changed) - 5:,} more" if len(found.changed) > 5 else ""
        warnings.warn(
            f"{call} was replaced by the converter, which creates no objects: an object with tensors "
            f"became a dictionary of them, any other was omitted ({shown}{more})",
            stacklevel=4,
        )
    return found.value


# ---------------------------------------------------------------- python -m safeweights.guard


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a script, or a module with ``-m``, in a guarded process."""
    parser = argparse.ArgumentParser(
        prog="python -m safeweights.guard",
        description="Run a Python program in which pickles cannot execute code.",
    )
    parser.add_argument("--mode", choices=("refuse", "convert"), default="refuse")
    parser.add_argument(
        "--allow", action="append", default=[], metavar="MODULE.NAME",
        help="a global that pickles may use; may be repeated",
    )  # fmt: skip
    parser.add_argument("-m", dest="module", action="store_true", help="SCRIPT is a module's name")
    parser.add_argument("script", metavar="SCRIPT")
    parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="ARGS")
    options = parser.parse_args(arguments)
    install(options.mode, allow=options.allow)
    sys.argv = [options.script, *options.rest]
    # As `python` does: the script's folder is importable, unless -P was given.
    beside = not getattr(sys.flags, "safe_path", False)
    if options.module:
        if beside:
            sys.path.insert(0, "")
        runpy.run_module(options.script, run_name="__main__", alter_sys=True)
    else:
        if beside:
            sys.path[0:1] = [os.path.dirname(os.path.abspath(options.script))]
        runpy.run_path(options.script, run_name="__main__")


if __name__ == "__main__":
    # Under `-m`, this file is `__main__`. The guard must be installed in the module that others import.
    from .guard import main as run

    run()
