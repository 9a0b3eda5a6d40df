"""Objectives: tensors in, a number out. Formulas and papers: docs/objectives.md.

- `cross_entropy` of logits; `over_tokens` of what the head reads, in chunks of rows, so that logits of a large batch
  are never all in memory: a chunk's gradient is taken while its logits are there, in the forward pass.
- Terms of tokens share a chunk's logits; terms of hidden states stand alone. All are sums over targets in
  nats, to be divided by the step's count of targets, so that they add up however a batch is cut.

B batch, T tokens, N = B T rows, D width, V vocabulary, K terms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100  # a target that is not scored (torch's own default)
# Logits of up to so many fp32 bytes are held whole. Of more, as many as wait are made by one product, a loss's gradient
# takes their place in chunks that a CPU's caches hold, and one product each makes the gradients of what was multiplied.
PLAIN_BYTES, CHUNK_BYTES, WAITING_BYTES = 32 << 20, 8 << 20, 128 << 20
# On a card every chunk adds to the head's whole gradient (154 MB of GPT-2's), so that few are faster. A compiled loss
# holds such a chunk twice, in the products' 16 bits; what is eager holds several copies in fp32.
CARD_PLAIN_BYTES, CARD_CHUNK_BYTES, COMPILED_CHUNK_BYTES = 256 << 20, 256 << 20, 2 << 30
COLUMNS = 64  # rows of 50,257 begin at odd addresses, which products read slower (tensor cores not at all): padded
LEAST = 1e-5  # 1 - p is not taken smaller, as in the code of Welleck 2020

TokenLoss = Callable[[Tensor, slice], Tensor | tuple[Tensor, Tensor]]
"""logits (n, V) in the products' precision and which of the N rows they are -> K sums over these rows, in fp32; or, of
K = 1, the sum and its gradient, which may stand in the logits' place (`kernels.py`)."""
Wanted = tuple[bool, bool]
"""Whether a gradient is, of (x, weight)."""


def cross_entropy(logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Nats of targets (B, T) under logits (B, T, V), in fp32 at least. IGNORE is not scored.

    reduction: "mean" over the scored targets, "sum", or "none" (B, T).
    """
    loss = F.cross_entropy(widened(logits.flatten(0, -2)), targets.flatten(), ignore_index=IGNORE, reduction=reduction)
    return loss.view(targets.shape) if reduction == "none" else loss


def widened(logits: Tensor) -> Tensor:
    """In fp32 at least."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


# --- logits in chunks


def fits(n_rows: int, vocabulary: int, card: bool) -> bool:
    """Whether logits of so many rows are held whole."""
    return n_rows * vocabulary * 4 <= (CARD_PLAIN_BYTES if card else PLAIN_BYTES)


def chunk_rows(n_rows: int, vocabulary: int, card: bool, compiled: bool = False) -> int:
    """Rows of a chunk: as many as the bytes allow, on a card fewer where all chunks are then alike (a compiled loss
    serves one size)."""
    n_bytes = (COMPILED_CHUNK_BYTES if compiled else CARD_CHUNK_BYTES) if card else CHUNK_BYTES
    most = min(max(n_bytes // (4 * vocabulary), 1), n_rows)
    chunks = -(-n_rows // most)
    even = next((n for n in range(chunks, 2 * chunks) if n_rows % n == 0), chunks) if card else chunks
    return min(-(-n_rows // even), most)


def over_tokens(
    x: Tensor,
    weight: Tensor,
    finish: Callable[[Tensor], Tensor],
    loss: TokenLoss,
    factors: Sequence[float] = (1.0,),
    compiled: bool = False,
) -> tuple[Tensor, Tensor]:
    """x (N, D), head weight (V, D) -> (sum of the K factors * loss, a scalar; the K sums, without gradient).

    finish: what follows the head's product, logits (n, V or more) -> (n, used V): columns cut off, a soft cap.
    compiled: whether loss is, so that larger chunks fit a card.
    """
    by = torch.tensor(factors, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
    if fits(len(x), len(weight), x.is_cuda):
        sums = loss(finish(F.linear(x, weight)), slice(0, len(x)))
        assert isinstance(sums, Tensor), "a loss that makes its own gradient is for chunks"
        return (by * sums).sum(), sums.detach()
    return _chunked(x, weight, lambda logits, rows: loss(finish(logits), rows), by, compiled)


@torch._disable_dynamo  # torch.compiler.disable, which imports the compiler (1.7 s) here and not on the first call
def _chunked(x: Tensor, weight: Tensor, loss: TokenLoss, factors: Tensor, compiled: bool) -> tuple[Tensor, Tensor]:
    n = chunk_rows(len(x), len(weight), x.is_cuda, compiled)
    wanted = tuple(torch.is_grad_enabled() and tensor.requires_grad for tensor in (x, weight))
    return cast(tuple[Tensor, Tensor], _Chunked.apply(x, weight, loss, factors, n, -len(weight) % COLUMNS, wanted))


class _Chunked(torch.autograd.Function):
    """loss of x weight^T, n rows at a time; gradients are worked out in the forward pass and scaled in the backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, loss: TokenLoss, factors: Tensor, n: int, padding: int, wanted: Wanted
    ) -> tuple[Tensor, Tensor]:
        kind, (wants_x, wants_weight), (V, N) = x.device.type, wanted, (len(weight), len(x))
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        sums = factors.new_zeros(len(factors))

        def gradient(logits: Tensor, part: slice) -> Tensor | None:  # of the part's logits; adds its terms to the sums
            logits = logits.detach().requires_grad_(any(wanted))
            with torch.set_grad_enabled(any(wanted)):
                terms = loss(logits, part)
                if isinstance(terms, tuple):
                    sums.add_(terms[0])
                    return terms[1].detach() if any(wanted) else None
                total = (factors * terms).sum()
            sums.add_(terms.detach())
            return torch.autograd.grad(total, logits)[0] if any(wanted) else None

        with torch.autocast(kind, enabled=False):
            rows, table = x.to(dtype), weight.to(dtype)
            table = F.pad(table, (0, 0, 0, padding)) if padding and x.is_cuda else table
            grad_x = torch.empty_like(rows) if wants_x else None
            grad_weight: Tensor | None = None
            wide = torch.promote_types(weight.dtype, torch.float32)  # what adds up over products does so in fp32
            fit = n if x.is_cuda else max(WAITING_BYTES // ((V + padding) * rows.itemsize * n), 1) * n
            waiting = rows.new_empty(min(fit, N), V + padding)
            waiting[:, len(table) :] = 0
            for some in _spans(0, N, fit):
                logits = waiting[: some.stop - some.start]
                torch.mm(rows[some], table.t(), out=logits[:, : len(table)])
                parts = _spans(some.start, some.stop, n)
                for own, part in zip(logits[:, : len(table)].split(n), parts, strict=True):
                    if (grad := gradient(own, part)) is not None and not x.is_cuda:
                        own.copy_(grad)
                    elif grad is not None:
                        logits = grad  # all of them
                if grad_x is not None:
                    torch.mm(logits[:, : len(table)], table, out=grad_x[some])
                if wants_weight:
                    grad_weight = _plus(grad_weight, logits, rows[some], wide)
        ctx.grads = (grad_x, x.dtype), (None if grad_weight is None else grad_weight[:V], weight.dtype)
        ctx.mark_non_differentiable(sums)
        return (factors * sums).sum(), sums

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        kept, ctx.grads = ctx.grads, None  # scaled in place, so that a second pass would find other numbers
        scaled = [None if g is None else g.to(dtype).mul_(grads[0].to(dtype)) for g, dtype in kept]
        return scaled[0], scaled[1], None, None, None, None, None


def _spans(first: int, last: int, n: int) -> Iterator[slice]:
    return (slice(at, min(at + n, last)) for at in range(first, last, n))


def _plus(total: Tensor | None, grad: Tensor, rows: Tensor, wide: torch.dtype) -> Tensor:
    """total + grad^T rows; the first product keeps its own precision, which is all where nothing is added to it."""
    if total is None:
        return grad.t() @ rows
    total = total.to(wide)
    return total.addmm_(grad.t(), rows) if grad.dtype == wide else total.add_(grad.t() @ rows)


# --- terms of tokens: logits (n, V), targets (n,) -> (n,), of rows whose target is not IGNORE


def smoothed(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """(1 - s) (-log p_target) + s mean over V of (-log p) (Szegedy 2016; torch's `label_smoothing`)."""
    return F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="none", label_smoothing=smoothing)


def z_squared(logits: Tensor) -> Tensor:
    """(log sum exp of the logits)^2: keeps the softmax's normaliser near 1 (Chowdhery 2022, section 5)."""
    return logits.logsumexp(-1).square()


def unlikelihood(logits: Tensor, negatives: Tensor) -> Tensor:
    """-sum over negatives of log(1 - p) (Welleck 2020, equation 4). negatives (n, V), bool."""
    return -(negatives * (1.0 - logits.softmax(-1)).clamp(min=LEAST).log()).sum(-1)


def seen_before(ids: Tensor, targets: Tensor, vocabulary: int, rows: slice, documents: Tensor | None = None) -> Tensor:
    """Which tokens a row's context holds, its target left out: Welleck 2020's candidates, (n, vocabulary), bool.

    ids, targets, documents (B, T); rows: a slice of the B T places, in order.
    """
    T = ids.shape[1]
    places = torch.arange(rows.start, rows.stop, device=ids.device)
    row, at = places // T, places % T
    seen = torch.arange(T, device=ids.device) <= at[:, None]
    if documents is not None:
        seen &= documents[row] == documents[row, at][:, None]
    found = torch.zeros(len(places), vocabulary + 1, dtype=torch.bool, device=ids.device)
    found.scatter_(1, torch.where(seen, ids[row], vocabulary), True)  # one column more takes what is not seen
    target = targets.flatten()[rows].clamp(min=0)
    return found.scatter_(1, target[:, None], False)[:, :vocabulary]


def divergence(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """t^2 KL(teacher || student), both at temperature t (Hinton 2015, section 2)."""
    student = (logits / temperature).log_softmax(-1)
    teacher = (teacher_logits.to(logits.dtype) / temperature).log_softmax(-1)
    return temperature**2 * F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)


# --- terms of sequences


def contrastive(hidden: Tensor, scored: Tensor, margin: float, documents: Tensor | None = None) -> Tensor:
    """SimCTG (Su 2022, equation 2): tokens of a sequence are pushed apart until their cosine is under 1 - margin.

    hidden (B, T, D), scored (B, T) bool -> (B, T): the mean over the other scored tokens j of the sequence (of the
    document) of max(0, margin - 1 + cos(h_i, h_j)); 0 where not scored, or alone.
    """
    unit = F.normalize(hidden.to(torch.promote_types(hidden.dtype, torch.float32)), dim=-1)
    pairs = scored[:, :, None] & scored[:, None, :]
    pairs = pairs & ~torch.eye(hidden.shape[1], dtype=torch.bool, device=hidden.device)
    if documents is not None:
        pairs = pairs & (documents[:, :, None] == documents[:, None, :])
    with torch.autocast(hidden.device.type, enabled=False):
        excess = F.relu(margin - 1.0 + unit @ unit.transpose(1, 2))
    return (excess * pairs).sum(-1) / pairs.sum(-1).clamp(min=1)


def repeated(ids: Tensor, n: int) -> Tensor:
    """ids (B, T) -> (B, T), bool: tokens of an n-gram that stands earlier in its row already (Welleck 2020, eq. 7)."""
    found = torch.zeros_like(ids, dtype=torch.bool)
    if n > ids.shape[1]:
        return found
    grams = ids.unfold(1, n, 1)  # (B, T - n + 1, n)
    same = (grams[:, :, None] == grams[:, None]).all(-1).tril(-1).any(-1)  # gram i equals an earlier one
    for offset in range(n):
        found[:, offset : offset + same.shape[1]] |= same
    return found
