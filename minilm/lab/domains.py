"""What finetunes how fast: near and far, known and special text, little and much; against training it from scratch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from minilm.lab.finetune import FORGOTTEN, UNSEEN, base, finetuning, forgetting
from minilm.lab.measures import BITS, LOSS, STEPS_TO_REFERENCE
from minilm.lab.question import Arm, Question, Scale, grid, prose
from minilm.lab.trial import Trained

DOMAINS: dict[str, dict[str, Any]] = {
    "known style": {"style": "fable"},
    "new style": {"style": UNSEEN},
    "harder tales": {"style": "plain", "level": 3},
    "manual": {"local": "manual"},
    "code": {"local": "code"},
}


def arms(scale: Scale) -> list[Arm]:
    found, run = [], scale.extra["finetune"]
    scratch = replace(base(scale), weights=False)
    for domain, options in DOMAINS.items():
        for megabytes in scale.extra["megabytes"]:
            data = {**options, "megabytes": megabytes, "vocabulary": "base"}
            group, measure = f"{domain}, {megabytes:g} MB", {"documents": scale.extra["documents"]}
            found.append(Arm("finetuned", run, grid(1e-3), group, data, measure, x=1e6 * megabytes))
            found.append(Arm("from scratch", run, grid(1e-2), group, data, {}, scratch, x=1e6 * megabytes))
    return found


def forgotten(trained: Trained) -> dict[str, float]:
    return forgetting(trained) if trained.cell.arm.startswith("finetuned") else {}


QUESTION = Question(
    **prose("domains"),
    measures=(LOSS, STEPS_TO_REFERENCE, BITS, FORGOTTEN),
    margin=0.02,
    reference="from scratch",
    arms=arms,
    scales=finetuning({"megabytes": (0.02,)}, {"megabytes": (0.03, 0.3)}, {"megabytes": (0.03, 0.4)}, n_stories=0),
    minutes=30,
    base=base,
    measure=forgotten,
)
