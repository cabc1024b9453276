"""Changing checkpoints without loading them: names, types, metadata, and which file a tensor is in.

    request      what to change, as data
    model        a checkpoint as edits see it: tensors, ties, metadata, files
    naming       names and ties changed; keymaps: renamings that are known
    layout       which output has which tensor
    plan         what will be done, as data
    inplace      headers rewritten within their space
    editor       `edit`: opens, plans, writes
    repairing    `repair`: what can be mended without a guess

Any format comes in, safetensors come out. Nothing is written before all of it is decided and checked.
"""

from __future__ import annotations

from ..lazy import lazy_names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .editor import edit
    from .plan import EditedFile, EditPlan
    from .repairing import Repair, repair
    from .request import Edits

__all__ = ["EditPlan", "EditedFile", "Edits", "Repair", "edit", "repair"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "EditPlan": "plan",
        "EditedFile": "plan",
        "Edits": "request",
        "edit": "editor",
        "Repair": "repairing",
        "repair": "repairing",
    },
)
