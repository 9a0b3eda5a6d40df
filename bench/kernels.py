"""Kernels of a training step, eager against compiled, and what the compiler fused. Writes docs/measured.md.

    python bench/kernels.py                    # a model of tiny's parts, small
    python bench/kernels.py --preset small     # a preset's own, on a card

One step of cross-entropy: forward, backward, AdamW's update. On a card every kernel that is launched counts; on a CPU
every operation that computes (views, which only change a shape, do not). A compiled step runs fused kernels, which
inductor names by the operations that they hold, beside what it leaves to libraries: matrix products, mostly.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from dataclasses import replace
from typing import Any

import torch
from pages import MEASURED, RESULTS, put, told, where
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from minilm import runtime
from minilm.model.gpt import GPT
from minilm.options import parse
from minilm.training.objective import Objective
from minilm.training.optim import build_optimizers
from minilm.training.setup import Setup, loss_function

HEADING = "Kernels of a step"
SMALL = {"n_layer": 2, "n_embd": 64, "n_head": 2, "block_size": 64, "vocab_size": 512}
FUSED = re.compile(r"(?:graph_\d+_)?(?:cpp|triton_[a-z]+)_fused_(.+?)(?:_\d+)?$")
MEMORY = {"detach", "_unsafe_view", "empty", "empty_like", "new_empty", "empty_strided", "resize_", "promote_types"}
MEMORY |= {"scalar_tensor"}
PRODUCTS = re.compile(r"^(mm|bmm|addmm|baddbmm|linear)$|gemm|cutlass|cublas|flash|attention|nvjet|xmma", re.IGNORECASE)


class Computing(TorchDispatchMode):
    """Names of the operations that compute something, in eager code."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if not func.is_view and name not in MEMORY and not name.startswith("_record_function"):
            self.names[name] += 1
        return func(*args, **(kwargs or {}))


class Step:
    """A training step of a preset's model, eager or compiled."""

    def __init__(self, preset: str, device: torch.device, compiled: bool) -> None:
        config = parse(["--config", preset], device.type).config
        model = replace(config.model, vocab_size=config.model.vocab_size or 512)
        model = replace(model, **SMALL) if preset == "tiny" else model
        config = replace(config, optimizer="adamw", model=model)
        torch.manual_seed(0)
        self.model = GPT(config.model).to(device)
        self.optimizers = build_optimizers(self.model, config)
        precision = "bf16" if device.type == "cuda" else "fp32"
        setup = Setup(device.type, precision, compiled, 4, 1.0)
        self.loss_of = loss_function(Objective(self.model, config), setup)
        self.ids = torch.randint(model.vocab_size, (4, model.block_size), device=device)

    def __call__(self) -> None:
        self.model.zero_grad(set_to_none=True)
        self.loss_of(self.ids, self.ids).backward()
        for optimizer in self.optimizers:
            optimizer.step()


def counted(step: Step, known: set[str]) -> Counter[str]:
    """Kernels of a step by name. known: on a CPU, the operations that compute."""
    for _ in range(2):
        step()
    on_card = step.ids.is_cuda
    with profile(activities=[ProfilerActivity.CUDA if on_card else ProfilerActivity.CPU]) as seen:
        step()
        if on_card:
            torch.cuda.synchronize()
    events = seen.events() or []
    if on_card:
        names = [e.name for e in events if e.device_type == DeviceType.CUDA]
        return Counter(name for name in names if not name.startswith(("Memcpy", "Memset")))

    def counts(event: Any) -> bool:
        return bool(FUSED.match(event.name)) or event.name.removeprefix("aten::") in known

    def inside_another(event: Any) -> bool:
        parent = event.cpu_parent
        while parent is not None:
            if counts(parent):
                return True
            parent = parent.cpu_parent
        return False

    return Counter(e.name.removeprefix("aten::") for e in events if counts(e) and not inside_another(e))


def measure(preset: str, device: torch.device) -> dict[str, Any]:
    """Counts of both ways, with what each fused kernel holds."""
    torch._inductor.config.cpp.enable_kernel_profile = True
    eager = Step(preset, device, compiled=False)
    eager()
    with Computing() as computing:
        eager()
    known = set(computing.names)
    counts = {"eager": counted(eager, known), "compiled": counted(Step(preset, device, compiled=True), known)}
    if device.type == "cpu" and sum(counts["eager"].values()) != sum(computing.names.values()):
        raise SystemExit(f"the profiler saw {counts['eager']}, torch dispatched {computing.names}")
    c = eager.model.config
    shape = f"`{preset}`'s parts, {c.n_layer} layers, {c.n_embd} wide, {c.block_size} tokens"
    return {"model": shape, "device": device.type, "made": where(), **{k: dict(v) for k, v in counts.items()}}


def page() -> str:
    """Every result in bench/results as Markdown."""
    lines = ["By `python bench/kernels.py`: forward, backward and AdamW's update, counted by torch's profiler."]
    for path in sorted(RESULTS.glob("kernels-*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        lines += ["", f"{record['model']}; {told(record['made'])}.", ""]
        lines += ["| | eager | compiled |", "|---|---|---|"]
        parts = {way: _parts(record[way]) for way in ("eager", "compiled")}
        for part in ("matrix products and attention", "fused by the compiler", "others", "in all"):
            lines.append(f"| {part} | {parts['eager'][part]} | {parts['compiled'][part]} |")
        fused = Counter[str]()
        for name, n in record["compiled"].items():
            if match := FUSED.match(name):
                fused[match[1]] += n
        lines += ["", "| fused into one kernel | times a step |", "|---|---|"]
        lines += [f"| `{held}` | {n} |" for held, n in sorted(fused.items(), key=lambda item: (-item[1], item[0]))]
    return "\n".join(lines)


def _parts(counts: dict[str, int]) -> dict[str, int]:
    fused = sum(n for name, n in counts.items() if FUSED.match(name))
    products = sum(n for name, n in counts.items() if PRODUCTS.search(name) and not FUSED.match(name))
    whole = sum(counts.values())
    return {
        "matrix products and attention": products,
        "fused by the compiler": fused,
        "others": whole - fused - products,
        "in all": whole,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    device = runtime.pick_device(options.device)
    record = measure(options.preset, device)
    (RESULTS / f"kernels-{options.preset}-{device.type}.json").write_text(json.dumps(record, indent=1) + "\n")
    put(MEASURED, HEADING, page())


if __name__ == "__main__":
    main()
