"""Coverage-guided fuzzing of distributed checkpoints: only our errors may come out, and no time is lost.

    python tests/fuzz/fuzz_distributed.py -max_total_time=60 corpus/

An input is one file of a folder whose others are fine: the tables of a torch.distributed.checkpoint, a file
of its items, the file of a rank, a partition of DeepSpeed, or the notes of a safetensors part.
"""

from __future__ import annotations

import contextlib
import sys

import atheris

with atheris.instrument_imports(include=["safeweights"]):
    from safeweights.conversion import Limits, open
    from safeweights.errors import SafetensorError
    from safeweights.storage import MemoryStore

LIMITS = Limits(
    opcodes=20_000, objects=10_000, memo=10_000, marks=1000, visits=10_000, tensors=5000,
    view_bytes=1 << 24, inflated_bytes=1 << 24,
)  # fmt: skip
PLACES = (
    ".metadata", "__0_0.distcp", "rank_0.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt",
    "mp_rank_00_model_states.pt", "shard-00001-model-00001-of-00001.safetensors",
)  # fmt: skip
_NAMES = b"ctorch.distributed.checkpoint.metadata\n%s\n)\x81}("

TABLES = (
    b"\x80\x02" + _NAMES % b"Metadata" + b"X\x13\0\0\0state_dict_metadata}X\x01\0\0\0a"
    + _NAMES % b"BytesStorageMetadata" + b"ubsX\x0c\0\0\0storage_data}" + _NAMES % b"MetadataIndex"
    + b"X\x03\0\0\0fqnX\x01\0\0\0auctorch.distributed.checkpoint.filesystem\n_StorageInfo\n)\x81}("
    b"X\x0d\0\0\0relative_pathX\x0c\0\0\0__0_0.distcpX\x06\0\0\0offsetK\0X\x06\0\0\0lengthK\x04ubsub."
)  # fmt: skip
"""Tables that name one item, which is what a fuzzed file of items is read through."""


def one_input(data: bytes) -> None:
    """Fail on any exception that is not of our family."""
    if not data:
        return
    place = PLACES[data[0] % len(PLACES)]
    store = MemoryStore()
    store.write(place, [data[1:]])
    if place == "__0_0.distcp":
        store.write(".metadata", [TABLES])
    if place.startswith(("zero", "mp_rank")):
        for other in PLACES[3:5]:
            if other != place:
                store.write(other, [data[1:]])
    if place == "rank_0.pt":
        store.write("rank_1.pt", [data[1:]])
    with contextlib.suppress(SafetensorError):
        for tensor in open(store, limits=LIMITS).values():
            if tensor.nbytes < 1 << 20 and tensor.unreadable is None:
                with contextlib.suppress(SafetensorError):
                    tensor.view()


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
