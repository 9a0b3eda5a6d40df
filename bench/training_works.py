"""Works of bench/run.py: the machine's limits, starting, training, finetuning, nanoGPT's CPU recipe."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pages import ROOT
from works import ADAMW, SMALL, Values, gpt2, test_data

MANY_STEPS = 10 if SMALL else 10_000  # enough that compiling is worth it
FROZEN: dict[str, dict[str, Any]] = {
    "full": {},
    "norms": {"train_only": ("norms",)},
    "biases": {"train_only": ("biases",)},
    "top-4": {"train_only": ("top:4", "ln_f")},
    "lora": {"lora_rank": 16, "lora_targets": ("attention", "mlp")},
}


def limits(_: str, __: str) -> Values:
    """Rate of products by dtype, and of reading memory."""
    import torch

    from minilm import bench

    found = bench.limits(torch.device("cpu"))
    rates = {f"{dtype} TFLOP/s": flops / 1e12 for dtype, flops in found.flops.items()}
    return rates | {"read GB/s": found.bytes_per_second / 1e9, "threads": found.threads}


def start(contender: str, _: str) -> Values:
    """Seconds to import beyond torch, to build GPT-2 124M, and for its first step, eager, on 1 x 256 tokens."""
    import torch

    if contender == "minilm":
        begin = time.perf_counter()
        import minilm

        package = time.perf_counter() - begin
        minilm.GPT  # noqa: B018, names are resolved on first use
        imported = time.perf_counter() - begin
        from minilm import bench
        from minilm.config import TrainConfig

        begin = time.perf_counter()
        config = TrainConfig(model=gpt2(256), batch_size=1, compile="off", precision="fp32")
        steps = bench.Steps(config)
        built = time.perf_counter() - begin
        steps.step()
        return {"import minilm s": package, **_starting(imported, built, time.perf_counter() - begin)}
    begin = time.perf_counter()
    from transformers import GPT2LMHeadModel  # noqa: F401

    imported = time.perf_counter() - begin
    from peers import transformers_gpt2

    begin = time.perf_counter()
    model, loss_of = transformers_gpt2(gpt2(256), False)
    ids = torch.randint(50257, (1, 257))
    built = time.perf_counter() - begin
    loss_of(ids[:, :-1], ids[:, 1:]).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    torch.optim.AdamW(model.parameters()).step()
    return _starting(imported, built, time.perf_counter() - begin)


def _starting(imported: float, built: float, stepped: float) -> Values:
    """Seconds; of a step, since before the model was built."""
    return {"import s": imported, "build s": built, "first step s": stepped - built, "together s": imported + stepped}


def _ours(config: Any, n_steps: int) -> Values:
    from minilm import bench, runtime

    runtime.begin_tuned()
    found = bench.training(config, n_steps)
    return {
        "tokens/s": found.tokens_per_second,
        "MiB": found.peak_bytes / 2**20,
        "first step s": found.first_step_seconds,
        "loss": found.last_loss,
        "as": f"{found.precision} {'compiled' if found.compiled else 'eager'}",
        "MFU": found.mfu,
        "breaks, recompilations": f"{found.graph_breaks}, {found.recompilations}",
        "state MiB": found.state_bytes / 2**20,
    }


def train(contender: str, nanogpt: str, B: int, T: int, n_steps: int = 5) -> Values:
    """Forward, backward, clip, AdamW on random tokens, GPT-2 124M with random weights. Median of steps after two."""
    from minilm import runtime
    from minilm.config import TrainConfig

    who, *words = contender.split()
    config = gpt2(T)
    if who == "minilm":
        precision: Any = next((w for w in words if w in runtime.PRECISIONS), "auto")
        compile_: Any = "off" if "eager" in words else "auto"
        run = TrainConfig(model=config, batch_size=B, max_steps=MANY_STEPS, precision=precision, compile=compile_)
        return _ours(run, n_steps)
    import torch
    from peers import median_after_two, timed_steps, transformers_gpt2

    model: Any
    loss_of: Any
    if who == "nanogpt":
        sys.path.insert(0, nanogpt)
        theirs = importlib.import_module("model")
        before = runtime.resident_bytes()
        torch.manual_seed(0)
        shape = {name: getattr(config, name) for name in ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")}
        model = theirs.GPT(theirs.GPTConfig(**shape, dropout=0.0)).train()
        called = torch.compile(model) if "compiled" in words else model
        loss_of = lambda ids, targets: called(ids, targets)[1]  # noqa: E731
    else:
        from transformers import GPT2LMHeadModel  # noqa: F401, its import is not what is measured

        before = runtime.resident_bytes()
        model, loss_of = transformers_gpt2(config, "compiled" in words)
    ids = torch.randint(50257, (B, T + 1), generator=torch.Generator().manual_seed(0))
    seconds, loss = timed_steps(model, loss_of, ids, n_steps, fused="fused" in words, half="bf16" in words)
    mib = (runtime.peak_resident_bytes() - before) / 2**20
    speed = B * T / median_after_two(seconds)
    return {"tokens/s": speed, "MiB": mib, "first step s": seconds[0], "loss": loss}


def finetune(contender: str, _: str) -> Values:
    """Steps of GPT-2 124M with random weights where a part of it is trained."""
    from minilm.config import TrainConfig

    run = TrainConfig(model=gpt2(256), batch_size=4, max_steps=MANY_STEPS, init="random weights", **FROZEN[contender])
    return _ours(run, 5)


def recipe(contender: str, nanogpt: str) -> Values:
    """Seconds of the whole command with its data prepared: ours as it comes, and as nanoGPT's, 2,000 steps of AdamW."""
    text = test_data() / "tinyshakespeare"
    with tempfile.TemporaryDirectory() as out:
        if contender != "nanogpt":
            from minilm.text.prepare import prepare

            os.environ["MINILM_DATA"] = str(Path(out) / "shards")
            data = prepare("tinyshakespeare", tokenizer="chars", source=text)
            words = ["--config", "shakespeare_char", "--data", str(data), "--device", "cpu", "--out_dir", f"{out}/run"]
            words += ["--optimizer", "adamw", "--lr", "2e-3"] if contender == ADAMW else []
            words += ["--max_steps", "4" if SMALL else "2000"] if SMALL or contender == ADAMW else []
            folder = ROOT
        else:
            folder = Path(nanogpt)
            theirs = folder / "data" / "shakespeare_char"
            if not (theirs / "train.bin").is_file():
                (theirs / "input.txt").write_bytes((text / "input.txt").read_bytes())
                subprocess.run([sys.executable, "prepare.py"], cwd=theirs, check=True, capture_output=True)
            words = [
                "config/train_shakespeare_char.py", "--device=cpu", "--compile=False", "--eval_iters=20",
                "--log_interval=1", "--block_size=64", "--batch_size=12", "--n_layer=4", "--n_head=4", "--n_embd=128",
                f"--max_iters={4 if SMALL else 2000}", "--lr_decay_iters=2000", "--dropout=0.0", f"--out_dir={out}/run",
            ]  # fmt: skip
        begin = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "train.py", *words], cwd=folder, capture_output=True, text=True, check=False
        )
        seconds = time.perf_counter() - begin
    if done.returncode:
        raise SystemExit((done.stderr or done.stdout).strip().splitlines()[-1])
    told = [line for line in (done.stdout + done.stderr).splitlines() if "val " in line]
    value = float(told[-1].split("val ")[1].removeprefix("loss ").split()[0].strip(","))
    return {"seconds": seconds, "val loss": value}
