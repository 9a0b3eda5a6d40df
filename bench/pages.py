"""What scripts that measure have in common: a process for each measurement, a section of a page written anew, and what
a figure was measured on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_OUT = os.environ.get("MINILM_BENCH_OUT", "")  # elsewhere, when a script is only being checked
RESULTS = Path(_OUT) if _OUT else ROOT / "bench" / "results"
MEASURED = RESULTS / "measured.md" if _OUT else ROOT / "docs" / "measured.md"


Line = dict[str, Any]


class JsonLines:
    """Results that grow a line at a time, so that a stopped run loses nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[Line]:
        return [json.loads(line) for line in self.path.read_text("utf-8").splitlines()] if self.path.is_file() else []

    def add(self, line: Line) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def keep(self, wanted: Callable[[Line], bool]) -> None:
        """Drops all other lines."""
        kept = [line for line in self.read() if wanted(line)]
        self.path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")


MARK = "RESULT "  # begins the line of a process's output that holds its values


def give(values: dict[str, Any]) -> None:
    """Prints values for `in_a_process`."""
    print(MARK + json.dumps(values))


def in_a_process(
    *words: str, environment: Mapping[str, str] | None = None, seconds: float | None = None
) -> dict[str, Any] | str:
    """What a Python script gave, or why it gave nothing; environment: beside this process's own."""
    command, env = [sys.executable, *words], {**os.environ, **(environment or {})}
    try:
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=seconds)
    except subprocess.TimeoutExpired:
        return "no time was left"
    told = [line.removeprefix(MARK) for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode or not told:
        return (done.stderr.strip().splitlines() or ["no result"])[-1]
    values: dict[str, Any] = json.loads(told[-1])
    return values


def put(page: Path, heading: str, text: str) -> None:
    """Replaces what stands under a heading of the second level."""
    head, mark, rest = page.read_text(encoding="utf-8").partition(f"## {heading}\n")
    if not mark:
        raise SystemExit(f"{page.name} has no section {heading}")
    after = rest[rest.index("\n## ") :] if "\n## " in rest else ""
    page.write_text(f"{head}{mark}\n{text.strip()}\n{after}", encoding="utf-8")


def where() -> dict[str, str]:
    """The day, the machine and the versions behind a figure."""
    from minilm import runtime  # what measures how long an import takes imports this module first

    versions = runtime.versions()
    told = {name: versions[name] for name in ("processor", "threads", "torch", "python", "minilm")}
    return {"date": time.strftime("%Y-%m-%d"), "commit": runtime.git_commit(), **told}


def machine() -> str:
    """What results may be compared on: the processor's name and its vector units, cores, threads, torch."""
    import torch

    from minilm import runtime

    units, threads = torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
    name = runtime.versions()["processor"]
    return f"{name}, {units}, {os.cpu_count()} cores, {threads} threads, torch {torch.__version__}"


def told(made: dict[str, str]) -> str:
    """x86_64 with 2 threads, torch 2.13.0, 2026-11-25."""
    threads = "1 thread" if made["threads"] == "1" else f"{made['threads']} threads"
    return f"{made['processor']} with {threads}, torch {made['torch']}, {made['date']}"
