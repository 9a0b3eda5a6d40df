"""How text becomes rows: chunks, a story a row, best fit, sliding windows; what each costs and what it teaches."""

from __future__ import annotations

from minilm.lab.measures import BEFORE, COHERENT, LOSS, SPEED, STORY_LOSS
from minilm.lab.question import GPU, LAPTOP, SMOKE, Arm, Claim, Measure, Question, Scale, grid
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


def _scale(scale: Scale, documents: int) -> Scale:
    return scale.but(extra={"documents": documents})


QUESTION = Question(
    name="chunking",
    asks="Should a row be a chunk of the stream, one story, stories packed whole, or a sliding window?",
    varied="How tokens become rows.",
    fixed="Model, rows and places a step (so compute), steps, schedule, text; as many rates tried for each.",
    would_change="A packing that predicts stories better than chunks, which are the default, for the same compute.",
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
    arms=arms,
    scales={
        "smoke": _scale(SMOKE.but({"block_size": 48}, n_rates=1), 3),
        "laptop": _scale(LAPTOP, 200),
        "gpu": _scale(GPU, 1000),
    },
    published=(
        Claim(
            "Packing whole documents by best fit costs no more than chunks and writes with fewer made-up names.",
            "Ding 2024, arXiv:2404.10830",
            {"best_fit": "better"},
        ),
        Claim(
            "A document a row wastes most of each row on padding where documents are short.",
            "Krell 2021, arXiv:2107.02027",
            {"documents": "worse"},
        ),
    ),
    threats=(
        "Rows differ, so the order of batches cannot be the same; text and seed are.",
        "Equal compute, not equal targets: what pads learns less from a step.",
        "A tale is one line: a line a row is a story a row here, and is no arm of its own.",
    ),
    timed=True,
    measure=rows_and_stories,
)
