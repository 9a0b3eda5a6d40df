"""docs/benchmarks.md from the lines of bench/results/run.jsonl: aims and ratios first, then what each contender did."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from pages import RESULTS, ROOT
from works import HIGHER_IS_BETTER, PEERS, WORKS, Aim, Work

Line = dict[str, Any]
PAGE = RESULTS / "benchmarks.md" if RESULTS != ROOT / "bench" / "results" else ROOT / "docs" / "benchmarks.md"
INTRODUCTION = """# Benchmarks

Written by `python bench/run.py report` from `bench/results/run.jsonl`; no figure is typed by hand. Each measurement ran
in a process of its own, contenders in turns within a round. A figure is the median over rounds with the lowest and the
highest behind it; a ratio is taken within each round, so that a machine whose speed drifts spoils neither. *Times as
good*: more than 1 means that minilm is faster. MiB is peak resident memory less what was resident after the imports.
Aims are those that the project set itself on two cores with AVX-512 and bf16, whose products were 4.8 times as fast in
bf16 as in fp32. Load is the machine's mean load as a measurement ended: above its cores, others ran beside it.
"""


def write(lines: list[Line]) -> None:
    parts = [INTRODUCTION]
    if not any("values" in line for line in lines):
        parts.append("No results yet: `python bench/run.py`.\n")
    for machine in reversed(dict.fromkeys(line["machine"] for line in lines)):
        parts += of_machine(machine, [line for line in lines if line["machine"] == machine])
    PAGE.write_text("\n".join(parts), encoding="utf-8")


def of_machine(machine: str, lines: list[Line]) -> Iterator[str]:
    measured = [line for line in lines if "values" in line]
    if not measured:
        return
    dates = sorted({line["date"] for line in measured})
    commits = ", ".join(dict.fromkeys(line["commit"] for line in measured))
    versions = {name: v for line in measured for name, v in line["versions"].items() if name in PEERS}
    beside = ", ".join(f"{name} {v}" for name, v in sorted(versions.items())) or "none"
    yield f"## {machine}\n\n{dates[0]} to {dates[-1]}, commits {commits}. Peers: {beside}.\n"
    yield "\n".join(_aims(lines))
    for work in WORKS.values():
        mine = [line for line in lines if line["work"] == work.name]
        if any("values" in line for line in mine):
            yield "\n".join(_section(work, mine))


def _aims(lines: list[Line]) -> Iterator[str]:
    yield "| work | minilm | beside | what | aim | measured | met |\n|---|---|---|---|---|---|---|"
    for work in WORKS.values():
        mine = [line for line in lines if line["work"] == work.name]
        for aim in work.aims:
            metric = aim.metric or work.metric
            what = aim.why or (f"{metric}, share of theirs" if aim.most and aim.peers else metric)
            bound = f"{'≤' if aim.most else '≥'} {aim.bound:g}{'×' if aim.peers and not aim.of else ''}"
            values = compared(work, aim, mine)
            if values:
                found = spread(values)
                middle = statistics.median(values)
                met = "yes" if (middle <= aim.bound if aim.most else middle >= aim.bound) else "no"
            else:
                found, met = f"not measured: {_reason(work, aim, mine)}", "–"
            ours = ", ".join(_seen(aim.ours, mine) or aim.ours)
            yield f"| {work.name} | {ours} | {', '.join(_seen(aim.peers, mine) or aim.peers)} " + (
                f"| {what} | {bound} | {found} | {met} |"
            )
    yield ""


def compared(work: Work, aim: Aim, lines: list[Line]) -> list[float]:
    """The aim's quantity in each round that has both sides; empty where there is none."""
    metric = aim.metric or work.metric
    higher = metric in HIGHER_IS_BETTER
    rounds: dict[int, dict[str, dict[str, Any]]] = {}
    for line in lines:
        if "values" in line:
            rounds.setdefault(line["round"], {})[line["contender"]] = line["values"]
    found = []
    for by_name in rounds.values():
        ours, peers = ([by_name[who] for who in names if who in by_name] for names in (aim.ours, aim.peers))
        if not ours or (aim.peers and not peers):
            continue
        if aim.of:
            found.append(aim.of(ours[0], peers[0]))
            continue
        best = max if higher else min
        mine = best(values[metric] for values in ours)
        if not aim.peers:
            found.append(mine)
            continue
        theirs = best(values[metric] for values in peers)
        found.append(mine / theirs if higher or aim.most else theirs / mine)
    return found


def _seen(names: tuple[str, ...], lines: list[Line]) -> list[str]:
    there = {line["contender"] for line in lines if "values" in line}
    return [name for name in names if name in there]


def _reason(work: Work, aim: Aim, lines: list[Line]) -> str:
    """Why an aim was not measured, from the lines that say what was left out."""
    why = {line["contender"]: line["left_out"] for line in lines if "left_out" in line}
    names = [who for group in (aim.ours, aim.peers) if group and not _seen(group, lines) for who in group]
    return "; ".join(dict.fromkeys(why.get(name, "not run") for name in names)) or "never in one round"


def _section(work: Work, lines: list[Line]) -> Iterator[str]:
    measured = [line for line in lines if "values" in line]
    load = statistics.median(line["load"] for line in measured)
    command = next(reversed([line["command"] for line in measured]))
    yield f"### {work.name}\n\n{work.title[0].upper()}{work.title[1:]}. `{command}`, load {load:.1f}.\n"
    keys = list(dict.fromkeys(key for line in measured for key in line["values"]))
    first, lone = work.contenders[0], len(work.contenders) == 1
    against = [] if lone else [f"{first} is times as good by {work.metric}"]
    yield f"| contender | rounds | {' | '.join([*against, *keys])} |"
    yield "|---" * (len(keys) + len(against) + 2) + "|"
    for who in work.contenders:
        mine = [line["values"] for line in measured if line["contender"] == who]
        if not mine:
            continue
        ratios = [] if who == first else compared(work, Aim(1.0, (first,), (who,)), measured)
        cells = [] if lone else [spread(ratios) if ratios else ""]
        cells += [_cell([values.get(key) for values in mine]) for key in keys]
        yield f"| {who} | {len(mine)} | {' | '.join(cells)} |"
    there = {line["contender"] for line in measured}
    out = {
        line["contender"]: line["left_out"] for line in lines if "left_out" in line and line["contender"] not in there
    }
    reasons: dict[str, list[str]] = {}
    for who, why in out.items():
        reasons.setdefault(why, []).append(who)
    for why, names in reasons.items():
        yield f"\nLeft out, {why}: {', '.join(names)}."
    yield ""


def _cell(values: list[Any]) -> str:
    numbers = [float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    told = dict.fromkeys(str(value) for value in values if value is not None)
    return spread(numbers) if numbers else ", ".join(told)


def spread(values: list[float]) -> str:
    """Median, and where rounds differ the lowest and the highest."""
    low, middle, high = _short(min(values)), _short(statistics.median(values)), _short(max(values))
    return middle if low == high else f"{middle} ({low}–{high})"


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
