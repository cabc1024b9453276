"""Whose weights these are: digests, signatures, policy, admission.

Decisions are pure functions of a policy and of evidence; reading, hashing and checking signatures
happen at the edge and produce that evidence. Nothing below this package imports it: a loader is
given a verifying source and knows nothing else of trust.

    content      digests, block trees, and sources that verify what they read
    signatures   keys, certificates, identities; signing, discovery and verification
    access       who may read a model: age files, recipients and identities
    encryption   encrypting models and decrypting them; rekeying: changing who may read one
    policies     what must be true of a model, what is known of it, and the decision;
                 what was accepted before; admission of folders, and verified loading
    files        the rules for opening files;  documents: strict JSON and TOML, by field
    verifier     what loaders make of ``trust=``, and the default of the process

Signatures need the extra ``trust``.

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

from __future__ import annotations

from ..lazy import lazy_names

TYPE_CHECKING = False  # typing itself costs more to import than this module
if TYPE_CHECKING:
    from ..reports.admission import admit
    from .access.header import Stanza
    from .access.identities import CallableIdentity, generate_identity, write_identity
    from .access.keyring import Keyring, as_keyring
    from .access.passwords import Passphrase
    from .access.recipients import CallableRecipient, parse_recipient, read_recipients
    from .access.rules import AccessRules
    from .access.stores import EncryptedStore
    from .content.digests import check, format_check_file, hash_file, hash_paths, hash_tensors
    from .encryption import Decrypted, Encrypted, decrypt, encrypt
    from .errors import (
        AccessError,
        DocumentError,
        PolicyViolationError,
        RefusedDocumentError,
        TrustError,
        VerificationError,
    )
    from .policies.admission import Admission, Warrant
    from .policies.audit import AuditLog, verify_log
    from .policies.deciding import decide
    from .policies.enforcing import PolicyVerifier, UnverifiedWarning, as_verifier
    from .policies.lockfile import LockFile
    from .policies.policy import Decision, Policy, Revocations, Rule
    from .policies.policy_file import load_policy, parse_policy
    from .policies.sealed import verify_inside
    from .rekeying import Rekeyed, rekey
    from .signatures.certificates import CertificateTrust, load_certificates
    from .signatures.keyless import KeylessSigner, KeylessTrust
    from .signatures.keys import (
        CallableSigner,
        PublicKey,
        command_signer,
        generate_key,
        load_private_key,
        load_public_key,
    )
    from .signatures.signing import Described, Signed, digest, sign, signature_path
    from .signatures.timestamps import KeyTrust, TimestampTrust, request_timestamp
    from .signatures.verifying import SignedBy, Verification, verify

__all__ = [
    "AccessError",
    "AccessRules",
    "Admission",
    "AuditLog",
    "CallableIdentity",
    "CallableRecipient",
    "CallableSigner",
    "CertificateTrust",
    "Decision",
    "Decrypted",
    "Described",
    "DocumentError",
    "Encrypted",
    "EncryptedStore",
    "KeyTrust",
    "KeylessSigner",
    "KeylessTrust",
    "Keyring",
    "LockFile",
    "Passphrase",
    "Policy",
    "PolicyVerifier",
    "PolicyViolationError",
    "PublicKey",
    "RefusedDocumentError",
    "Rekeyed",
    "Revocations",
    "Rule",
    "Signed",
    "SignedBy",
    "Stanza",
    "TimestampTrust",
    "TrustError",
    "UnverifiedWarning",
    "Verification",
    "VerificationError",
    "Warrant",
    "admit",
    "as_keyring",
    "as_verifier",
    "check",
    "command_signer",
    "decide",
    "decrypt",
    "digest",
    "encrypt",
    "format_check_file",
    "generate_identity",
    "generate_key",
    "hash_file",
    "hash_paths",
    "hash_tensors",
    "load_certificates",
    "load_policy",
    "load_private_key",
    "load_public_key",
    "parse_policy",
    "parse_recipient",
    "read_recipients",
    "rekey",
    "request_timestamp",
    "sign",
    "signature_path",
    "verify",
    "verify_inside",
    "verify_log",
    "write_identity",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Admission": "policies.admission",
        "AccessError": "errors",
        "AccessRules": "access.rules",
        "CallableIdentity": "access.identities",
        "CallableRecipient": "access.recipients",
        "Decrypted": "encryption",
        "Encrypted": "encryption",
        "EncryptedStore": "access.stores",
        "Keyring": "access.keyring",
        "Passphrase": "access.passwords",
        "Rekeyed": "rekeying",
        "Stanza": "access.header",
        "as_keyring": "access.keyring",
        "decrypt": "encryption",
        "encrypt": "encryption",
        "generate_identity": "access.identities",
        "parse_recipient": "access.recipients",
        "read_recipients": "access.recipients",
        "rekey": "rekeying",
        "write_identity": "access.identities",
        "AuditLog": "policies.audit",
        "CallableSigner": "signatures.keys",
        "CertificateTrust": "signatures.certificates",
        "Decision": "policies.policy",
        "DocumentError": "errors",
        "Described": "signatures.signing",
        "KeyTrust": "signatures.timestamps",
        "KeylessSigner": "signatures.keyless",
        "KeylessTrust": "signatures.keyless",
        "TimestampTrust": "signatures.timestamps",
        "command_signer": "signatures.keys",
        "digest": "signatures.signing",
        "request_timestamp": "signatures.timestamps",
        "LockFile": "policies.lockfile",
        "Policy": "policies.policy",
        "PolicyVerifier": "policies.enforcing",
        "PolicyViolationError": "errors",
        "PublicKey": "signatures.keys",
        "RefusedDocumentError": "errors",
        "Revocations": "policies.policy",
        "Rule": "policies.policy",
        "Signed": "signatures.signing",
        "SignedBy": "signatures.verifying",
        "TrustError": "errors",
        "UnverifiedWarning": "policies.enforcing",
        "Verification": "signatures.verifying",
        "VerificationError": "errors",
        "Warrant": "policies.admission",
        "admit": ".reports.admission",  # which also knows other formats
        "as_verifier": "policies.enforcing",
        "check": "content.digests",
        "decide": "policies.deciding",
        "format_check_file": "content.digests",
        "generate_key": "signatures.keys",
        "hash_file": "content.digests",
        "hash_paths": "content.digests",
        "hash_tensors": "content.digests",
        "load_certificates": "signatures.certificates",
        "load_policy": "policies.policy_file",
        "load_private_key": "signatures.keys",
        "load_public_key": "signatures.keys",
        "parse_policy": "policies.policy_file",
        "sign": "signatures.signing",
        "signature_path": "signatures.signing",
        "verify": "signatures.verifying",
        "verify_inside": "policies.sealed",
        "verify_log": "policies.audit",
    },
)
