"""The safetensors format in pure Python: stricter, safer and fast.

A checkpoint is a mapping from names to tensors that have not been read yet: `open` gives it, `save`
writes it. `safe_open` and the modules `numpy`, `torch` ... offer what the `safetensors` package does.
`convert` and `scan` deal with other people's formats without executing them; `admit`, and ``trust=`` of
whatever loads, with whose weights these are.

>>> import numpy, safeweights, safeweights.numpy
>>> data = safeweights.numpy.save({"a": numpy.arange(6, dtype="f4").reshape(2, 3)})
>>> safeweights.open(data).info("a")
TensorInfo(dtype='F32', shape=(2, 3), begin=0, end=24)
"""

from __future__ import annotations

from importlib import import_module

from .errors import SafetensorError

TYPE_CHECKING = (
    False  # typing itself costs more to import than all of this: type checkers know the name
)
if TYPE_CHECKING:
    from typing import Any, Final

    from . import guard, trust
    from .checkpoint import Checkpoint, Tensor, save
    from .convert import convert, scan
    from .frameworks.handle import PySafeSlice, _safe_open_handle, safe_open
    from .frameworks.prefetch import PrefetchLoader, PrefetchPlan, TensorMeta, stream
    from .header import Header, TensorInfo
    from .opening import open
    from .serialization import TensorSpec, deserialize, serialize, serialize_file
    from .trust import admit

__version__ = "0.1.0"

__all__ = [
    "Checkpoint",
    "Header",
    "PrefetchLoader",
    "PrefetchPlan",
    "PySafeSlice",
    "SafetensorError",
    "Tensor",
    "TensorInfo",
    "TensorMeta",
    "TensorSpec",
    "__version__",
    "_safe_open_handle",
    "admit",
    "convert",
    "deserialize",
    "guard",
    "open",
    "safe_open",
    "save",
    "scan",
    "serialize",
    "serialize_file",
    "stream",
    "trust",
]

# Imported when first used: `import safeweights` costs a millisecond, not NumPy's eighty.
_HOMES: Final = {
    "Checkpoint": "checkpoint",
    "Header": "header",
    "PrefetchLoader": "frameworks.prefetch",
    "PrefetchPlan": "frameworks.prefetch",
    "PySafeSlice": "frameworks.handle",
    "Tensor": "checkpoint",
    "TensorInfo": "header",
    "TensorMeta": "frameworks.prefetch",
    "TensorSpec": "serialization",
    "_safe_open_handle": "frameworks.handle",
    "admit": "trust",
    "deserialize": "serialization",
    "open": "opening",
    "safe_open": "frameworks.handle",
    "save": "checkpoint",
    "scan": "convert",
    "serialize": "serialization",
    "serialize_file": "serialization",
    "stream": "frameworks.prefetch",
}
_MODULES: Final = ("convert", "guard", "trust")  # `convert` is one that can be called


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_MODULES})
