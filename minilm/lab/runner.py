"""Runs cells until none is left. Several processes, started here or by hand, share the work through locks.

- A cell is claimed by a lock that its process loses when it ends, so a kill loses nothing: the cell is taken up again,
  from its training's last checkpoint, by whoever asks for it next.
- A cell has one thread. A timed one has them all and waits until nothing else of the lab runs on this machine.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess

from minilm.errors import MinilmError
from minilm.lab.cells import ready
from minilm.lab.places import Places
from minilm.lab.question import Cell
from minilm.lab.questions import load_question
from minilm.log import duration

POLL_SECONDS = 2.0  # while others hold what is left


def run(names: Sequence[str], scale: str, places: Places, processes: int) -> None:
    """Runs what has no result yet. Raises MinilmError where a process fails, after the others have ended."""
    if processes == 1:
        work(names, scale, places)
        return
    with places.lock("data", shared=True):  # a folder that cannot be written is told once, here
        context = multiprocessing.get_context("spawn")
    workers: list[BaseProcess] = [
        context.Process(target=_worker, args=(list(names), scale, str(places.folder))) for _ in range(processes)
    ]
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    except KeyboardInterrupt:
        for worker in workers:  # each saves its last whole step
            if worker.pid and worker.is_alive():
                os.kill(worker.pid, signal.SIGINT)
        for worker in workers:
            worker.join()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    failed = [worker.exitcode for worker in workers if worker.exitcode]
    if failed:
        raise MinilmError(f"{len(failed)} of {processes} processes failed (see above); run again to go on")


def _worker(names: list[str], scale: str, folder: str) -> None:
    os.setsid()  # Ctrl-C reaches the parent alone, which passes it on once: a second one would stop without saving
    try:
        work(names, scale, Places(folder))
    except KeyboardInterrupt:
        sys.exit(130)
    except (MinilmError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code if isinstance(error, MinilmError) else 1)


def work(names: Sequence[str], scale: str, places: Places) -> None:
    """One process's share: claims a cell of any of the questions, runs it, looks again."""
    import torch

    from minilm import runtime

    runtime.tune_allocator()
    all_threads = torch.get_num_threads()
    questions = [load_question(name) for name in names]
    try:
        while cells := [c for q in questions for c in ready(q, q.scale(scale), places.results(q.name, scale))]:
            cells.sort(key=lambda cell: cell.kind == "timed")
            if not any(_claim(cell, places, all_threads) for cell in cells):
                time.sleep(POLL_SECONDS)
    finally:
        torch.set_num_threads(all_threads)


def _claim(cell: Cell, places: Places, all_threads: int) -> bool:
    """Runs the cell, unless another process has it. Whether there is news."""
    import torch

    from minilm.lab.trial import run_cell

    with places.lock(cell.address, wait=False) as mine:
        if not mine:
            return False
        if cell.address in places.results(cell.question, cell.scale):
            return True
        started = time.perf_counter()
        timed = cell.kind == "timed"
        with places.lock("machine", shared=not timed):
            torch.set_num_threads(all_threads if timed else 1)
            line = run_cell(load_question(cell.question), cell, places)
        loss = line["metrics"].get("val_loss")
        told = "diverged" if "diverged" in line["metrics"] else "measured" if loss is None else f"loss {loss:.4f}"
        print(f"{cell.name}: {told} ({duration(time.perf_counter() - started)})", flush=True)
    return True
