"""Writes token shards; the format and the readers stand in `shards.py`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np

from minilm.errors import UsageError
from minilm.text import shard_format as form
from minilm.text.shard_format import Header, ShardMeta, SplitMeta, Vocabulary
from minilm.text.sources import file_sha256

SHARD_TOKENS = 100_000_000


class ShardWriter:
    """Writes the shards of one split into a folder. Documents are added in order; `close` returns the counts.

    A document that does not fit a shard begins the next one; one longer than a shard is cut at its end.
    """

    def __init__(
        self, folder: str | Path, split: str, *, tokenizer: Vocabulary, shard_tokens: int = SHARD_TOKENS
    ) -> None:
        if not 2 < shard_tokens <= form.MAX_TOKENS:
            raise UsageError(f"shard_tokens must lie between 3 and {form.MAX_TOKENS}, not {shard_tokens}")
        self.folder, self.split, self.shard_tokens = Path(folder), split, shard_tokens
        self.vocab_size, self.eot = tokenizer.vocab_size, tokenizer.eot
        self.kind = list(form.KINDS)[self.vocab_size > form.UINT16_VOCAB_SIZE]
        self._shards: list[ShardMeta] = []
        self._file: IO[bytes] | None = None
        self._buffer: list[np.ndarray] = []
        self._n_buffered = self._n_tokens = 0  # of the open shard
        self._starts: list[np.ndarray] = []
        self._n_documents = 0

    def add(self, ids: Sequence[int] | np.ndarray) -> None:
        """Adds one document."""
        self.add_many([ids])

    def add_many(self, documents: Sequence[Sequence[int] | np.ndarray]) -> None:
        """Adds documents in order; faster than one by one. Raises UsageError on an id outside the vocabulary."""
        lengths = np.fromiter(map(len, documents), np.int64, len(documents))
        self.add_flat(_flat(documents, int(lengths.sum())), lengths)

    def add_flat(self, flat: np.ndarray, lengths: np.ndarray) -> None:
        """Adds documents whose ids stand in one array, each of so many."""
        self._check(flat)
        begin = 0
        while begin < len(lengths):
            room = self.shard_tokens - 1 - self._n_tokens  # the closing end-of-text has its place
            fits = int(np.searchsorted(np.cumsum(lengths[begin:] + 1), room, side="right"))
            if fits:
                n = int(lengths[begin : begin + fits].sum())
                self._append(flat[:n], lengths[begin : begin + fits])
                flat, begin = flat[n:], begin + fits
            elif self._n_tokens:
                self._close_shard()
            else:
                n = int(lengths[begin])
                self._begin_document()
                self._extend(flat[:n])
                flat, begin = flat[n:], begin + 1

    def add_pieces(self, pieces: Iterable[Sequence[int] | np.ndarray]) -> None:
        """Adds one document whose ids come in pieces: memory holds one piece at a time."""
        self._begin_document()
        for piece in pieces:
            ids = _flat([piece], len(piece))
            self._check(ids)
            self._extend(ids)

    def state(self) -> dict[str, Any]:
        """Puts all that was added on the disk; what `restore` needs to go on from there."""
        if self._n_tokens:
            file = self._flush()
            file.flush()
            os.fsync(file.fileno())
            index = self._path(".idx.partial")
            index.write_bytes(np.concatenate(self._starts).tobytes())
        return {"shards": [vars(shard) for shard in self._shards], "open": [self._n_tokens, self._n_documents]}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from a `state`: what was written after it is cut off. Raises OSError where files are missing."""
        self._shards = [ShardMeta(**shard) for shard in state["shards"]]
        self._n_tokens, self._n_documents = state["open"]
        if self._n_tokens:
            for suffix in ("", ".idx"):  # closed since
                if not self._path(f"{suffix}.partial").exists():
                    self._path(suffix).replace(self._path(f"{suffix}.partial"))
            self._file = self._path(".partial").open("r+b")
            self._file.truncate(form.HEADER_BYTES + self._n_tokens * form.KINDS[self.kind].itemsize)
            self._file.seek(0, os.SEEK_END)
            starts = np.frombuffer(self._path(".idx.partial").read_bytes(), form.INDEX_TYPE)
            self._starts = [starts[: self._n_documents]]

    def close(self, *, n_bytes: int, n_words: int) -> SplitMeta:
        """Ends the last shard. n_bytes and n_words: of the source text."""
        self._close_shard()
        tokens = sum(s.tokens for s in self._shards)
        documents = sum(s.documents for s in self._shards)
        return SplitMeta(tokens, documents, n_bytes, n_words, tuple(self._shards))

    def _check(self, ids: np.ndarray) -> None:
        if len(ids) and not (ids.min() >= 0 and ids.max() < self.vocab_size):
            bad = int(ids.max()) if ids.max() >= self.vocab_size else int(ids.min())
            raise UsageError(f"token id {bad} lies outside the tokenizer's {self.vocab_size} tokens")

    def _begin_document(self) -> None:
        if self._n_tokens + 2 > self.shard_tokens - 1:
            self._close_shard()
        self._append(np.empty(0, np.int64), np.zeros(1, np.int64))

    def _extend(self, ids: np.ndarray) -> None:
        """Goes on with the newest document, in further shards where this one is full."""
        while len(ids):
            room = self.shard_tokens - 1 - self._n_tokens
            if room <= 0:
                self._close_shard()
                self._begin_document()
                continue
            self._push(ids[:room])
            ids = ids[room:]

    def _append(self, flat: np.ndarray, lengths: np.ndarray) -> None:
        """Whole documents, end-of-text before each."""
        ends = np.cumsum(lengths)
        starts = np.concatenate(([0], ends[:-1])) if len(ends) else ends
        self._starts.append((self._n_tokens + starts + np.arange(len(lengths))).astype(form.INDEX_TYPE))
        self._n_documents += len(lengths)
        self._push(np.insert(flat, starts, self.eot))

    def _push(self, ids: np.ndarray) -> None:
        self._buffer.append(ids.astype(form.KINDS[self.kind]))
        self._n_buffered += len(ids)
        self._n_tokens += len(ids)
        if self._n_buffered >= form.BUFFER_TOKENS:
            self._flush()

    def _flush(self) -> IO[bytes]:
        if self._file is None:
            self._file = self._path(".partial").open("wb")
            self._file.write(bytes(form.HEADER_BYTES))
        self._file.write(np.concatenate(self._buffer).tobytes() if self._buffer else b"")
        self._buffer, self._n_buffered = [], 0
        return self._file

    def _close_shard(self) -> None:
        if not self._n_tokens:
            return
        self._push(np.array([self.eot]))
        file = self._flush()
        file.seek(0)
        file.write(Header(self.kind, self._n_tokens, self._n_documents, self.vocab_size, self.eot).to_bytes())
        _close_synced(file)
        index = self._path(".idx.partial").open("wb")
        index.write(np.concatenate(self._starts).tobytes())
        _close_synced(index)
        final = self._path("")
        self._path(".idx.partial").replace(self._path(".idx"))
        self._path(".partial").replace(final)
        self._shards.append(ShardMeta(final.name, self._n_tokens, self._n_documents, file_sha256(final)))
        self._file, self._n_tokens, self._n_documents, self._starts = None, 0, 0, []

    def _path(self, suffix: str) -> Path:
        return self.folder / f"{self.split}_{len(self._shards):06d}.bin{suffix}"


def _flat(documents: Sequence[Sequence[int] | np.ndarray], n_tokens: int) -> np.ndarray:
    if documents and all(isinstance(d, np.ndarray) for d in documents):
        return np.concatenate([np.asarray(d, np.int64) for d in documents])
    return np.fromiter(chain.from_iterable(documents), np.int64, n_tokens)


def _close_synced(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
    file.close()
