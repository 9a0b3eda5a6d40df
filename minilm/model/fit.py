"""Pretrained tensors into a model of another config: what is kept, changed, dropped and new is stated by name."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from minilm.config import GPTConfig
from minilm.errors import UsageError
from minilm.model.formats import Checkpoint
from minilm.model.freeze import ranges
from minilm.model.gpt import GPT

Shapes = dict[str, tuple[int, ...]]


@dataclass
class LoadReport:
    """What became of each tensor. str() of it is one line where all were kept, else a table."""

    source: str
    changes: dict[str, object] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)
    changed: dict[str, str] = field(default_factory=dict)  # name -> how
    dropped: dict[str, str] = field(default_factory=dict)  # name -> shape
    new: dict[str, str] = field(default_factory=dict)  # name -> shape, or why a new one was needed
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        told = ", ".join(f"{k}={v}" for k, v in self.changes.items())
        title = f"{self.source} with {told}" if told else self.source
        groups = {"changed": self.changed, "dropped": self.dropped, "new": self.new}
        counts = ", ".join(f"{len(group)} {name}" for name, group in groups.items() if group)
        kept = f"{len(self.kept)} tensors kept"
        lines = [f"{title}: {kept}, {counts}" if counts else f"{title}: all {kept}"]
        rows = [(name, *row) for name, group in groups.items() for row in _grouped(group)]
        width = max((len(row[1]) for row in rows), default=0)
        lines += [f"  {name:8} {tensors:{width}}  {what}" for name, tensors, what in rows]
        return "\n".join([*lines, *(f"  note     {note}" for note in self.notes)])


def fit(checkpoint: Checkpoint, config: GPTConfig, source: str, dtype: torch.dtype) -> tuple[GPT, LoadReport]:
    """A model of `config` that holds the checkpoint's tensors wherever they have a place in it.

    Raises UsageError on a tensor that is missing, foreign or of a wrong shape for the checkpoint's own config, and on
    another n_embd.
    """
    old, tensors = checkpoint.config, checkpoint.tensors
    if config.n_embd != old.n_embd:
        raise UsageError(f"every tensor of {source} has n_embd {old.n_embd}: another width is trained from scratch")
    _check(tensors, _shapes(old), source)
    changes = {k: v for k, v in vars(config).items() if v != getattr(old, k)}
    report = LoadReport(source, changes=changes, notes=checkpoint.notes)
    fitted: dict[str, Tensor] = {}
    used: set[str] = set()
    fresh: dict[str, Tensor] | None = None
    for name, shape in _shapes(config).items():
        origin = _origin(name, old, config, tensors)
        tensor, how = (None, _text(shape)) if origin is None else _adapt(name, tensors[origin], shape, old, config)
        if origin is None or tensor is None:
            fresh = fresh if fresh is not None else GPT(replace(config, vocab_multiple=1)).state_dict()
            fitted[name] = fresh[name].to(dtype)
            report.new[name] = how
            continue
        fitted[name] = tensor.clone() if origin in used else tensor
        used.add(origin)
        if origin != name:
            how = f"copy of {origin}" + (f", {how}" if how else "")
        if how:
            report.changed[name] = how
        else:
            report.kept.append(name)
    report.dropped = {name: _text(t.shape) for name, t in tensors.items() if name not in used}
    return _build(config, fitted), report


def _build(config: GPTConfig, tensors: dict[str, Tensor]) -> GPT:
    """A model whose parameters are these tensors; padding rows of the vocabulary become zero."""
    for name in ("wte.weight", "lm_head.weight"):
        if name in tensors and config.vocab_rows > config.vocab_size:
            padding = tensors[name].new_zeros(config.vocab_rows - config.vocab_size, tensors[name].shape[1])
            tensors[name] = torch.cat((tensors[name], padding))
    model = _skeleton(config)
    model.load_state_dict(tensors, assign=True)
    return model.eval()


def _shapes(config: GPTConfig) -> Shapes:
    """Name and shape of every tensor that a file of this config holds."""
    return {name: tuple(t.shape) for name, t in _skeleton(replace(config, vocab_multiple=1)).state_dict().items()}


class _NoInit(TorchFunctionMode):
    """torch.nn.init does nothing: on the meta device it would cost the import of torch's compiler, over a second."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def _skeleton(config: GPTConfig) -> GPT:
    """A model without memory or values, in milliseconds."""
    with torch.device("meta"), _NoInit():
        return GPT(config)


def _check(tensors: dict[str, Tensor], expected: Shapes, source: str) -> None:
    if missing := expected.keys() - tensors.keys():
        raise UsageError(f"{source} lacks {_few(missing)}: it is incomplete, or another model than its config says")
    if foreign := tensors.keys() - expected.keys():
        raise UsageError(f"{source} holds {_few(foreign)}, for which its config has no place: another architecture")
    wrong = [name for name, shape in expected.items() if tuple(tensors[name].shape) != shape]
    if wrong:
        name = wrong[0]
        raise UsageError(
            f"{source}: {name} is {_text(tensors[name].shape)}, by its config it should be {_text(expected[name])}"
            + (f" ({len(wrong) - 1} more differ)" if len(wrong) > 1 else "")
        )


def _origin(name: str, old: GPTConfig, new: GPTConfig, tensors: dict[str, Tensor]) -> str | None:
    """The checkpoint's tensor that a tensor of the new model comes from; None: it has to be initialised."""
    if name == "lm_head.weight" and name not in tensors:
        name = "wte.weight"
    elif match := re.match(r"h\.(\d+)\.(.*)", name):
        block = int(match[1])
        if old.n_layer == new.n_layer:  # other sharing at the same depth: a block comes from where it now runs first
            layer = block * (new.n_layer // new.unique_layers)
            block = layer // (old.n_layer // old.unique_layers)
        name = f"h.{block}.{match[2]}"
    return name if name in tensors else None


def _adapt(
    name: str, tensor: Tensor, shape: tuple[int, ...], old: GPTConfig, new: GPTConfig
) -> tuple[Tensor | None, str]:
    """The tensor in its new shape and how it got there ("": as it was); None where it cannot have that shape."""
    before = tuple(tensor.shape)
    if before == shape:
        return tensor, ""
    if name == "wpe.weight" or (name in ("wte.weight", "lm_head.weight") and before[1] == shape[1]):
        n_old, n_new = before[0], shape[0]
        if n_new < n_old:
            return tensor[:n_new].clone(), f"first {n_new} of {n_old} rows"
        if name == "wpe.weight":
            rows = torch.empty(n_new - n_old, shape[1], dtype=tensor.dtype).normal_(std=new.init_std)
            return torch.cat((tensor, rows)), f"{n_new - n_old} rows more, initialised"
        rows = tensor.mean(dim=0, keepdim=True).expand(n_new - n_old, -1)
        return torch.cat((tensor, rows)), f"{n_new - n_old} rows more, each the mean of the others"
    if ".attn.c_attn." in name and old.n_head == new.n_head:
        return _pool_heads(tensor, old, new), f"{old.kv_heads} key and value heads averaged into {new.kv_heads}"
    return None, f"{_text(shape)}, was {_text(before)}"


def _pool_heads(tensor: Tensor, old: GPTConfig, new: GPTConfig) -> Tensor:
    """c_attn with other key and value heads: each is the mean of those its queries used (Ainslie 2023, section 2.1)."""
    H, D = old.n_head, old.n_embd
    query, *keys_and_values = tensor.split([D, old.kv_heads * old.head_width, old.kv_heads * old.head_width])
    pooled = [query]
    for part in keys_and_values:
        per_query = part.unflatten(0, (old.kv_heads, -1)).repeat_interleave(H // old.kv_heads, dim=0)
        pooled.append(per_query.unflatten(0, (new.kv_heads, -1)).mean(dim=1).flatten(0, 1))
    return torch.cat(pooled)


def _grouped(tensors: dict[str, str]) -> list[tuple[str, str]]:
    """(names, what) with the same tensor of several blocks as one entry: h.0-11.ln_1.bias."""
    blocks: dict[tuple[str, str], list[int]] = {}
    for name, what in tensors.items():
        match = re.match(r"h\.(\d+)\.(.*)", name)
        key = (f"h.*.{match[2]}", re.sub(r"h\.\d+\.", "h.*.", what)) if match else (name, what)
        blocks.setdefault(key, []).extend([int(match[1])] if match else [])
    return [(name.replace("*", ranges(numbers)), what) for (name, what), numbers in blocks.items()]


def _text(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape)) or "scalar"


def _few(names: Iterable[str]) -> str:
    first, *rest = sorted(names)
    return f"{first} and {len(rest)} more tensors" if rest else first
