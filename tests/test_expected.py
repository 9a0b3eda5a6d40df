"""Curves of presets: what lags behind them, which runs they are for, and that those shipped fit the presets."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from training_helpers import prepared, tiny_config

from minilm.options import PRESETS, parse
from minilm.text.prepare import prepare
from minilm.text.shards import open_shards
from minilm.training.expected import Curve, expected
from minilm.training.watch import Watch


def test_warning_when_a_preset_had_learnt_more(capsys: pytest.CaptureFixture[str]) -> None:
    """A curve of 256 tokens a step: 2.9 after 10 steps, 2 after 20, 1 after 40."""
    curve = Curve("sums", 256, (10, 20, 40), (2.9, 2.0, 1.0))
    assert [curve.best_until(step) for step in (9, 10, 39.9, 1000)] == [None, 2.9, 2.0, 1.0]
    assert curve.lag(39, 256, 2.95) is None  # before the first point, nothing is known
    assert curve.lag(40, 256, 2.9) is None
    assert curve.lag(40, 128, 2.95) is None  # half the batch: half as far
    assert curve.lag(80, 128, 2.95) == "the preset sums had 2.9000 after a quarter of this and now 1.0000"
    assert curve.lag(40, 512, 2.95)  # twice the batch is no excuse
    for step in range(1, 500):  # no curve lags behind itself
        assert (loss := curve.best_until(step)) is None or curve.lag(step, 256, loss) is None
    config = tiny_config(Path("x"), Path("y"), max_steps=100, warmup_steps=5)
    slow = Watch(config, lambda: 3.0, curve)
    for step in (40, 60, 80):
        slow.validated(step, 2.95, 2.95)
    said = capsys.readouterr().err
    assert said.count("little is being learnt: validation loss 2.9500 after 40 steps, the preset sums had 2.9000") == 1
    assert said.count("learnt") == 1


def test_curves_are_for_equal_shapes_on_equal_text(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, shards = tiny_config(data, tmp_path / "run"), open_shards(data)
    config = replace(config, model=replace(config.model, vocab_size=257))
    record = {"data": "sums", "train_tokens": shards.splits["train"].n_tokens, "vocab_size": 257, "n_layer": 2}
    record |= {"n_embd": 32, "block_size": 32, "tokens_per_step": 256, "steps": [4], "losses": [5.0]}
    (tmp_path / "few.cpu.json").write_text(json.dumps(record))
    monkeypatch.setattr("minilm.training.expected.PRESETS", tmp_path)
    assert expected(config, shards) == Curve("few", 256, (4,), (5.0,))
    assert expected(replace(config, lr=1.0, model=replace(config.model, activation="relu")), shards)
    assert expected(replace(config, init="x"), shards) is None
    assert expected(replace(config, model=replace(config.model, n_layer=3)), shards) is None
    assert expected(config, open_shards(prepared(tmp_path / "other", n_train=31))) is None


def test_shipped_curves_are_of_the_presets_as_they_are() -> None:
    shipped = sorted(PRESETS.glob("*.json"))
    assert {path.name.partition(".")[0] for path in shipped} >= {"shakespeare_char", "tiny"}
    for path in shipped:
        preset, device, _ = path.name.split(".")
        config, record = parse(["--config", preset], device).config, json.loads(path.read_text())
        assert record["data"] == config.data
        for name in ("n_layer", "n_embd", "block_size"):
            assert record[name] == getattr(config.model, name)
        assert record["tokens_per_step"] == config.batch_size * config.model.block_size
        assert record["made"]["max_steps"] == config.max_steps
        assert record["steps"] == sorted(set(record["steps"]))
        assert record["losses"][-1] < record["losses"][0]


@pytest.mark.slow
def test_tiny_s_curve_is_of_the_tales_as_they_are(tmp_path: Path) -> None:
    folder = prepare("tales")
    config = parse(["--config", "tiny", "--data", str(folder)], "cpu").config
    config = replace(config, model=replace(config.model, vocab_size=open_shards(folder).meta.vocab_size))
    curve = expected(config, open_shards(folder))
    assert curve
    assert curve.preset == "tiny"
