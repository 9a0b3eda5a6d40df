"""Which automatic metric tells good stories from bad: rank correlation with coherence over models good and bad."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from minilm.evaluation.likeness import document_nats
from minilm.evaluation.ngram import words
from minilm.evaluation.repetition import distinct_n, rep_r, seq_rep_n, zipf
from minilm.evaluation.text_metrics import judge, tell_stories
from minilm.lab.answers import correlations
from minilm.lab.measures import WRITES
from minilm.lab.question import GPU, LAPTOP, SMOKE, Arm, Base, Measure, Picture, Question, Scale, prose
from minilm.lab.trial import Trained, copies_of
from minilm.model.weights import load_pretrained

MODELS = ((48, 60), (48, 250), (96, 60), (96, 250), (96, 600))  # width, steps
SAMPLERS: dict[str, dict[str, float]] = {"plain": {}, "cool": {"temperature": 0.7}, "hot": {"temperature": 1.3}}


def arms(scale: Scale) -> list[Arm]:
    found, reader = [], Base({"max_steps": scale.extra["judge_steps"]}, {}, weights=False)
    for width, steps in scale.extra["models"]:
        for sampler, filters in SAMPLERS.items():
            run = {"n_embd": width, "n_head": 2, "max_steps": steps, "lr": 1e-2 * (192 / width) ** 0.5}
            run |= {"eval_every_steps": 0, "warmup_steps": 0, "warmup_share": 0.08}
            most = (width, steps) == scale.extra["models"][-1]
            name = "most trained" if most else f"width {width}, {steps} steps"
            found.append(Arm(f"{name}, {sampler}", run, measure={"filters": filters}, base=reader))
    return found


def every_metric(trained: Trained) -> dict[str, float]:
    """What is measured of the stories that the sampler draws; the judge is a model of its own."""
    measure, level = trained.cell.measure, trained.cell.data["level"]
    n = measure["n_stories"]
    texts = tell_stories(trained.model, trained.tokenizer, level=level, n_stories=n, **measure["filters"])
    graded = judge(texts, train=copies_of(trained.data), level=level)
    split = [words(text) for text in texts if text]
    assert trained.base_checkpoint is not None
    reader = load_pretrained(trained.base_checkpoint)[0].to(trained.model.device).eval()
    nats, tokens = document_nats(reader, trained.tokenizer, texts)

    def mean(values: Iterable[float]) -> float:
        found = [value for value in values if math.isfinite(value)]
        return sum(found) / len(found) if found else math.nan

    return {
        "seq_rep_4": mean(map(seq_rep_n, split)),
        "rep_r": mean(map(rep_r, split)),
        "coherent": 100 * graded.share,
        "before": 100 * graded.mean_before,
        "judged": float(nats.sum() / tokens.sum()),
        "distinct_3": distinct_n(split, 3),
        "zipf": zipf(split),
        "length": sum(map(len, split)) / max(len(split), 1),
    }


def told(analysis: Any) -> list[str]:
    return [correlations(analysis, [m.name for m in analysis.question.measures[2:]])]


QUESTION = Question(
    **prose("metrics"),
    measures=(
        *WRITES,
        Measure("judged", "loss of the stories under the judge", "nats per token", digits=3),
        Measure("seq_rep_4", "seq-rep-4", "", digits=3),
        Measure("rep_r", "rep-r", "", digits=3),
        Measure("distinct_3", "distinct-3", "", "higher", 3),
        Measure("zipf", "Zipf coefficient", "", digits=3),
        Measure("length", "words a story", "", "higher", 1),
    ),
    margin=2.0,
    reference="most trained, plain",
    arms=arms,
    scales={
        "smoke": SMOKE.but(n_stories=2, extra={"models": ((16, 2), (8, 4)), "judge_steps": 4}),
        "laptop": LAPTOP.but(extra={"models": MODELS, "judge_steps": 1500}),
        "gpu": GPU.but(extra={"models": ((96, 500), (192, 1000), (384, 2000), (768, 4000)), "judge_steps": 8000}),
    },
    pictures=(Picture("points", "val_loss", "before"), Picture("points", "judged", "before")),
    measure=every_metric,
    tells=told,
    tells_first=True,
)
