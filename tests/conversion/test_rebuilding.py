"""What a guarded process gives for a file, where no honest file leads."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import safeweights
import safeweights.numpy
from safeweights.conversion import open
from safeweights.conversion.pickles.numpy_nodes import ArrayNode, DtypeNode
from safeweights.conversion.rebuilding import rebuild


@pytest.mark.parametrize(("shape", "items"), [((1,) * 100, [1]), ((0, 1 << 70), []), ((3,), [1])])
def test_an_array_that_numpy_cannot_have_is_left_out(shape, items) -> None:
    found = open(pickle.dumps({"w": np.ones(1)}))
    found.tree = [2, ArrayNode(0, DtypeNode("O"), shape, (), items)]
    made = rebuild(found, lambda *_: None)
    assert (made.value, made.changed) == ([2, None], ["1"])


def test_what_holds_only_tensors_is_a_dictionary_of_them(tmp_path) -> None:
    path = tmp_path / "model.safetensors"
    safeweights.numpy.save_file({"a": np.arange(3)}, path)
    made = rebuild(safeweights.open(path), lambda tensor, array: (tensor.shape, array))
    assert (made.value, made.changed) == ({"a": ((3,), False)}, [])
