"""The kinds of files that come with models: how each is recognised, and what loading it can do.

Pure data and one function over bytes; reads no file. The facts about what a kind can execute are those of
its own documentation, named where they are not common knowledge.
"""

from __future__ import annotations

import re
from typing import Final, Literal, NamedTuple

__all__ = ["DOCUMENTS", "KINDS", "KIND_HEAD", "Kind", "by_name", "recognize"]

KIND_HEAD: Final = 4096
"""Bytes of the beginning that `recognize` wants."""

KindPower = Literal["data", "reads", "acts", "unknown"]


class Kind(NamedTuple):
    """One kind of file.

    Attributes:
        id: A stable identifier, e.g. ``"onnx"``.
        name: What to call it in a sentence, with its article.
        power: What loading such a file can do: ``"data"`` builds data only; ``"reads"`` depends on what
            is in it, which `examine` reads; ``"acts"`` runs code; ``"unknown"`` is not read here.
        can: What it can do, as the end of a sentence; empty for data.
        advice: What to do with it instead.
    """

    id: str
    name: str
    power: KindPower
    can: str = ""
    advice: str = ""

    @property
    def description(self) -> str:
        """What it is, what it can do, and what to do with it, as the end of a sentence."""
        can = f", which can {self.can}" if self.can else ""
        return f"{self.name}{can}{f': {self.advice}' if self.advice else ''}"


_CONVERT: Final = "`safeweights convert` reads it without executing it"
_ONNX_ADVICE: Final = "load it only with the files that came with it, without custom operators"

_TABLE: Final = (
    # weights and arrays
    Kind("safetensors", "a safetensors file", "data"),
    Kind("gguf", "a GGUF file (llama.cpp)", "reads", "carry a chat template that is executed", _CONVERT),
    Kind("ggml", "an old GGML file (llama.cpp before GGUF)", "data"),
    Kind("npy", "a NumPy array", "reads", "hold pickled objects", _CONVERT),
    Kind("hdf5", "an HDF5 file (Keras weights, PyTables)", "reads",
         "hold a Keras configuration with code, or pickled objects", _CONVERT),
    Kind("pickle", "a Python pickle", "reads", "run any code", _CONVERT),
    Kind("torch-zip", "a PyTorch checkpoint (zip)", "reads", "run any code through its pickle", _CONVERT),
    Kind("torch-package", "a torch.package archive", "acts", "import the Python code in it"),
    Kind("torch-export", "a torch.export program (.pt2)", "unknown",
         "hold pickled constants and custom operators", "export the weights as safetensors"),
    Kind("torchscript", "a TorchScript module", "reads", "run the code in it when it is called", _CONVERT),
    Kind("executorch", "an ExecuTorch program (.pte)", "unknown",
         "call custom kernels and delegates", "run it only in its own runtime"),
    Kind("tflite", "a TensorFlow Lite model", "unknown",
         "call custom operators and the flex delegate", "run it only in its own runtime"),
    Kind("keras", "a Keras model (.keras)", "reads", "hold Lambda layers and classes by name", _CONVERT),
    Kind("saved-model", "a TensorFlow SavedModel graph", "reads",
         "read and write files and call Python functions", "export the weights as safetensors"),
    Kind("tensorflow-fingerprint", "the fingerprint of a SavedModel", "data"),
    Kind("onnx", "an ONNX model", "reads", "load external files and custom operators", _ONNX_ADVICE),
    Kind("coreml", "a Core ML model", "unknown", "name custom layers", "export the weights as safetensors"),
    Kind("openvino", "an OpenVINO model (XML)", "unknown", "name extension libraries"),
    Kind("tensorrt", "a TensorRT engine", "acts",
         "run plugin code; engines are trusted by their runtime", "build it from ONNX yourself"),
    Kind("nemo", "a NeMo archive (tar)", "unknown",
         "name classes to build in its model_config.yaml, and holds a pickled checkpoint",
         "extract it, then check what is in it"),
    Kind("mar", "a TorchServe archive (.mar)", "acts", "run the handler in it"),
    Kind("skops", "a skops model", "unknown", "name types to build", "load it with skops' trusted list"),
    Kind("age", "an encrypted file (age)", "unknown", "hold anything", "say who opens it: -i"),
    Kind("lightgbm", "a LightGBM model (text)", "data"),
    Kind("xgboost", "an XGBoost model", "data"),
    Kind("catboost", "a CatBoost model", "data"),
    Kind("pmml", "a PMML model (XML)", "unknown", "name functions of its evaluator"),
    Kind("mlflow", "an MLflow model description", "reads", "name a Python module that loads the model"),
    Kind("rds", "an R object (.rds, .RData)", "acts", "run code through promises when it is read"),
    Kind("torch7", "a Torch7 file (.t7)", "acts", "hold Lua bytecode"),
    Kind("llamafile", "a llamafile", "acts", "run: it is a program", "extract the GGUF in it"),
    Kind("sentencepiece", "a SentencePiece model", "data"),
    Kind("tensorflow-v2", "the index of a TensorFlow checkpoint", "data"),
    Kind("flax-msgpack", "a Flax checkpoint (msgpack)", "data"),
    Kind("paddle", "a Paddle checkpoint", "reads", "run any code through its pickle", _CONVERT),
    Kind("raw", "raw data of tensors that another file describes", "data"),
    Kind("apple-double", "attributes that macOS keeps beside a file", "data"),
    # programs and code
    Kind("program", "a program or a library", "acts", "run"),
    Kind("script", "a script (#!)", "acts", "run"),
    Kind("python", "Python code", "acts", "run when it is imported"),
    Kind("python-bytecode", "compiled Python code", "acts", "run when it is imported"),
    Kind("notebook", "a Jupyter notebook", "acts", "run, and hold active output"),
    Kind("wasm", "a WebAssembly module", "acts", "run"),
    Kind("java", "compiled Java code", "acts", "run"),
    Kind("lua", "Lua code", "acts", "run"),
    Kind("code", "source code", "acts", "run once it is built or called"),
    # containers
    Kind("zip", "a zip archive", "unknown", "hold anything", "extract it, then check what is in it"),
    Kind("tar", "a tar archive", "unknown", "hold anything", "extract it, then check what is in it"),
    Kind("gzip", "a gzip stream", "unknown", "hold anything", "decompress it, then check it"),
    Kind("bzip2", "a bzip2 stream", "unknown", "hold anything", "decompress it, then check it"),
    Kind("xz", "an xz stream", "unknown", "hold anything", "decompress it, then check it"),
    Kind("zlib", "a zlib stream", "unknown", "hold anything", "decompress it, then check it"),
    Kind("zstd", "a Zstandard stream", "unknown", "hold anything", "decompress it, then check it"),
    Kind("lz4", "an LZ4 stream", "unknown", "hold anything", "decompress it, then check it"),
    Kind("7z", "a 7-Zip archive", "unknown", "hold anything", "extract it, then check what is in it"),
    Kind("rar", "a RAR archive", "unknown", "hold anything", "extract it, then check what is in it"),
    # documents
    Kind("json", "JSON text", "reads", "name code to load"),
    Kind("yaml", "YAML text", "reads", "name code to build"),
    Kind("jinja", "a Jinja template", "reads", "reach Python's internals where it is not sandboxed"),
    Kind("text", "text", "data"),
    Kind("empty", "an empty file", "data"),
    Kind("image", "an image", "data"),
    Kind("audio", "a sound file", "data"),
    Kind("video", "a video", "data"),
    Kind("events", "TensorBoard's log of a training", "data"),
    Kind("pdf", "a PDF document", "data"),
    Kind("parquet", "a Parquet table", "reads", "hold a type that old versions of PyArrow unpickle"),
    Kind("arrow", "an Arrow table", "reads", "hold a type that old versions of PyArrow unpickle"),
    Kind("sqlite", "an SQLite database", "data"),
    Kind("xml", "XML text", "reads", "define entities that reach files or grow without end"),
    Kind("html", "a web page", "data", "", "it is probably an error page: download the file again"),
    Kind("lfs", "a git-lfs pointer", "data", "", "it is not the file itself: run `git lfs pull`"),
    Kind("signature", "an OpenSSF model signature", "data"),
    Kind("block-tree", "a block tree of safeweights", "data"),
)  # fmt: skip

KINDS: Final = {kind.id: kind for kind in _TABLE}
"""Identifier -> kind."""

DOCUMENTS: Final = frozenset(
    {"text", "empty", "image", "audio", "video", "events", "pdf", "parquet", "arrow", "sqlite", "xml",
     "html", "lfs", "apple-double"}
)  # fmt: skip
"""Kinds that are no model, nor a setting of one: what is left of a download that failed, for example."""

_HEADS: Final[tuple[tuple[bytes, str], ...]] = (
    (b"age-encryption.org/", "age"), (b"-----BEGIN AGE ENCRYPTED FILE-----", "age"),
    (b"GGUF", "gguf"), (b"lmgg", "ggml"), (b"tjgg", "ggml"), (b"algg", "ggml"),
    (b"\x93NUMPY", "npy"), (b"\x89HDF\r\n\x1a\n", "hdf5"),
    (b"ftrt", "tensorrt"), (b"ptrt", "tensorrt"), (b"CBM1", "catboost"),
    (b"tree\nversion=v", "lightgbm"), (b"binf", "xgboost"), (b"{L\0\0\0\0\0\0\0\x02i", "xgboost"),
    (b"{L\0\0\0\0\0\0\0\x07learner{", "xgboost"),
    (b"\x04\0\0\0\x01\0\0\0\x03\0\0\0V 1", "torch7"),
    (b"RDX2\n", "rds"), (b"RDX3\n", "rds"), (b"RDA2\n", "rds"), (b"RDA3\n", "rds"),
    (b"X\n\0\0\0\x02", "rds"), (b"X\n\0\0\0\x03", "rds"), (b"A\n2\n", "rds"), (b"A\n3\n", "rds"),
    (b"\x7fELF", "program"), (b"\xcf\xfa\xed\xfe", "program"), (b"\xce\xfa\xed\xfe", "program"),
    (b"\xca\xfe\xba\xbe", "java"), (b"\0asm", "wasm"), (b"\x1bLua", "lua"), (b"\x1bLJ", "lua"),
    (b"#!", "script"), (b"!<arch>\n", "program"),
    (b"\x1f\x8b", "gzip"), (b"BZh", "bzip2"), (b"\xfd7zXZ\0", "xz"), (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x04\x22\x4d\x18", "lz4"), (b"7z\xbc\xaf\x27\x1c", "7z"), (b"Rar!\x1a\x07", "rar"),
    (b"\x89PNG\r\n\x1a\n", "image"), (b"\xff\xd8\xff", "image"), (b"GIF87a", "image"),
    (b"GIF89a", "image"), (b"%PDF-", "pdf"), (b"PAR1", "parquet"), (b"ARROW1\0\0", "arrow"),
    (b"SQLite format 3\0", "sqlite"), (b"fLaC", "audio"), (b"OggS", "audio"),
    (b"ID3\x03", "audio"), (b"ID3\x04", "audio"), (b"\x1aE\xdf\xa3", "video"),
    (b"\x89SWTREE\n", "block-tree"), (b"\0\x05\x16\x07\0\x02\0\0", "apple-double"),
    (b"version https://git-lfs", "lfs"),
)  # fmt: skip
_PE: Final = b"MZ"  # programs of Windows; llamafile begins with MZqFpD
_SAFETENSORS = re.compile(rb".{4}\0{4}\{", re.DOTALL).match
_FLATBUFFERS: Final = {b"TFL3": "tflite"}
_PICKLE = re.compile(rb"\x80[\x02-\x05]|\x80\0\x80").match
_TAR = re.compile(rb".{257}ustar[ \0]", re.DOTALL).match
_PYC = re.compile(rb"[^\0].\r\n[\0-\x03]\0\0\0", re.DOTALL).match
_ZLIB: Final = (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")
# Of a record: the length, a checksum of it, and the time and version of the first event.
_EVENTS = re.compile(rb".{2}\0{6}.{4}\x09.{8}\x1a[\x0d-\x0f]brain\.Event:[0-9]", re.DOTALL).match
_CONTROL = re.compile(rb"[\0-\x08\x0b\x0e-\x1f\x7f]").search
_BLANK: Final = b"\xef\xbb\xbf \t\r\n"
_MARKUP = re.compile(rb"<(?:!doctype html|html|head)", re.IGNORECASE).match

_SUFFIXES: Final = (
    (r"py|pyw|pyi|pth\.py|egg|whl|pyz", "python"), (r"pyc|pyo", "python-bytecode"),
    (r"ipynb", "notebook"), (r"lua", "lua"), (r"jar|class", "java"), (r"wasm", "wasm"),
    (r"so|so\.[0-9.]+|dll|dylib|pyd|exe|node|com|scr|msi", "program"),
    (r"sh|bash|zsh|bat|cmd|ps1|vbs|js|mjs|cjs|ts|rb|pl|php|r|jl|c|cc|cpp|cu|h|hpp|m|rs|go|java|mk|cmake",
     "code"),
    (r"jinja2?|j2", "jinja"), (r"ya?ml", "yaml"), (r"json|jsonl|ndjson|webmanifest", "json"),
    (r"nemo", "nemo"), (r"mar", "mar"), (r"rds|rdata|rda", "rds"), (r"t7", "torch7"),
    (r"mlmodel|mlpackage|mlmodelc", "coreml"), (r"engine|plan|trt", "tensorrt"), (r"pmml", "pmml"),
    (r"onnx_data|onnx\.data|data-\d{5}-of-\d{5}", "raw"),
    (r"llamafile", "llamafile"), (r"onnx", "onnx"), (r"tflite", "tflite"), (r"pte", "executorch"),
    (r"pt2", "torch-export"), (r"skops", "skops"), (r"sig", "signature"),
)  # fmt: skip
_BY_SUFFIX: Final = [
    (re.compile(rf".*\.(?:{suffixes})", re.IGNORECASE | re.DOTALL), kind) for suffixes, kind in _SUFFIXES
]  # fmt: skip
_NAMES: Final = {
    "mlmodel": "mlflow", "saved_model.pb": "saved-model", "makefile": "code", "dockerfile": "code",
}  # fmt: skip


def by_name(name: str) -> Kind | None:
    """The kind that programs take a file for by its name, whatever is in it; None where they do not.

    >>> by_name("handler/model.MAR").id
    'mar'
    """
    # A file system that ignores case may give "ſ" for "s"; `lower` does not.
    # Windows drops dots and spaces at the end.
    base = name.replace("\\", "/").rpartition("/")[2].casefold().rstrip(". ")
    if base in _NAMES:
        return KINDS[_NAMES[base]]
    for pattern, kind in _BY_SUFFIX:
        if pattern.fullmatch(base):
            return KINDS[kind]
    return None


def recognize(head: bytes, size: int, name: str = "") -> Kind | None:
    r"""The kind of a file, from its first bytes; its name only tells kinds of text apart.

    Args:
        head: The first `KIND_HEAD` bytes, or all there are.
        size: Bytes of the file.
        name: What the file is called.

    >>> recognize(b"7z\xbc\xaf\x27\x1c" + bytes(26), 32).name
    'a 7-Zip archive'
    """
    found = "empty" if not size else _by_magic(head) or _by_shape(head, size)
    if found is not None:
        return KINDS[found]
    return _text(head, name)


def _by_magic(head: bytes) -> str | None:
    if _SAFETENSORS(head):
        return "safetensors"
    for magic, kind in _HEADS:
        if head.startswith(magic):
            return kind
    if head.startswith(_PE):
        return "llamafile" if head.startswith(b"MZqFpD") else "program"
    if head[4:8] in _FLATBUFFERS:
        return _FLATBUFFERS[head[4:8]]
    if head[4:6] == b"ET" and head[6:8].isdigit():
        return "executorch"
    if head[4:8] == b"ftyp":
        return "video"
    if head[:4] == b"RIFF":
        return {b"WEBP": "image", b"WAVE": "audio"}.get(head[8:12])
    return None


def _by_shape(head: bytes, size: int) -> str | None:
    if head.startswith(b"PK\x03\x04") or (head.startswith(b"PK\x05\x06") and size >= 22):
        return "zip"
    if _TAR(head):
        return "tar"
    if _EVENTS(head):
        return "events"
    if _PICKLE(head):
        return "pickle"
    if head.startswith(_ZLIB):
        return "zlib"
    if _PYC(head) and head[:2] > b"\x33\x0c":  # the magic numbers of Python 3
        return "python-bytecode"
    return None


def _text(head: bytes, name: str) -> Kind | None:
    """The kind of text, by what it begins with and what it is called; None where it is not text."""
    named = by_name(name)
    if _CONTROL(head) or not _is_utf8(head):
        return named if named is not None and named.id != "signature" else None
    start = head.lstrip(_BLANK)
    if _MARKUP(start):
        return KINDS["html"]
    if start.startswith((b"<?xml", b"<net ", b"<PMML")):
        if b"<PMML" in head:
            return KINDS["pmml"]
        return KINDS["openvino" if b"<net " in head and b"<layers" in head else "xml"]
    if named is not None and named.id not in {"onnx", "nemo", "torch-export", "signature"}:
        return named
    if name.casefold().endswith(".pth"):
        return KINDS["python"]  # Python runs the lines of such a file in its own folders
    if start[:1] in {b"{", b"["} and name.casefold().endswith((".json", ".sig")):
        return KINDS["signature" if b"dsseEnvelope" in head else "json"]
    return KINDS["text"]


def _is_utf8(head: bytes) -> bool:
    """Whether bytes are UTF-8, but for a character that the end of `head` cuts."""
    try:
        head.decode()
    except UnicodeDecodeError as error:
        return error.start >= len(head) - 3 and error.reason == "unexpected end of data"
    return True
