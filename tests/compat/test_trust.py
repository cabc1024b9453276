"""`install(trust=...)`: whatever library loads a model, the policy decides about it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import safeweights
import safeweights.compat
import safeweights.numpy
from safeweights.errors import UnsupportedError
from safeweights.trust import (
    DocumentError,
    PolicyViolationError,
    TrustError,
    VerificationError,
    generate_key,
    load_private_key,
    sign,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SRC = Path(safeweights.__file__).parent.parent
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "key"
    generate_key(path)
    return path


@pytest.fixture
def policy(tmp_path: Path, pair: Path) -> Path:
    """A policy by which everything must be signed, and models `good`, `tampered` and `unsigned`."""
    for name in ("good", "tampered", "unsigned"):
        (tmp_path / name).mkdir()
        safeweights.numpy.save_file({"a": np.arange(4.0)}, tmp_path / name / WEIGHTS)
        if name != "unsigned":
            sign(tmp_path / name, load_private_key(pair))
    path = tmp_path / "tampered" / WEIGHTS
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    found = tmp_path / "policy.toml"
    found.write_text(
        f"[signers.us]\npublic_key = '{pair}.pub'\n[[rules]]\npattern = '*'\nsigners = ['us']\n"
    )
    return found


@pytest.fixture
def installed(policy: Path) -> Iterator[Path]:
    safeweights.compat.install(trust=policy)
    yield policy.parent
    safeweights.compat.uninstall()


def by_numpy(path: Path) -> Any:
    import safetensors.numpy

    return safetensors.numpy.load_file(path)


def by_torch(path: Path) -> Any:
    import safetensors.torch

    return safetensors.torch.load_file(path)


def by_handle(path: Path) -> Any:
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def by_module(path: Path) -> Any:
    import safetensors.torch
    import torch

    module = torch.nn.Module()
    module.a = torch.nn.Parameter(torch.zeros(4, dtype=torch.float64))
    safetensors.torch.load_model(module, path)
    return module.state_dict()


def by_open(path: Path) -> Any:
    return {name: bytes(tensor.view()) for name, tensor in safeweights.open(path).items()}


LOADERS = [by_numpy, by_torch, by_handle, by_module, by_open]


@pytest.mark.parametrize("load", LOADERS)
def test_every_way_to_load(installed: Path, load: Callable[[Path], Any]) -> None:
    assert set(load(installed / "good" / WEIGHTS)) == {"a"}
    with pytest.raises(VerificationError):
        load(installed / "tampered" / WEIGHTS)
    with pytest.raises(PolicyViolationError) as caught:
        load(installed / "unsigned" / WEIGHTS)
    assert caught.value.reason == "signature-missing"


@pytest.mark.parametrize(
    "load",
    [
        lambda data: safeweights.numpy.load(data),
        lambda data: safeweights.torch.load(data),
        lambda data: safeweights.deserialize(data),
        lambda data: safeweights.open(data),
    ],
)
def test_bytes_are_refused(installed: Path, load: Callable[[bytes], Any]) -> None:
    data = (installed / "good" / WEIGHTS).read_bytes()
    with pytest.raises(UnsupportedError, match="path"):
        load(data)


def test_an_open_file_is_refused(installed: Path) -> None:
    with open(installed / "good" / WEIGHTS, "rb") as file, pytest.raises(UnsupportedError):
        safeweights.safe_open(file, "np")


def test_the_policy_ends_with_uninstall(policy: Path) -> None:
    safeweights.compat.install(trust=policy)
    safeweights.compat.uninstall()
    assert safeweights.numpy.load_file(policy.parent / "unsigned" / WEIGHTS)
    assert safeweights.numpy.load((policy.parent / "unsigned" / WEIGHTS).read_bytes())


def test_what_a_caller_trusts_comes_before_the_default(installed: Path, tmp_path: Path) -> None:
    generate_key(tmp_path / "other")
    with pytest.raises(TrustError):
        safeweights.numpy.load_file(installed / "good" / WEIGHTS, trust=tmp_path / "other.pub")


def test_a_policy_that_cannot_be_read_installs_nothing(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text("mod = 'off'")
    with pytest.raises(DocumentError):
        safeweights.compat.install(trust=tmp_path / "policy.toml")
    with pytest.raises(FileNotFoundError):
        safeweights.compat.install(trust=tmp_path / "missing.toml")
    assert not safeweights.compat.installed()


def test_a_policy_that_is_off(policy: Path) -> None:
    policy.write_text("mode = 'off'")
    safeweights.compat.install(trust=policy)
    try:
        assert by_numpy(policy.parent / "unsigned" / WEIGHTS)
        assert safeweights.numpy.load((policy.parent / "unsigned" / WEIGHTS).read_bytes())
    finally:
        safeweights.compat.uninstall()


PROGRAM = """
import sys
import safetensors.numpy
print(sorted(safetensors.numpy.load_file(sys.argv[1])))
"""


@pytest.mark.parametrize(
    ("model", "setting", "status", "said"),
    [
        ("good", "policy.toml", 0, "['a']"),
        ("tampered", "policy.toml", 1, "VerificationError"),
        ("unsigned", "policy.toml", 1, "PolicyViolationError"),
        ("unsigned", "", 0, "['a']"),
        ("good", "missing.toml", 3, "missing.toml"),
    ],
)
def test_a_program_that_was_not_changed(
    policy: Path, model: str, setting: str, status: int, said: str
) -> None:
    (policy.parent / "program.py").write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, "-m", "safeweights.compat", "program.py", f"{model}/{WEIGHTS}"],
        env=os.environ | {"PYTHONPATH": str(SRC), "SAFEWEIGHTS_POLICY": setting},
        cwd=policy.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, said in done.stdout + done.stderr) == (status, True), done.stderr


CHILD = """
import subprocess, sys
import safeweights.compat, safeweights.trust
{install}
child = "import sys, safetensors.numpy; print(sorted(safetensors.numpy.load_file(sys.argv[1])))"
done = subprocess.run([sys.executable, "-c", child, sys.argv[1]], cwd=sys.argv[2])
sys.exit(done.returncode)
"""


@pytest.mark.parametrize(
    ("install", "good", "unsigned"),
    [
        ("safeweights.compat.install()", "['a']", "PolicyViolationError"),
        ("safeweights.compat.install(trust='policy.toml')", "['a']", "PolicyViolationError"),
        # Installed before without one.
        ("del __import__('os').environ['SAFEWEIGHTS_POLICY']; safeweights.compat.install(); "
         "safeweights.compat.install(trust='policy.toml')", "['a']", "PolicyViolationError"),
        ("safeweights.compat.install(trust=safeweights.trust.load_policy('policy.toml'))",
         "could not hand on", "could not hand on"),
    ],
)  # fmt: skip
def test_child_processes_have_the_policy_of_their_parent(
    policy: Path, install: str, good: str, unsigned: str
) -> None:
    """Also one started in a folder that has a lenient policy of the same name."""
    elsewhere = policy.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "policy.toml").write_text("root = '/'\n[[rules]]\npattern = '*'\nlevel = 'none'\n")
    (policy.parent / "program.py").write_text(CHILD.format(install=install))
    for model, said in (("good", good), ("unsigned", unsigned)):
        path = str(policy.parent / model / WEIGHTS)
        done = subprocess.run(
            [sys.executable, "program.py", path, str(elsewhere)],
            env=os.environ | {"PYTHONPATH": str(SRC), "SAFEWEIGHTS_POLICY": "policy.toml"},
            cwd=policy.parent, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert said in done.stdout + done.stderr
        assert done.returncode == (0 if said == "['a']" else 1)
