"""In how many bits: fp32, mixed bf16 and fp16, and weights, gradients and optimizer state in 16 bits too."""

from __future__ import annotations

from minilm.lab.measures import BEFORE, LOSS, SPEED, STATE
from minilm.lab.question import GPU, LAPTOP, SMOKE, Arm, Question, Scale, grid, prose


def arms(scale: Scale) -> list[Arm]:
    adamw = {"optimizer": "adamw", "compile": "off"}
    found = [Arm(name, {**adamw, "precision": name}, grid(4e-3)) for name in ("fp32", "bf16", "fp16")]
    return found + [
        Arm(f"pure {bits}, {rounding}", {**adamw, "precision": f"pure_{bits}", "rounding": rounding}, grid(4e-3))
        for bits in ("bf16", "fp16")
        for rounding in ("nearest", "stochastic", "kahan")
    ]


QUESTION = Question(
    **prose("precision"),
    measures=(LOSS, BEFORE, SPEED, STATE),
    margin=0.01,
    reference="fp32",
    arms=arms,
    scales={
        "smoke": SMOKE.but({"max_steps": 2}, n_rates=1, n_stories=1),
        "laptop": LAPTOP.but({"max_steps": 150}, n_rates=3),
        "gpu": GPU.but(n_rates=3),
    },
    minutes=23,
    timed=True,
)
