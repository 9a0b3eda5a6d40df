"""What happens when a step goes wrong: stop, skip it, or roll back; always counted, and the first bad module named.

A step is bad when its loss or gradient norm is not finite or, with guard_spike k > 0, lies k spreads above the median
of the last 64 good steps (spread: 1.4826 times the median distance from the median, the standard deviation where
values are normal, and at least 1 % of the median).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from minilm.config import TrainConfig
from minilm.errors import MinilmError
from minilm.log import say
from minilm.model.gpt import GPT
from minilm.model.hub import step_folders
from minilm.training.distributed import ALONE, Ranks
from minilm.training.setup import Setup
from minilm.training.spread import own, whole

WINDOW = 64
FEWEST = 16  # good steps before a spike can be told
SKIPS_IN_A_ROW = 10
ROLLBACKS = 8  # the rate is then 1 / 256 of what was asked for


class Guard:
    """Judges every step before it is taken. Where reading a loss back would wait for the device, and nothing but
    stopping was asked for, the loop judges when it logs instead."""

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        self.mode, self.spike = config.guard, config.guard_spike
        self.watching = self.mode != "stop" or self.spike > 0 or device.type == "cpu"
        self.losses: deque[float] = deque(maxlen=WINDOW)
        self.norms: deque[float] = deque(maxlen=WINDOW)
        self.skipped = self.in_a_row = self.rollbacks = 0

    @property
    def rate(self) -> float:
        """Factor on every learning rate: halved by each rollback."""
        return 0.5**self.rollbacks

    def trouble(self, loss: Tensor, norm: Tensor) -> str | None:
        """What is wrong with a step, or None; only good steps enter the record."""
        if not self.watching:
            return None
        values = (("loss", loss.item(), self.losses), ("gradient norm", norm.item(), self.norms))
        for name, value, seen in values:
            if not math.isfinite(value):
                return f"{name} is {value}"
            if self.spike and len(seen) >= FEWEST:
                middle = median(seen)
                spread = max(1.4826 * median(abs(v - middle) for v in seen), 0.01 * abs(middle))
                if value > middle + self.spike * spread:
                    return f"{name} {value:.4g} is {(value - middle) / spread:.1f} spreads above {middle:.4g}"
        self.in_a_row = 0
        for _, value, seen in values:
            seen.append(value)
        return None

    def skip(self, trouble: str) -> None:
        """Counts a step that is not taken. Raises MinilmError where too many follow each other."""
        self.skipped += 1
        self.in_a_row += 1
        if self.in_a_row > SKIPS_IN_A_ROW:
            raise MinilmError(f"{SKIPS_IN_A_ROW} steps in a row were skipped, the last since {trouble}: lower --lr")

    def roll_back(self, trouble: str) -> None:
        """Counts a rollback. Raises MinilmError where there were too many."""
        self.rollbacks += 1
        if self.rollbacks > ROLLBACKS:
            raise MinilmError(f"{ROLLBACKS} rollbacks, each halving the rate, did not help ({trouble}): lower --lr")

    def state(self) -> dict[str, Any]:
        """What state.json keeps, so that a resumed run judges as this one would."""
        counts = {"skipped": self.skipped, "in_a_row": self.in_a_row, "rollbacks": self.rollbacks}
        return {**counts, "losses": list(self.losses), "norms": list(self.norms)} if self.watching else counts

    def load_state(self, saved: dict[str, Any]) -> None:
        self.skipped, self.in_a_row, self.rollbacks = saved["skipped"], saved["in_a_row"], saved["rollbacks"]
        self.losses, self.norms = deque(saved.get("losses", ()), WINDOW), deque(saved.get("norms", ()), WINDOW)


def first_bad(model: GPT, setup: Setup, batches: Iterable[tuple[Tensor, ...]], ranks: Ranks = ALONE) -> str:
    """Where a step went wrong, found by running its micro-batches (ids, targets) again, looking at every module.

    A weight that is not finite; else the first module whose output is not; else the module nearest to the loss whose
    gradient is not; else, for a spike, the tensor with the largest gradient. Gradients of the model are used up.
    All ranks call this together and hear of the first that found something in its own micro-batches.
    """
    bad = [f"weights of {name}" for name, p in model.named_parameters() if not torch.isfinite(own(p)).all()]
    if weights := next(filter(None, ranks.gather(bad[0] if bad else "")), ""):
        return weights
    norms = [
        (whole(p.grad.norm(dtype=torch.float32)).item(), n) for n, p in model.named_parameters() if p.grad is not None
    ]
    largest = f"largest gradient: {max(norms, default=(0.0, 'none'))[1]}"
    # Weights that are spread are gathered by all ranks together: none may stop before the others.
    found = ranks.gather(_first_in(model, setup, batches, all_of_it=ranks.world > 1))
    return next(filter(None, found), largest)


def _first_in(model: GPT, setup: Setup, batches: Iterable[tuple[Tensor, ...]], all_of_it: bool) -> str:
    bad: list[str] = []
    first = ""

    def watch(name: str, module: torch.nn.Module) -> Any:
        def look(module: torch.nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not bad and not torch.isfinite(output).all():
                bad.append(name)

        return module.register_forward_hook(look)

    handles = [watch(name, module) for name, module in model.named_modules() if name and not list(module.children())]
    try:
        for ids, targets, *_ in batches:
            model.zero_grad(set_to_none=True)
            with setup.autocast():
                loss = model.loss(ids, targets, reduction="sum")
            if bad:
                first = first or f"output of {bad[0]}"
            elif not torch.isfinite(loss):
                first = first or "the loss itself"
            if first and not all_of_it:
                break
            loss.backward()
            grads = [n for n, p in model.named_parameters() if p.grad is not None and not own(p.grad).isfinite().all()]
            first = first or (f"gradient of {grads[-1]}" if grads else "")
            if first and not all_of_it:
                break
    finally:
        for handle in handles:
            handle.remove()
    return first


def went_wrong(guard: Guard, run: Path, load: Callable[[], None], step: int, trouble: str, where: str) -> None:
    """Skips a bad step, rolls back from it by `load`, or raises MinilmError, as the guard says."""
    if guard.mode == "stop":
        raise MinilmError(diverged(run, trouble, where, step))
    if guard.mode == "skip":
        guard.skip(f"{trouble} ({where})")
        say(f"step {step}: {trouble}; {where}: skipped, {guard.skipped} so far")
        return
    rollbacks = guard.rollbacks
    load()
    guard.rollbacks = max(rollbacks, guard.rollbacks)  # the checkpoint may be older than the last rollback
    guard.roll_back(f"{trouble} ({where})")
    say(f"step {step}: {trouble}; {where}: back to {step_folders(run)[-1]}, learning rate times {guard.rate:g}")


def diverged(run: Path, trouble: str, where: str, step: int) -> str:
    """The last words of a run that cannot go on."""
    folders = step_folders(run)
    kept = f"{folders[-1]} is whole: start from it with --init {folders[-1]} and" if folders else "start again with"
    return f"step {step}: {trouble} ({where}); {kept} a lower --lr or a longer warmup, or set --guard"
