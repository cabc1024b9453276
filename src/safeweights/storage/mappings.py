"""A check, for development, that no file is truncated while this process has it mapped.

A tensor that shares a mapping cannot be read after its file was truncated: the process ends with SIGBUS.
The check warns before Python truncates such a file. It is an audit hook (PEP 578), which Python cannot
remove and which makes audited calls, such as `id`, 0.2 us slower. So it is added only with
``python -X dev`` or ``SAFEWEIGHTS_CHECK_MAPPINGS=1`` (docs/adr/009).
"""

from __future__ import annotations

import os
import sys
import warnings
import weakref
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import mmap

__all__ = ["is_checked", "note_mapping"]

VARIABLE: Final = "SAFEWEIGHTS_CHECK_MAPPINGS"

_Identity = tuple[int, int]  # device and inode

_mapped: Final[dict[_Identity, int]] = {}
"""File -> number of its mappings that are in use."""

_hooked: Final[list[bool]] = []


def is_checked() -> bool:
    """Whether mappings are to be noted: in Python's development mode, or by the environment variable."""
    return sys.flags.dev_mode or os.environ.get(VARIABLE) == "1"


def note_mapping(mapping: mmap.mmap, status: os.stat_result) -> None:
    """Warn from now on, as long as `mapping` is in use, before the file that it maps is truncated.

    Args:
        mapping: The object that owns the memory.
        status: The file's.
    """
    if not _hooked:
        sys.addaudithook(_hook)
        _hooked.append(True)
    identity = status.st_dev, status.st_ino
    _mapped[identity] = _mapped.get(identity, 0) + 1
    weakref.finalize(mapping, _forget, identity).atexit = False


def _forget(identity: _Identity) -> None:
    _mapped[identity] -= 1
    if not _mapped[identity]:
        del _mapped[identity]


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open":
        target, _, flags = arguments
        truncated = isinstance(flags, int) and bool(flags & os.O_TRUNC)
    else:
        truncated = event == "os.truncate"  # of os.ftruncate too, with a descriptor
        target = arguments[0] if truncated else None
    if not (truncated and _mapped) or (event == "open" and isinstance(target, int)):
        return
    try:
        status = os.stat(target)
    except (OSError, ValueError, TypeError):
        return  # it does not exist, or the call itself will say what is wrong
    if (status.st_dev, status.st_ino) in _mapped:
        warnings.warn(
            f"{target!r} is mapped by tensors that were loaded from it; to truncate it ends this process "
            "(SIGBUS) when one of them is read. Write another file and rename it, as save_file does, or "
            'load with backend="read"',
            RuntimeWarning,
            stacklevel=2,
        )
