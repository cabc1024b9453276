"""Pictures for the documentation: `show` at 80 columns, and the page of `view`, light, dark and narrow.

``make screenshots`` runs it. Needs Debian's chromium, Playwright.
"""

from __future__ import annotations

import io
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from playwright.sync_api import sync_playwright
from rich.console import Console
from rich.text import Text

import safeweights.numpy

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
PROGRAM = [sys.executable, "-m", "safeweights"]
WIDTH = 80
CHROMIUM = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]


def llama(folder: Path) -> Path:
    """A small model of a known class, with values as training leaves them."""
    model = folder / "tiny-llama"
    model.mkdir()
    random = np.random.default_rng(0)
    hidden, inner, words, layers = 256, 688, 4000, 8

    def matrix(rows: int, columns: int) -> np.ndarray:
        found = random.standard_normal((rows, columns)) * 0.02
        found[:, :: columns // 16] *= 3
        return found.astype("f2")

    tensors = {"model.embed_tokens.weight": matrix(words, hidden)}
    for n in range(layers):
        for part in "qkvo":
            size = hidden if part in "qo" else hidden // 4
            shape = (hidden, size) if part == "o" else (size, hidden)
            tensors[f"model.layers.{n}.self_attn.{part}_proj.weight"] = matrix(*shape)
        for part, shape in (
            ("gate", (inner, hidden)),
            ("up", (inner, hidden)),
            ("down", (hidden, inner)),
        ):
            tensors[f"model.layers.{n}.mlp.{part}_proj.weight"] = matrix(*shape)
        for part in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{n}.{part}.weight"] = np.ones(hidden, "f2")
    tensors["model.norm.weight"] = np.ones(hidden, "f2")
    safeweights.numpy.save_file(
        tensors, str(model), metadata={"format": "pt"}, max_shard_size="4MB"
    )
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": layers,
        "hidden_size": hidden, "intermediate_size": inner, "num_attention_heads": 8,
        "num_key_value_heads": 2, "max_position_embeddings": 4096, "vocab_size": words,
        "tie_word_embeddings": True,
    }  # fmt: skip
    (model / "config.json").write_text(json.dumps(config))
    return model


def terminal(command: list[str], folder: Path) -> str:
    """What a command prints on a terminal of 80 columns."""
    parent, child = pty.openpty()
    environment = os.environ | {"COLUMNS": str(WIDTH), "TERM": "xterm-256color"}
    process = subprocess.Popen(
        [*PROGRAM, *command], cwd=folder, env=environment, stdout=child, stderr=child, stdin=child
    )
    os.close(child)
    chunks = []
    while True:
        try:
            chunk = os.read(parent, 1 << 16)
        except OSError:
            break
        if not chunk:
            break
        chunks.append(chunk)
    process.wait()
    os.close(parent)
    return b"".join(chunks).decode().replace("\r\n", "\n")


def picture(command: list[str], folder: Path, target: Path) -> None:
    """Write what a command shows as a picture."""
    console = Console(record=True, width=WIDTH, file=io.StringIO())
    console.print(Text("$ safeweights " + " ".join(command), "bold"))
    console.print(Text.from_ansi(terminal(command, folder)))
    drawn = console.export_svg(title="", unique_id="safeweights")
    target.write_text(
        re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL), encoding="utf-8"
    )


def pages(model: Path) -> None:
    """Write pictures of the page."""
    server = subprocess.Popen(
        [*PROGRAM, "view", model.name, "--no-open", "--json"],
        cwd=model.parent, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert server.stdout is not None
    address = json.loads(server.stdout.readline())["address"]
    kinds = {"light": (1200, 760), "dark": (1200, 760), "narrow": (390, 760)}
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=CHROMIUM)
        for kind, (width, height) in kinds.items():
            scheme = "dark" if kind == "dark" else "light"
            size = {"width": width, "height": height}
            page = browser.new_page(viewport=size, color_scheme=scheme)
            page.goto(address)
            page.wait_for_selector("dl")
            page.screenshot(path=IMAGES / f"view-{kind}.png")
            page.get_by_role("tab", name="Tensors").click()
            page.get_by_role("row").filter(has_text="q_proj").first.click()
            page.wait_for_selector("text=yellow not finite")
            page.wait_for_selector("dialog .histogram canvas")
            if kind == "light":
                page.screenshot(path=IMAGES / "tensor.png")
            page.close()
        browser.close()
    server.kill()
    server.wait()


def main() -> None:
    """Write all pictures."""
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = llama(folder)
        picture(["show", model.name], folder, IMAGES / "show.svg")
        picture(["stats", model.name, "*layers.0.*"], folder, IMAGES / "stats.svg")
        pages(model)


if __name__ == "__main__":
    main()
