"""GPT-2's blocks for one token of one row on a card: one kernel, with a program for each of the card's multiprocessors.

- Five parts a block: norm and qkv; keys and values into the cache, and attention over the filled slots; its projection
  and the residual; norm, fc and GELU; the output and the residual. Sums are fp32.
- Before each part programs wait for each other; the first weights that they read then are on their way by that time.
- Other components and more rows go `graphs.py`'s other way, the model compiled.

D width, F inner width, H heads, S slots of the cache, W head width.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from minilm.decoding.fused import is_gpt2
from minilm.model.gpt import GPT

TILE_BYTES, WARPS, PER, REGISTERS = 1 << 13, 8, 2, 128
SLOTS = 64  # that a head reads at once
HEAD_ROWS, HEAD_WARPS = 4, 4  # of a program of the head, which waits for no other
MAX_WIDTH = 8192  # a norm reads the whole width at once
TENSORS = tl.constexpr(12)  # of a block


class OneRow:
    """`graphs._step` of one row."""

    def __init__(self, model: GPT) -> None:
        c, weight = model.config, model.wte.weight
        sizes = {"x": c.n_embd, "y": c.n_embd, "mixed": c.n_embd, "qkv": 3 * c.n_embd, "inner": c.inner_width}
        self.room = {name: weight.new_empty(size) for name, size in sizes.items()}
        self.arrived = torch.zeros(1, dtype=torch.int32, device=weight.device)
        self.scales = torch.tensor([c.score_scale(layer) for layer in range(c.n_layer)], device=weight.device)
        self.found: list[list[int]] = []
        self.n_programs = 1  # Triton's interpreter runs one after the other, so that none can wait
        if weight.is_cuda:
            self.n_programs = torch.cuda.get_device_properties(weight.device).multi_processor_count * PER
        self.own = torch.empty(self.n_programs, c.n_embd, device=weight.device)  # each program's norm of x

    def __call__(self, model: GPT, ids: Tensor, at: Tensor, _: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """ids (1, 1), at (1,) the slot that it takes, keys and values (layers, 1, H, S, W) -> (1, 1, D)."""
        c, x = model.config, self.room["x"]
        if self.found != (found := _addresses(model)):  # weights may have moved
            self.found, self.addresses = found, torch.tensor(found, device=x.device)
        x.copy_(model.ln_e(model.wte_proj(model.wte(ids)) + model.wpe(at)).flatten())
        self.arrived.zero_()
        kernel: Any = _blocks[(self.n_programs,)]
        kernel(
            **self.room, own=self.own, addresses=self.addresses, scales=self.scales, keys=keys, values=values, at=at,
            arrived=self.arrived, eps=c.norm_eps, n_layer=c.n_layer, n_slots=keys.shape[3], PROGRAMS=self.n_programs,
            D=c.n_embd, F=c.inner_width, H=c.n_head, W=c.head_width, TILE=TILE_BYTES // x.itemsize, SLOTS=SLOTS,
            num_warps=WARPS, maxnreg=REGISTERS, launch_cooperative_grid=True,
        )  # fmt: skip
        hidden: Tensor = model.ln_f(x)
        return hidden.view(1, 1, -1)

    def head(self, model: GPT, x: Tensor) -> Tensor:
        """x (1, D) -> logits of the rows in use (1, V)."""
        table = model.head_rows()
        logits = x.new_empty(1, len(table))
        columns = min(triton.next_power_of_2(table.shape[1]), 2048)
        kernel: Any = _head[(triton.cdiv(len(table), HEAD_ROWS),)]
        kernel(model.head_proj(x), table, logits, *table.shape, ROWS=HEAD_ROWS, COLUMNS=columns, num_warps=HEAD_WARPS)
        return model.finish_logits(logits)


def one_row(model: GPT) -> OneRow | None:
    """What reads a token of one row, where the model is GPT-2's form."""
    if not all(map(is_gpt2, model.h)) or model.config.n_embd > MAX_WIDTH:
        return None
    blocks: list[Any] = list(model.h)
    layers = [layer for b in blocks for layer in (b.attn.c_attn, b.attn.c_proj, b.mlp.c_fc, b.mlp.c_proj)]
    plain = all(type(layer) is nn.Linear for layer in layers) and len({p.dtype for p in model.parameters()}) == 1
    aligned = not any(address % 16 for found in _addresses(model) for address in found)
    return OneRow(model) if plain and aligned else None


def _addresses(model: GPT) -> list[list[int]]:
    """Of each layer's norm, qkv, projection, norm, fc and output the weight's and bias's; 0 where there is none."""
    found = []
    for layer in range(model.config.n_layer):
        b: Any = model.h[layer * len(model.h) // model.config.n_layer]
        parts = (b.ln_1, b.attn.c_attn, b.attn.c_proj, b.ln_2, b.mlp.c_fc, b.mlp.c_proj)
        tensors = [tensor for part in parts for tensor in (part.weight, part.bias)]
        found.append([0 if tensor is None else tensor.data_ptr() for tensor in tensors])
    return found


@triton.jit
def _blocks(  # type: ignore[no-untyped-def]
    x, y, mixed, qkv, inner, own, addresses, scales, keys, values, at, arrived, eps, n_layer, n_slots,
    PROGRAMS: tl.constexpr, D: tl.constexpr, F: tl.constexpr, H: tl.constexpr, W: tl.constexpr, TILE: tl.constexpr,
    SLOTS: tl.constexpr,
):  # fmt: skip
    length, met = tl.load(at), 0
    for layer in range(n_layer):
        of = addresses + layer * TENSORS
        met = _product(x, of, own, of + 2, None, qkv, eps, arrived, met, 3 * D, D, PROGRAMS, TILE, False)
        begins, scale = tl.cast(layer, tl.int64) * H * n_slots * W, tl.load(scales + layer)
        met = _attend(qkv, keys + begins, values + begins, mixed, length, scale, n_slots, arrived, met, PROGRAMS, H, W,
                      SLOTS)  # fmt: skip
        met = _product(mixed, None, None, of + 4, x, y, eps, arrived, met, D, D, PROGRAMS, TILE, False)
        met = _product(y, of + 6, own, of + 8, None, inner, eps, arrived, met, F, D, PROGRAMS, TILE, True)
        met = _product(inner, None, None, of + 10, y, x, eps, arrived, met, D, F, PROGRAMS, TILE, False)


@triton.jit
def _meet(arrived, met):  # type: ignore[no-untyped-def]
    """What any program wrote before is there for all of them after."""
    tl.debug_barrier()
    seen = tl.atomic_add(arrived, 1, sem="acq_rel") + 1
    while seen < met:
        seen = tl.atomic_add(arrived, 0, sem="acquire")


@triton.jit
def _tensor(address, like, inside):  # type: ignore[no-untyped-def]
    """Where a tensor begins, and `inside` where there is one."""
    begins = tl.load(address)
    return tl.multiple_of(begins.to(like.dtype), 16), tl.where(inside, begins, 0) != 0


@triton.jit
def _weights(starts, columns, there, N_IN: tl.constexpr):  # type: ignore[no-untyped-def]
    return tl.load(starts + columns[None, :], mask=there[:, None] & (columns < N_IN)[None, :], other=0.0)


@triton.jit
def _product(  # type: ignore[no-untyped-def]
    x, norm, own, layer, residual, y, eps, arrived, met, N_OUT: tl.constexpr, N_IN: tl.constexpr, PROGRAMS: tl.constexpr,
    TILE: tl.constexpr, GELU: tl.constexpr,
):  # fmt: skip
    """y = residual + gelu(layer(norm(x))), each where it is there; addresses of norm's and layer's tensors."""
    SHARE: tl.constexpr = triton.cdiv(N_OUT, PROGRAMS)
    ROWS: tl.constexpr = triton.next_power_of_2(SHARE)
    COLUMNS: tl.constexpr = TILE // ROWS if TILE // ROWS > 16 else 16
    mine = tl.arange(0, ROWS)
    rows = tl.program_id(0) * SHARE + mine
    there = (mine < SHARE) & (rows < N_OUT)
    columns = tl.arange(0, COLUMNS)
    weight, _ = _tensor(layer, x, there)
    bias, with_bias = _tensor(layer + 1, x, there)
    starts = weight + rows.to(tl.int64)[:, None] * N_IN
    w_0 = _weights(starts, columns, there, N_IN)
    w_1 = _weights(starts, columns + COLUMNS, there, N_IN)
    w_2 = _weights(starts, columns + 2 * COLUMNS, there, N_IN)
    sums = tl.load(bias + rows, mask=with_bias, other=0.0).to(tl.float32)
    WIDE: tl.constexpr = triton.next_power_of_2(N_IN)
    wide = tl.arange(0, WIDE)
    inside = wide < N_IN
    if norm is not None:
        scale, scaled = _tensor(norm, x, inside)
        shift, shifted = _tensor(norm + 1, x, inside)
        scales = tl.load(scale + wide, mask=scaled, other=1.0).to(tl.float32)
        shifts = tl.load(shift + wide, mask=shifted, other=0.0).to(tl.float32)
    met += PROGRAMS
    _meet(arrived, met)
    if norm is not None:
        whole = tl.load(x + wide, mask=inside, other=0.0).to(tl.float32)
        centred = tl.where(inside, whole - tl.sum(whole) / N_IN, 0.0)
        normed = centred / tl.sqrt(tl.sum(centred * centred) / N_IN + eps) * scales + shifts
        x = own + tl.program_id(0) * N_IN
        tl.store(x + wide, normed, mask=inside)
        tl.debug_barrier()
    if residual is not None:
        left = tl.load(residual + rows, mask=there, other=0.0).to(tl.float32)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for _ in range(0, N_IN, COLUMNS):
        v = tl.load(x + columns, mask=columns < N_IN, other=0.0).to(tl.float32)
        w_3 = _weights(starts, columns + 3 * COLUMNS, there, N_IN)
        total += w_0.to(tl.float32) * v[None, :]
        columns += COLUMNS
        w_0, w_1, w_2 = w_1, w_2, w_3
    sums += tl.sum(total, axis=1)
    if GELU:  # 1 + tanh(u) = 2 sigmoid(2 u)
        sums *= tl.sigmoid(1.5957691216057308 * (sums + 0.044715 * sums * sums * sums))
    if residual is not None:
        sums += left
    tl.store(y + rows, sums.to(y.dtype.element_ty), mask=there)
    return met


@triton.jit
def _attend(  # type: ignore[no-untyped-def]
    qkv, keys, values, mixed, length, scale, n_slots, arrived, met, PROGRAMS: tl.constexpr, H: tl.constexpr,
    W: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """The token's keys and values into their slot, and what its heads read of all slots up to it."""
    met += PROGRAMS
    _meet(arrived, met)
    d = tl.arange(0, triton.next_power_of_2(W))
    inside = d < W
    for head in range(tl.program_id(0), H, PROGRAMS):
        here = qkv + head * W + d
        q = tl.load(here, mask=inside, other=0.0).to(tl.float32) * scale
        own_k = tl.load(here + H * W, mask=inside, other=0.0)
        own_v = tl.load(here + 2 * H * W, mask=inside, other=0.0)
        begins = tl.cast(head, tl.int64) * n_slots * W
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
    return met


@triton.jit
def _head(x, weight, y, n_out, n_in, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # type: ignore[no-untyped-def]
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = rows < n_out
    starts = weight + rows.to(tl.int64)[:, None] * n_in
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, n_in, COLUMNS):
        columns = first + tl.arange(0, COLUMNS)
        inside = columns < n_in
        v = tl.load(x + columns, mask=inside, other=0.0).to(tl.float32)
        w = tl.load(starts + columns[None, :], mask=there[:, None] & inside[None, :], other=0.0)
        total += w.to(tl.float32) * v[None, :]
    tl.store(y + rows, tl.sum(total, axis=1).to(y.dtype.element_ty), mask=there)
