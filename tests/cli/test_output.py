from __future__ import annotations

import ast
import re
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from safeweights.text import escape, human_bytes, human_count, plural, printable

TEXT = st.text(st.characters(codec=None), max_size=40)


@given(TEXT)
@example("\\x41")
@example("ends in \\")
def test_escaped_text_is_printable_on_one_line_and_can_be_undone(text):
    shown = escape(text)
    assert shown.isprintable()
    assert ast.literal_eval('"' + shown.replace('"', '\\"') + '"') == text


@given(TEXT)
def test_sentences_keep_no_character_that_a_terminal_acts_on(text):
    assert printable(text).isprintable()


@pytest.mark.parametrize("category", ["Cc", "Cf", "Cs", "Zl", "Zp"])
def test_no_control_format_or_surrogate_character_survives(category):
    found = [c for c in map(chr, range(0x110000)) if unicodedata.category(c) == category]
    assert found
    assert all(re.fullmatch(r"\\(x..|u.{4}|U.{8}|[tnr])", escape(c)) for c in found)


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (90_868_376, "90.9 MB"),
        (5 * 10**21, "5,000.0 EB"),
    ],
)
def test_sizes_are_rounded_within_their_unit(size, shown):
    assert human_bytes(size) == shown


def test_counts():
    assert human_count(999) == "999"
    assert human_count(999_999) == "1.0M"
    assert human_count(671_026_419_200) == "671.0B"
    assert plural(1, "tensor") == "1 tensor"
    assert plural(0, "tensor") == "0 tensors"
