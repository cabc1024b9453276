"""The zip reader agrees with Python's on honest archives, and refuses every other."""

from __future__ import annotations

import io
import zipfile

import pytest
from builders import archive
from hypothesis import given, settings
from hypothesis import strategies as st

from safeweights.conversion.archives.tar_reader import TarArchive
from safeweights.conversion.archives.zip_reader import ZipArchive
from safeweights.errors import FormatError, SafetensorError
from safeweights.storage import BytesSource
from safeweights.storage.limits import Limits
from safeweights.storage.windows import read_bytes

NAMES = st.text("abcdé漢/._ ", min_size=1, max_size=12).filter(
    lambda text: all(part not in {"", ".", ".."} for part in text.split("/"))
)
MEMBERS = st.dictionaries(NAMES, st.binary(max_size=300), max_size=5)
METHODS = st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])


def members(data: bytes) -> dict[str, bytes]:
    found = ZipArchive(BytesSource(data, "z"))
    for name in found.members:
        found.verify(name)
    return {name: read_bytes(found.open(name), 0, found.open(name).size) for name in found.members}


def distinct(given_members: dict[str, bytes]) -> bool:
    return len({name.lower() for name in given_members}) == len(given_members)


class Unseekable(io.BytesIO):
    """Makes zipfile write data descriptors."""

    def seekable(self) -> bool:
        return False

    def seek(self, *_: int) -> int:
        raise io.UnsupportedOperation("seek")

    def tell(self) -> int:
        raise io.UnsupportedOperation("tell")


@given(MEMBERS.filter(distinct), METHODS, st.booleans(), st.booleans())
def test_honest_archives_are_read(
    content: dict[str, bytes], method: int, descriptors: bool, wide: bool
) -> None:
    file = Unseekable() if descriptors else io.BytesIO()
    with zipfile.ZipFile(file, "w") as out:
        for name, data in content.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            with out.open(info, "w", force_zip64=wide) as member:
                member.write(data)
        out.comment = b"a comment"
    assert members(file.getvalue()) == content


@given(MEMBERS.filter(distinct), METHODS, st.data())
@settings(max_examples=300)
def test_damage_is_refused_or_changes_nothing(
    content: dict[str, bytes], method: int, data: st.DataObject
) -> None:
    whole = bytearray(archive(content, compression=method))
    position = data.draw(st.integers(0, len(whole) - 1))
    whole[position] ^= data.draw(st.integers(1, 255))
    try:
        found = members(bytes(whole))
    except SafetensorError:
        return
    # Times, versions and attributes are nobody's business; a zero checksum means none was made.
    assert sorted(found.values()) == sorted(content.values())


@given(st.binary(max_size=400))
@settings(max_examples=300)
def test_any_bytes_give_members_or_our_error(data: bytes) -> None:
    for parse in (
        lambda: members(b"PK\x03\x04" + data),
        lambda: TarArchive(BytesSource(data, "t")),
    ):
        try:
            parse()
        except SafetensorError as error:
            assert error.message  # noqa: PT017 - most inputs raise; those that do must say why


@given(MEMBERS.filter(distinct), st.binary(min_size=1, max_size=40), st.booleans())
def test_bytes_around_an_archive_are_refused(
    content: dict[str, bytes], extra: bytes, front: bool
) -> None:
    whole = archive(content)
    with pytest.raises(FormatError):
        members(extra + whole if front else whole + extra)


def test_a_deflated_member_is_read_in_any_order() -> None:
    data = bytes(i * 7 % 251 for i in range(1_000_000))
    found = ZipArchive(BytesSource(archive({"a": data}, compression=zipfile.ZIP_DEFLATED), "z"))
    source = found.open("a")
    for begin in (0, 999_000, 10, 500_000, 499_990, 0):
        assert read_bytes(source, begin, 1000) == data[begin : begin + 1000]
    with pytest.raises(FormatError, match="bytes are expected"):
        read_bytes(source, 999_999, 2)


def test_the_checksum_of_a_deflated_member_is_checked_at_its_end() -> None:
    data = bytearray(archive({"a": b"hello" * 100}, compression=zipfile.ZIP_DEFLATED))
    for signature, offset in ((b"PK\x03\x04", 14), (b"PK\x01\x02", 16)):
        data[data.index(signature) + offset] ^= 1
    source = ZipArchive(BytesSource(bytes(data), "z")).open("a")
    with pytest.raises(FormatError, match="CRC-32"):
        read_bytes(source, 0, 500)


def test_the_number_of_members_is_limited() -> None:
    with pytest.raises(FormatError, match="members=2"):
        ZipArchive(BytesSource(archive({"a": b"", "b": b"", "c": b""}), "z"), Limits(members=2))


def test_a_missing_member_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        ZipArchive(BytesSource(archive({"a": b""}), "z")).open("b")


def test_a_gap_between_members_is_refused() -> None:
    """Bytes that no directory entry covers can be a member to whoever scans for local headers."""
    whole = archive({"a": b"1", "b": b"2"})
    second = whole.index(b"PK\x03\x04", 1)
    directory, end = whole.index(b"PK\x01\x02"), whole.index(b"PK\x05\x06")
    entry = whole.index(b"PK\x01\x02", directory + 1)
    moved = bytearray(whole)
    moved[entry + 42 : entry + 46] = (second + 4).to_bytes(4, "little")
    moved[end + 16 : end + 20] = (directory + 4).to_bytes(4, "little")
    assert members(whole) == {"a": b"1", "b": b"2"}
    with pytest.raises(FormatError, match="gap"):
        members(bytes(moved[:second] + b"gap!" + moved[second:]))
