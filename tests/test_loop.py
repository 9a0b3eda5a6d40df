"""The loop: golden trace, exact resume, accumulation, interrupts, faults."""

from __future__ import annotations

import errno
import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_helpers import prepared, tiny_config

from minilm import runtime
from minilm.config import GPTConfig
from minilm.errors import MinilmError, UsageError
from minilm.log import read_metrics
from minilm.model.gpt import GPT
from minilm.model.hub import step_folder, step_folders
from minilm.options import build, read_preset
from minilm.text.batches import IGNORE, Batch
from minilm.text.shards import open_shards
from minilm.training import checkpoint, loop
from minilm.training.distributed import Ranks
from minilm.training.guard import Guard
from minilm.training.loop import evaluate, train
from minilm.training.parallel import Replicated
from minilm.training.precision import Precision
from minilm.training.setup import Setup

# Ten losses of tiny_config (fp32, eager, CPU, torch 2.13). A change in numerics shows here; tolerance 2e-3 covers other
# processors' summation orders.
GOLDEN = [5.5057, 5.2373, 4.9951, 4.5357, 4.1346, 3.7658, 3.4990, 3.3690, 3.2694, 3.2320]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("data") / "sums")


def tensors(run: Path, step: int) -> dict[str, Any]:
    folder = run / f"step_{step:06d}"
    model = GPT.from_pretrained(folder)
    state = torch.load(folder / "train_state.pt", weights_only=True)
    flat = {f"{name}/{key}": value for name, values in state.items() for key, value in values.items()}
    return {**model.state_dict(), **flat}


def assert_bit_equal(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a.keys() == b.keys()
    assert len(a) > 20
    for name, value in a.items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(b[name])), name


def test_golden_trace(data: Path, tmp_path: Path) -> None:
    result = train(tiny_config(data, tmp_path / "run"))
    assert result.losses == pytest.approx(GOLDEN, abs=2e-3)


def test_loss_of_first_step_is_that_of_a_uniform_guess(data: Path, tmp_path: Path) -> None:
    result = train(tiny_config(data, tmp_path / "run", max_steps=1))
    assert result.losses[0] == pytest.approx(np.log(257), abs=0.1)


@pytest.mark.parametrize("changes", [{}, {"optimizer": "muon"}, {"resid_dropout": 0.2, "attn_dropout": 0.1}])
def test_resume_is_bit_exact(data: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    """10 + 10 steps equal 20, across the border of an epoch, micro-batches and dropout included."""
    config = tiny_config(data, tmp_path / "whole", max_steps=20, micro_batch_size=4, keep_checkpoints=9, **changes)
    n_train = open_shards(data).splits["train"].n_tokens
    assert n_train < 20 * config.batch_size * config.model.block_size
    whole = train(config)

    class Stop(Exception):
        pass

    def stop_after_ten(*args: Any, **kwargs: Any) -> Any:
        saved = checkpoint.save_checkpoint(*args, **kwargs)
        if saved.name == "step_000010":
            raise Stop
        return saved

    broken = replace(config, out_dir=str(tmp_path / "broken"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", stop_after_ten)
        with pytest.raises(Stop):
            train(broken)
    resumed = train(replace(broken, existing="resume"))
    assert resumed.step == 20
    assert resumed.losses == whole.losses[10:]
    assert_bit_equal(tensors(tmp_path / "whole", 20), tensors(tmp_path / "broken", 20))
    rows = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "broken")]
    kept = [[(r["step"], r.get("loss"), r.get("val_loss")) for r in row] for row in rows]
    assert kept[0] == kept[1]


def test_metrics_of_unsaved_steps_are_dropped_on_resume(data: Path, tmp_path: Path) -> None:
    config = tiny_config(data, tmp_path / "run", max_steps=7)
    train(config)
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_text(path.read_text() + json.dumps({"step": 9, "loss": 0.0}) + "\n" + '{"step": 10, "lo')
    train(replace(config, max_steps=12, existing="resume"))
    steps = [row["step"] for row in read_metrics(path) if "loss" in row]
    assert steps == list(range(1, 13))


def test_micro_batches_change_nothing(data: Path, tmp_path: Path) -> None:
    one = train(tiny_config(data, tmp_path / "one", micro_batch_size=8))
    many = train(tiny_config(data, tmp_path / "many", micro_batch_size=1))
    assert many.losses == pytest.approx(one.losses, abs=2e-4)


def test_gradient_of_unequal_micro_batches_is_that_of_one_batch(data: Path, tmp_path: Path) -> None:
    """Targets are scored unevenly: the mean is over all of the step's targets, not over micro-batches."""
    result = train(tiny_config(data, tmp_path / "run", max_steps=1))
    model = result.model
    generator = np.random.default_rng(0)
    ids = generator.integers(0, 256, (4, 32))
    targets = generator.integers(0, 256, (4, 32))
    targets[0, 1:] = IGNORE
    targets[1, 9:] = IGNORE
    batch = Batch(ids, targets)
    model.zero_grad()
    model.loss(torch.from_numpy(ids), torch.from_numpy(targets)).backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    class Kept(torch.optim.SGD):
        seen: dict[str, torch.Tensor]

        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            self.seen = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    optimizer = Kept(model.parameters(), lr=0.0)
    config = tiny_config(data, tmp_path / "run", grad_clip=0.0)
    setup = Setup("cpu", "fp32", False, 1, 1.0)
    cpu = torch.device("cpu")
    aside: dict[str, Any] = {"precision": Precision("fp32", "nearest", cpu), "guard": Guard(config, cpu)}
    aside |= {"ranks": Ranks(), "parallel": Replicated(model)}
    fields: dict[str, Any] = dict.fromkeys(("folder", "tokenizer", "batches", "shards", "watch"))
    fields |= {"config": config, "setup": setup, "model": model, "optimizers": [optimizer], "state": {"step": 0}}
    run = loop._Run(**aside, **fields)

    def loss_of(i: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return model.loss(i, t, reduction="sum")

    loop.train_step(run, batch, loss_of, loop.Interrupt(), loop.Bar(1, 0))
    for name, gradient in expected.items():
        torch.testing.assert_close(optimizer.seen[name], gradient, rtol=1e-4, atol=1e-6)


def test_validation_does_not_depend_on_batch_size(data: Path, tmp_path: Path) -> None:
    result = train(tiny_config(data, tmp_path / "run", max_steps=2))
    val = open_shards(data).splits["val"]
    losses = [evaluate(result.model, Setup("cpu", "fp32", False, n, 1.0), val, 333) for n in (1, 3, 8)]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)
    tokens = torch.from_numpy(val.read(0, 334))
    with torch.no_grad():  # window by window, as a plain mean over all targets
        logits = torch.cat([result.model(tokens[i : min(i + 32, 333)][None])[0] for i in range(0, 333, 32)])
        expected = torch.nn.functional.cross_entropy(logits.double(), tokens[1:])
    assert losses[0] == pytest.approx(expected.item(), rel=1e-5)


def test_interrupt_discards_the_unfinished_step(data: Path, tmp_path: Path) -> None:
    """Ctrl-C inside accumulation: the last whole step is saved, and resuming gives the uninterrupted run."""
    config = tiny_config(data, tmp_path / "whole", micro_batch_size=2, max_steps=8)
    whole = train(config)
    calls = 0
    before = loop.Bar.micro

    def micro(self: loop.Bar, done: int, n_micro: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 4 * 6 + 2:  # the second of four micro-batches in the seventh step
            os.kill(os.getpid(), signal.SIGINT)
        before(self, done, n_micro)

    broken = replace(config, out_dir=str(tmp_path / "broken"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Bar, "micro", micro)
        stopped = train(broken)
    assert stopped.interrupted
    assert stopped.step == 6
    assert stopped.checkpoint.name == "step_000006"
    resumed = train(replace(broken, existing="resume"))
    assert resumed.losses == whole.losses[6:]
    assert_bit_equal(tensors(tmp_path / "whole", 8), tensors(tmp_path / "broken", 8))


def test_an_existing_run_is_refused(data: Path, tmp_path: Path) -> None:
    config = tiny_config(data, tmp_path / "run", max_steps=2)
    train(config)
    with pytest.raises(UsageError, match="--resume"):
        train(config)
    assert train(replace(config, existing="overwrite", max_steps=3)).step == 3
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("precious")
    with pytest.raises(UsageError, match="another --out_dir"):
        train(replace(config, out_dir=str(tmp_path / "other"), existing="overwrite"))
    assert (tmp_path / "other" / "thesis.txt").read_text() == "precious"
    with pytest.raises(UsageError, match="without --resume"):
        train(replace(config, out_dir=str(tmp_path / "none"), existing="resume"))


def test_newest_and_best_checkpoints_are_kept(data: Path, tmp_path: Path) -> None:
    losses = iter([3.0, 1.0, 2.0, 2.5, 2.4, 2.3])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "evaluate", lambda *a: next(losses))
        train(tiny_config(data, tmp_path / "run", max_steps=6, eval_every_steps=1, save_every_steps=1))
    assert [p.name for p in step_folders(tmp_path / "run")] == ["step_000002", "step_000005", "step_000006"]
    best = step_folder(tmp_path / "run", "best")
    assert best is not None
    assert best.name == "step_000002"


def test_full_disk_leaves_the_last_checkpoint(data: Path, tmp_path: Path) -> None:
    whole_save = torch.save

    def full(obj: Any, path: Path, *args: Any) -> None:
        if "step_000010" in str(path):
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        whole_save(obj, path, *args)

    config = tiny_config(data, tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(MinilmError, match=r"disk is full; .*step_000005 is whole"):
            train(config)
    assert [p.name for p in (tmp_path / "run").glob("*step_*")] == ["step_000005"]
    assert train(replace(config, existing="resume")).step == 10


def test_divergence_is_told(data: Path, tmp_path: Path) -> None:
    with pytest.raises(MinilmError, match="lower --lr"):
        train(tiny_config(data, tmp_path / "run", lr=1e30, grad_clip=0.0, warmup_steps=0, weight_decay=0.0))


def test_a_checkpoint_of_another_model_is_refused(data: Path, tmp_path: Path) -> None:
    config = tiny_config(data, tmp_path / "run", max_steps=2)
    train(config)
    other = tiny_config(data, tmp_path / "run", max_steps=4, n_layer=1, existing="resume")
    with pytest.raises(UsageError, match="another model"):
        train(other)


@pytest.mark.parametrize("damage", ["truncated", "code", "missing"])
def test_damaged_train_state_is_refused(data: Path, tmp_path: Path, damage: str) -> None:
    config = tiny_config(data, tmp_path / "run", max_steps=2)
    path = train(config).checkpoint / "train_state.pt"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:1000])
    elif damage == "missing":
        path.unlink()
    else:
        torch.save({"hook": os.system}, path)
    with pytest.raises(UsageError, match="cannot be resumed from"):
        train(replace(config, max_steps=4, existing="resume"))


def test_small_tokenizer_in_a_large_vocabulary(data: Path, tmp_path: Path) -> None:
    result = train(tiny_config(data, tmp_path / "run", vocab_size=1000, max_steps=3))
    assert result.model.config.vocab_used == 257
    logits = result.model(torch.zeros(1, 4, dtype=torch.long))
    assert logits.shape == (1, 4, 1000)
    assert torch.isinf(logits[..., 257:]).all()
    assert result.losses[0] == pytest.approx(np.log(257), abs=0.1)
    assert GPT.from_pretrained(result.checkpoint).config == result.model.config
    with pytest.raises(UsageError, match="--vocab_size 257"):
        train(tiny_config(data, tmp_path / "few", vocab_size=100))


def test_init_takes_weights_and_config_of_a_run(data: Path, tmp_path: Path) -> None:
    first = train(tiny_config(data, tmp_path / "first", max_steps=5))
    config = replace(
        tiny_config(data, tmp_path / "second", max_steps=1, lr=1e-6), model=GPTConfig(), init=str(first.run)
    )
    second = train(config)
    assert second.model.config == first.model.config
    for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-6)
    assert second.losses[0] < 5.0  # not that of a fresh model


def test_a_run_says_what_made_it(data: Path, tmp_path: Path) -> None:
    config = tiny_config(data, tmp_path / "run", max_steps=2)
    result = train(config)
    record = json.loads((result.run / "run.json").read_text())
    assert record["setup"]["precision"] == "fp32"
    assert record["versions"]["torch"] == torch.__version__
    assert record["command"]
    again = build(read_preset(str(result.run / "config.toml")))
    assert again == replace(config, model=result.model.config)
    state = json.loads((result.checkpoint / "state.json").read_text())
    assert state["step"] == 2
    assert state["tokens"] == 2 * 8 * 32
    assert state["val_loss"] == result.val_loss


def test_eager_where_no_compiler_is_found(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runtime, "compiler_missing", lambda: "no C++ compiler was found (install g++ or clang)")
    result = train(tiny_config(data, tmp_path / "run", max_steps=2, compile="on"))
    assert result.step == 2
    assert "running eager: no C++ compiler" in capsys.readouterr().err
