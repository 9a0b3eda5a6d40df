"""Rows of a batch spread over a CPU's cores: each thread decodes its own rows and none waits for another.

Operations that are shared out among threads one by one end with all of them waiting: on a machine that does other work
too, decoding 200 rows of a 4 M model took 6 to 9 times as long that way (two cores, load 6, 2026-11-25).
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from minilm.model.gpt import GPT

T = TypeVar("T")
ROWS_PER_THREAD = 32  # fewer rows would spend their time in Python, which runs one thread at a time
MAX_THREADS = 4


def shares(model: GPT, n_rows: int) -> int:
    """Into how many parts n_rows are split. 1 on a card, and while the model is in training mode."""
    if model.device.type != "cpu" or model.training:  # switching modes to and fro is not for several threads
        return 1
    return max(1, min(torch.get_num_threads(), n_rows // ROWS_PER_THREAD, MAX_THREADS))


def spread(work: Callable[[Sequence[int]], Iterator[T]], n_rows: int, n_threads: int) -> Iterator[T]:
    """What work(rows) yields for each part of range(n_rows), in the order in which it comes.

    An exception in a part ends all; so does closing the generator. The threads have ended when this does.
    """
    total = torch.get_num_threads()
    results: queue.SimpleQueue[tuple[str, T | BaseException | None]] = queue.SimpleQueue()
    stop = threading.Event()

    def run(rows: Sequence[int]) -> None:
        torch.set_num_threads(max(1, total // n_threads))
        try:
            for item in work(rows):
                results.put(("item", item))
                if stop.is_set():
                    break
            results.put(("end", None))
        except BaseException as error:
            results.put(("error", error))

    parts = [range(i * n_rows // n_threads, (i + 1) * n_rows // n_threads) for i in range(n_threads)]
    threads = [threading.Thread(target=run, args=(rows,), daemon=True) for rows in parts]
    try:
        for thread in threads:
            thread.start()
        running = n_threads
        while running:
            kind, item = results.get()
            if kind == "error":
                assert isinstance(item, BaseException)
                raise item
            if kind == "end":
                running -= 1
            else:
                yield item  # type: ignore[misc]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        torch.set_num_threads(total)
