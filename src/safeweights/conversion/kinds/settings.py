"""Configuration files: settings that make a loader import, build or download code.

JSON is read with the standard library, YAML lexically: a full YAML parser would build what a hostile file
asks for, and the settings looked for are plain words. Both may warn of a setting that no program reads.
"""

from __future__ import annotations

import json
import re
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from ...errors import quote
from ..grading import Grade
from ..json_text import DuplicateKeyError, parse_json
from ..keras_settings import class_findings
from .concerns import Concern, Power, Template
from .templates import MAX_TEMPLATE, template_concerns

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["MAX_TEXT", "json_concerns", "yaml_concerns"]

MAX_TEXT: Final = 64 << 20
"""Bytes of a configuration that are read; the largest tokenizers in use have 35 MB."""

_MAX_VALUES: Final = 4_000_000
"""Values in a configuration; the largest tokenizers in use have half as many. That many empty arrays take
2 seconds and 350 MB to parse, 64 MiB of them five times as much."""

_PIPELINES: Final = frozenset(
    {"diffusers", "transformers", "onnxruntime", "k_diffusion", "flax", "optimum", "null", "None"}
)
_DIFFUSERS_PARTS: Final = frozenset({
    "ace_step", "alt_diffusion", "audio_diffusion", "audioldm2", "blip_diffusion", "deepfloyd_if",
    "flux", "ideogram4", "kandinsky", "kolors", "latent_diffusion", "ltx", "ltx2", "marigold",
    "paint_by_example", "shap_e", "spectrogram_diffusion", "stable_audio", "stable_audio_3",
    "stable_diffusion", "stable_diffusion_safe", "unclip", "unidiffuser", "versatile_diffusion",
    "vq_diffusion", "wuerstchen",
})  # fmt: skip
"""Modules of ``diffusers.pipelines`` with classes of parts, such as safety checkers. Such a name is looked
up there first (diffusers 0.42, `pipeline_loading_utils`)."""
_TEMPLATES: Final = frozenset({"chat_template", "default_chat_template"})
_SENTENCE_MODULES: Final = "sentence_transformers."
_KERAS_KEYS: Final = frozenset({"class_name", "keras_version", "modelTopology"})
"""Keys of the architecture of a Keras model, which `model_from_json` and TensorFlow.js build."""
_IMPORTED: Final = {
    "activation_function": ("torch.nn.",), "activation_fn": ("torch.nn.",),
    "sbert_ce_default_activation_function": ("torch.nn.",),
    "tokenizer_class": (_SENTENCE_MODULES, "transformers."),
}  # fmt: skip
"""Settings of sentence-transformers that are dotted names to import -> those that it has itself."""
_CODE_FILES: Final = (".py", ".pyc", ".so", ".pyd")
"""How files end that Python imports."""


def json_concerns(data: bytes, name: str) -> Iterator[Concern | Template]:
    """The settings of a JSON file that load code, and its templates; of ``.jsonl``, those of every line.

    Args:
        data: All of the file.
        name: The file's name, which says whose settings these are.
    """
    base = name.replace("\\", "/").rpartition("/")[2].casefold()
    lines = base.endswith((".jsonl", ".ndjson"))
    if sum(map(data.count, (b",", b"[", b"{"))) > _MAX_VALUES:
        yield Concern("unread", "text-size", f"it has more than {_MAX_VALUES:,} values: not read")
        return
    try:
        if lines:
            document: Any = [parse_json(line) for line in data.splitlines() if line.strip()]
        else:
            document = parse_json(data)
    except DuplicateKeyError as error:
        message = f"{error}: readers take different values"
        yield Concern("unread", "json-duplicate", message)
        return
    except (ValueError, RecursionError) as error:
        yield Concern("unread", "json", _why_not_json(error, whole=not lines))
        return
    if base in {"model_index.json", "modular_model_index.json"} and isinstance(document, dict):
        yield from _pipeline(document)
    yield from _keras(document)
    templates = 0
    for key, value in _pairs(document):
        if key not in _TEMPLATES:
            yield from _setting(key, value, base)
            continue
        if value:
            text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
            yield Template(f"{base}#{key}", text.encode("utf-8", "surrogatepass"))
        for text in _texts(value):
            templates += len(text)
            if templates > MAX_TEMPLATE:
                message = f"its templates have more than {MAX_TEMPLATE:,} characters: not read"
                yield Concern("unread", "template-size", message)
                return
            yield from template_concerns(text, f"{base}#{key}")


def _why_not_json(error: ValueError | RecursionError, *, whole: bool) -> str:
    """What is wrong with a text; `whole` says that it is the file, not one of its lines."""
    if isinstance(error, RecursionError):
        return "it is not read: its objects and arrays are nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "it is not JSON: its text is not UTF-8"
    if isinstance(error, json.JSONDecodeError):
        where = f" (line {error.lineno}, column {error.colno})" if whole else ""
        return f"it is not JSON: {error.msg}{where}"
    return "it is not read: it has a number with too many digits"


def _setting(key: str, value: Any, base: str) -> Iterator[Concern]:
    where = quote(key, 60)
    if key == "auto_map" and value:
        yield Concern("acts", "auto-map", f"{where} names Python code to load: {_shown(value)}")
    elif key == "auto_mapping" and value and not _is_of_transformers(value):
        yield Concern("acts", "auto-map", f"{where} names a module to import: {_shown(value)}")
    elif key in {"trust_remote_code", "use_kernels"} and value:
        yield Concern("acts", key.replace("_", "-"), f"{where} is set: code is downloaded and run")
    elif key in {"custom_pipeline", "custom_pipelines", "loader_module", "code_revision"} and value:
        yield Concern("acts", "custom-code", f"{where} names code to load: {_shown(value)}")
    elif key.lstrip("_").startswith("attn_implementation") and "/" in str(value):
        yield Concern(
            "acts", "remote-kernel", f"{where} names a kernel to download: {_shown(value)}"
        )
    elif key == "megatron_core" and value and not f"{value}.".startswith("megatron.core."):
        yield Concern("acts", "custom-code", f"{where} names a module to import: {_shown(value)}")
    elif key == "model_file" and str(value).endswith(_CODE_FILES):
        yield Concern("acts", "custom-code", f"{where} names code to load: {_shown(value)}")
    elif key in _IMPORTED and "." in str(value) and not str(value).startswith(_IMPORTED[key]):
        yield Concern("acts", "custom-code", f"{where} names a class to import: {_shown(value)}")
    elif key in {"_target_", "class_path"}:
        yield Concern("acts", "target", f"{where} names a class to build: {_shown(value)}")
    elif key == "_class_name" and isinstance(value, list):
        yield Concern("acts", "custom-code", f"{where} names a module of its own: {_shown(value)}")
    elif key == "type" and base == "modules.json" and not str(value).startswith(_SENTENCE_MODULES):
        yield Concern("acts", "custom-code", f"a module of another package: {_shown(value)}")


def _is_of_transformers(mapping: Any) -> bool:
    """Whether PEFT finds the class of a base model in transformers itself, which it does without asking."""
    library = mapping.get("parent_library") if isinstance(mapping, dict) else None
    return isinstance(library, str) and library.partition(".")[0] == "transformers"


def _keras(document: Any) -> Iterator[Concern]:
    """The classes of a model of Keras, where a document is one."""
    if isinstance(document, dict) and document.keys() & _KERAS_KEYS:
        for grade, reason in class_findings(document):
            power: Power = "acts" if grade == Grade.DANGEROUS else "unknown"
            yield Concern(power, "keras-class", reason)


def _texts(value: Any) -> Iterator[str]:
    """A template, or every text in a list of named ones."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        yield from (text for _, text in _pairs(value) if isinstance(text, str))
        if isinstance(value, list):
            yield from (text for text in value if isinstance(text, str))


def _pipeline(document: dict[str, Any]) -> Iterator[Concern]:
    """The parts of a diffusers pipeline: [library, class], or a module of the folder itself.

    In ``modular_model_index.json``, where a part comes from is the third item.
    """
    for part, value in document.items():
        if part.startswith("_") or not (isinstance(value, list) and len(value) in {2, 3}):
            continue
        for library in (value[0], *_hints(value[2:])):
            if library is not None and not _is_known(str(library)):
                message = f"the part {quote(part, 60)} is loaded by the module {_shown(library)}"
                yield Concern("acts", "custom-code", message)


def _hints(sources: list[Any]) -> Iterator[Any]:
    """The libraries of type hints."""
    for source in sources:
        hint = source.get("type_hint") if isinstance(source, dict) else None
        yield hint[0] if isinstance(hint, list) and hint else hint


def _is_known(library: str) -> bool:
    return library in _DIFFUSERS_PARTS or library.partition(".")[0] in _PIPELINES


_YAML_TAGS = re.compile(
    r"!!?(?:python/|apply(?:ref)?:|new:|name:|module:|include:|ref:|tuple)\S*|!<[^>\s]*>?"
    r"|![^\s!]*%[0-9a-fA-F]{2}\S*|^%TAG.*",
    re.MULTILINE,
)
"""Tags that build objects; tags that are spelt with escapes, and handles that stand for other tags."""
_KEYS: Final = (
    r"(_target_|class_path|loader_module|trust_remote_code|custom_pipeline|code_paths?|auto_map)"
)
_YAML_KEYS = re.compile(rf"""['"]?{_KEYS}['"]?\s*:\s*(\S[^\n]*)""")
_COMMENTS = re.compile(r"(?:^|(?<=\s))#[^\n]*")
_COMMENT_BEHIND = re.compile(r"\s#.*")
_NEXT_LINE = re.compile(r"(?:[ \t]*\n)+([ \t]*)[^\s#]")
_YAML_ANCHORED = re.compile(rf"""&[^\s&]+\s+(?:!\S*\s+)?['"]?{_KEYS}\b""")
"""Such a key that gets a name, by which it can stand elsewhere."""
_BREAKS = re.compile("\r\n?|[\x85\u2028\u2029]")
"""What ends a line in YAML, besides a newline."""
_FOLDED = re.compile(r"\\\n[ \t]*")
_MARKS: Final = (
    (b"\xff\xfe\0\0", "utf-32"), (b"\0\0\xfe\xff", "utf-32"), (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)  # fmt: skip
_ESCAPE = re.compile(r"\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8})")
_HARMLESS: Final = frozenset({"false", "null", "~", "no", "off", "''", '""'})


def yaml_concerns(data: bytes, name: str) -> Iterator[Concern]:
    """The tags and settings of a YAML file that build or load code.

    Args:
        data: All of the file.
        name: What to call it.
    """
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    text = _BREAKS.sub("\n", data.decode(encoding, "replace"))
    plain = _ESCAPE.sub(_escaped, _FOLDED.sub("", text))
    if "{{" in plain or "{%" in plain:
        yield from template_concerns(plain, name)
    for match in _YAML_ANCHORED.finditer(plain):
        message = f"the key {quote(match[1], 60)}, which names code to load, gets a name of its own"
        yield Concern("acts", "custom-code", message)
    for match in _YAML_TAGS.finditer(plain):
        message = f"{quote(name, 200)} has the tag {quote(match[0], 60)}, which builds an object"
        yield Concern("acts", "yaml-tag", message)
        break
    # A comment may stand between a key and its colon; what looks like one may be text.
    texts = {plain: None, _COMMENTS.sub("", plain): None}
    for match in chain.from_iterable(map(_YAML_KEYS.finditer, texts)):
        value = _value(match)
        own = match[1] == "loader_module" and value.startswith(
            "mlflow."
        )  # a loader of MLflow itself
        if value not in _HARMLESS and not own:
            message = f"{quote(match[1], 60)} names code to load: {quote(match[2], 100)}"
            yield Concern("acts", "target" if match[1] == "_target_" else "custom-code", message)


def _value(match: re.Match[str]) -> str:
    """The scalar behind a key, in lower case, without comment; with dots if the next line continues it."""
    written = match[2].rstrip()
    value = _COMMENT_BEHIND.sub("", written).rstrip(",} ")
    if len(value) == len(written):  # neither a comment nor a bracket ends it
        column = match.start() - match.string.rfind("\n", 0, match.start()) - 1
        following = _NEXT_LINE.match(match.string, match.end())
        if following is not None and len(following[1]) > column:
            value += " ..."
    return value.lower()


def _escaped(match: re.Match[str]) -> str:
    code = match[0][2:]
    return chr(int(code, 16) % 0x110000)


def _pairs(document: Any) -> Iterator[tuple[str, Any]]:
    """Every key and value at any depth; without recursion."""
    pending = [document]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            yield from value.items()
            pending += value.values()
        elif isinstance(value, list):
            pending += value


def _shown(value: Any) -> str:
    return quote(json.dumps(value, ensure_ascii=True), 100)
