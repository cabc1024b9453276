"""NeMo archives (.nemo): a tar file with a configuration and, in older ones, one PyTorch checkpoint.

A compressed one (tar.gz, NeMo before 1.0) is inflated into a temporary file. Only an archive with
`model_weights.ckpt` is read; of any other, the error says what is in it.

Source of the layout: nemo/core/connectors/save_restore_connector.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ...errors import FormatError, quote
from ...storage.windows import Window
from ..archives.tar_reader import TarArchive
from . import numpy_files, torch_files

if TYPE_CHECKING:
    from ...storage import Source
    from ..foreign import ForeignCheckpoint, OpenOptions

__all__ = ["read_nemo"]

WEIGHTS: Final = "model_weights.ckpt"


def read_nemo(source: Source, options: OpenOptions) -> ForeignCheckpoint:
    """The checkpoint in a NeMo archive.

    Cost: a compressed archive is inflated, and needs as much space where temporary files are.

    Raises:
        FormatError: There is none that can be read in place, or it breaks a rule.
    """
    body = numpy_files.inflated(source, options.limits)
    archive = TarArchive(body, options.limits)
    if WEIGHTS not in archive.members:
        listed = ", ".join(quote(name) for name in list(archive.members)[:10])
        raise FormatError(
            f"this NeMo archive has no {quote(WEIGHTS)}, but {listed}; extract it (tar -xf), then give the "
            "folder of weights in it, which is a distributed checkpoint",
            rule="nemo", path=source.name,
        )  # fmt: skip
    start, size = archive.members[WEIGHTS]
    inner = Window(body, start, size, f"{source.name}!{WEIGHTS}")
    found = torch_files.read_zip(inner, options)
    found.format = "nemo"
    return found
