"""Coverage-guided fuzzing of what servers send and users type: URLs, response fields, redirects, manifests.

    python tests/fuzz/fuzz_remote.py -max_total_time=60 corpus/

The first byte chooses the parser. What is parsed must be inside the bounds that the code relies on, and no
error may have what stood in front of an `@` or behind a `?`.
"""

from __future__ import annotations

import sys
from email.message import Message
from urllib.parse import urlsplit

import atheris

with atheris.instrument_imports(include=["safeweights"]):
    from safeweights.errors import SafetensorError
    from safeweights.storage import check_name
    from safeweights.storage.remote.exchange import redirected
    from safeweights.storage.remote.hub import store_of as hub_store_of
    from safeweights.storage.remote.manifests import index_text, manifest_text, parse_manifest
    from safeweights.storage.remote.registry import store_of as registry_store_of
    from safeweights.storage.remote.responses import (
        Version,
        content_length,
        parse_content_range,
        retry_after,
    )
    from safeweights.storage.remote.web import store_of as web_store_of
    from safeweights.storage.urls import Url, is_url, shown

SECRET = "s3cr3t"
STORES = {
    "http": web_store_of, "https": web_store_of, "hf": hub_store_of, "oci": registry_store_of,
}  # fmt: skip


def fuzz_url(text: str) -> None:
    for given in (text, f"https://{SECRET}@{text}", f"https://{text}?{SECRET}"):
        if not is_url(given):
            continue
        try:
            url = Url.parse(given)
            parts = url.path.split("/") if url.path else []
            assert not {"", ".", ".."}.intersection(parts), url.path
            assert "\\" not in url.path
            assert "\0" not in url.path
            if url.scheme in STORES:
                store, name = STORES[url.scheme](url)
                assert SECRET not in store.location + repr(store)
                assert (
                    name in {"", parts[-1] if parts else "", url.path.partition("/")[2]}
                    or "/" not in name
                )
        except SafetensorError as error:
            assert SECRET not in str(error), given  # noqa: PT017
        assert SECRET not in shown(given) or SECRET in text


def fuzz_fields(text: str) -> None:
    headers = Message()
    found = parse_content_range(text)
    if found is not None and found.begin is not None:
        assert found.end is not None
        assert 0 <= found.begin < found.end <= found.size
    try:
        for name in ("ETag", "Last-Modified", "Content-Length", "Retry-After"):
            headers[name] = text
    except ValueError:
        return
    length, wait, version = content_length(headers), retry_after(headers), Version.of(headers)
    assert length is None or length >= 0
    assert wait is None or wait >= 0
    assert all("\r" not in each and "\n" not in each for each in version.condition.values())


def fuzz_redirect(text: str) -> None:
    try:
        found = redirected("x", "https://example.org/a/b", text)
    except OSError:
        return
    parts = urlsplit(found)
    assert parts.scheme == "https"
    assert "@" not in parts.netloc


def fuzz_manifest(data: bytes) -> None:
    index_text(data, "sha256:" + "0" * 64, 1)
    try:
        files = parse_manifest(data, "x")
    except SafetensorError:
        return
    assert all(check_name(name) is None for name in files)
    assert parse_manifest(manifest_text(files), "x") == files


def one_input(data: bytes) -> None:
    """Choose a parser by the first byte."""
    kind, rest = (data[0] % 4, data[1:]) if data else (0, b"")
    if kind == 3:
        fuzz_manifest(rest)
        return
    # http.client decodes fields as Latin-1.
    text = rest.decode("latin-1") if kind else rest.decode("utf-8", "replace")
    (fuzz_url, fuzz_fields, fuzz_redirect)[kind](text)


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
