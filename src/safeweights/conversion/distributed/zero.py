"""DeepSpeed ZeRO 1, 2 and 3: the weights in full precision, from the partitions of all ranks.

A folder has one ``..._optim_states.pt`` a rank, with flat partitions in F32, and ``..._model_states.pt``
with names and shapes: one for all ranks in stages 1 and 2, one a rank in stage 3, where the module itself
holds placeholders of shape [0]. Frozen parameters and buffers are in the model states.

- Stages 1 and 2: the partitions of a group, one rank after another, are its parameters one after another,
  then padding. A parameter may begin on one rank and end on another.
- Stage 3: every parameter is divided among all ranks in parts of ceil(n / ranks) elements, the last one
  padded; a rank has its parts one after another, in all of its groups together.

Rules: the files of all ranks are there, of one stage, one size and one step; the partitions hold what the
shapes ask for, and no more than padding besides.

Source of the layout: deepspeed/utils/zero_to_fp32.py and deepspeed/runtime/zero/ of 0.9 to 0.19.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from ...derived.boxes import Box
from ...derived.casting import CastTensor, cast
from ...derived.element_types import FLOATS
from ...derived.pieces import Piece
from ...derived.strided import StridedTensor
from ...errors import FormatError, quote
from ..pickles.flatten import summary
from ..pickles.nodes import DictNode, Value
from ..pickles.object_nodes import is_int
from ..pickles.storages import located
from ..pickles.torch_nodes import TensorNode
from ..readers.torch_files import read_contents
from .assembling import Assembly, Folder, whole_numbers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from ...derived.layout import Strided
    from ..foreign import ForeignCheckpoint, OpenOptions
    from ..pickles.storages import Storages

__all__ = ["read_zero"]

_OPTIM = re.compile(r"(?:.*_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt").fullmatch
_MODEL = re.compile(r"(?:zero_pp_rank_(\d+)_)?mp_rank_(\d+)(?:_\d+)?_model_states\.pt").fullmatch

OPTIMIZER_PREFIX: Final = "optimizer"


@dataclass
class _File:
    """One file that was read: a dictionary, and the storages of its tensors."""

    path: str
    rank: int
    root: DictNode
    storages: Storages

    def get(self, *keys: str) -> Value:
        """What is under `keys`, one inside another; None if there is nothing."""
        node: Value = self.root
        for key in keys:
            node = node.get(key) if isinstance(node, DictNode) else None
        return node

    def array(self, value: Value, name: str, limits: OpenOptions) -> Strided:
        """A tensor of this file.

        Raises:
            FormatError: `value` is none, or contradicts its storage.
        """
        if not isinstance(value, TensorNode):
            raise self.fault(f"{quote(name)} is no tensor")
        array = located(value, self.storages, name)
        array.check(name, limits.limits)
        return array

    def fault(self, message: str, rule: str = "zero") -> FormatError:
        return FormatError(message, rule=rule, path=self.path)


@dataclass
class _Shapes:
    """Names and shapes of the parameters of each group, in order, and the padding after each."""

    groups: list[list[tuple[str, tuple[int, ...], int]]]


def read_zero(folder: Folder, options: OpenOptions) -> ForeignCheckpoint:
    """The checkpoint in `folder`.

    Cost: reads the pickles of all files, and no weights.

    Raises:
        FormatError: Files are missing, are of different saves, or do not hold what they describe.
        OSError: Something cannot be opened or read.
    """
    return _Reader(folder, options).read()


class _Reader:
    def __init__(self, folder: Folder, options: OpenOptions) -> None:
        self._folder = folder
        self._options = options
        self._limits = options.limits.counted()
        self._found = Assembly(folder.name, options)
        self._optims = self._files(_OPTIM)
        self._models = self._files(_MODEL)
        first = self._optims[0]
        stage = first.get("optimizer_state_dict", "zero_stage")
        if not is_int(stage) or not 1 <= stage <= 3:
            raise first.fault(f"the ZeRO stage {summary(stage)} is none of 1, 2 and 3")
        self._stage: int = stage
        self._ranks = self._world()

    def _files(self, match: Callable[[str], re.Match[str] | None]) -> list[_File]:
        """The files of a kind, by rank.

        Raises:
            FormatError: There is none, or there are some of several model-parallel ranks.
        """
        found = []
        for name in self._folder.names:
            groups = match(name)
            if groups is not None:
                if int(groups[2]):
                    raise FormatError(
                        f"{quote(name)} is of a model that is also divided by tensor or pipeline "
                        "parallelism, which only its own code can merge: convert it with DeepSpeed's "
                        "ds_to_universal.py first",
                        rule="zero-parallel", path=self._folder.name,
                    )  # fmt: skip
                found.append((int(groups[1] or 0), name))
        files = [self._read(name, rank) for rank, name in sorted(found)]
        if not files:
            kind = "optim_states" if match is _OPTIM else "model_states"
            raise FormatError(
                f"the folder has no file `..._{kind}.pt`",
                rule="missing-shard",
                path=self._folder.name,
            )
        return files

    def _read(self, name: str, rank: int) -> _File:
        source = self._folder.open(name)
        contents = read_contents(source, self._limits)
        self._found.add_calls(contents.pickles)
        if not isinstance(contents.tree, DictNode):
            raise FormatError("the file holds no dictionary", rule="zero", path=source.name)
        return _File(source.name, rank, contents.tree, contents.storages)

    def _world(self) -> int:
        """The number of ranks, all of which must have left a file of the same save."""
        first = self._optims[0]
        count = first.get("optimizer_state_dict", "partition_count")
        counts = whole_numbers(count if isinstance(count, (list, tuple)) else [count])
        if not counts:
            raise first.fault("the number of partitions is none")
        world = max(counts)
        self._require_ranks("optimizer states", self._optims, world)
        if self._stage == 3:
            self._require_ranks("model states", self._models, world)
        for what, keys, files in (
            ("stage", ("optimizer_state_dict", "zero_stage"), self._optims),
            ("number of partitions", ("optimizer_state_dict", "partition_count"), self._optims),
            ("version of DeepSpeed", ("ds_version",), self._optims),
            ("number of steps", ("global_steps",), self._models),
        ):
            for file in files:
                one, other = summary(files[0].get(*keys)), summary(file.get(*keys))
                if one != other:
                    raise file.fault(
                        f"its {what} is {other}, but that of {quote(files[0].path)} is {one}: the files "
                        "are not of one save",
                        "zero-mixed",
                    )  # fmt: skip
        return world

    def _require_ranks(self, what: str, files: Sequence[_File], world: int) -> None:
        ranks = [file.rank for file in files]
        missing = sorted(set(range(min(world, 1 << 20))) - set(ranks))
        if missing:
            shown = ", ".join(map(str, missing[:10])) + (" ..." if len(missing) > 10 else "")
            raise FormatError(
                f"the {what} of rank {shown} are missing: {world} ranks saved, and {len(files)} files are "
                "there",
                rule="missing-shard", path=self._folder.name,
            )  # fmt: skip
        if len(ranks) != world:
            raise FormatError(
                f"there are {what} of {len(ranks)} ranks, but {world} saved: some are of another save",
                rule="zero-mixed", path=self._folder.name,
            )  # fmt: skip

    def read(self) -> ForeignCheckpoint:
        self._add_buffers()
        self._add_frozen()
        shapes = self._shapes()
        key = "fp32_flat_groups" if self._stage == 3 else "single_partition_of_fp32_groups"
        flats = [self._flats(file, file.get("optimizer_state_dict", key)) for file in self._optims]
        self._add_groups(shapes, flats, lambda name: name)
        if self._options.optimizer:
            self._add_optimizer(shapes, flats)
        self._add_shared()
        self._add_rest()
        return self._found.checkpoint(f"deepspeed-zero{self._stage}", self._folder.sources.values())

    # -- parameters in partitions

    def _shapes(self) -> _Shapes:
        file = self._models[0]
        given = file.get("param_shapes")
        given = [given] if isinstance(given, DictNode) else given
        if not isinstance(given, list):
            raise file.fault("there are no `param_shapes`")
        paddings = self._optims[0].get("optimizer_state_dict", "param_alignment_paddings")
        groups = []
        for number, group in enumerate(given):
            rows = [(name, self._shape(file, name, size)) for name, size in _pairs(group)]
            padding: Value = [0] * len(rows)
            if isinstance(paddings, list):
                padding = (
                    whole_numbers(paddings[number], len(rows)) if number < len(paddings) else None
                )
            if padding is None or len(padding) != len(rows):
                raise file.fault("the paddings of the parameters do not fit their shapes")
            groups.append([(*row, pad) for row, pad in zip(rows, padding, strict=True)])
        return _Shapes(groups)

    def _shape(self, file: _File, name: Value, size: Value) -> tuple[int, ...]:
        shape = whole_numbers(size)
        if not isinstance(name, str) or shape is None:
            raise file.fault("a name or shape of a parameter is none")
        return shape

    def _flats(self, file: _File, value: Value) -> list[Strided]:
        if not isinstance(value, (list, tuple)):
            raise file.fault("there are no partitions in F32")
        flats = [
            file.array(each, f"partition {number}", self._options)
            for number, each in enumerate(value)
        ]
        if any(len(flat.shape) != 1 for flat in flats):
            raise file.fault("a partition is not flat")
        return flats

    def _add_groups(
        self, shapes: _Shapes, flats: list[list[Strided]], rename: Callable[[str], str]
    ) -> None:
        """Add the parameters whose elements are in `flats`, a list of partitions for each rank."""
        sizes = [[flat.shape[0] for flat in each] for each in flats]
        for file, size in zip(self._optims, sizes, strict=True):
            if size != sizes[0]:
                raise file.fault(
                    f"its partitions have {size} elements, but those of {quote(self._optims[0].path)} have "
                    f"{sizes[0]}",
                    "zero-mixed",
                )  # fmt: skip
        if self._stage == 3:
            rows = [row for group in shapes.groups for row in group]
            self._add_divided(rows, [_Flat(each) for each in flats], rename)
            return
        if len(shapes.groups) != len(sizes[0]):
            raise self._optims[0].fault(
                f"there are {len(sizes[0])} partitions for {len(shapes.groups)} groups of parameters"
            )
        for number, group in enumerate(shapes.groups):
            self._add_in_a_row(group, _Flat([each[number] for each in flats]), rename)

    def _add_in_a_row(
        self,
        rows: list[tuple[str, tuple[int, ...], int]],
        flat: _Flat,
        rename: Callable[[str], str],
    ) -> None:
        """Parameters one after another in all ranks' partitions together: stages 1 and 2."""
        offset = 0
        for name, shape, padding in rows:
            count = math.prod(shape)
            self._require(flat, offset + count, name)
            self._add(rename(name), shape, list(flat.pieces(offset, count, 0)))
            offset += count + padding
        # DeepSpeed aligns to twice the number of ranks, in ways that depend on its version.
        unit = 2 * self._ranks
        if -(-offset // unit) != -(-flat.size // unit):
            raise self._wrong_size(offset, flat.size)

    def _add_divided(
        self,
        rows: list[tuple[str, tuple[int, ...], int]],
        flats: list[_Flat],
        rename: Callable[[str], str],
    ) -> None:
        """Parameters each of which is divided among all ranks: stage 3."""
        offset = 0
        for name, shape, _ in rows:
            count = math.prod(shape)
            part = -(-count // self._ranks)
            self._require(flats[0], offset + part, name)
            self._add(rename(name), shape, list(_divided(flats, offset, count, part)))
            offset += part
        if offset != flats[0].size:
            raise self._wrong_size(offset, flats[0].size)

    def _require(self, flat: _Flat, end: int, name: str) -> None:
        if end > flat.size:
            raise self._optims[0].fault(
                f"the partitions have {flat.size} elements, but parameter {quote(name)} ends at {end}",
                "zero-size",
            )

    def _wrong_size(self, used: int, size: int) -> FormatError:
        return self._optims[0].fault(
            f"the partitions have {size} elements, but the shapes of the parameters account for {used}",
            "zero-size",
        )

    def _add(self, name: str, shape: tuple[int, ...], pieces: list[Piece]) -> None:
        dtype = pieces[0].array.dtype if pieces else "F32"
        self._found.add(name, dtype, shape, pieces, (math.prod(shape),))

    # -- what the model states hold

    def _add_buffers(self) -> None:
        file = self._models[0]
        module = file.get("module")
        names = file.get("buffer_names")
        for name in names if isinstance(names, list) else ():
            value = (
                module.get(name) if isinstance(module, DictNode) and isinstance(name, str) else None
            )
            if value is not None:
                self._put(file, name, value, widen=True)

    def _put(self, file: _File, name: str, value: Value, *, widen: bool = False) -> None:
        """Add a whole tensor of a file; `widen` gives floats in F32, as DeepSpeed gives buffers."""
        tensor = StridedTensor(name, file.array(value, name, self._options))
        whole = CastTensor(tensor, "F32") if widen and tensor.dtype in FLOATS - {"F32"} else tensor
        self._found.put([(name, cast(whole, self._options.casts, self._folder.name))])

    def _add_frozen(self) -> None:
        file = self._models[0]
        for name, size in _pairs(file.get("frozen_param_shapes")):
            shape = self._shape(file, name, size)
            count = math.prod(shape)
            files = self._models if self._stage == 3 else [file]
            parts = [
                _Flat([_flattened(each.array(_in(each, name), name, self._options), each)])
                for each in files
            ]
            part = -(-count // len(parts))
            if any(each.size < part for each in parts) or (
                len(parts) == 1 and parts[0].size != count
            ):
                raise file.fault(f"the frozen parameter {quote(name)} is incomplete", "zero-size")
            self._add(name, shape, list(_divided(parts, 0, count, part)))

    def _add_shared(self) -> None:
        aliases = {}
        for name, first in _pairs(self._models[0].get("shared_params")):
            known = isinstance(name, str) and isinstance(first, str) and first in self._found
            if known and name not in self._found:
                self._found.put([(name, self._found[first])])
                aliases[name] = first
        self._found.alias(aliases)

    def _add_rest(self) -> None:
        """What is in the module and nowhere else; and what is not a weight."""
        file = self._models[0]
        for name, value in _pairs(file.get("module")):
            if not isinstance(name, str) or name in self._found:
                continue
            if isinstance(value, TensorNode) and (self._stage < 3 or 0 not in value.shape):
                self._put(file, name, value)
            else:
                self._found.add_other(name, value, "a placeholder" if self._stage == 3 else "")
        for key, value in file.root.pairs:
            if isinstance(key, str) and key not in _MODEL_KEYS:
                self._found.add_other(key, value)
        if not self._options.optimizer:
            value = self._optims[0].get("optimizer_state_dict")
            reason = "the state of the optimizer; keep (--keep optimizer) writes it"
            self._found.add_other(OPTIMIZER_PREFIX, value, reason)

    # -- the optimizer

    def _add_optimizer(self, shapes: _Shapes, flats: list[list[Strided]]) -> None:
        """Add each moment of the optimizer that has a number for every weight."""
        states = [_moments(file) for file in self._optims]
        for key in states[0]:
            moments = []
            for file, state, weights in zip(self._optims, states, flats, strict=True):
                values = state.get(key, [])
                arrays = [
                    file.array(value, f"{OPTIMIZER_PREFIX}.{key}", self._options)
                    for value in values
                    if isinstance(value, TensorNode)
                ]
                if [array.shape for array in arrays] == [flat.shape for flat in weights]:
                    moments.append(arrays)
            if len(moments) == len(flats):
                self._add_groups(shapes, moments, partial(_moment_name, key))
            else:
                self._found.add_other(f"{OPTIMIZER_PREFIX}.{key}", states[0][key])


_MODEL_KEYS: Final = frozenset(
    {"module", "buffer_names", "param_shapes", "frozen_param_shapes", "frozen_param_fragments",
     "shared_params", "optimizer"}
)  # fmt: skip


def _moment_name(key: str, name: str) -> str:
    return f"{OPTIMIZER_PREFIX}.{key}.{name}"


def _pairs(value: Value) -> list[tuple[Value, Value]]:
    return value.pairs if isinstance(value, DictNode) else []


def _in(file: _File, name: str) -> Value:
    return file.get("frozen_param_fragments", name)


def _flattened(array: Strided, file: _File) -> Strided:
    if not array.contiguous:
        raise file.fault("a frozen parameter is not contiguous")
    return replace(array, shape=(array.elements,), strides=(1,))


def _moments(file: _File) -> Mapping[str, list[Value]]:
    """Name of a moment -> its values, one a group of this rank."""
    found: dict[str, list[Value]] = {}
    states = file.get("optimizer_state_dict", "optimizer_state_dict", "state")
    if states is None:
        states = file.get("optimizer_state_dict", "base_optimizer_state", "state")
    if states is None:
        listed = file.get("optimizer_state_dict", "base_optimizer_state")
        states = DictNode(list(enumerate(listed))) if isinstance(listed, list) else DictNode()
    for _, state in _pairs(states):
        for key, value in _pairs(state):
            if isinstance(key, str):
                found.setdefault(key, []).append(value)
    return found


class _Flat:
    """Flat arrays, one after another."""

    def __init__(self, arrays: list[Strided]) -> None:
        self._arrays = arrays
        self._starts = [0, *accumulate(array.shape[0] for array in arrays)]
        self.size = self._starts[-1]

    def pieces(self, begin: int, count: int, place: int) -> Iterator[Piece]:
        """Elements from `begin` on, as pieces of a flat tensor in which they begin at `place`."""
        index = max(bisect_right(self._starts, begin) - 1, 0)
        done = 0
        while done < count:
            skip = begin + done - self._starts[index]
            some = min(self._arrays[index].shape[0] - skip, count - done)
            if some > 0:
                array = self._arrays[index].part((skip,), (some,), (1,))
                label = f"the partition in {quote(array.source.name)}"
                yield Piece(Box((place + done,), (some,)), partial(_given, array), label)
                done += some
            index += 1


def _given(array: Strided) -> Strided:
    return array


def _divided(flats: Sequence[_Flat], offset: int, count: int, part: int) -> Iterator[Piece]:
    """A parameter of which rank r has elements r * part to (r + 1) * part, at `offset` of its own."""
    for rank, flat in enumerate(flats):
        some = min(part, count - rank * part)
        if some > 0:
            yield from flat.pieces(offset, some, rank * part)
