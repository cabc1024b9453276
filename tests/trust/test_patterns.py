"""Names with wildcards: what they match, and above all what they do not."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeweights.trust.errors import DocumentError
from safeweights.trust.signatures.patterns import check_pattern, matches

WORKFLOWS = "https://github.com/org/repo/.github/workflows/*@refs/tags/*"


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("*@example.org", "ann@example.org"),
        ("*@example.org", "@example.org"),
        (WORKFLOWS, "https://github.com/org/repo/.github/workflows/release.yml@refs/tags/v1.2"),
        ("https://github.com/org/**@refs/heads/main",
         "https://github.com/org/repo/.github/workflows/a.yml@refs/heads/main"),
        ("a**b", "ab"), ("a**b", "a/x/b"), ("a*b*c", "abbc"), ("*a", "aaa"), ("a", "a"),
    ],
)  # fmt: skip
def test_match(pattern: str, name: str) -> None:
    check_pattern(pattern, field="identity")
    assert matches(pattern, name)


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("*@example.org", "ann@example.org.evil.net"),
        ("*@example.org", "ann@exampleXorg"),
        ("*@example.org", "ann@sub.example.org"),
        ("*@example.org", "ann@evil.net/@example.org"),
        ("*@example.org", "ann@evil.net@example.org"),
        ("*@example.org", "ANN@EXAMPLE.ORG"),
        (WORKFLOWS, "https://github.com/org/repo/.github/workflows/release.yml@refs/heads/main"),
        (WORKFLOWS, "https://github.com/org/repo/.github/workflows/x/release.yml@refs/tags/v1"),
        (WORKFLOWS, "https://github.com/org/repo/.github/workflows/a.yml@refs/tags/v1/x"),
        (WORKFLOWS, "https://github.com/org/repo/.github/workflows/a.yml@refs/heads/b@refs/tags/v1"),
        (WORKFLOWS, "https://github.com/org/repository/.github/workflows/a.yml@refs/tags/v1"),
        (WORKFLOWS, "https://evil.net/https://github.com/org/repo/.github/workflows/a@refs/tags/v"),
        ("https://github.com/org/**@refs/heads/main",
         "https://github.com/org/r/a.yml@refs/heads/x@refs/heads/main"),
        ("a.c", "abc"), ("a", "aa"), ("a*", "b"), ("", "a"), ("a[bc]", "ab"), ("a?", "ab"),
    ],
)  # fmt: skip
def test_no_match(pattern: str, name: str) -> None:
    assert not matches(pattern, name)


def test_no_exponential_time() -> None:
    assert not matches("*a" * 60 + "b", "a" * 2000)


@pytest.mark.parametrize("pattern", ["", "*", "**", "*@*", "***", "a***", "x" * 5000, "**/*"])
def test_patterns_that_are_refused(pattern: str) -> None:
    with pytest.raises(DocumentError) as caught:
        check_pattern(pattern, field="identity")
    assert caught.value.field == "identity"


@given(
    st.lists(st.sampled_from(["*", "a", "b", "/", "@", "**", "."]), max_size=8)
    .map("".join)
    .filter(lambda pattern: "***" not in pattern),
    st.text("ab/@.", max_size=8),
)
def test_the_same_as_a_regular_expression(pattern: str, name: str) -> None:
    parts = re.split(r"(\*\*|\*)", pattern)
    text = "".join({"**": "[^@]*", "*": "[^/@]*"}.get(part, re.escape(part)) for part in parts)
    assert matches(pattern, name) == bool(re.fullmatch(text, name))
