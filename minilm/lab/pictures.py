"""Pictures of an analysis as SVG: black on white, told apart by marker, line and fill. matplotlib, lazily."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any

from minilm.errors import UsageError
from minilm.lab.analysis import Analysis
from minilm.lab.question import Measure, Picture
from minilm.lab.statistics import ALPHA, t_quantile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLES = ("o-", "s--", "^-.", "D:", "v-", "P--", "X-.", "*:")
MARKERS = "os^Dv<>PX*hpd8"


def pictures(analysis: Analysis) -> list[tuple[str, str]]:
    """(what it shows, SVG) of each picture: effects first, then those that the question asks for. Empty where there is
    nothing to draw. Raises UsageError where matplotlib is missing."""
    plt = _pyplot()
    found = []
    style = {"svg.hashsalt": "minilm", "svg.fonttype": "none", "font.size": 9, "font.sans-serif": ["DejaVu Sans"]}
    with plt.rc_context(style):
        if analysis.comparisons:
            found.append((f"Effect of each arm against {analysis.question.reference}", _svg(_effects(plt, analysis))))
        for picture in analysis.question.pictures:
            drawn = {"lines": _lines, "points": _points, "curves": _curves}[picture.kind](plt, analysis, picture)
            if drawn is not None:
                found.append(drawn)
    return found


def _pyplot() -> Any:
    try:
        import matplotlib as mpl
    except ImportError:
        raise UsageError('the report\'s pictures need matplotlib: pip install "minilm[lab]"') from None
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _svg(figure: Figure) -> str:
    import matplotlib.pyplot as plt

    written = io.StringIO()
    figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    text = written.getvalue()
    return "\n".join(line.strip() for line in text[text.index("<svg") :].splitlines()) + "\n"


def _effects(plt: Any, analysis: Analysis) -> Figure:
    """A point and interval an arm; filled where it is decided. Dotted: the margin."""
    question, found = analysis.question, analysis.comparisons
    measure = question.measures[0]
    figure, axis = plt.subplots(figsize=(7, 0.9 + 0.27 * len(found)), layout="constrained")
    for place, comparison in enumerate(reversed(found)):
        effect = comparison.effect
        ends = [end if math.isfinite(end) else effect.mean for end in (effect.low, effect.high)]
        axis.plot(ends, [place, place], "-", color="black", lw=1)
        fill = "white" if comparison.verdict == "undecided" else "black"
        axis.plot([effect.mean], [place], "o", color="black", mfc=fill, ms=5)
    axis.axvline(0, color="black", lw=0.8)
    for margin in (-question.margin, question.margin):
        axis.axvline(margin, color="black", lw=0.8, ls=":")
    axis.set_yticks(range(len(found)), [c.arm.label for c in reversed(found)])
    side = "left" if measure.better == "lower" else "right"
    axis.set_xlabel(f"{measure.title} less {question.reference}'s{_unit(measure)} ({side} is better; white: undecided)")
    return figure


def _lines(plt: Any, analysis: Analysis, picture: Picture) -> tuple[str, str] | None:
    """y against the arms' x: a line for each group, or for each arm's name where groups lie along x."""
    arms = [r for r in analysis.arms if math.isfinite(r.arm.x) and math.isfinite(r.mean(picture.y))]
    if not arms:
        return None
    measure = _measure(analysis, picture.y)
    along = len({r.arm.x for r in arms}) > 1 and all(
        len({r.arm.x for r in arms if r.arm.group == group}) == 1 for group in {r.arm.group for r in arms}
    )
    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    keys = dict.fromkeys(r.arm.name if along else r.arm.group for r in arms)
    for key, style in zip(keys, STYLES * (1 + len(keys) // len(STYLES)), strict=False):
        mine = sorted((r for r in arms if (r.arm.name if along else r.arm.group) == key), key=lambda r: r.arm.x)
        means = [r.mean(picture.y) for r in mine]
        halves = [_half(r.values[picture.y]) for r in mine]
        axis.errorbar(
            [r.arm.x for r in mine], means, halves, fmt=style, color="black", ms=5, lw=1, capsize=2, label=key or None
        )
    _finish(axis, picture.x, str(measure), picture.log, bool(any(keys)))
    return f"{measure.title} against {picture.x}; bars: 95 % interval over seeds", _svg(figure)


def _points(plt: Any, analysis: Analysis, picture: Picture) -> tuple[str, str] | None:
    """One measure against another, a point an arm."""
    arms = [r for r in analysis.arms if all(math.isfinite(r.mean(name)) for name in (picture.x, picture.y))]
    if not arms:
        return None
    across, up = _measure(analysis, picture.x), _measure(analysis, picture.y)
    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for i, result in enumerate(arms):
        at = (result.mean(picture.x), result.mean(picture.y))
        axis.plot(*at, MARKERS[i % len(MARKERS)], color="black", mfc="white", ms=6)
        axis.annotate(result.arm.label, at, xytext=(5, 3), textcoords="offset points", fontsize=7)
    _finish(axis, str(across), str(up), picture.log, False)
    return f"{up.title} against {across.title}", _svg(figure)


def _curves(plt: Any, analysis: Analysis, picture: Picture) -> tuple[str, str] | None:
    """Mean over seeds of the loss at each validation; a panel a group."""
    groups = list(dict.fromkeys(r.arm.group for r in analysis.arms))
    figure, axes = plt.subplots(1, len(groups), figsize=(8, 4), sharey=True, squeeze=False, layout="constrained")
    for axis, group in zip(axes[0], groups, strict=True):
        for r, style in zip([r for r in analysis.arms if r.arm.group == group], STYLES, strict=False):
            runs = [n["metrics"]["curve"] for n in analysis.lines if (n["arm"], n["kind"]) == (r.arm.label, "paired")]
            means = [sum(loss for _, loss in at) / len(at) for at in zip(*runs, strict=False)]
            passes = [r.mean("epochs") * step / runs[0][-1][0] for step, _ in runs[0]]
            axis.plot(passes, means, style, color="black", mfc="white", ms=4, lw=0.8, label=r.arm.name)
        _finish(axis, picture.x, f"{group}: {_measure(analysis, picture.y)}", picture.log, True)
    return f"{_measure(analysis, picture.y).title} against {picture.x}, mean over seeds", _svg(figure)


def _finish(axis: Axes, across: str, up: str, log: bool, legend: bool) -> None:
    axis.set(xlabel=across, ylabel=up, xscale="log" if log else "linear")
    axis.grid(alpha=0.3, color="black", lw=0.4)
    if legend:
        axis.legend(fontsize=8)


def _half(values: tuple[float, ...]) -> float:
    """Half of a t-interval of the mean over seeds; 0 where there is one seed."""
    found = [value for value in values if math.isfinite(value)]
    if len(found) < 2:
        return 0.0
    mean = sum(found) / len(found)
    spread = math.sqrt(sum((value - mean) ** 2 for value in found) / (len(found) - 1))
    return t_quantile(1 - ALPHA / 2, len(found) - 1) * spread / math.sqrt(len(found))


def _measure(analysis: Analysis, name: str) -> Measure:
    return next(measure for measure in analysis.question.measures if measure.name == name)


def _unit(measure: Measure) -> str:
    return f", {measure.unit}" if measure.unit else ""
