"""Whatever reads a model tells how far it is, within a large file too, and to the end."""

from __future__ import annotations

import hashlib
import os
import threading
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from safeweights.reports.bom import bill_of_materials
from safeweights.storage import hashing, parallel
from safeweights.trust import admit, sign, verify
from safeweights.trust.content import digests
from safeweights.trust.policies.policy import Policy, Rule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from safeweights.trust.signatures.keys import FileSigner

WEIGHTS = "model.safetensors"
STEP = 1 << 18


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[Any, list[int]]]:
    """What threads report of each batch, in steps smaller than the model's largest file."""
    for module in (hashing, digests):
        monkeypatch.setattr(module, "RUN", STEP)
    reports: dict[Any, list[int]] = {}
    tell = parallel._Meter.tell

    def spy(self: Any, batch: int, done: int) -> None:
        reports.setdefault((id(self), batch), [0]).append(done)
        tell(self, batch, done)

    monkeypatch.setattr(parallel._Meter, "tell", spy)
    yield reports
    assert reports, "nothing was reported"
    for done in reports.values():
        assert max(after - before for before, after in pairwise(done)) <= STEP


def trusting(signer: FileSigner) -> Policy:
    return Policy((Rule("*", ("us",)),), {"us": signer.public_key})


def check(model: Path, progress: Callable[[int], object]) -> None:
    lines = digests.format_check_file(digests.hash_paths([str(model)]))
    (model.parent / "sums").write_text(lines)
    digests.check(str(model.parent / "sums"), progress=progress)


READERS: dict[str, Callable[[Path, FileSigner, Callable[[int], object]], object]] = {
    "hash": lambda model, _, tell: digests.hash_paths([str(model)], progress=tell),
    "check": lambda model, _, tell: check(model, tell),
    "sign": lambda model, signer, tell: sign(str(model), signer, progress=tell),
    "bom": lambda model, _, tell: bill_of_materials(str(model), progress=tell),
    "admit": lambda model, signer, tell: admit(str(model), trusting(signer), progress=tell),
}


@pytest.mark.parametrize("name", READERS)
def test_every_reader_tells_how_far_it_is(
    name: str, model: Path, signer: FileSigner, told: dict[Any, list[int]]
) -> None:
    seen: list[int] = []
    size = size_of(model)

    def progress(done: int) -> None:
        assert threading.current_thread() is threading.main_thread()
        seen.append(done)

    READERS[name](model, signer, progress)
    assert seen == sorted(set(seen))
    assert seen[-1] == size


@pytest.mark.parametrize("unsigned", [0, 100])
def test_a_signed_folder_too(
    unsigned: int, model: Path, signer: FileSigner, told: dict[Any, list[int]]
) -> None:
    sign(str(model), signer)
    size = size_of(model) - os.stat(model / "model.sig").st_size
    (model / "more").write_bytes(bytes(unsigned))
    seen: list[int] = []
    verify(str(model), signer.public_key, ignore_unsigned=True, progress=seen.append)
    assert seen == sorted(set(seen))
    assert seen[-1] == size
    seen = []
    admit(str(model), trusting(signer), progress=seen.append)
    assert seen == sorted(set(seen))
    assert seen[-1] == size + unsigned


def test_what_is_read_again_after_a_refusal_is_counted_once(
    model: Path, signer: FileSigner, told: dict[Any, list[int]]
) -> None:
    sign(str(model), signer)
    with open(model / WEIGHTS, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"?")
    seen: list[int] = []
    assert admit(str(model), trusting(signer), progress=seen.append).exit_code == 1
    assert seen == sorted(set(seen))
    assert seen[-1] == size_of(model) - os.stat(model / "model.sig").st_size


def test_tensors(model: Path, told: dict[Any, list[int]]) -> None:
    seen: list[int] = []
    digests.hash_tensors(str(model / WEIGHTS), progress=seen.append)
    assert seen == sorted(set(seen))
    assert seen[-1] == 1_400_000


def test_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "RUN", 10)
    monkeypatch.setattr(digests, "_SMALL", 24)
    (tmp_path / "a").write_bytes(bytes(25))
    seen: list[int] = []
    found = digests.hash_file(str(tmp_path / "a"), progress=seen.append)
    assert seen == [10, 20, 25]
    assert found.sha256 == hashlib.sha256(bytes(25)).hexdigest()
