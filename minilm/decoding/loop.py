"""The loop: prompts are read at once, then one token per row and pass, both into one cache.

- Rows that are done leave the batch when they are a quarter of it; prompts that wait for room take their places.
- A row's tokens follow from the model, its prompt, its seed and the strategy; in fp32 other rows do not change them.
- Nothing is drawn from torch's global generator.

B batch (rows), V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from minilm.decoding.contexts import Contexts, capacity
from minilm.decoding.parallel import shares, spread
from minilm.decoding.penalties import History, Trie
from minilm.decoding.strategies import NOT_NUMBERS, Strategy, choose, choose_unseen
from minilm.errors import MinilmError
from minilm.model.gpt import GPT

CACHE_BYTES = 1 << 30  # cache and logits of the rows that are decoded together stay below this


class Piece(NamedTuple):
    """What one pass adds to one row."""

    row: int
    text: str  # may be empty
    last: bool  # the row is done
    token: int = -1
    logprob: float | None = None  # nats, in the model's own distribution
    alternatives: tuple[tuple[int, float], ...] = ()  # the likeliest tokens there, with theirs


@dataclass(frozen=True)
class Beside:
    """A second model, or the same, that reads prompts of its own and then the same new tokens.

    combine: the job's logits and these, (B, V) each, to the logits that are decoded.
    """

    model: GPT
    prompts: list[list[int]]
    combine: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Job:
    """What is decoded: one prompt, one seed a row.

    ends: tokens that end a row. vocab_size: tokens from there on are never drawn; None: all are. choices: every row
    becomes one of them. alternatives: None: no log-probabilities; else so many likeliest tokens. watch: called with
    each token of a row and whether it is its last; says what it adds to the text, and whether the row ends here.
    shift: what was read of a full context is kept.
    """

    model: GPT
    prompts: list[list[int]]
    seeds: list[int]
    strategy: Strategy
    max_new_tokens: int
    ends: tuple[int, ...] = ()
    vocab_size: int | None = None
    choices: Trie | None = None
    alternatives: int | None = None
    watch: Callable[[int, int, bool], tuple[str, bool]] = lambda row, token, last: ("", False)
    use_cache: bool = True
    shift: bool = False
    beside: Beside | None = None

    @property
    def n_tokens(self) -> int:
        """Tokens that may be drawn."""
        return min(self.vocab_size or self.model.config.rows_used, self.model.config.rows_used)


def decode(job: Job) -> Iterator[Piece]:
    """Every row's pieces in order; rows are interleaved."""
    n_rows = len(job.prompts)
    if not n_rows or not job.max_new_tokens:
        return iter(())
    n_threads = shares(job.model, n_rows)
    if n_threads == 1:
        return _decode_rows(job, range(n_rows), CACHE_BYTES)
    return spread(lambda rows: _decode_rows(job, rows, CACHE_BYTES // n_threads), n_rows, n_threads)


def _decode_rows(job: Job, rows: Sequence[int], n_bytes: int) -> Iterator[Piece]:
    readers = [(job.model, job.prompts)] + ([(job.beside.model, job.beside.prompts)] if job.beside else [])
    n_slots = [slots(model, [prompts[row] for row in rows], job.max_new_tokens) for model, prompts in readers]
    room = min(capacity(model, n, n_bytes // len(readers)) for (model, _), n in zip(readers, n_slots, strict=True))
    waiting = deque(rows)
    members = [waiting.popleft() for _ in range(min(room, len(waiting)))]
    contexts, *others = (
        Contexts(model, [prompts[row] for row in members], n, job.use_cache, job.shift)
        for (model, prompts), n in zip(readers, n_slots, strict=True)
    )
    V = job.n_tokens

    def new_history(prompts: list[list[int]]) -> History:
        return job.strategy.history(prompts, V, contexts.device, job.ends, job.choices)

    history = new_history([job.prompts[row] for row in members])
    random = [np.random.Generator(np.random.Philox(job.seeds[row])) for row in members]
    done = [False] * len(members)
    while True:
        logits = contexts.logits()[:, :V]
        if job.beside is not None:
            logits = job.beside.combine(logits, others[0].logits()[:, :V].to(logits.device))
        uniforms = torch.tensor([r.random() for r in random], dtype=torch.float64)
        if logits.is_cuda:
            tokens = _chosen_on_card(logits, job.strategy, uniforms, history, contexts if not others else None)
        else:
            tokens = choose(logits, job.strategy, uniforms, history).tolist()
        history.add(tokens)
        scores = None if job.alternatives is None else _scores(logits, tokens, job.alternatives)
        for i, token in enumerate(tokens):
            if not done[i]:
                done[i] = token in job.ends or history.n_new[i] == job.max_new_tokens or history.finished(i)
                text, stopped = job.watch(members[i], token, done[i])
                done[i] |= stopped
                yield Piece(members[i], text, done[i], token, *(scores[i] if scores else ()))
        kept = [i for i, is_done in enumerate(done) if not is_done]
        if 4 * len(kept) > 3 * len(done):
            kept = list(range(len(done)))
        joining = [waiting.popleft() for _ in range(min(room - len(kept), len(waiting)))]
        if not kept and not joining:
            return
        prompts = [job.prompts[row] for row in joining]
        contexts.advance(kept, [tokens[i] for i in kept], prompts)
        for other, (_, their_prompts) in zip(others, readers[1:], strict=True):
            other.advance(kept, [tokens[i] for i in kept], [their_prompts[row] for row in joining])
        if joining or len(kept) < len(done):
            history.keep(kept, new_history(prompts) if joining else None)
        members = [members[i] for i in kept] + joining
        random = [random[i] for i in kept] + [np.random.Generator(np.random.Philox(job.seeds[r])) for r in joining]
        done = [done[i] for i in kept] + [False] * len(joining)


def _chosen_on_card(
    logits: Tensor, strategy: Strategy, uniforms: Tensor, history: History, contexts: Contexts | None
) -> list[int]:
    """As `choose`, and the card goes on with the tokens while they are on their way here."""
    chosen = choose_unseen(logits, strategy, uniforms.pin_memory().to(logits.device, non_blocking=True), history)
    here = torch.empty(len(chosen), dtype=torch.long, pin_memory=True)
    here.copy_(chosen, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(logits.device))
    if contexts is not None:
        contexts.ahead(chosen)
    arrived.synchronize()
    tokens = here.tolist()
    if min(tokens) < 0:
        raise MinilmError(NOT_NUMBERS)
    return tokens


def slots(model: GPT, prompts: list[list[int]], max_new_tokens: int) -> int:
    """Slots that a cache needs. The last token is never read, so it needs none."""
    block_size = model.config.block_size
    return min(block_size, max(min(block_size, len(prompt)) for prompt in prompts) + max_new_tokens - 1)


def _scores(
    logits: Tensor, tokens: list[int], n_alternatives: int
) -> list[tuple[float, tuple[tuple[int, float], ...]]]:
    log_p = logits.float().log_softmax(dim=-1)
    mine = log_p.gather(-1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0].tolist()
    best = log_p.topk(min(n_alternatives, log_p.shape[-1]), dim=-1)
    pairs = (tuple(zip(*row, strict=True)) for row in zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return list(zip(mine, pairs, strict=True))
