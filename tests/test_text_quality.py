"""Metrics of generated text against their definitions written out, hand-computed cases, brute force."""

from __future__ import annotations

import math
import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from training_helpers import prepared, sums

from minilm.config import GPTConfig
from minilm.errors import UsageError
from minilm.evaluation import intervals
from minilm.evaluation.intervals import bootstrap, jackknife
from minilm.evaluation.likeness import document_nats, features, mauve, obedience
from minilm.evaluation.novelty import blocks, copied_share, longest_matches, new_ngrams
from minilm.evaluation.perplexity import perplexity
from minilm.evaluation.repetition import distinct_n, rep_r, self_bleu, seq_rep_n, zipf
from minilm.model.gpt import GPT
from minilm.text.shards import open_shards
from minilm.text.tales import stories
from minilm.text.tokenizer import get_tokenizer

BYTES = get_tokenizer("bytes")


def test_seq_rep_by_hand() -> None:
    assert seq_rep_n(["a", "b", "c", "d", "a", "b", "c", "d"], 4) == pytest.approx(1 - 4 / 5)
    assert seq_rep_n(["a", "a", "a", "a", "a", "a"], 4) == pytest.approx(1 - 1 / 3)
    assert seq_rep_n(range(100), 4) == 0.0
    assert seq_rep_n([1, 2, 1, 2, 1], 1) == pytest.approx(1 - 2 / 5)
    assert math.isnan(seq_rep_n([1, 2, 3], 4))


@given(st.lists(st.integers(0, 3), max_size=30))
def test_rep_r_by_its_definition(x: list[int]) -> None:
    def counts(i: int) -> bool:
        after = any(j != i and x[i : i + 2] == x[j : j + 2] for j in range(len(x) - 1)) if i + 1 < len(x) else False
        before = any(j != i and x[i - 1 : i + 1] == x[j - 1 : j + 1] for j in range(1, len(x))) if i else False
        return after or before

    if x:
        assert rep_r(x) == sum(map(counts, range(len(x)))) / len(x)
    else:
        assert math.isnan(rep_r(x))


def test_distinct_and_zipf_by_hand() -> None:
    assert distinct_n([["a", "b", "a"], ["a", "b"]], 1) == 2 / 5
    assert distinct_n([["a", "b", "a"], ["a", "b"]], 2) == 2 / 3
    assert math.isnan(distinct_n([["a"]], 2))
    texts = [[rank] * round(20_000 / rank**1.3) for rank in range(1, 300)]
    assert zipf(texts) == pytest.approx(1.3, abs=0.02)
    assert zipf([list(range(50))]) == pytest.approx(0.0, abs=1e-12)
    assert math.isnan(zipf([["a", "a"]]))


def test_self_bleu() -> None:
    """Against BLEU written out for three texts: clipped precisions, the nearest reference length."""
    pytest.importorskip("sacrebleu")
    same = ["the cat sat on the mat today"] * 3
    assert self_bleu(same) == pytest.approx([100.0] * 3)
    texts = ["a b c d e f", "a b c d x y", "p q r s t u"]
    precisions = [4 / 6, 3 / 5, 2 / 4, 1 / 3]
    expected = 100 * math.exp(sum(map(math.log, precisions)) / 4)
    assert self_bleu(texts)[:2] == pytest.approx([expected, expected])
    assert self_bleu(texts)[2] < 10
    with pytest.raises(UsageError, match="two or more"):
        self_bleu(["alone"])


def brute_force(text: list[int], documents: list[list[int]]) -> list[int]:
    def held(span: list[int]) -> bool:
        return any(span == d[j : j + len(span)] for d in documents for j in range(len(d) - len(span) + 1))

    return [max([n for n in range(1, len(text) - i + 1) if held(text[i : i + n])], default=0) for i in range(len(text))]


ids = st.lists(st.integers(0, 3), max_size=14)


@settings(max_examples=60, deadline=None)
@given(st.lists(ids, min_size=1, max_size=4), st.lists(ids, min_size=1, max_size=4), st.integers(1, 40))
def test_longest_matches_by_brute_force(texts: list[list[int]], documents: list[list[int]], block: int) -> None:
    """However the corpus is cut into blocks that overlap by the longest text."""
    eot = 9
    stream = np.array([token for document in documents for token in [eot, *document]] + [eot])
    overlap = max(map(len, texts))
    cut = [stream[i : i + block + overlap] for i in range(0, max(len(stream) - overlap, 1), block)]
    found = longest_matches(texts, cut)
    assert [match.tolist() for match in found] == [brute_force(text, documents) for text in texts]
    for n in (1, 2, 3):
        grams = [tuple(text[i : i + n]) for text in texts for i in range(len(text) - n + 1)]
        known = {tuple(d[i : i + n]) for d in documents for i in range(len(d) - n + 1)}
        new = np.concatenate([new_ngrams(match, n) for match in found])
        assert new.tolist() == [gram not in known for gram in grams]


def test_copies_from_shards(tmp_path: Path) -> None:
    shards = open_shards(prepared(tmp_path / "sums"))
    tokenizer, split = shards.tokenizer(), shards.splits["train"]
    whole = tokenizer.encode(sums(10, 30)[17])
    shuffled = random.Random(0).sample(whole, len(whole))
    half = [*whole[: len(whole) // 2], *shuffled]
    texts = [whole, half, [], tokenizer.encode("zzz")]
    overlap = max(map(len, texts))
    for block_tokens in (150, 1_000_000):
        found = longest_matches(texts, blocks(split, overlap, block_tokens))
        assert copied_share(found[0]) == 1.0
        assert len(whole) // 2 / len(half) <= copied_share(found[1]) < 0.5
        assert [copied_share(match) for match in found[2:]] == [0.0, 0.0]
    assert longest_matches([], blocks(split, 0)) == []


@pytest.fixture(scope="module")
def judge() -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=64, vocab_size=257, init_std=0.2)).eval()


def test_nats_of_each_document(judge: GPT) -> None:
    texts = [*sums(10, 4), "short", ""]
    nats, tokens = document_nats(judge, BYTES, texts)
    for text, mine, n in zip(texts, nats, tokens, strict=True):
        assert n == len(text)
        assert mine == pytest.approx(perplexity(judge, text, tokenizer=BYTES).nats if text else 0.0, rel=1e-6)
    whole = perplexity(judge, texts, tokenizer=BYTES)
    assert (nats.sum(), tokens.sum()) == (pytest.approx(whole.nats), whole.n_tokens)


def test_features_are_what_transformers_calls_the_last_hidden_state(judge: GPT, tmp_path: Path) -> None:
    from transformers import GPT2Model

    judge.save_pretrained(tmp_path / "judge", BYTES)
    theirs = GPT2Model.from_pretrained(tmp_path / "judge").eval()
    rows = np.random.default_rng(0).integers(257, size=(5, 20)).tolist()
    with torch.no_grad():
        expected = theirs(torch.tensor(rows)).last_hidden_state[:, -1].numpy()
    for batch_tokens in (1, 1000):
        assert np.abs(features(judge, rows, batch_tokens) - expected).max() < 1e-5


@pytest.mark.slow
def test_mauve_on_our_features(judge: GPT) -> None:
    """Equal to mauve-text on the same features; texts of one kind are near 1, of two kinds far from it."""
    pytest.importorskip("mauve")
    from mauve import compute_mauve

    r = random.Random(0)
    english = ["".join(r.choices("etaoin shrdlu", k=40)) for _ in range(120)]
    numbers = ["7" * 40] * 60
    same = mauve(judge, BYTES, english[:60], english[60:], n_tokens=32, n_buckets=4)
    other = mauve(judge, BYTES, numbers, english[:70], n_tokens=32, n_buckets=4)
    assert same.value > 0.8
    assert other.value < 0.2
    assert (other.n_texts, other.n_tokens, other.n_buckets) == (60, 32, 4)
    p, q = (features(judge, [BYTES.encode(text)[:32] for text in kind]) for kind in (english[:60], english[60:]))
    settings = {"num_buckets": 4, "mauve_scaling_factor": 5.0, "seed": 25}
    assert same.value == compute_mauve(p_features=p, q_features=q, verbose=False, **settings).mauve
    assert "60 texts of each, cut to 32 tokens" in str(same)
    with pytest.raises(UsageError, match="has 60 generated and 0 real"):
        mauve(judge, BYTES, english[:60], ["short"], n_tokens=32)
    with pytest.raises(UsageError, match="the judge reads 1 to 64 tokens, not 65"):
        mauve(judge, BYTES, english, english, n_tokens=65)


def test_obedience() -> None:
    pytest.importorskip("sklearn")
    real = {style: list(stories(n=40, style=style, split="val")) for style in ("fable", "letter")}
    cut = {style: [text.removeprefix(f"{style}: ") for text in texts] for style, texts in real.items()}
    reference, labels = cut["fable"] + cut["letter"], ["fable"] * 40 + ["letter"] * 40
    told = [text.partition(": ")[2] for text in stories(n=10, style="letter", split="fresh")]
    found = obedience(told, ["letter"] * 8 + ["fable"] * 2, reference, labels)
    assert found.obeyed == [True] * 8 + [False] * 2
    assert found.accuracy > 0.95
    assert found.labels == ("fable", "letter")
    shuffled = obedience([], [], reference, random.Random(0).sample(labels, len(labels)))
    assert 0.2 < shuffled.accuracy < 0.8  # labels that mean nothing: the classifier says so
    for asked, message in ((["news"], "no reference text has the label 'news'"), (["fable"], "two labels or more")):
        with pytest.raises(UsageError, match=message):
            obedience(["x"], asked, cut["fable"], ["fable"] * 40)


def test_intervals_cover_what_they_should() -> None:
    """Of 200 samples of a known mean, about 95 % have it in their interval; so for a jackknifed ratio."""
    random_ = np.random.default_rng(1)
    hits = jack = 0
    for seed in range(200):
        x = random_.exponential(2.0, size=80)
        found = bootstrap(x.tolist(), seed=seed)
        assert found.low < found.value < found.high
        assert found.value == pytest.approx(x.mean())
        hits += found.low <= 2.0 <= found.high
        jack += (lambda e: e.low <= 2.0 <= e.high)(jackknife(lambda kept: float(np.mean(kept)), x.tolist()))
    assert 175 <= hits <= 199
    assert 175 <= jack <= 199
    at_once = bootstrap(x.tolist(), x.tolist())
    with pytest.MonkeyPatch.context() as patch:  # many texts are drawn by parts, to the same numbers
        patch.setattr(intervals, "DRAWN_AT_ONCE", 80 * 7)
        assert bootstrap(x.tolist(), x.tolist()) == at_once
    tracemalloc.start()
    bootstrap([1.0, 2.0] * 3_000)
    assert tracemalloc.get_traced_memory()[1] < 80e6  # all 2,000 resamples at once: 200 MB
    tracemalloc.stop()
    weighted = bootstrap([2.0, 6.0], [1.0, 2.0])
    assert (weighted.value, weighted.low, weighted.high) == (8 / 3, 2.0, 3.0)
    assert bootstrap([1.0, math.nan]).value == 1.0
    assert math.isnan(bootstrap([]).value)
    assert math.isnan(jackknife(lambda kept: 1.0, ["one"]).low)
