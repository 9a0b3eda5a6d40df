"""What to train when finetuning: everything, parts, or adapters; by how much text there is, and what is forgotten."""

from __future__ import annotations

from typing import Any

from minilm.lab.finetune import FORGOTTEN, base, finetuning, forgetting, unseen
from minilm.lab.measures import BEFORE, COHERENT, LOSS, SPEED, TRAINED
from minilm.lab.question import Arm, Claim, Picture, Question, Scale, grid

PARTS: dict[str, tuple[dict[str, Any], float]] = {  # fields of the run, middle of its rates
    "everything": ({}, 1e-3),
    "biases": ({"train_only": ("biases",)}, 1e-2),
    "norms": ({"train_only": ("norms",)}, 1e-2),
    "embeddings": ({"train_only": ("embeddings",)}, 5e-3),
    "last block": ({"train_only": ("top:1", "ln_f")}, 2e-3),
    "feed-forwards": ({"train_only": ("mlp",)}, 2e-3),
    "lora 2": ({"lora_rank": 2, "lora_alpha": 4.0}, 5e-3),
    "lora 16": ({"lora_rank": 16, "lora_alpha": 32.0}, 5e-3),
}


def arms(scale: Scale) -> list[Arm]:
    return [
        Arm(
            name,
            {**scale.extra["finetune"], **run},
            grid(rate),
            group=f"{megabytes:g} MB",
            data=unseen(megabytes),
            measure={"documents": scale.extra["documents"]},
            x=1e6 * megabytes,
        )
        for megabytes in scale.extra["megabytes"]
        for name, (run, rate) in PARTS.items()
    ]


QUESTION = Question(
    name="freeze",
    asks="Which weights are worth training when a pretrained model learns a new style from much or little text?",
    varied="What is trained; how much text there is.",
    fixed="The pretrained model (tales in three other styles), steps, batches, validation; as many rates for each.",
    would_change="A part that loses nothing against everything and forgets less: it would become the preset finetune.",
    measures=(LOSS, FORGOTTEN, BEFORE, COHERENT, TRAINED, SPEED),
    margin=0.01,
    reference="everything",
    arms=arms,
    scales=finetuning({"megabytes": (0.02,)}, {"megabytes": (0.02, 0.5)}, {"megabytes": (0.02, 0.5, 10.0)}),
    minutes=40,
    published=(
        Claim(
            "Biases alone come near full finetuning where there is little text, and stay behind where there is much.",
            "Ben Zaken 2022 (BitFit), arXiv:2106.10199",
            {"biases / 0.02 MB": "same", "biases / 0.5 MB": "worse"},
        ),
        Claim(
            "LoRA on all layers learns as much as full finetuning while its capacity holds the data.",
            "Schulman 2025, LoRA without regret; Biderman 2024, arXiv:2405.09673 disagrees, and finds less forgetting",
            {"lora 16 / 0.02 MB": "same", "lora 16 / 0.5 MB": "same"},
        ),
    ),
    threats=(
        "The new style is of the same world: less is to be learnt than in another domain.",
        "A fixed number of steps: little text is repeated many times, and every arm may overfit it.",
    ),
    pictures=(
        Picture("lines", "text of the new style, bytes", "val_loss", log=True),
        Picture("points", "forgotten", "val_loss"),
    ),
    base=base,
    timed=True,
    measure=forgetting,
)
