"""What a failed write must leave: the old file, and nothing beside it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def kept(path: Path) -> Iterator[None]:
    """A file at `path`, alone in its folder, which the ``with`` block fails to replace."""
    path.write_bytes(b"old")
    yield
    assert path.read_bytes() == b"old"
    assert [each.name for each in path.parent.iterdir()] == [path.name]
