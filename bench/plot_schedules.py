"""Draws every schedule to docs/schedules.svg: `python bench/plot_schedules.py`. Needs the extra `lab`."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from minilm.config import TrainConfig
from minilm.training.schedules import SCHEDULES, lr_factor

OUT = Path(__file__).resolve().parent.parent / "docs" / "schedules.svg"


def main() -> None:
    matplotlib.rcParams.update({"svg.hashsalt": "minilm", "svg.fonttype": "none", "font.size": 8})
    figure, axes = plt.subplots(2, 4, figsize=(8, 3.2), sharex=True, sharey=True, layout="constrained")
    for axis, name in zip(axes.flat, SCHEDULES, strict=True):
        config = TrainConfig(schedule=name, max_steps=200, warmup_share=0.1)  # type: ignore[arg-type]
        axis.plot([lr_factor(step, config) for step in range(config.max_steps)], linewidth=1)
        axis.set_title(name, fontsize=8)
        axis.set_ylim(0, 1.05)
    figure.supxlabel("step", fontsize=8)
    figure.supylabel("share of --lr", fontsize=8)
    figure.savefig(OUT, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    # matplotlib ends some lines in spaces
    OUT.write_text("".join(line.rstrip() + "\n" for line in OUT.read_text().splitlines()), encoding="utf-8")


if __name__ == "__main__":
    main()
