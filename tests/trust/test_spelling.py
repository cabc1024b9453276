"""File systems that take several spellings for one name: a rule must not depend on which was given.

They are played by translating the names that system calls are given, and mounted where the machine
allows it: NTFS with ``ignore_case`` (package ``ntfs-3g``), which lists all names in lower case.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import unicodedata
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import safeweights.numpy
from safeweights.trust import Policy, PolicyVerifier, Rule, TrustError, admit
from safeweights.trust.policies.subjects import place_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from safeweights.trust.signatures.keys import FileSigner

E_COMPOSED = "é"
E_DECOMPOSED = unicodedata.normalize("NFD", E_COMPOSED)


def fold(name: str) -> str:
    return unicodedata.normalize("NFD", name).casefold()


class Played:
    """Below `root`, system calls find a name in any spelling; folders keep the one they got."""

    CALLS = ("lstat", "stat", "open", "scandir", "listdir", "readlink")

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self._root = str(root)
        self._list = os.listdir
        for name in self.CALLS:
            patch.setattr(os, name, self._translating(getattr(os, name)))

    def _translating(self, call: Any) -> Any:
        def translated(path: Any = ".", *arguments: Any, **options: Any) -> Any:
            if isinstance(path, str) and path.startswith(f"{self._root}/"):
                path = self._stored(path)
            return call(path, *arguments, **options)

        return translated

    def _stored(self, path: str) -> str:
        found = self._root
        for part in path[len(self._root) + 1 :].split("/"):
            names = self._list(found) if os.path.isdir(found) else []
            same = [name for name in names if fold(name) == fold(part)]
            found = f"{found}/{same[0] if same else part}"
        return found


@pytest.fixture(params=["played", "mounted"])
def folder(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A folder in which case does not count; what it lists is in lower case."""
    root = tmp_path / "folder"
    root.mkdir()
    if request.param == "played":
        Played(root, monkeypatch)
        yield root
        return
    if not (shutil.which("mkntfs") and shutil.which("lowntfs-3g")):
        pytest.skip("needs the package ntfs-3g")
    image = tmp_path / "image"
    image.touch()
    os.truncate(image, 8 << 20)
    subprocess.run(["mkntfs", "-q", "-F", str(image)], check=True, capture_output=True)
    mount = ["lowntfs-3g", "-o", "ignore_case", str(image), str(root)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"nothing can be mounted here: {mounted.stderr.strip()[:200]}")
    try:
        yield root
    finally:
        # Lazily: an exception that pytest keeps may hold a file open.
        subprocess.run(["umount", "-l", str(root)], check=True)


def make(root: Path) -> Path:
    root.mkdir(parents=True)
    safeweights.numpy.save_file({"a": np.zeros(4, np.float32)}, root / "model.safetensors")
    return root


def policy(root: Path, signer: FileSigner, pattern: str) -> Policy:
    """Signed models below one folder, any elsewhere."""
    rules = (Rule(pattern, signers=("us",)), Rule("*", level="none"))
    return Policy(rules, {"us": signer.public_key}, root=str(root))


def reasons(path: Path, used: Policy) -> set[str]:
    """Why admission refuses the folder, and loading its file."""
    decision = admit(path, used).decision
    found = {reason.code for reason in decision.reasons if reason.against}
    with pytest.raises(TrustError) as caught:
        safeweights.numpy.load_file(path / "model.safetensors", trust=used)
    assert caught.value.reason in found
    return found


@pytest.mark.parametrize("spelling", ["Vendor/m", "vendor/M", "VENDOR/M"])
def test_another_spelling_does_not_choose_another_rule(
    folder: Path, signer: FileSigner, spelling: str
) -> None:
    make(folder / "vendor" / "m")
    used = policy(folder, signer, "vendor/*")
    assert reasons(folder / "vendor" / "m", used) == {"signature-missing", "level"}
    assert reasons(folder / spelling, used) == {"spelling"}


def test_nor_does_one_of_a_file(folder: Path, signer: FileSigner) -> None:
    make(folder / "vendor")
    used = policy(folder, signer, "vendor/model.safetensors")
    place = place_of(folder / "vendor" / "Model.safetensors", str(folder))
    assert place.problem is not None
    assert place.problem[0] == "spelling"
    assert "`vendor/model.safetensors`" in place.problem[1]
    with pytest.raises(TrustError) as caught:
        safeweights.numpy.load_file(folder / "vendor" / "MODEL.safetensors", trust=used)
    assert caught.value.reason == "spelling"


@pytest.mark.parametrize("folder", ["mounted"], indirect=True)
def test_the_spelling_behind_a_link_counts(folder: Path, signer: FileSigner) -> None:
    make(folder / "vendor" / "m")
    try:
        (folder / "alias").symlink_to(folder / "VENDOR")
    except OSError:
        pytest.skip("this file system has no links")
    used = policy(folder, signer, "vendor/*")
    assert reasons(folder / "alias" / "m", used) == {"spelling"}


def test_a_subject_that_the_caller_names_needs_no_spelling(
    folder: Path, signer: FileSigner
) -> None:
    make(folder / "vendor")
    used = policy(folder, signer, "vendor")
    decision = admit(folder / "VENDOR", used, name="other").decision
    assert decision.verdict == "allow"


@pytest.mark.parametrize("folder", ["played"], indirect=True)
@pytest.mark.parametrize(
    ("stored", "given"), [(E_COMPOSED, E_DECOMPOSED), (E_DECOMPOSED, E_COMPOSED), ("ß", "ss")]
)
def test_another_encoding_does_not_choose_another_rule(
    folder: Path, signer: FileSigner, stored: str, given: str
) -> None:
    make(folder / f"mod{stored}le")
    for spelling in (stored, given):
        used = policy(folder, signer, f"mod{spelling}le")
        expected = {"signature-missing", "level"} if spelling == stored else {"spelling"}
        assert reasons(folder / f"mod{spelling}le", used) == expected


def test_where_case_counts_every_spelling_is_a_model(tmp_path: Path, signer: FileSigner) -> None:
    """Also of two names that are links to one file."""
    make(tmp_path / "vendor")
    make(tmp_path / "VENDOR")
    os.link(tmp_path / "vendor" / "model.safetensors", tmp_path / "vendor" / "MODEL.safetensors")
    if os.path.samefile(tmp_path / "vendor", tmp_path / "VENDOR"):
        pytest.skip("this machine's file system ignores case")
    used = policy(tmp_path, signer, "vendor/*")
    assert admit(tmp_path / "VENDOR", used).decision.verdict == "allow"
    for name in ("VENDOR", "vendor/MODEL.safetensors", "vendor/model.safetensors", "vendor/none"):
        assert place_of(tmp_path / name, str(tmp_path)).problem is None
    loaded = safeweights.numpy.load_file(
        tmp_path / "VENDOR" / "model.safetensors", trust=PolicyVerifier(used)
    )
    assert list(loaded) == ["a"]


ONE = "https://example.org/vendor/m.safetensors"
OTHERS = [
    "HTTPS://example.org/vendor/m.safetensors",
    "https://Example.org/vendor/m.safetensors",
    "https://example.org./vendor/m.safetensors",
    "https://example.org:443/vendor/m.safetensors",
    "https://example.org:0443/vendor/m.safetensors",
    "https://example.org/%76endor/m.safetensors",
    "https://example.org/vendor/m%2Esafetensors",
    "http://[::1]:80/m.safetensors",
    "oci://Registry.example.org/vendor/m:1",
    "s3://Bucket/vendor/m.safetensors",
]


@pytest.mark.parametrize("url", OTHERS)
def test_another_spelling_of_a_url_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No request is sent: the URL is refused for how it is spelled."""
    monkeypatch.setattr("safeweights.trust.policies.subjects.is_folder", lambda path: False)
    problem = place_of(url, None).problem
    assert problem is not None
    assert problem[0] == "spelling"


@pytest.mark.parametrize(
    "url",
    [
        ONE,
        ONE + "?X-Amz-Signature=secret",
        "https://example.org:8443/a%20b/caf%C3%A9+1.safetensors",
        "http://[::1]/m.safetensors",
        "http://[::1]:8080/m.safetensors",
        "s3://bucket/Vendor/é.safetensors",
        "hf://Org/Model@main/m.safetensors",
        "oci://registry.example.org:5000/vendor/m:1",
    ],
)
def test_the_one_spelling_of_a_url_is_a_subject(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safeweights.trust.policies.subjects.is_folder", lambda path: False)
    place = place_of(url, None)
    assert place.problem is None
    assert "secret" not in place.name


@pytest.mark.parametrize(
    "pattern", ["https://Example.org/*", "HTTPS://example.org/*", "s3://Bucket/*"]
)
def test_a_pattern_of_another_spelling_can_never_match(pattern: str) -> None:
    with pytest.raises(TrustError, match="lower case"):
        Policy(rules=(Rule(pattern=pattern),))
    Policy(rules=(Rule(pattern="hf://Org/*"),))
