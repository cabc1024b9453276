"""The safetensors format in pure Python: stricter, safer and fast.

A checkpoint is a mapping from names to tensors that have not been read yet: `open` returns one, `save`
writes one. `safe_open` and the modules `numpy`, `torch` ... have the interface of the `safetensors`
package. `convert` and `scan` read other formats without executing code in them. `admit`, and the argument
``trust=`` of every function that loads, check signatures and policies.

>>> import numpy, safeweights, safeweights.numpy
>>> data = safeweights.numpy.save({"a": numpy.arange(6, dtype="f4").reshape(2, 3)})
>>> safeweights.open(data).info("a")
TensorInfo(dtype='F32', shape=(2, 3), begin=0, end=24)
"""

from __future__ import annotations

from .errors import SafetensorError
from .lazy import lazy_names

TYPE_CHECKING = False  # importing typing takes longer than the rest; type checkers know this name
if TYPE_CHECKING:
    from . import (  # noqa: F401 - for type checkers; not listed, so that `import *` imports none
        agents,
        checkpoint,
        compat,
        conformance,
        conversion,
        distributed,
        editing,
        flax,
        guard,
        jax,
        mlx,
        numpy,
        paddle,
        tensorflow,
        torch,
        trust,
    )
    from .checkpoint import Checkpoint, Tensor, Writer, save
    from .cli.batches import batch
    from .conversion import convert, scan
    from .conversion.opening import open
    from .derived.rearranging import Concat, Narrow, Stack, Transpose
    from .editing import edit
    from .format.header import Header, TensorInfo
    from .frameworks.handle import PySafeSlice, _safe_open_handle, safe_open
    from .frameworks.prefetch import PrefetchLoader, PrefetchPlan, TensorMeta, stream
    from .reports.admission import admit
    from .reports.checking import check
    from .reports.models import describe
    from .serialization import TensorSpec, deserialize, serialize, serialize_file
    from .storage.buffer_pool import release_idle
    from .trust.encryption import decrypt, encrypt
    from .trust.rekeying import rekey

__version__ = "0.1.0"

__all__ = [
    "Checkpoint",
    "Concat",
    "Header",
    "Narrow",
    "PrefetchLoader",
    "PrefetchPlan",
    "PySafeSlice",
    "SafetensorError",
    "Stack",
    "Tensor",
    "TensorInfo",
    "TensorMeta",
    "TensorSpec",
    "Transpose",
    "Writer",
    "__version__",
    "_safe_open_handle",
    "admit",
    "batch",
    "check",
    "convert",
    "decrypt",
    "describe",
    "deserialize",
    "edit",
    "encrypt",
    "guard",
    "open",
    "rekey",
    "release_idle",
    "safe_open",
    "save",
    "scan",
    "serialize",
    "serialize_file",
    "stream",
    "trust",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Checkpoint": "checkpoint",
        "Concat": "derived.rearranging",
        "Header": "format.header",
        "Narrow": "derived.rearranging",
        "PrefetchLoader": "frameworks.prefetch",
        "PrefetchPlan": "frameworks.prefetch",
        "PySafeSlice": "frameworks.handle",
        "Stack": "derived.rearranging",
        "Tensor": "checkpoint",
        "TensorInfo": "format.header",
        "TensorMeta": "frameworks.prefetch",
        "TensorSpec": "serialization",
        "Transpose": "derived.rearranging",
        "Writer": "checkpoint",
        "_safe_open_handle": "frameworks.handle",
        "admit": "reports.admission",
        "batch": "cli.batches",
        "check": "reports.checking",
        "describe": "reports.models",
        "convert": "conversion",
        "decrypt": "trust.encryption",
        "deserialize": "serialization",
        "encrypt": "trust.encryption",
        "edit": "editing",
        "open": "conversion.opening",
        "rekey": "trust.rekeying",
        "release_idle": "storage.buffer_pool",
        "safe_open": "frameworks.handle",
        "save": "checkpoint",
        "scan": "conversion",
        "serialize": "serialization",
        "serialize_file": "serialization",
        "stream": "frameworks.prefetch",
        "guard": "",
        "trust": "",
    },
    modules=(
        "agents", "checkpoint", "compat", "conformance", "conversion", "distributed", "editing", "flax",
        "jax", "mlx", "numpy", "paddle", "tensorflow", "torch",
    ),
)  # fmt: skip
