"""`eval_metrics`: each value is what the same measure says of the saved weights; training does not feel it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_helpers import prepared, sums, tiny_config

from minilm.config import GPTConfig
from minilm.errors import UsageError
from minilm.evaluation.benchmarks import read_questions, run
from minilm.evaluation.generated import Sample, quality, tell
from minilm.evaluation.perplexity import perplexity
from minilm.evaluation.protocols import PROTOCOLS
from minilm.log import read_metrics
from minilm.model.gpt import GPT
from minilm.text.mixture import head
from minilm.text.prepare import prepare
from minilm.text.shards import open_shards
from minilm.text.tokenizer import get_tokenizer
from minilm.training.loop import train

BYTES = get_tokenizer("bytes")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("data") / "sums")


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("questions") / "lambada.jsonl"
    file.write_text("\n".join(json.dumps({"text": text}) for text in sums(200, 40)))
    return file


def test_every_measure_and_not_a_bit_of_training(data: Path, questions: Path, tmp_path: Path) -> None:
    config: dict[str, Any] = {"resid_dropout": 0.1, "max_steps": 4, "eval_every_steps": 2, "save_every_steps": 2}
    plain = train(tiny_config(data, tmp_path / "plain", **config))
    texts = ("seq-rep-4", "distinct-2", "ended", "self-bleu", "copied-tokens", "new-4-grams", "gap")
    names = ("lm-eval", "training", "minilm", f"lambada-openai@{questions}", *texts)
    other = f"judge-perplexity@{plain.checkpoint}"
    watched = train(tiny_config(data, tmp_path / "watched", eval_samples=3, eval_metrics=(*names, other), **config))
    assert watched.losses == plain.losses
    for a, b in zip(plain.model.parameters(), watched.model.parameters(), strict=True):
        assert torch.equal(a, b)
    for name in ("optimizer.safetensors", "train_state.safetensors"):
        if (plain.checkpoint / name).is_file():
            assert (plain.checkpoint / name).read_bytes() == (watched.checkpoint / name).read_bytes()
    logged = [row for row in read_metrics(watched.run / "metrics.jsonl") if "val_loss" in row]
    assert [row["step"] for row in logged] == [2, 4]
    # What stands there is what the measures say of the checkpoint of that step.
    for row in logged:
        model = GPT.from_pretrained(watched.run / f"step_{row['step']:06d}").eval()
        for name in ("lm-eval", "training", "minilm"):
            expected = perplexity(model, data, name, split="val", tokenizer=BYTES, max_tokens=501)
            assert row[name] == pytest.approx(expected.value, rel=1e-5)
        assert row["training"] == pytest.approx(math.exp(row["val_loss"]), rel=1e-5)
        asked = read_questions("lambada-openai", questions)
        ends = np.cumsum([len(f"{one.context} {one.choices[0]}") for one in asked])
        n_asked = int((ends <= 500).sum())
        assert 1 <= n_asked < len(asked)
        found = run("lambada-openai", model, BYTES, asked[:n_asked])
        assert row[f"lambada-openai@{questions}/perplexity"] == pytest.approx(found.perplexity, rel=1e-4)
        samples = tell(model, BYTES, [""] * 3, max_new_tokens=120, seed=0)
        shards = open_shards(data)
        real = [Sample(BYTES.decode(shards.splits["val"].document(i)[:120])) for i in range(3)]
        rows = quality(
            samples, real, judge=model, tokenizer=BYTES, train=shards.splits["train"], train_tokenizer=BYTES,
            only=[*texts, "judge-perplexity"],
        )  # fmt: skip
        assert row["distinct-2"] == pytest.approx(next(r for r in rows if r.name == "distinct-2").generated.value)
        gap = next(r for r in rows if r.name == "gap, nats per token").generated.value
        assert row["gap"] == pytest.approx(gap, rel=1e-4)
        assert set(texts) <= set(row)
    written = [json.loads(line) for line in (watched.run / "samples.jsonl").read_text().splitlines()]
    assert [one["text"] for one in written[3:]] == [one.text for one in samples]
    assert logged[1][other] == pytest.approx(
        quality(samples, judge=plain.model, tokenizer=BYTES, only=["judge-perplexity"])[0].generated.value, rel=1e-4
    )


def test_what_fails_is_said_once_and_left_out(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = {"max_steps": 2, "eval_every_steps": 1, "eval_samples": 2, "eval_metrics": ("obeyed", "mauve", "length")}
    result = train(tiny_config(data, tmp_path / "run", **changes))
    rows = [row for row in read_metrics(result.run / "metrics.jsonl") if "val_loss" in row]
    assert all("length" in row and "obeyed" not in row for row in rows)
    said = capsys.readouterr().err
    assert said.count("mauve cannot be measured") <= 1
    assert said.count("obeyed cannot be measured at step 1: obeyed needs texts with a label, and a reference") == 1
    assert said.count("obeyed") == 3  # in that line


def test_what_samples_do_not_tell_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of tales it is not known whether the model ended them."""
    folder = prepare("tales", max_docs=300)
    changes = {"max_steps": 2, "eval_every_steps": 1, "eval_samples": 2, "eval_metrics": ("ended", "length")}
    result = train(tiny_config(folder, tmp_path / "run", **changes))
    rows = [row for row in read_metrics(result.run / "metrics.jsonl") if "val_loss" in row]
    assert all("length" in row and "ended" not in row for row in rows)
    assert capsys.readouterr().err.count("ended cannot be measured at step 1: ended needs texts of which") == 1


def test_a_number_that_texts_do_not_have_is_said_once(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minilm.training.measures.tell", lambda *_, **__: [Sample("one"), Sample("")])
    changes = {"max_steps": 2, "eval_every_steps": 1, "eval_samples": 2, "eval_metrics": ("seq-rep-4",)}
    result = train(tiny_config(data, tmp_path / "run", **changes))
    assert not any("seq-rep-4" in row for row in read_metrics(result.run / "metrics.jsonl"))
    assert capsys.readouterr().err.count("seq-rep-4 cannot be measured at step 1: the sampled texts have no such") == 1


def test_tales_and_a_start_from_weights(tmp_path: Path) -> None:
    folder = prepare("tales", max_docs=300)
    changes = {"max_steps": 1, "eval_samples": 3, "eval_metrics": ("length", "minilm", "coherence")}
    first = train(tiny_config(folder, tmp_path / "a", **changes))
    (row,) = [row for row in read_metrics(first.run / "metrics.jsonl") if "val_loss" in row]
    assert {"coherence", "length", "minilm"} <= set(row)
    again = train(tiny_config(folder, tmp_path / "b", init=str(first.run), **changes))
    rows = [row for row in read_metrics(again.run / "metrics.jsonl") if "val_loss" in row]
    assert [one["step"] for one in rows] == [0, 1]
    assert rows[0]["minilm"] == pytest.approx(row["minilm"], rel=1e-5)


def test_the_cost_is_bounded(data: Path) -> None:
    """By tokens of text for protocols: the first ones, the last document cut."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=32, vocab_size=257)).eval()
    shards = open_shards(data)
    found = perplexity(model, shards, "minilm", max_tokens=300)
    assert found.n_tokens == 300 - found.n_documents
    assert found.data == "sums, val, first 300 tokens"
    stream = perplexity(model, shards, "training", max_tokens=300)
    assert stream.n_tokens == 299
    assert (stream.n_bytes, stream.n_words) == (0, 0)
    whole = perplexity(model, shards, "training")
    assert stream.text_sha256 != whole.text_sha256
    ids = head(shards.splits["val"], 300).read(0, 999)
    assert len(ids) == 300


@pytest.mark.parametrize(
    ("names", "changes", "message"),
    [
        (("seq-rep-5",), {"eval_samples": 2}, "there is no 'seq-rep-5' .did you mean seq-rep-"),
        (("seq-rep-4",), {}, "set --eval_samples to 2 or more"),
        (("hellaswag",), {}, "name the file of hellaswag as hellaswag@FILE"),
        (("hellaswag@nowhere.jsonl",), {}, "nowhere.jsonl cannot be read"),
        (("hf-stride-512",), {}, "reads 1024 tokens and the model's position table has 32"),
        (("coherence",), {"eval_samples": 2}, "only tales can be graded"),
        (("zipf@runs/x",), {"eval_samples": 2}, "zipf takes no path"),
        (("gap@runs/x",), {"eval_samples": 2}, "there is no runs/x"),
        (("minilm@nowhere",), {}, "nowhere"),
    ],
)
def test_mistakes_are_told_before_the_first_step(
    names: tuple[str, ...], changes: dict[str, Any], message: str, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        train(tiny_config(data, tmp_path / "run", eval_metrics=names, **changes))


def test_protocols_by_name_are_all_known() -> None:
    from minilm.evaluation.benchmarks import READERS
    from minilm.evaluation.generated import MEASURES

    names = [*PROTOCOLS, *READERS, *MEASURES]
    assert len(names) == len(set(names))
    assert not any("@" in name for name in names)
