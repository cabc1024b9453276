"""No key is shown by what prints errors with the values of variables."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from encrypted_files import QUICK, public

import safeweights
import safeweights.numpy
from safeweights import trust
from safeweights.storage import appending
from safeweights.trust import Passphrase, generate_identity, write_identity
from safeweights.trust.access.header import encode64
from safeweights.trust.access.identities import as_identities, parse_identities
from safeweights.trust.access.keyring import as_keyring

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PASSPHRASE = "open sesame"
PACKAGE = f"{Path(safeweights.__file__).parent}{os.sep}"
"""Where its modules are. A part of the path would not do: the clone may have the package's name, too."""


def shown(error: BaseException) -> Iterator[tuple[str, str]]:
    """What a reporter prints of an error: the variables of this package's frames, and their attributes.

    cgitb evaluates ``self.name`` where a line has it; others print all attributes.
    """
    at = error.__traceback__
    while at is not None:
        frame = at.tb_frame
        if frame.f_code.co_filename.startswith(PACKAGE):
            for name, value in frame.f_locals.items():
                where = f"{frame.f_code.co_name}:{name}"
                yield where, repr(value)
                for attribute, inner in getattr(value, "__dict__", {}).items():
                    yield f"{where}.{attribute}", repr(inner)
        at = at.tb_next
    for linked in (error.__cause__, error.__context__):
        if linked is not None:
            yield from shown(linked)


class Watch:
    """Everything random that is made, less what stands in files that others see."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.made: list[bytes] = []

    def leaks(self, error: BaseException) -> list[str]:
        """Variables that show a key or the passphrase."""
        written = b"".join(
            path.read_bytes() for path in self._folder.rglob("*.age") if path.is_file()
        )
        secret = [
            repr(each)[2:-1]
            for each in self.made
            if len(each) in {16, 32}
            and each not in written
            and encode64(each).encode() not in written
        ]
        return [
            where
            for where, text in shown(error)
            if "SECRET-KEY-" in text.upper()
            or PASSPHRASE in text
            or any(map(text.__contains__, secret))
        ]


@pytest.fixture
def watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watch:
    found, real = Watch(tmp_path), os.urandom

    def urandom(size: int) -> bytes:
        found.made.append(real(size))
        return found.made[-1]

    monkeypatch.setattr(os, "urandom", urandom)
    return found


@pytest.fixture
def model(tmp_path: Path) -> Path:
    safeweights.numpy.save_file({"a": np.arange(5000.0)}, tmp_path / "m", max_shard_size=10**6)
    return tmp_path / "m"


def test_what_is_watched_is_found(watch: Watch) -> None:
    """The test below can fail."""

    def leaking() -> None:
        identity = generate_identity()
        raise safeweights.SafetensorError(f"{type(identity)}")

    key = os.urandom(16)
    with pytest.raises(safeweights.SafetensorError) as caught:
        leaking()
    assert watch.leaks(caught.value) == []
    code = compile("def leak(key):\n    raise ValueError", f"{PACKAGE}x.py", "exec")
    names: dict[str, Any] = {}
    exec(code, names)  # a function whose file seems to be one of the package
    for value in (key, {"a": key}, PASSPHRASE, as_keyring, Passphrase(PASSPHRASE)):
        with pytest.raises(ValueError) as leaked:
            names["leak"](value)
        expected = [] if callable(value) or isinstance(value, Passphrase) else ["leak:key"]
        assert watch.leaks(leaked.value) == expected


def test_refusals_show_nothing_secret(
    tmp_path: Path, model: Path, ann: Path, bob: Path, watch: Watch
) -> None:
    write_identity(tmp_path / "pq", generate_identity(post_quantum=True))
    path = Path(safeweights.encrypt(model, public(ann)).path)
    hybrid = safeweights.encrypt(model, public(tmp_path / "pq"), tmp_path / "pq.age").path
    secret = Passphrase(PASSPHRASE, work_factor=QUICK)
    locked = safeweights.encrypt(model, secret, tmp_path / "locked.age").path
    text = ann.read_text().split()[-1]
    (tmp_path / "damaged").write_text(f"{text[:-1]}\n")
    (tmp_path / "two").write_text(f"{text}\nnonsense\n")
    changed = Path(safeweights.encrypt(model, public(ann), tmp_path / "changed").path)
    for file in changed.glob("*.safetensors.age"):
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    ways: dict[str, Callable[[], object]] = {
        "damaged identity": lambda: as_identities(tmp_path / "damaged"),
        "second line": lambda: as_identities(tmp_path / "two"),
        "bytes": lambda: parse_identities(text.encode()[:-1]),
        "another model": lambda: safeweights.open(hybrid, identity=ann),
        "no passphrase": lambda: safeweights.open(path, identity=Passphrase(PASSPHRASE)),
        "wrong passphrase": lambda: safeweights.open(
            locked, identity=Passphrase(f"not {PASSPHRASE}")
        ),
        "asked for": lambda: safeweights.open(path, identity=Passphrase(lambda: PASSPHRASE)),
        "wrong file key": lambda: safeweights.open(path, identity=lambda _: watch.made[0][:16]),
        "changed": lambda: safeweights.numpy.load_file(changed, identity=ann),
        "no such recipient": lambda: trust.rekey(path, ann, remove=public(bob)),
        "mixed": lambda: trust.rekey(path, ann, add=public(tmp_path / "pq")),
        "file exists": lambda: trust.encrypt(model, public(ann)),
        "decrypted file exists": lambda: trust.decrypt(path, ann, model),
    }
    for name, way in ways.items():
        with pytest.raises((safeweights.SafetensorError, OSError)) as caught:
            way()
        assert watch.leaks(caught.value) == [], name


def test_errors_of_the_system_show_nothing_secret(
    tmp_path: Path, model: Path, ann: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_identity(tmp_path / "pq", generate_identity(post_quantum=True))
    path = Path(safeweights.encrypt(model, public(ann)).path)
    secret = Passphrase(PASSPHRASE, work_factor=QUICK)

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(appending, "_write_some", full_disk)
    ways: dict[str, Callable[[], object]] = {
        "encrypt": lambda: trust.encrypt(model, public(ann), tmp_path / "x", durable=False),
        "hybrid": lambda: trust.encrypt(
            model, public(tmp_path / "pq"), tmp_path / "x", durable=False
        ),
        "passphrase": lambda: trust.encrypt(model, secret, tmp_path / "x", durable=False),
        "rekey": lambda: trust.rekey(path, ann, durable=False),
        "decrypt": lambda: trust.decrypt(path, ann, tmp_path / "y"),
    }
    for name, way in ways.items():
        with pytest.raises(OSError, match="No space left") as caught:
            way()
        assert watch.leaks(caught.value) == [], name
