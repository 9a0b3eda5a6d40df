"""Every setting of a model, as one frozen dataclass. Defaults are GPT-2 small.

Each toggle is one field with one registry (`model/layers.py`); a test holds the registries and the `Literal`s
below equal. Values are checked on construction, so a wrong one never reaches a tensor.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args, get_type_hints

from minilm.errors import UsageError

Activation = Literal[
    "gelu_tanh", "gelu", "gelu_quick", "gelu_fast", "relu", "relu2", "silu", "tanh", "swiglu", "geglu", "reglu"
]
Norm = Literal["layernorm", "rmsnorm", "dyt", "none"]
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
        for name in ("n_layer", "n_head", "n_embd", "block_size", "vocab_multiple"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("vocab_size", "vocab_used", "n_inner", "n_kv_head", "window", "n_unique_layer", "n_factor"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} must be 0 or more, not {getattr(self, name)}")
        for name in ("embd_dropout", "attn_dropout", "resid_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise UsageError(f"{name} must lie in [0, 1), not {getattr(self, name)}")
        for name in ("norm_eps", "logit_softcap", "init_std"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise UsageError(f"{name} must be 0 or more, not {getattr(self, name)}")
        if not 0.0 < self.rope_base < float("inf"):
            raise UsageError(f"rope_base must be above 0, not {self.rope_base}")
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

    @property
    def vocab_rows(self) -> int:
        """Rows that the embedding really has: vocab_size padded to a multiple of vocab_multiple."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple


def check_fields(config: Any) -> None:
    """Raises UsageError where a dataclass's field has a value outside its annotated type or `Literal`."""
    hints = get_type_hints(type(config))
    for f in fields(config):
        value, hint = getattr(config, f.name), hints[f.name]
        choices = get_args(hint)
        if str(hint).startswith("typing.Literal"):
            if value not in choices:
                raise UsageError(
                    f"{f.name} is {value!r}: choose {', '.join(map(str, choices))}{nearest(value, choices)}"
                )
        elif hint is float and type(value) is int:
            object.__setattr__(config, f.name, float(value))
        elif hint in (int, float, bool, str) and type(value) is not hint:
            raise UsageError(f"{f.name} takes {hint.__name__}, not {value!r}")
        elif hint in (tuple[int, ...], tuple[str, ...]):
            kind = get_args(hint)[0]
            if not isinstance(value, list | tuple) or not all(type(i) is kind for i in value):
                raise UsageError(f"{f.name} takes a list of {kind.__name__}, not {value!r}")
            object.__setattr__(config, f.name, tuple(value))


def nearest(name: object, known: Iterable[object]) -> str:
    """' (did you mean x?)' for the closest of `known`, or nothing."""
    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1)
    return f" (did you mean {close[0]}?)" if close else ""


Optimizer = Literal["adamw", "muon"]
Schedule = Literal["cosine", "linear", "constant"]
Precision = Literal["auto", "fp32", "bf16"]
Compile = Literal["auto", "on", "off"]
Existing = Literal["refuse", "resume", "overwrite"]


@dataclass(frozen=True)
class TrainConfig:
    """One training run: what, on what, for how long, how. A step is an optimizer step, always."""

    model: GPTConfig = field(default_factory=GPTConfig)

    data: str = "tales"
    """A data script's name, a prepared folder, or your own file or folder of text (`train()` takes a prepared one)."""
    tokenizer: str = ""
    """gpt2, bytes, chars, words, bpe:N or a folder. Empty: the data's own."""
    source: str = ""
    """A local copy of the data set in upstream form, instead of a download."""
    init: str = ""
    """Weights to start from: a run, a step folder, a Hugging Face folder or Hub name. Empty: from scratch."""
    out_dir: str = ""
    """Run folder. Empty: runs/ and the names of preset and data."""
    existing: Existing = "refuse"
    """What to do with a run that is already there; `--resume` and `--overwrite` are short for two of them."""

    freeze: tuple[str, ...] = ()
    """Not trained: groups (embeddings attention mlp norms biases head), h.0-5, top:4, names, globs."""
    train_only: tuple[str, ...] = ()
    """Trained, and nothing else; patterns as for freeze, which is taken off. Empty: everything."""
    unfreeze_every_steps: int = 0
    """Training begins with the last block and goes one block deeper every so many steps, embeddings last. 0: off."""

    max_steps: int = 1000
    """Length of the run."""
    batch_size: int = 32
    """Sequences per step over all micro-batches and ranks."""
    micro_batch_size: int = 0
    """Sequences that go through the model at once; gradients add up. 0: chosen for the device."""

    optimizer: Optimizer = "adamw"
    """adamw, or muon on matrices inside blocks and adamw on the rest."""
    lr: float = 6e-4
    """Peak learning rate."""
    schedule: Schedule = "cosine"
    """Shape of the rate after warmup."""
    warmup_steps: int = 100
    """Steps over which the rate rises from 0."""
    final_lr_share: float = 0.1
    """Share of the peak rate that the last step has."""
    weight_decay: float = 0.1
    """Decoupled decay of matrices and tables; biases and norms are not decayed."""
    beta1: float = 0.9
    """Decay of adamw's first moment."""
    beta2: float = 0.95
    """Decay of adamw's second moment."""
    eps: float = 1e-8
    """Added to the root of adamw's second moment."""
    grad_clip: float = 1.0
    """Largest gradient norm. 0: off."""

    precision: Precision = "auto"
    """Of matrix products; weights and optimizer state stay fp32. auto: bf16 where this device is faster in it."""
    compile: Compile = "auto"
    """torch.compile. auto: where the run is long enough to repay it."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps. auto: the fastest there is."""
    seed: int = 1337
    """Weights, batch order and dropout."""

    eval_every_steps: int = 250
    """Steps between validations. 0: only at the end."""
    eval_tokens: int = 100_000
    """Validation tokens, always the same first ones."""
    save_every_steps: int = 250
    """Steps between checkpoints. 0: only at the end."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept, beside the best by validation loss."""
    log_every_steps: int = 10
    """Steps between lines in metrics.jsonl."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("max_steps", "batch_size", "keep_checkpoints", "log_every_steps", "eval_tokens"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in (
            "micro_batch_size",
            "warmup_steps",
            "eval_every_steps",
            "save_every_steps",
            "seed",
            "unfreeze_every_steps",
        ):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} must be 0 or more, not {getattr(self, name)}")
        for name in ("lr", "weight_decay", "eps", "grad_clip"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise UsageError(f"{name} must be 0 or more, not {getattr(self, name)}")
        for name in ("beta1", "beta2", "final_lr_share"):
            if not 0.0 <= getattr(self, name) <= 1.0 - (name != "final_lr_share") * 1e-12:
                raise UsageError(f"{name} must lie between 0 and 1, not {getattr(self, name)}")
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise UsageError(f"micro_batch_size ({self.micro_batch_size}) must divide batch_size ({self.batch_size})")
