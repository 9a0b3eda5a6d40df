"""What can be watched: samples that training does not feel, loggers, plots."""

from __future__ import annotations

import importlib
import json
import struct
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from training_helpers import tiny_config

from minilm.cli import run_door
from minilm.errors import UsageError
from minilm.log import Metrics, read_metrics
from minilm.picture import as_text
from minilm.plot_cli import curve
from minilm.text.prepare import prepare
from minilm.training.loop import train


def test_samples_change_no_bit_of_training(data: Path, tmp_path: Path) -> None:
    config = {"resid_dropout": 0.1, "max_steps": 6, "eval_every_steps": 2}
    plain = train(tiny_config(data, tmp_path / "plain", **config))
    watched = train(tiny_config(data, tmp_path / "watched", eval_samples=2, **config))
    assert watched.losses == plain.losses
    for a, b in zip(plain.model.parameters(), watched.model.parameters(), strict=True):
        assert torch.equal(a, b)
    rows = [json.loads(line) for line in (watched.run / "samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 2, 4, 4, 6, 6]
    assert all(isinstance(row["text"], str) for row in rows)
    assert len({row["text"] for row in rows}) > 1


def test_coherence_of_tales_is_logged(tmp_path: Path) -> None:
    folder = prepare("tales", max_docs=300)
    run = train(tiny_config(folder, tmp_path / "run", max_steps=2, eval_every_steps=1, eval_samples=3)).run
    shares = [row["coherence"] for row in read_metrics(run / "metrics.jsonl") if "coherence" in row]
    assert len(shares) == 2
    assert all(0 <= share <= 1 for share in shares)


def test_tensorboard_gets_every_number(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(tiny_config(data, tmp_path / "run", max_steps=4, eval_every_steps=2, loggers=("tensorboard",))).run
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    rows = read_metrics(run / "metrics.jsonl")
    for name in ("loss", "val_loss", "lr"):
        logged = [(event.step, event.value) for event in events.Scalars(name)]
        assert logged == [(row["step"], pytest.approx(row[name], rel=1e-6)) for row in rows if name in row]


@pytest.mark.slow
def test_wandb_gets_every_number(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real library, offline; its log is read as it lies on the disk (LevelDB's log format behind 7 bytes)."""
    pytest.importorskip("wandb")
    record_of: Any = importlib.import_module("wandb.proto.wandb_internal_pb2").Record.FromString
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = train(tiny_config(data, tmp_path / "run", max_steps=4, eval_every_steps=2, loggers=("wandb",))).run
    (path,) = (run / "wandb").glob("offline-run-*/*.wandb")
    records: list[Any] = []
    for _ in range(600):  # its own process writes, some time after `finish`
        content, at, records = path.read_bytes(), 7, []
        assert len(content) < 1 << 15  # one block: a record is a check sum, a length, 1 for whole, and itself
        while at + 7 <= len(content):
            n_bytes, kind = struct.unpack("<4xHB", content[at : at + 7])
            assert kind == 1
            if at + 7 + n_bytes > len(content):
                break
            records.append(record_of(content[at + 7 : at + 7 + n_bytes]))
            at += 7 + n_bytes
        if records and records[-1].WhichOneof("record_type") == "exit":
            break
        time.sleep(0.1)
    names, logged = [], []
    for record in records:
        if record.WhichOneof("record_type") == "run":
            names.append((record.run.project, record.run.display_name))
        if record.WhichOneof("record_type") == "history":
            logged.append({".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item})
    assert names == [("minilm", "run")]
    rows = read_metrics(run / "metrics.jsonl")
    for name in ("loss", "val_loss", "lr", "grad_norm"):
        assert [(row["step"], row[name]) for row in logged if name in row] == [
            (row["step"], row[name]) for row in rows if name in row
        ]


def test_loggers_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in ("tensorboard", "wandb"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(UsageError, match=f"{name} needs the extra `log`"):
            Metrics(tmp_path / "metrics.jsonl", loggers=(name,))
    with pytest.raises(UsageError, match="loggers are tensorboard and wandb"):
        tiny_config(Path("x"), Path("y"), loggers=("csv",))


# --- plots


def test_text_picture() -> None:
    lines = as_text([("up", [0, 1, 2], [0.0, 0.5, 1.0]), ("flat", [0, 2], [1.0, 1.0])], width=21, height=3).splitlines()
    assert lines[0] == "1 |x" + " " * 19 + "x"  # the second curve is drawn over the first
    assert lines[1] == "  |" + " " * 10 + "o"
    assert lines[2] == "0 |o"
    assert lines[4].split() == ["0", "2"]
    assert lines[5:] == ["  o up", "  x flat"]
    assert as_text([("none", [], [])]) == "nothing to draw"
    assert "3" in as_text([("one", [3], [3.0])])  # no width, no height: no division by nothing


def written(run: Path, losses: list[float]) -> Path:
    run.mkdir()
    metrics = Metrics(run / "metrics.jsonl")
    for i, loss in enumerate(losses):
        metrics.write(step=10 * i, val_loss=loss)
    (run / "config.toml").write_text("batch_size = 4\nblock_size = 8\n")
    return run


def test_plot_of_two_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = written(tmp_path / "a", [3.0, 2.0, 1.0]), written(tmp_path / "b", [3.0, 2.5, 2.4])
    assert run_door("plot", [str(a), str(b), "--target", "2", "--x", "tokens"]) == 0
    out = capsys.readouterr().out
    assert f"{a}: val_loss 2 reached at tokens 320" in out
    assert f"{b}: val_loss 2 not reached" in out
    assert out.splitlines()[0].startswith("3 |")
    assert run_door("plot", [str(a), "--metric", "vall_loss"]) == 2
    assert "did you mean val_loss?" in capsys.readouterr().err
    assert run_door("plot", [str(tmp_path)]) == 2
    assert "holds no metrics.jsonl" in capsys.readouterr().err


def test_plot_of_broken_metrics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What can be drawn is drawn; else one sentence."""
    run = written(tmp_path / "run", [3.0, 2.0])
    path = run / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"step": 20, "val_loss": NaN}\n{"step": 30, "val_loss": Infinity}\n[1, 2]\n"x"\nnull\n')
        file.write(
            '{"val_loss": 1.0}\n{"step": "a", "val_loss": 1.0}\n{"step": 40, "val_loss": true}\n{"step": 50, "va'
        )
    assert curve(run, "val_loss", "step") == ([0, 10], [3.0, 2.0])
    assert run_door("plot", [str(run), "--target", "2.5"]) == 0
    assert "reached at step 10" in capsys.readouterr().out
    for content in (b"", b"\xff\xfe\x00", b'{"step": 1, "val_loss": NaN}\n', b"[" * 100_000):
        path.write_bytes(content)
        assert run_door("plot", [str(run)]) == 2
        assert "logged no 'val_loss' that can be drawn" in capsys.readouterr().err


def test_a_picture_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    run = written(tmp_path / "run", [3.0, 2.0])
    for name in ("missing/curves.svg", "curves.xyz"):
        assert run_door("plot", [str(run), "--out", str(tmp_path / name)]) == 2
        assert "cannot be drawn" in capsys.readouterr().err


def test_plot_to_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    run = written(tmp_path / "a", [3.0, 2.0, 1.0])
    for name in ("curves.svg", "curves.png"):
        assert run_door("plot", [str(run), "--out", str(tmp_path / name)]) == 0
    assert ElementTree.parse(tmp_path / "curves.svg").getroot().tag.endswith("svg")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert run_door("plot", [str(run), "--out", str(tmp_path / "curves.xyz")]) == 2
    assert "cannot be drawn" in capsys.readouterr().err
