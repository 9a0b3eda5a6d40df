"""Changing a model that has weights: swapping components, adding token rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from minilm.errors import UsageError
from minilm.model.fit import LoadReport, fit
from minilm.model.formats import Checkpoint
from minilm.model.gpt import GPT
from minilm.model.lora import merged


def swap(model: GPT, **changes: Any) -> tuple[GPT, LoadReport]:
    """A model with these fields of GPTConfig changed and the weights of `model` wherever they have a place in it.

    The report states tensor by tensor what was kept, changed, dropped and new, as when a checkpoint is loaded with
    changes. Unchanged tensors are shared with `model`, and adapters merged. Raises UsageError on what `fit` refuses.
    """
    weights = {name: t[: model.config.vocab_size] if name in _TABLES else t for name, t in merged(model).items()}
    checkpoint = Checkpoint(model.config, weights, [])
    made, report = fit(checkpoint, replace(model.config, **changes), "the model", model.wte.weight.dtype)
    return made.to(model.device).train(model.training), report


_TABLES = ("wte.weight", "lm_head.weight")


@torch.no_grad()
def add_tokens(model: GPT, n: int) -> range:
    """Gives the vocabulary n more tokens, in place; returns their ids, which follow those in use.

    Their rows of embedding (and untied head) are the mean of the rows in use: a new token's logit is the mean logit,
    and the others do not move (Hewitt 2021). Rows that the table has spare are taken first. Build the optimizer after
    this: the tables are new parameters. Raises UsageError where n is under 1.
    """
    if n < 1:
        raise UsageError(f"add_tokens takes 1 token or more, not {n}")
    c = model.config
    used = c.vocab_used or c.vocab_size
    size = max(c.vocab_size, used + n)
    config = replace(c, vocab_size=size, vocab_used=0 if size == used + n else used + n)
    for table in (model.wte, model.lm_head):
        if not isinstance(table, nn.Embedding | nn.Linear):
            continue  # a tied head
        old = table.weight
        rows = old if config.vocab_rows == len(old) else old.new_zeros(config.vocab_rows, old.shape[1])
        rows[: c.vocab_size] = old[: c.vocab_size]
        rows[used : used + n] = old[:used].mean(dim=0)
        table.weight = nn.Parameter(rows, requires_grad=old.requires_grad)
        if isinstance(table, nn.Embedding):
            table.num_embeddings = len(rows)
        else:
            table.out_features = len(rows)
    model.config = config
    return range(used, used + n)
