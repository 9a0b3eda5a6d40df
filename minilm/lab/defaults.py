"""Which defaults for finetuning: a search over what the other questions leave open, by how much text there is."""

from __future__ import annotations

from typing import Any

from minilm.lab.finetune import finetuning, gpt2, pretrained, unseen
from minilm.lab.measures import BEFORE, LOSS, TRAINED
from minilm.lab.question import Arm, Question, Scale, prose

WIDE: dict[str, tuple[Any, ...]] = {"lr": ("log", 1e-4, 3e-2), "weight_decay": ("log", 1e-3, 1.0)}
WIDE |= {"warmup_share": ("of", 0.0, 0.06, 0.2), "schedule": ("of", "linear", "cosine", "constant")}
WIDE |= {"beta2": ("of", 0.95, 0.99, 0.999), "layer_lr_decay": ("of", 1.0, 0.8, 0.6)}


def arms(scale: Scale) -> list[Arm]:
    start = {**scale.extra["finetune"], "warmup_steps": 0, "warmup_share": 0.06, "layer_lr_decay": 1.0}
    lora = {"lora_rank": 16, "lora_alpha": 32.0}
    lower = 20 if gpt2(scale)[0] else 1  # the presets' rates for GPT-2
    _, low, high = WIDE["lr"]
    rate: dict[str, tuple[Any, ...]] = {"lr": ("log", low / lower, high / lower)}
    wide = {**WIDE, **rate}
    ranks = {"lora_rank": ("of", 4, 16, 64), "weight_decay": WIDE["weight_decay"]}
    of_lora = {**rate, **ranks, "warmup_share": WIDE["warmup_share"]}
    ways: list[tuple[str, str, dict[str, Any], dict[str, tuple[Any, ...]]]] = [
        ("rate searched", "everything", {**start, "lr": 1e-3 / lower}, rate),
        ("all searched", "everything", {**start, "lr": 1e-3 / lower}, wide),
        ("rate searched", "lora", {**start, **lora, "lr": 5e-3 / lower}, rate),
        ("all searched", "lora", {**start, **lora, "lr": 5e-3 / lower}, of_lora),
    ]
    return [
        Arm(name, run, (), f"{method}, {megabytes:g} MB", unseen(megabytes), search=space, x=1e6 * megabytes)
        for megabytes in scale.extra["megabytes"]
        for name, method, run, space in ways
    ]


def told(analysis: Any) -> list[str]:
    """What each search chose."""
    found = []
    for r in analysis.arms:
        if isinstance(r.chosen, dict):
            settings = ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in r.chosen.items())
            found.append(
                f"{r.arm.label}: {settings} (of {len(r.swept)} trials, loss {min(y for _, y in r.swept):.4f})."
            )
    return found


QUESTION = Question(
    **prose("defaults"),
    measures=(LOSS, BEFORE, TRAINED),
    margin=0.01,
    reference="rate searched",
    arms=arms,
    scales=finetuning(
        {"megabytes": (0.02,), "trials": 2},
        {"megabytes": (0.03, 0.3), "trials": 12},
        {"megabytes": (0.1, 1.0, 10.0), "trials": 30},
    ),
    base=pretrained,
    tells=told,
)
