"""Encrypted weights: loading, verifying and writing them, beside the cipher alone and pyrage.

    python benchmarks/encryption.py [--mib 1024]

The yardstick of decryption is ``ChaCha20Poly1305`` of the package cryptography over the same 64 KiB
chunks, from memory to memory that was used before, in as many threads; of verification the same and then
SHA-256, one after the other. Files are in the page cache. Ways take turns, RUNS times; the best of each
counts, since other work on the machine only adds. Memory is the most that a fresh process had beyond what
it hands out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

import safeweights
import safeweights.numpy
from safeweights import trust
from safeweights.storage.parallel import in_parallel

RUNS = 3
CPU = "--cpu" in sys.argv
"""Count processor time: for machines that do other work as well."""

CHUNK = 1 << 16
SEALED = CHUNK + 16
TENSORS = 64


def rate(work: Callable[[], object], size: int) -> float:
    """GiB/s of one run, by the clock; by the processor time of all threads with ``--cpu``."""
    clock = time.process_time if CPU else time.perf_counter
    begin = clock()
    work()
    return size / (clock() - begin) / (1 << 30)


def cipher_alone(size: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """(decrypting chunks in threads, the same and then hashing), of as many bytes."""
    chunks = size // CHUNK
    sealed = np.zeros(chunks * SEALED, np.uint8).data
    plain = np.zeros(chunks * CHUNK, np.uint8).data
    key = bytes(32)

    def seal(first: int, last: int) -> None:
        cipher = ChaCha20Poly1305(key)
        for n in range(first, last):
            cipher.encrypt_into(
                n.to_bytes(12, "big"),
                plain[n * CHUNK :][:CHUNK],
                None,
                sealed[n * SEALED :][:SEALED],
            )

    def unseal(first: int, last: int) -> None:
        cipher = ChaCha20Poly1305(key)
        for n in range(first, last):
            cipher.decrypt_into(
                n.to_bytes(12, "big"),
                sealed[n * SEALED :][:SEALED],
                None,
                plain[n * CHUNK :][:CHUNK],
            )

    def digest(first: int, last: int) -> None:
        for n in range(first, last, 16):
            hashlib.sha256(plain[n * CHUNK : min(n + 16, last) * CHUNK]).digest()

    in_parallel(seal, chunks, chunk=128)

    def decrypt() -> None:
        in_parallel(unseal, chunks, chunk=128)

    def decrypt_and_hash() -> None:
        decrypt()
        in_parallel(digest, chunks, chunk=128)

    return decrypt, decrypt_and_hash


def peak(code: str, *arguments: str) -> int:
    """Bytes that a fresh process had at most, as it says itself."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, check=True)
    return int(done.stdout)


PEAK = """
import sys
def peak():  # not ru_maxrss, which a process inherits from the one that started it
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))
"""
LOAD = f"""{PEAK}
import numpy, safeweights.numpy, safeweights.trust.encryption
path, me = sys.argv[1:]
before = peak()
found = safeweights.numpy.load_file(path, identity=me)
print(peak() - before - sum(each.nbytes for each in found.values()))
"""
WRITE = f"""{PEAK}
import numpy, safeweights, safeweights.trust.encryption
path, recipient, out = sys.argv[1:]
before = peak()
safeweights.encrypt(path, recipient, out, durable=False)
print(peak() - before)
"""


def measure(folder: Path, size: int) -> dict[str, float]:
    plain, sealed = folder / "model.safetensors", folder / "model.safetensors.age"
    tensors = {
        f"layer.{n:02}": np.random.default_rng(n).integers(0, 256, size // TENSORS, np.uint8)
        for n in range(TENSORS)
    }
    safeweights.numpy.save_file(tensors, plain)
    trust.generate_key(folder / "key")
    signer = trust.load_private_key(folder / "key")
    identity = trust.generate_identity()
    trust.write_identity(folder / "me", identity)
    recipient = identity.recipient.label
    trust.sign(plain, signer)
    safeweights.encrypt(plain, recipient, sealed, durable=False)
    trust.sign(sealed, signer)
    decrypt, decrypt_and_hash = cipher_alone(size)
    ways: dict[str, Callable[[], object]] = {
        "cipher": decrypt,
        "load": lambda: safeweights.numpy.load_file(sealed, identity=folder / "me"),
        "cipher, then hash": decrypt_and_hash,
        "verified load": lambda: safeweights.numpy.load_file(
            sealed, identity=folder / "me", trust=signer.public_key
        ),
        "encrypt": lambda: safeweights.encrypt(
            plain, recipient, folder / "again.age", durable=False
        ),
    }
    try:
        import pyrage
    except ImportError:
        print("pyrage is not installed: no comparison with it")
    else:
        key, data = pyrage.x25519.Identity.from_str(identity.text()), sealed.read_bytes()
        ways["pyrage"] = lambda: pyrage.decrypt(data, [key])
    best: dict[str, float] = {}
    for _ in range(RUNS):
        for name, work in ways.items():
            best[name] = max(best.get(name, 0), rate(work, size))
            (folder / "again.age").unlink(missing_ok=True)
    best["chunks of one tensor"] = chunks_of_a_tensor(sealed, folder / "me")
    best["MiB beyond the tensors, loading"] = peak(LOAD, str(sealed), str(folder / "me")) / (
        1 << 20
    )
    best["MiB, encrypting"] = peak(WRITE, str(plain), recipient, str(folder / "out.age")) / (
        1 << 20
    )
    return best


def chunks_of_a_tensor(path: Path, identity: Path) -> float:
    """How many chunks are read for one tensor, opening the file included, beyond its own."""
    reads: list[int] = []
    from safeweights.storage.files import DescriptorSource

    real = DescriptorSource.read_into

    def counting(self: DescriptorSource, offset: int, buffer: memoryview) -> None:
        reads.append(len(buffer))
        real(self, offset, buffer)

    DescriptorSource.read_into = counting  # type: ignore[method-assign]
    try:
        with safeweights.safe_open(path, "np", identity=identity) as file:
            tensor = file.get_tensor(f"layer.{TENSORS // 2:02}")
    finally:
        DescriptorSource.read_into = real  # type: ignore[method-assign]
    return sum(reads) / SEALED - tensor.nbytes / CHUNK


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=1024, help="size of the file")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--cpu", action="store_true", help="count processor time, not the clock")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_FOLDER")) as folder:
        found = measure(Path(folder), given.mib << 20)
    if given.json:
        print(json.dumps(found))
        return 0
    for name, value in found.items():
        print(f"{name:34} {value:8.2f}{'' if name.startswith(('MiB', 'chunks')) else ' GiB/s'}")
    print(f"{'load / cipher':34} {found['load'] / found['cipher']:8.2f}")
    both = found["verified load"] / found["cipher, then hash"]
    print(f"{'verified load / cipher, then hash':34} {both:8.2f}")
    print(f"{'encrypt / cipher':34} {found['encrypt'] / found['cipher']:8.2f}")
    if "pyrage" in found:
        print(f"{'load / pyrage':34} {found['load'] / found['pyrage']:8.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
