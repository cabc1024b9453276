"""Text for messages and reports: escaping, sizes, counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence


__all__ = [
    "count",
    "escape",
    "human_bytes",
    "human_count",
    "plural",
    "printable",
    "similar_names",
    "wrapper_prefix",
    "wrapper_sentence",
]


_UNITS: Final = ("kB", "MB", "GB", "TB", "PB", "EB")


_MAGNITUDES: Final = ("K", "M", "B", "T")


def escape(text: str) -> str:
    r"""Escape `text` as in a Python string literal: printable, without tabs, and reversible.

    >>> print(escape("a\x1b[2J\tb\\"))
    a\x1b[2J\tb\\
    """
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(
        c if c.isprintable() and c != "\\" else "\\\\" if c == "\\" else ascii(c)[1:-1]
        for c in text
    )


def printable(text: str) -> str:
    """Escape only the characters of a sentence that are not printable; a backslash stays as it is."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def human_bytes(size: int) -> str:
    """A size in decimal units.

    >>> human_bytes(999), human_bytes(90_868_376), human_bytes(999_999)
    ('999 B', '90.9 MB', '1.0 MB')
    """
    return f"{size} B" if size < 1000 else " ".join(_scaled(size, _UNITS))


def human_count(number: int) -> str:
    """A number, abbreviated as is usual for numbers of parameters.

    >>> human_count(384), human_count(22_713_728), human_count(6_738_415_616)
    ('384', '22.7M', '6.7B')
    """
    return str(number) if number < 1000 else "".join(_scaled(number, _MAGNITUDES))


def _scaled(number: int, units: Sequence[str]) -> tuple[str, str]:
    value = number / 1000
    for unit in units[:-1]:
        if round(value, 1) < 1000:
            return f"{value:.1f}", unit
        value /= 1000
    return f"{value:,.1f}", units[-1]


def count(number: int) -> str:
    """A number with thousands separators."""
    return f"{number:,}"


def plural(number: int, noun: str) -> str:
    """A number and its noun, in the plural unless the number is 1.

    >>> plural(1, "tensor"), plural(1200, "tensor")
    ('1 tensor', '1,200 tensors')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


_COMPARED_MAX: Final = 2000
"""Names compared letter by letter, at most: some 20 ms."""

_SEARCHED_MAX: Final = 20_000
"""Names searched, at most: an error message must not take long, where a program asks for many names."""


def similar_names(name: str, known: Collection[str], limit: int = 3) -> list[str]:
    """Names that may be meant by `name`: with another prefix, or spelled alike.

    >>> similar_names("layer.0.wieght", ["layer.0.weight", "layer.0.bias", "norm"])
    ['layer.0.weight', 'layer.0.bias']
    >>> similar_names("norm.weight", ["model.norm.weight", "model.norm.bias"])
    ['model.norm.weight']
    """
    if not 0 < len(name) < 200 or len(known) > _SEARCHED_MAX:
        return []
    ending = f".{name}"
    found = [other for other in known if other.endswith(ending) or name.endswith(f".{other}")]
    if not found:
        alike = [other for other in known if abs(len(other) - len(name)) <= 8]
        if len(alike) <= _COMPARED_MAX:
            from difflib import get_close_matches

            found = get_close_matches(name, alike, limit)
    found = found or [other for other in known if name in other and len(other) < 200]
    return found[:limit]


_WRAPPERS: Final = {
    "module.": "DataParallel",
    "_orig_mod.": "torch.compile",
    "_fsdp_wrapped_module.": "FSDP",
}
"""Beginnings of names that a module around a model adds -> who adds them."""


def wrapper_prefix(names: Iterable[str]) -> str:
    """What modules around a model have put before every name; empty if there is nothing of the kind.

    >>> wrapper_prefix(["module._orig_mod.a", "module._orig_mod.b"]), wrapper_prefix(["module.a", "b"])
    ('module._orig_mod.', '')
    """
    names = iter(names)
    first, prefix = next(names, ""), ""
    while added := next((each for each in _WRAPPERS if first.startswith(prefix + each)), ""):
        prefix += added
    if not prefix:
        return ""
    for name in names:
        while not name.startswith(prefix):
            prefix = prefix[: prefix.rstrip(".").rfind(".") + 1]
        if not prefix:
            break
    return prefix


def wrapper_sentence(prefix: str) -> str:
    """What is to be said of names that begin with a `wrapper_prefix`.

    >>> wrapper_sentence("module.")
    'all names begin with `module.`, which DataParallel adds; loaders of the model will not find them'
    """
    added = " and ".join(who for each, who in _WRAPPERS.items() if each in prefix)
    verb = "add" if " and " in added else "adds"
    return f"all names begin with `{prefix}`, which {added} {verb}; loaders of the model will not find them"
