"""How small a model writes coherently: parameters, compute and seconds, at level 1 and level 2."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from minilm.lab.answers import power
from minilm.lab.measures import BEFORE, COHERENT, LOSS, PARAMETERS, SECONDS_ALONE, SPEED, TERAFLOPS
from minilm.lab.question import GPU, LAPTOP, SMOKE, Arm, Picture, Question, Scale, grid, prose

# Layers, heads, width; parameters in blocks are about 12 x layers x width^2.
SHAPES = {"width 24": (2, 1, 24), "width 48": (3, 2, 48), "width 96": (3, 3, 96), "width 128": (3, 4, 128)}
SHAPES |= {"width 192": (3, 3, 192), "width 256": (4, 4, 256), "width 384": (5, 6, 384)}
CONTEXT = {1: 128, 2: 192, 3: 256, 4: 384}
"""Level -> the longest story and a little more."""
STUDY = Path(__file__).resolve().parents[2] / "bench" / "results" / "tales_models.jsonl"
TRIES = STUDY.parents[2] / "models" / "tales-smallest" / "tries.jsonl"


def arms(scale: Scale) -> list[Arm]:
    found = []
    tokens = scale.run["batch_size"] * scale.run["block_size"]
    for level in scale.extra["levels"]:
        T = scale.extra.get("context") or CONTEXT[level]
        for name in scale.extra["shapes"]:
            n_layer, n_head, n_embd = SHAPES[name]
            run = {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd, "block_size": T}
            run |= {"batch_size": tokens // T, "micro_batch_size": 0}
            # The best rate falls about with the root of the width; tiny's 1e-2 at 192 is where that is known.
            rates = grid(1e-2 * (192 / n_embd) ** 0.5, n=3)
            blocks = 12 * n_layer * n_embd**2
            found.append(Arm(name, run, rates, group=f"level {level}", data={"level": level}, x=blocks))
    return found


def told(analysis: Any) -> list[str]:
    """What it took in the study of tales (bench/tales.py), where it is at hand, until so many stories of each size hold
    together: its shortest training that came to the goal, else its longest. Seconds of CPUs alone."""
    rows, tries = (
        [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.is_file() else []
        for path in (STUDY, TRIES)
    )
    found, goal = [], analysis.question.goal[1]
    for level in (1, 2):
        each = []
        for size in dict.fromkeys(r["size"] for r in sorted(rows, key=lambda r: r["parameters"])):
            mine = sorted((r for r in rows if (r["level"], r["size"]) == (level, size)), key=lambda r: r["tokens"])
            there = [r for r in mine if 100 * r["passed"] >= goal * r["n_stories"]]
            r = (there or mine[::-1])[0]
            clock = "" if r.get("processor") else f", {r['train_seconds']:,.0f} s on {r['threads']} CPU threads"
            each.append(
                f"{size} {'reached' if there else 'not reached'} with {r['tokens'] / 1e6:.1f} M tokens, "
                f"{6e-12 * r['parameters'] * r['tokens']:.0f} TFLOP as 6 N T{clock} "
                f"({100 * r['passed'] / r['n_stories']:.1f} %, 95 % {100 * r['low']:.0f} to {100 * r['high']:.0f})"
            )
        if each:
            found.append(f"{goal:g} % coherent at level {level}, in the study of tales: {'; '.join(each)}.")
    each = []
    for t in tries:
        (layers, _, width), clock = SHAPES[t["try"][0]], f", {t['seconds']:,} s" if "seconds" in t else ""
        flops = f"{72e-12 * layers * width**2 * t['tokens']:.0f} TFLOP as 6 N T of its blocks{clock}"
        each.append(f"{t['try'][0]}, {t['tokens'] / 1e6:.1f} M tokens, {flops}, {100 * t['share']:.1f} %")
    return [*found, f"Tried for the packaged model, level 1, 500 stories each: {'; '.join(each)}."] if each else found


_FEW = ("width 24", "width 192")
_LAPTOP = {"levels": (1, 2), "shapes": ("width 24", "width 48", "width 96", "width 192")}
QUESTION = Question(
    **prose("model_size"),
    measures=(COHERENT, BEFORE, LOSS, PARAMETERS, TERAFLOPS, SECONDS_ALONE, SPEED),
    margin=2.0,
    reference="width 192",
    minutes=69,
    arms=arms,
    scales={
        "smoke": SMOKE.but(
            {"max_steps": 2}, n_rates=1, n_stories=1, extra={"levels": (1,), "shapes": _FEW, "context": 32}
        ),
        "laptop": LAPTOP.but({"max_steps": 1100}, n_seeds=3, extra=_LAPTOP),
        "gpu": GPU.but(
            {"batch_size": 64, "block_size": 384, "max_steps": 4000},
            {"megabytes": 100.0},
            n_rates=3,
            extra={"levels": (1, 2, 3, 4), "shapes": tuple(SHAPES)},
        ),
    },
    pictures=tuple(Picture("lines", "parameters in blocks", y, log=True) for y in ("coherent", "before", "val_loss")),
    judges={"Kaplan 2020": power},
    goal=("coherent", 90.0),
    tells=told,
    timed=True,
)
