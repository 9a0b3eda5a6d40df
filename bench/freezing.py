"""What freezing saves: seconds and memory of a training step, as shares of full training in the same run.

`python bench/freezing.py` writes the table of docs/freezing.md in place of the old one. GPT-2's shape at half its
depth and width, 1,024 tokens a step, fp32, eager, AdamW; processor seconds, the best of six steps. Memory is what
tensors take beyond the weights: gradients, optimizer state, and what autograd saves for the backward pass.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks

from minilm.config import GPTConfig, TrainConfig
from minilm.model import lora
from minilm.model.freeze import set_trained
from minilm.model.gpt import GPT
from minilm.training.optim import build_optimizers, optimizer_state

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "freezing.md"
HEADING = "## Measured\n"
MODEL = GPTConfig(n_layer=6, n_head=6, n_embd=384, block_size=256, vocab_size=8192)
B = 4
ROUNDS = 6
CASES: dict[str, dict[str, Any]] = {
    "everything": {},
    "`--freeze embeddings`": {"freeze": ("embeddings",)},
    "`--freeze embeddings h.0-2`": {"freeze": ("embeddings", "h.0-2")},
    "`--train_only top:1 ln_f`": {"train_only": ("top:1", "ln_f")},
    "`--train_only attention`": {"train_only": ("attention",)},
    "`--train_only norms` (preset `norms`)": {"train_only": ("norms",)},
    "`--train_only biases` (preset `biases`)": {"train_only": ("biases",)},
    "`--lora_rank 16` (preset `lora`)": {"lora_rank": 16},
}


class Case:
    """A model, its optimizers, and what its steps cost."""

    def __init__(self, lora_rank: int = 0, **patterns: tuple[str, ...]) -> None:
        torch.manual_seed(0)
        self.model = GPT(MODEL)
        if lora_rank:
            lora.add(self.model, ["attention", "mlp"], lora_rank, alpha=32.0)
            patterns = {"train_only": ("lora",)}
        set_trained(self.model, **patterns)
        self.n_trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        self.optimizers = build_optimizers(self.model, TrainConfig(model=MODEL))
        self.ids = torch.randint(MODEL.vocab_size, (B, MODEL.block_size))
        self.seconds = float("inf")

    def step(self) -> None:
        started = time.process_time()  # others on the machine do not count
        self.model.zero_grad(set_to_none=True)
        self.model.loss(self.ids, self.ids).backward()
        for optimizer in self.optimizers:
            optimizer.step()
        self.seconds = min(self.seconds, time.process_time() - started)

    def bytes_of_state(self) -> int:
        gradients = sum(p.grad.nbytes for p in self.model.parameters() if p.grad is not None)
        states = optimizer_state(self.model, self.optimizers).values()
        return gradients + sum(v.nbytes for s in states for v in s.values() if isinstance(v, torch.Tensor))

    def bytes_saved(self) -> int:
        own = {p.untyped_storage().data_ptr() for p in self.model.parameters()}
        saved: dict[int, int] = {}

        def pack(x: torch.Tensor) -> torch.Tensor:
            storage = x.untyped_storage()
            if storage.data_ptr() not in own:
                saved[storage.data_ptr()] = storage.nbytes()
            return x

        with saved_tensors_hooks(pack, lambda x: x):
            self.model.loss(self.ids, self.ids)
        return sum(saved.values())


def table() -> str:
    cases = {name: Case(**patterns) for name, patterns in CASES.items()}
    for _ in range(1 + ROUNDS):  # round by round, so that a slow minute of the machine hits all alike
        for case in cases.values():
            case.step()
    rows = {n: (c.n_trained, c.seconds, c.bytes_of_state(), c.bytes_saved()) for n, c in cases.items()}
    whole = rows["everything"]
    lines = [
        "| trained | parameters | time of a step | gradients and optimizer state | saved for backward |",
        "|---|---|---|---|---|",
    ]
    for name, (n, seconds, state, saved) in rows.items():
        lines.append(f"| {name} | {n:,} | {seconds / whole[1]:.0%} | {state / whole[2]:.1%} | {saved / whole[3]:.0%} |")
    sizes = [f"{n / 2**20:.0f} MiB" for n in whole[2:]]
    told = f"Full training: {whole[1]:.2f} processor seconds a step, {' and '.join(sizes)}."
    return "\n".join([*lines, "", told, ""])


def main() -> None:
    torch.set_num_threads(1)
    page = PAGE.read_text(encoding="utf-8")
    head, _, rest = page.partition(HEADING)
    after = rest[rest.index("\n## ") :] if "\n## " in rest else ""
    told = f"By `python bench/freezing.py`, {time.strftime('%Y-%m-%d')}, torch {torch.__version__}, "
    told += "one core of a CPU; shares of full training.\n\n"
    PAGE.write_text(f"{head}{HEADING}\n{told}{table()}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
