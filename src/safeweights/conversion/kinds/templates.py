"""Chat templates: Jinja programs that come with tokenizers, read without being run.

Most loaders run them in Jinja's sandbox. Outside of it a template reaches every object of the process
through attributes such as ``__class__`` (Jinja's documentation, "Sandbox"; CVE-2024-34359). A template is
harmless here if it uses no name with two underscores, builds no name from pieces, loads no other template
and asks for none of the objects that web frameworks put beside templates.

Purely lexical: it may warn of what would never run, and it does not follow values through variables.
"""

from __future__ import annotations

import codecs
import re
from typing import TYPE_CHECKING, Final

from ...errors import quote
from .concerns import Concern

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["MAX_TEMPLATE", "template_concerns"]

MAX_TEMPLATE: Final = 1 << 20
"""Characters of template that are read of one file, about two seconds; the longest in use have 50,000."""

_OPENING = re.compile(r"\{[{%#]")
_ENDRAW = re.compile(r"\{%[-+]?\s*endraw\s*[-+]?%\}")
_WORD = re.compile(
    r"""(?P<string>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|(?P<name>[^\W\d]\w*)|(?P<other>[^\s\w])""",
    re.DOTALL,
)
_LOADS: Final = frozenset({"import", "include", "extends", "from"})
_OBJECTS: Final = frozenset(
    {
        "self", "lipsum", "cycler", "joiner", "request", "config", "url_for", "get_flashed_messages", "g",
        "os", "sys", "subprocess", "builtins", "eval", "exec", "open", "getattr", "globals", "import",
    }
)  # fmt: skip
_OPENERS: Final = frozenset("([{")
_CLOSERS: Final = frozenset(")]}")
_GETTERS: Final = frozenset(
    {"groupby", "map", "max", "min", "rejectattr", "selectattr", "sort", "sum", "unique"}
)
"""Filters that take the name of an attribute."""
_BUILDERS: Final = frozenset(
    {"join", "format", "replace", "reverse", "attr", "map", "decode", "chr"}
)


def template_concerns(text: str, place: str) -> Iterator[Concern]:
    """What a template does that a chat template has no need of.

    Args:
        text: The template.
        place: What to call it, e.g. ``"tokenizer_config.json#chat_template"``.

    >>> [c.rule for c in template_concerns("{{ ''.__class__ }}", "t")]
    ['template-dunder']
    """
    if len(text) > MAX_TEMPLATE:
        message = f"the template {quote(place, 200)} has {len(text):,} characters: not read"
        yield Concern("unread", "template-size", message)
        return
    seen: set[str] = set()
    for words in _blocks(text):
        for power, rule, what in _block(words):
            if rule not in seen:
                seen.add(rule)
                message = f"the template {quote(place, 200)} {what}"
                yield Concern("acts" if power else "unknown", rule, message)


def _blocks(text: str) -> Iterator[list[tuple[str, str]]]:
    """The words of each ``{{ }}`` and ``{% %}``, as (kind, word).

    Jinja's own order: a delimiter inside a string or a comment is text, so is everything in a raw block;
    ``}}`` ends no block while a bracket is open. Linear in the text, closed or not.
    """
    at = 0
    while opening := _OPENING.search(text, at):
        if opening[0] == "{#":
            end = text.find("#}", opening.end())
            at = len(text) if end < 0 else end + 2
            continue
        closing = "}}" if opening[0] == "{{" else "%}"
        words = [("other", opening[0])]
        at, depth = opening.end(), 0
        while word := _WORD.search(text, at):
            if not depth and text.startswith(closing, word.start()):
                break
            words.append((word.lastgroup or "", word[0]))
            depth += (word[0] in _OPENERS) - (word[0] in _CLOSERS)
            at = word.end()
        at = len(text) if word is None else word.start() + 2
        yield words
        if [each for _, each in words[1:] if each not in {"-", "+"}] == ["raw"]:
            closed = _ENDRAW.search(text, at)
            at = len(text) if closed is None else closed.start()


_BUILT: Final = "puts a name together from pieces of text"


def _block(words: list[tuple[str, str]]) -> Iterator[tuple[bool, str, str]]:
    """(whether it acts, rule, what it does) for one block of code."""
    before = end = ""
    for index, (kind, written) in enumerate(words):
        # What Jinja sees: escapes are decoded, and strings beside each other are one. Of those before, the
        # last character is enough.
        word = end + _unescaped(written) if kind == "string" else written
        end = word[-1:] if kind == "string" else ""
        if kind != "other" and "__" in word:
            yield True, "template-dunder", f"uses the name {quote(word, 60)}"
        if kind == "name":
            first = words[0][1] == "{%" and before in {"{%", "-", "+"} and index <= 2
            if first and word in _LOADS:
                yield True, "template-loads", f"loads another template ({word})"
            elif word in _OBJECTS and before not in {".", "|"}:
                yield False, "template-object", f"asks for the object {quote(word, 60)}"
            elif word == "attr" and before == "|":
                yield False, "template-attr", "reads an attribute whose name it computes (attr)"
            elif word in _GETTERS and before == "|" and _builds_name(words, index + 1):
                yield False, "template-built-name", _BUILT
        if word == "[" and _builds_name(words, index):
            yield False, "template-built-name", _BUILT
        before = word


def _unescaped(word: str) -> str:
    """The value of a string literal: Jinja decodes escapes as Python does."""
    try:
        return codecs.decode(word[1:-1].encode("latin-1", "backslashreplace"), "unicode_escape")
    except UnicodeDecodeError:
        return word


def _builds_name(words: list[tuple[str, str]], start: int) -> bool:
    """Whether the brackets at `start` join pieces of text: the result may be any attribute's name."""
    depth = 0
    strings = joins = 0
    for kind, word in words[start : start + 100]:
        depth += (word in _OPENERS) - (word in _CLOSERS)
        if depth <= 0:
            break
        strings += kind == "string"
        joins += word in {"~", "%"} or (kind == "name" and word in _BUILDERS)
    return bool(joins and strings)
