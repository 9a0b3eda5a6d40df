"""Parameter groups as a partition; every optimizer over 20 steps against its formula in float64 or its reference."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from training_helpers import MODEL
from transformers.optimization import Adafactor as TheirAdafactor

from minilm.config import DecayOn, Optimizer, TrainConfig
from minilm.model.gpt import GPT
from minilm.training import muon as muon_module
from minilm.training.optim import (
    OPTIMIZERS,
    build_optimizers,
    layers_above,
    load_optimizer_state,
    optimizer_state,
    set_rates,
    split_parameters,
)

EVERY = sorted(OPTIMIZERS)


class Small(nn.Module):
    """A matrix in a block, a table and two vectors, as GPT names them."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)

        def drawn(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape, generator=generator))

        self.h = nn.ModuleList([nn.Linear(3, 5)])
        self.h[0].weight, self.h[0].bias = drawn(5, 3), drawn(5)
        self.wte, self.ln_f = nn.Embedding(7, 3), nn.Module()
        self.wte.weight, self.ln_f.weight = drawn(7, 3), drawn(3)


def gradients(step: int, model: nn.Module) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return {name: torch.randn(p.shape, generator=generator) for name, p in model.named_parameters()}


def twenty_steps(config: TrainConfig) -> dict[str, Tensor]:
    """Small's parameters after 20 steps of our optimizers, the rate halved after ten."""
    model = Small()
    optimizers = build_optimizers(model, config)
    for step in range(20):
        set_rates(optimizers, 1.0 if step < 10 else 0.5)
        for name, gradient in gradients(step, model).items():
            model.get_parameter(name).grad = gradient
        for optimizer in optimizers:
            optimizer.step()
    return {name: p.detach().clone() for name, p in model.named_parameters()}


# --- formulas: (parameter, gradient, state, step from 1, rate, decay) -> parameter, all float64; TrainConfig as CONFIG

CONFIG = TrainConfig(lr=0.1, weight_decay=0.2, beta1=0.8, beta2=0.9, eps=1e-3, momentum=0.7)
Formula = Callable[[Tensor, Tensor, dict[str, Tensor], int, float, float], Tensor]


def adam(x: Tensor, g: Tensor, s: dict[str, Tensor], t: int, lr: float, wd: float) -> Tensor:
    g = g + wd * x
    s["m"] = 0.8 * s.get("m", 0 * g) + 0.2 * g
    s["v"] = 0.9 * s.get("v", 0 * g) + 0.1 * g * g
    return x - lr * (s["m"] / (1 - 0.8**t)) / ((s["v"] / (1 - 0.9**t)).sqrt() + 1e-3)


def adamw(x: Tensor, g: Tensor, s: dict[str, Tensor], t: int, lr: float, wd: float) -> Tensor:
    return adam(x * 1.0, g, s, t, lr, 0.0) - lr * wd * x


def sgd(x: Tensor, g: Tensor, s: dict[str, Tensor], t: int, lr: float, wd: float) -> Tensor:
    g = g + wd * x
    s["m"] = 0.7 * s["m"] + g if s else g
    return x - lr * (g + 0.7 * s["m"])


def heavy_ball(x: Tensor, g: Tensor, s: dict[str, Tensor], t: int, lr: float, wd: float) -> Tensor:
    g = g + wd * x
    s["m"] = 0.7 * s["m"] + g if s else g
    return x - lr * s["m"]


def adagrad(x: Tensor, g: Tensor, s: dict[str, Tensor], t: int, lr: float, wd: float) -> Tensor:
    g = g + wd * x
    s["v"] = s.get("v", 0 * g) + g * g
    return x - lr * g / (s["v"].sqrt() + 1e-3)


def rmsprop(x: Tensor, g: Tensor, s: dict[str, Tensor], t: int, lr: float, wd: float) -> Tensor:
    g = g + wd * x
    s["v"] = 0.9 * s.get("v", 0 * g) + 0.1 * g * g
    return x - lr * g / (s["v"].sqrt() + 1e-3)


def lion(x: Tensor, g: Tensor, s: dict[str, Tensor], t: int, lr: float, wd: float) -> Tensor:
    m = s.get("m", 0 * g)
    s["m"] = 0.9 * m + 0.1 * g
    return x - lr * ((0.8 * m + 0.2 * g).sign() + wd * x)


FORMULAS: list[tuple[dict[str, Any], Formula]] = [
    ({"optimizer": "adam"}, adam),
    ({"optimizer": "adamw"}, adamw),
    ({"optimizer": "sgd"}, sgd),
    ({"optimizer": "sgd", "nesterov": False}, heavy_ball),
    ({"optimizer": "adagrad"}, adagrad),
    ({"optimizer": "rmsprop"}, rmsprop),
    ({"optimizer": "lion"}, lion),
]


@pytest.mark.parametrize(("changes", "formula"), FORMULAS, ids=[f.__name__ for _, f in FORMULAS])
def test_formula(changes: dict[str, Any], formula: Formula) -> None:
    ours = twenty_steps(replace(CONFIG, **changes))
    for name, p in Small().named_parameters():
        x, state = p.detach().double(), {}  # type: ignore[var-annotated]
        for step in range(20):
            g = gradients(step, Small())[name].double()
            x = formula(x, g, state, step + 1, 0.1 if step < 10 else 0.05, 0.2 if p.dim() == 2 else 0.0)
        torch.testing.assert_close(ours[name].double(), x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("first_moment", [True, False])
@pytest.mark.parametrize("clip", [1.0, 0.3])
def test_adafactor_is_transformers(relative: bool, first_moment: bool, clip: float) -> None:
    """Theirs has the relative step's 1e-2 built in and takes no rate beside it; so the rate stays at its peak here."""
    lr = 1e-2 if relative else 3e-2
    config = TrainConfig(optimizer="adafactor", lr=lr, weight_decay=0.2, beta1=0.8, adafactor_clip=clip)
    config = replace(config, adafactor_relative_step=relative, adafactor_first_moment=first_moment)
    ours, model = Small(), Small()
    optimizers = build_optimizers(ours, config)
    parts = [
        {"params": [p for p in model.parameters() if p.dim() == 2], "weight_decay": 0.2},
        {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    theirs = TheirAdafactor(
        parts,
        lr=None if relative else lr,
        clip_threshold=clip,
        beta1=0.8 if first_moment else None,
        scale_parameter=relative,
        relative_step=relative,
    )
    for step in range(20):
        for name, gradient in gradients(step, model).items():
            ours.get_parameter(name).grad, model.get_parameter(name).grad = gradient.clone(), gradient.clone()
        for optimizer in (*optimizers, theirs):
            optimizer.step()
    for (name, a), b in zip(ours.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=name)


def test_adafactor_without_clipping_takes_the_whole_update() -> None:
    """One step of a vector: U = G / sqrt(G^2 + 1e-30) has rms 1, and a clip of 0.25 takes a quarter of it."""
    moved = []
    for clip in (0.0, 0.25):
        vector = nn.Parameter(torch.zeros(4))
        config = TrainConfig(optimizer="adafactor", lr=0.5, adafactor_clip=clip)
        groups = {"vectors": [{"params": [vector], "lr": 0.5, "weight_decay": 0.0}]}
        (optimizer,) = OPTIMIZERS["adafactor"](groups, config)
        vector.grad = torch.tensor([3.0, -1.0, 2.0, -5.0])
        assert optimizer is not None
        optimizer.step()
        moved.append(vector.detach())
    torch.testing.assert_close(moved[0], torch.tensor([-0.5, 0.5, -0.5, 0.5]))
    torch.testing.assert_close(moved[1], 0.25 * moved[0])


@pytest.mark.parametrize("products", [torch.bfloat16, torch.float32])
def test_muon_is_torchs_with_adamw_beside_it(monkeypatch: pytest.MonkeyPatch, products: torch.dtype) -> None:
    """In torch's own format, bf16, to its rounding; in fp32, as torch's would be without that rounding."""
    monkeypatch.setattr(muon_module, "product_dtype", lambda device: products)
    if products == torch.float32:
        monkeypatch.setattr(torch.Tensor, "bfloat16", lambda self: self.clone())
    config = replace(CONFIG, optimizer="muon", nesterov=False)
    ours, model = twenty_steps(config), Small()
    weight = model.get_parameter("h.0.weight")
    muon = torch.optim.Muon(
        [weight], lr=0.1, weight_decay=0.2, momentum=0.7, nesterov=False, adjust_lr_fn="match_rms_adamw"
    )
    for step in range(20):
        muon.param_groups[0]["lr"] = 0.1 if step < 10 else 0.05
        weight.grad = gradients(step, model)["h.0.weight"]
        muon.step()
    torch.testing.assert_close(ours["h.0.weight"], weight, rtol=0, atol=2e-2 if products == torch.bfloat16 else 1e-5)
    beside = twenty_steps(replace(config, optimizer="adamw"))
    for name in ("h.0.bias", "wte.weight", "ln_f.weight"):
        assert torch.equal(ours[name], beside[name]), name


@pytest.mark.parametrize("n_at_once", [1, 2, 9])
@pytest.mark.parametrize("nesterov", [False, True])
def test_muons_batches_are_torchs_matrix_by_matrix(
    monkeypatch: pytest.MonkeyPatch, n_at_once: int, nesterov: bool
) -> None:
    """Wide, tall and square ones, several of a shape; one without a gradient stays, of a gradient of zeros is none."""
    monkeypatch.setattr(muon_module, "product_dtype", lambda device: torch.float32)
    monkeypatch.setattr(muon_module, "BATCH_NUMBERS", n_at_once * 60)
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda self: self.clone())
    generator = torch.Generator().manual_seed(0)
    shapes = [(6, 10), (10, 6), (6, 10), (7, 7), (6, 10), (10, 6)]
    ours = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    options: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.2, "momentum": 0.7, "nesterov": nesterov}
    made = (
        muon_module.Muon(ours, **options),
        torch.optim.Muon(theirs, adjust_lr_fn="match_rms_adamw", **options),
    )
    for step in range(4):
        grads = [torch.randn(shape, generator=generator) for shape in shapes]
        grads[1] = torch.zeros(10, 6)
        for params, optimizer in zip((ours, theirs), made, strict=True):
            for i, p in enumerate(params):
                p.grad = None if i == 4 and step < 2 else grads[i].clone()
            optimizer.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    assert torch.isfinite(ours[1]).all()


@pytest.mark.parametrize("shape", [(32, 96), (64, 64), (128, 32)])
def test_muons_update_is_orthogonal_and_of_adamws_size(shape: tuple[int, int]) -> None:
    """Liu 2025: an update's root mean square is 0.2 of the rate, whatever the shape; all its directions weigh alike."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(shape))
    before = weight.detach().clone()
    groups = {"matrices": [{"params": [weight], "lr": 0.5, "weight_decay": 0.0}], "tables": [], "vectors": []}
    muon, rest = OPTIMIZERS["muon"](groups, TrainConfig(optimizer="muon"))
    assert rest is None
    assert muon is not None
    weight.grad = torch.randn(shape)
    muon.step()
    update = (before - weight.detach()) / 0.5
    assert update.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.2)
    values = torch.linalg.svdvals(update)
    assert values.max() / values.min() < 2.5
    assert (update * weight.grad).sum() > 0


# --- groups


def rates_and_decays(model: nn.Module, config: TrainConfig) -> dict[str, tuple[float, float]]:
    names = {id(p): name for name, p in model.named_parameters()}
    found: dict[str, tuple[float, float]] = {}
    for group in (group for o in build_optimizers(model, config) for group in o.param_groups):
        for p in group["params"]:
            assert names[id(p)] not in found
            found[names[id(p)]] = (group["peak_lr"], group["weight_decay"])
    return found


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(EVERY),
    st.sampled_from(get_args(DecayOn)),
    st.sampled_from([1.0, 0.8]),
    st.sampled_from([{}, {"tie_embeddings": False, "norm": "rmsnorm"}, {"n_factor": 8, "qk_norm": True}]),
)
def test_every_parameter_is_in_one_group(optimizer: str, decay_on: str, decay: float, changes: dict[str, Any]) -> None:
    model = GPT(replace(MODEL, vocab_size=50, n_embd=16, **changes))
    model.get_parameter("h.0.attn.c_proj.weight").requires_grad_(False)
    config = TrainConfig(
        optimizer=optimizer,  # type: ignore[arg-type]
        decay_on=decay_on,  # type: ignore[arg-type]
        weight_decay=0.3,
        lr=0.5,
        layer_lr_decay=decay,
    )
    found = rates_and_decays(model, config)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert found.keys() == trained.keys()
    for name, p in trained.items():
        above = 0 if name.startswith(("ln_f", "lm_head", "head_proj")) else 3
        above = {"h.0": 2, "h.1": 1}.get(name[:3], above)
        inside = name.startswith("h.") and p.dim() == 2
        decayed = {"all": True, "tables": p.dim() == 2, "matrices": inside}[decay_on]
        assert found[name] == (pytest.approx(0.5 * decay**above), 0.3 if decayed else 0.0), name


def test_groups_are_no_more_than_needed() -> None:
    """One rate: a group for each kind. Each of three depths' rates: a group more."""
    model = GPT(replace(MODEL, vocab_size=50))
    assert [len(o.param_groups) for o in build_optimizers(model, TrainConfig())] == [3]
    assert [len(o.param_groups) for o in build_optimizers(model, TrainConfig(optimizer="muon"))] == [1, 2]
    (one,) = build_optimizers(model, TrainConfig(layer_lr_decay=0.5))
    assert len(one.param_groups) == 2 + 1 + 3  # matrices of two blocks; tables; vectors of two blocks, and ln_f's
    assert [layers_above(n, model) for n in ("ln_f.weight", "h.1.ln_1.bias", "h.0.x", "wpe.weight")] == [0, 1, 2, 3]


def test_kinds() -> None:
    kinds = split_parameters(GPT(replace(MODEL, vocab_size=50, tie_embeddings=False)))
    assert all(p.dim() == 1 for _, p in kinds["vectors"])
    assert {name for name, _ in kinds["tables"]} == {"wte.weight", "wpe.weight", "lm_head.weight"}
    assert len(kinds["matrices"]) == 2 * 4


def test_rates_follow_each_groups_peak() -> None:
    model = GPT(replace(MODEL, vocab_size=50))
    optimizers = build_optimizers(model, TrainConfig(optimizer="muon", lr=0.25, layer_lr_decay=0.5))
    for factor in (0.5, 1.0, 0.0):
        set_rates(optimizers, factor)
        assert {group["lr"] for o in optimizers for group in o.param_groups} == {
            0.25 * factor * 0.5**n for n in (0, 1, 2, 3)
        }


def test_registry_is_the_literal() -> None:
    assert set(OPTIMIZERS) == set(get_args(Optimizer))


# --- state


@pytest.mark.parametrize("optimizer", EVERY)
def test_state_goes_by_name(optimizer: str) -> None:
    def stepped(seed: int) -> tuple[GPT, list[torch.optim.Optimizer]]:
        torch.manual_seed(seed)
        model = GPT(replace(MODEL, vocab_size=50))
        optimizers = build_optimizers(model, TrainConfig(optimizer=optimizer))  # type: ignore[arg-type]
        model.loss(torch.arange(8)[None], torch.arange(8)[None]).backward()
        for o in optimizers:
            o.step()
        return model, optimizers

    model, optimizers = stepped(0)
    saved = optimizer_state(model, optimizers)
    assert set(saved) == {name for name, _ in model.named_parameters()}
    other, others = stepped(1)
    load_optimizer_state(other, others, saved)
    loaded = optimizer_state(other, others)
    for name, state in saved.items():
        assert state
        for key, value in state.items():
            assert torch.equal(torch.as_tensor(loaded[name][key]), torch.as_tensor(value)), (name, key)
    with pytest.raises(ValueError, match="not trained: nobody"):
        load_optimizer_state(other, others, saved | {"nobody": {}})
    name = "h.0.attn.c_attn.weight"
    wrong = {k: v[:1] if isinstance(v, torch.Tensor) and v.dim() else v for k, v in saved[name].items()}
    with pytest.raises(ValueError, match=f"of {name} has shape"):
        load_optimizer_state(other, others, saved | {name: wrong})


def test_adafactors_state_is_small() -> None:
    model = GPT(replace(MODEL, vocab_size=50))
    optimizers = build_optimizers(model, TrainConfig(optimizer="adafactor"))
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizers[0].step()
    held = sum(v.numel() for state in optimizer_state(model, optimizers).values() for v in state.values())
    shapes = [tuple(p.shape) for p in model.parameters()]
    assert held == sum((math.prod(s) if len(s) == 1 else sum(s)) + 1 for s in shapes)
