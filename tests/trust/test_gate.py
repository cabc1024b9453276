"""Attacks on the gate: spellings, mixed releases, rollback, races, hostile folders.

Each test builds the attack on a small model and expects the verdict that stops it. A model is
admitted or loaded; both must give the same answer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import os
import shutil
import subprocess
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature

import safeweights
import safeweights.numpy
from safeweights.errors import SafetensorError
from safeweights.trust import (
    AuditLog,
    DocumentError,
    LockFile,
    Policy,
    PolicyVerifier,
    PolicyViolationError,
    Revocations,
    Rule,
    TrustError,
    VerificationError,
    Warrant,
    admit,
    load_policy,
    sign,
    verify_log,
)
from safeweights.trust.policies import evidence as gathering
from safeweights.trust.policies import subjects
from safeweights.trust.signatures import certificates

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from safeweights.trust.signatures.keys import FileSigner

WEIGHTS = "model.safetensors"


def make(root: Path, **values: Any) -> Path:
    """A model of one file of weights and a configuration."""
    root.mkdir(parents=True, exist_ok=True)
    arrays = {name: np.full(4, value, dtype=np.float32) for name, value in values.items()}
    safeweights.numpy.save_file(arrays or {"a": np.zeros(4, np.float32)}, root / WEIGHTS)
    (root / "config.json").write_text("{}")
    return root


def make_sharded(root: Path, value: float) -> Path:
    """A model of two shards, whose tensors all hold `value`."""
    root.mkdir(parents=True, exist_ok=True)
    places = {}
    for number, name in enumerate("ab", 1):
        shard = f"model-0000{number}-of-00002.safetensors"
        safeweights.numpy.save_file({name: np.full(4, value, np.float32)}, root / shard)
        places[name] = shard
    (root / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": places}))
    return root


SHARDS = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]


def codes(admission: Any) -> set[str]:
    return {reason.code for reason in admission.decision.reasons if reason.against}


def refusal(use: Callable[[], object]) -> str:
    with pytest.raises(TrustError) as caught:
        use()
    return caught.value.reason


@pytest.fixture
def rules(tmp_path: Path, signer: FileSigner) -> Callable[..., Policy]:
    """A policy file in `tmp_path` with the signer `us` and these rules."""

    def write(text: str) -> Policy:
        (tmp_path / "key.pub").write_bytes(signer.public_key.pem)
        (tmp_path / "policy.toml").write_text(f'{text}\n[signers.us]\npublic_key = "key.pub"\n')
        return load_policy(tmp_path / "policy.toml")

    return write


STRICT_VENDOR = """
[[rules]]
pattern = "vendor/*"
signers = ["us"]

[[rules]]
pattern = "*"
level = "none"
"""


# --- the rule follows from the place, not from its spelling


@pytest.mark.parametrize(
    "spelling",
    [
        "vendor/m", "./vendor/m", "vendor//m", "vendor/m/", "scratch/../vendor/m",
        "vendor/m/../m", "vendor/alias", "vendor/inside/../../m", "ABSOLUTE",
    ],
)  # fmt: skip
@pytest.mark.parametrize("way", ["admit", "folder", "file"])
def test_every_spelling_has_one_subject(
    tmp_path: Path,
    rules: Callable[..., Policy],
    monkeypatch: pytest.MonkeyPatch,
    spelling: str,
    way: str,
) -> None:
    policy = rules(STRICT_VENDOR)
    model = make(tmp_path / "vendor" / "m")
    (tmp_path / "scratch").mkdir()
    (tmp_path / "vendor" / "alias").symlink_to("m")
    (tmp_path / "vendor" / "deep").mkdir()
    (tmp_path / "vendor" / "deep" / "er").mkdir()
    (tmp_path / "vendor" / "inside").symlink_to("deep/er")  # of which `..` is deep
    monkeypatch.chdir(tmp_path)
    path = str(model) if spelling == "ABSOLUTE" else spelling
    if way == "admit":
        decision = admit(path, policy).decision
        assert (decision.verdict, decision.subject, decision.rule) == (
            "refuse", "vendor/m", "vendor/*",
        )  # fmt: skip
        return
    with pytest.raises(PolicyViolationError) as caught:
        if way == "folder":
            safeweights.open(path, trust=policy)
        else:
            safeweights.numpy.load_file(f"{path}/{WEIGHTS}", trust=policy)
    assert caught.value.decision.subject == "vendor/m"
    assert caught.value.reason == "signature-missing"


@pytest.mark.parametrize("way", ["admit", "folder", "file"])
@pytest.mark.parametrize(
    ("link", "target", "given"),
    [
        ("vendor/m", "../scratch/evil", "vendor/m"),
        ("vendor/m", "../scratch/evil", "scratch/../vendor/m"),
        ("vendor/m", "../scratch/evil", "start/m"),
        ("vendor", "scratch", "vendor/evil"),
        ("vendor/m", "ABSOLUTE/scratch/evil", "vendor/m"),
        ("vendor/m", "../hop", "vendor/m"),
        ("alias", "signed/m", "alias"),
        ("nowhere/m", "../scratch/evil", "nowhere/m"),
    ],
)
def test_a_link_does_not_lead_from_one_rule_to_another(
    tmp_path: Path, rules: Callable[..., Policy], link: str, target: str, given: str, way: str
) -> None:
    """Neither one in the place of a signed model, nor one that stands elsewhere."""
    policy = rules(
        "".join(
            f'[[rules]]\npattern = "{name}"\n{how}\n'
            for name, how in (
                ("vendor/*", 'signers = ["us"]'), ("signed/*", 'signers = ["us"]'),
                ("scratch/*", 'level = "none"'), ("[hsa]*", 'level = "none"'),
            )
        )
    )  # fmt: skip
    make(tmp_path / "scratch" / "evil")
    make(tmp_path / "signed" / "m")
    (tmp_path / "hop").symlink_to("scratch/evil")
    (tmp_path / link).parent.mkdir(exist_ok=True)
    (tmp_path / link).symlink_to(target.replace("ABSOLUTE", str(tmp_path)))
    (tmp_path / "start").symlink_to("vendor")
    path = tmp_path / given
    if way == "admit":
        assert codes(admit(path, policy)) == {"link"}
    elif way == "folder":
        assert refusal(lambda: safeweights.open(path, trust=policy)) == "link"
    else:
        load = safeweights.numpy.load_file
        assert refusal(lambda: load(path / WEIGHTS, trust=policy)) == "link"
    assert admit(tmp_path / "scratch" / "evil", policy).decision.verdict == "allow"
    assert admit(path, policy, name="scratch/evil").decision.verdict == "allow"


def test_a_thousand_links_in_the_place_of_a_model(
    tmp_path: Path, signer: FileSigner, rules: Callable[..., Policy]
) -> None:
    """A folder alternates with a link to another one, for which the rule is lenient."""
    policy = rules(STRICT_VENDOR)
    sign(make(tmp_path / "vendor" / "m", a=1.0), signer)
    make(tmp_path / "scratch", a=2.0)
    place, aside = tmp_path / "vendor" / "m", tmp_path / "vendor" / "aside"
    stop = threading.Event()
    swaps = 0

    def attack() -> None:
        nonlocal swaps
        while not stop.is_set():
            place.rename(aside)
            place.symlink_to("../scratch")
            place.unlink()
            aside.rename(place)
            swaps += 1

    attacker = threading.Thread(target=attack)
    attacker.start()
    seen: set[str] = set()
    try:
        while swaps < 1000 or not {"loaded", "link"} <= seen:
            assert swaps < 200_000, seen
            try:
                loaded = safeweights.numpy.load_file(place / WEIGHTS, trust=policy)
            except TrustError as error:
                seen.add(error.reason)
            except OSError:
                seen.add("absent")
            else:
                assert loaded["a"].tolist() == [1.0] * 4
                seen.add("loaded")
    finally:
        stop.set()
        attacker.join()


@pytest.mark.parametrize("way", ["admit", "load"])
@pytest.mark.parametrize("attack", ["replaced", "turned"])
def test_a_link_is_no_way_back(
    two_releases: tuple[Path, Path], rules: Callable[..., Policy], attack: str, way: str
) -> None:
    """A link to an older release, in the place of a model, or instead of one to the new release."""
    policy = rules('lock = "lock.json"\n[[rules]]\npattern = "*"\nsigners = ["us"]\n')
    older, newer = two_releases
    place = newer
    if attack == "turned":
        place = newer.parent / "latest"
        place.symlink_to(newer.name)

    def use() -> Any:
        if way == "admit":
            return admit(place, policy).require()
        return safeweights.open(place, trust=policy)

    use()
    use()
    if attack == "turned":
        place.unlink()
    else:
        place.rename(newer.parent / "aside")
    place.symlink_to(os.path.relpath(older, place.parent))
    assert refusal(use) == "rollback"


def test_first_use_through_a_link(tmp_path: Path, rules: Callable[..., Policy]) -> None:
    policy = rules(
        'lock = "lock.json"\n[[rules]]\npattern = "*"\nlevel = "known"\nfirst_use = true\n'
    )
    make(tmp_path / "one", a=1.0)
    make(tmp_path / "two", a=2.0)
    link = tmp_path / "current"
    link.symlink_to("one")
    for _ in range(2):
        assert admit(link, policy).decision.verdict == "allow"
        assert safeweights.numpy.load_file(link / WEIGHTS, trust=policy)
    assert set(LockFile(tmp_path / "lock.json").entries()) == {"one", "current"}
    before = (tmp_path / "lock.json").read_bytes()
    assert admit(tmp_path / "one", policy).decision.verdict == "allow"
    assert (tmp_path / "lock.json").read_bytes() == before
    link.unlink()
    link.symlink_to("two")
    assert codes(admit(link, policy)) == {"changed-since-first-use", "level"}
    load = safeweights.numpy.load_file
    assert refusal(lambda: load(link / WEIGHTS, trust=policy)) == "changed-since-first-use"
    assert admit(tmp_path / "two", policy).decision.verdict == "allow"


def outcome(resolve: Callable[[str], str], path: str) -> str | int | None:
    """A real path, or the number of the system's error."""
    try:
        return resolve(path)
    except OSError as error:
        return error.errno


def test_paths_are_resolved_as_the_system_does(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name, target in (
        ("a/up", ".."), ("a/self", "."), ("a/twice", "up/a"), ("absolute", str(tmp_path / "a")),
        ("a/b/back", "../../absolute/b"), ("circle", "circle2"), ("circle2", "circle"), ("dangling", "no"),
    ):  # fmt: skip
        (tmp_path / name).symlink_to(target)
    for path in (
        ".", "a", "a/up", "a/up/a/b", "a/self/self/b/..", "a/twice/b", "absolute/b/back/../up",
        "a/b/back/back", "/", "//", "circle", "circle/x", "dangling", "no", "a/b/../../absolute",
    ):  # fmt: skip
        given = os.path.join(tmp_path, path)
        assert outcome(lambda path: subjects._resolve(path)[0], given) == outcome(
            lambda path: os.path.realpath(path, strict=True), given
        )


def test_admission_and_loads_have_one_subject(
    tmp_path: Path, rules: Callable[..., Policy], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = rules('[[rules]]\npattern = "mm"\nsigners = ["us"]\n')
    make(tmp_path / "mm")
    monkeypatch.chdir(tmp_path)
    found = []
    for use in (
        lambda: admit("mm", policy).require(),
        lambda: safeweights.open("mm", trust=policy),
        lambda: safeweights.stream("mm", "np", trust=policy),
        lambda: safeweights.safe_open(f"mm/{WEIGHTS}", "np", trust=policy),
    ):
        with pytest.raises(PolicyViolationError) as caught:
            use()
        found.append((caught.value.decision.subject, caught.value.decision.rule))
    assert found == [("mm", "mm")] * 4


def test_no_rule_names_the_subject(tmp_path: Path, rules: Callable[..., Policy]) -> None:
    policy = rules('[[rules]]\npattern = "vendor/*"\nlevel = "none"\n')
    admission = admit(make(tmp_path / "other" / "m"), policy)
    assert codes(admission) == {"no-rule"}
    assert "`other/m`" in admission.decision.reasons[0].text


@pytest.mark.parametrize("way", ["admit", "load"])
def test_a_path_outside_the_root(tmp_path: Path, rules: Callable[..., Policy], way: str) -> None:
    policy = rules('root = "models"\n[[rules]]\npattern = "*"\nlevel = "none"\n')
    (tmp_path / "models").mkdir()
    model = make(tmp_path / "elsewhere")
    if way == "admit":
        admission = admit(model, policy)
        assert codes(admission) == {"outside-root"}
        assert str(tmp_path / "models") in admission.decision.reasons[0].text
    else:
        assert refusal(
            lambda: safeweights.numpy.load_file(model / WEIGHTS, trust=policy)
        ) == "outside-root"  # fmt: skip
    make(tmp_path / "models" / "m")
    assert not codes(admit(tmp_path / "models" / "m", policy))


def test_a_program_that_changes_its_folder_changes_no_rule(
    tmp_path: Path, rules: Callable[..., Policy], monkeypatch: pytest.MonkeyPatch
) -> None:
    rules(f'lock = "lock.json"\n{STRICT_VENDOR}')
    model = make(tmp_path / "vendor" / "m")
    monkeypatch.chdir(tmp_path)
    policy = load_policy("policy.toml")
    monkeypatch.chdir(model)
    for use in (
        lambda: admit(".", policy).require(),
        lambda: safeweights.numpy.load_file(WEIGHTS, trust=policy),
    ):
        with pytest.raises(PolicyViolationError) as caught:
            use()
        assert caught.value.decision.rule == "vendor/*"
    assert policy.lock == str(tmp_path / "lock.json")


@pytest.mark.parametrize("pattern", ["./vendor/*", "vendor//*", "vendor/", "a/../b", "/srv/*", ""])
def test_a_pattern_that_can_never_match_is_an_error(
    rules: Callable[..., Policy], pattern: str
) -> None:
    with pytest.raises(DocumentError, match="can never match") as caught:
        rules(f'[[rules]]\npattern = "{pattern}"\nlevel = "none"\n')
    assert caught.value.field == "rules[0].pattern"


def test_a_relative_pattern_without_a_root_is_an_error(tmp_path: Path) -> None:
    policy = Policy((Rule("vendor/*", level="none"),))
    with pytest.raises(DocumentError, match="has no root"):
        admit(make(tmp_path / "vendor" / "m"), policy)
    assert not codes(admit(tmp_path / "vendor/m", dataclasses.replace(policy, root=str(tmp_path))))
    assert not codes(admit(tmp_path / "vendor/m", policy, name="vendor/m"))
    assert refusal(lambda: admit(tmp_path / "vendor/m", policy, name="vendor//m")) == "name"


def test_a_folder_does_not_bring_in_models_of_another_rule(
    tmp_path: Path, rules: Callable[..., Policy]
) -> None:
    policy = rules(STRICT_VENDOR)
    make(tmp_path / "vendor" / "m")
    assert codes(admit(tmp_path / "vendor", policy)) == {"several-rules"}


def test_a_planted_signature_does_not_choose_the_rule(
    tmp_path: Path, rules: Callable[..., Policy], signer: FileSigner
) -> None:
    """The signature of a folder above moves the model's folder, not its rule."""
    policy = rules(STRICT_VENDOR)
    model = make(tmp_path / "vendor" / "m")
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "y").write_text("")
    sign(tmp_path / "x", signer)
    shutil.copy(tmp_path / "x" / "model.sig", tmp_path / "vendor" / "model.sig")
    reason = refusal(lambda: safeweights.numpy.load_file(model / WEIGHTS, trust=policy))
    assert reason == "signature-refused"


# --- one statement covers a checkpoint


@pytest.fixture
def two_releases(tmp_path: Path, signer: FileSigner) -> tuple[Path, Path]:
    found = []
    for number in (1, 2):
        root = make_sharded(tmp_path / f"r{number}" / "m", float(number))
        sign(root, signer, release=number)
        found.append(root)
    return found[0], found[1]


def mixed(old: Path, new: Path) -> None:
    """Put the first shard of the old release and its folder's signature into the new one."""
    for suffix in ("", ".swtree"):
        shutil.copy(old / f"{SHARDS[0]}{suffix}", new / f"{SHARDS[0]}{suffix}")
    shutil.copy(old / "model.sig", new / f"{SHARDS[0]}.sig")


@pytest.mark.parametrize("keep", [True, False], ids=["folder signed", "folder signature removed"])
@pytest.mark.parametrize("way", ["folder", "index", "shards", "admit"])
def test_releases_cannot_be_mixed(
    two_releases: tuple[Path, Path], signer: FileSigner, keep: bool, way: str
) -> None:
    old, new = two_releases
    mixed(old, new)
    if not keep:
        shutil.copy(new / "model.sig", new / f"{SHARDS[1]}.sig")
        (new / "model.sig").unlink()
    policy = Policy((Rule("*", ("us",)),), {"us": signer.public_key})
    gate = PolicyVerifier(policy)
    use = {
        "folder": lambda: safeweights.open(new, trust=policy),
        "index": lambda: safeweights.open(new / f"{WEIGHTS}.index.json", trust=policy),
        "shards": lambda: [safeweights.numpy.load_file(new / each, trust=gate) for each in SHARDS],
        "admit": lambda: admit(new, policy).require(),
    }[way]
    with pytest.raises(TrustError):
        [bytes(t.view()) for t in opened.values()] if (opened := use()) is not None else None  # type: ignore[attr-defined]


def test_shards_that_were_signed_alone(tmp_path: Path, signer: FileSigner) -> None:
    root = make_sharded(tmp_path / "m", 1.0)
    for shard in SHARDS:
        sign(root / shard, signer)
    gate = PolicyVerifier(Policy((Rule("*", ("us",)),), {"us": signer.public_key}))
    with pytest.raises(PolicyViolationError, match="signed alone"):
        safeweights.numpy.load_file(root / SHARDS[0], trust=gate)


def test_files_signed_alone_are_no_checkpoint(tmp_path: Path, signer: FileSigner) -> None:
    for name in "ab":
        path = tmp_path / f"{name}.safetensors"
        safeweights.numpy.save_file({name: np.zeros(2)}, path)
        sign(path, signer)
        assert safeweights.numpy.load_file(path, trust=signer.public_key)
    with pytest.raises(PolicyViolationError, match="one must cover all"):
        safeweights.open(tmp_path, trust=signer.public_key)


def test_a_folders_signature_outranks_a_files(tmp_path: Path, signer: FileSigner) -> None:
    root = make(tmp_path / "m", a=1)
    sign(root, signer)
    other = make(tmp_path / "other", a=2)
    sign(other / WEIGHTS, signer)
    for name in (WEIGHTS, f"{WEIGHTS}.sig", f"{WEIGHTS}.swtree"):
        shutil.copy(other / name, root / name)
    with pytest.raises(TrustError):
        safeweights.numpy.load_file(root / WEIGHTS, trust=signer.public_key)


@pytest.mark.parametrize("name", [*SHARDS, "config.json", f"{WEIGHTS}.index.json"])
@pytest.mark.parametrize("way", ["folder", "shard", "admit"])
def test_a_deleted_file_is_noticed(tmp_path: Path, signer: FileSigner, way: str, name: str) -> None:
    root = make_sharded(tmp_path / "m", 1.0)
    (root / "config.json").write_text("{}")
    sign(root, signer)
    (root / name).unlink()
    left = next(each for each in SHARDS if each != name)
    policy = Policy((Rule("*", ("us",)),), {"us": signer.public_key})
    use = {
        "folder": lambda: safeweights.open(root, trust=policy),
        "shard": lambda: safeweights.numpy.load_file(root / left, trust=policy),
        "admit": lambda: admit(root, policy).require(),
    }[way]
    with pytest.raises(SafetensorError, match="missing"):
        use()
    optional = Policy((Rule("*", ("us",), optional=(name,)),), {"us": signer.public_key})
    assert "missing-file" not in codes(admit(root, optional))


def test_a_verifier_keeps_to_one_statement(
    two_releases: tuple[Path, Path], signer: FileSigner
) -> None:
    """All files of a model are exchanged between the loads of two shards."""
    old, new = two_releases
    gate = PolicyVerifier(Policy((Rule("*", ("us",)),), {"us": signer.public_key}))
    safeweights.numpy.load_file(new / SHARDS[0], trust=gate)
    shutil.rmtree(new)
    old.rename(new)
    with pytest.raises(PolicyViolationError, match="one must cover all"):
        safeweights.numpy.load_file(new / SHARDS[1], trust=gate)


# --- one memory


LOCKED = 'lock = "lock.json"\n[[rules]]\npattern = "*"\nsigners = ["us"]\n'
USES: dict[str, Callable[[Path, Policy], object]] = {
    "admit": lambda root, policy: admit(root, policy).require(),
    "load": lambda root, policy: safeweights.numpy.load_file(root / SHARDS[0], trust=policy),
    "open": lambda root, policy: safeweights.open(root, trust=policy),
}


@pytest.mark.parametrize("second", USES)
@pytest.mark.parametrize("first", USES)
def test_no_way_back_whoever_saw_the_new_release(
    tmp_path: Path,
    two_releases: tuple[Path, Path],
    rules: Callable[..., Policy],
    first: str,
    second: str,
) -> None:
    policy = rules(LOCKED)
    place = tmp_path / "place"
    old, new = two_releases
    shutil.copytree(new, place)
    USES[first](place, policy)
    USES[second](place, policy)
    shutil.rmtree(place)
    shutil.copytree(old, place)
    assert refusal(lambda: USES[second](place, policy)) == "rollback"


@pytest.mark.parametrize("second", USES)
@pytest.mark.parametrize("first", USES)
def test_first_use_is_remembered_for_all(
    tmp_path: Path, rules: Callable[..., Policy], first: str, second: str
) -> None:
    policy = rules('lock="lock.json"\n[[rules]]\npattern="*"\nlevel="known"\nfirst_use=true\n')
    root = make_sharded(tmp_path / "m", 1.0)
    USES[first](root, policy)
    USES[second](root, policy)
    make_sharded(root, 2.0)
    assert refusal(lambda: USES[second](root, policy)) == "changed-since-first-use"


@pytest.mark.parametrize("second", USES)
@pytest.mark.parametrize("first", USES)
def test_revisions_in_the_cache_of_the_hub_have_one_memory(
    tmp_path: Path,
    two_releases: tuple[Path, Path],
    rules: Callable[..., Policy],
    first: str,
    second: str,
) -> None:
    policy = rules(LOCKED.replace("*", "hub/*"))
    revisions = tmp_path / "hub" / "models--org--m" / "snapshots"
    for number, release in enumerate(two_releases, 1):
        shutil.copytree(release, revisions / f"{number:040}")
    USES[first](revisions / f"{2:040}", policy)
    assert set(LockFile(tmp_path / "lock.json").entries()) == {"hub/models--org--m"}
    assert refusal(lambda: USES[second](revisions / f"{1:040}", policy)) == "rollback"


def test_one_entry_for_all_shards(
    tmp_path: Path,
    two_releases: tuple[Path, Path],
    rules: Callable[..., Policy],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first file of a signed model has the whole statement remembered, in one write."""
    policy = rules(LOCKED)
    written: list[object] = []
    write = LockFile._write

    def counted(self: LockFile, entries: Any) -> None:
        written.append(entries)
        write(self, entries)

    monkeypatch.setattr(LockFile, "_write", counted)
    for _ in range(2):
        safeweights.open(two_releases[1], trust=policy)
    for shard in SHARDS:
        safeweights.numpy.load_file(two_releases[1] / shard, trust=policy)
    assert len(written) == 1
    entry = LockFile(tmp_path / "lock.json").get("r2/m")
    assert entry is not None
    assert set(entry.files) == {*SHARDS, f"{WEIGHTS}.index.json"}


def test_a_bookkeeping_file_cannot_be_loaded_under_a_warrant(tmp_path: Path) -> None:
    root = make(tmp_path / "m")
    hidden = root / ".cache" / "huggingface" / "download"
    hidden.mkdir(parents=True)
    shutil.copy(root / WEIGHTS, hidden / f"{WEIGHTS}.metadata")
    warrant = admit(root, Policy((Rule("*", level="none"),))).require()
    assert refusal(
        lambda: safeweights.numpy.load_file(hidden / f"{WEIGHTS}.metadata", trust=warrant)
    ) == "not-admitted"  # fmt: skip


def test_parts_of_a_known_model(tmp_path: Path, rules: Callable[..., Policy]) -> None:
    """What was admitted as a whole is known to loads of folders inside it, and the reverse."""
    policy = rules('lock="lock.json"\n[[rules]]\npattern="*"\nlevel="known"\nfirst_use=true\n')
    part = make(tmp_path / "pipe" / "vae", a=1)
    assert not codes(admit(tmp_path / "pipe", policy))
    before = (tmp_path / "lock.json").read_bytes()
    safeweights.numpy.load_file(part / WEIGHTS, trust=policy)
    assert (tmp_path / "lock.json").read_bytes() == before
    make(part, a=2)
    assert refusal(
        lambda: safeweights.numpy.load_file(part / WEIGHTS, trust=policy)
    ) == "changed-since-first-use"  # fmt: skip
    (tmp_path / "lock.json").unlink()
    safeweights.numpy.load_file(part / WEIGHTS, trust=policy)
    make(part, a=1)
    assert "changed-since-first-use" in codes(admit(tmp_path / "pipe", policy))


def test_a_file_deleted_since_first_use(tmp_path: Path, rules: Callable[..., Policy]) -> None:
    policy = rules('lock="lock.json"\n[[rules]]\npattern="*"\nlevel="known"\nfirst_use=true\n')
    root = make(tmp_path / "m")
    assert not codes(admit(root, policy))
    (root / "config.json").unlink()
    assert codes(admit(root, policy)) == {"missing-file"}
    assert refusal(
        lambda: safeweights.numpy.load_file(root / WEIGHTS, trust=policy)
    ) == "missing-file"  # fmt: skip


def first_uses(lock: str, roots: list[str], barrier: Any, results: Any) -> None:
    policy = Policy((Rule("*", level="known", first_use=True),), lock=lock)
    for number, root in enumerate(roots):
        barrier.wait()
        results.put((number, admit(root, policy, name=f"m{number}").exit_code))


def test_of_two_first_uses_one_is_accepted(tmp_path: Path) -> None:
    """Two processes see different contents under one name, at the same time."""
    roots = [make(tmp_path / name, a=number) for number, name in enumerate("xy")]
    context = multiprocessing.get_context("spawn")
    barrier, results, rounds = context.Barrier(2), context.Queue(), 20
    processes = [
        context.Process(
            target=first_uses,
            args=(str(tmp_path / "lock.json"), [str(root)] * rounds, barrier, results),
        )
        for root in roots
    ]
    for process in processes:
        process.start()
    found = sorted(results.get(timeout=60) for _ in range(2 * rounds))
    for process in processes:
        process.join()
    assert found == sorted((number, code) for number in range(rounds) for code in (0, 1))


def test_a_thousand_races_for_one_memory(tmp_path: Path) -> None:
    """Threads remember releases in any order; what stays is the newest that was accepted."""
    from safeweights.trust.policies.lockfile import settle
    from safeweights.trust.policies.policy import Evidence, FileFact
    from safeweights.trust.signatures.verifying import SignedBy

    lock = LockFile(tmp_path / "lock.json")
    policy = Policy((Rule("*", ("us",)),))
    key = SignedBy("key", key_hint="a" * 64)
    accepted: list[int] = []

    def use(releases: list[int]) -> None:
        for release in releases:
            facts = {"w": FileFact(f"{release:064x}", 1, signed=True)}
            seen = Evidence("m", facts, "us", key, "valid", release)
            settle(
                policy, seen, lock, present=lambda _: True,
                record=lambda made, number=release: (
                    accepted.append(number) if made.verdict == "allow" else None
                ),
            )  # fmt: skip

    order = np.random.default_rng(3).permutation(1000).tolist()
    threads = [threading.Thread(target=use, args=(order[part::4],)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert accepted == sorted(accepted), "an older release was accepted after a newer one"
    entry = lock.get("m")
    assert entry is not None
    assert entry.release == max(accepted) == 999


def test_a_lock_that_changes_nothing_needs_no_write_access(
    tmp_path: Path, rules: Callable[..., Policy], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = rules('lock="lock.json"\n[[rules]]\npattern="*"\nlevel="known"\nfirst_use=true\n')
    root = make(tmp_path / "m")
    assert not codes(admit(root, policy))
    monkeypatch.setattr("safeweights.trust.policies.lockfile.locked", None)
    assert not codes(admit(root, policy))


# --- pins of a statement, and revocations


def test_another_model_of_the_same_signer(
    tmp_path: Path, signer: FileSigner, rules: Callable[..., Policy]
) -> None:
    wanted, other = make(tmp_path / "wanted", a=1), make(tmp_path / "other", a=2)
    sign(wanted, signer)
    sign(other, signer)
    root = admit(wanted, Policy((Rule("*", ("us",)),), {"us": signer.public_key}))
    assert not codes(root)
    from safeweights.trust import verify

    digest = verify(wanted, signer.public_key).statement.root
    by_name = rules('[[rules]]\npattern="*"\nsigners=["us"]\nmodels=["wanted"]\n')
    by_digest = rules(f'[[rules]]\npattern="*"\nsigners=["us"]\nroot_digests=["{digest}"]\n')
    for policy, code in ((by_name, "wrong-model"), (by_digest, "root-digest")):
        assert not codes(admit(wanted, policy))
        assert safeweights.numpy.load_file(wanted / WEIGHTS, trust=policy)
        assert codes(admit(other, policy)) == {code}
        assert refusal(
            lambda policy=policy: safeweights.numpy.load_file(other / WEIGHTS, trust=policy)
        ) == code  # fmt: skip
    wanted.rename(tmp_path / "kept")
    other.rename(wanted)
    assert codes(admit(wanted, by_digest)) == {"root-digest"}


def test_a_minimum_release(two_releases: tuple[Path, Path], rules: Callable[..., Policy]) -> None:
    policy = rules('[[rules]]\npattern="*"\nsigners=["us"]\nminimum_release = 2\n')
    old, new = two_releases
    assert codes(admit(old, policy)) == {"release-too-low"}
    assert not codes(admit(new, policy))


def test_revocations(tmp_path: Path, signer: FileSigner, pki: Any) -> None:
    root = make(tmp_path / "m")
    sign(root, signer)
    plain = Policy((Rule("*", ("us",)),), {"us": signer.public_key})
    decision = admit(root, plain).decision
    from safeweights.trust import verify

    digest = verify(root, signer.public_key).statement.root
    for revoked in (
        Revocations(keys=frozenset({signer.public_key.hint})),
        Revocations(root_digests=frozenset({digest})),
        Revocations(files=frozenset({decision.files[WEIGHTS]})),
    ):
        policy = dataclasses.replace(plain, revoked=revoked)
        assert codes(admit(root, policy)) == {"revoked"}
        assert refusal(
            lambda policy=policy: safeweights.numpy.load_file(root / WEIGHTS, trust=policy)
        ) == "revoked"  # fmt: skip
    sign(root, pki.leaf.signer, certificates=pki.chain)
    fingerprint = hashlib.sha256(pki.leaf.der).hexdigest()
    policy = Policy(
        (Rule("*", ("ca",)),), {"ca": pki.trust()},
        revoked=Revocations(certificates=frozenset({fingerprint})),
    )  # fmt: skip
    assert codes(admit(root, policy)) == {"revoked"}


@pytest.mark.parametrize("which", ["leaf", "intermediate", "root"])
@pytest.mark.parametrize("changed", [False, True], ids=["as issued", "with another signature"])
def test_a_revoked_certificate_gets_no_new_fingerprint(
    tmp_path: Path, pki: Any, which: str, changed: bool
) -> None:
    """With (r, s), (r, order - s) is a signature of the issuer too, and nobody needs a key to make it."""
    authority = getattr(pki, which)
    issuer = pki.intermediate if which == "leaf" else pki.root
    forms = {form for form in certificates._forms(authority.certificate) if form != authority.der}
    valid = []
    for form in forms:
        other = x509.load_der_x509_certificate(form)
        with contextlib.suppress(InvalidSignature):
            other.verify_directly_issued_by(issuer.certificate)
            valid.append(form)
    assert len(valid) == 1
    root = make(tmp_path / "m")
    chain = [
        valid[0] if changed and each == authority.der else each
        for each in (pki.leaf.der, pki.intermediate.der)
    ]
    sign(root, pki.leaf.signer, certificates=chain)
    revoked = Revocations(certificates=frozenset({hashlib.sha256(authority.der).hexdigest()}))
    policy = Policy((Rule("*", ("ca",)),), {"ca": pki.trust()}, revoked=revoked)
    assert codes(admit(root, policy)) == {"revoked"}
    assert refusal(
        lambda: safeweights.numpy.load_file(root / WEIGHTS, trust=policy)
    ) == "revoked"  # fmt: skip
    assert not codes(admit(root, dataclasses.replace(policy, revoked=Revocations())))


# --- what is read once is what is admitted


def test_what_appears_after_the_listing_is_not_admitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make(tmp_path / "m")
    policy = Policy((Rule("*", level="none"),))
    read = gathering._read

    def late(*args: Any, **options: Any) -> Any:
        (root / "evil.py").write_text("import os")
        return read(*args, **options)

    monkeypatch.setattr(gathering, "_read", late)
    warrant = admit(root, policy).require()
    assert set(warrant.files) == {WEIGHTS, "config.json"}


@pytest.mark.parametrize("size", [1000, 3 << 20], ids=["small", "large"])
def test_code_hidden_between_two_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """A file is code while it is hashed, and harmless when it is examined."""
    root = make(tmp_path / "m")
    evil = root / "notes.txt"
    evil.write_bytes(b"#!/bin/sh\n" + bytes(size))
    hash_file = gathering.hash_file

    def exchanging(path: str, **options: Any) -> Any:
        digest = hash_file(path, **options)
        if path == str(evil):
            evil.write_bytes(b"# harmless" + bytes(size))
        return digest

    monkeypatch.setattr(gathering, "hash_file", exchanging)
    policy = Policy((Rule("*", level="none"),))
    try:
        assert codes(admit(root, policy)) == {"deny-native"}
    except VerificationError as error:
        assert error.reason == "block-mismatch"  # noqa: PT017 - the other way to refuse


def test_a_thousand_exchanges_while_admitting(tmp_path: Path) -> None:
    """A file alternates between code and text: what is admitted is always the text."""
    root = make(tmp_path / "m")
    kinds = [root.parent / "good", root.parent / "bad"]
    kinds[0].write_bytes(b"# harmless")
    kinds[1].write_bytes(b"#!/bin/sh\n")
    place = root / "notes.txt"
    place.write_bytes(b"# harmless")
    digest = hashlib.sha256(b"# harmless").hexdigest()
    policy = Policy((Rule("*", level="none"),))
    stop = threading.Event()
    swaps = 0

    def attack() -> None:
        nonlocal swaps
        while not stop.is_set():
            if swaps % 3:
                shutil.copy(kinds[swaps % 2], root.parent / "next")
                os.replace(root.parent / "next", place)
            else:
                place.write_bytes(kinds[swaps % 2].read_bytes())
            swaps += 1

    attacker = threading.Thread(target=attack)
    attacker.start()
    admitted = refused = 0
    try:
        while swaps < 1000 or not (admitted and refused):
            assert swaps < 200_000, "one of the two outcomes never comes"
            try:
                admission = admit(root, policy)
            except (TrustError, OSError):
                refused += 1  # a file of another length, or cut at that moment
                continue
            if admission.warrant is None:
                assert codes(admission) == {"deny-native"}
                refused += 1
            elif admission.warrant.files["notes.txt"].size:
                assert admission.warrant.files["notes.txt"].sha256 == digest
                admitted += 1
    finally:
        stop.set()
        attacker.join()


def test_each_file_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make(tmp_path / "m")
    opened: list[str] = []
    hash_file = gathering.hash_file

    def counted(path: str, **options: Any) -> Any:
        opened.append(os.path.basename(path))
        return hash_file(path, **options)

    monkeypatch.setattr(gathering, "hash_file", counted)
    monkeypatch.setattr(gathering, "open_regular", None)
    admit(root, Policy((Rule("*", level="none"),))).require()
    assert sorted(opened) == ["config.json", WEIGHTS]


# --- a hostile folder does not break the keeper


def test_a_log_stays_readable_after_a_million_files(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "log")
    many = {f"file-{number:07}": "0" * 64 for number in range(250_000)}
    log.append("admit", {"verdict": "refuse", "files": many, "path": "m\udcff"})
    log.append("admit", {"verdict": "allow", "files": {}})
    assert verify_log(log.path) == 2
    line = json.loads((tmp_path / "log").read_bytes().splitlines()[0])
    assert line["details"]["verdict"] == "refuse"
    assert line["details"]["files"]["left_out"] == 250_000


def test_a_name_that_is_not_utf8_leaves_lock_and_log_readable(tmp_path: Path) -> None:
    lock, log = LockFile(tmp_path / "lock"), AuditLog(tmp_path / "log")
    policy = Policy((Rule("*", level="known", first_use=True),))
    assert not codes(admit(make(tmp_path / "good"), policy, lock=lock, log=log))
    bad = os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff")
    shutil.copytree(tmp_path / "good", bad)
    assert codes(admit(bad, policy, lock=lock, log=log)) == {"name"}
    assert not codes(admit(tmp_path / "good", policy, lock=lock, log=log))
    assert verify_log(log.path) == 3


def test_a_lock_never_grows_beyond_what_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = LockFile(tmp_path / "lock")
    policy = Policy((Rule("*", level="known", first_use=True),))
    root = make(tmp_path / "m")
    assert not codes(admit(root, policy, lock=lock))
    monkeypatch.setattr("safeweights.trust.policies.lockfile.MAX_DOCUMENT", 1000)
    for number in range(20):
        (root / f"{number}.txt").write_text("x")
    assert refusal(lambda: admit(root, policy, name="other", lock=lock)) == "too-many-files"
    assert lock.get("other") is None


def test_the_size_in_a_warrant_is_compared(tmp_path: Path) -> None:
    root = make(tmp_path / "m")
    warrant = admit(root, Policy((Rule("*", level="none"),))).require()
    document = json.loads(warrant.to_json())
    document["files"][WEIGHTS]["size"] += 1
    other = Warrant.from_json(json.dumps(document).encode())
    assert refusal(
        lambda: safeweights.numpy.load_file(root / WEIGHTS, trust=other)
    ) == "size-mismatch"  # fmt: skip


def test_a_huge_sidecar_is_not_read(
    tmp_path: Path, signer: FileSigner, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make(tmp_path / "m")
    sign(root, signer)
    os.truncate(root / f"{WEIGHTS}.swtree", 1 << 31)
    read = os.read
    taken: list[int] = []

    def counted(descriptor: int, count: int) -> bytes:
        data = read(descriptor, count)
        taken.append(len(data))
        return data

    monkeypatch.setattr("safeweights.trust.files.os.read", counted)
    with pytest.raises(TrustError, match="longer than"):
        safeweights.numpy.load_file(root / WEIGHTS, trust=signer.public_key)
    assert sum(taken) < 1 << 20


# --- what may be in a folder


def test_an_allow_list(tmp_path: Path, signer: FileSigner, rules: Callable[..., Policy]) -> None:
    policy = rules('[[rules]]\npattern="*"\nsigners=["us"]\nallow=["*.safetensors", "*.json"]\n')
    root = make(tmp_path / "m")
    (root / "vae").mkdir()
    (root / "vae" / "config.json").write_text("{}")
    sign(root, signer)
    assert not codes(admit(root, policy)), "block trees and the signature are implied"
    (root / "weights.bin.txt").write_text("x")
    sign(root, signer)
    assert codes(admit(root, policy)) == {"not-allowed"}


def test_names_of_signatures_and_sidecars_hide_nothing(tmp_path: Path) -> None:
    import pickle

    policy = Policy((Rule("*", level="none"),))
    root = make(tmp_path / "m")
    for name in ("x.swtree", f"{WEIGHTS}.swtree", "model.sig", "evilmodel.sig", ".DS_Store"):
        (root / name).write_bytes(pickle.dumps(Exception("x")))
        assert codes(admit(root, policy)) == {"deny-pickle"}, name
        (root / name).unlink()


@pytest.mark.parametrize("way", ["pickle", "index"])
def test_the_folders_of_git_hide_nothing(tmp_path: Path, way: str) -> None:
    """The settings of sentence-transformers name folders of the model, an index names files."""
    import pickle

    policy = Policy((Rule("*", level="none"),))
    root = make(tmp_path / "m")
    if way == "pickle":
        hidden = ".git/pytorch_model.bin"
        module = {"idx": 0, "path": ".git", "type": "sentence_transformers.models.Transformer"}
        (root / "modules.json").write_text(json.dumps([module]))
    else:
        hidden = f".git/objects/aa/{'b' * 38}"
        index = json.dumps({"weight_map": {"a": hidden}})
        (root / "pytorch_model.bin.index.json").write_text(index)
    (root / hidden).parent.mkdir(parents=True)
    (root / hidden).write_bytes(pickle.dumps(Exception("x")))
    assert codes(admit(root, policy)) == {"deny-pickle"}


@pytest.mark.parametrize("name", ["pack-" + "0" * 40 + ".so", "pack-" + "0" * 40 + ".pack"])
def test_a_library_among_the_packs_of_git_is_denied(tmp_path: Path, name: str) -> None:
    root = make(tmp_path / "m")
    (root / ".git/objects/pack").mkdir(parents=True)
    (root / ".git/objects/pack" / name).write_bytes(b"\x7fELF\x02\x01\x01" + bytes(60))
    assert codes(admit(root, Policy((Rule("*", level="none"),)))) == {"deny-native"}


def test_a_clone_is_admitted_with_the_signed_files_only(
    tmp_path: Path, signer: FileSigner, rules: Callable[..., Policy]
) -> None:
    if not shutil.which("git"):
        pytest.skip("needs the package git")
    policy = rules('[[rules]]\npattern="*"\nsigners=["us"]\nallow=["*.safetensors", "*.json"]\n')
    root = make(tmp_path / "m")
    sign(root, signer)
    who = ["-c", "user.name=us", "-c", "user.email=us@example.org"]
    for command in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "one"], ["repack", "-qad"],
                    [*who, "commit", "-q", "--allow-empty", "-m", "two"]):  # fmt: skip
        subprocess.run(["git", *command], cwd=root, check=True)
    admission = admit(root, policy)
    assert not codes(admission)
    assert set(admission.require().files) == {WEIGHTS, f"{WEIGHTS}.swtree", "config.json"}
    (root / ".git" / "hooks").mkdir(exist_ok=True)
    (root / ".git" / "hooks" / "post-checkout").write_text("#!/bin/sh\n")
    assert codes(admit(root, policy)) == {"deny-native"}


def test_bookkeeping_files_do_not_count(
    tmp_path: Path, signer: FileSigner, rules: Callable[..., Policy]
) -> None:
    policy = rules('[[rules]]\npattern="*"\nsigners=["us"]\nallow=["*.safetensors", "*.json"]\n')
    root = make(tmp_path / "m")
    sign(root, signer)
    cache = root / ".cache" / "huggingface" / "download"
    cache.mkdir(parents=True)
    (cache / "config.json.metadata").write_text("0000\n")
    for name in (".DS_Store", ".gitattributes", ".cache/huggingface/.gitignore"):
        (root / name).write_text("*")
    assert not codes(admit(root, policy))
    (root / ".cache" / "huggingface" / "modeling.py").write_text("import os")
    assert codes(admit(root, policy)) == {"unsigned-file", "not-allowed", "deny-python"}


def test_pins_say_which_files_lack_one(tmp_path: Path, rules: Callable[..., Policy]) -> None:
    root = make(tmp_path / "m")
    digest = hashlib.sha256((root / WEIGHTS).read_bytes()).hexdigest()
    pin = f'[rules.digests]\n"{WEIGHTS}" = "{digest}"\n'
    policy = rules(f'[[rules]]\npattern="m"\nlevel="pinned"\n{pin}')
    admission = admit(root, policy)
    assert codes(admission) == {"not-pinned", "level"}
    assert admission.decision.reasons[0].file == "config.json"
    (root / "config.json").unlink()
    assert not codes(admit(root, policy))
    assert safeweights.numpy.load_file(root / WEIGHTS, trust=policy)
    (root / WEIGHTS).rename(root / "other.safetensors")
    assert "missing-file" in codes(admit(root, policy))


# --- signatures where they are


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("m/model.oms.sig", ""),
        ("m.sig", ""),
        ("m.oms.sig", ""),
        ("sigs/release.json", 'signature = "sigs/release.json"\nbase = "m"'),
        ("sigs/m.oms.sig", 'signature = "sigs/{subject}.oms.sig"'),
    ],
)
@pytest.mark.parametrize("way", ["admit", "folder", "file"])
def test_a_signature_elsewhere(
    tmp_path: Path,
    signer: FileSigner,
    rules: Callable[..., Policy],
    name: str,
    setting: str,
    way: str,
) -> None:
    policy = rules(f'[[rules]]\npattern="*"\nsigners=["us"]\n{setting}\n')
    root = make_sharded(tmp_path / "m", 1.0)
    sign(root, signer)
    (tmp_path / "sigs").mkdir()
    (root / "model.sig").rename(tmp_path / name)
    use = {
        "admit": lambda: admit(root, policy).require(),
        "folder": lambda: safeweights.open(root, trust=policy),
        "file": lambda: safeweights.numpy.load_file(root / SHARDS[0], trust=policy),
    }[way]
    assert use()
    (root / SHARDS[0]).write_bytes((root / SHARDS[1]).read_bytes())
    with pytest.raises(TrustError):
        use()


@pytest.mark.parametrize("inside", ["", "vae"], ids=["top", "nested"])
def test_a_signature_that_the_caller_names(tmp_path: Path, signer: FileSigner, inside: str) -> None:
    """The signature is elsewhere, and names of files are relative to the model's folder."""
    root = make(tmp_path / "m")
    make(root / "vae", b=1)
    made = str(tmp_path / "elsewhere.json")
    sign(root, signer, signature=made)
    policy = Policy((Rule("*", ("us",)),), {"us": signer.public_key})
    assert not codes(admit(root, policy, signature=made))
    gate = PolicyVerifier(policy, signature=made, base=str(root))
    assert safeweights.numpy.load_file(root / inside / WEIGHTS, trust=gate)
    shutil.copy(root / "vae" / WEIGHTS, root / WEIGHTS)
    gate = PolicyVerifier(policy, signature=made, base=str(root))
    with pytest.raises(TrustError):
        safeweights.numpy.load_file(root / WEIGHTS, trust=gate)


def test_a_base_above_the_model(
    tmp_path: Path, signer: FileSigner, rules: Callable[..., Policy]
) -> None:
    """One signature covers a folder of models; each can be admitted and loaded alone."""
    for name in "ab":
        make(tmp_path / "all" / name, a=1)
    sign(tmp_path / "all", signer, signature=str(tmp_path / "all.json"))
    policy = rules('[[rules]]\npattern="all"\nsigners=["us"]\nsignature="all.json"\nbase="all"\n')
    for name in "ab":
        assert not codes(admit(tmp_path / "all" / name, policy))
        assert safeweights.numpy.load_file(tmp_path / "all" / name / WEIGHTS, trust=policy)
    shutil.copy(tmp_path / "all/a/config.json", tmp_path / "all/a/extra.json")
    assert codes(admit(tmp_path / "all" / "a", policy)) == {"unsigned-file"}
