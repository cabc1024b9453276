"""Bytes of pickles and archives, put together by hand: no writer writes what these tests need."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
import zipfile
import zlib

STOP = b"."
MAGIC = 0x1950A86A20F9469CFC6C


def text(value: str) -> bytes:
    """BINUNICODE."""
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def integer(value: int) -> bytes:
    """LONG1 or LONG4."""
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    if len(data) < 256:
        return b"\x8a" + bytes([len(data)]) + data
    return b"\x8b" + struct.pack("<i", len(data)) + data


def name(module: str, attribute: str) -> bytes:
    """GLOBAL."""
    return f"c{module}\n{attribute}\n".encode()


def stack_name(module: str, attribute: str) -> bytes:
    """STACK_GLOBAL."""
    return text(module) + text(attribute) + b"\x93"


def many(*values: bytes) -> bytes:
    """A tuple."""
    return b"(" + b"".join(values) + b"t"


def call(function: bytes, *arguments: bytes) -> bytes:
    """REDUCE."""
    return function + many(*arguments) + b"R"


def mapping(**values: bytes) -> bytes:
    """A dictionary of text keys."""
    return b"}(" + b"".join(text(key) + value for key, value in values.items()) + b"u"


def whole(body: bytes, protocol: int = 2) -> bytes:
    """PROTO, a value, STOP."""
    return b"\x80" + bytes([protocol]) + body + STOP


def storage(
    key: str = "0", kind: str = "FloatStorage", elements: int = 4, view: bytes | None = None
) -> bytes:
    """The persistent id of a storage."""
    parts = [text("storage"), name("torch", kind), text(key), text("cpu"), integer(elements)]
    return many(*parts, *([view] if view is not None else [])) + b"Q"


def ints(*values: int) -> bytes:
    return many(*(integer(value) for value in values))


def tensor(
    shape: tuple[int, ...] = (4,),
    strides: tuple[int, ...] = (1,),
    offset: int = 0,
    of: bytes | None = None,
) -> bytes:
    """A call of `_rebuild_tensor_v2`."""
    hooks = name("collections", "OrderedDict") + b")R"
    return call(
        name("torch._utils", "_rebuild_tensor_v2"),
        of if of is not None else storage(),
        integer(offset), ints(*shape), ints(*strides), b"\x89", hooks,
    )  # fmt: skip


def archive(members: dict[str, bytes] | list[tuple[str, bytes]], **options: int) -> bytes:
    """A zip archive as Python writes it; a list may name a member twice."""
    file = io.BytesIO()
    pairs = members.items() if isinstance(members, dict) else members
    with zipfile.ZipFile(file, "w", **options) as out:
        for member, data in pairs:
            out.writestr(zipfile.ZipInfo(member), data, compress_type=options.get("compression"))
    return file.getvalue()


def torch_zip(
    body: bytes, storages: dict[str, bytes] | None = None, extra: dict[str, bytes] | None = None
) -> bytes:
    """A PyTorch archive around one pickle."""
    found = storages if storages is not None else {"0": bytes(16)}
    members = {"m/data.pkl": whole(body), "m/byteorder": b"little", "m/version": b"3\n"}
    members |= {f"m/data/{key}": data for key, data in found.items()}
    return archive({**members, **(extra or {})})


def torch_legacy(
    body: bytes,
    storages: list[tuple[str, int, bytes]] | None = None,
    *,
    system: bytes | None = None,
    keys: bytes | None = None,
) -> bytes:
    """A legacy PyTorch file around one pickle; storages are (key, element count, bytes)."""
    found = storages if storages is not None else [("0", 4, bytes(16))]
    info = mapping(protocol_version=integer(1001), little_endian=b"\x88", type_sizes=b"}")
    listed = b"](" + b"".join(text(key) for key, _, _ in found) + b"e"
    head = whole(integer(MAGIC)) + whole(integer(1001)) + whole(system or info)
    tail = b"".join(struct.pack("<q", count) + data for _, count, data in found)
    return head + whole(body) + whole(keys if keys is not None else listed) + tail


def tar(members: list[tuple[str, bytes]], **fields: object) -> bytes:
    """A tar archive; `fields` are set on every member's header."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as out:
        for member, data in members:
            info = tarfile.TarInfo(member)
            info.size = len(data)
            for key, value in fields.items():
                setattr(info, key, value)
            out.addfile(info, io.BytesIO(data))
    return file.getvalue()


def torch_tar(
    body: bytes = b"",
    values: bytes = struct.pack("<4f", 1, 2, 3, 4),
    shape: tuple[int, ...] = (2, 2),
) -> bytes:
    """The oldest container: one storage 7, one view of it 8, one tensor 9; `body` refers to them."""
    kind = name("torch", "FloatStorage")
    storages = whole(integer(1)) + whole(many(integer(7), text("cpu"), kind))
    storages += struct.pack("<q", len(values) // 4) + values
    storages += whole(b"](" + ints(8, 7, 0, len(values) // 4) + b"e")
    tensors = whole(integer(1)) + whole(many(integer(9), integer(8), name("torch", "FloatTensor")))
    strides = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * shape[axis + 1]
    rank = len(shape)
    tensors += struct.pack(f"<i4x{rank}q{rank}qq", rank, *shape, *strides, 0)
    body = body or mapping(w=integer(9) + b"Q")
    members = [("sys_info", whole(b"}")), ("pickle", whole(body)), ("storages", storages)]
    return tar([*members, ("tensors", tensors)], mtime=1.5)


def patched(data: bytes, signature: bytes, offset: int, value: bytes, which: int = 0) -> bytes:
    """`data` with `value` written `offset` bytes behind the `which`-th occurrence of a signature."""
    at = -1
    for _ in range(which + 1):
        at = data.index(signature, at + 1)
    return data[: at + offset] + value + data[at + offset + len(value) :]


def bomb(size: int) -> bytes:
    """`size` zero bytes, deflated."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = bytes(1 << 20)
    parts = [compressor.compress(block) for _ in range(size >> 20)]
    return b"".join([*parts, compressor.flush()])


class Evil:
    """Pickles to a call of `os.system`, through Python's own pickler."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.system, ("echo executed",)


def evil(protocol: int = 2) -> bytes:
    return pickle.dumps({"w": Evil()}, protocol)
