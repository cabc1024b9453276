"""RFC 3161 timestamps: when a signature existed, said by an authority the verifier trusts.

A certificate is valid for some years, a signature is read for longer. A timestamp over the signature
shows that it was made while the certificate was valid, so it stays good afterwards. The token is a
``TimeStampResp`` in DER over the bytes of the signature, kept where Sigstore bundles keep it
(``verificationMaterial.timestampVerificationData.rfc3161Timestamps``).

The CMS structure is parsed and its signature checked by `rfc3161-client`, the library of
`sigstore-python`; the authority's certificate must be for time stamping, lead to a root that the
verifier names for this purpose, and have been valid at the time it states.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from ...errors import MissingDependencyError, quote
from ..errors import DocumentError, VerificationError
from .keys import PublicKey, need_cryptography

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "KeyTrust",
    "TimestampTrust",
    "parse_timestamp",
    "request_timestamp",
    "verify_timestamps",
]

MAX_RESPONSE: Final = 1 << 16
"""Largest response in bytes; those in use have 1 to 10 KB."""

_TIMEOUT: Final = 30.0


@dataclass(frozen=True)
class TimestampTrust:
    """The timestamp authorities that are believed.

    Attributes:
        roots: Trust anchors, each a certificate in DER.
        subject: The subject of the authority's certificate, RFC 4514 (``CN=TSA,O=Example``); any
            authority below the roots by default.
    """

    roots: tuple[bytes, ...]
    subject: str | None = None

    def __post_init__(self) -> None:
        if not self.roots:
            raise DocumentError("no root certificate of a timestamp authority", field="roots")


@dataclass(frozen=True)
class KeyTrust:
    """A public key whose signatures must have a timestamp.

    A key has no dates of its own: it is retired by saying until when its signatures count.

    Attributes:
        key: The public key.
        timestamps: The timestamp authorities that are believed.
        until: The last moment at which a signature counts; by default, there is none.
    """

    key: PublicKey
    timestamps: TimestampTrust
    until: datetime | None = None

    def __post_init__(self) -> None:
        if self.until is not None and self.until.tzinfo is None:
            raise DocumentError("must have a time zone", field="until")

    def check(self, times: Iterable[datetime], *, path: str | None = None) -> None:
        """Refuse a signature that is not known to have existed while the key was in use.

        Raises:
            VerificationError: ``timestamp``.
        """
        if not any(self.until is None or at <= self.until for at in times):
            limit = f" of {self.until:%Y-%m-%d %H:%M:%S %Z} or before" if self.until else ""
            raise VerificationError(
                f"the signature has no trusted timestamp{limit}", reason="timestamp", path=path
            )


def verify_timestamps(
    timestamps: Iterable[bytes],
    signature: bytes,
    trust: TimestampTrust,
    *,
    path: str | None = None,
) -> tuple[datetime, ...]:
    """The times at which `signature` existed, earliest first.

    Timestamps of authorities that are not trusted are ignored: any program can add one.

    Cost: about 1 ms for each; no network.

    Raises:
        DocumentError: A timestamp that is not one, or a root that is not a certificate.
        MissingDependencyError: Without the extra ``timestamps``.
    """
    client = _client()
    load = need_cryptography("x509").load_der_x509_certificate
    try:
        roots = [load(der) for der in trust.roots]
    except ValueError:
        raise DocumentError("not a certificate in DER", field="roots") from None
    verifier = client.VerifierBuilder(roots=roots, common_name=trust.subject).build()
    found = []
    for index, der in enumerate(timestamps):
        response = parse_timestamp(der, field=f"rfc3161Timestamps[{index}]", path=path)
        try:
            verifier.verify_message(response, signature)
        except (client.VerificationError, ValueError):
            continue
        found.append(_aware(response.tst_info.gen_time))
    return tuple(sorted(found))


def parse_timestamp(der: bytes, *, field: str = "", path: str | None = None) -> Any:
    """The response in `der`; nothing in it is verified.

    Raises:
        DocumentError: Not a ``TimeStampResp`` with a token.
    """
    client = _client()
    try:
        response = client.decode_timestamp_response(in_der(der))
        response.tst_info.gen_time, response.signed_data  # noqa: B018 - parsed when asked for
        response.tst_info.message_imprint.message  # noqa: B018
    except Exception:  # noqa: BLE001 - the parser documents no errors
        raise DocumentError("not an RFC 3161 timestamp", field=field, path=path) from None
    return response


def request_timestamp(signature: bytes, url: str) -> bytes:
    """Ask the timestamp authority at `url` for a timestamp over `signature` (RFC 3161 section 3.4).

    The authority learns the SHA-256 of the signature, and nothing of the model.

    Raises:
        ValueError: Not an http or https URL.
        VerificationError: ``timestamp``: the authority refused, or answered another question.
        DocumentError: The answer is not a timestamp.
        OSError: The authority cannot be reached, or answered with an error.
        MissingDependencyError: Without the extra ``timestamps``.
    """
    from urllib.request import Request, urlopen

    if urlsplit(url).scheme not in {"http", "https"}:
        raise ValueError(f"a timestamp authority has an http or https URL, not {quote(url, 200)}")
    client = _client()
    builder = client.TimestampRequestBuilder().hash_algorithm(client.HashAlgorithm.SHA256)
    asked = builder.data(signature).nonce(nonce=True).build()
    kind = {"Content-Type": "application/timestamp-query"}
    request = Request(url, data=asked.as_bytes(), headers=kind)  # noqa: S310 - checked above
    with urlopen(request, timeout=_TIMEOUT) as answer:  # noqa: S310
        der: bytes = answer.read(MAX_RESPONSE + 1)
    if len(der) > MAX_RESPONSE:
        raise DocumentError(f"the answer is longer than {MAX_RESPONSE} bytes", path=url)
    found = parse_timestamp(der, path=url)
    stamped = found.tst_info
    expected = (asked.nonce, asked.message_imprint.message)
    if found.status != 0 or (stamped.nonce, stamped.message_imprint.message) != expected:
        raise VerificationError(
            "the timestamp authority did not grant the timestamp that was asked for",
            reason="timestamp", path=url,
        )  # fmt: skip
    return in_der(der)


def in_der(response: bytes) -> bytes:
    """The same response with its certificates in the order of DER.

    CMS asks for DER of what is signed only (RFC 5652 section 5.3), and authorities that run OpenSSL
    keep their certificates in any order, which `rfc3161-client` refuses. Nothing that is signed
    changes. Whatever has another structure is returned as it is, for the parser to refuse.
    """
    try:
        token = _elements(response, *_inside(response, 0, len(response)))[1]
        content = _elements(response, *_inside(response, *token))[1]
        signed = _inside(response, *_inside(response, *content))
        parts = _elements(response, *signed)
        begin, end = next(part for part in parts if response[part[0]] == _CERTIFICATES)
        first, last = _inside(response, begin, end)
        sorted_ones = sorted(response[a:b] for a, b in _elements(response, first, last))
    except (IndexError, StopIteration):
        return response
    return response[:first] + b"".join(sorted_ones) + response[last:]


_CERTIFICATES: Final = 0xA0
"""The tag of SignedData.certificates, [0] IMPLICIT; the other parts before it are universal."""


def _inside(data: bytes, begin: int, end: int) -> tuple[int, int]:
    """Where the contents of the DER element at `begin` begin and end.

    Raises:
        IndexError: Not an element that ends by `end`.
    """
    length, content = data[begin + 1], begin + 2
    if length >= 0x80:
        content += length - 0x80
        length = int.from_bytes(data[begin + 2 : content], "big")
    if content + length > end:
        raise IndexError
    return content, content + length


def _elements(data: bytes, begin: int, end: int) -> list[tuple[int, int]]:
    """Begin and end of each DER element from `begin` to `end`."""
    found = []
    while begin < end:
        after = _inside(data, begin, end)[1]
        found.append((begin, after))
        begin = after
    return found


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)


def _client() -> Any:
    try:
        return import_module("rfc3161_client")
    except ImportError as error:
        raise MissingDependencyError(
            "timestamps need the `rfc3161-client` package: pip install 'safeweights[timestamps]'"
        ) from error
