"""Code in a model's files: pickles, Python, native code, and settings in JSON that load code.

The format cannot execute anything, but other files of a folder can. A file is judged by its name
*and* by its bytes, so that a pickle called `weights.safetensors`, or a valid safetensors file that
ends in a zip archive which ``python FILE`` would run, is found too.

Findings are evidence; a policy decides what is allowed. Nothing is executed, imported or unpickled;
JSON is read, templates are only hashed.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickletools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ...errors import quote
from ...storage import DescriptorSource
from ..errors import TrustError
from ..files import open_regular

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ...storage.source import Source

__all__ = ["FINDING_KINDS", "Finding", "examine_file", "examine_source"]

FINDING_KINDS: Final = (
    "pickle", "python", "native", "auto_map", "trust_remote_code", "remote_kernel", "template",
    "polyglot", "code", "unknown", "unreadable", "special",
)  # fmt: skip
"""Every kind of finding; ``template`` is the only one that is not dangerous in itself.

``code`` is code of any other kind; ``unknown`` is a file that could not be judged. Both come from an
examiner that is handed in (`safeweights.reports.admission`): other formats are not read here.
"""

_PICKLE_NAMES = re.compile(
    r".*\.(bin|pt|pth|ckpt|pkl|pickle|joblib|dill|dat|npy|npz|pdparams|model_state|t7|nemo|mar)",
    re.IGNORECASE | re.DOTALL,
)
_PYTHON_NAMES = re.compile(r".*\.(py|pyc|pyo|pyw|pyz|pth|ipynb|egg|whl)", re.IGNORECASE | re.DOTALL)
_NATIVE_NAMES = re.compile(
    r".*\.(so|so\.[0-9.]+|dll|dylib|pyd|exe|sh|bat|cmd|ps1|cu)", re.IGNORECASE | re.DOTALL
)
_TEMPLATE_NAMES = re.compile(r".*\.(jinja|jinja2|j2)", re.IGNORECASE | re.DOTALL)
_PICKLE_HEAD = re.compile(rb"\x80[\x02-\x05]|\x80\x00\x80")
_NATIVE_HEADS = (b"\x7fELF", b"MZ", b"\xcf\xfa\xed\xfe", b"\xce\xfa\xed\xfe", b"#!")
_ZIP_END: Final = b"PK\x05\x06"
_ZIP_TAIL: Final = 22 + 65535
_MAX_JSON: Final = 64 << 20
_HEAD: Final = 4096


@dataclass(frozen=True)
class Finding:
    """Something in a file that a policy decides about.

    Attributes:
        kind: One of `FINDING_KINDS`.
        file: Its name, relative to the folder.
        detail: What was found, in words, safe to show.
        sha256: Of a template's text.
    """

    kind: str
    file: str
    detail: str
    sha256: str | None = None


def examine_file(path: str, name: str) -> Iterator[Finding]:
    """What runs code, or can, in the file at `path`, called `name`.

    Raises:
        OSError: As the operating system has it.
    """
    try:
        with open_regular(path) as (descriptor, _):
            source = DescriptorSource(os.dup(descriptor), path, mapped=False)
    except TrustError as error:
        yield Finding("unreadable", name, error.message)
        return
    yield from examine_source(source, name)


def examine_source(source: Source, name: str) -> Iterator[Finding]:
    """What runs code, or can, in a file called `name`, whose bytes are `source`.

    Cost: the first 4 KiB and the last 64 KiB; all of JSON and of templates, up to 64 MiB.

    Raises:
        VerificationError: `source` is a verified one, and the file was changed.
        OSError: As the operating system has it.
    """
    head = source.read(0, min(source.size, _HEAD))
    length = min(source.size, _ZIP_TAIL)
    tail = source.read(source.size - length, length)
    yield from _by_name(name)
    yield from _by_bytes(name, head, tail, archive=_is_archive(source, tail))
    is_json = name.lower().endswith(".json")
    if not is_json and not _TEMPLATE_NAMES.fullmatch(name):
        return
    if source.size > _MAX_JSON:
        yield Finding("unreadable", name, f"longer than {_MAX_JSON} bytes")
    elif is_json:
        yield from _by_json(name, source.read(0, source.size))
    else:
        yield _template(name, source.read(0, source.size), name)


def _by_name(name: str) -> Iterator[Finding]:
    if _PYTHON_NAMES.fullmatch(name):
        yield Finding("python", name, "Python code")
    elif _PICKLE_NAMES.fullmatch(name):
        yield Finding("pickle", name, "the name of a pickle-based file")
    elif _NATIVE_NAMES.fullmatch(name):
        yield Finding("native", name, "the name of a program or library")


def _is_archive(source: Source, tail: bytes) -> bool:
    """Whether Python's zip readers would find an archive at the end of the file.

    They take the last end record there is, and look for the directory just before it. Weights hold
    the four bytes of an end record by chance once in 65,000 files; those of a directory in the
    right place as well, never.
    """
    at = tail.rfind(_ZIP_END)
    if at < 0 or len(tail) < at + 22:
        return False
    length = int.from_bytes(tail[at + 12 : at + 16], "little")
    begin = source.size - len(tail) + at - length
    if length in {0, 0xFFFFFFFF} or begin < 0:  # an empty archive, or a zip64 directory elsewhere
        return length == 0xFFFFFFFF
    return source.read(begin, 4) == b"PK\x01\x02"


def _is_text_pickle(head: bytes) -> bool:
    """Whether `head` are the opcodes of a protocol 0 pickle, up to one that names a global.

    Text fails at its first letter that is no opcode. `genops` only takes apart; it runs nothing.
    """
    try:
        for opcode, _, _ in pickletools.genops(head):
            if opcode.name in {"GLOBAL", "INST"}:
                return True
    except ValueError as error:
        # Nothing but opcodes for as long as was looked: not text either.
        return len(head) == _HEAD and "exhausted" in str(error)
    return False


def _by_bytes(name: str, head: bytes, tail: bytes, *, archive: bool) -> Iterator[Finding]:
    # A safetensors file begins with a length: one of 640 has the first bytes of a pickle, one of
    # 23117 those of a program. With a length below 16 MiB the zeros after it end both.
    plain = head[3:8] == bytes(5) and head[8:9] == b"{"
    if archive:
        if not head.startswith(b"PK\x03\x04"):
            yield Finding("polyglot", name, "ends in a zip archive that Python would run")
        elif not _PICKLE_NAMES.fullmatch(name):
            yield Finding("pickle", name, "is a zip archive, as PyTorch's pickles are")
    if plain:
        return
    pickled = _PICKLE_HEAD.match(head) or (tail.endswith(b".") and _is_text_pickle(head))
    if pickled and not _PICKLE_NAMES.fullmatch(name):
        yield Finding("pickle", name, "begins like a pickle")
    if head.startswith(_NATIVE_HEADS):
        yield Finding("native", name, "begins like a program")


def _by_json(name: str, data: bytes) -> Iterator[Finding]:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        yield Finding("unreadable", name, f"not JSON: {type(error).__name__}")
        return
    modules = name.rpartition("/")[2] == "modules.json"  # of sentence-transformers
    for key, value in _settings(document):
        if key == "auto_map" and value:
            yield Finding("auto_map", name, f"auto_map names code: {_shown(value)}")
        elif key == "type" and modules and not str(value).startswith("sentence_transformers."):
            yield Finding("auto_map", name, f"a module of another package: {_shown(value)}")
        elif key == "trust_remote_code" and value:
            yield Finding("trust_remote_code", name, "trust_remote_code is set")
        elif key.lstrip("_").startswith("attn_implementation") and "/" in str(value):
            yield Finding("remote_kernel", name, f"{quote(key)} names a kernel: {_shown(value)}")
        elif key == "chat_template" and isinstance(value, str):
            yield _template(name, value.encode("utf-8", "surrogatepass"), f"{name}#chat_template")
        elif key == "chat_template" and value:
            text = json.dumps(value, sort_keys=True).encode()
            yield _template(name, text, f"{name}#chat_template")


def _settings(document: Any) -> Iterator[tuple[str, Any]]:
    """Every key and value at any depth; without recursion."""
    pending = [document]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            yield from value.items()
            pending += value.values()
        elif isinstance(value, list):
            pending += value


def _template(name: str, text: bytes, place: str) -> Finding:
    digest = hashlib.sha256(text).hexdigest()
    return Finding("template", name, f"the template {quote(place)}", digest)


def _shown(value: Any) -> str:
    return quote(json.dumps(value, ensure_ascii=True), 100)
