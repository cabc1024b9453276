"""`admit`: a policy's verdict on a model, of whose files every one is examined for what it can do.

The decision is that of `trust.policies.admission`; what a file is and can do comes from
`conversion.kinds`. A file of a kind that is not known, or that could not be read, is a finding as well: it
is denied as ``unknown`` unless the policy allows that.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from ..conversion.kinds.examining import GGUF_TEMPLATE, examine, gguf_template
from ..errors import quote
from ..trust.policies.admission import Admission
from ..trust.policies.admission import admit as decide
from ..trust.policies.examination import Finding, examine_source

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator

    from ..storage import Source
    from ..trust.policies.audit import AuditLog
    from ..trust.policies.lockfile import LockFile
    from ..trust.policies.policy import Policy

__all__ = ["admit", "findings_of"]

_KINDS: Final = {
    "acts-call": "pickle", "unknown-call": "pickle", "text-pickle": "pickle", "name-python": "python",
    "kind-python": "python", "kind-notebook": "python", "name-program": "native",
    "kind-program": "native", "kind-script": "native", "polyglot": "polyglot", "auto-map": "auto_map",
    "trust-remote-code": "trust_remote_code", "remote-kernel": "remote_kernel",
}  # fmt: skip
"""Rule of a concern -> the kind of finding that a policy denies; others are ``code`` or ``unknown``."""


def admit(
    path: str | os.PathLike[str],
    policy: Policy | str | os.PathLike[str],
    *,
    name: str | None = None,
    signature: str | os.PathLike[str] | None = None,
    lock: LockFile | None = None,
    log: AuditLog | None = None,
    beneath: str | None = None,
    workers: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> Admission:
    """Decide about the file or folder at `path`, reading all of it; nothing is executed.

    Args:
        path: A model.
        policy: A policy, or the path of one.
        name: What the policy's rules call the model, in place of its path below the policy's root.
        signature: The signature file; by default the rule's, or found by convention.
        lock: What was accepted before, updated where the model is admitted; by default the policy's
            own.
        log: Where the decision is recorded, before it is returned.
        beneath: A folder that every file must be in, links included.
        workers: Files read at a time; by default the number of cores.
        progress: Called with the bytes read so far, from the calling thread.

    Raises:
        DocumentError: The policy or the lock file is malformed, or the log cannot be appended to.
        VerificationError: A file changed while it was read, or is outside ``beneath``.
        OSError: As the operating system has it.
    """
    return decide(
        path, policy, name=name, signature=signature, lock=lock, log=log, beneath=beneath,
        examine=findings_of, workers=workers, progress=progress,
    )  # fmt: skip


def findings_of(source: Source, name: str) -> Iterator[Finding]:
    """What a policy decides about in a file called `name`, whose bytes are `source`."""
    seen = set()
    for finding in examine_source(source, name):
        seen.add(finding.kind)
        yield finding
    examination = examine(source, name)
    for concern in examination.concerns:
        kind = _KINDS.get(concern.rule) or ("code" if concern.power == "acts" else "unknown")
        if kind in {"code", "unknown"} or kind not in seen:
            yield Finding(kind, name, concern.message)
    if examination.kind is not None and examination.kind.id == "gguf":
        template = gguf_template(source)
        if template is not None:
            digest = hashlib.sha256(template.encode("utf-8", "surrogatepass")).hexdigest()
            place = quote(f"{name}#{GGUF_TEMPLATE}")
            yield Finding("template", name, f"the template {place}", digest)
