"""Manifests of models in container registries: the CNCF's ModelPack, which is an OCI image manifest.

Pure: bytes in, names and digests out, and the other way round. Sources: OCI image specification 1.1
("Image Manifest"), CNCF ModelPack model-spec ("Model Format", annotations). Manifests of ORAS, which
name files in ``org.opencontainers.image.title``, are read too.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ...errors import FormatError, quote
from ..store import check_name

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "DIGEST",
    "EMPTY",
    "INDEX",
    "MANIFEST",
    "SIGNATURE",
    "Layer",
    "digest_of",
    "index_text",
    "manifest_text",
    "parse_manifest",
]

MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
INDEX: Final = "application/vnd.oci.image.index.v1+json"
SIGNATURE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
"""Type of a signature; OMS signatures are Sigstore bundles."""

_MODEL: Final = "application/vnd.cncf.model.manifest.v1+json"
_CONFIG: Final = "application/vnd.cncf.model.config.v1+json"
_RAW: Final = "application/vnd.cncf.model.weight.v1.raw"
_FILEPATH: Final = "org.cncf.model.filepath"
_TITLE: Final = "org.opencontainers.image.title"
_PACKED: Final = re.compile(r"[.+](tar|gzip|zstd)\b")

DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
EMPTY: Final = b"{}"
"""The content of the configuration."""


class Layer(NamedTuple):
    """A file of a model: the digest and the size of its bytes."""

    digest: str
    size: int
    media_type: str = _RAW


def digest_of(data: bytes) -> str:
    """As registries write it.

    >>> digest_of(b"")[:15]
    'sha256:e3b0c442'
    """
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def parse_manifest(data: bytes, path: str) -> dict[str, Layer]:
    """Name -> layer of each file.

    Raises:
        FormatError: Rule ``manifest``: it is not a manifest of files.
    """

    def fail(problem: str) -> FormatError:
        return FormatError(f"the manifest {problem}", rule="manifest", path=path)

    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise fail("is not JSON") from None
    layers = document.get("layers") if isinstance(document, dict) else None
    if not isinstance(layers, list):
        raise fail("has no layers; an index of several manifests is not read, name one of them")
    files: dict[str, Layer] = {}
    for each in layers:
        name, layer = _layer(each, fail)
        if name is None:
            continue
        if problem := check_name(name):
            raise fail(f"has a layer whose file name {quote(name)} {problem}")
        if name in files:
            raise fail(f"has two layers for the file {quote(name)}")
        files[name] = layer
    for name in files:
        above = name.rpartition("/")[0]
        while above:
            if above in files:
                raise fail(f"has {quote(above)} as a file and as a folder")
            above = above.rpartition("/")[0]
    return files


def _layer(layer: Any, fail: Any) -> tuple[str | None, Layer]:
    """Name and layer; the name is None for the empty layer of a manifest without files."""
    if not isinstance(layer, dict):
        raise fail("has a layer that is not an object")
    digest, size, kind = layer.get("digest"), layer.get("size"), layer.get("mediaType")
    if not isinstance(digest, str) or not DIGEST.fullmatch(digest):
        raise fail("has a layer whose digest is not SHA-256")
    if type(size) is not int or not 0 <= size < 1 << 62 or not isinstance(kind, str):
        raise fail("has a layer without a size or a media type")
    annotations = layer.get("annotations")
    annotations = annotations if isinstance(annotations, dict) else {}
    name = annotations.get(_FILEPATH, annotations.get(_TITLE))
    if name is None and kind == "application/vnd.oci.empty.v1+json":
        return None, Layer(digest, size, kind)
    if not isinstance(name, str):
        raise fail("has a layer without a file name; is this a container's image?")
    if _PACKED.search(kind):
        raise fail(f"has {quote(name)} in an archive ({quote(kind)}); only raw layers are read")
    return name, Layer(digest, size, kind)


def manifest_text(
    files: Mapping[str, Layer], *, subject: tuple[str, int] | None = None, artifact: str = _MODEL
) -> bytes:
    """The manifest of these files; the same files in the same order give the same bytes.

    Args:
        files: Name -> layer.
        subject: Digest and size of the manifest that this one refers to: of a signature.
        artifact: What it is.
    """
    layers = [
        {
            "mediaType": layer.media_type, "digest": layer.digest, "size": layer.size,
            "annotations": {_FILEPATH: name, _TITLE: name},
        }
        for name, layer in files.items()
    ]  # fmt: skip
    empty = {"digest": digest_of(EMPTY), "size": len(EMPTY)}
    nothing: dict[str, Any] = {"mediaType": "application/vnd.oci.empty.v1+json", **empty}
    document: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": artifact,
        "config": {"mediaType": _CONFIG, **empty} if artifact == _MODEL else nothing,
        "layers": layers or [nothing],
    }
    if subject is not None:
        document["subject"] = {"mediaType": MANIFEST, "digest": subject[0], "size": subject[1]}
    return json.dumps(document, separators=(",", ":")).encode()


def index_text(earlier: bytes | None, digest: str, size: int) -> bytes:
    """The index of what refers to a manifest, with one more signature in it.

    Args:
        earlier: The index so far, if there is one that can be understood.
        digest: Of the signature's manifest.
        size: Its bytes.
    """
    found: list[Any] = []
    try:
        document = json.loads(earlier) if earlier else {}
        found = list(document["manifests"])
    except (ValueError, KeyError, TypeError, RecursionError):
        found = []
    entry = {"mediaType": MANIFEST, "digest": digest, "size": size, "artifactType": SIGNATURE}
    kept = [each for each in found if isinstance(each, dict) and each.get("digest") != digest]
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [*kept, entry]}
    return json.dumps(index, separators=(",", ":")).encode()
