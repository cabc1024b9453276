"""What a name or a call in a pickle can do.

A name is allowed for a use. `DATA_NAMES` may be mentioned: to import them runs no code that matters,
and that says nothing about calling them. A call is harmless only where it is known what it builds
from the arguments it is given: a constructor described its result (`Call.result`), or a rule of
`PLAIN_CALLS` accepts its arguments. So `numpy.memmap` may be the type of an array, and a call of it
is reported; `bytearray(b"x")` is data, and `bytearray(2**33)` is reported.

Everything else is at best unknown. The list of names that can act only chooses between "unknown" and
"can act": a gap in it cannot make a hostile file clean. The published bypasses of other scanners are
gaps in such lists.

Pure data and pure functions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from enum import IntEnum
from typing import Any, Final, NamedTuple

from ..derived.element_types import TORCH_DTYPES, TORCH_STORAGES
from ..format.dtypes import DTYPES
from .classes import ATTRIBUTE_CLASSES, LOSSES
from .foreign import ALL_CONSTRUCTORS
from .pickles.distributed_nodes import DISTRIBUTED_CLASSES, DTENSOR_MODULES
from .pickles.nodes import Blob, Call, DictNode, Effect, Global, PersistentId, Value, modern
from .pickles.numpy_nodes import ArrayNode, DtypeNode, blob_source, int_tuple
from .pickles.object_nodes import as_bytes, is_int
from .sklearn_trees import is_new_tree, is_plain_tree

__all__ = [
    "DANGEROUS_MODULES",
    "DATA_NAMES",
    "NESTED_LOADERS",
    "PLAIN_CALLS",
    "Grade",
    "grade_call",
    "grade_effect",
    "grade_global",
    "is_nested_file",
]


class Grade(IntEnum):
    """What executing something can do; larger is worse."""

    DATA = 0
    """Builds tensors, arrays and plain data, and does nothing else."""
    UNKNOWN = 1
    """Cannot be judged: code that is not known here would run."""
    DANGEROUS = 2
    """Can run commands, load code, or reach files and the network."""

    @property
    def label(self) -> str:
        """The grade in words."""
        return ("builds data only", "unknown, cannot be judged", "can act")[self]


_STORAGE_MODULES: Final = ("torch", "torch.cuda", "torch.storage")


class Rule(NamedTuple):
    """When a call only makes data.

    Attributes:
        accepts: Whether its arguments are plain.
        changes: The opcodes that may change the object it makes.
        states: What BUILD may give to it: a dictionary of attributes, or a tuple that the type's own
            ``__setstate__`` takes apart.
        slots: BUILD may also give the attributes of a class with slots: (None, dictionary).
        plain: Whether the state that BUILD gave is one that the library writes; all are by default.
    """

    accepts: Callable[[Call], bool]
    changes: tuple[str, ...] = ()
    states: type | tuple[type, ...] = DictNode
    slots: bool = False
    plain: Callable[[Call], bool] | None = None


# -- calls of types that only hold data


def _nothing(call: Call) -> bool:
    return not call.arguments


def _texts(call: Call) -> bool:
    return all(isinstance(argument, str) for argument in call.arguments)


def _numbers(call: Call) -> bool:
    return all(isinstance(argument, (int, float)) for argument in call.arguments)


def _atoms(call: Call) -> bool:
    return all(
        argument is None or isinstance(argument, (bool, int, float, str, bytes))
        for argument in call.arguments
    )


def _is_timezone(call: Call) -> bool:
    """``timezone(timedelta(...)[, name])``."""
    return all(
        isinstance(argument, str)
        or (isinstance(argument, Call) and _calls(argument, "timedelta") and _numbers(argument))
        for argument in call.arguments
    )


def _is_stamp(call: Call) -> bool:
    """Types of `datetime`: the bytes that they pickle to, and a time zone."""
    return all(
        isinstance(argument, (bytes, str))
        or is_int(argument)
        or argument is None
        or (isinstance(argument, Call) and _calls(argument, "timezone") and _is_timezone(argument))
        for argument in call.arguments
    )


def _describes_ranks(call: Call) -> bool:
    """Classes that describe how ranks divide a tensor: made empty, or of numbers, types and text."""
    return all(
        argument is None
        or isinstance(argument, (bool, int, str, Global))
        or int_tuple(argument) is not None
        for argument in call.arguments
    )


def _calls(call: Call, name: str) -> bool:
    return call.path == f"datetime.{name}" and call.keywords is None and not call.state


def _is_fraction(call: Call) -> bool:
    """Two integers, or text of them: ``Fraction("1e999999999")`` would compute a power."""
    return all(
        is_int(argument) or (isinstance(argument, str) and _FRACTION(argument))
        for argument in call.arguments
    )


def _is_new_deque(call: Call) -> bool:
    match call.arguments:
        case () | (() | [],) | (() | [], None):
            return True
        case (() | [], length):
            return is_int(length)
    return False


def _is_constant_type(call: Call) -> bool:
    """``type(None)``: how the types of None and Ellipsis are pickled."""
    match call.arguments:
        case (None,):
            return True
        case (Global() as constant,):
            return modern(constant) in _CONSTANTS
    return False


def _is_bytes(call: Call) -> bool:
    return all(as_bytes(argument) is not None for argument in call.arguments)


_NUMPY_SCALARS: Final = (
    "bool_", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16",
    "float32", "float64", "complex64", "complex128",
)  # fmt: skip
_FRACTION: Final = re.compile(r"-?\d+(?:/\d+)?").fullmatch
_CONSTANTS: Final = frozenset({("builtins", "Ellipsis"), ("builtins", "NotImplemented")})
_PATHS: Final = (
    "PosixPath",
    "WindowsPath",
    "PurePosixPath",
    "PureWindowsPath",
    "Path",
    "PurePath",
)
_DISTRIBUTED: Final = (
    "Metadata",
    "TensorStorageMetadata",
    "BytesStorageMetadata",
    "TensorProperties",
    "ChunkStorageMetadata",
    "MetadataIndex",
    "StorageMeta",
)

_BIT_GENERATORS: Final = frozenset({"MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64"})
_SEED_MODULES: Final = ("bit_generator", "_bit_generator")
_SGD_LOSSES: Final = ("Hinge", "SquaredHinge", "EpsilonInsensitive", "Huber", "SquaredLoss", "Log")


def _is_bit_generator_name(value: Value) -> bool:
    """The class of one of NumPy's bit generators, or its name."""
    if isinstance(value, Global):
        return value.module == f"numpy.random._{str(value.name).lower()}" and (
            value.name in _BIT_GENERATORS
        )
    return isinstance(value, str) and value in _BIT_GENERATORS


def _is_bit_generator(call: Call) -> bool:
    return len(call.arguments) < 2 and all(map(_is_bit_generator_name, call.arguments))


def _of_bit_generator(call: Call) -> bool:
    """A bit generator or its name; older files name the function that makes it too."""
    match call.arguments:
        case (made,) | (made, Global("numpy.random._pickle", "__bit_generator_ctor")):
            own = (
                isinstance(made, Call) and made.path == "numpy.random._pickle.__bit_generator_ctor"
            )
            return (own and _is_bit_generator(made)) or _is_bit_generator_name(made)
    return False


def _is_seed_sequence(call: Call) -> bool:
    match call.arguments:
        case (Global(name="SeedSequence") as kind, int(), None):
            return kind.module in {f"numpy.random.{module}" for module in _SEED_MODULES}
    return False


def _is_new_masked(call: Call) -> bool:
    """``_mareconstruct(MaskedArray, ndarray, (0,), b"b")``."""
    match call.arguments:
        case (Global() as kind, Global() as base, (0,), "b" | b"b"):
            return modern(kind) in _MASKED and modern(base) == ("numpy", "ndarray")
    return False


def _is_masked_state(call: Call) -> bool:
    """(1, shape, type, order, bytes of the elements, of the mask, fill value), which fit each other."""
    match call.state[0]:
        case (1, tuple() as shape, DtypeNode() as dtype, bool(), data, mask, fill):
            counts, width = int_tuple(shape), dtype.width
            if counts is None or min(counts, default=0) < 0 or width is None or dtype.fields:
                return False
            sizes = [_byte_count(each) for each in (data, mask)]
            known = fill is None or isinstance(fill, (int, float, str, ArrayNode))
            return (
                known
                and not dtype.is_object
                and sizes == [math.prod(counts) * width, math.prod(counts)]
            )
    return False


def _byte_count(value: Value) -> int | None:
    data = as_bytes(value)
    return None if data is None else blob_source(data, "").size


def _gives_its_argument(call: Call) -> bool:
    """Functions of TorchScript's pickles that return what they are given, with the name of its type."""
    match call.arguments:
        case (_,) | (_, str()):
            return True
    return False


_SCRIPT_LISTS: Final = (
    "restore_type_tag", "build_intlist", "build_tensorlist", "build_doublelist", "build_boollist",
)  # fmt: skip
_MASKED: Final = frozenset({("numpy.ma", "MaskedArray"), ("numpy.ma.core", "MaskedArray")})

PLAIN_CALLS: Final[dict[tuple[str, str], Rule]] = {
    ("builtins", "object"): Rule(_nothing),
    ("builtins", "type"): Rule(_is_constant_type),
    ("builtins", "int"): Rule(_atoms),
    ("builtins", "float"): Rule(_atoms),
    ("builtins", "bool"): Rule(_atoms),
    ("builtins", "range"): Rule(_numbers),
    ("builtins", "slice"): Rule(_atoms),
    ("collections", "deque"): Rule(_is_new_deque, ("APPEND", "APPENDS")),
    ("types", "SimpleNamespace"): Rule(_nothing, ("BUILD",)),
    ("argparse", "Namespace"): Rule(_nothing, ("BUILD",)),
    ("decimal", "Decimal"): Rule(_texts),
    ("fractions", "Fraction"): Rule(_is_fraction),
    ("uuid", "UUID"): Rule(_nothing, ("BUILD",)),
    ("datetime", "datetime"): Rule(_is_stamp),
    ("datetime", "date"): Rule(_is_stamp),
    ("datetime", "time"): Rule(_is_stamp),
    ("datetime", "timedelta"): Rule(_numbers),
    ("datetime", "timezone"): Rule(_is_timezone),
    ("torch.torch_version", "TorchVersion"): Rule(_texts),
    ("joblib.numpy_pickle", "NumpyArrayWrapper"): Rule(_nothing, ("BUILD",)),
    ("sklearn.externals.joblib.numpy_pickle", "NumpyArrayWrapper"): Rule(_nothing, ("BUILD",)),
    ("numpy.ma.core", "_mareconstruct"): Rule(
        _is_new_masked, ("BUILD",), tuple, plain=_is_masked_state
    ),
    **{("torch.jit._pickle", name): Rule(_gives_its_argument) for name in _SCRIPT_LISTS},
    **{
        (module, name): Rule(_is_bytes, ("BUILD",), tuple)
        for module in ("io", "_io")
        for name in ("BytesIO", "StringIO")
    },
    **{(module, name): Rule(_texts) for module in ("pathlib", "pathlib._local") for name in _PATHS},
    **{
        ("torch.distributed.checkpoint.metadata", name): Rule(_nothing, ("BUILD",), slots=True)
        for name in _DISTRIBUTED
        if name != "TensorProperties"
    },
    ("torch.distributed.checkpoint.metadata", "TensorProperties"): Rule(
        _nothing, ("BUILD",), (DictNode, tuple)
    ),
    ("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING"): Rule(_numbers),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"): Rule(
        _nothing, ("BUILD",), slots=True
    ),
    **{key: Rule(_nothing, ("BUILD",)) for key in ATTRIBUTE_CLASSES},
    **{("sklearn.linear_model._sgd_fast", name): Rule(_numbers) for name in _SGD_LOSSES},
    **{("sklearn._loss._loss", f"Cy{name}"): Rule(_numbers) for name in LOSSES},
    ("sklearn.tree._tree", "Tree"): Rule(is_new_tree, ("BUILD",), plain=is_plain_tree),
    ("numpy.random._pickle", "__bit_generator_ctor"): Rule(
        _is_bit_generator, ("BUILD",), (DictNode, tuple)
    ),
    ("numpy.random._pickle", "__randomstate_ctor"): Rule(_of_bit_generator, ("BUILD",)),
    ("numpy.random._pickle", "__generator_ctor"): Rule(_of_bit_generator, ("BUILD",)),
    **{
        (f"numpy.random.{module}", "__pyx_unpickle_SeedSequence"): Rule(
            _is_seed_sequence, ("BUILD",), tuple
        )
        for module in _SEED_MODULES
    },
    **{
        name: Rule(
            _describes_ranks,
            ("BUILD",),
            tuple if name[1] == "TensorProperties" else DictNode,
            slots=True,
        )
        for name in DISTRIBUTED_CLASSES
    },
}
"""(module, name) -> when a call of it only makes data."""

DATA_NAMES: Final = frozenset(
    {
        *(ALL_CONSTRUCTORS.keys() - {("builtins", "getattr")}),  # one call of it is known
        *PLAIN_CALLS,
        *_CONSTANTS,
        *((module, name) for module in _STORAGE_MODULES for name in TORCH_STORAGES),
        *(
            (module, name.replace("Storage", "Tensor"))  # what the tar file notes beside a tensor
            for module in ("torch", "torch.cuda")
            for name in TORCH_STORAGES
        ),
        *((module, "UntypedStorage") for module in _STORAGE_MODULES),
        *(("torch", name) for name in TORCH_DTYPES),
        *(("ml_dtypes", row.numpy) for row in DTYPES.values() if row.ml_dtypes),
        *(("numpy", name) for name in _NUMPY_SCALARS),
        ("torch", "Tensor"),
        ("torch._tensor", "Tensor"),
        ("torch.nn.parameter", "Buffer"),
        ("torch", "per_tensor_affine"),
        ("torch", "per_channel_affine"),
        ("torch", "strided"),
        ("torch", "contiguous_format"),
        ("torch.serialization", "_get_layout"),
        ("torch._utils", "_rebuild_wrapper_subclass"),
        *((module, "DTensor") for module in DTENSOR_MODULES),
        ("torch.distributed._shard.sharded_tensor.api", "ShardedTensor"),
        ("numpy", "ndarray"),
        ("numpy", "memmap"),
        *_MASKED,
        ("numpy.core.memmap", "memmap"),
        ("numpy", "matrix"),
        ("numpy.matrixlib.defmatrix", "matrix"),
        ("builtins", "str"),
        *((f"numpy.random._{name.lower()}", name) for name in _BIT_GENERATORS),
        *((f"numpy.random.{module}", "SeedSequence") for module in _SEED_MODULES),
        *(("torch.nn.functional", name) for name in ("relu", "gelu", "silu", "tanh", "sigmoid")),
    }
)
"""Names that may be mentioned, as types and constants; calls of them are judged by their arguments."""

NESTED_LOADERS: Final = frozenset(
    {
        ("torch.storage", "_load_from_bytes"), ("torch", "load"), ("torch.serialization", "load"),
        ("pickle", "loads"), ("_pickle", "loads"), ("cPickle", "loads"), ("dill", "loads"),
        ("cloudpickle", "loads"), ("dill._dill", "loads"),
    }
)  # fmt: skip
"""Names whose byte-string arguments are themselves files to look into."""

DANGEROUS_MODULES: Final = frozenset(
    {
        "os", "posix", "nt", "ntpath", "posixpath", "subprocess", "_posixsubprocess", "sys",
        "shutil", "socket", "_socket", "asyncio", "multiprocessing", "concurrent", "pty",
        "commands", "popen2", "platform", "ctypes", "_ctypes", "cffi", "code", "codeop",
        "runpy", "importlib", "imp", "_imp", "zipimport", "pkgutil", "pip", "ensurepip", "venv",
        "setuptools", "distutils", "site", "webbrowser", "http", "urllib", "urllib2", "httplib",
        "requests", "aiohttp", "ftplib", "smtplib", "telnetlib", "imaplib", "poplib", "nntplib",
        "xmlrpc", "SimpleHTTPServer", "socketserver", "ssl", "sqlite3", "dbm", "shelve",
        "marshal", "pickle", "_pickle", "cPickle", "dill", "cloudpickle", "jsonpickle",
        "operator", "_operator", "functools", "_functools", "types", "timeit", "cProfile",
        "profile", "pdb", "bdb", "trace", "doctest", "pydoc", "idlelib", "lib2to3", "test",
        "unittest", "tempfile", "glob", "pathlib", "io", "_io", "fileinput", "linecache",
        "logging", "signal", "threading", "_thread", "sched", "gc", "inspect", "ast", "dis",
        "antigravity", "tkinter", "turtle", "rlcompleter", "cmd", "shlex", "mmap", "fcntl",
        "resource", "crypt", "curses", "readline", "syslog", "winreg", "_winreg", "msvcrt",
        "_winapi", "numpy.f2py", "numpy.distutils", "numpy.testing", "torch.hub", "torch.utils",
        "torch.jit", "torch.distributed", "torch.multiprocessing", "torch._dynamo",
        "torch._inductor", "torch.fx", "torch.onnx", "torch.package", "torch.serialization",
        "torch.ops", "torch._ops", "torch.library", "torch.testing", "torch.cuda.random",
        "jax.experimental", "tensorflow.python", "keras.layers", "pandas.io",
        "sklearn.externals", "joblib.memory", "joblib.parallel", "scipy.weave", "sympy", "nltk",
        "pydoc_data", "getpass", "netrc"
    }
)  # fmt: skip
"""Modules of which no name belongs in a checkpoint; those below them too."""

_DANGEROUS_BUILTINS: Final = frozenset(
    {
        "eval", "exec", "execfile", "compile", "open", "file", "input", "raw_input",
        "__import__", "getattr", "setattr", "delattr", "hasattr", "globals", "locals", "vars",
        "dir", "breakpoint", "exit", "quit", "apply", "reload", "type", "super", "property",
        "classmethod", "staticmethod", "map", "filter", "reduce", "iter", "next", "memoryview",
        "help", "print", "callable", "__build_class__"
    }
)  # fmt: skip

_DANGEROUS_NAMES: Final = frozenset(
    {
        ("numpy", "load"), ("numpy", "fromfile"), ("numpy", "loadtxt"), ("numpy", "genfromtxt"),
        ("numpy", "memmap.tofile"), ("numpy", "save"), ("numpy", "savetxt"), ("torch", "load"),
        ("torch", "save"), ("torch", "compile"), ("torch.storage", "_load_from_bytes"),
        ("joblib", "load"), ("joblib", "dump"), ("joblib.numpy_pickle", "load"),
        ("codecs", "open"), ("_codecs", "lookup"), ("pandas", "read_pickle"), ("pandas", "eval"),
        ("copyreg", "add_extension"), ("copyreg", "pickle"), ("uuid", "_get_command_stdout"),
        ("_aix_support", "_read_cmd_output"), ("_osx_support", "_read_output"),
        ("_pyrepl.pager", "pipe_pager"), ("torch", "from_file"), ("torch", "classes"),
    }
)  # fmt: skip


def _acts(module: str, name: str) -> bool:
    parts = module.split(".")
    if any(".".join(parts[: end + 1]) in DANGEROUS_MODULES for end in range(len(parts))):
        return True
    if module in ("builtins", "__builtins__"):
        return name.split(".", maxsplit=1)[0] in _DANGEROUS_BUILTINS or "." in name
    if (module, name) in _DANGEROUS_NAMES:
        return True
    # Protocol 4 follows dots: `torch` and `serialization.os.system` reach os.system.
    dotted = name.split(".")
    if any(part.startswith("__") and part.endswith("__") for part in dotted):
        return True
    return len(dotted) > 1 and any(part in DANGEROUS_MODULES for part in dotted)


_OPENS_FILES: Final = frozenset({("numpy", "memmap"), ("numpy.core.memmap", "memmap")})


def grade_global(node: Global) -> tuple[Grade, str]:
    """The grade of mentioning a name, which imports it, and why."""
    if node.opcode == "EXT":
        return Grade.UNKNOWN, "a name from the importing process's extension registry"
    if node.module is None or node.name is None:
        return Grade.DANGEROUS, "the name is computed while the pickle is read"
    if modern(node) in DATA_NAMES and modern(node) != ("builtins", "type"):
        return Grade.DATA, ""
    if _acts(*modern(node)):
        return Grade.DANGEROUS, "can run code, or reach files or the network"
    return Grade.UNKNOWN, "importing it runs its module; what it does is not known"


def _is_plain(call: Call) -> bool:
    """Whether a rule knows that the call, and what later changes its result, only makes data."""
    if not isinstance(call.function, Global) or call.keywords is not None:
        return False
    rule = PLAIN_CALLS.get(modern(call.function))
    return rule is not None and rule.accepts(call)


def grade_call(call: Call) -> tuple[Grade, str]:
    """The grade of a call, and why."""
    function = call.function
    if isinstance(function, PersistentId):
        return Grade.UNKNOWN, "what is called is outside of the pickle"
    if not isinstance(function, Global):
        return Grade.DANGEROUS, "what is called is itself the result of a call"
    if isinstance(call.result, Call):
        return grade_call(call.result)
    if call.result is not NotImplemented or _is_plain(call):
        return Grade.DATA, ""
    if is_nested_file(call):
        return Grade.DATA, "loads the bytes it is given, which are scanned as a file"
    if modern(function) in _OPENS_FILES:
        return Grade.DANGEROUS, "opens and creates files"
    if modern(function) in DATA_NAMES:
        return Grade.UNKNOWN, "these arguments are not known to build data only"
    return grade_global(function)


def is_nested_file(call: Call) -> bool:
    """Whether the call is ``torch.storage._load_from_bytes`` of a byte string in the pickle."""
    if call.path != "torch.storage._load_from_bytes" or len(call.arguments) != 1:
        return False
    (given,) = call.arguments
    return (
        call.keywords is None and isinstance(given, (bytes, Blob)) and as_bytes(given) is not None
    )


def grade_effect(effect: Effect) -> tuple[Grade, str]:
    """The grade of an opcode that changes an object which is not plain data, and why.

    What it does to the result of a call that has a grade of its own is part of that grade.
    """
    target: Value = effect.target
    if isinstance(target, Global):
        return Grade.DANGEROUS, f"changes {target.path} itself"
    if isinstance(target, Call):
        return _grade_change(effect, target)
    if isinstance(target, DictNode):
        return Grade.UNKNOWN, "sets attributes that an unpickler may call"
    return Grade.UNKNOWN, "changes an object from outside the pickle"


def _grade_change(effect: Effect, target: Call) -> tuple[Grade, str]:
    grade, reason = grade_call(target)
    if grade != Grade.DATA:
        return grade, reason
    rule = PLAIN_CALLS.get(modern(target.function)) if isinstance(target.function, Global) else None
    allowed = rule.changes if rule is not None else ()
    # An attribute of the object may be what an unpickler calls for the next opcode.
    if effect.opcode not in allowed or (
        effect.opcode == "BUILD" and not (rule and _is_plain_state(target, rule))
    ):
        return Grade.UNKNOWN, f"{effect.opcode} of such an object can call what the pickle chooses"
    return Grade.DATA, ""


def _is_plain_state(target: Call, rule: Rule) -> bool:
    """Whether an object was built once, as its rule allows, with attributes that no unpickler calls."""
    if len(target.state) != 1:
        return False
    (state,) = target.state
    if rule.slots and isinstance(state, tuple) and len(state) == 2 and state[0] is None:
        state = state[1]
    if not isinstance(state, rule.states) or (rule.plain is not None and not rule.plain(target)):
        return False
    if isinstance(state, DictNode):
        keys: list[Any] = [key for key, _ in state.pairs]
        return all(isinstance(key, str) and not key.startswith("__") for key in keys)
    return True
