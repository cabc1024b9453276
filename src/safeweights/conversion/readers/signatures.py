"""How the formats begin or end that are told apart without their readers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ...storage.windows import read_bytes

if TYPE_CHECKING:
    from ...storage import Source
    from ..archives.tar_reader import TarArchive

__all__ = [
    "GGUF_MAGIC",
    "HDF5_MAGIC",
    "KERAS_WEIGHTS",
    "NEMO_CONFIG",
    "NPY_MAGIC",
    "is_nemo",
    "is_table",
    "is_torch_tar",
    "looks_like_map",
]

GGUF_MAGIC: Final = b"GGUF"
HDF5_MAGIC: Final = b"\x89HDF\r\n\x1a\n"
NPY_MAGIC: Final = b"\x93NUMPY"

KERAS_WEIGHTS: Final = "model.weights.h5"
"""The member that every archive of Keras has."""
NEMO_CONFIG: Final = "model_config.yaml"

_TABLE: Final = (0xDB4775248B80FB57).to_bytes(8, "little")
_TABLE_FOOTER: Final = 48


def is_nemo(archive: TarArchive) -> bool:
    """Whether an archive is one of NeMo's."""
    return NEMO_CONFIG in archive.members


def is_torch_tar(archive: TarArchive) -> bool:
    """Whether an archive holds the three streams of PyTorch's oldest container."""
    return {"storages", "tensors", "pickle"} <= archive.members.keys()


def is_table(source: Source) -> bool:
    """Whether `source` ends as a LevelDB table does, which is how TensorFlow writes an index."""
    return source.size >= _TABLE_FOOTER and read_bytes(source, source.size - 8, 8) == _TABLE


def looks_like_map(head: bytes) -> bool:
    """Whether a file that starts with `head` may start with a msgpack map of text keys, as Flax's do."""
    if len(head) < 4:
        return False
    at = 1 if 0x81 <= head[0] <= 0x8F else {0xDE: 3, 0xDF: 5}.get(head[0], 0)
    return at > 0 and len(head) > at and (0xA0 <= head[at] <= 0xBF or head[at] in (0xD9, 0xDA))
