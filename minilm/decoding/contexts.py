"""Rows that are decoded together: what each has read, in one cache, and how long a context may grow.

B batch (rows), T tokens, S slots of the cache.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from minilm.model.cache import Cache
from minilm.model.gpt import GPT


def groups(model: GPT, numbers: Sequence[int], lengths: list[int], cache_bytes: int) -> Iterator[list[int]]:
    """Consecutive rows, by number, whose cache and logits stay below cache_bytes; lengths are tokens at the end."""
    c = model.config
    per_token = 2 * c.n_layer * c.kv_heads * c.head_width * model.wte.weight.element_size()
    rows: list[int] = []
    widest = 0
    for row, length in zip(numbers, lengths, strict=True):
        widest = max(widest, min(length, c.block_size))
        if rows and (len(rows) + 1) * (widest * per_token + 32 * c.vocab_size) > cache_bytes:
            yield rows
            rows, widest = [], min(length, c.block_size)
        rows.append(row)
    if rows:
        yield rows


class Contexts:
    """The context of each row, and a cache that has read all of it but the last token."""

    def __init__(self, model: GPT, rows: list[list[int]], max_new_tokens: int, use_cache: bool) -> None:
        self.model = model
        self.block_size = model.config.block_size
        self.n_kept = max(1, self.block_size // 2)
        self.rows = [row[-self.block_size :] for row in rows]
        self.cache: Cache | None = None
        if use_cache:
            # The last token is never read, so it needs no slot.
            longest = max(map(len, self.rows))
            self.cache = self._new_cache(len(rows), min(self.block_size, longest + max_new_tokens - 1))

    @torch.inference_mode()
    def logits(self) -> Tensor:
        """Reads what has not been read; logits of the next token (B, vocabulary in use)."""
        with evaluating(self.model):
            return self.model.used_logits(self._read()[:, -1])

    @torch.inference_mode()
    def advance(self, kept: list[int], tokens: list[int]) -> None:
        """Keeps these rows, adds a token to each, and shortens a context that has become too long to its last half."""
        dropped = len(kept) < len(self.rows)
        self.rows = [self.rows[i] for i in kept]
        full = []
        for i, (row, token) in enumerate(zip(self.rows, tokens, strict=True)):
            row.append(token)
            if len(row) > self.block_size:
                del row[: -self.n_kept]
                full.append(i)
        if self.cache is not None and (dropped or full):
            self._repack(self.cache, kept if dropped else None, full)

    def _read(self) -> Tensor:
        """Hidden states (B, T, D) of the tokens that no cache holds yet."""
        if self.cache is not None and self.cache.length:
            return self.model.hidden(self._tensor([row[-1:] for row in self.rows]), cache=self.cache)
        lengths = [len(row) for row in self.rows]
        ids = self._tensor([[0] * (max(lengths) - len(row)) + row for row in self.rows])
        starts = self._starts(lengths)
        if self.cache is not None:
            self.cache.starts = starts
            return self.model.hidden(ids, cache=self.cache)
        # Without a cache the padding is a document of its own.
        documents = None if starts is None else (torch.arange(ids.shape[1], device=ids.device) >= starts[:, None]).int()
        return self.model.hidden(ids, documents)

    def _repack(self, cache: Cache, kept: list[int] | None, full: list[int]) -> None:
        """Takes other rows out of the cache and slots that no row needs from its left; reads `full` rows again."""
        if kept is not None:
            cache.keys, cache.values = cache.keys[:, kept], cache.values[:, kept]
        lengths = [len(row) - 1 for row in self.rows]
        surplus, cache.length = cache.length - max(lengths), max(lengths)
        if surplus:
            for slots in (cache.keys, cache.values):
                slots[..., : cache.length, :] = slots[..., surplus : surplus + cache.length, :].clone()
        if full and self.n_kept > 1:
            part = self._new_cache(len(full), self.n_kept - 1)
            with evaluating(self.model):
                self.model.hidden(self._tensor([self.rows[i][:-1] for i in full]), cache=part)
            begin = cache.length - part.max_tokens
            cache.keys[:, full, :, begin : cache.length] = part.keys
            cache.values[:, full, :, begin : cache.length] = part.values
        cache.starts = self._starts(lengths)

    def _starts(self, lengths: list[int]) -> Tensor | None:
        """(B,) slot of each row's first token where rows end together; None where all begin in slot 0: no mask."""
        longest = max(lengths)
        return None if min(lengths) == longest else self._tensor([longest - length for length in lengths])

    def _tensor(self, values: list[Any]) -> Tensor:
        return torch.tensor(values, device=self.model.device)

    def _new_cache(self, n_rows: int, max_tokens: int) -> Cache:
        weight = self.model.wte.weight
        return Cache(self.model.config, n_rows, max_tokens, weight.dtype, weight.device)


@contextlib.contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Dropout off inside where the model is in training mode; afterwards every module is as it was."""
    training = [module for module in model.modules() if module.training] if model.training else []
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
