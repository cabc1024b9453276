"""Lazy names: the module that defines a name is imported when the name is first used. Lazy patterns, too.

`import safeweights` takes one millisecond; NumPy, which most of it needs, takes eighty. Type checkers read
the imports under ``TYPE_CHECKING`` instead.

Imports nothing of the package.
"""

from __future__ import annotations

import sys
from importlib import import_module

TYPE_CHECKING = False  # importing typing takes longer than the rest; type checkers know this name
if TYPE_CHECKING:
    import re
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any, AnyStr

__all__ = ["deferred", "lazy_names", "matcher"]


def lazy_names(
    package: str, homes: Mapping[str, str], modules: Iterable[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make ``__getattr__`` and ``__dir__`` for a package or a module (PEP 562).

    Args:
        package: Its full name.
        homes: Name -> module below `package` that defines it, or with a leading ``.`` beside it; ``""`` if
            the name is itself a module.
        modules: Names of modules below `package` that are imported when asked for, without being listed.
    """

    def get(name: str) -> Any:
        home = homes.get(name)
        if home is None and name in modules:
            try:
                return import_module(f".{name}", package)
            except ImportError as error:  # `hasattr` must answer
                raise AttributeError(f"{package}.{name} cannot be imported: {error}") from error
        if home is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if not home:
            return import_module(f".{name}", package)
        value = getattr(import_module(f".{home}", package), name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return get, names


def deferred(module: str, name: str) -> Callable[..., Any]:
    """A function that another module defines, which is imported when it is first called.

    This is how a lower layer offers what a higher one does, without depending on it (docs/adr/005).

    Args:
        module: Full name of the module.
        name: The function's name there.
    """

    def call(*arguments: Any, **options: Any) -> Any:
        return getattr(import_module(module), name)(*arguments, **options)

    return call


def matcher(
    pattern: AnyStr, flags: int = 0, *, search: bool = False
) -> Callable[..., re.Match[AnyStr] | None]:
    r"""The ``match`` of ``re.compile(pattern, flags)``, compiled when it is first called.

    Compiling takes 100 us or more, and a call 0.1 us longer: for what few programs ever match.

    Args:
        pattern: The regular expression.
        flags: Those of `re.compile`.
        search: Give its ``search`` instead.

    >>> matcher(r"[a-z]+\Z")("word") is None
    False
    """
    compiled: list[Callable[..., re.Match[AnyStr] | None]] = []

    def match(*arguments: Any) -> re.Match[AnyStr] | None:
        if not compiled:
            import re

            made = re.compile(pattern, flags)
            compiled.append(made.search if search else made.match)
        return compiled[0](*arguments)

    return match
