"""Learning rates as pure functions of the step: warmup, then one of SCHEDULES. All of them drawn: docs/training.md.

A schedule maps x, the share of the run done after warmup in [0, 1], to a factor on the peak rate. It begins at 1; the
run's last step has x = 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from minilm.config import TrainConfig


def cosine(x: float, config: TrainConfig) -> float:
    """f + (1 - f) (1 + cos(pi x)) / 2 with f = final_lr_share (Loshchilov & Hutter 2017)."""
    return _between(0.5 * (1.0 + math.cos(math.pi * x)), config)


def linear(x: float, config: TrainConfig) -> float:
    """1 - (1 - f) x."""
    return _between(1.0 - x, config)


def constant(x: float, config: TrainConfig) -> float:
    """1, whatever final_lr_share is."""
    return 1.0


def cosine_restarts(x: float, config: TrainConfig) -> float:
    """schedule_cycles cosines of equal length, each from 1 to f (SGDR, Loshchilov & Hutter 2017, T_mult 1)."""
    place = x * config.schedule_cycles
    return 1.0 if place == 0 else cosine(place - math.ceil(place) + 1.0, config)


def inverse_sqrt(x: float, config: TrainConfig) -> float:
    """sqrt(w / (w + k)), k steps after a warmup of w steps, at least one (Vaswani 2017); not below f."""
    w = max(warmup_steps(config), 1)
    return max(math.sqrt(w / (w + x * _steps_after_warmup(config))), config.final_lr_share)


def polynomial(x: float, config: TrainConfig) -> float:
    """f + (1 - f) (1 - x) ^ schedule_power."""
    return _between((1.0 - x) ** config.schedule_power, config)


def step(x: float, config: TrainConfig) -> float:
    """schedule_drops equal falls, evenly spaced, from 1 to f; a ratio each where f > 0, else a difference (He 2016)."""
    drops, final = config.schedule_drops, config.final_lr_share
    done = min(math.floor(x * (drops + 1)), drops)
    return final ** (done / drops) if final > 0 else 1.0 - done / drops


def wsd(x: float, config: TrainConfig) -> float:
    """1, then over the last decay_share linearly to f: warmup, stable, decay, a trapezoid (Zhai 2022; Hu 2024)."""
    return _between(min(1.0, (1.0 - x) / config.decay_share), config)


_ALL = (cosine, linear, constant, cosine_restarts, inverse_sqrt, polynomial, step, wsd)
SCHEDULES: dict[str, Callable[[float, TrainConfig], float]] = {schedule.__name__: schedule for schedule in _ALL}


def warmup_steps(config: TrainConfig) -> int:
    """Steps of warmup, however the config tells them: tokens and shares are rounded up to whole steps."""
    if config.warmup_tokens:
        return -(-config.warmup_tokens // (config.batch_size * config.model.block_size))
    # The product of 0.07 and 100 is a hair above 7.
    return math.ceil(round(config.warmup_share * config.max_steps, 6)) or config.warmup_steps


def lr_factor(step: int, config: TrainConfig) -> float:
    """Factor on every peak rate at `step` (0 is the first): linear warmup, then the schedule.

    The first step has 1 / warmup of the peak, not zero.
    """
    warmup = warmup_steps(config)
    if step < warmup:
        return (step + 1) / warmup
    return SCHEDULES[config.schedule](min((step - warmup) / _steps_after_warmup(config), 1.0), config)


def _steps_after_warmup(config: TrainConfig) -> int:
    """Steps from the first after warmup to the last."""
    return max(config.max_steps - 1 - warmup_steps(config), 1)


def _between(share: float, config: TrainConfig) -> float:
    return config.final_lr_share + (1.0 - config.final_lr_share) * share
