"""Coverage-guided fuzzing of encrypted files: only our errors may come out, and never another plaintext.

    python tests/fuzz/fuzz_age.py -max_total_time=60 [a folder to keep findings in]

The first byte says what the rest is: a file, its header, ASCII armor, a JWE, a payload under a known key,
a file of identities, a file of recipients, or Bech32. A header that is accepted must read the same after it
was written again; what opens must be what was encrypted.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["safeweights"]):
    from safeweights.errors import SafetensorError
    from safeweights.storage import BytesSource
    from safeweights.storage.encrypted import DecryptingSource, encrypting
    from safeweights.trust import Keyring, Passphrase
    from safeweights.trust.access import armor, bech32, header, identities, jwe, recipients

VECTORS = Path(__file__).parents[2] / "conformance" / "age"
LARGEST = 20_000
KEY = bytes(range(16))
PLAIN = b"what was encrypted" * 20
SEALED = b"".join(map(bytes, encrypting(BytesSource(PLAIN), KEY)))


def read_vectors() -> list[tuple[list[str], bytes]]:
    found = []
    for path in sorted(VECTORS.iterdir()):
        head, _, data = path.read_bytes().partition(b"\n\n")
        lines = [line.partition(": ") for line in head.decode().splitlines()]
        found.append(([value for key, _, value in lines if key == "identity"], data))
    return found


SEEDS = [(names, data) for names, data in read_vectors() if len(data) < LARGEST]
KNOWN = sorted({name for names, _ in SEEDS for name in names})
KEYRING = Keyring(
    [*identities.parse_identities("\n".join(KNOWN).encode()), Passphrase("password", max_work_factor=1),
     jwe.JweIdentity(bytes(32))]
)  # fmt: skip


def check_file(data: bytes) -> None:
    plain = KEYRING.open(BytesSource(data, "file"))
    plain.read(0, plain.size)


def check_header(data: bytes) -> None:
    parsed = header.parse_header(data, "file")
    again = header.parse_header(header.build_header(parsed.stanzas, KEY), "again")
    assert again.stanzas == parsed.stanzas
    assert again.text == parsed.text, "two texts of one header"


def check_armor(data: bytes) -> None:
    decoded = armor.dearmored(data, "file")
    stripped = data.strip(b" \t\r\n").replace(b"\r\n", b"\n") + b"\n"
    assert armor.armored(decoded) == stripped, "two texts of one file"


def check_jwe(data: bytes) -> None:
    found = jwe.unwrap(BytesSource(data, "file"), [jwe.JweIdentity(bytes(32))])
    assert found is None, "no JWE under this key was made"


def check_payload(data: bytes) -> None:
    plain = DecryptingSource(BytesSource(data, "file"), 0, KEY)
    assert plain.read(0, plain.size) == PLAIN
    assert data == SEALED, "two files of one plaintext"


def check_identities(data: bytes) -> None:
    identities.parse_identities(data)


def check_recipients(data: bytes) -> None:
    text = data.decode("latin-1")
    found = recipients.parse_recipient(text)
    assert recipients.parse_recipient(found.label).label == found.label


def check_bech32(data: bytes) -> None:
    text = data.decode("latin-1")
    found = bech32.decode(text)
    assert found is None or bech32.encode(*found) == text, "two texts of one key"


CHECKS = [
    check_file, check_header, check_armor, check_jwe, check_payload, check_identities, check_recipients,
    check_bech32,
]  # fmt: skip


def one_input(data: bytes) -> None:
    """Fail on any exception that is not of our family."""
    if data:
        with contextlib.suppress(SafetensorError):
            CHECKS[data[0] % len(CHECKS)](data[1:])


def seeds() -> list[bytes]:
    """One input of each kind, and the vectors."""
    found = [bytes([0]) + data for _, data in SEEDS] + [bytes([1]) + data for _, data in SEEDS]
    found += [bytes([2]) + armor.armored(data) for _, data in SEEDS[:5]]
    start = b"eyJhbGciOiJkaXIiLCJlbmMiOiJBMjU2R0NNIn0.."
    found += [bytes([3]) + start + b"A" * 16 + b".AAAA." + b"A" * 22]
    found += [bytes([4]) + SEALED, bytes([5]) + "\n".join(KNOWN).encode()]
    label = identities.generate_identity().recipient.label.encode()
    return [*found, bytes([6]) + label, bytes([7]) + label]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(seeds()):
            one_input(seed)
            (Path(folder) / str(number)).write_bytes(seed[:LARGEST])
        beginning = ",".join(str(path) for path in sorted(Path(folder).iterdir()))
        program, *options = sys.argv
        given = [program, f"-max_len={LARGEST}", f"-seed_inputs={beginning}", *options]
        atheris.Setup(given, one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
