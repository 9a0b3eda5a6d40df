"""The finetuning presets end to end: a small base, trained here on tales, learns fables. Writes docs/measured.md.

    python bench/finetune.py --source FOLDER        # of the fables, where there is no network
    python bench/finetune.py --page                 # only writes the page anew

Every run is `train.py --config PRESET --init BASE --data fables` with nothing else changed but its length; figures come
from what the runs wrote (metrics.jsonl, moved.json). Runs that are there are not run again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from pages import MEASURED, RESULTS, ROOT, put, told, where

from minilm.log import read_metrics
from minilm.model.weights import load_pretrained
from minilm.options import parse
from minilm.text.prepare import prepare
from minilm.train_cli import main as train_py

HEADING = "Finetuning presets"
PRESETS = ("finetune", "lora", "biases", "norms")
BASE = ["--config", "tiny", "--n_embd", "128", "--n_head", "2", "--bias", "true", "--batch_size", "16"]
BASE += ["--max_steps", "400", "--eval_every_steps", "100"]
STEPS = 200
FILE = RESULTS / "finetune.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--page", action="store_true")
    options = parser.parse_args()
    if not options.page:
        runs = ROOT / "runs"
        base, device = runs / "finetune-base", ["--device", options.device]
        tales = str(prepare("tales", tokenizer="bytes", max_docs=20_000))
        train(base, [*BASE, "--data", tales, *device])
        source = ["--source", options.source] if options.source else []
        told_of = {"base": losses(base)}
        for preset in PRESETS:
            run = runs / f"finetune-{preset}"
            words = ["--config", preset, "--init", str(base), "--data", "fables", "--max_steps", str(STEPS)]
            train(run, [*words, *source, *device])
            told_of[preset] = losses(run) | moved(run, preset)
            FILE.write_text(json.dumps({"made": where(), "runs": told_of}, indent=1) + "\n", encoding="utf-8")
            put(MEASURED, HEADING, page())
    put(MEASURED, HEADING, page())


def train(run: Path, words: list[str]) -> None:
    """`train.py` with these words, unless the run is there and whole."""
    steps = parse([*words]).config.max_steps
    if (run / f"step_{steps:06d}").is_dir():
        return
    if train_py([*words, "--out_dir", str(run), "--overwrite"]):
        raise SystemExit(f"{run} was stopped: the same command goes on")


def losses(run: Path) -> dict[str, Any]:
    """First and best validation loss of a run, and its speed."""
    rows = read_metrics(run / "metrics.jsonl")
    values = [(row["val_loss"], row["step"]) for row in rows if row.get("val_loss") is not None]
    best = min(values)
    return {"before": values[0][0], "best": best[0], "best_step": best[1], "steps": values[-1][1]}


def moved(run: Path, preset: str) -> dict[str, Any]:
    """What was trained, how far it went, and samples."""
    told_there = json.loads((run / "moved.json").read_text(encoding="utf-8"))
    config = parse(["--config", preset]).config
    tensors = told_there["tensors"].values()
    change = sum(t["change"] ** 2 for t in tensors) ** 0.5 / sum(t["start"] ** 2 for t in tensors) ** 0.5
    model, _ = load_pretrained(run)
    return {
        "lr": config.lr,
        "parameters": model.num_params(),
        "tensors": len(told_there["tensors"]),
        "change": change,
        "sample": told_there["samples"][0],
    }


def page() -> str:
    """The result in bench/results as Markdown."""
    record = json.loads(FILE.read_text(encoding="utf-8"))
    runs = record["runs"]
    base = runs.pop("base")
    lines = [
        f"By `python bench/finetune.py`, {told(record['made'])}. A base of {runs['finetune']['parameters']:,} "
        f"parameters on bytes, trained on tales for {base['steps']} steps to {base['best']:.3f}, then on Aesop's "
        f"fables; each preset as it is, {STEPS} steps at most. What freezing saves: [freezing](freezing.md).",
        "",
        "| preset | tensors that move | lr | loss before | best | after step | moved by, of their norm |",
        "|---|---|---|---|---|---|---|",
    ]
    for preset, run in runs.items():
        lines.append(
            f"| `{preset}` | {run['tensors']} | {run['lr']:g} | {run['before']:.3f} | {run['best']:.3f} "
            f"| {run['best_step']} | {run['change']:.1%} |"
        )
    one = runs["finetune"]["sample"]
    lines += ["", "A sample of `finetune`, same seed, before and after:", ""]
    lines += [f"    {when:<7} {json.dumps(one[when], ensure_ascii=False)[:110]}" for when in ("before", "after")]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
