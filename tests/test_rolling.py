"""A full context that is not read again: against keys kept as they were before their turn, one token at a time."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from minilm.config import GPTConfig
from minilm.decoding.contexts import Contexts
from minilm.decoding.engine import generate
from minilm.errors import UsageError
from minilm.model.gpt import GPT
from minilm.model.layers import AlibiPosition, turn
from minilm.text.tokenizer import get_tokenizer

BYTES = get_tokenizer("bytes")
HEADS, WIDTH = 2, 8


def tiny(position: str, **changes: Any) -> GPT:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"n_layer": 2, "n_head": HEADS, "n_embd": 16, "block_size": 12, "vocab_size": 257}
    return GPT(GPTConfig(**{**shape, "init_std": 0.4, "position": position, **changes})).eval()


def slowly(model: GPT, tokens: list[int]) -> list[Tensor]:
    """Logits behind each token. Every key stays unturned; where it stands is counted anew for each token."""
    kept: list[list[tuple[Tensor, Tensor]]] = [[] for _ in model.h]
    n_kept = model.config.block_size // 2
    found = []
    for token in tokens:
        if len(kept[0]) == model.config.block_size:
            n_sinks = min(4, n_kept // 2)
            kept = [row[:n_sinks] + row[len(row) - (n_kept - 1 - n_sinks) :] for row in kept]
        x = model.wte.weight[token]
        for block, row in zip(model.h, kept, strict=True):
            b: Any = block
            q, k, v = (y.view(HEADS, 1, WIDTH) for y in b.attn.c_attn(b.ln_1(x)).split(16))
            row.append((k, v))
            keys, values = (torch.cat(part, dim=1) for part in zip(*row, strict=True))
            at = torch.arange(len(row))
            if model.config.position == "rope":
                rotation = model.wpe.rotation(at)
                assert rotation is not None
                cos, sin = rotation
                keys, q = turn(keys[None], (cos, sin))[0], turn(q[None], (cos[..., -1:, :], sin[..., -1:, :]))[0]
            scores = (q * keys).sum(dim=-1) / math.sqrt(WIDTH)
            if isinstance(model.wpe, AlibiPosition):
                scores = scores - model.wpe.slopes(x.device)[:, 0] * (len(row) - 1 - at)
            y = (scores.softmax(dim=-1)[:, :, None] * values).sum(dim=1).reshape(16)
            x = b.after(x, b.attn.c_proj(y))
        found.append(model.used_logits(model.ln_f(x)))
    return found


@pytest.mark.parametrize("position", ["rope", "alibi", "none"])
def test_shifted_context_equals_keys_that_were_never_turned(position: str) -> None:
    model = tiny(position)
    tokens = torch.randint(257, (40,), generator=torch.Generator().manual_seed(1)).tolist()
    with torch.no_grad():
        expected = slowly(model, tokens)
        contexts = Contexts(model, [tokens[:5], tokens[:3]], 12, True, shift=True)  # rows of two lengths
        for n in range(30):
            logits = contexts.logits()
            torch.testing.assert_close(logits[0], expected[4 + n], atol=2e-5, rtol=2e-5)
            torch.testing.assert_close(logits[1], expected[2 + n], atol=2e-5, rtol=2e-5)
            contexts.advance([0, 1], [tokens[5 + n], tokens[3 + n]])


def test_nothing_is_read_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    model, read = tiny("rope"), list[int]()
    hidden = model.hidden

    def counted(ids: Tensor, *rest: Any, **options: Any) -> Tensor:
        read.append(ids.numel())
        return hidden(ids, *rest, **options)

    monkeypatch.setattr(model, "hidden", counted)
    options: dict[str, Any] = {"max_new_tokens": 40, "seed": 3, "stop_at_eot": False}
    shifted = generate(model, BYTES, "abc", rolling="shift", **options)
    assert sum(read) == 3 + 39
    read.clear()
    reread = generate(model, BYTES, "abc", **options)
    assert sum(read) > 60
    assert shifted != reread
    assert shifted.encode()[:8] == reread.encode()[:8]  # equal until the context is full


@pytest.mark.parametrize("block_size", [1, 2, 3, 9])
def test_batch_equals_single(block_size: int) -> None:
    model = tiny("rope", block_size=block_size)
    options: dict[str, Any] = {"max_new_tokens": 25, "rolling": "shift"}
    prompts = ["ab", "", "a prompt beyond the context"]
    assert generate(model, BYTES, prompts, seed=[1, 2, 3], **options) == [
        generate(model, BYTES, prompt, seed=i, **options) for i, prompt in enumerate(prompts, 1)
    ]


@pytest.mark.parametrize(
    ("position", "options", "said"),
    [
        ("learned", {"rolling": "shift"}, "positions that can move"),
        ("sinusoidal", {"rolling": "shift"}, "positions that can move"),
        ("rope", {"rolling": "slide"}, "rolling is one of reread, shift"),
        ("rope", {"rolling": "shift", "use_cache": False}, "shift needs the cache"),
        ("rope", {"rolling": "shift", "lookup": 2}, "leave out rolling=shift"),
    ],
)
def test_misuse(position: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        generate(tiny(position), BYTES, "ab", **options)
