"""`safeweights bom`: a model's bill of materials."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from ...text import escape
from ..app import FILE, json_option
from ..identities import identity_option
from ..watching import watched_files
from ..writing import STDOUT, check_replaceable

if TYPE_CHECKING:
    from ..output import Output

__all__ = ["command"]


@click.command("bom")
@click.argument("path", metavar="PATH", type=FILE)
@click.option(
    "-o", "--output", metavar="FILE", type=FILE, help="Write to FILE; - for standard output."
)
@click.option(
    "--force", is_flag=True, help="Let -o replace a file that is not a bill of materials."
)
@click.option("--name", help="The model's name [default: the last part of PATH].")
@click.option("--version", help="The model's version.")
@identity_option
@json_option
@click.pass_obj
def command(
    out: Output,
    /,
    path: str,
    *,
    output: str | None,
    force: bool,
    name: str | None,
    version: str | None,
) -> None:
    """Write a model's bill of materials (CycloneDX).

    The document is CycloneDX 1.6 in JSON, with or without --json. It lists every file with its SHA-256,
    the number of tensors of each type, and the licence, data sets and base model from the model card. It
    marks files that run code or can run code, symbolic links, and special files, which have no digest.

    PATH is a file, an index.json or a folder. If a folder has the same weights in several formats, the
    parameters of the safetensors files are counted. With -i, the contents of encrypted files are
    described; names and digests are those of the encrypted files.

    \b
    Examples:
      safeweights bom model/ -o model.cdx.json
      safeweights bom model/ --version 2.1 | jq '.components[].name'
    """
    from ...reports.bom import bill_of_materials, look_into
    from ...trust.files import check_model

    check_model(path)
    if output == STDOUT:
        output = None
    if output is not None:
        check_replaceable(output, _check_bill, "a bill of materials", force=force)
    with watched_files("reading", [path]) as progress:
        document = bill_of_materials(
            path, name=name, version=version, look=look_into, progress=progress
        )
    if output is not None:
        from ...storage import write_file

        write_file(output, [json.dumps(document, indent=2).encode() + b"\n"])
    if output is None or out.json:
        out.document(document)
    elif out.terminal:
        out.pretty().text(("wrote", "green"), "  ", (escape(output), "bold"))


def _check_bill(data: bytes) -> None:
    from ...trust.documents import parse_json

    parse_json(data).member("bomFormat").equals("CycloneDX")
