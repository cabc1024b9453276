"""Other people's checkpoints as safetensors, without executing anything in them.

`open` gives the tensors of a PyTorch, NumPy, joblib, Paddle, Flax, TensorFlow, Keras or GGUF file as
the mapping that the rest of the package works on; `convert` writes them as safetensors. Files that
are pickles are executed symbolically: no name in them is imported, no call made.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from .conversion import Options, convert
from .foreign import ForeignCheckpoint
from .formats import FORMATS, open
from .limits import DEFAULT_LIMITS, Limits
from .record import Conversion
from .scanning import Finding, Report, scan, scan_folder

__all__ = [
    "DEFAULT_LIMITS",
    "FORMATS",
    "Conversion",
    "Finding",
    "ForeignCheckpoint",
    "Limits",
    "Options",
    "Report",
    "convert",
    "open",
    "scan",
    "scan_folder",
]


class _Callable(ModuleType):
    """Makes ``safeweights.convert(...)`` and ``safeweights.convert.open(...)`` both work."""

    def __call__(self, *arguments: Any, **options: Any) -> Conversion:
        """Call `convert`."""
        return convert(*arguments, **options)


sys.modules[__name__].__class__ = _Callable
