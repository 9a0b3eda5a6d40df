"""The word n-gram baseline: what counting words alone achieves, so that a model's figures can be judged against it.

Interpolated modified Kneser-Ney (Chen and Goodman 1998), from order - 1 begin marks to an end mark in every text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from minilm.errors import UsageError

END = "</s>"  # the end mark
UNKNOWN = "<unknown>"  # stands for every word that the training texts lack; can be drawn into a sample, if rarely

_END, _UNKNOWN = 0, 1
_BEGIN = 0  # id of the n-gram of begin marks only, and of the empty one: every text starts from zeros
_UNSEEN = -1  # id of every n-gram not counted: the last entry of `share` (0) and of `backoff` (1) is its own
_FALLBACK = (0.5, 1.0, 1.5)  # discounts where too few n-grams were counted to estimate them; KenLM's choice too


def words(text: str) -> list[str]:
    """What white space separates; each of the marks . , : ; ! ? " that close such a piece is a word of its own."""
    return re.sub(r'(?=[.,:;!?"]+(?:\s|$))', " ", text).split()


def join(words: Iterable[str]) -> str:
    """Inverse of `words` on text that has single spaces only, and none before such a mark."""
    return re.sub(r' (?=[.,:;!?"](?: |$))', "", " ".join(words))


class _Order(NamedTuple):
    """The distinct n-grams of one order. The id of an n-gram is 1 + its place in `keys`."""

    keys: np.ndarray  # sorted int64: id of the n-gram without its last word, times the vocabulary's size, + last word
    share: np.ndarray  # by id of the n-gram: its discounted count over its context's total
    backoff: np.ndarray  # by id of the context: the probability that is left to the order below

    def find(self, key: np.ndarray | int) -> np.ndarray:
        at = np.minimum(np.searchsorted(self.keys, key), len(self.keys) - 1)
        return np.where(self.keys[at] == key, at + 1, _UNSEEN)


class NGramModel:
    """Ten million words take some 20 seconds and 1 GB. Raises UsageError on an order below 1 and on no texts."""

    def __init__(self, texts: Iterable[str], order: int = 5) -> None:
        if order < 1:
            raise UsageError(f"order must be 1 or more, not {order}")
        self._number = {END: _END, UNKNOWN: _UNKNOWN}
        ids = self._encode(texts, grow=True)
        self.vocabulary = tuple(self._number)  # all that can follow a context, `END` and `UNKNOWN` included
        keys: list[np.ndarray] = []
        counts: list[np.ndarray] = []
        gram = prefix = np.full(len(ids), _BEGIN)
        for k in range(order):
            key = prefix * len(self.vocabulary) + ids
            by_key = np.argsort(key)
            key = key[by_key]
            first = np.append(True, key[1:] != key[:-1])
            if k:  # below the highest order an n-gram counts the different words that come before it
                counts[-1] = np.bincount(gram[by_key[first]])[1:]
            gram = np.empty(len(ids), np.int64)
            gram[by_key] = np.cumsum(first)
            keys.append(key[first])
            counts.append(np.bincount(gram)[1:])
            prefix = _contexts(gram, ids)
        self._orders = [self._smooth(*of_order) for of_order in zip(keys, counts, strict=True)]

    def sample(self, n: int, seed: int, max_words: int) -> list[str]:
        """n texts from exactly the model's distribution, cut at max_words words. A larger n only adds texts."""
        if min(n, max_words) < 1:
            raise UsageError(f"n and max_words must be 1 or more, not {n} and {max_words}")
        random = np.random.default_rng(seed)
        texts = []
        for _ in range(n):
            text: list[str] = []
            prefixes = [_BEGIN] * len(self._orders)
            while len(text) < max_words and (word := self._draw(prefixes, random)) != _END:
                text.append(self.vocabulary[word])
                shorter = zip(self._orders, prefixes[:-1], strict=False)
                prefixes = [_BEGIN, *[int(o.find(p * len(self.vocabulary) + word)) for o, p in shorter]]
            texts.append(join(text))
        return texts

    def logprob(self, text: str) -> tuple[float, int]:
        """Sum of the natural logarithms of the probabilities of all words and the end mark, and their number."""
        ids = self._encode([text])
        return float(np.log(self._probabilities(ids)).sum()), len(ids)

    def perplexity(self, texts: Iterable[str]) -> float:
        """Per word, end marks included. Raises UsageError on no texts."""
        return float(np.exp(-np.log(self._probabilities(self._encode(texts))).mean()))

    def probability(self, context: list[str], word: str) -> float:
        """Of `word`, or of `END`, after all the words of its text so far: an empty context is the start of a text."""
        return float(self._probabilities(np.array([self._number.get(w, _UNKNOWN) for w in [*context, word]]))[-1])

    def _encode(self, texts: Iterable[str], grow: bool = False) -> np.ndarray:
        """The texts as numbers (int64), each closed by `_END`; `grow` gives new words a number of their own."""
        number = self._number
        ids: list[int] = []
        for text in texts:
            pieces = words(text)
            if END in pieces:
                raise UsageError(f"a text holds {END} as a word, which stands for the end of a text")
            ids.extend([number.setdefault(w, len(number)) if grow else number.get(w, _UNKNOWN) for w in pieces])
            ids.append(_END)
        if not ids:
            raise UsageError("an n-gram model needs at least one text, and there is none")
        return np.array(ids, np.int64)

    def _smooth(self, keys: np.ndarray, counts: np.ndarray) -> _Order:
        discount = np.array([0.0, *_discounts(counts)])[np.minimum(counts, 3)]
        context = keys // len(self.vocabulary)
        total = np.bincount(context, counts)
        share = np.concatenate([[0.0], (counts - discount) / total[context], [0.0]])
        backoff = np.append(np.bincount(context, discount) / np.maximum(total, 1), 1.0)
        return _Order(keys, share, backoff)

    def _probabilities(self, ids: np.ndarray) -> np.ndarray:
        """Of each of ids (N int64, texts closed by `_END`) after those before it: N float64."""
        p = np.full(len(ids), 1 / len(self.vocabulary))
        prefix = np.full(len(ids), _BEGIN)
        for o in self._orders:
            gram = o.find(prefix * len(self.vocabulary) + ids)
            p = o.share[gram] + o.backoff[prefix] * p
            prefix = _contexts(gram, ids)
        return p

    def _draw(self, prefixes: list[int], random: np.random.Generator) -> int:
        """Number of a word after the contexts of 0 to order - 1 words that have these ids."""
        size = len(self.vocabulary)
        for o, prefix in zip(reversed(self._orders), reversed(prefixes), strict=True):
            low, high = np.searchsorted(o.keys, [prefix * size, (prefix + 1) * size])
            place = low + np.searchsorted(np.cumsum(o.share[low + 1 : high + 1]), random.random(), side="right")
            if place < high:
                return int(o.keys[place]) % size
        return int(random.integers(size))


def _contexts(gram: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The id of the n-gram that ends just before each place; at the start of a text it is begin marks only."""
    context = np.full(len(gram), _BEGIN)
    np.copyto(context[1:], gram[:-1], where=ids[:-1] != _END)
    return context


def _discounts(counts: np.ndarray) -> tuple[float, float, float]:
    """What counts of 1, of 2, and of 3 or more are lowered by, estimated after Chen and Goodman."""
    n1, n2, n3, n4 = (int(n) for n in np.bincount(np.minimum(counts, 5), minlength=6)[1:5])
    if not (n1 and n2 and n3):
        return _FALLBACK
    y = n1 / (n1 + 2 * n2)
    discounts = 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3
    return discounts if min(discounts) > 0 else _FALLBACK
