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
    return [Arm(name, run, grid(1e-2), measure={"documents": scale.extra["documents"]}) for name, run in ways.items()]


def gap_and_strides(trained: Trained) -> dict[str, float]:
    """How much better training stories are predicted than new ones; and new ones read by half contexts, of which half
    or all but one token was read before."""
    n, half = trained.cell.measure["documents"], trained.model.config.block_size // 2
    model, tokenizer = trained.model, trained.tokenizer
    new = validation_stories(trained.data, tokenizer, n)
    there = story_loss(model, tokenizer, new)
    few = new[: max(n // 5, 1)]
    return {
        "story_loss": there,
        "gap": there - story_loss(model, tokenizer, some_stories(trained.data, tokenizer, n, "train")),
        "stride_1": story_loss(model, tokenizer, few, context=half, stride=1),
        "stride_all": story_loss(model, tokenizer, few, context=half, stride=half),
    }


def _scale(scale: Scale, megabytes: float, documents: int) -> Scale:
    return scale.but({}, {"megabytes": megabytes}, extra={"documents": documents})


QUESTION = Question(
    **prose("leak"),
    measures=(
        STORY_LOSS,
        Measure("gap", "loss of new stories, more than of training stories", "nats per token", digits=4),
        LOSS,
        Measure("stride_1", "loss read at stride 1, context T/2", "nats per token", digits=4),
        Measure("stride_all", "loss read at stride T/2, context T/2", "nats per token", digits=4),
        BEFORE,
    ),
    margin=0.01,
    reference="stride T",
    minutes=20,
    arms=arms,
    scales={
        "smoke": _scale(SMOKE.but(n_rates=1, n_stories=1), 0.02, 2),
        "laptop": _scale(LAPTOP, 0.5, 100),
        "gpu": _scale(GPU, 10.0, 500),
    },
    measure=gap_and_strides,
)
