"""Ranks: by torchrun, and as forks of the test process, which does not import torch once for each."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from minilm.config import TrainConfig
from minilm.options import to_toml

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


# A rank: the config of argv[1], argv[2] steps; rank 1 kills itself in step argv[3].
WORKER = """
import os, signal, sys
from dataclasses import replace
from minilm.options import build, read_preset
from minilm.errors import MinilmError
from minilm.text import batches
from minilm.training.loop import train
config = build(read_preset(sys.argv[1]))
config = replace(config, max_steps=int(sys.argv[2]), existing=sys.argv[4])
before = batches.Batches.batch
def batch(self, step, rank=0, world=1):
    if (step, rank) == (int(sys.argv[3]), 1):
        os.kill(os.getpid(), signal.SIGKILL)
    return before(self, step, rank, world)
batches.Batches.batch = batch
try:
    train(config)
except MinilmError as error:
    sys.exit(f"error: {error}")
"""


def torchrun(
    folder: Path, config: TrainConfig, n_ranks: int, die_at: int = -1, existing: str = "refuse"
) -> subprocess.CompletedProcess[str]:
    (folder / "config.toml").write_text(to_toml(config))
    (folder / "worker.py").write_text(WORKER)
    words: list[str | Path] = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n_ranks)]
    words += [folder / "worker.py", folder / "config.toml", str(config.max_steps), str(die_at), existing]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment, timeout=900)
