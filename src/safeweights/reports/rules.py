"""Every rule that a finding or an error may name: what it means, and what to do.

The identifiers are stable. The rules of the format are those of `safeweights.format.rules`; a test finds
every other one in the source. `docs/rules.md` is written from this table, SARIF carries it.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from ..format.rules import RULES as FORMAT_RULES

__all__ = ["FAMILIES", "RULES", "Rule", "rule_of"]


class Rule(NamedTuple):
    """A rule.

    Attributes:
        meaning: What is the matter, in a sentence or two.
        cure: What to do about it.
    """

    meaning: str
    cure: str


_AGAIN: Final = "Download or copy the file again, and compare its digest with the publisher's."
_WRITER: Final = (
    "Save the model again with a current version of its library, or convert the original file."
)
_SOURCE: Final = (
    "Do not load it with its own library unless you trust the author like a program's author. "
    "`safeweights convert` takes the tensors out without running anything."
)
_LOOK: Final = "Read what it names. Load the model only if you trust it like a program."
_DELETE: Final = (
    "Delete it if the model does not need it, or look at it with its own tools in a sandbox."
)
_INDEX: Final = "Write the index again (`safeweights repair`), or download the whole model again."
_SETTINGS: Final = (
    "Put the model's own config.json beside the weights, or choose the scheme (`--scheme`); see "
    "docs/quantised.md."
)
_LIMITS: Final = (
    "If you trust the file, raise the limit: `safeweights convert --limit NAME=NUMBER`."
)

_FORMAT_CURES: Final = {
    "strict-space": "Load and save the file again; other programs may refuse it.",
    "strict-extra": "Load and save the file again; other programs may refuse it.",
    "metadata-limit": "Store large tables in a file of their own.",
    "extra-limit": "Load and save the file again with a current version of safetensors.",
}


def _sentence(text: str) -> str:
    text = text.removeprefix("(strict) ")
    return f"{text[0].upper()}{text[1:]}."


RULES: Final[dict[str, Rule]] = {
    **{
        name: Rule(_sentence(text), _FORMAT_CURES.get(name, _AGAIN))
        for name, text in FORMAT_RULES.items()
    },
    # ---- safetensors files
    "name-empty": Rule("A tensor has an empty name; few programs can address it.", _WRITER),
    "name-long": Rule(
        "A tensor's name is longer than any model needs; it may hide something.", _WRITER
    ),
    "name-bidi": Rule(
        "A name has characters that reverse the direction of text, so that it looks like another name.",
        _WRITER,
    ),
    "name-control": Rule("A name has control characters, which can drive a terminal.", _WRITER),
    "name-invisible": Rule(
        "A name has invisible characters, so that it looks like another name.", _WRITER
    ),
    "name-path": Rule(
        "A tensor's name is a path that leads out of a folder. A program that uses names of tensors as "
        "names of files would overwrite something.",
        _WRITER,
    ),
    "metadata-control": Rule(
        "Metadata has control or direction characters.", "Do not print it unescaped."
    ),
    "misaligned": Rule(
        "A tensor does not begin at a multiple of its element size; some programs copy or refuse it.",
        "`safeweights edit --align` or saving again aligns it.",
    ),
    "other-suffix": Rule(
        "A safetensors file has the name of another format; loaders that go by the name misread it.",
        "Rename it to end in .safetensors.",
    ),
    "wrong-name": Rule(
        "A file that ends in .safetensors has another format; some loaders would run code in it.",
        "Find out where it comes from. `safeweights convert` reads it and writes safetensors.",
    ),
    "polyglot": Rule(
        "A file is valid in two formats: programs disagree about what it is.", _DELETE
    ),
    "empty": Rule("The file has no bytes.", _AGAIN),
    "truncated": Rule("The file ends before its data does.", _AGAIN),
    "unknown-format": Rule(
        "The format of the file is unknown.", "See docs/kinds.md for those that are known."
    ),
    "zero-tail": Rule(
        "A file ends in zeros that begin in the middle of a tensor, like an interrupted, preallocated "
        "download.",
        "`safeweights repair` says which bytes to download again. Compare with the publisher's digest.",
    ),
    "layout": Rule(
        "Tensors are not written in the declared order.", "Add them in the order of the layout."
    ),
    # ---- folders and indexes
    "folder": Rule("The folder has no weights, or several models.", "Give the path of one model."),
    "index": Rule("The index breaks a rule of the Hugging Face format.", _INDEX),
    "index-twin": Rule(
        "The folder also has the model in one file that the index does not name.",
        _INDEX,
    ),
    "index-tensor-missing": Rule("The index lists a tensor that its shard does not have.", _INDEX),
    "index-tensor-unlisted": Rule(
        "A shard has a tensor that the index does not list; loaders skip it.", _INDEX
    ),
    "index-total-size": Rule("The total size in the index is not that of the shards.", _INDEX),
    "missing-shard": Rule(
        "A shard that the index or the numbering needs is missing.", "Download it."
    ),
    "part": Rule(
        "The file is a part of a checkpoint of several files.",
        "Give the folder, or all files, as the message says.",
    ),
    "rank-files": Rule(
        "The files of the ranks do not contain all parts of the tensors.",
        "Give the files of all ranks of one save.",
    ),
    "zero": Rule(
        "A ZeRO partition is malformed, or belongs to another save.",
        "Give the files of all ranks of one save.",
    ),
    "orbax": Rule(
        "Orbax checkpoints are not supported.",
        "Restore it with Orbax, and save it with safeweights.flax.save_file.",
    ),
    "nemo": Rule(
        "The NeMo archive has no weights that can be read in place.",
        "Extract it (tar -xf), and give the folder of weights in it.",
    ),
    "wrapped": Rule(
        "All names begin with a prefix that a wrapper added; loaders expect names without it.",
        "`safeweights edit FILE --in-place --strip-prefix PREFIX`.",
    ),
    "unlisted-file": Rule(
        "The index does not list this file, so it is not loaded.", "Delete it if it is stale."
    ),
    "variants": Rule(
        "The folder has a model in several variants, such as fp16; a program loads one.",
        "Open one by its name.",
    ),
    "interrupted-save": Rule(
        "A save was interrupted while it replaced files; the old files are in a hidden folder.",
        "Move them back, or save again and delete the folder.",
    ),
    "ranks": Rule(
        "Ranks that save together lack a part of a tensor, have a part twice, or have different types.",
        "Create the same model, with the same placement, on every rank.",
    ),
    "values": Rule(
        "The file of values beside a distributed checkpoint (`model.values.json`) cannot be read.",
        _AGAIN,
    ),
    "name-case": Rule(
        "Two names differ only in case; on some filesystems they are the same file.", "Rename one."
    ),
    "names": Rule("Names contradict each other.", "Give each tensor or file its own name."),
    "bookkeeping": Rule(
        "Files of download tools beside the model; no loader reads them.", "None needed."
    ),
    "unread": Rule(
        "Something could not be read, and may contain anything.",
        "Read it with its own tools in a sandbox, or leave it out.",
    ),
    "os": Rule(
        "The operating system refused to read it.", "See the message: permissions, path, medium."
    ),
    "no-listing": Rule("The server cannot list folders.", "Give the URL of a file or of an index."),
    "storage": Rule(
        "A store answered with something that is not the file.",
        "Try again; then look at the server.",
    ),
    "manifest": Rule(
        "The registry's manifest does not describe a model.", "Check the name and tag."
    ),
    "output": Rule("The result would overwrite its source.", "Choose another destination."),
    # ---- code
    "dangerous-call": Rule(
        "Loading the file calls a function that can run code or reach files.", _SOURCE
    ),
    "unknown-call": Rule(
        "Loading the file calls a function that is not known to be harmless.", _SOURCE
    ),
    "tensor-call": Rule(
        "Loading the file calls a function on tensors.", "None needed: it only builds data."
    ),
    "text-pickle": Rule("A text file is also a pickle: loading it as one runs code.", _DELETE),
    "acts-call": Rule("Loading the file runs code.", _SOURCE),
    "auto-map": Rule("The configuration names Python code that loaders import.", _LOOK),
    "custom-code": Rule("The configuration names code outside the library that reads it.", _LOOK),
    "target": Rule("The configuration names a class or function to call (Hydra).", _LOOK),
    "trust-remote-code": Rule("The configuration asks loaders to download and run code.", _LOOK),
    "use-kernels": Rule("The configuration asks loaders to download and run kernels.", _LOOK),
    "remote-kernel": Rule("The configuration names a kernel that loaders download and run.", _LOOK),
    "yaml-tag": Rule("A YAML file has a tag that builds an object of a program.", _LOOK),
    "tensorflow-operator": Rule(
        "A SavedModel uses an operator that reads or writes files, or runs Python.", _LOOK
    ),
    "onnx-external-data": Rule(
        "An ONNX model reads other files; the path may lead out of its folder.", _LOOK
    ),
    "onnx-custom-operator": Rule(
        "An ONNX model uses operators of a library that has to be loaded.", _LOOK
    ),
    "template-size": Rule("A chat template is too large to be read here.", "Read it yourself."),
    "template": Rule(
        "A chat template is a program; it could not be read to its end.", "Read it yourself."
    ),
    "json-duplicate": Rule(
        "A key occurs twice in one object of a JSON file: programs disagree about its value.",
        _DELETE,
    ),
    "arrow-pickle": Rule(
        "A column of an Arrow file has a type that PyArrow before 14.0.1 unpickles.",
        "Read it only with a newer PyArrow, or get the data in another format.",
    ),
    "xml-entities": Rule(
        "XML that defines entities: they can reach files and the network, or grow without end.",
        "Read it only with a parser that refuses entities.",
    ),
    "json": Rule(
        "The header of a safetensors file is one JSON object (RFC 8259), followed by nothing but white "
        "space; a file called .json is JSON.",
        "Download or copy the file again. If it is called .json, find out what it is before you load it.",
    ),
    "text-size": Rule("A configuration is too large to be read here.", "Read it yourself."),
    "unknown-kind": Rule(
        "The kind of the file is unknown, and so is what loading it does.", _DELETE
    ),
    # ---- files of other formats
    "foreign-format": Rule(
        "A file of another format, which builds data only.",
        "`safeweights convert` makes it safetensors.",
    ),
    "unreadable-tensor": Rule(
        "A tensor cannot be written as safetensors.", "See the message for what helps."
    ),
    "duplicate-name": Rule("Two tensors have the same name.", "Open one of the files by its name."),
    "name-collision": Rule("Two names become one.", "Rename one of the tensors."),
    "plan": Rule(
        "A plan joins tensors whose types or shapes do not fit.",
        "Compare the plan with `safeweights show`.",
    ),
    "broken-tie": Rule(
        "Tensors that share memory would become separate tensors.",
        "Change both, or untie them first.",
    ),
    "delta": Rule(
        "A delta is damaged, or does not fit its base.",
        "Apply it to the version that it was made from.",
    ),
    "digest": Rule("The data does not have its recorded digest.", _AGAIN),
    "encrypted": Rule("The file is encrypted.", "Give `-i` the identity that may read it."),
    "compressed-data": Rule("Compressed data is damaged, or grows beyond the limit.", _AGAIN),
    "quantised": Rule("Quantised weights break a rule of their scheme.", _AGAIN),
    "quantised-scale": Rule(
        "A scale of a quantised weight is NaN, infinite, or 0 where the values are not.", _AGAIN
    ),
    "quantised-shape": Rule("The parts of a quantised weight do not fit together.", _AGAIN),
    "quantised-type": Rule(
        "A part of a quantised weight has another type than its scheme says.", _AGAIN
    ),
    "quantised-bits": Rule("No bit width fits the packed integers of a weight.", _SETTINGS),
    "quantised-order": Rule(
        "The group order (g_idx) has the number of a group that does not exist.", _AGAIN
    ),
    "quantised-ambiguous": Rule(
        "Names and types of a quantised weight fit several schemes, with different values.",
        _SETTINGS,
    ),
    "quantization-config": Rule(
        "The settings of the quantiser contradict the weights or each other.", _SETTINGS
    ),
    "settings-size": Rule(
        "A settings file beside the weights is larger than any library writes.", _AGAIN
    ),
    "sparse-tensor": Rule("A sparse tensor's indices do not fit its shape.", _WRITER),
    "tensor-geometry": Rule("A tensor's strides or offset reach outside its storage.", _AGAIN),
    "protobuf": Rule("A Protocol Buffers message is malformed.", _AGAIN),
}
"""Identifier -> the rule. Identifiers of `FAMILIES` are not listed one by one."""

FAMILIES: Final[dict[str, Rule]] = {
    "kind-": Rule(
        "Files of this kind can run code, or are not read here; docs/kinds.md lists the kinds.",
        _DELETE,
    ),
    "name-": Rule(
        "Programs execute or load files with such a name, but the contents are of another kind.",
        _DELETE,
    ),
    "limit-": Rule("The file needs more work or memory than the limit for one file.", _LIMITS),
    "pickle": Rule(
        "The pickle is malformed, or is read differently by different programs.", _AGAIN
    ),
    "torch-": Rule("The PyTorch file contradicts itself.", _AGAIN),
    "zip": Rule(
        "The zip archive is malformed, or is read differently by different programs.", _AGAIN
    ),
    "tar": Rule(
        "The tar archive is malformed, or is read differently by different programs.", _AGAIN
    ),
    "npy": Rule("The NumPy file is malformed.", _AGAIN),
    "numpy-": Rule("A NumPy array or type is malformed.", _AGAIN),
    "hdf5": Rule(
        "The HDF5 file is malformed, or has data that cannot be represented exactly.", _AGAIN
    ),
    "gguf": Rule("The GGUF header is malformed.", _AGAIN),
    "msgpack": Rule("The MessagePack data is malformed.", _AGAIN),
    "flax-msgpack": Rule("The Flax checkpoint is malformed.", _AGAIN),
    "joblib": Rule("The joblib file is malformed.", _AGAIN),
    "paddle": Rule("The Paddle file is malformed.", _AGAIN),
    "tensorflow": Rule("The TensorFlow checkpoint is malformed.", _AGAIN),
    "dcp-": Rule(
        "The distributed checkpoint is incomplete or contradicts itself.",
        "Copy all files of one save, of all ranks, into one folder.",
    ),
    "fsdp": Rule(
        "The rank files do not contain all parts of the tensors.",
        "Give the files of all ranks of one save.",
    ),
    "zero-": Rule(
        "The ZeRO partitions do not contain all parts of the tensors.",
        "Give the files of all ranks of one save.",
    ),
    "age-": Rule("The encrypted file is damaged, or was changed.", _AGAIN),
    "jwe": Rule("The encrypted file is malformed, or was changed.", _AGAIN),
    "keras-": Rule(
        "A Keras model has Python code, or a class from outside Keras; loading runs or imports it.",
        _LOOK,
    ),
    "template-": Rule(
        "A chat template does more than format text.", "Do not render it outside a sandbox."
    ),
}
"""Beginning of identifiers -> what they have in common."""


def rule_of(identifier: str) -> Rule | None:
    """The rule of this identifier, or of its family; the longest beginning counts.

    >>> rule_of("header-length").meaning
    'The header ends within the file.'
    >>> rule_of("limit-depth").cure[:30]
    'If you trust the file, raise t'
    """
    if identifier in RULES:
        return RULES[identifier]
    found = [family for family in FAMILIES if identifier.startswith(family)]
    return FAMILIES[max(found, key=len)] if found else None
