"""Files that attack whoever loads or scans them.

Every case is bytes built here: none holds anything worse than an `echo`, and nothing in the tests
executes one. The names follow the public reports on picklescan, modelscan, fickling and PyTorch's
weights_only loader (their advisories and issue trackers, 2023 to 2026), and the zip and pickle
tricks that those rest on.
"""

# ruff: noqa: E501
from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import hostile_uses
import numpy as np
from builders import (
    STOP,
    archive,
    bomb,
    call,
    evil,
    integer,
    ints,
    many,
    mapping,
    name,
    patched,
    stack_name,
    storage,
    tar,
    tensor,
    text,
    torch_legacy,
    torch_tar,
    torch_zip,
    whole,
)


@dataclass(frozen=True)
class Case:
    """A hostile file.

    Attributes:
        name: What it does.
        data: Its bytes.
        verdict: What a scan must say: ``dangerous``, ``unknown``, ``incomplete`` - or ``clean``
            for files that execute nothing and only lie about tensors.
        refused: Whether opening it as a checkpoint must raise (True), must not (False), or
            may do either (None).
    """

    name: str
    data: bytes
    verdict: str
    refused: bool | None = None


# names_dangerous.txt: names that run code, load code, or reach files and the network; each was, at
# some time, not on some scanner's list. names_unknown.txt: names that a scanner cannot know.
HERE = Path(__file__).parent


COMMAND = text("echo executed")


def _names() -> list[Case]:
    cases = []
    for verdict in ("dangerous", "unknown"):
        for dotted in (HERE / f"names_{verdict}.txt").read_text().split():
            module, _, attribute = dotted.rpartition(".")
            cases.append(
                Case(f"call {dotted}", whole(call(name(module, attribute), COMMAND)), verdict)
            )
    return cases


def _opcodes() -> list[Case]:
    system, args = name("os", "system"), many(COMMAND)
    forms = {
        "GLOBAL in protocol 0": system + b"(S'echo'\ntR.",
        "STACK_GLOBAL": whole(stack_name("os", "system") + args + b"R", 4),
        "STACK_GLOBAL from the memo": whole(
            text("os") + b"q\x00" + text("system") + b"q\x01" + b"00h\x00h\x01\x93" + args + b"R", 4
        ),
        "INST": b"(S'echo'\nios\nsystem\n.",
        "OBJ": b"(" + system + b"S'echo'\no.",
        "NEWOBJ": whole(system + args + b"\x81"),
        "NEWOBJ_EX": whole(system + args + b"}\x92", 4),
        "import alone": whole(system),
        "import alone of a module nobody knows": whole(name("evil_canary", "x")),
        "dropped with POP": whole(system + args + b"R0N"),
        "dropped with POP_MARK": whole(b"(" + system + args + b"R1N"),
        "overwritten in the memo": whole(system + args + b"Rq\x00" + b"0Nq\x00"),
        "DUP": whole(system + b"2" + args + b"R\x86"),
        "in a dictionary's key": whole(b"}" + system + args + b"RNs"),
        "in a set": whole(b"\x8f(" + system + args + b"R\x90", 4),
        "in a frozenset": whole(b"(" + system + args + b"R\x91", 4),
        "in a BUILD state": whole(name("collections", "OrderedDict") + b")R" + system + args + b"Rb"),
        "in a harmless call's arguments": whole(
            call(name("collections", "OrderedDict"), system + args + b"R")
        ),
        "as a default factory": whole(call(name("collections", "defaultdict"), system)),
        "through _rebuild_from_type_v2": whole(
            call(name("torch._tensor", "_rebuild_from_type_v2"), system, name("torch", "Tensor"), args, b"}")
        ),
        "in a persistent id": whole(system + args + b"RQ"),
        "behind 100,000 POPs": whole(b"N0" * 100_000 + system + args + b"R"),
        "with spaces around the names": b"cos \nsystem\n" + args + b"R.",
        "getattr chain": whole(
            call(call(name("builtins", "getattr"), name("os", "path"), text("system")), COMMAND)
        ),
        "a call of a call's result": whole(
            call(call(name("functools", "partial"), name("os", "system")), COMMAND)
        ),
        "computed module name": whole(
            call(name("builtins", "str"), text("os")) + text("system") + b"\x93" + args + b"R", 4
        ),
        "arguments that are computed": whole(
            system + call(name("builtins", "tuple"), many(COMMAND)) + b"R"
        ),
        "dotted name of protocol 4": whole(stack_name("torch", "serialization.os.system") + args + b"R", 4),
        "dotted name through __init__": whole(
            stack_name("collections", "OrderedDict.__init__.__globals__") + b")R", 4
        ),
        "attribute set on a module": whole(name("sys", "modules") + mapping(os=b"N") + b"b"),
        "BUILD on an imported class": whole(
            name("collections", "OrderedDict") + mapping(__reduce__=b"N") + b"b"
        ),
        "SETITEMS on os.environ": whole(
            name("os", "environ") + b"(" + text("PATH") + text("/tmp") + b"u"
        ),
        "APPENDS on sys.path": whole(name("sys", "path") + b"(" + text("/tmp") + b"e"),
        "Unicode module name": whole(name("ѕubprocess.os", "system") + args + b"R"),
    }  # fmt: skip
    special = {
        "in a persistent id": "dangerous",
        "Unicode module name": "unknown",
        "import alone of a module nobody knows": "unknown",
        "with spaces around the names": "unknown",
    }
    cases = [
        Case(f"opcode: {key}", data, special.get(key, "dangerous")) for key, data in forms.items()
    ]
    cases += [
        Case("opcode: EXT1", whole(b"\x82\x01" + args + b"R"), "unknown"),
        Case("opcode: EXT4", whole(b"\x84\x01\x00\x00\x01" + args + b"R"), "unknown"),
        Case("opcode: a call then an invalid opcode", whole(system + args + b"R")[:-1] + b"\xff", "dangerous", True),
        Case("opcode: a call then nothing", whole(system + args + b"R")[:-1], "dangerous", True),
        Case("opcode: a call then a stack underflow", whole(system + args + b"R000"), "dangerous", True),
        Case("opcode: a call then a bad memo key", whole(system + args + b"Rh\x63"), "dangerous", True),
        Case("opcode: a call then a lying length", whole(system + args + b"RB\xff\xff\xff\x7f"), "dangerous", True),
        Case("opcode: a call then an unterminated line", whole(system + args + b"R" + b"I123")[:-1], "dangerous", True),
        Case("opcode: a call behind STOP", whole(b"}") + whole(system + args + b"R"), "dangerous", True),
        Case("opcode: three pickles, the last calls", whole(b"}") * 2 + evil(), "dangerous", True),
        Case("opcode: garbage behind STOP", whole(b"}") + b"\xfe\xfe\xfe", "incomplete", True),
        Case("opcode: protocol 6", b"\x80\x06" + system + args + b"R.", "incomplete", True),
        Case("opcode: PROTO in the middle", whole(b"\x80\x04" + system + args + b"R"), "dangerous"),
        Case("opcode: two PROTOs", b"\x80\x02" + whole(system + args + b"R", 4), "dangerous"),
        Case("opcode: no PROTO at all", system + args + b"R.", "dangerous"),
    ]  # fmt: skip
    return cases + [Case(f"python's pickler, protocol {p}", evil(p), "dangerous") for p in range(6)]


def _resources() -> list[Case]:
    deep = 200_000
    doubling = b"]" + b"".join(b"q%c0](h%ch%ce" % (i, i, i) for i in range(60))
    hashed = b")" + b"\x85" * deep
    nested_keys = b"}" + hashed + b"Ns"
    return [
        Case("depth: tuples", whole(hashed), "clean", True),
        Case("depth: lists", whole(b"]" * deep + b"a" * (deep - 1)), "clean", True),
        Case("depth: dictionaries", whole((b"}" + text("a")) * 20_000 + b"N" + b"s" * 20_000), "clean", True),
        Case("depth: a tuple as a key", whole(nested_keys), "incomplete", True),
        Case("depth: MARKs", whole(b"(" * deep), "incomplete", True),
        Case("depth: calls", whole(b")" + (b"\x85" + b"0" + name("collections", "OrderedDict") + b")R") * 1000), "clean"),
        Case("memo: doubles sixty times", whole(doubling), "incomplete", True),
        Case("memo: a list in itself", whole(b"]q\x00h\x00a"), "clean"),
        Case("memo: a dictionary in itself", whole(b"}q\x00" + text("a") + b"h\x00s"), "clean"),
        Case("memo: a huge index", whole(b"Nr\xff\xff\xff\xff"), "incomplete", True),
        Case("length: integer of 2 GiB", whole(b"\x8b\xff\xff\xff\x7f"), "incomplete", True),
        Case("length: negative integer", whole(b"\x8b\xff\xff\xff\xff"), "incomplete", True),
        Case("length: integer of 100,000 digits", b"L" + b"9" * 100_000 + b"L\n.", "incomplete", True),
        Case("length: hexadecimal integer of 1 MB", b"I0x" + b"f" * 1_000_000 + b"\n.", "incomplete", True),
        Case("length: text of 2^63 bytes", whole(b"\x8d" + struct.pack("<Q", 1 << 63) + b"x"), "incomplete", True),
        Case("length: bytes of 2^63 bytes", whole(b"\x8e" + struct.pack("<Q", 1 << 63)), "incomplete", True),
        Case("length: bytearray of 2^63 bytes", whole(b"\x96" + struct.pack("<Q", 1 << 63)), "incomplete", True),
        Case("length: frame beyond the end", b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b"N.", "incomplete", True),
        Case("length: string of -1 bytes", whole(b"T\xff\xff\xff\xff"), "incomplete", True),
        Case("length: name of 1 MB", b"c" + b"a" * 1_000_000 + b"\nb\n.", "incomplete", True),
        Case("text: not UTF-8", whole(b"X\x02\x00\x00\x00\xff\xfe"), "incomplete", True),
        Case("text: unquoted STRING", b"Sabc\n.", "incomplete", True),
        Case("empty stack", b"\x80\x02.", "incomplete", True),
        Case("odd SETITEMS", whole(b"}(Nu"), "incomplete", True),
        Case("APPEND to a number", whole(b"K\x01Na"), "incomplete", True),
        Case("only PROTO", b"\x80\x02", "incomplete", True),
        Case("empty file", b"", "incomplete", True),
    ]  # fmt: skip


def _geometry() -> list[Case]:
    big = 1 << 38
    forms = {
        "stride 0, a terabyte": tensor((big,), (0,)),
        "stride 0, in two axes": tensor((1 << 20, 1 << 20), (0, 0)),
        "past the end": tensor((5,), (1,)),
        "offset past the end": tensor((1,), (1,), 4),
        "negative offset": tensor((1,), (1,), -1),
        "negative size": tensor((-1,), (1,)),
        "negative stride": tensor((2,), (-1,), 3),
        "size and stride differ in length": tensor((2, 2), (1,)),
        "a hundred dimensions": tensor((1,) * 100, (1,) * 100),
        "sizes that overflow": tensor((1 << 62, 1 << 62), (1, 1)),
        "element count larger than the member": tensor(of=storage(elements=1 << 40)),
        "element count smaller than the member": tensor((1,), (1,), of=storage(elements=1)),
        "element type larger than the member": tensor(of=storage(kind="DoubleStorage")),
        "element type that does not exist": tensor(of=storage(kind="EvilStorage")),
        "storage that is missing": tensor(of=storage("9")),
        "storage key that traverses": tensor(of=storage("../../../../etc/passwd")),
        "storage key that is absolute": tensor(of=storage("/etc/passwd")),
        "storage key of the pickle itself": tensor(of=storage("../data.pkl")),
        "view outside its storage": tensor(of=storage(view=many(text("v"), integer(3), integer(9)))),
        "negative element count": tensor(of=storage(elements=-4)),
        "storage that is text": tensor(of=text("storage")),
        "persistent id that is text": text("0") + b"Q",
        "too few arguments": call(name("torch._utils", "_rebuild_tensor_v2"), storage()),
        "too many arguments": call(name("torch._utils", "_rebuild_tensor"), *[storage()] * 9),
        "unknown metadata bit": call(
            name("torch._utils", "_rebuild_tensor_v2"), storage(), integer(0), ints(4), ints(1),
            b"\x89", b"}", mapping(evil=b"\x88"),
        ),
        "type with code": call(
            name("torch._utils", "_rebuild_tensor_v3"), storage(), integer(0), ints(4), ints(1),
            b"\x89", b"}", name("torch", "EvilDtype"),
        ),
    }  # fmt: skip
    special = {"stride 0, a terabyte": "clean", "stride 0, in two axes": "clean"}
    cases = [
        Case(f"tensor: {key}", torch_zip(mapping(w=body)), special.get(key, "incomplete"), True)
        for key, body in forms.items()
    ]
    sparse = call(
        name("torch._utils", "_rebuild_sparse_tensor"),
        call(name("torch.serialization", "_get_layout"), text("torch.sparse_coo")),
        many(
            tensor((1, 2), (2, 1), of=storage("1", "LongStorage", 2)), tensor((2,), (1,)), ints(big)
        ),
    )
    collision = mapping(**{"a.b": tensor(), "a": mapping(b=tensor())})
    return [
        *cases,
        Case("tensor: sparse of a terabyte", torch_zip(mapping(w=sparse), {"0": bytes(16), "1": bytes(16)}), "clean"),
        Case("tensor: two names that flatten to one", torch_zip(collision), "clean", True),
        Case("legacy: element count lies", torch_legacy(mapping(w=tensor()), [("0", 1 << 40, bytes(16))]), "incomplete", True),
        Case("legacy: negative element count", torch_legacy(mapping(w=tensor()), [("0", -1, bytes(16))]), "incomplete", True),
        Case("legacy: storage listed twice", torch_legacy(mapping(w=tensor()), [("0", 4, bytes(16))] * 2), "incomplete", True),
        Case("legacy: storage not listed", torch_legacy(mapping(w=tensor()), [], keys=b"]"), "incomplete", True),
        Case("legacy: bytes behind the storages", torch_legacy(mapping(w=tensor())) + b"PK", "incomplete", True),
        Case("legacy: a call in the system information", torch_legacy(mapping(w=tensor()), system=call(name("os", "system"), COMMAND)), "dangerous"),
        Case("legacy: a call in the list of storages", torch_legacy(mapping(w=tensor()), keys=call(name("os", "system"), COMMAND)), "dangerous", True),
        Case("legacy: a call in the body", torch_legacy(mapping(w=tensor(), x=call(name("os", "system"), COMMAND))), "dangerous"),
    ]  # fmt: skip


CENTRAL, LOCAL, END = b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06"


def _zips() -> list[Case]:
    good = torch_zip(mapping(w=tensor()))
    bad = whole(call(name("os", "system"), COMMAND))
    deflated = archive({"m/data.pkl": whole(b"}") * 1}, compression=zipfile.ZIP_DEFLATED)
    twice = good + good[good.index(CENTRAL) :]
    size = struct.unpack_from("<L", good, good.index(END) + 12)[0]
    huge = 512 << 20
    packed = bomb(huge)
    cases = {
        "two members of one name, the first calls": _twice(bad, whole(b"}")),
        "two members of one name, the last calls": _twice(whole(b"}"), bad),
        "names that differ in case": archive([("m/data.pkl", whole(b"}")), ("m/DATA.PKL", bad)]),
        "local name differs": patched(good, LOCAL, 30, b"m/DATA.pkl"),
        "directory name differs": patched(good, CENTRAL, 46, b"m/DATA.pkl"),
        "directory says encrypted": patched(good, CENTRAL, 8, b"\x01\x00"),
        "local header says encrypted": patched(good, LOCAL, 6, b"\x01\x00"),
        "both say encrypted": patched(patched(good, LOCAL, 6, b"\x01\x00"), CENTRAL, 8, b"\x01\x00"),
        "methods differ": patched(good, LOCAL, 8, b"\x08\x00"),
        "method that is not read": patched(patched(good, LOCAL, 8, b"\x0c\x00"), CENTRAL, 10, b"\x0c\x00"),
        "sizes differ": patched(good, LOCAL, 22, b"\x01\x00\x00\x00"),
        "checksums differ": patched(good, LOCAL, 14, b"\x01\x02\x03\x04"),
        "wrong checksum in both": patched(patched(good, LOCAL, 14, b"\x01\x02\x03\x04"), CENTRAL, 16, b"\x01\x02\x03\x04"),
        "stored with two sizes": patched(good, CENTRAL, 24, b"\xff\x00\x00\x00"),
        "bytes in front": b"MZ" + good,
        "safetensors in front": struct.pack("<Q", 8) + b"{}      " + good,
        "bytes behind": good + b"\0",
        "two end records": twice,
        "an end record in the comment": patched(good, END, 20, b"\x16\x00") + END + bytes(18),
        "directory size lies": patched(good, END, 12, struct.pack("<L", size - 1)),
        "entry count lies": patched(good, END, 8, b"\x01\x00\x01\x00"),
        "several disks": patched(good, END, 4, b"\x01\x00\x01\x00"),
        "directory offset lies": patched(good, END, 16, b"\x00\x00\x00\x00"),
        "member offset lies": patched(good, CENTRAL, 42, b"\x00\x00\x00\x00", 1),
        "a symbolic link": _linked(),
        "an absolute name": archive({"/m/data.pkl": whole(b"}")}),
        "a traversing name": archive({"m/data.pkl": whole(b"}"), "m/../../x": b""}),
        "a drive letter": archive({"c:/data.pkl": whole(b"}")}),
        "a name with a NUL": patched(patched(good, LOCAL, 32, b"\0"), CENTRAL, 48, b"\0"),
        "a Unicode path field": _extra(struct.pack("<HHBL", 0x7075, 5, 1, 0)),
        "AES": _extra(struct.pack("<HH", 0x9901, 7) + bytes(7)),
        "an extra field that overruns": _extra(struct.pack("<HH", 1, 60000)),
        "a bomb": _raw_deflate("m/data.pkl", packed, huge),
        "a bomb that lies about its size": _raw_deflate("m/data.pkl", packed, 100),
        "deflated data that is cut": _raw_deflate("m/data.pkl", packed[:50], 1000),
        "deflated data that is garbage": _raw_deflate("m/data.pkl", b"\xff" * 50, 1000),
        "truncated": good[:-30],
        "no members": END + bytes(18),
        "two folders": archive({"m/data.pkl": whole(b"}"), "n/data.pkl": bad}),
        "unknown member": torch_zip(b"}", extra={"m/evil": b"\x00" * 50}),
        "byte order that does not exist": archive({"m/data.pkl": whole(mapping(w=tensor())), "m/byteorder": b"middle", "m/data/0": bytes(16)}),
    }  # fmt: skip
    special = {
        "two folders": "dangerous",
        "no members": "clean",
    }
    refused = {"unknown member": None, "truncated": True}
    result = [
        Case(f"zip: {key}", data, special.get(key, "incomplete"), refused.get(key, True))
        for key, data in cases.items()
    ]
    assert zipfile.is_zipfile(io.BytesIO(deflated))
    return [
        *result,
        Case("zip: the pickle calls", torch_zip(call(name("os", "system"), COMMAND)), "dangerous"),
        Case("zip: bytes behind the pickle", archive({"m/data.pkl": whole(b"}") + bad}), "dangerous", True),
        Case("zip: a pickle with another suffix", archive({"m/data.pkl": whole(b"}"), "m/extra.txt": evil()}), "dangerous"),
        Case("zip: a pickle in constants", torch_zip(b"}", extra={"m/constants.pkl": bad}), "dangerous"),
        Case("zip: a zip in a zip", archive({"a.bin": archive({"m/data.pkl": bad})}), "dangerous", True),
        Case("zip: a zip in a zip in a tar", tar([("a", archive({"b": archive({"m/data.pkl": bad})}))]), "dangerous", True),
        Case("zip: six levels", _levels(bad, 6), "incomplete", True),
        Case("zip: Python code", torch_zip(mapping(w=tensor()), extra={"m/code/__torch__.py": b"import os"}), "unknown"),
        Case("zip: a shared library", archive({"a.npy": b"", "evil.so": b"\x7fELF"}), "incomplete", True),
    ]  # fmt: skip


def _twice(first: bytes, last: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as out:
        for member, data in (("m/data.pkl", first), ("m/data.pkk", last)):
            out.writestr(zipfile.ZipInfo(member), data)
    return file.getvalue().replace(b"m/data.pkk", b"m/data.pkl")


def _linked() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as out:
        info = zipfile.ZipInfo("m/data.pkl")
        info.create_system = 3
        info.external_attr = 0o120777 << 16
        out.writestr(info, "/etc/passwd")
    return file.getvalue()


def _extra(field: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as out:
        info = zipfile.ZipInfo("m/data.pkl")
        info.extra = field
        out.writestr(info, whole(b"}"))
    return file.getvalue()


def _raw_deflate(member: str, data: bytes, size: int) -> bytes:
    raw = member.encode()
    fields = struct.pack("<4H3L", 0, 8, 0, 0x21, 0, len(data), size)
    local = LOCAL + struct.pack("<H", 20) + fields + struct.pack("<2H", len(raw), 0) + raw + data
    central = CENTRAL + struct.pack("<2H", 20, 20) + fields
    central += struct.pack("<5H2L", len(raw), 0, 0, 0, 0, 0, 0) + raw
    end = END + struct.pack("<4H2LH", 0, 0, 1, 1, len(central), len(local), 0)
    return local + central + end


def _levels(data: bytes, count: int) -> bytes:
    for level in range(count):
        data = archive({f"level{level}": data})
    return data


def _others() -> list[Case]:
    call_system = call(name("os", "system"), COMMAND)
    objects = io.BytesIO()
    np.save(objects, np.zeros(2, "f4"))
    plain = objects.getvalue()
    header = plain[: plain.index(b"\n") + 1]
    as_objects = header.replace(b"'<f4'", b"'|O' ") + whole(call_system)
    wrapper = name("joblib.numpy_pickle", "NumpyArrayWrapper") + b")\x81"
    state = mapping(
        shape=ints(1 << 40), dtype=call(name("numpy", "dtype"), text("f4")), order=text("C")
    )
    old = (
        name("joblib.numpy_pickle", "NDArrayWrapper") + b")\x81" + mapping(filename=text("../../x"))
    )
    cases = [
        Case("npy: objects that call", as_objects, "dangerous"),
        Case("npy: objects in an npz", archive({"a.npy": as_objects}), "dangerous"),
        Case("npy: header that is an expression", header.replace(b"False", b"os.x ") + bytes(8), "incomplete", True),
        Case("npy: header of 4 GiB", b"\x93NUMPY\x02\x00\xff\xff\xff\xff{", "incomplete", True),
        Case("npy: shape that lies", header.replace(b"(2,)", b"(9,)") + bytes(8), "incomplete", True),
        Case("npy: negative shape", header.replace(b"(2,)", b"(-2)") + bytes(8), "incomplete", True),
        Case("npy: version 9", b"\x93NUMPY\x09" + plain[7:], "incomplete", True),
        Case("joblib: a call, gzip", gzip.compress(evil()), "dangerous"),
        Case("joblib: a call, zlib", zlib.compress(evil()), "dangerous"),
        Case("joblib: a call, bz2", bz2.compress(evil()), "dangerous"),
        Case("joblib: a call, xz", lzma.compress(evil()), "dangerous"),
        Case("joblib: a call, lzma", lzma.compress(evil(), lzma.FORMAT_ALONE), "dangerous"),
        Case("joblib: a call, gzip in xz", lzma.compress(gzip.compress(evil())), "dangerous", True),
        Case("joblib: bytes behind the stream", gzip.compress(evil()) + b"x", "incomplete", True),
        Case("joblib: a stream that is cut", gzip.compress(evil())[:-9], "incomplete", True),
        Case("joblib: a bomb", gzip.compress(bytes(200 << 20)), "incomplete", True),
        Case("joblib: an array that lies", whole(wrapper + state + b"b"), "incomplete", True),
        Case("joblib: a call behind an array's description", whole(wrapper + state + b"b" + call_system), "dangerous", True),
        Case("joblib: an old array in another file", whole(old + b"b"), "incomplete", True),
        Case("tar: not PyTorch's, holds a pickle", tar([("a.pkl", evil())]), "dangerous", True),
        Case("tar: two members of one name", tar([("pickle", evil()), ("pickle", whole(b"}"))]), "incomplete", True),
        Case("tar: a traversing name", tar([("../../pickle", evil())]), "incomplete", True),
        Case("tar: a symbolic link", tar([("pickle", b"")], type=b"2", linkname="/etc/passwd"), "incomplete", True),
        Case("tar: a pax header that renames", tar([("pickle" + "x" * 120, evil())]), "incomplete", True),
        Case("tar: a wrong checksum", b"x" + tar([("pickle", evil())])[1:], "incomplete", True),
        Case("tar: a call in the body", torch_tar(call_system), "dangerous"),
        Case("tar: bytes behind the end", torch_tar() + b"x" * 512, "incomplete", True),
        Case("msgpack: 200,000 levels", b"\x81\xa1a" + b"\x91" * 200_000 + b"\xc0", "incomplete", True),
        Case("msgpack: 4 G items", b"\x81\xa1a\xdd\xff\xff\xff\xff", "incomplete", True),
        Case("msgpack: an array that lies", b"\x81\xa1a\xc7\x0f\x01\x93\x91\xce\xff\xff\xff\xff\xa7float32\xc4\x00", "incomplete", True),
        Case("msgpack: a lying length", b"\x81\xa1a\xdb\xff\xff\xff\xff", "incomplete", True),
        Case("gguf: 2^63 tensors", b"GGUF\x03\0\0\0" + struct.pack("<2Q", 1 << 63, 0), "incomplete", True),
        Case("gguf: 2^63 keys", b"GGUF\x03\0\0\0" + struct.pack("<2Q", 0, 1 << 63), "incomplete", True),
        Case("gguf: text of 2^63 bytes", b"GGUF\x03\0\0\0" + struct.pack("<3Q", 0, 1, 1 << 63), "incomplete", True),
        Case("gguf: version 9", b"GGUF\x09\0\0\0" + bytes(16), "incomplete", True),
        Case("tensorflow: an index that is garbage", bytes(64) + struct.pack("<Q", 0xDB4775248B80FB57), "incomplete", True),
        Case("hdf5: garbage", b"\x89HDF\r\n\x1a\n" + bytes(range(256)) * 4, "incomplete", True),
        Case("keras: a Lambda layer", archive({"config.json": json.dumps({"class_name": "Lambda"}).encode(), "model.weights.h5": b""}), "dangerous", True),
        Case("nested: pickle.loads of bytes", whole(call(name("pickle", "loads"), b"C" + bytes([len(evil())]) + evil())), "dangerous"),
        Case("nested: _load_from_bytes", whole(call(name("torch.storage", "_load_from_bytes"), b"B" + struct.pack("<I", len(evil())) + evil())), "dangerous"),
    ]  # fmt: skip
    assert STOP == b"."
    return cases


def corpus() -> list[Case]:
    """All cases."""
    others = [Case(*each) for each in hostile_uses.cases()]
    return [*_names(), *_opcodes(), *_resources(), *_geometry(), *_zips(), *_others(), *others]
