"""What a foreign file may cost before conversion gives up.

Every limit bounds something that a small file could otherwise make large: memory, time, or the size of the
output. The defaults allow every real checkpoint that the authors know and stop a hostile one within
seconds. Each is a parameter, so that a user who trusts the file can raise it.

Pure data: imports nothing of the package but the exception family.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

from ..errors import FormatError

__all__ = ["DEFAULT_LIMITS", "Limits", "exceeded"]

_MIB: Final = 1 << 20


@dataclass(frozen=True)
class Limits:
    """Bounds on what one file may cost; a number of things, or of bytes where the name says so.

    Attributes:
        opcodes: Pickle instructions interpreted in one stream (about 0.5 us each).
        objects: Containers, calls and globals that one pickle may create (about 150 bytes each).
        memo: Entries of one pickle's memo.
        marks: MARKs on the stack at a time, which is how deep a pickle nests while it is read.
        inline_bytes: Text and byte strings of one pickle that are in memory, in all.
        inline_value_bytes: A byte string longer than this stays in the file and is read on demand.
        name_bytes: Length of a module, attribute or persistent name.
        integer_bytes: Width of one arbitrary-precision integer.
        depth: Nesting of the value tree when it is flattened or shown.
        visits: Nodes visited while a tree is flattened; a shared node counts each time, so that a graph
            which doubles at each level ends here.
        tensors: Tensors in one checkpoint.
        tensor_rank: Dimensions of one tensor; the format's own reader has the same bound.
        view_bytes: Bytes that views may add beyond the storages behind them; a stride of 0
            repeats a storage without costing the file anything.
        members: Entries in an archive's directory.
        directory_bytes: Size of an archive's directory.
        inflation_ratio: Inflated size over stored size of one compressed member or stream.
        inflation_floor_bytes: Members that inflate to less than this are not held to the ratio.
        inflated_bytes: Inflated size of one compressed stream that does not declare its size.
        nesting: Archives inside archives that a scan follows.
    """

    opcodes: int = 16_000_000
    objects: int = 2_000_000
    memo: int = 4_000_000
    marks: int = 10_000
    inline_bytes: int = 64 * _MIB
    inline_value_bytes: int = 4096
    name_bytes: int = 4096
    integer_bytes: int = 1024
    depth: int = 500
    visits: int = 1_000_000
    tensors: int = 1_000_000
    tensor_rank: int = 64
    view_bytes: int = 1024 * _MIB
    members: int = 1_000_000
    directory_bytes: int = 256 * _MIB
    inflation_ratio: int = 256
    inflation_floor_bytes: int = 64 * _MIB
    inflated_bytes: int = 1 << 40
    nesting: int = 4

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 1:
                raise ValueError(f"limit {field.name!r} must be at least 1")


DEFAULT_LIMITS: Final = Limits()


def exceeded(name: str, bound: int, path: str | None, offset: int | None = None) -> FormatError:
    """The error for a file that exceeds limit `name`; the message says how to raise the limit.

    >>> str(exceeded("depth", 500, None))
    'the file exceeds the limit depth=500; if it is trusted, `convert` takes another (--limit depth=NUMBER)'
    """
    return FormatError(
        f"the file exceeds the limit {name}={bound}; "
        f"if it is trusted, `convert` takes another (--limit {name}=NUMBER)",
        rule=f"limit-{name.replace('_', '-')}",
        path=path,
        offset=offset,
    )
