"""Errors of `trust`: three kinds of refusal, each with a stable identifier.

Malformed documents (bundle, sidecar, policy, key), content that was not signed, and content that a
policy does not admit are different answers: the first is "input could not be read" (exit code 3), the
others are "no" (exit code 1). If the question was about the document itself, a signature or a log, a
malformed one is a "no" too. No error contains key material or a password.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import SafetensorError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "AccessError", "DocumentError", "PolicyViolationError", "RefusedDocumentError", "TrustError",
    "VerificationError", "refusing",
]  # fmt: skip


class TrustError(SafetensorError):
    """Trust could not be established.

    Attributes:
        reason: Stable identifier of what was wrong, e.g. ``"digest-mismatch"``.
        exit_code: Exit status for a command line tool.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, reason: str, **where: Any) -> None:
        super().__init__(message, **where)
        self.reason = reason


class DocumentError(TrustError, ValueError):
    """A malformed bundle, sidecar, policy, lock file, log or key.

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
    """The content was not signed as required: another content, another signer, or none."""


class RefusedDocumentError(DocumentError, VerificationError):
    """A malformed signature or log, which is a refusal like a wrong one."""

    exit_code: ClassVar[int] = 1


class AccessError(TrustError):
    """An encrypted file cannot be read, or may not be given to a recipient.

    `reason` is one of ``"encrypted"``: no identity was given; ``"no-match"``: none of those given opens it;
    ``"not-encrypted"``; ``"passphrase"``; ``"recipient"``; ``"mixed-recipients"``; ``"key-file"``.
    """

    exit_code: ClassVar[int] = 3


@contextmanager
def refusing(path: str) -> Iterator[None]:
    """Raise a `DocumentError` about the contents of the document at `path` as a refusal."""
    try:
        yield
    except DocumentError as error:
        if error.path != path or error.reason == "not-a-file":
            raise
        raise RefusedDocumentError(
            error.message, field=error.field, reason=error.reason, path=path, offset=error.offset
        ) from None


class PolicyViolationError(TrustError):
    """The policy refuses a model or a file.

    Attributes:
        decision: The `safeweights.trust.policies.policy.Decision` with all reasons, where there is one.
    """

    def __init__(self, message: str, *, decision: Any = None, **where: Any) -> None:
        super().__init__(message, **where)
        self.decision = decision
