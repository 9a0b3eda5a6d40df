"""What a user gets wrong in a training run: one sentence, exit 2, before a run that is there is touched."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from training_helpers import data as data
from training_helpers import first as first
from training_helpers import tiny_config

from minilm import cli
from minilm.errors import UsageError
from minilm.text.prepare import prepare
from minilm.training.loop import Result, train
from minilm.training.setup import settle


def files(run: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"freeze": ("top:0",)}, "no parameter is called 'top:0'"),
        ({"lora_rank": 2}, "name them with --init"),
        ({"swap_activation": "swiglu"}, "have different weights: take --activation instead"),
        ({"swap_activation": "relu", "swap_at_step": 10}, "--swap_at_step 10 comes after the last of 10 steps"),
        ({"fix_norms_every_steps": 2}, "add --norm fixed"),
        ({"eval_metrics": ("perplexty",)}, "there is no 'perplexty'"),
        ({"eval_metrics": ("seq-rep-4",)}, "set --eval_samples to 2 or more"),
        ({"teacher": "/no/where", "distill": 1.0}, "there is no /no/where"),
        ({"context_schedule": "8:0.5,4:0.7"}, "must grow in both"),
        ({"packing": "lines", "order": "random"}, "leave out --packing lines or --order random"),
        ({"block_size": 9999}, "set --block_size 4219 or less"),
        ({"vocab_size": 100}, "set --vocab_size 257"),
        ({"prompt_end": "ANSWER", "prompt_weight": 0.0}, "ANSWER"),
        ({"precision": "tf32"}, "this machine runs fp32"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_run_that_cannot_begin_overwrites_nothing(
    data: Path, first: Result, changes: dict[str, Any], message: str
) -> None:
    before = files(first.run)
    with pytest.raises(UsageError, match=message) as caught:
        train(tiny_config(data, first.run, existing="overwrite", **changes))
    assert "\n" not in str(caught.value)
    assert files(first.run) == before


def test_a_teacher_of_another_tokenizer_or_a_shorter_context(
    data: Path, first: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("To be or not to be. " * 50)
    other = Path(prepare(str(tmp_path / "text.txt"), tokenizer="chars"))
    taught = tiny_config(other, tmp_path / "run", teacher=str(first.run), distill=1.0)
    with pytest.raises(UsageError, match="was trained with tokenizer bytes"):
        train(taught)
    longer = tiny_config(data, tmp_path / "run", teacher=str(first.run), distill=1.0, block_size=64, position="rope")
    with pytest.raises(UsageError, match="the teacher sees 32 tokens, the student 64"):
        train(longer)
    assert not (tmp_path / "run").exists()


def test_a_logger_that_is_not_installed(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minilm.log.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="--loggers wandb needs the extra `log`"):
        train(tiny_config(data, tmp_path / "run", loggers=("wandb",)))
    assert not (tmp_path / "run").exists()


def test_a_run_that_ended_before_it_saved_says_how_to_start_anew(data: Path, tmp_path: Path) -> None:
    """--resume would be refused too."""
    config = tiny_config(data, tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text("lr = 1.0\n")
    with pytest.raises(UsageError, match="has saved nothing: pass --overwrite"):
        train(config)
    assert train(replace(config, existing="overwrite", max_steps=1)).step == 1
    with pytest.raises(UsageError, match="continue it with --resume"):
        train(config)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config", "smal"], "did you mean small?"),
        (["--rounding", "kahan"], "--rounding does nothing without --precision pure_bf16 or pure_fp16"),
        (["--data", "{data}", "--freeze", "heads", "--max_steps", "4"], "nearest are head"),
        (["--data", "{data}", "--device", "tpu"], "tpu"),
        (["--resume", "{data}"], "holds no run to resume"),
        (["--data", "{data}", "--max_steps", "4", "--out_dir", "{data}/meta.json"], "meta.json is a file"),
        (["--data", "{data}", "--max_steps", "4", "--out_dir", "/proc/run"], "cannot be written"),
    ],
)
def test_the_door_ends_with_2(
    data: Path, words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.format(data=data) for word in words]
    assert cli.run_door("train", ["--out_dir", str(tmp_path / "run"), *words]) == 2
    said = capsys.readouterr().err.splitlines()
    assert sum(line.startswith("error: ") for line in said) == 1
    assert message in said[-1]


def test_what_a_resumed_run_cannot_change(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Optimizer state of another kind, or options that the run's own setup would silently overrule."""
    run = tmp_path / "run"
    train(tiny_config(data, run, max_steps=2))
    before = files(run)
    for words in (
        "--optimizer lion",
        "--precision pure_fp16",
        "--micro_batch_size 2",
        "--batch_size 4",
        "--freeze mlp",
        "--tokenizer chars",
    ):
        assert cli.run_door("train", ["--resume", str(run), "--max_steps", "4", *words.split()]) == 2
        assert f"{words.split()[0]} is settled where a run begins" in capsys.readouterr().err
    assert cli.run_door("train", ["--resume", str(run), "--max_steps", "1"]) == 2
    assert "has 2 steps, more than 1: go on with a longer --max_steps" in capsys.readouterr().err
    assert files(run) == before
    assert cli.run_door("train", ["--resume", str(run), "--max_steps", "3", "--optimizer", "adamw"]) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="no such lock")
def test_two_processes_do_not_train_in_one_run(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "a run"
    train(tiny_config(data, run, max_steps=2))
    before, held = files(run), "import sys; from pathlib import Path; from minilm.training.setup import holding\n"
    held += f"with holding(Path({str(run)!r})): print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", held], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        for existing in ("resume", "overwrite"):
            with pytest.raises(UsageError, match="another process trains in"):
                train(tiny_config(data, run, max_steps=4, existing=existing))
        assert files(run) == before
        other.kill()  # the system frees what a killed process held
    with pytest.raises(UsageError, match=f"--resume '{run}'"):  # to be pasted into a shell
        train(tiny_config(data, run, max_steps=4))
    assert train(tiny_config(data, run, max_steps=4, existing="resume")).step == 4


def test_a_run_that_stopped_early_stays_where_it_stopped(data: Path, tmp_path: Path) -> None:
    """Until it is given more patience."""
    config = tiny_config(data, tmp_path / "run", lr=0.0, patience=1, eval_every_steps=2, max_steps=20)
    stopped = train(config)
    assert stopped.step == 4
    assert not stopped.interrupted
    again = train(replace(config, existing="resume"))
    assert (again.step, again.losses, again.interrupted) == (4, [], False)
    assert again.val_loss == stopped.val_loss
    assert train(replace(config, existing="resume", patience=2)).step == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 9}, "2 ranks do not divide batch_size 9: choose a multiple"),
        ({"parallel": "fsdp", "compile": "on"}, "leave out --compile on, or take --parallel ddp"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_ranks_cannot_do_is_told_before_a_run_is_opened(
    first: Result, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        settle(tiny_config(Path("x"), Path("y"), **changes), first.model, torch.device("cpu"), world=2)
