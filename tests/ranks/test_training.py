"""A small transformers model is trained, saved, killed and trained on: FSDP 2, tensor parallelism."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("accelerate", reason="needs requirements/ranks.txt: `make test-ranks`")
pytest.importorskip("transformers", reason="needs requirements/ranks.txt: `make test-ranks`")
sys.path.insert(0, str(Path(__file__).parent))

import trainer
import training
from launching import END, run_fine, run_ranks

import safeweights

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch and transformers

PAGE = Path(__file__).parents[2] / "docs" / "training.md"


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks had saved when they were killed."""
    folder = tmp_path_factory.mktemp("training")
    results = run_ranks(training.train_and_die, 2, 2, str(folder))
    assert [result.error for result in results] == ["no answer", "no answer"]
    return folder


def test_the_weights_are_those_that_torch_saves(killed: Path) -> None:
    ours, theirs = safeweights.open(killed / "ours"), safeweights.open(killed / "torch")
    tied = {"model.lm_head.weight", "model.model.embed_tokens.weight"}
    assert len(tied & set(ours)) == 1
    assert set(theirs) - set(ours) <= tied
    for name in ours:
        assert bytes(ours[name].view()) == bytes(theirs[name].view()), name


def test_as_many_ranks_go_on_as_if_nothing_had_happened(killed: Path) -> None:
    """Bit for bit."""
    whole = run_fine(training.train, 2, 2, None, "")
    assert run_fine(training.train, 2, 2, str(killed), "ours") == whole


@pytest.mark.parametrize("ranks", [1, 4])
def test_other_numbers_of_ranks_go_on_as_with_torch(killed: Path, ranks: int) -> None:
    """Bit for bit what torch's own checkpoint gives; four ranks are two by two, tensor-parallel."""
    theirs = run_fine(training.train, ranks, ranks, str(killed), "torch")
    assert run_fine(training.train, ranks, ranks, str(killed), "ours") == theirs


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the Trainer saved on two ranks after 4 steps, by torch's storage and by ours."""
    folder = tmp_path_factory.mktemp("trainer")
    losses = [
        run_fine(trainer.train, 2, 2, str(folder / which), 4, which == "ours")
        for which in ("ours", "torch")
    ]
    assert losses[0] == losses[1]
    return folder


def test_the_trainer_saves_safetensors(trained: Path) -> None:
    ours, theirs = (trained / which / "checkpoint-4" for which in ("ours", "torch"))
    assert list(ours.rglob("*.distcp")) == []
    for name in ("pytorch_model_fsdp_0", "optimizer_0"):
        stored, expected = safeweights.open(ours / name), safeweights.open(theirs / name)
        assert len(stored) > 10
        for key in stored:
            assert bytes(stored[key].view()) == bytes(expected[key].view()), key


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_trainer_goes_on_as_with_torch(trained: Path, tmp_path: Path, ranks: int) -> None:
    """Bit for bit, on any number of ranks."""
    losses = []
    for which in ("ours", "torch"):
        shutil.copytree(trained / which, tmp_path / which)
        arguments = ranks, str(tmp_path / which), 6, which == "ours"
        losses.append(run_fine(trainer.train, ranks, *arguments))
    assert losses[0] == losses[1]
    assert len(losses[0][0]) == 6


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """The loop of the page."""
    block = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert block
    (tmp_path / "train.py").write_text(block[1] + END)
    return tmp_path


def test_the_loop_of_the_page_runs_on_two_nodes(script: Path) -> None:
    """Two agents of torchrun with a rank each, which meet on the loopback interface."""
    first = two_nodes(script, "10")
    assert [*first] == [str(step) for step in range(1, 11)]
    again = two_nodes(script, "12")
    assert [*again] == ["11", "12"]
    assert (script / "checkpoint" / "model.values.json").exists()


@pytest.fixture
def networks() -> Iterator[list[str]]:
    """Two network namespaces, with a wire between them: 10.93.1.1 and 10.93.1.2."""
    names = [f"safeweights-{os.getpid()}-{number}" for number in (1, 2)]
    if (
        not shutil.which("ip")
        or subprocess.run(["ip", "netns", "add", names[0]], check=False).returncode
    ):
        pytest.skip("network namespaces need root and the package iproute2")
    wires = [f"sw{os.getpid() % 10**8}{end}" for end in "ab"]
    try:
        _ip("netns", "add", names[1])
        _ip("link", "add", wires[0], "type", "veth", "peer", "name", wires[1])
        for number, (name, wire) in enumerate(zip(names, wires, strict=True), 1):
            _ip("link", "set", wire, "netns", name, "name", "wire")
            _ip("-n", name, "addr", "add", f"10.93.1.{number}/24", "dev", "wire")
            for each in ("lo", "wire"):
                _ip("-n", name, "link", "set", each, "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def test_nodes_of_two_networks_save_together(script: Path, networks: list[str]) -> None:
    """Each has interfaces of its own, as two machines have; the folder is shared."""
    assert len(two_nodes(script, "5", networks)) == 5
    saved = safeweights.open(script / "checkpoint")
    assert "model.model.embed_tokens.weight" in saved or "model.lm_head.weight" in saved


def two_nodes(folder: Path, steps: str, networks: list[str] | None = None) -> dict[str, str]:
    """What the script prints: step -> loss.

    Args:
        folder: Where it is.
        steps: For it.
        networks: The network namespace of each node; None for this one.
    """
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    address = "10.93.1.1" if networks else "127.0.0.1"
    command = [
        sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nnodes=2",
        "--nproc-per-node=1", f"--master-addr={address}", f"--master-port={port}",
    ]  # fmt: skip
    source = str(Path(safeweights.__file__).parents[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": source}
    if networks:
        environment["GLOO_SOCKET_IFNAME"] = "wire"
    nodes = []
    for rank in range(2):
        inside = ["ip", "netns", "exec", networks[rank]] if networks else []
        # Without its address, torchrun asks for the name of the host, which takes 10 s without a network.
        own = [f"--local-addr=10.93.1.{rank + 1}"] if networks else []
        nodes.append(
            subprocess.Popen(
                [*inside, *command, *own, f"--node-rank={rank}", "train.py", "checkpoint", steps],
                cwd=folder, env=environment, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
        )  # fmt: skip
    outputs = [node.communicate(timeout=300) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs
    return dict(line.split() for line in outputs[0][0].splitlines())
