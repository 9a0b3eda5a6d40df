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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import numpy as np

from minilm.errors import UsageError
from minilm.text.shard_format import BUFFER_TOKENS, HEADER_BYTES, INDEX_TYPE, Header, Meta, Vocabulary, read_meta
from minilm.text.sources import file_sha256
from minilm.text.tokenizer import Tokenizer, check_same, get_tokenizer


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

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # `os` may be gone as the interpreter ends
        if hasattr(self, "_descriptor"):
            close(self._descriptor)

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

    def document(self, i: int, at_most: int = 2**31) -> np.ndarray:
        """Tokens of document i, the first `at_most` of them, without end-of-text."""
        if not 0 <= i < self.n_documents:
            raise IndexError(f"document {i} of {self.n_documents}")
        k = int(np.searchsorted(self._documents, i, side="right"))
        shard = self.shards[k]
        j = i - (int(self._documents[k]) - len(shard.starts))
        begin = int(shard.starts[j]) + 1
        end = int(shard.starts[j + 1]) if j + 1 < len(shard.starts) else shard.n_tokens
        ids = shard.read(begin, min(end - begin, at_most)).astype(np.int64)
        # Our shards close with end-of-text; foreign ones may end inside a document.
        return ids[:-1] if j + 1 == len(shard.starts) and len(ids) and ids[-1] == shard.eot else ids


@dataclass(frozen=True)
class ShardFolder:
    """A prepared folder."""

    folder: Path
    meta: Meta
    splits: dict[str, Split]

    def tokenizer(self) -> Tokenizer:
        """The tokenizer beside the shards. Raises UsageError where it is not the one that made them."""
        tokenizer = get_tokenizer(self.folder)
        known = self.meta.tokenizer, self.meta.fingerprint
        check_same(tokenizer, known, a_is=f"{self.folder}/tokenizer.json", b_is="the shards beside it")
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


if hasattr(os, "pread"):
    _pread = os.pread
else:  # Windows has none

    def _pread(descriptor: int, n_bytes: int, offset: int) -> bytes:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.read(descriptor, n_bytes)
