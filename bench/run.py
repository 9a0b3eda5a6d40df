"""minilm beside its peers on this machine: interleaved rounds, each measurement in a process of its own, ratios first.

    python bench/run.py                                   every work, five rounds; `--list` names them
    python bench/run.py train-4x256 start --rounds 3      some works
    python bench/run.py --nanogpt PATH                    with nanoGPT from a checkout
    python bench/run.py --report                          docs/benchmarks.md, from the results

A measurement is one line of bench/results/run.jsonl; a round that has its lines is not run again, so that a stopped run
goes on. Peers that are not installed are left out, and said to be. Needs the extras `test` and `bench`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pages import ROOT, give, in_a_process
from works import WORKS, Work

RESULTS = ROOT / "bench" / "results" / "run.jsonl"
PAGE = ROOT / "docs" / "benchmarks.md"
Line = dict[str, Any]


def read_results() -> list[Line]:
    return [json.loads(line) for line in RESULTS.read_text("utf-8").splitlines()] if RESULTS.is_file() else []


def machine() -> str:
    """What results may be compared on: the processor's name and its vector units, cores, torch."""
    import torch

    name = "processor of unknown name"
    if Path("/proc/cpuinfo").is_file():
        rows = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        name = next((row.partition(":")[2].strip() for row in rows if row.startswith("model name")), name)
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores, torch {torch.__version__}"


def measure(work: Work, contender: str, round_: int, nanogpt: str) -> Line | None:
    """Runs one contender in a process of its own; None, said why, where it cannot run here."""
    from minilm import runtime

    environment = {"PYTHONPATH": str(ROOT), **work.environment(contender)}
    values = in_a_process(__file__, "--measure", work.name, contender, "--nanogpt", nanogpt, environment=environment)
    if isinstance(values, str):
        print(f"  {contender}: left out ({values})")
        return None
    line = {"work": work.name, "contender": contender, "round": round_, "values": values, "machine": machine()}
    return line | {"date": time.strftime("%Y-%m-%d"), "commit": runtime.git_commit()[:10], "load": os.getloadavg()[0]}


def run(works: list[Work], rounds: int, nanogpt: str) -> None:
    """All rounds of all works that have no lines yet; contenders take turns within a round."""
    RESULTS.parent.mkdir(exist_ok=True)
    here = machine()
    for work in works:
        done = {(x["contender"], x["round"]) for x in read_results() if x["work"] == work.name and x["machine"] == here}
        left_out = {who: why for who in work.contenders if (why := work.missing(who, nanogpt))}
        for who, why in left_out.items():
            print(f"{work.name}, {who}: left out ({why})")
        for round_ in range(rounds):
            for who in work.contenders:
                if who in left_out or (who, round_) in done:
                    continue
                line = measure(work, who, round_, nanogpt)
                if line is None:
                    left_out[who] = "failed"
                    continue
                print(f"{work.name}, round {round_ + 1}, {who}: {_told(line['values'])}", flush=True)
                with RESULTS.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")


def _told(values: dict[str, Any]) -> str:
    return ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())


INTRODUCTION = """# Benchmarks

Made by `python bench/run.py` and `python bench/run.py --report`; no figure is typed by hand. Each measurement ran in a
process of its own, contenders in turns; a figure is the median over rounds, and a ratio the median over rounds of the
ratio within the round, so that a machine whose speed drifts spoils neither. More than 1 means that minilm is better.
Memory is peak resident size less what it was after the imports. Aims are those that the project set itself, most of
them for a processor with AVX-512 and bf16. Load is the machine's mean load when measurements ended: near its number of
cores, nothing else ran.
"""


def report() -> None:
    """Writes docs/benchmarks.md from all lines."""
    lines = read_results()
    if not lines:
        raise SystemExit("no results yet: python bench/run.py")
    parts = [INTRODUCTION]
    for here in dict.fromkeys(line["machine"] for line in lines):
        of_machine = [line for line in lines if line["machine"] == here]
        dates = sorted({line["date"] for line in of_machine})
        commits = ", ".join(dict.fromkeys(line["commit"] for line in of_machine))
        parts.append(f"## {here}\n\n{dates[0]} to {dates[-1]}; commits {commits}.\n")
        for work in WORKS.values():
            mine = [line for line in of_machine if line["work"] == work.name]
            if mine:
                parts.append("\n".join(_section(work, mine)))
    PAGE.write_text("\n".join(parts), encoding="utf-8")


def _section(work: Work, lines: list[Line]) -> Iterator[str]:
    loads = statistics.median(line["load"] for line in lines)
    yield f"### {work.name}: {work.title}\n\nLoad {loads:.1f}.\n"
    keys = list(dict.fromkeys(key for line in lines for key in line["values"]))
    yield f"| contender | rounds | {' | '.join(keys)} | minilm's ratio by {work.metric} | aim |"
    yield "|---" * (len(keys) + 4) + "|"
    base = {line["round"]: line["values"] for line in lines if line["contender"] == work.contenders[0]}
    for who in work.contenders:
        mine = [line for line in lines if line["contender"] == who]
        if not mine:
            continue
        cells = [_cell([line["values"].get(key) for line in mine]) for key in keys]
        ratios = [
            base[line["round"]][work.metric] / line["values"][work.metric] for line in mine if line["round"] in base
        ]
        if not work.more_is_better:
            ratios = [1.0 / ratio for ratio in ratios]
        ratio = f"{statistics.median(ratios):.2f}" if ratios and who != work.contenders[0] else ""
        yield f"| {who} | {len(mine)} | {' | '.join(cells)} | {ratio} | {work.aims.get(who, '')} |"
    yield ""


def _cell(values: list[Any]) -> str:
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if not numbers:
        return str(next((value for value in values if value is not None), ""))
    value = statistics.median(numbers)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("works", nargs="*", help="which (all)")
    add("--rounds", type=int, default=5)
    add("--nanogpt", default="", metavar="PATH", help="a checkout of nanoGPT")
    add("--list", action="store_true", help="name the works and their contenders")
    add("--report", action="store_true")
    add("--measure", nargs=2, metavar=("WORK", "CONTENDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := [name for name in options.works if name not in WORKS]:
        parser.error(f"no work {unknown[0]!r}: there are {', '.join(WORKS)}")
    if options.measure:
        name, contender = options.measure
        give(WORKS[name].measure(contender, options.nanogpt))
    elif options.list:
        for work in WORKS.values():
            print(f"{work.name:14}{work.title}: {', '.join(work.contenders)}")
    elif options.report:
        report()
    else:
        run([WORKS[name] for name in options.works or WORKS], options.rounds, options.nanogpt)
        report()


if __name__ == "__main__":
    main()
