"""Completion-only loss: which targets belong to a prompt, and what they weigh.

In a document, the prompt goes up to the first place where the separator's tokens stand, these included. Of a document
that the context cuts, what is there decides: cut at its end before a separator, it is all prompt; cut at its beginning,
all that stands before a separator is, and nothing where none is in sight.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Protocol

import numpy as np

from minilm.errors import UsageError
from minilm.text.batches import Batch
from minilm.text.tokenizer import Tokenizer


class Feed(Protocol):
    """Where batches come from: `Batches`, or several in turn."""

    eot: int

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch: ...


class PromptWeights:
    """`Batches` whose targets inside a prompt weigh less; has its `batch`.

    Raises UsageError where no document of the first batch holds the separator.
    """

    def __init__(self, batches: Feed, tokenizer: Tokenizer, prompt_end: str, weight: float) -> None:
        self.batches, self.weight = batches, np.float32(weight)
        self.separator = np.array([int(i) for i in tokenizer.encode(prompt_end)], dtype=np.int64)
        if not ends(batches.batch(0).ids, self.separator).any():
            raise UsageError(
                f"no document of the first batch holds {prompt_end!r} as the tokens {self.separator.tolist()}: take a "
                "--prompt_end that begins and ends where tokens do, such as a line break or a special token"
            )

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """As `Batches.batch`, with weights."""
        batch = self.batches.batch(step, rank, world)
        inside = in_prompt(batch.ids, batch.targets, self.separator, self.batches.eot)
        return replace(batch, weights=np.where(inside, self.weight, np.float32(1.0)))


def ends(ids: np.ndarray, separator: np.ndarray) -> np.ndarray:
    """ids (B, T) -> (B, T), bool: where the separator's last token stands."""
    n = len(separator)
    found = np.zeros(ids.shape, dtype=bool)
    if 0 < n <= ids.shape[1]:
        windows = np.lib.stride_tricks.sliding_window_view(ids, n, axis=1)
        found[:, n - 1 :] = (windows == separator).all(-1)
    return found


def in_prompt(ids: np.ndarray, targets: np.ndarray, separator: np.ndarray, eot: int) -> np.ndarray:
    """Which targets belong to a prompt: ids, targets (B, T) -> (B, T), bool. End-of-text belongs to none."""
    tokens = np.concatenate((ids, targets[:, -1:]), axis=1)
    inside = np.zeros(tokens.shape, dtype=bool)
    for row, end, mark in zip(tokens, ends(tokens, separator), inside, strict=True):
        starts = np.flatnonzero(row == eot)
        for first, after in pairwise(sorted({0, *starts.tolist(), len(row)})):
            found = np.flatnonzero(end[first:after])
            begins = row[first] == eot
            if len(found):
                mark[first : first + found[0] + 1] = True
            elif begins and after == len(row):
                mark[first:] = True
            mark[first] &= not begins
    return inside[:, 1:]
