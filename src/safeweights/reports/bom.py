"""A bill of materials for a model: CycloneDX 1.6 (ECMA-424), as JSON.

It lists every file with its SHA-256, the number of tensors and parameters of each type, the architecture
from ``config.json``, and licence, data sets and base model from the front matter of the model card. Digests
are computed; statements of a file are passed on unchecked.

All files of the folder are listed, except git's own. A link is listed with its target's digest, and marked.
An entry that is neither a file nor a link to one has no digest. Files that run code, or can, are marked.

Two runs on the same files give the same document, except for the time, which the caller can set.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from typing import TYPE_CHECKING, Any, Final

from ..checkpoint import SafetensorsFile
from ..checkpoint.shardindex import ANY_INDEX, SUFFIX, read_index
from ..errors import FormatError, SafetensorError, quote
from ..storage import is_url, open_source
from ..storage.places import absolute, basename, folder_of, is_folder, join, parent
from ..text import plural, printable
from ..trust.access.keyring import describe, encrypted_for
from ..trust.access.stores import EncryptedStore, plain_name
from ..trust.content.digests import FileDigest, hash_files
from ..trust.documents import parse_json
from ..trust.errors import TrustError, VerificationError
from ..trust.files import ENCRYPTED, KEY_FILE, check_model, list_folder, read_document
from ..trust.signatures.bundle import DEFAULT_IGNORED, covers
from ..trust.verifier import identified, identity_in_use, plain_store
from .admission import findings_of
from .inventory import rows, unreadable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from ..storage import Source
    from ..trust.signatures.verifying import SignedBy

__all__ = ["ForeignFile", "bill_of_materials", "look_into"]

_NAMESPACE: Final = uuid.UUID("6f1d1f6e-4f0b-5c6f-9d53-0a3a0f6d2c11")
_MAX_TEXT: Final = 4 << 20
_FRONT_MATTER = re.compile(r"---\r?\n(.*?)\r?\n---\s", re.DOTALL)
_SCALAR = re.compile(r"([A-Za-z_]+):\s*(.*)")


_OURS: Final = "safetensors"
_SHOWN: Final = 100


@dataclass(frozen=True)
class ForeignFile:
    """Facts about a file in another format than safetensors.

    Attributes:
        format: Name of the format.
        tensors: Number of tensors; None if it cannot be read.
        parameters: Element type -> number of elements.
        calls: Functions that loading it would call, except those that build tensors.
        unread: Why parts of it could not be read, in which there may be further calls.
    """

    format: str
    tensors: int | None = None
    parameters: Mapping[str, int] = field(default_factory=dict)
    calls: Sequence[str] = ()
    unread: Sequence[str] = ()
    unreadable: Sequence[str] = ()


def _opened(path: str) -> Source:
    """What is in a file: its plaintext, if it is encrypted and there is an identity in use."""
    source = open_source(path, backend="pread")
    if path.endswith(KEY_FILE) or identity_in_use() is None or encrypted_for(source) is None:
        return source
    store, _ = plain_store(folder_of(parent(path)))
    assert isinstance(store, EncryptedStore)
    return store.decrypted(source)


def look_into(path: str) -> ForeignFile | None:
    """What is known of a file in another format, found without executing it; None for any other file.

    Raises:
        FormatError: An archive that breaks a rule.
        OSError: It cannot be opened or read.
    """
    from ..conversion import scan
    from ..conversion.grading import Grade
    from ..conversion.opening import FORMAT_HEAD, SAFETENSORS, identify, read_source

    source = _opened(path)
    name = identify(source, source.read(0, min(FORMAT_HEAD, source.size)))
    if name is None or name == SAFETENSORS:
        return None
    report = scan(source)
    calls = dict.fromkeys(
        f"{quote(call.target)} ({call.grade.label})"
        for call in report.findings
        if call.grade > Grade.DATA
    )
    unread = [printable(part.reason) for part in report.unread]
    try:
        found = list(rows(read_source(source, format=name)))
    except SafetensorError:
        return ForeignFile(name, calls=list(calls), unread=unread)
    parameters: Counter[str] = Counter()
    for row in found:
        parameters[row.dtype] += row.parameters
    refused = [
        f"{plural(group['tensors'], 'tensor')}: {printable(group['reason'])}"
        for group in unreadable(found)
    ]
    return ForeignFile(name, len(found), parameters, list(calls), unread, refused)


def bill_of_materials(
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    version: str | None = None,
    signed_by: SignedBy | None = None,
    when: datetime | None = None,
    look: Callable[[str], ForeignFile | None] = lambda _: None,
    identity: Any = None,
    workers: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> dict[str, Any]:
    """The bill of materials of the model at `path`, ready for `json.dumps`.

    Cost: every file is read once, and its header or beginning again.

    Args:
        path: A file, a folder, or the index of a model in several files; or the URL of one. Folders on web
            servers cannot be listed.
        name: The model's name; by default the last part of the path.
        version: The model's version.
        signed_by: The verified signer, if there is one.
        when: The document's time; by default now.
        look: Reads a file of another format; by default, only safetensors files are counted.
        identity: Who opens encrypted files, to tell what is in them; see `safeweights.open`. Names and
            digests are those of the encrypted files.
        workers: Number of files read in parallel; by default the number of cores.
        progress: Called with the number of bytes read so far, from the calling thread.

    Raises:
        VerificationError: ``empty-resources``: there is no file.
        FormatError: The index is invalid.
        OSError: A file cannot be read.
    """
    path = absolute(os.fspath(path))
    check_model(path)
    base = path if is_folder(path) else parent(path)
    names = _names(path)
    found = [each for each in names if _is_file(join(base, each))]
    digests = {
        digest.name: digest
        for digest in hash_files(
            [(each, join(base, each)) for each in found], workers=workers, progress=progress
        )
    }
    count = _Count()
    with identified(identity):
        files = [
            _file(base, digests[each], count, look) if each in digests else _special(base, each)
            for each in names
        ]
        model = _model(base, found, name or basename(path), version)
    model["properties"] = _properties(count.weights(), signed_by)
    moment = (when or datetime.now(timezone.utc)).astimezone(timezone.utc)
    document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": moment.isoformat(timespec="seconds"),
            "tools": {"components": [_tool()]},
            "component": model,
        },
        "components": files,
        "dependencies": [
            {"ref": "model", "dependsOn": [file["bom-ref"] for file in files]},
            *({"ref": file["bom-ref"]} for file in files),
        ],
    }
    content = json.dumps([model, files], sort_keys=True)
    return {**document, "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, content)}"}


def _names(path: str) -> list[str]:
    if is_folder(path):
        return _listed(path)
    if path.endswith(ANY_INDEX):
        return [basename(path), *read_index(path, suffix="").shards]
    return [basename(path)]


def _listed(path: str) -> list[str]:
    found = [entry.name for entry in list_folder(path) if not covers(DEFAULT_IGNORED, entry.name)]
    if not found:
        raise VerificationError("there is no file to list", reason="empty-resources", path=path)
    return found


def _is_file(path: str) -> bool:
    """Whether there is a file, or a link to one; elsewhere, hashing it tells."""
    return is_url(path) or os.path.isfile(path)


class _Count:
    """Parameters by type, per format: a folder may have the same weights in several formats."""

    def __init__(self) -> None:
        self._formats: dict[str, Counter[str]] = {}
        self._seen: set[str] = set()

    def add(self, path: str, format_name: str, parameters: Mapping[str, int]) -> None:
        """Count the file at `path`, unless it was counted under another name."""
        if (real := path if is_url(path) else os.path.realpath(path)) not in self._seen:
            self._seen.add(real)
            self._formats.setdefault(format_name, Counter()).update(parameters)

    def weights(self) -> Counter[str]:
        """The parameters in safetensors files, or if there are none, in the format with the most."""
        if _OURS in self._formats:
            return self._formats[_OURS]
        return max(self._formats.values(), key=Counter.total, default=Counter())


def _tool() -> dict[str, Any]:
    tool: dict[str, Any] = {"type": "application", "name": "safeweights"}
    try:
        return {**tool, "version": metadata.version("safeweights")}
    except metadata.PackageNotFoundError:
        return tool


def _file(
    base: str, digest: FileDigest, count: _Count, look: Callable[[str], ForeignFile | None]
) -> dict[str, Any]:
    facts = [("size", str(digest.size)), *_contents(base, digest.name, count, look)]
    return {
        "type": "file",
        "bom-ref": f"file:{digest.sha256}:{digest.name}",
        "name": digest.name,
        "hashes": [{"alg": "SHA-256", "content": digest.sha256}],
        "properties": _named([*_link(base, digest.name), *facts]),
    }


def _special(base: str, name: str) -> dict[str, Any]:
    """The component of an entry without a digest."""
    link = _link(base, name)
    what = "a link to something that is not a file" if link else "not a regular file"
    return {
        "type": "file",
        "bom-ref": f"special:{name}",
        "name": name,
        "properties": _named([*link, ("special", what)]),
    }


def _link(base: str, name: str) -> list[tuple[str, str]]:
    path = join(base, name)
    if is_url(path) or not os.path.islink(path):
        return []
    return [("link", quote(os.readlink(path), 4096)[1:-1])]


def _contents(
    base: str, name: str, count: _Count, look: Callable[[str], ForeignFile | None]
) -> Iterator[tuple[str, str]]:
    """Facts about the contents of a file: its tensors, and code that it runs."""
    path = join(base, name)
    if types := encrypted_for(open_source(path, backend="pread")):
        yield "encrypted", describe(types)
        name = plain_name(name) or name
    source = _opened(path)
    findings = list(findings_of(source, name))
    valid = False
    if name.endswith(SUFFIX):
        try:
            tensors = SafetensorsFile(source).header.tensors
        except FormatError as error:
            yield "invalid", error.rule
        else:
            valid = True
            parameters: Counter[str] = Counter()
            for info in tensors.values():
                parameters[info.dtype] += info.elements
            count.add(path, _OURS, parameters)
            yield "tensors", str(len(tensors))
    foreign = None if valid else look(path)
    # Text may begin like a pickle. It is one if its tensors could be read or the examination says so.
    if foreign and (foreign.tensors is not None or any(f.kind == "pickle" for f in findings)):
        yield "format", foreign.format
        if foreign.tensors is not None:
            count.add(path, foreign.format, foreign.parameters)
            yield "tensors", str(foreign.tensors)
        for call in foreign.calls[:_SHOWN]:
            yield "loading-calls", call
        for reason in foreign.unread[:_SHOWN]:
            yield "unread", reason
        for reason in foreign.unreadable[:_SHOWN]:
            yield "unreadable-tensors", reason
    for finding in findings:
        yield f"finding:{finding.kind}", finding.detail


def _named(facts: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"name": f"safeweights:{name}", "value": value} for name, value in facts]


def _properties(weights: Counter[str], signed_by: SignedBy | None) -> list[dict[str, str]]:
    facts = [("parameters", str(weights.total()))]
    facts += [(f"parameters:{dtype}", str(count)) for dtype, count in sorted(weights.items())]
    if signed_by:
        facts.append(("signed-by", signed_by.fingerprint()))
    return _named(facts)


def _model(base: str, names: list[str], name: str, version: str | None) -> dict[str, Any]:
    model: dict[str, Any] = {"type": "machine-learning-model", "bom-ref": "model", "name": name}
    if version:
        model["version"] = version
    card = _front_matter(_text(base, names, "README.md"))
    if licences := card.get("license"):
        model["licenses"] = [{"license": {"name": licence}} for licence in licences]
    if ancestors := card.get("base_model"):
        model["pedigree"] = {
            "ancestors": [{"type": "machine-learning-model", "name": each} for each in ancestors]
        }
    parameters: dict[str, Any] = {}
    parameters.update(_architecture(_text(base, names, "config.json")))
    if sets := card.get("datasets"):
        parameters["datasets"] = [{"type": "dataset", "name": each} for each in sets]
    if task := card.get("pipeline_tag"):
        parameters["task"] = task[0]
    if parameters:
        model["modelCard"] = {"modelParameters": parameters}
    return model


def _text(base: str, names: list[str], name: str) -> bytes:
    """A small file of the model, which may be encrypted; empty if there is none, or it cannot be read."""
    try:
        if name in names:
            return read_document(join(base, name), limit=_MAX_TEXT, elsewhere=True)
        if name + ENCRYPTED in names and identity_in_use() is not None:
            source = _opened(join(base, name + ENCRYPTED))
            return source.read(0, source.size) if source.size <= _MAX_TEXT else b""
    except TrustError:
        pass  # too long, or for another identity: the document has nothing of it
    return b""


def _architecture(data: bytes) -> dict[str, str]:
    """The architecture in a config, if that is JSON of the usual form."""
    found: dict[str, str] = {}
    try:
        config = parse_json(data)
        if family := config.get("model_type"):
            found["architectureFamily"] = family.text(limit=200)
        if (names := config.get("architectures")) and (first := names.strings()):
            found["modelArchitecture"] = first[0][:200]
    except TrustError:
        pass  # another form: the document has no architecture
    return found


def _front_matter(data: bytes) -> dict[str, list[str]]:
    """Plain values and lists of plain values at the top of a model card; other YAML is skipped."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return {}
    found: dict[str, list[str]] = {}
    current: list[str] = []
    for line in match[1].splitlines() if (match := _FRONT_MATTER.match(text)) else ():
        if scalar := _SCALAR.fullmatch(line):
            current = found[scalar[1]] = [_plain(scalar[2])] if scalar[2].strip() else []
        elif line.lstrip().startswith("- "):
            current.append(_plain(line.lstrip()[2:]))
    return {key: values for key, values in found.items() if all(values)}


def _plain(text: str) -> str:
    value = text.strip().strip("\"'")
    return value[:200] if value.isprintable() else ""
