"""Schedules against closed forms, parameter groups as a partition, optimizers against their formulas in float64."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training_helpers import MODEL

from minilm.config import Optimizer, Schedule, TrainConfig
from minilm.model.gpt import GPT
from minilm.training.optim import (
    OPTIMIZERS,
    SCHEDULES,
    build_optimizers,
    load_optimizer_state,
    lr_factor,
    optimizer_state,
    set_rates,
    split_parameters,
)


@given(st.sampled_from(["cosine", "linear", "constant"]), st.integers(0, 50), st.integers(2, 300), st.floats(0, 1))
def test_schedules(schedule: str, warmup: int, steps: int, final: float) -> None:
    config = TrainConfig(schedule=schedule, warmup_steps=warmup, max_steps=steps, final_lr_share=final)  # type: ignore[arg-type]
    factors = [lr_factor(step, config) for step in range(steps)]
    assert factors[: min(warmup, steps)] == [(i + 1) / warmup for i in range(min(warmup, steps))]
    assert all(0 <= f <= 1 + 1e-12 for f in factors)
    after = factors[warmup:]
    if len(after) > 1:
        assert after[0] == 1.0
        assert after[-1] == pytest.approx(1.0 if schedule == "constant" else final)
        assert all(a >= b - 1e-12 for a, b in pairwise(after))


def test_the_middle_of_each_schedule() -> None:
    config = TrainConfig(warmup_steps=10, max_steps=111, final_lr_share=0.2)  # 101 steps: the 51st is the middle
    wanted: dict[Schedule, float] = {"cosine": 0.6, "linear": 0.6, "constant": 1.0}
    for name, factor in wanted.items():
        assert lr_factor(60, replace(config, schedule=name)) == pytest.approx(factor)
    assert lr_factor(35, replace(config, schedule="cosine")) == pytest.approx(0.2 + 0.4 * (1 + math.cos(math.pi / 4)))
    assert set(SCHEDULES) == set(get_args(Schedule)) == set(wanted)
    assert set(OPTIMIZERS) == set(get_args(Optimizer))


@pytest.mark.parametrize(
    "changes", [{}, {"tie_embeddings": False, "norm": "rmsnorm"}, {"n_factor": 8, "qk_norm": True}]
)
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_parameter_is_in_one_group(changes: dict[str, object], optimizer: str) -> None:
    model = GPT(replace(MODEL, vocab_size=50, **changes))  # type: ignore[arg-type]
    model.get_parameter("h.0.attn.c_proj.weight").requires_grad_(False)
    groups = split_parameters(model)
    names = [name for group in groups.values() for name, _ in group]
    assert sorted(names) == sorted(n for n, p in model.named_parameters() if p.requires_grad)
    assert all(p.dim() == 1 for _, p in groups["vectors"])
    assert {"wte.weight", "wpe.weight"} <= {name for name, _ in groups["tables"]}
    config = TrainConfig(optimizer=optimizer, weight_decay=0.3)  # type: ignore[arg-type]
    optimizers = build_optimizers(model, config)
    held = [p for o in optimizers for group in o.param_groups for p in group["params"]]
    assert len(held) == len({id(p) for p in held}) == len(names)
    decay = {id(p): group["weight_decay"] for o in optimizers for group in o.param_groups for p in group["params"]}
    for name, p in model.named_parameters():
        if p.requires_grad:
            assert decay[id(p)] == (0.3 if p.dim() == 2 else 0.0), name


def test_adamw_is_its_formula() -> None:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(5, 3))
    bias = torch.nn.Parameter(torch.randn(3))
    config = TrainConfig(lr=0.1, weight_decay=0.2, beta1=0.8, beta2=0.9, eps=1e-3)
    (optimizer,) = OPTIMIZERS["adamw"]({"matrices": [weight], "tables": [], "vectors": [bias]}, config)
    expected = [p.detach().double() for p in (weight, bias)]
    first = [torch.zeros_like(p) for p in expected]
    second = [torch.zeros_like(p) for p in expected]
    for step in range(1, 8):
        for i, p in enumerate((weight, bias)):
            p.grad = torch.randn_like(p)
            g = p.grad.double()
            first[i] = 0.8 * first[i] + 0.2 * g
            second[i] = 0.9 * second[i] + 0.1 * g * g
            update = (first[i] / (1 - 0.8**step)) / ((second[i] / (1 - 0.9**step)).sqrt() + 1e-3)
            expected[i] = expected[i] * (1 - 0.1 * (0.2 if i == 0 else 0.0)) - 0.1 * update
        optimizer.step()
    for p, wanted in zip((weight, bias), expected, strict=True):
        torch.testing.assert_close(p.detach().double(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(32, 96), (64, 64), (128, 32)])
def test_muons_update_is_orthogonal_and_of_adamws_size(shape: tuple[int, int]) -> None:
    """Liu 2025: an update's root mean square is 0.2 of the rate, whatever the shape; all its directions weigh alike."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(shape))
    before = weight.detach().clone()
    config = TrainConfig(optimizer="muon", lr=0.5, weight_decay=0.0)
    optimizers = OPTIMIZERS["muon"]({"matrices": [weight], "tables": [], "vectors": []}, config)
    weight.grad = torch.randn(shape)
    for optimizer in optimizers:
        optimizer.step()
    update = (before - weight.detach()) / 0.5
    assert update.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.2)
    values = torch.linalg.svdvals(update)
    assert values.max() / values.min() < 2.5
    assert (update * weight.grad).sum() > 0


def test_rates_follow_each_groups_peak() -> None:
    model = GPT(replace(MODEL, vocab_size=50))
    optimizers = build_optimizers(model, TrainConfig(optimizer="muon", lr=0.25))
    for factor in (0.5, 1.0, 0.0):
        set_rates(optimizers, factor)
        assert {group["lr"] for o in optimizers for group in o.param_groups} == {0.25 * factor}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
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
        for key, value in state.items():
            assert torch.equal(torch.as_tensor(loaded[name][key]), torch.as_tensor(value)), (name, key)
    with pytest.raises(ValueError, match="not trained: nobody"):
        load_optimizer_state(other, others, saved | {"nobody": {}})
    name = "h.0.attn.c_attn.weight"
    wrong = {k: v[:1] if isinstance(v, torch.Tensor) and v.dim() else v for k, v in saved[name].items()}
    with pytest.raises(ValueError, match=f"of {name} has shape"):
        load_optimizer_state(other, others, saved | {name: wrong})
