"""The family of exceptions.

Rules:
- A fault in the content of a file or in the meaning of a request is a `SafetensorError`. A failure of
  the operating system keeps its `OSError` class and errno, a framework's own error passes unchanged.
- Subclasses also inherit the builtin that callers of the reference catch (``except KeyError``).
- ``args`` is one string, equal to ``str(error)``: programs search ``error.args[0]``.
- ``type(error).__name__`` is ``"SafetensorError"`` where the reference raises its only class, because
  programs compare it; ``__qualname__``, which tracebacks and pickles use, tells the classes apart.

This module imports nothing of the package.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False  # importing typing would be most of the cost of `import safeweights`
if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "ChangedError",
    "ClosedError",
    "DTypeError",
    "DeviceError",
    "FormatError",
    "IndexTypeError",
    "LayoutError",
    "MissingDependencyError",
    "MissingPluginError",
    "NameTypeError",
    "NoDataError",
    "RankError",
    "SafetensorError",
    "SelectionError",
    "SharedMemoryError",
    "StateDictError",
    "StepError",
    "TensorNotFoundError",
    "UnsupportedError",
]


def quote(text: str, limit: int = 120) -> str:
    r"""Escape and shorten `text` for a message, in backquotes.

    Names come from untrusted files: control characters, bidirectional overrides and lone surrogates
    must not reach a terminal or a log (CWE-150), and a name of 1 MB must not fill one.

    >>> quote("a\x1b[2Jb")
    '`a\\x1b[2Jb`'
    """
    shown = text if len(text) <= limit else f"{text[: limit - 1]}…"
    if not shown.isprintable():
        shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in shown)
    return f"`{shown}`"


def shown(path: str) -> str:
    """A path as it is; a URL without what may be a credential in it: user information and the query.

    >>> shown("https://user:secret@example.org/m.safetensors?sig=1"), shown("a?b")
    ('https://example.org/m.safetensors', 'a?b')
    """
    scheme, mark, rest = path.partition("://")
    name = scheme.replace("+", "a").replace("-", "a").replace(".", "a")
    if not (mark and name.isascii() and name.isalnum() and name[0].isalpha()):
        return path
    host, slash, name = rest.partition("#")[0].partition("?")[0].partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{name}"


class SafetensorError(Exception):
    """A fault in a file or a request: what is wrong, where, and what to do about it.

    Args:
        values: The message; other values are kept as `Exception` keeps them.
        path: The file concerned; of a URL what `shown` gives.
        tensor: Name of the tensor concerned.
        offset: Byte offset in the file.

    Attributes:
        message: The message without the location. Setting it, `path` or `offset` updates ``args``.
        path: See above.
        tensor: See above.
        offset: See above.
    """

    def __init__(
        self,
        *values: object,
        path: str | os.PathLike[str] | None = None,
        tensor: str | None = None,
        offset: int | None = None,
    ) -> None:
        super().__init__(*values)
        self._message = Exception.__str__(self)
        self._path = None if path is None else shown(os.fsdecode(path))
        self._offset = offset
        self.tensor = tensor
        if path is not None or offset is not None:
            self._describe()

    def _text(self) -> str:
        """What ``str`` gives."""
        where = []
        if self._path is not None:
            where.append(f"in {quote(self._path, 400)}")
        if self._offset is not None:
            where.append(f"at byte {self._offset}")
        return f"{self._message} ({' '.join(where)})" if where else self._message

    def _describe(self) -> None:
        self.args = (self._text(),)

    @property
    def message(self) -> str:
        """The message without the location."""
        return self._message

    @message.setter
    def message(self, message: str) -> None:
        self._message = message
        self._describe()

    @property
    def path(self) -> str | None:
        """The file concerned."""
        return self._path

    @path.setter
    def path(self, path: str | None) -> None:
        self._path = None if path is None else shown(path)
        self._describe()

    @property
    def offset(self) -> int | None:
        """Byte offset in the file."""
        return self._offset

    @offset.setter
    def offset(self, offset: int | None) -> None:
        self._offset = offset
        self._describe()

    def __str__(self) -> str:
        # Not the mixed-in builtin's: that of KeyError is a repr.
        return Exception.__str__(self)

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions cross process pools; by default their keyword-only fields would be lost.
        return _rebuilt, (type(self), self.args, self.__dict__)


def _rebuilt(
    kind: type[SafetensorError], args: tuple[object, ...], state: dict[str, Any]
) -> SafetensorError:
    error = kind.__new__(kind)
    super(SafetensorError, error).__init__(*args)
    error.__dict__.update(state)
    return error


class FormatError(SafetensorError, ValueError):
    """The content of a file breaks a rule of its format.

    Attributes:
        rule: Stable identifier of the broken rule, e.g. ``"duplicate-key"``. `safeweights.format.rules`
            lists those of safetensors headers; other formats have their own (``"index"``, ``"pickle"``,
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


class ChangedError(SafetensorError):
    """A file, or a file of a checkpoint, was replaced between two looks at it; open it again."""


class TensorNotFoundError(SafetensorError, KeyError):
    """The file has no tensor of that name."""


class NameTypeError(TensorNotFoundError, TypeError):
    """The name of a tensor is not a string."""


class SelectionError(SafetensorError, IndexError):
    """An index expression is invalid for the tensor's shape."""


class StepError(SelectionError, ValueError):
    """A slice whose step is zero."""


class IndexTypeError(SelectionError, TypeError):
    """An index of a type that torch does not take."""


class UnsupportedError(SafetensorError, TypeError):
    """An argument, type or layout that the format or the framework cannot express."""


class DTypeError(UnsupportedError, KeyError):
    """An element type that the format or the framework does not have."""


class DeviceError(SafetensorError, RuntimeError):
    """A device that does not exist, or on which a tensor cannot be placed."""


class LayoutError(SafetensorError, ValueError):
    """The writer does not accept a tensor's memory layout: it is sparse or not contiguous."""


class SharedMemoryError(SafetensorError, RuntimeError):
    """Tensors share memory, which the format cannot express."""


class NoDataError(SafetensorError, NotImplementedError):
    """A tensor has no values, for example on torch's meta device, but values are needed."""


class StateDictError(SafetensorError, RuntimeError):
    """A file and a module do not have the same tensors."""


class ClosedError(SafetensorError, ValueError):
    """The file is closed."""

    def __init__(self, message: str = "File is closed", **where: Any) -> None:
        super().__init__(message, **where)


class RankError(SafetensorError, RuntimeError):
    """Ranks that save or load together could not: one failed, or did not come in time.

    Attributes:
        ranks: Which; empty where that is not known.
    """

    def __init__(self, message: str, *, ranks: tuple[int, ...] = (), **where: Any) -> None:
        super().__init__(message, **where)
        self.ranks = ranks


class MissingDependencyError(SafetensorError, ImportError):
    """An optional package is missing; the message names the extra that installs it."""


class MissingPluginError(DeviceError, MissingDependencyError):
    """A device that another package adds to the framework; the message names the package."""


for _kind in (
    FormatError, TensorNotFoundError, SelectionError, StepError, UnsupportedError, DTypeError,
    DeviceError, ClosedError,
):  # fmt: skip
    _kind.__name__ = SafetensorError.__name__  # see the rules above
del _kind


def described(error: OSError, message: str, *, in_family: bool = False) -> OSError:
    """A copy of a system error whose ``args`` is one string, as clients of the reference expect.

    Args:
        error: As the operating system raised it.
        message: What ``str`` of the result gives.
        in_family: Make the result a `SafetensorError` too.

    Returns:
        An instance of a subclass of ``type(error)`` with its errno and file names. It can be pickled.
        An error of a class that others construct in their own way is returned as it is.
    """
    if "__new__" in vars(type(error)) and type(error).__module__ != OSError.__module__:
        return error
    fields = (error.errno, error.strerror, error.filename, error.filename2)
    kind = type(error)
    if isinstance(error, _Described):
        kind, in_family = error.kind, in_family or isinstance(error, SafetensorError)
    return _restored(kind, in_family, message, fields, error.__dict__)


class _Described:
    """Makes ``str`` of an OSError the string in its ``args``.

    Attributes:
        kind: The class of the system error.
    """

    kind: type[OSError]

    def __str__(self) -> str:
        return Exception.__str__(self)  # type: ignore[arg-type]

    def __reduce__(self) -> tuple[Any, ...]:
        assert isinstance(self, OSError)
        fields = (self.errno, self.strerror, self.filename, self.filename2)
        in_family = isinstance(self, SafetensorError)
        return _restored, (self.kind, in_family, self.args[0], fields, self.__dict__)


_DESCRIBED: dict[tuple[type[OSError], bool], Any] = {}
"""(class of a system error, whether in the family) -> the subclass that `described` makes of it."""


def _restored(
    kind: type[OSError],
    in_family: bool,
    message: str,
    fields: tuple[Any, ...],
    state: dict[str, Any],
) -> OSError:
    made_of: Any = _DESCRIBED.get((kind, in_family))
    if made_of is None:
        family = (SafetensorError,) if in_family else ()
        name, module = (family or (kind,))[0].__name__, (family or (kind,))[0].__module__
        namespace = {"kind": kind, "__module__": module}
        made_of = type(name, (_Described, *family, kind), namespace)
        _DESCRIBED[kind, in_family] = made_of
    error: OSError = made_of.__new__(made_of)
    error.__dict__.update(state)
    error.errno, error.strerror, error.filename, error.filename2 = fields
    if isinstance(error, SafetensorError):
        error._path = error._offset = error.tensor = None  # noqa: SLF001
        error.message = message
    error.args = (message,)
    return error
