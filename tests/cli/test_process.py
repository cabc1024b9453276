"""What needs a new process: pipes, signals, terminals, imported modules."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading

import pytest

from safeweights import __version__
from safeweights.cli import watching
from safeweights.cli.app import COMMANDS, Program, cli
from safeweights.cli.output import Output
from safeweights.errors import MissingDependencyError
from safeweights.format.writer import layout

UNUSED = {
    "lzma",
    "safeweights.checkpoint.saving",
    "safeweights.checkpoint.writer",
    "safeweights.storage.limits",
}
HEAVY = {
    "rich",
    "numpy",
    "torch",
    "ml_dtypes",
    "jsonschema",
    "cryptography",
    "safeweights.conversion.formats",
}

posix = pytest.mark.skipif(os.name != "posix", reason="descriptors and signals of POSIX")


@pytest.fixture(scope="module")
def long(tmp_path_factory, write):
    path = tmp_path_factory.mktemp("long") / "long.safetensors"
    write(path, [(f"layers.{i // 10}.{i % 10}.weight", "U8", ()) for i in range(20_000)])
    return str(path)


# --- help


def test_the_table_of_commands_agrees_with_them():
    for name, about in COMMANDS.items():
        command = Program().get_command(None, name)
        assert command.name == name
        assert command.get_short_help_str(200) == about
        assert "Examples:" in command.help


def test_help_and_version(run):
    for name in COMMANDS:
        result = run(name, "--help")
        assert result.exit_code == 0
        assert max(map(len, result.stdout.splitlines())) <= 80
        assert "\x08" not in result.stdout
    for width in (40, 80):
        result = run("show", "--help", env={"COLUMNS": str(width)}).stdout
        assert max(map(len, result.partition("Examples:")[0].splitlines())) <= width
        result = run("--help", env={"COLUMNS": str(width)}).stdout
        assert max(map(len, result.partition("Shell")[0].splitlines())) <= width
        assert "\x08" not in result
    assert run("-h").stdout == run("--help").stdout
    assert run("--version").stdout == f"safeweights {__version__}\n"


def test_wrong_usage(run):
    nothing = run()
    assert (nothing.exit_code, nothing.stdout) == (2, "")
    assert "Commands:" in nothing.stderr
    for arguments in (
        ["nothing"],
        ["ls"],
        ["--bad"],
        ["ls", "--bad", "x"],
        ["ls", "x", "--sort", "y"],
    ):
        result = run(*arguments, "--json")
        assert result.exit_code == result.document["exit_code"] == 2
        assert result.document["error"]["kind"] == "usage"
        assert "--help" in run(*arguments).stderr
        assert run(*arguments).stdout == ""


@pytest.mark.parametrize("group", ["delta", "policy", "batch"])
def test_a_group_without_a_command_prints_its_help(run, group):
    result = run(group)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == run(group, "--help").stdout


def test_the_argument_that_is_missing_is_named(run, model):
    for arguments in ([], [model]):
        result = run("convert", *arguments)
        assert result.exit_code == 2
        assert "Missing argument 'DST'" in result.stderr


def test_where_standard_input_is_not_read_that_is_said(run, tmp_path):
    for command in ("convert", "edit"):
        result = run(command, "-", str(tmp_path / "out.safetensors"))
        assert result.exit_code == 3
        assert "standard input is not read here" in result.stderr


def test_a_file_that_is_never_replaced_is_named_with_what_to_do(run, tmp_path):
    pytest.importorskip("cryptography", reason="keys need the extra [trust]")
    key = str(tmp_path / "key")
    assert run("keygen", key).exit_code == 0
    result = run("keygen", key)
    assert result.exit_code == 3
    assert f"{key}.pub: it exists already and is not replaced; choose another" in result.stderr


def test_what_is_written_or_found_is_named_on_a_terminal(terminal, plain, model, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "README.md").write_text("# nothing")
    for arguments, expected in (
        (["hash", model, "-o", f"{tmp_path}/sums"], "wrote  "),
        (["get", model, "step", "-o", f"{tmp_path}/step.npy"], "wrote  "),
        (["check", str(folder)], "folder  text"),
        (["digest", os.path.dirname(model)], "1 file, 1 block tree, "),
    ):
        shown, status = terminal(*arguments, width=300)
        assert status == 0
        assert expected in plain(shown)


def test_a_misspelt_command_is_recognised(run):
    assert "No such command 'chekc'. Did you mean 'check'?" in run("chekc", "x").stderr
    assert run("frobnicate").stderr.endswith("No such command 'frobnicate'.\n")
    assert "\x1b" not in run("\x1b[2J").stderr


def test_completion_scripts(run):
    from click.testing import CliRunner

    for shell in ("bash", "zsh", "fish"):
        variables = {"_SAFEWEIGHTS_COMPLETE": f"{shell}_source"}
        if shell == "bash" and not os.path.exists("/bin/bash"):
            continue
        result = CliRunner().invoke(cli, [], prog_name="safeweights", env=variables)
        assert "_SAFEWEIGHTS_COMPLETE" in result.stdout


# --- errors


def test_errors_are_on_stderr_and_with_json_on_stdout_too(run, tmp_path):
    missing = str(tmp_path / "missing")
    for command in (["show"], ["ls"], ["get"]):
        arguments = [*command, missing, *(["a"] if command == ["get"] else [])]
        plain = run(*arguments)
        assert (plain.exit_code, plain.stdout) == (3, "")
        assert plain.stderr == f"safeweights: error: {missing}: No such file or directory\n"
        result = run(*arguments, "--json")
        assert result.document["error"]["path"] == missing
        assert result.document["exit_code"] == 3


@posix
def test_what_cannot_be_opened_is_said_in_words(run, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path, what in (
        ("", "the path is empty (No such file or directory)"),
        ("/dev/null", "/dev/null: not a regular file, but a device, a pipe or a socket"),
        (str(tmp_path / "fifo"), "not a regular file, but a device, a pipe or a socket"),
    ):
        assert f"error: {what}" in run("show", path).stderr.replace(f"{tmp_path}/fifo: ", "")
        assert what in run("check", path).stdout


def test_a_file_that_is_no_model_is_a_no(run, tmp_path):
    (tmp_path / "x").write_bytes(b"\x40" + bytes(7) + b"not json" * 8)
    result = run("ls", str(tmp_path / "x"), "--json")
    error = result.document["error"]
    assert (result.exit_code, error["kind"], error["rule"], error["offset"]) == (
        1,
        "format",
        "json",
        8,
    )


@posix
def test_permission_is_not_a_no(run, tmp_path, model):
    if not os.geteuid():
        pytest.skip("root may read everything")
    os.chmod(tmp_path, 0)
    assert run("ls", str(tmp_path / "x")).exit_code == 3
    os.chmod(tmp_path, 0o700)


def test_an_error_of_ours_is_neither_yes_nor_no(monkeypatch, run, model):
    def broken(*_, **__):
        raise ZeroDivisionError("\x1b[2J")

    monkeypatch.setattr("safeweights.cli.commands.ls.open_checkpoint", broken)
    result = run("ls", model, "--json")
    assert (result.exit_code, result.document["error"]["kind"]) == (3, "internal")
    assert "\x1b" not in result.stderr
    assert "ZeroDivisionError" in result.stderr


def test_a_missing_package_is_not_a_no(monkeypatch, run, model):
    def broken(*_, **__):
        raise MissingDependencyError("needs the package x: pip install 'safeweights[x]'")

    monkeypatch.setattr("safeweights.cli.commands.ls.open_checkpoint", broken)
    result = run("ls", model, "--json")
    assert (result.exit_code, result.document["error"]["kind"]) == (3, "dependency")


def test_a_package_that_is_gone_is_named(monkeypatch, run, model):
    def broken(*_, **__):
        raise ModuleNotFoundError("No module named 'numpy.core'", name="numpy.core")

    monkeypatch.setattr("safeweights.cli.commands.ls.open_checkpoint", broken)
    result = run("ls", model, "--json")
    assert (result.exit_code, result.document["error"]["kind"]) == (3, "dependency")
    assert "pip install numpy" in result.stderr


def test_without_click_one_line_says_so():
    code = "import sys; sys.modules['click'] = None; from safeweights.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (3, b"")
    assert done.stderr == b"safeweights: error: the command line needs click: pip install click\n"


def test_without_rich_a_terminal_gets_what_a_pipe_does(monkeypatch):
    class Screen(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdout", Screen())
    monkeypatch.setattr(sys, "stderr", Screen())
    assert Output.of_process(json=False).terminal
    monkeypatch.setitem(sys.modules, "rich", None)
    assert not Output.of_process(json=False).terminal
    with watching.watched("reading", 1 << 40) as progress:
        progress(1)
    assert sys.stderr.getvalue() == ""


def test_a_file_that_shrinks_while_it_is_read_is_an_error(monkeypatch, run, write, tmp_path):
    write(tmp_path / "x", [("a", "U8", (1 << 20,))])
    from safeweights.cli.commands import get

    select = get._select

    def shrink(*arguments):
        os.truncate(tmp_path / "x", 1000)
        return select(*arguments)

    monkeypatch.setattr(get, "_select", shrink)
    result = run("get", str(tmp_path / "x"), "a", "--stats", "--json")
    assert (result.exit_code, result.document["error"]["kind"]) == (1, "truncated")


# --- pipes and signals


@posix
@pytest.mark.parametrize("size", ["long", "model"])  # beyond and within what a stream buffers
@pytest.mark.parametrize("arguments", [["ls"], ["ls", "--tree"], ["ls", "--json"], ["check"]])
def test_a_reader_that_leaves_ends_it_quietly(request, process, size, arguments):
    command, *options = arguments
    outer, inner = os.pipe()
    os.close(outer)
    child = process(command, request.getfixturevalue(size), *options, stdout=inner)
    os.close(inner)
    assert child.communicate(timeout=60)[1] == b""
    assert child.returncode == 141


@posix
def test_head(long):
    command = f'"{sys.executable}" -W error -m safeweights ls "{long}" | head -1'
    done = subprocess.run(["sh", "-c", command], capture_output=True, timeout=60, check=True)
    assert done.stdout == b"layers.0.0.weight\tU8\t[]\t1\n"
    assert done.stderr == b""


@posix
@pytest.mark.parametrize(
    "arguments",
    [["ls", "FILE"], ["ls", "FILE", "--json"], ["ls", "--help"], ["--help"], ["--version"]],
)
def test_a_full_disk_is_reported(process, model, arguments, tmp_path):
    """A limit of no bytes per file, because a full disk cannot be had without a device node."""
    import resource

    def no_space():
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    arguments = [model if argument == "FILE" else argument for argument in arguments]
    with open(tmp_path / "full", "wb") as full:
        child = process(*arguments, stdout=full, preexec_fn=no_space)
        error = child.communicate(timeout=60)[1]
    assert child.returncode == 3
    assert b"File too large" in error
    assert error.count(b"\n") == 1


@posix
def test_closed_standard_streams_are_no_crash(model):
    command = f'"{sys.executable}" -m safeweights ls "{model}" >&- 2>&-'
    assert subprocess.run(["sh", "-c", command], timeout=60, check=False).returncode == 0
    command = f'"{sys.executable}" -m safeweights ls - <&-'
    done = subprocess.run(["sh", "-c", command], capture_output=True, timeout=60, check=False)
    assert done.returncode == 3
    assert b"standard input is closed" in done.stderr


@posix
def test_ctrl_c_ends_with_130_and_one_line(process):
    child = process("ls", "-", stdin=subprocess.PIPE)
    _, head = layout([("a", "U8", (1 << 24,))])
    # More than a pipe holds: returns when the command is reading.
    child.stdin.write(head + bytes(1 << 20))
    child.stdin.flush()
    child.send_signal(signal.SIGINT)
    out, error = child.communicate(timeout=60)
    assert (child.returncode, out, error) == (130, b"", b"safeweights: interrupted\n")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_encoding_of_the_output(process, hostile, encoding):
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    out, error = process("ls", hostile, env=environment).communicate(timeout=60)
    assert error == b""
    assert len(out.splitlines()) == 11
    assert ("模型" if encoding == "utf-8" else "\\u6a21\\u578b") in out.decode(encoding)


# --- nothing that a file says reaches the terminal as it is

EVERYWHERE = [["show"], ["ls"], ["ls", "--tree"], ["check"], ["check", "--strict"]]


@pytest.mark.parametrize("options", EVERYWHERE, ids=" ".join)
def test_hostile_names_piped(run, hostile, options):
    command, *more = options
    result = run(command, hostile, *more)
    assert all(c.isprintable() or c in "\t\n" for c in result.stdout + result.stderr)
    result = run(command, hostile, *more, "--json")
    assert result.stdout.isascii()
    assert all(c.isprintable() or c == "\n" for c in result.stdout)


@pytest.mark.parametrize("options", EVERYWHERE, ids=" ".join)
@pytest.mark.parametrize("width", [80, 30])
def test_hostile_names_on_a_terminal(terminal, plain, hostile, options, width):
    command, *more = options
    shown, _ = terminal(command, hostile, *more, width=width)
    text = plain(shown)
    assert all(c.isprintable() or c == "\n" for c in text)
    assert "x" * 300 not in "".join(text.split())
    assert "[red]markup" in text or command != "ls" or width == 30


def test_hostile_arguments_and_paths(run, tmp_path, write):
    name = "\x1b[2J\u202e\n.safetensors"
    path = str(tmp_path / name)
    write(path, [("a", "U8", ())])
    for arguments in (
        ["show", path], ["ls", str(tmp_path)], ["check", path], ["check", str(tmp_path)],
        ["get", path, "\x1b[2J"], ["get", path, "a[\x1b]"], ["ls", path, "\x1b*"],
        ["ls", path + "\x1b"], ["\x1b"], ["ls", "--\x1b", "x"], ["ls", "x", "--sort", "\x1b"],
    ):  # fmt: skip
        result = run(*arguments)
        shown = result.stdout + result.stderr
        assert all(c.isprintable() or c in "\t\n" for c in shown), arguments


def test_undecodable_paths(run, tmp_path, write):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe")
    try:
        write(path, [("a", "U8", ())])
    except OSError:
        pytest.skip("the filesystem takes no such name")
    assert run("ls", path).rows == [["a", "U8", "[]", "1"]]
    assert run("show", path, "--json").document["path"] == path
    assert run("check", path).rows[0][1].endswith("\\udcff\\udcfe")


# --- terminals


@pytest.mark.parametrize("options", [["show"], ["ls"], ["ls", "--tree"], ["check"]], ids=" ".join)
def test_eighty_columns(terminal, plain, tmp_path, write, options):
    path = tmp_path / ("long-name-" * 12 + ".safetensors")
    name = "model.language_model.layers.{}.self_attention.query_key_value.projection.weight"
    write(
        path,
        [(name.format(i), "F8_E4M3FNUZ", (1, 2, 3, 4, 5, 6, 7, 8, 9)) for i in range(3)],
        {"description": "words " * 50},
    )
    command, *more = options
    shown, status = terminal(command, str(path), *more)
    assert status == 0
    assert max(map(len, plain(shown).splitlines())) <= 80
    if options == ["ls"]:
        first = [line[:40].rstrip() for line in plain(shown).splitlines()[1:]]
        assert name.format(0) in "".join(part.split(" ")[0] for part in first)


def test_colours_only_where_they_are_wanted(terminal, process, model):
    assert "\x1b[" in terminal("ls", model)[0]
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", terminal("ls", model, NO_COLOR="1")[0])
    assert "\x1b" not in terminal("ls", model, TERM="dumb")[0]
    assert b"\x1b" not in process("ls", model).communicate(timeout=60)[0]


def test_json_on_a_terminal_is_indented_and_nothing_else(terminal, model):
    shown, _ = terminal("show", model, "--json")
    assert json.loads(shown)["schema"] == "safeweights.show/1"
    assert "\n  " in shown


def test_npy_is_not_written_to_a_terminal(terminal, model):
    shown, status = terminal("get", model, "step", "-o", "-")
    assert status == 2
    assert "NUMPY" not in shown


def test_progress_is_shown_on_a_terminal_and_taken_away(terminal, write, tmp_path):
    path = tmp_path / "sparse"
    write(path, [("a", "U8", (1 << 28,))], data=b"")
    os.truncate(path, (1 << 28) + int.from_bytes(path.read_bytes()[:8], "little") + 8)
    shown, status = terminal("get", str(path), "a", "--stats")
    assert status == 0
    assert "reading 268.4 MB" in shown


@pytest.fixture
def endless(tmp_path):
    """A file that takes hours to read, and a destination without space."""
    path = tmp_path / "folder" / "endless.safetensors"
    path.parent.mkdir()
    head = json.dumps({"a": {"dtype": "U8", "shape": [1 << 40], "data_offsets": [0, 1 << 40]}})
    path.write_bytes(len(head).to_bytes(8, "little") + head.encode())
    try:
        os.truncate(path, 8 + len(head) + (1 << 40))
    except OSError:
        pytest.skip("the filesystem has no files of a terabyte")
    return str(path.parent)


READING = {
    "hash": [],
    "sign": ["--key", "key"],
    "verify": ["--key", "key.pub"],
    "admit": ["--policy", "policy.toml"],
    "bom": [],
}


@posix
@pytest.mark.parametrize("command", READING)
def test_ctrl_c_ends_reading_of_a_large_file(command, endless, process, run, tmp_path, monkeypatch):
    if command in ("sign", "verify"):
        pytest.importorskip("cryptography", reason="signatures need the extra [trust]")
        assert run("keygen", str(tmp_path / "key")).exit_code == 0
    monkeypatch.chdir(tmp_path)
    (tmp_path / "policy.toml").write_text('[[rules]]\npattern = "*"\nlevel = "none"\n')
    if command == "verify":
        weights = os.path.join(endless, "endless.safetensors")
        os.rename(weights, "kept")
        (tmp_path / "folder" / "endless.safetensors").write_bytes(b"x")
        assert run("sign", endless, "--key", "key").exit_code == 0
        os.rename("kept", weights)
    outer, inner = os.openpty()
    child = process(command, endless, *READING[command], stderr=inner, start_new_session=True)
    os.close(inner)
    shown = ""
    while shown.count("1.1 TB") < 5:  # the bar is there, and it moves
        shown += os.read(outer, 65536).decode()
    child.send_signal(signal.SIGINT)
    hanging = threading.Timer(60, child.kill)
    hanging.start()
    # Read what it still shows: a terminal that is full would keep it from ending.
    with contextlib.suppress(OSError):  # Linux says EIO when the other end is closed
        while part := os.read(outer, 65536).decode():
            shown += part
    os.close(outer)
    assert child.communicate()[0] == b""
    hanging.cancel()
    assert child.returncode == 130
    assert "safeweights: interrupted" in shown
    assert not (tmp_path / "folder" / "model.sig").exists() or command == "verify"


# --- what is imported

CODE = """
import sys
from safeweights.cli import main
sys.argv = ["safeweights", *{arguments!r}]
try:
    main()
except SystemExit:
    pass
sys.stderr.write(" ".join(sys.modules))
"""


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["ls", "--help"], ["ls", "FILE"], ["ls", "FILE", "--tree"],
     ["ls", "FILE", "--json"], ["show", "FILE"], ["check", "FILE"]],
    ids=" ".join,
)  # fmt: skip
def test_plain_output_imports_nothing_heavy(model, arguments):
    arguments = [model if argument == "FILE" else argument for argument in arguments]
    code = CODE.format(arguments=arguments)
    # readline sets COLUMNS behind Python's back, and the program would look up the width of a pipe.
    plain = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, timeout=60, check=True, env=plain
    )
    assert done.stdout
    imported = set(done.stderr.decode().split())
    assert "safeweights.cli.app" in imported
    assert not imported & HEAVY
    others = {name.rpartition(".")[2] for name in imported if name.startswith("safeweights.cli.")}
    assert len(others & set(COMMANDS)) <= 1
    if arguments in (["ls", model], ["show", model]):  # nothing that saves, no compression library
        assert imported & UNUSED == set()


def test_a_folder_with_settings_is_shown_without_numpy(model, tmp_path):
    shutil.copy(model, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    code = CODE.format(arguments=["show", str(tmp_path)])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=True)
    imported = set(done.stderr.decode().split())
    assert "safeweights.conversion.kinds" in imported
    assert not imported & {"rich", "numpy", "torch"}


def test_values_are_piped_without_rich(model):
    code = CODE.format(arguments=["get", model, "step", "--stats"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=True)
    imported = set(done.stderr.decode().split())
    assert "numpy" in imported
    assert not imported & {"rich", "torch"}
