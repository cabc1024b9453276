"""Decision trees of scikit-learn, whose nodes are a table that its code in C follows without a check.

`Tree.__setstate__` compares type and shape of the table, not the numbers of children and features in it:
a child outside of the table is read from other memory, and one that comes before its parent is followed for
ever. A tree is data if every node that is no leaf has two children after it, and a feature that exists.

Source: sklearn/tree/_tree.pyx of scikit-learn 1.9.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ..storage.windows import read_bytes
from .pickles.nodes import Call, DictNode
from .pickles.numpy_nodes import ArrayNode, DtypeNode, blob_source
from .pickles.object_nodes import is_int

if TYPE_CHECKING:
    import numpy as np

__all__ = ["is_new_tree", "is_plain_tree"]

_KEYS: Final = {"max_depth", "node_count", "nodes", "values"}
_LINKS: Final = ("left_child", "right_child", "feature")
_BLOCK_NODES: Final = 1 << 16
_COUNT_MAX: Final = 1 << 31


def is_new_tree(call: Call) -> bool:
    """``Tree(number of features, numbers of classes, number of outputs)``."""
    match call.arguments:
        case (features, ArrayNode() as classes, outputs) if is_int(features) and is_int(outputs):
            counts = _integers(classes)
            return (
                0 < features < _COUNT_MAX
                and counts is not None
                and len(counts) == outputs
                and all(0 < count < _COUNT_MAX for count in counts)
            )
    return False


def is_plain_tree(call: Call) -> bool:
    """Whether what BUILD gives to a tree is a table in which every walk ends at a leaf."""
    (state,) = call.state
    features, classes, outputs = call.arguments
    if not isinstance(state, DictNode) or len(state.pairs) != len(_KEYS):
        return False
    values = {key: value for key, value in state.pairs if isinstance(key, str)}
    if values.keys() != _KEYS or not is_int(values["max_depth"]):
        return False
    nodes, table, count = values["nodes"], values["values"], values["node_count"]
    most = max(_integers(classes) or [0])
    return (
        isinstance(nodes, ArrayNode)
        and isinstance(table, ArrayNode)
        and nodes.shape == (count,)
        and (table.dtype.kind, table.shape) == ("f8", (count, outputs, most))
        and _is_followed_to_a_leaf(nodes, features)
    )


def _integers(array: ArrayNode) -> list[int] | None:
    """The numbers in a short array of one axis."""
    if len(array.shape) != 1 or array.shape[0] > _BLOCK_NODES or array.dtype.kind != "i8":
        return None
    if array.dtype.swapped or isinstance(array.data, list):
        return None
    data = blob_source(array.data, "")
    return list(memoryview(read_bytes(data, 0, data.size)).cast("q"))


def _is_followed_to_a_leaf(nodes: ArrayNode, features: int) -> bool:
    places = nodes.dtype.places
    plain = {name: _is_index(*places[name]) for name in _LINKS if name in places}
    width, count = nodes.dtype.width, nodes.shape[0]
    if plain != dict.fromkeys(_LINKS, True) or width is None or isinstance(nodes.data, list):
        return False
    import numpy as np

    names = list(_LINKS)
    kind = np.dtype(
        {
            "names": names,
            "formats": ["<i8"] * 3,
            "offsets": [places[name][1] for name in names],
            "itemsize": width,
        }
    )
    source = blob_source(nodes.data, "")
    for first in range(0, count, _BLOCK_NODES):
        some = min(_BLOCK_NODES, count - first)
        block = np.frombuffer(read_bytes(source, first * width, some * width), kind)
        if not _good_nodes(block, first, count, features):
            return False
    return True


def _is_index(dtype: DtypeNode, offset: int) -> bool:
    return dtype.kind == "i8" and not dtype.swapped and offset >= 0


def _good_nodes(block: np.ndarray[Any, Any], first: int, count: int, features: int) -> bool:
    import numpy as np

    inner = block["left_child"] != -1  # TREE_LEAF
    own = np.arange(first, first + len(block))[inner]
    children = (block[side][inner] for side in ("left_child", "right_child"))
    after = all(((own < child) & (child < count)).all() for child in children)
    tested = block["feature"][inner]
    return after and bool(((tested >= 0) & (tested < features)).all())
