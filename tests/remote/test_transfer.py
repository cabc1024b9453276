"""Pulling and pushing models."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from click.testing import CliRunner
from kills import kill_again_and_again, two_models
from policies import signed_by_us

import safeweights
import safeweights.numpy
from new_threads import threads_since_now
from safeweights import trust
from safeweights.cli.app import cli
from safeweights.errors import ChangedError, FormatError, SafetensorError, UnsupportedError
from safeweights.storage import BytesSource, LocalStore, MemoryStore, TruncatedError
from safeweights.storage.background import Background
from safeweights.storage.hashing import sha256
from safeweights.storage.parallel import CHUNK
from safeweights.transfer import partial, pull, pulling, push
from safeweights.transfer.cache import Cache

if TYPE_CHECKING:
    from bad_server import BadServer, Handler

pytest.importorskip("cryptography", reason="needs the package cryptography")

KILLS = int(os.environ.get("SAFEWEIGHTS_KILLS", "30"))


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SAFEWEIGHTS_CACHE", raising=False)


@pytest.fixture
def model(server: BadServer, tmp_path: Path) -> Path:
    """A signed model of 24 MB, also at ``m/`` of the server; beside it a policy."""
    model = tmp_path / "src" / "m"
    model.mkdir(parents=True)
    arrays = {"big": np.arange(6_000_000, dtype="f4"), "b": np.ones(3)}
    safeweights.numpy.save_file(arrays, model / "model.safetensors")
    (model / "config.json").write_text("{}")
    trust.generate_key(str(tmp_path / "key"))
    trust.sign(str(model), trust.load_private_key(str(tmp_path / "key")))
    (tmp_path / "policy.toml").write_text(signed_by_us())
    publish(server, model)
    return model


def publish(server: BadServer, model: Path) -> None:
    server.files.clear()
    for path in model.rglob("*"):
        if path.is_file():
            server.files[f"m/{path.relative_to(model).as_posix()}"] = path.read_bytes()


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def big_ranges(server: BadServer, since: int = 0) -> list[str]:
    """The ranges of the weights that were asked for, without the one that opens the file."""
    asked = [f["Range"] for _, path, f in server.requests[since:] if path.endswith(".safetensors")]
    return [each for each in asked if each != "bytes=0-99999"]


# ---- pulling


@pytest.mark.parametrize("policy", [True, False])
def test_a_model_is_pulled(server: BadServer, model: Path, tmp_path: Path, policy: bool) -> None:
    target = tmp_path / "dst" / "m"
    seen: list[tuple[int, int]] = []
    done = pull(
        f"{server.url}/m/", target, policy=str(tmp_path / "policy.toml") if policy else None,
        progress=lambda now, total: seen.append((now, total)),
    )  # fmt: skip
    assert contents(target) == contents(model)
    assert os.listdir(tmp_path / "dst") == ["m"]
    assert done.fetched == sum(map(len, contents(model).values()))
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] == done.fetched
    assert (done.admission is not None) == policy


def test_what_is_there_is_not_fetched_again(server: BadServer, model: Path, tmp_path: Path) -> None:
    policy = str(tmp_path / "policy.toml")
    pull(f"{server.url}/m/", tmp_path / "dst", policy=policy)
    before = len(server.requests)
    done = pull(f"{server.url}/m/", tmp_path / "dst", policy=policy)
    assert big_ranges(server, before) == []
    assert done.reused > 24_000_000
    (tmp_path / "dst" / "model.safetensors").write_bytes(bytes(24_000_000))
    pull(f"{server.url}/m/", tmp_path / "dst", policy=policy)
    assert contents(tmp_path / "dst") == contents(model)


def test_a_pull_that_broke_is_continued(server: BadServer, model: Path, tmp_path: Path) -> None:
    def fault(handler: Handler, number: int) -> bool:
        if handler.headers["Range"] == f"bytes={2 * CHUNK}-{len(handler.data) - 1}":
            handler.reply(500)
            return True
        return False

    server.fault = fault
    with pytest.raises(OSError, match="status 500"):
        pull(f"{server.url}/m/", tmp_path / "dst")
    assert not (tmp_path / "dst").exists()
    server.fault = None
    before = len(server.requests)
    done = pull(f"{server.url}/m/", tmp_path / "dst")
    assert [each.partition("-")[0] for each in big_ranges(server, before)] == [f"bytes={2 * CHUNK}"]
    assert done.reused >= 2 * CHUNK
    assert contents(tmp_path / "dst") == contents(model)


def test_what_was_kept_is_used_for_no_other_version(
    server: BadServer, model: Path, tmp_path: Path
) -> None:
    test_a_pull_that_broke_is_continued(server, model, tmp_path)  # leaves nothing behind
    server.fault = lambda handler, _: (
        handler.wanted()[0] == 2 * CHUNK and (handler.reply(500) or True)
    )
    with pytest.raises(OSError, match="status 500"):
        pull(f"{server.url}/m/", tmp_path / "other")
    [kept] = tmp_path.glob(".other*/new/*.safetensors")
    assert kept.stat().st_size
    server.fault = None
    new = {"m/model.safetensors": safeweights.numpy.save({"big": np.zeros(6_000_000, "f4")})}
    server.files.update(new)
    del server.files["m/model.sig"]
    pull(f"{server.url}/m/", tmp_path / "other")
    assert contents(tmp_path / "other")["model.safetensors"] == new["m/model.safetensors"]


def test_a_full_disk_is_one_error_and_leaves_no_folder(
    server: BadServer, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.pwrite

    def full(descriptor: int, block: memoryview, offset: int) -> int:
        if offset >= CHUNK:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, block[: len(block) // 2 + 1], offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError) as caught:
        pull(f"{server.url}/m/", tmp_path / "dst")
    assert caught.value.errno == errno.ENOSPC
    assert str(caught.value.filename).endswith("/model.safetensors")
    assert f"(at byte {CHUNK}" in str(caught.value)
    assert not (tmp_path / "dst").exists()
    monkeypatch.undo()
    monkeypatch.delenv("SAFEWEIGHTS_CACHE", raising=False)
    before = len(server.requests)
    pull(f"{server.url}/m/", tmp_path / "dst")
    assert contents(tmp_path / "dst") == contents(model)
    assert not [each for each in big_ranges(server, before) if each.startswith("bytes=0-")]


def test_blocks_that_were_damaged_meanwhile_are_fetched_again(
    server: BadServer, model: Path, tmp_path: Path
) -> None:
    server.fault = lambda handler, _: (
        handler.wanted()[0] == 2 * CHUNK and (handler.reply(500) or True)
    )
    with pytest.raises(OSError, match="status 500"):
        pull(f"{server.url}/m/", tmp_path / "dst")
    server.fault = None
    [kept] = tmp_path.glob(".dst*/new/*.safetensors")
    with open(kept, "r+b") as file:
        file.seek(CHUNK + 5)
        file.write(b"damage")
    pull(f"{server.url}/m/", tmp_path / "dst", policy=str(tmp_path / "policy.toml"))
    assert contents(tmp_path / "dst") == contents(model)


def test_changed_bytes_are_noticed_while_they_come(
    server: BadServer, model: Path, tmp_path: Path
) -> None:
    data = bytearray(server.files["m/model.safetensors"])
    data[150_000] ^= 1
    server.files["m/model.safetensors"] = bytes(data)
    with pytest.raises(SafetensorError, match="not what was signed"):
        pull(f"{server.url}/m/", tmp_path / "dst", policy=str(tmp_path / "policy.toml"))
    assert not (tmp_path / "dst").exists()


def test_a_model_that_is_refused_leaves_the_folder_as_it_was(
    server: BadServer, model: Path, tmp_path: Path
) -> None:
    policy = str(tmp_path / "policy.toml")
    pull(f"{server.url}/m/", tmp_path / "dst", policy=policy)
    before = contents(tmp_path / "dst")
    unsigned = safeweights.numpy.save({"a": np.zeros(3)})
    server.files = {"m/model.safetensors": unsigned}
    done = pull(f"{server.url}/m/", tmp_path / "dst", policy=policy, force=True)
    assert not done.admitted
    assert contents(tmp_path / "dst") == before
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".")] == []
    result = CliRunner().invoke(
        cli, ["pull", f"{server.url}/m/", str(tmp_path / "none"), "--policy", policy]
    )
    assert result.exit_code == 1
    assert not (tmp_path / "none").exists()


def test_the_command_prints_a_line_and_a_document(
    server: BadServer, model: Path, tmp_path: Path
) -> None:
    policy = str(tmp_path / "policy.toml")
    url = f"{server.url}/m/?sig=secret"
    for more in ([], ["--json"]):
        result = CliRunner().invoke(
            cli, ["pull", url, str(tmp_path / "dst"), "--policy", policy, *more]
        )
        assert result.exit_code == 0, result.stderr
        assert "secret" not in result.output
        assert str(tmp_path / "dst") in result.stdout


def test_a_file_alone(server: BadServer, model: Path, tmp_path: Path) -> None:
    pull(f"{server.url}/m/config.json", tmp_path / "one")
    assert contents(tmp_path / "one") == {"config.json": b"{}"}
    pull(f"{server.url}/m/", tmp_path / "two", files=["config.json"])
    assert contents(tmp_path / "two") == {"config.json": b"{}"}
    with pytest.raises(UnsupportedError, match="is a file"):
        pull(f"{server.url}/m/config.json", tmp_path / "x", files=["a"])
    with pytest.raises(UnsupportedError, match="part"):
        pull(f"{server.url}/m/", tmp_path / "x", files=["../key"])


def test_an_unsigned_folder_of_a_web_server(server: BadServer, model: Path, tmp_path: Path) -> None:
    del server.files["m/model.sig"]
    pull(f"{server.url}/m/", tmp_path / "dst")
    assert {*contents(tmp_path / "dst")} == {"model.safetensors", "config.json"}
    server.files.clear()
    with pytest.raises(FormatError):
        pull(f"{server.url}/m/", tmp_path / "none")


def test_what_is_wrong_with_the_policy_is_said_before_anything_is_fetched(
    server: BadServer, model: Path, tmp_path: Path
) -> None:
    policies, target = tmp_path / "policies", tmp_path / "out" / "m"
    policies.mkdir()
    for name in ("policy.toml", "key.pub"):
        shutil.copy(tmp_path / name, policies)
    policy = str(policies / "policy.toml")
    with pytest.raises(FileNotFoundError):
        pull(f"{server.url}/m/", target, policy=str(policies / "none.toml"), name="m")
    assert server.requests == []
    with pytest.raises(SafetensorError, match=r"outside the policy's root.*--name"):
        pull(f"{server.url}/m/", target, policy=policy)
    assert os.listdir(target.parent) == []
    assert pull(f"{server.url}/m/", target, policy=policy, name="m").admitted
    assert os.listdir(target.parent) == ["m"]


def test_files_that_are_not_of_the_model_are_not_deleted(
    server: BadServer, model: Path, tmp_path: Path
) -> None:
    target, mine = tmp_path / "dst", tmp_path / "dst" / "notes" / "mine.txt"
    url = f"{server.url}/m/"
    mine.parent.mkdir(parents=True)
    (target / "config.json").write_text("{}")
    mine.write_text("mine")
    (target / "link").symlink_to(tmp_path)
    before = len(server.requests)
    for _ in range(2):
        with pytest.raises(FileExistsError, match="no such file") as caught:
            pull(url, target)
        assert caught.value.filename.endswith(("mine.txt", "link"))
        assert big_ranges(server, before) == []
        (target / "link").unlink(missing_ok=True)
    mine.unlink()
    late = CliRunner().invoke(cli, ["pull", url, str(target)])
    assert late.exit_code == 0
    (target / "mine.txt").write_text("mine")
    assert CliRunner().invoke(cli, ["pull", url, str(target)]).exit_code == 3
    assert CliRunner().invoke(cli, ["pull", url, str(target), "--force"]).exit_code == 0
    assert contents(target) == contents(model)


def test_a_file_that_comes_while_a_model_is_pulled_is_not_deleted(
    server: BadServer, model: Path, tmp_path: Path
) -> None:
    target = tmp_path / "dst"
    pull(f"{server.url}/m/", target)

    def fault(handler: Handler, number: int) -> bool:
        (target / "late").write_text("mine")
        return False

    server.fault = fault
    with pytest.raises(FileExistsError):
        pull(f"{server.url}/m/", target)
    assert (target / "late").read_text() == "mine"


@pytest.mark.parametrize("kind", ["link", "file", "another user's"])
def test_a_hidden_folder_that_is_not_ours_is_not_used(
    server: BadServer, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Who made it could have put links into it, through which the pull would write elsewhere."""
    hidden, other = tmp_path / ".dst.safeweights-pull", tmp_path / "other"
    (other / "new").mkdir(parents=True)
    (other / "victim").write_text("kept")
    (other / "new/model.safetensors").symlink_to(other / "victim")
    if kind == "link":
        hidden.symlink_to(other)
    elif kind == "file":
        hidden.write_text("")
    else:
        other.rename(hidden)
        other = hidden
        if os.geteuid() == 0:
            os.chown(hidden, 12345, 12345)
        else:
            monkeypatch.setattr(pulling, "_is_ours", lambda _: False)
    with pytest.raises(FileExistsError, match="no folder of an earlier pull by this user"):
        pull(f"{server.url}/m/", tmp_path / "dst")
    assert not (tmp_path / "dst").exists()
    if kind != "file":
        assert (other / "victim").read_text() == "kept"


def test_names_that_differ_in_case_only(server: BadServer, tmp_path: Path) -> None:
    """Each keeps its own content, or the pull fails: never one in place of the other."""
    place = tmp_path / "from"
    place.mkdir()
    (place / "a.bin").write_bytes(b"lower")
    (place / "A.bin").write_bytes(b"UPPER")
    if len(list(place.iterdir())) == 1:
        pytest.skip("this file system does not tell them apart")
    pull(str(place), tmp_path / "dst")
    assert contents(tmp_path / "dst") == {"a.bin": b"lower", "A.bin": b"UPPER"}


def test_folders_without_files_are_not_pulled(tmp_path: Path) -> None:
    """Stores of objects have none, so that they are no part of a model."""
    (tmp_path / "from/empty").mkdir(parents=True)
    (tmp_path / "from/a.bin").write_bytes(b"1")
    pull(str(tmp_path / "from"), tmp_path / "dst")
    assert [path.name for path in (tmp_path / "dst").iterdir()] == ["a.bin"]


def test_a_file_in_place_of_the_folder(server: BadServer, model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path)
    for name in ("file", "link"):
        with pytest.raises(NotADirectoryError):
            pull(f"{server.url}/m/", tmp_path / name)


def test_one_process_at_a_time(server: BadServer, model: Path, tmp_path: Path) -> None:
    staging = tmp_path / ".dst.safeweights-pull"
    staging.mkdir()
    with open(staging / "lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError, match="another process"):
            pull(f"{server.url}/m/", tmp_path / "dst")


def test_a_file_that_is_replaced_meanwhile(server: BadServer, model: Path, tmp_path: Path) -> None:
    def fault(handler: Handler, number: int) -> bool:
        if handler.name.endswith(".safetensors") and handler.wanted()[0] == CHUNK:
            server.files["m/model.safetensors"] = bytes(24_000_000)
        return False

    server.fault = fault
    with pytest.raises(ChangedError):
        pull(f"{server.url}/m/", tmp_path / "dst")
    assert not (tmp_path / "dst").exists()


# ---- the cache


def test_the_cache_is_shared_and_verified(
    server: BadServer, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAFEWEIGHTS_CACHE", str(tmp_path / "cache"))
    policy = str(tmp_path / "policy.toml")
    pull(f"{server.url}/m/", tmp_path / "one", policy=policy)
    before = len(server.requests)
    pull(f"{server.url}/m/", tmp_path / "two", policy=policy)
    assert big_ranges(server, before) == []
    digest = hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()
    cached = tmp_path / "cache" / digest[:2] / digest
    cached.write_bytes(b"x" * cached.stat().st_size)
    pull(f"{server.url}/m/", tmp_path / "three", policy=policy)
    assert contents(tmp_path / "three") == contents(model)
    assert hashlib.sha256(cached.read_bytes()).hexdigest() == digest


def test_a_cache_that_cannot_be_written_stops_no_pull(
    server: BadServer, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    policy = str(tmp_path / "policy.toml")
    given = ["pull", f"{server.url}/m/", str(tmp_path / "one"), "--policy", policy]
    monkeypatch.setenv("SAFEWEIGHTS_CACHE", str(tmp_path / "file" / "cache"))
    result = CliRunner().invoke(cli, given)
    assert result.exit_code == 0
    assert contents(tmp_path / "one") == contents(model)
    assert result.stderr.count("not kept in SAFEWEIGHTS_CACHE: Not a directory") == 1
    monkeypatch.setenv("SAFEWEIGHTS_CACHE_SIZE", "lots")
    result = CliRunner().invoke(cli, given)
    assert result.exit_code == 1
    assert "SAFEWEIGHTS_CACHE_SIZE: `lots` is no size" in result.stderr


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_cache_whose_lock_is_something_else_stops_no_pull(
    server: BadServer, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A pipe would be waited for; a link would make a file elsewhere."""
    lock = tmp_path / "cache/.lock"
    lock.parent.mkdir()
    if kind == "link":
        lock.symlink_to(tmp_path / "elsewhere")
    elif kind == "pipe":
        os.mkfifo(lock)
    else:
        lock.mkdir()
    monkeypatch.setenv("SAFEWEIGHTS_CACHE", str(tmp_path / "cache"))
    found = pull(f"{server.url}/m/", tmp_path / "one", policy=str(tmp_path / "policy.toml"))
    assert found.not_cached is not None
    assert contents(tmp_path / "one") == contents(model)
    assert not (tmp_path / "elsewhere").exists()


def test_the_cache_is_bounded(tmp_path: Path) -> None:
    cache = Cache(str(tmp_path / "cache"), 1000)
    digests = []
    for number in range(5):
        path = tmp_path / str(number)
        path.write_bytes(bytes([number]) * 300)
        digests.append(hashlib.sha256(path.read_bytes()).hexdigest())
        cache.add(str(path), digests[-1])
        os.utime(cache._path(digests[-1]), (number, number))
    present = [os.path.exists(cache._path(digest)) for digest in digests]
    assert present == [False, False, True, True, True]
    path.write_bytes(bytes(2000))
    cache.add(str(path), "0" * 64)  # larger than the bound
    assert not os.path.exists(cache._path("0" * 64))
    assert not cache.get("1" * 64, str(tmp_path / "x"))


def test_many_processes_share_the_cache(tmp_path: Path) -> None:
    code = """
import hashlib, os, random, sys
from safeweights.transfer.cache import Cache
cache, folder = Cache(sys.argv[1], 200_000), sys.argv[2]
draw = random.Random(int(sys.argv[3]))
for _ in range(60):
    data = bytes([draw.randrange(20)]) * 30_000
    digest = hashlib.sha256(data).hexdigest()
    target = os.path.join(folder, sys.argv[3])
    if cache.get(digest, target):
        assert open(target, "rb").read() == data
    else:
        with open(target, "wb") as file:
            file.write(data)
        cache.add(target, digest)
"""
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "cache"), str(tmp_path)]
    running = [subprocess.Popen([*command, str(number)]) for number in range(3)]
    assert [each.wait(60) for each in running] == [0, 0, 0]
    files = [path for path in (tmp_path / "cache").rglob("*") if len(path.name) == 64]
    assert sum(path.stat().st_size for path in files) <= 200_000
    for path in files:
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name


# ---- pushing


def test_a_folder_is_pushed_into_a_store(model: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    seen: list[tuple[int, int]] = []
    push(model, f"{target}/", progress=lambda now, total: seen.append((now, total)))
    assert contents(target) == contents(model)
    assert seen[-1][0] == seen[-1][1]
    with pytest.raises(FileExistsError):
        push(model, f"{target}/")
    (target / "model-00001-of-00002.safetensors").write_bytes(b"old")
    (target / "notes.txt").write_text("mine")
    push(model, f"{target}/", force=True)
    assert contents(target) == contents(model) | {"notes.txt": b"mine"}


def test_what_arrives_last(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safeweights.transfer import pushing

    store = MemoryStore()
    monkeypatch.setattr(pushing, "_target", lambda path, _: (store, {**found}))
    found = {
        each.name: LocalStore(str(model)).locate(each.name)
        for each in LocalStore(str(model)).list()
    }
    (model / "model.safetensors.index.json").write_text("{}")
    found["model.safetensors.index.json"] = str(model / "model.safetensors.index.json")
    done = push(model, "x")
    assert [*done.files][-2:] == ["model.sig", "model.safetensors.index.json"]


def test_the_command_wants_a_signature(model: Path, tmp_path: Path) -> None:
    (model / "model.sig").unlink()
    arguments = ["push", str(model), f"{tmp_path}/out/"]
    assert CliRunner().invoke(cli, arguments).exit_code == 2
    assert CliRunner().invoke(cli, [*arguments, "--unsigned", "--json"]).exit_code == 0
    assert {*contents(tmp_path / "out")} == {*contents(model)}


def test_what_cannot_be_pushed(server: BadServer, model: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="only read"):
        push(model, f"{server.url}/new/")
    with pytest.raises(UnsupportedError, match="no local folder"):
        push(f"{server.url}/m/", f"{tmp_path}/x/")
    (model / "gone").symlink_to("nowhere")
    with pytest.raises(UnsupportedError, match="not a regular file"):
        push(model, f"{tmp_path}/x/")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(FileNotFoundError):
        push(empty, f"{tmp_path}/x/")


# ---- being killed


def test_a_pull_that_is_killed_at_any_time_leaves_a_whole_model_or_none(
    server: BadServer, tmp_path: Path
) -> None:
    """Two models take turns in one folder; it never has files of both."""
    models = two_models(tmp_path)
    for name, model in models.items():
        for path in model.iterdir():
            server.files[f"{name}/{path.name}"] = path.read_bytes()
    server.fault = lambda handler, _: time.sleep(0.002)  # type: ignore[assignment,return-value]
    target, policy = tmp_path / "dst", str(tmp_path / "policy.toml")
    found = kill_again_and_again(
        "pull", count=KILLS, policy=policy, models=[str(model) for model in models.values()],
        urls=[f"{server.url}/{name}/" for name in models], target=str(target),
    )  # fmt: skip
    assert not [each for each in found if each["error"]]
    assert {each["found"] for each in found} <= {"0", "1", "none"}
    assert sum(each["killed"] for each in found) >= KILLS // 10
    assert target.exists()
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".dst")] == []


# --- the digest of a file, computed while it is fetched


class Slow(BytesSource):
    """Gives the first block last, and can fail."""

    def __init__(self, data: bytes, fails_at: int | None = None) -> None:
        super().__init__(data, "slow")
        self.others = threading.Semaphore(0)
        self.fails_at = fails_at

    def read_into(self, offset: int, buffer: memoryview) -> None:
        if offset == self.fails_at:
            raise ConnectionResetError
        if offset == 0 and self.fails_at is None:
            assert self.others.acquire(timeout=60)
        super().read_into(offset, buffer)
        if offset:
            self.others.release()


@pytest.mark.parametrize("threads", [True, False])
@pytest.mark.parametrize("size", [0, 1, 999, 1000, 3500])
def test_a_file_is_hashed_while_it_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, threads: bool
) -> None:
    """Whatever block comes first; also where the system has no more threads."""
    monkeypatch.setattr(partial, "CHUNK", 1000)
    data = random.Random(size).randbytes(size)
    source = Slow(data)
    if size <= 1000 or not threads:
        source.others.release()
    if not threads:
        monkeypatch.setattr(Background, "_start_one", lambda _: False)
    started = threads_since_now()
    for hashed in (True, False):
        target = tmp_path / str(hashed)
        found = partial.fetch(
            source, str(target), str(tmp_path / f"{hashed}.journal"), hashed=hashed
        )
        assert found == (size, hashlib.sha256(data).hexdigest() if hashed else None)
        assert target.read_bytes() == data
        source.others.release()
    assert not started()


def test_a_fetch_that_fails_does_not_wait_for_the_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partial, "CHUNK", 1000)
    started = threads_since_now()
    with pytest.raises(ConnectionResetError):
        partial.fetch(
            Slow(bytes(5000), fails_at=2000), str(tmp_path / "a"), str(tmp_path / "j"), hashed=True
        )
    assert not started()


def test_a_file_that_is_cut_while_it_is_hashed_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(10))
    with open(tmp_path / "a", "rb") as file:
        arriving = partial._Arriving(file.fileno(), 1000, "a", {0})
        with pytest.raises(TruncatedError):
            sha256(arriving)
