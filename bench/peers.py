"""transformers' GPT-2, and a training step of anybody's model: what works.py and gpu.py set minilm beside."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from minilm.config import GPTConfig

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def transformers_gpt2(config: GPTConfig, compiled: bool, device: str = "cpu") -> tuple[torch.nn.Module, Loss]:
    """Their model of that shape with random weights and no dropout, and (ids, targets) -> mean loss."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    names = {"n_layer": config.n_layer, "n_head": config.n_head, "n_embd": config.n_embd}
    dropped = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    sizes = {"n_positions": config.block_size, "vocab_size": config.vocab_size}
    model: Any = GPT2LMHeadModel(GPT2Config(**names, **dropped, **sizes)).to(device).train()
    called = torch.compile(model) if compiled else model

    def loss_of(ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = called(ids).logits  # labels= would shift once more
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    return model, loss_of


def timed_steps(
    model: torch.nn.Module, loss_of: Loss, ids: torch.Tensor, n_steps: int, *, fused: bool, half: bool, each: int = 1
) -> tuple[list[float], float]:
    """Seconds of 2 + n_steps steps of forward, backward, clip, AdamW on ids (B, T + 1), and the last loss.

    half: autocast to bf16. each: steps that a card is given before it is waited for, after the first two; their mean
    counts.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, fused=fused)
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()  # nanoGPT's loss asks for rows in order
    seconds, value = [], 0.0
    for n in (1, 1, *([each] * (n_steps // each))):
        begin = time.perf_counter()
        for _ in range(n):
            with torch.autocast(ids.device.type, torch.bfloat16, enabled=half):
                loss = loss_of(inputs, targets)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        value = loss.item()  # waits for the device
        seconds.append((time.perf_counter() - begin) / n)
    return seconds, value


def median_after_two(seconds: list[float]) -> float:
    return sorted(seconds[2:])[(len(seconds) - 2) // 2]
