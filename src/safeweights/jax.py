"""Trees of JAX arrays that are divided over devices and processes <-> safetensors.

`safeweights.flax` has the interface of `safetensors.flax`, for arrays of one device; this module is for
meshes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .frameworks.jax import sharded

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping

    from .derived.rearranging import Plan
    from .frameworks.handle import Target
    from .storage import Store

__all__ = ["load_sharded", "save_sharded"]


def load_sharded(
    filename: Target,
    target: Any,
    *,
    names: Callable[[str], str] | None = None,
    strict: bool = True,
    plan: Plan | None = None,
    dequantize: bool | str = False,
    backend: str = "pread",
    trust: object = None,
    identity: Any = None,
    progress: Callable[[int], object] | None = None,
) -> Any:
    """Load a checkpoint as a tree of arrays, divided as the leaves of `target` say.

    Each process reads what its own devices hold; a part that several of them hold is read once. The mesh
    need not be the one that saved. Each process calls this by itself: nothing is exchanged.

    Args:
        filename: File, index.json, folder, URL, or any `safeweights.Checkpoint`.
        target: Any pytree, also a ``flax.nnx.State``, whose leaves are shardings (such as
            ``jax.sharding.NamedSharding``), ``jax.ShapeDtypeStruct`` with a sharding, or arrays. Of the
            latter two, shapes must agree with the file, and values get their type. The name of a leaf in
            the file is the keys that lead to it, joined by dots: ``{"layer": {"w": ...}}`` is ``layer.w``.
        names: Name in the tree -> name in the file, where they differ.
        strict: Raise an error also if a name exists only in the file.
        plan: New name -> stored names put together; see `safeweights.Checkpoint.rearrange`.
        dequantize: See `safeweights.flax.load_file`.
        backend: How to read; see `safe_open`.
        trust: Policy, public key or warrant that the files must satisfy; see `safe_open`.
        identity: Who opens encrypted files; see `safe_open`.
        progress: Called with the number of bytes that this process has read so far.

    Returns:
        A tree like `target`, of arrays.

    Cost: memory of the host for the arrays that are not complete, and a GiB that is read ahead.

    Raises:
        StateDictError: Names or shapes differ; nothing was read.
        UnsupportedError: A leaf says no sharding, or its sharding does not fit the shape; or JAX would
            narrow values to 32 bits (``jax_enable_x64``).
        FormatError: The file breaks a rule of the format, or two leaves have the same name.
        TrustError, OSError: Reading failed.
    """
    return sharded.load_sharded(
        filename, target, names=names, strict=strict, plan=plan, dequantize=dequantize,
        backend=backend, trust=trust, identity=identity, progress=progress,
    )  # fmt: skip


def save_sharded(
    tree: Any,
    folder: str | os.PathLike[str] | Store,
    *,
    names: Callable[[str], str] | None = None,
    max_shard_size: int | str = "5GB",
    metadata: Mapping[str, str] | None = None,
    stem: str = "model",
    durable: bool = False,
) -> None:
    """Write a tree of arrays, of one or of several processes, into a folder as Hugging Face files.

    All processes of a multi-process program call this together, with trees of the same structure, and a
    folder that they share. Each writes the parts of which its devices have the first replica, straight
    to their place in the final files: nothing is gathered. An earlier save stays until the new one is
    complete, and a failure in one process is an error in all of them. Arrays that every process has by
    itself are written by process 0.

    Args:
        tree: Any pytree of arrays, also a ``flax.nnx.State``; names as for `load_sharded`.
        folder: Its path; with one process, any store.
        names: Name in the tree -> name in the file, where they differ.
        max_shard_size: Most bytes of tensors in one file, which a single larger tensor exceeds.
        metadata: Strings to strings, for every file.
        stem: Beginning of the names of the files.
        durable: Return only when all of it would survive a loss of power.

    Cost: memory of the host for one array, or of several processes for one part of an array.

    Raises:
        UnsupportedError: A leaf is no array; or the store takes each file from one process only.
        FormatError, DTypeError: What the format cannot hold; nothing is written.
        RankError: Another process failed, or saves another tree; the folder has what it had.
        OSError: Writing failed; likewise.
    """
    sharded.save_sharded(
        tree, folder, names=names, max_shard_size=max_shard_size, metadata=metadata, stem=stem,
        durable=durable,
    )  # fmt: skip
