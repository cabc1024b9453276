"""NeMo archives (.nemo): a tar file with a configuration and, in older ones, one PyTorch checkpoint.

Only an archive that is not compressed can be read where it is, and only one with `model_weights.ckpt`; of
any other, the error says what is in it.

Source of the layout: nemo/core/connectors/save_restore_connector.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ...errors import FormatError, quote
from ...storage.windows import Window
from ..archives.tar_reader import TarArchive
from . import torch_files

if TYPE_CHECKING:
    from ...storage import Source
    from ..foreign import ForeignCheckpoint, OpenOptions

__all__ = ["read_nemo"]

WEIGHTS: Final = "model_weights.ckpt"


def read_nemo(source: Source, options: OpenOptions) -> ForeignCheckpoint:
    """The checkpoint in a NeMo archive.

    Raises:
        FormatError: There is none that can be read in place, or it breaks a rule.
    """
    archive = TarArchive(source, options.limits)
    if WEIGHTS not in archive.members:
        listed = ", ".join(quote(name) for name in list(archive.members)[:10])
        raise FormatError(
            f"this NeMo archive has no {quote(WEIGHTS)}, but {listed}; extract it (tar -xf), then give the "
            "folder of weights in it, which is a distributed checkpoint",
            rule="nemo", path=source.name,
        )  # fmt: skip
    start, size = archive.members[WEIGHTS]
    inner = Window(source, start, size, f"{source.name}!{WEIGHTS}")
    found = torch_files.read_zip(inner, options)
    found.format = "nemo"
    return found
