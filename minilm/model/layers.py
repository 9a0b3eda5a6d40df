"""The parts of a block, and the registries that name them.

- Off is a module: `nn.Identity` for a norm, `Nothing` for attention or feed-forward.
- Norms obey `norm_scale` and `norm_bias` alike, so that a switched norm keeps a pretrained model's tensors.
- Positions share three hooks: a vector added to the embedding, a turn of q and k, a bias on the scores.

B batch, T tokens, S tokens seen by attention (cached ones included), C or D width, H heads, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilm.config import GPTConfig


class Nothing(nn.Module):
    """A branch that adds nothing: zeros in the shape of its input."""

    def forward(self, x: Tensor, *_: object) -> Tensor:
        return torch.zeros_like(x)


# --- norms: x (..., width) -> the same shape


class _Norm(nn.Module):
    def __init__(self, width: int, config: GPTConfig) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.weight = nn.Parameter(torch.ones(width)) if config.norm_scale else None
        self.bias = nn.Parameter(torch.zeros(width)) if config.norm_bias else None

    def widen(self, x: Tensor) -> Tensor:
        """x in the parameters' precision: no kernel takes the bf16 that autocast's branches hand over beside fp32."""
        own = self.bias if self.weight is None else self.weight
        return x if own is None else x.to(own.dtype)


class LayerNorm(_Norm):
    """w * (x - mean) / sqrt(var + eps) + b (Ba 2016)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(self.widen(x), x.shape[-1:], self.weight, self.bias, self.eps)


class RMSNorm(_Norm):
    """w * x / sqrt(mean(x^2) + eps) + b (Zhang & Sennrich 2019; without b: `norm_bias=False`)."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.rms_norm(self.widen(x), x.shape[-1:], self.weight, self.eps)
        return y if self.bias is None else y + self.bias


class DynamicTanh(_Norm):
    """w * tanh(alpha * x) + b with one learned alpha, no statistics (Zhu 2025)."""

    def __init__(self, width: int, config: GPTConfig) -> None:
        super().__init__(width, config)
        self.alpha = nn.Parameter(torch.full((1,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.alpha * x)
        y = y if self.weight is None else y * self.weight
        return y if self.bias is None else y + self.bias


class FixedNorm(LayerNorm):
    """w * (x - mean) / std + b: layernorm until `std` is set, then linear (Heimersheim 2024, section 2; `surgery`)."""

    std: Tensor

    def __init__(self, width: int, config: GPTConfig) -> None:
        super().__init__(width, config)
        self.register_buffer("std", torch.zeros(1))  # 0: the deviation of each x

    def split(self) -> FixedNorm:
        """From now on x (B, T, width) -> (2, B, T, width): what queries and keys read, and what values do."""
        self.std = torch.zeros(2, 1, 1, 1)
        return self

    def forward(self, x: Tensor) -> Tensor:
        x = self.widen(x)
        x = x - x.mean(dim=-1, keepdim=True)
        y = x / torch.where(self.std > 0, self.std, self.deviation(x))
        y = y if self.weight is None else y * self.weight
        return y if self.bias is None else y + self.bias

    def deviation(self, centred: Tensor) -> Tensor:
        """What layernorm divides by: (..., width), less its mean -> (..., 1)."""
        return (centred.square().mean(dim=-1, keepdim=True) + self.eps).sqrt()


class NoNorm(nn.Identity):
    """The input itself."""


def is_norm(module: nn.Module) -> bool:
    """Whether it is a norm with parameters, on the residual stream or on queries and keys."""
    return isinstance(module, _Norm | HeadNorm)


NORMS: dict[str, Callable[[int, GPTConfig], nn.Module]] = {
    "layernorm": LayerNorm,
    "rmsnorm": RMSNorm,
    "dyt": DynamicTanh,
    "fixed": FixedNorm,
    "none": NoNorm,
}


class HeadNorm(nn.Module):
    """RMS norm over each head's width with a learned scale: `qk_norm` (Henry 2020; RMS form as in OLMo 2)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), self.eps)


# --- positions


class NoPosition(nn.Module):
    """Order is only what causality tells (Haviv 2022). Base of the others: every hook is neutral."""

    max_tokens: float = math.inf

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, positions: Tensor) -> Tensor | float:
        """What is added to the embedding: positions (T,) or (B, T) -> (..., D)."""
        return 0.0

    def rotation(self, positions: Tensor) -> tuple[Tensor, Tensor] | None:
        """Cosines and sines that turn q and k, each (1 or B, 1, T, head width)."""
        return None

    def slopes(self, device: torch.device) -> Tensor | None:
        """(H, 1, 1): how fast each head's scores fall with distance."""
        return None


class LearnedPosition(NoPosition):
    """A table of block_size rows (GPT-2's wpe). Longer sequences have no row: an error."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.max_tokens = config.block_size
        self.weight = nn.Parameter(torch.empty(config.block_size, config.n_embd))

    def forward(self, positions: Tensor) -> Tensor:
        return F.embedding(positions, self.weight)


class SinusoidalPosition(NoPosition):
    """sin and cos of p / 10000^(2i/D), interleaved (Vaswani 2017), scaled by init_std * sqrt(2).

    Unscaled, their size (0.7 root mean square) would drown token embeddings that begin at init_std.
    """

    def forward(self, positions: Tensor) -> Tensor:
        D = self.config.n_embd
        angles = positions[..., None].float() * _frequencies(D + D % 2, 10000.0, positions.device)
        table = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)[..., :D]
        return table * (self.config.init_std * math.sqrt(2.0))


class RotaryPosition(NoPosition):
    """q and k turn by an angle that grows with position, so scores see distance only (Su 2021; halves, not pairs)."""

    def rotation(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        c = self.config
        angles = positions[..., None].float() * _frequencies(c.head_width, c.rope_base, positions.device)
        angles = torch.cat((angles, angles), dim=-1)
        angles = angles[None, None] if positions.dim() == 1 else angles[:, None]
        return angles.cos(), angles.sin()


class AlibiPosition(NoPosition):
    """Scores fall by slope * distance, slopes a geometric series over the heads (Press 2021)."""

    def slopes(self, device: torch.device) -> Tensor:
        H = self.config.n_head
        power = 2 ** math.floor(math.log2(H))
        series = [2.0 ** (-8.0 * (i + 1) / power) for i in range(power)]
        # Heads beyond a power of two take every second slope of the next finer series, as the paper's code does.
        series += [2.0 ** (-4.0 * (2 * i + 1) / power) for i in range(H - power)]
        return torch.tensor(series, device=device)[:, None, None]


POSITIONS: dict[str, type[NoPosition]] = {
    "learned": LearnedPosition,
    "sinusoidal": SinusoidalPosition,
    "rope": RotaryPosition,
    "alibi": AlibiPosition,
    "none": NoPosition,
}


def _frequencies(width: int, base: float, device: torch.device) -> Tensor:
    return base ** (-torch.arange(0, width, 2, device=device).float() / width)


def turn(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotates x (B, H, T, head width): element i pairs with i + width / 2."""
    cos, sin = rotation
    left, right = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-right, left), dim=-1) * sin).to(x.dtype)


# --- feed-forwards: x (B, T, D) -> (B, T, D)


def gelu_tanh(x: Tensor) -> Tensor:
    """GPT-2's GELU: 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) (Hendrycks & Gimpel 2016)."""
    if x.is_cuda and torch.compiler.is_compiling():  # 1 + tanh(u) = 2 sigmoid(2u); the compiled tanh is half as fast
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return (wide * torch.sigmoid(1.5957691216057308 * (wide + 0.044715 * wide**3))).to(x.dtype)
    return F.gelu(x, approximate="tanh")


def gelu_quick(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x) (Hendrycks & Gimpel 2016; CLIP)."""
    return x * torch.sigmoid(1.702 * x)


def gelu_fast(x: Tensor) -> Tensor:
    """GPT-2's GELU factored as 0.5 x (1 + tanh(0.7978845608 x (1 + 0.044715 x^2))), sqrt(2 / pi) to ten digits."""
    return 0.5 * x * (1.0 + torch.tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x)))


def relu2(x: Tensor) -> Tensor:
    """relu(x)^2 (So 2021)."""
    return F.relu(x).square()


class MLP(nn.Module):
    """c_proj(act(c_fc(x)))."""

    def __init__(self, config: GPTConfig, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, config.inner_width, bias=config.mlp_bias)
        self.c_proj = nn.Linear(config.inner_width, config.n_embd, bias=config.mlp_bias)
        self.dropout = nn.Dropout(config.resid_dropout)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.c_proj(self.act(self.c_fc(x))))


class GatedMLP(MLP):
    """c_proj(act(c_gate(x)) * c_fc(x)) (Shazeer 2020). At equal n_inner it has half as many parameters again."""

    def __init__(self, config: GPTConfig, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__(config, act)
        self.c_gate = nn.Linear(config.n_embd, config.inner_width, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.c_proj(self.act(self.c_gate(x)) * self.c_fc(x)))


ACTIVATIONS: dict[str, tuple[type[MLP], Callable[[Tensor], Tensor]]] = {
    "gelu_tanh": (MLP, gelu_tanh),
    "gelu": (MLP, F.gelu),
    "gelu_quick": (MLP, gelu_quick),
    "gelu_fast": (MLP, gelu_fast),
    "relu": (MLP, F.relu),
    "relu2": (MLP, relu2),
    "silu": (MLP, F.silu),
    "tanh": (MLP, torch.tanh),
    "swiglu": (GatedMLP, F.silu),
    "geglu": (GatedMLP, F.gelu),
    "reglu": (GatedMLP, F.relu),
}


def feed_forward(config: GPTConfig) -> MLP:
    """The feed-forward that the config's activation asks for."""
    kind, act = ACTIVATIONS[config.activation]
    return kind(config, act)
