"""How long the learning rate should rise."""

from __future__ import annotations

from minilm.lab.measures import BEFORE, COHERENT, LOSS
from minilm.lab.question import GPU, LAPTOP, SMOKE, Arm, Picture, Question, Scale, grid, prose


def arms(scale: Scale) -> list[Arm]:
    found = []
    for optimizer, rate in (("adamw", 4e-3), ("muon", 1e-2)):
        for share in (0.0, 0.01, 0.03, 0.1, 0.3):
            run = {"optimizer": optimizer, "warmup_steps": 0, "warmup_share": share}
            found.append(Arm(f"{100 * share:g} %", run, grid(rate), group=optimizer, x=100 * share))
    return found


QUESTION = Question(
    **prose("warmup"),
    measures=(LOSS, BEFORE, COHERENT),
    margin=0.01,
    reference="3 %",
    arms=arms,
    minutes=18,
    scales={"smoke": SMOKE.but(n_rates=1, n_stories=1), "laptop": LAPTOP.but(n_seeds=3), "gpu": GPU},
    pictures=(Picture("lines", "warmup, % of the run", "val_loss"),),
)
