"""How much text of its own pretraining is worth to a finetuned model: Hernandez's law, fitted with intervals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minilm.lab.finetune import base, finetuning, large, unseen
from minilm.lab.measures import LOSS, PARAMETERS
from minilm.lab.question import Arm, Base, Picture, Question, Scale, grid, prose
from minilm.lab.statistics import ALPHA, power_law, t_quantile


def arms(scale: Scale) -> list[Arm]:
    found = []
    small: tuple[dict[str, Any], Base] = {}, base(scale)
    for size, (shape, start) in {"small": small, "large": large(scale)}.items():
        for megabytes in scale.extra["megabytes"]:
            run, group = {**scale.extra["finetune"], **shape}, f"{size}, {megabytes:g} MB"
            data, x = unseen(megabytes), 1e6 * megabytes
            from_scratch = Base(start.run, start.data, weights=False)
            found.append(Arm("pretrained", run, grid(1e-3), group, data, base=start, x=x))
            found.append(Arm("from scratch", run, grid(1e-2), group, data, base=from_scratch, x=x))
    return found


def told(analysis: Any) -> list[str]:
    """The law's fit, where there are points enough: of each pretrained arm, how much text a model from scratch would
    need for its loss, by a power law through those from scratch of its size."""
    rows = []
    for size in ("small", "large"):
        mine = [r for r in analysis.arms if r.arm.group.startswith(size)]
        scratch = sorted((r.arm.x, r.mean("val_loss")) for r in mine if r.arm.name == "from scratch")
        if len(scratch) < 3:
            continue
        law = power_law([x for x, _ in scratch], [y for _, y in scratch])
        for r in mine:
            above = (r.mean("val_loss") - law.floor) / law.scale if r.arm.name == "pretrained" and law.scale else 0.0
            if above > 0 and (worth := above ** (-1 / law.power)) > r.arm.x:
                rows.append((math.log(r.arm.x), math.log(r.mean("parameters")), math.log(worth - r.arm.x)))
    return [hernandez(rows)]


def hernandez(rows: list[tuple[float, float, float]]) -> str:
    """Least squares of ln D_T = ln k + alpha ln D_F + beta ln N over rows (ln D_F, ln N, ln D_T), with t-intervals."""
    table = np.array(rows, float).reshape(-1, 3)
    columns = [np.ones(len(table)), table[:, 0], table[:, 1]]
    design, names = np.stack(columns, axis=1), ["ln k", "alpha", "beta"]
    if len(table) < 3 or np.ptp(table[:, 1]) == 0:
        design, names = design[:, :2], names[:2]
    n, wanted = design.shape
    if n <= wanted or np.linalg.matrix_rank(design) < wanted:
        return f"Hernandez's law cannot be fitted: {n} of the pretrained arms are worth a finite amount of other text."
    found, *_ = np.linalg.lstsq(design, table[:, 2], rcond=None)
    left = table[:, 2] - design @ found
    spread = np.sqrt(np.diag(np.linalg.inv(design.T @ design)) * (left @ left) / (n - wanted))
    half = t_quantile(1 - ALPHA / 2, n - wanted) * spread
    each = ", ".join(
        f"{name} {value:.3g} ({value - h:.3g} to {value + h:.3g})"
        for name, value, h in zip(names, found, half, strict=True)
    )
    return f"D_T = k D_F^alpha N^beta, text in bytes, {n} points: {each} (95 %, of the fit alone)."


_SIZES = (0.02, 0.06, 0.2, 0.6)
QUESTION = Question(
    **prose("transfer"),
    measures=(LOSS, PARAMETERS),
    margin=0.02,
    reference="from scratch",
    arms=arms,
    scales=finetuning(
        {"megabytes": (0.02, 0.04)}, {"megabytes": _SIZES}, {"megabytes": (*_SIZES, 2.0, 6.0)}, n_stories=0
    ),
    minutes=90,
    pictures=(Picture("lines", "text of the new style, bytes", "val_loss", log=True),),
)
