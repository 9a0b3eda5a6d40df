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


# Below this length torch's CPU kernel loses to two products and a softmax, compiled: training of 4 x 128 at T = 64, 128
# and 256 runs 2.0, 2.1 and 1.3 times faster by hand (bf16, 2 cores, torch 2.13). A single query (decoding) is its gain.
CPU_BY_HAND_TOKENS = 512


def attend(q: Tensor, k: Tensor, v: Tensor, geometry: Geometry, scale: float, dropout: float) -> Tensor:
    """softmax(scale * q k^T + mask) v: q (B, H, T, head width), k and v (B, H or fewer, S, head width)."""
    k, v = k.to(q.dtype), v.to(q.dtype)
    if q.device.type == "cpu" and q.shape[2] > 1 and k.shape[2] <= CPU_BY_HAND_TOKENS:
        return _attend_by_hand(q, k, v, geometry, scale, dropout)
    mask = geometry.mask
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(q.dtype)
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=geometry.is_causal,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )


def _attend_by_hand(q: Tensor, k: Tensor, v: Tensor, geometry: Geometry, scale: float, dropout: float) -> Tensor:
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    T, S = q.shape[2], k.shape[2]
    mask = geometry.mask
    if mask is None:
        mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril()
    scores = (q @ k.mT).to(torch.promote_types(q.dtype, torch.float32)) * scale
    scores = torch.where(mask, scores, -math.inf) if mask.dtype == torch.bool else scores + mask
    weights = F.dropout(scores.softmax(dim=-1), dropout)
    return weights.to(v.dtype) @ v
