"""The stored parts of quantised weights: their shapes checked, small ones read, settings taken from JSON.

What a scheme knows of a checkpoint is a `Names`: its tensors, the quantiser's settings and the metadata.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from ...checkpoint import Tensor
from ...errors import FormatError, quote
from .weight import Range, fault, numbers, read_box

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ...format.indexing import Runs
    from .weight import Weight

__all__ = [
    "Found",
    "Names",
    "Reshaped",
    "integer",
    "one_number",
    "read_all",
    "require_shape",
    "require_type",
]

Array = np.ndarray[Any, Any]

_SMALL_MAX: Final = 1 << 20
"""Bytes that a part which is read as a whole may have: tables, JSON, one scale."""


class Found(NamedTuple):
    """A quantised weight that was found, nothing of it read.

    Attributes:
        name: Name of the dense tensor.
        scheme: What it is taken for.
        parts: Names of the stored tensors that it replaces; the dense tensor takes the first one's place.
        build: Checks the parts, and makes the weight.
    """

    name: str
    scheme: str
    parts: tuple[str, ...]
    build: Callable[[], Weight]


class Names(NamedTuple):
    """A checkpoint as schemes see it.

    Attributes:
        tensors: Name -> tensor.
        settings: The quantiser's settings (``quantization_config``); empty if there are none.
        metadata: Metadata of the file.
        chosen: The scheme that the caller chose; None for what names, types and settings say.
        path: The checkpoint, for messages.
    """

    tensors: Mapping[str, Tensor]
    settings: Mapping[str, Any]
    metadata: Mapping[str, str]
    chosen: str | None = None
    path: str = ""

    def present(self, *names: str) -> tuple[str, ...]:
        """Those of `names` that the checkpoint has."""
        return tuple(name for name in names if name in self.tensors)

    def setting(self, key: str) -> Any:
        """One of the settings; None if it is not given."""
        return self.settings.get(key)

    def fault(self, message: str) -> FormatError:
        """The error that the settings cannot be right."""
        return FormatError(
            f"the settings of the quantiser (quantization_config) are wrong: {message}",
            rule="quantization-config",
            path=self.path or None,
        )


def integer(names: Names, key: str, least: int, most: int) -> int | None:
    """A setting that must be an integer, None if it is absent or null.

    Raises:
        FormatError: It is something else, or outside the range.
    """
    value = names.setting(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        shown = quote(str(value)[:80])
        raise names.fault(f"{key} is {shown}, but must be an integer from {least} to {most}")
    return value


def require_shape(tensor: Tensor, *shapes: tuple[int, ...]) -> None:
    """Check the shape of a stored part.

    Raises:
        FormatError: It has none of `shapes`.
    """
    if tensor.shape not in shapes:
        wanted = " or ".join(str(list(shape)) for shape in dict.fromkeys(shapes))
        raise fault(
            tensor, f"shape is {list(tensor.shape)}, but must be {wanted}", rule="quantised-shape"
        )


def require_type(tensor: Tensor, *codes: str) -> None:
    """Check the element type of a stored part.

    Raises:
        FormatError: It is none of `codes`.
    """
    if tensor.dtype not in codes:
        raise fault(
            tensor,
            f"element type is {tensor.dtype}, but must be {' or '.join(codes)}",
            rule="quantised-type",
        )


def read_all(tensor: Tensor) -> Array:
    """All elements of a small part, as they are stored.

    Raises:
        FormatError: It has more than a MiB.
    """
    if tensor.nbytes > _SMALL_MAX:
        raise fault(tensor, f"{tensor.nbytes:,} bytes are too many for this part of a weight")
    return read_box(tensor, *(Range(0, size) for size in tensor.shape))


def one_number(tensor: Tensor) -> float:
    """The value of a tensor with one element.

    Raises:
        FormatError: It has several, or the value is 0, NaN or infinite.
    """
    if math.prod(tensor.shape) != 1:
        raise fault(
            tensor,
            f"shape is {list(tensor.shape)}, but must hold one number",
            rule="quantised-shape",
        )
    value = float(numbers(tensor, read_all(tensor).reshape(1))[0])
    if not math.isfinite(value) or value == 0:
        raise fault(tensor, f"the scale is {value}", rule="quantised-scale")
    return value


class Reshaped(Tensor):
    """A stored tensor with another shape; the bytes are the same."""

    __slots__ = ("_original",)

    def __init__(self, original: Tensor, shape: tuple[int, ...]) -> None:
        super().__init__(original.name, original.dtype, shape, original.nbytes)
        self._original = original

    @property
    def source(self) -> Any:
        """The file, for messages."""
        return getattr(self._original, "source", None)

    def read_into(self, buffer: Any, offset: int = 0) -> None:
        self._original.read_into(buffer, offset)

    def _read_runs(self, runs: Runs, out: memoryview) -> None:
        self._original._read_runs(runs, out)  # noqa: SLF001 - as below

    def _read_range(self, offset: int, length: int) -> memoryview:
        return self._original._read_range(offset, length)  # noqa: SLF001 - a view of the same class
