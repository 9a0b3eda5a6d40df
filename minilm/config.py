"""Every setting of a training run, as one frozen dataclass; a model's are in `model_config.py`.

Each choice is one field with one registry; a test holds the registries and the `Literal`s below equal. Values are
checked on construction, so a wrong one never reaches a tensor.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from minilm.checks import check_each
from minilm.checks import check_fields as check_fields
from minilm.checks import nearest as nearest
from minilm.errors import UsageError
from minilm.model_config import Activation as Activation
from minilm.model_config import GPTConfig as GPTConfig
from minilm.model_config import InitScheme as InitScheme
from minilm.model_config import Norm as Norm
from minilm.model_config import NormPosition as NormPosition
from minilm.model_config import Position as Position

Optimizer = Literal["adamw", "adam", "sgd", "adagrad", "rmsprop", "muon", "adafactor", "lion"]
DecayOn = Literal["matrices", "tables", "all"]
Schedule = Literal["cosine", "linear", "constant", "cosine_restarts", "inverse_sqrt", "polynomial", "step", "wsd"]
Precision = Literal["auto", "fp32", "tf32", "bf16", "fp16", "pure_bf16", "pure_fp16"]
Rounding = Literal["nearest", "stochastic", "kahan"]
GuardMode = Literal["stop", "skip", "rollback"]
Compile = Literal["auto", "on", "off"]
Packing = Literal["chunks", "documents", "lines", "best_fit", "sliding"]
Attend = Literal["window", "document"]
ControlCodes = Literal["off", "source", "label", "source_tokens", "label_tokens"]
Parallel = Literal["ddp", "fsdp"]
Order = Literal["shuffled", "sequential", "random"]
Existing = Literal["refuse", "resume", "overwrite"]

OBJECTIVES = ("likelihood", "z_loss", "unlikelihood", "sequence_unlikelihood", "contrastive", "distill")
"""Fields that weigh a term of what is minimised."""


@dataclass(frozen=True)
class TrainConfig:
    """One training run: what, on what, for how long, how. A step is an optimizer step, always."""

    model: GPTConfig = field(default_factory=GPTConfig)

    data: str = "tales"
    """A data script's name, a prepared folder, your own text; or several: a:0.7,b:0.3 (`train()` takes prepared)."""
    tokenizer: str = ""
    """gpt2, bytes, chars, words, bpe:N or a folder. Empty: the data's own."""
    source: str = ""
    """A local copy of the data set in upstream form, instead of a download."""
    init: str = ""
    """Weights to start from: a run, a step folder, a Hugging Face folder or Hub name. Empty: from scratch."""
    out_dir: str = ""
    """Run folder. Empty: runs/ and the names of preset and data."""
    existing: Existing = "refuse"
    """What to do with a run that is already there; `--resume` and `--overwrite` are short for two of them."""

    packing: Packing = "chunks"
    """How text becomes rows: chunks, a document or a line a row, best_fit (documents packed), sliding windows."""
    stride: int = 0
    """sliding: tokens from a window to the next; each token counts once. 0: the context."""
    order: Order = "shuffled"
    """Every row once an epoch, the text's own order, or chunks that begin anywhere (as nanoGPT's)."""
    context_schedule: str = ""
    """Shorter contexts first: 64:0.3,256:0.6 is 64 for 30 % of the steps, 256 up to 60 %; tokens a step stay equal."""
    attend: Attend = "window"
    """Tokens attend to all before them in their row, or only within their own document."""
    mix_temperature: float = 1.0
    """Mixed data without weights: shares go by size ** (1 / this). 1: by size."""
    control_codes: ControlCodes = "off"
    """Each document begins with its source's name or its label, as text ("imdb: ") or as a new token (<|imdb|>)."""

    freeze: tuple[str, ...] = ()
    """Not trained: groups (embeddings attention mlp norms biases head), h.0-5, top:4, names, globs."""
    train_only: tuple[str, ...] = ()
    """Trained, and nothing else; patterns as for freeze, which is taken off. Empty: everything."""
    lora_rank: int = 0
    """Rank of LoRA's adapters, which are then trained instead of everything (beside train_only's). 0: off."""
    lora_alpha: float = 32.0
    """LoRA's product is multiplied by lora_alpha / lora_rank."""
    lora_dropout: float = 0.0
    """Dropout on what the adapters read."""
    lora_targets: tuple[str, ...] = ("attention", "mlp")
    """Layers of blocks that get an adapter: patterns as for freeze, such as *.c_attn.*"""
    likelihood: float = 1.0
    """Weight of cross-entropy in what is minimised; every other term is added by its own weight, 0 being off."""
    label_smoothing: float = 0.0
    """Share of cross-entropy's target that is spread over the vocabulary."""
    z_loss: float = 0.0
    """Weight of the squared log of the softmax's normaliser."""
    unlikelihood: float = 0.0
    """Weight of unlikelihood of the tokens that the context holds already."""
    sequence_unlikelihood: float = 0.0
    """Weight of unlikelihood of repeated 4-grams in greedy continuations, which each step then generates."""
    contrastive: float = 0.0
    """Weight of SimCTG's loss, which pushes a sequence's hidden states apart."""
    contrastive_margin: float = 0.5
    """How far apart: until their cosine is under 1 - margin."""
    teacher: str = ""
    """A checkpoint of the same tokenizer to distill from, named as init is."""
    distill: float = 0.0
    """Weight of the divergence from the teacher's predictions."""
    distill_temperature: float = 2.0
    """Of teacher and student in that divergence."""
    prompt_end: str = ""
    """Text that ends the prompt inside each document; targets up to it weigh prompt_weight."""
    prompt_weight: float = 1.0
    """Weight of a prompt's targets in the terms over tokens. 0: only completions are learnt."""
    swap_activation: str = ""
    """An activation that replaces the model's in training, before step swap_at_step."""
    swap_at_step: int = 0
    """When."""
    fix_norms_every_steps: int = 0
    """With norm fixed: one norm becomes linear every so many steps, from the first on, until all are. 0: off."""
    unfreeze_every_steps: int = 0
    """Training begins with the last block and goes one block deeper every so many steps, embeddings last. 0: off."""

    max_steps: int = 1000
    """Length of the run."""
    max_tokens: int = 0
    """Length in tokens instead. 0: off."""
    max_epochs: float = 0.0
    """Length in passes over the training text instead. 0: off."""
    batch_size: int = 32
    """Sequences per step over all micro-batches and ranks."""
    micro_batch_size: int = 0
    """Sequences that go through the model at once; gradients add up. 0: chosen for the device."""
    parallel: Parallel = "ddp"
    """Among ranks (torchrun): the whole model on each, or weights, gradients and moments spread over all (FSDP2)."""
    recompute: bool = False
    """Blocks run again in the backward pass instead of keeping activations: less memory, a third more work."""

    optimizer: Optimizer = "adamw"
    """muon works on matrices inside blocks, and adamw on the rest."""
    lr: float = 6e-4
    """Peak learning rate."""
    layer_lr_decay: float = 1.0
    """Factor on the rate for each layer further down: head 1, last block this, embeddings the smallest rate."""
    schedule: Schedule = "cosine"
    """Shape of the rate after warmup."""
    warmup_steps: int = 100
    """Steps over which the rate rises from 0."""
    warmup_tokens: int = 0
    """Warmup in tokens, instead of warmup_steps. 0: off."""
    warmup_share: float = 0.0
    """Warmup as a share of the run, instead of warmup_steps. 0: off."""
    final_lr_share: float = 0.1
    """Share of the peak rate that the last step has."""
    decay_share: float = 0.2
    """wsd: share of the run after warmup over which the rate falls."""
    schedule_cycles: int = 4
    """cosine_restarts: cosines in the run."""
    schedule_power: float = 2.0
    """polynomial: its power."""
    schedule_drops: int = 2
    """step: falls of the rate, evenly spaced."""
    weight_decay: float = 0.1
    """Decay of weights; decoupled in adamw, muon, adafactor and lion, L2 in the others."""
    decay_on: DecayOn = "tables"
    """What decays: matrices inside blocks; tables (embeddings, positions, head) too; all: biases and norms too."""
    beta1: float = 0.9
    """Decay of the first moment: adamw, adam, lion, adafactor where it has one."""
    beta2: float = 0.95
    """Decay of the second moment: adamw, adam, rmsprop; of lion's only one."""
    eps: float = 1e-8
    """Added to the root of the second moment: adamw, adam, adagrad, rmsprop."""
    momentum: float = 0.95
    """Of muon and sgd."""
    nesterov: bool = True
    """muon and sgd look ahead by their momentum."""
    adafactor_relative_step: bool = False
    """Rate min(lr, 1 / sqrt(step)) times each tensor's root mean square (the paper's, with --lr 1e-2)."""
    adafactor_first_moment: bool = False
    """A first moment too, and with it the memory that adafactor saves."""
    adafactor_clip: float = 1.0
    """Largest root mean square of an update. 0: off."""
    grad_clip: float = 1.0
    """Largest gradient norm. 0: off."""

    guard: GuardMode = "stop"
    """A step whose loss or gradient is not finite, or spikes: end the run, skip it, or go back and halve the rate."""
    guard_spike: float = 0.0
    """Spreads above the median of the last 64 steps from which a loss or gradient norm is a spike. 0: never."""
    patience: int = 0
    """Validations without a new best after which the run stops early; every best is then saved. 0: never."""
    target_loss: float = 0.0
    """Validation loss whose first reaching is logged in steps and tokens. 0: none."""

    precision: Precision = "auto"
    """Of matrix products; pure_*: of weights, gradients and optimizer state too. auto: the fastest with fp32 state."""
    rounding: Rounding = "nearest"
    """pure_*: how an update is written to 16 bits; kahan keeps the rest in 16 bits more."""
    compile: Compile = "auto"
    """torch.compile. auto: where the run is long enough to repay it."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps. auto: the fastest there is."""
    seed: int = 1337
    """Weights, batch order and dropout."""

    eval_every_steps: int = 250
    """Steps between validations. 0: only at the end."""
    eval_tokens: int = 100_000
    """Validation tokens, always the same first ones."""
    save_every_steps: int = 250
    """Steps between checkpoints. 0: only at the end."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept, beside the best by validation loss."""
    eval_samples: int = 0
    """Texts sampled at each validation into samples.jsonl, of tales with their coherence; training does not feel it."""
    eval_metrics: tuple[str, ...] = ()
    """Measured at each validation by name: protocols, benchmarks, measures of sampled texts (docs/evaluation.md)."""
    loggers: tuple[str, ...] = ()
    """Beside metrics.jsonl: tensorboard, wandb."""
    log_every_steps: int = 10
    """Steps between lines in metrics.jsonl."""

    def __post_init__(self) -> None:
        check_fields(self)
        names = ["max_steps", "batch_size", "keep_checkpoints", "log_every_steps", "eval_tokens"]
        check_each(self, [*names, "schedule_cycles", "schedule_drops"], lambda n: n >= 1, "be at least 1")
        names = ["micro_batch_size", "warmup_steps", "warmup_tokens", "eval_every_steps", "save_every_steps", "seed"]
        names += ["unfreeze_every_steps", "lora_rank", "patience", "swap_at_step", "fix_norms_every_steps"]
        names += ["stride", "max_tokens", "eval_samples"]
        check_each(self, names, lambda n: 0 <= n < 1 << 63, "be 0 or more and under 2^63")
        names = ["lr", "weight_decay", "eps", "grad_clip", "adafactor_clip", "schedule_power", "lora_alpha"]
        names += ["guard_spike", "target_loss", "prompt_weight", *OBJECTIVES]
        check_each(self, names, lambda x: 0.0 <= x < float("inf"), "be 0 or more")
        names = ["beta1", "beta2", "momentum", "lora_dropout", "label_smoothing"]
        check_each(self, names, lambda x: 0.0 <= x < 1.0, "lie in [0, 1)")
        check_each(self, ("final_lr_share", "warmup_share"), lambda x: 0.0 <= x <= 1.0, "lie between 0 and 1")
        if not any(getattr(self, name) for name in OBJECTIVES):
            raise UsageError(f"nothing would be minimised: one of {', '.join(OBJECTIVES)} must be above 0")
        check_each(self, ("distill_temperature",), lambda x: 0.0 < x < float("inf"), "be above 0")
        if bool(self.teacher) != (self.distill > 0):
            raise UsageError("distillation needs both: a checkpoint with --teacher and its weight with --distill")
        if bool(self.prompt_end) != (self.prompt_weight != 1.0):
            raise UsageError("weighting prompts needs both: what ends them with --prompt_end, and --prompt_weight")
        check_each(self, ("layer_lr_decay", "decay_share"), lambda x: 0.0 < x <= 1.0, "be above 0 and at most 1")
        if not (0.0 <= self.max_epochs < float("inf") and 0.0 < self.mix_temperature < float("inf")):
            raise UsageError("max_epochs must be 0 or more and mix_temperature above 0: give finite numbers")
        if self.max_tokens and self.max_epochs:
            raise UsageError("max_tokens and max_epochs exclude each other: set one of them")
        if self.warmup_tokens and self.warmup_share:
            raise UsageError("warmup_tokens and warmup_share exclude each other: set one of them")
        if self.swap_activation and self.swap_activation not in get_args(Activation):
            raise UsageError(f"swap_activation is {self.swap_activation!r}: choose {', '.join(get_args(Activation))}")
        for name in self.loggers:
            if name not in ("tensorboard", "wandb"):
                raise UsageError(f"loggers are tensorboard and wandb, not {name!r}")
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise UsageError(f"micro_batch_size ({self.micro_batch_size}) must divide batch_size ({self.batch_size})")
