"""Example files, and three ways to run the command line: in this process, in a new one, on a terminal."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from click.testing import CliRunner

from safeweights.cli.app import cli
from safeweights.format.writer import layout
from safeweights.reports.documents import DOCUMENTS
from safeweights.reports.schema import schema_of

SCHEMAS = {schema_of(document)["title"]: schema_of(document, closed=True) for document in DOCUMENTS}
ANSI = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture(scope="session")
def write():
    """Write a safetensors file of zeros or of the given data; return its Header."""

    def write(path, tensors, metadata=None, data=None):
        header, head = layout(tensors, metadata)
        Path(path).write_bytes(head + (bytes(header.data_size) if data is None else data))
        return header

    return write


MODEL = [
    ("embed.weight", "BF16", (100, 8)),
    ("norm.weight", "F32", (8,)),
    ("step", "I64", ()),
    *((f"layers.{i}.attn.{n}.weight", "BF16", (8, 8)) for i in range(12) for n in "qkv"),
]

HOSTILE = [
    "\x1b[2J\x1b]0;owned\x07",
    "line\nbreak\ttab\rreturn",
    "\u202egnp.exe\u2066",
    "\x9b31m",
    "\x7f\x00",
    "back\\slash",
    "[red]markup[/red] :smile:",
    "模型.重量",
    "",
    "x" * 5000,
    "../../etc/passwd",
]


@pytest.fixture(scope="session")
def model(tmp_path_factory, write):
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    write(path, MODEL, {"format": "pt"})
    return str(path)


@pytest.fixture(scope="session")
def hostile(tmp_path_factory, write):
    path = tmp_path_factory.mktemp("hostile") / "hostile.safetensors"
    metadata = {"k\x1b[31m": "v\x1b]0;owned\x07\u202e\x7f"}
    write(path, [(name, "F32", (1,)) for name in HOSTILE], metadata)
    return str(path)


@pytest.fixture
def sharded(tmp_path, write):
    """A folder of three shards with an index, whose members `index` changes."""
    folder = tmp_path / "sharded"
    folder.mkdir()
    weight_map, size = {}, 0
    for number in range(3):
        name = f"model-{number + 1:05}-of-00003.safetensors"
        size += write(folder / name, MODEL[number::3], {"format": "pt"}).data_size
        weight_map |= {tensor: name for tensor, _, _ in MODEL[number::3]}
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    folder_path = type("Sharded", (str,), {})(folder)
    folder_path.index = lambda change: path.write_text(json.dumps(change(index) or index))
    folder_path.index_path = str(path)
    return folder_path


@pytest.fixture
def quantised(tmp_path):
    """A GGUF file of two quantised tensors and a plain one."""

    def text(value):
        return struct.pack("<Q", len(value)) + value

    infos, data = b"", b""
    for name, shape, kind, size in (
        (b"blk.0.weight", (64, 4), 8, 272), (b"blk.1.weight", (64, 2), 8, 136),
        (b"norm", (32,), 2, 18), (b"scale", (8, 8), 0, 256),
    ):  # fmt: skip
        infos += text(name) + struct.pack("<I", len(shape))
        infos += struct.pack(f"<{len(shape)}QIQ", *shape, kind, len(data))
        data += bytes(size) + bytes(-size % 32)
    head = b"GGUF" + struct.pack("<IQQ", 3, 4, 0) + infos
    path = tmp_path / "model.gguf"
    path.write_bytes(head + bytes(-len(head) % 32) + data)
    return str(path)


@pytest.fixture
def run():
    """Run a command in this process; its JSON document is checked against the schema."""

    def run(*arguments, stdin=None, env=None):
        result = CliRunner().invoke(
            cli, list(arguments), input=stdin, prog_name="safeweights", env=env
        )
        assert result.exception is None or isinstance(result.exception, SystemExit), (
            result.exception
        )
        result.document = None
        if "--json" in arguments:
            result.document = json.loads(result.stdout)
            jsonschema.validate(result.document, SCHEMAS[result.document["schema"]])
        result.rows = [line.split("\t") for line in result.stdout.splitlines()]
        return result

    return run


COMMAND = [sys.executable, "-W", "error", "-m", "safeweights"]


@pytest.fixture
def process():
    """Start a command in a new process; return the Popen."""

    def process(*arguments, **options):
        # Unbuffered output would hide what happens to bytes that no process reads.
        kept = {name: text for name, text in os.environ.items() if name != "PYTHONUNBUFFERED"}
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": kept, **options}
        return subprocess.Popen([*COMMAND, *arguments], **options)

    return process


@pytest.fixture
def terminal():
    """Run a command on a terminal; return (what it prints, exit status)."""
    pty = pytest.importorskip("pty", reason="pseudo-terminals are a thing of POSIX")
    import fcntl
    import struct
    import termios

    def terminal(*arguments, width=80, **environment):
        outer, inner = pty.openpty()
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
        names = {"NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TTY_COMPATIBLE"}
        kept = {name: value for name, value in os.environ.items() if name not in names}
        child = subprocess.Popen(
            [*COMMAND, *arguments],
            stdin=inner,
            stdout=inner,
            stderr=inner,
            env={**kept, "TERM": "xterm-256color", **environment},
        )
        os.close(inner)
        shown = b""
        while True:
            try:
                part = os.read(outer, 65536)
            except OSError:  # Linux says EIO when the other end is closed
                break
            if not part:
                break
            shown += part
        os.close(outer)
        return shown.decode().replace("\r\n", "\n"), child.wait(timeout=60)

    return terminal


@pytest.fixture(scope="session")
def plain():
    """Terminal output without its escape sequences."""
    return lambda text: ANSI.sub("", text)
