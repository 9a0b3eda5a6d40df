"""Which shape of the learning rate after warmup."""

from __future__ import annotations

from typing import Any

from minilm.lab.measures import BEFORE, COHERENT, LOSS
from minilm.lab.question import GPU, LAPTOP, SMOKE, Arm, Question, Scale, grid, prose

SHAPES: dict[str, dict[str, Any]] = {"cosine": {}, "cosine to 10 %": {"schedule": "cosine", "final_lr_share": 0.1}}
SHAPES |= {"linear": {}, "wsd": {"decay_share": 0.2}, "constant": {}, "inverse_sqrt": {}}
SHAPES |= {"step": {"final_lr_share": 0.1}, "cosine_restarts": {}, "polynomial": {}}


def arms(scale: Scale) -> list[Arm]:
    return [Arm(name, {"schedule": name, **more}, grid(1e-2)) for name, more in SHAPES.items()]


QUESTION = Question(
    **prose("schedules"),
    measures=(LOSS, BEFORE, COHERENT),
    margin=0.01,
    reference="cosine",
    arms=arms,
    minutes=17,
    scales={"smoke": SMOKE.but(n_rates=1, n_stories=1), "laptop": LAPTOP.but(n_seeds=3), "gpu": GPU},
)
