"""What to train when finetuning: everything, parts, or adapters; by how much text there is, and what is forgotten."""

from __future__ import annotations

from typing import Any

from minilm.lab.finetune import FORGOTTEN, finetuning, forgetting, pretrained, unseen
from minilm.lab.measures import BEFORE, COHERENT, LOSS, SPEED, TRAINED
from minilm.lab.question import Arm, Picture, Question, Scale, grid, prose

PARTS: dict[str, tuple[dict[str, Any], float]] = {  # fields of the run, middle of its rates
    "everything": ({}, 1e-3),
    "biases": ({"train_only": ("biases",)}, 1e-2),
    "norms": ({"train_only": ("norms",)}, 1e-2),
    "embeddings": ({"train_only": ("embeddings",)}, 5e-3),
    "last block": ({"train_only": ("top:1", "ln_f")}, 2e-3),
    "last two blocks": ({"train_only": ("top:2", "ln_f")}, 2e-3),
    "feed-forwards": ({"train_only": ("mlp",)}, 2e-3),
    "lora 2": ({"lora_rank": 2, "lora_alpha": 4.0}, 5e-3),
    "lora 16": ({"lora_rank": 16, "lora_alpha": 32.0}, 5e-3),
    "lora 64": ({"lora_rank": 64, "lora_alpha": 128.0}, 5e-3),
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
    **prose("freeze"),
    measures=(LOSS, FORGOTTEN, BEFORE, COHERENT, TRAINED, SPEED),
    margin=0.01,
    reference="everything",
    arms=arms,
    scales=finetuning({"megabytes": (0.02,)}, {"megabytes": (0.02, 0.5)}, {"megabytes": (0.02, 0.5, 10.0)}),
    minutes=40,
    pictures=(
        Picture("lines", "text of the new style, bytes", "val_loss", log=True),
        Picture("points", "forgotten", "val_loss"),
    ),
    base=pretrained,
    timed=True,
    measure=forgetting,
)
