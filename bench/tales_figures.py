"""The tables of docs/tales.md, measured: `python bench/tales_figures.py` writes them in place of the old ones.

Speed on one core; what the grader makes of damaged stories (damages of tests/tales_damage.py, whose validity a second
replay decides); copies and duplicates among fresh stories against 50 MB of training text. About a minute.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path

from minilm.text import tales

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "tales.md"
HEADING = "## Measured\n"
sys.path.insert(0, str(ROOT / "tests"))
import tales_damage  # noqa: E402

N_DAMAGED = 20_000
N_FRESH = 5_000


def figures() -> str:
    started = time.perf_counter()
    texts = list(tales.stories(megabytes=50))
    making = 50 / (time.perf_counter() - started)
    graded = texts[:50_000]
    started = time.perf_counter()
    passed = sum(tales.grade(text).passed for text in graded)
    grading = sum(map(len, graded)) / 1e6 / (time.perf_counter() - started)
    check = tales.CopyCheck(texts)
    fresh = list(tales.stories(n=N_FRESH, split="fresh"))
    shares = [check.copied_share(text) for text in fresh]
    times = Counter(fresh)
    new = sum(share <= 0.6 and times[text] == 1 for share, text in zip(shares, fresh, strict=True))
    rows = [
        ("generation, one core", f"{making:.0f} MB/s"),
        ("grading, one core", f"{grading:.0f} MB/s"),
        (f"of {len(graded):,} generated stories the grader accepts", f"{passed:,}"),
        (f"of {N_FRESH:,} fresh stories neither duplicates nor copies of 50 MB", f"{new:,}"),
        (
            "words of a fresh story in its longest copied span, mean and most",
            f"{sum(shares) / N_FRESH:.0%}, {max(shares):.0%}",
        ),
    ]
    table = "| level 1 | |\n|---|---|\n" + "".join(f"| {what} | {figure} |\n" for what, figure in rows)
    return f"{table}\nDamaged stories, {N_DAMAGED:,} for each damage:\n\n{tales_damage.report(N_DAMAGED)}"


def main() -> None:
    page = PAGE.read_text(encoding="utf-8")
    told = page[: page.index(HEADING)] + HEADING
    told += f"By `python bench/tales_figures.py`, {time.strftime('%Y-%m-%d')}, two virtual cores of an AMD EPYC.\n\n"
    PAGE.write_text(told + figures(), encoding="utf-8")


if __name__ == "__main__":
    main()
