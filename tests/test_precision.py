"""Precisions: rounding against brute force, pure 16-bit optimizers against fp32, loss scale, runs of each precision."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from training_helpers import tiny_config

from minilm import config as config_module
from minilm.config import TrainConfig
from minilm.runtime import PRECISIONS
from minilm.training import precision as precision_module
from minilm.training.loop import Result, train
from minilm.training.optim import OPTIMIZERS
from minilm.training.precision import LossScale, Precision, Stored16, round_stochastic

CPU = torch.device("cpu")
# Without hardware for them, 16-bit products are a hundred times slower: little of everything.
SMALL: dict[str, Any] = {"n_layer": 1, "n_embd": 16, "block_size": 16, "eval_tokens": 32, "eval_every_steps": 0}
DTYPES = {"pure_bf16": torch.bfloat16, "pure_fp16": torch.float16}


@pytest.fixture(scope="module")
def fp32(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    return train(tiny_config(data, tmp_path_factory.mktemp("runs") / "fp32", **SMALL))


@cache
def every(dtype: torch.dtype) -> torch.Tensor:
    """Every finite number of a 16-bit dtype, in order."""
    values = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int16).view(dtype)
    return values[values.isfinite()].double().unique()


@pytest.mark.parametrize("dtype", DTYPES.values())
@given(x=st.floats(width=32, allow_nan=False, allow_infinity=False), seed=st.integers(0, 99))
def test_stochastic_rounding_gives_a_neighbour(dtype: torch.dtype, x: float, seed: int) -> None:
    table = every(dtype)
    got = round_stochastic(torch.tensor([x]), dtype, torch.Generator().manual_seed(seed)).double().item()
    at = int(torch.searchsorted(table, torch.tensor(x, dtype=torch.float64)))
    low = table[max(at - 1, 0)].item() if at == len(table) or table[at] != x else x
    high = table[min(at, len(table) - 1)].item()
    assert got in (low, high)


@pytest.mark.parametrize(("dtype", "x"), [
    (torch.bfloat16, 1.001), (torch.bfloat16, -3.0e-39), (torch.float16, 0.1), (torch.float16, -2.0e-8),
    (torch.float16, 1e-5),
])  # fmt: skip
def test_stochastic_rounding_is_right_in_the_mean(dtype: torch.dtype, x: float) -> None:
    """Within four standard errors over 100,000 draws; nearest rounding would be off by more."""
    draws = round_stochastic(torch.full((100_000,), x), dtype, torch.Generator().manual_seed(0)).double()
    exact = torch.tensor(x).double().item()
    assert len(draws.unique()) == 2
    assert abs(draws.mean().item() - exact) < 4 * draws.std().item() / math.sqrt(len(draws))


def test_what_has_no_neighbours() -> None:
    x = torch.tensor([math.inf, -math.inf, math.nan, 0.0, 1e6, -1e6, 0.5])
    got = round_stochastic(x, torch.float16, torch.Generator().manual_seed(0))
    assert got[:2].tolist() == [math.inf, -math.inf]
    assert got[2].isnan()
    assert got[3:].tolist() == [0.0, 65504.0, -65504.0, 0.5]  # a weight saturates, it does not become infinite


def distance_from_fp32(optimizer: str, precision: str, rounding: str, lr: float = 1e-3) -> float:
    """Mean distance of 1,024 weights from the same run in fp32, after 60 small steps that all go one way."""
    config = TrainConfig(optimizer=optimizer, lr=lr, weight_decay=0.0, eps=1e-6, momentum=0.9)  # type: ignore[arg-type]
    ends = []
    for dtype in (None, DTYPES[precision]):
        torch.manual_seed(0)
        p = nn.Parameter(1.0 + torch.rand(32, 32))
        p.data = p.data.to(DTYPES[precision]).to(dtype or torch.float32)
        groups = {"matrices": [{"params": [p], "lr": lr, "weight_decay": 0.0}], "tables": [], "vectors": []}
        (made,) = [o for o in OPTIMIZERS[optimizer](groups, config) if o is not None]
        optimizer_ = Stored16(made, dtype, rounding) if dtype else made
        for step in range(60):
            torch.manual_seed(step)
            p.grad = (1e-3 + 1e-4 * torch.randn(32, 32)).to(p.dtype)
            if isinstance(optimizer_, Stored16):
                optimizer_.seed = step
            optimizer_.step()
        ends.append(p.detach().float())
    return (ends[0] - ends[1]).abs().mean().item()


@pytest.mark.parametrize("precision", DTYPES)
def test_small_steps_are_lost_by_nearest_rounding_only(precision: str) -> None:
    """Steps of 1e-3 (bf16) and 1e-4 (fp16) are under half a unit at 1 to 2, so that nearest rounding takes none."""
    lr = {"pure_bf16": 1e-3, "pure_fp16": 1e-4}[precision]
    lost = distance_from_fp32("adam", precision, "nearest", lr)
    assert lost > 0.9 * 60 * lr
    unit = {"pure_bf16": 2**-7, "pure_fp16": 2**-10}[precision]
    # Each of 60 draws is off by at most a unit and half of one in the worst mean: a random walk's length.
    assert distance_from_fp32("adam", precision, "stochastic", lr) < 0.5 * unit * math.sqrt(60)
    assert distance_from_fp32("adam", precision, "kahan", lr) < unit / 4 + 0.02 * 60 * lr


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("rounding", ["nearest", "kahan"])
@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd", "adagrad", "rmsprop", "lion"])
def test_parts_of_a_parameter_are_updated_as_the_whole(
    optimizer: str, rounding: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every optimizer that takes parts; 5 rows at a time of 32, to the last bit, with its state."""
    ends: list[tuple[torch.Tensor, dict[str, Any]]] = []
    for numbers in (1 << 20, 5 * 8):
        monkeypatch.setattr(precision_module, "PART_NUMBERS", numbers)
        p = nn.Parameter(torch.randn(32, 8, generator=torch.Generator().manual_seed(0)).to(DTYPES[precision]))
        config = TrainConfig(optimizer=optimizer, momentum=0.9)  # type: ignore[arg-type]
        groups = {"matrices": [{"params": [p], "lr": 1e-2, "weight_decay": 0.1}], "tables": [], "vectors": []}
        (made,) = [o for o in OPTIMIZERS[optimizer](groups, config) if o is not None]
        assert type(made) in precision_module.BY_NUMBER
        stored = Stored16(made, DTYPES[precision], rounding)
        for step in range(3):
            p.grad = torch.randn(32, 8, generator=torch.Generator().manual_seed(step)).to(p.dtype)
            stored.step()
        ends.append((p.detach(), stored.state[p]))
    (whole, of_whole), (parts, of_parts) = ends
    assert torch.equal(whole, parts)
    assert of_whole.keys() == of_parts.keys()
    for key, value in of_whole.items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(of_parts[key])), key


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_every_optimizer_in_16_bits_follows_fp32(optimizer: str) -> None:
    moved = {"adagrad": 0.012, "sgd": 0.0005}.get(optimizer, 0.05)
    assert distance_from_fp32(optimizer, "pure_bf16", "kahan") < 0.25 * moved + 2**-9


def test_state_is_stored_in_16_bits() -> None:
    for rounding in get_args(config_module.Rounding):
        p = nn.Parameter(torch.randn(8, 4).to(torch.bfloat16))
        stored = Stored16(torch.optim.AdamW([p], lr=0.1), torch.bfloat16, rounding)
        p.grad = torch.randn(8, 4).to(torch.bfloat16)
        stored.step()
        tensors = {key: value for key, value in stored.state[p].items() if value.dim()}
        assert {v.dtype for v in tensors.values()} == {torch.bfloat16}
        assert set(tensors) == {"exp_avg", "exp_avg_sq"} | ({"rest"} if rounding == "kahan" else set())


def test_tiny_second_moments_survive_fp16() -> None:
    """A gradient of 1e-5 has a square of 1e-10, which fp16 cannot hold; its root it can."""
    p = nn.Parameter(torch.ones(4, dtype=torch.float16))
    stored = Stored16(torch.optim.AdamW([p], lr=0.1, weight_decay=0.0), torch.float16, "nearest")
    for _ in range(3):
        p.grad = torch.full((4,), 1e-5, dtype=torch.float16)
        stored.step()
    assert p.tolist() == pytest.approx([0.7] * 4, abs=0.02)


def test_loss_scale() -> None:
    scale = LossScale()
    assert [scale.update(True) for _ in range(LossScale.GROW_AFTER)] == [True] * LossScale.GROW_AFTER
    assert scale.value == 131072.0
    assert not scale.update(False)
    assert (scale.value, scale.good_steps) == (65536.0, 0)
    while scale.value > 1.0:
        assert not scale.update(False)
    assert scale.update(False)  # at scale 1 it is no overflow: the guard's business


def test_clipping_is_that_of_the_unscaled_gradient() -> None:
    torch.manual_seed(0)
    gradient = torch.randn(1000)
    for name in ("fp32", "fp16", "pure_bf16", "pure_fp16"):
        precision = Precision(name, "nearest", CPU)
        scale = precision.scale.value if precision.scale else 1.0
        p = nn.Parameter(torch.zeros(1000, dtype=torch.bfloat16 if name == "pure_bf16" else torch.float32))
        p.grad = (gradient * scale / 100).to(p.dtype)
        optimizers = precision.wrap([torch.optim.SGD([p], lr=1.0)])
        norm = precision.clip([p], optimizers, 0.1, seed=0)
        assert norm.item() == pytest.approx(gradient.norm().item() / 100, rel=5e-3)
        optimizers[0].step()
        assert p.detach().float().norm().item() == pytest.approx(0.1, rel=5e-3)


@pytest.mark.slow
@pytest.mark.parametrize("precision", [p for p in PRECISIONS if p not in ("fp32", "tf32")])
def test_training_in_each_precision(data: Path, fp32: Result, tmp_path: Path, precision: str) -> None:
    """Ten steps end near fp32's; what is said and stored names the precision."""
    rounding = "nearest" if precision == "pure_fp16" else "stochastic"
    result = train(tiny_config(data, tmp_path / "other", precision=precision, rounding=rounding, **SMALL))
    assert result.losses[0] == pytest.approx(fp32.losses[0], abs=0.02)
    assert result.losses[-1] == pytest.approx(fp32.losses[-1], abs=0.15)
    assert result.losses != fp32.losses
    weights = [p.detach() for p in result.model.parameters()]
    assert {w.dtype for w in weights} == {torch.bfloat16 if precision == "pure_bf16" else torch.float32}
    if precision == "pure_fp16":
        assert all(torch.equal(w, w.half().float()) for w in weights)
    assert "emulated" in str(Precision("pure_fp16", "nearest", CPU))


def test_an_overflow_skips_the_step_and_halves_the_scale(data: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LossScale, "__init__", lambda self: self.__dict__.update(value=2.0**24, good_steps=0))
        result = train(tiny_config(data, tmp_path / "run", precision="pure_fp16", max_steps=24, lr=1e-2, **SMALL))
    assert np.isfinite(result.losses).all()
    assert result.losses[1] == pytest.approx(result.losses[0], abs=0.2)  # nothing was learnt: the first steps overflow
    assert result.losses[-1] < result.losses[0] - 0.2
    from minilm.training.checkpoint import read_state

    assert read_state(result.checkpoint)["precision"]["scale"][0] < 2.0**24


@pytest.mark.slow
@pytest.mark.parametrize("changes", [
    {"precision": "pure_bf16", "rounding": "stochastic"}, {"precision": "pure_bf16", "rounding": "kahan"},
    {"precision": "pure_fp16", "optimizer": "adafactor", "resid_dropout": 0.1}, {"precision": "fp16"},
])  # fmt: skip
def test_resume_is_bit_exact(data: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    changes = changes | SMALL | {"save_every_steps": 0, "schedule": "constant"}
    config = tiny_config(data, tmp_path / "whole", max_steps=6, micro_batch_size=4, **changes)
    whole = train(config)
    broken = replace(config, out_dir=str(tmp_path / "broken"))
    train(replace(broken, max_steps=3))
    resumed = train(replace(broken, existing="resume"))
    assert resumed.losses == whole.losses[3:]
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)
