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

The distribution stays installed, with its version: clients look for it (`importlib.metadata`). Where
it is not, modules of its name are made, and `safetensors.__version__` says `API_VERSION`.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import runpy
import sys
import threading
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from .errors import SafetensorError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["API_VERSION", "install", "installed", "main", "uninstall"]

API_VERSION: Final = "0.8.0"
"""The version of the reference whose names and behaviour these are."""

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
    if trust is not None:
        from .trust.verifier import set_default

        set_default(trust)
        _STATE.trusting = True
    with _STATE.changing:
        with _STATE.lock:
            if _STATE.finder is not None:
                return
            _STATE.finder = _Finder()
            _STATE.already_ours = {
                (id(module), name) for module, name, _ in _names_bound_to(_ours_by_id())
            }
            sys.meta_path.insert(0, _STATE.finder)
        importlib.import_module(PACKAGE)  # which a thread may be doing that waits for the lock
        with _STATE.lock:
            for name, module in list(sys.modules.items()):
                if module is not None and _is_ours_to_bind(name):
                    _bind(module)


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
    names = _FUNCTIONS + (_TORCH if face == "torch" else ())
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
    sys.argv = words
    if module is not None:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    else:
        # `python SCRIPT` looks for modules beside the script, `python -m` in the current folder.
        if not getattr(sys.flags, "safe_path", False):
            sys.path[0] = os.path.dirname(os.path.realpath(words[0]))
        runpy.run_path(words[0], run_name="__main__")
    return 0


if __name__ == "__main__":
    # As a module of its own name: what is installed must be seen by who imports it.
    sys.exit(importlib.import_module("safeweights.compat").main())
