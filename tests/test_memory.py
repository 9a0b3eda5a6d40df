"""Estimates against what real tensors take; recomputed activations against kept ones; out of memory told in numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training_helpers import tiny_config

from minilm.config import Optimizer, TrainConfig
from minilm.errors import MinilmError
from minilm.model import lora
from minilm.model.gpt import GPT
from minilm.training import loop
from minilm.training.estimate import kept_for_backward, memory, optimizer_numbers
from minilm.training.loop import train
from minilm.training.optim import OPTIMIZERS, build_optimizers, optimizer_state
from minilm.training.setup import CUDA_SHARE, micro_batch_size

MODEL = replace(tiny_config(Path("x"), Path("y")).model, vocab_size=300)


def really_kept(model: GPT, n_sequences: int) -> int:
    """Bytes of real saved tensors, each storage once, the model's own aside."""
    seen: dict[int, Tensor] = {}

    def note(x: Tensor) -> Tensor:
        seen[x.untyped_storage().data_ptr()] = x
        return x

    ids = torch.zeros(n_sequences, model.config.block_size, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        loss = model.loss(ids, ids, reduction="sum")
    own = {p.data_ptr() for p in model.parameters()}
    assert loss.requires_grad
    return sum(x.untyped_storage().nbytes() for address, x in seen.items() if address not in own)


@pytest.mark.parametrize("changes", [{}, {"norm": "rmsnorm", "activation": "swiglu", "position": "rope"}])
@pytest.mark.parametrize("n_sequences", [1, 6])
def test_activations_are_those_of_a_real_pass(changes: dict[str, Any], n_sequences: int) -> None:
    config = replace(MODEL, **changes)
    estimate = kept_for_backward(config, "fp32", False, n_sequences)
    assert estimate == pytest.approx(really_kept(GPT(config), n_sequences), rel=0.1)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_activations_of_adapters_are_those_of_a_real_pass(dropout: float) -> None:
    """Dropped inputs are copies, one an adapted matrix: half as much again where there is dropout."""
    adapters = (("attention", "mlp"), 4, 8.0, dropout)
    model = GPT(MODEL)
    lora.add(model, *adapters)
    for name, p in model.named_parameters():
        p.requires_grad_(".lora_" in name)
    frozen = tuple(name for name, p in model.named_parameters() if not p.requires_grad)
    estimate = kept_for_backward(MODEL, "fp32", False, 4, adapters, frozen)
    assert estimate == pytest.approx(really_kept(model, 4), rel=0.02)
    assert (estimate > 1.15 * kept_for_backward(MODEL, "fp32", False, 4, (*adapters[:3], 0.0), frozen)) == bool(dropout)


def test_frozen_layers_keep_less() -> None:
    model = GPT(MODEL)
    for name, p in model.named_parameters():
        p.requires_grad_("norm" in name or "ln_" in name)
    frozen = tuple(name for name, p in model.named_parameters() if not p.requires_grad)
    assert 0 < len(frozen) < len(list(model.parameters()))
    estimate = kept_for_backward(MODEL, "fp32", False, 4, (), frozen)
    assert estimate == pytest.approx(really_kept(model, 4), rel=0.02)
    assert estimate < 0.9 * kept_for_backward(MODEL, "fp32", False, 4)


def test_recomputing_and_16_bits_take_less() -> None:
    config = replace(MODEL, n_layer=6)
    kept = {(p, r): kept_for_backward(config, p, r, 4) for p in ("fp32", "pure_bf16") for r in (False, True)}
    assert kept["fp32", True] < 0.4 * kept["fp32", False]
    assert kept["pure_bf16", False] < 0.7 * kept["fp32", False]


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_optimizer_state_is_what_a_step_makes(optimizer: Optimizer) -> None:
    for changes in ({}, {"momentum": 0.0, "adafactor_first_moment": True}):
        if optimizer == "muon" and changes:
            continue
        model, config = GPT(MODEL), replace(TrainConfig(), optimizer=optimizer, **changes)  # type: ignore[arg-type]
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizers = build_optimizers(model, config)
        for made in optimizers:
            made.step()
        values = [v for state in optimizer_state(model, optimizers).values() for v in state.values()]
        held = sum(v.numel() for v in values if isinstance(v, Tensor) and v.dim())
        assert optimizer_numbers(model, config) == held


def test_frozen_weights_cost_no_gradient() -> None:
    model = GPT(MODEL)
    whole = memory(model, TrainConfig(), "fp32", 1)
    model.wte.requires_grad_(False)
    less = memory(model, TrainConfig(), "fp32", 1)
    n = 4 * model.wte.weight.numel()
    assert (whole.gradients - less.gradients, whole.optimizer - less.optimizer) == (n, 2 * n)


def test_recomputing_changes_no_bit(data: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"max_steps": 3, "resid_dropout": 0.1, "eval_every_steps": 0}
    kept = train(tiny_config(data, tmp_path / "kept", **changes))
    again = train(tiny_config(data, tmp_path / "again", recompute=True, **changes))
    assert again.losses == kept.losses
    for a, b in zip(kept.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes"),
])  # fmt: skip
def test_out_of_memory_ends_in_numbers(data: Path, tmp_path: Path, error: RuntimeError) -> None:
    def full(*args: Any) -> None:
        raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train_step", full)
        with pytest.raises(MinilmError) as told:
            train(tiny_config(data, tmp_path / "run"))
    text = str(told.value)
    for part in ("with 8 sequences at once takes about", "--micro_batch_size 4: ", "--recompute true", "adafactor: "):
        assert part in text


def test_other_errors_pass(data: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train_step", lambda *a: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(tiny_config(data, tmp_path / "run"))


def test_micro_batches_fill_a_card_and_divide_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model, config = GPT(MODEL), replace(tiny_config(Path("x"), Path("y")), model=MODEL, batch_size=96)
    one = memory(model, config, "fp32", 1, card=True)
    fixed = one.gradients + one.optimizer
    for fit, chosen in ((0.5, 1), (1.5, 1), (7.9, 6), (8.1, 8), (500.0, 96)):
        free = int((fixed + fit * one.activations) / CUDA_SHARE)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 2 * free))
        assert micro_batch_size(config, model, "fp32", torch.device("cuda")) == chosen
    assert micro_batch_size(config, model, "fp32", torch.device("cuda"), world=4) == 24
    assert micro_batch_size(config, model, "fp32", torch.device("cpu")) == 96
