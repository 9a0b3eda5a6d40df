"""What bench/run.py measures: works, and each contender's way of doing them. One call is one process."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Values = dict[str, Any]
ROOT = Path(__file__).resolve().parent.parent
TUNED = {"THP_MEM_ALLOC_ENABLE": "1", "MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
"""glibc's thresholds as `runtime.tune_allocator` sets them, for peers that do not."""


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
    more_is_better: bool = True
    aims: dict[str, str] = field(default_factory=dict)

    def missing(self, contender: str, nanogpt: str) -> str:
        """Why a contender cannot run here, or nothing."""
        words = contender.split()
        if words[0] == "nanogpt":
            return "" if nanogpt else "give --nanogpt PATH"
        if words[0] != "minilm" and importlib.util.find_spec(words[0]) is None:
            return f"{words[0]} is not installed"
        if {"bf16", "pure_bf16"} & set(words) and emulated():
            return "this processor emulates bf16"
        return ""

    def environment(self, contender: str) -> dict[str, str]:
        return TUNED if "tuned" in contender.split() else {}


def emulated() -> bool:
    """Whether bf16 products are slower than fp32's here."""
    import torch

    from minilm import runtime

    cpu = torch.device("cpu")
    return runtime.matmul_flops(cpu, torch.bfloat16) < runtime.matmul_flops(cpu, torch.float32)


# --- training GPT-2's shape


def train(contender: str, nanogpt: str, B: int, T: int, n_steps: int = 5) -> Values:
    """Forward, backward, clip, AdamW on random tokens, GPT-2 124M with random weights. Median of steps after two."""
    from minilm import bench, runtime
    from minilm.config import GPTConfig, TrainConfig

    who, *words = contender.split()
    config = GPTConfig(block_size=T)
    if who == "minilm":
        runtime.tune_allocator()
        precision = next((w for w in words if w in runtime.PRECISIONS), "auto")
        changes: dict[str, Any] = {"compile": "off"} if "eager" in words else {}
        run = TrainConfig(
            model=config, batch_size=B, max_steps=10_000, precision=precision, optimizer="adamw", **changes
        )
        found = bench.training(run, n_steps)
        return {
            "tokens/s": found.tokens_per_second,
            "MiB": found.peak_bytes / 2**20,
            "first step s": found.first_step_seconds,
            "loss": found.last_loss,
            "as": f"{found.precision} {'compiled' if found.compiled else 'eager'}",
        }
    import torch
    from peers import median_after_two, timed_steps, transformers_gpt2

    model: Any
    loss_of: Any
    if who == "nanogpt":
        sys.path.insert(0, nanogpt)
        theirs = importlib.import_module("model")
        before = runtime.peak_resident_bytes()
        torch.manual_seed(0)
        model = theirs.GPT(theirs.GPTConfig(block_size=T, vocab_size=50257, dropout=0.0)).train()
        called = torch.compile(model) if "compiled" in words else model
        loss_of = lambda ids, targets: called(ids, targets)[1]  # noqa: E731
    else:
        from transformers import GPT2LMHeadModel  # noqa: F401, its import is not what is measured

        before = runtime.peak_resident_bytes()
        model, loss_of = transformers_gpt2(config, "compiled" in words)
    ids = torch.randint(50257, (B, T + 1), generator=torch.Generator().manual_seed(0))
    seconds, loss = timed_steps(model, loss_of, ids, n_steps, fused="fused" in words, half="bf16" in words)
    mib = (runtime.peak_resident_bytes() - before) / 2**20
    return {"tokens/s": B * T / median_after_two(seconds), "MiB": mib, "first step s": seconds[0], "loss": loss}


# --- starting


def start(contender: str, _: str) -> Values:
    """Seconds to import beyond torch, and to the end of an eager first step of GPT-2 124M on 4 x 256 tokens."""
    import torch

    begin = time.perf_counter()
    if contender == "minilm":
        from minilm import GPT  # noqa: F401

        imported = time.perf_counter() - begin
        from minilm import bench
        from minilm.config import GPTConfig, TrainConfig

        begin = time.perf_counter()
        config = TrainConfig(model=GPTConfig(block_size=256), data="", batch_size=4, compile="off", precision="fp32")
        bench.Steps(config).step()
        return {"import s": imported, "first step s": time.perf_counter() - begin}
    from transformers import GPT2LMHeadModel  # noqa: F401

    imported = time.perf_counter() - begin
    begin = time.perf_counter()
    from peers import transformers_gpt2

    from minilm.config import GPTConfig

    module, loss_of = transformers_gpt2(GPTConfig(block_size=256), False)
    ids = torch.randint(50257, (4, 257))
    loss_of(ids[:, :-1], ids[:, 1:]).backward()
    torch.optim.AdamW(module.parameters()).step()
    return {"import s": imported, "first step s": time.perf_counter() - begin}


# --- decoding and perplexity: bench/decode.py and bench/perplexity.py do them


def decode(contender: str, _: str, B: int) -> Values:
    """256 new tokens after 32, greedily."""
    import tempfile

    import torch

    module = importlib.import_module("decode")
    from minilm.config import GPTConfig
    from minilm.model.gpt import GPT

    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=50257)).eval()
    ids = torch.randint(50257, (B, 32), generator=torch.Generator().manual_seed(B))
    with tempfile.TemporaryDirectory() as name:
        model.save_pretrained(name)
        decoder = module.contenders(model, Path(name))[contender]()
        decoder(ids, 4)
        begin = time.perf_counter()
        decoder(ids, 1)
        first = time.perf_counter() - begin
        begin = time.perf_counter()
        decoder(ids, 256)
        return {"tokens/s": B * 256 / (time.perf_counter() - begin), "first token s": first}


# --- nanoGPT's CPU recipe, from start to end


def recipe(contender: str, nanogpt: str) -> Values:
    """Seconds of the whole command: 2,000 steps on tinyshakespeare's characters, validation at the end."""
    import tempfile

    with tempfile.TemporaryDirectory() as out:
        if contender == "minilm":
            command = [sys.executable, "train.py", "--config", "shakespeare_char", "--device", "cpu", "--out_dir", out]
            folder, extra = ROOT, ["--overwrite"]
        else:
            command = [
                sys.executable,
                "train.py",
                "config/train_shakespeare_char.py",
                "--device=cpu",
                "--compile=False",
            ]
            folder = Path(nanogpt)
            extra = [
                f"--out_dir={out}", "--eval_iters=20", "--log_interval=100", "--block_size=64", "--batch_size=12",
                "--n_layer=4", "--n_head=4", "--n_embd=128", "--max_iters=2000", "--lr_decay_iters=2000",
                "--dropout=0.0", "--eval_interval=2000",
            ]  # fmt: skip
        begin = time.perf_counter()
        done = subprocess.run([*command, *extra], cwd=folder, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - begin
        if done.returncode:
            raise SystemExit((done.stderr or done.stdout).strip().splitlines()[-1])
        told = [line for line in (done.stdout + done.stderr).splitlines() if "val " in line]
        value = float(told[-1].split("val ")[1].removeprefix("loss ").split()[0].strip(","))
        return {"seconds": seconds, "val loss": value}


def _train(B: int, T: int) -> Callable[[str, str], Values]:
    return lambda contender, nanogpt: train(contender, nanogpt, B, T)


def _decode(B: int) -> Callable[[str, str], Values]:
    return lambda contender, nanogpt: decode(contender, nanogpt, B)


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
    "nanogpt bf16 fused compiled",
)
DECODERS = (
    "minilm fp32",
    "minilm bf16",
    "transformers fp32",
    "transformers bf16",
    "ctranslate2 float32",
    "ctranslate2 int8",
)
WORKS = {
    work.name: work
    for work in (
        Work("start", "importing, and a first eager step", ("minilm", "transformers"), "first step s", start, False),
        Work(
            "train-4x256", "training GPT-2 124M on 4 x 256 tokens", TRAINERS, "tokens/s", _train(4, 256),
            aims={"transformers": "4.5", "nanogpt": "4.5", "transformers bf16 fused compiled": "1.5",
                  "transformers bf16 fused compiled tuned": "1.15"},
        ),
        Work(
            "train-1x1024", "training GPT-2 124M on 1 x 1,024 tokens", TRAINERS, "tokens/s", _train(1, 1024),
            aims={"transformers bf16 fused compiled": "1.8", "transformers bf16 fused compiled tuned": "1.3"},
        ),
        Work("decode-1", "256 new tokens after 32, one row", DECODERS, "tokens/s", _decode(1),
             aims={"transformers fp32": "2.3", "transformers bf16": "2.3"}),
        Work("decode-8", "256 new tokens after 32, eight rows", DECODERS, "tokens/s", _decode(8),
             aims={"transformers fp32": "1.6", "ctranslate2 float32": "1.6", "ctranslate2 int8": "1.6"}),
        Work("recipe", "nanoGPT's CPU recipe from start to end", ("minilm", "nanogpt"), "seconds", recipe, False,
             aims={"nanogpt": "1.8"}),
    )
}  # fmt: skip
