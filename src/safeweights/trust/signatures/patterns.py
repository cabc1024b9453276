"""Patterns for the names of signers: e-mail addresses and URIs with wildcards.

``*`` stands for any characters but ``/`` and ``@``, ``**`` for any but ``@``; everything else stands
for itself, whole names are compared, and case counts. So `*` never crosses from a path into another,
from a user into a host, or from a workflow's file into the branch it ran on:

    *@example.org                                            any mailbox of example.org itself
    https://github.com/org/repo/.github/workflows/*@refs/tags/*    any workflow, any tag without /
    https://github.com/org/**@refs/heads/main                any repository of org, branch main

These are not regular expressions, in which the dots of a host match any letter and which may take
exponential time. Matching takes time in proportion to the product of both lengths.
"""

from __future__ import annotations

from ..errors import DocumentError

__all__ = ["check_pattern", "is_pattern", "matches"]

_LONGEST = 4096


def is_pattern(text: str) -> bool:
    """Whether `text` has a wildcard."""
    return "*" in text


def check_pattern(text: str, *, field: str) -> None:
    """Refuse a pattern that names no one in particular.

    Raises:
        DocumentError: Empty, too long, ``***``, or nothing but wildcards and punctuation.
    """
    if not text:
        raise DocumentError("must not be empty", field=field)
    if len(text) > _LONGEST:
        raise DocumentError(f"longer than {_LONGEST} characters", field=field)
    if "***" in text:
        raise DocumentError("has three wildcards in a row; use * or **", field=field)
    if is_pattern(text) and not any(letter.isalnum() for letter in text):
        raise DocumentError("matches any name: write out at least the host", field=field)


def matches(pattern: str, name: str) -> bool:
    """Whether `name` is what `pattern` describes.

    >>> matches("*@example.org", "ann@example.org")
    True
    >>> matches("*@example.org", "ann@evil.org/@example.org")
    False
    """
    if not is_pattern(pattern) or len(name) > _LONGEST:
        return pattern == name
    # The positions in the pattern at which a match of the letters so far can stand.
    steps = pattern.replace("**", "\0").split("\0")
    tokens = [token for step in steps for token in (*step, "**")][:-1]
    reached = _skip_wildcards({0}, tokens)
    for letter in name:
        reached = _skip_wildcards(
            {
                position if tokens[position] in _EXCLUDED else position + 1
                for position in reached
                if position < len(tokens) and _takes(tokens[position], letter)
            },
            tokens,
        )
    return len(tokens) in reached


_EXCLUDED = {"*": "/@", "**": "@"}


def _takes(token: str, letter: str) -> bool:
    excluded = _EXCLUDED.get(token)
    return letter == token if excluded is None else letter not in excluded


def _skip_wildcards(reached: set[int], tokens: list[str]) -> set[int]:
    """The same positions and those behind the wildcards there, which may stand for nothing."""
    found = set(reached)
    for position in reached:
        while position < len(tokens) and tokens[position] in _EXCLUDED:
            position += 1  # noqa: PLW2901
            found.add(position)
    return found
