"""The planner: closed forms, a card's table, and that what it predicts is what torch then allocates."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minilm import cli, runtime
from minilm.config import GPTConfig, TrainConfig
from minilm.errors import UsageError
from minilm.evaluation.cost import peak_allocated
from minilm.lab import plan
from minilm.lab.places import Places
from minilm.model.gpt import GPT
from minilm.plan_cli import Row, choose
from minilm.training.optim import build_optimizers

MODEL = GPTConfig(n_layer=3, n_head=2, n_embd=64, block_size=64, vocab_size=500)
RUN = TrainConfig(model=MODEL, batch_size=8, micro_batch_size=8, precision="fp32", max_steps=100, lr=1e-3)


@pytest.fixture(autouse=True)
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "peak_flops", lambda *_: 1e11)


def test_a_cards_seconds_follow_from_its_data_sheet() -> None:
    machine = plan.card("h100")
    told = plan.forecast(RUN, machine)
    flops = GPT(MODEL).flops_per_token(64) * 8 * 64
    assert told.step_seconds == pytest.approx(flops / (plan.CARD_SHARE * 989e12))
    assert machine.memory == 80e9
    validated = (100_000 / (8 * 64)) * (1 + 100 // 250) / 3
    assert told.seconds == pytest.approx((100 + validated) * told.step_seconds)
    frozen = plan.forecast(replace(RUN, train_only=("*bias",)), machine)
    assert 2 / 3 < frozen.step_seconds / told.step_seconds < 0.68  # weights' gradients are a third of a step
    with pytest.raises(UsageError, match="it has B200"):
        plan.card("H1000")


def test_a_card_is_filled_as_a_run_would_fill_it() -> None:
    machine = replace(plan.card("h100"), memory=2e8)
    told = plan.forecast(replace(RUN, batch_size=512, micro_batch_size=0), machine)
    assert 0.4 * machine.memory < told.tensors < machine.memory
    assert plan.forecast(replace(RUN, batch_size=512, micro_batch_size=512), machine).tensors > 3 * machine.memory


@pytest.mark.parametrize("change", [{}, {"optimizer": "lion"}, {"vocab_size": 20_000}, {"recompute": True}])
def test_tensors_take_what_is_predicted(change: dict[str, object]) -> None:
    """Torch's allocator, over a whole step, against shapes: within the 10 % that the planner is held to."""
    vocab_size = change.pop("vocab_size", 500)
    assert isinstance(vocab_size, int)
    config = replace(RUN, model=replace(MODEL, vocab_size=vocab_size), **change)  # type: ignore[arg-type]
    torch.manual_seed(0)
    model = GPT(config.model)
    (optimizer,) = build_optimizers(model, config)
    ids = torch.randint(0, vocab_size, (8, 64))

    def step() -> None:
        from functools import partial

        from torch.utils.checkpoint import checkpoint

        blocks = [partial(checkpoint, block, use_reentrant=False) for block in model.h] if config.recompute else None
        model.loss(ids, ids, reduction="sum", blocks=blocks).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    step()
    held = 2 * sum(p.numel() * 4 for p in model.parameters())
    held += sum(t.numel() * 4 for state in optimizer.state.values() for t in state.values() if torch.is_tensor(t))
    most = peak_allocated(step)
    told, _ = plan.tensor_bytes(model, config, "fp32", 8, card=False)
    assert told == pytest.approx(held + most, rel=0.1)


def test_blocks_that_are_not_timed_are_as_long_as_the_second() -> None:
    """A clock that counts what has been multiplied stands for seconds: the forecast is linear in layers."""
    from torch.utils.flop_counter import FlopCounterMode

    machine = plan.Machine("here", "cpu", 1e12)
    with FlopCounterMode(display=False) as counter:

        def clock() -> float:
            return float(counter.get_total_flops())

        few, many = (
            plan.forecast(replace(RUN, model=replace(MODEL, n_layer=n)), machine, rows=2, turns=1, clock=clock)
            for n in (3, 7)
        )
        half = plan.forecast(RUN, machine, rows=2, turns=1, context=32, clock=clock)
    assert half.step_seconds == pytest.approx(few.step_seconds, rel=0.05)  # attention aside FLOPs go with tokens
    with FlopCounterMode(display=False) as counter:
        model = GPT(replace(MODEL, n_layer=7))
        ids = torch.randint(0, 500, (8, 64))
        model.loss(ids, ids).backward()
    assert many.step_seconds == pytest.approx(counter.get_total_flops(), rel=1e-6)
    assert many.step_seconds > few.step_seconds


def test_per_rank_bytes_on_paper() -> None:
    model = {"weights": 4.0, "gradients": 4.0, "optimizer": 8.0, "activations": 2.0, "block": 0.5}
    assert plan.per_rank(model, 4, sharded=False) == {"held": 18.0, "sent": 6.0}
    assert plan.per_rank(model, 4, sharded=True) == {"held": 6.5, "sent": 9.0}
    assert plan.per_rank(model, 1, sharded=True) == {"held": 18.5, "sent": 0.0}


def test_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    assert plan.warning(RUN, "cpu") == ""
    assert "takes about" in plan.warning(replace(RUN, max_steps=10**9), "cpu")
    monkeypatch.setattr(runtime, "free_bytes", lambda device: 1_000_000)
    assert "are free" in plan.warning(RUN, "cpu")


def test_what_is_expected_follows_the_labs_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A law through five texts is told with its interval between them, and refused beyond; so are results of few."""
    from minilm.lab import cells
    from minilm.lab.cells import paired, sweep
    from minilm.lab.questions import load_question

    monkeypatch.setattr(cells, "fingerprint", lambda options: "that of the text")
    places, question = Places(tmp_path), load_question("data_size")
    assert "no fit here yet" in plan.expected(1e6, places)
    scale = question.scale("laptop")
    for arm in question.arms(scale):
        swept = sweep(question, scale, arm)
        for cell in [*swept, *paired(question, scale, arm, 1e-2)]:
            loss = (
                0.8 + 100.0 * arm.x**-0.4 + abs(cell.config.lr - 1e-2) + (cell.seed - 2) / 100 * (cell.kind == "paired")
            )
            metrics = {"val_loss": loss, "before": math.log10(arm.x) * 10 + cell.seed}
            line = {"scale": "laptop", "kind": cell.kind, "metrics": metrics, "settings": cell.settings}
            places.append("data_size", line | {"commit": "", "versions": {"processor": ""}, "date": "", "seconds": 1.0})
    told = plan.expected(1e6, places)
    half = 2.776445 * math.sqrt(2.5 / 5)  # Student's, of seeds 0 to 4: more than the fit leaves
    assert f"loss {0.8 + 100.0 * 1e6**-0.4:.3f} ± {half / 100:.3f} nats" in told
    assert f"before the first broken rule {62:.0f} ± {half:.0f} % (95 %)" in told
    assert "0.2 to 6 MB of tales" in plan.expected(1e4, places)
    assert "no law is true far from them" in plan.expected(1e10, places)


def test_a_part_is_told_beside_everything(tmp_path: Path) -> None:
    from minilm.lab.cells import paired, sweep
    from minilm.lab.questions import load_question

    places, question = Places(tmp_path), load_question("freeze")
    assert plan.beside_everything(1e6, places) == ("", {})
    scale = question.scale("laptop")
    for arm in question.arms(scale):
        for cell in [*sweep(question, scale, arm), *paired(question, scale, arm, arm.rates[2])]:
            loss = len(arm.name) / 100 + abs(math.log(cell.config.lr / arm.rates[2])) + cell.seed / 1000 * len(arm.name)
            line = {"scale": "laptop", "kind": cell.kind, "metrics": {"val_loss": loss}, "settings": cell.settings}
            places.append("freeze", line | {"commit": "", "versions": {"processor": ""}, "date": "", "seconds": 1.0})
    for n_bytes, amount in ((1e3, "0.02 MB"), (9e4, "0.02 MB"), (2e5, "0.5 MB"), (1e9, "0.5 MB")):
        told, effects = plan.beside_everything(n_bytes, places)
        assert told == amount
        assert {name: round(effect.mean, 6) for name, effect in effects.items()} == {
            "lora": round((7 - 10) * 0.011, 6),
            "biases": round((6 - 10) * 0.011, 6),
            "norms": round((5 - 10) * 0.011, 6),
        }


def test_what_is_taken() -> None:
    machine = plan.card("4090")

    def row(command: str, reason: str = "", cut: bool = False) -> Row:
        return Row(command, plan.forecast(RUN, machine), "", reason, cut)

    rows = [row("--config tiny"), row("--config small"), row("--config finetune"), row("--config lora")]
    rows += [row("--config finetune --init gpt2-xl", "does not fit"), row("--config lora --init gpt2-xl")]
    assert (best := choose(rows, 0.0))
    assert best.command == "--config small"
    assert (best := choose(rows, 1e6))
    assert best.command == "--config finetune"
    assert (best := choose([*rows, row("--config finetune --init gpt2-medium", cut=True)], 2e4))
    assert best.command == "--config finetune"
    assert (
        best := choose([row("--config finetune", cut=True), row("--config finetune --init gpt2-xl", cut=True)], 2e4)
    )
    assert best.command == "--config finetune"
    assert choose([row("--config tiny", "takes too long")], 0.0) is None
    fits = [row("--config finetune", "takes too long"), row("--config lora"), row("--config norms --init gpt2-xl")]
    assert (best := choose(fits, 1e6))
    assert best.command == "--config lora"


def test_door(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from minilm import plan_cli
    from minilm.lab import cells

    monkeypatch.setattr(cells, "fingerprint", lambda options: "that of the text")
    monkeypatch.setattr(plan_cli, "SCRATCH", ("tiny",))  # each size takes a second
    monkeypatch.setattr(plan_cli, "PRETRAINED", ("gpt2",))
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_bytes(b"x" * 5_000_000)
    words = [
        "--card=4090",
        f"--text={tmp_path / 'text'}",
        f"--folder={tmp_path}",
        "--dollars_per_hour=0.5",
        "--dollars=5",
    ]
    assert cli.run_door("plan", words) == 0
    out = capsys.readouterr().out
    assert "4090, 24.0 GB; 5 MB of text, some 1,162,791 tokens; at most 10 h" in out
    assert out.count("s a step") == 1 + 4
    assert "does not fit" not in out
    assert f"take: python train.py --config finetune --data {tmp_path / 'text'} --max_steps " in out
    assert cli.run_door("plan", [*words, "--dollars=50"]) == 0
    assert "; at most 100 h" in capsys.readouterr().out  # not the day that is meant without a budget
    (tmp_path / "empty.txt").touch()
    for wrong in ("--megabytes=nan", "--megabytes=-1", "--megabytes=1e300", "--hours=nan", "--hours=0"):
        assert cli.run_door("plan", ["--card=4090", wrong]) == 2
    assert cli.run_door("plan", ["--card=4090", f"--text={tmp_path / 'empty.txt'}"]) == 2
    assert "is empty" in capsys.readouterr().err
    assert cli.run_door("plan", ["--card=4090", "--megabytes=0.01", f"--folder={tmp_path}"]) == 0
    assert "take: python train.py --config finetune --data YOURS --max_steps 60" in capsys.readouterr().out
    (tmp_path / "text" / "picture.png").write_bytes(b"\x89PNG" * 1000)
    (tmp_path / "text" / ".hidden").write_bytes(b"x" * 1000)
    assert plan_cli.size_of(str(tmp_path / "text")) == 5_000_000  # what training would read
    assert cli.run_door("plan", ["--card=4090", "--megabytes=5", f"--text={tmp_path / 'text'}"]) == 2
    assert "leave out --megabytes" in capsys.readouterr().err
    assert cli.run_door("plan", ["--dollars=5"]) == 2
    assert cli.run_door("plan", ["--text=/not/there"]) == 2
    assert plan.this_machine("cpu").memory > 1e6
