"""What the configuration files beside weights say of a model: its class, its sizes, its parts.

The files are those that transformers, PEFT, diffusers, sentence-transformers, timm and open_clip write, and
the keys of a GGUF header. Nothing they say is checked against the weights; what is of another type than
these libraries write is left out.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ..errors import SafetensorError, quote
from ..format.dtypes import BITS
from ..storage.parallel import in_threads
from ..storage.windows import read_bytes
from ..trust.errors import TrustError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..storage import Store, Verifier
    from .documents import AdapterRecord, CacheRecord

__all__ = ["Facts", "Part", "Settings", "gguf_facts", "model_facts", "model_parts", "read_settings"]

FILES: Final = (
    "config.json", "adapter_config.json", "model_index.json", "modules.json", "open_clip_config.json",
    "generation_config.json", "tokenizer_config.json",
)  # fmt: skip
"""The files that are read."""

_MAX: Final = 1 << 20
"""Bytes of a configuration file that is read; the libraries write some kilobytes."""

_TEXT_MAX: Final = 200
"""Characters of a name that are kept."""

_LARGEST: Final = 1 << 40
"""Numbers above are no size of a model."""

_LAYERS: Final = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "depth")
_WIDTH: Final = ("hidden_size", "n_embd", "d_model", "dim", "embed_dim")
_HEADS: Final = ("num_attention_heads", "n_head", "num_heads", "n_heads")
_KV_HEADS: Final = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num")
_CONTEXT: Final = (
    "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length", "seq_length",
)  # fmt: skip
_INNER: Final = ("text_config", "llm_config", "language_config", "decoder", "thinker_config")
"""Keys below which a model of several modalities has the settings of its language model."""

_CAUSAL: Final = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
"""How the names of classes end that generate text token by token, with a cache of keys and values."""

_ATTENDING: Final = frozenset(
    {"full_attention", "sliding_attention", "chunked_attention", "attention"}
)
"""Values of ``layer_types`` whose layers keep keys and values of tokens."""


class Settings(NamedTuple):
    """Configuration files as they were read.

    Attributes:
        files: Name -> the object in it.
        problems: A sentence for each that could not be read.
    """

    files: Mapping[str, dict[str, Any] | list[Any]]
    problems: tuple[str, ...] = ()

    def table(self, name: str) -> dict[str, Any]:
        """The object in the file called `name`; empty if there is none."""
        found = self.files.get(name)
        return found if isinstance(found, dict) else {}


class Part(NamedTuple):
    """A part of a model, with a folder of its own.

    Attributes:
        name: The name of the folder.
        class_name: The class that it is loaded as.
    """

    name: str
    class_name: str | None


class Facts(NamedTuple):
    """What settings say of one model; None for what they do not say.

    Attributes:
        source: The file that says it.
        architecture: The class or family of the model.
        layers: Number of layers.
        context: Number of tokens that it can attend to.
        vocabulary: Number of tokens that it knows.
        cache: Memory for keys and values.
        ties: Whether the output layer shares the weights of the embedding.
        quantisation: What its weights are quantised as.
        adapter: For an adapter, what it adapts.
    """

    source: str | None = None
    architecture: str | None = None
    layers: int | None = None
    context: int | None = None
    vocabulary: int | None = None
    cache: CacheRecord | None = None
    ties: bool | None = None
    quantisation: str | None = None
    adapter: AdapterRecord | None = None


def read_settings(store: Store, folder: str = "", verify: Verifier | None = None) -> Settings:
    """Read the configuration files in a folder of a store.

    Cost: of a remote store one request a file, all at the same time.

    Args:
        store: The store.
        folder: The folder's name in it.
        verify: Called with every source and its path; what it returns is read instead.

    Raises:
        TrustError: `verify` refuses a file. What cannot be read otherwise is a problem in the result.
    """

    def read(name: str, _: object) -> dict[str, Any] | list[Any] | str | None:
        return _read(store, f"{folder}/{name}" if folder else name, verify)

    found = in_threads(read, FILES) if store.is_remote else [read(name, None) for name in FILES]
    both = list(zip(FILES, found, strict=True))
    return Settings(
        {name: each for name, each in both if isinstance(each, dict | list)},
        tuple(each for _, each in both if isinstance(each, str)),
    )


def _read(
    store: Store, name: str, verify: Verifier | None
) -> dict[str, Any] | list[Any] | str | None:
    """What is in a configuration file; None if there is none, or a sentence why it cannot be read."""
    try:
        source = store.open(name, backend="pread")
        source = source if verify is None else verify(source, source.name)
        if source.size > _MAX:
            return f"{quote(name)} is not read: it has more than {_MAX:,} bytes"
        found = json.loads(read_bytes(source, 0, source.size))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except TrustError:
        raise
    except (OSError, SafetensorError) as error:
        return f"{quote(name)} cannot be read: {error}"
    except (ValueError, RecursionError):
        return f"{quote(name)} is not JSON"
    return found if isinstance(found, dict | list) else f"{quote(name)} holds no object"


def model_parts(settings: Settings) -> list[Part]:
    """The parts that a diffusers pipeline or a sentence-transformers model lists, in their order."""
    parts = []
    for name, value in settings.table("model_index.json").items():
        if not name.startswith("_") and isinstance(value, list) and len(value) == 2:
            library, class_name = value
            if isinstance(class_name, str) and isinstance(library, str):
                parts.append(Part(name, class_name))
    modules = settings.files.get("modules.json")
    for module in modules if isinstance(modules, list) else ():
        if isinstance(module, dict) and (folder := _text(module, "path")):
            class_name = _text(module, "type")
            parts.append(Part(folder, class_name and class_name.rpartition(".")[2]))
    return [part for part in parts if _is_name(part.name)]


def _is_name(name: str) -> bool:
    """Whether a part's name is that of a folder directly in the model's; anything else is not opened."""
    return name not in {"", ".", ".."} and not set(name) & set("/\\\0")


def model_facts(settings: Settings, dtype: str) -> Facts:
    """What the settings say of the model.

    Args:
        settings: The files.
        dtype: Element type of its weights, in which a cache is reckoned.
    """
    if adapter := settings.table("adapter_config.json"):
        return _adapter_facts(adapter)
    if pipeline := _text(settings.table("model_index.json"), "_class_name"):
        return Facts("model_index.json", pipeline)
    if clip := settings.table("open_clip_config.json").get("model_cfg"):
        return _open_clip_facts(clip if isinstance(clip, dict) else {})
    config = settings.table("config.json")
    if not config:
        return Facts()
    architectures = config.get("architectures")
    named = {"": architectures[0]} if isinstance(architectures, list) and architectures else {}
    architecture = _text(named, "") or _text(config, "architecture") or _text(config, "_class_name")
    inner = next((config[key] for key in _INNER if isinstance(config.get(key), dict)), config)
    ties = config.get("tie_word_embeddings", inner.get("tie_word_embeddings"))
    causal = architecture is not None and architecture.endswith(_CAUSAL)
    return Facts(
        source="config.json",
        architecture=architecture or _text(config, "model_type"),
        layers=_number(inner, *_LAYERS),
        context=_number(inner, *_CONTEXT),
        vocabulary=_number(inner, "vocab_size"),
        cache=_cache(inner, dtype) if causal and not config.get("is_encoder_decoder") else None,
        ties=ties if isinstance(ties, bool) else None,
        quantisation=_quantisation(config.get("quantization_config")),
    )


def _adapter_facts(config: Mapping[str, Any]) -> Facts:
    kind = _text(config, "peft_type")
    targets = config.get("target_modules")
    names = [targets] if isinstance(targets, str) else targets if isinstance(targets, list) else []
    return Facts(
        source="adapter_config.json",
        architecture=f"{kind or 'PEFT'} adapter",
        adapter={
            "type": kind,
            "base": _text(config, "base_model_name_or_path"),
            "rank": _number(config, "r"),
            "alpha": _number(config, "lora_alpha"),
            "targets": [name for name in names if isinstance(name, str)],
        },
    )


def _open_clip_facts(config: Mapping[str, Any]) -> Facts:
    text = config.get("text_cfg")
    text = text if isinstance(text, dict) else {}
    return Facts(
        source="open_clip_config.json",
        architecture="CLIP",
        layers=_number(text, "layers"),
        context=_number(text, "context_length"),
        vocabulary=_number(text, "vocab_size"),
    )


def _quantisation(config: Any) -> str | None:
    if not isinstance(config, dict):
        return None
    method = _text(config, "quant_method") or _text(config, "quant_type")
    bits = _number(config, "bits", "w_bit", "nbits")
    if config.get("load_in_4bit") is True or config.get("_load_in_4bit") is True:
        bits = 4
    if method is None:
        return None
    return f"{method}, {bits} bits" if bits else method


def _cache(config: Mapping[str, Any], dtype: str) -> CacheRecord | None:
    """Bytes of keys and values that each further token needs."""
    layers = _number(config, *_LAYERS)
    types = config.get("layer_types")
    if isinstance(types, list):
        layers = sum(isinstance(kind, str) and kind in _ATTENDING for kind in types)
    if not layers or dtype not in BITS:
        return None
    size = BITS[dtype] // 8
    latent = _number(config, "kv_lora_rank")
    if latent:  # DeepSeek's latent attention keeps one vector for keys and values of all heads
        rope = _number(config, "qk_rope_head_dim") or 0
        how = f"{layers} layers x ({latent} + {rope}) x {size} bytes"
        return {"bytes_per_token": layers * (latent + rope) * size, "dtype": dtype, "how": how}
    heads = _number(config, *_HEADS)
    wide = _number(config, *_WIDTH)
    head = _number(config, "head_dim") or (wide // heads if wide and heads else None)
    kept = 1 if config.get("multi_query") is True else _number(config, *_KV_HEADS) or heads
    if not (kept and head and size):
        return None
    how = f"2 x {layers} layers x {kept} key-value heads x {head} x {size} bytes"
    return {"bytes_per_token": 2 * layers * kept * head * size, "dtype": dtype, "how": how}


def gguf_facts(keys: Mapping[str, Any]) -> Facts:
    """What the keys of a GGUF header say, of which each may be any value.

    Source: the GGUF specification, "Standardized key-value pairs".
    """
    family = _text(keys, "general.architecture")
    if family is None:
        return Facts()
    part = {
        key.removeprefix(f"{family}."): value
        for key, value in keys.items()
        if key.startswith(f"{family}.")
    }
    layers, heads = _number(part, "block_count"), _number(part, "attention.head_count")
    kept = _number(part, "attention.head_count_kv") or heads
    wide = _number(part, "embedding_length")
    head = _number(part, "attention.key_length") or (wide // heads if wide and heads else None)
    values = _number(part, "attention.value_length") or head
    cache: CacheRecord | None = None
    if layers and kept and head and values:  # llama.cpp keeps F16 by default
        how = f"{layers} layers x {kept} key-value heads x ({head} + {values}) x 2 bytes"
        size = 2 * layers * kept * (head + values)
        cache = {"bytes_per_token": size, "dtype": "F16", "how": how}
    return Facts(
        source="GGUF header",
        architecture=family,
        layers=layers,
        context=_number(part, "context_length"),
        vocabulary=_number(part, "vocab_size"),
        cache=cache,
    )


def _text(config: Mapping[str, Any], key: str) -> str | None:
    value = config.get(key)
    return value[:_TEXT_MAX] if isinstance(value, str) and value else None


def _number(config: Mapping[str, Any], *keys: str) -> int | None:
    """The first of several keys that holds a size."""
    for key in keys:
        value = config.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value < _LARGEST:
            return value
    return None
