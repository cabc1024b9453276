"""Worker processes seen from the parent: started once, told what to do, ended whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from typing_extensions import Self

__all__ = ["Crew", "Failed", "Missing", "WorkerProcess", "interpreter_environment"]

_PROGRAM: Final = Path(__file__).resolve().parent.parent / "worker.py"
_ANSWER_SECONDS: Final = 300.0


class Missing(Exception):
    """The contender cannot do this; the reason."""


class Failed(Exception):
    """The contender tried and did not succeed, or its process ended."""


def interpreter_environment(path: Sequence[str] = ()) -> dict[str, str]:
    """The environment of a process, with `path` before the places where modules are found."""
    environment = dict(os.environ)
    # What is installed has its bytecode; here the first import writes it.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    if path:
        environment["PYTHONPATH"] = os.pathsep.join(path)
    return environment


class WorkerProcess:
    """One contender's process.

    Args:
        contender: Key of `bench.contenders.CONTENDERS`.
        path: Folders put before those where its modules are found.
        log: Where what its libraries print goes.
    """

    def __init__(self, contender: str, path: list[str], log: IO[bytes]) -> None:
        # A session of its own: Ctrl-C reaches the parent alone, which ends the others in order.
        self._process = subprocess.Popen(
            [sys.executable, str(_PROGRAM), contender],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
            env=interpreter_environment(path), start_new_session=True,
        )  # fmt: skip
        self.contender = contender
        self.version: str = ""
        try:
            self.version = self.ask("hello")["version"]
        except BaseException:
            self.end()
            raise

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Send a command and wait for its answer.

        Raises:
            Missing: The contender has no such thing.
            Failed: It raised something, took longer than five minutes, or its process ended.
        """
        assert self._process.stdin is not None
        line = json.dumps({"do": do, **arguments}) + "\n"
        try:
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()
        except OSError as error:
            self.end()
            raise Failed(f"the process of {self.contender} has ended") from error
        answer = self._answer(do)
        if "unavailable" in answer:
            raise Missing(answer["unavailable"])
        if not answer["ok"]:
            raise Failed(answer["error"])
        return answer

    def _answer(self, do: str) -> dict[str, Any]:
        stdout = self._process.stdout
        assert stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            if not selector.select(_ANSWER_SECONDS):
                self.end()
                raise Failed(f"no answer to {do!r} within {_ANSWER_SECONDS:.0f} s")
        line = stdout.readline()
        if not line:
            self.end()
            raise Failed(f"the process ended during {do!r} (exit {self._process.returncode})")
        answer: dict[str, Any] = json.loads(line)
        return answer

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def end(self) -> None:
        """End the process; what it holds is worth nothing."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):  # it was not reading any more
                    stream.close()
        self._process.kill()
        self._process.wait()


class Crew:
    """The workers of a run, started when first asked for.

    Args:
        paths: Contender -> folders of its own modules.
        absent: Contender -> why it cannot be started.
        log: See `WorkerProcess`.
    """

    def __init__(
        self, paths: Mapping[str, list[str]], absent: Mapping[str, str], log: IO[bytes]
    ) -> None:
        self._paths, self._log = paths, log
        self._absent = dict(absent)
        self._workers: dict[str, WorkerProcess] = {}
        self.versions: dict[str, str] = {}

    def worker(self, contender: str) -> WorkerProcess:
        """The process of a contender.

        Raises:
            Missing: It cannot be started.
        """
        if contender in self._absent:
            raise Missing(self._absent[contender])
        found = self._workers.get(contender)
        if found is not None and not found.alive:
            found.end()
            found = None
        if found is None:
            found = self._workers[contender] = self.fresh(contender)
        return found

    def fresh(self, contender: str) -> WorkerProcess:
        """A new process of a contender, which the caller ends.

        Raises:
            Missing: It cannot be started.
        """
        if contender in self._absent:
            raise Missing(self._absent[contender])
        try:
            made = WorkerProcess(contender, self._paths.get(contender, []), self._log)
        except Failed as error:
            self._absent[contender] = f"cannot be imported: {error}"
            raise Missing(self._absent[contender]) from error
        self.versions[contender] = made.version
        return made

    def environment(self, contender: str) -> dict[str, str]:
        """The environment in which a contender's modules are found."""
        return interpreter_environment(self._paths.get(contender, []))

    def release(self) -> None:
        """Have every process release a row's data."""
        for worker in self._workers.values():
            if worker.alive:
                worker.ask("release")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers.values():
            worker.end()
