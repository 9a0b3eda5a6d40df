"""From logits to a token: pure functions of the logits, in one stated order.

`STEPS` is the order of application, each step skipped at its neutral value: temperature, top-k, top-p, then one draw
from what is left. The order is that of transformers' `generate`, so that equal settings mean equal distributions.
Every filter keeps the likeliest token, and all that tie with the last one it keeps: what is kept never depends on how
a sort breaks ties.

B batch, V vocabulary. Logits are (..., V); a row without any finite logit is an error, -inf is never drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from minilm.errors import MinilmError, UsageError

_FP32 = torch.finfo(torch.float32)
_SPAN = 64  # tokens that a draw sums at once
_NUCLEUS = (512, 8192)  # tokens that top-p looks at first: all of 50,257 sorted cost 3 ms on a CPU, 512 cost 0.1 ms


@dataclass(frozen=True)
class Strategy:
    """How the next token is chosen. The defaults sample from the model's own distribution.

    Raises UsageError on a value outside its range.
    """

    temperature: float = 1.0
    """Logits are divided by it. 0: the likeliest token, always (greedy)."""
    top_k: int = 0
    """Only the k likeliest tokens (Fan 2018). 0: all; more than V is V."""
    top_p: float = 1.0
    """Only the smallest set of likeliest tokens with mass p or more (nucleus; Holtzman 2020). 1: all."""

    def __post_init__(self) -> None:
        if not (_is_number(self.temperature) and 0.0 <= self.temperature < math.inf):
            raise UsageError(f"temperature must be 0 (greedy) or more, not {self.temperature!r}")
        if type(self.top_k) is not int or self.top_k < 0:
            raise UsageError(f"top_k must be a whole number, 0 (off) or more, not {self.top_k!r}")
        if not (_is_number(self.top_p) and 0.0 < self.top_p <= 1.0):
            raise UsageError(f"top_p must lie in (0, 1], not {self.top_p!r}")


def temperature(logits: Tensor, value: float) -> Tensor:
    """(logits - max) / value, value > 0: the same softmax as logits / value, finite however small value is."""
    value = min(max(value, _FP32.tiny), _FP32.max)
    return (logits - logits.amax(dim=-1, keepdim=True)) / value


def top_k(logits: Tensor, k: int) -> Tensor:
    """-inf for every logit below the k-th largest."""
    kth = logits.topk(min(k, logits.shape[-1]), dim=-1).values[..., -1:]
    return logits.masked_fill(logits < kth, -math.inf)


def top_p(logits: Tensor, p: float) -> Tensor:
    """-inf for every token whose more likely tokens have mass p or more already."""
    probabilities = logits.softmax(dim=-1)
    V = logits.shape[-1]
    for n in (*(n for n in _NUCLEUS if n < V), V):
        likeliest = probabilities.topk(n, dim=-1).values
        if bool((likeliest.sum(dim=-1) >= p).all()):
            break
    mass_before = likeliest.cumsum(dim=-1) - likeliest
    n_kept = (mass_before < p).sum(dim=-1, keepdim=True).clamp(min=1)  # p may be 0 in fp32
    return logits.masked_fill(probabilities < likeliest.gather(-1, n_kept - 1), -math.inf)


class Step(NamedTuple):
    """One stage: its function of (logits, value), and the value at which it changes nothing."""

    apply: Callable[[Tensor, Any], Tensor]
    neutral: float


STEPS: dict[str, Step] = {
    "temperature": Step(temperature, 1.0),
    "top_k": Step(top_k, 0),
    "top_p": Step(top_p, 1.0),
}


def filtered(logits: Tensor, strategy: Strategy) -> Tensor:
    """Logits (..., V) after every step in order, fp32; temperature must not be 0."""
    logits = logits.float()
    for name, step in STEPS.items():
        value = getattr(strategy, name)
        if value != step.neutral:
            logits = step.apply(logits, value)
    return logits


def choose(logits: Tensor, strategy: Strategy, uniforms: Tensor | None = None) -> Tensor:
    """Tokens (B,) for logits (B, V); uniforms (B,) in [0, 1), float64, decide the draws (not needed by greedy).

    A row's token is a function of its logits and its uniform alone. Raises MinilmError where the logits hold NaN or
    +inf, or nothing but -inf.
    """
    if not bool(logits.amax(dim=-1).isfinite().all()):
        raise MinilmError(
            "the model's logits are not numbers (NaN or infinite): its weights are damaged or its training diverged"
        )
    if strategy.temperature == 0.0:
        return logits.argmax(dim=-1)
    if uniforms is None:
        raise ValueError("sampling needs uniforms")
    return draw(filtered(logits, strategy), uniforms)


def draw(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Tokens (B,) from softmax(logits (B, V)) by inverting the cumulative distribution at uniforms (B,)."""
    probabilities = F.pad(logits.softmax(dim=-1), (0, -logits.shape[-1] % _SPAN))
    spans = probabilities.unflatten(-1, (-1, _SPAN))  # first a span, then a token in it: sums of V in a row are slow
    masses = spans.sum(dim=-1, dtype=torch.float64)  # fp32 would lose tokens rarer than 1e-7
    ends = masses.cumsum(dim=-1)
    target = uniforms[:, None] * ends[:, -1:]
    span = torch.searchsorted(ends, target, right=True).clamp(max=spans.shape[1] - 1)
    inside = spans.gather(1, span[:, :, None].expand(-1, -1, _SPAN))[:, 0].double().cumsum(dim=-1)
    begin = ends.gather(-1, span) - masses.gather(-1, span)
    token = torch.searchsorted(inside, target - begin, right=True).clamp(max=_SPAN - 1)
    tokens = span * _SPAN + token
    # Sums that round may point at a token of probability 0, or just past its span; it is still never drawn.
    impossible = probabilities.gather(-1, tokens) == 0.0
    if bool(impossible.any()):
        tokens = torch.where(impossible, probabilities.argmax(dim=-1, keepdim=True), tokens)
    return tokens[:, 0]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
