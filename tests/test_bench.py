"""`minilm bench` and the harness of bench/: what they measure is what the loop does."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from training_helpers import prepared, tiny_config

from minilm import bench, runtime
from minilm.config import GPTConfig, TrainConfig
from minilm.errors import UsageError
from minilm.model.gpt import GPT
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
        found.append(float(steps.step()))
    assert train(config).losses == pytest.approx(found, rel=1e-6)


def test_training_and_decoding_give_figures() -> None:
    trained = bench.training(CONFIG, n_steps=2)
    assert trained.precision == "fp32"
    assert not trained.compiled
    assert trained.tokens_per_second > 0
    assert 0 < trained.mfu < 1
    assert (trained.graph_breaks, trained.recompilations) == (0, 0)
    n = GPT(MODEL).num_params()
    assert trained.state_bytes == pytest.approx(4 * 3 * n, abs=64 * 4)  # a gradient, two moments; step counts
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
    with pytest.raises(UsageError, match="--steps must be 1 or more"):
        bench.main(["tiny", "--device", "cpu", "--steps", "0"])
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


def lines_of(work: str, values: dict[str, tuple[dict[str, Any], ...]]) -> list[dict[str, Any]]:
    """Lines of run.jsonl: contender -> its values in each round."""
    made = {"machine": "a machine", "date": "2026-11-25", "commit": "0123456789", "command": "python", "seconds": 60.0}
    return [
        {"work": work, "contender": who, "round": i, "values": found, "versions": {}, "load": 1.0, **made}
        for who, rounds in values.items()
        for i, found in enumerate(rounds)
    ]


def rates(*values: float, mib: float = 2048.0) -> tuple[dict[str, Any], ...]:
    return tuple({"tokens/s": value, "MiB": mib} for value in values)


def test_report_has_medians_of_ratios_within_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load("works", monkeypatch)
    report = load("report", monkeypatch)
    monkeypatch.setattr(report, "PAGE", tmp_path / "page.md")
    lines = lines_of("train-4x256", {"minilm": rates(100, 300, 30), "transformers": rates(50, 100, 20)})
    compiled = "transformers bf16 fused compiled"
    lines += [{"work": "train-4x256", "contender": compiled, "machine": "a machine", "left_out": "no bf16"}]
    report.write(lines)
    page = report.PAGE.read_text("utf-8")
    assert "| minilm | 3 |  | 100 (30–300) | 2,048 |" in page
    assert "| transformers | 3 | 2 (1.5–3) | 50 (20–100) | 2,048 |" in page
    assert "| train-4x256 | minilm | transformers | tokens/s | ≥ 4.5× | 2 (1.5–3) | no |" in page
    assert "not measured: no bf16; not run | – |" in page
    assert f"Left out, no bf16: {compiled}." in page


def test_an_aim_is_of_the_better_of_several_and_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    works, report = load("works", monkeypatch), load("report", monkeypatch)
    found = {"a": rates(10, mib=100), "b": rates(30, mib=300), "c": rates(20, mib=400), "d": rates(60, mib=200)}
    lines = lines_of("train-4x256", found)
    work, ours, peers = works.WORKS["train-4x256"], ("a", "b"), ("c", "d", "not there")

    def compared(**more: Any) -> list[float]:
        return report.compared(work, works.Aim(1.0, ours, peers, **more), lines)

    assert compared() == [0.5]  # 30 of 60
    assert compared(metric="MiB", most=True) == [0.5]  # 100 of 200
    assert compared(metric="MiB") == [2.0]  # a half is twice as good
    assert compared(of=lambda a, b: a["MiB"] - b["MiB"]) == [-300.0]  # the first of each
    assert report.compared(work, works.Aim(1.0, ours, metric="MiB", most=True), lines) == [100.0]
    assert report.compared(work, works.Aim(1.0, ("e",), peers), lines) == []


def test_a_stopped_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    works, run = load("works", monkeypatch), load("run", monkeypatch)
    monkeypatch.setattr(run, "FILE", run.JsonLines(tmp_path / "run.jsonl"))
    monkeypatch.setattr(run, "machine", lambda: "a machine")
    asked = []

    def in_a_process(*words: str, environment: dict[str, str]) -> dict[str, Any] | str:
        asked.append(words[3])
        return "it broke" if words[3] == "bad" else {"MB/s": 1.0}

    monkeypatch.setattr(run, "in_a_process", in_a_process)
    work = works.Work("shards", "a work", ("good", "bad", "fine"), "MB/s", lambda who, path: {})
    run.FILE.add(lines_of("shards", {"good": ({"MB/s": 1.0},)})[0])
    run.run([work], 2, "", 3.5)  # good is known to take a minute, others are thought to take two
    assert asked == ["bad", "fine", "good", "fine"]
    run.run([work], 2, "", 0.5)
    assert "stopped before shards, round 1, bad" in capsys.readouterr().out
    run.run([work], 2, "", 0.0)
    assert asked[4:] == ["bad"]  # what failed is tried again, what is there is not
    assert [x["left_out"] for x in run.FILE.read() if "left_out" in x] == ["it broke"]
    run.forget([work])
    assert run.FILE.read() == []


def test_peers_that_are_not_there_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    works = load("works", monkeypatch)
    work, text = works.WORKS["train-4x256"], works.WORKS["shards"]
    monkeypatch.setattr(works, "emulated", lambda: True)
    monkeypatch.setattr(works, "PEERS", (*works.PEERS, "no_such_package"))
    monkeypatch.delenv("MINILM_TEST_DATA", raising=False)
    assert work.missing("nanogpt", "") == "give --nanogpt PATH"
    assert work.missing("nanogpt", "somewhere") == ""
    assert work.missing("no_such_package fused", "") == "no_such_package is not installed"
    assert "emulates" in work.missing("minilm pure_bf16", "")
    assert "MINILM_TEST_DATA" in text.missing("minilm", "")
    assert work.missing("minilm", "") == ""


def test_every_aim_names_contenders_of_its_work(monkeypatch: pytest.MonkeyPatch) -> None:
    for work in load("works", monkeypatch).WORKS.values():
        for aim in work.aims:
            assert {*aim.ours, *aim.peers} <= set(work.contenders), work.name


def test_scaling_tells_cost_against_arithmetic_and_overhead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scaling = load("scaling", monkeypatch)
    made = {"machine": "m", "date": "2026-11-25", "commit": "0123456789", "command": "python", "load": 1.0}
    size = {"parameters": 10, "rows": 1, "T": 8, "MFU": 0.5, "MiB": 1.0, "MiB by shapes": 1.0, "as": "fp32"}
    cells = {
        "size 1M": size | {"tokens/s": 100.0, "FLOPs a token": 8.0},
        "size 3M": size | {"tokens/s": 20.0, "FLOPs a token": 20.0},
        "ranks 1": {"ranks": 1, "s a step": 2.0, "processor s a step": 2.0},
        "ranks 2": {"ranks": 2, "s a step": 1.25, "processor s a step": 2.5},
    }
    lines = [{"cell": name, "kind": name.split()[0], "values": values, **made} for name, values in cells.items()]
    lines.append({"cell": "size 1.5B", "kind": "size", "left_out": "too large", **made})
    page = "\n".join(scaling.page(lines))
    assert "| size 1M | 10 | 1 x 8 | 100 | 50% | 1.00 | 1 | 1 | fp32 |" in page
    assert "| size 3M | 10 | 1 x 8 | 20 | 50% | 0.50 | 1 | 1 | fp32 |" in page
    assert "| 2 | 1.250 | 1.60 | 2.500 | +25% |" in page
    assert "Left out, size 1.5B: too large." in page
