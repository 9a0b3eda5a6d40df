"""Token shards: llm.c's file format with what it lacks. Byte by byte: docs/shards.md.

- A shard is 256 little-endian int32 (magic, version, token count, then ours: documents, vocabulary, end-of-text), then
  uint16 tokens; above 65,536 tokens of vocabulary llm.c's uint32 variant. `<shard>.idx` has every document's start.
- End-of-text precedes every document and closes the shard, so that each document's end is a target.
- meta.json is written last: a folder that has one is whole.
- Reading is by `pread`: no page of the file stays mapped, so memory is flat whatever the corpus's size.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain
from pathlib import Path
from typing import IO, Protocol

import numpy as np

from minilm.errors import UsageError
from minilm.text.shard_format import (
    HEADER_BYTES,
    INDEX_TYPE,
    KINDS,
    MAX_TOKENS,
    UINT16_VOCAB_SIZE,
    Header,
    Meta,
    ShardMeta,
    SplitMeta,
    file_sha256,
    read_meta,
)
from minilm.text.tokenizer import Tokenizer, check_same, get_tokenizer

SHARD_TOKENS = 100_000_000
BUFFER_TOKENS = 1 << 20


class Vocabulary(Protocol):
    """What of a tokenizer a shard records."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def eot(self) -> int: ...


class ShardWriter:
    """Writes the shards of one split into a folder. Documents are added in order; `close` returns the counts.

    A document that does not fit a shard begins the next one; one longer than a shard is cut at its end.
    """

    def __init__(
        self, folder: str | Path, split: str, *, tokenizer: Vocabulary, shard_tokens: int = SHARD_TOKENS
    ) -> None:
        if not 2 < shard_tokens <= MAX_TOKENS:
            raise UsageError(f"shard_tokens must lie between 3 and {MAX_TOKENS}, not {shard_tokens}")
        self.folder, self.split, self.shard_tokens = Path(folder), split, shard_tokens
        self.vocab_size, self.eot = tokenizer.vocab_size, tokenizer.eot
        self.kind = list(KINDS)[self.vocab_size > UINT16_VOCAB_SIZE]
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
        self._starts.append((self._n_tokens + starts + np.arange(len(lengths))).astype(INDEX_TYPE))
        self._n_documents += len(lengths)
        self._push(np.insert(flat, starts, self.eot))

    def _push(self, ids: np.ndarray) -> None:
        self._buffer.append(ids.astype(KINDS[self.kind]))
        self._n_buffered += len(ids)
        self._n_tokens += len(ids)
        if self._n_buffered >= BUFFER_TOKENS:
            self._flush()

    def _flush(self) -> IO[bytes]:
        if self._file is None:
            self._file = self._path(".partial").open("wb")
            self._file.write(bytes(HEADER_BYTES))
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


class Shard:
    """One token file, read at any place. Raises UsageError where it is missing, truncated or foreign."""

    _offset = HEADER_BYTES

    def __init__(self, path: Path, rebuild: str = "") -> None:
        again = f"rebuild it with `{rebuild}`" if rebuild else "download or build it again"
        try:
            header = Header.read(path)
            n_bytes = path.stat().st_size
        except OSError as error:
            raise UsageError(f"{path} cannot be read ({error.strerror}): {again}") from None
        if header is None:
            raise UsageError(f"{path} is no token shard (its header is foreign): {again}")
        self._open(path, header.dtype)
        self.n_tokens, self.n_documents = header.n_tokens, header.n_documents
        self.vocab_size, self.eot = header.vocab_size, header.eot
        if n_bytes != HEADER_BYTES + self.n_tokens * self.dtype.itemsize:
            what = "is truncated" if n_bytes < HEADER_BYTES + self.n_tokens * self.dtype.itemsize else "is too long"
            raise UsageError(f"{path} {what}: its header promises {self.n_tokens} tokens; {again}")

    def _open(self, path: Path, dtype: np.dtype) -> None:
        self.path, self.dtype = path, dtype
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def read(self, start: int, n: int) -> np.ndarray:
        """Tokens start to start + n, in the file's type."""
        size = self.dtype.itemsize
        return np.frombuffer(_pread(self._descriptor, n * size, self._offset + start * size), self.dtype)

    @cached_property
    def starts(self) -> np.ndarray:
        """Where each document's end-of-text stands: from the .idx, else by reading the tokens once."""
        index = self.path.with_name(self.path.name + ".idx")
        if index.is_file():
            starts = np.fromfile(index, INDEX_TYPE)
            if len(starts) != self.n_documents or (len(starts) and int(starts[-1]) >= self.n_tokens):
                raise UsageError(f"{index} does not belong to {self.path.name}: prepare the data again")
            return starts
        places = [
            i + np.flatnonzero(self.read(i, BUFFER_TOKENS) == self.eot) for i in range(0, self.n_tokens, BUFFER_TOKENS)
        ]
        starts = np.concatenate(places) if places else np.empty(0, np.int64)
        return starts[:-1] if len(starts) and starts[-1] == self.n_tokens - 1 else starts


class RawShard(Shard):
    """nanoGPT's headerless uint16 file."""

    _offset = 0

    def __init__(self, path: Path, vocab_size: int, eot: int) -> None:
        n_bytes = path.stat().st_size
        if n_bytes % 2:
            raise UsageError(f"{path} has an odd number of bytes and is no file of uint16 tokens: name another file")
        self.n_tokens, self.n_documents, self.vocab_size, self.eot = n_bytes // 2, 0, vocab_size, eot
        self._open(path, np.dtype("<u2"))


class Split:
    """Shards read as one stream of tokens."""

    def __init__(self, shards: Sequence[Shard], vocab_size: int) -> None:
        self.shards, self.vocab_size = list(shards), vocab_size
        self._ends = list(accumulate(s.n_tokens for s in shards))
        self.n_tokens = self._ends[-1] if self._ends else 0

    def read(self, start: int, n: int) -> np.ndarray:
        """Tokens start to start + n as int64, across shards; fewer at the stream's end."""
        out = np.empty(max(0, min(n, self.n_tokens - start)), np.int64)
        done = 0
        while done < len(out):
            i = bisect_right(self._ends, start + done)
            shard = self.shards[i]
            local = start + done - (self._ends[i] - shard.n_tokens)
            piece = shard.read(local, min(len(out) - done, shard.n_tokens - local))
            out[done : done + len(piece)] = piece
            done += len(piece)
        return out

    @cached_property
    def _documents(self) -> np.ndarray:
        return np.cumsum([len(s.starts) for s in self.shards])

    @property
    def n_documents(self) -> int:
        return int(self._documents[-1]) if self.shards else 0

    def document(self, i: int) -> np.ndarray:
        """Tokens of document i, without end-of-text."""
        if not 0 <= i < self.n_documents:
            raise IndexError(f"document {i} of {self.n_documents}")
        k = int(np.searchsorted(self._documents, i, side="right"))
        shard = self.shards[k]
        j = i - (int(self._documents[k]) - len(shard.starts))
        begin = int(shard.starts[j]) + 1
        end = int(shard.starts[j + 1]) if j + 1 < len(shard.starts) else shard.n_tokens
        ids = shard.read(begin, end - begin).astype(np.int64)
        # Our shards close with end-of-text; foreign ones may end inside a document.
        return ids[:-1] if j + 1 == len(shard.starts) and len(ids) and ids[-1] == shard.eot else ids


@dataclass(frozen=True)
class ShardFolder:
    """A prepared folder."""

    folder: Path
    meta: Meta
    splits: dict[str, Split]

    @property
    def rebuild_command(self) -> str:
        return self.meta.command

    def tokenizer(self) -> Tokenizer:
        """The tokenizer beside the shards. Raises UsageError where it is not the one that made them."""
        tokenizer = get_tokenizer(self.folder)
        check_same(
            tokenizer,
            (self.meta.tokenizer, self.meta.fingerprint),
            a_is=f"{self.folder}/tokenizer.json",
            b_is="the shards beside it",
        )
        return tokenizer

    def check(self) -> None:
        """Reads every shard and compares its SHA-256 with meta.json's. Raises UsageError on a difference."""
        for split in self.meta.splits.values():
            for shard in split.shards:
                if file_sha256(self.folder / shard.file) != shard.sha256:
                    raise UsageError(f"{self.folder / shard.file} has changed: rebuild it with `{self.meta.command}`")


def open_shards(folder: str | Path) -> ShardFolder:
    """Opens a prepared folder. Raises UsageError where it is none, or its files are missing, truncated or foreign."""
    folder = Path(folder)
    meta = read_meta(folder)
    opened = {}
    for name, split in meta.splits.items():
        shards = [Shard(folder / shard.file, meta.command) for shard in split.shards]
        for shard, known in zip(shards, split.shards, strict=True):
            mine = (shard.n_tokens, shard.n_documents, shard.vocab_size, shard.eot)
            if mine != (known.tokens, known.documents, meta.vocab_size, meta.eot):
                raise UsageError(f"{shard.path} is not the file that meta.json tells of: rebuild with `{meta.command}`")
        opened[name] = Split(shards, meta.vocab_size)
    return ShardFolder(folder, meta, opened)


def open_tokens(path: str | Path, tokenizer: Vocabulary) -> Split:
    """Foreign shards: a .bin of llm.c, modded-nanogpt or FineWeb, a folder of them, or nanoGPT's headerless uint16.

    A file whose first integers are no known header is taken as headerless. Raises UsageError where an id lies outside
    the tokenizer's vocabulary.
    """
    path = Path(path)
    files = sorted(path.glob("*.bin")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise UsageError(f"{path} holds no .bin file of tokens: name a file or a folder of them")
    shards: list[Shard] = []
    for file in files:
        known = Header.read(file) is not None
        shard = Shard(file) if known else RawShard(file, tokenizer.vocab_size, tokenizer.eot)
        shard.vocab_size, shard.eot = tokenizer.vocab_size, tokenizer.eot
        highest = max(
            (int(shard.read(i, BUFFER_TOKENS).max()) for i in range(0, shard.n_tokens, BUFFER_TOKENS)), default=0
        )
        if highest >= tokenizer.vocab_size:
            raise UsageError(
                f"{file} has token {highest}, outside the tokenizer's {tokenizer.vocab_size}: name the one that made it"
            )
        shards.append(shard)
    return Split(shards, tokenizer.vocab_size)


def _flat(documents: Sequence[Sequence[int] | np.ndarray], n_tokens: int) -> np.ndarray:
    if documents and all(isinstance(d, np.ndarray) for d in documents):
        return np.concatenate([np.asarray(d, np.int64) for d in documents])
    return np.fromiter(chain.from_iterable(documents), np.int64, n_tokens)


def _close_synced(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
    file.close()


if hasattr(os, "pread"):
    _pread = os.pread
else:  # Windows has none

    def _pread(descriptor: int, n_bytes: int, offset: int) -> bytes:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.read(descriptor, n_bytes)
