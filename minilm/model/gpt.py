"""GPT-2, with every component switchable.

- The untouched config is GPT-2: pre-norm blocks, tanh GELU, learned positions, biases, tied head.
- A block is two slots of the form post(x + out(branch(pre(x)))); norm_position says which of the three hold a norm.
- What a token may see is worked out once a pass (`geometry.py`) and read by every block.
- Rows of the vocabulary that are padding or not in use never reach a softmax.

B batch, T tokens, S tokens seen by attention (cached ones included), D width, H heads, V vocabulary.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilm.config import GPTConfig
from minilm.errors import UsageError
from minilm.model.cache import Cache
from minilm.model.geometry import Geometry, attend, locate
from minilm.model.layers import NORMS, POSITIONS, FixedNorm, HeadNorm, LearnedPosition, Nothing, feed_forward, turn
from minilm.model.losses import IGNORE, cross_entropy, fits, over_tokens

if TYPE_CHECKING:
    from minilm.text.tokenizer import Tokenizer


class Attention(nn.Module):
    """Multi-head attention (Vaswani 2017); fewer key heads than query heads is Ainslie 2023."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.widths = [config.n_embd, config.kv_heads * config.head_width, config.kv_heads * config.head_width]
        self.c_attn = nn.Linear(config.n_embd, sum(self.widths), bias=config.attn_bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.attn_bias)
        self.q_norm = HeadNorm(config.head_width, config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = HeadNorm(config.head_width, config.norm_eps) if config.qk_norm else nn.Identity()
        self.dropout = nn.Dropout(config.resid_dropout)

    def forward(self, x: Tensor, layer: int, geometry: Geometry, cache: Cache | None) -> Tensor:
        """x (B, T, D), or from a split norm (2, B, T, D): what q and k read, what v does -> (B, T, D)."""
        parts = [y if x.dim() == 3 else y[i // 2] for i, y in enumerate(self.c_attn(x).split(self.widths, dim=-1))]
        return self.dropout(self.c_proj(self.mix(parts, layer, geometry, cache)))

    def mix(self, parts: Sequence[Tensor], layer: int, geometry: Geometry, cache: Cache | None) -> Tensor:
        """What lies between the projections: queries, keys and values, (B, T, width) each -> (B, T, D)."""
        c, (B, T) = self.config, parts[0].shape[:2]
        q, k, v = (y.view(B, T, -1, c.head_width).transpose(1, 2) for y in parts)
        q, k = self.q_norm(q), self.k_norm(k)
        if geometry.rotation is not None:
            q, k = turn(q, geometry.rotation), turn(k, geometry.rotation)
        if cache is not None:
            k, v = cache.append(layer, k, v)
        scale, dtype = c.score_scale(layer), self.c_proj.weight.dtype if c.attn_upcast else parts[0].dtype
        with torch.autocast(parts[0].device.type, enabled=False) if c.attn_upcast else contextlib.nullcontext():
            if c.attn_upcast:
                q, k, v = q.float(), k.float(), v.float()
            y = attend(q, k, v, geometry, scale, c.attn_dropout * self.training).to(dtype)
        return y.transpose(1, 2).reshape(B, T, c.n_embd)


class Block(nn.Module):
    """x = post(x + out(branch(pre(x)))), for attention and then for the feed-forward.

    A skipped branch takes pre and out along, so that it adds exactly nothing and leaves no idle parameter.
    """

    def __init__(self, config: GPTConfig, index: int) -> None:
        super().__init__()

        def norm(wanted: bool, *where: str) -> nn.Module:
            on = wanted and config.norm_position in where
            return NORMS[config.norm if on else "none"](config.n_embd, config)

        has_attn, has_mlp = index not in config.skip_attn, index not in config.skip_mlp
        self.ln_1, self.ln_1_out = norm(has_attn, "pre", "sandwich"), norm(has_attn, "sandwich")
        self.ln_1 = self.ln_1.split() if isinstance(self.ln_1, FixedNorm) else self.ln_1
        self.attn = Attention(config) if has_attn else Nothing()
        self.ln_1_post = norm(True, "post")
        self.ln_2, self.ln_2_out = norm(has_mlp, "pre", "sandwich"), norm(has_mlp, "sandwich")
        self.mlp = feed_forward(config) if has_mlp else Nothing()
        self.ln_2_post = norm(True, "post")

    def forward(self, x: Tensor, layer: int, geometry: Geometry, cache: Cache | None) -> Tensor:
        return self.after(x, self.attn(self.ln_1(x), layer, geometry, cache))

    def after(self, x: Tensor, attended: Tensor) -> Tensor:
        """What follows attention."""
        x = self.ln_1_post(x + self.ln_1_out(attended))
        return self.ln_2_post(x + self.ln_2_out(self.mlp(self.ln_2(x))))


class ParallelBlock(Block):
    """Both branches read the block's input (Wang & Komatsuzaki 2021, GPT-J; two norms as in GPT-NeoX)."""

    def __init__(self, config: GPTConfig, index: int) -> None:
        super().__init__(config, index)
        self.ln_1_post = nn.Identity()

    def after(self, x: Tensor, attended: Tensor) -> Tensor:
        return self.ln_2_post(x + self.ln_1_out(attended) + self.ln_2_out(self.mlp(self.ln_2(x))))


class GPT(nn.Module):
    """A language model: `model(ids (B, T)) -> logits (B, T, V)`.

    Raises UsageError on a config without a vocabulary, and on more tokens than a learned position table has rows.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        if config.vocab_size < 1:
            raise UsageError("vocab_size is 0: pass the tokenizer's vocab_size before building the model")
        self.config = config
        width = config.n_factor or config.n_embd
        self.wte = nn.Embedding(config.vocab_rows, width)
        self.wte_proj = nn.Linear(width, config.n_embd, bias=False) if config.n_factor else nn.Identity()
        self.wpe = POSITIONS[config.position](config)
        self.ln_e = NORMS[config.norm if config.embd_norm else "none"](config.n_embd, config)
        self.dropout = nn.Dropout(config.embd_dropout)
        block = ParallelBlock if config.parallel_residual else Block
        self.h = nn.ModuleList(block(config, i) for i in range(config.unique_layers))
        self.ln_f = NORMS[config.norm if config.final_norm else "none"](config.n_embd, config)
        self.head_proj = nn.Linear(config.n_embd, width, bias=False) if config.n_factor else nn.Identity()
        self.lm_head = nn.Identity() if config.tie_embeddings else nn.Linear(width, config.vocab_rows, bias=False)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """GPT-2's initialisation (Radford 2019, section 2.3), or `zero_proj`'s; norms start as the identity."""
        std = self.config.init_std
        proj_std = {"normal": std / math.sqrt(2 * self.config.n_layer), "zero_proj": 0.0}[self.config.init_scheme]
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding | LearnedPosition):
                residual = name.endswith((".attn.c_proj", ".mlp.c_proj"))
                nn.init.normal_(module.weight, std=proj_std if residual else std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    @property
    def device(self) -> torch.device:
        return self.wte.weight.device

    @property
    def head_weight(self) -> Tensor:
        """(V with padding, D or n_factor): the embedding table itself where embeddings are tied."""
        return self.lm_head.weight if isinstance(self.lm_head, nn.Linear) else self.wte.weight

    def forward(self, ids: Tensor, documents: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """ids (B, T) -> logits (B, T, V); rows that are not in use are -inf.

        documents (B, T): tokens attend only within their own (contiguous) document, and positions restart with it.
        cache: ids are the tokens that come next; the cache is advanced by T.
        """
        return self.head(self.hidden(ids, documents, cache))

    def hidden(
        self,
        ids: Tensor,
        documents: Tensor | None = None,
        cache: Cache | None = None,
        blocks: Sequence[Callable[..., Tensor]] | None = None,
        geometry: Geometry | None = None,
    ) -> Tensor:
        """ids (B, T), or mixed rows of wte (B, T, width) -> (B, T, D). blocks: run for h. geometry: where known."""
        blocks = list(self.h) if blocks is None else blocks
        geometry = geometry or locate(self.config, self.wpe, ids, documents, cache)
        x = self.wte_proj(ids if ids.is_floating_point() else self.wte(ids)) + self.wpe(geometry.positions)
        # The residual stream has the weights' precision, also where autocast or a position table would change it.
        x = self.dropout(self.ln_e(x.to(self.wte.weight.dtype)))
        for layer in range(self.config.n_layer):
            x = blocks[layer * len(self.h) // self.config.n_layer](x, layer, geometry, cache)
        if cache is not None:
            cache.length += ids.shape[1]
        return self.ln_f(x)

    def head(self, x: Tensor) -> Tensor:
        """x (..., D) -> logits (..., V)."""
        logits = self.used_logits(x)
        return F.pad(logits, (0, self.config.vocab_size - logits.shape[-1]), value=-math.inf)

    def used_logits(self, x: Tensor) -> Tensor:
        """x (..., D) -> logits of the rows in use (..., vocab_used)."""
        return self.finish_logits(F.linear(self.head_proj(x), self.head_rows()))

    def head_rows(self) -> Tensor:
        """The head's rows that are multiplied: those in use, up to a multiple of vocab_multiple."""
        c = self.config
        used = -(-c.rows_used // c.vocab_multiple) * c.vocab_multiple
        return self.head_weight if used >= c.vocab_rows else self.head_weight[:used]  # a cut's gradient is a copy

    def finish_logits(self, logits: Tensor) -> Tensor:
        """What follows the head's product: rows not in use cut off, the soft cap."""
        used, c = self.config.rows_used, self.config.logit_softcap
        logits = logits[..., :used] if used < logits.shape[-1] else logits
        return c * torch.tanh(logits / c) if c else logits

    def loss(
        self,
        ids: Tensor,
        targets: Tensor,
        documents: Tensor | None = None,
        reduction: str = "mean",
        blocks: Sequence[Callable[..., Tensor]] | None = None,
        nats: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Cross-entropy in nats of targets (B, T); -100 is not scored. A scalar by "mean" or "sum", (B, T) by "none".

        Logits too large to be held at once are made in chunks (`losses.over_tokens`).
        """
        x, table = self.hidden(ids, documents, blocks=blocks), self.head_rows()
        if reduction == "none" or fits(targets.numel(), len(table), x.is_cuda):
            return cross_entropy(self.used_logits(x), targets, reduction)
        rows, flat, of = self.head_proj(x).flatten(0, 1), targets.flatten(), nats or self.nats
        total = over_tokens(rows, table, lambda y: y, lambda y, n: of(y, flat[n]), compiled=nats is not None)[0]
        return total / (flat != IGNORE).sum() if reduction == "mean" else total

    def nats(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy summed over a chunk's targets (n,), of what the head's product gave, as (1,)."""
        return cross_entropy(self.finish_logits(logits), targets, "sum")[None]

    def num_params(self) -> int:
        """Parameters, a tied head once, padding rows of the vocabulary not at all."""
        padding = self.config.vocab_rows - self.config.vocab_size
        n_tables = 1 if self.config.tie_embeddings else 2
        return sum(p.numel() for p in self.parameters()) - n_tables * padding * self.wte.embedding_dim

    def flops_per_token(self, n_tokens: int) -> float:
        """Training FLOPs per token at context n_tokens: 6N + 12 L D T (Chowdhery 2022, appendix B).

        N: parameters less wpe, as MFU counts them; rows of the vocabulary not in use do no work and are left out,
        and a shared block counts as often as it runs. L: layers with attention.
        """
        c, repeats = self.config, self.config.n_layer // len(self.h)
        unused = (c.vocab_size - c.rows_used) * self.wte.embedding_dim
        N = self.num_params() - sum(p.numel() for p in self.wpe.parameters())
        N -= unused * (1 if c.tie_embeddings else 2)
        N += (repeats - 1) * sum(p.numel() for p in self.h.parameters())
        L = repeats * sum(isinstance(block.attn, Attention) for block in self.h)
        return 6.0 * N + 12.0 * L * c.n_embd * n_tokens

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, **changes: Any) -> GPT:
        """A run, a step folder, a Hugging Face folder or file, or a Hub name; changes are config fields."""
        from minilm.model.weights import load_pretrained

        return load_pretrained(name_or_path, **changes)[0]

    def save_pretrained(self, folder: str | Path, tokenizer: Tokenizer | None = None) -> None:
        """Writes model.safetensors and config.json (and tokenizer.json); transformers opens what GPT-2 can express."""
        from minilm.model.weights import save_pretrained

        save_pretrained(self, folder, tokenizer)
