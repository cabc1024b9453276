"""Doctests of docstrings as code blocks of the documentation site: an extension of griffe."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension

_DOCTEST = re.compile(r"^( *)>>> .*(?:\n\1.+)*", re.MULTILINE)


class DoctestBlocks(Extension):
    """Puts a fence around every doctest."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        """Change the docstring of an object that was read."""
        if obj.docstring is not None:
            obj.docstring.value = _DOCTEST.sub(r"\1```pycon\n\g<0>\n\1```", obj.docstring.value)
