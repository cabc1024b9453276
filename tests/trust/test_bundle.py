"""Bundles that are no bundles: one error, which names file and field."""

from __future__ import annotations

import base64
import contextlib
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safeweights.trust.documents import Field, parse_json
from safeweights.trust.errors import DocumentError, TrustError
from safeweights.trust.signatures import bundle as bundles

if TYPE_CHECKING:
    from collections.abc import Callable

RESOURCE = bundles.Resource("a", "sha256", (bundles.Part(0, None, bytes(32)),))
STATEMENT = json.loads(bundles.build_statement("m", [RESOURCE]))
BUNDLE = json.loads(bundles.build_bundle(b"{}", b"sig", hint="00"))

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


def places(value: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a document."""
    found = [prefix] if prefix else []
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, inner in items:
        found += places(inner, (*prefix, key))
    return found


def replaced(document: Any, place: tuple[Any, ...], value: Any) -> Any:
    copy = json.loads(json.dumps(document))
    inner = copy
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return copy


@given(st.sampled_from(places(BUNDLE)), JSON)
@settings(max_examples=300)
def test_anything_anywhere_in_a_bundle(place: tuple[Any, ...], value: Any) -> None:
    data = json.dumps(replaced(BUNDLE, place, value)).encode()
    with contextlib.suppress(DocumentError):
        bundles.parse_bundle(data, path="model.sig")


@given(st.sampled_from(places(STATEMENT)), JSON)
@settings(max_examples=500)
def test_anything_anywhere_in_a_statement(place: tuple[Any, ...], value: Any) -> None:
    data = json.dumps(replaced(STATEMENT, place, value)).encode()
    with contextlib.suppress(DocumentError):
        assert bundles.parse_statement(data, path="model.sig").resources


@given(st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    for parse in (bundles.parse_bundle, bundles.parse_statement):
        with pytest.raises(TrustError):
            parse(data)


@pytest.mark.parametrize("place", places(BUNDLE), ids=str)
def test_a_missing_field_is_named(place: tuple[Any, ...]) -> None:
    names = [str(key) for key in place if not isinstance(key, int)]
    optional = {"tlogEntries", "keyid", "hint"}
    if isinstance(place[-1], int) or names[-1] in optional | {"publicKey"}:
        return
    copy = json.loads(json.dumps(BUNDLE))
    inner = copy
    for key in place[:-1]:
        inner = inner[key]
    del inner[place[-1]]
    with pytest.raises(DocumentError) as caught:
        bundles.parse_bundle(json.dumps(copy).encode())
    assert caught.value.field.endswith(names[-1])
    assert str(caught.value).startswith(caught.value.field)


def test_resources_are_sorted_by_code_point() -> None:
    names = ["b", "a/b", "a.b", "a", "Z", "é", "😀", "\uffff"]
    payload = bundles.build_statement("m", [
        bundles.Resource(n, "sha256", RESOURCE.parts) for n in names
    ])  # fmt: skip
    listed = [r["name"] for r in json.loads(payload)["predicate"]["resources"]]
    assert listed == sorted(names) == ["Z", "a", "a.b", "a/b", "b", "é", "\uffff", "😀"]


def test_a_statement_reads_back() -> None:
    resource = bundles.Resource(
        "w.safetensors", "sha256", RESOURCE.parts,
        bundles.TreeReference(bytes(32), "w.safetensors.swtree"), "w.safetensors", 4,
    )  # fmt: skip
    found = bundles.parse_statement(bundles.build_statement("m", [resource], ["model.sig"]))
    assert found.resources == {"w.safetensors": resource}
    assert (found.subject, found.release, found.sharded) == ("m", 4, False)
    assert set(found.ignored) == {*bundles.DEFAULT_IGNORED, "model.sig"}


class TestSpellings:
    """What the specifications of the container allow beside the usual spelling."""

    @pytest.mark.parametrize("kind", bundles.MEDIA_TYPES)
    @pytest.mark.parametrize("keyid", ["", None, "key-1", "x" * 4096])
    def test_accepted(self, kind: str, keyid: str | None) -> None:
        document = json.loads(json.dumps(BUNDLE))
        document["mediaType"] = kind
        document["dsseEnvelope"]["signatures"][0]["keyid"] = keyid
        assert bundles.parse_bundle(json.dumps(document).encode()).signature == b"sig"

    @pytest.mark.parametrize("kind", ["application/vnd.dev.sigstore.bundle+json;version=0.4", ""])
    def test_other_versions(self, kind: str) -> None:
        with pytest.raises(DocumentError) as caught:
            bundles.parse_bundle(json.dumps({**BUNDLE, "mediaType": kind}).encode())
        assert caught.value.field == "mediaType"

    @pytest.mark.parametrize("padded", [True, False])
    @pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
    def test_both_alphabets_of_base64(self, encode: Any, padded: bool) -> None:
        payload = b"\xfb\xff\xfe?>~{}"
        text = encode(payload).decode()
        document = json.loads(json.dumps(BUNDLE))
        document["dsseEnvelope"]["payload"] = text if padded else text.rstrip("=")
        assert bundles.parse_bundle(json.dumps(document).encode()).payload == payload

    @pytest.mark.parametrize("text", ["-+AA", "AA=", "A", "AA\n==", "AAA=A", "=AAA", "AA==="])
    def test_what_is_not_base64(self, text: str) -> None:
        document = json.loads(json.dumps(BUNDLE))
        document["dsseEnvelope"]["payload"] = text
        with pytest.raises(DocumentError) as caught:
            bundles.parse_bundle(json.dumps(document).encode())
        assert caught.value.field == "dsseEnvelope.payload"


class TestBounds:
    """An unsigned file costs nothing to refuse, however large."""

    @pytest.mark.parametrize(
        "filler",
        [b"[],", b'{"a":1},', b'"",', b'"\\u0041",', b"[" * 100 + b"]" * 100 + b","],
        ids=["arrays", "objects", "strings", "escapes", "depth"],
    )
    def test_many_values(self, filler: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
        data = json.dumps(BUNDLE).encode()[:-1] + b',"x":[' + filler * 20_000 + b"1]}"
        monkeypatch.setattr(bundles, "parse_json", pytest.fail)
        with pytest.raises(DocumentError) as caught:
            bundles.parse_bundle(data)
        assert caught.value.reason == "too-large"

    def test_many_bytes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bundles, "MAX_BUNDLE", 1000)
        monkeypatch.setattr(bundles, "parse_json", pytest.fail)
        with pytest.raises(DocumentError) as caught:
            bundles.parse_bundle(json.dumps(BUNDLE).encode() + b" " * 1000)
        assert caught.value.reason == "too-large"

    def test_a_large_payload_is_read(self) -> None:
        payload = bytes(range(256)) * 20_000
        assert (
            bundles.parse_bundle(bundles.build_bundle(payload, b"sig", hint="0")).payload == payload
        )

    def test_many_certificates_and_timestamps(self) -> None:
        for name, data in (
            ("certificates", bundles.build_bundle(b"{}", b"s", certificates=[b"x"] * 11)),
            (
                "rfc3161Timestamps",
                bundles.build_bundle(b"{}", b"s", hint="0", timestamps=[b""] * 33),
            ),
        ):
            with pytest.raises(DocumentError) as caught:
                bundles.parse_bundle(data)
            assert caught.value.field.endswith(name)


def statement(names: list[str], **serialization: Any) -> bytes:
    """A consistent statement that lists `names` in that order."""
    document = json.loads(json.dumps(STATEMENT))
    digests = [bytes([number]) * 32 for number in range(len(names))]
    document["predicate"]["resources"] = [
        {"name": name, "digest": digest.hex(), "algorithm": "sha256"}
        for name, digest in zip(names, digests, strict=True)
    ]
    document["predicate"]["serialization"].update(serialization)
    document["subject"][0]["digest"]["sha256"] = bundles.root_digest(digests)
    return json.dumps(document).encode()


class TestOrder:
    @pytest.mark.parametrize(
        "names",
        [
            ["a", "b"],
            ["vae.txt", "vae/x"],  # by code point, as OMS section 5.2.1 says
            ["vae/x", "vae.txt"],  # by the parts of the path, as the reference implementation does
            ["\uffff", "😀"],
        ],
    )
    def test_sorted(self, names: list[str]) -> None:
        assert list(bundles.parse_statement(statement(names)).resources) == names

    @pytest.mark.parametrize(
        "names", [["b", "a"], ["a", "c", "b"], ["a/x", "a.x", "a/y"], ["😀", "\uffff"]]
    )
    def test_unsorted(self, names: list[str]) -> None:
        with pytest.raises(DocumentError) as caught:
            bundles.parse_statement(statement(names))
        assert (caught.value.reason, caught.value.field) == (
            "unsorted-resources", "predicate.resources",
        )  # fmt: skip

    def test_shards(self) -> None:
        size = {"method": "shards", "shard_size": 5}
        numeric = ["a:0:5", "a:5:10", "a:10:15", "a:15:20", "b:0:5"]
        for names in (numeric, sorted(numeric)):
            found = bundles.parse_statement(statement(names, **size)).resources["a"]
            assert [part.begin for part in found.parts] == [0, 5, 10, 15]
        for names in (["a:5:10", "a:0:5"], ["b:0:5", "a:0:5"]):
            with pytest.raises(DocumentError) as caught:
                bundles.parse_statement(statement(names, **size))
            assert caught.value.reason == "unsorted-resources"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda d: d["subject"][0].update(name=""), "subject[0].name"),
        (lambda d: d["subject"].clear(), "subject"),
        (lambda d: d["predicate"]["serialization"].update(shard_size=1000),
         "predicate.serialization.shard_size"),
        (lambda d: d["predicate"]["resources"][0].update(algorithm="sha256-sharded-None"),
         "predicate.resources[0].algorithm"),
    ],
)  # fmt: skip
def test_statements_that_the_specification_forbids(
    change: Callable[[dict[str, Any]], None], field: str
) -> None:
    document = json.loads(json.dumps(STATEMENT))
    change(document)
    with pytest.raises(DocumentError) as caught:
        bundles.parse_statement(json.dumps(document).encode())
    assert caught.value.field == field


def test_ids_of_two_models_in_one_statement() -> None:
    resources = [
        bundles.Resource(name, "sha256", RESOURCE.parts, model_id=name) for name in ("a", "b")
    ]
    with pytest.raises(DocumentError, match="different ids"):
        bundles.parse_statement(bundles.build_statement("m", resources))
    assert bundles.parse_statement(bundles.build_statement("m", resources[:1])).model_id == "a"


class TestFields:
    """The getters that every document is read with."""

    @pytest.mark.parametrize(
        ("text", "read", "field"),
        [
            ('{"a": 1}', lambda d: d.member("b"), "b"),
            ('{"a": 1}', lambda d: d.member("a").member("b"), "a"),
            ('{"a": [1, 2]}', lambda d: d.member("a").items()[1].text(), "a[1]"),
            ('{"a": [{"x y": 1}]}', lambda d: d.member("a").items()[0].member("x y").text(),
             "a[0].`x y`"),
            ('{"a": {}}', lambda d: d.member("a").items(), "a"),
            ('{"a": "x\\u0000"}', lambda d: d.member("a").text(), "a"),
            ('{"a": "xxxx"}', lambda d: d.member("a").text(limit=3), "a"),
            ('{"a": "x"}', lambda d: d.member("a").choice("y", "z"), "a"),
            ('{"a": true}', lambda d: d.member("a").integer(), "a"),
            ('{"a": 1.5}', lambda d: d.member("a").integer(), "a"),
            ('{"a": -1}', lambda d: d.member("a").integer(), "a"),
            ('{"a": 1e300}', lambda d: d.member("a").integer(), "a"),
            ('{"a": 1}', lambda d: d.member("a").boolean(), "a"),
            ('{"a": "AB"}', lambda d: d.member("a").hex(1), "a"),
            ('{"a": "ab"}', lambda d: d.member("a").hex(2), "a"),
            ('{"a": "A"}', lambda d: d.member("a").base64(), "a"),
            ('{"a": "AA =="}', lambda d: d.member("a").base64(), "a"),
            ('{"a": "é"}', lambda d: d.member("a").base64(), "a"),
            ('{"a": 1, "b": 2}', lambda d: d.only("a"), "b"),
            ('{"\\u001b[2J": 1}', lambda d: d.only("a"), "`\\x1b[2J`"),
        ],
    )  # fmt: skip
    def test_errors_name_the_field(
        self, text: str, read: Callable[[Field], Any], field: str
    ) -> None:
        with pytest.raises(DocumentError) as caught:
            read(parse_json(text.encode(), path="file"))
        assert (caught.value.field, caught.value.path) == (field, "file")

    @pytest.mark.parametrize(
        "text",
        ["", "{", "{}x", '{"a": NaN}', '{"a": Infinity}', '{"a": 1, "a": 2}', "[" * 100_000,
         '{"a": "\\ud800"}', "\ufeff{}", "1e999", "0" * 5000, "1" * 5000],
    )  # fmt: skip
    def test_json_that_is_not_strict(self, text: str) -> None:
        with pytest.raises(DocumentError):
            parse_json(text.encode("utf-8", "surrogatepass"))

    def test_values(self) -> None:
        document = parse_json(json.dumps({
            "f": 300000.0, "h": "00ff", "b": base64.b64encode(b"x").decode(), "n": None,
        }).encode())  # fmt: skip
        assert document.member("f").integer() == 300_000
        assert document.member("h").hex(2) == b"\0\xff"
        assert document.member("b").base64() == b"x"
        assert document.get("n") is None
        assert "x" not in repr(document.member("b"))

    @pytest.mark.parametrize(
        "text",
        [
            '{"a": "\\ud83d\\ude00"}',
            "[" * 127 + "]" * 127,
            '{"a": {"a": 1}}',
            "  1e300 ",
            '"\\\\ud800"',
        ],
    )
    def test_strict_json(self, text: str) -> None:
        assert parse_json(text.encode()).value == json.loads(text)

    def test_depth(self) -> None:
        with pytest.raises(DocumentError):
            parse_json(b"[" * 128 + b"]" * 128)
