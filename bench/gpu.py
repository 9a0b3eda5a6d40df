"""Speed, memory and learning on one GPU, beside a compiled transformers model: one call of under nine minutes.

    python bench/gpu.py                     writes bench/results/gpu.json and docs/benchmarks_gpu.md
    python bench/gpu.py --only "*124M*"     some of its parts, beside what the files hold of the same card and torch
    python bench/gpu.py --device cpu        the same with models that a CPU runs in a minute: to see that it works

Parts run in processes of their own, the most informative first; what no time is left for is named. FLOPs are counted as
6N + 12 L D T; MFU is of the dense bf16 peak in the maker's data sheet.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from fnmatch import fnmatch
from typing import Any

import torch
from pages import ROOT, give, in_a_process
from peers import median_after_two, timed_steps, transformers_gpt2

from minilm import bench, runtime
from minilm.config import GPTConfig, TrainConfig

RESULTS = ROOT / "bench" / "results" / "gpu.json"
PAGE = ROOT / "docs" / "benchmarks_gpu.md"
Values = dict[str, Any]
SIZES = {  # layers, heads, width; rows of 1,024 tokens, on a card of 100 GB and more, and on a smaller one
    "124M": (12, 12, 768, 64, 64),
    "350M": (24, 16, 1024, 64, 32),
    "1.5B": (48, 25, 1600, 8, 8),
}


def shape(size: str, device: str) -> tuple[GPTConfig, int]:
    """The model and the rows of a batch; on a CPU a small one in its place."""
    layers, heads, width, *rows = SIZES[size]
    if device == "cpu":
        return GPTConfig(n_layer=2, n_head=2, n_embd=64, block_size=64, vocab_size=512), 2
    small = torch.cuda.get_device_properties(device).total_memory < 100e9
    return GPTConfig(n_layer=layers, n_head=heads, n_embd=width), rows[small]


def ours(size: str, device: str, optimizer: str = "adamw") -> Values:
    config, rows = shape(size, device)
    how: Any = {"optimizer": optimizer, "device": device, "compile": "on", "micro_batch_size": rows}
    found = bench.training(TrainConfig(model=config, batch_size=rows, max_steps=10_000, **how), 15)
    values = {"rows": rows, "tokens/s": found.tokens_per_second, "MFU": found.mfu, "GiB": found.peak_bytes / 2**30}
    return (
        values
        | {"compile s": found.first_step_seconds, "graph breaks": found.graph_breaks}
        | {"recompilations": found.recompilations}
    )


def theirs(size: str, device: str) -> Values:
    """transformers' GPT-2, compiled, autocast to bf16, fused AdamW, as minilm is."""
    config, rows = shape(size, device)
    T = config.block_size
    model, loss_of = transformers_gpt2(config, True, device)
    ids = torch.randint(config.vocab_size, (rows, T + 1), device=device)
    if device == "cuda":
        torch.set_float32_matmul_precision("high")
    each = bench.CARD_STEPS if device == "cuda" else 1
    seconds, _ = timed_steps(model, loss_of, ids, 15, fused=True, half=device == "cuda", each=each)
    speed = rows * T / median_after_two(seconds)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    return {"rows": rows, "tokens/s": speed, "GiB": peak / 2**30, "compile s": seconds[0]}


def decode(size: str, device: str) -> Values:
    config, _ = shape(size, device)
    where = runtime.pick_device(device)
    bandwidth = bench.limits(where).bytes_per_second
    found = bench.decoding(config, bandwidth, where, n_new=24 if device == "cpu" else 256)
    return {"tokens/s": found.tokens_per_second, "of bandwidth": found.bandwidth_share, "GB/s": bandwidth / 1e9}


def learn(optimizer: str, device: str) -> Values:
    """Loss of `tiny` over 800 steps on tales of level 4 and their seconds; each optimizer at a rate of its own."""
    import tempfile
    from dataclasses import replace

    from minilm.log import read_metrics
    from minilm.options import parse
    from minilm.text.prepare import prepare
    from minilm.training.loop import train

    small = device == "cpu"
    data = prepare("tales", level=1 if small else 4, tokenizer="words", megabytes=0.2 if small else 20.0)
    config = parse(["--config", "tiny", "--device", device], device).config
    with tempfile.TemporaryDirectory() as out:
        options: Any = {"optimizer": optimizer, "lr": 1e-2 if optimizer == "muon" else 4e-3, "existing": "overwrite"}
        lengths = {"max_steps": 10 if small else 800, "eval_every_steps": 5 if small else 100, "log_every_steps": 5}
        model = replace(config.model, block_size=64 if small else 384)
        found = train(
            replace(config, model=model, data=str(data), out_dir=out, save_every_steps=0, **lengths, **options)
        )
        rows = read_metrics(found.run / "metrics.jsonl")
    passed = {row["step"]: row["seconds"] for row in rows if "seconds" in row}
    curve = [
        [round(passed[row["step"]], 1), round(row["val_loss"], 4)]
        for row in rows
        if "val_loss" in row and row["step"] in passed
    ]
    return {"val loss": found.val_loss, "seconds": found.seconds, "tokens": found.tokens, "curve": curve}


PARTS: dict[str, Callable[[str], Values]] = {
    "minilm 124M": lambda device: ours("124M", device),
    "transformers 124M": lambda device: theirs("124M", device),
    "minilm 350M": lambda device: ours("350M", device),
    "transformers 350M": lambda device: theirs("350M", device),
    "decode 1.5B": lambda device: decode("1.5B", device),
    "decode 124M": lambda device: decode("124M", device),
    "minilm 1.5B": lambda device: ours("1.5B", device),
    "learn adamw": lambda device: learn("adamw", device),
    "learn muon": lambda device: learn("muon", device),
    "minilm 124M muon": lambda device: ours("124M", device, "muon"),
}


def run(device: str, only: str, seconds: float) -> None:
    began = time.monotonic()
    record = {"date": time.strftime("%Y-%m-%d"), "versions": runtime.versions(), "commit": runtime.git_commit()[:10]}
    before: Values = json.loads(RESULTS.read_text("utf-8")) if RESULTS.is_file() else {}
    kept = before if only != "*" and before.get("versions") == record["versions"] else {}
    found, missing = kept.get("parts", {}), kept.get("missing", {})
    names = [name for name in PARTS if fnmatch(name, only)]
    if not names:
        raise SystemExit(f"no part is {only!r}: there are {', '.join(PARTS)}")
    for name in names:
        left = seconds - (time.monotonic() - began) if device == "cuda" else 3600.0
        values = (
            in_a_process(__file__, "--device", device, "--part", name, seconds=left)
            if left > 20
            else "no time was left"
        )
        if isinstance(values, str):
            missing[name] = values
            found.pop(name, None)
        else:
            found[name] = values | {"commit": record["commit"]}
            missing.pop(name, None)
        print(f"{name}: {values} ({time.monotonic() - began:.0f} s)", flush=True)
    whole = record | {"parts": found, "missing": missing, "seconds": round(time.monotonic() - began)}
    if device == "cpu":
        print("not written: that was a CPU")
        return
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(whole), encoding="utf-8")


def page(whole: Values) -> str:
    """The table, with ratios to transformers where both ran."""
    versions, parts = whole["versions"], whole["parts"]
    keys = list(dict.fromkeys(key for values in parts.values() for key in values if key not in ("commit", "curve")))
    commits = ", ".join(sorted({values["commit"] for values in parts.values()}))
    rows = [f"| part | {' | '.join(keys)} | x transformers | memory of it |", "|---" * (len(keys) + 3) + "|"]
    for name, values in parts.items():
        peer = parts.get(name.replace("minilm", "transformers")) if name.startswith("minilm") else None
        ratios = (
            [f"{values['tokens/s'] / peer['tokens/s']:.2f}", f"{values['GiB'] / peer['GiB']:.2f}"] if peer else ["", ""]
        )
        cells = [f"{values[key]:,.4g}" if key in values else "" for key in keys]
        rows.append(f"| {name} | {' | '.join([*cells, *ratios])} |")
    for name, values in parts.items():
        if "curve" in values:
            curve = ", ".join(f"{seconds:g} s {loss:.3f}" for seconds, loss in values["curve"])
            rows.append(f"\nValidation loss against time, {name}: {curve}.")
    left = {name: whole["missing"].get(name, "not run") for name in PARTS if name not in parts}
    rows += [f"\nNot measured: {name} ({why})." for name, why in left.items()]
    head = f"{versions['processor']}, torch {versions['torch']}, {whole['date']}, commit {commits}; bf16."
    head += " Rows of a batch have 1,024 tokens. Decoding: one row, 256 tokens after 32."
    return "\n".join([f"# Benchmarks on a GPU\n\nMade by `python bench/gpu.py`. {head}\n", *rows, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--only", default="*", help="a pattern of parts (*)")
    parser.add_argument("--seconds", type=float, default=530.0, help="on a card, for all parts together (%(default)s)")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        give(PARTS[options.part](options.device))
    elif options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU here; --device cpu runs the same parts small")
    else:
        run(options.device, options.only, options.seconds)


if __name__ == "__main__":
    main()
