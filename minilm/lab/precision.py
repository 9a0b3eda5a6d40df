"""In how many bits: fp32, mixed bf16 and fp16, and weights, gradients and optimizer state in 16 bits too."""

from __future__ import annotations

from minilm.lab.measures import BEFORE, LOSS, SPEED, STATE
from minilm.lab.question import GPU, LAPTOP, SMOKE, Arm, Claim, Question, Scale, grid

ROUNDINGS = ("nearest", "stochastic", "kahan")


def arms(scale: Scale) -> list[Arm]:
    adamw = {"optimizer": "adamw", "compile": "off"}
    found = [Arm(name, {**adamw, "precision": name}, grid(4e-3)) for name in ("fp32", "bf16", "fp16")]
    return found + [
        Arm(f"pure {bits}, {rounding}", {**adamw, "precision": f"pure_{bits}", "rounding": rounding}, grid(4e-3))
        for bits in ("bf16", "fp16")
        for rounding in ROUNDINGS
    ]


QUESTION = Question(
    name="precision",
    asks="How few bits do training's numbers need, and does rounding at random make up for missing ones?",
    varied="Precision of products (bf16, fp16), or of weights, gradients and AdamW's state too (pure), and how updates "
    "are rounded to it.",
    fixed="Model, data, order of batches, steps, schedule, optimizer; as many rates tried for each.",
    would_change="A precision in 16 bits with fp32's loss: the fastest such one is what `auto` should take.",
    measures=(LOSS, BEFORE, SPEED, STATE),
    margin=0.01,
    reference="fp32",
    arms=arms,
    scales={
        "smoke": SMOKE.but({"max_steps": 2}, n_rates=1, n_stories=1),
        "laptop": LAPTOP.but({"max_steps": 150}, n_rates=3),
        "gpu": GPU.but(n_rates=3),
    },
    published=(
        Claim(
            "Mixed fp16 with fp32 weights and a loss scale matches fp32.",
            "Micikevicius 2018, arXiv:1710.03740",
            {"fp16": "same", "bf16": "same"},
        ),
        Claim(
            "With 16-bit weights rounding to nearest cancels small updates; stochastic rounding or Kahan's sum "
            "restores "
            "most of what fp32 reaches.",
            "Zamirai 2020, arXiv:2010.06192",
            {"pure bf16, nearest": "worse", "pure bf16, kahan": "same", "pure bf16, stochastic": "same"},
        ),
    ),
    threats=(
        "A processor without bf16 or fp16 arithmetic emulates it: there losses tell, speeds do not, and it takes "
        "hours.",
        "pure fp16 on a CPU stores 16 bits and computes in 32.",
    ),
    timed=True,
)
