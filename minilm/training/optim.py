"""Parameter groups, optimizers, and learning rates as pure functions of the step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from minilm.config import TrainConfig

# --- schedules: (share of the run done after warmup, in [0, 1]) -> factor between 1 and final


def cosine(done: float, final: float) -> float:
    """final + (1 - final) * (1 + cos(pi * done)) / 2 (Loshchilov & Hutter 2017, without restarts)."""
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * done))


def linear(done: float, final: float) -> float:
    """1 - (1 - final) * done."""
    return 1.0 - (1.0 - final) * done


def constant(done: float, final: float) -> float:
    """1, whatever final is."""
    return 1.0


SCHEDULES: dict[str, Callable[[float, float], float]] = {"cosine": cosine, "linear": linear, "constant": constant}


def lr_factor(step: int, config: TrainConfig) -> float:
    """Factor on every peak rate at `step` (0 is the first): linear warmup, then the schedule.

    The first step has 1 / warmup_steps of the peak, not zero; the last step of the run has final_lr_share.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    last = max(config.max_steps - 1 - config.warmup_steps, 1)
    done = min((step - config.warmup_steps) / last, 1.0)
    return SCHEDULES[config.schedule](done, config.final_lr_share)


# --- parameter groups


def split_parameters(model: nn.Module) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """Trainable parameters by how they are treated, each in exactly one group.

    matrices: weights of linear layers inside blocks (decayed, muon's); tables: embeddings, positions and head
    (decayed); vectors: biases and norms (not decayed).
    """
    groups: dict[str, list[tuple[str, nn.Parameter]]] = {"matrices": [], "tables": [], "vectors": []}
    for name, p in model.named_parameters():
        if p.requires_grad:
            kind = "vectors" if p.dim() < 2 else "matrices" if name.startswith("h.") else "tables"
            groups[kind].append((name, p))
    counted = sum(p.numel() for group in groups.values() for _, p in group)
    assert counted == sum(p.numel() for p in model.parameters() if p.requires_grad)
    return groups


def build_optimizers(model: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """The optimizers that share the model's parameters between them; every group carries its peak rate as `peak_lr`."""
    groups = {kind: [p for _, p in pairs] for kind, pairs in split_parameters(model).items()}
    build = OPTIMIZERS[config.optimizer]
    optimizers = build(groups, config)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def _adamw(groups: dict[str, list[nn.Parameter]], config: TrainConfig) -> list[torch.optim.Optimizer]:
    """AdamW (Loshchilov & Hutter 2019), torch's fused kernel."""
    decayed = groups["matrices"] + groups["tables"]
    parts = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": groups["vectors"], "weight_decay": 0.0},
    ]
    parts = [part for part in parts if part["params"]]
    betas = (config.beta1, config.beta2)
    return [torch.optim.AdamW(parts, lr=config.lr, betas=betas, eps=config.eps, fused=True)] if parts else []


def _muon(groups: dict[str, list[nn.Parameter]], config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Muon (Jordan 2024), torch's own, on the matrices of blocks; AdamW on tables and vectors.

    Updates are scaled to AdamW's size (Liu 2025, section 2.2), so that one peak rate serves both.
    """
    rest = _adamw({**groups, "matrices": []}, config)
    if not groups["matrices"]:
        return rest
    muon = torch.optim.Muon(
        groups["matrices"], lr=config.lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    return [muon, *rest]


OPTIMIZERS: dict[str, Callable[[dict[str, list[nn.Parameter]], TrainConfig], list[torch.optim.Optimizer]]] = {
    "adamw": _adamw,
    "muon": _muon,
}


def set_rates(optimizers: list[torch.optim.Optimizer], factor: float) -> None:
    """Sets every group's rate to factor times its peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = factor * group["peak_lr"]


# --- state by parameter name, so that it survives a change in the order of modules


def optimizer_state(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, dict[str, Any]]:
    """name of parameter -> its optimizer's state (tensors and numbers)."""
    names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
    return {names[p]: dict(state) for optimizer in optimizers for p, state in optimizer.state.items()}


def load_optimizer_state(
    model: nn.Module, optimizers: list[torch.optim.Optimizer], saved: dict[str, dict[str, Any]]
) -> None:
    """Puts back what `optimizer_state` gave. Raises ValueError where it belongs to other parameters."""
    names = {p: name for name, p in model.named_parameters()}
    left = dict(saved)
    for optimizer in optimizers:
        whole = optimizer.state_dict()
        order = [p for group in optimizer.param_groups for p in group["params"]]
        whole["state"] = {i: left.pop(names[p]) for i, p in enumerate(order) if names[p] in left}
        for i, state in whole["state"].items():
            for key, value in state.items():
                # AdamW's step count is a 0-dimensional tensor beside moments of the parameter's shape.
                if isinstance(value, Tensor) and value.dim() and value.shape != order[i].shape:
                    raise ValueError(f"{key} of {names[order[i]]} has shape {tuple(value.shape)}")
        optimizer.load_state_dict(whole)
    if left:
        raise ValueError(f"state of parameters that are not trained: {', '.join(sorted(left)[:3])}")
