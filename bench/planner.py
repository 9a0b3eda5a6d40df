"""How near the planner's forecasts are: peak memory and seconds of 12 configurations, predicted and then measured.

    OMP_NUM_THREADS=1 python bench/planner.py --threads 1 --clock cpu
    python bench/planner.py --device cuda

Each configuration trains a few steps in a process of its own (on a card one after the other in one), eager, on random
tokens. Memory is what tensors take at
their most, as torch's allocator reports it (a machine may reclaim resident pages behind a process's back); seconds are
the fastest step's. --clock cpu counts processor seconds instead of the wall's, for a machine
that others use: with one thread the two are the same on a quiet one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from minilm.runtime import NO_CACHE

ROUNDS = 2  # of a forecast and a measurement by turns: the fastest of each
STEPS, MOST_STEPS, SECONDS = 6, 40, 2.0  # at least so many, and short ones for so long
CASES: dict[str, dict[str, Any]] = {
    "tiny": {"preset": "tiny", "batch_size": 16},
    "tiny, adamw": {"preset": "tiny", "batch_size": 16, "optimizer": "adamw", "lr": 1e-3},
    "tiny, 32 rows": {"preset": "tiny", "batch_size": 32},
    "tiny, width 384": {"preset": "tiny", "batch_size": 16, "n_embd": 384, "n_head": 6},
    "tiny, 8 layers": {"preset": "tiny", "n_layer": 8, "batch_size": 16},
    "tiny, recompute": {"preset": "tiny", "n_layer": 8, "batch_size": 16, "recompute": True},
    "tiny, lion": {"preset": "tiny", "batch_size": 16, "optimizer": "lion", "lr": 1e-3},
    "tiny, adafactor": {"preset": "tiny", "batch_size": 16, "optimizer": "adafactor"},
    "characters": {"preset": "shakespeare_char", "batch_size": 4, "vocab_size": 65},
    "GPT-2's vocabulary": {"preset": "tiny", "vocab_size": 50257, "batch_size": 8},
    "six blocks of GPT-2 small, lora": {
        "preset": "lora",
        "n_layer": 6,
        "batch_size": 1,
        "block_size": 256,
        "init": "gpt2",
    },
    "six blocks of GPT-2 small": {
        "preset": "finetune",
        "n_layer": 6,
        "batch_size": 1,
        "block_size": 256,
        "init": "gpt2",
    },
}
CARD_CASES: dict[str, dict[str, Any]] = {
    "small, 8 rows": {"preset": "small", "batch_size": 8},
    "small, 16 rows": {"preset": "small", "batch_size": 16},
    "small, 32 rows": {"preset": "small", "batch_size": 32},
    "small, 64 rows of 256": {"preset": "small", "batch_size": 64, "block_size": 256},
    "small, 64 rows in parts of 16": {"preset": "small", "batch_size": 64, "micro_batch_size": 16},
    "small, muon": {"preset": "small", "batch_size": 16, "optimizer": "muon"},
    "small, adafactor": {"preset": "small", "batch_size": 16, "optimizer": "adafactor"},
    "small, recompute": {"preset": "small", "batch_size": 32, "recompute": True},
    "medium": {"preset": "medium", "batch_size": 16},
    "large": {"preset": "large", "batch_size": 8},
    "small, lora": {"preset": "lora", "batch_size": 32, "block_size": 1024, "init": "gpt2"},
    "tiny, 256 rows": {"preset": "tiny", "batch_size": 256},
}
CASES |= CARD_CASES


def config_of(name: str) -> Any:
    from minilm.options import build, read_preset

    case, on_card = dict(CASES[name]), name in CARD_CASES
    values = read_preset(case.pop("preset"), "cpu") | {"compile": "off", "micro_batch_size": 0}
    values |= {"precision": "bf16" if on_card else "fp32"} | case
    values["vocab_size"] = values.get("vocab_size") or 700
    values["micro_batch_size"] = values["micro_batch_size"] or min(values["batch_size"], 64 if on_card else 16)
    return build(values)


def clock_of(kind: str) -> Any:
    return time.process_time if kind == "cpu" else time.perf_counter


def measure(name: str, clock: str) -> None:
    """In a process of its own: trains and prints what it took."""
    print(json.dumps(measured(name, clock)))


def measured(name: str, clock: str) -> dict[str, float]:
    import torch

    from minilm import runtime
    from minilm.evaluation.cost import peak_allocated
    from minilm.model.gpt import GPT
    from minilm.training.finetune import adapt
    from minilm.training.objective import Objective
    from minilm.training.optim import build_optimizers
    from minilm.training.setup import Setup, loss_function

    runtime.begin_tuned()
    now, config, device = clock_of(clock), config_of(name), "cuda" if name in CARD_CASES else "cpu"
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if device == "cuda" else 0
    with torch.device(device):
        model = GPT(config.model)
    adapt(model, config)
    model.to(device).train()
    optimizers = build_optimizers(model, config)
    setup = Setup(device, config.precision, False, config.micro_batch_size, 1e11, config.recompute)
    loss_of = loss_function(Objective(model, config), setup)
    params = [p for p in model.parameters() if p.requires_grad]
    shape = (config.micro_batch_size, config.model.block_size)

    def step() -> None:
        for _ in range(config.batch_size // config.micro_batch_size):
            ids = torch.randint(0, config.model.vocab_size, shape, device=device)
            loss_of(ids, ids).sum().backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
        if device == "cuda":
            torch.cuda.synchronize()

    seconds: list[float] = []
    for i in range(MOST_STEPS):
        if i >= STEPS and sum(seconds) > SECONDS:
            break
        started = now()
        step()
        seconds.append(now() - started)
    if device == "cuda":
        most = torch.cuda.max_memory_allocated() - before
        return {"seconds": min(seconds[1:]), "bytes": most, "resident": most}
    held = sum(p.numel() * 4 for p in model.parameters()) + sum(p.numel() * 4 for p in params)
    held += sum(
        t.numel() * t.element_size()
        for o in optimizers
        for s in o.state.values()
        for t in s.values()
        if hasattr(t, "numel")
    )
    most = peak_allocated(step)
    resident = runtime.peak_resident_bytes()
    return {"seconds": min(seconds[1:]), "bytes": held + most, "resident": resident}


def predict(name: str, clock: str) -> None:
    """In a process of its own too, as `minilm plan` and `train.py` are."""
    print(json.dumps(predicted(name, clock)))


def predicted(name: str, clock: str) -> dict[str, float]:
    from minilm.lab.plan import forecast, this_machine

    machine = this_machine("cuda" if name in CARD_CASES else "cpu")
    told = forecast(config_of(name), machine, rows=0, clock=clock_of(clock))
    return {"seconds": told.step_seconds, "bytes": told.tensors, "resident": told.bytes}


def asked(what: str, name: str, options: argparse.Namespace) -> dict[str, float]:
    if name in CARD_CASES:
        return {"predict": predicted, "measure": measured}[what](name, options.clock)
    words = [sys.executable, __file__, f"--{what}", name, "--clock", options.clock, "--threads", str(options.threads)]
    environment = {**os.environ, "GLIBC_TUNABLES": NO_CACHE}  # as train.py begins
    done = subprocess.run(words, check=True, capture_output=True, text=True, env=environment)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--measure", default="", help="this case, in this process")
    parser.add_argument("--predict", default="", help="this case, in this process")
    parser.add_argument("--out", default="", help="write the table to this file too")
    options = parser.parse_args()
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    for job in (measure, predict):
        if name := getattr(options, job.__name__):
            job(name, options.clock)
            return
    lines = [
        "| configuration | tensors, predicted | measured | off by | process, predicted | measured | off by "
        "| seconds a step, predicted | measured | off by |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    errors: dict[str, list[float]] = {"bytes": [], "resident": [], "seconds": []}
    cases = [name for name in CASES if (name in CARD_CASES) == (options.device == "cuda")]
    for name in cases:
        rounds = [(asked("predict", name, options), asked("measure", name, options)) for _ in range(ROUNDS)]
        told, found = ({key: min(side[key] for side in sides) for key in errors} for sides in zip(*rounds, strict=True))
        off = {key: 100 * (told[key] / found[key] - 1) for key in errors}
        for key in errors:
            errors[key].append(abs(off[key]))
        lines.append(
            f"| {name} | {told['bytes'] / 1e6:,.0f} MB | {found['bytes'] / 1e6:,.0f} MB | {off['bytes']:+.0f} % | "
            f"{told['resident'] / 1e6:,.0f} MB | {found['resident'] / 1e6:,.0f} MB | {off['resident']:+.0f} % | "
            f"{told['seconds']:.3f} | {found['seconds']:.3f} | {off['seconds']:+.0f} % |"
        )
        print(lines[-1], flush=True)
    worst = {key: max(values) for key, values in errors.items()}
    within = {"bytes": 10, "resident": 10, "seconds": 20}
    titles = {"bytes": "Tensors", "resident": "The process", "seconds": f"Seconds ({options.clock} clock)"}
    told_within = [
        f"{titles[key]}: {sum(e <= within[key] for e in errors[key])} of {len(cases)} within {within[key]} %, "
        f"worst {worst[key]:.0f} %"
        for key in errors
    ]
    load = f"Load average {os.getloadavg()[0]:.1f}, {torch.get_num_threads()} threads."
    lines.append(f"\n{'. '.join(told_within)}. {load}")
    print(lines[-1])
    if options.out:
        Path(options.out).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
