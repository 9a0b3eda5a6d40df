"""Which optimizer: loss, memory, time and steps to AdamW's loss, each at its own tuned rate."""

from __future__ import annotations

from minilm.lab.measures import BEFORE, COHERENT, LOSS, SPEED, STATE, STEPS_TO_REFERENCE
from minilm.lab.question import GPU, LAPTOP, SMOKE, Arm, Claim, Question, Scale, grid


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
    name="optimizers",
    asks="Which optimizer learns most from the same tokens, what does it cost in time and memory?",
    varied="The optimizer, each with its own rate.",
    fixed="Model, data, order of batches, steps, schedule, warmup, weight decay, clipping; as many rates for each.",
    would_change="An optimizer with a lower loss than AdamW's, which is the default outside the preset tiny.",
    measures=(LOSS, STEPS_TO_REFERENCE, BEFORE, COHERENT, SPEED, STATE),
    margin=0.01,
    reference="adamw",
    arms=arms,
    minutes=20,
    scales={"smoke": SMOKE.but(n_stories=1), "laptop": LAPTOP, "gpu": GPU},
    published=(
        Claim(
            "Plain SGD stays far behind Adam on transformers, however it is tuned.",
            "Zhang 2020, arXiv:1912.03194; Kunstner 2023, arXiv:2304.13960",
            {"sgd": "worse"},
        ),
        Claim(
            "Muon reaches AdamW's loss with about a quarter less compute at small scale.",
            "Jordan 2024; Wen 2025, arXiv:2509.02046",
            {"muon": "better"},
        ),
        Claim(
            "Well tuned, Adafactor and Lion are about as good as Adam; SGD is not.",
            "Zhao 2024, arXiv:2407.07972",
            {"adafactor": "same", "lion": "same", "sgd": "worse"},
        ),
    ),
    threats=(
        "Rates are tuned, momenta and decays are the published ones.",
        "One model size and one batch size: Muon's and Lion's lead depends on both.",
    ),
    timed=True,
)
