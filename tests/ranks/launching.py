"""Runs a function on several real ranks (gloo), each a process of its own.

Processes are forked from a server that has imported torch once: a rank begins in a tenth of a second.
The key-value store is in the process of the tests, as torchrun has it in its agent: it outlives any rank.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import sys
import traceback
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist

HERE = str(Path(__file__).parent)
PRELOADED = [
    "torch._dynamo",
    "torch.distributed.fsdp",
    "safeweights.distributed",
    "layouts",
    "faults",
    "saving",
    "serving",
    "training",
    "trainer",
]

if HERE not in sys.path:
    sys.path.insert(0, HERE)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # many ranks on few cores
# The server imports by this variable alone, before Python 3.13.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [HERE, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
)
_CONTEXT = mp.get_context("forkserver")

END = """
import os
import sys

sys.stdout.flush()
os._exit(0)
"""
"""Lines to add to a program of a page that ranks run.

A thread of gloo may still own the tensor of the last collective call when Python exits (DTensors keep the
process group alive beyond `destroy_process_group`). On a busy machine, PyTorch 2.13 then takes the GIL in a
destructor and aborts: "terminate called without an active exception" (pytorch/pytorch#179291).
"""
_CONTEXT.set_forkserver_preload(PRELOADED)


class Result(NamedTuple):
    """What became of a rank."""

    value: Any = None
    error: str | None = None  # "no answer" of one that was killed


def _rank(
    function: Any, rank: int, ranks: int, port: int, timeout: float, pipe: Any, arguments: Any
) -> None:
    import warnings

    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    try:
        store = dist.TCPStore("127.0.0.1", port, is_master=False)
        dist.init_process_group(
            "gloo", store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=timeout)
        )
        result = Result(function(rank, *arguments))
    except BaseException:
        result = Result(error=traceback.format_exc())
    pipe.send(result)
    pipe.close()
    # Without the teardown of torch, which waits for ranks that may be gone.
    os._exit(0)


def run_ranks(
    function: Any, ranks: int, *arguments: Any, timeout: float = 60, limit: float = 120
) -> list[Result]:
    """Call ``function(rank, *arguments)`` on each rank.

    Args:
        function: A function of a module in this folder.
        ranks: How many.
        arguments: For all ranks.
        timeout: Of the process group, in seconds.
        limit: Seconds after which ranks that have not ended are killed, which fails the test.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    pipes, processes = [], []
    for rank in range(ranks):
        receiving, sending = _CONTEXT.Pipe(duplex=False)
        given = (function, rank, ranks, store.port, timeout, sending, arguments)
        process = _CONTEXT.Process(target=_rank, args=given)
        process.start()
        sending.close()
        pipes.append(receiving)
        processes.append(process)
    results = []
    for rank, (pipe, process) in enumerate(zip(pipes, processes, strict=True)):
        result = Result(error="no answer")
        if not pipe.poll(limit):
            for each in processes:
                each.kill()  # no error of one that has ended
            raise AssertionError(f"rank {rank} of {function.__name__} hangs")
        with suppress(EOFError):  # it was killed
            result = pipe.recv()
        process.join()
        results.append(result)
    return results


def run_fine(function: Any, ranks: int, *arguments: Any, **options: Any) -> list[Any]:
    """The same for a function that must not fail: the values."""
    results = run_ranks(function, ranks, *arguments, **options)
    for rank, result in enumerate(results):
        assert result.error is None, f"rank {rank}: {result.error}"
    return [result.value for result in results]
