"""The model as a whole: counts, initialisation, sharing, padded vocabularies, dropout, precision, loss, misuse."""

from __future__ import annotations

import copy
import math
import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_models import SIZES, close, tiny, tokens
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from minilm.config import GPTConfig
from minilm.errors import UsageError
from minilm.model import geometry
from minilm.model.cache import Cache
from minilm.model.gpt import GPT
from minilm.model.losses import IGNORE, cross_entropy


def shapes_only(**fields: Any) -> GPT:
    with torch.device("meta"):
        return GPT(GPTConfig(**fields))


# --- counts

GPT2 = {
    "small": ((12, 12, 768), 124_439_808),
    "medium": ((24, 16, 1024), 354_823_168),
    "large": ((36, 20, 1280), 774_030_080),
    "xl": ((48, 25, 1600), 1_557_611_200),
}


@pytest.mark.parametrize("size", GPT2)
def test_gpt2_parameters(size: str) -> None:
    (L, H, D), n_params = GPT2[size]
    model = shapes_only(n_layer=L, n_head=H, n_embd=D)
    assert model.num_params() == n_params
    per_block = 4 * D + (D * 3 * D + 3 * D) + (D * D + D) + (D * 4 * D + 4 * D) + (4 * D * D + D)
    assert n_params == (50257 + 1024) * D + L * per_block + 2 * D
    for T in (64, 1024):
        assert model.flops_per_token(T) == 6 * (n_params - 1024 * D) + 12 * L * D * T


def test_default_is_gpt2_small() -> None:
    names = dict(shapes_only().named_parameters())
    assert len(names) == 2 + 12 * 12 + 2
    block = {name.removeprefix("h.3."): tuple(p.shape) for name, p in names.items() if name.startswith("h.3.")}
    assert block == {
        "ln_1.weight": (768,),
        "ln_1.bias": (768,),
        "attn.c_attn.weight": (2304, 768),
        "attn.c_attn.bias": (2304,),
        "attn.c_proj.weight": (768, 768),
        "attn.c_proj.bias": (768,),
        "ln_2.weight": (768,),
        "ln_2.bias": (768,),
        "mlp.c_fc.weight": (3072, 768),
        "mlp.c_fc.bias": (3072,),
        "mlp.c_proj.weight": (768, 3072),
        "mlp.c_proj.bias": (768,),
    }
    outside = {name: tuple(p.shape) for name, p in names.items() if not name.startswith("h.")}
    assert outside == {
        "wte.weight": (50257, 768),
        "wpe.weight": (1024, 768),
        "ln_f.weight": (768,),
        "ln_f.bias": (768,),
    }


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"n_unique_layer": 1},
        {"n_kv_head": 1, "position": "rope"},
        {"vocab_used": 16, "vocab_multiple": 8},
        {"n_factor": 6},
        {"activation": "swiglu", "n_inner": 40},
        {"parallel_residual": True, "position": "alibi"},
        {"skip_attn": (0,), "skip_mlp": (1,)},
    ],
    ids=str,
)
def test_flops_are_those_of_torchs_counter(fields: dict[str, Any]) -> None:
    """Every product, forwards and backwards; 6N counts biases and norms as if they were matrices, torch not at all."""
    model, ids = GPT(GPTConfig(**{**SIZES, **fields})), tokens(2, 12, 16)
    counter = FlopCounterMode(display=False)
    with counter:
        model.loss(ids, ids).backward()
    repeats = model.config.n_layer // len(model.h)
    vectors = sum(p.numel() * (repeats if name.startswith("h.") else 1) for name, p in vectors_of(model))
    assert counter.get_total_flops() == ids.numel() * (model.flops_per_token(12) - 6 * vectors)


def vectors_of(model: GPT) -> list[tuple[str, Tensor]]:
    return [(name, p) for name, p in model.named_parameters() if p.dim() == 1]


def test_flops_count_both_tables() -> None:
    tied, untied = (shapes_only(tie_embeddings=tie, vocab_used=50_000) for tie in (True, False))
    assert untied.flops_per_token(8) - tied.flops_per_token(8) == 6 * 50_000 * 768


# --- initialisation


@pytest.mark.parametrize("scheme", ["normal", "zero_proj"])
@pytest.mark.parametrize("n_unique", [0, 2])
def test_initial_statistics(scheme: Any, n_unique: int) -> None:
    torch.manual_seed(0)
    config = GPTConfig(
        n_layer=8, n_head=2, n_embd=64, block_size=64, vocab_size=500, n_unique_layer=n_unique, init_scheme=scheme,
        init_std=0.05, activation="swiglu", n_factor=32, tie_embeddings=False, qk_norm=True,
    )  # fmt: skip
    kinds = {".attn.c_proj.weight": 0.05 / 4, ".mlp.c_proj.weight": 0.05 / 4}  # sqrt(2 n_layer) = 4, shared or not
    kinds = dict.fromkeys(kinds, 0.0) if scheme == "zero_proj" else kinds
    seen = set()
    for name, p in GPT(config).named_parameters():
        if p.dim() == 1:
            assert torch.equal(p, torch.full_like(p, float(name.endswith("weight")))), name
            continue
        std = next((std for kind, std in kinds.items() if name.endswith(kind)), 0.05)
        seen.add((name.split(".", 2)[-1], std))
        # Five standard errors, of the spread and of the mean.
        assert abs(p.std().item() - std) <= 5 * std / math.sqrt(2 * p.numel()), name
        assert abs(p.mean().item()) <= 5 * std / math.sqrt(p.numel()), name
    assert len(seen) >= 6


def test_seed_decides_weights() -> None:
    def state(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return torch.cat([p.flatten() for p in GPT(GPTConfig(**SIZES)).parameters()])

    assert torch.equal(state(3), state(3))
    assert not torch.equal(state(3), state(4))


def test_an_untrained_model_knows_nothing() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=16, vocab_size=1000, vocab_used=600))
    ids = tokens(8, 16, 600)
    assert model.loss(ids, tokens(8, 16, 600, seed=2)).item() == pytest.approx(math.log(600), abs=0.05)


def test_copies_and_pickles() -> None:
    model, ids = tiny(activation="geglu", position="rope"), tokens(2, 8)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(ids), model(ids))


# --- sharing and factors


def test_shared_blocks_equal_an_unshared_model() -> None:
    shared = tiny(n_layer=6, n_unique_layer=2, attn_scale_by_layer=True, skip_mlp=(1,))
    plain = tiny(seed=1, n_layer=6, attn_scale_by_layer=True, skip_mlp=(3, 4, 5))
    state = shared.state_dict()
    plain.load_state_dict(
        {name: state[re_block(name, lambda block: block // 3)] for name in plain.state_dict()}, strict=True
    )
    ids, targets = tokens(2, 10), tokens(2, 10, seed=2)
    assert close(shared(ids), plain(ids))
    for model in (shared, plain):
        model.loss(ids, targets).backward()
    sums = {name: torch.zeros_like(p) for name, p in shared.named_parameters()}
    for name, p in plain.named_parameters():
        assert p.grad is not None
        sums[re_block(name, lambda block: block // 3)] += p.grad
    for name, p in shared.named_parameters():
        assert p.grad is not None
        assert close(p.grad, sums[name]), name
    assert plain.flops_per_token(8) == shared.flops_per_token(8)


def re_block(name: str, function: Any) -> str:
    if not name.startswith("h."):
        return name
    _, block, rest = name.split(".", 2)
    return f"h.{function(int(block))}.{rest}"


def test_factors_equal_their_product() -> None:
    factored = tiny(n_factor=6, tie_embeddings=False)
    whole = tiny(seed=1, tie_embeddings=False)
    state = factored.state_dict()
    state["wte.weight"] = state["wte.weight"] @ state.pop("wte_proj.weight").T
    state["lm_head.weight"] = state["lm_head.weight"] @ state.pop("head_proj.weight")
    whole.load_state_dict(state)
    assert close(factored(tokens(2, 8)), whole(tokens(2, 8)))
    V, D, E = SIZES["vocab_size"], SIZES["n_embd"], 6
    assert whole.num_params() - factored.num_params() == 2 * (V * D - V * E - E * D)


@pytest.mark.parametrize("position", ["pre", "post", "sandwich"])
def test_skipping_everything_leaves_the_embedding(position: str) -> None:
    model, ids = tiny(skip_attn=(0, 1), skip_mlp=(0, 1), norm_position=position, norm="none"), tokens(2, 8)
    assert torch.equal(model.hidden(ids), model.wte(ids) + model.wpe(torch.arange(8)))
    sandwich = tiny(skip_attn=(0, 1), skip_mlp=(0, 1), norm_position="sandwich", final_norm=False)
    assert torch.equal(sandwich.hidden(ids), sandwich.wte(ids) + sandwich.wpe(torch.arange(8)))


# --- the vocabulary inside and outside


@pytest.mark.parametrize("fields", [{}, {"tie_embeddings": False}, {"n_factor": 6}, {"vocab_used": 23}], ids=str)
def test_padding_rows_are_invisible(fields: dict[str, Any]) -> None:
    plain, padded = tiny(**fields), tiny(seed=1, **fields, vocab_multiple=64)
    state = padded.state_dict()
    for name, tensor in plain.state_dict().items():
        state[name][: len(tensor)] = tensor  # padding rows keep random values
    assert padded.wte.weight.shape[0] == 64
    ids, targets = tokens(2, 8), tokens(2, 8, seed=2)
    assert close(padded(ids), plain(ids))
    assert padded(ids).shape == (2, 8, 29)
    assert (padded.num_params(), padded.flops_per_token(8)) == (plain.num_params(), plain.flops_per_token(8))
    for model in (padded, plain):
        model.loss(ids, targets).backward()
    assert padded.loss(ids, targets).item() == pytest.approx(plain.loss(ids, targets).item())
    for (name, p), expected in zip(padded.named_parameters(), plain.parameters(), strict=True):
        assert p.grad is not None
        assert expected.grad is not None
        assert close(p.grad[: len(expected)], expected.grad), name
        assert not p.grad[len(expected) :].any(), name


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("multiple", [1, 8])
def test_rows_not_in_use_have_no_probability_and_no_gradient(tie: bool, multiple: int) -> None:
    model, ids, targets = tiny(vocab_used=23, tie_embeddings=tie, vocab_multiple=multiple), tokens(2, 8), tokens(2, 8)
    logits = model(ids)
    assert logits.shape == (2, 8, 29)
    assert torch.equal(logits.isinf(), torch.arange(29).expand(2, 8, -1) >= 23)
    probabilities = logits.softmax(-1)
    assert not probabilities[..., 23:].any()
    assert model.loss(ids, targets).item() == pytest.approx(nats(logits, targets).mean().item())
    model.loss(ids, targets).backward()
    for table in (model.wte.weight, model.head_weight):
        assert table.grad is not None
        assert table.grad[:23].any()
        assert not table.grad[23:].any()


# --- dropout


def share_of_zeros(module: nn.Module, model: GPT, ids: Tensor) -> tuple[float, set[float]]:
    """Share of a dropout's input that it zeroes, and the factors that it gives the rest."""
    seen: list[tuple[Tensor, Tensor]] = []
    handle = module.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    model(ids)
    handle.remove()
    before, after = seen[0]
    kept = after != 0
    return 1.0 - float(kept.double().mean()), {round(x, 9) for x in (after / before)[kept].tolist()}


@pytest.mark.parametrize(
    ("field", "path"),
    [("embd_dropout", "dropout"), ("resid_dropout", "h.0.attn.dropout"), ("resid_dropout", "h.1.mlp.dropout")],
)
def test_dropout_has_its_rate_in_training_only(field: str, path: str) -> None:
    fields: dict[str, Any] = {field: 0.2}
    model, ids = tiny(**fields), tokens(64, 12)
    module = model.get_submodule(path)
    assert share_of_zeros(module, model, ids) == (0.0, {1.0})
    torch.manual_seed(0)
    share, factors = share_of_zeros(module, model.train(), ids)
    assert factors == {1.25}
    n = ids.numel() * SIZES["n_embd"]
    assert abs(share - 0.2) < 5 * math.sqrt(0.2 * 0.8 / n)
    others = {name for name, m in model.named_modules() if isinstance(m, nn.Dropout) and m.p > 0}
    assert others == (
        {"dropout"} if field == "embd_dropout" else {f"h.{i}.{b}.dropout" for i in (0, 1) for b in ("attn", "mlp")}
    )


@pytest.mark.parametrize("by_hand", [True, False])
def test_attention_dropout(by_hand: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first token attends to itself alone, with weight 0 or 1 / (1 - p); the mean over many stays."""
    monkeypatch.setattr(geometry, "CPU_BY_HAND_TOKENS", 512 if by_hand else 0)
    q, v = torch.randn(500, 8, 3, 2), torch.ones(500, 8, 3, 2)
    where = geometry.Geometry(torch.arange(3), None, None, is_causal=True)
    torch.manual_seed(0)
    out = geometry.attend(q, q, v, where, scale=1.0, dropout=0.2)
    assert set(out[:, :, 0].unique().tolist()) == {0.0, 1.25}
    assert abs(float((out[:, :, 0, 0] == 0).double().mean()) - 0.2) < 5 * math.sqrt(0.2 * 0.8 / 4000)
    assert out.mean().item() == pytest.approx(1.0, abs=0.03)
    model, ids = tiny(attn_dropout=0.2), tokens(2, 8)
    assert torch.equal(model(ids), model(ids))
    model.train()
    assert not torch.equal(model(ids), model(ids))


# --- loss


def nats(logits: Tensor, targets: Tensor) -> Tensor:
    logits = logits.double()
    log_sum = (logits - logits.amax(-1, keepdim=True)).exp().sum(-1).log() + logits.amax(-1)
    return log_sum - logits.gather(-1, targets.clamp(min=0)[..., None])[..., 0]


def test_cross_entropy_is_the_negative_log_probability() -> None:
    logits, targets = 5 * torch.randn(3, 7, 11, dtype=torch.float64), tokens(3, 7, 11)
    targets[0, :3] = targets[2, 6] = IGNORE
    scored = targets != IGNORE
    expected = torch.where(scored, nats(logits, targets), 0.0)
    assert close(cross_entropy(logits, targets, "none"), expected)
    assert cross_entropy(logits, targets, "sum").item() == pytest.approx(expected.sum().item())
    assert cross_entropy(logits, targets).item() == pytest.approx(expected.sum().item() / 17)
    wild = logits.clone()
    wild[~scored] = 1e4
    assert cross_entropy(wild, targets).item() == cross_entropy(logits, targets).item()


def test_cross_entropy_of_bf16_is_reduced_in_fp32() -> None:
    logits, targets = torch.randn(64, 64, 50).bfloat16(), tokens(64, 64, 50)
    loss = cross_entropy(logits, targets)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(nats(logits, targets).mean().item(), rel=1e-6)


def test_nothing_to_score() -> None:
    model, ids = tiny(), tokens(2, 8)
    nothing = torch.full_like(ids, IGNORE)
    total = model.loss(ids, nothing, reduction="sum")
    total.backward()
    assert total.item() == 0.0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
    assert model.loss(ids, nothing).isnan()


# --- sizes and misuse


@pytest.mark.parametrize("position", ["rope", "alibi", "sinusoidal", "none"])
def test_only_a_table_limits_the_context(position: str) -> None:
    model, ids = tiny(position=position), tokens(1, 40)
    assert model(ids).shape == (1, 40, 29)
    longer = GPT(replace(model.config, block_size=40)).double().eval()
    longer.load_state_dict(model.state_dict())
    assert torch.equal(longer(ids), model(ids))


def test_one_token() -> None:
    model, ids = tiny(window=3, n_kv_head=2), tokens(3, 1)
    cache = Cache(model.config, 3, 1, torch.float64)
    with torch.no_grad():
        assert close(model(ids, cache=cache), model(ids))


def test_misuse_is_explained() -> None:
    model, ids = tiny(), tokens(2, 13)
    with pytest.raises(UsageError, match="13 tokens do not fit in block_size 12: shorten"):
        model(ids)
    cache = Cache(model.config, 2, 8, torch.float64)
    with pytest.raises(UsageError, match="9 tokens do not fit in a cache of 8"):
        model(ids[:, :9], cache=cache)
    with torch.no_grad():
        model(ids[:, :8], cache=cache)
    with pytest.raises(UsageError, match="9 tokens do not fit in a cache of 8"):
        model(ids[:, :1], cache=cache)
    cache.reset()
    with pytest.raises(UsageError, match="documents and a cache exclude each other"):
        model(ids[:, :8], torch.zeros(2, 8, dtype=torch.int32), cache)
    with pytest.raises(UsageError, match="vocab_size is 0: pass the tokenizer's vocab_size"):
        GPT(GPTConfig(vocab_size=0))
