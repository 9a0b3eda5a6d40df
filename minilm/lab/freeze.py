"""What to train when finetuning: everything, parts, or adapters; by how much text there is, and what is forgotten."""

from __future__ import annotations

from typing import Any

from minilm.lab.finetune import FORGOTTEN, finetuning, forgetting, pretrained, unseen
from minilm.lab.measures import BEFORE, COHERENT, LOSS, SPEED, TRAINED
from minilm.lab.question import Arm, Picture, Question, Scale, grid, prose

# Fields of the run, middle of its rates.
PARTS: dict[str, tuple[dict[str, Any], float]] = {"everything": ({}, 1e-3)}
PARTS |= {name: ({"train_only": (name,)}, 1e-2) for name in ("biases", "norms")}
PARTS |= {"embeddings": ({"train_only": ("embeddings",)}, 5e-3)}
PARTS |= {"last block": ({"train_only": ("top:1", "ln_f")}, 2e-3), "feed-forwards": ({"train_only": ("mlp",)}, 2e-3)}
PARTS |= {"last two blocks": ({"train_only": ("top:2", "ln_f")}, 2e-3)}
PARTS |= {f"lora {rank}": ({"lora_rank": rank, "lora_alpha": 2.0 * rank}, 5e-3) for rank in (2, 16, 64)}


def arms(scale: Scale) -> list[Arm]:
    tune, measure = scale.extra["finetune"], {"documents": scale.extra["documents"]}
    return [
        Arm(name, {**tune, **run}, grid(rate), f"{megabytes:g} MB", unseen(megabytes), measure, x=1e6 * megabytes)
        for megabytes in scale.extra["megabytes"]
        for name, (run, rate) in PARTS.items()
    ]


QUESTION = Question(
    **prose("freeze"),
    measures=(LOSS, FORGOTTEN, BEFORE, COHERENT, TRAINED, SPEED),
    margin=0.01,
    reference="everything",
    arms=arms,
    scales=finetuning({"megabytes": (0.02,)}, {"megabytes": (0.02, 0.5)}, {"megabytes": (0.02, 0.5, 10.0)}, n_seeds=3),
    minutes=16,
    pictures=(
        Picture("lines", "text of the new style, bytes", "val_loss", log=True),
        Picture("points", "forgotten", "val_loss"),
    ),
    base=pretrained,
    timed=True,
    measure=forgetting,
)
