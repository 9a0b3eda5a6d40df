"""Cross-entropy over a large vocabulary, four ways, and what each term adds to a step.

`python bench/objectives.py` writes the tables of docs/objectives.md in place of the old ones: processor seconds and
memory of loss and gradients, as shares of the plain way in the same run; one thread, best of two rounds. With
`fp32 bf16` behind it also under bf16 autocast, which takes minutes on a CPU without bf16 units.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from minilm import runtime
from minilm.config import GPTConfig, TrainConfig
from minilm.model import losses
from minilm.model.gpt import GPT
from minilm.training.objective import Objective, greedy

PAGE = Path(__file__).resolve().parent.parent / "docs" / "objectives.md"
HEADING = "## Measured\n"
N, D, V = 512, 128, 50257  # GPT-2's vocabulary, a sixth of small's width
ROUNDS = 2

_compiled = torch.compile(losses.cross_entropy, dynamic=False)


def _whole(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return losses.cross_entropy(F.linear(x, weight), targets, "sum")


def _in_chunks(n: int, cross_entropy: Callable[..., Tensor]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def run(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        losses.PLAIN_BYTES, losses.CHUNK_BYTES = 0, 4 * n * V
        return losses.over_tokens(
            x, weight, lambda logits: logits, lambda logits, rows: cross_entropy(logits, targets[rows], "sum")[None]
        )[0]

    return run


def _torchs(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    options = torch.nn.LinearCrossEntropyOptions()  # type: ignore[attr-defined]
    return F.linear_cross_entropy(x, weight, targets, reduction="sum", options=options)  # type: ignore[attr-defined]


WAYS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "plain": _whole,
    "chunks of 64 rows": _in_chunks(64, losses.cross_entropy),
    "chunks of 256 rows": _in_chunks(256, losses.cross_entropy),
    "chunks of 256 rows, loss compiled": _in_chunks(256, _compiled),
    "`F.linear_cross_entropy`": _torchs,
}


def measure(way: str, precision: str) -> tuple[float, float, float]:
    """(best processor seconds, MiB that the process grew by, loss per target) of loss and gradients."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x, weight = torch.randn(N, D), torch.randn(V, D) * 0.02
    targets = torch.randint(V, (N,))
    before = runtime.peak_resident_bytes()
    best = float("inf")
    for _ in range(ROUNDS):
        x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
        started = time.process_time()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            loss = WAYS[way](x, weight, targets)
        loss.backward()
        best = min(best, time.process_time() - started)
    return best, (runtime.peak_resident_bytes() - before) / 2**20, loss.item() / N


def ways_table(precision: str) -> str:
    lines = [f"| {precision} | time | memory beyond inputs | loss |", "|---|---|---|---|"]
    first: tuple[float, float, float] | None = None
    for way in WAYS:
        words = [sys.executable, __file__, way, precision]  # a process of its own, so that its peak is its own
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        seconds, mib, loss = map(float, done.stdout.split())
        first = first or (seconds, mib, loss)
        lines.append(f"| {way} | {seconds / first[0]:.2f} | {mib:.0f} MiB | {loss:.4f} |")
    assert first is not None
    return "\n".join([*lines, "", f"Plain took {first[0]:.2f} processor seconds.", ""])


def terms_table() -> str:
    """Seconds of a step's loss and gradients with one term added, as shares of cross-entropy alone."""
    torch.set_num_threads(1)
    model = GPT(GPTConfig(n_layer=4, n_head=4, n_embd=256, block_size=256, vocab_size=8192))
    teacher = GPT(model.config).requires_grad_(False)
    ids = torch.randint(8192, (4, 256))
    cases: dict[str, dict[str, object]] = {
        "cross-entropy": {},
        "with label smoothing": {"label_smoothing": 0.1},
        "with z-loss": {"z_loss": 1e-4},
        "with unlikelihood of tokens": {"unlikelihood": 1.0},
        "with unlikelihood of sequences": {"sequence_unlikelihood": 1.0},
        "with the contrastive loss": {"contrastive": 1.0},
        "with a teacher of the same size": {"distill": 1.0, "teacher": "x"},
    }
    best = dict.fromkeys(cases, float("inf"))
    for _ in range(ROUNDS):
        for name, changes in cases.items():
            config = TrainConfig(**changes)  # type: ignore[arg-type]
            objective = Objective(model, config, teacher if config.distill else None, greedy)
            model.zero_grad(set_to_none=True)
            started = time.process_time()
            objective(ids, ids).backward()
            best[name] = min(best[name], time.process_time() - started)
    plain = best["cross-entropy"]
    return "| a step's loss and gradients | time |\n|---|---|\n" + "".join(
        f"| {name} | {seconds / plain:.2f} |\n" for name, seconds in best.items()
    )


def main(precisions: Sequence[str]) -> None:
    page = PAGE.read_text(encoding="utf-8")
    head = page[: page.index(HEADING)]
    told = (
        f"By `python bench/objectives.py`, {time.strftime('%Y-%m-%d')}, torch {re.split('[+]', torch.__version__)[0]}, "
    )
    told += f"one core of a CPU; {N:,} targets, D {D}, V {V:,}; shares of the plain way.\n\n"
    tables = [*(ways_table(precision) for precision in precisions), terms_table()]
    PAGE.write_text(head + HEADING + "\n" + told + "\n".join(tables), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] in WAYS:
        print(*measure(*sys.argv[1:]))
    else:
        main(sys.argv[1:] or ["fp32"])
