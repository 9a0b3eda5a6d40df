"""What a text can be steered towards: bags of words, and classes that a linear head tells apart (PPLM's two kinds).

A head stands beside the weights that it was trained for, as attribute-NAME.safetensors in the checkpoint's folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minilm.checks import check_each, is_count, nearest
from minilm.errors import UsageError
from minilm.model.gpt import GPT

if TYPE_CHECKING:
    from minilm.text.tokenizer import Tokenizer

PREFIX = "attribute-"


@dataclass(frozen=True)
class Head:
    """A linear classifier of the mean of what the model's head reads: weight (C, D), bias (C,) of C classes."""

    name: str
    labels: tuple[str, ...]
    weight: Tensor
    bias: Tensor
    made_for: str
    """`fingerprint` of the model."""

    def logits(self, mean: Tensor) -> Tensor:
        """mean (..., D) -> (..., C)."""
        return F.linear(mean, self.weight.to(mean), self.bias.to(mean))

    def index(self, label: str) -> int:
        """Raises UsageError, naming the nearest, where there is no such class."""
        if label not in self.labels:
            raise UsageError(
                f"{self.name} has no class {label!r}{nearest(label, self.labels)}: it has {', '.join(self.labels)}"
            )
        return self.labels.index(label)

    def save(self, folder: Path) -> Path:
        from safetensors.torch import save_file

        path = folder / f"{PREFIX}{self.name}.safetensors"
        temporary = path.with_suffix(".partial")
        meta = {"labels": json.dumps(self.labels), "made_for": self.made_for}
        save_file({"weight": self.weight.contiguous(), "bias": self.bias.contiguous()}, temporary, metadata=meta)
        temporary.replace(path)
        return path


def fingerprint(model: GPT) -> str:
    """Tells one step of training from another; the same in fp32 and bf16."""
    some = model.wte.weight.detach()[:256].to("cpu", torch.bfloat16).contiguous()
    return hashlib.sha256(some.view(torch.uint8).numpy().tobytes()).hexdigest()[:16]


def load_head(folder: Path, name: str, model: GPT) -> Head:
    """The head of that name; "" where the folder has only one. UsageError: none, several, or of other weights."""
    from safetensors import safe_open

    there = {path.stem.removeprefix(PREFIX): path for path in sorted(folder.glob(f"{PREFIX}*.safetensors"))}
    if not there:
        raise UsageError(
            f"{folder} holds no discriminator: train one with minilm train --discriminator DATASET --init {folder}"
        )
    name = name or (next(iter(there)) if len(there) == 1 else "")
    if name not in there:
        raise UsageError(f"{folder} holds discriminators of {', '.join(there)}: name one as NAME:LABEL")
    with safe_open(there[name], "pt") as file:
        meta = file.metadata()
        head = Head(
            name,
            tuple(json.loads(meta["labels"])),
            file.get_tensor("weight").to(model.device),
            file.get_tensor("bias").to(model.device),
            meta["made_for"],
        )
    if head.made_for != fingerprint(model):
        raise UsageError(f"{there[name]} was trained for other weights: train it again for these")
    return head


@dataclass(frozen=True)
class Steering:
    """What PPLM moves towards, and how far. Raises UsageError on a value out of range and on nothing to move to."""

    bags: tuple[tuple[int, ...], ...] = ()
    """Tokens of each bag of words; of several bags each gets its share."""
    head: Head | None = None
    label: str = ""
    """The head's class."""
    step_size: float = 0.03
    """How far each iteration moves the past, before it is divided by norm^gamma."""
    n_iterations: int = 3
    window: int = 5
    """Tokens before the current one whose keys and values are moved. 0: all."""
    gamma: float = 1.5
    """Exponent of a layer's gradient norm."""
    kl_scale: float = 0.01
    """Weight of the divergence from the unmoved prediction."""
    gm_scale: float = 0.99
    """The token is drawn from q^gm_scale p^(1 - gm_scale), q moved, p not."""
    horizon: int = 1
    """Expected tokens that the head reads beyond the current one."""

    def __post_init__(self) -> None:
        if not self.bags and self.head is None:
            raise UsageError("steering needs a bag of words or a discriminator's class")
        if self.head is not None:
            self.head.index(self.label)
        check_each(self, ("n_iterations", "window", "horizon"), is_count, "be a whole number, 0 or more")
        check_each(self, ("step_size", "gamma", "kl_scale"), lambda x: 0.0 <= x < float("inf"), "be 0 or more")
        check_each(self, ("gm_scale",), lambda x: 0.0 <= x <= 1.0, "lie in [0, 1]")


# As the authors' published commands have them: `--bag_of_words military` (the defaults) and `--discrim sentiment`.
HEAD_SETTINGS: dict[str, Any] = {"step_size": 0.04, "n_iterations": 10, "window": 0, "gamma": 1.0, "gm_scale": 0.95}
SETTINGS: dict[str, type] = {f.name: type(f.default) for f in fields(Steering) if type(f.default) in (int, float)}


def steering(bags: Sequence[Sequence[int]], head: Head | None, label: str, words: str = "") -> Steering:
    """With the published settings of its kind, over which words ("step_size=0.05,window=0") win. UsageError."""
    settings = dict(HEAD_SETTINGS if head is not None else {})
    for part in filter(None, words.split(",")):
        name, _, value = part.strip().partition("=")
        if name not in SETTINGS:
            raise UsageError(f"--steer has no setting {name!r}{nearest(name, SETTINGS)}: it has {', '.join(SETTINGS)}")
        try:
            settings[name] = SETTINGS[name](value)
        except ValueError:
            raise UsageError(f"--steer {part.strip()}: {value!r} is no {SETTINGS[name].__name__}") from None
    return Steering(tuple(map(tuple, bags)), head, label, **settings)


def words_of(bag: str) -> list[str]:
    """Of a file, a line each, or of the bag itself, between commas."""
    path = Path(bag).expanduser()
    try:
        return path.read_text(encoding="utf-8").splitlines() if path.is_file() else bag.split(",")
    except UnicodeDecodeError:
        raise UsageError(f"--bag {bag} is not UTF-8: save it as UTF-8") from None
    except OSError:  # too long for a file's name
        return bag.split(",")


def bag_of_words(words: Iterable[str], tokenizer: Tokenizer) -> tuple[list[int], list[str]]:
    """Tokens that are one of the words, with a space before it or without; and the words that are several tokens.

    Raises UsageError where no word is a single token.
    """
    tokens: list[int] = []
    missing = []
    for word in dict.fromkeys(filter(None, map(str.strip, words))):
        spelled = [[int(i) for i in tokenizer.encode(text)] for text in (f" {word}", word)]
        single = [ids[0] for ids in spelled if len(ids) == 1 and not tokenizer.count_unknown(ids)]
        tokens += single
        missing += [] if single else [word]
    if not tokens:
        raise UsageError(
            f"none of the bag's words is one token of this tokenizer ({', '.join(missing[:5]) or 'empty'})"
        )
    return sorted(set(tokens)), missing
