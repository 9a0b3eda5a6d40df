"""How text becomes rows: chunks, a story a row, best fit, sliding windows; what each costs and what it teaches."""

from __future__ import annotations

from minilm.lab.measures import BEFORE, COHERENT, LOSS, SPEED, STORY_LOSS
from minilm.lab.question import GPU, LAPTOP, SMOKE, Arm, Measure, Question, Scale, grid, prose
from minilm.lab.stories import story_loss, validation_stories
from minilm.lab.trial import Trained
from minilm.text.packing import PACKINGS, PackingOptions


def arms(scale: Scale) -> list[Arm]:
    half = scale.run["block_size"] // 2
    packings = {"chunks": {}, "documents": {}, "best_fit": {}, "sliding": {"stride": half}}
    n = {"documents": scale.extra["documents"]}
    return [Arm(name, {"packing": name, **more}, grid(1e-2), measure=n) for name, more in packings.items()]


def rows_and_stories(trained: Trained) -> dict[str, float]:
    """What rows are filled with, counted over an epoch, and how well stories are predicted."""
    config = trained.cell.config
    T = config.model.block_size
    rows = PACKINGS[config.packing](trained.data.splits["train"], T, PackingOptions(config.stride))
    texts = validation_stories(trained.data, trained.tokenizer, trained.cell.measure["documents"])
    return {
        "story_loss": story_loss(trained.model, trained.tokenizer, texts),
        "scored": 100 * rows.n_targets / (rows.n_rows * T),
        "truncated": 100 * rows.n_truncated / (rows.n_targets + rows.n_truncated),
    }


QUESTION = Question(
    **prose("chunking"),
    measures=(
        STORY_LOSS,
        LOSS,
        BEFORE,
        COHERENT,
        Measure("scored", "places of rows that are targets", "%", "higher", 1),
        Measure("truncated", "targets of the text that no row has", "%", digits=2),
        SPEED,
    ),
    margin=0.01,
    reference="chunks",
    chosen_by="story_loss",
    arms=arms,
    scales={
        "smoke": SMOKE.but({"block_size": 48}, n_rates=1, extra={"documents": 3}),
        "laptop": LAPTOP.but(extra={"documents": 200}),
        "gpu": GPU.but(extra={"documents": 1000}),
    },
    timed=True,
    measure=rows_and_stories,
)
