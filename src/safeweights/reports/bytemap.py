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


def byte_map(files: Sequence[FileRecord], found: Iterable[Row], most: int) -> list[FileMapRecord]:
    """The pieces of each safetensors file, which cover all of its bytes.

    Args:
        files: The files.
        found: The tensors, file by file, those of each file in the order of the data.
        most: Maximum number of pieces of all files together, unless one piece for each file and one for
            its header are more.
    """
    pieces = _pieces(found, {file["path"]: [] for file in files})
    # Names are cut from their longest on: before that, nothing would be joined.
    depth = max(
        (piece.module.count(".") + 1 for each in pieces.values() for piece in each), default=0
    )
    while depth and sum(map(len, pieces.values())) + len(files) > most:
        depth -= 1
        pieces = {path: _joined(each, depth) for path, each in pieces.items()}
    return [_record(file, pieces[file["path"]]) for file in files]


class _Piece:
    """Neighbouring tensors of one module."""

    __slots__ = ("begin", "end", "module", "tensors")

    def __init__(self, module: str, begin: int, end: int, tensors: int) -> None:
        self.module = module
        self.begin = begin
        self.end = end
        self.tensors = tensors


def _pieces(found: Iterable[Row], pieces: dict[str, list[_Piece]]) -> dict[str, list[_Piece]]:
    piece, prefix, path = _Piece("", 0, 0, 0), "", None
    for row in found:
        name = row.name
        # Most tensors continue a piece: 0.3 us for each instead of 1.5.
        if row.file != path or not prefix or not name.startswith(prefix):
            if row.file is None or row.offset is None:
                continue
            path = row.file
            module = _module(name)
            # A module with all `_DEPTH` parts has everything that begins with its name.
            prefix = f"{module}." if module.count(".") == _DEPTH - 1 else ""
            if not (pieces[path] and pieces[path][-1].module == module):
                piece = _Piece(module, row.offset, 0, 0)
                pieces[path].append(piece)
        piece.end = (row.offset or 0) + row.nbytes
        piece.tensors += 1
    return pieces


def _module(name: str) -> str:
    """What a tensor is in, with at most `_DEPTH` parts; a name without dots stands for itself."""
    parts = name.split(".", _DEPTH)
    if len(parts) > _DEPTH:
        return ".".join(parts[:_DEPTH])
    return ".".join(parts[:-1]) or name


def _joined(pieces: Iterable[_Piece], depth: int) -> list[_Piece]:
    """The pieces with names of at most `depth` parts."""
    found: list[_Piece] = []
    for piece in pieces:
        module = ".".join(piece.module.split(".", depth)[:depth]) if depth else "tensors"
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
