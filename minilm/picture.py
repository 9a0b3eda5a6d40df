"""Curves as text for a terminal, and as PNG or SVG (matplotlib, the extra `lab`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from minilm.errors import UsageError

Curve = tuple[str, Sequence[float], Sequence[float]]  # name, x, y
NEEDS_MATPLOTLIB = "drawing to a file needs the extra `lab`: pip install 'minilm[lab]'"
MARKS = "ox+*#@%&"


def as_text(curves: Sequence[Curve], width: int = 72, height: int = 16) -> str:
    """The curves as characters, one mark each, axes labelled at their ends. Curves without points are left out."""
    drawn = [(mark, curve) for mark, curve in zip(cycle(MARKS), curves, strict=False) if len(curve[1])]
    if not drawn:
        return "nothing to draw"
    xs = [x for _, curve in drawn for x in curve[1]]
    ys = [y for _, curve in drawn for y in curve[2]]
    left, right, low, high = min(xs), max(xs), min(ys), max(ys)
    cells = [[" "] * width for _ in range(height)]
    for mark, (_, x_of, y_of) in drawn:
        for x, y in zip(x_of, y_of, strict=True):
            column = round((x - left) / (right - left or 1.0) * (width - 1))
            row = round((high - y) / (high - low or 1.0) * (height - 1))
            cells[row][column] = mark
    labels = [f"{high:.4g}", *[""] * (height - 2), f"{low:.4g}"]
    margin = max(map(len, labels))
    lines = [f"{label:>{margin}} |{''.join(row).rstrip()}" for label, row in zip(labels, cells, strict=True)]
    ends = f"{left:.4g}", f"{right:.4g}"
    lines += [" " * margin + " +" + "-" * width, " " * (margin + 2) + ends[0] + f"{ends[1]:>{width - len(ends[0])}}"]
    return "\n".join(lines + [f"  {mark} {name}" for mark, (name, _, _) in drawn])


def draw(curves: Sequence[Curve], path: Path, x_label: str, y_label: str) -> None:
    """Writes the curves to a file of any format that matplotlib knows by its suffix.

    Raises UsageError without matplotlib, on an unknown suffix, or where the file cannot be written.
    """
    try:
        import matplotlib
    except ImportError:
        raise UsageError(NEEDS_MATPLOTLIB) from None
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, x, y in curves:
        axis.plot(x, y, label=name, linewidth=1, marker="." if len(x) < 30 else None)
    axis.set_xlabel(x_label)
    axis.set_ylabel(y_label)
    axis.legend()
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be drawn: {error}") from None
    finally:
        plt.close(figure)


def panels(drawers: Sequence[Callable[[Any], None]], path: str | Path) -> None:
    """Writes a picture of several axes, three in a row, each filled by a drawer that is called with it.

    Raises UsageError without matplotlib, or where the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError(NEEDS_MATPLOTLIB) from None
    rows = -(-len(drawers) // 3)
    figure = Figure(figsize=(13, 3.4 * rows), layout="constrained")
    axes = figure.subplots(rows, 3, squeeze=False).flatten()
    for axis, drawer in zip(axes, drawers, strict=False):
        drawer(axis)
    for axis in axes[len(drawers) :]:
        axis.set_axis_off()
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be written ({error}): name a .svg, .png or .pdf file") from None
