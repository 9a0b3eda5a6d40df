"""Linear layers of a model that reads much text in bf16 on a CPU: oneDNN's, their weights rounded and laid out once.

Autocast rounds every weight again for each batch, adds biases in a pass of their own and computes GELU in another: a
fifth of a batch's time (docs/performance-log.md). What is computed is the same: products of bf16 summed in fp32.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilm.decoding.fused import with_linears
from minilm.model.gpt import GPT, Block
from minilm.model.layers import MLP, gelu_tanh

AFTER: dict[Any, tuple[str, list[float], str]] = {gelu_tanh: ("gelu", [], "tanh"), F.gelu: ("gelu", [], "none")}
"""What oneDNN applies to a product before it is stored, and its names of them. Its relu would make 0 of NaN."""


class Linear(nn.Module):
    """x (..., in) -> (..., out) in bf16; `after` (of AFTER) is applied to it. n_rows: about how many are read."""

    def __init__(self, weight: Tensor, bias: Tensor | None, n_rows: int) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().bfloat16(), n_rows)
        self.bias = None if bias is None else bias.detach().bfloat16()
        self.after: tuple[str, list[float], str] = ("none", [], "")

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x.bfloat16(), self.weight, self.bias, *self.after)
        return y


class Packed:
    """A model's blocks and head with such layers; everything else is shared with it. They do not see weights change."""

    def __init__(self, model: GPT, n_rows: int) -> None:
        self.blocks = [_packed(block, n_rows) if isinstance(block, Block) else block for block in model.h]
        self.table, self.proj = Linear(model.head_rows(), None, n_rows), _packed(model.head_proj, n_rows)

    def logits(self, model: GPT, x: Tensor) -> Tensor:
        """x (N, D) -> logits of the rows in use (N, V)."""
        return model.finish_logits(self.table(self.proj(x)))


def packs(model: GPT, precision: str) -> bool:
    """Whether this processor multiplies bf16 itself, and the model is read in it."""
    ours = type(model) is GPT and model.device.type == "cpu" and precision == "bf16"
    return ours and torch.backends.mkldnn.is_available() and torch.cpu._is_avx512_bf16_supported()


def _packed(module: Any, n_rows: int) -> Any:
    new = with_linears(module, lambda layer: Linear(layer.weight, layer.bias, n_rows))
    mlp = getattr(new, "mlp", None)
    if type(mlp) is MLP and mlp.act in AFTER and type(mlp.c_fc) is Linear:
        mlp.c_fc.after, mlp.act = AFTER[mlp.act], nn.Identity()
    return new
