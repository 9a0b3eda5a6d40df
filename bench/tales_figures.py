"""Tales and their grader in figures, at every level: docs/tales_figures.md, from bench/results/tales_figures.json.

    MINILM_TEST_DATA=folder python bench/tales_figures.py                 all parts that have no result yet
    python bench/tales_figures.py --only speed,damage --levels 3,4 --again
    python bench/tales_figures.py --share 0.1                             a tenth of the stories and MB
    python bench/tales_figures.py --only page                             the page anew, from the results

Every part of every level runs in a process of its own, so memory is its own and a killed run resumes where it was. A
result of a smaller share than is asked for counts as none.
Validity of damaged stories is decided by tests/tales_replay.py. Some 20 minutes of one core; up to 4 GB.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from minilm import runtime
from minilm.errors import UsageError
from minilm.evaluation.ngram import NGramModel, words
from minilm.text import tales
from minilm.text.tales.stream import n_cores, parallel_stories

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results" / "tales_figures.json"
sys.path.insert(0, str(ROOT / "tests"))
import tales_damage  # noqa: E402

SHARE = float(os.environ.get("TALES_FIGURES_SHARE", "1"))
N_ACCEPTED, N_DAMAGED, N_FRESH, N_SAMPLES, N_SHUFFLED = (int(SHARE * n) for n in (100_000, 3_000, 2_000, 1_000, 1_000))
"""Of one level; the first two spread evenly over the styles."""
GRADED_MB, ALL_CORES_MB, TRAIN_MB, REPEATS_MB = (SHARE * mb for mb in (5, 50, 50, 100))
SIZES_MB = 0.1, 0.9, 5.8, 25.0
"""Beginnings of a text whose richness is measured: TinyStories' sample has 0.94 MB, Gutenberg's books 5.9 MB."""
XZ_MB = 10
"""Larger beginnings are not compressed: it takes minutes and says the same."""
REPEATS_LEVELS = 3, 4
ALL_STYLES = ",".join(tales.STYLES)


def corpus(level: int, megabytes: float = TRAIN_MB) -> Iterator[str]:
    """The first training stories; kept in runs/ for the parts that need the same."""
    sample = "\n".join(tales.stories(megabytes=0.2, level=level))
    digest = hashlib.sha256(sample.encode()).hexdigest()[:16]
    path = ROOT / "runs" / "tales_figures" / f"{level}-{digest}-{SHARE:g}.txt"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = REPEATS_MB if level in REPEATS_LEVELS else TRAIN_MB
        with path.with_suffix(".part").open("w", encoding="ascii") as file:
            file.writelines(f"{text}\n" for text in parallel_stories("plain", whole, level=level))
        path.with_suffix(".part").rename(path)
    left = megabytes * 1e6
    with path.open(encoding="ascii") as file:
        for line in file:
            if left <= 0:
                return
            left -= len(line)
            yield line[:-1]


def speed(level: int) -> dict[str, Any]:
    """MB/s of processor time on one core over what `prepare` writes, and of wall time on all; grading on less."""
    figures: dict[str, Any] = {}
    for style in ("plain", "letter"):
        next(tales.stories(n=1, level=level, style=style))
        started = time.process_time()
        n_bytes = sum(len(text) + 1 for text in tales.stories(megabytes=TRAIN_MB, level=level, style=style))
        told = time.process_time()
        texts = list(tales.stories(megabytes=GRADED_MB, level=level, style=style))
        listed = time.process_time()
        passed = sum(tales.grade(text, level).passed for text in texts)
        graded = time.process_time()
        assert passed == len(texts)
        figures[style] = {"generation": n_bytes / 1e6 / (told - started), "grading": GRADED_MB / (graded - listed)}
    started = time.perf_counter()
    n_bytes = sum(len(text) + 1 for text in parallel_stories("plain", ALL_CORES_MB, level=level))
    figures["all_cores"] = n_bytes / 1e6 / (time.perf_counter() - started)
    return figures | {"cores": n_cores()}


def accepted(level: int) -> dict[str, Any]:
    n = -(-N_ACCEPTED // len(tales.STYLES))
    passed = {
        style: sum(tales.grade(t, level).passed for t in tales.stories(n=n, level=level, style=style, split="fresh"))
        for style in tales.STYLES
    }
    return {"n": n * len(tales.STYLES), "passed": sum(passed.values())}


def damage(level: int) -> dict[str, Any]:
    return {kind: dict(counts) for kind, counts in tales_damage.table(level, N_DAMAGED // len(tales.STYLES)).items()}


def ngram(level: int) -> dict[str, Any]:
    """A word 5-gram model's samples, graded."""
    next(corpus(level))
    started = time.process_time()
    model = NGramModel(corpus(level), 5)
    trained = time.process_time()
    peak = runtime.peak_resident_bytes() / 1e9
    samples = model.sample(N_SAMPLES, seed=0, max_words=1000)
    verdicts = [tales.grade(text, level) for text in samples]
    return {
        "n": N_SAMPLES,
        "mb": TRAIN_MB,
        "passed": sum(v.passed for v in verdicts),
        "before": float(np.mean([v.before / v.sentences for v in verdicts])),
        "rules": Counter(v.rule for v in verdicts if v.rule),
        "train_seconds": trained - started,
        "train_gb": peak,
        "sample_seconds": time.process_time() - trained,
    }


def shuffled(level: int) -> dict[str, Any]:
    """Sentences of a story in another order; how many of those that pass the second opinion holds for valid."""
    r, passed, valid = Random(0), 0, 0
    for seed in range(N_SHUFFLED):
        story = tales_damage.open_story(seed, level, "plain")
        r.shuffle(story.lines)
        passed += tales.grade(story.text(), level).passed
        valid += not story.fault()
    return {"n": N_SHUFFLED, "passed": passed, "valid": valid}


def other_text(level: int) -> dict[str, Any]:
    """Pieces of seven sentences, and lines, of other corpora: corpus -> pieces and how many pass."""
    found: dict[str, Any] = {}
    for corpus in ("tinyshakespeare", "wikitext-2-raw", "ptb", "style_haiku", "tinystories"):
        pieces: list[str] = []
        for path in sorted((data_folder() / corpus).rglob("*")):
            if path.is_file():
                text = path.read_text("utf-8", errors="replace")
                sentences = text.replace("\n", " ").split(". ")
                pieces += [". ".join(sentences[i : i + 7]) + "." for i in range(0, len(sentences), 7)]
                pieces += [line for line in text.split("\n") if line.strip()]
        found[corpus] = {"n": len(pieces), "passed": sum(tales.grade(piece, level).passed for piece in pieces)}
    return found


def fresh(level: int) -> dict[str, Any]:
    """Fresh stories against a training set, by the rule that coherence is measured with."""
    check = tales.CopyCheck(corpus(level))
    texts = list(tales.stories(n=N_FRESH, level=level, split="fresh"))
    times = Counter(texts)
    shares = [check.copied_share(text) for text in texts]
    new = sum(share <= 0.6 and times[text] == 1 for share, text in zip(shares, texts, strict=True))
    return {"n": N_FRESH, "mb": TRAIN_MB, "new": new, "mean_copied": float(np.mean(shares)), "most_copied": max(shares)}


def repeats(level: int) -> dict[str, Any]:
    """Stories of 100 MB that were told before in it, word for word."""
    seen: set[bytes] = set()
    n = 0
    for text in corpus(level, REPEATS_MB):
        seen.add(hashlib.blake2b(text.encode(), digest_size=16).digest())
        n += 1
    return {"n": n, "mb": REPEATS_MB, "repeated": n - len(seen)}


def richness(text: str) -> list[dict[str, Any]]:
    """Of beginnings of a text: size by xz, words, and different runs of 1 to 4 words."""
    rows = []
    for megabytes in SIZES_MB:
        data = text.encode()[: int(megabytes * 1e6)]
        if len(data) < 0.95 * megabytes * 1e6:
            break
        number: dict[str, int] = {}
        ids = np.array([number.setdefault(w, len(number)) for w in words(data.decode("utf-8", "ignore").lower())])
        size = np.uint64(len(number) + 1)
        runs, key = [], np.zeros(len(ids), np.uint64)
        for n in range(1, 5):  # a run of n words as one number; the vocabularies here are below 2**16
            key = key[: len(ids) - n + 1] * size + ids[n - 1 :].astype(np.uint64)
            runs.append(len(np.unique(key)))
        assert int(size) < 2**16
        xz = len(lzma.compress(data)) / len(data) if megabytes <= XZ_MB else None
        rows.append({"mb": megabytes, "xz": xz, "words": len(ids), "runs": runs})
    return rows


def rich(level: int) -> dict[str, Any]:
    return {"rows": richness("\n".join(corpus(level, SHARE * SIZES_MB[-1])))}


def rich_others() -> dict[str, Any]:
    styled = "\n".join(parallel_stories(ALL_STYLES, SHARE * SIZES_MB[-1], level=4))
    stories = (data_folder() / "tinystories" / "tiny_stories.txt").read_text("utf-8")
    return {
        "level 4, six styles": richness(styled),
        "TinyStories": richness(stories),
        "Gutenberg": richness("\n".join(gutenberg())),
    }


def gutenberg() -> Iterator[str]:
    """The books without what Project Gutenberg says before and after."""
    for path in sorted((data_folder() / "gutenberg").glob("*.txt")):
        lines = path.read_text("utf-8-sig", errors="replace").split("\n")
        marks = [i for i, line in enumerate(lines) if line.startswith(("*** START", "*** END", "***START", "***END"))]
        first, last = (marks[0] + 1, marks[-1]) if len(marks) >= 2 else (0, len(lines))
        yield "\n".join(lines[first:last])


def data_folder() -> Path:
    folder = os.environ.get("MINILM_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        raise UsageError("set MINILM_TEST_DATA to the folder of test data, or name other parts with --only")
    return Path(folder)


PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    "speed": speed,
    "accepted": accepted,
    "damage": damage,
    "shuffled": shuffled,
    "other_text": other_text,
    "ngram": ngram,
    "repeats": repeats,
    "fresh": fresh,
    "rich": rich,
    "rich_others": rich_others,
}


def load() -> dict[str, Any]:
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}


def measure(key: str, share: float) -> None:
    """Runs one part in a process of its own and keeps what it gives."""
    started = time.perf_counter()
    command = [sys.executable, __file__, "--measure", key]
    environment = {**os.environ, "TALES_FIGURES_SHARE": f"{share:g}"}
    told = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    result = json.loads(told.stdout)
    result["_"] = {"date": time.strftime("%Y-%m-%d"), "commit": commit.strip(), "load": round(os.getloadavg()[1], 1)}
    result["_"]["share"] = share
    RESULTS.parent.mkdir(exist_ok=True)
    kept = load() | {key: result}
    RESULTS.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n", encoding="utf-8")
    print(f"{key}: {time.perf_counter() - started:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help=f"parts, joined by commas: {', '.join(PARTS)}, or page")
    parser.add_argument("--levels", default="1,2,3,4")
    parser.add_argument("--again", action="store_true", help="measure what has a result too")
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        part, _, level = options.measure.partition("/")
        print(json.dumps(PARTS[part](*([int(level)] if level else []))))
        return
    wanted = options.only.split(",") if options.only else list(PARTS)
    if unknown := set(wanted) - {*PARTS, "page"}:
        raise UsageError(f"no part is called {min(unknown)}: there are {', '.join(PARTS)}, and page")
    keys = [
        f"{part}/{level}"
        for part in wanted
        for level in options.levels.split(",")
        if part not in ("page", "rich_others")
    ]
    keys += [part for part in wanted if part == "rich_others"]
    keys = [key for key in keys if not key.startswith("repeats/") or int(key[-1]) in REPEATS_LEVELS]
    for key in keys:
        if options.again or load().get(key, {"_": {"share": 0}})["_"]["share"] < options.share:
            measure(key, options.share)
    from tales_figures_page import PAGE, page

    PAGE.write_text(page(load()), encoding="utf-8")


if __name__ == "__main__":
    main()
