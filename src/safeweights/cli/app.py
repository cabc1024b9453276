"""The program: the table of commands, and what all commands share.

A command is a module of `commands` with a `click.Command` called ``command``. It is imported when it
runs, so that `--help` imports only click. A command returns its exit status (None means 0) or raises an
exception, which `failures` turns into a message and a status.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import click

from .. import __version__
from ..reports.problems import INTERRUPTED, PIPE_CLOSED, UNREADABLE, USAGE, YES
from .failures import report
from .output import Output

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["COMMANDS", "FILE", "Program", "checkpoint_path", "cli", "json_option"]

COMMANDS: Final = {
    "show": "Describe a model: class, size, types, layers, memory.",
    "view": "Show a model in a browser, or write a report.",
    "ls": "List tensors with their type, shape and size.",
    "check": "Check files against every rule of their format.",
    "get": "Print, describe or export one tensor, or a part of one.",
    "stats": "Compute statistics of all tensors; find NaNs and dead rows.",
    "convert": "Convert checkpoints of other formats to safetensors.",
    "edit": "Rename, drop, add, cast, split and merge tensors without loading them.",
    "diff": "Compare two checkpoints, tensor by tensor.",
    "delta": "Make and apply delta checkpoints: only what changed.",
    "repair": "Repair files and indexes, and report what to download again.",
    "hash": "Print or check the SHA-256 of files and tensors.",
    "digest": "Print the digest that identifies a model's contents.",
    "encrypt": "Encrypt a model for selected recipients.",
    "decrypt": "Write the plaintext of an encrypted model.",
    "rekey": "Change the recipients of an encrypted model.",
    "keygen": "Create a key pair, for signing models or reading encrypted ones.",
    "sign": "Sign a file or a folder, or check that the signature is up to date.",
    "verify": "Verify a model against its signature.",
    "admit": "Decide by a policy whether a model may be used.",
    "pull": "Fetch a model into a folder, if a policy admits it.",
    "push": "Upload a model to a bucket or a registry.",
    "batch": "Run one command on many models, in processes or on a cluster.",
    "policy": "Write, check and explain policies.",
    "bom": "Write a model's bill of materials (CycloneDX).",
}
"""Name of each command (and of its module) -> the first line of its help."""


_CLICK_LEAST: Final = 50
"""Minimum width of click's help, in columns."""


class Program(click.Group):
    """The group of all commands; imports the module of the command that runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f".commands.{cmd_name}", __package__).command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if not (name in COMMANDS or name.startswith("-") or ctx.resilient_parsing):
            from difflib import get_close_matches

            close = get_close_matches(name, COMMANDS, 1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            ctx.fail(f"No such command {name!r}.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def make_context(
        self, info_name: str | None, args: list[str], *more: Any, **extra: Any
    ) -> click.Context:
        made: list[click.Context] = []

        def make() -> None:
            made.append(super(Program, self).make_context(info_name, args, *more, **extra))

        # click prints the help here, which may fail, for example on a full disk.
        status = _guarded(_output(args), make)
        if not made:
            raise click.exceptions.Exit(status)
        return made[0]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # Before parsing, because a parsing error is also printed as JSON if --json is given.
        ctx.obj = _output(args)
        ctx.terminal_width = _narrow()
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> None:
        # Handle every exception here: click would turn an EOFError into an abort with status 1.
        raise click.exceptions.Exit(_guarded(ctx.obj, lambda: super(Program, self).invoke(ctx)))


def _narrow() -> int | None:
    """The width of the help in a window narrower than click's minimum, else None."""
    if "COLUMNS" not in os.environ and not os.isatty(1):
        return None
    import shutil  # here, since it imports two compression libraries

    width = shutil.get_terminal_size().columns - 2
    return width if width < _CLICK_LEAST else None


def _output(args: list[str]) -> Output:
    options = args[: args.index("--")] if "--" in args else args
    return Output.of_process(json="--json" in options)


def _guarded(out: Output, run: Callable[[], int | None]) -> int:
    """Run `run` and return the exit status; every exception becomes a message and a status."""
    try:
        try:
            status = run() or YES
            out.flush()
        except click.exceptions.Exit as error:
            out.flush()
            return error.exit_code
        except BrokenPipeError:
            raise
        except Exception as error:  # noqa: BLE001 - a traceback would print unescaped text
            status = report(out, error)
            out.flush()
    except BrokenPipeError:
        out.abandon()
        return PIPE_CLOSED
    except KeyboardInterrupt:
        out.abandon()
        out.message("interrupted", own_line=True)
        return INTERRUPTED
    except OSError:  # writing to standard output failed; the message is on standard error already
        out.abandon()
        return UNREADABLE
    return status


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the option ``--json``, which every command has; `Output.json` has its value."""
    option = click.option(
        "--json", is_flag=True, expose_value=False, help="Print one JSON document."
    )
    return option(command)


FILE: Final = click.Path(readable=False, path_type=str)
"""The type of options that name a file. click does not check the file: opening it does."""


def checkpoint_path(*, many: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the argument PATH, or PATH... if `many`."""
    kind = click.Path(allow_dash=True, readable=False, path_type=str)
    name = "paths" if many else "path"
    return (
        click.argument(name, metavar="PATH...", type=kind, nargs=-1, required=True)
        if many
        else (click.argument(name, metavar="PATH", type=kind))
    )


_EPILOG: Final = """
PATH is a file, an index.json or a folder, or the URL of one: https, s3, gs, az, hf, oci (docs/remote.md).
Commands that only read headers or values also accept - for standard input. Piped output is lines of
tab-separated fields; names are escaped as in Python.

Exit status: 0 yes, 1 no, 2 wrong usage, 3 input could not be read.

\b
Shell completion (bash; also zsh, fish):
  eval "$(_SAFEWEIGHTS_COMPLETE=bash_source safeweights)"
"""


@click.group(
    cls=Program,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=_EPILOG,
)
@click.version_option(__version__, message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Inspect, check, convert, sign and verify model weights.

    Files of other formats (PyTorch, NumPy, GGUF ...) are read too; no code in them is executed.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(USAGE)
