"""Documents to token ids, in batches of bounded size, and the tokenizer that a user named.

A long document is cut into pieces only here, only in front of a blank that follows a non-blank, and only for a kind of
tokenizer that is ours: none of them joins characters across such a place, so the ids are those of the whole text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from minilm.config import nearest
from minilm.errors import UsageError
from minilm.text.sources import file_sha256

if TYPE_CHECKING:
    from minilm.text.tokenizer import Tokenizer

BATCH_CHARS = 1 << 22  # encoded at once: enough to keep every core busy
BATCH_DOCUMENTS = 1 << 15
PIECE_CHARS = 1 << 17
BORDER = re.compile(r"(?<=\S)\s")

FIXED, TRAINED = ("gpt2", "bytes"), ("chars", "words", "bpe")
OURS = (*FIXED, *TRAINED)
BPE_CHARS = 200_000_000  # of text to train it on; more changes almost no merge
SAMPLE_CHARS = 5_000_000  # of generated text: its few hundred words are all among the first thousand stories

T = TypeVar("T")


class Encoded(NamedTuple):
    split: str
    n_bytes: int  # of UTF-8
    n_words: int  # between blanks
    ids: np.ndarray


def pieces(text: str) -> list[str]:
    """The text cut in parts of PIECE_CHARS characters and a little more."""
    parts, start = [], 0
    while (border := BORDER.search(text, start + PIECE_CHARS)) is not None:
        parts.append(text[start : border.start()])
        start = border.start()
    parts.append(text[start:])
    return parts


def encode_documents(documents: Iterable[tuple[str, str]], tokenizer: Tokenizer) -> Iterator[Encoded]:
    """Each (split, text) encoded, in order."""
    for batch in _batches(documents, lambda document: len(document[1])):
        cut = [pieces(text) if tokenizer.name in OURS else [text] for _, text in batch]
        encoded = (
            np.asarray(ids, np.uint32)
            for group in _batches(chain.from_iterable(cut), len)
            for ids in tokenizer.encode_batch(group)
        )
        for (split, text), parts in zip(batch, cut, strict=True):
            ids = [next(encoded) for _ in parts]
            n_bytes = len(text) if text.isascii() else sum(len(part.encode()) for part in parts)
            n_words = sum(len(part.split()) for part in parts)
            yield Encoded(split, n_bytes, n_words, ids[0] if len(ids) == 1 else np.concatenate(ids))


def tokenizer_key(named: str) -> str:
    """What tells the tokenizer `named` from others before it exists: its name, or its file's hash. Raises UsageError
    where there is none of that name."""
    kind, _, size = named.partition(":")
    if kind in TRAINED and (size.isdecimal() or not size):
        if (kind == "bpe") != bool(size):
            raise UsageError("bpe needs a vocabulary size, chars and words find their own: bpe:4096, chars or words")
        return named
    if named in FIXED:
        return named
    path = Path(named).expanduser()
    path = path / "tokenizer.json" if path.is_dir() else path
    if not path.is_file():
        known = [*FIXED, "chars", "words", "bpe:4096"]
        raise UsageError(
            f"there is no tokenizer {named!r}{nearest(named, known)}: "
            f"name {', '.join(known)} (any size), or the path of a tokenizer.json"
        )
    return f"sha256:{file_sha256(path)}"


def make_tokenizer(named: str, documents: Callable[[], Iterable[tuple[str, str]]], sample: bool = False) -> Tokenizer:
    """The tokenizer itself, trained on (split, text) documents where its kind is: chars and words on all of them (or on
    a sample), so that validation has none that is unknown; merges on the training split alone."""
    from minilm.text.tokenizer import get_tokenizer, train_tokenizer

    kind, _, size = named.partition(":")
    if kind not in TRAINED:
        return get_tokenizer(named)
    learned_from = ("train",) if kind == "bpe" else ("train", "val", "test")
    texts: Iterator[str] = (part for split, text in documents() if split in learned_from for part in pieces(text))
    if sample or kind == "bpe":
        texts = _first(texts, SAMPLE_CHARS if sample else BPE_CHARS)
    return train_tokenizer(kind, texts, int(size or 0))


def _first(texts: Iterator[str], n_chars: int) -> Iterator[str]:
    for text in texts:
        yield text
        if (n_chars := n_chars - len(text)) <= 0:
            return


def _batches(items: Iterable[T], size: Callable[[T], int]) -> Iterator[list[T]]:
    batch: list[T] = []
    chars = 0
    for item in items:
        batch.append(item)
        chars += size(item)
        if chars >= BATCH_CHARS or len(batch) >= BATCH_DOCUMENTS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch
