"""GPT-2's blocks for one token of one row on a card, five kernels a block.

- norm and qkv; keys and values into the cache, and attention over the filled slots; its projection and the residual;
  norm, fc and GELU; the output and the residual. Sums are fp32.
- Other components and more rows go `graphs.py`'s other way, the model compiled.

D width, H heads, S slots of the cache, W head width.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from minilm.decoding.fused import is_gpt2
from minilm.model.gpt import GPT

# Rows of a weight, and at most so many of its columns, for a group of warps; slots that a head reads at once.
ROWS, COLUMNS, WARPS = 4, 2048, 4
SLOTS, HEAD_WARPS = 256, 8
MAX_WIDTH = 8192  # a norm reads the whole width at once
# Hopper and later: a kernel begins, and fetches its weights, while the one before it ends ("programmatic dependent
# launch"); it waits for it before it reads or writes anything else.
OVERLAPS_FROM = (9, 0)


class OneRow:
    """`graphs._step` of one row."""

    def __init__(self, model: GPT) -> None:
        c, weight = model.config, model.wte.weight
        self.blocks: list[Any] = [model.h[layer * len(model.h) // c.n_layer] for layer in range(c.n_layer)]
        sizes = {"x": c.n_embd, "y": c.n_embd, "mixed": c.n_embd, "qkv": 3 * c.n_embd, "inner": c.inner_width}
        self.room = {name: weight.new_empty(size) for name, size in sizes.items()}
        self.early = weight.is_cuda and torch.cuda.get_device_capability(weight.device) >= OVERLAPS_FROM

    def __call__(self, model: GPT, ids: Tensor, at: Tensor, _: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """ids (1, 1), at (1,) the slot that it takes, keys and values (layers, 1, H, S, W) -> (1, 1, D)."""
        c, room = model.config, self.room
        x, y = room["x"], room["y"]
        x.copy_(model.ln_e(model.wte_proj(model.wte(ids)) + model.wpe(at)).flatten())
        head: Any = _attend[(c.n_head,)]
        for layer, block in enumerate(self.blocks):
            a, m = block.attn, block.mlp
            self._product(x, a.c_attn, room["qkv"], block.ln_1)
            head(
                room["qkv"], keys[layer], values[layer], room["mixed"], at, c.score_scale(layer), c.n_embd,
                keys.shape[3], W=c.head_width, WIDE=triton.next_power_of_2(c.head_width), SLOTS=SLOTS,
                EARLY=self.early, num_warps=HEAD_WARPS, launch_pdl=self.early,
            )  # fmt: skip
            self._product(room["mixed"], a.c_proj, y, residual=x)
            self._product(y, m.c_fc, room["inner"], block.ln_2, gelu=True)
            self._product(room["inner"], m.c_proj, x, residual=y)
        hidden: Tensor = model.ln_f(x)
        return hidden.view(1, 1, -1)

    def head(self, model: GPT, x: Tensor) -> Tensor:
        """x (1, D) -> logits of the rows in use (1, V)."""
        table = model.head_rows()
        logits = x.new_empty(1, len(table))
        self._product(model.head_proj(x), SimpleNamespace(weight=table, bias=None), logits)
        return model.finish_logits(logits)

    def _product(
        self, x: Tensor, layer: Any, y: Tensor, norm: Any = None, residual: Tensor | None = None, gelu: bool = False
    ) -> None:
        """y = residual + gelu(layer(norm(x))), each where it is there."""
        n_out, n_in = layer.weight.shape
        of_norm = (None, None, 0.0) if norm is None else (norm.weight, norm.bias, norm.eps)
        columns = min(triton.next_power_of_2(n_in), COLUMNS if norm is None else MAX_WIDTH)
        kernel: Any = _rows[(triton.cdiv(n_out, ROWS),)]
        kernel(
            x, layer.weight, layer.bias, residual, y, *of_norm, n_out, n_in, NORM=norm is not None, GELU=gelu,
            EARLY=self.early, ROWS=ROWS, COLUMNS=columns, num_warps=WARPS, launch_pdl=self.early,
        )  # fmt: skip


def one_row(model: GPT) -> OneRow | None:
    """What reads a token of one row, where the model is GPT-2's form."""
    if not all(map(is_gpt2, model.h)) or model.config.n_embd > MAX_WIDTH:
        return None
    blocks: list[Any] = list(model.h)
    layers = [layer for b in blocks for layer in (b.attn.c_attn, b.attn.c_proj, b.mlp.c_fc, b.mlp.c_proj)]
    return OneRow(model) if all(type(layer) is nn.Linear for layer in layers) else None


@triton.jit
def _rows(  # type: ignore[no-untyped-def]
    x, weight, bias, residual, y, norm_weight, norm_bias, eps, n_out, n_in, NORM: tl.constexpr, GELU: tl.constexpr,
    EARLY: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = rows < n_out
    starts = weight + rows.to(tl.int64)[:, None] * n_in
    total = tl.zeros((ROWS,), tl.float32)
    columns = tl.arange(0, COLUMNS)
    w = tl.load(starts + columns[None, :], mask=there[:, None] & (columns < n_in)[None, :], other=0.0)
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    for _ in range(0, n_in, COLUMNS):
        inside = columns < n_in
        v = tl.load(x + columns, mask=inside, other=0.0).to(tl.float32)
        if NORM:  # one pass: COLUMNS holds all of x
            centred = tl.where(inside, v - tl.sum(v) / n_in, 0.0)
            v = centred / tl.sqrt(tl.sum(centred * centred) / n_in + eps)
            if norm_weight is not None:
                v *= tl.load(norm_weight + columns, mask=inside, other=0.0).to(tl.float32)
            if norm_bias is not None:
                v += tl.load(norm_bias + columns, mask=inside, other=0.0).to(tl.float32)
        columns_after = columns + COLUMNS
        after = there[:, None] & (columns_after < n_in)[None, :]
        w_after = tl.load(starts + columns_after[None, :], mask=after, other=0.0)
        total += tl.sum(w.to(tl.float32) * v[None, :], axis=1)
        w, columns = w_after, columns_after
    if bias is not None:
        total += tl.load(bias + rows, mask=there, other=0.0).to(tl.float32)
    if GELU:  # 1 + tanh(u) = 2 sigmoid(2 u)
        total *= tl.sigmoid(1.5957691216057308 * (total + 0.044715 * total * total * total))
    if residual is not None:
        total += tl.load(residual + rows, mask=there, other=0.0).to(tl.float32)
    tl.store(y + rows, total.to(y.dtype.element_ty), mask=there)


@triton.jit
def _attend(  # type: ignore[no-untyped-def]
    qkv, keys, values, mixed, at, scale, width, n_slots, W: tl.constexpr, WIDE: tl.constexpr, SLOTS: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    head, length = tl.program_id(0), tl.load(at)
    d = tl.arange(0, WIDE)
    inside = d < W
    here = qkv + head * W + d
    q = tl.load(here, mask=inside, other=0.0).to(tl.float32) * scale
    own_k = tl.load(here + width, mask=inside, other=0.0)
    own_v = tl.load(here + 2 * width, mask=inside, other=0.0)
    begins = head.to(tl.int64) * n_slots * W
    tl.store(keys + begins + length * W + d, own_k, mask=inside)
    tl.store(values + begins + length * W + d, own_v, mask=inside)
    highest = tl.sum(q * own_k.to(tl.float32))
    total = highest * 0.0 + 1.0
    y = own_v.to(tl.float32)
    for first in range(0, length, SLOTS):
        slots = first + tl.arange(0, SLOTS)
        seen = slots < length
        places = begins + slots.to(tl.int64)[:, None] * W + d[None, :]
        mask = seen[:, None] & inside[None, :]
        k = tl.load(keys + places, mask=mask, other=0.0).to(tl.float32)
        v = tl.load(values + places, mask=mask, other=0.0).to(tl.float32)
        scores = tl.where(seen, tl.sum(k * q[None, :], axis=1), float("-inf"))
        higher = tl.maximum(highest, tl.max(scores))
        weights = tl.exp(scores - higher)
        shrunk = tl.exp(highest - higher)
        total = total * shrunk + tl.sum(weights)
        y = y * shrunk + tl.sum(weights[:, None] * v, axis=0)
        highest = higher
    tl.store(mixed + head * W + d, (y / total).to(mixed.dtype.element_ty), mask=inside)
