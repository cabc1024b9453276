"""What opcodes do that build tuples, lists, dictionaries and sets.

Each function takes the machine, and the opcode's argument if there is one.
"""

# ruff: noqa: D103 - each function is the opcode that it is named after, which pickletools describes

from __future__ import annotations

from typing import TYPE_CHECKING

from .nodes import Call, DictNode, SetNode, Value

if TYPE_CHECKING:
    from .state import MachineState


def op_pop(machine: MachineState) -> None:
    if machine.stack:
        machine.stack.pop()
    else:
        machine.pop_mark()


def op_dup(machine: MachineState) -> None:
    machine.stack.append(machine.top())


def op_none(machine: MachineState) -> None:
    machine.stack.append(None)


def op_newtrue(machine: MachineState) -> None:
    machine.stack.append(True)


def op_newfalse(machine: MachineState) -> None:
    machine.stack.append(False)


def op_put(machine: MachineState, key: int) -> None:
    if key < 0:
        raise machine.fault("a memo key is negative")
    machine.remember(key)


def op_memoize(machine: MachineState) -> None:
    machine.remember(len(machine.memo) - machine.absent)


def op_empty_tuple(machine: MachineState) -> None:
    machine.push_object(())


def op_tuple(machine: MachineState) -> None:
    items = machine.pop_mark()
    machine.push_object(tuple(items))


def op_tuple1(machine: MachineState) -> None:
    _short_tuple(machine, 1)


def op_tuple2(machine: MachineState) -> None:
    _short_tuple(machine, 2)


def op_tuple3(machine: MachineState) -> None:
    _short_tuple(machine, 3)


def _short_tuple(machine: MachineState, count: int) -> None:
    if len(machine.stack) < count:
        raise machine.fault("the stack is empty")
    machine.count()
    machine.stack[-count:] = [tuple(machine.stack[-count:])]


def op_empty_list(machine: MachineState) -> None:
    machine.push_object([])


def op_list(machine: MachineState) -> None:
    items = machine.pop_mark()
    machine.push_object(items)


def op_empty_dict(machine: MachineState) -> None:
    machine.push_object(DictNode())


def op_dict(machine: MachineState) -> None:
    pairs = _pairs(machine, machine.pop_mark())
    machine.push_object(DictNode(pairs))


def op_empty_set(machine: MachineState) -> None:
    machine.push_object(SetNode())


def op_frozenset(machine: MachineState) -> None:
    items = machine.pop_mark()
    machine.check_keys(items)
    machine.push_object(SetNode(items, "frozenset"))


def _pairs(machine: MachineState, items: list[Value]) -> list[tuple[Value, Value]]:
    if len(items) % 2:
        raise machine.fault("a key has no value")
    machine.check_keys(items[::2])
    return list(zip(items[::2], items[1::2], strict=True))


def op_append(machine: MachineState) -> None:
    value = machine.pop()
    _extend(machine, "APPEND", [value])


def op_appends(machine: MachineState) -> None:
    _extend(machine, "APPENDS", machine.pop_mark())


def _extend(machine: MachineState, opcode: str, items: list[Value]) -> None:
    target = machine.top()
    if isinstance(target, list):
        target.extend(items)
    elif isinstance(target, Call):
        target.items.extend(items)
        machine.effect(opcode, target, items)
    else:
        machine.foreign_effect(opcode, target, items)


def op_additems(machine: MachineState) -> None:
    items = machine.pop_mark()
    machine.check_keys(items)
    target = machine.top()
    if isinstance(target, SetNode) and target.type_name == "set":
        target.items.extend(items)
    elif isinstance(target, Call):
        target.items.extend(items)
        machine.effect("ADDITEMS", target, items)
    else:
        machine.foreign_effect("ADDITEMS", target, items)


def op_setitem(machine: MachineState) -> None:
    value, key = machine.pop(), machine.pop()
    _set_items(machine, "SETITEM", _pairs(machine, [key, value]))


def op_setitems(machine: MachineState) -> None:
    _set_items(machine, "SETITEMS", _pairs(machine, machine.pop_mark()))


def _set_items(machine: MachineState, opcode: str, pairs: list[tuple[Value, Value]]) -> None:
    target = machine.top()
    if isinstance(target, DictNode):
        target.pairs.extend(pairs)
    elif isinstance(target, Call):
        target.pairs.extend(pairs)
        machine.effect(opcode, target, pairs)
    else:
        machine.foreign_effect(opcode, target, pairs)
