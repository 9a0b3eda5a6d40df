"""What to do with a given compute: finetune a small model long, a large one briefly, or show a large one examples."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from minilm.evaluation.scoring import Request, target_nats
from minilm.lab.cells import flops_per_token
from minilm.lab.finetune import LEFT_ALONE, finetuning, gpt2, large, pretrained, unseen
from minilm.lab.measures import LOSS, PARAMETERS, TERAFLOPS
from minilm.lab.question import Arm, Measure, Question, Scale, config_of, grid, prose
from minilm.lab.stories import validation_stories
from minilm.lab.trial import Trained

TARGET = Measure("target_loss", "loss of stories of the new style", "nats per token", digits=4)


def arms(scale: Scale) -> list[Arm]:
    found, tune = [], scale.extra["finetune"]
    shape, large_base = large(scale)
    rows = 50_257 if gpt2(scale)[0] else 0
    cost = [flops_per_token(replace(config_of(scale, run, 0).model, vocab_size=rows)) for run in ({}, shape)]
    for steps in scale.extra["steps"]:
        group, data = f"{steps} small steps", unseen(scale.extra["megabytes"])
        fewer = max(round(steps * cost[0] / cost[1]), 2)
        shown: dict[str, Any] = {"documents": scale.extra["documents"], "shown": True, "group": group}
        alone = {**shown, "shown": False}
        found += [
            Arm("small, finetuned", _run(tune, steps), grid(1e-3), group, data, alone),
            Arm("large, finetuned", {**_run(tune, fewer), **shape}, grid(1e-3), group, data, alone, large_base),
            Arm("large, shown examples", {**tune, **shape, **LEFT_ALONE}, (), group, data, shown, large_base),
            Arm("large, as it is", {**tune, **shape, **LEFT_ALONE}, (), group, data, alone, large_base),
        ]
    return found


def _run(tune: dict[str, Any], steps: int) -> dict[str, Any]:
    every = max(steps // 4, 1)
    warmup = {"warmup_steps": 0, "warmup_share": 0.1}
    return {**tune, **warmup, "max_steps": steps, "eval_every_steps": every, "save_every_steps": every}


def target_loss(trained: Trained) -> dict[str, float]:
    """Nats per token of validation stories, read alone, or behind as many training stories as fit before each."""
    n, T = trained.cell.measure["documents"], trained.model.config.block_size
    tokenizer, train = trained.tokenizer, trained.data.splits["train"]
    told = [[tokenizer.eot, *ids] for ids in tokenizer.encode_batch(validation_stories(trained.data, tokenizer, n))]
    requests = []
    for ids in told:
        before: list[int] = []
        for i in range(train.n_documents if trained.cell.measure["shown"] else 0):
            example = [tokenizer.eot, *train.document(i).tolist()]
            if len(before) + len(example) + len(ids) > T:
                break
            before += example
        ids = ids[: T + 1]
        requests.append(Request(np.array(before + ids, np.int64), len(before) + 1))
    nats = [float(part.sum()) for part in target_nats(trained.model, requests)]
    scored = sum(len(r.ids) - r.scored for r in requests)
    shown = sum(int((r.ids[: r.scored - 1] == tokenizer.eot).sum()) for r in requests) / len(requests)
    return {"target_loss": sum(nats) / scored, "examples": shown}


SCALES = finetuning(
    {"megabytes": 0.02, "steps": (2,)},
    {"megabytes": 0.3, "steps": (20, 80)},
    {"megabytes": 5.0, "steps": (200, 2000)},
    n_stories=0,
)
# A letter is some 150 of the base's tokens: the others' context of 192 holds no example beside it.
LONGER = SCALES["laptop"].but({"block_size": 512, "batch_size": 6, "micro_batch_size": 6})
QUESTION = Question(
    **prose("budget"),
    measures=(TARGET, TERAFLOPS, PARAMETERS, LOSS, Measure("examples", "examples before a story", "", digits=1)),
    margin=0.02,
    reference="small, finetuned",
    arms=arms,
    scales={**SCALES, "laptop": LONGER},
    base=lambda scale: pretrained(scale, "-long"),
    measure=target_loss,
)
