"""What one foreign file may cost before conversion gives up.

Every number bounds something that a small file could otherwise make large: memory, time, or the
size of the output. The defaults accept every real checkpoint known to the authors and stop a
hostile one within seconds; each is a parameter, so a user who knows the file can raise it.

A file can hold thousands of pickles and archives. `Limits.counted` gives limits that are counted
together over everything that is read with them, so that a file has one budget, however it is nested.

Imports nothing of the package but the exception family.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Final

from ..errors import FormatError

__all__ = ["DEFAULT_LIMITS", "Limits", "exceeded"]

_MIB: Final = 1 << 20


@dataclass(frozen=True)
class Limits:
    """Bounds on what one file may cost; a number of things, or of bytes where the name says so.

    Attributes:
        opcodes: Steps (about 0.2 us each): one for the pickle instructions that occur most, two for text,
            five or six for others, and as many as other readers count for what takes them as long.
        objects: Containers, calls and globals that pickles may create (about 150 bytes each).
        memo: Entries of one pickle's memo, and the largest key: an unpickler allocates up to it.
        marks: Open MARKs, which is how deep a pickle nests while it is read.
        inline_bytes: Text and byte strings of one pickle that are held in memory, together.
        inline_value_bytes: A byte string longer than this stays in the file and is read on demand.
        name_bytes: Length of a module, attribute or persistent name.
        integer_bytes: Width of one arbitrary-precision integer.
        depth: Nesting of the value tree when it is flattened or shown.
        visits: Nodes visited while a tree is flattened; shared nodes count each time, so a memo
            graph that doubles at each level ends here.
        expansion: Nodes of a tree that a scan accepts, shared nodes counted each time they occur.
        tensors: Tensors in one checkpoint.
        tensor_rank: Dimensions of one tensor; the format's own reader has the same bound.
        view_bytes: Bytes that views may add beyond the storages behind them; a stride of 0
            repeats a storage without costing the file anything.
        members: Entries in the directories of archives.
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
    expansion: int = 64_000_000
    tensors: int = 1_000_000
    tensor_rank: int = 64
    view_bytes: int = 1024 * _MIB
    members: int = 1_000_000
    directory_bytes: int = 256 * _MIB
    inflation_ratio: int = 256
    inflation_floor_bytes: int = 64 * _MIB
    inflated_bytes: int = 1 << 40
    nesting: int = 4
    used: dict[str, int] | None = field(default=None, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        for each in fields(self):
            if each.init and getattr(self, each.name) < 1:
                raise ValueError(f"limit {each.name!r} must be at least 1")

    def counted(self) -> Limits:
        """These limits with a new count, which all readers that are given the result share.

        >>> shared = Limits(opcodes=10).counted()
        >>> shared.spend("opcodes", 7, None)
        >>> shared.left("opcodes")
        3
        """
        result = replace(self)
        object.__setattr__(result, "used", {})
        return result

    def left(self, name: str) -> int:
        """What is left of limit `name`: all of it where nothing is counted."""
        bound: int = getattr(self, name)
        return bound if self.used is None else bound - self.used.get(name, 0)

    def spend(self, name: str, count: int, path: str | None, offset: int | None = None) -> None:
        """Count `count` against limit `name`.

        Raises:
            FormatError: The limit is exceeded.
        """
        if count > self.left(name):
            raise exceeded(name, getattr(self, name), path, offset)
        self.count(name, count)

    def count(self, name: str, count: int) -> None:
        """Count what was already spent of limit `name`."""
        if self.used is not None:
            self.used[name] = self.used.get(name, 0) + count


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
