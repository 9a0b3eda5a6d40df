"""config.json, both ways: Hugging Face's GPT-2 keys and ours.

A file that minilm writes holds every field of GPTConfig under "minilm". Where GPT-2 can express the config, model_type
is "gpt2" and GPT-2's keys stand beside it, so that transformers opens the folder; else it is "minilm", and transformers
refuses it. GPT-2's keys win where the two disagree: someone has edited the file since.
"""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from minilm.config import GPTConfig
from minilm.errors import UsageError

# Ours -> GPT-2's: the same meaning on both sides.
_KEYS = {name: name for name in ("n_layer", "n_head", "n_embd", "vocab_size")}
_KEYS |= {"block_size": "n_positions", "norm_eps": "layer_norm_epsilon", "tie_embeddings": "tie_word_embeddings"}
_KEYS |= {"attn_scale": "scale_attn_weights", "attn_scale_by_layer": "scale_attn_by_inverse_layer_idx"}
_KEYS |= {"attn_upcast": "reorder_and_upcast_attn", "init_std": "initializer_range"}
_KEYS |= {f"{part}_dropout": f"{part}_pdrop" for part in ("embd", "attn", "resid")}
# Second names that transformers maps to the first ones, and the context's name before 2020.
_ALIASES = {
    "n_layer": ("num_hidden_layers",),
    "n_head": ("num_attention_heads",),
    "n_embd": ("hidden_size",),
    "n_positions": ("max_position_embeddings", "n_ctx"),
}
_DROPOUT = {"embd_pdrop": 0.1, "attn_pdrop": 0.1, "resid_pdrop": 0.1}  # what transformers takes where a key is missing
# The first of each is the one we write.
_ACTIVATIONS = {
    "gelu_tanh": ("gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_accurate"),
    "gelu": ("gelu", "gelu_python"),
    "gelu_fast": ("gelu_fast",),
    "gelu_quick": ("quick_gelu",),
    "relu": ("relu",),
    "relu2": ("relu2",),
    "silu": ("silu", "swish"),
    "tanh": ("tanh",),
}
_OURS = {theirs: ours for ours, names in _ACTIVATIONS.items() for theirs in names}
# Fields without effect on what a trained GPT-2 computes.
_INERT = ("vocab_multiple", "init_scheme", "rope_base")


def is_gpt2(config: GPTConfig) -> bool:
    """Whether transformers' GPT-2 computes what this config says."""
    same = {
        **dict.fromkeys((*_KEYS, *_INERT, "n_inner"), True),
        "activation": config.activation in _ACTIVATIONS,
        "n_kv_head": config.kv_heads == config.n_head,
        "n_unique_layer": config.unique_layers == config.n_layer,
        "window": not 0 < config.window < config.block_size,
        "vocab_used": config.vocab_used in (0, config.vocab_size),
    }
    return all(same.get(f.name, getattr(config, f.name) == f.default) for f in fields(config))


def to_json(config: GPTConfig, dtype: str = "float32", eot: int | None = None) -> dict[str, Any]:
    """What config.json holds; eot is the id of <|endoftext|>."""
    if eot is None and config.vocab_size == 50257:
        eot = 50256  # GPT-2's vocabulary; in another one its id would lie outside or mean something else
    ends: dict[str, Any] = {"bos_token_id": eot, "eos_token_id": eot}
    if not is_gpt2(config):
        return {"model_type": "minilm", "vocab_size": config.vocab_size, **ends, "minilm": asdict(config)}
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        **_gpt2_keys(config),
        **ends,
        "torch_dtype": dtype,
        "minilm": asdict(config),
    }


def _gpt2_keys(config: GPTConfig) -> dict[str, Any]:
    return {
        **{theirs: getattr(config, ours) for ours, theirs in _KEYS.items()},
        "n_inner": config.n_inner or None,
        "activation_function": _ACTIVATIONS[config.activation][0],
    }


def from_json(raw: dict[str, Any], path: Path) -> GPTConfig:
    """The config that a config.json describes.

    Raises UsageError, naming path, where it is another architecture's, or asks for what minilm cannot do.
    """
    kind = raw.get("model_type", "gpt2" if "n_embd" in raw and "afn" not in raw else None)
    if kind not in ("gpt2", "minilm"):
        what = "names no model_type" if kind is None else f"is of a {kind} model"
        raise UsageError(f"{path} {what}: minilm loads GPT-2 models (model_type gpt2) and its own (minilm)")
    try:
        ours = _our_fields(raw["minilm"]) if isinstance(raw.get("minilm"), dict) else None
        if kind == "minilm":
            if ours is None:
                raise UsageError('its "minilm" section is missing')
            return ours
        if ours is not None and is_gpt2(ours) and _gpt2_keys(ours).items() <= raw.items():
            return ours
        return _from_gpt2(raw)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def _our_fields(section: dict[str, Any]) -> GPTConfig:
    if unknown := section.keys() - {f.name for f in fields(GPTConfig)}:
        raise UsageError(f"this minilm does not know {', '.join(sorted(unknown))}: update minilm")
    return GPTConfig(**section)


def _from_gpt2(raw: dict[str, Any]) -> GPTConfig:
    values = {**_DROPOUT, **raw}
    for name, others in _ALIASES.items():
        for other in others:
            if other in raw:
                values.setdefault(name, raw[other])
    if raw.get("add_cross_attention"):
        raise UsageError("the model has cross-attention (add_cross_attention), which minilm does not have")
    if raw.get("is_causal") is False:
        raise UsageError("the model attends to later tokens (is_causal is false), which minilm's never do")
    for key in ("quantization_config", "pruned_heads"):
        if raw.get(key):
            raise UsageError(f"minilm cannot honour {key}: load a checkpoint without it")
    activation = values.get("activation_function", "gelu_new")
    if activation not in _OURS:
        raise UsageError(f"minilm has no activation_function {activation!r}, only {', '.join(sorted(_OURS))}")
    found: dict[str, Any] = {ours: values[theirs] for ours, theirs in _KEYS.items() if theirs in values}
    return GPTConfig(**found | {"n_inner": values.get("n_inner") or 0, "activation": _OURS[activation]})
