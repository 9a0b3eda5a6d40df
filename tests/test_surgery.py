"""Surgery: swapped components against the same change made while loading, new rows against the mean."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference_gpt import Reference
from tiny_models import close, tiny, tokens
from torch import nn
from training_helpers import tiny_config

from minilm.config import TrainConfig
from minilm.errors import UsageError
from minilm.log import read_metrics
from minilm.model import lora, surgery
from minilm.model.gpt import GPT, Attention
from minilm.model.layers import FixedNorm
from minilm.training import loop
from minilm.training.loop import Result, train


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


# --- norms fixed one by one, activations swapped


def fixed(model: GPT, ids: torch.Tensor) -> GPT:
    for name in surgery.norm_groups(model):
        surgery.fix_norm(model, name, ids)
    return model


def test_a_fixed_norm_s_constant_is_the_mean_deviation() -> None:
    """The last norm's input is what the blocks give; its deviation, token by token in numpy."""
    model, ids = tiny(norm="fixed"), tokens(3, 10)
    last = model.ln_f
    assert isinstance(last, FixedNorm)
    x: list[np.ndarray] = []
    last.register_forward_pre_hook(lambda module, args: x.append(args[0].detach().numpy()))
    std = surgery.fix_norm(model, "ln_f", ids)
    expected = np.mean([np.sqrt(row.var() + 1e-5) for row in x[0].reshape(-1, x[0].shape[-1])])
    assert std == pytest.approx(expected, rel=1e-12)
    assert last.std.item() == std
    with pytest.raises(UsageError, match="--norm fixed"):
        surgery.fix_norm(tiny(), "ln_f", ids)


@pytest.mark.parametrize("changes", [{}, {"norm_scale": False}, {"norm_bias": False, "n_unique_layer": 1}])
def test_fixed_norms_follow_the_formula_and_are_linear(changes: dict[str, Any], tmp_path: Path) -> None:
    model, ids = tiny(norm="fixed", **changes), tokens(1, 10)
    plain = tiny(norm="layernorm", **changes)
    assert close(model(ids), plain(ids))  # until one is fixed
    fixed(model, ids)
    weights = {name: t.numpy() for name, t in model.state_dict().items()}
    expected = Reference(asdict(model.config), weights).logits(ids[0].tolist())
    assert close(model(ids)[0], torch.from_numpy(expected))
    assert not close(model(ids), plain(ids), 1e-2)
    x, y = torch.randn(2, 16, dtype=torch.float64)
    zero = model.ln_f(torch.zeros(16, dtype=torch.float64))
    assert close(model.ln_f(2 * x - y) - zero, 2 * (model.ln_f(x) - zero) - (model.ln_f(y) - zero))
    model.save_pretrained(tmp_path)
    again = GPT.from_pretrained(tmp_path).double().eval()
    assert again.config == model.config
    assert close(again(ids), model(ids), 1e-5)


def test_folded_norms_are_gpt2s_architecture(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model, ids = fixed(tiny(norm="fixed", vocab_used=0).float(), tokens(2, 12)), tokens(2, 11, seed=4)
    folded = surgery.fold_norms(model)
    assert folded.config == replace(model.config, norm="layernorm", norm_eps=1e12)
    assert close(folded(ids), model(ids), 1e-5)
    folded.save_pretrained(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert close(theirs(ids).logits, model(ids), 1e-5)
    with pytest.raises(UsageError, match="not every norm is fixed"):
        surgery.fold_norms(tiny(norm="fixed"))


def test_order_of_norms() -> None:
    order = surgery.norm_groups(tiny(norm="fixed", n_layer=3, embd_norm=True))
    attentions = [f"h.{i}.ln_1.{reader}" for reader in ("qk", "v") for i in range(3)]
    assert order == [*(f"h.{i}.ln_2" for i in range(3)), *attentions, "ln_e", "ln_f"]


def first_attention(model: GPT) -> Attention:
    attention = model.get_submodule("h.0.attn")
    assert isinstance(attention, Attention)
    return attention


@pytest.mark.parametrize("changes", [{}, {"n_kv_head": 2, "position": "rope"}, {"parallel_residual": True}], ids=str)
def test_queries_and_keys_are_fixed_before_values(changes: dict[str, Any]) -> None:
    """Attention on projections put together by hand: queries and keys of the linear norm, values of the other."""
    ids, T = tokens(1, 9), 9
    half, none, both = (tiny(norm="fixed", **changes) for _ in range(3))
    std = surgery.fix_norm(half, "h.0.ln_1.qk", ids)
    surgery.fix_norm(both, "h.0.ln_1", ids)
    projected = []
    for model in (both, none):
        first_attention(model).c_attn.register_forward_hook(lambda module, args, y: projected.append(y[0]))
        model(ids)
    n = sum(first_attention(half).widths[:2])
    plain = tiny(norm="fixed", **changes)
    by_hand = torch.cat([projected[0][..., :n], projected[1][..., n:]], dim=-1).view(1, T, -1)
    plain.get_submodule("h.0").ln_1 = nn.Identity()
    first_attention(plain).c_attn.register_forward_hook(lambda module, args, y: by_hand)
    assert close(half(ids), plain(ids))
    assert not close(half(ids), none(ids), 1e-3)
    assert not close(half(ids), both(ids), 1e-3)
    assert surgery.fix_norm(half, "h.0.ln_1.v", ids) == std
    assert close(half(ids), both(ids))
    with pytest.raises(UsageError, match=r"ln_2\.qk is no norm"):
        surgery.fix_norm(half, "h.0.ln_2.qk", ids)


def test_an_activation_swapped_in_place_is_the_one_loaded() -> None:
    model, ids = tiny(), tokens(2, 9)
    surgery.set_activation(model, "gelu")
    assert model.config.activation == "gelu"
    assert close(model(ids), tiny(activation="gelu")(ids))
    with pytest.raises(UsageError, match="have different weights"):
        surgery.set_activation(model, "swiglu")


def operation(first: Result, data: Path, out_dir: Path) -> TrainConfig:
    """Fourteen steps; a norm is fixed every second one, the activation changes before the eighth."""
    changes = {"fix_norms_every_steps": 2, "swap_activation": "relu", "swap_at_step": 7}
    config = tiny_config(data, out_dir, max_steps=14, eval_every_steps=4, save_every_steps=3, **changes)
    return replace(config, init=str(first.checkpoint), model=replace(first.model.config, norm="fixed"))


def test_surgery_in_training_is_logged_and_resumes_to_the_bit(
    data: Path, first: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = train(operation(first, data, tmp_path / "whole"))
    assert whole.model.config.activation == "relu"
    set_in = [m.std.min() > 0 for m in whole.model.modules() if isinstance(m, FixedNorm)]
    assert set_in == [True] * 5
    rows = [row for row in read_metrics(whole.run / "metrics.jsonl") if "surgery" in row]
    attentions = [f"h.{i}.ln_1.{reader}" for reader in ("qk", "v") for i in range(2)]
    names = ["h.0.ln_2", "h.1.ln_2", *attentions, "ln_f"]
    events = [(2 * i + 1, f"fixed {name}") for i, name in enumerate(names)] + [(8, "activation relu")]
    assert [(row["step"], row["surgery"]) for row in rows] == sorted(events)
    assert rows[0]["val_loss_before"] == pytest.approx(first.val_loss, rel=1e-6)
    assert all(row["val_loss_after"] != row["val_loss_before"] for row in rows)
    told = json.loads((whole.run / "moved.json").read_text())["operations"]
    assert [(done["step"], done["operation"]) for done in told] == sorted(events)
    for done, row, later in zip(told, rows, [*rows[1:], {"val_loss_before": whole.val_loss}], strict=True):
        assert done["damage"] == row["val_loss_after"] - row["val_loss_before"]
        assert done["left"] == later["val_loss_before"] - row["val_loss_before"]
    line = f"fixed h.0.ln_2 at step 1: {told[0]['damage']:+.4f}, of which {told[0]['left']:+.4f} is left"
    assert line in capsys.readouterr().err
    for n_saves in (2, 3):  # checkpoints after 6 steps, before the swap, and after 9, behind it
        run = tmp_path / f"broken{n_saves}"
        config = operation(first, data, run)
        save, saves = loop.save_checkpoint, iter(range(1, 9))

        def stop(*args: Any, save: Any = save, saves: Any = saves, last: int = n_saves) -> Path:
            path: Path = save(*args)
            if next(saves) == last:
                raise KeyboardInterrupt
            return path

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "save_checkpoint", stop)
            with pytest.raises(KeyboardInterrupt):
                train(config)
        resumed = train(replace(config, existing="resume"))
        assert resumed.losses == whole.losses[3 * n_saves :]
        for (name, a), b in zip(resumed.model.state_dict().items(), whole.model.state_dict().values(), strict=True):
            assert torch.equal(a, b), name
        again = [row for row in read_metrics(run / "metrics.jsonl") if "surgery" in row]
        assert again == rows


def test_norms_that_cannot_be_fixed_are_told(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="add --norm fixed"):
        train(tiny_config(data, tmp_path / "run", fix_norms_every_steps=2))
    with pytest.raises(UsageError, match="choose gelu_tanh"):
        TrainConfig(swap_activation="gelo")
