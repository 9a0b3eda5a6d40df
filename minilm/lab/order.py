"""How several data sets of unlike size take turns: by size, evenly, between, or one after the other."""

from __future__ import annotations

from typing import Any

from minilm.lab.question import GPU, LAPTOP, SMOKE, Arm, Measure, Question, Scale, grid, prose
from minilm.lab.stories import story_loss
from minilm.lab.trial import Trained
from minilm.text.tales import stories

STYLES = ("plain", "fable", "news", "letter")  # each a quarter of the one before
SHARES = (64, 16, 4, 1)


def arms(scale: Scale) -> list[Arm]:
    sizes = [scale.extra["megabytes"] * share / sum(SHARES) for share in SHARES]
    parts = [{"style": s, "megabytes": round(size, 4)} for s, size in zip(STYLES, sizes, strict=True)]
    evenly = [{**part, "weight": 0.25} for part in parts]
    turns: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "by size": ({}, {"parts": parts}),
        "temperature 2": ({"mix_temperature": 2.0}, {"parts": parts}),
        "temperature 5": ({"mix_temperature": 5.0}, {"parts": parts}),
        "evenly": ({}, {"parts": evenly}),
        "largest first": ({"order": "sequential"}, {"parts": parts, "in_turn": True}),
        "smallest first": ({"order": "sequential"}, {"parts": parts[::-1], "in_turn": True}),
    }
    words = {"vocabulary": {"style": ",".join(STYLES), "megabytes": scale.extra["megabytes"]}}
    measure = {"documents": scale.extra["documents"]}
    return [
        Arm(name, {"max_epochs": scale.extra["epochs"], **run}, grid(1e-2), data={**words, **data}, measure=measure)
        for name, (run, data) in turns.items()
    ]


def each_style(trained: Trained) -> dict[str, float]:
    """Loss of fresh stories of every style; their mean, each counting alike, and the worst."""
    level, n = trained.cell.data["level"], trained.cell.measure["documents"]
    losses = {
        f"loss_{style}": story_loss(
            trained.model, trained.tokenizer, list(stories(n=n, level=level, style=style, split="fresh"))
        )
        for style in STYLES
    }
    return {**losses, "mean_loss": sum(losses.values()) / len(losses), "worst_loss": max(losses.values())}


def _scale(scale: Scale, megabytes: float, documents: int, epochs: float = 1.0) -> Scale:
    extra = {"megabytes": megabytes, "documents": documents, "epochs": epochs}
    # A rate that falls would teach little of what is read last.
    return scale.but({"warmup_steps": 0, "warmup_share": 0.05, "schedule": "constant"}, extra=extra)


QUESTION = Question(
    **prose("order"),
    measures=(
        Measure("mean_loss", "loss, mean over data sets", "nats per token", digits=4),
        Measure("worst_loss", "loss of the worst data set", "nats per token", digits=4),
        *(Measure(f"loss_{style}", f"loss of {style}", "nats per token", digits=4) for style in STYLES),
    ),
    margin=0.01,
    reference="by size",
    chosen_by="mean_loss",
    arms=arms,
    scales={
        "smoke": _scale(SMOKE.but(n_rates=1, n_stories=0), 0.04, 2, 0.02),
        "laptop": _scale(LAPTOP.but(n_stories=0), 2.2, 200),
        "gpu": _scale(GPU.but(n_stories=0), 400.0, 500),
    },
    measure=each_style,
)
