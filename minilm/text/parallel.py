"""A function of one item on all cores, results in the order of the items: nothing depends on how many there are.

Workers are started as programs, not forked: a caller may have threads, and a user's script needs no main guard.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

from minilm.errors import MinilmError

IN_WORKER = "MINILM_IN_WORKER"
AHEAD = 2  # items for each worker: bounds what is in memory

T = TypeVar("T")
Worker = subprocess.Popen[bytes]


def n_cores() -> int:
    """Cores that this process may use; of a worker, its one."""
    if IN_WORKER in os.environ:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(
    maker: str, argument: Any, items: Iterable[T], workers: int, called: str = "a worker process"
) -> Iterator[tuple[T, Any]]:
    """(item, result) of each item. `maker` ("module:function") makes of the argument, in every worker, the function
    that turns an item into its result. What that raises is raised here; MinilmError where a worker dies (`called` so).
    """
    here = str(Path(__file__).resolve().parents[2])  # also where the package is not installed
    path = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, IN_WORKER: "1"}
    free: SimpleQueue[Worker] = SimpleQueue()
    started: list[Worker] = []

    def work(item: T) -> Any:
        worker = free.get()
        try:
            return _ask(worker, item, called)
        finally:
            free.put(worker)

    with ThreadPoolExecutor(workers) as pool:
        try:
            for _ in range(workers):
                words = [sys.executable, "-m", __name__]
                started.append(subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment))
                _ask(started[-1], (maker, argument), called, answers=False)
                free.put(started[-1])
            pending: deque[tuple[T, Future[Any]]] = deque()
            for item in items:
                pending.append((item, pool.submit(work, item)))
                if len(pending) > AHEAD * workers:
                    first, future = pending.popleft()
                    yield first, future.result()
            while pending:
                first, future = pending.popleft()
                yield first, future.result()
        finally:
            for worker in started:
                worker.kill()  # ends the threads that wait for it
            pool.shutdown(cancel_futures=True)
            for worker in started:
                worker.communicate()


def _ask(worker: Worker, item: Any, called: str, answers: bool = True) -> Any:
    assert worker.stdin is not None
    assert worker.stdout is not None
    try:
        pickle.dump(item, worker.stdin, pickle.HIGHEST_PROTOCOL)
        worker.stdin.flush()
        answer = pickle.load(worker.stdout) if answers else None
    except (EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
        raise MinilmError(f"{called} ended early (exit code {worker.poll()}): run again") from error
    if isinstance(answer, Exception):
        raise answer
    return answer


def _serve() -> None:
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no result
    maker, argument = pickle.load(sys.stdin.buffer)
    module, _, name = maker.partition(":")
    function: Callable[[Any], Any] = getattr(import_module(module), name)(argument)
    while True:
        try:
            item = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer = function(item)
        except Exception as error:
            answer = error
        pickle.dump(answer, results, pickle.HIGHEST_PROTOCOL)
        results.flush()


if __name__ == "__main__":
    try:
        _serve()
    except (BrokenPipeError, KeyboardInterrupt):
        sys.exit(1)
