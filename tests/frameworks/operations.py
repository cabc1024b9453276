"""The eight things one does with a tensor, written once, for this package and for the reference.

`outcome` says in one word what became of an operation: "yes", "no" (an error) or "wrong" (an answer
that is not the values of the file).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kits import Kit, file_of, parts_of, sample

SHAPE = (4, 6)
OPERATIONS = (
    "save", "save_file", "load", "load_file mmap", "load_file pread", "get_tensor mmap",
    "get_tensor pread", "get_slice mmap", "get_slice pread",
)  # fmt: skip


def perform(package: str, kit: Kit, code: str, operation: str, folder: Path) -> bool:
    """Do `operation` with a tensor of type `code`; whether the result is right. Errors pass through."""
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
        same = tensors.keys() == kept.keys() and tensors["x"] is kept["x"]
        return parts_of(written) == {"x": (code, SHAPE, data)} and same
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
                return kit.look(found) == (code, (2, *SHAPE[1:]), data)
    return kit.look(found) == (code, SHAPE, data)


def outcome(act: Callable[[], Any]) -> str:
    """What became of it. The reference's panics are no Exceptions."""
    try:
        return "yes" if act() else "wrong"
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:
        return "no"
