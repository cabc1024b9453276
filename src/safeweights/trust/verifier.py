"""``trust=``: what a loader opens its files through, and the process-wide default.

Every loader takes ``trust=`` and calls `verifier`. Without it, and without a default, nothing else of
`trust` is imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import UnsupportedError

if TYPE_CHECKING:
    from ..storage import Verifier

__all__ = ["check_unnamed", "set_default", "verifier"]


class _Process:
    """What loaders of this process use that are not given ``trust=``."""

    default: Verifier | None = None


def verifier(trust: object) -> Verifier | None:
    """The function that a loader calls with every source it opens and its path.

    Args:
        trust: As for `safeweights.trust.as_verifier`; None for the process-wide default.

    Returns:
        None where there is neither.

    Raises:
        TypeError, TrustError, OSError: See `safeweights.trust.as_verifier`.
    """
    trust = _Process.default if trust is None else trust
    if trust is None:
        return None
    from .policies.enforcing import as_verifier

    return as_verifier(trust)


def set_default(trust: object) -> None:
    """Have every loader of this process that is not given ``trust=`` use `trust`; None to undo that.

    A path is read now, and signatures that were checked are remembered for the whole process.

    Raises:
        TypeError, TrustError, OSError: See `safeweights.trust.as_verifier`; the default stays.
    """
    if trust is None:
        _Process.default = None
        return
    from .policies.enforcing import PolicyVerifier, shared_verifier

    shared = shared_verifier(trust)
    off = isinstance(shared, PolicyVerifier) and shared.policy.mode == "off"
    _Process.default = None if off else shared


def check_unnamed() -> None:
    """Refuse bytes that were opened by no path, where the process-wide default must verify them.

    Raises:
        UnsupportedError: There is a default: nothing says which model the bytes are of.
    """
    if _Process.default is not None:
        raise UnsupportedError(
            "this process loads models under a policy, which decides by path: load the file by its "
            "path, not from bytes"
        )
