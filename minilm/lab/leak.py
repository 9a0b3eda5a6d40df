"""Whether overlapping windows leak: text seen again at other places of a row, in training and in evaluation."""

from __future__ import annotations

from typing import Any

from minilm.lab.measures import BEFORE, LOSS, STORY_LOSS
from minilm.lab.question import GPU, LAPTOP, SMOKE, Arm, Measure, Question, Scale, grid, prose
from minilm.lab.stories import some_stories, story_loss, validation_stories
from minilm.lab.trial import Trained


def arms(scale: Scale) -> list[Arm]:
    T = scale.run["block_size"]
    ways: dict[str, dict[str, Any]] = {"stride T": {"packing": "sliding", "stride": T}}
    for share in (2, 4, 16):
        ways[f"stride T/{share}"] = {"packing": "sliding", "stride": T // share}
    ways |= {"stride 1": {"packing": "sliding", "stride": 1}, "begin anywhere": {"order": "random"}}
    measure = {"documents": scale.extra["documents"], "context": T // 4}  # stories of level 1 have 43 to 65 tokens
    return [Arm(name, run, grid(1e-2), measure=measure) for name, run in ways.items()]


def gap_and_strides(trained: Trained) -> dict[str, float]:
    """How much better training stories are predicted than new ones; and new ones read by contexts shorter than they
    are, of which none or all but one token was read before."""
    n, C = trained.cell.measure["documents"], trained.cell.measure["context"]
    model, tokenizer = trained.model, trained.tokenizer
    new = validation_stories(trained.data, tokenizer, n)
    there = story_loss(model, tokenizer, new)
    return {
        "story_loss": there,
        "gap": there - story_loss(model, tokenizer, some_stories(trained.data, tokenizer, n, "train")),
        "stride_1": story_loss(model, tokenizer, new, context=C, stride=1),
        "stride_all": story_loss(model, tokenizer, new, context=C, stride=C),
    }


QUESTION = Question(
    **prose("leak"),
    measures=(
        STORY_LOSS,
        Measure("gap", "loss of new stories, more than of training stories", "nats per token", digits=4),
        LOSS,
        Measure("stride_1", "loss read at stride 1, context T/4", "nats per token", digits=4),
        Measure("stride_all", "loss read at stride T/4, context T/4", "nats per token", digits=4),
        BEFORE,
    ),
    margin=0.01,
    reference="stride T",
    arms=arms,
    minutes=17,
    scales={
        "smoke": SMOKE.but({}, {"megabytes": 0.02}, n_rates=1, n_stories=1, extra={"documents": 2}),
        "laptop": LAPTOP.but({}, {"megabytes": 0.5}, extra={"documents": 100}),
        "gpu": GPU.but({}, {"megabytes": 10.0}, extra={"documents": 500}),
    },
    measure=gap_and_strides,
)
