"""Quantised weights of the sources of a conversion: dequantised, or kept from being cast alone.

The parts of a weight may lie in several files of one checkpoint, so all sources are looked at together.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING

from ..checkpoint import Checkpoint
from ..checkpoint.opening import beside
from ..checkpoint.tensor import UnreadableTensor
from ..derived.casting import cast
from ..derived.quantised.schemes import (
    built,
    described_metadata,
    find_quantised,
    names_of,
    refuse_casts,
    replaced,
)
from ..derived.quantised.weight import DTYPES, DequantizedTensor
from ..errors import UnsupportedError, quote

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ..checkpoint import Tensor
    from ..derived.quantised.stored import Found, Names
    from ..storage import Store, Verifier
    from .foreign import ForeignCheckpoint

__all__ = ["Sources"]


class Sources:
    """The checkpoints that are converted together.

    Args:
        parts: One a source. Those whose tensors have different names are taken for one checkpoint.
        paths: Where each is.
        store: The store of all of them, if they are a folder or an index.
        verify: Applied to the quantiser's settings, as to the sources.
        scheme: See `Checkpoint.dequantize`.
    """

    def __init__(
        self,
        parts: Sequence[ForeignCheckpoint],
        paths: Sequence[str],
        store: Store | None,
        verify: Verifier | None,
        scheme: str | None = None,
    ) -> None:
        self.parts = list(parts)
        apart = sum(map(len, parts)) > len({name for part in parts for name in part})
        groups = [[each] for each in range(len(parts))] if apart else [list(range(len(parts)))]
        self._groups = [
            (group, self._names(group, paths, store, verify, scheme)) for group in groups
        ]

    def _names(
        self,
        group: list[int],
        paths: Sequence[str],
        store: Store | None,
        verify: Verifier | None,
        scheme: str | None,
    ) -> Names:
        tensors: dict[str, Tensor] = {}
        metadata: dict[str, str] = {}
        for index in group:
            tensors.update(self.parts[index])
            metadata.update(self.parts[index].metadata or {})
        whole = Checkpoint(tensors, metadata, name=paths[group[0]])
        folders = {os.path.dirname(paths[index]) for index in group}
        if store is not None or len(folders) == 1:
            whole.beside = beside(paths[group[0]] if store is None else store, verify)
        return names_of(whole, scheme=scheme)

    def require_whole_casts(self, is_wanted: Callable[[str], bool]) -> None:
        """Refuse to cast a part of a quantised weight alone.

        Raises:
            UnsupportedError: A tensor that is wanted is such a part, and is cast.
        """
        for _, names in self._groups:
            refuse_casts(names, [name for name in names.tensors if is_wanted(name)])

    def dequantize(
        self, casts: Mapping[str, str], is_wanted: Callable[[str], bool]
    ) -> Counter[str]:
        """Replace quantised weights in `parts` by dense ones, and cast all tensors.

        Args:
            casts: Element type -> the type to convert to; dequantised weights count as F32.
            is_wanted: Whether a dense tensor of a name will be written; others are not looked at.

        Returns:
            Scheme -> number of weights.

        Raises:
            UnsupportedError: No weight is quantised, or the method is not read.
            FormatError: A part breaks a rule of its scheme, or the scheme is ambiguous.
        """
        schemes: Counter[str] = Counter()
        for group, names in self._groups:
            found = find_quantised(names)
            schemes.update(each.scheme for each in found.values() if is_wanted(each.name))
            dense = list(built({name: each for name, each in found.items() if is_wanted(name)}))
            dense += [
                (each, _left_out(each)) for name, each in found.items() if not is_wanted(name)
            ]
            for index in group:
                self.parts[index] = self._dense(self.parts[index], dense, casts)
        if not schemes:
            raise UnsupportedError(
                "there is no quantised weight whose scheme is known; see docs/quantised.md",
                path=self.parts[0].name,
            )
        return schemes

    @staticmethod
    def _dense(
        part: ForeignCheckpoint, dense: list[tuple[Found, Tensor]], casts: Mapping[str, str]
    ) -> ForeignCheckpoint:
        tensors = replaced(part, dense)
        target = casts.get("F32", "F32")
        for name, tensor in tensors.items():
            if isinstance(tensor, DequantizedTensor) and target in DTYPES:
                tensors[name] = tensor.astype(target)
            else:
                tensors[name] = cast(tensor, casts, part.name)
        return part.with_tensors(tensors, described_metadata(part.metadata, dense))


def _left_out(found: Found) -> Tensor:
    reason = f"it is quantised as {quote(found.scheme)}, and was not asked for"
    return UnreadableTensor(found.name, "?", (), 0, reason=reason)
