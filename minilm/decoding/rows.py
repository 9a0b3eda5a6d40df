"""A token of a few rows at the speed of memory: products by rows.cpp, everything else by the model's own code.

- A token of one row reads every weight once. torch's product of one row uses one core and half of what memory
  gives; torch.compile's loops reach that in fp32 and fall far behind it with narrower weights (docs/generation.md).
- Weights may be narrower than the arithmetic, which is fp32: bf16, or int8 (127 steps each way of the largest of their
  row). `round_weights` rounds those of the model itself, so that every path sees the same ones.
- rows.cpp is built once a machine, in two seconds, beside the first text; it lies under $MINILM_CACHE
  (~/.cache/minilm). Decoding is eager until it is there, and where there is no g++.

D width, V vocabulary.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import secrets
import shutil
import subprocess
import weakref
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minilm.decoding.fused import Linear, fused, with_linears
from minilm.decoding.graphs import Graphs
from minilm.errors import MinilmError
from minilm.model.cache import Cache
from minilm.model.gpt import GPT

MAX_ROWS = 16  # tokens read at once; more are faster by torch's matrix products
KINDS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.int8: "int8"}
SOURCE = Path(__file__).with_name("rows.cpp")
BUILD = """
    "$0" -O3 -march=native -std=c++17 -fPIC -fopenmp -c "$1" -o "$2.o" && "$0" -shared "$2.o" -o "$2.so" &&
    mv "$2.so" "$3"
    status=$?; rm -f "$2.o" "$2.so"; exit $status
"""
_READY: weakref.WeakKeyDictionary[GPT, Fast | Graphs | str] = weakref.WeakKeyDictionary()


class Rows(nn.Module):
    """A linear layer of few rows (..., in) -> (..., out). kind: what its weights are read as: fp32, bf16, int8."""

    def __init__(self, weight: Tensor, bias: Tensor | None, kind: str) -> None:
        super().__init__()
        self.weight = weight  # of the model itself: what asks a layer for its dtype
        narrow, scale = weight.detach(), None
        if kind == "int8":
            narrow, scale = _steps(narrow)
        self.narrow = narrow.to({"int8": torch.int8, "bf16": torch.bfloat16}.get(kind, weight.dtype)).contiguous()
        self.scale = None if scale is None else scale[:, 0].contiguous()
        self.bias = None if bias is None else bias.detach().float().contiguous()
        self.product = getattr(_library(library_path()), f"rows_{KINDS[self.narrow.dtype]}")
        self.fixed = Linear(*(None if t is None else t.data_ptr() for t in (self.narrow, self.scale, self.bias)))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.float().contiguous()
        n_out, n_in = self.narrow.shape
        y = flat.new_empty(*x.shape[:-1], n_out)
        self.product(self.fixed, flat.data_ptr(), y.data_ptr(), flat.numel() // n_in, n_out, n_in)
        return y.to(x.dtype)


class Fast:
    """A model's blocks and head with `Rows` for linear layers; all else is the model's own, or of GPT-2's one call."""

    def __init__(self, model: GPT, kind: str) -> None:
        call = getattr(_library(library_path()), f"block_{kind}")
        self.blocks = [fused(_packed(block, kind), model.config, call) for block in model.h]
        self.table, self.proj = Rows(model.head_rows(), None, kind), _packed(model.head_proj, kind)

    def head(self, model: GPT, x: Tensor) -> Tensor:
        """x (B, D) -> logits of the rows in use (B, V)."""
        return model.finish_logits(self.table(self.proj(x)))


def fast(model: GPT, n_rows: int) -> Fast | None:
    """What reads so many tokens faster than the model, where it was asked for and is ready."""
    found = _READY.get(model)
    if found is None or isinstance(found, Graphs) or n_rows > MAX_ROWS or model.device.type != "cpu":
        return None
    if isinstance(found, str):
        if not library_path().is_file():
            return None  # still being built
        found = _READY[model] = Fast(model, found)
    return found


def read(model: GPT, ids: Tensor, cache: Cache) -> Tensor:
    """What the head reads of ids (B, T) behind what the cache holds: (B, T, D), by what `accelerate` found."""
    found = _READY.get(model)
    if isinstance(found, Graphs) and ids.shape[1] == 1 and cache.length:
        return found.hidden(model, ids, cache)
    quick = fast(model, ids.numel())
    return model.hidden(ids, cache=cache, blocks=None if quick is None else quick.blocks)


def logits_of(model: GPT, x: Tensor) -> Tensor:
    """What the head reads (N, D) -> logits of the vocabulary in use (N, V), by what `accelerate` found."""
    found = _READY.get(model)
    quick = found if isinstance(found, Graphs) else fast(model, len(x))
    return model.used_logits(x) if quick is None else quick.head(model, x)


def graphed(model: GPT) -> bool:
    """Whether single tokens are read by a graph, which does not wait for them to be known."""
    return isinstance(_READY.get(model), Graphs)


def accelerate(model: GPT, kind: str = "", when: str = "background") -> str:
    """From now on few rows of the model decode by rows.cpp; returns a phrase that says so, or why not.

    kind: what weights are read as: fp32, bf16, int8 ("": as they are), which `round_weights` has to have made them.
    when: "background" builds beside, if need be; "now" waits for it; "cached" takes only what is there. The model's
    weights must not change afterwards. Raises MinilmError where "now" fails. On a card, "now" compiles (`graphs.py`).
    """
    if model.device.type == "cuda" and when == "now":
        _READY[model] = Graphs(model)
        return "compiled, a CUDA graph"
    if why := unsupported(model):
        return f"eager ({why})"
    path = library_path()
    if not path.is_file():
        if when == "cached":
            return "eager"
        try:
            process = _build(path, subprocess.PIPE if when == "now" else subprocess.DEVNULL)
        except OSError as error:
            return f"eager ({path.parent} cannot be written: {error.strerror}; set MINILM_CACHE)"
        if when == "now":
            _, said = process.communicate()
            if not path.is_file():
                raise MinilmError(f"building {SOURCE.name} failed: {said.decode(errors='replace').strip()[-300:]}")
    _READY[model] = kind or KINDS[model.wte.weight.dtype]
    return "products of rows.cpp" if path.is_file() else "eager until rows.cpp is built, for this text or the next"


def unsupported(model: GPT | None = None) -> str | None:
    """Why rows.cpp cannot serve this machine, or the model, or None."""
    if model is not None and (model.device.type != "cpu" or model.wte.weight.dtype not in KINDS):
        return "rows.cpp serves fp32, bf16 and int8 on a CPU"
    if platform.system() != "Linux":
        return "rows.cpp is built on Linux only"
    if not library_path().is_file() and shutil.which(_compiler()) is None:
        return f"no C++ compiler: {_compiler()} was not found"
    return None


@torch.no_grad()
def round_weights(model: nn.Module, kind: str) -> None:
    """Weights of products and embeddings become the nearest that bf16 has, or (int8) of 255 values, -127 to 127 times
    their row's scale."""
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Embedding):
            weight = layer.weight
            if kind == "int8":
                steps, scale = _steps(weight)
                weight.copy_(steps * scale)
            elif kind == "bf16":
                weight.copy_(weight.bfloat16())


def _steps(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest whole steps (rows, in), and a step of each row (rows, 1): its largest / 127."""
    weight = weight.float()
    scale = (weight.abs().amax(dim=1, keepdim=True) / 127).clamp(min=torch.finfo(torch.float32).tiny)
    return (weight / scale).round(), scale


def _packed(module: Any, kind: str) -> Any:
    return with_linears(module, lambda layer: Rows(layer.weight, layer.bias, kind))


@cache
def _library(path: Path) -> ctypes.CDLL:
    """rows.cpp, built. Raises MinilmError where it cannot be loaded."""
    address, number = ctypes.c_void_p, ctypes.c_long
    try:
        library = ctypes.CDLL(str(path))
        for kind in KINDS.values():
            product, block = getattr(library, f"rows_{kind}"), getattr(library, f"block_{kind}")
            product.restype, product.argtypes = None, [ctypes.POINTER(Linear)] + [address] * 2 + [number] * 3
            block.restype, block.argtypes = None, [address] * 7 + [ctypes.c_float] + [number] * 3
    except (OSError, AttributeError) as error:
        raise MinilmError(f"{path} cannot be loaded ({error}): delete it, or decode with --compile off") from None
    return library


def library_path() -> Path:
    """Where rows.cpp lies once it is built."""
    folder = Path(os.environ.get("MINILM_CACHE") or Path.home() / ".cache" / "minilm").expanduser()
    return folder / "compiled" / f"rows-{_digest(_compiler())}.so"


@cache
def _digest(compiler: str) -> str:
    """Tells libraries apart: by rows.cpp's text, the compiler and the processor."""
    cpu = Path("/proc/cpuinfo")
    about = cpu.read_text(encoding="utf-8", errors="replace") if cpu.is_file() else ""
    flags = next((line for line in about.splitlines() if line.startswith(("flags", "Features"))), "")
    key = "\n".join([SOURCE.read_text(encoding="utf-8"), BUILD, compiler, platform.machine(), flags])
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def _compiler() -> str:
    return os.environ.get("CXX") or "g++"


def _build(path: Path, errors: int) -> subprocess.Popen[bytes]:
    """The compiler, on its way; what it makes is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.stem}-{os.getpid()}-{secrets.token_hex(4)}")  # two models may ask at once
    command = ["nice", "sh", "-c", BUILD, _compiler(), str(SOURCE), str(beside), str(path)]
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=errors,
        start_new_session=True,  # Ctrl-C ends the text, not what the next one will use
    )
