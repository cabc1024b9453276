"""Other people's checkpoints as safetensors, without executing anything in them.

`open` gives the tensors of a PyTorch, NumPy, joblib, Paddle, Flax, TensorFlow, Keras or GGUF file as
the mapping that the rest of the package works on; `convert` writes them as safetensors. Files that
are pickles are executed symbolically: no name in them is imported, no call made.
"""

from __future__ import annotations

from ..lazy import lazy_names

TYPE_CHECKING = False  # typing itself takes longer to import than this module
if TYPE_CHECKING:
    from ..storage.limits import DEFAULT_LIMITS, Limits
    from .converting import Options, convert
    from .foreign import ForeignCheckpoint
    from .formats import FORMATS
    from .opening import open
    from .record import Conversion
    from .scan_report import ScanFinding, ScanReport
    from .scanning import scan

__all__ = [
    "DEFAULT_LIMITS",
    "FORMATS",
    "Conversion",
    "ForeignCheckpoint",
    "Limits",
    "Options",
    "ScanFinding",
    "ScanReport",
    "convert",
    "open",
    "scan",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "DEFAULT_LIMITS": ".storage.limits",
        "Limits": ".storage.limits",
        "Conversion": "record",
        "FORMATS": "formats",
        "ScanFinding": "scan_report",
        "ForeignCheckpoint": "foreign",
        "Options": "converting",
        "ScanReport": "scan_report",
        "convert": "converting",
        "open": "opening",
        "scan": "scanning",
    },
)
