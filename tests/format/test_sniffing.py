"""Recognising files of other formats, for the message."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickle
import tarfile
import zipfile

import numpy as np
import pytest

from safeweights import checkpoint
from safeweights.errors import FormatError
from safeweights.format.kinds import recognize
from safeweights.format.sniffing import HEAD, identify


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", b"x")
    return file.getvalue()


def npy() -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    return file.getvalue()


def tarred() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.safetensors"))
    return file.getvalue()


FILES = {
    "git-lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n",
    "HTML page": b"\n <!DOCTYPE html><html>",
    "an HTML page": b"<html lang=en>",
    "zip archive": zipped(),
    "GGUF": b"GGUF\x03\x00\x00\x00",
    "HDF5": b"\x89HDF\r\n\x1a\n",
    "a NumPy array": npy(),
    "gzip": gzip.compress(b"x"),
    "zstandard": b"\x28\xb5\x2f\xfd\x20",
    "xz": lzma.compress(b"x"),
    "bzip2": bz2.compress(b"x"),
    "a program": b"\x7fELF\x02",
    "a TensorRT engine, which can run plugin code": b"ftrt\0\0\0\0",
    "a TensorFlow Lite model": b"\x1c\0\0\0TFL3",
    "a 7-Zip archive, which can hold anything: extract it": b"7z\xbc\xaf\x27\x1c",
    "PDF": b"%PDF-1.7",
    "PEM": b"-----BEGIN PUBLIC KEY-----\nMCow",
    "text file": b"# A model\n\tof ours.\n",
    "a text file with `Invalid username or password.`": b"Invalid username or password.",
    "perhaps a server's reply": b"Entry not found",
    "`Not Found`": b"Not Found",
    "Repository not found": b'{"error":"Repository not found"}',
    "JSON text": b'{"a":"\x01"}',
    "begins with `Lizenz f\u00fcr": ("Lizenz f\u00fcr alle\n" * 30).encode(),
    "begins with `\u8bb8\u53ef": ("\u8bb8\u53ef" * 300).encode(),  # cut within a letter
    "an image": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    "image": b"\xff\xd8\xff\xe0\0\x10JFIF",
    "tar archive": tarred(),
    "error message of a storage service": b"<?xml version='1.0'?>\n<Error><Code>AccessDenied</Code>",
    "a storage service": b"\xef\xbb\xbf<?xml version='1.0'?><Error><Code>AuthenticationFailed",
    "web page instead": b'<?xml version="1.0"?>\n<!DOCTYPE html>',
    "JSON": b'{"weight_map":{}}',
    "nothing but zero": bytes(100),
    "empty": b"",
}


@pytest.mark.parametrize("what", FILES)
def test_identified(what: str) -> None:
    found = identify(FILES[what][:HEAD])
    assert found is not None
    assert what in found


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles(protocol: int) -> None:
    found = identify(pickle.dumps([1], protocol))
    assert found is not None
    assert "pickle" in found


@pytest.mark.parametrize(
    "head",
    [
        b"\x08\0\0\0\0\0\0\0{}      ",
        b"text",
        b"a long text with \0 in it",
        b"\x80\x06",
        b"\xff" * 20,
    ],
)
def test_not_identified(head: bytes) -> None:
    assert identify(head) is None


KINDS = {
    "image": (b"RIFF\x10\0\0\0WEBPVP8 ", "a"), "audio": (b"RIFF\x10\0\0\0WAVEfmt ", "a"),
    "zlib": (b"\x78\x9c\x03\0", "a"), "python-bytecode": (b"\xa7\r\r\n" + bytes(12), "a"),
    "python": (b"import os\n", "a.pth"), "signature": (b'{"dsseEnvelope": {}}', "model.sig"),
    "json": (b"{}", "a.json"), "text": (b"{}", "a"), "program": (b"MZ\x90\0", "a"),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(KINDS))
def test_kinds_that_need_more_than_a_signature(kind: str) -> None:
    head, name = KINDS[kind]
    found = recognize(head, len(head), name)
    assert found is not None
    assert found.id == kind


@pytest.mark.parametrize("what", ["git-lfs pointer", "HTML page", "GGUF", "JSON", "empty"])
def test_the_error_says_so(what: str) -> None:
    with pytest.raises(FormatError, match=what):
        checkpoint.open(FILES[what] + (b"" if what == "empty" else bytes(100)))


@pytest.mark.parametrize("length", [0x0280, 0x0480, 0x7B, 0x8B1F, 0x5A42, 0x88B1F])
def test_a_length_of_a_header_is_no_signature(length: int) -> None:
    """The bytes 80 02 begin a pickle, but also a file with a header of 640 bytes."""
    entry = b'{"a":{"dtype":"U8","shape":[9],"data_offsets":[0,9]}}'
    contents = length.to_bytes(8, "little") + entry.ljust(length) + bytes(9)
    assert list(checkpoint.open(contents)) == ["a"]
    for damaged in (contents[:-1], contents[: 8 + length // 2], contents.replace(b"U8", b"X8")):
        with pytest.raises(FormatError) as caught:
            checkpoint.open(damaged)
        assert "looks like" not in str(caught.value)
