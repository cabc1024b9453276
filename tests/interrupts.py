"""An interrupt (Ctrl-C) at every point at which one can strike; and alarms, against tests that hang."""

from __future__ import annotations

import dis
import signal
import sys
import threading
import weakref
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType, ModuleType

    from typing_extensions import Self

posix = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs signals of POSIX")


class Alarm:
    """Calls `action` in the main thread every so many seconds, from a signal, until it is left."""

    def __init__(self, action: Callable[[], object], *, every: float = 0.2) -> None:
        self._action = action
        self._every = every

    def __enter__(self) -> None:
        self._before = signal.signal(signal.SIGALRM, lambda *_: self._action())
        signal.setitimer(signal.ITIMER_REAL, self._every, self._every)

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._before)


class Interrupt:
    """Raises KeyboardInterrupt at the given one of all points at which a signal can be handled.

    These are, in the files given, the beginning of a function, a jump back, and the return of
    a call. The start of a thread is left out: an interrupt there may leave a thread that never begins,
    for CPython's own code is not safe from it. So are finalizers, whose errors CPython drops.

    Attributes:
        raised: Whether there were so many points.
    """

    _WHERE = ("CALL", "RESUME", "JUMP_BACKWARD", "JUMP_ABSOLUTE")

    def __init__(self, point: int, *modules: ModuleType) -> None:
        self.raised = False
        self._left = point
        self._files = {module.__file__ for module in (threading, *modules)}

    def __enter__(self) -> Self:
        self._before = sys.gettrace()
        sys.settrace(self._enter_function)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _enter_function(self, frame: Any, event: str, _: object) -> Any:
        if frame.f_code.co_filename not in self._files or self._is_exempt(frame):
            return None
        points = self._points(frame.f_code)
        frame.f_trace_opcodes = True
        before = -1

        def each_instruction(frame: Any, event: str, _: object) -> Any:
            nonlocal before
            if event == "opcode":
                last, before = before, frame.f_lasti
                if last in points:
                    self._left -= 1
                    if self._left < 0 and not self.raised:
                        self.raised = True
                        raise KeyboardInterrupt
            return each_instruction

        return each_instruction

    @classmethod
    @lru_cache
    def _points(cls, code: CodeType) -> frozenset[int]:
        return frozenset(
            each.offset for each in dis.get_instructions(code) if each.opname.startswith(cls._WHERE)
        )

    @staticmethod
    def _is_exempt(frame: Any) -> bool:
        exempt = threading.Thread.start.__code__, weakref.finalize.__call__.__code__
        while frame is not None and frame.f_code not in exempt:
            frame = frame.f_back
        return frame is not None
