"""`train.py` as a user meets it: from own text to samples, resuming, and every mistake told in one sentence."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from training_helpers import prepared, sums

from minilm.cli import run_door
from minilm.log import read_metrics
from minilm.model.gpt import GPT
from minilm.model.hub import step_folders
from minilm.text.prepare import prepare
from minilm.text.tokenizer import get_tokenizer
from minilm.training.checkpoint import read_state

ROOT = Path(__file__).resolve().parent.parent
TINY = ["--n_layer=1", "--n_head=2", "--n_embd=16", "--block_size=32", "--batch_size=4", "--eval_tokens=300"]
TINY += ["--compile=off", "--precision=fp32", "--device=cpu", "--warmup_steps=2", "--eval_every_steps=0"]


@pytest.fixture
def book(tmp_path: Path) -> Path:
    folder = tmp_path / "my book"
    folder.mkdir()
    for i in range(4):
        (folder / f"{i}.txt").write_text("\n\n".join(sums(10 + 10 * i, 10)), encoding="utf-8")
    return folder


def train(*words: object) -> int:
    return run_door("train", [*TINY, *map(str, words)])


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that begins with "error: "."""
    lines = capsys.readouterr().err.splitlines()
    (error,) = [line for line in lines if line.startswith("error: ")]
    assert "Traceback" not in "".join(lines)
    return error


def test_own_text_to_samples_and_on(book: Path, tmp_path: Path) -> None:
    """The root script as a process: trains, samples, names folder and next command, which then runs."""
    run = tmp_path / "run"
    words = [sys.executable, str(ROOT / "train.py"), *TINY, "--data", str(book), "--tokenizer=bytes"]
    words += ["--out_dir", str(run)]
    done = subprocess.run([*words, "--max-steps", "4"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "128 tokens a step (1 x 4 sequences of 32), 4 steps" in done.stderr
    assert [f"--- sample {i}" in done.stdout for i in (1, 2, 3, 4)] == [True, True, True, False]
    assert f"run folder: {run}" in done.stdout
    command = done.stdout.splitlines()[-1].removeprefix("next: ").split()
    assert command[:2] == ["python", "sample.py"]
    sampled = subprocess.run(
        [sys.executable, ROOT / "sample.py", *command[2:], "--seed=1", "--max_new_tokens=9"],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert sampled.returncode == 0, sampled.stderr
    assert sampled.stdout.strip()
    metrics = read_metrics(run / "metrics.jsonl")
    assert {"step", "loss", "lr", "grad_norm", "tokens_per_second"} <= set(metrics[0])


def test_resume_and_overwrite_from_the_command_line(
    book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train("--resume") == 2
    assert "no run found in runs/" in error_of(capsys)
    assert train("--data", book, "--tokenizer=bytes", "--max_steps=3") == 0
    run = tmp_path / "runs" / "tiny-my book"
    assert read_state(step_folders(run)[-1])["step"] == 3
    capsys.readouterr()
    assert train("--data", book, "--tokenizer=bytes") == 2
    assert "holds a run: continue it with --resume" in error_of(capsys)
    assert run_door("train", ["--resume", "--max_steps", "5"]) == 0  # the newest run, with its own settings
    assert read_state(step_folders(run)[-1])["step"] == 5
    assert "resuming" in capsys.readouterr().err
    assert train("--data", book, "--tokenizer=bytes", "--max_steps=1", "--overwrite") == 0
    assert [p.name for p in step_folders(run)] == ["step_000001"]
    assert run_door("train", ["--resume", str(tmp_path / "nowhere")]) == 2
    assert "holds no run to resume: start it without --resume" in error_of(capsys)
    stray = tmp_path / "stray"
    stray.mkdir()
    (stray / "thesis.doc").write_text("precious")
    assert train("--data", book, "--tokenizer=bytes", "--out_dir", stray, "--overwrite") == 2
    assert "holds files but no run" in error_of(capsys)
    assert (stray / "thesis.doc").read_text() == "precious"


def test_init_takes_model_and_tokenizer(book: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert train("--data", book, "--tokenizer=bytes", "--max_steps=2", "--out_dir", first) == 0
    words = ["--init", str(first), "--data", str(book), "--out_dir", str(second), "--max_steps=1", "--lr=1e-6"]
    words += ["--batch_size=4", "--eval_tokens=300", "--compile=off", "--precision=fp32", "--device=cpu"]
    assert run_door("train", words) == 0
    a, b = (GPT.from_pretrained(folder) for folder in (first, second))
    assert a.config == b.config
    assert all(torch.allclose(p, q, rtol=0, atol=1e-5) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    capsys.readouterr()
    words[3] = str(prepare(book, tokenizer="chars"))
    assert run_door("train", [*words, "--overwrite"]) == 2
    error = error_of(capsys)
    assert "bytes" in error
    assert "chars" in error


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("no such name", "there is no data set or path 'taels' (did you mean tales?)"),
        ("empty folder", "holds no text"),
        ("empty file", "holds no text"),
        ("binary file", "binary"),
        ("short text", "add text or set --block_size"),
        ("small vocabulary", "rows: set --vocab_size 257"),
        ("stale shards", "rebuild it with `(a test)`"),
        ("code in a checkpoint", "code"),
        ("no such checkpoint", "nowhere"),
        ("device", "is no device: use auto"),
        ("micro batch", "must divide batch_size"),
    ],
)
def test_mistakes(case: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "text"
    words: list[object] = ["--data", path, "--tokenizer=bytes", "--out_dir", tmp_path / "run"]
    if case == "no such name":
        words[1] = "taels"
    elif case == "empty folder":
        path.mkdir()
    elif case == "stale shards":
        prepared(path)
        shard = path / "train_000000.bin"
        shard.write_bytes(shard.read_bytes()[:-2])
        words.remove("--tokenizer=bytes")
    else:
        raw = {"empty file": b"", "binary file": bytes(range(256)) * 40, "short text": b"Once. " * 90}
        path.write_bytes(raw.get(case, b"Once upon a time. " * 400))
    if case == "short text":
        words += ["--block_size=512"]
    elif case == "small vocabulary":
        words += ["--vocab_size=100"]
    elif case == "code in a checkpoint":
        (tmp_path / "model.pt").write_bytes(b"\x80\x04cos\nsystem\n(S'false'\ntR.")
        words += ["--init", tmp_path / "model.pt"]
    elif case == "no such checkpoint":
        words += ["--init", tmp_path / "nowhere"]
    elif case == "device":
        words += ["--device=toaster"]
    elif case == "micro batch":
        words += ["--micro_batch_size=3"]
    assert train(*words) == 2
    assert message in error_of(capsys)
    assert not (tmp_path / "run").exists()


def test_ctrl_c_saves_and_says_how_to_go_on(book: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = [sys.executable, str(ROOT / "train.py"), *TINY, "--data", str(book), "--tokenizer=bytes"]
    words += ["--out_dir", str(run)]
    process = subprocess.Popen([*words, "--max_steps=1000000"], stderr=subprocess.PIPE, text=True)
    wait_for(lambda: (run / "metrics.jsonl").exists() and len(read_metrics(run / "metrics.jsonl")) > 1)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    state = read_state(step_folders(run)[-1])
    assert f"stopped after step {state['step']}; continue with: python train.py --resume {run}" in error
    assert "Traceback" not in error


@pytest.mark.faults
def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(book: Path, tmp_path: Path) -> None:
    """Saves at every step, killed 20 times at moments spread over one; each time the run goes on from a whole one."""
    run = tmp_path / "run"
    options = [*TINY, "--tokenizer=bytes", "--max_steps=1000000", "--save_every_steps=1", "--out_dir", str(run)]
    start = [sys.executable, str(ROOT / "train.py"), *options, "--data", str(book)]
    step = 0
    for kill in range(20):
        words = start if kill == 0 else [sys.executable, str(ROOT / "train.py"), "--resume", str(run)]
        process = subprocess.Popen(words, stderr=subprocess.DEVNULL, start_new_session=True)
        wait_for(lambda step=step: bool(step_folders(run)) and read_state(step_folders(run)[-1])["step"] > step + 2)
        time.sleep(0.007 * kill)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        newest = step_folders(run)[-1]
        assert read_state(newest)["step"] > step
        step = read_state(newest)["step"]
        assert sum(p.numel() for p in GPT.from_pretrained(newest).parameters()) > 0
        assert get_tokenizer(newest).name == "bytes"


def wait_for(done: object, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not done():  # type: ignore[operator]
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
