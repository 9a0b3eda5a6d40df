"""How long a context to train with, and to read with: every training context against every evaluation context."""

from __future__ import annotations

from minilm.lab.measures import BEFORE, COHERENT, SPEED
from minilm.lab.question import GPU, LAPTOP, SMOKE, Arm, Measure, Picture, Question, Scale, grid, prose
from minilm.lab.stories import story_loss, validation_stories
from minilm.lab.trial import Trained
from minilm.model.weights import load_pretrained

DOCUMENTS = 200  # validation stories that are scored, each from its beginning


def arms(scale: Scale) -> list[Arm]:
    tokens = scale.run["batch_size"] * scale.run["block_size"]
    contexts = scale.extra["contexts"]
    return [
        Arm(
            str(T),
            {"block_size": T, "batch_size": tokens // T, "micro_batch_size": 0},
            grid(1e-2),
            measure={"contexts": contexts, "documents": scale.extra["documents"]},
            x=T,
        )
        for T in contexts
    ]


def loss_by_context(trained: Trained) -> dict[str, float]:
    """Nats per token of validation stories read through windows of each context, half of it new (stride C / 2), by the
    same weights: positions are rotations, so there is nothing to learn for those beyond the training context."""
    contexts, n = trained.cell.measure["contexts"], trained.cell.measure["documents"]
    texts = validation_stories(trained.data, trained.tokenizer, n)
    model, _ = load_pretrained(trained.checkpoint, block_size=max(contexts))
    model.to(trained.model.device).eval()
    found = {f"loss_at_{C}": story_loss(model, trained.tokenizer, texts, context=C, stride=C // 2) for C in contexts}
    return {**found, "loss_at_longest": found[f"loss_at_{max(contexts)}"]}


def _scale(scale: Scale, contexts: tuple[int, ...], documents: int, **run: int) -> Scale:
    return scale.but({"position": "rope", **run}, {"level": 3}, extra={"contexts": contexts, "documents": documents})


QUESTION = Question(
    **prose("context"),
    measures=(
        Measure("loss_at_longest", "loss at the longest context", "nats per token", digits=4),
        *(Measure(f"loss_at_{C}", f"loss at context {C}", "nats per token", digits=4) for C in (32, 64, 128, 256)),
        BEFORE,
        COHERENT,
        SPEED,
    ),
    margin=0.01,
    reference="256",
    arms=arms,
    scales={
        "smoke": _scale(SMOKE, (32, 256), 3, batch_size=8, max_steps=2),
        "laptop": _scale(LAPTOP, (32, 64, 128, 256), DOCUMENTS),
        "gpu": _scale(GPU, (32, 64, 128, 256), DOCUMENTS, batch_size=128),
    },
    pictures=(Picture("lines", "training context, tokens", "loss_at_longest", log=True),),
    timed=True,
    measure=loss_by_context,
)
