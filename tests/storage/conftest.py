"""Descriptors that a test leaves open."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def no_leak(descriptors: Callable[[], int]) -> Iterator[None]:
    """Fails if the test leaves a descriptor open."""
    before = descriptors()
    yield
    assert descriptors() == before
