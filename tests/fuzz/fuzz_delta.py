"""Coverage-guided fuzzing of delta checkpoints: frames, checksums, the index and the file beside it.

    python tests/fuzz/fuzz_delta.py -max_total_time=60 corpus/

The first byte chooses what is hostile. Frames are bytes of the input, or valid frames of bytes of the
input, which get behind the decompression. Only errors of this package may come out, and what comes out
has the size of the base.
"""

from __future__ import annotations

import sys

import atheris
import zstandard

with atheris.instrument_imports(
    include=["safeweights.derived.delta", "safeweights.editing.deltas"]
):
    from safeweights.checkpoint import Checkpoint, MemoryTensor, SafetensorsFile, Tensor
    from safeweights.checkpoint.saving import to_bytes
    from safeweights.derived import delta
    from safeweights.derived.delta import CHECKSUMS, ENCODINGS, applied, encode
    from safeweights.editing.deltas import _Delta, _Known
    from safeweights.errors import SafetensorError
    from safeweights.storage import BytesSource

FIELDS = ("version", "base_version", "delta_encoding", "compression_format", "checksum_format")
GOOD = ("000001", "000000", "xor", "zstd", "adler32")
SIZES = (0, 1, 7, 64, 5000)


def frame(given: atheris.FuzzedDataProvider) -> bytes:
    """A frame: any bytes, or any bytes compressed, with or without their size, cut or not."""
    data = given.ConsumeBytes(given.ConsumeIntInRange(0, 6000))
    if given.ConsumeBool():
        return data
    sized = given.ConsumeBool()
    packed = zstandard.ZstdCompressor(write_content_size=sized).compress(data)
    return packed[: given.ConsumeIntInRange(0, len(packed))] if given.ConsumeBool() else packed


def one_tensor(given: atheris.FuzzedDataProvider) -> None:
    """Apply frames to a tensor, read at once or in pieces."""
    size = given.PickValueInList(list(SIZES))
    new: Tensor = MemoryTensor("w", "U8", (size,), bytes(size))
    delta._FRAME_AT_ONCE = given.PickValueInList([0, 1 << 21])
    delta._TILE = given.PickValueInList(
        [100, 1 << 20]
    )  # more bytes than a fifth are replaced in parts
    delta._BENCHES.clear()
    for _ in range(given.ConsumeIntInRange(1, 3)):
        data = frame(given)
        new = applied(
            new,
            MemoryTensor("w", "U8", (len(data),), data),
            given.PickValueInList([*ENCODINGS, "x"]),
            expected=given.PickValueInList([None, "00000001", given.ConsumeUnicodeNoSurrogates(8)]),
            algorithm=given.PickValueInList([*CHECKSUMS, "x"]),
        )
    found = b"".join(map(bytes, new.in_blocks(memoryview(bytearray(1000)))))
    if len(found) != size:
        raise RuntimeError("the new tensor has another size")
    if bytes(new.view()) != found:
        raise RuntimeError("blocks are other bytes than the whole")


def there_and_back(given: atheris.FuzzedDataProvider) -> None:
    """What `encode` makes gives the new bytes."""
    data = given.ConsumeBytes(5000)
    old = given.ConsumeBytes(len(data)).ljust(len(data), b"\0")
    base, new = (MemoryTensor("w", "U8", (len(data),), each) for each in (old, data))
    encoding = given.PickValueInList(list(ENCODINGS))
    packed = encode(base, new, encoding)
    if packed is None:
        if old != data:
            raise RuntimeError("a difference was not seen")
        return
    frame = MemoryTensor("w", "U8", (len(packed),), packed)
    found = applied(base, frame, encoding, expected=None, algorithm="adler32").view()
    if bytes(found) != data:
        raise RuntimeError("other bytes came back")


def folder(given: atheris.FuzzedDataProvider) -> None:
    """A folder: an index, a file of frames and the file beside it."""
    metadata = {
        name: given.PickValueInList([good, given.ConsumeUnicodeNoSurrogates(9)])
        for name, good in zip(FIELDS, GOOD, strict=True)
        if given.ConsumeIntInRange(0, 20)
    }
    data = frame(given)
    sums = {given.PickValueInList(["w", "x"]): given.ConsumeUnicodeNoSurrogates(8)}
    tensors = {given.PickValueInList(["w", "v"]): MemoryTensor("w", "U8", (len(data),), data)}
    file = SafetensorsFile(BytesSource(to_bytes(tensors, sums)))
    opened = _Delta("folder", metadata, [file])
    if given.ConsumeBool():
        opened.known = _Known("a", "b", {"w": given.ConsumeUnicodeNoSurrogates(64)})
    for tensor in opened.over(
        Checkpoint({"w": MemoryTensor("w", "U8", (64,), bytes(64))})
    ).values():
        tensor.view()


def one_input(data: bytes) -> None:
    """Fail on any exception but our own."""
    given = atheris.FuzzedDataProvider(data)
    choice = given.ConsumeIntInRange(0, 3)
    try:
        if choice == 0:
            one_tensor(given)
        elif choice == 1:
            there_and_back(given)
        elif choice == 2:
            folder(given)
        else:
            text = given.ConsumeBytes(given.remaining_bytes())
            _Known.read(BytesSource(text), "safeweights.delta.json")
    except SafetensorError:
        return


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
