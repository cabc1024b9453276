"""The opcodes that make up nearly all of a pickle, executed in one loop.

`machine` can execute every opcode; this does the same in a third of the time for those that occur most. It
takes them from the reader's block through local variables: a call for each would take longer than all the
rest, which is why this is one long function. CPython 3.11, a list of integers: 0.13 us an opcode instead of
0.6 us (`benchmarks/pickles.py`).
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final

from .nodes import DictNode

if TYPE_CHECKING:
    from .nodes import Value
    from .state import MachineState

__all__ = ["LONGEST", "run_frequent"]

LONGEST: Final = 5
"""Bytes of the longest opcode of these with its argument, text aside."""

_INT4: Final = Struct("<i").unpack_from
_WIDTHS: Final = bytes(
    {**dict.fromkeys(b"KqhU", 2), ord("M"): 3, **dict.fromkeys(b"Jrj", 5)}.get(code, 1)
    for code in range(256)
)
"""Bytes of each opcode with its argument."""
_KEYS: Final = frozenset({str, int, bool, float, type(None)})
"""Types of keys that need no check (see `MachineState.check_keys`)."""


def run_frequent(machine: MachineState) -> None:  # noqa: C901, PLR0915 - see above
    """Execute opcodes up to the first one that is another, fails, or is at the end of block or frame.

    Nothing is changed before it is certain that an opcode succeeds, so that the machine can execute the
    one that ends the loop. Limits are compared afterwards: a block (64 KiB) later at most.
    """
    reader, stack, marks, memo = machine.reader, machine.stack, machine.marks, machine.memo
    block, at, most = reader.block, reader.position, machine.limits.marks
    bound, dense = len(block), not machine.absent
    if machine.frame_end:
        bound = min(bound, machine.frame_end - reader.base)
    bound -= LONGEST
    steps = objects = held = 0
    value: Value
    try:
        while at <= bound:
            code = block[at]
            if code < 0x5D:
                if code == 0x4B:  # BININT1
                    stack.append(block[at + 1])
                elif code == 0x4D:  # BININT2
                    stack.append(block[at + 1] | block[at + 2] << 8)
                elif code == 0x4E:  # NONE
                    stack.append(None)
                elif code == 0x28 and len(marks) < most:  # MARK
                    marks.append(stack)
                    stack = []
                elif code == 0x58 and not (block[at + 2] or block[at + 3] or block[at + 4]):
                    end = at + 5 + block[at + 1]  # BINUNICODE of less than 256 bytes
                    if end > bound:
                        break
                    stack.append(block[at + 5 : end].decode())
                    held, at, steps = held + end - at, end - 1, steps + 1
                elif code == 0x4A:  # BININT
                    stack.append(_INT4(block, at + 1)[0])
                elif code == 0x29:  # EMPTY_TUPLE
                    stack.append(())
                    objects += 1
                elif code == 0x30 and stack:  # POP
                    stack.pop()
                else:
                    break
            elif code < 0x85:
                if code == 0x71 and stack:  # BINPUT
                    if (key := block[at + 1]) == len(memo):
                        memo.append(stack[-1])
                    elif dense and key < len(memo):
                        memo[key] = stack[-1]
                    else:
                        break
                elif code == 0x68 and block[at + 1] < len(memo) and dense:  # BINGET
                    stack.append(memo[block[at + 1]])
                elif code == 0x72 and stack and _INT4(block, at + 1)[0] == len(memo):
                    memo.append(stack[-1])  # LONG_BINPUT
                elif code == 0x74 and marks:  # TUPLE
                    value = tuple(stack)
                    stack = marks.pop()
                    stack.append(value)
                    objects += 1
                elif code == 0x61 and len(stack) > 1 and type(stack[-2]) is list:  # APPEND
                    value = stack.pop()
                    stack[-1].append(value)
                elif code == 0x65 and marks and marks[-1] and type(marks[-1][-1]) is list:
                    value = stack  # APPENDS
                    stack = marks.pop()
                    stack[-1].extend(value)
                elif code == 0x73 and len(stack) > 2 and type(stack[-2]) in _KEYS:  # SETITEM
                    if type(stack[-3]) is not DictNode:
                        break
                    value, key = stack.pop(), stack.pop()
                    stack[-1].pairs.append((key, value))
                elif code == 0x5D:  # EMPTY_LIST
                    stack.append([])
                    objects += 1
                elif code == 0x7D:  # EMPTY_DICT
                    stack.append(DictNode())
                    objects += 1
                elif code == 0x6A and 0 <= (key := _INT4(block, at + 1)[0]) < len(memo) and dense:
                    stack.append(memo[key])  # LONG_BINGET
                else:
                    break
            elif code == 0x8C:  # SHORT_BINUNICODE
                end = at + 2 + block[at + 1]
                if end > bound:
                    break
                stack.append(block[at + 2 : end].decode())
                held, at, steps = held + end - at, end - 1, steps + 1
            elif code == 0x94 and stack and dense:  # MEMOIZE
                memo.append(stack[-1])
            elif code == 0x86 and len(stack) > 1:  # TUPLE2
                value = stack.pop()
                stack[-1] = (stack[-1], value)
                objects += 1
            elif code == 0x85 and stack:  # TUPLE1
                stack[-1] = (stack[-1],)
                objects += 1
            elif code == 0x87 and len(stack) > 2:  # TUPLE3
                value, key = stack.pop(), stack.pop()
                stack[-1] = (stack[-1], key, value)
                objects += 1
            elif 0x88 <= code <= 0x89:  # NEWFALSE, NEWTRUE
                stack.append(code == 0x88)
            else:
                break
            at += _WIDTHS[code]
            steps += 1
    except UnicodeDecodeError:
        pass  # lone surrogates, or an error: the machine reads it again
    reader.position, machine.stack = at, stack
    machine.steps += steps
    if len(memo) > machine.limits.memo + 1:
        raise machine.exceeded("memo")
    if held:
        machine.arguments.hold(held)
    if objects:
        machine.count(objects)
