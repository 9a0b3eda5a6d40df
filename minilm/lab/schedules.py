"""Which shape of the learning rate after warmup."""

from __future__ import annotations

from typing import Any

from minilm.lab.measures import BEFORE, COHERENT, LOSS
from minilm.lab.question import GPU, LAPTOP, SMOKE, Arm, Claim, Question, Scale, grid

SHAPES: dict[str, dict[str, Any]] = {
    "cosine": {"final_lr_share": 0.0},
    "cosine to 10 %": {"schedule": "cosine", "final_lr_share": 0.1},
    "linear": {"final_lr_share": 0.0},
    "wsd": {"final_lr_share": 0.0, "decay_share": 0.2},
    "constant": {},
    "inverse_sqrt": {"final_lr_share": 0.0},
    "step": {"final_lr_share": 0.1},
    "cosine_restarts": {"final_lr_share": 0.0},
    "polynomial": {"final_lr_share": 0.0},
}


def arms(scale: Scale) -> list[Arm]:
    return [Arm(name, {"schedule": name, **more}, grid(1e-2)) for name, more in SHAPES.items()]


QUESTION = Question(
    name="schedules",
    asks="How should the learning rate fall?",
    varied="The schedule after warmup, each with its own peak rate.",
    fixed="Model, data, order of batches, steps, warmup, optimizer; as many rates tried for each.",
    would_change="A schedule with a lower loss than cosine, the default.",
    measures=(LOSS, BEFORE, COHERENT),
    margin=0.01,
    reference="cosine",
    arms=arms,
    minutes=25,
    scales={
        "smoke": SMOKE.but(n_rates=1, n_stories=1),
        "laptop": LAPTOP,
        "gpu": GPU,
    },
    published=(
        Claim(
            "Linear decay to zero beats cosine to 10 % of the peak, the more so the longer the run.",
            "Bergsma 2025, arXiv:2502.15938",
            {"cosine to 10 %": "worse", "linear": "same"},
        ),
        Claim(
            "A constant rate with a short decay (WSD) matches cosine.",
            "Hägele 2024, arXiv:2405.18392",
            {"wsd": "same", "constant": "worse"},
        ),
    ),
    threats=("One length of run: schedules differ in how they stand when a run is made longer.",),
)
