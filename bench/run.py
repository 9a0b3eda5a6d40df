"""minilm beside its peers on this machine: interleaved rounds, each measurement in a process of its own, ratios first.

    python bench/run.py                                   every work, three rounds; `--list` names them
    python bench/run.py train-4x256 start --rounds 1      some works
    python bench/run.py --nanogpt PATH                    with nanoGPT from a checkout
    python bench/run.py --minutes 9                       stops before a measurement that would take longer, and goes on
                                                          where it stopped when called again
    python bench/run.py --small                           tries works with little models, apart from the results
    python bench/run.py report                            docs/benchmarks.md, from the results

A measurement is one line of bench/results/run.jsonl, with date, machine, versions and command; a round that has its
lines is not run again (`--forget` drops a work's lines of this machine). Peers that are not installed, and formats
that the machine only emulates, are left out and said to be. Needs the extras `test` and `data`, the packages
ctranslate2 and datasets, and MINILM_TEST_DATA for the works that read text.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pages import RESULTS, ROOT, JsonLines, Line, give, in_a_process, machine
from works import WORKS, Work, version

FILE = JsonLines(RESULTS / "run.jsonl")
UNKNOWN_SECONDS = 120.0  # what a measurement is thought to take that was never made here


def stamped(work: Work, contender: str, nanogpt: str) -> Line:
    """What every line says of itself."""
    import importlib.metadata
    import platform

    from minilm import runtime

    versions = {"python": platform.python_version(), "torch": importlib.metadata.version("torch")}
    if package := work.package(contender):
        versions[package] = version(package, nanogpt)
    command = " ".join(["python", "bench/run.py", work.name, *(["--nanogpt", "PATH"] if nanogpt else [])])
    line = {"work": work.name, "contender": contender, "machine": machine(), "versions": versions, "command": command}
    return line | {"date": time.strftime("%Y-%m-%d"), "commit": runtime.git_commit()[:10]}


def measure(work: Work, contender: str, nanogpt: str) -> Line:
    """Runs one contender in a process of its own; `values`, or `left_out` and why."""
    environment = {"PYTHONPATH": str(ROOT), **work.environment(contender)}
    words = [__file__, "--measure", work.name, contender, "--nanogpt", nanogpt]
    began = time.perf_counter()
    values = in_a_process(*words, environment=environment)
    took = {"seconds": round(time.perf_counter() - began, 1), "load": round(os.getloadavg()[0], 2)}
    return {"left_out": values} if isinstance(values, str) else {"values": values, **took}


def expected_seconds(lines: list[Line], work: str, contender: str) -> float:
    """Of one measurement, by those that were made."""
    seen = [x["seconds"] for x in lines if (x["work"], x["contender"]) == (work, contender) and "seconds" in x]
    return statistics.median(seen) if seen else UNKNOWN_SECONDS


def run(works: list[Work], rounds: int, nanogpt: str, minutes: float) -> None:
    """All rounds of all works that have no lines yet; contenders take turns within a round."""
    began, here = time.monotonic(), machine()
    for work in works:
        mine = [line for line in FILE.read() if line["work"] == work.name and line["machine"] == here]
        done = {(line["contender"], line["round"]) for line in mine if "values" in line}
        said = {(line["contender"], line["left_out"]) for line in mine if "left_out" in line}
        out = {who: why for who in work.contenders if (why := work.missing(who, nanogpt))}
        for who, why in out.items():
            leave_out(work, who, why, nanogpt, said)
        for round_ in range(rounds):
            for who in work.contenders:
                if who in out or (who, round_) in done:
                    continue
                ends = time.monotonic() - began + expected_seconds(FILE.read(), work.name, who)
                if minutes and ends > 60.0 * minutes:
                    print(
                        f"stopped before {work.name}, round {round_ + 1}, {who}: the same command goes on", flush=True
                    )
                    return
                found = measure(work, who, nanogpt)
                if "left_out" in found:
                    out[who] = found["left_out"]
                    leave_out(work, who, out[who], nanogpt, said)
                    continue
                print(f"{work.name}, round {round_ + 1}, {who}: {_told(found['values'])}", flush=True)
                FILE.add(stamped(work, who, nanogpt) | {"round": round_} | found)


def leave_out(work: Work, contender: str, why: str, nanogpt: str, said: set[tuple[str, str]]) -> None:
    """Says that a contender is not measured, and writes it down once."""
    print(f"{work.name}, {contender}: left out ({why})", flush=True)
    if (contender, why) not in said:
        here = {"work": work.name, "contender": contender, "machine": machine(), "left_out": why}
        FILE.add(here | {"date": time.strftime("%Y-%m-%d")})


def forget(works: list[Work]) -> None:
    """Drops this machine's lines of the works."""
    here, names = machine(), {work.name for work in works}
    FILE.keep(lambda line: line["work"] not in names or line["machine"] != here)


def tried_small() -> int:
    """The same command on little models, its results in a folder that goes away; its page is printed."""
    with tempfile.TemporaryDirectory() as out:
        words = [__file__, *(word for word in sys.argv[1:] if word != "--small")]
        environment = {**os.environ, "MINILM_BENCH_SMALL": "1", "MINILM_BENCH_OUT": out, "TORCH_COMPILE_DISABLE": "1"}
        code = subprocess.run([sys.executable, *words], env=environment, check=False).returncode
        if (page := Path(out) / "benchmarks.md").is_file():
            print(page.read_text("utf-8"))
    return code


def _told(values: dict[str, Any]) -> str:
    return ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())


def listed(works: list[Work]) -> None:
    """Names, contenders, and the minutes of a round by measurements that were made."""
    lines = FILE.read()
    for work in works:
        left_out = {x["contender"] for x in lines if x["work"] == work.name and "left_out" in x}
        known = [who for who in work.contenders if who not in left_out]
        minutes = sum(expected_seconds(lines, work.name, who) for who in known) / 60
        print(f"{work.name:12} {minutes:5.1f} min a round  {work.title}: {', '.join(work.contenders)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    option = parser.add_argument
    option("works", nargs="*", help="which (all), or `report`")
    option("--rounds", type=int, default=3)
    option("--minutes", type=float, default=0.0, help="stop in time for so many (0: never)")
    option("--nanogpt", default="", metavar="PATH", help="a checkout of nanoGPT")
    option("--list", action="store_true", help="name the works, their contenders, minutes of a round")
    option("--small", action="store_true", help="little models, to see that works work; results go elsewhere")
    option("--forget", action="store_true", help="drop this machine's lines of the works, and end")
    option("--measure", nargs=2, metavar=("WORK", "CONTENDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    reporting = options.works == ["report"]
    if not reporting and (unknown := [name for name in options.works if name not in WORKS]):
        parser.error(f"no work {unknown[0]!r}: there are {', '.join(WORKS)}, and report")
    if options.small:
        sys.exit(tried_small())
    works = [WORKS[name] for name in ([] if reporting else options.works) or WORKS]
    if options.measure:
        name, contender = options.measure
        give(WORKS[name].measure(contender, options.nanogpt))
        return
    if options.list:
        listed(works)
    elif options.forget:
        forget(works)
    else:
        if not reporting:
            run(works, options.rounds, options.nanogpt and os.path.abspath(options.nanogpt), options.minutes)
        from report import write

        write(FILE.read())


if __name__ == "__main__":
    main()
