"""LoRA against its formula in float64, exact resume, merged export, and PEFT."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import close, tiny, tokens
from training_helpers import tiny_config

from minilm.config import GPTConfig, TrainConfig
from minilm.errors import UsageError
from minilm.model import freeze, lora
from minilm.model.gpt import GPT
from minilm.training import loop
from minilm.training.finetune import START
from minilm.training.loop import Result, train


def config_of(first: Result, out_dir: Path, data: Path, **changes: Any) -> TrainConfig:
    settings = {"max_steps": 10, "lora_rank": 3, "lora_alpha": 6.0, "lora_dropout": 0.1, **changes}
    return replace(tiny_config(data, out_dir, **settings), model=GPTConfig(), init=str(first.checkpoint))


def adapted(targets: tuple[str, ...] = ("attention", "mlp"), **changes: Any) -> GPT:
    """A float64 model whose adapters are random."""
    model = tiny(**changes)
    lora.add(model, targets, rank=2, alpha=3.0)
    with torch.no_grad():
        for layer in lora.layers(model).values():
            layer.lora_B.normal_(std=0.5)
    return model


def test_an_untrained_adapter_changes_nothing() -> None:
    model, ids = tiny(), tokens(2, 9)
    before = model(ids)
    lora.add(model, ["attention"], rank=4, alpha=8.0)
    assert torch.equal(model(ids), before)
    assert all(layer.lora_A.abs().sum() > 0 for layer in lora.layers(model).values())


@pytest.mark.parametrize("changes", [{}, {"activation": "swiglu", "n_kv_head": 2}, {"n_unique_layer": 1}])
def test_logits_and_gradients_are_those_of_the_sum(changes: dict[str, Any]) -> None:
    """W + (alpha / rank) B A put into a plain model: dL/dA and dL/dB follow from dL/dW by the chain rule."""
    model, plain, ids = adapted(**changes), tiny(**changes), tokens(3, 11)
    with torch.no_grad():
        for name, layer in lora.layers(model).items():
            plain.get_parameter(f"{name}.weight").add_(3.0 / 2 * layer.lora_B @ layer.lora_A)
    assert close(model(ids), plain(ids))
    freeze.set_trained(model, train_only=["lora"])
    for m in (model, plain):
        m.loss(ids, ids.flip(1)).backward()
    for name, layer in lora.layers(model).items():
        whole = plain.get_parameter(f"{name}.weight").grad
        assert whole is not None
        assert layer.lora_A.grad is not None
        assert layer.lora_B.grad is not None
        assert layer.weight.grad is None
        assert close(layer.lora_B.grad, 1.5 * whole @ layer.lora_A.T)
        assert close(layer.lora_A.grad, 1.5 * layer.lora_B.T @ whole)


def test_dropout_is_on_what_the_adapter_reads() -> None:
    torch.manual_seed(0)
    layer = lora.LoRALinear(torch.nn.Linear(5, 3).double(), rank=2, alpha=2.0, dropout=0.5)
    with torch.no_grad():
        layer.lora_B.normal_()
    x = torch.randn(4000, 5, dtype=torch.float64)
    base = x @ layer.weight.T + layer.bias
    torch.manual_seed(1)
    y = layer(x)
    torch.manual_seed(1)
    dropped = torch.nn.functional.dropout(x, 0.5)
    assert close(y, base + dropped @ layer.lora_A.T @ layer.lora_B.T)
    assert close(layer.eval()(x), base + x @ layer.lora_A.T @ layer.lora_B.T)


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (("attention",), ["h.0.attn.c_attn", "h.0.attn.c_proj", "h.1.attn.c_attn", "h.1.attn.c_proj"]),
        (("*.c_attn.weight",), ["h.0.attn.c_attn", "h.1.attn.c_attn"]),
        (("h.1.mlp", "h.0.attn.c_attn"), ["h.0.attn.c_attn", "h.1.mlp.c_fc", "h.1.mlp.c_proj"]),
        (("top:1",), ["h.1.attn.c_attn", "h.1.attn.c_proj", "h.1.mlp.c_fc", "h.1.mlp.c_proj"]),
    ],
)
def test_targets(targets: tuple[str, ...], expected: list[str]) -> None:
    model = adapted(targets)
    assert sorted(lora.layers(model)) == expected
    names = {n for n, _ in model.named_parameters() if "lora" in n}
    assert freeze.select(model, ["lora"]) == names == {f"{n}.lora_{k}" for n in expected for k in "AB"}


@pytest.mark.parametrize("targets", [("norms",), ("embeddings",), ("mlp", "h.0.ln_1")])
def test_targets_without_a_linear_layer_are_told(targets: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="matches no linear layer of a block"):
        lora.add(tiny(), targets, rank=2, alpha=2.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_export_is_merged_with_equal_logits(tmp_path: Path, dtype: torch.dtype) -> None:
    model, ids = adapted(), tokens(2, 12)
    expected = model(ids)
    model = model.to(dtype)
    model.save_pretrained(tmp_path)
    loaded = GPT.from_pretrained(tmp_path).double().eval()
    assert not lora.layers(loaded)
    assert loaded.state_dict().keys() == tiny().state_dict().keys()
    tolerance = {torch.float64: 1e-5, torch.float32: 1e-5, torch.bfloat16: 5e-2}[dtype]  # files are read as fp32
    assert close(loaded(ids), expected, tolerance)


def test_adapter_goes_through_a_folder(tmp_path: Path) -> None:
    model, ids = adapted(("attention",)), tokens(2, 12)
    lora.save(model, tmp_path, "somewhere")
    other = tiny()
    lora.load(other, tmp_path)
    assert torch.equal(other(ids), model(ids))
    lora.load(model, tmp_path)  # into the adapters that are there
    assert torch.equal(other(ids), model(ids))
    with pytest.raises(UsageError, match=r"adapts h\.1\..*, which this model does not have"):
        lora.load(tiny(n_layer=1), tmp_path)
    with pytest.raises(UsageError, match="of another shape"):
        lora.load(tiny(n_embd=32), tmp_path)
    settings = json.loads((tmp_path / lora.CONFIG).read_text())
    for key, value in (("use_dora", True), ("rank_pattern", {"c_fc": 4}), ("peft_type", "IA3"), ("bias", "all")):
        (tmp_path / lora.CONFIG).write_text(json.dumps(settings | {key: value}))
        with pytest.raises(UsageError, match=f"sets {key} to"):
            lora.load(tiny(), tmp_path)
    (tmp_path / lora.CONFIG).write_text("{")
    with pytest.raises(UsageError, match="no adapter that can be read"):
        lora.load(tiny(), tmp_path)


@pytest.mark.slow
def test_peft_reads_our_adapters_and_we_read_peft_s(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    base, ids = tiny().float(), tokens(2, 12)
    base.save_pretrained(tmp_path / "base")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    ours = adapted().float()
    lora.save(ours, tmp_path / "ours")
    loaded = peft.PeftModel.from_pretrained(theirs, tmp_path / "ours").eval()
    assert close(loaded(ids).logits, ours(ids), 1e-5)
    fresh = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    settings = peft.LoraConfig(r=3, lora_alpha=5, target_modules=["c_attn", "c_fc"], init_lora_weights=False)
    made = peft.get_peft_model(fresh, settings).eval()
    made.save_pretrained(tmp_path / "theirs")
    lora.load(base, tmp_path / "theirs")
    assert close(base.eval()(ids), made(ids).logits, 1e-5)


def test_training_moves_adapters_alone(
    data: Path, first: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = train(config_of(first, tmp_path / "run", data))
    before = GPT.from_pretrained(first.checkpoint).state_dict()
    for name, p in result.model.named_parameters():
        if ".lora_" not in name:
            assert torch.equal(p, before[name]), name
    state = torch.load(result.checkpoint / "train_state.pt", weights_only=True)
    assert set(state) == freeze.select(result.model, ["lora"])
    merged = GPT.from_pretrained(result.checkpoint)
    ids = tokens(2, 20, 200)
    with torch.no_grad():
        assert close(merged(ids), result.model.eval()(ids), 1e-5)
    only = GPT.from_pretrained(first.checkpoint)
    lora.load(only, result.checkpoint / "adapter")
    with torch.no_grad():
        assert torch.equal(only(ids), result.model(ids))
    told = json.loads((result.run / "moved.json").read_text())["tensors"]
    assert set(told) == {f"{name}.weight" for name in lora.layers(result.model)}
    for name, figures in told.items():
        change = merged.get_parameter(name).detach().double() - before[name].double()
        assert figures["change"] == pytest.approx(change.norm().item(), rel=1e-6)
    assert result.losses[-1] < result.losses[0]
    out = capsys.readouterr().err
    assert any(
        line.split()[:3] == ["lora", f"{2 * 3 * (32 + 96 + 32 + 32 + 2 * (32 + 128)):,}", "0"]
        for line in out.splitlines()
    ), out


@pytest.mark.parametrize("changes", [{}, {"train_only": ("norms",), "optimizer": "muon"}])
def test_resume_is_bit_exact(data: Path, first: Result, tmp_path: Path, changes: dict[str, Any]) -> None:
    whole = train(config_of(first, tmp_path / "whole", data, **changes))
    config = config_of(first, tmp_path / "broken", data, **changes)
    evaluate, calls = loop.evaluate, iter(range(9))

    def stop(*args: Any) -> float:
        if next(calls) == 2:  # after the tenth step; the fifth is saved
            raise KeyboardInterrupt
        return evaluate(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "evaluate", stop)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    again = replace(config, model=first.model.config, existing="resume", init="gone")
    resumed = train(again)
    assert resumed.losses == whole.losses[5:]
    for (name, a), b in zip(resumed.model.named_parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert (tmp_path / "whole" / "moved.json").read_text() == (tmp_path / "broken" / "moved.json").read_text()
    (tmp_path / "broken" / START).write_bytes(b"half")
    with pytest.raises(UsageError, match="is missing or damaged"):
        train(replace(again, max_steps=12))


def test_adapters_need_weights(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="name them with --init"):
        train(tiny_config(data, tmp_path / "run", lora_rank=4))
