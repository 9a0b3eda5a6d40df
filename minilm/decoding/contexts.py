"""Rows that are decoded together: what each has read, in one cache, and how long a context may grow.

A row that has filled its context goes on behind its last half. That half is read again; or, with shift, keys and values
of it and of the row's first tokens (attention sinks) stay as they were read, and their positions move together (Xiao
2023, StreamingLLM): rotary keys turn back by what was dropped, distances (ALiBi) follow from the slots.

B batch (rows), T tokens, S slots of the cache.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from minilm.decoding.rows import graphed, logits_of, read
from minilm.errors import UsageError
from minilm.model.cache import Cache
from minilm.model.gpt import GPT
from minilm.model.layers import turn
from minilm.runtime import free_bytes

SINKS = 4  # first tokens that a shifted context keeps: attention rests on them (Xiao 2023)


def capacity(model: GPT, n_slots: int, n_bytes: int) -> int:
    """Rows whose cache of n_slots tokens each and logits stay below n_bytes; 1 at least."""
    c = model.config
    per_token = 2 * c.n_layer * c.kv_heads * c.head_width * model.wte.weight.element_size()
    return max(1, n_bytes // (n_slots * per_token + 32 * c.vocab_size))


def check_memory(model: GPT, n_tokens: int, n_slots: int) -> None:
    """Raises UsageError where a prompt of so many tokens, read at once, and its cache do not fit into what is free."""
    c, size = model.config, model.wte.weight.element_size()
    cache = 2 * c.n_layer * c.kv_heads * c.head_width * size * n_slots
    needed = cache + n_tokens * n_tokens + 2 * n_tokens * (c.n_embd + c.inner_width) * size  # the mask: a byte a pair
    free = free_bytes(model.device)
    if free is not None and needed > free:
        raise UsageError(
            f"a prompt of {n_tokens:,} tokens needs about {needed / 1e9:,.1f} GB and {free / 1e9:,.1f} GB are free: "
            "shorten it"
        )


class Contexts:
    """The context of each row, and a cache that has read all of it but the last token.

    n_slots: tokens that the cache is made for; a context never grows beyond block_size. Raises UsageError where shift
    is asked of positions that are part of what was read.
    """

    def __init__(
        self, model: GPT, rows: Sequence[Sequence[int]], n_slots: int, use_cache: bool, shift: bool = False
    ) -> None:
        if shift and model.config.position in ("learned", "sinusoidal"):
            raise UsageError(
                f"rolling=shift needs positions that can move (rope, alibi, none): {model.config.position} ones are "
                "added to the embeddings, so keys and values hold them; leave it out, and the last half is read again"
            )
        self.model = model
        self.block_size = model.config.block_size
        self.n_kept = max(1, self.block_size // 2)
        self.n_sinks = min(SINKS, self.n_kept // 2)
        self.shift = shift
        self.rows = [list(row[-self.block_size :]) for row in rows]
        check_memory(model, max(map(len, self.rows)), n_slots if use_cache else 0)
        self.cache = self._new_cache(len(rows), n_slots) if use_cache else None
        self.read_ahead: Tensor | None = None

    @property
    def device(self) -> torch.device:
        """Where logits are: mps has no float64, which draws need."""
        return torch.device("cpu") if self.model.device.type == "mps" else self.model.device

    @torch.inference_mode()
    def logits(self) -> Tensor:
        """Reads what has not been read; logits of the next token (B, vocabulary in use)."""
        with evaluating(self.model):
            hidden = self._read()[:, -1]
            logits = self.model.used_logits(hidden) if self.cache is None else logits_of(self.model, hidden)
            return logits.to(self.device)

    @torch.inference_mode()
    def ahead(self, tokens: Tensor) -> None:
        """Has a card read each row's next token (B,) before anybody knows which it is; `advance` with the same tokens
        takes it back where a row leaves or joins. Does nothing where that cannot be."""
        cache, longest = self.cache, max(map(len, self.rows))
        if cache is None or not graphed(self.model) or longest == self.block_size or cache.length == cache.max_tokens:
            return
        with evaluating(self.model):
            self.read_ahead = read(self.model, tokens.clamp(min=0)[:, None], cache)

    @torch.inference_mode()
    def advance(self, kept: list[int], tokens: Sequence[int], joining: Sequence[Sequence[int]] = ()) -> None:
        """Keeps these rows (some perhaps twice), adds a token to each; cuts contexts too long to its last half.

        joining: prompts whose rows stand behind those that are kept.
        """
        dropped = kept != list(range(len(self.rows)))
        if self.cache is not None and self.read_ahead is not None and (dropped or joining):
            self.read_ahead = None
            self.cache.length -= 1
        self.rows = [list(self.rows[i]) for i in kept]
        unread: list[int] = []
        moved: list[int] = []
        for i, (row, token) in enumerate(zip(self.rows, tokens, strict=True)):
            row.append(token)
            if len(row) > self.block_size:
                first = self.n_sinks if self.shift else 0
                del row[first : first + len(row) - self.n_kept]
                (moved if self.shift else unread).append(i)
        unread += range(len(kept), len(kept) + len(joining))
        self.rows += [list(row[-self.block_size :]) for row in joining]
        if self.cache is not None and (dropped or unread or moved):
            self._repack(self.cache, kept if dropped else None, len(joining), unread, moved)

    def _read(self) -> Tensor:
        """Hidden states (B, T, D) of the tokens that no cache holds yet."""
        if self.read_ahead is not None:
            hidden, self.read_ahead = self.read_ahead, None
            return hidden
        if self.cache is not None and self.cache.length:
            return read(self.model, self._tensor([row[-1:] for row in self.rows]), self.cache)
        ids, starts = self._padded(self.rows)
        if self.cache is not None:
            self.cache.starts = starts
            return read(self.model, ids, self.cache)
        # Without a cache the padding is a document of its own.
        documents = None if starts is None else (torch.arange(ids.shape[1], device=ids.device) >= starts[:, None]).int()
        return self.model.hidden(ids, documents)

    def _repack(
        self, cache: Cache, kept: list[int] | None, n_joining: int, unread: list[int], moved: list[int]
    ) -> None:
        """Takes other rows out of the cache, makes room for those that join, reads `unread` rows whole, and shortens
        `moved` ones, which filled their context.

        Rows end together: slots move left where no row needs those on the left, right where a longer row joins.
        """
        if kept is not None:
            cache.keys, cache.values = cache.keys[:, kept], cache.values[:, kept]
        if n_joining:
            room = self._new_cache(n_joining, cache.max_tokens)
            cache.keys = torch.cat((cache.keys, room.keys), dim=1)
            cache.values = torch.cat((cache.values, room.values), dim=1)
        shortened = self._shortened(cache, moved) if moved else None
        lengths = [len(row) - 1 for row in self.rows]
        before, cache.length = cache.length, max(lengths)
        n = min(before, cache.length)
        if before != cache.length:
            for slots in (cache.keys, cache.values):
                slots[..., cache.length - n : cache.length, :] = slots[..., before - n : before, :].clone()
        if shortened is not None and self.n_kept > 1:
            at = slice(cache.length - self.n_kept + 1, cache.length)
            cache.keys[:, moved, :, at], cache.values[:, moved, :, at] = shortened
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

    def _shortened(self, cache: Cache, moved: list[int]) -> tuple[Tensor, Tensor]:
        """Keys and values of rows that filled their context: of the first tokens, and of the last ones moved down."""
        end, n_last = cache.length, self.n_kept - 1 - self.n_sinks
        first = slice(end - self.block_size, end - self.block_size + self.n_sinks)
        last = slice(end - n_last, end)
        keys, values = cache.keys[:, moved], cache.values[:, moved]
        n_dropped = torch.tensor([self.n_kept - 1 - self.block_size], device=keys.device)
        rotation = self.model.wpe.rotation(n_dropped)
        late = keys[..., last, :] if rotation is None else turn(keys[..., last, :], rotation)
        keys = torch.cat((keys[..., first, :], late), dim=-2)
        return keys, torch.cat((values[..., first, :], values[..., last, :]), dim=-2)

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
