"""What `minilm eval` does with tales: judges those of a file, or those that a model tells."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from minilm.errors import UsageError
from minilm.eval_cli import loaded
from minilm.log import say

if TYPE_CHECKING:
    from minilm.text.shards import ShardFolder
    from minilm.text.tales.grader import Verdict

SEPARATOR = "<|endoftext|>"


def grade_file(options: argparse.Namespace) -> int:
    """Prints the verdict on each story of `options.grade`, and the sum of them."""
    from minilm.evaluation.intervals import wilson
    from minilm.evaluation.text_metrics import share_before
    from minilm.text.tales.grammar import grammar

    grammar(1 if options.level is None else options.level, options.style or "plain")  # an unknown one shows here
    texts = read_stories(options.grade)
    graded = [grade_at(text, options.level, options.style) for text in texts]
    verdicts = [verdict for _, verdict in graded]
    n, passed = len(texts), sum(verdict.passed for verdict in verdicts)
    low, high = wilson(passed, n)
    rules = dict(Counter(str(v.rule) for v in verdicts if not v.passed).most_common())
    before = sum(map(share_before, verdicts)) / n
    if options.json:
        pairs = zip(texts, graded, strict=True)
        stories = [{"level": level, "style": style_of(text), **v._asdict()} for text, (level, v) in pairs]
        summary = {"stories": n, "passed": passed, "share": passed / n, "low": low, "high": high}
        print(json.dumps({"stories": stories, "summary": summary | {"rules": rules, "mean_before": before}}, indent=1))
        return 0
    for i, (text, (level, verdict)) in enumerate(zip(texts, graded, strict=True), 1):
        print(f"{i:{len(str(n))}}  {_told(verdict)}  (level {level}, {style_of(text)})")
    listed = ", ".join(f"{rule} {times}" for rule, times in rules.items()) or "none"
    print(
        f"{passed} of {n} stories pass: {100 * passed / n:.1f} % ({100 * low:.1f} to {100 * high:.1f} %, Wilson 95 %)\n"
        f"first broken rule: {listed}; {100 * before:.0f} % of sentences come before it"
    )
    return 0


def _told(verdict: Verdict) -> str:
    if verdict.passed:
        return f"pass, {verdict.sentences} sentences"
    where = repr(verdict.broken) if verdict.broken else "at the end"
    return f"{verdict.rule}, after {verdict.before} of {verdict.sentences} sentences: {where}"


def read_stories(file: str) -> list[str]:
    """The stories of a text file, one line each, with single blanks, as the grader reads them; else `read_texts`."""
    return [" ".join(text.split()) for text in read_texts(file)]


def read_texts(file: str) -> list[str]:
    """The texts of a text file: what stands between <|endoftext|>, where the file has any; else between blank lines,
    where it has any (then a text may be wrapped over several lines); else each line. White space around them is cut.

    Raises UsageError for a file that is missing, unreadable, not UTF-8 or without a story.
    """
    try:
        text = Path(file).expanduser().read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{file} cannot be read ({error.strerror}): name a text file of tales") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is not UTF-8 text (byte {error.start}): save it as UTF-8 and try again") from None
    text = text.replace("\r\n", "\n").replace("\r", "\n").strip()
    lines = text.split("\n")
    if SEPARATOR in text:
        parts = text.split(SEPARATOR)
    elif not all(map(str.strip, lines)):
        parts = "\n".join(line if line.strip() else SEPARATOR for line in lines).split(SEPARATOR)
    else:
        parts = lines
    texts = [part.strip() for part in parts if part.strip()]
    if not texts:
        raise UsageError(f"{file} holds no story: it needs one a line, or parted by blank lines or {SEPARATOR}")
    return texts


def grade_at(text: str, level: int | None, style: str | None) -> tuple[int, Verdict]:
    """(level, verdict) of a story. Without a level: the lowest that it passes at, else the one at which most sentences
    come before the broken rule, the lowest of these."""
    from minilm.text.tales.grader import grade
    from minilm.text.tales.grammar import LEVELS

    found: list[tuple[int, Verdict]] = []
    for at in LEVELS if level is None else (level,):
        found.append((at, grade(text, at, style)))
        if found[-1][1].passed:
            return found[-1]
    return max(found, key=lambda one: one[1].before)


def style_of(text: str) -> str:
    """What the control code of a story says."""
    from minilm.text.tales.grader import CODE

    code = CODE.match(text)
    return code[1] if code else "plain"


def measure_coherence(options: argparse.Namespace) -> int:
    """Prints how coherent the tales of a model are, in each style asked for."""
    from minilm.evaluation.text_metrics import coherence, copy_check
    from minilm.text.folders import tales_of

    data = _data_of(options)
    level, styles = tales_of(data.folder) if data else (1, ["plain"])
    level = level if options.level is None else options.level
    styles = [style.strip() for style in options.style.split(",")] if options.style else styles
    model, tokenizer = loaded(options, options.model)
    copies = copy_check(data.splits["train"], data.tokenizer()) if data and "train" in data.splits else None
    drawn = {name: getattr(options, name) for name in ("seed", "temperature", "top_k", "top_p")}
    results = []
    for style in styles:
        result = coherence(
            model, tokenizer, train=copies, level=level, style=style, n_stories=options.num_stories, **drawn
        )
        results.append(result)
        if not options.json:
            print(result)
    if options.json:
        print(json.dumps([{"share": result.share, **asdict(result)} for result in results], indent=1))
    return 0


def _data_of(options: argparse.Namespace) -> ShardFolder | None:
    """The data that `--data` names, else that of the model's run, where it is still there."""
    from minilm.text.prepare import prepare
    from minilm.text.shards import open_shards

    if options.data:
        return open_shards(prepare(options.data))
    folder = run_data(options.model)
    if folder is None or not (folder / "meta.json").is_file():
        what = "the model is no run that says" if folder is None else f"{folder} is not there, which says"
        say(f"{what} what it was trained on: copies are not looked for (--data names it)")
        return None
    return open_shards(folder)


def run_data(model: str) -> Path | None:
    """The prepared folder that a run was trained on, as its config.toml says; None for what is no run."""
    from minilm.model.hub import find_checkpoint
    from minilm.options import read_preset

    path = find_checkpoint(model)
    for folder in (path, path.parent):
        if (folder / "config.toml").is_file():
            return Path(read_preset(str(folder / "config.toml")).get("data", ""))
    return None
