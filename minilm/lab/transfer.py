"""How much text of its own pretraining is worth to a finetuned model: Hernandez's law, fitted with intervals."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from minilm.lab.finetune import base, finetuning, unseen
from minilm.lab.measures import LOSS, PARAMETERS
from minilm.lab.question import Arm, Measure, Picture, Question, Scale, grid, prose
from minilm.lab.statistics import ALPHA, t_quantile
from minilm.lab.trial import Trained

LOWEST = Measure("lowest_loss", "lowest validation loss of the run", "nats per token", digits=4)
PUBLISHED = {"alpha": 0.18, "beta": 0.38}  # English to Python, Hernandez 2021
PASSES = 6  # over the text, at least
BYTES_PER_TOKEN = 2.3  # of the new style in the base's tokens, roughly: it decides how many steps there are


def arms(scale: Scale) -> list[Arm]:
    found, most = [], max(scale.extra["megabytes"])
    fewest = scale.extra["finetune"]["max_steps"]
    for size, shape in scale.extra["sizes"].items():
        start = base(scale, name=f"-{size.replace(' ', '')}")
        start = replace(start, run={**start.run, **shape})
        from_scratch = replace(start, weights=False, pretrained="")
        for megabytes in scale.extra["megabytes"]:
            group, data, x = f"{size}, {megabytes:g} MB", unseen(megabytes), 1e6 * megabytes
            if megabytes < most:  # which is there to tell what little is worth
                run = {**_run(scale, megabytes, fewest), **shape}
                found.append(Arm("pretrained", run, grid(5e-3), group, data, base=start, x=x))
            run = {**_run(scale, megabytes, 4 * fewest), **shape}
            found.append(Arm("from scratch", run, grid(5e-3), group, data, base=from_scratch, x=x))
    return found


def _run(scale: Scale, megabytes: float, fewest: int) -> dict[str, Any]:
    """Steps for the text at hand, validated often enough to see the lowest loss go by."""
    per_step = scale.run["batch_size"] * scale.run["block_size"]
    steps = max(fewest, round(PASSES * 1e6 * megabytes / BYTES_PER_TOKEN / per_step))
    every = max(steps // 12, 2)
    short = {"max_steps": steps, "eval_every_steps": every, "save_every_steps": every}
    return {**scale.extra["finetune"], **short, "warmup_steps": 0, "warmup_share": 0.08}


def lowest(trained: Trained) -> dict[str, float]:
    """What stopping early would have kept."""
    return {"lowest_loss": min(loss for _, loss in trained.metrics["curve"])}


def worth(analysis: Any) -> tuple[list[tuple[float, float, float]], list[str], list[str]]:
    """What each pretrained arm is worth: the text with which a model of its size has its loss from scratch, between the
    two amounts whose losses enclose it (linear in the logarithm of the text). The law's rows (ln D_F, ln N, ln D_T); a
    phrase for each arm; and what lies beyond all amounts from scratch, which has no such text and is left out."""
    rows, worths, beyond = [], [], []
    for size in analysis.scale.extra["sizes"]:
        mine = [r for r in analysis.arms if r.arm.group.startswith(size)]
        scratch = sorted((r.mean("lowest_loss"), math.log(r.arm.x)) for r in mine if r.arm.name == "from scratch")
        for r in (r for r in mine if r.arm.name == "pretrained" and len(scratch) > 1):
            if not scratch[0][0] <= (loss := r.mean("lowest_loss")) <= scratch[-1][0]:
                beyond.append(r.arm.label)
                continue
            more = math.exp(np.interp(loss, [y for y, _ in scratch], [x for _, x in scratch])) - r.arm.x
            worths.append(f"{r.arm.label}: {more / 1e6:.3g} MB")
            if more > 0:
                rows.append((math.log(r.arm.x), math.log(r.mean("parameters")), math.log(more)))
    return rows, worths, beyond


def told(analysis: Any) -> list[str]:
    """What each pretrained arm is worth, and the law's fit, where there are points enough."""
    rows, worths, beyond = worth(analysis)
    found = [f"Pretraining is worth so much more text of the new kind: {'; '.join(worths)}."] if worths else []
    if beyond:
        found.append(f"Better than every amount from scratch here, so in no law: {', '.join(beyond)}.")
    each = ", ".join(f"{name} {value:.3g} ({low:.3g} to {high:.3g})" for name, value, low, high in hernandez(rows))
    if each:
        law = f"D_T = k D_F^alpha N^beta, text in bytes, {len(rows)} points: {each} (95 %, of the fit alone)."
        return [*found, law]
    return [*found, f"Hernandez's law cannot be fitted: {len(rows)} pretrained arms are worth a finite amount of text."]


def judged(analysis: Any) -> str:
    """Whether the fit's intervals hold the published exponents."""
    found = [
        f"{name} {value:.3g} ({low:.3g} to {high:.3g}) beside {PUBLISHED[name]:g}: "
        + ("agrees" if low <= PUBLISHED[name] <= high else "another exponent")
        for name, value, low, high in hernandez(worth(analysis)[0])
        if name in PUBLISHED
    ]
    return "; ".join(found) or "the law cannot be fitted here"


def hernandez(rows: list[tuple[float, float, float]]) -> list[tuple[str, float, float, float]]:
    """Least squares of ln D_T = ln k + alpha ln D_F + beta ln N over rows (ln D_F, ln N, ln D_T): each number with its
    95 % t-interval; none of too few rows."""
    table = np.array(rows, float).reshape(-1, 3)
    columns = [np.ones(len(table)), table[:, 0], table[:, 1]]
    design, names = np.stack(columns, axis=1), ["ln k", "alpha", "beta"]
    if len(table) < 3 or np.ptp(table[:, 1]) == 0:
        design, names = design[:, :2], names[:2]
    n, wanted = design.shape
    if n <= wanted or np.linalg.matrix_rank(design) < wanted:
        return []
    found, *_ = np.linalg.lstsq(design, table[:, 2], rcond=None)
    left = table[:, 2] - design @ found
    spread = np.sqrt(np.diag(np.linalg.inv(design.T @ design)) * (left @ left) / (n - wanted))
    half = t_quantile(1 - ALPHA / 2, n - wanted) * spread
    return list(zip(names, found, found - half, found + half, strict=True))


_MEGABYTES = (0.02, 0.06, 0.2, 0.6, 1.2)
QUESTION = Question(
    **prose("transfer"),
    measures=(LOWEST, LOSS, PARAMETERS),
    margin=0.02,
    reference="from scratch",
    chosen_by="lowest_loss",
    arms=arms,
    scales=finetuning(
        {"megabytes": (0.02, 0.04), "sizes": {"width 8": {"n_embd": 8}, "width 16": {}}},
        {"megabytes": _MEGABYTES, "sizes": {f"width {w}": {"n_embd": w, "n_head": w // 24} for w in (24, 48)}},
        {"megabytes": (*_MEGABYTES, 6.0), "sizes": {"width 384": {"n_embd": 384}, "width 768": {}}},
        n_seeds=3,
        n_stories=0,
    ),
    minutes=23,
    measure=lowest,
    tells=told,
    tells_first=True,
    judges={"Hernandez 2021": judged},
    pictures=(Picture("lines", "text of the new style, bytes", "lowest_loss", log=True),),
)
