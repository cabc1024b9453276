"""Headers: which problems are reported, where and in which order; writing headers."""

from __future__ import annotations

import random
from typing import Any

import mutation
import numpy as np
import pytest

from safeweights import checkpoint
from safeweights.errors import FormatError, SafetensorError
from safeweights.format import entries, header, rules, writer
from safeweights.format.header import TensorInfo


def entry(dtype: str = "U8", shape: Any = (1,), begin: int = 0, end: int = 1) -> str:
    return f'{{"dtype":"{dtype}","shape":{list(shape)},"data_offsets":[{begin},{end}]}}'


def text(**entries: str) -> bytes:
    return ("{" + ",".join(f'"{name}":{value}' for name, value in entries.items()) + "}").encode()


def test_parse_raises_the_first_problem() -> None:
    seen = set()
    for seed in range(4000):
        data, size = mutation.header(random.Random(f"header {seed}"))
        found = header.problems(data, size)
        if not found:
            parsed = header.parse(data, size)
            assert parsed.data_size == size
            assert parsed.size == len(data)
            continue
        with pytest.raises(FormatError) as caught:
            header.parse(data, size)
        first, raised = found[0], caught.value
        assert (raised.rule, str(raised)) == (first.rule, str(first))
        assert (raised.tensor, raised.offset) == (first.tensor, first.offset)
        assert all(error.offset is None or 8 <= error.offset <= 8 + len(data) for error in found)
        seen |= {error.rule for error in found}
    assert len(seen) > 10


def test_everything_wrong_is_reported_with_its_place() -> None:
    data = text(
        a=entry("U8", (1,), 0, 1),
        b=entry("F99", (1,), 1, 2),
        c=entry("U8", (1,), 5, 6),
        d='{"dtype":"U8","shape":[1.5],"data_offsets":[6]}',
        e="[]",
        f=entry("U8", (9,), 6, 7),
        a_="{}",
    ).replace(b'"a_"', b'"a"')
    found = header.problems(data, 9)
    assert [(error.rule, error.tensor) for error in found] == [
        ("dtype", "b"),
        ("integer", "d"),
        ("entry", "d"),
        ("entry", "e"),
        ("duplicate-key", "a"),
        ("entry", "a"),
        ("entry", "a"),
        ("entry", "a"),
        ("size", "f"),  # no holes and no coverage: some tensors are unknown
    ]
    places = [data[error.offset - 8 :] for error in found if error.offset is not None]
    beginnings = [b'"F99"', b"1.5", b"[6]", b"[]", b'"a":{}', b"{}", b"{}", b"{}", b'"f":']
    assert [place.startswith(start) for place, start in zip(places, beginnings, strict=True)] == [
        True
    ] * 9


def test_holes_and_what_is_not_covered_are_reported_once_all_tensors_are_known() -> None:
    data = text(a=entry("U8", (1,), 0, 1), c=entry("U8", (1,), 5, 6), f=entry("U8", (9,), 6, 7))
    found = header.problems(data, 9)
    assert [(error.rule, error.tensor) for error in found] == [
        ("offsets", "c"),
        ("size", "f"),
        ("coverage", None),
    ]


def test_messages_name_sizes_and_names() -> None:
    (error,) = header.problems(text(a=entry("F32", (4,), 0, 16)), 10, path="x.safetensors")
    assert str(error) == (
        "incomplete metadata, file not fully covered: the tensors end at byte "
        "79, the file at byte 73 (6 bytes are missing) (in `x.safetensors`)"
    )
    (error,) = header.problems(text(a=entry("U8", (4,), 4, 8)), 8)
    assert str(error) == (
        "invalid offset for tensor `a`: data_offsets are [4, 8], but the tensor must begin at 0, "
        "the end of the previous one (at byte 9)"
    )
    error = header.problems(text(a=entry("U8", (1,), 0, 1), b=entry("U8", (1,), 1, 0)), 1)[0]
    assert "data_offsets are [1, 0], but the tensor must not end before it begins" in str(error)
    (error,) = header.problems(b"{}", 3)
    assert "3 bytes are left over" in str(error)
    (error,) = header.problems(text(**{"\u202e": entry("U8", (2,))}), 1)
    assert "tensor `\\u202e`: U8 of shape [2] needs 2 bytes, but data_offsets span 1" in str(error)
    assert "\u202e" not in str(error)


def test_positions_are_those_of_the_entry_and_not_of_a_lookalike() -> None:
    a = '"note":{"b":{"b":1}},"dtype":"U8","shape":[1],"data_offsets":[0,1]'
    metadata = '"__metadata__":{"b":"{,\\"b\\":{"}'
    data = f'{{{metadata},"a":{{{a}}}, "\\u0062" : {entry("U8", (9,), 1, 2)}}}'.encode()
    (error,) = header.problems(data, 2)
    assert error.offset is not None
    assert data[error.offset - 8 :].startswith(b'"\\u0062"')


def test_problems_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """After 1,000 problems the rest is not checked."""
    many = "{" + ",".join(f'"{i}":[]' for i in range(5000)) + "}"
    assert len(header.problems(many.encode(), 0)) == rules.MAX_PROBLEMS
    wrong = (
        "{" + ",".join(f'"{i}":{entry("U8", (1,), 2 * i, 2 * i + 1)}' for i in range(5000)) + "}"
    )
    looked = []
    count = rules.byte_count
    monkeypatch.setattr(header, "byte_count", lambda *kind: looked.append(kind) or count(*kind))
    assert len(header.problems(wrong.encode(), 10**6)) == rules.MAX_PROBLEMS
    assert len(looked) <= rules.MAX_PROBLEMS + 1
    again = '{"a":{' + ",".join(['"dtype":"U8"'] * 5000) + "}}"
    assert len(header.problems(again.encode(), 0)) == rules.MAX_PROBLEMS
    keys = '{"__metadata__":{' + ",".join(['"k":1'] * 5000) + "}}"
    assert len(header.problems(keys.encode(), 0)) == rules.MAX_PROBLEMS


@pytest.mark.parametrize("place", [0, 1, 131_071, 131_072, 131_073, 262_143, 262_144, 299_998])
@pytest.mark.parametrize("wrong", [b"\xff", b"\xe2\x82x", b"\xed\xa0\x80", b"\xf0\x9f\x98"])
def test_bad_utf8_is_found_where_it_is(place: int, wrong: bytes) -> None:
    data = b"x" * place + wrong + b"x" * (300_000 - place)
    with pytest.raises(FormatError) as caught:
        header.parse(data, 0)
    for error in (header.problems(data, 0)[0], caught.value):
        assert (error.rule, error.offset) == ("utf-8", 8 + place)


def test_multibyte_characters_across_chunks_are_fine() -> None:
    for shift in range(4):
        name = "x" * (131_070 - shift) + "\U0001f600"
        assert list(header.parse(text(**{name: entry()}), 1).tensors) == [name]


def test_utf8_comes_before_every_other_rule() -> None:
    assert [error.rule for error in header.problems(b'{"a":[]}\xff', 0)] == ["utf-8"]
    with pytest.raises(FormatError, match="UTF-8"):
        header.parse(b'{"a":[]}\xff', 0)


def test_strict_reports_habits() -> None:
    data = b' {"a":{"x":1,"dtype":"U8","shape":[1],"data_offsets":[0,1]}}\n'
    assert header.problems(data, 1) == []
    found = header.problems(data, 1, strict=True)
    assert [(error.rule, error.offset) for error in found] == [
        ("strict-space", 8),
        ("strict-extra", 15),
        ("strict-space", 68),
    ]


def test_header_length() -> None:
    assert header.header_length((2).to_bytes(8, "little"), 10) == 2
    for prefix, size, rule in (
        (b"1234567", 7, "header-too-small"),
        (bytes(8), 7, "header-too-small"),
        ((100_000_001).to_bytes(8, "little"), 2**40, "header-too-large"),
        ((100_000_000).to_bytes(8, "little"), 100_000_007, "header-length"),
        ((1).to_bytes(8, "little"), 8, "header-length"),
    ):
        with pytest.raises(FormatError) as caught:
            header.header_length(prefix, size, path="p")
        assert (caught.value.rule, caught.value.path) == (rule, "p")
    assert header.header_length((100_000_000).to_bytes(8, "little"), 100_000_008) == 100_000_000


def test_header_attributes() -> None:
    parsed = header.parse(text(b=entry("F16", (2, 3), 1, 13), a=entry("I8", (1,), 0, 1)), 13)
    assert list(parsed.tensors) == ["a", "b"]
    assert parsed.tensors["b"] == TensorInfo("F16", (2, 3), 1, 13)
    assert (parsed.tensors["b"].nbytes, parsed.tensors["b"].elements) == (12, 6)
    assert (parsed.data_start, parsed.data_size) == (8 + parsed.size, 13)
    assert header.parse(b"{}", 0).data_size == 0


def test_order_is_by_begin_then_end_then_text() -> None:
    data = text(
        last=entry("U8", (1,), 1, 2),
        zero=entry("U8", (0,), 1, 1),
        zero2=entry("I8", (0,), 1, 1),
        first=entry("U8", (1,), 0, 1),
    )
    assert list(header.parse(data, 2).tensors) == ["first", "zero", "zero2", "last"]


def test_a_later_zero_does_not_undo_an_overflow() -> None:
    assert rules.byte_count("U8", (2**63, 2, 0)) is None
    assert rules.byte_count("U8", (0, 2**63, 2)) == 0
    assert rules.byte_count("U64", (2**63, 0)) == 0
    assert rules.byte_count("U64", (2**58,)) is None
    assert rules.byte_count("U64", (2**58 - 1,)) == 2**61 - 8
    assert rules.byte_count("F4", (3,)) is None


# Writing


GOLDEN = [
    ([], None, b"\x08" + bytes(7) + b"{}" + b" " * 6),
    (
        [],
        {"framework": "pt"},
        b"\x28" + bytes(7) + b'{"__metadata__":{"framework":"pt"}}' + b" " * 5,
    ),
    (
        [("test", "I32", (2, 2))],
        None,
        b"\x40"
        + bytes(7)
        + b'{"test":{"dtype":"I32","shape":[2,2],"data_offsets":[0,16]}}'
        + b" " * 4,
    ),
]


@pytest.mark.parametrize(("tensors", "metadata", "wanted"), GOLDEN)
def test_golden_bytes(tensors: Any, metadata: Any, wanted: bytes) -> None:
    assert writer.layout(tensors, metadata)[1] == wanted


def test_golden_two_tensors() -> None:
    written, head = writer.layout([("test2", "F16", (2, 2)), ("test1", "I32", (2, 2))])
    assert list(written.tensors) == ["test1", "test2"]
    assert head[:8] == (128).to_bytes(8, "little")


@pytest.mark.parametrize(
    ("tensors", "metadata", "rule"),
    [
        ([("a", "U8", (1,)), ("a", "U8", (1,))], None, "duplicate-key"),
        ([("a", "F32", (1,)), ("b", "U8", (1,)), ("a", "U8", (1,))], None, "duplicate-key"),
        ([("a", "F99", (1,))], None, "dtype"),
        ([("a", "U8", (1,) * 65)], None, "rank"),
        ([("a", "U8", (-1,))], None, "integer"),
        ([("a", "F4", (3,))], None, "byte-boundary"),
        ([("a", "U8", (2**64,))], None, "overflow"),
        ([("a", "U8", (2**63, 2, 0))], None, "overflow"),
        ([(f"{i}", "U8", (2**60,)) for i in range(17)], None, "overflow"),
        ([("__metadata__", "U8", (1,))], None, "metadata"),
        ([("\ud800", "U8", (1,))], None, "utf-8"),
        ([], {"a": "\ud800"}, "utf-8"),
        ([], {str(i): "" for i in range(100_001)}, "metadata-limit"),
    ],
)
def test_what_cannot_be_written(tensors: Any, metadata: Any, rule: str) -> None:
    with pytest.raises(FormatError) as caught:
        writer.layout(tensors, metadata)
    assert caught.value.rule == rule


def test_a_header_too_large_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "MAX_HEADER", 64)
    writer.layout([("test", "I32", (2, 2))])
    with pytest.raises(FormatError, match="header too large"):
        writer.layout([("testing", "I32", (2, 2, 2))])


@pytest.mark.parametrize("metadata", [{"a": 1}, {1: "a"}, [("a", "b")]])
def test_metadata_of_other_types(metadata: Any) -> None:
    with pytest.raises(SafetensorError, match="metadata"):
        writer.layout([], metadata)


def test_dimensions_may_be_numpy_integers() -> None:
    written, head = writer.layout([("a", "U8", (np.int64(2), np.uint8(3))), ("b", "U8", (2, 3))])
    assert b'"shape":[2,3]' in head
    assert all(type(dim) is int for info in written.tensors.values() for dim in info.shape)
    with pytest.raises(TypeError):
        writer.layout([("a", "U8", (2.0,))])


def test_metadata_is_sorted_and_not_shared() -> None:
    metadata = {"b": "1", "a": "2"}
    written, head = writer.layout([], metadata)
    assert head[8:].startswith(b'{"__metadata__":{"a":"2","b":"1"}}')
    metadata["c"] = "3"
    assert written.metadata == {"a": "2", "b": "1"}


def test_empty_metadata_is_readable() -> None:
    """The reference's writer writes a file that cannot be read."""
    head = writer.layout([], {})[1]
    assert checkpoint.open(head).metadata == {}


# --- headers that are remembered


@pytest.fixture
def remembered(monkeypatch: pytest.MonkeyPatch) -> dict[Any, Any]:
    """What is remembered, nothing at first."""
    found: dict[Any, Any] = {}
    monkeypatch.setattr(header, "_checked", found)
    return found


def test_a_header_seen_before_is_not_read_again(
    remembered: dict[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = text(__metadata__='{"a":"b"}', x=entry())
    first = header.parse(data, 1)
    monkeypatch.setattr(entries, "Entries", None)
    again = header.parse(bytes(bytearray(data)), 1)
    assert again == first
    assert list(again.tensors) == list(first.tensors)
    assert len(remembered) == 1


def test_remembered_headers_are_not_shared(remembered: dict[Any, Any]) -> None:
    data = text(__metadata__='{"a":"b"}', x=entry())
    for _ in range(3):
        found = header.parse(data, 1)
        assert found.metadata == {"a": "b"}
        assert list(found.tensors) == ["x"]
        found.metadata.clear()
        found.tensors.clear()
    assert header.parse(text(x=entry()), 1).metadata is None
    assert header.parse(text(x=entry()), 1).metadata is None
    assert remembered


def test_other_headers_of_that_size_are_read(remembered: dict[Any, Any]) -> None:
    """The verdict on each mutant of a valid header is that of a process that has seen no header."""
    data = text(first=entry("U8", (1,), 0, 1), other=entry("U8", (1,), 1, 2))
    header.parse(data, 2)
    random_ = random.Random(5)
    valid = 0
    for _ in range(2000):
        mutant = bytearray(data)
        mutant[random_.randrange(len(data))] = random_.choice(data)
        verdicts = []
        for clear in (False, True):
            if clear:
                remembered.clear()
            else:
                header.parse(data, 2)
            try:
                verdicts.append(str(header.parse(bytes(mutant), 2)))
            except FormatError as error:
                verdicts.append(str(error))
        assert verdicts[0] == verdicts[1]
        valid += verdicts[0].startswith("Header")
    assert 0 < valid < 2000
    with pytest.raises(FormatError, match="bytes are left over"):
        header.parse(data, 3)


def test_invalid_and_long_headers_are_not_remembered(
    remembered: dict[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FormatError):
        header.parse(text(x=entry()), 2)
    header.parse(text(x=entry()) + b" " * (1 << 17), 1)
    header.parse(bytearray(text(x=entry())), 1)  # type: ignore[arg-type] - its contents may change
    assert not remembered
    monkeypatch.setattr(header, "_REMEMBERED_ALL", 1000)
    for length in range(500):
        header.parse(text(x=entry()) + b" " * length, 1)
        assert sum(len(data) for data, _, _ in remembered.values()) <= 1000
        assert remembered
