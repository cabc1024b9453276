"""A process that is killed while it saves leaves the old file or the new one, whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import safeweights

# Forks are made by a process of its own: the one that runs the tests has threads.
RANDOM = """
import os, random, signal, sys, time
from safeweights.checkpoint import MemoryTensor, open as open_checkpoint, save

path, rounds = sys.argv[1], int(sys.argv[2])
contents = {value: {f"t{n}": MemoryTensor(f"t{n}", "U8", (300_000,), bytes([value]) * 300_000)
                    for n in range(40)} for value in (0, 1)}

def one_save(value):
    save(contents[value], path, {"value": str(value)}, durable=value == 1)

begin = time.perf_counter()
one_save(0)
one_save(1)
duration = time.perf_counter() - begin
current, seen, killed, leftovers = 1, {0: 0, 1: 0}, 0, 0
for number in range(rounds):
    child = os.fork()
    if not child:
        while True:
            one_save(0)
            one_save(1)
    time.sleep(random.random() * duration * 2)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    found = open_checkpoint(path, backend="pread")
    value = int(found.metadata["value"])
    seen[value] += 1
    assert len(found) == 40
    for tensor in found.values():
        assert bytes(tensor.view()) == bytes([value]) * 300_000
    for name in os.listdir(os.path.dirname(path)):
        if name != os.path.basename(path):
            assert name.startswith(".safeweights-") and name.endswith(".tmp"), name
            leftovers += 1
            os.unlink(os.path.join(os.path.dirname(path), name))
assert min(seen.values()) > 0, seen
print(f"{rounds} kills, {seen} found, {leftovers} temporary files left")
"""

AT_CALL = """
import os, signal, sys
from safeweights.storage import appending, write_file

path, number = sys.argv[1], int(sys.argv[2])
appending.BATCH = 1000
calls = []

def deadly(name, real):
    def call(*args, **kwargs):
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        calls.append(name)
        return real(*args, **kwargs)
    return call

for name in ("open", "stat", "fstat", "fchmod", "writev", "fsync", "link", "close", "replace"):
    setattr(os, name, deadly(name, getattr(os, name)))
write_file(path, [b"n" * 700] * 5, durable=True)
print(" ".join(calls))
"""


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    source = Path(safeweights.__file__).parent.parent
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_killed_at_random_points(tmp_path: Path) -> None:
    done = run(RANDOM, tmp_path / "model.safetensors", 120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_killed_at_every_system_call(tmp_path: Path) -> None:
    old, new, path = b"o" * 5000, b"n" * 3500, tmp_path / "a"
    path.write_bytes(old)
    path.chmod(0o640)
    finished = run(AT_CALL, path, -1)
    assert finished.returncode == 0, finished.stderr
    calls = finished.stdout.split()
    renamed = calls.index("replace")
    assert renamed < len(calls) - 1
    for number, name in enumerate(calls):
        for entry in tmp_path.iterdir():
            entry.unlink()
        path.write_bytes(old)
        path.chmod(0o640)
        assert run(AT_CALL, path, number).returncode < 0
        assert path.read_bytes() == (new if number > renamed else old), name
        left = [entry for entry in tmp_path.iterdir() if entry != path]
        # A file without a name vanishes; with one, it may stay.
        if "link" in calls and not calls.index("link") < number <= renamed:
            assert left == [], name
        assert all(entry.name.startswith(".safeweights-") for entry in left)


def test_the_scripts_notice_a_torn_file(tmp_path: Path) -> None:
    """The tests above can fail: a save that writes in place does not survive them."""
    in_place = (
        "from safeweights.checkpoint import saving as checkpoint\n"
        "def write(path, buffers, **_):\n"
        "    with open(path, 'wb') as file:\n"
        "        for buffer in buffers:\n"
        "            file.write(buffer)\n"
        "checkpoint.write_file = write\n"
    )
    done = run(in_place + RANDOM, tmp_path / "model.safetensors", 60)
    assert done.returncode != 0


if not hasattr(os, "fork"):
    pytest.skip("Windows has neither fork nor SIGKILL", allow_module_level=True)
