"""The training loop.

- A step is a pure function of (config, step, weights, optimizer state): batches, rates and dropout come from the step
  number, so that resuming needs no replay and loses no bit.
- A step's loss is summed over its micro-batches and divided by the step's count of targets, however they are cut.
- An interrupt between micro-batches discards the unfinished step and saves the last whole one.
- Beside the loop stand the guard (bad steps), the watch (validations), the precision and the ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minilm import runtime
from minilm.config import TrainConfig
from minilm.errors import MinilmError
from minilm.log import Metrics, say
from minilm.model.gpt import GPT
from minilm.model.hub import step_folders
from minilm.text.batches import Batch, Batches
from minilm.text.mixture import open_data
from minilm.text.prompts import PromptWeights
from minilm.text.shards import ShardFolder
from minilm.text.tokenizer import Tokenizer
from minilm.training.checkpoint import load_checkpoint, save_checkpoint
from minilm.training.distributed import Ranks, joined
from minilm.training.estimate import advice
from minilm.training.expected import expected
from minilm.training.feed import Curriculum, micro_batches, micro_rows, training_batches
from minilm.training.finetune import Surgery, Unfreezing, report, write_start
from minilm.training.guard import Guard, diverged, first_bad, went_wrong
from minilm.training.measures import Measures
from minilm.training.objective import Objective, build_objective
from minilm.training.optim import build_optimizers, set_rates
from minilm.training.parallel import Replicated, share_out
from minilm.training.precision import Precision, step_seed
from minilm.training.progress import Bar, Clock, Interrupt, announce, progress_text
from minilm.training.schedules import lr_factor
from minilm.training.setup import (
    LossFunction,
    Setup,
    build_model,
    check_run,
    holding,
    loss_function,
    open_run,
    settle,
    setup_of,
)
from minilm.training.validation import evaluate
from minilm.training.watch import Watch, unigram_entropy


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
    best: tuple[float, int] | None  # lowest validation loss and its step
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
    batches: Batches | Curriculum | PromptWeights
    shards: ShardFolder
    optimizers: list[torch.optim.Optimizer]
    precision: Precision
    guard: Guard
    watch: Watch
    ranks: Ranks
    parallel: Replicated
    state: dict[str, Any]  # of the last whole step: what state.json holds

    def save(self) -> Path:
        aside = {"guard": self.guard.state(), "watch": self.watch.state(), "precision": self.precision.state()}
        what = (self.model, self.tokenizer, self.optimizers, self.state | aside)
        return save_checkpoint(self.folder, *what, self.config.keep_checkpoints, self.parallel)

    def load(self) -> None:
        """Puts everything back to the newest checkpoint."""
        newest = step_folders(self.folder)[-1]
        Surgery(self.model, self.config).restore(int(newest.name.removeprefix("step_")))
        saved = load_checkpoint(newest, self.model, self.optimizers, self.parallel)
        for name, part in (("guard", self.guard), ("watch", self.watch), ("precision", self.precision)):
            part.load_state(saved.pop(name))
        self.state = saved


class _Stepped(NamedTuple):
    loss: Tensor  # nats per target
    norm: Tensor  # of the gradient, before clipping
    trouble: str | None  # why the step was not taken
    where: str = ""  # the first bad module


def train(config: TrainConfig) -> Result:
    """Trains `config.model` on the prepared folder `config.data` and returns what came of it; started by torchrun, as
    one of its ranks.

    Raises UsageError on a folder that is not prepared, a run that already exists, a config that does not fit the data,
    the machine or the checkpoint, or when a run with `init` ends with nothing moved; MinilmError when the loss is no
    longer finite, a guard gives up, or the disk is full.
    """
    device = runtime.pick_device(config.device)
    with joined(device.type) as ranks, ranks.noticing_losses():
        return _train(config, ranks.device(device), ranks)


def _train(config: TrainConfig, device: torch.device, ranks: Ranks) -> Result:
    shards = open_data(config.data, config.mix_temperature)
    tokenizer = shards.tokenizer()
    folder = Path(config.out_dir or f"runs/{Path(config.data).name}")
    config = replace(config, out_dir=str(folder))
    check_run(folder, config.existing, config.loggers)
    ranks.wait()  # every rank has looked before one writes
    model, config = build_model(config, tokenizer, device)
    plain, config = training_batches(config, shards, tokenizer)
    prompts = config.prompt_end, config.prompt_weight
    batches = PromptWeights(plain, tokenizer, *prompts) if config.prompt_end else plain
    parts = build_objective(model, config, tokenizer), Surgery(model, config)
    measures = Measures(config, model, tokenizer, shards, folder)
    # Everything that a user may have got wrong has been looked at.
    with holding(folder) if ranks.first else nullcontext():
        if config.existing != "resume" and ranks.first:
            open_run(config, settle(config, model, device, ranks.world))
        ranks.wait()
        setup = setup_of(folder, config, device)
        precision = Precision(setup.precision, config.rounding, device)
        precision.prepare(model)
        parallel = share_out(model, config.parallel, ranks, setup.compile)
        optimizers = precision.wrap(build_optimizers(model, config))
        state: dict[str, Any] = {"step": 0, "tokens": 0, "seconds": 0.0, "val_loss": None}
        guard = Guard(config, device)
        watch = Watch(config, lambda: unigram_entropy(shards.splits["train"]), expected(config, shards))
        aside = (precision, guard, watch, ranks, parallel)
        run = _Run(config, setup, folder, model, tokenizer, batches, shards, optimizers, *aside, state)
        if config.existing == "resume":
            run.load()
        announce(config, setup, str(precision), model, plain, run.state["step"])
        with advice(model, config, setup.precision, setup.micro_batch_size):
            return _steps(run, *parts, partial(measures, parallel.whole))


def _steps(run: _Run, objective: Objective, surgery: Surgery, measured: Callable[[int], dict[str, Any]]) -> Result:
    config, setup, model, first = run.config, run.setup, run.model, run.state["step"]
    tokens_per_step = config.batch_size * config.model.block_size
    flops = model.flops_per_token(config.model.block_size)
    loss_of = loss_function(objective, setup, run.parallel.through)
    val = run.shards.splits["val"]
    metrics = Metrics(run.folder / "metrics.jsonl", first, config.loggers)
    clock, val_loss = Clock(run.state["seconds"]), run.state["val_loss"]
    losses: list[Tensor] = []
    saved = step_folders(run.folder)[-1] if first else None
    unfreezing = Unfreezing(model, config.unfreeze_every_steps)
    validate = partial(evaluate, model, setup, val, config.eval_tokens, run.ranks, config.attend)
    if config.init and not first:
        if (start := run.parallel.whole(model.device)) is not None:
            write_start(start, run.tokenizer, run.folder)
        val_loss = validate()
        metrics.write(step=0, val_loss=val_loss, **measured(0), **run.watch.validated(0, val_loss, math.inf))
    if config.guard == "rollback" and saved is None:
        saved = run.save()  # something to roll back to from the first step on
    step = first
    with Interrupt() as interrupt, Bar(config.max_steps, first) as bar:
        while step < config.max_steps and not run.watch.exhausted:
            surgery.begin_step(step, run.batches.batch, setup.micro_batch_size, validate, metrics)
            runtime.set_step_seed(config.seed, step, run.ranks.rank)
            unfreezing.begin_step(step)
            objective.begin_step()
            factor = lr_factor(step, config) * run.guard.rate
            set_rates(run.optimizers, factor)
            batch = run.batches.batch(step, run.ranks.rank, run.ranks.world)
            stepped = train_step(run, batch, loss_of, interrupt, bar)
            if stepped is None:
                break
            if stepped.trouble:
                metrics.write(step=step, guard=config.guard, trouble=stepped.trouble, where=stepped.where)
                went_wrong(run.guard, run.folder, run.load, step + 1, stepped.trouble, stepped.where)
                if config.guard == "rollback":
                    step = run.state["step"]
                    metrics.back_to(step)
                    del losses[max(step - first, 0) :]
                    continue
            losses.append(stepped.loss)
            clock.step_ended()
            done = step = step + 1
            last = done == config.max_steps
            run.state = {"step": done, "tokens": done * tokens_per_step, "seconds": clock.seconds(), "val_loss": None}
            logging = last or done % config.log_every_steps == 0
            validating = last or (config.eval_every_steps > 0 and done % config.eval_every_steps == 0)
            saving = last or (config.save_every_steps > 0 and done % config.save_every_steps == 0)
            showing = validating or bar.due()
            if logging or showing or saving or done == first + 1:
                loss, norm = losses[-1].item(), stepped.norm.item()
                if not run.guard.watching and not math.isfinite(loss + norm) and run.precision.scale is None:
                    where = first_bad(model, setup, micro_batches(config, setup, batch, model.device), run.ranks)
                    raise MinilmError(diverged(run.folder, f"loss {loss}, gradient norm {norm}", where, done))
                speed = tokens_per_step / pace if (pace := clock.step_seconds()) else 0.0
            if logging:
                values = {"loss": loss, "grad_norm": norm, "lr": config.lr * factor, "tokens_per_second": speed}
                values |= objective.means(batch.n_targets)
                counts = {"skipped_steps": run.guard.skipped} if run.guard.skipped else {}
                metrics.write(**{k: v for k, v in run.state.items() if k != "val_loss"}, **values, **counts)
            if validating:
                with clock.apart("eval"):
                    val_loss = validate()
                    told = measured(done)
                run.state["val_loss"] = val_loss
                metrics.write(step=done, val_loss=val_loss, **told, **run.watch.validated(done, val_loss, loss))
                saving |= config.patience > 0 and run.watch.since_best == 0
            if saving:
                with clock.apart("save"):
                    saved = run.save()
            if showing:
                mfu = speed * flops / setup.peak_flops
                text = progress_text(loss, val_loss, speed, mfu, clock.eta(config, done))
                bar.show(done, text, as_line=validating)
            if interrupt.heard and run.ranks.world == 1:
                break
    metrics.close()
    if saved is None or run.state["step"] != int(saved.name.removeprefix("step_")):
        saved = run.save()
    finished = run.state["step"] == config.max_steps or run.watch.exhausted
    if run.watch.exhausted:
        say(f"stopped early at step {run.state['step']}: {config.patience} validations without a better one")
    whole = run.parallel.whole(model.device)
    if config.init and finished and whole is not None:
        say(report(whole, run.tokenizer, run.folder))
    return Result(
        run=run.folder,
        checkpoint=saved,
        step=run.state["step"],
        losses=torch.stack(losses).tolist() if losses else [],
        val_loss=val_loss,
        tokens=run.state["tokens"],
        seconds=run.state["seconds"],
        interrupted=not finished,
        best=run.watch.best,
        model=whole or model,
        tokenizer=run.tokenizer,
    )


def train_step(run: _Run, batch: Batch, loss_of: LossFunction, interrupt: Interrupt, bar: Bar) -> _Stepped | None:
    """One optimizer step, or None when interrupted."""
    config, model = run.config, run.model
    n_targets, interrupted = run.ranks.sum_counts(batch.n_targets, interrupt.heard, model.device)
    if interrupted and run.ranks.world > 1:
        return None  # all ranks leave before the same step
    total = torch.zeros((), device=model.device)
    n_micro = -(-len(batch.ids) // micro_rows(config, run.setup, batch))
    for i, tensors in enumerate(micro_batches(config, run.setup, batch, model.device)):
        run.parallel.begin_micro(last=i + 1 == n_micro)
        loss = loss_of(*tensors) / n_targets
        run.precision.backward(loss, model.parameters())
        total += loss.detach()
        bar.micro(i + 1, n_micro)
        if interrupt.heard and i + 1 < n_micro and run.ranks.world == 1:
            model.zero_grad(set_to_none=True)
            return None
    params = list(model.parameters())
    run.parallel.sum_gradients()
    run.ranks.sum(total)
    norm = run.precision.clip(params, run.optimizers, config.grad_clip, step_seed(config.seed, run.state["step"]))
    where, overflow = "", run.precision.overflowed(norm)
    trouble = None if overflow else run.guard.trouble(total, norm)
    if trouble:
        where = first_bad(model, run.setup, micro_batches(config, run.setup, batch, model.device), run.ranks)
    elif not overflow:
        for optimizer in run.optimizers:
            optimizer.step()
    model.zero_grad(set_to_none=True)
    return _Stepped(total, norm, trouble, where)
