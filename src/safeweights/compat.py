"""Stand in for the `safetensors` package: code written for it runs on this one, unchanged.

    import safeweights.compat
    safeweights.compat.install()

or, for a program that must not be changed, ``python -m safeweights.compat SCRIPT`` (or ``-m MODULE``).

With ``install(trust="policy.toml")``, or ``SAFEWEIGHTS_POLICY=policy.toml`` in the environment, every
model that the process loads must fulfil the policy, whichever library loads it.

How: the modules of `safetensors` stay what they are, and their names are bound to ours, now or when a
module is imported; so ``import safetensors.torch as st`` sees us whether it ran before or after. What
modules took by name (``from safetensors import safe_open``) is bound anew in every module that is
loaded. `uninstall` undoes all of it. What a program keeps elsewhere (in a closure, a table, a default
value) cannot be found; run it with ``python -m`` so that it never sees anything else.

Python processes that this one starts (multiprocessing, torchrun, ``accelerate launch``, pytest-xdist) do
the same: `install` sets SAFEWEIGHTS_COMPAT and puts a folder with a ``sitecustomize`` module in front of
PYTHONPATH. Processes that ignore the environment (``python -I``, ``-E``) or do not import `site` (``-S``)
do not. They load models under the same policy; where it is an object and has no file that could be named
in the environment, they load none.

The distribution stays installed, with its version: clients look for it (`importlib.metadata`). Where
it is not, modules of its name are made, and `safetensors.__version__` says `API_VERSION`.
"""

from __future__ import annotations

import builtins
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import threading
import zipfile
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

from .errors import SafetensorError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["API_VERSION", "install", "installed", "main", "uninstall"]

API_VERSION: Final = "0.8.0"
"""The version of the reference whose names and behaviour these are."""

_COMPAT_VARIABLE: Final = "SAFEWEIGHTS_COMPAT"
"""The environment variable that tells child processes to stand in as well."""

_CHILDREN: Final = os.path.join(os.path.dirname(os.path.abspath(__file__)), "_children")
"""The folder of the ``sitecustomize`` that child processes import."""

_WITHOUT_POLICY: Final = "without-policy"
"""Its value where the policy cannot be named in the environment: child processes load no model."""

_POLICY_VARIABLE: Final = "SAFEWEIGHTS_POLICY"
"""The environment variable that names the policy under which a process loads models."""

PACKAGE: Final = "safetensors"
_CORE: Final = (
    "SafetensorError", "TensorSpec", "_safe_open_handle", "deserialize", "safe_open", "serialize",
    "serialize_file", "PrefetchLoader", "PySafeSlice", "TensorMeta",
)  # fmt: skip
_FUNCTIONS: Final = ("load", "load_file", "save", "save_file", "safe_open")
_TORCH: Final = (
    "load_model", "save_model", "storage_ptr", "storage_size", "_SIZE", "_TYPES", "_end_ptr",
    "_filter_shared_not_shared", "_find_shared_tensors", "_flatten", "_flatten_as_ptr", "_getdtype",
    "_is_complete", "_remove_duplicate_names", "_to_ndarray", "_tobytes", "_view2torch",
)  # fmt: skip
_NUMPY: Final = ("_TYPES", "_flatten", "_getdtype", "_is_little_endian", "_view2np")
_CORE_OF_FACES: Final = ("TensorSpec", "deserialize", "serialize", "serialize_file")
_FACES: Final = ("numpy", "torch", "flax", "tensorflow", "mlx", "paddle")
_ABSENT: Final = object()


class _Binding(NamedTuple):
    """A name of a module that was bound to something of ours."""

    module: ModuleType
    name: str
    before: Any
    ours: Any


class _State:
    """What `install` changed, so that `uninstall` can change it back."""

    def __init__(self) -> None:
        # Two: a thread that imports a module of the reference takes `lock` while it holds Python's lock of
        # that module, so no thread may wait for an import while it holds `lock`.
        self.changing = threading.RLock()
        self.lock = threading.RLock()
        self.finder: _Finder | None = None
        self.bindings: list[_Binding] = []
        self.made: list[str] = []
        self.already_ours: set[tuple[int, str]] = set()
        self.trusting = False
        self.environment: dict[str, str | None] = {}
        self.replaced_main: ModuleType | None = None


_STATE: Final = _State()


def install(*, trust: object = None) -> None:
    """Bind the names of `safetensors` to this package, in this process; calling it again is harmless.

    Cost: reads every name of every loaded module, some milliseconds.

    Args:
        trust: What every file that is loaded must fulfil: a policy, a key, a warrant, or the path of
            one (`safeweights.trust.as_verifier`); by default the policy that the environment variable
            SAFEWEIGHTS_POLICY names, if any. It holds for all loaders of this package in this process
            that are not given ``trust=``, and refuses models that are loaded from bytes.

    Raises:
        TypeError, TrustError, OSError: `trust` cannot be used; nothing is bound.
    """
    trust = trust or os.environ.get(_POLICY_VARIABLE) or None
    _set_trust(trust)
    with _STATE.changing:
        _set_environment(trust)
        with _STATE.lock:
            if _STATE.finder is not None:
                return
            _insert_finder()
        importlib.import_module(PACKAGE)  # which a thread may be doing that waits for the lock
        with _STATE.lock:
            for name, module in list(sys.modules.items()):
                if module is not None and _is_ours_to_bind(name):
                    _bind(module)


def _join() -> None:
    """What a child process does at its start: bind the names when `safetensors` is first imported.

    If the policy cannot be used, the process ends: without it, it must load no model.
    """
    try:
        without = os.environ.get(_COMPAT_VARIABLE) == _WITHOUT_POLICY
        _set_trust(_refuse if without else os.environ.get(_POLICY_VARIABLE) or None)
    except (SafetensorError, OSError) as error:
        print(f"safeweights.compat: error: {error}", file=sys.stderr, flush=True)  # noqa: T201
        os._exit(
            _COULD_NOT_START
        )  # Python, which is starting, would call a SystemExit a fatal error
    with _STATE.changing, _STATE.lock:
        if _STATE.finder is None:
            _insert_finder()


def _refuse(_: object, path: str) -> NoReturn:
    """The verifier of a child process whose parent loads under a policy that has no file."""
    from .trust.errors import PolicyViolationError

    raise PolicyViolationError(
        "the process that started this one loads models under a policy that it could not hand on: install "
        "one here, or give the path of a policy there",
        reason="no-policy", path=path,
    )  # fmt: skip


def _set_trust(trust: object) -> None:
    if trust is not None:
        from .trust.verifier import set_default

        set_default(trust)
        _STATE.trusting = True


def _insert_finder() -> None:
    _STATE.finder = _Finder()
    _STATE.already_ours = {(id(module), name) for module, name, _ in _names_bound_to(_ours_by_id())}
    sys.meta_path.insert(0, _STATE.finder)


def _set_environment(trust: object) -> None:
    """Have child processes do the same."""
    folders = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if _CHILDREN not in folders:
        folders.insert(0, _CHILDREN)
    wanted = {_COMPAT_VARIABLE: "1", "PYTHONPATH": os.pathsep.join(folders)}
    if isinstance(trust, str | os.PathLike):
        # Absolute, since they may be started in a folder where an attacker has a file of this name.
        wanted[_POLICY_VARIABLE] = os.path.abspath(os.fsdecode(trust))
    elif trust is not None:
        wanted[_COMPAT_VARIABLE] = _WITHOUT_POLICY
    for name, value in wanted.items():
        _STATE.environment.setdefault(name, os.environ.get(name))
        os.environ[name] = value


def _restore_environment() -> None:
    for name, value in _STATE.environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    _STATE.environment.clear()


def uninstall() -> None:
    """Undo `install`: every name is bound to what it was, or would have been, without us.

    Objects that were made meanwhile (handles, slices, errors) stay what they are. A policy that was
    installed is not applied any more.
    """
    if _STATE.trusting:
        from .trust.verifier import set_default

        set_default(None)
        _STATE.trusting = False
    with _STATE.changing, _STATE.lock:
        if _STATE.finder is None:
            return
        sys.meta_path.remove(_STATE.finder)
        _STATE.finder = None
        _restore_environment()
        theirs = {
            id(binding.ours): binding.before
            for binding in _STATE.bindings
            if binding.before is not _ABSENT and binding.name != "__version__"
        }
        for module, name, before, _ in reversed(_STATE.bindings):
            if before is _ABSENT:
                vars(module).pop(name, None)
            else:
                setattr(module, name, before)
        for module, name, value in list(_names_bound_to(theirs)):
            if (id(module), name) not in _STATE.already_ours:
                setattr(module, name, theirs[id(value)])
        for name in _STATE.made:
            sys.modules.pop(name, None)
        _STATE.bindings, _STATE.made, _STATE.already_ours = [], [], set()


def installed() -> bool:
    """Whether `install` is in effect."""
    return _STATE.finder is not None


def _is_ours_to_bind(module: str) -> bool:
    return module in (PACKAGE, f"{PACKAGE}._safetensors_rust") or (
        module.startswith(f"{PACKAGE}.") and module.rpartition(".")[2] in _FACES
    )


def _exports(module: str) -> dict[str, Any]:
    """Name -> our object, for a module of the reference."""
    here = __package__ or "safeweights"
    core = importlib.import_module(here)
    face = module.rpartition(".")[2]
    if face not in _FACES:
        return {name: getattr(core, name) for name in _CORE}
    ours = importlib.import_module(f"{here}.{face}")
    names = _FUNCTIONS + {"torch": _TORCH, "numpy": _NUMPY}.get(face, ())
    return {name: getattr(ours, name) for name in names} | {
        name: getattr(core, name) for name in _CORE_OF_FACES
    }


def _bind(module: ModuleType) -> None:
    """Bind the names of a module of the reference to ours, also in modules that imported them by name."""
    exports = _exports(module.__name__)
    if not hasattr(module, "__version__") and module.__name__ == PACKAGE:
        exports["__version__"] = API_VERSION
    replaced: dict[int, Any] = {}
    for name, ours in exports.items():
        before = vars(module).get(name, _ABSENT)
        if before is ours:
            continue
        if before is not _ABSENT:
            replaced[id(before)] = ours
        _set(module, name, before, ours)
    for client, name, before in list(_names_bound_to(replaced)):
        _set(client, name, before, replaced[id(before)])


def _set(module: ModuleType, name: str, before: Any, ours: Any) -> None:
    setattr(module, name, ours)
    _STATE.bindings.append(_Binding(module, name, before, ours))


def _names_bound_to(objects: dict[int, Any]) -> Iterator[tuple[ModuleType, str, Any]]:
    """Every global name of every module outside this package whose value is one of `objects`."""
    here = f"{__package__}."
    for title, module in list(sys.modules.items()):
        if not isinstance(module, ModuleType) or title == __package__ or title.startswith(here):
            continue
        # The dictionary itself: attribute access would wake lazy modules.
        for name, value in list(vars(module).items()):
            if id(value) in objects:
                yield module, name, value


def _ours_by_id() -> dict[int, Any]:
    """Our objects, as far as their modules are loaded: who has them now took them from us."""
    modules = [sys.modules.get(f"{__package__}.{face}") for face in _FACES]
    found = [value for module in modules if module for value in vars(module).values()]
    found += [vars(sys.modules[str(__package__)]).get(name) for name in _CORE]
    return {id(value): value for value in found if callable(value)}


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the reference's modules where they are, and binds them when they have been executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not _is_ours_to_bind(fullname):
            return None
        spec = self._found_by_others(fullname, path, target)
        if spec is None:
            return importlib.util.spec_from_loader(
                fullname, _Loader(None), is_package=fullname == PACKAGE
            )
        spec.loader = _Loader(spec.loader)
        return spec

    def _found_by_others(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None
    ) -> importlib.machinery.ModuleSpec | None:
        for finder in sys.meta_path:
            if finder is not self and hasattr(finder, "find_spec"):
                spec = finder.find_spec(fullname, path, target)
                if spec is not None:
                    return spec
        return None


class _Loader(importlib.abc.Loader):
    """Loads by another loader, or makes an empty module; then binds it."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)  # get_source, get_resource_reader ...

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        if self._loader is None:
            return None
        created: ModuleType | None = self._loader.create_module(spec)
        return created

    def exec_module(self, module: ModuleType) -> None:
        if self._loader is None:
            _STATE.made.append(module.__name__)
        else:
            self._loader.exec_module(module)
        with _STATE.lock:
            if installed():
                _bind(module)


_USAGE: Final = """usage: python -m safeweights.compat (SCRIPT | -m MODULE) [ARGUMENT ...]

Run a program with this package in the place of safetensors. The environment variable
SAFEWEIGHTS_POLICY names the policy (TOML) that every model must fulfil which it loads."""
_COULD_NOT_START: Final = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a program with `install` in effect, as ``python`` itself would run it."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] in (["-h"], ["--help"]):
        print(_USAGE)  # noqa: T201 - this is the command line
        return 0
    module = words.pop(0) if words[:1] == ["-m"] else None
    if not words:
        print(_USAGE, file=sys.stderr)  # noqa: T201
        return 2
    if module is None and not os.path.exists(words[0]):
        print(f"safeweights.compat: there is no file {words[0]!r}", file=sys.stderr)  # noqa: T201
        return 2
    try:
        install()
    except (SafetensorError, OSError) as error:
        print(f"safeweights.compat: error: {error}", file=sys.stderr)  # noqa: T201
        return _COULD_NOT_START
    if module is not None:
        return _run_module(words)
    return _run_script(words)


def _run_script(words: list[str]) -> int:
    """What ``python SCRIPT`` does; a folder or archive is run by its ``__main__`` module."""
    script = os.path.abspath(words[0])
    sys.argv = words
    if os.path.isdir(script) or zipfile.is_zipfile(script):
        sys.path[0] = script
        # Not `importlib.util`, which takes the module that is running for the one of this name.
        return _run_spec(importlib.machinery.PathFinder.find_spec("__main__", [script]), words[0])
    # `python SCRIPT` looks for modules beside the script, `python -m` in the current folder.
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = os.path.dirname(os.path.realpath(script))
    if script.endswith(".pyc"):
        compiled = importlib.machinery.SourcelessFileLoader("__main__", script)
        _run(compiled.get_code("__main__"), __file__=script, __loader__=compiled)
    else:
        loader = importlib.machinery.SourceFileLoader("__main__", script)
        code = loader.source_to_code(loader.get_data(script), script)
        _run(code, __file__=script, __loader__=loader)
    return 0


def _run_module(words: list[str]) -> int:
    """What ``python -m NAME`` does."""
    name = words[0]
    try:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{name}.__main__")
    except ModuleNotFoundError as error:
        print(f"{sys.executable}: {error}", file=sys.stderr)  # noqa: T201
        return 1
    sys.argv = [name if spec is None or spec.origin is None else spec.origin, *words[1:]]
    return _run_spec(spec, name)


def _run_spec(spec: importlib.machinery.ModuleSpec | None, name: str) -> int:
    loader: Any = None if spec is None else spec.loader
    code = None if spec is None or loader is None else loader.get_code(spec.name)
    if spec is None or code is None:
        print(f"{sys.executable}: No module named {name}", file=sys.stderr)  # noqa: T201
        return 1
    _run(
        code, __file__=spec.origin, __cached__=spec.cached, __loader__=loader,
        __package__=spec.parent, __spec__=spec,
    )  # fmt: skip
    return 0


def _run(code: Any, **attributes: Any) -> None:
    """Execute a program in a module `__main__` that stays until the process ends.

    `runpy` takes its module away again as soon as the code is done, but exit handlers, threads and
    pickles of the program's own classes need it.
    """
    main_module = ModuleType("__main__")
    _STATE.replaced_main = sys.modules["__main__"]  # whose code is running
    vars(main_module).update(
        __builtins__=builtins, __spec__=None, __cached__=None, __package__=None
    )
    vars(main_module).update(attributes)
    sys.modules["__main__"] = main_module
    exec(code, vars(main_module))  # noqa: S102 - the program to run


if __name__ == "__main__":
    # As a module of its own name: what is installed must be seen by who imports it.
    sys.exit(importlib.import_module("safeweights.compat").main())
