"""`safeweights view`: look at a model in a browser."""

from __future__ import annotations

import math
import webbrowser
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from ...errors import MissingDependencyError, SafetensorError
from ...storage.places import shown
from ...text import escape
from ..app import FILE, checkpoint_path, json_option
from ..identities import identity_option
from ..watching import watched
from ..writing import check_replaceable, not_stdout

if TYPE_CHECKING:
    from ...reports.documents import ViewDocument
    from ...view.viewing import Viewed
    from ..output import Output

__all__ = ["command"]


@click.command("view")
@checkpoint_path()
@click.option(
    "--policy", metavar="FILE", type=FILE, help="Show whether this policy admits the model."
)
@click.option("--key", metavar="FILE", type=FILE, help="Verify the signature with this public key.")
@click.option("--compare", "other", metavar="OTHER", type=FILE, help="Show what differs in OTHER.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    help="Port of the server [default: any free one].",
)
@click.option("--no-open", is_flag=True, help="Print the address only; do not open a browser.")
@click.option(
    "--export", metavar="FILE", type=FILE, help="Write the page to FILE, and start no server."
)
@click.option("--stats", is_flag=True, help="With --export: include statistics of all tensors.")
@click.option("--force", is_flag=True, help="Let --export replace a file.")
@identity_option
@json_option
@click.pass_obj
def command(
    out: Output,
    /,
    path: str,
    *,
    policy: str | None,
    key: str | None,
    other: str | None,
    port: int,
    no_open: bool,
    export: str | None,
    stats: bool,
    force: bool,
) -> None:
    """Show a model in a browser, or write a report.

    The page shows modules, tensors with their values, the positions of the bytes, and the findings of
    `check`. With --key, it shows whether the signature is valid; with --policy, whether the policy admits
    the model and why; and with --compare, what differs in another model.

    The page is served read-only, to this machine only, until Ctrl-C. The address contains a secret token:
    every user of this machine who knows it can see the model. The page loads nothing from the internet.

    With --export, the page is written to one file, which you can send to others. The file has no values
    and no pictures of tensors; with --stats, it has their statistics and histograms.

    \b
    Examples:
      safeweights view model.safetensors
      safeweights view model/ --policy policy.toml
      safeweights view base/ --compare tuned/
      safeweights view model/ --export report.html --stats
    """
    if (stats or force) and export is None:
        raise click.UsageError("--stats and --force belong to --export")
    not_stdout("--export", export)
    from ...view.viewing import Viewed

    if export is None:
        _serve(out, Viewed(path, policy=policy, key=key, other=other), port, opening=not no_open)
        return
    check_replaceable(export, _require_report, "a report of this command", force=force)
    viewed = Viewed(path, policy=policy, key=key, other=other)
    _export(viewed, export, statistics=stats)
    if out.json:
        out.document(_document(path, None, export))
    elif out.terminal:
        out.message(f"wrote {escape(export)}")


def _document(path: str, address: str | None, output: str | None) -> ViewDocument:
    return {
        "schema": "safeweights.view/1",
        "path": shown(path),
        "address": address,
        "output": output,
    }


def _serve(out: Output, viewed: Viewed, port: int, *, opening: bool) -> None:
    try:
        from ...view.server import address, listen, new_token, run
    except ImportError as error:
        raise MissingDependencyError(
            "the page needs Starlette and uvicorn: pip install 'safeweights[view]'"
        ) from error
    token = new_token()
    bound = listen(port)
    where = address(bound, token)
    if out.json:
        out.document(_document(viewed.path, where, None))
    else:
        out.line(where)
    out.flush()
    if opening and not webbrowser.open(where):
        out.message("no browser could be started: open the address yourself")
    out.message("serving this machine only; Ctrl-C ends it")
    with suppress(KeyboardInterrupt):  # the way to end it
        run(viewed, bound, token)


def _export(viewed: Viewed, target: str, *, statistics: bool) -> None:
    from ...storage import write_file
    from ...view.export import report

    size = sum(row.nbytes for row in viewed.rows) if statistics else 0
    values = sum(math.prod(row.shape) for row in viewed.rows)
    with watched("reading", size, values) as progress:
        html = report(viewed, statistics=statistics, progress=progress)
    write_file(target, [html.encode()])


def _require_report(data: bytes) -> None:
    if b'id="exported-data"' not in data:
        raise SafetensorError("this is not a report")
