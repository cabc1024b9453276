from __future__ import annotations

import threading

import pytest

from safeweights.storage.parallel import in_threads


def test_results_and_the_first_failure_come_in_the_order_of_the_items() -> None:
    later = threading.Event()

    def call(item: int, tell: object) -> int:
        if item == 0:
            assert later.wait(30)  # the first to begin is the last to end
        if item == 2:
            later.set()
        return -item

    assert in_threads(call, range(3), workers=3) == [0, -1, -2]

    def fail(item: int, tell: object) -> int:
        if item == 0:
            assert later.wait(30)
        later.set()
        raise ValueError(item)

    later.clear()
    with pytest.raises(ValueError, match="0"):
        in_threads(fail, range(3), workers=3)
    assert in_threads(call, [], workers=3) == []


def test_progress_is_told_in_the_calling_thread_and_adds_up() -> None:
    seen: list[int] = []

    def call(item: int, tell) -> None:
        for done in range(1, item + 1):
            tell(done)

    def progress(done: int) -> None:
        assert threading.current_thread() is threading.main_thread()
        seen.append(done)

    in_threads(call, [5, 0, 7, 100], workers=3, progress=progress)
    assert seen == sorted(set(seen))
    assert seen[-1] == 112


def test_every_report_reaches_a_caller_who_listens() -> None:
    seen: list[int] = []
    heard = threading.Event()

    def call(item: int, tell) -> None:
        for done in range(1, 4):
            heard.clear()
            tell(done)
            assert heard.wait(30)

    def progress(done: int) -> None:
        seen.append(done)
        heard.set()

    in_threads(call, [1], progress=progress)
    assert seen == [1, 2, 3]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_who_leaves_leaves_no_thread_behind(error: type[BaseException]) -> None:
    before = threading.active_count()
    begun = []

    def call(item: int, tell) -> None:
        begun.append(item)
        while True:  # for as long as anybody listens
            tell(1)

    def progress(done: int) -> None:
        raise error

    with pytest.raises(error):
        in_threads(call, range(50), workers=2, progress=progress)
    assert threading.active_count() == before
    assert len(begun) <= 3


def test_a_failure_ends_what_is_under_way() -> None:
    begun = threading.Event()

    def call(item: int, tell) -> None:
        if item == 0:
            begun.wait(30)
            raise ZeroDivisionError
        begun.set()
        while True:
            tell(1)

    with pytest.raises(ZeroDivisionError):
        in_threads(call, [0, 1], workers=2)
