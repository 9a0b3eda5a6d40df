"""docs/findings/: a Markdown page with its pictures, and one HTML page that holds everything. Made from results alone.

A page is a list of blocks, written twice.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from minilm.lab.analysis import Analysis, ArmResult, analyse, another_base, reference_of
from minilm.lab.answers import agreement, answer, change_of_default, fits, loss_and_text, reached
from minilm.lab.pictures import pictures
from minilm.lab.places import Places
from minilm.lab.question import Measure
from minilm.lab.questions import QUESTIONS, load_question
from minilm.lab.statistics import told_p
from minilm.log import duration

MARKDOWN, HTML = "README.md", "index.html"
HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>minilm: findings</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 16px/1.5 Georgia, serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem; color: #000; }
table { border-collapse: collapse; font: 13px/1.4 sans-serif; display: block; overflow-x: auto; }
th, td { border: 1px solid #999; padding: 0.15rem 0.4rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
svg { max-width: 100%; height: auto; } figure { margin: 1rem 0; } code { font-size: 90%; }
</style></head><body>
"""


class Heading(NamedTuple):
    text: str
    level: int


class Text(NamedTuple):
    text: str  # `code` and **bold** in it


class Items(NamedTuple):
    items: tuple[str, ...]


class Table(NamedTuple):
    rows: tuple[tuple[str, ...], ...]  # the first is the head


class Drawing(NamedTuple):
    name: str  # of its file
    title: str
    svg: str


Block = Heading | Text | Items | Table | Drawing


def write(names: Sequence[str], scale: str, places: Places, folder: Path) -> Path:
    """Writes the report of these questions into `folder` and returns the Markdown page. Pictures that an older report
    left are removed. Raises UsageError where matplotlib is missing."""
    blocks: list[Block] = [
        Heading("Findings", 1),
        Text(f"Made by `minilm lab report --scale {scale}` from results of `minilm lab run`; nothing typed by hand."),
        Text(
            "Rates are swept on a seed of their own: as many for each arm, and one more as long as the best is the "
            "lowest or highest tried (*rate* says of how many). Then every arm runs at its best on the same seeds. "
            "An effect is the mean of paired differences with Student's 95 % interval; p is of a paired t-test, after "
            "Holm's correction over the comparisons of its question. *No difference found*: the "
            "interval lies within the margin that was set before: what difference there is does not matter. "
            "*Undecided at this scale*: neither that nor p < 0.05. *Measured once*: both sides are measured on models "
            "that no seed changes, and differ by more than the margin."
        ),
    ]
    blocks.append(Text(" · ".join(f"[{name}](#{name})" for name in names)))
    for name in names:
        question = load_question(name)
        at = question.scale(scale)
        blocks += section(analyse(question, at, places.results(name, scale)))
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*_[0-9]*.svg"):
        if old.stem.rpartition("_")[0] in QUESTIONS:
            old.unlink()
    for block in blocks:
        if isinstance(block, Drawing):
            (folder / f"{block.name}.svg").write_text(block.svg, encoding="utf-8")
    (folder / HTML).write_text(HEAD + "".join(map(as_html, blocks)) + "</body></html>\n", encoding="utf-8")
    (folder / MARKDOWN).write_text("\n".join(map(as_markdown, blocks)), encoding="utf-8")
    return folder / MARKDOWN


def section(analysis: Analysis) -> list[Block]:
    """Everything that the report says of one question."""
    question, scale = analysis.question, analysis.scale
    command = f"minilm lab run {question.name} --scale {scale.name}"
    blocks: list[Block] = [Heading(question.name, 2), Text(f"**{question.asks}**")]
    setting: list[Block] = [
        Items(
            (
                f"Varied: {question.varied}",
                f"Held fixed: {question.fixed}",
                f"Measured: {', '.join(map(str, question.measures))}; the first decides, and a difference below "
                f"{question.margin:g} does not matter.",
            )
        )
    ]
    if not analysis.arms:
        return [*blocks, Text(f"Not run yet at this scale: `{command}`."), *setting]
    told = [answer(analysis), *(question.tells(analysis) if question.tells else [])]
    told = [*told[1:], told[0]] if question.tells_first else told
    told.insert(1, f"Would change a default: {question.would_change} {change_of_default(analysis)}")
    blocks += [Text(text) for text in [*told, *reached(analysis), *fits(analysis), loss_and_text(analysis)] if text]
    blocks += [Drawing(f"{question.name}_{i}", title, svg) for i, (title, svg) in enumerate(pictures(analysis), 1)]
    blocks += [table(analysis), *setting, Heading("Threats to validity", 3), Items(tuple(threats(analysis)))]
    blocks += [Heading("Published beside it", 3)]
    blocks += [Items(tuple(f"{c.text} ({c.source}). Here: {agreement(analysis, c)}." for c in question.published))]
    return [*blocks, Heading("Again", 3), Text(f"`{command}`, then `minilm lab report`. {provenance(analysis)}")]


def table(analysis: Analysis) -> Table:
    """A row an arm: rate, means over seeds with their standard deviation, effect and verdict."""
    first = analysis.question.measures[0]
    named = [m for m in analysis.question.measures if any(m.name in r.values for r in analysis.arms)]
    with_rates = any(r.swept for r in analysis.arms)
    head = [
        "arm",
        *(["rate"] if with_rates else []),
        *map(str, named),
        f"effect on {first.title}",
        "95 %",
        "p",
        "verdict",
    ]
    rows = [tuple(head)]
    for result in analysis.arms:
        mine = [c for c in analysis.comparisons if c.arm is result.arm or c.arm.label == result.arm.label]
        untold = "diverged" if result.swept else ""
        rate = untold if result.rate is None else f"{result.rate:g}"
        rate += f" of {len(result.swept)}{' (edge)' if result.at_edge else ''}" if result.rate and result.swept else ""
        row = [result.arm.label, *([rate] if with_rates else []), *(_cell(result, m) for m in named)]
        if mine:
            effect, d = mine[0].effect, first.digits
            p = told_p(mine[0].p).removeprefix("= ") if math.isfinite(mine[0].p) else ""
            row += [f"{effect.mean:+.{d}f}", effect.interval(d), p, mine[0].verdict]
        else:
            row += ["", "", "", "reference" if result.arm.name == analysis.question.reference else "not compared"]
        rows.append(tuple(row))
    return Table(tuple(rows))


def _cell(result: ArmResult, measure: Measure) -> str:
    found = [value for value in result.values.get(measure.name, ()) if math.isfinite(value)]
    if not found:
        return "none"
    mean = sum(found) / len(found)
    text = f"{mean:,.{measure.digits}f}"
    if len(found) > 1 and max(found) > min(found):
        spread = math.sqrt(sum((value - mean) ** 2 for value in found) / (len(found) - 1))
        text += f" ± {spread:,.{measure.digits}f}"
    short = len(result.values[measure.name]) - len(found)
    return text + (f" ({short} without)" if short else "")


def threats(analysis: Analysis) -> list[str]:
    """The question's own, and what the numbers show."""
    found = list(analysis.question.threats)
    scale = analysis.scale
    model = {name: scale.run[name] for name in ("n_layer", "n_head", "n_embd", "block_size")}
    shape = ", ".join(f"{name} {value}" for name, value in model.items())
    found.append(f"One scale ({scale.name}: {shape}, unless an arm changes it) and {scale.n_seeds} seeds.")
    if edges := [f"{r.arm.label} ({r.rate:g})" for r in analysis.arms if r.at_edge]:
        found.append(f"The best rate is the lowest or highest tried: {', '.join(edges)}. A better one may lie beyond.")
    if diverged := [f"{r.arm.label} ({r.diverged} runs)" for r in analysis.arms if r.diverged]:
        found.append(f"Diverged and left out of means and pairs: {', '.join(diverged)}.")
    if loads := [line["load"] for line in analysis.lines if line["kind"] == "timed"]:
        found.append(
            f"Load average when timed runs began: {min(loads):.1f} to {max(loads):.1f} (other work slows them). A "
            "speed is the median of what one short run logged every ten steps: a fifth more or less tells nothing."
        )
    made = [line["versions"] for line in analysis.lines if line["kind"] == "paired"]
    where = sorted({f"{of['processor']} ({of.get('vectors', 'vector units not recorded')})" for of in made})
    if len(where) > 1:
        found.append(
            f"Paired runs come from {' and '.join(where)}: runs of one seed on two machines differ by more than "
            "rounding after some hundred steps."
        )
    if taken := sorted({(line["settings"]["base"] or {}).get("pretrained", "") for line in analysis.lines} - {""}):
        gpt2 = "without a tale read, unlike what is said above of a base"
        books = "with Shakespeare in a quarter of the tokens read; models/ has it in 16 bits"
        read = gpt2 if taken[0].startswith("gpt2") else books
        found.append(f"Starts from {' and '.join(taken)}, {read}.")
    if any("parts" in (line["settings"]["base"] or {"data": {}})["data"] for line in analysis.lines):
        found.append("Starts from a base trained here, a quarter of whose tokens are installed packages' own words.")
    if apart := [r.arm.label for r in analysis.arms if _another_base(analysis, r)]:
        found.append(f"From another training of the base than the reference, so not compared: {', '.join(apart)}.")
    if (commits := len({line["commit"] for line in analysis.lines})) > 1:
        found.append(f"Results come from {commits} commits, named below.")
    if changed := sum(line["commit"].endswith("+") for line in analysis.lines):
        found.append(f"{changed} of {len(analysis.lines)} cells were run with changes not yet committed (+).")
    if analysis.missing:
        found.append(f"Not run yet, and missing above: {', '.join(analysis.missing)}.")
    if analysis.untimed:
        found.append(f"Speed not taken of {', '.join(analysis.untimed)}.")
    return found


def _another_base(analysis: Analysis, result: ArmResult) -> bool:
    reference = reference_of(analysis.question, result.arm, list(analysis.arms))
    return reference is not None and any(another_base(result, reference, seed) for seed in range(len(result.bases)))


def provenance(analysis: Analysis) -> str:
    """Runs, time, machine, commits."""
    lines = analysis.lines
    of = {key: sorted({str(line["versions"][key]) for line in lines}) for key in ("torch", "processor", "minilm")}
    dates = sorted({line["date"] for line in lines})
    commits = sorted({line["commit"][:10] + "+" * line["commit"].endswith("+") for line in lines})
    tokens = sum(line["metrics"].get("tokens", 0) for line in lines)
    shared = sum("run_for" in line for line in lines)
    cells = f"{len(lines)} cells" + (f" ({shared} of them run for other questions)" if shared else "")
    meant = 120 if analysis.question.name in ("model_size", "data_size") else 15  # as the issue that asked for the lab
    stated = f" (stated for a laptop's two cores: {analysis.question.minutes} min, where {meant} are meant)"
    stated = stated if analysis.scale.name == "laptop" else ""
    return (
        f"{cells}, {tokens / 1e6:,.1f} M tokens, {duration(sum(line['seconds'] for line in lines))} in all{stated}; "
        f"{dates[0]} to {dates[-1]}, torch {', '.join(of['torch'])}, {', '.join(of['processor'])}; "
        f"commit {', '.join(commits)}."
    )


def as_markdown(block: Block) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {block.text}\n"
    if isinstance(block, Text):
        return f"{block.text}\n"
    if isinstance(block, Items):
        return "".join(f"- {item}\n" for item in block.items)
    if isinstance(block, Drawing):
        return f"![{block.title}]({block.name}.svg)\n\n{block.title}.\n"
    head, *rows = block.rows
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |\n" for row in lines)


def as_html(block: Block) -> str:
    if isinstance(block, Heading):
        return f'<h{block.level} id="{html.escape(block.text)}">{_inline(block.text)}</h{block.level}>\n'
    if isinstance(block, Text):
        return f"<p>{_inline(block.text)}</p>\n"
    if isinstance(block, Items):
        return f"<ul>{''.join(f'<li>{_inline(item)}</li>' for item in block.items)}</ul>\n"
    if isinstance(block, Drawing):
        return f"<figure>{block.svg}<figcaption>{_inline(block.title)}.</figcaption></figure>\n"
    head, *rows = block.rows
    told = ["".join(f"<th>{_inline(cell)}</th>" for cell in head)]
    told += ["".join(f"<td>{_inline(cell)}</td>" for cell in row) for row in rows]
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in told)}</table>\n"


def _inline(text: str) -> str:
    """`code`, **bold** and *emphasis* as HTML, everything else escaped."""
    text = html.escape(text)
    for mark, tag in ((r"`([^`]+)`", "code"), (r"\*\*([^*]+)\*\*", "b"), (r"\*([^*]+)\*", "i")):
        text = re.sub(mark, rf"<{tag}>\1</{tag}>", text)
    return re.sub(r"\[(\w+)\]\((#\w+)\)", r'<a href="\2">\1</a>', text)
