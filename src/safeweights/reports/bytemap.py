"""Where the bytes of a model are: the header of each file, then modules in the order of the data.

Neighbouring tensors of one module are one piece, so a map is short however many tensors there are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .documents import FileMapRecord, FileRecord, PieceRecord
    from .inventory import Row

__all__ = ["byte_map"]

_DEPTH: Final = 6
"""Parts of a name by which modules are told apart; fewer if there would be too many pieces."""

_ALL: Final = "tensors"
"""The piece of a file that is not divided into modules."""


def byte_map(files: Sequence[FileRecord], found: Iterable[Row], most: int) -> list[FileMapRecord]:
    """The pieces of each safetensors file, which cover all of its bytes.

    Args:
        files: The files.
        found: The tensors, file by file, those of each file in the order of the data.
        most: Maximum number of pieces of all files together, unless one piece for each file and one for
            its header are more.
    """
    pieces = _pieces(found, {file["path"]: [] for file in files}, most - len(files))
    return [_record(file, pieces[file["path"]]) for file in files]


class _Piece:
    """Neighbouring tensors of one module."""

    __slots__ = ("begin", "end", "module", "tensors")

    def __init__(self, module: str, begin: int, end: int, tensors: int) -> None:
        self.module = module
        self.begin = begin
        self.end = end
        self.tensors = tensors


def _pieces(
    found: Iterable[Row], pieces: dict[str, list[_Piece]], most: int
) -> dict[str, list[_Piece]]:
    """The pieces of all files, cut at as many parts of a name as leaves at most `most`, or at none."""
    depth, number = _DEPTH, 0
    piece, prefix, path = _Piece("", 0, 0, 0), "", ""
    for row in found:
        name = row.name
        # Most tensors continue a piece: 0.2 us for each instead of 1.5.
        if row.file != path or not prefix or not name.startswith(prefix):
            if row.file is None or row.offset is None:
                continue
            path = row.file
            module = _module(name, depth)
            # A module with all `depth` parts has everything that begins with its name.
            prefix = f"{module}." if module.count(".") == depth - 1 else ""
            if not (pieces[path] and pieces[path][-1].module == module):
                piece = _Piece(module, row.offset, 0, 0)
                pieces[path].append(piece)
                number += 1
        piece.end = (row.offset or 0) + row.nbytes
        piece.tensors += 1
        if number > most and depth:
            while number > most and depth:
                depth -= 1
                pieces = {name: _joined(each, depth) for name, each in pieces.items()}
                number = sum(map(len, pieces.values()))
            piece, prefix = pieces[path][-1], ""
    return pieces


def _module(name: str, depth: int) -> str:
    """What a tensor is in, with at most `depth` parts; a name without dots stands for itself."""
    if not depth:
        return _ALL
    parts = name.split(".", depth)
    if len(parts) > depth:
        return ".".join(parts[:depth])
    return ".".join(parts[:-1]) or name


def _joined(pieces: Iterable[_Piece], depth: int) -> list[_Piece]:
    """The pieces with names of at most `depth` parts."""
    found: list[_Piece] = []
    for piece in pieces:
        module = ".".join(piece.module.split(".", depth)[:depth]) if depth else _ALL
        if found and found[-1].module == module:
            found[-1].end = piece.end
            found[-1].tensors += piece.tensors
        else:
            found.append(_Piece(module, piece.begin, piece.end, piece.tensors))
    return found


def _record(file: FileRecord, pieces: Iterable[_Piece]) -> FileMapRecord:
    records: list[PieceRecord] = [
        {"module": piece.module, "begin": piece.begin, "end": piece.end, "tensors": piece.tensors}
        for piece in pieces
    ]
    header: PieceRecord = {
        "module": "header",
        "begin": 0,
        "end": 8 + file["header_bytes"],
        "tensors": 0,
    }
    return {"file": file["path"], "bytes": file["bytes"], "pieces": [header, *records]}
