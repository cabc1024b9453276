"""What signing writes, where, and what it never writes over."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

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
