"""docs/tales_figures.md, written from what bench/tales_figures.py measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parent.parent / "docs" / "tales_figures.md"
LEVELS = 1, 2, 3, 4
HEAD = """# Tales: figures

Measured by `python bench/tales_figures.py`, which writes this page; what the words mean stands in [tales.md](tales.md).
Results with their dates and commits: `bench/results/tales_figures.json`.
"""

Row = tuple[str, str, Callable[[dict[str, Any]], str]]
"""What it is, the part that measured it, how it is written."""


def of(passed: str) -> Callable[[dict[str, Any]], str]:
    return lambda r: f"{r[passed]:,} of {r['n']:,}"


def of_mb(passed: str) -> Callable[[dict[str, Any]], str]:
    return lambda r: f"{r[passed]:,} of {r['n']:,} ({r['mb']:g} MB)"


ROWS: list[Row] = [
    ("generation, one core, MB/s", "speed", lambda r: f"{r['plain']['generation']:.1f}"),
    ("the same, a style told by its hero (letter)", "speed", lambda r: f"{r['letter']['generation']:.1f}"),
    ("grading, one core, MB/s", "speed", lambda r: f"{r['plain']['grading']:.1f}"),
    ("the same, letter", "speed", lambda r: f"{r['letter']['grading']:.1f}"),
    (
        "generation, all cores, MB/s",
        "speed",
        lambda r: f"{r['all_cores']:.1f} ({r['cores']} cores, load {r['_']['load']})",
    ),
    ("generated stories of six styles that the grader accepts", "accepted", of("passed")),
    ("stories that pass with their sentences shuffled", "shuffled", of("passed")),
    ("of these the second opinion holds for valid", "shuffled", lambda r: f"{r['valid']:,}"),
    ("samples of a word 5-gram model that pass", "ngram", of_mb("passed")),
    ("sentences before their first broken rule", "ngram", lambda r: f"{r['before']:.0%}"),
    ("stories told before in the corpus, word for word", "repeats", of_mb("repeated")),
    ("fresh stories neither duplicates nor copies of the corpus", "fresh", of_mb("new")),
    ("words of a fresh story in its longest copied span, mean", "fresh", lambda r: f"{r['mean_copied']:.0%}"),
    ("the same, most", "fresh", lambda r: f"{r['most_copied']:.0%}"),
]


def page(results: dict[str, Any]) -> str:
    """The whole page; parts that have no result yet are left out."""
    parts = [HEAD, *overview(results), *other_text(results), *damage(results), *ngram_cost(results), *richness(results)]
    return "\n".join(parts)


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def overview(results: dict[str, Any]) -> Iterator[str]:
    rows = []
    for what, part, tell in ROWS:
        cells = [tell(results[f"{part}/{n}"]) if f"{part}/{n}" in results else "" for n in LEVELS]
        if any(cells):
            rows.append([what, *cells])
    if rows:
        yield "## At a glance\n" + table(["", *(f"level {n}" for n in LEVELS)], rows)
        yield "One core: processor time. All cores: wall time, beside what else the machine did (its load is given).\n"


def other_text(results: dict[str, Any]) -> Iterator[str]:
    found = {n: results[f"other_text/{n}"] for n in LEVELS if f"other_text/{n}" in results}
    if not found:
        return
    first = found[min(found)]
    rows = [
        [corpus, f"{first[corpus]['n']:,}", *(f"{found[n][corpus]['passed']:,}" if n in found else "" for n in LEVELS)]
        for corpus in first
        if corpus != "_"
    ]
    yield "## Other text\nPieces of seven sentences, and single lines, that the grader lets pass.\n"
    yield table(["corpus", "pieces", *(f"level {n}" for n in LEVELS)], rows)


def damage(results: dict[str, Any]) -> Iterator[str]:
    """The damage tables; a result has counts of done, invalid, rejected, valid, accepted per kind."""
    head = ["damage", "done", "invalid", "of these rejected", "still valid", "of these accepted"]
    told = False
    for n in LEVELS:
        result = results.get(f"damage/{n}")
        if result is None:
            continue
        if not told:
            yield (
                "## Damaged stories\nOne damage to one story, the six styles in equal parts. Whether the damaged "
                "story is still valid is decided by a replay\nof its events that shares no code with minilm "
                "(`tests/tales_replay.py`); all that were done are counted.\n"
            )
            told = True
        rows = []
        for kind, c in result.items():
            if kind == "_":
                continue
            count = {name: c.get(name, 0) for name in ("done", "invalid", "rejected", "valid", "accepted")}
            shares = [share(count[a], count[b]) for a, b in (("rejected", "invalid"), ("accepted", "valid"))]
            numbers = f"{count['done']:,}", f"{count['invalid']:,}", shares[0], f"{count['valid']:,}", shares[1]
            rows.append([kind, *numbers])
        yield f"Level {n}:\n\n" + table(head, rows)


def share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.2f} %" if whole else "-"


def ngram_cost(results: dict[str, Any]) -> Iterator[str]:
    rows = []
    for n in LEVELS:
        if r := results.get(f"ngram/{n}"):
            rules = ", ".join(f"{rule} {count}" for rule, count in sorted(r["rules"].items(), key=lambda kv: -kv[1]))
            cost = [f"{r['train_seconds']:.0f}", f"{r['train_gb']:.1f}", f"{r['sample_seconds']:.0f}"]
            rows.append([str(n), *cost, rules])
    if rows:
        yield "## The 5-gram model\nSeconds of processor time, on the corpus named above.\n"
        yield table(["level", "training, s", "peak, GB", "sampling, s", "rules that its samples break first"], rows)


def richness(results: dict[str, Any]) -> Iterator[str]:
    texts = {f"level {n}": results[f"rich/{n}"]["rows"] for n in LEVELS if f"rich/{n}" in results}
    texts |= {name: rows for name, rows in results.get("rich_others", {}).items() if name != "_"}
    if not texts:
        return
    rows = []
    for i in range(max(map(len, texts.values()))):
        for name, found in texts.items():
            if i < len(found):
                r = found[i]
                ratio = f"{r['runs'][0] / r['words']:.4f}"
                size = f"{r['mb']:g}"
                rows.append(
                    [
                        size,
                        name,
                        f"{r['xz']:.3f}" if r["xz"] else "",
                        f"{r['words']:,}",
                        ratio,
                        *(f"{k:,}" for k in r["runs"]),
                    ]
                )
    yield (
        "## Richness\nThe first MB of each text, words in lower case, marks being words. TinyStories' sample has 0.94 "
        "MB,\nGutenberg's nine books 5.9 MB.\n"
    )
    head = ["MB", "text", "xz / plain", "words", "type-token ratio", "words", "pairs", "triples", "fours"]
    yield table([*head[:5], *(f"different {name}" for name in head[5:])], rows)
