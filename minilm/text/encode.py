"""Documents to token ids, in batches of bounded size, and the tokenizer that a user named.

A long document is cut into pieces only here, only in front of a blank that follows a non-blank, and only for a kind of
tokenizer that is ours: none of them joins characters across such a place, so the ids are those of the whole text.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, compress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from minilm.config import nearest
from minilm.errors import UsageError
from minilm.text.long_text import LongText, parts_of

if TYPE_CHECKING:
    from minilm.text.shard_writer import ShardWriter
    from minilm.text.tokenizer import Tokenizer

BATCH_CHARS = 1 << 22  # encoded at once: enough to keep the cores busy, some 40 MB of ids
BATCH_DOCUMENTS = 1 << 15
PIECE_CHARS = 1 << 17
BORDER = re.compile(r"(?<=\S)\s")

FIXED, TRAINED = ("gpt2", "bytes"), ("chars", "words", "bpe")
OURS = (*FIXED, *TRAINED)
BPE_CHARS = 200_000_000  # of text to train it on; more changes almost no merge
SAMPLE_CHARS = 5_000_000  # of generated text: its few hundred words are all among the first thousand stories

CHECK_EVERY, CHECK_CHARS = 64, 50_000  # every 64th batch's first texts are encoded by the slow engine too

T = TypeVar("T")
R = TypeVar("R")
Ragged = tuple[np.ndarray, np.ndarray]
"""Ids of several texts in a row, and how many each has."""


class Coded(str):
    """A text behind the id of its control code."""

    code: int

    def __new__(cls, text: str, code: int) -> Coded:
        made = super().__new__(cls, text)
        made.code = code
        return made

    def __getitem__(self, key: Any) -> Coded:
        return Coded(super().__getitem__(key), self.code)


@dataclass
class Counts:
    """Of one split's text: bytes of UTF-8, words between blanks, tokens outside the vocabulary."""

    bytes: int = 0
    words: int = 0
    unknown: int = 0


def pieces(text: str) -> Iterator[str]:
    """The text cut in parts of PIECE_CHARS characters and a little more."""
    if isinstance(text, LongText):
        rest = ""
        for part in text.parts():
            *whole, rest = pieces(rest + part)
            yield from whole
        yield rest
        return
    start = 0
    while (border := BORDER.search(text, start + PIECE_CHARS)) is not None:
        yield text[start : border.start()]
        start = border.start()
    yield text[start:]


BLANKS = [chr(i) for i in range(0x3001) if chr(i).isspace()]  # U+3000 is Unicode's last white space
ASCII_BLANKS = bytes.maketrans("".join(filter(str.isascii, BLANKS)).encode(), b" " * sum(map(str.isascii, BLANKS)))
WIDE_BLANKS: dict[int, np.ndarray] = {}
"""By their first byte: which two bytes behind it, as one number, make a blank."""
for _blank in (char.encode() for char in BLANKS if not char.isascii()):
    _table = WIDE_BLANKS.setdefault(_blank[0], np.zeros(1 << 16, bool))
    if len(_blank) == 2:
        _table[_blank[1] << 8 : (_blank[1] + 1) << 8] = True
    else:
        _table[_blank[1] << 8 | _blank[2]] = True


def measure(texts: Sequence[str]) -> tuple[int, int]:
    """Bytes of UTF-8 and words: the sum of len(text.split()), many times as fast where arrays stay in the cache."""
    found = [_measured(group) for group in _batches(texts, len, PIECE_CHARS)]
    return sum(n_bytes for n_bytes, _ in found), sum(n_words for _, n_words in found)


def _measured(texts: Sequence[str]) -> tuple[int, int]:
    data = b"\n".join([text.encode("utf-8", "surrogatepass") for text in texts])
    codes = np.frombuffer(data + b"  ", np.uint8)
    blank = codes <= 32
    if ((codes < 28) & ((codes < 9) | (codes > 13))).any():  # control characters, of which few are blanks
        codes = np.frombuffer(data.translate(ASCII_BLANKS) + b"  ", np.uint8)
        blank = codes == 32
    for first, is_blank in WIDE_BLANKS.items() if codes.max() >= min(WIDE_BLANKS) else ():
        if len(at := np.flatnonzero(codes == first)):
            at = at[is_blank[codes[at + 1].astype(np.uint16) << 8 | codes[at + 2]]]
            blank[at] = blank[at + 1] = True
            if first >= 0xE0:  # of three bytes
                blank[at + 2] = True
    n_words = int(np.count_nonzero(blank[:-1] > blank[1:])) + int(not blank[0])
    return len(data) - max(len(texts) - 1, 0), n_words


def encode_documents(
    documents: Iterable[tuple[str, str]],
    tokenizer: Tokenizer,
    writer_of: Callable[[str], ShardWriter],
    advance: Callable[[int], object] = lambda n_bytes: None,
    is_left_out: Callable[[str, int], bool] = lambda split, n_tokens: False,
    counts: defaultdict[str, Counts] | None = None,
    done: Callable[[int], object] = lambda n_documents: None,
) -> dict[str, Counts]:
    """Adds each (split, text) to the split's writer, in order; returns the counts. `advance` hears of progress,
    `is_left_out` says of a document's split and number of tokens whether it is dropped (a huge one never is), `done`
    hears of every batch of documents that the writers have; `counts` are those of documents before these."""
    counts = defaultdict(Counts) if counts is None else counts

    checked: Counter[str] = Counter()  # batches, by split

    def counted(split: str, texts: list[str], flat: np.ndarray, lengths: np.ndarray, whole: bool = True) -> Ragged:
        if checked[split] % CHECK_EVERY == 0:
            tokenizer.check_sample(list(up_to(CHECK_CHARS, texts, len)))
        checked[split] += 1
        n_bytes, n_words = measure(texts)
        advance(n_bytes)
        kept = np.array([not (whole and is_left_out(split, n)) for n in lengths.tolist()], bool)
        if not kept.all():
            flat, lengths = flat[np.repeat(kept, lengths)], lengths[kept]
            texts = list(compress(texts, kept))
            n_bytes, n_words = measure(texts)
        counts[split].bytes += n_bytes
        counts[split].words += n_words
        if tokenizer.unknown is not None:
            counts[split].unknown += int((flat == tokenizer.unknown).sum())
        codes = np.array([getattr(text, "code", -1) for text in texts])
        if whole and (codes >= 0).any():
            starts = np.cumsum(lengths) - lengths
            return np.insert(flat, starts[codes >= 0], codes[codes >= 0]), lengths + (codes >= 0)
        return flat, lengths

    def encoded(batch: list[tuple[str, str]]) -> dict[str, tuple[list[str], Ragged | None]]:
        """Texts and ids by split; no ids for a long document."""
        by_split: defaultdict[str, list[str]] = defaultdict(list)
        for split, text in batch:
            by_split[split].append(text)
        is_long = len(batch) == 1 and _size(batch[0][1]) > PIECE_CHARS
        return {split: (texts, None if is_long else tokenizer.encode_flat(texts)) for split, texts in by_split.items()}

    for by_split in _ahead(encoded, _batches(documents, lambda document: _size(document[1]))):
        for split, (texts, ids) in by_split.items():
            if ids is not None:
                writer_of(split).add_flat(*counted(split, texts, *ids))
                continue
            parts = pieces(texts[0]) if tokenizer.name in OURS else ["".join(parts_of(texts[0]))]
            groups = (
                counted(split, some, *tokenizer.encode_flat(some), whole=False)[0] for some in _batches(parts, len)
            )
            code = [np.array([texts[0].code])] if isinstance(texts[0], Coded) else []
            writer_of(split).add_pieces(chain(code, groups))
        done(sum(len(texts) for texts, _ in by_split.values()))
    return dict(counts)


def tokenizer_key(named: str) -> str:
    """What tells the tokenizer `named` from others before it exists: its name, or its fingerprint. Raises UsageError
    where there is none of that name."""
    from minilm.text.tokenizer import get_tokenizer

    kind, _, size = named.partition(":")
    if kind in TRAINED and (size.isdecimal() or not size):
        if (kind == "bpe") != bool(size):
            raise UsageError("a bpe needs a vocabulary size, chars and words have their own: bpe:4096, chars or words")
        return named
    if named in FIXED:
        return named
    if not Path(named).expanduser().exists():
        known = [*FIXED, "chars", "words", "bpe:4096"]
        raise UsageError(
            f"there is no tokenizer {named!r}{nearest(named, known)}: "
            f"name {', '.join(known)} (any size), or the path of a tokenizer.json"
        )
    return get_tokenizer(named).fingerprint


def make_tokenizer(
    named: str, documents: Callable[[], Iterable[tuple[str, str]]], sample: bool = False, tokens: Sequence[str] = ()
) -> Tokenizer:
    """The tokenizer itself, trained on (split, text) documents where its kind is: chars and words on all of them (or on
    a sample), so that validation has none that is unknown; merges on the training split alone. It gains the tokens."""
    from minilm.text.tokenizer import get_tokenizer, train_tokenizer

    kind, _, size = named.partition(":")
    if kind not in TRAINED:
        return get_tokenizer(named).with_tokens(tokens) if tokens else get_tokenizer(named)
    learned_from = ("train",) if kind == "bpe" else ("train", "val", "test")
    texts: Iterator[str] = (part for split, text in documents() if split in learned_from for part in pieces(text))
    if sample or kind == "bpe":
        texts = up_to(SAMPLE_CHARS if sample else BPE_CHARS, texts, len)
    trained = train_tokenizer(kind, texts, int(size or 0))
    return trained.with_tokens(tokens) if tokens else trained


def up_to(left: float, items: Iterable[T], size: Callable[[T], int]) -> Iterator[T]:
    """The first item, and others behind it until their sizes come to what was `left`."""
    for item in items:
        yield item
        if (left := left - size(item)) <= 0:
            return


def _batches(items: Iterable[T], size: Callable[[T], int], most: int = 0) -> Iterator[list[T]]:
    """Items in order, together no larger than `most`, 0: BATCH_CHARS; a larger one alone."""
    batch: list[T] = []
    chars = 0
    for item in items:
        if batch and (chars + size(item) > (most or BATCH_CHARS) or len(batch) == BATCH_DOCUMENTS):
            yield batch
            batch, chars = [], 0
        batch.append(item)
        chars += size(item)
    if batch:
        yield batch


def _size(text: str) -> int:
    """Characters; of a long text so many that it stands alone."""
    return len(text) + (BATCH_CHARS if isinstance(text, LongText) else 0)


def _ahead(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """work(item) of each, in order; the next one's is done meanwhile."""
    with ThreadPoolExecutor(1) as pool:
        before: Future[R] | None = None
        for item in items:
            after = pool.submit(work, item)
            if before is not None:
                yield before.result()
            before = after
        if before is not None:
            yield before.result()
