"""What a model thinks of given tokens: nats of each target, batched, the head and the last feed-forward run only where
something is scored.

Windows of like length stand side by side, padded on the right, which causal attention never sees; in fp32 the batch
size changes nothing but rounding. T tokens, D width, N scored targets, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from minilm.decoding.contexts import evaluating
from minilm.decoding.engine import check_ids
from minilm.errors import MinilmError, UsageError
from minilm.evaluation.packed import Packed, packs
from minilm.model.cache import Cache
from minilm.model.geometry import Geometry
from minilm.model.gpt import GPT, Block
from minilm.text.encode import up_to

BATCH_TOKENS = 8192  # read at once: enough to keep a processor or card busy
LOGIT_BYTES = 1 << 27  # of logits held at once
PACKED_LOGIT_BYTES = 1 << 24  # by a packed head, which needs no cast of the table for each product
REDUCED_BYTES = 1 << 22  # of fp32 logits that are reduced at once, in a processor's caches
PACKED_TOKENS = 4096  # from here on laying the weights out anew is repaid
SORTED_BATCHES = 16  # so many batches' windows are sorted by length, so that few tokens are padding


class Request(NamedTuple):
    """ids (T,) int64; those from `scored` (1 or more) on are targets, each predicted from all before it."""

    ids: np.ndarray
    scored: int


class Scored(NamedTuple):
    """What the model thinks of a request's targets, (T - scored,) each."""

    nats: np.ndarray
    """-log p, fp32."""
    is_top: np.ndarray
    """Whether the target is the likeliest token."""


def target_nats(
    model: GPT, requests: Iterable[Request], *, batch_tokens: int = BATCH_TOKENS, precision: str = "fp32"
) -> Iterator[np.ndarray]:
    """The nats alone of `target_scores`."""
    return (found.nats for found in target_scores(model, requests, batch_tokens=batch_tokens, precision=precision))


def target_scores(
    model: GPT, requests: Iterable[Request], *, batch_tokens: int = BATCH_TOKENS, precision: str = "fp32"
) -> Iterator[Scored]:
    """Yields what the model thinks of each request's targets, in the order of the requests.

    Raises UsageError where a request is longer than the model can read, or has a token outside its vocabulary;
    MinilmError where logits are not numbers.
    """
    rest, packed = iter(requests), None
    while group := list(up_to(SORTED_BATCHES * batch_tokens, rest, lambda request: len(request.ids))):
        for request in group:
            _check(model, request)
        if packed is None and packs(model, precision) and sum(len(r.ids) for r in group) > PACKED_TOKENS:
            packed = Packed(model, batch_tokens)
        found: list[Scored | None] = [None] * len(group)
        for rows in _batches([len(request.ids) - 1 for request in group], batch_tokens):
            for row, scores in zip(rows, _score(model, [group[row] for row in rows], precision, packed), strict=True):
                found[row] = scores
        yield from (scores for scores in found if scores is not None)


def _batches(lengths: list[int], batch_tokens: int) -> Iterator[list[int]]:
    """Rows of like length whose padded tokens are batch_tokens at most; a longer row stands alone."""
    rows = iter(sorted(range(len(lengths)), key=lambda row: -lengths[row]))
    for first in rows:
        n_rows = max(1, batch_tokens // max(1, lengths[first]))
        yield [first, *islice(rows, n_rows - 1)]


def _check(model: GPT, request: Request) -> None:
    n_read = len(request.ids) - 1
    if n_read > model.wpe.max_tokens:
        raise UsageError(
            f"a window reads {n_read} tokens and the model's position table has {model.wpe.max_tokens}: set a "
            "context that it can read"
        )
    check_ids(model, [[int(request.ids.max())], [int(request.ids.min())]])


@torch.inference_mode()
def _score(model: GPT, requests: list[Request], precision: str, packed: Packed | None) -> list[Scored]:
    n_read = max(len(request.ids) - 1 for request in requests)
    ids = np.zeros((len(requests), n_read), np.int64)
    scored = np.zeros((len(requests), n_read), bool)
    for row, request in enumerate(requests):
        n = len(request.ids) - 1
        ids[row, :n], scored[row, request.scored - 1 : n] = request.ids[:-1], True
    targets = np.concatenate([request.ids[request.scored :] for request in requests])
    device = model.device
    autocast = torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()
    with evaluating(model), autocast:
        x = _hidden_at(model, packed, torch.from_numpy(ids).to(device), torch.from_numpy(scored).to(device))
        found = _scores_of(model, packed, x, torch.from_numpy(targets).to(device))
    nats, is_top = (part.cpu().numpy() for part in found)
    ends = np.cumsum([len(request.ids) - request.scored for request in requests])[:-1]
    rows = [Scored(*both) for both in zip(np.split(nats, ends), np.split(is_top, ends), strict=True)]
    for one in rows:
        if not np.isfinite(one.nats).all():
            place = int(np.flatnonzero(~np.isfinite(one.nats))[0]) + 1
            raise MinilmError(
                f"the model's logits are no numbers at target {place} of a window: its weights are damaged, or they "
                f"overflow in {precision}"
            )
    return rows


def _hidden_at(model: GPT, packed: Packed | None, ids: Tensor, scored: Tensor) -> Tensor:
    """ids (B, T), scored (B, T) bool -> what the head reads there, (N, D). After its attention the last block's tokens
    need each other no more, so that its feed-forward and all that follows run on these alone."""
    if type(model) is not GPT:
        return model.hidden(ids)[scored]
    blocks: list[Any] = list(model.h) if packed is None else packed.blocks
    last = blocks[-1]
    if type(last) is not Block or len(blocks) < model.config.n_layer:
        return model.hidden(ids, blocks=blocks)[scored]

    def block(x: Tensor, layer: int, geometry: Geometry, cache: Cache | None) -> Tensor:
        x = last.ln_1_post(x + last.ln_1_out(last.attn(last.ln_1(x), layer, geometry, cache)))[scored]
        return last.ln_2_post(x + last.ln_2_out(last.mlp(last.ln_2(x))))

    x = model.hidden(ids, blocks=[*blocks[:-1], block])
    return x if x.dim() == 2 else x[scored]


def _scores_of(model: GPT, packed: Packed | None, x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """x (N, D), targets (N,) -> nats and whether each is the likeliest, (N,) both; LOGIT_BYTES of logits at most."""
    head = model.used_logits if packed is None else partial(packed.logits, model)
    most = LOGIT_BYTES if packed is None else PACKED_LOGIT_BYTES
    V, sixteen = len(model.head_rows()), torch.is_autocast_enabled(x.device.type)
    at_once = max(1, most // (V * (2 if sixteen else x.itemsize)))
    reduced = min(len(x), at_once if x.is_cuda else max(1, REDUCED_BYTES // (4 * V)))
    nats, is_top = [], []
    for first in range(0, len(x), at_once):
        logits = head(x[first : first + at_once])
        if first == 0:  # written again and again: memory that is not in a cache takes longer than the exponentials
            dtype = torch.promote_types(x.dtype, torch.float32)
            wide, log_p = torch.empty(2, reduced, logits.shape[-1], dtype=dtype, device=x.device)
        for some, wanted in zip(logits.split(reduced), targets[first : first + at_once].split(reduced), strict=True):
            n = len(some)
            torch.log_softmax(wide[:n].copy_(some), -1, out=log_p[:n])
            nats.append(-log_p[:n].gather(1, wanted[:, None])[:, 0])
            top = (some.gather(1, wanted[:, None]) == some.amax(-1, keepdim=True))[:, 0]
            # Of equal logits, of which bf16 has many, the first counts; to find it takes ten times as long.
            top[top.clone()] = some[top].argmax(-1) == wanted[top]
            is_top.append(top)
    return torch.cat(nats), torch.cat(is_top)
