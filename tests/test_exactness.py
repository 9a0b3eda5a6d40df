"""Stopped and resumed is the same bit for bit: each optimizer, precision and schedule, and 30 seeded combinations;
a kill at any moment of a save leaves the previous checkpoint whole."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from training_helpers import prepared, tiny_config

from minilm.config import Optimizer, Rounding, Schedule, TrainConfig
from minilm.model.gpt import GPT
from minilm.model.hub import step_folders
from minilm.runtime import PRECISIONS
from minilm.text.tokenizer import get_tokenizer
from minilm.training.checkpoint import load_checkpoint, read_state, save_checkpoint
from minilm.training.loop import train
from minilm.training.optim import build_optimizers

HERE = [name for name in PRECISIONS if name != "tf32"]
SMALL: dict[str, Any] = {"n_layer": 2, "n_embd": 16, "block_size": 16, "eval_tokens": 32, "eval_every_steps": 0}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("data") / "sums")


@pytest.fixture(scope="module")
def base(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run to start from, for LoRA."""
    return train(tiny_config(data, tmp_path_factory.mktemp("runs") / "base", max_steps=1, **SMALL)).run


def assert_resumes(config: TrainConfig, folder: Path, stop: int) -> None:
    """Runs config to its end, and goes on from its save at `stop` a second time."""
    saving = {"save_every_steps": stop, "keep_checkpoints": 9}
    whole = train(replace(config, out_dir=str(folder / "whole"), **saving))  # type: ignore[arg-type]
    broken = folder / "broken"
    shutil.copytree(folder / "whole", broken)
    for later in step_folders(broken):
        if read_state(later)["step"] > stop:
            shutil.rmtree(later)
    resumed = train(replace(config, out_dir=str(broken), existing="resume", **saving))  # type: ignore[arg-type]
    assert resumed.losses == whole.losses[stop:]
    for (name, a), b in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b), name
    states = [torch.load(r.checkpoint / "train_state.pt", weights_only=True) for r in (whole, resumed)]
    assert states[0].keys() == states[1].keys()
    for name, values in states[0].items():
        for key, value in values.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(states[1][name][key])), (name, key)


ALONE = [
    *({"optimizer": name} for name in get_args(Optimizer)),
    *({"schedule": name} for name in get_args(Schedule)),
    *({"precision": name} for name in HERE if not name.startswith("pure")),
    *({"precision": p, "rounding": r} for p in ("pure_bf16", "pure_fp16") for r in get_args(Rounding)),
]


@pytest.mark.slow
@pytest.mark.parametrize("changes", ALONE, ids=lambda changes: "-".join(map(str, changes.values())))
def test_each_choice_alone(data: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    assert_resumes(tiny_config(data, tmp_path, max_steps=5, **SMALL, **changes), tmp_path, stop=2)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(30))
def test_combinations(data: Path, base: Path, tmp_path: Path, seed: int) -> None:
    """Mid-epoch or over its end, with accumulation, dropout, LoRA, freezing, recomputing and guards."""
    draw = random.Random(seed)
    changes: dict[str, Any] = {
        "optimizer": draw.choice(get_args(Optimizer)),
        "schedule": draw.choice(get_args(Schedule)),
        "precision": draw.choice([*HERE, "fp32", "fp32"]),
        "rounding": draw.choice(get_args(Rounding)),
        "micro_batch_size": draw.choice([2, 4, 8]),
        "resid_dropout": draw.choice([0.0, 0.1]),
        "recompute": draw.random() < 0.3,
        "guard": draw.choice(["stop", "skip"]),
        "guard_spike": draw.choice([0.0, 20.0]),
        "layer_lr_decay": draw.choice([1.0, 0.7]),
        "adafactor_first_moment": draw.random() < 0.5,
        "warmup_share": draw.choice([0.0, 0.4]),
        "seed": seed,
        "lr": 3e-3,
    }
    kind = draw.choice(["from scratch", "frozen", "lora", "unfreezing"])
    if kind == "frozen":
        changes["freeze"] = ("embeddings", "h.0")
    elif kind == "lora":
        changes |= {"init": str(base), "lora_rank": 2, "lora_dropout": 0.1}
    elif kind == "unfreezing":
        changes |= {"init": str(base), "unfreeze_every_steps": 2}
    config = tiny_config(data, tmp_path, max_steps=6, **{**SMALL, **changes})
    assert_resumes(config, tmp_path, stop=draw.choice([2, 3]))


@pytest.mark.faults
def test_a_hundred_kills_during_saves(data: Path, tmp_path: Path) -> None:
    """A child saves without end and is killed after a random time; what is left always loads, and never goes back."""
    torch.manual_seed(0)
    run = tmp_path / "run"
    model = GPT(replace(tiny_config(data, run).model, vocab_size=257))
    tokenizer = get_tokenizer("bytes")
    optimizers = build_optimizers(model, TrainConfig())
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizers[0].step()
    draw, step, in_the_middle = random.Random(0), 0, 0
    for _ in range(100):
        child = os.fork()
        if child == 0:  # no test framework in the child: it saves until it is killed
            try:
                while True:
                    step += 1
                    with torch.no_grad():
                        model.wte.weight.fill_(float(step))
                    save_checkpoint(run, model, tokenizer, optimizers, {"step": step, "val_loss": None}, keep=2)
            finally:
                os._exit(1)
        end = time.monotonic() + 30
        while not (run.exists() and any(read_state(f)["step"] > step for f in step_folders(run)[-1:])):
            assert time.monotonic() < end, "the child does not save"
            time.sleep(0.001)
        time.sleep(draw.random() * 0.05)
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        in_the_middle += any(run.glob(".step_*.partial"))
        folders = step_folders(run)
        other = GPT(model.config)
        state = load_checkpoint(folders[-1], other, build_optimizers(other, TrainConfig()))
        assert state["step"] > step
        step = state["step"]
        assert torch.equal(other.wte.weight, torch.full_like(other.wte.weight, float(step)))
    assert step >= 100
    assert in_the_middle  # some kills did hit a save
