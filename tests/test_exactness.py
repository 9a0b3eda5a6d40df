"""Stopped and resumed is the same bit for bit: each optimizer, precision, schedule and objective, and 30 seeded
combinations; whatever number of steps was done. On ranks: test_ranks.py and test_fsdp.py; kills: test_kills.py."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from training_helpers import prepared, tiny_config

from minilm.config import OBJECTIVES, Optimizer, Rounding, Schedule, TrainConfig
from minilm.model.hub import step_folders
from minilm.runtime import PRECISIONS
from minilm.text.batches import Batch, Batches
from minilm.text.packing import Row
from minilm.training.checkpoint import read_state
from minilm.training.loop import train

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
    *({name: 0.3} for name in OBJECTIVES if name not in ("likelihood", "distill")),
    {"label_smoothing": 0.1},
    {"prompt_end": " make", "prompt_weight": 0.0},
    {"batch_size": 64, "micro_batch_size": 8},  # over the end of an epoch: 5,120 tokens of 4,220
]


@pytest.mark.slow
@pytest.mark.parametrize("changes", ALONE, ids=lambda changes: "-".join(map(str, changes.values())))
def test_each_choice_alone(data: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    assert_resumes(tiny_config(data, tmp_path, max_steps=5, **SMALL, **changes), tmp_path, stop=2)


@pytest.mark.slow
def test_distillation(data: Path, base: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"teacher": str(base), "distill": 0.5}
    assert_resumes(tiny_config(data, tmp_path, max_steps=5, **SMALL, **changes), tmp_path, stop=2)


def test_resuming_takes_no_longer_after_many_steps(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After ten million steps two batches are made for two steps, each from as many rows as the first step's."""
    config = tiny_config(data, tmp_path / "run", max_steps=1, save_every_steps=0, **SMALL)
    folder = train(config).checkpoint
    made: list[int] = []
    before = Batches.batch

    def batch(self: Batches, step: int, rank: int = 0, world: int = 1) -> Batch:
        made.append(step)
        return before(self, step, rank, world)

    monkeypatch.setattr(Batches, "batch", batch)
    rows: list[int] = []
    row_at = Batches._row

    def row(self: Batches, source: int, place: int) -> Row:
        rows.append(place)
        return row_at(self, source, place)

    monkeypatch.setattr(Batches, "_row", row)
    state = read_state(folder) | {"step": 10**7}
    (folder / "state.json").write_text(json.dumps(state))
    folder.rename(folder.with_name("step_10000000"))
    result = train(replace(config, max_steps=10**7 + 2, existing="resume"))
    assert result.step == 10**7 + 2
    assert made == [10**7, 10**7 + 1]
    assert rows == list(range(8 * 10**7, 8 * 10**7 + 16))


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
