"""LoRA (Hu 2022): a linear layer keeps its weights frozen and learns a product of two thin matrices beside them.

The layer's parameters keep their names; A and B are `lora_A` and `lora_B` beside `weight`. Exported weights are merged.
An adapter alone is a folder in PEFT's layout, read and written here without PEFT.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilm.errors import UsageError
from minilm.model.freeze import select
from minilm.model.gpt import GPT

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
_PREFIX = "base_model.model.transformer."  # PEFT's, before GPT-2's own names
# What PEFT can do besides and this cannot: any other value than these is refused.
_PLAIN: dict[str, Any] = {"peft_type": "LORA", "bias": "none", "rank_pattern": {}, "alpha_pattern": {}}
_PLAIN |= {"modules_to_save": None, "layer_replication": None}
_PLAIN |= dict.fromkeys(("use_rslora", "use_dora", "lora_bias"), False)


class LoRALinear(nn.Linear):
    """W x + b + (alpha / rank) B A dropout(x). A (rank, in) starts as nn.Linear does, B (out, rank) at 0.

    Takes over the base layer's own parameters, not copies of them.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: float) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.rank, self.alpha = rank, alpha
        self.dropout = nn.Dropout(dropout)
        self.lora_A = nn.Parameter(base.weight.new_empty(rank, self.in_features))
        self.lora_B = nn.Parameter(base.weight.new_zeros(self.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        beside = F.linear(F.linear(self.dropout(x), self.lora_A), self.lora_B)
        return F.linear(x, self.weight, self.bias) + (self.alpha / self.rank) * beside

    def merged_weight(self) -> Tensor:
        """W + (alpha / rank) B A, summed in fp32 at least."""
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        change = self.lora_B.to(wide) @ self.lora_A.to(wide)
        return (self.weight.to(wide) + (self.alpha / self.rank) * change).to(self.weight.dtype)


def layers(model: nn.Module) -> dict[str, LoRALinear]:
    """The layers that have an adapter, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def add(model: GPT, targets: Sequence[str], rank: int, alpha: float, dropout: float = 0.0) -> None:
    """Puts an adapter on every linear layer in a block whose weight the patterns match (see `freeze`), in place.

    Logits are unchanged until it is trained. Raises UsageError on a pattern that matches no such layer.
    """
    linear = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.startswith("h.")}
    chosen: set[str] = set()
    for pattern in targets:
        found = select(model, [pattern]) & linear
        if not found:
            raise UsageError(f"{pattern!r} matches no linear layer of a block: take attention, mlp or *.c_attn.*")
        chosen |= found
    if not chosen:
        raise UsageError("LoRA has no targets: take attention, mlp or names of layers")
    for name in sorted(chosen):
        _wrap(model, name.removesuffix(".weight"), rank, alpha, dropout)


def _wrap(model: nn.Module, name: str, rank: int, alpha: float, dropout: float) -> LoRALinear:
    parent, _, child = name.rpartition(".")
    base = model.get_submodule(name)
    assert isinstance(base, nn.Linear)
    layer = LoRALinear(base, rank, alpha, dropout)
    layer.train(base.training)
    setattr(model.get_submodule(parent), child, layer)
    return layer


def merged(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of the model without adapters that gives the same logits."""
    tensors = {name: tensor for name, tensor in model.state_dict().items() if ".lora_" not in name}
    with torch.no_grad():
        return tensors | {f"{name}.weight": layer.merged_weight() for name, layer in layers(model).items()}


# --- an adapter in a folder


def save(model: GPT, folder: Path, base: str = "") -> None:
    """Writes the adapters and their settings; base: what they belong on. Raises OSError when writing fails."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    found = layers(model)
    some = next(iter(found.values()))
    tensors = {}
    for name, layer in found.items():
        tensors[f"{_PREFIX}{name}.lora_A.weight"] = layer.lora_A.detach().cpu().contiguous()
        tensors[f"{_PREFIX}{name}.lora_B.weight"] = layer.lora_B.detach().cpu().contiguous()
    settings = _PLAIN | {
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": some.rank,
        "lora_alpha": some.alpha,
        "lora_dropout": some.dropout.p,
        "target_modules": [f"transformer.{name}" for name in found],
        "fan_in_fan_out": True,  # GPT-2's layers in transformers are Conv1D
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    try:
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(str(error)) from error
    (folder / CONFIG).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def load(model: GPT, folder: Path) -> None:
    """Puts a saved adapter, PEFT's too, on the model: into the adapters that are there, else into new ones.

    Raises UsageError where it is damaged, of another model, or does what LoRA as it stands here cannot.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS)
        rank, alpha, dropout = int(settings["r"]), float(settings["lora_alpha"]), float(settings["lora_dropout"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UsageError(f"{folder} holds no adapter that can be read: {error}") from None
    for key, value in _PLAIN.items():
        if settings.get(key, value) not in (value, value or None):
            raise UsageError(f"{folder / CONFIG} sets {key} to {settings[key]!r}, which minilm's LoRA does not have")
    names = {key.removeprefix(_PREFIX).rsplit(".", 2)[0] for key in tensors}
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if foreign := names - linear:
        raise UsageError(f"{folder} adapts {min(foreign)}, which this model does not have: name its own base")
    for name in sorted(names):
        layer = model.get_submodule(name)
        if not isinstance(layer, LoRALinear):
            layer = _wrap(model, name, rank, alpha, dropout)
        for own, kind in ((layer.lora_A, "lora_A"), (layer.lora_B, "lora_B")):
            saved = tensors.get(f"{_PREFIX}{name}.{kind}.weight")
            if saved is None or saved.shape != own.shape:
                raise UsageError(f"{folder}: {kind} of {name} is missing or of another shape than {tuple(own.shape)}")
            with torch.no_grad():
                own.copy_(saved)
