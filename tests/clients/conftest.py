"""The clients run in their own environment, on this package: `install` comes before all of them.

Where a client is missing, its tests are not collected: `make test-clients` has them all.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
CLIENTS = (
    "transformers",
    "huggingface_hub",
    "accelerate",
    "peft",
    "diffusers",
    "sentence_transformers",
)
MISSING = [name for name in CLIENTS if importlib.util.find_spec(name) is None]
collect_ignore_glob = ["test_*.py"] if MISSING else []

if not MISSING:
    import safeweights.compat

    safeweights.compat.install()


@pytest.fixture(autouse=True)
def _their_warnings() -> Iterator[None]:
    """Clients warn of themselves and of each other; that is not what is tested here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture
def tiny_llama() -> object:
    """A small decoder whose embeddings are tied."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
        )
    )  # fmt: skip


@pytest.fixture
def files(tmp_path: Path) -> Path:
    return tmp_path / "model"
