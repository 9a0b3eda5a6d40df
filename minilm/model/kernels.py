"""A kernel of a card: cross-entropy of a chunk of logits and their gradient, each logit read twice, the second time
from a cache, and written once. Compiled from torch it took four times as long (docs/performance-log.md).

n rows, V vocabulary in use, C columns of the logits, V or more.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from minilm.model.losses import IGNORE

COLUMNS, WARPS = 4096, 8  # of a row at once; threads are 32 a warp


def nats_and_gradient(logits: Tensor, targets: Tensor, n_used: int) -> tuple[Tensor, Tensor]:
    """logits (n, C), whose rows may lie apart, and targets (n,) -> (their cross-entropy summed, (1,), and its gradient,
    which takes the logits' place). Columns from n_used on take no part."""
    n, n_columns = logits.shape
    nats = torch.empty(n, dtype=torch.float32, device=logits.device)
    block = min(COLUMNS, triton.next_power_of_2(n_columns))
    grid: Any = _row[(n,)]
    grid(logits, targets, nats, logits.stride(0), n_used, n_columns, IGNORE, BLOCK=block, num_warps=WARPS)
    return nats.sum()[None], logits


@triton.jit
def _row(logits, targets, nats, stride, n_used, n_columns, ignored, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    at = logits + row * stride
    target = tl.load(targets + row)
    scored = target != ignored
    own = tl.load(at + target, mask=scored, other=0.0).to(tl.float32)  # before anything is written over it
    columns = tl.arange(0, BLOCK)
    whole = n_used // BLOCK * BLOCK  # blocks that need no mask
    highest = own
    total = own * 0.0
    for first in range(0, whole, BLOCK):
        x = tl.load(at + first + columns).to(tl.float32)
        higher = tl.maximum(highest, tl.max(x))
        total = total * tl.exp(highest - higher) + tl.sum(tl.exp(x - higher))
        highest = higher
    x = tl.load(at + whole + columns, mask=whole + columns < n_used, other=float("-inf")).to(tl.float32)
    higher = tl.maximum(highest, tl.max(x))
    total = total * tl.exp(highest - higher) + tl.sum(tl.exp(x - higher))
    log_sum = higher + tl.log(total)
    tl.store(nats + row, tl.where(scored, log_sum - own, 0.0))
    log_sum = tl.where(scored, log_sum, float("inf"))  # all of the gradient is then 0
    for first in range(0, whole, BLOCK):
        x = tl.load(at + first + columns).to(tl.float32)
        tl.store(at + first + columns, tl.exp(x - log_sum).to(logits.dtype.element_ty))
    for first in range(whole, n_columns, BLOCK):
        here = first + columns
        x = tl.load(at + here, mask=here < n_used, other=float("-inf")).to(tl.float32)
        tl.store(at + here, tl.exp(x - log_sum).to(logits.dtype.element_ty), mask=here < n_columns)
    tl.debug_barrier()  # the target's p stands there by now
    tl.store(at + target, (tl.exp(own - log_sum) - 1.0).to(logits.dtype.element_ty), mask=scored)
