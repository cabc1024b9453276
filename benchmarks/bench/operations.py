"""What a worker times: a verb of a contender on prepared inputs, and how its result is checked.

Preparing (opening a file whose slices are timed, loading the tensors that are saved) is not timed;
releasing a result is not timed either. Every result is checked once, in the warm-up: all contenders
must have produced the same bytes.
"""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from .data import CHANGES, changed, read_tensors, shards, tensor_views
from .limits import LIMITS, index_of, touch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .contenders import Contender

__all__ = ["Operation", "fingerprint_of_file", "prepare"]


@dataclass
class Operation:
    """Something to time.

    Attributes:
        run: What is timed; its result is released after the clock has stopped.
        fingerprint: What the result's contents come to; None where they cannot be compared.
    """

    run: Callable[[], Any]
    fingerprint: Callable[[Any], int | None] = lambda _: None


def prepare(
    contender: Contender, verb: str, arguments: Mapping[str, Any], inputs: dict[str, Any]
) -> Operation:
    """Make ready what `verb` names.

    Args:
        contender: Whose.
        verb: A key of `LIMITS` or of the table below.
        arguments: The row's.
        inputs: What operations of one row share in one process, by path.
    """
    if verb in LIMITS:
        return Operation(LIMITS[verb](arguments))
    return _VERBS[verb](contender, arguments, inputs)


def _load(contender: Contender, arguments: Mapping[str, Any], _: dict[str, Any]) -> Operation:
    verb = contender.load_numpy if arguments.get("numpy") else contender.load
    path, how = arguments["path"], arguments["how"]

    def run() -> dict[str, Any]:
        tensors = verb(path, how)
        if arguments.get("touch"):
            for tensor in tensors.values():
                touch(_flat(tensor))
        return tensors

    return Operation(run, _of_tensors)


def _open_header(
    contender: Contender, arguments: Mapping[str, Any], _: dict[str, Any]
) -> Operation:
    return Operation(lambda: contender.open_header(arguments["path"]), int)


def _first_tensor(
    contender: Contender, arguments: Mapping[str, Any], _: dict[str, Any]
) -> Operation:
    path, name = arguments["path"], arguments["name"]
    return Operation(
        lambda: contender.first_tensor(path, name), lambda tensor: _of_tensors({name: tensor})
    )


def _load_bytes(
    contender: Contender, arguments: Mapping[str, Any], inputs: dict[str, Any]
) -> Operation:
    if arguments["path"] not in inputs:
        with open(arguments["path"], "rb") as file:
            inputs[arguments["path"]] = file.read()
    data = inputs[arguments["path"]]
    return Operation(lambda: contender.load_bytes(data), _of_tensors)


def _tensors(arguments: Mapping[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
    if arguments["path"] not in inputs:
        inputs[arguments["path"]] = read_tensors(arguments["path"])
    return inputs[arguments["path"]]


def _save_bytes(
    contender: Contender, arguments: Mapping[str, Any], inputs: dict[str, Any]
) -> Operation:
    tensors = _tensors(arguments, inputs)
    return Operation(lambda: contender.save_bytes(tensors), len if arguments["format"] else _none)


def _save_file(
    contender: Contender, arguments: Mapping[str, Any], inputs: dict[str, Any]
) -> Operation:
    tensors, out = _tensors(arguments, inputs), arguments["out"]
    if arguments.get("numpy"):
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        return Operation(
            lambda: contender.save_numpy(arrays, out),
            fingerprint_of_file if arguments["format"] else _none,
        )
    durable = bool(arguments.get("durable"))
    return Operation(
        lambda: contender.save_file(tensors, out, durable=durable),
        fingerprint_of_file if arguments["format"] else _none,
    )


def _slice(contender: Contender, arguments: Mapping[str, Any], inputs: dict[str, Any]) -> Operation:
    part, keep = contender.sliced(arguments["path"], arguments["name"], arguments["how"])
    inputs[f"open {id(part)}"] = keep
    index = index_of(arguments["index"])
    owned = bool(arguments.get("clone"))

    def run() -> Any:
        found = part[index]
        return found.clone() if owned else found

    return Operation(run, lambda tensor: _of_tensors({"slice": tensor}))


def _hash(contender: Contender, arguments: Mapping[str, Any], _: dict[str, Any]) -> Operation:
    return Operation(lambda: contender.hash_folder(arguments["path"]), _of_lines)


def _verified(contender: Contender, arguments: Mapping[str, Any], _: dict[str, Any]) -> Operation:
    run = contender.verified(arguments["path"], trees=arguments.get("trees", False))
    return Operation(run, lambda tensors: _of_tensors(tensors) if tensors else None)


def _encrypted(contender: Contender, arguments: Mapping[str, Any], _: dict[str, Any]) -> Operation:
    folder, signed = os.path.dirname(arguments["out"]), arguments.get("signed", False)
    run = contender.encrypted(arguments["path"], folder, signed=signed)
    return Operation(run, lambda tensors: _of_tensors(tensors) if tensors else None)


def _encrypt(contender: Contender, arguments: Mapping[str, Any], _: dict[str, Any]) -> Operation:
    out = arguments["out"]
    return Operation(
        contender.encrypt(arguments["path"], out), lambda _: os.path.getsize(out) >> 16
    )


def _rename(contender: Contender, arguments: Mapping[str, Any], _: dict[str, Any]) -> Operation:
    run = contender.renaming(*(arguments[name] for name in ("path", "name", "out", "beside")))
    return Operation(run, fingerprint_of_file)


def _merge(contender: Contender, arguments: Mapping[str, Any], _: dict[str, Any]) -> Operation:
    paths = shards(arguments["path"], f"{arguments['beside']}/shards", arguments["shards"])
    return Operation(contender.merging(paths, arguments["out"]), fingerprint_of_file)


def _compare(contender: Contender, arguments: Mapping[str, Any], _: dict[str, Any]) -> Operation:
    other = changed(arguments["path"], f"{arguments['beside']}/other.safetensors", every=None)
    return Operation(contender.comparing(arguments["path"], other))


def _apply_delta(
    contender: Contender, arguments: Mapping[str, Any], _: dict[str, Any]
) -> Operation:
    beside = arguments["beside"]
    new = changed(arguments["path"], f"{beside}/new.safetensors", every=CHANGES)
    run = contender.patching(arguments["path"], new, beside, arguments["out"])
    return Operation(run, fingerprint_of_file)


_VERBS: Final[dict[str, Callable[[Contender, Mapping[str, Any], dict[str, Any]], Operation]]] = {
    "load": _load,
    "open header": _open_header,
    "first tensor": _first_tensor,
    "load bytes": _load_bytes,
    "save bytes": _save_bytes,
    "save file": _save_file,
    "slice": _slice,
    "hash folder": _hash,
    "load verified": _verified,
    "load encrypted": _encrypted,
    "encrypt file": _encrypt,
    "rename": _rename,
    "merge": _merge,
    "compare": _compare,
    "apply delta": _apply_delta,
}


def _flat(tensor: Any) -> np.ndarray[Any, Any]:
    """The memory of a dense array or tensor, as bytes."""
    if isinstance(tensor, np.ndarray):
        return tensor.reshape(-1).view(np.uint8)
    import torch

    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()


_SAMPLE: Final = 4096


def _of_bytes(name: str, view: Any) -> int:
    """Name, length, and the first and last bytes: what a loader gets wrong shows in these."""
    seen = zlib.crc32(f"{name} {len(view)}".encode())
    seen = zlib.crc32(view[:_SAMPLE], seen)
    return zlib.crc32(view[-_SAMPLE:], seen)


def _of_tensors(tensors: Mapping[str, Any]) -> int:
    total = 0
    for name, tensor in tensors.items():
        total ^= _of_bytes(name, memoryview(_flat(tensor)))
    return total


def _of_lines(text: str) -> int:
    return zlib.crc32("\n".join(sorted(text.splitlines())).encode())


def fingerprint_of_file(path: str) -> int:
    """What the tensors of a safetensors file come to, in whatever order they stand."""
    with tensor_views(path) as views:
        total = 0
        for name, view in views.items():
            total ^= _of_bytes(name, view)
        return total


def _none(_: Any) -> None:
    return None
