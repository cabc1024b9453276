"""NumPy's containers: .npy, .npz, and the pickles of joblib, of Paddle, and of plain Python.

A .npy header is a Python literal; it is matched with regular expressions and never evaluated. A type
in it is either positively a plain scalar, a structure of such, or exactly Python objects; any other
is an error, because NumPy unpickles arrays of it where it can hold objects. Arrays of Python objects
are pickles and go through the symbolic machine. joblib writes an array's bytes between the opcodes
of its pickle, right after the object that describes it.
Source of the layouts: NumPy's numpy/lib/format.py, joblib's numpy_pickle.py, Paddle's
python/paddle/framework/io.py.
"""

from __future__ import annotations

import math
import re
import struct
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ...derived.element_types import item_size
from ...derived.layout import contiguous_strides
from ...errors import FormatError, quote
from ...format.sniffing import HEAD, identify
from ...storage.inflating import inflated_head, spooled
from ...storage.windows import Window, read_bytes
from ..archives.tar_reader import looks_like_tar
from ..archives.zip_reader import ZipArchive
from ..foreign import ALL_CONSTRUCTORS, ForeignCheckpoint, OpenOptions, from_tree
from ..pickles.machine import Pickle, PickleMachine
from ..pickles.nodes import Call, DictNode, Global, Value
from ..pickles.numpy_nodes import ArrayNode, DtypeNode, int_tuple, plain_dtype
from ..pickles.object_nodes import is_int
from .signatures import NPY_MAGIC
from .torch_files import NestedStorages, is_legacy

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ...storage import Source
    from ...storage.limits import Limits
    from ..pickles.state import MachineState

__all__ = [
    "COMPRESSED",
    "JoblibArrays",
    "compressed_kind",
    "holds_pickle",
    "is_npz",
    "npy_header",
    "npy_numbers",
    "numpy_pickle",
    "read_npy",
    "read_npz",
    "read_object_pickle",
]

COMPRESSED: Final = (
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bz2"),
    (b"\xfd7zXZ\x00", "lzma"),
    (b"\x5d\x00\x00", "lzma"),
    (b"\x78\x01", "zlib"),
    (b"\x78\x5e", "zlib"),
    (b"\x78\x9c", "zlib"),
    (b"\x78\xda", "zlib"),
)
"""First bytes of a compressed stream -> codec."""
_COMPRESSED: Final = tuple(magic for magic, _ in COMPRESSED)

_HEADER_MAX: Final = 1 << 16
_ENTRY: Final = re.compile(
    r"\s*(?:'(?P<key>\w+)'|\"(?P<key2>\w+)\")\s*:\s*"
    r"(?:'(?P<text>[^'\\]*)'|\"(?P<text2>[^\"\\]*)\"|(?P<flag>True|False)|\((?P<shape>[0-9L,\s]*)\)|(?P<other>\[.*\]))"
    r"\s*(?:,|(?=\}))",
    re.DOTALL,
)


# -- .npy ---------------------------------------------------------------------------------------


def _npy_fault(source: Source, message: str) -> FormatError:
    return FormatError(f"the .npy header {message}", rule="npy", path=source.name, offset=0)


class NpyHeader(NamedTuple):
    """What a .npy header says; `start` is the offset of the data."""

    dtype: DtypeNode
    shape: tuple[int, ...]
    fortran: bool
    start: int


def npy_header(source: Source, limits: Limits) -> NpyHeader:
    """The header of a .npy file.

    Raises:
        FormatError: It is malformed, or its type is not one that is known to be read in one way.
    """
    text, start = _npy_header(source)
    try:
        fields = _npy_fields(text)
    except ValueError as error:
        raise _npy_fault(source, str(error)) from None
    shape = tuple(int(part.rstrip("L")) for part in re.findall(r"\d+L?", fields["shape"]))
    if len(shape) > limits.tensor_rank:
        raise _npy_fault(source, f"has {len(shape)} dimensions")
    return NpyHeader(_npy_dtype(source, fields), shape, fields["flag"] == "True", start)


def npy_numbers(source: Source, header: NpyHeader) -> ArrayNode:
    """The array in a .npy file that holds no Python objects.

    Raises:
        FormatError: The data is not as long as the header says.
    """
    dtype, shape, fortran, start = header
    rest = Window(source, start, source.size - start)
    if dtype.code is not None and math.prod(shape) * item_size(dtype.code) != rest.size:
        raise _npy_fault(
            source, f"says {quote(str(shape))} of {dtype.kind}; {rest.size} bytes follow"
        )
    return ArrayNode(start, dtype, shape, contiguous_strides(shape, fortran=fortran), rest)


def npy_array(source: Source, limits: Limits) -> tuple[ArrayNode | Value, tuple[Pickle, ...]]:
    """The array in a .npy file, and the pickle it is made of where it holds Python objects.

    Raises:
        FormatError: The header is malformed, or the data is not as long as it says.
    """
    header = npy_header(source, limits)
    if header.dtype.is_object:
        pickle = numpy_pickle(source, header.start, limits)
        return pickle.value, (pickle,)
    return npy_numbers(source, header), ()


_TOKEN: Final = re.compile(r"\s*(?:'([^'\\]*)'|\"([^\"\\]*)\"|(\d+)L?|([\[\](),]))\s*")
_STRUCTURE: Final = re.compile(  # over tokens: T a plain type, N other text, i an integer
    r"\[(?:\((?:[NT]|\([NT],[NT]\)),T(?:,(?:i|\((?:i,)*i?\)))?\),?)*\]"
)


def _npy_dtype(source: Source, fields: Mapping[str, str]) -> DtypeNode:
    """The element type that a header gives.

    Raises:
        FormatError: It is not known what NumPy would make of it.
    """
    if "text" in fields:
        dtype = plain_dtype(fields["text"])
        if dtype is not None:
            return dtype
        if fields["text"] in (
            "<f1",
            ">f1",
            "|f1",
        ):  # an F8 of ml_dtypes, which NumPy cannot read back
            return DtypeNode("f1")
    elif _is_plain_structure(fields["other"]):
        return DtypeNode("V", fields=True)
    shown = quote(fields.get("text") or fields["other"])
    raise _npy_fault(source, f"has an element type that is not read: {shown}")


def _is_plain_structure(text: str) -> bool:
    """Whether a list of fields names plain scalar types only; inner structures are not looked into."""
    shape, position = "", 0
    while position < len(text):
        token = _TOKEN.match(text, position)
        if token is None:
            return False
        string = token[1] if token[1] is not None else token[2]
        if string is not None:
            dtype = plain_dtype(string)
            shape += "T" if dtype is not None and not dtype.is_object else "N"
        else:
            shape += "i" if token[3] else token[4]
        position = token.end()
    return _STRUCTURE.fullmatch(shape) is not None


def _npy_header(source: Source) -> tuple[str, int]:
    head = read_bytes(source, 0, min(12, source.size))
    layouts = {1: ("<H", 8), 2: ("<I", 8), 3: ("<I", 8)}
    if not head.startswith(NPY_MAGIC) or len(head) < 12 or head[6] not in layouts or head[7]:
        raise _npy_fault(source, "does not start with NumPy's magic bytes and a known version")
    layout, at = layouts[head[6]]
    (length,) = struct.unpack_from(layout, head, at)
    if length > _HEADER_MAX:
        raise _npy_fault(source, f"is {length} bytes long")
    start = at + struct.calcsize(layout)
    encoding = "utf-8" if head[6] == 3 else "latin-1"
    try:
        return read_bytes(source, start, length).decode(encoding), start + length
    except UnicodeDecodeError as error:
        raise _npy_fault(source, "is not text") from error


@lru_cache(maxsize=256)  # the arrays of an archive have few different headers
def _npy_fields(text: str) -> Mapping[str, str]:
    """The three entries of the header's dictionary, whatever their order.

    Raises:
        ValueError: What is wrong with it.
    """
    body = text.strip()
    if not body.startswith("{") or not body.endswith("}"):
        raise ValueError("is no dictionary")
    kinds = {"descr": ("text", "other"), "fortran_order": ("flag",), "shape": ("shape",)}
    fields: dict[str, str] = {}
    position = 1
    while body[position:].strip() != "}":
        match = _ENTRY.match(body, position)
        key = (match["key"] or match["key2"]) if match else ""
        if match is None or key not in kinds:
            raise ValueError(f"has an entry that NumPy does not write: {quote(body)}")
        found = {name: value for name, value in match.groupdict().items() if value is not None}
        kind = next(name for name in ("text", "text2", "flag", "shape", "other") if name in found)
        if kind.rstrip("2") not in kinds.pop(key):
            raise ValueError(f"has a malformed {quote(key)}")
        fields[kind.rstrip("2")] = found[kind]
        position = match.end()
    if kinds:
        raise ValueError(f"lacks {quote(min(kinds))}")
    return MappingProxyType(fields)


def read_npy(source: Source, options: OpenOptions) -> ForeignCheckpoint:
    """A .npy file: one array, called ``tensor``, or the tensors of the objects it holds."""
    node, pickles = npy_array(source, options.limits)
    return from_tree("npy", source.name, node, options, pickles=pickles)


def is_npz(archive: ZipArchive) -> bool:
    """Whether all members of the archive are arrays."""
    names = [name for name, member in archive.members.items() if not member.is_folder]
    return bool(names) and all(name.endswith(".npy") for name in names)


def read_npz(source: Source, options: OpenOptions) -> ForeignCheckpoint:
    """A .npz file: its arrays by the names of its members without ``.npy``."""
    archive = ZipArchive(source, options.limits)
    pairs: list[tuple[Value, Value]] = []
    pickles: list[Pickle] = []
    for name in archive.members:
        node, found = npy_array(archive.open(name), options.limits)
        pairs.append((name.removesuffix(".npy"), node))
        pickles += found
    return from_tree("npz", source.name, DictNode(pairs), options, pickles=tuple(pickles))


# -- pickles with arrays -------------------------------------------------------------------------

_JOBLIB: Final = frozenset({"joblib.numpy_pickle", "sklearn.externals.joblib.numpy_pickle"})


_WRAPPER_KEYS: Final = frozenset(
    {"subclass", "shape", "order", "dtype", "allow_mmap", "numpy_array_alignment_bytes"}
)


class JoblibArrays:
    """Replaces joblib's array wrappers with the arrays whose bytes follow them.

    Only exactly as joblib reads and writes them: what it would read in another way is refused.

    Attributes:
        count: Wrappers replaced.
        inner: The pickles of arrays of objects, which joblib gives to a new unpickler.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.inner: list[Pickle] = []
        self.count = 0

    def __call__(self, machine: MachineState, target: Value) -> Value:
        function = target.function if isinstance(target, Call) else None
        if not isinstance(function, Global) or function.module not in _JOBLIB:
            return target
        if function.name == "NDArrayWrapper":
            raise self._fault(
                machine,
                "joblib before 0.10 kept arrays in files beside the pickle; "
                "load and dump it with a newer joblib first",
            )
        if function.name != "NumpyArrayWrapper":
            return target
        self.count += 1
        if target.arguments or target.keywords is not None or len(target.state) != 1:
            raise self._fault(machine, "an array's description is not the one that joblib writes")
        if machine.in_frame:
            raise self._fault(machine, "an array's bytes begin inside of a frame")
        return self._array(machine, target.state[0])

    def _array(self, machine: MachineState, state: Value) -> Value:
        shape, dtype, padded = self._described(machine, state)
        at = machine.reader.offset
        if dtype.is_object:
            found = PickleMachine(
                machine.source, offset=at, constructors=ALL_CONSTRUCTORS, limits=self._limits
            ).run()
            self.inner.append(found)
            machine.reader.seek(found.end)
            return found.value
        if dtype.width is None:
            raise self._fault(machine, f"the size of type {quote(dtype.kind)} is unknown")
        if padded:
            at += 1 + read_bytes(machine.source, at, 1)[0]
        size = math.prod(shape) * dtype.width
        data = Window(machine.source, at, size)
        machine.reader.seek(at + size)
        strides = contiguous_strides(shape, fortran=state.get("order") == "F")
        return ArrayNode(at, dtype, shape, strides, data)

    def _described(
        self, machine: MachineState, state: Value
    ) -> tuple[tuple[int, ...], DtypeNode, bool]:
        """Shape, type, and whether there is padding, of a wrapper's state.

        joblib pads where the alignment `is not None`, whatever it is, and lets a missing one be None.
        """
        known = isinstance(state, DictNode) and all(
            isinstance(key, str) and key in _WRAPPER_KEYS for key, _ in state.pairs
        )
        if known:
            shape, dtype = state.get("shape"), state.get("dtype")
            alignment, order = state.get("numpy_array_alignment_bytes"), state.get("order")
            numbers = int_tuple(shape) if isinstance(shape, tuple) else None
            plain = (
                numbers is not None
                and min(numbers, default=0) >= 0
                and isinstance(dtype, DtypeNode)
                and order in ("C", "F")
                and (alignment is None or (is_int(alignment) and 0 < alignment < 256))
                and state.get("allow_mmap") in (None, True, False)
                and isinstance(state.get("subclass"), (Global, type(None)))
            )
            if plain and numbers is not None:
                dtype.fixed = True
                return numbers, dtype, alignment is not None
        raise self._fault(machine, "an array's description is not the one that joblib writes")

    def _fault(self, machine: MachineState, message: str) -> FormatError:
        return FormatError(
            message, rule="joblib", path=machine.source.name, offset=machine.reader.offset
        )


def numpy_pickle(
    source: Source,
    offset: int,
    limits: Limits,
    *,
    trailing: bool = False,
    nested: NestedStorages | None = None,
) -> Pickle:
    """The pickle at `offset`, joblib's interleaved arrays included.

    Args:
        source: Where it is.
        offset: Its first byte.
        limits: See `Limits`.
        trailing: Allow bytes after it.
        nested: Takes in the tensors that plain pickles carry as files in byte strings.

    Raises:
        FormatError: It is malformed, or bytes follow it.
    """
    arrays = JoblibArrays(limits)
    constructors = dict(ALL_CONSTRUCTORS)
    if nested is not None:
        constructors["torch.storage", "_load_from_bytes"] = nested.load
    machine = PickleMachine(
        source, offset=offset, constructors=constructors, on_build=arrays, limits=limits
    )
    found = machine.run()
    for inner in (*arrays.inner, *(nested.pickles if nested is not None else ())):
        found.calls += inner.calls
        found.globals += inner.globals
        found.effects += inner.effects
    if not trailing and found.end != source.size:
        raise FormatError(
            f"{source.size - found.end} bytes follow the pickle",
            rule="pickle-trailing",
            path=source.name,
            offset=found.end,
        )
    return found


def inflated(source: Source, limits: Limits) -> Source:
    """`source` itself, or, if it is a compressed stream, what it inflates to."""
    head = read_bytes(source, 0, min(8, source.size))
    for magic, codec in COMPRESSED:
        if head.startswith(magic):
            return spooled(source, codec, f"{source.name}!{codec}", limits)
    return source


_PICKLE: Final = re.compile(rb"\x80[\x02-\x05]|[\]})][q.]|\([dl]p\d|\(?c[\w.]+\n[\w.]+\n").match
"""How pickles of protocol 2 to 5 begin, and of 1 and 0 such as hold anything."""


def compressed_kind(source: Source) -> str | None:
    """The words for a compressed stream, such as "gzip-compressed: decompress it first"."""
    found = _compressed(source)
    if found is None:
        return None
    known = identify(read_bytes(source, 0, min(HEAD, source.size)))
    return known or f"{found[0]}-compressed: decompress it first"


def holds_pickle(source: Source) -> bool:
    """Whether a compressed stream is what joblib writes: a pickle, and not another format."""
    found = _compressed(source)
    return found is not None and bool(_PICKLE(found[1])) and not is_legacy(found[1])


def holds_tar(source: Source) -> bool:
    """Whether a compressed stream is a tar archive."""
    found = _compressed(source)
    return found is not None and looks_like_tar(found[1])


def _compressed(source: Source) -> tuple[str, bytes] | None:
    """The codec, and how that begins which is compressed."""
    head = read_bytes(source, 0, min(8, source.size))
    if not head.startswith(_COMPRESSED):
        return None
    for magic, codec in COMPRESSED:
        if head.startswith(magic) and (inner := inflated_head(source, codec, HEAD)) is not None:
            return codec, inner
    return None


def read_object_pickle(source: Source, options: OpenOptions) -> ForeignCheckpoint:
    """A pickle of dictionaries, lists and NumPy arrays, as joblib, Paddle and others write it.

    A compressed one is inflated into a temporary file. With `OpenOptions.paddle`, the pairs
    (name, array) that Paddle writes for its tensors are their arrays.

    Raises:
        FormatError: It is malformed, or refers to what lies outside of it.
    """
    body = inflated(source, options.limits)
    nested = NestedStorages(options.limits)
    found = numpy_pickle(body, 0, options.limits, nested=nested)
    tree = found.value
    if options.paddle:
        tree = _paddle_tree(tree, options.limits)
    kind = "paddle" if options.paddle else "pickle"
    if any(call.path.startswith("joblib.") for call in found.calls) or body is not source:
        kind = "joblib"
    return from_tree(kind, source.name, tree, options, pickles=(found,), storages=nested)


# -- Paddle ----------------------------------------------------------------------------------------

_SPLIT: Final = "UnpackBigParamInfor@@"


def _paddle_tree(root: Value, limits: Limits) -> Value:
    """The tree with Paddle's tensors in place of what stands for them."""
    if isinstance(root, DictNode) and root.get(_SPLIT) is not None:
        raise FormatError(
            "Paddle split an array of more than 2^30 elements; save it with protocol 4 first",
            rule="paddle",
        )
    for node in _dictionaries(root, limits):
        node.pairs[:] = [(key, _paddle_value(value)) for key, value in node.pairs]
    return root


def _dictionaries(root: Value, limits: Limits) -> Iterator[DictNode]:
    pending: list[Any] = [root]
    seen: set[int] = set()
    while pending and len(seen) < limits.objects:
        node = pending.pop()
        if isinstance(node, DictNode) and id(node) not in seen:
            seen.add(id(node))
            yield node
            pending.extend(value for _, value in node.pairs)


def _paddle_value(value: Value) -> Value:
    array = value
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str):
        array = value[1]
    if not isinstance(array, ArrayNode):
        return value
    if array.dtype.code == "U16":
        array.dtype = DtypeNode("ml:bfloat16", array.dtype.swapped)
    return array
