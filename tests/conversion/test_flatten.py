"""Walks through trees whose nodes are in many places: never fewer visits than are counted before."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeweights.conversion.pickles.flatten import _Walk
from safeweights.conversion.pickles.nodes import DictNode, SetNode
from safeweights.errors import SafetensorError
from safeweights.storage.limits import DEFAULT_LIMITS


def doubled(times: int, pair: Any) -> Any:
    node: Any = ["a"]
    for _ in range(times):
        node = pair(node)
    return node


PAIRS = {
    "list": lambda node: [node, node],
    "tuple": lambda node: (node, node),
    "dictionary": lambda node: DictNode([("a", node), ("b", node)]),
    "all": lambda node: DictNode([("a", [node]), ("b", (node, 1))]),
}


@pytest.mark.parametrize("kind", PAIRS)
def test_what_doubles_is_refused_before_the_walk(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Walk, "_enter", None)
    with pytest.raises(SafetensorError, match="visits=1000000"):
        _Walk(None, DEFAULT_LIMITS).run(doubled(60, PAIRS[kind]))


def test_of_equal_keys_one_counts() -> None:
    walked = _Walk(None, DEFAULT_LIMITS).run(
        doubled(60, lambda node: DictNode([("a", node), ("a", node)]))
    )
    assert [other.value for other in walked.others] == ["a"]


@given(st.data())
def test_no_more_visits_are_counted_than_the_walk_makes(data: st.DataObject) -> None:
    """In graphs with nodes in many places, equal keys, runs of numbers, and circles."""
    nodes: list[Any] = [1, "a", None, list(range(70)), tuple(range(70)), []]
    for _ in range(data.draw(st.integers(1, 7))):
        parts = data.draw(st.lists(st.sampled_from(nodes), max_size=3))
        kind = data.draw(st.sampled_from(["list", "tuple", "set", "dictionary"]))
        keys = st.sampled_from(["a", "b", "c", 1, b"a"])
        made = {
            "list": lambda: parts,
            "tuple": lambda: tuple(parts),
            "set": lambda: SetNode(parts),
            "dictionary": lambda: DictNode([(data.draw(keys), part) for part in parts]),
        }
        nodes.append(made[kind]())
    lists = [node for node in nodes if type(node) is list and len(node) < 9]
    if data.draw(st.booleans(), label="circle"):
        data.draw(st.sampled_from(lists)).append(nodes[-1])
    walk = _Walk(None, DEFAULT_LIMITS)
    least = walk._least_visits(nodes[-1])
    walk.run(nodes[-1])
    assert least <= walk._visits
