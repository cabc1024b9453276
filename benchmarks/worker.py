"""One contender in a process of its own: commands as JSON lines on stdin, answers on stdout.

    {"do": "prepare", "key": "...", "verb": "...", "arguments": {...}, "repeat": 1}
    {"do": "sample", "key": "...", "check": false, "memory": false}
    {"do": "convert", "path": "...", "to": "..."}
    {"do": "release"}

An answer has ``"ok"``, and ``"unavailable"`` or ``"error"`` where it is false. Whatever a library prints
goes to stderr. The process ends when stdin does.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench.contenders import CONTENDERS, Unavailable
from bench.data import read_tensors
from bench.limits import trim_heap
from bench.operations import Operation, prepare


def status(field: str) -> int:
    """A figure of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise Unavailable(f"/proc/self/status has no {field}")


def read_so_far() -> int:
    """Bytes that this process asked the system for by read(2) and its relatives; -1 where unknown."""
    try:
        return int(Path("/proc/self/io").read_text().split()[1])
    except (OSError, ValueError):
        return -1


def cost_of_counting() -> int:
    first = read_so_far()
    return read_so_far() - first


class Worker:
    """The state between commands."""

    def __init__(self, contender: str) -> None:
        self.contender = CONTENDERS[contender]()
        self.operations: dict[str, tuple[Operation, int]] = {}
        self.inputs: dict[str, Any] = {}

    def answer(self, command: dict[str, Any]) -> dict[str, Any]:
        action = getattr(self, f"do_{command.pop('do')}")
        try:
            return {"ok": True, **(action(**command) or {})}
        except Unavailable as reason:
            return {"ok": False, "unavailable": str(reason)}
        except Exception as error:
            traceback.print_exc()
            return {"ok": False, "error": f"{type(error).__name__}: {error}"[:400]}

    def do_hello(self) -> dict[str, Any]:
        return {"version": self.contender.version, "pid": os.getpid()}

    def do_prepare(
        self, key: str, verb: str, arguments: dict[str, Any], repeat: int = 1
    ) -> dict[str, Any]:
        made = prepare(self.contender, verb, arguments, self.inputs)
        self.operations[key] = (made, repeat)
        return {"way": self.contender.way(arguments.get("how", "default"))}

    def do_sample(self, key: str, check: bool = False, memory: bool = False) -> dict[str, Any]:
        operation, repeat = self.operations[key]
        gc.collect()
        found = self._peak(operation) if memory else self._timed(operation, repeat)
        result = found.pop("result")
        if check:
            found["fingerprint"] = operation.fingerprint(result)
        return found

    def _timed(self, operation: Operation, repeat: int) -> dict[str, Any]:
        result = None
        overhead = cost_of_counting()
        bytes_before = read_so_far()
        begin, used = time.perf_counter(), time.process_time()
        for _ in range(repeat):
            result = operation.run()
        seconds = (time.perf_counter() - begin) / repeat
        used = (time.process_time() - used) / repeat
        count = read_so_far() - bytes_before - overhead
        return {
            "seconds": seconds,
            "processor_seconds": used,
            "bytes": count // repeat,
            "result": result,
        }

    def _peak(self, operation: Operation) -> dict[str, Any]:
        """The most memory during the operation, above what was in use before it."""
        trim_heap()
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the high-water mark
        before = status("VmRSS")
        result = operation.run()
        return {"extra": max(0, status("VmHWM") - before), "result": result}

    def do_convert(self, path: str, to: str) -> None:
        """The same tensors as a file of torch.save."""
        import torch

        partial = f"{to}.partial"
        try:
            torch.save(read_tensors(path), partial)
            descriptor = os.open(partial, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
            os.rename(partial, to)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(partial)

    def do_release(self) -> None:
        self.operations.clear()
        self.inputs.clear()
        gc.collect()
        trim_heap()


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        worker = Worker(sys.argv[1])
    except Exception as error:
        answers.write(json.dumps({"ok": False, "error": f"{type(error).__name__}: {error}"}) + "\n")
        return
    for line in sys.stdin:
        answers.write(json.dumps(worker.answer(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
