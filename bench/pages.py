"""What scripts that measure have in common: a section of a page written anew, and what a figure was measured on."""

from __future__ import annotations

import os
import time
from pathlib import Path

from minilm import runtime

ROOT = Path(__file__).resolve().parent.parent
_OUT = os.environ.get("MINILM_BENCH_OUT", "")  # elsewhere, when a script is only being checked
RESULTS = Path(_OUT) if _OUT else ROOT / "bench" / "results"
MEASURED = RESULTS / "measured.md" if _OUT else ROOT / "docs" / "measured.md"


def put(page: Path, heading: str, text: str) -> None:
    """Replaces what stands under a heading of the second level."""
    head, mark, rest = page.read_text(encoding="utf-8").partition(f"## {heading}\n")
    if not mark:
        raise SystemExit(f"{page.name} has no section {heading}")
    after = rest[rest.index("\n## ") :] if "\n## " in rest else ""
    page.write_text(f"{head}{mark}\n{text.strip()}\n{after}", encoding="utf-8")


def where() -> dict[str, str]:
    """The day, the machine and the versions behind a figure."""
    versions = runtime.versions()
    told = {name: versions[name] for name in ("processor", "threads", "torch", "python", "minilm")}
    return {"date": time.strftime("%Y-%m-%d"), "commit": runtime.git_commit(), **told}


def told(made: dict[str, str]) -> str:
    """x86_64 with 2 threads, torch 2.13.0, 2026-11-25."""
    threads = "1 thread" if made["threads"] == "1" else f"{made['threads']} threads"
    return f"{made['processor']} with {threads}, torch {made['torch']}, {made['date']}"
