"""Errors in the words of the reference, which programs match, and with its ``args``."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..errors import FormatError, described, quote
from ..text import wrapper_prefix, wrapper_sentence

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["advice", "opening", "prefixed", "reading", "saving", "warn_of_wrappers", "worded"]


def advice(name: object, value: object, maker: str = "") -> str:
    """What to do with a value that is to be saved and is no array: the end of a message.

    Args:
        name: Its name.
        value: The value.
        maker: A function that makes arrays of numbers and lists.

    >>> advice("opt", {"lr": 0.1})
    ': save that dictionary by itself, or give one flat dictionary, with names such as `opt.lr`'
    """
    if isinstance(value, Mapping):
        inner = f"{name}.{next(iter(value), 'weight')}"
        flat = f"one flat dictionary, with names such as {quote(inner)}"
        return f": save that dictionary by itself, or give {flat}"
    if value is None or isinstance(value, str | bool):
        return ": leave it out, or put it into the metadata, as text"
    if isinstance(value, int | float | complex | list | tuple):
        made = f"make an array of it with {maker}" if maker else "make a tensor of it"
        return f": {made}, or put it into the metadata, as text"
    return f": convert it with {maker}" if maker else ""


@contextmanager
def prefixed(words: str) -> Iterator[None]:
    """Begin the message of a `FormatError` with the reference's words for what was being done."""
    try:
        yield
    except FormatError as error:
        error.message = f"{words}{error.message}"
        raise


def worded(error: BaseException) -> BaseException:
    """`error` itself; of a system error, a copy whose ``args`` is one string."""
    text = str(error)
    if not isinstance(error, OSError) or error.args == (text,):
        return error
    copy = described(error, text)
    copy.__cause__ = error
    return copy


@contextmanager
def reading() -> Iterator[None]:
    """Give system errors one string as their ``args``; class, errno and file name stay."""
    try:
        yield
    except OSError as error:
        raise worded(error) from error


class opening:  # noqa: N801 - used as a function
    """Reword the errors of opening a file.

    Three generators as context managers take 8 us, which every file would pay: they serve errors only.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is not None:
            with _opening():
                raise error


@contextmanager
def _opening() -> Iterator[None]:
    try:
        with prefixed("Error while deserializing header: "), reading():
            yield
    except FileNotFoundError as error:
        if error.errno is None:
            raise
        _, _, more = (error.strerror or "").partition("; ")
        words = f"No such file or directory: {error.filename}{more and f'; {more}'}"
        raise described(error, words) from error


@contextmanager
def saving() -> Iterator[None]:
    """Reword the errors of saving; a system error becomes a `SafetensorError` too, as in the reference."""
    words = "Error while serializing: "
    try:
        with prefixed(words):
            yield
    except OSError as error:
        what = str(error)
        if error.errno is not None:
            where = "" if error.filename is None else f' at path "{error.filename}"'
            what = f"I/O error: {error.strerror} (os error {error.errno}){where}"
        raise described(error, words + what, in_family=True) from error


def warn_of_wrappers(names: Iterable[str]) -> None:
    """Warn the caller of this package if all names to be saved are those of a module around the model."""
    if not (prefix := wrapper_prefix(names)):
        return
    level, frame = 1, sys._getframe()  # noqa: SLF001 - as `warnings.warn` finds the caller
    package = __name__.partition(".")[0]
    while frame.f_back is not None and frame.f_globals["__name__"].partition(".")[0] == package:
        level, frame = level + 1, frame.f_back
    inner = ".".join(["model", *prefix.rstrip(".").split(".")])
    advice = f"save `{inner}`, the module inside, or its state_dict()"
    warnings.warn(f"{wrapper_sentence(prefix)}: {advice}", UserWarning, stacklevel=level)
