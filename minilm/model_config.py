"""Every setting of a model, as one frozen dataclass. Defaults are GPT-2 small.

Each toggle is one field with one registry (`model/layers.py`); a test holds the registries and the `Literal`s
below equal. Values are checked on construction, so a wrong one never reaches a tensor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from minilm.checks import check_each, check_fields
from minilm.errors import UsageError

Activation = Literal[
    "gelu_tanh", "gelu", "gelu_quick", "gelu_fast", "relu", "relu2", "silu", "tanh", "swiglu", "geglu", "reglu"
]
Norm = Literal["layernorm", "rmsnorm", "dyt", "fixed", "none"]
NormPosition = Literal["pre", "post", "sandwich"]
Position = Literal["learned", "sinusoidal", "rope", "alibi", "none"]
InitScheme = Literal["normal", "zero_proj"]


@dataclass(frozen=True)
class GPTConfig:
    """One decoder-only transformer. The untouched config is GPT-2 small (Radford 2019), 124,439,808 parameters."""

    n_layer: int = 12
    """Transformer blocks."""
    n_head: int = 12
    """Attention heads; must divide n_embd."""
    n_embd: int = 768
    """Width D of the residual stream."""
    block_size: int = 1024
    """Context T in tokens: the longest sequence a learned position table can see."""
    vocab_size: int = 50257
    """Rows V of the embedding. 0: the data's tokenizer decides when training starts."""
    vocab_used: int = 0
    """Rows in use, the rest masked in loss and sampling. 0: all (a small tokenizer in a large vocabulary sets it)."""
    vocab_multiple: int = 1
    """Pad the rows inside to a multiple of this, for speed; no output, file or count shows it."""

    activation: Activation = "gelu_tanh"
    """Feed-forward non-linearity; the gated ones add a second projection `c_gate`."""
    n_inner: int = 0
    """Feed-forward width. 0: 4 * n_embd."""
    norm: Norm = "layernorm"
    """Normalisation."""
    norm_position: NormPosition = "pre"
    """Where it sits: pre x + f(N(x)) (GPT-2), post N(x + f(x)), sandwich x + N(f(N(x)))."""
    norm_scale: bool = True
    """Norms learn a scale."""
    norm_bias: bool = True
    """Norms learn a bias."""
    norm_eps: float = 1e-5
    """Added to the variance (layernorm) or mean square (rmsnorm)."""
    final_norm: bool = True
    """A norm before the head."""
    embd_norm: bool = False
    """A norm on the embeddings (BLOOM)."""

    position: Position = "learned"
    """How order is told: a table, sinusoids, rotations of q and k, a bias on the scores, not at all."""
    rope_base: float = 10000.0
    """Base of rope's wavelengths."""
    attn_bias: bool = True
    """Biases in attention's projections."""
    mlp_bias: bool = True
    """Biases in the feed-forward's projections."""
    qk_norm: bool = False
    """RMS norm with a learned scale on queries and keys, per head."""
    n_kv_head: int = 0
    """Key/value heads, each shared by n_head / n_kv_head queries. 0: n_head; 1: multi-query."""
    window: int = 0
    """Tokens that attention sees back, itself included. 0: all."""
    attn_scale: bool = True
    """Scores are divided by the square root of the head width (HF: scale_attn_weights)."""
    attn_scale_by_layer: bool = False
    """Scores are divided by layer index + 1 too (HF: scale_attn_by_inverse_layer_idx)."""
    attn_upcast: bool = False
    """Scores and softmax in fp32 whatever the precision (HF: reorder_and_upcast_attn)."""

    logit_softcap: float = 0.0
    """Logits become c * tanh(logits / c) (Gemma 2). 0: off."""
    tie_embeddings: bool = True
    """The head is the embedding table."""
    parallel_residual: bool = False
    """Attention and feed-forward read the same input and are added together (GPT-J)."""
    n_unique_layer: int = 0
    """Blocks with weights of their own, each repeated n_layer / n_unique_layer times (ALBERT). 0: n_layer."""
    n_factor: int = 0
    """Factorised embedding: V x n_factor, then n_factor x D (ALBERT). 0: off."""
    skip_attn: tuple[int, ...] = ()
    """Blocks without attention."""
    skip_mlp: tuple[int, ...] = ()
    """Blocks without feed-forward."""

    embd_dropout: float = 0.0
    """Dropout on the embeddings."""
    attn_dropout: float = 0.0
    """Dropout on attention's weights."""
    resid_dropout: float = 0.0
    """Dropout on what each branch adds."""

    init_scheme: InitScheme = "normal"
    """normal: N(0, init_std), residual projections divided by sqrt(2 n_layer) (GPT-2); zero_proj: those are zero."""
    init_std: float = 0.02
    """Standard deviation of initial weights."""

    def __post_init__(self) -> None:
        check_fields(self)
        sizes = ("n_layer", "n_head", "n_embd", "block_size", "vocab_multiple")
        check_each(self, sizes, lambda n: n >= 1, "be at least 1")
        counts = ("vocab_size", "vocab_used", "n_inner", "n_kv_head", "window", "n_unique_layer", "n_factor")
        check_each(self, counts, lambda n: n >= 0, "be 0 or more")
        check_each(self, ("embd_dropout", "attn_dropout", "resid_dropout"), lambda p: 0.0 <= p < 1.0, "lie in [0, 1)")
        check_each(self, ("norm_eps", "logit_softcap", "init_std"), lambda x: 0.0 <= x < float("inf"), "be 0 or more")
        check_each(self, ("rope_base",), lambda x: 0.0 < x < float("inf"), "be above 0")
        if self.n_embd % self.n_head:
            raise UsageError(f"n_head ({self.n_head}) must divide n_embd ({self.n_embd})")
        if self.n_head % self.kv_heads:
            raise UsageError(f"n_kv_head ({self.n_kv_head}) must divide n_head ({self.n_head})")
        if self.n_layer % self.unique_layers:
            raise UsageError(f"n_unique_layer ({self.n_unique_layer}) must divide n_layer ({self.n_layer})")
        if self.position == "rope" and self.head_width % 2:
            raise UsageError(f"rope needs an even head width, not {self.head_width}: change n_embd or n_head")
        if self.vocab_used > self.vocab_size > 0:
            raise UsageError(f"vocab_used ({self.vocab_used}) exceeds vocab_size ({self.vocab_size})")
        for name in ("skip_attn", "skip_mlp"):
            if any(not 0 <= i < self.unique_layers for i in getattr(self, name)):
                raise UsageError(f"{name} lists blocks 0 to {self.unique_layers - 1}, not {getattr(self, name)}")

    @property
    def head_width(self) -> int:
        return self.n_embd // self.n_head

    @property
    def inner_width(self) -> int:
        return self.n_inner or 4 * self.n_embd

    @property
    def kv_heads(self) -> int:
        return self.n_kv_head or self.n_head

    @property
    def unique_layers(self) -> int:
        return self.n_unique_layer or self.n_layer

    def score_scale(self, layer: int) -> float:
        """What a layer's attention scores are multiplied by."""
        scale = 1.0 / math.sqrt(self.head_width) if self.attn_scale else 1.0
        return scale / (layer + 1 if self.attn_scale_by_layer else 1)

    @property
    def rows_used(self) -> int:
        return self.vocab_used or self.vocab_size

    @property
    def vocab_rows(self) -> int:
        """Rows that the embedding really has: vocab_size padded to a multiple of vocab_multiple."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple
