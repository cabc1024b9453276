"""What the tests of encrypted models share: identities, an encrypted file, other tools."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from safeweights.storage import BytesSource
from safeweights.storage.encrypted import encrypting
from safeweights.trust.access import recipients
from safeweights.trust.access.header import build_header
from safeweights.trust.access.identities import read_identities
from safeweights.trust.access.keyring import as_keyring

if TYPE_CHECKING:
    from pathlib import Path

AGE = shutil.which("age")
needs_age = pytest.mark.skipif(AGE is None, reason="the package age is not installed")
needs_ssh = pytest.mark.skipif(
    shutil.which("ssh-keygen") is None, reason="the package openssh-client is not installed"
)
QUICK = 8
"""A work factor of scrypt for tests."""

DATA = os.urandom(200_000)


def public(path: Path) -> str:
    """The recipient of an identity in a file."""
    (identity,) = read_identities(path)
    found: str = identity.recipient.label  # type: ignore[attr-defined]
    return found


def encrypt_bytes(data: bytes, *given: Any) -> bytes:
    """An age file."""
    key = os.urandom(16)
    header = build_header([each.wrap(key) for each in recipients.as_recipients(given)], key)
    return header + b"".join(map(bytes, encrypting(BytesSource(data), key)))


def decrypt_bytes(data: bytes, *identities: Any) -> bytes:
    source = as_keyring(identities).open(BytesSource(data, "file"))
    return source.read(0, source.size)


def run(*command: Any, data: bytes | None = None) -> bytes:
    done = subprocess.run(
        [str(each) for each in command], input=data, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout
