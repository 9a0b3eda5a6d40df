"""Trains presets here and ships how far each got: the curve that later runs are held against (training/expected.py).

    python bench/expected.py shakespeare_char --source FOLDER   # a copy of its text, where there is no network
    python bench/expected.py tiny --seconds 1800                # goes on where it stopped when called again
    python bench/expected.py                                    # only writes the table of docs/measured.md anew

Writes minilm/presets/PRESET.DEVICE.json: validation loss by step, what it was measured on, and for shakespeare_char the
loss of its best checkpoint by protocol `nanogpt`, and ends with 1 where that is above nanoGPT's own. The run itself is
the preset's, validated more often, in runs/expected-PRESET-DEVICE.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

from pages import MEASURED, ROOT, put, told, where

from minilm import runtime
from minilm.evaluation.perplexity import perplexity
from minilm.log import duration, read_metrics
from minilm.model.weights import load_pretrained
from minilm.options import PRESETS, build, parse, read_preset
from minilm.text.mixture import open_data
from minilm.text.prepare import prepare
from minilm.train_cli import best_of
from minilm.training.loop import train

HEADING = "Presets that were trained"
VALIDATIONS = 40
EVAL_STEPS = 20  # a validation reads at most the tokens of so many steps
PROTOCOLS = {"shakespeare_char": "nanogpt"}
AT_MOST = {("shakespeare_char", "cpu"): 1.89, ("shakespeare_char", "cuda"): 1.47}  # nanoGPT's README: 1.88, 1.4697


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="*")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--source", type=Path, default=None)
    parser.add_argument("--seconds", type=float, default=0.0, help="stop and save after so many, 0: never")
    options = parser.parse_args()
    device = runtime.pick_device(options.device).type
    held = [measured(preset, device, options.source, options.seconds) for preset in options.presets]
    put(MEASURED, HEADING, table())
    return int(not all(held))


def measured(preset: str, device: str, source: Path | None, seconds: float) -> bool:
    """Trains a preset, or goes on with it, and writes its file; False where its loss is above what it is to reach."""
    config = parse(["--config", preset], device).config
    data = prepare(config.data, tokenizer=config.tokenizer or None, source=source)
    run = ROOT / "runs" / f"expected-{preset}-{device}"
    every = max(config.max_steps // VALIDATIONS, 1)
    eval_tokens = min(config.eval_tokens, EVAL_STEPS * config.batch_size * config.model.block_size)
    config = replace(config, data=str(data), out_dir=str(run), device=device, source="", eval_tokens=eval_tokens)
    config = replace(config, eval_every_steps=every, save_every_steps=every)
    if run.exists():  # as it began, whatever the preset says today
        config = replace(build(read_preset(str(run / "config.toml"), device)), out_dir=str(run), existing="resume")
    if seconds:
        timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM))
        timer.daemon = True
        timer.start()
    result = train(config)
    shards = open_data(str(data), 1.0)
    rows = [row for row in read_metrics(run / "metrics.jsonl") if row.get("val_loss") is not None]
    model = result.model.config
    precision = json.loads((run / "run.json").read_text(encoding="utf-8"))["setup"]["precision"]
    record: dict[str, Any] = {
        "data": shards.meta.name,
        "train_tokens": shards.splits["train"].n_tokens,
        "vocab_size": model.vocab_size,
        "n_layer": model.n_layer,
        "n_embd": model.n_embd,
        "block_size": model.block_size,
        "tokens_per_step": config.batch_size * model.block_size,
        "steps": [row["step"] for row in rows],
        "losses": [round(row["val_loss"], 4) for row in rows],
        "made": where()
        | {"lr": config.lr, "precision": precision, "max_steps": config.max_steps, "seconds": round(result.seconds)},
    }
    held = True
    if preset in PROTOCOLS and not result.interrupted:
        # nanoGPT's own figure is of its best checkpoint, in bf16 on a card and fp32 on a CPU: the run's precision.
        best = best_of(result)
        trained = result.model if best == result.run else load_pretrained(best)[0].to(result.model.device)
        found = perplexity(trained, data, PROTOCOLS[preset], tokenizer=result.tokenizer, precision=precision)
        loss, error = round(found.nats_per_token, 4), round(found.standard_error or 0.0, 4)
        record["protocol"] = {"name": PROTOCOLS[preset], "precision": precision, "loss": loss, "error": error}
        bar = AT_MOST.get((preset, device))
        held = bar is None or loss <= bar
        print(f"{preset} on {device}: {loss:.3f} by {PROTOCOLS[preset]}, at most {bar}: {'held' if held else 'missed'}")
    path = PRESETS / f"{preset}.{device}.json"
    path.write_text(json.dumps(record, indent=None) + "\n", encoding="utf-8")
    return held


def table() -> str:
    """Every shipped curve's end, as Markdown."""
    lines = [
        "By `python bench/expected.py PRESET`. A run that lags far behind its preset's curve is warned of "
        "([training](training.md)).",
        "",
        "| preset | lr | steps | validation loss | by protocol | time | on |",
        "|---|---|---|---|---|---|---|",
    ]
    for path in sorted(PRESETS.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        made, best = record["made"], min(record["losses"])
        at = record["steps"][record["losses"].index(best)]
        protocol = record.get("protocol")
        by = (
            f"`{protocol['name']}` in {protocol['precision']}: {protocol['loss']:.3f} ± {protocol['error']:.3f}"
            if protocol
            else ""
        )
        steps = f"{record['steps'][-1]:,} of {made['max_steps']:,}"
        lines.append(
            f"| `{path.name.split('.')[0]}` | {made['lr']:g} | {steps} | {best:.3f} after {at:,} | {by} "
            f"| {duration(made['seconds'])} | {told(made)}, {made['precision']} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
