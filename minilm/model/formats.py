"""Checkpoints as others write them: every dialect of GPT-2's tensors becomes minilm's names and orientation.

Names in memory are GPT-2's without `transformer.`, and matrices are nn.Linear's [out, in]; GPT-2's own files hold
Conv1D's [in, out]. Which of the two a file holds is seen from c_attn, whose sides always differ. Nothing in a file is
ever executed.
"""

from __future__ import annotations

import base64
import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minilm.config import GPTConfig
from minilm.errors import UsageError
from minilm.log import read_json
from minilm.model.hf_config import from_json
from minilm.model.hub import INDEX, PICKLE, PICKLE_INDEX, WEIGHTS, shards_of

CONV1D = re.compile(r"\b(c_attn|c_proj|c_fc|c_gate)\.weight$")  # matrices that GPT-2's files hold as [in, out]
_RENAMES = [
    (re.compile(pattern), new)
    for pattern, new in (
        (r"^(module\.|_orig_mod\.|model\.)+", ""),  # DDP, torch.compile, Lightning
        (r"^transformer\.", ""),
        (r"^tok_emb\.", "wte."),
        (r"^pos_emb(\.weight)?$", "wpe.weight"),
        (r"^blocks\.", "h."),
        (r"^head\.", "lm_head."),
        (r"\.ln([12])\.", r".ln_\1."),
        (r"\.gamma$", ".weight"),
        (r"\.beta$", ".bias"),
        (r"\.attn\.proj\.", ".attn.c_proj."),  # minGPT of 2020: projections apart, the feed-forward a Sequential
        (r"\.mlp\.0\.", ".mlp.c_fc."),
        (r"\.mlp\.2\.", ".mlp.c_proj."),
    )
]
_MASK = re.compile(r"\.attn\.(bias|masked_bias|mask)$")  # causal masks, kept as buffers
_OTHER_HEAD = re.compile(r"^(multiple_choice_head|score|classifier|qa_outputs|v_head)\.")
_STATE_KEYS = ("model", "model_state", "model_state_dict", "state_dict")
_CONFIG_KEYS = ("model_args", "config")
# What other trainers call a setting.
_STATED = {"num_layers": "n_layer", "num_heads": "n_head", "dim_embedding": "n_embd", "seq_length": "block_size"}
_STATED |= {f"{part}_pdrop": f"{part}_dropout" for part in ("embd", "attn", "resid")} | {"dropout_rate": "dropout"}
# Heads of minGPT's named sizes, which its saved settings leave out.
_MINGPT_HEADS = {"gpt-nano": 3, "gpt-micro": 4, "gpt-mini": 6, "gopher-44m": 16, "openai-gpt": 12}
_MINGPT_HEADS |= {"gpt2": 12, "gpt2-medium": 16, "gpt2-large": 20, "gpt2-xl": 25}


class Checkpoint(NamedTuple):
    """What a file holds, in our names and orientation."""

    config: GPTConfig
    tensors: dict[str, Tensor]
    notes: list[str]  # what was taken for granted or left out


class _Raw(NamedTuple):
    tensors: dict[str, Tensor]
    stated: dict[str, Any] | None  # settings in the file itself
    activation: str  # of models in this kind of file


def read_checkpoint(path: Path, dtype: torch.dtype, n_head: int = 0) -> Checkpoint:
    """Reads a folder or file. n_head: used where the checkpoint does not say it.

    Raises UsageError where it is damaged, holds code, or is of another architecture.
    """
    config = config_beside(path)
    raw = _read(_weights_file(path))
    tensors, notes = _canonical(raw.tensors, path)
    if config is None or raw.stated is not None:
        mingpt = path.parent / "config.json"
        stated = raw.stated or (read_json(mingpt)["model"] if path.is_file() and mingpt.is_file() else {})
        config = _infer(tensors, {"n_head": n_head, **stated}, raw.activation, path)
        notes.append(
            f"activation {config.activation} and norm_eps 1e-05 are what such files have, this one does not say"
        )
    if config.tie_embeddings and "lm_head.weight" in tensors:
        head = tensors.pop("lm_head.weight")
        if not torch.equal(head, tensors.setdefault("wte.weight", head)):
            tensors["lm_head.weight"] = head
            config = replace(config, tie_embeddings=False)
            notes.append("the head differs from the embedding, so the two are not tied, whatever config.json says")
    is_conv1d = next((t.shape[0] == config.n_embd for n, t in tensors.items() if n.endswith("c_attn.weight")), True)
    for name, tensor in tensors.items():
        turned = tensor.t() if is_conv1d and CONV1D.search(name) and tensor.dim() == 2 else tensor
        tensors[name] = turned.to(dtype, copy=True, memory_format=torch.contiguous_format)
    return Checkpoint(config, tensors, notes)


def config_beside(path: Path) -> GPTConfig | None:
    """The config in a checkpoint's config.json; None where there is none, or only minGPT's settings."""
    file = (path if path.is_dir() else path.parent) / "config.json"
    raw = read_json(file) if file.is_file() else {}
    return from_json(raw, file) if raw and not isinstance(raw.get("model"), dict) else None


def _weights_file(path: Path) -> Path:
    if path.is_file():
        return path
    for name in (WEIGHTS, INDEX, PICKLE, PICKLE_INDEX):
        if (path / name).is_file():
            return path / name
    raise UsageError(f"{path} holds config.json but neither {WEIGHTS} nor {PICKLE}: fetch or save the weights again")


def _read(path: Path) -> _Raw:
    if path.name.endswith(".index.json"):
        parts = []
        for shard in sorted(shards_of(path)):
            if not (path.parent / shard).is_file():
                raise UsageError(f"{path.parent} lacks {shard}, which {path.name} lists: fetch it again")
            parts.append(_read(path.parent / shard))
        return _Raw({name: t for part in parts for name, t in part.tensors.items()}, None, "gelu_tanh")
    if path.suffix == ".safetensors":
        return _Raw(_read_safetensors(path), None, "gelu_tanh")
    if path.suffix == ".json":
        return _read_llm_viz(path)
    return _read_pickle(path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UsageError(f"{path} is damaged or truncated ({_first_line(error)}): fetch or save it again") from None


def _read_pickle(path: Path) -> _Raw:
    """pytorch_model.bin, nanoGPT's ckpt.pt and its kin, minGPT's bare state dict."""
    try:
        with path.open("rb") as file:
            start = file.read(2)
        if start and not start.startswith((b"PK", b"\x80")):
            raise UsageError(f"{path} is no checkpoint: a web page or a Git LFS pointer may stand in its place")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UsageError:
        raise
    except pickle.UnpicklingError as error:
        if "truncated" in str(error):
            raise UsageError(f"{path} is truncated: fetch or save it again") from None
        raise UsageError(
            f"{path} holds code or objects beside tensors, which minilm never executes: ask its author for safetensors"
        ) from None
    except Exception as error:  # torch's reader lets through whatever the damage provokes
        raise UsageError(f"{path} is damaged or truncated ({_first_line(error)}): fetch or save it again") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path} holds no model: it is one {type(content).__name__}")
    state = next((content[k] for k in _STATE_KEYS if isinstance(content.get(k), dict)), None)
    stated = next((content[k] for k in _CONFIG_KEYS if isinstance(content.get(k), dict)), None)
    tensors = {str(k): v for k, v in (state or content).items() if isinstance(v, Tensor)}
    if not tensors:
        raise UsageError(f"{path} holds no tensors of a model")
    # nanoGPT, its kin and minGPT of 2020 use the exact GELU; what Hugging Face and today's minGPT save, GPT-2's.
    exact = stated is not None or any(".attn.query." in name for name in tensors)
    return _Raw(tensors, stated, "gelu" if exact else "gelu_tanh")


def _read_llm_viz(path: Path) -> _Raw:
    """llm-viz's JSON of a minGPT model: {"config": {...}, name: {"shape", "dtype", "data" in base64}}."""
    content = read_json(path)
    stated = content.pop("config", None)
    if not isinstance(stated, dict) or not all(isinstance(v, dict) and "data" in v for v in content.values()):
        raise UsageError(f"{path} holds no weights: name the folder or the file that does")
    tensors = {}
    for name, entry in content.items():
        try:
            dtype = {"torch.float32": torch.float32, "torch.float16": torch.float16}[entry["dtype"]]
            data = bytearray(base64.b64decode(entry["data"], validate=True))
            tensors[name] = torch.frombuffer(data, dtype=dtype).view(entry["shape"])
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise UsageError(f"{path} is damaged at {name} ({_first_line(error)}): fetch it again") from None
    return _Raw(tensors, stated, "gelu_tanh")


def _canonical(raw: dict[str, Tensor], path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors under our names, without masks and other tasks' heads; and a note on each thing left out."""
    tensors, notes = {}, []
    for name, tensor in raw.items():
        for pattern, new in _RENAMES:
            name = pattern.sub(new, name)
        if _MASK.search(name):
            continue
        if _OTHER_HEAD.match(name):
            notes.append(f"{name} is another task's head and was left out")
            continue
        if not tensor.is_floating_point():
            raise UsageError(f"{path}: {name} holds {tensor.dtype}, not floats: minilm does not read quantized weights")
        tensors[name] = tensor.squeeze(0) if name == "wpe.weight" and tensor.dim() == 3 else tensor
    for query in [name for name in tensors if ".attn.query." in name]:
        parts = [tensors.pop(query.replace("query", part), None) for part in ("query", "key", "value")]
        if any(part is None for part in parts):
            raise UsageError(f"{path} holds {query} without its key or value")
        tensors[query.replace("query", "c_attn")] = torch.cat([part for part in parts if part is not None])
    return tensors, notes


def _infer(tensors: dict[str, Tensor], stated: dict[str, Any], activation: str, path: Path) -> GPTConfig:
    """The config of tensors that come without a config.json: shapes tell all but heads, dropout and activation."""
    said = {_STATED.get(key, key): value for key, value in stated.items() if value is not None}
    layers = {int(m[1]) for name in tensors if (m := re.match(r"h\.(\d+)\.", name))}
    wte, wpe = tensors.get("wte.weight", tensors.get("lm_head.weight")), tensors.get("wpe.weight")
    fc = tensors.get("h.0.mlp.c_fc.weight")
    if wte is None or wpe is None or fc is None:
        raise UsageError(f"{path} holds no GPT-2: no wte, wpe and h.0.mlp.c_fc, but {', '.join(list(tensors)[:3])}")
    n_embd = wte.shape[1]
    n_inner = fc.numel() // n_embd
    found = {"n_layer": max(layers) + 1, "n_embd": n_embd, "block_size": wpe.shape[0], "vocab_size": wte.shape[0]}
    for key, value in found.items():
        if said.get(key, value) != value:
            raise UsageError(f"{path} says {key} {said[key]}, its tensors say {value}: it is damaged or edited")
    n_head = said.get("n_head") or _MINGPT_HEADS.get(str(said.get("model_type")))
    if not n_head:
        raise UsageError(f"{path} does not say how many heads it has: put its config.json beside it, or pass n_head")
    head = tensors.get("lm_head.weight")
    values: dict[str, Any] = {
        **found,
        "n_head": n_head,
        "n_inner": 0 if n_inner == 4 * n_embd else n_inner,
        "activation": said.get("activation", activation),
        "attn_bias": "h.0.attn.c_attn.bias" in tensors,
        "mlp_bias": "h.0.mlp.c_fc.bias" in tensors,
        "norm_bias": "ln_f.bias" in tensors,
        "tie_embeddings": head is None or torch.equal(head, wte),
    }
    for name in ("embd_dropout", "attn_dropout", "resid_dropout"):
        values[name] = said.get(name, said.get("dropout", 0.0))
    try:
        return GPTConfig(**values)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
