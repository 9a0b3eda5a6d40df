"""The training loop.

- A step is a pure function of (config, step, weights, optimizer state): batches, rates and dropout come from the step
  number, so that resuming needs no replay and loses no bit.
- A step's loss is summed over its micro-batches and divided by the step's count of targets, however they are cut.
- An interrupt between micro-batches discards the unfinished step and saves the last whole one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minilm import runtime
from minilm.config import TrainConfig
from minilm.errors import MinilmError, UsageError
from minilm.log import Metrics, say
from minilm.model.gpt import GPT
from minilm.model.hub import step_folders
from minilm.text.batches import IGNORE, Batch, Batches, eval_batches
from minilm.text.mixture import open_data
from minilm.text.shards import Split
from minilm.text.tokenizer import Tokenizer
from minilm.training.checkpoint import load_checkpoint, save_checkpoint
from minilm.training.feed import training_batches, with_budget
from minilm.training.finetune import Unfreezing, report, write_start
from minilm.training.optim import build_optimizers, set_rates
from minilm.training.progress import Bar, Clock, Interrupt, progress_text
from minilm.training.schedules import lr_factor
from minilm.training.setup import (
    LossFunction,
    Setup,
    build_model,
    check_run,
    loss_function,
    open_run,
    read_setup,
    settle,
)


@dataclass(frozen=True)
class Result:
    """What a run came to."""

    run: Path
    checkpoint: Path  # the last one saved
    step: int  # optimizer steps done, over all resumptions
    losses: list[float]  # of each step of this call, nats per token
    val_loss: float | None  # the last one measured, nats per token
    tokens: int  # trained on, over all resumptions
    seconds: float  # wall, over all resumptions
    interrupted: bool
    model: GPT
    tokenizer: Tokenizer


@dataclass
class _Run:
    """Everything that a step needs."""

    config: TrainConfig
    setup: Setup
    folder: Path
    model: GPT
    tokenizer: Tokenizer
    batches: Batches
    val: Split
    optimizers: list[torch.optim.Optimizer]
    state: dict[str, Any]  # of the last whole step: what state.json holds

    def save(self) -> Path:
        return save_checkpoint(
            self.folder, self.model, self.tokenizer, self.optimizers, self.state, self.config.keep_checkpoints
        )


def train(config: TrainConfig) -> Result:
    """Trains `config.model` on the prepared folder `config.data` and returns what came of it.

    Raises UsageError on a folder that is not prepared, a run that already exists, a config that does not fit the data
    or the checkpoint, or when a run with `init` ends with nothing moved; MinilmError when the loss is no longer finite
    or the disk is full.
    """
    device = runtime.pick_device(config.device)
    shards = open_data(config.data, config.mix_temperature)
    tokenizer = shards.tokenizer()
    folder = Path(config.out_dir or f"runs/{Path(config.data).name}")
    config = replace(config, out_dir=str(folder))
    check_run(folder, config.existing)
    model, config = build_model(config, tokenizer, device)
    config = with_budget(config, shards)
    resuming = config.existing == "resume"
    setup = read_setup(folder) if resuming else settle(config, model, device)
    if setup.device_type != device.type:
        raise UsageError(
            f"{folder} began on {setup.device_type}, this is {device.type}: start anew with --init {folder}"
        )
    batches = training_batches(config, shards, tokenizer)
    if not resuming:
        open_run(config, setup)
    optimizers = build_optimizers(model, config)
    state: dict[str, Any] = {"step": 0, "tokens": 0, "seconds": 0.0, "val_loss": None}
    if resuming:
        state = load_checkpoint(step_folders(folder)[-1], model, optimizers)
    run = _Run(config, setup, folder, model, tokenizer, batches, shards.splits["val"], optimizers, state)
    _announce(run, shards.splits["train"].n_tokens)
    return _steps(run)


def _steps(run: _Run) -> Result:
    config, setup, model, first = run.config, run.setup, run.model, run.state["step"]
    tokens_per_step = config.batch_size * config.model.block_size
    flops = model.flops_per_token(config.model.block_size)
    loss_of = loss_function(model, setup)
    metrics = Metrics(run.folder / "metrics.jsonl", keep_until_step=first)
    clock, losses, val_loss = Clock(run.state["seconds"]), [], run.state["val_loss"]
    saved = step_folders(run.folder)[-1] if first else None
    unfreezing = Unfreezing(model, config.unfreeze_every_steps)
    if config.init and not first:
        write_start(model, run.folder)
        metrics.write(step=0, val_loss=evaluate(model, setup, run.val, config.eval_tokens))
    with Interrupt() as interrupt, Bar(config.max_steps, first) as bar:
        for step in range(first, config.max_steps):
            runtime.set_step_seed(config.seed, step)
            unfreezing.begin_step(step)
            factor = lr_factor(step, config)
            set_rates(run.optimizers, factor)
            stepped = train_step(run, run.batches.batch(step), loss_of, interrupt, bar)
            if stepped is None:
                break
            losses.append(stepped[0])
            clock.step_ended()
            done = step + 1
            last = done == config.max_steps
            run.state = {"step": done, "tokens": done * tokens_per_step, "seconds": clock.seconds(), "val_loss": None}
            logging = last or done % config.log_every_steps == 0
            validating = last or (config.eval_every_steps > 0 and done % config.eval_every_steps == 0)
            saving = last or (config.save_every_steps > 0 and done % config.save_every_steps == 0)
            showing = validating or bar.due()
            if logging or showing or saving or done == first + 1:
                loss, norm = losses[-1].item(), stepped[1].item()
                if not math.isfinite(loss + norm):
                    raise MinilmError(_diverged(run, loss, norm, done))
                speed = tokens_per_step / pace if (pace := clock.step_seconds()) else 0.0
            if logging:
                values = {"loss": loss, "grad_norm": norm, "lr": config.lr * factor, "tokens_per_second": speed}
                metrics.write(**{k: v for k, v in run.state.items() if k != "val_loss"}, **values)
            if validating:
                with clock.apart("eval"):
                    val_loss = evaluate(model, setup, run.val, config.eval_tokens)
                run.state["val_loss"] = val_loss
                metrics.write(step=done, val_loss=val_loss)
            if saving:
                with clock.apart("save"):
                    saved = run.save()
            if showing:
                mfu = speed * flops / setup.peak_flops
                text = progress_text(loss, val_loss, speed, mfu, clock.eta(config, done))
                bar.show(done, text, as_line=validating)
            if interrupt.heard:
                break
    if saved is None or run.state["step"] != int(saved.name.removeprefix("step_")):
        saved = run.save()
    if config.init and run.state["step"] == config.max_steps:
        say(report(model, run.folder))
    return Result(
        run=run.folder,
        checkpoint=saved,
        step=run.state["step"],
        losses=torch.stack(losses).tolist() if losses else [],
        val_loss=val_loss,
        tokens=run.state["tokens"],
        seconds=run.state["seconds"],
        interrupted=interrupt.heard and run.state["step"] < config.max_steps,
        model=model,
        tokenizer=run.tokenizer,
    )


def train_step(
    run: _Run, batch: Batch, loss_of: LossFunction, interrupt: Interrupt, bar: Bar
) -> tuple[Tensor, Tensor] | None:
    """One optimizer step: (loss in nats per target, gradient norm before clipping), or None when interrupted."""
    n_targets = int((batch.targets != IGNORE).sum())
    total = torch.zeros((), device=run.model.device)
    size = run.setup.micro_batch_size
    n_micro = -(-len(batch.ids) // size)
    for i in range(n_micro):
        rows = slice(i * size, (i + 1) * size)
        ids, targets = _to(batch.ids[rows], run.model.device), _to(batch.targets[rows], run.model.device)
        loss = loss_of(ids, targets) / n_targets
        loss.backward()
        total += loss.detach()
        bar.micro(i + 1, n_micro)
        if interrupt.heard and i + 1 < n_micro:
            run.model.zero_grad(set_to_none=True)
            return None
    norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), run.config.grad_clip or math.inf)
    for optimizer in run.optimizers:
        optimizer.step()
    run.model.zero_grad(set_to_none=True)
    return total, norm


@torch.no_grad()
def evaluate(model: GPT, setup: Setup, split: Split, max_tokens: int) -> float:
    """Nats per token over the split's first max_tokens: summed over tokens, so the batch size changes nothing."""
    model.eval()
    total, count = 0.0, 0
    size = setup.micro_batch_size
    for batch in eval_batches(split, block_size=model.config.block_size, batch_size=size, max_tokens=max_tokens):
        with torch.autocast(setup.device_type, dtype=torch.bfloat16, enabled=setup.precision == "bf16"):
            loss = model.loss(_to(batch.ids, model.device), _to(batch.targets, model.device), reduction="sum")
        total += loss.item()
        count += int((batch.targets != IGNORE).sum())
    model.train()
    return total / count


def _to(array: np.ndarray, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _announce(run: _Run, train_tokens: int) -> None:
    config, setup = run.config, run.setup
    tokens_per_step = config.batch_size * config.model.block_size
    epochs = config.max_steps * tokens_per_step / train_tokens
    n_micro = -(-config.batch_size // setup.micro_batch_size)
    how = "compiled (the first step takes longer)" if setup.compile else "eager"
    say(
        f"{run.model.num_params():,} parameters on {setup.device_type}, {setup.precision}, {how}; "
        f"{config.optimizer}, lr {config.lr:g}"
    )
    say(
        f"{tokens_per_step:,} tokens a step ({n_micro} x {setup.micro_batch_size} sequences of "
        f"{config.model.block_size}), {config.max_steps:,} steps, {epochs:.2f} epochs of {train_tokens:,} tokens"
    )
    if run.state["step"]:
        say(f"resuming {run.folder} after step {run.state['step']}")


def _diverged(run: _Run, loss: float, norm: float, step: int) -> str:
    folders = step_folders(run.folder)
    kept = f"{folders[-1]} is whole: start from it with --init {folders[-1]}" if folders else "start again"
    return f"step {step} ended with loss {loss} and gradient norm {norm}; {kept} and a lower --lr or a longer warmup"
