"""Every optimizer in every precision on `tiny`: seconds a step, memory, validation loss. Writes docs/measured.md.

    python bench/optimizers.py                                          # where bf16 is fast
    python bench/optimizers.py --steps 16 --batch_size 2 --fresh        # where it is emulated

Same data, seed, batch and steps for all, so that a run of few steps compares times and shows that all of them learn,
not which is best; each optimizer at the peak rate of RATES, found by no search. Seconds are the fastest step's, on a
CPU the processor's, so that others on the machine do not count; memory is `training/estimate.py`'s. Cells land in
bench/results as they come, and what is there is not run again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pages import MEASURED, RESULTS, put, told, where

from minilm import runtime
from minilm.config import TrainConfig
from minilm.log import read_metrics
from minilm.options import parse
from minilm.text.prepare import prepare
from minilm.training import loop
from minilm.training.estimate import memory
from minilm.training.optim import OPTIMIZERS

HEADING = "Every optimizer in every precision"
RATES = {"adamw": 3e-3, "adam": 3e-3, "sgd": 0.3, "adagrad": 1e-2, "rmsprop": 1e-3}
RATES |= {"muon": 1e-2, "adafactor": 1e-2, "lion": 5e-4}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch_size", type=int, default=64, help="sequences a step")
    parser.add_argument("--optimizers", nargs="+", default=sorted(OPTIMIZERS))
    parser.add_argument("--precisions", nargs="+", default=list(runtime.PRECISIONS))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--max_docs", type=int, default=0, help="documents of the data, 0 for all")
    parser.add_argument("--fresh", action="store_true", help="begin a new table")
    options = parser.parse_args()
    device = runtime.pick_device(options.device)
    missing = runtime.missing_precisions(device)
    data = prepare("tales", max_docs=options.max_docs)
    base = parse(["--config", "tiny"], device.type).config
    base = replace(base, data=str(data), max_steps=options.steps, device=str(device), compile="off", save_every_steps=0)
    base = replace(base, batch_size=options.batch_size, eval_tokens=8 * options.batch_size * base.model.block_size)
    base = replace(base, eval_every_steps=0, log_every_steps=1, warmup_steps=max(options.steps // 20, 1))
    file = RESULTS / f"optimizers-{device.type}.jsonl"
    if options.fresh:
        file.unlink(missing_ok=True)
    done = {(cell["optimizer"], cell["precision"]) for cell in read_metrics(file)} if file.exists() else set()
    for precision in [p for p in options.precisions if p not in missing]:
        for optimizer in [o for o in options.optimizers if (o, precision) not in done]:
            rounding = "stochastic" if precision.startswith("pure") else "nearest"
            config = replace(base, optimizer=optimizer, lr=RATES[optimizer], precision=precision, rounding=rounding)
            cell = measured(config)
            with file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(cell) + "\n")
            put(MEASURED, HEADING, table())


def measured(config: TrainConfig) -> dict[str, Any]:
    """One run's line."""
    seconds: list[float] = []
    plain = loop.train_step

    def timed(*args: Any) -> Any:
        began = now(config.device)
        stepped = plain(*args)
        seconds.append(now(config.device) - began)
        return stepped

    loop.train_step = timed
    try:
        with tempfile.TemporaryDirectory() as folder:
            result = loop.train(replace(config, out_dir=str(Path(folder) / "run")))
    finally:
        loop.train_step = plain
    if result.interrupted:
        raise SystemExit("stopped: the same command goes on")
    return {
        "optimizer": config.optimizer,
        "precision": config.precision,
        "lr": config.lr,
        "steps": config.max_steps,
        "tokens_per_step": config.batch_size * config.model.block_size,
        "seconds_per_step": min(seconds),
        "bytes": memory(result.model, config, config.precision, config.batch_size).total,
        "first_loss": result.losses[0],
        "val_loss": result.val_loss,
        "made": where(),
    }


def now(device: str) -> float:
    """Seconds of the card's clock, or of this process on a processor."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def table() -> str:
    """Every result in bench/results as Markdown."""
    lines = [
        "By `python bench/optimizers.py` on `tiny` and tales, eager. Seconds of the fastest step, on a CPU the "
        "processor's own; memory without micro-batches from shapes, rates by no search. Pure precisions round "
        "stochastically; those with fp16 leave out their first steps until the loss scale fits.",
    ]
    for path in sorted(RESULTS.glob("optimizers-*.jsonl")):
        cells = read_metrics(path)
        of = cells[-1]
        if len({(cell["steps"], cell["tokens_per_step"]) for cell in cells}) > 1:
            raise SystemExit(f"{path} mixes runs of different length: begin anew with --fresh")
        few = " Few steps: times compare, losses hardly." if of["steps"] < 200 else ""
        lines += ["", f"{of['steps']} steps of {of['tokens_per_step']:,} tokens, {told(of['made'])}.{few}", ""]
        lines += ["| optimizer | precision | lr | s / step | against fp32 | MiB | loss before | validation loss |"]
        lines += ["|---|---|---|---|---|---|---|---|"]
        plain = {cell["optimizer"]: cell["seconds_per_step"] for cell in cells if cell["precision"] == "fp32"}
        for cell in sorted(cells, key=lambda cell: cell["optimizer"]):
            seconds = cell["seconds_per_step"]
            share = f"{seconds / plain[cell['optimizer']]:.2f}" if cell["optimizer"] in plain else ""
            lines.append(
                f"| {cell['optimizer']} | {cell['precision']} | {cell['lr']:g} | {seconds:.3f} | {share} "
                f"| {cell['bytes'] / 2**20:.0f} | {cell['first_loss']:.3f} | {cell['val_loss']:.4f} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
