"""What callers may name as a checkpoint -> the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import checkpoint
from ..checkpoint import Checkpoint, Tensor
from ..errors import SafetensorError, UnsupportedError, quote
from ..storage import BACKENDS
from ..trust.verifier import resolve
from .wording import opening

__all__ = ["dequantized", "opened"]


def opened(target: Any, backend: str, trust: object = None, identity: Any = None) -> Checkpoint:
    """Open a checkpoint; errors have the reference's words.

    Args:
        target: A file, an ``index.json``, a folder, a file object, bytes, a `Checkpoint`, or another
            mapping of names to unread tensors.
        backend: One of `safeweights.storage.BACKENDS`; without meaning for a mapping.
        trust: See `safe_open`.
        identity: See `safe_open`.

    Raises:
        TrustError: A file is not what `trust` asks for.
        FormatError: A file breaks a rule of the format, or is of another format; an index disagrees with
            its shards.
        UnsupportedError: None of these; a mapping is to be trusted, whose files are open already.
        OSError: Something cannot be opened.
        SafetensorError: No such backend.
    """
    if not isinstance(backend, str):
        kind = type(backend).__name__
        raise UnsupportedError(f"argument 'backend': '{kind}' object is not an instance of 'str'")
    if backend not in BACKENDS:
        known = ", ".join(f'"{name}"' for name in BACKENDS)
        raise SafetensorError(f'backend "{backend}" is invalid (expected one of: {known})')
    if isinstance(target, Mapping):
        return _of_mapping(target, trust, identity)
    with opening():
        target, verify = resolve(target, trust, identity)
        return checkpoint.open(target, backend=backend, verify=verify)


def dequantized(checkpoint: Checkpoint, dequantize: bool | str) -> Checkpoint:
    """A checkpoint whose quantised weights are numbers.

    Args:
        checkpoint: The checkpoint.
        dequantize: True for F32, the code of another type, or False for the checkpoint as it is.
    """
    if dequantize is False:
        return checkpoint
    return checkpoint.dequantize("F32" if dequantize is True else dequantize)


def _of_mapping(tensors: Mapping[str, Any], trust: object, identity: Any) -> Checkpoint:
    if trust is not None or identity is not None:
        name = "identity" if trust is None else "trust"
        raise UnsupportedError(
            f"{name}= is for files that are to be opened: give it to `safeweights.open`, which opened this"
        )
    if isinstance(tensors, Checkpoint):
        return tensors
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            kind = type(tensor).__name__
            raise UnsupportedError(f"expected unread tensors, found {quote(str(name))}: {kind}")
    return Checkpoint(tensors)
