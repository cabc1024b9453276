"""Standard input that may never end: what is read of it, and what of that is kept."""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import itertools
import os
import pickle
import random
import shutil
import sys
import tempfile
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest

from safeweights.checkpoint import SafetensorsFile
from safeweights.conversion.opening import is_known, read_source
from safeweights.errors import FormatError, UnsupportedError
from safeweights.format.writer import layout
from safeweights.storage import FileObjectSource
from safeweights.storage import pipes as piping
from safeweights.storage.pipes import piped, stdin_blocks, stdin_source


class Pipe(io.RawIOBase):
    """`head`, and then `tail` again and again; counts what is taken."""

    def __init__(self, head: bytes, tail: bytes = b"") -> None:
        self.parts = itertools.chain([head], itertools.repeat(tail) if tail else [])
        self.left = b""
        self.taken = 0

    def read(self, size: int = -1) -> bytes:
        assert size >= 0
        while len(self.left) < size and (part := next(self.parts, b"")):
            self.left += part
        block, self.left = self.left[:size], self.left[size:]
        self.taken += len(block)
        return block


@pytest.fixture
def contents():
    header, head = layout([("a", "F32", (4, 4)), ("b", "U8", (3,))])
    return head + bytes(range(header.data_size))


@pytest.fixture
def nothing_kept(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a temporary file")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)


@pytest.mark.usefixtures("nothing_kept")
@pytest.mark.parametrize("headers_only", [False, True])
@pytest.mark.parametrize(
    "line", [b'{"a\n', b"<html>", b"\xff", b"version https://git-lfs", b"\x89PNG\r\n\x1a\n"]
)
def test_what_is_no_known_format_is_refused_by_its_beginning(line, headers_only):
    pipe = Pipe(line * 300, line)
    with pytest.raises(FormatError):
        SafetensorsFile(piped(pipe, is_known, headers_only=headers_only))
    assert pipe.taken <= 1024


@pytest.mark.usefixtures("nothing_kept")
def test_only_the_header_is_kept_where_only_that_is_asked_for(contents):
    source = piped(Pipe(contents), is_known, headers_only=True)
    assert source.size == len(contents)
    assert list(SafetensorsFile(source).header.tensors) == ["a", "b"]


@pytest.mark.usefixtures("nothing_kept")
def test_what_was_not_kept_cannot_be_read():
    header, head = layout([("a", "F32", (1000, 1000))])
    source = piped(Pipe(head, bytes(1 << 20)), is_known, headers_only=True)
    with pytest.raises(UnsupportedError, match="only the header"):
        source.read(header.data_start, 1000)


@pytest.mark.parametrize("headers_only", [False, True])
def test_what_is_missing_or_left_over_is_noticed(contents, headers_only):
    for data, what in (
        (contents[:-5], "5 bytes are missing"),
        (contents + bytes(7), "7 bytes are left over"),
        (contents[:30], "header ends at byte"),
        (contents[:5], "at least 8 bytes"),
        (b"", "an empty file"),
    ):
        with pytest.raises(FormatError, match=what):
            SafetensorsFile(piped(Pipe(data), is_known, headers_only=headers_only))


@pytest.mark.parametrize("headers_only", [False, True])
def test_an_endless_tail_is_read_as_far_as_it_takes_to_see_it(contents, headers_only):
    pipe = Pipe(contents, bytes(1 << 16))
    with pytest.raises(FormatError, match="left over"):
        SafetensorsFile(piped(pipe, is_known, headers_only=headers_only))
    assert pipe.taken <= len(contents) + (1 << 20)


def test_a_damaged_header_announces_nothing():
    pipe = Pipe((100).to_bytes(8, "little") + b'{"a":' + b" " * 95, b"\0" * 4096)
    with pytest.raises(FormatError, match="JSON"):
        SafetensorsFile(piped(pipe, is_known))
    assert pipe.taken <= (1 << 20) + 1024


def test_the_data_are_kept_where_they_will_be_read(contents):
    file = SafetensorsFile(piped(Pipe(contents), is_known))
    assert file.name == "<stdin>"
    assert bytes(file.tensor("b").view()) == contents[-3:]


def archive() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as writer:
        writer.writestr("a/data.pkl", bytes(5000))
    return file.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        archive(),
        pickle.dumps({"a": [1] * 3000}),
        b"I1\n" * 500,
        bz2.compress(pickle.dumps(random.Random(0).randbytes(5000))),
    ],
)
def test_other_formats_are_kept_whole(data):
    source = piped(Pipe(data), is_known, headers_only=True)
    assert source.read(0, source.size) == data


def test_other_formats_have_a_bound(monkeypatch):
    monkeypatch.setattr(piping, "_MOST", 1 << 22)
    pipe = Pipe(b"PK\x03\x04\x14\0" + bytes(1018), bytes(1 << 16))
    with pytest.raises(OSError, match=r"more than 4\.2 MB.*save it as a file") as caught:
        piped(pipe, is_known)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, "standard input")
    assert pipe.taken == (1 << 22) + 1


def test_what_announces_more_than_can_be_kept_is_refused_at_once(monkeypatch):
    monkeypatch.setattr(piping, "_MOST", 1 << 22)
    _, head = layout([("a", "F32", (1 << 30,))])
    pipe = Pipe(head, bytes(1 << 16))
    with pytest.raises(OSError, match="more than"):
        piped(pipe, is_known)
    assert pipe.taken <= 1024


def test_half_of_what_is_free_stays_free(monkeypatch):
    free = type("Usage", (), {"free": 4096})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(OSError, match=r"more than 2\.0 kB"):
        piped(Pipe(b"PK\x03\x04\x14\0" + bytes(4096)), is_known)


def test_a_full_disk_names_the_folder(monkeypatch):
    class Full(io.BytesIO):
        def write(self, _):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: Full())
    with pytest.raises(OSError, match="No space left") as caught:
        piped(Pipe(b"PK\x03\x04\x14\0" + bytes(2000)), is_known)
    assert caught.value.filename == tempfile.gettempdir()


def test_standard_input_that_is_closed(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(OSError, match="standard input is closed"):
        stdin_source(is_known)


def test_standard_input_that_is_a_file_is_read_in_place(monkeypatch, tmp_path, contents):
    (tmp_path / "a").write_bytes(contents)
    with open(tmp_path / "a", "rb") as file:
        file.read(5)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(file))
        source = stdin_source(is_known)
        assert (source.name, source.size, type(source)) == (
            "<stdin>",
            len(contents),
            FileObjectSource,
        )
        assert source.read(0, source.size) == contents


@pytest.mark.parametrize("seekable", [False, True])
def test_standard_input_that_is_none_of_the_systems(monkeypatch, contents, seekable):
    file = io.BytesIO(contents)
    file.seekable = lambda: seekable
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(file))
    source = stdin_source(is_known)
    assert (source.name, source.read(0, source.size)) == ("<stdin>", contents)


@pytest.mark.skipif(sys.platform == "win32", reason="devices of POSIX")
def test_standard_input_that_is_a_device_is_read_like_a_pipe(monkeypatch):
    with open("/dev/zero", "rb") as file:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(file))
        assert 1024 <= stdin_source(is_known).size <= (1 << 20) + 1024  # it has no end


@pytest.mark.parametrize("headers_only", [False, True])
def test_a_stream_that_begins_like_the_length_of_a_header(headers_only):
    """So does gzip, if it has no time in it."""
    data = gzip.compress(pickle.dumps({"a": np.arange(3.0)}), mtime=0)
    assert int.from_bytes(data[:8], "little") == 559_903
    opened = read_source(piped(Pipe(data), is_known, headers_only=headers_only))
    assert opened.format == "joblib"
    assert bytes(opened["a"].view()) == np.arange(3.0).tobytes()


def test_blocks_of_standard_input(monkeypatch, contents):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=Pipe(contents)))
    assert b"".join(stdin_blocks()) == contents
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(OSError, match="standard input is closed"):
        next(stdin_blocks())


def test_a_pipe_that_does_not_wait_has_not_ended(monkeypatch):
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    with open(reading, "rb") as stream, open(writing, "wb", buffering=0) as other:
        other.write(b"abc")
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=stream))
        blocks = stdin_blocks()
        assert next(blocks) == b"abc"
        with pytest.raises(BlockingIOError):
            next(blocks)
