"""Commands run by a batch: one unit at a time, in a worker, with what they would print as the result.

The arguments of a batch are those of its command; a command is run exactly as by itself with ``--json``.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from ..batching.units import Outcome, Work
from ..storage.places import is_url, join, parent
from ..text import printable
from .failures import report
from .output import Output

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from ..batching.units import Unit

__all__ = ["BATCHED", "Batched", "arguments_of", "command_of", "options_of", "perform", "work_of"]


class Batched(NamedTuple):
    """How a command takes part in batches.

    Attributes:
        help: What a batch of it does.
        needs_target: Whether results go to ``--to``.
        takes_target: Whether they may.
        without: Options that name one file for one model, and so are not those of a batch.
        written: How the names of files end that it writes beside its source.
        creates: Whether it refuses a target that exists.
    """

    help: str
    needs_target: bool = False
    takes_target: bool = False
    without: frozenset[str] = frozenset()
    written: tuple[str, ...] = ()
    creates: bool = False


BATCHED: Final = {
    "convert": Batched("Convert each SRC to safetensors, below --to.", True, True, creates=True),
    "check": Batched(
        "Check each SRC against every rule of its format.", without=frozenset({"form", "sarif"})
    ),
    "hash": Batched(
        "Hash the files or tensors of each SRC.", without=frozenset({"against", "output", "force"})
    ),
    "sign": Batched(
        "Sign each SRC with one key.",
        without=frozenset({"signature", "keyless", "login", "identity_token_file", "trust_config"}),
        written=(".sig", ".swtree"),
    ),
    "verify": Batched(
        "Verify each SRC against its signature.",
        without=frozenset({"signature", "base", "name", "log", "head"}),
    ),
    "admit": Batched(
        "Decide by one policy on each SRC; with --to, write warrants.", False, True,
        without=frozenset({"name", "signature", "warrant"}),
    ),
    "pull": Batched(
        "Fetch each SRC into a folder below --to, if the policy admits it.", True, True,
        without=frozenset({"name", "files"}), creates=True,
    ),
}  # fmt: skip
"""Command -> how it takes part in batches."""

_NEVER: Final = frozenset({"with_passphrase"})
"""Options that ask on a terminal, which workers do not have."""


def command_of(name: str) -> click.Command:
    """The command of that name."""
    found: click.Command = import_module(f".commands.{name}", __package__).command
    return found


def options_of(name: str) -> dict[str, click.Option]:
    """Those options of a command that a batch of it has, by their name in Python."""
    left_out = BATCHED[name].without | _NEVER
    return {
        str(option.name): option
        for option in command_of(name).params
        if isinstance(option, click.Option) and option.expose_value and option.name not in left_out
    }


def arguments_of(name: str, given: Mapping[str, Any]) -> tuple[str, ...]:
    """Options of a command as they stand on its command line.

    Raises:
        TypeError: There is no such option, or not in a batch.
    """
    options = options_of(name)
    found: list[str] = []
    for key, value in sorted(given.items()):
        if key not in options:
            raise TypeError(f"a batch of {name} has no option {key!r}")
        option = options[key]
        spelled = max(option.opts, key=len)
        if option.is_flag:
            found += [spelled] if value else []
            continue
        values = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
        # One word, so that a value that begins with a dash is no option.
        found += [
            f"{spelled}={os.fspath(each) if isinstance(each, os.PathLike) else each}"
            for each in values
        ]
    return tuple(found)


def work_of(name: str, arguments: Iterable[str]) -> Work:
    """A batch's work: the command and its options, of which is known that they can be parsed.

    Raises:
        click.UsageError: They cannot.
    """
    command, given = command_of(name), tuple(arguments)
    paths = ["source", "target"] if BATCHED[name].needs_target else ["source"]
    command.make_context(name, [*given, "--", *paths], obj=_Captured()).close()
    batched = BATCHED[name]
    creates = batched.creates and "--force" not in given
    return Work(f"{__name__}:perform", (name, *given), batched.written, creates=creates)


class _Captured(Output):
    """What a command prints, kept."""

    def __init__(self) -> None:
        super().__init__(json=True, terminal=False)
        self.documents: list[Mapping[str, Any]] = []
        self.messages: list[str] = []

    def document(self, record: Mapping[str, Any]) -> None:
        self.documents.append(record)

    def lines(self, rows: Iterable[Iterable[str]]) -> None:
        for _ in rows:
            pass

    def message(self, text: str, *, own_line: bool = False) -> None:  # type: ignore[override]  # noqa: ARG002
        self.messages.append(printable(text))

    def flush(self) -> None:
        pass


def perform(arguments: tuple[str, ...], unit: Unit, again: bool) -> Outcome:
    """Run a command on a unit; see `safeweights.batching.Work`.

    Args:
        arguments: The name of the command, and its options.
        unit: The unit.
        again: Whether an earlier attempt may have written the target.
    """
    name = arguments[0]
    out = _Captured()
    force = again and BATCHED[name].creates
    with _no_terminal():
        try:
            _make_folder(unit.target)
            status = _invoke(arguments, unit, out, force=force)
        except click.exceptions.Exit as error:
            status = error.exit_code
        except Exception as error:  # noqa: BLE001 - one bad unit never stops the others
            status = report(out, error)
    document = dict(out.documents[-1]) if out.documents else None
    outputs = () if status else tuple(_outputs(name, unit, document or {}))
    return Outcome(status, document, tuple(out.messages), outputs)


_SOURCE: Final = "<source>"
_TARGET: Final = "<target>"


def _invoke(arguments: tuple[str, ...], unit: Unit, out: Output, *, force: bool) -> int:
    context = _parsed(arguments, unit.target is not None, force)
    places = {_SOURCE: _path(unit.source), _TARGET: unit.target}
    context.obj = out
    with context.scope():
        given = {key: _filled(value, places) for key, value in context.params.items()}
        assert context.command.callback is not None
        return context.invoke(context.command.callback, **given) or 0


@lru_cache(8)
def _parsed(arguments: tuple[str, ...], has_target: bool, force: bool) -> click.Context:
    """The command line with names in place of paths: parsing takes as long as checking a small file."""
    name, *given = arguments
    if force:
        given.append("--force")
    paths = [_SOURCE]
    if has_target and BATCHED[name].needs_target:
        paths.append(_TARGET)
    elif has_target:
        given.append(f"--warrant={_TARGET}")
    return command_of(name).make_context(name, [*given, "--", *paths])


def _filled(value: Any, places: Mapping[str, str | None]) -> Any:
    """The value of a parameter, with paths in place of their names."""
    if isinstance(value, tuple):
        return tuple(_filled(each, places) for each in value)
    return places.get(value, value) if isinstance(value, str) else value


def _path(source: str) -> str:
    """A source as a command takes it: not as standard input."""
    return os.path.join(os.curdir, source) if source == "-" else source


def _make_folder(target: str | None) -> None:
    if target is not None and not is_url(target):
        os.makedirs(os.path.dirname(os.path.abspath(target)), exist_ok=True)


def _outputs(name: str, unit: Unit, document: Mapping[str, Any]) -> Iterator[str]:
    """The files and folders that a command has written."""
    if name == "convert":
        yield from (each["path"] for each in document["outputs"])
    elif name == "sign":
        yield document["signature"]
        folder = unit.source if document["signature"].endswith("model.sig") else parent(unit.source)
        yield from (join(folder, sidecar) for sidecar in document["sidecars"])
    elif unit.target is not None:
        yield unit.target


@contextmanager
def _no_terminal() -> Iterator[None]:
    """Nothing draws or asks on a terminal meanwhile: it is the batch's."""
    kept = sys.stderr
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        sys.stderr = nowhere
        try:
            yield
        finally:
            sys.stderr = kept
