"""Shared by the tests of conversion: a guard that sees imports and execution, and builders."""

from __future__ import annotations

import contextlib
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

sys.path.insert(0, str(Path(__file__).parent))

WATCHED = (
    "import", "pickle.find_class", "exec", "compile", "marshal.loads", "os.system", "os.exec",
    "os.posix_spawn", "subprocess.Popen", "socket.connect", "socket.bind", "ctypes.dlopen",
    "urllib.Request", "code.__new__", "os.fork", "shutil.rmtree", "os.remove", "webbrowser.open",
)  # fmt: skip


class Tracing:
    """`sys` as the module of threads sees it.

    Python 3.11 refuses to begin tracing a thread, which measuring coverage does, while an audit hook is
    told of another thread's beginning; the garbage collector may let both happen at once. The refusal
    ends the state that it complains of.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(sys, name)

    @staticmethod
    def settrace(function: Any) -> None:
        try:
            sys.settrace(function)
        except RuntimeError:
            sys.settrace(function)


class Guard:
    """Sees every import and every execution while it is armed.

    Two witnesses: an audit hook (PEP 578), which code that runs in the process cannot avoid, and a
    finder in front of all others, which sees the name of anything that is looked for.

    The hook is a method of C and runs no bytecode; see `Tracing`.
    """

    def __init__(self) -> None:
        self.seen: list[str] = []
        self._armed = False
        self._unseen = dict.fromkeys(WATCHED)  # what happens is taken out
        threading._sys = Tracing()
        sys.addaudithook(self._unseen.pop)

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if self._armed:
            self.seen.append(f"find_spec {name}")

    @contextlib.contextmanager
    def armed(self) -> Iterator[list[str]]:
        """Gives a list that has, when the block has ended, what was seen in it."""
        self.seen.clear()
        sys.meta_path.insert(0, self)
        self._armed = True
        self._unseen.update(dict.fromkeys(WATCHED))
        try:
            yield self.seen
        finally:
            self.seen += [event for event in WATCHED if event not in self._unseen]
            self._armed = False
            sys.meta_path.remove(self)


_GUARD = Guard()  # an audit hook cannot be removed: one for the whole process


@pytest.fixture
def guard() -> Guard:
    return _GUARD
