"""What a question is made of: arms, scales, measures, and the cells that they come to.

A cell is one training run and its measurements. Cells of a sweep find each arm's rate on one seed, with as many rates
for each arm; paired cells then run every arm at its own rate on the same other seeds, whose batches are the same.
Timed cells are short and run alone.
"""

from __future__ import annotations

import hashlib
import json
import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

from minilm.config import GPTConfig, TrainConfig
from minilm.errors import UsageError
from minilm.options import MODEL_FIELDS, build, read_preset

Line = dict[str, Any]
Kind = Literal["sweep", "paired", "timed"]
SWEEP_SEED = 100  # no paired seed: what chose the rate does not judge it
CORE_FLOPS = 50e9  # a second that a run of LAPTOP's model reaches on one core of two at work (Zen 4, AVX-512, fp32)
FORMAT = 1  # raised when the same settings give other measurements than before
SCALES = ("smoke", "laptop", "gpu")


@dataclass(frozen=True)
class Scale:
    """How large everything is. The same questions at every scale."""

    name: str
    run: Mapping[str, Any]
    """Fields of the run, on top of the preset tiny's."""
    data: Mapping[str, Any]
    """Options of tales, and its tokenizer."""
    n_seeds: int
    n_rates: int
    n_stories: int
    """Sampled for coherence."""
    timed_steps: int
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What one question alone needs: sizes, contexts."""

    def but(self, run: Mapping[str, Any] | None = None, data: Mapping[str, Any] | None = None, **changes: Any) -> Scale:
        """This scale with some of it changed; run and data are merged."""
        return replace(self, run={**self.run, **(run or {})}, data={**self.data, **(data or {})}, **changes)


_TINY = {k: v for k, v in read_preset("tiny").items() if k != "data"}
SMOKE = Scale(
    "smoke",
    {**_TINY, "n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 32, "batch_size": 4, "max_steps": 4}
    | {"eval_every_steps": 2, "save_every_steps": 2, "eval_tokens": 400, "warmup_steps": 1, "log_every_steps": 1}
    | {"precision": "fp32", "compile": "off", "micro_batch_size": 4, "keep_checkpoints": 1},
    {"level": 1, "megabytes": 0.05, "tokenizer": "words"},
    n_seeds=2,
    n_rates=2,
    n_stories=2,
    timed_steps=3,
)
LAPTOP = Scale(
    "laptop",
    {**_TINY, "n_layer": 3, "n_head": 3, "n_embd": 96, "block_size": 128, "batch_size": 16, "max_steps": 250}
    | {"eval_every_steps": 50, "save_every_steps": 100, "eval_tokens": 20_000, "log_every_steps": 10}
    | {"warmup_steps": 20, "precision": "fp32", "compile": "off", "micro_batch_size": 16, "keep_checkpoints": 1},
    {"level": 1, "megabytes": 20.0, "tokenizer": "words"},
    n_seeds=5,
    n_rates=3,
    n_stories=200,
    timed_steps=60,
)
GPU = LAPTOP.but(
    {"n_layer": 12, "n_head": 12, "n_embd": 768, "block_size": 384, "batch_size": 128, "max_steps": 2000}
    | {"eval_every_steps": 200, "save_every_steps": 500, "eval_tokens": 500_000, "precision": "bf16"}
    | {"micro_batch_size": 64, "warmup_steps": 100},
    {"level": 4, "megabytes": 400.0},
    name="gpu",
    n_rates=5,
)


@dataclass(frozen=True)
class Arm:
    """One alternative."""

    name: str
    run: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the run that make it this arm."""
    rates: tuple[float, ...] = ()
    """Peak rates that are tried, the likeliest in the middle. Empty: the scale's own, and nothing is swept."""
    group: str = ""
    """It is compared with the reference of its group."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """Options of tales that differ."""
    measure: Mapping[str, Any] = field(default_factory=dict)
    """For the question's own measurements."""
    base: Base | None = None
    """What it starts from, where that is not the question's."""
    search: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Fields that Optuna chooses instead of a sweep: ("log", low, high), or ("of", value, value ...)."""
    x: float = math.nan
    """Its place on a picture's axis, where the arms have one."""

    @property
    def label(self) -> str:
        return f"{self.name} / {self.group}" if self.group else self.name


@dataclass(frozen=True)
class Measure:
    """One number of a cell."""

    name: str
    title: str
    unit: str
    better: Literal["lower", "higher"] = "lower"
    digits: int = 3

    def __str__(self) -> str:
        return f"{self.title}, {self.unit}" if self.unit else self.title


@dataclass(frozen=True)
class Claim:
    """A published result, and what it says of our arms against the reference: better, worse, same, not worse."""

    text: str
    source: str
    says: Mapping[str, Literal["better", "worse", "same", "not worse"]]
    measure: str = ""
    """By which measure of the question; empty: by the first."""
    pairs: tuple[tuple[str, str, str, str, Literal["lower", "higher", "same"]], ...] = ()
    """(arm, measure, arm, measure, what the first is beside the second), where a reference is not what it speaks of."""
    within: float = 0.0  # a difference of a pair that counts as none
    untested: str = ""  # what of it our cells cannot test, and why


def prose(name: str) -> Line:
    """What questions.toml says of a question: the fields of `Question` that are prose."""
    table = _catalogue()[name]
    published = [
        Claim(**{"says": {}, **claim, "pairs": tuple(map(tuple, claim.get("pairs", ())))})
        for claim in table["published"]
    ]
    lists = {name: tuple(table[name]) for name in ("threats", "changes_when") if name in table}
    return {"name": name, **table, **lists, "published": tuple(published)}


@cache
def _catalogue() -> Line:
    return tomllib.loads((Path(__file__).parent / "questions.toml").read_text("utf-8"))


@dataclass(frozen=True)
class Picture:
    """Drawn beside the effects. lines: y against the arms' x, a line a group. points: y against the measure x. curves:
    validation loss along each arm's runs, whose `epochs` are measured."""

    kind: Literal["lines", "points", "curves"]
    x: str
    """Title of the arms' x with its unit; of points: a measure's name."""
    y: str
    """A measure's name."""
    log: bool = False


@dataclass(frozen=True)
class Question:
    """One research question. Everything that a reader is told about it, and everything that is run."""

    name: str
    asks: str
    varied: str
    fixed: str
    would_change: str
    """Which outcome would change a default."""
    measures: tuple[Measure, ...]
    """The first decides."""
    margin: float
    """Of the first: a difference below it does not matter, and is what "no difference" means."""
    reference: str
    """Arm that the others of its group are compared with."""
    arms: Callable[[Scale], list[Arm]]
    scales: Mapping[str, Scale]
    published: tuple[Claim, ...]
    threats: tuple[str, ...]
    changes_when: tuple[Literal["better", "worse", "same"], ...] = ("better",)
    """Verdicts of an arm that are that outcome, by the first measure; none: verdicts cannot tell."""
    changes_of: str = ""
    """The arm whose verdicts these are; empty: any."""
    pictures: tuple[Picture, ...] = ()
    chosen_by: str = "val_loss"
    """The number of a sweep's cells that is lowest at an arm's own rate: a measure's, where arms validate on unlike
    text."""
    base: Callable[[Scale], Base] | None = None
    """What is trained before, once for all arms (of a seed)."""
    trains: bool = True
    """Whether arms train; else they measure the base."""
    goal: tuple[str, float] | None = None
    """(measure, value): the report names the smallest arm that reaches it."""
    minutes: int = 15
    """Stated budget at laptop scale, on two quiet cores: its training FLOPs at `CORE_FLOPS`."""
    timed: bool = False
    """Whether each arm's speed is taken, alone on the machine."""
    measure: Callable[..., dict[str, float]] | None = None
    """(Trained) -> more of a cell's numbers."""
    tells: Callable[[Any], list[str]] | None = None
    """(Analysis) -> more sentences of the report, worked out from its numbers."""
    tells_first: bool = False
    """Whether these are the answer, and what is better or worse than the reference comes behind them."""
    judges: Mapping[str, Callable[[Any], str]] = field(default_factory=dict)
    """Author and year of a claim that no verdict of arms tests -> (Analysis) -> what was found, whether it agrees."""

    def scale(self, name: str) -> Scale:
        if name not in self.scales:
            raise UsageError(f"there is no scale {name!r}: choose {', '.join(self.scales)}")
        return self.scales[name]


@dataclass(frozen=True)
class Base:
    """A model that arms start from or measure: trained once and kept for every question. Model fields in which an arm
    differs from it are switched. An arm whose `teacher` is "base" distills it instead."""

    run: Mapping[str, Any]
    data: Mapping[str, Any]
    per_seed: bool = False
    weights: bool = True
    """False: an arm takes its tokenizer alone, and starts from scratch."""
    pretrained: str = ""
    """Taken instead: a size of GPT-2 from the Hub's cache, or a model of models/ that has read `data` among others."""


@dataclass(frozen=True)
class Cell:
    """One training run and its measurements. Its address follows from all that decides the numbers."""

    question: str
    arm: str
    kind: Kind
    seed: int
    config: TrainConfig
    """data, out_dir, init and existing are left open."""
    data: Mapping[str, Any]
    base: Mapping[str, Any] | None
    """Settings of the model that it starts from."""
    measure: Mapping[str, Any]
    scale: str
    own: bool = False
    """Whether its question measures something of its own: else all questions share the result."""

    @property
    def settings(self) -> Line:
        """All that decides the numbers, whole: what a result line records."""
        return {
            "format": FORMAT,
            **({"question": self.question} if self.own else {}),
            "kind": self.kind,
            "config": flat(self.config),
            "data": dict(self.data),
            "base": self.base,
            "measure": dict(self.measure),
        }

    @cached_property
    def address(self) -> str:
        return address(self.settings)

    @cached_property
    def training(self) -> str:
        """Address of what is trained, whatever is measured of it."""
        return address({"config": flat(self.config), "data": dict(self.data), "base": self.base})

    @property
    def name(self) -> str:
        return f"{self.question}/{self.arm}/{self.kind}/seed {self.seed}, lr {self.config.lr:g}"


def flat(config: TrainConfig) -> Line:
    """A config's fields side by side, without its places."""
    names = [f.name for f in fields(TrainConfig)]
    values = {n: getattr(config, n) for n in names if n not in ("model", "data", "out_dir", "init", "existing")}
    values |= {n: getattr(config.model, n) for n in MODEL_FIELDS}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def address(settings: Line) -> str:
    """Content address: a hash of the settings that differ from today's defaults, so that a field that minilm gains
    later, off by default, leaves old results valid, and a default that changes does not. Numbers count to nine digits:
    what a search draws differs in the last ones from processor to processor."""
    return hashlib.sha256(json.dumps(_unlike_defaults(settings), sort_keys=True).encode()).hexdigest()[:16]


def _unlike_defaults(settings: Line) -> Line:
    defaults = _defaults()
    config = {k: v for k, v in settings["config"].items() if k not in defaults or defaults[k] != v}
    config = {k: float(f"{v:.9g}") if isinstance(v, float) else v for k, v in config.items()}
    base = settings.get("base")
    return {**settings, "config": config, "base": _unlike_defaults(base) if base else None}


@cache
def _defaults() -> Line:
    return flat(TrainConfig(model=GPTConfig()))


def config_of(scale: Scale, run: Mapping[str, Any], seed: int) -> TrainConfig:
    """The scale's run with an arm's changes."""
    return _built(tuple(sorted({**scale.run, **run, "seed": seed}.items())))


@cache
def _built(values: tuple[tuple[str, Any], ...]) -> TrainConfig:
    """Checking a config takes milliseconds, and a plan of a question is made again after each of its cells."""
    return build(dict(values))


def middle(rates: tuple[float, ...], n: int) -> tuple[float, ...]:
    """The n rates around the middle one."""
    first = max((len(rates) - n) // 2, 0)
    return rates[first : first + n]


def grid(centre: float, n: int = 5, factor: float = 3.0) -> tuple[float, ...]:
    """n rates, each `factor` times the one before, to two digits."""
    return tuple(float(f"{centre * factor ** (i - n // 2):.2g}") for i in range(n))
