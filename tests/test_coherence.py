"""Coherence: which story fails by which rule, the interval, and the whole measurement on a model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from minilm.config import GPTConfig
from minilm.errors import UsageError
from minilm.evaluation import text_metrics
from minilm.evaluation.text_metrics import coherence, wilson
from minilm.model.gpt import GPT
from minilm.text.shards import Shard, ShardWriter, Split
from minilm.text.tales import stories
from minilm.text.tales_copy import CopyCheck
from minilm.text.tokenizer import Tokenizer, get_tokenizer, train_tokenizer


@pytest.fixture(scope="module")
def tales() -> list[str]:
    return list(stories(n=40, split="val"))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer("words", stories(n=2000))


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Iterator[GPT]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=32, vocab_size=tokenizer.vocab_size)).eval()
    torch.set_num_threads(before)


def telling(texts: list[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Makes every model tell these stories; returns what it was asked."""
    asked: dict[str, Any] = {}

    def generate(model: GPT, tokenizer: Tokenizer, prompts: list[str], **options: Any) -> list[str]:
        asked.update(options, prompts=prompts)
        return texts

    monkeypatch.setattr(text_metrics, "generate", generate)
    return asked


def test_each_story_fails_by_its_first_broken_rule(
    tales: list[str], model: GPT, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = tales[:4]
    sentences = tales[4].split(". ")
    cut = ". ".join(sentences[:-1]) + "."  # the want is not settled
    nonsense = ". ".join([sentences[0], "The moon moon", *sentences[1:]])
    told = [*good, cut, nonsense, tales[5], f" {tales[5]}\n", tales[6]]
    asked = telling(told, monkeypatch)
    words = tales[6].split()
    n_shared = int(0.6 * len(words)) + 1  # more than 60 %
    result = coherence(
        model, tokenizer, train=[*tales[20:], " ".join(words[:n_shared]) + " and more"], n_stories=len(told)
    )
    assert result.failures == {"duplicate": 2, "ending": 1, "parse": 1, "copied": 1}
    assert next(iter(result.failures)) == "duplicate"
    assert (result.passed, result.n_stories, result.share) == (4, 9, 4 / 9)
    assert (result.low, result.high) == wilson(4, 9)
    assert result.samples == tuple(good[:3])
    assert result.mean_before == pytest.approx((8 + 1 / (len(sentences) + 1)) / 9)
    assert asked["prompts"] == [""] * 9
    assert (asked["temperature"], asked["top_k"], asked["top_p"], asked["seed"]) == (1.0, 0, 1.0, 0)
    report = str(result)
    assert "44.4 % of 9 stories" in report
    assert "duplicate 2" in report
    assert good[0] in report


def test_sixty_percent_copied_is_not_yet_a_copy(
    tales: list[str], model: GPT, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    telling(tales[:1], monkeypatch)
    words = tales[0].split()
    for share, passed in ((int(0.6 * len(words)), 1), (int(0.6 * len(words)) + 1, 0)):
        result = coherence(model, tokenizer, train=CopyCheck([" ".join(words[:share])]), n_stories=1)
        assert result.passed == passed


def test_without_a_training_text_the_report_says_so(
    tales: list[str], model: GPT, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    telling(tales, monkeypatch)
    result = coherence(model, tokenizer, train=None, n_stories=40)
    assert result.share == 1.0
    assert "not compared with a training text" in str(result)
    assert "first broken rule: none" in str(result)
    assert "not compared" not in str(coherence(model, tokenizer, train=[], n_stories=40))


def test_shards_as_training_text(
    tales: list[str], model: GPT, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every document is found, the first and the last word included, and none runs on into the next."""
    writer = ShardWriter(tmp_path, "train", tokenizer=tokenizer)
    for text in tales[:20]:
        writer.add(tokenizer.encode(text))
    written = writer.close(n_bytes=0, n_words=0)
    split = Split([Shard(tmp_path / shard.file) for shard in written.shards], tokenizer.vocab_size)
    check = text_metrics._copy_check(split, tokenizer)
    assert check is not None
    assert [check.copied_share(text) for text in tales[:20]] == [1.0] * 20
    assert check.copied_share(f"{tales[0]} {tales[1]}") < 0.7
    telling(tales, monkeypatch)
    assert coherence(model, tokenizer, train=split, n_stories=40).failures == {"copied": 20}


def test_a_random_model_is_not_coherent(model: GPT, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    real, limits = text_metrics.generate, []

    def generate(model: GPT, tokenizer: Tokenizer, prompts: list[str], **options: Any) -> list[str]:
        limits.append(options["max_new_tokens"])
        return real(model, tokenizer, prompts, **options)

    monkeypatch.setattr(text_metrics, "generate", generate)
    result = coherence(model, tokenizer, train=[], n_stories=30)
    assert (result.share, result.low) == (0.0, 0.0)
    assert result.mean_before == 0.0
    assert sum(result.failures.values()) == 30
    assert result == coherence(model, tokenizer, train=[], n_stories=30)
    assert result.samples != coherence(model, tokenizer, train=[], n_stories=30, seed=1).samples
    assert coherence(model, tokenizer, train=[], n_stories=30, temperature=0.0, seed=2).samples[0] != result.samples[0]
    longest = max(len(tokenizer.encode(text)) for text in stories(n=100, split="fresh"))
    assert limits[0] == 2 * longest


def test_any_tokenizer_has_room_for_a_story(tales: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = telling(tales[:1], monkeypatch)
    tokenizer = get_tokenizer("bytes")
    coherence(GPT(GPTConfig(1, 1, 8, vocab_size=257)), tokenizer, train=None, n_stories=1)
    assert asked["max_new_tokens"] > max(len(text) for text in tales)


def test_wilson_is_where_the_score_test_rejects() -> None:
    """Its ends p solve |share - p| = z sqrt(p (1 - p) / n)."""
    z = 1.959964
    for hits, n in ((0, 10), (1, 3), (57, 200), (199, 200), (200, 200), (1, 1)):
        for p in wilson(hits, n):
            if 1e-9 < p < 1.0 - 1e-9:
                assert abs(hits / n - p) == pytest.approx(z * (p * (1 - p) / n) ** 0.5, rel=1e-9)
    assert wilson(0, 10)[0] == 0.0
    assert wilson(200, 200)[1] == pytest.approx(1.0)
    assert wilson(100, 200) == pytest.approx((0.4313, 0.5687), abs=1e-4)


def test_numbers_out_of_range(model: GPT, tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match="n_stories"):
        coherence(model, tokenizer, train=None, n_stories=0)
    with pytest.raises(UsageError, match="level"):
        coherence(model, tokenizer, train=None, level=99)
    with pytest.raises(UsageError, match="top_p"):
        coherence(model, tokenizer, train=None, top_p=0.0)
