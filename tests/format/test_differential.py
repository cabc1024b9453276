"""Verdicts on mutated files, against the reference implementation (the `safetensors` package).

Every file that both read must give the same names, types, shapes and bytes. The reference reads some files
that we reject; each of these must break a rule that is documented as stricter. It never rejects a file that
we read.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import mutation
import pytest
import safetensors

from safeweights import checkpoint
from safeweights.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Callable

STRICTER = frozenset({"duplicate-key", "entry", "rank", "metadata-limit", "extra-limit"})
"""Rules that the reference lacks; ``entry`` only if an entry is an array or a dtype an object."""

FILES = 12_000


def ours(data: bytes) -> dict[str, tuple[str, list[int], bytes]] | str:
    """The tensors, or the rule that the file breaks; any error but ours is a failure."""
    try:
        found = checkpoint.open(data)
    except FormatError as error:
        return error.rule
    return {name: (t.dtype, list(t.shape), bytes(t.view())) for name, t in found.items()}


def reference(data: bytes) -> dict[str, tuple[str, list[int], bytes]] | None:
    """The tensors, or None if the reference rejects the file."""
    try:
        found = safetensors.deserialize(data)
    except safetensors.SafetensorError:
        return None
    return {name: (t["dtype"], t["shape"], bytes(t["data"])) for name, t in found}


def difference(data: bytes, mine: dict[str, Any] | str | None = None) -> str | None:
    """An undocumented difference; None if there is none."""
    mine, theirs = ours(data) if mine is None else mine, reference(data)
    if isinstance(mine, str):
        return None if theirs is None or mine in STRICTER else f"only we refuse it: {mine}"
    if theirs is None:
        return "only the reference refuses it"
    return None if mine == theirs else "it is read differently"


def smallest(data: bytes, fails: Callable[[bytes], Any]) -> bytes:
    """Remove ever smaller pieces of the header while the file still fails."""
    length = int.from_bytes(data[:8], "little")
    text, rest = data[8 : 8 + length], data[8 + length :]
    step = max(1, len(text) // 2)
    while step:
        for at in range(0, len(text), step):
            shorter = text[:at] + text[at + step :]
            if fails(len(shorter).to_bytes(8, "little") + shorter + rest):
                text = shorter
                break
        else:
            step //= 2
    return len(text).to_bytes(8, "little") + text + rest


@pytest.mark.slow
@pytest.mark.parametrize("series", range(10))
def test_verdicts_differ_only_where_documented(series: int) -> None:
    seen: Counter[str] = Counter()
    for number in range(FILES):
        data = mutation.file(random.Random(f"{series}:{number}"))
        mine = ours(data)
        problem = difference(data, mine)
        if problem is not None:
            shown = smallest(data, lambda shorter: difference(shorter) == problem)
            pytest.fail(f"{problem}: {shown!r} (file {number} of series {series})")
        seen[mine if isinstance(mine, str) else "valid"] += 1
    # The comparison is meaningful only if the files break every rule, and some break none.
    assert seen["valid"] > FILES // 5
    assert len(seen) > 14, seen


def test_a_difference_would_be_found_and_shrunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test itself: it detects a reader that overlooks a hole, and reports a small file."""
    text = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]},"__metadata__":{"x":"y"}}'
    data = len(text).to_bytes(8, "little") + text + b"12"
    assert difference(data) is None
    monkeypatch.setitem(globals(), "ours", lambda data: {"a": ("U8", [1], b"2")})
    assert difference(data) == "only the reference refuses it"
    shown = smallest(data, lambda shorter: b'"a"' in shorter)
    assert shown == b'\x03\x00\x00\x00\x00\x00\x00\x00"a"12'


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ('{"a":["U8",[1],[0,1]]}', "entry"),
        ('{"a":{"dtype":{"U8":null},"shape":[1],"data_offsets":[0,1]}}', "entry"),
        ('{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"\\u0061":{"dtype":"U8","shape":[1],'
         '"data_offsets":[0,1]}}', "duplicate-key"),
        ('{"__metadata__":{"k":"1","k":"2"},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
         "duplicate-key"),
        ('{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":{"k":1,"k":1}}}', "duplicate-key"),
        ('{"a":{"dtype":"U8","shape":[' + "1," * 64 + '1],"data_offsets":[0,1]}}', "rank"),
        ('{"__metadata__":{' + ",".join(f'"{n}":""' for n in range(100_001)) + "},"
         '"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', "metadata-limit"),
        ('{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":"' + "x" * (1 << 20) + '"}}',
         "extra-limit"),
    ],
    ids=["array", "dtype object", "key", "metadata key", "nested key", "rank", "metadata", "extra"],
)  # fmt: skip
def test_documented_differences_are_still_there(text: str, rule: str) -> None:
    """Each was reproduced with the reference; if that becomes stricter, change the documentation."""
    data = len(text).to_bytes(8, "little") + text.encode() + b"1"
    assert reference(data) is not None
    assert ours(data) == rule
