"""Parameter groups, the registry of optimizers, and optimizer state by parameter name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from minilm.config import TrainConfig
from minilm.training.muon import Muon
from minilm.training.optimizers import Adafactor, Lion

Group = dict[str, Any]  # of torch.optim: "params", "lr", "weight_decay"
Groups = dict[str, list[Group]]  # by kind of parameter

# --- parameter groups


def split_parameters(model: nn.Module) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """Trainable parameters by how they are treated, each of one kind.

    matrices: weights of linear layers inside blocks (decayed, muon's); tables: embeddings, positions and head
    (decayed); vectors: biases and norms (not decayed).
    """
    kinds: dict[str, list[tuple[str, nn.Parameter]]] = {"matrices": [], "tables": [], "vectors": []}
    for name, p in model.named_parameters():
        if p.requires_grad:
            kind = "vectors" if p.dim() < 2 else "matrices" if name.startswith("h.") else "tables"
            kinds[kind].append((name, p))
    return kinds


def parameter_groups(model: nn.Module, config: TrainConfig) -> Groups:
    """torch.optim's groups by kind: what is decayed, and each depth's rate."""
    decayed = {"matrices": ("matrices",), "tables": ("matrices", "tables"), "all": ("matrices", "tables", "vectors")}
    groups: Groups = {}
    for kind, pairs in split_parameters(model).items():
        decay = config.weight_decay if kind in decayed[config.decay_on] else 0.0
        by_rate: dict[float, list[nn.Parameter]] = {}
        for name, p in pairs:
            by_rate.setdefault(config.lr * config.layer_lr_decay ** layers_above(name, model), []).append(p)
        groups[kind] = [{"params": params, "lr": lr, "weight_decay": decay} for lr, params in by_rate.items()]
    return groups


def layers_above(name: str, model: nn.Module) -> int:
    """How many layers of weights lie between a parameter and the loss: 0 for the last norm and an untied head, 1 for
    the last block, blocks + 1 for embeddings and positions (Clark 2020, ELECTRA)."""
    n_blocks = sum(1 for _ in model.get_submodule("h").children())
    if name.startswith("h."):
        return n_blocks - int(name.split(".")[1])
    return 0 if name.startswith(("ln_f.", "lm_head.", "head_proj.")) else n_blocks + 1


def build_optimizers(model: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """The optimizers that share the model's parameters between them; every group carries its peak rate as `peak_lr`."""
    optimizers = [o for o in OPTIMIZERS[config.optimizer](parameter_groups(model, config), config) if o is not None]
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["peak_lr"] = group["lr"]
    held = [id(p) for o in optimizers for group in o.param_groups for p in group["params"]]
    trained = [id(p) for p in model.parameters() if p.requires_grad]
    assert sorted(held) == sorted(trained), "every trained parameter belongs to exactly one group"
    return optimizers


# --- optimizers: what shares out the groups by kind

Shared = list[torch.optim.Optimizer | None]


def _one(kind: Any, options: Callable[[TrainConfig], dict[str, Any]]) -> Callable[[Groups, TrainConfig], Shared]:
    """One optimizer on all groups."""
    return lambda groups, config: [_on(groups, kind, config, **options(config))]


def _adam(config: TrainConfig) -> dict[str, Any]:
    return {"betas": (config.beta1, config.beta2), "eps": config.eps, "fused": True}


def _sgd(config: TrainConfig) -> dict[str, Any]:
    # torch's fused kernel cannot have tensors with and without a momentum in one group, as unfreezing makes them, and
    # none that are spread over ranks.
    fused = not config.unfreeze_every_steps and config.parallel != "fsdp"
    return {"momentum": config.momentum, "nesterov": config.nesterov and config.momentum > 0, "fused": fused}


def _adafactor(config: TrainConfig) -> dict[str, Any]:
    beta1 = config.beta1 if config.adafactor_first_moment else None
    return {"beta1": beta1, "clip": config.adafactor_clip, "relative_step": config.adafactor_relative_step}


def _muon(groups: Groups, config: TrainConfig) -> Shared:
    """Muon on the matrices of blocks; AdamW on tables and vectors; one peak rate serves both."""
    options = {"momentum": config.momentum, "nesterov": config.nesterov}
    muon = _on({"matrices": groups["matrices"]}, Muon, config, **options)
    return [muon, *OPTIMIZERS["adamw"]({**groups, "matrices": []}, config)]


OPTIMIZERS: dict[str, Callable[[Groups, TrainConfig], Shared]] = {
    "adamw": _one(torch.optim.AdamW, _adam),  # Loshchilov & Hutter 2019
    # Of these weight_decay is L2, added to the gradient.
    "adam": _one(torch.optim.Adam, _adam),  # Kingma & Ba 2015
    "sgd": _one(torch.optim.SGD, _sgd),  # with momentum, Nesterov's or heavy ball
    "adagrad": _one(torch.optim.Adagrad, lambda config: {"eps": config.eps}),  # Duchi 2011
    "rmsprop": _one(torch.optim.RMSprop, lambda config: {"alpha": config.beta2, "eps": config.eps}),  # Hinton 2012
    "muon": _muon,
    "adafactor": _one(Adafactor, _adafactor),
    "lion": _one(Lion, lambda config: {"betas": (config.beta1, config.beta2)}),
}


def _on(groups: Groups, kind: Any, config: TrainConfig, **options: Any) -> torch.optim.Optimizer | None:
    """An optimizer on all groups, or None where there are none."""
    parts = [group for of_kind in groups.values() for group in of_kind]
    return kind(parts, lr=config.lr, **options) if parts else None


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
                # Moments have the parameter's shape, or Adafactor's rows and columns; a step count has none.
                shape = order[i].shape
                fitting = ((), shape, shape[:-1], (*shape[:-2], *shape[-1:]))
                if isinstance(value, Tensor) and tuple(value.shape) not in {tuple(s) for s in fitting}:
                    raise ValueError(f"{key} of {names[order[i]]} has shape {tuple(value.shape)}")
        optimizer.load_state_dict(whole)
    if left:
        raise ValueError(f"state of parameters that are not trained: {', '.join(sorted(left)[:3])}")
