"""The files that an edit writes, and how much of each: all, its header, a few bytes of it, or nothing."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..checkpoint import FileTensor
from ..checkpoint.saving import Contents, decided
from ..errors import quote
from ..format.header import PREFIX
from ..storage import DescriptorSource, Run, is_copyable
from .inplace import Patch, can_patch, header_of, new_header, patch_of
from .layout import DATA_HASHES, LEGACY_HASH, Output

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from ..checkpoint import SafetensorsFile, Tensor
    from ..storage import Buffer, Computed
    from .plan import EditPlan, How
    from .request import Edits

__all__ = ["File", "choose_patch", "compute_hashes", "decide"]


@dataclass
class File:
    """An output, decided.

    Attributes:
        output: What is in it.
        contents: Its bytes, if it is written anew.
        how: What happens to it.
        head: The bytes before its data, if only they change.
        before: Those that they replace.
        patch: The bytes that change, if only they are overwritten.
        original: The file that it was, if something of it stays.
        stale: Metadata that is a hash of the data, to be computed when the data is there.
    """

    output: Output
    contents: Contents
    how: How = "written"
    head: bytes = b""
    before: bytes = b""
    patch: Patch | None = None
    original: SafetensorsFile | None = None
    stale: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.contents.size if self.how == "written" else self.kept().size

    @property
    def moved(self) -> int:
        """Bytes that are not read."""
        if self.how == "header":
            return self.kept().size - len(self.head)
        if self.how != "written":
            return self.kept().size
        return sum(run.length for run in self.contents.runs() if isinstance(run, Run))

    def pieces(self) -> Iterator[Buffer | Run | Computed]:
        """Its bytes in order; those that the system moves as runs."""
        if self.how == "written":
            return self.contents.pieces()
        source = self.kept()
        data = Run(source, len(self.head), source.size - len(self.head))
        return iter((self.head, data) if data.length else (self.head,))

    def kept(self) -> DescriptorSource:
        """The file of which something stays."""
        assert self.original is not None
        assert isinstance(self.original.source, DescriptorSource)
        return self.original.source


def decide(output: Output, edits: Edits, plan: EditPlan, original: SafetensorsFile | None) -> File:
    """How an output comes to be.

    Args:
        output: What is to be in it.
        edits: What was asked for.
        plan: Where what is done besides is noted.
        original: The file of that name, if the source is changed in place.
    """
    file = File(output, _contents(output, edits))
    if original is not None:
        _keep(file, original, edits, plan)
    if file.how == "written" and not _has_all_data_of_a_file(file.contents):
        _refresh_hashes(file, edits, plan)
    return file


def _contents(output: Output, edits: Edits) -> Contents:
    return decided(output.tensors, output.metadata, in_order=edits.sort, align=edits.align or 8)


def _keep(file: File, original: SafetensorsFile, edits: Edits, plan: EditPlan) -> None:
    """Find out how little has to be written of a file that is changed in place."""
    names = _same_data(original, file.output.tensors)
    metadata = file.output.metadata
    why = None
    if names is None:
        why = "its data changes"
    elif edits.sort or original.header.data_start % (edits.align or 1):
        why = "its data moves"
    elif not is_copyable(original.source):
        why = "what is read of it has to be verified"
    elif all(old == new for old, new in names.items()) and metadata == original.header.metadata:
        file.how, file.original = "kept", original
    else:
        before = header_of(original)
        head = new_header(original, before, names, metadata)
        if head is None:
            why = "its header has no room for what is added"
        else:
            file.how, file.original, file.before, file.head = "header", original, before, head
    if why is not None:
        plan.notes.append(f"{quote(file.output.name)} is written anew: {why}")


def choose_patch(files: list[File], locate: Callable[[str], str]) -> None:
    """Have a single file whose header changes in one block only be overwritten there.

    Args:
        files: All outputs.
        locate: Gives the path of an output.
    """
    changed = [file for file in files if file.how != "kept"]
    if len(changed) != 1 or changed[0].how != "header":
        return
    (file,) = changed
    patch = patch_of(file.before, file.head)
    if patch is not None and can_patch(locate(file.output.name)):
        file.how, file.patch = "patched", patch


def _refresh_hashes(file: File, edits: Edits, plan: EditPlan) -> None:
    """Metadata that is a hash of the data is computed anew, or left out."""
    metadata = file.output.metadata or {}
    asked = edits.metadata
    if LEGACY_HASH in metadata and LEGACY_HASH not in asked:
        del metadata[LEGACY_HASH]
        plan.metadata_removed[LEGACY_HASH] = "it is a hash of a part of the file, which changed"
    file.stale = tuple(key for key in DATA_HASHES if key in metadata and key not in asked)
    for key in file.stale:  # as long as the digest that will be known when the data was read
        plan.metadata_set[key] = ""
        metadata[key] = DATA_HASHES[key] + "0" * 64
    file.contents = _contents(file.output, edits)


def compute_hashes(file: File, edits: Edits, plan: EditPlan) -> None:
    """Read the data of a file whose metadata has hashes of it, and set them."""
    if not file.stale:
        return
    state = hashlib.sha256()
    for name in file.contents.header.tensors:
        for chunk in file.output.tensors[name].chunks():
            state.update(chunk)
    metadata = file.output.metadata
    assert metadata is not None
    for key in file.stale:
        metadata[key] = plan.metadata_set[key] = DATA_HASHES[key] + state.hexdigest()
    file.contents = _contents(file.output, edits)


def _has_all_data_of_a_file(contents: Contents) -> bool:
    """Whether the new file has the data of an old one, byte for byte."""
    runs = list(contents.runs())
    run = runs[0] if len(runs) == 1 else None
    if not isinstance(run, Run):
        return False
    start = PREFIX + int.from_bytes(run.source.read(0, PREFIX), "little")
    return (run.offset, run.length) == (start, run.source.size - start)


def _same_data(file: SafetensorsFile, tensors: Mapping[str, Tensor]) -> dict[str, str] | None:
    """Old name -> new name, if `tensors` are all those of the file, unchanged; else None."""
    at: dict[tuple[int, int], list[str]] = {}
    for name, tensor in tensors.items():
        if type(tensor) is not FileTensor or tensor.source is not file.source:
            return None
        at.setdefault((tensor.info.begin, tensor.info.end), []).append(name)
    if len(tensors) != len(file.header.tensors):
        return None
    names: dict[str, str] = {}
    for old, info in file.header.tensors.items():
        place = at.get((info.begin, info.end), [])
        same = [name for name in place if tensors[name].info == info]
        # Empty tensors share a place: the one that kept its name is the same.
        new = old if old in same else next(iter(same), None)
        if new is None:
            return None
        place.remove(new)
        names[old] = new
    return names
