"""A small model that is finetuned against a larger one as it stands."""

from __future__ import annotations

from minilm.lab.finetune import LEFT_ALONE, base, finetuning, large, unseen
from minilm.lab.measures import BEFORE, COHERENT, LOSS, PARAMETERS, TERAFLOPS
from minilm.lab.question import Arm, Claim, Question, Scale, grid


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
    name="small_vs_large",
    asks="Does a small model that was finetuned beat a larger one that was not?",
    varied="Size of the pretrained model (about five times the compute), whether it is finetuned, how much text "
    "there is.",
    fixed="What the bases have read, steps and batches of finetuning, validation; as many rates tried for each "
    "finetuned.",
    would_change="A larger model that needs no finetuning: the advice to finetune the small one would go.",
    measures=(LOSS, BEFORE, COHERENT, PARAMETERS, TERAFLOPS),
    margin=0.02,
    reference="small, finetuned",
    arms=arms,
    scales=finetuning({"megabytes": (0.02,)}, {"megabytes": (0.02, 0.3)}, {"megabytes": (0.02, 0.3, 5.0)}),
    minutes=45,
    published=(
        Claim(
            "Finetuned on WikiText-103, GPT-2 small reaches a perplexity of 14.84 by token with sliding windows, below "
            "the 17.48 per word of the largest untouched model; the protocols are not the same.",
            "neulab's knn-transformers; Radford 2019, table 3",
            {"large, as it is": "worse"},
        ),
    ),
    threats=(
        "The new style is a matter of form: what a larger model knows more of is little tested.",
        "A model as it is was never told the style's code, so its coherence in that style is nil by construction; its "
        "loss is not.",
    ),
    base=base,
)
