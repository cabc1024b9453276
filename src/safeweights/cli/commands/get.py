"""`safeweights get`: one tensor, or a part of one."""

from __future__ import annotations

import errno
import math
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from ...conversion.opening import open_checkpoint
from ...storage.pipes import STDIN
from ...storage.places import shown
from ...text import count, escape, plural
from ..app import checkpoint_path, json_option
from ..figures import bars, digits
from ..identities import identity_option
from ..selectors import Choice, split
from ..watching import watched

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from ...checkpoint import Tensor
    from ...format.indexing import Selection
    from ...reports.documents import GetDocument, StatisticsRecord
    from ..output import Output

__all__ = ["command"]


def _complete_name(
    context: click.Context,
    parameter: click.Parameter,  # noqa: ARG001 - click's signature
    incomplete: str,
) -> list[str]:
    """Names of tensors that begin with the text typed so far. A shell cannot show errors: none here."""
    path = context.params.get("path")
    try:
        names = open_checkpoint(path) if path and path != STDIN else ()
    except Exception:  # noqa: BLE001
        return []
    return [name for name in names if name.startswith(incomplete) and name.isprintable()][:200]


@click.command("get")
@checkpoint_path()
@click.argument("tensor", metavar="TENSOR[SLICE]", shell_complete=_complete_name)
@click.option(
    "--dequantize", is_flag=True, help="Compute the values of quantised weights, in float32."
)
@click.option("--stats", is_flag=True, help="Print statistics instead of values.")
@click.option(
    "-o", "--output", type=click.Path(allow_dash=True, readable=False, path_type=str),
    help="Write a .npy file (missing folders are created); - for standard output.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Replace an existing file.")
@click.option(
    "--limit", type=click.IntRange(0), default=1000, show_default=True,
    help="Maximum number of values to print; 0 prints all.",
)  # fmt: skip
@identity_option
@json_option
@click.pass_obj
def command(
    out: Output,
    path: str,
    tensor: str,
    *,
    dequantize: bool,
    stats: bool,
    output: str | None,
    force: bool,
    limit: int,
) -> None:
    """Print, describe or export one tensor, or a part of one.

    SLICE is NumPy's basic indexing: integers, START:STOP:STEP, ... and None. Only the selected bytes are
    read. If a tensor has the whole argument as its name, brackets included, that tensor is printed.

    On a terminal, only the corners are printed if the selection has more than --limit values. Piped, the
    first --limit values are printed, one row of the last axis per line, separated by tabs, with enough
    digits for a program to read the same number.

    With --stats, min, max, mean and std are computed from the finite values; std is the population
    standard deviation. With -o, BF16, F8 and F4 are written as float32, which represents them exactly.

    \b
    Examples:
      safeweights get model.safetensors lm_head.weight
      safeweights get model.safetensors 'layers.0.weight[0, :, ::2]'
      safeweights get model/ lm_head.weight --stats
      safeweights get model/ 'lm_head.weight[:100]' -o head.npy
      safeweights get model.gguf 'token_embd.weight[5, :8]' --dequantize
    """
    if stats and output is not None:
        raise click.UsageError("--stats and -o exclude each other")
    if output == STDIN and (out.json or sys.stdout.isatty()):
        raise click.UsageError("-o - needs standard output without --json, and not a terminal")
    if output not in {None, STDIN}:
        _check_suffix(output)
    checkpoint = open_checkpoint(path)
    checkpoint = checkpoint.dequantize() if dequantize else checkpoint
    choice = split(tensor, checkpoint)
    found = checkpoint[choice.name]
    found.check_readable()
    selection = _select(choice, found, path)
    document = _document(path, choice, found, selection)
    if output is not None:
        _write(
            out,
            [path, *(file.name for file in checkpoint.files)],
            found,
            selection,
            output,
            force=force,
        )
        document["output"] = output
    elif stats:
        document["statistics"] = _statistics(found, selection)
    elif out.json:
        document["values"], document["truncated"] = _listed(found, selection, limit)
    if out.json:
        out.document(document)
    elif stats:
        _print_statistics(out, document)
    elif output is not None:
        if output != STDIN and out.terminal:
            out.pretty().text(("wrote", "green"), "  ", (escape(output), "bold"))
    else:
        _print_values(out, document, found, selection, limit or sys.maxsize)


def _select(choice: Choice, tensor: Tensor, path: str) -> Selection:
    from ...errors import SelectionError
    from ...format.indexing import select

    try:
        return select(choice.expression, tensor.shape, clamp=True)
    except SelectionError as error:
        error.path, error.tensor = path, choice.name
        raise


def _document(path: str, choice: Choice, tensor: Tensor, selection: Selection) -> GetDocument:
    return {
        "schema": "safeweights.get/1",
        "path": shown(path),
        "tensor": choice.name,
        "dtype": tensor.dtype,
        "tensor_shape": list(tensor.shape),
        "selection": choice.selection,
        "shape": list(selection.shape),
        "values": None,
        "truncated": False,
        "statistics": None,
        "output": None,
    }


def _listed(tensor: Tensor, selection: Selection, limit: int) -> tuple[list[Any], bool]:
    from ...reports.values import first_values, widen

    total = math.prod(selection.counts)
    found = first_values(tensor, selection, limit or total)
    if found.dtype.kind not in "biuc":
        found = widen(found)
    return [_plain(value) for value in found.tolist()], len(found) < total


def _plain(value: Any) -> Any:
    """A value as JSON can hold it: complex as a pair, NaN and infinities as strings."""
    if isinstance(value, complex):
        return [_plain(value.real), _plain(value.imag)]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _statistics(tensor: Tensor, selection: Selection) -> StatisticsRecord:
    from ...reports.statistics import statistics_of

    elements = math.prod(selection.counts)
    size = tensor.nbytes * elements // (math.prod(tensor.shape) or 1)
    with watched("reading", size, elements) as progress:
        return next(statistics_of([(tensor, selection)], progress))


def _check_suffix(output: str) -> None:
    suffix = os.path.splitext(output)[1]
    if suffix.lower() not in {"", ".npy"}:
        raise click.UsageError(
            f"-o writes NumPy's format, not {escape(suffix)}: call the file .npy, or use `safeweights "
            "convert --only NAME` for safetensors"
        )


def _write(
    out: Output,
    inputs: Iterable[str],
    tensor: Tensor,
    selection: Selection,
    target: str,
    *,
    force: bool,
) -> None:
    from ...reports.values import npy, npy_dtype
    from ...storage import LocalStore, write_stream

    contents = npy(tensor, selection)
    if target == STDIN:
        out.flush()
        write_stream(sys.stdout.buffer, contents)
        return
    if any(_same_file(target, name) for name in inputs):
        raise click.UsageError(f"{escape(target)} is the input file")
    if not force and os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, "exists; --force replaces it", target)
    size = math.prod(selection.counts) * npy_dtype(tensor).itemsize
    folder, name = os.path.split(target)
    if not name:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), target)
    with watched("writing", size) as progress:
        LocalStore(folder).write(name, contents, create_only=not force, progress=progress)


def _same_file(first: str, second: str) -> bool:
    try:
        return os.path.samefile(first, second)
    except OSError:
        return False


def _print_statistics(out: Output, document: GetDocument) -> None:
    found: Mapping[str, Any] | None = document["statistics"]
    assert found is not None
    shown = {
        "dtype": document["dtype"],
        "shape": str(document["shape"]) if out.terminal else _dense(document["shape"]),
        "elements": math.prod(document["shape"]),
        **found,
    }
    distribution = shown.pop("distribution")
    items = [(name, _shown(value)) for name, value in shown.items()]
    if distribution is not None:
        for share, value in distribution["quantiles"].items():
            items.append((f"quantile {share}", digits(value, 6)))
        if out.terminal:
            items.append(("values", bars(distribution["bins"])))
    if not out.terminal:
        out.lines(items)
        return
    screen = out.pretty()
    screen.text((escape(document["tensor"] + (document["selection"] or "")), "bold"))
    screen.pairs(items)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else digits(value, 6)


def _dense(shape: list[int]) -> str:
    return str(shape).replace(" ", "")


def _print_values(
    out: Output, document: GetDocument, tensor: Tensor, selection: Selection, limit: int
) -> None:
    if out.terminal:
        from ...reports.values import render

        screen = out.pretty()
        name = escape(document["tensor"] + (document["selection"] or ""))
        about = f"  {tensor.dtype} {list(selection.shape)}"
        screen.text((name, "bold"), (about, "dim"))
        screen.raw(render(tensor, selection, limit=limit, width=screen.width))
        return
    out.lines(_rows(tensor, selection, limit))
    total = math.prod(selection.counts)
    if total > limit:
        out.message(
            f"printed {plural(limit, 'value')} of {count(total)}; --limit 0 prints all, -o writes a file"
        )


def _rows(tensor: Tensor, selection: Selection, limit: int) -> Iterator[list[str]]:
    """The first `limit` values in rows of the last axis."""
    from ...reports.values import blocks, spelt

    width = selection.shape[-1] if selection.shape else 1
    row: list[str] = []
    left = limit
    for block in blocks(tensor, selection, max(8, min(limit, 1 << 16))):
        for value in spelt(block[:left]):
            row.append(value)
            if len(row) == width:
                yield row
                row = []
        left -= len(block)
        if left <= 0:
            break
    if row:
        yield row
