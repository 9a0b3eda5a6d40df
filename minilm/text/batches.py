"""Batches as a pure function of (seed, step, rank).

- No state: the batch of step s is found in O(1), so that resuming is exact and free.
- Each epoch visits every row once, in an order of its own: a keyed permutation (a Feistel network with cycle
  walking; Black & Rogaway 2002) maps position to row without an array of them.
- How tokens become rows, and that each is a target once an epoch: `packing.py`. Sources are mixed in blocks with the
  same count of each, so that every source's own epochs stay whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from minilm.errors import UsageError
from minilm.text.packing import IGNORE, PACKINGS, Chunks, PackingOptions, Row
from minilm.text.shards import Split

__all__ = ["IGNORE", "ORDERS", "Batch", "Batches", "documents_of", "eval_batches", "permute"]

DEFAULTS = PackingOptions()
ORDERS = ("shuffled", "sequential", "random")
ORDER_BLOCK = 4096  # places whose rows are worked out at once: numpy's overhead is per call
SOURCE_SEED, MIX_SEED = 0x632BE59BD9B4E019, 0x2545F4914F6CDD1D  # keep the orders of sources, and the mix, apart


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


class Batches:
    """The training batches of a split, or of several splits mixed. Raises UsageError where one has no row.

    weights: of the splits, for whatever sum; by default their tokens. order: shuffled (every row once an epoch),
    sequential (as in the text), random (chunks that begin anywhere, drawn anew each time, as nanoGPT's do).
    with_documents: batches say which document each token belongs to.
    """

    def __init__(
        self,
        splits: Split | Sequence[Split],
        *,
        block_size: int,
        batch_size: int,
        seed: int,
        packing: str = "chunks",
        with_documents: bool = False,
        order: str = "shuffled",
        weights: Sequence[float] = (),
        options: PackingOptions = DEFAULTS,
    ) -> None:
        if packing not in PACKINGS:
            raise UsageError(f"packing is {packing!r}: choose {', '.join(PACKINGS)}")
        if order not in ORDERS:
            raise UsageError(f"order is {order!r}: choose {', '.join(ORDERS)}")
        if order == "random" and packing != "chunks":
            raise UsageError(f"rows that begin anywhere are chunks: leave out --packing {packing} or --order random")
        self.splits = [splits] if isinstance(splits, Split) else list(splits)
        self.packings = [PACKINGS[packing](split, block_size, options) for split in self.splits]
        self.weights = tuple(weights) or tuple(float(split.n_tokens) for split in self.splits)
        self.batch_size, self.seed, self.with_documents, self.order_kind = batch_size, seed, with_documents, order
        self.vocab_size, self.eot = self.splits[0].vocab_size, self.splits[0].shards[0].eot
        self.windows_per_epoch = sum(packing.n_rows for packing in self.packings)

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """The rows of `rank` among `world` in step `step`; all ranks' rows in order are the single-rank batch.

        Raises UsageError where world does not divide batch_size or a token lies outside the vocabulary.
        """
        if self.batch_size % world:
            raise UsageError(f"{world} ranks do not divide batch_size {self.batch_size}: choose a multiple")
        share = self.batch_size // world
        first = step * self.batch_size + rank * share
        sources, places = self.sources(first, share)
        rows = [self._row(k, place) for k, place in zip(sources.tolist(), places.tolist(), strict=True)]
        ids, targets = np.stack([row.ids for row in rows]), np.stack([row.targets for row in rows])
        highest = max(ids.max(), targets.max())
        if highest >= self.vocab_size:
            raise UsageError(f"the shards hold token {highest}, outside their vocabulary of {self.vocab_size}: rebuild")
        documents = None
        if self.with_documents:
            told = [row.documents for row in rows]
            documents = documents_of(ids, self.eot) if told[0] is None else np.stack([d for d in told if d is not None])
        return Batch(ids, targets, documents)

    def sources(self, first: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Of n places of the endless sequence from `first` on: whose row stands there, and at which place of its own
        endless sequence of epochs."""
        if len(self.splits) == 1:
            return np.zeros(n, np.int64), np.arange(first, first + n)
        blocks = range(first // ORDER_BLOCK, (first + n - 1) // ORDER_BLOCK + 1)
        begin = first - blocks.start * ORDER_BLOCK
        parts = [_mix_block(self.weights, self.seed, i) for i in blocks]
        sources, places = (np.concatenate(column)[begin : begin + n] for column in zip(*parts, strict=True))
        return sources, places

    def order(self, first: int, n: int, source: int = 0) -> np.ndarray:
        """Rows of one source that stand at places first to first + n of its endless sequence of epochs."""
        n_rows = self.packings[source].n_rows
        if self.order_kind == "sequential":
            return np.arange(first, first + n) % n_rows
        blocks = range(first // ORDER_BLOCK, (first + n - 1) // ORDER_BLOCK + 1)
        begin = first - blocks.start * ORDER_BLOCK
        seed = self.seed + source * SOURCE_SEED
        return np.concatenate([_order_block(n_rows, seed, i) for i in blocks])[begin : begin + n]

    def _row(self, source: int, place: int) -> Row:
        packing = self.packings[source]
        if self.order_kind == "random" and isinstance(packing, Chunks):
            key = _splitmix(np.array([(self.seed + source * SOURCE_SEED) % (1 << 64)], np.uint64)) ^ np.uint64(place)
            starts = self.splits[source].n_tokens - packing.block_size
            return packing.at(int(_splitmix(key)[0] % np.uint64(starts)))
        return packing.row(int(self.order(place, 1, source)[0]))

    def report(self) -> str:
        """What packing costs, in one line."""
        targets, padding, truncated = (
            sum(getattr(packing, name) for packing in self.packings)
            for name in ("n_targets", "n_padding", "n_truncated")
        )
        places, text = targets + padding, targets + truncated
        return (
            f"{self.windows_per_epoch:,} rows an epoch; {padding:,} of {places:,} places are padding "
            f"({padding / places:.1%}), {truncated:,} of {text:,} tokens are truncated ({truncated / text:.1%})"
        )


@lru_cache(maxsize=16)
def _order_block(n_windows: int, seed: int, block: int) -> np.ndarray:
    places = np.arange(block * ORDER_BLOCK, (block + 1) * ORDER_BLOCK)
    epochs = (places // n_windows).astype(np.uint64)
    seeds = _splitmix(np.array([seed % (1 << 64)], np.uint64))
    return permute(places % n_windows, n_windows, seeds ^ epochs)


@lru_cache(maxsize=4)
def _mix_block(weights: tuple[float, ...], seed: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """(source, place in its own sequence) at each place of a block. Every block has the same count of each source, so
    that a source's place is found without walking through the blocks before."""
    counts = apportion(weights, ORDER_BLOCK)
    shuffle = permute(np.arange(ORDER_BLOCK), ORDER_BLOCK, np.full(ORDER_BLOCK, _mix_key(seed, block)))
    sources = np.repeat(np.arange(len(counts)), counts)[shuffle]
    places = np.empty(ORDER_BLOCK, np.int64)
    for k, count in enumerate(counts.tolist()):
        places[sources == k] = block * count + np.arange(count)
    return sources, places


def _mix_key(seed: int, block: int) -> np.uint64:
    return np.uint64(_splitmix(np.array([(seed + MIX_SEED) % (1 << 64)], np.uint64))[0] ^ np.uint64(block))


def apportion(weights: Sequence[float], n: int) -> np.ndarray:
    """Whole numbers in the proportion of the weights that sum to n, at least 1 each (largest remainders)."""
    shares = np.array(weights) / sum(weights) * n
    counts = np.maximum(shares.astype(np.int64), 1)
    for i in np.argsort(counts - shares, kind="stable")[: max(n - counts.sum(), 0)]:
        counts[i] += 1
    while counts.sum() > n:
        counts[np.argmax(counts)] -= 1
    return counts


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
