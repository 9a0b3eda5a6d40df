"""Keys and values of the tokens that a model has already read, so that each new token costs one token."""

from __future__ import annotations

import torch
from torch import Tensor

from minilm.config import GPTConfig


class Cache:
    """Preallocated keys and values of every layer: (B, kv heads, max_tokens, head width) each.

    `length` slots are filled. Rows of a batch that began with padding on the left say in `starts` (B,) in which slot
    their first token stands: slots before it are never attended to, and positions count from it. Slots are written in
    place, so no gradient flows through a cache: use it under `torch.no_grad`.
    """

    def __init__(
        self,
        config: GPTConfig,
        batch_size: int,
        max_tokens: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        starts: Tensor | None = None,
    ) -> None:
        shape = (config.n_layer, batch_size, config.kv_heads, max_tokens, config.head_width)
        # Zeros: what stands in a slot that is masked counts 0 times, and 0 times the NaN of fresh memory is NaN.
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.max_tokens = max_tokens
        self.starts = starts
        self.length = 0

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Writes k, v (B, kv heads, T, head width) behind what is filled; returns all keys and values so far."""
        end = self.length + k.shape[2]
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def reset(self, length: int = 0) -> None:
        """Forgets every slot from `length` on."""
        self.length = length
