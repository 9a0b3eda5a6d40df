"""Comparing: the interval and p against scipy-like closed forms and full enumeration; the door on trained models."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_helpers import prepared, sums

from minilm.cli import run_door
from minilm.config import GPTConfig
from minilm.errors import UsageError
from minilm.evaluation import ngram
from minilm.evaluation.compare import difference, paired
from minilm.evaluation.generated import Sample, tell
from minilm.evaluation.paired_texts import text_differences, text_scores
from minilm.evaluation.perplexity import Part, Perplexity, perplexity
from minilm.model.gpt import GPT
from minilm.text.shards import open_shards
from minilm.text.tokenizer import get_tokenizer

BYTES = get_tokenizer("bytes")


def test_p_is_that_of_all_flips() -> None:
    """Of eight pairs all 256 ways to flip them can be tried."""
    d = np.array([0.3, 0.1, -0.2, 0.5, 0.4, 0.2, -0.1, 0.35])
    exact = np.mean([abs((d * flips).sum()) >= abs(d.sum()) - 1e-12 for flips in product((-1, 1), repeat=8)])
    found, p = paired(np.zeros(8), d, np.ones(8))
    assert p == pytest.approx(exact, abs=0.015)
    assert found.value == pytest.approx(d.mean())
    assert paired(np.zeros(8), d, np.ones(8)) == (found, p)
    assert paired(d, np.zeros(8), np.ones(8))[0].value == -found.value
    assert paired(np.ones(5), np.ones(5), np.ones(5))[1] == 1.0


def test_intervals_and_p_hold_what_they_promise() -> None:
    """Of 300 comparisons of equal models 5 % are called different; of shifted ones the interval holds the shift."""
    r = np.random.default_rng(0)
    wrong = held = 0
    for seed in range(300):
        sizes = r.integers(5, 50, size=60).astype(float)
        x = sizes * 3 + r.normal(size=60) * 5
        y = x + r.normal(size=60) * sizes**0.5
        wrong += paired(x, y, sizes, resamples=500, seed=seed)[1] < 0.05
        found, _ = paired(x, y + 0.1 * sizes, sizes, resamples=500, seed=seed)
        held += found.low <= 0.1 <= found.high
    assert 5 <= wrong <= 26
    assert 270 <= held <= 297


def measured(model: GPT, texts: list[str], name: str, **changes: Any) -> tuple[Perplexity, list[Part]]:
    parts: list[Part] = []
    found = perplexity(model, texts, "minilm", tokenizer=BYTES, model_name=name, parts=parts, **changes)
    return found, parts


@pytest.fixture(scope="module")
def models() -> tuple[GPT, GPT]:
    torch.manual_seed(0)
    a = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=32, vocab_size=257)).eval()
    b = GPT(a.config).eval()
    b.load_state_dict(a.state_dict())
    with torch.no_grad():
        b.get_parameter("ln_f.bias").add_(2.0 * b.wte.weight[[ord(c) for c in "0123456789 ."]].mean(0) / 0.02)
    return a, b


def test_a_difference_is_that_of_the_perplexities(models: tuple[GPT, GPT]) -> None:
    texts = sums(10, 12)
    a, b = (measured(model, texts, name) for model, name in zip(models, "AB", strict=True))
    found = difference(*a, *b)
    assert found.value.value == pytest.approx(b[0].nats_per_token - a[0].nats_per_token)
    assert (found.n_units, found.drawn, found.unit) == (12, "documents", "token")
    assert found.p < 0.01
    better, worse = ("B", "A") if found.value.value < 0 else ("A", "B")
    times = 1 - math.exp(-abs(found.value.value))
    assert str(found).startswith(f"{better} is better than {worse} by {abs(found.value.value):.4f} nats per token")
    assert f"a perplexity {100 * times:.1f} % lower" in str(found)
    same = difference(*a, *a)
    assert (same.value, same.p) == ((0.0, 0.0, 0.0), 1.0)
    assert "cannot be told apart: +0.0000 nats per token" in str(same)
    for unit, attribute in (("byte", "bits_per_byte"), ("character", "bits_per_character")):
        c, d = (measured(model, texts, "x", unit=unit) for model in models)
        expected = getattr(d[0], attribute) - getattr(c[0], attribute)
        assert difference(*c, *d).value.value == pytest.approx(expected)
    windows = [measured(model, texts, "x", documents="joined") for model in models]
    found = difference(*windows[0], *windows[1])
    assert (found.drawn, found.n_units) == ("windows", len(windows[0][1]))


def test_what_cannot_be_compared(models: tuple[GPT, GPT]) -> None:
    a = measured(models[0], sums(10, 3), "A")
    with pytest.raises(UsageError, match="not measured alike"):
        difference(*a, *measured(models[0], sums(11, 3), "A"))
    with pytest.raises(UsageError, match="one window cannot tell"):
        difference(*measured(models[0], ["12 + 3"], "A"), *measured(models[0], ["12 + 3"], "A"))
    one = measured(models[0], sums(10, 1), "A")
    assert (difference(*one, *one).drawn, difference(*one, *one).n_units) == ("windows", len(one[1]))
    with pytest.raises(UsageError, match=r"the tokenizer .*and per byte"):
        a[0].check_alike(replace(a[0], tokenizer="0" * 16))
    joined = measured(models[0], sums(10, 3), "A", documents="joined", unit="byte")
    with pytest.raises(UsageError, match="compared by document"):
        difference(*joined, replace(joined[0], tokenizer="0" * 16), joined[1])


def test_the_order_of_models_changes_the_sign_alone(models: tuple[GPT, GPT]) -> None:
    """A second tokenizer that has half as many tokens in every other document."""
    a, a_parts = measured(models[0], sums(10, 8), "A", unit="byte", first="after_eot")
    b, parts = measured(models[1], sums(10, 8), "B", unit="byte", first="after_eot")
    b_parts = []
    for part in parts:
        pairs = part.nats[::2].copy()
        pairs[: len(part.nats) // 2] += part.nats[1::2]
        b_parts.append(part._replace(nats=pairs) if part.document % 2 else part)
    b = replace(b, tokenizer="0" * 16, n_tokens=sum(len(part.nats) for part in b_parts))
    assert b.n_tokens < a.n_tokens
    there, back = difference(a, a_parts, b, b_parts), difference(b, b_parts, a, a_parts)
    assert there.value.value == pytest.approx(b.bits_per_byte - a.bits_per_byte, rel=1e-6)
    assert back.value == pytest.approx((-there.value.value, -there.value.high, -there.value.low))
    assert back.p == there.p


@pytest.mark.parametrize("dropped", [0, 1])
def test_documents_are_paired_by_number(models: tuple[GPT, GPT], dropped: int) -> None:
    """Where each tokenizer leaves another document without a target, counts alone would not show it."""
    texts = ["a", "bc", *sums(10, 3)]
    found, parts = measured(models[0], texts, "A", first="unscored", unit="byte")  # of "a" nothing is scored
    other = [part for part in measured(models[1], texts, "B", unit="byte")[1] if part.document != dropped]
    with pytest.raises(UsageError, match=r"by document, from its first token on.*--first after_eot"):
        difference(found, parts, replace(found, tokenizer="0" * 16), parts)
    if dropped:
        with pytest.raises(UsageError, match="document 1 has a token for one of the two tokenizers only"):
            difference(found, parts, found, other)
    else:
        assert difference(found, parts, found, other).n_units == 4


def test_the_door(models: tuple[GPT, GPT], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = prepared(tmp_path / "sums")
    names = [str(tmp_path / "a"), str(tmp_path / "b")]
    for name, model in zip(names, models, strict=True):
        model.save_pretrained(name, BYTES)
    words = [*names, "--data", str(folder), "--device=cpu"]
    assert run_door("compare", [*words, "--format=json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = found["models"]
    assert [row["model"] for row in rows] == names
    values = [perplexity(model, folder).value for model in models]
    assert [row["perplexity per token"] for row in rows] == pytest.approx(values, abs=1e-4)
    assert rows[0]["parameters"] == models[0].num_params()
    assert rows[0]["weights_mb"] == round(4 * models[0].num_params() / 1e6, 2)
    assert rows[0]["ms_per_token"] > 0
    # Beside the weights at least the logits of one window, fp32, and less than ten times them.
    logits = 32 * 257 * 4 / 1e6
    assert rows[0]["weights_mb"] + logits < rows[0]["peak_mb"] < rows[0]["weights_mb"] + 10 * logits
    assert len(found["differences"]) == 1
    (apart,) = found["differences"]
    assert "12 documents" in apart["sentence"]
    assert (apart["a"], apart["b"], apart["n"], apart["drawn"]) == (*names, 12, "documents")
    assert apart["measure"] == "nats per token"
    assert apart["low"] <= apart["value"] <= apart["high"]
    nats = [perplexity(model, folder).nats_per_token for model in models]
    assert apart["value"] == pytest.approx(nats[1] - nats[0])
    assert run_door("compare", [*words, "--format=csv"]) == 0
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [line["kind"] for line in lines] == ["model", "model", "difference"]
    assert [line["model"] for line in lines] == [*names, ""]
    assert (float(lines[2]["value"]), float(lines[2]["p"])) == (apart["value"], apart["p"])
    assert run_door("compare", [*words, "--format=markdown"]) == 0
    assert capsys.readouterr().out.splitlines()[1] == "|---" * 8 + "|"
    assert run_door("compare", [names[0], *words]) == 0
    assert "cannot be told apart" in capsys.readouterr().out.splitlines()[-2]


def test_stored_results(models: tuple[GPT, GPT], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(tmp_path / name) for name in ("a.json", "b.json", "c.json")]
    for file, model, texts in zip(files, (*models, models[0]), (10, 10, 11), strict=True):
        Path(file).write_text(measured(model, sums(texts, 3), file)[0].to_json())
    assert run_door("compare", files[:2]) == 0
    assert "whether a difference is chance cannot be said" in capsys.readouterr().out
    assert run_door("compare", [*files, "--unlike", "--format=json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["model"] for row in found["models"]] == files
    assert "the text: text and text" in found["notes"][1]
    bare = [str(tmp_path / name) for name in ("one", "two")]
    for name, file in zip(bare, files, strict=False):
        Path(name).write_text(Path(file).read_text())
    assert run_door("compare", bare) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith(files[0])
    stored = json.loads(Path(files[1]).read_text())
    broken: list[tuple[str, str]] = []
    for key, value, why in (
        ("n_tokens", 0, "its counts"),
        ("nats", None, "nats takes"),
        ("nats", math.nan, "nats are nan"),
        ("nats", -1.0, "nats are -1.0"),
        ("n_words", "x", "n_words takes"),
    ):
        broken.append((str(tmp_path / f"no_{len(broken)}.json"), why))
        Path(broken[-1][0]).write_text(json.dumps(stored | {key: value}))
    for words, message in (
        (files, "not measured alike"),
        ([*files[:2], files[2]], "pass --unlike to see them side by side"),
        ([files[0], "runs/x"], "stored results cannot be compared with models"),
        (files[:1], "name two models or more"),
        ([files[0], str(tmp_path / "missing.json")], "missing.json cannot be read"),
        *(([files[0], name], f"{name}: this is no stored perplexity ({why}") for name, why in broken),
        (["runs/x", "runs/y"], "there is no runs/x"),
    ):
        assert run_door("compare", words) == 2
        assert message in capsys.readouterr().err


def test_texts_are_paired_by_prompt(models: tuple[GPT, GPT], tmp_path: Path) -> None:
    a = {"length in words": np.arange(20.0), "rep-r": np.full(20, np.nan), "ended": np.ones(20)}
    b = {"length in words": np.arange(20.0) + 3 + np.tile([0.5, -0.5], 10), "rep-r": np.full(20, np.nan)}
    (found,) = text_differences("A", a, "B", b)
    assert found.value.value == pytest.approx(3.0)
    assert (found.n_prompts, found.p) == (20, pytest.approx(1 / 10_001))
    assert str(found).startswith("length in words: B has 3 more than A (95 % +2.")
    expected, p = paired(a["length in words"], b["length in words"], np.ones(20))
    assert (found.value, found.p) == (expected, p)
    shuffled = text_differences("A", a, "B", {"length in words": b["length in words"][::-1].copy()})[0]
    assert shuffled.value.high - shuffled.value.low > 5 * (found.value.high - found.value.low)  # pairing is what helps
    assert "cannot be told apart" in str(text_differences("A", a, "A", a)[0])
    with pytest.raises(UsageError, match="one prompt cannot tell"):
        text_differences("A", {"rep-r": np.ones(1)}, "B", {"rep-r": np.ones(1)})


def test_scores_of_texts() -> None:
    torch.manual_seed(0)
    judge = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=32, vocab_size=257)).eval()
    samples = [Sample("a b a b a b", ended=True), Sample("the cat sat", ended=False), Sample("", ended=False)]
    found = text_scores(samples, judge=judge, judge_tokenizer=BYTES)
    assert found["length in words"].tolist() == [6, 3, 0]
    assert found["ended by end-of-text"].tolist() == [1, 0, 0]
    assert found["seq-rep-2"].tolist()[:2] == [1 - 2 / 5, 0.0]
    for i in (0, 1):
        alone = perplexity(judge, [samples[i].text], "minilm", tokenizer=BYTES)
        assert found["nats per token under the judge"][i] == pytest.approx(alone.nats_per_token, rel=1e-5)
    assert np.isnan(found["nats per token under the judge"][2])


def test_everything_in_one_command(models: tuple[GPT, GPT], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Contexts that a model can read are a grid, those beyond its table are empty; texts, a judge and the picture."""
    pytest.importorskip("matplotlib")
    folder = prepared(tmp_path / "sums")
    torch.manual_seed(1)
    short = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=16, vocab_size=257, position="rope")).eval()
    names = [str(tmp_path / name) for name in ("long", "short")]
    for name, model in zip(names, (models[0], short), strict=True):
        model.save_pretrained(name, BYTES)
    words = [*names, "--data", str(folder), "--device=cpu", "--contexts", "8", "16", "48", "--eval_tokens=600"]
    words += ["--prompts=3", "--max_new_tokens=20", "--judge", names[0], "--format=json"]
    assert run_door("compare", [*words, "--picture", str(tmp_path / "all.svg")]) == 0
    found = json.loads(capsys.readouterr().out)
    long, other = found["models"]
    assert long["context 48"] is None
    assert other["context 48"] > 0
    for context in (8, 16):
        alone = perplexity(models[0], folder, "minilm", context=context, max_tokens=600)
        assert long[f"context {context}"] == pytest.approx(alone.value, abs=1e-3)
    assert long["context 16"] == long["perplexity per token"]
    assert any(one["measure"] == "nats per token under the judge" for one in found["differences"])
    assert any("3 prompts" in one["sentence"] for one in found["differences"])
    prompts = [BYTES.decode(open_shards(folder).splits["val"].document(i)) for i in range(3)]
    prompts = [" ".join(text.split()[:8]) for text in prompts]
    told = tell(models[0], BYTES, prompts, max_new_tokens=20, seed=0, temperature=1.0)
    assert long["length in words"] == pytest.approx(np.mean([len(ngram.words(one.text)) for one in told]), abs=1e-4)
    drawn = (tmp_path / "all.svg").read_text()
    assert all(f'id="axes_{i}"' in drawn for i in range(1, 11))
    (tmp_path / "prompts.txt").write_text("one\n\ntwo\n")
    words = [*names, "--data", str(folder), "--context=16", "--eval_tokens=300", "--device=cpu"]
    assert run_door("compare", [*words, "--prompts", str(tmp_path / "prompts.txt"), "--max_new_tokens=5"]) == 0
    assert "2 prompts" in capsys.readouterr().out
    for options, message in (
        (["--prompts=1"], "gives fewer than two, which cannot tell chance"),
        (["--prompts=0"], "gives fewer than two, which cannot tell chance"),
        (["--prompts=²"], "--prompts ² cannot be read"),
        (["--prompts=3", "--split=test"], "has no split 'test': choose of train, val"),
        (["--seed", "-1"], "seed: give a whole number, 0 or more, not '-1'"),
        (["--contexts", "0"], "contexts: give a whole number, 1 or more, not '0'"),
        (["--prompts", "nowhere.txt"], "--prompts nowhere.txt cannot be read"),
        (["--picture", "x.xyz"], "name a .svg, .png or .pdf file"),
        (["--judge", "runs/none", "--prompts=2"], "there is no runs/none"),
    ):
        assert run_door("compare", [*words, *options]) == 2
        assert message in capsys.readouterr().err


def saved(models: tuple[GPT, GPT], folder: Path) -> list[str]:
    for name, model in zip("ab", models, strict=True):
        model.save_pretrained(folder / name, BYTES)
    return [str(folder / name) for name in "ab"]


def test_what_cannot_be_divided_is_a_sentence(
    models: tuple[GPT, GPT], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = saved(models, tmp_path)
    (tmp_path / "word.txt").write_text("incomprehensibilities")
    words = ["--data", str(tmp_path / "word.txt"), "--protocol=megatron", "--context=8", "--stride=4", "--device=cpu"]
    assert run_door("compare", [*names, *words]) == 2
    assert "has no word that protocol megatron* counts" in capsys.readouterr().err
    words = ["--data", str(prepared(tmp_path / "sums")), "--protocol=training", "--unit=byte", "--eval_tokens=50"]
    assert run_door("compare", [*names, *words, "--device=cpu"]) == 2
    assert "the bytes of sums, val, first 50 tokens are not counted" in capsys.readouterr().err
    by_word = measured(models[0], sums(10, 3), "A", unit="word")
    with pytest.raises(UsageError, match="the words of text are none or were not counted"):
        difference(replace(by_word[0], n_words=0), by_word[1], replace(by_word[0], n_words=0), by_word[1])


def test_json_is_valid_where_the_number_is_too_large(
    models: tuple[GPT, GPT], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = saved(models, tmp_path)
    (tmp_path / "long.txt").write_text("x" * 700)
    words = ["--data", str(tmp_path / "long.txt"), "--unit=word", "--device=cpu", "--format=json"]
    assert run_door("compare", [*names, *words]) == 0
    row = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["models"][0]
    assert row["perplexity per word"] is None
    assert 0 < row["nats_per_token"] < 100


def test_cost_is_of_what_is_really_read(
    models: tuple[GPT, GPT], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = saved(models, tmp_path)
    for name, text in (("one", "1 + 2 = 3"), ("two", "4 + 4 = 8")):
        (tmp_path / "texts").mkdir(exist_ok=True)
        (tmp_path / "texts" / f"{name}.txt").write_text(text)
    words = ["--data", str(tmp_path / "texts"), "--context=10000000000000", "--device=cpu", "--format=json"]
    assert run_door("compare", [*names, *words]) == 0
    assert json.loads(capsys.readouterr().out)["models"][0]["peak_mb"] < 1


def test_time_is_of_scoring_alone_after_a_first_batch(models: tuple[GPT, GPT], monkeypatch: pytest.MonkeyPatch) -> None:
    from minilm.evaluation import perplexity as module

    asked: list[int] = []

    def target_nats(model: GPT, requests: Any, **how: Any) -> Any:
        given = list(requests)
        asked.append(len(given))
        return iter([np.ones(len(one.ids) - one.scored, np.float32) for one in given])

    monkeypatch.setattr(module, "target_nats", target_nats)
    seconds: list[float] = []
    perplexity(models[0], sums(10, 5), "minilm", tokenizer=BYTES, seconds=seconds, batch_tokens=64)
    assert asked[0] == 2  # windows of 32
    assert asked[1] > 2
    assert len(seconds) == 1


def test_a_path_is_checked_before_a_model_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    for file, why in (("x.xyz", "name a .svg, .png or .pdf file"), (str(tmp_path / "no" / "x.svg"), "does not exist")):
        assert run_door("compare", ["runs/none", "runs/no", "--picture", file]) == 2
        assert why in capsys.readouterr().err
