"""The one family of exceptions.

Every failure that is about the *content* of a file or the *meaning* of a request is a
`SafetensorError`; a failure of the operating system stays the `OSError` it was. Subclasses mix in
the builtin that a caller would expect, so ``except KeyError`` around a lookup keeps working.

This module imports nothing of the package.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False  # importing typing would be most of the cost of `import safeweights`
if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "ClosedError",
    "FormatError",
    "LayoutError",
    "MissingDependencyError",
    "NoDataError",
    "SafetensorError",
    "SelectionError",
    "SharedMemoryError",
    "StateDictError",
    "TensorNotFoundError",
    "UnsupportedError",
]


def quote(text: str, limit: int = 120) -> str:
    r"""`text` as it may be shown to a person: escaped, bounded, in backquotes.

    Names come from files nobody looked at; control characters, bidirectional overrides and lone
    surrogates must not reach a terminal or a log (CWE-150), and a name of 1 MB must not fill one.

    >>> quote("a\x1b[2Jb")
    '`a\\x1b[2Jb`'
    """
    shown = text if len(text) <= limit else f"{text[: limit - 1]}…"
    if not shown.isprintable():
        shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in shown)
    return f"`{shown}`"


class SafetensorError(Exception):
    """What is wrong, where it is, and what to do about it.

    Attributes:
        message: The sentence without its location.
        path: The file, when there is one.
        tensor: The tensor's name, when the fault belongs to one.
        offset: Byte offset in the file at which the fault was seen.
    """

    def __init__(
        self,
        message: str = "",
        *,
        path: str | None = None,
        tensor: str | None = None,
        offset: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.path = None if path is None else os.fsdecode(path)
        self.tensor = tensor
        self.offset = offset

    def __str__(self) -> str:
        where = []
        if self.path is not None:
            where.append(f"in {quote(self.path, 400)}")
        if self.offset is not None:
            where.append(f"at byte {self.offset}")
        return f"{self.message} ({' '.join(where)})" if where else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions cross process pools; the default would drop the keyword-only fields. An
        # ImportError keeps its path outside its dictionary.
        return type(self), (self.message,), {**self.__dict__, "path": self.path}


class FormatError(SafetensorError, ValueError):
    """The bytes break a rule of the format.

    Attributes:
        rule: Stable identifier of the broken rule, e.g. ``"duplicate-key"``. Those of a header are listed
            in `safeweights.format.header.RULES`; other files have their own (``"index"``, ``"pickle"``,
            ``"zip"`` ...).
    """

    def __init__(
        self,
        message: str,
        *,
        rule: str = "format",
        path: str | None = None,
        tensor: str | None = None,
        offset: int | None = None,
    ) -> None:
        super().__init__(message, path=path, tensor=tensor, offset=offset)
        self.rule = rule


class TensorNotFoundError(SafetensorError, KeyError):
    """No tensor of that name."""


class SelectionError(SafetensorError, IndexError):
    """An index expression that the tensor's shape does not allow."""


class UnsupportedError(SafetensorError, TypeError):
    """A type, layout or device that cannot be expressed in the format or in the framework."""


class LayoutError(SafetensorError, ValueError):
    """A tensor whose memory layout the writer refuses: sparse, or not contiguous."""


class SharedMemoryError(SafetensorError, RuntimeError):
    """Tensors that share memory, which the format cannot express."""


class NoDataError(SafetensorError, NotImplementedError):
    """A tensor without values, such as one on torch's meta device, where values are needed."""


class StateDictError(SafetensorError, RuntimeError):
    """A file and a module that do not have the same tensors."""


class ClosedError(SafetensorError, ValueError):
    """The file was closed before this call."""

    def __init__(self, message: str = "File is closed", **where: Any) -> None:
        super().__init__(message, **where)


class MissingDependencyError(SafetensorError, ImportError):
    """An optional package is needed; the message names the extra that installs it."""
