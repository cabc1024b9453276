"""The policy of these tests: everything that a rule is about has to be signed by one key."""

from __future__ import annotations


def signed_by_us(pattern: str = "*") -> str:
    """The text of a policy beside ``key.pub``: what `pattern` matches has to be signed with that key."""
    return f"""\
[signers.us]
public_key = "key.pub"

[[rules]]
pattern = "{pattern}"
signers = ["us"]
"""
