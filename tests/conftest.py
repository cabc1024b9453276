"""What holds for all tests."""

from __future__ import annotations

import gc
import os
import signal
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Callable

# A property has to hold on a busy machine too: no example has a time limit.
settings.register_profile("safeweights", deadline=None)
settings.load_profile("safeweights")

# Started in the background of a script, this process ignores Ctrl-C, and so would those that tests
# start to interrupt them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def descriptors() -> Callable[[], int]:
    """Counts the descriptors that are open."""

    def count() -> int:
        gc.collect()  # what earlier tests left in cycles of frames and exceptions
        return len(os.listdir("/proc/self/fd"))

    return count
