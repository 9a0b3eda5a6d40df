"""What finetuning changes: weights by component, the way there, agreement of tasks, forgetting (docs/theory.md)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from minilm.lab.answers import correlations
from minilm.lab.finetune import FORGOTTEN, UNSEEN, base, finetuning, forgetting
from minilm.lab.measures import LOSS
from minilm.lab.question import Arm, Measure, Picture, Question, Scale, grid, prose
from minilm.lab.stories import story_loss, validation_stories
from minilm.lab.trial import Trained
from minilm.model.gpt import GPT
from minilm.model.lora import merged
from minilm.model.weights import load_pretrained
from minilm.text.batches import eval_batches
from minilm.text.shards import ShardFolder

TASKS = {"same text": {"style": "plain"}, "new style": {"style": UNSEEN}, "manual": {"local": "manual"}}
METHODS: dict[str, tuple[dict[str, Any], float]] = {"everything": ({}, 1e-3)}
METHODS |= {"lora 16": ({"lora_rank": 16, "lora_alpha": 32.0}, 5e-3)}
COMPONENTS = {"embeddings": "wte", "attention": ".attn.", "feed-forwards": ".mlp.", "norms": "ln_"}
MATRICES = tuple(COMPONENTS)[:3]  # a norm's weights have no rank
STEPS_BETWEEN = 5  # points on the straight line, ends included


def arms(scale: Scale) -> list[Arm]:
    common = {"megabytes": scale.extra["megabytes"], "vocabulary": "base"}
    measure = {"documents": scale.extra["documents"], "rank": "of each component", "hump": "between the ends"}
    return [
        Arm(task, {**scale.extra["finetune"], **run}, grid(rate), method, {**common, **options}, measure)
        for method, (run, rate) in METHODS.items()
        for task, options in TASKS.items()
    ]


def changes(trained: Trained) -> dict[str, float]:
    """Change and rank of weights, the hump on the straight line, the angle of gradients, and what was forgotten."""
    assert trained.base_checkpoint is not None
    assert trained.base_data is not None
    before = load_pretrained(trained.base_checkpoint)[0].to(trained.model.device).eval()
    ends: tuple[dict[str, Tensor], dict[str, Tensor]] = (dict(before.named_parameters()), merged(trained.model))
    found = {**forgetting(trained), **change_of_weights(*ends)}
    texts = validation_stories(trained.data, trained.tokenizer, trained.cell.measure["documents"])
    found["hump"] = hump(before, *ends, [*texts], trained)
    one, other = (gradient(before, data) for data in (trained.base_data, trained.data))
    return {**found, "alignment": float(nn.functional.cosine_similarity(one, other, dim=0))}


def change_of_weights(before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, float]:
    """|change| / |weights| of each component, and the mean stable rank |A|_F^2 / |A|_2^2 of its matrices' changes,
    where it has changed."""
    found = {}
    for component, mark in COMPONENTS.items():
        names = [name for name in before if mark in name]
        difference = [after[name] - before[name] for name in names]
        if names:
            of = [
                sum(float(t.detach().double().square().sum()) for t in side)
                for side in (difference, [before[n] for n in names])
            ]
            found[f"change_{component}"] = 100 * (of[0] / max(of[1], 1e-30)) ** 0.5
        moved = [d.detach() for d in difference if d.dim() == 2 and d.detach().any()]
        if moved:
            ranks = [float(d.square().sum() / torch.linalg.matrix_norm(d, 2) ** 2) for d in moved]
            found[f"rank_{component}"] = sum(ranks) / len(ranks)
    return found


def told(analysis: Any) -> list[str]:
    """What forgetting goes with over arms."""
    return [correlations(analysis, ["alignment", "val_loss", *(f"change_{component}" for component in COMPONENTS)])]


@torch.no_grad()
def hump(model: GPT, before: dict[str, Tensor], after: dict[str, Tensor], texts: list[str], trained: Trained) -> float:
    """How far the loss rises above the straight line between its ends on the way from base to finetuned weights, at the
    highest of the points between; below 0 where it sags at all of them."""
    start = {name: p.detach().clone() for name, p in before.items()}
    losses = []
    for i in range(STEPS_BETWEEN):
        share = i / (STEPS_BETWEEN - 1)
        for name, p in model.named_parameters():
            p.copy_(torch.lerp(start[name], after[name].to(p), share))
        losses.append(story_loss(model, trained.tokenizer, texts))
    for name, p in model.named_parameters():
        p.copy_(start[name])
    straight = [losses[0] + (losses[-1] - losses[0]) * i / (STEPS_BETWEEN - 1) for i in range(STEPS_BETWEEN)]
    return max(loss - line for loss, line in list(zip(losses, straight, strict=True))[1:-1])


def gradient(model: GPT, data: ShardFolder) -> Tensor:
    """Of the loss on the first training tokens, flat."""
    T = model.config.block_size
    batch = next(iter(eval_batches(data.splits["train"], block_size=T, batch_size=16, max_tokens=16 * T)))
    ids, targets = (torch.from_numpy(x).long().to(model.device) for x in (batch.ids, batch.targets))
    model.zero_grad(set_to_none=True)
    model.loss(ids, targets).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


QUESTION = Question(
    **prose("theory"),
    measures=(
        FORGOTTEN,
        LOSS,
        *(Measure(f"change_{c}", f"change of {c}", "% of their norm", digits=2) for c in COMPONENTS),
        *(Measure(f"rank_{c}", f"stable rank of the change of {c}", "", digits=1) for c in MATRICES),
        Measure("hump", "highest rise above the straight line from base to finetuned", "nats per token", digits=4),
        Measure("alignment", "cosine of the two tasks' gradients at the base", "", "higher", 3),
    ),
    margin=0.01,
    reference="same text",
    arms=arms,
    scales=finetuning({"megabytes": 0.02}, {"megabytes": 0.3}, {"megabytes": 0.4}, n_stories=0),
    pictures=(Picture("points", "change_feed-forwards", "forgotten"), Picture("points", "alignment", "forgotten")),
    base=base,
    measure=changes,
    tells=told,
    tells_first=True,
)
