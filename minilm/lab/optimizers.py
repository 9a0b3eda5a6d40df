"""Which optimizer: loss, memory, time and steps to AdamW's loss, each at its own tuned rate."""

from __future__ import annotations

from minilm.lab.measures import BEFORE, COHERENT, LOSS, SPEED, STATE, STEPS_TO_REFERENCE
from minilm.lab.question import GPU, LAPTOP, SMOKE, Arm, Question, Scale, grid, prose


def arms(scale: Scale) -> list[Arm]:
    adam = {"beta1": 0.9, "beta2": 0.95}
    return [
        Arm("adamw", {"optimizer": "adamw", **adam}, grid(4e-3)),
        Arm("adafactor", {"optimizer": "adafactor"}, grid(1e-2)),
        Arm("adagrad", {"optimizer": "adagrad"}, grid(2e-2)),
        Arm("sgd", {"optimizer": "sgd", "momentum": 0.9}, grid(3e-1)),
        Arm("lion", {"optimizer": "lion", "beta1": 0.9, "beta2": 0.99}, grid(4e-4)),
        Arm("muon", {"optimizer": "muon", "momentum": 0.95, **adam}, grid(1e-2)),
    ]


QUESTION = Question(
    **prose("optimizers"),
    measures=(LOSS, STEPS_TO_REFERENCE, BEFORE, COHERENT, SPEED, STATE),
    margin=0.01,
    reference="adamw",
    arms=arms,
    scales={"smoke": SMOKE.but(n_stories=1), "laptop": LAPTOP, "gpu": GPU},
    timed=True,
)
