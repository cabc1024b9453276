"""Memory that is lent again: to one at a time, for as long as anything sees it."""

from __future__ import annotations

import gc
import mmap
import os
import random
import re
import subprocess
import sys
import threading
from collections import deque
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safeweights.storage import DescriptorSource, TruncatedError, allocate, buffer_pool, open_source

torch = pytest.importorskip(
    "torch", reason="its storages hold memory: tested where it is installed"
)
import safeweights.torch  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MIB = 1 << 20
PIECE = 16 * MIB

pytestmark = pytest.mark.skipif(not buffer_pool._LENDS, reason="this system has no MADV_FREE")


@pytest.fixture(autouse=True)
def nothing_idle() -> Iterator[None]:
    gc.collect()
    buffer_pool.release_idle()
    yield
    buffer_pool.release_idle()


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    return lambda nbytes: monkeypatch.setattr(buffer_pool, "_LIMIT", nbytes)


def address(memory: Any) -> int:
    return np.frombuffer(memory, np.uint8).ctypes.data


def idle() -> list[int]:
    return [len(pages) // MIB for pages in buffer_pool._idle]


def lent(nbytes: int = PIECE) -> memoryview:
    memory = buffer_pool.borrow(nbytes)
    assert memory is not None
    return memory


def test_memory_comes_back_and_is_lent_again() -> None:
    memory = allocate(PIECE + 5)
    assert (memory.nbytes, memory.readonly, address(memory) % 4096) == (PIECE + 5, False, 0)
    place = address(memory)
    assert idle() == []
    del memory
    assert idle() == [18]  # in huge pages
    again = allocate(PIECE)
    assert address(again) == place
    assert idle() == []


def test_nobody_sees_more_than_was_asked_for() -> None:
    lent(PIECE + MIB)
    memory = lent(PIECE + 1)
    assert idle() == []
    assert memory.nbytes == memoryview(memory.obj).nbytes == PIECE + 1


HOLDERS: dict[str, Callable[[memoryview], Any]] = {
    "view": lambda memory: memory[5:6],
    "cast": lambda memory: memory.cast("I")[3:4],
    "read-only": lambda memory: memory.toreadonly(),
    "array": lambda memory: np.frombuffer(memory, np.uint8),
    "view of an array": lambda memory: np.frombuffer(memory, np.uint8)[8:].view("<f4")[1:][::2],
    "np.ndarray": lambda memory: np.ndarray((2, 2), "<i2", memory, 6)[1],
    "np.asarray": lambda memory: np.asarray(memory)[3:],
    "tensor": lambda memory: torch.from_numpy(np.frombuffer(memory, np.uint8)),
    "torch.frombuffer": lambda memory: torch.frombuffer(memory, dtype=torch.int32)[4:],
    "view of a tensor": lambda memory: torch.from_numpy(np.asarray(memory))[8:12].view(torch.float),
    "storage": lambda memory: torch.from_numpy(np.asarray(memory)).untyped_storage(),
    "parameter": lambda memory: torch.nn.Parameter(torch.frombuffer(memory, dtype=torch.float32)),
    "array of a tensor": lambda memory: torch.frombuffer(memory, dtype=torch.float32).numpy()[1:],
    "dlpack": lambda memory: torch.from_dlpack(np.frombuffer(memory, np.uint8)),
    "bound method": lambda memory: memory.tobytes,
}  # fmt: skip


@pytest.mark.parametrize("name", HOLDERS)
def test_whatever_sees_memory_holds_it(name: str) -> None:
    memory = lent()
    holder = HOLDERS[name](memory)
    del memory
    assert idle() == []
    assert address(lent()) != 0  # another piece; it goes at once
    assert len(idle()) == 1
    del holder
    assert len(idle()) == 2


def test_cycles_are_collected() -> None:
    cycle: list[Any] = [torch.frombuffer(lent(), dtype=torch.uint8)]
    cycle.append(cycle)
    del cycle
    assert idle() == []
    gc.collect()
    assert idle() == [16]


def test_finalizers_may_still_use_memory_and_revive_what_sees_it() -> None:
    revived: list[Any] = []
    seen: list[list[int]] = []

    class Last:
        def __init__(self) -> None:
            self.me = self
            self.tensor = torch.frombuffer(lent(), dtype=torch.uint8)

        def __del__(self) -> None:
            seen.append(idle())
            revived.append(self.tensor)

    Last()
    gc.collect()
    assert seen == [[]]
    assert idle() == []
    revived.clear()
    assert idle() == [16]


@settings(max_examples=40)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("borrow"), st.integers(buffer_pool.SMALLEST, 4 * PIECE)),
            st.tuples(st.sampled_from(["drop", "cycle"]), st.integers(0, 5)),
        ),
        max_size=30,
    )
)
def test_live_leases_never_overlap(steps: list[tuple[str, int]]) -> None:
    live: deque[tuple[int, memoryview]] = deque()
    for number, (what, value) in enumerate(steps):
        if what == "borrow":
            memory = lent(value)
            memory[:4] = memory[-4:] = number.to_bytes(4, "little")
            live.append((number, memory))
        elif live:
            live.rotate(value)
            cycle: list[Any] = [live.pop()]
            if what == "cycle":
                cycle.append(cycle)
            del cycle
        places = sorted((address(memory), memory.nbytes) for _, memory in live)
        assert all(a + size <= b for (a, size), (b, _) in pairwise(places))
        assert sum(map(len, buffer_pool._idle)) <= buffer_pool._LIMIT
    gc.collect()
    for number, memory in live:
        assert memory[:4] == memory[-4:] == number.to_bytes(4, "little")


def test_many_threads_and_the_collector(limit: Callable[[int], None]) -> None:
    limit(5 * PIECE)
    failures: list[str] = []
    stop = threading.Event()

    def use(seed: int) -> None:
        rng, mine = random.Random(seed), list[tuple[bytes, Any]]()
        for number in range(50):
            mark = (seed << 20 | number).to_bytes(8, "little")
            memory = lent(PIECE + rng.randrange(PIECE))
            for place in (0, 4096, len(memory) - 8):
                memory[place : place + 8] = mark
            cycle: list[Any] = [memory]
            cycle.append(cycle)
            mine.append((mark, cycle if rng.random() < 0.3 else memory))
            del cycle, memory
            while len(mine) > rng.randrange(4):
                mark, held = mine.pop(rng.randrange(len(mine)))
                memory = held[0] if isinstance(held, list) else held
                if any(memory[at : at + 8] != mark for at in (0, 4096, len(memory) - 8)):
                    failures.append(f"thread {seed}, {number}")

    def collect() -> None:
        while not stop.wait(0.002):
            gc.collect()

    switching = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        collector = threading.Thread(target=collect)
        users = [threading.Thread(target=use, args=(seed,)) for seed in range(6)]
        for thread in (collector, *users):
            thread.start()
        for thread in users:
            thread.join()
        stop.set()
        collector.join()
    finally:
        sys.setswitchinterval(switching)
    assert failures == []
    gc.collect()
    assert 0 < sum(map(len, buffer_pool._idle)) <= buffer_pool._LIMIT


def resident() -> int:
    """Bytes of this process that are in memory (proc(5), smaps_rollup)."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Rss:"))


def test_the_end_of_a_buffer_takes_no_huge_page() -> None:
    memory = lent(PIECE + mmap.PAGESIZE)
    before = resident()
    np.frombuffer(memory, np.uint8)[:: mmap.PAGESIZE] = 1
    assert PIECE <= resident() - before < PIECE + MIB


def huge(memory: mmap.mmap | memoryview) -> int:
    """Bytes in huge pages, of the mapping that holds `memory` (proc(5), smaps)."""
    place, inside = address(memory), False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, _, rest = line.partition(" ")
        if not name.endswith(":"):
            begin, end = (int(each, 16) for each in name.split("-"))
            inside = begin <= place < end
        elif inside and name == "AnonHugePages:":
            return int(rest.split()[0]) << 10
    return 0


def touched(memory: mmap.mmap | memoryview) -> int:
    """Write to every page; returns what `huge` says then."""
    np.frombuffer(memory, np.uint8)[:: mmap.PAGESIZE] = 1
    return huge(memory)


def gives_huge_pages() -> bool:
    with mmap.mmap(-1, 2 * PIECE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as pages:
        pages.madvise(mmap.MADV_HUGEPAGE)
        return touched(pages) >= PIECE


@pytest.mark.skipif(
    tuple(map(int, re.findall(r"\d+", os.uname().release)[:2])) < (6, 1),
    reason="this system cannot give huge pages for small ones: Linux 6.1",
)
def test_huge_pages_that_the_system_took_are_huge_again() -> None:
    """They are split as the system does it, without waiting for memory to be short."""
    memory = lent(2 * PIECE)
    before = touched(memory)
    del memory
    (pages,) = buffer_pool._idle
    for begin in range(0, PIECE, mmap.PAGESIZE):
        pages.madvise(mmap.MADV_DONTNEED, begin, mmap.PAGESIZE)
    memory = lent(2 * PIECE)
    after = touched(memory)
    if not (before == after == 2 * PIECE or gives_huge_pages()):
        pytest.skip("the system has no huge pages now")
    assert (before, after) == (2 * PIECE, 2 * PIECE)


def test_memory_that_nobody_touched_stays_away() -> None:
    lent(4 * PIECE)  # it is idle at once
    before = resident()
    memory = lent(4 * PIECE)
    assert resident() - before < PIECE
    assert len(memory) == 4 * PIECE


def test_what_is_idle_is_bounded_and_the_newest_stays(limit: Callable[[int], None]) -> None:
    limit(50 * MIB)
    leases = [lent(size * MIB) for size in (16, 18, 20, 22, 60)]
    places = [address(lease) for lease in leases]
    for _ in places:
        leases.pop(0)
    assert idle() == [20, 22]  # with 18 it would be 60, and 60 is too large by itself
    assert address(lent(22 * MIB)) == places[3]


def test_where_two_threads_meet_the_bound_holds_afterwards(
    limit: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(2 * PIECE)
    first, second = lent(), lent()
    taken = buffer_pool._all_idle
    others = [mmap.mmap(-1, PIECE) for _ in range(3)]

    def interrupted() -> list[mmap.mmap]:
        found = taken()
        buffer_pool._idle.extend(others)  # meanwhile others give back
        others.clear()
        return found

    monkeypatch.setattr(buffer_pool, "_all_idle", interrupted)
    del first
    assert idle() == [16, 16]
    del second
    assert idle() == [16, 16]


def test_a_piece_is_not_wasted_on_a_small_request() -> None:
    leases = [lent(64 * MIB), lent(40 * MIB)]
    large, small = map(address, leases)
    del leases[0], leases[0]
    fresh = lent(17 * MIB)
    assert address(fresh) not in {large, small}
    tight = lent(38 * MIB)  # the closer one of two that would do
    assert address(tight) == small
    roomy = lent(38 * MIB)
    assert address(roomy) == large


def test_idle_memory_is_offered_to_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    advice: list[int] = []

    class Watched(mmap.mmap):
        def madvise(self, option: int, *place: int) -> None:
            advice.append(option)
            super().madvise(option, *place)

    monkeypatch.setattr(mmap, "mmap", Watched)
    memory = lent()
    assert advice == [mmap.MADV_HUGEPAGE]
    del memory
    assert advice == [mmap.MADV_HUGEPAGE, mmap.MADV_FREE]


def test_what_cannot_be_offered_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    class Locked(mmap.mmap):
        def madvise(self, *_: int) -> None:
            raise OSError(22, "locked")

    monkeypatch.setattr(mmap, "mmap", Locked)
    memory = lent()
    memory[-1] = 1
    del memory
    assert idle() == []


def refuse(*_: Any, **__: Any) -> Any:
    raise OSError(12, "no")


@pytest.mark.parametrize(
    "patch",
    [
        lambda monkeypatch: monkeypatch.setattr(buffer_pool, "_LENDS", False),
        lambda monkeypatch: monkeypatch.setattr(mmap, "mmap", refuse),
    ],
    ids=["another system", "no mapping to be had"],
)
def test_elsewhere_memory_is_fresh(patch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    patch(monkeypatch)
    assert buffer_pool.borrow(PIECE) is None
    memory = allocate(PIECE)
    assert (len(memory), address(memory) % 4096) == (PIECE, 0)
    del memory
    assert idle() == []


def test_an_eighth_of_the_memory_may_be_idle_and_two_gib_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pages = {"SC_PHYS_PAGES": 1 << 20, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(os, "sysconf", pages.__getitem__)
    assert buffer_pool._idle_limit() == 1 << 29
    pages["SC_PHYS_PAGES"] <<= 4
    assert buffer_pool._idle_limit() == 1 << 31


def test_where_the_size_of_memory_is_unknown_nothing_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(os, "sysconf")
    assert buffer_pool._idle_limit() == 0


def test_what_was_inherited_from_another_process_is_not_kept() -> None:
    buffer_pool._give_back(mmap.mmap(-1, PIECE), os.getpid() + 1)
    assert idle() == []


def test_more_than_there_is_is_a_memory_error() -> None:
    with pytest.raises(MemoryError):
        allocate(1 << 60)


def test_releasing() -> None:
    kept, memory = lent(), lent(20 * MIB)
    kept[0] = 7
    del memory
    assert buffer_pool.release_idle() == 20 * MIB
    assert idle() == []
    assert buffer_pool.release_idle() == 0
    assert kept[0] == 7


# ---- in use


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tensors = {f"{i}": torch.full((8 * MIB,), i, dtype=torch.uint8) for i in range(5)}
    safeweights.torch.save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("backend", ["pread", "direct"])
def test_a_second_load_reads_into_the_memory_of_the_first(backend: str, model: Path) -> None:
    places = []
    for _ in range(2):
        loaded = safeweights.torch.load_file(model, backend=backend)
        assert idle() == []
        for name, tensor in loaded.items():
            assert bool((tensor == int(name)).all())
        places.append({name: tensor.data_ptr() for name, tensor in loaded.items()})
        del loaded, tensor
    assert sorted(places[0].values()) == sorted(places[1].values())


def test_loads_of_other_files_leave_no_trace(model: Path, tmp_path: Path) -> None:
    safeweights.torch.load_file(model, backend="pread")
    assert idle()
    other = {"a": torch.full((40 * MIB - 3,), 77, dtype=torch.uint8)}
    safeweights.torch.save_file(other, tmp_path / "other")
    for backend in ("pread", "direct"):
        loaded = safeweights.torch.load_file(tmp_path / "other", backend=backend)
        assert torch.equal(loaded["a"], other["a"])
        del loaded


def test_a_failed_read_gives_its_memory_back(model: Path) -> None:
    source = open_source(model, backend="pread")
    assert isinstance(source, DescriptorSource)
    os.truncate(model, 20 * MIB)
    with pytest.raises(TruncatedError):
        source.view(0, 40 * MIB)
    gc.collect()
    assert idle() == [40]


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_a_forked_child_begins_anew() -> None:
    code = """
import os
from safeweights.storage import buffer_pool
held = {"a": buffer_pool.borrow(1 << 24), "b": buffer_pool.borrow(1 << 24)}
del held["b"]
held["a"][:5] = b"mine!"
assert len(buffer_pool._idle) == 1
if (child := os.fork()) == 0:
    assert not buffer_pool._idle
    held["a"][:5] = b"child"
    del held["a"]
    assert not buffer_pool._idle
    own = buffer_pool.borrow(1 << 24)
    del own
    assert len(buffer_pool._idle) == 1
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert bytes(held["a"][:5]) == b"mine!" and len(buffer_pool._idle) == 1
del held["a"]
assert len(buffer_pool._idle) == 2
print("done")
"""
    assert run(code) == "done\n"


def test_leases_that_live_until_the_end_end_then_and_quietly() -> None:
    code = """
import atexit
atexit.register(lambda: print(len(buffer_pool._idle)))  # the first to be registered is the last to run
import torch
from safeweights.storage import buffer_pool
tensor = torch.frombuffer(buffer_pool.borrow(1 << 24), dtype=torch.uint8)
cycle = [tensor, buffer_pool.borrow(1 << 24)]
cycle.append(cycle)
"""
    assert run(code) == "0\n"


@pytest.mark.parametrize("locked", [True, False])
def test_a_secret_buffer_is_unlocked_before_it_is_idle(
    monkeypatch: pytest.MonkeyPatch, locked: bool
) -> None:
    calls: list[tuple[str, int]] = []

    def lock(address: int, nbytes: int) -> bool:
        calls.append(("lock", address))
        return locked

    monkeypatch.setattr(buffer_pool, "keep_secret", lock)
    monkeypatch.setattr(buffer_pool, "unlock", lambda address, _: calls.append(("unlock", address)))
    buffer_pool.release_idle()
    secret = buffer_pool.borrow(buffer_pool.SMALLEST, secret=True)
    if secret is None:
        pytest.skip("the system lends no buffers")
    secret[:5] = b"value"
    del secret
    address = calls[0][1]
    assert calls == [("lock", address), ("unlock", address)][: 1 + locked]
    assert buffer_pool.release_idle() >= buffer_pool.SMALLEST
    calls.clear()
    plain = buffer_pool.borrow(buffer_pool.SMALLEST)
    del plain
    assert not calls
