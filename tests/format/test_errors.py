"""The exception family: what a message shows, and that it survives a process boundary."""

from __future__ import annotations

import pickle
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeweights import errors
from safeweights.errors import FormatError, SafetensorError, quote

FAMILY = [getattr(errors, name) for name in errors.__all__]


@pytest.mark.parametrize("kind", FAMILY)
def test_one_family_that_pickles(kind: type[SafetensorError]) -> None:
    error = kind("what", path="p", tensor="t", offset=7)
    assert isinstance(error, SafetensorError)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert (str(copy), vars(copy)) == (str(error), vars(error))
    assert str(error) == "what (in `p` at byte 7)"


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (errors.FormatError, ValueError),
        (errors.TensorNotFoundError, KeyError),
        (errors.SelectionError, IndexError),
        (errors.UnsupportedError, TypeError),
        (errors.ClosedError, ValueError),
        (errors.MissingDependencyError, ImportError),
    ],
)
def test_each_is_the_builtin_that_callers_catch(
    kind: type[Exception], builtin: type[Exception]
) -> None:
    with pytest.raises(builtin):
        raise kind("x")


def test_the_location_is_shown_where_there_is_one() -> None:
    assert str(SafetensorError("what")) == "what"
    assert str(SafetensorError("what", offset=0)) == "what (at byte 0)"
    assert str(SafetensorError("what", path="a\x1bb")) == "what (in `a\\x1bb`)"
    assert str(errors.ClosedError()) == "File is closed"
    assert str(errors.TensorNotFoundError("no tensor")) == "no tensor"  # not the repr of a KeyError


def test_the_rule_is_kept() -> None:
    error = FormatError("what", rule="size", path="p", tensor="t", offset=3)
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.rule, copy.path, copy.tensor, copy.offset) == ("size", "p", "t", 3)
    assert FormatError("what").rule == "format"


def test_a_changed_message_is_shown() -> None:
    error = FormatError("what", offset=1)
    error.message += "; this looks like a pipe"
    assert str(error) == "what; this looks like a pipe (at byte 1)"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@given(st.text(max_size=300), st.integers(1, 50))
def test_quoted_text_is_bounded_and_printable(text: str, limit: int) -> None:
    shown = quote(text, limit)
    assert shown.isprintable()
    assert len(shown) <= 2 + limit * 10
    assert shown.startswith("`")
    assert shown.endswith("`")
    shown.encode()


def test_quoted_text_is_itself_where_it_can_be() -> None:
    assert quote("layer.0/é\u4e2d\U0001f600") == "`layer.0/é\u4e2d\U0001f600`"
    assert quote("\x00\x7f\u202e\ud800\u200b") == "`\\x00\\x7f\\u202e\\ud800\\u200b`"
    assert quote("x" * 200) == "`" + "x" * 119 + "…`"
    assert quote("x" * 120) == "`" + "x" * 120 + "`"


@pytest.mark.parametrize("path", ["p", b"p", PurePosixPath("p")])
def test_a_path_of_any_kind_is_text(path: str) -> None:
    error = SafetensorError("what", path=path)
    assert (error.path, str(error)) == ("p", "what (in `p`)")
