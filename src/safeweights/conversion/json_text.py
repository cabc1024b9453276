"""JSON as every reader reads it: a key that occurs twice in an object has no value.

Python's reader takes the last of them, others the first; a file that says two things is not judged by one.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from ..errors import quote

__all__ = ["DuplicateKeyError", "parse_json"]


class DuplicateKeyError(ValueError):
    """A key occurs twice in an object."""


def parse_json(data: bytes | str) -> Any:
    """The value of a JSON text.

    Raises:
        DuplicateKeyError: A key occurs twice in an object.
        ValueError, RecursionError: It is not JSON, or nested too deeply.

    >>> parse_json('{"a": [1]}')
    {'a': [1]}
    """
    return json.loads(data, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = Counter(key for key, _ in pairs)
        message = f"the key {quote(keys.most_common(1)[0][0], 60)} occurs twice in an object"
        raise DuplicateKeyError(message)
    return found
