"""Schedules: closed forms, shapes that hold for every setting, warmup however it is told."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilm.config import GPTConfig, Schedule, TrainConfig
from minilm.errors import UsageError
from minilm.training.schedules import SCHEDULES, lr_factor, warmup_steps

FALLING = sorted(set(SCHEDULES) - {"cosine_restarts"})


@given(
    st.sampled_from(sorted(SCHEDULES)),
    st.integers(0, 50),
    st.integers(2, 300),
    st.floats(0, 1),
    st.floats(0.01, 1),
    st.integers(1, 5),
)
def test_every_schedule(schedule: str, warmup: int, steps: int, final: float, decay: float, n: int) -> None:
    config = TrainConfig(
        schedule=schedule,  # type: ignore[arg-type]
        warmup_steps=warmup,
        max_steps=steps,
        final_lr_share=final,
        decay_share=decay,
        schedule_cycles=n,
        schedule_drops=n,
        schedule_power=float(n),
    )
    factors = [lr_factor(step, config) for step in range(steps)]
    assert factors[: min(warmup, steps)] == [(i + 1) / warmup for i in range(min(warmup, steps))]
    after = factors[warmup:]
    floor = 0.0 if schedule == "constant" else final
    assert all(floor - 1e-12 <= f <= 1 + 1e-12 for f in after)
    if len(after) > 1:
        assert after[0] == 1.0
        if schedule not in ("constant", "inverse_sqrt"):
            assert after[-1] == pytest.approx(final)
        if schedule in FALLING:
            assert all(a >= b - 1e-12 for a, b in pairwise(after))


def test_closed_forms() -> None:
    """101 steps after ten of warmup, so that step 10 + 100 x is at x exactly."""
    config = TrainConfig(warmup_steps=10, max_steps=111, final_lr_share=0.2)
    wanted: dict[str, dict[float, float | None]] = {
        "cosine": {0.25: 0.2 + 0.4 * (1 + math.cos(math.pi / 4)), 0.5: 0.6},
        "linear": {0.25: 0.8, 0.5: 0.6},
        "constant": {0.25: 1.0, 1.0: 1.0},
        # four cycles of 25 steps: a middle, an end, and the step after it
        "cosine_restarts": {0.125 - 0.005: 0.2 + 0.4 * (1 + math.cos(math.pi * 0.48)), 0.25: 0.2, 0.5: 0.2, 0.26: None},
        "inverse_sqrt": {0.1: math.sqrt(10 / 20), 0.3: math.sqrt(10 / 40), 1.0: math.sqrt(10 / 110)},
        "polynomial": {0.5: 0.2 + 0.8 * 0.25, 0.9: 0.2 + 0.8 * 0.01},
        "step": {0.33: 1.0, 0.34: 0.2**0.5, 0.66: 0.2**0.5, 0.67: 0.2, 1.0: 0.2},
        "wsd": {0.5: 1.0, 0.8: 1.0, 0.9: 0.6, 1.0: 0.2},
    }
    assert set(wanted) == set(SCHEDULES) == set(get_args(Schedule))
    for name, points in wanted.items():
        here = replace(config, schedule=name)  # type: ignore[arg-type]
        for x, factor in points.items():
            got = lr_factor(10 + round(100 * x), here)
            if factor is None:
                assert got > 0.95
            else:
                assert got == pytest.approx(factor), (name, x)
    to_zero = replace(config, schedule="step", final_lr_share=0.0)
    assert [lr_factor(10 + i, to_zero) for i in (0, 50, 100)] == [1.0, 0.5, 0.0]


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({"warmup_steps": 7}, 7),
        ({"warmup_tokens": 8 * 32 * 5}, 5),
        ({"warmup_tokens": 8 * 32 * 5 + 1}, 6),
        ({"warmup_share": 0.07}, 7),
        ({"warmup_share": 0.001}, 1),
        ({"warmup_steps": 0}, 0),
    ],
)
@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
def test_warmup_in_steps_tokens_or_share(changes: dict[str, float], steps: int, schedule: str) -> None:
    model = GPTConfig(block_size=32)
    config = TrainConfig(model=model, batch_size=8, max_steps=100, schedule=schedule, **changes)  # type: ignore[arg-type]
    assert warmup_steps(config) == steps
    factors = [lr_factor(step, config) for step in range(steps + 1)]
    assert factors == [*((i + 1) / steps for i in range(steps)), 1.0]


def test_two_warmups_are_refused() -> None:
    with pytest.raises(UsageError, match="exclude each other"):
        TrainConfig(warmup_tokens=1000, warmup_share=0.1)
