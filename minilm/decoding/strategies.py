"""From logits to a token: pure functions of the logits, in one stated order.

`STEPS` is the order of application, each step skipped at its neutral value: what may be said at all (choices, bias),
what has been said (penalties, n-grams), what may not end yet, temperature, then the filters, then one draw from what is
left. The order is that of transformers' `generate`, so that equal settings mean equal distributions. Temperature 0
takes the likeliest token after the penalties. Every filter keeps at least one token (all but typical: the likeliest),
and all that tie with the last one it keeps: what is kept never depends on how a sort breaks ties.

B batch, V vocabulary. Logits are (B, V); a row without any finite logit is an error, -inf is never drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from minilm.checks import check_each, is_count
from minilm.decoding import penalties
from minilm.decoding.penalties import History, Trie
from minilm.errors import MinilmError, UsageError

_FP32 = torch.finfo(torch.float32)
_SPAN = 64  # tokens that a draw sums at once
_NUCLEUS = (512, 8192)  # tokens that top-p looks at first: all of 50,257 sorted cost 3 ms on a CPU, 512 cost 0.1 ms


@dataclass(frozen=True)
class Strategy:
    """How the next token is chosen. The defaults sample from the model's own distribution.

    Raises UsageError on a value outside its range, and on settings that contradict each other.
    """

    temperature: float = 1.0
    """Logits are divided by it. 0: the likeliest token, always (greedy)."""
    top_k: int = 0
    """Only the k likeliest tokens (Fan 2018). 0: all; more than V is V."""
    top_p: float = 1.0
    """Only the smallest set of likeliest tokens with mass p or more (nucleus; Holtzman 2020). 1: all."""
    min_p: float = 0.0
    """Only tokens with min_p times the probability of the likeliest, or more (Nguyen 2024). 0: all."""
    typical_p: float = 1.0
    """Only the tokens nearest to the expected surprise, with mass p or more (Meister 2022). 1: all."""
    epsilon: float = 0.0
    """Only tokens of probability epsilon or more (Hewitt 2022). 0: all."""
    eta: float = 0.0
    """Only tokens of probability min(eta, sqrt(eta) e^-entropy) or more (Hewitt 2022). 0: all."""
    mirostat: float = 0.0
    """Surprise to aim at, in bits a token: a cut that follows what was drawn (v2; Basu 2021). 0: off."""
    mirostat_rate: float = 0.1
    """Share of the error by which mirostat's cut moves."""
    repetition_penalty: float = 1.0
    """Logits of tokens so far, prompt included: divided by it if positive, else multiplied (Keskar 2019). 1: off."""
    presence_penalty: float = 0.0
    """Subtracted from the logits of tokens that the new text holds. 0: off."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit once for each time that the new text holds it. 0: off."""
    no_repeat_ngram: int = 0
    """No n tokens in a row occur twice, the prompt's included (Paulus 2018). 0: off."""
    min_new_tokens: int = 0
    """No end before so many new tokens."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of these tokens; -inf forbids one."""

    def __post_init__(self) -> None:
        check_each(self, ("temperature",), lambda t: _is_number(t) and 0.0 <= t < math.inf, "be 0 (greedy) or more")
        check_each(self, ("top_k", "no_repeat_ngram", "min_new_tokens"), is_count, "be a whole number, 0 (off) or more")
        shares = ("top_p", "typical_p", "mirostat_rate")
        check_each(self, shares, lambda p: _is_number(p) and 0.0 < p <= 1.0, "lie in (0, 1]")
        check_each(self, ("min_p", "epsilon", "eta"), lambda p: _is_number(p) and 0.0 <= p <= 1.0, "lie in [0, 1]")
        check_each(self, ("mirostat",), lambda x: _is_number(x) and 0.0 <= x < math.inf, "be 0 (off) or bits a token")
        check_each(self, ("repetition_penalty",), lambda x: _is_number(x) and 0.0 < x < math.inf, "be above 0 (1: off)")
        subtracted = ("presence_penalty", "frequency_penalty")
        check_each(self, subtracted, lambda x: _is_number(x) and math.isfinite(x), "be a number (0: off)")
        for token, value in self.logit_bias.items():
            if not (type(token) is int and token >= 0 and _is_number(value) and value < math.inf):
                raise UsageError(f"logit_bias maps token ids to numbers or -inf, not {token!r} to {value!r}")
        if self.mirostat:
            other = [name for name in CUTS if getattr(self, name) != STEPS[name].neutral]
            if other or self.temperature == 0.0:
                raise UsageError(
                    f"mirostat decides by itself what is cut off: leave out {', '.join(other) or 'temperature 0'}"
                )

    def history(
        self,
        prompts: list[list[int]],
        vocab_size: int,
        device: torch.device | str = "cpu",
        ends: tuple[int, ...] = (),
        choices: Trie | None = None,
    ) -> History:
        """Of rows that begin with these prompts, with what this strategy's steps read."""
        counts, seen = bool(self.presence_penalty or self.frequency_penalty), self.repetition_penalty != 1.0
        kept: dict[str, Any] = {"counts": counts, "seen": seen, "ngram": self.no_repeat_ngram, "mu": 2 * self.mirostat}
        return History(prompts, vocab_size, device, ends=ends, choices=choices, **kept)


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


def min_p(logits: Tensor, value: float) -> Tensor:
    """-inf for every token with less than value times the probability of the likeliest."""
    probabilities = logits.softmax(dim=-1)
    return logits.masked_fill(probabilities < value * probabilities.amax(dim=-1, keepdim=True), -math.inf)


def typical_p(logits: Tensor, mass: float) -> Tensor:
    """-inf for every token when those whose surprise -ln p is nearer to the entropy H have the mass already."""
    log_p = logits.log_softmax(dim=-1)
    probabilities = log_p.exp()
    entropy = torch.special.entr(probabilities).sum(dim=-1, keepdim=True)
    distance = (log_p + entropy).abs()
    nearest_first = distance.sort(dim=-1)
    mass_so_far = probabilities.gather(-1, nearest_first.indices).cumsum(dim=-1)
    last = (mass_so_far < mass).sum(dim=-1, keepdim=True).clamp(max=logits.shape[-1] - 1)
    return logits.masked_fill(distance > nearest_first.values.gather(-1, last), -math.inf)


def epsilon(logits: Tensor, value: float) -> Tensor:
    """-inf for every token of probability below value, but the likeliest."""
    return _cut(logits, logits.softmax(dim=-1), value)


def eta(logits: Tensor, value: float) -> Tensor:
    """-inf for every token of probability below min(value, sqrt(value) exp(-H)), H the entropy, but the likeliest."""
    probabilities = logits.softmax(dim=-1)
    entropy = torch.special.entr(probabilities).sum(dim=-1, keepdim=True)
    return _cut(logits, probabilities, (math.sqrt(value) * (-entropy).exp()).clamp(max=value))


def mirostat(logits: Tensor, mu: Tensor) -> Tensor:
    """-inf for every token whose surprise, -log2 p, is above mu (B,) bits, but the likeliest."""
    return _cut(logits, logits.softmax(dim=-1), torch.exp2(-mu)[:, None].to(logits.dtype))


def _cut(logits: Tensor, probabilities: Tensor, least: Tensor | float) -> Tensor:
    below = (probabilities < least) & (logits < logits.amax(dim=-1, keepdim=True))
    return logits.masked_fill(below, -math.inf)


class Step(NamedTuple):
    """One stage: its function of (logits, value, history), and the value at which it changes nothing."""

    apply: Callable[[Tensor, Any, History], Tensor]
    neutral: Any


def _filter(function: Callable[[Tensor, Any], Tensor], neutral: Any) -> Step:
    return Step(lambda logits, value, _: function(logits, value), neutral)


BEFORE: dict[str, Step] = {
    "logit_bias": _filter(penalties.logit_bias, {}),
    "repetition_penalty": Step(lambda x, v, past: penalties.repetition_penalty(x, v, _known(past.seen)), 1.0),
    "presence_penalty": Step(lambda x, v, past: penalties.presence_penalty(x, v, _known(past.counts)), 0.0),
    "frequency_penalty": Step(lambda x, v, past: penalties.frequency_penalty(x, v, _known(past.counts)), 0.0),
    "no_repeat_ngram": Step(lambda x, _, past: penalties.forbid(x, past.repeating()), 0),
    "min_new_tokens": Step(lambda x, n, past: penalties.forbid(x, past.unripe(n)), 0),
}
"""What greedy decoding obeys too."""
CUTS: dict[str, Step] = {
    "top_k": _filter(top_k, 0),
    "top_p": _filter(top_p, 1.0),
    "min_p": _filter(min_p, 0.0),
    "typical_p": _filter(typical_p, 1.0),
    "epsilon": _filter(epsilon, 0.0),
    "eta": _filter(eta, 0.0),
}
"""What takes tokens out of a draw."""
AFTER: dict[str, Step] = {"temperature": _filter(temperature, 1.0), **CUTS}
STEPS: dict[str, Step] = {**BEFORE, **AFTER}
_NO_HISTORY = History([], 0)
NOT_NUMBERS = "the model's logits are not numbers (NaN or infinite): its weights are damaged or its training diverged"


def filtered(logits: Tensor, strategy: Strategy, history: History = _NO_HISTORY) -> Tensor:
    """Logits (B, V) after every step in order, fp32, mirostat's cut included; temperature must not be 0."""
    logits = _apply(AFTER, penalised(logits, strategy, history), strategy, history)
    return mirostat(logits, history.mu) if strategy.mirostat else logits


def penalised(logits: Tensor, strategy: Strategy, history: History = _NO_HISTORY) -> Tensor:
    """Logits (B, V) after the steps before temperature, fp32: what greedy decoding and searches go by."""
    if any(node is not None for node in history.nodes):
        logits = penalties.allow_only(logits, history.allowed())
    return _apply(BEFORE, logits.float(), strategy, history)


def choose(
    logits: Tensor, strategy: Strategy, uniforms: Tensor | None = None, history: History = _NO_HISTORY
) -> Tensor:
    """Tokens (B,) for logits (B, V); uniforms (B,) in [0, 1), float64, decide the draws (not needed by greedy).

    A row's token is a function of its logits, its uniform and its history alone. history: `Strategy.history` of the
    rows, needed where a step reads it; the caller adds the tokens. Raises MinilmError where the logits hold NaN or
    +inf, or nothing but -inf.
    """
    if not bool(logits.amax(dim=-1).isfinite().all()):
        raise MinilmError(NOT_NUMBERS)
    return _chosen(logits, strategy, uniforms, history)


def choose_unseen(logits: Tensor, strategy: Strategy, uniforms: Tensor, history: History) -> Tensor:
    """As `choose`, without waiting for a card: -1 where logits are not numbers."""
    numbers = logits.amax(dim=-1).isfinite()
    tokens = _chosen(torch.where(numbers[:, None], logits, 0.0), strategy, uniforms, history)
    return torch.where(numbers, tokens, -1)


def _chosen(logits: Tensor, strategy: Strategy, uniforms: Tensor | None, history: History) -> Tensor:
    logits = penalised(logits, strategy, history)
    if strategy.temperature == 0.0:
        return logits.argmax(dim=-1)
    if uniforms is None:
        raise ValueError("sampling needs uniforms")
    if not strategy.mirostat:
        return draw(_apply(AFTER, logits, strategy, history), uniforms)
    whole = _apply({"temperature": STEPS["temperature"]}, logits, strategy, history)
    tokens = draw(mirostat(whole, history.mu), uniforms)
    surprise = -whole.log_softmax(dim=-1).gather(-1, tokens[:, None])[:, 0] / math.log(2)  # bits, before the cut
    history.mu = history.mu - strategy.mirostat_rate * (surprise.to(history.mu) - strategy.mirostat)
    return tokens


def _apply(steps: Mapping[str, Step], logits: Tensor, strategy: Strategy, history: History) -> Tensor:
    for name, step in steps.items():
        value = getattr(strategy, name)
        if value != step.neutral:
            logits = step.apply(logits, value, history)
    return logits


def _known(table: Tensor | None) -> Tensor:
    if table is None:
        raise ValueError("this strategy needs the rows' history: Strategy.history(prompts, vocab_size)")
    return table


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
    if tokens.is_cuda or bool(impossible.any()):  # asking would wait for a card
        tokens = torch.where(impossible, probabilities.argmax(dim=-1, keepdim=True), tokens)
    return tokens[:, 0]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
