"""Looking at prepared data: lengths as a picture, documents with their borders, n-grams that two corpora share.

Overlap is counted as GPT-2's authors did (Radford 2019, section 4): n-grams of lower-cased words of letters and digits,
8 by default. Each is a 64-bit hash; only the probe's hashes are held, the corpus streams past them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np

from minilm.errors import UsageError
from minilm.text.long_text import text_key
from minilm.text.packing import document_segments
from minilm.text.shards import Split
from minilm.text.tokenizer import Tokenizer

WORD = re.compile(r"[^\W_]+")
FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that multiplying by it loses nothing
BAR_WIDTH = 40
EXAMPLES = 3


def document_lengths(split: Split) -> np.ndarray:
    """Tokens of each document, end-of-text not counted."""
    return document_segments(split)[1] - 1


def length_histogram(split: Split) -> str:
    """How many documents are how long: bins that double, a bar each, with the share of all tokens beside it."""
    lengths = document_lengths(split)
    bins = np.frexp(lengths.astype(np.float64))[1]  # n lies in [2^(bin-1), 2^bin)
    lines = [f"{'tokens':>19}{'documents':>13}  of all tokens"]
    highest = int(np.bincount(bins).max())
    for b in range(int(bins.min()), int(bins.max()) + 1):
        inside = lengths[bins == b]
        low, high = (2 ** (b - 1), 2**b - 1) if b else (0, 0)
        bar = "█" * round(BAR_WIDTH * len(inside) / highest) or ("▏" if len(inside) else "")
        share = inside.sum() / max(lengths.sum(), 1)
        lines.append(f"{low:>9,}–{high:<9,}{len(inside):13,}{share:8.1%}  {bar}")
    quarter, median, three = np.percentile(lengths, [25, 50, 75])
    lines.append(f"median {median:,.0f}, quartiles {quarter:,.0f} and {three:,.0f}, longest {lengths.max():,}")
    return "\n".join(lines)


def documents(split: Split, tokenizer: Tokenizer) -> Iterator[str]:
    """Every document's text."""
    for i in range(split.n_documents):
        yield tokenizer.decode(split.document(i))


@dataclass(frozen=True)
class Overlap:
    """What of the probe's n-grams stands in the corpus."""

    n: int
    ngrams: int  # of the probe, each place counted
    found: int  # of those, in the corpus too
    documents: int  # of the probe that have an n-gram
    touched: int  # of those, with at least one that was found
    mostly: int  # of those, with at least half of theirs found
    examples: tuple[str, ...]

    def __str__(self) -> str:
        lines = [
            f"{self.found / max(self.ngrams, 1):.2%} of {self.ngrams:,} {self.n}-grams are in the corpus; "
            f"{self.touched:,} of {self.documents:,} documents have one, {self.mostly:,} at least half of theirs"
        ]
        return "\n".join(lines + [f"  {example}" for example in self.examples])


class Hasher:
    """Words to 64-bit hashes, n-grams of them by Horner's rule modulo 2^64."""

    def __init__(self, n: int) -> None:
        if n < 1:
            raise UsageError(f"n-grams need n of at least 1, not {n}")
        self.n, self._word = n, cache(lambda word: text_key([word.encode("utf-8", "replace")]))

    def ngrams(self, text: str) -> np.ndarray:
        """(places,) uint64."""
        words = WORD.findall(text.lower())
        hashes = np.fromiter(map(self._word, words), np.uint64, len(words))
        places = max(len(words) - self.n + 1, 0)
        total = np.zeros(places, np.uint64)
        with np.errstate(over="ignore"):
            for j in range(self.n):
                total = total * FACTOR + hashes[j : j + places]
        return total


def overlap(corpus: Iterable[str], probe: Iterable[str], n: int = 8) -> Overlap:
    """The share of the probe's n-grams that the corpus has too. Memory: 8 bytes for each of the probe's."""
    hasher = Hasher(n)
    texts = list(probe)
    grams = [hasher.ngrams(text) for text in texts]
    wanted = np.unique(np.concatenate([*grams, np.empty(0, np.uint64)]))
    seen = np.zeros(len(wanted), bool)
    for text in corpus:
        there = hasher.ngrams(text)
        place = np.minimum(np.searchsorted(wanted, there), max(len(wanted) - 1, 0))
        if len(wanted):
            seen[place[wanted[place] == there]] = True
    hits = [seen[np.searchsorted(wanted, one)] for one in grams]
    counted = [one for one in hits if len(one)]
    return Overlap(
        n=n,
        ngrams=sum(map(len, counted)),
        found=int(sum(one.sum() for one in counted)),
        documents=len(counted),
        touched=sum(bool(one.any()) for one in counted),
        mostly=sum(2 * one.sum() >= len(one) for one in counted),
        examples=tuple(_examples(texts, hits, n)),
    )


def _examples(texts: list[str], hits: list[np.ndarray], n: int) -> Iterator[str]:
    """The first n-gram that was found of each of the first few documents that have one."""
    left = EXAMPLES
    for text, found in zip(texts, hits, strict=True):
        if left and found.any():
            words = [match.group() for match in WORD.finditer(text)]
            first = int(np.argmax(found))
            yield repr(" ".join(words[first : first + n]))
            left -= 1
