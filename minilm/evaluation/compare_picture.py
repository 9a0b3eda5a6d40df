"""Several models side by side as one picture: who is better, at what cost, where; with which context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from minilm.evaluation.breakdown import Breakdown, curves
from minilm.evaluation.compare import Difference
from minilm.evaluation.paired_texts import TextDifference
from minilm.picture import panels

COSTS = ("parameters", "peak_mb", "gflops_per_token", "ms_per_token")


@dataclass
class Compared:
    """What there is to draw. The first model is the baseline."""

    measure: str
    """What `values` are: lower is better."""
    models: list[str]
    values: list[float]
    costs: list[dict[str, float]]
    """Of each model, by the names in COSTS."""
    differences: list[Difference]
    breakdowns: list[Breakdown]
    grid: dict[tuple[str, int], float] = field(default_factory=dict)
    """(model, context read) -> value; what a model cannot read is missing."""
    texts: list[TextDifference] = field(default_factory=list)


def draw(found: Compared, file: str | Path) -> None:
    """Writes the picture. Raises UsageError as `panels` does."""
    short = _short(found.models)
    found = replace(found, models=[short[name] for name in found.models])
    found.grid = {(short[name], context): value for (name, context), value in found.grid.items()}
    found.differences = [replace(one, b=short[one.b]) for one in found.differences]
    found.texts = [replace(one, b=short[one.b]) for one in found.texts]
    apart = dict(zip(found.models, found.breakdowns, strict=True))
    drawers = [partial(_intervals, found.differences, "nats or bits more than the first")]
    drawers += [partial(_cost, found, cost) for cost in COSTS]
    drawers += [partial(curves, apart, place) for place in range(3) if found.breakdowns[0][place]]
    drawers += [partial(_grid, found)] if found.grid else []
    drawers += [partial(_intervals, found.texts, "generated text: more than the first")] if found.texts else []
    panels(drawers, file)


def _short(names: Sequence[str]) -> dict[str, str]:
    """The last part of each path, with a number where two are alike."""
    ends = {name: name.rstrip("/").rpartition("/")[2][-20:] for name in names}
    alike = {name: [other for other in ends if ends[other] == ends[name]] for name in ends}
    return {
        name: end if len(alike[name]) == 1 else f"{end} {alike[name].index(name) + 1}" for name, end in ends.items()
    }


def _intervals(found: Sequence[Difference | TextDifference], title: str, axis: Any) -> None:
    """Each difference with its interval, as a share of the interval's half width where scales differ."""
    of_texts = [one for one in found if isinstance(one, TextDifference)]
    for row, one in enumerate(found):
        scale = 2 / (one.value.high - one.value.low or 1.0) if of_texts else 1.0
        value, low, high = (scale * number for number in one.value)
        axis.errorbar(value, -row, xerr=[[value - low], [high - value]], marker="o", capsize=3)
    axis.axvline(0, color="grey", linewidth=0.8)
    names = [f"{one.b}: {one.measure}" if isinstance(one, TextDifference) else one.b for one in found]
    axis.set_yticks([-row for row in range(len(found))], names, fontsize=7)
    axis.set(title=title, xlabel="half widths of the 95 % interval" if of_texts else "95 % interval")


def _cost(found: Compared, cost: str, axis: Any) -> None:
    for name, value, costs in zip(found.models, found.values, found.costs, strict=True):
        axis.plot(costs[cost], value, "o")
        axis.annotate(name, (costs[cost], value), textcoords="offset points", xytext=(4, 4), fontsize=7)
    axis.set(xscale="log", xlabel=cost.replace("_", " "), ylabel=found.measure)


def _grid(found: Compared, axis: Any) -> None:
    """Models down, contexts across; a cell that cannot be read stays white."""
    contexts = sorted({context for _, context in found.grid})
    cells = [[found.grid.get((name, context), float("nan")) for context in contexts] for name in found.models]
    axis.imshow(cells, aspect="auto", cmap="viridis_r")
    dark = (min(found.grid.values()) + max(found.grid.values())) / 2
    for row, line in enumerate(cells):
        for column, value in enumerate(line):
            style: dict[str, Any] = {"ha": "center", "va": "center", "color": "white" if value > dark else "black"}
            axis.text(column, row, f"{value:.2f}" if value == value else "-", fontsize=7, **style)
    axis.set_xticks(range(len(contexts)), [f"{context:,}" for context in contexts])
    axis.set_yticks(range(len(found.models)), found.models)
    axis.set(xlabel="context read", title=f"{found.measure} by model and context")
