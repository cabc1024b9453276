"""Exceptions: their messages, and that they can be pickled between processes."""

from __future__ import annotations

import copy
import pickle
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeweights import errors
from safeweights.errors import FormatError, SafetensorError, described, quote
from safeweights.storage import PartialOverwriteError

FAMILY = [getattr(errors, name) for name in errors.__all__]


@pytest.mark.parametrize("kind", FAMILY)
def test_one_family_that_pickles(kind: type[SafetensorError]) -> None:
    error = kind("what", path="p", tensor="t", offset=7)
    assert isinstance(error, SafetensorError)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (str(again), vars(again)) == (str(error), vars(error))
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
        (errors.NameTypeError, KeyError),
        (errors.NameTypeError, TypeError),
        (errors.StepError, IndexError),
        (errors.StepError, ValueError),
        (errors.IndexTypeError, IndexError),
        (errors.IndexTypeError, TypeError),
        (errors.DTypeError, TypeError),
        (errors.DTypeError, KeyError),
        (errors.DeviceError, RuntimeError),
        (errors.MissingPluginError, RuntimeError),
        (errors.MissingPluginError, ImportError),
    ],
)
def test_each_is_the_builtin_that_callers_catch(
    kind: type[Exception], builtin: type[Exception]
) -> None:
    with pytest.raises(builtin):
        raise kind("x")


@pytest.mark.parametrize("kind", FAMILY)
def test_args_is_the_text(kind: type[SafetensorError]) -> None:
    error = kind("what", path="p", offset=7)
    assert error.args == (str(error),) == ("what (in `p` at byte 7)",)
    error.message += " more"
    assert error.args == (str(error),) == ("what more (in `p` at byte 7)",)
    error.path, error.offset = "q", None
    assert error.args == (str(error),) == ("what more (in `q`)",)
    assert (error.message, error.path, error.offset) == ("what more", "q", None)
    assert pickle.loads(pickle.dumps(error)).args == error.args
    assert copy.copy(error).args == error.args


@pytest.mark.parametrize("values", [(), ("x",), ("x", 2), ({},), (None,), (1.5, [2], "z")])
def test_values_of_any_kind_are_kept_as_by_exception(values: tuple[object, ...]) -> None:
    error, usual = SafetensorError(*values), Exception(*values)
    assert (str(error), error.args) == (str(usual), usual.args)
    assert repr(error) == repr(usual).replace("Exception", "SafetensorError")
    assert pickle.loads(pickle.dumps(error)).args == values


@pytest.mark.parametrize(
    "kind",
    [
        errors.FormatError, errors.TensorNotFoundError, errors.SelectionError, errors.StepError,
        errors.UnsupportedError, errors.DTypeError, errors.DeviceError, errors.ClosedError,
    ],
)  # fmt: skip
def test_the_name_of_the_class_is_the_reference_s(kind: type[SafetensorError]) -> None:
    assert kind.__name__ == "SafetensorError"
    assert kind.__qualname__ != "SafetensorError"  # what a traceback shows
    assert getattr(errors, kind.__qualname__) is kind


@pytest.mark.parametrize("in_family", [False, True])
@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(28, "No space left on device", "p"), OSError),
        (OSError(2, "No such file or directory", "p"), FileNotFoundError),
        (OSError(13, "Permission denied", "p", None, "q"), PermissionError),
        (PartialOverwriteError("p", "k", OSError(5, "Input/output error")), PartialOverwriteError),
    ],
)
def test_a_system_error_in_other_words(
    error: OSError, kind: type[OSError], in_family: bool
) -> None:
    made = described(error, "what", in_family=in_family)
    twice = described(made, "what else")
    for found in (made, pickle.loads(pickle.dumps(made)), copy.copy(made)):
        assert isinstance(found, kind)
        assert isinstance(found, SafetensorError) == in_family
        assert found.args == ("what",)
        assert str(found) == "what"
        for field in ("errno", "strerror", "filename", "filename2"):
            assert getattr(found, field) == getattr(error, field)
    assert getattr(made, "kept", None) == getattr(error, "kept", None)
    assert isinstance(twice, SafetensorError) == in_family
    assert (str(twice), twice.errno) == ("what else", error.errno)
    assert type(twice) is type(made)


def test_a_system_error_that_is_made_in_its_own_way_stays() -> None:
    class Own(OSError):
        def __new__(cls, what: object) -> Own:  # noqa: PYI034
            return super().__new__(cls, 5, what)

    error = Own("x")
    assert described(error, "what") is error


def test_the_location_is_shown_where_there_is_one() -> None:
    assert str(SafetensorError("what")) == "what"
    assert str(SafetensorError("what", offset=0)) == "what (at byte 0)"
    assert str(SafetensorError("what", path="a\x1bb")) == "what (in `a\\x1bb`)"
    assert str(errors.ClosedError()) == "File is closed"
    assert str(errors.TensorNotFoundError("no tensor")) == "no tensor"  # not the repr of a KeyError


def test_the_rule_is_kept() -> None:
    error = FormatError("what", rule="size", path="p", tensor="t", offset=3)
    again = pickle.loads(pickle.dumps(error))
    assert (again.rule, again.path, again.tensor, again.offset) == ("size", "p", "t", 3)
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
