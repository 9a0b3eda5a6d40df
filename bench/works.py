"""What bench/run.py measures: works, the contenders of each, and the aims that the project set itself.

One call of a work's `measure` is one process, and nothing heavy is imported before it: `start` times imports.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minilm.config import GPTConfig

Values = dict[str, Any]
TUNED = {"THP_MEM_ALLOC_ENABLE": "1", "MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
"""glibc's thresholds as `runtime.tune_allocator` sets them, for peers that do not; large pages too."""
SMALL = bool(os.environ.get("MINILM_BENCH_SMALL"))
"""Whether works are only being tried: little models, little text."""
HIGHER_IS_BETTER = {"tokens/s", "MB/s", "read GB/s"}


@dataclass(frozen=True)
class Aim:
    """A ratio of two contenders' values within a round (the better of several), or without peers a value itself."""

    bound: float
    ours: tuple[str, ...]
    peers: tuple[str, ...] = ()
    metric: str = ""
    """Empty: the work's own."""
    most: bool = False
    """The bound is an upper one of ours / peer; else a lower one of how many times as good ours is."""
    of: Callable[[Values, Values], float] | None = None
    """What is compared instead of a ratio of one metric, from (ours, peer)."""
    why: str = ""
    """In words, where `metric` does not say it."""


@dataclass(frozen=True)
class Work:
    """One comparison. The first contender is minilm as it comes."""

    name: str
    title: str
    contenders: tuple[str, ...]
    metric: str
    """Of the values, what ratios are of."""
    measure: Callable[[str, str], Values]
    """(contender, path of nanoGPT) -> values, in this process."""
    aims: tuple[Aim, ...] = ()
    widens: tuple[str, ...] = ()
    """Contenders that store bf16 and multiply fp32, so that no processor emulates them."""
    needs_text: bool = False
    """Reads the test data and GPT-2's vocabulary in it."""

    def package(self, contender: str) -> str:
        """The peer's package, or nothing where it is minilm."""
        word = contender.split()[0]
        return word if word in PEERS else ""

    def missing(self, contender: str, nanogpt: str) -> str:
        """Why a contender cannot run here, or nothing."""
        package = self.package(contender)
        if package == "nanogpt" and not nanogpt:
            return "give --nanogpt PATH"
        if package not in ("", "nanogpt") and importlib.util.find_spec(package) is None:
            return f"{package} is not installed"
        if self.needs_text and not os.environ.get("MINILM_TEST_DATA"):
            return "MINILM_TEST_DATA names no folder of test data"
        narrow = {"bf16", "pure_bf16"} & set(contender.split()) and contender not in self.widens
        if narrow and emulated():
            return "this processor emulates bf16"
        return ""

    def environment(self, contender: str) -> dict[str, str]:
        from minilm.runtime import NO_CACHE

        uncached = {"GLIBC_TUNABLES": NO_CACHE}  # as `runtime.begin_tuned` begins train.py
        if "tuned" in contender.split():
            return TUNED | uncached
        return uncached if self.name.startswith(("train", "finetune")) and not self.package(contender) else {}


@cache
def emulated() -> bool:
    """Whether bf16 products are slower than fp32's here."""
    import torch

    from minilm import runtime

    cpu = torch.device("cpu")
    return runtime.matmul_flops(cpu, torch.bfloat16) < runtime.matmul_flops(cpu, torch.float32)


def version(package: str, nanogpt: str) -> str:
    """A peer's version; of nanoGPT the commit of the checkout."""
    if package == "nanogpt":
        import subprocess

        words = ["git", "-C", nanogpt, "rev-parse", "--short=10", "HEAD"]
        return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    import importlib.metadata

    return importlib.metadata.version(package)


def gpt2(block_size: int = 1024) -> GPTConfig:
    """GPT-2 124M, with a small stand-in where works are only being tried."""
    from minilm.config import GPTConfig

    return GPTConfig(block_size=block_size, **({"n_layer": 2, "n_head": 2, "n_embd": 32} if SMALL else {}))


def test_data() -> Path:
    return Path(os.environ["MINILM_TEST_DATA"])


def _from(module: str, function: str, *arguments: Any) -> Callable[[str, str], Values]:
    """Imports the module when it is called."""
    return lambda contender, nanogpt: getattr(importlib.import_module(module), function)(contender, nanogpt, *arguments)


PEERS = ("transformers", "nanogpt", "ctranslate2", "tiktoken", "datasets")
TRAINERS = (
    "minilm",
    "minilm pure_bf16",
    "minilm fp32 eager",
    "transformers",
    "transformers fused compiled",
    "transformers fused compiled tuned",
    "transformers bf16 fused compiled",
    "transformers bf16 fused compiled tuned",
    "nanogpt",
    "nanogpt fused compiled",
    "nanogpt bf16 fused compiled",
)
DECODERS = (
    "minilm fp32",
    "minilm bf16",
    "minilm int8",
    "minilm eager fp32",
    "transformers fp32",
    "transformers bf16",
    "ctranslate2 float32",
    "ctranslate2 int8",
)
COMPILED = ("transformers bf16 fused compiled", "nanogpt bf16 fused compiled")
TUNED_COMPILED = "transformers bf16 fused compiled tuned"
FREED: dict[str, Any] = {
    "of": lambda ours, full: (full["MiB"] - ours["MiB"]) / (full["state MiB"] - ours["state MiB"]),
    "why": "memory given back, of gradients and optimizer state",
}
APART: dict[str, Any] = {
    "of": lambda ours, theirs: abs(ours["nats per token"] - theirs["nats per token"]),
    "why": "nats per token, apart",
}
MINILM = ("minilm",)
ADAMW = "minilm adamw"  # the recipe's own optimizer
BEST_DECODER = Aim(1.6, DECODERS[:3], DECODERS[4:], why="tokens/s, the best of each")


def _training(B: int, T: int, *aims: Aim) -> Work:
    title = f"GPT-2 124M, random weights, {B} x {T:,} tokens: forward, backward, clip, AdamW"
    return Work(f"train-{B}x{T}", title, TRAINERS, "tokens/s", _from("training_works", "train", B, T), aims)


def _frozen(name: str, times: float) -> tuple[Aim, Aim]:
    return Aim(times, (name,), ("full",)), Aim(1.0, (name,), ("full",), **FREED)


WORKS = {
    work.name: work
    for work in (
        Work("limits", "this machine's limits", ("machine",), "read GB/s", _from("training_works", "limits")),
        Work(
            "start", "importing the model class beyond torch, building GPT-2 124M, a first eager step on 256 tokens",
            ("minilm", "transformers"), "together s", _from("training_works", "start"),
            (
                Aim(0.05, MINILM, metric="import minilm s", most=True),
                Aim(3.0, MINILM, metric="first step s", most=True),
            ),
        ),
        _training(
            4, 256,
            Aim(4.5, MINILM, ("transformers",)), Aim(4.5, MINILM, ("nanogpt",)),
            Aim(1.5, MINILM, COMPILED), Aim(1.15, MINILM, (TUNED_COMPILED,)),
            Aim(0.85, MINILM, COMPILED, "MiB", most=True),
            Aim(0.6, ("minilm pure_bf16",), COMPILED, "MiB", most=True),
        ),
        _training(1, 1024, Aim(1.8, MINILM, COMPILED[:1]), Aim(1.3, MINILM, (TUNED_COMPILED,))),
        Work(
            "finetune", "parts of GPT-2 124M trained, beside our own full training, 4 x 256 tokens",
            ("full", "norms", "biases", "top-4", "lora"), "tokens/s", _from("training_works", "finetune"),
            (*_frozen("norms", 1.35), *_frozen("biases", 1.35), *_frozen("top-4", 1.5), *_frozen("lora", 1.3)),
        ),
        Work(
            "decode-1", "GPT-2 124M, 256 new tokens after 32, one row, greedy", DECODERS, "tokens/s",
            _from("decode", "measure", 1),
            (
                Aim(2.3, ("minilm fp32",), ("transformers fp32",)), Aim(2.3, ("minilm bf16",), ("transformers bf16",)),
                Aim(2.5, ("minilm bf16",), ("transformers fp32",), why="tokens/s, each as it comes"),
                Aim(4.0, ("minilm int8",), ("transformers fp32",)), Aim(2.0, ("minilm int8",), ("ctranslate2 int8",)),
            ),
            widens=("minilm bf16",),
        ),
        Work(
            "decode-8", "GPT-2 124M, 256 new tokens after 32, eight rows, greedy", DECODERS, "tokens/s",
            _from("decode", "measure", 8), (BEST_DECODER,), widens=("minilm bf16",),
        ),
        Work(
            "shards", "text to finished shards of GPT-2's tokens, all cores; tiktoken encodes and writes nothing",
            ("minilm", "tiktoken", "datasets"), "MB/s", _from("text_works", "shards"),
            (Aim(10.0, MINILM, ("tiktoken",)),), needs_text=True,
        ),
        Work(
            "perplexity", "GPT-2 124M, stride 512, context 1,024; transformers by its documented loop",
            ("minilm", "minilm bf16", "transformers", "transformers bf16"), "tokens/s", _from("text_works", "score"),
            (
                Aim(3.0, ("minilm bf16",), ("transformers",), why="tokens/s, theirs as it comes"),
                Aim(1.4, ("minilm bf16",), ("transformers bf16",)),
                Aim(1e-4, ("minilm",), ("transformers",), most=True, **APART),
                Aim(1e-3, ("minilm bf16",), ("transformers",), most=True, **APART),
            ),
            needs_text=True,
        ),
        Work(
            "recipe", "nanoGPT's CPU recipe (its README's command) from start to end",
            ("minilm", ADAMW, "nanogpt"), "seconds", _from("training_works", "recipe"),
            (
                Aim(1.8, MINILM, ("nanogpt",), why="seconds, by Muon in 1,000 steps"),
                Aim(1.8, (ADAMW,), ("nanogpt",), why="seconds, by its own AdamW in 2,000 steps"),
                Aim(1.0, MINILM, ("nanogpt",), "val loss", most=True, why="validation loss, each by its own count"),
            ),
            needs_text=True,
        ),
        Work(
            "loader", "batches of 32 x 128 tokens beside a step of `tiny` on one thread", ("minilm",),
            "of a step", _from("text_works", "loader"),
            (
                Aim(0.01, MINILM, metric="slowest of a step", most=True, why="share of a step, slowest packing"),
                Aim(1.0, MINILM, metric="grew MiB", most=True, why="memory's growth in MiB over 100,000 batches"),
            ),
        ),
    )
}  # fmt: skip
