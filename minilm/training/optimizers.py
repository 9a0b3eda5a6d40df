"""Optimizers that torch does not have: Adafactor as published (torch's own differs in its step), Lion."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from minilm.training.spread import own, spread_as, whole


class Adafactor(torch.optim.Optimizer):
    """Shazeer & Stern 2018: a second moment kept as row and column means, n + m numbers for an n x m matrix.

        V = beta V + (1 - beta) (G^2 + 1e-30) with beta = 1 - t^-0.8, as R = its row means, C = its column means
        U = G / sqrt(R C^T / mean(R)); divided by max(1, rms(U) / clip); X -= rate U

    clip 0: off. relative_step: rate = min(lr, 1 / sqrt(t)) max(1e-3, rms(X)), the paper's with lr 1e-2; else lr.
    beta1: decay of a first moment of the updates, None for none. weight_decay is decoupled.
    Of a matrix that is spread over ranks the gradient is gathered, and the update worked out whole on every rank; its
    first moment is spread, its row and column means are not.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-2,
        beta1: float | None = None,
        weight_decay: float = 0.0,
        clip: float = 1.0,
        relative_step: bool = True,
    ) -> None:
        defaults = {"lr": lr, "beta1": beta1, "weight_decay": weight_decay, "clip": clip}
        super().__init__(params, {**defaults, "relative_step": relative_step})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, self.state[p], group)

    def _update(self, p: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        assert p.grad is not None
        grad = whole(p.grad) if p.dim() >= 2 else p.grad
        if not state:
            state["step"] = torch.zeros(())
            if p.dim() >= 2:
                state["row"], state["column"] = grad.new_zeros(p.shape[:-1]), grad.new_zeros(*p.shape[:-2], p.shape[-1])
            else:
                state["square"] = torch.zeros_like(p)
            if group["beta1"] is not None:
                state["moment"] = torch.zeros_like(p)
        state["step"] += 1
        t = state["step"].item()
        rate: float | Tensor = group["lr"]
        if group["relative_step"]:
            rate = min(group["lr"], 1.0 / math.sqrt(t)) * _rms(p).clamp(min=1e-3)
        fresh = t**-0.8
        square = grad.square() + 1e-30
        if p.dim() >= 2:
            row, column = state["row"].lerp_(square.mean(-1), fresh), state["column"].lerp_(square.mean(-2), fresh)
            update = (row / row.mean(-1, keepdim=True)).rsqrt().unsqueeze(-1) * column.rsqrt().unsqueeze(-2) * grad
        else:
            update = state["square"].lerp_(square, fresh).rsqrt() * grad
        if group["clip"]:
            update /= (_rms(update) / group["clip"]).clamp(min=1.0)
        update = spread_as(update * rate, p)
        if group["beta1"] is not None:
            update = state["moment"].lerp_(update, 1.0 - group["beta1"])
        p.mul_(1.0 - rate * group["weight_decay"]).sub_(update)


class Lion(torch.optim.Optimizer):
    """Chen 2023: X -= lr (sign(b1 M + (1 - b1) G) + weight_decay X), then M = b2 M + (1 - b2) G.

    Its steps are all of size lr: a third to a tenth of AdamW's rate, with as much more decay.
    """

    def __init__(
        self, params: ParamsT, lr: float = 1e-4, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            for p in params:
                if not self.state[p]:
                    self.state[p]["moment"] = torch.zeros_like(p)
            grads, moments = [own(p.grad) for p in params], [own(self.state[p]["moment"]) for p in params]
            params = [own(p) for p in params]
            (b1, b2), lr = group["betas"], group["lr"]
            update = torch._foreach_lerp(moments, grads, 1.0 - b1)
            torch._foreach_sign_(update)
            torch._foreach_mul_(params, 1.0 - lr * group["weight_decay"])
            torch._foreach_add_(params, update, alpha=-lr)
            torch._foreach_lerp_(moments, grads, 1.0 - b2)


def _rms(x: Tensor) -> Tensor:
    return whole(x.norm()) / math.sqrt(x.numel())
