"""Mixing from the command line's words to the rows of a batch, and runs whose length is in tokens or epochs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from training_helpers import prepared, tiny_config

from minilm.config import TrainConfig
from minilm.errors import UsageError
from minilm.text.batches import Batches, eval_batches
from minilm.text.mixture import MixedFolder, Part, open_data, parse_mixture, prepare_mixture
from minilm.text.shards import open_shards
from minilm.training.feed import with_budget
from minilm.training.loop import train


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
    data = open_shards(folder)
    config = TrainConfig(batch_size=4, max_tokens=100_000)
    T = config.model.block_size
    assert with_budget(config, data).max_steps == -(-100_000 // (4 * T))
    n_tokens = data.splits["train"].n_tokens - 1
    assert with_budget(TrainConfig(batch_size=4, max_epochs=2.5), data).max_steps == -(-5 * n_tokens // (2 * 4 * T))
    assert with_budget(TrainConfig(max_steps=7), data).max_steps == 7
    with pytest.raises(UsageError, match="exclude each other"):
        TrainConfig(max_tokens=5, max_epochs=1.0)
    run = train(tiny_config(folder, tmp_path / "run", max_epochs=1.0, max_steps=999))
    batches = Batches(data.splits["train"], block_size=run.model.config.block_size, batch_size=8, seed=0)
    assert 0 <= run.step - batches.steps_per_epoch < 2
