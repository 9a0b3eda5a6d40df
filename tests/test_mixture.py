"""Mixing from the command line's words to the rows of a batch, and runs whose length is in tokens or epochs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_helpers import prepared, tiny_config

from minilm.config import GPTConfig, TrainConfig
from minilm.errors import UsageError
from minilm.text.batches import Batches, eval_batches
from minilm.text.mixture import MixedFolder, Part, open_data, parse_mixture, prepare_mixture
from minilm.text.prepare import prepare
from minilm.text.scripts import load_dataset
from minilm.text.shards import open_shards
from minilm.text.sources import Files
from minilm.text.tokenizer import get_tokenizer
from minilm.training.feed import parse_contexts, training_batches, with_budget
from minilm.training.loop import train
from minilm.training.setup import settle
from minilm.training.validation import evaluate


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        ("imdb", [("imdb", None)]),
        ("wikitext103:0.7,imdb:0.3", [("wikitext103", 0.7), ("imdb", 0.3)]),
        ("tales:level=2,style=fable:2,imdb:1", [("tales:level=2,style=fable", 2.0), ("imdb", 1.0)]),
        ("tales:level=2,style=fable", [("tales:level=2,style=fable", None)]),
        ("tales:level=2,imdb", [("tales:level=2", None), ("imdb", None)]),
    ],
)
def test_words_of_a_mixture(data: str, parts: list[tuple[str, float | None]]) -> None:
    assert parse_mixture(data) == [Part(*part) for part in parts]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("a:1,b", "gives some weights and not others"),
        ("a:0,b:1", "is no name with a weight above 0"),
        ("a:0.5", "mixes one data set: leave out its weight"),
        ("a:1,:2", "is no name with a weight above 0"),
    ],
)
def test_wrong_words(data: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_mixture(data)


@pytest.fixture
def texts(tmp_path: Path) -> tuple[Path, Path]:
    made = []
    for letter, n in (("a", 600), ("b", 200)):
        path = tmp_path / f"{letter}.jsonl"
        path.write_text("".join(f'{{"text": "{letter}{i:03d} {letter * 20}"}}\n' for i in range(n)))
        made.append(path)
    return made[0], made[1]


def test_a_mixture_is_prepared_with_one_tokenizer(texts: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = texts
    monkeypatch.chdir(a.parent)
    data = prepare_mixture(f"{a}:3,{b}:1", tokenizer="chars")
    with pytest.raises(UsageError, match="have different tokenizers"):
        open_data(data)  # each file has an alphabet of its own
    data = prepare_mixture(f"{a}:3,{b}:1", tokenizer="bytes")
    mixed = open_data(data)
    assert isinstance(mixed, MixedFolder)
    assert mixed.weights == (0.75, 0.25)
    assert mixed.splits["train"].n_tokens == sum(split.n_tokens for split in mixed.sources)
    assert prepare_mixture(data) == data
    by_size = open_data(",".join(part.name for part in parse_mixture(data)))
    hot = open_data(",".join(part.name for part in parse_mixture(data)), temperature=2.0)
    assert isinstance(by_size, MixedFolder)
    assert isinstance(hot, MixedFolder)
    sizes = np.array([split.n_tokens for split in mixed.sources])
    assert np.allclose(by_size.weights, sizes / sizes.sum())
    assert np.allclose(hot.weights, np.sqrt(sizes) / np.sqrt(sizes).sum())
    val = [open_shards(part.name).splits["val"].n_tokens for part in parse_mixture(data)]
    assert mixed.splits["val"].n_tokens == sum(val)
    batch = next(eval_batches(mixed.splits["val"], block_size=50, batch_size=8, max_tokens=400))
    assert {97, 98} <= set(batch.ids.ravel().tolist())  # the first tokens hold both
    with pytest.raises(UsageError, match="--source is of one data set"):
        prepare_mixture("imdb,yelp", source=a)


def test_training_on_a_mixture_and_by_documents(
    texts: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = prepare_mixture(f"{texts[0]}:3,{texts[1]}:1", tokenizer="bytes")
    result = train(tiny_config(Path(data), tmp_path / "run", packing="documents", max_steps=4))
    assert result.step == 4
    said = capsys.readouterr().err
    assert "documents: " in said
    assert "75.0% of the rows" in said
    assert np.isfinite(result.losses).all()


def test_length_in_tokens_and_epochs(tmp_path: Path) -> None:
    folder = prepared(tmp_path / "sums")
    split = open_shards(folder).splits["train"]
    batches = Batches(split, block_size=32, batch_size=8, seed=0)
    config = TrainConfig(model=GPTConfig(block_size=32), batch_size=8, max_tokens=100_000)
    assert with_budget(config, batches).max_steps == -(-100_000 // (8 * 32))
    assert with_budget(TrainConfig(max_steps=7), batches).max_steps == 7
    with pytest.raises(UsageError, match="exclude each other"):
        TrainConfig(max_tokens=5, max_epochs=1.0)
    run = train(tiny_config(folder, tmp_path / "run", max_epochs=1.0, max_steps=999))
    assert 0 <= run.step - batches.windows_per_epoch / batches.batch_size < 1


@pytest.mark.parametrize(
    "changes",
    [{}, {"packing": "lines"}, {"packing": "documents"}, {"packing": "best_fit"}, {"packing": "sliding", "stride": 5}],
    ids=str,
)
def test_an_epoch_has_every_row_once(tmp_path: Path, changes: dict[str, Any]) -> None:
    """So many steps as max_epochs comes to read every target of the text that packing keeps once for each epoch."""
    data = open_shards(prepared(tmp_path / "sums"))
    config = tiny_config(data.folder, tmp_path / "run", max_epochs=1.0, batch_size=1, **changes)
    batches, counted = training_batches(config, data, get_tokenizer("bytes"))
    assert isinstance(batches, Batches)
    n_targets = sum(batches.batch(step).n_targets for step in range(counted.max_steps))
    assert n_targets == sum(packing.n_targets for packing in batches.packings) > 500
    twice = training_batches(replace(config, max_epochs=2.5), data, get_tokenizer("bytes"))[1]
    assert twice.max_steps == -(-5 * counted.max_steps // 2)


def decoded(folder: Path, split: str) -> list[str]:
    shards = open_shards(folder)
    tokenizer = shards.tokenizer()
    return [tokenizer.decode(shards.splits[split].document(i)) for i in range(shards.splits[split].n_documents)]


def test_labels_and_sources_as_control_codes(shared_data: Path) -> None:
    source = shared_data / "hf_dummy" / "imdb__plain_text.zip"
    plain = decoded(prepare("imdb", source=source, tokenizer="bytes"), "test")
    labels = [document[1] for document in load_dataset("imdb").documents(Files.at(source), "test")]
    folders = {kind: prepare("imdb", source=source, tokenizer="bytes", control_codes=kind)
               for kind in ("source", "label", "source_tokens", "label_tokens")}  # fmt: skip
    assert len({*folders.values()}) == 4
    assert decoded(folders["source"], "test") == [f"imdb: {text}" for text in plain]
    assert decoded(folders["label"], "test") == [f"{label}: {text}" for label, text in zip(labels, plain, strict=True)]
    assert decoded(folders["source_tokens"], "test") == [f"<|imdb|>{text}" for text in plain]
    coded = open_shards(folders["label_tokens"])
    assert coded.meta.vocab_size == 259
    assert coded.meta.splits["test"].bytes == sum(len(text.encode()) for text in plain)
    first = coded.splits["test"].document(0).tolist()
    assert first == [257 + ("neg", "pos").index(labels[0]), *plain[0].encode()]
    with pytest.raises(UsageError, match="ptb states no labels: use --control_codes source_tokens"):
        prepare("ptb", source=shared_data / "ptb", control_codes="label_tokens", tokenizer="bytes")
    assert prepare(folders["label"], control_codes="label") == folders["label"]
    with pytest.raises(UsageError, match="is prepared already"):
        prepare(folders["label"], control_codes="source")


def test_a_long_document_has_its_code_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minilm.text.encode.PIECE_CHARS", 50)
    monkeypatch.setattr("minilm.text.encode.BATCH_CHARS", 100)
    texts = [f"{i} " + "word " * 60 for i in range(9)]
    (tmp_path / "book.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    folder = prepare(tmp_path / "book.jsonl", tokenizer="bytes", control_codes="source_tokens")
    found = decoded(folder, "train") + decoded(folder, "val")
    assert sorted(found) == sorted(f"<|book|>{text}" for text in texts)


def test_new_tokens_reach_a_pretrained_model(
    texts: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    plain = prepare(texts[0], tokenizer="bytes")
    before = train(tiny_config(plain, tmp_path / "before", max_steps=2)).model
    data = prepare_mixture(f"{texts[0]}:1,{texts[1]}:1", tokenizer="bytes", control_codes="source_tokens")
    shards = open_data(data)
    assert shards.meta.vocab_size == 259  # both parts have both codes
    config = tiny_config(Path(data), tmp_path / "after", init=str(tmp_path / "before"), max_steps=3, lr=1e-3)
    result = train(replace(config, model=GPTConfig()))
    assert "2 new tokens" in capsys.readouterr().err
    assert result.model.config.vocab_size == 259
    rows = result.model.wte.weight
    assert torch.allclose(rows[257], before.wte.weight[:257].mean(0), atol=0.02)
    assert not torch.equal(rows[257], rows[258])  # they have learnt since
    with pytest.raises(UsageError, match="was trained with tokenizer"):
        train(replace(config, data=str(prepare(texts[0], tokenizer="chars")), out_dir=str(tmp_path / "x")))


def test_tokens_attend_within_their_document(tmp_path: Path) -> None:
    folder = prepared(tmp_path / "sums")
    config = tiny_config(folder, tmp_path / "run", attend="document", packing="best_fit", max_steps=2)
    result = train(config)
    data = open_shards(folder)
    batches, _ = training_batches(config, data, result.tokenizer)
    batch = batches.batch(0)
    assert batch.documents is not None
    ids, documents = torch.from_numpy(batch.ids), torch.from_numpy(batch.documents)
    with torch.no_grad():
        changed = ids.clone()
        row = int((documents == 1).any(1).int().argmax())
        changed[row][documents[row] == 0] = 65
        logits, other = result.model(ids, documents), result.model(changed, documents)
        later = documents[row] > 0
        assert later.any()
        assert torch.allclose(logits[row][later], other[row][later], atol=1e-5)
    split = data.splits["val"]
    setup = settle(config, result.model, torch.device("cpu"))
    within = evaluate(result.model, setup, split, 500, attend="document")
    assert within != evaluate(result.model, setup, split, 500)
    assert result.val_loss == pytest.approx(within, abs=1e-6)


def test_contexts_grow_and_tokens_a_step_stay(tmp_path: Path) -> None:
    folder = prepared(tmp_path / "sums")
    config = tiny_config(folder, tmp_path / "run", context_schedule="8:0.3,16:0.6", max_steps=10, batch_size=4)
    batches, _ = training_batches(config, open_shards(folder), get_tokenizer("bytes"))
    shapes = [batches.batch(step).ids.shape for step in range(10)]
    assert shapes == [(16, 8)] * 3 + [(8, 16)] * 3 + [(4, 32)] * 4
    assert np.array_equal(np.concatenate([batches.batch(4, rank, 2).ids for rank in range(2)]), batches.batch(4).ids)
    rows = np.concatenate([batches.batch(step).ids for step in range(3)])
    assert len({row.tobytes() for row in rows}) > len(rows) - 3  # of one epoch; the text repeats itself a little
    result = train(config)
    assert np.isfinite(result.losses).all()
    assert result.tokens == 10 * 4 * 32
    half = train(replace(config, out_dir=str(tmp_path / "cut"), micro_batch_size=1))
    assert np.allclose(half.losses, result.losses, atol=1e-4)


@pytest.mark.parametrize("schedule", ["8", "8:2", "5:0.5", "64:0.5", "16:0.3,8:0.5", "8:0.5,16:0.3", "8:0.1,8:0.3"])
def test_wrong_schedules_of_contexts(schedule: str, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, tmp_path, context_schedule=schedule)
    with pytest.raises(UsageError, match="context_schedule"):
        parse_contexts(config)
