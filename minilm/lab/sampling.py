"""Which sampler: quality against diversity of every strategy, on the same models."""

from __future__ import annotations

from typing import Any

import numpy as np

from minilm.decoding.presets import PRESETS
from minilm.evaluation.intervals import bootstrap
from minilm.evaluation.ngram import words
from minilm.evaluation.repetition import distinct_n, seq_rep_n
from minilm.evaluation.text_metrics import judge, tell_stories
from minilm.lab.analysis import verdict_of
from minilm.lab.measures import BEFORE, COHERENT, COPIED
from minilm.lab.question import GPU, LAPTOP, SMOKE, Arm, Base, Measure, Picture, Question, Scale, prose
from minilm.lab.statistics import holm, paired_effect
from minilm.lab.trial import Trained, copies_of

DUPLICATE = Measure("duplicate", "stories told more than once", "%", digits=1)
DISTINCT = Measure("distinct_3", "distinct 3-grams", "% of 3-grams", "higher", 1)
SETTINGS: dict[str, dict[str, float]] = {
    **{f"temperature {t:g}": {"temperature": t} for t in (1.0, 0.8, 0.6, 0.4)},
    "greedy": {"temperature": 0.0},
    **{f"top_k {k}": {"top_k": k} for k in (40, 10, 3)},
    **{f"top_p {p:g}": {"top_p": p} for p in (0.95, 0.9, 0.7)},
    **{f"min_p {p:g}": {"min_p": p} for p in (0.05, 0.1, 0.3)},
    **{f"typical {p:g}": {"typical_p": p} for p in (0.95, 0.7)},
    **{name: dict(PRESETS[name].settings) for name in ("epsilon", "eta", "mirostat", "ctrl", "contrastive")},
}


def arms(scale: Scale) -> list[Arm]:
    return [Arm(name, measure={"filters": filters}) for name, filters in SETTINGS.items()]


def written(trained: Trained) -> dict[str, float]:
    """What the strategy's stories are like, each arm's from the same seeds."""
    measure, data = trained.cell.measure, trained.cell.data
    n_stories, level = measure["n_stories"], data["level"]
    texts = tell_stories(
        trained.model, trained.tokenizer, level=level, n_stories=n_stories, seed=trained.cell.seed, **measure["filters"]
    )
    graded = judge(texts, train=copies_of(trained.data), level=level)
    split = [words(text) for text in texts]
    return {
        "coherent": 100 * graded.share,
        "before": 100 * graded.mean_before,
        "duplicate": 100 * sum(texts.count(text) > 1 for text in texts) / n_stories,
        "distinct_3": 100 * distinct_n(split, 3),
        "repeated": 100 * bootstrap([seq_rep_n(text) for text in split]).value,
        "copied": 100 * graded.failures.get("copied", 0) / n_stories,
    }


def told(analysis: Any) -> list[str]:
    """What is more coherent and not less diverse: what would change the default."""
    better = [c.arm.label for c in analysis.among("better")]
    kept = [name for name in better if analysis.verdict(name, DISTINCT.name) != "worse"]
    return [f"More coherent than plain sampling, and not found to be less diverse: {', '.join(kept) or 'none'}."]


def fronts(analysis: Any) -> str:
    """Whether one of three families writes more coherently at equal diversity: the mean height of its front (straight
    lines between its settings, of which plain sampling is one) over the diversity that all three reach, by seed."""
    ways, heights = ("temperature", "top_k", "top_p"), list[list[float]]()
    for seed in range(analysis.scale.n_seeds):
        of = [[r for r in analysis.arms if r.arm.name.startswith((way, "temperature 1"))] for way in ways]
        points = [sorted((r.values["distinct_3"][seed], r.values["coherent"][seed]) for r in arms) for arms in of]
        at = np.linspace(max(front[0][0] for front in points), min(front[-1][0] for front in points), 100)
        heights.append([float(np.interp(at, *np.array(front).T).mean()) for front in points])
    first, *others = map(list, zip(*heights, strict=True))
    effects = [paired_effect(other, first) for other in others]
    pairs = zip(effects, holm([e.p for e in effects]), strict=True)
    found = {verdict_of(e, p, analysis.question.margin, "higher") for e, p in pairs}
    each = ", ".join(f"{w} {e.mean:+.1f} % ({e.interval(1)})" for w, e in zip(ways[1:], effects, strict=True))
    verdict = "disagrees" if {"better", "worse"} & found else "agrees" if found == {"same"} else "undecided here"
    return f"coherent stories at equal diversity, beside temperature: {each}, {verdict}"


QUESTION = Question(
    **prose("sampling"),
    measures=(
        COHERENT,
        BEFORE,
        DISTINCT,
        DUPLICATE,
        Measure("repeated", "repeated 4-grams within a story", "%", digits=1),
        COPIED,
    ),
    margin=2.0,
    reference="temperature 1",
    arms=arms,
    scales={
        "smoke": SMOKE.but(n_stories=1),
        "laptop": LAPTOP.but({"max_steps": 1000}, n_stories=500),
        "gpu": GPU.but(n_stories=500),
    },
    pictures=(Picture("points", "distinct_3", "coherent"),),
    base=lambda scale: Base({}, {}, per_seed=True),
    trains=False,
    measure=written,
    tells=told,
    judges={"Nadeem 2020": fronts},
)
