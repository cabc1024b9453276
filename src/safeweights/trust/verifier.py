"""``trust=`` -> what a loader opens its files through.

Every loader takes ``trust=`` and calls `verifier`. Without it nothing else of `trust` is imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..storage import Verifier

__all__ = ["verifier"]


def verifier(trust: object) -> Verifier | None:
    """The function that a loader calls with every source it opens and its path; None without `trust`.

    Raises:
        TypeError, TrustError, OSError: See `safeweights.trust.as_verifier`.
    """
    if trust is None:
        return None
    from .policies.enforcing import as_verifier

    return as_verifier(trust)
