"""A small model that is finetuned against a larger one as it stands."""

from __future__ import annotations

from minilm.lab.finetune import LEFT_ALONE, finetuning, large, pretrained, unseen
from minilm.lab.measures import BEFORE, COHERENT, LOSS, PARAMETERS, TERAFLOPS
from minilm.lab.question import Arm, Question, Scale, grid, prose


def arms(scale: Scale) -> list[Arm]:
    found, tune = [], scale.extra["finetune"]
    shape, large_base = large(scale)
    for megabytes in scale.extra["megabytes"]:
        group, data = f"{megabytes:g} MB", unseen(megabytes)
        found += [
            Arm("small, finetuned", tune, grid(1e-3), group, data),
            Arm("small, as it is", {**tune, **LEFT_ALONE}, (), group, data),
            Arm("large, finetuned", {**tune, **shape}, grid(7e-4), group, data, base=large_base),
            Arm("large, as it is", {**tune, **shape, **LEFT_ALONE}, (), group, data, base=large_base),
        ]
    return found


QUESTION = Question(
    **prose("small_vs_large"),
    measures=(LOSS, BEFORE, COHERENT, PARAMETERS, TERAFLOPS),
    margin=0.02,
    reference="small, finetuned",
    arms=arms,
    scales=finetuning({"megabytes": (0.02,)}, {"megabytes": (0.02, 0.3)}, {"megabytes": (0.02, 0.3, 5.0)}),
    changes_of="large, as it is",
    base=lambda scale: pretrained(scale, "-long"),  # which has read rows of 512, as the large one has
)
