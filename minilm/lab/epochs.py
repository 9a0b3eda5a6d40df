"""How often text can be repeated, and whether weight decay helps then."""

from __future__ import annotations

from minilm.lab.measures import BEFORE, COHERENT, LOSS
from minilm.lab.question import GPU, LAPTOP, SMOKE, Arm, Measure, Picture, Question, Scale, grid, prose
from minilm.lab.trial import Trained

EPOCHS = Measure("epochs", "passes over the text", "", digits=1)
DECAYS = (0.1, 1.0)


def arms(scale: Scale) -> list[Arm]:
    return [
        Arm(
            "most" if megabytes == max(scale.extra["megabytes"]) else f"{megabytes:g} MB",
            {"weight_decay": decay},
            grid(1e-2),
            group=f"weight decay {decay:g}",
            data={"megabytes": megabytes, "vocabulary": max(scale.extra["megabytes"])},
            x=1e6 * megabytes,
        )
        for decay in scale.extra["decays"]
        for megabytes in scale.extra["megabytes"]
    ]


def passes(trained: Trained) -> dict[str, float]:
    config = trained.cell.config
    tokens = config.max_steps * config.batch_size * config.model.block_size
    return {"epochs": tokens / trained.data.splits["train"].n_tokens}


QUESTION = Question(
    **prose("epochs"),
    measures=(LOSS, EPOCHS, BEFORE, COHERENT),
    margin=0.01,
    reference="most",
    arms=arms,
    minutes=16,
    scales={
        "smoke": SMOKE.but(n_rates=1, n_stories=1, extra={"decays": (0.1,), "megabytes": (0.02, 0.05)}),
        "laptop": LAPTOP.but(n_seeds=3, extra={"decays": DECAYS, "megabytes": (0.05, 0.25, 1.0, 20.0)}),
        "gpu": GPU.but(n_rates=3, extra={"decays": DECAYS, "megabytes": (1.0, 5.0, 20.0, 400.0)}),
    },
    pictures=(Picture("lines", "different text, bytes", "val_loss", log=True),),
    measure=passes,
)
