"""The attack table: every line ends in a refusal that names the reason.

Each attack is one function that changes a signed model on disk, or its signature, as somebody would
who can write to the disk but does not hold the key; those under `Forged` are signed with the right
key by a careless or malicious tool.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from safeweights.trust.errors import TrustError, VerificationError
from safeweights.trust.signatures import bundle as bundles
from safeweights.trust.signatures import signing, verifying

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from safeweights.trust.signatures.keys import FileSigner

WEIGHTS = "model.safetensors"


@pytest.fixture
def signed(model: Path, signer: FileSigner) -> Path:
    signing.sign(str(model), signer)
    return model


def flip(root: Path) -> None:
    data = bytearray((root / WEIGHTS).read_bytes())
    data[len(data) // 2] ^= 1
    (root / WEIGHTS).write_bytes(data)


def truncate(root: Path) -> None:
    os.truncate(root / WEIGHTS, 1000)


def append(root: Path) -> None:
    # A safetensors file may end in a zip that `python FILE` runs; any appended byte is seen.
    with open(root / WEIGHTS, "ab") as file:
        file.write(b"PK\x05\x06" + bytes(18))


def swap_tensor_names(root: Path) -> None:
    data = (root / WEIGHTS).read_bytes()
    swapped = data.replace(b'"a"', b'"?"').replace(b'"b"', b'"a"').replace(b'"?"', b'"b"')
    assert swapped != data
    (root / WEIGHTS).write_bytes(swapped)


def swap_files(root: Path) -> None:
    a, b, spare = root / WEIGHTS, root / "vae/weights.safetensors", root / "spare"
    a.rename(spare)
    b.rename(a)
    spare.rename(b)


def rename(root: Path) -> None:
    (root / WEIGHTS).rename(root / "other.safetensors")


def rename_case(root: Path) -> None:
    (root / WEIGHTS).rename(root / "Model.safetensors")


def delete(root: Path) -> None:
    (root / "vae.txt").unlink()


def add_code(root: Path) -> None:
    (root / "modeling_evil.py").write_text("import os")


def add_hidden(root: Path) -> None:
    (root / ".cache").mkdir()
    (root / ".cache" / "x").touch()


def add_nested_git(root: Path) -> None:
    (root / "vae" / ".git").touch()


def link_to_file(root: Path) -> None:
    (root / "vae.txt").rename(root.parent / "elsewhere")
    (root / "vae.txt").symlink_to(root.parent / "elsewhere")


def link_to_folder(root: Path) -> None:
    (root / "vae").rename(root.parent / "elsewhere")
    (root / "vae").symlink_to(root.parent / "elsewhere")


def fifo(root: Path) -> None:
    (root / "vae.txt").unlink()
    os.mkfifo(root / "vae.txt")


def folder_for_file(root: Path) -> None:
    (root / "vae.txt").unlink()
    (root / "vae.txt").mkdir()


def stale_sidecar(root: Path) -> None:
    shutil.copy(root / "vae/weights.safetensors.swtree", root / f"{WEIGHTS}.swtree")


def remove_sidecar(root: Path) -> None:
    (root / f"{WEIGHTS}.swtree").unlink()


def remove_signature(root: Path) -> None:
    (root / "model.sig").unlink()


def empty_signature(root: Path) -> None:
    (root / "model.sig").write_bytes(b"")


def signature_is_fifo(root: Path) -> None:
    (root / "model.sig").unlink()
    os.mkfifo(root / "model.sig")


def edit_bundle(root: Path, change: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads((root / "model.sig").read_bytes())
    change(document)
    (root / "model.sig").write_text(json.dumps(document))


def edit_payload(root: Path, change: Callable[[dict[str, Any]], None]) -> None:
    def inner(document: dict[str, Any]) -> None:
        payload = json.loads(base64.b64decode(document["dsseEnvelope"]["payload"]))
        change(payload)
        document["dsseEnvelope"]["payload"] = base64.b64encode(
            json.dumps(payload).encode()
        ).decode()

    edit_bundle(root, inner)


def strip_annotations(root: Path) -> None:
    def change(payload: dict[str, Any]) -> None:
        for resource in payload["predicate"]["resources"]:
            resource.pop("annotations", None)

    edit_payload(root, change)


def empty_resources(root: Path) -> None:
    edit_payload(root, lambda payload: payload["predicate"]["resources"].clear())


def ignore_everything(root: Path) -> None:
    edit_payload(
        root,
        lambda payload: payload["predicate"]["serialization"].update(ignore_paths=["."]),
    )


def strip_dsse_signature(root: Path) -> None:
    edit_bundle(root, lambda document: document["dsseEnvelope"]["signatures"].clear())


def second_dsse_signature(root: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        signatures = document["dsseEnvelope"]["signatures"]
        signatures.append(signatures[0])

    edit_bundle(root, change)


def wrong_hint(root: Path) -> None:
    edit_bundle(
        root,
        lambda document: document["verificationMaterial"].update(publicKey={"hint": "00" * 32}),
    )


def two_materials(root: Path) -> None:
    edit_bundle(
        root,
        lambda document: document["verificationMaterial"].update(certificate={"rawBytes": "AAAA"}),
    )


def duplicate_key(root: Path) -> None:
    text = (root / "model.sig").read_text()
    (root / "model.sig").write_text(text.replace("{", '{"mediaType":"x",', 1))


def other_media_type(root: Path) -> None:
    edit_bundle(root, lambda document: document.update(mediaType="application/json"))


def other_payload_type(root: Path) -> None:
    edit_bundle(
        root, lambda document: document["dsseEnvelope"].update(payloadType="application/json")
    )


def message_signature(root: Path) -> None:
    edit_bundle(root, lambda document: document.update(messageSignature={"signature": "AAAA"}))


ATTACKS = {
    flip: "digest-mismatch",
    truncate: "digest-mismatch",
    append: "digest-mismatch",
    swap_tensor_names: "digest-mismatch",
    swap_files: "digest-mismatch",
    rename: "extra-file",
    rename_case: "extra-file",
    delete: "missing-file",
    add_code: "extra-file",
    add_hidden: "extra-file",
    add_nested_git: "extra-file",
    link_to_file: "symlink",
    link_to_folder: "extra-file",
    fifo: "not-a-file",
    folder_for_file: "missing-file",
    stale_sidecar: "digest-mismatch",
    remove_sidecar: "missing-file",
    remove_signature: "signature-missing",
    empty_signature: "malformed",
    signature_is_fifo: "not-a-file",
    strip_annotations: "bad-signature",
    empty_resources: "bad-signature",
    ignore_everything: "bad-signature",
    strip_dsse_signature: "signature-count",
    second_dsse_signature: "signature-count",
    wrong_hint: "wrong-key",
    two_materials: "malformed",
    duplicate_key: "malformed",
    other_media_type: "malformed",
    other_payload_type: "malformed",
    message_signature: "malformed",
}


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_attack(signed: Path, signer: FileSigner, attack: Callable[[Path], None]) -> None:
    verifying.verify(str(signed), signer.public_key)
    attack(signed)
    with pytest.raises(TrustError) as caught:
        verifying.verify(str(signed), signer.public_key)
    assert caught.value.reason == ATTACKS[attack]


def test_signed_by_somebody_else(signed: Path, stranger: FileSigner, signer: FileSigner) -> None:
    with pytest.raises(VerificationError) as caught:
        verifying.verify(str(signed), stranger.public_key)
    assert caught.value.reason == "wrong-key"
    signing.sign(str(signed), stranger)  # an attacker's own signature, with the right hint
    hint = signer.public_key.hint
    edit_bundle(signed, lambda d: d["verificationMaterial"].update(publicKey={"hint": hint}))
    with pytest.raises(VerificationError) as caught:
        verifying.verify(str(signed), signer.public_key)
    assert caught.value.reason == "bad-signature"


def test_a_file_signed_alone_keeps_its_name(signed: Path, signer: FileSigner) -> None:
    weights = signed / WEIGHTS
    signing.sign(str(weights), signer)
    (signed / "model.sig").unlink()  # the folder's signature outranks that of a file
    (signed / "new.safetensors").write_bytes(weights.read_bytes())
    (signed / "new.safetensors.sig").write_bytes((signed / f"{WEIGHTS}.sig").read_bytes())
    with pytest.raises(VerificationError) as caught:
        verifying.verify(str(signed / "new.safetensors"), signer.public_key)
    assert caught.value.reason == "renamed"


def test_a_folders_signature_does_not_vouch_for_a_file_moved_inside(
    signed: Path, signer: FileSigner
) -> None:
    (signed / "vae/weights.safetensors").unlink()
    (signed / WEIGHTS).rename(signed / "vae" / WEIGHTS)
    with pytest.raises(VerificationError) as caught:
        verifying.verify(
            str(signed / "vae" / WEIGHTS), signer.public_key, signature=str(signed / "model.sig")
        )
    assert caught.value.reason == "not-listed"


class TestForged:
    """Signed with the right key, but not what a careful tool signs."""

    @pytest.fixture
    def forge(self, model: Path, signer: FileSigner) -> Callable[..., None]:
        signing.sign(str(model), signer)

        def forge(change: Callable[[dict[str, Any]], None], *, root: bool = True) -> None:
            document = json.loads((model / "model.sig").read_bytes())
            payload = json.loads(base64.b64decode(document["dsseEnvelope"]["payload"]))
            change(payload)
            if root:
                import hashlib

                digests = b"".join(
                    bytes.fromhex(r["digest"]) for r in payload["predicate"]["resources"]
                )
                payload["subject"][0]["digest"]["sha256"] = hashlib.sha256(digests).hexdigest()
            data = json.dumps(payload).encode()
            (model / "model.sig").write_bytes(
                bundles.build_bundle(
                    data, signer.sign(bundles.pae(data)), hint=signer.public_key.hint
                )
            )

        return forge

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            (lambda p: p["predicate"]["resources"].clear(), "empty-resources"),
            (lambda p: p["predicate"]["resources"].append(p["predicate"]["resources"][0]),
             "duplicate-resource"),
            (lambda p: p["predicate"]["serialization"].update(ignore_paths=["."]), "ignore-paths"),
            (lambda p: p["predicate"]["serialization"].update(ignore_paths=["../x"]),
             "ignore-paths"),
            (lambda p: p["predicate"]["serialization"].update(ignore_paths=["*.py"]),
             "ignore-paths"),
            (lambda p: p["predicate"]["serialization"].update(ignore_paths=["config.json"]),
             "malformed"),
            (lambda p: p["predicate"]["resources"][0].update(name="../config.json"), "name"),
            (lambda p: p["predicate"]["resources"][0].update(name="/etc/passwd"), "name"),
            (lambda p: p["predicate"]["resources"][0].update(name="C:/x"), "name"),
            (lambda p: p["predicate"]["resources"][0].update(name="a\\b"), "name"),
            (lambda p: p["predicate"]["resources"][0].update(name="a//b"), "name"),
            (lambda p: p["predicate"]["resources"][0].update(name="."), "malformed"),
            (lambda p: p["predicate"]["resources"][0].update(name="a\0b"), "malformed"),
            (lambda p: p["predicate"]["resources"][0].update(name="\ud800"), "malformed"),
            (lambda p: p["predicate"]["resources"][0].update(algorithm="md5"), "malformed"),
            (lambda p: p["predicate"]["serialization"].update(hash_type="md5"),
             "unsupported-algorithm"),
            (lambda p: p["predicate"].pop("serialization"), "malformed"),
            (lambda p: p.update(_type="https://in-toto.io/Statement/v0.1"), "malformed"),
            (lambda p: p.update(predicateType="https://model_signing/Digests/v0.1"), "malformed"),
            (lambda p: p["subject"].append(p["subject"][0]), "malformed"),
        ],
    )  # fmt: skip
    def test_statement(
        self, model: Path, signer: FileSigner, forge: Callable[..., None],
        change: Callable[[dict[str, Any]], None], reason: str,
    ) -> None:  # fmt: skip
        forge(change)
        with pytest.raises(TrustError) as caught:
            verifying.verify(str(model), signer.public_key)
        assert caught.value.reason == reason

    def test_subject_that_is_not_the_resources(
        self, model: Path, signer: FileSigner, forge: Callable[..., None]
    ) -> None:
        forge(lambda p: p["subject"][0]["digest"].update(sha256="00" * 32), root=False)
        with pytest.raises(TrustError) as caught:
            verifying.verify(str(model), signer.public_key)
        assert (caught.value.reason, caught.value.field) == (
            "root-mismatch", "subject[0].digest.sha256",
        )  # fmt: skip

    @pytest.mark.parametrize(
        "spans", [["0:10", "20:30"], ["0:10", "5:15"], ["0:10", "10:40"], ["10:20"], ["0:10:20"],
                  ["00:10"], ["0:99999999999999999999999"]],
    )  # fmt: skip
    def test_shards_with_gaps(
        self, model: Path, signer: FileSigner, forge: Callable[..., None], spans: list[str]
    ) -> None:
        def change(payload: dict[str, Any]) -> None:
            payload["predicate"]["serialization"].update(method="shards", shard_size=10)
            payload["predicate"]["resources"] = [
                {"name": f"config.json:{span}", "digest": "00" * 32, "algorithm": "sha256"}
                for span in spans
            ]

        forge(change)
        with pytest.raises(TrustError) as caught:
            verifying.verify(str(model), signer.public_key)
        assert caught.value.reason in {"shards", "malformed", "extra-file"}

    def test_tree_of_other_content(
        self, model: Path, signer: FileSigner, forge: Callable[..., None]
    ) -> None:
        def change(payload: dict[str, Any]) -> None:
            for resource in payload["predicate"]["resources"]:
                if notes := resource.get("annotations"):
                    notes["safeweights"]["tree"]["root"] = "00" * 32

        forge(change)
        verifying.verify(str(model), signer.public_key)  # the digests are right
        with pytest.raises(VerificationError) as caught:
            verifying.verify(str(model), signer.public_key, trees=True)
        assert caught.value.reason == "tree-mismatch"


class TestCertificates:
    def refused(self, model: Path, trust: Any) -> str:
        with pytest.raises(TrustError) as caught:
            verifying.verify(str(model), trust)
        return caught.value.reason

    def test_identity_is_required(self, pki: Any) -> None:
        with pytest.raises(TrustError, match="no identity"):
            pki.trust(subject=None)
        with pytest.raises(TrustError, match="no root"):
            pki.trust(roots=())

    def test_another_identity_under_the_same_root(
        self, model: Path, pki: Any, make_certificate: Any
    ) -> None:
        other = make_certificate("intern", pki.intermediate)
        signing.sign(str(model), other.signer, certificates=[other.der, pki.intermediate.der])
        assert self.refused(model, pki.trust()) == "certificate-identity"
        verifying.verify(str(model), pki.trust(subject=None, name="intern@example.org"))
        for change in ({"issuer": "CN=x"}, {"name": "x@example.org"}, {"sha256": "00" * 32}):
            assert self.refused(
                model, pki.trust(subject="O=Example,CN=intern", **change)
            ) == "certificate-identity"  # fmt: skip

    @pytest.mark.parametrize(("begin", "end"), [(-3, -1), (1, 3)])
    def test_expired_or_not_yet_valid(
        self, model: Path, pki: Any, make_certificate: Any, begin: int, end: int
    ) -> None:
        import datetime as dt

        now = dt.datetime.now(dt.timezone.utc)
        root = make_certificate(
            "root", authority=True, begin=now - dt.timedelta(9), end=now + dt.timedelta(9)
        )
        leaf = make_certificate(
            "releases", root, begin=now + dt.timedelta(begin), end=now + dt.timedelta(end)
        )
        signing.sign(str(model), leaf.signer, certificates=[leaf.der])
        trust = pki.trust(roots=(root.der,))
        assert self.refused(model, trust) == "certificate-expired"
        verifying.verify(
            str(model), dataclasses.replace(trust, at=now + dt.timedelta((begin + end) / 2))
        )
        # Also where the caller trusts that very certificate.
        assert self.refused(
            model, pki.trust(roots=(leaf.der,))
        ) == "certificate-expired"  # fmt: skip

    def test_expired_authority(self, model: Path, pki: Any, make_certificate: Any) -> None:
        import datetime as dt

        now = dt.datetime.now(dt.timezone.utc)
        old = make_certificate(
            "old", pki.root, authority=True, begin=now - dt.timedelta(9), end=now - dt.timedelta(1)
        )
        leaf = make_certificate("releases", old)
        signing.sign(str(model), leaf.signer, certificates=[leaf.der, old.der])
        assert self.refused(model, pki.trust()) == "certificate-untrusted"

    def test_foreign_root(self, model: Path, pki: Any, make_certificate: Any) -> None:
        root = make_certificate("root", authority=True)  # same name, another key
        leaf = make_certificate("releases", root)
        signing.sign(str(model), leaf.signer, certificates=[leaf.der, root.der])
        assert self.refused(model, pki.trust()) == "certificate-untrusted"

    def test_missing_intermediate(self, model: Path, pki: Any) -> None:
        signing.sign(str(model), pki.leaf.signer, certificates=[pki.leaf.der])
        assert self.refused(model, pki.trust()) == "certificate-untrusted"

    def test_a_leaf_is_no_authority(self, model: Path, pki: Any, make_certificate: Any) -> None:
        rogue = make_certificate("releases", pki.leaf)
        signing.sign(
            str(model), rogue.signer, certificates=[rogue.der, pki.leaf.der, pki.intermediate.der]
        )
        assert self.refused(model, pki.trust()) == "certificate-untrusted"

    def test_a_web_servers_certificate(self, model: Path, pki: Any, make_certificate: Any) -> None:
        from cryptography.x509.oid import ExtendedKeyUsageOID

        web = make_certificate(
            "releases", pki.intermediate, purposes=[ExtendedKeyUsageOID.SERVER_AUTH]
        )
        signing.sign(str(model), web.signer, certificates=[web.der, pki.intermediate.der])
        assert self.refused(model, pki.trust()) == "certificate-usage"

    def test_certificate_of_another_key(self, model: Path, pki: Any, signer: FileSigner) -> None:
        with pytest.raises(TrustError) as caught:
            signing.sign(str(model), signer, certificates=pki.chain)
        assert caught.value.reason == "wrong-key"
        signing.sign(str(model), pki.leaf.signer, certificates=pki.chain)
        document = json.loads((model / "model.sig").read_bytes())
        payload = base64.b64decode(document["dsseEnvelope"]["payload"])
        (model / "model.sig").write_bytes(
            bundles.build_bundle(payload, signer.sign(bundles.pae(payload)), certificates=pki.chain)
        )
        assert self.refused(model, pki.trust()) == "bad-signature"

    @pytest.mark.parametrize("der", [b"", b"\x30\x03\x02\x01\x01", b"x" * 500])
    def test_not_a_certificate(self, model: Path, pki: Any, der: bytes) -> None:
        (model / "model.sig").write_bytes(bundles.build_bundle(b"{}", b"sig", certificates=[der]))
        assert self.refused(model, pki.trust()) == "malformed"


@pytest.mark.parametrize("name", ["a\x1b[2Jb", "a\u202eb", "<script>", "new\nline", "x" * 200])
def test_hostile_names_are_signed_and_shown_safely(
    model: Path, signer: FileSigner, name: str
) -> None:
    (model / name).write_text("x")
    signing.sign(str(model), signer)
    verifying.verify(str(model), signer.public_key)
    (model / name).unlink()
    with pytest.raises(VerificationError) as caught:
        verifying.verify(str(model), signer.public_key)
    assert caught.value.reason == "missing-file"
    assert str(caught.value).isprintable()


def test_a_name_that_is_not_utf8_is_not_signed(model: Path, signer: FileSigner) -> None:
    with open(os.fsencode(str(model)) + b"/\xff", "w"):
        pass
    with pytest.raises(VerificationError) as caught:
        signing.sign(str(model), signer)
    assert caught.value.reason == "name"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda root: (root / "link").symlink_to("config.json"), "symlink"),
        (lambda root: (root / "link").symlink_to("."), "symlink"),
        (lambda root: os.mkfifo(root / "pipe"), "not-a-file"),
    ],
)
def test_only_regular_files_are_signed(
    model: Path, signer: FileSigner, make: Callable[[Path], None], reason: str
) -> None:
    make(model)
    with pytest.raises(VerificationError) as caught:
        signing.sign(str(model), signer)
    assert caught.value.reason == reason
    name = "pipe" if reason == "not-a-file" else "link"
    signing.sign(str(model), signer, ignore=[name])
    assert verifying.verify(str(model), signer.public_key).unsigned == (name,)


def test_an_empty_folder_is_not_signed(tmp_path: Path, signer: FileSigner) -> None:
    (tmp_path / "empty" / ".git").mkdir(parents=True)
    (tmp_path / "empty" / ".git" / "x").touch()
    with pytest.raises(VerificationError) as caught:
        signing.sign(str(tmp_path / "empty"), signer)
    assert caught.value.reason == "empty-resources"


def test_bookkeeping_files_are_not_extra(signed: Path, signer: FileSigner) -> None:
    """What tools write beside a model is reported as unsigned; names that hide code are refused."""
    cache = signed / ".cache" / "huggingface"
    (cache / "download").mkdir(parents=True)
    for name in ("download/config.json.metadata", ".gitignore"):
        (cache / name).write_text("x")
    (signed / "vae" / ".DS_Store").write_text("x")
    assert set(verifying.verify(str(signed), signer.public_key).unsigned) == {
        ".cache/huggingface/.gitignore", ".cache/huggingface/download/config.json.metadata",
        "vae/.DS_Store",
    }  # fmt: skip
    for name in ("download/evil.py", "modeling.py", "download.metadata"):
        (cache / name).write_text("import os")
        with pytest.raises(VerificationError) as caught:
            verifying.verify(str(signed), signer.public_key)
        assert caught.value.reason == "extra-file"
        (cache / name).unlink()


def test_what_a_caller_may_relax(signed: Path, signer: FileSigner) -> None:
    add_code(signed)
    link_to_file(signed)
    found = verifying.verify(
        str(signed), signer.public_key, ignore_unsigned=True, allow_symlinks=True
    )
    assert found.unsigned == ("modeling_evil.py",)
    (signed.parent / "elsewhere").write_text("changed")
    with pytest.raises(VerificationError) as caught:
        verifying.verify(str(signed), signer.public_key, ignore_unsigned=True, allow_symlinks=True)
    assert caught.value.reason == "digest-mismatch"
