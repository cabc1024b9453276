"""What opcodes do that import names, call what they name, refer outside, and set the state of objects.

Nothing is imported or called: a name stays a `Global`, a call a `Call`, unless a constructor of the caller
describes its result. Each function takes the machine, and the opcode's argument if there is one.
"""

# ruff: noqa: D103 - each function is the opcode that it is named after, which pickletools describes

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ...errors import FormatError
from .nodes import Call, DictNode, Global, PersistentId, SetNode, Value, modern

if TYPE_CHECKING:
    from .state import MachineState

_CALL_OBJECTS: Final = 4  # a call takes the memory of about four tuples


def _global(machine: MachineState, module: str | None, name: str | None, opcode: str) -> Global:
    machine.count()
    node = Global(module, name, machine.arguments.at, opcode)
    machine.result.globals.append(node)
    return node


def op_global(machine: MachineState, names: tuple[str, str]) -> None:
    machine.stack.append(_global(machine, *names, "GLOBAL"))


def op_stack_global(machine: MachineState) -> None:
    name, module = machine.pop(), machine.pop()
    # Anything but text was computed by a call, or is longer than a name can be.
    machine.stack.append(
        _global(
            machine,
            module if isinstance(module, str) else None,
            name if isinstance(name, str) else None,
            "STACK_GLOBAL",
        )
    )


def op_extension(machine: MachineState, code: int) -> None:
    if code <= 0:
        raise machine.fault("an extension code must be positive")
    # The registry belongs to the process that unpickles (copyreg.add_extension).
    machine.stack.append(_global(machine, None, f"extension {code}", "EXT"))


def op_binpersid(machine: MachineState) -> None:
    op_reference(machine, machine.pop())


def op_reference(machine: MachineState, value: Value) -> None:
    if machine.persistent is not None:
        found = machine.persistent(value)
        if found is not NotImplemented:
            machine.push_object(found)
            return
    _unresolved_reference(machine, value)


def _unresolved_reference(machine: MachineState, value: Value) -> None:
    node = PersistentId(value, machine.arguments.at)
    machine.result.persistent.append(node)
    machine.push_object(node)


def op_reduce(machine: MachineState) -> None:
    arguments, function = machine.pop(), machine.pop()
    _call(machine, function, arguments, "REDUCE")


def op_newobj(machine: MachineState) -> None:
    arguments, function = machine.pop(), machine.pop()
    _call(machine, function, arguments, "NEWOBJ")


def op_newobj_ex(machine: MachineState) -> None:
    keywords, arguments, function = machine.pop(), machine.pop(), machine.pop()
    _call(machine, function, arguments, "NEWOBJ_EX", keywords)


def op_obj(machine: MachineState) -> None:
    items = machine.pop_mark()
    if not items:
        raise machine.fault("OBJ has no class")
    _call(machine, items[0], tuple(items[1:]), "OBJ")


def op_inst(machine: MachineState, names: tuple[str, str]) -> None:
    function = _global(machine, *names, "INST")
    _call(machine, function, tuple(machine.pop_mark()), "INST")


def _call(
    machine: MachineState, function: Value, arguments: Value, opcode: str, keywords: Value = None
) -> None:
    if not isinstance(arguments, tuple):
        # The argument tuple itself may be computed: keep it as the one thing known of it.
        arguments = (arguments,)
    machine.count(_CALL_OBJECTS)
    call = Call(function, arguments, opcode, machine.arguments.at, keywords)
    machine.result.calls.append(call)
    machine.stack.append(_described(machine, call))


def _described(machine: MachineState, call: Call) -> Value:
    function = call.function
    if call.keywords is not None or not isinstance(function, Global):
        return call
    constructor = machine.constructors.get(modern(function))
    if constructor is None:
        return call
    machine.settle()
    left = machine.limits.left("opcodes")
    try:
        call.result = constructor(call)  # may read another pickle
    except FormatError as error:
        if error.path is None:
            error.path, error.offset = machine.source.name, call.offset
        raise
    machine.steps_max -= left - machine.limits.left("opcodes")
    if call.result is NotImplemented:
        return call
    _charge(machine, call.result)
    return call.result


def _charge(machine: MachineState, value: Value) -> None:
    """Count what a constructor copied: a few opcodes can copy a large container many times."""
    if isinstance(value, (list, tuple)):
        machine.count(len(value))
    elif isinstance(value, DictNode):
        machine.count(len(value.pairs))
        machine.check_keys([key for key, _ in value.pairs])
    elif isinstance(value, SetNode):
        machine.count(len(value.items))
        machine.check_keys(value.items)
    elif isinstance(value, bytes):
        machine.arguments.hold(len(value))


def op_build(machine: MachineState) -> None:
    state = machine.pop()
    target = machine.top()
    _build(machine, target, state)
    if machine.on_build is not None:
        machine.stack[-1] = machine.on_build(machine, target)


def _build(machine: MachineState, target: Value, state: Value) -> None:
    if isinstance(target, Call):
        target.state.append(state)
        machine.effect("BUILD", target, state)
    elif isinstance(target, DictNode) and target.type_name != "dict":
        target.state.append(state)
        if len(target.state) > 1 or not _sets_plain_attributes(state):
            machine.effect("BUILD", target, state)
    elif hasattr(target, "set_state"):  # a node of some constructor
        _set_state(machine, target, state)
    else:
        machine.foreign_effect("BUILD", target, None if _is_no_state(state) else (state,))


def _set_state(machine: MachineState, target: Value, state: Value) -> None:
    try:
        target.set_state(state)
    except FormatError as error:
        if error.path is None:
            error.path, error.offset = machine.source.name, machine.arguments.at
        raise


def op_next_buffer(machine: MachineState) -> None:
    _unresolved_reference(machine, "out-of-band buffer")


def op_readonly_buffer(machine: MachineState) -> None:
    machine.top()


def _is_no_state(state: Value) -> bool:
    """Whether BUILD with `state` changes nothing, and so is no error for an object without state."""
    parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)
    return all(_is_false(part) for part in parts)


def _is_false(value: Value) -> bool:
    """Whether what `value` describes is false in a condition."""
    if isinstance(value, DictNode):
        return not value.pairs
    if isinstance(value, SetNode):
        return not value.items
    return isinstance(value, (type(None), bool, int, float, str, bytes, list, tuple)) and not value


_CALLED_BY_PICKLE: Final = frozenset({"append", "extend", "add"})


def _sets_plain_attributes(state: Value) -> bool:
    """Whether BUILD with `state` only adds attributes that the unpickler does not call later."""
    return isinstance(state, DictNode) and all(
        isinstance(key, str) and not key.startswith("__") and key not in _CALLED_BY_PICKLE
        for key, _ in state.pairs
    )
