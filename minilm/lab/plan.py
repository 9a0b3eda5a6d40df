"""What a run will take, before it starts: memory from shapes, seconds from a block or two timed here, or from a card's
data sheet; expected loss from the lab's own fits, where they have been made.

Seconds: a step of the model with one block and with two, at the run's own shapes; the difference is what each further
block adds. A machine that is not this one is its data sheet times `CARD_SHARE`, an assumption.
"""

from __future__ import annotations

import io
import math
import os
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from minilm import runtime
from minilm.config import GPTConfig, TrainConfig
from minilm.errors import UsageError
from minilm.lab.analysis import ArmResult, analyse
from minilm.lab.cells import VOCABULARY, flops_per_token
from minilm.lab.places import Places
from minilm.lab.questions import load_question
from minilm.lab.statistics import ALPHA, Effect, paired_effect, power_law, t_quantile
from minilm.model.gpt import GPT
from minilm.model.losses import WAITING_BYTES, chunk_rows
from minilm.model.losses import fits as fits_at_once
from minilm.training.estimate import GIB, kept_for_backward, memory
from minilm.training.finetune import adapt
from minilm.training.optim import build_optimizers
from minilm.training.precision import autocast
from minilm.training.setup import micro_batch_size

# GB, the smaller variant where there are two, A100's common one
CARD_MEMORY = {"B200": 180, "H200": 141, "H100": 80, "A100": 80, "L40S": 48, "L4": 24, "A10": 24}
CARD_MEMORY |= {"4090": 24, "3090": 24, "V100": 16, "T4": 16}
WITHOUT_BF16 = ("V100", "T4")
CARD_SHARE = 0.35  # of a card's peak that steps are assumed to reach
PYTHON_BYTES = 320e6  # resident, of a process that has imported torch and minilm and taken a step of nothing
HEAP_SHARE = 0.55  # of what comes and goes again: what a CPU's heap loses between tensors (0.46 to 0.88 of preset tiny)
RECOMPUTED_SHARE = 0.8  # with recompute, what comes and goes is that much of what all blocks would have kept
TIMED_SECONDS, MOST_TURNS = 1.0, 30  # that short steps are timed for, one of which says little
TIMED_CONTEXT = 256  # where seconds matter more than a tenth of them
EPOCHS = 4.0  # passes over little text after which more gain little (Muennighoff 2023)


@dataclass(frozen=True)
class Machine:
    """One device: this machine's, or a card that is not here."""

    name: str
    device_type: str
    memory: float
    """Bytes that a run may take."""
    peak_flops: float = 0.0
    """Of a card's data sheet; 0: steps are timed here."""


def this_machine(device: str = "auto") -> Machine:
    """The device that would train. On a CPU memory is what is free now."""
    found = runtime.pick_device(device)
    free = runtime.free_bytes(found) or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    name = f"{runtime.processor_name()}, {torch.get_num_threads()} threads"
    if found.type == "cuda":
        name = torch.cuda.get_device_name(found)
    return Machine(name, found.type, float(free))


def card(name: str) -> Machine:
    """A card by name. Raises UsageError with those that are known."""
    known = {key.lower(): key for key in CARD_MEMORY}
    if name.lower() not in known:
        raise UsageError(f"there is no card {name!r} in the table: it has {', '.join(CARD_MEMORY)}")
    key = known[name.lower()]
    return Machine(key, "cuda", 1e9 * CARD_MEMORY[key], runtime.PEAK_FLOPS[key])


@dataclass(frozen=True)
class Forecast:
    """What one run takes."""

    config: TrainConfig
    bytes: float
    """Peak, the process and its libraries included on a CPU."""
    tensors: float
    """Of it, what tensors take: what `bench/planner.py` holds it to."""
    step_seconds: float
    flops: float
    """Of a step: a third of what is frozen is left out, its weights' gradients."""

    @property
    def seconds(self) -> float:
        """Of all steps; validations add about a third of a step's time for as many tokens."""
        c = self.config
        n_evals = c.max_steps // c.eval_every_steps if c.eval_every_steps else 1
        validated = (n_evals + 1) * c.eval_tokens / (c.batch_size * c.model.block_size) / 3
        return (c.max_steps + validated) * self.step_seconds


def forecast(
    config: TrainConfig,
    machine: Machine,
    *,
    rows: int = 1,
    turns: int = 3,
    context: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> Forecast:
    """A run's peak memory and seconds. rows: sequences that steps are timed with, 0 for the run's own micro-batch;
    turns: how often, after one that warms up, or more often where steps are short; the fastest counts. context: a
    longer one is timed at this length, and scaled by its FLOPs; 0: as it is."""
    precision = _precision(config, machine)
    with torch.device("meta"):
        model = GPT(config.model)
        _adapt(model, config)
    device = torch.device(machine.device_type)
    n = config.micro_batch_size or micro_batch_size(config, model, precision, device, card_bytes=machine.memory)
    tensors, passing = tensor_bytes(model, config, precision, n, machine.device_type == "cuda")
    peak = tensors + (PYTHON_BYTES + HEAP_SHARE * passing if machine.device_type == "cpu" else 0.0)
    T = config.model.block_size
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad) / sum(map(Tensor.numel, model.parameters()))
    share = (2 + trained + config.recompute) / 3
    flops = share * flops_per_token(config.model) * config.batch_size * T
    if machine.peak_flops:
        return Forecast(config, peak, tensors, flops / (CARD_SHARE * machine.peak_flops), flops)
    shorter = replace(config, model=replace(config.model, block_size=min(T, context or T)))
    if device.type == "cpu":
        runtime.tune_allocator()  # as a run does: without it page faults cost the timed steps half as much again
    steps = [_step(shorter, precision, rows or n, blocks, device, clock) for blocks in (1, 2)]
    # In turns: what slows the machine for a while slows both, and their difference counts once for every block.
    warm = np.sum([step() for step in steps])
    more = max(turns, min(int(TIMED_SECONDS / warm), MOST_TURNS))
    one, two = np.min([[step() for step in steps] for _ in range(more)], axis=0)
    forward, update = map(float, one + (config.model.n_layer - 1) * np.maximum(two - one, 0.0))
    of_row = [flops_per_token(model) * model.block_size for model in (config.model, shorter.model)]
    forward *= of_row[0] / of_row[1] * config.batch_size / (rows or n)
    return Forecast(config, peak, tensors, forward + update, flops)


def _precision(config: TrainConfig, machine: Machine) -> str:
    if machine.device_type == "cuda" and machine.peak_flops:
        sixteen = "fp16" if machine.name in WITHOUT_BF16 else "bf16"
        return sixteen if config.precision == "auto" else config.precision
    return runtime.pick_precision(config.precision, torch.device(machine.device_type), config.model.n_embd)


def tensor_bytes(model: GPT, config: TrainConfig, precision: str, n_sequences: int, card: bool) -> tuple[float, float]:
    """(peak of a step's tensors, what of them comes and goes): `estimate.memory`, and what lives a moment beside it;
    the activations, or that moment's where it holds more."""
    c, n_targets, V = model.config, n_sequences * model.config.block_size, len(model.head_rows())
    whole = fits_at_once(n_targets, V, card)
    step = memory(model, config, precision, n_sequences, head=whole, card=card)
    # The loss's backward holds two gradients as large as the logits; of chunks, three such (a card's kernel puts it in
    # the logits' place), the head's gradient, on a card its table in 16 bits and a product, on a CPU logits that wait.
    size, kernel = 4 if precision == "fp32" else 2, card and config.compile != "off"
    chunk = V * chunk_rows(n_targets, V, card, compiled=kernel) * (size if kernel else 12)
    waiting = 2 * size * V * c.n_embd if card else min(WAITING_BYTES, size * n_targets * V)
    beside = 8 * n_targets * V if whole else waiting + chunk + 4 * V * c.n_embd
    if config.recompute:  # one block's activations at a time
        two, one = (
            kept_for_backward(
                replace(c, n_layer=n, n_unique_layer=0, skip_attn=(), skip_mlp=()),
                precision,
                False,
                n_sequences,
                card=card,
            )
            for n in (2, 1)
        )
        beside = max(beside, two - one)
        kept = memory(model, replace(config, recompute=False), precision, n_sequences, False, card).activations
        return step.total + beside, max(step.activations, beside, RECOMPUTED_SHARE * kept)
    return step.total + beside, max(step.activations, beside)


def _adapt(model: GPT, config: TrainConfig) -> None:
    """Frozen and adapted as the run would have it, without its table; where it names blocks that are not here, as if
    all were trained."""
    try:
        with redirect_stderr(io.StringIO()):
            adapt(model, config)
    except UsageError:
        model.requires_grad_(True)


def _step(
    config: TrainConfig, precision: str, rows: int, blocks: int, device: torch.device, clock: Callable[[], float]
) -> Callable[[], tuple[float, float]]:
    """A step of a model with so many blocks, that returns (seconds of forward and backward, of the update)."""
    shape = replace(config.model, n_layer=blocks, n_unique_layer=0, skip_attn=(), skip_mlp=())
    model = GPT(shape).to(device)
    _adapt(model, config)
    optimizers = build_optimizers(model, config)
    params = [p for p in model.parameters() if p.requires_grad]
    ids = torch.randint(0, config.model.rows_used, (rows, shape.block_size), device=device)
    through = [partial(checkpoint, block, use_reentrant=False) for block in model.h] if config.recompute else None

    def step() -> tuple[float, float]:
        started = clock()
        with autocast(device.type, precision):
            loss = model.loss(ids, ids, reduction="sum", blocks=through)
        loss.backward()
        runtime.synchronize(device)
        middle = clock()
        torch.nn.utils.clip_grad_norm_(params, config.grad_clip or math.inf)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
        runtime.synchronize(device)
        return middle - started, clock() - middle

    return step


def per_rank(model_bytes: dict[str, float], world: int, sharded: bool) -> dict[str, float]:
    """On paper, bytes a rank holds and sends in a step (docs/scale.md). DDP: everything everywhere; a ring all-reduces
    the gradients. FSDP: a share of all three, one block's weights; two gathers of weights, a scatter of gradients."""
    share = 1 / world if sharded else 1.0
    held = sum(model_bytes[name] for name in ("weights", "gradients", "optimizer")) * share + model_bytes["activations"]
    held += model_bytes["block"] if sharded else 0.0
    sent = 2 * model_bytes["weights"] + model_bytes["gradients"] if sharded else 2 * model_bytes["gradients"]
    return {"held": held, "sent": sent * (world - 1) / world}


def expected(text_bytes: float, places: Places, scale: str = "laptop") -> str:
    """What the lab's question `data_size` expects of so much text of tales, at its model: the loss of its fit, and how
    far stories hold together, between the two arms beside it, with the 95 % intervals of these arms' seeds; of the loss
    that of what its fit leaves, where it is wider. A sentence why not, where the lab has no text of about that size."""
    question = load_question("data_size")
    found = analyse(question, question.scale(scale), places.results("data_size", scale))
    arms = sorted((r for r in found.arms if math.isfinite(r.mean("val_loss"))), key=lambda r: r.arm.x)
    if len(arms) < 4:
        return "no expected loss: the lab has no fit here yet (`minilm lab run data_size`)"
    x, low, high = text_bytes, arms[0].arm.x, arms[-1].arm.x
    if not low <= x <= high:
        measured = f"{low / 1e6:g} to {high / 1e6:g} MB of tales"
        return f"no expected loss: the lab has measured {measured}, and no law is true far from them"
    points = [(r.arm.x, r.mean("val_loss")) for r in arms]
    law = power_law([a for a, _ in points], [b for _, b in points])
    left = len(points) - 3  # numbers fitted
    half = t_quantile(1 - ALPHA / 2, left) * law.error * math.sqrt(len(points) / left * (1 + 1 / len(points)))
    above = next(i for i, r in enumerate(arms) if r.arm.x >= x)
    one, other = arms[max(above - 1, 0)], arms[above]
    share = math.log(x / one.arm.x) / math.log(other.arm.x / one.arm.x) if other is not one else 1.0
    (_, of_loss), (whole, of_text) = (
        np.multiply(1 - share, _mean_of(one, name)) + np.multiply(share, _mean_of(other, name))
        for name in ("val_loss", "before")
    )
    return (
        f"from scratch on so much text of tales, at the lab's size: loss {law(x):.3f} ± {max(half, of_loss):.3f} nats "
        f"per token, sentences before the first broken rule {whole:.0f} ± {of_text:.0f} % (95 %)"
    )


def beside_everything(text_bytes: float, places: Places, scale: str = "laptop") -> tuple[str, dict[str, Effect]]:
    """The amount of text of the lab's question `freeze` that is nearest to this one; there, of each preset that trains
    a part, its loss beside that of training everything, nats per token. Empty where it has not been run."""
    question, of = load_question("freeze"), {"lora 16": "lora", "biases": "biases", "norms": "norms"}
    found = analyse(question, question.scale(scale), places.results("freeze", scale)).comparisons
    amounts = {c.arm.group: abs(math.log(c.arm.x / text_bytes)) for c in found}
    nearest = min(amounts, key=lambda group: amounts[group], default="")
    return nearest, {of[c.arm.name]: c.effect for c in found if c.arm.group == nearest and c.arm.name in of}


def _mean_of(result: ArmResult, measure: str) -> tuple[float, float]:
    """(mean over seeds, half of Student's 95 % interval)."""
    effect = paired_effect(result.values[measure], [0.0] * len(result.values[measure]))
    return effect.mean, effect.high - effect.mean


def with_length(config: TrainConfig, text_tokens: float) -> TrainConfig:
    """In steps: as long as the config says in tokens or passes over the text, else not more than EPOCHS of them; where
    the text has 0 tokens, its max_steps."""
    per_step = config.batch_size * config.model.block_size
    said = config.max_tokens or config.max_epochs * text_tokens
    steps = math.ceil((said or EPOCHS * text_tokens) / per_step)
    return replace(config, max_steps=max(1, steps if said else min(config.max_steps, steps))) if steps else config


def warning(config: TrainConfig, device: str = "auto", days: float = 1.0) -> str:
    """One sentence where the run cannot fit or takes more than so many days; else empty. It takes a second or two."""
    machine = this_machine(device)
    model = replace(config.model, vocab_size=config.model.vocab_size or VOCABULARY)
    told = forecast(replace(config, model=model), machine, turns=1, context=TIMED_CONTEXT)
    if told.bytes > machine.memory:
        return (
            f"this run needs about {told.bytes / GIB:.1f} GiB and {machine.memory / GIB:.1f} are free: lower "
            "--micro_batch_size, add --recompute true, or see `minilm plan`"
        )
    if told.seconds > 86_400 * days:
        return (
            f"this run takes about {told.seconds / 86_400:.1f} days here ({told.step_seconds:.1f} s a step): "
            "`minilm plan` tells what fits"
        )
    return ""


def gpt2(size: str) -> GPTConfig:
    """The shape of a pretrained GPT-2: the preset that trains it from scratch has it."""
    from minilm.options import build, read_preset

    return build(read_preset({"gpt2": "small"}.get(size, size.removeprefix("gpt2-")))).model
