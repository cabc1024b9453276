"""The machine: its description, its caches, and the peer that is not installed like the others."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from safeweights.storage.syscalls import resident_share

__all__ = [
    "PRERELEASE",
    "NotCold",
    "ProcessorTime",
    "available_memory",
    "describe",
    "drop_from_cache",
    "free_space",
    "install_prerelease",
    "processor_time",
    "read_into_cache",
    "touch_memory",
]

PRERELEASE: Final = "safetensors==0.9.0rc1"


class NotCold(Exception):
    """A file stays in the page cache, whatever is done."""


def drop_from_cache(path: str | Path) -> None:
    """Take a file out of the page cache, and look whether it is.

    Raises:
        NotCold: It is still there: a process has it mapped, or the filesystem does not drop it.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        share: float | None = 1.0
        for _ in range(3):
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            share = resident_share(descriptor, 0, size)
            if share is not None and share < 0.01:
                return
    finally:
        os.close(descriptor)
    state = "cannot be told" if share is None else f"is {share:.0%}"
    raise NotCold(f"the share of {path} in the page cache {state} after dropping it")


def read_into_cache(path: str | Path) -> None:
    """Put a file into the page cache as reading it from disk does.

    A file just written lies there in larger pieces, which makes mapping it several times faster: what
    is measured must not depend on whether the file was made in this run.
    """
    with contextlib.suppress(NotCold):
        drop_from_cache(path)
    with open(path, "rb", buffering=0) as file:
        while file.read(1 << 20):
            pass


def available_memory() -> int:
    """Bytes that programs can have without swapping (MemAvailable of proc(5))."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 1 << 62


def touch_memory(nbytes: int) -> float:
    """Use some memory once: a virtual machine's is slow at its first touch, until the host backs it.

    Returns the rate, in bytes a second.

    In huge pages: a guest reports free blocks of 2 MiB to its host, which takes them away two seconds
    later, and the page cache is filled from such blocks. Small pages are cut from smaller ones, which the
    host leaves alone. After 512 MiB of these, to write 256 MiB took 76 to 998 ms, and after 512 MiB of huge
    pages 56 to 80 ms (six times in turn).
    """
    nbytes = min(nbytes, available_memory() // 2)
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(AttributeError, OSError):  # another system, or one without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    began = time.perf_counter()
    for begin in range(0, nbytes, 4096):
        memory[begin] = 1
    seconds = time.perf_counter() - began
    memory.close()
    return nbytes / seconds


def free_space(folder: Path) -> int:
    """Bytes that can be written below `folder`."""
    return shutil.disk_usage(folder).free


def install_prerelease(folder: Path) -> str | None:
    """Put the reference's next version beside the released one; why not, where that fails."""
    if (folder / "safetensors").is_dir():
        return None
    command = [
        sys.executable, "-m", "pip", "install", "-q", "--pre", "--no-deps", "--only-binary", ":all:",
        PRERELEASE, "--target", str(folder),
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as error:
        shutil.rmtree(folder, ignore_errors=True)
        return f"{PRERELEASE} cannot be installed: {type(error).__name__}"
    if done.returncode:
        shutil.rmtree(folder, ignore_errors=True)
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        return f"{PRERELEASE} cannot be installed: {last}"
    return None


def describe(folder: Path) -> dict[str, Any]:
    """What a figure depends on: processor, memory, kernel, filesystem, Python."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / (1 << 30), 1),
        "kernel": platform.release(),
        "filesystem": _filesystem(folder),
        "python": platform.python_version(),
        "load_at_start": os.getloadavg()[0],
        **_state(folder),
    }


_PROBE: Final = 64 << 20
"""Bytes with which the machine's state is measured."""


def _state(folder: Path) -> dict[str, Any]:
    """What differs between two states of one machine, and decides some rows.

    - ``sha256_gib_s``: a processor without instructions for SHA-256 hashes at a fifth of the rate.
    - ``fresh_memory_gib_s``: a virtual machine's memory is slow until its host has backed it; saves, and
      loads into new memory, then take up to ten times as long with any library.
    - ``mapped_kib_per_fault``: a file lies in the page cache in small pieces or in large ones. Mapped
      loads, which fault in one piece at a time, are several times faster with large ones.
    - ``new_blocks_gib_s``, ``same_blocks_gib_s``: a host may find a place for a block of a virtual disk
      when it is first written, and give it back when the file is removed (a mount with ``discard``). To
      write new files, as saves do, then takes longer than to write the same blocks again.
    """
    huge = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    text = huge.read_text() if huge.exists() else "[unknown]"
    return {
        "sha_instructions": _has_sha_instructions(),
        "sha256_gib_s": _rate(lambda: hashlib.sha256(bytes(_PROBE)).digest()),
        "fresh_memory_gib_s": _rate(lambda: touch_memory(_PROBE)),
        "mapped_kib_per_fault": _mapped_per_fault(folder) >> 10,
        "huge_pages": text[text.index("[") + 1 : text.index("]")],
        **_direct_writes(folder),
    }


def _rate(work: Any) -> float:
    begin = time.perf_counter()
    work()
    return round(_PROBE / (1 << 30) / (time.perf_counter() - begin), 2)


def _has_sha_instructions() -> bool:
    words = set(Path("/proc/cpuinfo").read_text().split())
    return bool(words & {"sha_ni", "sha2"})  # x86, ARM


def _mapped_per_fault(folder: Path) -> int:
    """Bytes of a file in the page cache that one fault of a mapping brings in."""
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        for _ in range(_PROBE >> 20):
            file.write(bytes(1 << 20))
        file.flush()
        read_into_cache(file.name)
        with mmap.mmap(file.fileno(), _PROBE, prot=mmap.PROT_READ) as mapped:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for begin in range(0, _PROBE, 4096):
                mapped[begin]
            faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return _PROBE // max(1, faults)


def _direct_writes(folder: Path) -> dict[str, float]:
    """Rates of writes past the page cache to new blocks, then to the same; none where there are none."""
    block = mmap.mmap(-1, 8 << 20)
    block.write(os.urandom(len(block)))
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        try:
            descriptor = os.open(file.name, os.O_WRONLY | os.O_DIRECT)
        except (AttributeError, OSError):
            return {}

        def write() -> None:
            for begin in range(0, _PROBE, len(block)):
                os.pwrite(descriptor, block, begin)
            os.fsync(descriptor)

        try:
            os.posix_fallocate(descriptor, 0, _PROBE)
            return {"new_blocks_gib_s": _rate(write), "same_blocks_gib_s": _rate(write)}
        finally:
            os.close(descriptor)


def processor_time(who: int) -> float:
    """Seconds of processor time, of ``RUSAGE_SELF`` or of ``RUSAGE_CHILDREN`` that have ended.

    `os.times` counts ticks of 10 ms.
    """
    found = resource.getrusage(who)
    return found.ru_utime + found.ru_stime


class ProcessorTime:
    """What the machine's processors did since this was made, as shares of their time (proc(5), stat)."""

    def __init__(self) -> None:
        self._before = _ticks()

    def shares(self) -> dict[str, float]:
        """``steal``: the host let others run; ``idle``: there was nothing to do, or a disk to wait for."""
        passed = [now - then for then, now in zip(self._before, _ticks(), strict=True)]
        total = sum(passed) or 1
        return {
            "steal": round(passed[7] / total, 3),
            "idle": round((passed[3] + passed[4]) / total, 3),
        }


def _ticks() -> list[int]:
    return [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def _filesystem(folder: Path) -> str:
    """Type of the filesystem that holds `folder`: the longest mount point above it."""
    target = folder.resolve()
    best, kind = -1, "unknown"
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mount, found, *_ = line.split()
        if target.is_relative_to(mount) and len(mount) > best:
            best, kind = len(mount), found
    return kind
