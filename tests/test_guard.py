"""The guard and the watch: injected faults are skipped, rolled back from or told, with the module that broke named."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_helpers import prepared, tiny_config

from minilm.errors import MinilmError
from minilm.log import read_metrics
from minilm.model.gpt import GPT
from minilm.model.hub import step_folders
from minilm.text.shards import open_shards
from minilm.train_cli import best_of
from minilm.training import loop
from minilm.training.checkpoint import read_state
from minilm.training.guard import Guard, first_bad
from minilm.training.loop import train
from minilm.training.objective import Objective
from minilm.training.setup import Setup
from minilm.training.watch import Watch, unigram_entropy

SETUP = Setup("cpu", "fp32", False, 8, 1.0)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("data") / "sums")


@contextmanager
def spoiled(when: Callable[[int, float], float | None]) -> Iterator[None]:
    """train() whose loss is multiplied by when(call, learning rate) in the micro-batches that it names."""
    calls = 0
    before = loop.loss_function

    def loss_function(objective: Objective, setup: Setup, through: Any) -> Any:
        loss_of = before(objective, setup, through)

        def loss(ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            nonlocal calls
            calls += 1
            factor = when(calls, rate[0])
            return loss_of(ids, targets) * (1.0 if factor is None else factor)

        return loss

    rate = [0.0]
    set_rates = loop.set_rates

    def noting(optimizers: Any, factor: float) -> None:
        rate[0] = factor
        set_rates(optimizers, factor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "loss_function", loss_function)
        patch.setattr(loop, "set_rates", noting)
        yield


def at(*steps: int, factor: float = math.nan) -> Callable[[int, float], float | None]:
    return lambda call, rate: factor if call in steps else None


def test_a_bad_step_is_skipped_and_counted(data: Path, tmp_path: Path) -> None:
    config = tiny_config(data, tmp_path / "run", guard="skip", max_steps=8, schedule="constant", warmup_steps=0)
    with spoiled(at(3, 6)):
        result = train(config)
    assert [i + 1 for i, loss in enumerate(result.losses) if not np.isfinite(loss)] == [3, 6]
    assert all(p.isfinite().all() for p in result.model.parameters())
    rows = [row for row in read_metrics(result.run / "metrics.jsonl") if "trouble" in row]
    assert [(row["step"], row["trouble"]) for row in rows] == [(2, "loss is nan"), (5, "loss is nan")]
    assert read_state(result.checkpoint)["guard"]["skipped"] == 2


def test_steps_around_a_skipped_one_are_as_if_it_had_no_gradient(data: Path, tmp_path: Path) -> None:
    """With plain SGD: the weights after a skipped step are those before it."""
    config = tiny_config(data, tmp_path / "run", guard="skip", optimizer="sgd", max_steps=2, weight_decay=0.0)
    with spoiled(at(2)):
        skipped = train(config)
    one = train(replace(config, out_dir=str(tmp_path / "one"), max_steps=1))
    for a, b in zip(skipped.model.parameters(), one.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_too_many_skips_end_the_run(data: Path, tmp_path: Path) -> None:
    with spoiled(lambda call, rate: math.inf if call > 2 else None), pytest.raises(MinilmError, match="10 steps in a"):
        train(tiny_config(data, tmp_path / "run", guard="skip", max_steps=20))


def test_rollback_goes_back_and_lowers_the_rate(data: Path, tmp_path: Path) -> None:
    """The seventh step breaks at the full rate only: back to the checkpoint of step 5, then on at half the rate."""
    config = tiny_config(data, tmp_path / "run", guard="rollback", schedule="constant", warmup_steps=0)
    with spoiled(lambda call, rate: math.nan if call >= 7 and rate == 1.0 else None):
        result = train(config)
    assert result.step == 10
    assert len(result.losses) == 10
    assert np.isfinite(result.losses).all()
    rows = read_metrics(result.run / "metrics.jsonl")
    assert [row["lr"] for row in rows if "lr" in row] == [0.01] * 5 + [0.005] * 5
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 11))  # the sixth was run twice
    assert [row["step"] for row in rows if "val_loss" in row] == [5, 10]
    assert [row["step"] for row in rows if "trouble" in row] == [6]
    assert read_state(result.checkpoint)["guard"]["rollbacks"] == 1
    unspoiled = train(replace(config, out_dir=str(tmp_path / "other")))
    assert result.losses[:6] == unspoiled.losses[:6]  # steps 1 to 5, and the sixth, whose rate no longer matters to it
    assert result.losses[6] != unspoiled.losses[6]


def test_rollback_before_the_first_checkpoint_and_without_end(data: Path, tmp_path: Path) -> None:
    config = tiny_config(data, tmp_path / "run", guard="rollback", save_every_steps=0)
    with spoiled(lambda call, rate: math.nan if call > 1 else None), pytest.raises(MinilmError, match="8 rollbacks"):
        train(config)
    assert [p.name for p in step_folders(tmp_path / "run")] == ["step_000000"]


def test_a_stop_names_what_broke_and_keeps_weights_whole(data: Path, tmp_path: Path) -> None:
    with spoiled(at(7, factor=math.inf)), pytest.raises(MinilmError, match=r"step 7: loss is inf .*step_000005 is wh"):
        train(tiny_config(data, tmp_path / "run"))


def test_a_spike_is_told_from_noise(data: Path, tmp_path: Path) -> None:
    config = tiny_config(data, tmp_path / "run", guard="skip", guard_spike=12.0, max_steps=24, lr=1e-3)
    with spoiled(at(21, factor=30.0)):
        result = train(config)
    (row,) = [row for row in read_metrics(result.run / "metrics.jsonl") if "trouble" in row]
    assert row["step"] == 20
    assert "spreads above" in row["trouble"]
    assert row["where"].startswith("largest gradient: ")


def test_spread_is_the_robust_one() -> None:
    guard = Guard(replace(tiny_config(Path("x"), Path("y")), guard_spike=5.0), CPU)
    generator = np.random.default_rng(0)
    for value in generator.normal(3.0, 0.1, 64):
        assert guard.trouble(torch.tensor(value), torch.tensor(1.0)) is None
    assert guard.trouble(torch.tensor(3.3), torch.tensor(1.0)) is None  # three standard deviations
    assert guard.trouble(torch.tensor(3.8), torch.tensor(1.0)) is not None  # eight
    assert guard.trouble(torch.tensor(3.0), torch.tensor(1.2)) is not None
    other = Guard(replace(tiny_config(Path("x"), Path("y")), guard_spike=5.0), CPU)
    other.load_state(guard.state())
    assert other.state() == guard.state()


@pytest.mark.parametrize(("module", "what", "named"), [
    ("h.1.mlp.c_fc", "output", "output of h.1.mlp.c_fc"),
    ("h.0.attn.c_proj", "gradient", "gradient of h.0.attn.c_proj.bias"),
    ("h.1.ln_2", "weights", "weights of h.1.ln_2.weight"),
])  # fmt: skip
def test_the_first_bad_module_is_named(module: str, what: str, named: str) -> None:
    torch.manual_seed(0)
    config = replace(tiny_config(Path("x"), Path("y")).model, vocab_size=50)
    model = GPT(config)
    broken = model.get_submodule(module)
    if what == "weights":
        model.get_parameter(f"{module}.weight").data[0] = math.nan
    elif what == "output":
        broken.register_forward_hook(lambda m, a, out: out * math.inf)
    else:
        model.get_parameter(f"{module}.bias").register_hook(lambda g: g * math.nan)
    ids = torch.arange(16).view(2, 8)
    assert first_bad(model, SETUP, [(ids, ids)]) == named


# --- validations


def watch(**changes: Any) -> Watch:
    return Watch(replace(tiny_config(Path("x"), Path("y"), max_steps=100, warmup_steps=5), **changes), lambda: 3.0)


def test_early_stopping_keeps_the_best(data: Path, tmp_path: Path) -> None:
    losses = iter([3.0, 2.0, 2.5, 2.4, 2.3, 2.2, 2.1])
    config = tiny_config(data, tmp_path / "run", patience=3, eval_every_steps=2, save_every_steps=0, max_steps=100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "evaluate", lambda *a: next(losses))
        result = train(config)
    assert result.step == 10
    assert not result.interrupted
    assert result.best == (2.0, 4)
    assert [p.name for p in step_folders(result.run)] == ["step_000004", "step_000010"]
    assert best_of(result) == result.run / "step_000004"
    assert best_of(replace(result, best=(2.0, 10))) == best_of(replace(result, best=(1.0, 7))) == result.run


def test_patience_survives_a_resume(data: Path, tmp_path: Path) -> None:
    losses = [3.0, 2.0, 2.5, 2.4, 2.3]
    config = tiny_config(data, tmp_path / "run", patience=3, eval_every_steps=2, save_every_steps=2, max_steps=6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "evaluate", lambda *a: losses.pop(0))
        train(config)
        result = train(replace(config, max_steps=100, existing="resume"))
    assert (result.step, result.best) == (10, (2.0, 4))


def test_target_is_logged_once(capsys: pytest.CaptureFixture[str]) -> None:
    w = watch(target_loss=2.0)
    said = [w.validated(step, loss, 2.0) for step, loss in ((10, 2.5), (20, 1.9), (30, 1.8))]
    assert said[0] == said[2] == {}
    assert said[1] == {"steps_to_target": 20, "tokens_to_target": 20 * 8 * 32, "target_loss": 2.0}
    assert capsys.readouterr().err.count("target 2 reached after 20 steps") == 1


def test_warning_when_nothing_is_learnt(capsys: pytest.CaptureFixture[str]) -> None:
    w = watch()
    w.validated(5, 3.5, 3.5)
    assert not capsys.readouterr().err  # too early to tell
    w.validated(10, 3.1, 3.1)
    w.validated(20, 3.1, 3.1)
    assert capsys.readouterr().err.count("nothing is being learnt") == 1
    good = watch()
    good.validated(10, 2.9, 2.9)
    assert not capsys.readouterr().err
    tuned = watch()
    tuned.validated(0, 2.5, math.inf)
    tuned.validated(10, 2.5, 2.5)
    assert "at the start it was 2.5" in capsys.readouterr().err


def test_warning_when_validation_turns_up(capsys: pytest.CaptureFixture[str]) -> None:
    w = watch()
    for step, val, train_loss in ((10, 2.0, 2.0), (20, 2.1, 1.8), (30, 2.2, 1.6), (40, 2.3, 1.4)):
        w.validated(step, val, train_loss)
    error = capsys.readouterr().err
    assert error.count("validation turned up: 2.0000 at step 10 was the best") == 1
    noisy = watch()
    for step, val, train_loss in ((10, 2.0, 2.0), (20, 2.1, 2.1), (30, 2.2, 2.2)):
        noisy.validated(step, val, train_loss)
    assert not capsys.readouterr().err  # training loss rises too: this is no learning by heart
    other = watch()
    other.load_state(w.state())
    assert other.state() == w.state()


def test_unigram_entropy(data: Path) -> None:
    split = open_shards(data).splits["train"]
    tokens = split.read(0, split.n_tokens).tolist()
    expected = -sum(math.log(tokens.count(t) / len(tokens)) for t in tokens) / len(tokens)
    assert unigram_entropy(split) == pytest.approx(expected)
