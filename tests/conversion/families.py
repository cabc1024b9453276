"""The hostile files that something executes, by the kind of attack, for comparisons of scanners."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hostile import corpus

if TYPE_CHECKING:
    from hostile import Case

__all__ = ["hostile_families", "suffix_of"]

_FAMILIES: Final = {
    "call": "calls by name", "opcode": "opcodes", "python's pickler, protocol": "opcodes",
    "use": "harmless names, called", "zip": "zip archives", "torch member": "members of torch archives",
    "legacy": "members of torch archives", "npy": "NumPy and joblib", "npy type": "NumPy and joblib",
    "joblib": "NumPy and joblib", "joblib array": "NumPy and joblib", "dtype": "pointers in NumPy types",
    "tar": "tar archives", "two formats": "two formats in one file", "nested": "files in files",
    "read twice": "read in two ways", "passed over": "members of torch archives", "keras": "Keras",
}  # fmt: skip
_SUFFIXES: Final = (
    (b"PK\x03\x04", ".pt"), (b"\x93NUMPY", ".npy"), (b"\x89HDF", ".h5"), (b"GGUF", ".gguf"),
    (b"\x1f\x8b", ".joblib"), (b"BZh", ".joblib"), (b"\xfd7zXZ", ".joblib"), (b"\x78", ".joblib"),
    (b"\x5d\0\0", ".joblib"),
)  # fmt: skip


def hostile_families() -> dict[str, list[Case]]:
    """Family -> its cases. Files that only lie about tensors, or only cost time, are left out."""
    found: dict[str, list[Case]] = {}
    for case in corpus():
        title = case.name.partition(":")[0].partition(" ")[0]
        group = case.name.partition(":")[0]
        family = (
            _FAMILIES.get(group) or _FAMILIES.get(title) or _FAMILIES.get(group.rpartition(" ")[0])
        )
        if family is not None and case.verdict in {"dangerous", "unknown"}:
            found.setdefault(family, []).append(case)
        elif (
            group in {"dtype", "read twice", "npy type", "two formats"} and case.verdict != "clean"
        ):
            found.setdefault(_FAMILIES[group], []).append(case)
    return found


def suffix_of(data: bytes) -> str:
    """How a file with these bytes is usually named, which is what scanners go by."""
    if b"model.weights.h5" in data:
        return ".keras"
    for magic, suffix in _SUFFIXES:
        if data.startswith(magic):
            return ".npz" if suffix == ".pt" and b".npy" in data[:80] else suffix
    if data[257:262] == b"ustar":
        return ".tar"
    return ".safetensors" if data[8:10] == b'{"' else ".pkl"
