"""Parse ``TENSOR[SLICE]`` into a name and an index expression, without evaluating any code.

SLICE is NumPy's basic indexing: integers, slices, ``...``, ``None`` or ``newaxis``, separated by commas.
Tensor names may contain brackets: if the whole text is the name of a tensor, it is that tensor.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

if TYPE_CHECKING:
    from collections.abc import Container

__all__ = ["Choice", "parse_slice", "split"]

# 2^64 has 20 digits; a longer number is not an index, and int() is slow for very long text.
_NUMBER: Final = r"[+-]?[0-9]{1,20}"
_INTEGER = re.compile(_NUMBER).fullmatch
_SLICE = re.compile(rf"({_NUMBER})?\s*:\s*({_NUMBER})?(?:\s*:\s*({_NUMBER})?)?").fullmatch
_WORDS: Final = {"...": Ellipsis, "None": None, "newaxis": None, "np.newaxis": None}


class Choice(NamedTuple):
    """The parts of ``TENSOR[SLICE]``.

    Attributes:
        name: The tensor's name.
        selection: The text of the slice, brackets included; None for the whole tensor.
        expression: The slice as an index expression.
    """

    name: str
    selection: str | None
    expression: Any


def split(text: str, names: Container[str]) -> Choice:
    """Split ``TENSOR[SLICE]`` into name and slice.

    Args:
        text: The argument.
        names: Names of the existing tensors. A text that is one of them has no slice.

    Raises:
        click.UsageError: The slice is malformed.

    >>> split("a[0][1:, ::2]", {"a[0]"})
    Choice(name='a[0]', selection='[1:, ::2]', expression=(slice(1, None, None), slice(None, None, 2)))
    """
    opening = text.rfind("[")
    if text in names or opening < 0 or not text.endswith("]"):
        return Choice(text, None, Ellipsis)
    return Choice(text[:opening], text[opening:], parse_slice(text[opening + 1 : -1]))


def parse_slice(text: str) -> tuple[Any, ...]:
    """Parse the text between the brackets into an index expression.

    Raises:
        click.UsageError: An item is neither integer, slice, ``...`` nor ``None``.

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
            f"{item!r} is not a valid index: write integers, START:STOP:STEP, ... or None, "
            "separated by commas"
        )
    return slice(*(None if bound is None else int(bound) for bound in match.groups()))
