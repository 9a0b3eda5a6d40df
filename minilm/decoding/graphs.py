"""A token of each row on a card: the model compiled for all slots of the cache at once, its launches in one CUDA graph.

Eager decoding of a small model waits for Python's launches, not for memory. Here shapes do not change from token to
token: attention reads every slot and a mask hides those that are not filled. A graph belongs to a cache's memory; a new
cache is captured anew, in milliseconds, and compiled anew only for other sizes.

B batch (rows), S slots of the cache, D width.
"""

from __future__ import annotations

import weakref
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minilm.model.cache import Cache
from minilm.model.geometry import Geometry
from minilm.model.gpt import GPT

if TYPE_CHECKING:
    from minilm.decoding.card import OneRow

WARM_UPS = 3  # CUDA's libraries set themselves up before a capture


class _Slots(Cache):
    """A cache's memory; keys and values are put where a tensor says."""

    def __init__(self, keys: Tensor, values: Tensor, at: Tensor) -> None:
        self.keys, self.values, self.at, self.length = keys, values, at, 0

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self.keys[layer].index_copy_(2, self.at, k)
        self.values[layer].index_copy_(2, self.at, v)
        return self.keys[layer], self.values[layer]


class Graphs:
    """What reads single tokens of a model's rows: `hidden`, as the model's."""

    def __init__(self, model: GPT, backend: str = "inductor") -> None:
        self.one: OneRow | None = None
        if model.device.type == "cuda" and find_spec("triton") is not None:
            from minilm.decoding.card import one_row

            self.one = one_row(model)
        self.step: Any = torch.compile(_step, fullgraph=True, backend=backend)
        self.warm: set[torch.Size] = set()  # shapes of caches
        self.captured: weakref.WeakKeyDictionary[Cache, tuple[Any, list[Tensor], Any, Tensor]] = (
            weakref.WeakKeyDictionary()
        )

    def hidden(self, model: GPT, ids: Tensor, cache: Cache) -> Tensor:
        """ids (B, 1) behind what the cache holds -> what the head reads (B, 1, D)."""
        starts = torch.zeros_like(ids[:, 0]) if cache.starts is None else cache.starts
        inputs = [ids, torch.full((1,), cache.length, device=ids.device), starts]
        if ids.is_cuda:
            with torch.cuda.device(ids.device):
                x: Tensor = self._replayed(model, inputs, cache)
        else:
            x = self.step(model, *inputs, cache.keys, cache.values)
        cache.length += 1
        return x

    def head(self, model: GPT, x: Tensor) -> Tensor:
        """x (N, D) -> logits of the rows in use (N, V)."""
        return model.used_logits(x) if self.one is None or len(x) > 1 else self.one.head(model, x)

    def _replayed(self, model: GPT, inputs: list[Tensor], cache: Cache) -> Tensor:
        found = self.captured.get(cache)
        memory = cache.keys.data_ptr(), cache.values.data_ptr(), inputs[0].shape
        if found is None or found[0] != memory:
            step: Any = self.one if self.one is not None and len(inputs[0]) == 1 and cache.starts is None else self.step
            fixed = [t.clone() for t in inputs]
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(0 if cache.keys.shape in self.warm else WARM_UPS):  # each fills the same slot alike
                    step(model, *fixed, cache.keys, cache.values)
            torch.cuda.current_stream().wait_stream(side)
            self.warm.add(cache.keys.shape)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                x = step(model, *fixed, cache.keys, cache.values)
            found = self.captured[cache] = (memory, fixed, graph, x)
        _, fixed, graph, x = found
        for there, here in zip(fixed, inputs, strict=True):
            there.copy_(here)
        graph.replay()
        return x.clone()  # the next token's stands in the same place


def _step(model: GPT, ids: Tensor, at: Tensor, starts: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """`GPT.hidden` of one token a row, with a geometry that does not depend on how many slots are filled."""
    c = model.config
    slots = torch.arange(keys.shape[3], device=ids.device)
    seen = (slots <= at) & (slots >= starts[:, None])  # (B, S)
    if c.window:
        seen = seen & (slots > at - c.window)
    positions = (at - starts)[:, None]
    mask = seen[:, None, None]
    if (slopes := model.wpe.slopes(ids.device)) is not None:
        mask = torch.where(mask, -slopes * (at - slots).to(slopes.dtype), -torch.inf)
    geometry = Geometry(positions, model.wpe.rotation(positions), mask, is_causal=False)
    return model.hidden(ids, cache=_Slots(keys, values, at), geometry=geometry)
