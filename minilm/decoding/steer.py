"""PPLM: a text is moved towards an attribute by gradients on what the model has read, weights untouched.

Before each token, n_iterations times (Dathathri 2020, section 3.2): with the past's keys and values H moved by D,

    D <- D - step_size * g / |g|^gamma,   g = gradient in D of  -ln p(a | H + D) + kl_scale KL(q | p)

q the prediction with the moved past, p with the unmoved one, |g| of each layer's keys and values over the window. The
attribute is ln(sum of q over a bag's tokens), or the log-probability that the head gives its class for the mean of
what the model's head reads at all tokens, the current one with the moved past and `horizon` tokens beyond, each the
expected embedding under the prediction before it. Then the token is drawn from q^gm_scale p^(1 - gm_scale), to which
the strategy's steps apply. The moved past stays for the next token.

As the authors' code does and the paper does not say: for bags |g| is the largest so far, and the expected tokens are
read behind the unmoved past. Unlike it (its mask lies over the first tokens), the window is the last tokens. Rows whose
prompts have the same length go together. When the context is full its last half is read again, unmoved.

B rows, L layers, T tokens, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from minilm.config import GPTConfig
from minilm.decoding.attributes import Steering
from minilm.decoding.contexts import capacity, evaluating
from minilm.decoding.loop import CACHE_BYTES, Job, Piece
from minilm.decoding.strategies import choose
from minilm.errors import UsageError
from minilm.model.cache import Cache
from minilm.model.gpt import GPT
from minilm.model.losses import widened

_SMALLEST = 1e-15  # a norm that divides


class Tape(Cache):
    """A cache for one pass that gradients flow through: keys and values (L, B, kv heads, T, head width) and what is
    read then stand side by side in new tensors."""

    def __init__(self, config: GPTConfig, past: tuple[Tensor, Tensor]) -> None:
        self.keys, self.values = past
        self.length = past[0].shape[3]
        self.max_tokens = config.block_size
        self.starts = None
        self._new: dict[int, tuple[Tensor, Tensor]] = {}

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self._new[layer] = k, v
        return torch.cat((self.keys[layer], k), dim=2), torch.cat((self.values[layer], v), dim=2)

    def grown(self) -> tuple[Tensor, Tensor]:
        """The past with what was read. A layer without attention has zeros."""
        if not self._new:
            return self.keys, self.values
        nothing = torch.zeros_like(next(iter(self._new.values()))[0])
        new = [self._new.get(layer, (nothing, nothing)) for layer in range(len(self.keys))]
        keys, values = (torch.stack(tensors) for tensors in zip(*new, strict=True))
        return torch.cat((self.keys, keys), dim=3), torch.cat((self.values, values), dim=3)


class Steered:
    """Texts of equal length and their two pasts: as the model read them, and as they were moved."""

    def __init__(self, model: GPT, steering: Steering, texts: list[list[int]]) -> None:
        self.model, self.steering = model, steering
        self.contexts = [text[-model.config.block_size :] for text in texts]
        self.norms: Tensor | None = None  # (L, B) largest so far
        self._forget()

    def _forget(self) -> None:
        c = self.model.config
        B = len(self.contexts)
        nothing = self.model.wte.weight.new_zeros(c.n_layer, B, c.kv_heads, 0, c.head_width)
        self.plain = self.moved = (nothing, nothing)
        self.total = self.model.wte.weight.new_zeros(B, c.n_embd)  # of what the head read at all tokens but the last

    def extend(self, tokens: list[int]) -> None:
        """Each text goes on by a token."""
        block_size = self.model.config.block_size
        for context, token in zip(self.contexts, tokens, strict=True):
            context.append(token)
        if len(self.contexts[0]) > block_size:
            self.contexts = [context[-max(1, block_size // 2) :] for context in self.contexts]
            self._forget()

    def keep(self, rows: list[int]) -> None:
        """Forgets every other text."""
        self.contexts = [self.contexts[i] for i in rows]
        self.plain, self.moved = ((k[:, rows], v[:, rows]) for k, v in (self.plain, self.moved))
        self.total = self.total[rows]
        self.norms = None if self.norms is None else self.norms[:, rows]

    def logits(self) -> Tensor:
        """ln(q^gm_scale p^(1 - gm_scale)) of the next tokens (B, V in use), not normalised."""
        # Gradients inside, also where the caller has switched them off.
        with torch.inference_mode(False), torch.enable_grad(), evaluating(self.model):
            ids = torch.tensor(self.contexts, device=self.model.device)[:, self.plain[0].shape[3] :]
            last = ids[:, -1:]
            if ids.shape[1] > 1:  # the prompt
                hidden, self.plain = self._read(ids[:, :-1], self.plain)
                self.total = self.total + hidden.sum(dim=1)
                self.moved = self.plain
            hidden, plain = self._read(last, self.plain)
            log_p = self._log_p(hidden)
            if self.moved[0].shape[3] and self.steering.n_iterations:
                self.moved = self._move(last, plain, log_p)
            moved_hidden, self.moved = self._read(last, self.moved)
            self.plain, self.total = plain, self.total + hidden[:, -1]
            g = self.steering.gm_scale
            return g * self._log_p(moved_hidden) + (1.0 - g) * log_p

    def _move(self, last: Tensor, plain: tuple[Tensor, Tensor], log_p: Tensor) -> tuple[Tensor, Tensor]:
        """The past (H) with its moves (D) after all iterations."""
        s, T = self.steering, self.moved[0].shape[3]
        inside = torch.arange(T, device=last.device) >= (T - s.window if s.window else 0)
        moves = [torch.zeros_like(past) for past in self.moved]
        for _ in range(s.n_iterations):
            moves = [move.requires_grad_() for move in moves]
            tape = Tape(self.model.config, (self.moved[0] + moves[0], self.moved[1] + moves[1]))
            loss = self._loss(self.model.hidden(last, cache=tape), plain, log_p)
            found = torch.autograd.grad(loss, moves, allow_unused=True)
            slopes = [
                torch.zeros_like(m) if g is None else g * inside[:, None] for g, m in zip(found, moves, strict=True)
            ]
            norms = sum(g.square().sum(dim=(2, 3, 4)) for g in slopes).sqrt()  # type: ignore[union-attr]
            if s.head is None:
                norms = self.norms = norms if self.norms is None else torch.maximum(norms, self.norms)
            step = s.step_size / norms.clamp(min=_SMALLEST) ** s.gamma
            moves = [(m - step[:, :, None, None, None] * g).detach() for m, g in zip(moves, slopes, strict=True)]
        return self.moved[0] + moves[0], self.moved[1] + moves[1]

    def _loss(self, hidden: Tensor, plain: tuple[Tensor, Tensor], log_p: Tensor) -> Tensor:
        """Nats of all rows: hidden (B, 1, D) is read with the moved past, log_p (B, V) with the unmoved one."""
        s, log_q = self.steering, self._log_p(hidden)
        q = log_q.exp()
        loss = s.kl_scale * (q * (log_q - log_p)).sum()
        for bag in s.bags:
            loss = loss - log_q[:, list(bag)].logsumexp(dim=1).sum()
        if s.head is not None:
            total, n = self.total + hidden[:, -1], self.moved[0].shape[3] + 1
            for _ in range(min(s.horizon, self.model.config.block_size - n)):
                expected = (q.to(hidden) @ self.model.wte.weight[: q.shape[-1]])[:, None]
                ahead, plain = self._read(expected, plain)
                total, n, q = total + ahead[:, -1], n + 1, self._log_p(ahead).exp()
            loss = loss - s.head.logits(total / n).log_softmax(dim=-1)[:, s.head.index(s.label)].sum()
        return loss

    def _read(self, ids: Tensor, past: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """What the head reads at each token (B, T, D), and the past behind them."""
        tape = Tape(self.model.config, past)
        hidden = self.model.hidden(ids, cache=tape)
        keys, values = tape.grown()
        if ids.is_floating_point():
            return hidden, (keys, values)
        return hidden.detach(), (keys.detach(), values.detach())

    def _log_p(self, hidden: Tensor) -> Tensor:
        return widened(self.model.used_logits(hidden[:, -1])).log_softmax(-1)


def steered(job: Job, steering: Steering) -> Iterator[Piece]:
    """Every row's pieces; rows of one prompt length are interleaved. UsageError where a bag's token cannot be drawn."""
    if any(not 0 <= token < job.n_tokens for bag in steering.bags for token in bag):
        raise UsageError("the bag holds tokens outside the model's vocabulary: use the tokenizer it was trained with")
    lengths = dict.fromkeys(map(len, job.prompts))
    groups = [[row for row, prompt in enumerate(job.prompts) if len(prompt) == length] for length in lengths]
    room = capacity(job.model, job.model.config.block_size, CACHE_BYTES // 8)  # two pasts, their moves and gradients
    parts = [group[i : i + room] for group in groups for i in range(0, len(group), room)]
    return (piece for rows in parts for piece in _rows(job, steering, rows))


def _rows(job: Job, steering: Steering, rows: list[int]) -> Iterator[Piece]:
    random = [np.random.Generator(np.random.Philox(job.seeds[row])) for row in rows]
    prompts = [job.prompts[row] for row in rows]
    texts = Steered(job.model, steering, prompts)
    history = job.strategy.history(prompts, job.n_tokens, job.model.device, job.ends, job.choices)
    while rows and job.max_new_tokens:
        logits = texts.logits()[:, : job.n_tokens]
        uniforms = torch.tensor([r.random() for r in random], dtype=torch.float64, device=logits.device)
        tokens = choose(logits, job.strategy, uniforms, history).tolist()
        history.add(tokens)
        texts.extend(tokens)
        going = []
        for i, token in enumerate(tokens):
            done = token in job.ends or history.n_new[i] == job.max_new_tokens or history.finished(i)
            words, stopped = job.watch(rows[i], token, done)
            yield Piece(rows[i], words, done or stopped, token)
            going += [] if done or stopped else [i]
        if len(going) < len(rows):
            rows, random = [rows[i] for i in going], [random[i] for i in going]
            texts.keep(going)
            history.keep(going)
