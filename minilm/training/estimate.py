"""Bytes that a training step takes, from shapes alone, and what to change when they are not there.

Activations are no formula: a forward pass runs on fake tensors (shapes without memory), and what autograd would keep is
added up. Kernels' own scratch memory and fragmentation are not in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from minilm.config import GPTConfig, TrainConfig
from minilm.errors import MinilmError
from minilm.model import geometry
from minilm.model.gpt import GPT
from minilm.model.lora import add as add_adapters
from minilm.training.optim import split_parameters
from minilm.training.precision import STORED, autocast

GIB = 1 << 30
# Moments of a parameter's size that an optimizer keeps; adafactor's rows and columns are counted apart.
MOMENTS = {"adamw": 2, "adam": 2, "sgd": 1, "adagrad": 1, "rmsprop": 1, "lion": 1, "adafactor": 0}


@dataclass(frozen=True)
class Memory:
    """Bytes of a step."""

    weights: int
    gradients: int
    optimizer: int
    activations: int  # what the backward pass of one micro-batch needs

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations

    def __str__(self) -> str:
        parts = ("weights", "gradients", "optimizer", "activations")
        told = ", ".join(f"{name} {getattr(self, name) / GIB:.2g}" for name in parts)
        return f"{self.total / GIB:.2g} GiB ({told})"


def memory(
    model: GPT, config: TrainConfig, precision: str, micro_batch_size: int, head: bool = True, card: bool = False
) -> Memory:
    """What a step of `config` takes on one device; what is frozen has neither gradient nor optimizer state. head:
    whether activations hold all logits."""
    width = 2 if precision in STORED else 4
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    rest = 2 * trained if precision in STORED and config.rounding == "kahan" else 0
    frozen = tuple(name for name, p in model.named_parameters() if not p.requires_grad)
    lora = (config.lora_targets, config.lora_rank, config.lora_alpha, config.lora_dropout) if config.lora_rank else ()
    return Memory(
        weights=width * sum(p.numel() for p in model.parameters()),
        gradients=width * trained,
        optimizer=width * optimizer_numbers(model, config) + rest,
        activations=kept_for_backward(
            model.config, precision, config.recompute, micro_batch_size, lora, frozen, head, card
        ),
    )


def optimizer_numbers(model: nn.Module, config: TrainConfig) -> int:
    """Numbers that the optimizer keeps beside the weights, step counts aside."""
    held = 0
    for kind, pairs in split_parameters(model).items():
        for _, p in pairs:
            name = config.optimizer
            if name == "muon":
                held += p.numel() * (1 if kind == "matrices" else 2)
            elif name == "sgd":
                held += p.numel() if config.momentum else 0
            elif name == "adafactor":
                held += (p.numel() // p.shape[-1] + p.numel() // p.shape[-2]) if p.dim() > 1 else p.numel()
                held += p.numel() if config.adafactor_first_moment else 0
            else:
                held += p.numel() * MOMENTS[name]
    return held


@lru_cache(maxsize=64)
def kept_for_backward(
    config: GPTConfig,
    precision: str,
    recompute: bool,
    n_sequences: int,
    lora: tuple[Any, ...] = (),
    frozen: tuple[str, ...] = (),
    head: bool = True,
    card: bool = False,
) -> int:
    """Bytes of the tensors that autograd keeps of one micro-batch's cross-entropy, parameters aside. lora: targets,
    rank, alpha and dropout of adapters, whose dropped inputs are kept too. frozen: parameters whose layers need not
    keep what they read. head: else up to what the head reads. card: attention and RMS norms are kernels."""
    kept: dict[int, int] = {}
    alive: list[Tensor] = []

    def pack(x: Tensor) -> Tensor:
        kept[x.untyped_storage()._cdata] = x.untyped_storage().nbytes()
        alive.append(x)  # an address is not used again while its tensor lives
        return x

    with FakeTensorMode():
        with _default_dtype(STORED.get(precision, torch.float32)):
            model = GPT(config)
            if lora:
                add_adapters(model, *lora)
        for name, p in model.named_parameters():
            p.requires_grad_(name not in frozen)
        ids = torch.zeros(n_sequences, config.block_size, dtype=torch.long)
        blocks = [partial(checkpoint, block, use_reentrant=False) for block in model.h] if recompute else None
        watched = torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x)
        with _by_kernel(card), watched, autocast("cpu", precision):
            _ = model.loss(ids, ids, reduction="sum", blocks=blocks) if head else model.hidden(ids, blocks=blocks)
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    return sum(n_bytes for address, n_bytes in kept.items() if address not in weights)


class _RMSNorm(torch.autograd.Function):
    """What a card's kernel keeps: its input, its weight, a number a row. A CPU's parts keep the input twice in fp32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight, x[..., :1].float())
        return torch.empty_like(x)


def _rms_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    y: Tensor = _RMSNorm.apply(input, weight)
    return y


@contextmanager
def _by_kernel(card: bool) -> Iterator[None]:
    """Fake tensors are a CPU's, where short attention is by hand and an RMS norm in parts; a card has kernels."""
    before = geometry.CPU_BY_HAND_TOKENS, F.rms_norm
    if card:
        geometry.CPU_BY_HAND_TOKENS = 0
        F.rms_norm = _rms_norm
    try:
        yield
    finally:
        geometry.CPU_BY_HAND_TOKENS, F.rms_norm = before


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def advice(model: GPT, config: TrainConfig, precision: str, micro_batch_size: int) -> Iterator[None]:
    """Turns running out of memory into a MinilmError that says what a step takes, and what it would with less."""
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise MinilmError(advise(model, config, precision, micro_batch_size)) from None


def advise(model: GPT, config: TrainConfig, precision: str, micro_batch_size: int) -> str:
    """What a step takes, and by how much each remedy lowers it."""
    now = memory(model, config, precision, micro_batch_size)
    remedies: list[tuple[str, Memory]] = []
    if micro_batch_size > 1:
        half = max(n for n in range(1, micro_batch_size // 2 + 1) if micro_batch_size % n == 0)
        remedies.append((f"--micro_batch_size {half}", memory(model, config, precision, half)))
    if not config.recompute:
        again = replace(config, recompute=True)
        remedies.append(("--recompute true", memory(model, again, precision, micro_batch_size)))
    if config.optimizer != "adafactor":
        light = replace(config, optimizer="adafactor", adafactor_first_moment=False)
        remedies.append(("--optimizer adafactor", memory(model, light, precision, micro_batch_size)))
    told = "; ".join(f"{option}: {there.total / GIB:.2g} GiB" for option, there in remedies if there.total < now.total)
    return f"out of memory: a step with {micro_batch_size} sequences at once takes about {now}; less: {told or 'none'}"
