"""Has a new Python process use safeweights in the place of safetensors, because its parent does.

`safeweights.compat.install` puts this folder in front of PYTHONPATH and sets SAFEWEIGHTS_COMPAT; Python
imports a module of this name when it starts. A `sitecustomize` of the environment itself is run afterwards.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys

_FOLDER = os.path.dirname(os.path.abspath(__file__))


def _install() -> None:
    try:
        from safeweights.compat import _join
    except ImportError as error:
        print(  # noqa: T201
            f"safeweights.compat: {sys.executable} cannot import safeweights ({error}): this process uses "
            "the safetensors package itself, if any",
            file=sys.stderr,
        )
        return
    _join()


def _run_next() -> None:
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != _FOLDER]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", sys.path)
    if spec is None or spec.loader is None:
        return
    module = importlib.util.module_from_spec(spec)
    sys.modules["sitecustomize"] = module
    spec.loader.exec_module(module)


if os.environ.get("SAFEWEIGHTS_COMPAT"):
    _install()
_run_next()
