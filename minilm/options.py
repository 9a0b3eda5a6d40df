"""From presets, files and a command line to one `TrainConfig`: defaults < preset or file < command line.

Names are flat: model fields and training fields stand side by side. `--dropout` and `--bias` set three fields each.
A preset's tables [cpu] and [cuda] hold what differs by device.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from minilm.command_line import plain
from minilm.config import GPTConfig, TrainConfig, nearest
from minilm.errors import UsageError

PRESETS = Path(__file__).parent / "presets"
ALIASES = {"dropout": ("embd_dropout", "attn_dropout", "resid_dropout"), "bias": ("attn_bias", "mlp_bias", "norm_bias")}
MODEL_FIELDS = tuple(f.name for f in fields(GPTConfig))
TRAIN_FIELDS = tuple(f.name for f in fields(TrainConfig) if f.name != "model")
_DEFAULTS = TrainConfig()
LENGTHS = ("max_steps", "max_tokens", "max_epochs")
# Options that count only beside another one: which, and its values with which they do (none named: any but off).
_OPTIMIZERS = {
    "beta1": ("adamw", "adam", "muon", "lion", "adafactor"),
    "beta2": ("adamw", "adam", "muon", "lion", "rmsprop"),
    "eps": ("adamw", "adam", "muon", "adagrad", "rmsprop"),
    **dict.fromkeys(("momentum", "nesterov"), ("muon", "sgd")),
    **dict.fromkeys(("adafactor_relative_step", "adafactor_first_moment", "adafactor_clip"), ("adafactor",)),
}
BESIDE: dict[str, tuple[str, tuple[str, ...]]] = {
    **{name: ("optimizer", kinds) for name, kinds in _OPTIMIZERS.items()},
    **dict.fromkeys(("lora_alpha", "lora_dropout", "lora_targets"), ("lora_rank", ())),
    "decay_share": ("schedule", ("wsd",)),
    "schedule_cycles": ("schedule", ("cosine_restarts",)),
    "schedule_power": ("schedule", ("polynomial",)),
    "schedule_drops": ("schedule", ("step",)),
    "rounding": ("precision", ("pure_bf16", "pure_fp16")),
    "stride": ("packing", ("sliding",)),
    "swap_at_step": ("swap_activation", ()),
    "contrastive_margin": ("contrastive", ()),
    "distill_temperature": ("distill", ()),
    "label_smoothing": ("likelihood", ()),
}


@dataclass(frozen=True)
class CommandLine:
    """What `train.py` was asked to do."""

    config: TrainConfig
    preset: str
    resume_from: str | None  # run named with --resume; "" for none named


def parse(argv: Sequence[str], device_type: str = "cpu", base: GPTConfig | None = None) -> CommandLine:
    """`train.py`'s command line. base: the model that `--init` names, which preset and options then change.

    Raises UsageError on an unknown preset, option or value; prints the options and exits with 0 on `--help`.
    """
    words = expand(argv)
    preset = take(words, "config") or "tiny"
    resume_from = _take_flag_or_value(words, "resume")
    overwrite = _take_flag_or_value(words, "overwrite") is not None
    if overwrite and resume_from is not None:
        raise UsageError("--resume and --overwrite exclude each other: choose one")
    values = read_preset(preset, device_type)
    if base is not None:
        values = {k: v for k, v in values.items() if k not in MODEL_FIELDS}
    if {"-h", "--help"} & set(words):
        _show_help(build(values, base))
    given = _options(words)
    if overwrite or resume_from is not None:
        given["existing"] = "overwrite" if overwrite else "resume"
    lengths = [name for name in LENGTHS if name in given]
    if len(lengths) > 1:
        raise UsageError(f"{' and '.join(f'--{name}' for name in lengths)} exclude each other: give one length")
    values = {k: v for k, v in values.items() if not (lengths and k in LENGTHS)} | given  # a preset's length gives way
    config = build(values, base)
    _check_counting(config, given)
    return CommandLine(config, preset, resume_from)


def _check_counting(config: TrainConfig, given: dict[str, Any]) -> None:
    """Raises UsageError where an option was given that does nothing beside the others."""
    for name, (beside, kinds) in BESIDE.items():
        there = getattr(config, beside)
        counts = there in kinds if kinds else there
        if name in given and getattr(config, name) != getattr(_DEFAULTS, name) and not counts:
            needed = f"--{beside} {' or '.join(kinds)}" if kinds else f"--{beside}"
            raise UsageError(f"--{name} does nothing without {needed}: add that, or leave --{name} out")


def _show_help(defaults: TrainConfig) -> None:
    import tyro

    how: dict[str, Any] = {"config": (tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff), "use_underscores": True}
    description = (
        f"Train a model. Presets (--config NAME or FILE.toml): {', '.join(presets())}. Also: --resume [RUN], "
        "--overwrite, --dropout P (all three), --bias True|False (all three)."
    )
    tyro.cli(TrainConfig, args=["--help"], default=defaults, prog="train.py", description=description, **how)


def _options(words: list[str]) -> dict[str, Any]:
    """`--name value ...` to values of the fields' types. Raises UsageError, naming what would be right."""
    hints = get_type_hints(GPTConfig) | get_type_hints(TrainConfig)
    known = [*TRAIN_FIELDS, *MODEL_FIELDS, *ALIASES, "config", "resume", "overwrite", "help"]
    values: dict[str, Any] = {}
    while words:
        word = words.pop(0)
        name = word.removeprefix("--")
        if not word.startswith("--") or name not in TRAIN_FIELDS + MODEL_FIELDS:
            raise UsageError(f"there is no option {word}{nearest(word, ['--' + k for k in known])}; --help lists them")
        end = next((i for i, w in enumerate(words) if w.startswith("--")), len(words))
        values[name] = _value(name, hints[name], words[:end])
        del words[:end]
    return values


def _value(name: str, hint: Any, words: list[str]) -> Any:
    several = hint in (tuple[int, ...], tuple[str, ...])
    if not several and len(words) != 1:
        raise UsageError(f"--{name} takes one value, not {' '.join(words) or 'none'}")
    kinds: dict[Any, Callable[[str], Any]] = {int: int, float: float, bool: truth, tuple[int, ...]: int}
    kind = kinds.get(hint, str)
    try:
        made = [kind(word) for word in words]
    except (ValueError, KeyError):
        takes = {int: "a whole number", float: "a number", bool: "true or false"}.get(hint, "whole numbers")
        raise UsageError(f"--{name} takes {takes}, not {' '.join(words)!r}") from None
    return tuple(made) if several else made[0]


def truth(word: str) -> bool:
    """Raises KeyError where the word is none for it."""
    return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[word.lower()]


def presets() -> list[str]:
    return sorted(p.stem for p in PRESETS.glob("*.toml"))


def read_preset(name_or_path: str, device_type: str = "cpu") -> dict[str, Any]:
    """Flat values of a preset or a TOML file, the device's table applied. Raises UsageError on an unknown key."""
    path = PRESETS / f"{name_or_path}.toml" if name_or_path in presets() else Path(name_or_path)
    if not path.is_file():
        raise UsageError(
            f"no preset or file named {name_or_path!r}{nearest(name_or_path, presets())}: "
            f"presets are {', '.join(presets())}"
        )
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no TOML file: {error}") from None
    devices = {kind: table.pop(kind, {}) for kind in ("cpu", "cuda")}
    flat: dict[str, Any] = {}
    for key, value in {**table, **devices.get(device_type, {})}.items():
        names = ALIASES.get(key, (key,))
        if names[0] not in MODEL_FIELDS + TRAIN_FIELDS:
            raise UsageError(f"{path} sets {key!r}, which is no option{nearest(key, MODEL_FIELDS + TRAIN_FIELDS)}")
        flat.update(dict.fromkeys(names, value))
    return flat


def build(values: dict[str, Any], base: GPTConfig | None = None) -> TrainConfig:
    """Flat values on top of the defaults (of base, for the model's)."""
    model = replace(base or GPTConfig(), **{k: v for k, v in values.items() if k in MODEL_FIELDS})
    return TrainConfig(model=model, **{k: v for k, v in values.items() if k in TRAIN_FIELDS})


def run_config(run: Path) -> TrainConfig:
    """What a run was started with, from its config.toml. Raises UsageError where there is none."""
    return build(read_preset(str(run / "config.toml")))


def to_toml(config: TrainConfig) -> str:
    """Every value, flat: a file that `--config` reads back to an equal config."""
    values = {name: getattr(config, name) for name in TRAIN_FIELDS if name != "existing"}
    values |= {name: getattr(config.model, name) for name in MODEL_FIELDS}
    # JSON's strings, numbers, booleans and lists of numbers are TOML's.
    return "".join(
        f"{name} = {json.dumps(list(value) if isinstance(value, tuple) else value)}\n" for name, value in values.items()
    )


def init_of(argv: Sequence[str]) -> str:
    """What `--init` names on a command line or in its preset, without parsing the rest."""
    words = expand(argv)
    preset = take(words, "config") or "tiny"
    return take(words, "init") or str(read_preset(preset).get("init", ""))


def expand(argv: Sequence[str]) -> list[str]:
    """`--name=value` as two words, hyphens as underscores, aliases as what they stand for."""
    words: list[str] = []
    for word in argv:
        name, equals, value = plain(word).partition("=")
        words += [name, value] if word.startswith("--") and equals else [name if word.startswith("--") else word]
    for alias, names in ALIASES.items():
        value_of_all = take(words, alias)
        if value_of_all is not None:
            words += [word for name in names for word in (f"--{name}", value_of_all)]
    return words


def take(words: list[str], name: str) -> str | None:
    """Removes `--name value` from words and returns the value; the last one counts."""
    value = None
    while f"--{name}" in words:
        at = words.index(f"--{name}")
        if at + 1 == len(words) or words[at + 1].startswith("--"):
            raise UsageError(f"--{name} needs a value")
        value = words[at + 1]
        del words[at : at + 2]
    return value


def _take_flag_or_value(words: list[str], name: str) -> str | None:
    """Removes `--name [value]`; "" where it stands alone, None where it is absent."""
    if f"--{name}" not in words:
        return None
    at = words.index(f"--{name}")
    if at + 1 == len(words) or words[at + 1].startswith("--"):
        del words[at]
        return ""
    return take(words, name)
