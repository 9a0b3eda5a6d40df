"""Several ranks against one, with gloo on a CPU. Each test starts processes by torchrun."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from rank_helpers import on_ranks, torchrun
from training_helpers import prepared, tiny_config

from minilm.config import Parallel
from minilm.errors import UsageError
from minilm.log import read_metrics
from minilm.model.gpt import GPT
from minilm.text.prompts import PromptWeights
from minilm.text.shards import open_shards
from minilm.training.distributed import Ranks, joined
from minilm.training.feed import training_batches
from minilm.training.loop import train


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("data") / "sums")


def losses(run: Path, key: str = "loss") -> list[float]:
    return [row[key] for row in read_metrics(run / "metrics.jsonl") if key in row]


@pytest.mark.slow
@pytest.mark.parametrize(("n_ranks", "changes"), [
    (2, {}), (4, {}), (4, {"optimizer": "muon", "micro_batch_size": 1}),
    (2, {"precision": "pure_fp16", "rounding": "kahan"}),
])  # fmt: skip
def test_losses_are_those_of_one_rank(data: Path, tmp_path: Path, n_ranks: int, changes: dict[str, Any]) -> None:
    """Within 1e-5 in fp32 over ten steps; in 16 bits rounding differs, so within 1e-2."""
    one = train(tiny_config(data, tmp_path / "one", **changes))
    config = tiny_config(data, tmp_path / "many", **changes)
    done = torchrun(tmp_path, config, n_ranks)
    assert done.returncode == 0, done.stderr
    tolerance = 1e-5 if "precision" not in changes else 1e-2
    assert losses(tmp_path / "many") == pytest.approx(losses(one.run), abs=tolerance)
    assert losses(tmp_path / "many", "val_loss") == pytest.approx(losses(one.run, "val_loss"), abs=tolerance)
    assert done.stderr.count("resuming") == 0
    assert done.stderr.count("parameters on cpu") == 1  # rank 0 alone speaks
    assert GPT.from_pretrained(tmp_path / "many").config == one.model.config


@pytest.mark.slow
def test_resume_on_two_ranks_is_exact_and_on_one_close(data: Path, tmp_path: Path) -> None:
    config = tiny_config(data, tmp_path / "whole", resid_dropout=0.1, micro_batch_size=2, schedule="constant")
    part = replace(config, out_dir=str(tmp_path / "part"), max_steps=5)
    assert torchrun(tmp_path, config, 2).returncode == 0
    assert torchrun(tmp_path, part, 2).returncode == 0
    assert torchrun(tmp_path, replace(part, max_steps=10), 2, existing="resume").returncode == 0
    assert losses(tmp_path / "part") == losses(tmp_path / "whole")
    for a, b in zip(*(GPT.from_pretrained(tmp_path / name).parameters() for name in ("part", "whole")), strict=True):
        assert torch.equal(a, b)
    result = train(replace(part, max_steps=12, existing="resume"))  # one rank goes on with what two wrote
    assert result.step == 12
    assert result.losses[-1] < losses(tmp_path / "part")[0]


@pytest.mark.faults
@pytest.mark.parametrize("parallel", get_args(Parallel))
def test_a_rank_that_dies_ends_the_job_with_its_name(data: Path, tmp_path: Path, parallel: str) -> None:
    config = tiny_config(data, tmp_path / "run", parallel=parallel)
    done = torchrun(tmp_path, config, 2, die_at=7)
    assert done.returncode != 0
    assert "lost another rank, which torchrun names below" in done.stderr
    assert "rank      : 1 (local_rank: 1)" in done.stderr
    assert "Signal 9 (SIGKILL)" in done.stderr
    assert train(replace(config, existing="resume")).step == 10  # from step 5's checkpoint


def test_alone_costs_nothing() -> None:
    ranks = Ranks()
    values = torch.ones(3)
    assert ranks.sum(values) is values
    assert ranks.device(torch.device("cpu")) == torch.device("cpu")
    ranks.wait()
    ranks.sum_gradients([])
    with joined("cpu") as found:
        assert found == Ranks()


def test_ranks_need_a_device_that_can_be_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="not on mps"), joined("mps"):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("parallel", get_args(Parallel))
@pytest.mark.parametrize(
    "changes",
    [{"packing": "documents", "block_size": 160}, {"prompt_end": " make", "prompt_weight": 0.25}],
    ids=lambda changes: next(iter(changes)),
)
def test_ranks_and_micro_batches_of_unequal_targets_are_one_batch(
    data: Path, tmp_path: Path, changes: dict[str, Any], parallel: str
) -> None:
    """Every micro-batch of every rank has another count of targets. SGD without clipping: what is compared after a step
    are gradients. Losses within 1e-5, weights and norms within 1e-4."""
    changes = {**changes, "optimizer": "sgd", "lr": 0.1, "grad_clip": 0.0, "max_steps": 4, "eval_every_steps": 0}
    one = train(tiny_config(data, tmp_path / "one", micro_batch_size=8, **changes))
    config = tiny_config(data, tmp_path / "many", micro_batch_size=1, parallel=parallel, **changes)
    batches, _ = training_batches(config, open_shards(data), one.tokenizer)
    held = batches if "packing" in changes else PromptWeights(batches, one.tokenizer, " make", 0.25)
    counts = [held.batch(0, rank, 2).n_targets for rank in range(2)]
    assert counts[0] != counts[1]
    on_ranks(2, lambda rank: train(config), tmp_path)
    assert losses(tmp_path / "many") == pytest.approx(one.losses, abs=1e-5)
    assert losses(tmp_path / "many", "grad_norm") == pytest.approx(losses(one.run, "grad_norm"), abs=1e-4)
    for a, b in zip(GPT.from_pretrained(tmp_path / "many").parameters(), one.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
