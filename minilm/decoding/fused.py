"""GPT-2's block for one token of each row in one call of rows.cpp: norms, products, attention, GELU.

Between the products, Python and torch's small kernels took as long as int8 products do (docs/performance-log.md).
Blocks with another component, longer inputs and everything that needs a mask go through the model's own code.

B batch (rows), D width.
"""

from __future__ import annotations

import copy
import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from minilm.config import GPTConfig
from minilm.model.cache import Cache
from minilm.model.geometry import Geometry
from minilm.model.gpt import Attention, Block
from minilm.model.layers import MLP, LayerNorm, gelu_tanh


class Linear(ctypes.Structure):
    """rows.cpp's: addresses of a weight, its rows' scales, its bias."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("weight", "scale", "bias")]


class _Block(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("norm_1", "norm_1_bias", "norm_2", "norm_2_bias")),
        *((name, Linear) for name in ("qkv", "proj", "fc", "out")),
        *((name, ctypes.c_long) for name in ("D", "H", "F")),
        ("eps", ctypes.c_float),
    ]


class Fused:
    """A block whose linear layers are `rows.Rows`, called as the block is."""

    def __init__(self, block: Any, config: GPTConfig, call: Callable[..., None]) -> None:
        self.block, self.config, self.call = block, config, call
        self.norms = [t for norm in (block.ln_1, block.ln_2) for t in (norm.weight, norm.bias)]  # kept: C++ reads them
        addresses = [None if t is None else t.data_ptr() for t in self.norms]
        layers = [layer.fixed for layer in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj)]
        sizes = config.n_embd, config.n_head, config.inner_width
        self.fixed = _Block(*addresses, *layers, *sizes, config.norm_eps)

    def __call__(self, x: Tensor, layer: int, geometry: Geometry, cache: Cache | None) -> Tensor:
        """x (B, 1, D) -> (B, 1, D); keys and values go into the cache."""
        if cache is None or x.shape[1] != 1 or cache.keys.dtype != torch.float32:
            y: Tensor = self.block(x, layer, geometry, cache)
            return y
        B, c, starts = len(x), self.config, None if cache.starts is None else cache.starts.long().contiguous()
        x, y = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
        scratch = x.new_empty(B * (6 * c.n_embd + c.inner_width))
        self.call(
            ctypes.addressof(self.fixed),
            *(t.data_ptr() for t in (x, y, scratch, cache.keys[layer], cache.values[layer])),
            None if starts is None else starts.data_ptr(),
            c.score_scale(layer),
            B,
            cache.length,
            cache.max_tokens,
        )
        return y


def hooked(module: nn.Module) -> bool:
    """Whether something listens to the module's calls."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def with_linears(module: Any, made: Callable[[nn.Linear], nn.Module]) -> Any:
    """The module, as it evaluates, with what is made of it in place of every plain linear layer; all else is shared."""
    if isinstance(module, nn.Linear):
        return made(module) if type(module) is nn.Linear and not hooked(module) else module
    new = copy.copy(module)
    new.training = False
    new._modules = {name: child and with_linears(child, made) for name, child in module._modules.items()}
    return new


def is_gpt2(block: Any) -> bool:
    """Whether a block is of GPT-2's form, with linear layers of any kind, and nothing listens to it."""
    if not (type(block) is Block and type(block.attn) is Attention and type(block.mlp) is MLP):
        return False
    c = block.attn.config
    plain = c.position in ("learned", "sinusoidal", "none") and not (c.qk_norm or c.window)
    between = (block.ln_1_out, block.ln_1_post, block.ln_2_out, block.ln_2_post)
    norms = type(block.ln_1) is type(block.ln_2) is LayerNorm and all(isinstance(m, nn.Identity) for m in between)
    same = block.mlp.act is gelu_tanh and c.kv_heads == c.n_head and not any(map(hooked, block.modules()))
    return plain and norms and same


def fused(block: Any, config: GPTConfig, call: Callable[..., None]) -> Any:
    """The block as one call where it is GPT-2's, in fp32 apart from the weights of products; else the block itself."""
    if not is_gpt2(block) or block.attn.c_attn.weight.dtype != torch.float32:
        return block
    layers = (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj)
    return Fused(block, config, call) if all(hasattr(layer, "fixed") for layer in layers) else block
