"""Where every token stands and what it may see: worked out once a pass, read by every block.

Plain causality needs no mask and runs on the fastest kernel; documents, windows, ALiBi, padding and a cache that is
read by several tokens at once each need one.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from minilm.config import GPTConfig
from minilm.errors import UsageError
from minilm.model.cache import Cache
from minilm.model.layers import NoPosition


class Geometry(NamedTuple):
    """B batch, H heads, T tokens of this pass, S tokens seen by attention (cached ones included)."""

    positions: Tensor  # (T,) or (B, T), counted within each document
    rotation: tuple[Tensor, Tensor] | None  # cosines and sines for q and k
    mask: Tensor | None  # (1 or B, 1 or H, T, S): boolean, or fp32 to be added to the scores
    is_causal: bool  # plain causality, no mask needed


def locate(
    config: GPTConfig, position: NoPosition, ids: Tensor, documents: Tensor | None, cache: Cache | None
) -> Geometry:
    """The geometry of ids (B, T) behind what the cache holds.

    Raises UsageError where a learned position table has too few rows or the cache too few slots, or documents and a
    cache are both given.
    """
    T, device = ids.shape[1], ids.device
    past = 0 if cache is None else cache.length
    if past + T > position.max_tokens:
        raise UsageError(f"{past + T} tokens do not fit in block_size {config.block_size}: shorten or crop the input")
    if cache is not None and past + T > cache.max_tokens:
        raise UsageError(f"{past + T} tokens do not fit in a cache of {cache.max_tokens}: make it longer")
    keys = torch.arange(past + T, device=device)
    queries = keys[past:]
    positions = queries
    sees = keys <= queries[:, None]  # (T, S), then (B, T, S) where rows differ
    if config.window:
        sees = sees & (keys > queries[:, None] - config.window)
    if documents is not None:
        if cache is not None:
            raise UsageError("documents and a cache exclude each other: decode each document by itself")
        sees = sees & (documents[:, :, None] == documents[:, None, :])
        begins = F.pad(documents[:, 1:] != documents[:, :-1], (1, 0), value=True)
        positions = queries - torch.where(begins, queries, 0).cummax(dim=1).values
    if cache is not None and cache.starts is not None:
        # A padded slot sees itself alone: a row without any key would be NaN.
        real = keys >= cache.starts[:, None]
        sees = (sees & real[:, None, :]) | (keys == queries[:, None])
        positions = (queries - cache.starts[:, None]).clamp(min=0)
    rotation = position.rotation(positions)
    slopes = position.slopes(device)
    plain = sees.dim() == 2 and not 0 < config.window < past + T and slopes is None
    if plain and (past == 0 or T == 1):
        return Geometry(positions, rotation, None, is_causal=T > 1)
    mask = sees[None, None] if sees.dim() == 2 else sees[:, None]
    if slopes is not None:
        distance = (queries[:, None] - keys).to(slopes.dtype)
        mask = torch.where(mask, -slopes * distance, -math.inf)
    return Geometry(positions, rotation, mask, is_causal=False)


# Below this length torch's CPU kernel loses to products and a softmax: training of 4 x 128 at T = 64, 128 and 256 runs
# 2.0, 2.1 and 1.3 times faster by hand, compiled; 4 x 512 and 1 x 1,024 in rows of 256 both 1.7 times (bf16, 2 cores,
# torch 2.13). Eager the kernel wins from 1,024 on, and with a single query (decoding) always.
CPU_BY_HAND_TOKENS, CPU_BY_HAND_COMPILED_TOKENS = 512, 1024
CPU_BY_HAND_ROWS = 256  # at once, of the keys that they may see alone
# Where no gradient is wanted, rows at once, and sequences' heads for each thread: their scores stay in a core's cache.
# In bf16 1.9 times as fast as the kernel, in fp32 slower.
CPU_READING_ROWS, CPU_READING_HEADS = 128, 8


def attend(q: Tensor, k: Tensor, v: Tensor, geometry: Geometry, scale: float, dropout: float) -> Tensor:
    """softmax(scale * q k^T + mask) v: q (B, H, T, head width), k and v (B, H or fewer, S, head width)."""
    k, v = k.to(q.dtype), v.to(q.dtype)
    if _reads_fast(q, k, geometry, dropout):
        return _read(q, k, v, scale)
    most = CPU_BY_HAND_COMPILED_TOKENS if torch.compiler.is_compiling() else CPU_BY_HAND_TOKENS
    if q.device.type == "cpu" and q.shape[2] > 1 and k.shape[2] <= most:
        return _attend_by_hand(q, k, v, geometry, scale, dropout)
    mask = geometry.mask
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(q.dtype)
    gqa = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, mask, dropout, geometry.is_causal, scale=scale, enable_gqa=gqa)


def _reads_fast(q: Tensor, k: Tensor, geometry: Geometry, dropout: float) -> bool:
    """Plain causality on a CPU in bf16 without gradients."""
    plain = geometry.is_causal and q.shape == k.shape and not dropout
    return plain and q.device.type == "cpu" and q.dtype == torch.bfloat16 and not torch.is_grad_enabled()


def _read(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """softmax(scale * q k^T) v under plain causality, some rows of some heads at a time; torch's softmax of bf16 works
    in fp32."""
    n, T, shape = CPU_READING_ROWS, q.shape[2], q.shape
    # Keys are turned once: a product would turn each part of them anew.
    q, k, v = q.flatten(0, 1), k.mT.contiguous().flatten(0, 1), v.flatten(0, 1)
    y, nothing = torch.empty_like(v), q.new_empty(1, 1, 1)
    future = torch.full((n, n), -math.inf, dtype=q.dtype).triu(1)
    n_heads = CPU_READING_HEADS * torch.get_num_threads()
    for heads in (slice(at, at + n_heads) for at in range(0, len(q), n_heads)):
        for first in range(0, T, n):
            last = min(first + n, T)
            scores = torch.baddbmm(nothing, q[heads, first:last], k[heads, :, :last], beta=0, alpha=scale)
            scores[..., first:] += future[: last - first, : last - first]
            y[heads, first:last] = scores.softmax(-1) @ v[heads, :last]
    return y.view(shape)


def _attend_by_hand(q: Tensor, k: Tensor, v: Tensor, geometry: Geometry, scale: float, dropout: float) -> Tensor:
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    T, S = q.shape[2], k.shape[2]
    mask, wide = geometry.mask, torch.promote_types(q.dtype, torch.float32)
    if mask is None:
        mask = torch.full((T, S), -math.inf, dtype=wide, device=q.device).triu(S - T + 1)
    mask = torch.where(mask, 0.0, -math.inf) if mask.dtype == torch.bool else mask.to(wide)
    parts = []
    for first in range(0, T, CPU_BY_HAND_ROWS):
        last = min(first + CPU_BY_HAND_ROWS, T)
        n_keys = S - T + last  # what is cached, and tokens up to the last row's
        scores = q[:, :, first:last] @ k[:, :, :n_keys].mT
        scores = torch.add(mask[..., first:last, :n_keys], scores, alpha=scale)
        weights = F.dropout(scores.softmax(dim=-1), dropout)
        parts.append(weights.to(v.dtype) @ v[:, :, :n_keys])
    return torch.cat(parts, dim=2)
