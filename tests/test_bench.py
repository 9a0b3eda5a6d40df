"""`minilm bench` and the harness of bench/: what they measure is what the loop does."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from training_helpers import prepared, tiny_config

from minilm import bench, runtime
from minilm.config import GPTConfig, TrainConfig
from minilm.errors import UsageError
from minilm.text.mixture import open_data
from minilm.training.feed import training_batches
from minilm.training.loop import train

BENCH = Path(__file__).resolve().parent.parent / "bench"
MODEL = GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=16, vocab_size=257)
CONFIG = TrainConfig(
    model=MODEL, batch_size=4, lr=1e-2, max_steps=3, schedule="constant", warmup_steps=0, precision="fp32",
    compile="off", micro_batch_size=2, device="cpu", eval_every_steps=0, save_every_steps=0,
)  # fmt: skip


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    spec = importlib.util.spec_from_file_location(name, BENCH / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_steps_are_the_loops(tmp_path: Path, optimizer: str) -> None:
    """On the batches of a run, the losses of the benchmark's steps are those of train()."""
    data = prepared(tmp_path / "data")
    config = tiny_config(
        data, tmp_path / "run", optimizer=optimizer, max_steps=4, schedule="constant", warmup_steps=0, vocab_size=257
    )
    shards = open_data(config.data, config.mix_temperature)
    batches, _ = training_batches(config, shards, shards.tokenizer())
    steps, found = bench.Steps(config), []
    for i in range(config.max_steps):
        batch = batches.batch(i)
        steps.ids, steps.targets = (torch.from_numpy(x).long() for x in (batch.ids, batch.targets))
        found.append(steps.step())
    assert train(config).losses == pytest.approx(found, rel=1e-6)


def test_training_and_decoding_give_figures() -> None:
    trained = bench.training(CONFIG, n_steps=2)
    assert trained.precision == "fp32"
    assert not trained.compiled
    assert trained.tokens_per_second > 0
    assert 0 < trained.mfu < 1
    told = bench.decoding(MODEL, 1e12, torch.device("cpu"), n_prompt=4, n_new=8)
    assert told.tokens_per_second > 0
    assert 0 < told.bandwidth_share < 1


def test_a_slow_format_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product that would take longer than a second is not run: its rate is that of the small one."""
    clock = iter(range(0, 1000, 5))  # every look at the clock is five seconds later
    monkeypatch.setattr(runtime.time, "perf_counter", lambda: float(next(clock)))
    rate = runtime.matmul_flops(torch.device("cpu"), torch.float32, rows=64, width=32)
    assert rate == pytest.approx(2.0 * 4 * 32 * 128 / 5.0)


def test_the_door_prints_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_shortened", lambda preset, device: CONFIG)
    monkeypatch.setattr(bench, "READ_BYTES", 1 << 20)
    monkeypatch.setattr(runtime, "matmul_flops", lambda *_, **__: 1e12)  # where bf16 is emulated it takes seconds
    assert bench.main(["tiny", "--device", "cpu", "--steps", "1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told) == {"limits", "versions", "tiny", "tiny decoding"}
    assert told["tiny"]["peak_bytes"] >= 0
    assert bench.main(["tiny", "--device", "cpu", "--steps", "1"]) == 0
    assert "tiny: training 4 x 16 (fp32, eager)" in capsys.readouterr().out


def test_the_door_refuses() -> None:
    with pytest.raises(UsageError, match="preset"):
        bench.main(["nothing_such", "--device", "cpu"])
    with pytest.raises(UsageError, match="option"):
        bench.main(["--stepps", "3"])


def test_report_has_medians_of_ratios_within_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load("works", monkeypatch)
    run = load("run", monkeypatch)
    monkeypatch.setattr(run, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(run, "RESULTS", tmp_path / "run.jsonl")
    speeds = {"minilm": (100.0, 300.0, 30.0), "transformers": (50.0, 100.0, 20.0)}
    lines = [
        {"work": "train-4x256", "contender": who, "round": i, "values": {"tokens/s": value, "MiB": 2048.0}}
        | {"machine": "a machine", "date": "2026-11-25", "commit": "0123456789", "load": 1.0}
        for who, values in speeds.items()
        for i, value in enumerate(values)
    ]
    run.RESULTS.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    run.report()
    page = run.PAGE.read_text("utf-8")
    assert "| minilm | 3 | 100 | 2,048 |  |  |" in page
    assert "| transformers | 3 | 50 | 2,048 | 2.00 | 4.5 |" in page


def test_peers_that_are_not_there_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    works = load("works", monkeypatch)
    work = works.WORKS["train-4x256"]
    assert work.missing("nanogpt", "") == "give --nanogpt PATH"
    assert work.missing("nanogpt", "somewhere") == ""
    assert work.missing("no_such_package fused", "") == "no_such_package is not installed"
    monkeypatch.setattr(works, "emulated", lambda: True)
    assert "emulates" in work.missing("minilm pure_bf16", "")
    assert work.missing("minilm", "") == ""
