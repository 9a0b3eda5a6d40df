"""How long the learning rate should rise."""

from __future__ import annotations

from minilm.lab.measures import BEFORE, COHERENT, LOSS
from minilm.lab.question import GPU, LAPTOP, SMOKE, Arm, Claim, Picture, Question, Scale, grid

SHARES = (0.0, 0.01, 0.03, 0.1, 0.3)


def arms(scale: Scale) -> list[Arm]:
    found = []
    for optimizer, rate in (("adamw", 4e-3), ("muon", 1e-2)):
        for share in SHARES:
            run = {"optimizer": optimizer, "warmup_steps": 0, "warmup_share": share}
            found.append(Arm(f"{100 * share:g} %", run, grid(rate), group=optimizer, x=100 * share))
    return found


QUESTION = Question(
    name="warmup",
    asks="How much of a run should the learning rate take to rise to its peak?",
    varied="The share of warmup, for two optimizers, each with its own peak rate.",
    fixed="Model, data, order of batches, steps, schedule after warmup; as many rates tried for each.",
    would_change="A share that beats 3 %, near which the presets are.",
    measures=(LOSS, BEFORE, COHERENT),
    margin=0.01,
    reference="3 %",
    arms=arms,
    minutes=30,
    scales={
        "smoke": SMOKE.but(n_rates=1, n_stories=1),
        "laptop": LAPTOP,
        "gpu": GPU,
    },
    published=(
        Claim(
            "Warmup lets Adam bear a higher peak rate; without it a lower rate must do.",
            "Kalra & Barkeshli 2024, arXiv:2406.09405",
            {"0 % / adamw": "worse"},
        ),
    ),
    threats=("The model has norms on queries and keys, which bear high rates without warmup better than GPT-2.",),
    pictures=(Picture("lines", "warmup, % of the run", "val_loss"),),
)
