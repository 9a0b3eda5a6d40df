"""How much of a story is copied: the longest span of its words that the training text holds, exactly.

All words of the training text as numbers, and their suffix array, sorted by prefix doubling over the positions that
are still tied (Larsson and Sadakane 2007). 50 MB of tales, ten million words, build in some seconds and stay as 80 MB.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterable
from itertools import count

import numpy as np

END = 1
"""Closes every training text, so that no span crosses from one to the next. 0 is no word of the training text."""


class CopyCheck:
    """Holds the training texts; words are what white space separates, punctuation and case included."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._number: defaultdict[str, int] = defaultdict(count(END + 1).__next__)
        ids = array("i")
        for text in texts:
            ids.extend([self._number[word] for word in text.split()])
            ids.append(END)
        text_ids = np.frombuffer(ids, dtype=np.int32) if ids else np.zeros(0, np.int32)
        self._order = suffix_array(text_ids)
        # Big-endian, so that comparing bytes compares words.
        self._width = 2 if len(self._number) + END < 2**16 else 4
        self._text = text_ids.astype(f">u{self._width}").tobytes()

    def copied_share(self, story: str) -> float:
        """Words of the longest span of `story` that stands in one training text, over the words of `story`."""
        words = [self._number.get(word, 0) for word in story.split()]
        if not words:
            return 0.0
        data = np.array(words, dtype=f">u{self._width}").tobytes()
        best = 0
        for start in range(len(words)):
            if len(words) - start <= best:
                break
            best = max(best, self._longest_prefix(data[start * self._width :]))
        return best / len(words)

    def _longest_prefix(self, pattern: bytes) -> int:
        """Words of the longest prefix of `pattern` in the text: it is shared with a neighbour in suffix order."""
        order, text, width = self._order, self._text, self._width
        low, high = 0, len(order)
        while low < high:
            middle = (low + high) // 2
            at = int(order[middle]) * width
            if text[at : at + len(pattern)] < pattern:
                low = middle + 1
            else:
                high = middle
        best = 0
        for neighbour in order[max(low - 1, 0) : low + 1]:
            at = int(neighbour) * width
            near = text[at : at + len(pattern)]
            same = 0
            while near[same : same + width] == pattern[same : same + width] != b"":
                same += width
            best = max(best, same // width)
        return best


def suffix_array(ids: np.ndarray) -> np.ndarray:
    """Start positions (int32) of all suffixes of `ids` (N int32 of 1 or more), in the order of the suffixes."""
    n = len(ids)
    if n == 0:
        return np.zeros(0, np.int32)
    bits = int(ids.max()).bit_length()
    width = min(max(1, 63 // bits), n)
    key = np.zeros(n, np.int64)
    for i in range(width):  # the first `width` words of every suffix in one number; past the end: 0
        key <<= bits
        key[: n - i] |= ids[i:]
    order = np.argsort(key).astype(np.int32)
    key = key[order]
    first = np.empty(n, bool)
    first[0] = True
    np.not_equal(key[1:], key[:-1], out=first[1:])
    rank = np.empty(n, np.int32)  # of position: index in `order` of the first suffix tied with it, plus 1
    rank[order] = np.maximum.accumulate(np.where(first, np.arange(n, dtype=np.int32), 0)) + 1
    tied = np.flatnonzero(~(first & np.append(first[1:], True)))  # indices into `order`
    while len(tied):
        place = order[tied]
        ahead = place.astype(np.int64) + width
        key = rank[place].astype(np.int64) << 32
        key |= np.where(ahead < n, rank[np.minimum(ahead, n - 1)], 0)
        # Groups keep their own stretch of `order`, so sorting all keys at once sorts within the groups.
        by_key = np.argsort(key)
        place, key = place[by_key], key[by_key]
        order[tied] = place
        first = np.append(True, key[1:] != key[:-1])
        rank[place] = np.maximum.accumulate(np.where(first, tied, 0)) + 1
        tied = tied[~(first & np.append(first[1:], True))]
        width *= 2
    return order
