"""`minilm plot runs/a runs/b`: curves of runs, to a file and into the terminal; steps to a target."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from minilm.command_line import Parser
from minilm.config import nearest
from minilm.errors import UsageError
from minilm.log import read_metrics
from minilm.options import run_config
from minilm.picture import as_text, draw


def main(argv: Sequence[str] | None = None) -> int:
    """Draws what the command line names; returns the exit code."""
    parser = Parser(prog="minilm plot", description="Curves of runs.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders")
    parser.add_argument("--metric", default="val_loss", metavar="NAME", help="a key of metrics.jsonl (%(default)s)")
    parser.add_argument("--x", choices=("step", "tokens"), default="step", help="(%(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="a .png or .svg beside the terminal's picture")
    parser.add_argument("--target", type=float, metavar="LOSS", help="say when each run first reached it")
    options = parser.parse_words(sys.argv[1:] if argv is None else argv)
    curves = [(run, *curve(Path(run), options.metric, options.x)) for run in options.runs]
    width = shutil.get_terminal_size().columns
    print(as_text(curves, width=max(20, min(width, 100) - 12)))
    if options.target is not None:
        for run, x, y in curves:
            reached = next((at for at, value in zip(x, y, strict=True) if value <= options.target), None)
            says = "not reached" if reached is None else f"reached at {options.x} {reached:,}"
            print(f"{run}: {options.metric} {options.target:g} {says}")
    if options.out:
        draw(curves, options.out, options.x, options.metric)
        print(f"written: {options.out}")
    return 0


def curve(run: Path, metric: str, x: str) -> tuple[list[int], list[float]]:
    """x and the metric wherever a run logged a finite one. Raises UsageError on a folder without metrics or an unknown
    name."""
    if not (run / "metrics.jsonl").is_file():
        raise UsageError(f"{run} holds no metrics.jsonl: name a run folder")
    logged = [row for row in read_metrics(run / "metrics.jsonl") if type(row.get("step")) is int]
    rows = [row for row in logged if type(row.get(metric)) in (int, float) and math.isfinite(row[metric])]
    if not rows:
        known = sorted({key for row in logged for key in row})
        has = f"it has {', '.join(known)}" if known else "nothing has been logged yet"
        raise UsageError(f"{run} logged no {metric!r} that can be drawn{nearest(metric, known)}: {has}")
    config = run_config(run) if x == "tokens" else None
    per_step = config.batch_size * config.model.block_size if config else 1
    return [row["step"] * per_step for row in rows], [row[metric] for row in rows]
