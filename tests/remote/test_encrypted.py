"""Encrypted models elsewhere: read by ranges of ciphertext, verified first, refused like local ones."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("cryptography", reason="needs the package cryptography")

import safeweights
import safeweights.numpy
from safeweights import trust
from safeweights.errors import SafetensorError
from safeweights.storage import BytesSource, MemoryStore

if TYPE_CHECKING:
    from bad_server import BadServer

    from safeweights.storage import Source


@pytest.fixture
def model(server: BadServer, tmp_path: Path) -> dict[str, Any]:
    """An encrypted, signed model that the server has in ``m/``, its identity and key beside it."""
    tensors = {f"w{n}": np.random.default_rng(n).random((300, 300)) for n in range(6)}
    safeweights.numpy.save_file(tensors, tmp_path / "model", max_shard_size=1_500_000)
    identity = trust.generate_identity()
    trust.write_identity(tmp_path / "me", identity)
    trust.generate_key(tmp_path / "key")
    signer = trust.load_private_key(tmp_path / "key")
    path = Path(safeweights.encrypt(tmp_path / "model", identity.recipient.label).path)
    trust.sign(path, signer)
    for file in path.rglob("*"):
        server.files[f"m/{file.relative_to(path)}"] = file.read_bytes()
    return {
        "tensors": tensors,
        "url": f"{server.url}/m/",
        "key": signer.public_key,
        "me": tmp_path / "me",
    }


INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize("name", [INDEX, f"{INDEX}.age"])
@pytest.mark.parametrize("trusted", [False, True])
def test_a_model_is_read_through_its_index(model: dict[str, Any], name: str, trusted: bool) -> None:
    found = safeweights.numpy.load_file(
        model["url"] + name, identity=model["me"], trust=model["key"] if trusted else None
    )
    assert all((found[each] == value).all() for each, value in model["tensors"].items())


def test_a_tensor_costs_ranges_of_ciphertext(model: dict[str, Any], server: BadServer) -> None:
    name = "model-00001-of-00003.safetensors.age"
    with safeweights.safe_open(model["url"] + name, "np", identity=model["me"]) as file:
        server.requests.clear()
        assert (file.get_slice("w1")[7] == model["tensors"]["w1"][7]).all()
    # Row 7 of the second tensor is in one chunk of 64 KiB, which is one request.
    ranges = [fields["Range"] for method, path, fields in server.requests if name in path]
    assert len(ranges) == 1
    begin, end = map(int, ranges[0].removeprefix("bytes=").split("-"))
    assert end - begin < 2 * 65552
    assert server.files[f"m/{name}"].startswith(b"age-encryption.org/v1")


CHUNK = 65552
"""Bytes of ciphertext of a chunk."""

SIZE = 5 << 20
"""Bytes of each tensor of a large file."""


@pytest.fixture
def large(tmp_path: Path) -> tuple[Path, Path]:
    """A folder with an encrypted file of four tensors, and the identity that opens it."""
    tensors = {f"w{n}": np.full(SIZE, n, np.uint8) for n in range(4)}
    (tmp_path / "large").mkdir()
    safeweights.numpy.save_file(tensors, tmp_path / "large" / "model.safetensors")
    identity = trust.generate_identity()
    trust.write_identity(tmp_path / "me", identity)
    path = safeweights.encrypt(tmp_path / "large", identity.recipient.label).path
    return Path(path), tmp_path / "me"


def test_one_tensor_of_a_web_server_costs_its_chunks_and_three(
    large: tuple[Path, Path], server: BadServer
) -> None:
    path, me = large
    for file in path.iterdir():
        server.files[f"m/{file.name}"] = file.read_bytes()
    with safeweights.safe_open(f"{server.url}/m/model.safetensors", "np", identity=me) as file:
        assert (file.get_tensor("w2") == 2).all()
    wanted = [fields["Range"] for _, name, fields in server.requests if "model.safetensors" in name]
    ranges = [tuple(map(int, each.removeprefix("bytes=").split("-"))) for each in wanted if each]
    read = sum(end + 1 - begin for begin, end in ranges)
    # The last chunk, which proves the end; the first one, with the header; one that w2 shares with w1.
    assert read <= SIZE / 65536 * CHUNK + 3 * CHUNK + 8192


def test_one_tensor_of_any_store_costs_its_chunks_and_three(
    large: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Buckets and registries read through the same source."""
    path, me = large
    store = MemoryStore()
    for each in path.iterdir():
        store.write(each.name, [each.read_bytes()])
    read = 0

    class Counting(BytesSource):
        def read_into(self, offset: int, buffer: memoryview) -> None:
            nonlocal read
            read += len(buffer)
            super().read_into(offset, buffer)

    def counted(self: MemoryStore, name: str, **given: Any) -> Source:
        source = real(self, name, **given)
        found = Counting(source.view(0, source.size), source.name)
        found.version = source.version
        return found

    real = MemoryStore.open
    monkeypatch.setattr(MemoryStore, "open", counted)
    found = safeweights.open(store, identity=me)
    opening = read
    assert opening < 2 * CHUNK + 16384  # headers, the key file, and the last chunk
    assert (np.frombuffer(found["w2"].view(), np.uint8) == 2).all()
    assert read <= SIZE / 65536 * CHUNK + 3 * CHUNK + 16384


def test_what_was_changed_or_has_no_key_is_refused(
    model: dict[str, Any], server: BadServer
) -> None:
    name = "m/model-00002-of-00003.safetensors.age"
    url = model["url"] + INDEX
    with pytest.raises(SafetensorError, match="encrypted"):
        safeweights.open(model["url"] + os.path.basename(name))
    with pytest.raises(trust.AccessError, match="no identity"):
        safeweights.open(url, identity=trust.generate_identity())
    good = server.files[name]
    server.files[name] = good[:-40] + bytes([good[-40] ^ 1]) + good[-39:]
    with pytest.raises(SafetensorError, match="not authentic as its last"):
        safeweights.open(url, identity=model["me"])
    with pytest.raises(SafetensorError):
        safeweights.numpy.load_file(url, identity=model["me"], trust=model["key"])


def test_a_file_is_encrypted_from_few_requests(server: BadServer, tmp_path: Path) -> None:
    """4 MiB each, not one for each 256 KiB that a thread encrypts at a time."""
    data = np.random.default_rng(1).bytes(13 << 20)
    server.files["plain"] = data
    identity = trust.generate_identity()
    safeweights.encrypt(f"{server.url}/plain", identity.recipient.label, tmp_path / "x.age")
    # Is it a folder; its size and version; four for the file. One that is repeated does not matter.
    distinct = {fields["Range"] for _, _, fields in server.requests}
    assert len(distinct) <= 2 + 4, sorted(distinct)
    trust.decrypt(tmp_path / "x.age", identity, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data
