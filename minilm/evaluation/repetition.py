"""How much texts repeat themselves and each other: pure functions of sequences of words or token ids.

What each paper measured on model tokens can be had on words too; the two differ, so a report says which it took.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

from minilm.errors import UsageError
from minilm.text.sources import needed

Units = Sequence[Hashable]
ZIPF_RANKS = 5000  # most frequent units that the slope is fitted to: rarer ones are noise


def ngrams(units: Units, n: int) -> list[tuple[Hashable, ...]]:
    """All n-grams in order, len(units) - n + 1 of them."""
    return list(zip(*(units[i:] for i in range(n)), strict=False))


def seq_rep_n(units: Units, n: int = 4) -> float:
    """1 - distinct n-grams / n-grams of one text (Welleck 2019, eq. 10); NaN where it has none."""
    grams = ngrams(units, n)
    return 1.0 - len(set(grams)) / len(grams) if grams else math.nan


def rep_r(units: Units) -> float:
    """Share of units that stand in a pair of neighbours which occurs elsewhere in the text (Fu 2021, rep-r); NaN for an
    empty text."""
    if not units:
        return math.nan
    pairs = ngrams(units, 2)
    times = Counter(pairs)
    again = [times[pair] > 1 for pair in pairs]
    return sum(a or b for a, b in zip([False, *again], [*again, False], strict=True)) / len(units)


def distinct_n(texts: Sequence[Units], n: int) -> float:
    """Distinct n-grams / n-grams over all texts (after Li 2016, who divides by tokens). Falls with the amount of
    text: compare equal amounts."""
    grams = [gram for units in texts for gram in ngrams(units, n)]
    return len(set(grams)) / len(grams) if grams else math.nan


def zipf(texts: Sequence[Units]) -> float:
    """s of frequency ~ rank^-s: least squares on logarithms over the 5,000 most frequent units (Holtzman 2020)."""
    counts = np.array([n for _, n in Counter(unit for units in texts for unit in units).most_common(ZIPF_RANKS)], float)
    if len(counts) < 2:
        return math.nan
    return -float(np.polyfit(np.log(np.arange(1, len(counts) + 1)), np.log(counts), 1)[0])


def self_bleu(texts: Sequence[str], order: int = 4) -> list[float]:
    """BLEU of each text against all the others as references, 0 to 100 (Zhu 2018): high where texts are alike.

    sacrebleu's sentence BLEU: its 13a words, exponential smoothing, effective order. Raises UsageError where sacrebleu
    is missing or there are fewer than two texts.
    """
    metrics = needed("sacrebleu.metrics", "eval")
    if len(texts) < 2:
        raise UsageError("self-BLEU compares texts with each other: give two or more")
    bleu = metrics.BLEU(effective_order=True, max_ngram_order=order)
    return [bleu.sentence_score(text, [*texts[:i], *texts[i + 1 :]]).score for i, text in enumerate(texts)]
