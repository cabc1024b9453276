"""Digests against hashlib and coreutils."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeweights.storage import parallel
from safeweights.storage.hashing import RUN
from safeweights.trust.content import digests
from safeweights.trust.content.digests import FileDigest
from safeweights.trust.errors import DocumentError, VerificationError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.mark.parametrize(
    "size", [0, 1, digests._SMALL, digests._SMALL + 1, RUN - 1, RUN, 2 * RUN, 3 * RUN + 300_000]
)
def test_file_and_tree_come_from_one_pass(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a"
    data = hashlib.shake_128(b"x").digest(size)
    path.write_bytes(data)
    digest = digests.hash_file(str(path), tree=True)
    assert (digest.size, digest.sha256) == (size, hashlib.sha256(data).hexdigest())
    assert digest.tree is not None
    assert digest.tree.size == size
    for index in range(digest.tree.blocks):
        begin = index * digest.tree.block_size
        digest.tree.check(index, data[begin : begin + digest.tree.block_size])


@pytest.mark.parametrize("difference", [-1000, -1, 1, 1000])
@pytest.mark.parametrize("size", [2000, digests._SMALL, RUN, RUN + 2000])
def test_a_file_that_grows_or_shrinks_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, difference: int
) -> None:
    @contextlib.contextmanager
    def opened(path: str, *, follow: bool, beneath: str | None) -> Iterator[tuple[int, int]]:
        with open(path, "rb") as file:
            yield file.fileno(), size - difference  # what it was when it was opened

    (tmp_path / "a").write_bytes(bytes(size))
    monkeypatch.setattr(digests, "open_regular", opened)
    with pytest.raises(VerificationError) as caught:
        digests.hash_file(str(tmp_path / "a"), tree=True)
    assert caught.value.reason == "changed"


@pytest.mark.parametrize("change", [-1000, 1, 1000])
def test_a_file_that_changes_its_size_half_way(tmp_path: Path, change: int) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(4 * RUN))

    def progress(done: int) -> None:
        if done == RUN:
            os.truncate(path, 4 * RUN + change)

    with pytest.raises(VerificationError) as caught:
        digests.hash_file(path, progress=progress)
    assert (caught.value.reason, caught.value.path) == ("changed", str(path))


def test_folders_are_listed_completely(tmp_path: Path) -> None:
    for name in ("b", "sub/a", ".hidden/c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    seen: list[int] = []
    found = digests.hash_paths([str(tmp_path)], progress=seen.append)
    assert [os.path.relpath(d.name, tmp_path) for d in found] == [".hidden/c", "b", "sub/a"]
    assert seen[-1] == sum(d.size for d in found)
    assert sorted(set(seen)) == seen


def test_links_to_folders_are_passed_over_and_links_to_files_are_not(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a").write_text("a")
    (tmp_path / "again").symlink_to("sub")
    (tmp_path / "link").symlink_to("sub/a")
    found = digests.hash_paths([str(tmp_path)])
    assert [os.path.relpath(each.name, tmp_path) for each in found] == ["link", "sub/a"]


def test_a_file_that_is_left_out_is_recognized_by_every_name(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("SUMS", "sub/SUMS", "a"):
        (tmp_path / name).write_text(name)
    (tmp_path / "link").symlink_to("SUMS")
    (tmp_path / "other").symlink_to("a")
    paths = [str(tmp_path), str(tmp_path / "SUMS"), str(tmp_path / "link"), str(tmp_path / "a")]
    for left_out in (tmp_path / "SUMS", tmp_path / "sub/../link"):
        found = digests.hash_paths(paths, leave_out=str(left_out))
        names = [os.path.relpath(each.name, tmp_path) for each in found]
        assert names == ["a", "other", "sub/SUMS", "a"]


def test_many_small_files_and_large_ones_keep_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several batches, a large file and one that is missing among them."""
    monkeypatch.setattr(parallel, "_BATCH", 10 * (digests._FILE_COST + 100))
    names = [f"{number:03}" for number in range(100)]
    for name in names:
        (tmp_path / name).write_bytes(name.encode() * (400_000 if name == "042" else 10))
    pairs = [(name, str(tmp_path / name)) for name in names]
    found = digests.hash_files(pairs)
    assert [each.name for each in found] == names
    assert [each.sha256 for each in found] == [
        hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in names
    ]
    os.unlink(tmp_path / "055")
    with pytest.raises(FileNotFoundError) as caught:
        digests.hash_files(pairs)
    assert caught.value.filename == str(tmp_path / "055")
    failed: list[str] = []
    paths = [path for _, path in pairs]
    rest = digests.hash_paths(paths, failed=lambda path, _: failed.append(path))
    assert (len(rest), failed) == (99, [str(tmp_path / "055")])


def test_a_small_file_costs_one_read_and_no_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(bytes(4096))
    reads: list[int] = []
    read = os.read
    monkeypatch.setattr(os, "read", lambda *given: (reads.append(given[1]), read(*given))[1])
    monkeypatch.setattr(threading.Thread, "start", None)
    digests.hash_file(str(tmp_path / "a"), tree=True)
    assert reads == [4097]


def test_a_fifo_never_blocks(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(VerificationError) as caught:
        digests.hash_paths([str(tmp_path)])
    assert caught.value.reason == "not-a-file"


def test_a_missing_file_is_the_systems_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        digests.hash_paths([str(tmp_path / "nothing")])


def write_tensors(path: Path, tensors: dict[str, tuple[str, list[int], bytes]]) -> None:
    offset, header = 0, {}
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {
            "dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(data)]
        }  # fmt: skip
        offset += len(data)
    text = json.dumps(header).encode()
    body = b"".join(data for _, _, data in tensors.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


def test_tensor_digests_do_not_depend_on_place_or_name(tmp_path: Path) -> None:
    one = ("I32", [2], b"abcdefgh")
    write_tensors(tmp_path / "a", {"x": one, "y": ("I32", [2, 1], b"abcdefgh")})
    write_tensors(tmp_path / "b", {"z": ("U8", [3], b"abc"), "w": one})
    x, y = digests.hash_tensors(str(tmp_path / "a"))
    w, _ = digests.hash_tensors(str(tmp_path / "b"))
    assert x.sha256 == w.sha256 == hashlib.sha256(b"I32\x002\x00abcdefgh").hexdigest()
    assert x.sha256 != y.sha256


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="coreutils is the yardstick here")
def test_coreutils_reads_ours_and_we_read_theirs(tmp_path: Path) -> None:
    for name in ("plain", "with space", "new\nline", "back\\slash", "*star"):
        (tmp_path / name).write_text(name)
    names = sorted(p.name for p in tmp_path.iterdir())
    ours = digests.format_check_file(
        [digests.hash_file(str(tmp_path / name), name=name) for name in names]
    )
    theirs = subprocess.run(
        ["sha256sum", "--", *names], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    assert ours == theirs
    (tmp_path / "SUMS").write_text(ours)
    subprocess.run(["sha256sum", "--check", "SUMS"], cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / "plain").write_text("changed")
    (tmp_path / "*star").unlink()
    results = digests.check(str(tmp_path / "SUMS"), base=str(tmp_path))
    assert {r.name: r.status for r in results if r.status != "ok"} == {
        "plain": "mismatch", "*star": "missing",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("nonsense", "line 1"),
        (f"{'0' * 63}  a", "line 1"),
        (f"{'0' * 64}  a\n{'1' * 64}  a\n", "line 2"),
        ("# only a comment\n", ""),
        (b"\xff\xff".decode("latin1"), "line 1"),
    ],
)
def test_malformed_check_files_name_their_line(text: str, field: str) -> None:
    with pytest.raises(DocumentError) as caught:
        digests.parse_check_file(text.encode(), path="SUMS")
    assert (caught.value.field, caught.value.path) == (field, "SUMS")


@given(st.binary(max_size=300))
def test_any_bytes_as_a_check_file(data: bytes) -> None:
    with contextlib.suppress(DocumentError):
        assert digests.parse_check_file(data)


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]),
                        min_size=1), min_size=1, unique=True))  # fmt: skip
def test_names_survive_a_check_file(names: list[str]) -> None:
    text = digests.format_check_file([FileDigest(n, 0, "0" * 64) for n in names])
    assert [name for name, _ in digests.parse_check_file(text.encode())] == names
