"""The symbolic machine says what CPython's unpickler builds, and nothing else than our errors."""

from __future__ import annotations

import collections
import pickle
import pickletools
import struct

import numpy as np
import pytest
from builders import call, integer, many, mapping, name, text, whole
from hypothesis import given, settings
from hypothesis import strategies as st

from safeweights.conversion.foreign import ALL_CONSTRUCTORS
from safeweights.conversion.pickles import machine
from safeweights.conversion.pickles.machine import read_pickle
from safeweights.conversion.pickles.nodes import Blob, Call, DictNode, Global, PersistentId, SetNode
from safeweights.conversion.pickles.opcodes import OPCODES
from safeweights.errors import FormatError, SafetensorError
from safeweights.storage import BytesSource
from safeweights.storage.limits import DEFAULT_LIMITS, Limits


def read(data: bytes, **options: object):
    return read_pickle(BytesSource(data, "p"), constructors=ALL_CONSTRUCTORS, **options)


def plain(node: object) -> object:
    """A tree of nodes as the Python objects it describes."""
    if isinstance(node, DictNode):
        return {plain(key): plain(value) for key, value in node.pairs}
    if isinstance(node, SetNode):
        kind = frozenset if node.type_name == "frozenset" else set
        return kind(plain(item) for item in node.items)
    if isinstance(node, Blob):
        data = b"".join(node.pieces())
        return (
            data.decode("utf-8", "surrogatepass")
            if node.encoding == "utf-8" and not node.latin1
            else data
        )
    if isinstance(node, (list, tuple)):
        return type(node)(plain(item) for item in node)
    return node


def test_every_opcode_of_pickletools_is_known() -> None:
    assert {code: (name, bool(argument)) for code, (name, argument) in OPCODES.items()} == {
        known.code: (known.name.lower(), known.arg is not None) for known in pickletools.opcodes
    }


ATOMS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20)
    | st.binary(max_size=20) | st.complex_numbers(allow_nan=False)
)  # fmt: skip
VALUES = st.recursive(
    ATOMS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=5) | st.integers() | st.booleans(), inner, max_size=4)
        | st.dictionaries(st.text(max_size=5), inner, max_size=4).map(collections.OrderedDict)
        | st.sets(st.integers() | st.text(max_size=3), max_size=4)
        | st.frozensets(st.integers(), max_size=4)
        | st.binary(max_size=9).map(bytearray)
    ),
    max_leaves=20,
)


@given(VALUES, st.integers(0, 5))
def test_agrees_with_cpython_on_plain_data(value: object, protocol: int) -> None:
    data = pickle.dumps(value, protocol)
    found = read(data)
    assert plain(found.value) == pickle.loads(data)
    assert found.end == len(data)


@given(st.lists(st.binary(min_size=1, max_size=6), max_size=60), st.integers(0, 5))
@settings(max_examples=300)
def test_any_bytes_give_a_result_or_our_error(parts: list[bytes], protocol: int) -> None:
    data = b"\x80" + bytes([protocol]) + b"".join(parts) + b"."
    limits = Limits(opcodes=10_000, objects=10_000)
    try:
        read(data, limits=limits)
    except SafetensorError:
        return


CODES = st.sampled_from([code.encode("latin-1") for code in OPCODES])
ARGUMENTS = st.sampled_from(
    [
        b"",
        b"\x00",
        b"\x01",
        b"1\n",
        b"a\nb\n",
        b"\x02\x00\x00\x00ab",
        b"'x'\n",
        b"\x00" * 8,
        b"\xff" * 8,
    ]
)


@given(st.lists(st.tuples(CODES, ARGUMENTS), max_size=40))
@settings(max_examples=600)
def test_any_opcodes_give_a_result_or_our_error(program: list[tuple[bytes, bytes]]) -> None:
    data = b"".join(opcode + argument for opcode, argument in program) + b"."
    try:
        found = read(data, limits=Limits(opcodes=10_000, objects=10_000))
    except SafetensorError:
        return
    assert found.end <= len(data)


@given(VALUES, st.integers(2, 5), st.data())
def test_damage_gives_a_result_or_our_error(
    value: object, protocol: int, data: st.DataObject
) -> None:
    whole_pickle = bytearray(pickle.dumps(value, protocol))
    position = data.draw(st.integers(0, len(whole_pickle) - 1))
    whole_pickle[position] = data.draw(st.integers(0, 255))
    try:
        read(bytes(whole_pickle))
    except SafetensorError:
        return


@given(VALUES, st.integers(0, 5), st.data())
def test_every_cut_is_an_error_with_an_offset(
    value: object, protocol: int, data: st.DataObject
) -> None:
    pickled = pickle.dumps(value, protocol)
    cut = data.draw(st.integers(0, len(pickled) - 1))
    with pytest.raises(FormatError) as caught:
        read(pickled[:cut])
    assert caught.value.offset is not None
    assert caught.value.offset <= cut


def test_names_and_calls_stay_symbols_with_their_offsets() -> None:
    body = call(name("evil_canary", "run"), integer(1), text("x"))
    found = read(whole(body))
    (made,) = found.calls
    assert isinstance(found.value, Call)
    assert made.path == "evil_canary.run"
    assert made.arguments == (1, "x")
    assert made.opcode == "REDUCE"
    assert made.offset == len(whole(body)) - 2
    assert found.globals[0].offset == 2


def test_a_computed_name_is_none() -> None:
    found = read(whole(call(name("a", "f")) + text("system") + b"\x93", 4))
    assert isinstance(found.value, Global)
    assert found.value.module is None
    assert found.value.path == "?.system"


def test_effects_on_imported_objects_are_noted() -> None:
    found = read(whole(name("os", "environ") + b"(" + text("A") + text("B") + b"u"))
    (effect,) = found.effects
    assert effect.opcode == "SETITEMS"
    assert effect.value == [("A", "B")]


def test_long_strings_stay_in_the_file() -> None:
    value = {"b": b"x" * 5000, "t": "y" * 5000, "s": "short"}
    for protocol in range(2, 6):
        tree = read(pickle.dumps(value, protocol)).value
        assert isinstance(tree.get("b"), Blob)
        assert isinstance(tree.get("t"), Blob)
        assert plain(tree) == value


def test_latin1_bytes_of_protocol_2_come_back_across_blocks() -> None:
    data = bytes(range(256)) * 9000
    blob = read(pickle.dumps(data, 2)).value
    assert isinstance(blob, Blob)
    assert b"".join(blob.pieces(block=1000)) == data
    assert b"".join(blob.pieces(block=1)) == data


def test_python_2_strings_are_text_if_ascii_and_bytes_otherwise() -> None:
    assert read(b"U\x03abc.").value == "abc"
    assert read(b"U\x02\xff\x00.").value == b"\xff\x00"
    assert read(b"S'a\\xff'\n.").value == b"a\xff"


def test_persistent_ids_go_through_the_hook() -> None:
    assert read(whole(text("k") + b"Q"), persistent=lambda value: value * 2).value == "kk"
    assert isinstance(read(whole(text("k") + b"Q")).value, PersistentId)
    assert isinstance(read(b"\x80\x05\x97.").value, PersistentId)


def test_numpy_in_every_protocol_and_spelling() -> None:
    array = np.arange(6, dtype=">i2").reshape(2, 3)
    for protocol in range(6):
        data = pickle.dumps(array, protocol)
        for spelling in (
            data,
            data.replace(b"numpy._core", b"numpy.core") if protocol < 4 else data,
        ):
            node = read(spelling).value
            strided = node.strided("x")
            assert strided.shape == (2, 3)
            assert strided.dtype == "I16"
            assert strided.swapped


def test_frames_and_protocol_numbers_are_checked() -> None:
    with pytest.raises(FormatError, match="protocol 6"):
        read(b"\x80\x06N.")
    with pytest.raises(FormatError, match="frame reaches past"):
        read(b"\x80\x04\x95" + struct.pack("<Q", 100) + b"N.")


@pytest.mark.parametrize(
    ("limit", "data"),
    [
        ("opcodes", b"N0" * 20 + b"N."),
        ("objects", b"]" * 20 + b"."),
        ("memo", b"N" + b"".join(b"q%c" % i for i in range(20)) + b"."),
        ("marks", b"(" * 20 + b"."),
        ("inline_bytes", b"".join(b"C\x05abcde0" for _ in range(20)) + b"N."),
        ("name_bytes", b"c" + b"a" * 20 + b"\nb\n."),
        ("integer_bytes", b"\x8a\x14" + bytes(20) + b"."),
    ],
)
def test_each_limit_is_named_in_the_error(limit: str, data: bytes) -> None:
    bounds = {limit: 10}
    with pytest.raises(FormatError, match=rf"{limit}=10"):
        read(data, limits=Limits(**bounds))
    read(data.replace(b"(" * 20, b"N"), limits=Limits())


FREQUENT = {
    "numbers": b"K\x01M\x02\x03J\x04\0\0\0000",
    "constants": b"N\x88\x89)0000",
    "containers": b"]]N\x85a(Nea0",
    "marks": b"(Nt0",
    "memo": b"Nq\x00h\x0000",
    "items": b"}K\x01NsN\x88s0",
}


@pytest.mark.parametrize("kind", list(FREQUENT))
def test_sixteen_million_frequent_opcodes_are_within_the_limit(kind: str) -> None:
    """Counted in thousandths: 16,000 steps are enough for 15,000 opcodes."""
    part = FREQUENT[kind]
    opcodes = sum(1 for _ in pickletools.genops(part + b"N.")) - 2
    data = part * (15_000 // opcodes) + b"N." + bytes(8)
    read(data, limits=Limits(opcodes=16_000))
    with pytest.raises(FormatError, match="opcodes=10000"):
        read(data, limits=Limits(opcodes=10_000))


def test_the_loop_of_frequent_opcodes_executes_nearly_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every other opcode costs a call, which takes three times as long."""
    others = []
    original = machine.PickleMachine._step
    monkeypatch.setattr(
        machine.PickleMachine, "_step", lambda self: others.append(1) or original(self)
    )
    value = {f"layer.{n}": [n, (n, 1000 * n), {"a": n, "b": None}, "text"] for n in range(5000)}
    for protocol in (2, 3, 4, 5):
        data = pickle.dumps(value, protocol)
        others.clear()
        read(data)
        assert len(others) < sum(1 for _ in pickletools.genops(data)) // 8


@pytest.mark.parametrize("absent", [1, 100_000])
def test_a_memo_with_keys_that_are_absent(absent: int) -> None:
    """Python 2's pickler begins with 1; a large key costs what an unpickler allocates for it."""
    data = b"]p" + str(absent).encode() + b"\nN\x94g1\n\x86." + bytes(8)
    assert read(data).value == pickle.loads(data) == (None, None)  # MEMOIZE counts entries
    with pytest.raises(FormatError, match="memo entry 0 was never stored"):
        read(data.replace(b"g1", b"g0"))
    counted = Limits().counted()
    read(data, limits=counted)
    assert (counted.used or {})["opcodes"] >= absent // 16


def test_limits_must_be_positive() -> None:
    with pytest.raises(ValueError, match="depth"):
        Limits(depth=0)
    assert Limits() == DEFAULT_LIMITS


def test_200_000_levels_are_read_and_dropped_without_recursion() -> None:
    found = read(whole(b")" + b"\x85" * 200_000))
    depth = 0
    node = found.value
    while node:
        node, depth = node[0], depth + 1
    assert depth == 200_000
    del found, node  # deallocating must not recurse either


def test_repr_of_a_node_does_not_descend() -> None:
    body = mapping(a=b"]" * 1 + b"q\x00h\x00a")
    assert len(repr(read(whole(body)).value)) < 200
    assert isinstance(read(whole(many(b"N"))).value, tuple)
