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


def capacity(model: GPT, n_slots: int, n_bytes: int) -> int:
    """Rows whose cache of n_slots tokens each and logits stay below n_bytes; 1 at least."""
    c = model.config
    per_token = 2 * c.n_layer * c.kv_heads * c.head_width * model.wte.weight.element_size()
    return max(1, n_bytes // (n_slots * per_token + 32 * c.vocab_size))


class Contexts:
    """The context of each row, and a cache that has read all of it but the last token.

    n_slots: tokens that the cache is made for; a context never grows beyond block_size.
    """

    def __init__(self, model: GPT, rows: Sequence[Sequence[int]], n_slots: int, use_cache: bool) -> None:
        self.model = model
        self.block_size = model.config.block_size
        self.n_kept = max(1, self.block_size // 2)
        self.rows = [list(row[-self.block_size :]) for row in rows]
        self.cache = self._new_cache(len(rows), n_slots) if use_cache else None

    @property
    def device(self) -> torch.device:
        """Where logits are: mps has no float64, which draws need."""
        return torch.device("cpu") if self.model.device.type == "mps" else self.model.device

    @torch.inference_mode()
    def logits(self) -> Tensor:
        """Reads what has not been read; logits of the next token (B, vocabulary in use)."""
        with evaluating(self.model):
            return self.model.used_logits(self._read()[:, -1]).to(self.device)

    @torch.inference_mode()
    def advance(self, kept: list[int], tokens: Sequence[int], joining: Sequence[Sequence[int]] = ()) -> None:
        """Keeps these rows (some perhaps twice), adds a token to each; cuts contexts too long to its last half.

        joining: prompts whose rows stand behind those that are kept.
        """
        dropped = kept != list(range(len(self.rows)))
        self.rows = [list(self.rows[i]) for i in kept]
        unread = []
        for i, (row, token) in enumerate(zip(self.rows, tokens, strict=True)):
            row.append(token)
            if len(row) > self.block_size:
                del row[: -self.n_kept]
                unread.append(i)
        unread += range(len(kept), len(kept) + len(joining))
        self.rows += [list(row[-self.block_size :]) for row in joining]
        if self.cache is not None and (dropped or unread):
            self._repack(self.cache, kept if dropped else None, len(joining), unread)

    def _read(self) -> Tensor:
        """Hidden states (B, T, D) of the tokens that no cache holds yet."""
        if self.cache is not None and self.cache.length:
            return self.model.hidden(self._tensor([row[-1:] for row in self.rows]), cache=self.cache)
        ids, starts = self._padded(self.rows)
        if self.cache is not None:
            self.cache.starts = starts
            return self.model.hidden(ids, cache=self.cache)
        # Without a cache the padding is a document of its own.
        documents = None if starts is None else (torch.arange(ids.shape[1], device=ids.device) >= starts[:, None]).int()
        return self.model.hidden(ids, documents)

    def _repack(self, cache: Cache, kept: list[int] | None, n_joining: int, unread: list[int]) -> None:
        """Takes other rows out of the cache, makes room for those that join, and reads `unread` rows whole.

        Rows end together: slots move left where no row needs those on the left, right where a longer row joins.
        """
        if kept is not None:
            cache.keys, cache.values = cache.keys[:, kept], cache.values[:, kept]
        if n_joining:
            room = self._new_cache(n_joining, cache.max_tokens)
            cache.keys = torch.cat((cache.keys, room.keys), dim=1)
            cache.values = torch.cat((cache.values, room.values), dim=1)
        lengths = [len(row) - 1 for row in self.rows]
        before, cache.length = cache.length, max(lengths)
        n = min(before, cache.length)
        if before != cache.length:
            for slots in (cache.keys, cache.values):
                slots[..., cache.length - n : cache.length, :] = slots[..., before - n : before, :].clone()
        rows = [self.rows[i][:-1] for i in unread]
        longest = max(map(len, rows), default=0)
        if longest:
            ids, starts = self._padded(rows)
            part = self._new_cache(len(rows), longest)
            part.starts = starts
            with evaluating(self.model):
                self.model.hidden(ids, cache=part)
            cache.keys[:, unread, :, cache.length - longest : cache.length] = part.keys
            cache.values[:, unread, :, cache.length - longest : cache.length] = part.values
        cache.starts = self._starts(lengths)

    def _padded(self, rows: list[list[int]]) -> tuple[Tensor, Tensor | None]:
        """ids (B, T) flush right, and their starts."""
        lengths = [len(row) for row in rows]
        longest = max(lengths)
        return self._tensor([[0] * (longest - len(row)) + row for row in rows]), self._starts(lengths)

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
