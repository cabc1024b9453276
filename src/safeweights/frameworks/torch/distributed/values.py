"""Values that are no tensors, as JSON: exactly, or not at all.

A state dict has, beside its tensors, numbers, texts, None, and lists, tuples and dicts of them: the step,
the settings of an optimizer, the position in the data. They go into a file of JSON beside the weights.
What JSON has no form for is wrapped in an object with one key that begins with ``$``:

    (1, 2)                {"$tuple": [1, 2]}
    {1: "a"}              {"$dict": [[1, "a"]]}     also dicts one of whose keys begins with ``$``
    inf                   {"$float": "inf"}

Every other type is refused: nothing is pickled, and nothing is converted to something like it.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, Final

from ....errors import FormatError, UnsupportedError, quote
from ....format.strictjson import has_surrogates

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["VALUES_MAX", "decoded_value", "decoded_values", "encoded_value", "values_text"]

VALUES_MAX: Final = 1 << 28
"""Most bytes of a file of values."""

_DEPTH: Final = 64
_SPECIAL: Final = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def encoded_value(name: str, value: Any) -> Any:
    """`value` in the form in which JSON holds it.

    Args:
        name: What to call it in messages.
        value: None, bool, int, float, str, and lists, tuples and dicts of them.

    Raises:
        UnsupportedError: JSON cannot hold it exactly.

    >>> encoded_value("betas", (0.9, 0.999))
    {'$tuple': [0.9, 0.999]}
    """
    return _encoded(value, name, _DEPTH)


def _encoded(value: Any, where: str, depth: int) -> Any:
    if depth == 0:
        raise UnsupportedError(f"{quote(where)} has more than {_DEPTH} levels")
    kind = type(value)
    if value is None or kind is bool:
        return value
    if kind is int:
        if (
            value.bit_length() > 8192
        ):  # longer ones cannot be read back (sys.set_int_max_str_digits)
            raise UnsupportedError(f"{quote(where)} is an integer of {value.bit_length()} bits")
        return value
    if kind is str:
        if has_surrogates(value):
            raise UnsupportedError(f"{quote(where)} is text with a lone surrogate")
        return value
    if kind is float:
        return value if math.isfinite(value) else {"$float": str(value)}
    if kind is list:
        return [_encoded(each, f"{where}[{i}]", depth - 1) for i, each in enumerate(value)]
    if kind is tuple:
        return {
            "$tuple": [_encoded(each, f"{where}[{i}]", depth - 1) for i, each in enumerate(value)]
        }
    if kind is dict:
        return _encoded_dict(value, where, depth)
    raise UnsupportedError(
        f"{quote(where)} is a {kind.__module__}.{kind.__qualname__}, which JSON cannot hold exactly: leave "
        "it out, or convert it to numbers, texts, lists and dicts (state that is random bytes: to a tensor)"
    )


def _encoded_dict(value: dict[Any, Any], where: str, depth: int) -> Any:
    if all(
        type(key) is str and not key.startswith("$") and not has_surrogates(key) for key in value
    ):
        return {key: _encoded(each, f"{where}.{key}", depth - 1) for key, each in value.items()}
    for key in value:
        if isinstance(key, tuple):
            raise UnsupportedError(f"{quote(where)} has a tuple as a key")
    pairs = [
        [_encoded(key, f"{where}.{key}", depth - 1), _encoded(each, f"{where}.{key}", depth - 1)]
        for key, each in value.items()
    ]
    return {"$dict": pairs}


def values_text(values: Mapping[str, Any]) -> bytes:
    """The contents of a file of values.

    Args:
        values: Name -> what `encoded_value` gave.
    """
    document = {"format": "safeweights values 1", "values": dict(values)}
    return (json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def decoded_values(text: bytes, path: str) -> dict[str, Any]:
    """Name -> value, from a file of values. Untrusted input: it makes nothing but plain values.

    Raises:
        FormatError: It is no such file (rule ``values``).
    """
    try:
        document = json.loads(text, object_pairs_hook=_unique, parse_constant=_refused)
        if not isinstance(document, dict) or document.get("format") != "safeweights values 1":
            raise ValueError("it is no file of values")
        values = document.get("values")
        if not isinstance(values, dict):
            raise ValueError("`values` is no object")  # noqa: TRY004 - what is wrong is the text
        return {name: decoded_value(value) for name, value in values.items()}
    except (ValueError, RecursionError) as error:
        raise FormatError(f"cannot be read: {error}", rule="values", path=path) from error


def decoded_value(value: Any) -> Any:
    """The value of which `encoded_value` gave this form.

    Raises:
        ValueError: It is no such form.
    """
    return _decoded(value, _DEPTH)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has one key twice")
    return found


def _refused(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def _decoded(value: Any, depth: int) -> Any:
    if depth == 0:
        raise ValueError(f"more than {_DEPTH} levels")
    if isinstance(value, list):
        return [_decoded(each, depth - 1) for each in value]
    if not isinstance(value, dict):
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError("a number is too large")
        return value
    if not any(key.startswith("$") for key in value):
        return {key: _decoded(each, depth - 1) for key, each in value.items()}
    if len(value) != 1:
        raise ValueError("an object has a key that begins with `$`, and others")
    ((kind, inner),) = value.items()
    if kind == "$float" and isinstance(inner, str) and inner in _SPECIAL:
        return _SPECIAL[inner]
    if kind == "$tuple" and isinstance(inner, list):
        return tuple(_decoded(each, depth - 1) for each in inner)
    if kind == "$dict" and isinstance(inner, list):
        return _decoded_dict(inner, depth)
    raise ValueError(f"an object {quote(kind)} that is not known")


def _decoded_dict(pairs: list[Any], depth: int) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError("`$dict` has an item that is no pair")
        key = _decoded(pair[0], depth - 1)
        if isinstance(key, (list, tuple, dict)):
            raise ValueError("`$dict` has a key that is no plain value")  # noqa: TRY004 - likewise
        found[key] = _decoded(pair[1], depth - 1)
    if len(found) != len(pairs):
        raise ValueError("`$dict` has one key twice")
    return found
