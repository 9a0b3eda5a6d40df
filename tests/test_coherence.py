"""Coherence: which story fails by which rule, the interval, and the whole measurement on a model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from minilm.config import GPTConfig
from minilm.errors import UsageError
from minilm.evaluation import text_metrics
from minilm.evaluation.intervals import share, wilson
from minilm.evaluation.text_metrics import coherence
from minilm.model.gpt import GPT
from minilm.text.shard_writer import ShardWriter
from minilm.text.shards import Shard, Split
from minilm.text.tales import stories
from minilm.text.tales.copying import CopyCheck
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

    def sample_documents(model: GPT, tokenizer: Tokenizer, start: str, n: int, **options: Any) -> list[str]:
        asked.update(options, start=start, n=n)
        return texts

    monkeypatch.setattr(text_metrics, "sample_documents", sample_documents)
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
    known = coherence(model, tokenizer, train=[*tales[20:], tales[5]], n_stories=len(told))
    assert known.failures == {"copied": 2, "ending": 1, "parse": 1}, "told twice, and copied all the same"
    assert (result.passed, result.n_stories, result.share) == (4, 9, 4 / 9)
    assert (result.low, result.high) == wilson(4, 9)
    assert result.samples == tuple(good[:3])
    assert result.mean_before == pytest.approx((8 + 1 / (len(sentences) + 1)) / 9)
    assert (asked["start"], asked["n"]) == ("", 9)
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
    for kept, passed in ((int(0.6 * len(words)), 1), (int(0.6 * len(words)) + 1, 0)):
        result = coherence(model, tokenizer, train=CopyCheck([" ".join(words[:kept])]), n_stories=1)
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
    check = text_metrics.copy_check(split, tokenizer)
    assert check is not None
    assert [check.copied_share(text) for text in tales[:20]] == [1.0] * 20
    assert check.copied_share(f"{tales[0]} {tales[1]}") < 0.7
    telling(tales, monkeypatch)
    assert coherence(model, tokenizer, train=split, n_stories=40).failures == {"copied": 20}


def test_a_random_model_is_not_coherent(model: GPT, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    real, limits = text_metrics.sample_documents, []

    def sample_documents(*words: Any, **options: Any) -> list[str]:
        limits.append(options["max_new_tokens"])
        return real(*words, **options)

    monkeypatch.setattr(text_metrics, "sample_documents", sample_documents)
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


@pytest.mark.parametrize(("level", "style"), [(2, "fable"), (4, "letter")])
def test_other_levels_and_styles(
    level: int, style: str, model: GPT, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A story is told from its control code, has the room of its level, and is judged at its level and in its style."""
    told = list(stories(n=6, level=level, style=style, split="val"))
    asked = telling([*told, told[0].removeprefix(f"{style}: ")], monkeypatch)
    result = coherence(model, tokenizer, train=None, n_stories=7, level=level, style=style)
    assert (result.passed, result.failures) == (6, {"style": 1})
    assert (asked["start"], asked["n"]) == (f"{style}: ", 7)
    lengths = [len(tokenizer.encode(text)) for text in stories(n=100, level=level, style=style, split="fresh")]
    assert asked["max_new_tokens"] == 2 * max(lengths)
    assert result.beyond_context == sum(n > 32 for n in lengths) / 100
    assert f"coherence, level {level}, {style}: 85.7 %" in str(result)
    assert f"{100 * result.beyond_context:.0f} % of real stories are longer than the model's context" in str(result)


class Scripted(GPT):
    """Says the ids of a text after whatever of it has been said, from end-of-text on; then end-of-text for ever."""

    def __init__(self, ids: list[int], vocab_size: int) -> None:
        super().__init__(GPTConfig(1, 1, 8, block_size=4 * len(ids), vocab_size=vocab_size))
        self.ids, self.seen = ids, list[list[int]]()

    def used_logits(self, x: torch.Tensor) -> torch.Tensor:
        logits = torch.full((len(x), self.config.vocab_size), -1e9)
        logits[:, (self.ids + [self.ids[0]] * 99)[len(self.seen)]] = 0.0
        return logits

    def hidden(self, ids: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        if not self.seen:
            assert ids.tolist() == [self.ids[: ids.shape[1]]] * len(ids), "the prompt is not how the document begins"
            self.seen = [[]] * (ids.shape[1] - 1)
        self.seen = [*self.seen, []]
        return super().hidden(ids, *args, **options)


@pytest.mark.parametrize("kind", ["words", "bytes"])
def test_a_document_is_sampled_from_end_of_text_and_its_control_code(kind: str) -> None:
    text = next(stories(n=1, level=2, style="fable"))
    tokenizer = train_tokenizer("words", [text]) if kind == "words" else get_tokenizer("bytes")
    model = Scripted([tokenizer.eot, *tokenizer.encode(text)], tokenizer.vocab_size + 3)
    n_tokens = len(model.ids) + 10
    sampled = text_metrics.sample_documents(model, tokenizer, "fable: ", 2, max_new_tokens=n_tokens, seed=0)
    assert sampled == [text, text]
    model = Scripted([tokenizer.eot, *tokenizer.encode(text)[:9], tokenizer.vocab_size + 1], tokenizer.vocab_size + 3)
    (broken,) = text_metrics.sample_documents(model, tokenizer, "fable: ", 1, max_new_tokens=n_tokens, seed=0)
    assert broken == tokenizer.decode(tokenizer.encode(text)[:9]) + "\ufffd"


def test_wilson_is_where_the_score_test_rejects() -> None:
    """Its ends p solve |share - p| = z sqrt(p (1 - p) / n)."""
    z = 1.959964
    for hits, n in ((0, 10), (1, 3), (57, 200), (199, 200), (200, 200), (1, 1)):
        for p in wilson(hits, n):
            if 1e-9 < p < 1.0 - 1e-9:
                assert abs(hits / n - p) == pytest.approx(z * (p * (1 - p) / n) ** 0.5, rel=1e-9)
    assert wilson(0, 10)[0] == 0.0
    assert share([True, None, True]) == (1.0, *wilson(2, 2))  # which is not certainty
    assert np.isnan(share([None]).value)
    assert wilson(200, 200)[1] == pytest.approx(1.0)
    assert wilson(100, 200) == pytest.approx((0.4313, 0.5687), abs=1e-4)


def test_numbers_out_of_range(model: GPT, tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match="n_stories"):
        coherence(model, tokenizer, train=None, n_stories=0)
    with pytest.raises(UsageError, match="level"):
        coherence(model, tokenizer, train=None, level=99)
    with pytest.raises(UsageError, match="style"):
        coherence(model, tokenizer, train=None, style="haiku")
    with pytest.raises(UsageError, match="top_p"):
        coherence(model, tokenizer, train=None, top_p=0.0)
