"""Test any implementation of the format with the vectors in ``conformance/``.

    python -m safeweights.conformance --impl safeweights
    python -m safeweights.conformance --impl safetensors
    python -m safeweights.conformance --impl my_package.my_module:read

An implementation is a callable that takes the bytes of a file. It raises an exception to reject the file.
Otherwise it returns the names of the tensors, or a mapping name -> (dtype, shape, bytes), which is compared
completely. Exit status: 0 all verdicts agree with the manifest, 1 some differ, 2 wrong usage, 3 the
implementation or the vectors were not found.

The vectors define the format; this module knows none of its rules.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from .errors import SafetensorError, quote

if TYPE_CHECKING:
    import os

__all__ = ["Difference", "Implementation", "Vector", "compare", "load", "main", "read_vectors"]

Implementation = Callable[[bytes], Any]
"""Bytes of a file -> names, or name -> (dtype, shape, bytes); any exception rejects the file."""

SCHEMA: Final = "safeweights.conformance/1"


class Vector(NamedTuple):
    """One file, and the verdict that a reader must reach.

    Attributes:
        file: Path below the folder of vectors.
        data: Contents of the file.
        verdict: ``"valid"`` or ``"invalid"``.
        rule: The rule that it demonstrates or breaks, one of `safeweights.format.header.RULES`.
        why: The reason, in a few words.
        tensors: Name -> dtype, shape and sha256 of the bytes; empty for an invalid file.
    """

    file: str
    data: bytes
    verdict: str
    rule: str
    why: str
    tensors: dict[str, dict[str, Any]]


class Difference(NamedTuple):
    """A vector on which an implementation disagrees with the manifest.

    Attributes:
        vector: The vector.
        found: ``"valid"``, ``"invalid"``, ``"crash"`` (an exception that is not an `Exception`, such as a
            panic of native code) or ``"content"`` (valid, but with other tensors).
        said: The implementation's message, or the difference.
    """

    vector: Vector
    found: str
    said: str


class UnavailableError(SafetensorError):
    """The implementation or the vectors were not found."""


def read_vectors(folder: str | os.PathLike[str] | None = None) -> list[Vector]:
    """Read the vectors in `folder`; by default those of the package.

    Raises:
        UnavailableError: A file is missing, or the manifest has another schema.
    """
    root = Path(folder) if folder is not None else _default_folder()
    try:
        manifest = json.loads((root / "manifest.json").read_bytes())
        if manifest["schema"] != SCHEMA:
            schema = quote(str(manifest["schema"]))
            raise UnavailableError(f"the manifest has schema {schema}, not {SCHEMA}")
        return [
            Vector(
                row["file"], (root / row["file"]).read_bytes(), row["verdict"], row["rule"],
                row["why"], row.get("tensors", {}),
            )
            for row in manifest["vectors"]
        ]  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnavailableError(f"no vectors in {quote(str(root))}: {error!r}") from error


def _default_folder() -> Path:
    package = Path(__file__).parent
    installed = package / "_conformance"
    return installed if installed.is_dir() else package.parents[1] / "conformance"


def load(name: str) -> Implementation:
    """Import an implementation by name: safeweights, safetensors, or ``module:function``.

    Raises:
        UnavailableError: It cannot be imported, or is not callable.
    """
    if name in _BUILT_IN:
        return _BUILT_IN[name]()
    module, _, attribute = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split(".") if attribute else ():
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise UnavailableError(f"implementation {quote(name)}: {error}") from error
    if not callable(found):
        raise UnavailableError(
            f"implementation {quote(name)} is not callable: write module:function"
        )
    implementation: Implementation = found
    return implementation


def _safeweights() -> Implementation:
    from . import checkpoint

    def read(data: bytes) -> dict[str, tuple[str, tuple[int, ...], memoryview]]:
        found = checkpoint.open(data)
        return {name: (t.dtype, t.shape, t.view()) for name, t in found.items()}

    return read


def _safetensors() -> Implementation:
    try:
        import safetensors
    except ImportError as error:
        raise UnavailableError("safetensors is not installed: pip install safetensors") from error

    def read(data: bytes) -> dict[str, tuple[str, list[int], bytes]]:
        found = safetensors.deserialize(data)  # type: ignore[no-untyped-call]
        return {name: (t["dtype"], t["shape"], t["data"]) for name, t in found}

    return read


_BUILT_IN: Final[dict[str, Callable[[], Implementation]]] = {
    "safeweights": _safeweights,
    "safetensors": _safetensors,
}


def compare(implementation: Implementation, vectors: Iterable[Vector]) -> list[Difference]:
    """Run `implementation` on all vectors and return the differences. Its exceptions are caught."""
    found = []
    for vector in vectors:
        verdict, said = _judge(implementation, vector)
        if verdict != vector.verdict:
            found.append(Difference(vector, verdict, said))
    return found


def _judge(implementation: Implementation, vector: Vector) -> tuple[str, str]:
    try:
        result = implementation(vector.data)
    except (KeyboardInterrupt, SystemExit):
        raise
    except Exception as error:  # noqa: BLE001 - any exception rejects the file
        return "invalid", f"{type(error).__name__}: {error}"
    except BaseException as error:  # noqa: BLE001 - a panic of native code is not a verdict
        return "crash", f"{type(error).__name__}: {error}"
    if vector.verdict == "invalid":
        return "valid", "read without an error"
    try:
        wrong = _content(result, vector.tensors)
    except Exception as error:  # noqa: BLE001 - the result may be of any type
        wrong = f"neither names nor tensors: {type(error).__name__}: {error}"
    return ("valid", "") if wrong is None else ("content", wrong)


def _content(result: Any, expected: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Describe the first difference between the result and the manifest; None if they are equal."""
    names = set(result)
    if names != set(expected):
        missing, added = sorted(set(expected) - names), sorted(names - set(expected))
        return f"missing names: {missing}, unexpected names: {added}"
    if not isinstance(result, Mapping):
        return None
    for name, want in expected.items():
        dtype, shape, data = result[name]
        got = (dtype, list(shape), hashlib.sha256(data).hexdigest())
        if got != (want["dtype"], want["shape"], want["sha256"]):
            wanted = f"{want['dtype']} {want['shape']}"
            return (
                f"tensor {quote(name)} is {dtype} {list(shape)}, not {wanted}, or its bytes differ"
            )
    return None


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser("python -m safeweights.conformance", description=_SUMMARY)
    parser.add_argument(
        "--impl", default="safeweights", help="safeweights, safetensors or module:function"
    )
    parser.add_argument(
        "--vectors", metavar="DIR", help="folder with vectors and manifest.json [default: ours]"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    try:
        vectors = read_vectors(options.vectors)
        implementation = load(options.impl)
    except UnavailableError as error:
        print(error, file=sys.stderr)
        return 3
    differences = compare(implementation, vectors)
    show = _as_json if options.json else _as_table
    print(show(options.impl, vectors, differences))
    return 1 if differences else 0


_SUMMARY: Final = "Test an implementation of the safetensors format with the conformance vectors."


def _as_json(name: str, vectors: list[Vector], differences: list[Difference]) -> str:
    rows = [
        {
            "file": vector.file,
            "rule": vector.rule,
            "verdict": vector.verdict,
            "found": found,
            "said": said,
            "why": vector.why,
        }
        for vector, found, said in differences
    ]
    report = {
        "schema": f"{SCHEMA}/report",
        "implementation": name,
        "vectors": len(vectors),
        "agree": len(vectors) - len(differences),
        "differences": rows,
    }
    return json.dumps(report, indent=2)


def _as_table(name: str, vectors: list[Vector], differences: list[Difference]) -> str:
    agree = len(vectors) - len(differences)
    summary = f"{name}: {agree} of {len(vectors)} verdicts agree"
    if not differences:
        return summary
    rows = [("VECTOR", "RULE", "EXPECTED", "FOUND", "REASON; MESSAGE")]
    for vector, found, said in differences:
        answer = f"{vector.why}; {quote(said, 70)[1:-1]}"
        rows.append((vector.file, vector.rule, vector.verdict, found, answer))
    widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:-1]]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]])
        for row in rows
    ]
    return "\n".join([*lines, "", summary])


if __name__ == "__main__":
    sys.exit(main())
