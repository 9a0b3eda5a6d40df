"""Muon as torch has it, with its products in the fastest format of the machine and once for all matrices of a shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from minilm.training.spread import spread_as, whole

BATCH_NUMBERS = 1 << 26  # worked out at once: a bound on scratch memory, which is some four times as large


class Muon(torch.optim.Muon):
    """Jordan 2024: the momentum's nearest orthogonal matrix, by five Newton-Schulz steps, is the update.

    Updates have AdamW's size (Liu 2025, section 2.2: 0.2 sqrt(max(n, m)) for an n x m matrix). Differs from torch's in
    rounding only: torch's products are always bf16, which a CPU without it emulates (two thirds of a step of the preset
    tiny on an EPYC of 2022); and all matrices of a shape are worked out as one batch.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[tuple[torch.Size, torch.device], list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault((p.shape, p.device), []).append(p)
            for (shape, _), matrices in by_shape.items():
                n_at_once = max(BATCH_NUMBERS // shape.numel(), 1)
                for at in range(0, len(matrices), n_at_once):
                    self._update(matrices[at : at + n_at_once], group)

    def _update(self, matrices: list[Tensor], group: dict[str, Any]) -> None:
        """One step of matrices of one shape."""
        directions = torch.stack([whole(self._direction(p, group["momentum"], group["nesterov"])) for p in matrices])
        directions = directions.to(product_dtype(directions.device))
        updates = orthogonal(directions, group["ns_coefficients"], group["ns_steps"], group["eps"])
        rate = group["lr"] * 0.2 * max(matrices[0].shape) ** 0.5
        for p, update in zip(matrices, updates, strict=True):
            p.mul_(1.0 - group["lr"] * group["weight_decay"]).add_(spread_as(update, p), alpha=-rate)

    def _direction(self, p: Tensor, momentum: float, nesterov: bool) -> Tensor:
        assert p.grad is not None
        state = self.state[p]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(p.grad)
        moment: Tensor = state["momentum_buffer"].lerp_(p.grad, 1.0 - momentum)
        return p.grad.lerp(moment, momentum) if nesterov else moment


def orthogonal(x: Tensor, coefficients: tuple[float, float, float], n_steps: int, eps: float) -> Tensor:
    """(B, n, m) -> the same, singular values brought near 1 (0.7 to 1.2) by the quintic a s + b s^3 + c s^5."""
    a, b, c = coefficients
    tall = x.size(1) > x.size(2)
    if tall:
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(n_steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def product_dtype(device: torch.device) -> torch.dtype:
    """bf16 where the hardware multiplies it, fp32 elsewhere."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if native else torch.float32
