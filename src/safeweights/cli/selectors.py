"""``TENSOR[SLICE]`` -> a name and an index expression, by a grammar of its own: nothing is evaluated.

The slice is NumPy's basic indexing: integers, slices, ``...``, ``None`` or ``newaxis``, separated by
commas. Names may contain brackets themselves: the whole text is tried as a name first.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

if TYPE_CHECKING:
    from collections.abc import Container

__all__ = ["Choice", "parse_slice", "split"]

# 2^64 has 20 digits; a longer number is no index, and converting it would be slow.
_NUMBER: Final = r"[+-]?[0-9]{1,20}"
_INTEGER = re.compile(_NUMBER).fullmatch
_SLICE = re.compile(rf"({_NUMBER})?\s*:\s*({_NUMBER})?(?:\s*:\s*({_NUMBER})?)?").fullmatch
_WORDS: Final = {"...": Ellipsis, "None": None, "newaxis": None, "np.newaxis": None}


class Choice(NamedTuple):
    """What somebody asked for.

    Attributes:
        name: A tensor's name.
        selection: The slice as it was written, brackets included; None for the whole tensor.
        expression: What it means.
    """

    name: str
    selection: str | None
    expression: Any


def split(text: str, names: Container[str]) -> Choice:
    """Take ``TENSOR[SLICE]`` apart.

    Args:
        text: What was typed.
        names: The tensors there are. Where the whole text is one of them, it is the name.

    Raises:
        click.UsageError: The slice cannot be understood.

    >>> split("a[0][1:, ::2]", {"a[0]"})
    Choice(name='a[0]', selection='[1:, ::2]', expression=(slice(1, None, None), slice(None, None, 2)))
    """
    opening = text.rfind("[")
    if text in names or opening < 0 or not text.endswith("]"):
        return Choice(text, None, Ellipsis)
    return Choice(text[:opening], text[opening:], parse_slice(text[opening + 1 : -1]))


def parse_slice(text: str) -> tuple[Any, ...]:
    """What stands between the brackets, as the tuple that NumPy would be given.

    Raises:
        click.UsageError: Something is neither integer, slice, ``...`` nor ``None``.

    >>> parse_slice("0, :, ::-2, ...")
    (0, slice(None, None, None), slice(None, None, -2), Ellipsis)
    """
    items = text.split(",")
    if len(items) > 1 and not items[-1].strip():
        del items[-1]  # a[0,] is a[0]
    return tuple(_parse_item(item.strip()) for item in items)


def _parse_item(item: str) -> Any:
    if item in _WORDS:
        return _WORDS[item]
    if _INTEGER(item):
        return int(item)
    match = _SLICE(item)
    if match is None:
        raise click.UsageError(
            f"cannot understand {item!r} in a slice: write integers, START:STOP:STEP, ... or None, "
            "separated by commas"
        )
    return slice(*(None if bound is None else int(bound) for bound in match.groups()))
