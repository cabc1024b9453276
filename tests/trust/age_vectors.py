"""Read test vectors of age files: those of this project and the published ones have the same form."""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from safeweights.errors import FormatError
from safeweights.storage import BytesSource
from safeweights.trust import AccessError, Keyring, Passphrase
from safeweights.trust.access.identities import parse_identities

if TYPE_CHECKING:
    from pathlib import Path

RULES = {"age-header": "header failure", "age-mac": "HMAC failure", "age-armor": "armor failure",
         "age-payload": "payload failure"}  # fmt: skip


@dataclass
class AgeVector:
    """A vector: what a reader has to say of `data`."""

    name: str
    expect: str = ""
    payload: str = ""
    armored: bool = False
    identities: list[str] = field(default_factory=list)
    passphrases: list[str] = field(default_factory=list)
    data: bytes = b""


def read_vector(path: Path) -> AgeVector:
    head, _, data = path.read_bytes().partition(b"\n\n")
    vector = AgeVector(path.name, data=data)
    for line in head.decode().split("\n"):
        key, _, value = line.partition(": ")
        if key in {"expect", "payload"}:
            setattr(vector, key, value)
        elif key == "identity":
            vector.identities.append(value)
        elif key == "passphrase":
            vector.passphrases.append(value)
        elif key == "armored":
            vector.armored = True
        elif key == "compressed":
            vector.data = zlib.decompress(data)
        elif key not in {"comment", "file key"}:
            raise AssertionError(f"{path.name}: unknown key {key}")
    return vector


def outcome(vector: AgeVector) -> tuple[str, str]:
    """What this reader says of a vector, and the SHA-256 of the plaintext."""
    keyring = Keyring(
        [
            *parse_identities("\n".join(vector.identities or ["#"]).encode()),
            *map(Passphrase, vector.passphrases),
        ]
        if vector.identities
        else map(Passphrase, vector.passphrases)
    )
    try:
        plain = keyring.open(BytesSource(vector.data, vector.name))
        content = bytes(plain.view(0, plain.size))
    except FormatError as error:
        return RULES[error.rule], ""
    except AccessError as error:
        if error.reason == "not-encrypted":
            return "armor failure" if vector.armored else "header failure", ""
        return {"no-match": "no match"}[error.reason], ""
    return "success", hashlib.sha256(content).hexdigest()
