"""Precisions: autocast, loss scale, and optimizers that keep weights and their own state in 16 bits.

| fp32, tf32 | products in fp32, or in tf32 on cards that have it |
| bf16, fp16 | autocast: products in 16 bits, weights, gradients and optimizer state in fp32; fp16 with a loss scale |
| pure_bf16, pure_fp16 | weights, gradients, activations and optimizer state in 16 bits; updates worked out in fp32 |

pure_fp16 on a CPU is an emulation: weights, gradients and optimizer state hold fp16 values, arithmetic and activations
are fp32 (a CPU multiplies fp16 matrices some twenty times slower).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from minilm.training.optimizers import Lion
from minilm.training.spread import is_spread, map_rows, rank_of, whole

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
STORED = {"pure_bf16": torch.bfloat16, "pure_fp16": torch.float16}
SCALED = ("fp16", "pure_fp16")
# fp16 ends at 6e-8 and squares of gradients lie below: second moments are stored as their roots.
SQUARES = frozenset({"exp_avg_sq", "square_avg", "sum", "square", "row", "column"})

# Optimizers that treat every number by itself, so that rows can be updated apart: fp32 copies of so many numbers.
BY_NUMBER = (torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD, torch.optim.Adagrad, torch.optim.RMSprop, Lion)
PART_NUMBERS = 1 << 20


def autocast(device_type: str, precision: str) -> torch.autocast:
    """The context that forward passes run in."""
    dtype = AUTOCAST.get(precision)
    return torch.autocast(device_type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


class Precision:
    """What a training step does differently by precision."""

    def __init__(self, name: str, rounding: str, device: torch.device) -> None:
        self.name, self.rounding = name, rounding
        self.stored = STORED.get(name)
        self.emulated = name == "pure_fp16" and device.type == "cpu"
        self.scale = LossScale() if name in SCALED else None
        if device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name == "tf32"

    def __str__(self) -> str:
        rounding = f", {self.rounding} rounding" if self.stored and self.rounding != "nearest" else ""
        return self.name + rounding + (" (emulated: fp16 storage, fp32 arithmetic)" if self.emulated else "")

    def prepare(self, model: nn.Module) -> None:
        """Brings weights to the values that they are stored as."""
        if self.emulated:
            for p in model.parameters():
                p.data.copy_(p.data.to(torch.float16))
        elif self.stored:
            model.to(self.stored)

    def wrap(self, optimizers: list[torch.optim.Optimizer]) -> list[torch.optim.Optimizer]:
        """Optimizers that store in 16 bits, where weights are."""
        return [Stored16(o, self.stored, self.rounding) for o in optimizers] if self.stored else optimizers

    def backward(self, loss: Tensor, params: Iterable[nn.Parameter]) -> None:
        """Adds the gradient of loss, scaled, to the parameters' gradients."""
        (loss * self.scale.value if self.scale else loss).backward()
        if self.emulated:
            for p in params:
                if p.grad is not None:
                    p.grad.copy_(p.grad.to(torch.float16))

    def clip(
        self, params: list[nn.Parameter], optimizers: list[torch.optim.Optimizer], max_norm: float, seed: int
    ) -> Tensor:
        """Unscales and clips (max_norm 0: does not); the gradient's norm before clipping, fp32.

        seed: of this step's stochastic rounding, the same on every rank.
        """
        grads = [p.grad for p in params if p.grad is not None]
        unscale = 1.0 / self.scale.value if self.scale else 1.0
        if not self.stored:
            if self.scale:
                torch._foreach_mul_(grads, unscale)
            return whole(torch.nn.utils.clip_grad_norm_(params, max_norm or math.inf))
        norms = [whole(torch.linalg.vector_norm(g, dtype=torch.float32)) for g in grads]
        norm = torch.stack(norms).norm() * unscale
        factor = unscale * torch.clamp((max_norm or math.inf) / (norm + 1e-6), max=1.0)
        for optimizer in optimizers:
            assert isinstance(optimizer, Stored16)
            optimizer.grad_factor, optimizer.seed = factor, seed
        return norm

    def overflowed(self, norm: Tensor) -> bool:
        """Whether this step's gradients left fp16's range, so that it must not be taken; moves the loss scale."""
        return self.scale is not None and not self.scale.update(bool(torch.isfinite(norm)))

    def state(self) -> dict[str, Any]:
        """What state.json keeps of it."""
        return {"scale": [self.scale.value, self.scale.good_steps]} if self.scale else {}

    def load_state(self, saved: dict[str, Any]) -> None:
        if self.scale:
            self.scale.value, self.scale.good_steps = saved["scale"]


def step_seed(seed: int, step: int) -> int:
    """Seed of a step's stochastic rounding."""
    return (seed * 1_000_003 + step) % (1 << 63)


class LossScale:
    """A factor on the loss that keeps small gradients above fp16's 6e-8 (Micikevicius 2018): halved when they
    overflow, doubled after 2,000 steps without (torch's GradScaler's numbers)."""

    GROW_AFTER = 2000

    def __init__(self) -> None:
        self.value, self.good_steps = 65536.0, 0

    def update(self, finite: bool) -> bool:
        """Moves the scale; whether the step may be taken. At scale 1 what is not finite is no overflow any more."""
        if not finite:
            may_take = self.value <= 1.0
            self.value, self.good_steps = max(self.value / 2.0, 1.0), 0
            return may_take
        self.good_steps += 1
        if self.good_steps == self.GROW_AFTER:
            self.value, self.good_steps = self.value * 2.0, 0
        return True


Draws = dict[tuple[torch.device, bool], torch.Generator]


class Stored16(torch.optim.Optimizer):
    """Another optimizer, one parameter at a time in fp32, with its state and what it updates stored in 16 bits.

    rounding of what is written back: nearest; stochastic, up or down with the probability that makes the mean right
    (Gupta 2015), so that updates below half a unit are not lost; kahan, nearest with the rest kept in 16 bits more per
    weight (Kahan 1965). Large parameters are taken in parts where the optimizer treats every number by itself; else
    the memory beyond storage is that of the largest.
    """

    def __init__(self, inner: torch.optim.Optimizer, dtype: torch.dtype, rounding: str) -> None:
        super().__init__(inner.param_groups, inner.defaults)
        self.kind: Callable[..., torch.optim.Optimizer] = type(inner)
        self.dtype, self.rounding = dtype, rounding
        self.grad_factor: Tensor | float = 1.0
        self.seed = 0

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        draws: Draws = {}
        for group in self.param_groups:
            options = {key: value for key, value in group.items() if key != "params"}
            for p in group["params"]:
                if p.grad is not None:
                    large = self.kind in BY_NUMBER and p.numel() > PART_NUMBERS and not is_spread(p)
                    (self._in_parts if large else self._update)(p, self.state[p], options, draws)

    def _in_parts(self, p: nn.Parameter, state: dict[str, Any], options: dict[str, Any], draws: Draws) -> None:
        """`_update`, some rows at a time."""
        assert p.grad is not None
        before, n = dict(state), max(PART_NUMBERS * len(p) // p.numel(), 1)
        for rows in (slice(at, at + n) for at in range(0, len(p), n)):
            some = nn.Parameter(p.data[rows])
            some.grad = p.grad[rows]
            part = {key: value[rows] if _has_rows(value) else deepcopy(value) for key, value in before.items()}
            self._update(some, part, options, draws)
            for key, value in part.items():
                if not _has_rows(value):
                    state[key] = value
                    continue
                if key not in state:
                    state[key] = value.new_empty(p.shape)
                state[key][rows] = value

    def _update(self, p: nn.Parameter, state: dict[str, Any], options: dict[str, Any], draws: Draws) -> None:
        exact = nn.Parameter(p.to(torch.float32, copy=True))
        if "rest" in state:
            exact.data += state["rest"].float()
        assert p.grad is not None
        exact.grad = p.grad.float() * self.grad_factor
        inner = self.kind([{**options, "params": [exact]}])
        if state:
            inner.state[exact] = {key: self._exact(key, value) for key, value in state.items() if key != "rest"}
        inner.step()
        new = self._rounded(exact.data, draws)
        if self.rounding == "kahan":
            state["rest"] = (exact.data - new.float()).to(self.dtype)
        p.copy_(new)
        for key, value in inner.state[exact].items():
            if _has_rows(value):
                value = self._rounded(value.sqrt() if key in SQUARES else value, draws)
            state[key] = value

    def _rounded(self, x: Tensor, draws: Draws) -> Tensor:
        if self.rounding != "stochastic":
            return x.to(self.dtype)
        key = x.device, is_spread(x)  # what every rank has is rounded alike on each, and rows of their own are not
        if key not in draws:
            draws[key] = torch.Generator(x.device).manual_seed(self.seed ^ rank_of(x) << 40)
        return map_rows(lambda rows: round_stochastic(rows, self.dtype, draws[key]), x)

    def _exact(self, key: str, value: Any) -> Any:
        if not _has_rows(value):
            return value
        return value.float().square() if key in SQUARES else value.float()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but state keeps its 16 bits where parameters emulate theirs."""
        super().load_state_dict(state_dict)
        for state in self.state.values():
            for key, value in state.items():
                if _has_rows(value):
                    state[key] = value.to(self.dtype)


def _has_rows(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0


def round_stochastic(x: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """x, fp32, to one of its two neighbours in a 16-bit dtype: the upper with the share of the way that x has gone.

    The mean over draws is x; beyond the largest number it is that number.
    """
    nearest = x.to(dtype)
    bits = nearest.view(torch.int16)  # sign and magnitude: one more is the next number away from zero
    low = torch.where(nearest.float().abs() > x.abs(), bits - 1, bits)
    floor, ceiling = low.view(dtype).float().abs(), (low + 1).view(dtype).float().abs()
    up = torch.rand(x.shape, generator=generator, device=x.device) < (x.abs() - floor) / (ceiling - floor)
    return torch.where(torch.isfinite(x), torch.where(up, low + 1, low).view(dtype), nearest)
