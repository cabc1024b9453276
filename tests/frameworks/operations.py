"""The eight things one does with a tensor, written once, for this package and for the reference.

Each becomes one word: "yes", "wrong" (an answer that is not the values of the file), "mutates" (the
caller's dictionary is not what it was) or "no" (an error).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from kits import Kit, file_of, parts_of, sample

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SHAPE = (4, 6)
OPERATIONS = (
    "save", "save_file", "load", "load_file mmap", "load_file pread", "get_tensor mmap",
    "get_tensor pread", "get_slice mmap", "get_slice pread",
)  # fmt: skip


def perform(package: str, kit: Kit, code: str, operation: str, folder: Path) -> str:
    """Do `operation` with a tensor of type `code` and say what became of it. Errors pass through."""
    face = importlib.import_module(f"{package}.{kit.face}")
    safe_open = importlib.import_module(package).safe_open
    data = sample(code, SHAPE)
    path = folder / "x.safetensors"
    name, _, backend = operation.partition(" ")
    if name in ("save", "save_file"):
        tensors = {"x": kit.make(code, SHAPE, data)}
        kept = dict(tensors)
        if name == "save":
            written = face.save(tensors)
        else:
            face.save_file(tensors, path)
            written = path.read_bytes()
        if parts_of(written) != {"x": (code, SHAPE, data)}:
            return "wrong"
        return "yes" if tensors["x"] is kept["x"] else "mutates"
    path.write_bytes(file_of({"x": (code, SHAPE, data)}))
    if name == "load":
        found = face.load(path.read_bytes())["x"]
    elif name == "load_file":
        found = face.load_file(path, backend=backend)["x"]
    else:
        with safe_open(path, kit.spellings[0], backend=backend) as file:
            if name == "get_tensor":
                found = file.get_tensor("x")
            else:
                row = len(data) // SHAPE[0]
                found, data = file.get_slice("x")[1:3], data[row : 3 * row]
    shape = (2, *SHAPE[1:]) if name == "get_slice" else SHAPE
    return "yes" if kit.look(found) == (code, shape, data) else "wrong"


def outcome(act: Callable[[], str]) -> str:
    """What became of it, an error too. The reference's panics are no Exceptions."""
    try:
        return act()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:
        return "no"
