"""The libraries that are compared, behind one set of verbs. Imported in a worker process only.

Rules:
- Each verb is what the library's documentation tells its user to write, and nothing else.
- What a library cannot do raises `Unavailable` with the reason, which the results show.
- Results are plain dicts of tensors, so that everything after that is the same code for all.
"""

# ruff: noqa: ARG002 - a contender that refuses a verb, or has one way only, uses no argument
from __future__ import annotations

import hashlib
import importlib
import io
import os
import shutil
import ssl
import subprocess
import tempfile
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from .data import synced

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CONTENDERS", "Contender", "Unavailable"]


class Unavailable(Exception):
    """The library has no such function, or cannot be used here."""


class Contender:
    """A library; each verb that a subclass lacks is unavailable.

    Args of the verbs:
        how: Which of the library's ways: ``"default"``, ``"pread"`` ...
    """

    version: str = ""

    def way(self, how: str) -> str:
        """What `how` comes to."""
        return how

    def load(self, path: str, how: str) -> dict[str, Any]:
        """All tensors of a file, for torch."""
        raise Unavailable("no loader of whole files")

    def load_numpy(self, path: str, how: str) -> dict[str, Any]:
        """All tensors of a file, for NumPy."""
        raise Unavailable("loads torch tensors only")

    def open_header(self, path: str) -> int:
        """Open a file and check its header; the number of tensors."""
        raise Unavailable("no way to open a file without loading it")

    def first_tensor(self, path: str, name: str) -> Any:
        """Open a file and take one tensor."""
        raise Unavailable("loads whole files only")

    def load_bytes(self, data: bytes) -> dict[str, Any]:
        """All tensors of a file that is in memory."""
        raise Unavailable("reads files only")

    def save_bytes(self, tensors: dict[str, Any]) -> bytes:
        """The file as bytes."""
        raise Unavailable("does not write bytes")

    def save_file(self, tensors: dict[str, Any], path: str, *, durable: bool) -> str:
        """Write a file; the path of what was written."""
        raise Unavailable("does not write files")

    def save_numpy(self, arrays: dict[str, Any], path: str) -> str:
        """Write a file of NumPy arrays; the path of what was written."""
        raise Unavailable("saves no NumPy arrays")

    def sliced(self, path: str, name: str, how: str) -> Any:
        """An open tensor, of which ``[index]`` reads a part; and what keeps it open."""
        raise Unavailable("reads whole tensors only")

    def hash_folder(self, path: str) -> str:
        """The SHA-256 of every file below a folder, as sha256sum prints it."""
        raise Unavailable("does not hash files")

    def verified(self, path: str, *, trees: bool) -> Callable[[], Any]:
        """Sign a file; the function that loads its tensors once they are verified, or only hashes it."""
        raise Unavailable("verifies no signatures")

    def encrypted(self, path: str, folder: str, *, signed: bool) -> Callable[[], Any]:
        """Encrypt a file into a folder; the function that loads its tensors, or only decrypts it."""
        raise Unavailable("reads no encrypted files")

    def encrypt(self, path: str, target: str) -> Callable[[], Any]:
        """The function that encrypts a file to `target`, which does not exist."""
        raise Unavailable("does not encrypt")

    def renaming(self, path: str, name: str, out: str, beside: str) -> Callable[[], str]:
        """What renames a tensor and returns the path of the file. `beside` is a folder for inputs."""
        raise Unavailable("does not write files")

    def merging(self, shards: list[str], out: str) -> Callable[[], str]:
        """What makes one file of several."""
        raise Unavailable("does not write files")

    def comparing(self, one: str, other: str) -> Callable[[], Any]:
        """What finds the tensors that differ; for a contender that cannot, what reads both files."""
        raise Unavailable("loads torch tensors only")

    def patching(self, base: str, new: str, beside: str, out: str) -> Callable[[], str]:
        """Make a delta of two files; what writes `new` from `base` and the delta."""
        raise Unavailable("has no deltas")


class Safetensors(Contender):
    """The reference package, of whichever version the process finds."""

    package = "safetensors"

    def __init__(self) -> None:
        self._package = importlib.import_module(self.package)
        self._torch = importlib.import_module(f"{self.package}.torch")
        self._numpy = importlib.import_module(f"{self.package}.numpy")
        self.version = self._package.__version__

    def _backend(self, how: str) -> dict[str, str]:
        return {} if how == "default" else {"backend": how}

    def load(self, path: str, how: str) -> dict[str, Any]:
        if how == "clone":
            return {name: tensor.clone() for name, tensor in self._torch.load_file(path).items()}
        if how == "bytes":
            with open(path, "rb") as file:
                return self._torch.load(file.read())
        return self._torch.load_file(path, **self._backend(how))

    def load_numpy(self, path: str, how: str) -> dict[str, Any]:
        if how == "default":
            return self._numpy.load_file(path)
        with self._package.safe_open(path, "np", **self._backend(how)) as file:
            return file.get_tensors()

    def open_header(self, path: str) -> int:
        with self._package.safe_open(path, "pt") as file:
            return len(file.keys())

    def first_tensor(self, path: str, name: str) -> Any:
        with self._package.safe_open(path, "pt") as file:
            return file.get_tensor(name)

    def load_bytes(self, data: bytes) -> dict[str, Any]:
        return self._torch.load(data)

    def save_bytes(self, tensors: dict[str, Any]) -> bytes:
        return self._torch.save(tensors)

    def save_file(self, tensors: dict[str, Any], path: str, *, durable: bool) -> str:
        self._torch.save_file(tensors, path)
        if durable:
            synced(path)
        return path

    def save_numpy(self, arrays: dict[str, Any], path: str) -> str:
        self._numpy.save_file(arrays, path)
        return path

    def sliced(self, path: str, name: str, how: str) -> Any:
        file = self._package.safe_open(path, "pt", **self._backend(how))
        return file.get_slice(name), file

    def renaming(self, path: str, name: str, out: str, beside: str) -> Callable[[], str]:
        def run() -> str:
            tensors = self._torch.load_file(path)
            tensors["renamed"] = tensors.pop(name)
            self._torch.save_file(tensors, out)
            return out

        return run

    def merging(self, shards: list[str], out: str) -> Callable[[], str]:
        def run() -> str:
            tensors: dict[str, Any] = {}
            for path in shards:
                tensors |= self._torch.load_file(path)
            self._torch.save_file(tensors, out)
            return out

        return run

    def comparing(self, one: str, other: str) -> Callable[[], Any]:
        return lambda: [self._numpy.load_file(path) for path in (one, other)]


class Safeweights(Safetensors):
    """This package: the reference's interface, and `durable`."""

    package = "safeweights"

    BACKENDS: Final = {
        "owned": ("pread",),
        "cold": ("auto", "direct", "pread"),
        "pread": ("pread",),
    }
    """What a row asks for -> engines, of which the first that there is serves. A new engine that a
    row shall use is one word here."""

    def _backend(self, how: str) -> dict[str, str]:
        from safeweights.storage import BACKENDS

        if how == "default":
            return {}
        known = [name for name in self.BACKENDS.get(how, (how,)) if name in BACKENDS]
        if not known:
            raise Unavailable(f"no engine {how!r} yet")
        return {"backend": known[0]}

    def way(self, how: str) -> str:
        return self._backend(how).get("backend", how)

    def save_file(self, tensors: dict[str, Any], path: str, *, durable: bool) -> str:
        self._torch.save_file(tensors, path, durable=durable)
        return path

    def hash_folder(self, path: str) -> str:
        from safeweights import trust

        return trust.format_check_file(trust.hash_paths([path]))

    def verified(self, path: str, *, trees: bool) -> Callable[[], Any]:
        from safeweights import trust

        with tempfile.TemporaryDirectory() as folder:
            trust.generate_key(f"{folder}/key")
            key = trust.load_private_key(f"{folder}/key")
        signature = f"{path}.{trees}.sig"
        trust.sign(path, key, signature=signature, trees=trees, force=True)
        policy = trust.Policy((trust.Rule("*", signers=("us",)),), {"us": key.public_key})

        def load() -> dict[str, Any]:
            verifier = trust.PolicyVerifier(policy, signature=signature)
            return self._torch.load_file(path, trust=verifier)

        return load

    def encrypted(self, path: str, folder: str, *, signed: bool) -> Callable[[], Any]:
        from safeweights import trust

        # Signing makes block trees of files that are called so.
        sealed = f"{folder}/{signed}.safetensors.age"
        with suppress(FileNotFoundError):
            os.unlink(sealed)
        identity = trust.generate_identity()
        self._package.encrypt(path, identity.recipient.label, sealed, durable=False)
        given: dict[str, Any] = {"identity": identity}
        if signed:
            with tempfile.TemporaryDirectory() as keys:
                trust.generate_key(f"{keys}/key")
                key = trust.load_private_key(f"{keys}/key")
            trust.sign(sealed, key, force=True)
            given["trust"] = key.public_key
        return lambda: self._torch.load_file(sealed, **given)

    def encrypt(self, path: str, target: str) -> Callable[[], Any]:
        from safeweights import trust

        recipient = trust.generate_identity().recipient.label
        return lambda: self._package.encrypt(path, recipient, target, durable=False)

    def renaming(self, path: str, name: str, out: str, beside: str) -> Callable[[], str]:
        from safeweights import edit

        own = shutil.copy(path, f"{beside}/renamed.safetensors")
        names = [name, "renamed"]

        def run() -> str:
            edit(own, in_place=True, rename=dict([names]))
            names.reverse()  # the next time it is renamed back
            return own

        return run

    def merging(self, shards: list[str], out: str) -> Callable[[], str]:
        from safeweights import edit

        def run() -> str:
            edit(os.path.dirname(shards[0]), out)
            return out

        return run

    def comparing(self, one: str, other: str) -> Callable[[], Any]:
        import safeweights
        from safeweights.reports.difference import compare

        return lambda: compare(*(safeweights.open(path, backend="pread") for path in (one, other)))

    def patching(self, base: str, new: str, beside: str, out: str) -> Callable[[], str]:
        from safeweights.editing import apply_delta, make_delta

        folder = f"{beside}/weight_v000001"
        make_delta(base, new, folder)

        def run() -> str:
            apply_delta(folder, out, base, force=True)
            return out

        return run


class Fastsafetensors(Contender):
    """IBM's loader, on the CPU: its buffered copier where GPUDirect is not."""

    def __init__(self) -> None:
        # Its C++ part prints where it lacks a GPU's libraries; that does not matter here.
        self._package = importlib.import_module("fastsafetensors")
        self.version = self._package.__version__

    def load(self, path: str, how: str) -> dict[str, Any]:
        # Direct I/O is its default and makes it slower on files that are in the page cache: each row
        # gets the setting that is the faster one for it.
        os.environ["FASTSAFETENSORS_ODIRECT"] = "1" if how == "direct" else "0"
        with self._package.fastsafe_open([path], device="cpu", nogds=True) as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping

    def open_header(self, path: str) -> int:
        from fastsafetensors.frameworks import get_framework_op

        metadata = self._package.SafeTensorsMetadata.from_file(path, get_framework_op("pytorch"))
        return len(metadata.tensors)

    def save_file(self, tensors: dict[str, Any], path: str, *, durable: bool) -> str:
        saver = self._package.ParallelSaver(num_shards=1, fsync=durable)
        return saver.save(tensors, path.removesuffix(".safetensors"))[0]


class RunaiStreamer(Contender):
    """Run:ai's streamer, with its defaults."""

    def __init__(self) -> None:
        from importlib.metadata import version

        os.environ.setdefault("RUNAI_STREAMER_LOG_LEVEL", "ERROR")
        self._package = importlib.import_module("runai_model_streamer")
        self.version = version("runai-model-streamer")

    def load(self, path: str, how: str) -> dict[str, Any]:
        with self._package.SafetensorsStreamer() as streamer:
            streamer.stream_file(path)
            return dict(streamer.get_tensors())


class Torch(Contender):
    """torch.load and torch.save: PyTorch's own zip of pickles, of the same tensors."""

    def __init__(self) -> None:
        self._torch = importlib.import_module("torch")
        self.version = self._torch.__version__

    def load(self, path: str, how: str) -> dict[str, Any]:
        loaded = self._torch.load(path, mmap=how != "read", weights_only=True)
        if how == "clone":
            return {name: tensor.clone() for name, tensor in loaded.items()}
        return loaded

    def first_tensor(self, path: str, name: str) -> Any:
        return self._torch.load(path, mmap=True, weights_only=True)[name]

    def load_bytes(self, data: bytes) -> dict[str, Any]:
        return self._torch.load(io.BytesIO(data), weights_only=True)

    def save_bytes(self, tensors: dict[str, Any]) -> bytes:
        target = io.BytesIO()
        self._torch.save(tensors, target)
        return target.getvalue()

    def save_file(self, tensors: dict[str, Any], path: str, *, durable: bool) -> str:
        self._torch.save(tensors, path)
        if durable:
            synced(path)
        return path

    def sliced(self, path: str, name: str, how: str) -> Any:
        return self._torch.load(path, mmap=True, weights_only=True)[name], None


class Coreutils(Contender):
    """sha256sum, over the names that find gives."""

    def __init__(self) -> None:
        shown = subprocess.run(
            ["sha256sum", "--version"], capture_output=True, text=True, check=True
        )
        self.version = shown.stdout.splitlines()[0].rpartition(" ")[2]

    def hash_folder(self, path: str) -> str:
        command = ["find", path, "-type", "f", "-exec", "sha256sum", "{}", "+"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def verified(self, path: str, *, trees: bool) -> Callable[[], Any]:
        def hash_file() -> dict[str, Any]:
            subprocess.run(["sha256sum", path], capture_output=True, check=True)
            return {}

        return hash_file


class Hashlib(Contender):
    """Python's own SHA-256, in one thread."""

    version = ssl.OPENSSL_VERSION.split()[1]

    def verified(self, path: str, *, trees: bool) -> Callable[[], Any]:
        def hash_file() -> dict[str, Any]:
            state, run = hashlib.sha256(), memoryview(bytearray(1 << 20))
            with open(path, "rb", buffering=0) as file:
                while size := file.readinto(run):
                    state.update(run[:size])
            return {}

        return hash_file


class Pyrage(Contender):
    """The Rust implementation of age, in one thread; it has no partial reads."""

    def __init__(self) -> None:
        from importlib.metadata import version

        self._package = importlib.import_module("pyrage")
        self.version = version("pyrage")

    def encrypted(self, path: str, folder: str, *, signed: bool) -> Callable[[], Any]:
        identity, sealed = self._package.x25519.Identity.generate(), f"{folder}/pyrage.age"
        self._package.encrypt_file(path, sealed, [identity.to_public()])

        def decrypt() -> dict[str, Any]:
            with open(sealed, "rb") as file:
                self._package.decrypt(file.read(), [identity])
            return {}

        return decrypt

    def encrypt(self, path: str, target: str) -> Callable[[], Any]:
        recipient = self._package.x25519.Identity.generate().to_public()
        return lambda: self._package.encrypt_file(path, target, [recipient])


class Machine(Contender):
    """No library: the process in which the machine's own limits are measured."""


CONTENDERS: Final[dict[str, type[Contender]]] = {
    "safeweights": Safeweights,
    "safetensors-0.8": Safetensors,
    "safetensors-0.9": Safetensors,
    "fastsafetensors": Fastsafetensors,
    "runai": RunaiStreamer,
    "torch": Torch,
    "coreutils": Coreutils,
    "hashlib": Hashlib,
    "pyrage": Pyrage,
    "machine": Machine,
}
