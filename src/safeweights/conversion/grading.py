"""How dangerous a name in a pickle is.

Only a list of what is known to be harmless can make a file clean: `TENSOR_NAMES` are the names that
PyTorch, NumPy and joblib write to describe tensors and plain data. Everything else is at best
unknown, and the list of the known dangerous only says how loudly to report it. A scanner that works
the other way round is passed by the first name it has not heard of, which is how every published
bypass of today's scanners works.

Pure data and pure functions.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from ..derived.element_types import TORCH_DTYPES, TORCH_STORAGES
from ..format.dtypes import DTYPES
from .foreign import ALL_CONSTRUCTORS
from .pickles.nodes import Call, Effect, Global, Value
from .pickles.object_nodes import as_bytes

__all__ = [
    "DANGEROUS_MODULES",
    "NESTED_LOADERS",
    "Grade",
    "grade_call",
    "grade_effect",
    "grade_global",
]


class Grade(IntEnum):
    """What executing something can do; larger is worse."""

    TENSORS = 0
    """Builds tensors, arrays and plain data, nothing else."""
    UNKNOWN = 1
    """Code that nothing here knows would run."""
    DANGEROUS = 2
    """Can run commands, load code, or reach files and the network."""

    @property
    def label(self) -> str:
        """The grade in words."""
        return ("builds tensors only", "unknown", "known dangerous")[self]


_STORAGE_MODULES: Final = ("torch", "torch.cuda", "torch.storage")

TENSOR_NAMES: Final = frozenset(
    {
        *ALL_CONSTRUCTORS,
        *((module, name) for module in _STORAGE_MODULES for name in TORCH_STORAGES),
        *(
            (module, name.replace("Storage", "Tensor"))  # what the tar file notes beside a tensor
            for module in ("torch", "torch.cuda")
            for name in TORCH_STORAGES
        ),
        *((module, "UntypedStorage") for module in _STORAGE_MODULES),
        *(("torch", name) for name in TORCH_DTYPES),
        *(("ml_dtypes", row.numpy) for row in DTYPES.values() if row.ml_dtypes),
        ("torch", "Tensor"),
        ("torch._tensor", "Tensor"),
        ("torch.nn.parameter", "Buffer"),
        ("torch", "per_tensor_affine"),
        ("torch", "per_channel_affine"),
        ("numpy", "ndarray"),
        ("numpy", "memmap"),
        ("numpy.matrixlib.defmatrix", "matrix"),
        ("joblib.numpy_pickle", "NumpyArrayWrapper"),
        ("builtins", "object"),
        ("__builtin__", "object"),
        ("builtins", "int"),
        ("builtins", "float"),
        ("builtins", "str"),
        ("builtins", "bool"),
    }
)
"""Names that are known to do nothing but build tensors and plain data."""

NESTED_LOADERS: Final = frozenset(
    {
        ("torch.storage", "_load_from_bytes"), ("torch", "load"), ("torch.serialization", "load"),
        ("pickle", "loads"), ("_pickle", "loads"), ("cPickle", "loads"), ("dill", "loads"),
        ("cloudpickle", "loads"), ("dill._dill", "loads"), ("io", "BytesIO"), ("_io", "BytesIO"),
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


def _is_dangerous(module: str, name: str) -> bool:
    parts = module.split(".")
    if any(".".join(parts[: end + 1]) in DANGEROUS_MODULES for end in range(len(parts))):
        return True
    if module in ("builtins", "__builtin__", "__builtins__"):
        return name.split(".", maxsplit=1)[0] in _DANGEROUS_BUILTINS or "." in name
    if (module, name) in _DANGEROUS_NAMES or "__" in name:
        return True
    # Protocol 4 walks dotted names: `torch` and `serialization.os.system` reach os.system.
    return "." in name and any(part in DANGEROUS_MODULES for part in name.split("."))


def grade_global(node: Global) -> tuple[Grade, str]:
    """The grade of importing a name, and why."""
    if node.opcode == "EXT":
        return Grade.UNKNOWN, "a name from the importing process's extension registry"
    if node.module is None or node.name is None:
        return Grade.DANGEROUS, "the name is computed while the pickle is read"
    if (node.module, node.name) in TENSOR_NAMES:
        return Grade.TENSORS, ""
    if _is_dangerous(node.module, node.name):
        return Grade.DANGEROUS, "can run code, or reach files or the network"
    return Grade.UNKNOWN, "importing it runs its module; what it does is not known"


def grade_call(call: Call) -> tuple[Grade, str]:
    """The grade of a call, and why."""
    if call.path == "torch.storage._load_from_bytes" and len(call.arguments) == 1:
        given = call.arguments[0]
        if as_bytes(given) is not None and not isinstance(given, str):
            return Grade.TENSORS, "loads the bytes it is given, which are scanned as a file"
    if isinstance(call.function, Global):
        return grade_global(call.function)
    return Grade.DANGEROUS, "what is called is itself the result of a call"


def grade_effect(effect: Effect) -> tuple[Grade, str]:
    """The grade of an opcode that changes an object which is not plain data, and why."""
    target: Value = effect.target
    if isinstance(target, Global):
        return Grade.DANGEROUS, f"changes {target.path} itself"
    if isinstance(target, Call):
        return grade_call(target)
    return Grade.UNKNOWN, "changes an object from outside the pickle"
