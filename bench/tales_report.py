"""docs/tales_models.md and its pictures, from the results of bench/tales.py. Cells without a result are named there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from minilm.text import tales

if TYPE_CHECKING:
    from tales import Cell

Line = dict[str, Any]
DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE = DOCS / "tales_models.md"
PICTURES = DOCS / "pictures"
LEVELS = (1, 2, 3, 4)
LINES = {1: "o-", 2: "s--", 3: "^-.", 4: "D:"}  # told apart without colour
RULES = (*tales.RULES, "duplicate", "copied")
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "+++", "ooo", "---", "|||", "***", "//..", "xx..")
INTRODUCTION = """# Tales: how models do

Made by `python bench/tales.py run` and `python bench/tales.py report`; nothing here is typed by hand. Each row is one
model, trained from scratch with the recipe of the preset `tiny` (muon, linear decay to zero, rope, norms on queries and
keys) at its own width, depth and rate; the rate falls with the square root of the width; steps of 2,048 tokens in short
budgets and of the preset's 8,192 in long ones (the last table says why). Coherence is measured as
always: 200 stories, temperature 1, no filter; duplicates and copies fail. The interval is Wilson's, 95 %. *Before* is
the mean share of sentences before the first broken rule: it still rises where coherence is zero. What levels and rules
are stands in [tales](tales.md).
"""

TIMED_INTRODUCTION = """The tokens that it does in that time at level 1, alone, in fp32, on two cores of an EPYC of 2022
without bf16; with bf16 hardware about five times as many. Rows of one thread and of a card took their seconds beside
other work, and were resumed or not: their tokens count, not their seconds. A card trains in bf16.
"""


def write(cells: list[Cell], results: dict[str, Line], sweep_tokens: int, timed: dict[int, int]) -> None:
    """Writes the page and the pictures. Cells: all of the study, done or not; timed: minutes -> tokens of `tiny`."""
    done = [results[cell.name] for cell in cells if cell.name in results]
    if not done:
        raise SystemExit("no results yet: python bench/tales.py run")
    PICTURES.mkdir(exist_ok=True)
    pair = {cell.name for cell in cells if cell.large_batch}
    words = [line for line in done if line["tokenizer"] == "words" and line["cell"] not in pair]
    of_sweep = {cell.name for cell in cells if cell.tokens == sweep_tokens}
    sweep = {(line["level"], line["size"]): line for line in words if line["cell"] in of_sweep}
    tiny = [line for line in words if line["size"] == "tiny"]
    tokens = {cell.name: cell.tokens for cell in cells}
    in_minutes = {minutes: [x for x in tiny if tokens[x["cell"]] == budget] for minutes, budget in timed.items()}
    parts = [INTRODUCTION, _machines(done)]
    parts += ["## Against parameters, at equal training tokens\n", _table(list(sweep.values()))]
    parts += [_curves(list(sweep.values()), "parameters", "parameters", "tales_parameters.png")]
    parts += ["## Which rules fail\n", _failures(sweep)]
    parts += ["## Against training tokens\n", _table(words)]
    parts += [_curves(tiny, "tokens", "training tokens", "tales_tokens.png")]
    parts += ["## A level that tells models of a size apart\n", _between(words)]
    parts += ["## `tiny` after so many minutes on two cores\n", TIMED_INTRODUCTION, _minutes(in_minutes)]
    parts += [_tokenizers(done), _batches(done, pair)]
    missing = [cell.name for cell in cells if cell.name not in results]
    if missing:
        parts += [f"## Not run yet\n\n{len(missing)} of {len(cells)} cells: {', '.join(missing)}.\n"]
    PAGE.write_text("\n".join(part for part in parts if part), encoding="utf-8")


def _ordered(lines: Any) -> list[Line]:
    return sorted(lines, key=lambda line: (line["level"], line["parameters_in_blocks"], line["tokens"]))


def _machines(lines: Sequence[Line]) -> str:
    dates = sorted({line["date"] for line in lines})
    how = sorted({f"{line['precision']} on {_on(line)}" for line in lines})
    commits = sorted({line["commit"] for line in lines})
    return (
        f"{dates[0]} to {dates[-1]}, torch {', '.join(sorted({line['torch'] for line in lines}))}, {'; '.join(how)}; "
        f"commits {', '.join(commits)}. Seconds on one thread or a card were taken beside other work.\n"
    )


def _on(line: Line) -> str:
    """Where a cell was trained: a processor has so many threads of it, a card all of it."""
    processor, threads = line.get("processor", ""), line["threads"]
    return processor if processor.startswith("NVIDIA") else f"{threads} thread{'s' * (threads > 1)}"


def _table(lines: Sequence[Line]) -> str:
    head = ["level", "size", "parameters", "tokens", "loss", "bits/byte", "coherent", "95 %", "before", "seconds", "on"]
    rows = [head]
    for line in _ordered(lines):
        n = line["n_stories"]
        row = [
            str(line["level"]),
            line["size"],
            f"{line['parameters']:,}",
            f"{line['tokens'] / 1e6:.2f} M",
            f"{line['val_loss']:.3f}",
            f"{line['bits_per_byte']:.3f}",
            f"{100 * line['passed'] / n:.1f} %",
            f"{100 * line['low']:.0f} to {100 * line['high']:.0f}",
            f"{100 * line['mean_before']:.0f} %",
            f"{line['train_seconds']:,.0f}",
            _on(line),
        ]
        rows.append(row)
    rows.insert(1, ["---"] * len(rows[0]))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _between(lines: Sequence[Line]) -> str:
    """Where each size is neither near nothing nor near everything."""
    rows = ["Cells between 25 and 75 % coherence.\n", "| size | level, after so many tokens: coherent |", "|---|---|"]
    for size in dict.fromkeys(line["size"] for line in _ordered(lines)):
        shares = [(line, 100 * line["passed"] / line["n_stories"]) for line in _ordered(lines) if line["size"] == size]
        found = [
            f"{line['level']}, {line['tokens'] / 1e6:.1f} M: {share:.1f} %"
            for line, share in shares
            if 25 <= share <= 75
        ]
        rows.append(f"| {size} | {'; '.join(found) or 'none'} |")
    return "\n".join(rows) + "\n"


def _minutes(lines: dict[int, list[Line]]) -> str:
    rows = ["| minutes | level | tokens | coherent | 95 % | before | seconds | on |", "|---|" + "---|" * 7]
    for minutes, mine in lines.items():
        for line in _ordered(mine):
            rows.append(
                f"| {minutes} | {line['level']} | {line['tokens'] / 1e6:.1f} M "
                f"| {100 * line['passed'] / line['n_stories']:.1f} % "
                f"| {100 * line['low']:.0f} to {100 * line['high']:.0f} | {100 * line['mean_before']:.0f} % "
                f"| {line['train_seconds']:,.0f} | {_on(line)} |"
            )
    return "\n".join(rows) + "\n"


def _curves(lines: Sequence[Line], x: str, name: str, file: str) -> str:
    """Coherence, and sentences before failure, of each level against x."""
    panels: list[tuple[str, Callable[[Line], float]]] = [
        ("coherent stories, %", lambda line: 100 * line["passed"] / line["n_stories"]),
        ("sentences before the first broken rule, %", lambda line: 100 * line["mean_before"]),
    ]
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, (title, value) in zip(axes, panels, strict=True):
        for level in LEVELS:
            mine = sorted((line for line in lines if line["level"] == level), key=lambda line: line[x])
            if mine:
                xs, ys = [line[x] for line in mine], [value(line) for line in mine]
                axis.plot(xs, ys, LINES[level], color="black", label=f"level {level}")
                if value is panels[0][1]:
                    lows, highs = ([100 * line[end] for line in mine] for end in ("low", "high"))
                    axis.fill_between(xs, lows, highs, color="black", alpha=0.1)
        axis.set(xscale="log", xlabel=name, ylabel=title, ylim=(-2, 102))
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(PICTURES / file, dpi=110)
    plt.close(figure)
    return f"![coherence against {name}](pictures/{file})\n"


def _failures(sweep: dict[tuple[int, str], Line]) -> str:
    """Stacked shares of the first broken rule, a bar a model, a panel a level."""
    levels = [level for level in LEVELS if any(key[0] == level for key in sweep)]
    figure, axes = plt.subplots(1, len(levels), figsize=(3 * len(levels) + 1.5, 4), sharey=True, layout="constrained")
    for axis, level in zip([axes] if len(levels) == 1 else axes, levels, strict=True):
        mine = _ordered(line for key, line in sweep.items() if key[0] == level)
        floor = [0.0] * len(mine)
        for i, rule in enumerate(("passes", *RULES)):
            shares = [
                100 * (line["passed"] if rule == "passes" else line["failures"].get(rule, 0)) / line["n_stories"]
                for line in mine
            ]
            shade = "white" if rule == "passes" else str(0.35 + 0.6 * (i % 4) / 4)
            hatch = "" if rule == "passes" else HATCHES[(i - 1) % len(HATCHES)]
            names = [line["size"] for line in mine]
            axis.bar(names, shares, bottom=floor, color=shade, hatch=hatch, edgecolor="black", lw=0.5, label=rule)
            floor = [low + share for low, share in zip(floor, shares, strict=True)]
        axis.set(title=f"level {level}", xlabel="model")
    figure.supylabel("stories by their first broken rule, %")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside right center", fontsize=8)
    figure.savefig(PICTURES / "tales_rules.png", dpi=110)
    plt.close(figure)
    return "![first broken rules](pictures/tales_rules.png)\n"


def _tokenizers(lines: Sequence[Line]) -> str:
    """Which tokenizer learns faster: `tiny`, the same tokens a step and steps; seconds tell the rest."""
    others = {line["level"] for line in lines if line["tokenizer"] != "words"}
    if not others:
        return ""
    steps = {line["steps"] for line in lines if line["tokenizer"] != "words"}
    mine = [line for line in lines if line["level"] in others and line["size"] == "tiny" and line["steps"] in steps]
    rows = [
        "## Words or BPE\n",
        "`tiny`, equal tokens; a story is longer in smaller tokens, so it sees fewer of them.\n",
    ]
    rows += ["| level | tokenizer | bits/byte | coherent | before | seconds |", "|---|---|---|---|---|---|"]
    for line in sorted(mine, key=lambda line: (line["level"], line["tokenizer"])):
        share = 100 * line["passed"] / line["n_stories"]
        rows.append(
            f"| {line['level']} | {line['tokenizer']} | {line['bits_per_byte']:.3f} | {share:.1f} % "
            f"| {100 * line['mean_before']:.0f} % | {line['train_seconds']:,.0f} |"
        )
    return "\n".join(rows) + "\n"


def _batches(lines: Sequence[Line], pair: set[str]) -> str:
    """The same tokens in few large steps and in many small ones."""
    large = [line for line in lines if line["cell"] in pair]
    if not large:
        return ""
    same = {(line["level"], line["size"], line["tokenizer"]) for line in large}
    tokens = {round(line["tokens"], -5) for line in large}
    mine = [x for x in lines if (x["level"], x["size"], x["tokenizer"]) in same and round(x["tokens"], -5) in tokens]
    rows = ["## Many steps or large ones\n", "Equal tokens, equal peak rate.\n"]
    rows += ["| level | size | tokens a step | steps | loss | coherent | before | seconds |", "|---|" + "---|" * 7]
    for line in sorted(mine, key=lambda line: line["steps"]):
        rows.append(
            f"| {line['level']} | {line['size']} | {line['tokens'] // line['steps']:,} | {line['steps']:,} "
            f"| {line['val_loss']:.3f} | {100 * line['passed'] / line['n_stories']:.1f} % "
            f"| {100 * line['mean_before']:.0f} % | {line['train_seconds']:,.0f} |"
        )
    return "\n".join(rows) + "\n"
