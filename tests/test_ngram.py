"""The n-gram baseline against the definition of modified Kneser-Ney, worked out with dictionaries."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from random import Random

import pytest

from minilm.errors import UsageError
from minilm.evaluation.ngram import END, UNKNOWN, NGramModel, join, words
from minilm.text.tales import stories, story

Gram = tuple[str, ...]


def small_texts(seed: int, n: int, kinds: int) -> list[str]:
    """A few words are frequent, most are rare: every count from 1 to some dozens occurs."""
    r = Random(seed)
    return [" ".join(str(int(r.paretovariate(0.7)) % kinds) for _ in range(r.randrange(9))) for _ in range(n)]


def kneser_ney(texts: list[str], order: int) -> tuple[Callable[[Gram, str], float], set[int]]:
    """P(word | all words before it) by the recursive formula, and the orders whose discounts could be estimated."""
    begin = ("<s>",) * (order - 1)
    places = [((*begin, *t.split()[:at]), w) for t in texts for at, w in enumerate([*t.split(), END])]
    vocabulary = {w for _, w in places} | {UNKNOWN}

    def grams(k: int) -> list[Gram]:
        return [(*context[len(context) - k + 1 :], w) for context, w in places]

    counts = {k: Counter(g[1:] for g in set(grams(k + 1))) for k in range(1, order)} | {order: Counter(grams(order))}
    discounts = {k: [0.0, 0.5, 1.0, 1.5] for k in counts}
    for k, of_k in counts.items():
        n = Counter(of_k.values())
        if n[1] and n[2] and n[3]:
            y = n[1] / (n[1] + 2 * n[2])
            estimate = [j - (j + 1) * y * n[j + 1] / n[j] for j in (1, 2, 3)]
            discounts[k] = [0.0, *estimate] if min(estimate) > 0 else discounts[k]

    def p(k: int, context: Gram, word: str) -> float:
        if k == 0:
            return 1 / len(vocabulary)
        history = context[len(context) - k + 1 :]
        following = {w: counts[k][*history, w] for w in vocabulary if counts[k][*history, w]}
        total = sum(following.values())
        if not total:
            return p(k - 1, context, word)
        count = following.get(word, 0)
        left = sum(discounts[k][min(c, 3)] for c in following.values())
        return (count - discounts[k][min(count, 3)] + left * p(k - 1, context, word)) / total

    estimated = {k for k, d in discounts.items() if d[1:] != [0.5, 1.0, 1.5]}
    return lambda context, word: p(order, begin + context, word), estimated


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_equals_the_recursive_formula(order: int) -> None:
    all_estimated: set[int] = set()
    for seed in range(6):
        texts = small_texts(seed, n=10 + 12 * seed, kinds=50)
        expected, estimated = kneser_ney(texts, order)
        all_estimated |= estimated
        model = NGramModel(iter(texts), order)
        for text in [*texts[:3], *small_texts(seed + 100, n=9, kinds=70)]:
            for at, word in enumerate(chain := [*text.split(), END]):
                want = expected(tuple(chain[:at]), word if word in model.vocabulary else UNKNOWN)
                assert model.probability(chain[:at], word) == pytest.approx(want, rel=1e-9)
    assert all_estimated == set(range(1, order + 1))


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_probabilities_sum_to_one(order: int) -> None:
    model = NGramModel(stories(n=100), order)
    start = words(story(7))
    for context in ([], start[:1], start[:9], start[5:9], ["one", "never", "saw", "this"], ["lived", "xyz"], [UNKNOWN]):
        assert sum(model.probability(context, w) for w in model.vocabulary) == pytest.approx(1, abs=1e-9)
        assert min(model.probability(context, w) for w in model.vocabulary) > 0


@pytest.mark.parametrize("order", [1, 2, 4])
def test_samples_follow_the_probabilities(order: int) -> None:
    """Chi-square over every context of the samples, those that back off included, with rare words taken together."""
    model = NGramModel(small_texts(1, n=12, kinds=7), order)
    drawn: dict[Gram, Counter[str]] = {}
    for text in model.sample(20000 // order, seed=3, max_words=12):
        padded = ["<s>"] * (order - 1) + text.split() + [END] * (len(text.split()) < 12)
        for at in range(order - 1, len(padded)):
            drawn.setdefault(tuple(padded[at - order + 1 : at]), Counter())[padded[at]] += 1
    chi_square = freedom = 0.0
    for context, hits in drawn.items():
        n = hits.total()
        expected = {w: n * model.probability([c for c in context if c != "<s>"], w) for w in model.vocabulary}
        cells = [(hits[w], e) for w, e in expected.items() if e >= 5]
        rare = n - sum(e for _, e in cells)
        cells += [(n - sum(h for h, _ in cells), rare)] if rare >= 5 else []
        chi_square += sum((h - e) ** 2 / e for h, e in cells)
        freedom += max(len(cells) - 1, 0)
    assert freedom >= 6
    assert abs(chi_square - freedom) < 4 * math.sqrt(2 * freedom)


def test_words_and_join_round_trip() -> None:
    marks = '"Go," she said: "no... 3.5!"'
    assert " ".join(words(marks)) == '"Go , " she said : "no . . . 3.5 ! "'
    for text in [marks, "", "one", *map(story, range(200)), *stories(n=50, split="val")]:
        assert join(words(text)) == text


def test_sampling_is_deterministic() -> None:
    texts = small_texts(4, n=30, kinds=9)
    samples = NGramModel(texts, 3).sample(20, seed=5, max_words=9)
    assert samples == NGramModel(iter(texts), 3).sample(20, seed=5, max_words=9)
    assert samples[:4] == NGramModel(texts, 3).sample(4, seed=5, max_words=9)
    assert samples != NGramModel(texts, 3).sample(20, seed=6, max_words=9)
    assert max(len(words(text)) for text in samples) == 9


def test_sampling_reproduces_unlike_sentences() -> None:
    sentences = ["One fox ran home.", "Two cats, a dog and Tom sat down.", 'Ann said "yes" again!']
    samples = NGramModel(sentences * 300, 5).sample(100, seed=0, max_words=50)
    counts = Counter(samples)
    assert sum(counts[s] for s in sentences) > 80
    assert all(counts[s] > 15 for s in sentences)


def test_logprob_and_perplexity() -> None:
    model = NGramModel(small_texts(2, n=30, kinds=9), 3)
    chain = ["1", "2", "xyz", "1", END]
    logs = [math.log(model.probability(chain[:at], w)) for at, w in enumerate(chain)]
    assert model.logprob("1 2 xyz 1") == (pytest.approx(sum(logs)), 5)
    total = sum(logs) + model.logprob("2")[0] + model.logprob("")[0]
    assert model.perplexity(["1 2 xyz 1", "2", ""]) == pytest.approx(math.exp(-total / 8))
    assert model.probability(["1"], "xyz") == model.probability(["1"], UNKNOWN)


def test_higher_orders_predict_held_out_tales_better() -> None:
    train, val = list(stories(megabytes=1)), list(stories(n=300, split="val"))
    by_order = [NGramModel(train, order).perplexity(val) for order in (1, 2, 3, 5)]
    assert all(high < low for low, high in pairwise(by_order))


def test_mistakes_are_explained() -> None:
    model = NGramModel(["a b"], 2)
    with pytest.raises(UsageError, match="order must be 1 or more, not 0"):
        NGramModel(["a b"], 0)
    with pytest.raises(UsageError, match="at least one text"):
        NGramModel([])
    with pytest.raises(UsageError, match="at least one text"):
        model.perplexity([])
    with pytest.raises(UsageError, match="holds </s>"):
        NGramModel(["a </s> b"])
    for n, max_words in (1, 0), (0, 1):
        with pytest.raises(UsageError, match=f"1 or more, not {n} and {max_words}"):
            model.sample(n, seed=0, max_words=max_words)
