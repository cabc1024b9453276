"""`safeweights bom`: a model's bill of materials."""

from __future__ import annotations

import json
import os

import click

from .app import FILE, json_option
from .output import Output, escape
from .watching import watched_files

__all__ = ["command"]


@click.command("bom")
@click.argument("path", metavar="PATH", type=FILE)
@click.option("-o", "--output", metavar="FILE", type=FILE, help="Write it to FILE.")
@click.option("--name", help="What the model is called, instead of the last part of PATH.")
@click.option("--version", help="The model's version.")
@json_option
@click.pass_obj
def command(
    out: Output, path: str, output: str | None, name: str | None, version: str | None
) -> None:
    """Write a model's bill of materials (CycloneDX).

    The document is JSON of CycloneDX 1.6, with or without --json: every file with its SHA-256, the
    tensors by type, and what the model card states of licence, data sets and base model.

    \b
    Examples:
      safeweights bom model/ -o model.cdx.json
      safeweights bom model/ --version 2.1 | jq '.components[].name'
    """
    from ..trust import bill_of_materials
    from ..trust.files import check_writable

    os.stat(path)  # of nothing there is no bill
    if output is not None:
        check_writable(output)
    with watched_files("reading", [path]) as progress:
        document = bill_of_materials(path, name=name, version=version, progress=progress)
    if output is not None:
        from ..storage import write_file

        write_file(output, [json.dumps(document, indent=2).encode() + b"\n"])
    if output is None or out.json:
        out.document(document)
    elif out.terminal:
        out.pretty().text(("wrote", "green"), "  ", (escape(output), "bold"))
