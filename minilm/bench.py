"""`minilm bench`: this machine's limits, and how near training and decoding come. bench/run.py is the long form."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from minilm import runtime
from minilm.command_line import Parser
from minilm.errors import UsageError

if TYPE_CHECKING:
    import torch

    from minilm.config import GPTConfig, TrainConfig

READ_BYTES, READS = 1 << 28, 4  # several times any cache, on a card four times that; so often before a wait
CARD_STEPS = 5  # that a card is given before it is waited for, as between two logs of the loop


@dataclass(frozen=True)
class Limits:
    """What no program on this machine can exceed."""

    flops: dict[str, float]
    """Dtype -> FLOP/s of a square product, fp32 without tensor cores' tf32."""
    bytes_per_second: float
    """Reading memory in order."""
    threads: int
    device: str


@dataclass(frozen=True)
class Training:
    """Steps of forward, backward, clipping and optimizer on random tokens."""

    tokens_per_second: float
    """Median over steps after the first two."""
    first_step_seconds: float
    """Compilation is in it."""
    mfu: float
    """Share of the measured or stated peak, FLOPs counted as 6N + 12 L D T."""
    peak_bytes: int
    """Process or card, less what was there before the model."""
    state_bytes: int
    """Gradients of what is trained, and the optimizer's state."""
    precision: str
    compiled: bool
    graph_breaks: int
    recompilations: int
    """Graphs compiled after the first step."""
    last_loss: float


@dataclass(frozen=True)
class Decoding:
    """Greedy decoding of random prompts."""

    tokens_per_second: float
    """Of all rows together, the prompt's pass included."""
    first_token_seconds: float
    bandwidth_share: float
    """Bytes of weights per step over what memory could have been read in that time."""


def limits(device: torch.device) -> Limits:
    """Measures the device; a second or two."""
    import torch

    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    flops = {name: runtime.matmul_flops(device, dtype, rows=1024, width=1024) for name, dtype in dtypes.items()}
    x = torch.ones(READ_BYTES if device.type == "cuda" else READ_BYTES // 4, device=device)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        float(sum(x.sum() for _ in range(READS)))
        best = min(best, (time.perf_counter() - start) / READS)
    threads = torch.get_num_threads() if device.type == "cpu" else 0
    return Limits(flops, x.nbytes / best, threads, runtime.versions()["processor"])


class Steps:
    """A model on random tokens and what one step of the loop does to it; `train_step` less its watching."""

    def __init__(self, config: TrainConfig) -> None:
        import torch

        from minilm.model.gpt import GPT
        from minilm.text.tokenizer import get_tokenizer
        from minilm.training.finetune import adapt
        from minilm.training.objective import build_objective
        from minilm.training.optim import build_optimizers
        from minilm.training.precision import Precision
        from minilm.training.setup import loss_function, settle

        self.device = runtime.pick_device(config.device)
        torch.manual_seed(config.seed)
        with self.device:
            self.model = GPT(config.model)
        adapt(self.model, config)
        self.model.to(self.device).train()
        self.setup, self.config = settle(config, self.model, self.device), config
        self.precision = Precision(self.setup.precision, config.rounding, self.device)
        self.precision.prepare(self.model)
        self.optimizers = self.precision.wrap(build_optimizers(self.model, config))
        self.loss_of = loss_function(build_objective(self.model, config, get_tokenizer("bytes")), self.setup)
        n_rows, T, V = config.batch_size, config.model.block_size, config.model.vocab_size
        drawn = torch.randint(V, (n_rows, T + 1), generator=torch.Generator().manual_seed(0))
        self.ids, self.targets = drawn[:, :-1].to(self.device), drawn[:, 1:].to(self.device)

    def step(self) -> float | torch.Tensor:
        """One optimizer step; its loss, nats per token. A card may still be at work then."""
        n_rows, params = self.setup.micro_batch_size, list(self.model.parameters())
        total: float | torch.Tensor = 0.0
        for at in range(0, len(self.ids), n_rows):
            rows = slice(at, at + n_rows)
            loss = self.loss_of(self.ids[rows], self.targets[rows]) / self.targets.numel()
            self.precision.backward(loss, params)
            total = total + loss.detach()
        norm = self.precision.clip(params, self.optimizers, self.config.grad_clip, 0)
        if not self.precision.overflowed(norm):
            for optimizer in self.optimizers:
                optimizer.step()
        self.model.zero_grad(set_to_none=True)
        return total

    def state_bytes(self) -> int:
        """Of the gradients of what is trained and the optimizer's state, after a step."""
        from minilm.training.optim import optimizer_state

        states = optimizer_state(self.model, self.optimizers).values()
        moments = sum(value.nbytes for state in states for value in state.values() if hasattr(value, "nbytes"))
        return moments + sum(p.nbytes for p in self.model.parameters() if p.requires_grad)


def compilations() -> tuple[int, int]:
    """Graph breaks, and graphs compiled, by torch.compile in this process so far."""
    counters = sys.modules["torch._dynamo.utils"].counters if "torch._dynamo.utils" in sys.modules else {}
    return sum(counters.get("graph_break", {}).values()), counters.get("stats", {}).get("unique_graphs", 0)


def training(config: TrainConfig, n_steps: int = 8) -> Training:
    """Trains on random tokens for 2 + n_steps steps, on a card CARD_STEPS or more."""
    import torch

    on_card = runtime.pick_device(config.device).type == "cuda"
    before = torch.cuda.memory_allocated() if on_card else runtime.resident_bytes()
    breaks, _ = compilations()
    steps = Steps(config)
    seconds, graphs = [], []
    for n in (1, 1, *([CARD_STEPS] * max(n_steps // CARD_STEPS, 1) if on_card else [1] * n_steps)):
        start = time.perf_counter()
        for _ in range(n):
            last = steps.step()
        loss = float(last)  # waits for the device
        seconds.append((time.perf_counter() - start) / n)
        graphs.append(compilations()[1])
    speed = steps.targets.numel() / statistics.median(seconds[2:])
    highest = torch.cuda.max_memory_allocated() if on_card else runtime.peak_resident_bytes()
    return Training(
        tokens_per_second=speed,
        first_step_seconds=seconds[0],
        mfu=speed * steps.model.flops_per_token(config.model.block_size) / steps.setup.peak_flops,
        peak_bytes=max(highest - before, 0),  # the kernel's two counts differ by some kB
        state_bytes=steps.state_bytes(),
        precision=steps.setup.precision,
        compiled=steps.setup.compile,
        graph_breaks=compilations()[0] - breaks,
        recompilations=graphs[-1] - graphs[0],
        last_loss=loss,
    )


def decoding(
    config: GPTConfig, bandwidth: float, device: torch.device, B: int = 1, n_prompt: int = 32, n_new: int = 64
) -> Decoding:
    """Decodes n_new tokens after n_prompt random ones, B rows at once, greedily, by the fastest path, with random
    weights in fp32 (bf16 on a card)."""
    import torch

    from minilm.decoding.engine import generate_ids
    from minilm.decoding.rows import accelerate
    from minilm.model.gpt import GPT

    torch.manual_seed(0)
    with device:
        model = GPT(config)
    model = model.to(device, torch.bfloat16 if device.type == "cuda" else torch.float32).eval()
    accelerate(model, when="now")
    ids = torch.randint(config.vocab_size, (B, n_prompt), device=device)
    generate_ids(model, ids, n_new, temperature=0.0)  # compiles, on a card
    start = time.perf_counter()
    generate_ids(model, ids, 1, temperature=0.0).tolist()
    first = time.perf_counter() - start
    start = time.perf_counter()
    generate_ids(model, ids, n_new, temperature=0.0).tolist()
    seconds = time.perf_counter() - start
    n_bytes = sum(p.nbytes for p in model.parameters())
    return Decoding(B * n_new / seconds, first, n_new * n_bytes / seconds / bandwidth)


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints; returns the exit code."""
    parser = Parser(prog="minilm bench", description="This machine's limits, and what training and decoding reach.")
    add = parser.add_argument
    add("presets", nargs="*", default=["tiny", "small"], metavar="PRESET", help="models to train (tiny small)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (%(default)s)")
    add("--steps", type=int, default=5, help="timed training steps of each (%(default)s)")
    add("--json", action="store_true", help="one JSON object instead of the table")
    options = parser.parse_words(sys.argv[1:] if argv is None else argv)
    if options.steps < 1:
        raise UsageError(f"--steps must be 1 or more, not {options.steps}")
    runtime.begin_tuned()
    device = runtime.pick_device(options.device)
    configs = {preset: _shortened(preset, options.device) for preset in options.presets}
    found: dict[str, Any] = {"limits": asdict(limit := limits(device)), "versions": runtime.versions()}
    if not options.json:
        threads = f", {limit.threads} threads" if limit.threads else ""
        speeds = ", ".join(f"{name} {flops / 1e12:.3g} TFLOP/s" for name, flops in limit.flops.items())
        memory = f"memory {limit.bytes_per_second / 1e9:.3g} GB/s"
        print(f"{limit.device}{threads}: matrix products {speeds}; {memory}")
    for preset, config in configs.items():
        found[preset] = asdict(trained := training(config, options.steps))
        found[f"{preset} decoding"] = asdict(told := decoding(config.model, limit.bytes_per_second, device))
        if not options.json:
            _print_preset(preset, config, trained, told)
    if options.json:
        print(json.dumps(found, indent=1))
    return 0


def _shortened(preset: str, device: str) -> TrainConfig:
    """The preset as a few steps of at most 4,096 tokens on a CPU, without a data set."""
    from minilm.options import parse

    kind = runtime.pick_device(device).type
    config = parse(["--config", preset, "--device", device], kind).config
    model = replace(config.model, vocab_size=config.model.vocab_size or 512)
    rows = min(config.batch_size, max(1, 4096 // model.block_size)) if kind == "cpu" else config.batch_size
    return replace(config, model=model, batch_size=rows, init="")


def _print_preset(preset: str, config: TrainConfig, trained: Training, told: Decoding) -> None:
    how = f"{trained.precision}, {'compiled' if trained.compiled else 'eager'}"
    print(
        f"{preset}: training {config.batch_size} x {config.model.block_size} ({how}) "
        f"{trained.tokens_per_second:,.0f} tokens/s, MFU {trained.mfu:.0%}, first step "
        f"{trained.first_step_seconds:.1f} s, {trained.peak_bytes / 2**30:.2f} GiB; decoding "
        f"{told.tokens_per_second:.0f} tokens/s, {told.bandwidth_share:.0%} of memory bandwidth, first token "
        f"{told.first_token_seconds:.2f} s"
    )
