"""Cross-entropy over a large vocabulary, by every path, and what each term adds to a step.

    python bench/objectives.py                    # the tables of docs/objectives.md in place of the old ones
    python bench/objectives.py --precision bf16   # minutes on a CPU without bf16 units
    python bench/objectives.py --device cuda      # a card's, in their own section

Loss and gradients as shares of the plain way, at two widths; on a CPU of one thread, the processor's seconds. Each way
runs in a process of its own, so that its memory is its own; the fastest of three rounds counts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from pages import ROOT, give, in_a_process, put, told, where
from torch import Tensor

from minilm import runtime
from minilm.config import GPTConfig, TrainConfig
from minilm.model import losses
from minilm.model.gpt import GPT
from minilm.training.objective import Objective, greedy

PAGE = ROOT / "docs" / "objectives.md"
HEADINGS = {"cpu": "Measured", "cuda": "Measured on a card"}
N, V = 1024, 50257  # GPT-2's vocabulary: 196 MiB of logits
WIDTHS = (128, 768)  # GPT-2 small's, and a sixth of it
ROUNDS = 3

_compiled = torch.compile(losses.cross_entropy, dynamic=False)


def _whole(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return losses.cross_entropy(F.linear(x, weight), targets, "sum")


def _in_chunks(n: int, cross_entropy: Callable[..., Tensor]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def run(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        losses.PLAIN_BYTES, losses.CARD_PLAIN_BYTES = 0, 0
        losses.CHUNK_BYTES, losses.CARD_CHUNK_BYTES = 4 * n * V, 4 * n * V
        return losses.over_tokens(
            x,
            weight,
            lambda logits: logits[:, :V],
            lambda logits, rows: cross_entropy(logits, targets[rows], "sum")[None],
        )[0]

    return run


def _torchs(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    options = torch.nn.LinearCrossEntropyOptions()  # type: ignore[attr-defined]
    return F.linear_cross_entropy(x, weight, targets, reduction="sum", options=options)  # type: ignore[attr-defined]


WAYS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "plain": _whole,
    **{f"chunks of {n} rows": _in_chunks(n, losses.cross_entropy) for n in (20, 41, 80, 256)},
    "chunks of 41 rows, loss compiled": _in_chunks(41, _compiled),
    "`F.linear_cross_entropy`": _torchs,
}


def measure(way: str, precision: str, width: int, device: str) -> dict[str, float]:
    """Seconds of loss and gradients, MiB beyond what they are of, loss per target."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x, weight = torch.randn(N, width).to(device), (torch.randn(V, width) * 0.02).to(device)
    targets = torch.randint(V, (N,)).to(device)
    before, best = peak_bytes(device), float("inf")
    for _ in range(ROUNDS):
        x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
        started = now(device)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16"):
            loss = WAYS[way](x, weight, targets)
        loss.backward()
        best = min(best, now(device) - started)
    return {"seconds": best, "MiB": (peak_bytes(device) - before) / 2**20, "loss": loss.item() / N}


def now(device: str) -> float:
    """The processor's own seconds; of a card, the wall's, when it is done."""
    if device != "cuda":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def peak_bytes(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else runtime.peak_resident_bytes()


def ways_table(precision: str, device: str) -> str:
    lines = [
        f"| {precision} | " + " | ".join(f"time, D {D} | memory" for D in WIDTHS) + " | loss |",
        "|---|" + "---|---|" * len(WIDTHS) + "---|",
    ]
    first: dict[int, float] = {}
    for way in WAYS:
        cells, loss = [], ""
        for width in WIDTHS:
            found = in_a_process(
                __file__, "--way", way, "--precision", precision, "--width", str(width), "--device", device
            )
            if isinstance(found, str):
                raise SystemExit(f"{way}, D {width}: {found}")
            seconds = first.setdefault(width, found["seconds"])
            cells.append(f"{found['seconds'] / seconds:.2f} | {found['MiB']:.0f} MiB")
            loss = f"{found['loss']:.4f}"
        lines.append(f"| {way} | {' | '.join(cells)} | {loss} |")
    plain = " and ".join(f"{first[width]:.2g}" for width in WIDTHS)
    return "\n".join([*lines, "", f"Plain took {plain} seconds.", ""])


def terms_table(device: str) -> str:
    """Seconds of a step's loss and gradients with one term added, as shares of cross-entropy alone."""
    torch.set_num_threads(1)
    model = GPT(GPTConfig(n_layer=4, n_head=4, n_embd=256, block_size=256, vocab_size=8192)).to(device)
    teacher = GPT(model.config).to(device).requires_grad_(False)
    ids = torch.randint(8192, (4, 256)).to(device)
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
            started = now(device)
            objective(ids, ids).backward()
            best[name] = min(best[name], now(device) - started)
    plain = best["cross-entropy"]
    return "| a step's loss and gradients | time |\n|---|---|\n" + "".join(
        f"| {name} | {seconds / plain:.2f} |\n" for name, seconds in best.items()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=tuple(HEADINGS))
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--way", choices=tuple(WAYS), help="only this one, for a process of its own")
    parser.add_argument("--width", type=int, default=WIDTHS[0])
    options = parser.parse_args()
    if options.way:
        give(measure(options.way, options.precision, options.width, options.device))
        return
    made: Any = where() | {"threads": "1"}
    by = f"By `python bench/objectives.py`, {told(made)}; {N:,} targets, V {V:,}; shares of the plain way."
    tables = [by, "", ways_table(options.precision, options.device), terms_table(options.device)]
    put(PAGE, HEADINGS[options.device], "\n".join(tables))


if __name__ == "__main__":
    main()
