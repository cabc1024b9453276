"""A decision tree of scikit-learn is data if every walk through its nodes ends at a leaf."""

from __future__ import annotations

import struct

import pytest
from builders import call, integer, ints, many, mapping, name, text, whole
from hostile_uses import array, dtype, plain, short

from safeweights.conversion import scan

FIELDS = {
    "left_child": "i8", "right_child": "i8", "feature": "i8", "threshold": "f8", "impurity": "f8",
    "n_node_samples": "i8", "weighted_n_node_samples": "f8", "missing_go_to_left": "u1",
}  # fmt: skip
LEAF = (-1, -1, -2)


def node_type(**kinds: str) -> bytes:
    fields = {
        key: many(plain(kinds.get(key, kind)), integer(8 * place))
        for place, (key, kind) in enumerate(FIELDS.items())
    }
    names = many(*map(text, FIELDS))
    state = [
        integer(3),
        text("|"),
        b"N",
        names,
        mapping(**fields),
        integer(64),
        integer(8),
        integer(16),
    ]
    return dtype("V64", *state)


def nodes(*links: tuple[int, int, int], kind: bytes | None = None) -> bytes:
    data = b"".join(struct.pack("<3q", *each) + bytes(40) for each in links)
    return array(ints(len(links)), kind or node_type(), b"B" + struct.pack("<I", len(data)) + data)


def numbers(kind: str, layout: str, shape: tuple[int, ...], *values: float) -> bytes:
    return array(ints(*shape), plain(kind), short(struct.pack(f"<{len(values)}{layout}", *values)))


def tree(*links: tuple[int, int, int], **changes: bytes) -> bytes:
    count = len(links)
    given = {
        "features": integer(3), "classes": numbers("i8", "q", (1,), 2), "outputs": integer(1),
        "max_depth": integer(2), "node_count": integer(count), "nodes": nodes(*links),
        "values": numbers("f8", "d", (count, 1, 2), *[0.5] * (2 * count)), **changes,
    }  # fmt: skip
    made = call(
        name("sklearn.tree._tree", "Tree"),
        *(given.pop(k) for k in ("features", "classes", "outputs")),
    )
    return whole(made + mapping(**given) + b"b")


GOOD = ((1, 2, 0), LEAF, (3, 4, 2), LEAF, LEAF)


def test_a_tree_is_clean() -> None:
    for links in (GOOD, (LEAF,), ((1, 2, 0), LEAF, LEAF)):
        report = scan(tree(*links))
        assert report.clean, (report.unread, report.findings)


@pytest.mark.parametrize(
    "links",
    [
        ((1, 5, 0), *GOOD[1:]),
        ((1, 1 << 40, 0), *GOOD[1:]),
        ((1, -2, 0), *GOOD[1:]),
        ((0, 1, 0), *GOOD[1:]),
        ((1, 2, 0), LEAF, (1, 3, 0), LEAF, LEAF),
        ((1, 2, 0), LEAF, (2, 3, 0), LEAF, LEAF),
        ((1, 2, 3), *GOOD[1:]),
        ((1, 2, -1), *GOOD[1:]),
        ((-2, 2, 0), *GOOD[1:]),
    ],
)
def test_a_child_outside_or_before_its_parent_and_a_feature_that_is_missing(links) -> None:
    assert scan(tree(*links)).verdict == "unknown"


CHANGES = {
    "features": integer(0), "outputs": integer(2), "classes": numbers("i8", "q", (1,), 3),
    "node_count": integer(4), "values": numbers("f8", "d", (5, 2), *[0.5] * 10), "max_depth": b"N",
    "nodes": nodes(*GOOD, kind=node_type(feature="f8")),
}  # fmt: skip


@pytest.mark.parametrize("part", list(CHANGES))
def test_parts_that_contradict_each_other(part: str) -> None:
    assert scan(tree(*GOOD, **{part: CHANGES[part]})).verdict == "unknown"


def test_a_tree_is_built_once_and_completely() -> None:
    good = tree(*GOOD)
    assert not scan(good[:-1] + b"}b.").clean
    assert not scan(tree(*GOOD, more=b"N")).clean
    assert not scan(good.replace(b"sklearn.tree._tree\nTree", b"sklearn.tree._tree\nTreo")).clean
