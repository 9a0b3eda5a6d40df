"""Tales from several cores: the same stories in the same order as from one, each being a pure function of its seed.

Each worker is a process of its own that tells every n-th block of seeds into a pipe, and the blocks are read in turn.
They are started as programs, not forked: a caller may have threads, and a script of the user's needs no main guard.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from itertools import count
from pathlib import Path

from minilm.errors import MinilmError, UsageError
from minilm.text.tales.grammar import grammar
from minilm.text.tales.tell import first_seed, mixed_stories, one_of

BLOCK = 16  # seeds told in a row: their text fits a pipe's buffer, so a worker tells one block while another is read
WORTH_MEGABYTES = 5.0  # below, starting processes takes longer than they save


def parallel_stories(
    styles: str, megabytes: float, seed: int = 0, level: int = 1, split: str = "train", workers: int | None = None
) -> Iterator[str]:
    """`mixed_stories`, told by `workers` processes (one for each core).

    Raises UsageError as it does, and on no text; MinilmError where a process dies.
    """
    if not megabytes > 0:
        raise UsageError(f"megabytes of tales must be more than 0, not {megabytes}")
    workers = n_cores() if workers is None else workers
    if workers < 2 or megabytes < WORTH_MEGABYTES or not sys.executable:
        return mixed_stories(styles, megabytes, seed, level, split)
    # What is wrong with the arguments shows here, before any process starts.
    next(mixed_stories(styles, 1e-6, seed, level, split))
    return _collect(styles, megabytes, seed, level, split, workers)


def n_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _collect(styles: str, megabytes: float, seed: int, level: int, split: str, workers: int) -> Iterator[str]:
    here = str(Path(__file__).resolve().parents[2])  # also where the package is not installed
    paths = [here, os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else [here]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    left = megabytes * 1e6
    with ExitStack() as stack:
        processes = []
        for worker in range(workers):
            words = [sys.executable, "-m", __name__, styles, str(seed), str(level), split, str(worker), str(workers)]
            process = subprocess.Popen(words, stdout=subprocess.PIPE, env=environment, text=True, encoding="ascii")
            stack.callback(_end, process)
            processes.append(process)
        for block in count():
            process = processes[block % workers]
            assert process.stdout is not None
            for _ in range(BLOCK):
                if left <= 0:
                    return
                line = process.stdout.readline()
                if not line.endswith("\n"):
                    raise MinilmError(f"a process that tells tales ended early (exit code {process.wait()}): run again")
                left -= len(line)
                yield line[:-1]


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    if process.stdout is not None:
        process.stdout.close()
    process.wait()


def _work(styles: str, seed: int, level: int, split: str, worker: int, workers: int) -> None:
    """Writes every `workers`-th block of stories, for ever: the reader ends it."""
    grammars, first = [grammar(level, style.strip()) for style in styles.split(",")], first_seed(split, seed)
    for block in count(worker, workers):
        of_block = range(block * BLOCK, (block + 1) * BLOCK)
        sys.stdout.write("".join([f"{one_of(grammars, i, first, split)}\n" for i in of_block]))
        sys.stdout.flush()


if __name__ == "__main__":
    with suppress(BrokenPipeError, KeyboardInterrupt):
        _styles, _seed, _level, _split, _worker, _workers = sys.argv[1:]
        _work(_styles, int(_seed), int(_level), _split, int(_worker), int(_workers))
