"""Files that are harmless to one reader, or by every name in them, and not to another.

The payload of those that call something is `os.getpid`.
"""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING

import numpy as np
from builders import (
    archive,
    call,
    integer,
    ints,
    many,
    mapping,
    name,
    stack_name,
    storage,
    tar,
    tensor,
    text,
    torch_legacy,
    torch_zip,
    whole,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

GETPID = call(name("os", "getpid"))


def dtype(kind: str, *state: bytes) -> bytes:
    """A numpy.dtype, with the state that BUILD gives to it."""
    made = call(name("numpy", "dtype"), text(kind), b"\x89", b"\x88")
    return made + many(*state) + b"b" if state else made


def plain(kind: str) -> bytes:
    return dtype(
        kind, integer(3), text("<"), b"N", b"N", b"N", integer(-1), integer(-1), integer(0)
    )


def array(shape: bytes, kind: bytes, data: bytes) -> bytes:
    """A numpy.ndarray of protocol 2."""
    empty = call(
        name("numpy._core.multiarray", "_reconstruct"), name("numpy", "ndarray"), ints(0), b"C\x01b"
    )
    return empty + many(integer(1), shape, kind, b"\x89", data) + b"b"


def short(data: bytes) -> bytes:
    return b"C" + bytes([len(data)]) + data


def wrapped(**changes: bytes) -> bytes:
    """joblib's description of an array of eight bytes, which follow it."""
    state = {
        "subclass": name("numpy", "ndarray"), "shape": ints(8), "order": text("C"),
        "dtype": plain("u1"), "allow_mmap": b"\x89", **changes,
    }  # fmt: skip
    return name("joblib.numpy_pickle", "NumpyArrayWrapper") + b")\x81" + mapping(**state) + b"b"


def npy(descr: str, shape: str = "(1,)", data: bytes = b"") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def safetensors(length: int, prefix: bytes, data_size: int = 4) -> bytes:
    """A valid file with a header of `length` bytes that has `prefix` in its metadata."""
    head = b'{"__metadata__":{"a":"' + prefix
    tail = b'"},"w":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}' % (data_size, data_size)
    header = head + b" " * (length - len(head) - len(tail)) + tail
    assert len(header) == length
    return struct.pack("<Q", length) + header + bytes(data_size)


def calls_and_arguments() -> Iterator[tuple[str, bytes, str]]:
    """Names that may be mentioned, called with what was not judged."""
    memmap = call(
        name("numpy", "memmap"), text("/tmp/x"), text("uint8"), text("w+"), integer(0), ints(9)
    )
    yield "numpy.memmap of a path", whole(memmap), "dangerous"
    yield "numpy.memmap, and items", whole(memmap + integer(0) + integer(65) + b"s"), "dangerous"
    yield (
        "bytearray of 2^33",
        whole(call(name("builtins", "bytearray"), integer(1 << 33))),
        "unknown",
    )
    yield "bytes of 2^33", whole(call(name("builtins", "bytes"), integer(1 << 33))), "unknown"
    yield (
        "bytearray in Python 2's spelling",
        whole(call(name("__builtin__", "bytearray"), integer(1 << 33))),
        "unknown",
    )
    yield "numpy.ndarray of 2^40", whole(call(name("numpy", "ndarray"), ints(1 << 40))), "unknown"
    yield (
        "numpy.ndarray by NEWOBJ",
        whole(name("numpy", "ndarray") + many(ints(1 << 40)) + b"\x81"),
        "unknown",
    )
    yield (
        "_reconstruct of 2^40",
        whole(
            call(
                name("numpy._core.multiarray", "_reconstruct"),
                name("numpy", "ndarray"),
                ints(1 << 40),
                text("f"),
            )
        ),
        "unknown",
    )
    yield (
        "_reconstruct of another type",
        whole(
            call(
                name("numpy._core.multiarray", "_reconstruct"),
                name("evil_canary", "x"),
                ints(0),
                text("b"),
            )
        ),
        "unknown",
    )
    for codec in ("zip", "hex", "bz2", "evil_canary"):
        yield (
            f"_codecs.encode by {codec}",
            whole(call(name("_codecs", "encode"), text("x"), text(codec))),
            "unknown",
        )
    yield (
        "a Fraction of 10^999999999",
        whole(call(name("fractions", "Fraction"), text("1e999999999"))),
        "unknown",
    )
    yield (
        "a defaultdict of memmap",
        whole(call(name("collections", "defaultdict"), name("numpy", "memmap"))),
        "unknown",
    )
    yield (
        "an OrderedDict with keywords",
        whole(name("collections", "OrderedDict") + b")" + mapping(a=b"N") + b"\x92", 4),
        "unknown",
    )
    yield (
        "a list of a generator",
        whole(call(name("builtins", "list"), call(name("builtins", "object")))),
        "unknown",
    )
    yield "type of a value", whole(call(name("builtins", "type"), text("x"))), "unknown"
    yield (
        "type of three values",
        whole(call(name("builtins", "type"), text("x"), b")", b"}")),
        "unknown",
    )
    hooks = call(
        name("torch._utils", "_rebuild_parameter"),
        tensor(),
        b"\x88",
        mapping(a=name("numpy", "memmap")),
    )
    yield "a parameter with hooks", torch_zip(hooks), "unknown"
    namespace = name("types", "SimpleNamespace") + b")R"
    for attribute in ("append", "extend", "add"):
        chosen = namespace + mapping(**{attribute: name("builtins", "bytearray")}) + b"b"
        yield (
            f"a namespace whose {attribute} is called",
            whole(chosen + integer(1 << 33) + b"a"),
            "unknown",
        )
    twice = mapping(__setstate__=name("numpy", "memmap")) + b"b" + text("/tmp/x") + b"b"
    yield "a namespace whose __setstate__ is called", whole(namespace + twice), "unknown"
    ordered = name("collections", "OrderedDict") + b")R"
    yield "a dictionary whose __setstate__ is called", whole(ordered + twice), "unknown"
    yield (
        "a dictionary whose append is called",
        whole(ordered + mapping(append=name("numpy", "memmap")) + b"b" + text("/tmp/x") + b"a"),
        "incomplete",
    )
    yield (
        "slots of a dictionary",
        whole(ordered + many(b"N", mapping(__class__=name("numpy", "memmap"))) + b"b"),
        "unknown",
    )


def pointers() -> Iterator[tuple[str, bytes, str]]:
    """States of NumPy's types that make data a pointer, or a small array a large one."""
    number = [integer(3), text("<"), b"N", b"N", b"N"]
    objects = dtype(
        "O8", integer(3), text("|"), b"N", b"N", b"N", integer(-1), integer(-1), integer(0)
    )
    scalar = call(name("numpy._core.multiarray", "scalar"), objects, short(b"\x41" * 8))
    yield "objects without their flags, a scalar", whole(scalar), "incomplete"
    yield (
        "objects without their flags, an array",
        whole(array(ints(1), objects, short(b"\x41" * 8))),
        "incomplete",
    )
    yield "objects from bytes", whole(array(ints(1), dtype("O8"), short(b"\x41" * 8))), "incomplete"
    yield (
        "flags of objects on numbers",
        whole(dtype("f8", *number, integer(-1), integer(-1), integer(63))),
        "incomplete",
    )
    yield (
        "a size that grows",
        whole(
            array(
                ints(1),
                dtype("V8", *number, integer(1 << 30), integer(1), integer(0)),
                short(bytes(8)),
            )
        ),
        "incomplete",
    )
    yield (
        "a size of -1",
        whole(dtype("V8", *number, integer(-1), integer(1), integer(0))),
        "incomplete",
    )
    yield (
        "an alignment of 0",
        whole(dtype("S8", *number, integer(8), integer(0), integer(0))),
        "incomplete",
    )
    later = plain("V8") + b"q\x01"
    yield (
        "a size that grows after use",
        whole(
            array(ints(1), dtype("V8") + b"q\x01", short(bytes(8)))
            + b"0h\x01"
            + many(*number, integer(1 << 30), integer(1), integer(0))
            + b"b"
        ),
        "incomplete",
    )
    yield (
        "two states",
        whole(later[:-2] + many(*number, integer(-1), integer(-1), integer(0)) + b"b"),
        "incomplete",
    )
    field = mapping(a=many(plain("f8"), integer(4)))
    beyond = [
        integer(3),
        text("|"),
        b"N",
        many(text("a")),
        field,
        integer(8),
        integer(1),
        integer(16),
    ]
    yield "a field past the end", whole(dtype("V8", *beyond)), "incomplete"
    inner = mapping(a=many(dtype("O8"), integer(0)))
    hidden = [
        integer(3),
        text("|"),
        b"N",
        many(text("a")),
        inner,
        integer(8),
        integer(1),
        integer(16),
    ]
    yield (
        "a field of objects",
        whole(array(ints(1), dtype("V8", *hidden), short(b"\x41" * 8))),
        "incomplete",
    )
    subarray = [
        integer(3),
        text("|"),
        many(plain("f8"), ints(1 << 40)),
        b"N",
        b"N",
        integer(8),
        integer(8),
        integer(0),
    ]
    yield "a subarray that is larger", whole(dtype("V8", *subarray)), "incomplete"
    yield "a type of several", whole(dtype("i4,O")), "unknown"
    yield (
        "more items than data",
        whole(array(ints(1 << 40), plain("f8"), short(bytes(8)))),
        "incomplete",
    )
    yield "more objects than items", whole(array(ints(1 << 40), dtype("O8"), b"]")), "incomplete"
    yield (
        "a scalar with too few bytes",
        whole(call(name("numpy._core.multiarray", "scalar"), plain("f8"), short(b"x"))),
        "incomplete",
    )


def arrays_in_pickles() -> Iterator[tuple[str, bytes, str]]:
    """What joblib skips and other unpicklers execute, or the reverse."""
    payload = b"cos\ngetpid\n)R."
    yield (
        "bytes that another unpickler executes",
        whole(wrapped(shape=ints(len(payload))) + payload),
        "dangerous",
    )
    padded = wrapped(numpy_array_alignment_bytes=b"G" + struct.pack(">d", 16.0))
    yield "an alignment that is a float", whole(padded + bytes(8)), "incomplete"
    yield (
        "an alignment of 0",
        whole(wrapped(numpy_array_alignment_bytes=integer(0)) + bytes(9)),
        "incomplete",
    )
    fields = mapping(a=many(dtype("O8"), integer(0)))
    state = [
        integer(3),
        text("|"),
        b"N",
        many(text("a")),
        fields,
        integer(8),
        integer(1),
        integer(27),
    ]
    yield (
        "a structure with objects",
        whole(wrapped(dtype=dtype("V8", *state)) + bytes(64)),
        "incomplete",
    )
    yield "objects that call", whole(wrapped(dtype=dtype("O8")) + whole(GETPID)), "dangerous"
    yield "a shape of text", whole(wrapped(shape=text("8")) + bytes(8)), "incomplete"
    yield (
        "another attribute",
        whole(wrapped(read=name("numpy", "ndarray")) + bytes(8)),
        "incomplete",
    )
    yield "two states", whole(wrapped(order=text("Z"))[:-1] + b"b" + bytes(8)), "incomplete"
    framed = b"\x95" + struct.pack("<Q", len(wrapped()) + 1) + wrapped() + b"N"
    yield "bytes inside of a frame", whole(framed + bytes(8) + b"0", 4), "incomplete"


def descriptions() -> Iterator[tuple[str, bytes, str]]:
    """Types of .npy files that hold objects without being called so."""
    for descr in ("[('a', '|O')]", "'i4,O'", "'2O'", "'(1,)O'", "'object'", "'O,O'", "[('a', 'i4,O')]",
                  "[('a', [('b', '|O')])]", "[(('t', 'a'), '|O')]", "[('a', '|O', (2,))]", "'|O4x'", "'<q'",
                  "[('', '|O')]", "'V8,O'", "[['a', '|O']]"):  # fmt: skip
        data = npy(descr, data=whole(GETPID))
        yield f"{descr}", data, "incomplete"
        yield f"{descr} in an npz", archive({"a.npy": data}), "incomplete"
    yield "objects", npy("'|O'", data=whole(GETPID)), "dangerous"
    yield "objects in an npz", archive({"a.npy": npy("'|O'", data=whole(GETPID))}), "dangerous"


def two_formats() -> Iterator[tuple[str, bytes, str]]:
    """Bytes that several readers accept."""
    table = bytes(40) + struct.pack("<Q", 0xDB4775248B80FB57)
    yield "a pickle, then a TensorFlow table", whole(GETPID) + table, "dangerous"
    key = b"\x8a\xa5" + b"K" * 165  # a map of ten keys, whose first has 5 letters; or LONG1
    yield "Flax's map, or LONG1", key[:2] + bytes(0xA5) + whole(GETPID)[2:], "dangerous"
    # The length 0x..58 is BINUNICODE: the four bytes after it are the length of a text.
    length = 0x0358
    data = safetensors(length, b"")
    at = 5 + (length >> 8)
    assert at == 8  # the text ends where the header begins, whose { is not an opcode
    yield "safetensors, not a pickle", data, "clean"
    # UNICODE takes a line, up to the first newline, which is in the data: a pickle goes on there.
    body = stack_name("os", "getpid") + b")R."
    whole_data = b"\n" + body
    header = b'{"w":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}' % ((len(whole_data),) * 2)
    header += b" " * (ord("V") - len(header))
    yield (
        "safetensors, or UNICODE and a call",
        struct.pack("<Q", len(header)) + header + whole_data,
        "dangerous",
    )
    inner = archive({"__main__.py": b"print(1)"})
    header = b'{"w":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}' % ((len(inner),) * 2)
    yield (
        "safetensors, or a zip archive",
        struct.pack("<Q", len(header)) + header + inner,
        "incomplete",
    )
    hidden = bytes(512 - 8 - 60) + b"\x89HDF\r\n\x1a\n" + bytes(64)
    header = b'{"w":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}' % ((len(hidden),) * 2)
    header += b" " * (60 - len(header))
    yield (
        "safetensors, or HDF5 with a user block",
        struct.pack("<Q", len(header)) + header + hidden,
        "incomplete",
    )
    folder = "cos\ngetpid\n)R.0" + "x" * 40
    yield "tar, whose folder's name is a pickle", tar([(folder, b"")], type=b"5"), "dangerous"
    sized = bytearray(tar([("m", b"x" * 512), ("b", b"")]))
    sized[156:157] = b"5"
    checksum = sum(sized[:148]) + 8 * 32 + sum(sized[156:512])
    sized[148:156] = b"%06o\0 " % checksum
    yield "tar, a folder that has a size", bytes(sized), "incomplete"
    npy_file = io.BytesIO()
    np.save(npy_file, np.zeros(9, "u1"))
    yield "npy that ends in a zip archive", npy("'|u1'", f"({len(inner)},)", inner), "incomplete"


def torch_members() -> Iterator[tuple[str, bytes, str]]:
    """Members that no storage refers to, and storages that contradict the bytes."""
    good = mapping(w=tensor())
    yield "a pickle below data", torch_zip(good, extra={"m/data/x.pkl": whole(GETPID)}), "dangerous"
    yield (
        "a pickle below constants",
        torch_zip(good, extra={"m/constants/x": whole(GETPID)}),
        "dangerous",
    )
    yield (
        "bytes below data that nothing refers to",
        torch_zip(good, extra={"m/data/9": bytes(16)}),
        "incomplete",
    )
    yield (
        "traced inputs that call",
        torch_zip(good, extra={"m/traced_inputs/0": whole(GETPID)}),
        "dangerous",
    )
    yield "a storage that is missing", torch_zip(good, {}), "incomplete"
    yield "a storage that is too small", torch_zip(good, {"0": bytes(15)}), "incomplete"
    yield "a storage that is too large", torch_zip(good, {"0": bytes(20)}), "incomplete"
    yield (
        "a storage of two types",
        torch_zip(mapping(a=tensor(), b=tensor(of=storage(kind="IntStorage")))),
        "incomplete",
    )
    yield (
        "a storage of two sizes",
        torch_zip(mapping(a=tensor(), b=tensor((3,), of=storage(elements=3)))),
        "incomplete",
    )
    yield "a view outside, dropped again", torch_zip(tensor((9,)) + b"0" + good), "incomplete"
    yield "a legacy view outside", torch_legacy(mapping(w=tensor((9,)))), "incomplete"
    yield (
        "a legacy storage of two types",
        torch_legacy(mapping(a=tensor(), b=tensor(of=storage(kind="IntStorage")))),
        "incomplete",
    )


def members_passed_over() -> Iterator[tuple[str, bytes, str]]:
    """Members of PyTorch's archives that hold a word, or text for debuggers."""
    good = mapping(w=tensor())
    names = ("version", ".format_version", ".storage_alignment", ".data/serialization_id")
    for member in (*names, "code/__torch__.py.debug_pkl"):
        yield (
            f"a call in {member}",
            torch_zip(good, extra={f"m/{member}": whole(GETPID)}),
            "dangerous",
        )
    yield "a text pickle", torch_zip(good, extra={"m/version": b"cos\ngetpid\n)R."}), "dangerous"


def frames_and_expansion() -> Iterator[tuple[str, bytes, str]]:
    """What unpicklers read in two ways, or only the machine's memory is spared."""
    frame = lambda size: b"\x95" + struct.pack("<Q", size)  # noqa: E731
    yield (
        "an argument past its frame",
        b"\x80\x04" + frame(3) + b"C\x05" + b"abcde" + b".",
        "incomplete",
    )
    yield "a frame in a frame", b"\x80\x04" + frame(12) + frame(2) + b"N0N.", "incomplete"
    yield "an opcode without its argument", b"\x80\x04" + frame(1) + b"K\x01.", "incomplete"
    yield "frames one after the other", b"\x80\x04" + frame(2) + b"K\x01" + frame(1) + b".", "clean"
    yield "doubled by DUP", whole(b"N\x85" + b"2\x86" * 60), "incomplete"
    yield (
        "doubled by the memo",
        whole(b"N\x85" + b"".join(b"q%c0h%ch%c\x86" % (i, i, i) for i in range(60))),
        "incomplete",
    )
    wide = b"](" + b"N" * 9000 + b"eq\x00](" + b"h\x00" * 9000 + b"e"
    yield "a wide list in a wide list", whole(wide), "incomplete"
    level = torch_legacy(b"N", [], keys=b"]")
    for _ in range(3):
        once = b"(B" + struct.pack("<I", len(level)) + level + b"q\x000"
        loads = name("torch.storage", "_load_from_bytes") + b"q\x010" + b"h\x01h\x00\x85R" * 200
        level = torch_legacy(once + loads + b"t", [], keys=b"]")
    yield "eight million files in 4 KB", level, "incomplete"
    doubled = b"N\x85" + b"2\x86" * 60
    yield "a key that doubles", whole(b"}" + doubled + b"Ns0N"), "incomplete"
    listed = call(name("builtins", "set"), b"](" + doubled + b"e")
    yield "a set of a list with an item that doubles", whole(listed + b"0N"), "incomplete"
    yield "an item of a set that doubles", whole(b"\x8f(" + doubled + b"\x900N", 4), "incomplete"
    yield "a large memo key", whole(b"Nr\xff\xff\xff\x7f"), "incomplete"
    yield "an octal number, then a call", b"I010\ncos\ngetpid\n)R.", "dangerous"
    yield "a number up to a NUL, then a call", b"I5\0x\ncos\ngetpid\n)R.", "dangerous"
    yield "nothing appended to a number, then a call", b"K\x01(e0cos\ngetpid\n)R.", "dangerous"
    yield "no state for a number, then a call", b"K\x01Nb0cos\ngetpid\n)R.", "dangerous"


GROUPS = {
    "use": calls_and_arguments, "dtype": pointers, "joblib array": arrays_in_pickles,
    "npy type": descriptions, "two formats": two_formats, "torch member": torch_members,
    "read twice": frames_and_expansion, "passed over": members_passed_over,
}  # fmt: skip


def cases() -> Iterator[tuple[str, bytes, str]]:
    """Name, bytes and verdict of each file."""
    for group, build in GROUPS.items():
        for title, data, verdict in build():
            yield f"{group}: {title}", data, verdict
