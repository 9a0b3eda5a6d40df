"""How much text a writer needs: quality against data, each amount read four times."""

from __future__ import annotations

from minilm.lab.answers import power
from minilm.lab.measures import BEFORE, COHERENT, LOSS
from minilm.lab.question import GPU, LAPTOP, SMOKE, Arm, Picture, Question, Scale, grid, prose

PASSES = 4  # over the text; more gains little (Muennighoff 2023)
BYTES_PER_TOKEN = 4.5  # of tales in words, roughly: it decides how many steps there are, nothing else


def arms(scale: Scale) -> list[Arm]:
    per_step = scale.run["batch_size"] * scale.run["block_size"]
    found, most = [], max(scale.extra["megabytes"])
    for megabytes in scale.extra["megabytes"]:
        steps = max(
            round(scale.extra.get("passes", PASSES) * 1e6 * megabytes / BYTES_PER_TOKEN / per_step),
            scale.extra["fewest_steps"],
        )
        every = max(steps // 8, 1)
        run = {"max_steps": steps, "eval_every_steps": every, "save_every_steps": every, "warmup_steps": 0}
        run |= {"warmup_share": 0.05}
        name = "most" if megabytes == most else f"{megabytes:g} MB"
        data = {"megabytes": megabytes, "vocabulary": scale.extra.get("vocabulary", most)}
        found.append(Arm(name, run, grid(1e-2), data=data, x=1e6 * megabytes))
    return found


QUESTION = Question(
    **prose("data_size"),
    measures=(BEFORE, COHERENT, LOSS),
    margin=2.0,
    reference="most",
    arms=arms,
    minutes=43,
    scales={
        "smoke": SMOKE.but(n_rates=1, n_stories=1, extra={"megabytes": (0.02, 0.05), "fewest_steps": 2, "passes": 0}),
        "laptop": LAPTOP.but(extra={"megabytes": (0.2, 0.6, 1.1, 2.0, 6.0), "vocabulary": 16.0, "fewest_steps": 50}),
        "gpu": GPU.but(n_rates=3, extra={"megabytes": (2.0, 6.0, 20.0, 60.0, 200.0), "fewest_steps": 100}),
    },
    judges={"Kaplan 2020": power},
    pictures=(
        Picture("lines", "text, bytes", "val_loss", log=True),
        Picture("lines", "text, bytes", "before", log=True),
    ),
)
