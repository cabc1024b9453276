"""Changing checkpoints without loading them: names, types, metadata, and which file a tensor is in.

    request      what to change, as data
    model        a checkpoint as edits see it: tensors, ties, metadata, files
    naming       names and ties changed; keymaps: renamings that are known
    lora         scales of LoRA modules: tensors in one convention, metadata in another
    layout       which output has which tensor
    plan         what will be done, as data
    inplace      headers rewritten within their space
    reading      what an edit reads, with names, types and ties changed
    outputs      how much of each file has to be written
    editor       `edit`: reads, decides, writes
    deltas       delta checkpoints: made, applied, opened over their base
    repairing    `repair`: what can be mended without a guess
    tails        zeros where a download stopped

Any format comes in, safetensors come out. Nothing is written before all of it is decided and checked.
"""

from __future__ import annotations

from ..lazy import lazy_names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .deltas import DeltaReport, apply_delta, compact_deltas, make_delta, open_delta
    from .editor import edit
    from .plan import EditedFile, EditPlan
    from .repairing import Repair, repair
    from .request import Edits

__all__ = [
    "DeltaReport", "EditPlan", "EditedFile", "Edits", "Repair", "apply_delta", "compact_deltas", "edit",
    "make_delta", "open_delta", "repair",
]  # fmt: skip

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "DeltaReport": "deltas",
        "EditPlan": "plan",
        "EditedFile": "plan",
        "Edits": "request",
        "Repair": "repairing",
        "apply_delta": "deltas",
        "compact_deltas": "deltas",
        "edit": "editor",
        "make_delta": "deltas",
        "open_delta": "deltas",
        "repair": "repairing",
    },
)
