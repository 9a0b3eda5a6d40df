"""What the machine is asked, and what is said when it lacks something."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from minilm import runtime
from minilm.errors import UsageError
from minilm.log import Metrics, duration, read_metrics

CPU = torch.device("cpu")


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert runtime.pick_device() == CPU
    with pytest.raises(UsageError, match="'toaster' is no device: use auto, cpu, cuda"):
        runtime.pick_device("toaster")
    with pytest.raises(UsageError, match="--device cuda:1: this machine has cpu"):
        runtime.pick_device("cuda:1")


def test_precision_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("fp32", "bf16", "fp16", "pure_bf16", "pure_fp16"):
        assert runtime.pick_precision(name, CPU, 64) == name
    for fast, chosen in ((3.0, "bf16"), (1.05, "fp32"), (0.1, "fp32")):
        speeds = {torch.bfloat16: fast, torch.float32: 1.0}
        monkeypatch.setattr(runtime, "matmul_flops", lambda device, dtype, width, speeds=speeds: speeds[dtype])
        assert runtime.pick_precision("auto", CPU, 64) == chosen


def test_a_precision_that_is_not_there_is_refused_with_those_that_are(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"tf32: it needs an NVIDIA .*runs fp32, bf16, fp16, pure_bf16, pure_fp16$"):
        runtime.pick_precision("tf32", CPU, 64)
    turing = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    with pytest.raises(UsageError, match=r"pure_bf16: this card has no bf16; this machine runs fp32, fp16, pure_fp16$"):
        runtime.pick_precision("pure_bf16", turing, 64)
    assert runtime.pick_precision("auto", turing, 64) == "fp16"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert not runtime.missing_precisions(turing)
    assert runtime.pick_precision("auto", turing, 64) == "bf16"


def test_a_product_is_timed() -> None:
    assert 1e8 < runtime.matmul_flops(CPU, torch.float32, rows=64, width=64) < 1e14


def test_step_seeds_draw_as_they_did() -> None:
    def drawn(*arguments: int) -> float:
        runtime.set_step_seed(*arguments)
        return torch.rand(()).item()

    places = [(seed, step, rank) for seed in (0, 7, 2**62) for step in (0, 1, 10**9) for rank in (0, 1)]
    first = [drawn(*place) for place in places]
    assert [drawn(*place) for place in places] == first
    assert len(set(first)) == len(first)


def test_compiler_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", lambda: "no-such-compiler")
    assert runtime.compiler_missing() == "the C++ compiler no-such-compiler was not found"


def test_commit_is_that_of_the_sources() -> None:
    root = Path(__file__).resolve().parent.parent
    head = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True)
    if head.returncode:
        pytest.skip("not a git checkout")
    assert runtime.git_commit().removesuffix("+") == head.stdout.strip()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (60, "1 min 0 s"), (3725, "1 h 2 min"), (180_000, "2 d 2 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_metrics_forget_what_is_done_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path)
    for step in range(4):
        metrics.write(step=step, loss=1.5 * step)
    with path.open("a") as file:
        file.write('{"step": 4, "lo')  # a kill in the middle of a line
    assert [row["step"] for row in read_metrics(path)] == [0, 1, 2, 3]
    Metrics(path, keep_until_step=2).write(step=3, loss=9.0)
    assert [(row["step"], row["loss"]) for row in read_metrics(path)] == [(0, 0.0), (1, 1.5), (2, 3.0), (3, 9.0)]


def test_lines_of_steps_that_run_again_are_dropped(tmp_path: Path) -> None:
    """After a rollback to step 2 what went wrong stays; after a resume it is what the run says again."""
    path, samples = tmp_path / "metrics.jsonl", tmp_path / "samples.jsonl"
    metrics = Metrics(path, keep_until_step=0)

    def written() -> list[tuple[int, str]]:
        return [(row["step"], next(key for key in row if key != "step")) for row in read_metrics(path)]

    metrics.write(step=0, val_loss=5.0)
    for step in range(1, 5):
        metrics.write(step=step, loss=1.0)
        with samples.open("a") as file:
            file.write(f'{{"step": {step}, "text": "once"}}\n')
    metrics.write(step=4, trouble="loss is nan")
    metrics.back_to(2)
    assert written() == [(0, "val_loss"), (1, "loss"), (2, "loss"), (4, "trouble")]
    assert [row["step"] for row in read_metrics(samples)] == [1, 2]
    Metrics(path, keep_until_step=1)
    assert written() == [(0, "val_loss"), (1, "loss")]
    assert [row["step"] for row in read_metrics(samples)] == [1]
    Metrics(path, keep_until_step=0)  # validated again before the first step
    assert written() == []


def test_the_peak_is_of_this_process_alone() -> None:
    """A child's getrusage starts at what its parent held when it began."""
    held = b"x" * 400_000_000
    program = (
        "from minilm.runtime import peak_resident_bytes as peak; print(peak()); b = b'x' * 100_000_000; print(peak())"
    )
    found = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()
    before, after = map(int, found)
    assert before < len(held)
    assert 90_000_000 < after - before < 150_000_000
    assert runtime.peak_resident_bytes() >= len(held)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
@pytest.mark.parametrize(
    ("script", "given", "expected"),
    [("train.py", None, 2), ("other.py", None, 1), ("train.py", "glibc.malloc.check=0", 1)],
)
def test_training_begins_anew_with_the_allocator_set(
    tmp_path: Path, script: str, given: str | None, expected: int
) -> None:
    """Once, with its own words, in the same process; what it starts itself is as ever."""
    log = tmp_path / "log"
    (tmp_path / script).write_text(
        "import os, sys\nfrom pathlib import Path\n"
        f"with open({str(log)!r}, 'a') as file: print(os.getpid(), sys.argv[1:], file=file)\n"
        "from minilm import runtime\nruntime.begin_tuned()\n"
        "began = Path('/proc/self/environ').read_text().split('\\0')\n"
        "print([word for word in began if word.startswith('GLIBC')], os.environ.get('GLIBC_TUNABLES'))\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    environment |= {"GLIBC_TUNABLES": given} if given else {}
    words = [sys.executable, str(tmp_path / script), "--data", "two words"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    runs = log.read_text().splitlines()
    assert len(runs) == expected
    assert set(runs) == {f"{runs[0].split()[0]} ['--data', 'two words']"}
    began = f"GLIBC_TUNABLES={runtime.NO_CACHE if expected == 2 else given}"
    assert done.stdout == f"{[began] if expected == 2 or given else []} {given}\n"
