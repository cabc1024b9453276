"""Whose weights these are: digests, signatures, policy, admission.

Decisions are pure functions of a policy and of evidence; reading, hashing and checking signatures
happen at the edge and produce that evidence. Nothing below this package imports it: a loader is
handed a verifying source, and knows no more.

    digests  blocktree  sidecars        what the bytes are (threads: of many files at once)
    keys  certificates  keyless         who somebody is
    bundle  signing  verifying          what was signed, and whether this is it
    policy  policy_file  evidence       what must be true, and whether it is
    lockfile  audit                     what was true before
    reading  enforcing  admission       only what passed all that gets through
    contents  bom                       what else is in the folder

Needs the extra ``trust`` for anything with a signature in it.

>>> import os, tempfile
>>> folder = tempfile.mkdtemp()
>>> key, model = os.path.join(folder, "key"), os.path.join(folder, "model")
>>> os.mkdir(model)
>>> with open(os.path.join(model, "config.json"), "w") as file:
...     _ = file.write("{}")
>>> public = generate_key(key)
>>> sign(model, load_private_key(key)).subject
'model'
>>> verify(model, public).signed_by.method
'key'
>>> with open(os.path.join(model, "evil.py"), "w") as file:
...     _ = file.write("import os")
>>> try:
...     verify(model, public)
... except VerificationError as error:
...     print(error.reason, "-", error.message)
extra-file - `evil.py` is not part of what was signed
"""

from .admission import Admission, Warrant, admit
from .audit import AuditLog, verify_log
from .bom import bill_of_materials
from .certificates import CertificateTrust, load_certificates
from .digests import check, format_check_file, hash_file, hash_paths, hash_tensors
from .enforcing import Gate, UnverifiedWarning, as_gate
from .errors import (
    DocumentError,
    PolicyViolationError,
    RefusedDocumentError,
    TrustError,
    VerificationError,
)
from .keyless import KeylessTrust
from .keys import CallableSigner, PublicKey, generate_key, load_private_key, load_public_key
from .lockfile import LockFile
from .policy import Decision, Policy, Rule, decide
from .policy_file import load_policy, parse_policy
from .signing import Signed, sign, signature_path
from .verifying import SignedBy, Verification, verify

__all__ = [
    "Admission",
    "AuditLog",
    "CallableSigner",
    "CertificateTrust",
    "Decision",
    "DocumentError",
    "Gate",
    "KeylessTrust",
    "LockFile",
    "Policy",
    "PolicyViolationError",
    "PublicKey",
    "RefusedDocumentError",
    "Rule",
    "Signed",
    "SignedBy",
    "TrustError",
    "UnverifiedWarning",
    "Verification",
    "VerificationError",
    "Warrant",
    "admit",
    "as_gate",
    "bill_of_materials",
    "check",
    "decide",
    "format_check_file",
    "generate_key",
    "hash_file",
    "hash_paths",
    "hash_tensors",
    "load_certificates",
    "load_policy",
    "load_private_key",
    "load_public_key",
    "parse_policy",
    "sign",
    "signature_path",
    "verify",
    "verify_log",
]
