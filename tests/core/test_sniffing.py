"""What a file that is not safetensors is, for the message."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickle
import zipfile

import numpy as np
import pytest

from safeweights import checkpoint
from safeweights.errors import FormatError
from safeweights.sniffing import HEAD, identify


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", b"x")
    return file.getvalue()


def npy() -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    return file.getvalue()


FILES = {
    "git-lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n",
    "HTML page": b"\n <!DOCTYPE html><html>",
    "an HTML page": b"<html lang=en>",
    "zip archive": zipped(),
    "GGUF": b"GGUF\x03\x00\x00\x00",
    "HDF5": b"\x89HDF\r\n\x1a\n",
    ".npy": npy(),
    "gzip": gzip.compress(b"x"),
    "zstandard": b"\x28\xb5\x2f\xfd\x20",
    "xz": lzma.compress(b"x"),
    "bzip2": bz2.compress(b"x"),
    "ELF": b"\x7fELF\x02",
    "PDF": b"%PDF-1.7",
    "PEM": b"-----BEGIN PUBLIC KEY-----\nMCow",
    "text file": b"# A model\n\tof ours.\n",
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


@pytest.mark.parametrize("what", ["git-lfs pointer", "HTML page", "GGUF", "JSON", "empty"])
def test_the_error_says_so(what: str) -> None:
    with pytest.raises(FormatError, match=what):
        checkpoint.open(FILES[what] + (b"" if what == "empty" else bytes(100)))
