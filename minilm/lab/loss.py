"""What to minimise: cross-entropy, or with label smoothing, z-loss, unlikelihood or SimCTG's contrast beside it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from minilm.evaluation.intervals import bootstrap
from minilm.evaluation.ngram import words
from minilm.evaluation.repetition import distinct_n, seq_rep_n
from minilm.evaluation.text_metrics import tell_stories
from minilm.lab.measures import SPEED, WRITES
from minilm.lab.question import GPU, LAPTOP, SMOKE, Arm, Base, Measure, Picture, Question, Scale, grid, prose
from minilm.lab.statistics import paired_effect
from minilm.lab.trial import Trained, loss_of_rows
from minilm.model.weights import load_pretrained

TERMS: dict[str, dict[str, float]] = {"cross-entropy": {}, "label smoothing 0.1": {"label_smoothing": 0.1}}
TERMS |= {"z-loss 1e-4": {"z_loss": 1e-4}, "unlikelihood 0.5": {"unlikelihood": 0.5}}
TERMS |= {"contrastive 1": {"contrastive": 1.0}}


def arms(scale: Scale) -> list[Arm]:
    teacher, told = Base(scale.extra["teacher"], {}), {"teacher": "its loss too"}
    distilled = Arm("distilled", {"teacher": "base", "distill": 1.0}, grid(1e-2), base=teacher, measure=told)
    return [*(Arm(name, terms, grid(1e-2)) for name, terms in TERMS.items()), distilled]


def greedy_text(trained: Trained) -> dict[str, float]:
    """How much greedy continuations repeat themselves, and plain samples each other; and a teacher's loss."""
    n, level = trained.cell.measure["n_stories"], trained.cell.data["level"]
    model, tokenizer = trained.model, trained.tokenizer
    greedy = tell_stories(model, tokenizer, level=level, n_stories=1, temperature=0.0)
    drawn = [words(text) for text in tell_stories(model, tokenizer, level=level, n_stories=n)]
    found = {}
    if trained.base_checkpoint is not None:
        plain, teacher = replace(trained.cell.config, teacher="", distill=0.0), load_pretrained(trained.base_checkpoint)
        found["teacher_loss"] = loss_of_rows(teacher[0].to(model.device).eval(), plain, trained.data.splits["val"])
    return {
        **found,
        "greedy_repeated": 100 * bootstrap([seq_rep_n(words(text)) for text in greedy]).value,
        "distinct_3": 100 * distinct_n(drawn, 3),
    }


def nearer(analysis: Any) -> str:
    """How much of the way from the same model without a teacher to its teacher a distilled one goes."""
    by = {r.arm.name: r.values for r in analysis.arms}
    ways = by["cross-entropy"]["val_loss"], by["distilled"]["val_loss"], by["distilled"]["teacher_loss"]
    e = paired_effect([100 * (a - b) / (a - c) for a, b, c in zip(*ways, strict=True)], [0.0] * len(ways[0]))
    verdict = "agrees" if e.low > 50 else "disagrees" if e.high < 50 else "undecided here"
    return f"distilled goes {e.mean:.0f} % of the way to its teacher ({e.interval(0)}; near: more than half), {verdict}"


QUESTION = Question(
    **prose("loss"),
    measures=(
        *WRITES,
        Measure("distinct_3", "distinct 3-grams of plain samples", "% of 3-grams", "higher", 1),
        Measure("greedy_repeated", "repeated 4-grams of the greedy story", "%", digits=1),
        Measure("teacher_loss", "the teacher's validation loss", "nats per token", digits=4),
        SPEED,
    ),
    margin=2.0,
    reference="cross-entropy",
    arms=arms,
    scales={
        "smoke": SMOKE.but(n_rates=1, extra={"teacher": {"n_embd": 24}}),
        "laptop": LAPTOP.but(extra={"teacher": {"n_embd": 192, "max_steps": 400}}),
        "gpu": GPU.but(extra={"teacher": {"n_embd": 1152, "max_steps": 4000}}),
    },
    pictures=(Picture("points", "val_loss", "before"),),
    timed=True,
    judges={"Sanh 2019": nearer},
    measure=greedy_text,
)
