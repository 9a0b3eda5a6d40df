"""Surgery: swapped components against the same change made while loading, new rows against the mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import close, tiny, tokens

from minilm.errors import UsageError
from minilm.model import lora, surgery
from minilm.model.gpt import GPT


@pytest.mark.parametrize(
    "changes",
    [
        {"activation": "gelu"},
        {"norm": "rmsnorm"},
        {"n_kv_head": 2, "window": 3},
        {"block_size": 7, "vocab_size": 31},
        {"tie_embeddings": False, "vocab_multiple": 8},
    ],
    ids=str,
)
def test_a_swap_is_the_change_made_while_loading(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = tiny(vocab_multiple=16)
    model.save_pretrained(tmp_path)
    loaded = GPT.from_pretrained(tmp_path, **changes).double().eval()
    swapped, report = surgery.swap(model, **changes)
    assert swapped.config == loaded.config
    assert report.changes == changes
    ids = tokens(2, 7)
    assert close(swapped(ids), loaded(ids), 1e-5)
    assert model.config.activation == "gelu_tanh"
    assert swapped.get_parameter("h.0.mlp.c_fc.weight").dtype == torch.float64


def test_a_swap_merges_adapters() -> None:
    model, ids = tiny(), tokens(2, 9)
    lora.add(model, ["mlp"], rank=2, alpha=2.0)
    with torch.no_grad():
        model.get_parameter("h.0.mlp.c_fc.lora_B").normal_()
    swapped, report = surgery.swap(model)
    assert not lora.layers(swapped)
    assert not report.changes
    assert close(swapped(ids), model(ids))


@pytest.mark.parametrize(
    "vocab", [{}, {"vocab_used": 23}, {"vocab_used": 23, "vocab_multiple": 8}, {"vocab_multiple": 8}]
)
@pytest.mark.parametrize(
    "changes", [{}, {"tie_embeddings": False}, {"n_factor": 6}, {"n_factor": 6, "tie_embeddings": False}]
)
@pytest.mark.parametrize("n", [1, 6, 7])
def test_new_tokens(vocab: dict[str, Any], changes: dict[str, Any], n: int, tmp_path: Path) -> None:
    model, ids = tiny(**vocab, **changes), tokens(2, 9)
    used = vocab.get("vocab_used", 29)
    with torch.no_grad():
        before = model(ids)[..., :used]
    rows, head = model.wte.weight[:used].clone(), model.head_weight[:used].clone()
    new = surgery.add_tokens(model, n)
    assert new == range(used, used + n)
    assert model.config.vocab_size == max(29, used + n)
    assert torch.equal(model.wte.weight[:used], rows)
    for i in new:
        assert close(model.wte.weight[i], rows.mean(0))
        assert close(model.head_weight[i], head.mean(0))
    logits = model(torch.cat((ids, torch.tensor([[new[0]], [new[-1]]])), dim=1))
    assert close(logits[:, :-1, :used], before)  # the others' logits do not move
    assert close(logits[:, :-1, new[0]], before.mean(-1))
    assert torch.isinf(logits[..., used + n :]).all()
    assert logits.isfinite().sum() == logits.numel() // logits.shape[-1] * (used + n)
    model.loss(ids, ids).backward()
    assert model.wte.weight.grad is not None
    assert model.num_params() == sum(p.numel() for p in GPT(model.config).parameters()) - (
        (1 if model.config.tie_embeddings else 2)
        * (model.config.vocab_rows - model.config.vocab_size) * model.wte.embedding_dim
    )  # fmt: skip
    model.save_pretrained(tmp_path)
    again = GPT.from_pretrained(tmp_path).double().eval()
    assert again.config == model.config
    assert close(again(ids), model(ids), 1e-5)


def test_frozen_tables_stay_frozen() -> None:
    model = tiny()
    model.wte.weight.requires_grad_(False)
    surgery.add_tokens(model, 2)
    assert not model.wte.weight.requires_grad
    with pytest.raises(UsageError, match="takes 1 token or more, not 0"):
        surgery.add_tokens(model, 0)
