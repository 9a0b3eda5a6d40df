"""Ranks as forks of the test process: what torchrun does, without importing torch once for each."""

from __future__ import annotations

import os
import signal
import socket
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

SECONDS = 600  # a machine may be busy; what hangs is killed


def fork_ranks(n_ranks: int, work: Callable[[int], object], errors: Path) -> list[int]:
    """Process ids of n_ranks forks that run work(rank); what one raises goes to errors/rank_N.txt."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    return [_fork(rank, n_ranks, port, work, errors / f"rank_{rank}.txt") for rank in range(n_ranks)]


def _fork(rank: int, n_ranks: int, port: int, work: Callable[[int], object], errors: Path) -> int:
    child = os.fork()
    return child or _run(rank, n_ranks, port, work, errors)


def _run(rank: int, n_ranks: int, port: int, work: Callable[[int], object], errors: Path) -> NoReturn:
    try:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(n_ranks)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        work(rank)
        os._exit(0)
    except BaseException:
        errors.write_text(traceback.format_exc())
    os._exit(1)  # no test framework in a fork


def wait_for(children: list[int], seconds: float = SECONDS) -> list[int]:
    """Exit codes, -9 of what was killed. Kills all and raises TimeoutError where one does not end."""
    end, codes = time.monotonic() + seconds, dict.fromkeys(children)
    while None in codes.values():
        for child in [child for child, code in codes.items() if code is None]:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                codes[child] = os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            for child in [child for child, code in codes.items() if code is None]:
                os.kill(child, signal.SIGKILL)
            raise TimeoutError(f"exit codes {codes} after {seconds} s")
        time.sleep(0.005)
    return [code for code in codes.values() if code is not None]


def on_ranks(n_ranks: int, work: Callable[[int], object], errors: Path) -> None:
    """Runs work(rank) on forked ranks to their end; all have to end well."""
    codes = wait_for(fork_ranks(n_ranks, work, errors))
    assert codes == [0] * n_ranks, "".join(path.read_text() for path in sorted(errors.glob("rank_*.txt")))
