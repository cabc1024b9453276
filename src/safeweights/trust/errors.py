"""What goes wrong when trust is asked for: three kinds of refusal, each with a stable identifier.

A document (bundle, sidecar, policy, key) that cannot be understood, content that is not what was
signed, and content that a policy does not admit are different answers for a caller: the first is
"input could not be read" (exit code 3), the others are "no" (exit code 1). Where the question was about the
document itself, a signature or a log, one that cannot be understood is a "no" too. Nothing here ever
carries key material or a password.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import SafetensorError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "DocumentError", "PolicyViolationError", "RefusedDocumentError", "TrustError",
    "VerificationError", "refusing",
]  # fmt: skip


class TrustError(SafetensorError):
    """Trust could not be established.

    Attributes:
        reason: Stable identifier of what was wrong, e.g. ``"digest-mismatch"``.
        exit_code: What a command line tool should exit with.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, reason: str, **where: Any) -> None:
        super().__init__(message, **where)
        self.reason = reason


class DocumentError(TrustError, ValueError):
    """A bundle, sidecar, policy, lock, log or key that is not what it has to be.

    Attributes:
        field: Where in the document, e.g. ``"predicate.resources[2].digest"``; empty for the whole.
    """

    exit_code: ClassVar[int] = 3

    def __init__(
        self, message: str, *, field: str = "", reason: str = "malformed", **where: Any
    ) -> None:
        super().__init__(message, reason=reason, **where)
        self.field = field
        self._describe()

    def _text(self) -> str:
        field: str = self.__dict__.get("field", "")
        return f"{field}: {super()._text()}" if field else super()._text()


class VerificationError(TrustError):
    """The content, or who signed it, is not what was asked for."""


class RefusedDocumentError(DocumentError, VerificationError):
    """A signature or a log that cannot be understood: as much a refusal as a wrong one."""

    exit_code: ClassVar[int] = 1


@contextmanager
def refusing(path: str) -> Iterator[None]:
    """Within, a `DocumentError` about what is in the document at `path` is a refusal."""
    try:
        yield
    except DocumentError as error:
        if error.path != path or error.reason == "not-a-file":
            raise
        raise RefusedDocumentError(
            error.message, field=error.field, reason=error.reason, path=path, offset=error.offset
        ) from None


class PolicyViolationError(TrustError):
    """The policy does not admit this.

    Attributes:
        decision: The `safeweights.trust.policies.policy.Decision` that explains it, when there is one.
    """

    def __init__(self, message: str, *, decision: Any = None, **where: Any) -> None:
        super().__init__(message, **where)
        self.decision = decision
