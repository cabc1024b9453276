"""What an examination finds: a thing that loading a file does besides building data; a chat template."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Concern", "Power", "Template"]

Power = Literal["acts", "unknown", "unread"]


@dataclass(frozen=True)
class Concern:
    """Something in a file that is not known to be data.

    Attributes:
        power: ``"acts"``: it runs code, or reaches files or the network. ``"unknown"``: it names
            something that is not known to be harmless. ``"unread"``: it could not be read, so nothing
            is known of it.
        rule: A stable identifier, e.g. ``"onnx-external-data"``.
        message: What it is, in words; names from the file are quoted.
        offset: Byte offset in the file, where one is known.
    """

    power: Power
    rule: str
    message: str
    offset: int | None = None


@dataclass(frozen=True)
class Template:
    """A chat template: a program that a policy may know by its digest.

    Attributes:
        place: The file, and after ``#`` the setting that holds it.
        data: Its text, encoded; of several templates in one setting, the setting as canonical JSON.
    """

    place: str
    data: bytes
