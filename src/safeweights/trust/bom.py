"""A bill of materials for a model: CycloneDX 1.6 (ECMA-424), as JSON.

What is in it was read from the files themselves: every file with its SHA-256, the tensors of the
weights by type, architecture and family from ``config.json``, and licence, data sets and base model
as far as the model card's front matter states them. What a file claims is passed on as a claim;
digests are measured.

Two runs over the same files give the same document, but for the time, which the caller may fix.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from collections import Counter
from datetime import datetime, timezone
from importlib import metadata
from typing import TYPE_CHECKING, Any, Final

from safeweights.checkpoint import SafetensorsFile
from safeweights.errors import FormatError

from .bundle import DEFAULT_IGNORED, covers
from .digests import FileDigest, hash_files
from .documents import parse_json
from .errors import TrustError
from .files import list_folder, read_document

if TYPE_CHECKING:
    from collections.abc import Callable

    from .verifying import SignedBy

__all__ = ["bill_of_materials"]

_NAMESPACE: Final = uuid.UUID("6f1d1f6e-4f0b-5c6f-9d53-0a3a0f6d2c11")
_MAX_TEXT: Final = 4 << 20
_FRONT_MATTER = re.compile(r"---\r?\n(.*?)\r?\n---\s", re.DOTALL)
_SCALAR = re.compile(r"([A-Za-z_]+):\s*(.*)")


def bill_of_materials(
    path: str,
    *,
    name: str | None = None,
    version: str | None = None,
    signed_by: SignedBy | None = None,
    when: datetime | None = None,
    workers: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> dict[str, Any]:
    """The bill of materials of the model at `path`, a file or a folder; ready for `json.dumps`.

    Cost: every file is read once.

    Args:
        path: The model.
        name: What it is called; the last part of the path unless told.
        version: Of the model.
        signed_by: Who signed it, where that was verified.
        when: The time to state; now unless told.
        workers: Files read at a time; the number of cores unless told.
        progress: Called with the bytes read so far, from the calling thread.

    Raises:
        VerificationError: A special file in the folder.
        OSError: As the operating system has it.
    """
    os.stat(path)  # nothing there is an error, not an empty bill
    path = os.path.abspath(path)
    base = path if os.path.isdir(path) else os.path.dirname(path)
    found = [entry for entry in _names(path) if os.path.isfile(os.path.join(base, entry))]
    digests = hash_files(
        [(each, os.path.join(base, each)) for each in found], workers=workers, progress=progress
    )
    weights: Counter[str] = Counter()
    files = [_file(base, digest, weights) for digest in digests]
    model = _model(base, found, name or os.path.basename(path), version)
    model["properties"] = _properties(weights, signed_by)
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
    if not os.path.isdir(path):
        return [os.path.basename(path)]
    return [entry.name for entry in list_folder(path) if not covers(DEFAULT_IGNORED, entry.name)]


def _tool() -> dict[str, Any]:
    tool: dict[str, Any] = {"type": "application", "name": "safeweights"}
    try:
        return {**tool, "version": metadata.version("safeweights")}
    except metadata.PackageNotFoundError:
        return tool


def _file(base: str, digest: FileDigest, weights: Counter[str]) -> dict[str, Any]:
    properties = [{"name": "safeweights:size", "value": str(digest.size)}]
    if digest.name.endswith(".safetensors"):
        try:
            tensors = SafetensorsFile.open(
                os.path.join(base, digest.name), engine="pread"
            ).header.tensors
        except FormatError as error:
            properties.append({"name": "safeweights:invalid", "value": error.rule})
        else:
            for info in tensors.values():
                weights[info.dtype] += info.elements
            properties.append({"name": "safeweights:tensors", "value": str(len(tensors))})
    return {
        "type": "file",
        "bom-ref": f"file:{digest.sha256}:{digest.name}",
        "name": digest.name,
        "hashes": [{"alg": "SHA-256", "content": digest.sha256}],
        "properties": properties,
    }


def _properties(weights: Counter[str], signed_by: SignedBy | None) -> list[dict[str, str]]:
    found = [{"name": "safeweights:parameters", "value": str(weights.total())}]
    found += [
        {"name": f"safeweights:parameters:{dtype}", "value": str(count)}
        for dtype, count in sorted(weights.items())
    ]
    if signed_by:
        found.append({"name": "safeweights:signed-by", "value": signed_by.fingerprint()})
    return found


def _model(base: str, names: list[str], name: str, version: str | None) -> dict[str, Any]:
    model: dict[str, Any] = {"type": "machine-learning-model", "bom-ref": "model", "name": name}
    if version:
        model["version"] = version
    card = _front_matter(base) if "README.md" in names else {}
    if licences := card.get("license"):
        model["licenses"] = [{"license": {"name": licence}} for licence in licences]
    if ancestors := card.get("base_model"):
        model["pedigree"] = {
            "ancestors": [{"type": "machine-learning-model", "name": each} for each in ancestors]
        }
    parameters: dict[str, Any] = {}
    if "config.json" in names:
        parameters.update(_architecture(os.path.join(base, "config.json")))
    if sets := card.get("datasets"):
        parameters["datasets"] = [{"type": "dataset", "name": each} for each in sets]
    if task := card.get("pipeline_tag"):
        parameters["task"] = task[0]
    if parameters:
        model["modelCard"] = {"modelParameters": parameters}
    return model


def _architecture(path: str) -> dict[str, str]:
    """What a config states, as far as it is JSON and states it in the usual places."""
    found: dict[str, str] = {}
    try:
        config = parse_json(read_document(path, limit=_MAX_TEXT), path=path)
        if family := config.get("model_type"):
            found["architectureFamily"] = family.text(limit=200)
        if (names := config.get("architectures")) and (first := names.strings()):
            found["modelArchitecture"] = first[0][:200]
    except TrustError:
        pass  # not a config in the usual form: nothing is stated
    return found


def _front_matter(base: str) -> dict[str, list[str]]:
    """Plain values and lists of plain values at the top of a model card; other YAML is skipped."""
    try:
        text = read_document(os.path.join(base, "README.md"), limit=_MAX_TEXT).decode()
    except (TrustError, UnicodeDecodeError):
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
