"""What signing writes, where, and what it never writes over."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from safeweights.trust.errors import DocumentError, TrustError, VerificationError
from safeweights.trust.signatures import signing, verifying

if TYPE_CHECKING:
    from pathlib import Path

    from safeweights.trust.signatures.keys import FileSigner

WEIGHTS = "model.safetensors"


def tree(root: Path) -> dict[str, bytes | str]:
    """Every file's bytes and every link's target."""
    return {
        str(path.relative_to(root)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


class TestNothingIsOverwritten:
    @pytest.mark.parametrize("alone", [True, False])
    @pytest.mark.parametrize("name", [f"{WEIGHTS}.swtree", "model.sig", f"{WEIGHTS}.sig"])
    @pytest.mark.parametrize("content", [b"my notes", b"{}", b'{"mediaType": "x"}'])
    def test_a_file_that_is_not_ours(
        self, model: Path, signer: FileSigner, alone: bool, name: str, content: bytes
    ) -> None:
        target = model / WEIGHTS if alone else model
        used = (f"{WEIGHTS}.swtree", f"{WEIGHTS}.sig" if alone else "model.sig")
        (model / name).write_bytes(content)
        before = tree(model)
        if name not in used:
            signing.sign(str(target), signer)
            assert (model / name).read_bytes() == content
            return
        with pytest.raises(FileExistsError) as caught:
            signing.sign(str(target), signer)
        assert caught.value.filename == str(model / name)
        assert tree(model) == before
        signing.sign(str(target), signer, force=True)
        verifying.verify(str(target), signer.public_key)

    @pytest.mark.parametrize("force", [True, False])
    @pytest.mark.parametrize("dangling", [True, False])
    @pytest.mark.parametrize("name", [f"{WEIGHTS}.swtree", "out.sig"])
    def test_a_link(
        self,
        model: Path,
        signer: FileSigner,
        tmp_path: Path,
        name: str,
        dangling: bool,
        force: bool,
    ) -> None:
        elsewhere = tmp_path / "precious"
        if not dangling:  # what is there may even be a signature or a tree of ours
            signing.sign(str(model / WEIGHTS), signer)
            own = f"{WEIGHTS}.sig" if name == "out.sig" else name
            (model / own).rename(elsewhere)
        (model / name).symlink_to(elsewhere)
        before = tree(tmp_path)
        with pytest.raises(FileExistsError, match="symbolic link"):
            signing.sign(
                str(model / WEIGHTS), signer, signature=str(model / "out.sig"), force=force
            )
        assert tree(tmp_path) == before

    def test_a_link_that_appears_while_files_are_hashed(
        self, model: Path, signer: FileSigner, tmp_path: Path
    ) -> None:
        (tmp_path / "precious").write_text("mine")

        def swap(_: int) -> None:
            if not (model / "model.sig").is_symlink():
                (model / "model.sig").symlink_to(tmp_path / "precious")

        with pytest.raises(OSError, match="regular file"):
            signing.sign(str(model), signer, progress=swap)
        assert (tmp_path / "precious").read_text() == "mine"

    def test_own_files_are_replaced(self, model: Path, signer: FileSigner) -> None:
        for _ in range(2):
            signing.sign(str(model), signer)
            signing.sign(str(model / WEIGHTS), signer)
        (model / "empty.sig").touch()
        signing.sign(str(model / WEIGHTS), signer, signature=str(model / "empty.sig"))


class TestHubCache:
    """The Hub's cache: every file of a snapshot is a link into the repository's blobs."""

    @pytest.fixture
    def snapshot(self, model: Path, tmp_path: Path) -> Path:
        repository = tmp_path / "hub" / "models--org--name"
        root = repository / "snapshots" / "0123abcd"
        (repository / "blobs").mkdir(parents=True)
        for number, file in enumerate(sorted(p for p in model.rglob("*") if p.is_file())):
            blob = repository / "blobs" / f"{number:064x}"
            blob.write_bytes(file.read_bytes())
            link = root / file.relative_to(model)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(blob, link.parent))
        return root

    def test_signed_and_verified(
        self, snapshot: Path, model: Path, signer: FileSigner, tmp_path: Path
    ) -> None:
        blobs = tree(snapshot.parents[1] / "blobs")
        signed = signing.sign(str(snapshot), signer)
        assert {file.name for file in signed.files} >= {WEIGHTS, "vae/weights.safetensors"}
        found = verifying.verify(str(snapshot), signer.public_key)
        assert found.statement.allow_symlinks
        assert tree(snapshot.parents[1] / "blobs") == blobs
        # The same files elsewhere, through a link to the snapshot, and one by one.
        (tmp_path / "link").symlink_to(snapshot)
        verifying.verify(str(tmp_path / "link"), signer.public_key)
        verifying.verify(str(snapshot / WEIGHTS), signer.public_key)
        for name in signed.sidecars:
            (model / name).write_bytes((snapshot / name).read_bytes())
        verifying.verify(str(model), signer.public_key, signature=str(snapshot / "model.sig"))

    def test_loaded(self, snapshot: Path, signer: FileSigner) -> None:
        import safeweights

        signing.sign(str(snapshot), signer)
        for path in (snapshot, snapshot / WEIGHTS):
            with safeweights.open(path, trust=signer.public_key) as found:
                assert bytes(found["a"].view()[:4]) == bytes(
                    safeweights.open(snapshot / WEIGHTS)["a"].view()[:4]
                )

    def test_signed_by_the_publisher_as_regular_files(
        self, snapshot: Path, model: Path, signer: FileSigner
    ) -> None:
        signing.sign(str(model), signer)
        for name in ("model.sig", f"{WEIGHTS}.swtree", "vae/weights.safetensors.swtree"):
            (snapshot / name).write_bytes((model / name).read_bytes())
        assert not verifying.verify(str(snapshot), signer.public_key).statement.allow_symlinks
        target = snapshot / "config.json"
        blob = target.resolve()
        blob.write_text("{}")
        with pytest.raises(VerificationError) as caught:
            verifying.verify(str(snapshot), signer.public_key)
        assert caught.value.reason == "digest-mismatch"

    @pytest.mark.parametrize(
        "place", ["outside", "other-repository", "blobs/folder", "missing", "refs"]
    )
    def test_other_links_are_not_followed(
        self, snapshot: Path, model: Path, signer: FileSigner, place: str
    ) -> None:
        signing.sign(str(model), signer)
        for name in ("model.sig", f"{WEIGHTS}.swtree", "vae/weights.safetensors.swtree"):
            (snapshot / name).write_bytes((model / name).read_bytes())
        repository = snapshot.parents[1]
        target = {
            "outside": snapshot.parents[3] / "file",
            "other-repository": repository.parent / "models--org--other" / "blobs" / "file",
            "blobs/folder": repository / "blobs" / "folder",
            "missing": repository / "blobs" / "missing",
            "refs": repository / "refs" / "main",
        }[place]
        target.parent.mkdir(parents=True, exist_ok=True)
        if place == "blobs/folder":
            target.mkdir()
        elif place != "missing":
            target.write_bytes((model / "config.json").read_bytes())
        (snapshot / "config.json").unlink()
        (snapshot / "config.json").symlink_to(target)
        with pytest.raises(VerificationError) as caught:
            signing.sign(str(snapshot), signer)
        assert caught.value.reason == "symlink"
        with pytest.raises(VerificationError) as caught:
            verifying.verify(str(snapshot), signer.public_key)
        assert caught.value.reason == "symlink"

    def test_a_folder_that_only_looks_like_the_cache(
        self, snapshot: Path, signer: FileSigner
    ) -> None:
        other = snapshot.parents[1].rename(snapshot.parents[2] / "repository")
        with pytest.raises(VerificationError) as caught:
            signing.sign(other / "snapshots" / snapshot.name, signer)
        assert caught.value.reason == "symlink"

    def test_links_elsewhere_where_allowed(
        self, model: Path, signer: FileSigner, tmp_path: Path
    ) -> None:
        (model / "vae.txt").rename(tmp_path / "elsewhere")
        (model / "vae.txt").symlink_to(tmp_path / "elsewhere")
        signing.sign(str(model), signer, allow_symlinks=True)
        verifying.verify(str(model), signer.public_key)
        (tmp_path / "elsewhere").write_text("changed")
        with pytest.raises(VerificationError) as caught:
            verifying.verify(str(model), signer.public_key)
        assert caught.value.reason == "digest-mismatch"
        (model / "folder").symlink_to(tmp_path)
        with pytest.raises(VerificationError) as caught:
            signing.sign(str(model), signer, allow_symlinks=True)
        assert caught.value.reason == "symlink"


class TestDetached:
    """Signatures kept outside the model's folder."""

    @pytest.fixture
    def outside(self, model: Path, signer: FileSigner, tmp_path: Path) -> str:
        return signing.sign(str(model), signer, signature=tmp_path / "sigs.oms.sig").signature

    def test_one_file_of_the_folder(
        self, model: Path, signer: FileSigner, outside: str, tmp_path: Path
    ) -> None:
        def verify(path: Path, base: Path | None = model) -> None:
            verifying.verify(path, signer.public_key, signature=outside, base=base)

        verify(model / WEIGHTS)
        verify(model / "vae" / "weights.safetensors")
        (tmp_path / "link").symlink_to(model)
        verify(tmp_path / "link" / WEIGHTS)
        verify(model / WEIGHTS, tmp_path / "link")
        (model / "vae" / "moved.safetensors").write_bytes((model / WEIGHTS).read_bytes())
        for path, base in (
            (model / WEIGHTS, None),  # the names are those in the signature's folder
            (model / WEIGHTS, tmp_path),
            (model / "vae" / "moved.safetensors", model),
            (model / "vae" / "weights.safetensors", model / "vae"),
        ):
            with pytest.raises(VerificationError) as caught:
                verify(path, base)
            assert caught.value.reason == "not-listed"

    def test_another_signature_lies_in_the_folder(
        self, model: Path, signer: FileSigner, stranger: FileSigner, outside: str
    ) -> None:
        signing.sign(str(model), stranger)
        found = verifying.verify(str(model), signer.public_key, signature=outside)
        assert found.unsigned == ("model.sig",)
        (model / "model.sig").write_bytes(b"\x80\x04.")
        with pytest.raises(VerificationError) as caught:
            verifying.verify(str(model), signer.public_key, signature=outside)
        assert caught.value.reason == "extra-file"
        (model / "model.sig").unlink()
        (model / "model.sig").symlink_to(outside)
        with pytest.raises(VerificationError) as caught:
            verifying.verify(str(model), signer.public_key, signature=outside)
        assert caught.value.reason == "extra-file"

    def test_one_folder_by_two_spellings(
        self, model: Path, signer: FileSigner, tmp_path: Path
    ) -> None:
        signing.sign(str(model), signer, signature=model / "mine.sig")
        (tmp_path / "link").symlink_to(model)
        for folder, other in ((model, tmp_path / "link"), (tmp_path / "link", model)):
            found = verifying.verify(folder, signer.public_key, signature=other / "mine.sig")
            assert found.unsigned == ()


class TestDigest:
    def test_the_root_that_is_signed(self, model: Path, signer: FileSigner) -> None:
        before = tree(model)
        for path, options in (
            (model, {}),
            (model, {"trees": False, "ignore": ["vae"]}),
            (model / WEIGHTS, {}),
        ):
            expected = signing.digest(path, **options)  # type: ignore[arg-type]
            assert tree(model) == before
            signed = signing.sign(path, signer, **options)  # type: ignore[arg-type]
            found = verifying.verify(path, signer.public_key)
            assert expected.root == signed.root == found.statement.root
            assert signing.digest(path, **options).root == expected.root  # type: ignore[arg-type]
            assert [f.name for f in expected.files] == [f.name for f in signed.files]
            for name in tree(model).keys() - before.keys():
                (model / name).unlink()

    def test_it_changes_with_the_contents(self, model: Path) -> None:
        before = signing.digest(model).root
        (model / "config.json").write_text("{}")
        assert signing.digest(model).root != before


class TestModelId:
    def test_recorded(self, model: Path, signer: FileSigner) -> None:
        for path in (model, model / WEIGHTS):
            made = signing.sign(path, signer, model_id="org/name", release=3).signature
            statement = verifying.verify(path, signer.public_key, signature=made).statement
            assert (statement.model_id, statement.release) == ("org/name", 3)
            signing.sign(path, signer)
            found = verifying.verify(path, signer.public_key, signature=made)
            assert found.statement.model_id is None

    @pytest.mark.parametrize("name", ["", "x" * 1025])
    def test_refused(self, model: Path, signer: FileSigner, name: str) -> None:
        with pytest.raises(DocumentError) as caught:
            signing.sign(model, signer, model_id=name)
        assert caught.value.field == "model_id"


def test_one_signature_is_parsed_once_for_all_shards(
    model: Path, signer: FileSigner, monkeypatch: pytest.MonkeyPatch
) -> None:
    import safeweights

    shards = [model / f"shard{number}.safetensors" for number in range(8)]
    for shard in shards:
        shard.write_bytes((model / "vae" / "weights.safetensors").read_bytes())
    signing.sign(model, signer)
    parsed: list[str | None] = []
    parse = verifying.parse_bundle

    def counting(data: bytes, *, path: str | None = None) -> Any:
        parsed.append(path)
        return parse(data, path=path)

    monkeypatch.setattr(verifying, "parse_bundle", counting)
    for shard in shards:
        with safeweights.open(shard, trust=signer.public_key) as found:
            assert found["c"].nbytes == 1000
    assert parsed == [str(model / "model.sig")]
    (model / "model.sig").write_bytes(b"{}")  # never the cached one for other bytes
    with pytest.raises(TrustError):
        safeweights.open(shards[0], trust=signer.public_key)
    assert len(parsed) == 2
