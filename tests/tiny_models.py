"""Tiny models over every toggle: all values of each field, and a small set of configs that holds every pair of them."""

from __future__ import annotations

import random
from functools import cache
from itertools import combinations, product
from typing import Any, get_args

import torch
from torch import Tensor

from minilm import config as settings
from minilm.config import GPTConfig
from minilm.errors import UsageError
from minilm.model.gpt import GPT

SIZES: dict[str, Any] = {"n_layer": 2, "n_head": 4, "n_embd": 16, "block_size": 12, "vocab_size": 29}
CONSTANTS = ("norm_eps", "rope_base", "init_std")  # numbers without alternatives worth pairing
ON_OFF = (False, True)
# Every other field of GPTConfig with the values to try, the default first.
TOGGLES: dict[str, tuple[Any, ...]] = {
    "vocab_used": (0, 23),
    "vocab_multiple": (1, 16),
    "activation": get_args(settings.Activation),
    "n_inner": (0, 24),
    "norm": get_args(settings.Norm),
    "norm_position": get_args(settings.NormPosition),
    "norm_scale": (True, False),
    "norm_bias": (True, False),
    "final_norm": (True, False),
    "embd_norm": ON_OFF,
    "position": get_args(settings.Position),
    "attn_bias": (True, False),
    "mlp_bias": (True, False),
    "qk_norm": ON_OFF,
    "n_kv_head": (0, 1, 2),
    "window": (0, 1, 3, 64),
    "attn_scale": (True, False),
    "attn_scale_by_layer": ON_OFF,
    "attn_upcast": ON_OFF,
    "logit_softcap": (0.0, 2.0),
    "tie_embeddings": (True, False),
    "parallel_residual": ON_OFF,
    "n_unique_layer": (0, 1),
    "n_factor": (0, 6),
    "skip_attn": ((), (0,), (1,)),
    "skip_mlp": ((), (0,), (0, 1)),
    "embd_dropout": (0.0, 0.2),
    "attn_dropout": (0.0, 0.2),
    "resid_dropout": (0.0, 0.2),
    "init_scheme": get_args(settings.InitScheme),
}
SINGLE = [{}, *({name: value} for name, values in TOGGLES.items() for value in values[1:])]


def possible(fields: dict[str, Any]) -> bool:
    try:
        GPTConfig(**SIZES, **fields)
    except UsageError:
        return False
    return True


@cache
def pairs() -> frozenset[tuple[int, int, int, int]]:
    """(field, value, other field, value), as indices, of all pairs that the config allows."""
    names, found = list(TOGGLES), set()
    for i, j in combinations(range(len(names)), 2):
        for a, b in product(range(len(TOGGLES[names[i]])), range(len(TOGGLES[names[j]]))):
            if possible({names[i]: TOGGLES[names[i]][a], names[j]: TOGGLES[names[j]][b]}):
                found.add((i, a, j, b))
    return frozenset(found)


@cache
def covering() -> tuple[dict[str, Any], ...]:
    """Configs that hold every possible pair: each grows from an uncovered pair, field by field, by the value that
    covers most (Cohen 1997, AETG)."""
    names, allowed = list(TOGGLES), pairs()
    missing, rows, rng = set(allowed), [], random.Random(0)

    def together(i: int, a: int, j: int, b: int) -> tuple[int, int, int, int]:
        return (i, a, j, b) if i < j else (j, b, i, a)

    while missing:
        i, a, j, b = min(missing)
        chosen = {i: a, j: b}
        for field in rng.sample(range(len(names)), len(names)):
            if field in chosen:
                continue
            best = (-1, 0)
            for value in range(len(TOGGLES[names[field]])):
                met = [together(field, value, other, v) for other, v in chosen.items()]
                if allowed.issuperset(met):
                    best = max(best, (sum(pair in missing for pair in met), -value))
            chosen[field] = -best[1]
        row = sorted(chosen.items())
        missing -= {(i, a, j, b) for (i, a), (j, b) in combinations(row, 2)}
        rows.append({names[i]: TOGGLES[names[i]][a] for i, a in row})
    return tuple(rows)


def tiny(seed: int = 0, **fields: Any) -> GPT:
    """A model in float64 and eval mode whose every parameter is random, norms and biases too."""
    torch.manual_seed(seed)
    model = GPT(GPTConfig(**{**SIZES, **fields})).double().eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(std=0.5).add_(1.0 if ("ln_" in name or "_norm" in name) and name.endswith("weight") else 0.0)
    return model


def tokens(rows: int, length: int, vocabulary: int = 23, seed: int = 1) -> Tensor:
    return torch.randint(vocabulary, (rows, length), generator=torch.Generator().manual_seed(seed))


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-9) -> bool:
    """Equal within tolerance times the spread of the expected (of one number: its size); -inf only where expected."""
    finite = expected.isfinite()
    if not torch.equal(actual.isfinite(), finite):
        return False
    actual, expected = actual[finite].double(), expected[finite].double()
    spread = expected.std(correction=0) if len(expected) > 1 else expected.abs().max()
    return bool((actual - expected).abs().max() <= tolerance * spread.clamp(min=1e-6))
