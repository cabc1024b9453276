"""Which output has which tensor, and with what metadata. Nothing is read or written."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ..checkpoint.shardindex import INDEX_SUFFIX, SUFFIX, shard_name
from ..checkpoint.sharding import parse_size, split_into_shards
from ..errors import FormatError, UnsupportedError, quote
from ..text import similar_names

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..checkpoint import Tensor
    from .model import Model
    from .plan import EditPlan
    from .request import Edits

__all__ = ["Output", "Place", "outputs_of"]

LEGACY_HASH: Final = "sshs_legacy_hash"
DATA_HASHES: Final = {"modelspec.hash_sha256": "0x", "sshs_model_hash": ""}
"""Metadata that is the SHA-256 of a file's data -> what precedes the digits (github.com/Stability-AI/
ModelSpec; kohya-ss/sd-scripts, library/train_util.py, precalculate_safetensors_hashes)."""

_NUMBERS: Final = re.compile(r"(\d+)")


@dataclass
class Output:
    """One safetensors file that there is to be.

    Attributes:
        name: Its name in the store.
        tensors: What is in it.
        metadata: All of its metadata.
    """

    name: str
    tensors: dict[str, Tensor]
    metadata: dict[str, str] | None


@dataclass(frozen=True)
class Place:
    """Where outputs go.

    Attributes:
        file: The name of the output, if there is one; else outputs are named after `stem`, or like the
            source's files.
        stem: What the names of shards begin with.
        index: The name of the source's index, if it has one.
    """

    file: str | None
    stem: str
    index: str | None


def outputs_of(
    model: Model, edits: Edits, place: Place, plan: EditPlan
) -> tuple[list[Output], str | None]:
    """The files to write, and the name of their index, if they have one.

    Raises:
        FormatError: There is nothing to write; metadata differs between files that become one.
        UnsupportedError: A metadata key to be removed is not there.
    """
    if not model.tensors:
        raise FormatError("no tensor would be left", rule="empty", path=model.name or None)
    tensors = model.tensors
    if edits.sort:
        tensors = {name: tensors[name] for name in sorted(tensors, key=_natural)}
    _check_unset(model, edits)
    as_they_are = place.file is None and model.homes and not (edits.merge or edits.split)
    if as_they_are:
        groups, metadata = _by_home(tensors, model)
        index = place.index
    else:
        common = _one_metadata(model, edits)
        groups, index = _split(tensors, edits, place)
        metadata = dict.fromkeys(groups, common)
    if index is None and len(groups) > 1 and not as_they_are:
        index = f"{place.stem}{INDEX_SUFFIX}"
    outputs = [
        Output(
            name,
            group,
            _edited(metadata[name], model.ties, group, edits, plan, many=len(groups) > 1),
        )
        for name, group in groups.items()
    ]
    return outputs, index


def _natural(name: str) -> list[Any]:
    """Sorts `layers.2` before `layers.10`."""
    parts = _NUMBERS.split(name)
    parts[1::2] = [(len(digits.lstrip("0")), digits) for digits in parts[1::2]]
    return parts


def _split(
    tensors: dict[str, Tensor], edits: Edits, place: Place
) -> tuple[dict[str, dict[str, Tensor]], str | None]:
    name = place.file or f"{place.stem}{SUFFIX}"
    if edits.split is None:
        return {name: tensors}, None
    parse_size(edits.split)
    shards = split_into_shards(tensors, place.stem, edits.split)
    if len(shards) == 1:
        return {name: tensors}, None
    return shards, f"{place.stem}{INDEX_SUFFIX}"


def _by_home(
    tensors: dict[str, Tensor], model: Model
) -> tuple[dict[str, dict[str, Tensor]], dict[str, dict[str, str] | None]]:
    """The source's files, each with the tensors that it had; those added go into the last one."""
    files = list(dict.fromkeys(model.metadata))
    groups: dict[str, dict[str, Tensor]] = {name: {} for name in files}
    for name, tensor in tensors.items():
        groups[model.homes.get(name, files[-1])][name] = tensor
    left = [name for name in files if groups[name]]
    new = dict(zip(left, left, strict=True))
    if len(left) < len(files):  # shards are numbered without gaps
        for (stem, _), series in _series(files).items():
            numbered = [name for name in series if name in new]
            for number, name in enumerate(numbered, 1):
                new[name] = shard_name(stem, number, len(numbered))
    metadata = {new[name]: model.metadata[name] for name in left}
    return {new[name]: groups[name] for name in left}, metadata


_SHARD: Final = re.compile(
    rf"(.*)-\d{{5,9}}-of-(\d{{5,9}}){re.escape(SUFFIX)}", re.DOTALL
).fullmatch


def _series(names: list[str]) -> dict[tuple[str, str], list[str]]:
    """(Stem, number of shards) -> the names of its shards."""
    found: dict[tuple[str, str], list[str]] = {}
    for name in names:
        if match := _SHARD(name):
            found.setdefault((match[1], match[2]), []).append(name)
    return found


def _one_metadata(model: Model, edits: Edits) -> dict[str, str] | None:
    """The metadata of all files together."""
    found = [entries for entries in model.metadata.values() if entries is not None]
    if not found:
        return None
    merged: dict[str, str] = {}
    for entries in found:
        for key, value in entries.items():
            differs = merged.setdefault(key, value) != value
            if differs and not (key in _OF_DATA or key in edits.metadata or key in edits.unset):
                raise FormatError(
                    f"metadata {quote(key)} differs between the files that become one: choose a value "
                    "(metadata, --metadata), or leave it out (unset, --unset)",
                    rule="metadata", path=model.name or None,
                )  # fmt: skip
    return merged


_OF_DATA: Final = frozenset({*DATA_HASHES, LEGACY_HASH})


def _check_unset(model: Model, edits: Edits) -> None:
    known = {key for entries in model.metadata.values() for key in entries or ()}
    for key in edits.unset:
        if key not in known:
            close = ", ".join(map(quote, similar_names(key, known)))
            hint = f"; similar keys: {close}" if close else ""
            raise UnsupportedError(f"unset: there is no metadata {quote(key)}{hint}")


def _edited(
    entries: Mapping[str, str] | None,
    ties: Mapping[str, str],
    tensors: Mapping[str, Tensor],
    edits: Edits,
    plan: EditPlan,
    *,
    many: bool,
) -> dict[str, str] | None:
    """The metadata of one output; what changes is taken down in the plan."""
    found = dict(entries or {})
    for key in edits.unset:
        if found.pop(key, None) is not None:
            plan.metadata_removed[key] = "as asked"
    for key, value in edits.metadata.items():
        if found.get(key) != value:
            plan.metadata_set[key] = value
        found[key] = value
    if many:
        for key in _OF_DATA & found.keys() - edits.metadata.keys():
            plan.metadata_removed[key] = "it is the hash of the data of one file"
            del found[key]
    tied = {alias: kept for alias, kept in ties.items() if kept in tensors}
    for alias in tied.keys() & found.keys():
        raise FormatError(
            f"{quote(alias)} is a tied name and a key of the metadata",
            rule="name-collision",
            tensor=alias,
        )
    found |= tied
    return found if found or entries is not None else None
