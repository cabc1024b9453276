"""What the format requires: the rules, the limits, and one tensor's record.

`entries` and `header` check these rules; `RULES` names them for messages, documentation and the
conformance vectors.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple

from ..errors import FormatError
from .dtypes import BITS
from .strictjson import MAX_UINT

if TYPE_CHECKING:
    from collections.abc import Sequence

PREFIX: Final = 8
"""Bytes of the length field that begins every file."""

MAX_HEADER: Final = 100_000_000
"""Most bytes of a header; the format's own limit."""

MAX_RANK: Final = 64
"""Most dimensions of a tensor. The format has no limit; NumPy and PyTorch end at 64."""

MAX_METADATA: Final = 100_000
"""Most keys of `__metadata__`. Ours: real files have under a hundred."""

MAX_EXTRA: Final = 1 << 20
"""Most bytes that unknown fields, and entries with escapes, may take in one header. Ours."""

MAX_EXTRA_FIELDS: Final = 100_000
"""Most unknown fields in one header. Ours."""

MAX_PROBLEMS: Final = 1000
"""`problems` stops after this many."""

METADATA_KEY: Final = "__metadata__"

RULES: Final[dict[str, str]] = {
    "header-too-small": "a file begins with 8 bytes that give the length of its header",
    "header-too-large": "a header takes at most 100,000,000 bytes",
    "header-length": "the header ends within the file",
    "utf-8": "the header is UTF-8",
    "json": "the header is one JSON object (RFC 8259), followed by nothing but white space",
    "duplicate-key": "no key occurs twice in one object",
    "entry": "a tensor is an object of dtype, shape and data_offsets",
    "dtype": "dtype is one of the format's 22 codes",
    "integer": "dimensions and offsets are integers of 0 to 2^64-1, without sign, point or exponent",
    "rank": f"a tensor has at most {MAX_RANK} dimensions",
    "metadata": "__metadata__ maps strings to strings",
    "metadata-limit": f"__metadata__ has at most {MAX_METADATA:,} keys",
    "extra-limit": f"unknown and escaped fields take at most {MAX_EXTRA:,} bytes, are at most "
    f"{MAX_EXTRA_FIELDS:,}, and nest at most 125 deep",
    "offsets": "tensors, sorted by offset, follow one another without hole or overlap",
    "overflow": "a tensor's size in bits is below 2^64",
    "byte-boundary": "a tensor of a sub-byte type fills whole bytes",
    "size": "data_offsets span exactly the bytes that dtype and shape need",
    "coverage": "the tensors cover the data to the end of the file",
    "strict-space": "(strict) the header begins with `{` and is padded with spaces only",
    "strict-extra": "(strict) a tensor has no fields but dtype, shape and data_offsets",
}
"""Identifier -> the rule in one sentence. Those called strict are not the format's, but good habit."""


class TensorInfo(NamedTuple):
    """What a header says of one tensor.

    Attributes:
        dtype: Code of the element type, e.g. ``"BF16"``.
        shape: Number of elements along each axis; ``()`` for a scalar.
        begin: First byte, counted from the beginning of the data.
        end: One past the last byte.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        """Bytes the tensor takes."""
        return self.end - self.begin

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


class Stop(Exception):
    """Nothing more can be found."""


class Report:
    """Where findings go: the first is raised, or all are collected."""

    def __init__(self, path: str | None, *, collect: bool = False, strict: bool = False) -> None:
        self.path = path
        self.collect = collect
        self.strict = strict
        self.found: list[FormatError] = []

    def __call__(
        self, rule: str, message: str, *, tensor: str | None = None, at: int | None = None
    ) -> None:
        offset = None if at is None else PREFIX + at
        error = FormatError(message, rule=rule, path=self.path, tensor=tensor, offset=offset)
        if not self.collect:
            raise error
        self.found.append(error)
        if len(self.found) >= MAX_PROBLEMS:
            raise Stop


def byte_count(dtype: str, shape: Sequence[int]) -> int | None:
    """Bytes of a tensor; None where that overflows 64 bits or is no whole number of bytes."""
    bits = math.prod(shape) * BITS[dtype]
    # The reference multiplies in order with overflow checks: a late zero does not heal.
    if bits > MAX_UINT or (bits == 0 and overflows(shape)):
        return None
    return None if bits & 7 else bits >> 3


def overflows(shape: Sequence[int]) -> bool:
    """Whether the number of elements exceeds 64 bits on the way, though a later 0 may undo it."""
    count = 1
    for dim in shape:
        count *= dim
        if count > MAX_UINT:
            return True
    return False
