"""Coverage-guided fuzzing of the archive readers, against Python's zipfile.

    python tests/fuzz/fuzz_zip.py -max_total_time=60 corpus/

Only our errors may come out, and an archive that is accepted must hold, to Python's zipfile, the
same members with the same contents: that is what the reader promises.
"""

from __future__ import annotations

import contextlib
import io
import sys
import zipfile
import zlib

import atheris

with atheris.instrument_imports(include=["safeweights"]):
    from safeweights.conversion import Limits, open
    from safeweights.conversion.archives.tar_reader import TarArchive
    from safeweights.conversion.archives.zip_reader import ZipArchive
    from safeweights.errors import SafetensorError
    from safeweights.storage import BytesSource
    from safeweights.storage.windows import read_bytes

LIMITS = Limits(members=1000, inflation_floor_bytes=1 << 20, inflated_bytes=1 << 22, opcodes=20_000)


def contents(data: bytes) -> dict[str, bytes] | None:
    """The members, or None where the archive is refused."""
    try:
        archive = ZipArchive(BytesSource(data, "fuzz"), LIMITS)
        found = {}
        for name, member in archive.members.items():
            archive.verify(name)
            if member.crc or not member.size:  # a zero checksum means none was made
                found[name] = read_bytes(archive.open(name), 0, member.size)
        return found
    except SafetensorError:
        return None


def compare(data: bytes, found: dict[str, bytes]) -> None:
    """Fail where Python's reader sees something else."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as other:
            names = other.namelist()
            assert len(names) == len(set(names)), "duplicate names were accepted"
            for name in names:
                if name in found:
                    assert other.read(name) == found[name], "contents differ"
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        zlib.error,
        RuntimeError,
        EOFError,
        ValueError,
    ):
        pass  # stricter than we are about fields that change no contents, such as versions


def one_input(data: bytes) -> None:
    """Fail on any exception that is not of our family, and on disagreement."""
    found = contents(data)
    if found is not None:
        compare(data, found)
    for read in (
        lambda: TarArchive(BytesSource(data, "fuzz"), LIMITS),
        lambda: open(data, limits=LIMITS),
    ):
        with contextlib.suppress(SafetensorError):
            read()


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
