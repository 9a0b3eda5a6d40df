"""One row's next token by compiled code: what lies between its attentions, in fp32 or with int8 weights.

- A token of one row reads every weight once, so memory decides how fast it can be. torch.compile (AOTInductor) makes
  of each norm, product and activation loops that multiply and sum, which read faster than a matrix product of one row.
  Attention, cache and positions stay the model's own code. Several rows stay eager.
- Weights are arguments: what was compiled for one shape serves every layer and every checkpoint of that shape. It lies
  under $MINILM_CACHE (~/.cache/minilm), one folder a shape; a process of its own compiles it in a minute of processor
  time, at the lowest priority, while texts go on eagerly, and decoding takes it up at the token at which it is ready.
- int8 (weights rounded to 127 steps each way of the largest of their row): the model in memory holds the rounded values
  in fp32, so that every path, eager or compiled, sees the same weights. Compiled code reads one byte a weight where the
  processor has AVX-512; with AVX2 the conversion is so slow that reading four is faster (docs/performance-log.md).

D width, V vocabulary.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minilm.config import GPTConfig
from minilm.errors import MinilmError
from minilm.model import gpt, layers
from minilm.model.cache import Cache
from minilm.model.geometry import Geometry
from minilm.model.gpt import GPT, Block

PIECES = ("before", "after", "head")
_READY: weakref.WeakKeyDictionary[GPT, Fast | Path] = weakref.WeakKeyDictionary()


class Rows(nn.Module):
    """A linear layer of one vector (in,) -> (out,): each output a sum over a row of the weight."""

    def __init__(self, linear: nn.Linear, int8: bool) -> None:
        super().__init__()
        weight = linear.weight.detach()
        scale = _scales(weight) if int8 else None
        self.register_buffer("weight", weight if scale is None else (weight / scale).round().to(torch.int8))
        self.register_buffer("scale", None if scale is None else scale[:, 0])
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        y = (self.get_buffer("weight").to(x.dtype) * x).sum(dim=-1)
        y = y if self._buffers["scale"] is None else y * self.get_buffer("scale")
        return y if self._buffers["bias"] is None else y + self.get_buffer("bias")


class Before(nn.Module):
    """Of a block: x (D,) -> queries, keys and values side by side."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.ln_1, self.c_attn = block.ln_1, block.attn.c_attn

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.c_attn(self.ln_1(x))
        return y


class After(nn.Module):
    """Of a block: x (D,) and what attention mixed (D,) -> the block's output."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block = _without(block, "ln_1", "attn")
        self.c_proj = block.attn.c_proj

    def forward(self, x: Tensor, mixed: Tensor) -> Tensor:
        y: Tensor = self.block.after(x, self.c_proj(mixed))
        return y


class Head(nn.Module):
    """What the model's head reads (D,) -> logits of the rows in use (V,)."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.head_proj = model.head_proj
        self.table = nn.Linear(1, 1, bias=False)
        self.table.weight = nn.Parameter(model.head_rows().detach(), requires_grad=False)
        self.finish = model.finish_logits

    def forward(self, x: Tensor) -> Tensor:
        return self.finish(self.table(self.head_proj(x)))


class Fast:
    """The compiled pieces with one model's weights."""

    def __init__(self, model: GPT, folder: Path, int8: bool) -> None:
        run = {name: torch._C._aoti.AOTIModelPackageLoader(str(folder / f"{name}.pt2"), "model", False, 1, -1).run
               for name in PIECES}  # fmt: skip
        self.blocks: list[Callable[..., Tensor]] = []
        for block in model.h:
            weights = {
                name: _tensors(packed(kind(block), int8)) for name, kind in (("before", Before), ("after", After))
            }
            self.blocks.append(partial(_block, run, block, weights))
        head = _tensors(packed(Head(model), int8))
        self.head: Callable[[Tensor], Tensor] = lambda x: run["head"]([x.reshape(-1), *head])[0][None]


def _block(
    run: dict[str, Any],
    block: Any,
    weights: dict[str, list[Tensor]],
    x: Tensor,
    layer: int,
    geometry: Geometry,
    cache: Cache,
) -> Tensor:
    flat = x.reshape(-1)
    (qkv,) = run["before"]([flat, *weights["before"]])
    mixed = block.attn.mix(qkv.view(1, 1, -1).split(block.attn.widths, dim=-1), layer, geometry, cache)
    (y,) = run["after"]([flat, mixed.reshape(-1), *weights["after"]])
    return y.view_as(x)


def fast(model: GPT, n_rows: int) -> Fast | None:
    """The model's compiled pieces, where they were asked for, are ready and serve so many rows."""
    found = _READY.get(model)
    if n_rows != 1 or found is None:
        return None
    if isinstance(found, Path):
        if not found.is_dir():
            return None  # still compiling
        found = _READY[model] = Fast(model, found, found.name.startswith("int8"))
    return found


def accelerate(model: GPT, int8: bool = False, when: str = "background") -> str:
    """From now on single rows of the model decode by compiled code; returns a phrase that says so, or why not.

    int8: the model's weights are rounded (`round_to_int8`). when: "background" compiles beside, if need be; "now" waits
    for it; "cached" takes only what is there. The model's weights must not change afterwards. Raises MinilmError where
    "now" fails.
    """
    if why := unsupported(model):
        return f"eager ({why})"
    int8 = int8 and reads_int8()
    folder = _folder(model.config, int8)
    if not folder.is_dir():
        if when == "cached":
            return "eager"
        process = _compile_beside(model.config, int8, folder, subprocess.PIPE if when == "now" else subprocess.DEVNULL)
        if when == "now":
            _, said = process.communicate()
            if not folder.is_dir():
                raise MinilmError(f"compiling failed: {said.decode(errors='replace').strip()[-300:]}")
    _READY[model] = folder
    return "compiled" if folder.is_dir() else "eager until it is compiled, for this text or the next"


def reads_int8() -> bool:
    """Whether compiled code is faster with one byte a weight than with four."""
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def unsupported(model: GPT) -> str | None:
    """Why the model's tokens cannot be compiled, or None."""
    from minilm.runtime import compiler_missing

    if model.device.type != "cpu" or model.wte.weight.dtype != torch.float32:
        return "only fp32 and int8 on a CPU are compiled"
    with torch.device("meta"):
        kinds = [type(module) for module in GPT(_one_layer(model.config)).h[0].modules()]
    if any([type(module) for module in block.modules()] != kinds for block in model.h):
        return "its blocks are not all of the config's kind"
    return compiler_missing()


@torch.no_grad()
def round_to_int8(model: GPT) -> None:
    """Weights of products and embeddings become the nearest of 255 values, -127 to 127 times their row's scale."""
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Embedding)]
    for layer in layers:
        scale = _scales(layer.weight)
        layer.weight.copy_((layer.weight / scale).round() * scale)


def _scales(weight: Tensor) -> Tensor:
    """(rows, 1): the largest of each row / 127."""
    return (weight.abs().amax(dim=1, keepdim=True) / 127).clamp(min=torch.finfo(weight.dtype).tiny)


def packed(module: Any, int8: bool) -> Any:
    """The module with `Rows` in place of every linear layer; everything else is shared."""
    if isinstance(module, nn.Linear):
        return Rows(module, int8)
    new = copy.copy(module)
    new._modules = {name: child if child is None else packed(child, int8) for name, child in module._modules.items()}
    return new


def _without(block: Any, *names: str) -> Any:
    new = copy.copy(block)
    new._modules = {name: nn.Identity() if name in names else child for name, child in block._modules.items()}
    return new


def _named(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _tensors(module: nn.Module) -> list[Tensor]:
    return [tensor.detach() for tensor in _named(module).values()]


class _Called(nn.Module):
    """A piece as a function of its inputs and its tensors: it holds none itself."""

    def __init__(self, piece: nn.Module) -> None:
        super().__init__()
        self.hidden = [piece]  # a list hides it from export
        self.names = list(_named(piece))

    def forward(self, *inputs: Tensor) -> Tensor:
        n = len(inputs) - len(self.names)
        weights = dict(zip(self.names, inputs[n:], strict=True))
        y: Tensor = torch.func.functional_call(self.hidden[0], weights, inputs[:n])
        return y


@torch.no_grad()
def compile_pieces(config: GPTConfig, int8: bool, folder: Path) -> None:
    """Compiles a shape's pieces into the folder, which is whole or not there."""
    from torch._inductor import aoti_compile_and_package

    model = GPT(_one_layer(config)).eval()
    x = torch.randn(config.n_embd)
    block: Block = model.h[0]  # type: ignore[assignment]
    pieces = {"before": (Before(block), (x,)), "after": (After(block), (x, x.clone())), "head": (Head(model), (x,))}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        Path(name, "whole").mkdir()
        for piece, (module, inputs) in pieces.items():
            small = packed(module, int8)
            exported = torch.export.export(_Called(small), (*inputs, *_tensors(small)))
            aoti_compile_and_package(exported, package_path=f"{name}/whole/{piece}.pt2")
        if not folder.exists():
            os.rename(f"{name}/whole", folder)


def _folder(config: GPTConfig, int8: bool) -> Path:
    """Where a shape's pieces lie: named by all that decides their code."""
    cache = Path(os.environ.get("MINILM_CACHE") or Path.home() / ".cache" / "minilm").expanduser()
    machine = [torch.__version__, torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()]
    key = json.dumps([asdict(_one_layer(config)), *machine], sort_keys=True).encode()
    code = [Path(module.__file__ or "").read_bytes() for module in (gpt, layers)] + [Path(__file__).read_bytes()]
    digest = hashlib.sha256(b"".join([key, *code])).hexdigest()
    return cache / "compiled" / f"{'int8' if int8 else 'fp32'}-{digest[:16]}"


def _one_layer(config: GPTConfig) -> GPTConfig:
    return replace(config, n_layer=1, n_unique_layer=0, skip_attn=(), skip_mlp=())


def _compile_beside(config: GPTConfig, int8: bool, folder: Path, errors: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "minilm.decoding.compiled", json.dumps(asdict(config)), str(int8), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=errors,
        start_new_session=True,  # Ctrl-C ends the text, not what the next one will use
        preexec_fn=partial(os.nice, 19) if errors == subprocess.DEVNULL and hasattr(os, "nice") else None,  # unawaited
    )


if __name__ == "__main__":
    compile_pieces(GPTConfig(**json.loads(sys.argv[1])), sys.argv[2] == "True", Path(sys.argv[3]))
