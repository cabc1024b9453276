"""Coverage-guided fuzzing of what a signature is made of: only our errors may come out.

    python tests/fuzz/fuzz_bundle.py -max_total_time=60 [a folder to keep findings in]

The first byte says what the rest is: a bundle, a statement, a certificate of a chain, a timestamp, a
key, a pattern, a block tree, or JSON, which the fast and the exact reader must agree about. A bundle that
is accepted must read the same after it was written again.
"""

from __future__ import annotations

import base64
import contextlib
import json
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["safeweights"]):
    from safeweights.errors import SafetensorError
    from safeweights.format.strictjson import JSONError, Reader
    from safeweights.trust import documents
    from safeweights.trust.content.blocktree import BlockTree, TreeBuilder
    from safeweights.trust.signatures import bundle, keys, timestamps, verifying
    from safeweights.trust.signatures.certificates import (
        CertificateTrust,
        load_certificates,
        verify_chain,
    )
    from safeweights.trust.signatures.patterns import matches

VECTORS = Path(__file__).parents[1] / "trust" / "vectors"
LARGEST = 20_000
SIGNED = [bundle.parse_bundle(path.read_bytes()) for path in sorted(VECTORS.glob("*.sig"))]
CHAIN = next(parsed.certificates for parsed in SIGNED if parsed.method == "certificate")
TRUST = CertificateTrust(CHAIN[1:], name="**.example.org", sha256="00" * 32)


def check_bundle(data: bytes) -> None:
    parsed = bundle.parse_bundle(data)
    assert len(parsed.certificates) <= 10
    verifying.key_hints(parsed)
    if parsed.hint or parsed.method == "certificate":
        again = bundle.parse_bundle(
            bundle.build_bundle(
                parsed.payload, parsed.signature, hint=parsed.hint,
                certificates=parsed.certificates, timestamps=parsed.timestamps,
            )
        )  # fmt: skip
        shown = [(each.payload, each.signature, each.timestamps) for each in (parsed, again)]
        assert shown[0] == shown[1]
        assert again.certificates == parsed.certificates


def check_statement(data: bytes) -> None:
    statement = bundle.parse_statement(data)
    assert statement.resources
    assert statement.subject
    assert not any(".." in name.split("/") for name in statement.resources)


def check_certificate(data: bytes) -> None:
    with contextlib.suppress(SafetensorError):
        load_certificates(data)
    for chain in ([data, *CHAIN[1:]], [CHAIN[0], data, CHAIN[1]]):
        with contextlib.suppress(SafetensorError):
            verify_chain(chain, TRUST)
    with contextlib.suppress(SafetensorError):
        verify_chain(CHAIN, CertificateTrust((data,), sha256="00" * 32))


def check_timestamp(data: bytes) -> None:
    assert len(timestamps.in_der(data)) == len(data)
    trust = timestamps.TimestampTrust(CHAIN[1:])
    assert not timestamps.verify_timestamps([data], b"signature", trust)


def check_key(data: bytes) -> None:
    with contextlib.suppress(SafetensorError):
        keys.load_private_key(data)
    assert keys.load_public_key(data).hint


def check_json(data: bytes) -> None:
    reader = Reader(data)
    try:
        reader.skip()
        reader.end()
        expected = repr(json.loads(data.decode()))
    except (JSONError, ValueError):
        expected = None
    try:
        found = repr(documents.parse_json(data).value)
    except SafetensorError:
        found = None
    assert found == expected


def check_pattern(data: bytes) -> None:
    pattern, _, name = data.decode("latin-1")[:2000].partition("\n")
    if "*" not in pattern:
        assert matches(pattern, name) == (pattern == name)
    elif matches(pattern, name):
        assert name.count("@") == pattern.count("@")


def check_sidecar(data: bytes) -> None:
    """A block tree, and after its root a block and the number of it."""
    root, rest = data[:32], data[32:]
    tree = BlockTree.decode(rest, root)
    assert tree.encode() == rest
    assert tree.root == root
    with contextlib.suppress(SafetensorError):
        tree.check(0, rest[: tree.block_size])


CHECKS = [
    check_bundle, check_statement, check_certificate, check_timestamp, check_key, check_json,
    check_pattern, check_sidecar,
]  # fmt: skip


def one_input(data: bytes) -> None:
    """Fail on any exception that is not of our family."""
    if data:
        with contextlib.suppress(SafetensorError):
            CHECKS[data[0] % len(CHECKS)](data[1:])


def seeds() -> list[bytes]:
    """One input of each kind, and more of those that were published."""
    found = [bytes([0]) + parsed.source for parsed in SIGNED]
    found += [bytes([1]) + parsed.payload for parsed in SIGNED]
    found += [bytes([2]) + der for der in CHAIN]
    found += [bytes([3]) + der for parsed in SIGNED for der in parsed.timestamps]
    found += [bytes([4]) + parsed.raw_key for parsed in SIGNED if parsed.raw_key]
    found += [bytes([5]) + b'{"a": [1, 2.5e3, "\\ud83d\\ude00", null, true]}']
    found += [bytes([6]) + b"*@example.org\nann@example.org"]
    for size in (0, 5000, 300 * 4096):
        builder = TreeBuilder(4096)
        builder.update(bytes(size))
        tree = builder.finish()
        found.append(bytes([7]) + tree.root + tree.encode())
    pem = b"-----BEGIN CERTIFICATE-----\n%b-----END CERTIFICATE-----\n"
    return [*found, bytes([2]) + pem % base64.encodebytes(CHAIN[0])]


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
