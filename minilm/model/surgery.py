"""Changing a model that has weights: swapping components, adding token rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from minilm.errors import UsageError
from minilm.model.fit import LoadReport, fit
from minilm.model.formats import Checkpoint
from minilm.model.gpt import GPT
from minilm.model.layers import ACTIVATIONS, MLP, FixedNorm
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


def check_activation(model: GPT, name: str) -> None:
    """Raises UsageError where an activation needs other weights than the model's (gated or not)."""
    if ACTIVATIONS[name][0] is not ACTIVATIONS[model.config.activation][0]:
        raise UsageError(f"{name} and {model.config.activation} have different weights: take --activation instead")


def set_activation(model: GPT, name: str) -> None:
    """Another activation in every block, in place. Raises UsageError where it needs other weights."""
    check_activation(model, name)
    act = ACTIVATIONS[name][1]
    for block in model.h:
        if isinstance(block.mlp, MLP):
            block.mlp.act = act
    changed: dict[str, Any] = {"activation": name}
    model.config = replace(model.config, **changed)


def norm_groups(model: GPT) -> list[str]:
    """What `fix_norm` can fix, in Heimersheim's (2024) order, bottom up in each: norms before feed-forwards; those
    before attentions for queries and keys (h.0.ln_1.qk), then for values (h.0.ln_1.v); the others, ln_f last."""
    norms = {name: module for name, module in model.named_modules() if isinstance(module, FixedNorm)}
    split = [name for name, norm in norms.items() if len(norm.std) == 2]
    feeding = [name for name in norms if name.endswith("ln_2")]
    others = [name for name in norms if name not in (*split, *feeding)]  # ln_f is the last that a model has
    return [*feeding, *(f"{name}.qk" for name in split), *(f"{name}.v" for name in split), *others]


@torch.no_grad()
def fix_norm(model: GPT, name: str, ids: Tensor, documents: Tensor | None = None) -> float:
    """Makes a norm linear: its deviation becomes a constant, the mean over ids (B, T), which is returned.

    name: of a norm, or with .qk or .v for one of those that read the norm of an attention; the second to be fixed gets
    the first one's constant, so that in the end the norm is one linear map. The model has to have `norm = "fixed"`;
    raises UsageError where it has not.
    """
    whole, _, reader = name.rpartition(".") if name.endswith((".qk", ".v")) else (name, "", "")
    norm = model.get_submodule(whole)
    if not isinstance(norm, FixedNorm) or (reader and len(norm.std) != 2):
        raise UsageError(f"{name} is no norm that can be fixed: load the model with norm fixed (--norm fixed)")
    chosen = {"": slice(None), "qk": slice(0, 1), "v": slice(1, 2)}[reader]
    if reader and norm.std.max() > 0:
        norm.std[chosen] = norm.std.max()
        return float(norm.std.max())
    seen: list[Tensor] = []

    def look(module: nn.Module, args: tuple[Tensor]) -> None:
        x = norm.widen(args[0])
        seen.append(norm.deviation(x - x.mean(dim=-1, keepdim=True)).mean())

    handle, training = norm.register_forward_pre_hook(look), model.training
    try:
        model.eval().hidden(ids, documents)
    finally:
        handle.remove()
        model.train(training)
    norm.std[chosen] = torch.stack(seen).mean()  # a shared block runs several times
    return float(norm.std.max())


HUGE_EPS = 1e12


def fold_norms(model: GPT) -> GPT:
    """A model of GPT-2's architecture with equal logits, all of whose norms are fixed.

    An epsilon of 1e12 drowns the variance, so layernorm divides by 1e6; its weight makes up for it. Such a model opens
    in transformers. Raises UsageError where a norm is not fixed yet, or has no weight.
    """
    norms = [m for m in model.modules() if isinstance(m, FixedNorm)]
    if not norms or model.config.qk_norm or any(not m.std.min() > 0 or m.weight is None for m in norms):
        raise UsageError("not every norm is fixed, or one has no scale: train with --fix_norms_every_steps to the end")
    folded, _ = swap(model, norm="layernorm", norm_eps=HUGE_EPS)
    with torch.no_grad():
        for name, norm in model.named_modules():
            if isinstance(norm, FixedNorm):
                weight = folded.get_parameter(f"{name}.weight")
                weight.data = norm.weight * (HUGE_EPS**0.5 / norm.std.max())
    return folded


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
    used = c.rows_used
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
