"""Reading in bf16 by oneDNN's own linear layers, against autocast and fp32."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from minilm.config import GPTConfig
from minilm.errors import MinilmError
from minilm.evaluation import scoring
from minilm.evaluation.packed import Linear, Packed, packs
from minilm.evaluation.scoring import Request, target_nats, target_scores
from minilm.model.gpt import GPT, Block
from minilm.model.lora import LoRALinear

needs_bf16 = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and torch.cpu._is_avx512_bf16_supported()),
    reason="this processor does not multiply bf16",
)
SMALL: dict[str, Any] = {"n_layer": 3, "n_head": 2, "n_embd": 32, "block_size": 48, "vocab_size": 300, "init_std": 0.3}
VARIANTS: list[dict[str, Any]] = [
    *({"activation": name} for name in ("gelu_tanh", "gelu", "gelu_quick", "relu", "silu", "tanh", "swiglu")),
    {"parallel_residual": True},
    {"norm_position": "post"},
    {"norm_position": "sandwich", "norm": "rmsnorm"},
    {"tie_embeddings": False, "n_factor": 16, "vocab_multiple": 64},
    {"vocab_used": 290, "logit_softcap": 10.0},
    {"attn_bias": False, "mlp_bias": False, "position": "rope"},
    {"position": "alibi", "skip_attn": [1], "skip_mlp": [0]},
    {"n_kv_head": 1, "attn_upcast": True},
    {"n_unique_layer": 1},
    {"window": 8},
]


def made(**changes: Any) -> Any:
    torch.manual_seed(0)
    model = GPT(GPTConfig(**(SMALL | changes)))
    for p in model.parameters():  # biases and norms that do something
        p.data += 0.1 * torch.randn_like(p)
    return model.eval()


def requests(n: int = 12, V: int = 290) -> list[Request]:
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 49, n)
    return [Request(rng.integers(0, V, length), int(rng.integers(1, length))) for length in lengths]


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "PACKED_TOKENS", 0)


def nats(model: GPT, asked: list[Request], precision: str) -> np.ndarray:
    return np.concatenate(list(target_nats(model, asked, precision=precision, batch_tokens=128)))


@needs_bf16
@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_every_component_is_read_as_by_autocast(changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = made(**changes), requests()
    exact, autocast = nats(model, asked, "fp32"), nats(model, asked, "bf16")
    monkeypatch.setattr(scoring, "PACKED_TOKENS", 0)
    packed = nats(model, asked, "bf16")
    assert not np.array_equal(packed, exact), "nothing was rounded"
    unlike = np.abs(autocast - exact).mean()
    assert np.abs(packed - exact).mean() < 1.5 * unlike
    assert abs((packed - exact).mean()) < 0.02


@needs_bf16
def test_dropout_hooks_adapters_and_new_weights(always: None) -> None:
    model, asked = made(resid_dropout=0.5), requests()
    before = nats(model, asked, "bf16")
    model.train()
    assert np.array_equal(nats(model, asked, "bf16"), before)
    assert model.training

    called: list[int] = []
    handle = model.h[1].mlp.c_fc.register_forward_hook(lambda *_: called.append(1))
    assert np.allclose(nats(model, asked, "bf16"), before, atol=0.1)
    assert called
    handle.remove()

    adapter = LoRALinear(model.h[0].attn.c_attn, 4, 8.0, 0.0)
    torch.nn.init.normal_(adapter.lora_B)
    model.h[0].attn.c_attn = adapter
    exact, adapted = nats(model, asked, "fp32"), nats(model, asked, "bf16")
    assert np.abs(adapted - exact).mean() < 0.1 < np.abs(adapted - before).mean()

    model.ln_f.weight.data *= 1.5
    model.h[0].mlp.c_proj.weight.data.neg_()
    assert np.abs(nats(model, asked, "bf16") - nats(model, asked, "fp32")).mean() < 0.1


@needs_bf16
@pytest.mark.parametrize("activation", ["gelu_tanh", "gelu", "relu", "relu2", "silu", "swiglu"])
@pytest.mark.parametrize("damaged", ["attn.c_attn.bias", "mlp.c_fc.weight", "mlp.c_proj.weight", "ln_2.weight"])
def test_damaged_weights_are_told(activation: str, damaged: str, always: None) -> None:
    model = made(activation=activation)
    model.h[1].get_parameter(damaged).data.fill_(math.nan)
    with pytest.raises(MinilmError, match="logits are no numbers"):
        nats(model, requests(), "bf16")


@needs_bf16
def test_compiled_blocks_are_read_as_they_are(always: None) -> None:
    model, asked = made(), requests()
    before = nats(model, asked, "bf16")
    model.h[0] = torch.compile(model.h[0], backend="eager")
    assert np.allclose(nats(model, asked, "bf16"), before, atol=0.1)


class OldHidden(GPT):
    """Knows nothing of blocks, and makes logits of its padding rows too."""

    def hidden(self, ids: torch.Tensor, documents: Any = None, cache: Any = None) -> torch.Tensor:  # type: ignore[override]
        return self.wte(ids)

    def used_logits(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.wte.weight.mT


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_model_of_ones_own(precision: str, always: None) -> None:
    torch.manual_seed(0)
    model = OldHidden(GPTConfig(**(SMALL | {"vocab_used": 290}))).eval()
    asked = requests()
    for request, found in zip(asked, target_nats(model, asked, precision=precision), strict=True):
        logits = model.used_logits(model.wte(torch.from_numpy(request.ids[:-1])))
        wanted = torch.nn.functional.cross_entropy(logits, torch.from_numpy(request.ids[1:]), reduction="none")
        assert np.allclose(found, wanted[request.scored - 1 :].detach(), atol=1e-5 if precision == "fp32" else 0.1)


@needs_bf16
def test_few_tokens_are_read_without_laying_weights_out(monkeypatch: pytest.MonkeyPatch) -> None:
    made_up: list[int] = []

    def seen(*args: Any) -> Packed:
        made_up.append(1)
        return Packed(*args)

    monkeypatch.setattr(scoring, "Packed", seen)
    model, asked = made(), requests()
    nats(model, asked, "bf16")
    assert not made_up
    monkeypatch.setattr(scoring, "PACKED_TOKENS", sum(len(r.ids) for r in asked) - 1)
    nats(model, asked, "fp32")
    assert not made_up
    nats(model, asked, "bf16")
    assert len(made_up) == 1


@needs_bf16
def test_what_is_packed() -> None:
    model = made()
    block: Any = Packed(model, 128).blocks[0]
    assert type(block) is Block
    assert block.ln_1.weight is model.h[0].ln_1.weight
    assert type(block.mlp.c_fc) is Linear
    assert block.mlp.c_fc.after == ("gelu", [], "tanh")
    assert type(model.h[0].mlp.c_fc) is torch.nn.Linear
    assert packs(model, "bf16")
    assert not packs(model, "fp32")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_of_equal_logits_the_first_is_the_likeliest(precision: str) -> None:
    """As argmax has it: rows of the head that are alike give logits that are alike."""
    model = made(tie_embeddings=False)
    model.lm_head.weight.data[10:] = model.lm_head.weight.data[10:20].repeat(29, 1)
    asked = requests()
    found = list(target_scores(model, asked, precision=precision))
    for request, scores in zip(asked, found, strict=True):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            best = model(torch.from_numpy(request.ids[None, :-1]))[0].argmax(-1).numpy()
        targets = request.ids[request.scored :]
        agrees = (best[request.scored - 1 :] == targets) == scores.is_top
        assert agrees.all() if precision == "fp32" else agrees.mean() > 0.9
    tied = [Request(np.append(request.ids[:-1], 200), len(request.ids) - 1) for request in asked]
    assert not any(scores.is_top.any() for scores in target_scores(model, tied, precision=precision))
