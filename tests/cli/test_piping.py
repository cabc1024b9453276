"""Standard input that may never end, as commands read it."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys

import pytest

from safeweights.format.writer import layout


@pytest.fixture
def contents():
    header, head = layout([("a", "F32", (4, 4)), ("b", "U8", (3,))])
    return head + bytes(range(header.data_size))


@pytest.mark.skipif(sys.platform == "win32", reason="devices of POSIX")
@pytest.mark.parametrize("command", ["show", "ls", "check"])
def test_devices_without_an_end(process, command):
    with open("/dev/zero", "rb") as zeros:
        child = process(command, "-", stdin=zeros)
        out, error = child.communicate(timeout=60)
    assert child.returncode == 1
    assert b"nothing but zero bytes" in out + error


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_ctrl_c_leaves_nothing(process, tmp_path):
    child = process(
        "get", "-", "a", stdin=subprocess.PIPE, env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    _, head = layout([("a", "U8", (1 << 24,))])
    child.stdin.write(head + bytes(1 << 21))  # more than a pipe holds: it is being kept
    child.stdin.flush()
    child.send_signal(signal.SIGINT)
    out, error = child.communicate(timeout=60)
    assert (child.returncode, out, error) == (130, b"", b"safeweights: interrupted\n")
    assert list(tmp_path.iterdir()) == []


def test_get_takes_values_from_a_pipe(run, contents):
    assert run("get", "-", "b", stdin=contents).stdout == "64\t65\t66\n"
    assert json.loads(run("get", "-", "b", "--json", stdin=contents).stdout)["path"] == "-"


def test_hash_of_standard_input_is_that_of_sha256sum(run, contents):
    digest = hashlib.sha256(contents).hexdigest()
    assert run("hash", "-", stdin=contents).stdout == f"{digest}  -\n"
    files = json.loads(run("hash", "-", "--json", stdin=contents).stdout)["files"]
    assert files == [{"path": "-", "bytes": len(contents), "sha256": digest}]
    refused = run("hash", "-", "-o", "sums", stdin=contents)
    assert refused.exit_code == 2
    assert "standard input" in refused.output + refused.stderr


def test_digests_are_in_the_order_of_the_paths(run, contents, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(name.encode())
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    for paths in ([a, "-", b], ["-", a], [a, b, "-"], [a, "-", "missing", b]):
        given = [path for path in paths if path != "missing"]
        done = run("hash", *paths, stdin=contents)
        assert [line.split("  ")[1] for line in done.stdout.splitlines()] == given
        files = json.loads(run("hash", *paths, "--json", stdin=contents).stdout)["files"]
        assert [file["path"] for file in files] == given


@pytest.mark.parametrize(
    "command", [("convert", "a"), ("edit", "a", "--dtype", "F16"), ("delta", "apply", "d")]
)
def test_what_prints_its_result_writes_no_file_to_standard_output(
    run, tmp_path, monkeypatch, command
):
    monkeypatch.chdir(tmp_path)
    name, *rest = command
    source, options = rest[:1], rest[1:]
    if name == "delta":
        source, options = rest, ["--base", "b"]
    refused = run(name, *source, "-", *options)
    assert refused.exit_code == 2
    assert "./- for a file called -" in refused.output + refused.stderr
    assert os.listdir() == []
