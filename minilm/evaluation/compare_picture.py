"""Several models side by side as one picture: who is better, at what cost, where; with which context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from minilm.errors import UsageError
from minilm.evaluation.breakdown import TITLES, Breakdown
from minilm.evaluation.compare import Difference
from minilm.evaluation.paired_texts import TextDifference

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
    """Writes the picture (svg, png, pdf by the file's ending). Raises UsageError without matplotlib, or where the file
    cannot be written."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError('pictures need matplotlib: pip install "minilm[lab]"') from None
    short = _short(found.models)
    found = replace(found, models=[short[name] for name in found.models])
    found.grid = {(short[name], context): value for (name, context), value in found.grid.items()}
    found.differences = [replace(one, b=short[one.b]) for one in found.differences]
    found.texts = [replace(one, b=short[one.b]) for one in found.texts]
    panels: list[Any] = [lambda axis: _intervals(axis, found.differences, "nats or bits more than the first")]
    panels += [lambda axis, cost=cost: _cost(axis, found, cost) for cost in COSTS]
    panels += [lambda axis, i=i: _breakdown(axis, found, i) for i in range(3) if found.breakdowns[0][i]]
    if found.grid:
        panels.append(lambda axis: _grid(axis, found))
    if found.texts:
        panels.append(lambda axis: _intervals(axis, found.texts, "generated text: more than the first"))
    rows = -(-len(panels) // 3)
    figure = Figure(figsize=(13, 3.4 * rows), layout="constrained")
    axes = figure.subplots(rows, 3, squeeze=False).flatten()
    for axis, panel in zip(axes, panels, strict=False):
        panel(axis)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    try:
        figure.savefig(file)
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be written ({error}): name a .svg, .png or .pdf file") from None


def _short(names: Sequence[str]) -> dict[str, str]:
    """The last part of each path, with a number where two are alike."""
    ends = {name: name.rstrip("/").rpartition("/")[2][-20:] for name in names}
    alike = {name: [other for other in ends if ends[other] == ends[name]] for name in ends}
    return {
        name: end if len(alike[name]) == 1 else f"{end} {alike[name].index(name) + 1}" for name, end in ends.items()
    }


def _intervals(axis: Any, found: Sequence[Difference | TextDifference], title: str) -> None:
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


def _cost(axis: Any, found: Compared, cost: str) -> None:
    for name, value, costs in zip(found.models, found.values, found.costs, strict=True):
        axis.plot(costs[cost], value, "o")
        axis.annotate(name, (costs[cost], value), textcoords="offset points", xytext=(4, 4), fontsize=7)
    axis.set(xscale="log", xlabel=cost.replace("_", " "), ylabel=found.measure)


def _breakdown(axis: Any, found: Compared, place: int) -> None:
    for name, one in zip(found.models, found.breakdowns, strict=True):
        axis.plot([b.high for b in one[place]], [b.nats for b in one[place]], marker="o", label=name)
    axis.set(xscale="log", xlabel=TITLES[place].removeprefix("by "), ylabel="nats per token")
    axis.legend(fontsize=7)


def _grid(axis: Any, found: Compared) -> None:
    """Models down, contexts across; a cell that cannot be read stays white."""
    contexts = sorted({context for _, context in found.grid})
    cells = [[found.grid.get((name, context), float("nan")) for context in contexts] for name in found.models]
    axis.imshow(cells, aspect="auto", cmap="viridis_r")
    for row, line in enumerate(cells):
        for column, value in enumerate(line):
            axis.text(column, row, f"{value:.2f}" if value == value else "-", ha="center", va="center", fontsize=7)
    axis.set_xticks(range(len(contexts)), [f"{context:,}" for context in contexts])
    axis.set_yticks(range(len(found.models)), found.models)
    axis.set(xlabel="context read", title=f"{found.measure} by model and context")
