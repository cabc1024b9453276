"""Delta checkpoints: made, applied, opened lazily, in chains, and as other programs write and read them."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
import struct
import sys
import threading
import time
import tracemalloc
import zlib
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

zstandard = pytest.importorskip("zstandard", reason="deltas need zstandard")

import safeweights  # noqa: E402
import safeweights.numpy  # noqa: E402
from safeweights.checkpoint import FileTensor, MemoryTensor  # noqa: E402
from safeweights.derived import delta as codec  # noqa: E402
from safeweights.derived.strided import ComputedTensor  # noqa: E402
from safeweights.editing import apply_delta, compact_deltas, make_delta, open_delta  # noqa: E402
from safeweights.errors import FormatError, MissingDependencyError, UnsupportedError  # noqa: E402
from safeweights.storage import buffer_pool, computing, handles  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

INDEX = "model.safetensors.index.json"


@pytest.fixture
def versions(tmp_path: Path) -> list[Path]:
    """A model, and three updates of it, as files."""
    chance = np.random.default_rng(3)
    weights = {
        "a": chance.standard_normal(70_000).astype("f4"),
        "b": chance.standard_normal((50, 40)).astype("f2"),
        "same": np.arange(1000),
        "empty": np.zeros(0, "f4"),
    }
    paths = []
    for number in range(4):
        if number:
            places = chance.integers(0, 70_000, 500)
            weights["a"] = weights["a"].copy()
            weights["a"][places] += 1
            if number == 2:
                weights["b"] = weights["b"] * np.float16(1.5)
        paths.append(tmp_path / f"v{number}.safetensors")
        safeweights.numpy.save_file(weights, paths[-1], {"format": "pt"})
    return paths


@pytest.fixture
def chain(tmp_path: Path, versions: list[Path]) -> Path:
    folder = tmp_path / "chain"
    for number in (1, 2, 3):
        make_delta(
            versions[number - 1], versions[number], folder / f"weight_v{number:06}", version=number
        )
    return folder


def contents(target: Any) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    opened = target if not isinstance(target, os.PathLike) else safeweights.open(target)
    return {name: (each.dtype, each.shape, bytes(each.view())) for name, each in opened.items()}


@pytest.mark.parametrize("encoding", ["xor", "overwrite"])
@pytest.mark.parametrize("sums", ["adler32", "xxh3-128", "blake3"])
@pytest.mark.parametrize("beside", [True, False])
def test_make_and_apply(
    tmp_path: Path,
    versions: list[Path],
    encoding: str,
    sums: str,
    beside: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if sums != "adler32":
        pytest.importorskip({"blake3": "blake3", "xxh3-128": "xxhash"}[sums])
    monkeypatch.setattr(codec, "BLOCK", 4096)
    monkeypatch.setattr(codec, "_TILE", 4096)
    monkeypatch.setattr(codec, "_BENCHES", deque())
    monkeypatch.setattr(codec, "_BESIDE", 8192 if beside else 1 << 40)
    monkeypatch.setattr(codec, "_FRAME_AT_ONCE", 30 if beside else 1 << 20)
    done = make_delta(
        versions[0], versions[1], tmp_path / "d", encoding=encoding, checksum_format=sums
    )
    assert (done.changed, done.tensors) == (1, 4)
    assert done.nbytes < done.whole / 20
    apply_delta(tmp_path / "d", tmp_path / "out.safetensors", versions[0])
    assert (tmp_path / "out.safetensors").read_bytes() == versions[1].read_bytes()
    os.unlink(tmp_path / "d" / "safeweights.delta.json")  # the convention's checksum alone
    apply_delta(tmp_path / "d", tmp_path / "folder", versions[0], max_shard_size=100_000)
    before = {path.name: path.read_bytes() for path in (tmp_path / "d").iterdir()}
    for output in ("d", "d/model.safetensors", "d/model-00000-of-00001.safetensors"):
        with pytest.raises(FileExistsError, match="there is a delta"):
            apply_delta(tmp_path / "d", tmp_path / output, versions[0])
    assert {path.name: path.read_bytes() for path in (tmp_path / "d").iterdir()} == before
    assert contents(safeweights.open(tmp_path / "folder")) == contents(versions[1])
    (tmp_path / "folder" / "other.safetensors.index.json").write_text("{")
    apply_delta(tmp_path / "d", tmp_path / "folder" / "a.safetensors", versions[0])


def test_the_folder_is_the_one_that_others_read(tmp_path: Path, versions: list[Path]) -> None:
    make_delta(versions[1], versions[2], tmp_path / "weight_v000002", version=2)
    index = json.loads((tmp_path / "weight_v000002" / INDEX).read_text())
    assert index["metadata"] == {
        "version": "000002", "base_version": "000001", "delta_encoding": "xor",
        "compression_format": "zstd", "checksum_format": "adler32",
    }  # fmt: skip
    assert set(index["weight_map"]) == {"a", "b"}
    local = tmp_path / "local"
    local.mkdir()
    shutil.copy(versions[1], local / "model.safetensors")
    pull(local, tmp_path / "weight_v000002")
    assert (local / "model.safetensors").read_bytes() == versions[2].read_bytes()


def pull(local: Path, version: Path) -> None:
    """What a receiver does, as its documentation says: patch the local files in place, and verify."""
    index = json.loads((version / INDEX).read_text())
    places = {}
    for path in local.glob("*.safetensors"):
        data = path.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        for name, info in json.loads(data[8 : 8 + length]).items():
            if name != "__metadata__":
                begin, end = info["data_offsets"]
                places[name] = path, 8 + length + begin, end - begin
    for file in set(index["weight_map"].values()):
        blob = (version / file).read_bytes()
        (length,) = struct.unpack("<Q", blob[:8])
        header = json.loads(blob[8 : 8 + length])
        sums = header.pop("__metadata__")
        assert header.keys() == {n for n, f in index["weight_map"].items() if f == file}
        for name, info in header.items():
            begin, end = (8 + length + offset for offset in info["data_offsets"])
            path, offset, size = places[name]
            with path.open("r+b") as handle, mmap.mmap(handle.fileno(), 0) as memory:
                region = np.ndarray((size,), np.uint8, memory, offset)
                raw = zstandard.ZstdDecompressor().stream_reader(blob[begin:end]).read()
                if index["metadata"]["delta_encoding"] == "xor":
                    region ^= np.frombuffer(raw, np.uint8)
                else:
                    count = int.from_bytes(raw[:4], "little")
                    at = np.frombuffer(raw[4 : 4 + 4 * count], "<u4")
                    region[at] = np.frombuffer(raw[4 + 4 * count :], np.uint8)
                assert f"{zlib.adler32(region):08x}" == sums[name]
                del region


def publish(old: Path, new: Path, folder: Path, encoding: str) -> None:
    """What a trainer publishes, as slime's documentation says: several files, numbered from 0."""
    folder.mkdir()
    before, after = safeweights.numpy.load_file(old), safeweights.numpy.load_file(new)
    weight_map = {}
    changed = [name for name in after if before[name].tobytes() != after[name].tobytes()]
    for number, name in enumerate(changed):
        one, two = (np.frombuffer(each[name].tobytes(), np.uint8) for each in (before, after))
        if encoding == "xor":
            raw = one ^ two
        else:
            at = np.flatnonzero(one != two).astype("<u4")
            raw = np.concatenate([np.array([at.size], "<u4").view("u1"), at.view("u1"), two[at]])
        frame = np.frombuffer(zstandard.ZstdCompressor(level=1).compress(raw), np.uint8)
        file = f"model-{number:05d}-of-{len(changed):05d}.safetensors"
        safeweights.numpy.save_file(
            {name: frame}, folder / file, {name: f"{zlib.adler32(two):08x}"}
        )
        weight_map[name] = file
    metadata = {
        "version": folder.name[-6:], "base_version": f"{int(folder.name[-6:]) - 1:06d}",
        "delta_encoding": encoding, "compression_format": "zstd", "checksum_format": "adler32",
    }  # fmt: skip
    (folder / INDEX).write_text(json.dumps({"metadata": metadata, "weight_map": weight_map}))


def test_checksums_are_those_of_the_convention() -> None:
    # slime/utils/disk_delta.py, _new_hasher; values of `xxhsum -H2` and of zlib.
    state = codec.checksum("adler32")
    state.update(b"abc")
    assert state.hexdigest() == "024d0127"
    pytest.importorskip("xxhash")
    state = codec.checksum("xxh3-128")
    state.update(b"abc")
    assert state.hexdigest() == "06b05ab6733a618578af5f94892f3950"


def test_a_checksum_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xxhash", None)
    with pytest.raises(MissingDependencyError, match=r"safeweights\[xxhash\]"):
        codec.checksum("xxh3-128")


@pytest.mark.parametrize("encoding", ["xor", "overwrite"])
def test_folders_of_other_programs(tmp_path: Path, versions: list[Path], encoding: str) -> None:
    root = tmp_path / "published"
    root.mkdir()
    for number in (1, 2, 3):
        publish(versions[number - 1], versions[number], root / f"weight_v{number:06}", encoding)
    assert contents(open_delta(root, versions[0])) == contents(versions[3])
    assert contents(open_delta(root / "weight_v000002", versions[0])) == contents(versions[2])
    with pytest.raises(FormatError, match="the base is another"):
        contents(
            open_delta(root, versions[3])
        )  # to overwrite what is there already changes nothing


def test_the_size_is_that_of_the_reference(tmp_path: Path, versions: list[Path]) -> None:
    ours = make_delta(versions[0], versions[2], tmp_path / "ours").nbytes
    publish(versions[0], versions[2], tmp_path / "weight_v000001", "xor")
    theirs = sum(path.stat().st_size for path in (tmp_path / "weight_v000001").glob("model-*"))
    assert ours <= 1.05 * theirs


def test_a_chain_is_opened_lazily(chain: Path, versions: list[Path]) -> None:
    model = safeweights.open(chain, base=versions[0])
    assert contents(model) == contents(versions[3])
    assert model.metadata == {"format": "pt"}
    assert model["a"].shape == (70_000,)
    expected = safeweights.numpy.load_file(versions[3])
    assert np.array_equal(model["a"][5:9], expected["a"][5:9])
    base = safeweights.open(versions[0])
    assert contents(safeweights.open(chain / "weight_v000001", base=base)) == contents(versions[1])
    with safeweights.safe_open(model, "np") as handle:
        assert np.array_equal(handle.get_tensor("b"), expected["b"])


@pytest.mark.parametrize("sidecar", [True, False])
def test_large_tensors_are_written_in_blocks(
    tmp_path: Path,
    chain: Path,
    versions: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    sidecar: bool,
) -> None:
    """Neither the base nor a new tensor is ever in memory as a whole."""
    monkeypatch.setattr(computing, "_UNIT", 10_000)
    monkeypatch.setattr(computing, "_WHOLE", 10_000)
    monkeypatch.setattr(codec, "_TILE", 3000)
    monkeypatch.setattr(codec, "_BENCHES", deque())
    asked: list[int] = []
    real = FileTensor.read_into

    def read_into(tensor: FileTensor, buffer: Any, offset: int = 0) -> None:
        if tensor.name == "a":
            asked.append(len(buffer))
        real(tensor, buffer, offset)

    monkeypatch.setattr(FileTensor, "read_into", read_into)
    if not sidecar:
        for folder in chain.iterdir():
            os.unlink(folder / "safeweights.delta.json")
    apply_delta(chain, tmp_path / "out.safetensors", versions[0])
    assert (tmp_path / "out.safetensors").read_bytes() == versions[3].read_bytes()
    assert max(asked) == 10_000
    (tmp_path / "out.safetensors").write_bytes(b"old")
    with pytest.raises(FormatError, match="gives other bytes"):
        apply_delta(chain, tmp_path / "out.safetensors", versions[1], force=True)
    assert (tmp_path / "out.safetensors").read_bytes() == b"old"


def linked(
    count: int, size: int, *, sha256: Callable[[int], bool], encoding: str = "xor"
) -> tuple[Any, list[bytes]]:
    """A tensor under a chain of deltas in memory, and the bytes after each link."""
    states = [bytes(size)]
    new: Any = MemoryTensor("a", "U8", (size,), states[0])
    for number in range(1, count + 1):
        data = bytearray(states[-1])
        data[number % size] ^= 1 + number % 255
        states.append(bytes(data))
        old, now = (MemoryTensor("a", "U8", (size,), each) for each in states[-2:])
        frame = codec.encode(old, now, encoding)
        assert frame is not None
        new = codec.applied(
            new,
            MemoryTensor("a", "U8", (len(frame),), frame),
            encoding,
            expected=f"{zlib.adler32(data):08x}",
            algorithm="adler32",
            sha256=hashlib.sha256(data).hexdigest() if sha256(number) else None,
        )
    return new, states


@pytest.mark.parametrize("encoding", ["xor", "overwrite"])
@pytest.mark.parametrize("sidecar", [True, False])
def test_chains_of_thousands(sidecar: bool, encoding: str) -> None:
    new, states = linked(2000, 500, sha256=lambda _: sidecar, encoding=encoding)
    assert bytes(new.view()) == states[-1]
    assert not new.streams  # so many frames are not decompressed side by side
    assert b"".join(map(bytes, new.in_blocks(memoryview(bytearray(99))))) == states[-1]


def test_a_chain_of_more_files_than_may_be_open(
    tmp_path: Path, chain: Path, versions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    descriptors = Path("/proc/self/fd")
    if not descriptors.exists():
        pytest.skip("needs /proc to count open files")
    monkeypatch.setattr(handles, "_limit", lambda: 4)
    model = open_delta(chain, versions[0])
    before = len(list(descriptors.iterdir()))
    opened = [open_delta(chain, versions[0]) for _ in range(5)]
    assert len(list(descriptors.iterdir())) - before <= 5 * 2  # the base, and one of three deltas
    for each in (model, *opened):
        assert contents(each) == contents(versions[3])


@pytest.mark.parametrize("at_once", [True, False])
def test_frames_that_are_not_read_at_once_take_little_memory(
    tmp_path: Path, at_once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A delta that cannot be compressed is as large as the tensor."""
    chance = np.random.default_rng(5)
    for name in ("old", "new"):
        weights = {"a": chance.integers(0, 256, 1 << 20, np.uint8)}
        safeweights.numpy.save_file(weights, tmp_path / f"{name}.safetensors")
    old, new = tmp_path / "old.safetensors", tmp_path / "new.safetensors"
    make_delta(old, new, tmp_path / "d")
    monkeypatch.setattr(codec, "_FRAME_AT_ONCE", 1 << 21 if at_once else 1 << 16)
    monkeypatch.setattr(codec, "_TILE", 5000)
    monkeypatch.setattr(codec, "_BENCHES", deque())
    asked: list[int] = []
    real = codec._Compressed.read

    def read(frame: Any, size: int) -> memoryview:
        asked.append(size)
        return real(frame, size)

    monkeypatch.setattr(codec._Compressed, "read", read)
    apply_delta(tmp_path / "d", tmp_path / "out.safetensors", old)
    assert (tmp_path / "out.safetensors").read_bytes() == new.read_bytes()
    assert set(asked) == (set() if at_once else {5000})


@pytest.mark.parametrize(("count", "sidecar"), [(1, True), (3, True), (16, True), (3, False)])
def test_blocks_of_a_chain(count: int, sidecar: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "_TILE", 300)
    monkeypatch.setattr(codec, "_BENCHES", deque())
    new, states = linked(count, 10_001, sha256=lambda _: sidecar)
    assert new.streams
    for size in (70, 1000, 10_000, 10_001, 20_000):
        blocks = [bytes(block) for block in new.in_blocks(memoryview(bytearray(size)))]
        assert {len(block) for block in blocks[:-1]} <= {size}
        assert b"".join(blocks) == states[-1]
    for _ in new.in_blocks(memoryview(bytearray(1000))):
        break  # what was begun is given up
    assert not [each for each in threading.enumerate() if each.name == "safeweights-hash"]


def test_a_block_is_hashed_before_its_memory_is_used_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = hashlib.sha256

    class Slow:
        def __init__(self) -> None:
            self._state = real()
            self.hexdigest = self._state.hexdigest

        def update(self, data: memoryview) -> None:
            time.sleep(0.005)
            self._state.update(data)

    new, states = linked(1, 10_000, sha256=lambda _: True)
    monkeypatch.setattr(codec.hashlib, "sha256", Slow)
    blocks = [bytes(block) for block in new.in_blocks(memoryview(bytearray(1000)))]
    assert b"".join(blocks) == states[-1]


@pytest.mark.parametrize(("known", "checked"), [(3, 1), (2, 2), (0, 3)])
def test_the_digests_that_decide(known: int, checked: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A SHA-256 makes the digests before it superfluous; a checksum makes none so."""
    compared: list[str] = []
    real = codec._Digests.check

    def check(digests: Any, name: str) -> None:
        if digests._wanted is not None:
            compared.append(digests._wanted[1])
        real(digests, name)

    monkeypatch.setattr(codec._Digests, "check", check)
    new, states = linked(3, 5000, sha256=lambda number: number <= known)
    assert bytes(new.view()) == states[-1]
    wanted = [
        hashlib.sha256(state).hexdigest() if number <= known else f"{zlib.adler32(state):08x}"
        for number, state in enumerate(states)
    ]
    assert compared == wanted[-checked:]


def test_a_base_that_is_computed_as_a_whole(tmp_path: Path, versions: list[Path]) -> None:
    make_delta(versions[0], versions[1], tmp_path / "d")
    base = safeweights.open(versions[0])
    computed = {
        name: ComputedTensor(name, each.dtype, each.shape, each.read_into)
        for name, each in base.items()
    }
    given = safeweights.Checkpoint(computed, base.metadata, name="base")
    apply_delta(tmp_path / "d", tmp_path / "out.safetensors", given)
    assert (tmp_path / "out.safetensors").read_bytes() == versions[1].read_bytes()


def test_a_whole_version_begins_a_chain(chain: Path, versions: list[Path]) -> None:
    shutil.rmtree(chain / "weight_v000001")
    (chain / "weight_v000001").mkdir()
    shutil.copy(versions[1], chain / "weight_v000001" / "model.safetensors")
    assert contents(open_delta(chain)) == contents(versions[3])
    assert contents(open_delta(chain / "weight_v000001")) == contents(versions[1])


def test_compact(tmp_path: Path, chain: Path, versions: list[Path]) -> None:
    done = compact_deltas(chain, tmp_path / "one" / "weight_v000003", versions[0])
    assert done.version == "000003"
    index = json.loads((tmp_path / "one" / "weight_v000003" / INDEX).read_text())
    assert index["metadata"]["base_version"] == "000000"
    assert contents(open_delta(tmp_path / "one", versions[0])) == contents(versions[3])
    with pytest.raises(UnsupportedError, match="no delta to compact"):
        compact_deltas(versions[0], tmp_path / "two", versions[0])


# ---- what is refused


def test_a_delta_needs_its_base(chain: Path) -> None:
    with pytest.raises(FormatError, match="this is a delta"):
        safeweights.open(chain / "weight_v000001")
    with pytest.raises(UnsupportedError, match="based on version 000000"):
        open_delta(chain)


def test_a_wrong_base(tmp_path: Path, chain: Path, versions: list[Path]) -> None:
    model = open_delta(chain / "weight_v000001", versions[2])
    for name in ("a", "b"):  # b did not change from 0 to 1, and is another one in 2
        with pytest.raises(FormatError, match="the base is another"):
            model[name].view()
    with pytest.raises(FormatError):
        apply_delta(chain / "weight_v000001", tmp_path / "out.safetensors", versions[2])
    assert not (tmp_path / "out.safetensors").exists()
    safeweights.edit(versions[0], tmp_path / "other.safetensors", drop="same")
    with pytest.raises(FormatError, match="has other tensors"):
        open_delta(chain, tmp_path / "other.safetensors")
    (chain / "weight_v000001" / "safeweights.delta.json").unlink()
    safeweights.edit(versions[0], tmp_path / "another.safetensors", drop="a")
    with pytest.raises(FormatError, match="has no tensor `a`"):
        open_delta(chain / "weight_v000001", tmp_path / "another.safetensors")


def test_chains_that_do_not_fit(tmp_path: Path, chain: Path, versions: list[Path]) -> None:
    shutil.rmtree(chain / "weight_v000002")
    make_delta(versions[0], versions[2], chain / "weight_v000002", version=2)
    with pytest.raises(FormatError, match="is another one than"):
        open_delta(chain, versions[0])
    index = chain / "weight_v000002" / INDEX
    index.write_text(index.read_text().replace('"000002"', '"000009"'))
    with pytest.raises(FormatError, match="does not end"):
        open_delta(chain, versions[0])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("version", None, "no version"),
        ("checksum_format", None, "no checksum_format"),
        ("compression_format", "lz4", "lz4"),
        ("delta_encoding", "diff", "diff"),
        ("checksum_format", "xxh3-64", "xxh3-64"),
        *(
            (field, text, "is no number")
            for field in ("version", "base_version")
            for text in ("", "../../base", "1\0", "-1", " 1", "1\n", "\u0661", "9" * 19)
        ),
    ],
)
def test_indexes_that_are_not_understood(
    chain: Path, versions: list[Path], field: str, value: str | None, message: str
) -> None:
    path = chain / "weight_v000001" / INDEX
    index = json.loads(path.read_text())
    if value is None:
        del index["metadata"][field]
    else:
        index["metadata"][field] = value
    path.write_text(json.dumps(index))
    with pytest.raises((FormatError, UnsupportedError), match=message):
        open_delta(chain / "weight_v000001", versions[0])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"root": 1}',
        '{"root": "a", "base_root": "b"}',
        '{"sha256": {}}',
        '{"x": 1} z',
    ],
)
def test_a_sidecar_that_is_damaged(chain: Path, versions: list[Path], text: str) -> None:
    (chain / "weight_v000001" / "safeweights.delta.json").write_text(text)
    with pytest.raises(FormatError):
        open_delta(chain / "weight_v000001", versions[0])


def damaged(folder: Path, change: Callable[[bytes], bytes], encoding: str = "xor") -> None:
    """Replace the frame of `a` in a folder."""
    path = next(folder.glob("model-*"))
    metadata = safeweights.open(path).metadata
    arrays = safeweights.numpy.load_file(path)
    raw = zstandard.ZstdDecompressor().stream_reader(arrays["a"].tobytes()).read()
    arrays["a"] = np.frombuffer(change(raw), np.uint8)
    safeweights.numpy.save_file(arrays, path, metadata)


def packed(raw: bytes) -> bytes:
    return bytes(zstandard.ZstdCompressor().compress(raw))


@pytest.mark.parametrize(
    ("encoding", "change", "message"),
    [
        ("xor", lambda raw: b"", "is no zstd frame"),
        ("xor", lambda raw: b"junk" * 10, "is no zstd frame"),
        ("xor", lambda raw: packed(raw)[:-9], "too early|is damaged"),
        ("xor", lambda raw: packed(raw[:-1]), "too early"),
        ("xor", lambda raw: packed(raw + b"x"), "more bytes"),
        ("xor", lambda raw: packed(raw[:-1] + bytes([raw[-1] ^ 1])), "other bytes"),
        ("xor", lambda raw: packed(bytes(1 << 30)), "other bytes|more bytes"),
        ("overwrite", lambda raw: packed(b"\xff\xff\xff\xff"), "changes 4294967295 bytes"),
        ("overwrite", lambda raw: packed(raw[:3]), "too early"),
        ("overwrite", lambda raw: packed(raw[:-1]), "too early"),
        ("overwrite", lambda raw: packed(raw + b"x"), "more bytes"),
        ("overwrite", lambda raw: packed(struct.pack("<II", 1, 1 << 31) + b"x"), "beyond the end"),
        ("overwrite", lambda raw: packed(struct.pack("<I", 270_000) + bytes(9)), "too early"),
        (
            "overwrite",
            lambda raw: packed(struct.pack("<I", 270_000) + b"\xff" * 1_350_000),
            "beyond",
        ),
    ],
)
def test_frames_that_are_damaged(
    tmp_path: Path, versions: list[Path], encoding: str, change: Any, message: str
) -> None:
    make_delta(versions[0], versions[1], tmp_path / "d", encoding=encoding)
    damaged(tmp_path / "d", change)
    model = open_delta(tmp_path / "d", versions[0])
    with pytest.raises(FormatError, match=message):
        model["a"].view()


@pytest.mark.parametrize("hostile", [True, False])
def test_replaced_bytes_take_little_memory_however_many_there_are(
    hostile: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their places are four times the tensor's size; if all are the same, the frame has a few bytes."""
    size = 1 << 24
    new = np.frombuffer(np.random.default_rng(7).bytes(size), np.uint8)
    places = np.zeros(size, "<u4") if hostile else np.arange(size, dtype="<u4")
    frame = packed(struct.pack("<I", size) + places.tobytes() + new.tobytes())
    expected = bytearray(size)
    expected[:] = bytes([new[-1]]) + bytes(size - 1) if hostile else new.tobytes()
    tensor = codec.applied(
        MemoryTensor("a", "U8", (size,), bytes(size)),
        MemoryTensor("a", "U8", (len(frame),), frame),
        "overwrite",
        expected=f"{zlib.adler32(expected):08x}",
        algorithm="adler32",
    )
    target = memoryview(bytearray(size))
    monkeypatch.setattr(buffer_pool, "borrow", lambda *_, **__: None)  # which is not traced
    tracemalloc.start()
    try:
        tensor.read_into(target)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert target == expected
    assert peak < 6 << 20  # tiles


def test_models_that_are_not_alike(tmp_path: Path, versions: list[Path]) -> None:
    for changes in ({"drop": "same"}, {"dtype": "F32=F64"}):
        other = tmp_path / "other.safetensors"
        safeweights.edit(versions[0], other, force=True, **changes)
        with pytest.raises(FormatError, match=r"tensor `(same|a)`"):
            make_delta(versions[0], other, tmp_path / "d")
    for wrong in (
        {"encoding": "diff"},
        {"checksum_format": "crc"},
        {"version": 0},  # from -1
        {"base_version": -1},
        {"version": 10**18},
    ):
        with pytest.raises(UnsupportedError):
            make_delta(versions[0], versions[1], tmp_path / "d", **wrong)
    assert not (tmp_path / "d").exists()


def test_nothing_is_overwritten(tmp_path: Path, versions: list[Path]) -> None:
    make_delta(versions[0], versions[0], tmp_path / "d")
    assert not list((tmp_path / "d").glob("model-*.safetensors"))
    assert contents(open_delta(tmp_path / "d", versions[0])) == contents(versions[0])
    with pytest.raises(FileExistsError):
        make_delta(versions[0], versions[1], tmp_path / "d")


@pytest.mark.parametrize("name", ["out.safetensors", "folder", "sharded", "linked"])
def test_a_model_is_replaced_only_with_force(
    tmp_path: Path, versions: list[Path], name: str
) -> None:
    make_delta(*versions[:2], tmp_path / "d")
    old = {key: array + 1 for key, array in safeweights.numpy.load_file(versions[0]).items()}
    output = kept = tmp_path / name
    if name == "sharded":
        safeweights.numpy.save_file(old, output, max_shard_size=100_000)
    elif name == "folder":
        safeweights.numpy.save_file(old, output, max_shard_size=10**9)
    else:
        kept = tmp_path / "other.safetensors" if name == "linked" else output
        safeweights.numpy.save_file(old, kept)
    if name == "linked":
        output = tmp_path / "linked.safetensors"
        output.symlink_to(kept.name)
    before = contents(output)
    with pytest.raises(FileExistsError, match="--force"):
        apply_delta(tmp_path / "d", output, versions[0])
    assert contents(output) == before
    apply_delta(tmp_path / "d", output, versions[0], force=True)
    assert contents(output) == contents(versions[1])
    if output.is_dir():
        assert [path.name for path in output.iterdir()] == ["model.safetensors"]
    elif name == "linked":
        assert contents(kept) == before


@pytest.mark.parametrize("linked", [False, True])
def test_a_model_replaces_no_single_shard_of_its_base(
    tmp_path: Path, versions: list[Path], linked: bool
) -> None:
    make_delta(*versions[:2], tmp_path / "d")
    base = tmp_path / "base"
    safeweights.numpy.save_file(
        safeweights.numpy.load_file(versions[0]), base, max_shard_size=100_000
    )
    shard = min(base.glob("*.safetensors"))
    before = {path.name: path.read_bytes() for path in base.iterdir()}
    target = shard
    if linked:
        (tmp_path / "link").symlink_to(base)
        target = tmp_path / "link" / shard.name
    with pytest.raises(FileExistsError, match="--force"):
        apply_delta(tmp_path / "d", target, base)
    with pytest.raises(UnsupportedError, match="1 other file of it would stay"):
        apply_delta(tmp_path / "d", target, base, force=True)
    assert {path.name: path.read_bytes() for path in base.iterdir()} == before
    for output in (base, base / "model.safetensors"):  # all of them go
        apply_delta(tmp_path / "d", output, base, force=True)
        assert contents(base) == contents(versions[1])
        shutil.rmtree(base)
        base.mkdir()
        for name, data in before.items():
            (base / name).write_bytes(data)
    apply_delta(tmp_path / "d", versions[0], versions[0], force=True)
    assert contents(versions[0]) == contents(versions[1])


def test_a_file_that_appears_meanwhile_is_not_replaced(
    tmp_path: Path, versions: list[Path]
) -> None:
    make_delta(*versions[:2], tmp_path / "d")
    output = tmp_path / "out.safetensors"
    with pytest.raises(FileExistsError):
        apply_delta(
            tmp_path / "d", output, versions[0], progress=lambda _: output.write_bytes(b"other")
        )
    assert output.read_bytes() == b"other"


def test_an_encrypted_delta_is_not_joined_by_a_model(tmp_path: Path, versions: list[Path]) -> None:
    pytest.importorskip("cryptography")
    from safeweights import trust

    identity = trust.generate_identity()
    make_delta(*versions[:2], tmp_path / "d")
    for name in ("d", "v0.safetensors"):
        safeweights.encrypt(tmp_path / name, identity.recipient.label)
    encrypted, base = tmp_path / "d.age", tmp_path / "v0.safetensors.age"
    output = encrypted / "new.safetensors"
    with pytest.raises(FileExistsError, match="there is a delta"):
        apply_delta(tmp_path / "d", output, versions[0])  # a name says so, without the key
    os.unlink(encrypted / "safeweights.delta.json.age")
    with pytest.raises(FileExistsError, match="there is a delta"):
        apply_delta(encrypted, output, base, identity=identity)
    assert not output.exists()
    apply_delta(tmp_path / "d", output, versions[0])  # without the key it may be any index
    assert contents(output) == contents(versions[1])


def test_signed_chains(tmp_path: Path, chain: Path, versions: list[Path]) -> None:
    trust = pytest.importorskip("safeweights.trust")
    pytest.importorskip("cryptography")
    from click.testing import CliRunner

    from safeweights.cli.app import cli

    base = tmp_path / "base"
    base.mkdir()
    shutil.copy(versions[0], base / "model.safetensors")
    key = str(tmp_path / "key")
    run = CliRunner().invoke
    assert run(cli, ["keygen", key]).exit_code == 0
    for folder in (base, *sorted(chain.iterdir())):
        done = run(cli, ["sign", str(folder), "--key", key])
        assert done.exit_code == 0, done.output
    public = trust.load_public_key(f"{key}.pub")
    model = safeweights.open(chain, base=base, trust=public)
    assert contents(model) == contents(versions[3])
    shard = next((chain / "weight_v000002").glob("model-*"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(trust.TrustError):
        contents(safeweights.open(chain, base=base, trust=public))


def test_roots_are_what_they_are_said_to_be(tmp_path: Path, versions: list[Path]) -> None:
    make_delta(versions[0], versions[1], tmp_path / "d")
    known = json.loads((tmp_path / "d" / "safeweights.delta.json").read_text())
    for root, path in ((known["base_root"], versions[0]), (known["root"], versions[1])):
        lines = b""
        for name, (dtype, shape, data) in sorted(contents(path).items()):
            digest = hashlib.sha256(data).hexdigest()
            lines += json.dumps([name, dtype, list(shape), digest]).encode() + b"\n"
        assert root == hashlib.sha256(lines).hexdigest()


def test_commands(tmp_path: Path, versions: list[Path]) -> None:
    from click.testing import CliRunner

    from safeweights.cli.app import cli

    def run(*arguments: object) -> Any:
        return CliRunner().invoke(cli, ["delta", *map(str, arguments)])

    root = tmp_path / "root"
    for number in (1, 2):
        done = run(
            "make",
            versions[number - 1],
            versions[number],
            root / f"weight_v{number:06}",
            "--version",
            number,
        )
        assert done.exit_code == 0, done.output
    assert done.output.split("\t")[2:4] == ["2", "4"]
    done = run("apply", root, tmp_path / "out.safetensors", "--base", versions[0], "--json")
    document = json.loads(done.output)
    assert document["schema"] == "safeweights.delta/1"
    assert (document["version"], document["changed"], document["tensors"]) == ("000002", 2, 4)
    assert (tmp_path / "out.safetensors").read_bytes() == versions[2].read_bytes()
    assert run("compact", root, tmp_path / "c", "--base", versions[0]).exit_code == 0
    assert run("apply", root, tmp_path / "x.safetensors").exit_code != 0
    assert run("apply", root, tmp_path / "x.safetensors", "--base", versions[1]).exit_code == 1
