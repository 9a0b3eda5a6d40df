"""What validations tell: the best so far, when to stop early, when a target was reached, and two warnings."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from minilm.config import TrainConfig
from minilm.log import say
from minilm.text.shards import Split
from minilm.training.expected import Curve
from minilm.training.schedules import warmup_steps

UNIGRAM_TOKENS = 1_000_000
TURNED_UP = 2  # validations in a row above the best, while training loss falls


class Watch:
    """Follows validation loss over a run. No call changes anything but this record."""

    def __init__(self, config: TrainConfig, unigram: Callable[[], float], expected: Curve | None = None) -> None:
        self.config, self._unigram, self._expected = config, unigram, expected
        self.best: tuple[float, int] | None = None  # loss, step
        self.since_best = 0  # validations
        self.start: float | None = None  # loss at step 0, where the run starts from weights
        self.target_step = 0
        self._train_at_best = math.inf
        self._warned: set[str] = set()
        self._tokens_per_step = config.batch_size * config.model.block_size

    @property
    def exhausted(self) -> bool:
        """Whether the run is to stop early."""
        return 0 < self.config.patience <= self.since_best

    def validated(self, step: int, val_loss: float, train_loss: float) -> dict[str, Any]:
        """Takes in a validation; what metrics.jsonl is to hold beside it."""
        if step == 0:
            self.start = val_loss
        if self.best is None or val_loss < self.best[0]:
            self.best, self.since_best, self._train_at_best = (val_loss, step), 0, train_loss
        else:
            self.since_best += 1
        self._warn(step, val_loss, train_loss)
        if self.config.target_loss and not self.target_step and val_loss <= self.config.target_loss:
            self.target_step = step
            tokens = step * self._tokens_per_step
            say(f"target {self.config.target_loss:g} reached after {step:,} steps, {tokens:,} tokens")
            return {"steps_to_target": step, "tokens_to_target": tokens, "target_loss": self.config.target_loss}
        return {}

    def _warn(self, step: int, val_loss: float, train_loss: float) -> None:
        if self.since_best >= TURNED_UP and train_loss < self._train_at_best and self.best is not None:
            self._once(
                "up",
                f"warning: validation turned up: {self.best[0]:.4f} at step {self.best[1]} was the best, now "
                f"{val_loss:.4f} while training loss falls: the model learns this text by heart; stop here, or set "
                "--patience",
            )
        if step < max(2 * warmup_steps(self.config), self.config.max_steps // 10, 1) or "learnt" in self._warned:
            return
        known = "at the start it was" if self.start is not None else "word counts alone would give"
        floor = self._unigram() if self.start is None else self.start
        advice = "try another --lr or a longer warmup, and look at the data"
        so_far = f"validation loss {val_loss:.4f} after {step} steps"
        if val_loss >= floor - 0.01:
            self._once("learnt", f"warning: nothing is being learnt: {so_far}, {known} {floor:.4f}: {advice}")
        elif self._expected and (lag := self._expected.lag(step, self._tokens_per_step, val_loss)):
            self._once("learnt", f"warning: little is being learnt: {so_far}, {lag}: {advice}")

    def _once(self, what: str, text: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            say(text)

    def state(self) -> dict[str, Any]:
        """What state.json keeps."""
        kept = {"best": self.best, "since_best": self.since_best, "start": self.start, "target_step": self.target_step}
        finite = math.isfinite(self._train_at_best)  # JSON has no infinity
        return {**kept, "train_at_best": self._train_at_best if finite else None, "warned": sorted(self._warned)}

    def load_state(self, saved: dict[str, Any]) -> None:
        self.best = None if saved["best"] is None else (saved["best"][0], saved["best"][1])
        self.since_best, self.start, self.target_step = saved["since_best"], saved["start"], saved["target_step"]
        self._train_at_best = math.inf if saved["train_at_best"] is None else saved["train_at_best"]
        self._warned = set(saved["warned"])


def unigram_entropy(split: Split) -> float:
    """Nats per token of a split's first million tokens by their own counts: the best that ignores context."""
    tokens = split.read(0, min(split.n_tokens, UNIGRAM_TOKENS))
    counts = np.bincount(tokens)
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())
