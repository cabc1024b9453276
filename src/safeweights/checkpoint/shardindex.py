"""Checkpoints of several files: what their files are called, and the index that says what is where.

The convention is Hugging Face's: ``model-00001-of-00003.safetensors`` and so on, and beside them
``model.safetensors.index.json``, ``{"metadata": {"total_size": ...}, "weight_map": {tensor: file}}``.
An index is untrusted input: it is read strictly, and may name nothing outside its folder.

Knows nothing of tensors; which of them a file really has is for `checkpoint` to compare.
"""

from __future__ import annotations

import json
import re
from itertools import count
from typing import TYPE_CHECKING, Final

from ..errors import FormatError, quote
from ..format.strictjson import JSONError, Reader
from ..storage import open_source

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ..storage import Verifier

__all__ = [
    "INDEX_SUFFIX",
    "SUFFIX",
    "check_complete",
    "index_text",
    "is_safe_shard",
    "read_index",
    "shard_name",
]

SUFFIX: Final = ".safetensors"
INDEX_SUFFIX: Final = f"{SUFFIX}.index.json"

_INDEX_MAX: Final = 1 << 28
_SHARD = re.compile(r"(.*)-(\d{5,9})-of-(\d{5,9})(.*)", re.ASCII | re.DOTALL).fullmatch


def shard_name(stem: str, number: int, total: int) -> str:
    """The name of shard `number`, counted from 1, of `total`; of one alone it has no numbers.

    >>> shard_name("model", 1, 3), shard_name("model", 1, 1)
    ('model-00001-of-00003.safetensors', 'model.safetensors')
    """
    return f"{stem}{SUFFIX}" if total == 1 else f"{stem}-{number:05}-of-{total:05}{SUFFIX}"


def check_complete(names: Iterable[str], path: str) -> None:
    """Check that of files called ``x-00001-of-00005`` none is missing: they are whole only together.

    Raises:
        FormatError: Some are missing; it says how many, and the first.
    """
    series: dict[tuple[str, str, str], set[int]] = {}
    for name in names:
        if match := _SHARD(name):
            stem, number, total, suffix = match.groups()
            series.setdefault((stem, total, suffix), set()).add(int(number))
    for (stem, total, suffix), numbers in series.items():
        first = 0 if 0 in numbers else 1  # nearly everybody counts from 1
        present = sum(first <= number < first + int(total) for number in numbers)
        if present < int(total):
            missing = next(number for number in count(first) if number not in numbers)
            shard = f"{stem}-{missing:0{len(total)}}-of-{total}{suffix}"
            raise FormatError(
                f"{int(total) - present} of {int(total)} shards are missing, the first is "
                f"{quote(shard)}",
                rule="index", path=path,
            )  # fmt: skip


def read_index(path: str, *, verify: Verifier | None = None) -> dict[str, str]:
    """The ``weight_map`` of an index file: tensor -> file, relative to the index.

    Args:
        path: The index.
        verify: See `safeweights.storage.open_source`.

    Raises:
        FormatError: Not JSON, no weight_map, or an entry that leaves the folder.
    """
    source = open_source(path, backend="pread", verify=verify)
    if source.size > _INDEX_MAX:
        message = f"an index of {source.size} bytes, at most {_INDEX_MAX} are read"
        raise FormatError(message, rule="index", path=path)
    reader = Reader(source.read(0, source.size))
    weight_map: dict[str, str] | None = None
    try:
        for key, at in reader.members("an object"):
            if key != "weight_map":
                reader.skip(1)
                continue
            if weight_map is not None:
                raise JSONError("duplicate key `weight_map`", at)
            weight_map = _weight_map(reader)
        reader.end()
    except JSONError as error:
        message = f"invalid index: {error}"
        raise FormatError(message, rule="index", path=path, offset=error.position) from error
    if weight_map is None:
        raise FormatError("the index has no `weight_map`", rule="index", path=path)
    return weight_map


def _weight_map(reader: Reader) -> dict[str, str]:
    weight_map: dict[str, str] = {}
    safe: set[str] = set()
    for tensor, at in reader.members("an object as `weight_map`"):
        if tensor in weight_map:
            raise JSONError(f"duplicate key {quote(tensor)} in `weight_map`", at)
        shard = reader.string("a file name")
        if shard not in safe and not is_safe_shard(shard):
            raise JSONError(
                f"{quote(shard)} is not the name of a {SUFFIX} file below the index", at
            )
        safe.add(shard)
        weight_map[tensor] = shard
    return weight_map


def is_safe_shard(name: str) -> bool:
    """Whether an index may name `name`: a relative path that stays below its folder."""
    parts = name.replace("\\", "/").split("/")
    return (
        name.endswith(SUFFIX)
        and name.isprintable()
        and ":" not in name
        and all(part not in {"", ".", ".."} for part in parts)
    )


def index_text(weight_map: Mapping[str, str], total_size: int) -> str:
    """The text of an index, as `huggingface_hub` and `transformers` write it.

    Args:
        weight_map: Tensor -> file.
        total_size: Bytes of all tensors together, without headers.
    """
    index = {"metadata": {"total_size": total_size}, "weight_map": dict(weight_map)}
    return json.dumps(index, indent=2, sort_keys=True) + "\n"
