"""Weights in and out, against transformers on random weights and against real trained ones."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

from minilm.config import GPTConfig
from minilm.errors import MinilmError, UsageError
from minilm.model.fit import _skeleton
from minilm.model.gpt import GPT
from minilm.model.weights import LoadReport, read_config, save_pretrained
from minilm.model.weights import load_pretrained as load_typed

load_pretrained: Callable[..., tuple[Any, LoadReport]] = load_typed  # Any: torch types a submodule as Tensor | Module
TINY: dict[str, Any] = {"n_layer": 2, "n_head": 4, "n_embd": 32, "n_positions": 24, "vocab_size": 61}
TINY_OURS: dict[str, Any] = {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 24, "vocab_size": 61}
# Every key that GPT-2's code reads, each with several values.
MATRIX: list[dict[str, Any]] = [
    {},
    {"activation_function": "gelu", "n_inner": 40, "layer_norm_epsilon": 1e-2, "tie_word_embeddings": False},
    {"activation_function": "relu", "scale_attn_weights": False, "n_layer": 3, "n_positions": 13},
    {"activation_function": "quick_gelu", "scale_attn_by_inverse_layer_idx": True, "n_layer": 4},
    {"activation_function": "silu", "reorder_and_upcast_attn": True, "n_head": 1, "vocab_size": 50},
    {"activation_function": "relu2", "scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True},
    {"activation_function": "tanh", "reorder_and_upcast_attn": True, "scale_attn_by_inverse_layer_idx": True},
    {"activation_function": "gelu_fast", "n_inner": 32, "n_head": 8, "tie_word_embeddings": False},
]
ENDS = {"bos_token_id": None, "eos_token_id": None}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small only wait for a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def hf_model(seed: int = 0, **keys: Any) -> GPT2LMHeadModel:
    """A random model whose every tensor matters: biases and norms are no longer zeros and ones."""
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(GPT2Config(**{**TINY, **ENDS, "attn_implementation": "eager", **keys}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def our_model(seed: int = 0, **fields: Any) -> Any:
    torch.manual_seed(seed)
    model = GPT(GPTConfig(**{**TINY_OURS, **fields}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def open_in_transformers(folder: Path) -> Any:
    """What AutoModelForCausalLM makes of a folder, every tensor of which it must have found and used."""
    opened: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(opened[1].values()), opened[1]
    return opened[0]


def ids_for(vocab_size: int, T: int = 12) -> Tensor:
    return torch.randint(vocab_size, (2, T), generator=torch.Generator().manual_seed(1))


def assert_close(ours: Tensor, theirs: Tensor, name: str = "") -> None:
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.std(), name


def same_tensors(a: GPT, b: GPT) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def linear_state(model: GPT2LMHeadModel) -> dict[str, Tensor]:
    """State of transformers' model with nn.Linear's orientation, as nanoGPT and minGPT store it."""
    turned = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Conv1D)}
    return {k: (v.t() if k in turned else v).clone().contiguous() for k, v in model.state_dict().items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    hf_model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


# --- transformers and back


@pytest.mark.parametrize("keys", MATRIX, ids=lambda keys: ",".join(keys) or "plain")
def test_loads_what_transformers_saved_and_back(keys: dict[str, Any], tmp_path: Path) -> None:
    theirs = hf_model(**keys)
    theirs.save_pretrained(tmp_path / "theirs")
    ours, report = load_pretrained(tmp_path / "theirs")
    assert not ours.training
    assert str(report) == f"{tmp_path / 'theirs'}: all {len(ours.state_dict())} tensors kept"
    assert ours.num_params() == theirs.num_parameters()

    ids = ids_for(theirs.config.vocab_size)
    assert_close(ours(ids), theirs(ids).logits)
    loss, their_loss = ours.loss(ids[:, :-1], ids[:, 1:]), theirs(ids, labels=ids).loss
    assert abs(loss.item() - their_loss.item()) <= 1e-5 * abs(their_loss.item())
    loss.backward()
    their_loss.backward()
    gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
    for name, module in theirs.named_modules():
        for kind, parameter in module.named_parameters(recurse=False):
            our_name = f"{name}.{kind}".removeprefix("transformer.")
            if our_name == "lm_head.weight" and ours.config.tie_embeddings:
                continue
            gradient, expected = gradients.pop(our_name), parameter.grad
            assert gradient is not None
            assert expected is not None
            assert_close(
                gradient, expected.t() if isinstance(module, Conv1D) and kind == "weight" else expected, our_name
            )
    assert not gradients

    ours.save_pretrained(tmp_path / "ours")
    again = open_in_transformers(tmp_path / "ours")
    state = again.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in theirs.state_dict().items())
    assert_close(ours(ids), again(ids).logits)
    back, _ = load_pretrained(tmp_path / "ours")
    assert same_tensors(back, ours)
    assert back.config == ours.config


def test_dropouts_are_the_files_own(tmp_path: Path) -> None:
    hf_model(embd_pdrop=0.3, attn_pdrop=0, resid_pdrop=0.2).save_pretrained(tmp_path)
    config = read_config(tmp_path)
    assert (config.embd_dropout, config.attn_dropout, config.resid_dropout) == (0.3, 0.0, 0.2)
    raw = json.loads((tmp_path / "config.json").read_text())
    del raw["embd_pdrop"], raw["n_positions"]
    (tmp_path / "config.json").write_text(json.dumps({**raw, "n_ctx": 24}))
    assert read_config(tmp_path).embd_dropout == GPT2Config().embd_pdrop  # transformers' default, not ours
    assert read_config(tmp_path).block_size == 24


OUR_ACTIVATIONS = ["gelu", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python", "gelu_python_tanh"]
OUR_ACTIVATIONS += ["gelu_pytorch_tanh", "quick_gelu", "relu", "relu2", "silu", "swish", "tanh"]


@pytest.mark.parametrize("name", list(ACT2FN))
def test_activation_spellings(name: str, tmp_path: Path) -> None:
    raw = {"model_type": "gpt2", **TINY, "n_layer": 1, "activation_function": name}
    if name not in OUR_ACTIVATIONS:
        (tmp_path / "config.json").write_text(json.dumps(raw))
        with pytest.raises(UsageError, match=f"config.json: minilm has no activation_function '{name}'"):
            load_pretrained(tmp_path)
        return
    theirs = hf_model(n_layer=1, activation_function=name)
    theirs.save_pretrained(tmp_path)
    ids = ids_for(61)
    assert_close(load_pretrained(tmp_path)[0](ids), theirs(ids).logits)


def test_sizes_of_gpt2() -> None:
    sizes = {(12, 12, 768): 124_439_808, (24, 16, 1024): 354_823_168, (36, 20, 1280): 774_030_080}
    sizes[48, 25, 1600] = 1_557_611_200
    for (n_layer, n_head, n_embd), expected in sizes.items():
        assert _skeleton(GPTConfig(n_layer=n_layer, n_head=n_head, n_embd=n_embd)).num_params() == expected


# Every field of GPTConfig away from its default, and whether transformers' GPT-2 can compute it.
GPT2_CAN: list[dict[str, Any]] = [
    {"vocab_used": 61},
    {"vocab_multiple": 64},
    {"activation": "gelu_quick", "n_inner": 24},
    {"activation": "relu2"},
    {"rope_base": 500.0},
    {"window": 24},
    {"n_kv_head": 4},
    {"attn_scale": False, "attn_scale_by_layer": True, "attn_upcast": True},
    {"tie_embeddings": False, "vocab_multiple": 64},
    {"n_unique_layer": 2},
    {"embd_dropout": 0.1, "attn_dropout": 0.2, "resid_dropout": 0.3},
    {"init_scheme": "zero_proj", "init_std": 0.5, "norm_eps": 1e-3},
]
GPT2_CANNOT: list[dict[str, Any]] = [
    {"vocab_used": 60},
    {"activation": "swiglu"},
    {"activation": "geglu", "mlp_bias": False},
    {"norm": "rmsnorm"},
    {"norm": "dyt"},
    {"norm": "none"},
    {"norm_position": "post"},
    {"norm_position": "sandwich"},
    {"norm_scale": False},
    {"norm_bias": False},
    {"final_norm": False},
    {"embd_norm": True},
    {"position": "sinusoidal"},
    {"position": "rope"},
    {"position": "alibi"},
    {"position": "none"},
    {"attn_bias": False},
    {"mlp_bias": False},
    {"qk_norm": True},
    {"n_kv_head": 2},
    {"window": 23},
    {"logit_softcap": 30.0},
    {"parallel_residual": True},
    {"n_unique_layer": 1},
    {"n_factor": 8},
    {"n_factor": 8, "tie_embeddings": False, "vocab_multiple": 64},
    {"skip_attn": (0, 1)},
    {"skip_mlp": (1,)},
]


@pytest.mark.parametrize("fields", GPT2_CAN + GPT2_CANNOT, ids=str)
def test_every_setting_survives_saving(fields: dict[str, Any], tmp_path: Path) -> None:
    model = our_model(**fields)
    model.save_pretrained(tmp_path)
    again, report = load_pretrained(tmp_path)
    assert again.config == model.config
    ids = ids_for(61)
    assert torch.equal(again(ids), model(ids))
    assert str(report).endswith("all " + f"{len(model.state_dict())} tensors kept")
    if fields in GPT2_CAN:
        theirs = open_in_transformers(tmp_path)
        assert_close(model(ids), theirs(ids).logits)
    else:
        with pytest.raises(ValueError, match="minilm"):
            AutoConfig.from_pretrained(tmp_path)


def test_every_setting_was_tried() -> None:
    tried = {name for fields in GPT2_CAN + GPT2_CANNOT for name in fields}
    assert tried == set(vars(GPTConfig())) - set(TINY_OURS)


def test_an_edited_config_is_believed(tmp_path: Path) -> None:
    our_model(rope_base=7.0).save_pretrained(tmp_path / "ours")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "untouched")
    assert read_config(tmp_path / "untouched").rope_base == 7.0
    theirs.resize_token_embeddings(70)
    theirs.config.layer_norm_epsilon = 1e-3
    theirs.save_pretrained(tmp_path / "edited")
    ours, _ = load_pretrained(tmp_path / "edited")
    assert (ours.config.vocab_size, ours.config.norm_eps) == (70, 1e-3)


def test_half_precision(tmp_path: Path) -> None:
    hf_model().bfloat16().save_pretrained(tmp_path / "theirs")
    assert load_pretrained(tmp_path / "theirs")[0].wte.weight.dtype == torch.float32
    ours, _ = load_pretrained(tmp_path / "theirs", dtype=torch.bfloat16, norm="dyt", vocab_size=64)
    assert {p.dtype for p in ours.parameters()} == {torch.bfloat16}
    ours.save_pretrained(tmp_path / "ours")
    assert {t.dtype for t in load_file(tmp_path / "ours" / "model.safetensors").values()} == {torch.bfloat16}


# --- names and files


def to_bin(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Any]]) -> None:
    state = hf_model().state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(change(state), folder / "pytorch_model.bin")


def with_masks(state: dict[str, Tensor]) -> dict[str, Tensor]:
    mask = torch.ones(24, 24, dtype=torch.uint8).tril().view(1, 1, 24, 24)
    masks = {f"transformer.h.{i}.attn.bias": mask for i in range(2)}
    return {**state, **masks, **{f"transformer.h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(2)}}


@pytest.mark.parametrize(
    "change",
    [
        dict,
        with_masks,
        lambda state: {k.removeprefix("transformer."): v for k, v in state.items() if k != "lm_head.weight"},
        lambda state: {f"_orig_mod.{k}": v for k, v in state.items()},
        lambda state: {k: v for k, v in state.items() if k != "transformer.wte.weight"},
        lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}},
    ],
    ids=["as saved", "masks", "no prefix", "compiled", "head only", "wrapped"],
)
def test_names_in_pickles(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Any]]) -> None:
    expected, _ = load_pretrained(folder)
    to_bin(folder, change)
    assert same_tensors(load_pretrained(folder)[0], expected)
    assert same_tensors(load_pretrained(folder / "pytorch_model.bin")[0], expected)


def test_shards(folder: Path, tmp_path: Path) -> None:
    expected, _ = load_pretrained(folder)
    hf_model().save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert not (tmp_path / "shards" / "model.safetensors").exists()
    assert same_tensors(load_pretrained(tmp_path / "shards")[0], expected)
    next((tmp_path / "shards").glob("model-00002-of-*.safetensors")).unlink()
    with pytest.raises(UsageError, match=r"lacks model-00002-of-0000\d.safetensors, which"):
        load_pretrained(tmp_path / "shards")
    index = tmp_path / "shards" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"wte.weight": "../model/model.safetensors"}}))
    with pytest.raises(UsageError, match="no file beside it"):
        load_pretrained(tmp_path / "shards")


def test_pickled_shards(folder: Path) -> None:
    expected, _ = load_pretrained(folder)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    parts = {"a.bin": names[::2], "b.bin": names[1::2]}
    for file, part in parts.items():
        torch.save({name: state[name] for name in part}, folder / file)
    weight_map = {name: file for file, part in parts.items() for name in part}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert same_tensors(load_pretrained(folder)[0], expected)


def test_a_head_that_differs_is_kept_as_transformers_does(tmp_path: Path) -> None:
    hf_model(tie_word_embeddings=False).save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**raw, "tie_word_embeddings": True}))
    ours, report = load_pretrained(tmp_path)
    assert not ours.config.tie_embeddings
    assert "not tied" in str(report)
    ids = ids_for(61)
    assert_close(ours(ids), AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits)


def test_other_tasks_heads_are_left_out_and_named(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    save_file({**state, "score.weight": torch.ones(2, 32)}, folder / "model.safetensors", {"format": "pt"})
    assert "score.weight is another task's head" in str(load_pretrained(folder)[1])


def test_nanogpt(tmp_path: Path) -> None:
    theirs = hf_model(activation_function="gelu")
    state = {f"_orig_mod.{k}": v for k, v in linear_state(theirs).items()}
    args = {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 24, "bias": True, "vocab_size": 61, "dropout": 0.25}
    checkpoint = {"model": state, "optimizer": {"state": {}}, "model_args": args, "iter_num": 5, "config": {"lr": 1.0}}
    torch.save(checkpoint, tmp_path / "ckpt.pt")
    ours, report = load_pretrained(tmp_path)  # a folder that holds one such file
    assert ours.config == GPTConfig(**TINY_OURS, activation="gelu", **dropouts(0.25))
    assert "gelu" in str(report)
    ids = ids_for(61)
    assert_close(ours(ids), theirs(ids).logits)
    assert load_pretrained(tmp_path / "ckpt.pt", activation="gelu_tanh")[1].changes == {"activation": "gelu_tanh"}

    torch.save({**checkpoint, "model_args": {**args, "n_layer": 3}}, tmp_path / "ckpt.pt")
    with pytest.raises(UsageError, match="says n_layer 3, its tensors say 2"):
        load_pretrained(tmp_path / "ckpt.pt")


def dropouts(p: float) -> dict[str, Any]:
    return {"embd_dropout": p, "attn_dropout": p, "resid_dropout": p}


def test_nanogpt_without_biases(tmp_path: Path) -> None:
    theirs = hf_model(activation_function="gelu")
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    state = {k: v for k, v in linear_state(theirs).items() if not k.endswith("bias")}
    args = {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 24, "bias": False, "vocab_size": 61, "dropout": 0.0}
    torch.save({"model": state, "model_args": args}, tmp_path / "ckpt.pt")
    ours, _ = load_pretrained(tmp_path / "ckpt.pt")
    assert (ours.config.attn_bias, ours.config.mlp_bias, ours.config.norm_bias) == (False, False, False)
    ids = ids_for(61)
    assert_close(ours(ids), theirs(ids).logits)


def test_mingpt_state_dicts(tmp_path: Path) -> None:
    theirs = hf_model(tie_word_embeddings=False)
    torch.save(with_masks(linear_state(theirs)), tmp_path / "model.pt")
    ids = ids_for(61)
    with pytest.raises(UsageError, match="how many heads"):
        load_pretrained(tmp_path / "model.pt")
    ours, report = load_pretrained(tmp_path / "model.pt", n_head=4)
    assert not report.changes
    assert_close(ours(ids), theirs(ids).logits)
    settings = {"model": {"model_type": "gpt-micro", "n_head": None, "embd_pdrop": 0.1, "attn_pdrop": 0.1}}
    (tmp_path / "config.json").write_text(json.dumps({"system": {}, **settings}))  # as minGPT's trainer leaves it
    ours, _ = load_pretrained(tmp_path / "model.pt")
    assert (ours.config.n_head, ours.config.embd_dropout, ours.config.resid_dropout) == (4, 0.1, 0.0)
    assert_close(ours(ids), theirs(ids).logits)


def test_mingpt_of_2020(tmp_path: Path) -> None:
    """Queries, keys and values apart, other names, the exact GELU."""
    theirs = hf_model(activation_function="gelu", tie_word_embeddings=False)
    names = {"transformer.": "", "wte.": "tok_emb.", "h.": "blocks.", "ln_1": "ln1", "ln_2": "ln2"}
    names |= {"attn.c_proj": "attn.proj", "mlp.c_fc": "mlp.0", "mlp.c_proj": "mlp.2", "lm_head": "head"}
    old = {}
    for name, tensor in linear_state(theirs).items():
        for ours, other in names.items():
            name = name.replace(ours, other)
        if "c_attn" in name:
            for part, rows in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                old[name.replace("c_attn", part)] = rows.clone()
        elif name == "wpe.weight":
            old["pos_emb"] = tensor[None]
        else:
            old[name] = tensor
    torch.save(old, tmp_path / "model.pt")
    ids = ids_for(61)
    assert_close(load_pretrained(tmp_path / "model.pt", n_head=4)[0](ids), theirs(ids).logits)


# --- changes while loading


def reference(**keys: Any) -> GPT2LMHeadModel:
    """The folder fixture's tensors under other keys."""
    model = GPT2LMHeadModel(GPT2Config(**{**TINY, **ENDS, **keys}))
    model.load_state_dict(hf_model().state_dict(), strict=False)
    return model.eval()


def test_changes_that_transformers_can_follow(folder: Path) -> None:
    ids = ids_for(61)
    expected = hf_model()(ids).logits
    activated, report = load_pretrained(folder, activation="gelu")
    assert_close(activated(ids), reference(activation_function="gelu")(ids).logits)
    assert str(report) == f"{folder} with activation=gelu: all 28 tensors kept"

    first, report = load_pretrained(folder, n_layer=1)
    assert_close(first(ids), reference(n_layer=1)(ids).logits)
    assert len(report.dropped) == 12

    cropped, report = load_pretrained(folder, block_size=12)
    assert_close(cropped(ids), expected)
    assert report.changed == {"wpe.weight": "first 12 of 24 rows"}

    torch.manual_seed(0)
    longer, report = load_pretrained(folder, block_size=1024)
    assert_close(longer(ids), expected)
    assert report.changed == {"wpe.weight": "1000 rows more, initialised"}
    assert longer.wpe.weight[24:].std().item() == pytest.approx(0.02, rel=0.05)

    untied, report = load_pretrained(folder, tie_embeddings=False)
    assert_close(untied(ids), expected)
    assert report.changed == {"lm_head.weight": "copy of wte.weight"}
    with torch.no_grad():
        untied.head_weight.zero_()
    assert untied.wte.weight.abs().max() > 0  # a copy, not a view

    unbiased, report = load_pretrained(folder, attn_bias=False, mlp_bias=False)
    zeroed = reference()
    with torch.no_grad():
        for module in zeroed.modules():
            if isinstance(module, Conv1D):
                module.bias.zero_()
    assert_close(unbiased(ids), zeroed(ids).logits)
    assert sorted(report.dropped) == sorted(
        f"h.{i}.{m}.bias" for i in range(2) for m in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    )


def test_tying_drops_the_head(tmp_path: Path) -> None:
    hf_model(tie_word_embeddings=False).save_pretrained(tmp_path)
    ours, report = load_pretrained(tmp_path, tie_embeddings=True)
    assert report.dropped == {"lm_head.weight": "61 x 32"}
    assert ours.head_weight is ours.wte.weight


def test_a_larger_vocabulary_starts_at_the_mean(folder: Path) -> None:
    plain, _ = load_pretrained(folder)
    larger, report = load_pretrained(folder, vocab_size=70, vocab_multiple=64)
    ids = ids_for(61)
    assert larger(ids).shape[-1] == 70
    assert_close(larger(ids)[..., :61], plain(ids))
    assert_close(larger(ids)[..., 61:], plain(ids).mean(dim=-1, keepdim=True).expand(-1, -1, 9))
    assert not larger.wte.weight[70:].any()
    assert list(report.changed) == ["wte.weight"]
    smaller, _ = load_pretrained(folder, vocab_size=50)
    assert_close(smaller(ids % 50), plain(ids % 50)[..., :50])
    assert load_pretrained(folder, vocab_size=0)[0].config.vocab_size == 61


def test_fewer_key_heads_are_means(folder: Path) -> None:
    plain, _ = load_pretrained(folder)
    pooled, report = load_pretrained(folder, n_kv_head=2)
    for layer in range(2):
        before, after = plain.h[layer].attn.c_attn, pooled.h[layer].attn.c_attn
        for old, new in ((before.weight, after.weight), (before.bias, after.bias)):
            assert torch.equal(new[:32], old[:32])
            for part in range(2):  # keys, then values; heads are 8 wide, each two become one
                for head in range(2):
                    start = 32 * (part + 1) + 16 * head
                    mean = (old[start : start + 8] + old[start + 8 : start + 16]) / 2
                    torch.testing.assert_close(new[32 + 16 * part + 8 * head :][:8], mean)
    assert set(report.changed.values()) == {"4 key and value heads averaged into 2"}


def test_more_key_heads_and_own_blocks_compute_the_same(tmp_path: Path) -> None:
    """Grouped heads and shared blocks unrolled into separate ones: no logit moves."""
    model = our_model(n_kv_head=2, n_layer=4, n_unique_layer=2)
    model.save_pretrained(tmp_path)
    ids = ids_for(61)
    unrolled, report = load_pretrained(tmp_path, n_kv_head=0, n_unique_layer=0)
    assert_close(unrolled(ids), model(ids))
    assert report.changed["h.3.ln_1.bias"] == "copy of h.1.ln_1.bias"
    assert "h.0.ln_1.bias" in report.kept
    shared, report = load_pretrained(tmp_path, n_unique_layer=1)
    assert torch.equal(shared.h[0].ln_1.bias, model.h[0].ln_1.bias)


def test_new_parts_start_as_a_new_model_does(folder: Path) -> None:
    torch.manual_seed(0)
    gated, report = load_pretrained(folder, activation="swiglu", qk_norm=True, norm="dyt", n_inner=96)
    assert gated.h[0].mlp.c_gate.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert gated.h[1].mlp.c_proj.weight.std().item() == pytest.approx(0.01, rel=0.1)  # 0.02 / sqrt(2 n_layer)
    assert torch.equal(gated.h[0].attn.q_norm.weight, torch.ones(8))
    assert gated.ln_f.alpha.item() == 0.5
    assert report.new["h.0.mlp.c_fc.weight"] == "96 x 32, was 128 x 32"
    text = str(report)
    assert "kept, 6 dropped, 19 new" in text
    assert "h.0-1.mlp.c_gate.weight" in text


CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "n_layer": st.sampled_from([1, 2, 4]),
        "block_size": st.sampled_from([12, 30]),
        "vocab_size": st.sampled_from([0, 40, 80]),
        "vocab_multiple": st.sampled_from([1, 64]),
        "activation": st.sampled_from(["relu", "geglu"]),
        "n_inner": st.sampled_from([0, 16]),
        "norm": st.sampled_from(["rmsnorm", "dyt", "none"]),
        "norm_position": st.sampled_from(["post", "sandwich"]),
        "norm_bias": st.booleans(),
        "embd_norm": st.booleans(),
        "position": st.sampled_from(["rope", "alibi", "sinusoidal", "none"]),
        "attn_bias": st.booleans(),
        "mlp_bias": st.booleans(),
        "qk_norm": st.booleans(),
        "n_kv_head": st.sampled_from([1, 2, 4]),
        "n_head": st.sampled_from([4, 8]),
        "tie_embeddings": st.booleans(),
        "parallel_residual": st.booleans(),
        "n_unique_layer": st.sampled_from([0, 1]),
        "n_factor": st.sampled_from([0, 8]),
        "skip_attn": st.sampled_from([(), (0,)]),
        "skip_mlp": st.sampled_from([(), (0,)]),
    },
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=CHANGES)
def test_the_report_accounts_for_every_tensor(folder: Path, changes: dict[str, Any]) -> None:
    file = {name.removeprefix("transformer.") for name in load_file(folder / "model.safetensors")}
    model, report = load_pretrained(folder, **changes)
    assert model.config == replace(read_config(folder), **{k: v for k, v in changes.items() if v or k != "vocab_size"})
    here = [*report.kept, *report.changed, *report.new]
    assert sorted(here) == sorted(model.state_dict())
    origins = {how.split()[2].rstrip(",") if "copy of" in how else name for name, how in report.changed.items()}
    assert {*report.kept, *origins, *report.dropped} == file
    assert not report.dropped.keys() & {*report.kept, *origins}
    ids = ids_for(40)
    model.loss(ids, ids).backward()
    storages = [p.untyped_storage().data_ptr() for p in model.parameters()]
    assert len(set(storages)) == len(storages)  # no two share memory
    assert str(report).count("\n") < 60


def test_unknown_change_names_the_nearest(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"no setting 'activations' \(did you mean activation\?\)"):
        load_pretrained(folder, activations="gelu")
    with pytest.raises(UsageError, match="choose gelu_tanh"):
        load_pretrained(folder, activation="mish")
    with pytest.raises(UsageError, match="has n_embd 32"):
        load_pretrained(folder, n_embd=64)


# --- bad input


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("where", [lambda state, trap: trap, lambda state, trap: {**state, "extra": trap}])
@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_never_executed(
    folder: Path, tmp_path: Path, where: Callable[[dict[str, Tensor], Trap], Any], zipped: bool
) -> None:
    (folder / "model.safetensors").unlink()
    content = where(dict(hf_model().state_dict()), Trap(tmp_path / "sprung"))
    torch.save(content, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UsageError, match="holds code"):
        load_pretrained(folder)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("keep", [0, 10, 400, 0.5, 0.999])
def test_truncated_pickle(folder: Path, zipped: bool, keep: float) -> None:
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    torch.save(dict(hf_model().state_dict()), path, _use_new_zipfile_serialization=zipped)
    os.truncate(path, int(keep if keep >= 1 else keep * path.stat().st_size))
    with pytest.raises(UsageError, match=r"pytorch_model.bin is (damaged or )?truncated"):
        load_pretrained(folder)


@pytest.mark.parametrize("keep", [0, 7, 100, 0.5, 0.999])
def test_truncated_safetensors(folder: Path, keep: float) -> None:
    path = folder / "model.safetensors"
    os.truncate(path, int(keep if keep >= 1 else keep * path.stat().st_size))
    with pytest.raises(UsageError, match=r"model.safetensors is damaged or truncated \(.*\): fetch or save it again"):
        load_pretrained(folder)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"model_type": "llama"}, "is of a llama model: minilm loads GPT-2 models"),
        ({"model_type": None}, "names no model_type"),
        ({"add_cross_attention": True}, "has cross-attention"),
        ({"is_causal": False}, "attends to later tokens"),
        ({"quantization_config": {"bits": 4}}, "cannot honour quantization_config"),
        ({"n_head": 5}, r"n_head \(5\) must divide n_embd"),
        ({"layer_norm_epsilon": "small"}, "norm_eps takes float, not 'small'"),
        ({"attn_pdrop": 1.5}, r"attn_dropout must lie in \[0, 1\)"),
        ({"n_positions": 25}, "wpe.weight is 24 x 32, by its config it should be 25 x 32"),
        ({"n_inner": 64}, r"h.0.mlp.c_fc.weight is 128 x 32, .* should be 64 x 32 \(5 more differ\)"),
        ({"n_layer": 3}, "lacks h.2.attn.c_attn.bias and 11 more tensors: it is incomplete"),
        ({"n_layer": 1}, "holds h.1.attn.c_attn.bias and 11 more tensors, for which its config has no place"),
        ({"tie_word_embeddings": False}, "lacks lm_head.weight"),
    ],
    ids=str,
)
def test_configs_that_cannot_be_honoured(folder: Path, keys: dict[str, Any], message: str) -> None:
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, **keys}))
    with pytest.raises(UsageError, match=message) as caught:
        load_pretrained(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "config.json is damaged, it is no JSON"),
        ("[1]", "config.json holds no object but a list"),
        ('{"vocab_size": 5}', "names no model_type"),
        ('{"n_embd": 8, "afn": "gelu"}', "names no model_type"),  # OpenAI's first GPT
        ('{"model_type": "minilm"}', 'its "minilm" section is missing'),
        ('{"model_type": "minilm", "minilm": {"n_experts": 4}}', "does not know n_experts: update minilm"),
        ('{"model_type": "minilm", "minilm": {"norm": "batch"}}', "norm is 'batch': choose layernorm"),
    ],
)
def test_config_files_that_cannot_be_read(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UsageError, match=message):
        load_pretrained(tmp_path)


def test_weights_that_cannot_be_used(folder: Path, tmp_path: Path) -> None:
    state = load_file(folder / "model.safetensors")
    path = folder / "model.safetensors"

    def refused(tensors: dict[str, Tensor], message: str) -> None:
        save_file(tensors, path, {"format": "pt"})
        with pytest.raises(UsageError, match=message):
            load_pretrained(folder)

    name = "transformer.h.0.crossattention.c_attn.weight"
    refused({**state, name: torch.ones(32, 64)}, "holds h.0.crossattention.c_attn.weight, for which")
    refused({**state, "transformer.ln_f.bias": torch.ones(32, dtype=torch.int8)}, "ln_f.bias holds torch.int8")
    path.unlink()
    with pytest.raises(UsageError, match=r"neither model.safetensors nor pytorch_model.bin"):
        load_pretrained(folder)
    for content, message in (
        ([1, 2], "it is one list"),
        ({"step": 1}, "no tensors"),
        ({"a": torch.ones(1)}, "no GPT-2"),
    ):
        torch.save(content, tmp_path / "odd.pt")
        with pytest.raises(UsageError, match=message):
            load_pretrained(tmp_path / "odd.pt")
    with pytest.raises(UsageError, match="holds no weights"):
        load_pretrained(folder / "config.json")
    (tmp_path / "odd.pt").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(UsageError, match=r"odd.pt is no checkpoint: .* Git LFS pointer"):
        load_pretrained(tmp_path / "odd.pt")


# --- saving


def test_what_a_folder_holds(tmp_path: Path) -> None:
    model = our_model(vocab_multiple=64)
    model.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    tensors = load_file(tmp_path / "model.safetensors")
    assert "lm_head.weight" not in tensors
    assert tensors["transformer.wte.weight"].shape == (61, 32)  # no padding rows
    assert tensors["transformer.h.0.attn.c_attn.weight"].shape == (32, 96)
    assert tensors["transformer.h.0.mlp.c_fc.weight"].shape == (32, 128)
    assert torch.equal(tensors["transformer.h.0.mlp.c_proj.weight"], model.h[0].mlp.c_proj.weight.t())
    raw = json.loads((tmp_path / "config.json").read_text())
    assert (raw["model_type"], raw["bos_token_id"], raw["eos_token_id"]) == ("gpt2", None, None)
    model.save_pretrained(tmp_path)  # over itself
    assert same_tensors(load_pretrained(tmp_path, vocab_multiple=64)[0], load_pretrained(tmp_path)[0])


def test_the_end_token_is_the_tokenizers(tmp_path: Path) -> None:
    class Tokenizer:
        eot = 7

        def save(self, folder: Path) -> None:
            (folder / "tokenizer.json").write_text("{}")

    save_pretrained(our_model(), tmp_path, Tokenizer())  # type: ignore[arg-type]
    assert AutoConfig.from_pretrained(tmp_path).eos_token_id == 7
    assert (tmp_path / "tokenizer.json").is_file()


@pytest.mark.parametrize("library", ["safetensors", "system"])
def test_a_full_disk_leaves_the_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    import safetensors.torch
    from safetensors import SafetensorError

    our_model(0).save_pretrained(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(tensors: Any, path: Path, metadata: Any = None) -> None:
        path.write_bytes(b"half")
        raise SafetensorError("No space left on device") if library == "safetensors" else OSError(28, "No space left")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(MinilmError, match=r"could not be saved in .*No space left") as caught:
        our_model(1).save_pretrained(tmp_path)
    assert isinstance(caught.value, OSError)
    assert caught.value.exit_code == 1
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


# --- real trained weights


def test_the_character_model(shared_data: Path) -> None:
    path = shared_data / "weights" / "SLM_4096" / "ckpt.pt"
    model, report = load_pretrained(path)
    assert len(report.kept) == 52
    letters = torch.load(path, weights_only=True)["stoi"]
    text = (path.parent / "corpus.txt").read_text(encoding="utf-8")
    ids = torch.tensor([letters[c] for c in text])
    T = model.config.block_size
    windows = ids[: (len(ids) - 1) // T * T].view(-1, T)
    with torch.no_grad():
        loss = model.loss(windows, ids[1 : windows.numel() + 1].view(-1, T)).item()
        assert loss == pytest.approx(0.0713, abs=0.003)
        said = [letters[c] for c in "Q: What is SLM?"]
        while len(said) < 125:
            said.append(int(model(torch.tensor([said]))[0, -1].argmax()))
    assert text.startswith("".join({v: k for k, v in letters.items()}[i] for i in said))


def floats(entry: dict[str, Any]) -> Tensor:
    data = np.frombuffer(base64.b64decode(entry["data"]), np.float32).reshape(entry["shape"])
    return torch.from_numpy(data.copy())


def test_the_sorting_model(shared_data: Path) -> None:
    folder = shared_data / "weights" / "llm-viz_gpt-nano-sort"
    model, _ = load_pretrained(folder / "gpt-nano-sort-model.json")
    numbers = torch.randint(3, (300, 6), generator=torch.Generator().manual_seed(0))
    ids = numbers
    with torch.no_grad():
        for _ in range(6):
            ids = torch.cat((ids, model(ids[:, -11:])[:, -1:].argmax(dim=-1)), dim=1)
    assert torch.equal(ids[:, 6:], numbers.sort(dim=1).values)

    partials = json.loads((folder / "gpt-nano-sort-t0-partials.json").read_text())
    seen: dict[str, Tensor] = {}
    first = model.h[0]
    named = {"ln1": first.ln_1, "qkv": first.attn.c_attn, "attnOut": first.attn.c_proj, "ln2": first.ln_2}
    named |= {"fc": first.mlp.c_fc, "mlp": first.mlp, "ln_f": model.ln_f}
    named |= {f"block{i}": block for i, block in enumerate(model.h)}
    for name, module in named.items():
        module.register_forward_hook(lambda _m, _i, output, name=name: seen.__setitem__(name, output))
    with torch.no_grad():
        seen["lm_head"] = model(floats(partials["idx"]).long())
    seen["probs"] = seen["lm_head"].softmax(dim=-1)
    compared = [name for name in seen if name in partials]
    assert len(compared) == 11
    for name in compared:
        torch.testing.assert_close(seen[name], floats(partials[name]), atol=2e-5, rtol=1e-4, msg=name)


def test_the_word_model_without_biases(shared_data: Path) -> None:
    folder = shared_data / "weights" / "GPT_by_Hand"
    model, _ = load_pretrained(folder / "ckpt.pt")
    assert (model.config.attn_bias, model.config.norm_bias) == (False, False)
    best = float(torch.load(folder / "ckpt.pt", weights_only=True, map_location="cpu")["best_val_loss"])
    ids = torch.from_numpy(np.fromfile(folder / "tiny_demo_words" / "val.bin", np.uint16).astype(np.int64))
    T = model.config.block_size
    windows = ids.unfold(0, T + 1, 1)
    with torch.no_grad():
        assert model.loss(windows[:, :-1], windows[:, 1:]).item() == pytest.approx(best, rel=0.1)
