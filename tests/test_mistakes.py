"""What a user gets wrong in a training run: one sentence, exit 2, before a run that is there is touched."""

from __future__ import annotations

import re
import shlex
import shutil
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
from minilm.model.hub import step_folders
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


@pytest.mark.parametrize("lora", [False, True])
def test_a_damaged_checkpoint_says_which_older_one_to_go_on_from(
    data: Path, first: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str], lora: bool
) -> None:
    """Its advice is followed to the letter. What is damaged too is never advised."""
    run, whole = tmp_path / "a run", tmp_path / "whole"
    rank = {"lora_rank": 2, "init": str(first.run)} if lora else {}
    train(tiny_config(data, whole, max_steps=6, save_every_steps=2, keep_checkpoints=9, **rank))
    newest, middle, oldest = [run / folder.name for folder in reversed(step_folders(whole))]
    adapter = ["adapter/adapter_model.safetensors"] if lora else []

    def refused(*damaged: Path) -> str:
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(whole, run)
        for path in damaged:
            path.write_bytes(path.read_bytes()[:50])
        before = files(run)
        assert cli.run_door("train", ["--resume", str(run), "--max_steps", "7", "--device", "cpu"]) == 2
        assert files(run) == before
        return capsys.readouterr().err.splitlines()[-1]

    for name in ("train_state.pt", "model.safetensors", "state.json", "config.json", *adapter):
        told = refused(newest / name)
        assert str((newest / name).parent if name in adapter else newest / name) in told
        assert told.endswith(f": remove '{newest}', then `python train.py --resume '{run}'` goes on from step_000004")
    told = refused(newest / "model.safetensors", middle / "train_state.pt")
    found = re.fullmatch(r"error: .*: remove (.+), then `python train.py (.+)` goes on from step_000002", told)
    assert found is not None
    for folder in shlex.split(found[1]):
        shutil.rmtree(folder)
    assert step_folders(run) == [oldest]
    assert cli.run_door("train", [*shlex.split(found[2]), "--device", "cpu"]) == 0
    assert "after step 2" in capsys.readouterr().err
    assert step_folders(run)[-1].name == "step_000006"
    told = refused(*(folder / "train_state.pt" for folder in (newest, middle, oldest)))
    assert told.endswith("has no older whole checkpoint: start anew with --overwrite, or from its weights with --init")
    shutil.rmtree(run)
    shutil.copytree(whole, run)
    if lora:  # of the run: no older checkpoint would help, and none is blamed
        (run / "start.safetensors").write_bytes(b"")
        with pytest.raises(UsageError, match=r"start\.safetensors") as caught:
            train(tiny_config(data, run, max_steps=7, existing="resume", **rank))
        assert "remove" not in str(caught.value)
    with pytest.raises(UsageError, match="another model than the run's config asks for: use --overwrite or --init"):
        train(tiny_config(data, run, max_steps=9, existing="resume", n_layer=1))


def test_resuming_with_the_command_that_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Data under the name that it was given goes on; other data does not, whatever it is given as."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("minilm.evaluation.text_metrics.coherence", lambda *words, **options: "")  # takes seconds
    for name in ("one", "two"):
        Path(f"{name}.txt").write_text("".join(f"{name} and {n} " for n in range(900)))
    two = str(prepare("two.txt", tokenizer="bytes"))
    small = "--tokenizer bytes --n_layer 1 --n_embd 16 --n_head 2 --block_size 32 --batch_size 2 --eval_tokens 300"
    small += " --precision fp32 --compile off --device cpu --eval_every_steps 0"

    def door(given: str, steps: int, *words: str) -> int:
        return cli.run_door("train", ["--data", given, *small.split(), "--max_steps", str(steps), *words])

    mixed = "one.txt:0.5,two.txt:0.5"
    for given, others in {
        "tales:megabytes=0.02": ["tales:megabytes=0.03", "tales", "one.txt", mixed],
        "one.txt": ["two.txt", two, "tales", "nothing.txt"],
        mixed: ["one.txt:0.6,two.txt:0.4", "two.txt:0.5,one.txt:0.5", "one.txt"],
    }.items():
        out = ["--out_dir", f"run {given[0:3]}{len(given)}"]
        assert door(given, 1, *out) == 0
        assert door(given, 2, *out, "--resume") == 0
        assert "after step 1" in capsys.readouterr().err
        for other in others:
            assert door(other, 3, *out, "--resume") == 2
            told = capsys.readouterr().err.splitlines()[-1]
            assert told.startswith(f"error: {out[1]} trains on ")
            assert f", not on {other}: leave out --data" in told
        assert door(given, 3, *out, "--resume", "--control_codes", "source") == 2
        assert "--control_codes is settled where a run begins" in capsys.readouterr().err
    out, [one] = ["--out_dir", "run one7"], Path("shards").glob("one-*")
    shutil.copytree(one, "copy")
    assert door("copy", 3, *out, "--resume") == 0  # the same tokens
    shutil.rmtree(one)
    assert door("copy", 4, *out, "--resume") == 0  # they were moved
    capsys.readouterr()
    assert door("one.txt", 5, *out, "--resume") == 2
    assert f"{one} does not exist: make one with `minilm data prepare`" in capsys.readouterr().err


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
