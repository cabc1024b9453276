"""Write conformance/age/: encrypted files that a reader of age v1 must open or refuse.

    python scripts/make_age_vectors.py          writes all of them anew
    python scripts/make_age_vectors.py --check  exits 1 if what is there differs

Rebuilt from the specification (c2sp.org/age) with the primitives of `hashlib` and `cryptography` alone, so
that the expectations do not come from the code that they test. The files have the form of the published
test vectors (c2sp.org/CCTV/age), so that one runner reads both: lines ``key: value``, an empty line, then
the encrypted file. `expect` is "success", "no match", "HMAC failure", "header failure", "armor failure" or
"payload failure"; `payload` is the SHA-256 of the plaintext.
"""

# ruff: noqa: E501 - tables of vectors

from __future__ import annotations

import base64
import hashlib
import hmac
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

FOLDER = Path(__file__).parents[1] / "conformance" / "age"
FILE_KEY = bytes(range(1, 17))
SECRET = hashlib.sha256(b"the identity of the vectors").digest()
OTHER = hashlib.sha256(b"another identity").digest()
SEED = hashlib.sha256(b"the hybrid identity of the vectors").digest()
CHUNK = 1 << 16
FULL_LINE = bytes(40)
"""With this plaintext the encrypted file has a multiple of 48 bytes."""

LETTERS = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
BEGIN, END = "-----BEGIN AGE ENCRYPTED FILE-----", "-----END AGE ENCRYPTED FILE-----"
LOW_ORDER = bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800")


class Vector(NamedTuple):
    """An encrypted file, and what a reader has to say of it."""

    name: str
    expect: str
    data: bytes
    comment: str
    identities: tuple[str, ...] = ()
    passphrases: tuple[str, ...] = ()
    plain: bytes = b"age"
    armored: bool = False


# ---- primitives


def hkdf(secret: bytes, salt: bytes, info: bytes) -> bytes:
    extracted = hmac.new(salt or bytes(32), secret, hashlib.sha256).digest()
    return hmac.new(extracted, info + b"\1", hashlib.sha256).digest()


def seal(key: bytes, data: bytes, nonce: bytes = bytes(12)) -> bytes:
    return ChaCha20Poly1305(key).encrypt(nonce, data, None)


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode().rstrip("=")


def not_canonical(text: str) -> str:
    """Another encoding of the same data: a bit that is not part of it is set in the last letter."""
    return text[:-1] + ALPHABET[ALPHABET.index(text[-1]) + 1]


def random(label: str, size: int = 32) -> bytes:
    return hashlib.shake_256(f"vector {label}".encode()).digest(size)


def dh(secret: bytes, public: bytes) -> bytes:
    try:
        key = X25519PrivateKey.from_private_bytes(secret)
        return key.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:  # a point of low order
        return bytes(32)


def public_of(secret: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def bech32(prefix: str, data: bytes) -> str:
    bits = "".join(f"{byte:08b}" for byte in data)
    values = [int(bits[at : at + 5].ljust(5, "0"), 2) for at in range(0, len(bits), 5)]
    lower = prefix.lower()
    expanded = [ord(c) >> 5 for c in lower] + [0] + [ord(c) & 31 for c in lower]
    check = 1
    for value in expanded + values + [0] * 6:
        top, check = check >> 25, (check & 0x1FFFFFF) << 5 ^ value
        for bit, generator in enumerate(
            (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
        ):
            check ^= generator if top >> bit & 1 else 0
    values += [(check ^ 1) >> 5 * (5 - at) & 31 for at in range(6)]
    text = f"{lower}1{''.join(LETTERS[value] for value in values)}"
    return text.upper() if prefix.isupper() else text


IDENTITY = bech32("AGE-SECRET-KEY-", SECRET)
OTHER_IDENTITY = bech32("AGE-SECRET-KEY-", OTHER)
HYBRID_IDENTITY = bech32("AGE-SECRET-KEY-PQ-", SEED)


# ---- stanzas and files


def body(data: bytes) -> str:
    text = b64(data)
    return "".join(f"{text[at : at + 64]}\n" for at in range(0, len(text) + 1, 64))


def x25519(file_key: bytes = FILE_KEY, share: bytes | None = None, secret: bytes = SECRET) -> str:
    share = public_of(random("ephemeral")) if share is None else share
    key = hkdf(dh(secret, share), share + public_of(secret), b"age-encryption.org/v1/X25519")
    return f"-> X25519 {b64(share)}\n{body(seal(key, file_key))}"


def scrypt(passphrase: str = "password", log: int = 10, salt: bytes = random("salt", 16)) -> str:
    key = hashlib.scrypt(
        passphrase.encode(),
        salt=b"age-encryption.org/v1/scrypt" + salt,
        n=1 << log,
        r=8,
        p=1,
        dklen=32,
    )
    return f"-> scrypt {b64(salt)} {log}\n{body(seal(key, FILE_KEY))}"


def hybrid_parts(file_key: bytes = FILE_KEY, share: bytes | None = None) -> tuple[bytes, bytes]:
    """What X-Wing (draft-connolly-cfrg-xwing-kem) encapsulates, and what HPKE (RFC 9180) seals with it.

    ML-KEM takes its randomness from the system, so that these vectors differ each time they are made.
    """
    expanded = hashlib.shake_256(SEED).digest(96)
    private, secret = MLKEM768PrivateKey.from_seed_bytes(expanded[:64]), expanded[64:]
    shared_mlkem, sealed_mlkem = private.public_key().encapsulate()
    share = public_of(random("hybrid ephemeral")) if share is None else share
    label = b"\\.//^\\"
    shared = hashlib.sha3_256(
        shared_mlkem + dh(secret, share) + share + public_of(secret) + label
    ).digest()
    suite = b"HPKE" + bytes.fromhex("647a00010003")

    def extract(salt: bytes, name: bytes, data: bytes) -> bytes:
        return hmac.new(
            salt or bytes(32), b"HPKE-v1" + suite + name + data, hashlib.sha256
        ).digest()

    def expand(secret: bytes, name: bytes, info: bytes, size: int) -> bytes:
        text = size.to_bytes(2, "big") + b"HPKE-v1" + suite + name + info + b"\1"
        return hmac.new(secret, text, hashlib.sha256).digest()[:size]

    info = b"age-encryption.org/mlkem768x25519"
    context = b"\0" + extract(b"", b"psk_id_hash", b"") + extract(b"", b"info_hash", info)
    secret = extract(shared, b"secret", b"")
    key, nonce = expand(secret, b"key", context, 32), expand(secret, b"base_nonce", context, 12)
    return sealed_mlkem + share, seal(key, file_key, nonce)


def hybrid(file_key: bytes = FILE_KEY, share: bytes | None = None) -> str:
    enc, sealed = hybrid_parts(file_key, share)
    return f"-> mlkem768x25519 {b64(enc)}\n{body(sealed)}"


def mac(text: str, file_key: bytes = FILE_KEY) -> str:
    key = hkdf(file_key, b"", b"header")
    return f" {b64(hmac.new(key, text.encode(), hashlib.sha256).digest())}\n"


def chunks(*parts: tuple[bytes, int, bool], file_key: bytes = FILE_KEY) -> bytes:
    """A payload of chunks, each with its number and whether it is sealed as the last."""
    nonce = random("nonce", 16)
    key = hkdf(file_key, nonce, b"payload")
    sealed = [seal(key, data, n.to_bytes(11, "big") + bytes([last])) for data, n, last in parts]
    return nonce + b"".join(sealed)


def age(stanzas: str, payload: bytes | None = None, file_key: bytes = FILE_KEY) -> bytes:
    text = f"age-encryption.org/v1\n{stanzas}---"
    payload = chunks((b"age", 0, True), file_key=file_key) if payload is None else payload
    return (text + mac(text, file_key)).encode() + payload


def armor(data: bytes) -> str:
    text = base64.b64encode(data).decode()
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    return "\n".join([BEGIN, *lines, END, ""])


# ---- the cases


def header_cases() -> Iterator[tuple[str, str, bytes, str]]:
    good = x25519()
    failure = "header failure"
    yield "x25519", "success", age(good), "one recipient"
    yield "x25519-multiple", "success", age(x25519(secret=OTHER) + good), "two recipients"
    yield "empty-file", failure, b"", "nothing at all"
    yield "header-crlf", failure, age(good.replace("\n", "\r\n")), "lines end with CRLF"
    yield (
        "version-unsupported",
        failure,
        age(good).replace(b"/v1\n", b"/v1234\n", 1),
        "another version",
    )
    yield (
        "version-crlf",
        failure,
        age(good).replace(b"/v1\n", b"/v1\r\n", 1),
        "CRLF after the version",
    )
    yield "version-leading-space", failure, b" " + age(good), "a space before the version"
    yield "header-cut-in-version", failure, age(good)[:15], "cut off in the version line"
    yield "header-cut-in-stanza", failure, age(good)[:60], "cut off in the stanza"
    yield (
        "header-cut-before-mac",
        failure,
        age(good)[: len("age-encryption.org/v1\n" + good)],
        "no MAC line",
    )
    yield "no-stanza", failure, age(""), "a file has at least one recipient"
    text = f"age-encryption.org/v1\n{good}---"
    right = mac(text)
    tail = chunks((b"age", 0, True))
    for name, expect, line, why in (
        ("mac-bad", "HMAC failure", mac(text, bytes(16)), "the MAC of another file key"),
        ("mac-missing", failure, "\n", "the line has no MAC"),
        ("mac-no-space", failure, right[1:], "no space before the MAC"),
        ("mac-extra-space", failure, " " + right, "two spaces before the MAC"),
        ("mac-trailing-space", failure, right[:-1] + " \n", "a space after the MAC"),
        ("mac-truncated", failure, right[:-3] + "\n", "the MAC is too short"),
        ("mac-long", failure, right[:-1] + "AA\n", "the MAC is too long"),
        ("mac-padding", failure, right[:-1] + "=\n", "base64 with padding"),
        ("mac-not-canonical", failure, not_canonical(right[:-1]) + "\n", "base64 is not canonical"),
        ("mac-no-line-feed", failure, right[:-1], "the payload follows without a line feed"),
    ):
        yield name, expect, (text + line).encode() + tail, why
    changed = age(x25519(secret=OTHER) + good)
    yield (
        "mac-stanza-removed",
        "HMAC failure",
        changed.replace(x25519(secret=OTHER).encode(), b""),
        "a stanza was removed",
    )
    yield (
        "mac-stanza-added",
        "HMAC failure",
        age(good).replace(b"\n", b"\n-> added\n\n", 1),
        "a stanza was added",
    )


def stanza_cases() -> Iterator[tuple[str, str, bytes, str]]:
    good = x25519()
    failure = "header failure"
    for name, expect, stanza, why in (
        ("valid-characters", "success", "-> !\"#$%&' ()*+,-./ 0~ a\n\n", "arguments of any visible characters"),
        ("long-body", "success", "-> stanza\n" + "A" * 64 + "\nAA\n", "a body of two lines"),
        ("empty-body", "success", "-> empty\n\n", "an empty body is a line without letters"),
        ("full-line-then-empty", "success", "-> full\n" + "A" * 64 + "\n\n", "a full line is followed by an empty one"),
        ("no-final-line", failure, "-> stanza\n" + "A" * 64 + "\n", "the short line at the end is missing"),
        ("missing-body", failure, "-> stanza\n", "the body is missing"),
        ("long-line", failure, "-> stanza\n" + "A" * 65 + "\n\n", "a line of more than 64 columns"),
        ("several-short-lines", failure, "-> stanza\nAAAA\nAAAA\n", "two short lines"),
        ("no-arguments", failure, "->\n\n", "no argument"),
        ("only-a-space", failure, "-> \n\n", "an empty argument"),
        ("empty-argument", failure, "-> stanza  a\n\n", "two spaces"),
        ("trailing-space", failure, "-> stanza \n\n", "a space at the end"),
        ("tab", failure, "-> stanza\ta\n\n", "a tab between arguments"),
        ("control-character", failure, "-> stanza \x7f\n\n", "a control character"),
        ("not-ascii", failure, "-> stanza \u00e8\n\n", "an argument is not ASCII"),
        ("bad-start", failure, "=> stanza\n\n", "a line begins with something else"),
        ("no-space", failure, "->stanza\n\n", "no space after the arrow"),
        ("carriage-return", failure, "-> stanza\n\r\n", "a carriage return"),
        ("padding", failure, "-> stanza\nAA==\n", "base64 with padding"),
        ("not-canonical", failure, "-> stanza\nAB\n", "base64 that is not canonical"),
        ("one-letter", failure, "-> stanza\nA\n", "a letter of base64 that is no byte"),
        ("not-base64", failure, "-> stanza\nA-_A\n", "letters of another alphabet"),
        ("space-in-body", failure, "-> stanza\nAA AA\n", "a space in the body"),
        ("empty-line-between", failure, "-> stanza\n\n\n", "an empty line between stanzas"),
    ):  # fmt: skip
        yield f"stanza-{name}", expect, age(stanza + good), why
    many = "".join(f"-> grease {number}\n\n" for number in range(300))
    yield "stanza-300", "success", age(many + good), "300 recipients that nobody knows"


def x25519_cases() -> Iterator[tuple[str, str, bytes, str]]:
    share, sealed = x25519().removesuffix("\n").removeprefix("-> X25519 ").split("\n")
    failure = "header failure"
    yield "x25519-no-match", "no match", age(x25519(secret=OTHER)), "for another identity"
    for name, expect, stanza, why in (
        ("lowercase", "no match", f"-> x25519 {share}\n{sealed}\n", "types are case-sensitive"),
        ("bad-tag", "no match", f"-> X25519 {share}\n{'A' * 43}\n", "another wrapped key"),
        ("extra-argument", failure, f"-> X25519 {share} 1\n{sealed}\n", "three arguments"),
        ("no-share", failure, f"-> X25519\n{sealed}\n", "one argument"),
        ("short-share", failure, f"-> X25519 {b64(bytes(31))}\n{sealed}\n", "a share of 31 bytes"),
        ("long-share", failure, f"-> X25519 {b64(bytes(33))}\n{sealed}\n", "a share of 33 bytes"),
        ("padded-share", failure, f"-> X25519 {share}=\n{sealed}\n", "base64 with padding"),
        ("share-not-canonical", failure, f"-> X25519 {not_canonical(share)}\n{sealed}\n", "base64 is not canonical"),
        ("body-not-canonical", failure, f"-> X25519 {share}\n{not_canonical(sealed)}\n", "base64 is not canonical"),
        ("zero-share", failure, x25519(share=bytes(32)), "the shared secret is all zeros"),
        ("low-order-share", failure, x25519(share=LOW_ORDER), "the shared secret is all zeros"),
        ("empty-body", failure, f"-> X25519 {share}\n\n", "no wrapped key"),
    ):  # fmt: skip
        yield f"x25519-{name}", expect, age(stanza), why
    for size in (15, 17, 32):
        key = random("long", size)
        yield (
            f"x25519-file-key-{size}",
            failure,
            age(x25519(key), file_key=key),
            f"a file key of {size} bytes",
        )


def scrypt_cases() -> Iterator[tuple[str, str, bytes, str]]:
    failure = "header failure"
    salt, sealed = scrypt().removesuffix("\n").removeprefix("-> scrypt ").split("\n")
    salt = salt.split()[0]
    yield "scrypt", "success", age(scrypt()), "a passphrase"
    yield "scrypt-no-match", "no match", age(scrypt("another")), "another passphrase"
    yield (
        "scrypt-twice",
        failure,
        age(scrypt() + scrypt(salt=random("salt 2", 16))),
        "a passphrase is alone",
    )
    yield "scrypt-and-x25519", failure, age(scrypt() + x25519()), "a passphrase is alone"
    yield "scrypt-and-unknown", failure, age("-> grease\n\n" + scrypt()), "a passphrase is alone"
    for name, expect, stanza, why in (
        ("uppercase", "no match", f"-> Scrypt {salt} 10\n{sealed}\n", "types are case-sensitive"),
        ("bad-tag", "no match", f"-> scrypt {salt} 10\n{'A' * 43}\n", "another wrapped key"),
        ("wrong-work-factor", "no match", f"-> scrypt {salt} 9\n{sealed}\n", "the work factor of another key"),
        ("no-salt", failure, f"-> scrypt 10\n{sealed}\n", "two arguments"),
        ("no-work-factor", failure, f"-> scrypt {salt}\n{sealed}\n", "two arguments"),
        ("extra-argument", failure, f"-> scrypt {salt} 10 10\n{sealed}\n", "four arguments"),
        ("short-salt", failure, f"-> scrypt {b64(bytes(15))} 10\n{sealed}\n", "a salt of 15 bytes"),
        ("long-salt", failure, f"-> scrypt {b64(bytes(17))} 10\n{sealed}\n", "a salt of 17 bytes"),
        ("salt-not-canonical", failure, f"-> scrypt {not_canonical(salt)} 10\n{sealed}\n", "base64 is not canonical"),
        ("body-not-canonical", failure, f"-> scrypt {salt} 10\n{not_canonical(sealed)}\n", "base64 is not canonical"),
        ("short-body", failure, f"-> scrypt {salt} 10\n{b64(bytes(31))}\n", "a body of 31 bytes"),
        ("long-body", failure, f"-> scrypt {salt} 10\n{b64(bytes(33))}\n", "a body of 33 bytes"),
        *(
            (f"work-factor-{label}", failure, f"-> scrypt {salt} {text}\n{sealed}\n", why)
            for label, text, why in (
                ("23", "23", "it would take 8 GiB"), ("overflow", "18446744073709551616", "65 bits"),
                ("zero", "0", "zero"), ("negative", "-10", "a sign"), ("plus", "+10", "a sign"),
                ("leading-zero", "010", "a leading zero"), ("octal", "0o12", "another base"),
                ("hex", "0xa", "another base"), ("letters", "10a", "a letter"), ("point", "10.0", "a point"),
                ("underscore", "1_0", "an underscore"), ("thousand-digits", "1" * 1000, "very long"),
            )
        ),
    ):  # fmt: skip
        yield f"scrypt-{name}", expect, age(stanza), why


def hybrid_cases() -> Iterator[tuple[str, str, bytes, str]]:
    failure = "header failure"
    enc, wrapped = hybrid_parts()
    share, sealed = b64(enc), b64(wrapped)
    kind = "mlkem768x25519"
    good = f"-> {kind} {share}\n{sealed}\n"
    yield "hybrid", "success", age(good), "a post-quantum recipient"
    yield (
        "hybrid-and-x25519",
        "success",
        age(x25519(secret=OTHER) + good),
        "it should not be mixed, but opens",
    )
    flipped = bytes([enc[0] ^ 1]) + enc[1:]
    other = enc[:-1] + bytes([enc[-1] ^ 1])
    for name, expect, stanza, why in (
        ("uppercase", "no match", f"-> MLKEM768X25519 {share}\n{sealed}\n", "types are case-sensitive"),
        ("bad-tag", "no match", f"-> {kind} {share}\n{'A' * 43}\n", "another wrapped key"),
        ("changed-mlkem", "no match", f"-> {kind} {b64(flipped)}\n{sealed}\n", "the ML-KEM part was changed"),
        ("changed-x25519", "no match", f"-> {kind} {b64(other)}\n{sealed}\n", "the X25519 part was changed"),
        ("extra-argument", failure, f"-> {kind} {share} 1\n{sealed}\n", "three arguments"),
        ("no-share", failure, f"-> {kind}\n{sealed}\n", "one argument"),
        ("short-share", failure, f"-> {kind} {b64(enc[:-1])}\n{sealed}\n", "1119 bytes"),
        ("long-share", failure, f"-> {kind} {b64(enc + bytes(1))}\n{sealed}\n", "1121 bytes"),
        ("x25519-share", failure, f"-> {kind} {b64(enc[-32:])}\n{sealed}\n", "only the X25519 part"),
        ("share-not-canonical", failure, f"-> {kind} {not_canonical(share)}\n{sealed}\n", "base64 is not canonical"),
        ("body-not-canonical", failure, f"-> {kind} {share}\n{not_canonical(sealed)}\n", "base64 is not canonical"),
        ("low-order-share", failure, hybrid(share=LOW_ORDER), "the X25519 secret is all zeros"),
        ("zero-share", failure, hybrid(share=bytes(32)), "the X25519 secret is all zeros"),
    ):  # fmt: skip
        yield f"hybrid-{name}", expect, age(stanza), why
    key = random("long", 25)
    yield "hybrid-file-key-25", failure, age(hybrid(key), file_key=key), "a file key of 25 bytes"


def armor_cases() -> Iterator[tuple[str, str, bytes, str]]:
    failure = "armor failure"
    good = armor(age(x25519()))
    _, *lines = good.split("\n")
    full = armor(age(x25519(), chunks((FULL_LINE, 0, True))))
    unpadded = good.replace("=", "")
    wide = good.replace("\n", "", 2).replace(BEGIN, f"{BEGIN}\n")
    body_text = base64.b64encode(age(x25519())).decode()
    for name, expect, text, why in (
        ("plain", "success", good, "ASCII armor"),
        ("crlf", "success", good.replace("\n", "\r\n"), "CRLF is allowed"),
        ("full-last-line", "success", full, "the last line has 64 columns"),
        ("no-final-line-feed", "success", good[:-1], "no line feed at the end"),
        ("white-space-around", "success", f" \r\n\t\n{good}\n \r\n", "white space before and after is allowed"),
        ("much-white-space", "success", "\n" * 1000 + good, "1,000 line feeds before"),
        ("empty", "header failure", f"{BEGIN}\n{END}\n", "nothing between the lines"),
        ("scrypt", "success", armor(age(scrypt())), "a passphrase, as ASCII"),
        ("header-crlf", "header failure", armor(age(x25519().replace("\n", "\r\n"))), "CRLF in the header that is encoded"),
        ("empty-line-first", failure, good.replace("\n", "\n\n", 1), "an empty line at the beginning"),
        ("empty-line-last", failure, good.replace(f"\n{END}", f"\n\n{END}"), "an empty line at the end"),
        ("empty-last-line", failure, full.replace(f"\n{END}", f"\n\n{END}"), "an empty line after a full one"),
        ("no-padding", failure, unpadded, "base64 without padding"),
        ("not-canonical", failure, f"{BEGIN}\nAB==\n{END}\n", "base64 that is not canonical"),
        ("line-feed-in-padding", failure, f"{BEGIN}\nAA=\n=\n{END}\n", "a line feed in the padding"),
        ("no-end", failure, good.replace(f"{END}\n", ""), "the last line is missing"),
        ("trailing-data", failure, good + "a", "something after the armor"),
        ("trailing-line", failure, good + "trailing\n", "a line after the armor"),
        ("leading-data", failure, "leading\n" + good, "a line before the armor"),
        ("lower-case", failure, good.replace("AGE ENCRYPTED FILE", "age encrypted file"), "labels are case-sensitive"),
        ("other-label", failure, good.replace("FILE", "MESSAGE"), "another label"),
        ("headers", failure, good.replace(f"{BEGIN}\n", f"{BEGIN}\nComment: a\n\n"), "headers as in PGP"),
        ("checksum", failure, good.replace(END, f"=AAAA\n{END}"), "a checksum as in PGP"),
        ("letter", failure, good.replace(lines[0][:1], "*", 1), "a letter that is not base64"),
        ("space-before-line", failure, good.replace("\n", "\n ", 1), "a space before a line"),
        ("space-after-line", failure, good.replace(lines[0], lines[0] + " "), "a space after a line"),
        ("space-after-begin", failure, good.replace(BEGIN, BEGIN + " "), "a space after the first line"),
        ("space-before-end", failure, good.replace(END, " " + END), "a space before the last line"),
        ("spaces-in-begin", failure, good.replace("-----BEGIN", "----- BEGIN"), "a space in the first line"),
        ("long-line", failure, wide, "a line of 128 columns"),
        ("short-line", failure, good.replace(lines[0], f"{lines[0][:60]}\n{lines[0][60:]}"), "a short line"),
        ("one-line", failure, f"{BEGIN}\n{body_text}\n{END}\n", "all in one line"),
    ):  # fmt: skip
        yield f"armor-{name}", expect, text.encode(), why


def payload_cases() -> Iterator[tuple[str, str, bytes, str, bytes]]:
    failure = "payload failure"
    one, two, end = bytes(CHUNK), b"\1" * CHUNK, b"end"

    def case(
        name: str, expect: str, payload: bytes, why: str, plain: bytes = b""
    ) -> tuple[str, str, bytes, str, bytes]:
        return f"payload-{name}", expect, age(x25519(), payload), why, plain

    small = chunks((b"age", 0, True))
    sealed = CHUNK + 16
    whole = chunks((one, 0, False), (end, 1, True))
    nonce, first, last = whole[:16], whole[16 : 16 + sealed], whole[16 + sealed :]
    yield case("empty", "success", chunks((b"", 0, True)), "an empty file has one empty chunk")
    yield case("one-byte", "success", chunks((b"a", 0, True)), "one byte", b"a")
    yield case("full-chunk", "success", chunks((one, 0, True)), "exactly one chunk", one)
    yield case("two-chunks", "success", whole, "a full chunk and a short one", one + end)
    yield case(
        "two-full-chunks",
        "success",
        chunks((one, 0, False), (two, 1, True)),
        "two full chunks",
        one + two,
    )
    yield case("no-nonce", failure, b"", "nothing after the header")
    yield case("short-nonce", failure, small[:15], "the nonce is cut off")
    yield case("no-chunk", failure, small[:16], "no chunk")
    yield case("short-tag", failure, small[:31], "less than a tag")
    yield case("cut", failure, small[:-1], "the last byte is missing")
    yield case("changed", failure, small[:-1] + bytes([small[-1] ^ 1]), "the last byte was changed")
    yield case("changed-nonce", failure, bytes([small[0] ^ 1]) + small[1:], "the nonce was changed")
    yield case("trailing-byte", failure, small + b"a", "a byte after the last chunk")
    yield case("trailing-chunk", failure, small + small[16:], "the last chunk twice")
    yield case(
        "not-last", failure, chunks((b"age", 0, False)), "the only chunk is not sealed as the last"
    )
    yield case("number-one", failure, chunks((b"age", 1, True)), "the first chunk has the number 1")
    yield case("last-missing", failure, nonce + first, "cut off after a whole chunk")
    yield case(
        "empty-last",
        failure,
        chunks((one, 0, False), (b"", 1, True)),
        "the last chunk of several is empty",
    )
    yield case(
        "full-chunk-not-last",
        failure,
        chunks((one, 0, False)),
        "the only chunk is not sealed as the last",
    )
    yield case("first-missing", failure, nonce + last, "the first chunk is missing")
    yield case("swapped", failure, nonce + last + first, "chunks in another order")
    yield case(
        "first-as-last",
        failure,
        chunks((one, 0, True), (end, 1, True)),
        "two chunks sealed as the last",
    )
    yield case("number-twice", failure, chunks((one, 0, False), (end, 0, True)), "a number twice")
    yield case(
        "short-in-between",
        failure,
        chunks((b"age", 0, False), (end, 1, True)),
        "a short chunk that is not the last",
    )
    yield case(
        "long-chunk", failure, chunks((bytes(CHUNK + 1), 0, True)), "a chunk of 64 KiB and a byte"
    )
    yield case(
        "changed-first",
        failure,
        nonce + bytes([first[0] ^ 1]) + first[1:] + last,
        "the first chunk was changed",
    )


def vectors() -> Iterator[Vector]:
    mine = (IDENTITY,)
    for cases in (header_cases, stanza_cases, x25519_cases):
        for name, expect, data, why in cases():
            yield Vector(name, expect, data, why, mine)
    for name, expect, data, why in scrypt_cases():
        known = (OTHER_IDENTITY,) if "x25519" in name else ()
        yield Vector(name, expect, data, why, known, ("password",))
    for name, expect, data, why in hybrid_cases():
        yield Vector(name, expect, data, why, (HYBRID_IDENTITY,))
    for name, expect, data, why in armor_cases():
        both = () if "scrypt" in name else mine
        plain = FULL_LINE if "full-last-line" in name else b"age"
        passphrases = ("password",) if "scrypt" in name else ()
        yield Vector(name, expect, data, why, both, passphrases, plain, armored=True)
    for name, expect, data, why, plain in payload_cases():
        yield Vector(name, expect, data, why, mine, plain=plain)


def text_of(vector: Vector) -> bytes:
    lines = [f"expect: {vector.expect}"]
    if vector.expect == "success":
        lines.append(f"payload: {hashlib.sha256(vector.plain).hexdigest()}")
    lines.append(f"file key: {FILE_KEY.hex()}")
    lines += [f"identity: {text}" for text in vector.identities]
    lines += [f"passphrase: {text}" for text in vector.passphrases]
    if vector.armored:
        lines.append("armored: yes")
    lines += [f"comment: {vector.comment}", "", ""]
    return "\n".join(lines).encode() + vector.data


def main() -> int:
    found = list(vectors())
    files = {vector.name: text_of(vector) for vector in found}
    assert len(files) == len(found), "a name is used twice"
    if "--check" in sys.argv[1:]:
        present = {path.name: path.read_bytes() for path in FOLDER.iterdir()}
        # Hybrid vectors are random: only their beginnings can be compared.
        same = {name for name in files if files[name] == present.get(name)}
        random_ones = {name for name in files if name.startswith("hybrid")}
        wrong = sorted({*files, *present} - same - (random_ones & set(present)))
        print("\n".join(wrong) or f"{len(files)} vectors as generated")
        return 1 if wrong else 0
    FOLDER.mkdir(parents=True, exist_ok=True)
    for old in FOLDER.iterdir():
        old.unlink()
    for name, data in files.items():
        (FOLDER / name).write_bytes(data)
    print(f"{len(files)} vectors, {sum(map(len, files.values()))} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
