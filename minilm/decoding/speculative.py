"""Several tokens per pass of the model: guessed by something cheap, checked at once (Leviathan 2023, Chen 2023).

A guess x drawn from q stays with probability min(1, p(x) / q(x)); where it does not, the token comes from what p has
above q, max(0, p - q) renormalised, and the guesses behind it are dropped. Each token then has exactly the distribution
p of plain decoding, and at temperature 0 it is the same token; for one seed the drawn texts differ from plain
decoding's. One prompt at a time: what is saved is reading the weights.

T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from minilm.decoding.contexts import evaluating
from minilm.decoding.loop import Job, Piece
from minilm.decoding.rows import logits_of, read
from minilm.decoding.strategies import Strategy, draw, filtered
from minilm.model.cache import Cache
from minilm.model.gpt import GPT

Guess = Callable[[list[int], int, Callable[[], float]], tuple[list[int], Tensor | None]]
"""(text so far, how many, uniforms) -> tokens, at most so many, and the distributions (n, V) that they were drawn from;
None: they are certain."""


class Reader:
    """One model's context, and tokens read ahead of it that may be taken back. Its window moves as in `Contexts`."""

    def __init__(self, model: GPT, text: list[int]) -> None:
        self.model, self.block_size = model, model.config.block_size
        self.cache = Cache(model.config, 1, self.block_size, model.wte.weight.dtype, model.device)
        self.context = text[-self.block_size :]
        self.read: list[int] = []  # what the cache holds

    @property
    def room(self) -> int:
        """Tokens that fit behind the context."""
        return self.block_size - len(self.context)

    def extend(self, tokens: list[int]) -> None:
        """The text goes on."""
        for token in tokens:
            self.context.append(token)
            if len(self.context) > self.block_size:
                del self.context[: -max(1, self.block_size // 2)]

    def logits(self, ahead: list[int], n: int) -> Tensor:
        """Behind the last n tokens of the context and `ahead`: (n, V in use). Only what the cache lacks is read."""
        wanted = self.context + ahead
        most = min(len(wanted) - n, len(self.read))
        same = next((i for i in range(most) if self.read[i] != wanted[i]), most)
        self.cache.reset(same)
        ids = torch.tensor([wanted[same:]], device=self.model.device)
        self.read = wanted
        return logits_of(self.model, read(self.model, ids, self.cache)[0, -n:])


def by_model(model: GPT, strategy: Strategy, n_tokens: int) -> Callable[[list[int]], Guess]:
    """Guesses of a smaller model with the same vocabulary, drawn with the same strategy."""

    def start(text: list[int]) -> Guess:
        reader = Reader(model, text)
        n_told = len(text)

        def guess(text: list[int], n: int, uniform: Callable[[], float]) -> tuple[list[int], Tensor | None]:
            nonlocal n_told
            reader.extend(text[n_told:])
            n_told = len(text)
            tokens: list[int] = []
            rows = []
            for _ in range(min(n, reader.room)):
                q = distribution(reader.logits(tokens, 1)[:, :n_tokens], strategy)
                tokens.append(_drawn(q, uniform()))
                rows.append(q)
            return tokens, torch.cat(rows) if rows else None

        return guess

    return start


def by_lookup(longest: int = 3) -> Callable[[list[int]], Guess]:
    """Guesses what followed when the last tokens, `longest` or fewer, stood in the text before (Saxena 2023)."""

    def guess(text: list[int], n: int, uniform: Callable[[], float]) -> tuple[list[int], Tensor | None]:
        for size in range(min(longest, len(text) - 1), 0, -1):
            tail = text[-size:]
            for at in range(len(text) - size - 1, -1, -1):  # the latest first
                if text[at : at + size] == tail:
                    return text[at + size : at + size + n], None
        return [], None

    return lambda text: guess


def speculate(job: Job, start: Callable[[list[int]], Guess], n_ahead: int) -> Iterator[Piece]:
    """Decodes every row, n_ahead guesses at a time. The strategy must not look at what was said before."""
    for row, prompt in enumerate(job.prompts):
        random = np.random.Generator(np.random.Philox(job.seeds[row]))
        text, n_new = list(prompt), 0
        reader, guess = Reader(job.model, text), start(text)
        done = False
        while not done:
            with torch.inference_mode(), evaluating(job.model):
                n = min(n_ahead, reader.room, job.max_new_tokens - n_new - 1)
                tokens, q = guess(text, n, random.random) if n > 0 else ([], None)
                logits = reader.logits(tokens, 1 + len(tokens))[:, : job.n_tokens]
                accepted = _check(job, logits, tokens, q, random.random)
            reader.extend(accepted)
            text += accepted
            for token in accepted:
                n_new += 1
                done = token in job.ends or n_new == job.max_new_tokens
                words, stopped = job.watch(row, token, done)
                done |= stopped
                yield Piece(row, words, done, token)
                if done:
                    break


def _check(job: Job, logits: Tensor, guesses: list[int], q: Tensor | None, uniform: Callable[[], float]) -> list[int]:
    """The guesses that stay, and one token more."""
    p = distribution(logits, job.strategy)
    accepted: list[int] = []
    for i, token in enumerate(guesses):
        mine, theirs = float(p[i, token]), 1.0 if q is None else float(q[i, token])
        if uniform() * theirs < mine:
            accepted.append(token)
            continue
        rest = p[i].clone()
        if q is None:
            rest[token] = 0.0
        else:
            rest = (rest - q[i]).clamp(min=0.0)
        return [*accepted, _drawn((rest if float(rest.sum()) > 0 else p[i])[None], uniform())]
    return [*accepted, _drawn(p[-1:], uniform())]


def distribution(logits: Tensor, strategy: Strategy) -> Tensor:
    """What plain decoding draws from: (T, V), all of it on the likeliest token at temperature 0."""
    if strategy.temperature == 0.0:
        return torch.nn.functional.one_hot(logits.argmax(dim=-1), logits.shape[-1]).float()
    return filtered(logits, strategy).softmax(dim=-1)


def _drawn(p: Tensor, uniform: float) -> int:
    return int(draw(p.log(), torch.tensor([uniform], dtype=torch.float64, device=p.device)))
