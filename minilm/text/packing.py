"""How a stream of tokens becomes rows of T inputs and T targets, one class each in PACKINGS. Each token is a target
once an epoch in all of them, or is counted as truncated; padding is counted and never a target.

- chunks: contiguous windows, whatever documents they cut. Nothing is padded.
- documents: one document a row; what is longer than T is truncated.
- lines: one line of a document a row, behind the token before it.
- best_fit: documents, cut only where longer than T, packed into as few rows as best-fit decreasing finds (Ding 2024,
  arXiv:2404.10830).
- sliding: windows that begin `stride` apart; of each but the first only the new targets count.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from minilm.errors import UsageError
from minilm.text.shard_format import BUFFER_TOKENS
from minilm.text.shards import Split

IGNORE = -100  # a target that is not scored


class Row(NamedTuple):
    """ids and targets (T,); documents (T,): which segment each place belongs to, None where end-of-text tells it."""

    ids: np.ndarray
    targets: np.ndarray
    documents: np.ndarray | None = None


class Packing(Protocol):
    """The rows of an epoch."""

    n_rows: int
    n_targets: int
    """Scored, in an epoch."""
    n_padding: int
    """Places of rows that hold nothing, in an epoch."""
    n_truncated: int
    """Targets of the text that no row has."""

    def row(self, i: int) -> Row: ...


@dataclass(frozen=True)
class PackingOptions:
    """stride: of sliding, 0 is the context. line_ends: ids of tokens that end a line, for lines."""

    stride: int = 0
    line_ends: Collection[int] = ()


class Chunks:
    """Contiguous windows of the stream, whatever documents they cut."""

    n_padding = 0

    def __init__(self, split: Split, block_size: int, options: PackingOptions) -> None:
        self.split, self.block_size = split, block_size
        self.n_rows = (split.n_tokens - 1) // block_size
        check_length(split, block_size)
        self.n_targets = self.n_rows * block_size
        self.n_truncated = split.n_tokens - 1 - self.n_targets

    def row(self, i: int) -> Row:
        return self.at(i * self.block_size)

    def at(self, start: int) -> Row:
        """The row that begins at any token."""
        window = self.split.read(start, self.block_size + 1)
        return Row(window[:-1], window[1:])


class Sliding:
    """Windows `stride` apart. With a stride below T every target but the first window's is predicted from at least
    T - stride tokens before it; a stride above T leaves tokens out."""

    n_padding = 0

    def __init__(self, split: Split, block_size: int, options: PackingOptions) -> None:
        self.split, self.block_size = split, block_size
        self.stride = options.stride or block_size
        check_length(split, block_size)
        self.n_rows = 1 + (split.n_tokens - 1 - block_size) // self.stride
        self.n_targets = block_size + (self.n_rows - 1) * min(self.stride, block_size)
        self.n_truncated = split.n_tokens - 1 - self.n_targets

    def row(self, i: int) -> Row:
        window = self.split.read(i * self.stride, self.block_size + 1)
        targets = window[1:].copy()
        if i:
            targets[: max(self.block_size - self.stride, 0)] = IGNORE
        return Row(window[:-1], targets)


class Segmented:
    """Rows made of segments of the stream: places (starts, lengths) with as many inputs as targets, and of each row
    the first segment (`offsets`)."""

    def __init__(
        self, split: Split, block_size: int, starts: np.ndarray, lengths: np.ndarray, text_targets: int
    ) -> None:
        self.split, self.block_size, self.starts, self.lengths = split, block_size, starts, lengths
        self.offsets = np.arange(len(starts) + 1)
        self.n_targets = int(lengths.sum())
        self.n_truncated = text_targets - self.n_targets
        self._count()

    def _count(self) -> None:
        self.n_rows = len(self.offsets) - 1
        self.n_padding = self.n_rows * self.block_size - self.n_targets
        if not self.n_rows:
            raise UsageError("the text has no document to pack: add text")

    def row(self, i: int) -> Row:
        ids = np.full(self.block_size, self.split.shards[0].eot, np.int64)
        targets = np.full(self.block_size, IGNORE, np.int64)
        documents = np.empty(self.block_size, np.int32)
        at = 0
        first, last = self.offsets[i], self.offsets[i + 1]
        for k in range(first, last):
            n = int(self.lengths[k])
            tokens = self.split.read(int(self.starts[k]), n + 1)
            ids[at : at + n], targets[at : at + n] = tokens[:-1], tokens[1:]
            documents[at : at + n] = k - first
            at += n
        documents[at:] = last - first
        return Row(ids, targets, documents)


class Documents(Segmented):
    """One document a row, end-of-text before it and as its last target."""

    def __init__(self, split: Split, block_size: int, options: PackingOptions) -> None:
        starts, lengths = document_segments(split)
        super().__init__(split, block_size, starts, np.minimum(lengths, block_size), int(lengths.sum()))


class Lines(Segmented):
    """One line a row. Its context begins with the token before it: end-of-text or the line above's end."""

    def __init__(self, split: Split, block_size: int, options: PackingOptions) -> None:
        if not options.line_ends:
            raise UsageError("the tokenizer has no token that ends a line: choose another --packing")
        pieces = line_segments(split, np.array(sorted(options.line_ends)))
        starts, lengths = (np.concatenate(column) for column in zip(*pieces, strict=True))
        super().__init__(split, block_size, starts, np.minimum(lengths, block_size), int(lengths.sum()))


class BestFit(Segmented):
    """Documents packed without truncation: those longer than T are cut into pieces of T and a rest."""

    def __init__(self, split: Split, block_size: int, options: PackingOptions) -> None:
        starts, lengths = document_segments(split)
        n_pieces = -(-lengths // block_size)
        within = np.arange(int(n_pieces.sum())) - np.repeat(np.cumsum(n_pieces) - n_pieces, n_pieces)
        starts = np.repeat(starts, n_pieces) + within * block_size
        sizes = np.minimum(np.repeat(lengths, n_pieces) - within * block_size, block_size)
        rows = best_fit_decreasing(sizes, block_size)
        order = np.argsort(rows, kind="stable")
        super().__init__(split, block_size, starts[order], sizes[order], int(lengths.sum()))
        self.offsets = np.concatenate(([0], np.cumsum(np.bincount(rows))))
        self._count()


PACKINGS: dict[str, Callable[[Split, int, PackingOptions], Packing]] = {
    "chunks": Chunks,
    "documents": Documents,
    "lines": Lines,
    "best_fit": BestFit,
    "sliding": Sliding,
}


def check_length(split: Split, block_size: int) -> None:
    if split.n_tokens - 1 < block_size:
        raise UsageError(
            f"the text has {split.n_tokens} tokens and a context needs {block_size + 1}: "
            f"add text or set --block_size {max(split.n_tokens - 1, 1)} or less"
        )


def document_segments(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """(starts, lengths) of every document: it begins at its end-of-text, and its last target is the next one."""
    starts, lengths = [], []
    base = 0
    for shard in split.shards:
        here = np.asarray(shard.starts, np.int64)
        starts.append(base + here)
        lengths.append(np.diff(here, append=shard.n_tokens - 1))
        base += shard.n_tokens
    return np.concatenate(starts), np.concatenate(lengths)


def line_segments(split: Split, line_ends: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(starts, lengths) of every line, shard by shard. A document's last line has its end-of-text."""
    base = 0
    for shard in split.shards:
        documents = np.asarray(shard.starts, np.int64)
        ends = [
            at + np.flatnonzero(np.isin(shard.read(at, min(BUFFER_TOKENS, shard.n_tokens - at)), line_ends))
            for at in range(0, shard.n_tokens, BUFFER_TOKENS)
        ]
        closings = np.append(documents[1:], shard.n_tokens - 1)
        breaks = np.setdiff1d(np.concatenate(ends), closings - 1)  # an end-of-text alone is no line
        breaks = breaks[breaks >= (documents[0] if len(documents) else 0)]
        here = np.union1d(documents, breaks)
        yield base + here, np.diff(here, append=shard.n_tokens - 1)
        base += shard.n_tokens


def best_fit_decreasing(sizes: np.ndarray, capacity: int) -> np.ndarray:
    """Row of each item: the longest first, each into the fullest row that still holds it (Johnson 1974). O(n)."""
    rows = np.empty(len(sizes), np.int64)
    with_room: list[list[int]] = [[] for _ in range(capacity + 1)]  # rows by the room they have left
    rooms = 0  # bit r is set where with_room[r] is not empty
    n_rows = 0
    for i in np.argsort(-sizes, kind="stable"):
        size = int(sizes[i])
        fitting = rooms >> size
        if fitting:
            room = size + (fitting & -fitting).bit_length() - 1
            row = with_room[room].pop()
            if not with_room[room]:
                rooms &= ~(1 << room)
        else:
            room, row, n_rows = capacity, n_rows, n_rows + 1
        rows[i] = row
        if left := room - size:
            with_room[left].append(row)
            rooms |= 1 << left
    return rows


def line_end_ids(decode: Callable[[list[int]], str], vocab_size: int) -> list[int]:
    """Ids of the tokens whose text ends a line."""
    return [i for i in range(vocab_size) if decode([i]).endswith("\n")]
