"""Searches look further than one token and draw nothing: beam search, contrastive search; one prompt at a time.

B rows (beams, candidates), V vocabulary, D width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from minilm.decoding.contexts import Contexts, evaluating
from minilm.decoding.loop import Job, Piece, slots
from minilm.decoding.rows import logits_of, read
from minilm.decoding.strategies import penalised
from minilm.model.cache import Cache
from minilm.model.gpt import GPT


@dataclass
class _Group:
    """Beams that compete with each other: (sum of log-probabilities, new tokens)."""

    running: list[tuple[float, list[int]]]
    finished: list[tuple[float, list[int]]] = field(default_factory=list)  # by score, best first


def beam_search(
    job: Job,
    n_beams: int,
    length_penalty: float = 1.0,
    early_stopping: bool = False,
    n_groups: int = 1,
    diversity: float = 0.0,
) -> Iterator[Piece]:
    """The text with the best (sum of ln p) / (new tokens)^length_penalty that n_beams find (transformers' rule).

    early_stopping: ends when n_beams texts have ended; else also when no beam's score so far beats the worst of them.
    n_groups: diverse beam search (Vijayakumar 2018): beams in groups, in each step one group after the other, and a
    token costs `diversity` for each beam of the groups before that took it. It decides which beams go on; what they
    are worth in the end is the model's word alone.
    """
    for row in range(len(job.prompts)):
        groups = _beams(job, job.prompts[row], n_beams, length_penalty, early_stopping, n_groups, diversity)
        yield from _said(job, row, max((g.finished[0] for g in groups if g.finished), key=lambda f: f[0])[1])


def _beams(
    job: Job, prompt: list[int], n_beams: int, length_penalty: float, early: bool, n_groups: int, diversity: float
) -> list[_Group]:
    width = n_beams // n_groups
    n_slots = slots(job.model, [prompt], job.max_new_tokens)
    groups = [_Group([(0.0, [])]) for _ in range(n_groups)]
    alive = list(groups)
    contexts = Contexts(job.model, [prompt] * n_groups, n_slots, job.use_cache, job.shift)
    history = job.strategy.history([prompt] * n_groups, job.n_tokens, contexts.device, job.ends, job.choices)
    for n in range(1, job.max_new_tokens + 1):
        log_p = penalised(contexts.logits()[:, : job.n_tokens], job.strategy, history).log_softmax(dim=-1)
        taken = torch.zeros(job.n_tokens, device=log_p.device)
        parents: list[int] = []
        begin = 0
        for group in alive:
            scores = torch.tensor([score for score, _ in group.running], device=log_p.device)[:, None]
            scores = scores + log_p[begin : begin + len(group.running)]
            spread = scores - diversity * taken
            best = spread.flatten().topk(min((1 + len(job.ends)) * width, spread.numel()))
            candidates = [divmod(at, job.n_tokens) for at in best.indices.tolist()]
            running: list[tuple[float, list[int]]] = []
            for rank, (beam, token) in enumerate(candidates):
                score = float(scores[beam, token])
                if score == -math.inf:
                    break
                tokens = [*group.running[beam][1], token]
                if token in job.ends or n == job.max_new_tokens:
                    if rank < width:
                        taken[token] += 1
                        group.finished.append((score / n**length_penalty, tokens))
                elif len(running) < width:
                    running.append((score, tokens))
                    parents.append(begin + beam)
                    taken[token] += 1
            begin += len(group.running)
            group.running = running
            group.finished = sorted(group.finished, key=lambda f: -f[0])[:width]
        going = [group for group in alive if not _is_done(group, width, n, length_penalty, early)]
        if not going:
            break
        kept = iter(parents)
        rows = [(group, [next(kept) for _ in group.running]) for group in alive]
        parents = [parent for group, its in rows if group in going for parent in its]
        alive = going
        tokens = [tokens[-1] for group in alive for _, tokens in group.running]
        contexts.advance(parents, tokens)
        history.keep(parents)
        history.add(tokens)
    return groups


def _is_done(group: _Group, width: int, n: int, length_penalty: float, early: bool) -> bool:
    if not group.running:
        return True
    if len(group.finished) < width:
        return False
    return early or group.running[0][0] / n**length_penalty <= group.finished[-1][0]


def contrastive_search(job: Job, k: int, alpha: float) -> Iterator[Piece]:
    """Of the k likeliest tokens the one with the best (1 - alpha) p(v) - alpha max_j cos(h_v, h_j) (Su 2022).

    h_v is what the model's head would read after v, h_j what it read at every token of the context before.
    """
    for row, prompt in enumerate(job.prompts):
        yield from _said(job, row, _contrastive(job, prompt, k, alpha))


@torch.inference_mode()
def _contrastive(job: Job, prompt: list[int], k: int, alpha: float) -> list[int]:
    model, limit = job.model, job.model.config.block_size - 1  # a candidate must fit behind the context
    k = min(k, job.n_tokens)
    context, new = prompt[-limit - 1 :], list[int]()
    history = job.strategy.history([prompt], job.n_tokens, model.device, job.ends, job.choices)
    with evaluating(model):
        states = _read(model, context, k)[0]
        last = states[-1:]
        cache = None
        while True:
            best = penalised(logits_of(model, last)[:, : job.n_tokens], job.strategy, history)
            likeliest = best[0].softmax(dim=-1).topk(k)
            if cache is None or len(context) > limit:
                if len(context) > limit:  # the window moves: what is kept is read again
                    context = context[len(context) - min(limit, max(1, (limit + 1) // 2)) :]
                states, cache = _read(model, context, k)
            ids = likeliest.indices[:, None]
            after = read(model, ids, cache)[:, -1]
            similar = after.new_zeros(k)
            if len(states):
                similar = F.cosine_similarity(after[:, None], states[None], dim=-1).amax(dim=-1)
            choice = int(((1 - alpha) * likeliest.values - alpha * similar).argmax())
            token = int(likeliest.indices[choice])
            new.append(token)
            history.add([token])
            if token in job.ends or len(new) == job.max_new_tokens or history.finished(0):
                return new
            last = after[choice : choice + 1]
            context, states = [*context, token], torch.cat((states, last))
            for slots in (cache.keys, cache.values):
                slots[:, :, :, cache.length - 1] = slots[:, choice : choice + 1, :, cache.length - 1].clone()


def _read(model: GPT, context: list[int], n_rows: int) -> tuple[Tensor, Cache]:
    """What the head reads at each token of the context (T, D), and a cache that holds it n_rows times."""
    cache = Cache(model.config, n_rows, model.config.block_size, model.wte.weight.dtype, model.device)
    if not context:
        return model.wte.weight.new_zeros(0, model.config.n_embd), cache
    ids = torch.tensor([context], device=model.device).expand(n_rows, -1)
    return read(model, ids, cache)[0], cache


def _said(job: Job, row: int, tokens: list[int]) -> Iterator[Piece]:
    """The pieces of a row whose tokens are known: a stop text may still end it early."""
    for i, token in enumerate(tokens):
        last = i == len(tokens) - 1
        text, stopped = job.watch(row, token, last)
        yield Piece(row, text, last or stopped, token)
        if stopped:
            return
