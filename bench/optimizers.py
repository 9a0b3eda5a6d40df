"""Every optimizer in every precision on `tiny`: seconds a step, memory, validation loss, as a table in Markdown.

    python bench/optimizers.py --steps 200 --out table.md

Same data, seed, batch and steps for all; each optimizer at the peak rate of RATES, found by no search. Memory is
`training/estimate.py`'s. Lines are written as they come, so that a run that is cut short leaves a table.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from minilm import runtime
from minilm.log import read_metrics
from minilm.options import parse
from minilm.text.prepare import prepare
from minilm.training.estimate import memory
from minilm.training.loop import train
from minilm.training.optim import OPTIMIZERS

RATES = {"adamw": 3e-3, "adam": 3e-3, "sgd": 0.3, "adagrad": 1e-2, "rmsprop": 1e-3}
RATES |= {"muon": 1e-2, "adafactor": 1e-2, "lion": 5e-4}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--optimizers", nargs="+", default=sorted(OPTIMIZERS))
    parser.add_argument("--precisions", nargs="+", default=list(runtime.PRECISIONS))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--max_docs", type=int, default=0, help="documents of the data, 0 for all")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    device = runtime.pick_device(options.device)
    missing = runtime.missing_precisions(device)
    data = prepare("tales", max_docs=options.max_docs)
    base = parse(["--config", "tiny"], device.type).config
    base = replace(base, data=str(data), max_steps=options.steps, device=str(device), compile="off")
    base = replace(base, save_every_steps=0, eval_every_steps=0, log_every_steps=1, warmup_steps=options.steps // 20)
    head = [
        f"{options.steps} steps of `tiny` (eager), {runtime.versions()['processor']}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}",
        "",
        "| optimizer | precision | lr | s / step | MiB | validation loss |",
        "|---|---|---|---|---|---|",
    ]
    write("\n".join(head), options.out, "w")
    for precision in [p for p in options.precisions if p not in missing]:
        for optimizer in options.optimizers:
            rounding = "stochastic" if precision.startswith("pure") else "nearest"
            config = replace(base, optimizer=optimizer, lr=RATES[optimizer], precision=precision, rounding=rounding)
            with tempfile.TemporaryDirectory() as folder:
                result = train(replace(config, out_dir=str(Path(folder) / "run")))
                rows = [row for row in read_metrics(result.run / "metrics.jsonl") if row.get("tokens_per_second")]
            if result.interrupted:
                return
            per_step = config.batch_size * config.model.block_size / rows[-1]["tokens_per_second"]
            n_bytes = memory(result.model, config, precision, config.batch_size).total
            write(
                f"| {optimizer} | {precision} | {config.lr:g} | {per_step:.3f} | {n_bytes / 2**20:.0f} "
                f"| {result.val_loss:.4f} |",
                options.out,
                "a",
            )


def write(text: str, out: Path | None, mode: str) -> None:
    print(text, flush=True)
    if out is not None:
        with out.open(mode, encoding="utf-8") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    main()
