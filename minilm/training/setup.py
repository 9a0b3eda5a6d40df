"""What a run settles before its first step: folder, model, device, precision, compiling, micro-batch.

Whatever is measured or chosen here is written to run.json and read back on resume: a resumed run computes with the
kernels that it began with, bit for bit.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from minilm import runtime
from minilm.config import GPTConfig, TrainConfig
from minilm.errors import UsageError
from minilm.log import check_installed, quoted, say
from minilm.model.gpt import GPT
from minilm.model.hub import step_folders
from minilm.model.losses import COMPILED_CHUNK_BYTES, fits
from minilm.model.surgery import add_tokens
from minilm.model.weights import load_pretrained
from minilm.options import to_toml
from minilm.text.tokenizer import Tokenizer
from minilm.training.estimate import memory
from minilm.training.finetune import adapt
from minilm.training.objective import Objective, check_tokenizer
from minilm.training.precision import autocast

LossFunction = Callable[..., Tensor]

# Eager steps of small models reach about a third of the machine's rate (nanoGPT's CPU recipe 0.28 to 0.37, and no more
# compiled; `tiny` gains a quarter); below two minutes compiling, up to 80 s, does not pay.
EAGER_SHARE = 0.3
COMPILE_FROM_SECONDS = 120.0
# On a CPU a micro-batch of this much work takes seconds: progress is seen, and a Ctrl-C is heard.
CPU_MICRO_FLOPS = 2e12
CPU_MICRO_TOKENS = 8192
# The rest is for kernels' scratch memory and fragmentation, which estimates do not see.
CUDA_SHARE = 0.7


@dataclass(frozen=True)
class Setup:
    """How a run computes. Stored in run.json."""

    device_type: str
    precision: str  # one of runtime.PRECISIONS
    compile: bool
    micro_batch_size: int  # sequences
    peak_flops: float  # what MFU is a share of
    recompute: bool = False  # activation checkpointing

    def autocast(self) -> torch.autocast:
        """The context that forward passes run in."""
        return autocast(self.device_type, self.precision)


def settle(config: TrainConfig, model: GPT, device: torch.device, world: int = 1) -> Setup:
    """Measures and decides what the config leaves to "auto". Raises UsageError on what so many ranks cannot do."""
    if config.batch_size % world:
        raise UsageError(f"{world} ranks do not divide batch_size {config.batch_size}: choose a multiple")
    precision = runtime.pick_precision(config.precision, device, config.model.n_embd)
    sixteen = {"bf16": torch.bfloat16, "fp16": torch.float16 if device.type != "cpu" else torch.float32}
    peak = runtime.peak_flops(device, sixteen.get(precision.removeprefix("pure_"), torch.float32))
    flops = model.flops_per_token(config.model.block_size)
    total = flops * config.batch_size * config.model.block_size * config.max_steps
    spread = config.parallel == "fsdp" and world > 1
    if spread and config.compile == "on":
        raise UsageError("what FSDP spreads over ranks runs eager: leave out --compile on, or take --parallel ddp")
    compiled = config.compile == "on" or (
        config.compile == "auto"
        and not spread
        and device.type != "mps"
        and total / (EAGER_SHARE * peak) > COMPILE_FROM_SECONDS
    )
    if compiled and device.type == "cpu" and (why := runtime.compiler_missing()):
        say(f"running eager: {why}")
        compiled = False
    return Setup(
        device_type=device.type,
        precision=precision,
        compile=compiled,
        micro_batch_size=config.micro_batch_size or micro_batch_size(config, model, precision, device, world),
        peak_flops=peak,
        recompute=config.recompute,
    )


def micro_batch_size(
    config: TrainConfig, model: GPT, precision: str, device: torch.device, world: int = 1, card_bytes: float = 0.0
) -> int:
    """The largest divisor of a rank's share of a batch whose activations fit (card_bytes: of a card that the
    weights are yet to be put on; 0: what is free now), and on a CPU whose work takes seconds."""
    T = config.model.block_size
    if device.type == "cuda":
        shares = world if config.parallel == "fsdp" else 1
        V, D = model.head_weight.shape
        whole = fits(config.batch_size * T, V, card=True)
        one = memory(model, config, precision, 1, head=whole, card=True)
        chunks = 0.0 if whole else 1.5 * COMPILED_CHUNK_BYTES + 4 * V * D  # of the loss
        kept = (one.gradients + one.optimizer) / shares + chunks  # weights are there
        left = card_bytes - one.weights if card_bytes else torch.cuda.mem_get_info(device)[0]
        free = CUDA_SHARE * left - kept
        limit = free / one.activations
    else:
        limit = min(CPU_MICRO_TOKENS / T, CPU_MICRO_FLOPS / (model.flops_per_token(T) * T))
    share = max(config.batch_size // world, 1)
    return max(n for n in range(1, share + 1) if share % n == 0 and (n == 1 or n <= limit))


def loss_function(
    objective: Objective, setup: Setup, through: Callable[[LossFunction], LossFunction] = lambda function: function
) -> LossFunction:
    """(ids, targets) or (ids, targets, weights) -> summed loss, under autocast and compiled as the setup says.

    On a CPU, and where logits are too large to be held at once, each block is compiled, not the whole: blocks are
    alike, so one compilation serves them all.
    Where compiling fails on the first call, runs eager and says why in one line.
    through: what stands between this and the model where its weights are spread over ranks.
    """
    reached = through(objective)

    def plain(*batch: Tensor, blocks: Sequence[Callable[..., Tensor]] | None = None, **how: Any) -> Tensor:
        if setup.recompute:  # Chen 2016; dropout draws the same again
            whole = objective.model.h if blocks is None else blocks
            blocks = [partial(checkpoint, block, use_reentrant=False) for block in whole]
        with setup.autocast():
            return reached(*batch, blocks=blocks, **how)

    if not setup.compile:
        return plain
    on_cpu, model = setup.device_type == "cpu", objective.model
    if on_cpu or not fits(setup.micro_batch_size * model.config.block_size, len(model.head_rows()), card=True):
        options = _cpu_options() if on_cpu else None
        blocks = [torch.compile(block, dynamic=False, options=options) for block in model.h]
        how = {} if on_cpu else {"nats": _nats(model)}
        compiled: LossFunction = partial(plain, blocks=blocks, **how)
    else:
        compiled = torch.compile(plain, dynamic=False)
    chosen: list[LossFunction] = []

    def first_compiled(*batch: Tensor) -> Tensor:
        if chosen:
            return chosen[0](*batch)
        try:
            with _recomputing(on_cpu):
                loss = compiled(*batch)
            chosen.append(compiled)
        except (torch._dynamo.exc.TorchDynamoException, torch._inductor.exc.CppCompileError) as error:
            say(f"running eager: compiling failed ({str(error).strip().splitlines()[0]})")
            chosen.append(plain)
            loss = plain(*batch)
        return loss

    return first_compiled


def _nats(model: GPT) -> Callable[..., Any]:
    """Loss and gradient of a chunk of logits on a card: a kernel, or compiled where it has none for the model."""
    c = model.config
    if c.logit_softcap or model.device.type != "cuda" or find_spec("triton") is None:
        return torch.compile(model.nats, dynamic=False)
    from minilm.model.kernels import nats_and_gradient

    return partial(nats_and_gradient, n_used=c.rows_used)


def _recomputing(on_cpu: bool) -> AbstractContextManager[object]:
    """Compiled blocks keep neither 16-bit copies of weights nor GELU's result for the backward pass, which makes them
    again: 23 MiB instead of 51 a block of GPT-2 small on 1,024 tokens, as fast (AVX-512 with bf16, torch 2.13)."""
    from torch._functorch import config

    name = "ban_recompute_materialized_backward"
    return config.patch({name: False}) if on_cpu and hasattr(config, name) else nullcontext()


def _cpu_options() -> dict[str, Any]:
    """tanh as 2 / (1 + exp(-2x)) - 1: GPT-2's GELU and its gradient in half the time, 1e-7 away (AVX2, torch 2.13;
    docs/performance-log.md)."""
    from torch._inductor import config

    return {"cpp.use_decompose_tanh": True} if hasattr(config.cpp, "use_decompose_tanh") else {}


def build_model(config: TrainConfig, tokenizer: Tokenizer, device: torch.device) -> tuple[GPT, TrainConfig]:
    """The model to train, from scratch or from `init`, and the config with its vocabulary settled.

    Raises UsageError where the tokenizer has more tokens than the model rows, or is another than init's.
    """
    torch.manual_seed(config.seed)
    if config.init and config.existing != "resume":
        # A model config that was left alone means the checkpoint's own.
        changes = {} if config.model == GPTConfig() else asdict(config.model)
        model, report = load_pretrained(config.init, **changes)
        say(str(report))
        if added := check_tokenizer(config.init, tokenizer, may_extend=True):
            add_tokens(model, added)
            say(f"{added} new tokens: their rows begin at the mean of the others")
    else:
        model_config = replace(config.model, vocab_size=config.model.vocab_size or tokenizer.vocab_size)
        if tokenizer.vocab_size > model_config.vocab_size:
            raise UsageError(
                f"the data's tokenizer {tokenizer.name} has {tokenizer.vocab_size} tokens and the model "
                f"{model_config.vocab_size} rows: set --vocab_size {tokenizer.vocab_size}"
            )
        if tokenizer.vocab_size < model_config.vocab_size:
            model_config = replace(model_config, vocab_used=tokenizer.vocab_size)
        model = GPT(model_config)
    adapt(model, config)
    model.train()  # loaded weights come in evaluation mode
    return model.to(device), replace(config, model=model.config)


def check_run(run: Path, existing: str, loggers: Sequence[str] = ()) -> None:
    """Raises UsageError where a run is there and should not be, or should and is not, or a logger is not installed."""
    check_installed(loggers)
    if run.exists() and not run.is_dir():
        raise UsageError(f"{run} is a file: name a folder with --out_dir")
    if existing == "resume":
        if not step_folders(run):
            raise UsageError(f"{run} has no checkpoint to resume from: start it without --resume")
    elif run.exists() and any(run.iterdir()):
        if existing == "refuse" and step_folders(run):
            raise UsageError(
                f"{run} holds a run: continue it with --resume {quoted(run)}, or pass --overwrite or --out_dir"
            )
        if existing == "refuse":
            raise UsageError(f"{run} holds a run that has saved nothing: pass --overwrite, or another --out_dir")
        if not (run / "config.toml").is_file():
            raise UsageError(f"{run} holds files but no run, and is not overwritten: choose another --out_dir")


@contextmanager
def holding(run: Path) -> Iterator[None]:
    """The run's folder, made where there is none, is this process's alone until it ends, however it ends. Raises
    UsageError where another process trains in it."""
    with ExitStack() as stack:
        try:
            run.mkdir(parents=True, exist_ok=True)
            if sys.platform != "win32":  # which has no such lock
                import fcntl

                stack.callback(os.close, folder := os.open(run, os.O_RDONLY))
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another process trains in {run}: wait for it, or choose another --out_dir") from None
        except OSError as error:
            raise UsageError(f"{run} cannot be written ({error}): name another --out_dir") from None
        yield


def open_run(config: TrainConfig, setup: Setup) -> None:
    """Fills the run folder, an old run removed first, with config.toml and run.json.

    run.json holds how the run computes, the command, and the commit and versions that started it.
    """
    run = Path(config.out_dir)
    try:
        for old in run.iterdir():  # the folder itself is held
            shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
        (run / "config.toml").write_text(to_toml(config), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{run} cannot be written ({error}): name another --out_dir") from None
    record = {
        "setup": asdict(setup),
        "command": sys.argv,
        "commit": runtime.git_commit(),
        "versions": runtime.versions(),
    }
    (run / "run.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def read_setup(run: Path) -> Setup:
    """The setup that a run began with. Raises UsageError where run.json is missing or damaged."""
    try:
        record: dict[str, Any] = json.loads((run / "run.json").read_text(encoding="utf-8"))
        return Setup(**record["setup"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{run} cannot be resumed: run.json is missing or damaged ({error})") from None


def setup_of(run: Path, config: TrainConfig, device: torch.device) -> Setup:
    """`read_setup`, and UsageError where the run began on another kind of device, or has more steps than the config."""
    setup = read_setup(run)
    if setup.device_type != device.type:
        raise UsageError(f"{run} began on {setup.device_type}, this is {device.type}: start anew with --init {run}")
    done = max((int(folder.name.removeprefix("step_")) for folder in step_folders(run)), default=0)
    if done > config.max_steps:
        raise UsageError(f"{run} has {done} steps, more than {config.max_steps}: go on with a longer --max_steps")
    return setup
