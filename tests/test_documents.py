"""Every code block of the README and of docs/ runs, or a reason stands here why it does not run here."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("cryptography")  # signatures

from click.testing import CliRunner  # noqa: E402

import safeweights.torch  # noqa: E402
from safeweights import trust  # noqa: E402
from safeweights.cli import passphrases  # noqa: E402
from safeweights.cli.app import cli  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]

ELSEWHERE = {
    "NamedSharding": "needs JAX: tests/frameworks/test_jax_sharded.py runs the page",
    "dist.init_process_group": "needs several ranks: tests/ranks runs it",
    "import transformers": "needs transformers: tests/clients/test_transformers.py runs it",
    "import pkcs11": "needs a hardware module: tests/trust/test_pkcs11.py plays one",
    "--public-key hsm.pub": "needs a hardware module: tests/trust/test_pkcs11.py plays one",
    "--public-key kms.pub": "needs a cloud's key management service",
    "aws kms": "needs a cloud's key management service",
    "--keyless": "needs an identity at Sigstore: tests/trust/test_keyless.py plays it",
    "--issuer": "needs a model signed at Sigstore: tests/trust/test_keyless.py plays it",
    "--certificate": "needs an authority: tests/trust/test_certificates.py and test_timestamps.py play one",
    r"view +model/ *($|#|--policy)": "is a server that runs until Ctrl-C",
    "pip install": "needs the network",
    "s3://bucket": "needs a bucket: tests/remote/test_everywhere.py has one",
    r"dcp\.": "needs ranks: tests/ranks runs the loop of docs/training.md, and saves and loads",
    "checkpoint/ weights.safetensors": "needs what ranks have saved: tests/ranks",
    "pytorch_model_fsdp_0": "needs what ranks have saved: tests/ranks/test_training.py",
    "^make ": "is a target of the Makefile, which CI runs by itself",
    "benchmarks/": "takes minutes: make bench",
    "age1...": "names keys of other people: tests/trust/test_encryption.py makes some",
    "model.age": "needs an encrypted model: tests/trust/test_encryption.py makes one",
    "keys/me --age": "needs the extra of encryption: tests/trust/test_encryption.py",
    "--key releases": "needs an encrypted model: tests/trust/test_sealed.py signs one",
    "127.0.0.1:8006": "needs an agent in a confidential container",
    "kernel/config/tsm": "needs a TEE: tests/trust/test_access.py plays one",
    "CallableRecipient": "needs a key service: tests/trust/test_access.py plays one",
    "sign --check": "needs signed models: tests/cli/test_sign_check.py makes some",
    "--log audit.jsonl": "needs a log: tests/trust/test_admission.py writes one",
}
"""What a block or a command contains (a regular expression) -> why it does not run here."""

BY_OTHERS = {
    "pycon": "make test runs it as a doctest",
    "toml": "tests/trust/test_policy_page.py runs it",
    "ini": "tests/cli/test_diff.py runs it",
    "bash": "is for a cluster: tests/batch/test_ray.py has one",
    "py": "tests/test_tutorials.py runs it",
    "console": "tests/test_tutorials.py runs it",
    "yaml": "is for GitHub or Kubernetes, whose syntax it has",
    "json": "is for a client of the tool server",
}
"""Language of a block -> who runs it."""

STATUS = {
    "check model/ download.bin": 1,  # the download runs code
    "diff": 1,  # the files differ
    "admit models/m": 1,  # it is not signed
}
"""Beginning of a command -> its exit status, if not 0."""

PROGRAM = "safeweights"
PROGRAMS = {"safeweights", "pip", "make", "aws", "cat", "curl", "git", "python", "ssh"}
"""What the first line of an indented block begins with, if it is not output that a page shows."""

FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^    \S.*\n(?:^ *\n(?=    ))?)+", re.MULTILINE)


class Block(NamedTuple):
    """A block of code: its place, its language, its text."""

    place: str
    language: str
    text: str


def blocks(page: str) -> Iterator[Block]:
    text = (ROOT / page).read_text()

    def place(start: int) -> str:
        return f"{page}:{text.count(chr(10), 0, start) + 1}"

    for match in FENCED.finditer(text):
        yield Block(place(match.start()), match[1], match[2])
    text = FENCED.sub(lambda match: re.sub(r"[^\n]", "", match[0]), text)
    for match in INDENTED.finditer(text):
        code = textwrap.dedent(match[0])
        yield Block(
            place(match.start()), "shell" if code.split()[0] in PROGRAMS else "output", code
        )


BLOCKS = [block for page in PAGES for block in blocks(page)]
PYTHON = [block for block in BLOCKS if block.language == "python"]
SHELL = [page for page in PAGES if any(b.language == "shell" for b in blocks(page))]


def elsewhere(text: str) -> str | None:
    found = (reason for part, reason in ELSEWHERE.items() if re.search(part, text, re.MULTILINE))
    return next(found, None)


POLICY = """\
[signers.us]
public_key = '{key}.pub'
[[rules]]
pattern = 'model'
signers = ['us']
"""


class Dangerous:
    def __reduce__(self) -> Any:
        return os.system, ("echo",)


def quantised_model(folder: str) -> None:
    """A model of FP8 with a scale for each block."""
    Path(folder).mkdir()
    state = {
        "model.layers.0.weight": torch.ones(256, 128).to(torch.float8_e4m3fn),
        "model.layers.0.weight_scale_inv": torch.ones(2, 1),
        "model.norm.weight": torch.ones(2),
    }
    safeweights.torch.save_file(state, f"{folder}/model.safetensors")
    settings = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (Path(folder) / "config.json").write_text(json.dumps({"quantization_config": settings}))


def distributed_folders() -> None:
    """The folders of docs/distributed.md: two ranks each."""
    sys.path.insert(0, str(ROOT / "tests" / "conversion" / "distributed"))
    import folders
    import rank_files
    import zero_folders
    from torch.distributed.tensor import Shard

    whole = torch.arange(35.0).reshape(7, 5)
    made = folders.DCP().add("model.weight", whole, folders.rows(whole, 2))
    made.add("optimizer.exp_avg", whole, folders.rows(whole, 2)).value("step", 3).write(
        Path("ckpt")
    )
    rank_files.save_ranks(
        Path("fsdp"), (2,), lambda m: {"w": rank_files.divided(whole, m, Shard(0))}
    )
    zero_folders.write_zero(Path("zero/global_step10"), zero_folders.some_groups(), stage=3)
    Path("zero/latest").write_text("global_step10")


@pytest.fixture
def sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with every file that the pages name, which is also the home."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    names = {"embedding": (2000, 2), "norm": (2,), "norm.weight": (2,), "wte.weight": (4, 8),
             "lm_head.weight": (32_000, 1), "module.a": (2,)}  # fmt: skip
    state = {name: torch.ones(shape) for name, shape in names.items()}
    for folder in ("model", "folder", "pytorch_folder", "a", "b", ".keys"):
        Path(folder).mkdir(parents=True)
    for path in ("model", "model/model", "a", "old", "a/model"):
        safeweights.torch.save_file(state, f"{path}.safetensors")
    for path in ("b", "new", "b/model"):
        safeweights.torch.save_file({**state, "norm": torch.zeros(2)}, f"{path}.safetensors")
    named = {f"model.language_model.{name}": value for name, value in state.items()}
    safeweights.torch.save_file(
        {**named, "model.norm.weight": torch.ones(2), "lm_head.weight": torch.ones(20, 2)},
        "folder/model.safetensors",
    )
    quantised_model("quantised")
    distributed_folders()
    module = "lora_unet_input_blocks_4_1_proj_in"
    lora = {f"{module}.lora_{part}.weight": torch.ones(2, 2) for part in ("down", "up")}
    safeweights.torch.save_file({**lora, f"{module}.alpha": torch.tensor(1.0)}, "lora.safetensors")
    torch.save(state, "pytorch_model.bin")
    torch.save(state, "pytorch_folder/pytorch_model.bin")
    torch.save({"x": Dangerous()}, "download.bin")
    return tmp_path


@pytest.fixture
def policy(sandbox: Path) -> None:
    """A signed model, and a policy that trusts its signer."""
    trust.generate_key("models", password="passphrase")
    trust.sign("model", trust.load_private_key("models", "passphrase"), model_id="org/name")
    (sandbox / "policy.toml").write_text(POLICY.format(key="models"))


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.place)
@pytest.mark.usefixtures("policy")
def test_python(block: Block) -> None:
    if (reason := elsewhere(block.text)) is not None:
        pytest.skip(reason)
    text = block.text
    if not torch.cuda.is_available():
        text = re.sub(r'"cuda(:\d)?"', '"cpu"', text)
    given = {"tensors": {"a": torch.ones(4)}, "safe_open": safeweights.safe_open}
    exec(compile(text, block.place, "exec"), given)


def commands(page: str) -> Iterator[tuple[str, str]]:
    for block in blocks(page):
        if block.language == "shell":
            for line in block.text.replace("\\\n", " ").splitlines():
                if line.strip():
                    yield block.place, line if PROGRAM in block.text else block.text


@pytest.mark.parametrize("page", SHELL)
def test_commands(page: str, sandbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands of a page, one after another in one folder."""
    monkeypatch.setattr(passphrases, "ask_for", lambda *_, **__: "passphrase")
    if page == "docs/policy.md":
        shutil.copytree(sandbox / "model", sandbox / "models" / "m")
        trust.generate_key(sandbox / "team")
    else:
        (sandbox / "policy.toml").write_text(POLICY.format(key="me"))  # which the README makes
    run = 0
    for place, line in commands(page):
        if (reason := elsewhere(line)) is not None:
            print(f"{place}: {line.split('#')[0].strip()}: {reason}")
            continue
        program, *words = (os.path.expanduser(word) for word in shlex.split(line, comments=True))
        assert program == "safeweights", (
            f"{place}: add a reason to ELSEWHERE, or a way to run {line}"
        )
        if words[0] == "convert" and "fsdp/rank_0.pt" not in words:  # never replaces anything
            shutil.rmtree(words[2], ignore_errors=True)
            Path(words[2]).unlink(missing_ok=True)
        if ">" in words:
            words = words[: words.index(">")]
        done = CliRunner().invoke(cli, words)
        shown = " ".join(words)
        wanted = next((status for start, status in STATUS.items() if shown.startswith(start)), 0)
        assert done.exit_code == wanted, f"{place}: {line}\n{done.output}"
        run += 1
    if not run:
        pytest.skip("see above: every command of this page runs elsewhere")


def test_every_block_is_of_a_language_that_somebody_runs() -> None:
    unknown = {
        b.place: b.language
        for b in BLOCKS
        if b.language not in {"python", "shell", "output", *BY_OTHERS}
    }
    assert unknown == {}
    assert len(PYTHON) >= 8
    assert sum(1 for page in SHELL for _ in commands(page)) >= 30


def test_no_reason_is_left_over() -> None:
    text = "\n".join(block.text for block in BLOCKS)
    assert [part for part in ELSEWHERE if not re.search(part, text, re.MULTILINE)] == []
