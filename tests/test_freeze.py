"""Freezing: what patterns match, what stays bit-equal, what autograd leaves out, what a finetune reports."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import SINGLE, SIZES, possible
from training_helpers import tiny_config

from minilm.config import GPTConfig, TrainConfig
from minilm.decoding.engine import generate
from minilm.errors import UsageError
from minilm.log import read_metrics
from minilm.model import freeze
from minilm.model.gpt import GPT
from minilm.training import loop
from minilm.training.finetune import START, Unfreezing
from minilm.training.loop import Result, train
from minilm.training.optim import build_optimizers, optimizer_state


def model_of(**changes: Any) -> GPT:
    return GPT(GPTConfig(**{**SIZES, "n_layer": 6, **changes}))


def finetune(first: Result, out_dir: Path, data: Path, **changes: Any) -> Result:
    config = tiny_config(data, out_dir, **{"max_steps": 4, "lr": 1e-3, "warmup_steps": 0, **changes})
    return train(replace(config, model=GPTConfig(), init=str(first.checkpoint)))


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("embeddings", ["wte.weight", "wpe.weight"]),
        ("h.4-5.ln_1.bias", ["h.4.ln_1.bias", "h.5.ln_1.bias"]),
        ("h.0,2-3.attn.c_proj.bias", ["h.0.attn.c_proj.bias", "h.2.attn.c_proj.bias", "h.3.attn.c_proj.bias"]),
        ("ln_f", ["ln_f.weight", "ln_f.bias"]),
        ("h.1.*.c_fc.*", ["h.1.mlp.c_fc.weight", "h.1.mlp.c_fc.bias"]),
        ("wpe.weight", ["wpe.weight"]),
    ],
)
def test_patterns(pattern: str, expected: list[str]) -> None:
    assert freeze.select(model_of(), [pattern]) == set(expected)


def test_groups_are_what_their_names_say() -> None:
    model = model_of(tie_embeddings=False, qk_norm=True, embd_norm=True)
    names = {name for name, _ in model.named_parameters()}
    norms = {n for n in names if "ln_" in n or "_norm" in n}
    assert freeze.select(model, ["norms"]) == norms
    assert freeze.select(model, ["biases"]) == {n for n in names if n.endswith("bias")}
    assert freeze.select(model, ["attention"]) == {n for n in names if ".attn." in n} - norms
    assert freeze.select(model, ["mlp"]) == {n for n in names if ".mlp." in n}
    assert freeze.select(model, ["head"]) == {"lm_head.weight"}
    assert freeze.select(model, ["top:2"]) == {n for n in names if n.startswith(("h.4.", "h.5."))}
    assert freeze.select(model, ["top:99"]) == freeze.select(model, ["h.0-5"]) == freeze.select(model, ["blocks"])
    assert freeze.select(model, ["h.1"]) == {n for n in names if n.startswith("h.1.")}


@pytest.mark.parametrize("changes", [c for c in SINGLE if possible(c)], ids=str)
def test_every_parameter_is_in_one_component_and_counts_sum(changes: dict[str, Any]) -> None:
    model = GPT(GPTConfig(**SIZES, **changes))
    names = [name for name, _ in model.named_parameters()]
    parts = [n for component in freeze.COMPONENTS for n in names if freeze.component_of(model, n) == component]
    assert sorted(parts) == sorted(names)
    freeze.set_trained(model, freeze=["norms"] if any("ln_" in n for n in names) else ["embeddings"])
    last = freeze.table(model).splitlines()[-1].split()
    trained, frozen = (int(word.replace(",", "")) for word in last[1:3])
    assert trained == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained + frozen == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["atention"], "no parameter is called 'atention': nearest are attention"),
        (["mlp", "h.6-9"], r"no parameter is called 'h.6-9'"),
        (["h.3.atn"], r"nearest are .*h\.3\.attn"),
        (["top:0"], "no parameter is called 'top:0'"),
        (["head"], "the head is the embedding table here"),
        (["lora"], "this model has no lora: it has norms, embeddings, attention, mlp, biases, blocks"),
        ([""], "no parameter is called ''"),
        (["blocks", "embeddings", "norms"], "every parameter would be frozen"),
    ],
)
def test_patterns_that_match_nothing_are_told(patterns: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        freeze.set_trained(model_of(), freeze=patterns)
    assert "\n" not in str(caught.value)


def test_train_only_less_freeze() -> None:
    model = model_of()
    freeze.set_trained(model, freeze=["h.0-3"], train_only=["mlp", "ln_f.weight"])
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {n for n, _ in model.named_parameters() if n.startswith(("h.4.mlp", "h.5.mlp"))} | {"ln_f.weight"}
    assert "h.4" not in freeze.table(model)
    assert any(line.startswith("mlp") and line.endswith("blocks 4-5") for line in freeze.table(model).splitlines())


def test_gradients_of_frozen_tensors_are_not_computed_and_the_others_are_as_before() -> None:
    model, ids = model_of().double(), torch.arange(20).view(2, 10)
    model.loss(ids, ids.flip(1)).backward()
    whole = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    freeze.set_trained(model, freeze=["embeddings", "h.0-2", "biases"])
    graphs = []
    for block in model.h:
        block.register_forward_hook(lambda block, inputs, output: graphs.append(output.requires_grad))
    model.loss(ids, ids.flip(1)).backward()
    assert graphs == [False] * 3 + [True] * 3  # below the lowest trained block there is no backward pass
    for name, p in model.named_parameters():
        assert (p.grad is not None) == p.requires_grad, name
        if p.grad is not None:
            assert torch.equal(p.grad, whole[name]), name


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize(
    "changes",
    [
        {"train_only": ("biases",)},
        {"train_only": ("norms",), "freeze": ("ln_f",)},
        {"freeze": ("embeddings", "h.0")},
        {"train_only": ("top:1",), "weight_decay": 0.5},
    ],
)
def test_frozen_tensors_stay_bit_equal(
    data: Path, first: Result, tmp_path: Path, changes: dict[str, Any], optimizer: str
) -> None:
    result = finetune(first, tmp_path / "run", data, optimizer=optimizer, **changes)
    before = GPT.from_pretrained(first.checkpoint).state_dict()
    after = GPT.from_pretrained(result.checkpoint)
    trained = freeze.select(after, changes.get("train_only", ["*"])) - freeze.select(after, changes.get("freeze", ()))
    assert 0 < len(trained) < len(before)
    for name, tensor in after.state_dict().items():
        assert torch.equal(tensor, before[name]) == (name not in trained), name
    state = torch.load(result.checkpoint / "train_state.pt", weights_only=True)
    assert set(state) == trained


def test_levels_from_the_top_down() -> None:
    model = model_of(n_layer=3, embd_norm=True)
    everything = {n for n, _ in model.named_parameters()}
    levels = freeze.stages(model)
    assert [sorted({n.split(".")[0] + n.split(".")[1][:1] for n in level if n[0] == "h"}) for level in levels] == [
        ["h2"], ["h1"], ["h0"], [],
    ]  # fmt: skip
    assert {"ln_f.weight", "ln_f.bias"} <= set(levels[0])
    assert {n.split(".")[0] for n in levels[3]} == {"wte", "wpe", "ln_e"}
    assert sorted(n for level in levels for n in level) == sorted(everything)
    freeze.set_trained(model, train_only=["h.0.mlp", "h.2.mlp"])
    assert [sorted({n[:3] for n in level}) for level in freeze.stages(model)] == [["h.2"], ["h.0"]]


def test_unfreezing_follows_the_step(capsys: pytest.CaptureFixture[str]) -> None:
    model = model_of(n_layer=2)
    optimizers = build_optimizers(model, TrainConfig(weight_decay=0.5))
    schedule = Unfreezing(model, every_steps=2)
    ids = torch.arange(10)[None]
    for step in range(7):
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        schedule.begin_step(step)
        model.loss(ids, ids).backward()
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad(set_to_none=True)
        moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
        assert moved == {n for level in schedule.levels[: step // 2 + 1] for n in level}, step
        assert set(optimizer_state(model, optimizers)) == moved
    assert capsys.readouterr().err.count("unfrozen") == 3


def test_resume_in_the_middle_of_unfreezing_is_bit_exact(data: Path, first: Result, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"unfreeze_every_steps": 3, "freeze": ("wpe",), "save_every_steps": 4}
    whole = finetune(first, tmp_path / "whole", data, max_steps=10, **changes)
    with pytest.MonkeyPatch.context() as patch:
        config = tiny_config(data, tmp_path / "broken", lr=1e-3, warmup_steps=0, **changes)
        config = replace(config, model=GPTConfig(), init=str(first.checkpoint))
        evaluate = loop.evaluate
        calls = iter(range(9))

        def stop(*args: Any) -> float:
            if next(calls) == 1:  # validation after the fifth step; the fourth is saved
                raise KeyboardInterrupt
            return evaluate(*args)

        patch.setattr(loop, "evaluate", stop)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    saved = loop.step_folders(tmp_path / "broken")[-1]
    assert saved.name == "step_000004"
    resumed = train(replace(config, model=GPT.from_pretrained(saved).config, existing="resume"))
    assert resumed.losses == whole.losses[4:]
    for a, b in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(a, b)
    reports = [json.loads((tmp_path / name / "moved.json").read_text()) for name in ("whole", "broken")]
    assert reports[0] == reports[1]


def test_report_of_what_moved(data: Path, first: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = finetune(first, tmp_path / "run", data, freeze=("mlp",))
    before, after = (GPT.from_pretrained(r.checkpoint).state_dict() for r in (first, result))
    whole = json.loads((result.run / "moved.json").read_text())
    told = whole["tensors"]
    assert set(told) == {n for n in before if ".mlp." not in n}
    for name, figures in told.items():
        change = (after[name].double() - before[name].double()).norm().item()
        assert figures["change"] == pytest.approx(change, rel=1e-9)
        assert figures["start"] == pytest.approx(before[name].double().norm().item(), rel=1e-9)
    lines = capsys.readouterr().err.splitlines()
    (row,) = [line.split() for line in lines if line.startswith("attention") and "%" in line]
    names = [n for n in told if ".attn." in n]
    change = math.sqrt(sum(told[n]["change"] ** 2 for n in names))
    start = math.sqrt(sum(told[n]["start"] ** 2 for n in names))
    assert row[1] == str(len(names))
    assert float(row[2]) == pytest.approx(change, rel=1e-3)
    assert float(row[3].rstrip("%")) == pytest.approx(100 * change / start, abs=0.01)
    rows = read_metrics(result.run / "metrics.jsonl")
    assert (rows[0]["step"], rows[0]["val_loss"]) == (0, pytest.approx(first.val_loss, rel=1e-6))
    (line,) = [line for line in lines if line.startswith("validation loss before")]
    assert line.startswith(f"validation loss before {rows[0]['val_loss']:.4f}, after {result.val_loss:.4f}")
    assert whole["val_loss"] == {"before": rows[0]["val_loss"], "after": result.val_loss}
    for when, weights in (("before", first.checkpoint), ("after", result.checkpoint)):
        model = GPT.from_pretrained(weights)
        texts = generate(model, result.tokenizer, ["", ""], max_new_tokens=60, seed=0)
        assert [pair[when] for pair in whole["samples"]] == texts
    assert all(pair["before"] != pair["after"] for pair in whole["samples"])
    assert sum(line.startswith(("--- before: ", "--- after: ")) for line in lines) == 4
    assert whole["operations"] == []


def test_a_run_in_which_nothing_moved_is_an_error(data: Path, first: Result, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nothing moved: all 28 trained tensors .* raise --lr"):
        finetune(first, tmp_path / "run", data, lr=0.0)
    assert loop.step_folders(tmp_path / "run")[-1].name == "step_000004"
    assert (tmp_path / "run" / START).is_file()


def test_a_tensor_that_did_not_move_is_named(
    data: Path, first: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = loop.train_step

    def without_one(run: Any, *args: Any) -> Any:
        p = run.model.ln_f.bias
        kept = p.detach().clone()
        stepped = before(run, *args)
        p.data.copy_(kept)
        return stepped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train_step", without_one)
        finetune(first, tmp_path / "run", data)
    assert "did not move: ln_f.bias" in capsys.readouterr().err.splitlines()
