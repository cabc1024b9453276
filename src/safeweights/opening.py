"""`safeweights.open`: a checkpoint, and where it is asked for only what can be trusted of it.

`checkpoint` must not know of trust; here the two meet. Without ``trust=`` nothing of it is imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import checkpoint

if TYPE_CHECKING:
    from .storage import Verify

__all__ = ["open", "verifier"]


def open(target: Any, *, backend: str = "mmap", trust: object = None) -> checkpoint.Checkpoint:
    """Open a checkpoint: a file, an ``index.json``, a folder, a file object, or bytes.

    Reads and checks headers only. A folder is read through its index where it has one; without one
    all its ``.safetensors`` files are taken together.

    Args:
        target: Path, readable file object, or bytes-like object that holds a file.
        backend: ``"mmap"`` maps files, ``"pread"`` reads what is asked for. A mapping is fastest, but
            if another process truncates the file, touching it kills the process.
        trust: A policy, a public key, a warrant, or the path of one (`safeweights.trust.as_gate`). Of every
            file, the index too, only bytes that were checked are then handed out; of one that was
            signed with a block tree only the blocks that are read.

    Raises:
        FormatError: A file breaks the format; an index disagrees with its shards; shards are missing.
        UnsupportedError: `target` is none of these, or there is no such backend, or something other
            than a path is to be trusted.
        TrustError: A file is not what `trust` asks for, here or when it is read.
        OSError: Something cannot be opened or read.

    >>> import safeweights.numpy, numpy
    >>> data = safeweights.numpy.save({"a": numpy.zeros(3, "f4")})
    >>> open(data)["a"]
    <FileTensor `a` F32 [3]>
    """
    return checkpoint.open(target, backend=backend, verify=verifier(trust))


def verifier(trust: object) -> Verify | None:
    """What `checkpoint` needs of a ``trust=``; None without one.

    Raises:
        TrustError, OSError: See `safeweights.trust.as_gate`.
    """
    if trust is None:
        return None
    from .trust import as_gate  # few need it, and it takes longer than opening a file

    return as_gate(trust)
