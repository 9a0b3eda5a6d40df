"""What a run on given weights adds to the loop: what is trained, and at the end how far each component moved.

`start.safetensors` in the run folder holds the tensors that will be trained as they were at the start, and what the
model wrote then; it is what the report compares with, also after a resume, or when the weights that `init` named are
gone.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minilm.config import TrainConfig
from minilm.errors import MinilmError, UsageError
from minilm.log import Metrics, read_metrics, say
from minilm.model import freeze, lora, surgery
from minilm.model.gpt import GPT
from minilm.text.batches import Batch
from minilm.text.tokenizer import Tokenizer

START = "start.safetensors"
REPORT = "moved.json"
SAMPLES, SAMPLE_TOKENS = 2, 60  # before and after


def adapt(model: GPT, config: TrainConfig) -> None:
    """Puts on the adapters and freezes what the config says, in place, and prints what is trained.

    Raises UsageError on a pattern that matches nothing, and on adapters without weights to adapt.
    """
    only = config.train_only
    if config.lora_rank:
        if not config.init:
            raise UsageError("LoRA adapts weights that are there: name them with --init, or leave --lora_rank 0")
        lora.add(model, config.lora_targets, config.lora_rank, config.lora_alpha, config.lora_dropout)
        only = (*only, "lora")
    if config.freeze or only:
        freeze.set_trained(model, config.freeze, only)
        say(freeze.table(model))


class Unfreezing:
    """Gradual unfreezing: which tensors are trained, as a function of the step. Off where every_steps is 0."""

    def __init__(self, model: GPT, every_steps: int) -> None:
        self.model, self.every_steps = model, every_steps
        self.levels = freeze.stages(model) if every_steps else []
        self._stage: int | None = None

    def begin_step(self, step: int) -> None:
        """Freezes and unfreezes for `step`; says when a level begins to be trained."""
        if not self.every_steps:
            return
        stage = min(step // self.every_steps, len(self.levels) - 1)
        if stage != self._stage:
            self._stage = stage
            freeze.set_stage(self.model, self.levels, stage)
            n_trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
            say(f"step {step}: level {stage + 1} of {len(self.levels)} is unfrozen, {n_trained:,} parameters trained")


class Surgery:
    """Changes of the model between steps, as functions of the step: an activation swapped, norms fixed one by one.

    Raises UsageError on what cannot be done, or would not be before the run ends.
    """

    def __init__(self, model: GPT, config: TrainConfig) -> None:
        self.model, self.config = model, config
        self.norms = surgery.norm_groups(model) if config.fix_norms_every_steps else []
        if config.fix_norms_every_steps and not self.norms:
            raise UsageError("--fix_norms_every_steps needs norms that can be fixed: add --norm fixed")
        if config.swap_activation:
            surgery.check_activation(model, config.swap_activation)
            if config.swap_at_step >= config.max_steps:
                raise UsageError(
                    f"--swap_at_step {config.swap_at_step} comes after the last of {config.max_steps} steps"
                )

    def restore(self, steps_done: int) -> None:
        """The activation that the model has after so many steps (fixed norms are in its weights)."""
        if self.config.swap_activation:
            swapped = steps_done > self.config.swap_at_step
            surgery.set_activation(self.model, self.config.swap_activation if swapped else self.config.model.activation)

    def begin_step(
        self, step: int, batch_of: Callable[[int], Batch], n_rows: int, validate: Callable[[], float], metrics: Metrics
    ) -> None:
        """Does what is due before `step`, measures the damage and logs it.

        Deviations are taken from the first n_rows of the step's batch, the same on every rank.
        """
        due: dict[str, Callable[[], object]] = {}
        if self.config.swap_activation and step == self.config.swap_at_step:
            name = self.config.swap_activation
            due[f"activation {name}"] = lambda: surgery.set_activation(self.model, name)
        every = self.config.fix_norms_every_steps
        if every and step % every == 0 and step // every < len(self.norms):
            norm = self.norms[step // every]
            ids = torch.from_numpy(batch_of(step).ids[:n_rows]).to(self.model.device)
            due[f"fixed {norm}"] = lambda: surgery.fix_norm(self.model, norm, ids)
        for what, operate in due.items():
            before = validate()
            operate()
            after = validate()
            say(f"before step {step + 1}: {what}; validation loss {before:.4f} -> {after:.4f} ({after - before:+.4f})")
            metrics.write(step=step + 1, surgery=what, val_loss_before=before, val_loss_after=after)


def write_start(model: GPT, tokenizer: Tokenizer, run: Path) -> None:
    """Keeps the tensors that training can change as they are now, with samples. Raises MinilmError if writing fails."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    adapted = {f"{name}.weight" for name in lora.layers(model)}
    tensors = {
        name: p.detach().cpu().contiguous()
        for name, p in model.named_parameters()
        if name in adapted or (p.requires_grad and ".lora_" not in name)
    }
    try:
        save_file(tensors, run / START, {"samples": json.dumps(_samples(model, tokenizer))})
    except (OSError, SafetensorError) as error:
        raise MinilmError(f"{run / START} could not be written ({error}): make room and start again") from error


def read_start(model: GPT, run: Path) -> None:
    """Puts the weights that adapters stand beside back as they were at the start.

    Raises UsageError where the file is missing or damaged.
    """
    with _start(run) as file, torch.no_grad():
        for name, layer in lora.layers(model).items():
            layer.weight.copy_(file.get_tensor(f"{name}.weight"))


@contextlib.contextmanager
def _start(run: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(run / START, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{run / START} is missing or damaged ({error}): start anew with --init") from None


def _samples(model: GPT, tokenizer: Tokenizer) -> list[str]:
    """Texts from the same seed each time; training's random numbers are left alone."""
    from minilm.decoding.engine import generate

    with torch.random.fork_rng():
        return generate(model, tokenizer, [""] * SAMPLES, max_new_tokens=SAMPLE_TOKENS, seed=0)


def report(model: GPT, tokenizer: Tokenizer, run: Path) -> str:
    """How far each trained component moved from the start; validation loss and samples before and after, and around
    each operation. As lines of text.

    Writes moved.json, with every tensor's figures. Norms are Frobenius; relative: to the norm at the start.
    Raises UsageError where no tensor moved at all.
    """
    rows = dict(_moves(model, run))
    if not any(change for change, _ in rows.values()):
        raise UsageError(
            f"nothing moved: all {len(rows)} trained tensors of {run} are as they were at the start; raise --lr, or "
            "train more"
        )
    metrics = read_metrics(run / "metrics.jsonl")
    losses = [row["val_loss"] for row in metrics if row.get("val_loss") is not None]
    with _start(run) as file:
        samples = list(zip(json.loads(file.metadata()["samples"]), _samples(model, tokenizer), strict=True))
    operations = _operations(metrics, losses[-1])
    told = {
        "tensors": {name: {"change": change, "start": start} for name, (change, start) in rows.items()},
        "val_loss": {"before": losses[0], "after": losses[-1]},
        "samples": [{"before": before, "after": after} for before, after in samples],
        "operations": operations,
    }
    (run / REPORT).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    components: dict[str, list[str]] = {}
    for name in rows:
        components.setdefault(freeze.component_of(model, name), []).append(name)
    lines = [f"{'component':<12}{'tensors':>8}{'moved by':>12}{'relative':>10}  most, relative to its own norm"]
    for component, names in components.items():
        change, start = (math.sqrt(sum(rows[name][i] ** 2 for name in names)) for i in (0, 1))
        most = max(names, key=lambda name: _share(*rows[name]))
        lines.append(
            f"{component:<12}{len(names):>8}{change:>12.4g}{_share(change, start):>10.2%}  "
            f"{most} {_share(*rows[most]):.2%}"
        )
    still = [name for name, (change, _) in rows.items() if not change]
    if still:
        lines.append(f"did not move: {', '.join(still[:5])}" + (f" and {len(still) - 5} more" if still[5:] else ""))
    for done in operations:
        lines.append("{operation} at step {step}: {damage:+.4f}, of which {left:+.4f} is left".format(**done))
    lines.append(f"validation loss before {losses[0]:.4f}, after {losses[-1]:.4f} ({losses[-1] - losses[0]:+.4f})")
    for before, after in samples:
        lines += [f"--- before: {before.strip()}", f"--- after: {after.strip()}"]
    return "\n".join(lines)


def _operations(metrics: list[dict[str, Any]], last: float) -> list[dict[str, Any]]:
    """Each operation's damage to validation loss in nats, and what was left of it when the next one came, or the end:
    under 0 where training has brought more than was lost."""
    rows = [row for row in metrics if "surgery" in row]
    ends = [row["val_loss_before"] for row in rows[1:]] + [last]
    return [
        {
            "operation": row["surgery"],
            "step": row["step"],
            "damage": row["val_loss_after"] - row["val_loss_before"],
            "left": end - row["val_loss_before"],
        }
        for row, end in zip(rows, ends, strict=False)  # one end too many where there were none
    ]


def _share(change: float, start: float) -> float:
    return change / start if start else math.inf if change else 0.0


def _moves(model: GPT, run: Path) -> Iterator[tuple[str, tuple[float, float]]]:
    """(name, (norm of the change, norm at the start)), one tensor in memory at a time; adapters merged."""
    adapted = {f"{name}.weight": layer for name, layer in lora.layers(model).items()}
    with _start(run) as file, torch.no_grad():
        for name in file.keys():  # noqa: SIM118 - the handle is no mapping
            start: Tensor = file.get_tensor(name).double()
            now = adapted[name].merged_weight() if name in adapted else model.get_parameter(name).detach()
            yield name, (torch.dist(now.cpu().double(), start).item(), start.norm().item())
