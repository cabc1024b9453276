"""Bulk reading of entries, compared with reading value by value: the same result for every input."""

from __future__ import annotations

import random
import re
from itertools import permutations, product
from typing import Any

import mutation
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safeweights.errors import FormatError
from safeweights.format import bulk as chunks
from safeweights.format import entries, header, rules, writer
from safeweights.format.entries import Entries


@pytest.fixture(params=[60, 250, 1 << 17])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Bytes per chunk; if there are few, entries cross the boundaries of chunks."""
    for module in (chunks, entries):
        monkeypatch.setattr(module, "BULK_SIZE", request.param)
    return request.param


def outcome(text: bytes, *, bulk: bool, collect: bool) -> Any:
    """All attributes of `Entries`, or of the errors."""
    report = rules.Problems(None, collect=collect, strict=collect)
    try:
        found = Entries(text, report, bulk=bulk)
    except (FormatError, rules.Stop) as error:
        raised = report.found if isinstance(error, rules.Stop) else [error]
        return [(e.rule, str(e), e.tensor, e.offset) for e in raised]
    problems = [(e.rule, str(e), e.tensor, e.offset) for e in report.found]
    places = found.positions(set(list(found.tensors)[::3]))
    flags = found.sized, found.in_order, found.end
    return list(found.tensors.items()), found.metadata, flags, problems, places


def assert_same(text: bytes) -> None:
    for collect in (False, True):
        fast = outcome(text, bulk=True, collect=collect)
        assert fast == outcome(text, bulk=False, collect=collect), text


@pytest.mark.parametrize(
    "seeds", [range(400), pytest.param(range(400, 4000), marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("make", [mutation.regular, mutation.header])
def test_mutated_headers_are_read_alike(chunk: int, make: Any, seeds: range) -> None:
    for seed in seeds:
        assert_same(make(random.Random(f"entries {seed}"))[0])


ENTRY = '"dtype":"U8","shape":[1],"data_offsets":[{},{}]'


def many(count: int = 20, start: int = 0, prefix: str = "n") -> list[str]:
    return [f'"{prefix}{i}":{{{ENTRY.format(i, i + 1)}}}' for i in range(start, start + count)]


FIELDS = ('"dtype":"U8"', '"shape":[1]', '"data_offsets":[{},{}]')


def ordered(*order: int, count: int = 20) -> list[str]:
    """Entries with their fields in this order."""
    fields = ",".join(FIELDS[place] for place in order)
    return [f'"n{i}":{{{fields.format(i, i + 1)}}}' for i in range(count)]


def join(*parts: list[str]) -> bytes:
    return ("{" + ",".join(entry for part in parts for entry in part) + "}").encode()


def odd(dtype: str, shape: str, begin: int = 20, end: int = 21) -> bytes:
    """A header with one irregular entry in the middle."""
    entry = f'"x":{{"dtype":"{dtype}","shape":[{shape}],"data_offsets":[{begin},{end}]}}'
    return join(many(), [entry], many(start=21))


def ragged(space: str = " ", count: int = 60) -> bytes:
    """Entries with varying white space around their punctuation."""
    spaced = (space * (i % 3) + r"\g<0>" + space * (i % 4) for i in range(count))
    return join([re.sub("[],:{}[]", *pair) for pair in zip(spaced, many(count), strict=True)])


SHAPE_FIRST = '"x":{"shape":[1],"data_offsets":[20,21],"dtype":"U8"}'

LAYOUTS = {
    "tidy": join(many()),
    "orders differ": join(many(), [SHAPE_FIRST], many(start=21)),
    **{f"order {order}": join(ordered(*order)) for order in permutations(range(3))},
    "metadata amid": join(many(), ['"__metadata__":{"a":"b"}'], many(start=20)),
    "entry as metadata": join(many(), ['"__metadata__":{' + ENTRY.format(20, 21) + "}"]),
    "metadata escaped": join(many(), ['"__met\\u0061data__":{"a":"b"}'], many(start=20)),
    **{
        f"twice, refused first, {where}": join(
            many(), ['"x":{"dtype":"U8","shape":[1]}'], many(count, 20), [SHAPE_FIRST.replace("[1]", "[2]")]
        )
        for where, count in (("near", 0), ("far", 200))
    },
    "twice, no object first": join(many(), ['"x":5'], [SHAPE_FIRST], many(start=21)),
    "twice in a chunk": join(many(), many(1, 3)),
    "twice in chunks": join(many(200), many(1, 3)),
    "twice with other values": join(many(), ['"n3":{' + ENTRY.format(30, 31) + "}"], many(start=20)),
    "twice with other values in chunks": join(
        many(200), ['"n3":{' + ENTRY.format(30, 31) + "}"], many(start=200)
    ),
    "twice at the end": join(many(200), ['"n3":{' + ENTRY.format(200, 201) + "}"]),
    "metadata at the end": join(many(), ['"__metadata__":{"a":"b","c":"d","e":"f"}']),
    "metadata at the end, like an entry": join(
        many(), ['"__metadata__":{"a":"b","c":"d","e":"f","g":""}']
    ),
    "entry as metadata at the end": join(many(), ['"__metadata__":{' + ENTRY.format(20, 21) + "}"]),
    "twice by escape": join(many(), ['"\\u006e3":{' + ENTRY.format(20, 21) + "}"]),
    "escapes": join(many(prefix="\\n\\u00e9\\ud83d\\ude00")),
    "escaped quotes": join(many(prefix='\\"x\\":')),
    "escaped backslash": join([entry.replace('":{', '\\\\":{') for entry in many()]),
    "backslash eats quote": join([entry.replace('":{', '\\":{') for entry in many()]),
    "bad escape": join(many(prefix="\\x")),
    "lone surrogate": join(many(), many(1, 20, "\\ud800"), many(start=21)),
    "control": join(many(), many(1, 20, "\x01"), many(start=21)),
    "control behind backslash": join(many(), many(1, 20, "\\\x01"), many(start=21)),
    "not printable": join(many(prefix="\u00a0\u200b")),
    "invalid UTF-8": join(many(), many(1, 20, "\u00e9")).replace(b"\xc3\xa9", b"\xff"),
    "invalid UTF-8 between": join(many(2)).replace(b",", b"\xff,", 1),
    "invalid UTF-8 behind the first": b'{"a":{' + ENTRY.format(0, 1).encode() + b'}\xff"',
    "empty names": join(many(1, 0, ""), many(5, 1)),
    "unknown field": join(many(), ['"x":{' + ENTRY.format(20, 21) + ',"y":[]}'], many(start=21)),
    "field missing": join(many(), ['"x":{"dtype":"U8","dtype":"U8","shape":[1]}'], many(start=20)),
    "unknown dtype": join(many()).replace(b'"U8"', b'"U9"'),
    "unknown dtype late": odd("U9", "1", 20, 21),
    "dimension too large": odd("U8", "18446744073709551616", 20, 21),
    "offset too large": odd("U8", "1", 20, 18446744073709551616),
    "largest numbers": odd("U8", "18446744073709551615", 20, 18446744073709551615),
    "no size": odd("F4", "1", 20, 21),
    "above 2^64 together": join(
        [
            f'"n{i}":{{"dtype":"U8","shape":[{1 << 60}],"data_offsets":[{i << 60},{i + 1 << 60}]}}'
            for i in range(20)
        ]
    ),
    "another key": join(many()).replace(b"shape", b"shapf", 1),
    "another key, out of order": join(many(start=20), many()).replace(b"shape", b"shapf", 1),
    "another key late, out of order": join(many(start=20), many()[:-1], many(1, 19)).replace(
        b'"n7":{"dtype"', b'"n7":{"dtypf"'
    ),
    "an array in a shape": odd("U8", "[1]"),
    "shapes apart": join(
        ['"a":{"dtype":"U8","shape":[[1],"data_offsets":[0,1]}'],
        ['"b":{"dtype":"U8","shape":[2]],"data_offsets":[0,1]}'],
        ['"c":{"dtype":"U8","shape":[1],[1],"data_offsets":[0,1]}'],
    ),
    "an offset too few": odd("U8", "1").replace(b"[20,21]", b"[20]"),
    "an offset too many": odd("U8", "1").replace(b"[20,21]", b"[20,21,22]"),
    "offsets with a zero in front": odd("U8", "1").replace(b"[20,21]", b"[020,21]"),
    "an array in offsets": odd("U8", "1").replace(b"[20,21]", b"[[20,21]]"),
    "a float in offsets": odd("U8", "1").replace(b"[20,21]", b"[20.0,21]"),
    "a sign in offsets": odd("U8", "1").replace(b"[20,21]", b"[-0,21]"),
    "a sign in a shape": odd("U8", "-0"),
    "marks in names": join(many(prefix="\\n\\\\x"), many(1, 20, "\0"), many(1, 21, "\1")),
    "a mark behind a backslash": join(many(), ['"\\\0":{' + ENTRY.format(20, 21) + "}"]),
    "wrong size": odd("U8", "7", 20, 21),
    "out of order": join(many(start=20), many()),
    "hole": join(many(), many(start=21)),
    "rank 64": odd("U8", "1," * 63 + "1"),
    "rank 65": odd("U8", "1," * 64 + "1"),
    "scalars": join(many()).replace(b"[1]", b"[ ]"),
    "spaces differ": join(many(), [e.replace(":", " : ") for e in many(start=20)], many(start=40)),
    **{f"ragged {code:x}": ragged(chr(code)) for code in (9, 10, 11, 12, 13, 32, 0, 0xA0)},
    "ragged, a name of spaces": ragged().replace(b'"n17"', b'" n 17\t"'),
    "ragged, with a control": ragged().replace(b'"n17"', b'"n\n17"'),
    "ragged, with an escape": ragged().replace(b'"n17"', b'"n\\n17"'),
    "ragged, with a quote": ragged().replace(b'"n17"', b'"n\\"17"'),
    "ragged, not ASCII": ragged().replace(b'"n17"', '"n\u00e917"'.encode()),
    "ragged, invalid UTF-8": ragged().replace(b'"n17"', b'"n\xff"'),
    "ragged, a number in two": ragged().replace(b"17", b"1 7"),
    "ragged, a number in two each": ragged().replace(b"1", b"1 1"),
    "ragged, a shape in two": ragged().replace(b"[", b"[1 1", 21),
    "ragged, another key": ragged().replace(b'"dtype"', b'"dtypf"', 21),
    "ragged, trailing comma": ragged().replace(b"}", b",}", 21),
    "ragged, no comma": ragged().replace(b",", b"", 51),
    "ragged, metadata": ragged().replace(b"}", b'} , "__metadata__" : {"a":"b"}', 1),
    "trailing comma": join(many()).replace(b"}}", b"},}"),
    "junk behind comma": join(many()).replace(b"},", b"},5,", 1),
    "not closed": join(many())[:-1],
    "cut": join(many())[:-30],
    "new kind each": join(
        [f'"n{i}":{{"dtype":"U8","shape":[{i},0],"data_offsets":[0,0]}}' for i in range(300)]
    ),
    "new kind for three": join(
        [f'"n{i}":{{"dtype":"U8","shape":[{i // 3},0],"data_offsets":[0,0]}}' for i in range(300)]
    ),
    "types in groups": join(
        [each.replace("U8", ("U8", "I8", "BOOL")[i // 100]) for i, each in enumerate(many(300))]
    ),
    "types in groups of one": join(
        [each.replace("U8", ("U8", "I8", "BOOL")[i % 3]) for i, each in enumerate(many(5))]
    ),
    "brackets in names": join(many(prefix="a[0]")),
    "a bracket in a name": join(many(), many(1, 20, "a["), many(start=21)),
    "two brackets in a name": join(many(), many(1, 20, "a[0],["), many(start=21)),
    "no bracket": join(many()).replace(b"[", b""),
    "a bracket for each but one": join(many()).replace(b"[", b"", 5),
    "space before commas": join(many()).replace(b"},", b"}  , "),
    "space before commas and the end": join(many()).replace(b"}", b"} "),
    "spaced": join(many()).replace(b":", b": ").replace(b",", b", "),
    "brackets apart": join(many()).replace(b":", b" : ").replace(b"[", b"[ ").replace(b"]", b" ]"),
    "spaces within brackets": join(many()).replace(b"[", b"[ ").replace(b"]", b" ]"),
    "offsets of another": join(many(), many(2, 21), many(1, 20), many(start=23)),
    "a bracket too early": join(
        many(2), ['"":{"dtype":"U8","shape"[1],"data_offsets":[:2,3]}']
    ),
    "a bracket too early, then more": join(
        many(1), ['"":{"dtype":"U8","sha[1],"data_offsets":[pe":1,2]}'], many(5, 2)
    ),
    "a bracket too late": join(many(1), ['"":{"dtype":"U8","shape":1[],"data_offsets":[1,2]}']),
    "a member within": join(many()).replace(b'"n7":{', b'"x":1,"n7":{'),
    "a member at the end of a name": join(many()).replace(b'"n7":{', b'"n7":1,"x":{'),
    "types alternate": join(
        [each.replace("U8", ("U8", "I8", "BOOL")[i % 3]) for i, each in enumerate(many(300))]
    ),
    "empty types": join([each.replace("U8", "") for each in many(40)]),
    "empty types but the first": join(
        many(1), [each.replace("U8", "") for each in many(40, start=1)]
    ),
    "unknown types but the first": join(
        many(1), [each.replace("U8", "U9") for each in many(40, start=1)]
    ),
    "long name": join(many(), many(1, 20, "y" * 500), many(start=21)),
    "last name is the first": join(many(), many(1)),
    "tail lacks comma": b'{"a":{' + ENTRY.format(0, 1).encode() + b'}}"',
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_chosen_headers_are_read_alike(chunk: int, name: str) -> None:
    assert_same(LAYOUTS[name])


def test_the_cache_of_kinds_is_bounded(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "_MAX_KINDS", 5)
    chunks._usual_template.cache_clear()
    assert_same(LAYOUTS["new kind for three"])
    chunks._usual_template.cache_clear()
    text = join(
        [f'"n{i}":{{"dtype":"U8","shape":[{i // 90},0],"data_offsets":[0,0]}}' for i in range(9000)]
    )
    Entries(text, rules.Problems(None))
    most = 5 + chunk // 90 // 50 + 2  # and what one chunk has
    assert sum(map(len, chunks._usual_template()._kinds._known.values())) <= most


def test_other_threads_may_use_the_cache_of_kinds_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While new kinds are parsed, another thread adds some, and another one empties the cache."""
    reader = chunks._KindReader("[", "]")
    codes = ["U8"] * 4
    assert reader.columns(codes, ["[1]"] * 4) == (("U8",) * 4, ((1,),) * 4, (1,) * 4)
    read = chunks._KindReader._read
    meanwhile: list[Any] = [
        lambda: reader.columns(codes, ["[3]", "[3]", "[2]", "[1]"]),
        lambda: reader._known.clear(),
        lambda: vars(reader).update(_known={"U8": {}}),
    ]

    def interrupted(self: Any, *columns: Any) -> Any:
        if meanwhile:
            meanwhile.pop()()
        return read(self, *columns)

    monkeypatch.setattr(chunks._KindReader, "_read", interrupted)
    for dim in (4, 5, 6):
        found = reader.columns(codes, [f"[{dim}]", "[1]", "[2]", "[1]"])
        assert found == (("U8",) * 4, ((dim,), (1,), (2,), (1,)), (dim, 1, 2, 1))
    assert not meanwhile


@settings(max_examples=60, deadline=None)
@given(
    names=st.lists(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=12), unique=True, max_size=40
    ),
    data=st.data(),
)
def test_round_trip(names: list[str], data: st.DataObject) -> None:
    """`parse` reads what `layout` writes, in bulk and value by value."""
    tensors = [
        (
            name,
            data.draw(st.sampled_from(["U8", "F32", "BF16", "F8_E4M3"])),
            tuple(data.draw(st.lists(st.integers(0, 5), max_size=4))),
        )
        for name in names
        if name != "__metadata__"
    ]
    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
    metadata = data.draw(st.none() | st.dictionaries(text, text, max_size=4))
    written, head = writer.layout(tensors, metadata)
    assert header.parse(head[8:], written.data_size) == written
    assert list(header.parse(head[8:], written.data_size).tensors) == list(written.tensors)
    assert {name: (info.dtype, info.shape) for name, info in written.tensors.items()} == {
        name: (dtype, shape) for name, dtype, shape in tensors
    }
    assert_same(head[8:])


def test_regular_headers_are_read_in_bulk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a regular header, only the first and last entries are read value by value."""
    exact: list[str] = []
    read = Entries._read_info
    monkeypatch.setattr(
        Entries, "_read_info", lambda self, name: exact.append(name) or read(self, name)
    )
    for text in (
        join(many(5000)),
        *(LAYOUTS[f"order {order}"] for order in permutations(range(3))),
        LAYOUTS["out of order"],
        LAYOUTS["spaces differ"],
        LAYOUTS["escaped quotes"],
        LAYOUTS["orders differ"],
        LAYOUTS["escapes"],
        LAYOUTS["not printable"],
    ):
        exact.clear()
        Entries(text, rules.Problems(None))
        assert len(exact) <= 2, exact


@pytest.fixture
def scanned(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The positions from which text was scanned by the regular expression."""
    positions: list[int] = []
    scan = chunks.BulkReader._scan
    monkeypatch.setattr(
        chunks.BulkReader,
        "_scan",
        lambda self, position: positions.append(position) or scan(self, position),
    )
    return positions


@pytest.mark.parametrize("spaces", ["", " "])
@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_every_order_of_fields_is_split(
    order: tuple[int, ...], spaces: str, scanned: list[int]
) -> None:
    """If all entries have one style, the template matches all but the first, including the last."""
    text = join(ordered(*order)).replace(b",", b"," + spaces.encode())
    found = Entries(text, rules.Problems(None))
    assert len(found.tensors) == 20
    assert found.in_order
    assert not scanned


@pytest.mark.parametrize(
    "name",
    ["escapes", "escaped quotes", "not printable", "out of order", "hole", "wrong size", "scalars"],
)
def test_what_is_valid_text_is_split(name: str, scanned: list[int]) -> None:
    """The template matches every entry, except perhaps the last one."""
    Entries(LAYOUTS[name], rules.Problems(None))
    assert all(position > len(LAYOUTS[name]) - 100 for position in scanned)


def test_a_template_that_failed_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk with one irregular entry does not change the template."""
    tried: list[int] = []
    split = chunks._Template.split
    monkeypatch.setattr(
        chunks._Template, "split", lambda self, *given: tried.append(1) or split(self, *given)
    )
    found = Entries(LAYOUTS["unknown field"], rules.Problems(None))
    assert len(found.tensors) == 41
    assert len(tried) == 1


@pytest.mark.parametrize("space", list(" \t\n\r"))
def test_varying_white_space_is_removed(scanned: list[int], space: str) -> None:
    text = ragged(space, 5000)
    found = Entries(text, rules.Problems(None))
    assert len(found.tensors) == 5000
    assert found.sized
    assert found.in_order
    assert all(position > len(text) - 300 for position in scanned)


def test_a_rejected_chunk_adds_nothing() -> None:
    """A chunk with a duplicate name adds nothing before it is read value by value."""
    found = Entries(join(many()), rules.Problems(None))
    before = dict(found.tensors)
    for names in (["x", "n3", "y"], ["x", "y", "x"], ["x", "__metadata__"]):
        kinds = chunks.Kinds(["U8"] * 3, [(7,)] * 3, [7] * 3)
        batch = chunks.Columns(names, kinds, [20, 27, 34], [27, 34, 41], placed=True)
        assert not found._add(batch)
        assert list(found.tensors.items()) == list(before.items())
        assert found.end == 20


def test_a_new_style_per_entry_does_not_cost_a_chunk_per_entry(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Styles repeat once per chunk: the learnt tail occurs again at the end of the chunk."""
    spaces = ["".join(pattern) for pattern in product(" \t\n\r", repeat=6)]
    entry = '"{:05x}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}{}'
    period = chunks.BULK_SIZE // len(entry.format(0, spaces[0]) + ",")
    text = join([entry.format(i, spaces[i % period]) for i in range(3 * period)])
    looked: list[int] = []
    columns = chunks._Template.columns

    def counted(self: Any, part: str, *given: Any, **how: Any) -> Any:
        looked.append(len(part))
        return columns(self, part, *given, **how)

    monkeypatch.setattr(chunks._Template, "columns", counted)
    assert len(Entries(text, rules.Problems(None)).tensors) == 3 * period
    assert sum(looked) < 6 * len(text)


def test_a_template_is_learnt_again(scanned: list[int]) -> None:
    """After a change of style, entries in the new style are split too."""
    text = join(many(3000), [entry.replace(":", " : ") for entry in many(9000, 3000)])
    found = Entries(text, rules.Problems(None))
    assert len(found.tensors) == 12000
    assert len(scanned) < 8
