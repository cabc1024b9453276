"""Checkpoints of several files: the names of shards, and the index that says which tensor is where.

The convention is Hugging Face's: ``model-00001-of-00003.safetensors`` and so on, and beside them
``model.safetensors.index.json``, ``{"metadata": {"total_size": ...}, "weight_map": {tensor: file}}``.
Shards of other formats have an index of the same kind (``pytorch_model.bin.index.json``); this is the
one reader for all of them. An index is untrusted input: it is read strictly, and may name nothing
outside its folder.

Knows nothing of tensors: callers say which of them a file really has.
"""

from __future__ import annotations

import json
import re
from itertools import count
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

from ..errors import FormatError, quote
from ..format.strictjson import JSONError, Reader
from ..lazy import matcher
from ..storage import open_source

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from ..storage import Source, Verifier

__all__ = [
    "ANY_INDEX",
    "INDEX_SUFFIX",
    "SUFFIX",
    "VALUES_SUFFIX",
    "ShardIndex",
    "check_complete",
    "check_present",
    "check_twin",
    "disagreements",
    "find_shards",
    "index_text",
    "is_delta",
    "is_safe_shard",
    "parse_index",
    "read_index",
    "shard_name",
    "variants_of",
]

SUFFIX: Final = ".safetensors"
INDEX_SUFFIX: Final = f"{SUFFIX}.index.json"
VALUES_SUFFIX: Final = ".values.json"
"""How the name of the file ends that has what is no tensor in a checkpoint that several ranks saved."""

ANY_INDEX: Final = ".index.json"
"""How the names of indexes end, whatever the format of their shards."""

_INDEX_MAX: Final = 1 << 28
_TRAINING: Final = matcher(
    r"(training_args|optimizer|scheduler|rng_state.*|scaler|random_states.*)\.(bin|pt|pth)\Z"
)
_SHARD = matcher(r"(.*)-(\d{5,9})-of-(\d{5,9})(.*)\Z", re.ASCII | re.DOTALL)


class ShardIndex(NamedTuple):
    """What an index file says.

    Attributes:
        weight_map: Tensor -> file, relative to the index.
        total_size: Bytes of all tensors, as the index announces them; None where it does not.
        total_size_error: Why the announced size cannot be used.
        metadata: The texts in its ``metadata``.
    """

    weight_map: dict[str, str]
    total_size: int | None = None
    total_size_error: JSONError | None = None
    metadata: Mapping[str, str] = MappingProxyType({})

    @property
    def shards(self) -> list[str]:
        """The files it names, each once, sorted."""
        return sorted(set(self.weight_map.values()))


def shard_name(stem: str, number: int, total: int) -> str:
    """The name of shard `number`, counted from 1, of `total`; a single shard has no numbers.

    >>> shard_name("model", 1, 3), shard_name("model", 1, 1)
    ('model-00001-of-00003.safetensors', 'model.safetensors')
    """
    return f"{stem}{SUFFIX}" if total == 1 else f"{stem}-{number:05}-of-{total:05}{SUFFIX}"


def find_shards(
    names: Iterable[str], path: str, suffixes: tuple[str, ...] = (SUFFIX,)
) -> tuple[str | None, list[str]]:
    """The index of a folder, if it has one, and its files with one of the suffixes, sorted.

    Hidden files are left out: they belong to an editor, to a file manager (``._model.safetensors``) or
    to a save that has not finished. So is what training keeps beside the weights, such as the state of
    the optimizer.

    Args:
        names: What is in the folder.
        path: The folder, for messages.
        suffixes: How the names of weight files end.

    Raises:
        FormatError: There are several indexes (rule ``index``).
    """
    visible = sorted(name for name in names if not name.startswith("."))
    indexes = [name for name in visible if name.endswith(tuple(s + ANY_INDEX for s in suffixes))]
    if len(indexes) > 1:
        listed = ", ".join(map(quote, indexes))
        raise FormatError(
            f"the folder has several indexes, name one of them: {listed}", rule="index", path=path
        )
    files = [name for name in visible if name.endswith(suffixes) and not _TRAINING(name)]
    return (indexes[0] if indexes else None), files


def check_complete(names: Iterable[str], path: str) -> None:
    """Check that of files called ``x-00001-of-00005`` none is missing.

    Raises:
        FormatError: Some are missing (rule ``missing-shard``); it says how many, and the first.
    """
    series: dict[tuple[str, str, str], set[int]] = {}
    for name in names:
        if match := _SHARD(name):
            stem, number, total, suffix = match.groups()
            series.setdefault((stem, total, suffix), set()).add(int(number))
    for (stem, total, suffix), numbers in series.items():
        first = 0 if 0 in numbers else 1  # almost all writers count from 1
        present = sum(first <= number < first + int(total) for number in numbers)
        if present < int(total):
            missing = next(number for number in count(first) if number not in numbers)
            shard = f"{stem}-{missing:0{len(total)}}-of-{total}{suffix}"
            raise FormatError(
                f"{int(total) - present} of {int(total)} shards are missing, the first is "
                f"{quote(shard)}",
                rule="missing-shard", path=path,
            )  # fmt: skip


def variants_of(names: Iterable[str]) -> dict[tuple[str, str], list[str]]:
    """The files of each variant of a model, such as ``model.fp16.safetensors`` beside its plain file.

    As diffusers and transformers name them: the variant stands between stem and suffix, or between stem
    and the numbers of shards. It counts as one only if the files without it are there too.

    Returns:
        (Stem, variant) -> names; ``""`` is the variant of plain files. Empty if there is no variant.

    >>> list(variants_of(["model.safetensors", "model.fp16.safetensors", "vae.safetensors"]))
    [('model', ''), ('model', 'fp16')]
    """
    found: dict[str, list[str]] = {}
    for name in names:
        if name.endswith(SUFFIX):
            match = _SHARD(name)
            found.setdefault(match[1] if match else name.removesuffix(SUFFIX), []).append(name)
    variants: dict[tuple[str, str], list[str]] = {}
    for whole, files in found.items():
        stem, dot, variant = whole.rpartition(".")
        if dot and stem in found:
            variants.setdefault((stem, ""), found[stem])
            variants[stem, variant] = files
    return variants


def check_present(shards: Collection[str], missing: Collection[str], path: str) -> None:
    """Refuse an index, at `path`, some of whose shards are `missing`.

    Raises:
        FormatError: Rule ``missing-shard``.
    """
    if missing:
        raise FormatError(
            f"{len(missing)} of {len(shards)} shards that the index names are missing, the first is "
            f"{quote(min(missing))}",
            rule="missing-shard", path=path,
        )  # fmt: skip


def check_twin(index: str, shards: Collection[str], names: Collection[str], path: str) -> None:
    """Refuse a folder that holds a checkpoint twice: as shards with an index, and as one file.

    A program that goes by the index loads the shards, one that goes by the name loads the file, and
    nothing says which of them is current.

    Args:
        index: The name of the index, such as ``model.safetensors.index.json``.
        shards: The files that it names.
        names: What is in the folder.
        path: The folder, for the message.

    Raises:
        FormatError: The folder has a ``model.safetensors`` that the index does not name (rule
            ``index-twin``).
    """
    twin = index.removesuffix(ANY_INDEX)
    if twin in names and twin not in shards:
        raise FormatError(
            f"the folder has {quote(twin)} and also {quote(index)}, which does not name that file: they "
            "are two versions of one model; open one of them by its name, or delete the old one",
            rule="index-twin", path=path,
        )  # fmt: skip


def disagreements(
    weight_map: Mapping[str, str], shards: Mapping[str, Collection[str]], path: str
) -> Iterator[FormatError]:
    """Every tensor that an index and its shards do not have in the same place.

    Args:
        weight_map: Tensor -> shard, as the index says.
        shards: Shard -> the names of the tensors it has. Shards that are not in it are not compared.
        path: The index, for messages.

    Yields:
        Errors with the rules ``index-tensor-missing`` and ``index-tensor-unlisted``.
    """
    # Comparing all names of a shard at once takes a tenth of looking at each on both sides.
    if sum(map(len, shards.values())) == len(weight_map) and all(
        {shard}.issuperset(map(weight_map.get, tensors)) for shard, tensors in shards.items()
    ):
        return
    for tensor, shard in weight_map.items():
        if shard in shards and tensor not in shards[shard]:
            yield FormatError(
                f"the index places tensor {quote(tensor)} in {quote(shard)}, which does not have it",
                rule="index-tensor-missing", path=path, tensor=tensor,
            )  # fmt: skip
    for shard, tensors in shards.items():
        for tensor in tensors:
            if weight_map.get(tensor) != shard:
                yield FormatError(
                    f"{quote(shard)} has tensor {quote(tensor)}, which the index does not place there",
                    rule="index-tensor-unlisted", path=path, tensor=tensor,
                )  # fmt: skip


def read_index(
    path: str, *, suffix: str | tuple[str, ...] = SUFFIX, verify: Verifier | None = None
) -> ShardIndex:
    """Read an index file.

    Args:
        path: The index.
        suffix: How the names of shards must end; ``""`` allows any.
        verify: See `safeweights.storage.open_source`.

    Raises:
        FormatError: As for `parse_index`.
        OSError: It cannot be opened or read.
    """
    return parse_index(open_source(path, backend="pread", verify=verify), path, suffix=suffix)


def parse_index(source: Source, path: str, *, suffix: str | tuple[str, ...] = SUFFIX) -> ShardIndex:
    """What an index says.

    Args:
        source: Its bytes.
        path: Where it is, for messages.
        suffix: How the names of shards must end; ``""`` allows any.

    Raises:
        FormatError: It is not JSON, repeats a key, has no ``weight_map``, or names a file that is not
            below its folder (rule ``index``).
    """
    if source.size > _INDEX_MAX:
        message = f"the index has {source.size} bytes, at most {_INDEX_MAX} are read"
        raise FormatError(message, rule="index", path=path)
    reader = Reader(source.read(0, source.size))
    weight_map: dict[str, str] | None = None
    announced: tuple[int | None, JSONError | None, Mapping[str, str]] = None, None, {}
    seen: set[str] = set()
    try:
        for key, at in reader.members("an object"):
            if key in seen:
                raise JSONError(f"duplicate key {quote(key)}", at)
            seen.add(key)
            if key == "weight_map":
                weight_map = _weight_map(reader, suffix)
            elif key == "metadata":
                announced = _metadata(reader)
            else:
                reader.skip(1)
        reader.end()
    except JSONError as error:
        message = f"invalid index: {error}"
        raise FormatError(message, rule="index", path=path, offset=error.position) from error
    if weight_map is None:
        raise FormatError("the index has no `weight_map`", rule="index", path=path)
    return ShardIndex(weight_map, *announced)


def is_delta(metadata: Mapping[str, str]) -> bool:
    """Whether the files of an index with these texts are a delta, and no model.

    >>> is_delta({"delta_encoding": "xor"}), is_delta({})
    (True, False)
    """
    return "delta_encoding" in metadata


def _metadata(reader: Reader) -> tuple[int | None, JSONError | None, dict[str, str]]:
    """The total size in the ``metadata`` that comes next, or why it cannot be used; and its texts."""
    inner = Reader(reader.text, reader.position)
    reader.skip(1)  # all of it must be JSON, whatever its total size is
    total: int | None = None
    texts: dict[str, str] = {}
    try:
        for key, _ in inner.members():
            if key == "total_size":
                total = inner.integer("an integer")
            elif inner.peek() == b'"':
                texts[key] = inner.string()
            else:
                inner.skip(2)
    except JSONError as error:
        return None, error, texts
    return total, None, texts


def _weight_map(reader: Reader, suffix: str | tuple[str, ...]) -> dict[str, str]:
    weight_map: dict[str, str] = {}
    safe: set[str] = set()
    for tensors, shards, at in reader.texts("an object as `weight_map`", "a file name"):
        new = set(shards) - safe
        repeated = len(set(tensors)) < len(tensors) or not weight_map.keys().isdisjoint(tensors)
        if repeated or not all(is_safe_shard(shard, suffix) for shard in new):
            raise _weight_map_error(Reader(reader.text, at), weight_map, suffix)
        safe |= new
        weight_map.update(zip(tensors, shards, strict=True))
    return weight_map


def _weight_map_error(
    reader: Reader, before: Collection[str], suffix: str | tuple[str, ...]
) -> JSONError:
    """The first error of members that have one: a repeated key, or a name that no shard may have."""
    seen = set(before)
    for tensor, at in reader.more_members():
        if tensor in seen:
            return JSONError(f"duplicate key {quote(tensor)} in `weight_map`", at)
        seen.add(tensor)
        if not is_safe_shard(shard := reader.string(), suffix):
            kind = f"{suffix} " if isinstance(suffix, str) and suffix else ""
            return JSONError(f"{quote(shard)} is not the name of a {kind}file below the index", at)
    raise AssertionError("no member has an error")  # pragma: no cover - the caller found one


def is_safe_shard(name: str, suffix: str | tuple[str, ...] = SUFFIX) -> bool:
    """Whether an index may name `name`: a relative path that stays below its folder.

    >>> is_safe_shard("part/model.safetensors"), is_safe_shard("../model.safetensors")
    (True, False)
    """
    parts = name.replace("\\", "/").split("/")
    return (
        name.endswith(suffix)
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
