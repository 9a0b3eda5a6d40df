"""What of a text stands in the training tokens already: the longest copied span, and the share of new n-grams, exactly.

The training tokens are read in blocks. Each block and the texts together are sorted by suffix; the neighbours of a
text's suffix in that order share its longest prefix that the block holds. Memory follows the block's size, not the
corpus's: some 300 MB at 4 million tokens (bench/novelty.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from minilm.text.shards import Split
from minilm.text.tales.copying import suffix_array

BLOCK_TOKENS = 4_000_000
COMPARED = 8  # tokens compared at once when two suffixes are measured


def blocks(split: Split, overlap: int, block_tokens: int = BLOCK_TOKENS) -> Iterator[np.ndarray]:
    """The split's tokens in blocks, each beginning `overlap` tokens before the end of the one before, so that every
    span of overlap + 1 tokens lies whole in one of them."""
    for start in range(0, max(split.n_tokens - overlap, 1), block_tokens):
        yield split.read(start, block_tokens + overlap)


def longest_matches(texts: Sequence[Sequence[int]], corpus: Iterable[np.ndarray]) -> list[np.ndarray]:
    """For each text (T ids) and place the length of the longest span from there on that a block of the corpus holds:
    (T,) int32. Ids are 0 or more; no text holds the end-of-text that parts the corpus's documents."""
    lengths = [len(text) for text in texts]
    best = np.zeros(sum(lengths), np.int32)
    flat = [np.asarray(text, np.int64) for text in texts]
    for block in corpus:
        best = np.maximum(best, _matches(flat, np.asarray(block, np.int64)))
    return np.split(best, np.cumsum(lengths)[:-1]) if texts else []


def _matches(texts: list[np.ndarray], block: np.ndarray) -> np.ndarray:
    high = max([int(block.max(initial=0)), *(int(text.max(initial=0)) for text in texts)]) + 1
    # 0 is past the end; every text is closed by a number of its own, so that no match runs into the next.
    parts = [block + 1, np.array([high + 1])]
    for i, text in enumerate(texts):
        parts += [text + 1, np.array([high + 2 + i])]
    joint = np.concatenate(parts).astype(np.int32)
    n_block = len(block) + 1
    order = suffix_array(joint)
    of_block = order < n_block
    places = np.where(of_block, np.arange(len(order)), -1)
    before = np.maximum.accumulate(places)
    after = np.minimum.accumulate(np.where(of_block, places, len(order))[::-1])[::-1]
    mine = np.flatnonzero(~of_block)
    found = np.zeros(len(joint), np.int32)
    for neighbour in (before[mine], after[mine]):
        there = (neighbour >= 0) & (neighbour < len(order))
        a, b = order[mine[there]], order[neighbour[there]]
        found[a] = np.maximum(found[a], _shared_prefix(joint, a, b))
    kept, start = [], n_block
    for text in texts:
        kept.append(found[start : start + len(text)])
        start += len(text) + 1
    return np.concatenate([*kept, np.zeros(0, np.int32)])


def _shared_prefix(joint: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Tokens that the suffixes at a and at b (N,) begin with alike."""
    padded = np.append(joint, np.zeros(COMPARED, np.int32))
    shared = np.zeros(len(a), np.int32)
    going = np.arange(len(a))
    steps = np.arange(COMPARED)
    while len(going):
        left = padded[(a[going] + shared[going])[:, None] + steps]
        right = padded[(b[going] + shared[going])[:, None] + steps]
        differs = (left != right) | (left == 0)
        first = np.where(differs.any(1), differs.argmax(1), COMPARED)
        shared[going] += first.astype(np.int32)
        going = going[first == COMPARED]
    return shared


def copied_share(matches: np.ndarray) -> float:
    """Tokens of the longest copied span over the tokens of the text; 0 for an empty one."""
    return float(matches.max(initial=0) / len(matches)) if len(matches) else 0.0


def new_ngrams(matches: np.ndarray, n: int) -> np.ndarray:
    """Which n-grams of a text, in order, the corpus lacks (McCoy 2023): bool, empty where the text has none."""
    return matches[: max(len(matches) - n + 1, 0)] < n
