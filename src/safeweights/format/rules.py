"""Rules and limits of the format, and `TensorInfo`, the record of one tensor.

`entries` and `header` check the rules. `RULES` gives each an identifier, which error messages, the
documentation and the conformance vectors use. Source: README of safetensors, section "Format"; what it
leaves open follows the reference's parser (safetensors 0.8). Limits marked "ours" are stricter.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple

from ..errors import FormatError
from .dtypes import BITS

if TYPE_CHECKING:
    from collections.abc import Sequence

PREFIX: Final = 8
"""Bytes of the length field at the beginning of every file."""

MAX_HEADER: Final = 100_000_000
"""Maximum size of a header in bytes; the format's own limit."""

MAX_UINT: Final = 2**64 - 1
"""Largest dimension and offset: the format's integers are those of 64 bits."""

MAX_RANK: Final = 64
"""Maximum number of dimensions. Ours: the format has no limit, NumPy and PyTorch have this one."""

MAX_METADATA: Final = 100_000
"""Maximum number of keys in `__metadata__`. Ours: real files have fewer than a hundred."""

MAX_EXTRA: Final = 1 << 20
"""Maximum total bytes of unknown fields and of entries with escapes in one header. Ours."""

MAX_EXTRA_FIELDS: Final = 100_000
"""Maximum number of unknown fields in one header. Ours."""

MAX_PROBLEMS: Final = 1000
"""`problems` stops after this many."""

METADATA_KEY: Final = "__metadata__"

RULES: Final[dict[str, str]] = {
    "header-too-small": "a file begins with 8 bytes that give the length of its header",
    "header-too-large": "a header has at most 100,000,000 bytes",
    "header-length": "the header ends within the file",
    "utf-8": "the header is UTF-8",
    "json": "the header is one JSON object (RFC 8259), followed by nothing but white space",
    "duplicate-key": "no key occurs twice in one object",
    "entry": "a tensor's entry is an object with dtype, shape and data_offsets",
    "dtype": "dtype is one of the format's 22 codes",
    "integer": "dimensions and offsets are integers from 0 to 2^64-1, without sign, point or exponent",
    "rank": f"a tensor has at most {MAX_RANK} dimensions",
    "metadata": "__metadata__ maps strings to strings",
    "metadata-limit": f"__metadata__ has at most {MAX_METADATA:,} keys",
    "extra-limit": "a header has at most "
    f"{MAX_EXTRA_FIELDS:,} unknown fields, nested at most 125 deep; they and fields with escapes have at "
    f"most {MAX_EXTRA:,} bytes",
    "offsets": "tensors, sorted by offset, are contiguous from 0, without hole or overlap",
    "overflow": "a tensor's size in bits is below 2^64",
    "byte-boundary": "a tensor of a sub-byte type fills whole bytes",
    "size": "data_offsets span exactly the bytes that dtype and shape need",
    "coverage": "the tensors cover the data to the end of the file",
    "strict-space": "(strict) the header begins with `{` and is padded with spaces only",
    "strict-extra": "(strict) a tensor's entry has no fields but dtype, shape and data_offsets",
}
"""Identifier -> the rule in one sentence. The format does not require the rules marked (strict)."""


class TensorInfo(NamedTuple):
    """The entry of one tensor in a header.

    Attributes:
        dtype: Code of the element type, e.g. ``"BF16"``.
        shape: Number of elements along each axis; ``()`` for a scalar.
        begin: Offset of the first byte from the beginning of the data.
        end: Offset of one past the last byte.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        """Size of the tensor in bytes."""
        return self.end - self.begin

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


class Stop(Exception):
    """Ends a search for problems: the rest cannot be read, or there are too many."""


class Problems:
    """Receives problems: raises the first, or collects them.

    Attributes:
        found: The problems collected, at most `MAX_PROBLEMS`.

    Args:
        path: Name of the file, for the messages.
        collect: Collect problems instead of raising the first; after `MAX_PROBLEMS`, raise `Stop`.
        strict: Check the rules marked (strict) too.
    """

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
    """Size of a tensor in bytes; None if it overflows 64 bits or is not a whole number of bytes."""
    bits = math.prod(shape) * BITS[dtype]
    # The reference multiplies the dimensions in order and checks each product: [2^40, 2^40, 0] overflows.
    if bits > MAX_UINT or (bits == 0 and overflows(shape)):
        return None
    return None if bits & 7 else bits >> 3


def overflows(shape: Sequence[int]) -> bool:
    """Whether a product of the first dimensions exceeds 64 bits, even if a later dimension is 0."""
    count = 1
    for dim in shape:
        count *= dim
        if count > MAX_UINT:
            return True
    return False
