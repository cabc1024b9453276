"""Copy pieces of this process's memory to one place, also where some of it cannot be had.

A page of a mapped file that was truncated, or that its disk does not give, is a SIGBUS for a process that
touches it. Where the system copies, fewer bytes are copied, and that is all. But it pins every page first:
512 MiB take 100 to 130 ms, and 50 ms where the process copies. So that is done with memory of no file.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Any, Final

from .syscalls import VECTOR, address_of, copy_memory

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = ["Copier", "copy_pieces"]

_MAPS: Final = "/proc/self/maps"


def copy_pieces(pieces: Sequence[memoryview], place: memoryview) -> int:
    """Have the system copy pieces (flat), one after another, to a place; how many bytes were copied.

    They are fewer than all if memory cannot be had, if the place is too small, or if the system does not
    have the call (`copy_memory`).
    """
    import numpy as np

    done = 0
    for first in range(0, len(pieces), VECTOR):
        some = [np.frombuffer(piece, np.uint8) for piece in pieces[first : first + VECTOR]]
        wanted = min(sum(map(len, some)), len(place) - done)
        if not wanted:
            break
        vectors = np.array([(_address(each), len(each)) for each in some], np.uintp)
        into = address_of(place[done:])
        copied = copy_memory(into, wanted, vectors.ctypes.data, len(vectors))
        done += max(0, copied)
        if copied < wanted:
            break
    return done


class Copier:
    """Copies pieces of memory that existed when it was made.

    Cost: to read the list of this process's mappings takes 0.8 ms for 350 of them.
    """

    def __init__(self) -> None:
        found = [*_anonymous(_mappings())]
        self._begins = [begin for begin, _ in found]
        self._ends = [end for _, end in found]

    def copy(self, pieces: Sequence[memoryview], place: memoryview) -> int:
        """The same as `copy_pieces`; the process copies memory that is known to be no file's."""
        import numpy as np

        arrays = [np.frombuffer(piece, np.uint8) for piece in pieces]
        own = all(self.is_anonymous(_address(array), len(array)) for array in arrays)
        if not own or sum(map(len, arrays)) > len(place):
            return copy_pieces(pieces, place)
        target, done = np.frombuffer(place, np.uint8), 0
        for array in arrays:
            target[done : done + len(array)] = array
            done += len(array)
        return done

    def is_anonymous(self, address: int, nbytes: int) -> bool:
        """Whether a piece of memory is known to be no file's."""
        index = bisect_right(self._begins, address) - 1
        return index >= 0 and address + nbytes <= self._ends[index]


def _address(array: Any) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def _mappings() -> Iterator[bytes]:
    """Lines of proc_pid_maps(5), one for each mapping; none where the system has none."""
    try:
        with open(_MAPS, "rb") as file:
            yield from file
    except OSError:
        return


def _anonymous(lines: Iterable[bytes]) -> Iterator[tuple[int, int]]:
    """Where private memory that belongs to no file begins and ends; neighbours are joined."""
    last: tuple[int, int] | None = None
    for line in lines:
        where, allowed, _, _, inode, *_ = line.split(None, 5)
        if inode != b"0" or allowed[:1] != b"r" or allowed[3:4] != b"p":
            continue
        begin, end = (int(each, 16) for each in where.split(b"-"))
        if last is not None and last[1] == begin:
            begin = last[0]
        elif last is not None:
            yield last
        last = begin, end
    if last is not None:
        yield last
