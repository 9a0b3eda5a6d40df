"""Weights, gradients and moments spread over ranks (FSDP2): the losses of one rank, and checkpoints for any number."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from rank_helpers import on_ranks
from safetensors.torch import load_file
from training_helpers import prepared, tiny_config

from minilm.config import Optimizer, Parallel, TrainConfig
from minilm.errors import UsageError
from minilm.log import read_metrics
from minilm.model.gpt import GPT
from minilm.model.hub import step_folders
from minilm.training.distributed import Ranks
from minilm.training.loop import train
from minilm.training.parallel import PARALLEL, share_out
from minilm.training.setup import settle

FSDP: dict[str, Any] = {"parallel": "fsdp", "schedule": "constant"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("data") / "sums")


@pytest.fixture(scope="module")
def base(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run to start from."""
    return train(tiny_config(data, tmp_path_factory.mktemp("runs") / "base", max_steps=1)).run


def losses(run: Path, key: str = "loss") -> list[float]:
    return [row[key] for row in read_metrics(run / "metrics.jsonl") if key in row]


def run_on(n_ranks: int, config: TrainConfig, errors: Path) -> Path:
    on_ranks(n_ranks, lambda rank: train(config), errors)
    return Path(config.out_dir)


def assert_like_one(
    data: Path, tmp_path: Path, n_ranks: int, changes: dict[str, Any], tolerance: float = 1e-5
) -> tuple[Path, Path]:
    one = train(tiny_config(data, tmp_path / "one", **FSDP, **changes)).run
    many = run_on(n_ranks, tiny_config(data, tmp_path / "many", **FSDP, **changes), tmp_path)
    for key in ("loss", "val_loss"):
        assert losses(many, key) == pytest.approx(losses(one, key), abs=tolerance)
    return one, many


def test_registry_and_literal() -> None:
    assert tuple(PARALLEL) == get_args(Parallel)


def test_two_ranks_are_one_and_one_goes_on(data: Path, tmp_path: Path) -> None:
    """Accumulation, validation shared out, samples; rank 0's export is the model; one process resumes from shards."""
    one, many = assert_like_one(data, tmp_path, 2, {"micro_batch_size": 2, "eval_samples": 1})
    assert losses(many, "grad_norm") == pytest.approx(losses(one, "grad_norm"), abs=1e-4)
    folder = step_folders(many)[-1]
    assert not (folder / "train_state.pt").exists()
    pieces = [load_file(path) for path in sorted((folder / "train_state").glob("*.safetensors"))]
    assert [piece["wte.weight/exp_avg"].shape for piece in pieces] == [(129, 32), (128, 32)]  # 257 rows
    a, b = (GPT.from_pretrained(run).state_dict() for run in (one, many))
    for name, tensor in a.items():
        torch.testing.assert_close(b[name], tensor, atol=1e-4, rtol=1e-4)
    shutil.rmtree(folder)  # back to step 5
    resumed = train(tiny_config(data, many, **FSDP, micro_batch_size=2, existing="resume"))
    assert resumed.losses == pytest.approx(losses(one)[5:], abs=1e-5)


OTHERS = [
    (2, {"recompute": True, "resid_dropout": 0.0, "micro_batch_size": 2}),
    (4, {"recompute": True}),
    (4, {"n_unique_layer": 1, "norm": "dyt"}),  # one scalar of four ranks' has rows; a block that runs twice
    (2, {"norm": "fixed", "fix_norms_every_steps": 4, "micro_batch_size": 2, "lr": 1e-3}),
    (2, {"freeze": ("embeddings", "h.0")}),
    (2, {"tie_embeddings": False, "train_only": ("head",), "z_loss": 0.1}),
    (2, {"contrastive": 0.5, "unlikelihood": 0.5}),
    (2, {"sequence_unlikelihood": 0.5}),
    (2, {"grad_clip": 0.05}),
    (2, {"n_kv_head": 1, "activation": "swiglu", "position": "rope"}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("n_ranks", "changes"), OTHERS)
def test_other_choices(data: Path, tmp_path: Path, n_ranks: int, changes: dict[str, Any]) -> None:
    assert_like_one(data, tmp_path, n_ranks, changes)


@pytest.mark.slow
@pytest.mark.parametrize("name", get_args(Optimizer))
def test_each_optimizer_on_four_ranks(data: Path, tmp_path: Path, name: str) -> None:
    """Muon and Adafactor see whole matrices. Adafactor's first update is a sign in all but name: gradients that are
    rounding alone move a weight by the rate, so that at 1e-2 sums in another order show."""
    assert_like_one(data, tmp_path, 4, {"optimizer": name, "lr": 1e-3})


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{"lora_rank": 2}, {"unfreeze_every_steps": 3}, {"swap_activation": "relu", "swap_at_step": 4}],
    ids=lambda changes: next(iter(changes)),
)
def test_from_given_weights(data: Path, base: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    one, many = assert_like_one(data, tmp_path, 2, {"init": str(base), "lr": 1e-3, **changes})
    assert (many / "moved.json").is_file()
    assert (step_folders(many)[-1] / "adapter").is_dir() == ("lora_rank" in changes)
    ids = torch.arange(32)[None]
    a, b = (GPT.from_pretrained(run)(ids) for run in (one, many))
    torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [
        ({"precision": "fp16"}, 1e-3),
        ({"precision": "pure_fp16", "rounding": "kahan"}, 1e-3),
        ({"precision": "pure_fp16", "rounding": "stochastic", "optimizer": "muon"}, 1e-2),
        ({"precision": "pure_fp16", "rounding": "stochastic", "optimizer": "adafactor"}, 1e-2),
    ],
)
def test_sixteen_bits(data: Path, tmp_path: Path, changes: dict[str, Any], tolerance: float) -> None:
    assert_like_one(data, tmp_path, 2, {"lr": 1e-3, **changes}, tolerance)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrote", "reads"),
    [(("fsdp", 2), ("fsdp", 4)), (("fsdp", 4), ("fsdp", 2)), (("fsdp", 2), ("ddp", 2)), (("ddp", 2), ("fsdp", 2))],
)
@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_other_ranks_go_on(
    data: Path, tmp_path: Path, wrote: tuple[Parallel, int], reads: tuple[Parallel, int], optimizer: str
) -> None:
    changes: dict[str, Any] = {"optimizer": optimizer, "lr": 1e-3, "schedule": "constant", "micro_batch_size": 1}
    one = train(tiny_config(data, tmp_path / "one", **changes)).run
    config = tiny_config(data, tmp_path / "run", parallel=wrote[0], max_steps=5, **changes)
    run_on(wrote[1], config, tmp_path)
    run_on(reads[1], replace(config, parallel=reads[0], max_steps=10, existing="resume"), tmp_path)
    assert losses(tmp_path / "run") == pytest.approx(losses(one), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{"resid_dropout": 0.1, "micro_batch_size": 2}, {"optimizer": "muon"}, {"optimizer": "adafactor"}],
    ids=lambda changes: next(iter(changes.values())),
)
def test_the_same_ranks_go_on_bit_for_bit(data: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    config = tiny_config(data, tmp_path / "whole", **FSDP, **changes)
    run_on(2, config, tmp_path)
    broken = shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    shutil.rmtree(step_folders(broken)[-1])
    run_on(2, replace(config, out_dir=str(broken), existing="resume"), tmp_path)
    assert losses(broken) == losses(tmp_path / "whole")
    ends = [step_folders(run)[-1] for run in (broken, tmp_path / "whole")]
    for name in sorted(path.name for path in (ends[0] / "train_state").glob("*.safetensors")):
        a, b = (load_file(end / "train_state" / name) for end in ends)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a), name


def spoil_shard(state: Path) -> None:
    path = sorted(state.glob("*.safetensors"))[-1]
    path.write_bytes(path.read_bytes()[:500])


def lose_shard(state: Path) -> None:
    sorted(state.glob("*.safetensors"))[-1].unlink()


def lose_index(state: Path) -> None:
    (state / "index.json").unlink()


@pytest.mark.slow
@pytest.mark.parametrize("damage", [spoil_shard, lose_shard, lose_index])
def test_damaged_shards_are_refused_and_pickles_never_read(
    data: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    config = tiny_config(data, tmp_path / "run", **FSDP, max_steps=2)
    state = step_folders(run_on(2, config, tmp_path))[-1] / "train_state"

    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "executed"),)

    (state / ".metadata").write_bytes(pickle.dumps(Code()))  # where DCP's default reader looks
    (state.parent / "train_state.pt").write_bytes(pickle.dumps(Code()))
    assert train(replace(config, max_steps=3, existing="resume")).step == 3
    assert not (tmp_path / "executed").exists()
    newest = step_folders(tmp_path / "run")[-1]
    shutil.rmtree(newest)
    damage(state)
    with pytest.raises(UsageError, match="cannot be resumed from"):
        train(replace(config, max_steps=3, existing="resume"))


def test_compiling_is_refused(data: Path, tmp_path: Path) -> None:
    config = tiny_config(data, tmp_path / "run", **FSDP, compile="on", vocab_size=257)
    model, device = GPT(config.model), torch.device("cpu")
    with pytest.raises(UsageError, match="runs eager"):
        settle(config, model, device, world=2)
    with pytest.raises(UsageError, match="began compiled"):
        share_out(model, "fsdp", Ranks(0, 2), compiled=True)
    assert not settle(replace(config, compile="auto", max_steps=10**9), model, device, world=2).compile
