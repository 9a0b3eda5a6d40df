"""Steps that look at the text so far: what has been said is made less likely, or impossible.

Each is a pure function of logits (B, V) and of what `History` keeps count of. A ban that would leave a row without any
token is lifted for that row.

B batch, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

_LARGEST = torch.finfo(torch.float32).max


def logit_bias(logits: Tensor, bias: Mapping[int, float]) -> Tensor:
    """bias[token] is added to a token's logit; -inf forbids it."""
    changed = logits.clone()
    for token, value in bias.items():
        changed[:, token] = _finite(changed[:, token] + value, logits[:, token]) if value > -math.inf else value
    return _unless_empty(changed, logits)


def repetition_penalty(logits: Tensor, value: float, seen: Tensor) -> Tensor:
    """Logits of seen (B, V) tokens: l / value where l > 0, else l * value (Keskar 2019, as transformers signs it)."""
    return torch.where(seen, _finite(torch.where(logits < 0, logits * value, logits / value), logits), logits)


def presence_penalty(logits: Tensor, value: float, counts: Tensor) -> Tensor:
    """l - value for tokens that occur in the new text, counts (B, V) > 0 (OpenAI's API; unpublished)."""
    return _finite(logits - value * (counts > 0).to(logits.dtype), logits)


def frequency_penalty(logits: Tensor, value: float, counts: Tensor) -> Tensor:
    """l - value * counts (B, V): as often as a token occurs in the new text (OpenAI's API; unpublished)."""
    return _finite(logits - value * counts.to(logits.dtype), logits)


def forbid(logits: Tensor, tokens: Sequence[Iterable[int]]) -> Tensor:
    """-inf for the tokens listed for each row: those that would repeat an n-gram (Paulus 2018), or end too soon."""
    at = [(row, token) for row, listed in enumerate(tokens) for token in listed if token < logits.shape[-1]]
    if not at:
        return logits
    changed = logits.clone()
    changed[tuple(torch.tensor(at, device=logits.device).T)] = -math.inf
    return _unless_empty(changed, logits)


def allow_only(logits: Tensor, tokens: Sequence[Iterable[int] | None]) -> Tensor:
    """-inf for all but the tokens listed for each row; None: every token is allowed."""
    allowed = torch.ones_like(logits, dtype=torch.bool)
    for row, listed in enumerate(tokens):
        if listed is not None:
            allowed[row] = False
            allowed[row, list(listed)] = True
    return logits.masked_fill(~allowed, -math.inf)


def _finite(changed: Tensor, before: Tensor) -> Tensor:
    """Within what fp32 holds: an overflow must neither forbid a token nor make its row NaN. -inf stays."""
    return torch.where(before > -math.inf, changed.clamp(-_LARGEST, _LARGEST), before)


def _unless_empty(changed: Tensor, before: Tensor) -> Tensor:
    empty = ~changed.isfinite().any(dim=-1, keepdim=True)
    return torch.where(empty, before, changed)


@dataclass
class Trie:
    """Token sequences of which a text is to be one: what may come next at each point."""

    next: dict[int, Trie] = field(default_factory=dict)
    is_end: bool = False

    def add(self, tokens: Sequence[int]) -> None:
        node = self
        for token in tokens:
            node = node.next.setdefault(token, Trie())
        node.is_end = True


class History:
    """What the rows of a batch hold so far. Only what a strategy asks for is kept.

    prompts: token ids; counts (B, V) of new tokens; seen (B, V) of all tokens; ends: tokens that end a text; mu: first
    value of mirostat's cut, bits.
    """

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        vocab_size: int,
        device: torch.device | str = "cpu",
        *,
        counts: bool = False,
        seen: bool = False,
        ngram: int = 0,
        mu: float = 0.0,
        ends: Sequence[int] = (),
        choices: Trie | None = None,
    ) -> None:
        B = len(prompts)
        self.ends, self.ngram = ends, ngram
        self.n_new = [0] * B
        self.mu = torch.full((B,), mu, dtype=torch.float64, device=device)
        self.counts = torch.zeros(B, vocab_size, dtype=torch.int32, device=device) if counts else None
        self.seen = torch.zeros(B, vocab_size, dtype=torch.bool, device=device) if seen else None
        self.tails: list[tuple[int, ...]] = [()] * B  # the last n - 1 tokens
        self.followers: list[dict[tuple[int, ...], list[int]]] = [{} for _ in prompts]
        self.nodes: list[Trie | None] = [choices] * B
        for row, prompt in enumerate(prompts):
            if self.seen is not None:
                self.seen[row, torch.tensor(prompt, device=device)] = True
            for token in prompt if ngram else ():
                self._extend(row, token)

    def repeating(self) -> list[list[int]]:
        """For each row the tokens that would complete an n-gram which it holds already."""
        return [followers.get(tail, []) for followers, tail in zip(self.followers, self.tails, strict=True)]

    def unripe(self, n: int) -> list[Sequence[int]]:
        """For each row the tokens that would end it before it has n new ones."""
        return [self.ends if n_new < n else () for n_new in self.n_new]

    def allowed(self) -> list[Iterable[int] | None]:
        """For each row the tokens that go on towards a choice, or end one; None: any (no choices, or it is done)."""

        def of(node: Trie | None) -> list[int]:
            return [] if node is None else [*node.next, *(self.ends if node.is_end else ())]

        return [of(node) or None for node in self.nodes]

    def finished(self, row: int) -> bool:
        """Whether the row is a whole choice that no other continues."""
        node = self.nodes[row]
        return node is not None and node.is_end and not node.next

    def add(self, tokens: Sequence[int]) -> None:
        """One new token for each row."""
        if self.counts is not None or self.seen is not None:
            at = torch.tensor(tokens, device=self.mu.device).view(-1, 1)
            if self.counts is not None:
                self.counts.scatter_add_(1, at, torch.ones_like(at, dtype=torch.int32))
            if self.seen is not None:
                self.seen.scatter_(1, at, True)
        for row, token in enumerate(tokens):
            self.n_new[row] += 1
            if self.ngram:
                self._extend(row, token)
            node = self.nodes[row]
            if node is not None:
                self.nodes[row] = node.next.get(token, Trie())

    def keep(self, rows: Sequence[int], joined: History | None = None) -> None:
        """Forgets every other row, and has `joined`'s rows behind those that are kept. A row may be kept twice."""
        at = list(rows)
        for name in ("n_new", "tails", "followers", "nodes"):
            mine = getattr(self, name)
            setattr(self, name, [mine[i] for i in at] + (getattr(joined, name) if joined else []))
        if len(set(at)) < len(at):
            self.followers = [{gram: list(tokens) for gram, tokens in table.items()} for table in self.followers]
        for name in ("mu", "counts", "seen"):
            table = getattr(self, name)
            if table is not None:
                setattr(self, name, torch.cat((table[at], getattr(joined, name))) if joined else table[at])

    def _extend(self, row: int, token: int) -> None:
        tail = self.tails[row]
        if len(tail) == self.ngram - 1:
            self.followers[row].setdefault(tail, []).append(token)
        self.tails[row] = (*tail, token)[-(self.ngram - 1) :] if self.ngram > 1 else ()
