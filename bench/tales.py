"""How models do on tales: coherence against parameters and training tokens, at every level.

    python bench/tales.py run                     all cells that have no result yet, the cheapest first
    python bench/tales.py run --only level1/*     cells by pattern; `list` names them all
    python bench/tales.py report                  docs/tales_models.md and its pictures, from the results

A cell trains one model from scratch and has 200 of its stories graded. What it gave is one line of
bench/results/tales_models.jsonl; a cell that has its line is not run again, a killed one resumes from its last
checkpoint, and two processes share the work without running a cell twice. Run what TIMED names alone, on two cores
(`--threads 2`), for its seconds to mean something.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

from minilm.text.tales import stories

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results" / "tales_models.jsonl"
RUNS = ROOT / "runs" / "tales_models"
SEED = 1337
TOKENS_PER_STEP, MANY_TOKENS_PER_STEP, MANY_TOKENS = 2048, 8192, 4_000_000
"""A step's tokens in a budget below MANY_TOKENS, and from there on: a short run wants steps more than large batches
(the study's own pair of `tiny` at 1.2 M tokens), a long one gets more from the preset's batch (its trials)."""
BLOCK_SIZE = {1: 128, 2: 192, 3: 256, 4: 384}
"""Level -> context: the longest story and a little more."""
SIZES = {  # layers, heads, width
    "0.1M": (3, 2, 48),
    "0.4M": (3, 3, 96),
    "tiny": (3, 3, 192),
    "4M": (4, 4, 256),
    "10M": (5, 6, 384),
}
WIDTH_OF_TINY, LR_OF_TINY = 192, 1e-2
SWEEP_TOKENS = 1_200_000
TOKEN_AXIS = (600_000, SWEEP_TOKENS, 2_400_000, 14_400_000)  # of `tiny`
MORE = {"0.1M": (10_000_000, (1, 2, 3, 4)), "0.4M": (10_000_000, (1, 2)), "4M": (2_400_000, (1,))}
"""Size -> more tokens, and the levels at which it has them too: each size comes to lie between 25 and 75 %."""
TIMED = {5: 2_400_000, 30: TOKEN_AXIS[-1]}
"""Minutes -> the tokens that `tiny` does in them alone on two cores of an EPYC of 2022 in fp32, 8,000 a second; with
bf16 hardware it does five times as many."""


@dataclass(frozen=True)
class Cell:
    """One model to train and grade."""

    level: int
    size: str
    tokens: int
    tokenizer: str = "words"
    large_batch: bool = False

    @property
    def name(self) -> str:
        other = "" if self.tokenizer == "words" else f"/{self.tokenizer.replace(':', '')}"
        batch = f"/{MANY_TOKENS_PER_STEP}-a-step" if self.large_batch else ""
        return f"level{self.level}/{self.size}/{self.tokens / 1e6:g}M-tokens{other}{batch}"

    @property
    def tokens_per_step(self) -> int:
        return MANY_TOKENS_PER_STEP if self.large_batch or self.tokens >= MANY_TOKENS else TOKENS_PER_STEP

    @property
    def cost(self) -> float:
        """FLOPs, roughly: what is done first."""
        layers, _, width = SIZES[self.size]
        return self.tokens * (12.0 * layers * width**2 + 600 * width)


def cells() -> list[Cell]:
    """All of the study."""
    found = []
    for level in BLOCK_SIZE:
        found += [Cell(level, size, SWEEP_TOKENS) for size in SIZES]
        found += [Cell(level, "tiny", tokens) for tokens in TOKEN_AXIS if tokens != SWEEP_TOKENS]
        found += [Cell(level, size, tokens) for size, (tokens, levels) in MORE.items() if level in levels]
    found += [Cell(1, "tiny", SWEEP_TOKENS, large_batch=True)]
    found += [Cell(level, "tiny", SWEEP_TOKENS, tokenizer) for level in (1, 2) for tokenizer in ("bpe:512", "bpe:2048")]
    return sorted(found, key=lambda cell: cell.cost)


def results() -> dict[str, dict[str, Any]]:
    """Cell -> its line. What was measured on another text than the tales of today counts as not done."""
    if not RESULTS.is_file():
        return {}
    lines = [json.loads(line) for line in RESULTS.read_text("utf-8").splitlines()]
    return {line["cell"]: line for line in lines if line["corpus"] == corpus(line["level"])}


@cache
def corpus(level: int) -> str:
    """Tells one text of a level from another: what its first stories hash to."""
    text = "\n".join(stories(n=500, level=level))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def run(cell: Cell) -> dict[str, Any]:
    """Trains the cell's model, or goes on where it was killed, and grades it."""
    import torch

    from minilm import runtime
    from minilm.evaluation.text_metrics import coherence
    from minilm.model.hub import step_folders
    from minilm.options import build, read_preset, run_config
    from minilm.text.prepare import prepare
    from minilm.text.shards import open_shards
    from minilm.training.loop import train
    from minilm.training.setup import read_setup

    data = prepare("tales", level=cell.level, tokenizer=cell.tokenizer)
    layers, heads, width = SIZES[cell.size]
    tiny = build(read_preset("tiny"))
    T = BLOCK_SIZE[cell.level] * (2 if cell.tokenizer.startswith("bpe") else 1)
    rows = cell.tokens_per_step // T
    folder = RUNS / cell.name
    resumed = bool(step_folders(folder))
    config = replace(
        tiny,
        model=replace(tiny.model, n_layer=layers, n_head=heads, n_embd=width, block_size=T),
        data=str(data),
        out_dir=str(folder),
        existing="resume" if resumed else "overwrite",
        max_steps=cell.tokens // (rows * T),
        batch_size=rows,
        lr=LR_OF_TINY * (WIDTH_OF_TINY / width) ** 0.5,
        compile="on",
        seed=SEED,
        eval_every_steps=0,
        save_every_steps=500,
        keep_checkpoints=1,
    )
    if resumed:
        saved = run_config(folder)
        config = replace(saved, existing="resume", out_dir=str(folder))
    result = train(config)
    if result.interrupted:
        raise KeyboardInterrupt
    shards = open_shards(data)
    n_bytes = shards.meta.splits["val"].bytes / shards.splits["val"].n_tokens
    started = time.perf_counter()
    graded = coherence(result.model, result.tokenizer, train=shards.splits["train"], level=cell.level)
    assert result.val_loss is not None
    layers_only = sum(p.numel() for name, p in result.model.named_parameters() if name.startswith("h."))
    line = {
        "cell": cell.name,
        "level": cell.level,
        "size": cell.size,
        "tokenizer": cell.tokenizer,
        "corpus": corpus(cell.level),
        "parameters": result.model.num_params(),
        "parameters_in_blocks": layers_only,
        "tokens": result.tokens,
        "tokens_per_step": config.batch_size * T,
        "steps": result.step,
        "block_size": T,
        "lr": config.lr,
        "train_seconds": round(result.seconds, 1),
        "val_loss": round(result.val_loss, 4),
        "bits_per_byte": round(result.val_loss / 0.6931471805599453 / n_bytes, 4),
        "passed": graded.passed,
        "n_stories": graded.n_stories,
        "low": round(graded.low, 4),
        "high": round(graded.high, 4),
        "mean_before": round(graded.mean_before, 4),
        "failures": graded.failures,
        "grade_seconds": round(time.perf_counter() - started, 1),
        "sample": graded.samples[0],
        "processor": runtime.versions()["processor"],
        "threads": torch.get_num_threads(),
        "precision": read_setup(folder).precision,
        "resumed": resumed,
        "date": time.strftime("%Y-%m-%d"),
        "commit": runtime.git_commit()[:10],
        "torch": torch.__version__,
    }
    with RESULTS.open("a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps(line) + "\n")
    shutil.rmtree(folder)
    return line


@contextmanager
def claimed(cell: Cell) -> Iterator[bool]:
    """Whether this process alone has the cell."""
    path = RUNS / (cell.name.replace("/", "_") + ".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def run_all(pattern: str, threads: int) -> None:
    import torch

    from minilm import runtime

    runtime.tune_allocator()
    if threads:
        torch.set_num_threads(threads)
    RESULTS.parent.mkdir(exist_ok=True)
    for cell in cells():
        if not fnmatch(cell.name, pattern):
            continue
        with claimed(cell) as mine:
            if not mine or cell.name in results():
                continue
            print(f"== {cell.name}", flush=True)
            line = run(cell)
            share = line["passed"] / line["n_stories"]
            print(
                f"== {cell.name}: {share:.1%} coherent, {line['mean_before']:.0%} before; loss {line['val_loss']}; "
                f"{line['train_seconds']:.0f} s + {line['grade_seconds']:.0f} s",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=("list", "run", "report"))
    parser.add_argument("--only", default="*", help="a pattern of cells (*)")
    parser.add_argument("--threads", type=int, default=0, help="of torch (all cores)")
    options = parser.parse_args()
    if options.job == "run":
        run_all(options.only, options.threads)
    elif options.job == "report":
        sys.path.insert(0, str(Path(__file__).resolve().parent))
        import tales_report

        tales_report.write(cells(), results(), SWEEP_TOKENS, TIMED)
    else:
        done = results()
        for cell in cells():
            print(f"{cell.name:40}{'done' if cell.name in done else ''}")


if __name__ == "__main__":
    main()
