"""Models whose training loss nears zero: do they still write well, or only by heart?"""

from __future__ import annotations

import numpy as np
import torch

from minilm.decoding.engine import generate_ids
from minilm.lab.measures import BEFORE, COHERENT, COPIED, LOSS, TRAIN_LOSS
from minilm.lab.question import GPU, LAPTOP, SMOKE, Arm, Measure, Picture, Question, Scale, grid, prose
from minilm.lab.trial import Trained, loss_of_rows
from minilm.text.batches import eval_batches

PROMPT, CONTINUED = 12, 24  # tokens of a training row that are given, and that are asked for


def arms(scale: Scale) -> list[Arm]:
    per_pass = scale.extra["tokens"] / scale.run["batch_size"] / scale.run["block_size"]
    found = []
    for passes in scale.extra["passes"]:
        steps = max(round(passes * per_pass), 2)
        every = max(steps // 4, 1)
        run = {"max_steps": steps, "eval_every_steps": every, "save_every_steps": every}
        run |= {"warmup_steps": 0, "warmup_share": 0.05, "weight_decay": 0.0}
        measure = {"documents": scale.extra["documents"], "train_loss": "rows"}
        found.append(Arm(f"{passes} passes", run, grid(1e-2), measure=measure, x=passes))
    return found


def by_heart(trained: Trained) -> dict[str, float]:
    """Loss of the training rows, and the share of their tokens that the likeliest continuation has at its place."""
    T, n_rows = trained.model.config.block_size, trained.cell.measure["documents"]
    rows = eval_batches(trained.data.splits["train"], block_size=T, batch_size=16, max_tokens=n_rows * T)
    whole = torch.from_numpy(np.concatenate([batch.ids for batch in rows]))[:, : PROMPT + CONTINUED].long()
    given = whole[:, :PROMPT].to(trained.model.device)
    said = generate_ids(trained.model, given, whole.shape[1] - PROMPT, temperature=0.0).cpu()
    failures = trained.metrics.get("failures", {})
    return {
        "train_loss": loss_of_rows(trained.model, trained.cell.config, trained.data.splits["train"]),
        "by_heart": 100 * float((said[:, PROMPT:] == whole[:, PROMPT:]).float().mean()),
        "copied": 100 * failures.get("copied", 0) / max(trained.cell.measure["n_stories"], 1),
    }


def _scale(scale: Scale, megabytes: float, passes: tuple[int, ...], documents: int, tokens: float = 0) -> Scale:
    tokens = tokens or 1e6 * megabytes / 4.5  # bytes a word, roughly
    extra = {"passes": passes, "tokens": tokens, "documents": documents}
    return scale.but({}, {"megabytes": megabytes}, extra=extra)


QUESTION = Question(
    **prose("overfit"),
    measures=(
        COHERENT,
        BEFORE,
        LOSS,
        TRAIN_LOSS,
        Measure("by_heart", "tokens of training rows known by heart", "%", digits=1),
        COPIED,
    ),
    margin=2.0,
    reference="8 passes",
    chosen_by="train_loss",
    arms=arms,
    scales={
        "smoke": _scale(SMOKE.but(n_rates=1, n_stories=1), 0.02, (1, 8), 2, 128),
        "laptop": _scale(LAPTOP, 0.2, (2, 8, 16, 32), 100),
        "gpu": _scale(GPU, 2.0, (2, 8, 16, 32, 64), 500),
    },
    pictures=(
        Picture("lines", "passes over the text", "before", log=True),
        Picture("lines", "passes over the text", "by_heart", log=True),
    ),
    measure=by_heart,
)
