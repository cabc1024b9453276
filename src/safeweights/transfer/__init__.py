"""Models on their way between a store and a local folder: `pulling`, `pushing`, and the shared `cache`."""

from __future__ import annotations

from .pulling import Pulled, pull
from .pushing import Pushed, push

__all__ = ["Pulled", "Pushed", "pull", "push"]
