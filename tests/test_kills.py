"""A kill at any moment of a save leaves the previous checkpoint whole: a hundred kills, most of them inside a save."""

from __future__ import annotations

import os
import random
import select
import signal
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest
import torch
from rank_helpers import SECONDS, fork_ranks, wait_for
from training_helpers import prepared, tiny_config

from minilm.config import TrainConfig
from minilm.model.gpt import GPT
from minilm.model.hub import step_folders
from minilm.text.tokenizer import get_tokenizer
from minilm.training.checkpoint import load_checkpoint, save_checkpoint
from minilm.training.distributed import joined
from minilm.training.optim import build_optimizers, optimizer_state
from minilm.training.parallel import share_out
from minilm.training.spread import own

KILLS = 100
BEGINS, ENDS = b"(", b")"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> GPT:
    folder = tmp_path_factory.mktemp("data")
    return GPT(replace(tiny_config(prepared(folder / "sums"), folder).model, vocab_size=257))


def save_without_end(run: Path, model: GPT, told: int, step: int) -> None:
    """Saves step + 1, step + 2 ..., in which every weight and moment has the step's value; says when each save begins
    and ends."""
    tokenizer = get_tokenizer("bytes")
    with joined("cpu") as ranks:
        parallel = share_out(model, "fsdp", ranks)
        optimizers = build_optimizers(model, TrainConfig(parallel="fsdp"))
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizers[0].step()
        while True:
            step += 1
            with torch.no_grad():
                for p in model.parameters():
                    own(p).fill_(float(step))
                for state in optimizer_state(model, optimizers).values():
                    own(state["exp_avg"]).fill_(float(step))
            if ranks.first:
                os.write(told, BEGINS)
            save_checkpoint(run, model, tokenizer, optimizers, {"step": step, "val_loss": None}, 2, parallel)
            if ranks.first:
                os.write(told, ENDS)


def hear(told: int, sign: bytes) -> float:
    """When the next sign came; what came before it is left out."""
    while True:
        assert select.select([told], [], [], SECONDS)[0], "the children do not save"
        heard = os.read(told, 1)
        assert heard, "the children are gone"
        if heard == sign:
            return time.monotonic()


def loaded_step(run: Path, model: GPT) -> int:
    """The step of the newest checkpoint, all of whose values are that step's."""
    other = GPT(model.config)
    optimizers = build_optimizers(other, TrainConfig())
    step = int(load_checkpoint(step_folders(run)[-1], other, optimizers)["step"])
    moments = [state["exp_avg"] for state in optimizer_state(other, optimizers).values()]
    for tensor in [*other.parameters(), *moments]:
        assert torch.equal(tensor, torch.full_like(tensor, float(step)))
    return step


@pytest.mark.faults
@pytest.mark.parametrize("n_ranks", [1, 2])
def test_a_hundred_kills_during_saves(model: GPT, tmp_path: Path, n_ranks: int) -> None:
    """Half of the kills of two ranks hit one of them, and the other has to notice."""
    run, draw = tmp_path / "run", random.Random(0)
    step = inside = 0
    seconds: list[float] = []
    for _ in range(KILLS):
        told, tell = os.pipe()
        after = step
        children = fork_ranks(n_ranks, lambda rank: save_without_end(run, model, tell, after), tmp_path)  # noqa: B023
        os.close(tell)
        for _ in range(1 if seconds else 5):  # at least one whole save, and how long it takes
            began = hear(told, BEGINS)
            seconds.append(hear(told, ENDS) - began)
        began = hear(told, BEGINS)
        time.sleep(max(began + draw.random() * median(seconds[-9:]) - time.monotonic(), 0.0))
        hit = children if draw.random() < 0.5 else children[draw.randrange(n_ranks) :][:1]
        for child in hit:
            os.kill(child, signal.SIGKILL)
        codes = wait_for(children, 120)
        assert codes.count(-signal.SIGKILL) == len(hit)
        signs = b"".join(iter(lambda: os.read(told, 999), b""))  # noqa: B023
        os.close(told)
        inside += not signs.endswith(ENDS)
        reached = loaded_step(run, model)
        assert reached > step
        step = reached
    print(f"{inside} of {KILLS} kills fell inside a save of {median(seconds):.3f} s")
    assert inside > KILLS // 2
