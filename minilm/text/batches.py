"""Batches as a pure function of (seed, step, rank).

- No state: the batch of step s is found in O(1), so that resuming is exact and free.
- Each epoch visits every window once, in an order of its own: a keyed permutation (a Feistel network with cycle
  walking; Black & Rogaway 2002) maps position to window without an array of them.
- A window is T + 1 tokens, the next one begins T further: each token is a target once an epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from minilm.errors import UsageError
from minilm.text.shards import Split

IGNORE = -100  # a target that is not scored
ORDER_BLOCK = 4096  # places whose windows are worked out at once: numpy's overhead is per call


@dataclass(frozen=True)
class Batch:
    """ids and targets (B, T) int64; documents (B, T) int32, counted from 0 in each row, or None.

    weights (B, T) float32 or None: what each target counts for.
    """

    ids: np.ndarray
    targets: np.ndarray
    documents: np.ndarray | None = None
    weights: np.ndarray | None = None

    @property
    def n_targets(self) -> float:
        """Targets that are scored, each by its weight."""
        scored = self.targets != IGNORE
        return int(scored.sum()) if self.weights is None else float(self.weights[scored].sum(dtype=np.float64))


def permute(positions: np.ndarray, n: int, keys: np.ndarray) -> np.ndarray:
    """Where permutations of range(n) take positions: int64 in, int64 out, O(1) each.

    keys, uint64, one for each position: equal keys draw the same permutation.
    """
    half_bits = max((max(n - 1, 1).bit_length() + 1) // 2, 1)
    mask = np.uint64((1 << half_bits) - 1)
    shift = np.uint64(half_bits)
    rounds = _splitmix(_splitmix(keys) ^ np.arange(4, dtype=np.uint64)[:, None])
    x = positions.astype(np.uint64)
    outside = np.ones(len(x), dtype=bool)
    while outside.any():
        # A value that lands beyond n walks on: under four tries in the mean, since the domain is under 4 n.
        left, right = x[outside] >> shift, x[outside] & mask
        for k in rounds[:, outside]:
            left, right = right, left ^ (_splitmix(right ^ k) & mask)
        x[outside] = (left << shift) | right
        outside = x >= np.uint64(n)
    return x.astype(np.int64)


def _splitmix(x: np.ndarray) -> np.ndarray:
    """Steele 2014's mixer: every bit of the output depends on every bit of the input."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


class Chunks:
    """Contiguous windows of the stream, whatever documents they cut."""

    def __init__(self, split: Split, block_size: int) -> None:
        self.split, self.block_size = split, block_size
        self.n_windows = (split.n_tokens - 1) // block_size
        if self.n_windows < 1:
            raise UsageError(
                f"the text has {split.n_tokens} tokens and a context needs {block_size + 1}: "
                f"add text or set --block_size {max(split.n_tokens - 1, 1)} or less"
            )

    def window(self, i: int) -> np.ndarray:
        """Tokens of window i, block_size + 1 of them."""
        return self.split.read(i * self.block_size, self.block_size + 1)


PACKINGS: dict[str, Callable[[Split, int], Chunks]] = {"chunks": Chunks}


class Batches:
    """The training batches of a split. Raises UsageError where it is shorter than a context."""

    def __init__(
        self,
        split: Split,
        *,
        block_size: int,
        batch_size: int,
        seed: int,
        packing: str = "chunks",
        with_documents: bool = False,
    ) -> None:
        if packing not in PACKINGS:
            raise UsageError(f"packing is {packing!r}: choose {', '.join(PACKINGS)}")
        self.windows = PACKINGS[packing](split, block_size)
        self.batch_size, self.seed, self.with_documents = batch_size, seed, with_documents
        self.vocab_size, self.eot = split.vocab_size, split.shards[0].eot
        self.windows_per_epoch = self.windows.n_windows
        self.steps_per_epoch = self.windows_per_epoch / batch_size
        self.tokens_per_step = batch_size * block_size

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """The rows of `rank` among `world` in step `step`; all ranks' rows in order are the single-rank batch.

        Raises UsageError where world does not divide batch_size or a token lies outside the vocabulary.
        """
        if self.batch_size % world:
            raise UsageError(f"{world} ranks do not divide batch_size {self.batch_size}: choose a multiple")
        share = self.batch_size // world
        first = step * self.batch_size + rank * share
        rows = np.stack([self.windows.window(i) for i in self.order(first, share)])
        if rows.max() >= self.vocab_size:
            raise UsageError(
                f"the shards hold token {rows.max()}, outside their vocabulary of {self.vocab_size}: rebuild"
            )
        documents = documents_of(rows[:, :-1], self.eot) if self.with_documents else None
        return Batch(np.ascontiguousarray(rows[:, :-1]), np.ascontiguousarray(rows[:, 1:]), documents)

    def order(self, first: int, n: int) -> np.ndarray:
        """Windows that stand at places first to first + n of the endless sequence of epochs."""
        blocks = range(first // ORDER_BLOCK, (first + n - 1) // ORDER_BLOCK + 1)
        begin = first - blocks.start * ORDER_BLOCK
        return np.concatenate([_order_block(self.windows_per_epoch, self.seed, i) for i in blocks])[begin : begin + n]


@lru_cache(maxsize=4)
def _order_block(n_windows: int, seed: int, block: int) -> np.ndarray:
    places = np.arange(block * ORDER_BLOCK, (block + 1) * ORDER_BLOCK)
    epochs = (places // n_windows).astype(np.uint64)
    seeds = _splitmix(np.array([seed % (1 << 64)], np.uint64))
    return permute(places % n_windows, n_windows, seeds ^ epochs)


def documents_of(ids: np.ndarray, eot: int) -> np.ndarray:
    """ids (B, T) -> (B, T) int32: how many documents have begun in the row before or at each token."""
    return np.cumsum(ids == eot, axis=1, dtype=np.int32)


def eval_batches(split: Split, *, block_size: int, batch_size: int, max_tokens: int) -> Iterator[Batch]:
    """Fixed windows from the split's start: each of its first max_tokens targets once, the last window padded.

    The same (context, target) pairs whatever the batch size. Raises UsageError on a split without a target.
    """
    n_targets = min(split.n_tokens - 1, max_tokens)
    if n_targets < 1:
        raise UsageError(f"the validation text has {split.n_tokens} tokens: nothing to score")
    starts = range(0, n_targets, block_size)
    for at in range(0, len(starts), batch_size):
        here = starts[at : at + batch_size]
        ids = np.full((len(here), block_size), split.shards[0].eot, np.int64)
        targets = np.full((len(here), block_size), IGNORE, np.int64)
        for row, start in enumerate(here):
            n = min(block_size, n_targets - start)
            window = split.read(start, n + 1)
            ids[row, :n], targets[row, :n] = window[:-1], window[1:]
        yield Batch(ids, targets)
