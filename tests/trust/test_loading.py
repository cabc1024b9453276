"""Loading with ``trust=``: what every loader gives is what was signed, or an error."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import safeweights
import safeweights.numpy
import safeweights.torch
from safeweights import safe_open
from safeweights.errors import SafetensorError, UnsupportedError
from safeweights.storage.files import DescriptorSource
from safeweights.trust import (
    Policy,
    PolicyVerifier,
    PolicyViolationError,
    Rule,
    UnverifiedWarning,
    VerificationError,
    admit,
    load_policy,
    sign,
)
from safeweights.trust.content.blocktree import BLOCK_SIZE, BlockTree

if TYPE_CHECKING:
    from pathlib import Path

    from safeweights.trust.signatures.keys import FileSigner

WEIGHTS = "model.safetensors"
BLOCKS = 16


@pytest.fixture
def values() -> dict[str, np.ndarray[Any, Any]]:
    """One tensor of sixteen blocks, and two small ones."""
    some = np.random.default_rng(7)
    return {
        "large": some.standard_normal((BLOCKS, BLOCK_SIZE // 4), dtype=np.float32),
        "bias": some.standard_normal(100, dtype=np.float32),
        "step": np.array(3),
    }


@pytest.fixture
def signed(tmp_path: Path, values: dict[str, Any], signer: FileSigner) -> Path:
    """A signed folder."""
    root = tmp_path / "signed"
    root.mkdir()
    safeweights.numpy.save_file(values, root / WEIGHTS)
    (root / "config.json").write_text("{}")
    sign(str(root), signer)
    return root


@pytest.fixture
def sharded(tmp_path: Path, values: dict[str, Any], signer: FileSigner) -> Path:
    """A signed folder of two shards and their index."""
    root = tmp_path / "sharded"
    root.mkdir()
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    safeweights.numpy.save_file({"large": values["large"]}, root / names[0])
    safeweights.numpy.save_file({"bias": values["bias"], "step": values["step"]}, root / names[1])
    places = {"large": names[0], "bias": names[1], "step": names[1]}
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (root / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    sign(str(root), signer)
    return root


def spoil(path: Path, at: int = -1) -> None:
    """Flip a bit of the byte at `at`; from the end where that is negative."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def by_handle(path: Path, trust: object) -> dict[str, Any]:
    with safe_open(path, "np", trust=trust) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the reference's


def by_prefetch(path: Path, trust: object) -> dict[str, Any]:
    with safe_open(path, "np", trust=trust) as file, file.prefetch() as loader:
        return dict(loader)


def by_checkpoint(path: Path, trust: object) -> dict[str, Any]:
    return arrays(safeweights.open(path, trust=trust))


def by_reading(path: Path, trust: object) -> dict[str, Any]:
    return arrays(safeweights.open(path, backend="pread", trust=trust))


def by_foreign(path: Path, trust: object) -> dict[str, Any]:
    return arrays(safeweights.conversion.open(path, trust=trust))


def arrays(checkpoint: Any) -> dict[str, Any]:
    kinds = {"F32": np.float32, "I64": np.int64}
    return {
        name: np.frombuffer(bytes(tensor.view()), kinds[tensor.dtype]).reshape(tensor.shape)
        for name, tensor in checkpoint.items()
    }


def by_torch(path: Path, trust: object) -> dict[str, Any]:
    return {n: t.numpy() for n, t in safeweights.torch.load_file(path, trust=trust).items()}


def by_filling(path: Path, trust: object) -> dict[str, Any]:
    targets = {
        "large": torch.zeros(BLOCKS, BLOCK_SIZE // 4),
        "bias": torch.zeros(100),
        "step": torch.tensor(0),
    }
    safeweights.torch.load_into(targets, path, trust=trust)
    return {name: tensor.numpy() for name, tensor in targets.items()}


def by_numpy(path: Path, trust: object) -> dict[str, Any]:
    return safeweights.numpy.load_file(path, trust=trust)


def by_numpy_reading(path: Path, trust: object) -> dict[str, Any]:
    return safeweights.numpy.load_file(path, backend="pread", trust=trust)


LOADERS = [
    by_handle, by_prefetch, by_checkpoint, by_reading, by_foreign, by_torch, by_filling, by_numpy,
    by_numpy_reading,
]  # fmt: skip


def same(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    return found.keys() == expected.keys() and all(
        np.array_equal(found[name], expected[name]) for name in expected
    )


# --- what was signed is loaded, anything else is not


@pytest.mark.parametrize("load", LOADERS)
def test_good(signed: Path, signer: FileSigner, values: Any, load: Any) -> None:
    assert same(load(signed / WEIGHTS, signer.public_key), values)


@pytest.mark.parametrize("at", [-1, 9, 2 * BLOCK_SIZE], ids=["last", "header", "middle"])
@pytest.mark.parametrize("tree", [True, False], ids=["tree", "no-tree"])
@pytest.mark.parametrize("load", LOADERS)
def test_tampered(signed: Path, signer: FileSigner, load: Any, tree: bool, at: int) -> None:
    if not tree:
        os.unlink(signed / f"{WEIGHTS}.swtree")
    spoil(signed / WEIGHTS, at)
    with pytest.raises(VerificationError) as refused:
        load(signed / WEIGHTS, signer.public_key)
    assert refused.value.reason in {"block-mismatch", "digest-mismatch"}


@pytest.mark.parametrize("load", LOADERS)
def test_unsigned_but_required(signed: Path, signer: FileSigner, load: Any) -> None:
    os.unlink(signed / "model.sig")
    with pytest.raises(PolicyViolationError) as refused:
        load(signed / WEIGHTS, signer.public_key)
    assert refused.value.reason == "signature-missing"


@pytest.mark.parametrize("load", LOADERS)
def test_signed_by_somebody_else(signed: Path, stranger: FileSigner, load: Any) -> None:
    with pytest.raises(PolicyViolationError):
        load(signed / WEIGHTS, stranger.public_key)


def test_a_stale_sidecar_is_refused(signed: Path, signer: FileSigner) -> None:
    spoil(signed / f"{WEIGHTS}.swtree", -3)
    with pytest.raises(SafetensorError):
        safeweights.numpy.load_file(signed / WEIGHTS, trust=signer.public_key)


def test_a_module(tmp_path: Path, signer: FileSigner) -> None:
    model = torch.nn.Linear(3, 2)
    safeweights.torch.save_model(model, tmp_path / "linear.safetensors")
    sign(str(tmp_path / "linear.safetensors"), signer)
    other = torch.nn.Linear(3, 2)
    safeweights.torch.load_model(other, tmp_path / "linear.safetensors", trust=signer.public_key)
    assert torch.equal(other.weight, model.weight)
    spoil(tmp_path / "linear.safetensors")
    before = other.weight.clone()
    with pytest.raises(VerificationError):
        safeweights.torch.load_model(
            other, tmp_path / "linear.safetensors", trust=signer.public_key
        )
    assert torch.equal(other.weight, before)


# --- folders


@pytest.mark.parametrize("whole", [True, False], ids=["folder", "index"])
def test_shards(sharded: Path, signer: FileSigner, values: Any, whole: bool) -> None:
    path = sharded if whole else sharded / f"{WEIGHTS}.index.json"
    assert same(by_checkpoint(path, signer.public_key), values)


@pytest.mark.parametrize("name", ["model-00002-of-00002.safetensors", f"{WEIGHTS}.index.json"])
@pytest.mark.parametrize("whole", [True, False], ids=["folder", "index"])
def test_a_tampered_shard_or_index(
    sharded: Path, signer: FileSigner, name: str, whole: bool
) -> None:
    spoil(sharded / name, 20)
    with pytest.raises(VerificationError):
        by_checkpoint(sharded if whole else sharded / f"{WEIGHTS}.index.json", signer.public_key)


def test_a_shard_that_was_added(tmp_path: Path, signer: FileSigner, values: Any) -> None:
    """Without an index, a folder is all files in it: each of them must be signed."""
    safeweights.numpy.save_file(values, tmp_path / WEIGHTS)
    sign(str(tmp_path), signer)
    assert same(by_checkpoint(tmp_path, signer.public_key), values)
    safeweights.numpy.save_file({"extra": values["bias"]}, tmp_path / "extra.safetensors")
    with pytest.raises(PolicyViolationError, match="does not list"):
        by_checkpoint(tmp_path, signer.public_key)


# --- what may be given as trust


@pytest.mark.parametrize("kind", ["policy", "path", "file", "gate", "warrant", "callable"])
def test_everything_that_is_trust(
    signed: Path, tmp_path: Path, signer: FileSigner, values: Any, kind: str
) -> None:
    (tmp_path / "key.pub").write_bytes(signer.public_key.pem)
    file = tmp_path / "policy.toml"
    file.write_text(
        '[signers.us]\npublic_key = "key.pub"\n[[rules]]\npattern = "*"\nsigners = ["us"]\n'
    )
    policy = load_policy(str(file))
    gate = PolicyVerifier(policy)
    trust = {
        "policy": policy,
        "path": file,
        "file": str(file),
        "gate": gate,
        "warrant": admit(str(signed), policy).require(),
        "callable": lambda source, path: gate(source, path),
    }[kind]
    assert same(by_numpy(signed / WEIGHTS, trust), values)
    spoil(signed / WEIGHTS)
    with pytest.raises(VerificationError):
        by_numpy(signed / WEIGHTS, trust)


def test_a_certificate(signed: Path, pki: Any, values: Any) -> None:
    sign(str(signed), pki.leaf.signer, certificates=pki.chain)
    assert same(by_numpy(signed / WEIGHTS, pki.trust()), values)
    with pytest.raises(PolicyViolationError):
        by_numpy(signed / WEIGHTS, pki.trust(subject="CN=somebody else"))


def test_a_mode_that_only_warns(signed: Path, signer: FileSigner) -> None:
    policy = Policy((Rule("*", signers=("us",)),), {"us": signer.public_key}, mode="warn")
    spoil(signed / WEIGHTS)
    with pytest.warns(UnverifiedWarning):
        by_numpy(signed / WEIGHTS, policy)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        by_numpy(signed / WEIGHTS, Policy((), mode="off"))


def test_what_is_no_trust(signed: Path) -> None:
    for wrong in (3, b"key", object()):
        with pytest.raises(TypeError, match="trust="):
            by_numpy(signed / WEIGHTS, wrong)
    with pytest.raises(FileNotFoundError, match=r"missing\.toml"):
        by_numpy(signed / WEIGHTS, "missing.toml")


def test_only_paths_can_be_trusted(signed: Path, signer: FileSigner) -> None:
    """Bytes and file objects have no name that a signature could speak of."""
    data = (signed / WEIGHTS).read_bytes()
    with open(signed / WEIGHTS, "rb") as file:
        for target in (file, data):
            for load in (by_numpy, by_handle, by_checkpoint, by_foreign):
                with pytest.raises(UnsupportedError, match="path"):
                    load(target, signer.public_key)  # type: ignore[arg-type]


def test_trust_is_not_imported_without_being_asked_for(signed: Path) -> None:
    code = (
        "import sys, safeweights, safeweights.numpy as s; safeweights.open(sys.argv[1]); "
        "s.load_file(sys.argv[1]); print([m for m in sys.modules if 'trust' in m])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(signed / WEIGHTS)],
        capture_output=True, check=True, text=True,
    )  # fmt: skip
    assert done.stdout == "['safeweights.trust', 'safeweights.trust.verifier']\n"


# --- conversion


def test_conversion(signed: Path, tmp_path: Path, signer: FileSigner, values: Any) -> None:
    np.savez(signed / "old.npz", **values)
    sign(str(signed), signer)
    target = tmp_path / "out.safetensors"
    done = safeweights.convert(signed / "old.npz", target, trust=signer.public_key)
    assert same(by_numpy(target, None), values)
    assert done.sources[0].sha256
    spoil(signed / "old.npz", 5000)
    with pytest.raises(VerificationError):
        safeweights.convert(signed / "old.npz", target, trust=signer.public_key, force=True)
    assert same(by_numpy(target, None), values)


def test_several_sources_have_signatures_of_their_own(
    tmp_path: Path, signer: FileSigner, values: Any
) -> None:
    for name in "ab":
        np.savez(tmp_path / f"{name}.npz", **values)
        sign(tmp_path / f"{name}.npz", signer)
    sources = [tmp_path / "a.npz", tmp_path / "b.npz"]
    (tmp_path / "out").mkdir()
    safeweights.convert(sources, tmp_path / "out", trust=signer.public_key)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 2
    spoil(tmp_path / "b.npz", 5000)
    with pytest.raises(VerificationError):
        safeweights.convert(sources, tmp_path / "out", trust=signer.public_key, force=True)


def test_the_digest_of_a_conversion_is_that_of_the_bytes_that_were_read(
    signed: Path, tmp_path: Path, signer: FileSigner, values: Any
) -> None:
    """A source that is exchanged between its conversion and its digest is recorded as it was read."""
    np.savez(signed / "old.npz", **values)
    sign(str(signed), signer)
    good = safeweights.convert(signed / "old.npz", tmp_path / "a.safetensors").sources[0].sha256
    gate = PolicyVerifier(Policy((Rule("*", signers=("us",)),), {"us": signer.public_key}))

    def exchange(source: Any, path: str) -> Any:
        admitted = gate(source, path)
        os.unlink(path)
        (signed / "old.npz").write_bytes(b"exchanged")
        return admitted

    done = safeweights.convert(signed / "old.npz", tmp_path / "b.safetensors", trust=exchange)
    assert done.sources[0].sha256 == good


# --- no more is read and hashed than is asked for


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Blocks that were checked, and bytes that were read of the file of weights."""
    done: dict[str, Any] = {"blocks": [], "bytes": 0}
    check, read = BlockTree.check, DescriptorSource.read_into

    def counted_check(self: BlockTree, index: int, *args: Any, **options: Any) -> None:
        done["blocks"].append(index)
        check(self, index, *args, **options)

    def counted_read(self: DescriptorSource, offset: int, buffer: memoryview) -> None:
        if self.name.endswith(WEIGHTS):
            done["bytes"] += len(buffer)
        read(self, offset, buffer)

    monkeypatch.setattr(BlockTree, "check", counted_check)
    monkeypatch.setattr(DescriptorSource, "read_into", counted_read)
    return done


@pytest.mark.parametrize("backend", ["mmap", "pread"])
def test_a_slice_costs_the_blocks_it_touches(
    signed: Path, signer: FileSigner, values: Any, work: dict[str, Any], backend: Any
) -> None:
    with safe_open(signed / WEIGHTS, "np", backend=backend, trust=signer.public_key) as file:
        opening = len(work["blocks"])
        assert opening == 1, "the header is in the first block"
        row = file.get_slice("large")[7, 100:200]
        head = int.from_bytes((signed / WEIGHTS).read_bytes()[:8], "little")
        start = 8 + head + file.info("large").begin
    assert np.array_equal(row, values["large"][7, 100:200])
    begin = start + 7 * BLOCK_SIZE + 400
    touched = list(range(begin // BLOCK_SIZE, (begin + 399) // BLOCK_SIZE + 1))
    assert work["blocks"][opening:] == touched
    assert work["bytes"] == (opening + len(touched)) * BLOCK_SIZE


def test_a_whole_load_checks_every_block_once(
    signed: Path, signer: FileSigner, work: dict[str, Any]
) -> None:
    size = os.path.getsize(signed / WEIGHTS)
    by_numpy(signed / WEIGHTS, signer.public_key)
    assert sorted(set(work["blocks"])) == list(range(-(-size // BLOCK_SIZE)))
    # The block of the header is kept, or read again with the data behind it.
    assert len(work["blocks"]) <= -(-size // BLOCK_SIZE) + 1


def test_tampering_elsewhere_does_not_spoil_a_slice(
    signed: Path, signer: FileSigner, values: Any
) -> None:
    spoil(signed / WEIGHTS, 3 * BLOCK_SIZE)
    with safe_open(signed / WEIGHTS, "np", trust=signer.public_key) as file:
        assert np.array_equal(file.get_slice("large")[12], values["large"][12])
        with pytest.raises(VerificationError):
            file.get_tensor("large")


# --- no window between check and use


def rename(path: Path, number: int) -> None:
    other = path.with_name(f"{('good', 'bad')[number % 2]}.bin")
    shutil.copy(other, path.with_name("next.bin"))
    os.replace(path.with_name("next.bin"), path)


def rewrite(path: Path, number: int) -> None:
    data = path.with_name(f"{('good', 'bad')[number % 2]}.bin").read_bytes()
    descriptor = os.open(path, os.O_WRONLY)
    os.pwrite(descriptor, data, 0)
    os.close(descriptor)


def relink(path: Path, number: int) -> None:
    link = path.with_name("next.link")
    link.symlink_to(f"{('good', 'bad')[number % 2]}.bin")
    os.replace(link, path)


@pytest.mark.parametrize("swap", [rename, rewrite, relink])
@pytest.mark.parametrize("tree", [True, False], ids=["tree", "no-tree"])
def test_a_thousand_swaps(tmp_path: Path, signer: FileSigner, swap: Any, tree: bool) -> None:
    """Whatever is loaded while somebody swaps the file is what was signed, byte for byte."""
    values = {"a": np.arange(2 * BLOCK_SIZE // 8 + 500)}
    path = tmp_path / WEIGHTS
    safeweights.numpy.save_file(values, path)
    sign(str(path), signer, trees=tree)
    shutil.copy(path, tmp_path / "good.bin")
    shutil.copy(path, tmp_path / "bad.bin")
    for at in (-1, 1000, BLOCK_SIZE + 9):
        spoil(tmp_path / "bad.bin", at)
    gate = PolicyVerifier(Policy((Rule("*", signers=("us",)),), {"us": signer.public_key}))
    stop = threading.Event()
    swaps = 0

    def attack() -> None:
        nonlocal swaps
        while not stop.is_set():
            swap(path, swaps)
            swaps += 1

    attacker = threading.Thread(target=attack)
    attacker.start()
    loaded = refused = 0
    try:
        while swaps < 1000 or not (loaded and refused):
            try:
                found = safeweights.numpy.load_file(path, trust=gate)
            except SafetensorError:
                refused += 1
                continue
            assert same(found, values)
            loaded += 1
            assert swaps < 100_000, "one of the two outcomes never comes"
    finally:
        stop.set()
        attacker.join()
    assert loaded
    assert refused
