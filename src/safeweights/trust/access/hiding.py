"""Keys and passphrases that programs do not show by accident.

Reporters of errors (cgitb, Sentry, rich) print the variables of every frame. So key material is of types
whose repr shows nothing, and functions that take apart the text of a key let their errors go without the
frames in which that text is a variable. It protects logs, not memory.
"""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, TypeVar

from ...errors import SafetensorError
from ...storage.encrypted import Secret

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import ParamSpec

    P = ParamSpec("P")

__all__ = ["Secret", "SecretText", "without_frames"]

R = TypeVar("R")


class SecretText(str):
    """Text that is not shown.

    >>> SecretText("open sesame")
    SecretText(...)
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return "SecretText(...)"


def without_frames(function: Callable[P, R]) -> Callable[P, R]:
    """Have errors of this package leave `function` without its frames, whose variables are secret."""

    @wraps(function)
    def wrapped(*args: P.args, **given: P.kwargs) -> R:
        try:
            return function(*args, **given)
        except SafetensorError as error:
            caught = error
        del args, given
        caught.__context__ = None  # what led to it has the same frames
        raise caught.with_traceback(None)

    return wrapped
