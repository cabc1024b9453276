"""Hostile headers are rejected early or read, with little memory and bounded work."""

from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING

import hostile_headers as hostile
import pytest

from safeweights.errors import FormatError
from safeweights.format import bulk as chunks
from safeweights.format import entries, header, rules
from safeweights.format.strictjson import Reader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SIZE = 1_500_000

LIMITS = {"MAX_EXTRA": 1 << 16, "MAX_EXTRA_FIELDS": 5_000, "MAX_METADATA": 5_000}


@pytest.fixture(autouse=True)
def smaller_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Headers and limits at a fraction of the real size, for speed."""
    for name, value in LIMITS.items():
        monkeypatch.setattr(entries, name, value)


class Work:
    """Counts steps: calls of `peek`, entries read in bulk, and bytes of text that are copied."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps = 0
        peek, take = Reader.peek, chunks.BulkReader.take

        def counting_peek(reader: Reader) -> bytes:
            self.steps += 1
            return peek(reader)

        def counting_take(
            taker: chunks.BulkReader, position: int, expected: int
        ) -> chunks.Columns | None:
            batch = take(taker, position, expected)
            self.steps += len(batch.names) if batch else 1
            return batch

        monkeypatch.setattr(Reader, "peek", counting_peek)
        monkeypatch.setattr(chunks.BulkReader, "take", counting_take)


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    return Work(monkeypatch)


@pytest.fixture
def peak() -> Iterator[Callable[[], int]]:
    """Peak memory since the test began to measure."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


def refusal(text: bytes, size: int) -> str:
    with pytest.raises(FormatError) as caught:
        header.parse(text, size)
    assert len(str(caught.value)) < 2000
    return caught.value.rule


@pytest.mark.parametrize("name", hostile.REFUSED)
def test_refused_early(name: str, work: Work) -> None:
    """A header of twice the size costs the same work."""
    rule, make = hostile.REFUSED[name]
    steps = []
    for size in (SIZE, 2 * SIZE):
        text, data = make(size)
        work.steps = 0
        assert refusal(text, data) == rule
        steps.append(work.steps)
    assert steps[1] <= steps[0] + 10
    assert steps[0] < 4 * LIMITS["MAX_EXTRA"]


@pytest.mark.parametrize("name", hostile.REFUSED)
def test_refused_in_little_memory(name: str, peak: Callable[[], int]) -> None:
    rule, make = hostile.REFUSED[name]
    text, data = make(SIZE)
    tracemalloc.clear_traces()
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    assert refusal(text, data) == rule
    assert peak() - before < 3 * SIZE


@pytest.mark.parametrize("name", hostile.REFUSED)
def test_problems_is_bounded_too(name: str, peak: Callable[[], int]) -> None:
    _, make = hostile.REFUSED[name]
    text, data = make(SIZE)
    tracemalloc.clear_traces()
    tracemalloc.reset_peak()
    found = header.problems(text, data, strict=True)
    assert 1 <= len(found) <= rules.MAX_PROBLEMS
    assert peak() < 4 * SIZE


@pytest.mark.parametrize("name", hostile.READ)
def test_read_in_proportion(name: str, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries are read in bulk, and only a few of them value by value."""
    exact = []
    read = entries.Entries._read_info
    monkeypatch.setattr(
        entries.Entries, "_read_info", lambda self, name: exact.append(1) or read(self, name)
    )
    steps = []
    for size in (SIZE // 4, SIZE // 2):
        text, data = hostile.READ[name](size)
        work.steps = 0
        assert header.parse(text, data).size == len(text)
        steps.append(work.steps)
    assert steps[1] < 2.5 * steps[0] + 100
    assert len(exact) <= 4


@pytest.mark.parametrize("name", hostile.READ)
def test_read_in_little_memory(name: str, peak: Callable[[], int]) -> None:
    """The result takes memory too: text, numbers, and a dictionary entry per tensor."""
    text, data = hostile.READ[name](SIZE)
    tracemalloc.clear_traces()
    tracemalloc.reset_peak()
    header.parse(text, data)
    assert peak() < 3 * SIZE + (1 << 22)


def test_a_late_duplicate_is_found_without_reading_again(work: Work) -> None:
    text, data = hostile.entries(SIZE, hostile.realistic)
    text = text[:-1] + b"," + hostile.realistic(3).encode() + b"}"
    assert refusal(text, data) == "duplicate-key"
    assert work.steps < 3 * data


@pytest.mark.parametrize("wrong", [0, 1])
def test_a_late_fault_is_located_without_reading_again(wrong: int, work: Work) -> None:
    text, tensors = hostile.entries(SIZE, hostile.realistic)
    data = tensors * 8192
    last = text.rindex(b'"model')
    with pytest.raises(FormatError) as caught:
        header.parse(text[:last] + text[last:].replace(b"[64,64]", b"[64,63]"), data)
    assert (caught.value.rule, caught.value.offset) == ("size", 8 + last)
    assert work.steps < 3 * tensors


ESCAPED = hostile.FIELDS.replace("dtype", "d\\u0074ype")


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("MAX_EXTRA_FIELDS", 3, hostile.field('1,"y":2,"z":3,"w":4')),
        ("MAX_EXTRA", 60, hostile.field('"' + "z" * 60 + '"')),
        ("MAX_EXTRA", 20, hostile.field('1,"' + "z" * 20 + '":1')),
        ("MAX_EXTRA", 60, f'"a":{{{ESCAPED}}},"b":{{{ESCAPED}}}'),
    ],
)
def test_each_bound_holds(
    name: str, value: int, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = f"{{{text}}}".encode()
    monkeypatch.setattr(entries, name, value)
    assert refusal(data, 1) == "extra-limit"
    monkeypatch.setattr(entries, name, 10 * value)
    assert all(error.rule != "extra-limit" for error in header.problems(data, 1))


def test_an_array_beyond_the_bound_is_still_named() -> None:
    """If a value has the wrong type and is too long, the type is reported."""
    found = header.problems(f'{{"a":[{"1," * 700_000}1]}}'.encode(), 0)
    assert [error.rule for error in found] == ["entry", "extra-limit"]
